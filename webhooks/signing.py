"""Signatures by the Standard Webhooks specification, and the secrets behind them: how they look, how they are kept.

A secret is `whsec_` and the base64 of 32 random bytes. At rest it is sealed with AES-256-GCM under a key of the environment
and bound to its endpoint, so that a row's secret is of no use in another row. Knows neither endpoints nor requests.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

PREFIX = "whsec_"
SECRET_BYTES = 32
_NONCE_BYTES = 12


def new_secret() -> str:
    """A secret as its receiver keeps it."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def signature(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the base64 of the HMAC-SHA256 of id, timestamp (seconds since 1970) and body, joined by dots."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, signed, "sha256")).decode()


def headers(keys: Iterable[bytes], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """What an attempt is signed with: one signature for each valid secret, so that a rotation breaks no receiver."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(key, message_id, timestamp, body) for key in keys),
    }


# --- At rest ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _ciphers(keys: tuple[str, ...]) -> tuple[AESGCM, ...]:
    if not keys:
        raise ImproperlyConfigured("HPTS_WEBHOOK_KEYS must hold a key: webhook secrets are not stored in the clear.")
    if any(len(key) < 32 for key in keys):
        raise ImproperlyConfigured("Each key of HPTS_WEBHOOK_KEYS has at least 32 characters.")
    return tuple(AESGCM(hashlib.sha256(b"hpts webhook secret v1" + key.encode()).digest()) for key in keys)


def seal(secret: str, tenant_id: str, endpoint_id: str) -> bytes:
    """The secret as it is stored. The first key of the environment seals."""
    nonce = os.urandom(_NONCE_BYTES)
    cipher = _ciphers(tuple(settings.WEBHOOK_KEYS))[0]
    return nonce + cipher.encrypt(nonce, _raw(secret), f"{tenant_id} {endpoint_id}".encode())


@lru_cache(maxsize=10_000)
def opened(sealed: bytes, tenant_id: str, endpoint_id: str) -> bytes:
    """The key that signs. Every key of the environment opens what it has sealed; raises ValueError when none does."""
    for cipher in _ciphers(tuple(settings.WEBHOOK_KEYS)):
        try:
            return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], f"{tenant_id} {endpoint_id}".encode())
        except InvalidTag:
            continue
    raise ValueError("No key of HPTS_WEBHOOK_KEYS opens the endpoint's secret.")


def _raw(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
