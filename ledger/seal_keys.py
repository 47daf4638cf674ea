"""The Ed25519 keys that sign the heads of sealed history: this process's own, and the public ones of keys before it.

They come from the environment alone. A key that stood in the database would be within reach of whoever can change the rows
that it vouches for. What is signed is a block's hash, 32 bytes; these keys sign nothing else.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

_PEM = re.compile(r"-----BEGIN [^-]+-----.+?-----END [^-]+-----", re.DOTALL)


class PublicKey(NamedTuple):
    """A key that verifies. `key_id` is the SHA-256 of its 32 bytes, so that nobody has to choose a name."""

    key_id: str
    pem: str
    key: Ed25519PublicKey


class SealKeys(NamedTuple):
    """`signing` is None where blocks are not signed; `public` has the key in use first."""

    signing: Ed25519PrivateKey | None
    public: tuple[PublicKey, ...]

    def sign(self, block_hash: bytes) -> tuple[str | None, bytes | None]:
        """The key's id and the signature; None, None without a key."""
        if self.signing is None:
            return None, None
        return self.public[0].key_id, self.signing.sign(block_hash)

    def fault(self, block_hash: bytes, key_id: str, signature: bytes) -> str | None:
        """What is wrong with a signature, or None."""
        named = [each for each in self.public if each.key_id == key_id]
        if not named:
            return "is signed with a key that is not listed"
        try:
            named[0].key.verify(signature, block_hash)
        except InvalidSignature:
            return "has a signature that is not its key's"
        return None


def seal_keys() -> SealKeys:
    """The keys of this process. ImproperlyConfigured when a variable holds something else."""
    return _parsed(settings.SEAL_KEY, settings.PREVIOUS_SEAL_KEYS)


@lru_cache(maxsize=4)
def _parsed(private_pem: str, previous_pems: str) -> SealKeys:
    try:
        signing = serialization.load_pem_private_key(private_pem.encode(), password=None) if private_pem else None
        previous = [serialization.load_pem_public_key(block.encode()) for block in _PEM.findall(previous_pems)]
    except (ValueError, TypeError) as error:
        raise ImproperlyConfigured(
            "HPTS_SEAL_KEY must be a private key in PEM, HPTS_PREVIOUS_SEAL_KEYS public ones"
        ) from error
    if signing is not None and not isinstance(signing, Ed25519PrivateKey):
        raise ImproperlyConfigured("HPTS_SEAL_KEY must be an Ed25519 key: openssl genpkey -algorithm ed25519")
    keys = [] if signing is None else [signing.public_key()]
    for key in previous:
        if not isinstance(key, Ed25519PublicKey):
            raise ImproperlyConfigured("HPTS_PREVIOUS_SEAL_KEYS must be Ed25519 public keys")
        keys.append(key)
    return SealKeys(signing, tuple(_public(key) for key in keys))


def _public(key: Ed25519PublicKey) -> PublicKey:
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(hashlib.sha256(raw).hexdigest(), pem.decode(), key)
