"""`manage.py seals status|seal|verify`: how far history is sealed; sealing now; blocks against heads kept elsewhere."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.table import Table

from hpts.tenancy import tenant_transaction
from ledger import queries, seals
from ledger.management.terminal import bar, drawn, known_tenant
from reconciliation.checks import Breach, heads_are_kept, sealed_history_holds

# The sealer comes by every five seconds; an entry that has waited for so long says that none does, or that it cannot.
LATE_SECONDS = 60.0


class Command(BaseCommand):
    help = "How far history is sealed; seal what waits; or hold the blocks against heads that were kept elsewhere."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        status = actions.add_parser("status", help="exit code 1 when an entry has waited for more than a minute")
        seal = actions.add_parser("seal", help="seal what waits, now")
        verify = actions.add_parser("verify", help="exit code 1 when a block, an entry or a head does not hold")
        verify.add_argument(
            "--heads", metavar="FILE", help="saved answers of GET /v1/seals: each of their blocks must still be there"
        )
        for action in (status, seal, verify):
            action.add_argument("--tenant", metavar="ID", help="only this tenant")
            action.add_argument("--json", action="store_true", help="print JSON and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        asked = [known_tenant(options["tenant"])] if options["tenant"] else queries.tenants()
        if options["action"] == "status":
            self._status(asked, options["json"])
        elif options["action"] == "seal":
            self._seal(asked, options["json"])
        else:
            self._verify(asked, options["heads"], options["json"])

    def _status(self, asked: list[str], as_json: bool) -> None:
        waiting = {each.tenant_id: each.waiting_since for each in queries.unsealed()}
        now = datetime.now(UTC)
        found: list[dict[str, Any]] = []
        for tenant_id in bar(asked, "Looking at tenants", total=len(asked), shown=not as_json):
            with tenant_transaction(tenant_id, using="readonly") as cursor:
                head = next(iter(queries.seals(cursor, before=None, limit=1)), None)
            since = waiting.get(tenant_id)
            seconds = None if since is None else max((now - since).total_seconds(), 0.0)
            found.append({"tenant_id": tenant_id, "head": head, "waiting_seconds": seconds})
        self.stdout.write(json.dumps(found) if as_json else drawn(_table(found)))
        late = [each for each in found if (each["waiting_seconds"] or 0.0) > LATE_SECONDS]
        if late:
            raise CommandError(
                f"{len(late)} tenants have entries that wait to be sealed: is beat up, and does the worker's log say why?"
            )

    def _seal(self, asked: list[str], as_json: bool) -> None:
        made = {}
        for tenant_id in bar(asked, "Sealing", total=len(asked), shown=not as_json):
            made[tenant_id] = 0
            try:
                while count := seals.seal(tenant_id):
                    made[tenant_id] += count
            except seals.SealerStuck as stuck:
                raise CommandError(f"{tenant_id}: {stuck}") from None
        if as_json:
            self.stdout.write(json.dumps([{"tenant_id": tenant, "entries": count} for tenant, count in made.items()]))
        else:
            self.stdout.write(f"Sealed {sum(made.values()):,} entries of {len(made)} tenants.")

    def _verify(self, asked: list[str], heads: str | None, as_json: bool) -> None:
        kept = _heads(heads) if heads else {}
        if kept and len(asked) != 1:
            raise CommandError("Heads are one tenant's: say whose with --tenant.")
        found: dict[str, list[Breach]] = {}
        for tenant_id in bar(asked, "Verifying", total=len(asked), shown=not as_json):
            with tenant_transaction(tenant_id, using="readonly") as cursor:
                cursor.execute("SET LOCAL statement_timeout = 0")
                found[tenant_id] = heads_are_kept(cursor, kept) + sealed_history_holds(cursor)
        if as_json:
            rows = {tenant: [{"row": b.row, "problem": b.problem} for b in found[tenant]] for tenant in asked}
            self.stdout.write(json.dumps({"ok": not any(found.values()), "breaches": rows}))
        for tenant_id, breaches in found.items():
            if not as_json:
                self.stdout.write(f"{tenant_id}: {'sealed history holds' if not breaches else 'DOES NOT HOLD'}")
                for breach in breaches:
                    self.stdout.write(f"  {breach}")
        if any(found.values()):
            raise CommandError("Sealed history does not hold.")


def _heads(path: str) -> dict[int, str]:
    """Number and hash of the blocks in a file: a page of GET /v1/seals, or a list of such blocks."""
    try:
        saved = json.loads(Path(path).read_text("utf-8"))
        blocks = saved["items"] if isinstance(saved, dict) else saved
        return {int(block["number"]): str(block["hash"]) for block in blocks}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{path} has no heads as GET /v1/seals answers them: {error}") from None


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table(title="Sealed history")
    for name, justify in (("Tenant", "left"), ("Blocks", "right"), ("Head", "left"), ("Oldest unsealed", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for each in found:
        head, seconds = each["head"], each["waiting_seconds"]
        table.add_row(
            each["tenant_id"],
            f"{head['number']:,}" if head else "0",
            f"{head['hash'][:16]}… {'signed' if 'signature' in head else 'not signed'}" if head else "",
            "" if seconds is None else f"{seconds:.0f} s",
        )
    return table
