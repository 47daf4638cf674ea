"""`once()`: a key's work happens at most once, whoever repeats it, whenever, and whatever dies in between.

The figures: 64 duplicates of each of 100 keys at once make 100 entries; the losers are told at once (in progress) or get
the first answer (replay), and none waits longer than a second.

Guards: without the key's lock duplicates would run side by side, and only the key's unique index would stop the second
one, at its end; `test_without_the_keys_lock_the_unique_key_alone_saves_the_books` shows it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connections

from hpts.problems import IdempotencyInProgress, IdempotencyMismatch
from ledger.errors import AmountExceedsBalance, BorrowerMismatch, LoanNotFound
from ledger.events import Event, Line
from ledger.idempotency import Answer, Call, fingerprint, once, read_key
from ledger.posting import OPEN, Posting, Touches, opened
from tests.ledger.conftest import (
    Books,
    codes,
    new_key,
    nothing_changes,
    onlooker,
    open_books,
    race,
    scratch_database,
    session,
    tear_down,
)

DUPLICATES = 64
KEYS = 100
LONGEST_WAIT_SECONDS = 1.0


def every_event(books: Books) -> dict[str, Event]:
    """One of each kind that can be posted, on the books of the fixture."""
    entries = dict(books.rows("SELECT event_type, id::text FROM journal_entry"))
    about = (3, "USD", "SETTLED", books.loan.loan_id)
    return {
        "payment_received": books.payment(books.loan, 5_000, "2025-03-01"),
        "disbursement": books.disbursement(books.loan, 700, "2025-03-01"),
        "disbursement_settled": books.settlement(entries["disbursement"], "2025-03-01"),
        "accrual": books.accrual("2025-03-01", (books.loan, 100_000, 9)),
        "reversal": books.reversal(entries["accrual"]),
        "manual_adjustment": books.adjustment("2025-03-01", Line("1300", "DR", *about), Line("4100", "CR", *about)),
    }


KINDS = ["payment_received", "disbursement", "disbursement_settled", "accrual", "reversal", "manual_adjustment"]


# --- One after the other ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_repeated_key_gets_the_first_answer_and_posts_nothing(books: Books, kind: str) -> None:
    event, key = every_event(books)[kind], new_key()
    first = books.once(key, event)
    with nothing_changes(books):
        for _ in range(3):
            again = books.once(key, event)
            assert (again.replayed, again.body) == (True, first.body)
    assert not first.replayed


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_with_another_request_is_refused(books: Books, kind: str) -> None:
    """Another body, and another kind with the same body."""
    event, key = every_event(books)[kind], new_key()
    books.once(key, event)
    other = books.payment(books.loan, 1, "2025-03-02")
    with nothing_changes(books):
        with pytest.raises(IdempotencyMismatch):
            books.once(key, event, said="another body")
        with pytest.raises(IdempotencyMismatch):
            books.once(key, other, said=repr(event) if kind != "payment_received" else None)


def test_the_fingerprint_is_of_what_is_said_and_not_of_how() -> None:
    """Order of members does not count; values, null, absence, path and route do."""
    body: dict[str, Any] = {"amount_minor": "5", "loan_id": "a", "metadata": {"b": "1", "a": "2"}}
    same = {"metadata": {"a": "2", "b": "1"}, "loan_id": "a", "amount_minor": "5"}
    assert fingerprint("payments", {}, body) == fingerprint("payments", {}, same)
    others = [
        ("payments", {}, body | {"amount_minor": "05"}),
        ("payments", {}, body | {"amount_minor": 5}),
        ("payments", {}, body | {"layer": None}),
        ("payments", {}, body | {"layer": "SETTLED"}),
        ("payments", {}, body | {"loan_id": "a "}),
        ("payments", {"loan_id": "x"}, body),
        ("payments", {"loan_id": "y"}, body),
        ("reversals", {}, body),
        ("payments", {}, [body]),
    ]
    made = {fingerprint(*other) for other in others} | {fingerprint("payments", {}, body)}
    assert len(made) == len(others) + 1


@pytest.mark.parametrize("key", ["a" * 8, "A1234567", "a" * 255, "0.-_:abc"])
def test_a_key_of_the_contract_is_read(key: str) -> None:
    assert read_key(key) == key


@pytest.mark.parametrize("refusal", ["unknown loan", "wrong borrower", "more than there is", "an error of ours"])
def test_what_was_refused_leaves_the_key_free_and_nothing_behind(books: Books, refusal: str) -> None:
    """The contract keeps no refusals: the same key may be used again, for the same request or for another one."""
    key = new_key()
    good = books.payment(books.loan, 10, "2025-03-01")
    about = (1, "USD", "SETTLED", books.loan.loan_id)
    unknown = "9b4f5d6e-0000-4000-8000-000000000000"
    attempts: dict[str, tuple[type[Exception], Callable[[], object]]] = {
        "unknown loan": (LoanNotFound, lambda: books.once(key, replace(good, loan_id=unknown))),
        "wrong borrower": (BorrowerMismatch, lambda: books.once(key, replace(good, borrower_id=unknown))),
        "more than there is": (
            AmountExceedsBalance,
            lambda: books.once(
                key, books.adjustment("2025-03-01", Line("2000", "DR", *about), Line("1000", "CR", *about))
            ),
        ),
        "an error of ours": (ZeroDivisionError, lambda: _once_then_fail(books, key, good)),
    }
    expected, attempt = attempts[refusal]
    with nothing_changes(books), pytest.raises(expected):
        attempt()
    assert not books.once(key, good).replayed


def _once_then_fail(books: Books, key: str, event: Event) -> Answer:
    """The rules have decided and the entry is staged when the work fails."""

    def work(posting: Posting) -> dict[str, Any]:
        posting.post(event)
        raise ZeroDivisionError

    return once(Call(books.origin, key, fingerprint("test", {}, repr(event))), Touches.of(event), work)


def test_the_key_the_answer_and_the_entry_are_one_transaction(books: Books) -> None:
    """All of them carry the transaction's id, so there is no moment at which one exists without the others."""
    key = new_key()
    books.once(key, books.payment(books.loan, 10, "2025-03-01"))
    rows = books.rows(
        """SELECT k.xmin::text, e.xmin::text, o.xmin::text, k.response::json ->> 'journal_entry_id' = e.id::text
           FROM idempotency_key k, journal_entry e, outbox_message o
           WHERE k.key = %s AND e.event_type = 'payment_received' AND o.entry_id = e.id""",
        key,
    )
    ((of_key, of_entry, of_message, same),) = rows
    assert (of_key, of_key, same) == (of_entry, of_message, True)


# --- While the first one runs ----------------------------------------------------------------------------------------


@contextmanager
def running(books: Books, key: str, event: Event) -> Iterator[psycopg.Connection[Any]]:
    """A request of another process that has taken its key and locked its loan, and is not done."""
    with session("app") as connection:
        params = (books.tenant_id, key, "{" + ",".join(event.loan_ids) + "}", None, event.effective_at, None, "post")
        row = psycopg.RawCursor(connection).execute(OPEN.sql, params).fetchone()
        assert row is not None
        assert row[0] is True
        assert row[3] is not None
        yield connection


def test_a_duplicate_of_a_running_request_is_told_at_once(books: Books) -> None:
    """It waits neither for the key nor for the loan, which the first one holds too."""
    event, key = books.payment(books.loan, 10, "2025-03-01"), new_key()
    with nothing_changes(books), running(books, key, event):
        began = time.monotonic()
        with pytest.raises(IdempotencyInProgress):
            books.once(key, event)
        with pytest.raises(IdempotencyInProgress):
            books.once(key, event, said="another body")
        assert time.monotonic() - began < LONGEST_WAIT_SECONDS
    assert not books.once(key, event).replayed


def test_another_tenants_request_with_the_same_key_is_not_in_the_way(books: Books, other_books: Books) -> None:
    key = new_key()
    with running(books, key, books.payment(books.loan, 10, "2025-03-01")):
        assert not other_books.once(key, other_books.payment(other_books.loan, 10, "2025-03-01")).replayed


def _terminate(pid: int) -> None:
    """End a backend, as when its client's machine is gone; answers when it has ended."""
    assert onlooker().execute("SELECT pg_terminate_backend(%s, 10000)", (pid,)).fetchall() == [(True,)]


def test_a_process_that_dies_frees_its_key(books: Books) -> None:
    """There is no row that says "in progress", so there is nothing to clean up."""
    event, key = books.payment(books.loan, 10, "2025-03-01"), new_key()
    with nothing_changes(books), suppress(psycopg.OperationalError), running(books, key, event) as connection:
        with pytest.raises(IdempotencyInProgress):
            books.once(key, event)
        _terminate(connection.info.backend_pid)
    assert not books.once(key, event).replayed
    assert books.once(key, event).replayed


def test_a_process_that_dies_after_recording_and_before_committing_leaves_nothing(books: Books) -> None:
    event, key = books.payment(books.loan, 10, "2025-03-01"), new_key()

    def die() -> None:
        with opened(books.origin, Touches.of(event), key) as (posting, _):
            assert posting is not None
            posting.post(event)
            posting.record(key, b"f", "{}")
            _terminate(connections["default"].connection.info.backend_pid)

    with nothing_changes(books), pytest.raises(DatabaseError):
        die()
    assert not books.once(key, event).replayed


# --- All at once -----------------------------------------------------------------------------------------------------


def _timed(work: Callable[[], Answer]) -> tuple[str, str, float]:
    """What became of a request, its body, and how long it took."""
    began = time.monotonic()
    try:
        answer = work()
    except IdempotencyInProgress as refusal:
        return refusal.code, "", time.monotonic() - began
    return "replayed" if answer.replayed else "posted", answer.body, time.monotonic() - began


def test_64_duplicates_of_100_keys_post_100_entries() -> None:
    """Every thread sends the same hundred requests, in the same order; each has a connection of its own."""
    books = open_books(loans=10)
    for loan in books.loans:
        books.post(books.disbursement(loan, 100_000, "2025-01-10"))
    before = books.entries()
    keys = [new_key() for _ in range(KEYS)]
    events = [
        books.payment(books.loans[number % 10], 1 + number, "2025-03-01", ref=str(number)) for number in range(KEYS)
    ]

    def send_all() -> list[tuple[str, str, float]]:
        return [_timed(partial(books.once, key, event)) for key, event in zip(keys, events, strict=True)]

    outcomes = race(*[send_all] * DUPLICATES)
    failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert failed == []
    for number in range(KEYS):
        of_key = [outcome[number] for outcome in outcomes if not isinstance(outcome, Exception)]
        counts = Counter(became for became, _, _ in of_key)
        assert counts["posted"] == 1, counts
        assert counts["posted"] + counts["replayed"] + counts["idempotency_in_progress"] == DUPLICATES
        assert len({body for became, body, _ in of_key if body}) == 1, "a replay differs from the first answer"
        assert max(seconds for became, _, seconds in of_key if became != "posted") < LONGEST_WAIT_SECONDS
    became = Counter(became for outcome in outcomes if isinstance(outcome, list) for became, _, _ in outcome)
    assert became["idempotency_in_progress"] > KEYS, "the duplicates hardly met: this proves nothing"
    assert books.entries() == before + KEYS
    ((stored, messages),) = books.rows(
        "SELECT (SELECT count(*) FROM idempotency_key), (SELECT count(*) FROM outbox_message)"
    )
    assert (stored, messages) == (KEYS, before + KEYS)
    paid = sum(books.balances(loan)[("1100", "SETTLED")] for loan in books.loans)
    assert paid == 10 * 100_000 - KEYS * (KEYS + 1) // 2


def test_of_two_bodies_under_one_key_one_posts() -> None:
    """Whoever loses is told: in progress, or that the key was used for something else. None gets the other's answer."""
    books = open_books()
    books.post(books.disbursement(books.loan, 1_000_000, "2025-01-10"))
    keys = [new_key() for _ in range(40)]
    bodies = [books.payment(books.loan, amount, "2025-03-01") for amount in (3, 5)]

    def send(event: Event) -> Callable[[], list[str]]:
        def run() -> list[str]:
            became = []
            for key in keys:
                try:
                    became.append("replayed" if books.once(key, event).replayed else "posted")
                except (IdempotencyInProgress, IdempotencyMismatch) as refusal:
                    became.append(refusal.code)
            return became

        return run

    outcomes = race(*(send(bodies[number % 2]) for number in range(16)))
    posted = Counter()
    for number in range(len(keys)):
        of_key = [outcome[number] for outcome in outcomes if not isinstance(outcome, Exception)]
        assert len(of_key) == 16, outcomes
        assert of_key.count("posted") == 1
        winner = of_key.index("posted") % 2
        posted[winner] += 1
        losers = [became for number, became in enumerate(of_key) if number % 2 != winner]
        assert set(losers) <= {"idempotency_in_progress", "idempotency_mismatch"}
    assert books.balances(books.loan)[("1100", "SETTLED")] == 1_000_000 - 3 * posted[0] - 5 * posted[1]


def test_without_the_keys_lock_the_unique_key_alone_saves_the_books() -> None:
    """The guard removed on purpose: nobody is told "in progress" any more, duplicates meet at the end, and the index over
    the keys lets one of them through. On different loans, or the loan's lock would put them in a row."""
    with scratch_database():
        books = open_books(loans=8)
        for loan in books.loans:
            books.post(books.disbursement(loan, 1_000, "2025-01-10"))
        before = books.entries()
        tear_down("open_posting", ("pg_try_advisory_xact_lock(", "true OR pg_try_advisory_xact_lock("))
        collided = 0
        for _ in range(20):
            key = new_key()
            events = [books.payment(loan, 1, "2025-03-01") for loan in books.loans]
            outcomes = race(*(partial(books.once, key, event, "same") for event in events))
            collided += sum("idempotency_key_pkey" in str(outcome) for outcome in outcomes)
            assert not any(isinstance(outcome, IdempotencyInProgress) for outcome in outcomes)
            answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
            assert [answer.replayed for answer in answers].count(False) == 1
        assert collided > 0, "the duplicates never met: this proves nothing"
        assert books.entries() == before + 20


def test_a_lost_answer_is_repeated_after_the_state_has_moved_on(books: Books) -> None:
    """The replay tells what happened then, not what would happen now."""
    key = new_key()
    payment = books.payment(books.loan, 5_000, "2025-03-01")
    first = books.once(key, payment)
    books.post(books.payment(books.loan, 95_000, "2025-03-01"))
    assert codes([books.once(key, payment)]) == ["posted"]
    assert books.once(key, payment).body == first.body
