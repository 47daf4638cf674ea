"""Answers: JSON bytes, and the negotiation that offers nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
from django.http import HttpResponse
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.renderers import BaseRenderer

from hpts.problems import NotAcceptable

JSON_TYPES = {"*/*", "application/*", "application/json", "application/problem+json"}


def answer(body: Any, status: int = 200) -> HttpResponse:
    """`body` as application/json; bytes and text are JSON already and pass through."""
    content = body if isinstance(body, bytes | str) else msgspec.json.encode(body)
    return HttpResponse(content, status=status, content_type="application/json")


class JSON(BaseRenderer):
    media_type = "application/json"
    format = "json"

    def render(self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None) -> bytes:
        return msgspec.json.encode(data)


class JSONOnly(BaseContentNegotiation):
    """Accepts a client that takes JSON, or problem details, or says nothing."""

    def select_parser(self, request: Any, parsers: Any) -> None:
        return None

    def select_renderer(
        self, request: Any, renderers: Any, format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        accept = request.META.get("HTTP_ACCEPT")
        if accept and not any(_takes_json(part) for part in accept.split(",")):
            raise NotAcceptable("Answers are application/json.")
        return renderers[0], "application/json"


def _takes_json(media_range: str) -> bool:
    media_type, *parameters = (part.strip().lower() for part in media_range.split(";"))
    refused = any(parameter.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters)
    return media_type in JSON_TYPES and not refused
