"""Errors: what a refusal is, and the one place that turns every error into `application/problem+json` (RFC 9457).

A refusal is a class of four lines here or in `ledger/errors.py`. Anything that is no Problem is a programmer's error: it
is logged with its trace and answered as 500 without a word of its text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import msgspec
from django.core.exceptions import RequestDataTooBig, TooManyFieldsSent
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.html import escape
from rest_framework import exceptions as drf

logger = logging.getLogger("hpts.problems")
CONTENT_TYPE = "application/problem+json"


class FieldProblem(NamedTuple):
    """One wrong field: a dotted path (`lines.2.amount_minor`), a code, a sentence."""

    field: str
    code: str
    message: str


class Problem(Exception):
    """A refusal that the caller can read. Subclasses set `status`, `code` and `title`; `detail` is the sentence."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str = "", errors: list[FieldProblem] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail or f"{self.title}."
        self.errors = errors or []


class InternalError(Problem):
    """Something is wrong on our side; it has been logged under the request's id."""


class ValidationFailed(Problem):
    """The request does not have the shape that the operation asks for. `errors` names every wrong field."""

    status, code, title = 400, "validation_failed", "The request is not valid"


class MalformedJSON(Problem):
    """The body is not one JSON document in UTF-8, or has a member twice."""

    status, code, title = 400, "malformed_json", "The body is not JSON"


class IdempotencyKeyRequired(Problem):
    """Every POST needs the header Idempotency-Key."""

    status, code, title = 400, "idempotency_key_required", "An Idempotency-Key is required"


class IdempotencyKeyInvalid(Problem):
    """The key is 8 to 255 characters, begins with a letter or digit, and goes on with those, dot, underscore, colon, dash."""

    status, code, title = 400, "idempotency_key_invalid", "The Idempotency-Key is not valid"


class InvalidPageToken(Problem):
    """The page token was not given out by this list with these filters."""

    status, code, title = 400, "invalid_page_token", "The page token is not valid"


class InvalidToken(Problem):
    """The bearer token is missing, or not one that this server accepts."""

    status, code, title = 401, "invalid_token", "The access token is not valid"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer error="invalid_token"'}


class InsufficientScope(Problem):
    """The token is good and does not carry the operation's scope."""

    status, code, title = 403, "insufficient_scope", "The token lacks the scope"


class ClientCertificateRequired(Problem):
    """The partner host is open to holders of a client certificate alone."""

    status, code, title = 403, "client_certificate_required", "A client certificate is required"


class NotFound(Problem):
    """No such path, or no such row of this tenant."""

    status, code, title = 404, "not_found", "Not found"


class MethodNotAllowed(Problem):
    """The path exists and does not take this method."""

    status, code, title = 405, "method_not_allowed", "Method not allowed"

    def __init__(self, allowed: list[str]) -> None:
        super().__init__(f"Allowed here: {', '.join(allowed)}.")
        self.headers = {"Allow": ", ".join(allowed)}  # type: ignore[misc]


class NotAcceptable(Problem):
    """The answers are application/json."""

    status, code, title = 406, "not_acceptable", "Not acceptable"


class PayloadTooLarge(Problem):
    """The body is larger than the operation takes."""

    status, code, title = 413, "payload_too_large", "The body is too large"


class UnsupportedMediaType(Problem):
    """Bodies are application/json in UTF-8, not compressed."""

    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


class IdempotencyInProgress(Problem):
    """The first request with this key is still running."""

    status, code, title = 409, "idempotency_in_progress", "The first request with this key is still running"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}


class IdempotencyMismatch(Problem):
    """The key was used for another request. Nothing was written."""

    status, code, title = 422, "idempotency_mismatch", "The Idempotency-Key was used for another request"


class RateLimited(Problem):
    """The client, or all clients of the tenant together, have used up their quota of requests."""

    status, code, title = 429, "rate_limited", "Too many requests"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}

    def __init__(self, detail: str = "", errors: list[FieldProblem] | None = None, *, retry_after: int = 1) -> None:
        super().__init__(detail, errors)
        self.headers = {"Retry-After": str(retry_after)}  # type: ignore[misc]


class Busy(Problem):
    """Others hold what the request needs for too long. Nothing was written; repeat with the same key."""

    status, code, title = 503, "busy", "Busy"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}


class Unavailable(Problem):
    """The database cannot be reached, or went away. Repeat with the same key: it can never post twice."""

    status, code, title = 503, "unavailable", "Unavailable"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "2"}


def response(problem: Problem, request_id: str) -> HttpResponse:
    """The problem as an HTTP answer. Members: type, title, status, detail, instance, code, and errors when there are any."""
    body: dict[str, Any] = {
        "type": f"/problems/{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": request_id,
        "code": problem.code,
    }
    if problem.errors:
        body["errors"] = [error._asdict() for error in problem.errors]
    answer = HttpResponse(
        msgspec.json.encode(body), status=problem.status, content_type=CONTENT_TYPE, headers=dict(problem.headers)
    )
    # For the log and the counters, which do not read bodies.
    answer.problem_code = problem.code  # type: ignore[attr-defined]
    return answer


def problem_of(error: BaseException) -> Problem:
    """The problem that an exception is for the caller. Unknown ones are logged here, and only here."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Http404):
        return NotFound()
    if isinstance(error, drf.UnsupportedMediaType | drf.ParseError):
        return UnsupportedMediaType()
    if isinstance(error, drf.NotAuthenticated | drf.AuthenticationFailed):
        return InvalidToken()
    if isinstance(error, RequestDataTooBig | TooManyFieldsSent):
        return PayloadTooLarge()
    if isinstance(error, OperationalError | InterfaceError):
        logger.error("database unavailable: %s", type(error).__name__, exc_info=error)
        return Unavailable()
    logger.error("unexpected %s", type(error).__name__, exc_info=error)
    return InternalError("Something went wrong on our side. It has been recorded under this request's id.")


def exception_handler(error: Exception, context: Mapping[str, Any]) -> HttpResponse:
    """Django REST framework's handler: everything that a view raises ends here."""
    return response(problem_of(error), context["request"].request_id)


def _request_id(request: HttpRequest) -> str:
    return getattr(request, "request_id", "unknown")


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler400: a host or a header that Django itself refuses, before any view."""
    error = exception if isinstance(exception, RequestDataTooBig) else ValidationFailed("The request is malformed.")
    return response(problem_of(error), _request_id(request))


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    return response(InsufficientScope(), _request_id(request))


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return response(NotFound(), _request_id(request))


def server_error(request: HttpRequest) -> HttpResponse:
    return response(InternalError(), _request_id(request))


def catalogue() -> Iterator[type[Problem]]:
    """Every kind of problem, by status and code. `docs/errors.md` lists the same."""

    def below(kind: type[Problem]) -> Iterator[type[Problem]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return iter(sorted(set(below(Problem)), key=lambda kind: (kind.status, kind.code)))


def page(request: HttpRequest, code: str) -> HttpResponse:
    """GET /problems/<code>: what the `type` member of a problem points to."""
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed(["GET", "HEAD"])
    for kind in catalogue():
        if kind.code == code:
            return HttpResponse(
                "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
                f"<title>{escape(kind.title)}</title><body style='font:16px/1.5 system-ui;max-width:40rem;margin:3rem auto'>"
                f"<h1>{escape(kind.title)}</h1><p><code>{escape(code)}</code> · HTTP {kind.status}</p>"
                f"<p>{escape((kind.__doc__ or '').strip())}</p></body></html>"
            )
    raise NotFound()
