"""GET /v1/loans/{id}/statement: opening, entries with the balances after each, closing."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import pairwise

import pytest

from tests.conftest import OPENED_ON, Api, Json, Lender, Loan, line, refused, shown

AMOUNTS = ("principal_minor", "interest_minor", "fees_minor", "suspense_minor")
Figures = tuple[int, int, int, int]


def path_of(loan: Loan) -> str:
    return f"/v1/loans/{loan.loan_id}/statement"


def statement(api: Api, loan: Loan, **query: str) -> Json:
    return shown(api.get(path_of(loan), query))


def amounts(part: Json) -> Figures:
    principal, interest, fees, suspense = (int(part[name]) for name in AMOUNTS)
    return principal, interest, fees, suspense


def told(body: Json) -> list[tuple[str, str, Figures, Figures]]:
    """Each entry: its date, its kind, what it changed, the balances after it."""
    return [
        (entry["effective_at"], entry["event_type"], amounts(entry), amounts(entry["balance"]))
        for entry in body["entries"]
    ]


@pytest.fixture
def story(acme: Lender) -> Json:
    """Months of Acme's first loan, posted in another order than they are dated; its statement from beginning to end."""
    api, (loan, other, _) = acme.api, acme.loans
    drawn = api.disburse(loan, 100_000, "2026-01-05")
    api.settle(drawn, "2026-01-07")
    api.accrue("2026-01-06", (other, 0, 3), (loan, 100_000, 270))
    bounced = api.pay(loan, 5_000, "2026-03-01")
    api.pay(loan, 800, "2026-03-10", layer="PENDING")
    api.serve(loan, "fees", "2026-02-01", 500)
    api.pay(loan, 700, "2026-02-01")
    api.give_back(bounced, "2026-03-03", nsf_fee_minor="25")
    api.pay(loan, 150_000, "2026-03-04")
    return statement(api, loan)


def test_entries_stand_by_date_and_each_shows_what_it_changed_and_what_was_owed_then(story: Json) -> None:
    assert told(story) == [
        ("2026-01-05", "disbursement", (100_000, 0, 0, 0), (100_000, 0, 0, 0)),
        ("2026-01-06", "accrual", (0, 270, 0, 0), (100_000, 270, 0, 0)),
        ("2026-01-07", "disbursement_settled", (0, 0, 0, 0), (100_000, 270, 0, 0)),
        ("2026-02-01", "fee_assessed", (0, 0, 500, 0), (100_000, 270, 500, 0)),
        ("2026-02-01", "payment_received", (-200, 0, -500, 0), (99_800, 270, 0, 0)),
        ("2026-03-01", "payment_received", (-4_730, -270, 0, 0), (95_070, 0, 0, 0)),
        ("2026-03-03", "payment_returned", (4_730, 270, 0, 0), (99_800, 270, 0, 0)),
        ("2026-03-03", "fee_assessed", (0, 0, 25, 0), (99_800, 270, 25, 0)),
        ("2026-03-04", "payment_received", (-99_800, -270, -25, 49_905), (0, 0, 0, 49_905)),
    ]
    assert amounts(story["opening"]) == (0, 0, 0, 0)
    assert amounts(story["closing"]) == (0, 0, 0, 49_905)


def test_a_statement_has_these_members_and_no_others(acme: Lender, story: Json) -> None:
    assert story.keys() == {"loan_id", "currency", "from_date", "to_date", "opening", "entries", "closing"}
    assert (story["loan_id"], story["currency"]) == (acme.loan.loan_id, "USD")
    of_entry = {"journal_entry_id", "event_type", "effective_at", "posted_at", "balance", *AMOUNTS}
    history = {entry["journal_entry_id"]: entry for entry in acme.api.history(acme.loan)}
    for entry in story["entries"]:
        assert entry.keys() == of_entry
        recorded = history[entry["journal_entry_id"]]
        for name in ("event_type", "effective_at", "posted_at"):
            assert entry[name] == recorded[name]
    for balances in (story["opening"], story["closing"], *(entry["balance"] for entry in story["entries"])):
        assert balances.keys() == set(AMOUNTS)


def test_an_announced_payment_is_not_on_it_until_it_settles(acme: Lender) -> None:
    api, loan = acme.api, acme.loan
    api.disburse(loan, 1_000, "2026-01-05")
    announced = api.pay(loan, 300, "2026-01-10", layer="PENDING")
    assert [entry["event_type"] for entry in statement(api, loan)["entries"]] == ["disbursement"]
    api.settle_payment(announced, "2026-01-12")
    assert told(statement(api, loan))[1:] == [("2026-01-12", "payment_allocated", (-300, 0, 0, 0), (700, 0, 0, 0))]


SPANS = [
    ({"from_date": "2026-02-01", "to_date": "2026-02-01"}, 3, 5),
    ({"from_date": "2026-01-06", "to_date": "2026-03-02"}, 1, 6),
    ({"from_date": "2026-01-08", "to_date": "2026-01-31"}, 3, 3),
    ({"from_date": "2026-03-04"}, 8, 9),
    ({"from_date": "2026-03-05"}, 9, 9),
    ({"to_date": "2026-01-05"}, 0, 1),
    ({"to_date": "2026-01-04"}, 0, 0),
    ({"to_date": "2025-06-01"}, 0, 0),
    ({"from_date": "0001-01-01", "to_date": "9999-12-31"}, 0, 9),
    ({"from_date": "9999-12-31"}, 9, 9),
]


@pytest.mark.parametrize(("query", "first", "end"), SPANS)
def test_a_span_is_a_piece_of_the_whole(acme: Lender, story: Json, query: dict[str, str], first: int, end: int) -> None:
    part = statement(acme.api, acme.loan, **query)
    assert part["entries"] == story["entries"][first:end]
    after = [story["opening"], *(entry["balance"] for entry in story["entries"])]
    assert part["opening"] == after[first]
    assert part["closing"] == after[end]


def test_spans_that_touch_join(acme: Lender, story: Json) -> None:
    days = ["2025-12-31", "2026-01-06", "2026-01-31", "2026-02-01", "2026-03-03", "2026-12-31"]
    entries: list[Json] = []
    closing = story["opening"]
    for before, last in pairwise(map(date.fromisoformat, days)):
        span = {"from_date": (before + timedelta(days=1)).isoformat(), "to_date": last.isoformat()}
        part = statement(acme.api, acme.loan, **span)
        assert part["opening"] == closing
        entries += part["entries"]
        closing = part["closing"]
    assert entries == story["entries"]
    assert closing == story["closing"]


def test_the_balances_are_those_of_the_balance_on_its_dates(acme: Lender, story: Json) -> None:
    for day in ("2026-01-05", "2026-01-06", "2026-02-01", "2026-03-03", "2026-03-04"):
        part = statement(acme.api, acme.loan, from_date=day, to_date=day)
        before = (date.fromisoformat(day) - timedelta(days=1)).isoformat()
        assert amounts(part["opening"])[:3] == acme.api.owed(acme.loan, before)
        assert amounts(part["closing"])[:3] == acme.api.owed(acme.loan, day)


def test_it_goes_from_the_opening_to_today_unless_told(acme: Lender) -> None:
    before = acme.today
    body = statement(acme.api, acme.loan)
    assert body["from_date"] == OPENED_ON
    assert body["to_date"] in (before.isoformat(), acme.today.isoformat())
    assert body["entries"] == []
    assert body["opening"] == body["closing"] == dict.fromkeys(AMOUNTS, "0")


def test_what_is_left_out_gives_way_to_what_is_said(acme: Lender) -> None:
    early = statement(acme.api, acme.loan, to_date="2025-06-01")
    assert (early["from_date"], early["to_date"]) == ("2025-06-01", "2025-06-01")
    late = statement(acme.api, acme.loan, from_date="9999-12-31")
    assert (late["from_date"], late["to_date"]) == ("9999-12-31", "9999-12-31")
    both = statement(acme.api, acme.loan, from_date="2025-06-01", to_date="2025-06-02")
    assert (both["from_date"], both["to_date"]) == ("2025-06-01", "2025-06-02")


def test_a_back_dated_entry_takes_its_place_and_moves_all_that_follows(api: Api, loan: Loan) -> None:
    api.disburse(loan, 1_000, "2026-01-05")
    api.pay(loan, 100, "2026-03-01")
    api.pay(loan, 50, "2026-02-01")
    assert told(statement(api, loan)) == [
        ("2026-01-05", "disbursement", (1_000, 0, 0, 0), (1_000, 0, 0, 0)),
        ("2026-02-01", "payment_received", (-50, 0, 0, 0), (950, 0, 0, 0)),
        ("2026-03-01", "payment_received", (-100, 0, 0, 0), (850, 0, 0, 0)),
    ]


def test_a_reversal_takes_back_what_its_entry_changed(api: Api, loan: Loan) -> None:
    api.disburse(loan, 1_000, "2026-01-05")
    paid = api.pay(loan, 1_200, "2026-02-01")
    api.reverse(paid["journal_entry_id"], effective_at="2026-02-20")
    assert told(statement(api, loan, from_date="2026-02-01")) == [
        ("2026-02-01", "payment_received", (-1_000, 0, 0, 200), (0, 0, 0, 200)),
        ("2026-02-20", "reversal", (1_000, 0, 0, -200), (1_000, 0, 0, 0)),
    ]


def test_within_a_day_a_balance_may_pass_below_zero_and_never_at_its_end(api: Api, loan: Loan) -> None:
    """A payment that arrives late takes what the whole day left, so that the day's first entry stands lower than it was."""
    api.disburse(loan, 100, "2026-01-05")
    api.pay(loan, 100, "2026-01-10")
    api.disburse(loan, 100, "2026-01-10")
    api.pay(loan, 60, "2026-01-08")
    body = statement(api, loan)
    assert [amounts(entry["balance"])[0] for entry in body["entries"]] == [100, 40, -60, 40]
    assert amounts(body["closing"]) == (40, 0, 0, 0)


def test_an_entry_that_loans_share_is_shown_with_the_loans_own_part(acme: Lender) -> None:
    api, (first, second, _) = acme.api, acme.loans
    api.pay(first, 100, "2026-01-05")
    api.adjust(
        "2026-01-06",
        line("2000", "DR", 60, loan_id=first.loan_id),
        line("2000", "CR", 50, loan_id=second.loan_id),
        line("1000", "CR", 10),
    )
    api.accrue("2026-01-07", (first, 0, 1), (second, 0, 2))
    assert [amounts(entry) for entry in statement(api, first)["entries"]] == [
        (0, 0, 0, 100),
        (0, 0, 0, -60),
        (0, 1, 0, 0),
    ]
    assert [amounts(entry) for entry in statement(api, second)["entries"]] == [(0, 0, 0, 50), (0, 2, 0, 0)]


def test_a_charge_off_and_a_recovery_are_on_it(api: Api, loan: Loan) -> None:
    api.disburse(loan, 1_000, "2026-01-05")
    api.serve(loan, "chargeoff", "2026-02-01", reason="Gone")
    api.serve(loan, "recoveries", "2026-02-10", 300)
    assert told(statement(api, loan))[1:] == [
        ("2026-02-01", "chargeoff", (-1_000, 0, 0, 0), (0, 0, 0, 0)),
        ("2026-02-10", "recovery", (0, 0, 0, 0), (0, 0, 0, 0)),
    ]


def test_two_entries_of_one_day_stand_as_they_were_posted(api: Api, loan: Loan) -> None:
    made = [api.disburse(loan, amount, "2026-01-05")["journal_entry_id"] for amount in range(1, 8)]
    assert [entry["journal_entry_id"] for entry in statement(api, loan)["entries"]] == made


def test_it_bears_the_loans_etag(api: Api, loan: Loan) -> None:
    before = api.get(path_of(loan)).headers["ETag"]
    api.pay(loan, 5, "2026-01-05")
    after = api.get(path_of(loan)).headers["ETag"]
    assert before != after == api.get(f"/v1/loans/{loan.loan_id}").headers["ETag"]


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_dates_in_the_wrong_order_are_refused(api: Api, loan: Loan) -> None:
    answer = api.get(path_of(loan), {"from_date": "2026-02-02", "to_date": "2026-02-01"})
    refused(answer, 400, "validation_failed", ["from_date"])


@pytest.mark.parametrize("name", ["from_date", "to_date"])
@pytest.mark.parametrize(
    "value", ["", "today", "2026-02-30", "20260201", "2026-02-01T00:00:00Z", "2026-02-01\n", "null"]
)
def test_a_bad_date_is_named(api: Api, loan: Loan, name: str, value: str) -> None:
    refused(api.get(path_of(loan), {name: value}), 400, "validation_failed", [name])


def test_unknown_and_repeated_parameters_are_refused(api: Api, loan: Loan) -> None:
    refused(api.get(path_of(loan), {"as_of_date": "2026-01-01"}), 400, "validation_failed", ["as_of_date"])
    refused(api.get(path_of(loan), {"page_size": "5"}), 400, "validation_failed", ["page_size"])
    refused(api.get(path_of(loan), {"to_date": ["2026-01-01"] * 2}), 400, "validation_failed", ["to_date"])


def test_reading_needs_the_ledgers_scope(api: Api, loan: Loan) -> None:
    shown(api.get(path_of(loan), scopes=["hpts:ledger:read"]))
    others = ["hpts:admin:*", "hpts:balances:read", "hpts:loans:read"]
    refused(api.get(path_of(loan), scopes=others), 403, "insufficient_scope")
    refused(api.get(path_of(loan), scopes=None), 401, "invalid_token")


def test_a_loan_of_another_tenant_is_unknown(acme: Lender, zenith: Lender) -> None:
    zenith.api.pay(zenith.loan, 5, "2026-01-05")
    refused(acme.api.get(path_of(zenith.loan)), 404, "not_found")
