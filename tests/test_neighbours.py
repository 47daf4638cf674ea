"""Neighbours: what belongs to another tenant answers exactly like what does not exist, in every place that names a row.

The places come from the OpenAPI document: every operation, every id in its path, its query and its body. For each of them
a tenant asks with a neighbour's id and with one that nobody has; the two answers must not differ. An operation, or an id of
one, without a probe here fails the test. The same holds with each of the two walls alone: row security without the
application's filter, and the filter without row security.
"""

from __future__ import annotations

import copy
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
import yaml
from django.db import connection, models
from django.http import HttpResponse

from hpts import embedded
from hpts.tenancy import TenantManager
from ledger import seals
from tests.conftest import Json, Lender, in_books_of, new_key, posted, shown
from tests.ledger.api.conftest import OWN_CODES, WRITES
from tests.plugin import LONG
from tests.reconciliation.conftest import Bank
from tests.webhooks.conftest import eventually, register
from webhooks.relay import relay

DOCUMENT: Json = yaml.safe_load((embedded.ROOT / "docs" / "openapi.yaml").read_text())
# Beside everything that is a Uuid: names of rows that are none, and what a list gives to be asked further with.
NAMES = {"account_code", "bank_account_ref", "external_ref", "page_token", "plan_hash"}
# Open to everybody, about nobody.
OPEN = {"getLiveness", "getReadiness"}
Place = tuple[str | int, ...]


# --- Operations and their ids, from the document ----------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    id: str
    method: str
    template: str
    ids: frozenset[str]  # names of the parameters and members that name a row

    def path_names(self, path: str) -> dict[str, str]:
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.template)
        match = re.fullmatch(f"/v1{pattern}", path)
        assert match is not None, f"{self.id}: {path} is not {self.template}"
        return match.groupdict()


def resolve(node: Json) -> Json:
    if "$ref" not in node:
        return node
    found: Json = DOCUMENT
    for name in node["$ref"].split("/")[1:]:
        found = found[name]
    return found


def names_in(schema: Json, name: str = "") -> Iterator[str]:
    """Names of members that name a row, anywhere in a body."""
    if schema.get("$ref", "").endswith("/Uuid") or name in NAMES:
        yield name
    schema = resolve(schema)
    for kind in ("oneOf", "anyOf", "allOf"):
        for each in schema.get(kind, []):
            yield from names_in(each, name)
    for member, each in schema.get("properties", {}).items():
        yield from names_in(each, member)
    if "items" in schema:
        yield from names_in(schema["items"], name)


def _operations() -> Iterator[Operation]:
    for template, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            found = set()
            for parameter in map(resolve, operation.get("parameters", [])):
                is_id = parameter["schema"].get("$ref", "").endswith(("/Uuid", "/AccountCode"))
                if parameter["in"] in ("path", "query") and (is_id or parameter["name"] in NAMES):
                    found.add(parameter["name"])
            for content in resolve(operation.get("requestBody", {})).get("content", {}).values():
                found |= set(names_in(content.get("schema", {})))
            yield Operation(operation["operationId"], method.upper(), template, frozenset(found))


OPERATIONS = {operation.id: operation for operation in _operations() if operation.id not in OPEN}


# --- Requests that are good for the lender who makes them ------------------------------------------------------------


@dataclass
class Request:
    path: str
    query: dict[str, str] = field(default_factory=dict)
    body: Any = None
    content_type: str = "application/json"

    def send(self, lender: Lender, method: str, key: str | None = None) -> HttpResponse:
        more: dict[str, Any] = {"QUERY_STRING": urlencode(self.query), "content_type": self.content_type}
        if method == "POST":
            more["key"] = key or new_key()
        return lender.api.call(method, self.path, b"" if self.body is None else self.body, **more)

    def places(self, operation: Operation) -> dict[Place, str]:
        """Where this request names rows, and which."""
        found: dict[Place, str] = {("path", name): value for name, value in operation.path_names(self.path).items()}
        found |= {("query", name): value for name, value in self.query.items() if _names_a_row(name)}
        return found | dict(_leaves(self.body, ("body",)))

    def with_value(self, operation: Operation, place: Place, value: str) -> Request:
        """The same request with another value in one place."""
        made = copy.deepcopy(self)
        where, *rest = place
        if where == "path":
            names = operation.path_names(self.path) | {str(rest[0]): value}
            made.path = "/v1" + operation.template.format(**names)
        elif where == "query":
            made.query[str(rest[0])] = value
        else:
            node = made.body
            for step in rest[:-1]:
                node = node[step]
            node[rest[-1]] = value
        return made


def _names_a_row(name: str) -> bool:
    return name.endswith("_id") or name in NAMES


def _leaves(node: Any, place: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(node, dict):
        for name, value in node.items():
            if isinstance(value, str) and _names_a_row(name):
                yield (*place, name), value
            else:
                yield from _leaves(value, (*place, name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, (*place, index))


Prepare = Callable[[Lender], Sequence[Request]]


def by_write(name: str) -> Prepare:
    (write,) = [write for write in WRITES if write.name == name]

    def prepare(lender: Lender) -> list[Request]:
        path, body = write.prepare(lender)
        return [Request(path, body=body)]

    return prepare


def read(path: str, **query: str) -> Prepare:
    return lambda lender: [Request(path, dict(query))]


def of_the_loan(path: str, **query: str) -> Prepare:
    def prepare(lender: Lender) -> list[Request]:
        lender.api.pay(lender.loan, 5, "2026-01-05")
        return [Request(f"/v1/loans/{lender.loan.loan_id}{path}", dict(query))]

    return prepare


def page_of(path: str, *, of: Callable[[Lender], Any], **query: Callable[[Lender], str]) -> Prepare:
    """A list: asked by each of its filters, and for its second page."""

    def prepare(lender: Lender) -> list[Request]:
        of(lender)
        own = path.format(loan=lender.loan.loan_id, statement=_statement_of.get(lender.tenant_id, ""))
        first = shown(lender.api.get(own, {"page_size": 1}))
        token = first["next_page_token"]
        filtered = [Request(own, {name: value(lender)}) for name, value in query.items()]
        return [Request(own), *filtered, Request(own, {"page_size": "1", "page_token": token})]

    return prepare


def twice(once: Callable[[Lender], Any]) -> Callable[[Lender], None]:
    def both(lender: Lender) -> None:
        once(lender)
        once(lender)

    return both


def own_account(lender: Lender) -> str:
    code = str(next(OWN_CODES))
    posted(
        lender.api.post(
            "/v1/accounts",
            {"account_code": code, "account_name": code, "account_type": "expense", "normal_side": "DR"},
        )
    )
    return code


def engine_run(lender: Lender) -> str:
    program_id = lender.open_program(accrual_mode="engine")
    return str(lender.accrue_by_engine("2026-01-20", program_id)["accrual_run_id"])


def endpoint(lender: Lender) -> str:
    return register(lender.api, "http://127.0.0.1:9/hook").endpoint_id


_delivery_of: dict[str, str] = {}


def deliveries(lender: Lender) -> str:
    """Two of them, to one endpoint; gives the endpoint's id."""
    endpoint_id = endpoint(lender)
    for _ in range(2):
        lender.api.pay(lender.loan, 5, "2026-01-05")
    deadline = time.monotonic() + 30
    listed: list[Json] = []
    # Transactions of other test processes may hold the relay's horizon back for a moment.
    while len(listed) < 2:
        assert time.monotonic() < deadline, "the outbox is not relayed"
        relay(lender.tenant_id)
        listed = shown(lender.api.get("/v1/webhook-deliveries", {"webhook_endpoint_id": endpoint_id}))["items"]
    _delivery_of[lender.tenant_id] = listed[0]["delivery_id"]
    return endpoint_id


_statement_of: dict[str, str] = {}


def bank(lender: Lender) -> Bank:
    """An account at a bank of the lender's own name, with a statement of two lines that nothing explains."""
    account = Bank(lender, f"bank-{lender.tenant_id}")
    if lender.tenant_id in _statement_of:
        return account
    made = account.imports("2026-02-01", "2026-02-28", ("2026-02-03", "5.00", "A"), ("2026-02-04", "7.00", "B"))
    _statement_of[lender.tenant_id] = made["statement_id"]
    return account


def _resolutions(lender: Lender) -> list[Request]:
    account = bank(lender)
    found, other = account.breaks()
    # On the bank's account, and dated within the statement, as a match has to be.
    entry = account.has(int(found["amount_minor"]), found["value_date"], "elsewhere")
    return [
        Request(
            f"/v1/reconciliation/breaks/{found['break_id']}/resolution",
            body={"action": "match", "reason": "It is", "journal_entry_id": entry},
        ),
        Request(
            f"/v1/reconciliation/breaks/{other['break_id']}/resolution",
            body={"action": "adjust", "reason": "It is", "account_code": own_account(lender)},
        ),
    ]


def _import(lender: Lender) -> list[Request]:
    text = (
        "date,amount,currency,reference,description\n2026-02-01,0.00,USD,opening,\n"
        f"2026-02-02,5.00,USD,{uuid.uuid4()},\n2026-02-28,5.00,USD,closing,\n"
    )
    query = {"bank_account_ref": f"bank-{uuid.uuid4()}", "format": "csv", "account_code": "1000"}
    return [Request("/v1/reconciliation/statements", query, text, "text/plain")]


def _endpoint_call(path: str, body: Json | None) -> Prepare:
    return lambda lender: [Request(f"/v1/webhook-endpoints/{endpoint(lender)}{path}", body=body)]


def _redelivery(lender: Lender) -> list[Request]:
    deliveries(lender)
    return [Request(f"/v1/webhook-deliveries/{_delivery_of[lender.tenant_id]}/redeliver", body={})]


def _close_two(lender: Lender) -> None:
    lender.api.close_period("2025-11-30")
    lender.api.close_period("2025-12-31")


def _proof(lender: Lender) -> list[Request]:
    (asked,) = _entry(lender)
    eventually(lambda: seals.seal(lender.tenant_id) > 0, within=30, what="the entry is sealed")
    return [Request(f"{asked.path}/proof")]


def _seal_two(lender: Lender) -> None:
    for _ in range(2):
        _entry(lender)
        eventually(lambda: seals.seal(lender.tenant_id) > 0, within=30, what="the entry is sealed")


def _entry(lender: Lender) -> list[Request]:
    return [Request(f"/v1/journal-entries/{lender.api.pay(lender.loan, 5, '2026-01-05')['journal_entry_id']}")]


INSTANT = "2026-01-01T00:00:00Z"
PROBES: dict[str, Prepare] = {
    "createPayment": by_write("payment"),
    "settlePayment": by_write("payment's settlement"),
    "returnPayment": by_write("return"),
    "allocateSuspense": by_write("suspense allocation"),
    "createDisbursement": by_write("disbursement"),
    "settleDisbursement": by_write("disbursement's settlement"),
    "createAccrualBatch": by_write("accrual"),
    "createReversal": by_write("reversal"),
    "createJournalEntry": by_write("manual entry"),
    "assessFee": by_write("fee"),
    "waiveFee": by_write("fee waiver"),
    "chargeOffLoan": by_write("charge-off"),
    "recordRecovery": by_write("recovery"),
    "refinanceLoan": by_write("refinance"),
    "restructureLoan": by_write("restructure"),
    "replanLoan": by_write("replan"),
    "createProgram": by_write("program"),
    "changeProgramTerms": by_write("program's terms"),
    "createLoan": by_write("loan"),
    "createAccount": by_write("account"),
    "closeAccount": by_write("account's closure"),
    "startAccrualRun": by_write("accrual run"),
    "pauseAccrual": by_write("accrual pause"),
    "closePeriod": by_write("period's close"),
    "createBatch": by_write("batch"),
    "listAccounts": read("/v1/accounts"),
    "getAccountBalance": lambda lender: [Request(f"/v1/accounts/{own_account(lender)}/balance", {"currency": "USD"})],
    "getTrialBalance": read("/v1/trial-balance", currency="USD"),
    "getJournalEntry": _entry,
    "getJournalEntryProof": _proof,
    "listSeals": page_of("/v1/seals", of=_seal_two),
    "listSealKeys": read("/v1/seal-keys"),
    "getProgram": lambda lender: [Request(f"/v1/programs/{lender.program_id}")],
    "getLoan": of_the_loan(""),
    "getLoanBalance": of_the_loan("/balance"),
    "getLoanPayoff": of_the_loan("/payoff"),
    "getLoanStatement": of_the_loan("/statement"),
    "previewAllocation": of_the_loan("/allocation-preview", amount_minor="5"),
    "getLoanBalanceChanges": of_the_loan("/balance-changes", from_known_at=INSTANT, to_known_at=INSTANT),
    "listLoanJournalEntries": page_of(
        "/v1/loans/{loan}/journal-entries", of=twice(lambda lender: lender.api.pay(lender.loan, 5, "2026-01-05"))
    ),
    "listLoans": page_of(
        "/v1/loans",
        of=lambda lender: None,
        program_id=lambda lender: lender.program_id,
        borrower_id=lambda lender: lender.loan.borrower_id,
    ),
    "listPrograms": page_of("/v1/programs", of=lambda lender: lender.open_program()),
    "listPeriods": page_of("/v1/periods", of=_close_two),
    "listAccrualRuns": page_of("/v1/accrual-runs", of=twice(engine_run), program_id=lambda lender: lender.program_id),
    "getAccrualRun": lambda lender: [Request(f"/v1/accrual-runs/{engine_run(lender)}")],
    "listEvents": lambda lender: (deliveries(lender), [Request("/v1/events")])[1],
    "listWebhookEndpoints": page_of("/v1/webhook-endpoints", of=twice(endpoint)),
    "createWebhookEndpoint": lambda lender: [Request("/v1/webhook-endpoints", body={"url": "http://127.0.0.1:9/new"})],
    "getWebhookEndpoint": _endpoint_call("", None),
    "deleteWebhookEndpoint": _endpoint_call("", None),
    "enableWebhookEndpoint": _endpoint_call("/enable", {}),
    "recoverWebhookEndpoint": _endpoint_call("/recover", {"since": "{now}"}),
    "rotateWebhookSecret": _endpoint_call("/rotate-secret", {}),
    "testWebhookEndpoint": _endpoint_call("/test", {}),
    "listWebhookDeliveries": page_of("/v1/webhook-deliveries", of=deliveries, webhook_endpoint_id=deliveries),
    "redeliverWebhook": _redelivery,
    "listBreaks": page_of(
        "/v1/reconciliation/breaks", of=bank, bank_account_ref=lambda lender: f"bank-{lender.tenant_id}"
    ),
    "resolveBreak": _resolutions,
    "listReconciliationRuns": page_of(
        "/v1/reconciliation/runs",
        of=twice(lambda lender: posted(lender.api.post("/v1/reconciliation/runs", {}))),
    ),
    "createReconciliationRun": lambda lender: [Request("/v1/reconciliation/runs", body={})],
    "importStatement": _import,
    "getBankStatement": page_of("/v1/reconciliation/statements/{statement}", of=bank),
    "getReconciliationStatus": lambda lender: (bank(lender), [Request("/v1/reconciliation/status")])[1],
}


def test_every_operation_has_a_probe() -> None:
    assert PROBES.keys() == OPERATIONS.keys(), "say here how each new operation is asked for another tenant's rows"


# --- Asking ----------------------------------------------------------------------------------------------------------

UUIDS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIMES = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
HASHES = re.compile(r"\b[0-9a-f]{64}\b")
# Of the connection, not of the answer.
UNHEARD = {"X-Request-Id", "Content-Length", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"}


def comparable(answer: HttpResponse, asked_for: str) -> tuple[Any, ...]:
    """An answer without what differs between any two answers: ids, instants, and what was asked for."""

    def same(text: str) -> str:
        # A secret, a cursor and a client's name are new each time.
        text = re.sub(r'("(?:secret|next_page_token|actor)":\s*)"[^"]*"', r'\1"…"', text.replace(asked_for, "ASKED"))
        return HASHES.sub("HASH", TIMES.sub("TIME", UUIDS.sub("ID", text)))

    headers = sorted((name, same(value)) for name, value in answer.headers.items() if name not in UNHEARD)
    return answer.status_code, headers, same(answer.content.decode())


def unknown(place: Place, like: str) -> str:
    """A value of the same form that no tenant has."""
    name = place[-1]
    if name == "account_code":
        return str(next(OWN_CODES))
    if name == "plan_hash":
        return uuid.uuid4().hex * 2
    if UUIDS.fullmatch(like):
        return str(uuid.uuid4())
    if name == "page_token":
        return like[:-6] + ("AAAAAA" if not like.endswith("AAAAAA") else "BBBBBB")
    return f"nobody-{uuid.uuid4()}"


def foreign(place: Place, neighbour: Lender, request: Request, operation: Operation) -> str | None:
    """The neighbour's value for a place: of its own request, unless every tenant has the same there."""
    if place[-1] == "account_code" and place[0] != "path" and operation.id != "createAccount":
        return own_account(neighbour)
    if place[-1] == "bank_account_ref":
        bank(neighbour)
        return f"bank-{neighbour.tenant_id}"
    return request.places(operation).get(place)


# Named with their tenant, because row security may be off.
_OWNED = (
    "journal_entry",
    "journal_line",
    "loan_balance",
    "loan",
    "loan_terms",
    "program",
    "program_terms",
    "gl_account",
)
_OWNED += (
    "period_close",
    "idempotency_key",
    "webhook_endpoint",
    "reconciliation_break",
    "bank_statement",
    "accrual_run",
)


def footprint(lender: Lender) -> list[Any]:
    """Everything in a lender's books that a neighbour's request might have changed."""
    with in_books_of(lender.tenant_id) as connection:
        return [
            connection.execute(
                f"SELECT count(*), sum(hashtext(t::text)) FROM {table} t WHERE tenant_id = %s",  # type: ignore[arg-type]
                (lender.tenant_id,),
            ).fetchone()
            for table in _OWNED
        ]


def differences(operation_id: str, make: Callable[[], Lender], neighbours: int) -> list[str]:
    """Where the answers for a neighbour's rows differ from those for rows that nobody has."""
    operation, found = OPERATIONS[operation_id], []
    prepare = PROBES[operation_id]
    asker, others = make(), [make() for _ in range(neighbours)]
    variants = prepare(asker)
    theirs = [prepare(other) for other in others]
    keys = [new_key() for _ in others]
    for other, requests, key in zip(others, theirs, keys, strict=True):
        for request in requests:
            answer = _timely(request).send(other, operation.method, key if request is requests[0] else None)
            assert answer.status_code < 300, f"the neighbour's own request is no probe: {answer.content!r}"
    covered = set()
    for number in range(len(variants)):
        for place, own in variants[number].places(operation).items():
            covered.add(str(place[-1]))
            given = [foreign(place, other, each[number], operation) for other, each in zip(others, theirs, strict=True)]
            before = [footprint(other) for other in others]
            answers = []
            for value in (*(value for value in given if value is not None), unknown(place, own)):
                request = _timely(variants[number]).with_value(operation, place, value)
                answer = request.send(asker, operation.method)
                answers.append(comparable(answer, value))
                if answer.status_code < 300 and operation.method != "GET":
                    # It took place: the next one finds everything as this one did.
                    asker = make()
                    variants = prepare(asker)
            *of_neighbours, of_nobody = answers
            found += [f"{operation_id} {place}: {each} but {of_nobody}" for each in of_neighbours if each != of_nobody]
            if [footprint(other) for other in others] != before:
                found.append(f"{operation_id} {place} has moved a neighbour's books")
    assert operation.ids <= covered, f"{operation_id}: give the probe a request with {operation.ids - covered}"
    # With a key that the neighbour has used, too.
    before = [footprint(other) for other in others]
    for index, request in enumerate(variants):
        answer = _timely(request).send(asker, operation.method, keys[0])
        text = answer.content.decode()
        if index == 0 or operation.method == "GET":
            assert answer.status_code < 300, f"the own request is refused, so the probes prove nothing: {text}"
            assert "Idempotency-Replayed" not in answer.headers
        for other in others:
            names = (other.tenant_id, other.program_id, *(loan.loan_id for loan in other.loans))
            found += [f"{operation_id} shows {name} of a neighbour" for name in names if name in text]
    if [footprint(other) for other in others] != before:
        found.append(f"{operation_id} has moved a neighbour's books")
    return found


def _timely(request: Request) -> Request:
    if isinstance(request.body, dict) and request.body.get("since") == "{now}":
        from datetime import UTC, datetime

        request.body = {"since": f"{datetime.now(UTC):%Y-%m-%dT00:00:00Z}"}
    return request


@pytest.fixture
def make(make_lender: Callable[..., Lender], settings: Any) -> Callable[[], Lender]:
    settings.WEBHOOK_ALLOW_PRIVATE_TARGETS = True
    return make_lender


@pytest.mark.parametrize("operation_id", sorted(PROBES))
def test_a_neighbours_rows_answer_like_rows_that_nobody_has(operation_id: str, make: Callable[[], Lender]) -> None:
    assert differences(operation_id, make, neighbours=2) == []


# --- One wall alone --------------------------------------------------------------------------------------------------

FILTER = re.compile(r"\b((?:\w+\.)?tenant_id|\bt\.id)\s*=\s*(%\(tenant\)s|%s|v_tenant|p_tenant)")
TENANT_ROW = re.compile(r"(FROM tenant (?:\w+ )?WHERE (?:\w+\.)?id) = (%\(tenant\)s)")


def _unfiltered(text: str, tenant_row: bool = True) -> str:
    if tenant_row:
        text = TENANT_ROW.sub(r"\1 IS NOT NULL AND \2::uuid IS NOT NULL", text)
    return FILTER.sub(r"(\1 IS NOT NULL AND \2::uuid IS NOT NULL)", text)


@contextmanager
def no_filter(monkeypatch: pytest.MonkeyPatch, *, at_least: int = 100, tenant_row: bool = True) -> Iterator[None]:
    """No statement of the application asks for its tenant's rows alone: neither its reads nor the write path's functions.

    `tenant_row`: not for the row of the tenant itself, either; without any wall that would be many rows where one is due.
    """
    monkeypatch.setattr(TenantManager, "get_queryset", lambda self: models.Manager.get_queryset(self))
    rewritten = 0

    def execute(run: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal rewritten
        changed = sql if sql.lstrip().upper().startswith("INSERT") else _unfiltered(sql, tenant_row)
        rewritten += changed != sql
        return run(changed, params, many, context)

    url = os.environ["HPTS_SUPERUSER_DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as superuser, connection.execute_wrapper(execute):
        functions = superuser.execute(
            """SELECT pg_get_functiondef(p.oid) FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
               WHERE p.pronamespace = 'public'::regnamespace AND l.lanname = 'plpgsql' AND p.prorettype <> 'trigger'::regtype"""
        ).fetchall()
        changed = [text for (text,) in functions if _unfiltered(text) != text]
        assert changed, "the write path's functions no longer filter as this test thinks"
        try:
            for text in changed:
                superuser.execute(_unfiltered(text).encode())
            yield
        finally:
            for text in changed:
                superuser.execute(text.encode())
    assert rewritten >= at_least, "the application's reads no longer filter as this test thinks"


@contextmanager
def no_row_security() -> Iterator[None]:
    """Row security lets this database's rows through to everybody, as to a role that bypasses it."""
    with psycopg.connect(os.environ["HPTS_SUPERUSER_DATABASE_URL"], autocommit=True) as superuser:
        tables = superuser.execute("SELECT oid::regclass::text FROM pg_class WHERE relrowsecurity").fetchall()
        assert len(tables) > 20
        try:
            for (table,) in tables:
                superuser.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")  # type: ignore[call-overload]
            yield
        finally:
            for (table,) in tables:
                superuser.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")  # type: ignore[call-overload]


def test_row_security_alone_keeps_neighbours_apart(make: Callable[[], Lender], monkeypatch: pytest.MonkeyPatch) -> None:
    with no_filter(monkeypatch):
        assert [each for operation_id in PROBES for each in differences(operation_id, make, neighbours=1)] == []


def test_the_applications_filter_alone_keeps_neighbours_apart(make: Callable[[], Lender]) -> None:
    with no_row_security():
        assert [each for operation_id in PROBES for each in differences(operation_id, make, neighbours=1)] == []


def test_without_either_wall_neighbours_see_each_other(
    acme: Lender, zenith: Lender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the two tests above would have switched off nothing."""
    entry_id = zenith.api.pay(zenith.loan, 5, "2026-01-05")["journal_entry_id"]
    code = own_account(zenith)
    paths = (
        f"/v1/loans/{zenith.loan.loan_id}",
        f"/v1/loans/{zenith.loan.loan_id}/balance",
        f"/v1/programs/{zenith.program_id}",
        f"/v1/journal-entries/{entry_id}",
        f"/v1/accounts/{code}/balance?currency=USD",
    )
    for path in paths:
        assert acme.api.call("GET", path).status_code == 404
    with no_row_security(), no_filter(monkeypatch, at_least=1, tenant_row=False):
        for path in paths:
            assert acme.api.call("GET", path).status_code == 200, path


# --- One connection --------------------------------------------------------------------------------------------------


def test_two_tenants_take_turns_on_one_connection_and_neither_sees_the_other(acme: Lender, zenith: Lender) -> None:
    """A pooled connection forgets its tenant with each transaction; refused and broken requests between do not change that."""
    requests = 10_000 if os.environ.get(LONG) else 400
    backends = set()
    for lender, amount in ((acme, 1), (zenith, 1_000_000)):
        lender.api.pay(lender.loan, amount, "2026-01-05")
    for number in range(requests // 4):
        for lender, other, amount in ((acme, zenith, 1), (zenith, acme, 1_000_000)):
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid(), coalesce(current_setting('hpts.tenant_id', true), '')")
                pid, left_over = cursor.fetchone()
            backends.add(pid)
            assert left_over == ""
            if number % 3 == 0:
                listed = shown(lender.api.get("/v1/loans"))["items"]
                assert {item["loan_id"] for item in listed} == {loan.loan_id for loan in lender.loans}
            else:
                assert lender.api.normal_balance("2000") == amount * (1 + number // 10)
            if number % 10 == 9:
                lender.api.pay(lender.loan, amount, "2026-01-05")
            elif number % 2:
                # Refused in the middle of a transaction.
                body = {"reverses_entry_id": str(uuid.uuid4()), "reason_code": "fraud"}
                assert lender.api.post("/v1/reversals", body).status_code == 422
            else:
                assert lender.api.get(f"/v1/loans/{other.loan.loan_id}").status_code == 404
    assert len(backends) == 1
