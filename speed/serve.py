"""The server under load from another process over loopback, against offline prediction and against FastAPI + PEFT.

    python speed/serve.py [--tasks 64] [--many 512] [--rows 16,1] [--clients 32] [--seconds 8] [--reps 5] [--dtype bfloat16]
    python speed/serve.py --soak 100000 [--crowd 10000]

Bundles have random LoRA slots (rank 8 on query and value of the upper three blocks) and heads of ten classes. offline: the
same rows through Model.answers in one call, and through Model.predict task by task; the faster counts. one, many: the server
with 1 and with --many tasks. peer: one FastAPI route, 64 PEFT adapters, set_adapter for each request, in float32 as it is
loaded, and in the server's type where that is another. All are timed in turn, with requests of as many rows as --rows says
first; the server with --tasks and the peer also with its other numbers.
--soak: that many mixed requests (kinds, one task, several, all) while tasks are put and deleted; every answer is compared
with what was computed offline, and the server's memory is watched; then --crowd connections at once.
"""

import asyncio
import io
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import _bench as bench
from scale import WORDS

LABELS = [f"label {i}" for i in range(10)]
UPPER = ["attention.query[-3:]", "attention.value[-3:]"]
FACTS: dict[str, dict[str, Any]] = {
    "classify": {"labels": LABELS}, "multilabel": {"labels": LABELS}, "regress": {"mean": [3.0], "std": [2.0]},
    "tag": {"labels": ["O", "A", "B"], "common": 0}, "pair": {"labels": ["same", "other"], "two": True}, "choice": {},
    "retrieve": {},
}  # fmt: skip
Asked = tuple[Any, list[dict[str, Any]]]  # task, rows


# ---- bundles and rows


def bundle(place: Path, tasks: dict[str, str], dtype: str) -> Path:
    """A run whose tasks (name -> kind) have random slots and heads, drawn by name."""
    import torch

    from anabranch.core.bank import Bank
    from anabranch.core.names import make
    from anabranch.core.site import find
    from anabranch.engine import store
    from anabranch.engine.backbone import backbone_of
    from anabranch.task import kind as kinds

    f, folder = backbone_of("minilm", dtype), place / "bundle"
    bank = Bank.make(make("delta", {"lora": {"rank": 8}}), make("gate", "by_task"), find(f.f, UPPER), torch.Generator())
    records = {}
    for name, kind in tasks.items():
        rng = torch.Generator().manual_seed(sum(name.encode()))
        tree = {
            f"0/{s}": {n: 0.05 * torch.randn(t.shape, generator=rng) for n, t in p.items()} for s, p in bank.fresh(rng).items()
        }
        record = {"labels": [], "two": False, "mean": [], "std": [], "metric": "accuracy", "valid": None, "test": None,
                  "max_length": 128, "description": None, "kind": kind, "rung": "delta"} | FACTS[kind]  # fmt: skip
        outputs, inputs = kinds.find(kind)(record["labels"], record["two"], record["mean"], record["std"]).width(f.d)
        head = {"W": torch.randn(outputs, inputs, generator=rng), "b": torch.zeros(outputs), "mean": torch.zeros(inputs),
                "scale": torch.ones(inputs)} if outputs else {}  # fmt: skip
        corpus = {f"d{i}": text(Random(f"document {i}"), 12) for i in range(200)} if kind == "retrieve" else None
        records[name] = store.save_task(folder, record, store.pack(tree, "bf16"), head, {}, corpus)
    store.save(folder, {
        "backbone": {"id": "minilm", "fingerprint": f.fingerprint}, "dtype": dtype, "banks": [store.bank_card(bank)],
        "tasks": records, "shared": None, "made": {"seed": 0, "plan": {"tasks": {}}},
    })  # fmt: skip
    return place


Random = random.Random


def text(rng: random.Random, most: int = 40) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(4, most)))


def row(rng: random.Random) -> dict[str, Any]:
    """One that every kind can read; most are short."""
    most = rng.choice((8, 8, 16, 40))
    said = text(rng, most)
    return {"text": said, "text_b": text(rng, most), "tokens": said.split(), "choices": [text(rng, 8) for _ in range(3)]}


def requests(tasks: int, rows: int, n: int) -> list[Asked]:
    rng = Random(0)
    return [(f"t{i % tasks}", [{"text": text(rng)} for _ in range(rows)]) for i in range(n)]


# ---- servers


@contextmanager
def served(run: Path, *words: str) -> Iterator[str]:
    """The url of ``anabranch serve`` in a process of its own."""
    command = [sys.executable, "-m", "anabranch.cli", "serve", str(run), "--json", "--port", "0", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        url = json.loads(process.stdout.readline())["url"]
        while True:
            try:
                with urllib.request.urlopen(f"{url}/readyz"):
                    break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def peer(tasks: int, dtype: str, ready: Any) -> None:
    """A plain server: one adapter at a time."""
    import threading

    import torch
    import uvicorn
    from fastapi import FastAPI
    from peft import LoraConfig, PeftModel, get_peft_model
    from pydantic import BaseModel
    from transformers import AutoModel, AutoTokenizer

    from anabranch.backbone.minilm import minilm

    class Ask(BaseModel):
        task: str
        inputs: list[dict[str, str]]

    def loaded() -> Any:
        return AutoModel.from_pretrained(minilm(), dtype=getattr(torch, dtype), add_pooling_layer=False).eval()

    tokenizer = AutoTokenizer.from_pretrained(minilm())
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=["query", "value"], layers_to_transform=[3, 4, 5], init_lora_weights=False
    )
    with tempfile.TemporaryDirectory() as temp:
        get_peft_model(loaded(), config).save_pretrained(temp)
        model = PeftModel.from_pretrained(loaded(), temp, adapter_name="t0")
        for i in range(1, tasks):
            model.load_adapter(temp, adapter_name=f"t{i}", low_cpu_mem_usage=True)
    model.eval()
    heads, one = {f"t{i}": torch.nn.Linear(384, len(LABELS)) for i in range(tasks)}, threading.Lock()
    app = FastAPI()

    @app.post("/v1/predict")
    def predict(ask: Ask) -> dict[str, Any]:
        inputs = tokenizer([r["text"] for r in ask.inputs], padding=True, truncation=True, max_length=128, return_tensors="pt")
        with one, torch.inference_mode():
            model.set_adapter(ask.task)
            hidden = model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None].float()
            z = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
            scores = heads[ask.task](z).softmax(-1)
        named = [dict(zip(LABELS, s, strict=True)) for s in scores.tolist()]
        return {"answers": [{"prediction": max(s, key=s.__getitem__), "scores": s} for s in named]}

    import socket

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(2048)
    ready.send(f"http://127.0.0.1:{sock.getsockname()[1]}")
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run([sock])


@contextmanager
def peer_served(tasks: int, dtype: str) -> Iterator[str]:
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=peer, args=(tasks, dtype, there), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


# ---- load


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> tuple[int, bytes]:
    """Status and body. As little of a client as there can be: it runs on the server's machine."""
    writer.write(
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    writer.write(body)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    size = int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
    return int(head[9:12]), await reader.readexactly(size)


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def load(url: str, asked: Sequence[Asked], clients: int, seconds: float) -> dict[str, Any]:
    """``clients`` connections, each of which asks again as soon as it is answered, for some seconds."""
    bodies = [json.dumps({"task": task, "inputs": rows}).encode() for task, rows in asked]
    took, rows, bad, at = list[float](), 0, 0, 0

    async def client(end: float) -> None:
        nonlocal rows, bad, at
        reader, writer = await asyncio.open_connection(*address(url), limit=2**24)
        while time.perf_counter() < end:
            i, at = at % len(bodies), at + 1
            start = time.perf_counter()
            status, _ = await ask(reader, writer, bodies[i])
            took.append(time.perf_counter() - start)
            rows, bad = rows + len(asked[i][1]) * (status == 200), bad + (status != 200)
        writer.close()

    async def all_clients() -> None:
        end = time.perf_counter() + seconds
        await asyncio.gather(*(client(end) for _ in range(clients)))

    whole, _ = bench.timed(lambda: asyncio.run(all_clients()))  # to the last answer, else those under way would be lost
    cuts = statistics.quantiles(took, n=100) if len(took) > 1 else [0.0] * 99
    return {"rows_per_s": rows / whole, "bad": bad, "p50_ms": 1000 * cuts[49], "p99_ms": 1000 * cuts[98]}


_model: Any = None  # of the offline process


def offline(run: str, asked: Sequence[Asked], seconds: float) -> dict[str, float]:
    """Rows a second of the two ways to answer these rows without a server, 1,024 at a time as ``anabranch predict`` does."""
    global _model
    from anabranch.engine.model import load as loaded

    _model = _model or loaded(run)
    block, by = 1024 // len(asked[0][1]), dict[str, list[dict[str, Any]]]()
    for task, rows in asked:
        by.setdefault(task, []).extend(rows)

    def together(part: Sequence[Asked]) -> None:
        pairs = [(_model.task(task), rows) for task, rows in part]
        for (served, _), found in zip(pairs, _model.answers(pairs), strict=True):
            _model._named(served, *found)

    parts = [asked[i : i + block] for i in range(0, len(asked), block)]
    ways: dict[str, list[tuple[Callable[[], Any], int]]] = {
        "together": [(partial(together, part), sum(len(rows) for _, rows in part)) for part in parts],
        "by task": [(partial(_model.predict, task, rows), len(rows)) for task, rows in by.items()],
    }
    out = {}
    for name, works in ways.items():
        start, n = time.perf_counter(), 0
        for work, rows in cycle(works):
            work()
            n += rows
            if time.perf_counter() - start > seconds / 2:
                break
        out[name] = n / (time.perf_counter() - start)
    return out


def measured(a: Any, temp: Path) -> dict[str, Any]:
    """Rows a second of all ways, in turn."""
    sizes = {"server": a.tasks, "one": 1, "many": a.many}
    runs = {way: bundle(temp / way, {f"t{i}": "classify" for i in range(n)}, a.dtype) for way, n in sizes.items()}
    asked = {way: requests(n, a.rows[0], 256) for way, n in sizes.items()}
    found: dict[str, list[float]] = {}
    details: dict[str, Any] = {}
    with ExitStack() as stack:
        urls = {way: stack.enter_context(served(run)) for way, run in runs.items()}
        for dtype in dict.fromkeys(["float32", a.dtype]) if a.peer and bench.versioned("peft") else ():
            way = f"peer {dtype}"
            urls[way], asked[way] = stack.enter_context(peer_served(a.tasks, dtype)), asked["server"]
        bench.told(f"{len(urls)} servers are ready")
        peers = [way for way in urls if way.startswith("peer")]
        for way, n in product(["server", *peers], a.rows[1:]):
            urls[of(way, n)], asked[of(way, n)] = urls[way], requests(a.tasks, n, 1024)
        outside = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
        clients = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
        for rep in range(-1, a.reps):  # the first is for warmth
            seconds = a.seconds if rep >= 0 else 1.5
            for way, value in outside.submit(offline, str(runs["server"]), asked["server"], seconds).result().items():
                found.setdefault(f"offline {way}", []).append(value)
            for way, url in urls.items():
                one = clients.submit(load, url, asked[way], a.clients, seconds).result()
                found.setdefault(way, []).append(one["rows_per_s"])
                details[way] = one
            bench.told(", ".join(f"{way} {values[-1]:.0f}" for way, values in found.items()) + " rows/s")
        text = metrics(urls["server"])
    found = {way: values[1:] for way, values in found.items()}
    best = max(("offline together", "offline by task"), key=lambda way: statistics.median(found[way]))
    ratios = {
        "server / offline": bench.ratio(found["server"], found[best]),
        "many / one": bench.ratio(found["many"], found["one"]),
    }
    ratios |= {f"server / {way}": bench.ratio(found["server"], found[way]) for way in peers}
    ratios |= {
        f"server / {of(way, n)}": bench.ratio(found[of("server", n)], found[of(way, n)]) for way, n in product(peers, a.rows[1:])
    }
    print()
    bench.table(["way", "rows/s", "best", "p50 ms", "p99 ms", "refused"], [
        [way, statistics.median(v), max(v), *(details.get(way, {}).get(k) for k in ("p50_ms", "p99_ms", "bad"))]
        for way, v in found.items()
    ])  # fmt: skip
    print()
    bench.table(["ratio", "median", "low", "high"], [[name, r["median"], r["low"], r["high"]] for name, r in ratios.items()])
    inside = {
        k: text[k] for k in text if k.startswith(("anabranch_stage_seconds_", "anabranch_batch_rows_")) and "bucket" not in k
    }
    return {"rows_per_s": found, "details": details, "ratios": ratios, "inside": inside}


def of(way: str, rows: int) -> str:
    return f"{way}, {rows} a request"


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


# ---- soak


def soak_tasks(n: int) -> dict[str, str]:
    return {f"t{i}": list(FACTS)[i % len(FACTS)] for i in range(n)}


def expected(run: str, new: str, pool: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What each task answers to each row of the pool, computed without a server."""
    from anabranch.engine.model import load as loaded

    model, more = loaded(run), loaded(new)
    return {task: m.predict(task, pool) for m in (model, more) for task in m.tasks}


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [x for v in value.values() for x in numbers(v)]
    return [x for v in value for x in numbers(v)] if isinstance(value, list) else [value] if isinstance(value, float) else []


def same(found: Any, wanted: Any, tolerance: float) -> bool:
    """Whether two answers are one: scores to rounding, and words too, unless they are tied."""
    a, b = numbers(found.get("scores")), numbers(wanted.get("scores"))
    return len(a) == len(b) and all(abs(x - y) <= tolerance * max(1, abs(y)) for x, y in zip(a, b, strict=True))


def soak_load(url: str, pool: list[dict[str, Any]], wanted: dict[str, list[Any]], fixed: list[str], coming: list[str],
              n: int, clients: int, tolerance: float) -> dict[str, Any]:  # fmt: skip
    """n mixed requests; counts answers that differ, refusals, and words that differ although the scores do not (ties)."""
    out = {"requests": 0, "answers": 0, "wrong": 0, "ties": 0, "errors": 0, "absent": 0, "reconnects": 0}
    examples: list[Any] = []

    async def client(seed: int) -> None:
        rng = Random(seed)
        reader, writer = await asyncio.open_connection(*address(url), limit=2**24)
        while out["requests"] < n:
            out["requests"] += 1
            draw = rng.random()
            task: Any = rng.choice(fixed) if draw < 0.75 else rng.choice(coming) if draw < 0.9 else rng.sample(fixed, 3)
            task = "all" if draw > 0.995 else task
            picked = rng.sample(range(len(pool)), 1 if task == "all" else min(16, 1 + int(rng.expovariate(0.5))))  # 2.5
            said = json.dumps({"task": task, "inputs": [pool[i] for i in picked]}).encode()
            try:
                status, body = await ask(reader, writer, said)
            except (ConnectionError, asyncio.IncompleteReadError):  # a client that was held up: its connection lay idle too long
                out["reconnects"] += 1
                reader, writer = await asyncio.open_connection(*address(url), limit=2**24)
                continue
            if status == 404 and task in coming:
                out["absent"] += 1
                continue
            if status != 200:
                out["errors"] += 1
                examples.append(body[:200].decode())
                continue
            for i, found in zip(picked, json.loads(body)["answers"], strict=True):
                for name, answer in [(task, found)] if isinstance(task, str) and task != "all" else found.items():
                    out["answers"] += 1
                    if not same(answer, wanted[name][i], tolerance):
                        out["wrong"] += 1
                        examples.append([name, i])
                    elif answer["prediction"] != wanted[name][i]["prediction"] and name and not numbers(answer["prediction"]):
                        out["ties"] += 1
        writer.close()

    async def everyone() -> None:
        await asyncio.gather(*(client(seed) for seed in range(clients)))

    asyncio.run(everyone())
    return out | {"examples": examples[:5]}


def zipped(run: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in (run / "bundle").iterdir():
            archive.write(path, path.name)
    return out.getvalue()


def send(method: str, url: str, data: bytes | None = None) -> int:
    with urllib.request.urlopen(urllib.request.Request(url, data, method=method)) as answer:
        return int(answer.status)


def soak(a: Any, temp: Path) -> dict[str, Any]:
    kinds = list(FACTS)
    run, new = (
        bundle(temp / "run", soak_tasks(a.tasks), a.dtype),
        bundle(temp / "new", {f"x{i}": kinds[i] for i in range(4)}, a.dtype),
    )
    pool = [row(Random(f"row {i}")) for i in range(200)]
    tolerance = 1e-4 if a.dtype == "float32" else 2e-2
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes, served(run) as url:
        wanted = processes.submit(expected, str(run), str(new), pool).result()
        data, memory, changes = zipped(new), list[float](), 0
        clients = processes.submit(soak_load, url, pool, wanted, list(soak_tasks(a.tasks)), list(f"x{i}" for i in range(4)),
                                   a.soak, a.clients, tolerance)  # fmt: skip
        start, told = time.perf_counter(), 0.0
        while not clients.done():
            for i in range(4):
                send("PUT", f"{url}/v1/tasks/x{i}", data)
                time.sleep(0.2)
            for i in range(4):
                send("DELETE", f"{url}/v1/tasks/x{i}")
                time.sleep(0.1)
            changes += 8
            memory.append(metrics(url)["process_resident_memory_bytes"] / 1e6)
            if time.perf_counter() - told > 10:
                told = time.perf_counter()
                counts = metrics(url)
                done = sum(v for k, v in counts.items() if k.startswith("anabranch_requests_total") and "/v1/predict" in k)
                bench.told(f"{done:.0f} requests, {changes} changes, {memory[-1]:.0f} MB")
        found = clients.result()
        seconds = time.perf_counter() - start
        crowd = processes.submit(crowded, url, a.crowd).result() if a.crowd else None
    late = memory[len(memory) // 4 :] or memory
    flat = {"first": memory[0], "quarter": late[0], "last": memory[-1], "most": max(memory)}
    facts = {"took": seconds, "changes": changes, "memory_mb": flat, "crowd": crowd}
    print()
    bench.table(["", ""], [[k, str(v)] for k, v in (found | facts).items()])
    return found | facts


def crowded(url: str, n: int) -> dict[str, int]:
    """n connections at once that send nothing; then how the server does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def all_of_them() -> dict[str, int]:
        sockets, refused = [], 0
        for _ in range(n):
            try:
                sockets.append(await asyncio.open_connection(*address(url)))
            except OSError:
                refused += 1
        await asyncio.sleep(1)
        ended = sum(reader.at_eof() or bool(reader._buffer) for reader, _ in sockets)  # type: ignore[attr-defined]
        for _, writer in sockets:
            writer.transport.abort()
        return {"connections": n, "refused": refused + ended, "held": len(sockets) - ended}

    found = asyncio.run(all_of_them())
    time.sleep(1)
    return found | {"health afterwards": send("GET", f"{url}/healthz")}


def fitting() -> str:
    from anabranch.engine.profile import profile

    return str(profile()["dtype"])


def main() -> None:
    question = bench.arguments(__doc__)
    question.add_argument("--tasks", type=int, default=64)
    question.add_argument("--many", type=int, default=512)
    question.add_argument("--rows", type=bench.numbers, default=[16, 1], help="of a request")
    question.add_argument("--clients", type=int, default=32)
    question.add_argument("--seconds", type=float, default=8, help="of each measurement")
    question.add_argument("--reps", type=int, default=5)
    question.add_argument("--dtype", choices=["float32", "bfloat16"], help="unless told, what fit takes; in a soak float32")
    question.add_argument("--no-peer", dest="peer", action="store_false")
    question.add_argument("--soak", type=int, default=0, help="requests")
    question.add_argument("--crowd", type=int, default=10_000, help="connections at the end of a soak; 0: leave it out")
    a = question.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        facts = pool.submit(bench.machine, "transformers", "peft", "fastapi", "uvicorn").result()
        a.dtype = a.dtype or ("float32" if a.soak else pool.submit(fitting).result())
    with tempfile.TemporaryDirectory() as temp:
        found = soak(a, Path(temp)) if a.soak else measured(a, Path(temp))
    given = {k: v for k, v in vars(a).items() if k not in ("soak", "crowd")}
    bench.emit("soak" if a.soak else "serve", machine=facts, load_after=os.getloadavg()[0], **given, **found)


if __name__ == "__main__":
    main()
