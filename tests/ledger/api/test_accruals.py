"""POST /v1/accruals/batch: one entry for many loans, held against the books, once per loan and date."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date

import pytest

from tests.conftest import Api, Json, Lender, Loan, accrual_of, in_books_of, posted, refused, shown

Unmoved = Callable[[], AbstractContextManager[None]]
PATH = "/v1/accruals/batch"
MAX_MINOR = 9_223_372_036_854_775_807


@pytest.fixture
def lent(acme: Lender) -> Lender:
    """Acme, with 100,000, 50,000 and nothing lent."""
    acme.api.disburse(acme.loans[0], 100_000, "2026-01-05")
    acme.api.disburse(acme.loans[1], 50_000, "2026-01-05")
    return acme


def changed(body: Json, position: int, **members: str) -> Json:
    """The batch with one item changed."""
    items = [item | members if place == position else item for place, item in enumerate(body["loans"])]
    return body | {"loans": items}


# --- The answer ------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_entry(lent: Lender) -> None:
    first, second, _ = lent.loans
    made = lent.api.accrue("2026-01-06", (first, 100_000, 27), (second, 50_000, 14))
    assert made.keys() == {"accrual_event_id", "journal_entry_id", "loan_count", "total_accrued_minor", "posted_at"}
    assert (made["loan_count"], made["total_accrued_minor"]) == (2, "41")
    entry = lent.api.entry(made["journal_entry_id"])
    assert (entry["event_type"], entry["effective_at"]) == ("accrual", "2026-01-06")
    lines = [
        (
            item["sequence"],
            item["account_code"],
            item["direction"],
            item["amount_minor"],
            item["loan_id"],
            item["borrower_id"],
        )
        for item in entry["lines"]
    ]
    assert lines == [
        (1, "1200", "DR", "27", first.loan_id, first.borrower_id),
        (2, "4000", "CR", "27", first.loan_id, first.borrower_id),
        (3, "1200", "DR", "14", second.loan_id, second.borrower_id),
        (4, "4000", "CR", "14", second.loan_id, second.borrower_id),
    ]
    assert lent.api.owed(first) == (100_000, 27, 0)
    assert lent.api.owed(second) == (50_000, 14, 0)
    assert lent.api.normal_balance("4000") == 41


def test_a_loan_without_interest_counts_and_has_no_line(lent: Lender) -> None:
    first, second, third = lent.loans
    made = lent.api.accrue("2026-01-06", (first, 100_000, 27), (second, 50_000, 0), (third, 0, 0))
    assert (made["loan_count"], made["total_accrued_minor"]) == (3, "27")
    assert {item["loan_id"] for item in lent.api.entry(made["journal_entry_id"])["lines"]} == {first.loan_id}
    assert lent.api.history(third) == []


def test_the_principal_is_that_of_entries_effective_before_the_date(lent: Lender) -> None:
    """What happens on the accrual date itself does not count, whatever was posted first."""
    first = lent.loan
    lent.api.disburse(first, 7, "2026-01-06")
    lent.api.pay(first, 1_000, "2026-01-06")
    lent.api.accrue("2026-01-06", (first, 100_000, 27))
    lent.api.accrue("2026-01-07", (first, 99_007, 27))
    lent.api.accrue("2026-01-05", (first, 0, 1))


def test_pending_principal_does_not_count(lent: Lender) -> None:
    lent.api.disburse(lent.loan, 5_000, "2026-01-05", layer="PENDING")
    lent.api.accrue("2026-01-06", (lent.loan, 100_000, 27))


# --- What disagrees with the books -----------------------------------------------------------------------------------


def test_every_item_that_disagrees_is_named_by_its_position(
    lent: Lender, zenith: Lender, nothing_moves: Unmoved
) -> None:
    first, second, third = lent.loans
    elsewhere = lent.open_loan(lent.open_program())
    batch = [
        (first, 100_000, 27),
        (second, 50_001, 14),
        (zenith.loan, 0, 1),
        (elsewhere, 0, 1),
        (third, 0, 1),
        (first, 100_000, 1),
    ]
    wrong = ["loans.1.outstanding_principal_minor", "loans.2.loan_id", "loans.3.loan_id", "loans.5.loan_id"]
    with nothing_moves():
        refused(lent.api.post(PATH, accrual_of("2026-01-06", *batch)), 400, "validation_failed", wrong)


@pytest.mark.parametrize("principal", ["99999", "100001", "0", str(MAX_MINOR)])
def test_another_principal_is_refused(lent: Lender, nothing_moves: Unmoved, principal: str) -> None:
    body = changed(accrual_of("2026-01-06", (lent.loan, 100_000, 27)), 0, outstanding_principal_minor=principal)
    with nothing_moves():
        refused(lent.api.post(PATH, body), 400, "validation_failed", ["loans.0.outstanding_principal_minor"])


def test_a_loan_stands_in_a_batch_once(lent: Lender, nothing_moves: Unmoved) -> None:
    body = accrual_of("2026-01-06", (lent.loan, 100_000, 27), (lent.loans[1], 50_000, 1), (lent.loan, 100_000, 27))
    with nothing_moves():
        refused(lent.api.post(PATH, body), 400, "validation_failed", ["loans.2.loan_id"])
        upper = changed(body, 2, loan_id=lent.loan.loan_id.upper())
        refused(lent.api.post(PATH, upper), 400, "validation_failed", ["loans.2.loan_id"])


def test_nothing_to_post_is_refused(lent: Lender, nothing_moves: Unmoved) -> None:
    body = accrual_of("2026-01-06", (lent.loans[0], 100_000, 0), (lent.loans[1], 50_000, 0))
    with nothing_moves():
        refused(lent.api.post(PATH, body), 400, "validation_failed", ["loans"])
    # And it has not used up the date.
    lent.api.accrue("2026-01-06", (lent.loans[0], 100_000, 27), (lent.loans[1], 50_000, 14))


def test_a_batch_has_1_to_16000_loans(lent: Lender, nothing_moves: Unmoved) -> None:
    body = accrual_of("2026-01-06", (lent.loan, 100_000, 27))
    with nothing_moves():
        for count in (0, 16_001):
            items = [body["loans"][0] | {"loan_id": str(uuid.UUID(int=n))} for n in range(count)]
            refused(lent.api.post(PATH, body | {"loans": items}), 400, "validation_failed", ["loans"])


def test_a_batch_may_be_larger_than_other_bodies(lent: Lender, nothing_moves: Unmoved) -> None:
    """2,500 loans are above 256 KiB; that none of them exists is told by position."""
    body = accrual_of("2026-01-06", (lent.loan, 100_000, 27))
    items = [body["loans"][0] | {"loan_id": str(uuid.UUID(int=n))} for n in range(2_500)]
    raw = json.dumps(body | {"loans": items})
    assert len(raw) > 256 * 1024
    with nothing_moves():
        wrong = [f"loans.{n}.loan_id" for n in range(2_500)]
        refused(lent.api.post(PATH, raw), 400, "validation_failed", wrong)


def test_the_day_count_must_be_the_programs(lent: Lender, nothing_moves: Unmoved) -> None:
    body = accrual_of("2026-01-06", (lent.loan, 100_000, 27))
    with nothing_moves():
        for convention in ("ACT_360", "ACT_ACT", "30_360"):
            answer = lent.api.post(PATH, body | {"day_count_convention": convention})
            refused(answer, 400, "validation_failed", ["day_count_convention"])


@pytest.mark.parametrize("convention", ["ACT_360", "ACT_ACT", "30_360"])
def test_each_day_count_is_taken_by_its_own_program(acme: Lender, convention: str) -> None:
    loan = acme.open_loan(acme.open_program(day_count_convention=convention))
    acme.api.disburse(loan, 1_000, "2026-01-05")
    posted(acme.api.post(PATH, accrual_of("2026-01-06", (loan, 1_000, 1)) | {"day_count_convention": convention}))


def test_an_unknown_program_is_refused(lent: Lender, zenith: Lender, nothing_moves: Unmoved) -> None:
    body = accrual_of("2026-01-06", (lent.loan, 100_000, 27))
    with nothing_moves():
        for program_id in (str(uuid.uuid4()), zenith.program_id):
            refused(lent.api.post(PATH, body | {"program_id": program_id}), 422, "program_not_found")


def test_a_program_that_the_engine_accrues_takes_no_batch(acme: Lender, nothing_moves: Unmoved) -> None:
    loan = acme.open_loan(acme.open_program(accrual_mode="engine"))
    acme.api.disburse(loan, 1_000, "2026-01-05")
    with nothing_moves():
        refused(acme.api.post(PATH, accrual_of("2026-01-06", (loan, 1_000, 1))), 422, "accrual_mode_refuses")


# --- Once per loan and date ------------------------------------------------------------------------------------------


def test_a_date_is_accrued_once(lent: Lender, nothing_moves: Unmoved) -> None:
    first, second, _ = lent.loans
    lent.api.accrue("2026-01-06", (first, 100_000, 27))
    with nothing_moves():
        answer = lent.api.post(PATH, accrual_of("2026-01-06", (second, 50_000, 14), (first, 100_000, 27)))
        problem = refused(answer, 409, "accrual_already_posted")
        assert first.loan_id in json.dumps(problem)
        assert second.loan_id not in json.dumps(problem)
    lent.api.accrue("2026-01-06", (second, 50_000, 14))
    lent.api.accrue("2026-01-07", (first, 100_000, 27))


def test_no_interest_uses_up_the_date(lent: Lender, nothing_moves: Unmoved) -> None:
    first, second, _ = lent.loans
    lent.api.accrue("2026-01-06", (first, 100_000, 27), (second, 50_000, 0))
    with nothing_moves():
        answer = lent.api.post(PATH, accrual_of("2026-01-06", (second, 50_000, 14)))
        assert second.loan_id in json.dumps(refused(answer, 409, "accrual_already_posted"))


def test_dates_may_come_in_any_order(lent: Lender) -> None:
    for on in ("2026-01-09", "2026-01-07", "2026-01-08"):
        lent.api.accrue(on, (lent.loan, 100_000, 27))
    assert lent.api.owed(lent.loan, "2026-01-08") == (100_000, 54, 0)


def test_a_reversal_gives_the_date_back(lent: Lender, nothing_moves: Unmoved) -> None:
    first, second, third = lent.loans
    batch = (first, 100_000, 27), (second, 50_000, 14), (third, 0, 0)
    made = lent.api.accrue("2026-01-06", *batch)
    for _ in range(2):
        lent.api.reverse(made["journal_entry_id"], effective_at="2026-01-06")
        assert lent.api.owed(first) == (100_000, 0, 0)
        made = lent.api.accrue("2026-01-06", *batch)
        with nothing_moves():
            refused(lent.api.post(PATH, accrual_of("2026-01-06", *batch)), 409, "accrual_already_posted")
    assert lent.api.owed(first) == (100_000, 27, 0)


# --- Dates -----------------------------------------------------------------------------------------------------------


def test_dates_out_of_bounds_are_refused(lent: Lender, nothing_moves: Unmoved, tomorrow: str) -> None:
    with nothing_moves():
        answer = lent.api.post(PATH, accrual_of(tomorrow, (lent.loan, 100_000, 27)))
        refused(answer, 422, "effective_date_refused")
        for on in ("2025-12-31", "0001-01-01"):
            refused(lent.api.post(PATH, accrual_of(on, (lent.loan, 0, 27))), 422, "effective_date_refused")
    late = lent.open_loan(opened_on=date(2026, 2, 1))
    with nothing_moves():
        answer = lent.api.post(PATH, accrual_of("2026-01-06", (lent.loan, 100_000, 27), (late, 0, 1)))
        refused(answer, 422, "effective_date_refused")


def test_a_sum_above_the_range_is_refused(lent: Lender, nothing_moves: Unmoved) -> None:
    batch = (lent.loans[0], 100_000, MAX_MINOR), (lent.loans[1], 50_000, 1)
    with nothing_moves():
        refused(lent.api.post(PATH, accrual_of("2026-01-06", *batch)), 422, "amount_out_of_range")


def test_interest_of_many_loans_adds_up(acme: Lender) -> None:
    """A few hundred loans in one entry: the total, the control account and the trial balance agree."""
    loans = [acme.open_loan() for _ in range(200)]
    made = acme.api.accrue("2026-01-06", *((loan, 0, n) for n, loan in enumerate(loans)))
    assert (made["loan_count"], made["total_accrued_minor"]) == (200, "19900")
    assert acme.api.normal_balance("1200") == acme.api.normal_balance("4000") == 19_900
    entry = acme.api.entry(made["journal_entry_id"])
    assert [item["sequence"] for item in entry["lines"]] == list(range(1, 399))
    totals = shown(acme.api.get("/v1/trial-balance", {"currency": "USD"}))
    assert totals["total_dr_minor"] == totals["total_cr_minor"] == "19900"


def test_a_full_batch_is_one_entry_of_32000_lines(acme: Lender) -> None:
    with in_books_of(acme.tenant_id) as connection:
        connection.execute(
            """INSERT INTO loan (tenant_id, id, borrower_id, program_id, currency, opened_on)
               SELECT %s, gen_random_uuid(), gen_random_uuid(), %s, 'USD', '2026-01-01' FROM generate_series(1, 15997)""",
            (acme.tenant_id, acme.program_id),
        )
        rows = connection.execute("SELECT id::text, borrower_id::text FROM loan").fetchall()
    loans = [Loan(loan_id, borrower_id, acme.program_id, "USD") for loan_id, borrower_id in rows]
    made = acme.api.accrue("2026-01-06", *((loan, 0, 1) for loan in loans))
    assert made["loan_count"] == 16_000
    assert acme.api.normal_balance("1200") == 16_000
    assert len(acme.api.history(acme.loan)[0]["lines"]) == 2


def test_the_same_figures_for_the_callers_next_day(api: Api, lent: Lender) -> None:
    """Interest does not compound: principal alone is compared."""
    lent.api.accrue("2026-01-06", (lent.loan, 100_000, 27))
    lent.api.accrue("2026-01-07", (lent.loan, 100_000, 27))
