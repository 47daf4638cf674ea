"""Two ways to keep the same books: the product as it is, and the product's rules with PostgreSQL imitated in memory.

`Memory` answers what `open_posting` would, summed from what `record_posting` was given: so the rules, proofs and documents are
the product's own, and a life of a hundred steps takes a fraction of a second.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any, Protocol, TypeVar

import msgspec
import pytest

from hpts.pipeline import Statement
from hpts.tenancy import tenant_transaction
from ledger import masters, queries
from ledger import posting as write_path
from ledger import replan as replans
from ledger.chart import CONSUMER_LENDING, Chart
from ledger.events import Event
from ledger.posting import Origin, Posted, Posting, Touches
from ledger.queries import PaymentEntry
from ledger.replan import post_plan
from reconciliation import checks
from tests.conftest import Loan
from tests.ledger.conftest import OPENED_ON, WATERFALL, open_books
from tests.ledger.model import Model

Json = dict[str, Any]
T = TypeVar("T")

LIMIT = 500
CHART = Chart(CONSUMER_LENDING)


@dataclass(frozen=True)
class Cast:
    """A loan of the cast: whose it is, in which program, from which day on, with which limit."""

    borrower: int
    program: int
    opens_after: int = 0
    limit_minor: int | None = None

    @property
    def opened_on(self) -> date:
        return OPENED_ON + timedelta(days=self.opens_after)


CURRENCIES = ("USD", "EUR")
# The first three live from the beginning; the others are there to be refinanced into, and live then.
CAST = (
    Cast(borrower=0, program=0),
    Cast(borrower=0, program=0, limit_minor=LIMIT),
    Cast(borrower=1, program=1),
    Cast(borrower=0, program=0, opens_after=4),
    Cast(borrower=1, program=1),
    Cast(borrower=0, program=0, limit_minor=LIMIT),
    Cast(borrower=1, program=0),
)


class Keeper(Protocol):
    """Something that keeps books of the cast's loans."""

    today: date
    programs: list[str]
    loans: list[Loan]

    def post(self, *events: Event) -> list[str | None]:
        """Post events in one transaction: the new entries' ids, None for an event that has no lines. Raises the refusal."""
        ...

    def change_waterfall(self, program_id: str, since: date, order: tuple[str, ...]) -> None: ...

    def close(self, through: date) -> None:
        """Close a period. Raises the refusal."""
        ...

    def replan(self, loan_id: str, since: date) -> list[tuple[Event, str]]:
        """Commit what the loan's payments need: the events, each with the new entry's id. Raises the refusal."""
        ...

    def documents(self) -> dict[str, str]:
        """Entry id -> canonical document, in order of posting."""
        ...

    def agree(self, model: Model) -> None:
        """Assert, after a step, that states and balances are the model's."""
        ...

    def is_sound(self, model: Model) -> None:
        """Assert, at the end, all that the books promise."""
        ...


def _in_one_posting(posting: Posting, events: Sequence[Event]) -> list[str | None]:
    posted = [posting.post(event).journal_entry_id if posting.decide(event) else None for event in events]
    posting.record()
    return posted


def _replanned(posting: Posting, loan_id: str, since: date) -> list[tuple[Event, str]]:
    events: list[Event] = []
    post = posting.post

    def told(event: Event) -> Posted:
        events.append(event)
        return post(event)

    posting.post = told  # type: ignore[method-assign]
    posted = post_plan(posting, loan_id, since)
    posting.record()
    return [(event, entry.journal_entry_id) for event, entry in zip(events, posted, strict=True)]


def _touched(events: Sequence[Event]) -> Touches:
    return reduce(or_, map(Touches.of, events))


# --- In memory -------------------------------------------------------------------------------------------------------


class Memory:
    """The product without PostgreSQL: `Posting` decides, proves and renders; this keeps what it would have recorded."""

    def __init__(self) -> None:
        self.tenant_id = str(uuid.uuid4())
        self.today = date(2026, 6, 30)
        self.programs = [str(uuid.uuid4()) for _ in CURRENCIES]
        borrowers = [str(uuid.uuid4()) for _ in range(2)]
        self.loans = [
            Loan(str(uuid.uuid4()), borrowers[of.borrower], self.programs[of.program], CURRENCIES[of.program])
            for of in CAST
        ]
        self.terms: list[tuple[str, date, tuple[str, ...]]] = [(each, date.min, WATERFALL) for each in self.programs]
        self.closed_through: date | None = None
        self.recorded: list[tuple[str, Json]] = []
        self.last: Posting | None = None
        self._sum_up(self.recorded)

    def post(self, *events: Event) -> list[str | None]:
        return self._in_transaction(_touched(events), lambda posting: _in_one_posting(posting, events))

    def replan(self, loan_id: str, since: date) -> list[tuple[Event, str]]:
        touches = Touches([loan_id], since=since)
        return self._in_transaction(touches, lambda posting: _replanned(posting, loan_id, since))

    def _in_transaction(self, touches: Touches, work: Callable[[Posting], T]) -> T:
        before = len(self.recorded)
        try:
            self.last = self._open(touches)
            return work(self.last)
        except Exception:
            # What a posting wrote before it was refused goes with its transaction.
            self.last = None
            if len(self.recorded) > before:
                del self.recorded[before:]
                self._sum_up(self.recorded)
            raise

    def change_waterfall(self, program_id: str, since: date, order: tuple[str, ...]) -> None:
        self.terms.append((program_id, since, order))

    def close(self, through: date) -> None:
        self._open(Touches(mode="close")).admit_date(through)
        self.closed_through = through

    def documents(self) -> dict[str, str]:
        return {json.loads(text)["journal_entry_id"]: text for text, _ in self.recorded}

    def agree(self, model: Model) -> None:
        """The loans that the last posting touched, as it would have left them."""
        for loan in self.last.state.loans.values() if self.last else ():
            assert self.last is not None
            assert self.last.state.of(loan) == model.state(loan.loan_id)
            assert (loan.draws, loan.ended_as) == self.standing[loan.loan_id]
            for (code, layer), minor in loan.balances.items():
                assert minor == model.balance(loan.loan_id, code, layer), (code, layer)
            assert loan.version == len(model.touched(loan.loan_id)) == self.versions[loan.loan_id]

    def is_sound(self, model: Model) -> None:
        """Nothing else was summed up than what was recorded."""
        assert len(self.recorded) == len(self.entries)

    # What the product asks of a transaction, and of its cursor

    @property
    def cursor(self) -> Memory:
        return self

    def finish_with(self, statement: Statement, values: Sequence[Any] = ()) -> None:
        """`record_posting`; there is no timeout to set."""
        if statement is write_path.RECORD:
            recorded = [(text, extra) for text, extra in json.loads(values[0])]
            self.recorded += recorded
            self._take(recorded)

    run = finish_with

    def payment_entries(self, loan_id: str) -> list[PaymentEntry]:
        return [
            PaymentEntry(
                entry["version"],
                entry_id,
                entry["event_type"],
                date.fromisoformat(entry["effective_at"]),
                entry["document"],
                entry["settles_entry_id"],
                entry["facts"].get("payment_event_id"),
            )
            for entry_id, entry in self.entries.items()
            if entry["event_type"] in ("payment_received", "payment_allocated")
            and entry["reversed_by"] is None
            and entry["loans"] == {loan_id}
        ]

    def suspense_allocations(self, loan_id: str) -> list[tuple[str, str, int, str | None]]:
        undone: Counter[str] = Counter()
        for entry in self.entries.values():
            undone.update({of: int(minor) for of, minor in entry["facts"].get("undone", {}).items()})
        return [
            (entry_id, entry["document"], undone[entry_id], entry["facts"].get("payment_event_id"))
            for entry_id, entry in reversed(self.entries.items())
            if entry["event_type"] == "payment_allocated"
            and entry["settles_entry_id"] is None
            and entry["reversed_by"] is None
            and entry["loans"] == {loan_id}
        ]

    def waterfalls(self, program_id: str) -> list[tuple[date, tuple[str, ...]]]:
        return sorted(
            ((since, order) for of, since, order in self.terms if of == program_id), key=lambda terms: terms[0]
        )

    def has_recovery(self, loan_id: str) -> bool:
        return any(
            entry["event_type"] == "recovery" and entry["reversed_by"] is None and entry["loans"] == {loan_id}
            for entry in self.entries.values()
        )

    # What it keeps

    def _sum_up(self, recorded: Sequence[tuple[str, Json]]) -> None:
        self.entries: dict[str, Json] = {}
        self.balances: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
        self.moved: defaultdict[str, Counter[tuple[str, str, str]]] = defaultdict(Counter)
        self.versions: Counter[str] = Counter()
        self.standing: defaultdict[str, tuple[int, str | None]] = defaultdict(lambda: (0, None))
        self.accruals: dict[tuple[str, str], tuple[int, str]] = {}
        self._take(recorded)

    def _take(self, recorded: Sequence[tuple[str, Json]]) -> None:
        for text, extra in recorded:
            entry = json.loads(text)
            entry_id, day = entry["journal_entry_id"], entry["effective_at"]
            loans = {line["loan_id"] for line in entry["lines"] if "loan_id" in line}
            self.entries[entry_id] = {
                "entry_id": entry_id,
                "event_type": entry["event_type"],
                "effective_at": day,
                "document": text,
                "settles_entry_id": extra.get("settles_entry_id"),
                "reversed_by": None,
                "loans": loans,
                "version": extra["versions"][0],
                "facts": extra.get("facts", {}),
            }
            if "reverses_entry_id" in entry:
                self.entries[entry["reverses_entry_id"]]["reversed_by"] = entry["event_type"]
            for line in entry["lines"]:
                account = CHART[line["account_code"]]
                if "loan_id" not in line:
                    continue
                net = int(line["amount_minor"]) * (1 if line["direction"] == "DR" else -1)
                self.moved[line["loan_id"]][day, account.code, line["layer"]] += net
                if account.per_loan:
                    side = 1 if account.normal_side == "DR" else -1
                    self.balances[line["loan_id"]][account.code, line["layer"]] += side * net
            self.versions.update(loans)
            for loan in extra.get("loans", ()):
                self.standing[loan["loan_id"]] = (loan["draws"], loan["ended_as"])
            for accrual in extra.get("accruals", ()):
                self.accruals[accrual["loan_id"], day] = (accrual["revision"], entry_id)

    # What it answers

    def _open(self, touches: Touches) -> Posting:
        origin = Origin(self.tenant_id, "client:test", str(uuid.uuid4()))
        return Posting(self, origin, touches, self._opened(touches))  # type: ignore[arg-type]

    def _opened(self, touches: Touches) -> bytes:
        """What `open_posting` would answer: see its description in the migration."""
        about = set(touches.entries)
        while more := {e["entry_id"] for e in self.entries.values() if e["settles_entry_id"] in about} - about:
            about |= more
        entries = [entry for entry_id in about if (entry := self.entries.get(entry_id))]
        named = {*touches.loans, *(loan_id for entry in entries for loan_id in entry["loans"])}
        answer = {
            "posted_at": (datetime(2026, 6, 30) + timedelta(microseconds=len(self.recorded))).isoformat() + "Z",  # noqa: DTZ001
            "today": self.today,
            "closed_through": self.closed_through,
            "loans": [self._loan(number, touches) for number, loan in enumerate(self.loans) if loan.loan_id in named],
            "entries": entries,
            "later": [
                (loan_id, *movement, net)
                for loan_id in named
                for movement, net in self.moved[loan_id].items()
                if touches.since is not None and movement[0] > touches.since.isoformat()
            ],
            "accruals": [
                (loan_id, revision, self.entries[entry_id]["reversed_by"] is not None)
                for loan_id in named
                if touches.accrual is not None
                for revision, entry_id in [self.accruals.get((loan_id, touches.accrual.isoformat()), (None, ""))]
                if revision is not None
            ],
        }
        return msgspec.json.encode(answer)

    def _loan(self, number: int, touches: Touches) -> Json:
        loan, of = self.loans[number], CAST[number]
        draws, ended_as = self.standing[loan.loan_id]
        day = touches.accrual or touches.since or self.today
        return {
            "loan_id": loan.loan_id,
            "borrower_id": loan.borrower_id,
            "program_id": loan.program_id,
            "currency": loan.currency,
            "opened_on": of.opened_on,
            "principal_limit_minor": of.limit_minor,
            "version": self.versions[loan.loan_id],
            "draws": draws,
            "ended_as": ended_as,
            "day_count_convention": "ACT_365",
            "waterfall": ",".join([order for since, order in self.waterfalls(loan.program_id) if since <= day][-1]),
            "accrual_mode": "client",
            "balances": [(*cell, minor) for cell, minor in self.balances[loan.loan_id].items()],
        }


def answer_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The few queries that a posting asks are answered by a `Memory` where one is kept."""
    monkeypatch.setattr(write_path, "_charts", {})
    monkeypatch.setattr(write_path, "read_chart", lambda cursor: CHART)
    monkeypatch.setattr(write_path, "waterfalls", lambda cursor, *, program_id: cursor.waterfalls(program_id))
    monkeypatch.setattr(write_path, "has_recovery", lambda cursor, *, loan_id: cursor.has_recovery(loan_id))
    # Its loans are accrued by clients.
    monkeypatch.setattr(write_path, "unposted_interest", lambda cursor, *, loan_id, through: 0)
    for module in (write_path, replans):
        monkeypatch.setattr(
            module, "suspense_allocations", lambda cursor, *, loan_id: cursor.suspense_allocations(loan_id)
        )
    monkeypatch.setattr(replans, "payment_entries", lambda cursor, *, loan_id: cursor.payment_entries(loan_id))


# --- In PostgreSQL ---------------------------------------------------------------------------------------------------


class Database:
    """The product as it is, with a tenant of its own."""

    def __init__(self) -> None:
        self.books = open_books(loans=0)
        self.programs = [self.books.program_id, str(uuid.uuid4())]
        borrowers = [str(uuid.uuid4()) for _ in range(2)]
        with tenant_transaction(self.books.tenant_id) as cursor:
            self.today = queries.today(cursor)
            masters.create_program(
                cursor,
                on=OPENED_ON,
                program_id=self.programs[1],
                name="Instalments in euros",
                currency=CURRENCIES[1],
                annual_rate_bps=1_000,
                day_count_convention="ACT_365",
                waterfall=WATERFALL,
                accrual_mode="client",
            )
            for of in CAST:
                self.books._open_loan(
                    cursor,
                    borrower_id=borrowers[of.borrower],
                    program_id=self.programs[of.program],
                    opened_on=of.opened_on,
                    principal_limit_minor=of.limit_minor,
                )
        self.loans = self.books.loans

    def post(self, *events: Event) -> list[str | None]:
        return self._in_transaction(_touched(events), lambda posting: _in_one_posting(posting, events))

    def replan(self, loan_id: str, since: date) -> list[tuple[Event, str]]:
        touches = Touches([loan_id], since=since)
        return self._in_transaction(touches, lambda posting: _replanned(posting, loan_id, since))

    def _in_transaction(self, touches: Touches, work: Callable[[Posting], T]) -> T:
        def attempt() -> T:
            with write_path.opened(self.books.origin, touches) as (posting, _):
                assert posting is not None
                return work(posting)

        return write_path.with_retries(attempt)

    def change_waterfall(self, program_id: str, since: date, order: tuple[str, ...]) -> None:
        with tenant_transaction(self.books.tenant_id) as cursor:
            masters.add_program_terms(
                cursor,
                program_id=program_id,
                effective_at=since,
                annual_rate_bps=None,
                waterfall=order,
                accrual_mode=None,
            )

    def close(self, through: date) -> None:
        def work(posting: Posting) -> None:
            posting.admit_date(through)
            masters.close_period(posting.cursor, through_date=through, actor="client:test")

        self._in_transaction(Touches(mode="close"), work)

    def documents(self) -> dict[str, str]:
        return dict(self.books.rows("SELECT id::text, document FROM journal_entry ORDER BY id"))

    def agree(self, model: Model) -> None:
        """Every loan's state and balances, today and as of every day, and every account's; two readings."""
        with tenant_transaction(self.books.tenant_id) as cursor:
            shown = queries.loans(
                cursor, on=self.today, program_id=None, borrower_id=None, state=None, after=None, limit=100
            )
            assert {loan["loan_id"]: loan["state"] for loan in shown} == {
                loan.loan_id: model.state(loan.loan_id) for loan in self.loans
            }
            cursor.execute(
                """SELECT loan_id::text, account_code, layer, currency, effective_at,
                          sum(CASE direction WHEN 'DR' THEN amount_minor ELSE -amount_minor END)
                   FROM journal_line GROUP BY 1, 2, 3, 4, 5
                   UNION ALL
                   SELECT loan_id::text, account_code, layer, currency, NULL, balance_minor FROM loan_balance"""
            )
            rows = cursor.fetchall()
        moved: Counter[tuple[object, ...]] = Counter()
        for posted in model.posted:
            for move in posted.moves:
                moved[move.loan_id, move.code, move.layer, move.currency, posted.day] += move.debit_minor
        said = {tuple(cell): int(net) for *cell, net in rows if cell[4] is not None and net}
        assert said == {cell: net for cell, net in moved.items() if net}
        for loan_id, code, layer, _, day, minor in rows:
            assert day is not None or minor == model.balance(loan_id, code, layer), (code, layer)

    def is_sound(self, model: Model) -> None:
        """The proofs find nothing, and every loan's balances are shown as the model has them, as of every day."""
        codes = {"principal": "1100", "interest": "1200", "fees": "1300", "suspense": "2000"}
        days = sorted({posted.day for posted in model.posted} | {self.today})
        with tenant_transaction(self.books.tenant_id) as cursor:
            assert [breach for check in checks.CHECKS for breach in check(cursor)] == []
            for loan in self.loans:
                for day in days:
                    read = queries.loan_balances(cursor, loan_id=loan.loan_id, as_of=day)
                    assert read is not None
                    expected = {role: model.balance(loan.loan_id, code, through=day) for role, code in codes.items()}
                    assert {role: read.by_role.get(role, 0) for role in codes} == expected, day
