"""From a posting to a receiver: what is sent, when it is tried again, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.conftest import Lender
from tests.webhooks.conftest import Receiver, announce, eventually, pay, register


@pytest.fixture
def lent(acme: Lender) -> Lender:
    acme.api.disburse(acme.loan, 100_000, "2026-01-05")
    announce(acme)
    return acme


def test_a_payment_arrives_signed_and_is_verified_by_the_library_of_the_specification(
    lent: Lender, receiver: Receiver, deliver: Callable[..., Any]
) -> None:
    endpoint = register(lent.api, receiver.url)
    (entry_id,) = pay(lent)
    with deliver(lent):
        eventually(lambda: receiver.requests)
    (request,) = receiver.requests
    entry = lent.api.entry(entry_id)
    assert Webhook(endpoint.secret).verify(request.body, request.headers) == {
        "journal_entry_id": entry_id,
        "tenant_id": lent.tenant_id,
        "event_type": "payment_received",
        "occurred_at": entry["posted_at"],
        "correlation_id": entry["correlation_id"],
    }
    assert request.headers["content-type"] == "application/json"
    (delivered,) = endpoint.deliveries()
    assert request.headers["webhook-id"] == delivered["delivery_id"]
    assert (delivered["state"], delivered["attempt"], delivered["last_status"]) == ("succeeded", 1, 204)
