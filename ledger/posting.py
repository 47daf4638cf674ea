"""The write path: `post()` is the only writer of the journal.

A posting is one transaction in two round trips beside BEGIN and COMMIT: `open_posting` takes the locks and answers the
state, pure rules decide, `record_posting` writes entries, lines, balances, key and outbox in one go. Both are SQL
functions (migrations/0003_posting.sql). Between the two nothing is asked of anyone: no query, no broker, no network.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal, TypeVar

import msgspec
from django.db import DatabaseError, Error
from django.db.backends.utils import CursorWrapper

from hpts import metrics
from hpts.pipeline import Statement
from hpts.problems import Busy, InternalError, Problem
from hpts.tenancy import SNAPSHOT, TenantTransaction, opened_transaction
from ledger import document
from ledger.chart import FLOORED, Chart
from ledger.errors import (
    BY_CONSTRAINT,
    AccountNotFound,
    AmountExceedsBalance,
    AmountOutOfRange,
    BorrowerMismatch,
    CurrencyMismatch,
    EffectiveDateRefused,
    FieldProblem,
    LoanNotFound,
    PeriodClosed,
    UnbalancedEntry,
)
from ledger.events import (
    DEBIT,
    Accrual,
    ChargeOff,
    DisbursementSettled,
    Event,
    EventKind,
    Line,
    ManualAdjustment,
    MoneyEvent,
    PaymentReceived,
    PaymentReturned,
    PaymentSettled,
    PaymentUnallocated,
    Refinance,
    Reversal,
)
from ledger.money import MAX_MINOR
from ledger.queries import has_recovery, read_chart, suspense_allocations, unposted_interest, waterfalls
from ledger.rules import RULES
from ledger.rules.ending import accrued_with
from ledger.rules.payment import returned_entry, undone
from ledger.state import AllocationState, EntryState, LoanState, State, Waterfalls

OPEN = Statement("SELECT locked, fingerprint, response, state FROM open_posting($1, $2, $3, $4, $5, $6, $7)")
RECORD = Statement("SELECT record_posting($1, $2, $3, $4)")
# What is posted to see what it would be is taken back. Not by a cursor: psycopg forgets what is prepared when one rolls back.
SAVEPOINT = Statement("SAVEPOINT trial", prepared=False)
ROLLBACK_TO_SAVEPOINT = Statement("ROLLBACK TO SAVEPOINT trial", prepared=False)
# A boolean in PostgreSQL's binary form.
TRUE = b"\x01"
ATTEMPTS = 4
# A batch of thousands of loans may take longer than a payment is allowed to.
LARGE_LOANS = 1_000
LARGE_LINES = 2_000
LARGE_TIMEOUT = Statement("SET LOCAL statement_timeout = '60s'")
# Serialization failure, deadlock, lock timeout: the transaction did nothing and may be run again.
RETRIED = {"40001", "40P01", "55P03"}

T = TypeVar("T")
logger = logging.getLogger("hpts.posting")


@dataclass(frozen=True, slots=True)
class Origin:
    """Who posts, and in which correlation: what every entry of a request shares."""

    tenant_id: str
    actor: str
    correlation_id: str


@dataclass(frozen=True, slots=True)
class Touches:
    """What a posting will look at, known before it opens: its loans are locked and read in the first round trip.

    `since`: the earliest effective date of the events (None: today); `accrual`: the date that accruals are about, then
    `since` is the day before it. `mode`: "close" waits for all postings of the tenant and keeps new ones waiting, "read" takes
    no lock.
    """

    loans: Sequence[str] = ()
    entries: Sequence[str] = ()
    since: date | None = None
    accrual: date | None = None
    mode: Literal["post", "close", "read"] = "post"

    @classmethod
    def of(cls, event: Event) -> Touches:
        """What one event by itself touches."""
        if isinstance(event, Accrual):
            return cls(event.loan_ids, since=day_before(event.effective_at), accrual=event.effective_at)
        about = entry_of(event)
        return cls(event.loan_ids, (about,) if about else (), since=event.effective_at)

    def __or__(self, other: Touches) -> Touches:
        """Both together: what a batch touches. The earlier dates win; accruals of two dates do not go together."""
        if self.accrual and other.accrual and self.accrual != other.accrual:
            raise ValueError("accruals of two dates")
        sinces = [each.since for each in (self, other) if each.since is not None]
        return Touches(
            tuple(dict.fromkeys((*self.loans, *other.loans))),
            tuple(dict.fromkeys((*self.entries, *other.entries))),
            min(sinces, default=None),
            self.accrual or other.accrual,
            "close" if "close" in (self.mode, other.mode) else self.mode,
        )


def entry_of(event: Event) -> str | None:
    """The entry that an event is about, beside the loans that it names."""
    if isinstance(event, Reversal):
        return event.reverses_entry_id
    if isinstance(event, DisbursementSettled):
        return event.disbursement_event_id
    if isinstance(event, PaymentSettled | PaymentReturned | PaymentUnallocated):
        return event.payment_event_id
    return None


def day_before(day: date) -> date:
    return day - timedelta(days=1) if day > date.min else day


@dataclass(frozen=True, slots=True)
class Posted:
    """A journal entry as it will be recorded when the transaction commits."""

    journal_entry_id: str
    event_type: str
    effective_at: date
    posted_at: str
    correlation_id: str
    lines: tuple[Line, ...]
    reverses_entry_id: str | None = None


class _Loan(msgspec.Struct):
    loan_id: str
    borrower_id: str
    program_id: str
    currency: str
    opened_on: date
    principal_limit_minor: int | None
    version: int
    draws: int
    ended_as: str | None
    day_count_convention: str
    waterfall: str
    accrual_mode: str
    balances: list[tuple[str, str, int]] | None


class _Entry(msgspec.Struct):
    entry_id: str
    event_type: str
    effective_at: date
    document: str
    settles_entry_id: str | None
    reversed_by: str | None


class _State(msgspec.Struct):
    posted_at: str
    today: date
    closed_through: date | None
    loans: list[_Loan] | None
    entries: list[_Entry] | None
    later: list[tuple[str, date, str, str, int]] | None
    accruals: list[tuple[str, int, bool]] | None


_decode_state = msgspec.json.Decoder(_State).decode
_charts: dict[str, Chart] = {}


class Posting:
    """One transaction's postings: the state under the locks, and what `record()` will write."""

    def __init__(self, transaction: TenantTransaction, origin: Origin, touches: Touches, opened: bytes) -> None:
        state = _decode_state(opened)
        self.since = touches.since or state.today
        self.read_on = touches.accrual or self.since
        self._waterfalls: dict[str, Waterfalls] = {}
        self.transaction = transaction
        self.origin = origin
        self.touches = touches
        self.posted_at = state.posted_at
        self.state = State(
            today=state.today,
            chart=_chart(transaction, origin.tenant_id),
            loans=_loan_states(state),
            entries=_entry_states(state.entries) if state.entries else {},
            closed_through=state.closed_through,
        )
        self._staged: list[tuple[str, dict[str, Any]]] = []
        self._kinds: list[EventKind] = []
        # The kinds of what is written, counted when it is committed.
        self.written: list[EventKind] = []

    @property
    def cursor(self) -> CursorWrapper:
        """For what is asked beside the two round trips."""
        return self.transaction.cursor

    @property
    def today(self) -> date:
        """Today in the tenant's time zone."""
        return self.state.today

    def decide(self, event: Event) -> tuple[Line, ...]:
        """The event's lines by its rule, proven; nothing is staged. Raises the rule's refusals."""
        self._meet_accounts(event)
        self.admit(event)
        self._provide(event)
        lines = tuple(RULES[event.kind](self.state, event))
        self._prove(lines, event)
        return lines

    def post(self, event: Event) -> Posted:
        """Decide, and stage the entry. Raises the rule's refusals; then nothing is kept."""
        lines = self.decide(event)
        entry = Posted(
            journal_entry_id=uuid7(self.posted_at),
            event_type=event.kind.value,
            effective_at=event.effective_at,
            posted_at=self.posted_at,
            correlation_id=self.origin.correlation_id,
            lines=lines,
            reverses_entry_id=self._reverses(event),
        )
        self._stage(entry, event)
        return entry

    def record(self, key: str | None = None, fingerprint: bytes | None = None, response: str | None = None) -> None:
        """Write everything staged, and the key's row, when the transaction ends: the second round trip."""
        if self._staged or key is not None:
            for statement, values in self._writing(key, fingerprint, response):
                self.transaction.finish_with(statement, values)

    def flush(self) -> None:
        """Write what is staged at once, for what is asked or written about it in this very transaction."""
        if self._staged:
            for statement, values in self._writing():
                self.transaction.run(statement, values)

    def _writing(
        self, key: str | None = None, fingerprint: bytes | None = None, response: str | None = None
    ) -> list[tuple[Statement, Sequence[str | bytes | None]]]:
        is_large = sum(len(extra["versions"]) for _, extra in self._staged) > LARGE_LINES
        entries = msgspec.json.encode(self._staged).decode()
        self.written += self._kinds
        self._staged.clear()
        self._kinds.clear()
        write = (RECORD, (entries, key, fingerprint, response))
        return [(LARGE_TIMEOUT, ()), write] if is_large else [write]

    def meet_loan(self, loan_id: str) -> LoanState:
        """A loan that this very transaction has created joins the state."""
        touches = Touches([loan_id], since=self.since)
        opened = self.transaction.run(OPEN, (self.origin.tenant_id, *_params(None, touches)))
        self.state.loans.update(_loan_states(_decode_state(opened.get_value(0, 3) or b"")))
        return self.state.loans[loan_id]

    def meet_terms(self, program_id: str) -> None:
        """Terms that this very transaction has written hold for its next events."""
        self._waterfalls.pop(program_id, None)
        for loan in self.state.loans.values():
            if loan.program_id == program_id:
                loan.waterfalls = self._waterfalls_of(program_id)

    @contextmanager
    def taken_back(self) -> Iterator[None]:
        """What is posted inside meets rules and walls, and is taken back at the end: as if it had never been."""
        self.flush()
        loans, entries = deepcopy((self.state.loans, self.state.entries))
        self.transaction.run(SAVEPOINT)
        yield
        self.flush()
        self.transaction.run(ROLLBACK_TO_SAVEPOINT)
        self.state.loans, self.state.entries = loans, entries

    def admit_date(self, effective_at: date) -> None:
        """Refuse a date in the future or in a closed period."""
        if effective_at > self.today:
            raise EffectiveDateRefused(f"The date lies in the future: today is {self.today}.")
        if self.state.closed_through is not None and effective_at <= self.state.closed_through:
            raise PeriodClosed(f"The books are closed through {self.state.closed_through}.")

    def _reverses(self, event: Event) -> str | None:
        if isinstance(event, PaymentReturned):
            return returned_entry(self.state, event.payment_event_id).entry_id
        return event.reverses_entry_id if isinstance(event, Reversal) else None

    def _meet_accounts(self, event: Event) -> None:
        """Read the chart again when a line names an account that was added since this process read it."""
        named = event.lines if isinstance(event, ManualAdjustment) else self._lines_in_question(event)
        if any(line.account not in self.state.chart for line in named):
            self.state.chart = _charts[self.origin.tenant_id] = read_chart(self.cursor)

    def _lines_in_question(self, event: Event) -> tuple[Line, ...]:
        original = self.state.entries.get(entry_of(event) or "")
        return original.lines if original is not None else ()

    def _loans_of(self, event: Event) -> set[str]:
        """The loans that an event names, and those of the entry that it is about."""
        in_question = (line.loan_id for line in self._lines_in_question(event) if line.loan_id)
        return {*(loan_id for loan_id in event.loan_ids if loan_id in self.state.loans), *in_question}

    def _waterfalls_of(self, program_id: str) -> Waterfalls:
        if program_id not in self._waterfalls:
            self._waterfalls[program_id] = tuple(waterfalls(self.cursor, program_id=program_id))
        return self._waterfalls[program_id]

    def _provide(self, event: Event) -> None:
        """Read what few events need: an ending, the interest up to its date; a return, the loan's allocations from suspense; the
        reversal of a charge-off or of an allocation, what came after it; one of several dates, the waterfalls of them all. One
        query more, for these alone."""
        if event.effective_at != self.read_on:
            for loan_id in self._loans_of(event):
                self.state.loans[loan_id].waterfalls = self._waterfalls_of(self.state.loans[loan_id].program_id)
        if isinstance(event, ChargeOff | Refinance):
            self.flush()
            self.state.loans[event.loan_id].unposted_minor = unposted_interest(
                self.cursor, loan_id=event.loan_id, through=event.effective_at
            )
        original = self.state.entries.get(entry_of(event) or "")
        if original is None or original.lines[0].loan_id is None:
            return
        loan = self.state.loans[original.lines[0].loan_id]
        reversed_kind = original.event_type if isinstance(event, Reversal) else None
        if isinstance(event, PaymentReturned) or reversed_kind == EventKind.PAYMENT_ALLOCATED:
            self.flush()
            loan.allocations = tuple(
                AllocationState(entry_id, lines_of(recorded), undone, payment_event_id)
                for entry_id, recorded, undone, payment_event_id in suspense_allocations(
                    self.cursor, loan_id=loan.loan_id
                )
            )
        elif reversed_kind == EventKind.CHARGEOFF:
            self.flush()
            loan.recovered = has_recovery(self.cursor, loan_id=loan.loan_id)

    def admit(self, event: Event) -> None:
        """What every kind refuses: unknown loans, foreign borrowers and currencies, dates out of bounds."""
        for loan_id in event.loan_ids:
            # An accrual names its unknown loans by position, all at once.
            if loan_id not in self.state.loans and event.kind is not EventKind.ACCRUAL:
                raise LoanNotFound(f"There is no loan {loan_id}.")
        if isinstance(event, MoneyEvent):
            loan = self.state.loans[event.loan_id]
            if event.borrower_id not in (None, loan.borrower_id):
                raise BorrowerMismatch("The loan belongs to another borrower.")
            if event.currency != loan.currency:
                raise CurrencyMismatch(f"The loan is in {loan.currency}.")
        if event.effective_at < self.since:
            raise RuntimeError(f"The state was read for events from {self.since} on, not for {event.effective_at}.")
        self.admit_date(event.effective_at)
        if event.kind is EventKind.ACCRUAL:
            return  # It says first which items are not its program's loans.
        for loan_id in self._loans_of(event):
            loan = self.state.loans[loan_id]
            if event.effective_at < loan.opened_on:
                raise EffectiveDateRefused(f"Loan {loan.loan_id} opens on {loan.opened_on}.")

    def _prove(self, lines: tuple[Line, ...], event: Event) -> None:
        """The invariants, before PostgreSQL proves them again: balanced per currency and layer, nothing floored below zero."""
        sums: dict[tuple[str, str], int] = {}
        gross: dict[tuple[str, str], int] = {}
        taken: dict[tuple[str, str, str], int] = {}
        for line in lines:
            if line.account not in self.state.chart:
                raise AccountNotFound(f"There is no account {line.account}.")
            account = self.state.chart[line.account]
            signed = line.amount_minor if line.direction == DEBIT else -line.amount_minor
            cell = (line.currency, line.layer)
            sums[cell] = sums.get(cell, 0) + signed
            gross[cell] = gross.get(cell, 0) + line.amount_minor
            if line.loan_id is not None and account.per_loan:
                key = (line.loan_id, account.code, line.layer)
                taken[key] = taken.get(key, 0) + (signed if account.normal_side == DEBIT else -signed)
        for (currency, layer), total in sums.items():
            if total != 0:
                raise UnbalancedEntry(f"Debits and credits differ by {abs(total)} in {currency} on {layer}.")
        if any(total > 2 * MAX_MINOR for total in gross.values()):
            raise AmountOutOfRange("The entry's total is above 9223372036854775807.")
        exceeded = []
        for (loan_id, code, layer), change in taken.items():
            account = self.state.chart[code]
            loan = self.state.loans[loan_id]
            lowest, highest = loan.extremes(account, event.effective_at, layer)
            if highest + change > MAX_MINOR or lowest + change < -MAX_MINOR:
                raise AmountOutOfRange(f"Account {code} of loan {loan_id} would leave the range of a 64-bit integer.")
            if account.role in FLOORED and change < 0 and -change > max(lowest, 0):
                message = (
                    f"Account {code} of loan {loan_id} has {max(lowest, 0)} "
                    f"available from {event.effective_at} on; {-change} would be taken."
                )
                exceeded.append(FieldProblem(f"loans.{loan_id}", AmountExceedsBalance.code, message))
        if exceeded:
            raise AmountExceedsBalance(exceeded[0].message, exceeded)

    def _stage(self, entry: Posted, event: Event) -> None:
        """Keep the entry for `record()`, and take it into the state."""
        loans = [
            self.state.loans[loan_id] for loan_id in sorted({line.loan_id for line in entry.lines if line.loan_id})
        ]
        for loan in loans:
            loan.version += 1
        facts = {**(event.facts or {}), **self._undone(event)}
        settles = self._settles(event)
        standing = [(loan.draws, loan.ended_as) for loan in loans]
        self.state.apply(event, entry.lines)
        self._follow(entry, event, settles)
        members = {
            "actor": self.origin.actor,
            "correlation_id": entry.correlation_id,
            "description": event.description,
            "effective_at": entry.effective_at.isoformat(),
            "event_type": entry.event_type,
            "journal_entry_id": entry.journal_entry_id,
            "posted_at": entry.posted_at,
            "reverses_entry_id": entry.reverses_entry_id,
        }
        lines = shown_lines(entry.lines, self.state.chart)
        extra: dict[str, Any] = {
            "versions": [line.loan_id and self.state.loans[line.loan_id].version for line in entry.lines]
        }
        moved = [
            {"loan_id": loan.loan_id, "draws": loan.draws, "ended_as": loan.ended_as}
            | ({"accrued_minor": accrued} if (accrued := self._accrued_with(loan, before[1], entry)) else {})
            for loan, before in zip(loans, standing, strict=True)
            if (loan.draws, loan.ended_as) != before
        ]
        if moved:
            extra["loans"] = moved
        if facts:
            extra["facts"] = facts
        if settles:
            extra["settles_entry_id"] = settles
        if isinstance(event, PaymentReceived) and event.external_ref is not None:
            extra["source_method"] = event.source_method
            extra["external_ref"] = event.external_ref
        if isinstance(event, Accrual):
            extra["accruals"] = [
                {
                    "loan_id": item.loan_id,
                    "revision": _next_revision(self.state.loans[item.loan_id]),
                    "interest_minor": item.interest_minor,
                }
                for item in event.loans
            ]
        self._kinds.append(event.kind)
        recorded = document.render(members, lines, self.origin.tenant_id)
        extra["content_hash"] = document.content_hash(recorded)
        self._staged.append((recorded, extra))

    def _accrued_with(self, loan: LoanState, ended_before: str | None, entry: Posted) -> int:
        """The interest that the engine counts as posted with the loan's end, or as taken back with the end's reversal."""
        if loan.ended_as == ended_before:
            return 0
        return accrued_with(entry.lines, self.state.chart["interest_income"].code)

    def _settles(self, event: Event) -> str | None:
        if isinstance(event, PaymentUnallocated):
            return returned_entry(self.state, event.payment_event_id).entry_id
        return entry_of(event) if isinstance(event, DisbursementSettled | PaymentSettled) else None

    def _undone(self, event: Event) -> dict[str, object]:
        """What a return takes back of allocations from suspense, for those that ask later what of them still stands."""
        if not isinstance(event, PaymentReturned):
            return {}
        taken_back = {each.entry_id: str(each.amount_minor) for each in undone(self.state, event)}
        return {"undone": taken_back} if taken_back else {}

    def _follow(self, entry: Posted, event: Event, settles: str | None) -> None:
        """What has become of the entries in question, for the next event of the same transaction."""
        if entry.reverses_entry_id in self.state.entries:
            self.state.entries[entry.reverses_entry_id].reversed_by = entry.event_type
        if settles in self.state.entries:
            settling = EntryState(entry.journal_entry_id, entry.event_type, entry.effective_at, entry.lines, settles)
            self.state.entries[settling.entry_id] = self.state.entries[settles].settled_by = settling


def post(origin: Origin, event: Event, touches: Touches | None = None) -> Posted:
    """Post one event in a transaction of its own, without an idempotency key: commands, schedules, break resolution."""
    touches = touches or Touches.of(event)

    def attempt() -> Posted:
        with opened(origin, touches) as (posting, _):
            assert posting is not None
            entry = posting.post(event)
            posting.record()
            return entry

    return with_retries(attempt)


@dataclass(frozen=True, slots=True)
class KeyState:
    """What the key's look-up said: held by a running request, used (fingerprint and response), or free."""

    locked: bool
    fingerprint: bytes | None
    response: str | None


@contextmanager
def opened(origin: Origin, touches: Touches, key: str | None = None) -> Iterator[tuple[Posting | None, KeyState]]:
    """One tenant transaction with the key tried and the loans locked and read. Without a free key there is no posting."""
    first = LARGE_TIMEOUT if len(touches.loans) > LARGE_LOANS or touches.mode == "close" else None
    if touches.mode == "read" and key is None:
        # Without locks postings go on between the statements that read the state. (A key must be looked up after its lock.)
        first = SNAPSHOT
    with opened_transaction(origin.tenant_id, OPEN, _params(key, touches), first=first) as transaction:
        locked, fingerprint, response, state = (transaction.opened.get_value(0, column) for column in range(4))
        posting = Posting(transaction, origin, touches, state) if state is not None else None
        yield posting, KeyState(locked == TRUE, fingerprint, response.decode() if response is not None else None)
    if posting is not None:
        for kind in posting.written:
            metrics.POSTINGS.labels(kind).inc()


def _params(key: str | None, touches: Touches) -> tuple[str | None, ...]:
    entries = f"{{{','.join(touches.entries)}}}" if touches.entries else None
    since, accrual = (day.isoformat() if day is not None else None for day in (touches.since, touches.accrual))
    return key, f"{{{','.join(touches.loans)}}}", entries, since, accrual, touches.mode


def with_retries(attempt: Callable[[], T]) -> T:
    """Run a whole transaction, again when the database asks for it, and turn its named refusals into problems.

    Only failures that wrote nothing are tried again (`RETRIED`), three times, with jitter; then 503 busy. A connection lost
    at COMMIT is never one of them: the outcome is unknown, and the client repeats with its key.
    """
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except Problem:
            raise
        except Error as error:
            if _sqlstate(error) in RETRIED:
                metrics.TRANSACTION_RETRIES.labels(_sqlstate(error)).inc()
                if number < ATTEMPTS:
                    time.sleep(random.uniform(0.005, 0.025) * number)  # noqa: S311 (jitter, not a secret)
                    continue
                raise Busy("Others hold the loan or the key for too long; nothing was written.") from error
            problem = refused_by(error)
            if problem is None:
                raise
            raise problem from error
    raise AssertionError("unreachable")


def refused_by(error: Error) -> Problem | None:
    """The refusal that a database error stands for; a wall that no rule should ever meet is a programmer's error, never an
    outage. None for everything else."""
    problem = problem_of_database(error)
    if problem is None and _sqlstate(error).startswith("HP"):
        logger.critical("a wall refused a posting", exc_info=error)
        return InternalError("A wall of the ledger refused this; nothing was written.")
    return problem


def problem_of_database(error: Error) -> Problem | None:
    """The refusal that a database error stands for: a named constraint, a sum out of range, a statement out of time."""
    cause = error.__cause__
    diagnostic = getattr(cause, "diag", None)
    kind = BY_CONSTRAINT.get(getattr(diagnostic, "constraint_name", None) or "")
    if kind is not None:
        return kind(getattr(diagnostic, "message_primary", "") if _sqlstate(error).startswith("HP") else "")
    if isinstance(error, DatabaseError) and _sqlstate(error) == "22003":
        return AmountOutOfRange("A sum would leave the range of a 64-bit integer.")
    if _sqlstate(error) == "57014":
        return Busy("The database took too long; nothing was written.")
    return None


def passes(error: Error) -> bool:
    """Whether the database itself was in the way, and not what was to be written: a lock, a time limit, a lost connection.
    Its class does not tell: psycopg takes what it does not know, such as the walls' codes, for operational, too."""
    sqlstate = _sqlstate(error)
    return not sqlstate or sqlstate in RETRIED or sqlstate[:2] in ("08", "53", "57", "58")


def _sqlstate(error: Error) -> str:
    return getattr(error.__cause__, "sqlstate", None) or ""


def _chart(transaction: TenantTransaction, tenant_id: str) -> Chart:
    """The tenant's chart, read once per process: roles, sides and codes never change; `Posting` meets new codes."""
    chart = _charts.get(tenant_id)
    if chart is None:
        chart = read_chart(transaction.cursor)
        if "principal" in chart:
            _charts[tenant_id] = chart
    return chart


def _loan_states(state: _State) -> dict[str, LoanState]:
    loans = {loan.loan_id: _loan_state(loan) for loan in state.loans or ()}
    for loan_id, effective_at, code, layer, net_minor in state.later or ():
        loans[loan_id].later.append((effective_at, code, layer, net_minor))
    for loan_id, revision, is_reversed in state.accruals or ():
        loans[loan_id].accrual = (revision, is_reversed)
    return loans


def _loan_state(loan: _Loan) -> LoanState:
    return LoanState(
        loan_id=loan.loan_id,
        borrower_id=loan.borrower_id,
        program_id=loan.program_id,
        currency=loan.currency,
        opened_on=loan.opened_on,
        version=loan.version,
        principal_limit_minor=loan.principal_limit_minor,
        day_count_convention=loan.day_count_convention,
        waterfall=tuple(loan.waterfall.split(",")),
        accrual_mode=loan.accrual_mode,
        balances={(code, layer): minor for code, layer, minor in loan.balances or ()},
        draws=loan.draws,
        ended_as=loan.ended_as,
    )


def _entry_states(entries: list[_Entry]) -> dict[str, EntryState]:
    """The entries in question and those that settled them, each with what settled it."""
    states = {
        entry.entry_id: EntryState(
            entry_id=entry.entry_id,
            event_type=entry.event_type,
            effective_at=entry.effective_at,
            lines=lines_of(entry.document),
            settles_entry_id=entry.settles_entry_id,
            reversed_by=entry.reversed_by,
        )
        for entry in entries
    }
    for state in states.values():
        if state.settles_entry_id in states:
            states[state.settles_entry_id].settled_by = state
    return states


def shown_lines(lines: Sequence[Line], chart: Chart) -> list[dict[str, Any]]:
    """Lines as the API shows them: numbered, accounts by code."""
    return [
        document.line_object(
            sequence,
            chart[line.account].code,
            line.direction,
            line.amount_minor,
            line.currency,
            line.layer,
            line.loan_id,
            line.borrower_id,
            line.external_ref,
        )
        for sequence, line in enumerate(lines, 1)
    ]


def lines_of(recorded: str) -> tuple[Line, ...]:
    """The lines of an entry's document, accounts by code."""
    return tuple(
        Line(
            line["account_code"],
            line["direction"],
            int(line["amount_minor"]),
            line["currency"],
            line["layer"],
            line.get("loan_id"),
            line.get("borrower_id"),
            line.get("external_ref"),
        )
        for line in msgspec.json.decode(recorded)["lines"]
    )


def _next_revision(loan: LoanState) -> int:
    return 0 if loan.accrual is None else loan.accrual[0] + 1


def uuid7(posted_at: str) -> str:
    """A UUIDv7 (RFC 9562) of the database's clock: 48 bits of milliseconds, then 74 random bits. What was made together has
    ids close together, so that a run over a program's loans reads few pages (docs/adr/0018)."""
    milliseconds = int(datetime.fromisoformat(posted_at).timestamp() * 1000)
    value = (milliseconds << 80) | secrets.randbits(80)
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
