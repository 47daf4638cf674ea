"""Certificates of partners: which client of which tenant each of them stands for, and until when.

TLS and the certificate authority say that a certificate is genuine (the proxy's work). Here stands whose it is: a client
may have several, so that the next one works before the last one ends; one that was retired never works again.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from django.db import IntegrityError
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from hpts.doors import of_der
from hpts.models import ApiClient, ClientCertificate
from hpts.tenancy import tenant_transaction


class Read(NamedTuple):
    """What is kept of a certificate."""

    thumbprint: str
    subject: str
    serial_number: str
    not_before: datetime
    not_after: datetime


def read(certificate: bytes) -> Read:
    """The facts of one certificate, PEM or DER. Raises ValueError for what is none."""
    load = x509.load_pem_x509_certificate if b"-----BEGIN" in certificate else x509.load_der_x509_certificate
    loaded = load(certificate)
    return Read(
        of_der(loaded.public_bytes(serialization.Encoding.DER)),
        loaded.subject.rfc4514_string(),
        format(loaded.serial_number, "x"),
        loaded.not_valid_before_utc,
        loaded.not_valid_after_utc,
    )


def _kept() -> QuerySet[ClientCertificate]:
    """The certificates of the running transaction's tenant."""
    return cast("QuerySet[ClientCertificate]", ClientCertificate.objects.all())


def add(client: ApiClient, certificate: bytes) -> ClientCertificate:
    """Let a client present this certificate from now on. Raises ValueError with a sentence for the operator."""
    found = read(certificate)
    if found.not_after <= timezone.now():
        raise ValueError(f"The certificate has ended at {found.not_after:%Y-%m-%d %H:%M} UTC.")
    try:
        with tenant_transaction(str(client.tenant_id)):
            return _kept().create(tenant_id=client.tenant_id, client_id=client.client_id, **found._asdict())
    except IntegrityError as error:
        raise ValueError(
            "The tenant has this certificate already: a certificate stands for one client, and a retired one never returns."
        ) from error


def listed(tenant_id: str, client_id: str | None = None) -> list[ClientCertificate]:
    """The tenant's certificates, the newest first."""
    with tenant_transaction(tenant_id):
        found = _kept().order_by("-added_at")
        return list(found if client_id is None else found.filter(client_id=client_id))


def retire(tenant_id: str, thumbprint: str, reason: str) -> ClientCertificate:
    """End a certificate now; every process knows within a minute. Raises ValueError for an unknown or retired one."""
    with tenant_transaction(tenant_id):
        changed = _kept().filter(thumbprint=thumbprint, retired_at=None).update(retired_at=Now(), retired_reason=reason)
        if not changed:
            raise ValueError(f"The tenant has no certificate {thumbprint} that is not retired.")
        return _kept().get(thumbprint=thumbprint)


def stands_for(tenant_id: str, client_id: str, thumbprint: str) -> bool:
    """Whether this client may present this certificate at this moment."""
    with tenant_transaction(tenant_id):
        return (
            _kept()
            .filter(
                client_id=client_id, thumbprint=thumbprint, retired_at=None, not_before__lte=Now(), not_after__gt=Now()
            )
            .exists()
        )


def has_any(tenant_id: str, client_id: str) -> bool:
    """Whether the client was ever given a certificate: then it never again calls without one."""
    with tenant_transaction(tenant_id):
        return _kept().filter(client_id=client_id).exists()
