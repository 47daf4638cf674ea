"""`manage.py accrue`: an accrual run from the command line, in this process, with a progress bar.

The same run that the API and the schedule make: workers may help with it, and a run that was broken off goes on.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import date, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections
from rich.table import Table

from hpts import audit, fields
from hpts.problems import Problem
from hpts.tenancy import tenant_transaction
from ledger import queries, runs
from ledger.management.terminal import drawn, known_tenant, progress
from ledger.money import in_major_units
from ledger.posting import Origin, Posting, Touches, opened

ACTOR = "command:accrue"
NAMED = 20


class Command(BaseCommand):
    help = "Accrue a day of interest, or several, on all loans of a program that the engine accrues."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="ID")
        parser.add_argument("--program", required=True, metavar="ID")
        parser.add_argument("--date", metavar="DATE", help="the accrual date; today when it is left out")
        parser.add_argument("--through", metavar="DATE", help="a run for each date from --date to this one")
        parser.add_argument("--jobs", type=int, default=2, metavar="N", help="chunks side by side")
        parser.add_argument(
            "--json", action="store_true", help="print the answer of GET /v1/accrual-runs/{id}, a line for each run"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        tenant_id = known_tenant(options["tenant"])
        shown = not options["json"]
        done = []
        try:
            program_id = str(fields.Uuid.parse(options["program"]))
            first, last = (options[name] and fields.IsoDate.parse(options[name]) for name in ("date", "through"))
            for accrual_date in _dates(tenant_id, first, last):
                run_id = _request(tenant_id, program_id, accrual_date)
                _work(tenant_id, run_id, options["jobs"], title=f"Accruing {accrual_date}, in chunks", shown=shown)
                while "finished_at" not in (run := _shown(tenant_id, run_id)):
                    # Another process has the last chunks; when it dies they are ours.
                    time.sleep(0.2)
                    runs.work(tenant_id, run_id)
                done.append(run)
                if options["json"]:
                    self.stdout.write(json.dumps(done[-1]))
        except fields.FieldError as error:
            raise CommandError(error.message) from None
        except Problem as problem:
            raise CommandError(f"{problem.title}: {problem.detail}") from None
        if shown:
            self.stdout.write(_story(done, _currency(tenant_id, program_id)))


def _dates(tenant_id: str, first: date | None, last: date | None) -> list[date]:
    """From the first to the last; one of them alone, or today."""
    if first is None or last is None:
        with tenant_transaction(tenant_id) as cursor:
            first = first or last or queries.today(cursor)
            last = last or first
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def _request(tenant_id: str, program_id: str, accrual_date: date) -> str:
    origin = Origin(tenant_id, ACTOR, str(uuid.uuid4()))
    with opened(origin, Touches()) as (posting, _):
        assert isinstance(posting, Posting)
        if queries.program(posting.cursor, program_id=program_id, on=posting.today) is None:
            raise CommandError(f"There is no program {program_id}.")
        posting.admit_date(accrual_date)
        run_id = runs.request_run(posting.cursor, program_id=program_id, accrual_date=accrual_date, origin=origin)
        audit.record(origin.as_caller(), "startAccrualRun", about=("accrual run", run_id), cursor=posting.cursor)
        return run_id


def _work(tenant_id: str, run_id: str, jobs: int, *, title: str, shown: bool) -> None:
    def job() -> None:
        try:
            runs.work(tenant_id, run_id)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(max_workers=max(jobs, 1)) as pool:
        waiting = {pool.submit(job) for _ in range(max(jobs, 1))}
        progress(title, _done_of(tenant_id, run_id, waiting), shown=shown)
        for each in waiting:
            each.result()


def _done_of(tenant_id: str, run_id: str, waiting: set[Any]) -> Iterator[tuple[int, int]]:
    """Chunks done and chunks in all, twice a second, until the jobs have ended."""
    unfinished = waiting
    while unfinished:
        _, unfinished = wait(unfinished, timeout=0.5, return_when=FIRST_EXCEPTION)
        with tenant_transaction(tenant_id) as cursor:
            total, done = queries.run_progress(cursor, run_id=run_id)
        yield done, total


def _shown(tenant_id: str, run_id: str) -> dict[str, Any]:
    with tenant_transaction(tenant_id) as cursor:
        run = queries.accrual_run(cursor, run_id=run_id)
        assert run is not None
        return run | {"exceptions": queries.accrual_exceptions(cursor, run_id=run_id, limit=1_000)}


def _currency(tenant_id: str, program_id: str) -> str:
    with tenant_transaction(tenant_id) as cursor:
        program = queries.program(cursor, program_id=program_id, on=queries.today(cursor))
    assert program is not None
    return str(program["currency"])


def _story(done: list[dict[str, Any]], currency: str) -> str:
    table = Table(title="Accrual runs")
    table.add_column("Date", no_wrap=True)
    for name in ("Loans", "Accrued", "Left out", f"Interest, {currency}", "Loans/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in done:
        figures = (f"{run[name]:,}" for name in ("loan_count", "accrued_count", "exception_count"))
        seconds = (
            datetime.fromisoformat(run["finished_at"]) - datetime.fromisoformat(run["started_at"])
        ).total_seconds()
        table.add_row(
            run["accrual_date"],
            *figures,
            in_major_units(int(run["total_accrued_minor"]), currency),
            f"{run['loan_count'] / seconds:,.0f}",
        )
    left = [(run["accrual_date"], each) for run in done for each in run["exceptions"]]
    if not left:
        return drawn(table)
    exceptions = Table("Accrual date", "Loan", "Code", "Why", title="Not accrued")
    for accrual_date, each in left[:NAMED]:
        exceptions.add_row(accrual_date, each["loan_id"], each["code"], each["detail"])
    return drawn(table, exceptions)
