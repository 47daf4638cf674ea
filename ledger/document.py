"""The canonical form of a journal entry: the bytes that are stored, hashed, answered and proven.

RFC 8785 JSON of the entry as the API shows it, with `tenant_id` and the version `v`. Those two names sort behind all the
others, so the API's form is the document without a tail of fixed length: rendered once, cut where it is shown.
Members are ASCII names, strings without control characters and small integers, for which sorted compact JSON is RFC 8785.
"""

from __future__ import annotations

import hashlib
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


def content_hash(document: str) -> str:
    """What the entry's header keeps of its document, in hexadecimal digits."""
    return hashlib.sha256(document.encode()).hexdigest()


def public(document: str) -> str:
    """The entry as the API shows it."""
    return document[:-_TAIL] + "}"


# All members before the lines fit in here: the longest description and actor, every character of them escaped.
HEAD = 6_000
_LINES = ',"lines":['


def with_lines(head: str, lines: list[dict[str, Any]], posted_at: str, reverses_entry_id: str | None) -> str:
    """An entry that many loans share, as one loan's history shows it: with that loan's lines alone.

    `head` is the beginning of the document; the two members that follow the lines are given. A document of a batch can
    have megabytes, of which nothing more than its head is looked at.
    """
    # Inside a string the quotation marks would be escaped, so the first match is the member itself.
    before = head[: head.index(_LINES)]
    tail = f',"reverses_entry_id":"{reverses_entry_id}"' if reverses_entry_id else ""
    shown = msgspec.json.encode(lines, order="sorted").decode()
    return f'{before},"lines":{shown},"posted_at":"{posted_at}"{tail}}}'
