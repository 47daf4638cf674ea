"""The tables of the books: data and constraints, no procedure.

Django declares tables and row-local constraints here; composite keys, row security, triggers, grants and the two functions
of the write path are the numbered `.sql` files beside the migrations. What an entry or a line must be by itself is there
too (migrations/0002_walls.sql), because a CHECK costs every posting more than a trigger. Rows of the journal are written by
`record_posting` (migrations/0003_posting.sql) alone; the models are for reading.
Ids are UUIDs, keys start with `tenant_id`, amounts are positive integers in the currency's minor unit (BIGINT).
"""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from hpts.tenancy import TenantOwned
from ledger.events import DIRECTIONS

DAY_COUNTS = ("ACT_365", "ACT_360", "ACT_ACT", "30_360")
ACCRUAL_MODES = ("client", "engine")
ACCOUNT_TYPES = ("asset", "liability", "equity", "income", "expense", "memo")


class TransactionIdField(models.Field):  # type: ignore[type-arg]
    """PostgreSQL's 64-bit transaction id, stamped by the database: what the sealed-entry wall and the bounded cursor read."""

    def db_type(self, connection: object) -> str:
        return "xid8"


class CurrentTransactionId(models.Func):
    function = "pg_current_xact_id"
    output_field = TransactionIdField()


class Tenant(models.Model):
    """A lender with books of its own. `timezone` decides which date is today; quotas are the settings' where they are not
    given (hpts/limits.py)."""

    id = models.UUIDField(primary_key=True)
    name = models.TextField()
    currency = models.TextField()
    timezone = models.TextField()
    created_at = models.DateTimeField(db_default=Now())
    requests_per_second = models.IntegerField(null=True)
    client_requests_per_second = models.IntegerField(null=True)

    class Meta:
        db_table = "tenant"
        constraints = [
            models.CheckConstraint(condition=Q(currency__regex=r"^[A-Z]{3}$"), name="tenant_currency"),
            models.CheckConstraint(
                condition=Q(requests_per_second__range=(1, 1_000_000))
                & Q(client_requests_per_second__range=(1, 1_000_000)),
                name="tenant_quotas",
            ),
        ]

    def __str__(self) -> str:
        return self.name


class Program(TenantOwned):
    """A loan product: currency, day count, and effective-dated terms."""

    id = models.UUIDField(primary_key=True)
    name = models.TextField()
    currency = models.TextField()
    day_count_convention = models.TextField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "program"
        constraints = [
            models.CheckConstraint(condition=Q(currency__regex=r"^[A-Z]{3}$"), name="program_currency"),
            models.CheckConstraint(condition=Q(day_count_convention__in=DAY_COUNTS), name="program_day_count"),
        ]

    def __str__(self) -> str:
        return self.name


class ProgramTerms(TenantOwned):
    """What holds for a program from a date on. A change is a new row; of two for one date the later id wins."""

    program_id = models.UUIDField()
    effective_at = models.DateField()
    annual_rate_bps = models.IntegerField()
    waterfall = models.TextField()
    accrual_mode = models.TextField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "program_terms"
        constraints = [
            models.CheckConstraint(
                condition=Q(annual_rate_bps__gte=0, annual_rate_bps__lte=100_000), name="program_terms_rate"
            ),
            models.CheckConstraint(condition=Q(accrual_mode__in=ACCRUAL_MODES), name="program_terms_accrual_mode"),
            models.CheckConstraint(
                condition=Q(
                    waterfall__in=[
                        "fees,interest,principal",
                        "fees,principal,interest",
                        "interest,fees,principal",
                        "interest,principal,fees",
                        "principal,fees,interest",
                        "principal,interest,fees",
                    ]
                ),
                name="program_terms_waterfall",
            ),
        ]


class GLAccount(TenantOwned):
    """An account of the tenant's chart. Rules name the role; a tenant's own accounts have none."""

    pk = models.CompositePrimaryKey("tenant_id", "code")
    code = models.TextField()
    name = models.TextField()
    account_type = models.TextField()
    normal_side = models.TextField()
    per_loan = models.BooleanField(default=False)
    role = models.TextField(null=True)
    created_at = models.DateTimeField(db_default=Now())
    closed_at = models.DateTimeField(null=True)
    closure_reason = models.TextField(null=True)

    class Meta:
        db_table = "gl_account"
        constraints = [
            models.CheckConstraint(condition=Q(code__regex=r"^[0-9]{4}$"), name="gl_account_code"),
            models.CheckConstraint(condition=Q(account_type__in=ACCOUNT_TYPES), name="gl_account_type"),
            models.CheckConstraint(condition=Q(normal_side__in=DIRECTIONS), name="gl_account_normal_side"),
            models.UniqueConstraint(fields=["tenant_id", "role"], name="gl_account_one_per_role"),
        ]

    def __str__(self) -> str:
        return f"{self.code} {self.name}"


class Loan(TenantOwned):
    """A loan. Its state is derived from entries and balances; `version` counts the entries that touched it.

    The last columns move with postings, under the row's lock, by `record_posting` and `accrue_chunk` alone; the proof holds them
    against the journal. `draws` counts the entries in force that lent principal, `ended_as` says what ended the loan. Then the
    engine's: interest since the opening through `accrued_through` in 1/(10,000 x 1,603,080) minor units, what of it has been
    posted, and what was known when it was counted: the loan's version, and its terms.
    """

    id = models.UUIDField(primary_key=True)
    borrower_id = models.UUIDField()
    program_id = models.UUIDField()
    currency = models.TextField()
    opened_on = models.DateField()
    principal_limit_minor = models.BigIntegerField(null=True)
    created_at = models.DateTimeField(db_default=Now())
    version = models.BigIntegerField(db_default=0)
    last_effective_at = models.DateField(null=True)
    last_posted_at = models.DateTimeField(null=True)
    draws = models.IntegerField(db_default=0)
    ended_as = models.TextField(null=True)
    accrued_through = models.DateField(null=True)
    accrued_version = models.BigIntegerField(db_default=0)
    accrued_terms = models.BigIntegerField(null=True)
    # An integer without an upper bound.
    interest_exact = models.DecimalField(max_digits=60, decimal_places=0, db_default=0)
    interest_posted_minor = models.BigIntegerField(db_default=0)

    class Meta:
        db_table = "loan"
        constraints = [
            models.CheckConstraint(condition=Q(draws__gte=0), name="loan_draws"),
            # As short as can be, since every posting parses them: NULL passes by itself.
            models.CheckConstraint(condition=Q(ended_as__in=["charged_off", "refinanced"]), name="loan_ended_as"),
            models.CheckConstraint(condition=Q(principal_limit_minor__gt=0), name="loan_limit"),
        ]
        indexes = [
            # GET /loans, its program and borrower filters, in order of id.
            models.Index(fields=["tenant_id", "program_id", "id"], name="loan_by_program"),
            models.Index(fields=["tenant_id", "borrower_id", "id"], name="loan_by_borrower"),
            models.Index(
                fields=["tenant_id", "ended_as", "id"], name="loan_ended", condition=Q(ended_as__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return str(self.id)


class LoanTerms(TenantOwned):
    """Terms of the loan's own from a date on; what a row leaves out, the row before it or the program says. Rows are never
    edited: those that came with an entry (a restructure) are in force until that entry is reversed."""

    loan_id = models.UUIDField()
    effective_at = models.DateField()
    annual_rate_bps = models.IntegerField(null=True)
    day_count_convention = models.TextField(null=True)
    entry_id = models.UUIDField(null=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "loan_terms"
        constraints = [
            models.CheckConstraint(
                condition=Q(annual_rate_bps__isnull=True) | Q(annual_rate_bps__gte=0, annual_rate_bps__lte=100_000),
                name="loan_terms_rate",
            ),
            models.CheckConstraint(
                condition=Q(day_count_convention__isnull=True) | Q(day_count_convention__in=DAY_COUNTS),
                name="loan_terms_day_count",
            ),
            models.CheckConstraint(
                condition=Q(annual_rate_bps__isnull=False) | Q(day_count_convention__isnull=False),
                name="loan_terms_say_something",
            ),
        ]


class PeriodClose(TenantOwned):
    """The books are closed through a date: no entry is dated on or before it any more. `trial_balances` is what they said
    then, JSON as the API shows it."""

    pk = models.CompositePrimaryKey("tenant_id", "through_date")
    through_date = models.DateField()
    closed_at = models.DateTimeField(db_default=Now())
    actor = models.TextField()
    trial_balances = models.TextField()

    class Meta:
        db_table = "period_close"


class JournalEntry(TenantOwned):
    """The immutable record of one posting.

    `document` is the entry's RFC 8785 JSON with `tenant_id` and a version, rendered once; `content_hash` its SHA-256.
    The other columns repeat what queries filter by. `facts` keeps what the event said and the entry does not show.
    """

    id = models.UUIDField(primary_key=True)
    event_type = models.TextField()
    loan_id = models.UUIDField(null=True)  # The one loan that the entry is about; null when it has none or many.
    effective_at = models.DateField()
    posted_at = models.DateTimeField()
    correlation_id = models.UUIDField()
    reverses_entry_id = models.UUIDField(null=True)
    settles_entry_id = models.UUIDField(null=True)
    source_method = models.TextField(null=True)
    external_ref = models.TextField(null=True)
    line_count = models.IntegerField()
    facts = models.JSONField(null=True)
    document = models.TextField()
    content_hash = models.BinaryField()
    created_xid = TransactionIdField(db_default=CurrentTransactionId())

    class Meta:
        db_table = "journal_entry"
        verbose_name_plural = "journal entries"
        constraints = [
            # At most one reversal or return, one settlement, and one payment with a reference, for ever.
            models.UniqueConstraint(
                fields=["tenant_id", "reverses_entry_id"],
                condition=Q(reverses_entry_id__isnull=False),
                name="journal_entry_one_reversal",
            ),
            models.UniqueConstraint(
                fields=["tenant_id", "settles_entry_id"],
                condition=Q(settles_entry_id__isnull=False),
                name="journal_entry_one_settlement",
            ),
            models.UniqueConstraint(
                fields=["tenant_id", "source_method", "external_ref"],
                condition=Q(source_method__isnull=False, external_ref__isnull=False),
                name="journal_entry_one_external_ref",
            ),
        ]
        indexes = [
            # The few entries that the return of a payment and the reversal of a charge-off look for.
            models.Index(
                fields=["tenant_id", "loan_id", "event_type"],
                name="journal_entry_of_suspense",
                condition=Q(event_type__in=["payment_returned", "recovery"])
                | Q(event_type="payment_allocated", settles_entry_id__isnull=True),
            )
        ]


class JournalLine(TenantOwned):
    """One debit or credit of an entry. `loan_version` orders a loan's history: the loan's version after the entry."""

    pk = models.CompositePrimaryKey("tenant_id", "entry_id", "sequence")
    entry_id = models.UUIDField()
    sequence = models.SmallIntegerField()
    account_code = models.TextField()
    direction = models.TextField()
    amount_minor = models.BigIntegerField()
    currency = models.TextField()
    layer = models.TextField()
    loan_id = models.UUIDField(null=True)
    borrower_id = models.UUIDField(null=True)
    loan_version = models.BigIntegerField(null=True)
    effective_at = models.DateField()
    external_ref = models.TextField(null=True)

    class Meta:
        db_table = "journal_line"
        constraints = [
            # A loan's history in order, and its as-of sums. That no two entries claim one version is record_posting's wall.
            models.UniqueConstraint(
                fields=["tenant_id", "loan_id", "loan_version", "sequence"],
                condition=Q(loan_id__isnull=False),
                name="journal_line_loan_history",
            ),
        ]


class Balance(TenantOwned):
    """The running sum of a loan on one account and layer, on the account's normal side: a cache, always rebuildable.

    `floored` balances (receivables and suspense) never go below zero.
    """

    pk = models.CompositePrimaryKey("tenant_id", "loan_id", "account_code", "layer")
    loan_id = models.UUIDField()
    account_code = models.TextField()
    layer = models.TextField()
    currency = models.TextField()
    balance_minor = models.BigIntegerField()
    floored = models.BooleanField()

    class Meta:
        db_table = "loan_balance"
        constraints = [
            models.CheckConstraint(
                condition=Q(floored=False) | Q(balance_minor__gte=0), name="loan_balance_not_below_zero"
            )
        ]


class AccountSum(TenantOwned):
    """What the entries up to the tenant's point (`AccountRollup`) have moved on an account in a day, a month or a year: gross
    debits and credits. A cache, always rebuildable; `roll_up_accounts` (migrations/0006_rollup.sql) alone adds to it."""

    pk = models.CompositePrimaryKey("tenant_id", "span", "currency", "layer", "account_code", "starts_on")
    span = models.TextField()
    currency = models.TextField()
    layer = models.TextField()
    account_code = models.TextField()
    starts_on = models.DateField()
    # Sums of 64-bit amounts leave 64 bits.
    dr_minor = models.DecimalField(max_digits=40, decimal_places=0)
    cr_minor = models.DecimalField(max_digits=40, decimal_places=0)

    class Meta:
        db_table = "account_sum"
        constraints = [
            models.CheckConstraint(condition=Q(span__in=["day", "month", "year"]), name="account_sum_span"),
            models.CheckConstraint(condition=Q(dr_minor__gte=0, cr_minor__gte=0), name="account_sum_is_gross"),
        ]


class AccountRollup(TenantOwned):
    """How far a tenant's account sums go in the order of the outbox; what comes behind it is read from the lines."""

    tenant_id = models.UUIDField(primary_key=True, editable=False)
    created_xid = TransactionIdField()
    entry_id = models.UUIDField()
    rolled_up_at = models.DateTimeField()

    class Meta:
        db_table = "account_rollup"


class Accrual(TenantOwned):
    """A loan's interest for a date has been posted. A revision above 0 needs the one before it reversed.

    `since`: the engine posted it, for all days after that date; NULL: the client did.
    """

    pk = models.CompositePrimaryKey("tenant_id", "loan_id", "accrual_date", "revision")
    loan_id = models.UUIDField()
    accrual_date = models.DateField()
    revision = models.SmallIntegerField()
    entry_id = models.UUIDField()
    interest_minor = models.BigIntegerField()
    since = models.DateField(null=True)

    class Meta:
        db_table = "loan_accrual"


class AccrualPause(TenantOwned):
    """A loan earns no interest for these dates, both included; without an end, until further notice.

    Of two that somebody asked for from the same date the later one holds. The reversal of an accrual pauses its days, too
    (`reversed_revision`): until that date is accrued again.
    """

    loan_id = models.UUIDField()
    from_date = models.DateField()
    to_date = models.DateField(null=True)
    reversed_revision = models.SmallIntegerField(null=True)
    created_at = models.DateTimeField(db_default=Now())
    actor = models.TextField()

    class Meta:
        db_table = "accrual_pause"
        constraints = [
            models.CheckConstraint(
                condition=Q(to_date__isnull=True, reversed_revision__isnull=True)
                | Q(to_date__gte=models.F("from_date")),
                name="accrual_pause_dates",
            )
        ]


class AccrualRun(TenantOwned):
    """The engine's work on one program for one date. Its chunks and exceptions say how far it is."""

    id = models.UUIDField(primary_key=True)
    program_id = models.UUIDField()
    accrual_date = models.DateField()
    actor = models.TextField()
    correlation_id = models.UUIDField()
    requested_at = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "accrual_run"
        constraints = [
            models.UniqueConstraint(
                fields=["tenant_id", "program_id", "accrual_date"], name="accrual_run_one_per_program_and_date"
            )
        ]
        indexes = [
            models.Index(
                fields=["tenant_id", "requested_at"],
                name="accrual_run_unfinished",
                condition=Q(finished_at__isnull=True),
            )
        ]

    def __str__(self) -> str:
        return f"{self.program_id} {self.accrual_date}"


class AccrualChunk(TenantOwned):
    """A range of a run's loans, after one id and through another; NULL has no end. What is done is done in one transaction,
    that of its entry. `number` follows the ids."""

    pk = models.CompositePrimaryKey("tenant_id", "run_id", "number")
    run_id = models.UUIDField()
    number = models.IntegerField()
    after_id = models.UUIDField(null=True)
    through_id = models.UUIDField(null=True)
    loan_count = models.IntegerField(db_default=0)
    accrued_count = models.IntegerField(db_default=0)
    total_minor = models.DecimalField(max_digits=40, decimal_places=0, db_default=0)
    done_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "accrual_chunk"


class AccrualException(TenantOwned):
    """A loan that a run could not accrue, and why. It goes when the run, asked again, can."""

    pk = models.CompositePrimaryKey("tenant_id", "run_id", "loan_id")
    run_id = models.UUIDField()
    loan_id = models.UUIDField()
    code = models.TextField()
    detail = models.TextField()

    class Meta:
        db_table = "accrual_exception"


class IdempotencyKey(TenantOwned):
    """A used key, for ever: the fingerprint of its request and the answer that a replay repeats byte for byte."""

    pk = models.CompositePrimaryKey("tenant_id", "key")
    key = models.TextField(db_collation="C")
    fingerprint = models.BinaryField()
    response = models.TextField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "idempotency_key"


class OutboxMessage(TenantOwned):
    """ "Tell the world that this entry exists", written with the entry; read by the bounded cursor over `created_xid`."""

    pk = models.CompositePrimaryKey("tenant_id", "created_xid", "entry_id")
    created_xid = TransactionIdField(db_default=CurrentTransactionId())
    entry_id = models.UUIDField()

    class Meta:
        db_table = "outbox_message"


class JournalSeal(TenantOwned):
    """A block of sealed history: the entries after the block before it, through (`last_xid`, `last_entry_id`). Append-only.

    `leaves` are the hashes of their documents, 32 bytes each, in the order of the bounded cursor; `merkle_root` is over them.
    `hash` covers the root and the hash of the block before; `signature` is that of `hash` by the key with `key_id`.
    """

    pk = models.CompositePrimaryKey("tenant_id", "number")
    number = models.BigIntegerField()
    entry_count = models.IntegerField()
    last_xid = TransactionIdField()
    last_entry_id = models.UUIDField()
    leaves = models.BinaryField()
    merkle_root = models.BinaryField()
    previous_hash = models.BinaryField()
    hash = models.BinaryField()
    sealed_at = models.DateTimeField(db_default=Now())
    key_id = models.TextField(null=True)
    signature = models.BinaryField(null=True)

    class Meta:
        db_table = "journal_seal"
        constraints = [
            # In which block an entry is.
            models.UniqueConstraint(
                fields=["tenant_id", "last_xid", "last_entry_id"], name="journal_seal_by_last_entry"
            ),
            models.CheckConstraint(
                condition=Q(key_id__isnull=True, signature__isnull=True)
                | Q(key_id__isnull=False, signature__isnull=False),
                name="journal_seal_signature",
            ),
        ]


class Notice(TenantOwned):
    """ "Tell the world that this happened", of what is no entry: written with the thing itself, and read by the bounded cursor.

    `id` is the thing's own, so that nothing is told twice; `body` is the JSON that is sent.
    """

    pk = models.CompositePrimaryKey("tenant_id", "created_xid", "id")
    created_xid = TransactionIdField(db_default=CurrentTransactionId())
    id = models.UUIDField()
    event_type = models.TextField()
    body = models.TextField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "notice"
        constraints = [models.UniqueConstraint(fields=["tenant_id", "id"], name="notice_once")]
