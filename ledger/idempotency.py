"""`once()`: every POST runs its work at most once per tenant and key.

The key's lock, its look-up, the work and the key's row are one transaction. So a request that was refused or died leaves
nothing, the key is free again, and there is nothing to clean up. A second request that meets the first one still running
is told so at once; it never waits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from hpts.problems import IdempotencyInProgress, IdempotencyKeyInvalid, IdempotencyKeyRequired, IdempotencyMismatch
from ledger.posting import KeyState, Origin, Posting, Touches, opened, with_retries

KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\-]{7,254}")


@dataclass(frozen=True, slots=True)
class Call:
    """One POST: who calls, with which key, and the fingerprint of what it says."""

    origin: Origin
    key: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The response's body, as it is stored with the key, and whether this is a replay."""

    body: str
    replayed: bool
    posting: Posting | None = None


def read_key(value: str | None) -> str:
    """The header's value, checked. Two headers arrive joined by a comma, which no key holds."""
    if value is None:
        raise IdempotencyKeyRequired("Send a new Idempotency-Key with every POST, and the same one when you repeat it.")
    if KEY.fullmatch(value) is None:
        raise IdempotencyKeyInvalid("A key is 8 to 255 characters: letters, digits, dot, underscore, colon, dash.")
    return value


def fingerprint(operation_id: str, path: Mapping[str, str], body: object) -> bytes:
    """What two requests with one key must have in common: operation, path values and the parsed body, order aside.

    Kept for ever, so nothing goes in here that a release may rename.
    """
    canonical = msgspec.json.encode(["v1", operation_id, list(path.values()), body], order="sorted")
    return hashlib.sha256(canonical).digest()


def answered(call: Call) -> Answer | None:
    """The kept answer of a key that has been used; None when the key is free. Nothing is held afterwards.

    Raises IdempotencyInProgress, IdempotencyMismatch.
    """

    def attempt() -> Answer | None:
        with opened(call.origin, Touches(mode="read"), call.key) as (posting, key):
            return _kept(call, key) if posting is None else None

    return with_retries(attempt)


def _kept(call: Call, key: KeyState) -> Answer:
    if not key.locked:
        raise IdempotencyInProgress("Repeat in a second: the first request with this key is still running.")
    if key.fingerprint != call.fingerprint:
        raise IdempotencyMismatch("This key was used for another request; nothing was written.")
    return Answer(key.response or "", replayed=True)


def once(call: Call, touches: Touches, work: Callable[[Posting], Mapping[str, Any] | msgspec.Raw]) -> Answer:
    """Run `work` in the key's transaction and keep its answer, or repeat the answer of the first time.

    Raises IdempotencyInProgress at once while the first request runs, IdempotencyMismatch for another request with the same
    key, and whatever `work` refuses; then nothing is kept and the key stays free.
    """

    def attempt() -> Answer:
        with opened(call.origin, touches, call.key) as (posting, key):
            if posting is None:
                return _kept(call, key)
            body = msgspec.json.encode(work(posting)).decode()
            posting.record(call.key, call.fingerprint, body)
            return Answer(body, replayed=False, posting=posting)

    return with_retries(attempt)
