"""The API's clients: the machines that a tenant lets call. What they may post or read is the ledger's business."""

from __future__ import annotations

from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.db import models
from oauth2_provider.models import AbstractApplication


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
