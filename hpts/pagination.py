"""Pages: an opaque signed token that says where the next one begins.

A token is bound to the tenant, the list and its filters, not to the page's size; another list's token is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
from django.conf import settings

from hpts.problems import InvalidPageToken

DEFAULT_PAGE_SIZE = 50
_SIGNATURE_BYTES = 16


@lru_cache(maxsize=1)
def _key() -> bytes:
    return hashlib.sha256(b"hpts page token v1" + settings.SECRET_KEY.encode()).digest()


def _signature(scope: Sequence[str | None], position: bytes) -> bytes:
    message = msgspec.json.encode([list(scope), position.decode()])
    return hmac.digest(_key(), message, "sha256")[:_SIGNATURE_BYTES]


def page_token(scope: Sequence[str | None], position: Sequence[str | int]) -> str:
    """The token for the page after `position`. `scope`: the tenant, the list's name and its filters."""
    packed = msgspec.json.encode(list(position))
    return base64.urlsafe_b64encode(_signature(scope, packed) + packed).rstrip(b"=").decode()


def position_of(token: str, scope: Sequence[str | None]) -> list[str | int]:
    """The position that a token of this very list holds. Raises InvalidPageToken."""
    try:
        if not 1 <= len(token) <= 512:
            raise ValueError
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        signature, packed = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, _signature(scope, packed)):
            raise ValueError
        # The last character's unused bits must be zero: one position has one token.
        if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != token:
            raise ValueError
        position: list[str | int] = msgspec.json.decode(packed, type=list[str | int])
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise InvalidPageToken("This list, with these filters, has not given out this page token.") from None
    return position


@dataclass(frozen=True)
class Paging:
    """One page of a list, as it was asked for. A query reads `limit` items behind `after`, which is None for the first page;
    that is one more than the page holds, so that it is known whether another one follows."""

    scope: Sequence[str | None]
    size: int
    after: Any

    @classmethod
    def asked(cls, token: str | None, size: int | None, scope: Sequence[str | None], *kinds: type[str | int]) -> Paging:
        """`kinds`: the types of what the list is ordered by; `after` is a tuple if there are several. Raises InvalidPageToken."""
        after: Any = None
        if token is not None:
            place = position_of(token, scope)
            if [type(value) for value in place] != list(kinds):
                raise InvalidPageToken("This list has not given out this page token.")
            after = tuple(place) if len(place) > 1 else place[0]
        return cls(scope, size or DEFAULT_PAGE_SIZE, after)

    @property
    def limit(self) -> int:
        return self.size + 1

    def page(self, found: Sequence[Mapping[str, Any]], *names: str, items: str = "items") -> dict[str, Any]:
        """The answer: what the page holds and, if more follows, the token made of its last item's members `names`."""
        page: dict[str, Any] = {items: found[: self.size]}
        if len(found) > self.size:
            page["next_page_token"] = page_token(self.scope, [found[self.size - 1][name] for name in names])
        return page

    def text(self, found: Sequence[tuple[str, str | int]]) -> str:
        """As `page()`, of items that are JSON already, each with its place in the order."""
        tail = ""
        if len(found) > self.size:
            tail = f',"next_page_token":"{page_token(self.scope, [found[self.size - 1][1]])}"'
        return f'{{"items":[{",".join(body for body, _ in found[: self.size])}]{tail}}}'
