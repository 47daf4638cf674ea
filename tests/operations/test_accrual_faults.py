"""An accrual run while its workers are killed, the broker forgets and beat is doubled: each loan has each day once.

`HPTS_LONG=1` (make test-long): eight workers, 50 kills, two flushes in the middle of a run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from io import StringIO
from multiprocessing.process import BaseProcess
from random import Random

import pytest
import redis
from django.conf import settings
from django.core.management import call_command

from hpts import embedded
from ledger import runs, tasks
from tests.conftest import Lender
from tests.ledger.conftest import onlooker, race, scratch_database
from tests.ledger.engine import EngineBooks, engine_books, walls_off
from tests.ledger.interest_model import DAY, ModelLoan, ModelProgram, OwnTerms, ProgramTerms
from tests.operations import accrual_worker
from tests.operations.conftest import eventually

LONG = os.environ.get("HPTS_LONG") == "1"
LOANS = 20_000 if LONG else 1_000
DAYS = 4
WORKERS = 8 if LONG else 4
KILLS = 50 if LONG else 12
CHUNK = 500 if LONG else 50
RATE = 1_200


class Book:
    """A generated program with many loans, and what the model says of it."""

    def __init__(self) -> None:
        self.books: EngineBooks = engine_books(accrual_mode="client")
        out = StringIO()
        call_command(
            "generate_book", tenant=self.books.tenant_id, loans=LOANS, days=DAYS, rate=RATE, json=True, stdout=out
        )
        report = json.loads(out.getvalue())
        self.program_id: str = report["program_id"]
        self.since = date.fromisoformat(report["from_date"])
        self.dates = [self.since + number * DAY for number in range(1, DAYS + 1)]

    def expected(self, through: date) -> dict[str, int]:
        """Each loan's interest through a date."""
        program = ModelProgram("ACT_365", [ProgramTerms(date.min, RATE)])
        rows = onlooker().execute(
            """SELECT l.id::text, b.balance_minor, t.annual_rate_bps
               FROM loan l JOIN loan_balance b ON b.tenant_id = l.tenant_id AND b.loan_id = l.id AND b.account_code = '1100'
               LEFT JOIN loan_terms t ON t.tenant_id = l.tenant_id AND t.loan_id = l.id
               WHERE l.tenant_id = %s AND l.program_id = %s""",
            (self.books.tenant_id, self.program_id),
        )
        expected = {}
        for loan_id, principal, rate in rows.fetchall():
            own = {} if rate is None else {"opening": OwnTerms(self.since, rate)}
            loan = ModelLoan(program, self.since, {self.since: principal}, own)
            expected[loan_id] = loan.whole(through)
        return expected

    def posted(self) -> dict[str, int]:
        rows = onlooker().execute(
            """SELECT loan_id::text, sum(CASE direction WHEN 'CR' THEN amount_minor ELSE -amount_minor END)::bigint
               FROM journal_line WHERE tenant_id = %s AND account_code = '4000' GROUP BY 1""",
            (self.books.tenant_id,),
        )
        return dict(rows.fetchall())

    def finished(self) -> list[date]:
        """The dates of the runs that have ended, in the order in which they did."""
        rows = onlooker().execute(
            """SELECT accrual_date FROM accrual_run
               WHERE tenant_id = %s AND program_id = %s AND finished_at IS NOT NULL ORDER BY finished_at""",
            (self.books.tenant_id, self.program_id),
        )
        return [on for (on,) in rows.fetchall()]

    def done(self) -> int:
        """Chunks."""
        row = onlooker().execute(
            "SELECT count(done_at) FROM accrual_chunk WHERE tenant_id = %s", (self.books.tenant_id,)
        )
        ((count,),) = row.fetchall()
        return int(count)

    def ages(self) -> None:
        """Let an hour have passed since anybody brought a run on."""
        with walls_off(self.books.tenant_id, accrual_run="accrual_run_identity") as connection:
            connection.execute(
                """UPDATE accrual_run SET requested_at = requested_at - interval '1 hour',
                                          started_at = started_at - interval '1 hour' WHERE tenant_id = %s""",
                (self.books.tenant_id,),
            )
            connection.execute(
                "UPDATE accrual_chunk SET done_at = done_at - interval '1 hour' WHERE tenant_id = %s",
                (self.books.tenant_id,),
            )

    def has_each_day_once(self) -> None:
        """Accruals are loans times days; the totals are the model's; a run that is asked for again adds nothing."""
        assert self.books.accruals() == LOANS * DAYS
        assert self.posted() == self.expected(self.dates[-1])
        entries = self.books.entries()
        for on in self.dates:
            again = self.books.accrue(on.isoformat(), self.program_id)
            assert (again["state"], again["loan_count"], again["accrued_count"]) == ("complete", LOANS, LOANS)
        assert self.books.entries() == entries
        self.books.is_sound()


def test_workers_who_are_killed_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "CHUNK_LOANS", CHUNK)
    seed = int.from_bytes(os.urandom(2))
    dice = Random(seed)
    book = Book()
    nursery = multiprocessing.get_context("forkserver")
    nursery.set_forkserver_preload([accrual_worker.__name__])
    kills = 0
    for number, on in enumerate(book.dates):
        run_id = book.books.request(on.isoformat(), book.program_id)
        runs._start(book.books.tenant_id, run_id)
        workers: list[BaseProcess] = []

        def start() -> None:
            worker = nursery.Process(target=accrual_worker.work, args=(book.books.tenant_id, run_id))  # noqa: B023
            worker.start()
            workers.append(worker)  # noqa: B023

        wanted = KILLS * (number + 1) // DAYS
        while on not in book.finished():
            workers = [worker for worker in workers if worker.is_alive()]
            while len(workers) < WORKERS:
                start()
            victim = dice.choice(workers)
            victim.join(timeout=dice.uniform(0.0, 0.12))
            if kills < wanted and victim.is_alive():
                victim.kill()
                victim.join()
                kills += victim.exitcode == -9
        for worker in workers:
            worker.join(60)
            assert worker.exitcode is not None, "a worker hangs"
    assert kills >= KILLS // 2, f"too few workers met their end in the middle, seed {seed}"
    book.has_each_day_once()


def test_a_run_that_is_asked_for_is_sent_to_the_workers_by_every_thread_of_the_server(
    make_lender: Callable[..., Lender],
) -> None:
    lender = make_lender()
    program_id = lender.open_program(accrual_mode="engine")
    broker = redis.Redis.from_url(settings.REDIS_URL)
    broker.flushdb()
    lender.api.token()
    path, body = f"/v1/programs/{program_id}/accrual-runs", {"accrual_date": "2026-01-02"}
    (answer,) = race(lambda: lender.api.in_a_thread().post(path, body))
    assert answer.status_code == 202
    assert broker.llen("celery") == tasks.PULLERS
    broker.flushdb()


@contextmanager
def celery_worker() -> Iterator[subprocess.Popen[bytes]]:
    """As `make run` starts it."""
    command = [sys.executable, "-m", "celery", "--app", "hpts", "worker", "--pool", "threads", "--concurrency", "4"]
    name = f"worker-{uuid.uuid4()}@test"
    worker = subprocess.Popen(
        [*command, "--hostname", name, "--loglevel", "error"],
        cwd=embedded.ROOT,
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


def test_a_broker_that_forgets_and_a_beat_that_is_doubled_lose_and_double_nothing() -> None:
    """Dates that were missed, made up for by Celery's own workers: one is killed, messages are lost, sweeps come in pairs."""
    broker = redis.Redis.from_url(settings.REDIS_URL)
    with scratch_database():
        broker.flushdb()
        book = Book()
        with walls_off(book.books.tenant_id, program="program_append_only") as connection:
            connection.execute(
                "UPDATE program SET created_at = %s WHERE id = %s",
                (book.dates[0] + timedelta(hours=1), book.program_id),
            )

        next_sweep = 0.0

        def swept() -> None:
            """Two beats, which both send what one of them would every 15 seconds."""
            nonlocal next_sweep
            if time.monotonic() > next_sweep:
                race(*[lambda: tasks.accrue_due.apply_async(retry=False)] * 2)
                next_sweep = time.monotonic() + 1

        def after(chunks: int) -> bool:
            swept()
            return book.done() > chunks or book.finished() == book.dates

        # What the first sweep has sent is forgotten: the table of runs is not.
        (first,) = runs.due(book.books.tenant_id, "schedule:test")
        tasks.start(book.books.tenant_id, first)
        broker.flushdb()
        book.ages()
        with celery_worker() as worker:
            eventually(lambda: after(0), within=60, what="the first chunk")
            worker.kill()
            worker.wait()
        book.ages()
        with celery_worker(), celery_worker():
            # In the middle it takes the workers up to a minute to make their queue known again.
            for _ in range(2 if LONG else 0):
                done = book.done()
                eventually(lambda: after(done), within=180, what="another chunk")  # noqa: B023
                broker.flushdb()
                book.ages()
            eventually(
                lambda: (swept(), book.finished() == book.dates)[1], within=180, what="all missed dates, in their order"
            )
        book.has_each_day_once()
        broker.flushdb()
