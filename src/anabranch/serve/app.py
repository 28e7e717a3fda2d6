"""The routes: what comes in is checked and handed to the batcher, what comes out is JSON. ``create_app`` builds them."""

import asyncio
import re
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException as RoutingError
from typing_extensions import TypedDict  # pydantic does not take that of typing before Python 3.12

from anabranch import __version__
from anabranch.engine.backbone import backbone_of, twin
from anabranch.engine.given import needs
from anabranch.engine.model import Model
from anabranch.engine.store import open_bundle, readable, same_backbone
from anabranch.errors import InputError, WorkError
from anabranch.serve import pages, upload
from anabranch.serve.batcher import Batcher, Unknown, known
from anabranch.serve.limits import LEFT, LIMITS, Busy, Limits, body_of, guard
from anabranch.serve.metrics import Counted, Metrics


class Row(TypedDict, total=False):
    """What tasks read: most ``text``; pairs also ``text_b``; taggers ``tokens``, the words; choosers also ``choices``."""

    text: str | None
    text_b: str | None
    tokens: list[str] | None
    choices: list[str] | None


class Ask(BaseModel):
    task: Annotated[str, Field(examples=["intent"])] | Annotated[list[str], Field(min_length=1)] = Field(
        description="A task, several, or `all`."
    )
    inputs: list[Row] = Field(description="The rows.")


class Answers(BaseModel):
    answers: list[dict[str, Any]] = Field(
        description="One a row. Of one task: `prediction`, `scores`, and where it is so `abstain` (less sure than the task's"
        " threshold) and `truncated` (longer than the model reads). Of several: `{task: answer}`, null where the row lacks"
        " what the task reads."
    )


class Task(BaseModel):
    name: str
    kind: str
    metric: str
    rung: str = Field(description="probe: a head on the frozen backbone; delta: its own slot; shared: one slot of several.")
    reads: list[str] = Field(description="What a row needs.")
    labels: list[Any]
    valid: float | None = None
    test: float | None = None
    max_length: int | None = None
    description: str | None = None
    documents: int | None = Field(None, description="Of the corpus of a retrieval task.")


class Tasks(BaseModel):
    tasks: list[Task]


class Trouble(BaseModel):
    error: str


def troubles(*codes: int) -> dict[int | str, dict[str, Any]]:
    says = {
        401: "No token, or a wrong one", 404: "No such task; names the nearest", 408: "The body took too long",
        409: "A bundle keeps at least one task", 413: "The body is too large",
        422: "The request is wrong; says what was expected", 429: "The queue is full; Retry-After says for how long",
        503: "Not yet",
    }  # fmt: skip
    return {code: {"model": Trouble, "description": says[code]} for code in codes}


def body(kind: str, model: TypeAdapter[Any] | None = None) -> dict[str, Any]:
    """What the documentation says of a body that the route itself reads: of ``model``'s form, or a file."""
    schema: dict[str, Any] = model.json_schema() if model else {"type": "string", "format": "binary"}
    for name, part in schema.pop("$defs", {}).items():
        for field in schema["properties"].values():
            if field.get("items", {}).get("$ref") == f"#/$defs/{name}":  # which would lead nowhere there
                field["items"] = part
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}


ASK = TypeAdapter(Ask)
health, v1 = APIRouter(tags=["health"]), APIRouter(prefix="/v1", tags=["tasks"])


@health.get("/healthz", responses=troubles(503))
async def healthz(request: Request) -> dict[str, str]:
    """Whether the server works."""
    if not request.app.state.batcher.alive:
        raise HTTPException(503, "the model's thread has ended: start the server again")
    return {"status": "ok"}


@health.get("/readyz", responses=troubles(503))
async def readyz(request: Request) -> dict[str, str]:
    """Whether requests are answered at once: the indices of retrieval tasks are made, and the server is not stopping."""
    batcher = request.app.state.batcher
    if not batcher.ready.is_set() or batcher.stopping or not batcher.alive:
        raise HTTPException(503, "stopping" if batcher.stopping else "loading", {"retry-after": "1"})
    return {"status": "ready"}


@v1.post(
    "/predict", response_model=Answers, responses=troubles(401, 404, 408, 413, 422, 429),
    openapi_extra=body("application/json", ASK),
)  # fmt: skip
async def predict(request: Request) -> Response:
    """Answers rows by one task, several or all."""
    state = request.app.state
    ask = ASK.validate_json(await body_of(request, state.limits.body, state.limits.patience))
    if len(ask.inputs) > state.limits.rows:
        raise InputError(f"inputs has {len(ask.inputs)} rows, at most {state.limits.rows} are taken: send several requests")
    task = ask.task if isinstance(ask.task, str) else list(dict.fromkeys(ask.task))
    answers = await unless_left(request, state.batcher.submit(task, ask.inputs))
    return Response(to_json({"answers": answers}), media_type="application/json")


async def unless_left(request: Request, future: "Future[Any]") -> Any:
    """The future's result. It is cancelled when the client leaves, so that nobody computes what nobody reads."""
    answer = asyncio.wrap_future(future)

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        answer.cancel()

    watch = asyncio.ensure_future(left())
    try:
        return await answer
    except asyncio.CancelledError:
        if not watch.done():  # it is the server that ends this request
            raise
        raise HTTPException(LEFT, "the client has left") from None
    finally:
        watch.cancel()


@v1.get("/tasks", responses=troubles(401))
async def tasks(request: Request) -> Tasks:
    """All tasks."""
    model: Model = request.app.state.model
    return Tasks(tasks=[shown(model, name) for name in model.served])


@v1.get("/tasks/{name}", responses=troubles(401, 404))
async def task(request: Request, name: str) -> Task:
    """One task."""
    return shown(request.app.state.model, *known(request.app.state.model, [name]))


@v1.put(
    "/tasks/{name}", status_code=201, openapi_extra=body("application/zip"),
    responses={200: {"model": Task, "description": "Replaced"}, **troubles(401, 408, 413, 422, 429)},
)  # fmt: skip
async def put(request: Request, response: Response, name: str) -> Task:
    """Adds a task, or replaces it. The body is a zip of the files of a bundle (`zip -j task.zip RUN/bundle/*`), which has
    this task or only one. It must be of the same backbone, and its deltas of the same form; other tasks' answers stay."""
    state = request.app.state
    data = await body_of(request, state.limits.upload, state.limits.patience)
    async with state.changing:
        there = name in state.model.served

        def change() -> None:
            with upload.checked(data, name, state.model, state.spare, state.limits.upload) as (model, theirs):
                upload.keep(state.run, model, theirs, name)
                state.batcher.change(lambda live: live.take(model, theirs, name)).result()

        await asyncio.to_thread(change)
    response.status_code = 200 if there else 201
    return shown(state.model, name)


@v1.delete("/tasks/{name}", status_code=204, responses=troubles(401, 404, 409, 429))
async def delete(request: Request, name: str) -> None:
    """Removes a task."""
    state = request.app.state
    async with state.changing:
        known(state.model, [name])
        if len(state.model.served) == 1:
            raise HTTPException(409, f"{name} is the only task of this bundle")

        def change() -> None:
            upload.drop(state.run, name)
            state.batcher.change(lambda live: live.drop(name)).result()

        await asyncio.to_thread(change)


async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def shown(model: Model, name: str) -> Task:
    served = model.task(name)
    more = {
        "name": name,
        "reads": needs(served.kind, served.record["kind"]),
        "documents": None if served.corpus is None else len(served.corpus),
    }
    return Task.model_validate(dict(served.record) | more)


def create_app(run: Path, *, token: str | None = None, limits: Limits = LIMITS) -> FastAPI:
    """The application that serves a run or a bundle. InputError for a folder that is none or is not finished.

    ``token``: what requests must carry as ``Authorization: Bearer``; /healthz, /readyz and the documentation are open.
    ``app.state`` has run, model, limits, metrics and batcher, whose ``submit`` answers rows.
    """
    folder, bundle = open_bundle(Path(run))
    with readable(folder):
        backbone = backbone_of(bundle["backbone"]["id"], bundle["dtype"])
        same_backbone(backbone, bundle, folder)
        model, spare = Model(folder, bundle, twin(backbone)), twin(backbone)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.batcher.start()
        yield
        await asyncio.to_thread(app.state.batcher.stop)

    app = FastAPI(title="anabranch", version=__version__, lifespan=life, summary="Many tasks on one backbone.")
    state = app.state
    state.run, state.limits, state.metrics = Path(run), limits, Metrics()
    state.model, state.spare = model, spare  # of the batcher's thread, of uploads
    state.batcher, state.changing = Batcher(state.model, limits, state.metrics), asyncio.Lock()
    app.include_router(health)
    closed = [Depends(HTTPBearer(auto_error=False)), Depends(guard(token))] if token else []
    app.include_router(v1, dependencies=closed)
    app.include_router(pages.router(state, token))
    told: dict[str, Any] = {"tags": ["health"], "dependencies": closed, "responses": troubles(401)}
    app.add_api_route("/metrics", metrics, response_class=PlainTextResponse, **told)
    app.add_middleware(Counted, metrics=state.metrics)
    for kind, answer in REFUSALS.items():
        app.add_exception_handler(kind, answer)
    return app


def refusal(code: int, text: str, headers: dict[str, str] | None = None) -> Response:
    shown = text.encode("utf-8", "backslashreplace").decode()
    return Response(to_json({"error": shown}), code, headers, "application/json")


async def busy(_: Request, error: Any) -> Response:
    return refusal(429, str(error), {"retry-after": str(error.seconds)})


async def unknown(_: Request, error: Exception) -> Response:
    return refusal(404, str(error))


async def wrong(_: Request, error: Exception) -> Response:
    return refusal(422, str(error))


async def failed(_: Request, error: Exception) -> Response:
    return refusal(500, str(error))


async def unlike(_: Request, error: Any) -> Response:
    """pydantic's findings in words: where, what was expected, what came."""
    said = [
        f"{place(e['loc'])}: {e['msg']}" + f", got {e['input']!r:.60}" * (e["type"] != "json_invalid") for e in error.errors()[:3]
    ]
    return refusal(422, "; ".join(said))


def place(loc: tuple[Any, ...]) -> str:
    """inputs.2.text; pydantic's names for the sides of a union stay out."""
    words = [
        str(part) for part in loc if isinstance(part, int) or re.fullmatch(r"\w+", str(part)) and part not in ("str", "list")
    ]
    return ".".join(words) or "body"


async def routing(_: Request, error: Any) -> Response:
    return refusal(error.status_code, str(error.detail), error.headers)


REFUSALS: dict[Any, Any] = {
    Busy: busy, Unknown: unknown, InputError: wrong, WorkError: failed, ValidationError: unlike, RoutingError: routing,
}  # fmt: skip
