"""`manage.py seed_demo_bank`: two weeks of a bank's statement for the demo tenant, with a few things that differ."""

from __future__ import annotations

import csv
import io
from datetime import date, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from hpts.tenancy import SNAPSHOT, tenant_transaction
from ledger.management.terminal import known_tenant
from ledger.money import exponent
from ledger.queries import cash_lines, tenant_currency, today
from reconciliation import runs
from reconciliation.accounts import DEFAULT_ACCOUNT_CODE
from reconciliation.importing import StatementFile, import_statement, read_file

ACTOR = "command:seed_demo_bank"
REF = "First National 4711"
DAYS = 14
# What the bank took and the books do not know.
BANK_FEE = -2_500


class Command(BaseCommand):
    help = "Import a bank statement that shows what the books show, but for a fee and for one payment; then reconcile."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="ID")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant_id = known_tenant(options["tenant"])
        with tenant_transaction(tenant_id, first=SNAPSHOT) as cursor:
            currency, until = tenant_currency(cursor), today(cursor) - timedelta(days=1)
            since = until - timedelta(days=DAYS - 1)
            opening, lines = cash_lines(cursor, code=DEFAULT_ACCOUNT_CODE, currency=currency, since=since, until=until)
        file = _file(currency, since, until, opening, lines)
        with tenant_transaction(tenant_id) as cursor:
            import_statement(cursor, file, ACTOR)
        with tenant_transaction(tenant_id) as cursor:
            runs.request_run(cursor, as_of=until, actor=ACTOR)
        runs.work_off(tenant_id)


def _file(
    currency: str, since: date, until: date, opening: int, lines: list[tuple[date, int, str | None]]
) -> StatementFile:
    """The statement as a CSV file, read by the product's own parser. One payment with a reference has not arrived."""
    missing = next((index for index in range(len(lines) - 1, -1, -1) if lines[index][1] > 0), None)
    booked = [line for index, line in enumerate(lines) if index != missing]
    booked = sorted([*booked, (since + timedelta(days=DAYS // 2), BANK_FEE, None)], key=lambda line: line[0])
    places = exponent(currency)

    def amount(minor: int) -> str:
        digits = f"{abs(minor):0{places + 1}d}"
        return ("-" if minor < 0 else "") + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["date", "amount", "currency", "reference", "description"])
    writer.writerow([since, amount(opening), currency, "opening", ""])
    for day, minor, reference in booked:
        description = "Monthly account fee" if minor == BANK_FEE else "Payment" if minor > 0 else "Transfer"
        writer.writerow([day, amount(minor), currency, reference or "", description])
    writer.writerow([until, amount(opening + sum(minor for _, minor, _ in booked)), currency, "closing", ""])
    return read_file(io.BytesIO(text.getvalue().encode()), bank_account_ref=REF, format="csv")
