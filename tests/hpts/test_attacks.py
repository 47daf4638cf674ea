"""The whole list of forged and bent tokens over HTTP, against five operations: each answers 401, asks no table and moves nothing.

The list itself, and what the verifier does with each entry, is in test_auth.py.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.http import HttpResponse

from hpts import auth, oauth
from hpts.models import ApiClient
from hpts.tenancy import tenant_transaction
from ledger import masters
from ledger.queries import tenant_is_active
from tests.conftest import HTTP, Json, in_books_of, new_key, refused
from tests.hpts import test_auth as forge

LOAN = str(uuid.UUID(int=7))
PAYMENT = {
    "loan_id": LOAN,
    "borrower_id": LOAN,
    "amount_minor": "500",
    "currency": "USD",
    "effective_at": "2026-02-01",
    "source_method": "ach",
}
PROGRAM = {"name": "Attack", "currency": "USD", "annual_rate_bps": 1, "day_count_convention": "ACT_365"}
# Method, path, body, and how a good token is answered in books without loans.
OPERATIONS: dict[str, tuple[str, str, Json | None, int]] = {
    "post a payment": ("POST", "/v1/payments", PAYMENT, 422),
    "reverse an entry": (
        "POST",
        "/v1/reversals",
        {"reverses_entry_id": LOAN, "reason_code": "fraud", "effective_at": "2026-02-01"},
        422,
    ),
    "list loans": ("GET", "/v1/loans", None, 200),
    "read a history": ("GET", f"/v1/loans/{LOAN}/journal-entries", None, 404),
    "open a program": ("POST", "/v1/programs", PROGRAM, 201),
}
ADMITTED = " ".join(oauth.SCOPES)


@pytest.fixture(scope="module", autouse=True)
def client_of_the_tokens(open_database: None) -> Iterator[None]:
    """The client that the tokens name exists, and so does its tenant: nothing but the attack keeps a token out."""
    if not tenant_is_active(forge.TENANT):
        with tenant_transaction(forge.TENANT) as cursor:
            masters.create_tenant(cursor, name="Attacked", currency="USD", timezone="UTC")
    row = ApiClient.objects.create(client_id="acme", tenant_id=forge.TENANT, allowed_scopes=ADMITTED)
    yield
    row.delete()


@pytest.fixture(autouse=True)
def issuer(settings: Any) -> Iterator[None]:
    settings.ISSUER, settings.AUDIENCE, settings.JWKS_URL = forge.ISSUER, forge.AUDIENCE, ""
    settings.SIGNING_KEY, settings.PREVIOUS_SIGNING_KEYS = forge.private_pem(forge.RSA), ""
    auth.verified_tokens.clear()
    yield
    auth.verified_tokens.clear()


def send(operation: str, query: str = "", **headers: str) -> HttpResponse:
    method, path, body, _ = OPERATIONS[operation]
    raw = b"" if body is None else json.dumps(body).encode()
    if method == "POST":
        headers["Idempotency-Key"] = new_key()
    answer: HttpResponse = HTTP.generic(  # type: ignore[assignment]
        method, path + query, raw, "application/json", headers=headers, CONTENT_LENGTH=str(len(raw))
    )
    return answer


def rows() -> tuple[Any, ...] | None:
    with in_books_of(forge.TENANT) as connection:
        return connection.execute(
            "SELECT (SELECT count(*) FROM journal_entry), (SELECT count(*) FROM idempotency_key),"
            " (SELECT count(*) FROM program)"
        ).fetchone()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_good_token_comes_in(operation: str) -> None:
    """Else the refusals below would prove nothing."""
    good = forge.token(forge.claims(scope=ADMITTED))
    assert send(operation, Authorization=f"Bearer {good}").status_code == OPERATIONS[operation][3]


@pytest.mark.parametrize("attack", forge.REFUSED)
def test_a_bad_token_is_refused_by_five_operations(attack: str) -> None:
    bad, before = forge.REFUSED[attack](), rows()
    for operation in OPERATIONS:
        with forge.no_query():
            answer = send(operation, Authorization=f"Bearer {bad}")
        refused(answer, 401, "invalid_token")
    assert rows() == before


@pytest.mark.parametrize("attack", forge.HEADERS)
def test_a_bent_header_is_refused_by_five_operations(attack: str) -> None:
    header = forge.HEADERS[attack](forge.token(forge.claims(scope=ADMITTED)))
    for operation in OPERATIONS:
        with forge.no_query():
            answer = send(operation, Authorization=header)
        refused(answer, 401, "invalid_token")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_token_in_another_place_is_not_looked_at(operation: str) -> None:
    good = forge.token(forge.claims(scope=ADMITTED))
    for query in (f"?access_token={good}", f"?token={good}", f"?authorization=Bearer%20{good}"):
        refused(send(operation, query), 401, "invalid_token")
    for name in ("Cookie", "X-Authorization", "Proxy-Authorization", "X-Access-Token"):
        refused(send(operation, **{name: f"access_token={good}; Authorization=Bearer {good}"}), 401, "invalid_token")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_scopes_that_only_look_alike_are_403(operation: str) -> None:
    for scope in ("hpts:*", "*", "hpts", "hpts:payments:writeX", "hpts:payments", "HPTS:PAYMENTS:WRITE", ..., "", "\t"):
        bent = forge.token(forge.claims(scope=scope))
        refused(send(operation, Authorization=f"Bearer {bent}"), 403, "insufficient_scope")


def test_the_admins_wildcard_does_not_write() -> None:
    wildcard = forge.token(forge.claims(scope="hpts:admin:*"))
    for operation in ("post a payment", "reverse an entry", "list loans", "read a history"):
        refused(send(operation, Authorization=f"Bearer {wildcard}"), 403, "insufficient_scope")
    assert send("open a program", Authorization=f"Bearer {wildcard}").status_code == 201


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_token_of_a_tenant_or_client_that_is_not_there_is_refused(operation: str) -> None:
    strangers: list[Callable[[], str]] = [
        forge.with_claims(tenant_id=forge.UNKNOWN_TENANT, scope=ADMITTED),
        forge.with_claims(client_id="nobody", sub="nobody", scope=ADMITTED),
        forge.with_claims(sub="1", scope=ADMITTED),
        forge.with_claims(sub="jane", scope=ADMITTED),
    ]
    for make in strangers:
        refused(send(operation, Authorization=f"Bearer {make()}"), 401, "invalid_token")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_tenant_that_is_named_elsewhere_changes_nothing(operation: str) -> None:
    good = forge.token(forge.claims(scope=ADMITTED))
    named = {
        "X-Tenant-Id": forge.UNKNOWN_TENANT,
        "Tenant": forge.UNKNOWN_TENANT,
        "hpts.tenant_id": forge.UNKNOWN_TENANT,
    }
    answer = send(operation, Authorization=f"Bearer {good}", **named)
    assert answer.status_code == OPERATIONS[operation][3]
    assert forge.UNKNOWN_TENANT not in answer.content.decode()
    in_query = send(operation, f"?tenant_id={forge.UNKNOWN_TENANT}", Authorization=f"Bearer {good}")
    assert in_query.status_code in (400, OPERATIONS[operation][3])
