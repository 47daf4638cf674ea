"""Values on the wire: the strict types of requests, and the JSON reader that refuses what is not plain.

A request is a frozen `msgspec.Struct` whose members have these types. `parse()` gives the struct or a ValidationFailed that
names every wrong field at once. Nothing is coerced or trimmed; patterns are ASCII and cover the whole string.
Each type carries its JSON Schema; those that the API document shares by name say so in `component`.
"""

from __future__ import annotations

import json
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import date, datetime
from functools import cache
from typing import Any, ClassVar, NoReturn, TypeVar

import msgspec
from iso4217 import Currency as ISOCurrency
from msgspec import UNSET, UnsetType

from hpts.problems import FieldProblem, MalformedJSON, ValidationFailed

MAX_MINOR = 9_223_372_036_854_775_807
MAX_DEPTH = 32
CURRENCIES = frozenset(currency.code for currency in ISOCurrency)
# C0 and C1 controls, DEL, lone surrogates: nothing that a person can see, and PostgreSQL refuses some of it.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")


class FieldError(ValueError):
    """Why one value is refused."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Wire(ABC):
    """A type of the wire: reads a decoded JSON value (or a query string's text), or raises FieldError."""

    schema: ClassVar[dict[str, Any]] = {}
    component: ClassVar[str | None] = None

    @classmethod
    @abstractmethod
    def parse(cls, value: object) -> Any:
        """The plain value (str, int, date, ...): these classes say what is accepted, they are not carried around."""


def _text(value: object) -> str:
    if type(value) is not str:
        raise FieldError("invalid_type", "A string is expected.")
    return value


class Pattern(str, Wire):
    """A string that matches `pattern` from its first to its last character."""

    pattern: ClassVar[re.Pattern[str]]
    message: ClassVar[str]

    @classmethod
    def parse(cls, value: object) -> Any:
        text = _text(value)
        if cls.pattern.fullmatch(text) is None:
            raise FieldError("invalid_format", cls.message)
        return text


class Uuid(Pattern):
    """A UUID in the 8-4-4-4-12 form, any case; canonical lower case inside and in answers."""

    pattern = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
    message = "A UUID such as 11111111-1111-1111-1111-111111111111 is expected."
    component = "Uuid"
    schema = {
        "type": "string",
        "format": "uuid",
        "pattern": "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
        "examples": ["11111111-1111-1111-1111-111111111111"],
    }

    @classmethod
    def parse(cls, value: object) -> Any:
        return super().parse(value).lower()


class AccountCode(Pattern):
    pattern = re.compile(r"[0-9]{4}")
    message = "An account code is four digits."
    component = "AccountCode"
    schema = {
        "type": "string",
        "pattern": "^[0-9]{4}$",
        "description": "Four-digit GL account code.",
        "examples": ["1000", "1100", "1200"],
    }


class CurrencyCode(Pattern):
    pattern = re.compile(r"[A-Z]{3}")
    message = "A currency is three capital letters."
    component = "CurrencyCode"
    schema = {
        "type": "string",
        "description": "ISO 4217 three-letter currency code.",
        "pattern": "^[A-Z]{3}$",
        "minLength": 3,
        "maxLength": 3,
        "examples": ["USD", "MXN", "EUR"],
    }

    @classmethod
    def parse(cls, value: object) -> Any:
        code = super().parse(value)
        if code not in CURRENCIES:
            raise FieldError("unknown_currency", f"{code} is not an ISO 4217 currency.")
        return code


class AmountMinor(int, Wire):
    """A non-negative amount in the currency's minor unit: a string on the wire, an int inside, at most 2^63-1."""

    pattern: ClassVar[re.Pattern[str]] = re.compile(r"0|[1-9][0-9]{0,18}")
    least: ClassVar[int] = 0
    component = "AmountMinor"
    schema = {
        "type": "string",
        "description": (
            "Non-negative integer amount in the currency's minor unit, serialized\n"
            "as a string to preserve precision (JS numbers cannot safely represent\n"
            "values above 2^53). BIGINT on the wire, BIGINT in the database.\n"
        ),
        "pattern": "^(0|[1-9][0-9]{0,18})$",
        "minLength": 1,
        "maxLength": 19,
        "examples": ["88849", "10000000"],
    }

    @classmethod
    def parse(cls, value: object) -> Any:
        text = _text(value)
        if cls.pattern.fullmatch(text) is None:
            raise FieldError(
                "invalid_format", "An amount is a string of digits in minor units, without sign or leading zero."
            )
        amount = int(text)
        if amount > MAX_MINOR:
            raise FieldError("out_of_range", f"An amount is at most {MAX_MINOR}.")
        if amount < cls.least:
            raise FieldError("out_of_range", "The amount must be above zero.")
        return amount


class PositiveAmount(AmountMinor):
    """An amount above zero."""

    least = 1


class Flag(int, Wire):
    """true or false."""

    schema = {"type": "boolean"}

    @classmethod
    def parse(cls, value: object) -> Any:
        if type(value) is not bool:
            raise FieldError("invalid_type", "true or false is expected.")
        return value


class IsoDate(date, Wire):
    """A calendar date, YYYY-MM-DD."""

    pattern: ClassVar[re.Pattern[str]] = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
    schema = {"type": "string", "format": "date"}

    @classmethod
    def parse(cls, value: object) -> Any:
        text = _text(value)
        if cls.pattern.fullmatch(text) is None:
            raise FieldError("invalid_format", "A date is YYYY-MM-DD.")
        try:
            return date.fromisoformat(text)
        except ValueError:
            raise FieldError("invalid_format", f"{text} is not a day of the calendar.") from None


class Timestamp(Pattern):
    """An instant in UTC, RFC 3339: seconds, at most six digits of fraction, Z. The text as it came; PostgreSQL reads it."""

    pattern = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?Z")
    message = "An instant in UTC such as 2026-03-01T12:00:00Z is expected."
    component = "Timestamp"
    schema = {"type": "string", "format": "date-time", "description": "RFC 3339 timestamp, UTC."}

    @classmethod
    def parse(cls, value: object) -> Any:
        text = super().parse(value)
        try:
            datetime.fromisoformat(text)
        except ValueError:
            raise FieldError("invalid_format", f"{text} is not an instant of the calendar.") from None
        return text


class Text(str, Wire):
    """Printable text of 1 to `longest` characters, kept as it came."""

    longest: ClassVar[int]

    @classmethod
    def parse(cls, value: object) -> Any:
        text = _text(value)
        if not text:
            raise FieldError("too_short", "At least one character is expected.")
        if len(text) > cls.longest:
            raise FieldError("too_long", f"At most {cls.longest} characters are allowed.")
        if _UNPRINTABLE.search(text):
            raise FieldError("invalid_characters", "Control characters are not allowed.")
        return text


class Name(Text):
    longest = 200
    schema = {"type": "string", "minLength": 1, "maxLength": 200}


class Description(Text):
    longest = 500
    schema = {"type": "string", "minLength": 1, "maxLength": 500}


class Reference(Text):
    longest = 128
    schema = {"type": "string", "minLength": 1, "maxLength": 128}


class Metadata(dict[str, str], Wire):
    """The client's own notes: at most 50 string values, 16 KiB in all."""

    schema = {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "maxProperties": 50,
        "description": "Own notes of the client: at most 50 string values, 16 KiB in all.",
    }

    @classmethod
    def parse(cls, value: object) -> Any:
        if type(value) is not dict:
            raise FieldError("invalid_type", "An object is expected.")
        if len(value) > 50:
            raise FieldError("too_long", "At most 50 members are allowed.")
        for name, text in value.items():
            if type(text) is not str:
                raise FieldError("invalid_type", f"{name!r}: values are strings.")
            if _UNPRINTABLE.search(name) or _UNPRINTABLE.search(text):
                raise FieldError("invalid_characters", "Control characters are not allowed.")
        if len(msgspec.json.encode(value)) > 16 * 1024:
            raise FieldError("too_long", "At most 16 KiB in all are allowed.")
        return value


class PageSize(int, Wire):
    """A page's size out of a query string."""

    pattern: ClassVar[re.Pattern[str]] = re.compile(r"[1-9][0-9]{0,2}")
    schema = {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}

    @classmethod
    def parse(cls, value: object) -> Any:
        text = _text(value)
        if cls.pattern.fullmatch(text) is None or int(text) > 500:
            raise FieldError("out_of_range", "A page has 1 to 500 items.")
        return int(text)


class PageToken(str, Wire):
    """Checked when it is opened (hpts/pagination.py), so that every bad one has one code."""

    schema = {"type": "string", "maxLength": 512}

    @classmethod
    def parse(cls, value: object) -> Any:
        return _text(value)


# Reads one value at a path of the document; what is wrong is added to the list, and the value is then of no use.
Reader = Callable[[object, str, list[FieldProblem]], Any]


def parse(value: object, shape: type[S]) -> S:
    """`value` as a `shape`, a Struct. Raises ValidationFailed naming every wrong field."""
    problems: list[FieldProblem] = []
    parsed = _reader(shape)(value, "", problems)
    if problems:
        raise ValidationFailed("One or more fields are not valid.", problems)
    return parsed  # type: ignore[no-any-return]


@cache
def _reader(kind: Any) -> Reader:
    """The reader of a declared type: a Struct, a list with bounds, or a Wire type; `| UnsetType` marks what is optional."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = [argument for argument in typing.get_args(kind) if argument is not UnsetType]
    bounds = None
    if typing.get_origin(kind) is typing.Annotated:
        kind, bounds = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return _list_reader(_reader(typing.get_args(kind)[0]), bounds)
    return _struct_reader(kind) if issubclass(kind, msgspec.Struct) else _wire_reader(kind)


def _wire_reader(kind: type[Wire]) -> Reader:
    def read(value: object, path: str, problems: list[FieldProblem]) -> Any:
        try:
            return kind.parse(value)
        except FieldError as error:
            message = "null is never a value: leave the member out." if value is None else error.message
            problems.append(FieldProblem(path, error.code, message))
            return None

    return read


def _list_reader(item: Reader, bounds: Any) -> Reader:
    least, most = (bounds.min_length or 0, bounds.max_length) if bounds else (0, None)

    def read(value: object, path: str, problems: list[FieldProblem]) -> Any:
        if type(value) is not list:
            problems.append(FieldProblem(path, "invalid_type", "A list is expected."))
        elif len(value) < least:
            problems.append(FieldProblem(path, "too_short", f"At least {least} items are expected."))
        elif most is not None and len(value) > most:
            problems.append(FieldProblem(path, "too_long", f"At most {most} items are allowed."))
        else:
            return [item(element, f"{path}.{position}", problems) for position, element in enumerate(value)]
        return None

    return read


def _struct_reader(shape: type[msgspec.Struct]) -> Reader:
    hints = typing.get_type_hints(shape, include_extras=True)
    members = [
        (field.name, _reader(hints[field.name]), field.required, field.default)
        for field in msgspec.structs.fields(shape)
    ]
    names = frozenset(hints)

    def read(value: object, path: str, problems: list[FieldProblem]) -> Any:
        if type(value) is not dict:
            problems.append(FieldProblem(path, "invalid_type", "An object is expected."))
            return None
        for name in value.keys() - names:
            problems.append(FieldProblem(_join(path, name), "unknown_field", "There is no such field."))
        values = {}
        for name, reader, required, default in members:
            if name in value:
                values[name] = reader(value[name], _join(path, name), problems)
            elif required:
                problems.append(FieldProblem(_join(path, name), "required", "This field is required."))
            else:
                values[name] = default
        if problems:
            return None
        try:
            return shape(**values)
        except FieldError as error:  # Each member is well formed, together they say nothing.
            problems.append(FieldProblem(path, error.code, error.message))
            return None

    return read


def _join(path: str, name: str) -> str:
    # A client's own member name may hold anything; what cannot be encoded is shown escaped, what is long is cut.
    if not name.isascii() or len(name) > 100:
        name = name.encode("utf-8", "backslashreplace").decode()[:100]
    return f"{path}.{name}" if path else name


def given(value: T | UnsetType) -> T | None:
    """An optional member's value, None when it was left out."""
    return None if value is UNSET else value


class _Refused(ValueError):
    pass


def _refuse(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON")


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Refused("a member stands twice")
    return members


def _deeper_than(levels: int, value: object) -> bool:
    if isinstance(value, dict):
        return levels == 0 or any(_deeper_than(levels - 1, each) for each in value.values())
    if isinstance(value, list):
        return levels == 0 or any(_deeper_than(levels - 1, each) for each in value)
    return False


_decoder = json.JSONDecoder(object_pairs_hook=_members, parse_constant=_refuse)


def read_json(body: bytes) -> object:
    """One JSON document, UTF-8 without byte-order mark, no member twice, no NaN, 32 levels deep at most. Raises MalformedJSON."""
    try:
        text = body.decode("utf-8")
        if text.startswith("\ufeff"):
            raise _Refused("a byte-order mark comes first")
        value = _decoder.decode(text)
        # Most bodies have too few brackets to be deep.
        if text.count("[") + text.count("{") > MAX_DEPTH and _deeper_than(MAX_DEPTH, value):
            raise _Refused(f"it is more than {MAX_DEPTH} levels deep")
        return value
    except _Refused as error:
        raise MalformedJSON(f"The body is not JSON that can be accepted: {error}.") from None
    except (ValueError, RecursionError):
        raise MalformedJSON("The body is not one JSON document in UTF-8.") from None
