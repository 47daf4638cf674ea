"""Random streams of events against the naive model: the same refusals, the same lines, and the books' promises after each.

Two thousand streams run through the product's own rules, proofs and documents with the database imitated in memory (the
answer of `open_posting` is computed from the documents), and some hundred through `post()` and PostgreSQL;
`HPTS_LONG=1` runs two thousand there too. A failure is printed as the shortest stream that fails, with the seed that
`--hypothesis-seed` takes.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Protocol

import msgspec
import pytest
import rfc8785
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hpts.pipeline import Statement
from hpts.problems import Problem
from hpts.tenancy import tenant_transaction
from ledger import posting as write_path
from ledger import proof, queries
from ledger.chart import CONSUMER_LENDING, Chart
from ledger.events import (
    PENDING,
    SETTLED,
    Accrual,
    AccruedLoan,
    Disbursement,
    DisbursementSettled,
    Event,
    Line,
    ManualAdjustment,
    PaymentReceived,
    Reversal,
)
from ledger.money import MAX_MINOR
from ledger.posting import Origin, Posting, Touches
from tests.conftest import Loan
from tests.ledger.conftest import OPENED_ON, open_books
from tests.ledger.model import NEVER_BELOW_ZERO, Model, Move, Moves, Terms, totals

LONG = os.environ.get("HPTS_LONG") == "1"
STREAMS = 2_000
STREAMS_THROUGH_POSTGRESQL = STREAMS if LONG else 150
LIMIT = 500

Json = dict[str, Any]

# --- Streams ---------------------------------------------------------------------------------------------------------
# A step is a small tuple; loans are 0 and 1, days count from the opening, and an earlier entry is named by a number that
# counts round the entries posted so far.

LOANS = st.integers(0, 1)
LAYERS = st.sampled_from([SETTLED, SETTLED, SETTLED, PENDING])
# Few days, so that events meet; now and then one before the opening, or in the future.
DAYS = st.one_of(st.integers(0, 25), st.integers(0, 25), st.integers(0, 25), st.sampled_from([-1, 10**5]))
AMOUNTS = st.one_of(
    st.integers(1, 300), st.integers(1, 300), st.integers(1, 40_000), st.sampled_from([MAX_MINOR, MAX_MINOR // 2])
)
SMALL = st.integers(0, 200)
WHICH = st.integers(0, 30)
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
CODES = st.sampled_from([*(account.code for account in CONSUMER_LENDING), "1100", "1200", "1300", "2000", "7777"])
PAIRS = st.lists(
    st.tuples(
        CODES,
        CODES,
        st.one_of(st.integers(1, 400), st.integers(1, 400), st.just(MAX_MINOR)),
        st.sampled_from([0, 0, 0, 1, 1, None]),
        LAYERS,
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)

STEPS = st.one_of(
    st.tuples(st.just("disburse"), LOANS, AMOUNTS, DAYS, LAYERS),
    st.tuples(
        st.just("disburse"), st.just(1), st.integers(LIMIT // 3, LIMIT), DAYS, st.sampled_from([SETTLED, PENDING])
    ),
    st.tuples(st.just("pay"), LOANS, AMOUNTS, DAYS, LAYERS, TEXTS),
    st.tuples(st.just("pay"), LOANS, SMALL.map(lambda minor: minor + 1), DAYS, st.just(SETTLED), TEXTS),
    st.tuples(st.just("accrue"), DAYS, SMALL, SMALL, st.sampled_from([0, 0, 0, 0, 0, 1])),
    st.tuples(st.just("owe a fee"), LOANS, SMALL.map(lambda minor: minor + 1), DAYS),
    st.tuples(st.just("adjust"), DAYS, PAIRS, st.sampled_from([0, 0, 0, 0, 1]), TEXTS),
    st.tuples(st.just("settle"), WHICH, DAYS),
    st.tuples(st.just("reverse"), WHICH, DAYS),
    st.tuples(st.just("reverse"), st.just(-1), st.integers(25, 30)),
)
BEGINNINGS = st.sampled_from(
    [
        [],
        [("disburse", 0, 30_000, 2, SETTLED)],
        [("disburse", 0, 30_000, 2, SETTLED), ("accrue", 3, 90, 0, 0), ("owe a fee", 0, 50, 4)],
        [("disburse", 0, 9_000, 2, PENDING), ("disburse", 1, 400, 0, SETTLED)],
    ]
)
STREAM = st.builds(lambda first, rest: [*first, *rest], BEGINNINGS, st.lists(STEPS, min_size=1, max_size=14))


def _day(number: int) -> date:
    return OPENED_ON + timedelta(days=number)


def to_event(step: tuple[Any, ...], model: Model, loans: Sequence[Loan]) -> Event | None:
    """The event of a step, on the books as they are; None when it is about an entry and there is none of that kind."""
    name, *rest = step
    if name == "disburse":
        which, minor, day, layer = rest
        return Disbursement(
            loan_id=loans[which].loan_id, amount_minor=minor, currency="USD", effective_at=_day(day), layer=layer
        )
    if name == "pay":
        which, minor, day, layer, ref = rest
        return PaymentReceived(
            loan_id=loans[which].loan_id,
            amount_minor=minor,
            currency="USD",
            effective_at=_day(day),
            layer=layer,
            source_method="ach",
            external_ref=f"{len(model.posted)} {ref}",
        )
    if name == "accrue":
        day, *interest, lie = rest
        items = [
            AccruedLoan(
                loan_id=loan.loan_id,
                outstanding_principal_minor=model.balance(loan.loan_id, "1100", through=_day(day - 1)) + lie,
                interest_minor=minor,
            )
            for loan, minor in zip(loans, interest, strict=True)
        ]
        return Accrual(
            effective_at=_day(day), program_id=loans[0].program_id, day_count_convention="ACT_365", loans=tuple(items)
        )
    if name == "owe a fee":
        which, minor, day = rest
        return to_event(("adjust", day, [("1300", "4100", minor, which, SETTLED, False)], 0, "fee"), model, loans)
    if name == "adjust":
        day, pairs, lie, text = rest
        lines = []
        for debit, credit, minor, which, layer, foreign in pairs:
            loan_id = None if which is None else loans[which].loan_id
            about = ("EUR" if foreign and which is None else "USD", layer, loan_id)
            lines += [Line(debit, "DR", minor, *about), Line(credit, "CR", minor + lie, *about)]
        return ManualAdjustment(effective_at=_day(day), description=text, lines=tuple(lines))
    which, day = rest
    about_entries = [p for p in model.posted if name == "reverse" or isinstance(p.event, Disbursement)]
    if not about_entries:
        return None
    entry_id = about_entries[which % len(about_entries)].entry_id
    if name == "settle":
        return DisbursementSettled(effective_at=_day(day), disbursement_event_id=entry_id)
    return Reversal(effective_at=_day(day), reverses_entry_id=entry_id, reason_code="other")


# --- Two ways to keep books ------------------------------------------------------------------------------------------


class Keeper(Protocol):
    """Something that takes events in, and what it has recorded."""

    loans: list[Loan]
    today: date

    def post(self, event: Event) -> str:
        """The new entry's id. Raises the refusal."""
        ...

    def documents(self) -> dict[str, str]:
        """Entry id -> canonical document, in order of posting."""
        ...


@dataclass
class Memory:
    """The product without PostgreSQL: `Posting` decides, proves and renders; a list keeps what it would have recorded."""

    tenant_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    today: date = date(2026, 6, 30)
    loans: list[Loan] = field(default_factory=list)
    recorded: list[tuple[str, Json]] = field(default_factory=list)

    def __post_init__(self) -> None:
        program_id = str(uuid.uuid4())
        self.loans = [Loan(str(uuid.uuid4()), str(uuid.uuid4()), program_id, "USD") for _ in range(2)]

    def post(self, event: Event) -> str:
        origin, touches = Origin(self.tenant_id, "client:test", str(uuid.uuid4())), Touches.of(event)
        posting = Posting(self, origin, touches, self._opened(touches))  # type: ignore[arg-type]
        posted = posting.post(event)
        posting.record()
        return posted.journal_entry_id

    @property
    def cursor(self) -> None:
        """What the chart is read with; here it is not read."""

    def finish_with(self, statement: Statement, values: tuple[Any, ...]) -> None:
        """What a transaction would send to `record_posting`."""
        assert statement is write_path.RECORD
        self.recorded += [(text, extra) for text, extra in json.loads(values[0])]

    def documents(self) -> dict[str, str]:
        return {json.loads(text)["journal_entry_id"]: text for text, _ in self.recorded}

    def _opened(self, touches: Touches) -> str:
        """What `open_posting` would answer: see its description in the migration."""
        entries = [json.loads(text) for text, _ in self.recorded]
        about = next((entry for entry in entries if entry["journal_entry_id"] == touches.entry), None)
        named = {*touches.loans, *(line.get("loan_id") for line in (about or {}).get("lines", ()))}
        loans = [self._loan(loan, entries, touches) for loan in self.loans if loan.loan_id in named]
        return json.dumps(
            {
                "posted_at": datetime(2026, 6, 30, 12, 0, 0, len(entries)).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),  # noqa: DTZ001
                "today": self.today.isoformat(),
                "loans": loans,
                "later": [[loan["loan_id"], *movement] for loan in loans for movement in loan.pop("later")],
                "accruals": [[loan["loan_id"], *accrued] for loan in loans if (accrued := loan.pop("accrual"))],
                "entry": self._entry(about, entries) if about else None,
            }
        )

    def _loan(self, loan: Loan, entries: list[Json], touches: Touches) -> Json:
        chart = Chart(CONSUMER_LENDING)
        own = [(e, line) for e in entries for line in e["lines"] if line.get("loan_id") == loan.loan_id]
        balances: Counter[tuple[str, str]] = Counter()
        later: Counter[tuple[str, str, str]] = Counter()
        for entry, line in own:
            net = int(line["amount_minor"]) * (1 if line["direction"] == "DR" else -1)
            account = chart[line["account_code"]]
            if account.per_loan:
                balances[account.code, line["layer"]] += net if account.normal_side == "DR" else -net
            if touches.since is not None and entry["effective_at"] > touches.since.isoformat():
                later[entry["effective_at"], account.code, line["layer"]] += net
        accruals = [
            (accrual["revision"], json.loads(text)["journal_entry_id"])
            for text, extra in self.recorded
            for accrual in extra.get("accruals", ())
            if accrual["loan_id"] == loan.loan_id
            and touches.accrual is not None
            and json.loads(text)["effective_at"] == touches.accrual.isoformat()
        ]
        turned = {entry.get("reverses_entry_id") for entry in entries}
        return {
            "loan_id": loan.loan_id,
            "borrower_id": loan.borrower_id,
            "program_id": loan.program_id,
            "currency": "USD",
            "opened_on": OPENED_ON.isoformat(),
            "principal_limit_minor": LIMIT if loan is self.loans[1] else None,
            "version": len({entry["journal_entry_id"] for entry, _ in own}),
            "day_count_convention": "ACT_365",
            "waterfall": "fees,interest,principal",
            "accrual_mode": "client",
            "balances": [[*cell, minor] for cell, minor in balances.items()],
            "later": [[*cell, minor] for cell, minor in later.items()],
            "accrual": [max(accruals)[0], max(accruals)[1] in turned] if accruals else None,
        }

    def _entry(self, entry: Json, entries: list[Json]) -> Json:
        entry_id = entry["journal_entry_id"]
        settles = {
            e["journal_entry_id"]: x.get("settles_entry_id") for e, (_, x) in zip(entries, self.recorded, strict=True)
        }
        return {
            "entry_id": entry_id,
            "event_type": entry["event_type"],
            "effective_at": entry["effective_at"],
            "document": msgspec.json.encode(entry).decode(),
            "settles_entry_id": settles[entry_id],
            "reversed_by": next((e["event_type"] for e in entries if e.get("reverses_entry_id") == entry_id), None),
            "settled_by": next((settling for settling, of in settles.items() if of == entry_id), None),
        }


class Database:
    """The product as it is, with a tenant of its own."""

    def __init__(self) -> None:
        self.books = open_books()
        self.books.open_loan(principal_limit_minor=LIMIT)
        self.loans = self.books.loans
        with tenant_transaction(self.books.tenant_id) as cursor:
            self.today = queries.today(cursor)

    def post(self, event: Event) -> str:
        return self.books.post(event).journal_entry_id

    def documents(self) -> dict[str, str]:
        return dict(self.books.rows("SELECT id::text, document FROM journal_entry ORDER BY id"))


@pytest.fixture(autouse=True)
def remembered_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chart is read from the database; the one in memory is the template, which is also what the others copy."""
    monkeypatch.setattr(write_path, "read_chart", lambda cursor: Chart(CONSUMER_LENDING))
    monkeypatch.setattr(write_path, "_charts", {})


# --- The run ---------------------------------------------------------------------------------------------------------


def run(stream: list[tuple[Any, ...]], keeper: Keeper, reached: set[str] | None = None) -> Model:
    """Post a stream to the books and to the model, and hold one against the other after every step. `reached` takes the
    kinds that were posted and the refusals that were given."""
    reached = set() if reached is None else reached
    first, second = keeper.loans
    model = Model(
        keeper.today,
        {
            first.loan_id: Terms(first.borrower_id, OPENED_ON),
            second.loan_id: Terms(second.borrower_id, OPENED_ON, limit_minor=LIMIT),
        },
    )
    for step in stream:
        happening = to_event(step, model, keeper.loans)
        if happening is None:
            continue
        refusals, moves = model.decide(happening)
        entry_id, refusal = _posted_or_refused(keeper, happening)
        reached.add(refusal or happening.kind.value)
        if refusal is not None:
            assert refusal in refusals, f"{step}: refused as {refusal}, the model says {refusals or 'it is fine'}"
            continue
        assert not refusals, f"{step}: posted, the model refuses it as {refusals}"
        model.take(entry_id, happening, moves)
        _keeps_its_promises(model, entry_id, moves)
    return model


def _posted_or_refused(keeper: Keeper, happening: Event) -> tuple[str, str | None]:
    try:
        return keeper.post(happening), None
    except Problem as problem:
        return "", problem.code


def _keeps_its_promises(model: Model, entry_id: str, moves: Moves) -> None:
    assert sum(move.debit_minor for move in moves) == 0
    for move in moves:
        if move.loan_id is not None and move.code in NEVER_BELOW_ZERO:
            assert model.lowest(move.loan_id, move.code, move.layer, OPENED_ON) >= 0, f"{move} in {entry_id}"


def moves_of(document: Json) -> Moves:
    """What a document says, as the model says it."""
    return tuple(
        Move(
            line["account_code"],
            line["layer"],
            line["currency"],
            line.get("loan_id"),
            int(line["amount_minor"]) * (1 if line["direction"] == "DR" else -1),
        )
        for line in document["lines"]
    )


def agree(model: Model, documents: dict[str, str]) -> None:
    """Every entry says what the model expected, in the canonical form, and every reversal is the mirror of its entry."""
    read = {entry_id: json.loads(text) for entry_id, text in documents.items()}
    assert read.keys() == {posted.entry_id for posted in model.posted}
    for posted in model.posted:
        document = read[posted.entry_id]
        assert sorted(moves_of(document), key=repr) == sorted(posted.moves, key=repr)
        assert documents[posted.entry_id].encode() == rfc8785.dumps(document), "the document is not canonical"
        assert [line["sequence"] for line in document["lines"]] == list(range(1, len(document["lines"]) + 1))
        if isinstance(posted.event, Reversal):
            original = moves_of(read[document["reverses_entry_id"]])
            assert not totals([*moves_of(document), *original]), "a reversal leaves something of its entry"
    # So the books are those of a life in which what was reversed never happened.
    undone = {p.event.reverses_entry_id for p in model.posted if isinstance(p.event, Reversal)}
    standing = [p for p in model.posted if p.entry_id not in undone and not isinstance(p.event, Reversal)]
    assert model.totals() == totals(move for p in standing for move in p.moves)


COMMON = settings(
    deadline=None,
    # Without Hypothesis' own store of failures, a failure prints the seed to run it again with.
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)


@settings(COMMON, max_examples=STREAMS)
@given(STREAM)
def test_streams_of_events_post_what_the_model_says(stream: list[tuple[Any, ...]]) -> None:
    memory = Memory()
    agree(run(stream, memory), memory.documents())


@settings(COMMON, max_examples=STREAMS_THROUGH_POSTGRESQL)
@given(STREAM)
def test_streams_of_events_through_postgresql_post_what_the_model_says(stream: list[tuple[Any, ...]]) -> None:
    keeper = Database()
    model = run(stream, keeper)
    agree(model, keeper.documents())
    _rows_say_the_same(model, keeper)
    with tenant_transaction(keeper.books.tenant_id) as cursor:
        assert [breach for check in proof.CHECKS for breach in check(cursor)] == []


def _rows_say_the_same(model: Model, keeper: Database) -> None:
    """The lines in the table are the documents', the balances are the lines' sums, the versions are the entries' numbers,
    and every reading as of every day is the model's."""
    rows = keeper.books.rows(
        """SELECT e.id::text, e.document, e.content_hash, json_agg(json_build_object(
                      'account_code', l.account_code, 'layer', l.layer, 'currency', l.currency, 'loan_id', l.loan_id,
                      'amount_minor', l.amount_minor, 'direction', l.direction, 'external_ref', l.external_ref)
                      ORDER BY l.sequence)
           FROM journal_entry e JOIN journal_line l ON l.entry_id = e.id GROUP BY e.tenant_id, e.id"""
    )
    for _, text, content_hash, lines in rows:
        assert bytes(content_hash) == hashlib.sha256(text.encode()).digest()
        document = json.loads(text)
        assert moves_of({"lines": lines}) == moves_of(document)
        assert [line["external_ref"] for line in lines] == [line.get("external_ref") for line in document["lines"]]
    for loan in keeper.loans:
        kept = keeper.books.balances(loan)
        cells = {(code, layer) for code, layer, _, of in model.totals() if of == loan.loan_id and (code, layer) in kept}
        for code, layer in kept.keys() | cells:
            assert kept[code, layer] == model.balance(loan.loan_id, code, layer), (code, layer)
        versions = keeper.books.rows(
            "SELECT DISTINCT loan_version FROM journal_line WHERE loan_id = %s ORDER BY 1", loan.loan_id
        )
        assert [version for (version,) in versions] == list(range(1, len(versions) + 1))
        _readings_are_the_models(model, keeper, loan)


def _readings_are_the_models(model: Model, keeper: Database, loan: Loan) -> None:
    codes = {"principal": "1100", "interest": "1200", "fees": "1300", "suspense": "2000"}
    with tenant_transaction(keeper.books.tenant_id) as cursor:
        for day in sorted({posted.day for posted in model.posted} | {keeper.today}):
            read = queries.loan_balances(cursor, loan_id=loan.loan_id, as_of=day)
            assert read is not None
            expected = {role: model.balance(loan.loan_id, code, through=day) for role, code in codes.items()}
            assert {role: read.by_role.get(role, 0) for role in codes} == expected, day


def test_the_streams_reach_every_refusal_and_every_kind() -> None:
    """What makes the streams worth running: an ordinary set of them has seen everything that can happen."""
    reached: set[str] = set()

    @settings(COMMON, max_examples=300, derandomize=True)
    @given(STREAM)
    def collect(stream: list[tuple[Any, ...]]) -> None:
        run(stream, Memory(), reached)

    collect()
    assert reached >= {
        "disbursement",
        "disbursement_settled",
        "payment_received",
        "accrual",
        "reversal",
        "manual_adjustment",
        "amount_exceeds_balance",
        "amount_exceeds_limit",
        "amount_out_of_range",
        "effective_date_refused",
        "already_reversed",
        "already_settled",
        "not_reversible",
        "accrual_already_posted",
        "validation_failed",
        "unbalanced_entry",
        "account_not_found",
    }
