"""The list of bad input, for every field of every operation as the API document has it: refused by name, and nothing moves.

Made from the document alone, so that an operation or a field that is added is attacked without a word here. What is bad for
a field follows from its schema; tests/ledger/api/test_bad_input.py goes deeper for each type of the books.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from hpts import openapi
from tests.conftest import Json, Lender, new_key
from tests.test_contract import resolved

Unmoved = Callable[[], AbstractContextManager[None]]
DOCUMENT: Json = json.loads(openapi.rendered())
DEEP: Any = "x"
for _ in range(33):
    DEEP = [DEEP]
# For any field: of another type, too large, not text that anybody can see, or too deep.
VALUES: list[Any] = [
    *[None, True, False, 0, -1, 1.0, 5.5, 1e300, 10**19, 10**400, "", " ", [], {}, [None], {"a": {}}, [[[]]], DEEP],
    *[
        "\x00",
        "a\x00b",
        "\ud800",
        "\udfffx",
        "\u202e",
        "x" * 5_000,
        "9" * 5_000,
        "\u0661\u0662",
        "\uff11",
        "1e3",
        "+5",
        "-0",
    ],
    *[
        "1_000",
        " 7",
        "7\n",
        "0x10",
        "9223372036854775808",
        "2023-02-29",
        "20240101",
        "2024-W01-1",
        "0000-00-00",
        "usd",
        "null",
    ],
]
UUID = "11111111-1111-4111-8111-111111111111"


def operations(method: str) -> Iterator[tuple[str, str, Json]]:
    for path, methods in DOCUMENT["paths"].items():
        if method in methods and not path.startswith("/health"):
            yield methods[method]["operationId"], path, resolved(methods[method], DOCUMENT)


def json_body(operation: Json) -> Json | None:
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    return schema or None


def fields(schema: Json, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Json]]:
    """Every field of a body's schema, with the first item of its lists."""
    for name, member in schema.get("properties", {}).items():
        yield (*path, name), member
        yield from fields(member, (*path, name))
    if "items" in schema and isinstance(schema["items"], dict):
        yield (*path, 0), schema["items"]
        yield from fields(schema["items"], (*path, 0))


def example(schema: Json) -> Any:
    """A value that the schema takes, as simple as it can be."""
    if "const" in schema or "enum" in schema:
        return schema.get("const", (schema.get("enum") or [None])[0])
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return example(schema[several][0])
    match schema.get("type"):
        case "object":
            return {name: example(member) for name, member in schema.get("properties", {}).items()}
        case "array":
            return [example(schema["items"]) for _ in range(max(schema.get("minItems", 1), 1))]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
    if schema.get("format") == "date":
        return "2026-01-05"
    if schema.get("format") == "date-time":
        return "2026-01-05T12:00:00Z"
    if schema.get("format") == "uuid":
        return UUID
    given = schema.get("examples") or [schema["example"]] if "example" in schema or "examples" in schema else []
    if given:
        return given[0]
    pattern = schema.get("pattern", "")
    for text in ("R01", "0" * 64, "1000", "text-0001"):
        if (
            re.search(pattern, text)
            and len(text) <= schema.get("maxLength", 999)
            and len(text) >= schema.get("minLength", 0)
        ):
            return text
    raise AssertionError(f"give {schema} an example")


def replaced(body: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """The body with another value at a path."""
    if not path:
        return value
    copy = list(body) if isinstance(body, list) else dict(body)
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)  # type: ignore[index]
    return copy


def unfit(schema: Json, value: Any) -> bool:
    """Whether the document itself says that a field cannot have this value."""
    checker = Draft202012Validator.FORMAT_CHECKER
    return not Draft202012Validator(schema, format_checker=checker).is_valid(value)


def refusal(answer: Any, where: object) -> Json:
    assert answer.headers["Content-Type"] == "application/problem+json", where
    assert answer.status_code in (400, 404, 413, 415, 422), (where, answer.status_code, answer.content)
    body: Json = json.loads(answer.content)
    return body


def sent(path: str) -> str:
    """A path with ids in it."""
    return "/v1" + re.sub(r"\{account_code\}", "1000", re.sub(r"\{(?!account_code)\w+\}", UUID, path))


BODIES = [(name, path, json_body(operation)) for name, path, operation in operations("post") if json_body(operation)]


@pytest.mark.parametrize(("name", "path", "schema"), BODIES, ids=[name for name, _, _ in BODIES])
def test_a_bad_value_in_any_field_is_refused_and_moves_nothing(
    name: str, path: str, schema: Json, acme: Lender, nothing_moves: Unmoved
) -> None:
    whole = example(schema)
    with nothing_moves():
        for place, member in fields(schema):
            dotted = ".".join(str(step) for step in place)
            for value in VALUES:
                if unfit(member, value):
                    answer = acme.api.post(sent(path), replaced(whole, place, value))
                    problem = refusal(answer, (name, dotted, value))
                    if problem["code"] == "validation_failed":
                        named = [error["field"] for error in problem["errors"]]
                        assert any(each.startswith(dotted) or dotted.startswith(each) for each in named), (
                            dotted,
                            value,
                            named,
                        )


@pytest.mark.parametrize(("name", "path", "schema"), BODIES, ids=[name for name, _, _ in BODIES])
def test_unknown_missing_and_doubled_members_are_refused_at_every_level(
    name: str, path: str, schema: Json, acme: Lender, nothing_moves: Unmoved
) -> None:
    whole = example(schema)
    levels = [(), *(place for place, member in fields(schema) if member.get("properties"))]
    with nothing_moves():
        for place in levels:
            level = whole
            for step in place:
                level = level[step]
            unknown = refusal(
                acme.api.post(sent(path), replaced(whole, place, {**level, "surprise": "x"})), (name, place)
            )
            assert "surprise" in json.dumps(unknown), (name, place)
            for member in level:
                text = json.dumps(replaced(whole, place, {**level, "twice": "?"}))
                doubled = text.replace('"twice": "?"', f'"{member}": null')
                assert refusal(acme.api.post(sent(path), doubled), (name, place))["code"] == "malformed_json"
        for member in schema.get("required", []):
            rest = {key: value for key, value in whole.items() if key != member}
            problem = refusal(acme.api.post(sent(path), rest), (name, member))
            assert member in [error["field"] for error in problem["errors"]]


QUERIES = [
    (name, path, parameter)
    for name, path, operation in operations("get")
    for parameter in operation.get("parameters", [])
    if parameter["in"] == "query"
]


@pytest.mark.parametrize(
    ("name", "path", "parameter"), QUERIES, ids=[f"{name}-{parameter['name']}" for name, _, parameter in QUERIES]
)
def test_a_bad_value_of_any_parameter_is_refused(name: str, path: str, parameter: Json, acme: Lender) -> None:
    schema = parameter["schema"]
    texts = [value for value in VALUES if isinstance(value, str) and "\ud800" not in value and "\udfff" not in value]
    required = {
        each["name"]: example(each["schema"])
        for each in resolved(DOCUMENT["paths"][path]["get"], DOCUMENT).get("parameters", [])
        if each["in"] == "query" and each.get("required")
    }
    for text in [*texts, "-1", "501", "1e2", "99999999999999999999"]:
        value: Any = (
            int(text) if schema.get("type") == "integer" and re.fullmatch("-?[0-9]{1,30}", text, re.ASCII) else text
        )
        if unfit(schema, value):
            refusal(acme.api.get(sent(path), required | {parameter["name"]: text}), (name, parameter["name"], text))
    refusal(acme.api.get(sent(path), required | {parameter["name"]: [example(schema)] * 2}), (name, "twice"))
    refusal(acme.api.get(sent(path), required | {"surprise": "x"}), (name, "unknown"))


PATHS = sorted({path for method in ("get", "post", "delete") for _, path, _ in operations(method) if "{" in path})
IDS = [
    f"urn:uuid:{UUID}",
    f"{{{UUID}}}",
    UUID.replace("-", ""),
    "%00",
    UUID + "%0a",
    "١٢٣٤",
    "100",
    "10000",
    "'--",
    "..",
    "%2e%2e",
    "x" * 3_000,
]


@pytest.mark.parametrize("path", PATHS)
def test_a_malformed_id_in_any_path_is_an_unknown_path(path: str, acme: Lender) -> None:
    method = next(iter(DOCUMENT["paths"][path]))
    for bad in IDS:
        if "account_code" in path and bad in ("100", "10000"):
            bad = f"{bad}x"
        url = "/v1" + re.sub(r"\{\w+\}", lambda _, bad=bad: bad, path)
        answer = acme.api.call(method.upper(), url, b"{}", key=new_key())
        assert answer.status_code in (400, 404, 405), (url, answer.status_code)
        assert answer.headers["Content-Type"] == "application/problem+json"
