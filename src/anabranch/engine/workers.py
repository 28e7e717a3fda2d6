"""One worker a core, each with its own view of f and single-threaded products: on small batches that beats many threads in
each product. What a worker computes does not depend on how many there are.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def each(items: Sequence[T], work: Callable[[T], R]) -> Iterator[R]:
    """``work(item)`` of all items, in their order."""
    count, cores = min(torch.get_num_threads(), len(items)), torch.get_num_threads()
    if count < 2:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)


def drained(jobs: Sequence[T], worker: Callable[[], Callable[[deque[T]], Iterator[R]]]) -> Iterator[R]:
    """What generators give that take jobs from one queue: ``worker()`` makes one, at most one a core."""
    waiting, cores = deque(jobs), torch.get_num_threads()
    count = min(cores, len(jobs))
    if count < 2:
        yield from worker()(waiting)
        return
    out: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    stop = threading.Event()

    def run(work: Callable[[deque[T]], Iterator[R]]) -> None:
        torch.set_num_threads(1)
        try:
            for found in work(waiting):
                out.put(("found", found))
                if stop.is_set():
                    break
            out.put(("done", None))
        except BaseException as error:
            out.put(("error", error))

    threads = [threading.Thread(target=run, args=(worker(),), daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
        while count:
            what, found = out.get()
            if what == "error":
                raise found
            if what == "found":
                yield found
            count -= what == "done"
    finally:
        waiting.clear()
        stop.set()
        torch.set_num_threads(cores)
