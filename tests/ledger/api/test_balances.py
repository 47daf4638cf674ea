"""GET /v1/loans/{id}/balance: what a loan owed at the end of a date."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.conftest import Api, Lender, Loan, line, refused, shown

MEMBERS = {
    "loan_id",
    "currency",
    "as_of_date",
    "principal_outstanding_minor",
    "interest_receivable_minor",
    "fees_receivable_minor",
    "total_exposure_minor",
}


def path_of(loan: Loan) -> str:
    return f"/v1/loans/{loan.loan_id}/balance"


def test_a_new_loan_owes_nothing_and_had_no_activity(acme: Lender) -> None:
    body = shown(acme.api.get(path_of(acme.loan)))
    assert body.keys() == MEMBERS
    assert (body["loan_id"], body["currency"]) == (acme.loan.loan_id, "USD")
    for name in MEMBERS:
        if name.endswith("_minor"):
            assert body[name] == "0"


def test_the_default_is_today_in_the_tenants_zone(acme: Lender) -> None:
    before = acme.today
    assert shown(acme.api.get(path_of(acme.loan)))["as_of_date"] in (before.isoformat(), acme.today.isoformat())


def test_entries_count_from_their_date_on(api: Api, loan: Loan) -> None:
    api.disburse(loan, 100_000, "2026-01-05")
    api.accrue("2026-01-06", (loan, 100_000, 27))
    api.charge_fee(loan, 500, "2026-01-10")
    api.pay(loan, 1_527, "2026-02-01")
    expected = {
        "2026-01-04": (0, 0, 0),
        "2026-01-05": (100_000, 0, 0),
        "2026-01-06": (100_000, 27, 0),
        "2026-01-09": (100_000, 27, 0),
        "2026-01-10": (100_000, 27, 500),
        "2026-01-31": (100_000, 27, 500),
        "2026-02-01": (99_000, 0, 0),
        "9999-12-31": (99_000, 0, 0),
        "0001-01-01": (0, 0, 0),
    }
    for on, owed in expected.items():
        body = shown(api.get(path_of(loan), {"as_of_date": on}))
        assert body["as_of_date"] == on
        assert api.owed(loan, on) == owed
        assert body["total_exposure_minor"] == str(sum(owed))


def test_a_back_dated_entry_changes_the_past(api: Api, loan: Loan) -> None:
    api.disburse(loan, 1_000, "2026-03-01")
    assert api.owed(loan, "2026-02-01") == (0, 0, 0)
    api.disburse(loan, 10, "2026-02-01")
    assert api.owed(loan, "2026-02-01") == (10, 0, 0)
    assert api.owed(loan) == (1_010, 0, 0)


def test_only_the_settled_layer_counts(api: Api, loan: Loan) -> None:
    api.disburse(loan, 1_000, "2026-01-05", layer="PENDING")
    about = {"loan_id": loan.loan_id, "layer": "ENCUMBRANCE"}
    api.adjust("2026-01-05", line("1100", "DR", 7, **about), line("3000", "CR", 7, layer="ENCUMBRANCE"))
    assert api.owed(loan) == api.owed(loan, "2026-01-05") == (0, 0, 0)


def test_last_activity_is_the_last_posting_effective_by_then(api: Api, loan: Loan) -> None:
    def last_activity(on: str | None = None) -> str | None:
        value = shown(api.get(path_of(loan), {"as_of_date": on} if on else {})).get("last_activity_at")
        return None if value is None else str(value)

    assert last_activity() is None
    first = api.disburse(loan, 1_000, "2026-02-01")
    assert last_activity() == last_activity("2026-02-01") == first["posted_at"]
    assert last_activity("2026-01-31") is None
    second = api.pay(loan, 5, "2026-03-01")
    assert last_activity() == second["posted_at"]
    assert last_activity("2026-02-28") == first["posted_at"]
    third = api.pay(loan, 5, "2026-01-15")
    assert last_activity() == last_activity("2026-03-01") == third["posted_at"]
    assert last_activity("2026-01-15") == last_activity("2026-02-28") == third["posted_at"]


def test_the_cached_and_the_summed_balance_agree(acme: Lender) -> None:
    """A date after the last entry is answered from the balance row, an earlier one from the lines: the same figures."""
    api, loan = acme.api, acme.loan
    today = acme.today
    api.disburse(loan, 1_000, "2026-02-01")
    api.charge_fee(loan, 30, "2026-02-02")
    api.pay(loan, 100, "2026-02-03")
    cached = api.owed(loan)
    api.pay(acme.loans[1], 5, today.isoformat())
    api.pay(loan, 1, today.isoformat())
    assert api.owed(loan, (today - timedelta(days=1)).isoformat()) == cached == (930, 0, 0)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "today",
        "2026-02-30",
        "20260201",
        "2026-02-01T00:00:00Z",
        "2026-2-1",
        "\u0662\u0660\u0662\u0666-\u0660\u0662-\u0660\u0661",
        "2026-02-01\n",
        "-001-01-01",
        "null",
    ],
)
def test_a_bad_date_is_named(api: Api, loan: Loan, value: str) -> None:
    refused(api.get(path_of(loan), {"as_of_date": value}), 400, "validation_failed", ["as_of_date"])


def test_unknown_and_repeated_parameters_are_refused(api: Api, loan: Loan) -> None:
    refused(api.get(path_of(loan), {"as_of": "2026-01-01"}), 400, "validation_failed", ["as_of"])
    refused(api.get(path_of(loan), {"as_of_date": ["2026-01-01"] * 2}), 400, "validation_failed", ["as_of_date"])
