"""Nothing in the books changes: every way to change a row is refused to every role, and to a superuser with triggers off.

The application and the reader have no grant (42501). The owner has every grant, and meets triggers that fire ALWAYS
(HP001), as does a superuser under `session_replication_role = replica`. What the owner and a superuser can do is DDL:
nobody serves as one of them (hpts/walls.py).

Left out, because there is nothing here to try: partitions (no table has any), dblink (PostgreSQL is built without
contrib), materialised views (there are none, test_tenancy.py looks), large objects (the books have none; only reading a
file into one is tried), the admin's actions (they are Django's and are tried where the admin is).
"""

from __future__ import annotations

import io
import json
import os
import uuid
from collections.abc import Callable
from datetime import date
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import DatabaseError, connections
from django.db.migrations.exceptions import IrreversibleError
from psycopg import sql

from hpts.tenancy import tenant_transaction
from ledger import operations
from ledger.models import Balance, GLAccount, JournalEntry, JournalLine, Loan
from ledger.money import MAX_MINOR
from ledger.notices import BREAK_OPENED, notify
from ledger.serializers import NewAccrualPause
from tests.conftest import sealed
from tests.ledger.conftest import URLS, Books, contents, nothing_changes, onlooker, refused, scratch_database, session

# Rows of the first never change; rows of the second move and never go, and what identifies them stays.
APPEND_ONLY = [
    "program",
    "program_terms",
    "loan_terms",
    "journal_entry",
    "journal_line",
    "loan_accrual",
    "accrual_pause",
    "idempotency_key",
    "outbox_message",
    "period_close",
    "journal_seal",
    "notice",
]
MOVING = {
    "tenant": set(),
    "gl_account": {"tenant_id", "code", "account_type", "normal_side", "per_loan", "role", "created_at"},
    "loan": {
        "tenant_id",
        "id",
        "borrower_id",
        "program_id",
        "currency",
        "opened_on",
        "principal_limit_minor",
        "created_at",
    },
    "loan_balance": {"tenant_id", "loan_id", "account_code", "layer", "currency", "floored"},
    "accrual_run": {"tenant_id", "id", "program_id", "accrual_date", "requested_at"},
    "accrual_chunk": {"tenant_id", "run_id", "number", "after_id"},
}
# What the application may change of rows that move.
ITS_OWN = {
    "gl_account": {"closed_at", "closure_reason"},
    "accrual_run": {"actor", "correlation_id", "started_at", "finished_at"},
    "accrual_chunk": {"through_id", "done_at"},
}
TABLES = [*APPEND_ONLY, *MOVING]

# Who tries, whether ordinary triggers are off, and how it is refused.
ROLES = {
    "app": ("app", False, "42501"),
    "readonly": ("readonly", False, "42501"),
    "owner": ("owner", False, "HP001"),
    "superuser with triggers off": ("superuser", True, "HP001"),
}


@pytest.fixture(scope="module")
def full() -> Books:
    """Books with a row in every table of the ledger. Nothing below changes them, so one is enough."""
    from tests.ledger.conftest import open_books

    books = open_books(loans=2)
    with tenant_transaction(books.tenant_id) as cursor:
        books._open_loan(cursor, annual_rate_bps=700)
    lent = books.post(books.disbursement(books.loan, 100_000, "2025-01-10"))
    books.post(books.accrual("2025-02-10", (books.loan, 100_000, 500)))
    books.once(f"key-{uuid.uuid4()}", books.payment(books.loan, 700, "2025-02-12", ref="r"))
    books.post(books.settlement(lent.journal_entry_id, "2025-02-13"))
    program_id = books.open_program(annual_rate_bps=100_000)
    huge = books.open_loan(program_id=program_id)
    books.post(books.disbursement(huge, MAX_MINOR, "2025-01-10"))
    books.run(operations.pause_accrual, NewAccrualPause(from_date=date(2025, 3, 1)), loan_id=books.loan.loan_id)
    assert books.accrue_by_engine("2025-12-31", program_id)["exception_count"] == 1
    books.close("2025-01-31")
    sealed(books.tenant_id)
    with tenant_transaction(books.tenant_id) as cursor:
        notify(cursor, BREAK_OPENED, {str(uuid.uuid4()): {}})
    rows = contents(books.tenant_id)
    assert all(rows[table][0] > 0 for table in TABLES)
    return books


def columns_of(table: str) -> list[str]:
    rows = onlooker().execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped", (table,)
    )
    return [name for (name,) in rows.fetchall()]


def attempt(books: Books, who: str, statements: list[str]) -> None:
    """Each statement, in a transaction of its own, is refused to this role in its way, and no row of the tenant changes."""
    role, replica, sqlstate = ROLES[who]
    with nothing_changes(books):
        for statement in statements:
            with refused(sqlstate), session(role, books.tenant_id, replica=replica) as connection:
                connection.execute(statement)


# --- Rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ROLES)
@pytest.mark.parametrize("table", TABLES)
def test_no_column_of_a_row_is_updated_not_even_to_itself(full: Books, table: str, who: str) -> None:
    """Of tables whose rows move: the columns that identify the row."""
    columns = columns_of(table)
    if table in MOVING and who not in ("app", "readonly"):
        columns = [column for column in columns if column in MOVING[table]]
    if who == "app":
        columns = [column for column in columns if column not in ITS_OWN.get(table, ())]
    attempt(full, who, [f"UPDATE {table} SET {column} = {column}" for column in columns])


@pytest.mark.parametrize("who", ROLES)
@pytest.mark.parametrize("table", TABLES)
def test_no_row_goes(full: Books, table: str, who: str) -> None:
    """Also none of a row that is not there: the refusal does not depend on what a condition finds."""
    statements = [
        f"DELETE FROM {table}",
        f"DELETE FROM {table} WHERE false",
        f"WITH gone AS (DELETE FROM {table} RETURNING 1) SELECT count(*) FROM gone",
        f"TRUNCATE {table} CASCADE",
        f"TRUNCATE {table} RESTART IDENTITY CASCADE",
        f"TRUNCATE ONLY {table} CASCADE",
        f"MERGE INTO {table} t USING (SELECT 1) AS one ON true WHEN MATCHED THEN DELETE",
    ]
    attempt(full, who, statements)


@pytest.mark.parametrize("who", ROLES)
@pytest.mark.parametrize("table", APPEND_ONLY)
def test_no_row_is_changed_on_the_way_of_an_insert_or_a_merge(full: Books, table: str, who: str) -> None:
    key = {
        "program": "tenant_id, id",
        "program_terms": "tenant_id, program_id, id",
        "loan_terms": "tenant_id, loan_id, id",
        "journal_entry": "tenant_id, id",
        "journal_line": "tenant_id, entry_id, sequence",
        "loan_accrual": "tenant_id, loan_id, accrual_date, revision",
        "accrual_pause": "tenant_id, loan_id, id",
        "idempotency_key": "tenant_id, key",
        "outbox_message": "tenant_id, created_xid, entry_id",
        "period_close": "tenant_id, through_date",
        "journal_seal": "tenant_id, number",
        "notice": "tenant_id, id",
    }[table]
    statements = [
        f"INSERT INTO {table} SELECT * FROM {table} ON CONFLICT ({key}) DO UPDATE SET tenant_id = excluded.tenant_id",
        f"MERGE INTO {table} t USING (SELECT 1) AS one ON true WHEN MATCHED THEN UPDATE SET tenant_id = t.tenant_id",
        f"WITH moved AS (UPDATE {table} SET tenant_id = tenant_id RETURNING 1) SELECT count(*) FROM moved",
    ]
    attempt(full, who, statements)


def test_a_truncated_parent_does_not_take_its_children_along(full: Books) -> None:
    """TRUNCATE of a table names every table that refers to it; each has a trigger of its own."""
    for who in ("owner", "superuser with triggers off"):
        attempt(full, who, ["TRUNCATE tenant CASCADE", "TRUNCATE loan, journal_line, journal_entry CASCADE"])


def test_a_view_is_no_way_round(full: Books) -> None:
    """Even one that the owner makes: the triggers are the table's."""
    with nothing_changes(full), refused("HP001"), session("owner", full.tenant_id) as connection:
        connection.execute("CREATE VIEW way_round WITH (security_invoker) AS SELECT * FROM journal_line")
        connection.execute("UPDATE way_round SET amount_minor = amount_minor + 1")
    for role in ("app", "readonly"):
        with nothing_changes(full), refused("42501"), session(role, full.tenant_id) as connection:
            connection.execute("CREATE VIEW way_round AS SELECT * FROM journal_line")


def test_a_cursor_is_no_way_round(full: Books) -> None:
    for role, sqlstate in {"app": "42501", "readonly": "42501", "owner": "HP001"}.items():
        with nothing_changes(full), refused(sqlstate), session(role, full.tenant_id) as connection:
            connection.execute("DECLARE here CURSOR FOR SELECT * FROM journal_line")
            connection.execute("MOVE here")
            connection.execute("UPDATE journal_line SET amount_minor = 1 WHERE CURRENT OF here")


@pytest.mark.parametrize("strength", ["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"])
@pytest.mark.parametrize("role", ["app", "readonly"])
def test_no_row_of_the_journal_is_locked_from_outside(full: Books, role: str, strength: str) -> None:
    """A lock that the application could take and keep would stop the write path."""
    for table in ("journal_entry", "journal_line", "loan", "loan_balance", "idempotency_key"):
        with refused("42501"), session(role, full.tenant_id) as connection:
            connection.execute(f"SELECT 1 FROM {table} FOR {strength}")
    for mode in ("ROW EXCLUSIVE", "ACCESS EXCLUSIVE"):
        with refused("42501"), session(role, full.tenant_id) as connection:
            connection.execute(f"LOCK TABLE journal_entry IN {mode} MODE")


def test_a_deferred_constraint_is_no_way_round(full: Books) -> None:
    """Nothing waits for the end of the transaction, so SET CONSTRAINTS has nothing to put off."""
    rows = onlooker().execute(
        "SELECT conname FROM pg_constraint WHERE condeferrable AND connamespace = 'public'::regnamespace"
    )
    ours = [name for (name,) in rows.fetchall() if name.startswith(tuple(TABLES))]
    assert ours == []
    with nothing_changes(full), refused("HP001"), session("owner", full.tenant_id) as connection:
        connection.execute("SET CONSTRAINTS ALL DEFERRED")
        connection.execute("DELETE FROM journal_line")


# --- Django ----------------------------------------------------------------------------------------------------------


def _save(entry: JournalEntry) -> None:
    entry.event_type = "reversal"
    entry.save()


def _bulk_update(line: JournalLine) -> None:
    line.amount_minor += 1
    JournalLine.objects.bulk_update([line], ["amount_minor"])


def _entry() -> JournalEntry:
    return JournalEntry.objects.filter(event_type="payment_received").get()


def _line() -> JournalLine:
    return JournalLine.objects.filter(entry_id=_entry().id, sequence=1).get()


BY_THE_ORM: dict[str, Callable[[], object]] = {
    "save": lambda: _save(_entry()),
    "save of one field": lambda: _entry().save(update_fields=["document"]),
    "delete": lambda: _entry().delete(),
    "delete of a line": lambda: _line().delete(),
    "update": lambda: JournalEntry.objects.update(document="{}"),
    "update of nothing": lambda: JournalLine.objects.filter(sequence=-1).update(amount_minor=1),
    "bulk_update": lambda: _bulk_update(_line()),
    "bulk_create": lambda: JournalLine.objects.bulk_create([_line()], ignore_conflicts=True),
    "update_or_create": lambda: JournalEntry.objects.update_or_create(
        tenant_id=_entry().tenant_id, id=_entry().id, defaults={"document": "{}"}
    ),
    "raw delete": lambda: JournalEntry.objects.all()._raw_delete("default"),
    "raw": lambda: list(JournalEntry.objects.raw("DELETE FROM journal_entry RETURNING id")),
    "select_for_update": lambda: list(JournalEntry.objects.select_for_update()),
    "loan": lambda: Loan.objects.update(version=0),
    "balance": lambda: Balance.objects.update(balance_minor=0),
    "account": lambda: GLAccount.objects.update(per_loan=False),
    "loan's delete": lambda: Loan.objects.all().delete(),
}


@pytest.mark.parametrize("way", BY_THE_ORM)
def test_the_orm_changes_nothing(full: Books, way: str) -> None:
    with nothing_changes(full), pytest.raises(DatabaseError) as caught, tenant_transaction(full.tenant_id):
        BY_THE_ORM[way]()
    assert getattr(caught.value.__cause__, "sqlstate", None) == "42501", caught.value


def test_a_fixture_is_not_loaded_over_the_journal(full: Books, tmp_path: Any) -> None:
    ((entry_id,),) = full.rows("SELECT id::text FROM journal_entry LIMIT 1")
    row = {"tenant_id": full.tenant_id, "event_type": "reversal", "effective_at": "2025-01-01", "document": "{}"}
    row |= {"posted_at": "2025-01-01T00:00:00Z", "correlation_id": entry_id, "line_count": 2, "content_hash": "AA=="}
    fixture = tmp_path / "entry.json"
    fixture.write_text(json.dumps([{"model": "ledger.journalentry", "pk": entry_id, "fields": row}]))
    with nothing_changes(full), pytest.raises(DatabaseError):
        call_command("loaddata", str(fixture), verbosity=0)


def test_flush_is_refused(full: Books) -> None:
    """To the application by its grants; the owner's meets the triggers (and would be the end of every tenant)."""
    statement = io.StringIO()
    call_command("sqlflush", stdout=statement)
    assert "journal_entry" in statement.getvalue()
    with nothing_changes(full):
        for alias in ("default", "owner"):
            with pytest.raises(Exception, match="couldn't be flushed"):
                call_command("flush", database=alias, interactive=False, verbosity=0)


def test_the_application_cannot_migrate_backwards(full: Books) -> None:
    with nothing_changes(full), pytest.raises((DatabaseError, IrreversibleError)):
        call_command("migrate", "ledger", "0001", database="default", verbosity=0)


def test_nobody_migrates_the_walls_away() -> None:
    """Not even the owner. What later migrations made may go; in a database of its own, therefore."""
    with scratch_database():
        before = _walls()
        with pytest.raises(IrreversibleError):
            call_command("migrate", "ledger", "0001", database="owner", verbosity=0)
        assert _walls() == before


def _walls() -> list[tuple[Any, ...]]:
    triggers = "SELECT tgrelid::regclass::text, tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2"
    with session("superuser") as connection:
        return connection.execute(triggers).fetchall()


# --- Definitions -----------------------------------------------------------------------------------------------------

DEFINITIONS = [
    "ALTER TABLE {table} DISABLE TRIGGER ALL",
    "ALTER TABLE {table} DISABLE TRIGGER USER",
    "ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY",
    "ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE {table} DROP COLUMN tenant_id CASCADE",
    "ALTER TABLE {table} ALTER COLUMN tenant_id TYPE text USING 'changed'",
    "ALTER TABLE {table} ADD COLUMN more integer DEFAULT 1",
    "ALTER TABLE {table} SET SCHEMA pg_catalog",
    "ALTER TABLE {table} RENAME TO other",
    "ALTER TABLE {table} OWNER TO CURRENT_USER",
    "ALTER TABLE {table} INHERIT loan",
    "ALTER TABLE {table} REPLICA IDENTITY FULL",
    "DROP TABLE {table} CASCADE",
    "CREATE TRIGGER mine BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_change()",
    "CREATE RULE mine AS ON INSERT TO {table} DO INSTEAD NOTHING",
    "CREATE POLICY mine ON {table} USING (true)",
    "CREATE INDEX mine ON {table} (tenant_id)",
    "CREATE TABLE mine (LIKE {table})",
    "CREATE TABLE mine () INHERITS ({table})",
    "CREATE TABLE mine AS SELECT * FROM {table}",
    "CLUSTER {table} USING {table}_pkey",
    "REINDEX TABLE {table}",
    "COMMENT ON TABLE {table} IS 'mine'",
    "COPY {table} TO PROGRAM 'cat'",
    "COPY {table} FROM PROGRAM 'true'",
]
# Whatever a role might become, switch off, or reach outside of the database.
ESCAPES = [
    "SET session_replication_role = replica",
    "SET ROLE hpts_owner",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION hpts_owner",
    "GRANT hpts_owner TO CURRENT_USER",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "ALTER ROLE CURRENT_USER BYPASSRLS",
    "CREATE ROLE mine",
    "CREATE DATABASE mine",
    "CREATE SCHEMA mine",
    "CREATE TEMPORARY TABLE journal_line (tenant_id uuid)",
    "CREATE FUNCTION refuse_change(integer) RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "CREATE OR REPLACE FUNCTION journal_line_wall() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "ALTER FUNCTION record_posting SECURITY INVOKER",
    "DROP FUNCTION refuse_change CASCADE",
    "DROP SCHEMA public CASCADE",
    "DROP OWNED BY hpts_owner",
    "REASSIGN OWNED BY hpts_owner TO CURRENT_USER",
    "CREATE EVENT TRIGGER mine ON sql_drop EXECUTE FUNCTION refuse_change()",
    "CREATE PUBLICATION mine FOR ALL TABLES",
    "ALTER SYSTEM SET fsync = off",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT pg_read_binary_file('postgresql.conf')",
    "SELECT pg_ls_dir('.')",
    "SELECT lo_import('/etc/hostname')",
    "SELECT pg_reload_conf()",
    "DO LANGUAGE c 'x'",
]


def _refused_anywhere(statement: str, role: str) -> None:
    """Refused, whatever the code: no privilege, no such thing, or not in a place like this."""
    code = None
    with psycopg.connect(os.environ[URLS[role]], autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        try:
            connection.execute(statement)
        except psycopg.Error as error:
            code = error.sqlstate
    assert code in ("42501", "42809", "0LP01", "0A000", "42704"), f"{role}: {statement} ended in {code}"


def _definitions() -> list[tuple[Any, ...]]:
    """The schema as the catalogue has it: columns, triggers, policies, functions, rules, owners, grants."""
    query = """
        SELECT 'column', attrelid::regclass::text, attname || ' ' || atttypid::regtype || ' ' || attnotnull
        FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace AND attnum > 0
        UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname || ' ' || tgenabled::text FROM pg_trigger
        UNION ALL SELECT 'policy', tablename::text, policyname || ' ' || qual FROM pg_policies
        UNION ALL SELECT 'table', relname, relowner::regrole || ' ' || coalesce(relacl::text, '') || relrowsecurity
                         || relforcerowsecurity FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT 'function', oid::regprocedure::text, prosrc || proowner::regrole || coalesce(proacl::text, '')
                  FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT 'rule', ev_class::regclass::text, rulename FROM pg_rewrite
        ORDER BY 1, 2, 3"""
    return onlooker().execute(query).fetchall()


@pytest.mark.parametrize("role", ["app", "readonly"])
def test_no_definition_changes(full: Books, role: str) -> None:
    before = _definitions()
    with nothing_changes(full):
        for table in ("journal_entry", "journal_line", "loan_balance", "idempotency_key", "outbox_message"):
            for statement in DEFINITIONS:
                _refused_anywhere(statement.format(table=table), role)
    assert _definitions() == before


@pytest.mark.parametrize("role", ["app", "readonly"])
def test_nobody_becomes_somebody_else_or_reaches_out(full: Books, role: str) -> None:
    before = _definitions()
    with nothing_changes(full):
        for statement in ESCAPES:
            _refused_anywhere(statement, role)
    assert _definitions() == before


def test_the_owner_is_no_superuser_either() -> None:
    for statement in (
        "SET session_replication_role = replica",
        "SET ROLE postgres",
        "ALTER ROLE hpts_owner BYPASSRLS",
        "ALTER SYSTEM SET fsync = off",
    ):
        _refused_anywhere(statement, "owner")


def test_row_security_turned_off_shows_nothing(full: Books) -> None:
    """The setting makes a query fail instead of filtering it; it never shows more."""
    for role in ("app", "readonly", "owner"):
        with refused("42501"), session(role, full.tenant_id) as connection:
            connection.execute("SET row_security = off")
            connection.execute("SELECT * FROM journal_line")


def test_every_wall_fires_always() -> None:
    """Not only when `session_replication_role` is what it ought to be."""
    rows = onlooker().execute(
        """SELECT tgrelid::regclass::text, tgname, tgenabled::text FROM pg_trigger
           WHERE NOT tgisinternal AND tgrelid = ANY (%s::regclass[])""",
        (TABLES,),
    )
    found = rows.fetchall()
    assert {enabled for _, _, enabled in found} == {"A"}
    for table in TABLES:
        assert any(owner == table for owner, _, _ in found), f"{table} has no trigger"


def test_what_runs_as_the_owner_is_closed_to_strangers() -> None:
    """Functions with the owner's rights have a fixed search path, and PUBLIC may not execute them."""
    rows = onlooker().execute(
        """SELECT proname, proacl::text, (SELECT c FROM unnest(proconfig) c WHERE c LIKE 'search_path=%')
           FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace ORDER BY 1"""
    )
    found = rows.fetchall()
    assert {"open_posting", "record_posting"} <= {name for name, _, _ in found}
    for name, grants, path in found:
        assert path == "search_path=pg_catalog, pg_temp", name
        assert grants is not None, f"{name} is open to PUBLIC"
        assert not any(grant.startswith("=") for grant in grants.strip("{}").split(",")), f"{name} is open to PUBLIC"


def test_a_temporary_table_does_not_stand_in_front_of_the_journal(books: Books) -> None:
    """The owner's functions name the schema of all that they touch. The application may not make temporary tables; should
    it ever, its own `journal_line` must not be the one that is written."""
    with session("superuser") as connection:
        connection.execute(
            sql.SQL("GRANT TEMPORARY ON DATABASE {} TO hpts_app").format(sql.Identifier(connection.info.dbname))
        )
    try:
        connections["default"].close()
        with connections["default"].cursor() as cursor:
            for table in ("journal_entry", "journal_line", "loan", "loan_balance", "gl_account", "idempotency_key"):
                cursor.execute(f"CREATE TEMPORARY TABLE {table} (LIKE public.{table})")
        before = contents(books.tenant_id)
        posted = books.post(books.payment(books.loan, 100, "2025-03-01"))
        after = contents(books.tenant_id)
        assert after["journal_entry"][0] == before["journal_entry"][0] + 1
        assert after["journal_line"][0] == before["journal_line"][0] + len(posted.lines)
    finally:
        connections["default"].close()
        with session("superuser") as connection:
            connection.execute(
                sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM hpts_app").format(sql.Identifier(connection.info.dbname))
            )
