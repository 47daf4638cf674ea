"""POST /v1/batches: many writes in one request, all of them or nothing, or each by itself; a repeat replays."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date
from typing import Any

import pytest

from ledger.batch import Item, _outcome
from ledger.idempotency import Call
from ledger.operations import create_disbursement
from ledger.posting import Origin
from tests.conftest import (
    ALL_SCOPES,
    Api,
    Json,
    Lender,
    Loan,
    accrual_of,
    disbursement_of,
    new_key,
    payment_of,
    posted,
    refused,
    shown,
)

Unmoved = Callable[[], AbstractContextManager[None]]


def item(path: str, body: Json) -> Json:
    return {"path": path, "body": body}


def pay(loan: Loan, amount: int, on: str = "2026-02-01", **changes: Any) -> Json:
    return item("/payments", payment_of(loan, amount, on) | changes)


def lend(loan: Loan, amount: int = 100_000, on: str = "2026-01-05") -> Json:
    return item("/disbursements", disbursement_of(loan, amount, on))


def run(api: Api, mode: str, *items: Json, **more: Any) -> Any:
    return api.post("/v1/batches", {"mode": mode, "items": list(items)}, **more)


def life(loan: Loan) -> list[Json]:
    """Lent, a day of interest, a fee, two payments of different dates, another draw: in one batch."""
    return [
        lend(loan),
        item("/accruals/batch", accrual_of("2026-01-06", (loan, 100_000, 30))),
        item(f"/loans/{loan.loan_id}/fees", {"amount_minor": "70", "currency": "USD", "effective_at": "2026-01-07"}),
        pay(loan, 60, "2026-01-08"),
        pay(loan, 140, "2026-01-09"),
        lend(loan, 1_000, "2026-01-10"),
    ]


@pytest.mark.parametrize("mode", ["atomic", "each"])
def test_a_batch_does_what_its_writes_do_one_by_one(mode: str, acme: Lender, api: Api) -> None:
    alone, together = acme.loans[:2]
    for step in life(alone):
        posted(api.post(f"/v1{step['path']}", step["body"]))
    done = posted(run(api, mode, *life(together)))
    assert (done["mode"], [outcome["status"] for outcome in done["items"]]) == (mode, [201] * 6)
    assert done["items"][3]["body"]["allocation"]["fees_minor"] == "60"
    assert [
        [(line["account_code"], line["direction"], line["amount_minor"]) for line in entry["lines"]]
        for entry in api.history(together)
    ] == [
        [(line["account_code"], line["direction"], line["amount_minor"]) for line in entry["lines"]]
        for entry in api.history(alone)
    ]
    assert api.owed(together) == api.owed(alone)


@pytest.mark.parametrize("mode", ["atomic", "each"])
def test_a_repeated_batch_answers_the_same_and_posts_nothing(
    mode: str, api: Api, loan: Loan, nothing_moves: Unmoved
) -> None:
    key = new_key()
    first = run(api, mode, lend(loan), pay(loan, 500), key=key)
    posted(first)
    with nothing_moves():
        again = run(api, mode, lend(loan), pay(loan, 500), key=key)
    assert again.status_code == 200
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.content == first.content
    with nothing_moves():
        refused(run(api, mode, lend(loan), pay(loan, 501), key=key), 422, "idempotency_mismatch")


def test_one_refusal_refuses_an_atomic_batch_whole_and_says_where(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    stranger = payment_of(loan, 5) | {"borrower_id": str(uuid.uuid4())}
    with nothing_moves():
        body = refused(run(api, "atomic", lend(loan), item("/payments", stranger)), 422, "borrower_mismatch")
    assert body["detail"].startswith("items.1: ")


def test_the_key_of_a_refused_atomic_batch_stays_free(api: Api, loan: Loan) -> None:
    key = new_key()
    refused(run(api, "atomic", lend(loan), pay(loan, 5, "2030-01-01"), key=key), 422, "effective_date_refused")
    posted(run(api, "atomic", lend(loan), pay(loan, 5), key=key))


def test_each_item_has_an_outcome_of_its_own(api: Api, loan: Loan) -> None:
    late, wrong = pay(loan, 5, "2030-01-01"), pay(loan, 5, amount_minor="05")
    done = posted(run(api, "each", lend(loan), late, wrong, pay(loan, 7)))
    assert [outcome["status"] for outcome in done["items"]] == [201, 422, 400, 201]
    assert done["items"][1]["problem"]["code"] == "effective_date_refused"
    assert [error["field"] for error in done["items"][2]["problem"]["errors"]] == ["amount_minor"]
    assert api.owed(loan) == (99_993, 0, 0)


def test_a_batch_that_broke_off_goes_on_where_it_was(api: Api, loan: Loan) -> None:
    """The batch's own key is written last: without it, the items that were done are replayed by theirs."""
    key = new_key()
    call = Call(Origin(_tenant_of(api), "client:x", str(uuid.uuid4())), key, b"")
    _outcome(call, Item(create_disbursement, {}, lend(loan)["body"]), 0, lambda scope: True)
    assert len(api.history(loan)) == 1
    done = posted(run(api, "each", lend(loan), pay(loan, 500), key=key))
    assert [outcome["status"] for outcome in done["items"]] == [200, 201]
    assert len(api.history(loan)) == 2


def _tenant_of(api: Api) -> str:
    return str(api.client.tenant_id)


def test_an_item_needs_the_scope_of_its_operation(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    scopes = [scope for scope in ALL_SCOPES if scope != "hpts:payments:write"]
    with nothing_moves():
        refused(run(api, "atomic", lend(loan), pay(loan, 5), scopes=scopes), 403, "insufficient_scope")
    done = posted(run(api, "each", lend(loan), pay(loan, 5), scopes=scopes))
    assert [outcome["status"] for outcome in done["items"]] == [201, 403]


def test_a_loan_that_the_batch_creates_can_be_lent_in_it(api: Api, acme: Lender) -> None:
    loan = Loan(str(uuid.uuid4()), str(uuid.uuid4()), acme.program_id, "USD")
    new = {
        "loan_id": loan.loan_id,
        "borrower_id": loan.borrower_id,
        "program_id": loan.program_id,
        "opened_on": "2026-01-02",
    }
    posted(run(api, "atomic", item("/loans", new), lend(loan), pay(loan, 100)))
    assert api.owed(loan) == (99_900, 0, 0)


def test_the_opening_of_one_loan_does_not_bind_the_dates_of_another(api: Api, acme: Lender) -> None:
    younger = acme.open_loan(opened_on=date(2026, 3, 1))
    posted(run(api, "atomic", lend(acme.loan), lend(younger, 100, "2026-03-01"), pay(acme.loan, 100, "2026-02-01")))
    body = refused(run(api, "atomic", pay(acme.loan, 1), pay(younger, 1)), 422, "effective_date_refused")
    assert body["detail"].startswith("items.1: ")


def test_a_plan_in_a_batch_takes_nothing_with_it(api: Api, loan: Loan) -> None:
    """What comes before the plan stays, and what comes after it meets the books as they are, not as they would be."""
    api.disburse(loan, 1_000, "2026-01-05")
    api.accrue("2026-01-06", (loan, 1_000, 30))
    api.pay(loan, 20, "2026-01-07")
    api.pay(loan, 30, "2026-01-06")
    plan = item(f"/loans/{loan.loan_id}/replans", {"from_date": "2026-01-06"})
    done = posted(run(api, "atomic", pay(loan, 10, "2026-01-08"), plan, pay(loan, 7, "2026-01-09")))
    first, planned, last = (outcome["body"] for outcome in done["items"])
    assert [entry["journal_entry_id"] for entry in api.history(loan)][-2:] == [
        first["journal_entry_id"],
        last["journal_entry_id"],
    ]
    assert planned["entries"]
    assert sum(api.owed(loan)) == 1_030 - 50 - 10 - 7


def test_terms_that_a_batch_changes_hold_for_its_payments(api: Api, acme: Lender, loan: Loan) -> None:
    api.disburse(loan, 1_000, "2026-01-05")
    api.accrue("2026-01-06", (loan, 1_000, 30))
    terms = {"effective_at": "2026-01-10", "waterfall": ["principal", "interest", "fees"]}
    change = item(f"/programs/{acme.program_id}/terms", terms)
    done = posted(run(api, "atomic", change, pay(loan, 10, "2026-01-10")))
    assert done["items"][1]["body"]["allocation"]["principal_minor"] == "10"


def test_what_one_item_does_is_seen_by_the_next(api: Api, loan: Loan) -> None:
    made = api.disburse(loan, 1_000, "2026-01-05")
    path = f"/disbursements/{made['disbursement_event_id']}/settlement"
    twice = [item(path, {"effective_at": "2026-01-06"})] * 2
    body = refused(run(api, "atomic", *twice), 409, "already_settled")
    assert body["detail"].startswith("items.1: ")
    done = posted(run(api, "each", *twice))
    assert [outcome["status"] for outcome in done["items"]] == [201, 409]


def test_events_of_several_dates_meet_the_waterfall_of_their_date(api: Api, acme: Lender, loan: Loan) -> None:
    api.disburse(loan, 1_000, "2026-01-05")
    api.accrue("2026-01-06", (loan, 1_000, 30))
    terms = {"effective_at": "2026-02-01", "waterfall": ["principal", "interest", "fees"]}
    posted(api.post(f"/v1/programs/{acme.program_id}/terms", terms))
    done = posted(run(api, "atomic", pay(loan, 10, "2026-01-31"), pay(loan, 10, "2026-02-01")))
    shares = [outcome["body"]["allocation"] for outcome in done["items"]]
    assert [(share["interest_minor"], share["principal_minor"]) for share in shares] == [("10", "0"), ("0", "10")]


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"mode": "some"}, ["mode"]),
        ({"items": []}, ["items"]),
        ({"items": [{"path": "/payments"}]}, ["items.0.body"]),
        ({"items": [{"path": "/nowhere", "body": {}}]}, ["items.0.path"]),
        ({"items": [{"path": "/batches", "body": {}}]}, ["items.0.path"]),
        ({"items": [{"path": "/loans/1", "body": {}}, {"path": "/accounts", "body": {}}]}, ["items.0.path"]),
        ({"items": [{"path": "/payments", "body": []}]}, ["items.0.body"]),
        ({"items": [{"path": "/payments", "body": {}, "key": "x"}]}, ["items.0.key"]),
    ],
)
def test_a_batch_that_is_none_is_refused(api: Api, change: Json, fields: list[str]) -> None:
    body = {"mode": "each", "items": [{"path": "/payments", "body": {}}]} | change
    refused(api.post("/v1/batches", body), 400, "validation_failed", fields)


def test_all_wrong_fields_of_an_atomic_batch_are_named_at_once(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        wrong = run(api, "atomic", pay(loan, 5, currency="usd"), lend(loan), pay(loan, 5, layer="LATER"))
        refused(wrong, 400, "validation_failed", ["items.0.body.currency", "items.2.body.layer"])


def test_a_batch_holds_a_thousand_items_and_not_one_more(api: Api, loan: Loan) -> None:
    api.disburse(loan, 1_000_000, "2026-01-05")
    done = posted(run(api, "atomic", *[pay(loan, 1)] * 1_000))
    assert len({outcome["body"]["journal_entry_id"] for outcome in done["items"]}) == 1_000
    assert api.owed(loan) == (999_000, 0, 0)
    refused(run(api, "atomic", *[pay(loan, 1)] * 1_001), 400, "validation_failed", ["items"])


def test_one_atomic_batch_accrues_one_date(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    api.disburse(loan, 1_000, "2026-01-05")
    days = [item("/accruals/batch", accrual_of(day, (loan, 1_000, 1))) for day in ("2026-01-06", "2026-01-07")]
    with nothing_moves():
        refused(run(api, "atomic", *days), 400, "validation_failed")
    posted(run(api, "each", *days))


def test_a_long_key_is_refused_by_a_batch_of_items_by_themselves(api: Api, loan: Loan) -> None:
    refused(run(api, "each", lend(loan), key="k" * 251), 400, "idempotency_key_invalid")
    posted(run(api, "each", lend(loan), key="k" * 250))


def test_a_batch_is_a_write_of_the_tenant_alone(zenith: Lender, api: Api, loan: Loan) -> None:
    done = posted(run(zenith.api, "each", lend(loan)))
    assert done["items"][0]["problem"]["code"] == "loan_not_found"
    assert shown(api.get(f"/v1/loans/{loan.loan_id}"))["state"] == "open"
    assert api.owed(loan) == (0, 0, 0)
