"""POST /v1/loans, GET /v1/loans, GET /v1/loans/{id}: terms, state, filters, ETag."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date

import pytest

from tests.conftest import Api, Json, Lender, Loan, line, posted, refused, shown

Unmoved = Callable[[], AbstractContextManager[None]]
PATH = "/v1/loans"


def loan_of(acme: Lender, **changes: object) -> Json:
    return {"borrower_id": str(uuid.uuid4()), "program_id": acme.program_id, "opened_on": "2026-01-02"} | changes


def state(api: Api, loan: Loan) -> str:
    return str(shown(api.get(f"{PATH}/{loan.loan_id}"))["state"])


def ids(page: Json) -> list[str]:
    return [item["loan_id"] for item in page["items"]]


# --- Opening ---------------------------------------------------------------------------------------------------------


def test_a_loan_is_answered_as_it_is_read(acme: Lender) -> None:
    body = loan_of(acme, loan_id=str(uuid.uuid4()), principal_limit_minor="1000000", annual_rate_bps=800)
    answer = acme.api.post(PATH, body)
    made = posted(answer)
    read = acme.api.get(f"{PATH}/{body['loan_id']}")
    assert shown(read) == made
    assert read.headers["ETag"] == answer.headers["ETag"]
    del made["created_at"]
    assert made == body | {"currency": "USD", "state": "open", "day_count_convention": "ACT_365"}


def test_what_is_left_out_comes_from_the_program(acme: Lender) -> None:
    program_id = acme.open_program(currency="EUR", annual_rate_bps=333, day_count_convention="30_360")
    made = posted(acme.api.post(PATH, loan_of(acme, program_id=program_id)))
    assert (made["currency"], made["annual_rate_bps"], made["day_count_convention"]) == ("EUR", 333, "30_360")
    assert "principal_limit_minor" not in made
    uuid.UUID(made["loan_id"])


def test_a_rate_of_zero_is_a_rate(acme: Lender) -> None:
    assert posted(acme.api.post(PATH, loan_of(acme, annual_rate_bps=0)))["annual_rate_bps"] == 0


def test_a_loan_exists_once(acme: Lender, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        for name in (acme.loan.loan_id, acme.loan.loan_id.upper()):
            refused(acme.api.post(PATH, loan_of(acme, loan_id=name)), 409, "loan_exists")


def test_an_unknown_program_is_refused(acme: Lender, zenith: Lender, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        for name in (str(uuid.uuid4()), zenith.program_id):
            refused(acme.api.post(PATH, loan_of(acme, program_id=name)), 422, "program_not_found")


def test_a_limit_is_above_zero(acme: Lender, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        answer = acme.api.post(PATH, loan_of(acme, principal_limit_minor="0"))
        refused(answer, 400, "validation_failed", ["principal_limit_minor"])


# --- State -----------------------------------------------------------------------------------------------------------


def test_a_loan_is_open_until_it_was_lent_and_owes_nothing(acme: Lender) -> None:
    api, loan = acme.api, acme.loan
    assert state(api, loan) == "open"
    api.pay(loan, 5, "2026-01-03")
    assert state(api, loan) == "open"
    api.disburse(loan, 100, "2026-01-05", layer="PENDING")
    assert state(api, loan) == "open"
    api.disburse(loan, 100, "2026-01-05")
    assert state(api, loan) == "open"
    api.pay(loan, 99, "2026-01-06")
    assert state(api, loan) == "open"
    api.pay(loan, 1, "2026-01-06")
    assert state(api, loan) == "paid_off"


@pytest.mark.parametrize("code", ["1200", "1300"])
def test_interest_and_fees_are_owed_too(acme: Lender, code: str) -> None:
    api, loan = acme.api, acme.loan
    api.disburse(loan, 100, "2026-01-05")
    about = {"loan_id": loan.loan_id}
    api.adjust("2026-01-05", line(code, "DR", 1, **about), line("3000", "CR", 1))
    api.pay(loan, 100, "2026-01-06")
    assert state(api, loan) == "open"
    api.pay(loan, 1, "2026-01-06")
    assert state(api, loan) == "paid_off"


def test_a_new_draw_or_fee_reopens_a_loan(acme: Lender) -> None:
    api, loan = acme.api, acme.loan
    api.disburse(loan, 100, "2026-01-05")
    api.pay(loan, 100, "2026-01-06")
    api.charge_fee(loan, 1, "2026-01-07")
    assert state(api, loan) == "open"
    api.pay(loan, 1, "2026-01-08")
    assert state(api, loan) == "paid_off"
    api.disburse(loan, 1, "2026-01-09")
    assert state(api, loan) == "open"


def test_a_loan_whose_only_draw_was_reversed_was_never_lent(acme: Lender) -> None:
    made = acme.api.disburse(acme.loan, 100, "2026-01-05")
    acme.api.reverse(made["journal_entry_id"])
    assert state(acme.api, acme.loan) == "open"
    assert acme.loan.loan_id in ids(shown(acme.api.get(PATH, {"state": "open"})))
    acme.api.disburse(acme.loan, 100, "2026-01-05")
    acme.api.pay(acme.loan, 100, "2026-01-05")
    assert state(acme.api, acme.loan) == "paid_off"


# --- Reading one -----------------------------------------------------------------------------------------------------


def test_the_etag_changes_with_every_entry_and_only_then(acme: Lender) -> None:
    path = f"{PATH}/{acme.loan.loan_id}"

    def seen() -> str:
        tags = {acme.api.get(f"{path}{part}").headers["ETag"] for part in ("", "/balance", "/journal-entries")}
        assert len(tags) == 1
        return tags.pop()

    first = seen()
    assert first[0] == first[-1] == '"'
    acme.api.pay(acme.loans[1], 5, "2026-01-05")
    assert seen() == first
    acme.api.pay(acme.loan, 5, "2026-01-05")
    second = seen()
    assert second != first
    acme.api.accrue("2026-01-06", (acme.loan, 0, 5), (acme.loans[1], 0, 5))
    assert seen() not in (first, second)


def test_head_answers_the_headers_alone(acme: Lender) -> None:
    for path in (f"{PATH}/{acme.loan.loan_id}", f"{PATH}/{acme.loan.loan_id}/balance", PATH):
        got, head = acme.api.get(path), acme.api.call("HEAD", path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("Content-Type", "ETag"):
            assert head.headers.get(name) == got.headers.get(name)


def test_a_loan_of_another_tenant_is_unknown(acme: Lender, zenith: Lender) -> None:
    zenith.api.pay(zenith.loan, 5, "2026-01-05")
    for part in ("", "/balance", "/journal-entries"):
        answers = []
        for name in (zenith.loan.loan_id, str(uuid.uuid4())):
            answer = acme.api.get(f"{PATH}/{name}{part}")
            problem = refused(answer, 404, "not_found") | {"instance": ""}
            answers.append((str(problem).replace(name, "x"), sorted(answer.headers)))
        assert answers[0] == answers[1]
        assert "ETag" not in answers[0][1]


@pytest.mark.parametrize(
    "name",
    ["x", "", "00000000000000000000000000000000", "00000000-0000-0000-0000-00000000000", "{0}", "a b", "%0a", "ü"],
)
def test_a_malformed_id_is_an_unknown_path(api: Api, name: str) -> None:
    for part in ("", "/balance", "/journal-entries"):
        refused(api.get(f"{PATH}/{name}{part}"), 404, "not_found")


def test_reading_needs_its_own_scope(acme: Lender) -> None:
    needed = {
        PATH: "hpts:loans:read",
        f"{PATH}/{acme.loan.loan_id}": "hpts:loans:read",
        f"{PATH}/{acme.loan.loan_id}/balance": "hpts:balances:read",
        f"{PATH}/{acme.loan.loan_id}/journal-entries": "hpts:ledger:read",
    }
    for path, scope in needed.items():
        shown(acme.api.get(path, scopes=[scope]))
        others = {"hpts:admin:*", "hpts:payments:write", *needed.values()} - {scope}
        refused(acme.api.get(path, scopes=sorted(others)), 403, "insufficient_scope")
        refused(acme.api.get(path, scopes=None), 401, "invalid_token")


# --- The list --------------------------------------------------------------------------------------------------------


def test_the_list_holds_the_tenants_own_loans(acme: Lender, zenith: Lender) -> None:
    page = shown(acme.api.get(PATH))
    assert page.keys() == {"items"}
    assert sorted(ids(page)) == sorted(loan.loan_id for loan in acme.loans)
    assert page["items"] == [shown(acme.api.get(f"{PATH}/{name}")) for name in ids(page)]
    assert set(ids(shown(zenith.api.get(PATH)))).isdisjoint(ids(page))


def test_the_list_is_filtered_by_program_borrower_and_state(acme: Lender) -> None:
    first, second, third = acme.loans
    other = acme.open_loan(acme.open_program(), borrower_id=first.borrower_id)
    acme.api.disburse(second, 100, "2026-01-05")
    acme.api.pay(second, 100, "2026-01-06")

    def found(**query: str) -> set[str]:
        return set(ids(shown(acme.api.get(PATH, query))))

    assert found(program_id=other.program_id) == {other.loan_id}
    assert found(program_id=other.program_id.upper()) == {other.loan_id}
    assert found(borrower_id=first.borrower_id) == {first.loan_id, other.loan_id}
    assert found(borrower_id=first.borrower_id, program_id=acme.program_id) == {first.loan_id}
    assert found(state="paid_off") == {second.loan_id}
    assert found(state="open") == {first.loan_id, third.loan_id, other.loan_id}
    assert found(state="open", program_id=acme.program_id) == {first.loan_id, third.loan_id}
    assert found(state="charged_off") == found(state="refinanced") == set()
    assert found(program_id=str(uuid.uuid4())) == found(borrower_id=str(uuid.uuid4())) == set()


def test_the_list_knows_all_four_states(acme: Lender) -> None:
    """And follows a loan from one to the next, whatever brought it there."""
    api, program_id = acme.api, acme.open_program()
    never_lent, lent, paid, gone, moved = (acme.open_loan(program_id) for _ in range(5))
    for loan in (lent, paid, gone, moved):
        api.disburse(loan, 100, "2026-01-05")
    api.pay(paid, 100, "2026-01-06")
    lost = api.serve(gone, "chargeoff", "2026-01-06", reason="Gone")
    new_loan = {"borrower_id": moved.borrower_id, "program_id": program_id, "opened_on": "2026-01-01"}
    renewed = api.serve(moved, "refinance", "2026-01-06", new_loan=new_loan)

    def check(**expected: set[str]) -> None:
        for name in ("open", "paid_off", "charged_off", "refinanced"):
            page = shown(api.get(PATH, {"state": name, "program_id": program_id}))
            assert set(ids(page)) == expected.get(name, set()), name
            assert all(item["state"] == name for item in page["items"])
            assert page["items"] == [shown(api.get(f"{PATH}/{found}")) for found in ids(page)]

    opened = {never_lent.loan_id, lent.loan_id, renewed["new_loan_id"]}
    check(open=opened, paid_off={paid.loan_id}, charged_off={gone.loan_id}, refinanced={moved.loan_id})
    api.serve(paid, "fees", "2026-01-07", 5)
    api.reverse(lost["journal_entry_id"], effective_at="2026-01-06")
    check(open=opened | {paid.loan_id, gone.loan_id}, refinanced={moved.loan_id})
    api.reverse(renewed["journal_entry_id"], effective_at="2026-01-06")
    api.pay(gone, 100, "2026-01-07")
    check(open=opened | {paid.loan_id, moved.loan_id}, paid_off={gone.loan_id})


@pytest.mark.parametrize("state", ["", "Open", "closed", "open,paid_off", "null"])
def test_a_state_that_does_not_exist_is_refused(api: Api, state: str) -> None:
    refused(api.get(PATH, {"state": state}), 400, "validation_failed", ["state"])


@pytest.mark.parametrize("name", ["charged_off", "refinanced"])
def test_the_list_of_an_ended_state_goes_by_pages(acme: Lender, name: str) -> None:
    ended = []
    for _ in range(4):
        loan = acme.open_loan()
        acme.api.disburse(loan, 100, "2026-01-05")
        new_loan = {"borrower_id": loan.borrower_id, "program_id": loan.program_id, "opened_on": "2026-01-01"}
        if name == "charged_off":
            acme.api.serve(loan, "chargeoff", "2026-01-06", reason="Gone")
        else:
            acme.api.serve(loan, "refinance", "2026-01-06", new_loan=new_loan)
        ended.append(loan.loan_id)
    first = shown(acme.api.get(PATH, {"state": name, "page_size": 3}))
    token = first["next_page_token"]
    last = shown(acme.api.get(PATH, {"state": name, "page_size": 3, "page_token": token}))
    assert ids(first) + ids(last) == sorted(ended)
    assert "next_page_token" not in last


def test_filters_by_ids_of_another_tenant_find_nothing(acme: Lender, zenith: Lender) -> None:
    for query in ({"program_id": zenith.program_id}, {"borrower_id": zenith.loan.borrower_id}):
        assert shown(acme.api.get(PATH, query)) == {"items": []}


@pytest.mark.parametrize("filters", [{}, {"state": "paid_off"}])
def test_the_list_goes_by_pages(acme: Lender, filters: Json) -> None:
    loans = acme.loans + [acme.open_loan() for _ in range(4)]
    for loan in loans:
        acme.api.disburse(loan, 1, "2026-01-05")
        acme.api.pay(loan, 1, "2026-01-05")
    unpaid = acme.open_loan()
    expected = {loan.loan_id for loan in loans} | (set() if filters else {unpaid.loan_id})
    seen: list[str] = []
    query: Json = filters | {"page_size": 3}
    while True:
        page = shown(acme.api.get(PATH, query))
        seen += ids(page)
        assert len(seen) == len(set(seen)), "a page repeats loans"
        if "next_page_token" not in page:
            break
        assert len(page["items"]) == 3
        query = filters | {"page_size": 3, "page_token": page["next_page_token"]}
    assert len(seen) == len(expected)
    assert set(seen) == expected


def test_a_page_token_belongs_to_its_filters(acme: Lender, zenith: Lender) -> None:
    token = shown(acme.api.get(PATH, {"page_size": 1}))["next_page_token"]
    shown(acme.api.get(PATH, {"page_size": 500, "page_token": token}))
    for query in ({"state": "open"}, {"program_id": acme.program_id}, {"borrower_id": acme.loan.borrower_id}):
        refused(acme.api.get(PATH, query | {"page_token": token}), 400, "invalid_page_token")
    refused(acme.api.get("/v1/programs", {"page_token": token}), 400, "invalid_page_token")
    refused(
        acme.api.get(f"{PATH}/{acme.loan.loan_id}/journal-entries", {"page_token": token}), 400, "invalid_page_token"
    )
    refused(zenith.api.get(PATH, {"page_token": token}), 400, "invalid_page_token")


def test_a_loan_may_be_opened_long_ago(acme: Lender) -> None:
    loan = acme.open_loan(opened_on=date(1999, 12, 31))
    acme.api.disburse(loan, 1, "1999-12-31")
    assert acme.api.owed(loan, "1999-12-31") == (1, 0, 0)
