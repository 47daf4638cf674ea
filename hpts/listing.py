"""Lists of the admin: columns, filters and pages by key. A list fetches one row more than it shows, counts nothing, and goes
on behind the last row's key. What is listed is the caller's query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any
from urllib.parse import urlencode

from django.http import Http404
from django.urls import reverse

from hpts.site import Look

ROWS_SHOWN = 50
# Between the members of a key; none of them holds it.
_BETWEEN = "~"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of rows that are mappings. `kind`: text, id, code, words, state, money, number, day, moment, flag, wrap.
    With a `page` the cell links to it, with the row's member `by` as its argument `argument`."""

    label: str
    name: str
    kind: str = "text"
    page: str = ""
    argument: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class Filter:
    """A question above a list: a choice, a date or a text. What is not asked is None."""

    name: str
    label: str
    kind: str = "text"
    choices: Sequence[tuple[str, str]] = ()

    def asked(self, look: Look) -> str | None:
        """The answer, or Http404 when it can be none."""
        text = look.asked(self.name)
        if not text:
            return None
        if self.kind == "choice" and text not in dict(self.choices):
            raise Http404(f"{self.label}: there is no {text}.")
        if self.kind == "date":
            try:
                date.fromisoformat(text)
            except ValueError:
                raise Http404(f"{self.label}: {text} is no date.") from None
        return text


def choices(words: Sequence[str]) -> list[tuple[str, str]]:
    """Names of the code as choices."""
    return [(word, word.replace("_", " ")) for word in words]


def listing(
    look: Look,
    fetch: Callable[..., Sequence[Any]],
    *columns: Column,
    place: Sequence[str],
    empty: str,
    filters: Sequence[Filter] = (),
    size: int = ROWS_SHOWN,
    **fixed: Any,
) -> dict[str, Any]:
    """What books/list.html and books/rows.html show. `fetch` gets `after` (the key of the last row seen, or None), `limit`,
    the answers of the filters and what is `fixed`; `place` names the members of the key; `empty` says what to do when there
    is nothing at all."""
    answers = {each.name: each.asked(look) for each in filters}
    after = tuple(look.asked("after").split(_BETWEEN)) if look.asked("after") else None
    if after is not None and len(after) != len(place):
        raise Http404("There is no such page of this list.")
    rows = fetch(look.cursor, **fixed, **answers, after=after, limit=size + 1)
    asked = {name: answer for name, answer in answers.items() if answer is not None}
    onward = None
    if len(rows) > size:
        last = _BETWEEN.join(str(rows[size - 1][name]) for name in place)
        onward = "?" + urlencode(asked | {"after": last})
    return {
        "columns": columns,
        "rows": [[_cell(column, row) for column in columns] for row in rows[:size]],
        "filters": [{"filter": each, "answer": answers[each.name] or ""} for each in filters],
        "filtered": bool(asked),
        "first": "?" + urlencode(asked) if after is not None else None,
        "onward": onward,
        "empty": empty,
    }


def _cell(column: Column, row: Any) -> dict[str, Any]:
    value = row.get(column.name)
    url = None
    if column.page and value is not None:
        about = row.get(column.by or column.name)
        url = reverse(f"admin:{column.page}", kwargs={column.argument or column.name: about}) if about else None
    return {"kind": column.kind, "value": value, "url": url, "currency": row.get("currency")}
