"""How many requests a tenant and each of its clients may make: token buckets, in Redis for all processes together.

One script takes requests out of both buckets, or out of none, in one round trip. A process whose clients are busy takes some
at a time and hands them out by itself, and remembers for moments that there are none: so that neither the asking nor the
refusing costs much. When Redis is away each process counts by itself with its part of the quota, and no request waits for it.
Which quota a tenant has is the settings' and its own row's to say; what a request does is nobody's business here.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import redis
from django.conf import settings
from django.http import HttpResponseBase
from django.utils.module_loading import import_string
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError
from redis.retry import Retry

from hpts import metrics
from hpts.problems import RateLimited

logger = logging.getLogger(__name__)

SCRIPT = Path(__file__).with_name("bucket.lua").read_text(encoding="utf-8")
SHA = hashlib.sha1(SCRIPT.encode()).hexdigest()  # noqa: S324 (the name that Redis gives to a script)
# A request waits so long for Redis, once; then the process goes on without it and asks again in the background.
TIMEOUT_SECONDS = 0.05
ASK_AGAIN_SECONDS = 0.5
QUOTA_SECONDS = 60
MAX_BUCKETS = 20_000
# Requests that a process has taken are its own for so long; at most so many, and at most a part of what a bucket holds.
LEASE_SECONDS, BUSY_SECONDS, WIDEST, PARTS = 1.0, 0.1, 32, 50
# For so long a process does not ask again for who has just been refused.
REFUSAL_SECONDS = 0.1
NAMES = ("tenant", "client")
HEADERS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")


class Quota(NamedTuple):
    """Requests a second of a tenant, and of each of its clients."""

    tenant: int
    client: int


class Bucket(NamedTuple):
    """One bucket: its key, the microseconds that a request takes to come back, and how many requests it holds."""

    key: str
    interval: int
    size: int


class Admission(NamedTuple):
    """What came of asking: how many were taken, how long to wait when none was, and how the tightest bucket stands."""

    taken: int
    wait_seconds: float
    tightest: int
    limit: int
    remaining: int
    reset_seconds: float

    def label(self, response: HttpResponseBase) -> None:
        """Tell the client how it stands."""
        values = (self.limit, self.remaining, math.ceil(self.reset_seconds))
        for name, value in zip(HEADERS, values, strict=True):
            response[name] = str(value)


class Wanted(NamedTuple):
    """How many requests to take: at most, at least, and whether in any case, so that the buckets owe them."""

    most: int = 1
    fewest: int = 1
    always: bool = False


ONE = Wanted()


def _admission(answer: Sequence[int | float], buckets: Sequence[Bucket]) -> Admission:
    taken, wait, tightest, remaining, reset = answer
    place = int(tightest) - 1
    return Admission(int(taken), wait / 1e6, place, buckets[place].size, int(remaining), reset / 1e6)


# --- By Redis --------------------------------------------------------------------------------------------------------
class Shared:
    """The buckets of all processes. When Redis does not answer, the breaker opens, and a thread of its own looks for it."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self.away = False
        self._lock = threading.Lock()

    def take(self, buckets: Sequence[Bucket], wanted: Wanted = ONE) -> Admission | None:
        """None when Redis is away: the caller counts by itself."""
        if self.away:
            return None
        keys = [bucket.key for bucket in buckets]
        numbers = [number for bucket in buckets for number in (bucket.interval, bucket.size)]
        arguments: list[Any] = [*keys, wanted.most, wanted.fewest, int(wanted.always), *numbers]
        try:
            try:
                answer = self._redis.evalsha(SHA, len(keys), *arguments)
            except NoScriptError:
                answer = self._redis.eval(SCRIPT, len(keys), *arguments)
        except (redis.RedisError, OSError) as error:
            self._open(error)
            return None
        return _admission(answer, buckets)

    def _open(self, error: Exception) -> None:
        with self._lock:
            if self.away:
                return
            self.away = True
        metrics.LIMITS_ALONE.inc()
        logger.warning("Redis is away; each process counts requests by itself: %s", type(error).__name__)
        threading.Thread(target=self._look, name="limits", daemon=True).start()

    def _look(self) -> None:
        while self.away:
            time.sleep(ASK_AGAIN_SECONDS)
            try:
                self._redis.ping()
            except (redis.RedisError, OSError):
                continue
            self.away = False
            logger.info("Redis is back; requests are counted together again")


# --- By this process alone -------------------------------------------------------------------------------------------
class Alone:
    """The same buckets in memory; a process gets its part of them. The sums are those of bucket.lua."""

    def __init__(self, processes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._processes = max(processes, 1)
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, buckets: Sequence[Bucket], wanted: Wanted = ONE) -> Admission:
        now = self._clock() * 1e6
        own = [
            Bucket(bucket.key, bucket.interval * self._processes, max(bucket.size // self._processes, 1))
            for bucket in buckets
        ]
        with self._lock:
            before = [max(self._full_at.get(bucket.key, 0.0) - now, 0.0) for bucket in own]
            free = (math.floor(each.size - owed / each.interval) for owed, each in zip(before, own, strict=True))
            taken = wanted.most if wanted.always else min(wanted.most, *free)
            taken = taken if taken >= wanted.fewest else 0
            after = [owed + taken * bucket.interval for owed, bucket in zip(before, own, strict=True)]
            if taken:
                for bucket, owed in zip(own, after, strict=True):
                    self._full_at[bucket.key] = now + owed
                    self._full_at.move_to_end(bucket.key)
                while len(self._full_at) > MAX_BUCKETS:
                    self._full_at.popitem(last=False)
        short = (owed + (wanted.fewest - each.size) * each.interval for owed, each in zip(before, own, strict=True))
        left = [max(math.floor(each.size - owed / each.interval), 0) for owed, each in zip(after, own, strict=True)]
        place = left.index(min(left))
        return _admission((taken, 0 if taken else max(1, *short), place + 1, left[place], after[place]), own)


# --- Some at a time --------------------------------------------------------------------------------------------------
class Lease:
    """What a process has taken for a client and not yet handed out, or that there is nothing for it right now."""

    __slots__ = ("admission", "asked_at", "left", "until", "width")

    def __init__(self, admission: Admission, width: int, now: float) -> None:
        self.admission = admission
        self.width = width
        self.left = admission.taken - 1
        self.asked_at = now
        self.until = now + (LEASE_SECONDS if admission.taken else min(admission.wait_seconds, REFUSAL_SECONDS))


class Leases:
    """Hands out requests that were taken some at a time. As many as the client uses within moments, and never a part of a
    bucket that anybody would miss: where a bucket is small each request is asked for."""

    def __init__(self, take: Callable[[Sequence[Bucket], Wanted], Admission | None]) -> None:
        self._take = take
        self._leases: OrderedDict[str, Lease] = OrderedDict()
        self._lock = threading.Lock()

    def one(self, buckets: Sequence[Bucket]) -> Admission | None:
        key, now = buckets[-1].key, time.monotonic()
        with self._lock:
            lease = self._leases.get(key)
            if lease is not None and now < lease.until:
                told = lease.admission
                if not told.taken:
                    return told._replace(wait_seconds=max(told.wait_seconds - (now - lease.asked_at), 0.001))
                if lease.left > 0:
                    lease.left -= 1
                    return told._replace(remaining=told.remaining + lease.left)
        width = _width(lease, now, min(bucket.size for bucket in buckets) // PARTS)
        admission = self._take(buckets, Wanted(most=width))
        if admission is None:
            return None
        with self._lock:
            self._leases[key] = Lease(admission, width, now)
            self._leases.move_to_end(key)
            while len(self._leases) > MAX_BUCKETS:
                self._leases.popitem(last=False)
        return admission._replace(remaining=admission.remaining + max(admission.taken - 1, 0))

    def clear(self) -> None:
        with self._lock:
            self._leases.clear()


def _width(before: Lease | None, now: float, most: int) -> int:
    """How many to take: twice as many when the last ones were used up quickly, half when they lasted."""
    if before is None:
        return 1
    lasted = now - before.asked_at
    width = before.width * 2 if lasted < BUSY_SECONDS else before.width // 2 if lasted > LEASE_SECONDS else before.width
    return max(min(width, most, WIDEST), 1)


# --- What a request asks ---------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)
def shared(url: str) -> Shared:
    return Shared(url)


@lru_cache(maxsize=1)
def leases(url: str) -> Leases:
    return Leases(lambda buckets, wanted: shared(url).take(buckets, wanted))


@lru_cache(maxsize=1)
def alone(processes: int) -> Alone:
    return Alone(processes)


_quotas: dict[str, tuple[float, Quota]] = {}


def quota(tenant_id: str) -> Quota:
    """The quota of a tenant, its own or the settings'; asked of its row once a minute."""
    known = _quotas.get(tenant_id)
    now = time.monotonic()
    if known is not None and now < known[0]:
        return known[1]
    # This package knows the app that keeps the tenants by the dotted path in the settings alone.
    tenant, client = import_string(settings.HPTS_TENANT_QUOTA)(tenant_id)
    asked = Quota(
        settings.TENANT_REQUESTS_PER_SECOND if tenant is None else tenant,
        settings.CLIENT_REQUESTS_PER_SECOND if client is None else client,
    )
    if len(_quotas) >= MAX_BUCKETS:
        _quotas.clear()
    _quotas[tenant_id] = (now + QUOTA_SECONDS, asked)
    return asked


def forget_quotas() -> None:
    """Ask the rows anew, as a process would that starts now."""
    _quotas.clear()
    leases(settings.REDIS_URL).clear()


def _buckets(tenant_id: str, client_id: str) -> list[Bucket]:
    # The braces keep both keys of a tenant on one node of a Redis cluster.
    keys = (f"hpts:rate:{{{tenant_id}}}", f"hpts:rate:{{{tenant_id}}}:{client_id}")
    return [
        Bucket(key, max(1_000_000 // rate, 1), max(int(rate * settings.RATE_BURST_SECONDS), 1))
        for key, rate in zip(keys, quota(tenant_id), strict=True)
    ]


def take(tenant_id: str, client_id: str, cost: int = 1, *, always: bool = False) -> Admission | None:
    """Take `cost` requests out of the tenant's and the client's bucket; None where there are no limits.

    `always`: what has been let in already turns out to be worth more; the buckets then owe it, and the next ones wait.
    """
    if not settings.TENANT_REQUESTS_PER_SECOND:
        return None
    buckets = _buckets(tenant_id, client_id)
    if cost == 1 and not always:
        admission = leases(settings.REDIS_URL).one(buckets)
        wanted = ONE
    else:
        wanted = Wanted(cost, cost, always)
        admission = shared(settings.REDIS_URL).take(buckets, wanted)
    return admission or alone(settings.WEB_WORKERS).take(buckets, wanted)


def refusal(admission: Admission) -> RateLimited:
    """The problem of a client, or of a whole tenant, that has to wait."""
    name = NAMES[admission.tightest]
    metrics.RATE_LIMITED.labels(name).inc()
    seconds = max(math.ceil(admission.wait_seconds), 1)
    return RateLimited(f"The {name}'s quota is used up; repeat after {seconds} s.", retry_after=seconds)
