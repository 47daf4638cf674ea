"""Amounts in minor units: the bounds of a BIGINT and the one rounding."""

from __future__ import annotations

MAX_MINOR = 9_223_372_036_854_775_807


def round_half_even(numerator: int, denominator: int) -> int:
    """`numerator / denominator` to the nearest integer, a tie to the even one. `denominator` is above zero."""
    quotient, remainder = divmod(numerator, denominator)
    doubled = 2 * remainder
    if doubled > denominator or (doubled == denominator and quotient % 2 == 1):
        quotient += 1
    return quotient
