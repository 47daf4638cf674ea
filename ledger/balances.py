"""The caches of the books: how the sums of accounts follow the journal, and where a cache differs from the lines.

Both caches, loan balances and account sums, can always be made again from the lines. The database does the adding: a loan's
balance moves with its posting (migrations/0003_posting.sql), an account's sums follow behind the bounded cursor
(migrations/0006_rollup.sql, docs/adr/0034). Who reads balances asks queries.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import TypeVar

from django.db import connections
from django.db.backends.utils import CursorWrapper

from hpts.tenancy import SNAPSHOT, current_tenant, tenant_transaction, wait_turn

# A transaction of the roll-up stays short: its id holds back whatever else follows the journal.
ENTRIES, LINES = 2_000, 20_000
# So many entries are counted by one statement of a rebuild.
COUNTED_TOGETHER = 5_000
ZERO = ("0", "00000000-0000-0000-0000-000000000000")

# Where loan_balance differs from the lines; `minor` is the sum of the lines, `recorded` the row's, NULL when there is no row.
BALANCE_DIFFERENCES = """
    SELECT coalesce(s.loan_id, b.loan_id) AS loan_id, coalesce(s.account_code, b.account_code) AS account_code,
           coalesce(s.layer, b.layer) AS layer, b.balance_minor AS recorded, coalesce(s.minor, 0) AS minor,
           s.currency, s.floored
    FROM (SELECT l.loan_id, l.account_code, l.layer, min(l.currency) AS currency,
                 coalesce(a.role IN ('principal', 'interest', 'fees', 'suspense'), false) AS floored,
                 sum(CASE l.direction WHEN a.normal_side THEN l.amount_minor ELSE -l.amount_minor END) AS minor
          FROM journal_line l
          JOIN gl_account a ON a.tenant_id = l.tenant_id AND a.code = l.account_code AND a.per_loan
          WHERE l.tenant_id = %(tenant)s AND l.loan_id IS NOT NULL
            AND (%(loans)s::uuid[] IS NULL OR l.loan_id = ANY (%(loans)s::uuid[]))
          GROUP BY l.loan_id, l.account_code, l.layer, a.role) s
    FULL JOIN (SELECT * FROM loan_balance
               WHERE tenant_id = %(tenant)s AND (%(loans)s::uuid[] IS NULL OR loan_id = ANY (%(loans)s::uuid[]))) b
        ON b.loan_id = s.loan_id AND b.account_code = s.account_code AND b.layer = s.layer
    WHERE b.balance_minor IS DISTINCT FROM coalesce(s.minor, 0)
"""


# --- Account sums follow the journal ---------------------------------------------------------------------------------


def tenants_behind() -> list[str]:
    """Tenants with entries that their account sums do not hold yet, and that are sure to be all that come before them."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT accounts_to_roll_up()::text")
        return [tenant_id for (tenant_id,) in cursor.fetchall()]


def roll_up(tenant_id: str, *, seconds: float = 10.0) -> int:
    """Bring a tenant's account sums up to the journal, for so long at most; gives how many entries it was. Who finds another one
    at work leaves it the rest."""
    until = time.monotonic() + seconds
    rolled = 0
    while True:
        with tenant_transaction(tenant_id) as cursor:
            cursor.execute("SELECT roll_up_accounts(%s, %s)", (ENTRIES, LINES))
            entries = int(cursor.fetchone()[0] or 0)
        if not entries:
            return rolled
        rolled += entries
        if time.monotonic() > until:
            return rolled


# --- And are made again from it --------------------------------------------------------------------------------------

_Point = tuple[str, str]
K = TypeVar("K")
_Day = tuple[str, str, str, date]
_Gross = tuple[int, int]


@dataclass(frozen=True, slots=True)
class SumDifference:
    """Gross debits and credits of an account in a day, month or year: what the row says (None: there is none), and the lines."""

    span: str
    currency: str
    layer: str
    account_code: str
    starts_on: date
    recorded: _Gross | None
    counted: _Gross


def recount(tenant_id: str, differences: list[SumDifference], *, repair: bool) -> Iterator[tuple[int, int]]:
    """Count a tenant's account sums anew from the lines; gives how far it is: entries counted, and in all. What differs is put
    into `differences`, and made right as the schema's owner when asked to.

    Postings and readers go on. Most is counted before the roll-up is held up, for the moment that it takes to catch up and
    compare.
    """
    days: dict[_Day, _Gross] = {}
    done, counted = ZERO, 0
    with tenant_transaction(tenant_id, using="readonly") as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        point = _point(cursor)
        total = _entries_up_to(cursor, point)
    while True:
        with tenant_transaction(tenant_id, using="readonly") as cursor:
            number, done = _count(cursor, days, done, point)
        if not number:
            break
        counted += number
        yield counted, total
    using, first = ("owner", None) if repair else ("readonly", SNAPSHOT)
    with tenant_transaction(tenant_id, using=using, first=first) as cursor:
        if repair:
            wait_turn(cursor, "roll-up")
        point = _point(cursor)
        number = 1
        while number:
            number, done = _count(cursor, days, done, point)
        differences += _compared(cursor, days)
        if repair and differences:
            _put_right(cursor, differences)
    yield total, total


def _point(cursor: CursorWrapper) -> _Point:
    """The last entry that the sums hold."""
    cursor.execute(
        "SELECT created_xid::text, entry_id::text FROM account_rollup WHERE tenant_id = %s", (current_tenant(),)
    )
    return cursor.fetchone() or ZERO


def _entries_up_to(cursor: CursorWrapper, point: _Point) -> int:
    cursor.execute(
        "SELECT count(*) FROM outbox_message WHERE tenant_id = %s AND (created_xid, entry_id) <= (%s::xid8, %s::uuid)",
        (current_tenant(), *point),
    )
    return int(cursor.fetchone()[0])


def _count(cursor: CursorWrapper, days: dict[_Day, _Gross], after: _Point, through: _Point) -> tuple[int, _Point]:
    """Add the lines of the next entries; gives how many entries, and the last of them."""
    cursor.execute(
        """SELECT o.created_xid::text, o.entry_id::text FROM outbox_message o
           WHERE o.tenant_id = %s AND (o.created_xid, o.entry_id) > (%s::xid8, %s::uuid)
             AND (o.created_xid, o.entry_id) <= (%s::xid8, %s::uuid)
           ORDER BY o.created_xid, o.entry_id LIMIT %s""",
        (current_tenant(), *after, *through, COUNTED_TOGETHER),
    )
    entries: list[_Point] = cursor.fetchall()
    if not entries:
        return 0, after
    cursor.execute(
        """SELECT l.currency, l.layer, l.account_code, l.effective_at,
                  coalesce(sum(l.amount_minor) FILTER (WHERE l.direction = 'DR'), 0),
                  coalesce(sum(l.amount_minor) FILTER (WHERE l.direction = 'CR'), 0)
           FROM unnest(%s::uuid[]) AS e (id)
           CROSS JOIN LATERAL (SELECT * FROM journal_line j WHERE j.tenant_id = %s AND j.entry_id = e.id OFFSET 0) l
           GROUP BY 1, 2, 3, 4""",
        ([entry_id for _, entry_id in entries], current_tenant()),
    )
    for *day, dr, cr in cursor.fetchall():
        _add(days, (day[0], day[1], day[2], day[3]), (int(dr), int(cr)))
    return len(entries), entries[-1]


def _add(sums: dict[K, _Gross], key: K, moved: _Gross) -> None:
    before = sums.get(key, (0, 0))
    sums[key] = (before[0] + moved[0], before[1] + moved[1])


def _compared(cursor: CursorWrapper, days: dict[_Day, _Gross]) -> list[SumDifference]:
    counted: dict[tuple[str, *_Day], _Gross] = {}
    for (currency, layer, code, day), moved in days.items():
        for span, starts_on in (("day", day), ("month", day.replace(day=1)), ("year", day.replace(month=1, day=1))):
            _add(counted, (span, currency, layer, code, starts_on), moved)
    cursor.execute(
        """SELECT span, currency, layer, account_code, starts_on, dr_minor, cr_minor FROM account_sum WHERE tenant_id = %s""",
        (current_tenant(),),
    )
    recorded = {(row[0], row[1], row[2], row[3], row[4]): (int(row[5]), int(row[6])) for row in cursor.fetchall()}
    return [
        SumDifference(key[0], key[1], key[2], key[3], key[4], recorded.get(key), counted.get(key, (0, 0)))
        for key in sorted(recorded.keys() | counted.keys())
        if recorded.get(key) != counted.get(key, (0, 0))
    ]


def _put_right(cursor: CursorWrapper, differences: list[SumDifference]) -> None:
    """A row without lines is brought to zero: sums never go."""
    columns = zip(
        *((d.span, d.currency, d.layer, d.account_code, d.starts_on, *d.counted) for d in differences), strict=True
    )
    cursor.execute(
        """INSERT INTO account_sum AS s (tenant_id, span, currency, layer, account_code, starts_on, dr_minor, cr_minor)
           SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::date[], %s::numeric[], %s::numeric[])
           ON CONFLICT (tenant_id, span, currency, layer, account_code, starts_on)
           DO UPDATE SET dr_minor = excluded.dr_minor, cr_minor = excluded.cr_minor""",
        (current_tenant(), *(list(column) for column in columns)),
    )
