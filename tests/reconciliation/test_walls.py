"""The walls of reconciliation, attacked by raw SQL as each role; each guard is torn down once, and then its attack succeeds."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest import Lender, posted
from tests.ledger.conftest import refused, scratch_database, session
from tests.reconciliation.conftest import Bank

TABLES = (
    "bank_account",
    "bank_statement",
    "bank_statement_answer",
    "bank_statement_line",
    "bank_match",
    "bank_match_statement_line",
    "bank_match_journal_line",
    "reconciliation_break",
    "reconciliation_resolution",
    "reconciliation_run",
)
APPEND_ONLY = TABLES[:-1]


@pytest.fixture
def full(bank: Bank) -> Bank:
    """A row in every table: a match, a break, a resolution, a run."""
    bank.has(500, "2026-02-03", "A")
    bank.has(700, "2026-02-05", "GHOST")
    bank.imports("2026-02-01", "2026-02-28", ("2026-02-03", "5.00", "A"), ("2026-02-10", "6.00", "B"))
    posted(bank.resolve(bank.the("missing_at_bank"), "explain"))
    assert bank.api.post("/v1/reconciliation/runs", {}).status_code == 202
    return bank


def ids(bank: Bank) -> dict[str, object]:
    ((statement,),) = bank.rows("SELECT id FROM bank_statement")
    ((match,),) = bank.rows("SELECT id FROM bank_match")
    ((found,),) = bank.rows("SELECT id FROM reconciliation_break WHERE kind = 'missing_in_ledger'")
    ((entry, sequence),) = bank.rows("SELECT entry_id, sequence FROM reconciliation_break WHERE entry_id IS NOT NULL")
    return {
        "tenant": bank.lender.tenant_id,
        "statement": statement,
        "match": match,
        "found": found,
        "entry": entry,
        "sequence": sequence,
        "new": uuid.uuid4(),
    }


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize("role", ["owner", "superuser"])
def test_nothing_changes_or_goes(full: Bank, role: str, table: str) -> None:
    for attack in (f"UPDATE {table} SET tenant_id = tenant_id", f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
        with refused("HP001"), session(role, full.lender.tenant_id, replica=role == "superuser") as connection:
            connection.execute(attack)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("role", ["app", "readonly"])
def test_the_application_may_not_even_try(full: Bank, role: str, table: str) -> None:
    for attack in (f"UPDATE {table} SET tenant_id = tenant_id", f"DELETE FROM {table}", f"TRUNCATE {table}"):
        with refused("42501"), session(role, full.lender.tenant_id) as connection:
            connection.execute(attack)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("role", ["app", "readonly", "owner"])
def test_a_tenant_sees_its_own_rows_alone(full: Bank, zenith: Lender, role: str, table: str) -> None:
    with session(role, full.lender.tenant_id) as connection:
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() != (0,)
    with session(role, zenith.tenant_id) as connection:
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    with session(role) as connection:
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


@pytest.mark.parametrize("table", TABLES)
def test_a_tenant_writes_its_own_rows_alone(full: Bank, zenith: Lender, table: str) -> None:
    with session("app", full.lender.tenant_id) as connection:
        columns = [
            name
            for (name,) in connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0",
                (table,),
            )
        ]
        row = connection.execute(f"SELECT {', '.join(columns)} FROM {table} LIMIT 1").fetchone()
        assert row is not None
    values = [zenith.tenant_id if name == "tenant_id" else value for name, value in zip(columns, row, strict=True)]
    places = ", ".join(["%s"] * len(values))
    with refused("42501"), session("app", full.lender.tenant_id) as connection:
        connection.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", values)


LINE = """INSERT INTO bank_statement_line (tenant_id, statement_id, number, value_date, amount_minor)
          VALUES (%(tenant)s, {statement}, {number}, '2026-02-03', {amount})"""
STATEMENT = """INSERT INTO bank_statement (tenant_id, id, bank_account_ref, format, file_hash, from_date, to_date,
                   opening_balance_minor, closing_balance_minor, line_count, actor)
               VALUES (%(tenant)s, %(new)s, 'operating', 'csv', '\\x00', '2026-02-01', '2026-02-28', 0, {closing}, {lines},
                   'x')"""
CLAIM = """INSERT INTO bank_match_journal_line
               (tenant_id, bank_account_ref, match_id, entry_id, sequence, effective_at, counted_on, amount_minor)
           VALUES (%(tenant)s, 'operating', {match}, %(entry)s, %(sequence)s, '2026-02-05', '2026-02-28', {amount})"""
CLAIM_BANK = """INSERT INTO bank_match_statement_line (tenant_id, match_id, statement_id, number)
                VALUES (%(tenant)s, {match}, %(statement)s, {number})"""
MATCH = """INSERT INTO bank_match (tenant_id, id, bank_account_ref, rule, counted_on, actor)
           VALUES (%(tenant)s, %(new)s, 'operating', 'decision', '2026-02-28', 'x')"""
NEW = {"match": "%(new)s", "statement": "%(new)s"}

# Name -> statements, SQLSTATE, constraint.
ATTACKS: dict[str, tuple[list[str], str, str]] = {
    "a statement that does not add up": (
        [LINE.format(**NEW, number=1, amount=100), STATEMENT.format(closing=101, lines=1)], "HP011", "bank_statement_adds_up"),
    "a statement with a line less": (
        [LINE.format(**NEW, number=1, amount=100), STATEMENT.format(closing=100, lines=2)], "HP011", "bank_statement_adds_up"),
    "a statement whose lines skip a number": (
        [LINE.format(**NEW, number=2, amount=100), STATEMENT.format(closing=100, lines=1)], "HP011", "bank_statement_adds_up"),
    "a line for an old statement": (
        [LINE.format(statement="%(statement)s", number=3, amount=1)], "HP011", "bank_statement_line_sealed"),
    "a line without a statement": (
        [LINE.format(**NEW, number=1, amount=1)], "23503", "bank_statement_line_statement"),
    "a line of nothing": ([LINE.format(**NEW, number=1, amount=0)], "23514", "bank_statement_line_amount"),
    "a match of unequal sides": (
        [CLAIM.format(**NEW, amount=700), CLAIM_BANK.format(**NEW, number=2), MATCH], "HP012", "bank_match_balances"),
    "a match that lies about the books": (
        [CLAIM.format(**NEW, amount=600), CLAIM_BANK.format(**NEW, number=2), MATCH], "HP012", "bank_match_balances"),
    "a match of one line": ([CLAIM.format(**NEW, amount=0), MATCH], "HP012", "bank_match_balances"),
    "a match of nothing": ([MATCH], "HP012", "bank_match_balances"),
    "a line of the bank matched twice": (
        [CLAIM_BANK.format(**NEW, number=1)], "23505", "bank_match_statement_line_pkey"),
    "a line for an old match": ([CLAIM_BANK.format(match="%(match)s", number=2)], "HP012", "bank_match_sealed"),
    "a line of the books for an old match": ([CLAIM.format(match="%(match)s", amount=700)], "HP012", "bank_match_sealed"),
    "a claim without a match": ([CLAIM_BANK.format(**NEW, number=2)], "23503", "bank_match_statement_line_match"),
    "a resolution without a reason": (
        ["""INSERT INTO reconciliation_resolution (tenant_id, break_id, action, reason, actor)
            VALUES (%(tenant)s, %(found)s, 'explain', '', 'x')"""], "23514", "reconciliation_resolution_says_why"),
    "an adjustment without an entry": (
        ["""INSERT INTO reconciliation_resolution (tenant_id, break_id, action, reason, actor)
            VALUES (%(tenant)s, %(found)s, 'adjust', 'x', 'x')"""], "23514", "reconciliation_resolution_adjusts"),
    "a second resolution": (
        ["""INSERT INTO reconciliation_resolution (tenant_id, break_id, action, reason, actor)
            SELECT tenant_id, break_id, 'explain', 'x', 'x' FROM reconciliation_resolution"""],
        "23505", "reconciliation_resolution_pkey"),
    "a second run of a night": (
        ["""INSERT INTO reconciliation_run (tenant_id, id, as_of_date, is_nightly, actor)
            SELECT %(tenant)s, gen_random_uuid(), '2026-02-28', true, 'x' FROM generate_series(1, 2)"""],
        "23505", "reconciliation_run_one_a_night"),
    "a run that is finished twice": (
        ["UPDATE reconciliation_run SET state = 'complete', started_at = now(), finished_at = now()",
         "UPDATE reconciliation_run SET detail = 'other'"], "HP010", "reconciliation_run_once"),
}  # fmt: skip


def attack(bank: Bank, name: str) -> None:
    values = ids(bank)
    with session("app", bank.lender.tenant_id) as connection:
        for statement in ATTACKS[name][0]:
            connection.execute(statement, values)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_application_cannot_write_what_is_not_true(full: Bank, name: str) -> None:
    _, sqlstate, constraint = ATTACKS[name]
    with refused(sqlstate, constraint):
        attack(full, name)


def test_what_a_match_claims_is_the_bank_accounts_own(full: Bank) -> None:
    """A line on another GL account, of the same amount as the bank's."""
    other = full.has(600, "2026-02-10", account="1010")
    values = ids(full) | {"entry": other, "sequence": 1}
    with refused("HP012", "bank_match_balances"), session("app", full.lender.tenant_id) as connection:
        connection.execute(CLAIM.format(**NEW, amount=600).replace("2026-02-05", "2026-02-10"), values)
        connection.execute(CLAIM_BANK.format(**NEW, number=2), values)
        connection.execute(MATCH, values)


# --- Each guard, removed ---------------------------------------------------------------------------------------------

GUARDS = {
    "bank_statement": ("bank_statement_wall", "a statement that does not add up"),
    "bank_statement_line": ("bank_statement_line_wall", "a line for an old statement"),
    "bank_match": ("bank_match_wall", "a match of unequal sides"),
    "bank_match_statement_line": ("bank_match_statement_line_wall", "a line for an old match"),
    "bank_match_journal_line": ("bank_match_journal_line_wall", "a line of the books for an old match"),
    "reconciliation_run": ("reconciliation_run_wall", "a run that is finished twice"),
}


@pytest.fixture
def scratch() -> Iterator[None]:
    with scratch_database():
        yield


def test_without_its_guard_each_attack_succeeds(scratch: None, make_lender: object) -> None:
    lender: Lender = make_lender("Scratch")  # type: ignore[operator]
    bank = Bank(lender)
    bank.has(500, "2026-02-03", "A")
    bank.has(700, "2026-02-05", "GHOST")
    bank.imports("2026-02-01", "2026-02-28", ("2026-02-03", "5.00", "A"), ("2026-02-10", "6.00", "B"))
    assert bank.api.post("/v1/reconciliation/runs", {}).status_code == 202
    for table, (guard, name) in GUARDS.items():
        with session("owner") as connection:
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER {guard}")
        values = ids(bank)
        connection = psycopg.connect(_app_url())
        try:
            connection.execute("SELECT set_config('hpts.tenant_id', %s, true)", (lender.tenant_id,))
            for statement in ATTACKS[name][0]:
                connection.execute(statement, values)
            connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        finally:
            connection.rollback()
            connection.close()


def _app_url() -> str:
    import os

    return os.environ["DATABASE_URL"]
