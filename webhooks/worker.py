"""The worker behind `manage.py deliver_webhooks`: relays and delivers until it is told to stop.

Two loops. The relay's thread visits each second the tenants whose outbox has something new. The event loop sends; a thread
beside it talks to the database: what has come of attempts and what to send next travel in one short transaction per tenant.
Nothing is kept here that matters: a worker that is killed leaves leases that end within seconds, and several workers share
the work without knowing of each other. No broker takes part.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple
from weakref import WeakValueDictionary

import aiohttp
import msgspec
from django.db import connections

from hpts import metrics
from hpts.pipeline import Statement
from hpts.tenancy import tenant_transaction
from webhooks import delivery, queries, sender
from webhooks.delivery import IN_FLIGHT_PER_ENDPOINT, MOST_IN_HAND, Claimed, Hand, Outcome, Result, Verdict
from webhooks.relay import BATCH, RelayStuck, relay, relay_notices

logger = logging.getLogger(__name__)

# How often a worker looks for what is due, and the pause in which answers gather to be written together.
SWEEP_SECONDS = 1.0
GATHER_SECONDS = 0.005
MAX_IN_FLIGHT = 256
# So many of them may be for endpoints that fail: those may take 20 s each, and there may be many.
MAX_FAILING = MAX_IN_FLIGHT // 2
STOP_SECONDS = 3.0
# What this writes may be lost with the database's last tenths of a second: then a delivery is made again, and never lost.
UNHURRIED = Statement("SET LOCAL synchronous_commit TO off")


class Exchange(NamedTuple):
    """What one visit to a tenant's deliveries brings in, and has to know."""

    results: list[Result]
    renewals: list[Claimed]
    returned: list[Claimed]


class Worker:
    """One process's share of the work. `run()` returns after `stop()`, with nothing left on its way."""

    def __init__(self, *, session: aiohttp.ClientSession | None = None, relays: bool = True) -> None:
        self._session = session
        self._relays = relays
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()
        self._database = ThreadPoolExecutor(1, thread_name_prefix="deliveries")
        self._on_their_way: dict[asyncio.Task[None], Claimed] = {}
        self._renew_at: dict[asyncio.Task[None], float] = {}
        self._sweep_at = float("-inf")
        self._results: list[Result] = []
        # Claims that wait for their turn at their endpoint, and those that are not to be sent after all.
        self._queued: dict[asyncio.Task[None], Claimed] = {}
        self._returned: list[Claimed] = []
        # How many of an endpoint this worker may have in hand: more and more while it acknowledges.
        self._pace: dict[str, int] = {}
        self._gates: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self.sent = 0

    def stop(self) -> None:
        """To be called in the event loop."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        stopped = threading.Event()
        relaying = threading.Thread(target=self._relay, args=(loop, stopped), name="relay", daemon=True)
        if self._relays:
            relaying.start()
        session = self._session or sender.new_session()
        try:
            while not self._stopping.is_set():
                await self._round(session)
        finally:
            stopped.set()
            await self._finish()
            await session.close()
            await loop.run_in_executor(self._database, connections.close_all)
            self._database.shutdown(wait=False)
            if self._relays:
                await asyncio.to_thread(relaying.join, STOP_SECONDS)

    # The relay's thread

    def _relay(self, loop: asyncio.AbstractEventLoop, stopped: threading.Event) -> None:
        while not stopped.is_set():
            began = time.monotonic()
            relayed = 0
            try:
                relayed = relay_all()
            except Exception:  # The database is away, or restarts: the next sweep finds what this one did not.
                logger.exception("the relay could not sweep")
            if relayed:
                with contextlib.suppress(RuntimeError):  # The loop has been closed.
                    loop.call_soon_threadsafe(self._relayed)
            if relayed < BATCH:
                stopped.wait(max(SWEEP_SECONDS - (time.monotonic() - began), 0.01))
        connections.close_all()

    # The event loop

    def _relayed(self) -> None:
        self._sweep_at = float("-inf")
        self._wake.set()

    async def _round(self, session: aiohttp.ClientSession) -> None:
        """Write what has come back, take what is due, and wait until there is a reason to do so again."""
        loop = asyncio.get_running_loop()
        self._wake.clear()
        results, self._results = self._results, []
        returned, self._returned = self._returned, []
        renewals = self._renewals()
        room = MAX_IN_FLIGHT - len(self._on_their_way)
        failing = MAX_FAILING - sum(claimed.failing for claimed in self._on_their_way.values())
        sweep = time.monotonic() >= self._sweep_at
        if sweep:
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
        hands = self._hands(results)
        ask = partial(exchange, results, renewals, returned, room, failing=failing, hands=hands, sweep=sweep)
        try:
            claims, unwritten = await loop.run_in_executor(self._database, ask)
        except Exception:
            # The results are still true; leases that end meanwhile cost a delivery made twice.
            logger.exception("the database could not be asked for deliveries")
            self._results = results + self._results
            await self._rest(SWEEP_SECONDS)
            return
        self._results = unwritten + self._results
        for claimed in claims:
            gate = self._gates.setdefault(claimed.endpoint_id, asyncio.Semaphore(IN_FLIGHT_PER_ENDPOINT))
            task = loop.create_task(self._send(session, gate, claimed))
            self._on_their_way[task] = self._queued[task] = claimed
            self._renew_at[task] = time.monotonic() + delivery.RENEWAL_SECONDS
            task.add_done_callback(self._arrived)
        if unwritten:
            await self._rest(SWEEP_SECONDS)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), max(self._sweep_at - time.monotonic(), 0.0))
        await asyncio.sleep(GATHER_SECONDS)

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _hands(self, results: Iterable[Result]) -> list[Hand]:
        """The endpoints that are this worker's: it has something of them on its way, or just had."""
        held = Counter(claimed.endpoint_id for claimed in self._on_their_way.values())
        held.update({result.claimed.endpoint_id: 0 for result in results})
        return [Hand(each, count, self._pace.get(each, IN_FLIGHT_PER_ENDPOINT)) for each, count in held.items()]

    async def _send(self, session: aiohttp.ClientSession, gate: asyncio.Semaphore, claimed: Claimed) -> None:
        async with gate:
            del self._queued[asyncio.current_task()]  # type: ignore[arg-type]
            began = time.monotonic()
            outcome = await sender.send(session, claimed)
            took = time.monotonic() - began
        if outcome.succeeded:
            pace = self._pace.get(claimed.endpoint_id, IN_FLIGHT_PER_ENDPOINT)
            self._pace[claimed.endpoint_id] = min(2 * pace, MOST_IN_HAND)
        else:
            self._slow_down(claimed.endpoint_id)
        self.sent += 1
        verdict = delivery.verdict(claimed.attempt, outcome)
        _count(claimed, outcome, verdict, took)
        self._results.append(Result(claimed, outcome, verdict))
        self._wake.set()

    def _slow_down(self, endpoint_id: str) -> None:
        """What waits for its turn at an endpoint that fails goes back to the others that are due."""
        self._pace.pop(endpoint_id, None)
        for task in [task for task, queued in self._queued.items() if queued.endpoint_id == endpoint_id]:
            self._returned.append(self._queued.pop(task))
            task.cancel()

    def _arrived(self, task: asyncio.Task[None]) -> None:
        del self._on_their_way[task], self._renew_at[task]

    def _renewals(self) -> list[Claimed]:
        now = time.monotonic()
        due = [task for task, at in self._renew_at.items() if at <= now]
        self._renew_at |= dict.fromkeys(due, now + delivery.RENEWAL_SECONDS)
        return [self._on_their_way[task] for task in due]

    async def _finish(self) -> None:
        """Wait a moment for what is on its way, write down what has come, give back the rest."""
        if self._on_their_way:
            await asyncio.wait(self._on_their_way, timeout=STOP_SECONDS)
        left = list(self._on_their_way.values())
        for task in list(self._on_their_way):
            task.cancel()
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._database, last_words, self._results, [*left, *self._returned])
        except Exception:
            logger.exception("what was on its way is delivered again when its lease ends")


def _count(claimed: Claimed, outcome: Outcome, verdict: Verdict, seconds: float) -> None:
    """The line and the figures of an attempt."""
    metrics.WEBHOOK_ATTEMPTS.labels(str(claimed.attempt), verdict.state).inc()
    metrics.WEBHOOK_SECONDS.observe(seconds)
    members: dict[str, object] = {
        "tenant_id": claimed.tenant_id,
        "delivery_id": claimed.delivery_id,
        "endpoint_id": claimed.endpoint_id,
        "attempt": claimed.attempt,
        "operation": "deliverWebhook",
        "status": outcome.status or 0,
        "state": verdict.state,
        "duration_ms": round(seconds * 1_000, 2),
    }
    if claimed.document is not None:
        members["correlation_id"] = msgspec.json.decode(claimed.document).get("correlation_id")
    if outcome.error is not None:
        members["error"] = outcome.error
    logger.info("webhook attempt", extra={"members": members})


# --- In a thread with a database connection --------------------------------------------------------------------------


def relay_all() -> int:
    """Relay a batch of every tenant that has something; gives the largest number of one of them."""
    most = 0
    for work in queries.work():
        if work.to_relay:
            try:
                most = max(most, relay(work.tenant_id), relay_notices(work.tenant_id))
            except RelayStuck as stuck:
                logger.critical("tenant %s: %s", work.tenant_id, stuck)
            except Exception:
                logger.exception("tenant %s could not be relayed", work.tenant_id)
    return most


def exchange(
    results: list[Result],
    renewals: list[Claimed],
    returned: list[Claimed],
    room: int,
    *,
    failing: int = MAX_FAILING,
    hands: Sequence[Hand] = (),
    sweep: bool = True,
) -> tuple[list[Claimed], list[Result]]:
    """Visit the tenants that claims are in hand of, and in a sweep all that have something due: write, renew, give back, claim.

    Gives what is to be sent now, and results that could not be written. Tenants share the room; `failing`: so much of it is for
    endpoints that fail.
    """
    by_tenant = _sorted(results, renewals, returned)
    due = [work.tenant_id for work in queries.work() if work.to_deliver] if sweep else []
    # Not always the same ones first.
    random.shuffle(due)
    claims: list[Claimed] = []
    unwritten: list[Result] = []
    tenants = list(dict.fromkeys((*due, *by_tenant)))
    for place, tenant_id in enumerate(tenants):
        brought = by_tenant[tenant_id]
        others = len(tenants) - place
        share = _part(room - len(claims), others)
        failing_share = min(_part(failing - sum(claimed.failing for claimed in claims), others), (share + 1) // 2)
        try:
            claims += _visit(tenant_id, brought, share, failing_share, hands)
        except Exception:
            # One tenant's trouble is not another's.
            logger.exception("tenant %s: deliveries could not be exchanged", tenant_id)
            unwritten += brought.results
    return claims, unwritten


def _part(room: int, tenants: int) -> int:
    """An equal part of what is left, and one at least while there is any."""
    return max(room // tenants, min(room, 1), 0)


def _visit(tenant_id: str, brought: Exchange, share: int, failing: int, hands: Sequence[Hand]) -> list[Claimed]:
    with tenant_transaction(tenant_id, first=UNHURRIED) as cursor:
        delivery.alone(cursor)
        expired = delivery.release(cursor)
        for endpoint_id, news in delivery.settle(cursor, brought.results):
            logger.warning("tenant %s, endpoint %s: %s", tenant_id, endpoint_id, news)
        delivery.renew(cursor, brought.renewals)
        delivery.give_back(cursor, brought.returned)
        claims = delivery.claim(cursor, share, failing=failing, hands=hands, shared=True) if share > 0 else []
    if expired:
        logger.warning("tenant %s: %s leases have ended; their worker is gone or stands still", tenant_id, expired)
    return claims


def _sorted(
    results: Iterable[Result], renewals: Iterable[Claimed], returned: Iterable[Claimed]
) -> defaultdict[str, Exchange]:
    """The same by tenant."""
    by_tenant: defaultdict[str, Exchange] = defaultdict(lambda: Exchange([], [], []))
    for result in results:
        by_tenant[result.claimed.tenant_id].results.append(result)
    for claimed in renewals:
        by_tenant[claimed.tenant_id].renewals.append(claimed)
    for claimed in returned:
        by_tenant[claimed.tenant_id].returned.append(claimed)
    return by_tenant


def last_words(results: list[Result], left: Iterable[Claimed]) -> None:
    """Write down results and give back claims, tenant by tenant."""
    for tenant_id, brought in _sorted(results, (), left).items():
        with tenant_transaction(tenant_id) as cursor:
            delivery.alone(cursor)
            delivery.settle(cursor, brought.results)
            delivery.give_back(cursor, brought.returned)
