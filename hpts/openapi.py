"""The API document: OpenAPI 3.1, written by drf-spectacular from the views, and the pages that show it.

A view declares with `@operation` what nothing else says: ids, shapes, refusals. Paths come from the URL conf, scopes and
body limits from the view, schemas from the structs and their wire types, texts from docstrings and from the problems.
What no code says stands in openapi.yaml beside this module. No operation is described here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import get_resolver
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ComponentRegistry, ResolvedComponent

from hpts import fields, limits, problems
from hpts.auth import OF_ITS_ITEMS
from hpts.oauth import ADMIN
from hpts.rendering import answer as json_answer
from hpts.views import only_get

GIVEN = Path(__file__).with_suffix(".yaml")
# The docs page brings all that it needs; a browser holds it to that.
DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'"
)

# What the converters of the URL conf let through, and which parameters all lists share.
PATH_TYPES: dict[str, type[fields.Wire]] = {"id": fields.Uuid, "account_code": fields.AccountCode}
PAGING = {"page_size": "PageSize", "page_token": "PageToken"}

# A file that is sent as a form.
FORM_TYPE = "multipart/form-data"
FORM = {
    "type": "object",
    "required": ["file"],
    "additionalProperties": False,
    "properties": {"file": {"type": "string", "contentMediaType": "application/octet-stream"}},
}

# Refusals that need no declaration. 405 is none of them: an operation that is in the document has its method.
OF_EVERY_OPERATION = (
    problems.ValidationFailed,
    problems.InvalidToken,
    problems.InsufficientScope,
    problems.NotAcceptable,
    problems.RateLimited,
    problems.InternalError,
    problems.Unavailable,
)
OF_EVERY_POST = (
    problems.MalformedJSON,
    problems.IdempotencyKeyRequired,
    problems.IdempotencyKeyInvalid,
    problems.IdempotencyInProgress,
    problems.IdempotencyMismatch,
    problems.PayloadTooLarge,
    problems.UnsupportedMediaType,
    problems.Busy,
)

Shape = type[msgspec.Struct] | str
View = TypeVar("View", bound=Callable[..., HttpResponse])


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What a view declares. A shape is a struct, or the name of a schema in openapi.yaml."""

    operation_id: str
    tag: str
    returns: str
    answer: Shape | None
    request: Shape | None
    query: type[msgspec.Struct] | None
    etag: bool
    refuses: tuple[type[problems.Problem], ...]
    status: int
    also: Mapping[int, str] = field(default_factory=dict)


def operation(
    operation_id: str,
    tag: str,
    *,
    returns: str,
    answer: Shape | None,
    request: Shape | None = None,
    query: type[msgspec.Struct] | None = None,
    etag: bool = False,
    refuses: Iterable[type[problems.Problem]] = (),
    status: int = 201,
    also: Mapping[int, str] | None = None,
) -> Callable[[View], View]:
    """Declare an operation of the document; its summary is the first line of the view's docstring.

    `returns` says in words what `answer` is (None: 204 and nothing); `etag`: the answer bears the loan's; `refuses`: the
    problems that are this operation's own; `status`: what a POST answers the first time; `also`: other statuses with the same
    answer, and what they mean.
    """
    declared = Operation(
        operation_id=operation_id,
        tag=tag,
        returns=returns,
        answer=answer,
        request=request,
        query=query,
        etag=etag,
        refuses=tuple(refuses),
        status=status,
        also=also or {},
    )

    def declare(view: View) -> View:
        view.operation = declared  # type: ignore[attr-defined]
        return view

    return declare


class Schema(AutoSchema):
    """What drf-spectacular asks for each method of each API view."""

    def get_operation(
        self, path: str, path_regex: str, path_prefix: str, method: str, registry: ComponentRegistry
    ) -> dict[str, Any]:
        view: Any = self.view
        action = getattr(view, view.action)
        if not hasattr(action, "operation"):
            raise ImproperlyConfigured(f"{type(view).__name__}.{view.action} declares no @operation.")
        files = view.file_bodies.get(view.action, frozenset())
        return _described(action, method, path_regex, registry, view.scopes[view.action], view.body_limit, files)


def complete(result: dict[str, Any], generator: SchemaGenerator, **_: object) -> dict[str, Any]:
    """drf-spectacular's last step: the operations of plain views, and all that openapi.yaml gives."""
    given = yaml.safe_load(GIVEN.read_text(encoding="utf-8"))
    paths = dict(result["paths"])
    for pattern in get_resolver().url_patterns:
        view = pattern.callback
        if hasattr(view, "operation"):
            path = str(pattern.pattern).removeprefix("v1")
            paths[path] = {"get": _described(view, "GET", path, generator.registry)}
    return {
        "openapi": result["openapi"],
        **{part: given[part] for part in ("info", "servers", "security", "tags")},
        "paths": dict(sorted(paths.items())),
        "webhooks": given["webhooks"],
        "components": generator.registry.build(given["components"]),
    }


# --- One operation ---------------------------------------------------------------------------------------------------
def _described(
    view: Any,
    method: str,
    route: str,
    registry: ComponentRegistry,
    scope: str | None = None,
    body_limit: int = 0,
    files: Collection[str] = (),
) -> dict[str, Any]:
    """The operation object of a view. Without a scope it is open to everyone."""
    declared: Operation = view.operation
    summary, _, description = inspect.cleandoc(view.__doc__).partition("\n")
    described: dict[str, Any] = {
        "operationId": declared.operation_id,
        "tags": [declared.tag],
        "summary": summary.rstrip("."),
    }
    needed = scope
    if scope is not None and scope.startswith(ADMIN):
        # The security scheme is the published one and knows the administration as a whole. So `security` names the
        # wildcard, which always suffices; the one area that suffices, too, stands in the text and in `x-scope`.
        needed = ADMIN + "*"
        description += f"\n\nNeeds the scope `{scope}`, or `{needed}`."
        described["x-scope"] = scope
    if scope == OF_ITS_ITEMS:
        description += "\n\nNeeds the scope of each operation that it runs."
    if description.strip():
        described["description"] = description.strip()
    if parameters := _parameters(declared, method, route, registry):
        described["parameters"] = parameters
    if declared.request is not None:
        described["requestBody"] = {
            "required": True,
            "description": f"At most {body_limit // 1024} KiB.",
            "content": {"application/json": {"schema": _schema(declared.request, registry)}},
        }
    if files:
        described["requestBody"] = {
            "required": True,
            "description": f"The file as it is, or the one part of a form. At most {body_limit // 1024} KiB.",
            "content": {
                media_type: {"schema": FORM if media_type == FORM_TYPE else {}} for media_type in sorted(files)
            },
        }
    described["responses"] = _answers(declared, method, registry, limited=scope is not None)
    if scope is not None:
        described["responses"] |= _problems(_refusals(declared, method, route), registry)
    described["responses"] = dict(sorted(described["responses"].items()))
    described["security"] = [{"bearerAuth": [needed] if needed else []}] if scope is not None else []
    return described


def _parameters(declared: Operation, method: str, route: str, registry: ComponentRegistry) -> list[dict[str, Any]]:
    found = []
    for converter, name in re.findall(r"<(\w+):(\w+)>", route):
        parameter = {"name": name, "in": "path", "required": True, "schema": _wire(PATH_TYPES[converter], registry)}
        component = "".join(word.capitalize() for word in name.split("_")) + "Path"
        found.append(_shared("parameters", component, parameter, registry))
    if method == "POST":
        found.append({"$ref": "#/components/parameters/IdempotencyKey"})
    if declared.query is not None:
        _, shapes = _shapes(declared.query, registry)
        shape = shapes[declared.query.__name__]
        # What every list has stands behind what this one filters by.
        for name, schema in sorted(shape["properties"].items(), key=lambda item: item[0] in PAGING):
            parameter = {"name": name, "in": "query", "schema": schema}
            if name in PAGING:
                parameter = _shared("parameters", PAGING[name], parameter | {"required": False}, registry)
            elif name in shape["required"]:
                parameter["required"] = True
            found.append(parameter)
    return found


def _answers(declared: Operation, method: str, registry: ComponentRegistry, *, limited: bool) -> dict[str, Any]:
    headers = ["X-Request-Id", "ETag"] if declared.etag else ["X-Request-Id"]
    if limited:
        headers += limits.HEADERS
    if declared.answer is None:
        empty = _answer(declared.returns, {}, headers)
        del empty["content"]
        return {"204": empty}
    schema = _schema(declared.answer, registry)
    if method == "POST":
        replay = "A repeated request: the first answer, byte for byte."
        answers = {
            "200": _answer(replay, schema, [*headers, "Idempotency-Replayed"]),
            str(declared.status): _answer(declared.returns, schema, headers),
        }
    else:
        answers = {"200": _answer(declared.returns, schema, headers)}
    for status, meaning in declared.also.items():
        answers[str(status)] = _answer(meaning, schema, headers)
    return answers


def _answer(
    meaning: str, schema: dict[str, Any], headers: Iterable[str], media_type: str = "application/json"
) -> dict[str, Any]:
    return {
        "description": meaning,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        "content": {media_type: {"schema": schema}},
    }


# --- Problems --------------------------------------------------------------------------------------------------------
def _refusals(declared: Operation, method: str, route: str) -> set[type[problems.Problem]]:
    refusals: set[type[problems.Problem]] = {*OF_EVERY_OPERATION, *declared.refuses}
    if "<" in route:
        refusals.add(problems.NotFound)
    if declared.query is not None and "page_token" in declared.query.__struct_fields__:
        refusals.add(problems.InvalidPageToken)
    if method == "POST":
        refusals.update(OF_EVERY_POST)
    return refusals


def _problems(kinds: Iterable[type[problems.Problem]], registry: ComponentRegistry) -> dict[str, Any]:
    """An answer for each status. One that a single kind has is shared by name."""
    by_status: dict[str, list[type[problems.Problem]]] = {}
    for kind in sorted(kinds, key=lambda kind: kind.code):
        by_status.setdefault(str(kind.status), []).append(kind)
    answers = {}
    for status, group in by_status.items():
        told = limits.HEADERS if problems.RateLimited in group else ()
        text = (
            _meaning(group[0]) if len(group) == 1 else "\n".join(f"- `{kind.code}`: {_meaning(kind)}" for kind in group)
        )
        headers = sorted({"X-Request-Id", *told}.union(*(kind.headers for kind in group)))
        problem = _answer(text, {"$ref": "#/components/schemas/Problem"}, headers, problems.CONTENT_TYPE)
        problem["x-problem-codes"] = [kind.code for kind in group]
        answers[status] = _shared("responses", group[0].__name__, problem, registry) if len(group) == 1 else problem
    return answers


def _meaning(kind: type[problems.Problem]) -> str:
    return " ".join((kind.__doc__ or kind.title).split())


# --- Schemas ---------------------------------------------------------------------------------------------------------
def _shared(kind: str, name: str, content: dict[str, Any], registry: ComponentRegistry) -> dict[str, Any]:
    """A reference to a component, which is registered when it is new."""
    component = ResolvedComponent(name, kind, content, object=name)  # type: ignore[no-untyped-call]
    registry.register_on_missing(component)
    return component.ref


def _wire(kind: type[fields.Wire], registry: ComponentRegistry) -> dict[str, Any]:
    return kind.schema if kind.component is None else _shared("schemas", kind.component, kind.schema, registry)


def _schema(shape: Shape, registry: ComponentRegistry) -> dict[str, Any]:
    """A reference to a shape's schema, registered with all that it refers to."""
    if isinstance(shape, str):
        return {"$ref": f"#/components/schemas/{shape}"}
    reference, shapes = _shapes(shape, registry)
    for name, schema in shapes.items():
        _shared("schemas", name, schema, registry)
    return reference


def _shapes(shape: type[msgspec.Struct], registry: ComponentRegistry) -> tuple[dict[str, Any], dict[str, Any]]:
    """A reference to a struct, and the schemas of it and of the structs in it, by name."""
    (reference,), shapes = msgspec.json.schema_components(
        [shape], schema_hook=lambda kind: _wire(kind, registry), ref_template="#/components/schemas/{name}"
    )
    for schema in shapes.values():
        del schema["title"]  # The component's name says it.
    return reference, shapes


# --- Pages -----------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)
def rendered() -> bytes:
    """The document as JSON; it changes with the code alone."""
    return msgspec.json.encode(SchemaGenerator().get_schema(public=True))  # type: ignore[no-untyped-call]


def document(request: HttpRequest) -> HttpResponse:
    """GET /v1/openapi.json."""
    only_get(request)
    return json_answer(rendered())


def docs(request: HttpRequest) -> HttpResponse:
    """GET /v1/docs: the document to read and to try, without a byte from elsewhere."""
    only_get(request)
    response = render(request, "docs.html", {"own_issuer": not settings.JWKS_URL})
    response["Content-Security-Policy"] = DOCS_POLICY
    return response
