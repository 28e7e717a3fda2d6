"""Dynamic batching: one thread owns the model, and rows of all clients and tasks share its forward passes.

A request becomes units (texts). Units wait in groups of one padded length, in which padding changes no bits. A group runs
when it fills a pass or when its oldest unit has waited long enough; of several such, the one with the most units, unless one
has been held for a quarter of a second: then that whose oldest unit came first. A pass of few units costs nearly as much.
Changes of the model stand in the same line as requests: what came before is answered by the model as it was.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any

import torch

from anabranch.engine.backbone import Tokens, bucket
from anabranch.engine.features import TOKENS
from anabranch.engine.model import Asked, Model, Served
from anabranch.errors import InputError, WorkError, nearest
from anabranch.serve.limits import Busy, Limits
from anabranch.serve.metrics import Metrics

Row = Mapping[str, Any]
READ = 1024  # rows that are tokenised before the next pass
HELD = 0.25  # seconds that a group may stand behind larger ones
SPOKEN = 16  # texts of a pass that f continues: it takes long, and others wait
log = logging.getLogger("anabranch.serve")


class Unknown(InputError):
    """A task that is not served."""


@dataclass(eq=False)
class Job:
    """A request: ``rows`` for a task, for several or for all. ``size``: its answers, as the queue counts them."""

    task: str | list[str]
    rows: Sequence[Row]
    size: int
    future: Future[list[dict[str, Any]]] = field(default_factory=Future)
    came: float = field(default_factory=perf_counter)
    asked: Asked = field(default_factory=list)
    parts: list["Part"] = field(default_factory=list)
    left: int = 0  # parts without an answer
    over: bool = False


@dataclass(eq=False)
class Part:
    """The rows of a job that one task answers: their units' features ``z`` as they come, and then what was ``found``."""

    job: Job
    served: Served
    rows: list[Row]
    counts: list[int]  # units of each row, or its words
    tokens: list[Tokens]
    z: list[Any]
    left: int  # units without features
    found: tuple[list[Any], list[Any]] = ([], [])


@dataclass(eq=False)
class Change:
    """A change of the model, made when nothing is on its way."""

    make: Callable[[Model], Any]
    future: Future[Any] = field(default_factory=Future)


Unit = tuple[Part, int]  # and its number there
Key = tuple[int, bool, int]  # padded length; whether features are of words; the number of a task that speaks, or -1


def most(key: Key) -> int:
    """Units of a pass."""
    return SPOKEN if key[2] >= 0 else max(1, torch.get_num_threads() * TOKENS // key[0])


def known(model: Model, task: str | Sequence[str]) -> list[str]:
    names = list(model.served) if task == "all" else [task] if isinstance(task, str) else list(task)
    for name in names:
        if name not in model.served:
            raise Unknown(f"no task {name!r} is served here{nearest(name, model.served)}")
    return names


class Batcher:
    """``submit`` and ``change`` may be called from any thread; once it has started, nobody else uses ``model``."""

    def __init__(self, model: Model, limits: Limits, metrics: Metrics) -> None:
        self.model, self.limits, self.metrics = model, limits, metrics
        self.line: SimpleQueue[Job | Change | None] = SimpleQueue()
        self.groups: dict[Key, deque[Unit]] = {}
        self.ready, self.stopping = threading.Event(), False
        self.jobs = set[Job]()  # without an answer
        self.waiting, self.rate = 0, 1000.0  # their answers; rows a second
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    # ---- for other threads

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Answers what stands in the line, and ends."""
        with self._lock:
            self.stopping = True
            self.line.put(None)
        if self.alive:
            self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, task: str | list[str], rows: Sequence[Row]) -> "Future[list[dict[str, Any]]]":
        """A future of what ``model.predict`` gives, and ``truncated`` in the answers to texts that f did not read whole.

        Raises Unknown for a task that is not served, InputError for more than the queue ever takes, Busy when it is full.
        Cancelling the future drops what has not run.
        """
        size = len(known(self.model, task)) * sum(max(1, len(row.get("choices") or ())) for row in rows)
        if size > self.limits.queue:
            raise InputError(f"a request may ask for {self.limits.queue} answers (rows x tasks), got {size}: send several")
        job = Job(task, rows, size)
        with self._lock:
            if self.stopping or self.waiting + size > self.limits.queue:
                raise Busy(self.waiting / self.rate)
            self.jobs.add(job)
            self._wait(size)
            self.line.put(job)
        return job.future

    def change(self, make: Callable[[Model], Any]) -> "Future[Any]":
        """Runs ``make(model)`` in the model's thread, behind all that was submitted before."""
        change = Change(make)
        with self._lock:
            if self.stopping:
                raise Busy(1)
            self.line.put(change)
        return change.future

    # ---- the model's thread

    def _run(self) -> None:
        try:
            with torch.no_grad():
                for served in self.model.served.values():
                    if served.corpus is not None and not self.stopping:
                        self.model.index_of(served)
                self.metrics.tasks.set(len(self.model.served))
                self.ready.set()
                self._loop()
        except BaseException:
            log.exception("the model's thread has ended")
            raise
        finally:
            with self._lock:
                self.stopping = True
            self._give_up()

    def _loop(self) -> None:
        while True:
            jobs, then = self._arrived()
            self._read(jobs)
            if not then:
                self._pass()
                continue
            while self.groups:
                self._pass(now=float("inf"))
            if then[0] is None:
                return
            self._make(then[0])

    def _give_up(self) -> None:
        """Behind the end nobody waits: something is left only where this thread has failed."""
        lost = [job.future for job in self.jobs] + [item.future for item in self._rest() if isinstance(item, Change)]
        for future in lost:
            if not future.done():
                future.set_exception(WorkError("the model's thread has ended"))

    def _rest(self) -> Iterator[Job | Change | None]:
        with suppress(Empty):
            while True:
                yield self.line.get_nowait()

    def _arrived(self) -> tuple[list[Job], list[Change | None]]:
        """What stands in the line, up to the next change or the end; waits for it no longer than until a group is due."""
        jobs, rows, wait = list[Job](), 0, self._pause()
        try:
            while rows < READ:
                item = self.line.get(timeout=wait)
                if not isinstance(item, Job):
                    return jobs, [item]
                jobs.append(item)
                rows, wait = rows + item.size, 0
        except Empty:
            pass
        return jobs, []

    def _pause(self) -> float | None:
        """Seconds until a group is due; None when there is none."""
        if any(len(group) >= most(key) for key, group in self.groups.items()):
            return 0
        oldest = min((group[0][0].job.came for group in self.groups.values()), default=None)
        return None if oldest is None else max(0, oldest + self.limits.wait - perf_counter())

    def _read(self, jobs: list[Job]) -> None:
        """Jobs become units in their groups. All their texts go through the tokenizer together."""
        good = []
        for job in jobs:
            if job.future.cancelled():
                self._end(job)
                continue
            try:
                known(self.model, job.task)  # it may have been removed since
                job.asked = self.model.asked(job.task, job.rows)
                good.append(job)
            except Exception as error:
                self._end(job, error=error)
        try:
            with self.metrics.timed("tokens"):
                pieces = [(served, [job.rows[i] for i in ids]) for job in good for served, ids in job.asked]
                found = iter(zip(pieces, self.model.units(pieces), strict=True))
        except Exception as error:
            if len(good) == 1:
                return self._end(good[0], error=error)
            for job in good:  # the one whose text cannot be read fails alone
                self._read([job])
            return
        for job in good:
            for _ in job.asked:
                (served, rows), (counts, tokens) = next(found)
                job.parts.append(Part(job, served, rows, counts, tokens, [None] * len(tokens), len(tokens)))
            job.left = sum(part.left > 0 for part in job.parts)
            for part in job.parts:
                kind = part.served.kind
                for i, row in enumerate(part.tokens):
                    key = (0, False, part.served.number) if kind.speaks else (bucket(len(row.ids)), kind.words, -1)
                    self.groups.setdefault(key, deque()).append((part, i))
            if not job.left:
                self._answer(job)

    def _pass(self, now: float | None = None) -> None:
        """One forward pass of the largest due group, or of the oldest if that has been held too long, if one is due."""
        end = (perf_counter() if now is None else now) - self.limits.wait
        due = [(g[0][0].job.came, key) for key, g in self.groups.items() if len(g) >= most(key) or g[0][0].job.came <= end]
        if not due:
            return
        came, key = min(due)
        if came > end - HELD:
            key = max(due, key=lambda one: (min(len(self.groups[one[1]]), most(one[1])), -one[0]))[1]
        units, group = list[Unit](), self.groups[key]
        while group and len(units) < most(key):
            unit = group.popleft()
            if unit[0].job.future.cancelled():  # its client has left
                self._end(unit[0].job)
            elif not unit[0].job.over:
                units.append(unit)
        if not group:
            del self.groups[key]
        if units:
            self._forward(key, units)

    def _forward(self, key: Key, units: list[Unit]) -> None:
        jobs, start = dict.fromkeys(part.job for part, _ in units), perf_counter()
        try:
            wanted = [(part.served, part.tokens[i]) for part, i in units]
            z: Sequence[Any] = self.model.said(wanted) if key[2] >= 0 else self.model.encoded(wanted, key[1])
        except Exception as error:
            if len(jobs) == 1:
                log.exception("a forward pass failed")
                return self._end(units[0][0].job, error=WorkError(f"the forward pass failed: {type(error).__name__}"))
            for job in jobs:  # the one that makes it fail fails alone
                self._forward(key, [unit for unit in units if unit[0].job is job])
            return
        took = perf_counter() - start
        self.metrics.stages["forward"].observe(took)
        self.metrics.batch.observe(len(units))
        for job in jobs:
            self.metrics.queue_seconds.observe(start - job.came)
        self.rate += 0.1 * (len(units) / took - self.rate)
        with self.metrics.timed("heads"):
            for (part, i), row in zip(units, z, strict=True):
                part.z[i] = row
                part.left -= 1
                if not part.left:
                    part.job.left -= 1
                    if not part.job.left:
                        self._answer(part.job)

    def _answer(self, job: Job) -> None:
        try:
            found = [self.model.answer(part.served, part.rows, part.z, part.counts) for part in job.parts]
            answers = self.model.told(job.task, job.asked, found, len(job.rows))
            for part, (served, ids) in zip(job.parts, job.asked, strict=True):
                for i in cut(part, ids):
                    (answers[i] if isinstance(job.task, str) and job.task != "all" else answers[i][served.name])["truncated"] = (
                        True
                    )
                self.metrics.rows.labels(served.name).inc(len(ids))
        except Exception as error:
            log.exception("an answer failed")
            self._end(job, error=WorkError(f"the answer failed: {type(error).__name__}"))
        else:
            self._end(job, answers)

    def _end(self, job: Job, answers: list[dict[str, Any]] | None = None, error: Exception | None = None) -> None:
        """Hands a job back, once."""
        if job.over:
            return
        job.over = True
        with self._lock:
            self.jobs.remove(job)
            self._wait(-job.size)
        if job.future.set_running_or_notify_cancel():
            if error is None:
                job.future.set_result(answers or [])
            else:
                job.future.set_exception(error)

    def _make(self, change: Change) -> None:
        if change.future.set_running_or_notify_cancel():
            try:
                change.future.set_result(change.make(self.model))
            except Exception as error:
                change.future.set_exception(error)
            self.metrics.tasks.set(len(self.model.served))

    def _wait(self, rows: int) -> None:
        self.waiting += rows
        self.metrics.queue.set(self.waiting)


def cut(part: Part, ids: list[int]) -> list[int]:
    """Rows of which f did not read all."""
    if not any(row.cut for row in part.tokens):
        return []
    sizes = [1] * len(ids) if part.served.kind.words else part.counts
    flags = iter(part.tokens)
    return [i for i, n in zip(ids, sizes, strict=True) if any([next(flags).cut for _ in range(n)])]
