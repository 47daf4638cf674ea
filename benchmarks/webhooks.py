"""`make bench-webhooks`: deliveries a second against one POST per task, the lag under load, and the relay with a long past.

Everything is measured on servers of its own, on this machine, in turn; the receivers and what posts share its processors.

    python -m benchmarks.webhooks                    all of it; the figures go to RESULTS-webhooks.md
    python -m benchmarks.webhooks receive DELAY      a receiver that answers after DELAY milliseconds
    python -m benchmarks.webhooks post TENANT RATE SECONDS
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.server import processor_seconds

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "RESULTS-webhooks.md"
ENDPOINTS = 20
WORKERS = 2
MEASURED_SECONDS = 6.0
POSTS_PER_SECOND, POSTING_SECONDS = 200, 15
PAST = 1_000_000


# --- Other processes -------------------------------------------------------------------------------------------------


class _Receiver(asyncio.Protocol):
    """The smallest HTTP server that keeps connections: what it takes of the processors is not the senders'."""

    delay = 0.0
    count = 0
    lags: list[float] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = 0
            if (at := head.find(b"content-length:")) >= 0:
                length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            if head.startswith(b"get"):
                seen = json.dumps({"count": _Receiver.count, "lags": _Receiver.lags}).encode()
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(seen), seen))
                continue
            _Receiver.count += 1
            at = body.find(b'"occurred_at":"') + 15
            posted = datetime.fromisoformat(body[at : at + 27].decode()).timestamp()
            _Receiver.lags.append(time.time() - posted)
            if self.delay:
                asyncio.get_running_loop().call_later(self.delay, self._acknowledge)
            else:
                self._acknowledge()

    def _acknowledge(self) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def receive(delay_ms: float) -> None:
    _Receiver.delay = delay_ms / 1000

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Receiver, "127.0.0.1", 0, backlog=1024)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(serve())


def post(tenant_id: str, rate: int, seconds: float) -> None:
    """Post so many payments a second, in four threads."""
    import django

    django.setup()
    from ledger.posting import Origin
    from ledger.posting import post as post_event

    loans = _loans(tenant_id)
    began = time.monotonic() + 0.5
    missed = []

    def run(first: int) -> None:
        for number in range(first, int(rate * seconds), 4):
            at = began + number / rate
            time.sleep(max(at - time.monotonic(), 0))
            origin = Origin(tenant_id, "client:bench", str(uuid.uuid4()))
            post_event(origin, _payment(loans[number % len(loans)]))
            missed.append(time.monotonic() - at)

    threads = [threading.Thread(target=run, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"posts": len(missed), "seconds": time.monotonic() - began}), flush=True)


@contextlib.contextmanager
def receiver(delay_ms: float) -> Iterator[int]:
    """A receiver in a process of its own; gives its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.webhooks", "receive", str(delay_ms)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def seen(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
        result: dict[str, Any] = json.loads(answer.read())
        return result


@contextlib.contextmanager
def processes(*commands: Sequence[str], log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    with open(log, "ab") as output:
        started = [subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output) for command in commands]
    try:
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# --- The book --------------------------------------------------------------------------------------------------------

LOANS = 50


def _payment(loan_id: str) -> Any:
    from ledger.events import PaymentReceived

    return PaymentReceived(
        loan_id=loan_id, amount_minor=1, currency="USD", effective_at=date(2026, 2, 1), source_method="ach"
    )


def _loans(tenant_id: str) -> list[str]:
    return [str(uuid.uuid5(uuid.UUID(tenant_id), str(number))) for number in range(LOANS)]


def make_tenant(port: int, events: int) -> str:
    """A tenant whose endpoints are at the receiver, and whose payments wait to be delivered."""
    from hpts.tenancy import tenant_transaction
    from ledger import masters
    from ledger.chart import RECEIVABLES
    from ledger.events import Disbursement
    from ledger.posting import Origin, Touches, opened
    from webhooks import operations, signing
    from webhooks import serializers as shapes

    tenant_id, program_id, opened_on = str(uuid.uuid4()), str(uuid.uuid4()), date(2026, 1, 1)
    with tenant_transaction(tenant_id) as cursor:
        masters.create_tenant(cursor, name="Bench", currency="USD", timezone="UTC")
        masters.create_program(
            cursor,
            on=opened_on,
            program_id=program_id,
            name="Loans",
            currency="USD",
            annual_rate_bps=1000,
            day_count_convention="ACT_365",
            waterfall=RECEIVABLES,
            accrual_mode="client",
        )
        for loan_id in _loans(tenant_id):
            masters.create_loan(
                cursor,
                on=opened_on,
                loan_id=loan_id,
                borrower_id=str(uuid.uuid4()),
                program_id=program_id,
                opened_on=opened_on,
                principal_limit_minor=None,
                annual_rate_bps=None,
            )

    def post_all(made: Sequence[Any]) -> None:
        touches = Touches(loans=_loans(tenant_id), since=opened_on)
        with opened(Origin(tenant_id, "client:bench", str(uuid.uuid4())), touches) as (posting, _):
            assert posting is not None
            for event in made:
                posting.post(event)
            posting.record()

    post_all(
        [
            Disbursement(loan_id=loan_id, amount_minor=10**9, currency="USD", effective_at=opened_on)
            for loan_id in _loans(tenant_id)
        ]
    )
    relay_everything(tenant_id)
    with tenant_transaction(tenant_id) as cursor:
        for number in range(ENDPOINTS):
            body = shapes.NewWebhookEndpoint(url=f"http://127.0.0.1:{port}/{number}")  # type: ignore[arg-type]
            operations.create_endpoint(cursor, body, signing.new_secret(), None)
    for start in range(0, events, 250):
        post_all([_payment(loan_id) for loan_id in (_loans(tenant_id) * 5)[: min(250, events - start)]])
    relay_everything(tenant_id)
    return tenant_id


def relay_everything(tenant_id: str) -> None:
    from webhooks.relay import relay

    while relay(tenant_id):
        pass


# --- Figures ---------------------------------------------------------------------------------------------------------


def rate_of(port: int, started: list[subprocess.Popen[bytes]], most: int) -> tuple[float, float]:
    """Deliveries a second and microseconds of the senders' processors each, over the measured seconds, after the senders are
    warm."""
    while seen(port)["count"] < 20:
        time.sleep(0.05)
    time.sleep(0.5)
    before, spent, began = seen(port)["count"], _spent(started), time.monotonic()
    while time.monotonic() - began < MEASURED_SECONDS and seen(port)["count"] < most * 0.95:
        time.sleep(0.1)
    count, seconds = seen(port)["count"] - before, time.monotonic() - began
    return count / seconds, 1e6 * (_spent(started) - spent) / max(count, 1)


def _spent(started: list[subprocess.Popen[bytes]]) -> float:
    return sum(processor_seconds(process.pid) for process in started)


def product_rate(delay_ms: float, log: Path) -> tuple[float, float]:
    with receiver(delay_ms) as port:
        events = 2_000 if delay_ms == 0 else 800
        make_tenant(port, events)
        command = [sys.executable, "manage.py", "deliver_webhooks"]
        with processes(*[command] * WORKERS, log=log) as started:
            return rate_of(port, started, events * ENDPOINTS)


def task_rate(delay_ms: float, log: Path) -> tuple[float, float]:
    from benchmarks.one_post_per_task import deliver
    from hpts.tenancy import tenant_transaction

    with receiver(delay_ms) as port:
        tenant_id = make_tenant(port, 200)
        with tenant_transaction(tenant_id) as cursor:
            cursor.execute("SELECT id::text FROM webhook_delivery WHERE tenant_id = %s", (tenant_id,))
            ids = [delivery_id for (delivery_id,) in cursor.fetchall()]
        for delivery_id in ids:
            deliver.delay(tenant_id, delivery_id)
        command = [sys.executable, "-m", "celery", "--app", "benchmarks.one_post_per_task", "worker", "--queues",
                   "one_post_per_task", "--pool", "prefork", "--concurrency", str(WORKERS), "--without-gossip",
                   "--without-mingle", "--loglevel", "warning"]  # fmt: skip
        with processes(command, log=log) as started:
            figures = rate_of(port, started, len(ids))
    _forget(tenant_id)
    return figures


def _forget(tenant_id: str) -> None:
    """What is left of a measurement is none of the next one's work."""
    from hpts.tenancy import tenant_transaction

    with tenant_transaction(tenant_id) as cursor:
        cursor.execute(
            """UPDATE webhook_endpoint SET state = 'disabled', disabled_reason = 'deleted' WHERE tenant_id = %s""",
            (tenant_id,),
        )


def lag(endpoints_per_event: int, log: Path) -> dict[str, float]:
    """Seconds from an entry's posting to its arrival, at a steady rate of posts."""
    from hpts.tenancy import tenant_transaction
    from ledger.events import EventKind

    with receiver(0) as port:
        tenant_id = make_tenant(port, 0)
        if endpoints_per_event < ENDPOINTS:
            # The others want kinds that are not posted here.
            with tenant_transaction(tenant_id) as cursor:
                cursor.execute(
                    """INSERT INTO webhook_endpoint (tenant_id, id, url, event_types, secret)
                       SELECT tenant_id, gen_random_uuid(), url, ARRAY[%s], secret FROM webhook_endpoint
                       WHERE tenant_id = %s ORDER BY id LIMIT %s""",
                    (EventKind.CHARGEOFF.value, tenant_id, ENDPOINTS - endpoints_per_event),
                )
                cursor.execute(
                    """UPDATE webhook_endpoint SET state = 'disabled', disabled_reason = 'deleted' WHERE (tenant_id, id) IN (
                           SELECT tenant_id, id FROM webhook_endpoint
                           WHERE tenant_id = %s AND event_types = '{}' ORDER BY id LIMIT %s)""",
                    (tenant_id, ENDPOINTS - endpoints_per_event),
                )
        command = [sys.executable, "manage.py", "deliver_webhooks"]
        expected = POSTS_PER_SECOND * POSTING_SECONDS * endpoints_per_event
        with processes(*[command] * WORKERS, log=log):
            time.sleep(3)
            posting = [sys.executable, "-m", "benchmarks.webhooks", "post", tenant_id]
            done = subprocess.run(
                [*posting, str(POSTS_PER_SECOND), str(POSTING_SECONDS)], cwd=ROOT, check=True, stdout=subprocess.PIPE
            )
            posted = json.loads(done.stdout)
            deadline = time.monotonic() + 120
            while seen(port)["count"] < expected and time.monotonic() < deadline:
                time.sleep(0.2)
        lags = sorted(seen(port)["lags"])
    _forget(tenant_id)
    return {
        "posts_per_second": posted["posts"] / posted["seconds"],
        "deliveries": len(lags),
        "expected": expected,
        "p50": lags[len(lags) // 2],
        "p99": lags[int(len(lags) * 0.99)],
        "worst": lags[-1],
    }


def relay_with_a_past(state: Path, variables: dict[str, str]) -> dict[str, float]:
    """Milliseconds of a relay of 100 entries to 20 endpoints, of a claim and of a sweep: without a past, and with a million
    deliveries made."""
    import psycopg

    from hpts import embedded
    from hpts.tenancy import tenant_transaction
    from webhooks import delivery, queries
    from webhooks.relay import relay

    figures: dict[str, float] = {}

    def measure(name: str) -> None:
        tenant_id = make_tenant(1, 0)
        if name == "past":
            with psycopg.connect(embedded.administrator_url(state, variables), autocommit=True) as connection:
                connection.execute("SET session_replication_role = replica")
                connection.execute(
                    """INSERT INTO webhook_delivery (tenant_id, id, endpoint_id, sequence, event_type, state, finished_at,
                                                     attempt)
                       SELECT e.tenant_id, gen_random_uuid(), e.id, 1000000 + n, 'payment_received', 'succeeded', now(), 1
                       FROM webhook_endpoint e, generate_series(1, %s) n WHERE e.tenant_id = %s::uuid""",
                    (PAST // ENDPOINTS, tenant_id),
                )
                connection.execute("ANALYZE webhook_delivery")
        times: dict[str, list[float]] = {"relay": [], "claim": [], "sweep": []}
        for _ in range(15):
            _post_some(tenant_id, 100)
            with _timed(times["relay"]):
                relay(tenant_id, limit=100)
            with _timed(times["sweep"]):
                queries.work()
            with tenant_transaction(tenant_id) as cursor, _timed(times["claim"]):
                delivery.alone(cursor)
                delivery.release(cursor)
                claims = delivery.claim(cursor, 80)
            with tenant_transaction(tenant_id) as cursor:
                done = delivery.Outcome(200)
                delivery.settle(cursor, [delivery.Result(each, done, delivery.verdict(1, done)) for each in claims])
        figures.update({f"{kind} {name}": 1e3 * median(values) for kind, values in times.items()})
        _forget(tenant_id)

    measure("fresh")
    measure("past")
    return figures


def _post_some(tenant_id: str, count: int) -> None:
    from ledger.posting import Origin, Touches, opened

    touches = Touches(loans=_loans(tenant_id), since=date(2026, 1, 1))
    with opened(Origin(tenant_id, "client:bench", str(uuid.uuid4())), touches) as (posting, _):
        assert posting is not None
        for loan_id in (_loans(tenant_id) * (count // LOANS + 1))[:count]:
            posting.post(_payment(loan_id))
        posting.record()


@contextlib.contextmanager
def _timed(times: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    times.append(time.perf_counter() - began)


# --- Command line ----------------------------------------------------------------------------------------------------


def measure(state: Path, variables: dict[str, str], say: Callable[[str], None]) -> list[str]:
    """The report's lines."""
    lines = ["| case | one POST per task | product | ratio | goal |", "|---|---:|---:|---:|---|"]
    for delay_ms, goal in ((0, 8), (50, 30)):
        ratios, pairs = [], []
        for number in (1, 2, 3):
            say(f"round {number}, receiver answers after {delay_ms} ms")
            task, product = task_rate(delay_ms, state / "task.log"), product_rate(delay_ms, state / "product.log")
            pairs.append((task, product))
            ratios.append(product[0] / task[0])
            say(
                f"  one POST per task {task[0]:,.0f}/s {task[1]:,.0f} us, product {product[0]:,.0f}/s {product[1]:,.0f} us"
            )
        middle = sorted(range(3), key=lambda number: ratios[number])[1]
        task, product = pairs[middle]
        met = "met" if ratios[middle] >= goal else "not met"
        lines.append(
            f"| deliveries a second, receiver {delay_ms} ms | {task[0]:,.0f} | {product[0]:,.0f} | {ratios[middle]:.1f} "
            f"({min(ratios):.1f}-{max(ratios):.1f}) | ≥ {goal}: {met} |"
        )
    lines += ["", "| lag, posting to arrival | posts/s | deliveries | p50 s | p99 s | worst s | goal |",
              "|---|---:|---:|---:|---:|---:|---|"]  # fmt: skip
    for wanted in (1, 5, ENDPOINTS):
        say(f"lag, {wanted} of {ENDPOINTS} endpoints want each entry")
        found = lag(wanted, state / "lag.log")
        say(f"  {found}")
        met = "met" if found["p99"] <= 5 and found["deliveries"] >= found["expected"] else "not met"
        lines.append(
            f"| {wanted} of {ENDPOINTS} endpoints want each entry | {found['posts_per_second']:,.0f} | "
            f"{found['deliveries']:,.0f} of {found['expected']:,.0f} | {found['p50']:.2f} | {found['p99']:.2f} | "
            f"{found['worst']:.2f} | p99 ≤ 5: {met} |"
        )
    say("the relay with a million deliveries behind it")
    past = relay_with_a_past(state, variables)
    lines += ["", "| ms | fresh | 1,000,000 delivered | ratio |", "|---|---:|---:|---:|"]
    for kind, what in (("relay", "relay 100 entries to 20 endpoints"), ("claim", "claim 80"), ("sweep", "sweep")):
        fresh, late = past[f"{kind} fresh"], past[f"{kind} past"]
        lines.append(f"| {what} | {fresh:.1f} | {late:.1f} | {late / fresh:.2f} |")
    return lines


def main(arguments: list[str]) -> int:
    match arguments:
        case ["receive", delay]:
            receive(float(delay))
            return 0
        case ["post", tenant_id, rate, seconds]:
            post(tenant_id, int(rate), float(seconds))
            return 0
    from benchmarks.bench import throwaway_servers

    with throwaway_servers() as (state, variables):
        os.environ["WEBHOOK_ALLOW_PRIVATE_TARGETS"] = "1"
        import django

        django.setup()
        lines = measure(state, variables, lambda text: print(text, flush=True))
    head = [
        "# Results of webhooks",
        "",
        f"`make bench-webhooks`, {datetime.now(UTC):%d %B %Y %H:%M} UTC. What is compared is in [README.md](README.md).",
        "",
        f"- {os.cpu_count()} processors, {WORKERS} workers, {ENDPOINTS} endpoints",
        "",
    ]
    RESULTS.write_text("\n".join([*head, *lines, ""]))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
