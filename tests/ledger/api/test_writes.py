"""The spine: what every POST of the books does, whatever it posts. Replays and keys are in test_idempotency.py."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from django.urls import get_resolver

from hpts import oauth
from tests.conftest import ALL_SCOPES, Api, Json, Lender, new_key, payment_of, posted, refused
from tests.ledger.api.conftest import OF_THE_LOAN, WRITES, Write, with_value

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIMESTAMP = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?Z")
Unmoved = Callable[[], AbstractContextManager[None]]
Prepared = tuple[str, Json]


def test_every_post_route_stands_in_the_table() -> None:
    routes: list[Any] = get_resolver("hpts.urls").url_patterns
    below_v1 = [
        route
        for part in routes
        if str(part.pattern) == "v1/"
        for route in part.url_patterns
        if route.callback.cls.__module__ == "ledger.views"
    ]
    posts = [str(route.pattern) for route in below_v1 if "post" in route.callback.actions]
    assert len(posts) == len(WRITES), f"give tests/ledger/api/conftest.py a Write for each of {posts}"


def test_it_works(write: Write, prepared: Prepared, api: Api) -> None:
    path, body = prepared
    answer = api.post(path, body)
    assert posted(answer).keys() == write.answers
    assert answer.headers["Content-Type"] == "application/json"
    assert UUID.fullmatch(answer.headers["X-Request-Id"])
    for name, value in json.loads(answer.content).items():
        if name.endswith("_id"):
            assert UUID.fullmatch(value), name
        if name in ("posted_at", "created_at", "closed_at"):
            assert TIMESTAMP.fullmatch(value), name


def test_ids_are_taken_in_any_case_and_answered_in_lower(write: Write, prepared: Prepared, api: Api) -> None:
    path, body = prepared
    upper = re.sub(UUID.pattern, lambda found: found[0].upper(), json.dumps(body))
    made = posted(api.post(re.sub(UUID.pattern, lambda found: found[0].upper(), path), upper))
    for name in made.keys() & body.keys() & {"loan_id", "borrower_id", "program_id", "reverses_entry_id"}:
        assert made[name] == body[name]


def test_its_scope_alone_is_enough(write: Write, prepared: Prepared, api: Api) -> None:
    path, body = prepared
    posted(api.post(path, body, scopes=[write.scope]))


def test_without_its_scope_it_is_refused(write: Write, prepared: Prepared, api: Api, nothing_moves: Unmoved) -> None:
    path, body = prepared
    others = [scope for scope in ALL_SCOPES if not oauth.covers([scope], write.scope)]
    with nothing_moves():
        refused(api.post(path, body, scopes=others), 403, "insufficient_scope")


def test_the_admin_wildcard_grants_admin_areas_and_nothing_else(write: Write, prepared: Prepared, api: Api) -> None:
    path, body = prepared
    answer = api.post(path, body, scopes=["hpts:admin:*"])
    if write.scope.startswith("hpts:admin:"):
        posted(answer)
    else:
        refused(answer, 403, "insufficient_scope")


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer x.y.z", "Basic YTpi", "Bearer a b"])
def test_without_a_token_it_is_refused(
    write: Write, prepared: Prepared, api: Api, nothing_moves: Unmoved, authorization: str | None
) -> None:
    path, body = prepared
    headers = {} if authorization is None else {"Authorization": authorization}
    with nothing_moves():
        refused(api.post(path, body, scopes=None, headers=headers), 401, "invalid_token")


def test_an_unknown_member_is_refused(write: Write, prepared: Prepared, api: Api, nothing_moves: Unmoved) -> None:
    path, body = prepared
    with nothing_moves():
        answer = api.post(path, body | {"tenant_id": str(uuid.uuid4())})
        problem = refused(answer, 400, "validation_failed", ["tenant_id"])
    assert problem["errors"][0]["code"] == "unknown_field"


def test_members_that_are_missing_are_named_all_at_once(
    write: Write, prepared: Prepared, api: Api, nothing_moves: Unmoved
) -> None:
    import msgspec

    required = [field.name for field in msgspec.structs.fields(write.shape) if field.required]
    with nothing_moves():
        refused(api.post(prepared[0], {}), 400, "validation_failed", required)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_nothing_can_be_changed_in_place(write: Write, prepared: Prepared, api: Api, method: str) -> None:
    path, _ = prepared
    answer = api.call(method, path)
    refused(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["Allow"].split(", ")
    assert not {"PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} & set(answer.headers["Allow"].split(", "))


def test_a_method_override_is_not_obeyed(write: Write, prepared: Prepared, api: Api) -> None:
    path, body = prepared
    names = ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override")
    posted(api.post(path, body, headers=dict.fromkeys(names, "DELETE")))


def test_a_trailing_slash_is_another_path(write: Write, prepared: Prepared, api: Api, nothing_moves: Unmoved) -> None:
    path, body = prepared
    with nothing_moves():
        refused(api.post(f"{path}/", body), 404, "not_found")


# --- Another tenant's rows -------------------------------------------------------------------------------------------


def test_an_id_of_another_tenant_answers_exactly_like_an_unknown_one(
    write: Write, acme: Lender, zenith: Lender, nothing_moves: Unmoved
) -> None:
    path, body = write.prepare(acme)
    foreign_path, foreign_body = write.prepare(zenith)
    for place, (status, code) in write.ids.items():
        foreign, unknown = _value_at(foreign_body, place), str(uuid.uuid4())
        with nothing_moves():
            answers = [
                _blind(acme.api, path, with_value(body, place, name), status, code) for name in (foreign, unknown)
            ]
        assert answers[0] == answers[1], place
    # A path that names nothing is the same path for everyone.
    if foreign_path != path:
        unknown_path = re.sub("/accounts/[0-9]{4}/", "/accounts/9998/", UUID.sub(str(uuid.uuid4()), path))
        with nothing_moves():
            answers = [_blind(acme.api, name, body, 404, "not_found") for name in (foreign_path, unknown_path)]
        assert answers[0] == answers[1]


def _value_at(body: Any, place: str) -> str:
    for name in place.split("."):
        body = body[int(name)] if isinstance(body, list) else body[name]
    return str(body)


def _blind(api: Api, path: str, body: Json, status: int, code: str) -> tuple[str, list[str]]:
    """The answer without what must differ: ids. With the names of its headers."""
    answer = api.post(path, body)
    refused(answer, status, code)
    return re.sub(f"{UUID.pattern}|account [0-9]{{4}}", "an-id", answer.content.decode()), sorted(answer.headers)


def test_the_token_alone_says_whose_books_are_meant(write: Write, acme: Lender, zenith: Lender) -> None:
    path, body = write.prepare(acme)
    before = zenith.books()
    posted(acme.api.post(path, body, headers={"X-Tenant-Id": zenith.tenant_id, "Tenant-Id": zenith.tenant_id}))
    assert zenith.books() == before


def test_a_clients_own_ids_are_its_own_affair(acme: Lender, zenith: Lender) -> None:
    """Two tenants may choose the same id for a program and a loan; neither learns of the other."""
    name = str(uuid.uuid4())
    for lender in (acme, zenith):
        terms = {"name": "P", "currency": "USD", "annual_rate_bps": 0, "day_count_convention": "ACT_365"}
        posted(lender.api.post("/v1/programs", terms | {"program_id": name}))
        opened = {"borrower_id": name, "program_id": name, "opened_on": "2026-01-01", "loan_id": name}
        posted(lender.api.post("/v1/loans", opened))


# --- The version of the loan -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", OF_THE_LOAN, ids=str)
def test_a_write_about_a_loan_needs_the_version_that_it_names(
    write: Write, acme: Lender, nothing_moves: Unmoved
) -> None:
    """If-Match: what the client has seen of the loan must still be true. The answer brings the loan's new version."""
    path, body = write.prepare(acme)
    seen = acme.api.get(f"/v1/loans/{acme.loan.loan_id}").headers["ETag"]
    with nothing_moves():
        for stale in ('"none"', f'"{int(seen[1:-1]) + 1}"', "", f"W/{seen}"):
            refused(acme.api.post(path, body, headers={"If-Match": stale}), 412, "loan_changed")
    answer = acme.api.post(path, body, headers={"If-Match": f'"none", {seen}'})
    posted(answer)
    now = acme.api.get(f"/v1/loans/{acme.loan.loan_id}").headers["ETag"]
    assert answer.headers["ETag"] == now
    assert (now != seen) == write.moves_the_loan


def test_any_version_will_do_for_a_star(write: Write, prepared: Prepared, api: Api) -> None:
    posted(api.post(*prepared, headers={"If-Match": "*"}))


@pytest.mark.parametrize("write", [write for write in WRITES if not write.of_the_loan], ids=str)
def test_a_write_that_is_not_about_one_loan_asks_for_no_version(write: Write, acme: Lender) -> None:
    posted(acme.api.post(*write.prepare(acme), headers={"If-Match": '"none"'}))


# --- The order of checks ---------------------------------------------------------------------------------------------


def test_checks_come_in_their_order(write: Write, acme: Lender, nothing_moves: Unmoved) -> None:
    """A request that is wrong in every way, put right one way after the other."""
    (path, body), api, used = write.prepare(acme), acme.api, new_key()
    posted(api.post("/v1/payments", payment_of(acme.loans[2]), key=used))
    wrong: dict[str, Any] = {
        "method": "PUT",
        "path": f"{path}x",
        "body": b"{",
        "key": None,
        "scopes": None,
        "content_type": "text/plain",
        "headers": {"Accept": "text/html"},
        "CONTENT_LENGTH": str(512 * 1024 * 1024),
    }

    def step(status: int, code: str) -> None:
        changed = dict(wrong)
        refused(api.call(changed.pop("method"), changed.pop("path"), changed.pop("body"), **changed), status, code)

    with nothing_moves():
        step(404, "not_found")
        wrong["path"] = path
        step(405, "method_not_allowed")
        wrong["method"] = "POST"
        step(401, "invalid_token")
        wrong["scopes"] = ["hpts:reconciliation:read"]
        if not write.scope_of_its_items:
            step(403, "insufficient_scope")
        wrong["scopes"] = ALL_SCOPES
        step(413, "payload_too_large")
        del wrong["CONTENT_LENGTH"]
        step(415, "unsupported_media_type")
        wrong["content_type"] = "application/json"
        step(406, "not_acceptable")
        del wrong["headers"]
        step(400, "malformed_json")
        wrong["body"] = b"[]"
        step(400, "idempotency_key_required")
        wrong["key"] = "short"
        step(400, "idempotency_key_invalid")
        wrong["key"] = used
        step(400, "validation_failed")
        wrong["body"] = body
        step(422, "idempotency_mismatch")
    wrong["key"] = new_key()
    posted(api.call(wrong.pop("method"), wrong.pop("path"), wrong.pop("body"), **wrong))


@pytest.mark.parametrize(
    "accept", ["application/json", "*/*", "application/*", "text/html, */*;q=0.1", "application/json; q=0.5, text/html"]
)
def test_a_client_that_takes_json_gets_it(api: Api, accept: str) -> None:
    assert api.get("/v1/accounts", headers={"Accept": accept}).status_code == 200


@pytest.mark.parametrize(
    "accept", ["text/html", "application/xml", "application/json;q=0", "image/*", "application/yaml"]
)
def test_a_client_that_takes_no_json_is_refused(api: Api, accept: str) -> None:
    refused(api.get("/v1/accounts", headers={"Accept": accept}), 406, "not_acceptable")
