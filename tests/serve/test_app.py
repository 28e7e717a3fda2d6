"""The routes, in one process: answers, limits, errors in words, documentation, metrics."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from engine import _tiny as tiny
from fastapi.testclient import TestClient
from serve import _made as made

from anabranch.engine.model import Model, load
from anabranch.errors import InputError, WorkError
from anabranch.serve.app import create_app
from anabranch.serve.limits import Limits

TASKS = {kind: kind for kind in tiny.HEADED} | {"a": "regress shared", "b": "pair shared"}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return made.bundle(tmp_path_factory.mktemp("app") / "run", TASKS)


@pytest.fixture(scope="module")
def offline(source) -> Model:
    return load(source)


@pytest.fixture(scope="module")
def client(source):
    with TestClient(create_app(source, limits=Limits(rows=20, body=20_000, queue=300))) as made_client:
        yield made_client


@pytest.fixture
def changing(source, tmp_path):
    """A client of a server whose bundle may change, and the run."""
    run = Path(shutil.copytree(source, tmp_path / "run"))
    with TestClient(create_app(run, limits=Limits(upload=3_000_000))) as made_client:
        yield made_client, run


def ask(client: TestClient, task: Any, rows: Any, **more: Any) -> Any:
    answer = client.post("/v1/predict", json={"task": task, "inputs": rows}, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()["answers"]


def refused(answer: Any, code: int) -> str:
    assert answer.status_code == code and set(answer.json()) == {"error"}, answer.text
    return answer.json()["error"]


# ---- predict


def test_answers_are_those_of_predict(client, offline):
    for task in TASKS:
        rows = made.ROWS[offline.tasks[task]["kind"]]
        assert ask(client, task, rows) == offline.predict(task, rows), task
    rows = [row for kind in tiny.HEADED for row in made.ROWS[kind][:2]]
    assert ask(client, "all", rows) == offline.predict("all", rows)
    assert ask(client, ["pair", "tag", "pair"], rows) == offline.predict(["pair", "tag"], rows)
    assert ask(client, "classify", []) == [] and ask(client, ["tag"], [{"text": "red"}]) == [{"tag": None}]


def test_what_is_not_read_does_not_matter(client, offline):
    found = ask(client, "classify", [{"text": "red", "id": 7, "tokens": None}])
    assert found == offline.predict("classify", ["red"])
    body = json.dumps({"task": "classify", "inputs": [{"text": "Ü\u2028 日本"}]})
    assert client.post("/v1/predict", content=body).json()["answers"] == offline.predict("classify", ["Ü\u2028 日本"])


def test_a_long_text_is_cut_and_said(client):
    flags = [a.get("truncated", False) for a in ask(client, "classify", [{"text": made.LONG}, {"text": "red"}])]
    assert flags == [True, False]


@pytest.mark.parametrize(("body", "code", "said"), [
    (b"", 422, "body: Invalid JSON"), (b"{", 422, "Invalid JSON: EOF"), (b"[]", 422, "body: .*object"), (b"\xff", 422, "Invalid JSON"),
    (b'{"task": "classify"}', 422, "inputs: Field required"), (b'{"inputs": []}', 422, "task: Field required"),
    (b'{"task": 3, "inputs": []}', 422, "task: .*valid string, got 3"), (b'{"task": [], "inputs": []}', 422, "task: .*at least 1 item"),
    (b'{"task": "classify", "inputs": "red"}', 422, "inputs: .*valid array, got 'red'"),
    (b'{"task": "classify", "inputs": ["red"]}', 422, "inputs.0: .*got 'red'"),
    (b'{"task": "classify", "inputs": [{"text": 3}]}', 422, "inputs.0.text: .*got 3"),
    (b'{"task": "classify", "inputs": [{"text": "a"}, {"text_b": "a"}]}', 422, "row 2: task classify needs 'text', a string, got keys text_b"),
    (b'{"task": "pair", "inputs": [{"text": "a"}]}', 422, "row 1: task pair needs 'text_b'"),
    (b'{"task": "classify", "inputs": [{"text": "\\ud800"}]}', 422, "Invalid JSON: .*hex escape"),
    (b'{"task": "clasify", "inputs": []}', 404, "no task 'clasify' is served here; did you mean classify"),
    (b'{"task": ["tag", "../tag"], "inputs": []}', 404, "no task '../tag' is served here; did you mean tag"),
    (json.dumps({"task": "classify", "inputs": [{"text": "x"}] * 21}).encode(), 422, "inputs has 21 rows, at most 20"),
    (json.dumps({"task": "choice", "inputs": [{"text": "x", "choices": ["a"] * 301}]}).encode(), 422, "may ask for 300 answers"),
    (b"[" * 20_000, 422, "Invalid JSON: recursion"), (b" " * 20_001, 413, "at most 20000 bytes"), (b" " * 2_000_000, 413, "at most 20000"),
])  # fmt: skip
def test_wrong_requests_are_answered_in_words(client, body, code, said):
    error = refused(client.post("/v1/predict", content=body), code)
    assert __import__("re").search(said, error), error
    assert client.get("/healthz").status_code == 200


def test_a_body_without_a_length_is_limited_too(client):
    def parts():
        for _ in range(100):
            yield b" " * 1000

    assert "20000 bytes" in refused(client.post("/v1/predict", content=parts()), 413)
    short = json.dumps({"task": "classify", "inputs": [{"text": "red"}]}).encode()
    assert client.post("/v1/predict", content=iter([short[:9], short[9:]])).status_code == 200


def test_a_full_queue_says_when_to_come_back(source):
    app = create_app(source, limits=Limits(queue=5, wait=30))
    with TestClient(app) as client:
        first = threading.Thread(target=ask, args=(client, "classify", [{"text": "red"}] * 4))
        first.start()
        while app.state.batcher.waiting < 4:
            pass
        answer = client.post("/v1/predict", json={"task": "classify", "inputs": [{"text": "x"}] * 2})
        assert "the queue is full" in refused(answer, 429) and 1 <= int(answer.headers["retry-after"]) <= 60
        app.state.batcher.change(lambda model: None).result(10)  # it ends every waiting
        first.join()
        assert app.state.batcher.waiting == 0


def test_no_such_route_or_method(client):
    assert refused(client.get("/v1/nothing"), 404) == "Not Found"
    assert refused(client.get("/v1/predict"), 405) == "Method Not Allowed"


# ---- tasks


def test_what_the_server_says_of_its_tasks(client, offline):
    found = client.get("/v1/tasks").json()["tasks"]
    assert [t["name"] for t in found] == list(TASKS)
    by = {t["name"]: t for t in found}
    assert (
        by["pair"]["reads"] == ["text", "text_b"]
        and by["tag"]["reads"] == ["tokens"]
        and by["choice"]["reads"] == ["text", "choices"]
    )
    assert by["retrieve"]["documents"] == 20 and by["classify"]["documents"] is None and by["a"]["rung"] == "shared"
    assert client.get("/v1/tasks/pair").json() == by["pair"] and by["pair"]["labels"] == offline.tasks["pair"]["labels"]
    assert "did you mean pair" in refused(client.get("/v1/tasks/pear"), 404)


def test_a_task_is_added_replaced_and_removed_while_serving(changing, tmp_path, offline):
    client, run = changing
    others = {t: offline.predict(t, made.ROWS[offline.tasks[t]["kind"]]) for t in TASKS}
    new = made.bundle(tmp_path / "new", {"theirs": "retrieve"}, seed=4)
    wanted = load(new).predict("theirs", made.ROWS["retrieve"])
    put = client.put("/v1/tasks/my task", content=made.zipped(new))
    assert put.status_code == 201 and put.json()["name"] == "my task" and put.json()["documents"] == 20
    assert ask(client, "my task", made.ROWS["retrieve"]) == wanted
    assert client.put("/v1/tasks/my task", content=made.zipped(new)).status_code == 200
    assert ask(client, "my task", made.ROWS["retrieve"]) == wanted == load(run).predict("my task", made.ROWS["retrieve"])
    for task, answers in others.items():
        assert ask(client, task, made.ROWS[offline.tasks[task]["kind"]]) == answers, task
    assert client.delete("/v1/tasks/my task").status_code == 204 and "my task" not in load(run).tasks
    assert "no task 'my task'" in refused(client.post("/v1/predict", json={"task": "my task", "inputs": []}), 404)
    assert "no task 'my task'" in refused(client.delete("/v1/tasks/my task"), 404)
    for task, answers in others.items():
        assert ask(client, task, made.ROWS[offline.tasks[task]["kind"]]) == answers, task


def test_the_last_task_stays(tmp_path):
    run = made.bundle(tmp_path / "run", {"only": "classify"})
    with TestClient(create_app(run)) as client:
        assert "only is the only task" in refused(client.delete("/v1/tasks/only"), 409)
        assert ask(client, "only", [{"text": "red"}])


def test_bad_uploads_change_nothing(changing, tmp_path):
    client, run = changing
    files = tiny.files(run)
    evil = made.archive({"../../evil.safetensors": b"x"})
    assert "holds '../../evil.safetensors'" in refused(client.put("/v1/tasks/new", content=evil), 422)
    assert "cannot be read" in refused(client.put("/v1/tasks/new", content=b"x"), 422)
    assert "cannot name a task" in refused(client.put("/v1/tasks/all", content=b"x"), 422)
    assert "cannot name a task" in refused(client.put("/v1/tasks/..%5Cx", content=b"x"), 422)
    assert client.put("/v1/tasks/..%2Fx", content=b"x").status_code == 404
    assert "at most 3000000 bytes" in refused(client.put("/v1/tasks/new", content=bytes(3_000_001)), 413)
    bomb = made.archive({f"{0:032x}.safetensors": bytes(10_000_000)})
    assert len(bomb) < 20_000 and "holds 10000000 bytes, at most 3000000" in refused(
        client.put("/v1/tasks/new", content=bomb), 422
    )
    assert tiny.files(run) == files and len(client.get("/v1/tasks").json()["tasks"]) == len(TASKS)


def test_an_upload_that_cannot_be_kept_changes_nothing(changing, tmp_path, monkeypatch):
    client, _ = changing

    def full(*_):
        raise WorkError("disk full")

    monkeypatch.setattr("anabranch.serve.upload.keep", full)
    data = made.zipped(made.bundle(tmp_path / "new", {"new": "classify"}))
    assert refused(client.put("/v1/tasks/new", content=data), 500) == "disk full"
    assert "did you mean" in refused(client.get("/v1/tasks/nw"), 404) or True
    assert "new" not in [t["name"] for t in client.get("/v1/tasks").json()["tasks"]]


# ---- health, documentation, metrics, token


def test_health_documentation_and_metrics(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    for _ in range(200):
        if client.get("/readyz").status_code == 200:
            break
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/docs").status_code == 200
    schema = client.get("/openapi.json").json()
    assert {"/v1/predict", "/v1/tasks", "/v1/tasks/{name}", "/healthz", "/readyz", "/metrics"} <= set(schema["paths"])
    asked = schema["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(asked["properties"]["inputs"]["items"]["properties"]) == {"text", "text_b", "tokens", "choices"}
    assert "$defs" not in json.dumps(schema)
    ask(client, "all", [{"text": "red"}])
    client.get("/v1/tasks/nowhere-1")
    text = client.get("/metrics").text
    for name in (
        'anabranch_requests_total{method="POST",route="/v1/predict",status="200"}', 'anabranch_rows_total{task="classify"}',
        "anabranch_batch_rows_bucket", "anabranch_queue_seconds_sum", 'anabranch_stage_seconds_count{stage="forward"}',
        'stage="tokens"', 'stage="heads"', 'anabranch_request_seconds_count{route="/v1/predict"}', "process_resident_memory_bytes",
        "anabranch_queue_rows 0.0", f"anabranch_tasks {len(TASKS)}.0",
        'anabranch_requests_total{method="GET",route="/v1/tasks/{name}",status="404"}',
    ):  # fmt: skip
        assert name in text, name
    assert "nowhere" not in text  # what a client types makes no new series


def test_a_server_that_has_not_begun_or_has_failed_says_so(source):
    app = create_app(source)
    client = TestClient(app)  # without its lifespan
    assert "start the server again" in refused(client.get("/healthz"), 503)
    assert client.get("/readyz").status_code == 503


def test_a_token_is_wanted_for_all_but_health_and_documentation(source):
    with TestClient(create_app(source, token="s€cret")) as client:
        good = {"Authorization": b"Bearer " + "s€cret".encode()}
        for headers in (
            None,
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic s"},
            {"Authorization": b"Bearer \xff"},
            {"Authorization": "Bearer"},
        ):
            for method, path in (
                ("GET", "/v1/tasks"),
                ("POST", "/v1/predict"),
                ("PUT", "/v1/tasks/x"),
                ("DELETE", "/v1/tasks/pair"),
                ("GET", "/metrics"),
            ):
                answer = client.request(method, path, headers=headers)
                assert "Authorization: Bearer TOKEN" in refused(answer, 401) and answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/v1/tasks", headers=good).status_code == client.get("/metrics", headers=good).status_code == 200
        assert ask(client, "classify", [{"text": "red"}], headers=good)
        assert all(client.get(path).status_code == 200 for path in ("/healthz", "/docs", "/openapi.json"))


# ---- runs that cannot be served


def test_runs_that_cannot_be_served(source, tmp_path):
    with pytest.raises(InputError, match="is not a run or a bundle: no bundle.json in it"):
        create_app(tmp_path)
    half = tmp_path / "half"
    half.mkdir()
    (half / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="is not finished: go on with anabranch fit PLAN --out .*half --resume"):
        create_app(half)
    broken = Path(shutil.copytree(source, tmp_path / "broken"))
    next((broken / "bundle").glob("*.safetensors")).unlink()
    with pytest.raises(WorkError, match="is missing; the bundle is incomplete"):
        create_app(broken)
