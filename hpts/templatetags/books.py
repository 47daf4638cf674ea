"""How the admin's templates write ids, instants, durations, states and words. Money is the ledger's (ledger/templatetags)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

register = template.Library()

# How a state is coloured; the word itself always stands beside the colour.
GOOD = {
    *("complete", "succeeded", "enabled", "reconciled", "ok", "resolved", "balanced", "proven", "matched", "active"),
    *("approved", "done"),
}
BAD = {
    *(
        "failed",
        "dead",
        "exhausted",
        "disabled",
        "unreconciled",
        "mismatch",
        "failing",
        "charged_off",
        "unbalanced",
        "stuck",
    ),
    *("overdue", "rejected", "refused"),
}
WARN = {
    "complete_with_exceptions",
    "queued",
    "running",
    "leased",
    "cancelled",
    "pending",
    "PENDING",
    "behind",
    "break",
    "open",
}


@register.filter
def short(value: object) -> str:
    """Eight characters of an id: enough for people, who can copy the whole one. An id that begins with its time (version 7)
    is told from its neighbours by its end."""
    text = str(value) if value is not None else ""
    return f"…{text[-8:]}" if text[14:15] == "7" and len(text) == 36 else text[:8]


@register.filter
def words(value: object) -> str:
    """A name of the code as people read it: `payment_received` as `payment received`."""
    return str(value).replace("_", " ") if value is not None else ""


@register.filter
def moment(value: datetime | None) -> SafeString | str:
    """An instant in the tenant's zone, to the second; the element also says it in UTC."""
    if value is None:
        return ""
    local = timezone.localtime(value)
    return format_html(
        '<time datetime="{}">{} {}</time>', value.isoformat(), f"{local:%Y-%m-%d %H:%M:%S}", f"{local:%Z}"
    )


@register.filter
def duration(seconds: float | None) -> str:
    """A duration as people say it."""
    if seconds is None:
        return ""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3_600} h {whole % 3_600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3_600} h"


@register.filter
def badge(state: object) -> SafeString | str:
    """A state as a badge."""
    if state in (None, ""):
        return ""
    word = str(state)
    kind = "good" if word in GOOD else "bad" if word in BAD else "warn" if word in WARN else "plain"
    return format_html('<span class="badge {}">{}</span>', kind, words(word))


@register.filter
def percent(basis_points: int | None) -> str:
    """An annual rate in basis points, as a percentage."""
    return "" if basis_points is None else f"{basis_points // 100}.{basis_points % 100:02d} %"


@register.filter
def member(mapping: Any, name: str) -> Any:
    """The member of a mapping that another value names."""
    return mapping.get(name, "") if mapping else ""
