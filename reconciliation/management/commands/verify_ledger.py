"""`manage.py verify_ledger`: prove the promises of the books (reconciliation/checks.py) and keep what came out."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ledger.management.terminal import followed, known_tenant
from ledger.queries import tenants
from reconciliation.proving import Outcome, prove

ACTOR = "command:verify_ledger"


class Command(BaseCommand):
    help = "Prove every promise of the books. Exit code 1, and the first bad rows named, when one is broken."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--tenant", action="append", metavar="ID", help="only this tenant; may be given several times"
        )
        parser.add_argument(
            "--full",
            action="store_true",
            help="everything, not only what is new since the last proof",
        )
        parser.add_argument("--jobs", type=int, default=2, metavar="N", help="so many checks of a full proof at a time")
        parser.add_argument(
            "--json",
            action="store_true",
            help="print {ok, tenants: [{tenant_id, full, entries, lines, seconds, checks}]} as JSON",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        chosen = [known_tenant(text) for text in options["tenant"]] if options["tenant"] else tenants()
        outcomes = []
        for tenant_id in chosen:
            with followed(f"Proving {tenant_id}", shown=not options["json"]) as heard:
                outcomes.append(prove(tenant_id, full=options["full"], actor=ACTOR, jobs=options["jobs"], heard=heard))
        self.stdout.write(json.dumps(_report(outcomes)) if options["json"] else _story(outcomes))
        broken = sum(len(outcome.failed) for outcome in outcomes)
        if broken:
            readings = sum(len(outcome.findings) for outcome in outcomes)
            raise CommandError(f"The books are not in order: {broken} of {readings} checks failed.")


def _report(outcomes: list[Outcome]) -> dict[str, Any]:
    tenants = [
        {
            "tenant_id": outcome.tenant_id,
            "full": outcome.is_full,
            "entries": outcome.entries,
            "lines": outcome.lines,
            "seconds": round(outcome.seconds, 3),
            "checks": [
                {
                    "name": name,
                    "ok": not finding.breaches,
                    "seconds": round(finding.seconds, 3),
                    "breaches": [{"table": b.table, "row": b.row, "problem": b.problem} for b in finding.breaches],
                }
                for name, finding in outcome.findings.items()
            ],
        }
        for outcome in outcomes
    ]
    return {"ok": not any(outcome.failed for outcome in outcomes), "tenants": tenants}


def _story(outcomes: list[Outcome]) -> str:
    lines = []
    for outcome in outcomes:
        passed = len(outcome.findings) - len(outcome.failed)
        lines.append(
            f"Tenant {outcome.tenant_id}: {passed} of {len(outcome.findings)} checks passed, {_extent(outcome)}"
        )
        for name in outcome.failed:
            lines.append(f"  {name}")
            lines += [f"    {breach}" for breach in outcome.findings[name].breaches]
    return "\n".join(lines or ["There are no tenants."])


def _extent(outcome: Outcome) -> str:
    what = "in full" if outcome.is_full else "new since the last proof"
    return f"{outcome.entries} entries {what}, {outcome.seconds:.1f} s"
