"""The posting rules: one pure function `(State, Event) -> lines` per kind, named like the kind. No Django, no clock here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ledger.events import EventKind, Line
from ledger.rules.accrual import accrual
from ledger.rules.correction import manual_adjustment, reversal
from ledger.rules.disbursement import disbursement, disbursement_settled
from ledger.rules.ending import chargeoff, recovery, refinance, restructure
from ledger.rules.fee import fee_assessed, fee_waived
from ledger.rules.payment import payment_allocated, payment_received, payment_returned
from ledger.state import State

Rule = Callable[[State, Any], list[Line]]

RULES: dict[EventKind, Rule] = {
    EventKind.DISBURSEMENT: disbursement,
    EventKind.DISBURSEMENT_SETTLED: disbursement_settled,
    EventKind.ACCRUAL: accrual,
    EventKind.PAYMENT_RECEIVED: payment_received,
    EventKind.PAYMENT_ALLOCATED: payment_allocated,
    EventKind.PAYMENT_RETURNED: payment_returned,
    EventKind.FEE_ASSESSED: fee_assessed,
    EventKind.FEE_WAIVED: fee_waived,
    EventKind.CHARGEOFF: chargeoff,
    EventKind.RECOVERY: recovery,
    EventKind.REFINANCE: refinance,
    EventKind.RESTRUCTURE: restructure,
    EventKind.REVERSAL: reversal,
    EventKind.MANUAL_ADJUSTMENT: manual_adjustment,
}
