"""The pages over a tiny run, without the batcher: what they need of an application, and a server of it on a free port."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
from engine import _tiny as tiny
from fastapi import FastAPI

from anabranch.engine.model import load
from anabranch.serve import pages
from anabranch.serve.limits import Limits


class Direct:
    """Answers at once, or with what it was told to raise."""

    def __init__(self, model: Any) -> None:
        self.model, self.raises = model, None

    def submit(self, task: str, rows: Any) -> "Future[Any]":
        if self.raises:
            raise self.raises
        future: Future[Any] = Future()
        future.set_result(self.model.predict(task, rows))
        return future

    def change(self, make: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(make(self.model))
        return future


@cache
def model() -> Any:
    return load(tiny.fitted("bert")[0])


def app(feed: Path, token: str | None = None, run: Path | None = None, **more: Any) -> FastAPI:
    made = FastAPI()
    made.state.run, made.state.model, made.state.limits = run or tiny.fitted("bert")[0], model(), Limits()
    made.state.batcher = Direct(made.state.model)
    made.include_router(pages.router(made.state, token, feed, **more))
    return made


@contextmanager
def served(made: FastAPI) -> Iterator[str]:
    """Its address, while it runs in a thread of its own."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(made, log_level="error"))
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        server.should_exit = True
        thread.join()
