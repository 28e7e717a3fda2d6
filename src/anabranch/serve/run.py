"""Running the application: the address, the connections, the end."""

import errno
import gc
import os
import signal
import socket
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from anabranch.errors import InputError
from anabranch.serve.limits import LIMITS, Limits

FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
BACKLOG = 2048
KEPT = 256  # products that oneDNN keeps prepared, one for each shape of a batch: its usual 1,024 take 250 MB


class Bounded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol, which refuses a connection above the limit at once, and ends one that sends nothing.

    uvicorn itself refuses requests, but keeps their connections: enough idle ones would use up all that a process may open.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency - 1:
            transport.write(FULL)
            transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)


def secret(file: Path | None) -> str | None:
    """The token: what ``file`` holds, else ANABRANCH_TOKEN, else none."""
    if file is None:
        return os.environ.get("ANABRANCH_TOKEN") or None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token-file {file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not token or "\n" in token:
        raise InputError(f"--token-file {file} should hold one line, the token, got {len(token.splitlines())} lines")
    return token


def bound(host: str, port: int) -> socket.socket:
    """A socket at the address. InputError where it is taken, closed to this user, or no address of this machine."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError):
        raise InputError(
            f"--host {host!r} is no address of this machine: 127.0.0.1 is for this machine only, 0.0.0.0 for all"
        ) from None
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a restart waits a minute for the old one's remains
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise refused(error, host, port) from None
    return sock


def refused(error: OSError, host: str, port: int) -> Exception:
    match error.errno:
        case errno.EADDRINUSE:
            return InputError(f"port {port} of {host} is in use: stop what listens there, or pass another, --port {port + 1}")
        case errno.EACCES:
            return InputError(f"port {port} is open to the administrator only: pass one above 1023, such as --port 8000")
        case errno.EADDRNOTAVAIL:
            return InputError(f"--host {host!r} is no address of this machine: pass 127.0.0.1, or 0.0.0.0 for all")
    return error


def room(connections: int) -> None:
    """Lets this process open as many files as it may need."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = 2 * connections + 256
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need if hard == resource.RLIM_INFINITY else min(need, hard), hard))


def serve(
    run: Path, host: str = "127.0.0.1", port: int = 8000, *, token: str | None = None, limits: Limits = LIMITS,
    told: Callable[[dict[str, Any]], Any] = lambda facts: None,
) -> None:  # fmt: skip
    """Serves a run until SIGTERM or an interrupt, and then until all that was taken in is answered.

    ``told`` gets url, number of tasks and whether only this machine or a token's holders reach it, once requests are taken.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KEPT))  # read at the first product
    with bound(host, port) as sock:  # first, for the rest takes seconds
        from anabranch.serve.app import create_app

        app = create_app(run, token=token, limits=limits)
        try:
            sock.listen(BACKLOG)
        except OSError as error:
            raise refused(error, host, port) from None
        room(limits.connections)
        name, number = sock.getsockname()[:2]
        url = f"http://{f'[{name}]' if ':' in name else name}:{number}"
        closed = bool(token) or ip_address(name).is_loopback
        told({"url": url, "tasks": len(app.state.model.served), "closed": closed})
        gc.collect()
        gc.freeze()  # what is loaded stays: later collections look at requests and at tasks that came and went,
        gc.collect()  # and come as soon as there are a few of these
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it once more behind its own end, which is a good one
        uvicorn.Server(uvicorn.Config(
            app, http=Bounded, log_level="error", access_log=False, server_header=False, backlog=BACKLOG,
            limit_concurrency=limits.connections + 1, timeout_keep_alive=round(limits.patience), timeout_graceful_shutdown=60,
        )).run([sock])  # fmt: skip


def opening(facts: dict[str, Any]) -> str:
    more = "" if facts["closed"] else "; whoever reaches it may use and change it: --token-file closes it"
    return f"serving {facts['tasks']} tasks at {facts['url']}, described at {facts['url']}/docs{more}"
