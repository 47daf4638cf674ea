"""From the feed to a receiver: what is sent, when it is tried again, who may write down what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks import Webhook

from hpts.tenancy import tenant_transaction
from tests.conftest import Lender, posted
from tests.ledger.conftest import race, session
from tests.webhooks.conftest import (
    Endpoint,
    Received,
    Receiver,
    announce,
    claim,
    eventually,
    pay,
    plain,
    register,
    rows,
    settle,
)
from webhooks import delivery, queries, sender, tasks, worker
from webhooks.delivery import RETRY_SECONDS, Outcome, verdict

SCHEDULE = [0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400]
FAILED, DONE = Outcome(500), Outcome(200)
NOWHERE = "http://127.0.0.1:9/"


@pytest.fixture
def now() -> datetime:
    """An instant to begin at; tests pass later ones to make time go by."""
    return datetime.now(UTC) + timedelta(seconds=5)


def waiting(lender: Lender, times: int = 1, **members: Any) -> Endpoint:
    """An endpoint that so many deliveries wait for."""
    endpoint = register(lender.api, NOWHERE, **members)
    pay(lender, times)
    announce(lender)
    return endpoint


# --- What is sent ----------------------------------------------------------------------------------------------------


def test_a_payment_arrives_signed_and_is_verified_by_the_library_of_the_specification(
    lent: Lender, receiver: Receiver, deliver: Callable[..., Any]
) -> None:
    endpoint = register(lent.api, receiver.url)
    (entry_id,) = pay(lent)
    with deliver(lent):
        eventually(lambda: receiver.requests)
    (request,) = receiver.requests
    entry = lent.api.entry(entry_id)
    assert Webhook(endpoint.secret).verify(request.body, request.headers) == {
        "journal_entry_id": entry_id,
        "tenant_id": lent.tenant_id,
        "event_type": "payment_received",
        "occurred_at": entry["posted_at"],
        "correlation_id": entry["correlation_id"],
    }
    assert request.headers["content-type"] == "application/json"
    (delivered,) = endpoint.deliveries()
    assert request.headers["webhook-id"] == delivered["delivery_id"]
    assert (delivered["state"], delivered["attempt"], delivered["last_status"]) == ("succeeded", 1, 204)


def test_a_second_attempt_has_the_same_id_and_body_and_a_time_of_its_own(
    lent: Lender, make_receiver: Callable[..., Receiver], deliver: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0, 1.1, 300))
    receiver = make_receiver(lambda request: plain(500 if len(receiver.requests) == 1 else 200))
    endpoint = register(lent.api, receiver.url)
    pay(lent)
    with deliver(lent):
        eventually(lambda: len(receiver.requests) == 2)
        eventually(lambda: endpoint.states() == {"succeeded": 1})
    first, second = receiver.requests
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
    assert int(second.headers["webhook-timestamp"]) > int(first.headers["webhook-timestamp"])
    for request in (first, second):
        Webhook(endpoint.secret).verify(request.body, request.headers)


def test_what_a_receiver_missed_while_it_was_away_arrives_when_it_is_back(
    lent: Lender, make_receiver: Callable[..., Receiver], deliver: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5))
    away = threading.Event()
    receiver = make_receiver(lambda request: plain(503) if away.is_set() else plain(200))
    register(lent.api, receiver.url)
    away.set()
    entries = pay(lent, 10)
    with deliver(lent):
        eventually(lambda: receiver.requests)
        away.clear()
        receiver.requests.clear()
        eventually(lambda: {*receiver.entries()} == {*entries}, within=30)


# --- What an answer means --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_acknowledges(status: int) -> None:
    assert verdict(1, Outcome(status)).state == "succeeded"


@pytest.mark.parametrize("status", [None, 100, 199, 300, 301, 302, 307, 308, 400, 401, 404, 410, 429, 500, 503])
def test_nothing_else_does(status: int | None) -> None:
    assert verdict(1, Outcome(status)).state == "pending"
    assert verdict(10, Outcome(status)).state == "exhausted"


def test_the_schedule_is_the_published_one_with_a_fifth_of_jitter() -> None:
    assert list(RETRY_SECONDS) == SCHEDULE
    for attempt, wait in enumerate(SCHEDULE[1:], 1):
        assert verdict(attempt, FAILED, lambda: 0.5).delay == wait
        assert verdict(attempt, FAILED, lambda: 0.0).delay == pytest.approx(wait * 0.8)
        assert verdict(attempt, FAILED, lambda: 1.0).delay == pytest.approx(wait * 1.2)


def test_a_delivery_is_tried_ten_times_by_the_clock_and_then_listed_as_exhausted(lent: Lender, now: datetime) -> None:
    endpoint = waiting(lent)
    for number, wait in enumerate(SCHEDULE, 1):
        if wait:
            assert claim(lent, now=now + timedelta(seconds=wait - 1)) == [], f"attempt {number} came early"
        now += timedelta(seconds=wait)
        (claimed,) = claim(lent, now=now)
        assert claimed.attempt == number
        settle(lent, [claimed], FAILED, now)
    (listed,) = endpoint.deliveries(state="exhausted")
    assert (listed["attempt"], listed["last_status"]) == (10, 500)
    assert claim(lent, now=now + timedelta(days=30)) == []


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0", 0.0), ("120", 120.0), (None, None), ("soon", None), ("-5", None), ("1e9", None), ("", None)],
)
def test_retry_after_is_read(value: str | None, seconds: float | None) -> None:
    assert sender.retry_after(value) == seconds


def test_retry_after_may_be_a_date() -> None:
    later = (datetime.now(UTC) + timedelta(minutes=10)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert 590 < (sender.retry_after(later) or 0) <= 600
    assert sender.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_retry_after_moves_the_next_attempt_back_and_never_forward() -> None:
    assert verdict(1, Outcome(503, retry_after=60), lambda: 0.5).delay == 60
    assert verdict(3, Outcome(503, retry_after=60), lambda: 0.5).delay == 1_800
    assert verdict(1, Outcome(503, retry_after=10**8), lambda: 0.5).delay == 86_400


def test_an_answer_that_says_slower_holds_the_whole_endpoint_back(lent: Lender, now: datetime) -> None:
    waiting(lent, 10)
    first = claim(lent, now=now)
    settle(lent, first[:1], Outcome(429, retry_after=30), now)
    settle(lent, first[1:], DONE, now)
    assert claim(lent, now=now + timedelta(seconds=29)) == []
    assert claim(lent, now=now + timedelta(seconds=31)) != []


# --- Endpoints that are given up -------------------------------------------------------------------------------------


def test_410_disables_at_once_and_says_so(lent: Lender, now: datetime) -> None:
    endpoint = waiting(lent, 3)
    news = settle(lent, claim(lent, 1, now), Outcome(410), now)
    assert news == [(endpoint.endpoint_id, "disabled: gone")]
    assert (endpoint.shown["state"], endpoint.shown["disabled_reason"]) == ("disabled", "gone")
    assert claim(lent, now=now + timedelta(days=2)) == []
    pay(lent)
    announce(lent)
    assert len(endpoint.deliveries()) == 3, "nothing more is planned for it"


def test_five_days_of_failures_disable_and_the_days_before_are_told(lent: Lender, now: datetime) -> None:
    endpoint = waiting(lent, 40)
    told = []
    for hours in range(0, 121, 10):
        at = now + timedelta(hours=hours)
        claims = claim(lent, 1, at)
        told += settle(lent, claims, FAILED, at)
        assert (endpoint.shown["state"] == "disabled") == (hours == 120), f"after {hours} hours"
    assert [news for _, news in told] == ["failing for 1 days", "failing for 3 days", "disabled: failing"]
    assert endpoint.shown["disabled_reason"] == "failing"


def test_two_failures_that_lie_five_days_apart_do_not_disable(lent: Lender, now: datetime) -> None:
    endpoint = waiting(lent, 3)
    settle(lent, claim(lent, 1, now), FAILED, now)
    later = now + timedelta(days=6)
    settle(lent, claim(lent, 1, later), FAILED, later)
    assert endpoint.shown["state"] == "enabled"


def test_a_success_forgets_the_failures_before_it(lent: Lender, now: datetime) -> None:
    endpoint = waiting(lent, 40)
    for hours in range(0, 240, 10):
        at = now + timedelta(hours=hours)
        settle(lent, claim(lent, 1, at), DONE if hours == 100 else FAILED, at)
        if hours == 100:
            assert "failing_since" not in endpoint.shown
    assert endpoint.shown["state"] == "disabled"
    assert (endpoint.shown["failing_since"]) > (now + timedelta(hours=105)).isoformat()


# --- Claims ----------------------------------------------------------------------------------------------------------


def test_no_more_than_four_of_an_endpoint_are_in_flight_whoever_claims(lent: Lender, now: datetime) -> None:
    waiting(lent, 12)
    taken = [each for outcome in race(*[lambda: claim(lent, now=now)] * 8) for each in outcome]  # type: ignore[union-attr]
    taken += claim(lent, now=now) + claim(lent, now=now)
    assert len(taken) == len({each.delivery_id for each in taken}) == 4
    settle(lent, taken[:1], DONE, now)
    assert claim(lent, now=now) == [], "an endpoint is one worker's at a time"
    with tenant_transaction(lent.tenant_id) as cursor:
        delivery.alone(cursor)
        assert len(delivery.claim(cursor, 9, now, hands=[delivery.Hand(taken[0].endpoint_id, 3, 4)])) == 1
        assert len(delivery.claim(cursor, 9, now, hands=[delivery.Hand(taken[0].endpoint_id, 4, 7)])) == 3


def test_no_more_than_four_are_in_flight_however_quick_an_endpoint_is(
    lent: Lender, make_receiver: Callable[..., Receiver], deliver: Callable[..., Any]
) -> None:
    """A worker holds more of it than that, and two workers do not add up."""

    async def soon(request: Received) -> bytes:
        await asyncio.sleep(0.02)
        return plain(200)

    quick: Any = soon
    receiver = make_receiver(quick)
    endpoint = register(lent.api, receiver.url)
    pay(lent, 90)
    with deliver(lent), deliver(lent):
        eventually(lambda: endpoint.states() == {"succeeded": 90}, within=30)
    assert receiver.most_busy == 4
    assert len(receiver.requests) == 90


def test_what_waits_at_an_endpoint_that_begins_to_fail_goes_back(
    lent: Lender, make_receiver: Callable[..., Receiver], deliver: Callable[..., Any]
) -> None:
    """Not one after the other in the hand of a worker, for 20 s each; and it costs them no attempt."""

    def answer(request: Received) -> bytes | None:
        return plain(200) if len(receiver.requests) <= 40 else None

    receiver = make_receiver(answer)
    endpoint = register(lent.api, receiver.url)
    pay(lent, 90)
    with deliver(lent) as running:
        eventually(lambda: (len(receiver.requests), receiver.busy) == (44, 4))
        eventually(lambda: endpoint.states().get("succeeded") == 40)
        in_hand = len(running.worker._on_their_way)
        assert in_hand > 8
        running.loop.call_soon_threadsafe(running.worker._slow_down, endpoint.endpoint_id)
        eventually(lambda: endpoint.states().get("leased") == 4)
        assert {each["attempt"] for each in endpoint.deliveries(state="pending")} == {0}


def test_endpoints_are_left_to_other_workers(lent: Lender, now: datetime) -> None:
    for _ in range(8):
        register(lent.api, NOWHERE)
    pay(lent, 4)
    announce(lent)
    owners = []
    for _ in range(3):
        with tenant_transaction(lent.tenant_id) as cursor:
            delivery.alone(cursor)
            owners.append({each.endpoint_id for each in delivery.claim(cursor, 99, now, shared=True)})
    assert [len(each) for each in owners] == [4, 2, 1]
    assert len(set().union(*owners)) == 7


def test_a_failing_endpoint_is_tried_with_one_at_a_time(lent: Lender, now: datetime) -> None:
    waiting(lent, 12)
    settle(lent, claim(lent, now=now), FAILED, now)
    later = now + timedelta(seconds=1)
    tried = claim(lent, now=later)
    assert len(tried) == 1
    assert claim(lent, now=later) == []
    settle(lent, tried, DONE, later)
    assert len(claim(lent, now=later)) > 1


def test_endpoints_come_in_turn(lent: Lender, now: datetime) -> None:
    endpoints = [register(lent.api, NOWHERE) for _ in range(5)]
    pay(lent, 4)
    announce(lent)
    assert Counter(each.endpoint_id for each in claim(lent, 5, now)) == Counter(
        each.endpoint_id for each in endpoints
    ), "one of each before a second of any"


def test_failing_endpoints_get_at_most_half_of_the_room(lent: Lender, now: datetime) -> None:
    failing = [register(lent.api, NOWHERE) for _ in range(6)]
    pay(lent)
    announce(lent)
    settle(lent, claim(lent, now=now), FAILED, now)
    healthy = [register(lent.api, NOWHERE) for _ in range(2)]
    pay(lent, 3)
    announce(lent)
    claims = claim(lent, 4, now + timedelta(hours=1))
    assert len([each for each in claims if each.endpoint_id in {one.endpoint_id for one in failing}]) <= 2
    assert {each.endpoint_id for each in claims} >= {one.endpoint_id for one in healthy}


def test_the_attempt_is_counted_with_the_claim_and_a_lease_that_ends_is_anybodys(lent: Lender, now: datetime) -> None:
    endpoint = waiting(lent)
    (dead,) = claim(lent, now=now)
    assert claim(lent, now=now + timedelta(seconds=delivery.LEASE_SECONDS - 0.1)) == []
    (again,) = claim(lent, now=now + timedelta(seconds=delivery.LEASE_SECONDS))
    assert (again.delivery_id, again.attempt, again.lease_token) == (dead.delivery_id, 2, dead.lease_token + 1)
    assert endpoint.deliveries()[0]["attempt"] == 2


def test_a_worker_that_was_given_up_writes_nothing(lent: Lender, now: datetime) -> None:
    endpoint = waiting(lent)
    (slow,) = claim(lent, now=now)
    later = now + timedelta(seconds=10)
    (quick,) = claim(lent, now=later)
    settle(lent, [slow], Outcome(410), later)
    assert endpoint.shown["state"] == "enabled"
    assert endpoint.states() == {"leased": 1}
    settle(lent, [quick], DONE, later)
    settle(lent, [slow], FAILED, later)
    assert endpoint.states() == {"succeeded": 1}


def test_what_each_failed_attempt_heard_is_kept_until_there_are_twenty(lent: Lender, now: datetime) -> None:
    endpoint = waiting(lent)
    (tried,) = claim(lent, now=now)
    settle(lent, [tried], Outcome(status=500, error="a mistake"), now)
    now += timedelta(days=1)
    (lost,) = claim(lent, now=now)
    assert lost.attempt == 2
    now += timedelta(seconds=delivery.LEASE_SECONDS)
    (last,) = claim(lent, now=now)
    settle(lent, [last], DONE, now)
    assert endpoint.states() == {"succeeded": 1}

    def kept() -> list[tuple[Any, ...]]:
        with tenant_transaction(lent.tenant_id) as cursor:
            shown = queries.delivery_shown(cursor, delivery_id=last.delivery_id)
        assert shown is not None
        return [(each["attempt"], each["status"], each["error"]) for each in shown["failures"]]

    assert kept() == [(1, 500, "a mistake"), (2, None, "the worker ended")]
    for number in range(20):
        posted(lent.api.post(f"/v1/webhook-deliveries/{last.delivery_id}/redeliver", b""))
        (again,) = claim(lent)
        settle(lent, [again], Outcome(status=500, error=f"{number}"))
    assert [error for _, _, error in kept()] == [f"{number}" for number in range(20)]


def test_a_lease_is_renewed_by_its_holder_alone(lent: Lender, now: datetime) -> None:
    waiting(lent)
    (held,) = claim(lent, now=now)
    for seconds in (3, 6, 9):
        with tenant_transaction(lent.tenant_id) as cursor:
            delivery.renew(cursor, [held], now + timedelta(seconds=seconds))
    assert claim(lent, now=now + timedelta(seconds=12)) == []
    (taken,) = claim(lent, now=now + timedelta(seconds=14))
    with tenant_transaction(lent.tenant_id) as cursor:
        delivery.renew(cursor, [held], now + timedelta(seconds=60))
    (third,) = claim(lent, now=now + timedelta(seconds=19))
    assert third.lease_token == taken.lease_token + 1, "the first holder has renewed another's lease"


def test_a_lease_is_renewed_often_enough_for_the_longest_request() -> None:
    """A lease may be shorter than a request because it is renewed; a worker that stands still for so long is given up."""
    assert 3 * max(delivery.RENEWAL_SECONDS, worker.SWEEP_SECONDS) <= delivery.LEASE_SECONDS


def test_a_row_that_kills_its_workers_is_tried_by_the_schedule_and_then_dead(lent: Lender, now: datetime) -> None:
    endpoint = waiting(lent)
    for number in range(1, 11):
        (claimed,) = claim(lent, now=now)
        assert claimed.attempt == number
        now += timedelta(seconds=delivery.LEASE_SECONDS)
        assert (claim(lent, now=now) == []) == (number > 2), "twice at once, then later and later"
        if number <= 2:
            with session("app", lent.tenant_id) as connection:
                connection.execute(
                    "UPDATE webhook_delivery SET state = 'pending', attempt = attempt - 1, due_at = now()"
                )
        now += timedelta(days=2)
    assert [each["attempt"] for each in endpoint.deliveries(state="dead")] == [10]


def test_a_worker_that_is_told_to_stop_gives_back_what_it_has_not_sent(lent: Lender) -> None:
    endpoint = waiting(lent)
    claims = claim(lent)
    worker.last_words([], claims)
    (given_back,) = endpoint.deliveries()
    assert (given_back["state"], given_back["attempt"]) == ("pending", 0)


def test_tenants_share_a_workers_room(lent: Lender, zenith: Lender, monkeypatch: pytest.MonkeyPatch) -> None:
    zenith.api.disburse(zenith.loan, 1_000, "2026-01-05")
    announce(zenith)
    for lender in (lent, zenith):
        for _ in range(4):
            register(lender.api, NOWHERE)
        pay(lender, 4)
        announce(lender)
    known = {lent.tenant_id, zenith.tenant_id}
    everything = worker.queries.work
    monkeypatch.setattr(worker.queries, "work", lambda: [work for work in everything() if work.tenant_id in known])
    claims, unwritten = worker.exchange([], [], [], 8)
    assert Counter(each.tenant_id for each in claims) == dict.fromkeys(known, 4)
    assert unwritten == []


def test_one_tenants_trouble_is_not_anothers(lent: Lender, zenith: Lender, monkeypatch: pytest.MonkeyPatch) -> None:
    zenith.api.disburse(zenith.loan, 1_000, "2026-01-05")
    announce(zenith)
    for lender in (lent, zenith):
        waiting(lender, 1)
    held = claim(lent)
    results = [delivery.Result(each, DONE, verdict(1, DONE)) for each in held]
    known = {lent.tenant_id, zenith.tenant_id}
    everything, settled = worker.queries.work, delivery.settle
    monkeypatch.setattr(worker.queries, "work", lambda: [work for work in everything() if work.tenant_id in known])

    def fail(cursor: Any, results: Any, now: Any = None) -> Any:
        if results:
            raise RuntimeError("broken")
        return settled(cursor, results, now)

    monkeypatch.setattr(delivery, "settle", fail)
    claims, unwritten = worker.exchange(results, [], [], 8)
    assert {each.tenant_id for each in claims} == {zenith.tenant_id}
    assert unwritten == results, "what could not be written is written later"


def test_endpoints_that_fail_never_fill_a_worker(lent: Lender, monkeypatch: pytest.MonkeyPatch, now: datetime) -> None:
    """However many hang, and however often it asks: their requests may take 20 s, and healthy ones need the room."""
    for _ in range(6):
        register(lent.api, NOWHERE)
    pay(lent, 2)
    announce(lent)
    settle(lent, claim(lent, now=now), FAILED, now)
    healthy = register(lent.api, NOWHERE)
    pay(lent, 2)
    announce(lent)
    rows(lent.tenant_id, "UPDATE webhook_delivery SET due_at = now() WHERE state = 'pending'")
    everything = worker.queries.work
    monkeypatch.setattr(
        worker.queries, "work", lambda: [each for each in everything() if each.tenant_id == lent.tenant_id]
    )
    held: list[Any] = []
    for _ in range(5):
        failing = 2 - sum(each.failing for each in held)
        held += worker.exchange([], [], [], 8 - len(held), failing=failing)[0]
    assert sum(each.failing for each in held) == 2
    assert [each.endpoint_id for each in held if not each.failing] == [healthy.endpoint_id] * 2


# --- In company ------------------------------------------------------------------------------------------------------


def test_an_endpoint_that_hangs_slows_no_other(
    lent: Lender, make_receiver: Callable[..., Receiver], deliver: Callable[..., Any]
) -> None:
    hanging, healthy = make_receiver(lambda request: None), make_receiver()
    register(lent.api, hanging.url)
    register(lent.api, healthy.url)
    with deliver(lent):
        entries = pay(lent, 30)
        eventually(lambda: {*healthy.entries()} == {*entries}, within=10)
    assert hanging.most_busy <= 4
    assert healthy.most_busy <= 4


def test_a_poison_row_stops_nothing_and_is_dead_after_five_faults(
    lent: Lender, receiver: Receiver, deliver: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1))
    poisoned = register(lent.api, f"{receiver.url}/poisoned")
    healthy = register(lent.api, receiver.url)
    rows(lent.tenant_id, "UPDATE webhook_endpoint SET secret = 'nonsense' WHERE id = %s", poisoned.endpoint_id)
    entries = pay(lent, 40)
    with deliver(lent):
        eventually(lambda: {*receiver.entries()} == {*entries})
        eventually(lambda: poisoned.states().get("dead", 0) >= 2, within=20)
    assert {request.path for request in receiver.requests} == {"/hook"}
    dead = poisoned.deliveries(state="dead")
    assert {each["attempt"] for each in dead} == {5}
    assert "no request could be made" in dead[0]["last_error"]
    assert healthy.states() == {"succeeded": 40}


def test_two_workers_share_the_work_and_send_each_delivery_once(
    lent: Lender, receiver: Receiver, deliver: Callable[..., Any]
) -> None:
    for _ in range(4):
        register(lent.api, receiver.url)
    with deliver(lent), deliver(lent):
        entries = pay(lent, 40)
        eventually(lambda: len(receiver.requests) >= 160, within=20)
    assert Counter(receiver.entries()) == dict.fromkeys(entries, 4)


def test_what_takes_longer_than_its_lease_is_on_its_way_once(
    lent: Lender, make_receiver: Callable[..., Receiver], deliver: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(delivery, "RENEWAL_SECONDS", 0.05)
    monkeypatch.setattr(worker, "SWEEP_SECONDS", 0.1)
    again = asyncio.Event()

    async def slowly(request: Received) -> bytes:
        if len(receiver.requests) > 1:
            again.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(again.wait(), 5 * 0.6)
        return plain(200)

    slow: Any = slowly
    receiver = make_receiver(slow)
    endpoint = register(lent.api, receiver.url)
    pay(lent)
    with deliver(lent):
        eventually(lambda: endpoint.states() == {"succeeded": 1})
    assert len(receiver.requests) == 1
    assert [each["attempt"] for each in endpoint.deliveries()] == [1]


def test_a_worker_that_lost_its_own_lease_goes_on(
    lent: Lender, make_receiver: Callable[..., Receiver], deliver: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood still, say: then it finds its own row due again, and has the same delivery on its way twice."""
    claim = delivery.claim

    def only_the_first_lease_ends(*args: Any, **options: Any) -> list[delivery.Claimed]:
        claims = claim(*args, **options)
        if claims:
            monkeypatch.setattr(delivery, "LEASE_SECONDS", 60.0)
        return claims

    monkeypatch.setattr(delivery, "LEASE_SECONDS", 0.2)
    monkeypatch.setattr(delivery, "RENEWAL_SECONDS", 60.0)
    monkeypatch.setattr(delivery, "claim", only_the_first_lease_ends)
    again = asyncio.Event()

    async def slowly(request: Received) -> bytes:
        if len(receiver.requests) > 1:
            again.set()
        await again.wait()
        return plain(200)

    slow: Any = slowly
    receiver = make_receiver(slow)
    endpoint = register(lent.api, receiver.url)
    pay(lent)
    with deliver(lent):
        eventually(lambda: endpoint.states() == {"succeeded": 1})
        eventually(lambda: receiver.busy == 0)
        (entry_id,) = pay(lent)
        eventually(lambda: entry_id in receiver.entries())
    assert len(receiver.requests) > 2


def test_what_came_back_while_the_database_was_away_is_written_when_it_returns(
    lent: Lender, receiver: Receiver, deliver: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker does not send again what it knows to have arrived."""
    endpoint = register(lent.api, receiver.url)
    visit, fail = worker._visit, threading.Event()

    def visit_or_fail(tenant_id: str, brought: Any, *shares: Any) -> Any:
        if brought.results and not fail.is_set():
            fail.set()
            raise ConnectionError("the database is away")
        return visit(tenant_id, brought, *shares)

    monkeypatch.setattr(worker, "_visit", visit_or_fail)
    entries = pay(lent, 4)
    with deliver(lent):
        eventually(lambda: endpoint.states() == {"succeeded": 4})
    assert sorted(receiver.entries()) == sorted(entries)


def test_old_deliveries_are_purged_and_others_are_not(lent: Lender, now: datetime) -> None:
    endpoint = waiting(lent, 3)
    (old, recent) = claim(lent, 2, now)
    settle(lent, [old, recent], DONE, now)
    with session("superuser", replica=True) as connection:
        connection.execute("ALTER TABLE webhook_delivery DISABLE TRIGGER webhook_delivery_identity")
        connection.execute(
            """UPDATE webhook_delivery SET finished_at = now() - interval '32 days',
                      id = overlay(id::text PLACING '0190' FROM 1 FOR 4)::uuid WHERE id = %s""",
            (old.delivery_id,),
        )
        connection.execute("ALTER TABLE webhook_delivery ENABLE ALWAYS TRIGGER webhook_delivery_identity")
    tasks.purge_deliveries()
    left = {each["delivery_id"]: each["state"] for each in endpoint.deliveries()}
    assert len(left) == 2
    assert left[recent.delivery_id] == "succeeded"


def test_a_test_names_no_entry_and_is_delivered_as_everything(
    lent: Lender, receiver: Receiver, deliver: Callable[..., Any]
) -> None:
    endpoint = register(lent.api, receiver.url, event_types=["chargeoff"])
    lent.api.post(f"{endpoint.path}/test", b"")
    with deliver(lent):
        eventually(lambda: receiver.requests)
    (request,) = receiver.requests
    event = Webhook(endpoint.secret).verify(request.body, request.headers)
    assert (event["journal_entry_id"], event["event_type"]) == ("00000000-0000-0000-0000-000000000000", "chargeoff")
    assert set(event) == {"journal_entry_id", "tenant_id", "event_type", "occurred_at"}


def test_a_request_never_says_more_than_the_entry(lent: Lender) -> None:
    waiting(lent)
    (claimed,) = claim(lent)
    assert set(json.loads(claimed.body())) == {
        "journal_entry_id", "tenant_id", "event_type", "occurred_at", "correlation_id",
    }  # fmt: skip
