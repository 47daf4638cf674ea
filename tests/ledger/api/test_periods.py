"""POST /v1/periods/close and GET /v1/periods: the books are closed through a date, for every kind of event and for good."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.conftest import Api, Json, Lender, Loan, in_books_of, line, payment_of, posted, refused, shown
from tests.ledger.api.conftest import WRITES, Write, with_value

pytestmark = pytest.mark.usefixtures("sound_books")

Unmoved = Callable[[], AbstractContextManager[None]]
PATH = "/v1/periods/close"


def closing(through: str) -> Json:
    return {"through_date": through}


def trial_balance(api: Api, as_of: str, currency: str = "USD", layer: str = "SETTLED") -> Json:
    """As a closed period keeps it: the date is the period's own."""
    body = shown(api.get("/v1/trial-balance", {"currency": currency, "layer": layer, "as_of_date": as_of}))
    del body["as_of_date"]
    return body


def periods(api: Api, **query: Any) -> list[Json]:
    items: list[Json] = shown(api.get("/v1/periods", query))["items"]
    return items


def replanned(loan: Loan, from_date: str) -> tuple[str, Json]:
    return f"/v1/loans/{loan.loan_id}/replans", {"from_date": from_date}


# --- Closing ---------------------------------------------------------------------------------------------------------


def test_the_trial_balances_of_the_day_are_kept(acme: Lender) -> None:
    api, loan = acme.api, acme.loan
    api.disburse(loan, 100_000, "2026-01-05")
    api.pay(loan, 5_000, "2026-01-20")
    api.pay(loan, 600, "2026-01-21", layer="PENDING")
    api.pay(loan, 7, "2026-02-01")
    euros = acme.open_loan(acme.open_program(currency="EUR"))
    api.disburse(euros, 77, "2026-01-05")
    api.adjust(
        "2026-02-01",
        line("9000", "DR", 9, loan_id=loan.loan_id, layer="ENCUMBRANCE"),
        line("9100", "CR", 9, layer="ENCUMBRANCE"),
    )
    made = api.close_period("2026-01-31")
    assert made.keys() == {"through_date", "closed_at", "trial_balances"}
    assert made["through_date"] == "2026-01-31"
    assert re.fullmatch(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z", made["closed_at"])
    # One per currency and layer in use, also when its first entry is dated later.
    books = [("EUR", "SETTLED"), ("USD", "ENCUMBRANCE"), ("USD", "PENDING"), ("USD", "SETTLED")]
    assert made["trial_balances"] == [trial_balance(api, "2026-01-31", *book) for book in books]
    settled = made["trial_balances"][3]
    assert settled.keys() == {"currency", "layer", "accounts", "total_dr_minor", "total_cr_minor"}
    assert settled["total_dr_minor"] == settled["total_cr_minor"] == "105000"
    by_code = {row["account_code"]: row for row in settled["accounts"]}
    assert by_code["1100"] == {
        "account_code": "1100",
        "account_name": "Principal Receivable",
        "dr_balance_minor": "100000",
        "cr_balance_minor": "5000",
        "normal_balance_minor": "95000",
    }
    assert len(by_code) == 15
    with in_books_of(acme.tenant_id) as connection:
        assert connection.execute("SELECT actor FROM period_close").fetchall() == [(f"client:{api.client.client_id}",)]


def test_closing_posts_nothing(api: Api, acme: Lender, loan: Loan) -> None:
    api.disburse(loan, 100, "2026-01-05")
    seen, before = api.get(f"/v1/loans/{loan.loan_id}").headers["ETag"], api.history(loan)
    answer = api.post(PATH, closing("2026-01-31"))
    posted(answer)
    assert "ETag" not in answer.headers
    assert api.get(f"/v1/loans/{loan.loan_id}").headers["ETag"] == seen
    assert api.history(loan) == before


def test_books_without_an_entry_are_closed_too(api: Api) -> None:
    made = api.close_period("2026-01-31")
    assert made["trial_balances"] == []
    assert periods(api) == [made]


def test_today_may_be_closed_and_tomorrow_not(api: Api, acme: Lender, nothing_moves: Unmoved, tomorrow: str) -> None:
    with nothing_moves():
        for through in (tomorrow, "9999-12-31"):
            refused(api.post(PATH, closing(through)), 422, "effective_date_refused")
    api.close_period(acme.today.isoformat())


def test_today_is_the_tenants_own(make_lender: Any) -> None:
    """Kiritimati and Niue are never on the same date."""
    east, west = make_lender(timezone="Pacific/Kiritimati"), make_lender(timezone="Pacific/Niue")
    today = datetime.now(ZoneInfo("Pacific/Kiritimati")).date().isoformat()
    east.api.close_period(today)
    refused(west.api.post(PATH, closing(today)), 422, "effective_date_refused")


def test_periods_close_forward(api: Api, nothing_moves: Unmoved) -> None:
    api.close_period("2026-01-31")
    with nothing_moves():
        for through in ("2026-01-31", "2026-01-30", "2025-12-31", "0001-01-01"):
            refused(api.post(PATH, closing(through)), 422, "period_closed")
    api.close_period("2026-02-01")


def test_a_period_may_be_long_before_the_first_loan(api: Api) -> None:
    assert api.close_period("0001-01-01")["through_date"] == "0001-01-01"
    assert periods(api)[0]["through_date"] == "0001-01-01"


def test_a_close_belongs_to_a_tenant(acme: Lender, zenith: Lender) -> None:
    acme.api.close_period("2026-06-30")
    zenith.api.pay(zenith.loan, 5, "2026-01-05")
    zenith.api.close_period("2026-01-31")
    assert [period["through_date"] for period in periods(acme.api)] == ["2026-06-30"]


# --- What is dated in it ---------------------------------------------------------------------------------------------

# Where a write says its date.
DATES = ("effective_at", "accrual_date", "from_date", "through_date", "items.0.body.effective_at")


def date_of(body: Any) -> tuple[str, str] | None:
    """Where the date stands in a body, and which it is."""
    for place in DATES:
        value = body
        for name in place.split("."):
            value = value[int(name)] if isinstance(value, list) else value.get(name, {})
        if value:
            return place, value
    return None


def dated(write: Write) -> bool:
    return bool(
        {"effective_at", "accrual_date", "from_date", "through_date", "items"} & set(write.shape.__struct_fields__)
    )


DATED = [write for write in WRITES if dated(write)]


def test_the_table_knows_every_dated_write() -> None:
    names = {write.name for write in WRITES} - {write.name for write in DATED}
    assert names == {"program", "loan", "account", "account's closure"}


@pytest.mark.parametrize("write", DATED, ids=str)
def test_nothing_is_dated_in_a_closed_period(acme: Lender, nothing_moves: Unmoved, write: Write) -> None:
    path, body = write.prepare(acme)
    place, on = date_of(body) or ("", "")
    acme.api.close_period(on)
    kept = periods(acme.api)
    with nothing_moves():
        problem = refused(acme.api.post(path, body), 422, "period_closed")
        assert on in problem["detail"]
        earlier = date.fromisoformat(on) - timedelta(days=1)
        answer = acme.api.post(path, with_value(body, place, earlier.isoformat()))
        refused(answer, 422, "period_closed")
    assert periods(acme.api) == kept


@pytest.mark.parametrize("write", [write for write in DATED if write.name != "replan"], ids=str)
def test_the_day_after_a_closed_period_is_open(acme: Lender, write: Write) -> None:
    path, body = write.prepare(acme)
    place, on = date_of(body) or ("", "")
    acme.api.close_period(on)
    kept = periods(acme.api)
    later = (date.fromisoformat(on) + timedelta(days=1)).isoformat()
    if write.name == "batch":
        body = with_value(body, "items", body["items"][:1])
    posted(acme.api.post(path, with_value(body, place, later)))
    assert periods(acme.api)[-1:] == kept
    for balance in kept[0]["trial_balances"]:
        assert balance == trial_balance(acme.api, on, balance["currency"], balance["layer"])


@pytest.mark.parametrize("write", [write for write in WRITES if not dated(write)], ids=str)
def test_what_has_no_date_goes_on(acme: Lender, write: Write) -> None:
    """Also a loan that was opened in the closed period: what is posted on it is dated later."""
    path, body = write.prepare(acme)
    acme.api.close_period("2026-06-30")
    posted(acme.api.post(path, body))


def test_terms_without_an_entry_are_refused_as_well(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    api.close_period("2026-01-31")
    with nothing_moves():
        body = {"effective_at": "2026-01-31", "annual_rate_bps": 1}
        refused(api.post(f"/v1/loans/{loan.loan_id}/restructure", body), 422, "period_closed")


def test_an_announced_payment_is_refused_as_well(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    api.close_period("2026-02-01")
    with nothing_moves():
        refused(api.post("/v1/payments", payment_of(loan, layer="PENDING")), 422, "period_closed")


def test_what_was_posted_in_a_closed_period_is_reversed_after_it(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    made = api.disburse(loan, 100, "2026-01-05")
    announced = api.pay(loan, 10, "2026-01-06", layer="PENDING")
    paid = api.pay(loan, 5, "2026-01-06")
    api.close_period("2026-01-31")
    reversal = {"reverses_entry_id": made["journal_entry_id"], "reason_code": "other"}
    with nothing_moves():
        refused(api.post("/v1/reversals", reversal | {"effective_at": "2026-01-31"}), 422, "period_closed")
    api.give_back(paid, "2026-02-01")
    api.settle_payment(announced, "2026-02-01")
    api.give_back(announced, "2026-02-02")
    posted(api.post("/v1/reversals", reversal | {"effective_at": "2026-02-03"}))
    assert api.owed(loan) == (0, 0, 0)


def test_a_reversal_without_a_date_is_of_today(acme: Lender, nothing_moves: Unmoved) -> None:
    made = acme.api.pay(acme.loan, 5, "2026-01-05")
    acme.api.close_period(acme.today.isoformat())
    with nothing_moves():
        body = {"reverses_entry_id": made["journal_entry_id"], "reason_code": "other"}
        refused(acme.api.post("/v1/reversals", body), 422, "period_closed")


def test_a_replan_does_not_reach_into_a_closed_period(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    api.disburse(loan, 1_000, "2026-01-05")
    api.pay(loan, 300, "2026-02-05")
    api.serve(loan, "fees", "2026-02-01", 50)
    api.close_period("2026-01-31")
    with nothing_moves():
        refused(api.post(*replanned(loan, "2026-01-31")), 422, "period_closed")
    planned = posted(api.post(*replanned(loan, "2026-02-01")))
    assert {entry["effective_at"] for entry in planned["entries"]} == {"2026-02-05"}
    api.close_period("2026-02-05")
    path, body = replanned(loan, "2026-02-01")
    with nothing_moves():
        refused(api.post(path, body | {"plan_hash": planned["plan_hash"]}), 422, "period_closed")


def test_a_replay_does_not_ask_whether_the_period_is_open(api: Api, loan: Loan) -> None:
    body, key = payment_of(loan), "payment-before-the-close"
    first = api.post("/v1/payments", body, key=key)
    posted(first)
    api.close_period("2026-06-30")
    again = api.post("/v1/payments", body, key=key)
    assert (again.status_code, again.content) == (200, first.content)


def test_the_future_is_refused_before_the_period(api: Api, acme: Lender, tomorrow: str) -> None:
    api.close_period(acme.today.isoformat())
    refused(api.post("/v1/payments", payment_of(acme.loan, 5, tomorrow)), 422, "effective_date_refused")
    refused(api.post(PATH, closing(tomorrow)), 422, "effective_date_refused")


# --- In a batch ------------------------------------------------------------------------------------------------------


def batch(*items: tuple[str, Json], mode: str = "atomic") -> Json:
    return {"mode": mode, "items": [{"path": path, "body": body} for path, body in items]}


def test_a_batch_that_closes_dates_nothing_in_the_period_afterwards(
    api: Api, loan: Loan, nothing_moves: Unmoved
) -> None:
    items = ("/periods/close", closing("2026-02-01")), ("/payments", payment_of(loan))
    with nothing_moves():
        problem = refused(api.post("/v1/batches", batch(*items)), 422, "period_closed")
    assert problem["detail"].startswith("items.1: ")
    assert periods(api) == []
    outcomes = posted(api.post("/v1/batches", batch(*items, mode="each")))["items"]
    assert [outcome["status"] for outcome in outcomes] == [201, 422]
    assert outcomes[1]["problem"]["code"] == "period_closed"
    assert periods(api) == [outcomes[0]["body"]]


def test_a_batch_that_closes_keeps_what_it_posted_before(api: Api, loan: Loan) -> None:
    items = ("/payments", payment_of(loan)), ("/periods/close", closing("2026-02-01"))
    outcomes = posted(api.post("/v1/batches", batch(*items)))["items"]
    assert outcomes[1]["body"]["trial_balances"] == [trial_balance(api, "2026-02-01")]
    assert outcomes[1]["body"]["trial_balances"][0]["total_dr_minor"] == "5000"
    assert periods(api) == [outcomes[1]["body"]]


# --- The list --------------------------------------------------------------------------------------------------------


def test_closed_periods_are_listed_the_latest_first(api: Api, loan: Loan) -> None:
    assert shown(api.get("/v1/periods")) == {"items": []}
    made = []
    for month in range(1, 6):
        api.pay(loan, month, f"2026-{month:02}-15")
        made.append(api.close_period(f"2026-{month:02}-28"))
    assert shown(api.get("/v1/periods")) == {"items": made[::-1]}
    # What was kept stays, whatever is posted later.
    api.pay(loan, 9, "2026-06-15")
    assert periods(api) == made[::-1]
    for period in made:
        assert period["trial_balances"] == [trial_balance(api, period["through_date"])]


def test_an_account_that_is_added_later_does_not_change_what_was_kept(api: Api, loan: Loan) -> None:
    api.pay(loan, 1, "2026-01-05")
    made = api.close_period("2026-01-31")
    own = {"account_code": "7000", "account_name": "Own", "account_type": "asset", "normal_side": "DR"}
    posted(api.post("/v1/accounts", own))
    posted(api.post("/v1/accounts/4200/closure", {"reason": "Not used"}))
    assert periods(api) == [made]
    later = api.close_period("2026-02-28")
    assert [len(p["trial_balances"][0]["accounts"]) for p in (made, later)] == [15, 16]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_pages_neither_repeat_nor_skip(api: Api, size: int) -> None:
    made = [api.close_period(f"2026-01-{day:02}") for day in range(1, 6)]
    seen: list[Json] = []
    query: Json = {"page_size": size}
    while True:
        page = shown(api.get("/v1/periods", query))
        assert page.keys() <= {"items", "next_page_token"}
        assert 0 < len(page["items"]) <= size
        seen += page["items"]
        if "next_page_token" not in page:
            break
        # Closing another one meanwhile changes nothing of the pages behind.
        if len(seen) == size:
            api.close_period("2026-03-31")
        query = {"page_size": size, "page_token": page["next_page_token"]}
    assert seen == made[::-1]


def test_a_page_token_is_bound_to_its_list_and_tenant(acme: Lender, zenith: Lender) -> None:
    for lender in (acme, zenith):
        for day in (1, 2):
            lender.api.close_period(f"2026-01-{day:02}")
    token = shown(acme.api.get("/v1/periods", {"page_size": 1}))["next_page_token"]
    assert len(periods(acme.api, page_token=token, page_size=7)) == 1
    refused(zenith.api.get("/v1/periods", {"page_token": token}), 400, "invalid_page_token")
    refused(acme.api.get("/v1/loans", {"page_token": token}), 400, "invalid_page_token")
    loans = shown(acme.api.get("/v1/loans", {"page_size": 1}))["next_page_token"]
    refused(acme.api.get("/v1/periods", {"page_token": loans}), 400, "invalid_page_token")
    for bad in ("", "x", token[:-1], token + "A", "9" * 513):
        refused(acme.api.get("/v1/periods", {"page_token": bad}), 400, "invalid_page_token")


@pytest.mark.parametrize(
    ("query", "wrong"),
    [({"page_size": "0"}, "page_size"), ({"page_size": "x"}, "page_size"), ({"from_date": "2026-01-01"}, "from_date")],
)
def test_a_bad_parameter_is_named(api: Api, query: Json, wrong: str) -> None:
    refused(api.get("/v1/periods", query), 400, "validation_failed", [wrong])


def test_reading_needs_the_same_scope_as_closing(api: Api) -> None:
    for scope in ("hpts:admin:periods", "hpts:admin:*"):
        shown(api.get("/v1/periods", scopes=[scope]))
    others = ["hpts:ledger:read", "hpts:balances:read", "hpts:admin:adjustments", "hpts:admin:servicing"]
    refused(api.get("/v1/periods", scopes=others), 403, "insufficient_scope")
    refused(api.get("/v1/periods", scopes=None), 401, "invalid_token")


@pytest.mark.parametrize(("path", "methods"), [("/v1/periods", {"GET", "HEAD"}), (PATH, {"POST"})])
def test_nothing_is_opened_again(api: Api, path: str, methods: set[str]) -> None:
    for method in ("PUT", "PATCH", "DELETE"):
        answer = api.call(method, path)
        refused(answer, 405, "method_not_allowed")
        assert set(answer.headers["Allow"].split(", ")) == methods


def test_a_close_is_recorded_at_the_time_of_the_clock(api: Api) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    made = api.close_period("2026-01-31")
    assert before < datetime.fromisoformat(made["closed_at"]) < datetime.now(UTC) + timedelta(seconds=1)
    assert periods(api) == [made]
