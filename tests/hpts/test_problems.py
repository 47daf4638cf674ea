"""Every error is a problem to the letter, wherever it comes from, and says nothing that is not the caller's business."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import psycopg
import pytest
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import DatabaseError, OperationalError, ProgrammingError, connection
from django.http import Http404
from django.test import RequestFactory

from hpts import problems
from ledger.views import Accounts
from tests.conftest import HTTP, Api, Lender, in_books_of, new_key, payment_of, posted, refused, shown

Unmoved = Callable[[], AbstractContextManager[None]]
CATALOGUE = list(problems.catalogue())
CODES = [kind.code for kind in CATALOGUE]

# The contract's codes; and those of breaks and of proposals, which it does not name.
CONTRACT = {
    400: "validation_failed malformed_json idempotency_key_required idempotency_key_invalid invalid_page_token",
    401: "invalid_token",
    403: "insufficient_scope client_certificate_required",
    404: "not_found not_sealed_yet",
    405: "method_not_allowed",
    406: "not_acceptable",
    409: "idempotency_in_progress already_reversed already_settled already_returned accrual_already_posted "
    "duplicate_external_ref loan_exists program_exists plan_outdated already_resolved proposal_decided",
    412: "loan_changed",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "idempotency_mismatch loan_not_found borrower_mismatch currency_mismatch account_not_found unbalanced_entry "
    "amount_exceeds_balance amount_exceeds_limit amount_out_of_range account_closed entry_not_found program_not_found "
    "accrual_mode_refuses loan_state_refuses effective_date_refused period_closed not_reversible resolution_refused "
    "own_proposal",
    429: "rate_limited",
    500: "internal_error",
    503: "busy unavailable",
}


# --- The catalogue ---------------------------------------------------------------------------------------------------


def test_codes_and_statuses_are_those_of_the_contract() -> None:
    known = {code: status for status, codes in CONTRACT.items() for code in codes.split()}
    for kind in CATALOGUE:
        assert known.get(kind.code) == kind.status, (
            f"{kind.__name__} is not in the contract as {kind.status} {kind.code}"
        )


def test_each_code_is_one_class() -> None:
    assert len(CODES) == len(set(CODES))


def test_each_kind_says_what_it_means() -> None:
    for kind in CATALOGUE:
        assert kind.title, kind
        assert (kind.__doc__ or "").strip(), f"{kind.__name__} needs a docstring: it is what its page shows"


@pytest.mark.parametrize("code", CODES)
def test_each_code_has_its_page(code: str) -> None:
    answer = HTTP.get(f"/problems/{code}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    kind = next(kind for kind in CATALOGUE if kind.code == code)
    page = answer.content.decode()
    assert code in page
    assert str(kind.status) in page


@pytest.mark.parametrize("code", ["nothing", "NOT_FOUND", "not-found", "", "x" * 65, "<script>", "not_found/"])
def test_an_unknown_code_has_no_page(code: str) -> None:
    refused(HTTP.get(f"/problems/{code}"), 404, "not_found")


# --- Errors before and beside the API's views ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/v1/nothing",
        "/v1/payments/",
        "/v1/Payments",
        "/v1//payments",
        "/v2/payments",
        "/nothing",
        "/favicon.ico",
        "/v1/loans/x",
        "/v1/accounts/12a4/balance",
        "/v1/../v1/payments",
        "/%ff",
        "/v1/%e2%82",
        "/wp-login.php",
        "/.env",
        "/" + "x" * 10_000,
        "/v1/payments;jsessionid=1",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_not_found(path: str, method: str) -> None:
    refused(HTTP.generic(method, path), 404, "not_found")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "\u0130"])
def test_a_known_path_refuses_other_methods_without_a_token(method: str) -> None:
    answer = HTTP.generic(method, "/v1/payments")
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/health/live", "/v1/health/ready", "/.well-known/jwks.json"])
def test_a_plain_view_refuses_other_methods(path: str) -> None:
    answer = HTTP.post(path)
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "a b", "local\x00host", "é", "[::1", "@localhost", "x" * 300]
)
@pytest.mark.parametrize("path", ["/v1/accounts", "/v1/health/live", "/nothing"])
def test_another_host_is_refused(api: Api, host: str, path: str) -> None:
    refused(api.get(path, HTTP_HOST=host), 400, "validation_failed")


def test_a_post_to_another_host_posts_nothing(acme: Lender, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        answer = acme.api.post("/v1/payments", payment_of(acme.loan), HTTP_HOST="evil.example")
        refused(answer, 400, "validation_failed")


@pytest.mark.parametrize("host", ["localhost", "localhost:3000", "127.0.0.1:3000", "[::1]:3000", "LOCALHOST"])
def test_our_own_hosts_are_ours(api: Api, host: str) -> None:
    shown(api.get("/v1/accounts", HTTP_HOST=host))


def test_a_forwarded_host_is_not_believed(api: Api) -> None:
    refused(
        api.get("/v1/accounts", HTTP_HOST="evil.example", HTTP_X_FORWARDED_HOST="localhost"), 400, "validation_failed"
    )


def test_every_request_has_an_id_of_its_own(api: Api) -> None:
    answers = [api.get("/v1/accounts"), api.get("/v1/accounts"), api.get("/nothing"), api.get("/v1/health/live")]
    ids = [answer.headers["X-Request-Id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    asked_for = api.get("/v1/accounts", headers={"X-Request-Id": "mine\r\nSet-Cookie: a=b"})
    assert asked_for.headers["X-Request-Id"] not in ("mine", *ids)


def test_answers_are_not_kept_sniffed_or_framed(api: Api) -> None:
    for answer in (api.get("/v1/accounts"), api.get("/nothing")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "Server" not in answer.headers
        assert "Set-Cookie" not in answer.headers


# --- Errors of our own -----------------------------------------------------------------------------------------------

SECRET = "s3cr3t SELECT * FROM loan WHERE tenant_id = '1' /srv/app/views.py"


def boom(*args: object, **kwargs: object) -> Any:
    raise RuntimeError(SECRET)


def leaks_nothing(answer: Any) -> None:
    everything = answer.content.decode() + str(dict(answer.headers))
    for word in ("s3cr3t", "SELECT", "tenant_id", ".py", "Traceback", "RuntimeError", "psycopg", "postgres"):
        assert word not in everything, everything


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("ledger.queries.accounts", "/v1/accounts"),
        ("ledger.queries.today", "/v1/trial-balance?currency=USD"),
        ("hpts.auth.VerifiedTokens.principal", "/v1/accounts"),
        ("hpts.views.APIViewSet.query", "/v1/accounts"),
        ("hpts.rendering.JSONOnly.select_renderer", "/v1/accounts"),
        ("hpts.health.answer", "/v1/health/live"),
        ("hpts.problems.escape", "/problems/not_found"),
        ("hpts.oauth.signing_keys", "/.well-known/jwks.json"),
    ],
)
def test_a_fault_of_ours_tells_nothing_but_its_id(
    api: Api, monkeypatch: Any, caplog: Any, target: str, path: str
) -> None:
    api.token()
    monkeypatch.setattr(target, boom)
    answer = api.call("GET", path.partition("?")[0], QUERY_STRING=path.partition("?")[2])
    refused(answer, 500, "internal_error")
    leaks_nothing(answer)
    assert SECRET in caplog.text, "the trace is in our log"


@pytest.mark.parametrize(
    "target",
    [
        "ledger.views.fingerprint",
        "ledger.posting.Posting.post",
        "ledger.posting.Posting.record",
        "ledger.document.render",
        "hpts.fields.read_json",
    ],
)
def test_a_fault_in_a_write_moves_nothing(acme: Lender, monkeypatch: Any, nothing_moves: Unmoved, target: str) -> None:
    with nothing_moves(), monkeypatch.context() as patch:
        patch.setattr(target, boom)
        answer = acme.api.post("/v1/payments", payment_of(acme.loan))
        refused(answer, 500, "internal_error")
        leaks_nothing(answer)
    posted(acme.api.post("/v1/payments", payment_of(acme.loan)))


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeError(SECRET), 500, "internal_error"),
        (RecursionError(SECRET), 500, "internal_error"),
        (MemoryError(SECRET), 500, "internal_error"),
        (ProgrammingError(SECRET), 500, "internal_error"),
        (OperationalError(SECRET), 503, "unavailable"),
        (Http404(SECRET), 404, "not_found"),
        (problems.Busy(), 503, "busy"),
        (problems.RateLimited(), 429, "rate_limited"),
        (problems.Unavailable(), 503, "unavailable"),
        (problems.ClientCertificateRequired(), 403, "client_certificate_required"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/accounts", "/v1/health/live"])
def test_whatever_a_view_raises_is_a_problem(
    api: Api, monkeypatch: Any, error: BaseException, status: int, code: str, path: str
) -> None:
    def fail(*args: object, **kwargs: object) -> Any:
        raise error

    monkeypatch.setattr("ledger.queries.accounts" if "accounts" in path else "hpts.health.answer", fail)
    answer = api.get(path)
    refused(answer, status, code)
    leaks_nothing(answer)


@pytest.mark.parametrize("error", [PermissionDenied(SECRET), SuspiciousOperation(SECRET), DatabaseError(SECRET)])
def test_what_django_itself_raises_is_a_problem(api: Api, monkeypatch: Any, error: BaseException) -> None:
    def fail(*args: object, **kwargs: object) -> Any:
        raise error

    monkeypatch.setattr("ledger.queries.accounts", fail)
    answer: Any = api.get("/v1/accounts")
    problem = refused(answer, answer.status_code, answer.json()["code"])
    assert problem["status"] >= 400
    leaks_nothing(answer)


# --- When others are in the way --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["lock_timeout", "statement_timeout"])
def test_a_loan_that_is_held_for_too_long_is_busy(acme: Lender, nothing_moves: Unmoved, limit: str) -> None:
    """Never a refusal of the ledger's, never a 500; and the key stays free."""
    key, body = new_key(), payment_of(acme.loan)
    with nothing_moves(), in_books_of(acme.tenant_id, url="HPTS_OWNER_DATABASE_URL") as holder:
        holder.execute("SELECT FROM loan WHERE id = %s FOR UPDATE", (acme.loan.loan_id,))
        with connection.cursor() as cursor:
            cursor.execute(f"SET {limit} = '50ms'")
        try:
            refused(acme.api.post("/v1/payments", body, key=key), 503, "busy")
        finally:
            with connection.cursor() as cursor:
                cursor.execute(f"RESET {limit}")
    posted(acme.api.post("/v1/payments", body, key=key))


# --- Without a database ----------------------------------------------------------------------------------------------


@pytest.fixture
def no_database(monkeypatch: Any) -> Any:
    """This thread's connection leads to a port where nobody listens; afterwards it is as before."""
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "HOST", "127.0.0.1")
    monkeypatch.setitem(connection.settings_dict, "PORT", "1")
    yield
    connection.close()


def test_without_a_database_requests_may_be_repeated(
    acme: Lender, request: pytest.FixtureRequest, nothing_moves: Unmoved
) -> None:
    acme.api.token()
    with nothing_moves():
        request.getfixturevalue("no_database")
        for answer in (
            acme.api.post("/v1/payments", payment_of(acme.loan)),
            acme.api.get("/v1/accounts"),
            acme.api.get(f"/v1/loans/{acme.loan.loan_id}/balance"),
        ):
            refused(answer, 503, "unavailable")
            leaks_nothing(answer)


def test_a_token_is_not_refused_because_the_database_is_away(acme: Lender, request: pytest.FixtureRequest) -> None:
    """A client that was told 401 would throw its token away; this one has never been seen before."""
    token = acme.api.token(["hpts:balances:read"])
    request.getfixturevalue("no_database")
    answer = acme.api.get("/v1/accounts", headers={"Authorization": f"Bearer {token}"}, scopes=None)
    refused(answer, 503, "unavailable")


def test_a_connection_that_died_is_replaced(acme: Lender) -> None:
    """As after a restart of the database: the next request does not pay for it."""
    shown(acme.api.get("/v1/accounts"))
    assert connection.connection is not None
    backend = connection.connection.info.backend_pid
    with psycopg.connect(os.environ["HPTS_SUPERUSER_DATABASE_URL"], autocommit=True) as administrator:
        administrator.execute("SELECT pg_terminate_backend(%s, 5000)", (backend,))
    posted(acme.api.post("/v1/payments", payment_of(acme.loan)))


def test_an_answer_leaves_memory_with_its_request() -> None:
    """View and request point to each other; an answer that hung on them would stay until the collector comes."""
    gc.collect()
    gc.disable()
    try:
        request = RequestFactory().get("/v1/accounts")
        request.request_id = "11111111-1111-1111-1111-111111111111"  # type: ignore[attr-defined]
        answer = Accounts.as_view({"get": "list"})(request)
        kept = weakref.ref(answer)
        del answer
        assert kept() is None
    finally:
        gc.enable()
