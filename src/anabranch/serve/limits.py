"""What one server takes, and how a request that wants more is refused."""

import asyncio
import hmac
import math
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

LEFT = 499  # nobody reads it; it shows in /metrics
OPEN = 1_000_000  # bytes behind a limit that are still read, so that the client gets to its answer


class Limits(NamedTuple):
    """``rows``: inputs of a request. ``body``: its bytes. ``upload``: bytes of an archive, and of what it holds unpacked.

    ``queue``: answers that may wait; one row for three tasks are three. ``wait``: seconds that an answer waits for others of
    its length. ``patience``: seconds for a request to arrive, and for a connection to send one. ``connections``: at once.
    """

    rows: int = 1024
    body: int = 8_000_000
    upload: int = 256_000_000
    queue: int = 16_384
    wait: float = 0.002
    patience: float = 30.0
    connections: int = 1000


LIMITS = Limits()


class Busy(Exception):
    """The queue is full; in about ``seconds`` it will not be."""

    def __init__(self, seconds: float) -> None:
        self.seconds = min(60, max(1, math.ceil(seconds)))
        super().__init__(f"the queue is full: try again in {self.seconds} s")


async def body_of(request: Request, most: int, patience: float) -> bytes:
    """The body, if it has at most ``most`` bytes (else 413) and comes within ``patience`` seconds (else 408)."""
    said, size, parts = int(request.headers.get("content-length", "0")), 0, list[bytes]()
    try:
        async with asyncio.timeout(patience):
            if said <= most + OPEN:
                async for part in request.stream():
                    size += len(part)
                    if size > most + OPEN:
                        break
                    if size <= most:
                        parts.append(part)
    except ClientDisconnect:
        raise HTTPException(LEFT, "the client has left") from None
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {patience:g} s", {"connection": "close"}) from None
    if max(size, said) > most:
        raise HTTPException(413, f"a body of at most {most} bytes is taken here, got more: send several", {"connection": "close"})
    return b"".join(parts)


def guard(token: str) -> Callable[[Request], Coroutine[Any, Any, None]]:
    """A dependency that lets those pass who say the token; every comparison takes the same time."""
    wanted = token.encode()

    async def check(request: Request) -> None:
        scheme, _, said = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(said.strip().encode("latin-1"), wanted)
        if scheme.lower() != "bearer" or not same:
            raise HTTPException(401, "this server wants the header: Authorization: Bearer TOKEN", {"www-authenticate": "Bearer"})

    return check
