"""Attacks on the walls of the journal by raw SQL: each malformed entry is refused by the wall that is there for it.

Two doors: the owner's own INSERT of header and lines, which meets the walls alone, and `record_posting`, which is all that
the application has. Each attack asserts the SQLSTATE, the wall's name where it has one, and that no row has changed. The
last section is about the role of the process (hpts/walls.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from hpts import embedded, walls
from ledger import document
from ledger.events import Line
from ledger.money import MAX_MINOR
from ledger.posting import Touches, opened
from tests.ledger.conftest import URLS, Books, contents, nothing_changes, open_books, refused, session

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

    def insert(self, connection: psycopg.Connection[Any]) -> None:
        """By the owner's own statement."""
        text = json.dumps({"of": self.header["id"]})
        header = self.header | {"document": text, "lines": json.dumps(self.lines)}
        if header["content_hash"] is None:
            header["content_hash"] = hashlib.sha256(text.encode()).digest()
        if header["line_count"] is None:
            header["line_count"] = len(self.lines)
        connection.execute(INSERT_ENTRY, header)

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
        extra = {name: self.header[name] for name in ("settles_entry_id", "source_method", "external_ref", "loan_id")}
        extra["versions"] = [line.get("loan_version") for line in self.lines]
        text = document.render(members, shown, self.header["tenant_id"])
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


def _balanced_across_currencies(draft: Draft) -> None:
    draft.lines[1]["currency"] = "EUR"


def _balanced_across_layers(draft: Draft) -> None:
    draft.lines[1]["layer"] = "PENDING"


def _of_another_borrower(draft: Draft) -> None:
    draft.lines[2]["borrower_id"] = draft.books.loans[1].borrower_id


def _two_debits_above_the_range(draft: Draft) -> None:
    about = {"loan_id": draft.books.loan.loan_id, "borrower_id": draft.books.loan.borrower_id, "loan_version": draft.version}
    draft.lines = []
    for code, direction in (("1100", "DR"), ("1100", "DR"), ("1050", "CR"), ("1050", "CR")):
        draft.add(code, direction, MAX_MINOR, **about)


def _balance_above_the_range(draft: Draft) -> None:
    draft.lines[2]["amount_minor"] = draft.lines[3]["amount_minor"] = MAX_MINOR


def _per_loan_below_zero(draft: Draft) -> None:
    draft.lines[2].update(account_code="1050")
    draft.lines[3].update(account_code="1100", amount_minor=100_001)
    draft.lines[2]["amount_minor"] = 100_001


def _version_of_the_last_entry(draft: Draft) -> None:
    for line in draft.lines[2:]:
        line["loan_version"] = draft.version - 1


def _version_skipped(draft: Draft) -> None:
    for line in draft.lines[2:]:
        line["loan_version"] = draft.version + 1


def _its_own_reversal(draft: Draft) -> None:
    draft.header["reverses_entry_id"] = draft.header["id"]


UNKNOWN = "5e0c1c0e-6f0b-4c57-9d3c-6f4b5f0e8a11"
MALFORMED = {
    "unbalanced": Malformed(_line(1, amount_minor=99), ("HP003", "journal_line_balanced"), ("HP003", "journal_line_balanced")),
    "one line": Malformed(_one_line, ("23514", "journal_entry_line_count"), ("23514", "journal_entry_line_count")),
    "one line that says two": Malformed(_one_line_that_says_two, ("HP002", "journal_line_sealed"), None),
    "fewer lines than said": Malformed(_fewer_than_said, ("HP002", "journal_line_sealed"), None),
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
    "zero amounts": Malformed(_lines(amount_minor=0), ("23514", "journal_line_amount"), ("23514", "journal_line_amount")),
    "lines of another tenant": Malformed(_lines(tenant_id=UNKNOWN), ("42501", None), None),
    "header of another tenant": Malformed(_header(tenant_id=UNKNOWN), ("42501", None), ("42501", None)),
    "duplicate sequence": Malformed(_line(1, sequence=1), ("23505", "journal_line_pkey"), ("23505", "journal_line_pkey")),
    "gap in the sequence": Malformed(
        _line(3, sequence=5), ("HP002", "journal_line_sealed"), ("HP002", "journal_line_sealed")
    ),
    "sequence from zero": Malformed(
        _line(0, sequence=0), ("23514", "journal_line_sequence"), ("23514", "journal_line_sequence")
    ),
    "an amount above 2^63-1": Malformed(_lines(amount_minor=MAX_MINOR + 1), ("22003", None), ("22003", None)),
    "a loan's debits above 2^63-1": Malformed(_two_debits_above_the_range, None, ("22003", None)),
    "a loan's balance above 2^63-1": Malformed(_balance_above_the_range, None, ("22003", None)),
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
    "no currency": Malformed(_lines(currency="usd"), ("23514", "journal_line_currency"), ("23514", "journal_line_currency")),
    "no side": Malformed(_line(0, direction="XX"), ("23514", "journal_line_direction"), ("23514", "journal_line_direction")),
    "no layer": Malformed(_lines(layer="DREAMT"), ("23514", "journal_line_layer"), ("23514", "journal_line_layer")),
    "no kind": Malformed(
        _header(event_type="adjustment"), ("23514", "journal_entry_kind"), ("23514", "journal_entry_kind")
    ),
    "a hash that does not fit": Malformed(_header(content_hash=b"\0" * 32), ("HP002", "journal_entry_whole"), None),
    "posted yesterday": Malformed(
        _header(posted_at="2025-03-02T10:00:00.000000Z"), ("HP002", "journal_entry_whole"), ("HP002", "journal_entry_whole")
    ),
    "posted tomorrow": Malformed(
        _header(posted_at="2099-03-02T10:00:00.000000Z"), ("HP002", "journal_entry_whole"), ("HP002", "journal_entry_whole")
    ),
    "of another transaction": Malformed(_header(created_xid="3"), ("HP002", "journal_line_sealed"), None),
    "lines of another date": Malformed(_lines(effective_at="2025-03-02"), ("HP002", "journal_line_sealed"), None),
    "a loan's version that is taken": Malformed(
        _version_of_the_last_entry, ("23505", "journal_line_loan_history"), ("23505", "journal_line_loan_history")
    ),
    "a loan's version that is skipped": Malformed(_version_skipped, None, ("HP007", "loan_version_moved")),
    "a loan without a version": Malformed(
        _line(2, loan_version=None), ("23514", "journal_line_loan"), ("23514", "journal_line_loan")
    ),
    "its own reversal": Malformed(
        _its_own_reversal,
        ("23514", "journal_entry_not_its_own_reversal"),
        ("23514", "journal_entry_not_its_own_reversal"),
    ),
    "reversal of nothing": Malformed(
        _header(reverses_entry_id=UNKNOWN), ("23503", "journal_entry_reverses"), ("23503", "journal_entry_reverses")
    ),
    "settlement of nothing": Malformed(
        _header(settles_entry_id=UNKNOWN), ("23503", "journal_entry_settles"), ("23503", "journal_entry_settles")
    ),
}


@pytest.fixture
def attacked(books: Books) -> Books:
    """Books with a closed account, 5100."""
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


INSERT_LINES = "INSERT INTO journal_line SELECT (jsonb_populate_record(NULL::journal_line, l)).* FROM jsonb_array_elements(%s) l"


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
    with nothing_changes(books), refused("HP002", "journal_line_sealed"), session("owner", books.tenant_id) as connection:
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
    with nothing_changes(books), refused("HP002", "journal_entry_whole"), session("owner", books.tenant_id) as connection:
        draft.insert(connection)
        connection.execute(INSERT_LINES, (json.dumps(lines),))


@pytest.mark.parametrize("column", ["created_xid", "line_count"])
def test_a_copied_row_meets_the_walls(books: Books, column: str) -> None:
    """COPY is an INSERT to the walls: a header alone is refused."""
    draft = Draft(books)
    row = [books.tenant_id, draft.header["id"], "manual_adjustment", "2025-03-01", str(uuid.uuid4()), 2, "{}"]
    with nothing_changes(books), refused("HP002", "journal_entry_whole"), session("owner", books.tenant_id) as connection:
        columns = "tenant_id, id, event_type, effective_at, correlation_id, line_count, document, content_hash, posted_at"
        ((now,),) = connection.execute("SELECT clock_timestamp()").fetchall()
        with connection.cursor().copy(f"COPY journal_entry ({columns}) FROM STDIN") as copy:
            copy.write_row([*row, hashlib.sha256(b"{}").digest(), now])


# --- Row security must not blind a wall ------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["owner", "superuser"])
def test_a_header_that_row_security_hides_does_not_open_the_seal(books: Books, other_books: Books, role: str) -> None:
    """The tenant is switched while the lines are being inserted, so that the wall at the end of the statement cannot see
    the header. A comparison with `<>` becomes NULL there, which refuses nothing; IS DISTINCT FROM refuses.

    The lines do not balance: they are what such a hole would let in.
    """
    draft = Draft(books)
    draft.lines[1]["amount_minor"] = 1
    header = draft.header | {"document": "{}", "lines": json.dumps(draft.lines)}
    header |= {"content_hash": hashlib.sha256(b"{}").digest(), "line_count": len(draft.lines), "other": other_books.tenant_id}
    # The switch happens with the last row, after row security has let it in: RETURNING is computed behind WITH CHECK.
    statement = INSERT_ENTRY + " RETURNING set_config('hpts.tenant_id', %(other)s, true)"
    expected = ("HP002", "journal_line_sealed") if role == "owner" else ("HP003", "journal_line_balanced")
    with (
        nothing_changes(books, other_books),
        refused(*(expected if role == "superuser" else ("42501", None))),
        session(role, books.tenant_id) as connection,
    ):
        connection.execute(statement, header)
