"""What tests of the accrual engine share: books of an engine's program, their runs, and what has been posted."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any

import psycopg

from hpts.tenancy import tenant_transaction
from ledger import masters, operations, queries, runs
from ledger import serializers as shapes
from reconciliation import checks
from tests.conftest import Loan
from tests.ledger.conftest import OPENED_ON, Books, open_books, session

Json = dict[str, Any]


def day(number: int) -> str:
    """So many days after the opening, as ISO text."""
    return (OPENED_ON + timedelta(days=number)).isoformat()


class EngineBooks(Books):
    """Books of a program that the engine accrues, unless told. Days are ISO text, as in `Books`."""

    def lend(self, principal: int = 1_000_000, on: str = day(0), **loan: Any) -> Loan:
        """A loan that is opened and lent on one day."""
        made = self.open_loan(opened_on=date.fromisoformat(on), **loan)
        self.post(self.disbursement(made, principal, on))
        return made

    # Runs

    def request(self, on: str, program_id: str | None = None) -> str:
        """The run of a date, by its id; opened again when it has ended."""
        with tenant_transaction(self.tenant_id) as cursor:
            return runs.request_run(
                cursor,
                program_id=program_id or self.program_id,
                accrual_date=date.fromisoformat(on),
                origin=self.origin,
            )

    def accrue(self, on: str, program_id: str | None = None) -> Json:
        """Run a date to its end: the run as the API shows it, with its exceptions."""
        run_id = self.request(on, program_id)
        runs.work(self.tenant_id, run_id)
        return self.run_of(run_id)

    def accrue_each(self, first: int, last: int) -> None:
        """The nights of these days, both included."""
        for number in range(first, last + 1):
            assert self.accrue(day(number))["state"] == "complete"

    def run_of(self, run_id: str) -> Json:
        with tenant_transaction(self.tenant_id) as cursor:
            found = queries.accrual_run(cursor, run_id=run_id)
            assert found is not None
            found["exceptions"] = {
                each["loan_id"]: each["code"]
                for each in queries.accrual_exceptions(cursor, run_id=run_id, limit=1_000_000)
            }
            return found

    def entry_of(self, loan: Loan, on: str) -> str:
        """The last entry that accrued a date of a loan."""
        ((entry_id,),) = self.rows(
            """SELECT entry_id::text FROM loan_accrual WHERE loan_id = %s AND accrual_date = %s
               ORDER BY revision DESC LIMIT 1""",
            loan.loan_id,
            on,
        )
        return str(entry_id)

    def reverse(self, entry_id: str, on: str = "2025-12-31") -> str:
        return self.post(self.reversal(entry_id, on)).journal_entry_id

    # What is agreed

    def set_terms(self, on: str, *, program_id: str | None = None, **terms: Any) -> None:
        body = shapes.NewProgramTerms(effective_at=date.fromisoformat(on), **terms)  # type: ignore[arg-type]
        self.run(operations.change_program_terms, body, program_id=program_id or self.program_id)

    def pause(self, loan: Loan, first: str, last: str | None = None) -> None:
        until = {} if last is None else {"to_date": date.fromisoformat(last)}
        body = shapes.NewAccrualPause(from_date=date.fromisoformat(first), **until)  # type: ignore[arg-type]
        self.run(operations.pause_accrual, body, loan_id=loan.loan_id)

    def restructure(self, loan: Loan, on: str, **changes: Any) -> str | None:
        """The entry, when something is capitalised."""
        body = shapes.NewRestructure(effective_at=date.fromisoformat(on), **changes)  # type: ignore[arg-type]
        answer = self.run(operations.restructure_loan, body, loan_id=loan.loan_id)
        return answer.get("journal_entry_id")

    def charge_off(self, loan: Loan, on: str) -> str:
        body = shapes.NewChargeOff(effective_at=date.fromisoformat(on), reason="Gone")  # type: ignore[arg-type]
        return str(self.run(operations.charge_off_loan, body, loan_id=loan.loan_id)["journal_entry_id"])

    def refinance(self, loan: Loan, on: str, cash_out: int = 0) -> tuple[str, Loan]:
        """The entry, and the new loan."""
        new = shapes.NewLoan(
            borrower_id=loan.borrower_id,  # type: ignore[arg-type]
            program_id=loan.program_id,  # type: ignore[arg-type]
            opened_on=date.fromisoformat(on),  # type: ignore[arg-type]
        )
        more = {"cash_out_minor": cash_out} if cash_out else {}
        body = shapes.NewRefinance(new_loan=new, effective_at=date.fromisoformat(on), **more)  # type: ignore[arg-type]
        answer = self.run(operations.refinance_loan, body, loan_id=loan.loan_id)
        made = Loan(answer["new_loan_id"], loan.borrower_id, loan.program_id, loan.currency)
        self.loans.append(made)
        return str(answer["journal_entry_id"]), made

    # Readings

    @property
    def today(self) -> date:
        with tenant_transaction(self.tenant_id) as cursor:
            return queries.today(cursor)

    def posted(self, loan: Loan) -> int:
        """The interest that the journal says, whatever has become of it since."""
        ((minor,),) = self.rows(
            """SELECT coalesce(sum(CASE direction WHEN 'CR' THEN amount_minor ELSE -amount_minor END), 0)::bigint
               FROM journal_line WHERE loan_id = %s AND account_code = '4000'""",
            loan.loan_id,
        )
        return int(minor)

    def owed(self, loan: Loan) -> tuple[int, int]:
        """Interest, and what waits in suspense."""
        balances = self.balances(loan)
        return balances.get(("1200", "SETTLED"), 0), balances.get(("2000", "SETTLED"), 0)

    def accruals(self) -> int:
        ((count,),) = self.rows("SELECT count(*) FROM loan_accrual")
        return int(count)

    def is_sound(self) -> None:
        with tenant_transaction(self.tenant_id) as cursor:
            # As a proof does: the long run's books are larger than a request may look at.
            cursor.execute("SET LOCAL statement_timeout = 0")
            broken = [str(breach) for check in checks.CHECKS for breach in check(cursor)]
        assert not broken, broken

    def open_program(self, **program: Any) -> str:
        """One more program of the engine."""
        program_id = str(uuid.uuid4())
        terms = {
            "on": OPENED_ON,
            "program_id": program_id,
            "name": "More",
            "currency": "USD",
            "annual_rate_bps": 1_000,
            "day_count_convention": "ACT_365",
            "waterfall": ("fees", "interest", "principal"),
            "accrual_mode": "engine",
        } | program
        with tenant_transaction(self.tenant_id) as cursor:
            masters.create_program(cursor, **terms)
        return program_id


@contextmanager
def walls_off(tenant_id: str, **triggers: str) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's transaction in which a trigger of a table (`table=trigger`) does not fire."""
    with session("superuser", tenant_id, replica=True) as connection:
        for table, trigger in triggers.items():
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}")
        yield connection
        for table, trigger in triggers.items():
            connection.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}")


def engine_books(*, loans: int = 0, **program: Any) -> EngineBooks:
    """A program at 36.50 % by ACT_365: 1,000,000 earn 1,000 a day."""
    made = open_books(loans=loans, **{"accrual_mode": "engine", "annual_rate_bps": 3_650} | program)
    return EngineBooks(made.tenant_id, made.program_id, made.loans)
