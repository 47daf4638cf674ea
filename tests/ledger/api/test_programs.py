"""POST /v1/programs, GET /v1/programs, GET /v1/programs/{id}."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import permutations

import pytest

from tests.conftest import Api, Json, Lender, posted, refused, shown

Unmoved = Callable[[], AbstractContextManager[None]]
PATH = "/v1/programs"
MINIMAL: Json = {"name": "Car loans", "currency": "USD", "annual_rate_bps": 450, "day_count_convention": "ACT_365"}


def test_a_program_is_answered_as_it_is_read(api: Api) -> None:
    body = MINIMAL | {
        "program_id": str(uuid.uuid4()),
        "waterfall": ["principal", "fees", "interest"],
        "accrual_mode": "engine",
    }
    made = posted(api.post(PATH, body))
    created_at = made.pop("created_at")
    assert made == body
    assert shown(api.get(f"{PATH}/{body['program_id']}")) == body | {"created_at": created_at}


def test_what_is_left_out_has_its_default(api: Api) -> None:
    made = posted(api.post(PATH, MINIMAL))
    uuid.UUID(made["program_id"])
    assert (made["waterfall"], made["accrual_mode"]) == (["fees", "interest", "principal"], "client")


def test_every_waterfall_and_day_count_is_taken(api: Api) -> None:
    for order in permutations(("fees", "interest", "principal")):
        assert posted(api.post(PATH, MINIMAL | {"waterfall": list(order)}))["waterfall"] == list(order)
    for convention in ("ACT_365", "ACT_360", "ACT_ACT", "30_360"):
        assert (
            posted(api.post(PATH, MINIMAL | {"day_count_convention": convention}))["day_count_convention"] == convention
        )


@pytest.mark.parametrize("rate", [0, 100_000])
def test_the_rates_bounds_are_taken(api: Api, rate: int) -> None:
    assert posted(api.post(PATH, MINIMAL | {"annual_rate_bps": rate}))["annual_rate_bps"] == rate


@pytest.mark.parametrize(
    "waterfall",
    [
        [],
        ["fees"],
        ["fees", "interest"],
        ["fees", "fees", "principal"],
        ["fees", "interest", "principal", "suspense"],
        ["fees", "interest", "principal", "fees"],
        ["Fees", "interest", "principal"],
        ["fees", "interest", None],
        ["fees", "interest", 3],
        "fees,interest,principal",
        {"fees": 1, "interest": 2, "principal": 3},
        None,
    ],
)
def test_a_waterfall_is_a_permutation(api: Api, nothing_moves: Unmoved, waterfall: object) -> None:
    with nothing_moves():
        refused(api.post(PATH, MINIMAL | {"waterfall": waterfall}), 400, "validation_failed", ["waterfall"])


def test_a_program_exists_once(api: Api, nothing_moves: Unmoved) -> None:
    body = MINIMAL | {"program_id": str(uuid.uuid4())}
    posted(api.post(PATH, body))
    with nothing_moves():
        refused(api.post(PATH, body), 409, "program_exists")
        refused(
            api.post(PATH, body | {"name": "Another", "program_id": body["program_id"].upper()}), 409, "program_exists"
        )


def test_a_program_of_another_tenant_is_unknown(acme: Lender, zenith: Lender) -> None:
    for name in (zenith.program_id, str(uuid.uuid4())):
        problem = refused(acme.api.get(f"{PATH}/{name}"), 404, "not_found")
        assert problem["detail"].replace(name, "x") == "There is no program x."
    listed = shown(acme.api.get(PATH))["items"]
    assert [item["program_id"] for item in listed] == [acme.program_id]


def test_reading_needs_its_own_scope(acme: Lender) -> None:
    for path in (PATH, f"{PATH}/{acme.program_id}"):
        shown(acme.api.get(path, scopes=["hpts:loans:read"]))
        refused(acme.api.get(path, scopes=["hpts:admin:*", "hpts:ledger:read"]), 403, "insufficient_scope")
        refused(acme.api.get(path, scopes=None), 401, "invalid_token")


def test_the_list_goes_by_pages(acme: Lender) -> None:
    made = {acme.program_id} | {acme.open_program() for _ in range(6)}
    seen: list[str] = []
    query: Json = {"page_size": 3}
    sizes = []
    while True:
        page = shown(acme.api.get(PATH, query))
        assert page.keys() <= {"items", "next_page_token"}
        seen += [item["program_id"] for item in page["items"]]
        assert len(seen) == len(set(seen)), "a page repeats programs"
        sizes.append(len(page["items"]))
        if "next_page_token" not in page:
            break
        query = {"page_size": 3, "page_token": page["next_page_token"]}
    assert sizes == [3, 3, 1]
    assert len(seen) == len(set(seen))
    assert set(seen) == made


def test_an_exact_last_page_has_no_token(acme: Lender) -> None:
    acme.open_program()
    assert "next_page_token" not in shown(acme.api.get(PATH, {"page_size": 2}))
    assert "next_page_token" in shown(acme.api.get(PATH, {"page_size": 1}))
