"""A real process: what it says when it cannot begin, what it does when clients misbehave, how it ends."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine import _tiny as tiny
from serve import _made as made

from anabranch.cli import main
from anabranch.engine.model import Model, load
from anabranch.errors import InputError
from anabranch.serve import run as running

TASKS = {kind: kind for kind in tiny.HEADED}
CODE = "import sys; from anabranch.cli import main; main(sys.argv[1:])"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return made.bundle(tmp_path_factory.mktemp("run") / "run", TASKS)


@pytest.fixture(scope="module")
def offline(source) -> Model:
    return load(source)


@contextmanager
def served(run: Path, *words: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The url and process of ``anabranch serve``."""
    whole = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", CODE, "serve", str(run), "--json", "--threads", "1", "--port", "0", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=whole)
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield json.loads(line)["url"], process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def refused(capsys: Any, run: Path, *words: str) -> str:
    """What the command says when it cannot begin."""
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(run), "--port", "0", *words])
    out, said = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and "Traceback" not in said
    return said


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(size: int) -> bytes:
    return f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n".encode()


def test_one_server_through_its_life(source, offline):
    """One process, for starting one takes seconds: answers to many, clients that misbehave, and a stop under load."""
    with served(source, "--connections", "40", "--wait", "5") as (url, process), httpx.Client(base_url=url, timeout=30) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.05)
        # many clients and tasks at once
        wrong: list[str] = []

        def ask(task: str) -> None:
            answer = httpx.post(f"{url}/v1/predict", json={"task": task, "inputs": made.ROWS[task]}, timeout=30)
            if answer.status_code != 200 or not made.close(answer.json()["answers"], wanted[task]):
                wrong.append(f"{task}: {answer.text[:200]}")

        wanted = {task: offline.predict(task, made.ROWS[task]) for task in TASKS}
        together([lambda task=task: ask(task) for task in TASKS for _ in range(4)])
        assert not wrong
        # a client that leaves in the middle of its body, one that leaves before its answer, one that speaks no HTTP
        body = json.dumps({"task": "all", "inputs": made.ROWS["classify"] * 20}).encode()
        for sent in (head(1000) + b"{", head(len(body)) + body, b"\x16\x03\x01nonsense\r\n\r\n"):
            with connect(url) as sock:
                sock.sendall(sent)
        ask("classify")
        assert not wrong
        for _ in range(100):
            if "anabranch_queue_rows 0.0" in client.get("/metrics").text:
                break
            time.sleep(0.05)
        text = client.get("/metrics").text
        assert "anabranch_queue_rows 0.0" in text and 'status="499"' in text
        # more connections than are taken: refused at once, and those that are taken are answered still
        flood = [connect(url) for _ in range(200)]
        assert all(sock.recv(100).startswith(b"HTTP/1.1 503") for sock in flood[100:])
        assert client.get("/healthz").status_code == 200
        for sock in flood:
            sock.close()
        deadline = time.time() + 10
        while time.time() < deadline:
            try:
                if httpx.get(f"{url}/healthz", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        ask("pair")
        assert not wrong
        # the end: what has begun is answered, though the rest of it is still to come
        late = [connect(url) for _ in range(4)]
        for sock in late:
            sock.sendall(head(len(body)) + body[:1000])
        ask("tag")  # what came before on other connections is read by now
        process.send_signal(signal.SIGTERM)
        for sock in late:
            sock.sendall(body[1000:])
        assert [rows_in(sock) for sock in late] == [240] * 4
        assert process.wait(30) == 0 and process.stderr.read() == ""
        assert not wrong


def rows_in(sock: socket.socket) -> int:
    """The number of answers that come over a connection, which then ends."""
    data = b""
    with sock:
        while part := sock.recv(2**16):
            data += part
    top, _, text = data.partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 200"), top
    return len(json.loads(text)["answers"])


def together(works: list[Any]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---- without a process


def test_an_interrupt_ends_it_and_a_token_closes_it(source):
    facts: list[dict[str, Any]] = []
    got: list[int] = []

    def told(said: dict[str, Any]) -> None:
        facts.append(said)
        threading.Thread(target=client, args=(said["url"],)).start()

    def client(url: str) -> None:
        try:
            for token in ("abc", "abd"):
                got.append(httpx.get(f"{url}/v1/tasks", headers={"Authorization": f"Bearer {token}"}, timeout=20).status_code)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt):
            running.serve(source, "127.0.0.2", 0, token="abc", told=told)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [200, 401] and facts[0]["url"].startswith("http://127.0.0.2:") and facts[0]["closed"] and facts[0]["tasks"] == 7


def test_a_port_in_use_is_said_before_anything_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(capsys, Path("no run"), "--port", str(port))
    assert said == f"error: port {port} of 127.0.0.1 is in use: stop what listens there, or pass another, --port {port + 1}\n"


def test_what_is_no_run_or_half_of_one_is_said(capsys, tmp_path):
    assert "is not a run or a bundle: no bundle.json in it" in refused(capsys, tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    assert f"is not finished: go on with anabranch fit PLAN --out {tmp_path} --resume" in refused(capsys, tmp_path)
    assert "--port" in refused(capsys, tmp_path, "--port", "70000") and "--wait" in refused(capsys, tmp_path, "--wait", "-1")


def test_addresses():
    with running.bound("127.0.0.1", 0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
    for host, said in (("nowhere.invalid", "is no address of this machine"), ("192.0.2.1", "is no address of this machine")):
        with pytest.raises(InputError, match=said):
            running.bound(host, 0)
    with pytest.raises(InputError, match="administrator only.*--port 8000"):
        raise running.refused(PermissionError(13, "denied"), "127.0.0.1", 80)
    other = OSError(5, "input/output error")
    assert running.refused(other, "127.0.0.1", 80) is other


def test_tokens(tmp_path, monkeypatch):
    monkeypatch.delenv("ANABRANCH_TOKEN", raising=False)
    file = tmp_path / "token"
    assert running.secret(None) is None
    monkeypatch.setenv("ANABRANCH_TOKEN", "env")
    assert running.secret(None) == "env"
    file.write_text(" from file\n")
    assert running.secret(file) == "from file"
    for text in ("", "\n", "a\nb\n"):
        file.write_text(text)
        with pytest.raises(InputError, match="should hold one line, the token"):
            running.secret(file)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        running.secret(tmp_path / "none")


def test_room_for_connections():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(300, before[1]), before[1]))
        running.room(200)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(656, before[1])
        running.room(10)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(656, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_opening_warns_where_all_may_enter():
    facts = {"url": "http://0.0.0.0:1", "tasks": 2, "closed": False}
    assert "--token-file" in running.opening(facts) and "--token-file" not in running.opening(facts | {"closed": True})
