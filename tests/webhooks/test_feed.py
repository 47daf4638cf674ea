"""GET /v1/events: the feed by pages and by waiting, without holding what others need."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Json, Lender, refused, shown
from tests.ledger.conftest import session
from tests.webhooks.conftest import announce, eventually, pay, rows
from webhooks import queries, relay, views

PATH = "/v1/events"


def ask(lender: Lender, **query: Any) -> Json:
    return shown(lender.api.get(PATH, query))


def test_a_consumer_reads_on_from_its_cursor_and_sees_each_event_once(lent: Lender) -> None:
    seen: list[int] = []
    cursor = "0"
    for _ in range(4):
        pay(lent, 3)
        announce(lent)
        while (page := ask(lent, after=cursor, page_size=2))["items"]:
            seen += [item["sequence"] for item in page["items"]]
            cursor = page["next_cursor"]
    assert seen == list(range(1, 14))
    assert ask(lent, after=cursor) == {"items": [], "next_cursor": "13"}


def test_without_a_cursor_it_begins_with_the_first_event(lent: Lender) -> None:
    assert ask(lent)["items"] == ask(lent, after="0")["items"]
    assert ask(lent)["items"][0]["sequence"] == 1


def test_a_feed_without_events_is_empty(acme: Lender) -> None:
    assert ask(acme) == {"items": [], "next_cursor": "0"}


def test_a_filter_moves_the_cursor_over_what_it_leaves_out(lent: Lender, monkeypatch: pytest.MonkeyPatch) -> None:
    paid = pay(lent, 8)
    reversal = lent.api.reverse(paid[0])["journal_entry_id"]
    announce(lent)
    page = ask(lent, event_type="reversal")
    assert [item["journal_entry_id"] for item in page["items"]] == [reversal]
    assert page["next_cursor"] == "10"
    assert ask(lent, event_type="chargeoff") == {"items": [], "next_cursor": "10"}
    monkeypatch.setattr(queries, "FEED_WINDOW", 4)
    assert ask(lent, event_type="reversal") == {"items": [], "next_cursor": "4"}
    assert ask(lent, event_type="reversal", after="8")["items"][0]["sequence"] == 10


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"after": "x"}, "after"),
        ({"after": "-1"}, "after"),
        ({"after": "01"}, "after"),
        ({"after": "1" * 19}, "after"),
        ({"after": ""}, "after"),
        ({"wait": "21"}, "wait"),
        ({"wait": "1.5"}, "wait"),
        ({"event_type": "x"}, "event_type"),
        ({"page_size": "501"}, "page_size"),
        ({"since": "1"}, "since"),
    ],
)
def test_a_wrong_question_is_refused(acme: Lender, query: Json, field: str) -> None:
    refused(acme.api.get(PATH, query), 400, "validation_failed", [field])


def test_a_cursor_from_a_future_that_was_lost_is_refused(lent: Lender) -> None:
    """After a restore to an earlier time a consumer must not wait for ever."""
    body = refused(lent.api.get(PATH, {"after": "99", "wait": 20}), 400, "validation_failed", ["after"])
    assert body["errors"][0]["code"] == "out_of_range"


def test_it_asks_for_the_scope_of_the_journal(acme: Lender) -> None:
    refused(acme.api.get(PATH, scopes=None), 401, "invalid_token")
    refused(acme.api.get(PATH, scopes=("hpts:admin:webhooks",)), 403, "insufficient_scope")
    shown(acme.api.get(PATH, scopes=("hpts:ledger:read",)))


def test_a_tenant_reads_its_own_feed(lent: Lender, zenith: Lender) -> None:
    assert ask(zenith)["items"] == []
    refused(zenith.api.get(PATH, {"after": "1"}), 400, "validation_failed", ["after"])


def test_a_wait_ends_when_an_event_comes(lent: Lender) -> None:
    api = lent.api.in_a_thread()
    answers: list[Json] = []
    waiting = threading.Thread(target=lambda: answers.append(shown(api.get(PATH, {"after": "1", "wait": 20}))))
    began = time.monotonic()
    waiting.start()
    eventually(lambda: views._places._value < views.settings.WAITING_READERS)
    (entry_id,) = pay(lent)
    announce(lent)
    waiting.join(10)
    assert time.monotonic() - began < 10
    assert [item["journal_entry_id"] for item in answers[0]["items"]] == [entry_id]


def test_a_wait_ends_in_time_and_holds_no_transaction(lent: Lender) -> None:
    api = lent.api.in_a_thread()
    answers: list[Json] = []
    waiting = threading.Thread(target=lambda: answers.append(shown(api.get(PATH, {"after": "1", "wait": 2}))))
    began = time.monotonic()
    waiting.start()
    open_transactions = []
    with session("superuser") as connection:
        connection.autocommit = True
        while waiting.is_alive():
            open_transactions += connection.execute(
                """SELECT now() - xact_start FROM pg_stat_activity WHERE datname = current_database()
                   AND xact_start < now() - interval '0.5 seconds' AND pid <> pg_backend_pid()"""
            ).fetchall()
            time.sleep(0.05)
    assert 1.9 < time.monotonic() - began < 5
    assert answers == [{"items": [], "next_cursor": "1"}]
    assert open_transactions == []


def test_more_than_half_of_the_threads_never_wait(lent: Lender) -> None:
    """The next one is answered at once, so that a crowd of readers leaves threads for those who post."""
    held = [views._places.acquire(blocking=False) for _ in range(views.settings.WAITING_READERS)]
    assert all(held)
    try:
        began = time.monotonic()
        assert ask(lent, after="1", wait=20) == {"items": [], "next_cursor": "1"}
        assert time.monotonic() - began < 2
        pay(lent)
        announce(lent)
        assert len(ask(lent, after="1", wait=20)["items"]) == 1
    finally:
        for _ in held:
            views._places.release()


def test_a_place_is_free_again_when_a_wait_fails(lent: Lender, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(views, "_awaited", fail)
    for _ in range(views.settings.WAITING_READERS + 1):
        assert lent.api.get(PATH, {"after": "1", "wait": 1}).status_code == 500
    assert views._places._value == views.settings.WAITING_READERS


def test_the_example_of_the_document_is_right() -> None:
    text = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text("utf-8")
    item = relay.document(
        sequence=1,
        journal_entry_id="22222222-2222-2222-2222-222222222222",
        tenant_id="11111111-1111-1111-1111-111111111111",
        event_type="payment_received",
        occurred_at="2026-03-01T12:00:00.000000Z",
        correlation_id="33333333-3333-3333-3333-333333333333",
    )
    assert relay.chained(relay.GENESIS, item) in text


def test_the_proof_of_the_document_proves_a_feed(lent: Lender) -> None:
    text = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text("utf-8")
    code = text[text.index("```python") + 9 :].partition("```")[0]
    pay(lent, 3)
    announce(lent)
    items = ask(lent)["items"]
    names: Json = {"items": items, "last_sequence": 0, "last_hash": "0" * 64, "json": json, "hashlib": hashlib}
    exec(code, names)
    assert names["last_sequence"] == 4
    items[2]["event_type"] = "reversal"
    with pytest.raises(AssertionError):
        exec(code, names | {"last_sequence": 0, "last_hash": "0" * 64})


def test_the_feed_costs_the_same_wherever_it_is_read(lent: Lender) -> None:
    pay(lent, 3)
    announce(lent)
    plan = rows(
        lent.tenant_id,
        """EXPLAIN SELECT sequence FROM webhook_event WHERE tenant_id = current_setting('hpts.tenant_id')::uuid
           AND sequence > 2 AND sequence <= 4 ORDER BY sequence LIMIT 2""",
    )
    assert any("webhook_event_pkey" in line for (line,) in plan), plan
