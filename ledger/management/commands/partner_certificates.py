"""`manage.py partner_certificates add|list|retire`: which certificates partners may present. Makes none itself."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from rich.markup import escape
from rich.table import Table

from hpts import certificates, oauth
from hpts.models import ClientCertificate
from ledger.management.terminal import drawn, known_tenant
from ledger.queries import tenants

# Enough to issue the next one and to have it in use everywhere.
SOON = timedelta(days=30)


class Command(BaseCommand):
    help = "Add a client's certificate, list certificates, or retire one for ever."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        add = actions.add_parser("add", help="from now on the client may present it")
        listing = actions.add_parser("list", help="the newest first")
        retire = actions.add_parser("retire", help="refused within a minute, and never accepted again")
        add.add_argument("file", type=Path, metavar="FILE", help="the certificate, PEM or DER; never the key")
        add.add_argument("--client", required=True, metavar="ID")
        listing.add_argument("--client", metavar="ID", help="only this client's")
        retire.add_argument("thumbprint", metavar="THUMBPRINT", help="as `list` shows it")
        retire.add_argument("--reason", default="replaced", help="kept with the certificate; default: replaced")
        for action in (add, retire):
            action.add_argument("--tenant", required=True, metavar="ID")
        listing.add_argument("--tenant", metavar="ID", help="only this tenant's")
        for action in (add, listing, retire):
            action.add_argument("--json", action="store_true", help="print JSON and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            found = getattr(self, f"_{options['action']}")(options)
        except (ValueError, OSError) as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            shown = [_members(each) for each in found]
            self.stdout.write(json.dumps(shown if options["action"] == "list" else shown[0]))
        else:
            self.stdout.write(drawn(_table(found)) if found else "There are no certificates.")

    def _add(self, options: dict[str, Any]) -> list[ClientCertificate]:
        client = oauth.client_for_certificate(known_tenant(options["tenant"]), options["client"])
        added = certificates.add(client, options["file"].read_bytes())
        return certificates.listed(str(client.tenant_id), client.client_id) if not options["json"] else [added]

    def _list(self, options: dict[str, Any]) -> list[ClientCertificate]:
        asked = [known_tenant(options["tenant"])] if options["tenant"] else tenants()
        return [each for tenant_id in asked for each in certificates.listed(tenant_id, options["client"])]

    def _retire(self, options: dict[str, Any]) -> list[ClientCertificate]:
        return [certificates.retire(known_tenant(options["tenant"]), options["thumbprint"], options["reason"])]


def _state(certificate: ClientCertificate) -> str:
    now = timezone.now()
    if certificate.retired_at is not None:
        return "retired"
    if certificate.not_after <= now:
        return "ended"
    if certificate.not_before > now:
        return "not yet valid"
    return "ends soon" if certificate.not_after - now < SOON else "in use"


COLOURS = {"retired": "dim", "ended": "red", "not yet valid": "cyan", "ends soon": "yellow", "in use": "green"}


def _table(found: list[ClientCertificate]) -> Table:
    table = Table(title="Certificates of partners")
    for name in ("Client", "Subject", "Thumbprint", "Ends", "State"):
        table.add_column(name, overflow="fold")
    for each in found:
        state = _state(each)
        why = f": {each.retired_reason}" if each.retired_reason else ""
        table.add_row(
            escape(each.client_id),
            escape(each.subject),
            each.thumbprint,
            f"{each.not_after:%Y-%m-%d}",
            f"[{COLOURS[state]}]{escape(state + why)}[/]",
        )
    return table


def _members(each: ClientCertificate) -> dict[str, str | None]:
    def instant(moment: datetime | None) -> str | None:
        return None if moment is None else f"{moment:%Y-%m-%dT%H:%M:%SZ}"

    return {
        "tenant_id": str(each.tenant_id),
        "client_id": each.client_id,
        "thumbprint": each.thumbprint,
        "subject": each.subject,
        "serial_number": each.serial_number,
        "not_before": instant(each.not_before),
        "not_after": instant(each.not_after),
        "added_at": instant(each.added_at),
        "retired_at": instant(each.retired_at),
        "retired_reason": each.retired_reason,
        "state": _state(each),
    }
