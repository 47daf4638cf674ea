"""What every request passes: its identity. And what only the admin passes: sessions, forgery protection, messages."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

from axes.middleware import AxesMiddleware
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django_otp.middleware import OTPMiddleware

from hpts import problems

GetResponse = Callable[[HttpRequest], HttpResponse]

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


class RequestIdentity:
    """Gives the request its id (answered as X-Request-Id) and its correlation id, and refuses NUL anywhere in the URL.
    Says how long the answer is.

    The correlation id is the trace id of a W3C `traceparent`, written as a UUID, else a new one.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        request.request_id = str(uuid.uuid4())  # type: ignore[attr-defined]
        request.correlation_id = correlation_id(request.META.get("HTTP_TRACEPARENT"))  # type: ignore[attr-defined]
        if "\x00" in request.path_info or "%00" in request.META.get("QUERY_STRING", ""):
            problem: problems.Problem = problems.ValidationFailed("The URL holds a NUL character.")
            response = problems.response(problem, request.request_id)  # type: ignore[attr-defined]
        elif not _known_host(request):
            problem = problems.ValidationFailed("The Host header names no host of this server.")
            response = problems.response(problem, request.request_id)  # type: ignore[attr-defined]
        else:
            response = self.get_response(request)
        response["X-Request-Id"] = request.request_id  # type: ignore[attr-defined]
        if not response.streaming and "Content-Length" not in response and response.status_code != 204:
            # Else the server sends chunks, which are two more writes to the socket.
            response["Content-Length"] = str(len(response.content))
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """What a plain view raises is a problem too; the admin shows pages of its own."""
        if request.path_info.startswith("/admin/"):
            return None
        return problems.response(problems.problem_of(exception), request.request_id)  # type: ignore[attr-defined]


def _known_host(request: HttpRequest) -> bool:
    try:
        request.get_host()
    except DisallowedHost:
        return False
    return True


def correlation_id(traceparent: str | None) -> str:
    """The trace id of `traceparent` as a UUID; a new UUID when there is none, or none that is valid."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None or match[1] == "0" * 32 or traceparent[:2] == "ff":  # type: ignore[index]
        return str(uuid.uuid4())
    return str(uuid.UUID(match[1]))


class _AdminOnly:
    """A middleware of Django's for /admin/ alone; the API's path does not pay for it."""

    get_response: Any

    def __call__(self, request: HttpRequest) -> Any:
        if request.path_info.startswith("/admin/"):
            return super().__call__(request)  # type: ignore[misc]
        return self.get_response(request)


class AdminSessions(_AdminOnly, SessionMiddleware):
    pass


class AdminForgeryProtection(_AdminOnly, CsrfViewMiddleware):
    def process_view(self, request: HttpRequest, callback: Any, args: Any, kwargs: Any) -> Any:
        if request.path_info.startswith("/admin/"):
            return super().process_view(request, callback, args, kwargs)
        return None


class AdminUsers(_AdminOnly, AuthenticationMiddleware):
    pass


class AdminMessages(_AdminOnly, MessageMiddleware):
    pass


class AdminSecondFactor(_AdminOnly, OTPMiddleware):  # type: ignore[misc]
    """Knows whether the session's user has shown a second factor; hpts/access.py asks only when it is wanted."""


class AdminThrottle(_AdminOnly, AxesMiddleware):  # type: ignore[misc]
    """Answers a sign-in after too many failures."""


# Everything comes from this server, and no script or style stands in a page: what someone manages to write into one is text.
CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)


class AdminContentPolicy:
    """Says what the admin's pages may load and run, and that no cache keeps them."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if request.path_info.startswith("/admin/"):
            response["Content-Security-Policy"] = CONTENT_POLICY
            response["Cache-Control"] = "no-store"
        return response
