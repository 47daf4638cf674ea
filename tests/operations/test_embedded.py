"""The embedded servers: who keeps them alive, what ends them, what they leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest
import redis

from hpts import embedded
from tests.operations.conftest import Place, eventually

POSTMASTER = ("bin/postgres", " -D ")
ROLES = {
    "hpts_owner": "HPTS_OWNER_DATABASE_URL",
    "hpts_app": "DATABASE_URL",
    "hpts_readonly": "HPTS_READONLY_DATABASE_URL",
}


def run_sql(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def answers(variables: dict[str, str]) -> bool:
    try:
        with redis.Redis.from_url(variables["REDIS_URL"]) as connection:
            return run_sql(variables["DATABASE_URL"], "SELECT 1") == [(1,)] and bool(connection.ping())
    except (psycopg.OperationalError, redis.ConnectionError):
        return False


def test_nothing_is_offered_when_nothing_runs(place: Place) -> None:
    assert place.environment() == {}


def test_the_servers_outlive_one_client_and_end_with_the_last_even_when_it_is_killed(place: Place) -> None:
    first, second = place.serve(), place.serve()
    assert len(place.processes("hpts.embedded keep")) == 2
    first.kill()
    first.wait()
    assert run_sql(place.environment()["DATABASE_URL"], "SELECT current_user::text") == [("hpts_app",)]
    second.kill()
    second.wait()
    eventually(lambda: not place.processes(), within=5, what="both servers and both keepers are gone")
    assert place.environment() == {}


def test_ctrl_c_stops_everything_before_the_client_ends(place: Place) -> None:
    client = place.serve()
    client.send_signal(signal.SIGINT)
    assert client.wait(30) == 0
    assert place.processes(*POSTMASTER) == place.processes("redis-server") == []
    eventually(lambda: not place.processes(), within=10, what="the keepers are gone")


def test_the_data_are_there_again_after_a_kill(place: Place) -> None:
    client = place.serve()
    variables = place.environment()
    run_sql(variables["HPTS_OWNER_DATABASE_URL"], "CREATE TABLE kept AS SELECT 42 AS answer")
    with redis.Redis.from_url(variables["REDIS_URL"]) as connection:
        connection.set("kept", "42")
    for program in (POSTMASTER, ("redis-server",), ("keep postgres",), ("keep redis",)):
        for victim in place.processes(*program):
            os.kill(victim, signal.SIGKILL)
    client.kill()
    eventually(lambda: not place.processes(), what="all is dead")

    place.serve()
    variables = place.environment()
    assert run_sql(variables["HPTS_OWNER_DATABASE_URL"], "SELECT answer FROM kept") == [(42,)]
    run_sql(variables["HPTS_OWNER_DATABASE_URL"], "DROP TABLE kept")
    # Redis writes to its disk once a second and may have lost this second's work, as the design allows.
    with redis.Redis.from_url(variables["REDIS_URL"]) as connection:
        assert connection.get("kept") in (b"42", None)


def test_a_pid_file_that_names_a_foreign_process_does_not_stop_the_start(place: Place) -> None:
    client = place.serve()
    pid_file = place.state / "postgres" / "data" / "postmaster.pid"
    text = pid_file.read_text()
    client.kill()
    eventually(lambda: not place.processes(), what="all is dead")
    pid_file.write_text("\n".join([str(os.getpid()), *text.splitlines()[1:]]))
    place.serve()
    assert run_sql(place.environment()["DATABASE_URL"], "SELECT 1") == [(1,)]


def test_a_killed_server_is_started_again_at_the_same_port(place: Place) -> None:
    place.serve()
    before = place.environment()
    for program in (POSTMASTER, ("redis-server",)):
        place.kill(*program)
    eventually(lambda: place.environment() == before and answers(before), what="both servers are back")


def test_a_killed_keeper_takes_its_server_along_and_the_next_client_starts_another(place: Place) -> None:
    place.serve()
    before = place.environment()
    place.kill("keep postgres")
    eventually(lambda: not place.processes(*POSTMASTER), what="PostgreSQL follows its keeper")
    place.serve()
    assert place.environment() == before


def test_a_client_that_comes_while_the_servers_stop_gets_new_ones(place: Place) -> None:
    for _ in range(3):
        client = place.serve()
        client.kill()
        client.wait()
        place.serve()
        assert run_sql(place.environment()["DATABASE_URL"], "SELECT 1") == [(1,)]
        place.stop()


def test_passwords_and_keys_are_for_their_owner_alone(place: Place) -> None:
    place.serve()
    for name in ("secrets.json", "postgres/keeper.json", "redis/keeper.json"):
        assert (place.state / name).stat().st_mode & 0o077 == 0
    secrets = {value for value in embedded._secrets(place.state).values() if len(value) < 100}
    for process in place.processes():
        command = Path(f"/proc/{process}/cmdline").read_text()
        assert not any(secret in command for secret in secrets)


def test_servers_of_a_kept_place_are_durable(place: Place) -> None:
    place.serve()
    names = ("fsync", "full_page_writes", "synchronous_commit", "data_checksums")
    for name in names:
        assert run_sql(place.environment()["DATABASE_URL"], f"SHOW {name}") == [("on",)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the servers as somebody else")
def test_root_is_served_from_a_directory_that_the_servers_cannot_enter() -> None:
    hidden = Path(tempfile.mkdtemp(prefix="hpts-hidden-"))
    place = Place(hidden / "var")
    try:
        for _ in range(2):
            place.serve()
            [base] = {(place.state / kind / "elsewhere").resolve().parent for kind in embedded.SERVERS}
            assert base == embedded.OUTSIDE
            run_sql(place.environment()["HPTS_OWNER_DATABASE_URL"], "CREATE TABLE IF NOT EXISTS kept (answer int)")
            assert run_sql(place.environment()["HPTS_OWNER_DATABASE_URL"], "SELECT * FROM kept") == []
            place.stop()
    finally:
        for kind in embedded.SERVERS:
            shutil.rmtree((place.state / kind / "elsewhere").resolve())
        shutil.rmtree(hidden)


def test_a_command_gets_throw_away_servers_that_leave_nothing() -> None:
    program = "import os; print(os.environ['HPTS_STATE_DIR'])"
    command = [sys.executable, "-m", "hpts.embedded", "temporary", sys.executable, "-c", program]
    state = subprocess.run(command, cwd=embedded.ROOT, check=True, capture_output=True, text=True).stdout.strip()
    eventually(lambda: not Path(state).exists(), within=5, what="the directory is gone")


@pytest.mark.parametrize("role", ROLES)
def test_a_role_has_no_power_over_the_server(role: str) -> None:
    [row] = run_sql(
        os.environ[ROLES[role]],
        "SELECT rolname, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication"
        " FROM pg_roles WHERE rolname = current_user",
    )
    assert row == (role, False, False, False, False, False)
    memberships = "SELECT count(*) FROM pg_auth_members WHERE member = current_user::regrole"
    assert run_sql(os.environ[ROLES[role]], memberships) == [(0,)]


@pytest.mark.parametrize("role", ["hpts_app", "hpts_readonly"])
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE public.intruder (id int)",
        "CREATE TEMPORARY TABLE intruder (id int)",
        "CREATE SCHEMA intruder",
        "CREATE DATABASE intruder",
        "CREATE ROLE intruder",
        "CREATE FUNCTION public.intruder() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SET ROLE hpts_owner",
        "ALTER ROLE hpts_app BYPASSRLS",
    ],
)
def test_a_limited_role_can_create_nothing(role: str, statement: str) -> None:
    with psycopg.connect(os.environ[ROLES[role]], autocommit=True) as connection:
        # A session may lift its read-only default; what counts is what remains then.
        connection.execute("SET default_transaction_read_only = off")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)


@pytest.mark.parametrize("role", ["hpts_app", "hpts_readonly"])
def test_a_limited_role_owns_nothing(role: str) -> None:
    owned = f"SELECT count(*) FROM pg_shdepend WHERE deptype = 'o' AND refobjid = '{role}'::regrole"
    assert run_sql(os.environ["HPTS_SUPERUSER_DATABASE_URL"], owned) == [(0,)]


def test_reports_begin_every_transaction_read_only() -> None:
    assert run_sql(os.environ["HPTS_READONLY_DATABASE_URL"], "SHOW transaction_read_only") == [("on",)]
