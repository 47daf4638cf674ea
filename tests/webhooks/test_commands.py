"""`manage.py webhooks`: what an operator sees, and sending again."""

from __future__ import annotations

import io
import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from tests.conftest import Lender
from tests.webhooks.conftest import announce, claim, pay, register, settle
from webhooks import queries
from webhooks.delivery import Outcome


@pytest.fixture(autouse=True)
def nobody_else_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the suite's tenants have no worker."""
    monkeypatch.setattr(queries, "check_relay", lambda: None)


def run(*arguments: str) -> str:
    output = io.StringIO()
    call_command("webhooks", *arguments, stdout=output)
    return output.getvalue()


def test_status_tells_what_waits_and_what_has_failed(lent: Lender) -> None:
    register(lent.api, "http://127.0.0.1:9/")
    pay(lent, 8)
    announce(lent)
    first, second, *rest = claim(lent)
    settle(lent, [first], Outcome(200))
    settle(lent, [second], Outcome(500))
    pay(lent, 2)
    ((found),) = json.loads(run("status", "--tenant", lent.tenant_id, "--json"))
    expected = {
        "tenant_id": lent.tenant_id,
        "events": 9,
        "waiting_for_relay": 2,
        "endpoints": {"enabled": 1, "disabled": 0, "failing": 1},
        "due": 8 - 2 - len(rest),
        "retrying": 1,
        "in_flight": len(rest),
        "exhausted": 0,
        "dead": 0,
        "cancelled": 0,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["oldest_due_seconds"] > 0
    assert found["oldest_waiting_seconds"] > 0
    told = run("status", "--tenant", lent.tenant_id)
    assert f"Tenant {lent.tenant_id}\n  feed: 9 events, 2 waiting (the oldest for" in told
    assert "endpoints: 1 enabled, 0 disabled, 1 failing" in told


def test_status_exits_with_1_when_the_relay_is_stuck(lent: Lender, monkeypatch: pytest.MonkeyPatch) -> None:
    def behind() -> None:
        raise queries.RelayBehind("An entry has waited.")

    monkeypatch.setattr(queries, "check_relay", behind)
    with pytest.raises(CommandError, match="waited"):
        run("status", "--tenant", lent.tenant_id)


def test_replay_makes_due_what_was_missed(lent: Lender) -> None:
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    pay(lent, 2)
    announce(lent)
    endpoint = register(lent.api, "http://127.0.0.1:9/")
    about = ("--tenant", lent.tenant_id, "--endpoint", endpoint.endpoint_id)
    assert run("replay", *about, "--since", since) == "2 deliveries are due now.\n"
    assert endpoint.states() == {"pending": 2}


@pytest.mark.parametrize(
    "wrong",
    [
        {"--endpoint": "x"},
        {"--endpoint": str(uuid.uuid4())},
        {"--since": "yesterday"},
        {"--since": "2020-01-01T00:00:00Z"},
    ],
)
def test_replay_says_what_is_wrong(lent: Lender, wrong: dict[str, Any]) -> None:
    endpoint = register(lent.api, "http://127.0.0.1:9/")
    asked = {"--tenant": lent.tenant_id, "--endpoint": endpoint.endpoint_id, "--since": "2026-01-01T00:00:00Z"} | wrong
    with pytest.raises(CommandError):
        run("replay", *(word for pair in asked.items() for word in pair))
