"""What the attacks on the books below HTTP share: books that a test makes for itself, sessions of every role, and races.

The tests here post through `post()` and `once()` as the product does, or go around them with SQL of their own.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psycopg
import pytest
from django.db import connections
from psycopg import sql

from hpts import embedded
from hpts.problems import Problem
from hpts.tenancy import tenant_transaction
from ledger import balances, masters, operations, queries, runs
from ledger import serializers as shapes
from ledger.chart import CONSUMER_LENDING, Chart
from ledger.events import (
    PENDING,
    SETTLED,
    Accrual,
    AccruedLoan,
    Disbursement,
    DisbursementSettled,
    Event,
    Line,
    ManualAdjustment,
    PaymentReceived,
    Reversal,
)
from ledger.idempotency import Answer, Call, fingerprint, once
from ledger.operations import Write
from ledger.posting import Origin, Posted, Posting, Touches, opened, post, with_retries
from ledger.state import EntryState, LoanState, State
from tests.conftest import Loan

T = TypeVar("T")

OPENED_ON = date(2025, 1, 1)
WATERFALL = ("fees", "interest", "principal")

# --- Sessions of every role ------------------------------------------------------------------------------------------

URLS = {
    "app": "DATABASE_URL",
    "readonly": "HPTS_READONLY_DATABASE_URL",
    "owner": "HPTS_OWNER_DATABASE_URL",
    "superuser": "HPTS_SUPERUSER_DATABASE_URL",
}


@contextmanager
def session(role: str, tenant_id: str | None = None, *, replica: bool = False) -> Iterator[psycopg.Connection[Any]]:
    """A connection of its own as a role, in one transaction, which names its tenant when one is given.

    `replica` says so to PostgreSQL, as a superuser may: ordinary triggers and foreign keys do not fire then.
    """
    with psycopg.connect(os.environ[URLS[role]]) as connection:
        # So that what refuses the reader is its grants, and not the mode that its transactions begin in.
        connection.read_only = False
        if replica:
            connection.execute("SET session_replication_role = replica")
        if tenant_id is not None:
            connection.execute("SELECT set_config('hpts.tenant_id', %s, true)", (tenant_id,))
        yield connection


@contextmanager
def refused(sqlstate: str, constraint: str | None = None) -> Iterator[None]:
    """Assert that the block ends in this SQLSTATE, by the wall of this name when one is given."""
    with pytest.raises(psycopg.Error) as caught:
        yield
    said = (caught.value.sqlstate, caught.value.diag.constraint_name if constraint else None)
    assert said == (sqlstate, constraint), f"{said}: {caught.value}"


@cache
def _onlooker(url: str) -> psycopg.Connection[Any]:
    """A superuser who sees every tenant's rows; each of its readings is a transaction of its own."""
    return psycopg.connect(url, autocommit=True)


def onlooker() -> psycopg.Connection[Any]:
    return _onlooker(os.environ[URLS["superuser"]])


@cache
def tenant_tables() -> list[str]:
    """Every table with rows of tenants, as PostgreSQL knows them. Clients and people are read before any tenant is known."""
    rows = onlooker().execute(
        """SELECT c.relname FROM pg_class c
           WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
             AND (c.relname = 'tenant' OR EXISTS (SELECT FROM pg_attribute a
                  WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped))
             AND c.relname NOT IN ('hpts_apiclient', 'hpts_staff')
           ORDER BY 1"""
    )
    return [name for (name,) in rows.fetchall()]


def contents(*tenant_ids: str) -> dict[str, tuple[int, str]]:
    """Of every tenant table: how many rows of these tenants it has, and a hash of all their columns."""
    reading = sql.SQL(
        "SELECT {}, count(*), md5(string_agg(t::text, ';' ORDER BY t::text)) FROM {} t WHERE {} = ANY (%(ids)s)"
    )
    readings = [
        reading.format(table, sql.Identifier(table), sql.Identifier("id" if table == "tenant" else "tenant_id"))
        for table in tenant_tables()
    ]
    rows = onlooker().execute(sql.SQL(" UNION ALL ").join(readings), {"ids": list(tenant_ids)})
    return {table: (count, digest) for table, count, digest in rows.fetchall()}


@contextmanager
def nothing_changes(*books: Books) -> Iterator[None]:
    """Assert that every row of these tenants is the same at the end."""
    ids = [one.tenant_id for one in books]
    before = contents(*ids)
    yield
    assert contents(*ids) == before


# --- Books -----------------------------------------------------------------------------------------------------------


def caught_up(tenant_id: str) -> None:
    """Roll up until the sums of accounts hold every entry: transactions of other tests hold the horizon back for moments."""
    deadline = time.monotonic() + 60
    behind = True
    while behind:
        assert time.monotonic() < deadline, "the roll-up does not come to the end of the journal"
        balances.roll_up(tenant_id)
        with session("readonly", tenant_id) as connection:
            ((behind,),) = connection.execute(
                """SELECT EXISTS (SELECT FROM outbox_message o LEFT JOIN account_rollup r USING (tenant_id)
                                  WHERE r.tenant_id IS NULL OR (o.created_xid, o.entry_id) > (r.created_xid, r.entry_id))"""
            ).fetchall()


def new_key() -> str:
    return f"test-{uuid.uuid4()}"


@dataclass(frozen=True)
class Books:
    """A tenant with a program and its loans, and its postings in one line each. `on` is a date of 2025, as ISO text."""

    tenant_id: str
    program_id: str
    loans: list[Loan] = field(default_factory=list)

    @property
    def loan(self) -> Loan:
        return self.loans[0]

    @property
    def origin(self) -> Origin:
        return Origin(self.tenant_id, "client:test", str(uuid.uuid4()))

    def open_loan(self, **changes: Any) -> Loan:
        with tenant_transaction(self.tenant_id) as cursor:
            return self._open_loan(cursor, **changes)

    def _open_loan(self, cursor: Any, **changes: Any) -> Loan:
        terms = {
            "on": OPENED_ON,
            "loan_id": str(uuid.uuid4()),
            "borrower_id": str(uuid.uuid4()),
            "program_id": self.program_id,
            "opened_on": OPENED_ON,
            "principal_limit_minor": None,
            "annual_rate_bps": None,
        } | changes
        made = masters.create_loan(cursor, **terms)
        loan = Loan(made["loan_id"], made["borrower_id"], made["program_id"], made["currency"])
        self.loans.append(loan)
        return loan

    # Events

    def disbursement(self, loan: Loan, amount: int, on: str, layer: str = SETTLED) -> Disbursement:
        return Disbursement(
            loan_id=loan.loan_id, amount_minor=amount, currency="USD", effective_at=date.fromisoformat(on), layer=layer
        )

    def payment(
        self, loan: Loan, amount: int, on: str, layer: str = SETTLED, ref: str | None = None
    ) -> PaymentReceived:
        return PaymentReceived(
            loan_id=loan.loan_id,
            amount_minor=amount,
            currency="USD",
            effective_at=date.fromisoformat(on),
            layer=layer,
            source_method="ach",
            external_ref=ref,
        )

    def accrual(self, on: str, *items: tuple[Loan, int, int]) -> Accrual:
        """Each item: loan, outstanding principal, interest."""
        return Accrual(
            effective_at=date.fromisoformat(on),
            program_id=self.program_id,
            day_count_convention="ACT_365",
            loans=tuple(
                AccruedLoan(loan_id=loan.loan_id, outstanding_principal_minor=principal, interest_minor=interest)
                for loan, principal, interest in items
            ),
        )

    def reversal(self, entry_id: str, on: str = "2025-12-31") -> Reversal:
        return Reversal(effective_at=date.fromisoformat(on), reverses_entry_id=entry_id, reason_code="other")

    def settlement(self, entry_id: str, on: str) -> DisbursementSettled:
        return DisbursementSettled(effective_at=date.fromisoformat(on), disbursement_event_id=entry_id)

    def adjustment(self, on: str, *lines: Line) -> ManualAdjustment:
        return ManualAdjustment(effective_at=date.fromisoformat(on), description="By hand", lines=lines)

    def fee(self, loan: Loan, amount: int, on: str) -> ManualAdjustment:
        about = (amount, "USD", SETTLED, loan.loan_id)
        return self.adjustment(on, Line("1300", "DR", *about), Line("4100", "CR", *about))

    # Postings

    def post(self, event: Event) -> Posted:
        return post(self.origin, event)

    def once(self, key: str, event: Event, said: object = None) -> Answer:
        """One POST with a key, below the view: `said` is its body, by default the event itself."""
        body = repr(event) if said is None else said
        call = Call(self.origin, key, fingerprint(f"test/{event.kind}", {}, body))

        def work(posting: Posting) -> Mapping[str, Any]:
            entry = posting.post(event)
            return {"journal_entry_id": entry.journal_entry_id, "posted_at": entry.posted_at}

        return once(call, Touches.of(event), work)

    def run(self, write: Write[Any], body: msgspec.Struct, **path: str) -> Mapping[str, Any]:
        """An operation of the API without a key, in a transaction of its own."""

        def attempt() -> Mapping[str, Any]:
            with opened(self.origin, write.touches(body, path)) as (posting, _):
                assert posting is not None
                members = write.run(posting, body, path)
                posting.record()
                return members

        return with_retries(attempt)

    def close(self, through: str) -> Mapping[str, Any]:
        """Close the books through a date."""
        return self.run(operations.close_period, shapes.NewPeriodClose(through_date=date.fromisoformat(through)))  # type: ignore[arg-type]

    # The engine

    def open_program(self, **changes: Any) -> str:
        """One more program, by default of the engine at ten percent."""
        terms: dict[str, Any] = PROGRAM | {"program_id": str(uuid.uuid4()), "accrual_mode": "engine"} | changes
        with tenant_transaction(self.tenant_id) as cursor:
            masters.create_program(cursor, **terms)
        return str(terms["program_id"])

    def accrue_by_engine(self, on: str, program_id: str | None = None) -> dict[str, Any]:
        """Make the run of a date, as the API does, and do all its work here; gives the run as the API shows it."""
        program_id = program_id or self.program_id
        body = shapes.NewAccrualRun(accrual_date=date.fromisoformat(on))  # type: ignore[arg-type]
        run_id = self.run(operations.start_accrual_run, body, program_id=program_id)["accrual_run_id"]
        runs.work(self.tenant_id, run_id)
        return self.accrual_run(run_id)

    def accrual_run(self, run_id: str) -> dict[str, Any]:
        with tenant_transaction(self.tenant_id) as cursor:
            run = queries.accrual_run(cursor, run_id=run_id)
            assert run is not None
            return run | {"exceptions": queries.accrual_exceptions(cursor, run_id=run_id, limit=100)}

    # Readings

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """What a query of the application sees in these books."""
        with tenant_transaction(self.tenant_id) as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchall()

    def balances(self, loan: Loan) -> dict[tuple[str, str], int]:
        """(account code, layer) -> balance on the account's normal side, as the write path keeps it."""
        rows = self.rows("SELECT account_code, layer, balance_minor FROM loan_balance WHERE loan_id = %s", loan.loan_id)
        return {(code, layer): minor for code, layer, minor in rows}

    def entries(self) -> int:
        ((count,),) = self.rows("SELECT count(*) FROM journal_entry")
        return int(count)


PROGRAM: dict[str, Any] = {
    "on": OPENED_ON,
    "name": "Instalments",
    "currency": "USD",
    "annual_rate_bps": 1_000,
    "day_count_convention": "ACT_365",
    "waterfall": WATERFALL,
    "accrual_mode": "client",
}


def open_books(*, loans: int = 1, **program: Any) -> Books:
    books = Books(str(uuid.uuid4()), str(uuid.uuid4()))
    terms: dict[str, Any] = PROGRAM | {"program_id": books.program_id} | program
    with tenant_transaction(books.tenant_id) as cursor:
        masters.create_tenant(cursor, name="Lender", currency="USD", timezone="UTC")
        masters.create_program(cursor, **terms)
        for _ in range(loans):
            books._open_loan(cursor)
    return books


@pytest.fixture
def make_books() -> Callable[..., Books]:
    return open_books


@pytest.fixture
def books() -> Books:
    """Three loans; the first one has been lent 100,000 and owes 500 of interest and 70 of fees."""
    made = open_books(loans=3)
    made.post(made.disbursement(made.loan, 100_000, "2025-01-10"))
    made.post(made.accrual("2025-02-10", (made.loan, 100_000, 500)))
    made.post(made.fee(made.loan, 70, "2025-02-11"))
    return made


@pytest.fixture
def other_books() -> Books:
    """Another tenant, with a lent loan of its own."""
    made = open_books()
    made.post(made.disbursement(made.loan, 40_000, "2025-01-10"))
    return made


# --- States for the pure rules ---------------------------------------------------------------------------------------

CHART = Chart(CONSUMER_LENDING)
BALANCE_OF = {"principal": "1100", "interest": "1200", "fees": "1300", "suspense": "2000"}


def loan_state(
    loan_id: str = "loan",
    *,
    pending: Mapping[str, int] | None = None,
    later: Iterable[tuple[str, str, int]] = (),
    waterfall: str = "fees interest principal",
    limit: int | None = None,
    accrual: tuple[int, bool] | None = None,
    accrual_mode: str = "client",
    **balances: int,
) -> LoanState:
    """A loan opened on 2025-01-01 with these balances by role. `later` are settled movements that they hold already: (day,
    role, change on the account's own side)."""
    state = LoanState(
        loan_id=loan_id,
        borrower_id=f"borrower of {loan_id}",
        program_id="program",
        currency="USD",
        opened_on=OPENED_ON,
        principal_limit_minor=limit,
        waterfall=tuple(waterfall.split()),
        accrual=accrual,
        accrual_mode=accrual_mode,
    )
    for layer, by_role in ((SETTLED, balances), (PENDING, pending or {})):
        state.balances |= {(BALANCE_OF[role], layer): minor for role, minor in by_role.items()}
    for day, role, change in later:
        net = change if CHART[role].normal_side == "DR" else -change
        state.later.append((date.fromisoformat(day), CHART[role].code, SETTLED, net))
    return state


def state_of(*loans: LoanState, entry: EntryState | None = None) -> State:
    entries = {} if entry is None else {entry.entry_id: entry}
    return State(date(2025, 12, 31), CHART, {loan.loan_id: loan for loan in loans}, entries)


def said(lines: Iterable[Line]) -> list[str]:
    """Lines as an accountant writes them; the layer only when it is not SETTLED."""
    return [
        f"{line.direction} {line.account} {line.amount_minor}" + ("" if line.layer == SETTLED else f" {line.layer}")
        for line in lines
    ]


# --- Races -----------------------------------------------------------------------------------------------------------


def race(*runners: Callable[[], T]) -> list[T | Exception]:
    """Run each in a thread of its own, with a database connection of its own, all at once. Answers what each returned or
    raised, in the same order."""
    start = threading.Barrier(len(runners))
    outcomes: list[T | Exception] = [RuntimeError("did not run")] * len(runners)

    def run(number: int, runner: Callable[[], T]) -> None:
        try:
            connections["default"].ensure_connection()
            start.wait(60)
            outcomes[number] = runner()
        except Exception as error:
            outcomes[number] = error
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(runners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive(), "a runner hangs"
    return outcomes


def codes(outcomes: Iterable[object]) -> list[str]:
    """What became of each runner: the problem's code, or "posted". Anything that is not a refusal is raised."""
    said = []
    for outcome in outcomes:
        if isinstance(outcome, Exception) and not isinstance(outcome, Problem):
            raise outcome
        said.append(outcome.code if isinstance(outcome, Problem) else "posted")
    return said


@contextmanager
def scratch_database() -> Iterator[None]:
    """A database of its own, in which a wall may be torn down: every new connection goes there until the block ends."""
    state = Path(os.environ["HPTS_TEST_STATE"])
    administrator = os.environ[URLS["superuser"]]
    name = f"scratch_{uuid.uuid4().hex}"
    before = {alias: connections.settings[alias]["NAME"] for alias in connections}
    urls = {variable: os.environ[variable] for variable in URLS.values()}
    connections.close_all()
    # As tests/plugin.py does: one copy at a time, and nobody is connected to the template.
    with (
        embedded.locked(state / "copy.lock"),
        psycopg.connect(_at(administrator, "postgres"), autocommit=True) as connection,
    ):
        connection.execute(f"CREATE DATABASE {name} TEMPLATE hpts OWNER hpts_owner")
    try:
        embedded.make_roles(_at(administrator, name), embedded.role_passwords(state))
        os.environ |= {variable: _at(url, name) for variable, url in urls.items()}
        for alias in connections:
            connections[alias].settings_dict["NAME"] = connections.settings[alias]["NAME"] = name
        yield
    finally:
        connections.close_all()
        os.environ |= urls
        for alias, database in before.items():
            connections[alias].settings_dict["NAME"] = connections.settings[alias]["NAME"] = database
        with psycopg.connect(_at(administrator, "postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _at(url: str, database: str) -> str:
    return f"{url.rpartition('/')[0]}/{database}"


def tear_down(function: str, *pieces: tuple[str, str]) -> None:
    """Replace a function of the write path or of a wall by one in which each piece of text is another: a guard removed."""
    with session("owner") as connection:
        row = connection.execute("SELECT pg_get_functiondef(%s::regproc)", (f"public.{function}",)).fetchone()
        assert row is not None
        text = row[0]
        for piece, other in pieces:
            assert piece in text, f"{function} has no {piece!r} any more; what guards instead?"
            text = text.replace(piece, other)
        connection.execute(text)
