"""What may be done in the admin: by whom, through which door, with which record, and what is refused how."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse

from hpts import oauth
from hpts.audit import NO_TENANT
from hpts.models import ApiClient
from hpts.tenancy import tenant_transaction
from ledger import queries
from tests.admin.conftest import EVERY_TENANT, Rich, browser_of, make_person
from tests.conftest import Lender, in_books_of
from tests.reconciliation.conftest import csv_of

WHY = "Because the bank called"


@pytest.fixture
def rich(make_rich: Callable[[], Rich]) -> Rich:
    """A lender of the test's own: things are done to it here."""
    return make_rich()


@pytest.fixture
def operator(rich: Rich) -> Client:
    return browser_of(make_person("operator", books=rich.lender.tenant_id))


@pytest.fixture
def approver(rich: Rich) -> Client:
    return browser_of(make_person("approver", books=rich.lender.tenant_id))


@pytest.fixture
def platform(rich: Rich) -> Client:
    """Platform staff who looks at the rich lender's books."""
    client = browser_of(make_person("platform admin", books=EVERY_TENANT))
    client.post("/admin/tenants/", {"tenant_id": rich.lender.tenant_id})
    return client


def form(**filled: Any) -> dict[str, Any]:
    return {"key": f"admin-{uuid.uuid4()}", "reason": WHY} | filled


def do(client: Client, name: str, filled: dict[str, Any], **arguments: Any) -> Any:
    return client.post(reverse(f"admin:{name}", kwargs=arguments), filled)


def done(answer: Any) -> Any:
    """The act was done: the browser goes on."""
    assert answer.status_code == 302, re.findall(r'class="error"[^>]*>([^<]+)', answer.content.decode())
    return answer


def refused(answer: Any, *words: str) -> None:
    """The form comes back and says why."""
    assert answer.status_code == 422
    text = answer.content.decode()
    said = " ".join(re.findall(r'class="error"[^>]*>([^<]+)', text))
    assert all(word in said for word in words), said


def rows(tenant_id: str, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    with tenant_transaction(tenant_id) as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchall()


def log(tenant_id: str, *actions: str) -> list[tuple[Any, ...]]:
    """Action, object, outcome, reason and what was said, of people."""
    return rows(
        tenant_id,
        """SELECT action, object_id, outcome, reason, split_part(detail, ':', 1) FROM audit_record
           WHERE actor LIKE 'staff:%%' AND (%s AND action <> 'signIn' OR action = ANY (%s)) ORDER BY id""",
        not actions,
        list(actions),
    )


# --- Who may ---------------------------------------------------------------------------------------------------------

ACTS = {
    "operator": (
        *("redeliver", "recover", "disable_endpoint", "enable_endpoint", "start_accrual_run", "resolve_break"),
        *("start_reconciliation_run", "import_statement", "create_loan", "propose_reversal", "propose_adjustment"),
    ),
    "platform admin": ("create_tenant", "create_program", "create_loan", "create_client", "disable_client"),
}


def arguments_of(name: str, rich: Rich) -> dict[str, Any]:
    return rich.arguments_of(name, client_id="nobody", proposal_id=str(uuid.uuid4()))


def test_a_viewer_is_refused_each_act_and_that_is_recorded(rich: Rich) -> None:
    viewer = browser_of(make_person("viewer", books=rich.lender.tenant_id))
    before = rich.lender.books()
    attempts = []
    for name in sorted({name for names in ACTS.values() for name in names}):
        arguments = arguments_of(name, rich)
        for method in (viewer.get, viewer.post):
            answer = method(reverse(f"admin:{name}", kwargs=arguments), form())
            assert answer.status_code == 403, name
            attempts.append((name, next(iter(arguments.values()), None), "refused", None, "not_allowed"))
    assert rich.lender.books() == before
    assert log(rich.lender.tenant_id) == attempts


def test_each_group_is_offered_what_it_may_do_and_nothing_else(rich: Rich) -> None:
    offered = {
        "viewer": [],
        "operator": ["Propose a reversal"],
        "approver": [],
    }
    for group, labels in offered.items():
        text = browser_of(make_person(group, books=rich.lender.tenant_id)).get(rich.urls()["entry"]).content.decode()
        (offers,) = re.findall(r'<div class="offers">(.*?)</div>', text, re.DOTALL)
        assert [label for label in ("Propose a reversal",) if label in offers] == labels, group


def test_an_act_needs_its_forgery_token(rich: Rich) -> None:
    person = make_person("operator", books=rich.lender.tenant_id)
    client = Client(enforce_csrf_checks=True)
    client.force_login(person, "hpts.access.StaffBackend")
    answer = do(client, "redeliver", form(), **rich.arguments["delivery"])
    assert answer.status_code == 403
    assert log(rich.lender.tenant_id, "redeliverWebhook") == []


def test_an_act_needs_a_reason(rich: Rich, operator: Client) -> None:
    for reason in ("", "   "):
        refused(do(operator, "redeliver", form(reason=reason), **rich.arguments["delivery"]))
    assert log(rich.lender.tenant_id, "redeliverWebhook") == []


ELSEWHERE: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("redeliver", "delivery", {}),
    ("recover", "endpoint", {"since": "2026-11-20T00:00"}),
    ("disable_endpoint", "endpoint", {}),
    ("enable_endpoint", "endpoint", {}),
    ("start_accrual_run", "program", {"accrual_date": "2026-02-03"}),
    ("resolve_break", "break", {"action": "explain"}),
    ("propose_reversal", "entry", {"reason_code": "other", "effective_at": "2026-02-03", "propose": "1"}),
)


def test_staff_of_one_tenant_does_nothing_to_another(rich: Rich, zenith: Lender) -> None:
    """Another tenant's id is answered as one that nobody has, and the attempt is in their own tenant's log."""
    client = browser_of(make_person("operator", books=zenith.tenant_id))
    before = rich.lender.books(), log(rich.lender.tenant_id)
    attempts = []
    for name, page, filled in ELSEWHERE:
        refused(do(client, name, form(**filled), **rich.arguments[page]), "There is no")
        attempts.append((next(iter(rich.arguments[page].values())), "refused", WHY))
    assert (rich.lender.books(), log(rich.lender.tenant_id)) == before
    assert [row[1:4] for row in log(zenith.tenant_id)] == attempts
    assert {row[4] for row in log(zenith.tenant_id)} == {"not_found", "entry_not_found"}


# --- Webhooks --------------------------------------------------------------------------------------------------------


def test_a_delivery_is_delivered_again_once_for_a_form(rich: Rich, operator: Client) -> None:
    tenant_id, about = rich.lender.tenant_id, rich.arguments["delivery"]
    exhaust = "UPDATE webhook_delivery SET state = 'exhausted', finished_at = now() WHERE id = %s RETURNING 1"
    rows(tenant_id, exhaust, about["delivery_id"])
    filled = form()
    for _ in range(2):
        assert done(do(operator, "redeliver", filled, **about)).headers["Location"] == rich.urls()["delivery"]
    assert rows(tenant_id, "SELECT state, attempt FROM webhook_delivery WHERE id = %s", about["delivery_id"]) == [
        ("pending", 0)
    ]
    assert log(tenant_id, "redeliverWebhook") == [("redeliverWebhook", about["delivery_id"], "done", WHY, None)]


def test_an_endpoint_is_disabled_enabled_and_recovered(rich: Rich, operator: Client) -> None:
    tenant_id, about = rich.lender.tenant_id, rich.arguments["endpoint"]
    state = "SELECT state FROM webhook_endpoint"
    waiting = "SELECT count(*) FROM webhook_delivery WHERE state = 'pending'"
    done(do(operator, "disable_endpoint", form(), **about))
    assert rows(tenant_id, state) == [("disabled",)]
    assert rows(tenant_id, waiting) == [(0,)]
    done(do(operator, "enable_endpoint", form(), **about))
    assert rows(tenant_id, state) == [("enabled",)]
    done(do(operator, "recover", form(since=f"{rich.lender.today.isoformat()}T00:00"), **about))
    ((due,),) = rows(tenant_id, waiting)
    assert due > 0
    assert [row[0] for row in log(tenant_id)] == [
        "deleteWebhookEndpoint",
        "enableWebhookEndpoint",
        "recoverWebhookEndpoint",
    ]


def test_what_the_api_would_refuse_is_said_at_its_field(rich: Rich, operator: Client) -> None:
    answer = do(operator, "recover", form(since="2020-01-01T00:00"), **rich.arguments["endpoint"])
    refused(answer, "Events are recovered for 30 days.")
    assert 'id="id_since_error"' in answer.content.decode()
    (attempt,) = log(rich.lender.tenant_id, "recoverWebhookEndpoint")
    assert attempt[2:] == ("refused", WHY, "validation_failed")


# --- Nights and banks ------------------------------------------------------------------------------------------------


def test_runs_are_started(rich: Rich, operator: Client) -> None:
    tenant_id, lender = rich.lender.tenant_id, rich.lender
    answer = done(do(operator, "start_accrual_run", form(accrual_date=lender.today), **rich.arguments["program"]))
    assert answer.headers["Location"] == rich.urls()["accrual_run"]
    refused(do(operator, "start_accrual_run", form(accrual_date="2999-01-01"), **rich.arguments["program"]), "future")
    refused(do(operator, "start_accrual_run", form(accrual_date="soon"), **rich.arguments["program"]))
    done(do(operator, "start_reconciliation_run", form(as_of_date="")))
    refused(do(operator, "start_reconciliation_run", form(as_of_date="2999-01-01")), "future")
    queued = rows(tenant_id, "SELECT actor LIKE 'staff:%%' FROM reconciliation_run WHERE state = 'queued'")
    assert queued == [(True,)]
    outcomes = [(row[0], row[2]) for row in log(tenant_id, "startAccrualRun", "createReconciliationRun")]
    assert outcomes == [
        ("startAccrualRun", "done"),
        ("startAccrualRun", "refused"),
        ("createReconciliationRun", "done"),
        ("createReconciliationRun", "refused"),
    ]


def test_a_statement_is_uploaded_whole_or_not_at_all(rich: Rich, operator: Client) -> None:
    tenant_id, count = rich.lender.tenant_id, "SELECT count(*) FROM bank_statement"
    ((before,),) = rows(tenant_id, count)
    content = csv_of("2026-02-01", "2026-02-28", [("2026-02-03", "-25.00", "FEE-2", "Fee")], "0.00")

    def upload(text: bytes) -> Any:
        file = SimpleUploadedFile("bank.csv", text)
        return do(operator, "import_statement", form(bank_account_ref="second", format="csv", file=file))

    refused(upload(content.replace(b"-25.00", b"nothing")), "file.")
    assert rows(tenant_id, count) == [(before,)]
    done(upload(content))
    done(upload(content))
    assert rows(tenant_id, count) == [(before + 1,)]
    assert [row[2] for row in log(tenant_id, "importStatement")] == ["refused", "done", "done"]


def test_a_break_is_explained_by_one_person(rich: Rich, operator: Client) -> None:
    about = rich.arguments["break"]
    done(do(operator, "resolve_break", form(action="explain"), **about))
    assert rows(rich.lender.tenant_id, "SELECT action, reason FROM reconciliation_resolution") == [("explain", WHY)]
    refused(do(operator, "resolve_break", form(action="explain"), **about), "has been resolved")


def test_a_break_is_adjusted_by_two(rich: Rich, operator: Client, approver: Client) -> None:
    tenant_id, about = rich.lender.tenant_id, rich.arguments["break"]
    entries = "SELECT count(*) FROM journal_entry"
    before = rows(tenant_id, entries)
    answer = done(do(operator, "resolve_break", form(action="adjust", account_code="5000"), **about))
    assert rows(tenant_id, entries) == before
    assert rows(tenant_id, "SELECT count(*) FROM reconciliation_resolution") == [(0,)]
    url = answer.headers["Location"]
    assert "5000" in approver.get(url).content.decode()
    done(approver.post(url, form(approve="1", seen=seen(approver, url))))
    assert rows(tenant_id, entries) == [(before[0][0] + 1,)]
    assert rows(tenant_id, "SELECT action, actor LIKE 'staff:%%' FROM reconciliation_resolution") == [("adjust", True)]


# --- Tenants, programs, loans, clients -------------------------------------------------------------------------------


def test_a_program_and_a_loan_are_made(rich: Rich, platform: Client, operator: Client) -> None:
    tenant_id = rich.lender.tenant_id
    program = {
        "name": "Yen",
        "currency": "JPY",
        "annual_rate_bps": "1199",
        "day_count_convention": "ACT_365",
        "waterfall": "interest,fees,principal",
        "accrual_mode": "engine",
    }
    refused(do(platform, "create_program", form(**program | {"name": "x" * 201})))
    url = done(do(platform, "create_program", form(**program))).headers["Location"]
    program_id = url.rstrip("/").rpartition("/")[2]
    loan = {"program_id": program_id, "borrower_id": str(uuid.uuid4()), "opened_on": rich.lender.today.isoformat()}
    refused(do(operator, "create_loan", form(**loan, principal_limit="100.5")), "more decimals")
    filled = form(**loan, principal_limit="1005", annual_rate_bps="")
    first, second = (done(do(operator, "create_loan", filled)).headers["Location"] for _ in range(2))
    assert first == second
    made = rows(tenant_id, "SELECT currency, principal_limit_minor FROM loan WHERE program_id = %s", program_id)
    assert made == [("JPY", 1005)]
    done_by_people = [row[:1] + row[2:4] for row in log(tenant_id, "createProgram", "createLoan") if row[2] == "done"]
    assert done_by_people == [("createProgram", "done", WHY), ("createLoan", "done", WHY)]


def test_a_tenant_is_made_by_platform_staff_once(platform: Client) -> None:
    filled = form(name="New Lender", currency="EUR", timezone="Europe/Berlin")
    tenant_id = filled["key"].removeprefix("admin-")
    for _ in range(2):
        done(do(platform, "create_tenant", filled))
    assert queries.tenant_is_active(tenant_id)
    assert [row[:4] for row in log(tenant_id)] == [("createTenant", tenant_id, "done", WHY)]


def test_a_clients_secret_is_shown_once(rich: Rich, platform: Client) -> None:
    tenant_id = rich.lender.tenant_id
    filled = form(name="Collections", scopes=["hpts:ledger:read"])
    answer = do(platform, "create_client", filled)
    assert answer.status_code == 200
    text = answer.content.decode()
    (client_id,) = re.findall(r'id="client-id">([^<]+)', text)
    (secret,) = re.findall(r'id="client-secret">([^<]+)', text)
    made = ApiClient.objects.get(client_id=client_id)
    assert (str(made.tenant_id), made.allowed_scopes) == (tenant_id, "hpts:ledger:read")
    assert secret not in made.client_secret
    assert oauth.GeneratedSecretHasher().verify(secret, made.client_secret)
    refused(do(platform, "create_client", filled), "already")
    assert secret not in platform.get("/admin/clients/").content.decode()
    assert ApiClient.objects.filter(tenant_id=tenant_id, name="Collections").count() == 1
    for _ in range(2):
        done(do(platform, "disable_client", form(), client_id=client_id))
    assert ApiClient.objects.get(client_id=client_id).disabled_at is not None
    said = [(row[0], row[2]) for row in log(tenant_id, "createClient", "disableClient")]
    assert said == [("createClient", "done"), ("createClient", "refused"), ("disableClient", "done")]


def test_a_client_of_another_tenant_is_not_disabled(zenith: Lender, platform: Client) -> None:
    client_id = zenith.api.client.client_id
    refused(do(platform, "disable_client", form(), client_id=client_id), "There is no client")
    assert ApiClient.objects.get(client_id=client_id).disabled_at is None


# --- Maker and checker -----------------------------------------------------------------------------------------------


def seen(client: Client, url: str) -> str:
    (digest,) = re.findall(r'name="seen" value="([0-9a-f]{64})"', client.get(url).content.decode())
    return str(digest)


def adjustment(**changes: Any) -> dict[str, Any]:
    lines = {
        "lines": "2",
        "line-0-account_code": "1000",
        "line-0-debit": "12.50",
        "line-1-account_code": "4000",
        "line-1-credit": "12.50",
    }
    money = {"effective_at": "2026-02-05", "description": "Fee", "currency": "USD", "layer": "SETTLED"}
    return form(**money, **lines) | changes


def proposed(client: Client) -> str:
    """Proposes an adjustment; gives its page."""
    return str(done(do(client, "propose_adjustment", adjustment(propose="1"))).headers["Location"])


def test_what_would_be_posted_is_shown_before_it_is_proposed(rich: Rich, operator: Client) -> None:
    before = rich.lender.books()
    answer = do(operator, "propose_adjustment", adjustment(preview="1"))
    text = answer.content.decode()
    assert answer.status_code == 200
    assert text.count("12.50") >= 6
    assert "Propose it" in text
    assert rich.lender.books() == before
    assert rows(rich.lender.tenant_id, "SELECT count(*) FROM proposal") == [(0,)]


UNPOSTABLE: tuple[tuple[dict[str, str], str], ...] = (
    ({"line-1-credit": "12.51"}, "differ"),
    ({"line-0-credit": "1"}, "a debit or a credit"),
    ({"line-0-debit": "12.505"}, "more decimals"),
    ({"line-0-debit": "a lot"}, "1234.50"),
    ({"line-0-account_code": ""}, "Choose the account"),
    ({"line-0-account_code": "1100"}, "loan"),
    ({"effective_at": "2026-01-05"}, "closed"),
    ({"effective_at": "2999-01-05"}, "future"),
)


def test_what_could_not_be_posted_is_not_proposed(rich: Rich, operator: Client) -> None:
    for changes, words in UNPOSTABLE:
        for step in ("preview", "propose"):
            refused(do(operator, "propose_adjustment", adjustment(**{step: "1"}, **changes)), words)
    assert rows(rich.lender.tenant_id, "SELECT count(*) FROM proposal") == [(0,)]


def test_a_maker_does_not_approve_in_the_form_whatever_their_groups(rich: Rich) -> None:
    person = make_person("operator", "approver", books=rich.lender.tenant_id)
    client = browser_of(person)
    url = proposed(client)
    text = client.get(url).content.decode()
    assert "Approve and post" not in text and "Withdraw it" in text
    other = browser_of(make_person("approver", books=rich.lender.tenant_id))
    refused(client.post(url, form(approve="1", seen=seen(other, url))), "Another person")
    refused(client.post(url, form(reject="1")), "Another person")
    assert rows(rich.lender.tenant_id, "SELECT count(*) FROM proposal_decision") == [(0,)]
    assert [row[2:] for row in log(rich.lender.tenant_id, "approveProposal")] == [("refused", WHY, "own_proposal")]


def test_an_operator_does_not_decide_and_an_approver_does_not_propose(
    rich: Rich, operator: Client, approver: Client
) -> None:
    url = proposed(operator)
    other = browser_of(make_person("operator", books=rich.lender.tenant_id))
    assert other.post(url, form(approve="1", seen=seen(approver, url))).status_code == 403
    assert approver.get(reverse("admin:propose_adjustment")).status_code == 403
    assert approver.post(url, form(withdraw="1")).status_code == 403
    assert rows(rich.lender.tenant_id, "SELECT count(*) FROM proposal_decision") == [(0,)]


def test_an_approver_posts_what_an_operator_proposed_once(rich: Rich, operator: Client, approver: Client) -> None:
    tenant_id = rich.lender.tenant_id
    url = proposed(operator)
    filled = form(approve="1", seen=seen(approver, url))
    first, second = (done(approver.post(url, filled)).headers["Location"] for _ in range(2))
    assert first == second
    assert "staff:" in approver.get(first).content.decode()
    entries = rows(tenant_id, 'SELECT count(*) FROM journal_entry WHERE document LIKE \'{"actor":"staff:%%\'')
    assert entries == [(1,)]
    text = approver.get(url).content.decode()
    assert "Approved by" in text and "Approve and post" not in text
    assert [row[0] for row in log(tenant_id, "createProposal", "approveProposal")] == [
        "createProposal",
        "approveProposal",
    ]


def test_what_the_books_refuse_by_now_is_said_and_the_proposal_stays_open(
    rich: Rich, operator: Client, approver: Client
) -> None:
    url = proposed(operator)
    digest = seen(approver, url)
    rich.lender.api.close_period("2026-02-28")
    refused(approver.post(url, form(approve="1", seen=digest)), "closed through 2026-02-28")
    text = approver.get(url).content.decode()
    assert "The books would refuse it now" in text and "Approve and post" not in text
    done(approver.post(url, form(reject="1")))
    assert rows(rich.lender.tenant_id, "SELECT decision FROM proposal_decision") == [("rejected",)]


def test_a_proposal_of_another_tenant_is_not_found(rich: Rich, zenith: Lender, operator: Client) -> None:
    url = proposed(operator)
    stranger = browser_of(make_person("approver", books=zenith.tenant_id))
    assert stranger.get(url).status_code == 404
    assert stranger.post(url, form(approve="1", seen="x")).status_code == 404


def test_more_lines_are_asked_for_without_losing_any(operator: Client) -> None:
    text = do(operator, "propose_adjustment", adjustment(more="1")).content.decode()
    assert 'name="lines" value="6"' in text
    assert text.count('value="12.50"') == 2


def test_a_reversal_is_proposed_from_its_entry(rich: Rich, operator: Client, approver: Client) -> None:
    entry_id = rich.lender.api.disburse(rich.lender.loan, 7_700, "2026-02-05")["journal_entry_id"]
    filled = form(reason_code="duplicate", effective_at="2026-02-06")
    shown = do(operator, "propose_reversal", filled | {"preview": "1"}, entry_id=entry_id)
    assert "77.00" in shown.content.decode()
    url = done(do(operator, "propose_reversal", filled | {"propose": "1"}, entry_id=entry_id)).headers["Location"]
    done(approver.post(url, form(approve="1", seen=seen(approver, url))))
    assert rows(rich.lender.tenant_id, "SELECT count(*) FROM journal_entry WHERE reverses_entry_id = %s", entry_id) == [
        (1,)
    ]


# --- Failures of ours ------------------------------------------------------------------------------------------------


def test_an_act_that_fails_is_recorded_as_failed(rich: Rich, operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("webhooks.operations.redeliver", broken)
    operator.raise_request_exception = False
    assert do(operator, "redeliver", form(), **rich.arguments["delivery"]).status_code == 500
    assert [row[2:] for row in log(rich.lender.tenant_id, "redeliverWebhook")] == [("failed", WHY, "RuntimeError")]


def test_nothing_of_a_tenant_is_in_the_log_of_none(rich: Rich, operator: Client) -> None:
    done(do(operator, "redeliver", form(), **rich.arguments["delivery"]))
    with in_books_of(NO_TENANT) as connection:
        found = connection.execute(
            "SELECT count(*) FROM audit_record WHERE object_id = %s", (rich.arguments["delivery"]["delivery_id"],)
        ).fetchone()
    assert found == (0,)
