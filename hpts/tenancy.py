"""Transaction and tenant together: the only way to tenant data.

Row security hides every tenant's rows until a transaction names its tenant. `tenant_transaction()` is where that happens;
nothing else opens a transaction on tenant data, and nothing else filters by tenant. No business rule lives here.
"""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.db import InterfaceError, OperationalError, connections, models, transaction
from django.db.backends.utils import CursorWrapper

ENTER = "SELECT set_config('hpts.tenant_id', %s, true)"
# As `first`: everything that the transaction reads is of one moment, and it writes nothing.
SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"

_current: ContextVar[str | None] = ContextVar("current_tenant", default=None)


def current_tenant() -> str:
    """The tenant of the running transaction, a canonical UUID string. Raises RuntimeError outside of one."""
    tenant_id = _current.get()
    if tenant_id is None:
        raise RuntimeError("Tenant data is reached only inside tenant_transaction().")
    return tenant_id


@contextmanager
def tenant_transaction(
    tenant_id: str,
    opening: str = ENTER,
    params: Sequence[Any] = (),
    *,
    first: str | None = None,
    using: str = "default",
) -> Iterator[CursorWrapper]:
    """Open one transaction for one tenant and yield its cursor, after the `opening` statement has run on it.

    `opening` takes the tenant's id as its first parameter and must set `hpts.tenant_id` for the transaction; the write
    path passes the function that also takes the locks and reads the state, so that entering costs no round trip more.
    `first` is a statement before it, such as another time limit.
    Time limits are session defaults of the connection (settings). Inside itself it refuses to change the tenant.
    """
    if _current.get() is not None:
        raise RuntimeError("A tenant transaction does not nest: pass the cursor on instead.")
    connection = connections[using]
    token = _current.set(tenant_id)
    try:
        _wake(using)
        with transaction.atomic(using=using), connection.cursor() as cursor:
            if first is not None:
                cursor.execute(first)
            cursor.execute(opening, (tenant_id, *params))
            yield cursor
    finally:
        _current.reset(token)


def _wake(using: str) -> None:
    """Reconnect when the server closed this thread's connection since its last use, as after a restart.

    libpq knows of a closed socket without a round trip; asking here costs microseconds and saves the first caller after
    a restart from an error.
    """
    connection = connections[using]
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
