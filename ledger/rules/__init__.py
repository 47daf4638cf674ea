"""The posting rules: one pure function `(State, Event) -> lines` per kind, named like the kind. No Django, no clock here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ledger.events import EventKind, Line
from ledger.rules.accrual import accrual
from ledger.rules.correction import manual_adjustment, reversal
from ledger.rules.disbursement import disbursement, disbursement_settled
from ledger.rules.payment import payment_received
from ledger.state import State

Rule = Callable[[State, Any], list[Line]]

RULES: dict[EventKind, Rule] = {
    EventKind.DISBURSEMENT: disbursement,
    EventKind.DISBURSEMENT_SETTLED: disbursement_settled,
    EventKind.ACCRUAL: accrual,
    EventKind.PAYMENT_RECEIVED: payment_received,
    EventKind.REVERSAL: reversal,
    EventKind.MANUAL_ADJUSTMENT: manual_adjustment,
}
