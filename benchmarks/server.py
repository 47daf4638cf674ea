"""The API server under measurement: its command, its processes, what they use."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from hpts.run import server_command

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


def candidates() -> dict[str, list[str]]:
    """The servers that `--servers` compares, by name; {address} stands for host and port."""

    def gunicorn(threads: int) -> list[str]:
        return [sys.executable, "-m", "gunicorn", "hpts.wsgi", "--worker-class", "gthread", "--workers", "2",
                "--threads", str(threads), "--log-level", "warning", "--no-control-socket", "--bind", "{address}"]  # fmt: skip

    def granian(threads: int, mode: str) -> list[str]:
        return [sys.executable, "-m", "granian", "hpts.wsgi:application", "--interface", "wsgi", "--workers", "2",
                "--blocking-threads", str(threads), "--runtime-mode", mode, "--http", "1", "--no-ws", "--log-level",
                "warning", "--host", "{host}", "--port", "{port}"]  # fmt: skip

    return {
        **{f"gunicorn gthread, {threads} threads": gunicorn(threads) for threads in (2, 4, 8)},
        **{f"granian wsgi, {threads} threads": granian(threads, "st") for threads in (1, 2, 4, 8)},
        "granian wsgi, 4 threads, mt": granian(4, "mt"),
    }


class Server:
    """A running API server on a port of its own."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        names = {"address": f"127.0.0.1:{self.port}", "host": "127.0.0.1", "port": self.port}
        self.log = log
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                [part.format(**names) for part in command],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=output,
                stderr=output,
            )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/v1/health/live")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"the API server does not start:\n{self.log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def worker_megabytes(self) -> list[float]:
        """Resident memory of each worker process, in MB (10^6 bytes)."""
        return [_resident_megabytes(pid) for pid in _children(self.process.pid)]

    def processor_seconds(self) -> float:
        return processor_seconds(self.process.pid)


@contextlib.contextmanager
def running(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[Server]:
    server = Server(command, environment, log)
    try:
        yield server
    finally:
        server.stop()


def product_command() -> list[str]:
    """The product's own server command, as `make run` and the container start it."""
    return server_command("{address}")


def processor_seconds(pid: int, *, ended: bool = False) -> float:
    """Processor time that a process and its living children have used; `ended` adds the children that are gone."""
    own = _used(pid, ended)
    return own + sum(_used(child, False) for child in _children(pid))


def _used(pid: int, ended: bool) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(each) for each in fields[11 : 15 if ended else 13]) / _TICKS


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _resident_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
