"""MT940, SWIFT's customer statement: fields `:61:` between `:60F:` and `:62F:`, with or without the message's envelope.

Several messages in one file (pages, days) are one statement when they chain. Field 61's own date is the value date; its
reference for the account owner is the reference, else the bank's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from reconciliation.statements import (
    Draft,
    Statement,
    description_of,
    minor_units,
    reference_of,
    refused,
    short_date,
    text_lines,
)

TAG = re.compile(r":([0-9]{2}[A-Z]?):(.*)")
BALANCE = re.compile(r"([CD])([0-9]{6})([A-Z]{3})([0-9]{1,15},[0-9]{0,5})")
# Value date, entry date, mark (RC takes a credit back, RD a debit), funds code, amount, type, reference, bank's reference.
LINE = re.compile(
    r"([0-9]{6})(?:[0-9]{4})?(C|D|RC|RD)[A-Z]?([0-9]{1,15},[0-9]{0,5})[NSF][A-Z0-9]{3}(.{0,35}?)(?://(.{0,35}))?"
)
KNOWN = {"20", "21", "25", "25P", "28", "28C", "60F", "60M", "61", "86", "62F", "62M", "64", "65"}


@dataclass(frozen=True, slots=True)
class _Field:
    at: int
    tag: str
    lines: list[str]


def parse(stream: BinaryIO) -> Statement:
    draft = Draft()
    at = 0
    account, currency = "", ""
    movement: tuple[int, re.Match[str]] | None = None
    notes: list[str] = []

    def take() -> None:
        """Field 61 is complete when another field than its 86 begins."""
        nonlocal movement
        if movement is not None:
            _add(draft, *movement, currency, notes)
        movement = None
        notes.clear()

    for field in _fields(stream):
        at = field.at
        text = field.lines[0]
        if field.tag == "86":
            notes += field.lines
            continue
        take()
        if field.tag in ("25", "25P"):
            account = text.strip()
        elif field.tag in ("60F", "60M", "62F", "62M"):
            balance = BALANCE.fullmatch(text.strip())
            if balance is None or len(field.lines) > 1:
                raise refused(at, "invalid_format", f"Field {field.tag} is not a balance.")
            currency = balance[3]
            amount = minor_units(at, balance[4], currency, ",")
            signed = amount if balance[1] == "C" else -amount
            if field.tag.startswith("60"):
                draft.open(at, short_date(at, balance[2]), currency, signed, account)
            else:
                draft.close(at, short_date(at, balance[2]), currency, signed)
        elif field.tag == "61":
            found = LINE.fullmatch(text.rstrip())
            if found is None:
                raise refused(at, "invalid_format", "Field 61 is not a statement line.")
            movement = (at, found)
            notes += field.lines[1:]
    take()
    return draft.finish(at)


def _add(draft: Draft, at: int, found: re.Match[str], currency: str, notes: list[str]) -> None:
    value_date, mark, amount, own, banks = found.groups()
    minor = minor_units(at, amount, currency, ",")
    gained = mark in ("C", "RD")
    reference = reference_of(at, own) or reference_of(at, banks or "")
    draft.add(
        at, short_date(at, value_date), minor if gained else -minor, reference, description_of(at, " ".join(notes))
    )


def _fields(stream: BinaryIO) -> Iterator[_Field]:
    field: _Field | None = None
    for at, text in text_lines(stream):
        if text.startswith("{") and not text.endswith("{4:"):
            raise refused(at, "invalid_format", "The message's envelope does not end with its text block, {4:.")
        if text in ("-", "-}") or text.startswith("{"):
            if field is not None:
                yield field
            field = None
            continue
        tag = TAG.fullmatch(text)
        if tag is not None:
            if field is not None:
                yield field
            if tag[1] not in KNOWN:
                raise refused(at, "invalid_format", f"Field {tag[1]} does not belong into a statement.")
            field = _Field(at, tag[1], [tag[2]])
        elif text.strip():
            if field is None or (field.tag not in ("86", "61") and field.lines):
                raise refused(at, "invalid_format", "Text stands outside of a field that may have several lines.")
            if len(field.lines) == 50:
                raise refused(at, "too_long", "A field has at most 50 lines.")
            field.lines.append(text)
    if field is not None:
        yield field
