"""POST /reconciliation/statements and GET /reconciliation/statements/{id}: how files come in, once, and what refuses them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from hpts import oauth
from tests.conftest import ALL_SCOPES, Lender, new_key, posted, refused, shown
from tests.ledger.conftest import contents
from tests.reconciliation.conftest import BREAKS, CLEAN, STATUS, Bank, csv_of

PATH = "/v1/reconciliation/statements"
MEMBERS = {
    "statement_id",
    "bank_account_ref",
    "from_date",
    "to_date",
    "currency",
    "opening_balance_minor",
    "closing_balance_minor",
    "line_count",
    "matched_count",
    "break_count",
}
FEBRUARY = csv_of("2026-02-01", "2026-02-28", [("2026-02-03", "5.00", "A", "First")])


def form(content: bytes, name: str = "file", more: str = "") -> tuple[bytes, str]:
    """A multipart body and its media type."""
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a.csv"\r\nContent-Type: text/csv\r\n\r\n'
    return (more + head).encode() + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


@pytest.mark.parametrize("name", CLEAN)
def test_every_format_is_taken(bank: Bank, name: str) -> None:
    made = posted(bank.send(CLEAN[name].read_bytes(), name))
    assert made.keys() == MEMBERS
    assert (made["closing_balance_minor"], made["line_count"], made["break_count"]) == ("4163399", 5, 5)


@pytest.mark.parametrize(
    "media_type",
    ["text/csv", "text/plain; charset=utf-8", "application/octet-stream", "application/x-www-form-urlencoded"],
)
def test_a_file_comes_as_it_is(bank: Bank, media_type: str) -> None:
    assert posted(bank.send(FEBRUARY, content_type=media_type))["line_count"] == 1


def test_a_file_comes_as_the_part_of_a_form(bank: Bank) -> None:
    body, media_type = form(FEBRUARY)
    first = bank.send(body, content_type=media_type)
    assert posted(first)["line_count"] == 1
    # It is the file that is known again, and not the request.
    assert bank.send(FEBRUARY).content == first.content


FIELD = '--x\r\nContent-Disposition: form-data; name="format"\r\n\r\ncsv\r\n'


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        form(FEBRUARY, "statement"),
        form(FEBRUARY, more=FIELD),
        (form(FEBRUARY)[0] + form(FEBRUARY)[0], "multipart/form-data; boundary=x"),
        (b"--x--\r\n", "multipart/form-data; boundary=x"),
        (b"nothing", "multipart/form-data"),
        (b"nothing", "multipart/form-data; boundary=" + "y" * 300),
        (form(FEBRUARY)[0].replace(b"; filename", b"; other"), "multipart/form-data; boundary=x"),
    ],
    ids=["other name", "a field beside", "after the end", "empty", "no boundary", "long boundary", "no file name"],
)
def test_a_form_that_is_not_one_file_is_refused(bank: Bank, body: bytes, media_type: str) -> None:
    answer = bank.send(body, content_type=media_type)
    assert answer.status_code in (200, 201, 400), answer.content
    if answer.status_code == 400:
        refused(answer, 400, "validation_failed")
    else:
        assert body.count(b"--x--") == 2, "what follows the end of a form is no part of it"


def test_other_media_types_and_compressed_files_are_refused(bank: Bank) -> None:
    refused(bank.send(FEBRUARY, content_type="application/json"), 415, "unsupported_media_type")
    refused(bank.send(FEBRUARY, content_type="image/png"), 415, "unsupported_media_type")
    refused(bank.send(FEBRUARY, content_type=""), 415, "unsupported_media_type")
    refused(bank.send(FEBRUARY, headers={"Content-Encoding": "gzip"}), 415, "unsupported_media_type")


@pytest.mark.parametrize("as_form", [False, True])
def test_more_than_sixteen_megabytes_are_refused(bank: Bank, as_form: bool) -> None:
    large = b"x" * (16 * 1024 * 1024 + 1)
    body, media_type = form(large) if as_form else (large, "text/csv")
    refused(bank.send(body, content_type=media_type), 413, "payload_too_large")
    chunked: dict[str, Any] = {"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"}
    assert bank.send(body, content_type=media_type, **chunked).status_code in (400, 413)


@pytest.mark.parametrize("name", CLEAN)
def test_a_refused_file_leaves_nothing(bank: Bank, name: str) -> None:
    before = contents(bank.lender.tenant_id)
    content = CLEAN[name].read_bytes()
    answer = bank.send(content[: len(content) // 2], name)
    (problem,) = refused(answer, 400, "validation_failed")["errors"]
    assert problem["field"].startswith("file")
    assert contents(bank.lender.tenant_id) == before
    posted(bank.send(content, name))


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ({}, ["bank_account_ref", "format"]),
        ({"format": "csv"}, ["bank_account_ref"]),
        ({"bank_account_ref": "a", "format": "pdf"}, ["format"]),
        ({"bank_account_ref": "", "format": "csv"}, ["bank_account_ref"]),
        ({"bank_account_ref": "a" * 129, "format": "csv"}, ["bank_account_ref"]),
        ({"bank_account_ref": "a", "format": "csv", "account_code": "10"}, ["account_code"]),
        ({"bank_account_ref": "a", "format": "csv", "as_of": "x"}, ["as_of"]),
    ],
)
def test_the_query_is_checked(bank: Bank, query: dict[str, str], fields: list[str]) -> None:
    answer = bank.api.post(PATH, FEBRUARY, content_type="text/csv", QUERY_STRING=urlencode(query))
    refused(answer, 400, "validation_failed", fields)


# --- Once ------------------------------------------------------------------------------------------------------------


def test_the_same_file_again_answers_the_same_and_imports_nothing(bank: Bank) -> None:
    first = bank.send(FEBRUARY)
    posted(first)
    bank.has(500, "2026-02-03", "A")
    before = bank.rows("SELECT count(*) FROM bank_statement_line")
    again = bank.send(FEBRUARY)
    assert (again.status_code, again.content) == (200, first.content)
    assert "Idempotency-Replayed" not in again.headers
    assert bank.rows("SELECT count(*) FROM bank_statement_line") == before


def test_the_same_key_replays_and_another_file_with_it_is_refused(bank: Bank) -> None:
    key = new_key()
    first = bank.send(FEBRUARY, key=key)
    posted(first)
    again = bank.send(FEBRUARY, key=key)
    assert (again.status_code, again.content, again.headers["Idempotency-Replayed"]) == (200, first.content, "true")
    other = csv_of("2026-03-01", "2026-03-31", [], "5.00")
    refused(bank.send(other, key=key), 422, "idempotency_mismatch")
    refused(bank.send(FEBRUARY, key=key, query={"bank_account_ref": "other"}), 422, "idempotency_mismatch")
    refused(bank.send(FEBRUARY, key=None), 400, "idempotency_key_required")
    refused(bank.send(FEBRUARY, key="short"), 400, "idempotency_key_invalid")


def test_one_file_imported_by_many_at_once_is_imported_once(bank: Bank) -> None:
    from tests.ledger.conftest import race

    bank.api.token()
    answers = race(*[lambda: Bank(Lender(bank.lender.tenant_id, "", [], bank.api.in_a_thread())).send(FEBRUARY)] * 4)
    codes = sorted(answer.status_code for answer in answers if not isinstance(answer, Exception))
    assert codes == [200, 200, 200, 201]
    assert bank.rows("SELECT count(*) FROM bank_statement") == [(1,)]


# --- Accounts --------------------------------------------------------------------------------------------------------


def test_a_bank_account_belongs_to_one_gl_account(bank: Bank) -> None:
    account = {"account_code": "1020", "account_name": "Second Bank", "account_type": "asset", "normal_side": "DR"}
    posted(bank.api.post("/v1/accounts", account))
    second = Bank(bank.lender, "second")
    second.has(500, "2026-02-03", "A", account="1020")
    assert posted(second.send(FEBRUARY, query={"account_code": "1020"}))["break_count"] == 0
    march = csv_of("2026-03-01", "2026-03-31", [], "5.00")
    refused(second.send(march, query={"account_code": "1000"}), 400, "validation_failed", ["account_code"])
    assert posted(second.send(march))["break_count"] == 0
    refused(bank.send(FEBRUARY, query={"account_code": "7777"}), 422, "account_not_found")


def test_a_bank_account_keeps_its_currency(bank: Bank) -> None:
    posted(bank.send(FEBRUARY))
    euros = csv_of("2026-03-01", "2026-03-31", [], currency="EUR")
    refused(bank.send(euros), 422, "currency_mismatch")
    assert posted(bank.send(euros, query={"bank_account_ref": "euros"}))["currency"] == "EUR"


def test_currencies_of_one_gl_account_do_not_mix(bank: Bank) -> None:
    euros = Bank(bank.lender, "euros")
    bank.has(500, "2026-02-03", "A")
    assert posted(euros.send(csv_of("2026-02-01", "2026-02-28", [], currency="EUR")))["break_count"] == 0
    assert posted(bank.send(FEBRUARY))["break_count"] == 0


# --- Reading ---------------------------------------------------------------------------------------------------------


def test_a_statement_is_read_in_pages_with_what_its_lines_are_matched_with(bank: Bank) -> None:
    entry = bank.has(500, "2026-02-03", "A")
    rows = [("2026-02-03", "5.00", "A", "First"), *[("2026-02-04", f"-{n}.00", "", "") for n in range(1, 5)]]
    made = bank.imports("2026-02-01", "2026-02-28", *rows)
    path = f"{PATH}/{made['statement_id']}"
    page = shown(bank.api.get(path, {"page_size": 2}))
    assert page.keys() == MEMBERS | {"lines", "next_page_token"}
    assert page["lines"][0] == {
        "line_number": 1,
        "value_date": "2026-02-03",
        "amount_minor": "500",
        "reference": "A",
        "description": "First",
        "match_rule": "reference",
        "journal_entry_ids": [entry],
    }
    assert page["lines"][1] == {"line_number": 2, "value_date": "2026-02-04", "amount_minor": "-100"}
    seen = [line["line_number"] for line in page["lines"]]
    while "next_page_token" in page:
        page = shown(bank.api.get(path, {"page_size": 2, "page_token": page["next_page_token"]}))
        seen += [line["line_number"] for line in page["lines"]]
    assert seen == [1, 2, 3, 4, 5]
    refused(bank.api.get(f"{PATH}/{uuid.uuid4()}"), 404, "not_found")
    refused(bank.api.get(path, {"page_token": "x"}), 400, "invalid_page_token")


# --- Who may ---------------------------------------------------------------------------------------------------------

ADMIN, READ = "hpts:admin:reconciliation", "hpts:reconciliation:read"


def calls(bank: Bank) -> list[tuple[str, Callable[[list[str]], Any]]]:
    """Each operation: the scope that it needs, and a call with given scopes."""
    made = bank.imports("2026-02-01", "2026-02-28", ("2026-02-03", "5.00", "A"))
    found = bank.the("missing_in_ledger")["break_id"]
    explained = {"action": "explain", "reason": "Because"}
    return [
        (ADMIN, lambda scopes: bank.send(FEBRUARY, scopes=scopes)),
        (ADMIN, lambda scopes: bank.api.post(f"{BREAKS}/{found}/resolution", explained, scopes=scopes)),
        (ADMIN, lambda scopes: bank.api.post("/v1/reconciliation/runs", {}, scopes=scopes)),
        (READ, lambda scopes: bank.api.get(f"{PATH}/{made['statement_id']}", scopes=scopes)),
        (READ, lambda scopes: bank.api.get(STATUS, scopes=scopes)),
        (READ, lambda scopes: bank.api.get(BREAKS, scopes=scopes)),
        (READ, lambda scopes: bank.api.get("/v1/reconciliation/runs", scopes=scopes)),
    ]


def test_each_operation_asks_for_its_scope_alone(bank: Bank) -> None:
    for scope, call in calls(bank):
        others = [other for other in ALL_SCOPES if not oauth.covers([other], scope)]
        refused(call(others), 403, "insufficient_scope")
        assert call([scope]).status_code in (200, 201, 202)


def test_another_tenants_rows_are_unknown(bank: Bank, zenith: Lender) -> None:
    made = bank.imports("2026-02-01", "2026-02-28", ("2026-02-03", "5.00", "A"))
    found = bank.the("missing_in_ledger")
    other = Bank(zenith)
    refused(zenith.api.get(f"{PATH}/{made['statement_id']}"), 404, "not_found")
    refused(other.resolve(found, "explain"), 404, "not_found")
    assert other.breaks() == []
    assert shown(zenith.api.get(STATUS))["bank_reconciliation"] == []
    # The same file is another tenant's own.
    posted(other.send(csv_of("2026-02-01", "2026-02-28", [("2026-02-03", "5.00", "A")])))
    token = shown(bank.api.get(f"{PATH}/{made['statement_id']}"))
    assert "next_page_token" not in token


def test_the_samples_of_the_documents_are_there() -> None:
    assert all(Path(path).stat().st_size for path in CLEAN.values())
