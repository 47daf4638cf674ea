"""A newly opened break is told: by a mail for those opened together, and each by a notice (tests/webhooks/test_notices.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.core import mail
from django.core.mail.backends.base import BaseEmailBackend

from hpts.tenancy import tenant_transaction
from ledger.money import in_major_units
from reconciliation import alerts, tasks
from reconciliation.accounts import bank_accounts
from reconciliation.reconciling import reconcile
from tests.ledger.conftest import race
from tests.reconciliation.conftest import Bank

ALERTS = "SELECT bank_account_ref, break_count, mailed_at IS NOT NULL FROM reconciliation_alert ORDER BY created_at"


@pytest.fixture(autouse=True)
def told(settings: Any) -> list[Any]:
    """Mails stay here; two people want them."""
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    settings.ALERT_EMAILS = ["ops@example.com", "books@example.com"]
    settings.DEFAULT_FROM_EMAIL = "HPTS <ledger@bank.example>"
    mail.outbox = []
    return mail.outbox


def with_breaks(bank: Bank, *references: str) -> None:
    """A statement with a line for each reference that the books know nothing of."""
    bank.imports("2026-02-01", "2026-02-28", *(("2026-02-03", "12.50", reference) for reference in references))


def test_breaks_that_were_opened_together_are_one_mail(bank: Bank, told: list[Any]) -> None:
    with_breaks(bank, "A-1", "A-2")
    assert told == [], "an import talks to no mail server"
    assert alerts.mail_alerts(bank.lender.tenant_id) == 1
    (sent,) = told
    ((alert_id,),) = bank.rows("SELECT id::text FROM reconciliation_alert")
    assert sent.to == ["ops@example.com", "books@example.com"]
    assert sent.subject == "2 reconciliation breaks on operating of Acme"
    assert sent.extra_headers["Message-ID"] == f"<{alert_id}@bank.example>"
    lines = sent.body.splitlines()
    assert sum("missing_in_ledger" in line and "USD 12.50" in line for line in lines) == 2
    assert any("A-1" in line for line in lines)
    assert bank.lender.tenant_id in sent.body
    assert bank.rows(ALERTS) == [("operating", 2, True)]


def test_a_break_is_told_once(bank: Bank, told: list[Any]) -> None:
    with_breaks(bank, "A-1")
    for _ in range(2):
        with tenant_transaction(bank.lender.tenant_id) as cursor:
            (account,) = bank_accounts(cursor)
            assert reconcile(cursor, account, "test").opened == 0
        alerts.mail_alerts(bank.lender.tenant_id)
    assert len(told) == 1
    assert bank.rows("SELECT count(*), count(DISTINCT id) FROM notice") == [(1, 1)]


def test_what_is_opened_later_is_told_later(bank: Bank, told: list[Any]) -> None:
    with_breaks(bank, "A-1")
    alerts.mail_alerts(bank.lender.tenant_id)
    bank.imports("2026-03-01", "2026-03-31", ("2026-03-03", "7.00", "B-1"), opening="12.50")
    alerts.mail_alerts(bank.lender.tenant_id)
    assert [sent.subject for sent in told] == ["1 reconciliation break on operating of Acme"] * 2
    assert "B-1" in told[1].body
    assert "A-1" not in told[1].body


def test_a_notice_tells_of_each_break_and_is_written_with_it(bank: Bank) -> None:
    bank.has(300, "2026-02-05", "L-1")
    with_breaks(bank, "A-1")
    found = {each["break_id"]: each for each in bank.breaks(state="open")}
    notices = bank.rows("SELECT id::text, event_type, body FROM notice")
    assert {notice[0] for notice in notices} == found.keys()
    assert len(found) == 2
    for break_id, event_type, body in notices:
        said, shown = json.loads(body), found[break_id]
        assert said.pop("tenant_id") == bank.lender.tenant_id
        assert said.pop("event_type") == event_type == "reconciliationBreakOpened"
        assert said.pop("occurred_at").endswith("Z")
        assert said.pop("currency") == "USD"
        assert abs(int(said.pop("difference_minor"))) == int(said["amount_minor"])
        assert said == {name: value for name, value in shown.items() if name not in ("state", "age_days")}


def test_an_import_that_is_taken_back_tells_nothing(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("after the breaks were opened")

    monkeypatch.setattr("reconciliation.reconciling._keep_opening", fail)
    assert bank.send(b"date,amount,currency,reference,description\n").status_code == 400
    with pytest.raises(AssertionError):
        with_breaks(bank, "A-1")
    assert bank.rows("SELECT (SELECT count(*) FROM notice) + (SELECT count(*) FROM reconciliation_alert)") == [(0,)]


class Refusing(BaseEmailBackend):
    def send_messages(self, email_messages: Any) -> int:
        raise ConnectionRefusedError("no mail today")


def _later(bank: Bank, minutes: int) -> None:
    """Time goes by for the alerts."""
    bank.rows(f"UPDATE reconciliation_alert SET due_at = due_at - interval '{minutes} minutes' RETURNING 1")


def test_a_mail_server_that_refuses_is_tried_again_later(bank: Bank, told: list[Any], settings: Any) -> None:
    with_breaks(bank, "A-1")
    settings.EMAIL_BACKEND = "tests.reconciliation.test_alerts.Refusing"
    assert alerts.mail_alerts(bank.lender.tenant_id) == 0
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    assert alerts.mail_alerts(bank.lender.tenant_id) == 0, "not at once"
    _later(bank, 1)
    assert alerts.mail_alerts(bank.lender.tenant_id) == 1
    assert len(told) == 1


def test_who_dies_before_it_is_marked_is_followed_by_the_same_mail(
    bank: Bank, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_breaks(bank, "A-1")

    class Killed(BaseException):
        pass

    message = alerts._message

    def dying(*given: Any) -> Any:
        built = message(*given)
        send = built.send

        def and_die() -> None:
            send()
            raise Killed

        monkeypatch.setattr(built, "send", and_die)
        return built

    monkeypatch.setattr(alerts, "_message", dying)
    with pytest.raises(Killed):
        alerts.mail_alerts(bank.lender.tenant_id)
    monkeypatch.setattr(alerts, "_message", message)
    assert bank.rows(ALERTS) == [("operating", 1, False)]
    _later(bank, 1)
    assert alerts.mail_alerts(bank.lender.tenant_id) == 1
    assert [sent.extra_headers for sent in told] == [told[0].extra_headers] * 2
    assert alerts.mail_alerts(bank.lender.tenant_id) == 0


def test_two_workers_send_one_mail(bank: Bank, told: list[Any]) -> None:
    with_breaks(bank, "A-1")
    outcomes = race(*[lambda: alerts.mail_alerts(bank.lender.tenant_id)] * 4)
    assert sorted(outcomes, key=str) == [0, 0, 0, 1]
    assert len(told) == 1


def test_without_addresses_nothing_is_mailed_and_nothing_is_lost(bank: Bank, told: list[Any], settings: Any) -> None:
    with_breaks(bank, "A-1")
    settings.ALERT_EMAILS = []
    tasks.mail_alerts()
    assert alerts.mail_alerts(bank.lender.tenant_id) == 0
    settings.ALERT_EMAILS = ["late@example.com"]
    assert alerts.mail_alerts(bank.lender.tenant_id) == 1
    assert told[0].to == ["late@example.com"]


def test_the_schedule_visits_every_tenant(bank: Bank, told: list[Any]) -> None:
    with_breaks(bank, "A-1")
    tasks.mail_alerts()
    assert sum(bank.lender.tenant_id in sent.body for sent in told) == 1


def test_many_breaks_are_counted_and_not_all_listed(
    bank: Bank, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "NAMED", 2)
    with_breaks(bank, *(f"A-{number}" for number in range(5)))
    alerts.mail_alerts(bank.lender.tenant_id)
    assert told[0].subject.startswith("5 reconciliation breaks")
    assert "... and 3 more." in told[0].body
    assert told[0].body.count("missing_in_ledger") == 2


@pytest.mark.parametrize("text", ["a\nBcc: x", "a\r\nb", "a\x00b", "a\u2028b"])
def test_a_reference_begins_no_line_of_its_own(text: str) -> None:
    assert alerts._one_line(text).splitlines() == [alerts._one_line(text)]


def test_money_is_shown_in_its_major_unit() -> None:
    assert in_major_units(1_250, "USD") == "12.50"


@pytest.fixture
def alerted(bank: Bank) -> Callable[[str], None]:
    """Run a statement of the application in books with an alert."""
    with_breaks(bank, "A-1")

    def run(statement: str) -> None:
        bank.rows(statement)

    return run


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM reconciliation_alert RETURNING 1",
        "UPDATE reconciliation_alert SET break_count = 7 RETURNING 1",
        "UPDATE reconciliation_alert SET id = gen_random_uuid() RETURNING 1",
        "UPDATE reconciliation_break SET alert_id = NULL RETURNING 1",
        "UPDATE notice SET body = '{}' RETURNING 1",
        "DELETE FROM notice RETURNING 1",
    ],
)
def test_what_was_told_of_what_does_not_change(alerted: Callable[[str], None], statement: str) -> None:
    with pytest.raises(Exception, match="permission denied"):
        alerted(statement)
