"""How a person closes a break: matched with an entry, adjusted by a new one, or explained. Each keeps who and why, in the
transaction of the entry that it posts. Nothing is posted but through `Posting.post()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from django.db.backends.utils import CursorWrapper

from hpts.fields import given
from hpts.problems import FieldProblem, NotFound, ValidationFailed
from hpts.tenancy import current_tenant
from ledger.errors import EntryNotFound
from ledger.events import CREDIT, DEBIT, Line, ManualAdjustment
from ledger.posting import Posted, Posting
from reconciliation.accounts import BankAccount, bank_accounts, lock
from reconciliation.errors import AlreadyResolved, ResolutionRefused
from reconciliation.matching import TOLERANCE, Match, Movement
from reconciliation.reconciling import close_breaks, record_matches
from reconciliation.serializers import NewResolution


@dataclass(frozen=True, slots=True)
class _Break:
    """A break with the movements that it is about, and the dates that an adjustment may have."""

    break_id: str
    account: BankAccount
    bank: Movement | None
    ledger: Movement | None
    difference_minor: int
    value_date: date
    counted_on: date
    reference: str | None
    first_day: date

    @property
    def movements(self) -> tuple[list[Movement], list[Movement]]:
        return [self.bank] if self.bank else [], [self.ledger] if self.ledger else []


def resolve(posting: Posting, body: NewResolution, path: Mapping[str, str]) -> dict[str, Any]:
    """Close one break, and every other one whose lines are matched by it. Raises NotFound, AlreadyResolved, ResolutionRefused,
    and what the ledger refuses."""
    _check_members(body)
    found = _locked(posting.cursor, path["break_id"])
    entry_id: str | None = None
    match: Match | None = None
    if body.action == "match":
        entry_id = given(body.journal_entry_id) or (found.ledger.entry_id if found.ledger and found.bank else None)
        match = _decided(posting.cursor, found, entry_id)
    elif body.action == "adjust":
        posted = _adjust(posting, found, str(given(body.account_code)), body.reason)
        entry_id = posted.journal_entry_id
        match = _adjusted(found, posted)
    match_id = _record(posting, found, match)
    actor = posting.origin.actor
    closed = [(found.break_id, body.action, body.reason, match_id)]
    close_breaks(posting.cursor, actor, closed, entry_id)
    others = [(other, "match", body.reason, match_id) for other in _others_matched(posting.cursor, found, match)]
    close_breaks(posting.cursor, actor, others)
    answer = {"break_id": found.break_id, "state": "resolved"}
    return answer | ({"journal_entry_id": entry_id} if entry_id else {})


def _check_members(body: NewResolution) -> None:
    """The members that an action needs, and no others."""
    has = {"journal_entry_id": given(body.journal_entry_id), "account_code": given(body.account_code)}
    takes = {"match": "journal_entry_id", "adjust": "account_code"}.get(body.action)
    problems = [
        FieldProblem(name, "unknown_field", f"The action {body.action} does not take this.")
        for name, value in has.items()
        if value is not None and name != takes
    ]
    if body.action == "adjust" and has["account_code"] is None:
        problems.append(FieldProblem("account_code", "required", "Name the account on the other side."))
    if problems:
        raise ValidationFailed("One or more fields are not valid.", problems)


# --- The break -------------------------------------------------------------------------------------------------------


def _locked(cursor: CursorWrapper, break_id: str) -> _Break:
    """The break, read under the lock of its GL account. Raises NotFound, AlreadyResolved."""
    cursor.execute(
        "SELECT bank_account_ref FROM reconciliation_break WHERE tenant_id = %s AND id = %s",
        (current_tenant(), break_id),
    )
    row = cursor.fetchone()
    if row is None:
        raise NotFound(f"There is no break {break_id}.")
    (account,) = bank_accounts(cursor, row[0])
    lock(cursor, account)
    cursor.execute(
        f"""SELECT r.action, b.difference_minor, b.value_date, b.counted_on, b.reference,
                  l.statement_id::text, l.number, l.value_date, l.amount_minor,
                  j.entry_id::text, j.sequence, j.effective_at, {NET},
                  (SELECT min(s.from_date) FROM bank_statement s
                   WHERE s.tenant_id = b.tenant_id AND s.bank_account_ref = b.bank_account_ref)
           FROM reconciliation_break b
           LEFT JOIN reconciliation_resolution r ON r.tenant_id = b.tenant_id AND r.break_id = b.id
           LEFT JOIN bank_statement_line l
                ON l.tenant_id = b.tenant_id AND l.statement_id = b.statement_id AND l.number = b.number
           LEFT JOIN journal_line j
                ON j.tenant_id = b.tenant_id AND j.entry_id = b.entry_id AND j.sequence = b.sequence
           WHERE b.tenant_id = %s AND b.id = %s""",
        (current_tenant(), break_id),
    )
    row = cursor.fetchone()
    if row[0] is not None:
        raise AlreadyResolved(f"The break {break_id} has been resolved.")
    return _Break(
        break_id=break_id,
        account=account,
        bank=Movement((row[5], row[6]), row[7], row[8]) if row[5] else None,
        ledger=Movement((row[9], row[10]), row[11], row[12]) if row[9] else None,
        difference_minor=row[1],
        value_date=row[2],
        counted_on=row[3],
        reference=row[4],
        first_day=row[13],
    )


NET = "CASE j.direction WHEN 'DR' THEN j.amount_minor ELSE -j.amount_minor END"


# --- By a match ------------------------------------------------------------------------------------------------------


def _decided(cursor: CursorWrapper, found: _Break, entry_id: str | None) -> Match:
    """The break's line of the bank with an entry's lines; a line of the books alone with the entry that takes it back."""
    if found.bank is None and found.ledger is None:
        raise ResolutionRefused("An opening balance has no line that could be matched: adjust or explain it.")
    if entry_id is None:
        needed = FieldProblem("journal_entry_id", "required", "Name the entry that the line belongs to.")
        raise ValidationFailed("One or more fields are not valid.", [needed])
    lines = _open_lines(cursor, found.account, entry_id)
    bank, ledger = found.movements
    ledger = lines if bank else [*ledger, *(line for line in lines if line.key not in {own.key for own in ledger})]
    _check_sum(bank, ledger)
    return Match("decision", tuple(bank), tuple(ledger))


def _open_lines(cursor: CursorWrapper, account: BankAccount, entry_id: str) -> list[Movement]:
    """The entry's unmatched lines on the bank's GL account. Raises EntryNotFound, ResolutionRefused."""
    cursor.execute(
        f"""SELECT j.entry_id::text, j.sequence, j.effective_at, {NET},
                  j.account_code = %(code)s AND j.currency = %(currency)s AND j.layer = 'SETTLED'
                  AND NOT EXISTS (SELECT FROM bank_match_journal_line x
                                  WHERE x.tenant_id = j.tenant_id AND x.entry_id = j.entry_id AND x.sequence = j.sequence)
           FROM journal_line j WHERE j.tenant_id = %(tenant)s AND j.entry_id = %(entry)s ORDER BY j.sequence""",
        {"tenant": current_tenant(), "entry": entry_id, "code": account.account_code, "currency": account.currency},
    )
    rows = cursor.fetchall()
    if not rows:
        raise EntryNotFound(f"There is no journal entry {entry_id}.")
    lines = [Movement((row[0], row[1]), row[2], row[3]) for row in rows if row[4]]
    if not lines:
        raise ResolutionRefused(f"The entry has no unmatched settled line on account {account.account_code}.")
    return lines


def _check_sum(bank: list[Movement], ledger: list[Movement]) -> None:
    theirs, ours = (sum(movement.amount_minor for movement in side) for side in (bank, ledger))
    if theirs != ours or len(bank) + len(ledger) < 2:
        raise ResolutionRefused(f"The bank's side is {theirs} and the books' is {ours}: they are not one movement.")


def _record(posting: Posting, found: _Break, match: Match | None) -> str | None:
    if match is None:
        return None
    ends = {movement.key[0]: found.counted_on for movement in match.bank}
    claimed = record_matches(posting.cursor, found.account, posting.origin.actor, [match], ends)
    return claimed[match.ledger[0].key][0]


def _others_matched(cursor: CursorWrapper, found: _Break, match: Match | None) -> list[str]:
    """Other open breaks about a line of the books that the match has claimed."""
    if match is None:
        return []
    entries, sequences = zip(*(movement.key for movement in match.ledger), strict=True)
    cursor.execute(
        """SELECT b.id::text FROM reconciliation_break b
           JOIN unnest(%(entries)s::uuid[], %(sequences)s::smallint[]) AS m (entry_id, sequence)
                ON m.entry_id = b.entry_id AND m.sequence = b.sequence
           WHERE b.tenant_id = %(tenant)s AND b.bank_account_ref = %(ref)s AND b.id <> %(own)s
             AND NOT EXISTS (SELECT FROM reconciliation_resolution r WHERE r.tenant_id = b.tenant_id AND r.break_id = b.id)""",
        {
            "tenant": current_tenant(),
            "ref": found.account.ref,
            "own": found.break_id,
            "entries": list(entries),
            "sequences": list(sequences),
        },
    )
    return [row[0] for row in cursor.fetchall()]


# --- By an entry -----------------------------------------------------------------------------------------------------


def _adjust(posting: Posting, found: _Break, account_code: str, reason: str) -> Posted:
    """Bring the books to the bank by a manual adjustment: the bank's GL account against `account_code`."""
    if found.difference_minor == 0:
        raise ResolutionRefused("Nothing differs in amount, so there is nothing to post: match or explain it.")
    if account_code == found.account.account_code:
        _refuse_account("This is the bank's own account.")
    if account_code in posting.state.chart and posting.state.chart[account_code].per_loan:
        _refuse_account(f"Account {account_code} is kept per loan: post to the loan, then match the entry.")
    amount, currency = abs(found.difference_minor), found.account.currency
    own, other = (DEBIT, CREDIT) if found.difference_minor > 0 else (CREDIT, DEBIT)
    posted = posting.post(
        ManualAdjustment(
            effective_at=_adjustment_date(posting, found),
            description=reason,
            lines=(
                Line(found.account.account_code, own, amount, currency, external_ref=found.reference),
                Line(account_code, other, amount, currency),
            ),
            facts={"break_id": found.break_id},
        )
    )
    posting.flush()
    return posted


def _refuse_account(message: str) -> None:
    problem = FieldProblem("account_code", "not_a_choice", message)
    raise ValidationFailed("One or more fields are not valid.", [problem])


def _adjustment_date(posting: Posting, found: _Break) -> date:
    """The day of the line that differs, or the first one after it that the books are open for. What makes up for an opening
    balance is dated before all statements, and farther than a line of theirs could match it."""
    day = found.value_date
    if found.bank is None and found.ledger is None:
        day = found.first_day - TOLERANCE - timedelta(days=1)
    closed = posting.state.closed_through
    if closed is not None and day <= closed:
        day = closed + timedelta(days=1)
    return min(day, posting.today)


def _adjusted(found: _Break, posted: Posted) -> Match | None:
    """The break's lines and the adjustment's own are one; an opening balance has no lines to match."""
    bank, ledger = found.movements
    if not bank and not ledger:
        return None
    own = Movement((posted.journal_entry_id, 1), posted.effective_at, found.difference_minor)
    return Match("adjustment", tuple(bank), (*ledger, own))
