"""The load generator: requests that were made beforehand, sent over keep-alive connections, every answer checked.

It is a process of its own with one thread and one epoll, so that it takes as little as it can of the processors that it
shares with what it measures; what it takes is part of its report. It knows nothing of the product.

    python -m benchmarks.load < plan > report
"""

from __future__ import annotations

import json
import re
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_SILENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Report:
    """What one run saw. Latencies are milliseconds; `processor_share` is the generator's own part of one processor."""

    answers: int
    seconds: float
    p50: float
    p99: float
    worst: float
    processor_share: float
    refusals: dict[str, int]

    @property
    def rate(self) -> float:
        return self.answers / self.seconds


def run(
    port: int, requests: Sequence[bytes], *, clients: int, status: int, seconds: float, repeat: bool = False
) -> Report:
    """Send `requests` from a new process for `seconds`, or until they are used up; `repeat` starts them again.

    Raises RuntimeError when an answer had another status.
    """
    plan = {"port": port, "clients": clients, "status": status, "seconds": seconds, "repeat": repeat}
    framed = b"".join(b"%d\n%s" % (len(request), request) for request in requests)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=json.dumps(plan).encode() + b"\n" + framed,
        stdout=subprocess.PIPE,
        check=True,
    )
    report = Report(**json.loads(done.stdout))
    if report.refusals:
        raise RuntimeError(f"the API answered other than {status}: {report.refusals}")
    return report


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Connection:
    """One client: a request is out, or it is at its end."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self.received = b""

    def send(self, request: bytes) -> None:
        self.received = b""
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def answered(self) -> bool:
        """Take what has arrived; whether the answer is whole."""
        part = self.socket.recv(262_144)
        if not part:
            raise ConnectionError(f"the server closed the connection after {self.received[:200]!r}")
        self.received += part
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return False
        length = _LENGTH.search(self.received, 0, end)
        if length is not None:
            return len(self.received) == end + 4 + int(length[1])
        return self.received.endswith(b"\r\n0\r\n\r\n")


def _drive(plan: dict[str, Any], requests: list[bytes]) -> Report:
    expected = b" %d " % plan["status"]
    supply = _forever(requests) if plan["repeat"] else iter(requests)
    poll = select.epoll()
    connections: dict[int, _Connection] = {}
    for _ in range(plan["clients"]):
        connection = _Connection(plan["port"])
        connections[connection.socket.fileno()] = connection
        poll.register(connection.socket, select.EPOLLIN)
    latencies: list[float] = []
    refusals: Counter[str] = Counter()
    processor = time.process_time()
    started = time.perf_counter()
    deadline = started + plan["seconds"]
    waiting = 0
    for connection, request in zip(connections.values(), supply, strict=False):
        connection.send(request)
        waiting += 1
    while waiting:
        ready = poll.poll(_SILENCE_SECONDS)
        if not ready:
            raise TimeoutError(f"no answer within {_SILENCE_SECONDS:.0f} s")
        for descriptor, _ in ready:
            connection = connections[descriptor]
            if not connection.answered():
                continue
            now = time.perf_counter()
            latencies.append(now - connection.sent_at)
            if connection.received[8:13] != expected:
                refusals[connection.received[9:600].decode("latin-1")] += 1
            following = next(supply, None) if now < deadline else None
            if following is None:
                waiting -= 1
            else:
                connection.send(following)
    elapsed = time.perf_counter() - started
    latencies.sort()
    return Report(
        answers=len(latencies),
        seconds=elapsed,
        p50=1000 * quantile(latencies, 0.50),
        p99=1000 * quantile(latencies, 0.99),
        worst=1000 * latencies[-1],
        processor_share=(time.process_time() - processor) / elapsed,
        refusals=dict(refusals.most_common(5)),
    )


def _forever(requests: list[bytes]) -> Iterator[bytes]:
    while True:
        yield from requests


def _framed(stream: Any) -> Iterator[bytes]:
    while size := stream.readline():
        yield stream.read(int(size))


if __name__ == "__main__":
    received = json.loads(sys.stdin.buffer.readline())
    print(json.dumps(asdict(_drive(received, list(_framed(sys.stdin.buffer))))))
