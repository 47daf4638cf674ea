"""Transaction and tenant together: the only way to tenant data.

Row security hides every tenant's rows until a transaction names its tenant. `tenant_transaction()` is where that happens;
nothing else opens a transaction on tenant data, and nothing else filters by tenant. No business rule lives here.
"""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import psycopg
from django.db import InterfaceError, OperationalError, connections, models
from django.db.backends.utils import CursorWrapper
from django.db.transaction import TransactionManagementError
from psycopg import pq

from hpts.pipeline import Statement, Step, Value, exchange

BEGIN = Statement("BEGIN")
COMMIT, ROLLBACK = Statement("COMMIT", prepared=False), Statement("ROLLBACK", prepared=False)
# As `first`: everything that the transaction reads is of one moment, and it writes nothing.
SNAPSHOT = Statement("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
ENTER = Statement("SELECT set_config('hpts.tenant_id', $1, true)")

_current: ContextVar[str | None] = ContextVar("current_tenant", default=None)


def current_tenant() -> str:
    """The tenant of the running transaction, a canonical UUID string. Raises RuntimeError outside of one."""
    tenant_id = _current.get()
    if tenant_id is None:
        raise RuntimeError("Tenant data is reached only inside tenant_transaction().")
    return tenant_id


class TenantTransaction:
    """A running transaction: what its opening statement answered, a cursor, and how it will end."""

    def __init__(self, connection: Any, opened: pq.abc.PGresult) -> None:
        self.opened = opened
        self.last: list[Step] = []
        self._connection = connection

    @cached_property
    def cursor(self) -> CursorWrapper:
        return self._connection.cursor()  # type: ignore[no-any-return]

    def run(self, statement: Statement, values: Sequence[Value] = ()) -> pq.abc.PGresult:
        """Run a statement now, in a round trip of its own; gives its result."""
        with self._connection.wrap_database_errors:
            return exchange(self._connection.connection, (statement, values))

    def finish_with(self, statement: Statement, values: Sequence[Value] = ()) -> None:
        """Run this when the block ends, in one round trip with COMMIT; what it answers is not looked at."""
        self.last.append((statement, values))


@contextmanager
def opened_transaction(
    tenant_id: str,
    opening: Statement,
    values: Sequence[Value] = (),
    *,
    first: Statement | None = None,
    using: str = "default",
) -> Iterator[TenantTransaction]:
    """Open one transaction for one tenant, in one round trip with its `opening` statement.

    `opening` takes the tenant's id as its first parameter and must set `hpts.tenant_id` for the transaction; the write
    path passes the function that also takes the locks and reads the state, so that entering costs no round trip more.
    `first` is a statement before it, such as another time limit.
    Time limits are session defaults of the connection (settings). Inside itself it refuses to change the tenant.
    """
    if _current.get() is not None:
        raise RuntimeError("A tenant transaction does not nest: pass the cursor on instead.")
    connection = connections[using]
    token = _current.set(tenant_id)
    committed = False
    try:
        _wake(connection)
        if connection.in_atomic_block:
            raise RuntimeError("A tenant transaction is a whole transaction: no other one may be open around it.")
        # Django is told of the transaction, so that it opens and commits none of its own inside.
        connection.in_atomic_block, connection.autocommit = True, False
        raw: psycopg.Connection = connection.connection
        try:
            before: tuple[Step, ...] = ((BEGIN, ()),) if first is None else ((BEGIN, ()), (first, ()))
            with connection.wrap_database_errors:
                opened = exchange(raw, *before, (opening, (tenant_id, *values)))
            transaction = TenantTransaction(connection, opened)
            yield transaction
            failed = raw.pgconn.transaction_status != pq.TransactionStatus.INTRANS
            if failed or (connection.needs_rollback and transaction.last):
                raise TransactionManagementError("The transaction has failed and cannot be committed.")
            if not connection.needs_rollback:
                with connection.wrap_database_errors:
                    exchange(raw, *transaction.last, (COMMIT, ()))
                committed = True
        finally:
            connection.in_atomic_block, connection.autocommit = False, True
            connection.needs_rollback = connection.closed_in_transaction = False
            if raw.pgconn.transaction_status != pq.TransactionStatus.IDLE:
                _abandon(connection)
            if not committed:
                connection.run_on_commit.clear()
    finally:
        _current.reset(token)
    if committed:
        connection.run_and_clear_commit_hooks()


@contextmanager
def tenant_transaction(
    tenant_id: str, *, first: Statement | None = None, using: str = "default"
) -> Iterator[CursorWrapper]:
    """One transaction for one tenant: yields its cursor."""
    with opened_transaction(tenant_id, ENTER, first=first, using=using) as transaction:
        yield transaction.cursor


def wait_turn(cursor: CursorWrapper, work: str) -> None:
    """Have this work on the tenant's books alone until the transaction ends; who has it now is waited for.

    A statement of its own, so that those after it see what the one before has committed."""
    cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"{current_tenant()} {work}",))


def take_turn(cursor: CursorWrapper, work: str) -> bool:
    """As `wait_turn()`; False, at once, when somebody else is at it."""
    cursor.execute("SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))", (f"{current_tenant()} {work}",))
    return bool(cursor.fetchone()[0])


def _abandon(connection: Any) -> None:
    """Roll back. A connection that cannot, or that is in the middle of an exchange, is closed, which does the same."""
    status = connection.connection.pgconn.transaction_status
    if status in (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR):
        try:
            exchange(connection.connection, (ROLLBACK, ()))
            return
        except psycopg.Error:
            pass
    connection.close()


def _wake(connection: Any) -> None:
    """Reconnect when the server closed this thread's connection since its last use, as after a restart.

    libpq knows of a closed socket without a round trip; asking here costs microseconds and saves the first caller after
    a restart from an error.
    """
    if connection.connection is not None and (connection.connection.closed or _dead(connection.connection)):
        connection.close()
    try:
        connection.ensure_connection()
    except (OperationalError, InterfaceError):
        connection.close()
        raise


def _dead(raw: Any) -> bool:
    """Whether the socket has something to read while no query runs: only a goodbye of the server can be there."""
    try:
        poll = select.poll()
        poll.register(raw.pgconn.socket, select.POLLIN)
        return bool(poll.poll(0))
    except (OSError, ValueError):
        return True


class TenantManager(models.Manager["TenantOwned"]):
    """Filters by the running transaction's tenant; outside of one it refuses, as row security answers nothing."""

    def get_queryset(self) -> models.QuerySet[TenantOwned]:
        return super().get_queryset().filter(tenant_id=current_tenant())


class TenantOwned(models.Model):
    """A row that belongs to one tenant. Its key, foreign keys and indexes start with `tenant_id`."""

    tenant_id = models.UUIDField(editable=False)

    objects = TenantManager()

    class Meta:
        abstract = True
