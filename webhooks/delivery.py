"""Deliveries: which are due, what an answer means for one, and writing it down. The database's side; sender.py does the HTTP.

A worker claims rows for a lease and counts the attempt with the claim, so that a row whose worker dies runs out of attempts
too. While a request is on its way its lease is renewed; a lease that ends is anybody's again. What is written about an
attempt names its claim (`lease_token`): a worker that was given up meanwhile changes nothing.
All times are the database's; tests pass `now`.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from django.db.backends.utils import CursorWrapper

from hpts.tenancy import current_tenant, wait_turn
from ledger.notices import BREAK_OPENED
from ledger.queries import timestamp
from webhooks import signing

# How long after the attempt before it each attempt is made, in seconds; about 76 hours in all.
RETRY_SECONDS = (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
JITTER = 0.2
MAX_RETRY_AFTER_SECONDS = 86_400
# A row that we cannot even make a request of is given up earlier.
MAX_FAULTS = 5
# A request has at most 20 s; its lease is shorter and renewed each second, so that a killed worker's rows are soon free.
LEASE_SECONDS = 4.0
RENEWAL_SECONDS = 1.0
IN_FLIGHT_PER_ENDPOINT = 4
# An endpoint whose last attempt failed is tried with one request at a time.
IN_FLIGHT_WHEN_FAILING = 1
# Of an endpoint that acknowledges, a worker holds more than it sends at once, so that a visit to the database brings more.
MOST_IN_HAND = 32
# An answer that says "slower" holds the whole endpoint back, as long as it asks for, within bounds.
SLOWING = (429, 502, 503, 504)
PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 3_600.0
# Disabled when nothing has succeeded for so long, with failures that are not all of one moment.
DISABLE_AFTER, DISABLE_SPREAD = "5 days", "12 hours"
GONE = 410
# A test names no entry.
NO_ENTRY = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class Claimed:
    """One attempt that this worker has to make."""

    tenant_id: str
    delivery_id: str
    lease_token: int
    attempt: int
    endpoint_id: str
    url: str
    document: str | None
    event_type: str
    created_at: datetime
    failing: bool
    secrets: tuple[bytes, ...]

    def body(self) -> bytes:
        """The exact bytes that are signed and sent: the same at every attempt."""
        if self.document is not None:
            members = msgspec.json.decode(self.document)
            # Of the feed alone.
            members.pop("sequence", None)
        else:
            members = {
                "event_type": self.event_type,
                "break_id" if self.event_type == BREAK_OPENED else "journal_entry_id": NO_ENTRY,
                "occurred_at": timestamp(self.created_at),
                "tenant_id": self.tenant_id,
            }
        return msgspec.json.encode(members)

    def keys(self) -> list[bytes]:
        """What the attempt is signed with. Raises ValueError when a secret cannot be opened."""
        return [signing.opened(sealed, self.tenant_id, self.endpoint_id) for sealed in self.secrets]


class Hand(NamedTuple):
    """What a worker has of an endpoint: how many deliveries, sent or about to be, and how many it may have."""

    endpoint_id: str
    held: int
    pace: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt: an HTTP status, or the error that there is none; `fault`: no request could be made."""

    status: int | None = None
    error: str | None = None
    retry_after: float | None = None
    fault: bool = False

    @property
    def succeeded(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a delivery: its state, when it is due again, and how long its endpoint is left alone."""

    state: str
    delay: float = 0.0
    pause: float = 0.0
    gone: bool = False


def verdict(attempt: int, outcome: Outcome, chance: Callable[[], float] = random.random) -> Verdict:
    """Judge an attempt, counted from 1. `chance` gives a number from 0 to 1 for the jitter."""
    if outcome.succeeded:
        return Verdict("succeeded")
    if outcome.fault and attempt >= MAX_FAULTS:
        return Verdict("dead")
    gone = outcome.status == GONE
    pause = 0.0
    if outcome.status in SLOWING:
        pause = min(outcome.retry_after or PAUSE_SECONDS, MAX_PAUSE_SECONDS)
    if attempt >= len(RETRY_SECONDS):
        return Verdict("exhausted", pause=pause, gone=gone)
    delay = RETRY_SECONDS[attempt] * (1 + JITTER * (2 * chance() - 1))
    wanted = min(outcome.retry_after or 0.0, MAX_RETRY_AFTER_SECONDS)
    return Verdict("pending", max(delay, wanted), pause, gone)


@dataclass(frozen=True, slots=True)
class Result:
    """An attempt and what came of it."""

    claimed: Claimed
    outcome: Outcome
    verdict: Verdict


# --- In one tenant's transaction -------------------------------------------------------------------------------------


def alone(cursor: CursorWrapper) -> None:
    """Have the tenant's deliveries alone until the transaction ends: then what is in flight can be counted.

    Taken before those that count. It is held for milliseconds; whoever changes deliveries that a worker
    may claim takes it first, so that there is one order of locks.
    """
    wait_turn(cursor, "deliveries")


# A delivery's failures with one more; of many the oldest goes.
_FAILED = """(CASE WHEN jsonb_array_length(d.failures) >= 20 THEN d.failures - 0 ELSE coalesce(d.failures, '[]') END
              || jsonb_build_object('attempt', d.attempt, 'at', d.attempted_at, 'status', {status}, 'error', {error}))"""


def settle(cursor: CursorWrapper, results: Sequence[Result], now: datetime | None = None) -> list[tuple[str, str]]:
    """Write down what came of attempts, and what it means for their endpoints. Gives what somebody should hear of: an endpoint,
    and what has become of it. An attempt whose lease was given to another changes nothing."""
    if not results:
        return []
    cursor.execute(
        f"""
        WITH clock AS (SELECT coalesce(%(now)s::timestamptz, statement_timestamp()) AS now),
        result AS (
            SELECT * FROM unnest(%(ids)s::uuid[], %(tokens)s::int[], %(states)s::text[], %(delays)s::float8[],
                                 %(pauses)s::float8[], %(gone)s::boolean[], %(statuses)s::smallint[], %(errors)s::text[])
                          AS r (id, token, state, delay, pause, gone, status, error)
        ), written AS (
            UPDATE webhook_delivery d
            SET state = r.state, due_at = c.now + make_interval(secs => r.delay), status_code = r.status, error = r.error,
                failures = CASE WHEN r.state = 'succeeded' THEN d.failures
                                ELSE {_FAILED.format(status="r.status", error="r.error")} END,
                finished_at = CASE WHEN r.state <> 'pending' THEN c.now END
            FROM result r, clock c
            WHERE d.tenant_id = %(tenant)s AND d.id = r.id AND d.lease_token = r.token AND d.state = 'leased'
            RETURNING d.endpoint_id, r.state = 'succeeded' AS succeeded, r.pause, r.gone
        ), said AS (
            SELECT endpoint_id, bool_or(succeeded) AS succeeded, bool_or(NOT succeeded) AS failed, max(pause) AS pause,
                   bool_or(gone) AS gone
            FROM written GROUP BY endpoint_id
        ), judged AS (
            SELECT s.*, e.failing_since, NOT s.succeeded AND e.state = 'enabled'
                       AND c.now - e.failing_since >= interval '{DISABLE_AFTER}'
                       AND e.last_failed_at - e.failing_since >= interval '{DISABLE_SPREAD}' AS failing,
                   (SELECT max(w.days) FROM unnest(ARRAY[1, 3]) AS w (days)
                    WHERE c.now - e.failing_since >= make_interval(days => w.days)
                      AND e.last_failed_at - e.failing_since < make_interval(days => w.days)) AS days
            FROM said s JOIN webhook_endpoint e ON e.tenant_id = %(tenant)s AND e.id = s.endpoint_id, clock c
            WHERE s.failed OR e.failing_since IS NOT NULL
        ), changed AS (
            UPDATE webhook_endpoint e
            SET failing_since = CASE WHEN NOT j.succeeded THEN coalesce(e.failing_since, c.now) END,
                last_failed_at = CASE WHEN j.failed THEN c.now ELSE e.last_failed_at END,
                paused_until = CASE WHEN j.pause > 0 THEN c.now + make_interval(secs => j.pause) ELSE e.paused_until END,
                state = CASE WHEN j.gone OR j.failing THEN 'disabled' ELSE e.state END,
                disabled_reason = CASE WHEN e.state = 'disabled' THEN e.disabled_reason
                                       WHEN j.gone THEN 'gone' WHEN j.failing THEN 'failing' END
            FROM judged j, clock c
            WHERE e.tenant_id = %(tenant)s AND e.id = j.endpoint_id
            RETURNING e.id, CASE WHEN e.state = 'disabled' AND (j.gone OR j.failing) THEN 'disabled: ' || e.disabled_reason
                                 WHEN j.days IS NOT NULL AND NOT j.succeeded THEN 'failing for ' || j.days || ' days' END AS news
        )
        SELECT id::text, news FROM changed WHERE news IS NOT NULL""",
        {
            "tenant": current_tenant(),
            "now": now,
            "ids": [result.claimed.delivery_id for result in results],
            "tokens": [result.claimed.lease_token for result in results],
            "states": [result.verdict.state for result in results],
            "delays": [result.verdict.delay for result in results],
            "pauses": [result.verdict.pause for result in results],
            "gone": [result.verdict.gone for result in results],
            "statuses": [result.outcome.status for result in results],
            "errors": [result.outcome.error for result in results],
        },
    )
    news: list[tuple[str, str]] = cursor.fetchall()
    return news


def renew(cursor: CursorWrapper, claims: Sequence[Claimed], now: datetime | None = None) -> None:
    """Keep the leases of attempts that are on their way."""
    if claims:
        cursor.execute(
            """UPDATE webhook_delivery d
               SET due_at = coalesce(%(now)s::timestamptz, statement_timestamp()) + make_interval(secs => %(lease)s)
               FROM unnest(%(ids)s::uuid[], %(tokens)s::int[]) AS c (id, token)
               WHERE d.tenant_id = %(tenant)s AND d.id = c.id AND d.lease_token = c.token AND d.state = 'leased'""",
            {
                "tenant": current_tenant(),
                "now": now,
                "lease": LEASE_SECONDS,
                "ids": [claim.delivery_id for claim in claims],
                "tokens": [claim.lease_token for claim in claims],
            },
        )


def release(cursor: CursorWrapper, now: datetime | None = None) -> int:
    """Give back what a dead worker held; gives how many. The first two times it is due at once, then by the schedule, so
    that a row that kills its workers is soon alone; after the last attempt it is dead."""
    cursor.execute(
        f"""UPDATE webhook_delivery d
           SET failures = {_FAILED.format(status="NULL::int", error="'the worker ended'")},
               state = CASE WHEN d.attempt >= %(attempts)s THEN 'dead' ELSE 'pending' END,
               finished_at = CASE WHEN d.attempt >= %(attempts)s THEN c.now END, error = 'the worker ended',
               due_at = c.now + CASE WHEN d.attempt <= 2 THEN interval '0'
                                     ELSE make_interval(secs => (%(schedule)s::float8[])[least(d.attempt + 1, %(attempts)s)]
                                                                * (1 + %(jitter)s * (2 * random() - 1))) END
           FROM (SELECT coalesce(%(now)s::timestamptz, statement_timestamp()) AS now) c
           WHERE d.tenant_id = %(tenant)s AND d.state = 'leased' AND d.due_at <= c.now""",
        {
            "tenant": current_tenant(),
            "now": now,
            "attempts": len(RETRY_SECONDS),
            "schedule": [float(seconds) for seconds in RETRY_SECONDS],
            "jitter": JITTER,
        },
    )
    return int(cursor.rowcount)


def give_back(cursor: CursorWrapper, claims: Sequence[Claimed]) -> None:
    """Claims of a worker that is told to stop: due at once, as if they had not been made."""
    if claims:
        cursor.execute(
            """UPDATE webhook_delivery d SET state = 'pending', due_at = statement_timestamp(), attempt = d.attempt - 1
               FROM unnest(%s::uuid[], %s::int[]) AS c (id, token)
               WHERE d.tenant_id = %s AND d.id = c.id AND d.lease_token = c.token AND d.state = 'leased'""",
            ([claim.delivery_id for claim in claims], [claim.lease_token for claim in claims], current_tenant()),
        )


def claim(
    cursor: CursorWrapper,
    limit: int,
    now: datetime | None = None,
    *,
    failing: int | None = None,
    hands: Sequence[Hand] = (),
    shared: bool = False,
) -> list[Claimed]:
    """Take up to `limit` due deliveries, in turn from each endpoint; of endpoints that fail `failing` at most, or half.

    An endpoint is one worker's at a time: nothing is taken of one whose deliveries another has in hand. So the worker can hold
    more of a quick endpoint than it sends at once, and what is in flight is bounded by itself. `hands`: what this worker has of
    each of its endpoints; `shared`: of the others half are left to another worker.

    Looks at the endpoints that are enabled and at the first few due rows of each, so neither what waits for a slow endpoint
    nor what has been delivered makes it slower. The update asks nothing but the key (the rows are ours alone, see above): with
    the state in it, a plan that was made while few rows waited would read all that wait.
    """
    cursor.execute(
        """
        WITH clock AS MATERIALIZED (SELECT coalesce(%(now)s::timestamptz, statement_timestamp()) AS now),
        hand AS MATERIALIZED (
            SELECT * FROM unnest(%(endpoints)s::uuid[], %(held)s::int[], %(pace)s::int[]) AS h (id, held, pace)
        ), busy AS MATERIALIZED (
            SELECT d.endpoint_id, count(*) AS requests FROM webhook_delivery d
            WHERE d.tenant_id = %(tenant)s AND d.state = 'leased' GROUP BY d.endpoint_id
        ), due AS MATERIALIZED (
            SELECT e.id AS endpoint_id, d.id, d.due_at, d.turn, e.failing_since IS NOT NULL AS failing, h.id IS NULL AS others
            FROM webhook_endpoint e
            CROSS JOIN clock c
            LEFT JOIN busy b ON b.endpoint_id = e.id
            LEFT JOIN hand h ON h.id = e.id
            CROSS JOIN LATERAL (
                SELECT o.id, o.due_at, row_number() OVER (ORDER BY o.due_at) AS turn
                FROM (SELECT w.id, w.due_at FROM webhook_delivery w
                      WHERE w.tenant_id = %(tenant)s AND w.endpoint_id = e.id AND w.state = 'pending' AND w.due_at <= c.now
                      ORDER BY w.due_at
                      LIMIT CASE WHEN b.requests > coalesce(h.held, 0) THEN 0
                                 ELSE greatest(CASE WHEN e.failing_since IS NOT NULL THEN %(each_failing)s
                                                    ELSE coalesce(h.pace, %(each)s) END - coalesce(h.held, 0), 0) END) o) d
            WHERE e.tenant_id = %(tenant)s AND e.state = 'enabled' AND (e.paused_until <= c.now) IS NOT FALSE
        ), placed AS MATERIALIZED (
            SELECT due.*, row_number() OVER (PARTITION BY failing ORDER BY turn, due_at) AS place FROM due
        ), open AS MATERIALIZED (
            -- What may be taken: endpoints that fail and find no room now do not stand before those that are well.
            SELECT placed.*, dense_rank() OVER (PARTITION BY others ORDER BY endpoint_id) AS number
            FROM placed WHERE NOT failing OR place <= %(failing)s
        ), taken AS MATERIALIZED (
            SELECT endpoint_id, id FROM open
            WHERE NOT others OR NOT %(shared)s OR number <= (SELECT (max(o.number) + 1) / 2 FROM open o WHERE o.others)
            ORDER BY turn, due_at LIMIT %(limit)s
        ), leased AS (
            UPDATE webhook_delivery d
            SET state = 'leased', due_at = c.now + make_interval(secs => %(lease)s), attempt = d.attempt + 1,
                lease_token = d.lease_token + 1, attempted_at = c.now
            FROM taken t, clock c
            WHERE d.tenant_id = %(tenant)s AND d.id = t.id
            RETURNING d.id, d.lease_token, d.attempt, d.endpoint_id, d.sequence, d.notice_id, d.event_type, d.created_at
        )
        SELECT l.id::text, l.lease_token, l.attempt, l.endpoint_id::text, e.url,
               coalesce((SELECT v.document FROM webhook_event v WHERE v.tenant_id = %(tenant)s AND v.sequence = l.sequence),
                        (SELECT n.body FROM notice n WHERE n.tenant_id = %(tenant)s AND n.id = l.notice_id)),
               l.event_type, l.created_at, e.failing_since IS NOT NULL, e.secret,
               CASE WHEN e.previous_valid_until > c.now THEN e.previous_secret END
        FROM leased l
        JOIN webhook_endpoint e ON e.tenant_id = %(tenant)s AND e.id = l.endpoint_id
        CROSS JOIN clock c""",
        {
            "tenant": current_tenant(),
            "now": now,
            "limit": limit,
            "failing": (limit + 1) // 2 if failing is None else failing,
            "shared": shared,
            "endpoints": [hand.endpoint_id for hand in hands],
            "held": [hand.held for hand in hands],
            "pace": [hand.pace for hand in hands],
            "each": IN_FLIGHT_PER_ENDPOINT,
            "each_failing": IN_FLIGHT_WHEN_FAILING,
            "lease": LEASE_SECONDS,
        },
    )
    return [_claimed(current_tenant(), row) for row in cursor.fetchall()]


def _claimed(tenant_id: str, row: tuple[Any, ...]) -> Claimed:
    facts, secrets = row[:-2], tuple(bytes(sealed) for sealed in row[-2:] if sealed is not None)
    return Claimed(*(tenant_id, *facts, secrets))


def cancel(cursor: CursorWrapper, endpoint_id: str, *, limit: int) -> int:
    """Cancel what waits for an endpoint, `limit` at most; gives how many."""
    alone(cursor)
    cursor.execute(
        """UPDATE webhook_delivery SET state = 'cancelled', finished_at = statement_timestamp()
           WHERE tenant_id = %(tenant)s AND id IN (
               SELECT id FROM webhook_delivery
               WHERE tenant_id = %(tenant)s AND endpoint_id = %(endpoint)s AND state = 'pending' LIMIT %(limit)s)""",
        {"tenant": current_tenant(), "endpoint": endpoint_id, "limit": limit},
    )
    return int(cursor.rowcount)


def purge(cursor: CursorWrapper, *, before: datetime, limit: int = 5_000) -> int:
    """Remove deliveries that ended before an instant at least 30 days ago, `limit` at most; gives how many."""
    cursor.execute(
        """DELETE FROM webhook_delivery WHERE tenant_id = %(tenant)s AND id IN (
               SELECT id FROM webhook_delivery
               WHERE tenant_id = %(tenant)s AND id < %(first_id_of_then)s::uuid AND finished_at < %(before)s
               ORDER BY id LIMIT %(limit)s)""",
        {
            "tenant": current_tenant(),
            "before": before,
            # Ids begin with the milliseconds of their making, so those of older rows are one piece of the index.
            "first_id_of_then": str(uuid.UUID(int=int(before.timestamp() * 1000) << 80)),
            "limit": limit,
        },
    )
    return int(cursor.rowcount)
