"""Shapes of reconciliation's requests and answers; no rule here."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType

from hpts.fields import (
    AccountCode,
    AmountMinor,
    CurrencyCode,
    Description,
    IsoDate,
    Reference,
    Timestamp,
    Uuid,
)
from ledger.serializers import Answer, Choice, Page, Request, Signed
from reconciliation.formats import FORMATS
from reconciliation.matching import KINDS


def _choices(*choices: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(choices)}


class StatementFormat(Choice):
    choices = tuple(FORMATS)
    schema = _choices(*choices)


class BreakKind(Choice):
    choices = KINDS
    schema = _choices(*choices)


class BreakState(Choice):
    choices = ("open", "resolved")
    schema = _choices(*choices)


class ResolutionAction(Choice):
    choices = ("match", "adjust", "explain")
    schema = _choices(*choices)


class RunTrigger(Choice):
    choices = ("nightly", "request")
    schema = _choices(*choices)


class RunState(Choice):
    choices = ("queued", "complete", "failed")
    schema = _choices(*choices)


class Agreement(Choice):
    choices = ("ok", "mismatch")
    schema = _choices(*choices)


class BankStatus(Choice):
    choices = ("reconciled", "unreconciled", "pending")
    schema = _choices(*choices)


# --- Requests --------------------------------------------------------------------------------------------------------


class ImportQuery(Request):
    bank_account_ref: Reference
    format: StatementFormat
    account_code: AccountCode | UnsetType = UNSET


class BreaksQuery(Page):
    state: BreakState | UnsetType = UNSET
    kind: BreakKind | UnsetType = UNSET
    bank_account_ref: Reference | UnsetType = UNSET


class NewResolution(Request):
    action: ResolutionAction
    reason: Description
    journal_entry_id: Uuid | UnsetType = UNSET
    account_code: AccountCode | UnsetType = UNSET


class NewRun(Request):
    as_of_date: IsoDate | UnsetType = UNSET


# --- Answers ---------------------------------------------------------------------------------------------------------

LineCount = Annotated[int, Meta(ge=0)]


class BankStatement(Answer):
    """An imported statement. Counts of the first answer are kept with it; those of a later read are of that moment."""

    statement_id: Uuid
    bank_account_ref: Reference
    from_date: IsoDate
    to_date: IsoDate
    currency: CurrencyCode
    opening_balance_minor: Signed
    closing_balance_minor: Signed
    line_count: LineCount
    matched_count: LineCount
    break_count: LineCount


class BankStatementLine(Answer):
    """What the account gained, so a debit is below zero; the rule and the entries of its match, when it has one."""

    line_number: LineCount
    value_date: IsoDate
    amount_minor: Signed
    reference: Reference | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    match_rule: str | UnsetType = UNSET
    journal_entry_ids: list[Uuid] | UnsetType = UNSET


class BankStatementPage(BankStatement):
    """A statement and a page of its lines."""

    lines: list[BankStatementLine]
    next_page_token: str | UnsetType = UNSET


class ReconciliationBreak(Answer):
    """A difference between bank and books. The amount is the line's; of `amount_differs` it is the difference."""

    break_id: Uuid
    kind: BreakKind
    bank_account_ref: Reference
    amount_minor: AmountMinor
    state: BreakState
    age_days: LineCount
    value_date: IsoDate | UnsetType = UNSET
    reference: Reference | UnsetType = UNSET
    journal_entry_id: Uuid | UnsetType = UNSET


class ReconciliationBreakPage(Answer):
    items: list[ReconciliationBreak]
    next_page_token: str | UnsetType = UNSET


class BreakResolved(Answer):
    break_id: Uuid
    state: BreakState
    journal_entry_id: Uuid | UnsetType = UNSET


class ReconciliationRun(Answer):
    """A run is queued until a worker has done all of it in one transaction; `break_count` is how many breaks it opened."""

    run_id: Uuid
    as_of_date: IsoDate
    trigger: RunTrigger
    state: RunState
    requested_at: Timestamp
    started_at: Timestamp | UnsetType = UNSET
    finished_at: Timestamp | UnsetType = UNSET
    matched_count: LineCount | UnsetType = UNSET
    break_count: LineCount | UnsetType = UNSET
    mismatched_account_count: LineCount | UnsetType = UNSET
    detail: str | UnsetType = UNSET


class ReconciliationRunPage(Answer):
    items: list[ReconciliationRun]
    next_page_token: str | UnsetType = UNSET


class LedgerIntegrity(Answer):
    """Control accounts that are not the sum of their loans' balances, when the last run looked."""

    status: Agreement
    mismatched_account_count: LineCount
    checked_at: Timestamp


class BankReconciliation(Answer):
    """Bank closing minus ledger, as of the latest statement that ends on or before the date."""

    bank_account_ref: Reference
    status: BankStatus
    difference_minor: Signed


class PortfolioRollup(Answer):
    """Principal of the control account, and of the loans; in the tenant's currency."""

    status: Agreement
    gl_principal_minor: Signed
    sum_of_loan_balances_minor: Signed


class ReconciliationStatus(Answer):
    as_of_date: IsoDate
    ledger_integrity: LedgerIntegrity
    bank_reconciliation: list[BankReconciliation]
    portfolio_rollup: PortfolioRollup
