"""Several statements in one round trip, each prepared once per connection: libpq's pipeline mode.

What a transaction always says in the same order (BEGIN and its opening; its last statement and COMMIT) is sent together.
Everything that is asked in between goes through Django's cursor as usual. Knows nothing of tenants.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from itertools import count
from weakref import WeakKeyDictionary

import psycopg
from psycopg import errors, pq

_DONE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)
_BINARY = 1
_numbers = count()
# The names that each connection's server knows. A prepared statement outlives its transaction, even one that fails.
_prepared: WeakKeyDictionary[psycopg.Connection, set[bytes]] = WeakKeyDictionary()

Value = str | bytes | None


class Statement:
    """An SQL text with `$1` parameters, and the name that it is prepared by; b"" when it is not worth preparing."""

    def __init__(self, sql: str, *, prepared: bool = True) -> None:
        self.sql = sql.encode()
        self.name = b"hpts_%d" % next(_numbers) if prepared else b""


Step = tuple[Statement, Sequence[Value]]


def exchange(connection: psycopg.Connection, *steps: Step) -> pq.abc.PGresult:
    """Send the statements together and give the result of the last one, its values in binary form.

    Strings are sent as text of any type, bytes as bytea. Raises psycopg's error of the first statement that fails; those
    behind it have not run. When the exchange itself is broken off the connection stays ACTIVE, and only closing it helps.
    """
    try:
        return _exchange(connection, steps)
    except errors.InvalidSqlStatementName:
        # psycopg has told the server to forget all that was prepared, as it does after a rollback of its own. When that
        # struck the first statement of a transaction, nothing has run.
        _prepared.pop(connection, None)
        if connection.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            raise
        return _exchange(connection, steps)


def _exchange(connection: psycopg.Connection, steps: Sequence[Step]) -> pq.abc.PGresult:
    pgconn = connection.pgconn
    prepared = _prepared.setdefault(connection, set())
    preparing: list[bytes | None] = []  # One for each result: the name that it prepares.
    pgconn.enter_pipeline_mode()
    for statement, values in steps:
        raw = [value.encode() if isinstance(value, str) else value for value in values]
        formats = [isinstance(value, bytes) for value in values]
        if not statement.name:
            pgconn.send_query_params(statement.sql, raw, None, formats, _BINARY)
        else:
            if statement.name not in prepared and statement.name not in preparing:
                pgconn.send_prepare(statement.name, statement.sql)
                preparing.append(statement.name)
            pgconn.send_query_prepared(statement.name, raw, formats, _BINARY)
        preparing.append(None)
    pgconn.pipeline_sync()
    results = _results(pgconn)
    pgconn.exit_pipeline_mode()
    for name, result in zip(preparing, results, strict=True):
        if result.status not in _DONE:
            raise errors.error_from_result(result, encoding="utf-8")
        if name is not None:
            prepared.add(name)
    return results[-1]


def _results(pgconn: pq.abc.PGconn) -> list[pq.abc.PGresult]:
    """All results up to the pipeline's end. Waits in poll(), so that other threads run."""
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN | select.POLLOUT)
    while pgconn.flush():
        # Reading, too: a server that cannot get rid of its answers does not read on.
        if poll.poll()[0][1] & ~select.POLLOUT:
            pgconn.consume_input()
    poll.modify(pgconn.socket, select.POLLIN)
    results: list[pq.abc.PGresult] = []
    while True:
        while pgconn.is_busy():
            poll.poll()
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:  # The end of one statement's results.
            if pgconn.status != pq.ConnStatus.OK:
                raise psycopg.OperationalError(pgconn.get_error_message())
        elif result.status == pq.ExecStatus.PIPELINE_SYNC:
            return results
        else:
            results.append(result)
