"""Events and lines: the frozen facts that happen to loans, and the debits and credits that rules answer with.

No Django, no clock, no database. Ids are canonical lower-case UUID strings, amounts positive integers in the currency's
minor unit, dates `datetime.date`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import ClassVar

DEBIT = "DR"
CREDIT = "CR"
DIRECTIONS = (DEBIT, CREDIT)

SETTLED = "SETTLED"
PENDING = "PENDING"
ENCUMBRANCE = "ENCUMBRANCE"
LAYERS = (SETTLED, PENDING, ENCUMBRANCE)

# How money comes and goes.
METHODS = ("ach", "wire", "card", "check", "cash", "internal_transfer")


class EventKind(StrEnum):
    """The fourteen kinds of the contract, spelled as on the wire."""

    DISBURSEMENT = "disbursement"
    DISBURSEMENT_SETTLED = "disbursement_settled"
    ACCRUAL = "accrual"
    PAYMENT_RECEIVED = "payment_received"
    PAYMENT_ALLOCATED = "payment_allocated"
    PAYMENT_RETURNED = "payment_returned"
    FEE_ASSESSED = "fee_assessed"
    FEE_WAIVED = "fee_waived"
    CHARGEOFF = "chargeoff"
    RECOVERY = "recovery"
    REFINANCE = "refinance"
    RESTRUCTURE = "restructure"
    REVERSAL = "reversal"
    MANUAL_ADJUSTMENT = "manual_adjustment"


@dataclass(frozen=True, slots=True)
class Line:
    """One debit or credit. `account` is a role of the chart (`principal`) or a four-digit code (`1100`)."""

    account: str
    direction: str
    amount_minor: int
    currency: str
    layer: str = SETTLED
    loan_id: str | None = None
    borrower_id: str | None = None
    external_ref: str | None = None

    def mirrored(self) -> Line:
        """The same line on the other side."""
        other = CREDIT if self.direction == DEBIT else DEBIT
        return Line(
            self.account,
            other,
            self.amount_minor,
            self.currency,
            self.layer,
            self.loan_id,
            self.borrower_id,
            self.external_ref,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all kinds share: the date that it counts, and what the entry and its facts keep of the request."""

    kind: ClassVar[EventKind]

    effective_at: date
    description: str | None = None
    facts: Mapping[str, object] | None = None

    @property
    def loan_ids(self) -> tuple[str, ...]:
        """The loans that the event names itself."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoanEvent(Event):
    """An event about one loan."""

    loan_id: str

    @property
    def loan_ids(self) -> tuple[str, ...]:
        return (self.loan_id,)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoneyEvent(LoanEvent):
    """An event that moves an amount of the loan's currency."""

    amount_minor: int
    currency: str
    borrower_id: str | None = None
    layer: str = SETTLED


@dataclass(frozen=True, slots=True, kw_only=True)
class Disbursement(MoneyEvent):
    kind = EventKind.DISBURSEMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class DisbursementSettled(Event):
    """The money of `disbursement_event_id` has left the bank."""

    kind = EventKind.DISBURSEMENT_SETTLED
    disbursement_event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentReceived(MoneyEvent):
    """`external_ref` is unique per tenant and `source_method`, for ever."""

    kind = EventKind.PAYMENT_RECEIVED
    source_method: str
    external_ref: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentSettled(Event):
    """The announced money of `payment_event_id` has come: it is allocated now."""

    kind = EventKind.PAYMENT_ALLOCATED
    payment_event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspenseAllocated(MoneyEvent):
    """Money that waited in suspense meets what the loan owes. `payment_event_id`: the payment that a replan allocates anew."""

    kind = EventKind.PAYMENT_ALLOCATED
    payment_event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentUnallocated(Event):
    """What a payment gave to receivables goes back to suspense, for a replan to allocate it anew."""

    kind = EventKind.PAYMENT_ALLOCATED
    payment_event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentReturned(Event):
    """The bank has taken a payment back."""

    kind = EventKind.PAYMENT_RETURNED
    payment_event_id: str
    return_code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeeAssessed(MoneyEvent):
    kind = EventKind.FEE_ASSESSED


@dataclass(frozen=True, slots=True, kw_only=True)
class FeeWaived(MoneyEvent):
    kind = EventKind.FEE_WAIVED


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeOff(LoanEvent):
    """The lender gives up on all that the loan owes."""

    kind = EventKind.CHARGEOFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery(MoneyEvent):
    """Money on a loan that was charged off."""

    kind = EventKind.RECOVERY
    external_ref: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinance(LoanEvent):
    """`loan_id` is paid off from `new_loan_id`, which may pay out some cash as well."""

    kind = EventKind.REFINANCE
    new_loan_id: str
    cash_out_minor: int = 0

    @property
    def loan_ids(self) -> tuple[str, ...]:
        return (self.loan_id, self.new_loan_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restructure(LoanEvent):
    """Interest and fees become principal; the new terms are the door's to write."""

    kind = EventKind.RESTRUCTURE
    capitalise_interest: bool = False
    capitalise_fees: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AccruedLoan:
    """One loan of an accrual batch: the client's figure, and the principal that it was computed on."""

    loan_id: str
    outstanding_principal_minor: int
    interest_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accrual(Event):
    """A day of interest of many loans of one program; `effective_at` is the accrual date."""

    kind = EventKind.ACCRUAL
    program_id: str
    day_count_convention: str
    loans: tuple[AccruedLoan, ...]

    @property
    def loan_ids(self) -> tuple[str, ...]:
        return tuple(loan.loan_id for loan in self.loans)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reversal(Event):
    """The exact mirror of an entry."""

    kind = EventKind.REVERSAL
    reverses_entry_id: str
    reason_code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ManualAdjustment(Event):
    """Explicit lines. `lines` name accounts by code."""

    kind = EventKind.MANUAL_ADJUSTMENT
    lines: tuple[Line, ...]

    @property
    def loan_ids(self) -> tuple[str, ...]:
        return tuple(sorted({line.loan_id for line in self.lines if line.loan_id is not None}))
