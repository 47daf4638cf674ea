"""Shapes of requests and answers. Each is a struct of strict wire types; no rule and no arithmetic here.

Request structs turn into events in the views, where ids of the path and the caller join them. Answer structs are what the
API document says that operations answer.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from hpts.fields import (
    AccountCode,
    AmountMinor,
    CurrencyCode,
    Description,
    FieldError,
    Flag,
    IsoDate,
    Metadata,
    Name,
    PageSize,
    PageToken,
    Pattern,
    PositiveAmount,
    Reference,
    Timestamp,
    Uuid,
    Wire,
)
from ledger.chart import RECEIVABLES
from ledger.events import DIRECTIONS, LAYERS, EventKind
from ledger.models import ACCOUNT_TYPES, ACCRUAL_MODES, DAY_COUNTS

MAX_BATCH_LOANS = 16_000
MAX_MANUAL_LINES = 500
MAX_BATCH_ITEMS = 1_000


class Request(Struct, forbid_unknown_fields=True, kw_only=True):
    """A body or a query string."""


class Choice(str, Wire):
    """One of a few words."""

    choices: ClassVar[tuple[str, ...]]

    @classmethod
    def parse(cls, value: object) -> Any:
        if type(value) is not str:
            raise FieldError("invalid_type", "A string is expected.")
        if value not in cls.choices:
            raise FieldError("not_a_choice", f"One of these is expected: {', '.join(cls.choices)}.")
        return value


def _choice_schema(*choices: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "enum": list(choices), **more}


class Kind(Choice):
    choices = tuple(kind.value for kind in EventKind)
    component = "EventKind"
    schema = _choice_schema(*choices)


class EntryLayer(Choice):
    choices = LAYERS
    component = "EntryLayer"
    schema = _choice_schema(*choices, default="SETTLED")


class SettlingLayer(Choice):
    """Payments and disbursements move money now, or announce it."""

    choices = ("SETTLED", "PENDING")
    schema = _choice_schema(*choices, default="SETTLED")


class EntryDirection(Choice):
    choices = DIRECTIONS
    component = "EntryDirection"
    schema = _choice_schema(*choices)


class Method(Choice):
    choices = ("ach", "wire", "card", "check", "cash", "internal_transfer")
    schema = _choice_schema(*choices)


class DayCount(Choice):
    choices = DAY_COUNTS
    schema = _choice_schema(*choices)


class AccrualMode(Choice):
    choices = ACCRUAL_MODES
    schema = _choice_schema(*choices, default="client")


class LoanStateName(Choice):
    choices = ("open", "paid_off", "charged_off", "refinanced")
    schema = _choice_schema(*choices)


class RunState(Choice):
    choices = ("queued", "running", "complete", "complete_with_exceptions")
    schema = _choice_schema(*choices)


class ReasonCode(Choice):
    choices = ("error_correction", "duplicate", "fraud", "customer_dispute", "bank_return", "other")
    schema = _choice_schema(*choices)


class FeeType(Choice):
    choices = ("late", "nsf", "origination", "other")
    schema = _choice_schema(*choices)


class AccountType(Choice):
    choices = ACCOUNT_TYPES
    schema = _choice_schema(*choices)


class BatchMode(Choice):
    choices = ("atomic", "each")
    schema = _choice_schema(*choices)


class JsonObject(dict[str, object], Wire):
    """Any object; what it must hold is its operation's to say."""

    schema = {"type": "object"}

    @classmethod
    def parse(cls, value: object) -> Any:
        if type(value) is not dict:
            raise FieldError("invalid_type", "An object is expected.")
        return value


class Hash(Pattern):
    pattern = re.compile(r"[0-9a-f]{64}")
    message = "A hash is 64 hexadecimal digits."
    schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


class PlanHash(Pattern):
    pattern = re.compile(r"[0-9a-f]{64}")
    message = "A plan's hash is 64 hexadecimal digits."
    schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


class ReturnCode(Pattern):
    """What the bank gave as the reason, such as R01."""

    pattern = re.compile(r"[A-Z0-9]{1,16}")
    message = "A return code is 1 to 16 capital letters and digits."
    schema = {"type": "string", "pattern": "^[A-Z0-9]{1,16}$"}


class RateBps(int, Wire):
    """Basis points a year: a JSON integer."""

    schema = {"type": "integer", "minimum": 0, "maximum": 100_000}

    @classmethod
    def parse(cls, value: object) -> Any:
        if type(value) is not int:
            raise FieldError("invalid_type", "An integer is expected.")
        if not 0 <= value <= 100_000:
            raise FieldError("out_of_range", "A rate is 0 to 100000 basis points.")
        return value


class Waterfall(list[str], Wire):
    """The order in which a payment meets what is owed."""

    schema = {
        "type": "array",
        "items": {"type": "string", "enum": list(RECEIVABLES)},
        "minItems": 3,
        "maxItems": 3,
        "uniqueItems": True,
        "default": list(RECEIVABLES),
    }

    @classmethod
    def parse(cls, value: object) -> Any:
        if type(value) is not list:
            raise FieldError("invalid_type", "A list is expected.")
        if not all(type(item) is str for item in value) or sorted(value) != sorted(RECEIVABLES):
            raise FieldError("not_a_choice", "A permutation of fees, interest, principal is expected.")
        return value


# --- Requests --------------------------------------------------------------------------------------------------------


class NewProgram(Request):
    name: Name
    currency: CurrencyCode
    annual_rate_bps: RateBps
    day_count_convention: DayCount
    program_id: Uuid | UnsetType = UNSET
    waterfall: Waterfall | UnsetType = UNSET
    accrual_mode: AccrualMode | UnsetType = UNSET


class NewLoan(Request):
    borrower_id: Uuid
    program_id: Uuid
    opened_on: IsoDate
    loan_id: Uuid | UnsetType = UNSET
    principal_limit_minor: PositiveAmount | UnsetType = UNSET
    annual_rate_bps: RateBps | UnsetType = UNSET


class NewPayment(Request):
    loan_id: Uuid
    borrower_id: Uuid
    amount_minor: PositiveAmount
    currency: CurrencyCode
    effective_at: IsoDate
    source_method: Method
    external_ref: Reference | UnsetType = UNSET
    layer: SettlingLayer | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


class NewDisbursement(Request):
    loan_id: Uuid
    borrower_id: Uuid
    amount_minor: PositiveAmount
    currency: CurrencyCode
    effective_at: IsoDate
    method: Method
    destination_ref: Reference | UnsetType = UNSET
    layer: SettlingLayer | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


class Settlement(Request):
    effective_at: IsoDate


class AccrualItem(Request):
    loan_id: Uuid
    outstanding_principal_minor: AmountMinor
    interest_minor: AmountMinor


class AccrualBatch(Request):
    program_id: Uuid
    accrual_date: IsoDate
    day_count_convention: DayCount
    loans: Annotated[list[AccrualItem], Meta(min_length=1, max_length=MAX_BATCH_LOANS)]


class NewAccrualRun(Request):
    accrual_date: IsoDate


class NewAccrualPause(Request):
    """From the first date to the last, both included; without a last one until another pause from the same date says it."""

    from_date: IsoDate
    to_date: IsoDate | UnsetType = UNSET


class NewReturn(Request):
    effective_at: IsoDate
    return_code: ReturnCode
    nsf_fee_minor: PositiveAmount | UnsetType = UNSET


class NewMoney(Request):
    """What every event about money of the path's loan says."""

    amount_minor: PositiveAmount
    currency: CurrencyCode
    effective_at: IsoDate


class NewSuspenseAllocation(NewMoney):
    pass


class NewFee(NewMoney):
    fee_type: FeeType | UnsetType = UNSET
    description: Description | UnsetType = UNSET


class NewFeeWaiver(NewMoney):
    reason: Description


class NewChargeOff(Request):
    effective_at: IsoDate
    reason: Description


class NewRecovery(NewMoney):
    external_ref: Reference | UnsetType = UNSET


class NewRefinance(Request):
    new_loan: NewLoan
    effective_at: IsoDate
    cash_out_minor: PositiveAmount | UnsetType = UNSET


def _changes_something(*members: object) -> None:
    if all(member is UNSET or member is False for member in members):
        raise FieldError("nothing_to_change", "Name what changes.")


class NewRestructure(Request):
    effective_at: IsoDate
    annual_rate_bps: RateBps | UnsetType = UNSET
    day_count_convention: DayCount | UnsetType = UNSET
    capitalise_interest: Flag | UnsetType = UNSET
    capitalise_fees: Flag | UnsetType = UNSET

    def __post_init__(self) -> None:
        _changes_something(
            self.annual_rate_bps, self.day_count_convention, self.capitalise_interest, self.capitalise_fees
        )


class NewProgramTerms(Request):
    effective_at: IsoDate
    annual_rate_bps: RateBps | UnsetType = UNSET
    waterfall: Waterfall | UnsetType = UNSET
    accrual_mode: AccrualMode | UnsetType = UNSET

    def __post_init__(self) -> None:
        _changes_something(self.annual_rate_bps, self.waterfall, self.accrual_mode)


class NewAccount(Request):
    account_code: AccountCode
    account_name: Name
    account_type: AccountType
    normal_side: EntryDirection
    per_loan: Flag | UnsetType = UNSET


class NewClosure(Request):
    reason: Description


class NewPeriodClose(Request):
    through_date: IsoDate


class NewReplan(Request):
    from_date: IsoDate
    plan_hash: PlanHash | UnsetType = UNSET


class BatchItem(Request):
    """What a POST by itself would be: its path below /v1, and its body."""

    path: Reference
    body: JsonObject


class NewBatch(Request):
    mode: BatchMode
    items: Annotated[list[BatchItem], Meta(min_length=1, max_length=MAX_BATCH_ITEMS)]


class NewReversal(Request):
    reverses_entry_id: Uuid
    reason_code: ReasonCode
    reason_description: Description | UnsetType = UNSET
    effective_at: IsoDate | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


class ManualLine(Request):
    account_code: AccountCode
    direction: EntryDirection
    amount_minor: PositiveAmount
    currency: CurrencyCode
    layer: EntryLayer | UnsetType = UNSET
    loan_id: Uuid | UnsetType = UNSET
    borrower_id: Uuid | UnsetType = UNSET
    external_ref: Reference | UnsetType = UNSET


class NewJournalEntry(Request):
    effective_at: IsoDate
    description: Description
    lines: Annotated[list[ManualLine], Meta(min_length=2, max_length=MAX_MANUAL_LINES)]
    metadata: Metadata | UnsetType = UNSET


# --- Query strings ---------------------------------------------------------------------------------------------------


class NoQuery(Request):
    pass


class Page(Request):
    page_size: PageSize | UnsetType = UNSET
    page_token: PageToken | UnsetType = UNSET


class HistoryQuery(Page):
    from_date: IsoDate | UnsetType = UNSET
    to_date: IsoDate | UnsetType = UNSET
    event_type: Kind | UnsetType = UNSET


class LoansQuery(Page):
    program_id: Uuid | UnsetType = UNSET
    borrower_id: Uuid | UnsetType = UNSET
    state: LoanStateName | UnsetType = UNSET


class RunsQuery(Page):
    program_id: Uuid | UnsetType = UNSET


class AsOfQuery(Request):
    as_of_date: IsoDate | UnsetType = UNSET


class BalanceQuery(AsOfQuery):
    known_at: Timestamp | UnsetType = UNSET


class StatementQuery(Request):
    from_date: IsoDate | UnsetType = UNSET
    to_date: IsoDate | UnsetType = UNSET


class ChangesQuery(Request):
    from_known_at: Timestamp
    to_known_at: Timestamp
    as_of_date: IsoDate | UnsetType = UNSET


class PreviewQuery(Request):
    amount_minor: PositiveAmount
    effective_at: IsoDate | UnsetType = UNSET


class AccountQuery(Request):
    currency: CurrencyCode
    layer: EntryLayer | UnsetType = UNSET
    as_of_date: IsoDate | UnsetType = UNSET


class AccountBalanceQuery(AccountQuery):
    known_at: Timestamp | UnsetType = UNSET


# --- Answers ---------------------------------------------------------------------------------------------------------

Signed = Annotated[str, Meta(pattern=r"^(0|-?[1-9][0-9]*)$")]
Total = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]*)$")]


class Answer(Struct, forbid_unknown_fields=True, kw_only=True):
    """What an operation answers; for the API document and for tests."""


class Allocation(Answer):
    fees_minor: AmountMinor
    interest_minor: AmountMinor
    principal_minor: AmountMinor
    suspense_minor: AmountMinor


class PaymentPosted(Answer):
    payment_event_id: Uuid
    journal_entry_id: Uuid
    allocation: Allocation
    posted_at: Timestamp


class DisbursementPosted(Answer):
    disbursement_event_id: Uuid
    journal_entry_id: Uuid
    posted_at: Timestamp


class AccrualPosted(Answer):
    accrual_event_id: Uuid
    journal_entry_id: Uuid
    loan_count: int
    total_accrued_minor: Total
    posted_at: Timestamp


class ReversalPosted(Answer):
    journal_entry_id: Uuid
    reverses_entry_id: Uuid
    posted_at: Timestamp
    correlation_id: Uuid


class EntryPosted(Answer):
    journal_entry_id: Uuid
    posted_at: Timestamp
    correlation_id: Uuid


class PaymentReturned(Answer):
    payment_event_id: Uuid
    journal_entry_id: Uuid
    reverses_entry_id: Uuid
    posted_at: Timestamp
    nsf_fee_entry_id: Uuid | UnsetType = UNSET


class SuspenseAllocated(Answer):
    journal_entry_id: Uuid
    allocation: Allocation
    posted_at: Timestamp


class Owed(Answer):
    """What a loan owed, by receivable."""

    fees_minor: AmountMinor
    interest_minor: AmountMinor
    principal_minor: AmountMinor


class ChargedOff(EntryPosted):
    charged_off: Owed


class Refinanced(EntryPosted):
    new_loan_id: Uuid
    paid_off: Owed


class Restructured(Answer):
    """Without an entry when nothing was capitalised."""

    correlation_id: Uuid
    capitalised_minor: AmountMinor
    journal_entry_id: Uuid | UnsetType = UNSET
    posted_at: Timestamp | UnsetType = UNSET


class ProgramTerms(Answer):
    """The terms as they were sent."""

    program_id: Uuid
    effective_at: IsoDate
    annual_rate_bps: RateBps | UnsetType = UNSET
    waterfall: Waterfall | UnsetType = UNSET
    accrual_mode: AccrualMode | UnsetType = UNSET


class PlannedLine(Answer):
    sequence: int
    account_code: AccountCode
    direction: EntryDirection
    amount_minor: AmountMinor
    currency: CurrencyCode
    layer: EntryLayer
    loan_id: Uuid
    borrower_id: Uuid


class PlannedEntry(Answer):
    event_type: Kind
    effective_at: IsoDate
    lines: list[PlannedLine]
    reverses_entry_id: Uuid | UnsetType = UNSET


class Replan(Answer):
    """The plan; or, when the request named it, what was committed."""

    plan_hash: PlanHash | UnsetType = UNSET
    entries: list[PlannedEntry] | UnsetType = UNSET
    journal_entry_ids: list[Uuid] | UnsetType = UNSET
    posted_at: Timestamp | UnsetType = UNSET


class BatchProblem(Answer):
    """Why an item was refused; see the errors of its operation."""

    code: str
    title: str
    detail: str
    errors: list[BatchFieldProblem] | UnsetType = UNSET


class BatchFieldProblem(Answer):
    field: str
    code: str
    message: str


class BatchOutcome(Answer):
    """What the POST by itself would have answered."""

    status: int
    body: JsonObject | UnsetType = UNSET
    problem: BatchProblem | UnsetType = UNSET


class BatchDone(Answer):
    mode: BatchMode
    items: list[BatchOutcome]


class AccrualRun(Answer):
    """A run's state and figures, as far as it is."""

    accrual_run_id: Uuid
    program_id: Uuid
    accrual_date: IsoDate
    state: RunState
    loan_count: int
    accrued_count: int
    exception_count: int
    total_accrued_minor: Signed
    started_at: Timestamp | UnsetType = UNSET
    finished_at: Timestamp | UnsetType = UNSET


class AccrualException(Answer):
    """A loan that the run could not accrue, and why."""

    loan_id: Uuid
    code: str
    detail: str


class AccrualRunDetail(AccrualRun, kw_only=True):
    """With the loans that could not be accrued, the first thousand of them in order of id."""

    exceptions: list[AccrualException]


class AccrualRunPage(Answer):
    items: list[AccrualRun]
    next_page_token: PageToken | UnsetType = UNSET


class AccrualPause(Answer):
    loan_id: Uuid
    from_date: IsoDate
    created_at: Timestamp
    to_date: IsoDate | UnsetType = UNSET


class Program(Answer):
    program_id: Uuid
    name: Name
    currency: CurrencyCode
    annual_rate_bps: RateBps
    day_count_convention: DayCount
    waterfall: Waterfall
    accrual_mode: AccrualMode
    created_at: Timestamp


class Loan(Answer):
    loan_id: Uuid
    borrower_id: Uuid
    program_id: Uuid
    currency: CurrencyCode
    state: LoanStateName
    opened_on: IsoDate
    annual_rate_bps: RateBps
    day_count_convention: DayCount
    created_at: Timestamp
    principal_limit_minor: AmountMinor | UnsetType = UNSET


class ProgramPage(Answer):
    items: list[Program]
    next_page_token: PageToken | UnsetType = UNSET


class LoanPage(Answer):
    items: list[Loan]
    next_page_token: PageToken | UnsetType = UNSET


class LoanBalance(Answer):
    loan_id: Uuid
    currency: CurrencyCode
    as_of_date: IsoDate
    principal_outstanding_minor: AmountMinor
    interest_receivable_minor: AmountMinor
    fees_receivable_minor: AmountMinor
    total_exposure_minor: Total
    last_activity_at: Timestamp | UnsetType = UNSET
    known_at: Timestamp | UnsetType = UNSET


class Payoff(Answer):
    """`payoff_minor` is principal, interest, fees and accrued interest; suspense is not netted."""

    loan_id: Uuid
    currency: CurrencyCode
    as_of_date: IsoDate
    principal_minor: AmountMinor
    interest_minor: AmountMinor
    fees_minor: AmountMinor
    suspense_minor: AmountMinor
    accrued_interest_minor: Signed
    payoff_minor: Total


class AllocationPreview(Answer):
    allocation: Allocation


class StatementBalance(Owed):
    """A loan's settled balances."""

    suspense_minor: AmountMinor


class StatementChange(Answer):
    """Signed: what an entry changed, or the balance after it, which may pass below zero within a day."""

    principal_minor: Signed
    interest_minor: Signed
    fees_minor: Signed
    suspense_minor: Signed


class StatementEntry(StatementChange):
    """What an entry changed, and the balances after it."""

    journal_entry_id: Uuid
    event_type: Kind
    effective_at: IsoDate
    posted_at: Timestamp
    balance: StatementChange


class LoanStatement(Answer):
    """By effective date, then as it was posted."""

    loan_id: Uuid
    currency: CurrencyCode
    from_date: IsoDate
    to_date: IsoDate
    opening: StatementBalance
    entries: list[StatementEntry]
    closing: StatementBalance


class BalanceChanges(Answer):
    """What was known at one instant, what was posted after it until the other one, and what was known then."""

    loan_id: Uuid
    currency: CurrencyCode
    as_of_date: IsoDate
    from_known_at: Timestamp
    to_known_at: Timestamp
    opening: StatementBalance
    entries: list[StatementEntry]
    closing: StatementBalance


class AccountBalance(Answer):
    account_code: AccountCode
    currency: CurrencyCode
    layer: EntryLayer
    as_of_date: IsoDate
    dr_balance_minor: Total
    cr_balance_minor: Total
    normal_balance_minor: Signed
    account_name: str
    known_at: Timestamp | UnsetType = UNSET


class TrialBalanceRow(Answer):
    account_code: AccountCode
    account_name: str
    dr_balance_minor: Total
    cr_balance_minor: Total
    normal_balance_minor: Signed


class TrialBalance(Answer):
    as_of_date: IsoDate
    currency: CurrencyCode
    layer: EntryLayer
    accounts: list[TrialBalanceRow]
    total_dr_minor: Total
    total_cr_minor: Total


class ClosedTrialBalance(Answer):
    currency: CurrencyCode
    layer: EntryLayer
    accounts: list[TrialBalanceRow]
    total_dr_minor: Total
    total_cr_minor: Total


class Period(Answer):
    """A closed period, and what the books said when it was closed: a trial balance per currency and layer in use."""

    through_date: IsoDate
    closed_at: Timestamp
    trial_balances: list[ClosedTrialBalance]


class PeriodPage(Answer):
    items: list[Period]
    next_page_token: PageToken | UnsetType = UNSET


class AccountRow(Answer):
    account_code: AccountCode
    account_name: str
    account_type: Literal["asset", "liability", "equity", "income", "expense", "memo"]
    normal_side: EntryDirection
    per_loan: bool
    closed: bool


class Accounts(Answer):
    items: list[AccountRow]


class Block(Answer):
    """A block of sealed history. `hash` is the SHA-256 of the RFC 8785 JSON of `{number, merkle_root, previous_hash, tenant_id,
    entry_count}`; `signature` the Ed25519 signature of its 32 bytes."""

    number: int
    merkle_root: Hash
    previous_hash: Hash
    hash: Hash
    sealed_at: Timestamp
    signature: Annotated[str, Meta(pattern="^[0-9a-f]{128}$")] | UnsetType = UNSET


class Seal(Block, kw_only=True):
    entry_count: int
    key_id: Hash | UnsetType = UNSET


class SealPage(Answer):
    items: list[Seal]
    next_page_token: PageToken | UnsetType = UNSET


class SealKey(Answer):
    """A key that signs blocks, or has signed some. `key_id` is the SHA-256 of its 32 bytes."""

    key_id: Hash
    algorithm: Literal["Ed25519"]
    public_key: str


class SealKeys(Answer):
    items: list[SealKey]


class EntryProof(Answer):
    """`document` is the entry's canonical bytes in base64, `content_hash` their SHA-256. The leaf is SHA-256 of a zero byte and
    the document, a node of a one byte and its two children; `path` leads from the leaf up to the root."""

    journal_entry_id: Uuid
    document: Annotated[str, Meta(pattern="^[A-Za-z0-9+/]+={0,2}$")]
    content_hash: Hash
    leaf_index: int
    tree_size: int
    path: list[Hash]
    block: Block
