"""Quotas: the buckets of Redis and those of a process, what a client is told, and what happens while Redis is away."""

from __future__ import annotations

import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError

from hpts import limits
from hpts.limits import Alone, Bucket, Leases, Shared, Wanted
from tests.conftest import Api, Lender, new_key, payment_of, posted, refused, shown

MINUTE = 60_000_000  # A bucket that gives one request back in a minute does not move while a test runs.


def buckets(tenant: int, client: int, interval: int = MINUTE) -> list[Bucket]:
    name = uuid.uuid4()
    return [Bucket(f"{{{name}}}", interval, tenant), Bucket(f"{{{name}}}:c", interval, client)]


@pytest.fixture
def shared() -> Shared:
    return Shared(settings.REDIS_URL)


@pytest.fixture
def quota(acme: Lender) -> Iterator[Callable[[int, int], None]]:
    """`quota(tenant, client)` sets acme's quotas; everything that has been taken before is forgotten."""

    def set_quota(tenant: int, client: int) -> None:
        call_command(
            "tenant_quota", tenant=acme.tenant_id, requests_per_second=tenant, client_requests_per_second=client
        )
        forget()

    def forget() -> None:
        limits.forget_quotas()
        with redis.Redis.from_url(settings.REDIS_URL) as client:
            for key in client.scan_iter(f"hpts:rate:{{{acme.tenant_id}}}*"):
                client.delete(key)

    yield set_quota
    forget()


# --- The buckets -----------------------------------------------------------------------------------------------------


def test_a_bucket_gives_what_it_holds_and_no_more(shared: Shared) -> None:
    asked = buckets(5, 5)
    admissions = [shared.take(asked) for _ in range(7)]
    assert [each.wait_seconds > 0 for each in admissions if each] == [False] * 5 + [True] * 2
    assert [each.remaining for each in admissions if each] == [4, 3, 2, 1, 0, 0, 0]
    last = admissions[-1]
    assert last is not None
    assert 50 < last.wait_seconds <= 60
    assert 4 * 60 < last.reset_seconds <= 5 * 60


def test_what_one_bucket_refuses_costs_the_other_nothing(shared: Shared) -> None:
    tenant, client = buckets(5, 2)
    for _ in range(10):
        shared.take([tenant, client])
    other = shared.take([tenant, client._replace(key=client.key + "2")])
    assert other is not None
    assert other.wait_seconds == 0
    assert (other.tightest, other.remaining) == (1, 1)


def test_a_cost_is_owed_when_it_has_to_be(shared: Shared) -> None:
    asked = buckets(5, 5, interval=1_000_000)
    owed = shared.take(asked, Wanted(50, 50, True))
    assert owed is not None
    assert (owed.wait_seconds, owed.remaining) == (0, 0)
    later = shared.take(asked)
    assert later is not None
    assert 40 < later.wait_seconds <= 46


def test_a_bucket_fills_again_and_its_key_goes(shared: Shared) -> None:
    asked = buckets(1, 1, interval=20_000)
    assert shared.take(asked) is not None
    deadline = time.monotonic() + 5
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        while client.exists(asked[0].key):
            assert time.monotonic() < deadline, "the key stays"
    again = shared.take(asked)
    assert again is not None
    assert again.wait_seconds == 0


def test_many_at_once_get_no_more_than_the_bucket_holds(shared: Shared) -> None:
    asked = buckets(40, 100)
    with ThreadPoolExecutor(16) as pool:
        admissions = list(pool.map(lambda _: shared.take(asked), range(200)))
    assert all(each is not None for each in admissions)
    assert sum(each.wait_seconds == 0 for each in admissions if each) == 40


def test_redis_and_a_process_alone_count_the_same(shared: Shared) -> None:
    """The same random requests against both; time stands still for them, but for the microseconds that Redis counts."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(20):
        asked = buckets(chance.randint(1, 30), chance.randint(1, 30))
        alone = Alone(1, clock=lambda: 1.0)
        for _ in range(25):
            cost = chance.randint(1, 4)
            wanted = Wanted(cost + chance.randint(0, 3), cost, chance.random() < 0.1)
            one, other = shared.take(asked, wanted), alone.take(asked, wanted)
            assert one is not None
            assert (one.taken, one.limit, one.remaining) == (other.taken, other.limit, other.remaining), f"seed {seed}"
            assert abs(one.wait_seconds - other.wait_seconds) < 5, f"seed {seed}"


def test_processes_that_are_alone_share_the_quota() -> None:
    asked = buckets(8, 8)
    clock = [0.0]
    alone = Alone(4, clock=lambda: clock[0])
    granted = [alone.take(asked).wait_seconds == 0 for _ in range(5)]
    assert granted == [True, True, False, False, False]
    clock[0] += 4 * 60
    assert alone.take(asked).wait_seconds == 0


def test_a_process_alone_forgets_the_buckets_of_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BUCKETS", 10)
    alone = Alone(1)
    for _ in range(50):
        alone.take(buckets(5, 5))
    assert len(alone._full_at) <= 10


# --- Some at a time --------------------------------------------------------------------------------------------------


def test_a_busy_client_is_asked_for_seldom_and_gets_no_more_than_the_bucket_holds(shared: Shared) -> None:
    """Two processes, one bucket of a thousand: together they grant a thousand, and ask Redis far less often."""
    asked = buckets(1_000, 1_000)
    trips = [0]

    def take(each: Any, wanted: Wanted) -> Any:
        trips[0] += 1
        return shared.take(each, wanted)

    processes = [Leases(take), Leases(take)]
    admissions = [processes[number % 2].one(asked) for number in range(1_500)]
    granted = [each for each in admissions if each is not None and each.taken]
    assert len(granted) == 1_000
    assert trips[0] < 250
    assert all(0 <= each.remaining < 1_000 for each in granted)


def test_a_small_bucket_is_asked_each_time(shared: Shared) -> None:
    asked = buckets(40, 40)
    processes = [Leases(shared.take) for _ in range(4)]
    admissions = [processes[number % 4].one(asked) for number in range(60)]
    assert sum(each is not None and each.taken > 0 for each in admissions) == 40


def test_who_has_been_refused_is_refused_again_without_asking(shared: Shared) -> None:
    asked = buckets(1, 1)
    trips = [0]

    def take(each: Any, wanted: Wanted) -> Any:
        trips[0] += 1
        return shared.take(each, wanted)

    leases = Leases(take)
    began = time.monotonic()
    admissions = [leases.one(asked) for _ in range(100)]
    assert sum(each is not None and each.taken > 0 for each in admissions) == 1
    assert all(each is not None and each.wait_seconds > 0 for each in admissions[1:])
    assert trips[0] <= 3 + (time.monotonic() - began) / limits.REFUSAL_SECONDS


# --- Redis away ------------------------------------------------------------------------------------------------------


def test_a_redis_that_hangs_costs_one_short_wait_and_then_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # Takes connections, never answers.
        hanging = Shared(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        began = time.monotonic()
        assert hanging.take(buckets(1, 1)) is None
        first = time.monotonic() - began
        assert hanging.away
        began = time.monotonic()
        for _ in range(1_000):
            assert hanging.take(buckets(1, 1)) is None
        rest = time.monotonic() - began
        hanging.away = False  # Its thread stops looking.
    assert first >= limits.TIMEOUT_SECONDS
    assert rest < 1.0, "an open breaker asks nobody"


def test_the_breaker_closes_when_redis_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ASK_AGAIN_SECONDS", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    away = Shared(f"redis://127.0.0.1:{port}/0")
    assert away.take(buckets(1, 1)) is None
    away._redis = redis.Redis.from_url(settings.REDIS_URL)
    deadline = time.monotonic() + 10
    while away.away:
        assert time.monotonic() < deadline, "the breaker stays open"
    assert away.take(buckets(1, 1)) is not None


def test_requests_go_on_without_redis_and_are_still_counted(
    acme: Lender, quota: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    quota(10, 1)
    limits.alone.cache_clear()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    away = Shared(f"redis://127.0.0.1:{port}/0")
    monkeypatch.setattr(limits, "shared", lambda url: away)
    codes = [acme.api.get("/v1/accounts").status_code for _ in range(6)]
    away.away = False
    assert codes[0] == 200
    assert 429 in codes


# --- What a client is told -------------------------------------------------------------------------------------------


def test_every_answer_says_how_the_quota_stands(acme: Lender, quota: Callable[[int, int], None]) -> None:
    quota(1_000, 40)
    first, second = acme.api.get("/v1/accounts"), acme.api.get("/v1/loans/unknown")
    assert first.headers["RateLimit-Limit"] == str(int(40 * settings.RATE_BURST_SECONDS))
    assert int(first.headers["RateLimit-Remaining"]) == int(first.headers["RateLimit-Limit"]) - 1
    assert int(first.headers["RateLimit-Reset"]) >= 1
    assert "RateLimit-Limit" not in second.headers, "an unknown path asks for no quota"
    refused_answer = acme.api.post("/v1/payments", {})
    assert "RateLimit-Limit" in refused_answer.headers


def test_a_client_above_its_quota_is_told_when_to_come_again(
    acme: Lender, quota: Callable[[int, int], None], nothing_moves: Any
) -> None:
    quota(1_000, 1)
    answers = [acme.api.get("/v1/accounts") for _ in range(4)]
    assert [answer.status_code for answer in answers[:2]] == [200, 200]
    problem = refused(answers[-1], 429, "rate_limited")
    assert "client" in problem["detail"]
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert answers[-1].headers["RateLimit-Remaining"] == "0"
    with nothing_moves():
        refused(acme.api.post("/v1/payments", payment_of(acme.loan)), 429, "rate_limited")


def test_a_request_that_was_refused_has_not_used_its_key(acme: Lender, quota: Callable[[int, int], None]) -> None:
    quota(1_000, 1)
    key, body = new_key(), payment_of(acme.loan)
    for _ in range(3):
        acme.api.get("/v1/accounts")
    refused(acme.api.post("/v1/payments", body, key=key), 429, "rate_limited")
    quota(1_000, 1_000)
    posted(acme.api.post("/v1/payments", body, key=key))


def test_a_tenant_is_limited_whichever_client_calls(acme: Lender, quota: Callable[[int, int], None]) -> None:
    from hpts import oauth

    quota(1, 1_000)
    other, _ = oauth.register_client(tenant_id=acme.tenant_id, scopes=["hpts:balances:read"])
    second = Api(other)
    answers = [api.get("/v1/accounts", scopes=["hpts:balances:read"]) for api in (acme.api, second) * 3]
    problem = refused(answers[-1], 429, "rate_limited")
    assert "tenant" in problem["detail"]


def test_one_tenants_flood_does_not_use_up_anothers_quota(
    acme: Lender, zenith: Lender, quota: Callable[[int, int], None]
) -> None:
    quota(1, 1)
    for _ in range(5):
        acme.api.get("/v1/accounts")
    refused(acme.api.get("/v1/accounts"), 429, "rate_limited")
    shown(zenith.api.get("/v1/accounts"))


def test_a_batch_costs_what_is_in_it(acme: Lender, quota: Callable[[int, int], None]) -> None:
    quota(50, 50)
    items = [{"path": "/payments", "body": payment_of(acme.loan, 100 + n)} for n in range(99)]
    answer = acme.api.post("/v1/batches", {"mode": "atomic", "items": items})
    posted(answer)
    # A hundred come in two seconds, and some come back while the batch is posted.
    assert int(answer.headers["RateLimit-Remaining"]) < 75


def test_who_has_no_good_token_takes_nothing(acme: Lender, quota: Callable[[int, int], None]) -> None:
    quota(1, 1)
    for _ in range(5):
        refused(acme.api.get("/v1/accounts", scopes=None), 401, "invalid_token")
    shown(acme.api.get("/v1/accounts"))


def test_without_quotas_nothing_is_counted_and_nothing_told(acme: Lender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "TENANT_REQUESTS_PER_SECOND", 0)
    answer = acme.api.get("/v1/accounts")
    shown(answer)
    assert not [name for name in answer.headers if name.startswith("RateLimit")]


# --- The command -----------------------------------------------------------------------------------------------------


def test_a_tenants_quotas_are_set_one_by_one_and_taken_back(acme: Lender, capsys: pytest.CaptureFixture[str]) -> None:
    from ledger.queries import tenant_quota

    call_command("tenant_quota", tenant=acme.tenant_id, requests_per_second=7)
    call_command("tenant_quota", tenant=acme.tenant_id, client_requests_per_second=3)
    assert tenant_quota(acme.tenant_id) == (7, 3)
    call_command("tenant_quota", tenant=acme.tenant_id, default=True, json=True)
    assert tenant_quota(acme.tenant_id) == (None, None)
    assert '"requests_per_second": null' in capsys.readouterr().out
    with pytest.raises(CommandError):
        call_command("tenant_quota", tenant=acme.tenant_id, requests_per_second=0)


def test_the_application_cannot_raise_a_quota(acme: Lender) -> None:
    import psycopg

    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute("SELECT set_config('hpts.tenant_id', %s, true)", (acme.tenant_id,))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("UPDATE tenant SET requests_per_second = 1000000")
