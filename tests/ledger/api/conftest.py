"""The writes of the books as one table, for what every one of them must do: a test that takes `write` runs for each.

A new POST route needs a row here; tests/ledger/api/test_writes.py fails without it.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from hpts.tenancy import tenant_transaction
from ledger import serializers as shapes
from reconciliation import checks
from tests.conftest import Json, Lender, accrual_of, disbursement_of, line, payment_of, posted

POSTED = {"journal_entry_id", "posted_at"}
RECORDED = POSTED | {"correlation_id"}
ACCOUNT = {"account_code", "account_name", "account_type", "normal_side", "per_loan", "closed"}
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
    # Whether it is about the lender's first loan and no other: so it answers that loan's ETag and heeds If-Match.
    of_the_loan: bool = True
    # Whether it moves that loan's version; not when it posts nothing.
    moves_the_loan: bool = True
    # Whether the scope is not the route's but that of the writes in the body.
    scope_of_its_items: bool = False

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


def _announced(lender: Lender) -> Json:
    return lender.api.pay(lender.loan, 5_000, "2026-02-01", layer="PENDING")


def _payment_settlement(lender: Lender) -> tuple[str, Json]:
    return f"/v1/payments/{_announced(lender)['payment_event_id']}/settlement", {"effective_at": "2026-02-02"}


def _return(lender: Lender) -> tuple[str, Json]:
    body = {"effective_at": "2026-02-03", "return_code": "R01", "nsf_fee_minor": "2500"}
    return f"/v1/payments/{_announced(lender)['payment_event_id']}/return", body


def _lent(lender: Lender) -> str:
    """The path of the first loan, with a draw, a day of interest and a fee."""
    loan = lender.loan
    lender.api.disburse(loan, 100_000, "2026-01-05")
    lender.api.accrue("2026-01-06", (loan, 100_000, 27))
    lender.api.charge_fee(loan, 500, "2026-01-06")
    return f"/v1/loans/{loan.loan_id}"


def _money(amount: int, on: str = "2026-02-01", **more: Any) -> Json:
    return {"amount_minor": str(amount), "currency": "USD", "effective_at": on} | more


def _suspense_allocation(lender: Lender) -> tuple[str, Json]:
    lender.api.pay(lender.loan, 5_000, "2026-01-04")
    return f"{_lent(lender)}/suspense-allocations", _money(3_000)


def _fee(lender: Lender) -> tuple[str, Json]:
    return f"/v1/loans/{lender.loan.loan_id}/fees", _money(2_500, fee_type="late", description="Late in January")


def _fee_waiver(lender: Lender) -> tuple[str, Json]:
    return f"{_lent(lender)}/fee-waivers", _money(400, reason="Goodwill")


def _chargeoff(lender: Lender) -> tuple[str, Json]:
    return f"{_lent(lender)}/chargeoff", {"effective_at": "2026-02-01", "reason": "Bankrupt"}


def _recovery(lender: Lender) -> tuple[str, Json]:
    path = _lent(lender)
    posted(lender.api.post(f"{path}/chargeoff", {"effective_at": "2026-02-01", "reason": "Bankrupt"}))
    return f"{path}/recoveries", _money(900, "2026-02-02", external_ref="agency 7")


def _refinance(lender: Lender) -> tuple[str, Json]:
    path = _lent(lender)
    _, new_loan = _loan(lender)
    new_loan["borrower_id"] = lender.loan.borrower_id
    return f"{path}/refinance", {"new_loan": new_loan, "effective_at": "2026-02-01", "cash_out_minor": "20000"}


def _restructure(lender: Lender) -> tuple[str, Json]:
    return f"{_lent(lender)}/restructure", {
        "effective_at": "2026-02-01",
        "annual_rate_bps": 300,
        "day_count_convention": "30_360",
        "capitalise_interest": True,
        "capitalise_fees": True,
    }


def _replan(lender: Lender) -> tuple[str, Json]:
    """The commit of a plan: a payment that came with a date before one that has taken what it owed."""
    path = f"{_lent(lender)}/replans"
    lender.api.pay(lender.loan, 600, "2026-02-01")
    lender.api.pay(lender.loan, 600, "2026-01-07")
    planned = posted(lender.api.post(path, {"from_date": "2026-01-06"}))
    return path, {"from_date": "2026-01-06", "plan_hash": planned["plan_hash"]}


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


def _program_terms(lender: Lender) -> tuple[str, Json]:
    return f"/v1/programs/{lender.program_id}/terms", {
        "effective_at": "2026-01-02",
        "annual_rate_bps": 700,
        "waterfall": ["interest", "fees", "principal"],
        "accrual_mode": "client",
    }


def _accrual_run(lender: Lender) -> tuple[str, Json]:
    program_id = lender.open_program(accrual_mode="engine")
    return f"/v1/programs/{program_id}/accrual-runs", {"accrual_date": "2026-01-15"}


def _accrual_pause(lender: Lender) -> tuple[str, Json]:
    return f"/v1/loans/{lender.loan.loan_id}/accrual-pauses", {"from_date": "2026-02-01", "to_date": "2026-02-28"}


OWN_CODES = itertools.count(6000)


def _account(lender: Lender) -> tuple[str, Json]:
    return "/v1/accounts", {
        "account_code": str(next(OWN_CODES)),
        "account_name": f"Agency fees {uuid.uuid4()}",
        "account_type": "expense",
        "normal_side": "DR",
        "per_loan": False,
    }


def _closure(lender: Lender) -> tuple[str, Json]:
    path, body = _account(lender)
    posted(lender.api.post(path, body))
    return f"{path}/{body['account_code']}/closure", {"reason": "Not used"}


def _period(lender: Lender) -> tuple[str, Json]:
    return "/v1/periods/close", {"through_date": "2026-01-31"}


def _batch(lender: Lender) -> tuple[str, Json]:
    items = [{"path": "/payments", "body": payment_of(loan)} for loan in lender.loans[:2]]
    return "/v1/batches", {"mode": "atomic", "items": items}


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
        "payment's settlement",
        "hpts:payments:write",
        shapes.Settlement,
        POSTED | {"payment_event_id", "allocation"},
        _payment_settlement,
        {"effective_at": "2026-02-03"},
        {},
    ),
    Write(
        "return",
        "hpts:payments:write",
        shapes.NewReturn,
        POSTED | {"payment_event_id", "reverses_entry_id", "nsf_fee_entry_id"},
        _return,
        {"return_code": "R02"},
        {},
    ),
    Write(
        "suspense allocation",
        "hpts:payments:write",
        shapes.NewSuspenseAllocation,
        POSTED | {"allocation"},
        _suspense_allocation,
        {"amount_minor": "3001"},
        {},
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
        "disbursement's settlement",
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
        of_the_loan=False,
    ),
    Write(
        "reversal",
        "hpts:reversals:write",
        shapes.NewReversal,
        RECORDED | {"reverses_entry_id"},
        _reversal,
        {"reason_code": "fraud"},
        {"reverses_entry_id": (422, "entry_not_found")},
    ),
    Write(
        "manual entry",
        "hpts:admin:adjustments",
        shapes.NewJournalEntry,
        RECORDED,
        _manual_entry,
        {"description": "Opening balances"},
        {"lines.0.loan_id": LOAN_NOT_FOUND},
    ),
    Write(
        "fee",
        "hpts:admin:servicing",
        shapes.NewFee,
        RECORDED,
        _fee,
        {"fee_type": "other"},
        {},
    ),
    Write(
        "fee waiver",
        "hpts:admin:servicing",
        shapes.NewFeeWaiver,
        RECORDED,
        _fee_waiver,
        {"reason": "Promised"},
        {},
    ),
    Write(
        "charge-off",
        "hpts:admin:servicing",
        shapes.NewChargeOff,
        RECORDED | {"charged_off"},
        _chargeoff,
        {"reason": "Gone"},
        {},
    ),
    Write(
        "recovery",
        "hpts:admin:servicing",
        shapes.NewRecovery,
        RECORDED,
        _recovery,
        {"amount_minor": "901"},
        {},
    ),
    Write(
        "refinance",
        "hpts:admin:servicing",
        shapes.NewRefinance,
        RECORDED | {"new_loan_id", "paid_off"},
        _refinance,
        {"cash_out_minor": "20001"},
        {"new_loan.program_id": (422, "program_not_found")},
    ),
    Write(
        "restructure",
        "hpts:admin:servicing",
        shapes.NewRestructure,
        RECORDED | {"capitalised_minor"},
        _restructure,
        {"annual_rate_bps": 299},
        {},
    ),
    Write(
        "replan",
        "hpts:admin:servicing",
        shapes.NewReplan,
        {"journal_entry_ids", "posted_at"},
        _replan,
        {"from_date": "2026-01-07"},
        {},
    ),
    Write(
        "program",
        "hpts:admin:loans",
        shapes.NewProgram,
        PROGRAM,
        _program,
        {"name": "Boat loans"},
        {},
        of_the_loan=False,
    ),
    Write(
        "program's terms",
        "hpts:admin:loans",
        shapes.NewProgramTerms,
        {"program_id", "effective_at", "annual_rate_bps", "waterfall", "accrual_mode"},
        _program_terms,
        {"annual_rate_bps": 701},
        {},
        of_the_loan=False,
    ),
    Write(
        "loan",
        "hpts:admin:loans",
        shapes.NewLoan,
        LOAN,
        _loan,
        {"opened_on": "2026-01-03"},
        {"program_id": (422, "program_not_found")},
        of_the_loan=False,
    ),
    Write(
        "account",
        "hpts:admin:adjustments",
        shapes.NewAccount,
        ACCOUNT,
        _account,
        {"account_name": "Other fees"},
        {},
        of_the_loan=False,
    ),
    Write(
        "account's closure",
        "hpts:admin:adjustments",
        shapes.NewClosure,
        ACCOUNT,
        _closure,
        {"reason": "Never used"},
        {},
        of_the_loan=False,
    ),
    Write(
        "accrual run",
        "hpts:accruals:write",
        shapes.NewAccrualRun,
        {
            "accrual_run_id",
            "program_id",
            "accrual_date",
            "state",
            "loan_count",
            "accrued_count",
            "exception_count",
            "total_accrued_minor",
        },
        _accrual_run,
        {"accrual_date": "2026-01-16"},
        {},
        of_the_loan=False,
    ),
    Write(
        "accrual pause",
        "hpts:admin:servicing",
        shapes.NewAccrualPause,
        {"loan_id", "from_date", "to_date", "created_at"},
        _accrual_pause,
        {"to_date": "2026-03-01"},
        {},
        moves_the_loan=False,
    ),
    Write(
        "period's close",
        "hpts:admin:periods",
        shapes.NewPeriodClose,
        {"through_date", "closed_at", "trial_balances"},
        _period,
        {"through_date": "2026-02-28"},
        {},
        of_the_loan=False,
    ),
    Write(
        "batch",
        "hpts:payments:write",
        shapes.NewBatch,
        {"mode", "items"},
        _batch,
        {"mode": "each"},
        {"items.0.body.loan_id": LOAN_NOT_FOUND},
        of_the_loan=False,
        scope_of_its_items=True,
    ),
]


OF_THE_LOAN = [write for write in WRITES if write.of_the_loan]


@pytest.fixture(params=WRITES, ids=str)
def write(request: pytest.FixtureRequest) -> Write:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def sound_books(acme: Lender) -> Iterator[None]:
    """At the end of the test Acme's books keep every promise."""
    yield
    with tenant_transaction(acme.tenant_id) as cursor:
        assert [breach for check in checks.CHECKS for breach in check(cursor)] == []


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
