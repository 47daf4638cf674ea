"""The running API against its own document: whatever is sent, the answer is one that the document promises.

Requests are made from the document, well formed and malformed, for each operation alone and for chains of operations that
hand on ids. Ids and dates in it are sometimes those of a tenant that was made for the operation, so that requests get behind the
first check. HPTS_LONG=1 sends 5,000 of them for each operation.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from benchmarks import server
from hpts import openapi
from tests.conftest import Json, Lender, new_lender

LONG = bool(os.environ.get("HPTS_LONG"))
EXAMPLES = 5_000 if LONG else 40
CHAINS = 500 if LONG else 8

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
# Somebody may ask to wait for news for some seconds.
PATIENCE = 30
# Of a request's line or of a header (hpts/run.py).
LONGEST = 8_000
DATES = ["2026-01-10", "2026-02-01", "2026-02-28", "2026-03-31"]
QUIET = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    print_blob=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


# --- The document, and a tenant that it is about ---------------------------------------------------------------------


def known_values(lender: Lender) -> dict[str, list[str]]:
    """What the members and parameters of these names may be, besides what the document says: rows of the tenant's own."""
    api, loan = lender.api, lender.loan
    drawn = api.disburse(loan, 1_000_000, "2026-01-05")
    announced = [api.pay(loan, 5_000, "2026-02-01", layer="PENDING") for _ in range(2)]
    planned = api.disburse(lender.loans[1], 50_000, "2026-01-06", layer="PENDING")
    api.accrue("2026-01-06", (loan, 1_000_000, 274))
    api.charge_fee(loan, 500, "2026-01-07")
    paid = api.pay(loan, 700, "2026-01-09")
    entries = [each["journal_entry_id"] for each in (drawn, *announced, planned, paid)]
    return {
        "loan_id": [each.loan_id for each in lender.loans],
        "borrower_id": [each.borrower_id for each in lender.loans],
        "program_id": [lender.program_id, lender.open_program(accrual_mode="engine")],
        "journal_entry_id": entries,
        "reverses_entry_id": entries,
        "payment_event_id": [each["payment_event_id"] for each in announced],
        "disbursement_event_id": [each["disbursement_event_id"] for each in (drawn, planned)],
        "account_code": ["1000", "1100", "1200", "1300", "2000", "3000", "4100"],
        "currency": ["USD"],
        **dict.fromkeys(["effective_at", "accrual_date", "from_date", "to_date", "through_date", "as_of_date"], DATES),
    }


def with_values(document: Json, values: dict[str, list[str]]) -> Json:
    """The document, in which each of these names may also be one of its values. Every answer that fitted it still fits."""
    changed = copy.deepcopy(document)

    def widen(schema: Json, name: str) -> Json:
        return {"anyOf": [{"enum": values[name]}, schema]}

    def visit(node: Any) -> None:
        if isinstance(node, list):
            for each in node:
                visit(each)
        if not isinstance(node, dict):
            return
        for name, schema in (node.get("properties") or {}).items():
            if name in values and isinstance(schema, dict):
                node["properties"][name] = widen(schema, name)
        if node.get("in") in ("path", "query") and node.get("name") in values:
            node["schema"] = widen(node["schema"], node["name"])
        for each in node.values():
            visit(each)

    visit(changed["paths"])
    visit(changed["components"])
    return changed


@cache
def document() -> Json:
    read: Json = json.loads(openapi.rendered())
    # Waiting for news takes time, and says nothing about it.
    for parameter in read["paths"]["/events"]["get"]["parameters"]:
        if parameter.get("name") == "wait":
            parameter["schema"]["maximum"] = 1
    # Tokens are put on by the tests, and a webhook is a request that others answer.
    for methods in read["paths"].values():
        for operation in methods.values():
            operation.pop("security", None)
    del read["webhooks"], read["security"]
    return read


def operation_ids() -> list[str]:
    return sorted(
        operation["operationId"] for methods in document()["paths"].values() for operation in methods.values()
    )


# --- The server ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("fuzz") / "log"
    quiet = {"HPTS_WEB_WORKERS": "1", "HPTS_WEB_THREADS": "4", "HPTS_LOG_LEVEL": "ERROR"}
    with server.running(server.product_command(), quiet, log) as running:
        yield f"http://127.0.0.1:{running.port}/v1"
    mistakes = [line for line in Path(log).read_text("utf-8").splitlines() if '"level":"error"' in line]
    assert not mistakes, "\n".join(mistakes[:5])


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as kept:
        yield kept


def refused_by_the_server(response: Any) -> bool:
    """Whether the request got no further than the web server: its line or a header is too long or no HTTP. Not the document's
    affair; test_framing.py asks about these."""
    sent = response.request
    longest = max([len(sent.url), *(len(str(value)) for value in sent.headers.values())])
    return (
        response.status_code in (400, 414, 431)
        and longest > LONGEST
        and "problem" not in response.headers["content-type"][0]
    )


def promises(case: Any) -> list[Any]:
    """What is checked. Readiness has a 503 among its answers, and no deliverer runs here."""
    ready = case.operation.definition.raw["operationId"] == "getReadiness"
    return [check for check in CHECKS if not (ready and check is not_a_server_error)]


# --- One operation ---------------------------------------------------------------------------------------------------


def operation_of(schema: Any, operation_id: str) -> Any:
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.definition.raw["operationId"] == operation_id:
            return operation
    raise AssertionError(operation_id)


@pytest.mark.parametrize("operation_id", operation_ids())
def test_every_answer_is_one_that_the_document_promises(
    operation_id: str, base_url: str, session: requests.Session
) -> None:
    lender = new_lender()
    schema = schemathesis.openapi.from_dict(with_values(document(), known_values(lender)))
    operation = operation_of(schema, operation_id)
    headers = {"Authorization": f"Bearer {lender.api.token()}"}

    @QUIET
    @given(case=st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)))
    def hold(case: Any) -> None:
        response = case.call(base_url=base_url, session=session, headers=headers, timeout=PATIENCE)
        if not refused_by_the_server(response):
            case.validate_response(response, checks=promises(case), headers=headers)

    hold()


# --- Chains ----------------------------------------------------------------------------------------------------------


def test_what_one_operation_answers_can_be_sent_to_the_next(base_url: str, session: requests.Session) -> None:
    """Each chain begins in books of its own, so that the same requests have the same answers; ids come by links alone."""
    values = {name: each for name, each in known_values(new_lender()).items() if not name.endswith("_id")}
    machine = schemathesis.openapi.from_dict(with_values(document(), values)).as_state_machine()
    reached: set[str] = set()

    class Chain(machine):  # type: ignore[misc, valid-type]
        def setup(self) -> None:
            super().setup()
            self.headers = {"Authorization": f"Bearer {new_lender().api.token()}"}

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"base_url": base_url, "session": session, "headers": self.headers, "timeout": PATIENCE}

        def validate_response(self, response: Any, case: Any, **more: Any) -> None:
            if response.status_code < 300 and "{" in case.operation.path:
                reached.add(case.operation.definition.raw["operationId"])
            if not refused_by_the_server(response):
                case.validate_response(response, checks=promises(case))

    run_state_machine_as_test(Chain, settings=settings(QUIET, max_examples=CHAINS, stateful_step_count=8))
    # What the path names has been made before, by another operation of the chain.
    assert reached, "no chain has got anywhere"
