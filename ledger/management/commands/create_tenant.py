"""`manage.py create_tenant`: a tenant with its chart of accounts."""

from __future__ import annotations

import json
import uuid
import zoneinfo
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from hpts import audit, fields
from hpts.audit import Caller
from hpts.tenancy import tenant_transaction
from ledger import masters


class Command(BaseCommand):
    help = "Create a tenant with the chart of accounts of the template consumer-lending."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--name", required=True)
        parser.add_argument("--currency", required=True, help="ISO 4217 code, such as USD")
        parser.add_argument(
            "--timezone", required=True, help="IANA name, such as America/New_York: decides which day is today"
        )
        parser.add_argument("--json", action="store_true", help="print {tenant_id} as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            name = fields.Name.parse(options["name"])
            currency = fields.CurrencyCode.parse(options["currency"])
        except fields.FieldError as error:
            raise CommandError(error.message) from None
        if options["timezone"] not in zoneinfo.available_timezones():
            raise CommandError(f"{options['timezone']!r} is not a time zone; one such as America/New_York is expected.")
        tenant_id = str(uuid.uuid4())
        with tenant_transaction(tenant_id) as cursor:
            masters.create_tenant(cursor, name=name, currency=currency, timezone=options["timezone"])
            audit.record(Caller("command:create_tenant"), "createTenant", about=("tenant", tenant_id), cursor=cursor)
        self.stdout.write(json.dumps({"tenant_id": tenant_id}) if options["json"] else f"Tenant {name}: {tenant_id}")
