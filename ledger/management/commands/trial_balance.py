"""`manage.py trial_balance`: every account of a tenant with its debits, credits and balance, as of a date."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.table import Table

from hpts import fields
from hpts.tenancy import tenant_transaction
from ledger import queries
from ledger.events import LAYERS, SETTLED
from ledger.management.terminal import drawn, known_tenant
from ledger.money import in_major_units


class Command(BaseCommand):
    help = "Print a tenant's trial balance."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="ID")
        parser.add_argument("--currency", help="ISO 4217 code; the tenant's own when it is left out")
        parser.add_argument("--layer", choices=LAYERS, default=SETTLED)
        parser.add_argument(
            "--as-of", metavar="DATE", help="entries effective on or before it; today when it is left out"
        )
        parser.add_argument("--json", action="store_true", help="print the answer of GET /v1/trial-balance")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant_id = known_tenant(options["tenant"])
        try:
            currency = options["currency"] and str(fields.CurrencyCode.parse(options["currency"]))
            as_of: date | None = options["as_of"] and fields.IsoDate.parse(options["as_of"])
        except fields.FieldError as error:
            raise CommandError(error.message) from None
        with tenant_transaction(tenant_id, using="readonly") as cursor:
            cursor.execute("SET LOCAL statement_timeout = 0")
            as_of = as_of or queries.today(cursor)
            currency = currency or queries.tenant_currency(cursor)
            balances = queries.trial_balance(cursor, currency=currency, layer=options["layer"], as_of=as_of)
        answer = {
            "as_of_date": as_of.isoformat(),
            "currency": currency,
            "layer": options["layer"],
            "accounts": [
                {
                    "account_code": balance.account.code,
                    "account_name": balance.account.name,
                    "dr_balance_minor": str(balance.dr_minor),
                    "cr_balance_minor": str(balance.cr_minor),
                    "normal_balance_minor": str(balance.normal_minor),
                }
                for balance in balances
            ],
            "total_dr_minor": str(sum(balance.dr_minor for balance in balances)),
            "total_cr_minor": str(sum(balance.cr_minor for balance in balances)),
        }
        self.stdout.write(json.dumps(answer) if options["json"] else drawn(_table(answer)))


def _table(answer: dict[str, Any]) -> Table:
    def money(minor: str) -> str:
        return in_major_units(int(minor), answer["currency"])

    title = f"Trial balance in {answer['currency']}, {answer['layer']}, as of {answer['as_of_date']}"
    table = Table(title=title, show_footer=True)
    table.add_column("Account", footer="Total")
    table.add_column("Name")
    table.add_column("Debits", footer=money(answer["total_dr_minor"]), justify="right")
    table.add_column("Credits", footer=money(answer["total_cr_minor"]), justify="right")
    table.add_column("Balance", justify="right")
    for account in answer["accounts"]:
        amounts = (money(account[f"{kind}_balance_minor"]) for kind in ("dr", "cr", "normal"))
        table.add_row(account["account_code"], account["account_name"], *amounts)
    return table
