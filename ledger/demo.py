"""The demo tenant's book: a believable year of a small lender, posted through the same door as everything else.

What happens is planned first, a pure function of the day on which the tenant was made and the number of loans; amounts that
depend on balances are decided when they are posted. Each step of the plan is one transaction under an idempotency key of its
own, so a run that was killed goes on where it stopped, and a finished book stays as it is.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from fractions import Fraction
from random import Random
from typing import Any

import msgspec
from django.db.backends.utils import CursorWrapper

from hpts.tenancy import tenant_transaction
from ledger import masters
from ledger.chart import RECEIVABLES
from ledger.events import (
    CREDIT,
    DEBIT,
    PENDING,
    SETTLED,
    Accrual,
    AccruedLoan,
    Disbursement,
    DisbursementSettled,
    Event,
    Line,
    ManualAdjustment,
    PaymentReceived,
    Reversal,
)
from ledger.idempotency import Call, fingerprint, once
from ledger.interest import interest_exact, rounded
from ledger.posting import Origin, Posting, Touches
from ledger.state import LoanState

TENANT_ID = "acdc0000-0000-4000-8000-000000000001"
TENANT_NAME = "Acme Lending (demo)"
CURRENCY, TIMEZONE = "USD", "America/New_York"
ACTOR = "command:seed_demo"
LAST_KEY = "demo:complete"


def _id(name: str) -> str:
    return str(uuid.uuid5(uuid.UUID(TENANT_ID), name))


@dataclass(frozen=True)
class Product:
    """A program, and which loans are made under it: their share of the book, amounts in minor units, terms in months."""

    name: str
    currency: str
    annual_rate_bps: int
    day_count: str
    share: int
    amounts: tuple[int, int]
    months: tuple[int, ...]
    accrual_mode: str = "client"

    @property
    def program_id(self) -> str:
        return _id(self.name)


PRODUCTS = (
    Product("Personal Installment", "USD", 1199, "ACT_365", 60, (150_000, 1_500_000), (6, 9, 12, 18, 24)),
    Product("Auto", "USD", 649, "30_360", 25, (1_200_000, 4_200_000), (36, 48, 60)),
    Product("Euro Working Capital", "EUR", 825, "ACT_360", 15, (500_000, 3_500_000), (6, 12)),
    # Each night the engine accrues these; the first one catches up with everything since they were opened.
    Product("Bridge", "USD", 975, "ACT_360", 8, (300_000, 900_000), (12, 18), "engine"),
)
PROGRAM_ID = PRODUCTS[0].program_id
LATE_FEE = 2_500
COURTESY_CREDIT = 500


# --- The loans of the book -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """One loan, as it was agreed, and how its borrower pays."""

    number: int
    product: Product
    opened_on: date
    amount_minor: int
    months: int
    own_rate_bps: int | None
    limit_minor: int | None
    habit: str

    @property
    def loan_id(self) -> str:
        return _id(f"loan {self.number}")

    @property
    def borrower_id(self) -> str:
        return _id(f"borrower {self.number}")

    @property
    def annual_rate_bps(self) -> int:
        return self.product.annual_rate_bps if self.own_rate_bps is None else self.own_rate_bps

    @property
    def instalment_minor(self) -> int:
        """The level payment that repays the loan in its months."""
        rate = Fraction(self.annual_rate_bps, 120_000)
        return round(self.amount_minor * rate / (1 - (1 + rate) ** -self.months))


def _plan(number: int, today: date) -> tuple[Plan, Random]:
    """The loan with this number, and the dice that throw its further life: the same in every run."""
    dice = Random(f"hpts demo loan {number}")  # noqa: S311 (reproducible on purpose)
    product = dice.choices(PRODUCTS, [product.share for product in PRODUCTS])[0]
    amount = dice.randrange(*product.amounts, 10_000)
    habits = {"punctual": 52, "late": 17, "short": 8, "generous": 8, "stops": 7, "leaves early": 8}
    return Plan(
        number=number,
        product=product,
        opened_on=today - timedelta(days=dice.randint(0, 360)),
        amount_minor=amount,
        months=dice.choice(product.months),
        own_rate_bps=product.annual_rate_bps + dice.choice((-150, -50, 100, 275)) if dice.random() < 0.12 else None,
        limit_minor=amount if dice.random() < 0.5 else None,
        habit="punctual" if product.accrual_mode == "engine" else dice.choices(list(habits), list(habits.values()))[0],
    ), dice


# --- What happens ----------------------------------------------------------------------------------------------------

# Decides an event from the state under the locks; None when there is nothing to post.
Decide = Callable[[Posting], Event | None]


@dataclass(frozen=True)
class Happening:
    """One event of the plan. `about` names the happening whose entry it settles or reverses."""

    day: date
    name: str
    loans: tuple[str, ...]
    decide: Decide
    about: str | None = None
    accrues: bool = False


@dataclass(frozen=True)
class Step:
    """One transaction: the happenings of a day, or one that is about an earlier entry."""

    key: str
    happenings: tuple[Happening, ...]

    def touches(self, since: date, entries: dict[str, str]) -> Touches:
        first = self.happenings[0]
        accrues = any(happening.accrues for happening in self.happenings)
        return Touches(
            loans=sorted({loan for happening in self.happenings for loan in happening.loans}),
            entries=[entries[first.about]] if first.about else (),
            # Interest is computed on every movement of principal since the beginning.
            since=since if accrues else first.day,
            accrual=first.day if accrues else None,
        )


def _life(plan: Plan, dice: Random, today: date) -> tuple[list[Happening], date | None, date | None]:
    """What happens on a loan up to today; the days on which it was drawn and paid off."""
    drawn_on = plan.opened_on + timedelta(days=dice.randint(0, 2))
    settled_on = drawn_on + timedelta(days=dice.randint(1, 3))
    if drawn_on > today:
        return [], None, None
    announced = dice.random() < 0.1
    happenings = [_disbursement(plan, drawn_on, PENDING if announced else SETTLED)]
    if settled_on > today:
        return happenings, drawn_on, None
    happenings.append(_settlement(plan, settled_on))

    leaves_after = min(dice.randint(3, 8), plan.months) if plan.habit == "leaves early" else plan.months
    stops_after = dice.randint(1, 4) if plan.habit == "stops" else plan.months
    mishap_at = dice.randint(1, 6) if dice.random() < 0.15 else None
    for month in range(1, plan.months + 1):
        due_on = _months_later(drawn_on, month)
        paid_on = due_on + timedelta(days=dice.randint(3, 24) if plan.habit == "late" else dice.choice((0, 0, 0, 1)))
        share = dice.randint(50, 90) if plan.habit == "short" and dice.random() < 0.4 else 100
        share = dice.randint(110, 150) if plan.habit == "generous" and dice.random() < 0.5 else share
        method = dice.choices(("ach", "card", "wire", "check"), (72, 14, 6, 8))[0]
        fee_on = due_on + timedelta(days=15)
        if (month > stops_after or paid_on > fee_on) and month <= stops_after + 3 and fee_on <= today:
            happenings.append(_late_fee(plan, month, fee_on))
        if month > stops_after or paid_on > today:
            continue
        if month == leaves_after:
            happenings += _payoff(plan, month, paid_on, method)
            return happenings, drawn_on, paid_on
        layer = PENDING if method == "ach" and paid_on > today - timedelta(days=3) else SETTLED
        happenings.append(_payment(plan, f"{month:02d}", paid_on, plan.instalment_minor * share // 100, method, layer))
        if month == mishap_at and layer == SETTLED:
            happenings += _mishap(plan, month, paid_on, today, method, dice)
    return happenings, drawn_on, None


def _disbursement(plan: Plan, day: date, layer: str) -> Happening:
    event = Disbursement(
        loan_id=plan.loan_id,
        amount_minor=plan.amount_minor,
        currency=plan.product.currency,
        effective_at=day,
        layer=layer,
        facts={"method": "ach"},
    )
    return Happening(day, f"disbursement-{plan.number:04d}", (plan.loan_id,), lambda posting: event)


def _settlement(plan: Plan, day: date) -> Happening:
    def decide(posting: Posting) -> Event:
        return DisbursementSettled(effective_at=day, disbursement_event_id=posting.touches.entries[0])

    name = f"settlement-{plan.number:04d}"
    return Happening(day, name, (plan.loan_id,), decide, about=f"disbursement-{plan.number:04d}")


def _received(plan: Plan, label: str, day: date, amount_minor: int, method: str, layer: str) -> PaymentReceived:
    return PaymentReceived(
        loan_id=plan.loan_id,
        amount_minor=amount_minor,
        currency=plan.product.currency,
        effective_at=day,
        source_method=method,
        external_ref=f"{method.upper()}-{day:%Y%m%d}-{plan.number:04d}{label}",
        layer=layer,
        facts={"source_method": method},
    )


def _payment(
    plan: Plan, label: str, day: date, amount_minor: int, method: str = "ach", layer: str = SETTLED
) -> Happening:
    event = _received(plan, label, day, amount_minor, method, layer)
    return Happening(day, f"payment-{plan.number:04d}-{label}", (plan.loan_id,), lambda posting: event)


def _payoff(plan: Plan, month: int, day: date, method: str) -> list[Happening]:
    """Interest up to the day, then everything that is owed; who is generous rounds up."""

    def decide(posting: Posting) -> Event | None:
        loan = posting.state.loans[plan.loan_id]
        owed = sum(loan.available(posting.state.chart[role], day) for role in RECEIVABLES)
        amount = -(-owed // 10_000) * 10_000 if plan.habit == "generous" else owed
        return _received(plan, f"{month:02d}", day, amount, method, SETTLED) if owed else None

    return [
        _accrual(f"interest-{plan.number:04d}", day, [plan]),
        Happening(day, f"payment-{plan.number:04d}-{month:02d}", (plan.loan_id,), decide),
    ]


def _mishap(plan: Plan, month: int, day: date, today: date, method: str, dice: Random) -> Iterator[Happening]:
    """The payment is keyed twice and the second one reversed, or a little interest is given back on the day before it."""
    noticed_on = day + timedelta(days=dice.randint(1, 3))
    if dice.random() < 0.6 and noticed_on <= today:
        twice = _payment(plan, f"{month:02d}b", day, plan.instalment_minor, method)
        yield twice
        yield _reversal(twice, noticed_on)
    else:
        yield _courtesy_credit(plan, month, day - timedelta(days=1))


def _reversal(of: Happening, day: date) -> Happening:
    def decide(posting: Posting) -> Event:
        return Reversal(
            effective_at=day,
            reverses_entry_id=posting.touches.entries[0],
            reason_code="duplicate",
            description="The same payment was keyed twice",
            facts={"reason_code": "duplicate"},
        )

    return Happening(day, f"reversal-of-{of.name}", of.loans, decide, about=of.name)


def _late_fee(plan: Plan, month: int, day: date) -> Happening:
    def decide(posting: Posting) -> Event:
        return _adjustment(posting, plan, day, "Late fee", LATE_FEE, "fees", "fee_income")

    return Happening(day, f"late-fee-{plan.number:04d}-{month:02d}", (plan.loan_id,), decide)


def _courtesy_credit(plan: Plan, month: int, day: date) -> Happening:
    def decide(posting: Posting) -> Event | None:
        owed = posting.state.loans[plan.loan_id].available(posting.state.chart["interest"], day)
        amount = min(owed, COURTESY_CREDIT)
        if amount == 0:
            return None
        return _adjustment(posting, plan, day, "Courtesy credit of interest", amount, "interest_income", "interest")

    return Happening(day, f"courtesy-{plan.number:04d}-{month:02d}", (plan.loan_id,), decide)


def _adjustment(
    posting: Posting, plan: Plan, day: date, description: str, minor: int, debit: str, credit: str
) -> ManualAdjustment:
    chart = posting.state.chart
    return ManualAdjustment(
        effective_at=day,
        description=description,
        lines=(
            Line(chart[debit].code, DEBIT, minor, plan.product.currency, loan_id=plan.loan_id),
            Line(chart[credit].code, CREDIT, minor, plan.product.currency, loan_id=plan.loan_id),
        ),
    )


def _funding(currency: str, day: date, minor: int) -> Happening:
    """The money that the lender began with."""

    def decide(posting: Posting) -> Event:
        cash, equity = posting.state.chart["cash"].code, posting.state.chart["opening_equity"].code
        lines = Line(cash, DEBIT, minor, currency), Line(equity, CREDIT, minor, currency)
        return ManualAdjustment(effective_at=day, description="Opening balance", lines=lines)

    return Happening(day, f"funding-{currency}", (), decide)


def _accrual(name: str, day: date, plans: list[Plan]) -> Happening:
    """The interest of loans of one program since the month before: a batch with the figures of the books."""
    program = plans[0].product

    def decide(posting: Posting) -> Event | None:
        items = []
        for plan in plans:
            loan = posting.state.loans[plan.loan_id]
            interest = _interest_through(posting, loan, plan, day) - _interest_through(
                posting, loan, plan, max(plan.opened_on, day.replace(day=1) - timedelta(days=1))
            )
            if interest:
                principal = loan.before(posting.state.chart["principal"], day)
                items.append(
                    AccruedLoan(loan_id=loan.loan_id, outstanding_principal_minor=principal, interest_minor=interest)
                )
        if not items:
            return None
        return Accrual(
            effective_at=day,
            program_id=program.program_id,
            day_count_convention=program.day_count,
            loans=tuple(items),
        )

    return Happening(day, name, tuple(plan.loan_id for plan in plans), decide, accrues=True)


def _interest_through(posting: Posting, loan: LoanState, plan: Plan, day: date) -> int:
    principal = posting.state.chart["principal"].code
    movements = [(moved_on, net) for moved_on, code, layer, net in loan.later if code == principal and layer == SETTLED]
    return rounded(interest_exact(movements, plan.annual_rate_bps, plan.product.day_count, plan.opened_on, day))


def _months_later(day: date, months: int) -> date:
    """The same day of a later month, or that month's last."""
    years, month = divmod(day.month - 1 + months, 12)
    first = date(day.year + years, month + 1, 1)
    return min(first + timedelta(days=day.day - 1), _month_end(first))


def _month_end(day: date) -> date:
    return (day.replace(day=1) + timedelta(days=31)).replace(day=1) - timedelta(days=1)


# --- The book --------------------------------------------------------------------------------------------------------


def _happenings(loans: int, today: date, beginning: date) -> Iterator[Happening]:
    """The whole plan, in no order; of one day, accruals come first."""
    drawn: list[tuple[Plan, date, date]] = []
    lives: list[Happening] = []
    for number in range(1, loans + 1):
        plan, dice = _plan(number, today)
        life, drawn_on, paid_off_on = _life(plan, dice, today)
        lives += life
        if drawn_on is not None:
            drawn.append((plan, drawn_on, paid_off_on or today + timedelta(days=1)))
    for currency in sorted({product.currency for product in PRODUCTS}):
        yield _funding(currency, beginning, 1_500_000 * max(loans, 1))
    for product in PRODUCTS:
        if product.accrual_mode == "engine":
            continue
        day = _month_end(beginning)
        while day <= today:
            plans = [plan for plan, start, end in drawn if plan.product is product and start < day < end]
            if plans:
                yield _accrual(f"interest-{product.name}-{day:%Y-%m}", day, plans)
            day = _month_end(day + timedelta(days=1))
    yield from lives


def _steps(happenings: Iterable[Happening]) -> list[Step]:
    """The plan as transactions, in order: first what is new on a day, then what is about earlier entries."""
    by_day: dict[date, list[Happening]] = defaultdict(list)
    for happening in happenings:
        by_day[happening.day].append(happening)
    steps = []
    for day in sorted(by_day):
        fresh = [happening for happening in by_day[day] if happening.about is None]
        fresh.sort(key=lambda happening: not happening.accrues)
        if fresh:
            steps.append(Step(f"demo:{day}", tuple(fresh)))
        steps += [Step(f"demo:{one.name}", (one,)) for one in by_day[day] if one.about is not None]
    return steps


class Book:
    """The demo tenant's book: what is still to be posted, and the posting of it."""

    def __init__(self, loans: int) -> None:
        """Find the tenant, or make it with its programs and loans. `loans` counts only when it is made."""
        with tenant_transaction(TENANT_ID) as cursor:
            made = _made(cursor)
            if made is None:
                _make_programs(cursor)
                _make_loans(cursor, loans)
                made = _made(cursor)
            assert made is not None
            today, loans, complete = made
        self._beginning = today - timedelta(days=366)
        self._entries: dict[str, str] = {}
        self.steps = [] if complete else [*_steps(_happenings(loans, today, self._beginning)), Step(LAST_KEY, ())]

    def take(self, step: Step) -> None:
        """Post a step, or learn what it posted in an earlier run."""
        touches = step.touches(self._beginning - timedelta(days=1), self._entries) if step.happenings else Touches()
        call = Call(Origin(TENANT_ID, ACTOR, _id(step.key)), step.key, fingerprint("seed_demo", {}, step.key))

        def work(posting: Posting) -> dict[str, Any]:
            posted = {}
            for happening in step.happenings:
                event = happening.decide(posting)
                if event is not None:
                    posted[happening.name] = posting.post(event).journal_entry_id
            return posted

        self._entries |= msgspec.json.decode(once(call, touches, work).body)


def _made(cursor: CursorWrapper) -> tuple[date, int, bool] | None:
    """The day on which the tenant was made, its loans, and whether the book is complete; None when there is no tenant."""
    cursor.execute(
        """SELECT (t.created_at AT TIME ZONE t.timezone)::date,
                  (SELECT count(*) FROM loan WHERE tenant_id = t.id),
                  EXISTS (SELECT FROM idempotency_key WHERE tenant_id = t.id AND key = %s)
           FROM tenant t WHERE t.id = %s""",
        (LAST_KEY, TENANT_ID),
    )
    found: tuple[date, int, bool] | None = cursor.fetchone()
    return found


def _make_programs(cursor: CursorWrapper) -> None:
    masters.create_tenant(cursor, name=TENANT_NAME, currency=CURRENCY, timezone=TIMEZONE)
    for product in PRODUCTS:
        masters.create_program(
            cursor,
            on=masters.SINCE_EVER,
            program_id=product.program_id,
            name=product.name,
            currency=product.currency,
            annual_rate_bps=product.annual_rate_bps,
            day_count_convention=product.day_count,
            waterfall=RECEIVABLES,
            accrual_mode=product.accrual_mode,
        )


def _make_loans(cursor: CursorWrapper, loans: int) -> None:
    made = _made(cursor)
    assert made is not None
    for number in range(1, loans + 1):
        plan, _ = _plan(number, made[0])
        masters.create_loan(
            cursor,
            on=made[0],
            loan_id=plan.loan_id,
            borrower_id=plan.borrower_id,
            program_id=plan.product.program_id,
            opened_on=plan.opened_on,
            principal_limit_minor=plan.limit_minor,
            annual_rate_bps=plan.own_rate_bps,
        )
