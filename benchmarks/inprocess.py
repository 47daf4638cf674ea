"""`post()` called in process by threads, without HTTP, token or key: what the write path itself can do.

python -m benchmarks.inprocess < plan > report        one process of the measurement
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.book import Target


def run(targets: Sequence[Target], *, processes: int, threads: int, seconds: float) -> float:
    """Pay the targets for `seconds` in `processes` x `threads`; gives entries a second, all together."""
    children = []
    for number in range(processes):
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.inprocess"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        children.append(child)
        assert child.stdin is not None
        plan = {"targets": targets[number::processes], "threads": threads, "seconds": seconds}
        child.stdin.write(json.dumps(plan).encode() + b"\n")
        child.stdin.flush()
    for child in children:
        assert child.stdout is not None
        if child.stdout.readline() != b"ready\n":
            raise RuntimeError("a posting process did not start")
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"go\n")
        child.stdin.flush()
    rate = 0.0
    for child in children:
        output, _ = child.communicate()
        if child.returncode != 0:
            raise RuntimeError("a posting process failed")
        report = json.loads(output)
        rate += report["entries"] / report["seconds"]
    return rate


def _post(targets: list[list[object]], threads: int, seconds: float) -> dict[str, float]:
    from django.db import connections

    from benchmarks.book import Target, origin, payment
    from ledger.posting import post

    start = threading.Barrier(threads + 1)
    counts = [0] * threads
    failures: list[BaseException] = []
    deadline = 0.0

    def work(number: int) -> None:
        try:
            mine = [Target(*target) for target in targets[number::threads]]  # type: ignore[arg-type]
            first = mine.pop()
            post(origin(first.tenant), payment(first))
            start.wait()
            start.wait()
            for target in mine:
                if time.perf_counter() >= deadline:
                    break
                post(origin(target.tenant), payment(target))
                counts[number] += 1
        except BaseException as failure:
            if not isinstance(failure, threading.BrokenBarrierError):
                failures.append(failure)
            start.abort()
        finally:
            connections.close_all()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        start.wait()
        print("ready", flush=True)
        sys.stdin.readline()
        deadline = time.perf_counter() + seconds
        start.wait()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return {"entries": sum(counts), "seconds": time.perf_counter() - deadline + seconds}


if __name__ == "__main__":
    import django

    django.setup()
    print(json.dumps(_post(**json.loads(sys.stdin.readline()))))
