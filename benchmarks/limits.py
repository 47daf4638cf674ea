"""What quotas cost a payment, and whether a noisy tenant is felt by another one.

    python -m hpts.embedded temporary .venv/bin/python -m benchmarks.limits

The cost: processor time per POST /payments, with quotas and without, request by request in turns. The neighbour: a
quiet tenant pays at a steady rate while another one sends first what its quota allows, then ten times that; in turns, too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import django

from benchmarks import load, server
from hpts import limits

PAYMENTS = 1_500
ROUNDS = 6
SECONDS = 2.5
CLIENTS = 4
LOANS = 50
NOISY_QUOTA = 20
QUIET_RATE = 50
COST_GOAL, NEIGHBOUR_GOAL = 0.10, 0.20


def tenant(name: str) -> tuple[str, str, list[tuple[str, str]]]:
    """A tenant with loans, and a token of its client: (tenant id, token, loans and borrowers)."""
    from hpts import oauth
    from hpts.tenancy import tenant_transaction
    from ledger import masters

    tenant_id, program_id = str(uuid.uuid4()), str(uuid.uuid4())
    loans = [(str(uuid.uuid4()), str(uuid.uuid4())) for _ in range(LOANS)]
    with tenant_transaction(tenant_id) as cursor:
        masters.create_tenant(cursor, name=name, currency="USD", timezone="UTC")
        masters.create_program(
            cursor, on=date(2026, 1, 1), program_id=program_id, name="Bench", currency="USD", annual_rate_bps=1_000,
            day_count_convention="ACT_365", waterfall=("fees", "interest", "principal"), accrual_mode="client",
        )  # fmt: skip
        for loan_id, borrower_id in loans:
            masters.create_loan(
                cursor, on=date(2026, 1, 1), loan_id=loan_id, borrower_id=borrower_id, program_id=program_id,
                opened_on=date(2026, 1, 1), principal_limit_minor=None, annual_rate_bps=None,
            )  # fmt: skip
    client, _ = oauth.register_client(tenant_id=tenant_id, scopes=["hpts:payments:write"], name=name)
    request: Any = SimpleNamespace(
        client=client, user=None, headers={}, scopes=["hpts:payments:write"], expires_in=3600
    )
    return tenant_id, oauth.access_token(request), loans


def body_of(loan_id: str, borrower_id: str) -> bytes:
    """A payment."""
    return json.dumps(
        {"loan_id": loan_id, "borrower_id": borrower_id, "amount_minor": "100", "currency": "USD",
         "effective_at": "2026-02-01", "source_method": "ach"}
    ).encode()  # fmt: skip


def payments(token: str, loans: Sequence[tuple[str, str]], count: int) -> list[bytes]:
    """That many different payments, as raw requests."""
    requests = []
    for number in range(count):
        loan_id, borrower_id = loans[number % len(loans)]
        body = body_of(loan_id, borrower_id)
        head = (
            f"POST /v1/payments HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
            f"Idempotency-Key: {uuid.uuid4()}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        requests.append(head.encode() + body)
    return requests


def cost() -> dict[str, Any]:
    """Processor microseconds of a payment, of this process and of Redis, with quotas and without: request by request in turns.

    In process, so that what else the machine does is felt by both alike, and by neither's processor time.
    """
    import redis
    from django.conf import settings
    from django.test import Client

    _, token, loans = tenant("Bench")
    client = Client(SERVER_NAME="localhost")
    used: dict[int, list[int]] = {0: [], 1_000_000: []}
    with redis.Redis.from_url(settings.REDIS_URL) as server_of_limits:
        before = _redis_seconds(server_of_limits)
        for number in range(2 * PAYMENTS):
            settings.TENANT_REQUESTS_PER_SECOND = settings.CLIENT_REQUESTS_PER_SECOND = rate = (0, 1_000_000)[
                number % 2
            ]
            loan_id, borrower_id = loans[number // 2 % len(loans)]
            limits.forget_quotas() if number < 2 else None
            began = time.thread_time_ns()
            answer = client.post(
                "/v1/payments",
                body_of(loan_id, borrower_id),
                "application/json",
                headers={"Authorization": f"Bearer {token}", "Idempotency-Key": str(uuid.uuid4())},
            )
            took = time.thread_time_ns() - began
            assert answer.status_code == 201, answer.content
            if number >= 200:
                used[rate].append(took)
        redis_us = (_redis_seconds(server_of_limits) - before) / PAYMENTS * 1e6
    without, with_quotas = (statistics.median(each) / 1_000 for each in used.values())
    ratio = (with_quotas + redis_us) / without
    return {"without_us": without, "with_us": with_quotas, "redis_us": redis_us, "ratio": ratio}


def _redis_seconds(client: Any) -> float:
    used = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


class Paced(threading.Thread):
    """Sends requests at a rate over some connections, and keeps what each took."""

    def __init__(self, port: int, requests: list[bytes], rate: float) -> None:
        super().__init__()
        self.port, self.requests, self.rate = port, requests, rate
        self.took: list[float] = []
        self.statuses: Counter[int] = Counter()

    def run(self) -> None:
        connection = load._Connection(self.port)
        connection.socket.settimeout(30)
        began = time.perf_counter()
        for number, request in enumerate(self.requests):
            pause = began + number / self.rate - time.perf_counter()
            if pause > 0:
                time.sleep(pause)
            sent = time.perf_counter()
            connection.socket.sendall(request)
            answer = _read(connection.socket)
            self.took.append((time.perf_counter() - sent) * 1_000)
            self.statuses[int(answer.split(b" ", 2)[1])] += 1
        connection.socket.close()


def _read(socket: Any) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += socket.recv(65_536)
    head, _, body = received.partition(b"\r\n\r\n")
    match = load._LENGTH.search(head + b"\r\n")
    missing = int(match[1]) - len(body) if match else 0
    while missing > 0:
        missing -= len(socket.recv(missing))
    return head


def flood(port: int, token: str, loans: list[list[str]], rate: float, seconds: float) -> None:
    """In a process of its own: four connections that together send at a rate."""
    each = int(rate * seconds / 4)
    threads = [Paced(port, payments(token, [(a, b) for a, b in loans], each), rate / 4) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(dict(sum((thread.statuses for thread in threads), Counter()))))


def neighbour(environment: dict[str, str], state: Path) -> dict[str, Any]:
    """The quiet tenant's p99 beside a tenant that keeps to its quota, and beside one that sends ten times as much."""
    noisy_id, noisy_token, noisy_loans = tenant("Noisy")
    _, quiet_token, quiet_loans = tenant("Quiet")
    from django.core.management import call_command

    call_command("tenant_quota", tenant=noisy_id, requests_per_second=NOISY_QUOTA)
    found: dict[str, list[float]] = {"1x": [], "10x": []}
    statuses: dict[str, list[dict[str, int]]] = {"1x": [], "10x": []}
    with server.running(server.product_command(), environment, state / "neighbour.log") as api:
        load.run(api.port, payments(quiet_token, quiet_loans, 400), clients=CLIENTS, status=201, seconds=60)
        for number in range(ROUNDS):
            pair = [("1x", 1), ("10x", 10)]
            for name, times in pair if number % 2 else reversed(pair):
                plan = json.dumps([api.port, noisy_token, noisy_loans, NOISY_QUOTA * times, 2 * SECONDS])
                noise = subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.limits", "flood"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
                assert noise.stdin is not None
                noise.stdin.write(plan)
                noise.stdin.close()
                time.sleep(1.0)
                quiet = Paced(api.port, payments(quiet_token, quiet_loans, int(QUIET_RATE * 2 * SECONDS)), QUIET_RATE)
                quiet.start()
                quiet.join()
                assert noise.stdout is not None
                statuses[name].append(json.loads(noise.stdout.read()))
                noise.wait()
                found[name] += quiet.took
    p99 = {name: load.quantile(sorted(took), 0.99) for name, took in found.items()}
    p50 = {name: load.quantile(sorted(took), 0.50) for name, took in found.items()}
    return {"p50_ms": p50, "p99_ms": p99, "moved": p99["10x"] / p99["1x"] - 1, "noisy": statuses}


def main(arguments: list[str]) -> int:
    if arguments == ["flood"]:
        flood(*json.loads(sys.stdin.read()))
        return 0
    migrate = [sys.executable, "manage.py", "migrate", "--database", "owner", "--verbosity", "0"]
    subprocess.run(migrate, check=True)
    with tempfile.TemporaryDirectory() as directory:
        # Every request is logged, as it would be; but not here.
        os.environ["HPTS_LOG_FILE"] = str(Path(directory) / "log")
        django.setup()
        report = {"cost": cost(), "neighbour": neighbour({}, Path(directory))}
    print(json.dumps(report, indent=1))
    dear = report["cost"]["ratio"] - 1
    moved = report["neighbour"]["moved"]
    print(f"Quotas cost {dear:.1%} of a payment's processor time; the goal is {COST_GOAL:.0%}.")
    print(f"A tenant at ten times its quota moves another's p99 by {moved:.1%}; the goal is {NEIGHBOUR_GOAL:.0%}.")
    return int(dear > COST_GOAL or moved > NEIGHBOUR_GOAL)


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hpts.settings")
    sys.exit(main(sys.argv[1:]))
