"""`make bench-proof`: account balances, roll-up and proofs, in a book of many lines and in an empty one.

    python -m hpts.embedded temporary .venv/bin/python -m benchmarks.proof [--lines N] [--seconds S]

The book is one that people have: loans lent over three years, and payments on them, each through the one write path, in
transactions of many. Reads are timed over HTTP, with one client, on an empty tenant and on the book, in turn, while nothing else
runs; then, for the roll-up, posts in process with it and without it, in turn. The admin's pages are timed on the book alone.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import django
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

LINES, SECONDS, ROUNDS = 10_000_000, 10.0, 4
OPENED_ON, DAYS = date(2023, 1, 2), 1_095
TOGETHER, PAID_TOGETHER = 250, 20
# Entries that the incremental proof is measured on.
NEW = 6_000
WRITERS = 3
console = Console(highlight=False)


@dataclass
class Lender:
    """A tenant of the bench: its loans, and how the API knows it."""

    name: str
    tenant_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    program_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    loans: list[tuple[str, str]] = field(default_factory=list)
    client: tuple[str, str] = ("", "")

    def open(self) -> None:
        from hpts import oauth
        from hpts.tenancy import tenant_transaction
        from ledger import masters
        from ledger.chart import RECEIVABLES

        with tenant_transaction(self.tenant_id) as cursor:
            masters.create_tenant(cursor, name=self.name, currency="USD", timezone="UTC")
            masters.create_program(
                cursor,
                on=OPENED_ON,
                program_id=self.program_id,
                name="Instalment loans",
                currency="USD",
                annual_rate_bps=1200,
                day_count_convention="ACT_365",
                waterfall=RECEIVABLES,
                accrual_mode="client",
            )
        registered, secret = oauth.register_client(tenant_id=self.tenant_id, scopes=oauth.SCOPES)
        self.client = (registered.client_id, secret)

    def lend(self, count: int) -> None:
        from hpts.tenancy import tenant_transaction
        from ledger import masters
        from ledger.events import Disbursement
        from ledger.posting import uuid7

        loans = [(uuid7("2023-01-02T00:00:00+00:00"), str(uuid.uuid4())) for _ in range(count)]
        with tenant_transaction(self.tenant_id) as cursor:
            masters.create_loans(
                cursor, program_id=self.program_id, opened_on=OPENED_ON, loans=[(*loan, None) for loan in loans]
            )
        self.loans += loans
        self.post(
            [
                Disbursement(loan_id=loan_id, amount_minor=10_000_000, currency="USD", effective_at=OPENED_ON)
                for loan_id, _ in loans
            ]
        )

    def post(self, events: list[Any]) -> None:
        """Many entries in one transaction."""
        from ledger.posting import Origin, Touches, opened

        origin = Origin(self.tenant_id, "client:bench", str(uuid.uuid4()))
        touches = Touches([event.loan_id for event in events], since=OPENED_ON)
        with opened(origin, touches) as (posting, _):
            assert posting is not None
            for event in events:
                posting.post(event)
            posting.record()

    def payment(self, draw: random.Random) -> Any:
        from ledger.events import PaymentReceived

        return PaymentReceived(
            loan_id=draw.choice(self.loans)[0],
            amount_minor=draw.randrange(1, 500),
            currency="USD",
            effective_at=OPENED_ON + timedelta(days=draw.randrange(DAYS)),
            source_method="ach",
        )

    def fill(self, lines: int, progress: Progress) -> None:
        """Two lines a loan, two a payment: twenty payments on each loan, on days of three years."""
        draw = random.Random(1)
        loans = max(lines // 42, TOGETHER)
        task = progress.add_task(f"Posting {lines} lines", total=loans * 21)
        for start in range(0, loans, TOGETHER):
            batch = min(TOGETHER, loans - start)
            self.lend(batch)
            progress.advance(task, batch)
            for _ in range(batch * 20 // TOGETHER):
                self.post([self.payment(draw) for _ in range(TOGETHER)])
                progress.advance(task, TOGETHER)

    def catch_up(self) -> float:
        """Roll up to the end; gives the seconds."""
        from ledger import balances

        began = time.perf_counter()
        while balances.roll_up(self.tenant_id, seconds=600.0):
            pass
        return time.perf_counter() - began

    def seal(self) -> float:
        """Seal to the end; gives the seconds."""
        from ledger import seals

        began = time.perf_counter()
        while seals.seal(self.tenant_id):
            pass
        return time.perf_counter() - began


# --- Reads -----------------------------------------------------------------------------------------------------------


class Reader:
    """One client of the API, for one lender."""

    def __init__(self, port: int, lender: Lender) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port)
        form = urllib.parse.urlencode(
            {"grant_type": "client_credentials", "client_id": lender.client[0], "client_secret": lender.client[1]}
        )
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        self.connection.request("POST", "/oauth2/token", form, headers)
        self.headers = {"Authorization": "Bearer " + json.load(self.connection.getresponse())["access_token"]}

    def seconds(self, path: str) -> float:
        began = time.perf_counter()
        self.connection.request("GET", path, headers=self.headers)
        answer = self.connection.getresponse()
        body = answer.read()
        taken = time.perf_counter() - began
        if answer.status != 200:
            raise RuntimeError(f"{path} answered {answer.status}: {body[:300]!r}")
        self.last = json.loads(body)
        return taken


def reads(empty: Lender, full: Lender, seconds: float) -> dict[str, float]:
    """p99 in milliseconds of both questions in both books, as of days of three years, asked in turn."""
    from benchmarks import server
    from benchmarks.load import quantile

    draw = random.Random(2)
    taken: dict[tuple[str, str], list[float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        server.running(server.product_command(), {}, Path(folder) / "server.log") as running,
    ):
        readers = {lender.name: Reader(running.port, lender) for lender in (empty, full)}
        until = time.monotonic() + 2 * seconds
        while time.monotonic() < until:
            query = f"currency=USD&as_of_date={OPENED_ON + timedelta(days=draw.randrange(DAYS))}"
            for question, path in (("balance", "/v1/accounts/1100/balance"), ("trial balance", "/v1/trial-balance")):
                for name, reader in readers.items():
                    taken.setdefault((question, name), []).append(reader.seconds(f"{path}?{query}"))
    figures: dict[str, float] = {}
    for question in ("balance", "trial balance"):
        for share, label in ((0.5, "p50"), (0.99, "p99")):
            at_zero, at_size = (
                # The first of each opens connections and makes plans.
                quantile(sorted(taken[question, lender.name][20:]), share) * 1_000
                for lender in (empty, full)
            )
            figures[f"{question} {label} ms, empty"] = at_zero
            figures[f"{question} {label} ms, book"] = at_size
            figures[f"{question} {label} ratio"] = at_size / at_zero
    return figures


def pages(full: Lender, seconds: float) -> dict[str, float]:
    """p99 in milliseconds of the admin's pages that grow with the books, as platform staff sees them."""
    from benchmarks import server
    from benchmarks.load import quantile

    draw = random.Random(4)
    cookie = {"Cookie": _signed_in(full.tenant_id)}
    entries = _some_entries(full.tenant_id)
    shown: dict[str, Callable[[], str]] = {
        "dashboard": lambda: "",
        "account page": lambda: "accounts/1100/",
        "trial balance page": lambda: "trial-balance/",
        "journal page": lambda: "entries/",
        "loans page": lambda: "loans/",
        "loan page": lambda: f"loans/{draw.choice(full.loans)[0]}/",
        "entry page": lambda: f"entries/{draw.choice(entries)}/",
        "found by id": lambda: f"find/?q={draw.choice(full.loans)[0]}",
        "found by amount": lambda: f"find/?q={draw.randrange(1, 500) / 100}",
    }
    taken: dict[str, list[float]] = {name: [] for name in shown}
    with (
        tempfile.TemporaryDirectory() as folder,
        server.running(server.product_command(), {}, Path(folder) / "server.log") as running,
    ):
        connection = http.client.HTTPConnection("127.0.0.1", running.port)
        until = time.monotonic() + 3 * seconds
        while time.monotonic() < until:
            for name, path in shown.items():
                began = time.perf_counter()
                connection.request("GET", f"/admin/{path()}", headers=cookie)
                answer = connection.getresponse()
                answer.read()
                taken[name].append(time.perf_counter() - began)
                if answer.status not in (200, 302) or "login" in answer.headers.get("Location", ""):
                    raise RuntimeError(f"the {name} answered {answer.status}")
    return {f"{name} p99 ms": quantile(sorted(times[5:]), 0.99) * 1_000 for name, times in taken.items()}


def _signed_in(tenant_id: str) -> str:
    """The cookie of a session of platform staff that looks at these books."""
    from django.conf import settings
    from django.contrib.auth.models import User
    from django.contrib.sessions.backends.db import SessionStore

    from hpts.access import CHOSEN_TENANT

    person = User.objects.create_superuser(f"bench-{uuid.uuid4().hex[:8]}", password=None)
    session = SessionStore()
    session["_auth_user_id"] = str(person.pk)
    session["_auth_user_backend"] = "hpts.access.StaffBackend"
    session["_auth_user_hash"] = person.get_session_auth_hash()
    session[CHOSEN_TENANT] = tenant_id
    session.create()
    return f"{settings.SESSION_COOKIE_NAME}={session.session_key}"


def _some_entries(tenant_id: str) -> list[str]:
    from hpts.tenancy import tenant_transaction

    with tenant_transaction(tenant_id) as cursor:
        cursor.execute("SELECT id::text FROM journal_entry ORDER BY content_hash LIMIT 1000")
        return [entry_id for (entry_id,) in cursor.fetchall()]


def under_writes(full: Lender, seconds: float) -> dict[str, float]:
    """p99 of both questions while 300 payments a second are posted; every trial balance that is read must be one."""
    from benchmarks import server
    from benchmarks.load import quantile

    questions = {"balance": "/v1/accounts/1100/balance?currency=USD", "trial balance": "/v1/trial-balance?currency=USD"}
    taken: dict[str, list[float]] = {name: [] for name in questions}
    command = [sys.executable, "-m", "benchmarks.proof", "write", full.tenant_id]
    with (
        tempfile.TemporaryDirectory() as folder,
        server.running(server.product_command(), {}, Path(folder) / "server.log") as running,
    ):
        roller = subprocess.Popen([*command[:3], "roll-up"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            reader = Reader(running.port, full)
            began = time.monotonic()
            while time.monotonic() < began + 2 * seconds:
                for name, path in questions.items():
                    taken[name].append(reader.seconds(path))
                    if name == "trial balance" and reader.last["total_dr_minor"] != reader.last["total_cr_minor"]:
                        raise RuntimeError("a reader has seen debits without their credits")
            spent = time.monotonic() - began
        finally:
            posted = int(writer.communicate()[0])
            roller.communicate()
    figures = {
        f"{name} p99 ms, under writes": quantile(sorted(times[20:]), 0.99) * 1_000 for name, times in taken.items()
    }
    return figures | {"posted meanwhile, writes/s": posted / spent}


def _writing(tenant_id: str, rate: float) -> None:
    """Payments at a steady rate until the input ends; then says how many they were."""
    from hpts.tenancy import tenant_transaction

    lender = Lender("book", tenant_id=tenant_id)
    with tenant_transaction(tenant_id) as cursor:
        cursor.execute("SELECT id::text, borrower_id::text FROM loan ORDER BY id LIMIT 2000")
        lender.loans = cursor.fetchall()
    ended, posted, lock = threading.Event(), 0, threading.Lock()

    def work(number: int) -> None:
        nonlocal posted
        draw, due = random.Random(number), time.monotonic() + number / rate
        while not ended.wait(max(due - time.monotonic(), 0)):
            lender.post([lender.payment(draw)])
            due += WRITERS / rate
            with lock:
                posted += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()
    print(posted)


# --- Posts with and without the roll-up and the sealer ----------------------------------------------------------------


def _rolling_up() -> None:
    """A worker of its own, as beat has it: rolls up every two seconds and seals every six until its input ends."""
    from ledger import balances, seals

    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    print("ready", flush=True)
    for sweep in itertools.count():
        if ended.wait(2.0):
            return
        for tenant_id in balances.tenants_behind():
            balances.roll_up(tenant_id)
        if sweep % 3 == 0:
            seals.seal_all(seconds=4.0)


def _posts(lender: Lender, seconds: float) -> float:
    draw = random.Random(time.monotonic_ns())
    until, posted = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        lender.post([lender.payment(draw)])
        posted += 1
    return posted / seconds


def throughput(lender: Lender, seconds: float) -> dict[str, float]:
    """Posts a second, one client in process, in turn without and with the roll-up and the sealer beside it."""
    without, beside = [], []
    for _ in range(ROUNDS):
        without.append(_posts(lender, seconds / 2))
        command = [sys.executable, "-m", "benchmarks.proof", "roll-up"]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert worker.stdout is not None
            worker.stdout.readline()
            beside.append(_posts(lender, seconds / 2))
        finally:
            worker.communicate()
    ratios = [with_it / alone for with_it, alone in zip(beside, without, strict=True)]
    return {
        "posts/s alone": median(without),
        "posts/s beside roll-up and sealer": median(beside),
        "ratio": median(ratios),
    }


# --- Proofs ----------------------------------------------------------------------------------------------------------


def proofs(lender: Lender) -> dict[str, float]:
    from reconciliation.proving import prove

    full = prove(lender.tenant_id, full=True, actor="bench", jobs=os.cpu_count() or 1)
    if full.failed:
        raise RuntimeError(f"the book is not in order: {full.breaches[:3]}")
    draw = random.Random(3)
    for _ in range(NEW // PAID_TOGETHER):
        lender.post([lender.payment(draw) for _ in range(PAID_TOGETHER)])
    lender.catch_up()
    new = prove(lender.tenant_id, full=False, actor="bench")
    if new.failed:
        raise RuntimeError(f"the book is not in order: {new.breaches[:3]}")
    slow = sorted(full.findings.items(), key=lambda item: -item[1].seconds)[:5]
    console.print("Slowest checks:", ", ".join(f"{name} {finding.seconds:.1f} s" for name, finding in slow))
    return {
        "full proof, lines/s": full.lines / full.seconds,
        "full proof, seconds": full.seconds,
        "proof of what is new, entries/s": new.entries / new.seconds,
        "proof of what is new, seconds": new.seconds,
    }


def main(arguments: list[str]) -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hpts.settings")
    os.environ.setdefault("HPTS_DEVELOPMENT", "1")
    if arguments[:1] in (["roll-up"], ["write"]):
        django.setup()
        if arguments[0] == "write":
            _writing(arguments[1], 300.0)
        else:
            _rolling_up()
        return 0
    parser = argparse.ArgumentParser(prog="make bench-proof")
    parser.add_argument("--lines", type=int, default=LINES, metavar="N")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="how long each thing is measured")
    options = parser.parse_args(arguments)
    migrate = [sys.executable, "manage.py", "migrate", "--database", "owner", "--verbosity", "0"]
    subprocess.run(migrate, check=True)
    django.setup()
    empty, full = Lender("empty"), Lender("book")
    for lender in (empty, full):
        lender.open()
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        full.fill(options.lines, progress)
    rolled = full.catch_up()
    _analyse()
    figures = {"rolled up, lines/s": options.lines / rolled, "sealed, lines/s": options.lines / full.seal()}
    figures |= reads(empty, full, options.seconds) | under_writes(full, options.seconds)
    figures |= pages(full, options.seconds) | proofs(full) | throughput(full, options.seconds)
    table = Table("Figure", title=f"{options.lines} lines")
    table.add_column("", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.2f}")
    console.print(table)
    return 0


def _analyse() -> None:
    """What autovacuum would have done in the days that such a book takes."""
    from django.db import connections

    with connections["owner"].cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
