"""`manage.py webhooks status|replay`: what waits and what has failed, and sending it again. Sends nothing itself."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from hpts import fields
from hpts.problems import Problem
from hpts.tenancy import tenant_transaction
from ledger.management.terminal import bar, known_tenant
from ledger.queries import tenants
from webhooks import operations, queries
from webhooks.models import UNDELIVERED


class Command(BaseCommand):
    help = "What waits to be announced and what has failed; or send again what an endpoint has missed."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        status = actions.add_parser("status", help="exit code 1 when the relay is stuck")
        replay = actions.add_parser("replay", help="every unacknowledged event since an instant is due now")
        replay.add_argument("--endpoint", required=True, metavar="ID")
        replay.add_argument("--since", required=True, metavar="INSTANT", help="UTC, such as 2026-03-01T12:00:00Z")
        status.add_argument("--tenant", metavar="ID", help="only this tenant")
        replay.add_argument("--tenant", required=True, metavar="ID")
        for action in (status, replay):
            action.add_argument("--json", action="store_true", help="print JSON and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["action"] == "replay":
            self._replay(options)
        else:
            self._status(options)

    def _status(self, options: dict[str, Any]) -> None:
        asked = [known_tenant(options["tenant"])] if options["tenant"] else tenants()
        found: dict[str, dict[str, Any]] = {}
        for tenant_id in bar(asked, "Looking at tenants", total=len(asked), shown=not options["json"]):
            with tenant_transaction(tenant_id) as cursor:
                found[tenant_id] = queries.figures(cursor)
        if options["json"]:
            self.stdout.write(json.dumps([{"tenant_id": tenant_id, **each} for tenant_id, each in found.items()]))
        else:
            self.stdout.write(_story(found))
        try:
            queries.check_relay()
        except queries.RelayBehind as behind:
            raise CommandError(str(behind)) from None

    def _replay(self, options: dict[str, Any]) -> None:
        try:
            endpoint_id, since = fields.Uuid.parse(options["endpoint"]), fields.Timestamp.parse(options["since"])
        except fields.FieldError as error:
            raise CommandError(error.message) from None
        try:
            with tenant_transaction(known_tenant(options["tenant"])) as cursor:
                done = operations.recover(cursor, endpoint_id, since)
        except Problem as problem:
            raise CommandError("; ".join(error.message for error in problem.errors) or problem.detail) from None
        self.stdout.write(json.dumps(done) if options["json"] else f"{done['delivery_count']} deliveries are due now.")


def _story(found: dict[str, dict[str, Any]]) -> str:
    lines = []
    for tenant_id, each in found.items():
        endpoints = ", ".join(f"{count} {state}" for state, count in each["endpoints"].items())
        failed = ", ".join(f"{each[state]} {state}" for state in UNDELIVERED)
        retried = f"{each['retrying']} to be tried again, {each['in_flight']} in flight"
        lines += [
            f"Tenant {tenant_id}",
            f"  feed: {each['events']} events, {each['waiting_for_relay']} waiting{_oldest(each['oldest_waiting_seconds'])}",
            f"  endpoints: {endpoints}",
            f"  deliveries: {each['due']} due{_oldest(each['oldest_due_seconds'])}, {retried}, {failed}",
        ]
    return "\n".join(lines or ["There are no tenants."])


def _oldest(seconds: float | None) -> str:
    return "" if seconds is None else f" (the oldest for {seconds:,.0f} s)"
