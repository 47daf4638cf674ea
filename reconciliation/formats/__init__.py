"""The formats of bank statements: name -> parser, a pure function from a binary stream to a Statement. Nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from reconciliation.formats import bai2, camt053, columns, mt940
from reconciliation.statements import Statement

FORMATS: dict[str, Callable[[BinaryIO], Statement]] = {
    "camt053": camt053.parse,
    "mt940": mt940.parse,
    "bai2": bai2.parse,
    "csv": columns.parse,
}
