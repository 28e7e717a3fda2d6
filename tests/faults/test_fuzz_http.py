"""What clients send: schemathesis reads our own OpenAPI and sends what it allows and what it does not; and worse by hand.

Every answer is one that the documentation names, in its form; never a 5xx but 503, never a hang, never memory that stays.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from engine import _tiny as tiny
from fastapi.testclient import TestClient
from faults import _soak
from faults._strategies import altered, harmed, texts, values
from hypothesis import given
from hypothesis import strategies as st
from schemathesis.specs.openapi import checks as openapi
from serve import _made as made

from anabranch.engine.model import load
from anabranch.serve.app import create_app
from anabranch.serve.limits import Limits

pytestmark = pytest.mark.filterwarnings("ignore")  # of schemathesis, about what it cannot make up
TASKS = {kind: kind for kind in tiny.HEADED} | {"a": "regress shared"}
CODES = {200, 201, 204, 400, 401, 404, 405, 408, 409, 413, 422, 429, 503}
CHECKS = [openapi.status_code_conformance, openapi.content_type_conformance, openapi.response_schema_conformance]


@schemathesis.serializer("application/zip")
def archive(_: Any, value: Any) -> Any:
    """What schemathesis makes up for an archive is bytes, or what is none."""
    return value if isinstance(value, bytes) else json.dumps(value, default=str).encode()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Any:
    """The application as it runs, the run, and how it answered before anything was sent."""
    run = made.bundle(tmp_path_factory.mktemp("http") / "run", TASKS)
    app = create_app(run, limits=Limits(rows=40, body=60_000, upload=200_000, queue=400, patience=5.0))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, run, load(run).predict("classify", made.ROWS["classify"])


def alive(client: TestClient, wanted: Any) -> None:
    """What was sent has left no trace in the answers of others."""
    answer = client.post("/v1/predict", json={"task": "classify", "inputs": made.ROWS["classify"]})
    assert answer.status_code == 200 and answer.json()["answers"] == wanted
    assert client.get("/healthz").status_code == 200


def test_what_our_own_documentation_allows_and_what_it_does_not(served):
    """The tasks that are deleted and replaced meanwhile are copies: classify stays."""
    client, run, wanted = served

    async def running(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"  # which the client above has begun and will end
        await client.app(scope, receive, send)

    schema = schemathesis.openapi.from_asgi("/openapi.json", running)
    seen: dict[str, int] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        cases = operation.as_strategy() | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        if operation.method.lower() == "delete":  # what is served stays
            cases = cases.filter(lambda case: str((case.path_parameters or {}).get("name")) not in TASKS)
        send = sender(seen)
        _soak.fuzz(20, 10_000)(given(case=cases)(send))()
    alive(client, wanted)
    assert {code for line, code in map(lambda s: s.rsplit(" ", 1), seen) if line == "POST /v1/predict"} >= {"404", "422"}, seen
    assert set(load(run).tasks) >= set(TASKS)


def sender(seen: dict[str, int]) -> Any:
    def send(case: Any) -> None:
        with _soak.within():
            response = case.call()
        line = f"{case.method} {case.operation.path}"
        seen[f"{line} {response.status_code}"] = seen.get(f"{line} {response.status_code}", 0) + 1
        assert response.status_code in CODES, (line, response.status_code, response.text)
        if response.status_code not in (400, 405):  # what is not HTTP, and another method
            case.validate_response(response, checks=CHECKS)

    return send


# ---- worse than any schema


rows = made.ROWS["classify"][:2] + made.ROWS["choice"][:1] + made.ROWS["tag"][:1]
ASKS = [{"task": task, "inputs": rows} for task in ("classify", "all", ["tag", "choice"])]


def fine(answer: Any) -> None:
    assert answer.status_code in CODES, answer.text[:300]
    if answer.status_code != 204:
        assert set(answer.json()) == ({"error"} if answer.status_code >= 400 else {"answers"}), answer.text[:300]
        assert "Traceback" not in answer.text and "/tmp" not in answer.text


@_soak.fuzz(50)
@given(data=st.data())
def test_bodies_that_came_to_harm(served, data):
    client, _, _ = served
    good = json.dumps(data.draw(st.sampled_from(ASKS))).encode()
    body = data.draw(
        harmed(good)
        | st.sampled_from(ASKS).flatmap(altered).map(lambda v: json.dumps(v).encode())
        | values.map(lambda v: json.dumps(v).encode())
    )
    kind = data.draw(
        st.sampled_from(
            ["application/json", "text/plain", "application/json; charset=utf-16", "multipart/form-data; boundary=", ""]
        )
    )
    with _soak.within():
        fine(client.post("/v1/predict", content=body, headers={"content-type": kind}))


NAMES = [
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    "%00",
    "a%00b",
    "%ff%fe",
    "a%0d%0ax: y",
    "C:%5Cwindows",
    "~",
    ".",
    "a/b/c",
    "%252e%252e%252f",
    "bundle.json",
]


@_soak.fuzz(40)
@given(
    name=st.sampled_from(NAMES) | texts.filter(lambda name: name not in TASKS),
    method=st.sampled_from(["GET", "PUT", "DELETE", "PATCH", "HEAD"]),
    body=st.binary(max_size=40),
)
def test_no_name_in_an_address_reaches_the_file_system(served, name, method, body):
    client, run, wanted = served
    before = tiny.files(run)
    quoted = name if name in NAMES else "".join(f"%{b:02x}" for b in name.encode("utf-8", "surrogatepass"))
    with _soak.within():
        answer = client.request(method, f"/v1/tasks/{quoted}", content=body if method == "PUT" else None)
    assert answer.status_code in CODES | {307, 308}, answer.text[:300]
    served_name = method in ("GET", "HEAD") and answer.status_code == 200
    assert not served_name or name in ("", *TASKS) or not quoted.strip("/.")
    assert tiny.files(run) == before and "root:" not in answer.text


def test_a_good_task_under_a_bad_name_is_refused(served, tmp_path):
    client, run, _ = served
    archive, before = made.zipped(made.bundle(tmp_path / "one", {"new": "classify"}, seed=3)), tiny.files(run.parent)
    for name in (*NAMES, "all", ".hidden", "-x", "a%2fb", "a%0ab", "%20"):
        answer = client.put(f"/v1/tasks/{name}", content=archive)
        assert answer.status_code in (404, 405, 422) or name == "bundle.json", (name, answer.status_code)
        if answer.status_code == 201:  # a name like any other: it is a key, not a file
            assert client.delete(f"/v1/tasks/{name}").status_code == 204
    after = tiny.files(run.parent)
    assert after.keys() - before.keys() <= {"run/results.json"}
    assert {n: d for n, d in after.items() if n.endswith((".safetensors", ".jsonl"))} == {
        n: d for n, d in before.items() if n.endswith((".safetensors", ".jsonl"))
    }


def test_tasks_come_and_go_under_odd_names_and_answer_alike(served, tmp_path):
    client, _, wanted = served
    other = made.bundle(tmp_path / "other", {"x": "classify"}, seed=4)
    answers = load(other).predict("x", made.ROWS["classify"])
    for name in ("ü ber", "3", "null", "a.b-c+d", "__init__", "NaN", "x" * 200, "日本"):
        assert client.put(f"/v1/tasks/{name.replace('+', '%2b')}", content=made.zipped(other)).status_code == 201, name
        found = client.post("/v1/predict", json={"task": name, "inputs": made.ROWS["classify"]})
        assert found.json()["answers"] == answers
        assert client.delete(f"/v1/tasks/{name.replace('+', '%2b')}").status_code == 204
    alive(client, wanted)


def test_a_task_that_cannot_answer_is_told_by_name_and_the_others_answer(tmp_path, served):
    from faults.test_bits import poisoned

    _, run, wanted = served
    sick = poisoned(Path(shutil.copytree(run, tmp_path / "run")), "pair")
    with TestClient(create_app(sick), raise_server_exceptions=False) as client:
        answer = client.post("/v1/predict", json={"task": "pair", "inputs": made.ROWS["pair"]})
        assert answer.status_code == 500 and answer.json()["error"].startswith("task pair: its stored delta or head holds NaN")
        every = client.post("/v1/predict", json={"task": "all", "inputs": made.ROWS["pair"] + made.ROWS["classify"]}).json()[
            "answers"
        ]
        assert all(a["pair"] is None for a in every) and [a["classify"] for a in every[-len(wanted) :]] == wanted


def test_serving_keeps_no_memory(served):
    client, _, wanted = served
    rng = random.Random(0)

    def ask(i: int) -> None:
        good = json.dumps(ASKS[i % 3]).encode()
        at = rng.randrange(len(good))
        fine(
            client.post("/v1/predict", content=good[:at] + rng.choice([b"", b"\xff", b"[", b"9"]) + good[at + rng.randrange(3) :])
        )

    _soak.flat(ask, 20, 10_000, room=30e6)
    alive(client, wanted)
