"""The pages at /: try all tasks, look at each, at their map, and at the atlas. Written by the server, readable without a script.

No page loads anything from elsewhere, every value is escaped, and no path of a request reaches the file system: styles and
scripts are read once and served by name; tasks and rows are keys of what is loaded.
"""

import asyncio
import base64
import functools
import hashlib
import hmac
import logging
import re
import secrets
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from anabranch.atlas.rows import row as row_of
from anabranch.atlas.rows import rows
from anabranch.atlas.search import minilm, search
from anabranch.atlas.show import about, chart, facts
from anabranch.atlas.status import STATUSES, cited, statuses
from anabranch.errors import InputError, WorkError, nearest
from anabranch.report import gates, html, table
from anabranch.report.relation import relation
from anabranch.serve.feed import Feed, Mail, days
from anabranch.serve.limits import Busy, body_of
from anabranch.serve.show import answer, fired, row_for, task_of

TEMPLATES = Path(__file__).with_name("templates")
STATIC = {
    "style.css": ("text/css; charset=utf-8", html.asset("style.css").encode()),
    "page.js": ("text/javascript; charset=utf-8", html.asset("page.js").encode()),
}
VERSION = hashlib.sha256(b"".join(data for _, data in STATIC.values())).hexdigest()[:12]
SAFE = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-cache",
}
PAGE = 40  # rows of the atlas at once
QUERY = 400  # characters of a search
FRESH = 30.0  # seconds for which what is computed from files holds
PLACES = (("/", "Try"), ("/tasks", "Tasks"), ("/map", "Map"), ("/atlas", "Atlas"))
SORTS = ("dated", "votes", "value", "title")
log = logging.getLogger("anabranch.serve")


def router(state: Any, token: str | None = None, feed: Path | None = None, mail: Mail | None = None) -> APIRouter:
    """The pages of an application: ``state`` has run, model, limits and batcher.

    ``token``: what a browser is asked for as a password (any user name), or gets as a bearer. ``feed``: the SQLite file of
    votes and events, ``RUN/atlas.sqlite`` unless told. ``mail``: who gets the digest, from the environment unless told.
    """
    mail = mail or Mail.told()
    kept = opened(feed or Path(state.run) / "atlas.sqlite")
    env = html.environment(TEMPLATES)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        stop = threading.Event()
        if mail:
            said = (mail, stop, log.warning)
            threading.Thread(target=kept.daily, args=said, name="digest", daemon=True).start()
        yield
        stop.set()

    pages = APIRouter(include_in_schema=False, dependencies=[Depends(guard(token))] if token else [], lifespan=life)

    def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        here = "/" + request.url.path.split("/")[1]
        text = env.get_template(template).render(
            places=PLACES, here=here, version=VERSION, run=Path(state.run).resolve().name, **values
        )
        return HTMLResponse(text, status, SAFE)

    def trouble(request: Request, status: int, words: str, headers: Mapping[str, str] | None = None) -> HTMLResponse:
        shown = page(request, "trouble.html", status, words=words)
        shown.headers.update(headers or {})
        return shown

    def results() -> dict[str, Any]:
        """Of the run, with tasks that came since and without those that went."""
        try:
            found = table.read(Path(state.run))
        except InputError:  # a bundle without its run
            found = {"tasks": {}}
        live = dict(state.model.served)
        return found | {"tasks": {n: task_of(found["tasks"].get(n), served.record) for n, served in live.items()}}

    def related() -> dict[str, Any] | None:
        found = results()
        if not (given := found.get("related")) or len(given["tasks"]) < 2:
            return None
        return given | relation(given["tasks"], given["matrix"])

    drawn, standing = fresh(related), fresh(lambda: statuses(r.id for r in rows()))

    # ---- try

    @pages.get("/")
    def start(request: Request) -> Response:
        return page(request, "try.html", given={}, answers=None, words="", took=0.0, kinds=kinds(state.model))

    @pages.post("/")
    async def tried(request: Request) -> Response:
        same_origin(request)
        given = await form(request, state.limits.body, state.limits.patience)
        row = row_for(given)
        begun, answers, words, status = time.perf_counter(), None, "", 200
        if not row:
            words, status = "Type a text first.", 422
        else:
            try:
                found = (await asyncio.wrap_future(state.batcher.submit("all", [row])))[0]
                weighed: dict[str, Any] = {}
                if not all(bank.gate.plain for bank in state.model.banks):  # in the model's own thread: nobody else may use it
                    look = state.batcher.change(
                        lambda live: {n: gates.fired(live, live.served[n], row) for n in found if found[n]}
                    )
                    weighed = await asyncio.wrap_future(look)
                model = state.model
                answers = [answer(model.served[n], found[n], row) | {"fired": fired(model, n, found[n], weighed.get(n))}
                           for n in found if n in model.served]  # fmt: skip
            except Busy as error:
                return trouble(request, 429, str(error).capitalize() + ".", {"retry-after": str(error.seconds)})
            except (InputError, WorkError) as error:
                words, status = str(error), 422 if isinstance(error, InputError) else 500
        took = 1000 * (time.perf_counter() - begun)
        return page(request, "try.html", status, given=given, answers=answers, words=words, took=took, kinds=kinds(state.model))

    # ---- tasks and their map

    @pages.get("/tasks")
    def tasks(request: Request) -> Response:
        found = results()["tasks"]
        return page(request, "tasks.html", tasks=found, link=place_of, **html.scale(found))

    @pages.get("/tasks/{name}")
    def task(request: Request, name: str) -> Response:
        found = results()["tasks"]
        if name not in found:
            return trouble(request, 404, f"No task {name!r} is served here{nearest(name, found)}.")
        served = state.model.served.get(name)
        return page(
            request,
            "task.html",
            name=name,
            t=found[name],
            record=served.record if served else {},
            **html.scale({name: found[name]}),
        )

    @pages.get("/map")
    def map_(request: Request) -> Response:
        found = results()
        return page(
            request, "map.html", related=drawn(), gates=found.get("gates"), tasks=found["tasks"], count=len(found["tasks"])
        )

    # ---- the atlas

    @pages.get("/atlas")
    def atlas(request: Request) -> Response:
        q, asked = request.query_params.get("q", "")[:QUERY].strip(), request.query_params
        now, votes = standing(), kept.votes()
        noted = renewed(kept)
        listed = [r for r, _ in found_by(q)] if q else list(rows())
        chosen = {k: asked.get(k, "") for k in ("family", "status", "kind")}
        listed = [
            r for r in listed if all(not v or v == (now[r.id] if k == "status" else getattr(r, k)) for k, v in chosen.items())
        ]
        sort = asked.get("sort", "") if asked.get("sort") in SORTS else ""
        dates = {e.row: e.at[:10] for e in reversed(noted)}
        order: dict[str, Callable[[Any], Any]] = {
            "dated": lambda r: (flipped(dates.get(r.id, "")), -votes.get(r.id, 0), -r.value),
            "votes": lambda r: -votes.get(r.id, 0), "value": lambda r: -r.value, "title": lambda r: r.title.casefold(),
        }  # fmt: skip
        if sort or not q:
            listed.sort(key=order[sort or "dated"])
        last = max(1, -(-len(listed) // PAGE))
        at = min(last, max(1, int(asked["page"]))) if re.fullmatch("[0-9]{1,6}", asked.get("page", "")) else 1
        shown = listed[(at - 1) * PAGE : at * PAGE]
        back = urlencode({k: v for k, v in {**chosen, "q": q, "sort": sort, "page": at}.items() if v not in ("", 1)})
        titles = {r.id: r for r in rows()}
        options = {"family": sorted({r.family for r in rows()}), "status": STATUSES, "kind": sorted({r.kind for r in rows()})}
        return page(
            request, "atlas.html", q=q, chosen=chosen, options=options, sort=sort, sorts=SORTS, rows=shown, found=len(listed),
            status_of=now, votes=votes, mine=kept.mine(voter(request) or ""), dates=dates, at=at, last=last, back=back,
            by="words" if q and minilm() is None else "meaning",
            days=list(days(noted).items())[:5] if not q else [], titles=titles,
            turn=lambda n: "/atlas?" + urlencode({**dict(parse_qsl(back)), "page": n}),
        )  # fmt: skip

    @pages.get("/atlas.xml")
    def atom(request: Request) -> Response:
        renewed(kept)
        return Response(kept.atom(str(request.base_url)), media_type="application/atom+xml", headers=SAFE)

    @pages.get("/atlas/{id}")
    def entry(request: Request, id: str) -> Response:
        try:
            found = row_of(id)
        except InputError:
            return trouble(request, 404, f"The atlas has no row {id!r}{nearest(id, [r.id for r in rows()])}.")
        data = about(found, cited())
        verdict = data["verdict"]
        told = (chart(verdict), facts(verdict)) if verdict else ("", "")
        events = [e for e in kept.events() if e.row == found.id]
        return page(
            request, "row.html", r=found, data=data, events=events, votes=kept.votes().get(found.id, 0), back="",
            voted=found.id in kept.mine(voter(request) or ""), chart_=told[0], facts=told[1],
        )  # fmt: skip

    @pages.post("/atlas/{id}/vote")
    async def vote(request: Request, id: str) -> Response:
        same_origin(request)
        given = await form(request, 10_000, state.limits.patience)
        if id not in {r.id for r in rows()}:
            return trouble(request, 404, f"The atlas has no row {id!r}.")
        who = voter(request) or secrets.token_urlsafe(16)
        await asyncio.to_thread(kept.vote, id, who, given.get("up") == "1")
        back = urlencode(parse_qsl(given.get("back", "")))  # a query, never an address
        to = f"/atlas?{back}#{id}" if given.get("from") == "list" else f"/atlas/{id}"
        answered = RedirectResponse(to, 303, SAFE)
        secure = request.url.scheme == "https"
        answered.set_cookie("voter", who, max_age=400 * 86400, httponly=True, samesite="lax", secure=secure, path="/atlas")
        return answered

    @pages.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404, "no such file")
        kind, data = STATIC[name]
        return Response(data, headers={**SAFE, "content-type": kind, "cache-control": "public, max-age=31536000, immutable"})

    return pages


def opened(file: Path) -> Feed:
    """The feed of a file; where it cannot be kept, one that lasts as long as the server."""
    try:
        return Feed(file)
    except WorkError as error:
        log.warning("votes last until the server stops: %s", error)
        return Feed(Path(tempfile.mkdtemp(prefix="anabranch-")) / "atlas.sqlite")


def place_of(task: str, i: int) -> str:
    """The page of a task."""
    return f"/tasks/{quote(task, safe='')}"


def guard(token: str) -> Callable[[Request], None]:
    """A dependency: browsers ask for a password, programs send a bearer; every comparison takes the same time."""
    wanted = token.encode()

    def check(request: Request) -> None:
        scheme, _, said = request.headers.get("authorization", "").partition(" ")
        given = said.strip().encode("latin-1", "replace")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except ValueError:
                given = b""
        if scheme.lower() not in ("basic", "bearer") or not hmac.compare_digest(given, wanted):
            words = "this server wants its token: as the password (any user name), or as Authorization: Bearer TOKEN"
            raise HTTPException(401, words, {"www-authenticate": 'Basic realm="anabranch", charset="UTF-8"'})

    return check


async def form(request: Request, most: int, patience: float) -> dict[str, str]:
    """The fields of a form that has at most ``most`` bytes."""
    body = await body_of(request, most, patience)
    try:
        return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=16))
    except ValueError:
        raise HTTPException(422, "a form of these pages has at most 16 fields") from None


@functools.lru_cache(256)
def found_by(words: str) -> list[tuple[Any, float]]:
    """The best rows for some words."""
    return search(words, 100)


def same_origin(request: Request) -> None:
    """Refuses what another site makes a browser send."""
    site, origin = request.headers.get("sec-fetch-site", "none"), request.headers.get("origin")
    if site not in ("same-origin", "none") or (origin and urlsplit(origin).netloc != request.headers.get("host")):
        raise HTTPException(403, "forms are taken from this server's own pages only")


def voter(request: Request) -> str | None:
    """Who this browser is, by its cookie."""
    said = request.cookies.get("voter", "")
    return said if re.fullmatch(r"[\w-]{16,64}", said, re.ASCII) else None


def fresh(make: Callable[[], Any]) -> Callable[[], Any]:
    """``make()``, made anew after :data:`FRESH` seconds."""
    lock, held = threading.Lock(), list[tuple[float, Any]]()

    def get() -> Any:
        with lock:
            if not held or held[0][0] < time.monotonic():
                held[:] = [(time.monotonic() + FRESH, make())]
            return held[0][1]

    return get


_SEEN: dict[Path, float] = {}


def renewed(feed: Feed) -> list[Any]:
    """All events, after a look at the catalogue that is at most :data:`FRESH` seconds old."""
    if _SEEN.get(feed.file, 0.0) < time.monotonic():
        feed.refresh()
        _SEEN[feed.file] = time.monotonic() + FRESH
    return feed.events()


def flipped(day: str) -> tuple[int, ...]:
    """Sorts days from the newest."""
    return tuple(-ord(c) for c in day)


def kinds(model: Any) -> set[str]:
    """What a row may need besides a text: "two", "choices", "tokens"."""
    found = list(model.served.values())
    return ({"two"} if any(s.kind.two for s in found) else set()) | {s.record["kind"] for s in found} & {"choice", "tag"}
