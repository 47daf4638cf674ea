"""The API's clients: the machines that a tenant lets call, and their certificates. What they post is the ledger's business."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from oauth2_provider.models import AbstractApplication

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
