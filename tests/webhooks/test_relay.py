"""The relay: every entry reaches the feed once, in an order that skips nothing, chained; and each endpoint that wants it."""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from datetime import date
from typing import Any

import psycopg
import pytest
import rfc8785
from django.db import connections

from hpts import health
from ledger.events import PaymentReceived
from ledger.posting import Origin, Touches, opened
from tests.conftest import Json, Lender, shown
from tests.ledger.conftest import race, refused, scratch_database, session
from tests.webhooks.conftest import announce, eventually, pay, register, rows
from webhooks import queries, relay
from webhooks.relay import RelayStuck

ZEROS = "0" * 64


def feed(lender: Lender, **query: Any) -> list[Json]:
    items: list[Json] = shown(lender.api.get("/v1/events", {"page_size": 500} | query))["items"]
    return items


def prove(items: list[Json]) -> None:
    """What a consumer does to know that it has missed nothing: by the published rule alone."""
    previous = ZEROS
    for number, item in enumerate(items, 1):
        assert item["sequence"] == number
        assert item["previous_hash"] == previous
        plain = {name: value for name, value in item.items() if name not in ("previous_hash", "hash")}
        assert item["hash"] == hashlib.sha256(previous.encode() + rfc8785.dumps(plain)).hexdigest()
        previous = item["hash"]


def test_every_entry_is_announced_once_in_a_chain_that_can_be_proven(lent: Lender) -> None:
    entries = [shown_entry["journal_entry_id"] for shown_entry in lent.api.history(lent.loan)] + pay(lent, 5)
    announce(lent)
    items = feed(lent)
    assert [item["journal_entry_id"] for item in items] == entries
    prove(items)
    posted = lent.api.entry(entries[-1])
    assert items[-1] == items[-1] | {
        "tenant_id": lent.tenant_id,
        "event_type": "payment_received",
        "occurred_at": posted["posted_at"],
        "correlation_id": posted["correlation_id"],
    }


def test_an_entry_that_commits_late_is_not_skipped(lent: Lender) -> None:
    """Its transaction began first; what was posted meanwhile waits for it, and both are announced."""
    other = lent.loans[1]
    origin = Origin(lent.tenant_id, "client:test", str(uuid.uuid4()))
    written, go_on = threading.Event(), threading.Event()
    late: list[str] = []

    def post_slowly() -> None:
        payment = PaymentReceived(
            loan_id=other.loan_id, amount_minor=1, currency="USD", effective_at=date(2026, 2, 1), source_method="ach"
        )
        with opened(origin, Touches([other.loan_id], since=date(2026, 2, 1))) as (posting, _):
            assert posting is not None
            late.append(posting.post(payment).journal_entry_id)
            posting.flush()
            written.set()
            assert go_on.wait(20)
            posting.record()
        connections.close_all()

    thread = threading.Thread(target=post_slowly)
    thread.start()
    assert written.wait(20)
    early = pay(lent, 3)
    before = len(feed(lent))
    assert relay.relay(lent.tenant_id) == 0, "nothing may pass a transaction that still runs"
    go_on.set()
    thread.join(20)
    announce(lent)
    items = feed(lent)
    prove(items)
    assert {item["journal_entry_id"] for item in items[before:]} == {*early, *late}
    assert items[before]["journal_entry_id"] == late[0]


def test_two_relays_at_once_announce_each_entry_once(lent: Lender) -> None:
    endpoint = register(lent.api, "http://127.0.0.1:9/")
    entries = pay(lent, 12)

    def run() -> int:
        return sum(relay.relay(lent.tenant_id, limit=2) for _ in range(10))

    assert all(isinstance(count, int) for count in race(*[run] * 6))
    announce(lent)
    items = feed(lent)
    prove(items)
    assert [item["journal_entry_id"] for item in items[-12:]] == entries
    assert sorted(each["journal_entry_id"] for each in endpoint.deliveries()) == sorted(entries)


def test_a_relay_that_meets_another_one_leaves_at_once(lent: Lender) -> None:
    pay(lent)
    with session("app", lent.tenant_id) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"{lent.tenant_id} relay",))
        assert relay.relay(lent.tenant_id) == 0
    announce(lent)


def test_many_endpoints_make_transactions_smaller_and_nothing_else(
    lent: Lender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that took longer than a statement may would be tried for ever."""
    monkeypatch.setattr(relay, "MAX_DELIVERIES", 6)
    endpoints = [register(lent.api, "http://127.0.0.1:9/") for _ in range(3)]
    entries = pay(lent, 7)
    announce(lent)
    prove(feed(lent))
    for endpoint in endpoints:
        assert {each["journal_entry_id"] for each in endpoint.deliveries()} == {*entries}
    made = rows(lent.tenant_id, "SELECT count(*) FROM webhook_delivery GROUP BY xmin::text ORDER BY 1")
    assert (sum(count for (count,) in made), made[-1]) == (21, (6,))


def test_an_endpoint_gets_the_kinds_that_it_asked_for(lent: Lender) -> None:
    everything = register(lent.api, "http://127.0.0.1:9/all")
    charges = register(lent.api, "http://127.0.0.1:9/some", event_types=["manual_adjustment", "reversal"])
    (paid,) = pay(lent)
    reversed_by = lent.api.reverse(paid)["journal_entry_id"]
    announce(lent)
    assert {each["journal_entry_id"] for each in everything.deliveries()} == {paid, reversed_by}
    assert [each["journal_entry_id"] for each in charges.deliveries()] == [reversed_by]


def test_an_endpoint_hears_of_nothing_that_was_announced_before_it_came(lent: Lender) -> None:
    pay(lent)
    announce(lent)
    endpoint = register(lent.api, "http://127.0.0.1:9/")
    assert endpoint.deliveries() == []


def test_each_tenant_has_a_feed_and_deliveries_of_its_own(lent: Lender, zenith: Lender) -> None:
    theirs = register(zenith.api, "http://127.0.0.1:9/")
    zenith.api.disburse(zenith.loan, 100, "2026-01-05")
    pay(lent, 2)
    announce(lent)
    announce(zenith)
    prove(feed(lent))
    prove(feed(zenith))
    assert len(theirs.deliveries()) == len(feed(zenith)) == 1


@pytest.mark.parametrize(
    "change",
    [
        "sequence = sequence + 1",
        "hash = sha256('x')",
        "previous_hash = sha256('x')",
        "document = document || ' '",
    ],
)
def test_the_wall_takes_no_event_that_does_not_follow_the_last_one(lent: Lender, change: str) -> None:
    (entry_id,) = pay(lent)
    column, _, expression = change.partition(" = ")
    item = relay.document(
        sequence=2, journal_entry_id=entry_id, tenant_id=lent.tenant_id, event_type="payment_received",
        occurred_at="2026-02-01T00:00:00.000000Z", correlation_id=None,
    )  # fmt: skip
    values = {"sequence": "2", "previous_hash": "e.hash", "hash": "%(hash)s", "document": "%(item)s::text"}
    values[column] = expression.replace(column, values[column])
    with refused("HP010", "webhook_event_chain"), session("app", lent.tenant_id) as connection:
        row = connection.execute("SELECT encode(hash, 'hex') FROM webhook_event").fetchone()
        assert row is not None
        connection.execute(
            f"""INSERT INTO webhook_event (tenant_id, sequence, created_xid, entry_id, event_type, occurred_at, document,
                                           previous_hash, hash)
                SELECT o.tenant_id, {values["sequence"]}, o.created_xid, o.entry_id, 'payment_received', now(),
                       {values["document"]}, {values["previous_hash"]}, {values["hash"]}
                FROM outbox_message o, webhook_event e WHERE o.entry_id = %(entry)s""",
            {"entry": entry_id, "item": item, "hash": bytes.fromhex(relay.chained(row[0], item))},
        )


@pytest.mark.parametrize("role", ["owner", "superuser"])
def test_the_feed_does_not_change(lent: Lender, role: str) -> None:
    for statement in (
        "UPDATE webhook_event SET hash = hash",
        "DELETE FROM webhook_event",
        "TRUNCATE webhook_event CASCADE",
    ):
        with refused("HP001"), session(role, lent.tenant_id, replica=role == "superuser") as connection:
            connection.execute(statement)


def test_the_application_changes_no_event_and_identifies_no_row_anew(lent: Lender) -> None:
    register(lent.api, "http://127.0.0.1:9/")
    pay(lent)
    announce(lent)
    statements = [
        "UPDATE webhook_event SET hash = hash",
        "DELETE FROM webhook_event",
        "UPDATE webhook_endpoint SET url = url",
        "UPDATE webhook_endpoint SET event_types = '{}'",
        "DELETE FROM webhook_endpoint",
        "UPDATE webhook_delivery SET endpoint_id = endpoint_id",
        "UPDATE webhook_delivery SET sequence = sequence",
    ]
    for statement in statements:
        with refused("42501"), session("app", lent.tenant_id) as connection:
            connection.execute(statement)
    with refused("HP001", "webhook_delivery_kept"), session("app", lent.tenant_id) as connection:
        connection.execute("DELETE FROM webhook_delivery")


def test_a_feed_that_is_ahead_of_its_cluster_stops_loudly(lent: Lender) -> None:
    """As after a logical restore into a new cluster: new entries would sort before old ones and never be announced."""
    with scratch_database():
        with session("superuser", replica=True) as connection:
            connection.execute("ALTER TABLE webhook_event DISABLE TRIGGER ALL")
            connection.execute(
                """INSERT INTO webhook_event (tenant_id, sequence, created_xid, entry_id, event_type, occurred_at, document,
                                              previous_hash, hash)
                   VALUES (%s, 1, '99999999999', gen_random_uuid(), 'reversal', now(), '{}', '', '')""",
                (lent.tenant_id,),
            )
        with pytest.raises(RelayStuck):
            relay.relay(lent.tenant_id)


def test_readiness_is_red_when_an_entry_waits_for_more_than_a_minute(
    lent: Lender, monkeypatch: pytest.MonkeyPatch
) -> None:
    pay(lent)
    waiting = {work.tenant_id: work for work in queries.work()}
    assert waiting[lent.tenant_id].waiting_since is not None
    monkeypatch.setattr(queries, "STUCK_AFTER_SECONDS", 0.0)
    with pytest.raises(queries.RelayBehind):
        queries.check_relay()
    assert health.CHECKS["webhooks"] is queries.check_relay
    announce(lent)
    assert lent.tenant_id not in {work.tenant_id for work in queries.work()}


def test_an_entry_is_work_for_the_relay_as_soon_as_nothing_can_come_before_it(lent: Lender) -> None:
    pay(lent)
    eventually(lambda: {work.tenant_id: work.to_relay for work in queries.work()}.get(lent.tenant_id))
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        assert connection.execute("SELECT count(*) FROM webhook_event").fetchone() == (0,), (
            "nothing leaks past row security"
        )
    assert rows(lent.tenant_id, "SELECT count(*) FROM webhook_event") == [(1,)]
