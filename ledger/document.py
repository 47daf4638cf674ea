"""The canonical form of a journal entry: the bytes that are stored, hashed, answered and proven.

RFC 8785 JSON of the entry as the API shows it, with `tenant_id` and the version `v`. Those two names sort behind all the
others, so the API's form is the document without a tail of fixed length: rendered once, cut where it is shown.
Members are ASCII names, strings without control characters and small integers, for which sorted compact JSON is RFC 8785.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

VERSION = 1
_TAIL = len(',"tenant_id":"11111111-1111-1111-1111-111111111111","v":1}')


def line_object(
    sequence: int,
    account_code: str,
    direction: str,
    amount_minor: int,
    currency: str,
    layer: str,
    loan_id: str | None,
    borrower_id: str | None,
    external_ref: str | None,
) -> dict[str, Any]:
    """A line as the API shows it; optional members are absent, never null."""
    line: dict[str, Any] = {
        "account_code": account_code,
        "amount_minor": str(amount_minor),
        "currency": currency,
        "direction": direction,
        "layer": layer,
        "sequence": sequence,
    }
    if loan_id is not None:
        line["loan_id"] = loan_id
    if borrower_id is not None:
        line["borrower_id"] = borrower_id
    if external_ref is not None:
        line["external_ref"] = external_ref
    return line


def render(entry: dict[str, Any], lines: Iterable[dict[str, Any]], tenant_id: str) -> str:
    """The canonical document. `entry` holds the scalar members; those that are None are left out."""
    members = {name: value for name, value in entry.items() if value is not None}
    members["lines"] = list(lines)
    members["tenant_id"] = tenant_id
    members["v"] = VERSION
    return msgspec.json.encode(members, order="sorted").decode()


def public(document: str) -> str:
    """The entry as the API shows it."""
    return document[:-_TAIL] + "}"
