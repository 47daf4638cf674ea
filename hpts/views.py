"""What every API view does in the same order, before and around its own three lines.

Method (405), token (401), scope (403), size and type (413, 415, 406), JSON (400), key (400), shape (400): then the view.
"""

from __future__ import annotations

import re
from io import BytesIO
from typing import Any, ClassVar, TypeVar

from django.conf import settings
from django.core.exceptions import TooManyFieldsSent, TooManyFilesSent
from django.core.files.uploadhandler import MemoryFileUploadHandler
from django.http import HttpRequest
from django.http.multipartparser import MultiPartParser, MultiPartParserError
from msgspec import Struct
from rest_framework.request import Request
from rest_framework.viewsets import ViewSet

from hpts import fields, limits, logs
from hpts.problems import (
    FieldProblem,
    InvalidPageToken,
    MalformedJSON,
    MethodNotAllowed,
    PayloadTooLarge,
    UnsupportedMediaType,
    ValidationFailed,
)

S = TypeVar("S", bound=Struct)
# More digits than these are more bytes than anybody may send.
LENGTH = re.compile(r"[0-9]{1,12}")


def only_get(request: HttpRequest) -> None:
    """For the plain views beside the API: anything but GET and HEAD is refused."""
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed(["GET", "HEAD"])


def correlation_of(request: Request) -> str:
    """The request's correlation id, given by hpts/middleware.py."""
    return request._request.correlation_id  # type: ignore[attr-defined, no-any-return]


class _InMemory(MemoryFileUploadHandler):
    """A file of a body that is in memory already, and that has been found short enough."""

    def handle_raw_input(self, *args: Any, **kwargs: Any) -> None:
        self.activated = True


class APIViewSet(ViewSet):
    """A viewset of the API. `scopes` maps each action to the scope that it needs."""

    scopes: ClassVar[dict[str, str]] = {}
    # Actions whose bodies may be large.
    large_bodies: ClassVar[frozenset[str]] = frozenset()
    # Actions whose body is a file as it is, or the one part of a form, and of which of these media types.
    file_bodies: ClassVar[dict[str, frozenset[str]]] = {}
    http_method_names = ["get", "post", "head"]
    # How the caller's quotas stand; None before that is known, and where there are none.
    admission: limits.Admission | None = None

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """View and request point to each other: let go here, or every answer stays in memory until the collector comes."""
        response = super().dispatch(request, *args, **kwargs)
        if self.admission is not None:
            self.admission.label(response)
        del self.request, self.response
        return response

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self.format_kwarg = None
        method = (request.method or "").lower()
        if self.action is None or method not in self.action_map:
            allowed = [name.upper() for name in self.action_map]
            raise MethodNotAllowed(allowed)
        request._request.operation_id = self.operation_id  # type: ignore[attr-defined]
        self.perform_authentication(request)
        self.admit(request)
        self.check_permissions(request)
        if method == "post":
            self._check_body(request._request)
        request.accepted_renderer, request.accepted_media_type = self.perform_content_negotiation(request)

    def admit(self, request: Request, cost: int = 0) -> None:
        """Take this request out of its client's and tenant's quotas. Raises RateLimited.

        With a cost: it has been let in, and does the work of so many more; the next ones wait for that.
        """
        principal: Any = request.user
        if not cost:
            request._request.tenant_id = principal.tenant_id  # type: ignore[attr-defined]
            logs.bind(tenant_id=principal.tenant_id, client_id=principal.client_id)
        self.admission = limits.take(principal.tenant_id, principal.client_id, cost or 1, always=bool(cost))
        if self.admission is not None and self.admission.wait_seconds > 0:
            raise limits.refusal(self.admission)

    def http_method_not_allowed(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        raise MethodNotAllowed([name.upper() for name in self.action_map])

    @property
    def operation_id(self) -> str:
        """The operation's name in the API document: it outlives routes and their parameters' names."""
        return getattr(self, self.action).operation.operation_id  # type: ignore[no-any-return]

    @property
    def body_limit(self) -> int:
        return settings.MAX_BATCH_BODY_BYTES if self.action in self.large_bodies else settings.MAX_BODY_BYTES

    def _check_body(self, request: HttpRequest) -> None:
        length = request.META.get("CONTENT_LENGTH") or "0"
        if LENGTH.fullmatch(length) is None or int(length) > self.body_limit:
            raise PayloadTooLarge(f"A body of this operation has at most {self.body_limit} bytes.")
        if request.META.get("HTTP_CONTENT_ENCODING", "identity").strip().lower() != "identity":
            raise UnsupportedMediaType("Send the body as it is, not compressed.")
        media_type, *parameters = (part.strip().lower() for part in request.META.get("CONTENT_TYPE", "").split(";"))
        if self.action in self.file_bodies:
            if media_type not in self.file_bodies[self.action]:
                raise UnsupportedMediaType("A file is sent as it is, or as the part `file` of multipart/form-data.")
        elif media_type != "application/json" or parameters not in ([], ["charset=utf-8"], ['charset="utf-8"']):
            raise UnsupportedMediaType("A body is application/json in UTF-8.")

    def document(self, request: Request) -> object:
        """The body's JSON. Raises MalformedJSON, PayloadTooLarge."""
        return fields.read_json(self.body(request))

    def body(self, request: Request) -> bytes:
        """The body as it was sent, read once. Raises MalformedJSON when it is broken off, PayloadTooLarge."""
        raw = request._request
        length = raw.META.get("CONTENT_LENGTH")
        try:
            # A chunked body has no length; the server ends the stream, and we stop one byte after the limit.
            body = raw.body if length else raw.META["wsgi.input"].read(self.body_limit + 1)
        except Exception:  # Each server has classes of its own for a broken stream.
            raise MalformedJSON("The body ended early, or its chunks are no chunks.") from None
        if length and len(body) != int(length):
            raise MalformedJSON("The body ended before the length that its header promised.")
        if len(body) > self.body_limit:
            raise PayloadTooLarge(f"A body of this operation has at most {self.body_limit} bytes.")
        return body

    def file(self, request: Request) -> bytes:
        """The body of an operation that takes a file: itself, or the part `file` of a form. Raises ValidationFailed."""
        body = self.body(request)
        raw = request._request
        if not raw.META.get("CONTENT_TYPE", "").lower().startswith("multipart/form-data"):
            return body
        environment = raw.META | {"CONTENT_LENGTH": str(len(body))}
        try:
            texts, files = MultiPartParser(environment, BytesIO(body), [_InMemory()]).parse()
        except (MultiPartParserError, TooManyFieldsSent, TooManyFilesSent):
            raise ValidationFailed("The form is broken.") from None
        if list(texts) or list(files) != ["file"] or len(files.getlist("file")) != 1:
            raise ValidationFailed("The form has one part, the file, and its name is `file`.")
        content: bytes = files.getlist("file")[0].read()
        return content

    def query(self, request: Request, shape: type[S]) -> S:
        """The query string as a struct. A parameter that is unknown, empty or given twice is refused."""
        values: dict[str, object] = {}
        raw = request._request
        for name, given in raw.GET.lists() if raw.META.get("QUERY_STRING") else ():
            if name == "page_token" and given == [""]:
                raise InvalidPageToken("The page token is empty.")
            if len(given) > 1:
                raise ValidationFailed(
                    "One or more fields are not valid.", [FieldProblem(name, "duplicate", "Give this parameter once.")]
                )
            values[name] = given[0]
        return fields.parse(values, shape)
