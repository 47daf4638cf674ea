"""How templates write amounts: minor units in the currency's own decimals."""

from __future__ import annotations

from django import template

from ledger.money import in_major_units

register = template.Library()


@register.filter
def money(minor: int | str | None, currency: str) -> str:
    """`123456` as `1,234.56`; empty when there is no amount."""
    return "" if minor is None or minor == "" else in_major_units(int(minor), currency)
