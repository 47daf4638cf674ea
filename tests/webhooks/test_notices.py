"""Notices: what is told beside entries goes to the endpoints that name its kind, once, and to nobody else."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hpts.tenancy import tenant_transaction
from ledger.notices import BREAK_OPENED, notify
from tests.conftest import Lender, posted, refused, shown
from tests.ledger.conftest import race, session
from tests.ledger.conftest import refused as refused_by_database
from tests.webhooks.conftest import Endpoint, announce, claim, eventually, pay, register, rows, settle
from webhooks import queries, relay, worker
from webhooks.delivery import NO_ENTRY, Outcome


def open_break(lender: Lender, times: int = 1) -> list[str]:
    """Have it told of new breaks, as reconciliation does; gives their ids."""
    things = {str(uuid.uuid4()): {"kind": "missing_in_ledger", "amount_minor": "5"} for _ in range(times)}
    things = {break_id: members | {"break_id": break_id} for break_id, members in things.items()}
    with tenant_transaction(lender.tenant_id) as cursor:
        notify(cursor, BREAK_OPENED, things)
    return list(things)


def relayed(lender: Lender) -> int:
    """Relay all notices; other tests' transactions may hold the horizon back for a moment."""
    count = 0
    waiting = "SELECT (SELECT count(*) FROM notice) - (SELECT count(*) FROM webhook_notice)"

    def done() -> bool:
        nonlocal count
        count += relay.relay_notices(lender.tenant_id)
        return rows(lender.tenant_id, waiting) == [(0,)]

    eventually(done)
    return count


@pytest.fixture
def endpoints(lent: Lender) -> dict[str, Endpoint]:
    """One that asked for nothing in particular, one for a kind of entry, one for breaks, one for both."""
    asked: dict[str, dict[str, Any]] = {
        "all": {},
        "payments": {"event_types": ["payment_received"]},
        "breaks": {"event_types": [BREAK_OPENED]},
        "both": {"event_types": [BREAK_OPENED, "payment_received"]},
    }
    return {name: register(lent.api, f"http://127.0.0.1:9/{name}", **more) for name, more in asked.items()}


def kinds(endpoint: Endpoint) -> list[str]:
    return sorted(each["event_type"] for each in endpoint.deliveries())


def test_only_who_names_the_kind_is_told(lent: Lender, endpoints: dict[str, Endpoint]) -> None:
    (break_id,) = open_break(lent)
    (entry_id,) = pay(lent)
    announce(lent)
    relayed(lent)
    assert {name: kinds(endpoint) for name, endpoint in endpoints.items()} == {
        "all": ["payment_received"],
        "payments": ["payment_received"],
        "breaks": [BREAK_OPENED],
        "both": ["payment_received", BREAK_OPENED],
    }
    (only,) = endpoints["breaks"].deliveries()
    assert (only["break_id"], "journal_entry_id" in only) == (break_id, False)
    (filtered,) = endpoints["both"].deliveries(event_type=BREAK_OPENED)
    assert filtered["break_id"] == break_id
    (entry,) = endpoints["all"].deliveries()
    assert (entry["journal_entry_id"], "break_id" in entry) == (entry_id, False)


def test_the_feed_is_of_entries_alone(lent: Lender) -> None:
    before = shown(lent.api.get("/v1/events"))
    open_break(lent)
    relayed(lent)
    announce(lent)
    assert shown(lent.api.get("/v1/events")) == before
    refused(lent.api.get("/v1/events", {"event_type": BREAK_OPENED}), 400, "validation_failed", ["event_type"])


def test_a_notice_is_relayed_once(lent: Lender, endpoints: dict[str, Endpoint]) -> None:
    ids = open_break(lent, 12)
    outcomes = race(*[lambda: relay.relay_notices(lent.tenant_id, limit=5)] * 5)
    assert all(isinstance(count, int) for count in outcomes), outcomes
    relayed(lent)
    assert relay.relay_notices(lent.tenant_id) == 0
    assert sorted(each["break_id"] for each in endpoints["breaks"].deliveries()) == sorted(ids)


def test_the_same_thing_is_not_told_twice(lent: Lender) -> None:
    (break_id,) = open_break(lent)
    with pytest.raises(Exception, match="notice_once"), tenant_transaction(lent.tenant_id) as cursor:
        notify(cursor, BREAK_OPENED, {break_id: {}})


def test_a_notice_that_commits_late_is_not_passed_by(lent: Lender, endpoints: dict[str, Endpoint]) -> None:
    written, go_on = threading.Event(), threading.Event()
    late = str(uuid.uuid4())

    def slowly() -> None:
        with tenant_transaction(lent.tenant_id) as cursor:
            notify(cursor, BREAK_OPENED, {late: {"break_id": late}})
            written.set()
            assert go_on.wait(20)

    thread = threading.Thread(target=lambda: race(slowly))
    thread.start()
    assert written.wait(20)
    (early,) = open_break(lent)
    assert relay.relay_notices(lent.tenant_id) == 0, "nothing may pass a transaction that still runs"
    go_on.set()
    thread.join(20)
    relayed(lent)
    assert {each["break_id"] for each in endpoints["breaks"].deliveries()} == {late, early}


def test_the_sweep_finds_a_notice_alone(lent: Lender, endpoints: dict[str, Endpoint]) -> None:
    def waits() -> bool | None:
        return {work.tenant_id: work.to_relay for work in queries.work()}.get(lent.tenant_id)

    assert not waits()
    open_break(lent)
    eventually(waits)
    eventually(lambda: (worker.relay_all(), endpoints["breaks"].deliveries())[1])
    assert not waits()


def test_a_receiver_gets_the_notice_as_it_was_written(lent: Lender, receiver: Any, deliver: Callable[..., Any]) -> None:
    endpoint = register(lent.api, receiver.url, event_types=[BREAK_OPENED])
    (break_id,) = open_break(lent)
    with deliver(lent):
        eventually(lambda: endpoint.states() == {"succeeded": 1})
    (got,) = receiver.requests
    assert json.loads(got.body) == {
        "break_id": break_id,
        "kind": "missing_in_ledger",
        "amount_minor": "5",
        "event_type": BREAK_OPENED,
        "tenant_id": lent.tenant_id,
    }


def test_a_test_of_an_endpoint_for_breaks_names_no_break(lent: Lender, endpoints: dict[str, Endpoint]) -> None:
    endpoint = endpoints["breaks"]
    made = posted(lent.api.post(f"{endpoint.path}/test", {}))
    assert made["event_type"] == BREAK_OPENED
    assert not {"break_id", "journal_entry_id"} & made.keys()
    (claimed,) = claim(lent)
    said = json.loads(claimed.body())
    assert (said["event_type"], said["break_id"]) == (BREAK_OPENED, NO_ENTRY)
    assert "journal_entry_id" not in said


def test_recovery_brings_back_notices_that_were_not_acknowledged(lent: Lender, endpoints: dict[str, Endpoint]) -> None:
    since = (datetime.now(UTC) - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    endpoint = endpoints["breaks"]
    lent.api.call("DELETE", endpoint.path)
    open_break(lent, 2)
    relayed(lent)
    assert endpoint.deliveries() == [], "a disabled endpoint is told nothing"
    posted(lent.api.post(f"{endpoint.path}/enable", {}))
    recovered = posted(lent.api.post(f"{endpoint.path}/recover", {"since": since}))
    assert recovered["delivery_count"] == 2
    settle(lent, [each for each in claim(lent) if each.endpoint_id == endpoint.endpoint_id][:1], Outcome(200))
    again = posted(lent.api.post(f"{endpoint.path}/recover", {"since": since}))
    assert again["delivery_count"] <= 1, "what was acknowledged is not sent again"
    other = posted(lent.api.post(f"{endpoints['payments'].path}/recover", {"since": since}))
    assert other["delivery_count"] == 0


def test_a_delivery_of_a_notice_is_sent_again_when_asked(lent: Lender, endpoints: dict[str, Endpoint]) -> None:
    open_break(lent)
    relayed(lent)
    (made,) = endpoints["breaks"].deliveries()
    again = posted(lent.api.post(f"/v1/webhook-deliveries/{made['delivery_id']}/redeliver", {}))
    assert (again["delivery_id"], again["break_id"]) == (made["delivery_id"], made["break_id"])


def test_a_kind_that_does_not_exist_is_refused(lent: Lender) -> None:
    body = {"url": "http://127.0.0.1:9/", "event_types": ["reconciliationBreakClosed"]}
    refused(lent.api.post("/v1/webhook-endpoints", body), 400, "validation_failed", ["event_types.0"])


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ("'7', gen_random_uuid(), 'x', '{}'", "another transaction"),
        ("pg_current_xact_id(), gen_random_uuid(), 'x', '[]'", "no object"),
    ],
)
def test_a_notice_that_is_not_whole_is_refused(lent: Lender, values: str, fault: str) -> None:
    with refused_by_database("HP014", "notice_whole"), session("app", lent.tenant_id) as connection:
        connection.execute(
            f"INSERT INTO notice (tenant_id, created_xid, id, event_type, body) VALUES ('{lent.tenant_id}', {values})"
        )


def test_what_was_relayed_stays_as_it_is(lent: Lender, endpoints: dict[str, Endpoint]) -> None:
    open_break(lent)
    relayed(lent)
    for statement in (
        "DELETE FROM webhook_notice",
        "UPDATE webhook_notice SET created_xid = '1'",
        "UPDATE webhook_delivery SET notice_id = NULL",
    ):
        with refused_by_database("HP001"), session("owner", lent.tenant_id) as connection:
            connection.execute(statement)
