"""Logs: one JSON object a line, with the same members wherever a line comes from.

A line names ids (tenant, client, correlation, request) and never amounts, names, bodies, query strings, keys or tokens. What
looks like a secret is struck out of every line, and of a database's error only its kind is told, because its text quotes rows.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Any

import msgspec
from django.db import Error as DatabaseError
from django.http import HttpRequest, HttpResponse
from psycopg import Error as PsycopgError

requests = logging.getLogger("hpts.request")

SECRETS = re.compile(
    r"eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.?[A-Za-z0-9_-]*"  # JSON Web Tokens
    r"|whsec_[A-Za-z0-9+/=_-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|(?i:(?:client_secret|password|authorization|access_token)[\"']?\s*[=:]\s*)"
    r"(?:[\"'][^\"']*[\"']|(?i:bearer |basic )?[^\s\"'&,}]+)"
    r"|(?i:bearer|basic) [A-Za-z0-9._~+/=-]{12,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)",  # a URL's user and password
    re.DOTALL,
)
STRUCK_OUT = "[struck out]"
MAX_FRAMES = 40

_NOTHING: MappingProxyType[str, Any] = MappingProxyType({})
_context: ContextVar[Mapping[str, Any]] = ContextVar("log_context", default=_NOTHING)


@contextmanager
def about(**members: Any) -> Iterator[None]:
    """Every line inside the block has these members."""
    token = _context.set({**_context.get(), **members})
    try:
        yield
    finally:
        _context.reset(token)


def bind(**members: Any) -> None:
    """Every further line of this request has these members, too."""
    _context.set({**_context.get(), **members})


class JSONLines(logging.Formatter):
    """A record as one line of JSON. What is given as `extra={"members": {...}}` stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **_context.get(),
            **getattr(record, "members", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = told(record.exc_info[1])
        return msgspec.json.encode(_struck_out(line)).decode()


def _struck_out(value: Any) -> Any:
    """The value with every text in it freed of what looks like a secret, and of what is no text at all."""
    if isinstance(value, dict):
        return {str(name): _struck_out(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_struck_out(each) for each in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return SECRETS.sub(STRUCK_OUT, str(value).encode("utf-8", "backslashreplace").decode())


def _message(record: logging.LogRecord) -> str:
    if record.args and any(isinstance(each, DatabaseError | PsycopgError) for each in _arguments(record)):
        arguments = tuple(_named(each) for each in _arguments(record))
        return str(record.msg) % arguments
    return record.getMessage()


def _arguments(record: logging.LogRecord) -> tuple[object, ...]:
    return record.args if isinstance(record.args, tuple) else ()


def _named(value: object) -> object:
    return _kind(value) if isinstance(value, DatabaseError | PsycopgError) else value


def told(error: BaseException) -> list[dict[str, Any]]:
    """An exception and what caused it, outermost first: kinds, words where they are harmless, and places in the code."""
    chain: list[dict[str, Any]] = []
    current: BaseException | None = error
    while current is not None and len(chain) < 5:
        chain.append({"kind": _kind(current), "at": _frames(current.__traceback__)})
        if not isinstance(current, DatabaseError | PsycopgError):
            chain[-1]["text"] = str(current)[:500]
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain


def _kind(error: BaseException) -> str:
    sqlstate = getattr(error, "sqlstate", None) or getattr(error.__cause__, "sqlstate", None)
    constraint = getattr(getattr(error, "diag", None), "constraint_name", None)
    more = " ".join(str(each) for each in (sqlstate, constraint) if each)
    return f"{type(error).__name__} {more}".strip()


def _frames(trace: TracebackType | None) -> list[str]:
    frames = traceback.extract_tb(trace)[-MAX_FRAMES:]
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]


def answered(operation: str, request: HttpRequest, response: HttpResponse, seconds: float) -> None:
    """The line of a request."""
    if not requests.isEnabledFor(logging.INFO):
        return
    members: dict[str, Any] = {
        "operation": operation,
        "method": request.method,
        "status": response.status_code,
        "duration_ms": round(seconds * 1_000, 2),
    }
    code = getattr(response, "problem_code", None)
    if code is not None:
        members["code"] = code
    if "Idempotency-Replayed" in response:
        members["replayed"] = True
    requests.info("request", extra={"members": members})
