"""What a server counts, for Prometheus. Each app has a registry of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
ROWS = tuple(2**i for i in range(11))


class Metrics:
    """Rows are answers: one row for three tasks are three. A batch is a forward pass, its rows are texts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        to: dict[str, Any] = {"registry": self.registry, "namespace": "anabranch"}
        self.requests = Counter(
            "requests",
            "Requests by route, method and status (499: the client left before its answer).",
            ["route", "method", "status"],
            **to,
        )
        self.seconds = Histogram("request_seconds", "From a request's head to its answer.", ["route"], buckets=SECONDS, **to)
        self.rows = Counter("rows", "Rows answered.", ["task"], **to)
        self.batch = Histogram("batch_rows", "Texts of a forward pass.", buckets=ROWS, **to)
        self.queue_seconds = Histogram("queue_seconds", "From a request's arrival to each of its passes.", buckets=SECONDS, **to)
        self.stage = Histogram("stage_seconds", "Of tokens, forward and heads, by batch.", ["stage"], buckets=SECONDS, **to)
        self.stages = {name: self.stage.labels(name) for name in ("tokens", "forward", "heads")}
        self.queue = Gauge("queue_rows", "Rows that wait or are being answered.", **to)
        self.tasks = Gauge("tasks", "Tasks that are served.", **to)
        ProcessCollector(registry=self.registry)  # memory, CPU, open files

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.stages[stage].observe(perf_counter() - start)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Counted:
    """ASGI middleware: one request, one count and one time, under the route's pattern (never under what a client typed)."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = perf_counter(), 500

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, seen)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in ("GET", "POST", "PUT", "DELETE") else "other"
            self.metrics.requests.labels(route, method, status).inc()
            self.metrics.seconds.labels(route).observe(perf_counter() - start)
