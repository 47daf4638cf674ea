"""`manage.py accrue`: an accrual run from the command line, in this process, with a progress bar.

The same run that the API and the schedule make: workers may help with it, and a run that was broken off goes on.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import date
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections
from rich.table import Table

from hpts import fields
from hpts.problems import Problem
from hpts.tenancy import tenant_transaction
from ledger import queries, runs
from ledger.management.terminal import drawn, known_tenant, progress
from ledger.money import in_major_units
from ledger.posting import Origin, Posting, Touches, opened

ACTOR = "command:accrue"
NAMED = 20


class Command(BaseCommand):
    help = "Accrue a day of interest on all loans of a program that the engine accrues."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="ID")
        parser.add_argument("--program", required=True, metavar="ID")
        parser.add_argument("--date", metavar="DATE", help="the accrual date; today when it is left out")
        parser.add_argument("--jobs", type=int, default=2, metavar="N", help="chunks side by side")
        parser.add_argument("--json", action="store_true", help="print the answer of GET /v1/accrual-runs/{id}")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant_id = known_tenant(options["tenant"])
        try:
            program_id = str(fields.Uuid.parse(options["program"]))
            on: date | None = options["date"] and fields.IsoDate.parse(options["date"])
            run_id = _request(tenant_id, program_id, on)
        except fields.FieldError as error:
            raise CommandError(error.message) from None
        except Problem as problem:
            raise CommandError(f"{problem.title}: {problem.detail}") from None
        _work(tenant_id, run_id, options["jobs"], shown=not options["json"])
        with tenant_transaction(tenant_id) as cursor:
            run = queries.accrual_run(cursor, run_id=run_id)
            assert run is not None
            run["exceptions"] = queries.accrual_exceptions(cursor, run_id=run_id, limit=1_000)
            program = queries.program(cursor, program_id=program_id, on=queries.today(cursor))
        assert program is not None
        self.stdout.write(json.dumps(run) if options["json"] else _story(run, program["currency"]))


def _request(tenant_id: str, program_id: str, on: date | None) -> str:
    origin = Origin(tenant_id, ACTOR, str(uuid.uuid4()))
    with opened(origin, Touches()) as (posting, _):
        assert isinstance(posting, Posting)
        if queries.program(posting.cursor, program_id=program_id, on=posting.today) is None:
            raise CommandError(f"There is no program {program_id}.")
        accrual_date = on or posting.today
        posting.admit_date(accrual_date)
        return runs.request_run(posting.cursor, program_id=program_id, accrual_date=accrual_date, origin=origin)


def _work(tenant_id: str, run_id: str, jobs: int, *, shown: bool) -> None:
    def job() -> None:
        try:
            runs.work(tenant_id, run_id)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(max_workers=max(jobs, 1)) as pool:
        waiting = {pool.submit(job) for _ in range(max(jobs, 1))}
        progress("Accruing, in chunks", _done_of(tenant_id, run_id, waiting), shown=shown)
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


def _story(run: dict[str, Any], currency: str) -> str:
    table = Table(title=f"Accrual run of {run['accrual_date']}: {run['state'].replace('_', ' ')}")
    for name in ("Loans", "Accrued", "Exceptions", "Interest"):
        table.add_column(name, justify="right")
    figures = (f"{run[name]:,}" for name in ("loan_count", "accrued_count", "exception_count"))
    table.add_row(*figures, f"{in_major_units(int(run['total_accrued_minor']), currency)} {currency}")
    if not run["exceptions"]:
        return drawn(table)
    exceptions = Table("Loan", "Code", "Why", title="Not accrued")
    for each in run["exceptions"][:NAMED]:
        exceptions.add_row(each["loan_id"], each["code"], each["detail"])
    return drawn(table, exceptions)
