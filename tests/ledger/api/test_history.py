"""GET /v1/loans/{id}/journal-entries: the seed's operation, its filters, its pages, and what a reader may rely on."""

from __future__ import annotations

import string
import threading
import uuid
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from django.db import connections

from tests.conftest import Api, Json, Lender, Loan, line, refused, shown

SEED = yaml.safe_load((Path(__file__).parents[2] / "contract" / "seed_history.yaml").read_text())
KINDS = SEED["components"]["schemas"]["EventKind"]["enum"]


def path_of(loan: Loan) -> str:
    return f"/v1/loans/{loan.loan_id}/journal-entries"


def ids(page: Json) -> list[str]:
    return [item["journal_entry_id"] for item in page["items"]]


def all_pages(api: Api, loan: Loan, **query: Any) -> list[list[str]]:
    pages: list[list[str]] = []
    while True:
        page = shown(api.get(path_of(loan), query))
        assert not set(ids(page)) & set(chain(*pages)), "a page repeats entries"
        pages.append(ids(page))
        if "next_page_token" not in page:
            return pages
        query["page_token"] = page["next_page_token"]


@pytest.fixture
def story(acme: Lender) -> list[Json]:
    """What happened to Acme's first loan, in the order of posting; not in the order of dates."""
    api, loan = acme.api, acme.loan
    api.disburse(acme.loans[1], 1, "2026-01-05")
    drawn = api.disburse(loan, 100_000, "2026-01-05")
    accrued = api.accrue("2026-01-06", (acme.loans[1], 1, 1), (loan, 100_000, 27))
    paid = api.pay(loan, 5_000, "2026-03-01", external_ref="R")
    settled = api.settle(drawn, "2026-01-07")
    early = api.pay(loan, 10, "2026-02-01")
    reversed_ = api.reverse(paid["journal_entry_id"], effective_at="2026-03-02")
    fee = api.charge_fee(loan, 5, "2026-03-01")
    return [drawn, accrued, paid, settled, early, reversed_, fee]


# --- Order and content -----------------------------------------------------------------------------------------------


def test_the_oldest_posting_comes_first(acme: Lender, story: list[Json]) -> None:
    page = shown(acme.api.get(path_of(acme.loan)))
    assert page.keys() == {"items"}
    assert ids(page) == [made["journal_entry_id"] for made in story]
    posted = [item["posted_at"] for item in page["items"]]
    assert posted == sorted(posted)
    assert [item["event_type"] for item in page["items"]] == [
        "disbursement",
        "accrual",
        "payment_received",
        "disbursement_settled",
        "payment_received",
        "reversal",
        "manual_adjustment",
    ]


def test_a_page_is_what_the_seed_says(acme: Lender, story: list[Json]) -> None:
    schema = {"$ref": "#/components/schemas/JournalEntryPage", "components": SEED["components"]}
    validator = jsonschema.Draft202012Validator(schema)
    for query in ({}, {"page_size": 2}):
        validator.validate(shown(acme.api.get(path_of(acme.loan), query)))


def test_a_loan_without_entries_has_an_empty_page(acme: Lender) -> None:
    assert shown(acme.api.get(path_of(acme.loans[2]))) == {"items": []}


def test_an_accrual_and_its_reversal_show_the_loans_own_lines(acme: Lender) -> None:
    api, (first, second, third) = acme.api, acme.loans
    made = api.accrue("2026-01-06", (first, 0, 1), (second, 0, 2), (third, 0, 3))
    undone = api.reverse(made["journal_entry_id"], effective_at="2026-01-06")
    for place, loan in enumerate(acme.loans):
        for entry_id, shown_entry in zip(
            (made["journal_entry_id"], undone["journal_entry_id"]), api.history(loan), strict=True
        ):
            whole = api.entry(entry_id)
            assert len(whole["lines"]) == 6
            own = [item for item in whole["lines"] if item["loan_id"] == loan.loan_id]
            assert [item["sequence"] for item in own] == [2 * place + 1, 2 * place + 2]
            assert shown_entry == whole | {"lines": own}


def test_other_entries_show_all_their_lines(acme: Lender) -> None:
    """An adjustment between two loans balances only as a whole: each of them shows all of it."""
    api, (first, second, _) = acme.api, acme.loans
    api.pay(first, 100, "2026-01-05")
    moved = api.adjust(
        "2026-01-06",
        line("2000", "DR", 60, loan_id=first.loan_id),
        line("2000", "CR", 50, loan_id=second.loan_id),
        line("1000", "CR", 10),
    )
    whole = api.entry(moved["journal_entry_id"])
    assert api.history(first)[-1] == whole
    assert api.history(second)[-1] == whole
    undone = api.entry(api.reverse(moved["journal_entry_id"])["journal_entry_id"])
    assert api.history(first)[-1] == api.history(second)[-1] == undone


def test_an_entry_without_the_loan_is_not_in_its_history(acme: Lender) -> None:
    acme.api.adjust("2026-01-05", line("1000", "DR", 5), line("3000", "CR", 5))
    acme.api.accrue("2026-01-06", (acme.loans[0], 0, 0), (acme.loans[1], 0, 5))
    assert acme.api.history(acme.loan) == []


# --- Filters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"from_date": "2026-03-01"}, [2, 5, 6]),
        ({"from_date": "2026-03-02"}, [5]),
        ({"from_date": "2026-03-03"}, []),
        ({"to_date": "2026-01-05"}, [0]),
        ({"to_date": "2026-01-06"}, [0, 1]),
        ({"to_date": "2026-01-04"}, []),
        ({"from_date": "2026-01-06", "to_date": "2026-02-01"}, [1, 3, 4]),
        ({"from_date": "2026-02-01", "to_date": "2026-02-01"}, [4]),
        ({"from_date": "0001-01-01", "to_date": "9999-12-31"}, [0, 1, 2, 3, 4, 5, 6]),
        ({"event_type": "payment_received"}, [2, 4]),
        ({"event_type": "payment_received", "to_date": "2026-02-28"}, [4]),
        ({"event_type": "accrual"}, [1]),
        ({"event_type": "refinance"}, []),
    ],
)
def test_filters_are_inclusive_and_keep_the_order(
    acme: Lender, story: list[Json], query: Json, expected: list[int]
) -> None:
    assert ids(shown(acme.api.get(path_of(acme.loan), query))) == [story[n]["journal_entry_id"] for n in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_the_seed_can_be_asked_for(acme: Lender, kind: str) -> None:
    assert shown(acme.api.get(path_of(acme.loan), {"event_type": kind})) == {"items": []}


def test_dates_in_the_wrong_order_are_refused(acme: Lender) -> None:
    answer = acme.api.get(path_of(acme.loan), {"from_date": "2026-02-02", "to_date": "2026-02-01"})
    refused(answer, 400, "validation_failed")


BAD_QUERIES = [
    *[
        ("from_date", value)
        for value in ("", "2026-02-30", "20260201", "2026-W05-7", "2026-2-1", "today", "2026-02-01T00:00:00Z")
    ],
    *[
        ("to_date", value)
        for value in (
            "",
            "\u0662\u0660\u0662\u0666-\u0660\u0662-\u0660\u0661",
            "2026-02-01 ",
            " 2026-02-01",
            "2026-02-01\n",
            "0000-01-01",
            "10000-01-01",
        )
    ],
    *[("event_type", value) for value in ("", "Accrual", "accrual ", "payment", "accrual,reversal", "\u0430ccrual")],
    *[
        ("page_size", value)
        for value in (
            "",
            "0",
            "-1",
            "501",
            "1e2",
            "\u0661",
            "99999999999999999999",
            "+5",
            "05",
            "5.0",
            " 5",
            "5 ",
            "five",
            "0x10",
        )
    ],
    *[(name, "1") for name in ("limit", "offset", "tenant_id", "Page_Size", "page_size[]", "format", "")],
]


@pytest.mark.parametrize(("name", "value"), BAD_QUERIES)
def test_a_bad_parameter_is_named(acme: Lender, name: str, value: str) -> None:
    refused(acme.api.get(path_of(acme.loan), {name: value}), 400, "validation_failed", [name])


@pytest.mark.parametrize("name", ["from_date", "to_date", "event_type", "page_size", "page_token"])
def test_a_parameter_given_twice_is_refused(acme: Lender, name: str) -> None:
    good = {
        "from_date": "2026-01-01",
        "to_date": "2026-01-01",
        "event_type": "accrual",
        "page_size": "5",
        "page_token": "x",
    }
    answer = acme.api.get(path_of(acme.loan), {name: [good[name], good[name]]})
    refused(answer, 400, "validation_failed", [name])


def test_all_bad_parameters_are_named_at_once(acme: Lender) -> None:
    answer = acme.api.get(path_of(acme.loan), {"from_date": "x", "event_type": "y", "page_size": "0", "z": "1"})
    refused(answer, 400, "validation_failed", ["from_date", "event_type", "page_size", "z"])


@pytest.mark.parametrize(
    "query", ["from_date=%00", "%00=1", "page_token=a%00b", "a=%ff", "=", "&&;;", "%", "a[]=1", "+"]
)
def test_a_query_string_of_junk_is_refused(acme: Lender, query: str) -> None:
    refused(acme.api.call("GET", path_of(acme.loan), QUERY_STRING=query), 400, "validation_failed")


def test_a_thousand_parameters_are_refused(acme: Lender) -> None:
    query = "&".join(f"a{n}=1" for n in range(1_001))
    answer = acme.api.call("GET", path_of(acme.loan), QUERY_STRING=query)
    assert answer.status_code in (400, 413)
    refused(answer, answer.status_code, "validation_failed" if answer.status_code == 400 else "payload_too_large")


# --- Pages -----------------------------------------------------------------------------------------------------------


def test_pages_of_every_size_join_to_the_whole(acme: Lender, story: list[Json]) -> None:
    expected = [made["journal_entry_id"] for made in story]
    for size in (1, 2, 3, 6, 7, 8, 500):
        pages = all_pages(acme.api, acme.loan, page_size=size)
        assert list(chain(*pages)) == expected
        assert all(len(page) == size for page in pages[:-1])
        assert 1 <= len(pages[-1]) <= size


def test_pages_keep_their_filters(acme: Lender, story: list[Json]) -> None:
    pages = all_pages(acme.api, acme.loan, page_size=1, from_date="2026-02-01", to_date="2026-03-01")
    assert pages == [[story[n]["journal_entry_id"]] for n in (2, 4, 6)]


def test_a_page_has_50_entries_unless_told(acme: Lender) -> None:
    for _ in range(51):
        acme.api.pay(acme.loan, 1, "2026-01-05")
    first = shown(acme.api.get(path_of(acme.loan)))
    assert len(first["items"]) == 50
    assert len(shown(acme.api.get(path_of(acme.loan), {"page_token": first["next_page_token"]}))["items"]) == 1


def test_a_token_is_not_bound_to_the_pages_size(acme: Lender, story: list[Json]) -> None:
    token = shown(acme.api.get(path_of(acme.loan), {"page_size": 2}))["next_page_token"]
    rest = shown(acme.api.get(path_of(acme.loan), {"page_size": 500, "page_token": token}))
    assert ids(rest) == [made["journal_entry_id"] for made in story[2:]]
    shown(acme.api.get(path_of(acme.loan), {"page_token": token}))


def test_a_token_is_opaque_and_at_most_512_characters(acme: Lender, story: list[Json]) -> None:
    token = shown(acme.api.get(path_of(acme.loan), {"page_size": 1}))["next_page_token"]
    assert len(token) <= 512
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")
    for name in (acme.tenant_id, acme.loan.loan_id):
        assert name not in token


def test_a_token_serves_again_and_again(acme: Lender, story: list[Json]) -> None:
    token = shown(acme.api.get(path_of(acme.loan), {"page_size": 2}))["next_page_token"]
    first = shown(acme.api.get(path_of(acme.loan), {"page_size": 2, "page_token": token}))
    acme.api.pay(acme.loan, 1, "2026-01-05")
    assert shown(acme.api.get(path_of(acme.loan), {"page_size": 2, "page_token": token})) == first


def test_a_token_is_bound_to_tenant_loan_and_filters(acme: Lender, zenith: Lender, story: list[Json]) -> None:
    filters = {"from_date": "2026-01-01", "to_date": "2026-12-31", "event_type": "payment_received"}
    token = shown(acme.api.get(path_of(acme.loan), filters | {"page_size": 1}))["next_page_token"]
    shown(acme.api.get(path_of(acme.loan), filters | {"page_token": token}))
    others = [
        filters | {"from_date": "2026-01-02"},
        filters | {"to_date": "2026-12-30"},
        filters | {"event_type": "reversal"},
        {name: filters[name] for name in ("from_date", "to_date")},
        {name: filters[name] for name in ("to_date", "event_type")},
        {},
    ]
    for query in others:
        refused(acme.api.get(path_of(acme.loan), query | {"page_token": token}), 400, "invalid_page_token")
    for lender, loan in ((acme, acme.loans[1]), (zenith, zenith.loan), (zenith, acme.loan)):
        refused(lender.api.get(path_of(loan), filters | {"page_token": token}), 400, "invalid_page_token")


def test_a_token_changed_anywhere_is_refused(acme: Lender, story: list[Json]) -> None:
    token = shown(acme.api.get(path_of(acme.loan), {"page_size": 1}))["next_page_token"]
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    forged = [token[:-1], token[1:], token + "A", token + "=", f" {token}", f"{token}\n", token * 2, token.swapcase()]
    for place, character in enumerate(token):
        for bit in range(6):
            other = alphabet[alphabet.index(character) ^ (1 << bit)]
            forged.append(token[:place] + other + token[place + 1 :])
        forged.append(token[:place] + token[place + 1 :])
        forged.append(token[:place] + "é" + token[place + 1 :])
    for text in forged:
        refused(acme.api.get(path_of(acme.loan), {"page_token": text}), 400, "invalid_page_token")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a",
        "A" * 512,
        "A" * 513,
        "A" * 10_000,
        "null",
        "0",
        "é",
        "١٢٣",
        "%",
        "====",
        "../../etc/passwd",
        "' OR 1=1 --",
        "\U0001f600",
    ],
)
def test_what_is_no_token_is_refused(acme: Lender, token: str) -> None:
    refused(acme.api.get(path_of(acme.loan), {"page_token": token}), 400, "invalid_page_token")


def test_an_unknown_loan_is_not_found_whatever_is_asked(acme: Lender) -> None:
    name = str(uuid.uuid4())
    refused(acme.api.get(f"/v1/loans/{name}/journal-entries", {"from_date": "2026-01-01"}), 404, "not_found")


def test_no_page_repeats_or_skips_while_others_post(acme: Lender) -> None:
    """Four clients post to the loan, with dates in any order, and an accrual touches it too; a reader goes by pages."""
    loan, rounds = acme.loan, 12
    for _ in range(10):
        acme.api.pay(loan, 1, "2026-01-05")
    already = ids(shown(acme.api.get(path_of(loan))))
    made: list[list[str]] = [[] for _ in range(4)]

    def post_many(number: int) -> None:
        api = acme.api.in_a_thread()
        for n in range(rounds):
            day = f"2026-02-{1 + (7 * n + number) % 28:02}"
            if number == 0 and n % 3 == 0:
                entry = api.accrue(f"2026-03-{n + 1:02}", (loan, 0, 1), (acme.loans[1], 0, 1))
            else:
                entry = api.pay(loan, 1, day)
            made[number].append(entry["journal_entry_id"])
        connections.close_all()

    threads = [threading.Thread(target=post_many, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    seen: list[str] = []
    query: Json = {"page_size": 3}
    while True:
        running = any(thread.is_alive() for thread in threads)
        page = shown(acme.api.get(path_of(loan), query))
        seen += ids(page)
        assert len(seen) == len(set(seen)), "a page repeats entries"
        if "next_page_token" in page:
            query = {"page_size": 3, "page_token": page["next_page_token"]}
        elif not running:
            break
        else:
            # The end so far: read the last page again, from the same token, until it goes on.
            del seen[len(seen) - len(page["items"]) :]
    for thread in threads:
        thread.join()
    assert seen[:10] == already
    assert len(seen) == len(set(seen)) == 10 + 4 * rounds
    assert set(seen) == set(already).union(*made)
    assert seen == list(chain(*all_pages(acme.api, loan, page_size=500)))
    for own in made:
        assert [name for name in seen if name in own] == own, "one client's postings keep their order"
