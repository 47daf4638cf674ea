"""Reconciling one bank account: what is unmatched on both sides goes through reconciliation/matching.py, and its answer
becomes matches and breaks. Reads the books, posts nothing.

One rule holds for every account afterwards: closing balance minus ledger is the sum of what is unmatched, bank minus books. What
no line explains (an opening balance that the books do not have) is a break of its own, so that the rule has no exception.
A matched line of the books counts where the bank's line does, also when their dates lie on two sides of a statement's end.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from django.db.backends.utils import CursorWrapper

from hpts.tenancy import current_tenant
from ledger.notices import BREAK_OPENED, notify
from ledger.queries import timestamp
from reconciliation import matching
from reconciliation.accounts import BankAccount, lock
from reconciliation.matching import TOLERANCE, Match, Movement

OPENING = "opening balance"
SUPERSEDED = "The lines of this break differ in another way now, or no longer."
CHUNK = 10_000

NET = "CASE l.direction WHEN 'DR' THEN l.amount_minor ELSE -l.amount_minor END"
OF_ACCOUNT = """l.tenant_id = %(tenant)s AND l.account_code = %(code)s AND l.currency = %(currency)s
              AND l.layer = 'SETTLED'"""
# What of the books' balance counts on another day than its own, or for another bank account on the same GL account.
ACROSS = """
    (SELECT coalesce(sum(x.amount_minor), 0) FROM bank_match_journal_line x
     WHERE x.tenant_id = %(tenant)s AND x.bank_account_ref = %(ref)s
       AND x.effective_at > x.counted_on AND x.counted_on <= %(through)s AND x.effective_at > %(through)s)
  - (SELECT coalesce(sum(x.amount_minor), 0) FROM bank_match_journal_line x
     WHERE x.tenant_id = %(tenant)s AND x.bank_account_ref = %(ref)s
       AND x.counted_on > %(through)s AND x.effective_at <= %(through)s)
  - (SELECT coalesce(sum(x.amount_minor), 0) FROM bank_match_journal_line x
     JOIN bank_account a ON a.tenant_id = x.tenant_id AND a.ref = x.bank_account_ref
     WHERE x.tenant_id = %(tenant)s AND x.bank_account_ref <> %(ref)s
       AND a.account_code = %(code)s AND a.currency = %(currency)s AND x.effective_at <= %(through)s)"""
LEDGER_MINOR = f"""
    coalesce((SELECT b.dr_minor - b.cr_minor
              FROM account_balances(%(tenant)s, %(currency)s, 'SETTLED', %(through)s::date, %(code)s) b), 0) + {ACROSS}"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one reconciliation has changed: lines of the bank that it matched, breaks that it opened."""

    matched: int = 0
    opened: int = 0


@dataclass(frozen=True, slots=True)
class _Period:
    """A statement's dates, and its closing balance."""

    from_date: date
    to_date: date
    closing_balance_minor: int


@dataclass(frozen=True, slots=True)
class _OpenBreak:
    break_id: str
    kind: str
    bank: tuple[str, int] | None
    ledger: tuple[str, int] | None
    difference_minor: int
    action: str | None

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.kind, self.bank, self.ledger, self.difference_minor)

    @property
    def is_opening(self) -> bool:
        return self.bank is None and self.ledger is None


def reconcile(cursor: CursorWrapper, account: BankAccount, actor: str, as_of: date = date.max) -> Outcome:
    """Match what can be matched of the statements that end on or before `as_of`, open the breaks of the rest, and close those
    that are none any more. Running it again changes nothing."""
    lock(cursor, account)
    periods = _periods(cursor, account, as_of)
    if not periods:
        return Outcome()
    counted_on: dict[str, date] = {}
    bank = _bank_lines(cursor, account, as_of, counted_on)
    latest = periods[-1]
    days = [latest.to_date, *(movement.on for movement in bank)]
    ledger, ledger_minor = _ledger_lines(
        cursor,
        account,
        since=_shifted(min(each.from_date for each in periods), -TOLERANCE),
        until=_shifted(max(days), TOLERANCE),
        through=latest.to_date,
    )
    covered = _Coverage(periods)
    ledger = [covered.placed(movement) for movement in ledger]

    known = _known_bank_lines(cursor, account, bank)
    matches, bank_left, ledger_left = matching.match(bank, ledger, known)
    match_ids = record_matches(cursor, account, actor, matches, counted_on)
    ledger_minor += _moved_across(matches, counted_on, latest.to_date)

    past = _breaks(cursor, account, as_of)
    explained = _explained(past, {movement.key for movement in (*bank_left, *ledger_left)})
    wanted = matching.breaks(
        [movement for movement in bank_left if movement.key not in explained],
        [movement for movement in ledger_left if movement.key not in explained],
        [*known, *(movement for each in matches for movement in each.bank)],
        [
            *_known_ledger_lines(cursor, account, ledger_left),
            *(movement for each in matches for movement in each.ledger),
        ],
    )
    opened = _keep_breaks(cursor, account, actor, wanted, past, match_ids, counted_on, covered)

    unmatched = sum(movement.amount_minor for movement in bank_left)
    unmatched -= sum(movement.amount_minor for movement in ledger_left if movement.in_period)
    unexplained = latest.closing_balance_minor - ledger_minor - unmatched
    opened += _keep_opening(cursor, account, actor, unexplained, past, latest)
    return Outcome(sum(len(each.bank) for each in matches), opened)


def _explained(past: Sequence[_OpenBreak], left: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Lines that need no break any more. When one line of an explained pair has been matched since, the other one is alone, and
    nobody has explained that."""
    keys: set[tuple[str, int]] = set()
    for each in past:
        own = {key for key in (each.bank, each.ledger) if key is not None}
        if each.action == "explain" and own <= left:
            keys |= own
    return keys


# --- What is there ---------------------------------------------------------------------------------------------------


def _rows(cursor: CursorWrapper, sql: str, **params: Any) -> list[tuple[Any, ...]]:
    cursor.execute(sql, {"tenant": current_tenant(), **params})
    rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


def _shifted(day: date, by: timedelta) -> date:
    return date.fromordinal(min(max(day.toordinal() + by.days, 1), date.max.toordinal()))


def _periods(cursor: CursorWrapper, account: BankAccount, as_of: date) -> list[_Period]:
    """The statements' periods, the latest last."""
    rows = _rows(
        cursor,
        """SELECT from_date, to_date, closing_balance_minor FROM bank_statement
           WHERE tenant_id = %(tenant)s AND bank_account_ref = %(ref)s AND to_date <= %(as_of)s
           ORDER BY to_date, imported_at, id""",
        ref=account.ref,
        as_of=as_of,
    )
    return [_Period(*row) for row in rows]


class _Coverage:
    """Which dates statements cover, and when the first statement that covers a date ends."""

    def __init__(self, periods: Sequence[_Period]) -> None:
        self._periods = periods
        self._ends: dict[date, date | None] = {}

    def end(self, day: date) -> date | None:
        if day not in self._ends:
            ends = (each.to_date for each in self._periods if each.from_date <= day <= each.to_date)
            self._ends[day] = min(ends, default=None)
        return self._ends[day]

    def placed(self, movement: Movement) -> Movement:
        if self.end(movement.on) is not None:
            return movement
        return Movement(
            movement.key,
            movement.on,
            movement.amount_minor,
            movement.reference,
            movement.mark,
            movement.reverses,
            False,
        )


def _bank_lines(
    cursor: CursorWrapper, account: BankAccount, as_of: date, counted_on: dict[str, date]
) -> list[Movement]:
    """Lines of statements that no match has claimed; `counted_on` learns when their statements end."""
    rows = _rows(
        cursor,
        """SELECT l.statement_id::text, l.number, l.value_date, l.amount_minor, l.reference, l.description, s.to_date
           FROM bank_statement s
           JOIN bank_statement_line l ON l.tenant_id = s.tenant_id AND l.statement_id = s.id
           WHERE s.tenant_id = %(tenant)s AND s.bank_account_ref = %(ref)s AND s.to_date <= %(as_of)s
             AND NOT EXISTS (SELECT FROM bank_match_statement_line x
                             WHERE x.tenant_id = l.tenant_id AND x.statement_id = l.statement_id AND x.number = l.number)""",
        ref=account.ref,
        as_of=as_of,
    )
    for row in rows:
        counted_on[row[0]] = row[6]
    return [Movement((row[0], row[1]), row[2], row[3], row[4], row[5]) for row in rows]


def _ledger_lines(
    cursor: CursorWrapper, account: BankAccount, *, since: date, until: date, through: date
) -> tuple[list[Movement], int]:
    """Unmatched lines of the books in a span of dates, and the books' balance through a date. One statement, so that both
    are of one moment: an entry posted between two would look like a difference."""
    rows = _rows(
        cursor,
        f"""SELECT l.entry_id::text, l.sequence, l.effective_at, {NET}, l.external_ref, l.loan_id::text,
                   (SELECT e.reverses_entry_id::text FROM journal_entry e WHERE e.tenant_id = l.tenant_id AND e.id = l.entry_id)
            FROM journal_line l
            WHERE {OF_ACCOUNT} AND l.effective_at BETWEEN %(since)s AND %(until)s
              AND NOT EXISTS (SELECT FROM bank_match_journal_line x
                              WHERE x.tenant_id = l.tenant_id AND x.entry_id = l.entry_id AND x.sequence = l.sequence)
            UNION ALL
            SELECT NULL, NULL, NULL, ({LEDGER_MINOR}), NULL, NULL, NULL""",
        ref=account.ref,
        code=account.account_code,
        currency=account.currency,
        since=since,
        until=until,
        through=through,
    )
    lines = [Movement((row[0], row[1]), row[2], int(row[3]), *row[4:]) for row in rows if row[0] is not None]
    (balance,) = (int(row[3]) for row in rows if row[0] is None)
    return lines, balance


def _known_bank_lines(cursor: CursorWrapper, account: BankAccount, bank: Sequence[Movement]) -> list[Movement]:
    """Matched lines of the bank that one of these may be a copy of."""
    if not bank:
        return []
    rows = _rows(
        cursor,
        """SELECT l.statement_id::text, l.number, l.value_date, l.amount_minor, l.reference, l.description
           FROM bank_statement s
           JOIN bank_statement_line l ON l.tenant_id = s.tenant_id AND l.statement_id = s.id
           JOIN bank_match_statement_line x
                ON x.tenant_id = l.tenant_id AND x.statement_id = l.statement_id AND x.number = l.number
           WHERE s.tenant_id = %(tenant)s AND s.bank_account_ref = %(ref)s
             AND l.value_date BETWEEN %(since)s AND %(until)s AND l.amount_minor = ANY (%(amounts)s::bigint[])""",
        ref=account.ref,
        since=_shifted(min(movement.on for movement in bank), -TOLERANCE),
        until=_shifted(max(movement.on for movement in bank), TOLERANCE),
        amounts=list({movement.amount_minor for movement in bank}),
    )
    return [Movement((row[0], row[1]), *row[2:]) for row in rows]


def _known_ledger_lines(cursor: CursorWrapper, account: BankAccount, ledger: Sequence[Movement]) -> list[Movement]:
    """Matched lines of the books that one of these may be a copy of."""
    if not ledger:
        return []
    rows = _rows(
        cursor,
        """SELECT x.entry_id::text, x.sequence, x.effective_at, x.amount_minor, l.external_ref, l.loan_id::text
           FROM bank_match_journal_line x
           JOIN journal_line l ON l.tenant_id = x.tenant_id AND l.entry_id = x.entry_id AND l.sequence = x.sequence
           WHERE x.tenant_id = %(tenant)s AND x.bank_account_ref = %(ref)s
             AND x.effective_at BETWEEN %(since)s AND %(until)s AND x.amount_minor = ANY (%(amounts)s::bigint[])""",
        ref=account.ref,
        since=_shifted(min(movement.on for movement in ledger), -TOLERANCE),
        until=_shifted(max(movement.on for movement in ledger), TOLERANCE),
        amounts=list({movement.amount_minor for movement in ledger}),
    )
    return [Movement((row[0], row[1]), *row[2:]) for row in rows]


def _breaks(cursor: CursorWrapper, account: BankAccount, as_of: date) -> list[_OpenBreak]:
    """Breaks that are open or explained, oldest first."""
    rows = _rows(
        cursor,
        """SELECT b.id::text, b.kind, b.statement_id::text, b.number, b.entry_id::text, b.sequence, b.difference_minor, r.action
           FROM reconciliation_break b
           LEFT JOIN reconciliation_resolution r ON r.tenant_id = b.tenant_id AND r.break_id = b.id
           WHERE b.tenant_id = %(tenant)s AND b.bank_account_ref = %(ref)s AND b.counted_on <= %(as_of)s
             AND (r.action IS NULL OR r.action = 'explain')
           ORDER BY b.opened_at, b.id""",
        ref=account.ref,
        as_of=as_of,
    )
    return [
        _OpenBreak(
            row[0], row[1], (row[2], row[3]) if row[2] else None, (row[4], row[5]) if row[4] else None, row[6], row[7]
        )
        for row in rows
    ]


# --- What becomes of it ----------------------------------------------------------------------------------------------


def record_matches(
    cursor: CursorWrapper, account: BankAccount, actor: str, matches: Sequence[Match], counted_on: dict[str, date]
) -> dict[tuple[str, int], tuple[str, str]]:
    """Write matches, lines first, as the walls want it. Gives each claimed line's match and rule, by the line's key."""
    claimed: dict[tuple[str, int], tuple[str, str]] = {}
    heads, bank_lines, ledger_lines = [], [], []
    for each in matches:
        match_id = str(uuid.uuid4())
        on = _counted(each, counted_on)
        heads.append((match_id, each.rule, on))
        bank_lines += [(match_id, *movement.key) for movement in each.bank]
        ledger_lines += [(match_id, *movement.key, movement.on, on, movement.amount_minor) for movement in each.ledger]
        claimed |= {movement.key: (match_id, each.rule) for movement in (*each.bank, *each.ledger)}
    tenant = current_tenant()
    for chunk in _chunks(bank_lines):
        cursor.execute(
            """INSERT INTO bank_match_statement_line (tenant_id, match_id, statement_id, number)
               SELECT %s, * FROM unnest(%s::uuid[], %s::uuid[], %s::int[])""",
            (tenant, *chunk),
        )
    for chunk in _chunks(ledger_lines):
        cursor.execute(
            """INSERT INTO bank_match_journal_line
                   (tenant_id, bank_account_ref, match_id, entry_id, sequence, effective_at, counted_on, amount_minor)
               SELECT %s, %s, * FROM unnest(%s::uuid[], %s::uuid[], %s::smallint[], %s::date[], %s::date[], %s::bigint[])""",
            (tenant, account.ref, *chunk),
        )
    for chunk in _chunks(heads):
        cursor.execute(
            """INSERT INTO bank_match (tenant_id, bank_account_ref, actor, id, rule, counted_on)
               SELECT %s, %s, %s, * FROM unnest(%s::uuid[], %s::text[], %s::date[])""",
            (tenant, account.ref, actor, *chunk),
        )
    return claimed


def _counted(each: Match, counted_on: dict[str, date]) -> date:
    """From which day on a match counts: the last day of the bank's statement; of the books alone, the first line's."""
    ends = [counted_on[movement.key[0]] for movement in each.bank]
    return min(ends or [movement.on for movement in each.ledger])


def _moved_across(matches: Iterable[Match], counted_on: dict[str, date], through: date) -> int:
    """What new matches add to the books' balance through a day, because they count on another side of it than their lines."""
    return sum(
        movement.amount_minor * ((_counted(each, counted_on) <= through) - (movement.on <= through))
        for each in matches
        for movement in each.ledger
    )


def _chunks(rows: Sequence[tuple[Any, ...]]) -> Iterable[tuple[list[Any], ...]]:
    """Columns of some thousand rows at a time."""
    for start in range(0, len(rows), CHUNK):
        yield tuple(list(column) for column in zip(*rows[start : start + CHUNK], strict=True))


def _keep_breaks(
    cursor: CursorWrapper,
    account: BankAccount,
    actor: str,
    wanted: Sequence[matching.Break],
    past: Sequence[_OpenBreak],
    match_ids: dict[tuple[str, int], tuple[str, str]],
    counted_on: dict[str, date],
    covered: _Coverage,
) -> int:
    """Open what is new, close what is none any more; gives how many were opened."""
    known = {each.key: each for each in past if each.action is None and not each.is_opening}
    new = []
    for each in wanted:
        keys = (each.bank.key if each.bank else None, each.ledger.key if each.ledger else None)
        if known.pop((each.kind, *keys, each.difference_minor), None) is None:
            new.append(each)
    resolutions = []
    for gone in known.values():
        match_id, rule = match_ids.get(gone.bank or ("", 0)) or match_ids.get(gone.ledger or ("", 0)) or (None, "")
        reason = f"Matched by the rule {rule}." if match_id else SUPERSEDED
        resolutions.append((gone.break_id, "match" if match_id else "superseded", reason, match_id))
    close_breaks(cursor, actor, resolutions)
    open_breaks(cursor, account, [_break_row(each, counted_on, covered) for each in new])
    return len(new)


def _break_row(each: matching.Break, counted_on: dict[str, date], covered: _Coverage) -> tuple[Any, ...]:
    movement = each.bank or each.ledger
    assert movement is not None
    references = [side.reference for side in (each.bank, each.ledger) if side is not None and side.reference]
    amount = each.difference_minor if each.kind == "amount_differs" else movement.amount_minor
    ends = counted_on[each.bank.key[0]] if each.bank else covered.end(movement.on) or movement.on
    bank, ledger = (side.key if side is not None else (None, None) for side in (each.bank, each.ledger))
    reference = references[0] if references else None
    return (each.kind, abs(amount), each.difference_minor, movement.on, ends, reference, *bank, *ledger)


def open_breaks(cursor: CursorWrapper, account: BankAccount, rows: Sequence[tuple[Any, ...]]) -> None:
    """Open breaks, and have them told: by one alert for all of them, and each by a notice."""
    if not rows:
        return
    alert_id = str(uuid.uuid4())
    cursor.execute(
        """INSERT INTO reconciliation_alert (tenant_id, id, bank_account_ref, break_count) VALUES (%s, %s, %s, %s)
           RETURNING created_at""",
        (current_tenant(), alert_id, account.ref, len(rows)),
    )
    (opened_at,) = cursor.fetchone()
    for chunk in _chunks([(str(uuid.uuid4()), *row) for row in rows]):
        notify(cursor, BREAK_OPENED, _notices(account, opened_at, zip(*chunk, strict=True)))
        cursor.execute(
            """INSERT INTO reconciliation_break
                   (tenant_id, bank_account_ref, alert_id, id, kind, amount_minor, difference_minor, value_date, counted_on,
                    reference, statement_id, number, entry_id, sequence)
               SELECT %s, %s, %s, * FROM unnest(%s::uuid[], %s::text[], %s::bigint[], %s::bigint[], %s::date[], %s::date[],
                                                %s::text[], %s::uuid[], %s::int[], %s::uuid[], %s::smallint[])""",
            (current_tenant(), account.ref, alert_id, *chunk),
        )


def _notices(account: BankAccount, opened_at: datetime, rows: Iterable[tuple[Any, ...]]) -> dict[str, dict[str, Any]]:
    """What is told of each break, by its id."""
    told = {}
    for break_id, kind, amount, difference, value_date, _, reference, _, _, entry_id, _ in rows:
        told[break_id] = {
            "break_id": break_id,
            "occurred_at": timestamp(opened_at),
            "kind": kind,
            "bank_account_ref": account.ref,
            "currency": account.currency,
            "amount_minor": str(amount),
            "difference_minor": str(difference),
            "value_date": value_date.isoformat(),
        }
        told[break_id] |= {} if reference is None else {"reference": reference}
        told[break_id] |= {} if entry_id is None else {"journal_entry_id": entry_id}
    return told


def close_breaks(
    cursor: CursorWrapper, actor: str, rows: Sequence[tuple[Any, ...]], entry_id: str | None = None
) -> None:
    """Resolve breaks; each row: break, action, reason, match."""
    for chunk in _chunks(rows):
        cursor.execute(
            """INSERT INTO reconciliation_resolution (tenant_id, actor, entry_id, break_id, action, reason, match_id)
               SELECT %s, %s, %s::uuid, * FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::uuid[])""",
            (current_tenant(), actor, entry_id, *chunk),
        )


def _keep_opening(
    cursor: CursorWrapper,
    account: BankAccount,
    actor: str,
    unexplained: int,
    past: Sequence[_OpenBreak],
    latest: _Period,
) -> int:
    """What no line explains is one break, open or explained as long as it is the same amount."""
    openings = [each for each in past if each.is_opening]
    if openings and openings[-1].difference_minor == unexplained:
        return 0
    close_breaks(
        cursor, actor, [(each.break_id, "superseded", SUPERSEDED, None) for each in openings if each.action is None]
    )
    if unexplained:
        row = ("amount_differs", abs(unexplained), unexplained, latest.from_date, latest.to_date, OPENING)
        open_breaks(cursor, account, [(*row, None, None, None, None)])
    return int(bool(unexplained))
