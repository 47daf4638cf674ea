"""What differs is a break of the right kind, counted once, and the status says by how much."""

from __future__ import annotations

import pytest

from reconciliation import runs
from tests.conftest import posted, refused
from tests.reconciliation.conftest import Bank


def test_a_statement_that_the_books_know_is_reconciled(bank: Bank) -> None:
    bank.has(50_000, "2026-02-02", "WIRE-1")
    bank.has(-700, "2026-02-10")
    made = bank.imports("2026-02-01", "2026-02-28", ("2026-02-03", "500.00", "WIRE-1"), ("2026-02-10", "-7.00", ""))
    assert (made["line_count"], made["matched_count"], made["break_count"]) == (2, 2, 0)
    assert made["opening_balance_minor"] == "0"
    assert made["closing_balance_minor"] == "49300"
    assert (made["from_date"], made["to_date"], made["currency"]) == ("2026-02-01", "2026-02-28", "USD")
    assert bank.status() == ("reconciled", 0)
    assert bank.open() == []


def test_before_its_first_statement_a_bank_account_is_pending(bank: Bank) -> None:
    bank.imports("2026-02-01", "2026-02-28")
    assert bank.status(as_of_date="2026-02-27") == ("pending", 0)
    assert bank.status(as_of_date="2026-02-28") == ("reconciled", 0)


def five_breaks(bank: Bank) -> None:
    """One of each kind; the bank has 18,000 less than the books."""
    bank.has(40_000, "2026-03-02", "ACH-1")
    bank.has(31_000, "2026-03-10", "CHK-2")
    bank.has(15_000, "2026-03-12", "ACH-3")
    bank.has(27_500, "2026-03-03", "ACH-4")
    bank.has(20_000, "2026-03-20", "ACH-5")
    made = bank.imports(
        "2026-03-01",
        "2026-03-31",
        ("2026-03-02", "400.00", "ACH-1"),
        ("2026-03-05", "-25.00", "FEE-1"),
        ("2026-03-12", "105.00", "ACH-3"),
        ("2026-03-18", "275.00", "ACH-4"),
        ("2026-03-20", "200.00", "ACH-5"),
        ("2026-03-20", "200.00", "ACH-5"),
    )
    assert (made["matched_count"], made["break_count"]) == (2, 5)


def test_each_kind_of_break_is_found_once(bank: Bank) -> None:
    five_breaks(bank)
    assert sorted(bank.open()) == [
        ("amount_differs", 4_500, "ACH-3"),
        ("date_differs", 27_500, "ACH-4"),
        ("duplicate", 20_000, "ACH-5"),
        ("missing_at_bank", 31_000, "CHK-2"),
        ("missing_in_ledger", 2_500, "FEE-1"),
    ]
    assert bank.status() == ("unreconciled", -18_000)


def test_each_break_is_resolved_in_its_own_way(bank: Bank) -> None:
    five_breaks(bank)
    fee = posted(bank.resolve(bank.the("missing_in_ledger"), "adjust", account_code="5000"))
    assert bank.api.lines(fee["journal_entry_id"]) == ["CR 1000 2500", "DR 5000 2500"]
    late = bank.the("date_differs")
    matched = posted(bank.resolve(late, "match", journal_entry_id=late["journal_entry_id"]))
    assert matched == {"break_id": late["break_id"], "state": "resolved", "journal_entry_id": late["journal_entry_id"]}
    posted(bank.resolve(bank.the("amount_differs"), "adjust", account_code="5000"))
    assert posted(bank.resolve(bank.the("missing_at_bank"), "explain")).keys() == {"break_id", "state"}
    assert bank.status() == ("unreconciled", -11_000)
    posted(bank.resolve(bank.the("duplicate"), "adjust", account_code="3000"))
    assert bank.open() == []
    # What was explained still differs, and is no surprise.
    assert bank.status() == ("reconciled", -31_000)


def test_a_break_is_resolved_once(bank: Bank) -> None:
    bank.has(100, "2026-02-10")
    bank.imports("2026-02-01", "2026-02-28")
    found = bank.the("missing_at_bank")
    posted(bank.resolve(found, "explain"))
    refused(bank.resolve(found, "explain"), 409, "already_resolved")


@pytest.mark.parametrize("days", [0, 3])
def test_dates_may_differ_by_three_days(bank: Bank, days: int) -> None:
    bank.has(100, "2026-02-10", "A")
    bank.imports("2026-02-01", "2026-02-28", (f"2026-02-{10 + days}", "1.00", "A"))
    assert bank.open() == []


def test_a_line_that_the_books_date_after_the_statement_counts_where_the_bank_has_it(bank: Bank) -> None:
    """Matched across the statement's end: neither the run nor the status takes it for a difference."""
    bank.has(500, "2026-03-02", "LATE")
    made = bank.imports("2026-02-01", "2026-02-28", ("2026-02-28", "5.00", "LATE"))
    assert (made["matched_count"], made["break_count"]) == (1, 0)
    bank.api.post("/v1/reconciliation/runs", {})
    runs.work_off(bank.lender.tenant_id)
    assert (bank.open(), bank.status()) == ([], ("reconciled", 0))
    bank.imports("2026-03-01", "2026-03-31", opening="5.00")
    assert (bank.open(), bank.status()) == ([], ("reconciled", 0))
