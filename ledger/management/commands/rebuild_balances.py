"""`manage.py rebuild_balances`: make the loans' balances and the accounts' sums what their lines say again.

The application's role can write neither except by posting and rolling up, so this runs as the owner of the schema
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
from ledger.balances import BALANCE_DIFFERENCES, SumDifference, recount
from ledger.management.terminal import bar, drawn, known_tenant, progress
from ledger.posting import with_retries

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
    help = "Recompute a tenant's loan balances and account sums from the lines, and report what differed."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="ID")
        parser.add_argument("--dry-run", action="store_true", help="report, and change nothing")
        parser.add_argument(
            "--json",
            action="store_true",
            help="print {tenant_id, dry_run, loans, differences, sum_differences} as JSON",
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
            sums: list[SumDifference] = []
            counting = recount(tenant_id, sums, repair=not options["dry_run"])
            progress("Counting the accounts", counting, shown=not options["json"])
        except Problem as problem:
            raise CommandError(f"{problem.title}: {problem.detail} Loans visited before stay repaired.") from problem
        except ProgrammingError as error:
            raise CommandError(f"Set HPTS_OWNER_DATABASE_URL to the owner of the schema: {error}") from error
        report = {
            "tenant_id": tenant_id,
            "dry_run": options["dry_run"],
            "loans": len(loans),
            "differences": differences,
            "sum_differences": [_said(each) for each in sums],
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


def _said(difference: SumDifference) -> dict[str, str | None]:
    recorded = difference.recorded or (None, None)
    return {
        "account_code": difference.account_code,
        "currency": difference.currency,
        "layer": difference.layer,
        "span": difference.span,
        "starts_on": difference.starts_on.isoformat(),
        "recorded_dr_minor": None if recorded[0] is None else str(recorded[0]),
        "recorded_cr_minor": None if recorded[1] is None else str(recorded[1]),
        "recomputed_dr_minor": str(difference.counted[0]),
        "recomputed_cr_minor": str(difference.counted[1]),
    }


def _story(report: dict[str, Any]) -> str:
    verb = "differ" if report["dry_run"] else "differed and were put right"
    parts: list[Table | str] = []
    if report["differences"]:
        parts.append(_table(report["differences"], "Loan", "Account", "Layer", money=("Recorded", "Sum of lines")))
    parts.append(f"{len(report['differences'])} balances of {report['loans']} loans {verb}.")
    if report["sum_differences"]:
        money = ("Debits recorded", "Credits recorded", "Debits of lines", "Credits of lines")
        parts.append(_table(report["sum_differences"], "Account", "Currency", "Layer", "Span", "From", money=money))
    parts.append(f"{len(report['sum_differences'])} sums of accounts {verb}.")
    return drawn(*parts)


def _table(rows: list[dict[str, str | None]], *names: str, money: tuple[str, ...]) -> Table:
    table = Table(*names)
    for name in money:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(value or "missing" for value in row.values()))
    return table
