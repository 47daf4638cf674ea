"""Many writers at once on the same loans: what is recorded is what one writer, in the order of the loans' versions, would
have recorded.

The witness is the naive model (tests/ledger/model.py): every entry of a loan is replayed in the order of its versions, and
each must move what the model says on the books as they were then. `HPTS_LONG=1` runs the mix for a minute instead of for
a fixed number of postings.

The guards, and what happens without them (each in a database of its own, the last tests here):
  the loan's lock gone      writers decide on the same state; the version's wall refuses all but the first (HP007)
  and that wall gone        the index over the loan's history refuses the second entry of a version, if it has a line at
                            the same place (23505)
  and that index gone       more is allocated to a receivable than it holds, and the witness finds it
  one reversal's index gone reversals meet the loan's lock, and the rules refuse the second
  both gone                 an entry is reversed twice, and the count finds it
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date, timedelta
from functools import partial
from typing import Any

import pytest
from django.db import Error

from hpts.problems import Problem
from hpts.tenancy import tenant_transaction
from ledger.errors import AccrualAlreadyPosted
from ledger.events import (
    PENDING,
    Accrual,
    ChargeOff,
    Event,
    FeeAssessed,
    FeeWaived,
    Line,
    PaymentReceived,
    PaymentReturned,
    PaymentSettled,
    Recovery,
    SuspenseAllocated,
)
from ledger.posting import Posted, Touches, opened
from reconciliation import checks
from tests.conftest import Loan
from tests.ledger.conftest import (
    OPENED_ON,
    Books,
    codes,
    new_key,
    onlooker,
    open_books,
    race,
    scratch_database,
    session,
    tear_down,
)
from tests.ledger.model import Model, Move, Terms, totals

LONG = os.environ.get("HPTS_LONG") == "1"
CLIENTS = 16
LOANS = 10
POSTINGS_EACH = 100
SECONDS = 60


# --- The witness -----------------------------------------------------------------------------------------------------


def lent(loans: int, amount: int = 100_000) -> Books:
    books = open_books(loans=loans)
    for loan in books.loans:
        books.post(books.disbursement(loan, amount, "2025-01-10"))
    return books


def deviations(books: Books, events: dict[str, Event]) -> list[str]:
    """Replay each loan's entries by version through the naive model; what differs from what is stored.

    `events` says of each entry what its poster had asked for.
    """
    with tenant_transaction(books.tenant_id) as cursor:
        cursor.execute("SELECT current_date")
        (today,) = cursor.fetchone()
    return [problem for loan in books.loans for problem in _of_loan(books, loan, events, today)]


def _of_loan(books: Books, loan: Loan, events: dict[str, Event], today: date) -> list[str]:
    model = Model(today, {loan.loan_id: Terms(loan.borrower_id, loan.program_id, OPENED_ON)})
    rows = books.rows(
        """SELECT l.loan_version, l.entry_id::text, json_agg(json_build_array(l.account_code, l.layer, l.currency,
                      CASE l.direction WHEN 'DR' THEN l.amount_minor ELSE -l.amount_minor END) ORDER BY l.sequence)
           FROM journal_line l WHERE l.loan_id = %s GROUP BY 1, 2 ORDER BY 1, 2""",
        loan.loan_id,
    )
    found = []
    if [version for version, _, _ in rows] != list(range(1, len(rows) + 1)):
        found.append(f"loan {loan.loan_id} has the versions {[version for version, _, _ in rows]}")
    for version, entry_id, stored in rows:
        event = events[entry_id]
        if isinstance(event, Accrual):
            event = books.accrual(
                event.effective_at.isoformat(),
                *(
                    (loan, i.outstanding_principal_minor, i.interest_minor)
                    for i in event.loans
                    if i.loan_id == loan.loan_id
                ),
            )
        said = model.decide(event)
        lines = tuple(Move(code, layer, currency, loan.loan_id, minor) for code, layer, currency, minor in stored)
        if said.refusals or totals(said.moves) != totals(lines):
            says = sorted(said.refusals) or sorted(said.moves)
            found.append(f"loan {loan.loan_id}, version {version}: {event.kind} {says} != {sorted(lines)}")
        model.take(entry_id, event, replace(said, moves=lines))
    return found


def breaches(books: Books) -> list[checks.Breach]:
    with tenant_transaction(books.tenant_id) as cursor:
        return [breach for check in checks.CHECKS for breach in check(cursor)]


def trial_balance(books: Books) -> dict[str, int]:
    """Per layer, debits minus credits of everything."""
    rows = books.rows(
        """SELECT layer, sum(CASE direction WHEN 'DR' THEN amount_minor ELSE -amount_minor END)::bigint
           FROM journal_line GROUP BY layer"""
    )
    return dict(rows)


def deadlocks() -> int:
    ((count,),) = (
        onlooker().execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchall()
    )
    return int(count)


# --- Many postings on few loans --------------------------------------------------------------------------------------


# What a client posts, and how often.
KINDS = {
    "payment": 120,
    "announced payment": 20,
    "settlement": 20,
    "return": 20,
    "suspense allocation": 15,
    "disbursement": 30,
    "fee": 24,
    "waiver": 12,
    "accrual": 24,
    "charge-off": 1,
    "recovery": 2,
    "reversal": 30,
    "reversal of a charge-off": 8,
}
# Dated behind all else, so that they find what they ask for.
LATE = date(2025, 12, 31)
DATED_LATE = ("waiver", "charge-off", "suspense allocation")
OF_A_LOAN: dict[str, Callable[..., Event]] = {
    "fee": FeeAssessed,
    "waiver": FeeWaived,
    "suspense allocation": SuspenseAllocated,
    "charge-off": ChargeOff,
    "recovery": Recovery,
}


class Client:
    """Posts a random mix on shared loans and remembers what was recorded. What is refused is refused: others were first."""

    def __init__(self, books: Books, seed: int, recorded: dict[str, Event]) -> None:
        self.books = books
        self.draw = random.Random(seed)
        self.recorded = recorded
        self.refused: Counter[str] = Counter()

    def run(self, enough: Callable[[int], bool]) -> Counter[str]:
        number = 0
        while not enough(number):
            number += 1
            event = self._event()
            try:
                entry = self.books.post(event)
            except Problem as refusal:
                self.refused[refusal.code] += 1
            else:
                self.recorded[entry.journal_entry_id] = event
        return self.refused

    def _event(self) -> Event:
        loan = self.draw.choice(self.books.loans)
        on = (OPENED_ON + timedelta(days=self.draw.randint(10, 40))).isoformat()
        kind = self.draw.choices(*zip(*KINDS.items(), strict=True))[0]  # type: ignore[call-overload]
        if kind == "payment":
            return self.books.payment(loan, self.draw.randint(1, 4_000), on)
        if kind == "announced payment":
            return self.books.payment(loan, self.draw.randint(1, 4_000), on, PENDING)
        if kind == "disbursement":
            return self.books.disbursement(loan, self.draw.randint(1, 6_000), on)
        if kind == "accrual":
            # Three loans in one entry: their locks are taken in the order of their ids, whatever the order here.
            return self._accrual(self.draw.sample(self.books.loans, k=3), on)
        if kind in OF_A_LOAN:
            day = LATE if kind in DATED_LATE else date.fromisoformat(on)
            about: dict[str, Any] = {"loan_id": loan.loan_id, "effective_at": day}
            if OF_A_LOAN[kind] is not ChargeOff:
                about |= {"amount_minor": self.draw.randint(1, 300), "currency": "USD"}
            return OF_A_LOAN[kind](**about)
        chosen = [entry_id for entry_id, event in list(self.recorded.items()) if self._may_follow(kind, event)]
        if not chosen:
            return self.books.payment(loan, 1, on)
        entry_id = self.draw.choice(chosen)
        if kind == "settlement":
            return PaymentSettled(effective_at=LATE, payment_event_id=entry_id)
        if kind == "return":
            return PaymentReturned(effective_at=LATE, payment_event_id=entry_id, return_code="R01")
        return self.books.reversal(entry_id)

    @staticmethod
    def _may_follow(kind: str, event: Event) -> bool:
        """Whether an event of this kind is about one like this, which some client has posted."""
        if kind == "settlement":
            return isinstance(event, PaymentReceived) and event.layer == PENDING
        if kind == "return":
            return isinstance(event, PaymentReceived)
        return kind == "reversal" or isinstance(event, ChargeOff)

    def _accrual(self, loans: Sequence[Loan], on: str) -> Event:
        """Of the principal as it is now. When others are faster, it is refused."""
        rows = dict(
            self.books.rows(
                """SELECT loan_id::text, sum(CASE direction WHEN 'DR' THEN amount_minor ELSE -amount_minor END)::bigint
                   FROM journal_line WHERE account_code = '1100' AND layer = 'SETTLED' AND effective_at < %s
                   GROUP BY 1""",
                on,
            )
        )
        return self.books.accrual(on, *((loan, rows.get(loan.loan_id, 0), self.draw.randint(1, 200)) for loan in loans))


def test_what_many_clients_post_on_few_loans_is_what_one_would_have_posted() -> None:
    books = open_books(loans=LOANS)
    recorded: dict[str, Event] = {}
    for loan in books.loans:
        first = books.disbursement(loan, 200_000, "2025-01-10")
        recorded[books.post(first).journal_entry_id] = first
    seed = random.randrange(2**32)
    before = deadlocks()
    end = time.monotonic() + SECONDS

    def enough(number: int) -> bool:
        return time.monotonic() > end if LONG else number >= POSTINGS_EACH

    clients = [Client(books, seed + number, recorded) for number in range(CLIENTS)]
    refusals = race(*(partial(client.run, enough) for client in clients))
    failed = [outcome for outcome in refusals if isinstance(outcome, Exception)]
    assert failed == [], f"seed {seed}"
    told: Counter[str] = sum((outcome for outcome in refusals if isinstance(outcome, Counter)), Counter())
    # A lock that was waited for too long is never told as a refusal of the business, and here it is not told at all.
    assert told.keys() <= {
        "already_reversed",
        "already_returned",
        "already_settled",
        "not_reversible",
        "amount_exceeds_balance",
        "loan_state_refuses",
        "validation_failed",
        "accrual_already_posted",
    }, f"seed {seed}"
    assert len(recorded) == books.entries()
    assert len(recorded) > LOANS + CLIENTS * POSTINGS_EACH // 2, told
    assert deviations(books, recorded) == [], f"seed {seed}"
    assert breaches(books) == [], f"seed {seed}"
    assert set(trial_balance(books).values()) == {0}
    assert deadlocks() == before


def test_accruals_over_loans_in_any_order_do_not_deadlock() -> None:
    """Locks are taken in the order of ids, whatever order a batch names its loans in."""
    books = lent(6)
    before = deadlocks()

    def accrue(seed: int) -> Callable[[], int]:
        draw = random.Random(seed)

        def run() -> int:
            posted = 0
            for number in range(12):
                on = (OPENED_ON + timedelta(days=20 + number)).isoformat()
                loans = draw.sample(books.loans, k=len(books.loans))
                with suppress(AccrualAlreadyPosted):
                    books.post(books.accrual(on, *((loan, 100_000, 7) for loan in loans)))
                    posted += 1
            return posted

        return run

    assert sum(int(count) for count in race(*(accrue(seed) for seed in range(8)))) == 12  # type: ignore[arg-type]
    assert {books.balances(loan)[("1200", "SETTLED")] for loan in books.loans} == {12 * 7}
    assert deadlocks() == before
    assert breaches(books) == []


def test_a_payment_that_waited_for_the_loan_meets_what_the_first_one_left() -> None:
    """The read comes after the lock, in a statement and so with a snapshot of its own. Under REPEATABLE READ, or with the
    lock and the read in one statement, the second payment would see the loan as it was before the first."""
    books = lent(1, 1_000)
    event = books.payment(books.loan, 800, "2025-02-01")
    waits = threading.Event()

    def first() -> Posted:
        with opened(books.origin, Touches.of(event)) as (posting, _):
            assert posting is not None
            waits.set()
            _until_somebody_waits_for_a_lock()
            entry = posting.post(event)
            posting.record()
            return entry

    def second() -> Posted:
        assert waits.wait(30)
        return books.post(event)

    outcomes = race(first, second)
    assert codes(outcomes) == ["posted", "posted"]
    shares = [[(line.account, line.amount_minor) for line in outcome.lines[1:]] for outcome in outcomes]  # type: ignore[union-attr]
    assert shares == [[("principal", 800)], [("principal", 200), ("suspense", 600)]]


def _until_somebody_waits_for_a_lock() -> None:
    end = time.monotonic() + 30
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
        "AND query LIKE '%open_posting%'"
    )
    with session("superuser") as connection:
        while time.monotonic() < end:
            if connection.execute(waiting).fetchall() != [(0,)]:
                return
            connection.rollback()
    pytest.fail("nobody waits for the loan")


# --- Reversals -------------------------------------------------------------------------------------------------------


def _reverse_all(books: Books, entries: Sequence[str], barrier: threading.Barrier) -> list[str]:
    """Reverse each entry with a key of one's own, at the same moment as the others."""
    became = []
    for entry_id in entries:
        barrier.wait(60)
        try:
            books.once(new_key(), books.reversal(entry_id))
            became.append("posted")
        except Problem as refusal:
            became.append(refusal.code)
        except Error as error:
            became.append(str(error))
    return became


def _reversals_by_8(books: Books, number: int) -> Counter[tuple[int, int]]:
    """Of so many entries: how many were reversed so many times and refused as reversed so many times."""
    payments = [books.payment(books.loans[n % len(books.loans)], 1 + n % 97, "2025-02-01") for n in range(number)]
    entries = [books.post(payment).journal_entry_id for payment in payments]
    barrier = threading.Barrier(8)
    outcomes = race(*[partial(_reverse_all, books, entries, barrier)] * 8)
    became = [Counter(outcome[n] for outcome in outcomes if isinstance(outcome, list)) for n in range(number)]
    return Counter((of["posted"], of["already_reversed"]) for of in became)


def test_of_8_reversals_of_an_entry_one_posts() -> None:
    """500 entries; every reversal has a key of its own, so that only the entry's state is in the way."""
    books = lent(LOANS)
    before = {loan.loan_id: books.balances(loan) for loan in books.loans}
    assert _reversals_by_8(books, 500) == {(1, 7): 500}
    assert books.rows(
        "SELECT count(*), count(DISTINCT reverses_entry_id) FROM journal_entry WHERE event_type = 'reversal'"
    ) == [(500, 500)]
    assert {loan.loan_id: books.balances(loan) for loan in books.loans} == before
    assert breaches(books) == []


def test_of_8_reversals_of_an_entry_without_a_loan_one_posts() -> None:
    """There is no loan to lock, so all of them come to the end, and the index over reversed entries lets one through."""
    books = open_books()
    lines = (Line("1000", "DR", 5, "USD"), Line("3000", "CR", 5, "USD"))
    for _ in range(20):
        entry = books.post(books.adjustment("2025-02-01", *lines))
        outcomes = race(*[partial(books.post, books.reversal(entry.journal_entry_id))] * 8)
        assert Counter(codes(outcomes)) == {"posted": 1, "already_reversed": 7}
    assert breaches(books) == []


def test_a_payment_and_the_reversal_of_what_it_pays_happen_one_after_the_other() -> None:
    """Either the payment finds the loan lent, and the disbursement can no longer be taken back; or the disbursement is
    gone, and the payment is suspense. Nothing in between."""
    books = open_books(loans=40)
    for number, loan in enumerate(books.loans):
        lending = books.post(books.disbursement(loan, 1_000, "2025-01-10"))
        pay = partial(books.post, books.payment(loan, 300, "2025-02-01"))
        take_back = partial(books.post, books.reversal(lending.journal_entry_id, "2025-01-20"))
        runners = [pay, take_back] if number % 2 else [take_back, pay]
        became = codes(race(*runners))
        paid, taken_back = became if number % 2 else reversed(became)
        assert paid == "posted"
        balances = {code: minor for (code, _), minor in books.balances(loan).items() if minor}
        expected = {"posted": {"2000": 300}, "amount_exceeds_balance": {"1100": 700}}
        assert balances == expected[taken_back]
    assert breaches(books) == []


def test_a_settlement_and_the_reversal_of_its_disbursement_exclude_each_other() -> None:
    books = open_books(loans=20)
    for loan in books.loans:
        lending = books.post(books.disbursement(loan, 1_000, "2025-01-10"))
        settle = partial(books.post, books.settlement(lending.journal_entry_id, "2025-01-20"))
        take_back = partial(books.post, books.reversal(lending.journal_entry_id, "2025-01-20"))
        assert sorted(codes(race(settle, take_back))) in [["not_reversible", "posted"], ["already_reversed", "posted"]]
    assert breaches(books) == []


def test_an_external_reference_is_used_once_however_many_send_it() -> None:
    """On different loans, so that no lock puts them in a row."""
    books = lent(8)
    for number in range(20):
        outcomes = race(
            *(partial(books.post, books.payment(loan, 10, "2025-02-01", ref=str(number))) for loan in books.loans)
        )
        assert Counter(codes(outcomes)) == {"posted": 1, "duplicate_external_ref": 7}
    assert breaches(books) == []


# --- The guards removed ----------------------------------------------------------------------------------------------

NO_LOAN_LOCK = ("open_posting", ("ORDER BY l.id FOR NO KEY UPDATE", "ORDER BY l.id"))
NO_VERSION_WALL = ("record_posting", ("RAISE EXCEPTION USING ERRCODE = 'HP007'", "RAISE DEBUG USING ERRCODE = 'HP007'"))


def _pay_together(books: Books, rounds: int = 30) -> tuple[dict[str, Event], list[str]]:
    """Rounds of eight payments at once, each more than its share; the events by entry, and the errors of the database."""
    recorded: dict[str, Event] = {}
    errors = []

    def pay() -> None:
        for _ in range(rounds):
            event = books.payment(books.loan, 700, "2025-02-01")
            try:
                recorded[books.post(event).journal_entry_id] = event
            except Error as error:
                errors.append(getattr(error.__cause__, "sqlstate", None) or str(error))

    assert race(*[pay] * 8) == [None] * 8
    return recorded, errors


def test_without_the_loans_lock_the_version_refuses_who_did_not_hold_it() -> None:
    with scratch_database():
        books = lent(1, 50_000)
        lending = _first_event(books)
        tear_down(*NO_LOAN_LOCK)
        recorded, errors = _pay_together(books)
        assert set(errors) <= {"HP007", "23505"}
        assert errors, "the writers never met: this proves nothing"
        assert deviations(books, recorded | lending) == [], "the wall behind the lock has let a stale posting in"


def test_without_lock_and_walls_the_witness_finds_what_was_allocated_twice() -> None:
    """So the witness is not blind, and the guards are what keeps it quiet."""
    with scratch_database():
        books = lent(1, 50_000)
        lending = _first_event(books)
        tear_down(*NO_LOAN_LOCK)
        tear_down(*NO_VERSION_WALL)
        with session("owner") as connection:
            connection.execute("ALTER TABLE journal_line DROP CONSTRAINT IF EXISTS journal_line_loan_history")
            connection.execute("DROP INDEX IF EXISTS journal_line_loan_history")
            connection.execute("ALTER TABLE loan_balance DROP CONSTRAINT loan_balance_not_below_zero")
        recorded, errors = _pay_together(books)
        # Two may still make the row of one balance at once.
        assert set(errors) <= {"23505"}
        assert deviations(books, recorded | lending) != []
        assert breaches(books) != []


def _first_event(books: Books) -> dict[str, Event]:
    ((entry_id,),) = books.rows("SELECT id::text FROM journal_entry")
    return {entry_id: books.disbursement(books.loan, 50_000, "2025-01-10")}


@pytest.mark.parametrize("guards", ["the lock", "the index", "both"])
def test_an_entry_is_reversed_twice_only_without_both_its_guards(guards: str) -> None:
    """Without the lock and the walls on versions the index alone refuses the second; without the index the lock's order
    lets the rules refuse it. Without both the count of the test above is another one."""
    with scratch_database():
        books = lent(4)
        if guards in ("the lock", "both"):
            tear_down(*NO_LOAN_LOCK)
            tear_down(*NO_VERSION_WALL)
        with session("owner") as connection:
            connection.execute("DROP INDEX journal_line_loan_history")
            if guards in ("the index", "both"):
                connection.execute("DROP INDEX journal_entry_one_reversal")
        counts = _reversals_by_8(books, 60)
        if guards == "both":
            assert any(posted > 1 for posted, _ in counts), "no reversal met another: this proves nothing"
        else:
            assert counts == {(1, 7): 60}
