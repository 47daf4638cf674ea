"""Two requests that touch the same rows: whatever their statements' order, they end as if one had come after the other.

Each pair is tried in every order in which the statements of the two postings can be sent: a walk stops before each of its
statements, over HTTP and on a connection of its own, until it is told to go on. A walk that waits for a lock of the other is
passed over. The answers and the books at the end must be those of one of the two serial orders. Below, the same pairs run at
each other without any order, and a period closes while others are dated in it.
"""

from __future__ import annotations

import json
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import pytest
from django.db import connections
from django.http import HttpResponse

from hpts import tenancy
from hpts.pipeline import Step
from hpts.tenancy import tenant_transaction
from reconciliation import checks
from tests.conftest import Api, Json, Lender, Loan, new_key, payment_of, posted, shown
from tests.ledger.conftest import onlooker, race, scratch_database, session, tear_down

Request = tuple[str, Json]
Answer = tuple[int, str]
MakeLender = Callable[..., Lender]

# --- The pairs -------------------------------------------------------------------------------------------------------

FEBRUARY, MARCH = "2026-02-10", "2026-03-10"


class Pair(NamedTuple):
    """Two requests about a loan, and what must have happened before. `alone`: in a tenant's books of their own."""

    prepare: Callable[[Lender, Loan], tuple[Request, Request]]
    alone: bool = False


def on(loan: Loan, operation: str, amount: int | None = None, day: str = MARCH, **more: Any) -> Request:
    money = {} if amount is None else {"amount_minor": str(amount), "currency": "USD"}
    return f"/v1/loans/{loan.loan_id}/{operation}", {"effective_at": day} | money | more


def pay(loan: Loan, amount: int, day: str = MARCH, **more: Any) -> Request:
    return "/v1/payments", payment_of(loan, amount, day, **more)


def reversal(made: Json) -> Request:
    return "/v1/reversals", {
        "reverses_entry_id": made["journal_entry_id"],
        "reason_code": "other",
        "effective_at": MARCH,
    }


def of_payment(made: Json, what: str, **more: Any) -> Request:
    body = {"effective_at": MARCH} | ({"return_code": "R01"} if what == "return" else {}) | more
    return f"/v1/payments/{made['payment_event_id']}/{what}", body


def refinance(loan: Loan, **new_loan: Any) -> Request:
    opened = {"borrower_id": loan.borrower_id, "program_id": loan.program_id, "opened_on": "2026-01-01"}
    return on(loan, "refinance", new_loan=opened | new_loan)


def charge_off(loan: Loan) -> Request:
    return on(loan, "chargeoff", reason="Gone")


def paid(lender: Lender, loan: Loan, **more: Any) -> Json:
    return lender.api.pay(loan, 600, FEBRUARY, **more)


def in_suspense(lender: Lender, loan: Loan) -> Json:
    """500 that came before anything was owed."""
    return lender.api.pay(loan, 500, "2026-01-02")


def _charged_off(lender: Lender, loan: Loan) -> tuple[Request, Request]:
    path, body = charge_off(loan)
    return on(loan, "recoveries", 50), reversal(posted(lender.api.post(path, body)))


def _refinanced(lender: Lender, loan: Loan) -> tuple[Request, Request]:
    made = posted(lender.api.post(*refinance(loan)))
    new = Loan(made["new_loan_id"], loan.borrower_id, loan.program_id, "USD")
    return reversal(made), pay(new, 100)


def _replanned(lender: Lender, loan: Loan) -> Request:
    """A plan that a fee of an earlier date has made necessary, ready to be committed."""
    lender.api.pay(loan, 600, MARCH)
    lender.api.serve(loan, "fees", FEBRUARY, 70)
    path, body = f"/v1/loans/{loan.loan_id}/replans", {"from_date": FEBRUARY}
    return path, body | {"plan_hash": posted(lender.api.post(path, body))["plan_hash"]}


def _twice(request: Request) -> tuple[Request, Request]:
    return request, request


def _new_loan(lender: Lender, loan: Loan) -> tuple[Request, Request]:
    """A loan of one's own and the new loan of a refinance want one id."""
    body = {"borrower_id": loan.borrower_id, "program_id": loan.program_id, "opened_on": "2026-01-01"}
    body["loan_id"] = str(uuid.uuid4())
    return ("/v1/loans", body), refinance(loan, loan_id=body["loan_id"])


def _account(lender: Lender, loan: Loan) -> tuple[Request, Request]:
    own = {"account_code": "7000", "account_name": "Own", "account_type": "asset", "normal_side": "DR"}
    return _twice(("/v1/accounts", own))


def _batches(lender: Lender, loan: Loan) -> tuple[Request, Request]:
    """Two loans in one batch, and in the other order in the other."""
    other = lender.open_loan(borrower_id=loan.borrower_id)
    lender.api.disburse(other, 500, "2026-01-05")
    items = [
        [("/payments", payment_of(one, 400, MARCH)), (f"/loans/{two.loan_id}/fees", on(two, "fees", 9)[1])]
        for one, two in ((loan, other), (other, loan))
    ]
    first, second = (
        ("/v1/batches", {"mode": "atomic", "items": [{"path": path, "body": body} for path, body in each]})
        for each in items
    )
    return first, second


CLOSED = "/v1/periods/close", {"through_date": MARCH}

# The loan owes principal 1,000, interest 30 and fees 20 since January.
PAIRS: dict[str, Pair] = {
    "payment, payment": Pair(lambda lender, loan: _twice(pay(loan, 600))),
    "payment, reversal of what it pays": Pair(
        lambda lender, loan: (pay(loan, 25), reversal(lender.api.serve(loan, "fees", FEBRUARY, 10)))
    ),
    "return, reversal": Pair(
        lambda lender, loan: (of_payment(made := paid(lender, loan), "return"), reversal(made)),
    ),
    "return, return": Pair(lambda lender, loan: _twice(of_payment(paid(lender, loan), "return", nsf_fee_minor="9"))),
    "settlement, return": Pair(
        lambda lender, loan: (
            of_payment(made := paid(lender, loan, layer="PENDING"), "settlement"),
            of_payment(made, "return"),
        )
    ),
    "settlement, settlement": Pair(
        lambda lender, loan: _twice(of_payment(paid(lender, loan, layer="PENDING"), "settlement"))
    ),
    "settlement, reversal": Pair(
        lambda lender, loan: (
            of_payment(made := paid(lender, loan, layer="PENDING"), "settlement"),
            reversal(made),
        )
    ),
    "settlement, charge-off": Pair(
        lambda lender, loan: (of_payment(paid(lender, loan, layer="PENDING"), "settlement"), charge_off(loan))
    ),
    "charge-off, payment": Pair(lambda lender, loan: (charge_off(loan), pay(loan, 600))),
    "charge-off, charge-off": Pair(lambda lender, loan: _twice(charge_off(loan))),
    "charge-off, return with a fee": Pair(
        lambda lender, loan: (charge_off(loan), of_payment(paid(lender, loan), "return", nsf_fee_minor="9"))
    ),
    "charge-off, fee": Pair(lambda lender, loan: (charge_off(loan), on(loan, "fees", 5))),
    "recovery, reversal of the charge-off": Pair(_charged_off),
    "refinance, refinance": Pair(lambda lender, loan: _twice(refinance(loan))),
    "refinance, charge-off": Pair(lambda lender, loan: (refinance(loan), charge_off(loan))),
    "refinance, payment": Pair(lambda lender, loan: (refinance(loan), pay(loan, 600))),
    "reversal of a refinance, payment on the new loan": Pair(_refinanced),
    "refinance, loan of the same id": Pair(_new_loan),
    "waiver, payment of the fee": Pair(
        lambda lender, loan: (on(loan, "fee-waivers", 20, reason="Goodwill"), pay(loan, 15))
    ),
    "waiver, waiver": Pair(lambda lender, loan: _twice(on(loan, "fee-waivers", 15, reason="Goodwill"))),
    "restructure, payment": Pair(
        lambda lender, loan: (
            on(loan, "restructure", annual_rate_bps=1, capitalise_interest=True, capitalise_fees=True),
            pay(loan, 40),
        )
    ),
    "restructure, pay-off": Pair(
        lambda lender, loan: (on(loan, "restructure", annual_rate_bps=1), pay(loan, 1_050)),
    ),
    "suspense allocation, return": Pair(
        lambda lender, loan: (
            on(loan, "suspense-allocations", 400),
            of_payment(in_suspense(lender, loan), "return"),
        )
    ),
    "suspense allocation, suspense allocation": Pair(
        lambda lender, loan: (in_suspense(lender, loan), _twice(on(loan, "suspense-allocations", 300)))[1]
    ),
    "suspense allocation, payment": Pair(
        lambda lender, loan: (in_suspense(lender, loan), (on(loan, "suspense-allocations", 500), pay(loan, 900)))[1]
    ),
    "replan, replan": Pair(lambda lender, loan: _twice(_replanned(lender, loan))),
    "replan, payment": Pair(lambda lender, loan: (_replanned(lender, loan), pay(loan, 5, FEBRUARY))),
    "batch, batch in the other order": Pair(_batches),
    "period's close, payment": Pair(lambda lender, loan: (CLOSED, pay(loan, 600)), alone=True),
    "period's close, period's close": Pair(lambda lender, loan: _twice(CLOSED), alone=True),
    "period's close, refinance": Pair(lambda lender, loan: (CLOSED, refinance(loan)), alone=True),
    "account's closure, payment": Pair(
        lambda lender, loan: (("/v1/accounts/1000/closure", {"reason": "Moved"}), pay(loan, 600)), alone=True
    ),
    "account, account of the same code": Pair(_account, alone=True),
    "program's terms, payment": Pair(
        lambda lender, loan: (
            (
                f"/v1/programs/{lender.program_id}/terms",
                {"effective_at": FEBRUARY, "waterfall": ["principal", "interest", "fees"]},
            ),
            pay(loan, 600),
        ),
        alone=True,
    ),
}


# --- A stage for each try --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A loan that owes something, and the two requests about it."""

    lender: Lender
    loan: Loan
    requests: tuple[Request, Request]

    def send(self, number: int) -> Answer:
        path, body = self.requests[number]
        answer = self.lender.api.in_a_thread().post(path, body, key=new_key())
        return _said(answer)

    def books(self) -> object:
        """What the loan and other loans of its borrower have become, without any id: versions, ends, terms, entries."""
        rows = onlooker().execute(_BOOKS, {"tenant": self.lender.tenant_id, "borrower": self.loan.borrower_id})
        loans = {str(loan_id): rest for loan_id, *rest in rows.fetchall()}
        first = loans.pop(self.loan.loan_id)
        of_tenant = onlooker().execute(_OF_TENANT, {"tenant": self.lender.tenant_id}).fetchall() if self.alone else []
        return json.dumps([first, sorted(loans.values(), key=str), of_tenant], default=str)

    @property
    def alone(self) -> bool:
        return self.loan is self.lender.loan


_BOOKS = """
    SELECT o.id, o.version, o.draws, o.ended_as,
           (SELECT json_agg(json_build_array(t.effective_at, t.annual_rate_bps, t.entry_id IS NULL) ORDER BY t.id)
            FROM loan_terms t WHERE t.tenant_id = o.tenant_id AND t.loan_id = o.id),
           (SELECT json_agg(json_build_array(b.account_code, b.layer, b.balance_minor) ORDER BY b.account_code, b.layer)
            FROM loan_balance b WHERE b.tenant_id = o.tenant_id AND b.loan_id = o.id AND b.balance_minor <> 0),
           (SELECT json_agg(json_build_array(l.loan_version, e.event_type, l.effective_at, l.direction, l.account_code,
                                             l.amount_minor, l.layer) ORDER BY l.loan_version, l.sequence)
            FROM journal_line l JOIN journal_entry e ON e.tenant_id = l.tenant_id AND e.id = l.entry_id
            WHERE l.tenant_id = o.tenant_id AND l.loan_id = o.id)
    FROM loan o WHERE o.tenant_id = %(tenant)s AND o.borrower_id = %(borrower)s"""
_OF_TENANT = """
    SELECT (SELECT json_agg(json_build_array(through_date, trial_balances) ORDER BY through_date)
            FROM period_close WHERE tenant_id = %(tenant)s),
           (SELECT json_agg(json_build_array(code, closed_at IS NULL) ORDER BY code)
            FROM gl_account WHERE tenant_id = %(tenant)s),
           (SELECT json_agg(json_build_array(effective_at, waterfall) ORDER BY id)
            FROM program_terms WHERE tenant_id = %(tenant)s)"""


def _said(answer: HttpResponse) -> Answer:
    """Status, and the code of a refusal or what is said without ids and times."""
    assert answer.status_code < 500, answer.content.decode()
    body = json.loads(answer.content)
    told = ("allocation", "charged_off", "paid_off", "capitalised_minor", "waterfall", "closed")
    return answer.status_code, body.get("code") or json.dumps({name: body[name] for name in told if name in body})


def staged(pair: Pair, lender: Lender, make_lender: MakeLender) -> Stage:
    if pair.alone:
        lender = make_lender("Alone")
        loan = lender.loan
    else:
        loan = lender.open_loan()
    api = lender.api
    requests: tuple[Request, Request]
    api.disburse(loan, 1_000, "2026-01-05")
    api.accrue("2026-01-06", (loan, 1_000, 30))
    api.serve(loan, "fees", "2026-01-07", 20)
    requests = pair.prepare(lender, loan)
    return Stage(lender, loan, requests)


# --- Walks -----------------------------------------------------------------------------------------------------------


@dataclass
class Walk:
    """A request in a thread of its own that stops before each statement of its posting, and before COMMIT."""

    send: Callable[[], Answer]
    ended: bool = False
    outcome: Answer | Exception | None = None
    _pid: int = 0
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _stands: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._arrive()

    def stop(self, pid: int) -> None:
        """In the walk's thread, before a statement."""
        self._pid = pid
        self._stands.set()
        self._go.acquire()

    def stands(self) -> bool:
        """Whether it stands before a statement; not at its end, and not when it waits for a lock."""
        return self._arrive() and not self.ended

    def step(self) -> None:
        """Run the next statement to its end, or until it waits for a lock."""
        self._stands.clear()
        self._go.release()
        self._arrive()

    def join(self) -> Answer:
        self._thread.join(60)
        assert not self._thread.is_alive(), "a walk hangs"
        if isinstance(self.outcome, Exception):
            raise self.outcome
        assert self.outcome is not None
        return self.outcome

    def _arrive(self) -> bool:
        """Whether it stands before a statement or at its end; False when it waits for a lock."""
        while not self._stands.wait(0.001):
            waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = %s AND NOT granted)"
            if self._pid and onlooker().execute(waiting, (self._pid,)).fetchall() == [(True,)]:
                return self._stands.is_set()
        return True

    def _run(self) -> None:
        _here.walk = self
        try:
            self.outcome = self.send()
        except Exception as error:
            self.outcome = error
        finally:
            connections.close_all()
            self.ended = True
            self._stands.set()


_here = threading.local()


def _walk() -> Walk | None:
    """The walk of this thread, while it is in the transaction of its posting."""
    walk: Walk | None = getattr(_here, "walk", None)
    return walk if walk is not None and getattr(_here, "posting", False) else None


@pytest.fixture
def stepwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements that the product sends together are sent one by one, and each asks its walk first."""
    exchange = tenancy.exchange
    opened = tenancy.opened_transaction

    def one_by_one(connection: Any, *steps: Step) -> Any:
        _here.posting = getattr(_here, "posting", False) or any(b"open_posting" in step[0].sql for step in steps)
        walk = _walk()
        if walk is None:
            return exchange(connection, *steps)
        for step in steps:
            if not step[0].sql.upper().startswith((b"BEGIN", b"SET")):
                walk.stop(connection.info.backend_pid)
            result = exchange(connection, step)
        return result

    def of_the_cursor(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        walk = _walk()
        if walk is not None:
            walk.stop(context["connection"].connection.info.backend_pid)
        return execute(sql, params, many, context)

    @contextmanager
    def ending(*args: Any, **more: Any) -> Iterator[Any]:
        try:
            with connections["default"].execute_wrapper(of_the_cursor), opened(*args, **more) as transaction:
                yield transaction
        finally:
            _here.posting = False

    monkeypatch.setattr(tenancy, "exchange", one_by_one)
    monkeypatch.setattr("ledger.posting.opened_transaction", ending)


class Taken(NamedTuple):
    """A statement of an order: whose it was, and who else stood ready."""

    number: int
    ready: tuple[int, ...]


End = tuple[tuple[Answer, Answer], object]


def walked(stage: Stage, first: Sequence[int]) -> tuple[End, list[Taken]]:
    """The two requests of a stage, statement by statement; the first ones in this order, then whoever is ready."""
    walks = Walk(partial(stage.send, 0)), Walk(partial(stage.send, 1))
    for walk in walks:
        walk.start()
    taken: list[Taken] = []
    while not all(walk.ended for walk in walks):
        ready = tuple(number for number, walk in enumerate(walks) if walk.stands())
        if ready:
            wanted = first[len(taken)] if len(taken) < len(first) else ready[0]
            taken.append(Taken(wanted if wanted in ready else ready[0], ready))
            walks[taken[-1].number].step()
    return ((walks[0].join(), walks[1].join()), stage.books()), taken


def every_order(stage: Callable[[], Stage]) -> Iterator[tuple[str, End]]:
    """Each order in which the statements can run at all, and its end: two walks choose at every statement that both stand
    before. Who waits for the other's lock has no choice, so that these are few."""
    untried: list[tuple[int, ...]] = [()]
    while untried:
        first = untried.pop()
        end, taken = walked(stage(), first)
        order = tuple(each.number for each in taken)
        yield "".join(map(str, order)), end
        untried += [
            (*order[:place], other)
            for place in range(len(first), len(taken))
            for other in taken[place].ready
            if other != order[place]
        ]


def serial(stage: Stage, order: tuple[int, int]) -> tuple[tuple[Answer, Answer], object]:
    answers = {number: stage.send(number) for number in order}
    return (answers[0], answers[1]), stage.books()


def sound(lender: Lender) -> None:
    with tenant_transaction(lender.tenant_id) as cursor:
        assert [breach for check in checks.CHECKS for breach in check(cursor)] == []


@pytest.mark.usefixtures("stepwise")
@pytest.mark.parametrize("name", PAIRS)
def test_every_order_of_statements_ends_as_one_of_the_two_serial_orders(
    acme: Lender, make_lender: MakeLender, name: str
) -> None:
    stages = []

    def stage() -> Stage:
        stages.append(staged(PAIRS[name], acme, make_lender))
        return stages[-1]

    expected = [serial(stage(), (0, 1)), serial(stage(), (1, 0))]
    seen = set()
    for order, end in every_order(stage):
        assert end in expected, f"{order}: {end}\nis neither {expected[0]}\nnor {expected[1]}"
        seen.add(expected.index(end))
    assert seen == {0, 1} or expected[0] == expected[1], "one of the two never came first: nothing has met"
    assert len(stages) > 5, "one of the two never waited: nothing has met"
    for lender in {one.lender.tenant_id: one.lender for one in stages}.values():
        sound(lender)


@pytest.mark.usefixtures("stepwise")
def test_without_the_loans_lock_some_order_ends_as_neither(make_lender: MakeLender) -> None:
    """So the walks do meet, and the lock is what keeps them apart. The walls behind it are taken down as well."""
    with scratch_database():
        tear_down("open_posting", ("ORDER BY l.id FOR NO KEY UPDATE", "ORDER BY l.id"))
        tear_down("record_posting", ("RAISE EXCEPTION USING ERRCODE = 'HP007'", "RAISE DEBUG USING ERRCODE = 'HP007'"))
        with session("owner") as connection:
            connection.execute("DROP INDEX journal_line_loan_history")
        lender = make_lender("Unlocked")
        for name in ("charge-off, payment", "settlement, return", "recovery, reversal of the charge-off"):
            stage = partial(staged, PAIRS[name], lender, make_lender)
            expected = [serial(stage(), order) for order in ((0, 1), (1, 0))]
            assert any(end not in expected for _, end in every_order(stage)), f"{name} is kept apart by something else"


# --- All at once -----------------------------------------------------------------------------------------------------

ROUNDS = 12


@pytest.mark.parametrize(
    "name",
    [
        "return, reversal",
        "settlement, return",
        "charge-off, payment",
        "refinance, refinance",
        "waiver, payment of the fee",
        "suspense allocation, return",
        "replan, payment",
        "recovery, reversal of the charge-off",
    ],
)
def test_at_once_they_end_as_one_of_the_two_serial_orders(acme: Lender, make_lender: MakeLender, name: str) -> None:
    pair = PAIRS[name]
    expected = [serial(staged(pair, acme, make_lender), order) for order in ((0, 1), (1, 0))]
    for _ in range(ROUNDS):
        stage = staged(pair, acme, make_lender)
        first, second = race(partial(stage.send, 0), partial(stage.send, 1))
        assert ((first, second), stage.books()) in expected
    sound(acme)


def test_of_many_endings_of_a_loan_one_is_posted(acme: Lender, make_lender: MakeLender) -> None:
    """Charge-offs and refinances of one loan, eight at once: one of them ends it, and leaves no loan of the others."""
    for _ in range(6):
        loan = acme.open_loan()
        acme.api.disburse(loan, 1_000, "2026-01-05")
        stage = Stage(acme, loan, (charge_off(loan), refinance(loan)))
        outcomes = race(*[partial(stage.send, 0), partial(stage.send, 1)] * 4)
        told = Counter(outcome[0] for outcome in outcomes if isinstance(outcome, tuple))
        assert told == {201: 1, 422: 7}, outcomes
        ((loans, moved),) = onlooker().execute(
            """SELECT count(*), sum(version) FROM loan WHERE tenant_id = %s AND borrower_id = %s""",
            (acme.tenant_id, loan.borrower_id),
        )
        refinanced = acme.api.state(loan) == "refinanced"
        assert (loans, moved) == ((2, 3) if refinanced else (1, 2))
    sound(acme)


def test_what_is_dated_in_a_period_while_it_closes_is_in_its_trial_balance_or_refused(make_lender: MakeLender) -> None:
    """64 payments dated yesterday at one moment with the close of yesterday. Rounds until both ends have been seen."""
    told: Counter[str] = Counter()
    for _ in range(8):
        lender = make_lender()
        loans = [*lender.loans, *(lender.open_loan() for _ in range(5))]
        yesterday = (lender.today - timedelta(days=1)).isoformat()
        api = lender.api
        api.token()

        def send(path: str, body: Json, api: Api = api) -> Answer:
            return _said(api.in_a_thread().post(path, body, key=new_key()))

        payments = [partial(send, *pay(loans[n % len(loans)], 1 + n, yesterday)) for n in range(64)]
        closing = partial(send, "/v1/periods/close", {"through_date": yesterday})
        runners = [*payments, closing]
        random.shuffle(runners)
        outcomes = dict(zip(map(id, runners), race(*runners), strict=True))
        closed = outcomes[id(closing)]
        assert isinstance(closed, tuple)
        assert closed[0] == 201
        accepted = 0
        for number, payment in enumerate(payments):
            outcome = outcomes[id(payment)]
            assert isinstance(outcome, tuple), outcome
            status, said = outcome
            assert status == 201 or (status, said) == (422, "period_closed")
            told[said if status == 422 else "posted"] += 1
            accepted += 1 + number if status == 201 else 0
        (kept,) = shown(api.get("/v1/periods"))["items"]
        shown_now = shown(api.get("/v1/trial-balance", {"currency": "USD", "as_of_date": yesterday}))
        del shown_now["as_of_date"]
        # Of a period that closed before any payment nothing is kept, and nothing is there.
        assert kept["trial_balances"] == ([shown_now] if accepted else [])
        assert shown_now["total_dr_minor"] == str(accepted)
        assert api.normal_balance("1000") == accepted
        sound(lender)
        if {"posted", "period_closed"} <= told.keys():
            return
    pytest.fail(f"the close was always first or always last: {told}")
