"""A tenant sees and touches its own rows and no others: what the catalogue says of every table, and what happens.

Two walls that do not lean on each other: row security, and `tenant_id` in every statement. Each is tried with the other
one away.
"""

from __future__ import annotations

import contextlib
import inspect
import uuid
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from django.apps import apps
from django.db import connections, transaction
from django.db.transaction import TransactionManagementError
from django.db.utils import DataError, OperationalError, ProgrammingError

from hpts.audit import Caller
from hpts.pipeline import Statement
from hpts.tenancy import TenantOwned, current_tenant, opened_transaction, tenant_transaction
from ledger import proposals, queries
from ledger.proposals import Proposed
from tests.conftest import line, sealed
from tests.ledger.conftest import (
    Books,
    contents,
    new_key,
    nothing_changes,
    onlooker,
    open_books,
    race,
    refused,
    session,
    tenant_tables,
)
from tests.ledger.test_immutability import ITS_OWN

# The path of a request: authentication reads clients and people before any tenant is known.
NOT_BEHIND_ROW_SECURITY = {"hpts_apiclient", "hpts_apiclient_people", "hpts_staff"}


def catalogue(query: str, *parameters: object) -> list[tuple[Any, ...]]:
    return onlooker().execute(query, parameters).fetchall()


# --- What the catalogue says -----------------------------------------------------------------------------------------


def test_the_tables_of_tenants_are_known() -> None:
    """A new table with a tenant_id comes under every test here by itself; a tenant's table without one would not."""
    rows = catalogue(
        """SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
           AND relname !~ '^(auth|axes|django|oauth2_provider|otp)_'"""
    )
    assert {name for (name,) in rows} == {*tenant_tables(), *NOT_BEHIND_ROW_SECURITY}
    assert "journal_line" in tenant_tables()


def test_every_tenant_table_has_row_security_that_binds_its_owner_too() -> None:
    rows = catalogue(
        "SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = ANY (%s::regclass[])",
        tenant_tables(),
    )
    assert sorted(rows) == [(table, True, True) for table in tenant_tables()]


def test_every_policy_names_the_tenant_of_the_transaction_for_reading_and_for_writing() -> None:
    """One policy per table, for every command and role. NULLIF, because a setting that was local once is '' afterwards.

    The one more is the owner's list of tenants, which every other role reads through a function that gives ids alone.
    """
    rows = catalogue("SELECT tablename, policyname, permissive, roles::text, cmd, qual, with_check FROM pg_policies")
    listed = ("tenant", "tenant_listed_by_owner", "PERMISSIVE", "{hpts_owner}", "SELECT", "true", None)
    found = {row[0]: row[2:] for row in rows if row != listed}
    assert len(found) == len([row for row in rows if row != listed]), (
        "a second permissive policy opens what the first closes"
    )
    setting = "(NULLIF(current_setting('hpts.tenant_id'::text, true), ''::text))::uuid"
    for table in tenant_tables():
        column = "id" if table == "tenant" else "tenant_id"
        condition = f"({column} = {setting})"
        assert found[table] == ("PERMISSIVE", "{public}", "ALL", condition, condition), table


def test_every_key_and_index_starts_with_the_tenant() -> None:
    """A unique key over all tenants would tell one of another's values."""
    rows = catalogue(
        """SELECT i.indexrelid::regclass::text, a.attname
           FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
           WHERE i.indrelid = ANY (%s::regclass[]) AND i.indrelid <> 'tenant'::regclass""",
        tenant_tables(),
    )
    assert len(rows) > len(tenant_tables())
    assert [row for row in rows if row[1] != "tenant_id"] == []


def test_every_tenant_table_has_a_primary_key() -> None:
    rows = catalogue(
        "SELECT conrelid::regclass::text FROM pg_constraint WHERE contype = 'p' AND conrelid = ANY (%s::regclass[])",
        tenant_tables(),
    )
    assert sorted(name for (name,) in rows) == tenant_tables()


def test_every_foreign_key_starts_with_the_tenant_and_does_nothing_by_itself() -> None:
    """Foreign keys look behind row security, and referential actions run as the table's owner: so NO ACTION, never
    CASCADE or SET NULL."""
    rows = catalogue(
        """SELECT c.conname, c.confrelid::regclass::text, a.attname, f.attname, c.confdeltype::text, c.confupdtype::text
           FROM pg_constraint c
           JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
           JOIN pg_attribute f ON f.attrelid = c.confrelid AND f.attnum = c.confkey[1]
           WHERE c.contype = 'f' AND (c.conrelid = ANY (%s::regclass[]) OR c.confrelid = ANY (%s::regclass[]))""",
        tenant_tables(),
        tenant_tables(),
    )
    assert {row[0] for row in rows} >= {"outbox_message_entry", "journal_entry_reverses", "loan_program"}
    for name, target, column, referred, on_delete, on_update in rows:
        expected = "id" if target == "tenant" else "tenant_id"
        assert (column, referred, on_delete, on_update) == ("tenant_id", expected, "a", "a"), name


def test_no_view_looks_with_its_owners_eyes() -> None:
    """A view without security_invoker reads as its owner; a materialised view has no row security at all."""
    rows = catalogue(
        """SELECT relname, relkind::text, coalesce(reloptions::text, '') FROM pg_class
           WHERE relnamespace = 'public'::regnamespace AND relkind IN ('v', 'm')"""
    )
    for name, kind, options in rows:
        assert (kind, "security_invoker=true" in options) == ("v", True), name


def test_the_roles_are_ordinary() -> None:
    """The application and the reader can become nobody, and own nothing."""
    rows = catalogue(
        """SELECT rolname, rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication,
                  EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid),
                  EXISTS (SELECT FROM pg_class c WHERE c.relowner = r.oid)
           FROM pg_roles r WHERE rolname IN ('hpts_app', 'hpts_readonly') ORDER BY 1"""
    )
    assert rows == [("hpts_app", False, False, False), ("hpts_readonly", False, False, False)]


def test_nobody_but_the_owner_changes_rows_of_the_journal() -> None:
    """Every grant on what the write path records, to anybody: reading."""
    rows = catalogue(
        """SELECT DISTINCT c.relname, acl.grantee::regrole::text, acl.privilege_type
           FROM pg_class c, aclexplode(c.relacl) acl
           WHERE c.relname IN ('journal_entry', 'journal_line', 'loan_balance', 'loan_accrual', 'idempotency_key')
             AND acl.grantee <> c.relowner"""
    )
    assert {privilege for _, _, privilege in rows} == {"SELECT"}
    assert {grantee for _, grantee, _ in rows} == {"hpts_app", "hpts_readonly"}
    columns = catalogue(
        """SELECT a.attrelid::regclass::text, a.attname FROM pg_attribute a, aclexplode(a.attacl) acl
           WHERE a.attrelid = ANY (%s::regclass[]) AND acl.privilege_type = 'UPDATE'""",
        tenant_tables(),
    )
    alerts = {name for table, name in columns if table == "reconciliation_alert"}
    assert alerts == {"due_at", "attempt", "mailed_at"}
    moving = {name for table, name in columns if table == "reconciliation_run"}
    assert moving.isdisjoint({"tenant_id", "id", "as_of_date", "is_nightly", "actor", "requested_at"})
    of_the_books = {each for each in columns if not each[0].startswith(("reconciliation_", "webhook_"))}
    # No books: what a run could not do, and certificates that end.
    work = {
        "accrual_exception": {"code", "detail"},
        "client_certificate": {"retired_at", "retired_reason"},
    }
    assert of_the_books == {(table, column) for table, own in (ITS_OWN | work).items() for column in own}


# --- Without a tenant ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["app", "readonly", "owner"])
def test_without_a_tenant_there_are_no_rows(books: Books, role: str) -> None:
    """The setting may be missing, or empty as it is after a transaction that had it."""
    books.once(new_key(), books.payment(books.loan, 1, "2025-03-01"))
    filled = {table for table, (count, _) in contents(books.tenant_id).items() if count}
    assert filled > {"journal_entry", "journal_line", "idempotency_key", "outbox_message"}
    for setting in (None, ""):
        with session(role, setting) as connection:
            for table in tenant_tables():
                ((count,),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
                # The owner alone lists tenants; see the policy of that name.
                assert count == 0 or (role, table) == ("owner", "tenant"), table


@pytest.mark.parametrize("role", ["app", "readonly"])
def test_a_setting_that_is_no_tenant_shows_nothing(books: Books, role: str) -> None:
    for setting in ("nobody", "' OR true --", books.tenant_id + "0"):
        with refused("22P02"), session(role, setting) as connection:
            connection.execute("SELECT count(*) FROM journal_line")
    with session(role, str(uuid.uuid4())) as connection:
        assert connection.execute("SELECT count(*) FROM journal_line").fetchall() == [(0,)]


def test_outside_of_a_transaction_the_orm_refuses_and_sql_sees_nothing(books: Books) -> None:
    for model in tenant_models():
        with pytest.raises(RuntimeError, match="only inside tenant_transaction"):
            model.objects.count()  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError):
        current_tenant()
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM journal_entry")
        assert cursor.fetchone() == (0,)


def tenant_models() -> list[type[TenantOwned]]:
    return [model for model in apps.get_models() if issubclass(model, TenantOwned)]


# --- tenant_transaction ----------------------------------------------------------------------------------------------


def test_a_tenant_transaction_does_not_nest_whichever_tenant_it_is(books: Books, other_books: Books) -> None:
    with tenant_transaction(books.tenant_id) as cursor:
        for tenant_id in (books.tenant_id, other_books.tenant_id):
            with pytest.raises(RuntimeError, match="does not nest"), tenant_transaction(tenant_id):
                pass
        assert current_tenant() == books.tenant_id
        cursor.execute("SELECT current_setting('hpts.tenant_id')")
        assert cursor.fetchone() == (books.tenant_id,)
        cursor.execute("SELECT DISTINCT tenant_id::text FROM journal_entry")
        assert cursor.fetchall() == [(books.tenant_id,)]


@pytest.mark.parametrize("ending", ["commit", "rollback", "error in the database", "error at the opening"])
def test_the_setting_is_gone_with_its_transaction(books: Books, ending: str) -> None:
    """On the connection, which stays open, and in Python."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        before = cursor.fetchone()
    if ending == "commit":
        with tenant_transaction(books.tenant_id) as cursor:
            cursor.execute("SELECT 1")
    elif ending == "rollback":
        with pytest.raises(ZeroDivisionError), tenant_transaction(books.tenant_id):
            raise ZeroDivisionError
    elif ending == "error in the database":
        with pytest.raises(ProgrammingError), tenant_transaction(books.tenant_id) as cursor:
            cursor.execute("SELECT nothing")
    else:
        opening = Statement("SELECT 1 / length($1 || '') - 1 / 0")
        with pytest.raises(DataError), opened_transaction(books.tenant_id, opening):
            pass
    with pytest.raises(RuntimeError):
        current_tenant()
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid(), coalesce(current_setting('hpts.tenant_id', true), '')")
        assert cursor.fetchone() == (*before, "")
        cursor.execute("SELECT count(*) FROM loan")
        assert cursor.fetchone() == (0,)


def test_a_transaction_that_has_failed_never_ends_as_if_it_had_not(books: Books) -> None:
    """PostgreSQL answers COMMIT with ROLLBACK then, and no error."""
    failing = pytest.raises(TransactionManagementError)
    with failing, tenant_transaction(books.tenant_id) as cursor, pytest.raises(ProgrammingError):
        cursor.execute("SELECT nothing")
    with tenant_transaction(books.tenant_id) as cursor:
        cursor.execute("SELECT 1")


def test_an_atomic_block_inside_is_a_savepoint(books: Books) -> None:
    with tenant_transaction(books.tenant_id) as cursor:
        cursor.execute("SELECT set_config('hpts.kept', 'yes', false)")
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            cursor.execute("SELECT set_config('hpts.kept', 'no', false)")
            raise ZeroDivisionError
    with tenant_transaction(books.tenant_id) as cursor:
        cursor.execute("SELECT current_setting('hpts.kept')")
        assert cursor.fetchone() == ("yes",)


def test_what_waits_for_the_commit_runs_after_it_or_never(books: Books) -> None:
    ran: list[str] = []
    with pytest.raises(ZeroDivisionError), tenant_transaction(books.tenant_id):
        transaction.on_commit(lambda: ran.append("never"))
        raise ZeroDivisionError
    with tenant_transaction(books.tenant_id):
        transaction.on_commit(lambda: ran.append("after"))
        assert ran == []
    assert ran == ["after"]


def test_inside_another_transaction_it_is_refused(books: Books) -> None:
    """Its COMMIT would be that one's."""
    with pytest.raises(RuntimeError, match="whole"), transaction.atomic(), tenant_transaction(books.tenant_id):
        pass


def test_a_connection_that_is_lost_inside_is_an_error_once(books: Books) -> None:
    for ending in ("at its end", "before"):
        with pytest.raises(OperationalError), tenant_transaction(books.tenant_id) as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (backend,) = cursor.fetchone()
            with session("superuser") as connection:
                connection.execute("SELECT pg_terminate_backend(%s, 10000)", (backend,))
            if ending == "before":
                cursor.execute("SELECT 1")
        with tenant_transaction(books.tenant_id) as cursor:
            cursor.execute("SELECT pg_backend_pid() <> %s", (backend,))
            assert cursor.fetchone() == (True,)


def test_two_tenants_take_turns_on_one_connection(books: Books, other_books: Books) -> None:
    """Neither ever sees a row of the other: not what was read before, not what was posted before."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        backend = cursor.fetchone()
    for turn in range(100):
        for own in (books, other_books):
            if turn % 10 == 0:
                own.post(own.payment(own.loan, 1, "2025-03-01"))
            with tenant_transaction(own.tenant_id) as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                assert cursor.fetchone() == backend
                for table in ("journal_entry", "journal_line", "loan", "loan_balance", "outbox_message"):
                    cursor.execute(f"SELECT array_agg(DISTINCT tenant_id::text) FROM {table}")
                    assert cursor.fetchone() == ([own.tenant_id],)


def test_each_thread_is_in_its_own_tenant(books: Books, other_books: Books) -> None:
    def read(own: Books) -> Callable[[], set[str]]:
        def run() -> set[str]:
            seen = set()
            for _ in range(50):
                with tenant_transaction(own.tenant_id) as cursor:
                    cursor.execute("SELECT DISTINCT tenant_id::text FROM journal_line")
                    seen |= {row[0] for row in cursor.fetchall()} | {current_tenant()}
            return seen

        return run

    turns = [books, other_books] * 4
    assert race(*(read(own) for own in turns)) == [{own.tenant_id} for own in turns]


# --- Each wall without the other -------------------------------------------------------------------------------------


def test_row_security_alone_shows_one_tenant(books: Books, other_books: Books) -> None:
    """Statements that name no tenant at all."""
    for own in (books, other_books):
        with session("app", own.tenant_id) as connection:
            for table in tenant_tables():
                ((seen,),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
                assert seen == contents(own.tenant_id)[table][0], table


def test_the_statements_alone_show_one_tenant(books: Books, other_books: Books) -> None:
    """Every question of ledger/queries.py, asked by a superuser, whom no row security binds: the answer is the same."""
    loan_id = books.loan.loan_id
    ours_and_theirs = [{"loan_id": of} for of in (loan_id, other_books.loan.loan_id)]
    ((entry_id,),) = books.rows("SELECT id::text FROM journal_entry ORDER BY posted_at LIMIT 1")
    for own in (books, other_books):
        own.close("2025-01-05")
        sealed(own.tenant_id)
    runs_of_both = [
        own.accrue_by_engine("2025-02-01", own.open_program())["accrual_run_id"] for own in (books, other_books)
    ]
    about = {
        "effective_at": "2025-03-01",
        "description": "Fee",
        "lines": [line("1000", "DR", 7), line("4000", "CR", 7)],
    }
    proposals_of_both = [
        proposals.propose(
            Caller("staff:anna", own.tenant_id, reason="Fee"), new_key(), Proposed("createJournalEntry", {}, about)
        )
        for own in (books, other_books)
    ]
    entries_of_both, keys_of_both = list[str](), list[str]()
    for own in (books, other_books):
        keys_of_both.append(new_key())
        own.once(keys_of_both[-1], own.payment(own.loan, 1, "2025-03-01", ref="shared"))
        ((last,),) = own.rows("SELECT id::text FROM journal_entry ORDER BY id DESC LIMIT 1")
        entries_of_both.append(last)
    day, later = date(2025, 2, 1), date(2025, 12, 31)
    pages: dict[str, Any] = {"after": None, "limit": 50}
    recorded: dict[str, Any] = {"below": "1000000000000", "from_date": None, "to_date": None}
    asked: dict[str, list[dict[str, Any]]] = {
        "today": [{}],
        "read_chart": [{}],
        "accounts": [{}],
        "books": [{}],
        "closed_periods": [{"before": None, "limit": 50}, {"before": "2025-01-06", "limit": 50}],
        "program": [{"program_id": books.program_id, "on": day}, {"program_id": other_books.program_id, "on": day}],
        "programs": [{"on": day} | pages],
        "loan": [{"loan_id": loan_id, "on": day}, {"loan_id": other_books.loan.loan_id, "on": day}],
        "loans": [{"on": day, "program_id": None, "borrower_id": None, "state": None} | pages],
        "loan_version": ours_and_theirs,
        "version_of_entrys_loan": [{"entry_id": entry_id}],
        "payment_entries": ours_and_theirs,
        "suspense_allocations": ours_and_theirs,
        "has_recovery": ours_and_theirs,
        "entry": [{"entry_id": entry_id}],
        "history": [
            {"loan_id": of, "from_date": None, "to_date": None, "kind": None, "after": 0, "limit": 50}
            for of in (loan_id, other_books.loan.loan_id)
        ],
        "loan_balances": [
            {"loan_id": of, "as_of": on} for of in (loan_id, other_books.loan.loan_id) for on in (day, later)
        ],
        "trial_balance": [{"currency": "USD", "layer": "SETTLED", "as_of": later}],
        "proposal": [{"proposal_id": proposal_id} for proposal_id in proposals_of_both],
        "waterfalls": [{"program_id": books.program_id}, {"program_id": other_books.program_id}],
        "payoff": [about | {"as_of": later} for about in ours_and_theirs],
        "unposted_interest": [about | {"through": later} for about in ours_and_theirs],
        "interest_counted": [about | {"through": later} for about in ours_and_theirs],
        "tenant_currency": [{}],
        "seals": [{"before": None, "limit": 50}, {"before": 2, "limit": 50}],
        "sealed_entry": [{"entry_id": entry_id}],
        "journal_size": [recorded | {"since": "0"}],
        "journal_after": [recorded | {"after": ("0", queries.BEFORE_ALL), "entries": 50, "lines": 500}],
        "has_accrued": [{"program_id": of.program_id, "since": day} for of in (books, other_books)],
        "accruals_due": [{}],
        "idle_runs": [{}],
        "accrual_runs": [{"program_id": None, "after": None, "limit": 50}],
        **{name: [{"run_id": run_id} for run_id in runs_of_both] for name in ("accrual_run", "run_progress")},
        "accrual_exceptions": [{"run_id": run_id, "limit": 50} for run_id in runs_of_both],
        "statement": [about | {"since": None, "until": later} for about in ours_and_theirs],
        # What the admin's pages ask.
        "tenant_of_transaction": [{}],
        "proposal_rows": [{"state": None, "maker": None} | pages],
        "postings_of_day": [{}],
        "postings_by_date": [{"since": day, "until": later}],
        "account_sums": [{"as_of": later}],
        "entries": [dict.fromkeys(("kind", "layer", "since", "until", "reference")) | pages],
        **{name: [{"entry_id": of} for of in entries_of_both] for name in ("entry_shown", "entry_sums", "entry_chain")},
        "entry_lines": [{"entry_id": of, "limit": 50} for of in entries_of_both],
        "loan_rows": [{"on": day} | dict.fromkeys(("state", "program", "borrower")) | pages],
        **dict.fromkeys(("loan_terms_of", "loan_balance_rows"), ours_and_theirs),
        "account_days": [{"code": "1000", "since": day, "until": later}],
        "account_tail": [{"code": "1000"} | pages],
        "cash_lines": [{"code": "1000", "currency": "USD", "since": day, "until": later}],
        "accrual_run_rows": [{"program": None} | pages],
        "run_entries": [{"run_id": run_id, "limit": 50} for run_id in runs_of_both],
        "programs_behind": [{"yesterday": later}],
        "program_rows": [{"on": day} | pages],
        "program_terms": [{"program_id": of.program_id} for of in (books, other_books)],
        "period_shown": [{"through": "2025-01-05"}],
        "period_rows": [pages],
        "key_rows": [{"prefix": None} | pages],
        "key_shown": [{"key": key} for key in keys_of_both],
        "outbox_rows": [pages],
        "called": [{"uuid": of} for of in (*entries_of_both, *(each["loan_id"] for each in ours_and_theirs))],
        "entries_called": [{"uuids": entries_of_both}],
        "referred": [{"reference": "shared"}],
        "of_amount": [{"minor": [7, 100_000]}],
        "balance_changes": [
            about | {"as_of": later, "known_after": "2025-01-01T00:00:00Z", "known_at": "2999-01-01T00:00:00Z"}
            for about in ours_and_theirs
        ],
    }
    questions = {
        name: question
        for name, question in inspect.getmembers(queries, inspect.isfunction)
        if question.__module__ == queries.__name__
        and "cursor" in inspect.signature(question).parameters
        and name[0] != "_"
    }
    assert asked.keys() == questions.keys(), "a new question needs an example here"
    for name, examples in asked.items():
        for parameters in examples:
            with tenant_transaction(books.tenant_id) as cursor:
                ours = questions[name](cursor, **parameters)
                with session("superuser") as connection, connection.cursor() as all_seeing:
                    theirs = questions[name](all_seeing, **parameters)
            assert _plain(ours) == _plain(theirs), name


def _plain(answer: object) -> object:
    """A chart compares by what it holds."""
    return vars(answer) if type(answer).__module__ == "ledger.chart" else answer


def test_every_model_filters_by_the_tenant_of_the_transaction(books: Books) -> None:
    with tenant_transaction(books.tenant_id):
        for model in tenant_models():
            query = str(model.objects.all().query)  # type: ignore[attr-defined]
            assert f'"tenant_id" = {books.tenant_id}' in query, model


# --- Reaching over ---------------------------------------------------------------------------------------------------


def test_a_row_of_another_tenant_is_not_written(books: Books, other_books: Books) -> None:
    """Row security checks what comes in, for the owner too."""
    ours = f"'{other_books.tenant_id}'"
    with nothing_changes(books, other_books):
        for role, statement in (
            ("app", "INSERT INTO tenant VALUES (gen_random_uuid(), 'x', 'USD', 'UTC')"),
            ("app", f"INSERT INTO gl_account SELECT {ours}, '7777', 'x', 'asset', 'DR', false, NULL"),
            ("app", f"INSERT INTO program SELECT {ours}, gen_random_uuid(), 'x', 'USD', 'ACT_365'"),
            ("app", f"INSERT INTO program_terms (tenant_id) SELECT {ours}"),
            ("app", f"INSERT INTO loan_terms (tenant_id, annual_rate_bps) SELECT {ours}, 1"),
            ("app", f"INSERT INTO period_close SELECT {ours}, '2025-01-31', now(), 'x', '[]'"),
            ("owner", f"INSERT INTO period_close SELECT {ours}, '2025-01-31', now(), 'x', '[]'"),
            ("owner", f"INSERT INTO idempotency_key VALUES ({ours}, 'key', '', '')"),
            ("owner", f"INSERT INTO outbox_message (tenant_id, entry_id) SELECT {ours}, gen_random_uuid()"),
            ("owner", f"UPDATE gl_account SET name = name, closed_at = now() WHERE false OR tenant_id = {ours}"),
        ):
            with session(role, books.tenant_id) as connection:
                if statement.startswith("UPDATE"):
                    assert connection.execute(statement).rowcount == 0
                    continue
                with refused("42501"):
                    connection.execute(statement)
                connection.rollback()


def test_a_key_of_one_tenant_is_free_for_another(books: Books, other_books: Books) -> None:
    """Keys, references and ids belong to a tenant: the same ones elsewhere are nobody's business, and tell nothing."""
    key = new_key()
    first = books.once(key, books.payment(books.loan, 10, "2025-03-01", ref="same"))
    second = other_books.once(key, other_books.payment(other_books.loan, 10, "2025-03-01", ref="same"))
    assert (first.replayed, second.replayed) == (False, False)


def test_two_tenants_may_give_a_loan_the_same_id(books: Books) -> None:
    twin = open_books()
    loan_id = books.loan.loan_id
    made = twin.open_loan(loan_id=loan_id)
    twin.post(twin.disbursement(made, 7, "2025-01-10"))
    assert twin.balances(made) == {("1100", "SETTLED"): 7}
    assert books.balances(books.loan)[("1100", "SETTLED")] == 100_000
