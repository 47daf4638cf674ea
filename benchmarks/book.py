"""The book that is measured on: tenants, loans that owe principal and interest, and the requests about them.

Everything is posted through the product's own write path, many entries to a transaction. Ids are made from numbers, so
that pgbench can name a loan; they look random to an index. Needs Django to be set up for the bench's own servers.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import NamedTuple, TypeVar

from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from hpts import oauth
from hpts.pipeline import Statement, Value
from hpts.tenancy import tenant_transaction
from ledger import masters
from ledger.chart import RECEIVABLES
from ledger.events import Accrual, AccruedLoan, Disbursement, PaymentReceived
from ledger.posting import Origin, Posting, Touches, opened

TENANTS = 10
OPENED_ON = date(2025, 1, 1)
PRINCIPAL_MINOR = 100_000_000
INTEREST_MINOR = 10_000
# More than the interest, so that each payment has three lines: cash, interest, principal.
PAYMENT_MINOR = 15_000
# The first loans of each tenant are kept apart: the database part pays them, and the first of them have long histories.
RESERVED_LOANS = 500
HISTORY_LOANS = 10
HISTORY_ENTRIES = 60
# One loan of the first tenant has a life that is longer than most.
LONG_LOAN = HISTORY_LOANS
LONG_ENTRIES = 5_000
BATCH_PAYMENTS = 100
BATCH = 250

T = TypeVar("T")


class Target(NamedTuple):
    """A loan to pay."""

    tenant: int
    loan_id: str
    borrower_id: str


def uuid_of(name: str) -> str:
    """The id of `tenant 3`, `loan 3 17` or `borrower 3 17`; PostgreSQL spells it md5('loan 3 17')::uuid."""
    return str(uuid.UUID(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()))


def target(tenant: int, loan: int) -> Target:
    return Target(tenant, uuid_of(f"loan {tenant} {loan}"), uuid_of(f"borrower {tenant} {loan}"))


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@dataclass
class Book:
    """`loans` per tenant. Payments go through the book in a shuffled order, each loan once per day of interest."""

    loans: int
    accrued_days: int = 0
    position: int = 0

    def __post_init__(self) -> None:
        self.order = [
            (tenant, loan) for tenant in range(TENANTS) for loan in range(RESERVED_LOANS, RESERVED_LOANS + self.loans)
        ]
        random.Random(1).shuffle(self.order)
        self.tokens: list[str] = []
        self.clients: list[tuple[str, str]] = []
        self.born_at = ""

    # --- Making it ---------------------------------------------------------------------------------------------------

    def make(self, advance: Callable[[int], None]) -> None:
        """Create and fill the book. `advance` hears of every finished loan."""
        for tenant in range(TENANTS):
            tenant_id = uuid_of(f"tenant {tenant}")
            with tenant_transaction(tenant_id) as cursor:
                masters.create_tenant(cursor, name=f"Lender {tenant}", currency="USD", timezone="UTC")
                masters.create_program(
                    cursor,
                    on=OPENED_ON,
                    program_id=uuid_of(f"program {tenant}"),
                    name="Instalment loans",
                    currency="USD",
                    annual_rate_bps=1200,
                    day_count_convention="ACT_365",
                    waterfall=RECEIVABLES,
                    accrual_mode="client",
                )
                self._create_loans(cursor, tenant)
            client, secret = oauth.register_client(tenant_id=tenant_id, scopes=oauth.SCOPES)
            self.clients.append((client.client_id, secret))
            self._disburse(tenant, advance)
        self.accrue()
        self.born_at = timezone.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        for tenant in range(TENANTS):
            for loan in range(HISTORY_LOANS):
                self._pay_often(target(tenant, loan))
        for _ in range(LONG_ENTRIES // HISTORY_ENTRIES):
            self._pay_often(target(0, LONG_LOAN))

    def _targets(self, tenant: int) -> list[Target]:
        return [target(tenant, loan) for loan in range(RESERVED_LOANS + self.loans)]

    def _create_loans(self, cursor: CursorWrapper, tenant: int) -> None:
        cursor.executemany(
            """INSERT INTO loan (tenant_id, id, borrower_id, program_id, currency, opened_on)
               VALUES (%s, %s, %s, %s, 'USD', %s)""",
            [
                (uuid_of(f"tenant {tenant}"), t.loan_id, t.borrower_id, uuid_of(f"program {tenant}"), OPENED_ON)
                for t in self._targets(tenant)
            ],
        )

    def _disburse(self, tenant: int, advance: Callable[[int], None]) -> None:
        for some in _batches(self._targets(tenant), BATCH):
            with _posting(tenant, Touches(loans=[t.loan_id for t in some], since=OPENED_ON)) as posting:
                for t in some:
                    posting.post(
                        Disbursement(
                            loan_id=t.loan_id, amount_minor=PRINCIPAL_MINOR, currency="USD", effective_at=OPENED_ON
                        )
                    )
            advance(len(some))

    def accrue(self) -> None:
        """One more day of interest for every loan, and the order of payments begins again."""
        self.accrued_days += 1
        self.position = 0
        day = OPENED_ON + timedelta(days=self.accrued_days)
        for tenant in range(TENANTS):
            for some in _batches([t.loan_id for t in self._targets(tenant)], 4_000):
                items = tuple(
                    AccruedLoan(
                        loan_id=loan_id, outstanding_principal_minor=PRINCIPAL_MINOR, interest_minor=INTEREST_MINOR
                    )
                    for loan_id in some
                )
                with _posting(tenant, Touches(loans=some, since=day - timedelta(days=1), accrual=day)) as posting:
                    posting.post(
                        Accrual(
                            effective_at=day,
                            program_id=uuid_of(f"program {tenant}"),
                            day_count_convention="ACT_365",
                            loans=items,
                        )
                    )

    def _pay_often(self, t: Target) -> None:
        with _posting(t.tenant, Touches(loans=[t.loan_id], since=today())) as posting:
            for _ in range(HISTORY_ENTRIES):
                posting.post(payment(t, amount_minor=10))

    # --- Asking about it ---------------------------------------------------------------------------------------------

    def take(self, count: int) -> list[Target]:
        """The next loans to pay; interest accrues first when fewer are left. Say with `paid()` how many were used."""
        if self.position + count > len(self.order):
            self.accrue()
        if count > len(self.order):
            raise ValueError(f"the book has {len(self.order)} loans to pay, {count} are needed")
        return [target(*numbers) for numbers in self.order[self.position : self.position + count]]

    def paid(self, count: int) -> None:
        self.position += count

    def sign_in(self, port: int) -> None:
        """An access token for each tenant, from the token endpoint."""
        self.tokens = [self._token(port, *client) for client in self.clients]

    def _token(self, port: int, client_id: str, secret: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/oauth2/token", urllib.parse.urlencode(form), headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the token endpoint answered {answer.status}: {body[:500]!r}")
        return str(json.loads(body)["access_token"])

    def payments(self, targets: Sequence[Target]) -> list[bytes]:
        """POST /v1/payments for each, every one with a new key."""
        return [self._request("POST", "/v1/payments", t.tenant, json.dumps(_payment_body(t))) for t in targets]

    def fees(self, targets: Sequence[Target]) -> list[bytes]:
        """POST /v1/loans/{id}/fees for each."""
        fee = json.dumps({"amount_minor": "100", "currency": "USD", "effective_at": today().isoformat()})
        return [self._request("POST", f"/v1/loans/{t.loan_id}/fees", t.tenant, fee) for t in targets]

    def batches(self, targets: Sequence[Target]) -> list[bytes]:
        """POST /v1/batches of a hundred payments of one tenant, all or nothing."""
        by_tenant: dict[int, list[Target]] = {}
        for t in targets:
            by_tenant.setdefault(t.tenant, []).append(t)
        return [
            self._request(
                "POST",
                "/v1/batches",
                tenant,
                json.dumps(
                    {"mode": "atomic", "items": [{"path": "/payments", "body": _payment_body(t)} for t in some]}
                ),
            )
            for tenant, mine in by_tenant.items()
            for some in _batches(mine, BATCH_PAYMENTS)
            if len(some) == BATCH_PAYMENTS
        ]

    def statement_reads(self) -> list[bytes]:
        """GET /v1/loans/{id}/statement of the loan with the long life."""
        return [self._request("GET", f"/v1/loans/{target(0, LONG_LOAN).loan_id}/statement", 0)] * 200

    def known_reads(self) -> list[bytes]:
        """GET /v1/loans/{id}/balance as it was known when the book was young, of the loans with a history."""
        known = f"known_at={self.born_at}"
        numbers = [(tenant, loan) for loan in range(HISTORY_LOANS) for tenant in range(TENANTS)]
        return [self._request("GET", f"/v1/loans/{target(*n).loan_id}/balance?{known}", n[0]) for n in numbers]

    def balance_reads(self) -> list[bytes]:
        """GET /v1/loans/{id}/balance of two thousand loans."""
        return [
            self._request("GET", f"/v1/loans/{target(*numbers).loan_id}/balance", numbers[0])
            for numbers in self.order[:2_000]
        ]

    def history_reads(self) -> list[bytes]:
        """GET /v1/loans/{id}/journal-entries of the loans that fill a page of fifty."""
        numbers = [(tenant, loan) for loan in range(HISTORY_LOANS) for tenant in range(TENANTS)]
        return [
            self._request("GET", f"/v1/loans/{target(*n).loan_id}/journal-entries?page_size=50", n[0]) for n in numbers
        ]

    def _request(self, method: str, path: str, tenant: int, body: str | None = None) -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.tokens[tenant]}\r\n"
        if body is not None:
            head += (
                f"Idempotency-Key: {uuid.uuid4()}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            )
        return f"{head}Accept: application/json\r\n\r\n{body or ''}".encode()


def today() -> date:
    return timezone.now().date()


def _payment_body(t: Target) -> dict[str, str]:
    return {
        "loan_id": t.loan_id,
        "borrower_id": t.borrower_id,
        "amount_minor": str(PAYMENT_MINOR),
        "currency": "USD",
        "effective_at": today().isoformat(),
        "source_method": "ach",
    }


def payment(t: Target, amount_minor: int = PAYMENT_MINOR) -> PaymentReceived:
    return PaymentReceived(
        loan_id=t.loan_id,
        borrower_id=t.borrower_id,
        amount_minor=amount_minor,
        currency="USD",
        effective_at=today(),
        source_method="ach",
    )


def origin(tenant: int) -> Origin:
    return Origin(uuid_of(f"tenant {tenant}"), "client:bench", str(uuid.uuid4()))


@contextmanager
def _posting(tenant: int, touches: Touches) -> Iterator[Posting]:
    """One transaction of many entries."""
    with opened(origin(tenant), touches) as (posting, _):
        assert posting is not None
        yield posting
        posting.record()


class _Recorder:
    """A transaction that keeps what it is told to end with."""

    def finish_with(self, statement: Statement, values: Sequence[Value] = ()) -> None:
        self.values = values


def recorded_payment() -> tuple[str, str]:
    """What a payment's second round trip carries: the entries and the response, with {names} in place of what differs
    from payment to payment. The product makes them, so they are the product's own size and form."""
    t = target(0, 0)
    recorder = _Recorder()
    about = origin(0)
    with opened(about, Touches(loans=[t.loan_id], since=today())) as (posting, _):
        assert posting is not None
        loan = posting.state.loans[t.loan_id]
        loan.version = 987_654_320
        for account in ("1100", "1200"):
            loan.balances[account, "SETTLED"] = 1
        posted = posting.post(payment(t, amount_minor=2))
        posting.transaction = recorder  # type: ignore[assignment]
        response = {
            "payment_event_id": posted.journal_entry_id,
            "journal_entry_id": posted.journal_entry_id,
            "allocation": {"fees_minor": "0", "interest_minor": "1", "principal_minor": "1", "suspense_minor": "0"},
            "posted_at": posted.posted_at,
        }
        posting.record(None, None, json.dumps(response, separators=(",", ":")))
    names = {
        posted.journal_entry_id: "{entry}",
        posted.posted_at: "{posted_at}",
        about.tenant_id: "{tenant}",
        about.correlation_id: "{correlation}",
        t.loan_id: "{loan}",
        t.borrower_id: "{borrower}",
        "987654321": "{version}",
    }
    entries, answer = str(recorder.values[0]), str(recorder.values[3])
    names[json.loads(entries)[0][1]["content_hash"]] = "{hash}"
    for value, name in names.items():
        entries, answer = entries.replace(value, name), answer.replace(value, name)
    return entries, answer
