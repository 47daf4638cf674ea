"""The tables of telling others: events in the order of the feed, endpoints, deliveries. Data and constraints, no procedure.

Composite keys, row security, triggers and grants are in migrations/0002_walls.sql. Rows are written by relay.py (events and
their deliveries), delivery.py (what becomes of deliveries) and operations.py (endpoints, and what a client asks for).
"""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from hpts.tenancy import TenantOwned
from ledger.models import TransactionIdField

ENDPOINT_STATES = ("enabled", "disabled")
DISABLED_REASONS = ("deleted", "failing", "gone")
# `leased`: a worker is sending it; `due_at` is then when its lease ends.
DELIVERY_STATES = ("pending", "leased", "succeeded", "exhausted", "dead", "cancelled")
FINISHED = ("succeeded", "exhausted", "dead", "cancelled")
# Kept and listed until somebody sends them again, or until they are too old.
UNDELIVERED = ("exhausted", "dead", "cancelled")


class WebhookEvent(TenantOwned):
    """An announced journal entry: its place in the tenant's feed. Append-only.

    `document` is the RFC 8785 JSON that `hash` covers, together with `previous_hash`. `created_xid` and `entry_id` are those
    of the outbox message, so the last row of a tenant is the relay's cursor.
    """

    pk = models.CompositePrimaryKey("tenant_id", "sequence")
    sequence = models.BigIntegerField()
    created_xid = TransactionIdField()
    entry_id = models.UUIDField()
    event_type = models.TextField()
    occurred_at = models.DateTimeField()
    document = models.TextField()
    previous_hash = models.BinaryField()
    hash = models.BinaryField()
    relayed_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "webhook_event"
        constraints = [models.UniqueConstraint(fields=["tenant_id", "entry_id"], name="webhook_event_one_per_entry")]
        # POST .../recover: where in the feed an instant lies.
        indexes = [models.Index(fields=["tenant_id", "occurred_at"], name="webhook_event_by_time")]


class RelayedNotice(TenantOwned):
    """A notice that has become deliveries. The last row of a tenant is the relay's cursor over notices."""

    pk = models.CompositePrimaryKey("tenant_id", "created_xid", "notice_id")
    created_xid = TransactionIdField()
    notice_id = models.UUIDField()
    relayed_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "webhook_notice"


class Endpoint(TenantOwned):
    """An address of the tenant's that events are sent to. Secrets are sealed (signing.py).

    `failing_since` is when the first attempt failed since the last one that succeeded; `last_failed_at` the latest failure.
    Nothing is sent before `paused_until`, which a receiver asked for or its gateway's answers called for.
    """

    id = models.UUIDField(primary_key=True)
    url = models.TextField()
    event_types = ArrayField(models.TextField(), default=list)
    description = models.TextField(null=True)
    state = models.TextField(db_default="enabled")
    disabled_reason = models.TextField(null=True)
    created_at = models.DateTimeField(db_default=Now())
    secret = models.BinaryField()
    previous_secret = models.BinaryField(null=True)
    previous_valid_until = models.DateTimeField(null=True)
    failing_since = models.DateTimeField(null=True)
    last_failed_at = models.DateTimeField(null=True)
    paused_until = models.DateTimeField(null=True)

    class Meta:
        db_table = "webhook_endpoint"
        constraints = [
            models.CheckConstraint(condition=Q(state__in=ENDPOINT_STATES), name="webhook_endpoint_state"),
            models.CheckConstraint(
                condition=Q(state="enabled", disabled_reason__isnull=True)
                | Q(state="disabled", disabled_reason__in=DISABLED_REASONS),
                name="webhook_endpoint_reason",
            ),
            models.CheckConstraint(
                condition=Q(previous_secret__isnull=True) | Q(previous_valid_until__isnull=False),
                name="webhook_endpoint_previous_secret",
            ),
        ]

    def __str__(self) -> str:
        return self.url


class Delivery(TenantOwned):
    """An event or a notice on its way to an endpoint; without a `sequence` or a `notice_id` it is a test. Its id is
    the `webhook-id` of every attempt.

    `attempt` counts claims since the delivery was last asked for, `lease_token` counts all claims and fences what is written
    about each; `due_at` is when it may be claimed, or of a leased one when its lease ends. `status_code` and `error` are of the
    last attempt; `failures` has the last twenty that failed: attempt, at, status, error.
    """

    id = models.UUIDField(primary_key=True)
    endpoint_id = models.UUIDField()
    sequence = models.BigIntegerField(null=True)
    notice_id = models.UUIDField(null=True)
    event_type = models.TextField()
    state = models.TextField(db_default="pending")
    due_at = models.DateTimeField(db_default=Now())
    attempt = models.SmallIntegerField(db_default=0)
    lease_token = models.IntegerField(db_default=0)
    created_at = models.DateTimeField(db_default=Now())
    attempted_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    status_code = models.SmallIntegerField(null=True)
    error = models.TextField(null=True)
    failures = models.JSONField(null=True)

    class Meta:
        db_table = "webhook_delivery"
        verbose_name_plural = "deliveries"
        constraints = [
            models.CheckConstraint(condition=Q(state__in=DELIVERY_STATES), name="webhook_delivery_state"),
            models.CheckConstraint(
                condition=Q(state__in=FINISHED, finished_at__isnull=False)
                | Q(~Q(state__in=FINISHED), finished_at__isnull=True),
                name="webhook_delivery_finished",
            ),
            models.UniqueConstraint(
                fields=["tenant_id", "endpoint_id", "sequence"], name="webhook_delivery_one_per_event"
            ),
            models.UniqueConstraint(
                fields=["tenant_id", "endpoint_id", "notice_id"],
                condition=Q(notice_id__isnull=False),
                name="webhook_delivery_one_per_notice",
            ),
            models.CheckConstraint(
                condition=Q(sequence__isnull=True) | Q(notice_id__isnull=True), name="webhook_delivery_of_one_thing"
            ),
        ]
        # Each serves one question and holds the rows alone that it is about, so that what has been delivered costs nothing.
        indexes = [
            # What an endpoint is due, the oldest first.
            models.Index(
                fields=["tenant_id", "endpoint_id", "due_at"], name="webhook_delivery_due", condition=Q(state="pending")
            ),
            # How many of an endpoint are in flight, and which leases have ended.
            models.Index(
                fields=["tenant_id", "endpoint_id", "due_at"],
                name="webhook_delivery_leased",
                condition=Q(state="leased"),
            ),
            # GET /webhook-deliveries?state=dead.
            models.Index(
                fields=["tenant_id", "state", "id"],
                name="webhook_delivery_undelivered",
                condition=Q(state__in=UNDELIVERED),
            ),
        ]
