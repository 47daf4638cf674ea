"""Who may come in: the machines that a tenant lets call, with their certificates, and the people who look after the books; and
what they did.

What they may post or read is the ledger's business.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from oauth2_provider.models import AbstractApplication

from hpts.audit import DONE, OUTCOMES
from hpts.tenancy import TenantOwned


class ApiClient(AbstractApplication):  # type: ignore[misc]
    """An OAuth client of one tenant. `tenant_id` is no foreign key, because this package knows no app's tables."""

    tenant_id = models.UUIDField()
    allowed_scopes = models.TextField(help_text="Scopes that the client may ask for, space separated.")
    # Of clients that act for people (authorization_code): nobody else gets a token through this one.
    people = models.ManyToManyField(
        settings.AUTH_USER_MODEL,
        blank=True,
        related_name="read_clients",
        help_text="Who may read the tenant's books through this client.",
    )
    disabled_at = models.DateTimeField(null=True, blank=True)

    class Meta(AbstractApplication.Meta):  # type: ignore[misc]
        verbose_name = "API client"
        indexes = [models.Index(fields=["tenant_id"], name="hpts_apiclient_by_tenant")]
        # What certificates refer to: a client and its tenant as one.
        constraints = [models.UniqueConstraint(fields=["tenant_id", "client_id"], name="hpts_apiclient_of_tenant")]

    def is_usable(self, request: Any) -> bool:
        """Asked by the token endpoint: a disabled client gets no token."""
        return self.disabled_at is None


class ClientCertificate(TenantOwned):
    """A certificate that a client may present at the partner host. Kept for ever; what is retired stays retired.

    `thumbprint` is the `x5t#S256` of RFC 8705. Composite foreign key, row security, grants: migrations/0005_certificates.sql.
    """

    pk = models.CompositePrimaryKey("tenant_id", "thumbprint")
    thumbprint = models.CharField(max_length=43)
    client_id = models.CharField(max_length=255)
    subject = models.TextField()
    serial_number = models.TextField()
    not_before = models.DateTimeField()
    not_after = models.DateTimeField()
    added_at = models.DateTimeField(db_default=Now())
    retired_at = models.DateTimeField(null=True)
    retired_reason = models.TextField(null=True)

    class Meta:
        db_table = "client_certificate"
        constraints = [
            models.CheckConstraint(
                condition=Q(thumbprint__regex=r"^[A-Za-z0-9_-]{43}$"), name="client_certificate_thumbprint"
            ),
            models.CheckConstraint(condition=Q(not_before__lt=F("not_after")), name="client_certificate_period"),
            models.CheckConstraint(
                condition=Q(retired_at__isnull=True, retired_reason__isnull=True)
                | Q(retired_at__isnull=False, retired_reason__isnull=False),
                name="client_certificate_retirement",
            ),
        ]
        indexes = [models.Index(fields=["tenant_id", "client_id"], name="client_certificate_by_client")]


class Staff(models.Model):
    """Whose books a person who signs in to the admin may see: those of one tenant, or, platform staff, those of each.

    A person without a row sees nothing; only a superuser needs none. Like a client's, `tenant_id` is no foreign key.
    """

    user = models.OneToOneField(settings.AUTH_USER_MODEL, models.CASCADE, primary_key=True, related_name="staff")
    tenant_id = models.UUIDField(null=True, blank=True)
    is_platform = models.BooleanField(default=False)

    class Meta:
        verbose_name_plural = "staff"
        default_permissions = ()
        permissions = [
            ("view_books", "Can look at the books"),
            ("view_audit", "Can read and export the audit log"),
            ("propose_entries", "Can propose reversals and manual adjustments"),
            ("decide_proposals", "Can approve and reject what others have proposed"),
            ("redeliver_webhooks", "Can have a webhook delivered again"),
            ("recover_webhooks", "Can have what an endpoint has missed sent again"),
            ("disable_webhooks", "Can disable a webhook endpoint"),
            ("start_accrual_runs", "Can start an accrual run"),
            ("start_reconciliation_runs", "Can start a reconciliation run"),
            ("import_statements", "Can upload a bank statement"),
            ("resolve_breaks", "Can resolve a break"),
            ("create_tenants", "Can create a tenant"),
            ("create_programs", "Can create a program"),
            ("create_loans", "Can create a loan"),
            ("create_clients", "Can create an API client"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(is_platform=True, tenant_id__isnull=True) | Q(is_platform=False, tenant_id__isnull=False),
                name="hpts_staff_one_tenant_or_all",
            )
        ]

    def __str__(self) -> str:
        return str(self.user)


class AuditRecord(TenantOwned):
    """One thing that somebody did, saw, or was refused. Written by hpts/audit.py, never changed; `id` is the order of writing.

    There is no foreign key to the tenant: what belongs to none has the tenant `audit.NO_TENANT`.
    """

    id = models.BigAutoField(primary_key=True)
    occurred_at = models.DateTimeField(db_default=Now())
    actor = models.TextField()
    action = models.TextField()
    object_type = models.TextField(null=True)
    object_id = models.TextField(null=True)
    outcome = models.TextField()
    reason = models.TextField(null=True)
    detail = models.TextField(null=True)
    address = models.GenericIPAddressField(null=True)
    user_agent = models.TextField(null=True)
    correlation_id = models.UUIDField(null=True)

    class Meta:
        db_table = "audit_record"
        constraints = [
            models.CheckConstraint(condition=Q(outcome__in=OUTCOMES), name="audit_record_outcome"),
            models.CheckConstraint(
                condition=Q(outcome=DONE) | Q(detail__isnull=False), name="audit_record_refusal_says_why"
            ),
            models.CheckConstraint(
                condition=Q(object_type__isnull=True, object_id__isnull=True)
                | Q(object_type__isnull=False, object_id__isnull=False),
                name="audit_record_object",
            ),
        ]
        indexes = [
            # The page's filters: a person, an action, an object, a span of time; each in order of writing.
            models.Index(fields=["tenant_id", "actor", "id"], name="audit_record_by_actor"),
            models.Index(fields=["tenant_id", "action", "id"], name="audit_record_by_action"),
            models.Index(
                fields=["tenant_id", "object_id", "id"],
                name="audit_record_by_object",
                condition=Q(object_id__isnull=False),
            ),
            models.Index(fields=["tenant_id", "occurred_at", "id"], name="audit_record_by_time"),
        ]
