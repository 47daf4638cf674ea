"""A chunk of an accrual run beside everything else that happens to its loans: as if one had come after the other.

Either the chunk has been taken and not yet committed when the other one comes, or the other has its locks when the chunk
comes. Both end as they would have in that order alone, the next night included, without a deadlock, and the books are proven.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from typing import Any, NamedTuple

import msgspec
import pytest

from hpts.problems import Problem
from ledger import operations, runs
from ledger import serializers as shapes
from ledger.operations import Write
from ledger.posting import opened
from tests.conftest import Loan
from tests.ledger.conftest import onlooker, race, session
from tests.ledger.engine import EngineBooks, day, engine_books
from tests.operations.conftest import eventually

Request = tuple[Write[Any], msgspec.Struct, dict[str, str]]
Prepare = Callable[[EngineBooks, Loan], Request]


def _pay(books: EngineBooks, loan: Loan) -> Request:
    body = shapes.NewPayment(
        loan_id=loan.loan_id,  # type: ignore[arg-type]
        borrower_id=loan.borrower_id,  # type: ignore[arg-type]
        amount_minor=300_000,  # type: ignore[arg-type]
        currency="USD",  # type: ignore[arg-type]
        effective_at=date.fromisoformat(day(2)),  # type: ignore[arg-type]
        source_method="ach",  # type: ignore[arg-type]
    )
    return operations.create_payment, body, {}


def _reverse(books: EngineBooks, loan: Loan, entry_id: str) -> Request:
    body = shapes.NewReversal(
        reverses_entry_id=entry_id,  # type: ignore[arg-type]
        reason_code="other",  # type: ignore[arg-type]
        effective_at=date.fromisoformat(day(3)),  # type: ignore[arg-type]
    )
    return operations.create_reversal, body, {}


def _reverse_payment(books: EngineBooks, loan: Loan) -> Request:
    return _reverse(books, loan, books.post(books.payment(loan, 300_000, day(1))).journal_entry_id)


def _reverse_accrual(books: EngineBooks, loan: Loan) -> Request:
    return _reverse(books, loan, books.entry_of(loan, day(3)))


def _replan(books: EngineBooks, loan: Loan) -> Request:
    books.post(books.payment(loan, 300_000, day(3)))
    books.post(books.fee(loan, 5_000, day(2)))
    since = date.fromisoformat(day(2))
    path = {"loan_id": loan.loan_id}
    made = books.run(operations.replan_loan, shapes.NewReplan(from_date=since), **path)  # type: ignore[arg-type]
    body = shapes.NewReplan(from_date=since, plan_hash=made["plan_hash"])  # type: ignore[arg-type]
    return operations.replan_loan, body, path


def _pause(books: EngineBooks, loan: Loan) -> Request:
    body = shapes.NewAccrualPause(from_date=date.fromisoformat(day(2)))  # type: ignore[arg-type]
    return operations.pause_accrual, body, {"loan_id": loan.loan_id}


def _restructure(books: EngineBooks, loan: Loan) -> Request:
    body = shapes.NewRestructure(
        effective_at=date.fromisoformat(day(4)),  # type: ignore[arg-type]
        annual_rate_bps=7_300,  # type: ignore[arg-type]
        capitalise_interest=True,
    )
    return operations.restructure_loan, body, {"loan_id": loan.loan_id}


def _charge_off(books: EngineBooks, loan: Loan) -> Request:
    body = shapes.NewChargeOff(effective_at=date.fromisoformat(day(4)), reason="Gone")  # type: ignore[arg-type]
    return operations.charge_off_loan, body, {"loan_id": loan.loan_id}


def _change_rate(books: EngineBooks, loan: Loan) -> Request:
    body = shapes.NewProgramTerms(effective_at=date.fromisoformat(day(2)), annual_rate_bps=0)  # type: ignore[arg-type]
    return operations.change_program_terms, body, {"program_id": books.program_id}


def _close(books: EngineBooks, loan: Loan) -> Request:
    return operations.close_period, shapes.NewPeriodClose(through_date=date.fromisoformat(day(4))), {}  # type: ignore[arg-type]


class Case(NamedTuple):
    prepare: Prepare
    waits: bool = True


CASES = {
    "payment": Case(_pay),
    "reversal of a payment": Case(_reverse_payment),
    "reversal of an accrual": Case(_reverse_accrual),
    "replan": Case(_replan),
    "pause": Case(_pause),
    "restructure": Case(_restructure),
    "charge-off": Case(_charge_off),
    "period's close": Case(_close),
    # A new rate waits for nobody: the next night finds that the terms have changed.
    "program's rate": Case(_change_rate, waits=False),
}


def _refusal(work: Callable[[], object]) -> str | None:
    """The refusal's code: a plan is outdated when a chunk has moved its loan."""
    try:
        work()
    except Problem as problem:
        return problem.code
    return None


def _set_up(case: Case) -> tuple[EngineBooks, Loan, Request]:
    books = engine_books()
    loan, _ = books.lend(), books.lend()
    books.accrue_each(1, 3)
    return books, loan, case.prepare(books, loan)


def _end(books: EngineBooks, loan: Loan) -> object:
    """The next night, and what the books say then."""
    books.accrue(day(5))
    books.is_sound()
    return [
        (books.posted(each), sorted(books.balances(each).items()))
        for each in sorted(books.loans, key=books.loans.index)
    ]


def _waits() -> bool:
    rows = onlooker().execute(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')"
    )
    return bool(rows.fetchall()[0][0])


@contextmanager
def beside(work: Callable[[], object], *, waits: bool) -> Iterator[None]:
    """Another thread does this, and stands at a lock of the block's; it ends after the block has."""
    failed: list[BaseException] = []

    def run() -> None:
        (outcome,) = race(work)
        if isinstance(outcome, BaseException):
            failed.append(outcome)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    if waits:
        eventually(lambda: _waits() or not thread.is_alive(), what="it waits")
        assert thread.is_alive(), f"it did not wait: {failed}"
    else:
        thread.join(20)
        assert not thread.is_alive(), "it waits"
    yield
    thread.join(60)
    assert not thread.is_alive(), "it hangs"
    if failed:
        raise failed[0]


@contextmanager
def chunk_taken(books: EngineBooks, run_id: str) -> Iterator[None]:
    """By a worker that has not yet committed it."""
    with session("app", books.tenant_id) as connection:
        connection.execute("SELECT accrue_chunk(%s, NULL)", (run_id,))
        yield


@pytest.mark.parametrize("name", CASES)
def test_what_comes_while_a_chunk_is_accrued_comes_after_it(name: str) -> None:
    case = CASES[name]
    books, loan, (write, body, path) = _set_up(case)
    run_id = books.request(day(4))
    runs._start(books.tenant_id, run_id)
    told: list[str | None] = []
    waiting = beside(lambda: told.append(_refusal(lambda: books.run(write, body, **path))), waits=case.waits)
    with ExitStack() as other, chunk_taken(books, run_id):
        other.enter_context(waiting)
    runs.work(books.tenant_id, run_id)

    alone, same_loan, (write, body, path) = _set_up(case)
    alone.accrue(day(4))
    assert told == [_refusal(lambda: alone.run(write, body, **path))]
    assert told == ["plan_outdated" if name == "replan" else None]
    assert _end(books, loan) == _end(alone, same_loan)


@pytest.mark.parametrize("name", CASES)
def test_a_chunk_that_comes_while_something_is_posted_comes_after_it(name: str) -> None:
    case = CASES[name]
    books, loan, (write, body, path) = _set_up(case)
    run_id = books.request(day(4))
    waiting = beside(lambda: runs.work(books.tenant_id, run_id), waits=case.waits)
    with ExitStack() as other, opened(books.origin, write.touches(body, path)) as (posting, _):
        assert posting is not None
        write.run(posting, body, path)
        other.enter_context(waiting)
        posting.record()

    alone, same_loan, (write, body, path) = _set_up(case)
    if case.waits:
        alone.run(write, body, **path)
    same_run = alone.request(day(4)) if name != "period's close" else None
    if same_run is None:
        # The close refuses a new request; the one that was made before it finds the period closed.
        assert set(books.run_of(run_id)["exceptions"].values()) == {"period_closed"}
    else:
        runs.work(alone.tenant_id, same_run)
    if not case.waits:
        alone.run(write, body, **path)
    assert _end(books, loan) == _end(alone, same_loan)


def test_a_chunk_that_is_taken_is_passed_over() -> None:
    books = engine_books()
    books.lend()
    run_id = books.request(day(1))
    runs._start(books.tenant_id, run_id)
    with chunk_taken(books, run_id):
        with session("app", books.tenant_id) as connection:
            connection.execute("SET LOCAL lock_timeout = '1ms'")
            assert connection.execute("SELECT number FROM accrue_chunk(%s, NULL)", (run_id,)).fetchall() == [(None,)]
        assert runs.work(books.tenant_id, run_id) == "others"
    assert runs.work(books.tenant_id, run_id) == "ended"
    assert books.accruals() == 1


def test_runs_of_many_dates_beside_payments_reversals_and_rates_end_at_the_exact_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All at once and in no order: nobody is refused for the company, nobody waits for ever."""
    monkeypatch.setattr(runs, "CHUNK_LOANS", 3)
    books = engine_books()
    for _ in range(12):
        books.lend()
    books.accrue_each(1, 2)
    run_ids = [books.request(day(number)) for number in range(3, 9)]

    def accrue() -> None:
        for run_id in run_ids:
            runs.work(books.tenant_id, run_id)

    def pay() -> None:
        dice = random.Random(threading.get_ident())
        for number in range(15):
            payment = books.post(books.payment(dice.choice(books.loans), dice.randint(1, 9_000), day(1 + number % 8)))
            if number % 3 == 0:
                books.reverse(payment.journal_entry_id, day(9))

    def agree() -> None:
        for rate in (365, 7_300, 3_650):
            books.set_terms(day(4), annual_rate_bps=rate)
            books.pause(books.loans[0], day(5), day(5))

    assert race(accrue, accrue, accrue, pay, pay, agree) == [None] * 6
    books.accrue(day(9))
    books.is_sound()
    rows = books.rows(
        """SELECT l.interest_posted_minor, minor_units(loan_interest(l.tenant_id, l.id, %s, l.version)) FROM loan l""",
        day(9),
    )
    assert all(posted == exact for posted, exact in rows), rows
