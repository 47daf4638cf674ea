"""`manage.py export_journal`: what is in the file, in which order, and that a broken-off export ends with the same bytes."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from django.core.management import CommandError, call_command

from hpts import embedded
from ledger import export
from ledger.events import PENDING, Line, ManualAdjustment
from tests.ledger.conftest import Books, open_books
from tests.operations.conftest import eventually

Json = dict[str, Any]


@pytest.fixture
def journal() -> Books:
    """Twelve entries of several kinds that no running transaction could come before."""
    books = open_books(loans=2)
    first, second = books.loans
    books.post(books.disbursement(first, 100_000, "2025-01-10"))
    books.post(books.disbursement(second, 5_000, "2025-01-11", PENDING))
    books.post(books.accrual("2025-02-10", (first, 100_000, 500)))
    for number in range(8):
        books.post(books.payment(first, 100 + number, f"2025-03-0{number + 1}", ref=f"R-{number}"))
    books.post(books.adjustment("2025-04-01", Line("1000", "DR", 1_234, "JPY"), Line("3000", "CR", 1_234, "JPY")))
    _final(books)
    return books


def _final(books: Books) -> None:
    settled = "SELECT bool_and(created_xid < pg_snapshot_xmin(pg_current_snapshot())) FROM outbox_message"
    eventually(lambda: books.rows(settled) == [(True,)])


def told(books: Books, output: Path, *options: str) -> str:
    """What the command prints."""
    out = StringIO()
    call_command("export_journal", "--tenant", books.tenant_id, "--output", str(output), *options, stdout=out)
    return out.getvalue()


def exported(books: Books, output: Path, *options: str) -> Json:
    answer: Json = json.loads(told(books, output, *options, "--json"))
    assert answer["bytes"] == output.stat().st_size
    assert [path.name for path in output.parent.iterdir() if path.name.startswith(output.name)] == [output.name]
    return answer


def table(output: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(output.read_bytes().decode(), newline="")))


IN_ORDER = """SELECT e.document, encode(e.content_hash, 'hex') FROM outbox_message o JOIN journal_entry e ON e.id = o.entry_id
              ORDER BY o.created_xid, o.entry_id"""

# --- What is in the file ---------------------------------------------------------------------------------------------


def test_json_lines_are_the_canonical_documents_in_order(journal: Books, tmp_path: Path) -> None:
    answer = exported(journal, tmp_path / "journal.jsonl")
    recorded = journal.rows(IN_ORDER)
    assert (answer["entries"], answer["format"]) == (len(recorded), "jsonl") == (12, "jsonl")
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert lines == [document for document, _ in recorded]
    assert [hashlib.sha256(line.encode()).hexdigest() for line in lines] == [digest for _, digest in recorded]


def test_csv_has_a_row_for_each_line(journal: Books, tmp_path: Path) -> None:
    exported(journal, tmp_path / "journal.csv")
    found = table(tmp_path / "journal.csv")
    expected = []
    for document, _ in journal.rows(IN_ORDER):
        entry = json.loads(document)
        expected += [(entry["journal_entry_id"], line) for line in entry["lines"]]
    assert len(found) == len(expected) > 24
    for row, (entry_id, line) in zip(found, expected, strict=True):
        assert tuple(row) == export.COLUMNS
        assert row["journal_entry_id"] == entry_id
        for name, value in line.items():
            assert row[name] == str(value), name
    settled = [row for row in found if row["layer"] == "SETTLED" and row["currency"] == "USD"]
    debit, credit = (sum(Decimal(r["amount"]) for r in settled if r["direction"] == side) for side in ("DR", "CR"))
    assert debit == credit > 0
    assert {row["amount"] for row in found if row["currency"] == "JPY"} == {"1234"}
    assert (tmp_path / "journal.csv").read_bytes().count(b"\r\n") == len(found) + 1


EVIL = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "=cmd|' /C calc'!A0", "＝1+1"]  # noqa: RUF001


@pytest.mark.parametrize("text", EVIL)
def test_a_text_that_begins_like_a_formula_is_marked_as_text(text: str) -> None:
    assert export.cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["R-1", "a=b", "1000", "", "2025-01-01", "it's"])
def test_other_texts_stay_as_they_are(value: str) -> None:
    assert export.cell(value) == value


def test_numbers_stay_numbers() -> None:
    assert [export.cell(value) for value in (0, 5, -5, 9_223_372_036_854_775_807, None)] == [
        "0", "5", "-5", "9223372036854775807", "",
    ]  # fmt: skip


def test_a_reference_that_is_a_formula_reaches_the_file_as_text(journal: Books, tmp_path: Path) -> None:
    journal.post(journal.payment(journal.loan, 5, "2025-05-01", ref='=HYPERLINK("http://x","y")'))
    lines = (Line("1000", "DR", 7, "USD"), Line("3000", "CR", 7, "USD"))
    on = journal.adjustment("2025-05-02", *lines).effective_at
    journal.post(ManualAdjustment(effective_at=on, description='@a, "b"', lines=lines))
    _final(journal)
    exported(journal, tmp_path / "journal.csv", "--from", "2025-05-01")
    found = table(tmp_path / "journal.csv")
    assert {row["external_ref"] for row in found} == {'\'=HYPERLINK("http://x","y")', ""}
    assert {row["description"] for row in found} == {'\'@a, "b"', ""}
    assert all(row["amount_minor"].isdigit() for row in found)


def test_dates_choose_by_the_effective_date_both_included(journal: Books, tmp_path: Path) -> None:
    exported(journal, tmp_path / "a.csv", "--from", "2025-03-02", "--to", "2025-03-04")
    assert {row["effective_at"] for row in table(tmp_path / "a.csv")} == {"2025-03-02", "2025-03-03", "2025-03-04"}
    assert exported(journal, tmp_path / "b.jsonl", "--to", "2024-12-31")["entries"] == 0
    assert (tmp_path / "b.jsonl").read_bytes() == b""


def test_the_next_export_has_what_was_recorded_since(journal: Books, tmp_path: Path) -> None:
    first = exported(journal, tmp_path / "1.jsonl")
    assert exported(journal, tmp_path / "2.jsonl", "--since", first["next_since"])["entries"] == 0
    late = journal.post(journal.payment(journal.loan, 5, "2025-01-15"))
    _final(journal)
    second = exported(journal, tmp_path / "3.jsonl", "--since", first["next_since"])
    assert json.loads((tmp_path / "3.jsonl").read_text())["journal_entry_id"] == late.journal_entry_id
    exported(journal, tmp_path / "all.jsonl")
    whole = (tmp_path / "1.jsonl").read_bytes() + (tmp_path / "3.jsonl").read_bytes()
    assert (tmp_path / "all.jsonl").read_bytes() == whole
    assert int(second["next_since"]) > int(first["next_since"])


def test_another_tenants_entries_are_not_in_it(journal: Books, other_books: Books, tmp_path: Path) -> None:
    _final(other_books)
    assert exported(other_books, tmp_path / "other.jsonl")["entries"] == 1


def test_batches_do_not_show(journal: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(journal, tmp_path / "one.csv")
    for name, value in (("BATCH_ENTRIES", 1), ("BATCH_LINES", 3), ("BATCH_LINES", 1)):
        monkeypatch.setattr(export, name, value)
        exported(journal, tmp_path / f"{name}{value}.csv")
        assert (tmp_path / f"{name}{value}.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


# --- Going on --------------------------------------------------------------------------------------------------------

KILLED = """
import sys, django
from pathlib import Path
django.setup()
from ledger import export
export.BATCH_ENTRIES = 5
note = export._note
def wait(notes, progress):
    note(notes, progress)
    if progress.entries == 10:
        Path(sys.argv[3] + ".partial").open("ab").write(b"torn")
        print("here", flush=True)
        sys.stdin.read()
export._note = wait
list(export.export(export.Selection(sys.argv[1], sys.argv[2]), Path(sys.argv[3])))
"""


@pytest.fixture
def killed(journal: Books) -> Callable[[str, Path], None]:
    """Start an export and kill it after ten entries and a torn write; then something new is posted."""

    def kill(name: str, output: Path) -> None:
        variables = os.environ | {"DJANGO_SETTINGS_MODULE": "hpts.settings"}
        command = [sys.executable, "-c", KILLED, journal.tenant_id, name, str(output)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=variables, cwd=embedded.ROOT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"here\n"
            with pytest.raises(CommandError, match="Another export"):
                told(journal, output, "--format", name)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not output.exists()

    return kill


@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_an_export_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    journal: Books, killed: Callable[[str, Path], None], tmp_path: Path, name: str
) -> None:
    uninterrupted, output = tmp_path / f"whole.{name}", tmp_path / f"journal.{name}"
    exported(journal, uninterrupted)
    killed(name, output)
    journal.post(journal.payment(journal.loan, 5, "2025-06-01"))
    _final(journal)
    assert exported(journal, output)["entries"] == 12, "what was final when it began, and no more"
    assert output.read_bytes() == uninterrupted.read_bytes()


def test_restart_begins_anew(journal: Books, killed: Callable[[str, Path], None], tmp_path: Path) -> None:
    output = tmp_path / "journal.csv"
    killed("csv", output)
    with pytest.raises(CommandError, match="other options"):
        told(journal, output, "--to", "2025-03-01")
    assert exported(journal, output, "--to", "2025-03-01", "--restart")["entries"] == 4


def test_a_draft_that_does_not_fit_its_notes_is_refused(
    journal: Books, killed: Callable[[str, Path], None], tmp_path: Path
) -> None:
    output = tmp_path / "journal.csv"
    killed("csv", output)
    (tmp_path / "journal.csv.partial").write_bytes(b"")
    with pytest.raises(CommandError, match="shorter"):
        told(journal, output)
    (tmp_path / "journal.csv.partial.json").write_text("{")
    with pytest.raises(CommandError, match="not of an export"):
        told(journal, output)
    assert exported(journal, output, "--restart")["entries"] == 12


def test_a_file_that_is_there_is_not_written_over(journal: Books, tmp_path: Path) -> None:
    output = tmp_path / "journal.csv"
    output.write_text("mine")
    with pytest.raises(CommandError, match="exists already"):
        told(journal, output)
    assert output.read_text() == "mine"


def test_two_exports_do_not_write_one_file(journal: Books, tmp_path: Path) -> None:
    with (tmp_path / "journal.csv.partial").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(CommandError, match="Another export"):
            told(journal, tmp_path / "journal.csv")


# --- Options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--output", "journal.txt"], "--format"),
        (["--output", "a.csv", "--from", "2025-13-01"], "calendar"),
        (["--output", "a.csv", "--from", "2025-02-01", "--to", "2025-01-01"], "--from is after"),
        (["--output", "a.csv", "--since", "x"], "--since"),
        (["--output", "no/such/folder/a.csv"], "Cannot write"),
    ],
)
def test_options_that_make_no_sense_are_refused(journal: Books, options: list[str], reason: str) -> None:
    with pytest.raises(CommandError, match=reason):
        call_command("export_journal", "--tenant", journal.tenant_id, *options)


def test_a_person_is_told_how_to_go_on(journal: Books, tmp_path: Path) -> None:
    assert "Exported 12 entries to" in told(journal, tmp_path / "journal.jsonl")


def test_parquet_has_the_rows_of_the_csv_with_types(
    journal: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ROW_GROUP", 5)
    for name in ("journal.csv", "journal.parquet"):
        exported(journal, tmp_path / name)
    file = pyarrow.parquet.ParquetFile(tmp_path / "journal.parquet")
    found = file.read()
    assert found.num_rows == len(table(tmp_path / "journal.csv")) == 25 and file.num_row_groups == 5
    types = {field.name: str(field.type) for field in found.schema if str(field.type) != "string"}
    assert types == {
        "posted_at": "timestamp[us, tz=UTC]",
        "effective_at": "date32[day]",
        "sequence": "int32",
        "amount_minor": "int64",
    }
    texts = [
        {name: "" if value is None else str(value) for name, value in row.items()}
        | {"posted_at": row["posted_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        for row in found.to_pylist()
    ]
    assert texts == table(tmp_path / "journal.csv")
    assert (tmp_path / "journal.parquet").stat().st_mode & 0o777 == 0o600


def test_parquet_asks_for_pyarrow_before_it_writes(
    journal: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CommandError, match="pip install pyarrow"):
        told(journal, tmp_path / "journal.parquet")
    assert list(tmp_path.iterdir()) == []
