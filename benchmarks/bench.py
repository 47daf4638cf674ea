"""`make bench`: the product's rates as ratios to the yardstick, measured in turn on servers of its own.

Every round measures each case next to the yardstick at the same number of clients, so that whatever else the machine does
meets both; the figure is the median of the rounds' ratios. README.md says what is measured, RESULTS.md has the last run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import inprocess, load, server, yardstick
from hpts import embedded

if TYPE_CHECKING:
    from benchmarks.book import Book

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
CLIENTS = (1, 4, 8, 16)
ROUNDS = 5
SOAK_REQUESTS = 100_000

console = Console(highlight=False)


@dataclass(frozen=True)
class Goal:
    """What a figure is held against: at least, or at most."""

    limit: float
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


# docs/operations.md has the service's own objectives; these are the ones that a release is measured against.
RATIO_GOALS = {"POST /payments, 8 clients": Goal(0.30, True), "post() in process, 2 x 4 threads": Goal(0.40, True),
               "database part, 8 clients": Goal(0.60, True),
               "payments in batches of 100, 1 client": Goal(2.5, True)}  # fmt: skip
P99_GOALS = {"POST /payments, 4 clients": Goal(25), "POST /payments, 16 clients": Goal(50),
             "GET balance, 4 clients": Goal(12), "GET history page, 4 clients": Goal(15),
             "GET balance, known_at, 4 clients": Goal(20), "GET statement, 5,000 entries": Goal(50)}  # fmt: skip
# Processor time of a fee, web and database, against a payment's; a batch's payments a second against single posts'.
FEES, BATCHES = "POST fees, 4 clients", "payments in batches of 100, 1 client"
SERVICING_GOAL = Goal(1.3)
MEMORY_GOAL = Goal(150)


@dataclass
class Case:
    """One line of the table: what its rounds gave."""

    name: str
    rates: list[float] = field(default_factory=list)
    yardsticks: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    web_us: list[float] = field(default_factory=list)
    database_us: list[float] = field(default_factory=list)
    client_us: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios."""
        if not self.yardsticks:
            return None
        return median(rate / limit for rate, limit in zip(self.rates, self.yardsticks, strict=True))


@dataclass(frozen=True)
class Plan:
    """How long and how often."""

    rounds: int
    seconds: int
    loans: int
    clients: tuple[int, ...] = CLIENTS


QUICK = Plan(rounds=ROUNDS, seconds=1, loans=1_000)
FULL = Plan(rounds=ROUNDS, seconds=4, loans=4_000)


class Bench:
    """Servers, book and yardstick of one run, and what has been measured."""

    def __init__(self, plan: Plan, state: Path, variables: dict[str, str]) -> None:
        from django.conf import settings

        from benchmarks.book import Book

        self.plan = plan
        self.state = state
        self.database_url = variables["DATABASE_URL"]
        self.administrator_url = embedded.administrator_url(state, variables)
        self.postmaster = int((state / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        self.session = settings.DATABASES["default"]["OPTIONS"]["options"]
        self.book: Book = Book(loans=plan.loans)
        self.cases: dict[str, Case] = {}
        self.yardstick_us: dict[int, list[float]] = defaultdict(list)
        self.memory: list[float] = []

    def case(self, name: str) -> Case:
        return self.cases.setdefault(name, Case(name))

    def prepare(self, progress: Progress) -> None:
        """The yardstick's database and the book."""
        from django.db import connections

        from benchmarks import book

        task = progress.add_task(
            "making the yardstick and the book", total=book.TENANTS * (book.RESERVED_LOANS + self.plan.loans)
        )
        self.yardstick_url = yardstick.make_yardstick(self.administrator_url)
        self.book.make(lambda loans: progress.advance(task, loans))
        yardstick.make_database_part(self.administrator_url, *book.recorded_payment())
        connections.close_all()
        with psycopg.connect(self.administrator_url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
        progress.update(task, visible=False)

    # --- One measurement each ----------------------------------------------------------------------------------------

    def measure_yardstick(self, clients: int) -> float:
        before = server.processor_seconds(self.postmaster, ended=True)
        rate = yardstick.run(self.yardstick_url, yardstick.YARDSTICK, clients=clients, seconds=self.plan.seconds)
        spent = server.processor_seconds(self.postmaster, ended=True) - before
        self.yardstick_us[clients].append(1e6 * spent / (rate * self.plan.seconds))
        return rate

    def measure_payments(
        self, api: server.Server, clients: int, seconds: float, name: str | None = None
    ) -> load.Report:
        requests = self.book.payments(self.take(seconds))
        report = self._requests(
            api, self.case(name or f"POST /payments, {clients} clients"), requests, clients, 201, seconds
        )
        self.book.paid(report.answers)
        return report

    def measure_reads(self, api: server.Server, name: str, requests: list[bytes], clients: int) -> None:
        self._requests(api, self.case(name), requests, clients, 200, self.plan.seconds, repeat=True)

    def measure_fees(self, api: server.Server) -> None:
        requests = self.book.fees(self.take(self.plan.seconds))
        self._requests(api, self.case(FEES), requests, 4, 201, self.plan.seconds)

    def measure_batches(self, api: server.Server) -> None:
        """Payments a second in batches of a hundred, and the same number one by one."""
        from benchmarks import book

        case, seconds = self.case(BATCHES), self.plan.seconds
        singles = self.book.payments(self.take(seconds))
        single = load.run(api.port, singles, clients=1, status=201, seconds=seconds)
        self.book.paid(single.answers)
        targets = self.take(seconds)
        report = load.run(api.port, self.book.batches(targets), clients=1, status=201, seconds=seconds)
        self.book.paid(len(targets))
        case.rates.append(report.rate * book.BATCH_PAYMENTS)
        case.yardsticks.append(single.rate)
        case.p50.append(report.p50)
        case.p99.append(report.p99)

    def _requests(
        self, api: server.Server, case: Case, requests: list[bytes], clients: int, status: int, seconds: float,
        repeat: bool = False,
    ) -> load.Report:  # fmt: skip
        web, database = api.processor_seconds(), server.processor_seconds(self.postmaster)
        report = load.run(api.port, requests, clients=clients, status=status, seconds=seconds, repeat=repeat)
        case.rates.append(report.rate)
        case.p50.append(report.p50)
        case.p99.append(report.p99)
        case.web_us.append(1e6 * (api.processor_seconds() - web) / report.answers)
        case.database_us.append(1e6 * (server.processor_seconds(self.postmaster) - database) / report.answers)
        case.client_us.append(1e6 * report.processor_share / report.rate)
        return report

    def measure_in_process(self, processes: int, threads: int, limit: float) -> None:
        case = self.case(f"post() in process, {processes} x {threads} threads")
        rate = inprocess.run(
            self.take(self.plan.seconds), processes=processes, threads=threads, seconds=self.plan.seconds
        )
        # The threads leave gaps in the order: all that were handed out count as paid.
        self.book.paid(self.plan.seconds * self.most_a_second)
        case.rates.append(rate)
        case.yardsticks.append(limit)

    def measure_database_part(self, clients: int, limit: float) -> None:
        case = self.case(f"database part, {clients} clients")
        url, seconds = self.database_url, self.plan.seconds
        case.rates.append(
            yardstick.run(url, yardstick.DATABASE_PART, clients=clients, seconds=seconds, session=self.session)
        )
        case.yardsticks.append(limit)

    # --- The run -----------------------------------------------------------------------------------------------------

    most_a_second = 2_500

    def take(self, seconds: float) -> Any:
        return self.book.take(int(seconds * self.most_a_second))

    def warm(self, api: server.Server) -> None:
        """Every thread of the server has its connection, its plans and the tokens; nothing of it is measured."""
        self.book.sign_in(api.port)
        requests = self.book.payments(self.take(1))
        report = load.run(api.port, requests, clients=32, status=201, seconds=1)
        self.book.paid(report.answers)
        load.run(api.port, self.book.balance_reads()[:200], clients=16, status=200, seconds=1)
        load.run(api.port, self.book.history_reads(), clients=16, status=200, seconds=1)

    def rounds(self, api: server.Server, progress: Progress) -> None:
        task = progress.add_task("rounds", total=self.plan.rounds * (len(self.plan.clients) + 5))
        for number in range(1, self.plan.rounds + 1):
            for clients in self.plan.clients:
                progress.update(task, description=f"round {number}: POST /payments, {clients} clients")
                # The one that goes first changes from round to round.
                if number % 2:
                    limit = self.measure_yardstick(clients)
                    self.measure_payments(api, clients, self.plan.seconds)
                else:
                    self.measure_payments(api, clients, self.plan.seconds)
                    limit = self.measure_yardstick(clients)
                self.case(f"POST /payments, {clients} clients").yardsticks.append(limit)
                if clients == 8:
                    progress.update(task, description=f"round {number}: post() and database part")
                    self.measure_in_process(1, 8, limit)
                    self.measure_in_process(2, 4, limit)
                    self.measure_database_part(8, limit)
                progress.advance(task)
            progress.update(task, description=f"round {number}: fees and batches")
            self.measure_fees(api)
            self.measure_batches(api)
            for name, requests, readers in (
                ("GET balance, 4 clients", self.book.balance_reads(), 4),
                ("GET history page, 4 clients", self.book.history_reads(), 4),
                ("GET balance, known_at, 4 clients", self.book.known_reads(), 4),
                ("GET statement, 5,000 entries", self.book.statement_reads(), 1),
            ):
                progress.update(task, description=f"round {number}: {name}")
                self.measure_reads(api, name, requests, readers)
                progress.advance(task)
            progress.advance(task)
        self.memory = api.worker_megabytes()
        progress.update(task, visible=False)

    def soak(self, api: server.Server, progress: Progress, requests: int) -> list[tuple[int, list[float]]]:
        """Memory of the worker processes while they serve payments and reads; ten stations."""
        task = progress.add_task(f"{requests:,} requests", total=requests)
        seen = [(0, api.worker_megabytes())]
        step = requests // 10
        for station in range(1, 11):
            self.book.sign_in(api.port)
            rest = step
            while rest > 0:
                batch = self.book.payments(self.book.take(min(rest, 5_000)))
                report = load.run(api.port, batch, clients=8, status=201, seconds=600)
                self.book.paid(report.answers)
                rest -= report.answers
                progress.advance(task, report.answers)
            for reads in (self.book.balance_reads()[:500], self.book.history_reads()):
                load.run(api.port, reads, clients=8, status=200, seconds=60)
            seen.append((station * step, api.worker_megabytes()))
        progress.update(task, visible=False)
        self.memory = seen[-1][1]
        return seen

    def servers(self, progress: Progress) -> None:
        """The same payments through every candidate server, in turn."""
        names = list(server.candidates())
        clients = (1, 4, 8, 16)
        task = progress.add_task("servers", total=self.plan.rounds * len(names))
        for number in range(1, self.plan.rounds + 1):
            for name, command in server.candidates().items():
                progress.update(task, description=f"round {number}: {name}")
                with server.running(command, {}, self.state / "web.log") as api:
                    self.warm(api)
                    for count in clients:
                        case = f"{name}, {count} clients"
                        limit = self.measure_yardstick(count)
                        self.measure_payments(api, count, self.plan.seconds, case)
                        self.case(case).yardsticks.append(limit)
                progress.advance(task)
        progress.update(task, visible=False)


# --- What is shown ---------------------------------------------------------------------------------------------------


def machine(administrator_url: str, state: Path) -> dict[str, str]:
    """What was measured on."""
    model = "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
    with psycopg.connect(administrator_url) as connection:
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
        settings = {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in names}  # type: ignore[index]
    return {
        "processors": f"{os.cpu_count()} x {model}",
        "system": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_version()}, psycopg {psycopg.__version__} ({psycopg.pq.__impl__})",
        "PostgreSQL": ", ".join(f"{name} {value}" for name, value in settings.items()),
        "fdatasync": f"{_sync_us(state):.0f} us",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def _sync_us(directory: Path) -> float:
    """Median microseconds of writing 8 kB and waiting for the disk."""
    import time

    times = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(200):
            os.pwrite(file.fileno(), bytes(8192), 0)
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started)
    return 1e6 * median(times)


def _cells(case: Case, bench: Bench) -> list[str]:
    def microseconds(values: list[float]) -> str:
        return f"{median(values):,.0f}" if values else ""

    ratio = f"{case.ratio:.2f}" if case.ratio is not None else ""
    spread = ""
    if case.ratio is not None and len(case.rates) > 1:
        each = [rate / limit for rate, limit in zip(case.rates, case.yardsticks, strict=True)]
        spread = f"{min(each):.2f}-{max(each):.2f}"
    return [
        case.name,
        f"{median(case.rates):,.0f}",
        ratio,
        spread,
        f"{median(case.p50):.1f}" if case.p50 else "",
        f"{median(case.p99):.1f}" if case.p99 else "",
        microseconds(case.web_us),
        microseconds(case.database_us),
        microseconds(case.client_us),
    ]


HEADINGS = ["case", "per s", "ratio", "of rounds", "p50 ms", "p99 ms", "web us", "database us", "client us"]


def _verdict(case: Case, payments: Case | None) -> tuple[str, bool] | None:
    if (goal := RATIO_GOALS.get(case.name)) is not None and case.ratio is not None:
        return f"ratio {goal}", goal.met_by(case.ratio)
    if case.name == FEES and payments is not None:
        spent, limit = (median(each.web_us) + median(each.database_us) for each in (case, payments))
        return f"{spent / limit:.2f}x a payment's CPU {SERVICING_GOAL}", SERVICING_GOAL.met_by(spent / limit)
    if (goal := P99_GOALS.get(case.name)) is not None and case.p99:
        return f"p99 {goal} ms", goal.met_by(median(case.p99))
    return None


def show(bench: Bench) -> None:
    table = Table(title="Medians of all rounds", title_justify="left", header_style="bold")
    for heading in [*HEADINGS, "goal"]:
        table.add_column(heading, justify="left" if heading in ("case", "goal") else "right", no_wrap=True)
    for case in bench.cases.values():
        verdict = _verdict(case, bench.cases.get("POST /payments, 4 clients"))
        goal = "" if verdict is None else f"[{'green' if verdict[1] else 'red'}]{verdict[0]}[/]"
        table.add_row(*_cells(case, bench), goal)
    table.add_section()
    for clients, spent in sorted(bench.yardstick_us.items()):
        limits = bench.cases.get(f"POST /payments, {clients} clients")
        rate = f"{median(limits.yardsticks):,.0f}" if limits is not None and limits.yardsticks else ""
        table.add_row(f"yardstick, {clients} clients", rate, *[""] * 5, f"{median(spent):,.0f}", "", "")
    console.print(table)
    if bench.memory:
        worst = max(bench.memory)
        colour = "green" if MEMORY_GOAL.met_by(worst) else "red"
        console.print(
            f"web processes: {', '.join(f'{size:.0f} MB' for size in bench.memory)}  [{colour}]{MEMORY_GOAL} MB[/]"
        )


def write_results(bench: Bench, command: str, about: dict[str, str], soaked: list[tuple[int, list[float]]]) -> None:
    """RESULTS.md: the command, the machine, the figures."""
    rows = [
        [*_cells(case, bench), _mark(case, bench.cases.get("POST /payments, 4 clients"))]
        for case in bench.cases.values()
    ]
    for clients, spent in sorted(bench.yardstick_us.items()):
        limits = bench.cases.get(f"POST /payments, {clients} clients")
        rate = f"{median(limits.yardsticks):,.0f}" if limits is not None and limits.yardsticks else ""
        rows.append([f"yardstick, {clients} clients", rate, "", "", "", "", "", f"{median(spent):,.0f}", "", ""])
    headings = [*HEADINGS, "goal"]
    lines = [
        "# Results",
        "",
        f"`{command}`, {datetime.now(UTC):%d %B %Y %H:%M} UTC. What the columns mean is in [README.md](README.md).",
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
        "",
        f"| {' | '.join(headings)} |",
        f"|{'|'.join(['---'] + ['---:'] * (len(headings) - 2) + ['---'])}|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    if bench.memory:
        sizes = ", ".join(f"{size:.0f} MB" for size in bench.memory)
        lines += [f"Resident memory of the web processes at the end: {sizes} (goal {MEMORY_GOAL} MB).", ""]
    if soaked:
        lines += ["| requests served | MB per web process |", "|---:|---|"]
        lines += [f"| {count:,} | {', '.join(f'{size:.0f}' for size in sizes)} |" for count, sizes in soaked]
        lines.append("")
    RESULTS.write_text("\n".join(lines))


def _mark(case: Case, payments: Case | None) -> str:
    verdict = _verdict(case, payments)
    return "" if verdict is None else f"{verdict[0]}: {'met' if verdict[1] else 'not met'}"


# --- Command line ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def throwaway_servers() -> Iterator[tuple[Path, dict[str, str]]]:
    """PostgreSQL and Redis in a temporary directory, as durable as in production, migrated."""
    for name in [name for name in os.environ if name.startswith("HPTS_") or name in ("DATABASE_URL", "REDIS_URL")]:
        del os.environ[name]
    state = Path(tempfile.mkdtemp(prefix="hpts-bench-"))
    os.environ |= {"HPTS_STATE_DIR": str(state), "DJANGO_SETTINGS_MODULE": "hpts.settings"}
    try:
        with embedded.attached(*embedded.SERVERS, state=state) as variables:
            os.environ |= variables
            migrate = [sys.executable, "manage.py", "migrate", "--database", "owner", "--verbosity", "0"]
            subprocess.run(migrate, cwd=embedded.ROOT, check=True)
            yield state, variables
    finally:
        shutil.rmtree(state, ignore_errors=True)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two minutes: a small book and runs of a second")
    parser.add_argument("--rounds", type=int, help="how many rounds")
    parser.add_argument("--seconds", type=int, help="length of one run")
    parser.add_argument(
        "--soak", action="store_true", help=f"memory of the web processes over {SOAK_REQUESTS:,} payments"
    )
    parser.add_argument("--servers", action="store_true", help="compare web servers instead")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON as well")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    import django

    options = _options(arguments)
    base = QUICK if options.quick else FULL
    plan = Plan(rounds=options.rounds or base.rounds, seconds=options.seconds or base.seconds, loans=base.loans)
    bars = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with throwaway_servers() as (state, variables):
        django.setup()
        bench = Bench(plan, state, variables)
        about = machine(bench.administrator_url, state)
        soaked: list[tuple[int, list[float]]] = []
        with Progress(*bars, console=console, transient=True) as progress:
            bench.prepare(progress)
            if options.servers:
                bench.servers(progress)
            else:
                with server.running(server.product_command(), {}, state / "web.log") as api:
                    bench.warm(api)
                    if options.soak:
                        soaked = bench.soak(api, progress, SOAK_REQUESTS)
                    else:
                        bench.rounds(api, progress)
        show(bench)
        for count, sizes in soaked:
            console.print(f"{count:>8,} requests: {', '.join(f'{size:.1f} MB' for size in sizes)}")
        if not (options.servers or options.soak):
            write_results(bench, " ".join(["make bench", *arguments]), about, soaked)
            console.print(f"written to {RESULTS.relative_to(embedded.ROOT)}")
        if options.json:
            print(json.dumps({"machine": about, "cases": [asdict(case) for case in bench.cases.values()]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
