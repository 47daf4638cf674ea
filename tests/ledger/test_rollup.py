"""Account sums: whatever is rolled up and whatever is not, a balance is the sum of the lines, at every moment."""

from __future__ import annotations

import json
import threading
import time
from datetime import date
from io import StringIO
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connections

from hpts.tenancy import tenant_transaction
from ledger import balances, queries, tasks
from ledger.events import PENDING, SETTLED, ChargeOff, Line
from tests.ledger.conftest import Books, caught_up, open_books, race, refused, session

DAYS = [
    date(2023, 12, 31),
    date(2024, 1, 1),
    date(2024, 2, 29),
    date(2025, 1, 10),
    date(2025, 2, 10),
    date(2025, 12, 31),
]


@pytest.fixture
def lent() -> Books:
    """Books of several years, dated back and forth."""
    books = open_books(loans=2)
    one, other = books.loans
    for loan, amount, on in ((one, 100_000, "2025-01-10"), (other, 5_000, "2025-02-01")):
        books.post(books.disbursement(loan, amount, on))
    for number, day in enumerate(DAYS):
        on = day.isoformat()
        books.post(books.adjustment(on, Line("1000", "DR", 10 + number, "USD"), Line("3000", "CR", 10 + number, "USD")))
        books.post(books.adjustment(on, Line("1000", "DR", 7, "JPY"), Line("3000", "CR", 7, "JPY")))
    books.post(books.disbursement(one, 3_000, "2025-02-03", PENDING))
    books.post(books.payment(one, 2_500, "2025-02-11"))
    return books


def counted(
    books: Books, currency: str, layer: str, as_of: date, known_at: str = "infinity"
) -> dict[str, tuple[int, int]]:
    """Debits and credits of each account, straight from the lines."""
    rows = books.rows(
        """SELECT account_code, coalesce(sum(amount_minor) FILTER (WHERE direction = 'DR'), 0)::bigint,
                  coalesce(sum(amount_minor) FILTER (WHERE direction = 'CR'), 0)::bigint
           FROM journal_line l JOIN journal_entry e ON e.tenant_id = l.tenant_id AND e.id = l.entry_id
           WHERE currency = %s AND layer = %s AND l.effective_at <= %s AND e.posted_at <= %s GROUP BY account_code""",
        currency,
        layer,
        as_of,
        known_at,
    )
    return {code: (dr, cr) for code, dr, cr in rows}


def shown(books: Books, currency: str, layer: str, as_of: date, **more: Any) -> dict[str, tuple[int, int]]:
    with tenant_transaction(books.tenant_id) as cursor:
        found = queries.trial_balance(cursor, currency=currency, layer=layer, as_of=as_of, **more)
    return {each.account.code: (each.dr_minor, each.cr_minor) for each in found if each.dr_minor or each.cr_minor}


def agree(books: Books) -> None:
    for currency, layer in (("USD", SETTLED), ("USD", PENDING), ("JPY", SETTLED), ("EUR", SETTLED)):
        for day in (*DAYS, date(2023, 12, 30), date.min, date.max):
            assert shown(books, currency, layer, day) == counted(books, currency, layer, day), (currency, layer, day)
    for since, until in ((DAYS[1], DAYS[-1]), (DAYS[2], DAYS[4]), (date(2023, 1, 1), date(2026, 1, 1))):
        assert days(books, "1000", since, until) == counted_days(books, "1000", since, until), (since, until)


def days(books: Books, code: str, since: date, until: date) -> list[tuple[Any, ...]]:
    with tenant_transaction(books.tenant_id, using="readonly") as cursor:
        return [tuple(day.values()) for day in queries.account_days(cursor, code=code, since=since, until=until)]


def counted_days(books: Books, code: str, since: date, until: date) -> list[tuple[Any, ...]]:
    """What moved the account on each day, and before all of them, straight from the lines."""
    return books.rows(
        """SELECT currency, layer, CASE WHEN effective_at >= %s THEN effective_at END,
                  coalesce(sum(amount_minor) FILTER (WHERE direction = 'DR'), 0)::bigint,
                  coalesce(sum(amount_minor) FILTER (WHERE direction = 'CR'), 0)::bigint
           FROM journal_line WHERE account_code = %s AND effective_at <= %s
           GROUP BY 1, 2, 3 ORDER BY 1, 2 DESC, 3 NULLS FIRST""",
        since,
        code,
        until,
    )


def point(books: Books) -> list[tuple[Any, ...]]:
    return books.rows("SELECT created_xid::text, entry_id::text FROM account_rollup")


def sums(books: Books) -> list[tuple[Any, ...]]:
    return sorted(books.rows("SELECT * FROM account_sum"))


# --- Exact, before, between and after --------------------------------------------------------------------------------


def test_a_balance_is_the_sum_of_its_lines_however_far_the_roll_up_is(lent: Books) -> None:
    agree(lent)
    with tenant_transaction(lent.tenant_id) as cursor:
        before = queries.books(cursor)
        cursor.execute("SELECT roll_up_accounts(%s, %s)", (5, 1_000))
    agree(lent)
    caught_up(lent.tenant_id)
    agree(lent)
    lent.post(lent.payment(lent.loan, 1_000, "2025-01-31"))
    agree(lent)
    with tenant_transaction(lent.tenant_id) as cursor:
        assert queries.books(cursor) == before == [("JPY", SETTLED), ("USD", PENDING), ("USD", SETTLED)]
        (cash,) = queries.trial_balance(cursor, currency="USD", layer=SETTLED, as_of=DAYS[-1], code="1000")
    assert (cash.dr_minor, cash.cr_minor) == counted(lent, "USD", SETTLED, DAYS[-1])["1000"]


def test_accruals_of_the_engine_and_charge_offs_are_rolled_up_like_any_entry() -> None:
    books = open_books()
    program_id = books.open_program(annual_rate_bps=100_000)
    loans = [books.open_loan(program_id=program_id) for _ in range(3)]
    for loan in loans:
        books.post(books.disbursement(loan, 365_000, "2025-02-10"))
    caught_up(books.tenant_id)
    books.accrue_by_engine("2025-02-11", program_id)
    books.post(ChargeOff(loan_id=loans[0].loan_id, effective_at=date(2025, 2, 12)))
    agree(books)
    caught_up(books.tenant_id)
    agree(books)
    assert counted(books, "USD", SETTLED, DAYS[-1])["1200"][0] > 0


@pytest.mark.parametrize("nearer", [True, False])
def test_what_was_known_at_an_instant_is_told_from_either_end(
    lent: Books, monkeypatch: pytest.MonkeyPatch, nearer: bool
) -> None:
    caught_up(lent.tenant_id)
    lent.post(lent.payment(lent.loan, 1, "2025-03-01"))
    ((created_at,),) = lent.rows("SELECT created_at FROM tenant")
    with tenant_transaction(lent.tenant_id) as cursor:
        assert queries._is_nearer_to_the_beginning(cursor, created_at.isoformat())
        cursor.execute("SELECT clock_timestamp()")
        assert not queries._is_nearer_to_the_beginning(cursor, cursor.fetchone()[0].isoformat())
    monkeypatch.setattr(queries, "_is_nearer_to_the_beginning", lambda cursor, known_at: nearer)
    for (instant,) in [(created_at,), *lent.rows("SELECT posted_at FROM journal_entry ORDER BY posted_at")]:
        known_at = instant.isoformat().replace("+00:00", "Z")
        expected = counted(lent, "USD", SETTLED, DAYS[-1], known_at)
        assert shown(lent, "USD", SETTLED, DAYS[-1], known_at=known_at) == expected


def test_a_reader_never_sees_debits_without_credits_while_others_write() -> None:
    books = open_books(loans=2)
    for loan in books.loans:
        books.post(books.disbursement(loan, 1_000_000, "2025-01-10"))
    done = threading.Event()
    read = 0

    def write(loan: Any) -> int:
        until = time.monotonic() + 4
        posted = 0
        while time.monotonic() < until:
            books.post(books.payment(loan, 1, "2025-02-01" if posted % 2 else "2025-03-01"))
            posted += 1
        return posted

    def roll_up() -> int:
        rolled = 0
        while not done.is_set():
            rolled += balances.roll_up(books.tenant_id)
        return rolled

    def compare() -> int:
        nonlocal read
        last = 0
        while not done.is_set():
            found = shown(books, "USD", SETTLED, date(2025, 12, 31))
            debit, credit = (sum(side) for side in zip(*found.values(), strict=True))
            cash = found.get("1000", (0, 0))[0]
            assert debit == credit
            assert cash >= last, "what was seen once is gone"
            assert found["1100"][1] == cash, "a payment is seen in part"
            last, read = cash, read + 1
        return read

    def writers() -> int:
        try:
            outcomes = race(*(lambda loan=loan: write(loan) for loan in books.loans))  # type: ignore[misc]
            assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)], outcomes
            return sum(outcome for outcome in outcomes if isinstance(outcome, int))
        finally:
            done.set()

    outcomes = race(writers, roll_up, compare)
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)], outcomes
    assert min(outcome for outcome in outcomes if isinstance(outcome, int)) > 0
    agree(books)
    caught_up(books.tenant_id)
    assert shown(books, "USD", SETTLED, date(2025, 12, 31))["1000"][0] == outcomes[0]


def test_sums_point_and_tail_are_read_by_one_snapshot_the_callers() -> None:
    """A function that is not STABLE looks anew in each of its statements: the point would be older than the sums."""
    with session("app") as connection:
        rows = connection.execute(
            "SELECT proname, provolatile FROM pg_proc WHERE proname IN ('account_balances', 'account_books') ORDER BY 1"
        ).fetchall()
    assert rows == [("account_balances", "s"), ("account_books", "s")]


# --- The point -------------------------------------------------------------------------------------------------------


def test_an_entry_that_commits_late_is_not_passed_by(lent: Books) -> None:
    caught_up(lent.tenant_id)
    with session("app", lent.tenant_id) as early:
        # A transaction with an id, older than what is posted meanwhile.
        early.execute("SELECT pg_current_xact_id()")
        for _ in range(3):
            lent.post(lent.payment(lent.loan, 10, "2025-03-01"))
        before = point(lent)
        assert balances.roll_up(lent.tenant_id) == 0
        assert lent.tenant_id not in balances.tenants_behind()
        assert point(lent) == before, "an entry was taken before a transaction that may still bring an older one"
        agree(lent)
    assert lent.tenant_id in _behind_at_last(lent)
    caught_up(lent.tenant_id)
    agree(lent)


def _behind_at_last(books: Books) -> list[str]:
    deadline = time.monotonic() + 30
    while books.tenant_id not in (behind := balances.tenants_behind()):
        assert time.monotonic() < deadline
    return behind


def test_a_roll_up_that_is_killed_in_the_middle_leaves_nothing(lent: Books) -> None:
    with session("app", lent.tenant_id) as doomed:
        (pid,) = doomed.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        doomed.execute("SELECT roll_up_accounts(1000, 100000)")
        agree(lent)
        with session("superuser") as killer:
            killer.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
        with pytest.raises(psycopg.OperationalError):
            doomed.execute("SELECT 1")
    assert (sums(lent), point(lent)) == ([], [])
    caught_up(lent.tenant_id)
    agree(lent)


def test_of_two_roll_ups_one_works_and_writers_wait_for_neither(lent: Books) -> None:
    with session("app", lent.tenant_id) as first:
        ((rolled,),) = first.execute("SELECT roll_up_accounts(1000, 100000)").fetchall()
        assert balances.roll_up(lent.tenant_id) == 0
        with tenant_transaction(lent.tenant_id) as cursor:
            cursor.execute("SELECT roll_up_accounts(1000, 100000)")
            assert cursor.fetchone() == (None,)
        lent.post(lent.payment(lent.loan, 5, "2025-03-01"))
        agree(lent)
    assert rolled is None or rolled >= 0
    outcomes = race(*[lambda: balances.roll_up(lent.tenant_id)] * 4)
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    caught_up(lent.tenant_id)
    agree(lent)


def test_a_transaction_of_the_roll_up_ends_with_the_entry_that_fills_it(lent: Books) -> None:
    caught_up(lent.tenant_id)
    for _ in range(3):
        lent.post(lent.payment(lent.loan, 10, "2025-03-01"))
    _behind_at_last(lent)
    with tenant_transaction(lent.tenant_id) as cursor:
        cursor.execute("SELECT roll_up_accounts(1000, 1)")
        assert cursor.fetchone() == (1,)
    agree(lent)


def test_the_task_rolls_up_every_tenant_and_one_that_fails_stops_no_other(
    lent: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = open_books().tenant_id
    real = balances.roll_up

    def roll_up(tenant_id: str) -> int:
        if tenant_id == broken:
            raise RuntimeError("no luck")
        return real(tenant_id)

    monkeypatch.setattr(balances, "roll_up", roll_up)
    monkeypatch.setattr(balances, "tenants_behind", lambda: [broken, lent.tenant_id])
    deadline = time.monotonic() + 30
    while not point(lent):
        assert time.monotonic() < deadline
        tasks.roll_up_accounts()
    agree(lent)


def test_sums_of_another_cluster_do_not_count_and_are_not_added_to(lent: Books) -> None:
    caught_up(lent.tenant_id)
    with session("superuser") as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("ALTER TABLE account_rollup DISABLE TRIGGER ALL")
        connection.execute(
            "UPDATE account_rollup SET created_xid = '9000000000000000000' WHERE tenant_id = %s", (lent.tenant_id,)
        )
        connection.execute("ALTER TABLE account_rollup ENABLE TRIGGER ALL")
        for guard in ("never_goes", "identity", "wall"):
            connection.execute(f"ALTER TABLE account_rollup ENABLE ALWAYS TRIGGER account_rollup_{guard}")
    agree(lent)
    # Its transaction's number is smaller than that of the point, and no tail begins behind it.
    lent.post(lent.payment(lent.loan, 5, "2025-03-01"))
    agree(lent)
    with refused("HP013", "account_rollup_of_this_cluster"), session("app", lent.tenant_id) as connection:
        connection.execute("SELECT roll_up_accounts(1000, 100000)")


# --- Walls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE account_sum SET dr_minor = 0",
        "DELETE FROM account_sum",
        "INSERT INTO account_sum SELECT * FROM account_sum",
        "UPDATE account_rollup SET rolled_up_at = now()",
        "DELETE FROM account_rollup",
    ],
)
def test_the_application_changes_no_sum_but_by_rolling_up(lent: Books, statement: str) -> None:
    with refused("42501"), session("app", lent.tenant_id) as connection:
        connection.execute(statement)


@pytest.mark.parametrize("table", ["account_sum", "account_rollup"])
def test_sums_and_their_point_never_go(lent: Books, table: str) -> None:
    caught_up(lent.tenant_id)
    with refused("HP001"), session("owner", lent.tenant_id) as connection:
        connection.execute(f"DELETE FROM {table}")


def test_the_point_does_not_go_back_nor_beyond_what_has_ended(lent: Books) -> None:
    caught_up(lent.tenant_id)
    first = "SELECT created_xid, entry_id FROM outbox_message ORDER BY created_xid, entry_id LIMIT 1"
    with refused("HP013", "account_rollup_forward"), session("owner", lent.tenant_id) as connection:
        connection.execute(f"UPDATE account_rollup SET (created_xid, entry_id) = ({first})")
    with refused("HP013", "account_rollup_bounded"), session("owner", lent.tenant_id) as connection:
        connection.execute("UPDATE account_rollup SET created_xid = pg_current_xact_id()")


# --- Made again ------------------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(lent: Books) -> Books:
    caught_up(lent.tenant_id)
    with session("superuser") as connection:
        for statement in (
            "ALTER TABLE account_sum DISABLE TRIGGER ALL",
            "UPDATE account_sum SET dr_minor = dr_minor + 3 WHERE tenant_id = %s AND account_code = '1000' AND span = 'day'",
            "DELETE FROM account_sum WHERE tenant_id = %s AND account_code = '3000' AND span = 'year'",
            "ALTER TABLE account_sum ENABLE TRIGGER ALL",
            "ALTER TABLE account_sum ENABLE ALWAYS TRIGGER account_sum_never_goes",
            "ALTER TABLE account_sum ENABLE ALWAYS TRIGGER account_sum_identity",
        ):
            connection.execute(statement, (lent.tenant_id,) if "%s" in statement else None)
    return lent


def _rebuilt(books: Books, *arguments: str) -> dict[str, Any]:
    out = StringIO()
    call_command("rebuild_balances", "--tenant", books.tenant_id, "--json", *arguments, stdout=out)
    answer: dict[str, Any] = json.loads(out.getvalue())
    return answer


def test_sums_that_differ_are_reported_and_made_right(spoilt: Books) -> None:
    wrong = sums(spoilt)
    report = _rebuilt(spoilt, "--dry-run")["sum_differences"]
    assert {each["account_code"] for each in report} == {"1000", "3000"}
    assert {each["recorded_dr_minor"] for each in report if each["account_code"] == "3000"} == {None}
    assert sums(spoilt) == wrong
    assert _rebuilt(spoilt)["sum_differences"] == report
    assert _rebuilt(spoilt)["sum_differences"] == []
    agree(spoilt)
    spoilt.post(spoilt.payment(spoilt.loan, 5, "2025-03-01"))
    caught_up(spoilt.tenant_id)
    agree(spoilt)


def test_a_person_sees_which_sums_were_wrong(spoilt: Books) -> None:
    out = StringIO()
    call_command("rebuild_balances", "--tenant", spoilt.tenant_id, stdout=out)
    assert "missing" in out.getvalue()
    assert "sums of accounts differed and were put right." in out.getvalue()


def test_counting_in_parts_finds_the_same(lent: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balances, "COUNTED_TOGETHER", 3)
    caught_up(lent.tenant_id)
    differences: list[balances.SumDifference] = []
    steps = list(balances.recount(lent.tenant_id, differences, repair=False))
    assert (steps[-1][0], differences) == (steps[-1][1], [])
    assert len(steps) > 4
    connections["readonly"].close()
