"""The receivers in examples/: short, without a library, and they take what we send and nothing else."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Lender
from tests.operations.test_run import free_port
from tests.webhooks.conftest import eventually, key_of, pay, register
from webhooks import signing

EXAMPLES = Path(__file__).parents[2] / "examples"
NODE = shutil.which("node")
COMMANDS = [
    pytest.param([sys.executable, "webhook_receiver.py"], id="python"),
    pytest.param(
        [NODE or "node", "webhook_receiver.mjs"],
        id="javascript",
        marks=pytest.mark.skipif(NODE is None, reason="there is no node on this machine"),
    ),
]


@contextmanager
def started(command: list[str], port: int, secret: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*command, str(port)], cwd=EXAMPLES, env=os.environ | {"SECRET": secret}, stdout=subprocess.PIPE, text=True
    )

    def listens() -> bool:
        try:
            http.client.HTTPConnection("127.0.0.1", port, timeout=1).connect()
        except OSError:
            return False
        return True

    try:
        eventually(listens, what="the example listens")
        yield process
    finally:
        process.kill()
        process.wait()


def told(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().split()[-1] for _ in range(count)]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_verifies_what_we_send(command: list[str], lent: Lender, deliver: Callable[..., Any]) -> None:
    port = free_port()
    endpoint = register(lent.api, f"http://127.0.0.1:{port}/")
    with started(command, port, endpoint.secret) as process, deliver(lent):
        entries = pay(lent, 3)
        assert sorted(told(process, 3)) == sorted(entries)
        eventually(lambda: endpoint.states() == {"succeeded": 3})


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_refuses_what_is_not_ours_and_counts_nothing_twice(command: list[str]) -> None:
    port, secret = free_port(), signing.new_secret()
    body = b'{"journal_entry_id":"one","event_type":"payment_received"}'

    def status(key: str = secret, age: int = 0, sent: bytes = body) -> int:
        headers = signing.headers([key_of(signing.new_secret()), key_of(key)], "id", int(time.time()) - age, body)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("POST", "/", sent, headers)
        return connection.getresponse().status

    with started(command, port, secret) as process:
        assert status() == 204
        assert status() == 204
        assert status(key=signing.new_secret()) == 401
        assert status(age=301) == 401
        assert status(sent=body.replace(b"one", b"two")) == 401
        other = body.replace(b"one", b"three")
        headers = signing.headers([key_of(secret)], "id", int(time.time()), other)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("POST", "/", other, headers)
        assert connection.getresponse().status == 204
        assert told(process, 2) == ["one", "three"]


@pytest.mark.parametrize("name", ["webhook_receiver.py", "webhook_receiver.mjs"])
def test_the_examples_stay_short(name: str) -> None:
    lines = [line for line in (EXAMPLES / name).read_text("utf-8").splitlines() if line.strip()]
    assert len(lines) <= 26
