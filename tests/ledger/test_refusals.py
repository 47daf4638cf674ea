"""Every refusal of the posting rules, through `post()` and PostgreSQL: its code, and that no row of the tenant is another
after it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import pytest

from hpts.problems import Problem
from hpts.tenancy import tenant_transaction
from ledger import masters, queries
from ledger.events import (
    PENDING,
    SETTLED,
    ChargeOff,
    Disbursement,
    Event,
    FeeAssessed,
    FeeWaived,
    Line,
    PaymentReceived,
    PaymentReturned,
    PaymentSettled,
    Recovery,
    Refinance,
    Restructure,
    Reversal,
    SuspenseAllocated,
)
from ledger.money import MAX_MINOR
from ledger.posting import Touches, opened
from tests.conftest import Loan
from tests.ledger.conftest import OPENED_ON, WATERFALL, Books, nothing_changes, open_books


@dataclass
class Life:
    """A loan of 1,000 lent on 10 January 2025, and what a case lets happen to it. Days are of 2025."""

    books: Books
    loan: Loan

    @classmethod
    def begin(cls) -> Life:
        books = open_books()
        life = cls(books, books.loan)
        life.happens(life.draw(1_000, "01-10"))
        return life

    def happens(self, event: Event) -> str:
        return self.books.post(event).journal_entry_id

    def another(self, **terms: Any) -> Life:
        """Another loan, of the same borrower unless the terms say otherwise, and not lent."""
        return Life(self.books, self.books.open_loan(**{"borrower_id": self.loan.borrower_id} | terms))

    def _money(self, amount: int, on: str) -> dict[str, Any]:
        about = {"loan_id": self.loan.loan_id, "currency": self.loan.currency}
        return {**about, "amount_minor": amount, "effective_at": day(on)}

    # Events

    def draw(self, amount: int, on: str, layer: str = SETTLED) -> Disbursement:
        return Disbursement(**self._money(amount, on), layer=layer)

    def payment(self, amount: int, on: str, layer: str = SETTLED, ref: str | None = None) -> PaymentReceived:
        return PaymentReceived(**self._money(amount, on), layer=layer, source_method="ach", external_ref=ref)

    def settlement(self, payment: str, on: str) -> PaymentSettled:
        return PaymentSettled(effective_at=day(on), payment_event_id=payment)

    def returned(self, payment: str, on: str) -> PaymentReturned:
        return PaymentReturned(effective_at=day(on), payment_event_id=payment, return_code="R01")

    def allocation(self, amount: int, on: str) -> SuspenseAllocated:
        return SuspenseAllocated(**self._money(amount, on))

    def fee(self, amount: int, on: str) -> FeeAssessed:
        return FeeAssessed(**self._money(amount, on))

    def waiver(self, amount: int, on: str) -> FeeWaived:
        return FeeWaived(**self._money(amount, on))

    def chargeoff(self, on: str = "04-01") -> ChargeOff:
        return ChargeOff(loan_id=self.loan.loan_id, effective_at=day(on))

    def recovery(self, amount: int, on: str) -> Recovery:
        return Recovery(**self._money(amount, on))

    def refinance(self, into: Life | None = None, on: str = "04-01", cash_out: int = 0) -> Refinance:
        new = (into or self.another()).loan
        return Refinance(
            loan_id=self.loan.loan_id, new_loan_id=new.loan_id, effective_at=day(on), cash_out_minor=cash_out
        )

    def restructure(self, on: str, *, capitalise: bool = False) -> Restructure:
        return Restructure(
            loan_id=self.loan.loan_id, effective_at=day(on), capitalise_interest=capitalise, capitalise_fees=capitalise
        )

    def reversal(self, entry: str, on: str = "12-31") -> Reversal:
        return self.books.reversal(entry, f"2025-{on}")

    def adjustment(self, *lines: Line, on: str = "06-01") -> Event:
        return self.books.adjustment(f"2025-{on}", *lines)

    def accrual(self, on: str, *items: tuple[Loan, int, int]) -> Event:
        return self.books.accrual(f"2025-{on}", *items)

    # What many cases begin with

    def after(self, *events: Event) -> Life:
        for event in events:
            self.happens(event)
        return self

    def again(self, event: Event) -> Event:
        """An event that has happened and happens again."""
        self.happens(event)
        return event

    def charged_off(self) -> Life:
        return self.after(self.chargeoff())

    def refinanced(self) -> Life:
        return self.after(self.refinance())

    def paid_off(self) -> Life:
        return self.after(self.payment(1_000, "03-01"))

    def closed(self, through: str) -> Life:
        self.books.close(f"2025-{through}")
        return self

    def announced(self) -> str:
        """A payment of 50 announced on 1 February."""
        return self.happens(self.payment(50, "02-01", PENDING))

    def settled(self) -> str:
        """The same, settled on 5 February. The payment."""
        payment = self.announced()
        self.happens(self.settlement(payment, "02-05"))
        return payment

    def allocated(self) -> tuple[str, str]:
        """100 too much on 1 March, of which 60 meet a fee of 2 March. The payment and the allocation."""
        payment = self.happens(self.payment(1_100, "03-01"))
        self.happens(self.fee(60, "03-02"))
        return payment, self.happens(self.allocation(60, "03-03"))


def day(on: str) -> date:
    return date.fromisoformat(f"2025-{on}")


def lines(loan: Loan, debit: str, credit: str, amount: int, **changes: Any) -> tuple[Line, Line]:
    about: dict[str, Any] = {"amount_minor": amount, "currency": "USD", "loan_id": loan.loan_id} | changes
    return Line(debit, "DR", **about), Line(credit, "CR", **about)


Case = tuple[str, str, Callable[[Life], Event]]

COMMON: list[Case] = [
    (
        "loan_not_found",
        "an unknown loan",
        lambda life: replace(life.payment(5, "02-01"), loan_id=str(uuid.uuid4())),
    ),
    (
        "borrower_mismatch",
        "another borrower",
        lambda life: replace(life.payment(5, "02-01"), borrower_id=str(uuid.uuid4())),
    ),
    ("currency_mismatch", "another currency", lambda life: replace(life.fee(5, "02-01"), currency="EUR")),
    (
        "effective_date_refused",
        "a day in the future",
        lambda life: replace(life.payment(5, "02-01"), effective_at=today(life) + timedelta(days=1)),
    ),
    (
        "effective_date_refused",
        "a day before the opening",
        lambda life: replace(life.payment(5, "02-01"), effective_at=OPENED_ON - timedelta(days=1)),
    ),
    ("period_closed", "the last day of a closed period", lambda life: life.closed("02-28").payment(5, "02-28")),
    ("period_closed", "a day long closed", lambda life: life.closed("01-31").closed("02-28").fee(5, "01-15")),
    (
        "period_closed",
        "the reversal dated into a closed period",
        lambda life: life.closed("02-28").reversal(life.books.rows(NEWEST)[0][0], "02-28"),
    ),
    ("amount_out_of_range", "a balance beyond 64 bits", lambda life: life.draw(MAX_MINOR, "02-01")),
]

MONEY_OUT: list[Case] = [
    ("loan_state_refuses", "a draw on a charged-off loan", lambda life: life.charged_off().draw(5, "05-01")),
    (
        "loan_state_refuses",
        "a pending draw on a charged-off loan",
        lambda life: life.charged_off().draw(5, "05-01", PENDING),
    ),
    ("loan_state_refuses", "a draw on a refinanced loan", lambda life: life.refinanced().draw(5, "05-01")),
    (
        "loan_state_refuses",
        "a draw dated before the charge-off",
        lambda life: life.charged_off().draw(5, "02-01"),
    ),
    (
        "amount_exceeds_limit",
        "a draw above the limit",
        lambda life: life.another(principal_limit_minor=700).draw(701, "02-01"),
    ),
    (
        "amount_exceeds_limit",
        "a draw above the limit together with what was announced",
        lambda life: over(life.another(principal_limit_minor=700), PENDING, SETTLED),
    ),
    (
        "amount_exceeds_limit",
        "an announced draw above the limit together with what was lent",
        lambda life: over(life.another(principal_limit_minor=700), SETTLED, PENDING),
    ),
    (
        "already_settled",
        "a disbursement settled twice",
        lambda life: life.again(life.books.settlement(life.happens(life.draw(5, "02-01")), "2025-02-02")),
    ),
    (
        "already_settled",
        "a pending disbursement settled twice",
        lambda life: life.again(life.books.settlement(life.happens(life.draw(5, "02-01", PENDING)), "2025-02-02")),
    ),
    (
        "already_reversed",
        "the settlement of a reversed disbursement",
        lambda life: life.books.settlement(turned_back(life, life.draw(5, "02-01")), "2025-12-31"),
    ),
    (
        "effective_date_refused",
        "a settlement dated before the disbursement",
        lambda life: life.books.settlement(life.happens(life.draw(5, "02-01")), "2025-01-31"),
    ),
]

INTEREST: list[Case] = [
    (
        "accrual_already_posted",
        "a date accrued twice",
        lambda life: life.again(life.accrual("02-01", (life.loan, 1_000, 3))),
    ),
    (
        "accrual_already_posted",
        "a date that no interest has used up",
        lambda life: life.after(life.accrual("02-01", (life.loan, 1_000, 0), (life.another().loan, 0, 1))).accrual(
            "02-01", (life.loan, 1_000, 3)
        ),
    ),
    (
        "validation_failed",
        "principal that is not the books' own",
        lambda life: life.accrual("02-01", (life.loan, 999, 3)),
    ),
    (
        "validation_failed",
        "principal of the accrual's own day",
        lambda life: life.after(life.draw(500, "02-01")).accrual("02-01", (life.loan, 1_500, 3)),
    ),
    (
        "validation_failed",
        "a loan of another program",
        lambda life: life.accrual("02-01", (life.loan, 1_000, 3), (in_program(life, "USD").loan, 0, 3)),
    ),
    (
        "validation_failed",
        "a loan twice in the batch",
        lambda life: life.accrual("02-01", (life.loan, 1_000, 3), (life.loan, 1_000, 3)),
    ),
    (
        "effective_date_refused",
        "an accrual before the opening",
        lambda life: life.accrual("02-01", (life.another(opened_on=day("03-01")).loan, 0, 3)),
    ),
    (
        "amount_exceeds_balance",
        "the reversal of interest that has been paid",
        lambda life: life.reversal(
            first(life.happens(life.accrual("02-01", (life.loan, 1_000, 3))), life.happens(life.payment(3, "02-02")))
        ),
    ),
]

MONEY_IN: list[Case] = [
    ("loan_state_refuses", "a payment on a charged-off loan", lambda life: life.charged_off().payment(5, "05-01")),
    (
        "loan_state_refuses",
        "a payment announced on a charged-off loan",
        lambda life: life.charged_off().payment(5, "05-01", PENDING),
    ),
    (
        "duplicate_external_ref",
        "a payment's reference used before",
        lambda life: life.after(life.payment(5, "02-01", ref="ach 7")).payment(9, "02-02", ref="ach 7"),
    ),
    (
        "already_settled",
        "the settlement of a payment that was never announced",
        lambda life: life.settlement(life.happens(life.payment(50, "02-01")), "02-02"),
    ),
    ("already_settled", "a payment settled twice", lambda life: life.settlement(life.settled(), "02-06")),
    (
        "already_returned",
        "the settlement of a returned payment",
        lambda life: life.settlement(taken_back(life, life.announced()), "02-28"),
    ),
    (
        "already_returned",
        "the settlement of a payment returned after its settlement",
        lambda life: life.settlement(taken_back(life, life.settled()), "02-28"),
    ),
    (
        "already_reversed",
        "the settlement of a reversed payment",
        lambda life: life.settlement(turned_back(life, life.payment(50, "02-01", PENDING)), "12-31"),
    ),
    (
        "effective_date_refused",
        "a settlement dated before the payment",
        lambda life: life.settlement(life.announced(), "01-31"),
    ),
    (
        "loan_state_refuses",
        "the settlement of a charged-off loan's payment",
        lambda life: life.settlement(first(life.announced(), life.charged_off()), "05-01"),
    ),
    (
        "amount_exceeds_balance",
        "an allocation of more than suspense holds",
        lambda life: life.after(life.payment(1_100, "03-01"), life.fee(500, "03-02")).allocation(101, "03-03"),
    ),
    (
        "amount_exceeds_balance",
        "an allocation before the money came",
        lambda life: life.after(life.payment(1_100, "03-01"), life.fee(50, "02-01")).allocation(50, "02-28"),
    ),
    (
        "amount_exceeds_balance",
        "an allocation of more than is owed",
        lambda life: life.after(life.payment(1_100, "03-01"), life.fee(50, "03-02")).allocation(51, "03-03"),
    ),
    (
        "amount_exceeds_balance",
        "an allocation to what is owed later",
        lambda life: life.after(life.payment(1_100, "03-01"), life.fee(50, "03-05")).allocation(50, "03-04"),
    ),
    (
        "amount_exceeds_balance",
        "an allocation where nothing is owed",
        lambda life: life.after(life.payment(1_100, "03-01")).allocation(1, "03-02"),
    ),
    ("already_returned", "a payment returned twice", lambda life: again_returned(life, life.announced())),
    ("already_returned", "a settled payment returned twice", lambda life: again_returned(life, life.settled())),
    (
        "already_reversed",
        "the return of a reversed payment",
        lambda life: life.returned(turned_back(life, life.payment(50, "02-01")), "12-31"),
    ),
    (
        "effective_date_refused",
        "a return dated before the payment",
        lambda life: life.returned(life.announced(), "01-31"),
    ),
    (
        "effective_date_refused",
        "a return dated before the settlement",
        lambda life: life.returned(life.settled(), "02-04"),
    ),
]

SERVICING: list[Case] = [
    ("loan_state_refuses", "a fee on a charged-off loan", lambda life: life.charged_off().fee(5, "05-01")),
    ("loan_state_refuses", "a fee on a refinanced loan", lambda life: life.refinanced().fee(5, "05-01")),
    (
        "amount_exceeds_balance",
        "a waiver of more than is outstanding",
        lambda life: life.after(life.fee(30, "02-01")).waiver(31, "02-02"),
    ),
    (
        "amount_exceeds_balance",
        "a waiver of what is paid later",
        lambda life: life.after(life.fee(30, "02-01"), life.payment(20, "05-01")).waiver(11, "02-02"),
    ),
    (
        "amount_exceeds_balance",
        "a waiver before the fee",
        lambda life: life.after(life.fee(3, "03-01")).waiver(3, "02-01"),
    ),
    ("loan_state_refuses", "the charge-off of nothing", lambda life: life.another().chargeoff()),
    ("loan_state_refuses", "the charge-off of a paid-off loan", lambda life: life.paid_off().chargeoff()),
    ("loan_state_refuses", "a second charge-off", lambda life: life.charged_off().chargeoff()),
    (
        "loan_state_refuses",
        "the charge-off of interest on a loan charged off before",
        lambda life: life.charged_off().after(life.accrual("05-01", (life.loan, 0, 3))).chargeoff("05-02"),
    ),
    ("loan_state_refuses", "the charge-off of a refinanced loan", lambda life: life.refinanced().chargeoff()),
    (
        "amount_exceeds_balance",
        "a charge-off dated before some of what is owed",
        lambda life: life.after(life.fee(5, "05-01")).chargeoff("04-01"),
    ),
    ("loan_state_refuses", "a recovery on an open loan", lambda life: life.recovery(5, "05-01")),
    ("loan_state_refuses", "a recovery on a paid-off loan", lambda life: life.paid_off().recovery(5, "05-01")),
    ("loan_state_refuses", "a recovery on a refinanced loan", lambda life: life.refinanced().recovery(5, "05-01")),
    (
        "loan_state_refuses",
        "a recovery after the charge-off was reversed",
        lambda life: first(life, turned_back(life, life.chargeoff())).recovery(5, "12-31"),
    ),
    (
        "loan_state_refuses",
        "the restructure of a charged-off loan",
        lambda life: life.charged_off().restructure("05-01"),
    ),
    ("loan_state_refuses", "the restructure of a refinanced loan", lambda life: life.refinanced().restructure("05-01")),
    ("loan_state_refuses", "the restructure of a paid-off loan", lambda life: life.paid_off().restructure("05-01")),
    (
        "amount_exceeds_balance",
        "a restructure dated before some of what it capitalises",
        lambda life: life.after(life.fee(5, "05-01")).restructure("04-01", capitalise=True),
    ),
]

REFINANCE: list[Case] = [
    ("currency_mismatch", "a refinance into another currency", lambda life: life.refinance(in_program(life, "EUR"))),
    (
        "borrower_mismatch",
        "a refinance into another borrower's loan",
        lambda life: life.refinance(life.another(borrower_id=str(uuid.uuid4()))),
    ),
    ("loan_state_refuses", "the refinance of nothing", lambda life: life.another().refinance()),
    ("loan_state_refuses", "the refinance of a paid-off loan", lambda life: life.paid_off().refinance()),
    (
        "loan_state_refuses",
        "the refinance of a charged-off loan that owes interest since",
        lambda life: life.charged_off().after(life.accrual("05-01", (life.loan, 0, 3))).refinance(on="05-02"),
    ),
    (
        "loan_state_refuses",
        "a second refinance of a loan that owes interest since",
        lambda life: life.refinanced().after(life.accrual("05-01", (life.loan, 0, 3))).refinance(on="05-02"),
    ),
    (
        "amount_exceeds_limit",
        "a refinance above the new loan's limit",
        lambda life: life.refinance(life.another(principal_limit_minor=999)),
    ),
    (
        "amount_exceeds_limit",
        "a refinance above the new loan's limit with its cash-out",
        lambda life: life.refinance(life.another(principal_limit_minor=1_099), cash_out=100),
    ),
    (
        "amount_exceeds_balance",
        "a refinance dated before some of what is owed",
        lambda life: life.after(life.draw(5, "05-01")).refinance(on="04-01"),
    ),
    (
        "effective_date_refused",
        "a refinance before the new loan opens",
        lambda life: life.refinance(life.another(opened_on=day("05-01")), on="04-01"),
    ),
    (
        "loan_not_found",
        "a refinance into an unknown loan",
        lambda life: replace(life.refinance(), new_loan_id=str(uuid.uuid4())),
    ),
]

CORRECTIONS: list[Case] = [
    (
        "already_reversed",
        "a second reversal",
        lambda life: life.again(life.reversal(life.happens(life.fee(5, "02-01")))),
    ),
    (
        "not_reversible",
        "the reversal of a reversal",
        lambda life: life.reversal(life.happens(life.reversal(life.happens(life.fee(5, "02-01"))))),
    ),
    (
        "not_reversible",
        "the reversal of a return",
        lambda life: life.reversal(life.happens(life.returned(life.announced(), "02-02"))),
    ),
    (
        "not_reversible",
        "the reversal of a payment's settlement",
        lambda life: life.reversal(life.happens(life.settlement(life.announced(), "02-02"))),
    ),
    (
        "not_reversible",
        "the reversal of a disbursement's settlement",
        lambda life: life.reversal(
            life.happens(life.books.settlement(life.happens(life.draw(5, "02-01")), "2025-02-02"))
        ),
    ),
    ("not_reversible", "the reversal of a settled payment", lambda life: life.reversal(life.settled())),
    (
        "not_reversible",
        "the reversal of a returned payment",
        lambda life: life.reversal(taken_back(life, life.announced())),
    ),
    (
        "not_reversible",
        "the reversal of a payment returned after its settlement",
        lambda life: life.reversal(taken_back(life, life.settled())),
    ),
    (
        "not_reversible",
        "the reversal of a settled disbursement",
        lambda life: life.reversal(settled_draw(life)),
    ),
    (
        "not_reversible",
        "the reversal of a charge-off after a recovery",
        lambda life: life.reversal(first(life.happens(life.chargeoff()), life.happens(life.recovery(5, "05-01")))),
    ),
    (
        "not_reversible",
        "the reversal of a refinance whose new loan was paid on",
        lambda life: refinance_of_a_living_loan(life),
    ),
    (
        "not_reversible",
        "the reversal of a refinance whose new loan had a payment that was reversed",
        lambda life: refinance_of_a_living_loan(life, turn_back=True),
    ),
    (
        "not_reversible",
        "the reversal of an allocation that a return has undone",
        lambda life: undone_allocation(life, refund=100 - 60),
    ),
    (
        "not_reversible",
        "the reversal of an allocation that a return has undone in part",
        lambda life: undone_allocation(life, refund=1),
    ),
    (
        "effective_date_refused",
        "a reversal dated before its entry",
        lambda life: life.reversal(life.happens(life.fee(5, "02-01")), "01-31"),
    ),
    (
        "amount_exceeds_balance",
        "the reversal of a fee that was paid",
        lambda life: life.reversal(first(life.happens(life.fee(5, "02-01")), life.happens(life.payment(5, "02-02")))),
    ),
    (
        "amount_exceeds_balance",
        "the reversal of a payment whose rest was allocated",
        lambda life: life.reversal(life.allocated()[0]),
    ),
    (
        "unbalanced_entry",
        "debits that are not credits",
        lambda life: life.adjustment(
            *lines(life.loan, "1300", "4100", 5)[:1], *lines(life.loan, "1300", "4100", 6)[1:]
        ),
    ),
    (
        "unbalanced_entry",
        "debits on one layer and credits on another",
        lambda life: life.adjustment(
            lines(life.loan, "1300", "4100", 5)[0], lines(life.loan, "1300", "4100", 5, layer=PENDING)[1]
        ),
    ),
    ("account_not_found", "an unknown account", lambda life: life.adjustment(*lines(life.loan, "7777", "4100", 5))),
    (
        "account_closed",
        "a closed account",
        lambda life: without_account(life, "3000").adjustment(*lines(life.loan, "1300", "3000", 5)),
    ),
    (
        "validation_failed",
        "a line on an account kept per loan without its loan",
        lambda life: life.adjustment(*lines(life.loan, "1300", "4100", 5, loan_id=None)),
    ),
    (
        "currency_mismatch",
        "a line in another currency than its loan's",
        lambda life: life.adjustment(*lines(life.loan, "1300", "4100", 5, currency="EUR")),
    ),
    (
        "borrower_mismatch",
        "a line with another borrower than its loan's",
        lambda life: life.adjustment(*lines(life.loan, "1300", "4100", 5, borrower_id=str(uuid.uuid4()))),
    ),
    (
        "amount_exceeds_balance",
        "a line that takes more than a receivable holds",
        lambda life: life.adjustment(*lines(life.loan, "4100", "1300", 5)),
    ),
]


# --- Pieces of cases -------------------------------------------------------------------------------------------------

NEWEST = "SELECT id::text FROM journal_entry ORDER BY id DESC LIMIT 1"


def today(life: Life) -> date:
    with tenant_transaction(life.books.tenant_id) as cursor:
        return queries.today(cursor)


def first(result: Any, *later: object) -> Any:
    """The first of several things that happen one after the other."""
    return result


def over(life: Life, before: str, now: str) -> Event:
    """A draw of 201 where 500 of 700 were drawn before."""
    return life.after(life.draw(500, "02-01", before)).draw(201, "02-02", now)


def turned_back(life: Life, event: Event) -> str:
    """An entry that was posted and reversed."""
    entry = life.happens(event)
    life.happens(life.reversal(entry))
    return entry


def taken_back(life: Life, payment: str) -> str:
    """A payment that was returned."""
    life.happens(life.returned(payment, "02-20"))
    return payment


def again_returned(life: Life, payment: str) -> Event:
    return life.again(life.returned(payment, "02-20"))


def settled_draw(life: Life) -> str:
    draw = life.happens(life.draw(5, "02-01"))
    life.happens(life.books.settlement(draw, "2025-02-02"))
    return draw


def in_program(life: Life, currency: str) -> Life:
    """A loan of another program."""
    program_id = str(uuid.uuid4())
    with tenant_transaction(life.books.tenant_id) as cursor:
        masters.create_program(
            cursor,
            on=OPENED_ON,
            program_id=program_id,
            name=f"In {currency}",
            currency=currency,
            annual_rate_bps=500,
            day_count_convention="ACT_365",
            waterfall=WATERFALL,
            accrual_mode="client",
        )
    return life.another(program_id=program_id)


def without_account(life: Life, code: str) -> Life:
    with tenant_transaction(life.books.tenant_id) as cursor:
        masters.close_account(cursor, code=code, reason="No longer used")
    return life


def refinance_of_a_living_loan(life: Life, *, turn_back: bool = False) -> Event:
    new = life.another()
    refinance = life.happens(life.refinance(new))
    payment = new.happens(new.payment(10, "05-01"))
    if turn_back:
        life.happens(life.reversal(payment))
    return life.reversal(refinance)


def undone_allocation(life: Life, *, refund: int) -> Event:
    """Part of what waits is refunded, so that the payment's return takes the allocation back."""
    payment, allocation = life.allocated()
    life.happens(life.adjustment(*lines(life.loan, "2000", "1000", refund), on="03-04"))
    life.happens(life.returned(payment, "03-05"))
    return life.reversal(allocation)


# --- The tests -------------------------------------------------------------------------------------------------------


def cases(*groups: Iterable[Case]) -> list[Any]:
    return [pytest.param(code, case, id=name) for group in groups for code, name, case in group]


@pytest.mark.parametrize(
    ("code", "case"), cases(COMMON, MONEY_OUT, INTEREST, MONEY_IN, SERVICING, REFINANCE, CORRECTIONS)
)
def test_a_refusal_names_its_code_and_leaves_nothing_behind(code: str, case: Callable[[Life], Event]) -> None:
    life = Life.begin()
    event = case(life)
    with nothing_changes(life.books), pytest.raises(Problem) as caught:
        life.books.post(event)
    assert caught.value.code == code


@pytest.mark.parametrize("how", ["charged off", "refinanced"])
def test_a_return_with_a_fee_that_is_refused_leaves_neither_behind(how: str) -> None:
    life = Life.begin()
    payment = life.happens(life.payment(50, "02-01"))
    life.charged_off() if how == "charged off" else life.refinanced()
    events = life.returned(payment, "05-01"), life.fee(35, "05-01")
    with nothing_changes(life.books), pytest.raises(Problem) as caught:
        post_together(life, *events)
    assert caught.value.code == "loan_state_refuses"
    life.happens(events[0])  # Without the fee the bank's return is never refused.


def post_together(life: Life, *events: Event) -> None:
    touches = Touches.of(events[0])
    for event in events[1:]:
        touches |= Touches.of(event)
    with opened(life.books.origin, touches) as (posting, _):
        assert posting is not None
        for event in events:
            posting.post(event)
        posting.record()


def test_a_reversed_accrual_that_was_paid_names_the_loans_that_no_longer_owe_it() -> None:
    life = Life.begin()
    other = life.another()
    accrual = life.happens(life.accrual("02-01", (life.loan, 1_000, 3), (other.loan, 0, 4)))
    life.happens(life.payment(3, "02-02"))
    with nothing_changes(life.books), pytest.raises(Problem) as caught:
        life.happens(life.reversal(accrual))
    assert caught.value.code == "amount_exceeds_balance"
    assert [error.field for error in caught.value.errors] == [f"loans.{life.loan.loan_id}"]


@pytest.mark.parametrize(
    ("through", "code"),
    [("2025-02-28", "period_closed"), ("2025-01-31", "period_closed"), ("9999-12-31", "effective_date_refused")],
)
def test_a_period_closes_forward_and_not_in_the_future(through: str, code: str) -> None:
    life = Life.begin().closed("02-28")
    with nothing_changes(life.books), pytest.raises(Problem) as caught:
        life.books.close(through)
    assert caught.value.code == code


# --- What is not refused, beside it ----------------------------------------------------------------------------------

ALLOWED: list[tuple[str, Callable[[Life], Event]]] = [
    ("the day after a closed period", lambda life: life.closed("02-28").payment(5, "03-01")),
    (
        "the reversal of an entry in a closed period, dated after it",
        lambda life: life.closed("02-28").reversal(life.books.rows(NEWEST)[0][0], "03-01"),
    ),
    (
        "the reversal of a charge-off whose recovery was reversed",
        lambda life: life.reversal(first(life.happens(life.chargeoff()), turned_back(life, life.recovery(5, "05-01")))),
    ),
    (
        "the reversal of a refinance whose new loan has no other entries",
        lambda life: life.reversal(life.happens(life.refinance())),
    ),
    (
        "the reversal of a refinance whose old loan has other entries",
        lambda life: life.reversal(first(life.happens(life.refinance()), life.happens(life.payment(5, "05-01")))),
    ),
    ("the reversal of an allocation", lambda life: life.reversal(life.allocated()[1])),
    (
        "the return of a charged-off loan's payment",
        lambda life: life.returned(first(life.announced(), life.charged_off()), "05-01"),
    ),
    (
        "the return of a refinanced loan's payment",
        lambda life: life.returned(first(life.settled(), life.refinanced()), "05-01"),
    ),
    (
        "the return of a payment that was refunded",
        lambda life: life.returned(
            first(
                life.happens(life.payment(1_100, "03-01")),
                life.happens(life.adjustment(*lines(life.loan, "2000", "1000", 100), on="03-02")),
            ),
            "03-03",
        ),
    ),
    (
        "the return of an announced payment whose money is gone from suspense",
        lambda life: life.returned(
            first(
                life.announced(),
                life.happens(life.adjustment(*lines(life.loan, "2000", "1010", 10, layer=PENDING), on="02-01")),
            ),
            "02-02",
        ),
    ),
    ("a date accrued again after its reversal", lambda life: accrued_again(life)),
    ("a fee on a paid-off loan", lambda life: life.paid_off().fee(5, "05-01")),
    ("a draw on a paid-off loan", lambda life: life.paid_off().draw(5, "05-01")),
    ("a payment on a refinanced loan", lambda life: life.refinanced().payment(5, "05-01")),
    (
        "the settlement of a refinanced loan's payment",
        lambda life: life.settlement(first(life.announced(), life.refinanced()), "05-01"),
    ),
    ("a capitalisation above the limit", lambda life: capitalised_above_the_limit(life)),
    ("an accrual on a charged-off loan", lambda life: life.charged_off().accrual("05-01", (life.loan, 0, 3))),
    (
        "a manual entry on a charged-off loan",
        lambda life: life.charged_off().adjustment(*lines(life.loan, "1300", "4100", 5)),
    ),
    ("the same reference by another method", lambda life: same_reference(life)),
]


def accrued_again(life: Life) -> Event:
    accrual = life.accrual("02-01", (life.loan, 1_000, 3))
    turned_back(life, accrual)
    return accrual


def capitalised_above_the_limit(life: Life) -> Event:
    limited = life.another(principal_limit_minor=700)
    limited.after(limited.draw(700, "02-01"), limited.fee(50, "02-02"))
    return limited.restructure("02-03", capitalise=True)


def same_reference(life: Life) -> Event:
    payment = life.payment(5, "02-01", ref="7")
    life.happens(payment)
    return replace(payment, source_method="wire")


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in ALLOWED])
def test_what_stands_close_to_a_refusal_is_posted(case: Callable[[Life], Event]) -> None:
    life = Life.begin()
    event = case(life)
    entries = life.books.entries()
    life.happens(event)
    assert life.books.entries() == entries + 1
