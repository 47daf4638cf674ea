"""The writes of the books as one table, for what every one of them must do: a test that takes `write` runs for each.

A new POST route needs a row here; tests/ledger/api/test_writes.py fails without it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from ledger import serializers as shapes
from tests.conftest import Json, Lender, accrual_of, disbursement_of, line, payment_of

POSTED = {"journal_entry_id", "posted_at"}
PROGRAM = {
    "program_id",
    "name",
    "currency",
    "annual_rate_bps",
    "day_count_convention",
    "waterfall",
    "accrual_mode",
    "created_at",
}
LOAN = {
    "loan_id",
    "borrower_id",
    "program_id",
    "currency",
    "state",
    "opened_on",
    "annual_rate_bps",
    "day_count_convention",
    "principal_limit_minor",
    "created_at",
}


@dataclass(frozen=True)
class Write:
    """A POST route: what it needs, what it takes, what it answers, and which ids it refuses how."""

    name: str
    scope: str
    shape: type
    answers: set[str]
    # Path and full body, every optional member given, for a lender; what the body refers to is posted on the way.
    prepare: Callable[[Lender], tuple[str, Json]]
    # A change that keeps the body valid and makes it another request.
    change: Json
    # Where the body names a row, and the problem that an unknown one is.
    ids: dict[str, tuple[int, str]]

    def __str__(self) -> str:
        return self.name


def _payment(lender: Lender) -> tuple[str, Json]:
    more = {"external_ref": f"ref-{uuid.uuid4()}", "layer": "SETTLED", "metadata": {"teller": "7"}}
    return "/v1/payments", payment_of(lender.loan) | more


def _disbursement(lender: Lender) -> tuple[str, Json]:
    more = {"destination_ref": "account 7", "layer": "SETTLED", "metadata": {"teller": "7"}}
    return "/v1/disbursements", disbursement_of(lender.loan) | more


def _settlement(lender: Lender) -> tuple[str, Json]:
    made = lender.api.disburse(lender.loan, 100_000, "2026-01-05", layer="PENDING")
    return f"/v1/disbursements/{made['disbursement_event_id']}/settlement", {"effective_at": "2026-01-07"}


def _accrual(lender: Lender) -> tuple[str, Json]:
    lender.api.disburse(lender.loan, 100_000, "2026-01-05")
    return "/v1/accruals/batch", accrual_of("2026-01-06", (lender.loans[0], 100_000, 27), (lender.loans[1], 0, 0))


def _reversal(lender: Lender) -> tuple[str, Json]:
    made = lender.api.disburse(lender.loan, 100_000, "2026-01-05")
    return "/v1/reversals", {
        "reverses_entry_id": made["journal_entry_id"],
        "reason_code": "duplicate",
        "reason_description": "Sent twice",
        "effective_at": "2026-01-06",
        "metadata": {"ticket": "42"},
    }


def _manual_entry(lender: Lender) -> tuple[str, Json]:
    about = {"layer": "SETTLED", "loan_id": lender.loan.loan_id, "borrower_id": lender.loan.borrower_id}
    return "/v1/journal-entries", {
        "effective_at": "2026-01-05",
        "description": "Opening balance",
        "lines": [
            line("1100", "DR", 500, **about, external_ref="legacy 7"),
            line("3000", "CR", 500, **about, external_ref="legacy 7"),
        ],
        "metadata": {"ticket": "42"},
    }


def _program(lender: Lender) -> tuple[str, Json]:
    return "/v1/programs", {
        "program_id": str(uuid.uuid4()),
        "name": "Car loans",
        "currency": "EUR",
        "annual_rate_bps": 450,
        "day_count_convention": "30_360",
        "waterfall": ["principal", "interest", "fees"],
        "accrual_mode": "engine",
    }


def _loan(lender: Lender) -> tuple[str, Json]:
    return "/v1/loans", {
        "loan_id": str(uuid.uuid4()),
        "borrower_id": str(uuid.uuid4()),
        "program_id": lender.program_id,
        "opened_on": "2026-01-02",
        "principal_limit_minor": "1000000",
        "annual_rate_bps": 800,
    }


LOAN_NOT_FOUND = (422, "loan_not_found")
WRITES = [
    Write(
        "payment",
        "hpts:payments:write",
        shapes.NewPayment,
        POSTED | {"payment_event_id", "allocation"},
        _payment,
        {"amount_minor": "5001"},
        {"loan_id": LOAN_NOT_FOUND},
    ),
    Write(
        "disbursement",
        "hpts:disbursements:write",
        shapes.NewDisbursement,
        POSTED | {"disbursement_event_id"},
        _disbursement,
        {"amount_minor": "5001"},
        {"loan_id": LOAN_NOT_FOUND},
    ),
    Write(
        "settlement",
        "hpts:disbursements:write",
        shapes.Settlement,
        POSTED | {"disbursement_event_id"},
        _settlement,
        {"effective_at": "2026-01-08"},
        {},
    ),
    Write(
        "accrual",
        "hpts:accruals:write",
        shapes.AccrualBatch,
        POSTED | {"accrual_event_id", "loan_count", "total_accrued_minor"},
        _accrual,
        {"accrual_date": "2026-01-07"},
        {"program_id": (422, "program_not_found"), "loans.0.loan_id": (400, "validation_failed")},
    ),
    Write(
        "reversal",
        "hpts:reversals:write",
        shapes.NewReversal,
        POSTED | {"reverses_entry_id", "correlation_id"},
        _reversal,
        {"reason_code": "fraud"},
        {"reverses_entry_id": (422, "entry_not_found")},
    ),
    Write(
        "manual entry",
        "hpts:admin:adjustments",
        shapes.NewJournalEntry,
        POSTED | {"correlation_id"},
        _manual_entry,
        {"description": "Opening balances"},
        {"lines.0.loan_id": LOAN_NOT_FOUND},
    ),
    Write(
        "program",
        "hpts:admin:loans",
        shapes.NewProgram,
        PROGRAM,
        _program,
        {"name": "Boat loans"},
        {},
    ),
    Write(
        "loan",
        "hpts:admin:loans",
        shapes.NewLoan,
        LOAN,
        _loan,
        {"opened_on": "2026-01-03"},
        {"program_id": (422, "program_not_found")},
    ),
]


@pytest.fixture(params=WRITES, ids=str)
def write(request: pytest.FixtureRequest) -> Write:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def prepared(write: Write, acme: Lender) -> tuple[str, Json]:
    """Path and body of a request that will be accepted."""
    return write.prepare(acme)


def with_value(body: Any, path: str, value: Any) -> Any:
    """A copy of `body` with the value at a dotted path replaced, added at the end of an object when it is new."""
    head, _, rest = path.partition(".")
    if isinstance(body, list):
        position = int(head)
        changed = with_value(body[position], rest, value) if rest else value
        return [*body[:position], changed, *body[position + 1 :]]
    return body | {head: with_value(body[head], rest, value) if rest else value}


def without(body: Any, path: str) -> Any:
    """A copy of `body` without the member at a dotted path."""
    head, _, rest = path.partition(".")
    if isinstance(body, list):
        position = int(head)
        return [*body[:position], without(body[position], rest), *body[position + 1 :]]
    if rest:
        return body | {head: without(body[head], rest)}
    return {name: value for name, value in body.items() if name != head}
