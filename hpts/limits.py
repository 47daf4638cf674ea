"""How many requests a tenant and each of its clients may make: token buckets, in Redis for all processes together.

One script takes a request out of both buckets, or out of none, in one round trip. When Redis is away each process counts by
itself with its part of the quota and asks nobody, so that a request never waits for it. Which quota a tenant has is the
settings' and its own row's to say; what a request does is nobody's business here.
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
    """What came of asking: how long to wait (0: go on), and how the tightest bucket stands."""

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


Take = Callable[[Sequence[Bucket], int, bool], Admission]


def _admission(answer: Sequence[int | float], buckets: Sequence[Bucket]) -> Admission:
    wait, tightest, remaining, reset = answer
    place = int(tightest) - 1
    return Admission(wait / 1e6, place, buckets[place].size, int(remaining), reset / 1e6)


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

    def take(self, buckets: Sequence[Bucket], cost: int, always: bool) -> Admission | None:
        """None when Redis is away: the caller counts by itself."""
        if self.away:
            return None
        keys = [bucket.key for bucket in buckets]
        numbers = [number for bucket in buckets for number in (bucket.interval, bucket.size)]
        arguments: list[Any] = [*keys, cost, int(always), *numbers]
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

    def take(self, buckets: Sequence[Bucket], cost: int, always: bool) -> Admission:
        now = self._clock() * 1e6
        own = [bucket._replace(interval=bucket.interval * self._processes) for bucket in buckets]
        own = [bucket._replace(size=max(bucket.size // self._processes, 1)) for bucket in own]
        with self._lock:
            before = [max(self._full_at.get(bucket.key, 0.0) - now, 0.0) for bucket in own]
            after = [owed + cost * bucket.interval for owed, bucket in zip(before, own, strict=True)]
            wait = max(owed - bucket.size * bucket.interval for owed, bucket in zip(after, own, strict=True))
            granted = wait <= 0 or always
            if granted:
                for bucket, owed in zip(own, after, strict=True):
                    self._full_at[bucket.key] = now + owed
                    self._full_at.move_to_end(bucket.key)
                while len(self._full_at) > MAX_BUCKETS:
                    self._full_at.popitem(last=False)
        owed_now = after if granted else before
        left = [
            max(math.floor(bucket.size - owed / bucket.interval), 0) for bucket, owed in zip(own, owed_now, strict=True)
        ]
        place = left.index(min(left))
        return _admission((0 if granted else wait, place + 1, left[place], owed_now[place]), own)


# --- What a request asks ---------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)
def shared(url: str) -> Shared:
    return Shared(url)


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
    admission = shared(settings.REDIS_URL).take(buckets, cost, always)
    if admission is None:
        admission = alone(settings.WEB_WORKERS).take(buckets, cost, always)
    return admission


def refusal(admission: Admission) -> RateLimited:
    """The problem of a client, or of a whole tenant, that has to wait."""
    name = NAMES[admission.tightest]
    metrics.RATE_LIMITED.labels(name).inc()
    seconds = max(math.ceil(admission.wait_seconds), 1)
    return RateLimited(f"The {name}'s quota is used up; repeat after {seconds} s.", retry_after=seconds)
