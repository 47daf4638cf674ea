"""What stands in the log: one JSON object a line, ids and outcomes, and nothing that is secret or says what was paid."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from django.db import DataError, connections

from hpts import celery, logs
from reconciliation.tasks import work_off
from tests.conftest import Json, Lender, disbursement_of, new_key, payment_of, posted, refused

Lines = Callable[[], list[Json]]


@pytest.fixture
def written() -> Iterator[Callable[[], str]]:
    """All that this process logs meanwhile, as it is formatted for the operators."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JSONLines())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream.getvalue
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def lines(written: Callable[[], str]) -> Lines:
    return lambda: [json.loads(line) for line in written().splitlines()]


def of_requests(lines: Lines) -> list[Json]:
    return [line for line in lines() if line["logger"] == "hpts.request"]


# --- A request's line ------------------------------------------------------------------------------------------------


def test_a_request_is_one_line_with_its_ids_and_its_outcome(acme: Lender, lines: Lines) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    traceparent = f"00-{trace}-00f067aa0ba902b7-01"
    answer = acme.api.post("/v1/payments", payment_of(acme.loan), headers={"traceparent": traceparent})
    posted(answer)
    (line,) = of_requests(lines)
    assert line["time"].endswith("Z")
    assert line.pop("duration_ms") > 0
    expected = {
        "level": "info",
        "logger": "hpts.request",
        "message": "request",
        "request_id": answer.headers["X-Request-Id"],
        "correlation_id": "4bf92f35-77b3-4da6-a3ce-929d0e0e4736",
        "tenant_id": acme.tenant_id,
        "client_id": acme.api.client.client_id,
        "operation": "createPayment",
        "method": "POST",
        "status": 201,
    }
    assert line == expected | {"time": line["time"]}


def test_a_refusal_says_its_code_and_a_replay_that_it_is_one(acme: Lender, lines: Lines) -> None:
    key, body = new_key(), payment_of(acme.loan)
    for _ in range(2):
        acme.api.post("/v1/payments", body, key=key)
    refused(acme.api.post("/v1/payments", {}, key=key), 400, "validation_failed")
    refused(acme.api.get("/v1/accounts", scopes=None), 401, "invalid_token")
    first, replay, refusal, stranger = of_requests(lines)
    assert "replayed" not in first
    assert replay["replayed"] is True
    assert refusal["code"] == "validation_failed"
    assert "tenant_id" not in stranger, "nothing of the request before stays with the thread"
    assert stranger["operation"] == "listAccounts"


def test_a_path_that_nobody_knows_is_not_quoted(acme: Lender, lines: Lines) -> None:
    acme.api.get("/v1/people/Jane-Doe-555-1234", {"q": "Jane"})
    (line,) = of_requests(lines)
    assert line["operation"] == "unmatched"
    assert "Jane" not in json.dumps(line)


# --- What never stands in it -----------------------------------------------------------------------------------------


def test_what_a_run_logs_holds_no_secret_and_nothing_that_was_said(
    acme: Lender, written: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets and particulars are planted wherever a client can put them, and where an error could quote them."""
    from hpts import oauth

    client, secret = oauth.register_client(tenant_id=acme.tenant_id, scopes=["hpts:payments:write"])
    planted = {
        "amount": "73915582",
        "reference": "IBAN DE89 3704 0044",
        "key": "key-of-jane-doe-0001",
        "metadata": "Jane Doe",
        "query": "jane-query",
        "secret": secret,
        "token": acme.api.token(),
        "user agent": "Agent of Jane",
    }
    form = {"grant_type": "client_credentials", "client_id": client.client_id, "client_secret": secret}
    answer = acme.api.http.post("/oauth2/token", urlencode(form), "application/x-www-form-urlencoded")
    token = answer.json()["access_token"]
    planted["access token"] = token
    body = payment_of(acme.loan) | {
        "amount_minor": planted["amount"],
        "external_ref": planted["reference"],
        "metadata": {"name": planted["metadata"]},
    }
    agent = {"User-Agent": planted["user agent"]}
    posted(acme.api.post("/v1/payments", body, key=planted["key"], headers=agent))
    refused(acme.api.post("/v1/payments", body), 409, "duplicate_external_ref")
    acme.api.post("/v1/payments", body | {"currency": planted["metadata"]})
    acme.api.get("/v1/accounts", {"q": planted["query"]})
    made = posted(acme.api.post("/v1/webhook-endpoints", {"url": f"https://93.184.215.14/{planted['query']}"}))
    planted["webhook secret"] = made["secret"]
    # A mistake of ours, whose text quotes what it met; and a database's error, which quotes rows.
    with monkeypatch.context() as patched:
        patched.setattr(
            "ledger.idempotency.fingerprint", lambda *_: _raise(ValueError(f"Authorization: Bearer {token}"))
        )
        patched.setattr("ledger.views.fingerprint", lambda *_: _raise(ValueError(f"Authorization: Bearer {token}")))
        refused(acme.api.post("/v1/payments", body), 500, "internal_error")
    with monkeypatch.context() as patched:
        patched.setattr("ledger.views.once", lambda *_: _ask(f"SELECT '{planted['reference']}'::uuid"))
        refused(acme.api.post("/v1/disbursements", disbursement_of(acme.loan)), 500, "internal_error")
    text = written()
    assert text.count('"operation":"createPayment"') >= 4
    assert "DataError 22P02" in text, "the kind of a database's error is told"
    found = [name for name, value in planted.items() if value in text or json.dumps(value)[1:-1] in text]
    assert not found, f"these stand in the log: {found}"


def _raise(error: Exception) -> Any:
    raise error


def _ask(query: str) -> Any:
    with connections["default"].cursor() as cursor:
        cursor.execute(query)


@pytest.mark.parametrize(
    "secret",
    [
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "-----BEGIN PRIVATE KEY-----\nMIIEvQ\n-----END PRIVATE KEY-----",
        "client_secret=abcDEF123456",
        '"password": "correct horse"',
        "Authorization: Basic YWxhZGRpbjpvcGVu",
        "postgresql://hpts_app:open-sesame@db/hpts",
    ],
)
def test_what_looks_like_a_secret_is_struck_out(written: Callable[[], str], secret: str) -> None:
    logging.getLogger("anything").warning("could not use %s here", secret)
    text = written()
    assert logs.STRUCK_OUT in text
    for part in ("c2lnbmF0dXJl", "MfKQ9r8", "MIIEvQ", "abcDEF123456", "correct horse", "YWxhZGRpbj", "open-sesame"):
        assert part not in text
    json.loads(text)


def test_a_databases_error_in_a_message_is_told_by_its_kind(lines: Lines) -> None:
    try:
        _ask("SELECT 'IBAN DE89'::uuid")
    except DataError as error:
        logging.getLogger("anything").warning("%s could not be read: %s", "it", error)
    (line,) = [each for each in lines() if each["logger"] == "anything"]
    assert line["message"] == "it could not be read: DataError 22P02"


def test_an_exception_tells_its_kind_its_cause_and_its_places(lines: Lines) -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise RuntimeError("outer") from error
    except RuntimeError:
        logging.getLogger("anything").exception("it went wrong")
    (line,) = [each for each in lines() if each["logger"] == "anything"]
    assert [each["kind"] for each in line["exception"]] == ["RuntimeError", "KeyError"]
    assert "test_logs.py" in line["exception"][0]["at"][-1]


def test_what_is_no_json_is_still_a_line() -> None:
    """Formatted here and not logged: pytest would carry the text from process to process, which a lone surrogate breaks."""
    record = logging.LogRecord("anything", logging.WARNING, "file", 1, "\ud800 %r\n", (object(),), None)
    record.members = {"it": {1, 2}}
    line = logs.JSONLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["it"] == "{1, 2}"


# --- Elsewhere -------------------------------------------------------------------------------------------------------


def test_a_task_is_a_line_with_the_same_members(acme: Lender, lines: Lines) -> None:
    task = work_off
    celery.begin(task_id="task-1", task=task, args=(acme.tenant_id,))
    logging.getLogger("anything").info("inside")
    celery.end(task_id="task-1", task=task, state="SUCCESS")
    logging.getLogger("anything").info("after")
    inside, ended, after = [each for each in lines() if each["logger"] in ("anything", "hpts.task")]
    assert inside["tenant_id"] == acme.tenant_id
    assert ended["task"] == "reconciliation.work_off"
    assert (ended["status"], ended["tenant_id"]) == ("SUCCESS", acme.tenant_id)
    assert ended["duration_ms"] >= 0
    assert "task" not in after


@pytest.mark.parametrize(
    ("state", "found", "count"), [("SUCCESS", 0, 0), ("SUCCESS", 2, 1), ("SUCCESS", None, 1), ("FAILURE", None, 1)]
)
def test_a_sweep_that_found_nothing_to_do_writes_no_line(
    lines: Lines, state: str, found: int | None, count: int
) -> None:
    celery.begin(task_id="task-1", task=work_off)
    celery.end(task_id="task-1", task=work_off, state=state, retval=found)
    assert len([each for each in lines() if each["logger"] == "hpts.task"]) == count


def test_one_tenants_fault_is_not_anothers(lines: Lines) -> None:
    def do(tenant_id: str) -> int:
        return {"busy": 3, "idle": 0}[tenant_id]

    assert celery.each(["busy", "broken", "idle", "busy"], "the sweep", do) == 2
    assert [each["message"] for each in lines()] == ["the sweep of tenant broken failed"]
