"""`make bench-accrual`: accrual runs next to raw COPY of the rows that they write, and payments while a run goes on.

The book and the servers are its own. The limit is COPY, without triggers and walls, of what each chunk wrote (the entry, its
lines, accruals, message, and the new versions of loans and balances) into tables with the same indexes that grow as the books do;
runs and COPY take turns. README.md says what the figures are, RESULTS-accrual.md has the last run.

python -m benchmarks.accrual --child    a worker or a payer: a JSON line in, a JSON line out
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psycopg
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import server
from benchmarks.bench import console, machine, throwaway_servers
from hpts import embedded

RESULTS = Path(__file__).resolve().parent / "RESULTS-accrual.md"
WORKERS = (1, 2, 4)
SIZES = (250, 500, 1_000, 2_000, 5_000)
# Loans that are lent by one entry, when the book is made.
TOGETHER = 5_000
PAYERS, PAYMENTS_A_SECOND = 4, 40
IDLE_SECONDS = 8
RATIO_GOAL, FLAT_GOAL, MEMORY_GOAL, WAIT_GOAL = 0.75, 1.2, 200, 2.0
# The rows that a chunk writes: those of its entry, and of the loans on its lines.
OF_ENTRY = "tenant_id = %(tenant)s AND entry_id = %(entry)s"
LOANS = f"(SELECT loan_id FROM journal_line WHERE {OF_ENTRY})"
COPIED = {
    "journal_entry": "tenant_id = %(tenant)s AND id = %(entry)s",
    "journal_line": OF_ENTRY,
    "loan_accrual": f"{OF_ENTRY} AND loan_id IN {LOANS}",
    "outbox_message": OF_ENTRY,
    "loan_balance": f"tenant_id = %(tenant)s AND account_code = '1200' AND loan_id IN {LOANS}",
    "loan": f"tenant_id = %(tenant)s AND id IN {LOANS}",
}
# One entry lends on all of its loans, so that a million are there in minutes; otherwise as record_posting leaves them.
LEND = """
    WITH made AS MATERIALIZED (
        SELECT CASE WHEN %(random)s THEN gen_random_uuid() ELSE uuidv7() END AS id, gen_random_uuid() AS borrower_id,
               50000 + (random() * 4950000)::bigint AS minor, random() < 0.1 AS has_rate
        FROM generate_series(1, %(count)s)
    ), line AS MATERIALIZED (
        SELECT row_number() OVER (ORDER BY m.id, p.code)::smallint AS sequence, m.*, p.code, p.direction
        FROM made m CROSS JOIN (VALUES ('1100', 'DR'), ('1050', 'CR')) p (code, direction)
    ), said AS MATERIALIZED (
        SELECT '{"actor":"bench","correlation_id":"' || %(correlation)s || '","effective_at":"' || %(day)s
               || '","event_type":"disbursement","journal_entry_id":"' || %(entry)s || '","lines":['
               || string_agg(concat('{"account_code":"', code, '","amount_minor":"', minor, '","borrower_id":"', borrower_id,
                                    '","currency":"USD","direction":"', direction, '","layer":"SETTLED","loan_id":"', id,
                                    '","sequence":', sequence, '}'), ',' ORDER BY sequence)
               || '],"posted_at":"' || to_char(statement_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
               || '","tenant_id":"' || %(tenant)s || '","v":1}' AS document
        FROM line
    ), loan AS (
        INSERT INTO loan (tenant_id, id, borrower_id, program_id, currency, opened_on, version, last_effective_at,
                          last_posted_at, draws)
        SELECT %(tenant)s, id, borrower_id, %(program)s, 'USD', %(day)s, 1, %(day)s, statement_timestamp(), 1 FROM made
        RETURNING id
    ), terms AS (
        INSERT INTO loan_terms (tenant_id, loan_id, effective_at, annual_rate_bps)
        SELECT %(tenant)s, id, %(day)s, 300 + 25 * (minor %% 100) FROM made WHERE has_rate
    ), balance AS (
        INSERT INTO loan_balance (tenant_id, loan_id, account_code, layer, currency, balance_minor, floored)
        SELECT %(tenant)s, id, '1100', 'SETTLED', 'USD', minor, true FROM made
    ), header AS (
        INSERT INTO journal_entry (tenant_id, id, event_type, effective_at, posted_at, correlation_id, line_count, document,
                                   content_hash)
        SELECT %(tenant)s, %(entry)s, 'disbursement', %(day)s, statement_timestamp(), %(correlation)s, 2 * %(count)s, document,
               sha256(convert_to(document, 'UTF8')) FROM said
    ), message AS (
        INSERT INTO outbox_message (tenant_id, entry_id) VALUES (%(tenant)s, %(entry)s)
    )
    INSERT INTO journal_line (tenant_id, entry_id, sequence, account_code, direction, amount_minor, currency, layer, loan_id,
                              borrower_id, loan_version, effective_at)
    SELECT %(tenant)s, %(entry)s, sequence, code, direction, minor, 'USD', 'SETTLED', id, borrower_id, 1, %(day)s FROM line
"""


# --- Children: what works and what pays ------------------------------------------------------------------------------


class Child:
    """A process of the product's code that does one thing at a time: `ask`, and later `answer`."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.accrual", "--child"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **task: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of the bench has ended with {self.process.wait()}; its own message is above")
        return dict(json.loads(line))

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _child() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        print(json.dumps(_pay(**task) if "loans" in task else _work(**task)), flush=True)


def _work(tenant: str, run: str, size: int) -> dict[str, Any]:
    """Help with a run until no chunk is free; milliseconds of each chunk, and this process's largest memory."""
    import resource

    from ledger import runs

    runs.CHUNK_LOANS = size
    chunks: list[float] = []
    began = last = time.perf_counter()

    def done() -> None:
        nonlocal last
        now = time.perf_counter()
        chunks.append(1e3 * (now - last))
        last = now

    runs.work(tenant, run, report=done)
    return {
        "seconds": time.perf_counter() - began,
        "chunks": chunks,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def _pay(tenant: str, loans: list[tuple[str, str]], day: str, seconds: float | None) -> dict[str, Any]:
    """Pay loan after loan at an even pace, until the time is over or a line comes; milliseconds of each payment."""
    from django.db import connections

    from ledger.events import PaymentReceived
    from ledger.posting import Origin, post

    stopped = threading.Event()
    times: list[float] = []

    def pay(number: int) -> None:
        due = time.perf_counter()
        end = None if seconds is None else due + seconds
        for loan_id, borrower_id in loans[number::PAYERS]:
            due += PAYERS / PAYMENTS_A_SECOND
            if stopped.wait(max(0.0, due - time.perf_counter())) or (end is not None and due > end):
                break
            began = time.perf_counter()
            post(
                Origin(tenant, "bench", str(uuid.uuid4())),
                PaymentReceived(
                    loan_id=loan_id, borrower_id=borrower_id, amount_minor=100, currency="USD",
                    effective_at=date.fromisoformat(day), source_method="ach",
                ),
            )  # fmt: skip
            times.append(1e3 * (time.perf_counter() - began))
        connections.close_all()

    payers = [threading.Thread(target=pay, args=(number,)) for number in range(PAYERS)]
    for each in payers:
        each.start()
    if seconds is None:
        sys.stdin.readline()
        stopped.set()
    for each in payers:
        each.join()
    return {"times": times}


# --- The book and the limit ------------------------------------------------------------------------------------------


@dataclass
class Book:
    """One program of the engine, lent, with a day of interest for each run."""

    administrator_url: str
    loans: int
    random_ids: bool
    tenant: str = field(default_factory=lambda: str(uuid.uuid4()))
    program: str = field(default_factory=lambda: str(uuid.uuid4()))
    opened_on: date = field(default_factory=lambda: datetime.now(UTC).date() - timedelta(days=60))
    accrued: int = 0

    def make(self, progress: Progress) -> None:
        from hpts.tenancy import tenant_transaction
        from ledger import masters
        from ledger.chart import RECEIVABLES

        with tenant_transaction(self.tenant) as cursor:
            masters.create_tenant(cursor, name="Bench", currency="USD", timezone="UTC")
            masters.create_program(
                cursor, on=self.opened_on, program_id=self.program, name="Bench", currency="USD", annual_rate_bps=1_200,
                day_count_convention="ACT_365", waterfall=RECEIVABLES, accrual_mode="engine",
            )  # fmt: skip
        task = progress.add_task("lending", total=self.loans)
        with self.connected() as connection:
            for start in range(0, self.loans, TOGETHER):
                count = min(TOGETHER, self.loans - start)
                connection.execute(
                    LEND,
                    {
                        "tenant": uuid.UUID(self.tenant), "program": self.program, "day": self.opened_on, "count": count,
                        "entry": uuid.uuid4(), "correlation": uuid.uuid4(), "random": self.random_ids,
                    },
                )  # fmt: skip
                progress.advance(task, count)
            for schema in ("copied", "copied_beside"):
                connection.execute(f"CREATE SCHEMA {schema}")
                for table in COPIED:
                    connection.execute(f"CREATE TABLE {schema}.{table} (LIKE public.{table} INCLUDING INDEXES)")
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
        progress.update(task, visible=False)

    @contextlib.contextmanager
    def connected(self) -> Iterator[psycopg.Connection[Any]]:
        """As the administrator, whom row security does not bind: the books are read, and copied, in full."""
        with psycopg.connect(self.administrator_url, autocommit=True) as connection:
            connection.execute("SELECT set_config('hpts.tenant_id', %s, false)", [self.tenant])
            yield connection

    def next_day(self) -> date:
        self.accrued += 1
        return self.opened_on + timedelta(days=self.accrued)

    def payable(self) -> list[tuple[str, str]]:
        with self.connected() as connection:
            sample = connection.execute(
                "SELECT id::text, borrower_id::text FROM loan WHERE program_id = %s ORDER BY random() LIMIT 20000",
                [self.program],
            )
            return [(loan, borrower) for loan, borrower in sample]

    def copy_again(self, run: str, connections: int, processor_seconds: Callable[[], float]) -> tuple[float, float]:
        """COPY what the run's chunks wrote, a chunk to a transaction, over so many connections; gives loans a second, and the
        database's processor time per loan.

        Reading the rows is not measured. Balances and loans have one version here: the tables begin empty with each run."""
        schema = "copied" if connections == 1 else "copied_beside"
        with self.connected() as reader:
            reader.execute(f"TRUNCATE {schema}.loan, {schema}.loan_balance")
            entries = [entry for (entry,) in reader.execute(
                "SELECT id FROM journal_entry WHERE event_type = 'accrual' AND facts->>'accrual_run_id' = %s ORDER BY id", [run]
            )]  # fmt: skip
            loans, seconds, spent = 0, 0.0, 0.0
            with contextlib.ExitStack() as stack, ThreadPoolExecutor(connections) as pool:
                writers = [stack.enter_context(self.connected()) for _ in range(connections)]
                # As much at a time as fits into a little memory.
                for start in range(0, len(entries), 100):
                    chunks = [self._rows_of(reader, entry) for entry in entries[start : start + 100]]
                    began, used = time.perf_counter(), processor_seconds()
                    shares = [
                        pool.submit(_copy, writer, schema, chunks[n::connections]) for n, writer in enumerate(writers)
                    ]
                    for share in shares:
                        share.result()
                    seconds += time.perf_counter() - began
                    spent += processor_seconds() - used
                    loans += sum(chunk["loan_accrual"].count(b"\n") for chunk in chunks)
        return loans / seconds, 1e6 * spent / loans

    def _rows_of(self, reader: psycopg.Connection[Any], entry: uuid.UUID) -> dict[str, bytes]:
        rows = {}
        for table, condition in COPIED.items():
            with reader.cursor().copy(
                f"COPY (SELECT * FROM {table} WHERE {condition}) TO STDOUT",
                {"tenant": uuid.UUID(self.tenant), "entry": entry},
            ) as copy:
                rows[table] = b"".join(bytes(block) for block in copy)
        return rows


def _copy(writer: psycopg.Connection[Any], schema: str, chunks: list[dict[str, bytes]]) -> None:
    for chunk in chunks:
        with writer.transaction():
            for table, rows in chunk.items():
                with writer.cursor().copy(f"COPY {schema}.{table} FROM STDIN") as copy:
                    copy.write(rows)


# --- Measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """A run: loans a second, the database's processor time per loan, and the chunks of the worker that had most, in order."""

    rate: float
    spent_us: float
    chunks: list[float]
    megabytes: float


@dataclass
class Speed:
    """Runs by so many workers, each next to COPY by one connection and by as many connections as workers."""

    workers: int
    rates: list[float] = field(default_factory=list)
    spent_us: list[float] = field(default_factory=list)
    copy_us: list[float] = field(default_factory=list)
    one: list[float] = field(default_factory=list)
    many: list[float] = field(default_factory=list)
    edges: list[tuple[float, float]] = field(default_factory=list)
    megabytes: float = 0.0


@dataclass
class Waiting:
    """Payments while runs of one chunk size go on, and when nothing does."""

    size: int
    rates: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)


class AccrualBench:
    def __init__(self, book: Book, postmaster: int) -> None:
        self.book = book
        self.postmaster = postmaster
        self.speeds: list[Speed] = []
        self.waits: list[Waiting] = []
        self.children = [Child() for _ in range(max(WORKERS))]
        self.payer = Child()

    def end(self) -> None:
        for child in [*self.children, self.payer]:
            child.end()

    def processor_seconds(self) -> float:
        return server.processor_seconds(self.postmaster, ended=True)

    def run(self, workers: int, size: int) -> tuple[str, Measured]:
        """The next day's run, from the first worker's start to the last one's end."""
        from hpts.tenancy import tenant_transaction
        from ledger import queries, runs
        from ledger.posting import Origin

        origin = Origin(self.book.tenant, "bench", str(uuid.uuid4()))
        with tenant_transaction(self.book.tenant) as cursor:
            run = runs.request_run(
                cursor, program_id=self.book.program, accrual_date=self.book.next_day(), origin=origin
            )
        began, used = time.perf_counter(), self.processor_seconds()
        for child in self.children[:workers]:
            child.ask(tenant=self.book.tenant, run=run, size=size)
        answers = [child.answer() for child in self.children[:workers]]
        seconds = time.perf_counter() - began
        spent = 1e6 * (self.processor_seconds() - used) / self.book.loans
        with tenant_transaction(self.book.tenant) as cursor:
            found = queries.accrual_run(cursor, run_id=run)
        if found is None or found["state"] != "complete" or found["accrued_count"] != self.book.loans:
            raise RuntimeError(f"the run has not accrued every loan: {found}")
        # The last chunk is what is left over.
        chunks = max((answer["chunks"][:-1] or answer["chunks"] for answer in answers), key=len)
        return run, Measured(self.book.loans / seconds, spent, chunks, max(answer["megabytes"] for answer in answers))

    def measure_speed(self, workers: int, size: int, rounds: int, advance: Callable[[], None]) -> None:
        speed = Speed(workers)
        self.speeds.append(speed)
        for _ in range(rounds):
            run, measured = self.run(workers, size)
            speed.rates.append(measured.rate)
            speed.spent_us.append(measured.spent_us)
            rate, spent_us = self.book.copy_again(run, 1, self.processor_seconds)
            speed.one.append(rate)
            speed.copy_us.append(spent_us)
            speed.many.append(
                self.book.copy_again(run, workers, self.processor_seconds)[0] if workers > 1 else speed.one[-1]
            )
            tenth = max(len(measured.chunks) // 10, 1)
            speed.edges.append((median(measured.chunks[:tenth]), median(measured.chunks[-tenth:])))
            speed.megabytes = max(speed.megabytes, measured.megabytes)
            advance()

    def measure_waiting(self, size: int, rounds: int, advance: Callable[[], None]) -> None:
        """By one worker, so that a processor is left for the payments: what is measured is waiting for locks."""
        wait = Waiting(size)
        self.waits.append(wait)
        for _ in range(rounds):
            day = (self.book.opened_on + timedelta(days=self.book.accrued + 1)).isoformat()
            loans = self.book.payable()
            random.shuffle(loans)
            self.payer.ask(tenant=self.book.tenant, loans=loans[:10_000], day=day, seconds=IDLE_SECONDS)
            wait.idle += self.payer.answer()["times"]
            self.payer.ask(tenant=self.book.tenant, loans=loans[10_000:], day=day, seconds=None)
            _, measured = self.run(1, size)
            self.payer.ask()
            wait.during += self.payer.answer()["times"]
            wait.rates.append(measured.rate)
            advance()


# --- What is shown ---------------------------------------------------------------------------------------------------


def _ratio(rates: list[float], limits: list[float]) -> str:
    return f"{median(rate / limit for rate, limit in zip(rates, limits, strict=True)):.2f}"


def _percentile(times: list[float], percent: int) -> float:
    return quantiles(times, n=100, method="inclusive")[percent - 1]


def speed_rows(bench: AccrualBench) -> list[list[str]]:
    rows = []
    for speed in bench.speeds:
        first, last = (median(edge[side] for edge in speed.edges) for side in (0, 1))
        rows.append(
            [
                f"{speed.workers}", f"{median(speed.rates):,.0f}", _ratio(speed.rates, speed.one),
                _ratio(speed.rates, speed.many), f"{median(speed.spent_us):.0f}", f"{median(speed.copy_us):.0f}",
                _ratio(speed.copy_us, speed.spent_us), f"{first:.0f}", f"{last:.0f}", f"{last / first:.2f}",
                f"{speed.megabytes:.0f}",
            ]
        )  # fmt: skip
    return rows


def waiting_rows(bench: AccrualBench) -> list[list[str]]:
    rows = []
    for wait in bench.waits:
        idle, during = ([_percentile(times, percent) for percent in (50, 99)] for times in (wait.idle, wait.during))
        rows.append(
            [f"{wait.size:,}", f"{median(wait.rates):,.0f}", f"{len(wait.during):,}",
             *(f"{figure:.1f}" for figure in (*idle, *during)), f"{during[1] / idle[1]:.1f}"]
        )  # fmt: skip
    return rows


SPEED = [
    "workers",
    "loans/s",
    "of COPY",
    "of as many COPYs",
    "database us",
    "COPY us",
    "by processor",
    "first chunks ms",
    "last chunks ms",
    "last / first",
    "MB a worker",
]
WAITING = [
    "loans a chunk",
    "loans/s",
    "payments",
    "idle p50 ms",
    "idle p99 ms",
    "run p50 ms",
    "run p99 ms",
    "p99 run / idle",
]


def show(title: str, headings: list[str], rows: list[list[str]]) -> None:
    table = Table(*headings, title=title, title_justify="left", header_style="bold")
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _in_markdown(headings: list[str], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(headings)} |", f"|{'---:|' * len(headings)}", *(f"| {' | '.join(row)} |" for row in rows), "",
    ]  # fmt: skip


def write_results(bench: AccrualBench, command: str, about: dict[str, str]) -> None:
    from ledger import runs

    ids = "random" if bench.book.random_ids else "time-ordered"
    goals = (
        f"Goals: {RATIO_GOAL}x of COPY, last chunks at most {FLAT_GOAL}x of the first, {MEMORY_GOAL} MB a worker, payments' p99 "
        f"during a run at most {WAIT_GOAL:g}x of idle."
    )
    lines = [
        "# Accrual runs", "",
        f"`{command}`, {datetime.now(UTC):%d %B %Y %H:%M} UTC. What the columns mean is in [README.md](README.md).", "",
        *(f"- {name}: {value}" for name, value in about.items()),
        f"- book: {bench.book.loans:,} loans of one program, {ids} ids; chunks of {runs.CHUNK_LOANS:,} unless it says otherwise",
        "", goals, "",
        *_in_markdown(SPEED, speed_rows(bench)),
    ]  # fmt: skip
    if bench.waits:
        lines += _in_markdown(WAITING, waiting_rows(bench))
    RESULTS.write_text("\n".join(lines))


# --- Command line ----------------------------------------------------------------------------------------------------


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench-accrual", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--loans", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="chunk sizes to pay beside; none: skip it")
    parser.add_argument("--random-ids", action="store_true", help="loans' ids in no order, as a client may give them")
    parser.add_argument("--dry", action="store_true", help="leave RESULTS-accrual.md as it is")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    import django

    options = _options(arguments)
    bars = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with throwaway_servers() as (state, variables):
        django.setup()
        from ledger import runs

        administrator_url = embedded.administrator_url(state, variables)
        about = machine(administrator_url, state)
        postmaster = int((state / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        bench = AccrualBench(Book(administrator_url, options.loans, options.random_ids), postmaster)
        with Progress(*bars, console=console, transient=True) as progress:
            bench.book.make(progress)
            # The first run counts each loan from its opening; every other goes on from the one before.
            task = progress.add_task(
                "first run", total=1 + options.rounds * (len(options.workers) + len(options.sizes))
            )
            bench.run(2, runs.CHUNK_LOANS)

            def advance() -> None:
                progress.advance(task)

            advance()
            for workers in options.workers:
                progress.update(task, description=f"{workers} workers and COPY")
                bench.measure_speed(workers, runs.CHUNK_LOANS, options.rounds, advance)
            for size in options.sizes:
                progress.update(task, description=f"payments beside chunks of {size:,}")
                bench.measure_waiting(size, options.rounds, advance)
        bench.end()
        show("Runs", SPEED, speed_rows(bench))
        if bench.waits:
            show("Payments", WAITING, waiting_rows(bench))
        if not options.dry:
            write_results(bench, " ".join(["make bench-accrual", *arguments]), about)
            console.print(f"written to {RESULTS.relative_to(embedded.ROOT)}")
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        import django

        django.setup()
        _child()
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
