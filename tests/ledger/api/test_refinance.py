"""POST /v1/loans/{loan_id}/refinance: one loan is paid off from a new one, which is created with it or not at all."""

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
    disbursement_of,
    in_books_of,
    new_key,
    payment_of,
    posted,
    refused,
    shown,
)

pytestmark = pytest.mark.usefixtures("sound_books")

Unmoved = Callable[[], AbstractContextManager[None]]
MAX_MINOR = 9_223_372_036_854_775_807


def refinance_of(loan: Loan, on: str = "2026-02-10", *, cash_out: int | None = None, **new_loan: Any) -> Json:
    opened = {"borrower_id": loan.borrower_id, "program_id": loan.program_id, "opened_on": "2026-02-01"} | new_loan
    return {"effective_at": on, "new_loan": opened} | ({} if cash_out is None else {"cash_out_minor": str(cash_out)})


def path(loan: Loan) -> str:
    return f"/v1/loans/{loan.loan_id}/refinance"


def refinance(api: Api, loan: Loan, on: str = "2026-02-10", **changes: Any) -> tuple[Json, Loan]:
    made = posted(api.post(path(loan), refinance_of(loan, on, **changes)))
    return made, Loan(made["new_loan_id"], loan.borrower_id, loan.program_id, loan.currency)


def paid_off(principal: int = 0, interest: int = 0, fees: int = 0) -> Json:
    return {"fees_minor": str(fees), "interest_minor": str(interest), "principal_minor": str(principal)}


@pytest.fixture
def owing(api: Api, loan: Loan) -> Loan:
    """100,000 lent on 5 January, with 2,700 of interest and a fee of 500 on the sixth."""
    api.disburse(loan, 100_000, "2026-01-05")
    api.accrue("2026-01-06", (loan, 100_000, 2_700))
    api.serve(loan, "fees", "2026-01-06", 500)
    return loan


# --- What is posted --------------------------------------------------------------------------------------------------


def test_the_new_loan_pays_the_old_one_off(api: Api, acme: Lender, owing: Loan) -> None:
    made, new = refinance(api, owing)
    assert made == {
        "journal_entry_id": made["journal_entry_id"],
        "posted_at": made["posted_at"],
        "correlation_id": made["correlation_id"],
        "new_loan_id": made["new_loan_id"],
        "paid_off": paid_off(100_000, 2_700, 500),
    }
    entry = api.entry(made["journal_entry_id"])
    assert (entry["event_type"], entry["effective_at"]) == ("refinance", "2026-02-10")
    lines = [
        (line["direction"], line["account_code"], line["amount_minor"], line["loan_id"], line["borrower_id"])
        for line in entry["lines"]
    ]
    assert lines == [
        ("DR", "1100", "103200", new.loan_id, owing.borrower_id),
        ("CR", "1300", "500", owing.loan_id, owing.borrower_id),
        ("CR", "1200", "2700", owing.loan_id, owing.borrower_id),
        ("CR", "1100", "100000", owing.loan_id, owing.borrower_id),
    ]
    assert api.owed(owing) == (0, 0, 0)
    assert api.owed(owing, "2026-02-09") == (100_000, 2_700, 500)
    assert api.owed(new) == (103_200, 0, 0)
    assert api.owed(new, "2026-02-09") == (0, 0, 0)
    assert (api.state(owing), api.state(new)) == ("refinanced", "open")
    listed = shown(api.get("/v1/loans", {"state": "refinanced"}))["items"]
    assert [item["loan_id"] for item in listed] == [owing.loan_id]
    with in_books_of(acme.tenant_id) as connection:
        query = "SELECT facts, loan_id FROM journal_entry WHERE id = %s"
        facts, about = connection.execute(query, (made["journal_entry_id"],)).fetchone() or (None, None)
    assert facts == {"new_loan_id": new.loan_id, "refinanced_loan_id": owing.loan_id}
    assert about is None, "it is about two loans"


def test_the_new_loan_is_as_it_was_asked_for(api: Api, acme: Lender, owing: Loan) -> None:
    name, program_id = str(uuid.uuid4()), acme.open_program(annual_rate_bps=450, day_count_convention="30_360")
    made, new = refinance(
        api,
        owing,
        loan_id=name.upper(),
        program_id=program_id,
        opened_on="2026-02-05",
        principal_limit_minor="200000",
        annual_rate_bps=400,
    )
    assert new.loan_id == name
    body = shown(api.get(f"/v1/loans/{name}"))
    assert body == {
        "loan_id": name,
        "borrower_id": owing.borrower_id,
        "program_id": program_id,
        "currency": "USD",
        "state": "open",
        "opened_on": "2026-02-05",
        "annual_rate_bps": 400,
        "day_count_convention": "30_360",
        "principal_limit_minor": "200000",
        "created_at": body["created_at"],
    }
    assert made["new_loan_id"] == name


def test_cash_on_top_goes_out_by_disbursement_clearing(api: Api, owing: Loan) -> None:
    made, new = refinance(api, owing, cash_out=20_000)
    entry = api.entry(made["journal_entry_id"])
    assert api.lines(made["journal_entry_id"]) == [
        *("DR 1100 123200", "CR 1300 500", "CR 1200 2700", "CR 1100 100000", "CR 1050 20000")
    ]
    assert [line["loan_id"] for line in entry["lines"]] == [new.loan_id, *[owing.loan_id] * 3, new.loan_id]
    assert made["paid_off"] == paid_off(100_000, 2_700, 500)
    assert api.owed(new) == (123_200, 0, 0)


def test_what_is_not_owed_has_no_line(api: Api, loan: Loan) -> None:
    api.serve(loan, "fees", "2026-02-02", 5)
    made, new = refinance(api, loan)
    assert api.lines(made["journal_entry_id"]) == ["DR 1100 5", "CR 1300 5"]
    assert made["paid_off"] == paid_off(fees=5)
    assert api.state(new) == "open"
    api.pay(new, 5, "2026-02-11")
    assert api.state(new) == "paid_off"


def test_both_histories_show_the_entry_whole(api: Api, owing: Loan) -> None:
    made, new = refinance(api, owing)
    entry = api.entry(made["journal_entry_id"])
    assert api.history(owing)[-1] == entry
    assert api.history(new) == [entry]


def test_the_answer_has_the_old_loans_etag(api: Api, owing: Loan) -> None:
    answer = api.post(path(owing), refinance_of(owing))
    posted(answer)
    assert answer.headers["ETag"] == api.get(f"/v1/loans/{owing.loan_id}").headers["ETag"] == '"4"'


def test_suspense_stays_with_the_old_loan(api: Api, loan: Loan) -> None:
    api.pay(loan, 700, "2026-01-04")
    api.disburse(loan, 1_000, "2026-01-05")
    made, new = refinance(api, loan)
    assert made["paid_off"] == paid_off(1_000)
    assert api.owed(new) == (1_000, 0, 0)
    assert api.normal_balance("2000") == 700


def test_money_on_a_refinanced_loan_waits_in_suspense(api: Api, owing: Loan) -> None:
    refinance(api, owing)
    made = api.pay(owing, 300, "2026-02-11")
    assert made["allocation"] == paid_off() | {"suspense_minor": "300"}
    assert api.state(owing) == "refinanced"


def test_a_refinanced_loan_is_refinanced_in_its_turn(api: Api, owing: Loan) -> None:
    _, second = refinance(api, owing)
    _, third = refinance(api, second, "2026-02-11", cash_out=1)
    assert [api.state(loan) for loan in (owing, second, third)] == ["refinanced", "refinanced", "open"]
    assert api.owed(third) == (103_201, 0, 0)


def test_the_limit_of_the_new_loan_counts_cash_and_debt(acme: Lender, owing: Loan, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        for limit, cash_out in ((103_199, None), (103_200, 1), (123_199, 20_000), (1, None)):
            body = refinance_of(owing, cash_out=cash_out, principal_limit_minor=str(limit))
            refused(acme.api.post(path(owing), body), 422, "amount_exceeds_limit")
    _, new = refinance(acme.api, owing, cash_out=20_000, principal_limit_minor="123200")
    with nothing_moves():
        refused(acme.api.post("/v1/disbursements", disbursement_of(new, 1, "2026-02-11")), 422, "amount_exceeds_limit")


def test_the_limit_of_the_old_loan_does_not_matter(acme: Lender) -> None:
    loan = acme.open_loan(principal_limit_minor=1_000)
    acme.api.disburse(loan, 1_000, "2026-01-05")
    _, new = refinance(acme.api, loan, cash_out=5_000)
    assert acme.api.owed(new) == (6_000, 0, 0)


def test_a_sum_above_the_range_is_refused(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        refused(api.post(path(owing), refinance_of(owing, cash_out=MAX_MINOR)), 422, "amount_out_of_range")


# --- What is refused leaves no loan behind ---------------------------------------------------------------------------


def test_nothing_is_not_refinanced(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        for cash_out in (None, 5_000):
            refused(api.post(path(loan), refinance_of(loan, cash_out=cash_out)), 422, "loan_state_refuses")
    api.disburse(loan, 500, "2026-01-05")
    api.pay(loan, 500, "2026-01-06")
    with nothing_moves():
        refused(api.post(path(loan), refinance_of(loan)), 422, "loan_state_refuses")


def test_another_currency_is_refused(acme: Lender, owing: Loan, nothing_moves: Unmoved) -> None:
    euros = acme.open_program(currency="EUR")
    with nothing_moves():
        body = refinance_of(owing, program_id=euros, loan_id=str(uuid.uuid4()))
        refused(acme.api.post(path(owing), body), 422, "currency_mismatch")


def test_another_borrower_is_refused(acme: Lender, owing: Loan, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        for borrower_id in (acme.loans[1].borrower_id, str(uuid.uuid4())):
            refused(acme.api.post(path(owing), refinance_of(owing, borrower_id=borrower_id)), 422, "borrower_mismatch")


def test_a_loan_that_exists_is_no_new_one(acme: Lender, owing: Loan, nothing_moves: Unmoved) -> None:
    other = acme.open_loan(borrower_id=owing.borrower_id)
    with nothing_moves():
        for loan_id in (other.loan_id, owing.loan_id, acme.loans[1].loan_id):
            refused(acme.api.post(path(owing), refinance_of(owing, loan_id=loan_id)), 409, "loan_exists")


def test_the_id_of_a_refused_refinance_is_free(acme: Lender, owing: Loan) -> None:
    """The same key and the same id: what was refused has left neither."""
    name, key = str(uuid.uuid4()), new_key()
    refused(
        acme.api.post(path(owing), refinance_of(owing, loan_id=name, principal_limit_minor="5"), key=key),
        422,
        "amount_exceeds_limit",
    )
    refused(acme.api.get(f"/v1/loans/{name}"), 404, "not_found")
    made = posted(acme.api.post(path(owing), refinance_of(owing, loan_id=name), key=key))
    assert made["new_loan_id"] == name


def test_dates_have_their_bounds(api: Api, owing: Loan, nothing_moves: Unmoved, tomorrow: str) -> None:
    with nothing_moves():
        for on in (tomorrow, "9999-12-31", "2025-12-31"):
            refused(api.post(path(owing), refinance_of(owing, on)), 422, "effective_date_refused")
        # Before the new loan's opening.
        body = refinance_of(owing, "2026-02-10", opened_on="2026-02-11")
        refused(api.post(path(owing), body), 422, "effective_date_refused")
    refinance(api, owing, "2026-02-10", opened_on="2026-02-10")


def test_a_refinance_of_a_date_before_a_debt_is_refused(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    api.serve(owing, "fees", "2026-02-12", 1)
    with nothing_moves():
        answer = api.post(path(owing), refinance_of(owing, "2026-02-11"))
        refused(answer, 422, "amount_exceeds_balance", [f"loans.{owing.loan_id}"])
    refinance(api, owing, "2026-02-12")


def test_an_unknown_program_is_refused(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        body = refinance_of(owing, program_id=str(uuid.uuid4()))
        refused(api.post(path(owing), body), 422, "program_not_found")


def test_wrong_fields_of_the_new_loan_are_named_by_their_path(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    body = refinance_of(owing, "today", borrower_id=None, surplus=1, annual_rate_bps="5", principal_limit_minor="0")
    body["cash_out_minor"] = "0"
    del body["new_loan"]["opened_on"]
    with nothing_moves():
        refused(
            api.post(path(owing), body),
            400,
            "validation_failed",
            [
                "effective_at",
                "cash_out_minor",
                "new_loan.borrower_id",
                "new_loan.surplus",
                "new_loan.annual_rate_bps",
                "new_loan.principal_limit_minor",
                "new_loan.opened_on",
            ],
        )


def test_an_unknown_loan_in_the_path_is_not_found(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        for name in (str(uuid.uuid4()), "x"):
            refused(api.post(f"/v1/loans/{name}/refinance", refinance_of(owing)), 404, "not_found")


def test_a_closed_account_leaves_no_loan(acme: Lender, owing: Loan, nothing_moves: Unmoved) -> None:
    with in_books_of(acme.tenant_id) as connection:
        connection.execute("UPDATE gl_account SET closed_at = now(), closure_reason = 'test' WHERE code = '1050'")
    with nothing_moves():
        refused(acme.api.post(path(owing), refinance_of(owing, cash_out=1)), 422, "account_closed")
    refinance(acme.api, owing)


# --- Its reversal ----------------------------------------------------------------------------------------------------


def reversal_of(made: Json) -> Json:
    return {"reverses_entry_id": made["journal_entry_id"], "reason_code": "other", "effective_at": "2026-03-01"}


def test_a_reversed_refinance_leaves_two_open_loans(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    made, new = refinance(api, owing, cash_out=7)
    posted(api.post("/v1/reversals", reversal_of(made)))
    assert (api.state(owing), api.state(new)) == ("open", "open")
    assert (api.owed(owing), api.owed(new)) == ((100_000, 2_700, 500), (0, 0, 0))
    with nothing_moves():
        refused(api.post("/v1/reversals", reversal_of(made)), 409, "already_reversed")
    api.serve(owing, "fees", "2026-03-02", 1)
    api.disburse(new, 5, "2026-03-02")
    refinance(api, owing, "2026-03-02")
    assert api.state(owing) == "refinanced"


OTHER_ENTRIES: dict[str, Callable[[Api, Loan], Json]] = {
    "payment": lambda api, new: api.pay(new, 1, "2026-02-11"),
    "announced payment": lambda api, new: api.pay(new, 1, "2026-02-11", layer="PENDING"),
    "fee": lambda api, new: api.serve(new, "fees", "2026-02-11", 1),
    "draw": lambda api, new: api.disburse(new, 1, "2026-02-11"),
    "reversed fee": lambda api, new: api.reverse(api.serve(new, "fees", "2026-02-11", 1)["journal_entry_id"]),
}


@pytest.mark.parametrize("other", OTHER_ENTRIES)
def test_a_refinance_is_not_reversed_once_the_new_loan_has_other_entries(
    api: Api, owing: Loan, nothing_moves: Unmoved, other: str
) -> None:
    made, new = refinance(api, owing)
    OTHER_ENTRIES[other](api, new)
    with nothing_moves():
        refused(api.post("/v1/reversals", reversal_of(made)), 422, "not_reversible")
    assert api.state(owing) == "refinanced"


def test_what_happens_to_the_old_loan_does_not_stop_the_reversal(api: Api, owing: Loan) -> None:
    made, _ = refinance(api, owing)
    api.pay(owing, 300, "2026-02-11")
    posted(api.post("/v1/reversals", reversal_of(made)))
    assert api.state(owing) == "open"
    assert api.serve(owing, "suspense-allocations", "2026-03-01", 300)["allocation"]["fees_minor"] == "300"


def test_the_new_loan_is_a_loan_like_any_other(api: Api, owing: Loan) -> None:
    _, new = refinance(api, owing)
    made = posted(api.post("/v1/payments", payment_of(new, 103_200, "2026-02-11")))
    assert made["allocation"]["principal_minor"] == "103200"
    assert api.state(new) == "paid_off"
