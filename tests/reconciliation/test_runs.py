"""Runs: nightly for each tenant, on demand, once; whoever comes by works them off, and a worker that dies leaves them."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError

from hpts.celery import BEAT_SCHEDULE, app
from reconciliation import reconciling, runs, tasks
from tests.conftest import Lender, posted, refused, shown
from tests.ledger.conftest import race, session
from tests.reconciliation.conftest import CLEAN, STATUS, Bank, csv_of

RUNS = "/v1/reconciliation/runs"


def test_a_run_is_queued_and_worked_off(bank: Bank) -> None:
    bank.imports("2026-02-01", "2026-02-28", ("2026-02-03", "5.00", "A"))
    bank.has(500, "2026-02-03", "A")
    assert bank.status() == ("unreconciled", 0)
    answer = bank.api.post(RUNS, {})
    made = json.loads(answer.content)
    assert answer.status_code == 202, made
    assert (made["state"], made["trigger"], made["as_of_date"]) == ("queued", "request", str(bank.lender.today))
    assert runs.work_off(bank.lender.tenant_id) == 1
    (run,) = shown(bank.api.get(RUNS))["items"]
    assert (run["run_id"], run["state"]) == (made["run_id"], "complete")
    assert (run["matched_count"], run["break_count"], run["mismatched_account_count"]) == (1, 0, 0)
    assert run["requested_at"] <= run["started_at"] <= run["finished_at"]
    assert (bank.open(), bank.status()) == ([], ("reconciled", 0))
    assert runs.work_off(bank.lender.tenant_id) == 0


def test_a_posting_after_the_import_shows_in_the_status_before_any_run(bank: Bank) -> None:
    bank.imports("2026-02-01", "2026-02-28")
    bank.has(500, "2026-02-03")
    assert bank.status() == ("unreconciled", -500)


def test_a_request_has_a_key_and_a_sound_date(bank: Bank, tomorrow: str) -> None:
    first = bank.api.post(RUNS, {"as_of_date": "2026-02-28"}, key="run-of-february")
    again = bank.api.post(RUNS, {"as_of_date": "2026-02-28"}, key="run-of-february")
    assert (first.status_code, again.status_code, again.content) == (202, 200, first.content)
    assert again.headers["Idempotency-Replayed"] == "true"
    refused(bank.api.post(RUNS, {}, key="run-of-february"), 422, "idempotency_mismatch")
    refused(bank.api.post(RUNS, {"as_of_date": tomorrow}), 400, "validation_failed", ["as_of_date"])
    refused(bank.api.post(RUNS, {"as_of_date": "x"}), 400, "validation_failed", ["as_of_date"])
    refused(bank.api.post(RUNS, {"all": True}), 400, "validation_failed", ["all"])
    assert len(shown(bank.api.get(RUNS))["items"]) == 1


def test_runs_are_listed_in_pages_latest_first(bank: Bank) -> None:
    made = [json.loads(bank.api.post(RUNS, {}).content)["run_id"] for _ in range(3)]
    first = shown(bank.api.get(RUNS, {"page_size": 2}))
    second = shown(bank.api.get(RUNS, {"page_size": 2, "page_token": first["next_page_token"]}))
    assert [run["run_id"] for run in first["items"] + second["items"]] == made[::-1]
    assert "next_page_token" not in second


def test_a_run_as_of_a_date_leaves_later_statements_alone(bank: Bank) -> None:
    bank.imports("2026-02-01", "2026-02-28")
    bank.imports("2026-03-01", "2026-03-31", ("2026-03-10", "5.00", "A"))
    bank.has(500, "2026-03-10", "A")
    bank.api.post(RUNS, {"as_of_date": "2026-02-28"})
    runs.work_off(bank.lender.tenant_id)
    assert bank.kinds() == {"missing_in_ledger": 1}
    bank.api.post(RUNS, {})
    runs.work_off(bank.lender.tenant_id)
    assert bank.open() == []


def test_a_second_run_changes_nothing(bank: Bank) -> None:
    bank.has(700, "2026-02-05", "GHOST")
    bank.imports("2026-02-01", "2026-02-28", ("2026-02-03", "5.00", "A"), opening="3.00")
    before = bank.breaks()
    bank.api.post(RUNS, {})
    runs.work_off(bank.lender.tenant_id)
    assert bank.breaks() == before


def test_a_break_that_is_another_one_now_is_superseded(bank: Bank) -> None:
    bank.imports("2026-02-01", "2026-02-28", ("2026-02-03", "5.00", "A"))
    missing = bank.the("missing_in_ledger")
    bank.has(400, "2026-02-03", "A")
    bank.api.post(RUNS, {})
    runs.work_off(bank.lender.tenant_id)
    assert bank.open() == [("amount_differs", 100, "A")]
    (gone,) = bank.breaks(state="resolved")
    assert gone["break_id"] == missing["break_id"]
    assert bank.rows("SELECT action FROM reconciliation_resolution") == [("superseded",)]


# --- Nights ----------------------------------------------------------------------------------------------------------


def test_two_beats_make_one_run_of_a_night(bank: Bank) -> None:
    tenant_id = bank.lender.tenant_id
    made = race(*[lambda: runs.request_nightly(tenant_id)] * 4)
    assert sorted(each is None for each in made) == [False, True, True, True]
    done = race(*[lambda: runs.work_off(tenant_id)] * 4)
    assert sum(each for each in done if isinstance(each, int)) == 1
    ((nightly, state),) = bank.rows("SELECT is_nightly, state FROM reconciliation_run")
    assert (nightly, state) == (True, "complete")


def test_beat_looks_around_at_every_tenant(bank: Bank, zenith: Lender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "tenants", lambda: ["no tenant", bank.lender.tenant_id, zenith.tenant_id])
    tasks.look_around()
    tasks.look_around()
    for lender in (bank.lender, zenith):
        (run,) = shown(lender.api.get(RUNS))["items"]
        assert (run["trigger"], run["state"]) == ("nightly", "complete")


def test_the_schedule_names_a_task_that_exists() -> None:
    app.loader.import_default_modules()
    assert {str(each["task"]) for each in BEAT_SCHEDULE.values()} <= set(app.tasks)


def test_without_a_broker_a_run_is_queued_all_the_same(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.work_off, "apply_async", lambda *_, **__: 1 / 0)
    assert bank.api.post(RUNS, {}).status_code == 202


def test_a_failure_is_kept_with_the_run_and_takes_its_work_back(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    bank.imports("2026-02-01", "2026-02-28", ("2026-02-03", "5.00", "A"))
    bank.has(500, "2026-02-03", "A")
    bank.api.post(RUNS, {})
    monkeypatch.setattr(runs, "mismatched_accounts", lambda _: 1 / 0)
    runs.work_off(bank.lender.tenant_id)
    (run,) = shown(bank.api.get(RUNS))["items"]
    assert (run["state"], run["detail"]) == ("failed", "ZeroDivisionError")
    assert bank.kinds() == {"missing_in_ledger": 1}


def test_a_worker_that_loses_the_database_leaves_the_run_queued(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise OperationalError("gone")

    bank.api.post(RUNS, {})
    monkeypatch.setattr(runs, "mismatched_accounts", lost)
    with pytest.raises(OperationalError):
        runs.work_off(bank.lender.tenant_id)
    monkeypatch.undo()
    assert runs.work_off(bank.lender.tenant_id) == 1


def test_an_entry_posted_while_a_run_reads_is_no_difference(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines and balance are read by one statement: with two, what comes between them would look like an opening balance."""
    bank.imports("2026-02-01", "2026-02-28")
    read = reconciling._bank_lines

    def and_then_post(*arguments: Any) -> Any:
        found = read(*arguments)
        posted_between.append(bank.in_a_thread_has(500, "2026-02-03"))
        return found

    posted_between: list[Any] = []
    bank.in_a_thread_has = lambda amount, on: race(  # type: ignore[attr-defined]
        lambda: Bank(Lender(bank.lender.tenant_id, "", [], bank.api.in_a_thread())).has(amount, on)
    )
    monkeypatch.setattr(reconciling, "_bank_lines", and_then_post)
    bank.api.token()
    bank.api.post(RUNS, {})
    runs.work_off(bank.lender.tenant_id)
    assert posted_between
    assert bank.open() == [("missing_at_bank", 500, None)]


# --- Status ----------------------------------------------------------------------------------------------------------


def test_the_status_has_the_members_of_the_contract(bank: Bank) -> None:
    bank.api.disburse(bank.lender.loan, 100_000, "2026-01-05")
    bank.imports("2026-02-01", "2026-02-28")
    body = shown(bank.api.get(STATUS, {"as_of_date": "2026-03-01"}))
    assert body.keys() == {"as_of_date", "ledger_integrity", "bank_reconciliation", "portfolio_rollup"}
    assert body["as_of_date"] == "2026-03-01"
    assert body["ledger_integrity"].keys() == {"status", "mismatched_account_count", "checked_at"}
    assert (body["ledger_integrity"]["status"], body["ledger_integrity"]["mismatched_account_count"]) == ("ok", 0)
    assert body["bank_reconciliation"] == [
        {"bank_account_ref": "operating", "status": "reconciled", "difference_minor": "0"}
    ]
    assert body["portfolio_rollup"] == {
        "status": "ok",
        "gl_principal_minor": "100000",
        "sum_of_loan_balances_minor": "100000",
    }
    early = shown(bank.api.get(STATUS, {"as_of_date": "2026-01-04"}))
    assert early["portfolio_rollup"]["sum_of_loan_balances_minor"] == "0"
    assert shown(bank.api.get(STATUS))["as_of_date"] == str(bank.lender.today)
    refused(bank.api.get(STATUS, {"as_of_date": ""}), 400, "validation_failed", ["as_of_date"])


def test_a_corrupt_loan_balance_is_a_mismatch(bank: Bank) -> None:
    bank.api.disburse(bank.lender.loan, 100_000, "2026-01-05")
    with session("superuser", replica=True) as connection:
        connection.execute("ALTER TABLE loan_balance DISABLE TRIGGER USER")
        connection.execute(
            "UPDATE loan_balance SET balance_minor = balance_minor + 1 WHERE tenant_id = %s", (bank.lender.tenant_id,)
        )
        connection.execute("ALTER TABLE loan_balance ENABLE TRIGGER USER")
        connection.execute("ALTER TABLE loan_balance ENABLE ALWAYS TRIGGER loan_balance_never_goes")
        connection.execute("ALTER TABLE loan_balance ENABLE ALWAYS TRIGGER loan_balance_identity")
    body = shown(bank.api.get(STATUS))
    assert (body["ledger_integrity"]["status"], body["ledger_integrity"]["mismatched_account_count"]) == ("mismatch", 1)
    assert body["portfolio_rollup"] == {
        "status": "mismatch",
        "gl_principal_minor": "100000",
        "sum_of_loan_balances_minor": "100001",
    }


# --- Commands --------------------------------------------------------------------------------------------------------


def told(command: str, *arguments: str) -> str:
    out = StringIO()
    call_command(command, *arguments, stdout=out)
    return out.getvalue().strip()


def test_a_file_is_imported_from_the_command_line(bank: Bank, tmp_path: Path) -> None:
    arguments = [str(CLEAN["camt053"]), "--tenant", bank.lender.tenant_id, "--bank-account", "operating"]
    made = json.loads(told("import_statement", *arguments, "--format", "camt053", "--json"))
    assert made["line_count"] == 5
    assert told("import_statement", *arguments, "--format", "camt053").startswith("This file has been imported before")
    assert bank.rows("SELECT DISTINCT actor FROM bank_statement") == [("command:import_statement",)]
    other = tmp_path / "other.csv"
    other.write_bytes(csv_of("2026-03-01", "2026-03-31", [], "41633.99").replace(b"date,", b"Datum,", 1))
    again = [str(other), *arguments[1:], "--format", "csv"]
    with pytest.raises(CommandError, match="line 1: The header is"):
        told("import_statement", *again)
    assert told("import_statement", *again, "--column", "date=Datum").startswith("Imported")
    with pytest.raises(CommandError, match="No such file"):
        told("import_statement", str(tmp_path / "none"), *arguments[1:], "--format", "csv")


def test_two_hundred_megabytes_are_refused_on_the_command_line(bank: Bank, tmp_path: Path) -> None:
    large = tmp_path / "large.csv"
    with large.open("wb") as file:
        file.truncate(200 * 1024 * 1024)
    with pytest.raises(CommandError, match="at most 128 MiB"):
        told(
            "import_statement", str(large), "--tenant", bank.lender.tenant_id, "--bank-account", "a", "--format", "csv"
        )


def test_everything_is_reconciled_from_the_command_line(bank: Bank) -> None:
    tenant = ["--tenant", bank.lender.tenant_id]
    bank.imports("2026-02-01", "2026-02-28")
    assert "operating: reconciled, bank minus ledger 0" in told("reconcile", *tenant)
    bank.has(500, "2026-02-03")
    with pytest.raises(CommandError, match="Not everything agrees"):
        told("reconcile", *tenant)
    assert bank.kinds() == {"missing_at_bank": 1}
    posted(bank.resolve(bank.the("missing_at_bank"), "explain"))
    ((found,),) = [json.loads(told("reconcile", *tenant, "--json"))]
    assert found["bank_reconciliation"][0] == {
        "bank_account_ref": "operating",
        "status": "reconciled",
        "difference_minor": "-500",
    }
    with pytest.raises(CommandError, match="as-of-date"):
        told("reconcile", *tenant, "--as-of-date", "tomorrow")


def test_a_run_waits_for_nobody_who_is_at_it(bank: Bank) -> None:
    """Another worker holds the run's row: this one passes on."""
    bank.api.post(RUNS, {})
    with session("app", bank.lender.tenant_id) as connection:
        connection.execute("SELECT FROM reconciliation_run FOR UPDATE")
        assert runs.work_off(bank.lender.tenant_id) == 0
    assert runs.work_off(bank.lender.tenant_id) == 1


def test_the_database_refuses_a_second_night(bank: Bank) -> None:
    runs.request_nightly(bank.lender.tenant_id)
    with pytest.raises(psycopg.Error), session("app", bank.lender.tenant_id) as connection:
        connection.execute(
            """INSERT INTO reconciliation_run (tenant_id, id, as_of_date, is_nightly, actor)
               SELECT tenant_id, gen_random_uuid(), as_of_date, true, 'x' FROM reconciliation_run"""
        )
