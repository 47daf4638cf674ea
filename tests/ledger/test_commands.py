"""The commands of the ledger: what they print, what they change, and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth import authenticate
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import Client

from hpts import embedded, oauth
from hpts.models import ApiClient
from hpts.tenancy import tenant_transaction
from ledger import demo, queries
from ledger.events import PENDING, EventKind, Line
from ledger.money import in_major_units
from reconciliation import checks
from tests.conftest import Lender, shown
from tests.ledger.conftest import Books, contents, open_books, session

Json = dict[str, Any]


def told(command: str, *arguments: str) -> str:
    """What a command prints."""
    out = StringIO()
    call_command(command, *arguments, stdout=out)
    return out.getvalue().strip()


def answered(command: str, *arguments: str) -> Json:
    answer: Json = json.loads(told(command, *arguments, "--json"))
    return answer


# --- seed_demo -------------------------------------------------------------------------------------------------------

LOANS = 30
MEMBERS = ["tenant_id", "program_id", "client_id", "client_secret", "admin_username", "admin_password"]


@pytest.fixture(scope="module")
def seeded(open_database: None) -> Json:
    """What the first run prints, in a database that has no demo tenant."""
    return answered("seed_demo", "--loans", str(LOANS))


@pytest.fixture
def other_demo(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Call it to have the demo tenant be another one."""

    def change() -> str:
        tenant_id = str(uuid.uuid4())
        monkeypatch.setattr(demo, "TENANT_ID", tenant_id)
        return tenant_id

    return change


def _gets_a_token(credentials: Json) -> bool:
    from urllib.parse import urlencode

    form = {"grant_type": "client_credentials"} | {name: credentials[name] for name in ("client_id", "client_secret")}
    answer = Client().post("/oauth2/token", urlencode(form), "application/x-www-form-urlencoded")
    return answer.status_code == 200


def _logs_in(credentials: Json) -> bool:
    admin = authenticate(username=credentials["admin_username"], password=credentials["admin_password"])
    return admin is not None and bool(getattr(admin, "is_superuser", False))


def _book(tenant_id: str) -> Counter[tuple[Any, ...]]:
    """The lines of a tenant's journal, whatever ids its loans and entries have."""
    with session("app", tenant_id) as connection:
        rows = connection.execute(
            """SELECT e.event_type, l.effective_at, l.account_code, l.direction, l.amount_minor, l.currency, l.layer,
                      l.loan_version, l.external_ref
               FROM journal_line l JOIN journal_entry e ON e.id = l.entry_id"""
        )
        return Counter(rows.fetchall())


def test_the_first_run_prints_what_one_needs_to_call_the_api(seeded: Json) -> None:
    assert list(seeded) == MEMBERS
    assert seeded["tenant_id"] == demo.TENANT_ID
    assert (seeded["program_id"], seeded["admin_username"]) == (demo.PROGRAM_ID, "admin")


def test_the_client_gets_a_token_for_every_scope_and_the_admin_may_do_everything(seeded: Json) -> None:
    fresh = answered("seed_demo")
    assert _gets_a_token(fresh)
    assert _logs_in(fresh)
    client = ApiClient.objects.get(client_id=fresh["client_id"])
    assert set(client.allowed_scopes.split()) == set(oauth.SCOPES)


def test_the_demo_book_has_something_of_every_rule(seeded: Json) -> None:
    book = _book(demo.TENANT_ID)
    kinds = {EventKind(line[0]) for line in book}
    assert kinds == {
        EventKind.DISBURSEMENT,
        EventKind.DISBURSEMENT_SETTLED,
        EventKind.ACCRUAL,
        EventKind.PAYMENT_RECEIVED,
        EventKind.REVERSAL,
        EventKind.MANUAL_ADJUSTMENT,
    }
    assert {line[5] for line in book} == {"USD", "EUR"}
    assert {line[6] for line in book} == {"SETTLED", "PENDING"}
    assert len({line[1].replace(day=1) for line in book}) >= 12, "a year"


def test_the_demo_book_keeps_every_promise(seeded: Json) -> None:
    assert answered("verify_ledger", "--tenant", demo.TENANT_ID)["ok"]


def test_running_again_adds_nothing_and_gives_new_secrets_that_work(seeded: Json) -> None:
    before = contents(demo.TENANT_ID)
    again = answered("seed_demo", "--loans", "500")
    assert contents(demo.TENANT_ID) == before
    assert {name: again[name] for name in ("tenant_id", "program_id")} == {
        name: seeded[name] for name in ("tenant_id", "program_id")
    }
    assert _gets_a_token(seeded), "the client of the first run keeps working"
    assert _gets_a_token(again)
    assert _logs_in(again)


def test_keeping_credentials_prints_no_secret_and_changes_none(seeded: Json) -> None:
    known = answered("seed_demo")
    kept = answered("seed_demo", "--keep-credentials")
    assert list(kept) == [name for name in MEMBERS if name not in ("client_secret", "admin_password")]
    assert kept["client_id"] == known["client_id"]
    assert _logs_in(known)


def test_a_person_is_told_in_lines(seeded: Json) -> None:
    lines = told("seed_demo", "--keep-credentials").splitlines()
    assert lines[0].split() == ["tenant_id:", demo.TENANT_ID]


def test_a_run_that_was_killed_goes_on_where_it_stopped(other_demo: Callable[[], str]) -> None:
    whole = other_demo()
    book = demo.Book(8)
    for step in book.steps:
        book.take(step)
    killed = other_demo()
    book = demo.Book(8)
    for step in book.steps[: len(book.steps) // 2]:
        book.take(step)
    assert 0 < _book(killed).total() < _book(whole).total()
    book = demo.Book(8)
    for step in book.steps:
        book.take(step)
    assert _book(killed) == _book(whole)
    assert demo.Book(8).steps == []


@pytest.mark.parametrize("today", ["2024-02-29", "2025-12-31", "2026-01-01", "2026-03-31"])
def test_the_book_can_be_made_on_any_day(
    other_demo: Callable[[], str], monkeypatch: pytest.MonkeyPatch, today: str
) -> None:
    made = demo._made

    def on_that_day(cursor: Any) -> tuple[date, int, bool] | None:
        found = made(cursor)
        return found and (date.fromisoformat(today), *found[1:])

    monkeypatch.setattr(demo, "_made", on_that_day)
    tenant_id = other_demo()
    book = demo.Book(20)
    for step in book.steps:
        book.take(step)
    assert max(line[1] for line in _book(tenant_id)) <= date.fromisoformat(today)
    assert answered("verify_ledger", "--tenant", tenant_id)["ok"]


def test_an_absurd_number_of_loans_is_refused() -> None:
    with pytest.raises(CommandError, match="0 to 10000"):
        told("seed_demo", "--loans", "-1")


# --- verify_ledger ---------------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(books: Books) -> Iterator[Books]:
    """Books in which the first loan's principal balance is one cent too high, until the test ends."""
    _add_to_balance(books, 1)
    yield books
    ((minor,),) = books.rows(
        """SELECT balance_minor - (SELECT sum(CASE direction WHEN 'DR' THEN amount_minor ELSE -amount_minor END)
                                   FROM journal_line l WHERE l.loan_id = b.loan_id AND l.account_code = '1100')
           FROM loan_balance b WHERE loan_id = %s AND account_code = '1100'""",
        books.loan.loan_id,
    )
    _add_to_balance(books, -minor)


def _add_to_balance(books: Books, minor: int) -> None:
    with session("superuser") as connection:
        connection.execute(
            "UPDATE loan_balance SET balance_minor = balance_minor + %s WHERE loan_id = %s AND account_code = '1100'",
            (minor, books.loan.loan_id),
        )


def test_sound_books_are_reported_check_by_check(books: Books, other_books: Books) -> None:
    ids = [books.tenant_id, other_books.tenant_id]
    report = answered("verify_ledger", "--tenant", ids[0], "--tenant", ids[1].upper())
    assert report["ok"] is True
    assert [tenant["tenant_id"] for tenant in report["tenants"]] == ids
    for tenant in report["tenants"]:
        assert all(check.pop("seconds") >= 0 for check in tenant["checks"])
        assert tenant["checks"] == [{"name": check.__name__, "ok": True, "breaches": []} for check in checks.CHECKS]


def test_a_wrong_balance_fails_the_proof_and_is_named(spoilt: Books) -> None:
    out = StringIO()
    with pytest.raises(CommandError) as failed:
        call_command("verify_ledger", "--tenant", spoilt.tenant_id, stdout=out)
    assert failed.value.returncode == 1
    assert f"2 of {len(checks.CHECKS)} checks failed" in str(failed.value)
    assert "balances_match_lines" in out.getvalue()
    assert f"loan_balance loan_id {spoilt.loan.loan_id}, account_code 1100, layer SETTLED: " in out.getvalue()
    assert "says 100001, the lines sum to 100000" in out.getvalue()


def test_a_failed_proof_is_json_too(spoilt: Books) -> None:
    out = StringIO()
    with pytest.raises(CommandError):
        call_command("verify_ledger", "--tenant", spoilt.tenant_id, "--json", stdout=out)
    report = json.loads(out.getvalue())
    found = {check["name"]: check for check in report["tenants"][0]["checks"]}
    assert (report["ok"], found["balances_match_lines"]["ok"], found["entries_balance"]["ok"]) == (False, False, True)
    assert found["balances_match_lines"]["breaches"] == [
        {
            "table": "loan_balance",
            "row": {"loan_id": spoilt.loan.loan_id, "account_code": "1100", "layer": "SETTLED"},
            "problem": "says 100001, the lines sum to 100000",
        }
    ]


def test_without_a_tenant_all_of_them_are_proven(
    spoilt: Books, other_books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {spoilt.tenant_id, other_books.tenant_id} <= set(queries.tenants())
    monkeypatch.setattr(
        "reconciliation.management.commands.verify_ledger.tenants", lambda: [other_books.tenant_id, spoilt.tenant_id]
    )
    out = StringIO()
    with pytest.raises(CommandError, match=f"2 of {2 * len(checks.CHECKS)} checks failed"):
        call_command("verify_ledger", stdout=out)
    passed = len(checks.CHECKS)
    lines = [line.partition(",")[0] for line in out.getvalue().splitlines() if line.startswith("Tenant")]
    assert lines == [
        f"Tenant {other_books.tenant_id}: {passed} of {passed} checks passed",
        f"Tenant {spoilt.tenant_id}: {passed - 2} of {passed} checks passed",
    ]


def test_the_exit_code_tells_a_script_and_json_is_all_that_is_printed(spoilt: Books, other_books: Books) -> None:
    def run(tenant_id: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "manage.py", "verify_ledger", "--json", "--tenant", tenant_id]
        return subprocess.run(command, cwd=embedded.ROOT, capture_output=True, text=True, timeout=120)

    sound, bad = run(other_books.tenant_id), run(spoilt.tenant_id)
    assert (sound.returncode, json.loads(sound.stdout)["ok"], sound.stderr) == (0, True, "")
    assert (bad.returncode, json.loads(bad.stdout)["ok"]) == (1, False)
    assert "The books are not in order" in bad.stderr


@pytest.mark.parametrize("command", ["verify_ledger", "trial_balance", "rebuild_balances"])
@pytest.mark.parametrize(
    ("tenant", "said"), [("acme", "A UUID such as"), (str(uuid.UUID(int=7)), "There is no tenant")]
)
def test_an_unknown_tenant_is_refused(command: str, tenant: str, said: str) -> None:
    with pytest.raises(CommandError, match=said):
        told(command, "--tenant", tenant)


# --- trial_balance ---------------------------------------------------------------------------------------------------


def test_the_trial_balance_is_what_the_api_answers(acme: Lender) -> None:
    acme.api.disburse(acme.loan, 123_456, "2026-01-05")
    acme.api.pay(acme.loan, 3_456, "2026-02-05")
    query = {"currency": "USD", "layer": "SETTLED", "as_of_date": "2026-01-31"}
    answer = answered("trial_balance", "--tenant", acme.tenant_id, "--as-of", "2026-01-31")
    assert answer == shown(acme.api.get("/v1/trial-balance", query))
    assert answer["total_dr_minor"] == answer["total_cr_minor"] == "123456"


def test_the_trial_balance_is_of_today_in_the_tenants_currency(books: Books) -> None:
    with tenant_transaction(books.tenant_id) as cursor:
        cursor.execute("SELECT (now() AT TIME ZONE 'UTC')::date")
        today = cursor.fetchone()[0]
    answer = answered("trial_balance", "--tenant", books.tenant_id)
    assert (answer["as_of_date"], answer["currency"], answer["layer"]) == (today.isoformat(), "USD", "SETTLED")


def test_a_person_sees_money_with_its_decimals_and_the_totals(books: Books) -> None:
    text = told("trial_balance", "--tenant", books.tenant_id)
    rows = [[cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]] for line in text.splitlines()]
    assert ["1100", "Principal Receivable", "1,000.00", "0.00", "1,000.00"] in rows
    assert ["Total", "", "1,005.70", "1,005.70", ""] in rows


def test_another_layer_and_another_currency_are_their_own_books(books: Books) -> None:
    books.post(books.disbursement(books.loan, 700, "2025-03-01", PENDING))
    books.post(books.adjustment("2025-03-01", Line("1000", "DR", 9, "JPY"), Line("3000", "CR", 9, "JPY")))
    pending = answered("trial_balance", "--tenant", books.tenant_id, "--layer", "PENDING")
    yen = answered("trial_balance", "--tenant", books.tenant_id, "--currency", "JPY")
    assert (pending["total_dr_minor"], yen["total_dr_minor"]) == ("700", "9")


@pytest.mark.parametrize("option", [("--currency", "usd"), ("--currency", "XXQ"), ("--as-of", "2026-02-30")])
def test_a_currency_or_date_that_does_not_exist_is_refused(books: Books, option: tuple[str, str]) -> None:
    with pytest.raises(CommandError):
        told("trial_balance", "--tenant", books.tenant_id, *option)


@pytest.mark.parametrize(
    ("minor", "currency", "text"),
    [
        (0, "USD", "0.00"),
        (5, "USD", "0.05"),
        (-5, "USD", "-0.05"),
        (123_456_789, "USD", "1,234,567.89"),
        (-100, "EUR", "-1.00"),
        (1_234, "JPY", "1,234"),
        (1_234_567, "KWD", "1,234.567"),
        (9_223_372_036_854_775_807, "USD", "92,233,720,368,547,758.07"),
    ],
)
def test_minor_units_are_shown_in_the_currencys_decimals(minor: int, currency: str, text: str) -> None:
    assert in_major_units(minor, currency) == text


# --- rebuild_balances ------------------------------------------------------------------------------------------------


def test_a_dry_run_reports_the_difference_and_changes_nothing(spoilt: Books) -> None:
    before = contents(spoilt.tenant_id)
    report = answered("rebuild_balances", "--tenant", spoilt.tenant_id, "--dry-run")
    assert report == {
        "tenant_id": spoilt.tenant_id,
        "dry_run": True,
        "loans": 3,
        "differences": [
            {
                "loan_id": spoilt.loan.loan_id,
                "account_code": "1100",
                "layer": "SETTLED",
                "recorded_minor": "100001",
                "recomputed_minor": "100000",
            }
        ],
        "sum_differences": [],
    }
    assert contents(spoilt.tenant_id) == before


def test_a_wrong_balance_is_put_right_and_a_second_run_finds_none(spoilt: Books) -> None:
    assert len(answered("rebuild_balances", "--tenant", spoilt.tenant_id)["differences"]) == 1
    assert spoilt.balances(spoilt.loan)["1100", "SETTLED"] == 100_000
    assert answered("rebuild_balances", "--tenant", spoilt.tenant_id)["differences"] == []
    assert answered("verify_ledger", "--tenant", spoilt.tenant_id)["ok"]


def test_a_lost_balance_is_made_again_and_one_without_lines_becomes_zero(books: Books) -> None:
    idle = books.loans[1]
    before = books.balances(books.loan)
    with session("superuser") as connection:
        connection.execute("ALTER TABLE loan_balance DISABLE TRIGGER loan_balance_never_goes")
        connection.execute("DELETE FROM loan_balance WHERE loan_id = %s", (books.loan.loan_id,))
        connection.execute(
            "INSERT INTO loan_balance VALUES (%s, %s, '1100', 'SETTLED', 'USD', 5, true)",
            (books.tenant_id, idle.loan_id),
        )
        connection.execute("ALTER TABLE loan_balance ENABLE ALWAYS TRIGGER loan_balance_never_goes")
    text = told("rebuild_balances", "--tenant", books.tenant_id)
    assert "missing" in text
    assert "4 balances of 3 loans differed and were put right." in text
    assert books.balances(books.loan) == before
    assert books.balances(idle) == {("1100", "SETTLED"): 0}
    assert answered("verify_ledger", "--tenant", books.tenant_id)["ok"]


def test_another_tenants_balances_are_left_alone(spoilt: Books, other_books: Books) -> None:
    before = contents(spoilt.tenant_id)
    told("rebuild_balances", "--tenant", other_books.tenant_id)
    assert contents(spoilt.tenant_id) == before


def test_balances_are_rebuilt_while_others_post() -> None:
    books = open_books(loans=3)
    for loan in books.loans:
        books.post(books.disbursement(loan, 100_000, "2025-01-10"))
    done = threading.Event()
    failures: list[Exception] = []

    def pay() -> None:
        try:
            for _ in range(25):
                for loan in books.loans:
                    books.post(books.payment(loan, 10, "2025-02-10"))
        except Exception as error:
            failures.append(error)
        finally:
            done.set()
            connections.close_all()

    payer = threading.Thread(target=pay)
    payer.start()
    rounds = 0
    while not done.is_set() or rounds == 0:
        assert answered("rebuild_balances", "--tenant", books.tenant_id)["differences"] == []
        rounds += 1
    payer.join()
    assert failures == []
    assert [books.balances(loan)["1100", "SETTLED"] for loan in books.loans] == [99_750] * 3
    assert answered("verify_ledger", "--tenant", books.tenant_id)["ok"]


def test_without_the_owners_connection_the_operator_is_told_what_to_set(
    spoilt: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections["owner"].close()
    for name in ("USER", "PASSWORD"):
        monkeypatch.setitem(connections["owner"].settings_dict, name, connections.settings["default"][name])
    try:
        with pytest.raises(CommandError, match="Set HPTS_OWNER_DATABASE_URL"):
            told("rebuild_balances", "--tenant", spoilt.tenant_id)
    finally:
        connections["owner"].close()
