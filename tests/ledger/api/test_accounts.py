"""GET /v1/accounts, /v1/accounts/{code}/balance, /v1/trial-balance; accounts of the tenant's own, and closures."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import product
from typing import Any

import pytest

from tests.conftest import Api, Json, Lender, in_books_of, line, posted, refused, shown

Unmoved = Callable[[], AbstractContextManager[None]]

CHART = {
    "1000": ("asset", "DR", False),
    "1010": ("asset", "DR", False),
    "1050": ("liability", "CR", False),
    "1100": ("asset", "DR", True),
    "1200": ("asset", "DR", True),
    "1300": ("asset", "DR", True),
    "2000": ("liability", "CR", True),
    "3000": ("equity", "CR", False),
    "4000": ("income", "CR", False),
    "4100": ("income", "CR", False),
    "4200": ("income", "CR", False),
    "5000": ("expense", "DR", False),
    "5100": ("expense", "DR", False),
    "9000": ("memo", "DR", True),
    "9100": ("memo", "CR", False),
}
DOLLARS = {"currency": "USD"}


@pytest.fixture
def busy(acme: Lender) -> Lender:
    """Acme after a few days of business in two currencies and all layers."""
    api, loan = acme.api, acme.loan
    api.settle(api.disburse(loan, 100_000, "2026-01-05"), "2026-01-06")
    api.disburse(acme.loans[1], 40_000, "2026-01-05", layer="PENDING")
    api.accrue("2026-01-06", (loan, 100_000, 27))
    api.pay(loan, 5_000, "2026-02-01")
    api.pay(loan, 600, "2026-02-02", layer="PENDING")
    euros = acme.open_loan(acme.open_program(currency="EUR"))
    api.disburse(euros, 77, "2026-01-05")
    api.adjust(
        "2026-01-05",
        line("9000", "DR", 9, loan_id=loan.loan_id, layer="ENCUMBRANCE"),
        line("9100", "CR", 9, layer="ENCUMBRANCE"),
    )
    return acme


# --- The chart -------------------------------------------------------------------------------------------------------


def test_a_new_tenant_has_the_chart_of_the_template(api: Api) -> None:
    body = shown(api.get("/v1/accounts"))
    assert body.keys() == {"items"}
    members = {"account_code", "account_name", "account_type", "normal_side", "per_loan", "closed"}
    assert all(item.keys() == members and item["account_name"] and item["closed"] is False for item in body["items"])
    codes = [item["account_code"] for item in body["items"]]
    assert codes == sorted(CHART)
    assert {
        item["account_code"]: (item["account_type"], item["normal_side"], item["per_loan"]) for item in body["items"]
    } == CHART


def test_a_closed_account_is_shown_as_closed(acme: Lender) -> None:
    with in_books_of(acme.tenant_id) as connection:
        connection.execute("UPDATE gl_account SET closed_at = now(), closure_reason = 'test' WHERE code = '4200'")
    closed = {item["account_code"] for item in shown(acme.api.get("/v1/accounts"))["items"] if item["closed"]}
    assert closed == {"4200"}


# --- Accounts of one's own -------------------------------------------------------------------------------------------


def account_of(code: str, **changes: Any) -> Json:
    return {
        "account_code": code,
        "account_name": "Agency fees",
        "account_type": "expense",
        "normal_side": "DR",
    } | changes


def chart(api: Api) -> dict[str, Json]:
    return {item["account_code"]: item for item in shown(api.get("/v1/accounts"))["items"]}


@pytest.mark.parametrize("kind", ["asset", "liability", "equity", "income", "expense", "memo"])
@pytest.mark.parametrize(("side", "per_loan"), [("DR", True), ("CR", False), ("CR", None)])
def test_an_account_is_added_to_the_chart(api: Api, kind: str, side: str, per_loan: bool | None) -> None:
    more = {} if per_loan is None else {"per_loan": per_loan}
    made = posted(api.post("/v1/accounts", account_of("1101", account_type=kind, normal_side=side, **more)))
    assert made == {
        "account_code": "1101",
        "account_name": "Agency fees",
        "account_type": kind,
        "normal_side": side,
        "per_loan": bool(per_loan),
        "closed": False,
    }
    assert chart(api)["1101"] == made
    assert list(chart(api)) == sorted([*CHART, "1101"])


def test_an_account_of_ones_own_takes_manual_lines(api: Api) -> None:
    """In a process that has read the chart before."""
    api.adjust("2026-01-05", line("1000", "DR", 1), line("3000", "CR", 1))
    posted(api.post("/v1/accounts", account_of("5500", normal_side="CR")))
    made = api.adjust("2026-01-05", line("5500", "DR", 9), line("1000", "CR", 9))
    assert api.normal_balance("5500") == -9
    api.reverse(made["journal_entry_id"])
    assert api.account("5500")["cr_balance_minor"] == "9"


def test_an_account_kept_per_loan_needs_the_loan(acme: Lender, nothing_moves: Unmoved) -> None:
    api, about = acme.api, {"loan_id": acme.loan.loan_id}
    posted(api.post("/v1/accounts", account_of("9500", account_type="memo", per_loan=True)))
    with nothing_moves():
        lines = [line("1000", "CR", 9), line("9500", "DR", 9)]
        body = {"effective_at": "2026-01-05", "description": "Adjustment", "lines": lines}
        refused(api.post("/v1/journal-entries", body), 400, "validation_failed", ["lines.1.loan_id"])
    api.adjust("2026-01-05", line("1000", "DR", 9), line("9500", "CR", 9, **about))
    # It is no receivable: it may be below zero, and is not owed.
    assert acme.balances() == {(acme.loan.loan_id, "9500", "SETTLED"): -9}
    assert api.owed(acme.loan) == (0, 0, 0)


def test_a_code_is_used_once(acme: Lender, zenith: Lender, nothing_moves: Unmoved) -> None:
    posted(acme.api.post("/v1/accounts", account_of("5500")))
    with nothing_moves():
        for code in ("5500", "1000", "1100", "9100"):
            answer = acme.api.post("/v1/accounts", account_of(code, account_name="Another"))
            problem = refused(answer, 400, "validation_failed", ["account_code"])
            assert problem["errors"][0]["code"] == "exists"
    posted(zenith.api.post("/v1/accounts", account_of("5500")))


def test_a_closed_code_is_not_free(acme: Lender, nothing_moves: Unmoved) -> None:
    posted(acme.api.post("/v1/accounts", account_of("5500")))
    posted(acme.api.post("/v1/accounts/5500/closure", {"reason": "Not used"}))
    with nothing_moves():
        refused(acme.api.post("/v1/accounts", account_of("5500")), 400, "validation_failed", ["account_code"])


# --- Closing one -----------------------------------------------------------------------------------------------------


def test_a_closed_account_takes_no_more_lines_and_keeps_its_balance(acme: Lender, nothing_moves: Unmoved) -> None:
    api = acme.api
    posted(api.post("/v1/accounts", account_of("5500")))
    entry = api.adjust("2026-01-05", line("5500", "DR", 9), line("1000", "CR", 9))
    made = posted(api.post("/v1/accounts/5500/closure", {"reason": "Not used \U0001f4d5"}))
    assert made == account_of("5500") | {"per_loan": False, "closed": True}
    assert chart(api)["5500"] == made
    with nothing_moves():
        lines = [line("5500", "CR", 9), line("1000", "DR", 9)]
        body = {"effective_at": "2026-01-05", "description": "Adjustment", "lines": lines}
        refused(api.post("/v1/journal-entries", body), 422, "account_closed")
        # The mirror would be such a line too.
        reversal = {"reverses_entry_id": entry["journal_entry_id"], "reason_code": "other"}
        refused(api.post("/v1/reversals", reversal), 422, "account_closed")
    assert api.normal_balance("5500") == 9
    with in_books_of(acme.tenant_id) as connection:
        reason = connection.execute("SELECT closure_reason FROM gl_account WHERE code = '5500'").fetchone()
    assert reason == ("Not used \U0001f4d5",)


def test_an_account_is_closed_once(api: Api, nothing_moves: Unmoved) -> None:
    posted(api.post("/v1/accounts/4200/closure", {"reason": "Not used"}))
    with nothing_moves():
        refused(api.post("/v1/accounts/4200/closure", {"reason": "Again"}), 422, "account_closed")


def test_an_account_of_the_template_may_be_closed(acme: Lender, nothing_moves: Unmoved) -> None:
    """What needs it is refused then, and nothing else."""
    loan = acme.loan
    posted(acme.api.post("/v1/accounts/4100/closure", {"reason": "No fees here"}))
    with nothing_moves():
        body = {"amount_minor": "5", "currency": "USD", "effective_at": "2026-02-01"}
        refused(acme.api.post(f"/v1/loans/{loan.loan_id}/fees", body), 422, "account_closed")
    acme.api.disburse(loan, 5, "2026-01-05")


@pytest.mark.parametrize("code", ["9999", "0000", "12a4", "100", "10000", "\u0661\u0660\u0660\u0660", "principal"])
def test_an_unknown_account_is_not_closed(api: Api, nothing_moves: Unmoved, code: str) -> None:
    with nothing_moves():
        refused(api.post(f"/v1/accounts/{code}/closure", {"reason": "Not used"}), 404, "not_found")


def test_a_closure_belongs_to_a_tenant(acme: Lender, zenith: Lender) -> None:
    posted(acme.api.post("/v1/accounts/1000/closure", {"reason": "Moved"}))
    assert chart(zenith.api)["1000"]["closed"] is False
    zenith.api.pay(zenith.loan, 5, "2026-01-05")


@pytest.mark.parametrize(
    ("path", "allowed"), [("/v1/accounts", {"GET", "HEAD", "POST"}), ("/v1/accounts/4200/closure", {"POST"})]
)
@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_an_account_is_neither_changed_nor_opened_again(api: Api, path: str, allowed: set[str], method: str) -> None:
    answer = api.call(method, path)
    refused(answer, 405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == allowed


# --- One account -----------------------------------------------------------------------------------------------------


def test_an_account_shows_gross_sums_and_their_difference(busy: Lender) -> None:
    assert busy.api.account("1000") == {
        "account_code": "1000",
        "account_name": "Operating Cash",
        "currency": "USD",
        "layer": "SETTLED",
        "as_of_date": busy.today.isoformat(),
        "dr_balance_minor": "5000",
        "cr_balance_minor": "100000",
        "normal_balance_minor": "-95000",
    }
    principal = busy.api.account("1100")
    assert (principal["dr_balance_minor"], principal["cr_balance_minor"]) == ("100000", "4973")
    assert principal["normal_balance_minor"] == "95027"
    assert busy.api.account("4000")["normal_balance_minor"] == "27"


NORMAL_BALANCES: list[tuple[str, Json, int]] = [
    ("1100", {"layer": "PENDING"}, 40_000),
    ("1050", {"layer": "PENDING"}, 40_000),
    ("2000", {"layer": "PENDING"}, 600),
    ("9000", {"layer": "ENCUMBRANCE"}, 9),
    ("1100", {"currency": "EUR"}, 77),
    ("1100", {"currency": "CHF"}, 0),
    ("1100", {"as_of_date": "2026-01-04"}, 0),
    ("1100", {"as_of_date": "2026-01-05"}, 100_000),
    ("1100", {"as_of_date": "2026-02-01"}, 95_027),
    ("1050", {"as_of_date": "2026-01-05"}, 100_000),
    ("1050", {}, 0),
    ("1000", {"as_of_date": "2026-01-31"}, -100_000),
]


def test_an_account_by_layer_currency_and_date(busy: Lender) -> None:
    for code, query, normal in NORMAL_BALANCES:
        body = busy.api.account(code, **query)
        assert body["normal_balance_minor"] == str(normal), (code, query)
        assert {name: body[name] for name in query} == query
        gross = int(body["dr_balance_minor"]) - int(body["cr_balance_minor"])
        assert gross == (normal if CHART[code][1] == "DR" else -normal)


def test_the_control_account_equals_the_sum_of_its_loans(busy: Lender) -> None:
    for on in ("2026-01-05", "2026-01-06", "2026-02-01", "2026-02-02"):
        owed = [busy.api.owed(loan, on) for loan in busy.loans]
        for place, code in enumerate(("1100", "1200", "1300")):
            assert busy.api.normal_balance(code, as_of_date=on) == sum(parts[place] for parts in owed)


@pytest.mark.parametrize(
    "code", ["9999", "0000", "12a4", "100", "10000", "\u0661\u0660\u0660\u0660", "1000%0A", "principal", "1000 "]
)
def test_an_unknown_or_malformed_code_is_not_found(api: Api, code: str) -> None:
    refused(api.get(f"/v1/accounts/{code}/balance", DOLLARS), 404, "not_found")


def test_an_account_of_another_tenant_is_unknown(acme: Lender, zenith: Lender) -> None:
    with in_books_of(zenith.tenant_id) as connection:
        connection.execute(
            """INSERT INTO gl_account (tenant_id, code, name, account_type, normal_side, per_loan)
               VALUES (%s, '7777', 'Own', 'asset', 'DR', false)""",
            (zenith.tenant_id,),
        )
    shown(zenith.api.get("/v1/accounts/7777/balance", DOLLARS))
    details = [
        refused(acme.api.get(f"/v1/accounts/{code}/balance", DOLLARS), 404, "not_found")["detail"].replace(code, "x")
        for code in ("7777", "7778")
    ]
    assert details[0] == details[1]


# --- The trial balance -----------------------------------------------------------------------------------------------


def test_debits_equal_credits(busy: Lender) -> None:
    days = (None, "2026-01-05", "2026-01-06", "0001-01-01", "9999-12-31")
    for currency, layer, on in product(("USD", "EUR", "CHF"), ("SETTLED", "PENDING", "ENCUMBRANCE"), days):
        query = {"currency": currency, "layer": layer} | ({"as_of_date": on} if on else {})
        body = shown(busy.api.get("/v1/trial-balance", query))
        assert body.keys() == {"as_of_date", "currency", "layer", "accounts", "total_dr_minor", "total_cr_minor"}
        assert [row["account_code"] for row in body["accounts"]] == sorted(CHART)
        assert body["total_dr_minor"] == body["total_cr_minor"]
        assert int(body["total_dr_minor"]) == sum(int(row["dr_balance_minor"]) for row in body["accounts"])
        assert int(body["total_cr_minor"]) == sum(int(row["cr_balance_minor"]) for row in body["accounts"])
        assert (body["currency"], body["layer"]) == (currency, layer)


def test_its_rows_are_the_accounts_own(busy: Lender) -> None:
    for row in shown(busy.api.get("/v1/trial-balance", DOLLARS))["accounts"]:
        own = busy.api.account(row["account_code"])
        assert row == {name: own[name] for name in row}
        assert row.keys() == {
            "account_code",
            "account_name",
            "dr_balance_minor",
            "cr_balance_minor",
            "normal_balance_minor",
        }


def test_a_tenant_sees_its_own_sums_alone(busy: Lender, zenith: Lender) -> None:
    body = shown(zenith.api.get("/v1/trial-balance", DOLLARS))
    assert (body["total_dr_minor"], body["total_cr_minor"]) == ("0", "0")


# --- Parameters and scopes -------------------------------------------------------------------------------------------

BAD_QUERIES: list[tuple[Json, list[str]]] = [
    ({}, ["currency"]),
    ({"currency": ""}, ["currency"]),
    ({"currency": "usd"}, ["currency"]),
    ({"currency": "USD\n"}, ["currency"]),
    ({"currency": "ZZZ"}, ["currency"]),
    ({"currency": "USDX"}, ["currency"]),
    ({"currency": ["USD", "EUR"]}, ["currency"]),
    (DOLLARS | {"layer": "settled"}, ["layer"]),
    (DOLLARS | {"layer": ""}, ["layer"]),
    (DOLLARS | {"as_of_date": "2026-13-01"}, ["as_of_date"]),
    (DOLLARS | {"as_of_date": ""}, ["as_of_date"]),
    (DOLLARS | {"page_size": "5"}, ["page_size"]),
    ({"layer": "x", "as_of_date": "y", "z": "1"}, ["currency", "layer", "as_of_date", "z"]),
]


@pytest.mark.parametrize("path", ["/v1/accounts/1000/balance", "/v1/trial-balance"])
@pytest.mark.parametrize(("query", "wrong"), BAD_QUERIES)
def test_a_bad_parameter_is_named(api: Api, path: str, query: Json, wrong: list[str]) -> None:
    refused(api.get(path, query), 400, "validation_failed", wrong)


def test_the_chart_takes_no_parameters(api: Api) -> None:
    refused(api.get("/v1/accounts", {"currency": "USD"}), 400, "validation_failed", ["currency"])


@pytest.mark.parametrize("path", ["/v1/accounts", "/v1/accounts/1000/balance", "/v1/trial-balance"])
def test_reading_needs_its_own_scope(api: Api, path: str) -> None:
    query = {} if path == "/v1/accounts" else DOLLARS
    shown(api.get(path, query, scopes=["hpts:balances:read"]))
    refused(
        api.get(path, query, scopes=["hpts:admin:*", "hpts:ledger:read", "hpts:loans:read"]), 403, "insufficient_scope"
    )
    refused(api.get(path, query, scopes=None), 401, "invalid_token")


@pytest.mark.parametrize("path", ["/v1/accounts/1000/balance", "/v1/trial-balance"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_reading_is_all_that_can_be_done(api: Api, path: str, method: str) -> None:
    answer = api.call(method, path)
    refused(answer, 405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD"}
