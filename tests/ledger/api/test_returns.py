"""POST /v1/payments/{id}/settlement and /v1/payments/{id}/return: announced money comes, and money goes back to the bank."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.conftest import Api, Json, Lender, Loan, in_books_of, line, new_key, payment_of, posted, refused, shown

pytestmark = pytest.mark.usefixtures("sound_books")

Unmoved = Callable[[], AbstractContextManager[None]]


def allocation(fees: int = 0, interest: int = 0, principal: int = 0, suspense: int = 0) -> Json:
    return {
        "fees_minor": str(fees),
        "interest_minor": str(interest),
        "principal_minor": str(principal),
        "suspense_minor": str(suspense),
    }


def settling(payment: Json) -> str:
    return f"/v1/payments/{payment['payment_event_id']}/settlement"


def returning(payment: Json) -> str:
    return f"/v1/payments/{payment['payment_event_id']}/return"


def back(on: str = "2026-03-01", **more: Any) -> Json:
    return {"effective_at": on, "return_code": "R01"} | more


def reversal_of(entry: Json) -> Json:
    return {"reverses_entry_id": entry["journal_entry_id"], "reason_code": "other"}


@pytest.fixture
def owing(api: Api, loan: Loan) -> Loan:
    """100,000 lent on 5 January, with 2,700 of interest and a fee of 500 on the sixth."""
    api.disburse(loan, 100_000, "2026-01-05")
    api.accrue("2026-01-06", (loan, 100_000, 2_700))
    api.serve(loan, "fees", "2026-01-06", 500)
    return loan


# --- Settlement ------------------------------------------------------------------------------------------------------


def test_a_settlement_takes_the_announcement_back_and_allocates_the_money(api: Api, owing: Loan) -> None:
    announced = api.pay(owing, 5_000, "2026-02-01", layer="PENDING", external_ref="ACH 7")
    made = api.settle_payment(announced, "2026-02-03")
    assert made == {
        "payment_event_id": announced["payment_event_id"],
        "journal_entry_id": made["journal_entry_id"],
        "allocation": allocation(fees=500, interest=2_700, principal=1_800),
        "posted_at": made["posted_at"],
    }
    assert made["journal_entry_id"] != announced["journal_entry_id"]
    assert api.lines(made["journal_entry_id"]) == [
        "CR 1010 5000 PENDING",
        "DR 2000 5000 PENDING",
        "DR 1000 5000",
        "CR 1300 500",
        "CR 1200 2700",
        "CR 1100 1800",
    ]
    entry = api.entry(made["journal_entry_id"])
    assert (entry["event_type"], entry["effective_at"]) == ("payment_allocated", "2026-02-03")
    assert "reverses_entry_id" not in entry
    assert [item.get("external_ref") for item in entry["lines"]] == ["ACH 7", None, "ACH 7", None, None, None]
    assert {(item["loan_id"], item["borrower_id"]) for item in entry["lines"]} == {(owing.loan_id, owing.borrower_id)}
    assert api.owed(owing, "2026-02-02") == (100_000, 2_700, 500)
    assert api.owed(owing, "2026-02-03") == (98_200, 0, 0)
    for code in ("1010", "2000"):
        assert api.normal_balance(code, layer="PENDING") == 0


def test_the_waterfall_is_that_of_the_settlement(api: Api, loan: Loan) -> None:
    """When it was announced nothing was owed; when it settles, there is a fee, and less is left for the principal."""
    announced = api.pay(loan, 1_000, "2026-01-05", layer="PENDING")
    api.disburse(loan, 800, "2026-01-10")
    api.serve(loan, "fees", "2026-01-11", 300)
    api.pay(loan, 50, "2026-01-12")
    assert api.settle_payment(announced, "2026-02-01")["allocation"] == allocation(250, 0, 750)
    assert api.owed(loan) == (50, 0, 0)


def test_what_nobody_owes_at_the_settlement_waits_in_suspense(api: Api, loan: Loan) -> None:
    announced = api.pay(loan, 1_000, "2026-01-05", layer="PENDING")
    assert api.settle_payment(announced, "2026-02-01")["allocation"] == allocation(suspense=1_000)
    assert api.normal_balance("2000") == 1_000


def test_a_settlement_of_an_early_date_meets_what_is_free_since(api: Api, loan: Loan) -> None:
    announced = api.pay(loan, 1_000, "2026-01-05", layer="PENDING")
    api.disburse(loan, 800, "2026-01-10")
    api.pay(loan, 700, "2026-02-01")
    made = api.settle_payment(announced, "2026-01-12")
    assert made["allocation"] == allocation(principal=100, suspense=900)
    assert [api.owed(loan, on)[0] for on in ("2026-01-10", "2026-01-12", "2026-02-01")] == [800, 700, 0]


def test_a_payment_on_a_refinanced_loan_settles_into_suspense(api: Api, owing: Loan) -> None:
    announced = api.pay(owing, 1_000, "2026-02-01", layer="PENDING")
    _refinance(api, owing)
    made = api.settle_payment(announced, "2026-02-20")
    assert made["allocation"] == allocation(suspense=1_000)
    assert api.state(owing) == "refinanced"


def test_a_payment_settles_once(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    announced = api.pay(owing, 1_000, "2026-02-01", layer="PENDING")
    api.settle_payment(announced, "2026-02-03")
    with nothing_moves():
        for on in ("2026-02-03", "2026-02-04"):
            refused(api.post(settling(announced), {"effective_at": on}), 409, "already_settled")


def test_a_payment_that_was_never_pending_is_settled_already(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    paid = api.pay(owing, 1_000, "2026-02-01")
    with nothing_moves():
        refused(api.post(settling(paid), {"effective_at": "2026-02-03"}), 409, "already_settled")


@pytest.mark.parametrize("layer", ["SETTLED", "PENDING"])
def test_a_reversed_payment_is_neither_settled_nor_returned(
    api: Api, owing: Loan, nothing_moves: Unmoved, layer: str
) -> None:
    paid = api.pay(owing, 1_000, "2026-02-01", layer=layer)
    api.reverse(paid["journal_entry_id"], effective_at="2026-02-02")
    with nothing_moves():
        refused(api.post(settling(paid), {"effective_at": "2026-02-03"}), 409, "already_reversed")
        for body in (back(), back(nsf_fee_minor="5"), back("2026-01-01")):
            refused(api.post(returning(paid), body), 409, "already_reversed")


def test_neither_a_settlement_nor_what_it_settled_is_reversed(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    announced = api.pay(owing, 1_000, "2026-02-01", layer="PENDING")
    settled = api.settle_payment(announced, "2026-02-03")
    with nothing_moves():
        for entry in (announced, settled):
            refused(api.post("/v1/reversals", reversal_of(entry)), 422, "not_reversible")


# --- Return ----------------------------------------------------------------------------------------------------------


def test_the_return_of_announced_money_is_its_mirror(api: Api, acme: Lender, owing: Loan) -> None:
    announced = api.pay(owing, 5_000, "2026-02-01", layer="PENDING", external_ref="ACH 7")
    made = api.give_back(announced, "2026-02-03", return_code="R02")
    assert made == {
        "payment_event_id": announced["payment_event_id"],
        "journal_entry_id": made["journal_entry_id"],
        "reverses_entry_id": announced["journal_entry_id"],
        "posted_at": made["posted_at"],
    }
    entry = api.entry(made["journal_entry_id"])
    about = {"amount_minor": "5000", "currency": "USD", "layer": "PENDING"}
    about |= {"loan_id": owing.loan_id, "borrower_id": owing.borrower_id}
    assert entry == {
        "journal_entry_id": made["journal_entry_id"],
        "event_type": "payment_returned",
        "effective_at": "2026-02-03",
        "posted_at": made["posted_at"],
        "correlation_id": entry["correlation_id"],
        "actor": f"client:{api.client.client_id}",
        "reverses_entry_id": announced["journal_entry_id"],
        "lines": [
            {"sequence": 1, "account_code": "1010", "direction": "CR", "external_ref": "ACH 7"} | about,
            {"sequence": 2, "account_code": "2000", "direction": "DR"} | about,
        ],
    }
    assert api.owed(owing) == (100_000, 2_700, 500)
    for code in ("1010", "2000"):
        assert api.normal_balance(code, layer="PENDING") == 0
    with in_books_of(acme.tenant_id) as connection:
        query = "SELECT facts ->> 'return_code' FROM journal_entry WHERE id = %s"
        assert connection.execute(query, (made["journal_entry_id"],)).fetchone() == ("R02",)


def test_the_return_of_money_is_the_mirror_of_what_it_met(api: Api, owing: Loan) -> None:
    paid = api.pay(owing, 5_000, "2026-02-01", external_ref="ACH 7")
    made = api.give_back(paid, "2026-03-01")
    assert made["reverses_entry_id"] == paid["journal_entry_id"]
    assert api.lines(made["journal_entry_id"]) == ["CR 1000 5000", "DR 1300 500", "DR 1200 2700", "DR 1100 1800"]
    assert api.entry(made["journal_entry_id"])["lines"][0]["external_ref"] == "ACH 7"
    assert api.owed(owing, "2026-02-28") == (98_200, 0, 0)
    assert api.owed(owing, "2026-03-01") == (100_000, 2_700, 500)
    assert api.normal_balance("1000") == 0


def test_the_return_of_a_settled_announcement_mirrors_and_names_the_settlement(api: Api, owing: Loan) -> None:
    announced = api.pay(owing, 5_000, "2026-02-01", layer="PENDING", external_ref="ACH 7")
    settled = api.settle_payment(announced, "2026-02-03")
    made = api.give_back(announced, "2026-03-01")
    assert made["payment_event_id"] == announced["payment_event_id"]
    assert made["reverses_entry_id"] == settled["journal_entry_id"]
    assert api.lines(made["journal_entry_id"]) == ["CR 1000 5000", "DR 1300 500", "DR 1200 2700", "DR 1100 1800"]
    assert api.owed(owing) == (100_000, 2_700, 500)
    for code in ("1010", "2000"):
        assert api.normal_balance(code, layer="PENDING") == 0


def test_what_waited_in_suspense_goes_back_from_there(api: Api, loan: Loan) -> None:
    api.disburse(loan, 1_000, "2026-01-05")
    paid = api.pay(loan, 1_300, "2026-02-01")
    made = api.give_back(paid, "2026-03-01")
    assert sorted(api.lines(made["journal_entry_id"])) == ["CR 1000 1300", "DR 1100 1000", "DR 2000 300"]
    assert api.owed(loan) == (1_000, 0, 0)
    assert api.normal_balance("2000") == 0


def test_a_return_reopens_a_paid_off_loan(api: Api, owing: Loan) -> None:
    paid = api.pay(owing, 103_200, "2026-02-01")
    assert api.state(owing) == "paid_off"
    api.give_back(paid, "2026-03-01")
    assert api.state(owing) == "open"
    api.pay(owing, 103_200, "2026-03-02")
    assert api.state(owing) == "paid_off"


def test_a_return_after_more_payments_takes_back_its_own(api: Api, owing: Loan) -> None:
    first = api.pay(owing, 1_000, "2026-02-01")
    api.pay(owing, 1_000, "2026-02-02")
    api.pay(owing, 2_000, "2026-02-03")
    made = api.give_back(first, "2026-02-10")
    assert api.lines(made["journal_entry_id"]) == ["CR 1000 1000", "DR 1300 500", "DR 1200 500"]
    assert api.owed(owing) == (99_200, 500, 500)


@pytest.mark.parametrize("layer", ["SETTLED", "PENDING"])
def test_a_payment_is_returned_once(api: Api, owing: Loan, nothing_moves: Unmoved, layer: str) -> None:
    paid = api.pay(owing, 1_000, "2026-02-01", layer=layer)
    api.give_back(paid, "2026-03-01")
    with nothing_moves():
        for body in (back(), back("2026-03-02", return_code="R09"), back(nsf_fee_minor="5"), back("2026-01-01")):
            refused(api.post(returning(paid), body), 409, "already_returned")
        refused(api.post(settling(paid), {"effective_at": "2026-03-02"}), 409, "already_returned")
        refused(api.post("/v1/reversals", reversal_of(paid)), 422, "not_reversible")


def test_a_settled_announcement_is_returned_once_and_settles_no_more(
    api: Api, owing: Loan, nothing_moves: Unmoved
) -> None:
    announced = api.pay(owing, 1_000, "2026-02-01", layer="PENDING")
    settled = api.settle_payment(announced, "2026-02-03")
    api.give_back(announced, "2026-03-01")
    with nothing_moves():
        refused(api.post(returning(announced), back()), 409, "already_returned")
        refused(api.post(settling(announced), {"effective_at": "2026-03-02"}), 409, "already_returned")
        for entry in (announced, settled):
            refused(api.post("/v1/reversals", reversal_of(entry)), 422, "not_reversible")


def test_a_return_is_not_reversed(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    made = api.give_back(api.pay(owing, 1_000, "2026-02-01"), "2026-03-01", nsf_fee_minor="5")
    with nothing_moves():
        refused(api.post("/v1/reversals", reversal_of(made)), 422, "not_reversible")
    api.reverse(made["nsf_fee_entry_id"])


def test_a_return_is_not_dated_before_what_it_takes_back(
    api: Api, owing: Loan, nothing_moves: Unmoved, tomorrow: str
) -> None:
    paid = api.pay(owing, 1_000, "2026-02-01")
    announced = api.pay(owing, 1_000, "2026-02-01", layer="PENDING")
    with nothing_moves():
        for payment in (paid, announced):
            for on in ("2026-01-31", "0001-01-01", tomorrow, "9999-12-31"):
                refused(api.post(returning(payment), back(on)), 422, "effective_date_refused")
    api.settle_payment(announced, "2026-02-03")
    with nothing_moves():
        refused(api.post(returning(announced), back("2026-02-02")), 422, "effective_date_refused")
    api.give_back(announced, "2026-02-03")
    api.give_back(paid, "2026-02-01")


def test_a_settlement_is_not_dated_before_its_payment(
    api: Api, owing: Loan, nothing_moves: Unmoved, tomorrow: str
) -> None:
    announced = api.pay(owing, 1_000, "2026-02-01", layer="PENDING")
    with nothing_moves():
        for on in ("2026-01-31", "0001-01-01", tomorrow, "9999-12-31"):
            refused(api.post(settling(announced), {"effective_at": on}), 422, "effective_date_refused")
    api.settle_payment(announced, "2026-02-01")


def test_only_payments_are_settled_and_returned(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    drawn = api.disburse(owing, 5, "2026-01-07", layer="PENDING")
    announced = api.pay(owing, 1_000, "2026-02-01", layer="PENDING")
    settled = api.settle_payment(announced, "2026-02-01")
    names = [drawn["journal_entry_id"], settled["journal_entry_id"], str(uuid.uuid4()), "x", "1"]
    with nothing_moves():
        for name in names:
            refused(api.post(f"/v1/payments/{name}/return", back()), 404, "not_found")
            refused(api.post(f"/v1/payments/{name}/settlement", {"effective_at": "2026-03-01"}), 404, "not_found")


def test_a_reference_stays_used_after_a_return(api: Api, owing: Loan, nothing_moves: Unmoved) -> None:
    paid = api.pay(owing, 1_000, "2026-02-01", external_ref="ACH 7")
    api.give_back(paid, "2026-03-01")
    with nothing_moves():
        answer = api.post("/v1/payments", payment_of(owing, 1_000, external_ref="ACH 7"))
        refused(answer, 409, "duplicate_external_ref")


# --- The NSF fee -----------------------------------------------------------------------------------------------------


def test_an_nsf_fee_is_a_second_entry_of_one_correlation(api: Api, acme: Lender, owing: Loan) -> None:
    paid = api.pay(owing, 1_000, "2026-02-01")
    before = len(api.history(owing))
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    answer = api.post(returning(paid), back(nsf_fee_minor="2500"), headers=headers)
    made = posted(answer)
    assert made == {
        "payment_event_id": paid["payment_event_id"],
        "journal_entry_id": made["journal_entry_id"],
        "reverses_entry_id": paid["journal_entry_id"],
        "nsf_fee_entry_id": made["nsf_fee_entry_id"],
        "posted_at": made["posted_at"],
    }
    returned, fee = api.entry(made["journal_entry_id"]), api.entry(made["nsf_fee_entry_id"])
    assert returned["correlation_id"] == fee["correlation_id"] == "0af76519-16cd-43dd-8448-eb211c80319c"
    assert (returned["event_type"], fee["event_type"]) == ("payment_returned", "fee_assessed")
    assert fee["effective_at"] == returned["effective_at"] == "2026-03-01"
    assert api.lines(made["nsf_fee_entry_id"]) == ["DR 1300 2500", "CR 4100 2500"]
    assert "reverses_entry_id" not in fee
    assert [entry["journal_entry_id"] for entry in api.history(owing)[before:]] == [
        made["journal_entry_id"],
        made["nsf_fee_entry_id"],
    ]
    assert api.owed(owing) == (100_000, 2_700, 3_000)
    assert answer.headers["ETag"] == api.get(f"/v1/loans/{owing.loan_id}").headers["ETag"] == '"6"'
    with in_books_of(acme.tenant_id) as connection:
        query = "SELECT facts ->> 'fee_type' FROM journal_entry WHERE id = %s"
        assert connection.execute(query, (made["nsf_fee_entry_id"],)).fetchone() == ("nsf",)


def test_announced_money_comes_back_with_a_fee_too(api: Api, owing: Loan) -> None:
    announced = api.pay(owing, 1_000, "2026-02-01", layer="PENDING")
    api.give_back(announced, "2026-02-03", nsf_fee_minor="2500")
    assert api.owed(owing) == (100_000, 2_700, 3_000)


@pytest.mark.parametrize("ending", ["chargeoff", "refinance"])
def test_an_ended_loan_takes_the_return_and_not_its_fee(
    api: Api, owing: Loan, nothing_moves: Unmoved, ending: str
) -> None:
    """The bank is never refused: the same return without the fee is taken."""
    paid = api.pay(owing, 1_000, "2026-02-01")
    if ending == "chargeoff":
        api.serve(owing, "chargeoff", "2026-02-10", reason="Gone")
    else:
        _refinance(api, owing)
    state = api.state(owing)
    with nothing_moves():
        answer = api.post(returning(paid), back(nsf_fee_minor="2500"))
        refused(answer, 422, "loan_state_refuses")
    api.give_back(paid, "2026-03-01")
    assert api.state(owing) == state
    assert api.owed(owing) == (0, 500, 500)


def test_a_fee_that_cannot_be_posted_takes_the_return_along(
    api: Api, acme: Lender, owing: Loan, nothing_moves: Unmoved
) -> None:
    paid = api.pay(owing, 1_000, "2026-02-01")
    with in_books_of(acme.tenant_id) as connection:
        connection.execute("UPDATE gl_account SET closed_at = now(), closure_reason = 'test' WHERE code = '4100'")
    with nothing_moves():
        refused(api.post(returning(paid), back(nsf_fee_minor="2500")), 422, "account_closed")
    api.give_back(paid, "2026-03-01")


def _refinance(api: Api, loan: Loan) -> Json:
    new_loan = {"borrower_id": loan.borrower_id, "program_id": loan.program_id, "opened_on": "2026-01-01"}
    return api.serve(loan, "refinance", "2026-02-10", new_loan=new_loan)


# --- When suspense has been used -------------------------------------------------------------------------------------


@pytest.fixture
def allocated(api: Api, loan: Loan) -> tuple[list[Json], list[Json]]:
    """Payments of 500 and 600 into suspense; then 10,000 lent, with a fee of 100 and 200 of interest; then allocations of
    400 (100 fees, 200 interest, 100 principal) and, after another fee of 150, of 300 (150 fees, 150 principal)."""
    payments = [api.pay(loan, amount, "2026-01-04") for amount in (500, 600)]
    api.disburse(loan, 10_000, "2026-01-05")
    api.accrue("2026-01-06", (loan, 10_000, 200))
    api.serve(loan, "fees", "2026-01-06", 100)
    first = api.serve(loan, "suspense-allocations", "2026-02-01", 400)
    api.serve(loan, "fees", "2026-02-02", 150)
    second = api.serve(loan, "suspense-allocations", "2026-02-03", 300)
    assert api.normal_balance("2000") == 400
    return payments, [first, second]


def test_a_return_takes_back_the_newest_allocation_in_part(
    api: Api, loan: Loan, allocated: tuple[list[Json], list[Json]], nothing_moves: Unmoved
) -> None:
    """400 are left of what it must give back: 100 come out of the last allocation's last receivable."""
    (paid, _), (first, second) = allocated
    made = api.give_back(paid, "2026-03-01")
    assert api.lines(made["journal_entry_id"]) == ["DR 1100 100", "CR 2000 100", "CR 1000 500", "DR 2000 500"]
    assert api.normal_balance("2000") == 0
    assert api.owed(loan) == (9_850, 0, 0)
    assert {item["loan_id"] for item in api.entry(made["journal_entry_id"])["lines"]} == {loan.loan_id}
    # What is undone in part is not reversed any more; what stands is.
    with nothing_moves():
        refused(api.post("/v1/reversals", reversal_of(second)), 422, "not_reversible")
    api.reverse(first["journal_entry_id"], effective_at="2026-03-02")


def test_a_second_return_goes_on_where_the_first_one_stopped(
    api: Api, loan: Loan, allocated: tuple[list[Json], list[Json]], nothing_moves: Unmoved
) -> None:
    payments, allocations = allocated
    api.give_back(payments[0], "2026-03-01")
    made = api.give_back(payments[1], "2026-03-02")
    assert api.lines(made["journal_entry_id"]) == [
        *("DR 1100 50", "DR 1300 150", "CR 2000 200"),
        *("DR 1100 100", "DR 1200 200", "DR 1300 100", "CR 2000 400"),
        *("CR 1000 600", "DR 2000 600"),
    ]
    assert api.normal_balance("2000") == 0
    assert api.owed(loan) == (10_000, 200, 250)
    with nothing_moves():
        for entry in allocations:
            refused(api.post("/v1/reversals", reversal_of(entry)), 422, "not_reversible")


def test_a_reversed_allocation_is_not_taken_back_again(
    api: Api, loan: Loan, allocated: tuple[list[Json], list[Json]]
) -> None:
    payments, (_, second) = allocated
    api.reverse(second["journal_entry_id"], effective_at="2026-02-10")
    for payment in payments:
        made = api.give_back(payment, "2026-03-01")
    assert api.lines(made["journal_entry_id"]) == [
        *("DR 1100 100", "DR 1200 200", "DR 1300 100", "CR 2000 400"),
        *("CR 1000 600", "DR 2000 600"),
    ]
    assert api.owed(loan) == (10_000, 200, 250)


def test_money_that_was_refunded_is_principal(api: Api, loan: Loan) -> None:
    """200 of 500 went back to the borrower by hand: 300 are there, the rest is owed."""
    paid = api.pay(loan, 500, "2026-01-05")
    about = {"loan_id": loan.loan_id}
    api.adjust("2026-01-10", line("2000", "DR", 200, **about), line("1000", "CR", 200, **about))
    made = api.give_back(paid, "2026-02-01")
    assert api.lines(made["journal_entry_id"]) == ["CR 1000 500", "DR 2000 300", "DR 1100 200"]
    assert api.owed(loan) == (200, 0, 0)
    assert api.normal_balance("2000") == 0


def test_money_that_was_refunded_altogether_has_no_line_on_suspense(api: Api, loan: Loan) -> None:
    paid = api.pay(loan, 500, "2026-01-05")
    about = {"loan_id": loan.loan_id}
    api.adjust("2026-01-10", line("2000", "DR", 500, **about), line("1000", "CR", 500, **about))
    made = api.give_back(paid, "2026-02-01")
    assert api.lines(made["journal_entry_id"]) == ["CR 1000 500", "DR 1100 500"]


def test_announced_money_that_was_cancelled_by_hand_is_announced_principal(api: Api, loan: Loan) -> None:
    """The bank is not refused here either; on PENDING no allocation has taken anything."""
    api.pay(loan, 500, "2026-01-05")
    announced = api.pay(loan, 300, "2026-01-06", layer="PENDING")
    about = {"loan_id": loan.loan_id, "layer": "PENDING"}
    api.adjust("2026-01-10", line("2000", "DR", 200, **about), line("1010", "CR", 200, **about))
    made = api.give_back(announced, "2026-02-01")
    assert api.lines(made["journal_entry_id"]) == ["CR 1010 300 PENDING", "DR 2000 100 PENDING", "DR 1100 200 PENDING"]
    assert api.normal_balance("2000") == 500


def test_allocations_are_undone_before_principal_is_owed(api: Api, loan: Loan) -> None:
    paid = api.pay(loan, 500, "2026-01-05")
    api.serve(loan, "fees", "2026-01-06", 100)
    api.serve(loan, "suspense-allocations", "2026-01-07", 100)
    about = {"loan_id": loan.loan_id}
    api.adjust("2026-01-10", line("2000", "DR", 300, **about), line("1000", "CR", 300, **about))
    made = api.give_back(paid, "2026-02-01")
    assert api.lines(made["journal_entry_id"]) == [
        *("DR 1300 100", "CR 2000 100", "CR 1000 500", "DR 2000 200", "DR 1100 300")
    ]
    assert api.owed(loan) == (300, 0, 100)


def test_a_return_looks_at_suspense_from_its_date_on(api: Api, loan: Loan) -> None:
    """On the return's date suspense is full; it was used on a later one, and that is undone as of the earlier date."""
    paid = api.pay(loan, 500, "2026-01-05")
    api.disburse(loan, 10_000, "2026-01-06")
    later = api.serve(loan, "suspense-allocations", "2026-02-01", 500)
    assert later["allocation"] == allocation(principal=500)
    made = api.give_back(paid, "2026-01-20")
    assert api.lines(made["journal_entry_id"]) == ["DR 1100 500", "CR 2000 500", "CR 1000 500", "DR 2000 500"]
    assert [api.owed(loan, on)[0] for on in ("2026-01-19", "2026-01-20", "2026-02-01")] == [10_000, 10_500, 10_000]


def test_the_suspense_of_others_is_not_taken(acme: Lender) -> None:
    api, (loan, other, _) = acme.api, acme.loans
    paid = api.pay(loan, 500, "2026-01-05")
    api.pay(other, 500, "2026-01-05")
    api.disburse(loan, 1_000, "2026-01-06")
    api.serve(loan, "suspense-allocations", "2026-01-07", 500)
    api.give_back(paid, "2026-02-01")
    assert acme.balances() == {
        (loan.loan_id, "1100", "SETTLED"): 1_000,
        (other.loan_id, "2000", "SETTLED"): 500,
    }


def test_a_return_on_a_refinanced_loan_falls_back_on_the_old_one(api: Api, owing: Loan) -> None:
    """What the borrower owes again is the old loan's; further money waits in its suspense, and it stays refinanced."""
    paid = api.pay(owing, 1_000, "2026-02-01")
    _refinance(api, owing)
    api.give_back(paid, "2026-02-20")
    assert api.owed(owing) == (0, 500, 500)
    assert api.state(owing) == "refinanced"
    assert api.pay(owing, 1_000, "2026-02-21")["allocation"] == allocation(suspense=1_000)


def test_replans_leave_what_a_return_has_to_take_back(api: Api, loan: Loan) -> None:
    """A payment that a replan has put back into suspense and allocated anew goes back whole."""
    api.disburse(loan, 10_000, "2026-01-05")
    late = api.pay(loan, 600, "2026-02-01")
    api.serve(loan, "fees", "2026-01-10", 500)
    where = f"/v1/loans/{loan.loan_id}/replans"
    planned = posted(api.post(where, {"from_date": "2026-01-05"}))
    done = posted(api.post(where, {"from_date": "2026-01-05", "plan_hash": planned["plan_hash"]}))
    assert len(done["journal_entry_ids"]) == len(planned["entries"]) == 2
    assert api.owed(loan) == (9_900, 0, 0)
    made = api.give_back(late, "2026-03-01")
    assert made["reverses_entry_id"] == late["journal_entry_id"]
    assert api.owed(loan) == (10_000, 0, 500)
    assert api.normal_balance("2000") == api.normal_balance("1000") == 0


def test_the_trial_balance_holds_after_all_of_it(api: Api, allocated: tuple[list[Json], list[Json]]) -> None:
    for payment in allocated[0]:
        api.give_back(payment, "2026-03-01", nsf_fee_minor="25")
    totals = shown(api.get("/v1/trial-balance", {"currency": "USD"}))
    assert totals["total_dr_minor"] == totals["total_cr_minor"]


def test_a_replay_names_the_loan_s_version_too(api: Api, loan: Loan) -> None:
    paid = api.pay(loan, 500, "2026-01-05", layer="PENDING")
    path, body, key = f"/v1/payments/{paid['payment_event_id']}/settlement", {"effective_at": "2026-01-06"}, new_key()
    first = api.post(path, body, key=key)
    again = api.post(path, body, key=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.headers["ETag"] == again.headers["ETag"] == '"2"'
