"""CSV: `date,amount,currency,reference,description`, signed decimal amounts, the balances in the first and the last row.

The row that says `opening` in its reference comes first, the one that says `closing` last; their amounts are balances.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from datetime import date
from typing import BinaryIO

from reconciliation.statements import (
    Draft,
    Statement,
    description_of,
    iso_date,
    minor_units,
    reference_of,
    refused,
    text_lines,
)

COLUMNS = ("date", "amount", "currency", "reference", "description")
Row = tuple[int, dict[str, str]]


def parse(stream: BinaryIO, names: Mapping[str, str] | None = None) -> Statement:
    """`names` maps our columns to the file's own; then their order is free and columns beside them are passed over."""
    draft = Draft()
    at = 0
    opened: date | None = None
    closed = False
    for at, row in _rows(stream, names):
        day, currency = iso_date(at, row["date"]), row["currency"]
        amount = _signed(at, row["amount"], currency)
        if closed:
            raise refused(at, "out_of_order", "A row follows the closing balance.")
        if opened is None:
            if row["reference"] != "opening":
                raise refused(at, "out_of_order", "The first row has `opening` as its reference.")
            draft.open(at, day, currency, amount)
            opened = day
        elif row["reference"] == "closing":
            draft.close(at, day, currency, amount)
            closed = True
        elif row["reference"] == "opening":
            raise refused(at, "out_of_order", "A second opening balance.")
        else:
            draft.of_one_currency(at, currency)
            draft.add(at, day, amount, reference_of(at, row["reference"]), description_of(at, row["description"]))
    return draft.finish(at)


def _rows(stream: BinaryIO, names: Mapping[str, str] | None) -> Iterator[Row]:
    reader = csv.reader((text for _, text in text_lines(stream)), strict=True)
    at = 0
    header: list[str] | None = None
    try:
        for cells in reader:
            at += 1
            if reader.line_num != at:
                raise refused(at, "invalid_characters", "A cell holds the end of a line.")
            if header is None:
                header = cells
                places = _places(header, names)
                continue
            if len(cells) != len(header):
                raise refused(at, "invalid_format", f"The row has {len(cells)} cells, the header {len(header)}.")
            yield at, {name: cells[place] for name, place in places.items()}
    except csv.Error as error:
        raise refused(reader.line_num, "invalid_format", f"Not a row of CSV: {error}.") from None


def _places(header: list[str], names: Mapping[str, str] | None) -> dict[str, int]:
    """Where each of our columns stands."""
    if names is None and tuple(header) != COLUMNS:
        raise refused(1, "invalid_format", f"The header is {','.join(COLUMNS)}.")
    wanted = {name: (names or {}).get(name, name) for name in COLUMNS}
    for name in wanted.values():
        if header.count(name) != 1:
            raise refused(1, "invalid_format", f"The header has the column {name!r} {header.count(name)} times.")
    return {name: header.index(column) for name, column in wanted.items()}


def _signed(at: int, text: str, currency: str) -> int:
    amount = minor_units(at, text[1:] if text[:1] in ("-", "+") else text, currency)
    return -amount if text.startswith("-") else amount
