"""The API document against the published contract, against the URL conf and the views, and against its own copy in docs/.

tests/contract/ holds the contract word for word. Nothing here needs a database.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiYamlRenderer
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from hpts import openapi, problems
from hpts.auth import OF_ITS_ITEMS
from ledger import document
from ledger.idempotency import KEY

HERE = Path(__file__).parent
COPY = HERE.parent / "docs" / "openapi.yaml"
HISTORY = yaml.safe_load((HERE / "contract" / "seed_history.yaml").read_text(encoding="utf-8"))
WEBHOOK = yaml.safe_load((HERE / "contract" / "seed_webhook.yaml").read_text(encoding="utf-8"))
JOURNAL = "/loans/{loan_id}/journal-entries"
PROBLEM = {"$ref": "#/components/schemas/Problem"}
UUID = "11111111-1111-1111-1111-111111111111"
# Said here again on purpose: a scope that changes in a view must be changed by someone who means it.
SCOPES = {
    "createPayment": "hpts:payments:write",
    "settlePayment": "hpts:payments:write",
    "returnPayment": "hpts:payments:write",
    "allocateSuspense": "hpts:payments:write",
    "createDisbursement": "hpts:disbursements:write",
    "settleDisbursement": "hpts:disbursements:write",
    "createAccrualBatch": "hpts:accruals:write",
    "createReversal": "hpts:reversals:write",
    "assessFee": "hpts:admin:servicing",
    "waiveFee": "hpts:admin:servicing",
    "chargeOffLoan": "hpts:admin:servicing",
    "recordRecovery": "hpts:admin:servicing",
    "refinanceLoan": "hpts:admin:servicing",
    "restructureLoan": "hpts:admin:servicing",
    "replanLoan": "hpts:admin:servicing",
    "createJournalEntry": "hpts:admin:adjustments",
    "createAccount": "hpts:admin:adjustments",
    "closeAccount": "hpts:admin:adjustments",
    "createProgram": "hpts:admin:loans",
    "changeProgramTerms": "hpts:admin:loans",
    "createLoan": "hpts:admin:loans",
    "closePeriod": "hpts:admin:periods",
    "listPeriods": "hpts:admin:periods",
    "createBatch": "",
    "listPrograms": "hpts:loans:read",
    "getProgram": "hpts:loans:read",
    "listLoans": "hpts:loans:read",
    "getLoan": "hpts:loans:read",
    "listLoanJournalEntries": "hpts:ledger:read",
    "getJournalEntry": "hpts:ledger:read",
    "getJournalEntryProof": "hpts:ledger:read",
    "listSeals": "hpts:ledger:read",
    "listSealKeys": "hpts:ledger:read",
    "getLoanBalance": "hpts:balances:read",
    "getLoanPayoff": "hpts:balances:read",
    "previewAllocation": "hpts:balances:read",
    "getLoanStatement": "hpts:ledger:read",
    "getLoanBalanceChanges": "hpts:ledger:read",
    "getAccountBalance": "hpts:balances:read",
    "getTrialBalance": "hpts:balances:read",
    "listAccounts": "hpts:balances:read",
    "startAccrualRun": "hpts:accruals:write",
    "listAccrualRuns": "hpts:ledger:read",
    "getAccrualRun": "hpts:ledger:read",
    "pauseAccrual": "hpts:admin:servicing",
    "getReconciliationStatus": "hpts:reconciliation:read",
    "importStatement": "hpts:admin:reconciliation",
    "getBankStatement": "hpts:reconciliation:read",
    "listBreaks": "hpts:reconciliation:read",
    "resolveBreak": "hpts:admin:reconciliation",
    "createReconciliationRun": "hpts:admin:reconciliation",
    "listReconciliationRuns": "hpts:reconciliation:read",
    "createWebhookEndpoint": "hpts:admin:webhooks",
    "listWebhookEndpoints": "hpts:admin:webhooks",
    "getWebhookEndpoint": "hpts:admin:webhooks",
    "deleteWebhookEndpoint": "hpts:admin:webhooks",
    "rotateWebhookSecret": "hpts:admin:webhooks",
    "testWebhookEndpoint": "hpts:admin:webhooks",
    "enableWebhookEndpoint": "hpts:admin:webhooks",
    "recoverWebhookEndpoint": "hpts:admin:webhooks",
    "listWebhookDeliveries": "hpts:admin:webhooks",
    "redeliverWebhook": "hpts:admin:webhooks",
    "listEvents": "hpts:ledger:read",
    "getLiveness": None,
    "getReadiness": None,
}

Json = dict[str, Any]


@pytest.fixture(scope="module")
def doc() -> Json:
    return json.loads(openapi.rendered())


def resolved(node: Any, doc: Json) -> Any:
    """`node` with every reference followed."""
    if isinstance(node, dict):
        if "$ref" in node:
            target: Any = doc
            for step in node["$ref"].removeprefix("#/").split("/"):
                target = target[step]
            return resolved(target, doc)
        return {name: resolved(member, doc) for name, member in node.items()}
    if isinstance(node, list):
        return [resolved(member, doc) for member in node]
    return node


class Route(NamedTuple):
    path: str
    method: str
    scope: str | None


def routes() -> Iterator[Route]:
    """What the URL conf has below /v1, but for the document and its page."""

    def below(resolver: URLResolver, prefix: str) -> Iterator[tuple[str, URLPattern]]:
        for pattern in resolver.url_patterns:
            if isinstance(pattern, URLResolver):
                yield from below(pattern, prefix + str(pattern.pattern))
            else:
                yield prefix + str(pattern.pattern), pattern

    for route, pattern in below(get_resolver(), "/"):
        view = pattern.callback
        if not route.startswith("/v1/") or view in (openapi.document, openapi.docs):
            continue
        path = re.sub(r"<\w+:(\w+)>", r"{\1}", route.removeprefix("/v1"))
        for method, action in getattr(view, "actions", {"get": None}).items():
            if method != "head":
                yield Route(path, method, view.cls.scopes[action] if action else None)


def operations(doc: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in doc["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


# --- The published contract ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("contract", [HISTORY, WEBHOOK], ids=["history", "webhook"])
@pytest.mark.parametrize("part", ["openapi", "info", "servers", "security"])
def test_the_front_of_the_document_is_the_contract(doc: Json, contract: Json, part: str) -> None:
    assert doc[part] == contract[part]


@pytest.mark.parametrize("contract", [HISTORY, WEBHOOK], ids=["history", "webhook"])
def test_the_tags_of_the_contract_come_first_and_are_the_same(doc: Json, contract: Json) -> None:
    assert doc["tags"][: len(contract["tags"])] == contract["tags"]


@pytest.mark.parametrize("contract", [HISTORY, WEBHOOK], ids=["history", "webhook"])
def test_the_security_scheme_and_its_scopes_are_the_contract(doc: Json, contract: Json) -> None:
    assert doc["components"]["securitySchemes"] == contract["components"]["securitySchemes"]


def test_the_history_of_a_loan_is_the_contract(doc: Json) -> None:
    ours, theirs = doc["paths"][JOURNAL]["get"], HISTORY["paths"][JOURNAL]["get"]
    assert ours.keys() == theirs.keys()
    for member in theirs.keys() - {"responses"}:
        assert ours[member] == theirs[member]
    assert resolved(ours["parameters"], doc) == resolved(theirs["parameters"], HISTORY)
    assert theirs["responses"]["200"].items() <= ours["responses"]["200"].items()
    # What we add to the contract's one answer are headers and problems.
    assert ours["responses"]["200"].keys() - theirs["responses"]["200"].keys() == {"headers"}
    assert all(int(status) >= 400 for status in ours["responses"].keys() - {"200"})


@pytest.mark.parametrize("kind", ["parameters", "schemas"])
def test_every_shared_component_is_the_contract(doc: Json, kind: str) -> None:
    for name, component in HISTORY["components"][kind].items():
        assert doc["components"][kind][name] == component, name


def test_the_webhook_is_the_contract(doc: Json) -> None:
    webhook = doc["webhooks"]["journalEntryPosted"]["post"]
    assert webhook["summary"] == "Fires when a journal entry is posted"
    assert webhook["description"] == (
        "Delivered at-least-once from the ledger outbox. Consumers must\ndedupe on `journal_entry_id`.\n"
    )
    assert webhook["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/JournalEntryPostedEvent"
    }
    event = doc["components"]["schemas"]["JournalEntryPostedEvent"]
    assert event["additionalProperties"] is False
    assert set(event["required"]) == {"journal_entry_id", "tenant_id", "event_type", "occurred_at"}
    assert event["properties"].keys() - set(event["required"]) == {"correlation_id"}


# --- The document itself ---------------------------------------------------------------------------------------------
def test_the_document_is_valid_openapi_3_1(doc: Json) -> None:
    OpenAPIV31SpecValidator(doc).validate()


def test_the_copy_in_docs_is_the_generated_document() -> None:
    generated = SchemaGenerator().get_schema(public=True)
    assert COPY.read_bytes() == OpenApiYamlRenderer().render(generated), (
        "docs/openapi.yaml is not what the code says: run `manage.py spectacular --file docs/openapi.yaml --validate`."
    )
    assert not GENERATOR_STATS, "drf-spectacular warns: run `manage.py spectacular --fail-on-warn`."


def test_every_operation_has_its_own_id_and_a_known_tag(doc: Json) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(doc)]
    assert len(set(ids)) == len(ids)
    tags = {tag["name"] for tag in doc["tags"]}
    assert all(set(operation["tags"]) <= tags and operation["summary"] for _, _, operation in operations(doc))


def test_every_component_is_used(doc: Json) -> None:
    text = json.dumps(doc)
    for kind in doc["components"].keys() - {"securitySchemes"}:
        for name in doc["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in text, f"Nothing refers to {kind}/{name}."


def test_no_object_takes_members_that_it_does_not_name(doc: Json) -> None:
    for name, schema in doc["components"]["schemas"].items():
        if schema.get("type") == "object":
            assert schema["additionalProperties"] is False, name


# --- The document and the code ---------------------------------------------------------------------------------------
def test_the_document_has_every_route_and_no_other(doc: Json) -> None:
    assert {(path, method) for path, method, _ in operations(doc)} == {route[:2] for route in routes()}


def test_every_operation_asks_for_the_scope_that_its_view_checks(doc: Json) -> None:
    for path, method, scope in routes():
        operation = doc["paths"][path][method]
        named = [operation["x-scope"], "hpts:admin:*"] if "x-scope" in operation else [scope, scope]
        if scope == OF_ITS_ITEMS:
            assert operation["security"] == [{"bearerAuth": []}], (method, path)
            continue
        assert operation["security"] == ([{"bearerAuth": [named[1]]}] if scope else []), (method, path)
        assert named[0] == scope, (method, path)
        # An area of the administration is not in the contract's scheme, so the text must say what suffices.
        assert ("x-scope" in operation) == bool(scope and scope.startswith("hpts:admin:")), (method, path)
        if "x-scope" in operation:
            assert f"`{scope}`" in operation["description"], (method, path)


def test_every_operation_has_the_scope_that_was_agreed(doc: Json) -> None:
    scopes = {doc["paths"][path][method]["operationId"]: scope for path, method, scope in routes()}
    assert scopes == SCOPES


def test_every_scope_of_an_operation_is_in_the_security_scheme(doc: Json) -> None:
    known = doc["components"]["securitySchemes"]["bearerAuth"]["flows"]["clientCredentials"]["scopes"]
    for _, _, operation in operations(doc):
        for requirement in operation["security"]:
            assert set(requirement["bearerAuth"]) <= known.keys()


def test_every_post_takes_a_key_and_answers_the_first_time_and_a_replay(doc: Json) -> None:
    key = {"$ref": "#/components/parameters/IdempotencyKey"}
    for path, method, operation in operations(doc):
        assert (key in operation.get("parameters", [])) == (method == "post"), path
        if method == "post":
            (first,) = operation["responses"].keys() & {"201", "202"}
            assert "200" in operation["responses"], path
            assert "Idempotency-Replayed" in operation["responses"]["200"]["headers"], path
            assert operation["responses"]["200"]["content"] == operation["responses"][first]["content"], path


def test_the_documented_pattern_of_a_key_is_the_one_that_is_checked(doc: Json) -> None:
    assert doc["components"]["parameters"]["IdempotencyKey"]["schema"]["pattern"] == f"^{KEY.pattern}$"


def test_every_refusal_is_a_problem_of_the_catalogue_under_its_status(doc: Json) -> None:
    known = {kind.code: kind for kind in problems.catalogue()}
    for path, method, operation in operations(doc):
        for status, answer in resolved_answers(operation, doc):
            if int(status) < 400 or "x-problem-codes" not in answer:
                continue
            assert answer["content"] == {"application/problem+json": {"schema": PROBLEM}}, (method, path, status)
            assert answer["x-problem-codes"], (method, path, status)
            for code in answer["x-problem-codes"]:
                assert known[code].status == int(status), (method, path, code)
                assert known[code].headers.keys() <= answer["headers"].keys(), (method, path, code)


def resolved_answers(operation: Json, doc: Json) -> Iterator[tuple[str, Json]]:
    for status, answer in operation["responses"].items():
        name = answer.get("$ref", "").rpartition("/")[2]
        yield status, doc["components"]["responses"][name] if name else answer


def test_every_operation_with_a_scope_names_the_refusals_that_all_have(doc: Json) -> None:
    for path, method, operation in operations(doc):
        if operation["security"]:
            expected = {"400", "401", "403", "406", "429", "500", "503"}
            expected |= {"404"} if "{" in path else set()
            expected |= {"409", "413", "415", "422"} if method == "post" else set()
            assert expected <= operation["responses"].keys(), (method, path)


def test_every_answer_bears_the_request_id(doc: Json) -> None:
    for path, method, operation in operations(doc):
        for status, answer in resolved_answers(operation, doc):
            assert "X-Request-Id" in answer["headers"], (method, path, status)


@pytest.mark.parametrize("kind", list(problems.catalogue()), ids=lambda kind: kind.code)
def test_every_problem_has_the_documented_members(doc: Json, kind: type[problems.Problem]) -> None:
    problem = kind(["GET"]) if kind is problems.MethodNotAllowed else kind()  # type: ignore[arg-type]
    problem.errors = [problems.FieldProblem("lines.2.amount_minor", "required", "This field is required.")]
    check(json.loads(problems.response(problem, UUID).content), "Problem", doc)


def test_a_rendered_entry_has_the_documented_members(doc: Json) -> None:
    line = document.line_object(1, "1000", "DR", 88849, "USD", "SETTLED", UUID, UUID, "wire 7")
    other = document.line_object(2, "1100", "CR", 88849, "USD", "SETTLED", UUID, None, None)
    entry = {
        "journal_entry_id": UUID,
        "correlation_id": UUID,
        "reverses_entry_id": None,
        "event_type": "payment_received",
        "effective_at": "2026-03-01",
        "posted_at": "2026-03-01T12:00:00.000000Z",
        "description": None,
        "actor": "client:demo",
    }
    shown = json.loads(document.public(document.render(entry, [line, other], UUID)))
    check(shown, "JournalEntry", doc)
    check({"items": [shown], "next_page_token": "abc"}, "JournalEntryPage", doc)


def check(value: Any, component: str, doc: Json) -> None:
    """Raises when `value` does not have the component's schema."""
    schema = {"$ref": f"#/components/schemas/{component}", "components": doc["components"]}
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(value)


# --- As it is served -------------------------------------------------------------------------------------------------
def test_the_document_is_served_without_a_token(client: Client, doc: Json) -> None:
    answer = client.get("/v1/openapi.json")
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
    assert answer.json() == doc
    uuid.UUID(answer["X-Request-Id"])


def test_the_page_brings_all_that_it_needs(client: Client) -> None:
    answer = client.get("/v1/docs")
    assert (answer.status_code, answer["Content-Type"]) == (200, "text/html; charset=utf-8")
    page = answer.content.decode()
    parts = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert any(part.endswith("swagger-ui-bundle.js") for part in parts)
    for part in parts:
        if part != "openapi.json":
            assert part.startswith("/static/"), part
            assert client.get(part).status_code == 200, part
    assert "//" not in answer["Content-Security-Policy"]
    assert not re.search(r"https?://", page)


@pytest.mark.parametrize("path", ["/v1/openapi.json", "/v1/docs", "/v1/health/live", "/v1/health/ready"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_the_open_pages_are_only_read(client: Client, path: str, method: str) -> None:
    answer = client.generic(method, path)
    assert (answer.status_code, answer["Content-Type"]) == (405, "application/problem+json")
    assert answer["Allow"] == "GET, HEAD"
    assert answer.json()["code"] == "method_not_allowed"


def test_liveness_answers_as_documented(client: Client, doc: Json) -> None:
    check(client.get("/v1/health/live").json(), "Liveness", doc)
