"""`manage.py seed_demo_webhooks`: an endpoint of the demo tenant at which nobody listens, to look at failing deliveries."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from hpts.tenancy import tenant_transaction
from ledger.management.terminal import known_tenant
from webhooks import operations, queries, signing
from webhooks import serializers as shapes
from webhooks.relay import relay

# Port 9 discards; on this machine nothing listens there.
URL = "http://127.0.0.1:9/hpts"
DESCRIPTION = "Demo: nobody listens here"


class Command(BaseCommand):
    help = (
        "Make the endpoint, once, and send it a test. Works where WEBHOOK_ALLOW_PRIVATE_TARGETS is on, as in make run."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="ID")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant_id = known_tenant(options["tenant"])
        # What was posted before is not sent to an endpoint that is made behind it in the feed.
        while relay(tenant_id):
            pass
        with tenant_transaction(tenant_id) as cursor:
            if any(
                each["url"] == URL for each in queries.endpoints(cursor, after=None, limit=operations.MAX_ENDPOINTS)
            ):
                return
            body = shapes.NewWebhookEndpoint(url=URL, description=DESCRIPTION)  # type: ignore[arg-type]
            made = operations.create_endpoint(cursor, body, signing.new_secret(), None)
            operations.send_test(cursor, made["webhook_endpoint_id"])
