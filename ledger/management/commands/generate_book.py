"""`manage.py generate_book`: a program of the engine with as many loans as one likes, lent and ready to accrue.

For trying accrual runs out and for measuring them. Where beat runs it begins to accrue the book at once, date after date.
Everything is posted through the one write path, many loans to a transaction; a repeated run makes another book.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import date, timedelta
from random import Random
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils import timezone

from hpts.tenancy import tenant_transaction
from ledger import masters, queries
from ledger.chart import RECEIVABLES
from ledger.demo import TENANT_ID
from ledger.events import Disbursement
from ledger.management.terminal import bar, known_tenant
from ledger.models import DAY_COUNTS
from ledger.posting import Origin, Touches, opened, uuid7, with_retries

ACTOR = "command:generate_book"
TOGETHER = 250
# What is lent, and how many loans have a rate of their own.
PRINCIPAL_MINOR = (50_000, 5_000_000)
OWN_RATE_SHARE = 0.1


class Command(BaseCommand):
    help = "Make a program of the engine with many loans, lent over the days before today."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", default=TENANT_ID, metavar="ID", help="the demo tenant when it is left out")
        parser.add_argument("--loans", type=int, default=1_000, metavar="N")
        parser.add_argument(
            "--days", type=int, default=7, metavar="N", help="lent on the first of so many days before today"
        )
        parser.add_argument("--rate", type=int, default=1_200, metavar="BPS", help="the program's rate per year")
        parser.add_argument("--day-count", choices=DAY_COUNTS, default="ACT_365")
        parser.add_argument("--seed", type=int, default=1, metavar="N")
        parser.add_argument(
            "--json", action="store_true", help="print {program_id, loans, from_date, currency} as JSON"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        tenant_id, loans = known_tenant(options["tenant"]), options["loans"]
        program_id = str(uuid.uuid4())
        with tenant_transaction(tenant_id) as cursor:
            since = queries.today(cursor) - timedelta(days=options["days"])
            currency = queries.tenant_currency(cursor)
            masters.create_program(
                cursor,
                on=since,
                program_id=program_id,
                name=f"Generated book of {loans}",
                currency=currency,
                annual_rate_bps=options["rate"],
                day_count_convention=options["day_count"],
                waterfall=RECEIVABLES,
                accrual_mode="client",
            )
        origin = Origin(tenant_id, ACTOR, str(uuid.uuid4()))
        rounds = -(-loans // TOGETHER)
        draw = Random(options["seed"])  # noqa: S311 (no secret)
        for number in bar(range(rounds), "Lending", total=rounds, shown=not options["json"]):
            count = min(TOGETHER, loans - number * TOGETHER)
            _lend(origin, program_id, currency, list(_drawn(draw, count, timezone.now().isoformat())), since)
        # Only now, so that no night's run finds half of the book.
        with tenant_transaction(tenant_id) as cursor:
            masters.add_program_terms(
                cursor,
                program_id=program_id,
                effective_at=since + timedelta(days=1),
                annual_rate_bps=None,
                waterfall=None,
                accrual_mode="engine",
            )
        report = {"program_id": program_id, "loans": loans, "from_date": since.isoformat(), "currency": currency}
        self.stdout.write(
            json.dumps(report)
            if options["json"]
            else f"Program {program_id} has {loans} loans, lent on {since}. Accrue it from {since + timedelta(days=1)} on."
        )


def _drawn(draw: Random, count: int, made_at: str) -> Iterator[tuple[str, int, int | None]]:
    """Loans by id, principal in minor units, and a rate of their own or None."""
    for _ in range(count):
        own_rate = draw.randrange(300, 3_000, 25) if draw.random() < OWN_RATE_SHARE else None
        yield uuid7(made_at), draw.randrange(*PRINCIPAL_MINOR), own_rate


def _lend(
    origin: Origin, program_id: str, currency: str, loans: list[tuple[str, int, int | None]], opened_on: date
) -> None:
    """Make the loans, then lend on them: one transaction each, so that a loan is never locked by its own making."""
    with tenant_transaction(origin.tenant_id) as cursor:
        masters.create_loans(
            cursor,
            program_id=program_id,
            opened_on=opened_on,
            loans=[(loan_id, str(uuid.uuid4()), own_rate) for loan_id, _, own_rate in loans],
        )

    def attempt() -> None:
        touches = Touches([loan_id for loan_id, *_ in loans], since=opened_on)
        with opened(origin, touches) as (posting, _):
            assert posting is not None
            for loan_id, principal_minor, _ in loans:
                posting.post(
                    Disbursement(
                        loan_id=loan_id, amount_minor=principal_minor, currency=currency, effective_at=opened_on
                    )
                )
            posting.record()

    with_retries(attempt)
