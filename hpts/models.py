"""Who may come in: the machines that a tenant lets call, and the people who look after the books.

What they may post or read is the ledger's business.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
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
        permissions = [("view_books", "Can look at the books")]
        constraints = [
            models.CheckConstraint(
                condition=Q(is_platform=True, tenant_id__isnull=True) | Q(is_platform=False, tenant_id__isnull=False),
                name="hpts_staff_one_tenant_or_all",
            )
        ]

    def __str__(self) -> str:
        return str(self.user)
