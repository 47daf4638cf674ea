"""POST /v1/programs/{program_id}/terms: what holds for a program from a date on."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.conftest import (
    Api,
    Json,
    Lender,
    Loan,
    accrual_of,
    in_books_of,
    new_key,
    payment_of,
    posted,
    refused,
    shown,
)

pytestmark = pytest.mark.usefixtures("sound_books")

Unmoved = Callable[[], AbstractContextManager[None]]


def path(program_id: str) -> str:
    return f"/v1/programs/{program_id}/terms"


def change(lender: Lender, on: str, program_id: str | None = None, **terms: Any) -> Json:
    return posted(lender.api.post(path(program_id or lender.program_id), {"effective_at": on} | terms))


def program(lender: Lender) -> Json:
    return shown(lender.api.get(f"/v1/programs/{lender.program_id}"))


def rows(lender: Lender) -> list[Any]:
    with in_books_of(lender.tenant_id) as connection:
        query = """SELECT effective_at::text, annual_rate_bps, waterfall, accrual_mode FROM program_terms
                   WHERE program_id = %s ORDER BY id"""
        return connection.execute(query, (lender.program_id,)).fetchall()


def rate(api: Api, loan: Loan) -> int:
    return int(shown(api.get(f"/v1/loans/{loan.loan_id}"))["annual_rate_bps"])


# --- The answer and the rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "terms",
    [
        {"annual_rate_bps": 700},
        {"annual_rate_bps": 0},
        {"waterfall": ["principal", "fees", "interest"]},
        {"accrual_mode": "engine"},
        {"accrual_mode": "client", "annual_rate_bps": 100_000, "waterfall": ["interest", "principal", "fees"]},
    ],
)
def test_the_terms_are_answered_as_they_were_sent(acme: Lender, terms: Json) -> None:
    before = program(acme)
    made = change(acme, "2026-02-01", **terms)
    assert made == {"program_id": acme.program_id, "effective_at": "2026-02-01"} | terms
    assert program(acme) == before | terms
    waterfall = ",".join(terms.get("waterfall", before["waterfall"]))
    merged = before | terms
    assert rows(acme)[1:] == [("2026-02-01", merged["annual_rate_bps"], waterfall, merged["accrual_mode"])]


def test_what_is_left_out_stays_as_it_is_on_that_date(acme: Lender) -> None:
    change(acme, "2026-03-01", annual_rate_bps=300)
    change(acme, "2026-02-01", waterfall=["principal", "interest", "fees"])
    change(acme, "2026-03-01", accrual_mode="client", waterfall=["interest", "fees", "principal"])
    assert rows(acme) == [
        ("0001-01-01", 1_000, "fees,interest,principal", "client"),
        ("2026-03-01", 300, "fees,interest,principal", "client"),
        ("2026-02-01", 1_000, "principal,interest,fees", "client"),
        ("2026-03-01", 300, "interest,fees,principal", "client"),
    ]


def test_of_two_on_one_date_the_later_one_holds(acme: Lender) -> None:
    change(acme, "2026-02-01", annual_rate_bps=300)
    change(acme, "2026-02-01", annual_rate_bps=400)
    change(acme, "2026-01-31", annual_rate_bps=500)
    assert program(acme)["annual_rate_bps"] == 400


def test_terms_may_begin_today_and_not_later(acme: Lender, nothing_moves: Unmoved, tomorrow: str) -> None:
    with nothing_moves():
        for on in (tomorrow, "9999-12-31"):
            answer = acme.api.post(path(acme.program_id), {"effective_at": on, "annual_rate_bps": 1})
            refused(answer, 422, "effective_date_refused")
    change(acme, acme.today.isoformat(), annual_rate_bps=1)
    change(acme, "1999-12-31", annual_rate_bps=2)
    assert program(acme)["annual_rate_bps"] == 1


def test_no_posting_and_no_loan_moves(acme: Lender) -> None:
    acme.api.pay(acme.loan, 5, "2026-01-05")
    before = acme.books()
    change(acme, "2026-02-01", annual_rate_bps=1)
    after = acme.books()
    moved = [place for place, (was, now) in enumerate(zip(before, after, strict=True)) if was != now]
    assert moved == [2, 6], "the key, the program's terms"


# --- Loans -----------------------------------------------------------------------------------------------------------


def test_loans_follow_their_program_unless_they_have_a_rate_of_their_own(acme: Lender) -> None:
    own = acme.open_loan(annual_rate_bps=700)
    change(acme, "2026-02-01", annual_rate_bps=300)
    assert (rate(acme.api, acme.loan), rate(acme.api, own)) == (300, 700)
    acme.api.serve(acme.loan, "restructure", "2026-02-02", annual_rate_bps=250)
    change(acme, "2026-03-01", annual_rate_bps=200)
    assert [rate(acme.api, loan) for loan in (acme.loan, acme.loans[1], own)] == [250, 200, 700]


def test_another_program_keeps_its_terms(acme: Lender) -> None:
    other = acme.open_program()
    change(acme, "2026-02-01", annual_rate_bps=300)
    assert shown(acme.api.get(f"/v1/programs/{other}"))["annual_rate_bps"] == 1_000


# --- The waterfall, from its date on ---------------------------------------------------------------------------------


@pytest.fixture
def owing(acme: Lender) -> Loan:
    """On 5 January 1,000 lent, a fee of 100 and 200 of interest; from 1 February on principal comes first."""
    api, loan = acme.api, acme.loan
    api.disburse(loan, 1_000, "2026-01-05")
    api.serve(loan, "fees", "2026-01-05", 100)
    api.accrue("2026-01-05", (loan, 0, 200))
    change(acme, "2026-02-01", waterfall=["principal", "interest", "fees"])
    return loan


def allocation(fees: int = 0, interest: int = 0, principal: int = 0, suspense: int = 0) -> Json:
    return {
        "fees_minor": str(fees),
        "interest_minor": str(interest),
        "principal_minor": str(principal),
        "suspense_minor": str(suspense),
    }


def test_a_payment_meets_the_waterfall_of_its_date(api: Api, owing: Loan) -> None:
    assert api.pay(owing, 150, "2026-02-01")["allocation"] == allocation(principal=150)
    assert api.pay(owing, 150, "2026-01-31")["allocation"] == allocation(fees=100, interest=50)
    assert api.pay(owing, 950, "2026-03-01")["allocation"] == allocation(principal=850, interest=100)


def test_a_settlement_meets_the_waterfall_of_the_settlements_date(api: Api, owing: Loan) -> None:
    announced = api.pay(owing, 150, "2026-01-20", layer="PENDING")
    assert api.settle_payment(announced, "2026-02-01")["allocation"] == allocation(principal=150)
    early = api.pay(owing, 150, "2026-01-20", layer="PENDING")
    assert api.settle_payment(early, "2026-01-31")["allocation"] == allocation(fees=100, interest=50)


def test_suspense_meets_the_waterfall_of_the_allocations_date(acme: Lender, owing: Loan) -> None:
    api = acme.api
    api.pay(owing, 2_000, "2026-01-04")
    assert api.serve(owing, "suspense-allocations", "2026-02-01", 30)["allocation"] == allocation(principal=30)
    assert api.serve(owing, "suspense-allocations", "2026-01-31", 130)["allocation"] == allocation(100, 30)


def test_a_change_of_the_past_counts_for_what_is_posted_after_it(acme: Lender, owing: Loan) -> None:
    """What was allocated before stays as it was; a replan would bring it in line."""
    made = acme.api.pay(owing, 150, "2026-01-20")
    assert made["allocation"] == allocation(fees=100, interest=50)
    change(acme, "2026-01-10", waterfall=["interest", "principal", "fees"])
    assert acme.api.pay(owing, 200, "2026-01-20")["allocation"] == allocation(interest=150, principal=50)
    assert acme.api.lines(made["journal_entry_id"]) == ["DR 1000 150", "CR 1300 100", "CR 1200 50"]


# --- The mode of accrual ---------------------------------------------------------------------------------------------


def test_a_program_turns_to_the_engine_from_a_date_on(acme: Lender, nothing_moves: Unmoved) -> None:
    acme.api.disburse(acme.loan, 1_000, "2026-01-05")
    change(acme, "2026-02-01", accrual_mode="engine")
    acme.api.accrue("2026-01-31", (acme.loan, 1_000, 3))
    with nothing_moves():
        answer = acme.api.post("/v1/accruals/batch", accrual_of("2026-02-01", (acme.loan, 1_000, 3)))
        refused(answer, 422, "accrual_mode_refuses")
    change(acme, "2026-03-01", accrual_mode="client")
    acme.api.accrue("2026-03-01", (acme.loan, 1_000, 3))


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_an_unknown_program_is_not_found(acme: Lender, nothing_moves: Unmoved, tomorrow: str) -> None:
    """Whatever the date: a row that is not there is told first."""
    with nothing_moves():
        for name in (str(uuid.uuid4()), "00000000-0000-0000-0000-000000000000", "x"):
            for on in ("2026-02-01", tomorrow):
                refused(acme.api.post(path(name), {"effective_at": on, "annual_rate_bps": 1}), 404, "not_found")


def test_terms_that_change_nothing_are_refused(acme: Lender, nothing_moves: Unmoved) -> None:
    key = new_key()
    posted(acme.api.post("/v1/payments", payment_of(acme.loan), key=key))
    with nothing_moves():
        # The body is looked at before the key and before the program.
        for where, used in ((acme.program_id, new_key()), (acme.program_id, key), (str(uuid.uuid4()), new_key())):
            answer = acme.api.post(path(where), {"effective_at": "2026-02-01"}, key=used)
            problem = refused(answer, 400, "validation_failed", [""])
            assert problem["errors"][0]["code"] == "nothing_to_change"


def test_terms_that_are_written_as_they_are_is_a_row_all_the_same(acme: Lender) -> None:
    change(acme, "2026-02-01", annual_rate_bps=1_000)
    assert len(rows(acme)) == 2


def test_what_identifies_a_program_does_not_change(acme: Lender, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        for name, value in (("currency", "EUR"), ("day_count_convention", "30_360"), ("name", "Other")):
            body = {"effective_at": "2026-02-01", "annual_rate_bps": 1, name: value}
            refused(acme.api.post(path(acme.program_id), body), 400, "validation_failed", [name])


def test_nothing_reads_or_changes_terms_in_place(acme: Lender) -> None:
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        answer = acme.api.call(method, path(acme.program_id))
        refused(answer, 405, "method_not_allowed")
        assert answer.headers["Allow"] == "POST"
