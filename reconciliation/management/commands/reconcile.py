"""`manage.py reconcile`: reconcile every bank account now, as every night."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from hpts import fields
from hpts.tenancy import SNAPSHOT, tenant_transaction
from ledger.management.terminal import bar, known_tenant
from ledger.queries import tenants, today
from reconciliation import queries, runs
from reconciliation.status import status

ACTOR = "command:reconcile"


class Command(BaseCommand):
    help = "Reconcile every bank account. Exit code 1 when the books or a bank account do not agree."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--tenant", action="append", metavar="ID", help="only this tenant; may be given several times"
        )
        parser.add_argument(
            "--as-of-date", metavar="DATE", help="YYYY-MM-DD; by default today in the tenant's time zone"
        )
        parser.add_argument("--json", action="store_true", help="print a list of {tenant_id, ...status}")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            as_of = options["as_of_date"] and fields.IsoDate.parse(options["as_of_date"])
        except fields.FieldError as error:
            raise CommandError(f"--as-of-date: {error.message}") from None
        chosen = [known_tenant(text) for text in options["tenant"]] if options["tenant"] else tenants()
        found = [
            {"tenant_id": tenant_id, **_reconciled(tenant_id, as_of)}
            for tenant_id in bar(chosen, "Reconciling", total=len(chosen), shown=not options["json"])
        ]
        self.stdout.write(json.dumps(found) if options["json"] else "\n".join(map(_story, found)))
        if any(_differs(each) for each in found):
            raise CommandError("Not everything agrees: see the breaks.")


def _reconciled(tenant_id: str, as_of: Any) -> dict[str, Any]:
    """Run, and what the status says afterwards."""
    with tenant_transaction(tenant_id) as cursor:
        run_id = runs.request_run(cursor, as_of=as_of or today(cursor), actor=ACTOR)
    runs.work_off(tenant_id)
    with tenant_transaction(tenant_id, first=SNAPSHOT) as cursor:
        if run_id and queries.run(cursor, run_id=run_id)["state"] == "failed":
            raise CommandError(f"The run of tenant {tenant_id} failed; the log says why.")
        return status(cursor, as_of or today(cursor))


def _differs(found: dict[str, Any]) -> bool:
    banks = any(bank["status"] == "unreconciled" for bank in found["bank_reconciliation"])
    return banks or "mismatch" in (found["ledger_integrity"]["status"], found["portfolio_rollup"]["status"])


def _story(found: dict[str, Any]) -> str:
    head = f"Tenant {found['tenant_id']} as of {found['as_of_date']}"
    proofs = f"books {found['ledger_integrity']['status']}, portfolio {found['portfolio_rollup']['status']}"
    banks = (
        f"  {bank['bank_account_ref']}: {bank['status']}, bank minus ledger {bank['difference_minor']}"
        for bank in found["bank_reconciliation"]
    )
    return "\n".join([f"{head}: {proofs}", *banks])
