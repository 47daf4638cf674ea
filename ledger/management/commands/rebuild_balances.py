"""`manage.py rebuild_balances`: make the loans' balances the sums of their lines again.

The application's role cannot write balances except by posting, so this runs as the owner of the schema
(HPTS_OWNER_DATABASE_URL), inside the tenant's row security like everyone. A dry run only reads, as the reporting role.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import ProgrammingError
from rich.table import Table

from hpts.problems import Problem
from hpts.tenancy import tenant_transaction
from ledger.management.terminal import bar, drawn, known_tenant
from ledger.posting import with_retries
from ledger.proof import BALANCE_DIFFERENCES

# So many loans are locked at a time: their postings wait for some milliseconds, no longer.
LOCKED_TOGETHER = 100

LOCK = "SELECT FROM loan WHERE tenant_id = %(tenant)s AND id = ANY (%(loans)s::uuid[]) ORDER BY id FOR NO KEY UPDATE"
FIND = f"SELECT loan_id::text, account_code, layer, recorded, minor FROM ({BALANCE_DIFFERENCES}) d ORDER BY 1, 2, 3"
# A row without lines is brought to zero: balances never go.
REPAIR = f"""
    WITH d AS MATERIALIZED ({BALANCE_DIFFERENCES}), moved AS (
        UPDATE loan_balance b SET balance_minor = d.minor FROM d
        WHERE b.tenant_id = %(tenant)s AND b.loan_id = d.loan_id AND b.account_code = d.account_code AND b.layer = d.layer
    ), added AS (
        INSERT INTO loan_balance (tenant_id, loan_id, account_code, layer, currency, balance_minor, floored)
        SELECT %(tenant)s, loan_id, account_code, layer, currency, minor, floored FROM d WHERE recorded IS NULL
    )
    SELECT loan_id::text, account_code, layer, recorded, minor FROM d ORDER BY 1, 2, 3
"""


class Command(BaseCommand):
    help = "Recompute a tenant's loan balances from the lines, under each loan's lock, and report what differed."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="ID")
        parser.add_argument("--dry-run", action="store_true", help="report, and change nothing")
        parser.add_argument(
            "--json", action="store_true", help="print {tenant_id, dry_run, loans, differences} as JSON"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        tenant_id = known_tenant(options["tenant"])
        loans = _loans(tenant_id)
        chunks = [loans[start : start + LOCKED_TOGETHER] for start in range(0, len(loans), LOCKED_TOGETHER)]
        visit = _find if options["dry_run"] else _repair
        try:
            differences = [
                difference
                for chunk in bar(chunks, "Summing the lines", total=len(chunks), shown=not options["json"])
                for difference in visit(tenant_id, chunk)
            ]
        except Problem as problem:
            raise CommandError(f"{problem.title}: {problem.detail} Loans visited before stay repaired.") from problem
        except ProgrammingError as error:
            raise CommandError(f"Set HPTS_OWNER_DATABASE_URL to the owner of the schema: {error}") from error
        report = {
            "tenant_id": tenant_id,
            "dry_run": options["dry_run"],
            "loans": len(loans),
            "differences": differences,
        }
        self.stdout.write(json.dumps(report) if options["json"] else _story(report))


def _loans(tenant_id: str) -> list[str]:
    with tenant_transaction(tenant_id, using="readonly") as cursor:
        cursor.execute("SELECT id::text FROM loan WHERE tenant_id = %s ORDER BY id", (tenant_id,))
        return [loan_id for (loan_id,) in cursor.fetchall()]


def _find(tenant_id: str, loans: list[str]) -> list[dict[str, str | None]]:
    with tenant_transaction(tenant_id, using="readonly") as cursor:
        cursor.execute(FIND, {"tenant": tenant_id, "loans": loans})
        return list(_differences(cursor.fetchall()))


def _repair(tenant_id: str, loans: list[str]) -> list[dict[str, str | None]]:
    def attempt() -> list[dict[str, str | None]]:
        with tenant_transaction(tenant_id, using="owner") as cursor:
            cursor.execute(LOCK, {"tenant": tenant_id, "loans": loans})
            # A statement of its own: its snapshot is younger than the locks, so it sees all that was posted before them.
            cursor.execute(REPAIR, {"tenant": tenant_id, "loans": loans})
            return list(_differences(cursor.fetchall()))

    return with_retries(attempt)


def _differences(rows: list[tuple[Any, ...]]) -> Iterator[dict[str, str | None]]:
    for loan_id, account_code, layer, recorded, minor in rows:
        yield {
            "loan_id": loan_id,
            "account_code": account_code,
            "layer": layer,
            "recorded_minor": None if recorded is None else str(recorded),
            "recomputed_minor": str(minor),
        }


def _story(report: dict[str, Any]) -> str:
    verb = "differ" if report["dry_run"] else "differed and were put right"
    summary = f"{len(report['differences'])} balances of {report['loans']} loans {verb}."
    if not report["differences"]:
        return summary
    table = Table("Loan", "Account", "Layer")
    table.add_column("Recorded", justify="right")
    table.add_column("Sum of lines", justify="right")
    for difference in report["differences"]:
        table.add_row(*(value or "missing" for value in difference.values()))
    return drawn(table, summary)
