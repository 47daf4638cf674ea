"""BAI2, the cash management format of US banks: records 01, 02, 03, 16, 49, 98, 99, continued by 88.

Each group (02) is a day; the days of one account chain into one statement. Amounts come in minor units. Control totals and
record counts are held against what was read, so that a lost record is noticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import BinaryIO

from hpts import fields as wire
from reconciliation.statements import (
    Draft,
    Statement,
    description_of,
    reference_of,
    refused,
    short_date,
    text_lines,
)

RECORD = re.compile(r"(01|02|03|16|49|88|98|99)(?:,(.*))?")
NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
OPENING, CLOSING = "010", "015"
DEFAULT_CURRENCY = "USD"


@dataclass(slots=True)
class _Record:
    at: int
    code: str
    parts: list[str]

    @property
    def values(self) -> list[str]:
        """The fields; those of continuations follow. A slash ends a record, text may do without."""
        return ",".join(part.removesuffix("/") for part in self.parts).split(",")


@dataclass(slots=True)
class _Count:
    """What a trailer must say: the total of the level below it, and how many there were."""

    total: int = 0
    members: int = 0
    records: int = 0

    def check(self, record: _Record, *expected: int) -> None:
        found = [_number(record.at, text) for text in record.values if text != ""]
        if found != list(expected):
            raise refused(
                record.at,
                "control_differs",
                f"Record {record.code} says {found}; what was read makes {list(expected)}.",
            )


@dataclass(slots=True)
class _Account:
    at: int
    currency: str
    opening: int | None = None
    closing: int | None = None
    count: _Count = field(default_factory=_Count)


class _Reader:
    """The nesting file, group, account; each level ends with a trailer."""

    def __init__(self) -> None:
        self.draft = Draft()
        self.file: _Count | None = None
        self.group: _Count | None = None
        self.account: _Account | None = None
        self.day = date.min
        self.currency = DEFAULT_CURRENCY
        self.complete = False

    def read(self, record: _Record) -> None:
        if self.complete or (self.file is None) != (record.code == "01"):
            raise refused(record.at, "out_of_order", f"Record {record.code} cannot come here.")
        for level in (self.file, self.group, self.account.count if self.account else None):
            if level is not None:
                level.records += len(record.parts)
        step = {
            "01": self._file,
            "02": self._group,
            "03": self._account,
            "16": self._detail,
            "49": self._end_of_account,
            "98": self._end_of_group,
            "99": self._end_of_file,
        }
        step[record.code](record)

    def _file(self, record: _Record) -> None:
        if record.values[-1] != "2":
            raise refused(record.at, "invalid_format", "The file is not of version 2.")
        self.file = _Count(records=len(record.parts))

    def _group(self, record: _Record) -> None:
        values = record.values
        if self.group is not None or len(values) < 5 or values[2] != "1":
            raise refused(
                record.at,
                "invalid_format",
                "A group needs a header with the status 1 and the day, after the last one's end.",
            )
        self.group = _Count(records=len(record.parts))
        self.day = short_date(record.at, values[3])
        self.currency = (values[5] if len(values) > 5 else "") or DEFAULT_CURRENCY

    def _account(self, record: _Record) -> None:
        if self.group is None or self.account is not None:
            raise refused(record.at, "out_of_order", "An account stands inside of a group, after the last one's end.")
        values = record.values
        if len(values) < 2 or not values[0]:
            raise refused(record.at, "invalid_format", "The account's number is missing.")
        account = self.account = _Account(record.at, values[1] or self.currency)
        account.count.records = len(record.parts)
        place = 2
        while place < len(values):
            kind = values[place]
            text = values[place + 1] if place + 1 < len(values) else ""
            amount = _number(record.at, text) if text else 0
            account.count.total += amount
            if kind == OPENING and text:
                account.opening = amount
            elif kind == CLOSING and text:
                account.closing = amount
            place, _ = _funds(record, values, place + 3, self.day)
        if account.opening is None or account.closing is None:
            raise refused(
                record.at,
                "invalid_format",
                f"The account has no opening ({OPENING}) and closing ({CLOSING}) ledger balance.",
            )
        self.draft.open(record.at, self.day, account.currency, account.opening, values[0])

    def _detail(self, record: _Record) -> None:
        if self.account is None:
            raise refused(record.at, "out_of_order", "A transaction stands outside of an account.")
        values = record.values
        kind = values[0]
        if re.fullmatch(r"[1-6][0-9]{2}", kind) is None or len(values) < 2:
            raise refused(record.at, "invalid_format", f"{kind[:10]!r} is not the type of a credit or a debit.")
        amount = _number(record.at, values[1])
        if amount < 0:
            raise refused(record.at, "invalid_format", "A transaction's amount has no sign; its type says the side.")
        place, value_date = _funds(record, values, 2, self.day)
        bank, own, *text = [*values[place:], "", ""]
        self.account.count.total += amount
        self.draft.add(
            record.at,
            value_date,
            amount if kind < "400" else -amount,
            reference_of(record.at, own) or reference_of(record.at, bank),
            description_of(record.at, ",".join(text).rstrip(",")),
        )

    def _end_of_account(self, record: _Record) -> None:
        account = self.account
        if account is None or self.group is None or account.closing is None:
            raise refused(record.at, "out_of_order", "The end of an account that has not begun.")
        account.count.check(record, account.count.total, account.count.records)
        self.draft.close(record.at, self.day, account.currency, account.closing)
        self.group.total += account.count.total
        self.group.members += 1
        self.account = None

    def _end_of_group(self, record: _Record) -> None:
        group = self.group
        if group is None or self.account is not None or self.file is None:
            raise refused(record.at, "out_of_order", "The end of a group that has not begun, or whose account is open.")
        group.check(record, group.total, group.members, group.records)
        self.file.total += group.total
        self.file.members += 1
        self.group = None

    def _end_of_file(self, record: _Record) -> None:
        if self.file is None or self.group is not None:
            raise refused(record.at, "out_of_order", "The file ends inside of a group.")
        self.file.check(record, self.file.total, self.file.members, self.file.records)
        self.complete = True


def parse(stream: BinaryIO) -> Statement:
    reader = _Reader()
    at = 0
    for record in _records(stream):
        at = record.at
        reader.read(record)
    if not reader.complete:
        raise refused(at, "out_of_order", "The file ends before its trailer, record 99.")
    return reader.draft.finish(at)


def _records(stream: BinaryIO) -> Iterator[_Record]:
    """Records with their continuations."""
    record: _Record | None = None
    for at, line in text_lines(stream):
        text = line.rstrip()
        if not text:
            continue
        found = RECORD.fullmatch(text)
        if found is None:
            raise refused(at, "invalid_format", "Not a record of BAI2.")
        if found[1] != "88":
            if record is not None:
                yield record
            record = _Record(at, found[1], [found[2] or ""])
        elif record is None or len(record.parts) == 1_000:
            raise refused(at, "out_of_order", "A continuation without a record, or too many of them.")
        else:
            record.parts.append(found[2] or "")
    if record is not None:
        yield record


def _funds(record: _Record, values: list[str], place: int, day: date) -> tuple[int, date]:
    """Where the fields behind the funds type begin, and the value date when it names one."""
    kind = values[place] if place < len(values) else ""
    if kind == "V":
        return place + 3, short_date(record.at, values[place + 1] if place + 1 < len(values) else "")
    if kind == "S":
        return place + 4, day
    if kind == "D":
        count = _number(record.at, values[place + 1] if place + 1 < len(values) else "")
        return place + 2 + 2 * max(count, 0), day
    if kind not in ("", "0", "1", "2", "Z"):
        raise refused(record.at, "invalid_format", f"{kind[:10]!r} is not a type of funds.")
    return place + 1, day


def _number(at: int, text: str) -> int:
    if NUMBER.fullmatch(text) is None or abs(int(text)) > wire.MAX_MINOR:
        raise refused(at, "invalid_format", f"{text[:40]!r} is not a number.")
    return int(text)
