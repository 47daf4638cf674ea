"""What a bank statement is, whatever its format, and what every parser must prove of it. No database here.

A parser (reconciliation/formats/) reads a binary stream line by line and tells a `Draft` what it finds. The draft refuses what
does not hold together: pages that do not chain, a second currency or account, balances that do not add up. A statement is
taken whole or refused whole, with the line of the file and the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import BinaryIO

from iso4217 import Currency

from hpts import fields
from hpts.problems import FieldProblem, ValidationFailed

MAX_LINES = 200_000
MAX_LINE_BYTES = 8_192
MAX_DESCRIPTION = fields.Description.longest
# A value date farther from the statement's own dates than this is a broken date and not a late correction.
MAX_VALUE_DATE_DISTANCE = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class StatementLine:
    """One booked movement. `number` counts the statement's lines from 1; `amount_minor` is what the account gained, so a
    debit is below zero."""

    number: int
    value_date: date
    amount_minor: int
    reference: str | None
    description: str | None


@dataclass(frozen=True, slots=True)
class Statement:
    """The shape that all formats give: opening balance plus lines is the closing balance."""

    from_date: date
    to_date: date
    currency: str
    opening_balance_minor: int
    closing_balance_minor: int
    lines: tuple[StatementLine, ...]


def refused(at: int, code: str, reason: str) -> ValidationFailed:
    """The refusal of a whole file: the line of the file (0: the file as such) and the reason."""
    place = f"line {at}: " if at else ""
    problem = FieldProblem(f"file.{at}" if at else "file", code, reason)
    return ValidationFailed(f"The statement is refused: {place}{reason}", [problem])


class Draft:
    """A statement under construction. Formats that split a statement into pages, days or messages open and close each;
    together they must read as one."""

    def __init__(self) -> None:
        self._lines: list[StatementLine] = []
        self._account: str | None = None
        self._currency: str | None = None
        self._from_date: date | None = None
        self._to_date: date | None = None
        self._opening = 0
        self._balance = 0
        self._is_open = False

    def open(self, at: int, on: date, currency: str, balance: int, account: str | None = None) -> None:
        """A page begins with this balance. Raises ValidationFailed."""
        if self._is_open:
            raise refused(at, "out_of_order", "A second opening balance comes before the closing balance.")
        if currency not in fields.CURRENCIES:
            raise refused(at, "unknown_currency", f"{currency} is not an ISO 4217 currency.")
        if self._from_date is None:
            self._from_date, self._opening, self._currency, self._account = on, balance, currency, account
        elif account != self._account:
            raise refused(at, "mixed_accounts", "The file holds statements of more than one account.")
        elif balance != self._balance or (self._to_date is not None and on < self._to_date):
            raise refused(
                at, "balance_differs", "A page does not open with the balance that the page before it closed with."
            )
        self.of_one_currency(at, currency)
        self._balance = balance
        self._is_open = True

    def add(self, at: int, value_date: date, amount_minor: int, reference: str | None, description: str | None) -> None:
        """A booked line. One of zero moves nothing and is left out."""
        if not self._is_open:
            raise refused(at, "out_of_order", "A line stands outside of the opening and the closing balance.")
        if len(self._lines) == MAX_LINES:
            raise refused(at, "too_long", f"A statement has at most {MAX_LINES} lines.")
        self._balance += amount_minor
        if abs(self._balance) > fields.MAX_MINOR:
            raise refused(at, "out_of_range", "The balance leaves the range of a 64-bit integer.")
        if amount_minor:
            number = len(self._lines) + 1
            self._lines.append(StatementLine(number, value_date, amount_minor, reference, description))

    def close(self, at: int, on: date, currency: str, balance: int) -> None:
        """The page ends with this balance, which must be the opening one plus the lines."""
        if not self._is_open or self._from_date is None:
            raise refused(at, "out_of_order", "A closing balance comes before the opening balance.")
        self.of_one_currency(at, currency)
        if on < (self._to_date or self._from_date):
            raise refused(at, "out_of_order", "The statement closes before it opens.")
        if balance != self._balance:
            raise refused(
                at,
                "balance_differs",
                f"The closing balance is {balance}; opening balance and lines make {self._balance}.",
            )
        self._to_date = on
        self._is_open = False

    def finish(self, at: int) -> Statement:
        """The whole statement. Raises ValidationFailed when the file ends too early or a value date cannot be."""
        if self._is_open or self._from_date is None or self._to_date is None or self._currency is None:
            raise refused(at, "out_of_order", "The file ends before the closing balance.")
        earliest = self._from_date - min(MAX_VALUE_DATE_DISTANCE, self._from_date - date.min)
        latest = self._to_date + min(MAX_VALUE_DATE_DISTANCE, date.max - self._to_date)
        for line in self._lines:
            if not earliest <= line.value_date <= latest:
                raise refused(
                    at,
                    "out_of_range",
                    f"Entry {line.number} has a value date far away from the statement: {line.value_date}.",
                )
        return Statement(
            self._from_date, self._to_date, self._currency, self._opening, self._balance, tuple(self._lines)
        )

    def of_one_currency(self, at: int, currency: str) -> None:
        """What names a currency names the statement's."""
        if currency != self._currency:
            raise refused(at, "mixed_currencies", f"The statement is in {self._currency}, and here in {currency}.")


# --- What formats share ----------------------------------------------------------------------------------------------


def text_lines(stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """Number and text of each line of a UTF-8 file, without its end; never more than one line in memory."""
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise refused(number, "too_long", f"A line has at most {MAX_LINE_BYTES} bytes.")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise refused(number, "invalid_characters", "The file is not in UTF-8.") from None
        yield number, (text.removeprefix("\ufeff") if number == 1 else text).rstrip("\r\n")


def minor_units(at: int, text: str, currency: str, mark: str = ".") -> int:
    """A decimal amount without a sign, such as `1234.50`, in minor units of its currency."""
    whole, _, part = text.partition(mark)
    exponent = Currency(currency).exponent or 0 if currency in fields.CURRENCIES else 0
    fraction = part.rstrip("0")
    sound = (
        whole.isascii() and whole.isdigit() and len(whole) <= 18 and (not part or (part.isascii() and part.isdigit()))
    )
    if not sound or len(fraction) > exponent or len(part) > 5:
        raise refused(at, "invalid_format", f"{text[:40]!r} is not an amount in {currency}.")
    amount = int(whole + fraction.ljust(exponent, "0"))
    if amount > fields.MAX_MINOR:
        raise refused(at, "out_of_range", f"An amount is at most {fields.MAX_MINOR} minor units.")
    return amount


def short_date(at: int, text: str) -> date:
    """`260228` as 28 February 2026."""
    if len(text) == 6 and text.isascii() and text.isdigit():
        try:
            return date(2000 + int(text[:2]), int(text[2:4]), int(text[4:]))
        except ValueError:
            pass
    raise refused(at, "invalid_format", f"{text[:20]!r} is not a date YYMMDD.")


def iso_date(at: int, text: str) -> date:
    """`2026-02-28` as a date."""
    try:
        day: date = fields.IsoDate.parse(text)
    except fields.FieldError as error:
        raise refused(at, error.code, f"{text[:40]!r}: {error.message}") from None
    return day


# Words that banks write where there is no reference.
NO_REFERENCE = frozenset({"", "NONREF", "NOTPROVIDED"})


def reference_of(at: int, text: str) -> str | None:
    """A reference as it came but for the blanks around it; None when there is none."""
    stripped = text.strip()
    if stripped.upper() in NO_REFERENCE:
        return None
    try:
        reference: str = fields.Reference.parse(stripped)
    except fields.FieldError as error:
        raise refused(at, error.code, f"The reference is refused: {error.message}") from None
    return reference


def description_of(at: int, text: str) -> str | None:
    """What the bank says of a line, in one line and cut to size: it informs, nothing is decided by it."""
    joined = " ".join(text.split())[:MAX_DESCRIPTION]
    if not joined:
        return None
    try:
        description: str = fields.Description.parse(joined)
    except fields.FieldError as error:
        raise refused(at, error.code, f"The description is refused: {error.message}") from None
    return description
