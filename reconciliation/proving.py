"""Proofs of a tenant's books: the checks of checks.py, over everything or over what is new, and the row that says what came out.

A proof of what is new begins behind the last one that found nothing, and takes the entries in the order of the outbox, up to the
oldest transaction that still writes (docs/adr/0006): so none is passed by. Damage to what was proven before is seen by a full
proof. Checks read as the reporting role; nothing here writes but the proof itself, and postings never wait.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.backends.utils import CursorWrapper

from hpts.tenancy import current_tenant, tenant_transaction
from reconciliation import queries
from reconciliation.checks import CHECKS, EVERYTHING, ONCE, Breach, Check, Scope
from reconciliation.status import mismatched_accounts

ACTOR = "schedule:proof"
# What one part of a proof of what is new takes up.
ENTRIES, LINES = 2_000, 50_000
# Rows that say when they were written may come from a transaction that began before the last proof did.
MARGIN = timedelta(hours=1)
# Reads whole tables: the limits of a request are not for it. Several checks at once use the processors better than several
# processes for one.
READING = """SELECT set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '0', true),
                    set_config('work_mem', '256MB', true), set_config('jit', 'off', true),
                    set_config('max_parallel_workers_per_gather', '0', true)"""

Point = tuple[str, str]
START: Point = ("0", "00000000-0000-0000-0000-000000000000")
# Told of each reading that is done: how many are, and how many there will be as far as is known.
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Finding:
    """What one check has said, and how long it took in all."""

    seconds: float = 0.0
    breaches: list[Breach] = field(default_factory=list)


@dataclass(slots=True)
class Outcome:
    """A finished proof."""

    tenant_id: str
    is_full: bool
    through: Point
    started_at: datetime
    entries: int = 0
    lines: int = 0
    seconds: float = 0.0
    findings: dict[str, Finding] = field(default_factory=lambda: {check.__name__: Finding() for check in CHECKS})

    @property
    def failed(self) -> list[str]:
        return [name for name, finding in self.findings.items() if finding.breaches]

    @property
    def breaches(self) -> list[dict[str, Any]]:
        return [
            {"check": name, "table": each.table, "row": each.row, "problem": each.problem}
            for name, finding in self.findings.items()
            for each in finding.breaches
        ]


def _unheard(done: int, total: int) -> None:
    """Nobody watches."""


def prove(tenant_id: str, *, full: bool, actor: str, jobs: int = 1, heard: Progress = _unheard) -> Outcome:
    """Prove a tenant's books and keep what came out: of what is new since the last proof that found nothing, or of everything,
    when asked to and when there is no such proof. `jobs`: so many checks of a full proof at a time."""
    began = time.monotonic()
    with tenant_transaction(tenant_id, using="readonly") as cursor:
        cursor.execute(READING)
        last = queries.last_proven(cursor)
        full = full or last is None
        outcome = Outcome(tenant_id, full, *_horizon(cursor))
        if full:
            outcome.entries, outcome.lines = _extent(cursor)
    if last is None or full:
        _prove_everything(outcome, jobs, heard)
    else:
        after, since = last
        _prove_new(outcome, after or START, since - MARGIN, heard)
    outcome.seconds = time.monotonic() - began
    _record(outcome, actor)
    return outcome


def prove_tonight(tenant_id: str) -> Outcome | None:
    """The proof of the night that has come round in the tenant's time zone; None when it is there, or somebody is at it. Once in
    so many days it is a full one."""
    lock = f"{tenant_id} proof"
    with connections["default"].cursor() as cursor:
        # The session's and not a transaction's: a proof is many transactions. It goes with its process.
        cursor.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (lock,))
        if cursor.fetchone() != (True,):
            return None
    try:
        with tenant_transaction(tenant_id) as cursor:
            due, full = queries.proof_due(cursor, full_after_days=settings.FULL_PROOF_DAYS)
        return prove(tenant_id, full=full, actor=ACTOR) if due else None
    finally:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (lock,))


# --- Everything ------------------------------------------------------------------------------------------------------


def _prove_everything(outcome: Outcome, jobs: int, heard: Progress) -> None:
    def read(check: Check) -> None:
        with tenant_transaction(outcome.tenant_id, using="readonly") as cursor:
            cursor.execute(READING)
            _ask(cursor, outcome, check, EVERYTHING)

    def work(check: Check) -> None:
        try:
            read(check)
        finally:
            connections.close_all()

    if jobs == 1:
        _count(map(read, CHECKS), heard)
    else:
        with ThreadPoolExecutor(jobs) as pool:
            _count(pool.map(work, CHECKS), heard)


def _count(readings: Iterable[None], heard: Progress) -> None:
    for number, _ in enumerate(readings, 1):
        heard(number, len(CHECKS))


# --- What is new -----------------------------------------------------------------------------------------------------


def _prove_new(outcome: Outcome, after: Point, since: datetime, heard: Progress) -> None:
    """Part by part; then what no entry leads to. A part that breaks a promise ends it: what follows may well be right, and would
    be proven again."""
    each = [check for check in CHECKS if check not in ONCE]
    point, readings = after, 0
    with tenant_transaction(outcome.tenant_id, using="readonly") as cursor:
        cursor.execute(READING)
        waiting = _waiting(cursor, after, outcome.through)
    while not outcome.failed:
        with tenant_transaction(outcome.tenant_id, using="readonly") as cursor:
            cursor.execute(READING)
            part = _next_part(cursor, point, outcome.through)
            if part is None:
                break
            scope, lines, point = part
            for check in each:
                _ask(cursor, outcome, check, scope)
        outcome.entries += len(scope.entries or ())
        outcome.lines += lines
        readings += 1
        heard(outcome.entries, waiting)
    with tenant_transaction(outcome.tenant_id, using="readonly") as cursor:
        cursor.execute(READING)
        for check in ONCE:
            _ask(cursor, outcome, check, Scope(entries=(), since=since, after=after))
    heard(waiting, waiting)


def _next_part(cursor: CursorWrapper, after: Point, through: Point) -> tuple[Scope, int, Point] | None:
    """The next entries, with the loans and dates that they touch; their lines; and the last of them."""
    cursor.execute(
        """SELECT created_xid, entry_id, lines FROM (
               SELECT o.created_xid::text, o.entry_id::text, e.line_count AS lines, o.created_xid AS xid,
                      sum(e.line_count) OVER (ORDER BY o.created_xid, o.entry_id) - e.line_count AS before
               FROM (SELECT * FROM outbox_message m
                     WHERE m.tenant_id = %(tenant)s AND (m.created_xid, m.entry_id) > (%(xid)s::xid8, %(entry)s::uuid)
                       AND (m.created_xid, m.entry_id) <= (%(last_xid)s::xid8, %(last_entry)s::uuid)
                     ORDER BY m.created_xid, m.entry_id LIMIT %(limit)s) o
               LEFT JOIN LATERAL (SELECT j.line_count FROM journal_entry j
                                  WHERE j.tenant_id = %(tenant)s AND j.id = o.entry_id OFFSET 0) e ON true) p
           WHERE coalesce(before, 0) < %(lines)s ORDER BY xid, entry_id::uuid""",
        {
            "tenant": current_tenant(),
            "xid": after[0],
            "entry": after[1],
            "last_xid": through[0],
            "last_entry": through[1],
            "limit": ENTRIES,
            "lines": LINES,
        },
    )
    rows = cursor.fetchall()
    if not rows:
        return None
    entries = [entry_id for _, entry_id, _ in rows]
    cursor.execute(
        """SELECT coalesce(array_agg(DISTINCT loan_id::text) FILTER (WHERE loan_id IS NOT NULL), '{}'),
                  coalesce(array_agg(DISTINCT effective_at), '{}')
           FROM journal_line WHERE tenant_id = %s AND entry_id = ANY (%s::uuid[])""",
        (current_tenant(), entries),
    )
    loans, dates = cursor.fetchone()
    return Scope(entries, loans, dates), sum(lines or 0 for *_, lines in rows), (rows[-1][0], rows[-1][1])


def _waiting(cursor: CursorWrapper, after: Point, through: Point) -> int:
    cursor.execute(
        """SELECT count(*) FROM outbox_message m
           WHERE m.tenant_id = %s AND (m.created_xid, m.entry_id) > (%s::xid8, %s::uuid)
             AND (m.created_xid, m.entry_id) <= (%s::xid8, %s::uuid)""",
        (current_tenant(), *after, *through),
    )
    return int(cursor.fetchone()[0])


# --- Both ------------------------------------------------------------------------------------------------------------


def _ask(cursor: CursorWrapper, outcome: Outcome, check: Check, scope: Scope) -> None:
    finding = outcome.findings[check.__name__]
    began = time.monotonic()
    finding.breaches += check(cursor, scope)
    finding.seconds += time.monotonic() - began


def _horizon(cursor: CursorWrapper) -> tuple[Point, datetime]:
    """The last entry before which none can appear any more, and the time."""
    cursor.execute(
        """SELECT o.created_xid::text, o.entry_id::text, clock_timestamp()
           FROM (SELECT 1) one
           LEFT JOIN LATERAL (
               SELECT m.created_xid, m.entry_id FROM outbox_message m
               WHERE m.tenant_id = %s AND m.created_xid < pg_snapshot_xmin(pg_current_snapshot())
               ORDER BY m.created_xid DESC, m.entry_id DESC LIMIT 1) o ON true""",
        (current_tenant(),),
    )
    xid, entry_id, now = cursor.fetchone()
    return ((xid, entry_id) if xid else START), now


def _extent(cursor: CursorWrapper) -> tuple[int, int]:
    cursor.execute(
        "SELECT count(*), coalesce(sum(line_count), 0) FROM journal_entry WHERE tenant_id = %s", (current_tenant(),)
    )
    entries, lines = cursor.fetchone()
    return int(entries), int(lines)


def _record(outcome: Outcome, actor: str) -> None:
    breaches: Sequence[dict[str, Any]] = outcome.breaches
    through = (None, None) if outcome.through == START else outcome.through
    with tenant_transaction(outcome.tenant_id) as cursor:
        cursor.execute(READING)
        cursor.execute(
            """INSERT INTO reconciliation_proof
                   (tenant_id, id, is_full, through_xid, through_entry_id, entry_count, line_count, breach_count, breaches,
                    mismatched_account_count, actor, started_at, finished_at)
               VALUES (%s, %s, %s, %s::xid8, %s, %s, %s, %s, %s::jsonb, %s, %s, %s, clock_timestamp())""",
            (
                outcome.tenant_id,
                str(uuid.uuid4()),
                outcome.is_full,
                *through,
                outcome.entries,
                outcome.lines,
                len(breaches),
                json.dumps(breaches),
                mismatched_accounts(cursor),
                actor,
                outcome.started_at,
            ),
        )
