"""`make run`: comes up, stays up, goes down, and leaves nothing running however it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from hpts import embedded
from tests.operations.conftest import Place, eventually

GUNICORN_MASTER = ("gunicorn", "--bind")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> int:
    """The status, or 0 when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def token(demo: dict[str, str]) -> str:
    form = {"grant_type": "client_credentials", "client_id": demo["client_id"], "client_secret": demo["client_secret"]}
    with urllib.request.urlopen(demo["token_url"], urllib.parse.urlencode(form).encode(), timeout=5) as response:
        return str(json.loads(response.read())["access_token"])


class Runs:
    """Starts `make run` in a place."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.demo_path = place.state / "demo.json"

    def start(self, port: int, **variables: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
        """A run that is ready, and what it wrote for its clients."""
        self.demo_path.unlink(missing_ok=True)
        run = self.place.start("hpts.run", PORT=str(port), HPTS_DEMO_LOANS="5", **variables)
        eventually(lambda: self.demo_path.exists() or run.poll() is not None, within=90, what="demo.json")
        assert run.poll() is None, run.communicate()[0]
        return run, json.loads(self.demo_path.read_text())

    def healthy(self, port: int) -> bool:
        return get(f"http://localhost:{port}/v1/health/ready") == 200


@pytest.fixture
def runs(place: Place) -> Runs:
    return Runs(place)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_is_said_in_one_sentence_and_nothing_is_started(place: Place, address: str) -> None:
    with socket.create_server((address, 0)) as other:
        port = other.getsockname()[1]
        run = place.start("hpts.run", PORT=str(port))
        output, _ = run.communicate(timeout=30)
    assert run.returncode == 1
    assert output == f"Port {port} is taken by another program. Choose another: make run PORT={port + 1}\n"
    assert place.processes() == []


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1"])
def test_a_port_that_is_none_is_refused(place: Place, port: str) -> None:
    run = place.start("hpts.run", PORT=port)
    output, _ = run.communicate(timeout=30)
    assert (run.returncode, output) == (1, f"PORT must be a number from 1 to 65535, not {port!r}.\n")


def test_what_dies_is_started_again_and_sigterm_ends_all(runs: Runs) -> None:
    port, place = free_port(), runs.place
    run, demo = runs.start(port)
    assert set(demo) == {
        *("base_url", "token_url", "admin_url", "tenant_id", "client_id", "client_secret", "program_id"),
        *("admin_username", "admin_password"),
    }
    assert demo["base_url"] == f"http://localhost:{port}/v1"
    assert runs.demo_path.stat().st_mode & 0o777 == 0o600
    assert token(demo)
    assert runs.healthy(port)

    for words in (GUNICORN_MASTER, ("celery", "worker"), ("celery", "beat"), ("deliver_webhooks",)):
        victim = place.processes(*words)[0]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: [*place.processes(*words), victim][0] != victim, within=15, what=f"{words} again")  # noqa: B023
    # A client that comes in the meantime waits at the open socket.
    assert get(f"http://localhost:{port}/v1/health/live") == 200
    for words in (("bin/postgres", " -D "), ("redis-server",), ("keep postgres",), ("keep redis",)):
        place.kill(*words)
    eventually(lambda: runs.healthy(port), what="the databases are back")

    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=15)
    assert run.returncode == 0, output
    assert "HPTS is ready" in output
    eventually(lambda: not place.processes(), within=5, what="nothing runs")


def test_two_runs_share_the_books_and_a_killed_run_leaves_nothing(runs: Runs) -> None:
    first_port, second_port = free_port(), free_port()
    first, first_demo = runs.start(first_port)
    second, second_demo = runs.start(second_port)
    assert second_demo["base_url"] == f"http://localhost:{second_port}/v1"
    same = ("tenant_id", "client_id", "client_secret", "program_id", "admin_password")
    assert [first_demo[name] for name in same] == [second_demo[name] for name in same]
    assert runs.healthy(first_port)

    first.kill()
    eventually(lambda: get(f"http://localhost:{first_port}/v1/health/live") == 0, what="the first API is gone")
    assert runs.healthy(second_port)
    second.kill()
    eventually(lambda: not runs.place.processes(), within=15, what="nothing runs")


@pytest.fixture
def other_server() -> Iterator[str]:
    """The superuser's URL of a database on a server that is not the place's own."""
    # Short, and not below tmp_path, which the servers' account cannot enter.
    state = Path(tempfile.mkdtemp(prefix="hpts-other-"))
    with embedded.attached("postgres", state=state, throwaway=True) as variables:
        url = embedded.administrator_url(state, variables)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE books")
            connection.execute("CREATE ROLE boss LOGIN CREATEDB CREATEROLE PASSWORD 'boss'")
        yield url.rpartition("/")[0] + "/books"


def test_a_given_database_gets_the_roles_and_is_found_by_the_command_line(runs: Runs, other_server: str) -> None:
    port = free_port()
    run, demo = runs.start(port, DATABASE_URL=other_server)
    assert runs.healthy(port)
    assert not runs.place.processes("keep postgres")
    with psycopg.connect(runs.place.environment()["DATABASE_URL"]) as connection:
        assert connection.execute("SELECT current_user::text, current_database()::text").fetchone() == (
            "hpts_app",
            "books",
        )
    command = [sys.executable, "manage.py", "create_client", "--tenant", demo["tenant_id"], "--json"]
    made = subprocess.run(
        [*command, "--scopes", "hpts:ledger:read"],
        cwd=embedded.ROOT,
        env=runs.place.variables,
        check=True,
        capture_output=True,
        text=True,
    )
    assert token(demo | json.loads(made.stdout))
    run.terminate()
    assert run.wait(15) == 0


def test_a_limited_role_without_an_owner_is_explained(place: Place, other_server: str) -> None:
    with psycopg.connect(other_server, autocommit=True) as connection:
        connection.execute("CREATE ROLE clerk LOGIN PASSWORD 'clerk'")
    address = other_server.rpartition("@")[2]
    run = place.start("hpts.run", PORT=str(free_port()), DATABASE_URL=f"postgresql://clerk:clerk@{address}")
    output, _ = run.communicate(timeout=30)
    assert run.returncode == 1
    assert "HPTS_OWNER_DATABASE_URL" in output
    assert "Traceback" not in output


def test_a_database_that_does_not_answer_is_explained(place: Place) -> None:
    url = f"postgresql://nobody:secret@127.0.0.1:{free_port()}/books"
    run = place.start("hpts.run", PORT=str(free_port()), DATABASE_URL=url)
    output, _ = run.communicate(timeout=30)
    assert run.returncode == 1
    assert output.startswith("DATABASE_URL does not work: ")
    assert "Traceback" not in output
    assert "secret" not in output
