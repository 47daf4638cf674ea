"""Whole lives of loans against the naive model: random steps of every kind, the same refusals, lines, balances and states.

The lives go through the product's own rules, proofs and documents in memory, and fewer of them through PostgreSQL;
`HPTS_LONG=1` (make test-long) plays 5,000 of 200 steps. A failure prints the shortest life that fails, and the seed that
`--hypothesis-seed` takes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from typing import Any, TypeVar

import pytest
import rfc8785
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from hpts.problems import Problem
from ledger.chart import CONSUMER_LENDING
from ledger.events import (
    ENCUMBRANCE,
    PENDING,
    SETTLED,
    Accrual,
    AccruedLoan,
    ChargeOff,
    Disbursement,
    DisbursementSettled,
    Event,
    EventKind,
    FeeAssessed,
    FeeWaived,
    Line,
    ManualAdjustment,
    PaymentReceived,
    PaymentReturned,
    PaymentSettled,
    PaymentUnallocated,
    Recovery,
    Refinance,
    Restructure,
    Reversal,
    SuspenseAllocated,
)
from ledger.money import MAX_MINOR
from tests.conftest import Loan
from tests.ledger.conftest import OPENED_ON
from tests.ledger.keepers import CAST, LIMIT, Database, Keeper, Memory, answer_from_memory
from tests.ledger.model import NEVER_BELOW_ZERO, OWED, SUSPENSE, Model, Move, Moves, Posted, Terms, totals

T = TypeVar("T")

LONG = os.environ.get("HPTS_LONG") == "1"

# --- What steps are made of ------------------------------------------------------------------------------------------
# Loans, entries and targets are named by a number that counts round what there is.

WHICH = st.integers(0, 40)
# Few days, so that events meet, and more at the end than before; now and then before the opening, or in the future.
DAYS = st.sampled_from([*range(24), *[24] * 8, 25, 25, 26, -1, 10**5])
LATE = st.sampled_from([*[26, 27, 28] * 5, *range(0, 26, 3)])
MINOR = st.one_of(st.integers(1, 300), st.sampled_from([LIMIT // 3, 2_000, 4_000, 2_000, 4_000, MAX_MINOR]))
SMALL = st.integers(0, 120)
# Quarters of what there is, and a little more or less.
PART = st.tuples(st.sampled_from([1, 2, 3, 4, 4]), st.sampled_from([0, 0, 0, -1, 1, 50]))
LAYERS = st.sampled_from([SETTLED, SETTLED, PENDING])
CODES = st.sampled_from(
    [*[account.code for account in CONSUMER_LENDING] * 2, *["1100", "1200", "1300", "2000"] * 3, "7777"]
)
ORDERS = st.permutations(["fees", "interest", "principal"]).map(tuple)
SELDOM = st.integers(0, 9).map(lambda number: number == 9)
PAIRS = st.lists(
    st.tuples(
        CODES,
        CODES,
        st.one_of(st.integers(1, 400), st.integers(1, 400), st.just(MAX_MINOR)),
        st.sampled_from([*range(20), None]),
        st.sampled_from([SETTLED, PENDING, ENCUMBRANCE]),
        SELDOM,
    ),
    min_size=1,
    max_size=3,
)
FINAL = (Reversal, PaymentReturned, PaymentSettled, PaymentUnallocated, DisbursementSettled)


def _day(number: int) -> date:
    return OPENED_ON + timedelta(days=number)


class Life(RuleBasedStateMachine):
    """The same steps for the product and for the model, held against each other after each."""

    def __init__(self, keeper: Keeper, reached: Counter[str]) -> None:
        super().__init__()
        self.keeper = keeper
        self.reached = reached
        self.model = Model(
            keeper.today,
            {
                loan.loan_id: Terms(loan.borrower_id, loan.program_id, of.opened_on, loan.currency, of.limit_minor)
                for loan, of in zip(keeper.loans, CAST, strict=True)
            },
        )
        self.waiting: list[Event] = []
        self.wanted = 1
        # A step has failed: there is nothing more to say at the end.
        self.broken = False

    @initialize(minor=st.sampled_from([0, 400, 4_000, 40_000]), day=st.integers(0, 20))
    def begin(self, minor: int, day: int) -> None:
        """Most lives begin with money lent."""
        for loan in self._all_living() if minor else ():
            limit = self.model.loans[loan.loan_id].limit_minor
            lent = min(minor, limit // 2) if limit else minor
            self._happens(Disbursement(**self._money(loan, lent, day)))

    # Money out and in

    @rule(which=WHICH, minor=MINOR, day=DAYS, layer=LAYERS, lie=SELDOM)
    def disburse(self, which: int, minor: int, day: int, layer: str, lie: bool) -> None:
        about = self._money(self._living(which), minor, day)
        self._happens(Disbursement(**about | ({"currency": "JPY"} if lie else {}), layer=layer))

    @precondition(lambda self: self._drawn())
    @rule(which=WHICH, day=LATE, sure=SELDOM)
    def settle_a_disbursement(self, which: int, day: int, sure: bool) -> None:
        entry = _nth_from_the_end(self._entries(Disbursement) if sure else self._drawn(), which)
        self._happens(DisbursementSettled(effective_at=_day(day), disbursement_event_id=entry.entry_id))

    @rule(which=WHICH, minor=MINOR, day=DAYS, lie=SELDOM)
    def pay(self, which: int, minor: int, day: int, lie: bool, layer: str = SETTLED) -> None:
        self._happens(
            PaymentReceived(
                **self._money(self._living(which), minor, day),
                borrower_id=self.keeper.loans[2].borrower_id if lie else None,
                layer=layer,
                source_method="ach",
                external_ref=f'{len(self.model.posted)}.{len(self.waiting)} é€"\\',
            )
        )

    @rule(which=WHICH, minor=MINOR, day=DAYS)
    def announce_a_payment(self, which: int, minor: int, day: int) -> None:
        self.pay(which, minor, day, False, PENDING)

    @precondition(lambda self: self._owing())
    @rule(which=WHICH, more=st.sampled_from([0, 0, 5, 200, 2_000]), day=LATE)
    def pay_off(self, which: int, more: int, day: int) -> None:
        loan = self._one_owing(which)
        minor = sum(self._free(loan, code, day) for code in OWED.values()) + more
        self._happens(PaymentReceived(**self._money(loan, max(1, minor), day), source_method="wire"))

    @precondition(lambda self: self._announced())
    @rule(which=WHICH, day=LATE, sure=SELDOM)
    def settle_a_payment(self, which: int, day: int, sure: bool) -> None:
        entry = _nth_from_the_end(self._entries(PaymentReceived) if sure else self._announced(), which)
        self._happens(PaymentSettled(effective_at=_day(day), payment_event_id=entry.entry_id))

    @precondition(lambda self: self._holding(SUSPENSE))
    @rule(which=WHICH, part=PART, day=LATE)
    def allocate_suspense(self, which: int, part: tuple[int, int], day: int) -> None:
        owing = [loan for loan in self._holding(SUSPENSE) if any(self._free(loan, code, day) for code in OWED.values())]
        loan = owing[which % len(owing)] if owing else self._one_holding(which, SUSPENSE)
        takes = sum(self._free(loan, code, day) for code in OWED.values())
        minor = _share(min(self._free(loan, SUSPENSE, day), takes), part)
        self._happens(SuspenseAllocated(**self._money(loan, minor, day)))

    @precondition(lambda self: self._entries(PaymentReceived))
    @rule(which=WHICH, day=LATE, fee=st.sampled_from([None, None, 35]), sure=SELDOM)
    def return_a_payment(self, which: int, day: int, fee: int | None, sure: bool) -> None:
        payments = self._entries(PaymentReceived)
        standing = [p for p in self._standing() if p in payments and not self.model.returned(p.entry_id) and not sure]
        # Most of all those whose money waited and was allocated since.
        used = {p.event.loan_ids for p in self._entries(SuspenseAllocated) if which % 2}
        waited = [p for p in standing if p.event.loan_ids in used and any(move.code == SUSPENSE for move in p.moves)]
        entry = _nth_from_the_end(waited or standing or payments, which)
        events: list[Event] = [
            PaymentReturned(effective_at=_day(day), payment_event_id=entry.entry_id, return_code="R01")
        ]
        if fee is not None:
            events.append(FeeAssessed(**self._money(self._loan(entry.event.loan_ids[0]), fee, day)))
        self._happens(*events)

    @precondition(lambda self: self._holding(SUSPENSE))
    @rule(which=WHICH, part=PART, day=LATE)
    def refund(self, which: int, part: tuple[int, int], day: int) -> None:
        loan = self._one_holding(which, SUSPENSE)
        self._takes_from_suspense(loan, "1000", SETTLED, _share(self._free(loan, SUSPENSE, day), part), day)

    @precondition(lambda self: self._announced())
    @rule(which=WHICH, minor=SMALL, day=LATE)
    def cancel_announced_money_by_hand(self, which: int, minor: int, day: int) -> None:
        loan = self._loan(_nth_from_the_end(self._announced(), which).event.loan_ids[0])
        self._takes_from_suspense(loan, "1010", PENDING, minor + 1, day)

    def _takes_from_suspense(self, loan: Loan, code: str, layer: str, minor: int, day: int) -> None:
        about = (minor, loan.currency, layer, loan.loan_id)
        lines = (Line(SUSPENSE, "DR", *about), Line(code, "CR", *about))
        self._happens(ManualAdjustment(effective_at=_day(day), description="By hand", lines=lines))

    # Servicing

    @rule(program=st.integers(0, 1), day=DAYS, interest=st.lists(SMALL, min_size=1, max_size=3), lie=SELDOM)
    def accrue(self, program: int, day: int, interest: list[int], lie: bool) -> None:
        program_id = self.keeper.programs[program]
        loans = [loan for loan in self._all_living() if lie or loan.program_id == program_id]
        items = [
            AccruedLoan(
                loan_id=loan.loan_id,
                outstanding_principal_minor=self.model.balance(loan.loan_id, "1100", through=_day(day - 1)),
                interest_minor=minor,
            )
            for loan, minor in zip(loans, interest, strict=False)
        ]
        if any(isinstance(event, Accrual) for event in self.waiting):
            self._meanwhile()  # One transaction accrues one date.
        self._happens(
            Accrual(effective_at=_day(day), program_id=program_id, day_count_convention="ACT_365", loans=tuple(items))
        )

    @rule(which=WHICH, minor=SMALL, day=DAYS)
    def assess_a_fee(self, which: int, minor: int, day: int) -> None:
        self._happens(FeeAssessed(**self._money(self._living(which), minor + 1, day)))

    @precondition(lambda self: self._holding(OWED["fees"]))
    @rule(which=WHICH, part=PART, day=LATE)
    def waive_a_fee(self, which: int, part: tuple[int, int], day: int) -> None:
        loan = self._one_holding(which, OWED["fees"])
        self._happens(FeeWaived(**self._money(loan, _share(self._free(loan, OWED["fees"], day), part), day)))

    @precondition(lambda self: self._owing() and self._few_have_ended())
    @rule(which=WHICH, day=LATE)
    def charge_off(self, which: int, day: int) -> None:
        self._happens(ChargeOff(loan_id=self._one_owing(which).loan_id, effective_at=_day(day)))

    @precondition(lambda self: self._charged_off())
    @rule(which=WHICH, minor=SMALL, day=LATE, sure=SELDOM)
    def recover(self, which: int, minor: int, day: int, sure: bool) -> None:
        ended = self._all_living() if sure else self._charged_off()
        self._happens(Recovery(**self._money(ended[which % len(ended)], minor + 1, day)))

    @precondition(lambda self: self._owing() and self._few_have_ended())
    @rule(which=WHICH, into=WHICH, cash_out=st.sampled_from([0, 0, 70, LIMIT]), day=LATE, lie=SELDOM)
    def refinance(self, which: int, into: int, cash_out: int, day: int, lie: bool) -> None:
        old = self._one_owing(which)
        fresh = [loan for loan in self.keeper.loans if loan not in self._all_living()]
        same = [loan for loan in fresh if lie or (loan.borrower_id, loan.currency) == (old.borrower_id, old.currency)]
        if any(isinstance(event, Refinance) for event in self.waiting):
            self._meanwhile()
        elif same:
            self._happens(
                Refinance(
                    loan_id=old.loan_id,
                    new_loan_id=same[into % len(same)].loan_id,
                    cash_out_minor=cash_out,
                    effective_at=_day(day),
                )
            )

    @precondition(lambda self: self._owing())
    @rule(which=WHICH, interest=st.booleans(), fees=st.booleans(), day=LATE)
    def restructure(self, which: int, interest: bool, fees: bool, day: int) -> None:
        self._happens(
            Restructure(
                loan_id=self._one_owing(which).loan_id,
                effective_at=_day(day),
                capitalise_interest=interest,
                capitalise_fees=fees,
            )
        )

    # Corrections

    @precondition(lambda self: self._standing())
    @rule(kind=WHICH, which=WHICH, day=LATE, sure=SELDOM)
    def reverse(self, kind: int, which: int, day: int, sure: bool) -> None:
        """Of all kinds equally often, however seldom they are; and now and then what is never reversed."""
        entries = self.model.posted if sure else self._standing()
        kinds = sorted({p.event.kind for p in entries})
        entry = _nth_from_the_end([p for p in entries if p.event.kind == kinds[kind % len(kinds)]], which)
        self._happens(Reversal(effective_at=_day(day), reverses_entry_id=entry.entry_id, reason_code="other"))

    @precondition(lambda self: self._entries(PaymentReceived))
    @rule(which=WHICH, day=st.sampled_from([0, 0, 0, *range(28)]))
    def replan(self, which: int, day: int) -> None:
        """Every planned event is allowed by itself; and a second plan moves nothing any more."""
        self._meanwhile()
        paid = {p.event.loan_ids[0] for p in self._entries(PaymentReceived)}
        # The refinanced ones first: they have the most to be put right.
        loans = sorted([loan.loan_id for loan in self.keeper.loans if loan.loan_id in paid], key=self.model.state)
        loan_id = loans[-1 - which % len(loans)]
        self.broken = True
        self._replans(loan_id, _day(day))
        assert not any(self._replans(loan_id, _day(day)).values()), "a second plan moves money"
        self.broken = False

    def _replans(self, loan_id: str, since: date) -> Counter[tuple[object, ...]]:
        """What a plan moves in all, per day and account."""
        moved: Counter[tuple[object, ...]] = Counter()
        planned, code = _or_refusal(lambda: self.keeper.replan(loan_id, since))
        if planned is None:
            self.reached[f"replan: {code}"] += 1
            closed = self.model.closed_through >= OPENED_ON
            huge = any(move.debit_minor == MAX_MINOR for p in self.model.touched(loan_id) for move in p.moves)
            assert (code == "period_closed" and closed) or (code == "amount_out_of_range" and huge), code
            return moved
        for event, entry_id in planned:
            decision = self.model.decide(event)
            assert not decision.refusals, f"{event}: planned, the model refuses it as {decision.refusals}"
            self.model.take(entry_id, event, decision)
            self.reached[f"replan {type(event).__name__}"] += 1
            for move in decision.moves:
                moved[event.effective_at, move.code] += move.debit_minor
        self.keeper.agree(self.model)
        return moved

    @rule(day=DAYS, pairs=PAIRS, lie=SELDOM)
    def adjust(self, day: int, pairs: list[tuple[Any, ...]], lie: bool) -> None:
        lines = []
        for debit, credit, minor, which, layer, foreign in pairs:
            loan = None if which is None else self._living(which)
            currency = "JPY" if foreign else loan.currency if loan else "USD"
            about = (currency, layer, loan.loan_id if loan else None)
            lines += [Line(debit, "DR", minor, *about), Line(credit, "CR", minor + lie, *about)]
        self._happens(ManualAdjustment(effective_at=_day(day), description="By hand", lines=tuple(lines)))

    # Around them

    @rule(count=st.integers(2, 4))
    def together(self, count: int) -> None:
        """The next events come in one transaction."""
        self._meanwhile()
        self.wanted = count

    @rule(program=st.integers(0, 1), day=st.integers(0, 28), order=ORDERS)
    def change_the_waterfall(self, program: int, day: int, order: tuple[str, ...]) -> None:
        self._meanwhile()
        program_id = self.keeper.programs[program]
        self.keeper.change_waterfall(program_id, _day(day), order)
        self.model.waterfalls.append((program_id, _day(day), order))

    @rule(days=st.integers(0, 2), future=SELDOM)
    def close_a_period(self, days: int, future: bool) -> None:
        self._meanwhile()
        closed = max(self.model.closed_through, _day(-10))
        through = self.keeper.today + timedelta(days=1) if future else closed + timedelta(days=days)
        refusals = self.model.close(through)
        _, code = _or_refusal(lambda: self.keeper.close(through))
        self.reached[f"period: {code}" if code else "period"] += 1
        assert (code in refusals) if code else not refusals, f"close {through}: {code}, the model says {refusals}"

    def teardown(self) -> None:
        if self.broken:
            return
        self._meanwhile()
        agree(self.model, self.keeper.documents())
        self.keeper.is_sound(self.model)

    # How a step is held against the model

    def _happens(self, *events: Event) -> None:
        self.waiting += events
        if len(self.waiting) >= self.wanted:
            self._meanwhile()

    def _meanwhile(self) -> None:
        """Post what waits, in one transaction."""
        events, self.waiting, self.wanted = self.waiting, [], 1
        if events:
            self.broken = True
            self._hold_against(events)
            self.broken = False

    def _hold_against(self, events: list[Event]) -> None:
        refused: tuple[Event, frozenset[str]] | None = None
        taken: list[tuple[str, Event, Moves]] = []
        for event in events:
            decision = self.model.decide(event)
            if decision.refusals:
                refused = (event, decision.refusals)
                break
            if decision.moves:
                taken.append((f"new {len(taken)}", event, decision.moves))
                self.model.take(taken[-1][0], event, decision)
        answer, code = _or_refusal(lambda: self.keeper.post(*events))
        posted = [entry_id for entry_id in answer or () if entry_id]
        if code is not None:
            self.reached[f"{(refused or (events[0],))[0].kind}: {code}"] += 1
            self.model.forget(len(taken))
            assert refused is not None, f"{events}: refused as {code}, the model says it is fine"
            assert code in refused[1], f"{events}: refused as {code}, the model says {refused}"
            return
        assert refused is None, f"{events}: posted, the model refuses {refused}"
        assert len(posted) == len(taken)
        self.model.rename(dict(zip([name for name, *_ in taken], posted, strict=True)))
        for event in events:
            self.reached[event.kind.value] += 1
        for p in self.model.posted[-len(taken) :] if taken else ():
            self.reached["a return undoes allocations"] += bool(p.undone)
            lent_again = isinstance(p.event, PaymentReturned) and p.moves[-1].code == "1100" and p.moves[-1].debit_minor
            self.reached["a return is principal again"] += bool(lent_again)
        for _, event, moves in taken:
            assert sum(move.debit_minor for move in moves) == 0
            for move in moves:
                if move.loan_id is not None and move.code in NEVER_BELOW_ZERO:
                    lowest = self.model.lowest(move.loan_id, move.code, move.layer, OPENED_ON)
                    assert lowest >= 0, f"{event}: {move}"
        self.keeper.agree(self.model)

    # What steps choose from

    def _money(self, loan: Loan, minor: int, day: int) -> dict[str, Any]:
        """What every event that moves an amount says."""
        about = {"loan_id": loan.loan_id, "currency": loan.currency}
        return {**about, "amount_minor": minor, "effective_at": _day(day)}

    def _loan(self, loan_id: str) -> Loan:
        return next(loan for loan in self.keeper.loans if loan.loan_id == loan_id)

    def _all_living(self) -> list[Loan]:
        """The loans that live from the beginning, and those that something has touched."""
        touched = {move.loan_id for p in self.model.posted for move in p.moves}
        return [loan for number, loan in enumerate(self.keeper.loans) if number < 3 or loan.loan_id in touched]

    def _living(self, which: int) -> Loan:
        living = self._all_living()
        return living[which % len(living)]

    def _owing(self) -> list[Loan]:
        """The loans that owe something and have not ended."""
        return [loan for loan in self._all_living() if self._owes(loan) and self.model.state(loan.loan_id) == "open"]

    def _owes(self, loan: Loan) -> bool:
        return any(self.model.balance(loan.loan_id, code) for code in OWED.values())

    def _one_owing(self, which: int) -> Loan:
        """One of them; now and then any loan, first of all one that has ended and owes something since."""
        owing = self._owing()
        if which % 8 == 7:
            return max(self._all_living(), key=lambda loan: (loan not in owing) + self._owes(loan))
        return owing[which % len(owing)]

    def _few_have_ended(self) -> bool:
        states = [self.model.state(loan.loan_id) for loan in self._all_living()]
        return sum(state in ("charged_off", "refinanced") for state in states) * 2 < len(states)

    def _charged_off(self) -> list[Loan]:
        return [loan for loan in self._all_living() if self.model.state(loan.loan_id) == "charged_off"]

    def _holding(self, code: str) -> list[Loan]:
        """The loans that hold something on an account."""
        return [loan for loan in self._all_living() if self.model.balance(loan.loan_id, code)]

    def _one_holding(self, which: int, code: str) -> Loan:
        """One of them; now and then any loan."""
        holding = self._holding(code)
        return self._living(which) if which == 7 else holding[which % len(holding)]

    def _free(self, loan: Loan, code: str, day: int) -> int:
        return self.model.free(loan.loan_id, code, SETTLED, _day(day))

    def _entries(self, kind: type[Event]) -> list[Posted]:
        return [p for p in self.model.posted if isinstance(p.event, kind)]

    def _drawn(self) -> list[Posted]:
        """Disbursements that wait to be settled."""
        return [p for p in self._entries(Disbursement) if not self.model.settlement(p.entry_id)]

    def _announced(self) -> list[Posted]:
        """Payments that wait to be settled, as far as their layer tells."""
        payments = self._entries(PaymentReceived)
        return [p for p in payments if p.moves[0].layer == PENDING and not self.model.settlement(p.entry_id)]

    def _standing(self) -> list[Posted]:
        """What may be reversable by its kind, and has not been reversed."""
        undone = {p.event.reverses_entry_id for p in self.model.posted if isinstance(p.event, Reversal)}
        return [p for p in self.model.posted if not isinstance(p.event, FINAL) and p.entry_id not in undone]


class LifeInOrder(Life):
    """A life in which every event counts on a day of its own, after all before it: nothing came late."""

    days = 0

    def _happens(self, *events: Event) -> None:
        self.days += 1
        super()._happens(*(replace(event, effective_at=_day(self.days)) for event in events))

    def change_the_waterfall(self) -> None:
        """Not a rule here: terms may change for a date that has passed."""

    def _replans(self, loan_id: str, since: date) -> Counter[tuple[object, ...]]:
        before = len(self.model.posted)
        moved = super()._replans(loan_id, OPENED_ON)
        assert len(self.model.posted) == before, "everything came in order, and something is planned"
        return moved

    def teardown(self) -> None:
        if not self.broken:
            self._meanwhile()
            for loan in self._all_living():
                self._replans(loan.loan_id, OPENED_ON)
        super().teardown()


def _nth_from_the_end(entries: list[Posted], which: int) -> Posted:
    return entries[-1 - which % len(entries)]


def _share(there: int, part: tuple[int, int]) -> int:
    quarters, more = part
    return max(1, there * quarters // 4 + more)


def _or_refusal(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """What the product answers, or the code of its refusal."""
    try:
        return work(), None
    except Problem as problem:
        return None, problem.code


# --- Documents -------------------------------------------------------------------------------------------------------


def moves_of(document: dict[str, Any]) -> Moves:
    """What a document says, as the model says it."""
    return tuple(
        Move(
            line["account_code"],
            line["layer"],
            line["currency"],
            line.get("loan_id"),
            int(line["amount_minor"]) * (1 if line["direction"] == "DR" else -1),
        )
        for line in document["lines"]
    )


def by_side(moves: Moves) -> Counter[tuple[object, ...]]:
    """What moves per account, layer, currency, loan and side, in however many lines."""
    sums: Counter[tuple[object, ...]] = Counter()
    for move in moves:
        sums[move.code, move.layer, move.currency, move.loan_id, move.debit_minor > 0] += move.debit_minor
    return sums


def agree(model: Model, documents: dict[str, str]) -> None:
    """Every entry says what the model expected, in the canonical form, and every reversal is the mirror of its entry."""
    read = {entry_id: json.loads(text) for entry_id, text in documents.items()}
    assert read.keys() == {posted.entry_id for posted in model.posted}
    for posted in model.posted:
        document = read[posted.entry_id]
        assert by_side(moves_of(document)) == by_side(posted.moves), posted.event
        assert document["event_type"] == posted.event.kind
        assert documents[posted.entry_id].encode() == rfc8785.dumps(document), "the document is not canonical"
        assert [line["sequence"] for line in document["lines"]] == list(range(1, len(document["lines"]) + 1))
        for line in document["lines"]:
            assert line.get("borrower_id") == (model.loans[line["loan_id"]].borrower_id if "loan_id" in line else None)
        if isinstance(posted.event, Reversal):
            original = moves_of(read[document["reverses_entry_id"]])
            assert not totals([*moves_of(document), *original]), "a reversal leaves something of its entry"
        if isinstance(posted.event, PaymentReturned):
            payment = posted.event.payment_event_id
            assert document["reverses_entry_id"] == (model.settlement(payment) or model.by_id(payment)).entry_id
    # So the books are those of a life in which what was reversed never happened, and nothing is lost in them.
    undone = {p.event.reverses_entry_id for p in model.posted if isinstance(p.event, Reversal)}
    standing = [p for p in model.posted if p.entry_id not in undone and not isinstance(p.event, Reversal)]
    assert model.totals() == totals(move for p in standing for move in p.moves)
    trial_balance: Counter[tuple[str, str]] = Counter()
    for (_, layer, currency, _), net in model.totals().items():
        trial_balance[layer, currency] += net
    assert not any(trial_balance.values())


# --- The runs --------------------------------------------------------------------------------------------------------


def play(keeper: Callable[[], Keeper], lives: int, steps: int, life: type[Life] = Life, **changes: Any) -> Counter[str]:
    """Play lives; answers how often each kind was posted and each refusal given."""
    reached: Counter[str] = Counter()
    run_state_machine_as_test(
        lambda: life(keeper(), reached),  # type: ignore[arg-type]
        settings=settings(
            max_examples=lives,
            stateful_step_count=steps,
            deadline=None,
            # Without Hypothesis' own store of failures, a failure prints the seed to run it again with.
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
            **changes,
        ),
    )
    return reached


def test_lives_of_loans_post_what_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_from_memory(monkeypatch)
    play(Memory, *((5_000, 200) if LONG else (250, 100)))


def test_lives_in_which_everything_comes_in_order_leave_nothing_to_replan(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_from_memory(monkeypatch)
    play(Memory, *((1_000, 100) if LONG else (40, 50)), LifeInOrder)


def test_lives_of_loans_in_postgresql_post_what_the_model_says() -> None:
    play(Database, *((500, 100) if LONG else (15, 60)))


REFUSALS = """
    account_not_found accrual_already_posted already_returned already_reversed already_settled amount_exceeds_balance
    amount_exceeds_limit amount_out_of_range borrower_mismatch currency_mismatch effective_date_refused loan_state_refuses
    not_reversible period_closed unbalanced_entry validation_failed
"""


def test_the_lives_reach_every_kind_and_every_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the lives worth playing: an ordinary set of them has seen all that can happen."""
    answer_from_memory(monkeypatch)
    reached = play(Memory, 150, 100, derandomize=True)
    seen = {what.rpartition(": ")[2] for what, times in reached.items() if times}
    assert seen >= {*REFUSALS.split(), *EventKind}
    assert seen >= {"period", "a return undoes allocations", "a return is principal again"}
    assert seen >= {"replan PaymentUnallocated", "replan SuspenseAllocated", "replan Reversal"}
