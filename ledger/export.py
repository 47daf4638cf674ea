"""The journal as a file: JSON lines, CSV, Parquet. In the order of the bounded cursor, resumable, in bounded memory.

An export holds what was final when it began. It is written beside its name, batch by batch; after each batch a second file says
how far it is, so that an export that was killed goes on there and ends with the bytes that it would have had. Only a whole
file gets the name. Nothing is known here of terminals.
"""

from __future__ import annotations

import csv
import fcntl
import importlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import IO, Any

import msgspec

from hpts.embedded import write_private
from hpts.tenancy import tenant_transaction
from ledger import queries
from ledger.money import in_major_units

FORMATS = ("jsonl", "csv", "parquet")
# A batch is what is in memory at once: so many entries, and fewer of them when they have more lines than these.
BATCH_ENTRIES = 2_000
BATCH_LINES = 20_000
ROW_GROUP = 50_000

# A row of CSV and Parquet is a line of an entry. `amount` repeats `amount_minor` in the currency's major unit.
COLUMNS = (
    "journal_entry_id", "posted_at", "effective_at", "event_type", "sequence", "account_code", "direction", "amount_minor",
    "currency", "amount", "layer", "loan_id", "borrower_id", "external_ref", "reverses_entry_id", "correlation_id", "actor",
    "description",
)  # fmt: skip
_OF_ENTRY = {"journal_entry_id", "posted_at", "effective_at", "event_type", "reverses_entry_id", "correlation_id"}
_OF_ENTRY |= {"actor", "description"}
Row = dict[str, Any]


class ExportRefused(Exception):
    """The export cannot begin, or not go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is asked for. `since`: what was recorded from this transaction id on, the `next_since` of an earlier export."""

    tenant_id: str
    format: str
    since: str = "0"
    from_date: str | None = None
    to_date: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an export is: all below the transaction id `below`, through the entry of `after`, so many bytes and entries."""

    selection: Selection
    below: str
    after: tuple[str, str]
    size: int
    entries: int
    total: int


def parquet() -> Any:
    """The modules of pyarrow that are needed. ExportRefused where it is not installed: it is no requirement of ours."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ExportRefused("Parquet needs pyarrow: pip install pyarrow. CSV and JSON lines need nothing.") from None


def export(selection: Selection, output: Path, *, restart: bool = False) -> Iterator[Progress]:
    """Write the file, or go on with it; gives how far it is after each batch. Raises ExportRefused."""
    if selection.format == "parquet":
        parquet()
    draft, notes = (output.with_name(output.name + ending) for ending in (".partial", ".partial.json"))
    if output.exists():
        raise ExportRefused(f"{output} exists already. Choose another name, or remove it.")
    if restart:
        notes.unlink(missing_ok=True)
    with _locked(draft) as file:
        progress = _noted(notes, selection, draft) or _begun(selection)
        # What was written after the last note is written again.
        file.truncate(progress.size)
        file.seek(progress.size)
        if progress.size == 0:
            _write(file, _head(selection.format))
            progress = replace(progress, size=file.tell())
            _note(notes, progress)
        for step in _batches(progress, file):
            progress = step
            _note(notes, progress)
            yield progress
        if selection.format == "parquet":
            _convert(file, draft.with_name(draft.name + ".parquet"))
            os.replace(draft.with_name(draft.name + ".parquet"), output)
            draft.unlink()
        else:
            os.replace(draft, output)
        notes.unlink()
        _settle(output.parent)
        yield progress


# --- Going on --------------------------------------------------------------------------------------------------------


def _locked(draft: Path) -> IO[bytes]:
    """The draft, open and this process's own."""
    try:
        # Never emptied by opening it: it may be another process's.
        file = os.fdopen(os.open(draft, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    except OSError as error:
        raise ExportRefused(f"Cannot write {draft}: {error.strerror}.") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ExportRefused(f"Another export is writing {draft}.") from None
    return file


def _noted(notes: Path, selection: Selection, draft: Path) -> Progress | None:
    """How far an export that was broken off came; None when there is none."""
    if not notes.exists():
        return None
    try:
        progress = msgspec.json.decode(notes.read_bytes(), type=Progress)
    except msgspec.MsgspecError:
        raise ExportRefused(f"{notes} is not of an export. Remove it, or say --restart.") from None
    if progress.selection != selection:
        raise ExportRefused(f"{draft} is of an export with other options. Repeat those, or say --restart.")
    if draft.stat().st_size < progress.size:
        raise ExportRefused(f"{draft} is shorter than {notes} says. Say --restart.")
    return progress


def _begun(selection: Selection) -> Progress:
    with tenant_transaction(selection.tenant_id, using="readonly") as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        # Below this transaction id nothing will ever be recorded any more.
        cursor.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")
        (below,) = cursor.fetchone()
        total = queries.journal_size(cursor, since=selection.since, below=below, **_dates(selection))
    return Progress(selection, below, (selection.since, queries.BEFORE_ALL), 0, 0, total)


def _batches(progress: Progress, file: IO[bytes]) -> Iterator[Progress]:
    """Write what is left; gives how far it is when a batch is on the disk."""
    selection = progress.selection
    written = _writer(selection.format)
    while True:
        with tenant_transaction(selection.tenant_id, using="readonly") as cursor:
            cursor.execute("SET LOCAL statement_timeout = '60s'")
            batch = queries.journal_after(
                cursor,
                below=progress.below,
                after=progress.after,
                entries=BATCH_ENTRIES,
                lines=BATCH_LINES,
                **_dates(selection),
            )
        if not batch:
            return
        _write(file, written(document for _, _, document in batch))
        (xid, entry_id, _) = batch[-1]
        entries = progress.entries + len(batch)
        progress = replace(progress, after=(xid, entry_id), size=file.tell(), entries=entries)
        yield progress


def _dates(selection: Selection) -> dict[str, date | None]:
    asked = {"from_date": selection.from_date, "to_date": selection.to_date}
    return {name: None if text is None else date.fromisoformat(text) for name, text in asked.items()}


def _write(file: IO[bytes], text: str) -> None:
    file.write(text.encode())
    file.flush()
    os.fsync(file.fileno())


def _note(notes: Path, progress: Progress) -> None:
    write_private(notes, json.dumps(asdict(progress)))


def _settle(folder: Path) -> None:
    """The folder's own entries reach the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- Formats ---------------------------------------------------------------------------------------------------------


def rows(document: str) -> Iterator[Row]:
    """The lines of an entry, each with what it shares with the others."""
    entry = msgspec.json.decode(document)
    shared = {name: entry.get(name) for name in _OF_ENTRY}
    for line in entry["lines"]:
        minor = int(line["amount_minor"])
        amount = in_major_units(minor, line["currency"]).replace(",", "")
        own = {name: line.get(name) for name in COLUMNS if name not in shared}
        yield shared | own | {"amount_minor": minor, "amount": amount}


def cell(value: object) -> str:
    """A cell that no spreadsheet takes for a formula. Numbers stay numbers; of texts those that begin like a formula get the
    apostrophe that marks them as text."""
    if value is None:
        return ""
    text = str(value)
    if isinstance(value, str) and (text[:1] in ("\t", "\r", "\n") or text.lstrip()[:1] in FORMULA):
        return f"'{text}"
    return text


# Also as wide characters, which some spreadsheets read alike. The empty text is none.
FORMULA = tuple("=+-@＝＋－＠")  # noqa: RUF001 (they are meant)


def _head(name: str) -> str:
    return ",".join(COLUMNS) + "\r\n" if name == "csv" else ""


def _writer(name: str) -> Callable[[Iterable[str]], str]:
    """Documents to the text of a batch. A Parquet file is made of the JSON lines at the end, since it cannot be gone on with."""
    return _as_csv if name == "csv" else _as_json_lines


def _as_json_lines(documents: Iterable[str]) -> str:
    return "".join(f"{document}\n" for document in documents)


def _as_csv(documents: Iterable[str]) -> str:
    text = io.StringIO(newline="")
    # RFC 4180: lines end in CRLF.
    table = csv.writer(text, lineterminator="\r\n")
    for document in documents:
        for row in rows(document):
            # The amount is digits and a point, made here.
            table.writerow([str(row[name]) if name == "amount" else cell(row[name]) for name in COLUMNS])
    return text.getvalue()


def _convert(lines: IO[bytes], target: Path) -> None:
    """The Parquet file of the JSON lines, a group of rows at a time."""
    arrow, arrow_parquet = parquet()
    types = {"sequence": arrow.int32(), "amount_minor": arrow.int64(), "effective_at": arrow.date32()}
    types["posted_at"] = arrow.timestamp("us", tz="UTC")
    schema = arrow.schema([(name, types.get(name, arrow.string())) for name in COLUMNS])
    lines.seek(0)
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        with arrow_parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            for group in _groups(lines):
                writer.write_table(arrow.Table.from_pylist(group, schema=schema))
        file.flush()
        os.fsync(file.fileno())


def _groups(lines: IO[bytes]) -> Iterator[list[Row]]:
    group: list[Row] = []
    for line in lines:
        for row in rows(line.decode()):
            group.append(_typed(row))
            if len(group) == ROW_GROUP:
                yield group
                group = []
    if group:
        yield group


def _typed(row: Row) -> Row:
    effective_at, posted_at = date.fromisoformat(row["effective_at"]), datetime.fromisoformat(row["posted_at"])
    return row | {"effective_at": effective_at, "posted_at": posted_at}
