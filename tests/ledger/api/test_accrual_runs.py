"""Accrual runs and pauses over the API, and the calendar that makes runs; how exact they are is shown elsewhere."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest

from ledger import runs, tasks
from ledger.money import MAX_MINOR
from tests.conftest import Api, Lender, Loan, new_key, posted, refused, shown
from tests.ledger.conftest import race


@pytest.fixture
def program_id(acme: Lender) -> str:
    """Of the engine, at ten percent a year."""
    return acme.open_program(accrual_mode="engine")


@pytest.fixture
def loan(acme: Lender, program_id: str) -> Loan:
    """365,000 lent on 10 January earn 100 a day."""
    opened = acme.open_loan(program_id)
    acme.api.disburse(opened, 365_000, "2026-01-10")
    return opened


def path_of(program_id: str) -> str:
    return f"/v1/programs/{program_id}/accrual-runs"


def change_terms(api: Api, program_id: str, on: str, **terms: Any) -> Any:
    return api.post(f"/v1/programs/{program_id}/terms", {"effective_at": on} | terms)


def pause(api: Api, loan: Loan, from_date: str, to_date: str | None = None) -> Any:
    body = {"from_date": from_date} | ({"to_date": to_date} if to_date else {})
    return api.post(f"/v1/loans/{loan.loan_id}/accrual-pauses", body)


def interest(api: Api, loan: Loan) -> int:
    return int(shown(api.get(f"/v1/loans/{loan.loan_id}/balance"))["interest_receivable_minor"])


# --- Runs ------------------------------------------------------------------------------------------------------------


def test_a_run_waits_for_workers_and_shows_what_they_have_done(acme: Lender, program_id: str, loan: Loan) -> None:
    queued = posted(acme.api.post(path_of(program_id), {"accrual_date": "2026-01-20"}))
    assert (queued["state"], queued["loan_count"], queued["total_accrued_minor"]) == ("queued", 0, "0")
    assert "started_at" not in queued
    assert "finished_at" not in queued
    runs.work(acme.tenant_id, queued["accrual_run_id"])
    done = shown(acme.api.get(f"/v1/accrual-runs/{queued['accrual_run_id']}"))
    assert done["started_at"] <= done["finished_at"]
    figures = {"loan_count": 1, "accrued_count": 1, "exception_count": 0, "total_accrued_minor": "1000"}
    assert {name: done[name] for name in figures} == figures
    assert (done["state"], done["exceptions"]) == ("complete", [])
    assert interest(acme.api, loan) == 1_000


def test_its_entry_is_an_entry_like_any_other(acme: Lender, program_id: str, loan: Loan) -> None:
    run = acme.accrue_by_engine("2026-01-20", program_id)
    *_, entry = acme.api.history(loan)
    assert (entry["event_type"], entry["effective_at"], len(entry["lines"])) == ("accrual", "2026-01-20", 2)
    assert shown(acme.api.get(f"/v1/journal-entries/{entry['journal_entry_id']}"))["lines"] == entry["lines"]
    assert [line["account_code"] for line in entry["lines"]] == ["1200", "4000"]
    assert run["total_accrued_minor"] == entry["lines"][0]["amount_minor"] == "1000"


def test_asked_for_again_it_is_the_same_run_and_adds_nothing(acme: Lender, program_id: str, loan: Loan) -> None:
    first = acme.accrue_by_engine("2026-01-20", program_id)
    again = acme.accrue_by_engine("2026-01-20", program_id)
    assert again["accrual_run_id"] == first["accrual_run_id"]
    assert (again["accrued_count"], again["total_accrued_minor"]) == (1, "1000")
    assert interest(acme.api, loan) == 1_000


def test_asked_for_again_it_visits_what_is_left(acme: Lender, program_id: str, loan: Loan) -> None:
    acme.accrue_by_engine("2026-01-20", program_id)
    late = acme.open_loan(program_id)
    acme.api.disburse(late, 730_000, "2026-01-19")
    again = acme.accrue_by_engine("2026-01-20", program_id)
    assert (again["loan_count"], again["accrued_count"], again["total_accrued_minor"]) == (2, 2, "1200")
    assert (interest(acme.api, loan), interest(acme.api, late)) == (1_000, 200)


def test_a_repeated_request_answers_what_the_first_one_did(acme: Lender, program_id: str, loan: Loan) -> None:
    key = new_key()
    first = acme.api.post(path_of(program_id), {"accrual_date": "2026-01-20"}, key=key)
    runs.work(acme.tenant_id, posted(first)["accrual_run_id"])
    again = acme.api.post(path_of(program_id), {"accrual_date": "2026-01-20"}, key=key)
    assert (again.status_code, again.content) == (200, first.content)


def test_a_loan_that_cannot_be_accrued_is_named_and_stops_no_other(acme: Lender) -> None:
    program_id = acme.open_program(accrual_mode="engine", annual_rate_bps=100_000)
    small, huge = (acme.open_loan(program_id) for _ in range(2))
    acme.api.disburse(small, 365_000, "2026-01-10")
    acme.api.disburse(huge, MAX_MINOR, "2026-01-10")
    run = acme.accrue_by_engine("2026-04-20", program_id)
    assert (run["state"], run["accrued_count"], run["exception_count"]) == ("complete_with_exceptions", 1, 1)
    (exception,) = run["exceptions"]
    assert (exception["loan_id"], exception["code"]) == (huge.loan_id, "amount_out_of_range")
    assert interest(acme.api, small) == 1_000_000


def test_what_a_run_refuses(acme: Lender, program_id: str) -> None:
    tomorrow = (acme.today + timedelta(days=1)).isoformat()
    refused(acme.api.post(path_of(program_id), {"accrual_date": tomorrow}), 422, "effective_date_refused")
    refused(acme.api.post(path_of(str(uuid.uuid4())), {"accrual_date": "2026-01-20"}), 404, "not_found")
    refused(acme.api.post(path_of(acme.program_id), {"accrual_date": "2026-01-20"}), 422, "accrual_mode_refuses")
    acme.api.close_period("2026-01-31")
    refused(acme.api.post(path_of(program_id), {"accrual_date": "2026-01-31"}), 422, "period_closed")


def test_runs_are_listed_the_latest_date_first(acme: Lender, program_id: str) -> None:
    other = acme.open_program(accrual_mode="engine")
    made = [(on, of) for on in ("2026-01-20", "2026-01-21") for of in (program_id, other)]
    for on, of in made:
        acme.accrue_by_engine(on, of)
    everything = shown(acme.api.get("/v1/accrual-runs"))["items"]
    assert [run["accrual_date"] for run in everything] == ["2026-01-21", "2026-01-21", "2026-01-20", "2026-01-20"]
    own = shown(acme.api.get("/v1/accrual-runs", {"program_id": program_id}))["items"]
    assert [run["accrual_date"] for run in own] == ["2026-01-21", "2026-01-20"]
    pages, token = [], None
    while True:
        page = shown(acme.api.get("/v1/accrual-runs", {"page_size": 1} | ({"page_token": token} if token else {})))
        pages += page["items"]
        token = page.get("next_page_token")
        if token is None:
            break
    assert pages == everything
    token = shown(acme.api.get("/v1/accrual-runs", {"page_size": 1}))["next_page_token"]
    refused(acme.api.get("/v1/loans", {"page_token": token}), 400, "invalid_page_token")


# --- Who accrues -----------------------------------------------------------------------------------------------------


def test_client_and_engine_never_accrue_the_same_date(acme: Lender) -> None:
    program_id = acme.open_program()
    loan = acme.open_loan(program_id)
    api = acme.api
    api.disburse(loan, 365_000, "2026-01-10")
    api.accrue("2026-01-15", (loan, 365_000, 500))
    refused(change_terms(api, program_id, "2026-01-15", accrual_mode="engine"), 422, "effective_date_refused")
    posted(change_terms(api, program_id, "2026-01-16", accrual_mode="engine"))
    refused(api.post(path_of(program_id), {"accrual_date": "2026-01-15"}), 422, "accrual_mode_refuses")
    acme.accrue_by_engine("2026-01-20", program_id)
    assert interest(api, loan) == 500 + 500, "the engine has accrued the days from the sixteenth on"
    refused(change_terms(api, program_id, "2026-01-20", accrual_mode="client"), 422, "effective_date_refused")
    posted(change_terms(api, program_id, "2026-01-21", accrual_mode="client"))
    refused(api.post(path_of(program_id), {"accrual_date": "2026-01-21"}), 422, "accrual_mode_refuses")
    api.accrue("2026-01-21", (loan, 365_000, 70))
    assert interest(api, loan) == 1_070


def test_a_rate_may_date_back_behind_what_has_been_accrued(acme: Lender, program_id: str, loan: Loan) -> None:
    acme.accrue_by_engine("2026-01-20", program_id)
    posted(change_terms(acme.api, program_id, "2026-01-15", annual_rate_bps=2_000))
    acme.accrue_by_engine("2026-01-21", program_id)
    assert interest(acme.api, loan) == 5 * 100 + 6 * 200


# --- Pauses ----------------------------------------------------------------------------------------------------------


def test_a_pause_keeps_both_its_dates_free_of_interest(acme: Lender, program_id: str, loan: Loan) -> None:
    made = posted(pause(acme.api, loan, "2026-01-15", "2026-01-17"))
    assert made.pop("created_at").endswith("Z")
    assert made == {"loan_id": loan.loan_id, "from_date": "2026-01-15", "to_date": "2026-01-17"}
    earned = []
    for day in range(13, 20):
        acme.accrue_by_engine(f"2026-01-{day}", program_id)
        earned.append(interest(acme.api, loan))
    assert earned == [300, 400, 400, 400, 400, 500, 600]


def test_a_pause_that_dates_back_takes_its_days_back(acme: Lender, program_id: str, loan: Loan) -> None:
    acme.accrue_by_engine("2026-01-20", program_id)
    posted(pause(acme.api, loan, "2026-01-12", "2026-01-14"))
    assert int(
        shown(acme.api.get(f"/v1/loans/{loan.loan_id}/payoff", {"as_of_date": "2026-01-20"}))["payoff_minor"]
    ) == (365_000 + 700)
    acme.accrue_by_engine("2026-01-21", program_id)
    assert interest(acme.api, loan) == 800


def test_a_pause_without_an_end_lasts_until_one_from_the_same_date_ends_it(
    acme: Lender, program_id: str, loan: Loan
) -> None:
    posted(pause(acme.api, loan, "2026-01-15"))
    acme.accrue_by_engine("2026-02-20", program_id)
    assert interest(acme.api, loan) == 400
    posted(pause(acme.api, loan, "2026-01-15", "2026-02-18"))
    acme.accrue_by_engine("2026-02-21", program_id)
    assert interest(acme.api, loan) == 700


def test_what_a_pause_refuses(acme: Lender, loan: Loan) -> None:
    refused(pause(acme.api, loan, "2026-01-15", "2026-01-14"), 400, "validation_failed")
    refused(pause(acme.api, loan, "2025-12-31"), 422, "effective_date_refused")
    acme.api.close_period("2026-01-31")
    refused(pause(acme.api, loan, "2026-01-31"), 422, "period_closed")
    posted(pause(acme.api, loan, (acme.today + timedelta(days=30)).isoformat()))


# --- The calendar ----------------------------------------------------------------------------------------------------


def dates(lender: Lender, program_id: str) -> list[str]:
    """The dates of a program's runs, oldest first."""
    found = shown(lender.api.get("/v1/accrual-runs", {"program_id": program_id}))["items"]
    return [run["accrual_date"] for run in reversed(found)]


@pytest.fixture
def behind(acme: Lender) -> str:
    """A program whose loans the engine accrues since the day before yesterday, and has not yet."""
    program_id = acme.open_program()
    posted(change_terms(acme.api, program_id, (acme.today - timedelta(days=2)).isoformat(), accrual_mode="engine"))
    return program_id


def test_missed_dates_are_made_up_for_in_their_order(acme: Lender, behind: str) -> None:
    expected = [(acme.today - timedelta(days=days)).isoformat() for days in (2, 1, 0)]
    for done in range(3):
        (run_id,) = runs.due(acme.tenant_id, "schedule:test")
        assert dates(acme, behind) == expected[: done + 1], "the next one waits until this one has ended"
        runs.work(acme.tenant_id, run_id)
    assert runs.due(acme.tenant_id, "schedule:test") == []
    assert dates(acme, behind) == expected


def test_a_new_program_is_accrued_from_today_on(acme: Lender, program_id: str) -> None:
    assert len(runs.due(acme.tenant_id, "schedule:test")) == 1
    assert dates(acme, program_id) == [acme.today.isoformat()]


def test_the_engines_last_dates_are_not_forgotten_when_a_client_takes_over(acme: Lender, behind: str) -> None:
    posted(change_terms(acme.api, behind, acme.today.isoformat(), accrual_mode="client"))
    while left := runs.due(acme.tenant_id, "schedule:test"):
        runs.work(acme.tenant_id, left[0])
    assert dates(acme, behind) == [(acme.today - timedelta(days=days)).isoformat() for days in (2, 1)]


def test_dates_in_a_closed_period_are_carried_by_the_first_after_it(acme: Lender, behind: str) -> None:
    loan = acme.open_loan(behind)
    acme.api.disburse(loan, 365_000, (acme.today - timedelta(days=20)).isoformat())
    acme.api.close_period((acme.today - timedelta(days=1)).isoformat())
    (run_id,) = runs.due(acme.tenant_id, "schedule:test")
    runs.work(acme.tenant_id, run_id)
    assert dates(acme, behind) == [acme.today.isoformat()]
    assert interest(acme.api, loan) == 300


def test_two_sweeps_at_once_make_one_run(acme: Lender, behind: str) -> None:
    for _ in range(5):
        race(*[lambda: runs.due(acme.tenant_id, "schedule:test")] * 4)
    assert len(dates(acme, behind)) == 1


def test_without_a_broker_a_run_is_accepted_and_waits(
    acme: Lender, program_id: str, loan: Loan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("no broker")

    monkeypatch.setattr(tasks.accrue, "apply_async", away)
    run = posted(acme.api.post(path_of(program_id), {"accrual_date": acme.today.isoformat()}))
    assert run["state"] == "queued"
    assert shown(acme.api.get(f"/v1/accrual-runs/{run['accrual_run_id']}"))["state"] == "queued"


def test_tasks_finish_what_the_calendar_asks_for(acme: Lender, behind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As worker and beat do it: the sweep sends a run, and who ends it sends the next date's."""
    messages: list[tuple[str, str]] = []
    monkeypatch.setattr(tasks.accrue, "apply_async", lambda about, **_: messages.append(about))
    monkeypatch.setattr("ledger.queries.tenants", lambda: [acme.tenant_id])
    tasks.accrue_due()
    while messages:
        tasks.accrue(*messages.pop(0))
    assert len(dates(acme, behind)) == 3
