"""GET /v1/loans/{id}/payoff: what pays a loan off; /allocation-preview: where a payment would go."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import date, timedelta
from typing import Any

import pytest
from django.db import connections

from ledger import queries
from ledger.posting import Origin, Touches, opened
from tests.conftest import Api, Json, Lender, Loan, in_books_of, payment_of, posted, refused, shown

Unmoved = Callable[[], AbstractContextManager[None]]
MAX_MINOR = 9_223_372_036_854_775_807


def payoff(api: Api, loan: Loan, as_of: str | None = None) -> Json:
    return shown(api.get(f"/v1/loans/{loan.loan_id}/payoff", {"as_of_date": as_of} if as_of else {}))


def accrued(api: Api, loan: Loan, as_of: str) -> int:
    """Interest that is not yet posted; on the way, that the payoff is the sum of its parts."""
    body = payoff(api, loan, as_of)
    parts = ("principal_minor", "interest_minor", "fees_minor", "accrued_interest_minor")
    assert int(body["payoff_minor"]) == sum(int(body[name]) for name in parts)
    return int(body["accrued_interest_minor"])


def change_terms(lender: Lender, program_id: str, on: str, **terms: Any) -> None:
    posted(lender.api.post(f"/v1/programs/{program_id}/terms", {"effective_at": on} | terms))


def preview_path(loan: Loan) -> str:
    return f"/v1/loans/{loan.loan_id}/allocation-preview"


def preview(api: Api, loan: Loan, amount: int, on: str | None = None) -> Json:
    query = {"amount_minor": str(amount)} | ({"effective_at": on} if on else {})
    body = shown(api.get(preview_path(loan), query))
    assert body.keys() == {"allocation"}
    allocation: Json = body["allocation"]
    return allocation


def shares(**minor: int) -> Json:
    nothing = {"fees": 0, "interest": 0, "principal": 0, "suspense": 0}
    return {f"{role}_minor": str(amount) for role, amount in (nothing | minor).items()}


@pytest.fixture
def owing(acme: Lender) -> Loan:
    """100,000 lent on 5 January, 270 of interest on the sixth, a fee of 500 on the tenth."""
    acme.api.disburse(acme.loan, 100_000, "2026-01-05")
    acme.api.accrue("2026-01-06", (acme.loan, 100_000, 270))
    acme.api.serve(acme.loan, "fees", "2026-01-10", 500)
    return acme.loan


@pytest.fixture
def engine_loan(acme: Lender) -> Loan:
    """A loan that the engine accrues, at ten percent a year: 365,000 lent on 10 January earn 100 a day."""
    loan = acme.open_loan(acme.open_program(accrual_mode="engine"))
    acme.api.disburse(loan, 365_000, "2026-01-10")
    return loan


# --- The payoff ------------------------------------------------------------------------------------------------------


def test_a_payoff_is_what_is_owed_and_shows_what_waits_in_suspense(api: Api, owing: Loan) -> None:
    api.pay(owing, 150_000, "2026-01-20", layer="PENDING")
    before = payoff(api, owing, "2026-01-31")
    assert before == {
        "loan_id": owing.loan_id,
        "currency": "USD",
        "as_of_date": "2026-01-31",
        "principal_minor": "100000",
        "interest_minor": "270",
        "fees_minor": "500",
        "suspense_minor": "0",
        "accrued_interest_minor": "0",
        "payoff_minor": "100770",
    }
    api.pay(owing, 100_777, "2026-01-20")
    paid = {
        "principal_minor": "0",
        "interest_minor": "0",
        "fees_minor": "0",
        "suspense_minor": "7",
        "payoff_minor": "0",
    }
    assert payoff(api, owing, "2026-01-31") == before | paid


def test_a_payoff_is_of_its_date(api: Api, owing: Loan) -> None:
    expected = {
        "2026-01-04": 0,
        "2026-01-05": 100_000,
        "2026-01-06": 100_270,
        "2026-01-10": 100_770,
        "9999-12-31": 100_770,
    }
    for on, total in expected.items():
        assert payoff(api, owing, on)["payoff_minor"] == str(total)


def test_paying_the_payoff_pays_the_loan_off(acme: Lender, owing: Loan) -> None:
    acme.api.pay(owing, int(payoff(acme.api, owing)["payoff_minor"]), acme.today.isoformat())
    assert acme.api.state(owing) == "paid_off"
    assert payoff(acme.api, owing)["suspense_minor"] == "0"


def test_a_payoff_is_of_today_unless_told(acme: Lender) -> None:
    before = acme.today
    assert payoff(acme.api, acme.loan)["as_of_date"] in (before.isoformat(), acme.today.isoformat())


def test_a_loan_that_a_client_accrues_has_no_interest_beside_the_books(api: Api, owing: Loan) -> None:
    assert accrued(api, owing, "2026-12-31") == 0


# --- Interest that the engine has not yet posted ---------------------------------------------------------------------


def test_interest_grows_by_the_day_from_the_day_after_the_money_went_out(api: Api, engine_loan: Loan) -> None:
    for on, interest in [
        ("2025-12-31", 0),
        ("2026-01-01", 0),
        ("2026-01-10", 0),
        ("2026-01-11", 100),
        ("2026-02-09", 3_000),
    ]:
        assert accrued(api, engine_loan, on) == interest


def test_interest_is_rounded_once_and_half_to_even(acme: Lender) -> None:
    loan = acme.open_loan(
        acme.open_program(accrual_mode="engine", annual_rate_bps=1_825, day_count_convention="ACT_365")
    )
    acme.api.disburse(loan, 1_000, "2026-01-01")  # Half a minor unit a day.
    days = [date(2026, 1, 1) + timedelta(days=number) for number in range(8)]
    assert [accrued(acme.api, loan, day.isoformat()) for day in days] == [0, 0, 1, 2, 2, 2, 3, 4]


def test_principal_earns_while_it_is_owed(api: Api, engine_loan: Loan) -> None:
    api.pay(engine_loan, 182_500, "2026-01-20")
    assert accrued(api, engine_loan, "2026-01-20") == 1_000
    assert accrued(api, engine_loan, "2026-01-30") == 1_500
    api.pay(engine_loan, 182_500, "2026-01-15")  # It arrives late, and counts from its own date.
    assert accrued(api, engine_loan, "2026-01-30") == 500 + 250


def test_money_on_its_way_earns_nothing(api: Api, engine_loan: Loan) -> None:
    api.disburse(engine_loan, 365_000, "2026-01-12", layer="PENDING")
    assert accrued(api, engine_loan, "2026-01-20") == 1_000


def test_a_rate_earns_from_its_date_on(acme: Lender, engine_loan: Loan) -> None:
    change_terms(acme, engine_loan.program_id, "2026-01-20", annual_rate_bps=2_000)
    assert accrued(acme.api, engine_loan, "2026-01-20") == 1_000
    assert accrued(acme.api, engine_loan, "2026-01-22") == 1_400
    change_terms(acme, engine_loan.program_id, "2026-01-20", annual_rate_bps=3_000)
    assert accrued(acme.api, engine_loan, "2026-01-22") == 1_600, "of two for one date the later one holds"
    change_terms(acme, engine_loan.program_id, "2026-01-21", waterfall=["interest", "principal", "fees"])
    assert accrued(acme.api, engine_loan, "2026-01-22") == 1_600


def test_a_restructure_holds_until_it_is_reversed(acme: Lender, engine_loan: Loan) -> None:
    api = acme.api
    api.serve(engine_loan, "fees", "2026-01-12", 1_000)
    terms = {"annual_rate_bps": 0, "capitalise_fees": True}
    made = api.serve(engine_loan, "restructure", "2026-01-20", **terms)
    assert accrued(api, engine_loan, "2026-01-30") == 1_000
    api.reverse(made["journal_entry_id"], effective_at="2026-01-20")
    assert accrued(api, engine_loan, "2026-01-30") == 2_000


def test_a_new_day_count_counts_its_own_days(acme: Lender) -> None:
    loan = acme.open_loan(acme.open_program(accrual_mode="engine", day_count_convention="ACT_360"))
    acme.api.disburse(loan, 3_600_000, "2026-01-01")  # A thousand a day.
    acme.api.serve(loan, "restructure", "2026-01-31", day_count_convention="30_360")
    assert accrued(acme.api, loan, "2026-01-31") == 30_000
    assert accrued(acme.api, loan, "2026-03-01") == 60_000, "February has thirty days"


def test_a_loans_own_rate_comes_before_its_programs(acme: Lender) -> None:
    loan = acme.open_loan(acme.open_program(accrual_mode="engine"), annual_rate_bps=500)
    acme.api.disburse(loan, 365_000, "2026-01-10")
    change_terms(acme, loan.program_id, "2026-01-12", annual_rate_bps=9_000)
    assert accrued(acme.api, loan, "2026-01-20") == 500


@pytest.fixture
def taken_over(acme: Lender) -> Loan:
    """365,000 lent on 10 January; a client accrued 100 for each day through the fifteenth, the engine the days since."""
    program_id = acme.open_program()
    loan = acme.open_loan(program_id)
    acme.api.disburse(loan, 365_000, "2026-01-10")
    for day in range(11, 16):
        acme.api.accrue(f"2026-01-{day}", (loan, 365_000, 100))
    change_terms(acme, program_id, "2026-01-16", accrual_mode="engine")
    for day in range(16, 21):
        acme.accrue_by_engine(f"2026-01-{day}", program_id)
    return loan


def test_what_accruals_have_posted_is_not_accrued_again(api: Api, taken_over: Loan) -> None:
    for on, interest in [("2026-01-15", 0), ("2026-01-16", 0), ("2026-01-20", 0), ("2026-01-25", 500)]:
        assert accrued(api, taken_over, on) == interest
    assert payoff(api, taken_over, "2026-01-25")["payoff_minor"] == str(365_000 + 1_000 + 500)


def test_a_reversed_accrual_is_not_posted_any_more(api: Api, taken_over: Loan) -> None:
    made = next(entry for entry in api.history(taken_over) if entry["effective_at"] == "2026-01-18")
    api.reverse(made["journal_entry_id"], effective_at="2026-01-18")
    assert accrued(api, taken_over, "2026-01-17") == 0
    assert accrued(api, taken_over, "2026-01-20") == 0, "its day is given back, and only a run for it accrues it again"


def test_interest_that_was_posted_too_high_lowers_the_payoff_and_no_more_than_interest(
    api: Api, taken_over: Loan
) -> None:
    api.pay(taken_over, 365_500, "2026-01-15")  # It arrives late: five days of the engine's were of nothing.
    body = payoff(api, taken_over, "2026-01-20")
    assert (body["interest_minor"], body["accrued_interest_minor"], body["payoff_minor"]) == ("500", "-500", "0")
    api.pay(taken_over, 300, "2026-01-20")
    body = payoff(api, taken_over, "2026-01-20")
    assert (body["interest_minor"], body["accrued_interest_minor"], body["payoff_minor"]) == ("200", "-200", "0")


def test_the_engine_counts_from_the_day_before_its_first_accrual(acme: Lender) -> None:
    program_id = acme.open_program()
    loan = acme.open_loan(program_id)
    acme.api.disburse(loan, 365_000, "2026-01-10")
    change_terms(acme, program_id, "2026-01-16", accrual_mode="engine", annual_rate_bps=2_000)
    # The sixteenth's accrual is of the day from the fifteenth on, at that day's rate.
    assert [accrued(acme.api, loan, f"2026-01-{day}") for day in (15, 16, 17)] == [0, 100, 300]
    change_terms(acme, program_id, "2026-01-20", accrual_mode="client")
    assert [accrued(acme.api, loan, f"2026-01-{day}") for day in (19, 20, 25)] == [700, 700, 700], "its days stay due"


def test_a_payoff_is_of_one_moment(acme: Lender, engine_loan: Loan, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is posted while a payoff is being read is in none of its parts."""
    count = queries.interest_counted

    def pay_meanwhile(*place: Any, **about: Any) -> Any:
        def pay() -> None:
            acme.api.in_a_thread().pay(engine_loan, 365_000, "2026-01-10")
            connections.close_all()

        thread = threading.Thread(target=pay)
        thread.start()
        thread.join()
        return count(*place, **about)

    monkeypatch.setattr(queries, "interest_counted", pay_meanwhile)
    assert payoff(acme.api, engine_loan, "2026-01-20")["payoff_minor"] == str(365_000 + 1_000)
    monkeypatch.undo()
    assert payoff(acme.api, engine_loan, "2026-01-20")["payoff_minor"] == "0"


def test_a_charge_off_takes_the_interest_of_its_date_along_and_the_loan_earns_no_more(
    api: Api, engine_loan: Loan
) -> None:
    body = api.serve(engine_loan, "chargeoff", "2026-01-20", reason="Gone")
    assert body["charged_off"] == {"fees_minor": "0", "interest_minor": "1000", "principal_minor": "365000"}
    assert accrued(api, engine_loan, "2026-01-20") == accrued(api, engine_loan, "2026-02-20") == 0
    assert payoff(api, engine_loan, "2026-02-20")["payoff_minor"] == "0"


# --- The preview -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "waterfall",
    [("fees", "interest", "principal"), ("principal", "interest", "fees"), ("interest", "principal", "fees")],
)
def test_a_preview_is_what_the_payment_does(acme: Lender, waterfall: tuple[str, ...]) -> None:
    program_id = acme.open_program(waterfall=waterfall)
    for amount in (1, 400, 500, 501, 770, 771, 5_000, 100_770, 100_771, MAX_MINOR):
        loan = acme.open_loan(program_id)
        acme.api.disburse(loan, 100_000, "2026-01-05")
        acme.api.accrue("2026-01-06", (loan, 100_000, 270))
        acme.api.serve(loan, "fees", "2026-01-10", 500)
        expected = preview(acme.api, loan, amount, "2026-02-01")
        assert acme.api.pay(loan, amount, "2026-02-01")["allocation"] == expected


def test_a_back_dated_preview_takes_what_is_available_on_every_later_date(api: Api, owing: Loan) -> None:
    api.pay(owing, 99_770, "2026-03-01")
    assert preview(api, owing, 5_000, "2026-01-20") == shares(principal=1_000, suspense=4_000)
    assert preview(api, owing, 5_000, "2026-01-05") == shares(principal=1_000, suspense=4_000)
    assert api.pay(owing, 5_000, "2026-01-20")["allocation"] == shares(principal=1_000, suspense=4_000)


def test_a_preview_goes_by_the_waterfall_of_its_date(acme: Lender, owing: Loan) -> None:
    change_terms(acme, owing.program_id, "2026-02-01", waterfall=["principal", "interest", "fees"])
    assert preview(acme.api, owing, 600, "2026-01-31") == shares(fees=500, interest=100)
    assert preview(acme.api, owing, 600, "2026-02-01") == shares(principal=600)


def test_a_preview_is_of_today_unless_told(acme: Lender, owing: Loan) -> None:
    assert preview(acme.api, owing, 600) == preview(acme.api, owing, 600, acme.today.isoformat())
    assert preview(acme.api, owing, 600) == shares(fees=500, interest=100)


def test_a_preview_moves_nothing(acme: Lender, owing: Loan, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        before = acme.api.get(f"/v1/loans/{owing.loan_id}").headers["ETag"]
        answer = acme.api.get(preview_path(owing), {"amount_minor": "600"})
        assert shown(answer)
        assert answer.headers["ETag"] == before


def test_a_preview_waits_for_nobody(acme: Lender, owing: Loan) -> None:
    """Neither a posting that holds the loan nor the closing of a period keeps it, or it would end as 503."""
    with in_books_of(acme.tenant_id, url="HPTS_OWNER_DATABASE_URL") as connection:
        connection.execute("SELECT FROM loan WHERE id = %s FOR UPDATE", (owing.loan_id,))
        key = f"{acme.tenant_id} periods"
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (key,))
        assert preview(acme.api, owing, 600) == shares(fees=500, interest=100)
        assert payoff(acme.api, owing)["payoff_minor"] == "100770"


def test_a_preview_is_of_one_moment_and_cannot_write(acme: Lender) -> None:
    origin = Origin(acme.tenant_id, "client:test", str(uuid.uuid4()))
    with opened(origin, Touches([acme.loan.loan_id], mode="read")) as (posting, _):
        assert posting is not None
        for setting, value in (("transaction_isolation", "repeatable read"), ("transaction_read_only", "on")):
            posting.cursor.execute(f"SHOW {setting}")
            assert posting.cursor.fetchone() == (value,)


def refusals(lender: Lender, loan: Loan, on: str) -> Iterable[Any]:
    """The answers of the payment and of its preview."""
    yield lender.api.post("/v1/payments", payment_of(loan, 600, on))
    yield lender.api.get(preview_path(loan), {"amount_minor": "600", "effective_at": on})


def test_a_preview_is_refused_as_the_payment_is(acme: Lender, owing: Loan, tomorrow: str) -> None:
    acme.api.close_period("2026-01-07")
    for on, code in [
        (tomorrow, "effective_date_refused"),
        ("2026-01-07", "period_closed"),
        ("2025-12-31", "period_closed"),
    ]:
        first, second = (refused(answer, 422, code) for answer in refusals(acme, owing, on))
        assert second["detail"] == first["detail"]


def test_a_preview_before_the_opening_is_refused(acme: Lender, owing: Loan) -> None:
    for answer in refusals(acme, owing, "2025-12-31"):
        refused(answer, 422, "effective_date_refused")


def test_a_charged_off_loan_has_no_preview(acme: Lender, owing: Loan) -> None:
    acme.api.serve(owing, "chargeoff", "2026-02-01", reason="Gone")
    for answer in refusals(acme, owing, "2026-02-02"):
        refused(answer, 422, "loan_state_refuses")


def test_a_payment_on_what_is_paid_off_waits_in_suspense(acme: Lender) -> None:
    assert preview(acme.api, acme.loan, 600, "2026-02-01") == shares(suspense=600)


# --- Parameters, scopes, tenants -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "0", "-5", "+5", "5.0", "05", "1e3", " 5", "5\n", "\u0665", str(MAX_MINOR + 1)])
def test_a_bad_amount_is_named(api: Api, loan: Loan, value: str) -> None:
    refused(api.get(preview_path(loan), {"amount_minor": value}), 400, "validation_failed", ["amount_minor"])


def test_an_amount_is_needed(api: Api, loan: Loan) -> None:
    refused(api.get(preview_path(loan)), 400, "validation_failed", ["amount_minor"])
    query = {"effective_at": "2026-02-30", "currency": "USD"}
    refused(api.get(preview_path(loan), query), 400, "validation_failed", ["amount_minor", "effective_at", "currency"])


@pytest.mark.parametrize("value", ["", "today", "2026-02-30", "2026-02-01T00:00:00Z", "2026-02-01\n"])
def test_a_bad_date_is_named(api: Api, loan: Loan, value: str) -> None:
    path = f"/v1/loans/{loan.loan_id}/payoff"
    refused(api.get(path, {"as_of_date": value}), 400, "validation_failed", ["as_of_date"])
    refused(api.get(path, {"known_at": "2026-02-01T00:00:00Z"}), 400, "validation_failed", ["known_at"])


@pytest.mark.parametrize("part", ["payoff", "allocation-preview?amount_minor=5"])
def test_reading_needs_the_scope_of_balances(acme: Lender, zenith: Lender, part: str) -> None:
    bare, _, query = part.partition("?")
    path = f"/v1/loans/{acme.loan.loan_id}/{bare}"

    def get(path: str, scopes: list[str] | None) -> Any:
        return acme.api.call("GET", path, scopes=scopes, QUERY_STRING=query)

    shown(get(path, ["hpts:balances:read"]))
    others = ["hpts:admin:*", "hpts:ledger:read", "hpts:loans:read", "hpts:payments:write"]
    refused(get(path, others), 403, "insufficient_scope")
    refused(get(path, None), 401, "invalid_token")
    for name in (zenith.loan.loan_id, str(uuid.uuid4())):
        refused(get(f"/v1/loans/{name}/{bare}", ["hpts:balances:read"]), 404, "not_found")
