"""The tables of reconciliation: data and constraints, no procedure.

Nothing here ever changes or goes, but for a run that is finished once. So a break is open until it has a resolution, a line is
unmatched until a match claims it, and who did what, and why, stays. Walls are migrations/0002_walls.sql.
"""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from hpts.tenancy import TenantOwned
from ledger.models import TransactionIdField
from reconciliation.formats import FORMATS
from reconciliation.matching import KINDS

ACTIONS = ("match", "adjust", "explain", "superseded")


class BankAccount(TenantOwned):
    """A bank's account, known by the client's own name for it, and the GL account whose settled lines are its other side."""

    pk = models.CompositePrimaryKey("tenant_id", "ref")
    ref = models.TextField()
    account_code = models.TextField()
    currency = models.TextField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "bank_account"

    def __str__(self) -> str:
        return self.ref


class Statement(TenantOwned):
    """One imported file. `answer` is what its first import answered; the file's hash is why it is imported once."""

    id = models.UUIDField(primary_key=True)
    bank_account_ref = models.TextField()
    format = models.TextField()
    file_hash = models.BinaryField()
    from_date = models.DateField()
    to_date = models.DateField()
    opening_balance_minor = models.BigIntegerField()
    closing_balance_minor = models.BigIntegerField()
    line_count = models.IntegerField()
    imported_at = models.DateTimeField(db_default=Now())
    actor = models.TextField()

    class Meta:
        db_table = "bank_statement"
        constraints = [
            models.CheckConstraint(condition=Q(format__in=list(FORMATS)), name="bank_statement_format"),
            models.CheckConstraint(condition=Q(from_date__lte=models.F("to_date")), name="bank_statement_dates"),
            models.UniqueConstraint(
                fields=["tenant_id", "bank_account_ref", "file_hash"], name="bank_statement_imported_once"
            ),
        ]
        indexes = [
            # The latest statement on or before a date.
            models.Index(fields=["tenant_id", "bank_account_ref", "to_date"], name="bank_statement_latest"),
        ]


class StatementAnswer(TenantOwned):
    """What the import of a file answered: counts are known after the matching, and repeated byte for byte."""

    pk = models.CompositePrimaryKey("tenant_id", "statement_id")
    statement_id = models.UUIDField()
    answer = models.TextField()

    class Meta:
        db_table = "bank_statement_answer"


class StatementLine(TenantOwned):
    """One line of a statement; what the account gained, so a debit is below zero."""

    pk = models.CompositePrimaryKey("tenant_id", "statement_id", "number")
    statement_id = models.UUIDField()
    number = models.IntegerField()
    value_date = models.DateField()
    amount_minor = models.BigIntegerField()
    reference = models.TextField(null=True)
    description = models.TextField(null=True)

    class Meta:
        db_table = "bank_statement_line"
        constraints = [
            models.CheckConstraint(condition=~Q(amount_minor=0), name="bank_statement_line_amount"),
        ]


class Match(TenantOwned):
    """Lines of the bank and of the books that are one; both sides sum to the same. `counted_on`: the statement's last day, from
    which on the match counts for a statement's difference."""

    id = models.UUIDField(primary_key=True)
    bank_account_ref = models.TextField()
    rule = models.TextField()
    counted_on = models.DateField()
    matched_at = models.DateTimeField(db_default=Now())
    actor = models.TextField()

    class Meta:
        db_table = "bank_match"
        constraints = [
            models.CheckConstraint(
                condition=Q(rule__in=["reference", "amount", "sum", "reversal", "decision", "adjustment"]),
                name="bank_match_rule",
            ),
        ]


class MatchedStatementLine(TenantOwned):
    """A line of the bank that a match has claimed, once and for all."""

    pk = models.CompositePrimaryKey("tenant_id", "statement_id", "number")
    statement_id = models.UUIDField()
    number = models.IntegerField()
    match_id = models.UUIDField()

    class Meta:
        db_table = "bank_match_statement_line"
        indexes = [models.Index(fields=["tenant_id", "match_id"], name="bank_match_statement_line_of")]


class MatchedJournalLine(TenantOwned):
    """A line of the books that a match has claimed. What it repeats of line and match, the wall holds against them."""

    pk = models.CompositePrimaryKey("tenant_id", "entry_id", "sequence")
    entry_id = models.UUIDField()
    sequence = models.SmallIntegerField()
    match_id = models.UUIDField()
    bank_account_ref = models.TextField()
    effective_at = models.DateField()
    counted_on = models.DateField()
    amount_minor = models.BigIntegerField()

    class Meta:
        db_table = "bank_match_journal_line"
        indexes = [
            models.Index(fields=["tenant_id", "match_id"], name="bank_match_journal_line_of"),
            # Those that count on another side of a statement's last day than their own date: later ones are few and have an
            # index of their own, earlier ones are those of later statements.
            models.Index(fields=["tenant_id", "bank_account_ref", "counted_on"], name="bank_match_journal_line_later"),
            models.Index(
                fields=["tenant_id", "bank_account_ref", "counted_on"],
                name="bank_match_journal_line_across",
                condition=Q(effective_at__gt=models.F("counted_on")),
            ),
        ]


class Alert(TenantOwned):
    """Breaks that were opened together, to be told by mail; written in their transaction. `due_at` is when it may be tried
    (again), or while somebody sends it, when that one is given up."""

    id = models.UUIDField(primary_key=True)
    bank_account_ref = models.TextField()
    break_count = models.IntegerField()
    created_at = models.DateTimeField(db_default=Now())
    due_at = models.DateTimeField(db_default=Now())
    attempt = models.SmallIntegerField(db_default=0)
    mailed_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "reconciliation_alert"
        indexes = [
            models.Index(
                fields=["tenant_id", "due_at"], name="reconciliation_alert_unsent", condition=Q(mailed_at__isnull=True)
            )
        ]


class Break(TenantOwned):
    """A difference. `difference_minor` is by how much the bank has more than the books. Without a line of either side it is
    the statement's opening balance that differs. `alert_id`: with which alert it is told."""

    id = models.UUIDField(primary_key=True)
    bank_account_ref = models.TextField()
    kind = models.TextField()
    amount_minor = models.BigIntegerField()
    difference_minor = models.BigIntegerField()
    value_date = models.DateField()
    counted_on = models.DateField()
    reference = models.TextField(null=True)
    statement_id = models.UUIDField(null=True)
    number = models.IntegerField(null=True)
    entry_id = models.UUIDField(null=True)
    sequence = models.SmallIntegerField(null=True)
    opened_at = models.DateTimeField(db_default=Now())
    alert_id = models.UUIDField(null=True)

    class Meta:
        db_table = "reconciliation_break"
        constraints = [
            models.CheckConstraint(condition=Q(kind__in=KINDS), name="reconciliation_break_kind"),
            models.CheckConstraint(condition=Q(amount_minor__gte=0), name="reconciliation_break_amount"),
            models.CheckConstraint(
                condition=Q(statement_id__isnull=True, number__isnull=True)
                | Q(statement_id__isnull=False, number__isnull=False),
                name="reconciliation_break_bank_line",
            ),
            models.CheckConstraint(
                condition=Q(entry_id__isnull=True, sequence__isnull=True)
                | Q(entry_id__isnull=False, sequence__isnull=False),
                name="reconciliation_break_journal_line",
            ),
        ]
        indexes = [
            # GET /reconciliation/breaks, oldest money first.
            models.Index(fields=["tenant_id", "value_date", "id"], name="reconciliation_break_listed"),
            models.Index(fields=["tenant_id", "bank_account_ref"], name="reconciliation_break_account"),
            # What an alert tells of.
            models.Index(fields=["tenant_id", "alert_id", "value_date"], name="reconciliation_break_alerted"),
        ]


class Resolution(TenantOwned):
    """How a break was closed, by whom and why; at most one, for ever. `superseded`: the lines are still there, and the books
    now say something else about them."""

    pk = models.CompositePrimaryKey("tenant_id", "break_id")
    break_id = models.UUIDField()
    action = models.TextField()
    reason = models.TextField()
    actor = models.TextField()
    match_id = models.UUIDField(null=True)
    entry_id = models.UUIDField(null=True)
    resolved_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "reconciliation_resolution"
        constraints = [
            models.CheckConstraint(condition=Q(action__in=ACTIONS), name="reconciliation_resolution_action"),
            models.CheckConstraint(
                condition=~Q(action="adjust") | Q(entry_id__isnull=False), name="reconciliation_resolution_adjusts"
            ),
            models.CheckConstraint(condition=~Q(reason="") & ~Q(actor=""), name="reconciliation_resolution_says_why"),
        ]


class Run(TenantOwned):
    """A reconciliation of all bank accounts as of a date: asked for, or one per night. This table is the truth; the broker
    only says that there is something to look at."""

    id = models.UUIDField(primary_key=True)
    as_of_date = models.DateField()
    is_nightly = models.BooleanField()
    actor = models.TextField()
    requested_at = models.DateTimeField(db_default=Now())
    state = models.TextField(db_default="queued")
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    matched_count = models.IntegerField(null=True)
    break_count = models.IntegerField(null=True)
    mismatched_account_count = models.IntegerField(null=True)
    detail = models.TextField(null=True)

    class Meta:
        db_table = "reconciliation_run"
        constraints = [
            models.CheckConstraint(
                condition=Q(state__in=["queued", "complete", "failed"]), name="reconciliation_run_state"
            ),
            models.CheckConstraint(
                condition=Q(state="queued", finished_at__isnull=True)
                | Q(finished_at__isnull=False, started_at__isnull=False) & ~Q(state="queued"),
                name="reconciliation_run_finished",
            ),
            # Two beats, one run.
            models.UniqueConstraint(
                fields=["tenant_id", "as_of_date"],
                condition=Q(is_nightly=True),
                name="reconciliation_run_one_a_night",
            ),
        ]
        indexes = [
            models.Index(fields=["tenant_id", "requested_at", "id"], name="reconciliation_run_listed"),
            models.Index(
                fields=["tenant_id", "requested_at"], name="reconciliation_run_queued", condition=Q(state="queued")
            ),
        ]


class Proof(TenantOwned):
    """One proof of the books: what it looked at, and what it found. The next one begins behind the last that found nothing;
    without a point (`through_xid`) there was no entry."""

    id = models.UUIDField(primary_key=True)
    is_full = models.BooleanField()
    through_xid = TransactionIdField(null=True)
    through_entry_id = models.UUIDField(null=True)
    entry_count = models.BigIntegerField()
    line_count = models.BigIntegerField()
    breach_count = models.IntegerField()
    # The checks that failed, and the first bad rows that each named: JSON, as `verify_ledger --json` prints them.
    breaches = models.JSONField()
    mismatched_account_count = models.IntegerField()
    actor = models.TextField()
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "reconciliation_proof"
        constraints = [
            models.CheckConstraint(
                condition=Q(through_xid__isnull=True, through_entry_id__isnull=True)
                | Q(through_xid__isnull=False, through_entry_id__isnull=False),
                name="reconciliation_proof_point",
            ),
        ]
        indexes = [
            # The last one, and the last one that found nothing.
            models.Index(fields=["tenant_id", "-finished_at"], name="reconciliation_proof_latest"),
        ]
