"""POST /reconciliation/breaks/{id}/resolution: by a match, by an entry, by a reason; and what refuses each."""

from __future__ import annotations

import uuid

import pytest

from tests.conftest import Json, new_key, posted, refused
from tests.ledger.conftest import contents, race
from tests.reconciliation.conftest import BREAKS, Bank

UNKNOWN = str(uuid.UUID(int=1))


@pytest.fixture
def fee(bank: Bank) -> Json:
    """The bank took 25 dollars that the books do not know."""
    bank.imports("2026-02-01", "2026-02-28", ("2026-02-05", "-25.00", "FEE", "Account fee"))
    return bank.the("missing_in_ledger")


def test_an_adjustment_is_an_entry_with_actor_reason_and_reference(bank: Bank, fee: Json) -> None:
    made = posted(bank.resolve(fee, "adjust", account_code="5000", reason="Account fee of February"))
    entry = bank.api.entry(made["journal_entry_id"])
    assert (entry["event_type"], entry["effective_at"]) == ("manual_adjustment", "2026-02-05")
    assert entry["description"] == "Account fee of February"
    assert entry["actor"].startswith("client:")
    assert entry["lines"][0]["external_ref"] == "FEE"
    assert bank.api.lines(made["journal_entry_id"]) == ["CR 1000 2500", "DR 5000 2500"]
    assert bank.status() == ("reconciled", 0)
    ((action, actor, reason, entry_id),) = bank.rows(
        "SELECT action, actor, reason, entry_id::text FROM reconciliation_resolution"
    )
    assert (action, actor, reason) == ("adjust", entry["actor"], "Account fee of February")
    assert entry_id == made["journal_entry_id"]


def test_a_line_missing_at_the_bank_is_taken_back_by_its_adjustment(bank: Bank) -> None:
    bank.has(700, "2026-02-05", "GHOST")
    bank.imports("2026-02-01", "2026-02-28")
    posted(bank.resolve(bank.the("missing_at_bank"), "adjust", account_code="3000"))
    assert (bank.open(), bank.status()) == ([], ("reconciled", 0))


def test_a_repeat_replays(bank: Bank, fee: Json) -> None:
    key = new_key()
    body = {"action": "adjust", "reason": "Fee", "account_code": "5000"}
    path = f"{BREAKS}/{fee['break_id']}/resolution"
    first = bank.api.post(path, body, key=key)
    again = bank.api.post(path, body, key=key)
    assert (first.status_code, again.status_code, again.content) == (201, 200, first.content)
    refused(bank.api.post(path, body | {"reason": "Other"}, key=key), 422, "idempotency_mismatch")


def test_many_who_resolve_at_once_post_once(bank: Bank, fee: Json) -> None:
    bank.api.token()
    path = f"{BREAKS}/{fee['break_id']}/resolution"
    body = {"action": "adjust", "reason": "Fee", "account_code": "5000"}
    answers = race(*[lambda: bank.api.in_a_thread().post(path, body)] * 4)
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]  # type: ignore[union-attr]
    assert bank.rows("SELECT count(*) FROM journal_entry") == [(1,)]


def test_a_match_by_hand_closes_the_other_sides_break_too(bank: Bank) -> None:
    entry = bank.has(900, "2026-02-20", "OTHER")
    bank.has(900, "2026-02-25", "THIRD")
    bank.imports("2026-02-01", "2026-02-28", ("2026-02-03", "9.00", "MINE"))
    assert bank.kinds() == {"missing_in_ledger": 1, "missing_at_bank": 2}
    posted(bank.resolve(bank.the("missing_in_ledger"), "match", journal_entry_id=entry))
    assert bank.open() == [("missing_at_bank", 900, "THIRD")]


def test_two_entries_that_the_bank_never_saw_are_matched_with_each_other(bank: Bank) -> None:
    bank.has(900, "2026-02-05", "A")
    back = bank.has(-900, "2026-02-20", "B")
    bank.imports("2026-02-01", "2026-02-28")
    first = next(found for found in bank.breaks(state="open") if found["reference"] == "A")
    posted(bank.resolve(first, "match", journal_entry_id=back))
    assert (bank.open(), bank.status()) == ([], ("reconciled", 0))


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["action", "reason"]),
        ({"action": "forget", "reason": "x"}, ["action"]),
        ({"action": "explain"}, ["reason"]),
        ({"action": "explain", "reason": ""}, ["reason"]),
        ({"action": "explain", "reason": "x", "account_code": "5000"}, ["account_code"]),
        ({"action": "adjust", "reason": "x"}, ["account_code"]),
        ({"action": "adjust", "reason": "x", "account_code": "1000"}, ["account_code"]),
        ({"action": "adjust", "reason": "x", "account_code": "1100"}, ["account_code"]),
        ({"action": "adjust", "reason": "x", "account_code": "5000", "journal_entry_id": UNKNOWN}, ["journal_entry_id"]),
        ({"action": "match", "reason": "x"}, ["journal_entry_id"]),
        ({"action": "match", "reason": "x", "journal_entry_id": "1"}, ["journal_entry_id"]),
        ({"action": "explain", "reason": "x", "note": "y"}, ["note"]),
    ],
)  # fmt: skip
def test_a_body_that_says_nothing_is_refused(bank: Bank, fee: Json, body: Json, fields: list[str]) -> None:
    before = contents(bank.lender.tenant_id)
    refused(bank.api.post(f"{BREAKS}/{fee['break_id']}/resolution", body), 400, "validation_failed", fields)
    assert contents(bank.lender.tenant_id) == before


def test_what_does_not_fit_is_refused_and_leaves_nothing(bank: Bank, fee: Json) -> None:
    other = bank.has(-2_400, "2026-02-05")
    elsewhere = bank.has(-2_500, "2026-02-05", account="1010")
    before = contents(bank.lender.tenant_id)
    refused(bank.resolve(fee, "match", journal_entry_id=other), 422, "resolution_refused")
    refused(bank.resolve(fee, "match", journal_entry_id=elsewhere), 422, "resolution_refused")
    refused(bank.resolve(fee, "match", journal_entry_id=str(uuid.uuid4())), 422, "entry_not_found")
    refused(bank.resolve(fee, "adjust", account_code="7777"), 422, "account_not_found")
    refused(bank.resolve(fee | {"break_id": str(uuid.uuid4())}, "explain"), 404, "not_found")
    assert contents(bank.lender.tenant_id) == before


def test_an_entry_that_is_matched_is_not_matched_again(bank: Bank) -> None:
    entry = bank.has(500, "2026-02-03", "A")
    bank.imports("2026-02-01", "2026-02-28", ("2026-02-03", "5.00", "A"), ("2026-02-20", "5.00", "B"))
    refused(bank.resolve(bank.the("missing_in_ledger"), "match", journal_entry_id=entry), 422, "resolution_refused")


def test_a_closed_account_takes_no_adjustment(bank: Bank, fee: Json) -> None:
    posted(bank.api.post("/v1/accounts/5100/closure", {"reason": "Not used"}))
    refused(bank.resolve(fee, "adjust", account_code="5100"), 422, "account_closed")
    assert bank.the("missing_in_ledger") == fee


def test_another_date_has_nothing_to_adjust_and_is_matched(bank: Bank) -> None:
    bank.has(500, "2026-02-03", "A")
    bank.imports("2026-02-01", "2026-02-28", ("2026-02-20", "5.00", "A"))
    late = bank.the("date_differs")
    refused(bank.resolve(late, "adjust", account_code="5000"), 422, "resolution_refused")
    # Without an id it is the entry that the break names.
    assert posted(bank.resolve(late, "match"))["journal_entry_id"] == late["journal_entry_id"]
    assert bank.status() == ("reconciled", 0)


def test_in_a_closed_period_the_adjustment_is_dated_on_the_first_open_day(bank: Bank, fee: Json) -> None:
    bank.api.close_period("2026-02-28")
    made = posted(bank.resolve(fee, "adjust", account_code="5000"))
    assert bank.api.entry(made["journal_entry_id"])["effective_at"] == "2026-03-01"
    # It counts where the bank's line does.
    assert bank.status() == ("reconciled", 0)
    bank.imports("2026-03-01", "2026-03-31", opening="-25.00")
    assert (bank.open(), bank.status()) == ([], ("reconciled", 0))


def test_an_opening_balance_that_the_books_do_not_have_is_a_break_of_its_own(bank: Bank) -> None:
    bank.imports("2026-02-01", "2026-02-28", opening="80.00")
    found = bank.the("amount_differs")
    assert (found["amount_minor"], found["reference"], found["value_date"]) == ("8000", "opening balance", "2026-02-01")
    assert bank.status() == ("unreconciled", 8_000)
    refused(bank.resolve(found, "match", journal_entry_id=str(uuid.uuid4())), 422, "resolution_refused")
    posted(bank.resolve(found, "adjust", account_code="3000"))
    assert bank.status() == ("reconciled", 0)
    bank.imports("2026-03-01", "2026-03-31", opening="80.00")
    assert (bank.open(), bank.status()) == ([], ("reconciled", 0))


def test_an_explained_opening_balance_stays_explained_until_the_books_have_it(bank: Bank) -> None:
    bank.imports("2026-02-01", "2026-02-28", opening="80.00")
    posted(bank.resolve(bank.the("amount_differs"), "explain", reason="From before these books"))
    assert bank.status() == ("reconciled", 8_000)
    bank.imports("2026-03-01", "2026-03-31", opening="80.00")
    assert (bank.open(), bank.status()) == ([], ("reconciled", 8_000))
    bank.has(8_000, "2026-01-01")
    bank.imports("2026-04-01", "2026-04-30", opening="80.00")
    assert (bank.open(), bank.status()) == ([], ("reconciled", 0))


def test_what_was_explained_as_on_its_way_is_matched_when_it_arrives(bank: Bank) -> None:
    bank.has(500, "2026-02-27", "SLOW")
    bank.imports("2026-02-01", "2026-02-28")
    posted(bank.resolve(bank.the("missing_at_bank"), "explain", reason="On its way"))
    assert bank.status() == ("reconciled", -500)
    bank.imports("2026-03-01", "2026-03-31", ("2026-03-02", "5.00", "SLOW"))
    assert (bank.open(), bank.status()) == ([], ("reconciled", 0))
    # A matched line counts where the bank's line does, so February agrees as well.
    assert bank.status(as_of_date="2026-02-28")[1] == 0


def test_breaks_are_listed_by_state_kind_and_account_in_pages(bank: Bank) -> None:
    bank.has(700, "2026-02-05", "GHOST")
    rows = [(f"2026-02-{day:02}", f"{day}.00", f"R{day}") for day in range(10, 16)]
    bank.imports("2026-02-01", "2026-02-28", *rows)
    posted(bank.resolve(bank.the("missing_at_bank"), "explain"))
    assert len(bank.breaks()) == 7
    assert [found["reference"] for found in bank.breaks(state="resolved")] == ["GHOST"]
    assert len(bank.breaks(kind="missing_in_ledger", bank_account_ref="operating", page_size=2)) == 6
    assert bank.breaks(bank_account_ref="other") == []
    assert [found["value_date"] for found in bank.breaks(page_size=3)] == sorted(f["value_date"] for f in bank.breaks())
    members = {"break_id", "kind", "bank_account_ref", "amount_minor", "value_date", "reference", "state", "age_days"}
    assert bank.breaks(kind="missing_in_ledger")[0].keys() == members
    assert bank.breaks(kind="missing_at_bank")[0].keys() == members | {"journal_entry_id"}
    refused(bank.api.get(BREAKS, {"kind": "odd"}), 400, "validation_failed", ["kind"])
    refused(bank.api.get(BREAKS, {"page_token": "x"}), 400, "invalid_page_token")


def test_a_break_ages_from_its_money(bank: Bank) -> None:
    day = bank.lender.today
    bank.imports(day.isoformat(), day.isoformat(), (day.isoformat(), "5.00", "A"))
    assert bank.the("missing_in_ledger")["age_days"] == 0
    bank.imports("2026-02-01", "2026-02-28", ("2026-02-01", "6.00", "B"))
    ages = {found["reference"]: found["age_days"] for found in bank.breaks(kind="missing_in_ledger")}
    assert ages["B"] == (day - day.replace(year=2026, month=2, day=1)).days
