"""The accrual engine against the naive model of interest, on books of random lives; and its rules, one story each.

After every run, on every day, what the journal has posted of a loan is the model's exact figure, rounded once. `HPTS_LONG=1`
plays 10,000 loans for 400 days.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction
from random import Random
from typing import Any

import pytest

from hpts.problems import Problem
from hpts.tenancy import tenant_transaction
from ledger import masters, operations, runs
from ledger import serializers as shapes
from ledger.models import DAY_COUNTS
from tests.conftest import Loan
from tests.ledger.conftest import contents, nothing_changes, onlooker, race
from tests.ledger.engine import EngineBooks, day, engine_books, walls_off
from tests.ledger.interest_model import DAY, ModelLoan, ModelProgram, OwnTerms, Pause, ProgramTerms

LONG = os.environ.get("HPTS_LONG") == "1"
LOANS = int(os.environ.get("BOOK_LOANS", 10_000 if LONG else 24))
DAYS = int(os.environ.get("BOOK_DAYS", 400 if LONG else 40))
# A leap day, the ends of months of all lengths, and a year's end lie in it.
BEGINNING = date(2023, 12, 15)
RATES = [0, 1, 100, 365, 1_000, 1_199, 2_450, 9_999, 40_000]


@dataclass
class Life:
    """A loan of the random book: the product's, the model's, and what both must have posted."""

    loan: Loan
    model: ModelLoan
    posted_minor: int = 0
    # By accrual date, what the last entry gave, and the day behind which its days begin.
    accruals: dict[date, tuple[int, date]] = field(default_factory=dict)
    entries: list[str] = field(default_factory=list)
    accrual_entries: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Standing:
    """What a loan says of itself."""

    posted_minor: int
    through: date | None
    last_effective_at: date | None
    ended_as: str | None
    version: int


class Book:
    """Random lives in one program per day count. Every step is made in the product, and told to the model if it was taken."""

    def __init__(self, dice: Random, loans: int) -> None:
        self.dice = dice
        self.books: EngineBooks = engine_books()
        self.today = BEGINNING
        self.closed = date.min
        self.told: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.programs: dict[str, ModelProgram] = {}
        self.lives: dict[str, Life] = {}
        for convention in DAY_COUNTS:
            rate = dice.choice(RATES)
            program_id = self.books.open_program(day_count_convention=convention, annual_rate_bps=rate)
            self.programs[program_id] = ModelProgram(convention, [ProgramTerms(date.min, rate)])
        for number in range(loans):
            self._open_loan(list(self.programs)[number % len(self.programs)])

    def _open_loan(self, program_id: str) -> None:
        opened_on = self.dice.choice([BEGINNING, BEGINNING, BEGINNING + self.dice.randint(0, 20) * DAY])
        rate = self.dice.choice([None, None, self.dice.choice(RATES)])
        with tenant_transaction(self.books.tenant_id) as cursor:
            made = masters.create_loan(
                cursor,
                on=opened_on,
                loan_id=_uuid(self.dice),
                borrower_id=_uuid(self.dice),
                program_id=program_id,
                opened_on=opened_on,
                principal_limit_minor=None,
                annual_rate_bps=rate,
            )
        life = self._meet(Loan(made["loan_id"], made["borrower_id"], program_id, "USD"), opened_on)
        if rate is not None:
            life.model.own_terms["opening"] = OwnTerms(opened_on, rate)

    def _meet(self, loan: Loan, opened_on: date) -> Life:
        life = self.lives[loan.loan_id] = Life(loan, ModelLoan(self.programs[loan.program_id], opened_on))
        return life

    # Steps

    def step(self, life: Life) -> None:
        """One of what can happen to a loan, on a day of its past that comes first to hand."""
        steps: list[tuple[int, Callable[[Life, date], None]]] = [
            (6, self.disburse),
            (8, self.pay),
            (2, self.charge_fee),
            (4, self.take_back),
            (3, self.take_accrual_back),
            (3, self.restructure),
            (3, self.pause),
            (2, self.charge_off),
            (2, self.refinance),
        ]
        (made,) = self.dice.choices([each for _, each in steps], [weight for weight, _ in steps])
        ago = self.dice.choice([0, 0, 0, 1, 2, self.dice.randint(0, 40)])
        self._try(made.__name__, lambda: made(life, max(self.today - ago * DAY, life.model.opened_on)))

    def change_terms(self) -> None:
        program_id = self.dice.choice(list(self.programs))
        program = self.programs[program_id]
        on = self.today - self.dice.choice([0, 0, -1, 3, 20]) * DAY
        mode: bool | None = self.dice.choice([None, None, False, True])
        rate = self.dice.choice([None, self.dice.choice(RATES)])
        terms = ({} if mode is None else {"accrual_mode": "engine" if mode else "client"}) | (
            {} if rate is None else {"annual_rate_bps": rate}
        )

        def change() -> None:
            self.books.set_terms(on.isoformat(), program_id=program_id, **terms)
            before = program.on(on)
            program.terms.append(
                ProgramTerms(
                    on,
                    before.annual_rate_bps if rate is None else rate,
                    before.by_engine if mode is None else mode,
                )
            )
            for life in self._of(program_id):
                life.model.forget(on)

        if terms:
            self._try("change_mode" if mode is not None else "change_rate", change)

    def close(self) -> None:
        through = self.today - self.dice.randint(5, 15) * DAY

        def close() -> None:
            self.books.close(through.isoformat())
            self.closed = through

        self._try("close", close)

    def disburse(self, life: Life, on: date) -> None:
        amount = self.dice.choice([1, 99, 365, 123_456, self.dice.randint(1, 9_999_999)])
        self._take(self.books.post(self.books.disbursement(life.loan, amount, on.isoformat())).journal_entry_id)

    def pay(self, life: Life, on: date) -> None:
        amount = self.dice.choice([1, 250, self.dice.randint(1, 500_000), self.dice.randint(1, 20_000_000)])
        self._take(self.books.post(self.books.payment(life.loan, amount, on.isoformat())).journal_entry_id)

    def charge_fee(self, life: Life, on: date) -> None:
        self._take(self.books.post(self.books.fee(life.loan, 70, on.isoformat())).journal_entry_id)

    def take_back(self, life: Life, on: date) -> None:
        """The reversal of something, endings and restructures among it."""
        if life.entries:
            self._take(self.books.reverse(self.dice.choice(life.entries), self._from(on)))

    def take_accrual_back(self, life: Life, on: date) -> None:
        if life.accrual_entries:
            entry_id = life.accrual_entries[-self.dice.randint(1, min(4, len(life.accrual_entries)))]
            self._take(self.books.reverse(entry_id, self._from(on)))

    def restructure(self, life: Life, on: date) -> None:
        rate = self.dice.choice([None, self.dice.choice(RATES)])
        convention = self.dice.choice([None, None, *DAY_COUNTS])
        capitalise = self.dice.random() < 0.5
        changes: dict[str, Any] = {} if rate is None else {"annual_rate_bps": rate}
        changes |= ({} if convention is None else {"day_count_convention": convention}) | (
            {"capitalise_interest": True} if capitalise else {}
        )
        if not changes:
            return
        entry_id = self.books.restructure(life.loan, on.isoformat(), **changes)
        if rate is not None or convention is not None:
            life.model.own_terms[entry_id or _uuid(self.dice)] = OwnTerms(on, rate, convention)
            life.model.forget(on)
        if entry_id is not None:
            self._take(entry_id)

    def pause(self, life: Life, on: date) -> None:
        first = self.dice.choice([on, on + 2 * DAY, *(pause.first for pause in life.model.pauses)])
        last = self.dice.choice([None, first, first + self.dice.randint(0, 9) * DAY])
        self.books.pause(life.loan, first.isoformat(), None if last is None else last.isoformat())
        life.model.pauses.append(Pause(first, last))
        life.model.forget(first)

    def charge_off(self, life: Life, on: date) -> None:
        expected = self._brought_by_an_ending(life, on)
        self._take(self.books.charge_off(life.loan, on.isoformat()), came_with=expected)

    def refinance(self, life: Life, on: date) -> None:
        expected = self._brought_by_an_ending(life, on)
        entry_id, new = self.books.refinance(life.loan, on.isoformat(), cash_out=self.dice.choice([0, 5_000]))
        self._meet(new, on)
        self._take(entry_id, came_with=expected)

    def _brought_by_an_ending(self, life: Life, on: date) -> int:
        """The interest up to its date; of what was posted too much, what the loan has owed on every day since."""
        missing = life.model.whole(on) - life.posted_minor
        if missing >= 0:
            return missing
        rows = onlooker().execute(
            """SELECT effective_at, sum(CASE direction WHEN 'DR' THEN amount_minor ELSE -amount_minor END)::bigint
               FROM journal_line WHERE tenant_id = %s AND loan_id = %s AND account_code = '1200' GROUP BY 1""",
            (self.books.tenant_id, life.loan.loan_id),
        )
        moved = dict(rows.fetchall())
        days = [on, *(each for each in moved if each > on)]
        lowest = min(sum(net for moved_on, net in moved.items() if moved_on <= each) for each in days)
        owed = sum(moved.values())
        too_much = min(-missing, owed)
        return -min(too_much, max(lowest - (owed - too_much), 0))

    def _from(self, on: date) -> str:
        return self.dice.choice([on, self.today]).isoformat()

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Problem as problem:
            self.refused[f"{name}: {problem.code}"] += 1
        else:
            self.told[name] += 1
        assert not any("internal_error" in each for each in self.refused), self.refused

    def _take(self, entry_id: str, came_with: int = 0) -> None:
        """Tell the model what an entry has moved."""
        found = onlooker().execute(
            """SELECT e.event_type, e.effective_at, e.reverses_entry_id::text, o.event_type, o.effective_at
               FROM journal_entry e LEFT JOIN journal_entry o ON o.tenant_id = e.tenant_id AND o.id = e.reverses_entry_id
               WHERE e.tenant_id = %s AND e.id = %s""",
            (self.books.tenant_id, entry_id),
        )
        ((kind, on, original, original_kind, original_on),) = found.fetchall()
        rows = onlooker().execute(
            """SELECT loan_id::text, account_code, sum(CASE direction WHEN 'DR' THEN amount_minor ELSE -amount_minor END)::bigint
               FROM journal_line WHERE tenant_id = %s AND entry_id = %s AND loan_id IS NOT NULL GROUP BY 1, 2""",
            (self.books.tenant_id, entry_id),
        )
        is_ending = {kind, original_kind} & {"chargeoff", "refinance"}
        came = 0
        touched = set()
        for loan_id, code, net in rows.fetchall():
            life = self.lives[loan_id]
            touched.add(loan_id)
            if code == "1100":
                life.model.move(on, net)
            if code == "4000" and is_ending:
                came -= net
                life.posted_minor -= net
        assert original is not None or came == came_with, f"the {kind} brought {came} of interest and not {came_with}"
        for loan_id in touched:
            life = self.lives[loan_id]
            if original_kind == "accrual":
                minor, since = life.accruals[original_on]
                life.posted_minor -= minor
                life.model.given_back[original_on] = since
                life.model.forget(since + DAY)
            elif original is not None and life.model.own_terms.pop(original, None) is not None:
                life.model.forget(life.model.opened_on)
            else:
                life.entries.append(entry_id)

    # Runs

    def night(self) -> None:
        """Most programs are accrued, some late, some again, some for a date long gone."""
        for program_id in self.programs:
            dates = [self.today] if self.dice.random() < 0.85 else []
            if self.dice.random() < 0.15:
                dates.append(self.today - self.dice.randint(0, 12) * DAY)
            if self.dice.random() < 0.15:
                dates.append(self.today)
            # Of those that were given back some are accrued again.
            gone = sorted({on for life in self._of(program_id) for on in life.model.given_back})
            if gone and self.dice.random() < 0.3:
                dates.append(self.dice.choice(gone))
            for on in dates:
                self.accrue(program_id, on)

    def accrue(self, program_id: str, on: date) -> None:
        before = self.standings(program_id)
        for life in self._of(program_id):
            assert before[life.loan.loan_id].posted_minor == life.posted_minor, "something other than a run has posted"
        if not self.programs[program_id].on(on).by_engine:
            with pytest.raises(Problem, match="the client accrues"):
                self.books.request(on.isoformat(), program_id)
            self.told["run refused: client"] += 1
            return
        run = self.books.accrue(on.isoformat(), program_id)
        if on <= self.closed:
            assert set(run["exceptions"].values()) <= {"period_closed"}
            assert self.standings(program_id) == before
            self.told["run refused: closed"] += 1
            return
        assert run["exceptions"] == {}, run
        assert run["state"] == "complete"
        after = self.standings(program_id)
        for life in self._of(program_id):
            self._accrued(life, on, before[life.loan.loan_id], after[life.loan.loan_id])
        self.told["run"] += 1

    def _accrued(self, life: Life, on: date, before: Standing, after: Standing) -> None:
        """The rule of a run: a loan that was not there yet is brought to the date; one whose date was reversed, accrued again;
        another is left alone."""
        expected, since = life.posted_minor, before.through or life.model.opened_on
        # An ended loan is brought to its end: what ended it has done so, and what is due by then may have changed since.
        ended_by = before.last_effective_at if before.ended_as else None
        through = max(on, before.through or on, ended_by or on)
        if on in life.model.given_back:
            since = life.model.given_back.pop(on)
            life.model.forget(since + DAY)
            expected = life.model.whole(through)
            if expected == life.posted_minor:  # There is nothing to accrue: the date stays as it is.
                life.model.given_back[on] = since
                life.model.forget(since + DAY)
            else:
                self.told["accrued again"] += 1
        elif on > life.model.opened_on and before.version and (before.through is None or before.through < on):
            expected = life.model.whole(through)
        assert after.posted_minor == expected, (
            f"on {on} loan {life.loan.loan_id} has {after.posted_minor} and not {expected}: "
            f"{before} became {after}; {life}"
        )
        if expected != life.posted_minor:
            minor = expected - life.posted_minor
            life.accruals[on] = (minor, since)
            life.accrual_entries.append(self.books.entry_of(life.loan, on.isoformat()))
            life.posted_minor = expected
            self.told["correction" if minor < 0 else "accrual"] += 1

    def standings(self, program_id: str) -> dict[str, Standing]:
        rows = onlooker().execute(
            """SELECT id::text, interest_posted_minor, accrued_through, last_effective_at, ended_as, version
               FROM loan WHERE tenant_id = %s AND program_id = %s""",
            (self.books.tenant_id, program_id),
        )
        return {loan_id: Standing(*rest) for loan_id, *rest in rows.fetchall()}

    def _of(self, program_id: str) -> list[Life]:
        return [life for life in self.lives.values() if life.loan.program_id == program_id]

    # The end

    def is_sound(self) -> None:
        rows = onlooker().execute(
            """SELECT loan_id::text, sum(CASE direction WHEN 'CR' THEN amount_minor ELSE -amount_minor END)::bigint
               FROM journal_line WHERE tenant_id = %s AND account_code = '4000' GROUP BY 1""",
            (self.books.tenant_id,),
        )
        journal = dict(rows.fetchall())
        for loan_id, life in self.lives.items():
            assert journal.get(loan_id, 0) == life.posted_minor
        self.books.is_sound()


def _uuid(dice: Random) -> str:
    digits = f"{dice.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


@pytest.mark.parametrize("seed", [int(seed) for seed in os.environ.get("BOOK_SEEDS", "20231215").split()])
def test_what_is_posted_is_the_exact_figure_rounded_once_on_every_day(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "CHUNK_LOANS", 1_000 if LONG else 5)
    book = Book(Random(seed), LOANS)
    try:
        for _ in range(DAYS):
            book.today += DAY
            for life in list(book.lives.values()):
                if book.dice.random() < 0.15:
                    book.step(life)
            if book.dice.random() < 0.2:
                book.change_terms()
            if book.dice.random() < 0.04:
                book.close()
            book.night()
        book.is_sound()
    finally:
        print(f"seed {seed}", dict(book.told), dict(book.refused))


# --- Stories ---------------------------------------------------------------------------------------------------------
# 1,000,000 at 36.50 % by ACT_365 earn 1,000 a day.


@pytest.fixture
def books() -> EngineBooks:
    return engine_books()


def test_a_late_payment_is_corrected_the_next_night(books: EngineBooks) -> None:
    loan = books.lend()
    books.accrue_each(1, 5)
    books.post(books.payment(loan, 502_000, day(2)))
    assert books.posted(loan) == 5_000
    run = books.accrue(day(6))
    assert (run["accrued_count"], run["total_accrued_minor"]) == (1, "-1000")
    assert books.posted(loan) == 2 * 1_000 + 4 * 500
    assert books.owed(loan) == (2_000, 0)
    books.is_sound()


@pytest.mark.parametrize(("paid", "left"), [(5_000, 0), (3_000, 2_000)])
def test_what_a_correction_takes_beyond_the_interest_owed_is_the_borrowers(
    books: EngineBooks, paid: int, left: int
) -> None:
    loan = books.lend()
    books.accrue_each(1, 5)
    books.post(books.payment(loan, paid, day(5)))
    assert books.owed(loan) == (left, 0)
    books.set_terms(day(0), annual_rate_bps=0)
    books.accrue(day(6))
    assert books.posted(loan) == 0
    assert books.owed(loan) == (0, paid)
    books.is_sound()


def test_a_correction_for_an_older_date_takes_no_interest_that_came_after_it(books: EngineBooks) -> None:
    """Of an older date that is accrued again: between it and today the interest had been paid."""
    loan = books.lend()
    books.accrue_each(1, 5)
    books.reverse(books.entry_of(loan, day(3)), day(3))
    books.post(books.payment(loan, 4_000, day(5)))
    books.accrue(day(6))
    books.set_terms(day(0), annual_rate_bps=0)
    books.accrue(day(3))
    assert (books.posted(loan), books.owed(loan)) == (0, (1_000, 5_000))
    books.is_sound()


def test_a_reversed_date_gives_its_day_back_until_it_is_accrued_again(books: EngineBooks) -> None:
    loan = books.lend()
    books.accrue_each(1, 5)
    books.reverse(books.entry_of(loan, day(3)))
    assert books.posted(loan) == 4_000
    books.accrue(day(6))
    assert books.posted(loan) == 5_000, "the other dates stay, and the one that was reversed too"
    books.accrue(day(3))
    assert books.posted(loan) == 6_000
    assert books.rows(
        "SELECT accrual_date - %s::date, revision, interest_minor FROM loan_accrual ORDER BY 1, 2", day(0)
    ) == [(1, 0, 1_000), (2, 0, 1_000), (3, 0, 1_000), (3, 1, 1_000), (4, 0, 1_000), (5, 0, 1_000), (6, 0, 1_000)]
    books.accrue(day(3))
    books.accrue(day(7))
    assert books.posted(loan) == 7_000
    books.is_sound()


def test_a_reversed_date_is_accrued_again_on_a_loan_that_has_ended_since(books: EngineBooks) -> None:
    """The date's own interest, and nothing of what the charge-off brought along is taken back."""
    loan = books.lend()
    books.accrue_each(1, 4)
    books.reverse(books.entry_of(loan, day(4)), day(4))
    books.charge_off(loan, day(5))
    assert books.posted(loan) == 4_000, "of the first three dates and the last"
    books.accrue(day(4))
    assert books.posted(loan) == 5_000
    books.is_sound()


def test_a_reversed_date_can_be_reversed_and_accrued_again_and_again(books: EngineBooks) -> None:
    loan = books.lend()
    books.accrue(day(4))
    for round_number in range(3):
        books.reverse(books.entry_of(loan, day(4)))
        assert books.posted(loan) == 1_000 * round_number, "of the late run's four days"
        books.accrue(day(5 + round_number))
        assert books.posted(loan) == 1_000 * (round_number + 1)
        books.accrue(day(4))
        assert books.posted(loan) == 4_000 + 1_000 * (round_number + 1)
    books.is_sound()


def test_a_reversed_entry_gives_its_correction_back_as_well(books: EngineBooks) -> None:
    loan = books.lend()
    books.accrue_each(1, 5)
    books.post(books.disbursement(loan, 1_000_000, day(2)))
    books.accrue(day(6))
    assert books.posted(loan) == 2 * 1_000 + 4 * 2_000
    books.reverse(books.entry_of(loan, day(6)))
    assert books.posted(loan) == 5_000
    books.accrue(day(7))
    assert books.posted(loan) == 2 * 1_000 + 4 * 2_000, "day 6 earns nothing, days 3 to 5 what they should"
    books.is_sound()


def test_a_reversal_that_one_loan_no_longer_owes_is_refused_as_a_whole(books: EngineBooks) -> None:
    paid, owing = books.lend(), books.lend()
    books.accrue_each(1, 2)
    books.post(books.payment(paid, 2_000, day(2)))
    entry_id = books.entry_of(owing, day(2))
    with nothing_changes(books), pytest.raises(Problem) as caught:
        books.reverse(entry_id)
    assert caught.value.code == "amount_exceeds_balance"
    assert [error.field for error in caught.value.errors] == [f"loans.{paid.loan_id}"]


@pytest.mark.parametrize("ending", ["charge-off", "refinance"])
@pytest.mark.parametrize("nights", [(6, 7, 8), (4, 5, 6, 8), (8,), (4, 8, 5)])
def test_an_ending_brings_interest_up_to_its_date_and_no_run_adds_anything(
    books: EngineBooks, ending: str, nights: tuple[int, ...]
) -> None:
    """The dates before it, too, that are made up for afterwards."""
    loan = books.lend()
    books.accrue_each(1, 3)
    new: Loan | None = None
    if ending == "charge-off":
        entry_id = books.charge_off(loan, day(5))
    else:
        entry_id, new = books.refinance(loan, day(5))
    assert books.posted(loan) == 5_000
    for night in nights:
        books.accrue(day(night))
        assert books.posted(loan) == 5_000
        assert books.owed(loan) == (0, 0)
    if new is not None:
        assert books.posted(new) == 3 * 1_005
        books.is_sound()
        return
    books.reverse(entry_id, day(8))
    assert books.posted(loan) == 3_000
    books.accrue(day(9))
    assert books.posted(loan) == 5_000 + 1_000, "five days before the end, and one after it was taken back"
    books.is_sound()


def test_the_reversal_of_a_refinance_takes_its_interest_back(books: EngineBooks) -> None:
    loan = books.lend()
    books.accrue_each(1, 3)
    entry_id, new = books.refinance(loan, day(5))
    books.reverse(entry_id, day(7))
    assert (books.posted(loan), books.owed(loan)) == (3_000, (3_000, 0))
    books.accrue(day(8))
    assert books.posted(loan) == 6_000
    assert books.posted(new) == 2 * 1_005
    books.is_sound()


def test_an_ending_before_what_runs_have_accrued_leaves_the_rest_to_the_next_run(books: EngineBooks) -> None:
    """On its own date the loan did not yet owe what it would take back."""
    loan = books.lend()
    books.accrue_each(1, 6)
    books.charge_off(loan, day(4))
    assert (books.posted(loan), books.owed(loan)) == (6_000, (2_000, 0))
    books.accrue(day(7))
    assert (books.posted(loan), books.owed(loan)) == (4_000, (0, 0))
    books.is_sound()


def test_an_ending_takes_back_what_a_run_has_not_yet_corrected(books: EngineBooks) -> None:
    loan = books.lend()
    books.accrue_each(1, 6)
    books.set_terms(day(2), annual_rate_bps=0)
    entry_id = books.charge_off(loan, day(6))
    assert (books.posted(loan), books.owed(loan)) == (2_000, (0, 0))
    books.reverse(entry_id, day(6))
    assert (books.posted(loan), books.owed(loan)) == (6_000, (6_000, 0))
    books.accrue(day(7))
    assert (books.posted(loan), books.owed(loan)) == (2_000, (2_000, 0))
    books.is_sound()


def test_a_paid_off_loan_is_left_alone_and_comes_back_when_its_past_changes(books: EngineBooks) -> None:
    loan = books.lend()
    books.accrue_each(1, 3)
    books.post(books.payment(loan, 1_003_000, day(3)))
    books.accrue(day(4))
    before = contents(books.tenant_id)["loan"]
    books.accrue_each(5, 6)
    assert contents(books.tenant_id)["loan"] == before
    books.set_terms(day(1), annual_rate_bps=7_300)
    books.accrue(day(7))
    assert (books.posted(loan), books.owed(loan)) == (5_000, (2_000, 0))
    books.is_sound()


@pytest.mark.parametrize("what", ["pause", "restructure"])
def test_a_loan_without_principal_is_corrected_by_what_is_agreed_on_it_alone(books: EngineBooks, what: str) -> None:
    loan = books.lend()
    books.post(books.fee(loan, 70, day(0)))
    books.accrue_each(1, 3)
    books.post(books.payment(loan, 1_003_000, day(3)))
    books.accrue_each(4, 5)
    if what == "pause":
        books.pause(loan, day(2))
    else:
        books.restructure(loan, day(1), annual_rate_bps=0)
    books.accrue(day(6))
    assert books.posted(loan) == 1_000
    books.is_sound()


def test_a_second_run_of_a_date_adds_nothing(books: EngineBooks) -> None:
    for _ in range(3):
        books.lend()
    first = books.accrue(day(1))
    before = {name: what for name, what in contents(books.tenant_id).items() if not name.startswith("accrual_")}
    second = books.accrue(day(1))
    after = contents(books.tenant_id)
    assert {name: after[name] for name in before} == before
    said = ("accrual_run_id", "loan_count", "accrued_count", "total_accrued_minor")
    assert [first[name] for name in said] == [second[name] for name in said]
    assert (first["loan_count"], first["accrued_count"], first["total_accrued_minor"]) == (3, 3, "3000")


def test_a_run_for_an_older_date_brings_only_those_that_are_behind_it(books: EngineBooks) -> None:
    old = books.lend()
    books.accrue(day(10))
    late = books.lend(on=day(3))
    run = books.accrue(day(5))
    assert (run["accrued_count"], run["total_accrued_minor"]) == (1, "2000")
    assert (books.posted(old), books.posted(late)) == (10_000, 2_000)
    books.accrue(day(11))
    assert (books.posted(old), books.posted(late)) == (11_000, 8_000)
    books.is_sound()


def test_an_older_date_does_not_count_what_was_lent_after_it(books: EngineBooks) -> None:
    loan = books.lend()
    books.post(books.disbursement(loan, 1_000_000, day(5)))
    books.post(books.payment(loan, 1_000_000, day(8)))
    for night, posted in ((3, 3_000), (4, 4_000), (6, 7_000), (7, 9_000), (10, 13_000), (11, 14_000)):
        books.accrue(day(night))
        assert books.posted(loan) == posted
    books.is_sound()


def test_a_loan_that_is_made_after_the_chunks_were_cut_is_in_one_of_them(
    books: EngineBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "CHUNK_LOANS", 2)
    for _ in range(5):
        books.lend()
    run_id = books.request(day(1))
    runs._start(books.tenant_id, run_id)
    made = [
        books.lend(loan_id=loan_id)
        for loan_id in (f"{0:08x}{_uuid(Random(1))[8:]}", f"{2**32 - 1:08x}{_uuid(Random(2))[8:]}")
    ]
    made.append(books.lend())
    runs.work(books.tenant_id, run_id)
    assert books.run_of(run_id)["loan_count"] == 8
    assert [books.posted(loan) for loan in books.loans] == [1_000] * 8
    books.is_sound()


def test_a_rate_of_the_loans_own_counts_from_its_date_and_not_from_the_night_that_hears_of_it(
    books: EngineBooks,
) -> None:
    loan = books.lend(annual_rate_bps=3_650)
    books.accrue_each(1, 2)
    books.restructure(loan, day(5), annual_rate_bps=7_300)
    for night, posted in ((3, 3_000), (4, 4_000), (5, 5_000), (6, 7_000), (7, 9_000)):
        books.accrue(day(night))
        assert books.posted(loan) == posted
    books.is_sound()


def test_under_30_360_the_opening_says_what_a_31st_is() -> None:
    """Of two loans of one program, accrued by one statement, one was opened on a 31st."""
    books = engine_books(annual_rate_bps=3_600, day_count_convention="30_360")
    program = ModelProgram("30_360", [ProgramTerms(date.min, 3_600)])
    models = {}
    for opened_on in (date(2025, 1, 15), date(2025, 1, 31)):
        loan = books.lend(on=opened_on.isoformat())
        models[loan] = ModelLoan(program, opened_on, {opened_on: 1_000_000})
    for number in range(31, 91):
        books.accrue(day(number))
        on = date.fromisoformat(day(number))
        assert [books.posted(loan) for loan in models] == [model.whole(on) for model in models.values()]
    books.is_sound()


def test_days_without_interest_make_no_entry(books: EngineBooks) -> None:
    free, paused, unlent = books.lend(annual_rate_bps=0), books.lend(), books.open_loan()
    books.pause(paused, day(1), day(3))
    entries = books.entries()
    for night in (1, 2, 3):
        run = books.accrue(day(night))
        assert (run["state"], run["accrued_count"], run["loan_count"]) == ("complete", 0, 3)
    assert books.entries() == entries
    assert books.accruals() == 0
    books.accrue(day(4))
    assert [books.posted(loan) for loan in (free, paused, unlent)] == [0, 1_000, 0]
    books.is_sound()


def test_a_pause_without_an_end_is_ended_by_another_from_the_same_date(books: EngineBooks) -> None:
    loan = books.lend()
    books.accrue_each(1, 2)
    books.pause(loan, day(2))
    books.accrue(day(4))
    assert books.posted(loan) == 1_000
    books.pause(loan, day(2), day(3))
    books.accrue(day(5))
    assert books.posted(loan) == 3_000
    books.is_sound()


def test_a_correction_behind_a_closed_period_comes_with_the_next_date(books: EngineBooks) -> None:
    loan = books.lend()
    books.accrue_each(1, 5)
    books.close(day(5))
    books.set_terms(day(6), annual_rate_bps=7_300)
    with pytest.raises(Problem, match="closed"):
        books.set_terms(day(5), annual_rate_bps=0)
    books.restructure(loan, day(6), annual_rate_bps=3_650)
    books.accrue_each(6, 7)
    assert books.posted(loan) == 7_000
    books.is_sound()


@pytest.mark.parametrize("rate", [1, 365, 3_650])
def test_the_smallest_amounts_do_not_drift_in_400_nights(rate: int) -> None:
    books = engine_books(annual_rate_bps=rate)
    loans = {books.lend(principal): principal for principal in (1, 7, 99, 100, 137, 5_000, 33_333)}
    nights = range(1, 401) if LONG else [*range(1, 41), *range(41, 400, 13), 400]
    for night in nights:
        books.accrue(day(night))
        if night % 50 == 0 or night < 30:
            for loan, principal in loans.items():
                exact = Fraction(principal * rate * night, 10_000 * 365)
                assert books.posted(loan) == round(exact)
    books.is_sound()


def test_the_mode_changes_with_a_date_and_each_date_has_one_accountant(books: EngineBooks) -> None:
    loan = books.lend()
    books.accrue_each(1, 3)
    with pytest.raises(Problem) as refusal:
        books.set_terms(day(3), accrual_mode="client")
    assert refusal.value.code == "effective_date_refused"
    books.set_terms(day(4), accrual_mode="client")
    with pytest.raises(Problem) as refusal:
        books.request(day(4))
    assert refusal.value.code == "accrual_mode_refuses"
    books.post(books.accrual(day(4), (loan, 1_000_000, 777)))
    books.set_terms(day(6), accrual_mode="engine")
    with pytest.raises(Problem) as refusal:
        books.post(books.accrual(day(6), (loan, 1_000_000, 777)))
    assert refusal.value.code == "accrual_mode_refuses"
    books.accrue(day(7))
    assert books.posted(loan) == 3_000 + 777 + 2_000, "of day 5 nobody has said anything"
    books.is_sound()


def test_a_date_that_the_client_gave_back_is_the_engines_when_it_takes_over() -> None:
    books = engine_books(accrual_mode="client")
    loan = books.lend()
    for _ in range(2):
        books.reverse(books.post(books.accrual(day(4), (loan, 1_000_000, 777))).journal_entry_id)
    books.set_terms(day(4), accrual_mode="engine")
    run = books.accrue(day(4))
    assert (run["exceptions"], books.posted(loan)) == ({}, 1_000)
    books.reverse(books.entry_of(loan, day(4)))
    books.accrue(day(5))
    books.accrue(day(4))
    assert books.posted(loan) == 2_000
    books.is_sound()


# --- What stands in the way ------------------------------------------------------------------------------------------


def test_interest_beyond_64_bits_is_reported_and_stops_no_other(books: EngineBooks) -> None:
    huge, other = books.lend(9 * 10**18, annual_rate_bps=100_000), books.lend()
    run = books.accrue(day(60))
    assert (run["state"], run["exceptions"]) == ("complete_with_exceptions", {huge.loan_id: "amount_out_of_range"})
    assert (books.posted(huge), books.posted(other)) == (0, 60_000)
    books.restructure(huge, day(0), annual_rate_bps=1)
    run = books.accrue(day(60))
    assert (run["state"], run["exceptions"]) == ("complete", {})
    assert books.posted(huge) == round(Fraction(9 * 10**18 * 60, 10_000 * 365))
    assert books.posted(other) == 60_000
    books.is_sound()


def test_loans_whose_interest_together_is_beyond_64_bits_are_accrued_apart(books: EngineBooks) -> None:
    loans = [books.lend(10**18, annual_rate_bps=100_000) for _ in range(5)]
    run = books.accrue(day(300))
    assert (run["state"], run["accrued_count"]) == ("complete", 5)
    assert {books.posted(loan) for loan in loans} == {round(Fraction(10**18 * 10 * 300, 365))}
    books.is_sound()


def test_a_loan_without_terms_is_reported_and_stops_no_other(books: EngineBooks) -> None:
    books.set_terms(day(5), annual_rate_bps=3_650)
    broken, sound = books.lend(), books.lend(on=day(6))
    with walls_off(books.tenant_id, program_terms="program_terms_append_only") as connection:
        connection.execute(
            "DELETE FROM program_terms WHERE tenant_id = %s AND effective_at < %s", (books.tenant_id, day(5))
        )
    run = books.accrue(day(8))
    assert (run["state"], run["exceptions"]) == ("complete_with_exceptions", {broken.loan_id: "no_terms"})
    assert (books.posted(broken), books.posted(sound)) == (0, 2_000)


def test_a_closed_account_keeps_every_loan_from_accruing_and_says_so(books: EngineBooks) -> None:
    loans = [books.lend() for _ in range(3)]
    books.accrue(day(1))
    close = shapes.NewClosure(reason="Moved")  # type: ignore[arg-type]
    books.run(operations.close_account, close, account_code="4000")
    run = books.accrue(day(2))
    assert run["state"] == "complete_with_exceptions"
    assert run["exceptions"] == {loan.loan_id: "account_closed" for loan in loans}
    assert (run["accrued_count"], run["total_accrued_minor"]) == (0, "0")
    assert [books.posted(loan) for loan in loans] == [1_000] * 3


def test_a_closed_account_that_one_loan_needs_stops_that_one_alone(books: EngineBooks) -> None:
    corrected, others = books.lend(), [books.lend() for _ in range(4)]
    books.accrue(day(1))
    books.post(books.payment(corrected, 1_000, day(1)))
    books.restructure(corrected, day(0), annual_rate_bps=0)
    close = shapes.NewClosure(reason="Moved")  # type: ignore[arg-type]
    books.run(operations.close_account, close, account_code="2000")
    assert books.accrue(day(2))["exceptions"] == {corrected.loan_id: "account_closed"}
    assert [books.posted(loan) for loan in others] == [2_000] * 4


def test_a_period_that_closes_before_its_run_leaves_the_date_to_the_next_one(books: EngineBooks) -> None:
    loans = [books.lend() for _ in range(3)]
    run_id = books.request(day(2))
    books.close(day(3))
    runs.work(books.tenant_id, run_id)
    run = books.run_of(run_id)
    assert run["state"] == "complete_with_exceptions"
    assert run["exceptions"] == {loan.loan_id: "period_closed" for loan in loans}
    books.accrue(day(4))
    assert [books.posted(loan) for loan in loans] == [4_000] * 3
    books.is_sound()


def _break(books: EngineBooks, loans: list[Loan], currency: str = "?") -> None:
    """What no code can have made: a wall that no rule knows refuses the loans' lines."""
    with walls_off(books.tenant_id, loan="loan_identity_stays") as connection:
        ids = [loan.loan_id for loan in loans]
        connection.execute("UPDATE loan SET currency = %s WHERE id = ANY (%s::uuid[])", (currency, ids))


@pytest.mark.parametrize("broken", [0, 4, 8])
def test_the_one_loan_at_fault_is_found_by_halving(
    books: EngineBooks, broken: int, caplog: pytest.LogCaptureFixture
) -> None:
    loans = sorted((books.lend() for _ in range(9)), key=lambda loan: loan.loan_id)
    _break(books, [loans[broken]])
    run = books.accrue(day(1))
    assert (run["state"], run["exceptions"]) == (
        "complete_with_exceptions",
        {loans[broken].loan_id: "internal_error"},
    )
    assert (run["accrued_count"], run["total_accrued_minor"]) == (8, "8000")
    assert "cannot be accrued" in caplog.text
    _break(books, [loans[broken]], "USD")
    run = books.accrue(day(1))
    assert (run["state"], run["exceptions"]) == ("complete", {})
    assert (run["loan_count"], run["accrued_count"]) == (9, 9)
    assert [books.posted(loan) for loan in loans] == [1_000] * 9
    books.is_sound()


def test_a_date_that_is_accrued_again_and_fails_is_reported(books: EngineBooks) -> None:
    loan = books.lend()
    books.accrue(day(1))
    books.reverse(books.entry_of(loan, day(1)))
    close = shapes.NewClosure(reason="Moved")  # type: ignore[arg-type]
    books.run(operations.close_account, close, account_code="4000")
    assert books.accrue(day(1))["exceptions"] == {loan.loan_id: "account_closed"}


def test_what_was_accrued_before_is_no_exception_of_a_run_that_fails(books: EngineBooks) -> None:
    done = books.lend()
    books.accrue(day(1))
    late = books.lend()
    close = shapes.NewClosure(reason="Moved")  # type: ignore[arg-type]
    books.run(operations.close_account, close, account_code="4000")
    assert books.accrue(day(1))["exceptions"] == {late.loan_id: "account_closed"}
    assert books.posted(done) == 1_000


def test_two_workers_who_cut_their_chunks_at_once_get_pieces_of_their_own(
    books: EngineBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "CHUNK_LOANS", 8)
    loans = sorted((books.lend() for _ in range(32)), key=lambda loan: loan.loan_id)
    broken = loans[3::8]
    _break(books, broken)
    run_id = books.request(day(1))
    became = race(*[lambda: runs.work(books.tenant_id, run_id)] * 4)
    assert Counter(map(str, became)) == {"ended": 1, "others": 3}
    run = books.run_of(run_id)
    assert run["exceptions"] == {loan.loan_id: "internal_error" for loan in broken}
    assert run["accrued_count"] == 28


# --- The calendar ----------------------------------------------------------------------------------------------------


def test_missed_dates_are_made_up_for_in_their_order_and_not_twice(books: EngineBooks) -> None:
    today = books.today
    loan = books.lend(on=(today - 5 * DAY).isoformat())
    _made(books, today - 3 * DAY)
    dates = []
    while made := runs.due(books.tenant_id, "schedule:test"):
        (run_id,) = made
        dates.append(books.run_of(run_id)["accrual_date"])
        assert runs.due(books.tenant_id, "schedule:test") == [], "one after the other, and not sent again at once"
        assert runs.work(books.tenant_id, run_id) == "ended"
        assert runs.work(books.tenant_id, run_id) == "others"
    assert dates == [(today - ago * DAY).isoformat() for ago in (3, 2, 1, 0)]
    assert books.posted(loan) == 5_000
    assert books.accruals() == 4


def test_sweeps_at_once_make_one_run(books: EngineBooks) -> None:
    books.lend(on=(books.today - 5 * DAY).isoformat())
    _made(books, books.today - 3 * DAY)
    outcomes = race(*[lambda: runs.due(books.tenant_id, "schedule:test")] * 6)
    made = {run_id for outcome in outcomes if isinstance(outcome, list) for run_id in outcome}
    assert len(made) == 1, outcomes
    assert books.rows("SELECT count(*) FROM accrual_run") == [(1,)]


def test_a_run_that_nobody_has_brought_on_for_a_while_is_sent_again(books: EngineBooks) -> None:
    """Also one that was opened again, and one whose last chunk somebody died over."""
    books.lend()
    for of_today in runs.due(books.tenant_id, "schedule:test"):
        runs.work(books.tenant_id, of_today)
    run_id = books.request(day(1))
    for prepare in (lambda: None, lambda: runs._start(books.tenant_id, run_id), lambda: books.accrue(day(1))):
        prepare()
        books.request(day(1))
        assert runs.due(books.tenant_id, "schedule:test") == []
        with walls_off(books.tenant_id, accrual_run="accrual_run_identity") as connection:
            connection.execute(
                """UPDATE accrual_run SET requested_at = requested_at - interval '1 hour',
                                          started_at = started_at - interval '1 hour' WHERE id = %s""",
                (run_id,),
            )
        assert runs.due(books.tenant_id, "schedule:test") == [run_id]


def test_a_closed_period_and_the_clients_dates_are_not_due(books: EngineBooks) -> None:
    today = books.today
    books.lend(on=(today - 9 * DAY).isoformat())
    _made(books, today - 9 * DAY)
    books.close((today - 4 * DAY).isoformat())
    (run_id,) = runs.due(books.tenant_id, "schedule:test")
    assert books.run_of(run_id)["accrual_date"] == (today - 3 * DAY).isoformat()
    runs.work(books.tenant_id, run_id)
    books.set_terms((today - 2 * DAY).isoformat(), accrual_mode="client")
    assert runs.due(books.tenant_id, "schedule:test") == []
    books.set_terms((today - 1 * DAY).isoformat(), accrual_mode="engine")
    (run_id,) = runs.due(books.tenant_id, "schedule:test")
    assert books.run_of(run_id)["accrual_date"] == (today - 1 * DAY).isoformat()


def _made(books: EngineBooks, on: date) -> None:
    """Let the program have existed since a date."""
    with walls_off(books.tenant_id, program="program_append_only") as connection:
        connection.execute("UPDATE program SET created_at = %s WHERE tenant_id = %s", (on, books.tenant_id))
