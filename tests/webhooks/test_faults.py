"""Workers as real processes, killed while they work; receivers of every temper; a broker that forgets everything.

The ordinary run takes seconds. With HPTS_LONG=1 it is the promise in full: 10,000 events, 50 endpoints, 20 kills, 3 flushes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import psycopg
import pytest
import redis

from hpts import embedded
from ledger.events import PaymentReceived
from ledger.posting import Origin, post
from tests.conftest import Lender
from tests.ledger.conftest import scratch_database
from tests.webhooks.conftest import Endpoint, Received, Receiver, eventually, plain, register, rows
from webhooks.delivery import MOST_IN_HAND
from webhooks.worker import MAX_IN_FLIGHT

LONG = os.environ.get("HPTS_LONG") == "1"


class Worker:
    """`manage.py deliver_webhooks`, started again when it is killed."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.process = embedded.spawn(
            [sys.executable, "manage.py", "deliver_webhooks"],
            death_signal=signal.SIGKILL,
            cwd=embedded.ROOT,
            env=os.environ | {"WEBHOOK_ALLOW_PRIVATE_TARGETS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(15)
        finally:
            self.kill()


@contextmanager
def workers(count: int) -> Iterator[list[Worker]]:
    running = [Worker() for _ in range(count)]
    try:
        yield running
    finally:
        for worker in running:
            worker.kill()


@pytest.fixture
def own_database() -> Iterator[None]:
    """The workers visit every tenant; so this database has no other test's."""
    with scratch_database():
        yield


@dataclass
class Cast:
    """Receivers by temper, and the endpoints that were registered with them."""

    receivers: dict[str, Receiver]
    endpoints: dict[str, list[Endpoint]] = field(default_factory=dict)

    def seen(self, temper: str, endpoint: Endpoint) -> list[Received]:
        path = f"/{temper}/{self.endpoints[temper].index(endpoint)}"
        return [request for request in self.receivers[temper].requests if request.path == path]


def cast(lender: Lender, make_receiver: Callable[..., Receiver], counts: dict[str, int]) -> Cast:
    began = time.monotonic()
    served: Counter[int] = Counter()

    def flapping(request: Received) -> bytes:
        return plain(200 if int((time.monotonic() - began) * 2) % 2 else 503)

    def limited(request: Received) -> bytes:
        second = int(time.time())
        served[second] += 1
        return plain(200) if served[second] <= 30 else plain(429, "Retry-After: 1")

    tempers: dict[str, Callable[[Received], bytes | None]] = {
        "healthy": lambda request: plain(200),
        "failing": lambda request: plain(500),
        "hanging": lambda request: None,
        "flapping": flapping,
        "gone": lambda request: plain(410),
        "limited": limited,
    }
    made = Cast({temper: make_receiver(answer) for temper, answer in tempers.items()})
    for temper, count in counts.items():
        port = made.receivers[temper].port
        made.endpoints[temper] = [
            register(lender.api, f"http://127.0.0.1:{port}/{temper}/{number}") for number in range(count)
        ]
    return made


def post_steadily(lender: Lender, count: int, rate: float, entries: list[str]) -> None:
    """So many payments, one after the other at this rate."""
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(began + number / rate - time.monotonic(), 0))
        event = PaymentReceived(
            loan_id=lender.loans[number % 3].loan_id, amount_minor=1, currency="USD", effective_at=date(2026, 2, 1),
            source_method="ach",
        )  # fmt: skip
        entries.append(post(Origin(lender.tenant_id, "client:test", str(uuid.uuid4())), event).journal_entry_id)


def lend(lender: Lender) -> None:
    for loan in lender.loans:
        lender.api.disburse(loan, 10_000_000, "2026-01-05")


def lags(requests: list[Received]) -> list[float]:
    """Seconds from posting to the first arrival of each event, in order of size."""
    first: dict[str, float] = {}
    for request in requests:
        first.setdefault(
            request.entry_id, request.at - datetime.fromisoformat(request.event["occurred_at"]).timestamp()
        )
    return sorted(first.values())


@pytest.mark.parametrize("kills", [0, 20 if LONG else 3])
def test_every_event_reaches_every_healthy_endpoint_whoever_dies(
    own_database: None, make_lender: Callable[..., Lender], make_receiver: Callable[..., Receiver], kills: int
) -> None:
    events, rate, flushes = (10_000, 25.0, 3) if LONG else (150, 40.0, 1)
    counts = {"healthy": 10, "failing": 10, "hanging": 10, "flapping": 10, "gone": 5, "limited": 5}
    if not LONG:
        counts = {"healthy": 3, "failing": 2, "hanging": 2, "flapping": 2, "gone": 1, "limited": 1}
    acme = make_lender()
    lend(acme)
    entries: list[str] = []
    with workers(2) as running:
        eventually(lambda: rows(acme.tenant_id, "SELECT count(*) FROM webhook_event") == [(3,)], within=30)
        played = cast(acme, make_receiver, counts)
        posting = threading.Thread(target=post_steadily, args=(acme, events, rate, entries))
        posting.start()
        for number in range(kills):
            eventually(lambda: len(entries) >= events * (number + 1) // (kills + 1), within=3_600)  # noqa: B023
            running[number % 2].kill()
            running[number % 2].start()
            if number % max(kills // flushes, 1) == 0:
                with redis.Redis.from_url(os.environ["REDIS_URL"]) as broker:
                    broker.flushdb()
        posting.join()
        healthy = [played.seen("healthy", endpoint) for endpoint in played.endpoints["healthy"]]

        def arrived() -> bool:
            healthy[:] = [played.seen("healthy", endpoint) for endpoint in played.endpoints["healthy"]]
            return all({request.entry_id for request in seen} == {*entries} for seen in healthy)

        eventually(arrived, within=120, what="every event is at every healthy endpoint")
        waits = sorted(lag for seen in healthy for lag in lags(seen))
        sent, unique = sum(map(len, healthy)), events * counts["healthy"]
        print(f"kills {kills}: p99 {waits[int(len(waits) * 0.99)]:.2f} s, duplicates {sent - unique} of {unique}")
        if kills == 0 or LONG:
            assert waits[int(len(waits) * 0.99)] < 5
        assert waits[-1] < 30
        # What a killed worker had in hand is sent again: on its way, or answered and not written down. Nothing else is.
        in_hand = min(counts["healthy"] * MOST_IN_HAND, MAX_IN_FLIGHT)
        assert sent - unique <= (0.01 * unique if kills == 0 else kills * in_hand)

        if kills == 0:  # A receiver that hangs does not notice that its caller has died.
            for temper in ("gone", "failing", "hanging"):
                assert played.receivers[temper].most_busy <= 4 * counts[temper]
        for endpoint in played.endpoints["gone"]:
            assert (endpoint.shown["state"], endpoint.shown["disabled_reason"]) == ("disabled", "gone")
        # Not one is lost: each event has a delivery to each endpoint that was enabled when it was announced.
        kept = rows(
            acme.tenant_id,
            """SELECT e.url, count(d.*), count(DISTINCT d.sequence) FROM webhook_endpoint e
               JOIN webhook_delivery d ON d.endpoint_id = e.id WHERE e.state = 'enabled' GROUP BY e.url""",
        )
        assert {(total, distinct) for _, total, distinct in kept} == {(events, events)}
        assert len(kept) == sum(counts.values()) - counts["gone"]


def test_a_hanging_endpoint_with_a_long_queue_delays_nobody(
    own_database: None, make_lender: Callable[..., Lender], make_receiver: Callable[..., Receiver]
) -> None:
    acme = make_lender()
    lend(acme)
    backlog = 50_000 if LONG else 5_000
    hanging, healthy = make_receiver(lambda request: None), make_receiver()
    register(acme.api, hanging.url)
    with workers(1):
        eventually(lambda: rows(acme.tenant_id, "SELECT count(*) FROM webhook_event") == [(3,)], within=30)
        with psycopg.connect(os.environ["HPTS_SUPERUSER_DATABASE_URL"]) as connection:
            # As if that many events had been announced to it.
            connection.execute("SET session_replication_role = replica")
            connection.execute(
                """INSERT INTO webhook_delivery (tenant_id, endpoint_id, sequence, event_type)
                   SELECT tenant_id, id, 1000000 + n, 'payment_received' FROM webhook_endpoint, generate_series(1, %s) n""",
                (backlog,),
            )
        eventually(lambda: hanging.busy, within=20)
        register(acme.api, healthy.url)
        entries: list[str] = []
        post_steadily(acme, 400 if LONG else 80, 40.0, entries)
        eventually(lambda: {*healthy.entries()} == {*entries}, within=30)
        waits = lags(healthy.requests)
        print(f"p99 {waits[int(len(waits) * 0.99)]:.2f} s with {backlog} waiting for the hanging one")
        assert waits[int(len(waits) * 0.99)] < 5
        assert hanging.most_busy <= 4


def test_one_poison_row_in_a_thousand_stops_nothing(
    own_database: None, make_lender: Callable[..., Lender], make_receiver: Callable[..., Receiver]
) -> None:
    acme = make_lender()
    lend(acme)
    receiver = make_receiver()
    events, endpoints = (100, 10) if LONG else (40, 5)
    poisoned = register(acme.api, receiver.url + "/poison", event_types=["disbursement"])
    for _ in range(endpoints):
        register(acme.api, receiver.url)
    rows(acme.tenant_id, "UPDATE webhook_endpoint SET secret = 'x' WHERE id = %s", poisoned.endpoint_id)
    lend(acme)
    entries: list[str] = []
    with workers(1):
        post_steadily(acme, events, 200.0, entries)
        eventually(
            lambda: (
                Counter(each for each in receiver.entries() if each in entries) == dict.fromkeys(entries, endpoints)
            ),
            within=30,
        )
    tried = poisoned.deliveries()
    assert tried
    assert {each["state"] for each in tried} <= {"pending", "leased"}  # The worker was killed.
    assert {"no request could be made" in each.get("last_error", "no request could be made") for each in tried} == {
        True
    }


def test_a_worker_that_is_told_to_stop_finishes_what_it_sends(
    own_database: None, make_lender: Callable[..., Lender], make_receiver: Callable[..., Receiver]
) -> None:
    """Nothing stays leased, nothing is sent twice, and it is quick."""

    async def slowly(request: Received) -> bytes:
        import asyncio

        await asyncio.sleep(0.3)
        return plain(200)

    acme = make_lender()
    lend(acme)
    slow: Any = slowly
    receiver, hanging = make_receiver(slow), make_receiver(lambda request: None)
    finishing, given_back = register(acme.api, receiver.url), register(acme.api, hanging.url)
    with workers(1) as (worker,):
        post_steadily(acme, 4, 100.0, [])
        eventually(lambda: receiver.busy and hanging.busy, within=20)
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 10
    assert "leased" not in finishing.states() | given_back.states()
    assert finishing.states().get("succeeded", 0) == len(receiver.requests)
    assert {each["attempt"] for each in given_back.deliveries()} == {0}


def test_workers_need_no_broker(
    own_database: None,
    make_lender: Callable[..., Lender],
    make_receiver: Callable[..., Receiver],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    acme = make_lender()
    lend(acme)
    receiver = make_receiver()
    register(acme.api, receiver.url)
    entries: list[str] = []
    with workers(1):
        post_steadily(acme, 3, 100.0, entries)
        eventually(lambda: {*receiver.entries()} >= {*entries}, within=20)
