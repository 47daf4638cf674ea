"""Every write of the API: its shape, what it touches, and what it does under the locks. No rule and no HTTP here.

A view runs one of them for a key, a batch runs many. `work` decides through `Posting.post()` and answers the response's
members; what it raises leaves nothing behind.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Generic, TypeVar

import msgspec
from django.db.transaction import on_commit

from hpts import audit
from hpts.fields import given
from hpts.problems import NotFound
from ledger import masters, queries, runs, tasks
from ledger import serializers as shapes
from ledger.chart import RECEIVABLES
from ledger.errors import (
    EffectiveDateRefused,
    EntryNotFound,
    FieldProblem,
    PlanOutdated,
    ProgramNotFound,
    ValidationFailed,
)
from ledger.events import (
    SETTLED,
    Accrual,
    AccruedLoan,
    ChargeOff,
    Disbursement,
    DisbursementSettled,
    EventKind,
    FeeAssessed,
    FeeWaived,
    Line,
    ManualAdjustment,
    PaymentReceived,
    PaymentReturned,
    PaymentSettled,
    Recovery,
    Refinance,
    Restructure,
    Reversal,
    SuspenseAllocated,
)
from ledger.posting import Posted, Posting, Touches, day_before, uuid7
from ledger.replan import plan_hash, planned, post_plan
from ledger.rules.ending import ended_with
from ledger.rules.payment import returned_entry
from ledger.rules.waterfall import allocation

S = TypeVar("S", bound=msgspec.Struct)
Path = Mapping[str, str]
Members = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Write(Generic[S]):
    """One operation that posts, or creates what postings need. `path` holds the route's parameters; `status` is answered the
    first time.

    `audited`: what it is about, as a type of object and the member of the answer that has its id. An entry names its actor
    for ever, so it is said of operations that post none, and each of them is in the audit log.
    """

    operation_id: str
    scope: str
    shape: type[S]
    touches: Callable[[S, Path], Touches]
    work: Callable[[Posting, S, Path], Members]
    status: int = 201
    audited: tuple[str, str] | None = None

    def run(self, posting: Posting, body: S, path: Path) -> Members:
        """Do it in an open posting. Raises the refusals of rules and masters."""
        if "loan_id" in path and path["loan_id"] not in posting.state.loans:
            raise NotFound(f"There is no loan {path['loan_id']}.")
        members = self.work(posting, body, path)
        if self.audited is not None:
            kind, member = self.audited
            about = (kind, str(members[member]))
            audit.record(posting.origin.as_caller(), self.operation_id, about=about, cursor=posting.cursor)
        return members

    def loan(self, body: S, path: Path) -> str | None:
        """The loan that the operation is about, when the request names it."""
        return path.get("loan_id") or getattr(body, "loan_id", None) or None


WRITES: dict[str, Write[Any]] = {}


def _write(
    operation_id: str,
    scope: str,
    shape: type[S],
    touches: Callable[[S, Path], Touches],
    status: int = 201,
    audited: tuple[str, str] | None = None,
) -> Callable[[Callable[[Posting, S, Path], Members]], Write[S]]:
    def declare(work: Callable[[Posting, S, Path], Members]) -> Write[S]:
        WRITES[operation_id] = write = Write(operation_id, scope, shape, touches, work, status, audited)
        return write

    return declare


# --- What operations touch -------------------------------------------------------------------------------------------


def _nothing(body: Any, path: Path) -> Touches:
    return Touches()


def _loan_of_body(body: Any, path: Path) -> Touches:
    return Touches([body.loan_id], since=body.effective_at)


def _loan_of_path(body: Any, path: Path) -> Touches:
    return Touches([path["loan_id"]], since=body.effective_at)


def _loan_now(body: Any, path: Path) -> Touches:
    return Touches([path["loan_id"]])


def _program_terms(body: shapes.NewProgramTerms, path: Path) -> Touches:
    """A change of who accrues waits for the runs and batches that are under way, and keeps new ones waiting."""
    return Touches(mode="close" if given(body.accrual_mode) else "post")


def _payment_of_path(body: Any, path: Path) -> Touches:
    return Touches(entries=[path["payment_event_id"]], since=body.effective_at)


def _disbursement_of_path(body: Any, path: Path) -> Touches:
    return Touches(entries=[path["disbursement_event_id"]], since=body.effective_at)


def _replanned(body: shapes.NewReplan, path: Path) -> Touches:
    return Touches([path["loan_id"]], since=body.from_date)


def in_order(first: str, earlier: date | None, second: str, later: date | None) -> None:
    """Refuse a span that ends before it begins."""
    if earlier is not None and later is not None and earlier > later:
        raise ValidationFailed(
            "One or more fields are not valid.",
            [FieldProblem(first, "out_of_range", f"{first} is after {second}.")],
        )


# --- What answers share ----------------------------------------------------------------------------------------------


def _facts(**facts: object) -> dict[str, object] | None:
    kept = {name: value for name, value in facts.items() if value is not None}
    return kept or None


def _money(body: shapes.NewMoney, path: Path) -> dict[str, Any]:
    """What events about money of the path's loan are made with."""
    return {
        "loan_id": path["loan_id"],
        "amount_minor": body.amount_minor,
        "currency": body.currency,
        "effective_at": body.effective_at,
    }


def _recorded(entry: Posted) -> dict[str, Any]:
    return {
        "journal_entry_id": entry.journal_entry_id,
        "posted_at": entry.posted_at,
        "correlation_id": entry.correlation_id,
    }


def _minor(amounts: Mapping[str, int]) -> dict[str, str]:
    """`{"fees": 5}` as `{"fees_minor": "5"}`."""
    return {f"{role}_minor": str(amount) for role, amount in amounts.items()}


def _payment_answer(posting: Posting, payment_event_id: str, entry: Posted) -> Members:
    return {
        "payment_event_id": payment_event_id,
        "journal_entry_id": entry.journal_entry_id,
        "allocation": _minor(allocation(posting.state, entry.lines)),
        "posted_at": entry.posted_at,
    }


def _known(posting: Posting, entry_id: str, kind: EventKind) -> str:
    """The id of a payment or disbursement in the path. Raises NotFound for any other entry."""
    entry = posting.state.entries.get(entry_id)
    if entry is None or entry.event_type != kind:
        raise NotFound(f"There is no {'payment' if kind is EventKind.PAYMENT_RECEIVED else 'disbursement'} {entry_id}.")
    return entry_id


# --- Payments --------------------------------------------------------------------------------------------------------


@_write("createPayment", "hpts:payments:write", shapes.NewPayment, _loan_of_body)
def create_payment(posting: Posting, body: shapes.NewPayment, path: Path) -> Members:
    entry = posting.post(
        PaymentReceived(
            loan_id=body.loan_id,
            borrower_id=body.borrower_id,
            amount_minor=body.amount_minor,
            currency=body.currency,
            effective_at=body.effective_at,
            source_method=body.source_method,
            external_ref=given(body.external_ref),
            layer=given(body.layer) or SETTLED,
            facts=_facts(source_method=body.source_method, metadata=given(body.metadata)),
        )
    )
    return _payment_answer(posting, entry.journal_entry_id, entry)


def preview_allocation(posting: Posting, loan_id: str, amount_minor: int, effective_at: date | None) -> Members:
    """Where a payment would go: the payment's rule decides, and nothing is recorded. Raises its refusals."""
    event = PaymentReceived(
        loan_id=loan_id,
        amount_minor=amount_minor,
        currency=posting.state.loans[loan_id].currency,
        effective_at=effective_at or posting.today,
        source_method="internal_transfer",
    )
    return {"allocation": _minor(allocation(posting.state, posting.decide(event)))}


@_write("settlePayment", "hpts:payments:write", shapes.Settlement, _payment_of_path)
def settle_payment(posting: Posting, body: shapes.Settlement, path: Path) -> Members:
    payment = _known(posting, path["payment_event_id"], EventKind.PAYMENT_RECEIVED)
    entry = posting.post(PaymentSettled(effective_at=body.effective_at, payment_event_id=payment))
    return _payment_answer(posting, payment, entry)


@_write("returnPayment", "hpts:payments:write", shapes.NewReturn, _payment_of_path)
def return_payment(posting: Posting, body: shapes.NewReturn, path: Path) -> Members:
    payment = _known(posting, path["payment_event_id"], EventKind.PAYMENT_RECEIVED)
    announced = posting.state.entries[payment].lines[0]
    returned = returned_entry(posting.state, payment)
    entry = posting.post(
        PaymentReturned(
            effective_at=body.effective_at,
            payment_event_id=payment,
            return_code=body.return_code,
            facts={"return_code": body.return_code, "payment_event_id": payment},
        )
    )
    answer = {
        "payment_event_id": payment,
        "journal_entry_id": entry.journal_entry_id,
        "reverses_entry_id": returned.entry_id,
        "posted_at": entry.posted_at,
    }
    if (fee_minor := given(body.nsf_fee_minor)) is not None:
        fee = posting.post(
            FeeAssessed(
                loan_id=str(announced.loan_id),
                amount_minor=fee_minor,
                currency=announced.currency,
                effective_at=body.effective_at,
                facts={"fee_type": "nsf", "payment_event_id": payment},
            )
        )
        answer["nsf_fee_entry_id"] = fee.journal_entry_id
    return answer


@_write("allocateSuspense", "hpts:payments:write", shapes.NewSuspenseAllocation, _loan_of_path)
def allocate_suspense(posting: Posting, body: shapes.NewSuspenseAllocation, path: Path) -> Members:
    entry = posting.post(
        SuspenseAllocated(
            **_money(body, path),
        )
    )
    return {
        "journal_entry_id": entry.journal_entry_id,
        "allocation": _minor(allocation(posting.state, entry.lines)),
        "posted_at": entry.posted_at,
    }


# --- Disbursements ---------------------------------------------------------------------------------------------------


@_write("createDisbursement", "hpts:disbursements:write", shapes.NewDisbursement, _loan_of_body)
def create_disbursement(posting: Posting, body: shapes.NewDisbursement, path: Path) -> Members:
    entry = posting.post(
        Disbursement(
            loan_id=body.loan_id,
            borrower_id=body.borrower_id,
            amount_minor=body.amount_minor,
            currency=body.currency,
            effective_at=body.effective_at,
            layer=given(body.layer) or SETTLED,
            facts=_facts(
                method=body.method, destination_ref=given(body.destination_ref), metadata=given(body.metadata)
            ),
        )
    )
    return _disbursement_answer(entry.journal_entry_id, entry)


@_write("settleDisbursement", "hpts:disbursements:write", shapes.Settlement, _disbursement_of_path)
def settle_disbursement(posting: Posting, body: shapes.Settlement, path: Path) -> Members:
    disbursement = _known(posting, path["disbursement_event_id"], EventKind.DISBURSEMENT)
    entry = posting.post(DisbursementSettled(effective_at=body.effective_at, disbursement_event_id=disbursement))
    return _disbursement_answer(disbursement, entry)


def _disbursement_answer(disbursement_event_id: str, entry: Posted) -> Members:
    return {
        "disbursement_event_id": disbursement_event_id,
        "journal_entry_id": entry.journal_entry_id,
        "posted_at": entry.posted_at,
    }


# --- Interest --------------------------------------------------------------------------------------------------------


def _accrued(body: shapes.AccrualBatch, path: Path) -> Touches:
    loans = [item.loan_id for item in body.loans]
    return Touches(loans, since=day_before(body.accrual_date), accrual=body.accrual_date)


@_write("createAccrualBatch", "hpts:accruals:write", shapes.AccrualBatch, _accrued)
def create_accrual_batch(posting: Posting, body: shapes.AccrualBatch, path: Path) -> Members:
    if queries.program(posting.cursor, program_id=body.program_id, on=body.accrual_date) is None:
        raise ProgramNotFound(f"There is no program {body.program_id}.")
    items = tuple(
        AccruedLoan(
            loan_id=item.loan_id,
            outstanding_principal_minor=item.outstanding_principal_minor,
            interest_minor=item.interest_minor,
        )
        for item in body.loans
    )
    entry = posting.post(
        Accrual(
            effective_at=body.accrual_date,
            program_id=body.program_id,
            day_count_convention=body.day_count_convention,
            loans=items,
        )
    )
    return {
        "accrual_event_id": entry.journal_entry_id,
        "journal_entry_id": entry.journal_entry_id,
        "loan_count": len(items),
        "total_accrued_minor": str(sum(item.interest_minor for item in items)),
        "posted_at": entry.posted_at,
    }


# --- Servicing -------------------------------------------------------------------------------------------------------


@_write("assessFee", "hpts:admin:servicing", shapes.NewFee, _loan_of_path)
def assess_fee(posting: Posting, body: shapes.NewFee, path: Path) -> Members:
    return _recorded(
        posting.post(
            FeeAssessed(
                **_money(body, path),
                description=given(body.description),
                facts=_facts(fee_type=given(body.fee_type)),
            )
        )
    )


@_write("waiveFee", "hpts:admin:servicing", shapes.NewFeeWaiver, _loan_of_path)
def waive_fee(posting: Posting, body: shapes.NewFeeWaiver, path: Path) -> Members:
    return _recorded(
        posting.post(
            FeeWaived(
                **_money(body, path),
                description=body.reason,
            )
        )
    )


@_write("chargeOffLoan", "hpts:admin:servicing", shapes.NewChargeOff, _loan_of_path)
def charge_off_loan(posting: Posting, body: shapes.NewChargeOff, path: Path) -> Members:
    entry = posting.post(ChargeOff(loan_id=path["loan_id"], effective_at=body.effective_at, description=body.reason))
    return {**_recorded(entry), "charged_off": _minor(ended_with(posting.state, entry.lines))}


@_write("recordRecovery", "hpts:admin:servicing", shapes.NewRecovery, _loan_of_path)
def record_recovery(posting: Posting, body: shapes.NewRecovery, path: Path) -> Members:
    return _recorded(
        posting.post(
            Recovery(
                **_money(body, path),
                external_ref=given(body.external_ref),
            )
        )
    )


@_write("refinanceLoan", "hpts:admin:servicing", shapes.NewRefinance, _loan_of_path)
def refinance_loan(posting: Posting, body: shapes.NewRefinance, path: Path) -> Members:
    old = posting.state.loans[path["loan_id"]]
    new_loan_id = create_loan.work(posting, body.new_loan, {})["loan_id"]
    entry = posting.post(
        Refinance(
            loan_id=old.loan_id,
            new_loan_id=new_loan_id,
            effective_at=body.effective_at,
            cash_out_minor=given(body.cash_out_minor) or 0,
            facts={"new_loan_id": new_loan_id, "refinanced_loan_id": old.loan_id},
        )
    )
    return {**_recorded(entry), "new_loan_id": new_loan_id, "paid_off": _minor(ended_with(posting.state, entry.lines))}


@_write("restructureLoan", "hpts:admin:servicing", shapes.NewRestructure, _loan_of_path)
def restructure_loan(posting: Posting, body: shapes.NewRestructure, path: Path) -> Members:
    rate, convention = given(body.annual_rate_bps), given(body.day_count_convention)
    event = Restructure(
        loan_id=path["loan_id"],
        effective_at=body.effective_at,
        capitalise_interest=bool(given(body.capitalise_interest)),
        capitalise_fees=bool(given(body.capitalise_fees)),
        facts=_facts(annual_rate_bps=rate, day_count_convention=convention),
    )
    lines = posting.decide(event)
    answer: dict[str, Any] = {"correlation_id": posting.origin.correlation_id}
    if lines:
        answer = _recorded(posting.post(event))
        posting.flush()
    if rate is not None or convention is not None:
        masters.add_loan_terms(
            posting.cursor,
            loan_id=path["loan_id"],
            effective_at=body.effective_at,
            annual_rate_bps=rate,
            day_count_convention=convention,
            entry_id=answer.get("journal_entry_id"),
        )
    return {**answer, "capitalised_minor": str(lines[0].amount_minor if lines else 0)}


@_write("replanLoan", "hpts:admin:servicing", shapes.NewReplan, _replanned)
def replan_loan(posting: Posting, body: shapes.NewReplan, path: Path) -> Members:
    """Make the plan, and commit it when it is the one that `plan_hash` names."""
    posting.admit_date(body.from_date)
    version = posting.state.loans[path["loan_id"]].version
    with posting.taken_back():
        trial = post_plan(posting, path["loan_id"], body.from_date)
        plan = [planned(entry, posting.state.chart) for entry in trial]
    name = plan_hash(path["loan_id"], version, body.from_date, plan)
    wanted = given(body.plan_hash)
    if wanted is None:
        return {"plan_hash": name, "entries": plan}
    if wanted != name:
        raise PlanOutdated("The loan has moved since, or this is another plan. Ask for a new one.")
    entries = post_plan(posting, path["loan_id"], body.from_date)
    return {"journal_entry_ids": [entry.journal_entry_id for entry in entries], "posted_at": posting.posted_at}


# --- The engine ------------------------------------------------------------------------------------------------------


@_write(
    "startAccrualRun",
    "hpts:accruals:write",
    shapes.NewAccrualRun,
    _nothing,
    status=202,
    audited=("accrual run", "accrual_run_id"),
)
def start_accrual_run(posting: Posting, body: shapes.NewAccrualRun, path: Path) -> Members:
    """Make the run, or open it again; workers hear of it when the transaction has ended."""
    program_id, tenant_id = path["program_id"], posting.origin.tenant_id
    if queries.program(posting.cursor, program_id=program_id, on=body.accrual_date) is None:
        raise NotFound(f"There is no program {program_id}.")
    posting.admit_date(body.accrual_date)
    run_id = runs.request_run(
        posting.cursor, program_id=program_id, accrual_date=body.accrual_date, origin=posting.origin
    )
    on_commit(lambda: tasks.start(tenant_id, run_id))
    found = queries.accrual_run(posting.cursor, run_id=run_id)
    assert found is not None
    return found


@_write("pauseAccrual", "hpts:admin:servicing", shapes.NewAccrualPause, _loan_now, audited=("loan", "loan_id"))
def pause_accrual(posting: Posting, body: shapes.NewAccrualPause, path: Path) -> Members:
    to_date = given(body.to_date)
    in_order("from_date", body.from_date, "to_date", to_date)
    loan = posting.state.loans[path["loan_id"]]
    if body.from_date < loan.opened_on:
        raise EffectiveDateRefused(f"Loan {loan.loan_id} opens on {loan.opened_on}.")
    # What a pause changes is posted by the next run; its dates may lie ahead, and not in a closed period.
    posting.admit_date(min(body.from_date, posting.today))
    return masters.add_accrual_pause(
        posting.cursor,
        loan_id=loan.loan_id,
        from_date=body.from_date,
        to_date=to_date,
        actor=posting.origin.actor,
    )


# --- Corrections -----------------------------------------------------------------------------------------------------


def _reversed_entry(body: shapes.NewReversal, path: Path) -> Touches:
    return Touches(entries=[body.reverses_entry_id], since=given(body.effective_at))


@_write("createReversal", "hpts:reversals:write", shapes.NewReversal, _reversed_entry)
def create_reversal(posting: Posting, body: shapes.NewReversal, path: Path) -> Members:
    if body.reverses_entry_id not in posting.state.entries:
        raise EntryNotFound(f"There is no journal entry {body.reverses_entry_id}.")
    entry = posting.post(
        Reversal(
            effective_at=given(body.effective_at) or posting.today,
            reverses_entry_id=body.reverses_entry_id,
            reason_code=body.reason_code,
            description=given(body.reason_description),
            facts=_facts(reason_code=body.reason_code, metadata=given(body.metadata)),
        )
    )
    recorded = _recorded(entry)
    return {
        "journal_entry_id": recorded.pop("journal_entry_id"),
        "reverses_entry_id": body.reverses_entry_id,
        **recorded,
    }


def _loans_of_lines(body: shapes.NewJournalEntry, path: Path) -> Touches:
    return Touches(sorted({line.loan_id for line in body.lines if line.loan_id}), since=body.effective_at)


@_write("createJournalEntry", "hpts:admin:adjustments", shapes.NewJournalEntry, _loans_of_lines)
def create_journal_entry(posting: Posting, body: shapes.NewJournalEntry, path: Path) -> Members:
    return _recorded(
        posting.post(
            ManualAdjustment(
                effective_at=body.effective_at,
                description=body.description,
                lines=tuple(_manual_line(line) for line in body.lines),
                facts=_facts(metadata=given(body.metadata)),
            )
        )
    )


def _manual_line(line: shapes.ManualLine) -> Line:
    return Line(
        line.account_code,
        line.direction,
        line.amount_minor,
        line.currency,
        given(line.layer) or SETTLED,
        given(line.loan_id),
        given(line.borrower_id),
        given(line.external_ref),
    )


# --- Masters ---------------------------------------------------------------------------------------------------------


@_write("createProgram", "hpts:admin:loans", shapes.NewProgram, _nothing, audited=("program", "program_id"))
def create_program(posting: Posting, body: shapes.NewProgram, path: Path) -> Members:
    return masters.create_program(
        posting.cursor,
        on=posting.today,
        program_id=given(body.program_id) or str(uuid.uuid4()),
        name=body.name,
        currency=body.currency,
        annual_rate_bps=body.annual_rate_bps,
        day_count_convention=body.day_count_convention,
        waterfall=tuple(given(body.waterfall) or RECEIVABLES),
        accrual_mode=given(body.accrual_mode) or "client",
    )


@_write(
    "changeProgramTerms", "hpts:admin:loans", shapes.NewProgramTerms, _program_terms, audited=("program", "program_id")
)
def change_program_terms(posting: Posting, body: shapes.NewProgramTerms, path: Path) -> Members:
    rate, mode = given(body.annual_rate_bps), given(body.accrual_mode)
    waterfall = given(body.waterfall)
    masters.add_program_terms(
        posting.cursor,
        program_id=path["program_id"],
        effective_at=body.effective_at,
        annual_rate_bps=rate,
        waterfall=tuple(waterfall) if waterfall else None,
        accrual_mode=mode,
    )
    posting.meet_terms(path["program_id"])
    # Afterwards, so that an unknown program is told before a bad date; a refusal takes the terms back.
    posting.admit_date(body.effective_at)
    if mode is not None and queries.has_accrued(posting.cursor, program_id=path["program_id"], since=body.effective_at):
        raise EffectiveDateRefused("Loans of the program have been accrued for that date or a later one.")
    sent = {"annual_rate_bps": rate, "waterfall": waterfall, "accrual_mode": mode}
    shown = {name: value for name, value in sent.items() if value is not None}
    return {"program_id": path["program_id"], "effective_at": body.effective_at.isoformat(), **shown}


@_write("createLoan", "hpts:admin:loans", shapes.NewLoan, _nothing, audited=("loan", "loan_id"))
def create_loan(posting: Posting, body: shapes.NewLoan, path: Path) -> Members:
    created = masters.create_loan(
        posting.cursor,
        on=posting.today,
        loan_id=given(body.loan_id) or uuid7(posting.posted_at),
        borrower_id=body.borrower_id,
        program_id=body.program_id,
        opened_on=body.opened_on,
        principal_limit_minor=given(body.principal_limit_minor),
        annual_rate_bps=given(body.annual_rate_bps),
    )
    posting.meet_loan(created["loan_id"])
    return created


@_write("createAccount", "hpts:admin:adjustments", shapes.NewAccount, _nothing, audited=("account", "account_code"))
def create_account(posting: Posting, body: shapes.NewAccount, path: Path) -> Members:
    return masters.create_account(
        posting.cursor,
        code=body.account_code,
        name=body.account_name,
        account_type=body.account_type,
        normal_side=body.normal_side,
        per_loan=bool(given(body.per_loan)),
    )


@_write("closeAccount", "hpts:admin:adjustments", shapes.NewClosure, _nothing, audited=("account", "account_code"))
def close_account(posting: Posting, body: shapes.NewClosure, path: Path) -> Members:
    return masters.close_account(posting.cursor, code=path["account_code"], reason=body.reason)


# --- Periods ---------------------------------------------------------------------------------------------------------


def _alone(body: Any, path: Path) -> Touches:
    return Touches(mode="close")


@_write("closePeriod", "hpts:admin:periods", shapes.NewPeriodClose, _alone, audited=("period", "through_date"))
def close_period(posting: Posting, body: shapes.NewPeriodClose, path: Path) -> Members:
    posting.admit_date(body.through_date)
    posting.flush()
    closed = masters.close_period(posting.cursor, through_date=body.through_date, actor=posting.origin.actor)
    posting.state.closed_through = body.through_date
    return closed
