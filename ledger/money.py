"""Amounts in minor units: the bounds of a BIGINT, the one rounding, and how people read them."""

from __future__ import annotations

from iso4217 import Currency

MAX_MINOR = 9_223_372_036_854_775_807


def round_half_even(numerator: int, denominator: int) -> int:
    """`numerator / denominator` to the nearest integer, a tie to the even one. `denominator` is above zero."""
    quotient, remainder = divmod(numerator, denominator)
    doubled = 2 * remainder
    if doubled > denominator or (doubled == denominator and quotient % 2 == 1):
        quotient += 1
    return quotient


def exponent(currency: str) -> int:
    """How many decimals a currency has."""
    return Currency(currency).exponent or 0


def in_major_units(minor: int, currency: str) -> str:
    """`123456` as `1,234.56`, or as `123,456` and `123.456` where the currency has no or three decimals."""
    decimals = exponent(currency)
    whole, part = divmod(abs(minor), 10**decimals)
    return f"{'-' if minor < 0 else ''}{whole:,}" + (f".{part:0{decimals}d}" if decimals else "")


def minor_units(text: str, decimals: int) -> int | None:
    """`1234.5` as 123450 where there are two decimals; None when it is more exact than that."""
    whole, _, part = text.partition(".")
    kept, beyond = part[:decimals], part[decimals:]
    return None if beyond.strip("0") else int(whole + kept.ljust(decimals, "0"))
