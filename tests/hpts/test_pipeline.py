"""Several statements in one round trip: what comes back, what has run when one fails, what the connection is good for then."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import pq

from hpts.pipeline import Statement, exchange

ONE = Statement("SELECT 1::int8")
SAY = Statement("SELECT $1::text")
FAIL = Statement("SELECT 1 / $1::int4")
BEGIN, COMMIT = Statement("BEGIN"), Statement("COMMIT", prepared=False)


@pytest.fixture
def connection() -> Iterator[psycopg.Connection]:
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        yield connection


def said(result: pq.abc.PGresult) -> str:
    value = result.get_value(0, 0)
    assert value is not None
    return value.decode()


def test_the_last_result_comes_back_and_the_connection_is_free(connection: psycopg.Connection) -> None:
    for word in ("a", "é\u2603", ""):
        assert said(exchange(connection, (ONE, ()), (SAY, (word,)))) == word
        assert connection.execute("SELECT 2").fetchone() == (2,)


def test_none_is_null_and_bytes_are_bytes(connection: psycopg.Connection) -> None:
    assert exchange(connection, (SAY, (None,))).get_value(0, 0) is None
    assert exchange(connection, (Statement("SELECT $1::bytea"), (b"\x00'\\\xff",))).get_value(0, 0) == b"\x00'\\\xff"


def test_megabytes_pass_both_ways(connection: psycopg.Connection) -> None:
    text = "0123456789abcdef" * 2**20
    assert said(exchange(connection, (SAY, (text,)), (SAY, ("between",)), (SAY, (text,)))) == text


def test_what_stands_behind_a_failure_has_not_run(connection: psycopg.Connection) -> None:
    connection.execute("SELECT set_config('hpts.seen', 'before', false)")
    mark = Statement("SELECT set_config('hpts.seen', 'after', false)")
    for _ in range(3):  # The failed statement stays prepared, and the ones behind it are prepared when they are needed.
        with pytest.raises(psycopg.errors.DivisionByZero):
            exchange(connection, (FAIL, ("0",)), (mark, ()))
        assert connection.execute("SELECT current_setting('hpts.seen')").fetchone() == ("before",)
    exchange(connection, (FAIL, ("1",)), (mark, ()))
    assert connection.execute("SELECT current_setting('hpts.seen')").fetchone() == ("after",)


def test_a_commit_that_fails_is_an_error() -> None:
    with psycopg.connect(os.environ["HPTS_OWNER_DATABASE_URL"], autocommit=True) as connection:
        connection.execute("CREATE TEMPORARY TABLE once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        twice = Statement("INSERT INTO once VALUES (1), (1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            exchange(connection, (BEGIN, ()), (twice, ()), (COMMIT, ()))
        assert connection.execute("SELECT count(*) FROM once").fetchone() == (0,)


def test_a_server_that_has_forgotten_is_told_again_where_nothing_has_run(connection: psycopg.Connection) -> None:
    """psycopg makes the server forget all that was prepared when one of its own transactions has been rolled back."""
    exchange(connection, (BEGIN, ()), (SAY, ("a",)), (COMMIT, ()))
    connection.execute("DEALLOCATE ALL")
    assert said(exchange(connection, (BEGIN, ()), (SAY, ("b",)))) == "b"
    connection.execute("DEALLOCATE ALL")
    with pytest.raises(psycopg.errors.InvalidSqlStatementName):
        exchange(connection, (SAY, ("c",)), (COMMIT, ()))
    assert connection.info.transaction_status == pq.TransactionStatus.INERROR
    connection.rollback()
    assert said(exchange(connection, (SAY, ("d",)))) == "d"


def test_a_server_that_hangs_up_is_an_operational_error(connection: psycopg.Connection) -> None:
    with pytest.raises(psycopg.OperationalError):
        exchange(connection, (Statement("SELECT pg_terminate_backend(pg_backend_pid())"), ()), (SAY, ("a",)))
    with pytest.raises(psycopg.OperationalError):
        exchange(connection, (SAY, ("a",)))


def test_other_threads_run_while_one_waits(connection: psycopg.Connection) -> None:
    """The waiting one is let go by this thread, which a wait that held the interpreter would never let run."""
    lock = Statement("SELECT pg_advisory_lock(4711)")
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(4711)")
        waiting = threading.Thread(target=exchange, args=(connection, (lock, ())))
        waiting.start()
        while not holder.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone():
            pass
        holder.execute("SELECT pg_advisory_unlock(4711)")
        waiting.join(timeout=10)
        assert not waiting.is_alive()
