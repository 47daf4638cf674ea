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
from collections.abc import Iterator
from datetime import date
from typing import Any, ClassVar, NoReturn, Self, TypeVar

import msgspec
from iso4217 import Currency as ISOCurrency
from msgspec import UNSET, UnsetType

from hpts.problems import FieldProblem, MalformedJSON, ValidationFailed

MAX_MINOR = 9_223_372_036_854_775_807
CURRENCIES = frozenset(currency.code for currency in ISOCurrency)
# C0 and C1 controls, DEL, lone surrogates: nothing that a person can see, and PostgreSQL refuses some of it.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

T = TypeVar("T")


class FieldError(ValueError):
    """Why one value is refused."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Wire:
    """A type of the wire: reads a decoded JSON value (or a query string's text), or raises FieldError."""

    schema: ClassVar[dict[str, Any]] = {}
    component: ClassVar[str | None] = None

    @classmethod
    def parse(cls, value: object) -> Self:
        raise NotImplementedError


def _text(value: object) -> str:
    if type(value) is not str:
        raise FieldError("invalid_type", "A string is expected.")
    return value


class Pattern(str, Wire):
    """A string that matches `pattern` from its first to its last character."""

    pattern: ClassVar[re.Pattern[str]]
    message: ClassVar[str]

    @classmethod
    def parse(cls, value: object) -> Self:
        text = _text(value)
        if cls.pattern.fullmatch(text) is None:
            raise FieldError("invalid_format", cls.message)
        return cls(text)


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
    def parse(cls, value: object) -> Self:
        return cls(super().parse(value).lower())


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
    def parse(cls, value: object) -> Self:
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
    def parse(cls, value: object) -> Self:
        text = _text(value)
        if cls.pattern.fullmatch(text) is None:
            raise FieldError("invalid_format", "An amount is a string of digits in minor units, without sign or leading zero.")
        amount = cls(text)
        if amount > MAX_MINOR:
            raise FieldError("out_of_range", f"An amount is at most {MAX_MINOR}.")
        if amount < cls.least:
            raise FieldError("out_of_range", "The amount must be above zero.")
        return amount


class PositiveAmount(AmountMinor):
    """An amount above zero."""

    least = 1


class IsoDate(date, Wire):
    """A calendar date, YYYY-MM-DD."""

    pattern: ClassVar[re.Pattern[str]] = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
    schema = {"type": "string", "format": "date"}

    @classmethod
    def parse(cls, value: object) -> Self:
        text = _text(value)
        if cls.pattern.fullmatch(text) is None:
            raise FieldError("invalid_format", "A date is YYYY-MM-DD.")
        try:
            return cls.fromisoformat(text)
        except ValueError:
            raise FieldError("invalid_format", f"{text} is not a day of the calendar.") from None


class Text(str, Wire):
    """Printable text of 1 to `longest` characters, kept as it came."""

    longest: ClassVar[int]

    @classmethod
    def parse(cls, value: object) -> Self:
        text = _text(value)
        if not text:
            raise FieldError("too_short", "At least one character is expected.")
        if len(text) > cls.longest:
            raise FieldError("too_long", f"At most {cls.longest} characters are allowed.")
        if _UNPRINTABLE.search(text):
            raise FieldError("invalid_characters", "Control characters are not allowed.")
        return cls(text)


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
    def parse(cls, value: object) -> Self:
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
        return cls(value)


class PageSize(int, Wire):
    """A page's size out of a query string."""

    pattern: ClassVar[re.Pattern[str]] = re.compile(r"[1-9][0-9]{0,2}")
    schema = {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}

    @classmethod
    def parse(cls, value: object) -> Self:
        text = _text(value)
        if cls.pattern.fullmatch(text) is None or int(text) > 500:
            raise FieldError("out_of_range", "A page has 1 to 500 items.")
        return cls(text)


class PageToken(str, Wire):
    """Checked when it is opened (hpts/pagination.py), so that every bad one has one code."""

    schema = {"type": "string", "maxLength": 512}

    @classmethod
    def parse(cls, value: object) -> Self:
        return cls(_text(value))


def _decode(kind: type[T], value: object) -> T:
    if issubclass(kind, Wire):
        return kind.parse(value)  # type: ignore[return-value]
    raise FieldError("invalid_type", "Not a value of this type.")


def parse(value: object, kind: type[T]) -> T:
    """`value` as a `kind`, a Struct. Raises ValidationFailed naming every wrong field."""
    try:
        return msgspec.convert(value, kind, dec_hook=_decode)
    except msgspec.ValidationError:
        errors = list(_field_problems(value, kind, ""))
        raise ValidationFailed("One or more fields are not valid.", errors) from None


def _field_problems(value: object, kind: Any, path: str) -> Iterator[FieldProblem]:
    """Walk beside the declared type and name what is wrong, deepest first. Only refused requests pay for this."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if type(value) is not dict:
            yield FieldProblem(path, "invalid_type", "An object is expected.")
            return
        members = typing.get_type_hints(kind, include_extras=True)
        required = {field.name for field in msgspec.structs.fields(kind) if field.required}
        for name in value:
            if name not in members:
                yield FieldProblem(_join(path, name), "unknown_field", "There is no such field.")
        for name, member in members.items():
            if name in value:
                yield from _field_problems(value[name], _without_unset(member), _join(path, name))
            elif name in required:
                yield FieldProblem(_join(path, name), "required", "This field is required.")
    elif typing.get_origin(_bare(kind)) is list and type(value) is list:
        (item,) = typing.get_args(_bare(kind))
        found = False
        for position, element in enumerate(value):
            for problem in _field_problems(element, item, _join(path, str(position))):
                found = True
                yield problem
        if not found:
            yield from _leaf_problem(value, kind, path)
    else:
        yield from _leaf_problem(value, kind, path)


def _leaf_problem(value: object, kind: Any, path: str) -> Iterator[FieldProblem]:
    if value is None:
        yield FieldProblem(path, "invalid_type", "null is never a value: leave the member out.")
        return
    try:
        msgspec.convert(value, kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, FieldError):
            yield FieldProblem(path, error.__cause__.code, error.__cause__.message)
        elif str(error).startswith("Invalid enum value"):
            allowed = ", ".join(str(choice) for choice in typing.get_args(_bare(kind)))
            yield FieldProblem(path, "not_a_choice", f"One of these is expected: {allowed}.")
        elif ", got" in str(error):
            yield FieldProblem(path, "invalid_type", f"{str(error).split(' - at')[0]}.")
        else:
            yield FieldProblem(path, "out_of_range", f"{str(error).split(' - at')[0]}.")


def _bare(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def _without_unset(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (only,) = [argument for argument in typing.get_args(kind) if argument is not UnsetType]
        return only
    return kind


def _join(path: str, name: str) -> str:
    # A client's own member name may hold anything; what cannot be encoded is shown escaped.
    name = name.encode("utf-8", "backslashreplace").decode()[:100]
    return f"{path}.{name}" if path else name


def given(value: T | UnsetType) -> T | None:
    """An optional member's value, None when it was left out."""
    return None if value is UNSET else value  # type: ignore[return-value]


class _Refused(ValueError):
    pass


def _refuse(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON")


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Refused("a member stands twice")
    return members


_reader = json.JSONDecoder(object_pairs_hook=_members, parse_constant=_refuse)


def read_json(body: bytes) -> object:
    """One JSON document, UTF-8 without byte-order mark, no member twice, no NaN. Raises MalformedJSON."""
    try:
        text = body.decode("utf-8")
        if text.startswith("\ufeff"):
            raise _Refused("a byte-order mark comes first")
        return _reader.decode(text)
    except _Refused as error:
        raise MalformedJSON(f"The body is not JSON that can be accepted: {error}.") from None
    except (ValueError, RecursionError):
        raise MalformedJSON("The body is not one JSON document in UTF-8.") from None
