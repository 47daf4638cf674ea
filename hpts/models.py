"""The API's clients, which are the machines that a tenant lets call, and the audit log.

What clients may post or read is the ledger's business.
"""

from __future__ import annotations

from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from oauth2_provider.models import AbstractApplication

from hpts.audit import DONE, OUTCOMES
from hpts.tenancy import TenantOwned


class ApiClient(AbstractApplication):  # type: ignore[misc]
    """An OAuth client of one tenant. `tenant_id` is no foreign key, because this package knows no app's tables."""

    tenant_id = models.UUIDField()
    allowed_scopes = models.TextField(help_text="Scopes that the client may ask for, space separated.")
    certificate_thumbprints = ArrayField(
        models.CharField(max_length=43),
        default=list,
        blank=True,
        help_text="SHA-256 thumbprints (base64url) of the certificates that the client may present.",
    )
    disabled_at = models.DateTimeField(null=True, blank=True)

    class Meta(AbstractApplication.Meta):  # type: ignore[misc]
        verbose_name = "API client"
        indexes = [models.Index(fields=["tenant_id"], name="hpts_apiclient_by_tenant")]

    def is_usable(self, request: Any) -> bool:
        """Asked by the token endpoint: a disabled client gets no token."""
        return self.disabled_at is None


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
