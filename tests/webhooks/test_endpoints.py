"""The API of endpoints and deliveries: what it takes, what it shows, what it refuses, and to whom."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.urls import get_resolver
from jsonschema import Draft202012Validator

from hpts import openapi
from tests.conftest import Api, Json, Lender, new_key, posted, refused, shown
from tests.webhooks.conftest import Receiver, announce, claim, eventually, pay, register, rows, settle
from webhooks import operations, targets
from webhooks.delivery import Outcome

PATH = "/v1/webhook-endpoints"
URL = "http://127.0.0.1:9/hook"
SCOPE = ("hpts:admin:webhooks",)


def check(value: Any, component: str) -> None:
    doc = json.loads(openapi.rendered())
    schema = {"$ref": f"#/components/schemas/{component}", "components": doc["components"]}
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(value)


# --- Registering -----------------------------------------------------------------------------------------------------


def test_an_endpoint_is_registered_and_its_secret_is_shown_once(api: Api) -> None:
    key = new_key()
    body = {"url": URL, "event_types": ["payment_received"], "description": "Books of the parent"}
    made = posted(api.post(PATH, body, key=key, scopes=SCOPE))
    check(made, "WebhookEndpointCreated")
    assert made == body | {
        "webhook_endpoint_id": made["webhook_endpoint_id"],
        "state": "enabled",
        "created_at": made["created_at"],
        "secret": made["secret"],
    }
    without = {name: value for name, value in made.items() if name != "secret"}
    assert shown(api.get(f"{PATH}/{made['webhook_endpoint_id']}")) == without
    again = api.post(PATH, body, key=key)
    assert (again.status_code, json.loads(again.content)) == (200, without)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert shown(api.get(PATH))["items"] == [without]


def test_without_event_types_it_gets_all_kinds_and_says_so(api: Api) -> None:
    made = posted(api.post(PATH, {"url": URL}))
    assert made["event_types"] == []
    assert "description" not in made


def test_a_kind_that_is_named_twice_counts_once(api: Api) -> None:
    made = posted(api.post(PATH, {"url": URL, "event_types": ["reversal", "accrual", "reversal"]}))
    assert made["event_types"] == ["reversal", "accrual"]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["url"]),
        ({"url": None}, ["url"]),
        ({"url": 5}, ["url"]),
        ({"url": URL, "event_types": "payment_received"}, ["event_types"]),
        ({"url": URL, "event_types": ["payment"]}, ["event_types.0"]),
        ({"url": URL, "event_types": None}, ["event_types"]),
        ({"url": URL, "description": ""}, ["description"]),
        ({"url": URL, "description": "x" * 501}, ["description"]),
        ({"url": URL, "secret": "whsec_x"}, ["secret"]),
        ({"url": "ftp://x", "event_types": ["payment"]}, ["event_types.0", "url"]),
    ],
)
def test_every_wrong_field_is_named(api: Api, body: Json, fields: list[str]) -> None:
    refused(api.post(PATH, body), 400, "validation_failed", fields)


def test_a_post_needs_its_key_and_another_body_is_a_mismatch(api: Api) -> None:
    refused(api.post(PATH, {"url": URL}, key=None), 400, "idempotency_key_required")
    key = new_key()
    posted(api.post(PATH, {"url": URL}, key=key))
    refused(api.post(PATH, {"url": URL + "2"}, key=key), 422, "idempotency_mismatch")
    assert len(shown(api.get(PATH))["items"]) == 1


def test_a_refused_registration_leaves_its_key_free(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    monkeypatch.setattr(targets, "addresses_of", lambda host, port: ["10.0.0.1"])
    refused(api.post(PATH, {"url": URL}, key=key), 400, "validation_failed", ["url"])
    monkeypatch.undo()
    posted(api.post(PATH, {"url": URL}, key=key))


def test_a_replay_does_not_ask_whether_the_name_still_resolves(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    posted(api.post(PATH, {"url": URL}, key=key))
    monkeypatch.setattr(targets, "addresses_of", lambda host, port: ["10.0.0.1"])
    assert api.post(PATH, {"url": URL}, key=key).status_code == 200


def test_there_is_a_limit_of_enabled_endpoints(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "MAX_ENDPOINTS", 2)
    first = register(api, URL)
    register(api, URL)
    body = refused(api.post(PATH, {"url": URL}), 400, "validation_failed", [""])
    assert body["errors"][0]["code"] == "too_many"
    assert api.call("DELETE", first.path).status_code == 204
    register(api, URL)
    refused(api.post(f"{first.path}/enable", {}), 400, "validation_failed", [""])


def test_endpoints_come_in_pages(api: Api) -> None:
    made = {register(api, URL).endpoint_id for _ in range(5)}
    seen: list[str] = []
    query: dict[str, Any] = {"page_size": 2}
    while True:
        page = shown(api.get(PATH, query))
        seen += [item["webhook_endpoint_id"] for item in page["items"]]
        if "next_page_token" not in page:
            break
        query["page_token"] = page["next_page_token"]
    assert seen == sorted(made)


# --- Whose they are, and who may -------------------------------------------------------------------------------------

ROUTES = [
    ("GET", PATH, None),
    ("POST", PATH, {"url": URL}),
    ("GET", f"{PATH}/{{endpoint}}", None),
    ("DELETE", f"{PATH}/{{endpoint}}", None),
    ("POST", f"{PATH}/{{endpoint}}/rotate-secret", {}),
    ("POST", f"{PATH}/{{endpoint}}/test", {}),
    ("POST", f"{PATH}/{{endpoint}}/enable", {}),
    ("POST", f"{PATH}/{{endpoint}}/recover", {"since": datetime.now(UTC).strftime("%Y-%m-%dT00:00:00Z")}),
    ("GET", "/v1/webhook-deliveries", None),
    ("POST", "/v1/webhook-deliveries/{delivery}/redeliver", {}),
]


def test_every_route_of_webhooks_stands_in_the_table() -> None:
    """The feed has its own tests, for it takes no id."""
    parts: list[Any] = get_resolver("hpts.urls").url_patterns
    routes = {
        (method.upper(), f"/v1/{route.pattern}")
        for part in parts
        if str(part.pattern) == "v1/"
        for route in part.url_patterns
        if route.callback.cls.__module__ == "webhooks.views"
        for method in route.callback.actions
        if method != "head"
    }
    tried = {(method, route) for method, route, _ in ROUTES}
    named = {("<id:webhook_endpoint_id>", "{endpoint}"), ("<id:delivery_id>", "{delivery}")}
    for written, shown_as in named:
        routes = {(method, route.replace(written, shown_as)) for method, route in routes}
    assert routes - {("GET", "/v1/events")} == tried


@pytest.mark.parametrize(("method", "route", "body"), ROUTES)
def test_each_route_asks_for_the_scope_of_webhooks(api: Api, method: str, route: str, body: Json | None) -> None:
    path = route.format(endpoint=uuid.uuid4(), delivery=uuid.uuid4())
    everything_else = ("hpts:ledger:read", "hpts:admin:loans", "hpts:payments:write")
    content = b"" if body is None else body
    refused(api.call(method, path, content, scopes=None), 401, "invalid_token")
    refused(api.call(method, path, content, scopes=everything_else, key=new_key()), 403, "insufficient_scope")


@pytest.mark.parametrize(("method", "route", "body"), [route for route in ROUTES if "{" in route[1]])
def test_anothers_endpoint_is_told_apart_from_an_unknown_one_by_nothing(
    lent: Lender, zenith: Lender, method: str, route: str, body: Json | None
) -> None:
    theirs = register(zenith.api, URL)
    zenith.api.disburse(zenith.loan, 100, "2026-01-05")
    announce(zenith)
    (delivered,) = theirs.deliveries()
    before = theirs.shown, theirs.deliveries()
    answers = []
    for endpoint, delivery_id in ((theirs.endpoint_id, delivered["delivery_id"]), (uuid.uuid4(), uuid.uuid4())):
        path = route.format(endpoint=endpoint, delivery=delivery_id)
        answer = lent.api.call(method, path, b"" if body is None else body, key=new_key() if method == "POST" else None)
        told = refused(answer, 404, "not_found")
        answers.append(told["detail"].replace(str(endpoint), "ID").replace(str(delivery_id), "ID"))
    assert answers[0] == answers[1]
    assert (theirs.shown, theirs.deliveries()) == before


def test_lists_show_no_row_of_another_tenant(lent: Lender, zenith: Lender) -> None:
    register(zenith.api, URL)
    zenith.api.disburse(zenith.loan, 100, "2026-01-05")
    announce(zenith)
    assert shown(lent.api.get(PATH))["items"] == []
    assert shown(lent.api.get("/v1/webhook-deliveries"))["items"] == []
    mine = register(lent.api, URL)
    assert [item["webhook_endpoint_id"] for item in shown(lent.api.get(PATH))["items"]] == [mine.endpoint_id]


@pytest.mark.parametrize("path", [PATH, "/v1/webhook-deliveries", "/v1/events"])
def test_no_method_but_the_documented_ones(api: Api, path: str) -> None:
    for method in ("PUT", "PATCH", "DELETE"):
        refused(api.call(method, path), 405, "method_not_allowed")


# --- Ending and beginning again --------------------------------------------------------------------------------------


def test_delete_deactivates_and_cancels_what_waits(lent: Lender) -> None:
    endpoint = register(lent.api, URL)
    pay(lent, 3)
    announce(lent)
    answer = lent.api.call("DELETE", endpoint.path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert "Content-Type" not in answer.headers
    assert (endpoint.shown["state"], endpoint.shown["disabled_reason"]) == ("disabled", "deleted")
    assert endpoint.states() == {"cancelled": 3}
    assert lent.api.call("DELETE", endpoint.path).status_code == 204
    pay(lent)
    announce(lent)
    assert len(endpoint.deliveries()) == 3
    assert claim(lent) == []


def test_an_enabled_endpoint_goes_on_and_recovers_what_it_missed(lent: Lender) -> None:
    endpoint = register(lent.api, URL)
    since = datetime.now(UTC)
    first = pay(lent, 2)
    announce(lent)
    done, _ = claim(lent, 2)
    settle(lent, [done], Outcome(200))
    settle(lent, [_], Outcome(410))
    missed = pay(lent, 3)
    announce(lent)
    assert posted(lent.api.post(f"{endpoint.path}/enable", b""))["state"] == "enabled"
    assert "disabled_reason" not in endpoint.shown
    body = {"since": since.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
    recovered = posted(lent.api.post(f"{endpoint.path}/recover", body))
    check(recovered, "WebhookRecovery")
    assert recovered["delivery_count"] == 4, "what was acknowledged is not sent again"
    assert endpoint.states() == {"succeeded": 1, "pending": 4}
    assert {each["journal_entry_id"] for each in endpoint.deliveries()} == {*first, *missed}
    assert {each["attempt"] for each in endpoint.deliveries(state="pending")} == {0}


def test_recovery_reaches_as_far_as_it_says_and_keeps_the_filter(lent: Lender) -> None:
    (paid,) = pay(lent)
    lent.api.reverse(paid)
    announce(lent)
    endpoint = register(lent.api, URL, event_types=["reversal"])
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert posted(lent.api.post(f"{endpoint.path}/recover", {"since": tomorrow}))["delivery_count"] == 0
    today = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert posted(lent.api.post(f"{endpoint.path}/recover", {"since": today}))["delivery_count"] == 1
    assert [each["event_type"] for each in endpoint.deliveries()] == ["reversal"]
    long_ago = (datetime.now(UTC) - timedelta(days=31)).strftime("%Y-%m-%dT%H:%M:%SZ")
    refused(lent.api.post(f"{endpoint.path}/recover", {"since": long_ago}), 400, "validation_failed", ["since"])
    for since in ("yesterday", None, "2026-03-01"):
        refused(lent.api.post(f"{endpoint.path}/recover", {"since": since}), 400, "validation_failed", ["since"])


# --- Deliveries ------------------------------------------------------------------------------------------------------


def test_deliveries_are_filtered_and_paged_newest_first(lent: Lender) -> None:
    one, other = register(lent.api, URL), register(lent.api, URL, event_types=["reversal"])
    entries = pay(lent, 5)
    lent.api.reverse(entries[0])
    announce(lent)
    everything = shown(lent.api.get("/v1/webhook-deliveries", {"page_size": 500}))["items"]
    check({"items": everything}, "WebhookDeliveryPage")
    assert len(everything) == 7
    assert [each["delivery_id"] for each in everything] == sorted(
        (each["delivery_id"] for each in everything), reverse=True
    )
    assert len(one.deliveries()) == 6
    assert [each["event_type"] for each in other.deliveries()] == ["reversal"]
    assert len(one.deliveries(event_type="payment_received")) == 5
    settle(lent, claim(lent, 2), Outcome(200))
    settle(lent, claim(lent, 1), Outcome(None, error="no connection"))
    assert len(shown(lent.api.get("/v1/webhook-deliveries", {"state": "succeeded"}))["items"]) == 2
    seen: list[str] = []
    query: dict[str, Any] = {"page_size": 3}
    while True:
        page = shown(lent.api.get("/v1/webhook-deliveries", query))
        seen += [each["delivery_id"] for each in page["items"]]
        if "next_page_token" not in page:
            break
        query["page_token"] = page["next_page_token"]
    assert seen == [each["delivery_id"] for each in everything]
    token = query["page_token"]
    refused(lent.api.get("/v1/webhook-deliveries", {"page_token": token, "state": "dead"}), 400, "invalid_page_token")


@pytest.mark.parametrize("query", [{"state": "lost"}, {"event_type": "x"}, {"webhook_endpoint_id": "x"}, {"x": "y"}])
def test_a_filter_that_is_none_is_refused(api: Api, query: Json) -> None:
    refused(api.get("/v1/webhook-deliveries", query), 400, "validation_failed", list(query))


def test_a_failed_delivery_says_what_happened_and_when_it_is_tried_again(lent: Lender) -> None:
    endpoint = register(lent.api, URL)
    (entry_id,) = pay(lent)
    announce(lent)
    settle(lent, claim(lent), Outcome(None, error="no connection"))
    (item,) = endpoint.deliveries()
    assert item == {
        "delivery_id": item["delivery_id"],
        "webhook_endpoint_id": endpoint.endpoint_id,
        "journal_entry_id": entry_id,
        "event_type": "payment_received",
        "state": "pending",
        "attempt": 1,
        "created_at": item["created_at"],
        "next_attempt_at": item["next_attempt_at"],
        "last_attempt_at": item["last_attempt_at"],
        "last_error": "no connection",
    }
    assert item["next_attempt_at"] > item["last_attempt_at"]


@pytest.mark.parametrize("state", ["succeeded", "exhausted", "dead", "cancelled", "pending"])
def test_any_delivery_is_delivered_again_under_its_own_id(
    lent: Lender, receiver: Receiver, deliver: Callable[..., Any], state: str
) -> None:
    endpoint = register(lent.api, receiver.url)
    pay(lent)
    announce(lent)
    claim(lent)
    ended = "now()" if state != "pending" else "NULL"
    rows(
        lent.tenant_id,
        f"UPDATE webhook_delivery SET state = %s, attempt = 9, finished_at = {ended}, due_at = now() + interval '1 day'",
        state,
    )
    (item,) = endpoint.deliveries()
    again = posted(lent.api.post(f"/v1/webhook-deliveries/{item['delivery_id']}/redeliver", b""))
    check(again, "WebhookDelivery")
    assert (again["delivery_id"], again["state"], again["attempt"]) == (item["delivery_id"], "pending", 0)
    with deliver(lent):
        eventually(lambda: endpoint.states() == {"succeeded": 1})
    assert [request.headers["webhook-id"] for request in receiver.requests] == [item["delivery_id"]]


def test_what_is_on_its_way_stays_on_its_way(lent: Lender) -> None:
    endpoint = register(lent.api, URL)
    pay(lent)
    announce(lent)
    (claimed,) = claim(lent)
    answer = posted(lent.api.post(f"/v1/webhook-deliveries/{claimed.delivery_id}/redeliver", {}))
    assert answer["state"] == "leased"
    settle(lent, [claimed], Outcome(200))
    assert endpoint.states() == {"succeeded": 1}


@pytest.mark.parametrize("operation", ["rotate-secret", "test", "enable"])
@pytest.mark.parametrize("body", [b"", b"{}"])
def test_a_body_without_members_may_be_left_out(api: Api, operation: str, body: bytes) -> None:
    endpoint = register(api, URL)
    posted(api.post(f"{endpoint.path}/{operation}", body))
    refused(api.post(f"{endpoint.path}/{operation}", {"x": 1}), 400, "validation_failed", ["x"])


def test_operations_of_webhooks_are_in_no_batch(api: Api) -> None:
    """A batch's answer is kept; a secret is not."""
    body = {"mode": "each", "items": [{"path": "/webhook-endpoints", "body": {"url": URL}}]}
    refused(api.post("/v1/batches", body), 400, "validation_failed", ["items.0.path"])


def test_no_name_is_looked_up_inside_a_transaction(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver may take seconds, in which nothing of the database's may be held."""
    from hpts import tenancy

    inside: list[bool] = []

    def lookup(host: str, port: int) -> list[str]:
        inside.append(tenancy._current.get() is not None)
        return ["127.0.0.1"]

    monkeypatch.setattr(targets, "addresses_of", lookup)
    examine = targets.examine

    def examined(url: str) -> str | None:
        inside.append(tenancy._current.get() is not None)
        return examine(url)

    monkeypatch.setattr(targets, "examine", examined)
    register(api, URL)
    assert inside == [False, False]
