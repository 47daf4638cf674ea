"""What the tests of reconciliation share: statements as CSV, books with cash, and what the API says of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from django.http import HttpResponse

from hpts import embedded
from tests.conftest import Api, Json, Lender, line, posted, shown

SAMPLES = Path(embedded.ROOT) / "examples" / "statements"
CLEAN = {
    "camt053": SAMPLES / "2026-02-clean.xml",
    "mt940": SAMPLES / "2026-02-clean.sta",
    "bai2": SAMPLES / "2026-02-clean.bai",
    "csv": SAMPLES / "2026-02-clean.csv",
}
BROKEN = SAMPLES / "2026-03-breaks.csv"
STATUS = "/v1/reconciliation/status"
BREAKS = "/v1/reconciliation/breaks"

# A line of a statement: date, amount in dollars, reference, description.
Row = tuple[str, str, str] | tuple[str, str, str, str]


def csv_of(first: str, last: str, rows: Iterable[Row], opening: str = "0.00", currency: str = "USD") -> bytes:
    """A statement that adds up."""
    given = list(rows)
    closing = Decimal(opening) + sum((Decimal(row[1]) for row in given), Decimal(0))
    text = ["date,amount,currency,reference,description", f"{first},{opening},{currency},opening,"]
    text += [f"{row[0]},{row[1]},{currency},{row[2]},{row[3] if len(row) > 3 else ''}" for row in given]
    return "\n".join([*text, f"{last},{closing},{currency},closing,", ""]).encode()


class Bank:
    """A bank account of a lender, through the API."""

    def __init__(self, lender: Lender, ref: str = "operating") -> None:
        self.lender = lender
        self.api: Api = lender.api
        self.ref = ref

    def send(self, content: bytes, name: str = "csv", **more: Any) -> HttpResponse:
        query = {"bank_account_ref": self.ref, "format": name} | more.pop("query", {})
        more = {"content_type": "text/plain"} | more
        return self.api.post("/v1/reconciliation/statements", content, QUERY_STRING=urlencode(query), **more)

    def imports(self, first: str, last: str, *rows: Row, opening: str = "0.00", **more: Any) -> Json:
        return posted(self.send(csv_of(first, last, rows, opening), **more))

    def has(self, amount: int, on: str, ref: str | None = None, account: str = "1000") -> str:
        """The books have this on the bank's account, by a manual entry; gives its id."""
        sides = ("DR", "CR") if amount > 0 else ("CR", "DR")
        named = {} if ref is None else {"external_ref": ref}
        entry = self.api.adjust(on, line(account, sides[0], abs(amount), **named), line("3000", sides[1], abs(amount)))
        return str(entry["journal_entry_id"])

    def breaks(self, **query: Any) -> list[Json]:
        found: list[Json] = []
        token: Json = {}
        while True:
            page = shown(self.api.get(BREAKS, {"page_size": 500} | query | token))
            found += page["items"]
            if "next_page_token" not in page:
                return found
            token = {"page_token": page["next_page_token"]}

    def open(self) -> list[tuple[str, int, str | None]]:
        """Open breaks as (kind, amount, reference)."""
        return [(b["kind"], int(b["amount_minor"]), b.get("reference")) for b in self.breaks(state="open")]

    def kinds(self) -> Counter[str]:
        return Counter(kind for kind, _, _ in self.open())

    def status(self, **query: Any) -> tuple[str, int]:
        banks = shown(self.api.get(STATUS, query))["bank_reconciliation"]
        (own,) = [bank for bank in banks if bank["bank_account_ref"] == self.ref]
        return own["status"], int(own["difference_minor"])

    def resolve(self, found: Json, action: str, **more: Any) -> HttpResponse:
        body = {"action": action, "reason": "Because"} | more
        return self.api.post(f"{BREAKS}/{found['break_id']}/resolution", body)

    def the(self, kind: str) -> Json:
        """The only open break of this kind."""
        (found,) = self.breaks(state="open", kind=kind)
        return found

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        from hpts.tenancy import tenant_transaction

        with tenant_transaction(self.lender.tenant_id) as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchall()


@pytest.fixture
def bank(acme: Lender) -> Bank:
    return Bank(acme)


def body_of(answer: Any) -> Json:
    body: Json = json.loads(answer.content)
    return body


def day(text: str) -> date:
    return date.fromisoformat(text)
