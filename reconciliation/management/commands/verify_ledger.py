"""`manage.py verify_ledger`: prove the promises of the books (reconciliation/checks.py) for every tenant. Reads only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from hpts.tenancy import tenant_transaction
from ledger.management.terminal import bar, known_tenant
from ledger.queries import tenants as all_tenants
from reconciliation import checks


class Command(BaseCommand):
    help = "Prove every promise of the books. Exit code 1, and the first bad rows named, when one is broken."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--tenant", action="append", metavar="ID", help="only this tenant; may be given several times"
        )
        parser.add_argument("--json", action="store_true", help="print {ok, tenants: [{tenant_id, checks}]} as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        tenants = [known_tenant(text) for text in options["tenant"]] if options["tenant"] else all_tenants()
        found: dict[str, dict[str, list[checks.Breach]]] = {tenant_id: {} for tenant_id in tenants}
        readings = len(tenants) * len(checks.CHECKS)
        for tenant_id, name, breaches in bar(
            _read(tenants), "Proving the books", total=readings, shown=not options["json"]
        ):
            found[tenant_id][name] = breaches
        self.stdout.write(json.dumps(_report(found)) if options["json"] else _story(found))
        broken = sum(bool(breaches) for checks in found.values() for breaches in checks.values())
        if broken:
            raise CommandError(f"The books are not in order: {broken} of {readings} checks failed.")


def _read(tenants: list[str]) -> Iterator[tuple[str, str, list[checks.Breach]]]:
    """Tenant, check, and what it found, one after the other."""
    for tenant_id in tenants:
        with tenant_transaction(tenant_id, using="readonly") as cursor:
            # A proof reads whole tables; the limit of a request is not for it.
            cursor.execute("SET LOCAL statement_timeout = 0")
            for check in checks.CHECKS:
                yield tenant_id, check.__name__, check(cursor)


def _report(found: dict[str, dict[str, list[checks.Breach]]]) -> dict[str, Any]:
    tenants = [
        {
            "tenant_id": tenant_id,
            "checks": [
                {
                    "name": name,
                    "ok": not breaches,
                    "breaches": [{"table": b.table, "row": b.row, "problem": b.problem} for b in breaches],
                }
                for name, breaches in checks.items()
            ],
        }
        for tenant_id, checks in found.items()
    ]
    return {"ok": not any(any(checks.values()) for checks in found.values()), "tenants": tenants}


def _story(found: dict[str, dict[str, list[checks.Breach]]]) -> str:
    lines = []
    for tenant_id, checks in found.items():
        failed = {name: breaches for name, breaches in checks.items() if breaches}
        lines.append(f"Tenant {tenant_id}: {len(checks) - len(failed)} of {len(checks)} checks passed")
        for name, breaches in failed.items():
            lines.append(f"  {name}")
            lines += [f"    {breach}" for breach in breaches]
    return "\n".join(lines or ["There are no tenants."])
