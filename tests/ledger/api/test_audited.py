"""What the API does to a tenant without an entry that names its actor is in the audit log, and what posts is not."""

from __future__ import annotations

import uuid
from typing import Any

from hpts.tenancy import tenant_transaction
from tests.conftest import Lender, new_key, posted, shown

# The lender's client was made by a command.
NOT_ITS_MAKING = "action <> 'createClient'"


def log(lender: Lender) -> list[tuple[Any, ...]]:
    with tenant_transaction(lender.tenant_id) as cursor:
        cursor.execute(f"SELECT action, object_type, object_id FROM audit_record WHERE {NOT_ITS_MAKING} ORDER BY id")
        return cursor.fetchall()


def test_what_changes_no_book_is_recorded_with_its_object(acme: Lender) -> None:
    api = acme.api
    program = {"name": "P", "currency": "USD", "annual_rate_bps": 100, "day_count_convention": "ACT_365"}
    program_id = posted(api.post("/v1/programs", program))["program_id"]
    terms = {"effective_at": "2026-02-01", "annual_rate_bps": 200}
    posted(api.post(f"/v1/programs/{program_id}/terms", terms))
    loan = {"borrower_id": str(uuid.uuid4()), "program_id": program_id, "opened_on": "2026-01-01"}
    loan_id = posted(api.post("/v1/loans", loan))["loan_id"]
    account = {"account_code": "1999", "account_name": "Till", "account_type": "asset", "normal_side": "DR"}
    posted(api.post("/v1/accounts", account))
    posted(api.post("/v1/accounts/1999/closure", {"reason": "Not used"}))
    api.close_period("2026-01-31")
    assert log(acme) == [
        ("createProgram", "program", program_id),
        ("changeProgramTerms", "program", program_id),
        ("createLoan", "loan", loan_id),
        ("createAccount", "account", "1999"),
        ("closeAccount", "account", "1999"),
        ("closePeriod", "period", "2026-01-31"),
    ]


def test_a_record_names_client_address_agent_and_correlation(acme: Lender) -> None:
    traced = {"traceparent": f"00-{'a' * 31}1-{'b' * 16}-01", "User-Agent": "bank/1"}
    body = {"through_date": "2026-01-31"}
    posted(acme.api.post("/v1/periods/close", body, headers=traced, REMOTE_ADDR="192.0.2.7"))
    with tenant_transaction(acme.tenant_id) as cursor:
        columns = "actor, host(address), user_agent, correlation_id::text, outcome"
        cursor.execute(f"SELECT {columns} FROM audit_record WHERE {NOT_ITS_MAKING}")
        ((actor, *rest),) = cursor.fetchall()
    assert actor == f"client:{acme.api.client.client_id}"
    assert rest == ["192.0.2.7", "bank/1", "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaa1", "done"]


def test_a_replay_and_a_refusal_record_nothing_more(acme: Lender) -> None:
    key = new_key()
    posted(acme.api.post("/v1/periods/close", {"through_date": "2026-01-31"}, key=key))
    shown(acme.api.post("/v1/periods/close", {"through_date": "2026-01-31"}, key=key))
    assert acme.api.post("/v1/periods/close", {"through_date": "2026-01-30"}).status_code == 422
    assert len(log(acme)) == 1


def test_an_item_of_a_batch_is_recorded_alike(acme: Lender) -> None:
    loan = {"borrower_id": str(uuid.uuid4()), "program_id": acme.program_id, "opened_on": "2026-01-01"}
    posted(acme.api.post("/v1/batches", {"mode": "atomic", "items": [{"path": "/loans", "body": loan}]}))
    assert [row[:2] for row in log(acme)] == [("createLoan", "loan")]


def test_what_posts_is_in_the_journal_and_not_here(acme: Lender) -> None:
    acme.api.disburse(acme.loan, 1_000, "2026-01-05")
    assert log(acme) == []
