"""Real processes: clients and servers in a state directory of their own, found again by their environment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpts import embedded


def eventually(condition: Callable[[], object], *, within: float = 20.0, what: str = "") -> None:
    """Wait until the condition holds; fail when it does not within the seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s: {what or condition}"
        time.sleep(0.05)


class Place:
    """A state directory, and the processes that were started for it and live."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.clients: list[subprocess.Popen[str]] = []
        self.variables = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HPTS_", "PYTEST_")) and name not in ("DATABASE_URL", "REDIS_URL", "PORT")
        } | {"HPTS_STATE_DIR": str(state)}

    def start(self, module: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        client = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=embedded.ROOT,
            env=self.variables | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.clients.append(client)
        return client

    def serve(self) -> subprocess.Popen[str]:
        """A client of both embedded servers, which run when this returns."""
        client = self.start("hpts.embedded", "serve")
        assert client.stdout is not None
        lines = iter(client.stdout.readline, "")
        assert any("run until Ctrl-C" in line for line in lines), "the servers do not start"
        return client

    def environment(self) -> dict[str, str]:
        return embedded.environment(self.state)

    def processes(self, *words: str) -> list[int]:
        """Ids of the living processes of this place whose command line contains the words."""
        marker = f"HPTS_STATE_DIR={self.state}\0".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                # The servers write their title over their environment, but work in their data directory.
                if entry.name.isdigit() and (
                    marker in (entry / "environ").read_bytes() or self.state in (entry / "cwd").readlink().parents
                ):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if command and all(word in command for word in words):
                        found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return sorted(found)

    def kill(self, *words: str) -> None:
        """SIGKILL the first process with these words, and see it gone."""
        victim = self.processes(*words)[0]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: victim not in self.processes(*words), what=f"{words} is gone")

    def stop(self) -> None:
        for client in self.clients:
            if client.poll() is None:
                client.kill()
            client.communicate()
        eventually(lambda: not self.processes(), what="everything stopped with its clients")
        self.clients.clear()


@pytest.fixture(scope="module")
def _state() -> Iterator[Path]:
    # Not tmp_path, which only its owner can enter: the servers run as another user when root runs the suite.
    state = Path(tempfile.mkdtemp(prefix="hpts-place-"))
    yield state
    shutil.rmtree(state)


@pytest.fixture
def place(_state: Path) -> Iterator[Place]:
    """A place whose data last for the module, where nothing runs before and after each test."""
    place = Place(_state)
    yield place
    place.stop()
