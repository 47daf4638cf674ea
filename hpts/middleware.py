"""What every request passes: its identity, its line in the log, its headers. And what only the pages of people pass: sessions,
forgery protection, messages."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import Any, ClassVar

from django.conf import settings
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware

from hpts import logs, metrics, problems

GetResponse = Callable[[HttpRequest], HttpResponse]

# On every answer. A page of the admin or of a problem may load what it shows; the docs say so themselves.
POLICY = "default-src 'none'; frame-ancestors 'none'"
POLICIES = {
    "/admin/": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'none'; object-src 'none'",
    "/problems/": f"{POLICY}; style-src 'unsafe-inline'",
}
SECURITY_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
# What one tenant was told must not wait in a cache for another; the open pages say themselves how long they keep.
UNCACHED = ("/v1/", "/admin/", "/metrics")

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


class RequestIdentity:
    """Gives the request its id (answered as X-Request-Id) and its correlation id, and refuses NUL anywhere in the URL.
    Says how long the answer is.

    The correlation id is the trace id of a W3C `traceparent`, written as a UUID, else a new one.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        began = time.perf_counter()
        request.request_id = str(uuid.uuid4())  # type: ignore[attr-defined]
        request.correlation_id = correlation_id(request.META.get("HTTP_TRACEPARENT"))  # type: ignore[attr-defined]
        ids = {"request_id": request.request_id, "correlation_id": request.correlation_id}  # type: ignore[attr-defined]
        with logs.about(**ids):
            response = self._answer(request)
            seconds = time.perf_counter() - began
            metrics.count_request(request, response, seconds)
            logs.answered(metrics.operation_of(request), request, response, seconds)
        return response

    def _answer(self, request: HttpRequest) -> HttpResponse:
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
        for name, value in SECURITY_HEADERS.items():
            response.setdefault(name, value)
        response.setdefault("Content-Security-Policy", POLICIES.get(_part(request.path_info), POLICY))
        if settings.SECURE_HSTS_SECONDS:
            # TLS ends in front of us, so that Django's own middleware would not know when to say it.
            response.setdefault(
                "Strict-Transport-Security", f"max-age={settings.SECURE_HSTS_SECONDS}; includeSubDomains"
            )
        if request.path_info.startswith(UNCACHED):
            response.setdefault("Cache-Control", "no-store")
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """What a plain view raises is a problem too; the admin shows pages of its own."""
        if request.path_info.startswith("/admin/"):
            return None
        return problems.response(problems.problem_of(exception), request.request_id)  # type: ignore[attr-defined]


def _part(path: str) -> str:
    """The part of the site that a path is in: `/admin/`."""
    return f"/{path[1:].partition('/')[0]}/"


class ShortWay:
    """A request of the API goes to its view at once, past the middlewares behind this one: pages need those."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self.views = Views.entrance

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.views(request) if request.path_info.startswith("/v1/") else self.get_response(request)


class Views:
    """The last middleware: behind it are the views."""

    entrance: ClassVar[GetResponse]

    def __init__(self, get_response: GetResponse) -> None:
        # Middlewares are made from the last one to the first, so ShortWay finds the entrance of its own chain.
        Views.entrance = staticmethod(get_response)
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)


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


# Where people come by browser; the API's path does not pay for sessions.
PAGES = ("/admin/", "/oauth2/authorize")


class _AdminOnly:
    """A middleware of Django's for the pages of people alone."""

    get_response: Any

    def __call__(self, request: HttpRequest) -> Any:
        if request.path_info.startswith(PAGES):
            return super().__call__(request)  # type: ignore[misc]
        return self.get_response(request)


class AdminSessions(_AdminOnly, SessionMiddleware):
    pass


class AdminForgeryProtection(_AdminOnly, CsrfViewMiddleware):
    def process_view(self, request: HttpRequest, callback: Any, args: Any, kwargs: Any) -> Any:
        if request.path_info.startswith(PAGES):
            return super().process_view(request, callback, args, kwargs)
        return None


class AdminUsers(_AdminOnly, AuthenticationMiddleware):
    pass


class AdminMessages(_AdminOnly, MessageMiddleware):
    pass
