"""The accrual engine against the naive model of interest, on books of random lives; and its rules, one story each.

After every run, on every day, what the journal has posted of a loan is the model's exact figure, rounded once. `HPTS_LONG=1`
plays 10,000 loans for 400 days.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from random import Random
from typing import Any

import pytest

from hpts.problems import Problem
from hpts.tenancy import tenant_transaction
from ledger import masters, runs
from ledger.models import DAY_COUNTS
from tests.conftest import Loan
from tests.ledger.conftest import onlooker
from tests.ledger.engine import EngineBooks, engine_books
from tests.ledger.interest_model import DAY, ModelLoan, ModelProgram, OwnTerms, Pause, ProgramTerms

LONG = os.environ.get("HPTS_LONG") == "1"
LOANS = int(os.environ.get("BOOK_LOANS", 10_000 if LONG else 28))
DAYS = int(os.environ.get("BOOK_DAYS", 400 if LONG else 45))
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
            (1, self.charge_off),
            (1, self.refinance),
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
        owed = self.books.owed(life.loan)[0]
        expected = max(life.model.whole(on) - life.posted_minor, -owed)
        self._take(self.books.charge_off(life.loan, on.isoformat()), came_with=expected)

    def refinance(self, life: Life, on: date) -> None:
        owed = self.books.owed(life.loan)[0]
        expected = max(life.model.whole(on) - life.posted_minor, -owed)
        entry_id, new = self.books.refinance(life.loan, on.isoformat(), cash_out=self.dice.choice([0, 5_000]))
        self._meet(new, on)
        self._take(entry_id, came_with=expected)

    def _from(self, on: date) -> str:
        return self.dice.choice([on, self.today]).isoformat()

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Problem as problem:
            assert problem.code != "internal_error", problem
            self.refused[f"{name}: {problem.code}"] += 1
        else:
            self.told[name] += 1

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
        if on in life.model.given_back:
            since = life.model.given_back.pop(on)
            life.model.forget(since + DAY)
            expected = life.model.whole(max(before.through or on, on))
            if expected == life.posted_minor:  # There is nothing to accrue: the date stays as it is.
                life.model.given_back[on] = since
                life.model.forget(since + DAY)
            else:
                self.told["accrued again"] += 1
        elif on > life.model.opened_on and before.version and (before.through is None or before.through < on):
            # An ended loan was brought to its end when it ended.
            ended_by = before.last_effective_at if before.ended_as else None
            expected = life.model.whole(max(on, ended_by or on))
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
def test_what_is_posted_is_the_exact_figure_rounded_once_on_every_day(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
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
