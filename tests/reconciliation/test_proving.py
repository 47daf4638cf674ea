"""Proofs: what they look at, what they keep, when the night's one is due."""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connections

from hpts.tenancy import SNAPSHOT, tenant_transaction
from ledger.queries import first_id
from reconciliation import proving, tasks
from reconciliation.checks import CHECKS
from reconciliation.proving import Outcome, prove
from reconciliation.status import status
from tests.conftest import Lender
from tests.ledger.conftest import Books, open_books, race, refused, session
from tests.ledger.test_proof import E, L


@pytest.fixture
def books(open_database: None) -> Books:
    made = open_books(loans=2)
    for loan in made.loans:
        made.post(made.disbursement(loan, 100_000, "2025-01-10"))
    return made


def proven(books: Books, *, full: bool = False, jobs: int = 1) -> Outcome:
    """Proofs go as far as the oldest transaction that writes, and other tests write: repeated until it is at the end."""
    deadline = time.monotonic() + 30
    while True:
        outcome = prove(books.tenant_id, full=full, actor="test", jobs=jobs)
        ((last,),) = books.rows(
            "SELECT entry_id::text FROM outbox_message ORDER BY created_xid DESC, outbox_message.entry_id DESC LIMIT 1"
        )
        if outcome.failed or outcome.through[1] == last:
            return outcome
        assert time.monotonic() < deadline


def proofs(books: Books) -> list[tuple[Any, ...]]:
    return books.rows(
        "SELECT is_full, entry_count, line_count, breach_count, actor FROM reconciliation_proof ORDER BY finished_at"
    )


def damage(books: Books, statement: str, **names: str) -> None:
    """Spoil rows of a table as a superuser, with its walls off for that moment."""
    (table,) = (
        name
        for name in ("journal_entry", "journal_line", "loan_balance", "idempotency_key")
        if f" {name} " in statement
    )
    with session("superuser") as connection:
        walls = connection.execute(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass AND tgenabled = 'A' AND NOT tgisinternal",
            (table,),
        ).fetchall()
        connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
        assert connection.execute(statement, {"tenant": books.tenant_id} | names).rowcount > 0
        connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER ALL")
        for (wall,) in walls:
            connection.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {wall}")


# --- What a proof looks at -------------------------------------------------------------------------------------------


def test_the_first_proof_is_of_everything_and_the_next_of_what_is_new(books: Books) -> None:
    first = proven(books)
    assert (first.is_full, first.entries, first.lines, first.failed) == (True, 2, 4, [])
    nothing = proven(books)
    assert (nothing.is_full, nothing.entries) == (False, 0)
    paid = books.post(books.payment(books.loan, 1_000, "2025-02-01"))
    new = prove(books.tenant_id, full=False, actor="test")
    while new.through[1] != paid.journal_entry_id:
        new = prove(books.tenant_id, full=False, actor="test")
    assert (new.is_full, new.entries, new.lines, new.failed) == (False, 1, 2, [])
    assert set(new.findings) == {check.__name__ for check in CHECKS}
    full = proven(books, full=True, jobs=2)
    assert (full.is_full, full.entries) == (True, 3)


def test_a_tenant_without_entries_is_proven(open_database: None) -> None:
    books = open_books()
    for is_full in (True, False):
        outcome = prove(books.tenant_id, full=False, actor="test")
        assert (outcome.is_full, outcome.entries, outcome.failed) == (is_full, 0, [])


def test_what_is_new_is_taken_up_in_parts(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    proven(books)
    for number in range(5):
        books.post(books.payment(books.loans[number % 2], 10, "2025-02-01"))
    monkeypatch.setattr(proving, "ENTRIES", 2)
    heard: list[tuple[int, int]] = []
    entries = 0
    while entries < 5:
        entries += prove(books.tenant_id, full=False, actor="test", heard=lambda *step: heard.append(step)).entries
    assert entries == 5
    assert any(1 < done <= 2 for done, _ in heard), heard


NEW = "WHERE tenant_id = %(tenant)s AND"
DAMAGES = {
    "an amount grows": (
        f"{L} amount_minor = amount_minor + 1 {NEW} entry_id = %(new)s AND sequence = 1",
        "entries_balance",
    ),
    "a hash is another": (f"{E} content_hash = sha256('lost') {NEW} id = %(new)s", "documents_match_rows"),
    "a line is missing": (f"DELETE FROM journal_line {NEW} entry_id = %(new)s AND sequence = 1", "entries_are_whole"),
    "a line is dated differently": (
        f"{L} effective_at = '2025-01-20' {NEW} entry_id = %(new)s",
        "lines_belong_together",
    ),
    "a loan's balance moves": (
        f"UPDATE loan_balance SET balance_minor = balance_minor + 1 {NEW} loan_id = %(loan)s",
        "balances_match_lines",
    ),
    "a version is skipped": (f"{L} loan_version = loan_version + 1 {NEW} entry_id = %(new)s", "versions_have_no_gap"),
    "an entry has no message": (f"{E} created_xid = '3' {NEW} id = %(new)s", "outbox_has_each_entry_once"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_to_what_is_new_is_seen_until_it_is_mended(books: Books, name: str) -> None:
    statement, check = DAMAGES[name]
    proven(books)
    new = books.post(books.payment(books.loan, 1_000, "2025-02-01"))
    damage(books, statement, new=new.journal_entry_id, loan=books.loan.loan_id)
    for _ in range(2):
        outcome = prove(books.tenant_id, full=False, actor="test")
        while not outcome.failed and outcome.through[1] != new.journal_entry_id:
            outcome = prove(books.tenant_id, full=False, actor="test")
        assert (outcome.is_full, check in outcome.failed) == (False, True), outcome.failed
    assert proofs(books)[-1][3] > 0


def test_damage_to_what_was_proven_is_seen_by_a_full_proof(books: Books) -> None:
    proven(books)
    damage(books, f"{E} content_hash = sha256('lost') {NEW} loan_id = %(loan)s", loan=books.loan.loan_id)
    assert proven(books).failed == []
    assert proven(books, full=True).failed == ["documents_match_rows"]


def test_a_key_of_this_day_is_looked_at(books: Books) -> None:
    proven(books)
    books.once("proof-of-a-key-1", books.payment(books.loan, 1_000, "2025-02-01"))
    damage(books, f"UPDATE idempotency_key SET response = 'lost' {NEW} key = 'proof-of-a-key-1'")
    assert "keys_point_to_entries" in prove(books.tenant_id, full=False, actor="test").failed


def test_postings_go_on_while_the_books_are_proven(books: Books) -> None:
    done = threading.Event()

    def post() -> int:
        try:
            for _ in range(40):
                books.post(books.payment(books.loan, 1, "2025-02-01"))
            return 40
        finally:
            done.set()

    def proofs_in_turn() -> list[str]:
        failed: list[str] = []
        while not done.is_set():
            failed += prove(books.tenant_id, full=False, actor="test").failed
            failed += prove(books.tenant_id, full=True, actor="test").failed
        return failed

    assert race(post, proofs_in_turn) == [40, []]


def test_ids_begin_with_their_time() -> None:
    instant = datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC)
    before, after = (first_id(instant + timedelta(milliseconds=by)) for by in (0, 1))
    assert before < after
    assert uuid.UUID(before).int >> 80 == int(instant.timestamp() * 1000)
    assert first_id(datetime(1900, 1, 1, tzinfo=UTC)) == "00000000-0000-0000-0000-000000000000"


# --- What it keeps ---------------------------------------------------------------------------------------------------


def test_a_proof_is_kept_with_what_it_found(books: Books) -> None:
    proven(books)
    damage(
        books,
        f"UPDATE loan_balance SET balance_minor = balance_minor + 1 {NEW} loan_id = %(loan)s",
        loan=books.loan.loan_id,
    )
    proven(books, full=True)
    *_, (is_full, entries, lines, breaches, actor) = proofs(books)
    assert (is_full, entries, lines, breaches, actor) == (True, 2, 4, 2, "test")
    ((found, mismatched),) = books.rows(
        "SELECT breaches, mismatched_account_count FROM reconciliation_proof ORDER BY finished_at DESC LIMIT 1"
    )
    assert {each["check"] for each in json.loads(found)} == {"balances_match_lines", "control_accounts_match_loans"}
    assert mismatched == 1
    with refused("HP001"), session("owner", books.tenant_id) as connection:
        connection.execute("UPDATE reconciliation_proof SET breach_count = 0")
    with refused("42501"), session("app", books.tenant_id) as connection:
        connection.execute("DELETE FROM reconciliation_proof")


def test_the_status_says_what_the_last_proof_found(books: Books) -> None:
    def integrity() -> dict[str, Any]:
        with tenant_transaction(books.tenant_id, first=SNAPSHOT) as cursor:
            answer: dict[str, Any] = status(cursor, datetime.now(UTC).date())
        return answer

    proven(books)
    sound = integrity()
    assert sound["ledger_integrity"]["status"] == sound["portfolio_rollup"]["status"] == "ok"
    damage(books, f"{E} content_hash = sha256('lost') {NEW} loan_id = %(loan)s", loan=books.loan.loan_id)
    proven(books, full=True)
    found = integrity()["ledger_integrity"]
    assert (found["status"], found["mismatched_account_count"]) == ("mismatch", 0)
    assert found["checked_at"] > sound["ledger_integrity"]["checked_at"]


def test_every_control_account_counts_for_the_portfolio(books: Books) -> None:
    books.post(books.fee(books.loan, 70, "2025-02-01"))
    fees = (
        f"UPDATE loan_balance SET balance_minor = balance_minor + 1 {NEW} loan_id = %(loan)s AND account_code = '1300'"
    )
    damage(books, fees, loan=books.loan.loan_id)
    with tenant_transaction(books.tenant_id, first=SNAPSHOT) as cursor:
        portfolio = status(cursor, datetime.now(UTC).date())["portfolio_rollup"]
    assert portfolio == {"status": "mismatch", "gl_principal_minor": "200000", "sum_of_loan_balances_minor": "200000"}


def test_the_api_shows_the_last_proof(acme: Lender) -> None:
    acme.api.disburse(acme.loan, 5_000, "2026-01-05")
    prove(acme.tenant_id, full=True, actor="test")
    shown = acme.api.get("/v1/reconciliation/status").json()["ledger_integrity"]
    assert shown["status"] == "ok"
    assert shown["checked_at"] <= datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# --- Every night -----------------------------------------------------------------------------------------------------


def test_a_night_is_proven_once_and_in_full_when_the_last_full_one_is_old(
    books: Books, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = proving.prove_tonight(books.tenant_id)
    assert first is not None
    assert first.is_full
    assert proving.prove_tonight(books.tenant_id) is None
    for days, is_full in ((2, False), (9, True)):
        _age_proofs(books, days)
        outcome = proving.prove_tonight(books.tenant_id)
        assert outcome is not None
        assert outcome.is_full is is_full
        assert proving.prove_tonight(books.tenant_id) is None


def _age_proofs(books: Books, days: int) -> None:
    with session("superuser") as connection:
        connection.execute("ALTER TABLE reconciliation_proof DISABLE TRIGGER ALL")
        connection.execute(
            """UPDATE reconciliation_proof SET started_at = started_at - make_interval(days => %s),
                                               finished_at = finished_at - make_interval(days => %s) WHERE tenant_id = %s""",
            (days, days, books.tenant_id),
        )
        connection.execute("ALTER TABLE reconciliation_proof ENABLE ALWAYS TRIGGER reconciliation_proof_append_only")


def test_two_workers_do_not_prove_the_same_night(books: Books) -> None:
    with session("app") as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (f"{books.tenant_id} proof",))
        assert proving.prove_tonight(books.tenant_id) is None
        other.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (f"{books.tenant_id} proof",))
    assert proving.prove_tonight(books.tenant_id) is not None


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda *ids: monkeypatch.setattr(tasks, "tenants", lambda: [*ids])


def test_the_task_tells_the_operator_of_books_that_are_not_in_order(
    books: Books, only: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(books, f"{E} content_hash = sha256('lost') {NEW} loan_id = %(loan)s", loan=books.loan.loan_id)
    only("no tenant at all", books.tenant_id)
    with caplog.at_level(logging.ERROR):
        tasks.prove_books()
    told = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(told) == 1
    assert books.tenant_id in told[0].getMessage()
    assert "documents_match_rows" in told[0].getMessage()
    assert proofs(books)[-1][4] == proving.ACTOR
    connections["readonly"].close()
