"""`manage.py tenant_quota`: how many requests a second a tenant and each of its clients may make.

The application's role cannot change a tenant, so this runs as the owner of the schema (HPTS_OWNER_DATABASE_URL).
"""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import ProgrammingError

from hpts.tenancy import tenant_transaction
from ledger import queries
from ledger.management.terminal import known_tenant

HIGHEST = 1_000_000


class Command(BaseCommand):
    help = "Show or set a tenant's quotas. The API heeds a change within a minute."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="ID")
        parser.add_argument("--requests-per-second", type=int, metavar="N", help="of the whole tenant")
        parser.add_argument("--client-requests-per-second", type=int, metavar="N", help="of each of its clients")
        parser.add_argument("--default", action="store_true", help="what the settings say, for both, unless given")
        parser.add_argument("--json", action="store_true", help="print both as JSON; null: what the settings say")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant_id = known_tenant(options["tenant"])
        asked = (options["requests_per_second"], options["client_requests_per_second"])
        if any(each is not None and not 1 <= each <= HIGHEST for each in asked):
            raise CommandError(f"A quota is 1 to {HIGHEST:,} requests a second.")
        if options["default"] or asked != (None, None):
            kept = (None, None) if options["default"] else queries.tenant_quota(tenant_id)
            _set(tenant_id, *(was if wanted is None else wanted for wanted, was in zip(asked, kept, strict=True)))
        tenant, client = queries.tenant_quota(tenant_id)
        if options["json"]:
            quota = {"requests_per_second": tenant, "client_requests_per_second": client}
            self.stdout.write(json.dumps({"tenant_id": tenant_id, **quota}))
            return
        self.stdout.write(
            f"Tenant {tenant_id}: {_told(tenant, settings.TENANT_REQUESTS_PER_SECOND)} requests a second, "
            f"each client {_told(client, settings.CLIENT_REQUESTS_PER_SECOND)}."
        )


def _set(tenant_id: str, tenant: int | None, client: int | None) -> None:
    try:
        with tenant_transaction(tenant_id, using="owner") as cursor:
            cursor.execute(
                "UPDATE tenant SET requests_per_second = %s, client_requests_per_second = %s WHERE id = %s",
                (tenant, client, tenant_id),
            )
    except ProgrammingError as error:
        raise CommandError(f"Set HPTS_OWNER_DATABASE_URL to the owner of the schema: {error}") from error


def _told(own: int | None, general: int) -> str:
    return f"{own:,}" if own is not None else f"{general:,} (as the settings say)"
