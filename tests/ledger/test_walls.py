"""Attacks on the walls of the journal by raw SQL: each malformed entry is refused by the wall that is there for it.

Two doors: the owner's own INSERT of header and lines, which meets the walls alone, and `record_posting`, which is all that
the application has. Each attack asserts the SQLSTATE, the wall's name where it has one, and that no row has changed. The
last section is about the role of the process (hpts/walls.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib import import_module
from typing import Any, NamedTuple

import psycopg
import pytest
from celery.signals import beat_init, worker_init
from celery.utils.dispatch import Signal
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from hpts import embedded, walls
from ledger import document
from ledger.errors import PeriodClosed
from ledger.events import DIRECTIONS, LAYERS, EventKind
from ledger.money import MAX_MINOR
from ledger.posting import Posted, Touches, opened, with_retries
from tests.ledger.conftest import URLS, Books, codes, nothing_changes, race, refused, session

Json = dict[str, Any]

INSERT_ENTRY = """
WITH header AS (
    INSERT INTO journal_entry (tenant_id, id, event_type, loan_id, effective_at, posted_at, correlation_id,
                               reverses_entry_id, settles_entry_id, source_method, external_ref, line_count, document,
                               content_hash, created_xid)
    VALUES (%(tenant_id)s, %(id)s, %(event_type)s, %(loan_id)s, %(effective_at)s,
            coalesce(%(posted_at)s::timestamptz, clock_timestamp()), gen_random_uuid(), %(reverses_entry_id)s,
            %(settles_entry_id)s, %(source_method)s, %(external_ref)s, %(line_count)s, %(document)s, %(content_hash)s,
            coalesce(%(created_xid)s::xid8, pg_current_xact_id()))
)
INSERT INTO journal_line (tenant_id, entry_id, sequence, account_code, direction, amount_minor, currency, layer, loan_id,
                          borrower_id, loan_version, effective_at)
SELECT tenant_id, entry_id, sequence, account_code, direction, amount_minor, currency, layer, loan_id, borrower_id,
       loan_version, effective_at
FROM jsonb_to_recordset(%(lines)s::jsonb) AS l (
    tenant_id uuid, entry_id uuid, sequence smallint, account_code text, direction text, amount_minor bigint,
    currency text, layer text, loan_id uuid, borrower_id uuid, loan_version bigint, effective_at date)
"""


class Draft:
    """A well-formed entry, to be spoilt: 100 from interest income to cash, and 250 lent to the first loan."""

    def __init__(self, books: Books) -> None:
        self.books = books
        ((version,),) = books.rows("SELECT version FROM loan WHERE id = %s", books.loan.loan_id)
        self.version = version + 1
        self.header: Json = {
            "tenant_id": books.tenant_id,
            "id": str(uuid.uuid4()),
            "event_type": "manual_adjustment",
            "effective_at": "2025-03-01",
            "loan_id": books.loan.loan_id,
            **dict.fromkeys(
                ("posted_at", "reverses_entry_id", "settles_entry_id", "source_method", "external_ref", "line_count")
            ),
            **dict.fromkeys(("content_hash", "created_xid")),
        }
        self.lines: list[Json] = []
        # What record_posting is told beside the document.
        self.extra: Json = {}
        about = {"loan_id": books.loan.loan_id, "borrower_id": books.loan.borrower_id, "loan_version": self.version}
        self.add("1000", "DR", 100)
        self.add("4000", "CR", 100)
        self.add("1100", "DR", 250, **about)
        self.add("1050", "CR", 250, **about)

    def add(self, code: str, direction: str, amount: int, **changes: Any) -> None:
        self.lines.append(
            {
                "tenant_id": self.books.tenant_id,
                "entry_id": self.header["id"],
                "sequence": len(self.lines) + 1,
                "account_code": code,
                "direction": direction,
                "amount_minor": amount,
                "currency": "USD",
                "layer": "SETTLED",
                "effective_at": self.header["effective_at"],
            }
            | changes
        )

    def insert(
        self, connection: psycopg.Connection[Any], statement: str = INSERT_ENTRY, more: Json | None = None
    ) -> None:
        """By the owner's own statement."""
        text = json.dumps({"of": self.header["id"]})
        header = self.header | {"document": text, "lines": json.dumps(self.lines)} | (more or {})
        if header["content_hash"] is None:
            header["content_hash"] = hashlib.sha256(text.encode()).digest()
        if header["line_count"] is None:
            header["line_count"] = len(self.lines)
        connection.execute(statement, header)

    def record(self, connection: psycopg.Connection[Any]) -> None:
        """Through the write path's function, as the application does."""
        ((now,),) = connection.execute("SELECT clock_timestamp()").fetchall()
        members = {
            "actor": "client:test",
            "correlation_id": str(uuid.uuid4()),
            "effective_at": self.header["effective_at"],
            "event_type": self.header["event_type"],
            "journal_entry_id": self.header["id"],
            "posted_at": self.header["posted_at"] or now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reverses_entry_id": self.header["reverses_entry_id"],
        }
        shown = [
            document.line_object(
                line["sequence"],
                line["account_code"],
                line["direction"],
                line["amount_minor"],
                line["currency"],
                line["layer"],
                line.get("loan_id"),
                line.get("borrower_id"),
                None,
            )
            for line in self.lines
        ]
        extra = {name: self.header[name] for name in ("settles_entry_id", "source_method", "external_ref")}
        extra["versions"] = [line.get("loan_version") for line in self.lines]
        text = document.render(members, shown, self.header["tenant_id"])
        extra["content_hash"] = document.content_hash(text)
        extra |= self.extra
        connection.execute("SELECT record_posting(%s, NULL, NULL, NULL)", (json.dumps([[text, extra]]),))


Write = Callable[[Draft, psycopg.Connection[Any]], None]
DOORS: dict[str, tuple[str, Write]] = {"owner": ("owner", Draft.insert), "record_posting": ("app", Draft.record)}


# --- The malformed entries -------------------------------------------------------------------------------------------


class Malformed(NamedTuple):
    """A way to spoil an entry, and (SQLSTATE, wall) at each door; None where the door does not open that way."""

    spoil: Callable[[Draft], object]
    owner: tuple[str, str | None] | None
    record_posting: tuple[str, str | None] | None


def _lines(**changes: Any) -> Callable[[Draft], None]:
    def spoil(draft: Draft) -> None:
        for line in draft.lines:
            line.update(changes)

    return spoil


def _line(position: int, **changes: Any) -> Callable[[Draft], None]:
    return lambda draft: draft.lines[position].update(changes)


def _header(**changes: Any) -> Callable[[Draft], None]:
    return lambda draft: draft.header.update(changes)


def _no_lines(draft: Draft) -> None:
    draft.lines = []
    draft.header["line_count"] = 2


def _one_line(draft: Draft) -> None:
    del draft.lines[1:]


def _one_line_that_says_two(draft: Draft) -> None:
    _one_line(draft)
    draft.header["line_count"] = 2


def _fewer_than_said(draft: Draft) -> None:
    draft.header["line_count"] = 6


def _lines_of_no_entry_beside_it(draft: Draft) -> None:
    """The entry by itself is whole and sound; two balanced lines of an unknown one come in the same statement."""
    draft.header["line_count"] = len(draft.lines)
    for sequence, line in enumerate(_late_pair(draft), 1):
        line.update(entry_id=UNKNOWN, sequence=sequence)


def _balanced_across_currencies(draft: Draft) -> None:
    draft.lines[1]["currency"] = "EUR"


def _balanced_across_layers(draft: Draft) -> None:
    draft.lines[1]["layer"] = "PENDING"


def _of_another_borrower(draft: Draft) -> None:
    draft.lines[2]["borrower_id"] = draft.books.loans[1].borrower_id


def _hash_of_nothing(draft: Draft) -> None:
    draft.header["content_hash"] = b"\0" * 32
    draft.extra["content_hash"] = "00" * 32


def _no_hash(draft: Draft) -> None:
    draft.extra["content_hash"] = None


def _two_debits_above_the_range(draft: Draft) -> None:
    about = {
        "loan_id": draft.books.loan.loan_id,
        "borrower_id": draft.books.loan.borrower_id,
        "loan_version": draft.version,
    }
    draft.lines = []
    for code, direction in (("1100", "DR"), ("1100", "DR"), ("1050", "CR"), ("1050", "CR")):
        draft.add(code, direction, MAX_MINOR, **about)


def _balance_above_the_range(draft: Draft) -> None:
    """The entry itself is in range, together with what the loan has it is not."""
    draft.lines[2]["amount_minor"] = draft.lines[3]["amount_minor"] = MAX_MINOR - 250


def _sum_above_the_range(draft: Draft) -> None:
    draft.lines = []
    for _ in range(2):
        draft.add("1000", "DR", MAX_MINOR)
        draft.add("4000", "CR", MAX_MINOR)


def _per_loan_below_zero(draft: Draft) -> None:
    draft.lines[2].update(account_code="1050")
    draft.lines[3].update(account_code="1100", amount_minor=100_001)
    draft.lines[2]["amount_minor"] = 100_001


def _version_that_is_taken(draft: Draft) -> None:
    about = {"loan_id": draft.books.loan.loan_id, "borrower_id": draft.books.loan.borrower_id}
    draft.lines = []
    draft.add("1100", "DR", 250, **about, loan_version=draft.version - 1)
    draft.add("1050", "CR", 250, **about, loan_version=draft.version - 1)


def _version_skipped(draft: Draft) -> None:
    for line in draft.lines[2:]:
        line["loan_version"] = draft.version + 1


def _its_own_reversal(draft: Draft) -> None:
    draft.header |= {"event_type": "reversal", "reverses_entry_id": draft.header["id"]}


def _effective(day: str) -> Callable[[Draft], None]:
    def spoil(draft: Draft) -> None:
        for row in (draft.header, *draft.lines):
            row["effective_at"] = day

    return spoil


def _dates_used_up_by_an_adjustment(draft: Draft) -> None:
    draft.extra["accruals"] = [{"loan_id": draft.books.loan.loan_id, "revision": 0, "interest_minor": 1}]


UNKNOWN = "5e0c1c0e-6f0b-4c57-9d3c-6f4b5f0e8a11"
MALFORMED = {
    "unbalanced": Malformed(
        _line(1, amount_minor=99), ("HP003", "journal_line_balanced"), ("HP003", "journal_line_balanced")
    ),
    "one line": Malformed(_one_line, ("23514", "journal_entry_line_count"), ("23514", "journal_entry_line_count")),
    "one line that says two": Malformed(_one_line_that_says_two, ("HP002", "journal_line_sealed"), None),
    "fewer lines than said": Malformed(_fewer_than_said, ("HP002", "journal_line_sealed"), None),
    "lines of no entry beside it": Malformed(_lines_of_no_entry_beside_it, ("HP002", "journal_line_sealed"), None),
    "header without lines": Malformed(
        _no_lines, ("HP002", "journal_entry_whole"), ("23514", "journal_entry_line_count")
    ),
    "balanced only across currencies": Malformed(
        _balanced_across_currencies, ("HP003", "journal_line_balanced"), ("HP003", "journal_line_balanced")
    ),
    "balanced only across layers": Malformed(
        _balanced_across_layers, ("HP003", "journal_line_balanced"), ("HP003", "journal_line_balanced")
    ),
    "negative amounts": Malformed(
        _lines(amount_minor=-100), ("23514", "journal_line_amount"), ("23514", "journal_line_amount")
    ),
    "zero amounts": Malformed(
        _lines(amount_minor=0), ("23514", "journal_line_amount"), ("23514", "journal_line_amount")
    ),
    "lines of another tenant": Malformed(_lines(tenant_id=UNKNOWN), ("42501", None), None),
    "header of another tenant": Malformed(_header(tenant_id=UNKNOWN), ("42501", None), ("42501", None)),
    "duplicate sequence": Malformed(
        _line(1, sequence=1), ("23505", "journal_line_pkey"), ("23505", "journal_line_pkey")
    ),
    "gap in the sequence": Malformed(
        _line(3, sequence=5), ("HP002", "journal_line_sealed"), ("HP002", "journal_line_sealed")
    ),
    "sequence from zero": Malformed(
        _line(0, sequence=0), ("23514", "journal_line_sequence"), ("23514", "journal_line_sequence")
    ),
    "an amount above 2^63-1": Malformed(_lines(amount_minor=MAX_MINOR + 1), ("22003", None), ("22003", None)),
    "a loan's debits above 2^63-1": Malformed(_two_debits_above_the_range, None, ("HP003", "journal_line_balanced")),
    "a loan's balance above 2^63-1": Malformed(_balance_above_the_range, None, ("22003", None)),
    "a sum above 2^63-1": Malformed(
        _sum_above_the_range, ("HP003", "journal_line_balanced"), ("HP003", "journal_line_balanced")
    ),
    "a receivable below zero": Malformed(_per_loan_below_zero, None, ("23514", "loan_balance_not_below_zero")),
    "unknown account": Malformed(
        _line(0, account_code="1999"), ("HP004", "journal_line_account"), ("HP004", "journal_line_account")
    ),
    "closed account": Malformed(
        _line(0, account_code="5100"), ("HP004", "journal_line_account_open"), ("HP004", "journal_line_account_open")
    ),
    "account kept per loan without a loan": Malformed(
        _line(0, account_code="1200"),
        ("HP004", "journal_line_account_needs_loan"),
        ("HP004", "journal_line_account_needs_loan"),
    ),
    "another borrower": Malformed(
        _of_another_borrower, ("HP005", "journal_line_loan_identity"), ("HP005", "journal_line_loan_identity")
    ),
    "no borrower": Malformed(
        _line(2, borrower_id=None), ("23514", "journal_line_loan"), ("23514", "journal_line_loan")
    ),
    "another currency than the loan's": Malformed(
        _lines(currency="EUR"), ("HP005", "journal_line_loan_identity"), ("HP005", "journal_line_loan_identity")
    ),
    "unknown loan": Malformed(
        _line(2, loan_id=UNKNOWN), ("HP005", "journal_line_loan_identity"), ("HP005", "journal_line_loan_identity")
    ),
    "no currency": Malformed(
        _lines(currency="usd"), ("23514", "journal_line_currency"), ("23514", "journal_line_currency")
    ),
    "no side": Malformed(
        _line(0, direction="XX"), ("23514", "journal_line_direction"), ("23514", "journal_line_direction")
    ),
    "no layer": Malformed(_lines(layer="DREAMT"), ("23514", "journal_line_layer"), ("23514", "journal_line_layer")),
    "no kind": Malformed(
        _header(event_type="adjustment"), ("23514", "journal_entry_kind"), ("23514", "journal_entry_kind")
    ),
    "a hash that does not fit": Malformed(
        _hash_of_nothing, ("HP002", "journal_entry_whole"), ("HP002", "journal_entry_whole")
    ),
    "no hash": Malformed(_no_hash, None, ("HP002", "journal_entry_whole")),
    "posted yesterday": Malformed(
        _header(posted_at="2025-03-02T10:00:00.000000Z"),
        ("HP002", "journal_entry_whole"),
        ("HP002", "journal_entry_whole"),
    ),
    "posted tomorrow": Malformed(
        _header(posted_at="2099-03-02T10:00:00.000000Z"),
        ("HP002", "journal_entry_whole"),
        ("HP002", "journal_entry_whole"),
    ),
    "of another transaction": Malformed(_header(created_xid="3"), ("HP002", "journal_line_sealed"), None),
    "lines of another date": Malformed(_lines(effective_at="2025-03-02"), ("HP002", "journal_line_sealed"), None),
    "a loan's version that is taken": Malformed(
        _version_that_is_taken, ("23505", "journal_line_loan_history"), ("23505", "journal_line_loan_history")
    ),
    "a loan's version that is skipped": Malformed(_version_skipped, None, ("HP007", "loan_version_moved")),
    "a loan without a version": Malformed(
        _line(2, loan_version=None), ("23514", "journal_line_loan"), ("23514", "journal_line_loan")
    ),
    "a version without a loan": Malformed(
        _line(0, loan_version=1), ("23514", "journal_line_loan"), ("23514", "journal_line_loan")
    ),
    "its own reversal": Malformed(
        _its_own_reversal,
        ("23514", "journal_entry_not_its_own_reversal"),
        ("23514", "journal_entry_not_its_own_reversal"),
    ),
    "reversal of nothing": Malformed(
        _header(event_type="reversal", reverses_entry_id=UNKNOWN),
        ("23503", "journal_entry_reverses"),
        ("23503", "journal_entry_reverses"),
    ),
    "reversal that names no entry": Malformed(
        _header(event_type="reversal"),
        ("23514", "journal_entry_reverses_by_kind"),
        ("23514", "journal_entry_reverses_by_kind"),
    ),
    "adjustment that reverses": Malformed(
        _header(reverses_entry_id=UNKNOWN),
        ("23514", "journal_entry_reverses_by_kind"),
        ("23514", "journal_entry_reverses_by_kind"),
    ),
    "settlement of nothing": Malformed(
        _header(event_type="disbursement_settled", settles_entry_id=UNKNOWN),
        ("23503", "journal_entry_settles"),
        ("23503", "journal_entry_settles"),
    ),
    "settlement that names no entry": Malformed(
        _header(event_type="disbursement_settled"),
        ("23514", "journal_entry_settles_by_kind"),
        ("23514", "journal_entry_settles_by_kind"),
    ),
    "adjustment that settles": Malformed(
        _header(settles_entry_id=UNKNOWN),
        ("23514", "journal_entry_settles_by_kind"),
        ("23514", "journal_entry_settles_by_kind"),
    ),
    "effective in the future": Malformed(
        _effective("2099-03-01"), ("23514", "journal_entry_effective_date"), ("23514", "journal_entry_effective_date")
    ),
    "effective since ever": Malformed(
        _effective("-infinity"), ("23514", "journal_entry_effective_date"), ("23514", "journal_entry_effective_date")
    ),
    "dated in a closed period": Malformed(
        _effective("2025-02-28"), ("HP009", "journal_entry_period_open"), ("HP009", "journal_entry_period_open")
    ),
    "dated before a closed period": Malformed(
        _effective("2024-12-31"), ("HP009", "journal_entry_period_open"), ("HP009", "journal_entry_period_open")
    ),
    "accrual that uses up no date": Malformed(
        _header(event_type="accrual"), None, ("HP006", "loan_accrual_with_entry")
    ),
    "adjustment that uses up a date": Malformed(
        _dates_used_up_by_an_adjustment, None, ("HP006", "loan_accrual_with_entry")
    ),
}


@pytest.fixture
def attacked(books: Books) -> Books:
    """Books with a closed account, 5100, and closed through February."""
    books.close("2025-02-28")
    with session("app", books.tenant_id) as connection:
        connection.execute("UPDATE gl_account SET closed_at = now(), closure_reason = 'test' WHERE code = '5100'")
    return books


@pytest.mark.parametrize("door", DOORS)
def test_a_well_formed_entry_passes_every_wall(books: Books, door: str) -> None:
    """Without this, everything below could be refused for another reason than its own."""
    role, write = DOORS[door]
    before = books.entries()
    with session(role, books.tenant_id) as connection:
        write(Draft(books), connection)
    assert books.entries() == before + 1


@pytest.mark.parametrize(
    ("function", "column", "known"),
    [
        ("journal_entry_form", "event_type", {kind.value for kind in EventKind}),
        ("journal_line_fault", "direction", set(DIRECTIONS)),
        ("journal_line_fault", "layer", set(LAYERS)),
    ],
)
def test_a_wall_knows_exactly_the_values_that_the_code_knows(function: str, column: str, known: set[str]) -> None:
    with session("owner") as connection:
        ((source,),) = connection.execute("SELECT pg_get_functiondef(%s::regproc)", (f"public.{function}",)).fetchall()
    (values,) = re.findall(rf"{column} (?:NOT IN|<> ALL) \(([^)]*)\)", source.replace("(ARRAY[", "("))
    assert set(re.findall(r"'(\w+)'", values)) == known


@pytest.mark.parametrize(
    ("name", "door"), [(name, door) for name, shape in MALFORMED.items() for door in DOORS if getattr(shape, door)]
)
def test_a_malformed_entry_is_refused_by_its_wall(attacked: Books, name: str, door: str) -> None:
    shape = MALFORMED[name]
    draft = Draft(attacked)
    shape.spoil(draft)
    role, write = DOORS[door]
    sqlstate, wall = getattr(shape, door)
    with nothing_changes(attacked), refused(sqlstate, wall), session(role, attacked.tenant_id) as connection:
        write(draft, connection)


@pytest.mark.parametrize("name", [name for name, shape in MALFORMED.items() if shape.owner])
def test_a_malformed_entry_is_refused_although_a_superuser_has_turned_ordinary_triggers_off(
    attacked: Books, name: str
) -> None:
    """`session_replication_role = replica` silences ordinary triggers and foreign keys; walls of ours fire ALWAYS.

    Row security does not bind a superuser, so a foreign tenant meets the wall that looks for the header, and what only a
    foreign key refuses is not tried.
    """
    shape = MALFORMED[name]
    sqlstate, wall = shape.owner or ("", None)
    if sqlstate == "23503":
        return
    if sqlstate == "42501":
        sqlstate, wall = "HP002", "journal_line_sealed"
    draft = Draft(attacked)
    shape.spoil(draft)
    with (
        nothing_changes(attacked),
        refused(sqlstate, wall),
        session("superuser", attacked.tenant_id, replica=True) as connection,
    ):
        draft.insert(connection)


# --- Late lines ------------------------------------------------------------------------------------------------------


def _late_pair(draft: Draft) -> list[Json]:
    """Two lines more, balanced and numbered on."""
    draft.add("1000", "DR", 7)
    draft.add("4000", "CR", 7)
    return draft.lines[-2:]


INSERT_LINES = (
    "INSERT INTO journal_line SELECT (jsonb_populate_record(NULL::journal_line, l)).* FROM jsonb_array_elements(%s) l"
)


@pytest.mark.parametrize("role", ["owner", "superuser"])
def test_a_line_that_comes_in_a_second_statement_is_refused(books: Books, role: str) -> None:
    draft = Draft(books)
    with (
        nothing_changes(books),
        refused("HP002", "journal_line_sealed"),
        session(role, books.tenant_id, replica=role == "superuser") as connection,
    ):
        draft.insert(connection)
        connection.execute(INSERT_LINES, (json.dumps(_late_pair(draft)),))


@pytest.mark.parametrize("role", ["owner", "superuser"])
def test_a_line_that_comes_in_a_later_transaction_is_refused(books: Books, role: str) -> None:
    draft = Draft(books)
    with session("owner", books.tenant_id) as connection:
        draft.insert(connection)
    with (
        nothing_changes(books),
        refused("HP002", "journal_line_sealed"),
        session(role, books.tenant_id, replica=role == "superuser") as connection,
    ):
        connection.execute(INSERT_LINES, (json.dumps(_late_pair(draft)),))


def test_lines_may_not_come_behind_a_savepoint_either(books: Books) -> None:
    """A savepoint has an id of its own; the entry is sealed to the transaction's, and its statement is over all the same."""
    draft = Draft(books)
    with (
        nothing_changes(books),
        refused("HP002", "journal_line_sealed"),
        session("owner", books.tenant_id) as connection,
    ):
        draft.insert(connection)
        connection.execute("SAVEPOINT later")
        connection.execute(INSERT_LINES, (json.dumps(_late_pair(draft)),))


def test_an_entry_may_be_posted_behind_a_savepoint(books: Books) -> None:
    """What the seal compares is the transaction's id, which a savepoint does not change."""
    with session("owner", books.tenant_id) as connection:
        connection.execute("SAVEPOINT before")
        Draft(books).insert(connection)
        connection.execute("RELEASE SAVEPOINT before")


def test_lines_come_with_their_header_or_not_at_all(books: Books) -> None:
    """Header in one statement, lines in the next, as an ORM would do it."""
    draft = Draft(books)
    lines, draft.lines = draft.lines, []
    draft.header["line_count"] = len(lines)
    with (
        nothing_changes(books),
        refused("HP002", "journal_entry_whole"),
        session("owner", books.tenant_id) as connection,
    ):
        draft.insert(connection)
        connection.execute(INSERT_LINES, (json.dumps(lines),))


def test_a_copied_row_meets_the_walls(books: Books) -> None:
    """COPY is an INSERT to the walls, for a superuser too. To the owner it is closed altogether: row security binds it."""
    row = [books.tenant_id, str(uuid.uuid4()), "manual_adjustment", "2025-03-01", str(uuid.uuid4()), 2, "{}"]
    columns = "tenant_id, id, event_type, effective_at, correlation_id, line_count, document, content_hash, posted_at"
    for role, expected in {"owner": ("0A000", None), "superuser": ("HP002", "journal_entry_whole")}.items():
        with nothing_changes(books), refused(*expected), session(role, books.tenant_id) as connection:
            ((now,),) = connection.execute("SELECT clock_timestamp()").fetchall()
            with connection.cursor().copy(f"COPY journal_entry ({columns}) FROM STDIN") as copy:
                copy.write_row([*row, hashlib.sha256(b"{}").digest(), now])


@pytest.mark.parametrize("role", ["owner", "superuser"])
def test_lines_of_an_entry_that_is_not_there_are_refused(books: Books, role: str) -> None:
    """No foreign key says so: the wall itself looks for the header, also when foreign keys are silenced."""
    draft = Draft(books)
    with (
        nothing_changes(books),
        refused("HP002", "journal_line_sealed"),
        session(role, books.tenant_id, replica=role == "superuser") as connection,
    ):
        connection.execute(INSERT_LINES, (json.dumps(draft.lines),))


def test_one_statement_may_bring_two_entries_when_both_are_sound(books: Books) -> None:
    """The wall's short look is about one entry; with two it looks in full, and finds the one that does not balance."""
    both = INSERT_ENTRY.replace("VALUES (%(tenant_id)s, %(id)s,", "SELECT %(tenant_id)s, one,").replace(
        "coalesce(%(created_xid)s::xid8, pg_current_xact_id()))",
        "coalesce(%(created_xid)s::xid8, pg_current_xact_id()) FROM unnest(%(ids)s::uuid[]) AS one",
    )
    for spoilt in (True, False):
        first, second = Draft(books), Draft(books)
        second.lines = second.lines[:2]
        first.lines = first.lines[:2]
        second.lines[1]["amount_minor"] -= spoilt
        ids = [first.header["id"], second.header["id"]]
        first.header["line_count"] = 2
        first.lines += second.lines
        before = books.entries()
        with session("owner", books.tenant_id) as connection:
            if spoilt:
                with nothing_changes(books), refused("HP003", "journal_line_balanced"):
                    first.insert(connection, both, {"ids": ids})
            else:
                first.insert(connection, both, {"ids": ids})
        assert books.entries() == before + (0 if spoilt else 2)


# --- Row security must not blind a wall ------------------------------------------------------------------------------


SWITCH_WITH_THE_LAST = " RETURNING CASE WHEN sequence = %(last)s THEN set_config('hpts.tenant_id', %(other)s, true) END"


def test_an_entry_whose_header_row_security_hides_from_the_wall_is_refused(books: Books, other_books: Books) -> None:
    """The tenant is switched with the last line of the statement, so that the walls at its end cannot see the header."""
    draft = Draft(books)
    draft.lines[1]["amount_minor"] = 1
    # The header is read, so that it is written before the lines are.
    statement = INSERT_ENTRY.replace("\n)\nINSERT", "\n    RETURNING id\n)\nINSERT").replace(
        "FROM jsonb_to_recordset", "FROM header, jsonb_to_recordset"
    )
    with (
        nothing_changes(books, other_books),
        refused("HP002", "journal_entry_whole"),
        session("owner", books.tenant_id) as connection,
    ):
        more = {"other": other_books.tenant_id, "last": len(draft.lines)}
        draft.insert(connection, statement + SWITCH_WITH_THE_LAST, more)


@pytest.mark.parametrize("shape", ["balanced", "unbalanced"])
def test_late_lines_whose_header_row_security_hides_from_the_wall_are_refused(
    books: Books, other_books: Books, shape: str
) -> None:
    """A comparison with `<>` would become NULL here, which refuses nothing; IS DISTINCT FROM refuses."""
    draft = Draft(books)
    with session("owner", books.tenant_id) as connection:
        draft.insert(connection)
    late = _late_pair(draft)
    if shape == "unbalanced":
        late[0]["amount_minor"] = 8
    with (
        nothing_changes(books, other_books),
        refused("HP002", "journal_line_sealed"),
        session("owner", books.tenant_id) as connection,
    ):
        connection.execute(
            INSERT_LINES.replace("%s", "%(lines)s") + SWITCH_WITH_THE_LAST,
            {"lines": json.dumps(late), "last": late[-1]["sequence"], "other": other_books.tenant_id},
        )


def test_the_switched_tenant_cannot_write_the_first_tenants_lines(books: Books, other_books: Books) -> None:
    """Header as one tenant, lines as another: row security checks each row that comes in."""
    draft = Draft(books)
    with nothing_changes(books, other_books), refused("42501"), session("owner", books.tenant_id) as connection:
        draft.insert(connection, INSERT_ENTRY + SWITCH_WITH_THE_LAST, {"other": other_books.tenant_id, "last": 1})


@pytest.mark.parametrize("door", DOORS)
def test_an_entry_on_another_tenants_loan_is_refused(books: Books, other_books: Books, door: str) -> None:
    """Each tenant's wall sees its own loans alone, so a foreign one is unknown, whichever borrower is named with it."""
    stranger = other_books.loan
    role, write = DOORS[door]
    for borrower_id in (stranger.borrower_id, books.loan.borrower_id):
        draft = Draft(books)
        for line in draft.lines[2:]:
            line.update(loan_id=stranger.loan_id, borrower_id=borrower_id)
        with (
            nothing_changes(books, other_books),
            refused("HP005", "journal_line_loan_identity"),
            session(role, books.tenant_id) as connection,
        ):
            write(draft, connection)


@pytest.mark.parametrize("about", ["reverses", "settles"])
@pytest.mark.parametrize("door", DOORS)
def test_an_entry_about_another_tenants_entry_is_refused(
    books: Books, other_books: Books, door: str, about: str
) -> None:
    """A foreign key of one column would find it, because foreign keys look behind row security."""
    ((entry_id,),) = other_books.rows("SELECT id::text FROM journal_entry")
    draft = Draft(books)
    kind = {"reverses": "reversal", "settles": "disbursement_settled"}[about]
    draft.header |= {"event_type": kind, f"{about}_entry_id": entry_id}
    role, write = DOORS[door]
    with (
        nothing_changes(books, other_books),
        refused("23503", f"journal_entry_{about}"),
        session(role, books.tenant_id) as connection,
    ):
        write(draft, connection)


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("program_terms", {"program_id": "program", "annual_rate_bps": 1, "waterfall": "fees,interest,principal"}),
        ("loan", {"id": UNKNOWN, "borrower_id": UNKNOWN, "program_id": "program", "currency": "USD"}),
        ("loan_terms", {"loan_id": "loan", "annual_rate_bps": 1}),
        ("loan_terms", {"loan_id": "own loan", "entry_id": "entry", "annual_rate_bps": 1}),
        ("loan_balance", {"loan_id": "loan", "account_code": "1300", "layer": "PENDING", "currency": "USD"}),
        ("accrual_pause", {"loan_id": "loan", "from_date": "2025-03-01", "actor": "test"}),
        (
            "accrual_run",
            {
                "id": str(uuid.uuid4()),
                "program_id": "program",
                "accrual_date": "2025-03-01",
                "actor": "test",
                "correlation_id": str(uuid.uuid4()),
            },
        ),
        ("loan_accrual", {"loan_id": "loan", "accrual_date": "2025-03-01", "revision": 0, "interest_minor": 1}),
        ("outbox_message", {"entry_id": "entry"}),
    ],
)
def test_no_row_points_at_another_tenants_row(books: Books, other_books: Books, table: str, row: Json) -> None:
    """Foreign keys bypass row security, so each starts with the tenant."""
    ((entry_id,),) = other_books.rows("SELECT id::text FROM journal_entry")
    ((own_entry_id,),) = books.rows("SELECT id::text FROM journal_entry LIMIT 1")
    foreign = {"program": other_books.program_id, "loan": other_books.loan.loan_id, "entry": entry_id}
    foreign["own loan"] = books.loan.loan_id
    more = {
        "effective_at": "2025-03-01",
        "opened_on": "2025-03-01",
        "accrual_mode": "client",
        "balance_minor": 0,
        "floored": False,
        "entry_id": own_entry_id,
    }
    with nothing_changes(books, other_books), refused("23503"), session("owner", books.tenant_id) as connection:
        columns = connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0", (table,)
        ).fetchall()
        wanted = {name for (name,) in columns}
        filled = {name: value for name, value in more.items() if name in wanted} | {"tenant_id": books.tenant_id}
        filled |= {name: foreign.get(str(value), value) for name, value in row.items()}
        connection.execute(
            f"INSERT INTO {table} ({', '.join(filled)}) VALUES ({', '.join(['%s'] * len(filled))})",
            list(filled.values()),
        )


# --- What happens once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_an_entry_is_reversed_once(books: Books, door: str) -> None:
    ((entry_id,),) = books.rows("SELECT id::text FROM journal_entry WHERE event_type = 'manual_adjustment'")
    books.post(books.reversal(entry_id))
    draft = Draft(books)
    draft.header |= {"event_type": "reversal", "reverses_entry_id": entry_id}
    role, write = DOORS[door]
    with (
        nothing_changes(books),
        refused("23505", "journal_entry_one_reversal"),
        session(role, books.tenant_id) as connection,
    ):
        write(draft, connection)


@pytest.mark.parametrize("door", DOORS)
def test_an_entry_is_settled_once(books: Books, door: str) -> None:
    ((entry_id,),) = books.rows("SELECT id::text FROM journal_entry WHERE event_type = 'disbursement'")
    books.post(books.settlement(entry_id, "2025-03-01"))
    draft = Draft(books)
    draft.header |= {"event_type": "disbursement_settled", "settles_entry_id": entry_id}
    role, write = DOORS[door]
    with (
        nothing_changes(books),
        refused("23505", "journal_entry_one_settlement"),
        session(role, books.tenant_id) as connection,
    ):
        write(draft, connection)


@pytest.mark.parametrize("door", DOORS)
def test_an_external_reference_is_used_once_per_method_and_tenant(books: Books, other_books: Books, door: str) -> None:
    books.post(books.payment(books.loan, 100, "2025-03-01", ref="wire 7"))
    role, write = DOORS[door]
    draft = Draft(books)
    draft.header |= {"source_method": "ach", "external_ref": "wire 7"}
    with (
        nothing_changes(books),
        refused("23505", "journal_entry_one_external_ref"),
        session(role, books.tenant_id) as connection,
    ):
        write(draft, connection)
    draft = Draft(other_books)
    draft.header |= {"source_method": "ach", "external_ref": "wire 7"}
    with session(role, other_books.tenant_id) as connection:
        write(draft, connection)


ACCRUE = """INSERT INTO loan_accrual (tenant_id, loan_id, accrual_date, revision, entry_id, interest_minor)
            VALUES (%s, %s, %s, %s, %s, 1)"""


@pytest.mark.parametrize(
    ("revision", "reversed_before", "sqlstate", "wall"),
    [
        (0, False, "23505", "loan_accrual_pkey"),
        (0, True, "23505", "loan_accrual_pkey"),
        (1, False, "HP006", "loan_accrual_once_per_date"),
        (2, True, "HP006", "loan_accrual_once_per_date"),
        (-1, True, "HP006", "loan_accrual_once_per_date"),
    ],
)
def test_a_date_accrues_again_only_as_the_next_revision_of_a_reversed_one(
    books: Books, revision: int, reversed_before: bool, sqlstate: str, wall: str
) -> None:
    ((entry_id,),) = books.rows("SELECT id::text FROM journal_entry WHERE event_type = 'accrual'")
    if reversed_before:
        books.post(books.reversal(entry_id))
    values = (books.tenant_id, books.loan.loan_id, "2025-02-10", revision, entry_id)
    with nothing_changes(books), refused(sqlstate, wall), session("owner", books.tenant_id) as connection:
        connection.execute(ACCRUE, values)


def test_a_reversed_date_accrues_again(books: Books) -> None:
    ((entry_id,),) = books.rows("SELECT id::text FROM journal_entry WHERE event_type = 'accrual'")
    books.post(books.reversal(entry_id))
    books.post(books.accrual("2025-02-10", (books.loan, 100_000, 501)))
    assert books.rows("SELECT revision, interest_minor FROM loan_accrual ORDER BY 1") == [(0, 500), (1, 501)]


# --- Balances and versions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["1100", "1200", "1300", "2000"])
@pytest.mark.parametrize("role", ["owner", "superuser"])
def test_a_receivable_or_suspense_is_never_set_below_zero(books: Books, code: str, role: str) -> None:
    """The constraint is the last wall behind the rules' own proof; it holds for every writer."""
    books.post(books.payment(books.loans[1], 10, "2025-03-01"))
    with (
        nothing_changes(books),
        refused("23514", "loan_balance_not_below_zero"),
        session(role, books.tenant_id, replica=role == "superuser") as connection,
    ):
        connection.execute("UPDATE loan_balance SET balance_minor = -1 WHERE account_code = %s", (code,))


def test_a_posting_whose_loan_has_moved_since_is_refused(books: Books) -> None:
    """The version that the state was read at must still be the loan's: two postings that were decided on one state, as
    without the loan's lock, cannot both be recorded."""
    first, second = Draft(books), Draft(books)
    with session("app", books.tenant_id) as connection:
        first.record(connection)
    # At other places in its entry, so that the index over a loan's history is not what stops it.
    second.lines.insert(0, second.lines.pop(2))
    second.lines.insert(0, second.lines.pop(3))
    for sequence, line in enumerate(second.lines, 1):
        line["sequence"] = sequence
    with (
        nothing_changes(books),
        refused("HP007", "loan_version_moved"),
        session("app", books.tenant_id) as connection,
    ):
        second.record(connection)


def test_a_posting_without_a_tenant_is_refused(books: Books) -> None:
    with nothing_changes(books), refused("42501"), session("app") as connection:
        Draft(books).record(connection)


@pytest.mark.parametrize(
    ("change", "wall"),
    [
        ("draws = -1", "loan_draws"),
        ("ended_as = 'open'", "loan_ended_as"),
        ("ended_as = ''", "loan_ended_as"),
    ],
)
@pytest.mark.parametrize("role", ["owner", "superuser"])
def test_what_a_loan_knows_of_itself_is_well_formed(books: Books, role: str, change: str, wall: str) -> None:
    with nothing_changes(books), refused("23514", wall), session(role, books.tenant_id) as connection:
        connection.execute(f"UPDATE loan SET {change}")


@pytest.mark.parametrize(
    ("row", "wall"),
    [
        ({"annual_rate_bps": None, "day_count_convention": None}, "loan_terms_say_something"),
        ({"annual_rate_bps": -1}, "loan_terms_rate"),
        ({"annual_rate_bps": 100_001}, "loan_terms_rate"),
        ({"day_count_convention": "ACT_366"}, "loan_terms_day_count"),
    ],
)
def test_terms_of_a_loan_say_something_that_there_is(books: Books, row: Json, wall: str) -> None:
    values = {"tenant_id": books.tenant_id, "loan_id": books.loan.loan_id, "effective_at": "2025-03-01"} | row
    with nothing_changes(books), refused("23514", wall), session("app", books.tenant_id) as connection:
        connection.execute(
            f"INSERT INTO loan_terms ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))})",
            list(values.values()),
        )


# --- Periods ---------------------------------------------------------------------------------------------------------

CLOSE = "INSERT INTO period_close (tenant_id, through_date, actor, trial_balances) VALUES (%s, %s, 'test', '[]')"


@pytest.mark.parametrize(
    "through", ["2025-02-28", "2025-02-27", "0001-01-01", "-infinity", "infinity", "2099-01-01", "294276-12-31"]
)
@pytest.mark.parametrize("role", ["app", "owner", "superuser"])
def test_a_period_closes_forward_and_not_in_the_future(books: Books, role: str, through: str) -> None:
    books.close("2025-02-28")
    with (
        nothing_changes(books),
        refused("HP009", "period_close_forward"),
        session(role, books.tenant_id, replica=role == "superuser") as connection,
    ):
        connection.execute(CLOSE, (books.tenant_id, through))


def test_of_two_closes_in_one_statement_the_second_must_be_later(books: Books) -> None:
    many = CLOSE + ", (%s, %s, 'test', '[]')"
    with (
        nothing_changes(books),
        refused("HP009", "period_close_forward"),
        session("app", books.tenant_id) as connection,
    ):
        connection.execute(many, (books.tenant_id, "2025-02-28", books.tenant_id, "2025-01-31"))
    with session("app", books.tenant_id) as connection:
        connection.execute(many, (books.tenant_id, "2025-01-31", books.tenant_id, "2025-02-28"))


def test_a_close_binds_its_own_tenant_alone(books: Books, other_books: Books) -> None:
    books.close("2025-12-31")
    other_books.post(other_books.payment(other_books.loan, 5, "2025-02-01"))
    other_books.close("2025-02-01")


def test_a_close_by_hand_keeps_postings_waiting_and_refuses_them(books: Books) -> None:
    """The wall takes the lock that postings share, so that who goes round the product's own close is bound as well."""
    event = books.payment(books.loan, 5, "2025-03-01")
    before = books.entries()

    def close() -> None:
        with session("app", books.tenant_id) as connection:
            connection.execute(CLOSE, (books.tenant_id, "2025-03-01"))
            closing.set()
            with session("superuser") as onlooking:
                waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND %s = ANY (pg_blocking_pids(pid))"
                end = time.monotonic() + 30
                while onlooking.execute(waiting, (connection.info.backend_pid,)).fetchall() == [(0,)]:
                    assert time.monotonic() < end, "nobody waits for the close"
                    onlooking.rollback()

    def pay() -> Posted:
        assert closing.wait(30)
        return books.post(event)

    closing = threading.Event()
    assert codes(race(close, pay)) == ["posted", "period_closed"]
    assert books.entries() == before


def test_the_wall_refuses_what_the_state_did_not_know(books: Books) -> None:
    """As if the last close had not been read: the database's refusal is told as the rules' own."""

    def attempt() -> None:
        with opened(books.origin, Touches([books.loan.loan_id])) as (posting, _):
            assert posting is not None
            posting.state.closed_through = None
            posting.since = date(2025, 1, 1)
            posting.post(books.payment(books.loan, 5, "2025-02-28"))
            posting.record()

    books.close("2025-02-28")
    with nothing_changes(books), pytest.raises(PeriodClosed):
        with_retries(attempt)


# --- The application's own hands -------------------------------------------------------------------------------------

# Everything but the journal of other applications' logins: what only the write path's functions write.
RECORDED = [*walls.RECORDED, "outbox_message"]
COMMANDS = [
    "INSERT INTO {table} DEFAULT VALUES",
    "INSERT INTO {table} SELECT * FROM {table}",
    "UPDATE {table} SET tenant_id = tenant_id",
    "DELETE FROM {table}",
    "TRUNCATE {table}",
    "COPY {table} FROM STDIN",
]


@pytest.mark.parametrize("role", ["app", "readonly"])
@pytest.mark.parametrize("table", RECORDED)
def test_the_application_writes_the_journal_through_the_write_path_alone(books: Books, table: str, role: str) -> None:
    with nothing_changes(books):
        for command in COMMANDS:
            with refused("42501"), session(role, books.tenant_id) as connection:
                connection.execute(command.format(table=table))


def test_the_application_moves_no_loan_and_edits_no_master(books: Books) -> None:
    opened_at_a_version = f"""INSERT INTO loan (tenant_id, id, borrower_id, program_id, currency, opened_on, version)
        VALUES ('{books.tenant_id}', '{UNKNOWN}', '{UNKNOWN}', '{books.program_id}', 'USD', '2025-01-01', 7)"""
    statements = [
        opened_at_a_version,
        "UPDATE loan SET version = version + 1",
        "UPDATE loan SET draws = draws + 1",
        "UPDATE loan SET ended_as = 'charged_off'",
        "UPDATE loan_terms SET annual_rate_bps = 0",
        "UPDATE period_close SET trial_balances = '[]'",
        "DELETE FROM period_close",
        "UPDATE loan SET principal_limit_minor = 1",
        "UPDATE tenant SET timezone = 'UTC'",
        "UPDATE program_terms SET annual_rate_bps = 0",
        "UPDATE gl_account SET normal_side = 'CR'",
        "UPDATE gl_account SET role = NULL",
        "DELETE FROM gl_account",
        "DELETE FROM loan",
    ]
    with nothing_changes(books):
        for statement in statements:
            with refused("42501"), session("app", books.tenant_id) as connection:
                connection.execute(statement)


def test_the_reader_may_not_run_the_write_path(books: Books) -> None:
    for call in ("record_posting('[]', NULL, NULL, NULL)", "open_posting(NULL, NULL, NULL, NULL, NULL, NULL, NULL)"):
        with nothing_changes(books), refused("42501"), session("readonly", books.tenant_id) as connection:
            connection.execute(f"SELECT {call}")


# --- The role at start-up --------------------------------------------------------------------------------------------


@contextmanager
def connected_as(role: str, password: str) -> Iterator[BaseDatabaseWrapper]:
    """A Django connection as another role, in the place of the application's."""
    connection = connections.create_connection("default")
    connection.settings_dict = connection.settings_dict | {"USER": role, "PASSWORD": password}
    try:
        yield connection
    finally:
        connection.close()


@pytest.fixture
def make_role() -> Iterator[Callable[..., tuple[str, str]]]:
    """Make a login role like the application's by these statements, with `{role}` in the place of its name."""
    made: list[str] = []

    def make(*statements: str) -> tuple[str, str]:
        role = f"hpts_test_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(os.environ[URLS["superuser"]], autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'test'")
            made.append(role)
            connection.execute(f"GRANT CONNECT ON DATABASE {connection.info.dbname} TO {role}")
            connection.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
            for statement in statements:
                connection.execute(statement.format(role=role, database=connection.info.dbname))
        return role, "test"

    yield make
    with psycopg.connect(os.environ[URLS["superuser"]], autocommit=True) as connection:
        for role in made:
            connection.execute(f"REASSIGN OWNED BY {role} TO hpts_owner")
            connection.execute(f"DROP OWNED BY {role} CASCADE")
            connection.execute(f"DROP TABLE IF EXISTS of_{role}")
            connection.execute(f"DROP SCHEMA IF EXISTS of_{role}")
            connection.execute(f"DROP ROLE {role}")


def test_the_applications_role_may_serve() -> None:
    walls.check_role(connections["default"])
    with connected_as(**_credentials("readonly")) as connection:
        walls.check_role(connection)


def _credentials(kind: str) -> dict[str, str]:
    url = os.environ[URLS[kind]]
    role, _, password = url.partition("://")[2].partition("@")[0].partition(":")
    return {"role": role, "password": password}


@pytest.mark.parametrize(
    ("kind", "fault"),
    [("superuser", "it has SUPERUSER"), ("owner", "it owns the "), ("owner", "may CREATE in the schema")],
)
def test_the_roles_above_the_application_may_not_serve(kind: str, fault: str) -> None:
    with connected_as(**_credentials(kind)) as connection, pytest.raises(walls.RoleRefused) as caught:
        walls.check_role(connection)
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("ALTER ROLE {role} SUPERUSER", "it has SUPERUSER"),
        ("ALTER ROLE {role} BYPASSRLS", "it has BYPASSRLS"),
        ("ALTER ROLE {role} CREATEROLE", "it has CREATEROLE"),
        ("ALTER ROLE {role} CREATEDB", "it has CREATEDB"),
        ("ALTER ROLE {role} REPLICATION", "it has REPLICATION"),
        ("GRANT hpts_owner TO {role}", "through hpts_owner it owns the "),
        ("GRANT hpts_owner TO {role} WITH INHERIT FALSE, SET FALSE, ADMIN TRUE", "through hpts_owner it owns the "),
        ("GRANT pg_write_all_data TO {role}", "it may DELETE on journal_entry"),
        ("GRANT pg_execute_server_program TO {role}", "it is a member of pg_execute_server_program"),
        ("GRANT pg_write_server_files TO {role}", "it is a member of pg_write_server_files"),
        ("GRANT INSERT ON journal_entry TO {role}", "it may INSERT on journal_entry"),
        ("GRANT INSERT (document) ON journal_entry TO {role}", "it may INSERT on journal_entry"),
        ("GRANT UPDATE (document) ON journal_entry TO {role}", "it may UPDATE on journal_entry"),
        ("GRANT DELETE ON journal_line TO {role}", "it may DELETE on journal_line"),
        ("GRANT TRUNCATE ON journal_line TO {role}", "it may TRUNCATE on journal_line"),
        ("GRANT TRIGGER ON journal_line TO {role}", "it may TRIGGER on journal_line"),
        ("GRANT INSERT ON idempotency_key TO {role}", "it may INSERT on idempotency_key"),
        ("GRANT UPDATE ON loan_balance TO {role}", "it may UPDATE on loan_balance"),
        ("GRANT CREATE ON SCHEMA public TO {role}", "it may CREATE in the schema public"),
        ("GRANT CREATE ON DATABASE {database} TO {role}", "it may CREATE schemas"),
        ("GRANT SET ON PARAMETER session_replication_role TO {role}", "it may SET session_replication_role"),
        ("CREATE SCHEMA of_{role} AUTHORIZATION {role}", "it owns the schema of_hpts_test_"),
        ("CREATE TABLE of_{role} (); ALTER TABLE of_{role} OWNER TO {role}", "it owns the "),
        ("ALTER FUNCTION record_posting OWNER TO {role}", "it owns the function record_posting"),
        ("ALTER DATABASE {database} OWNER TO {role}", "it owns the database"),
    ],
)
def test_a_role_that_could_bypass_a_wall_may_not_serve(
    make_role: Callable[..., tuple[str, str]], statement: str, fault: str
) -> None:
    role, password = make_role(statement)
    with connected_as(role, password) as connection, pytest.raises(walls.RoleRefused) as caught:
        walls.check_role(connection)
    assert f"The database role {role} could bypass the ledger's walls: " in str(caught.value)
    assert fault in str(caught.value)


def test_a_superuser_who_has_stepped_down_may_not_serve() -> None:
    """RESET ROLE would bring everything back: what counts is who the session can become."""
    with connected_as(**_credentials("superuser")) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SET ROLE hpts_app")
        with pytest.raises(walls.RoleRefused, match="SUPERUSER"):
            walls.check_role(connection)


def test_the_check_command_says_what_is_wrong_with_the_role(monkeypatch: pytest.MonkeyPatch) -> None:
    call_command("check", databases=["default"])
    with connected_as(**_credentials("owner")) as owner:
        monkeypatch.setattr(connections["default"], "cursor", owner.cursor)
        with pytest.raises(SystemCheckError, match=r"hpts\.E001.*hpts_owner"):
            call_command("check", databases=["default"])


def test_the_api_does_not_start_as_the_owner() -> None:
    """Exit 3 is what makes gunicorn stop altogether instead of starting another worker."""
    ended = subprocess.run(
        [sys.executable, "-c", "import hpts.wsgi"],
        cwd=embedded.ROOT,
        env=os.environ | {"DATABASE_URL": os.environ[URLS["owner"]]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr.startswith("The database role hpts_owner could bypass the ledger's walls: ")
    assert "Traceback" not in ended.stderr


@pytest.fixture
def stop_watching() -> Iterator[None]:
    yield
    connection_created.disconnect(walls._check_connection)


@pytest.mark.usefixtures("stop_watching")
@pytest.mark.parametrize("started", [worker_init, beat_init])
def test_worker_and_beat_do_not_start_as_the_owner(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], started: Signal
) -> None:
    """Celery swallows what its signals raise, all but the end of the process."""
    import_module("hpts.celery")
    assert walls.watch_role in started._live_receivers(None)
    alone = Signal(name="alone")
    alone.connect(walls.watch_role)
    alone.send(None)
    with connected_as(**_credentials("owner")) as owner:
        monkeypatch.setattr(walls, "connections", {"default": owner})
        with pytest.raises(SystemExit) as ended:
            alone.send(None)
    assert ended.value.code == 3
    assert capsys.readouterr().err.startswith("The database role hpts_owner could bypass the ledger's walls: ")


@pytest.mark.usefixtures("stop_watching")
def test_a_process_that_starts_before_its_database_checks_the_role_later(
    monkeypatch: pytest.MonkeyPatch, make_role: Callable[..., tuple[str, str]]
) -> None:
    """The first connection that succeeds is the check; a refused one is closed again, so that nothing can use it."""
    with connected_as(*make_role("ALTER ROLE {role} BYPASSRLS")) as watched:
        monkeypatch.setattr(walls, "connections", {"default": watched})
        port = watched.settings_dict["PORT"]
        watched.settings_dict["PORT"] = 1
        walls.watch_role()
        watched.settings_dict["PORT"] = port
        for _ in range(2):
            with pytest.raises(ImproperlyConfigured, match="BYPASSRLS"):
                watched.ensure_connection()


@pytest.mark.parametrize("door", DOORS)
def test_a_reversal_that_is_no_mirror_is_refused(books: Books, door: str) -> None:
    """Line by line: the same account, amount, currency, layer and loan, on the other side."""
    entry_id = books.rows("SELECT id::text FROM journal_entry ORDER BY id LIMIT 1")[0][0]
    draft = Draft(books)
    draft.header |= {"event_type": "reversal", "reverses_entry_id": entry_id}
    role, write = DOORS[door]
    with (
        nothing_changes(books),
        refused("HP008", "journal_entry_mirrors"),
        session(role, books.tenant_id) as connection,
    ):
        write(draft, connection)
