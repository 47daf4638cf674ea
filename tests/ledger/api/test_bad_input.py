"""Bad values in every member of every body: 400 with the member's path, never a 5xx, never coerced, nothing moved.

The table of values is by type; the members are read from the request structs, so that a new member is attacked without being
named here. Bodies that are no JSON, or too large, are in tests/hpts/test_framing.py.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import msgspec
import pytest

from hpts import fields
from ledger import serializers as shapes
from tests.conftest import Api, Lender, payment_of, posted, refused
from tests.ledger.api.conftest import WRITES, Write, with_value, without

Unmoved = Callable[[], AbstractContextManager[None]]

# Of no string type.
NOT_TEXT = [None, True, False, 0, 5, -5, 5.0, 1e3, 10**18 + 1, 10**30, [], ["x"], {}, {"x": "y"}]
# In no string type.
NEVER_TEXT = ["", "\x00", "x\x00", "\ud800", "x\udfff", "\n", "x" * 5_000]

AMOUNTS = [
    *[
        "1.0",
        "1e3",
        "+5",
        "-5",
        "-0",
        "00",
        "05",
        "1_000",
        "1,000",
        "١٢",
        "\uff15",
        "७",
        " 7",
        "7 ",
        "100\n",
        "\t7",
        "0x10",
    ],
    *["NaN", "Infinity", "∞", "½", "²", "9223372036854775808", "9" * 19, "1" + "0" * 19, "9" * 5_000],
]
DATES = [
    *["2023-02-29", "2026-02-30", "2026-13-01", "2026-00-10", "2026-01-00", "2026-01-32", "0000-01-01", "10000-01-01"],
    *[
        "20240101",
        "2024-W01-1",
        "2024-001",
        "2024-1-1",
        "24-01-01",
        "01/02/2024",
        "2024-01-01T00:00:00Z",
        "2024-01-01 00:00",
    ],
    *[
        "\u0662\u0660\u0662\u0664-\u0660\u0661-\u0660\u0661",
        "\uff12\uff10\uff12\uff14-01-01",
        "2024-01-01\n",
        " 2024-01-01",
        "2024-01-01 ",
        "+2024-01-01",
        "2024\u201001\u201001",
        "today",
    ],
]
UUIDS = [
    "urn:uuid:12345678-1234-1234-1234-123456789012",
    "{12345678-1234-1234-1234-123456789012}",
    "12345678123412341234123456789012",
    "12345678-1234-1234-1234-123456789012\n",
    " 12345678-1234-1234-1234-123456789012",
    "12345678-1234-1234-1234-12345678901",
    "12345678-1234-1234-1234-1234567890123",
    "12345678-1234-1234-1234-12345678901g",
    "١٢٣٤٥٦٧٨-1234-1234-1234-123456789012",
    "1234567-81234-1234-1234-123456789012",
]
CURRENCIES = [
    "usd",
    "Usd",
    "USD\n",
    "US",
    "USDX",
    "USD ",
    "ZZZ",
    "\uff35\uff33\uff24",
    "U$D",
    "\u00dcSD",
    "840",
    "\u0410UD",
]
CODES = [
    "\u0661\u0660\u0660\u0660",
    "100",
    "10000",
    "1000\n",
    " 100",
    "12a4",
    "-100",
    "\uff11\uff10\uff10\uff10",
    "1e03",
    "+100",
]
CONTROLS = ["a\nb", "a\tb", "a\rb", "\x1b[31m", "a\x7f", "a\x85", "\x9f", "\u0000a", "\x1f"]
METADATA: list[Any] = [
    *[[], [["a", "b"]], "", "x", 5, True, None],
    *[{"a": 1}, {"a": None}, {"a": True}, {"a": {}}, {"a": []}, {"a": {"b": "c"}}, {"a": 1.5}],
    *[{"a": "\x00"}, {"a\x00": "b"}, {"a": "b\n"}, {"\n": "b"}, {"a": "\ud800"}, {"\udfff": "a"}],
    *[
        {str(n): "" for n in range(51)},
        {"a": "x" * 16_384},
        {"x" * 16_384: "a"},
        {str(n): "é" * 200 for n in range(50)},
    ],
]
RATES: list[Any] = [None, True, "5", "", 5.0, 4.5, -1, 100_001, 2**63, 10**30, 1e300, [], [5], {}]
FLAGS: list[Any] = [None, 0, 1, "true", "false", "True", "yes", "", [], {}, [True], 1.0]
RETURN_CODES = ["r01", "R 1", "R01 ", " R01", "R01\n", "R-01", "R.01", "R0\u0661", "\uff32\uff10\uff11", "R" * 17, "É1"]
PLAN_HASHES = ["0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n", "0x" + "0" * 62, "\u0660" * 64]
LISTS: list[Any] = [None, True, "", "x", 5, {}, {"0": {}}, {"length": 2}]
ITEMS: list[Any] = [None, True, "", "x", 5, [], [{}]]


def bad_values(kind: Any) -> list[Any]:
    """Values that a member of this type refuses."""
    if typing.get_origin(kind) is list:
        return LISTS
    if issubclass(kind, msgspec.Struct):
        return ITEMS
    if issubclass(kind, fields.AmountMinor):
        return NOT_TEXT + NEVER_TEXT + AMOUNTS + (["0"] if kind.least else [])
    if issubclass(kind, fields.IsoDate):
        return NOT_TEXT + NEVER_TEXT + DATES
    if issubclass(kind, fields.Uuid):
        return NOT_TEXT + NEVER_TEXT + UUIDS
    if issubclass(kind, fields.CurrencyCode):
        return NOT_TEXT + NEVER_TEXT + CURRENCIES
    if issubclass(kind, fields.AccountCode):
        return NOT_TEXT + NEVER_TEXT + CODES
    if issubclass(kind, fields.Text):
        return NOT_TEXT + NEVER_TEXT + CONTROLS + ["x" * (kind.longest + 1)]
    if issubclass(kind, fields.Metadata):
        return METADATA
    if issubclass(kind, fields.Flag):
        return FLAGS
    if issubclass(kind, shapes.ReturnCode):
        return NOT_TEXT + NEVER_TEXT + RETURN_CODES
    if issubclass(kind, shapes.PlanHash):
        return NOT_TEXT + NEVER_TEXT + PLAN_HASHES
    if issubclass(kind, shapes.JsonObject):
        return [value for value in ITEMS if value != {}]
    if issubclass(kind, shapes.RateBps):
        return RATES
    if issubclass(kind, shapes.Waterfall):
        return [
            *ITEMS[:-2],
            [],
            ["fees"],
            ["fees", "fees", "fees"],
            ["fees", "interest", None],
            ["fees", "interest", ["principal"]],
        ]
    if issubclass(kind, shapes.Choice):
        word = kind.choices[0]
        words = [word.swapcase(), f"{word} ", f" {word}", f"{word}\n", word[:-1], ",".join(kind.choices), "nonsense"]
        return NOT_TEXT + NEVER_TEXT + words
    raise AssertionError(f"say here which values a {kind.__name__} refuses")


def members(shape: type, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and type of every member of a struct, of the first item of its lists too."""
    for name, hint in typing.get_type_hints(shape).items():
        choices = [part for part in typing.get_args(hint) if part is not msgspec.UnsetType]
        kind = hint if typing.get_origin(hint) is list or not choices else choices[0]
        yield f"{path}{name}", kind
        if typing.get_origin(kind) is list:
            (item,) = typing.get_args(kind)
            yield f"{path}{name}.0", item
            yield from members(item, f"{path}{name}.0.")
        elif issubclass(kind, msgspec.Struct):
            yield from members(kind, f"{path}{name}.")


ATTACKED = [(write, path, kind) for write in WRITES for path, kind in members(write.shape)]


@pytest.mark.parametrize(("write", "path", "kind"), ATTACKED, ids=[f"{write}-{path}" for write, path, _ in ATTACKED])
def test_a_bad_value_is_refused_by_its_path(
    write: Write, path: str, kind: Any, acme: Lender, nothing_moves: Unmoved
) -> None:
    route, body = write.prepare(acme)
    wrongly_taken = []
    with nothing_moves():
        for value in bad_values(kind):
            answer = acme.api.post(route, with_value(body, path, value))
            try:
                refused(answer, 400, "validation_failed", [path])
            except AssertionError as error:
                wrongly_taken.append(f"{json.dumps(value)[:80]}: {error}")
    assert not wrongly_taken, "\n".join(wrongly_taken)
    # And the body is good but for these.
    posted(acme.api.post(route, body))


def test_a_member_that_is_missing_is_named_by_its_path(write: Write, acme: Lender, nothing_moves: Unmoved) -> None:
    route, body = write.prepare(acme)
    with nothing_moves():
        for path in required(write.shape):
            refused(acme.api.post(route, without(body, path)), 400, "validation_failed", [path])


def required(shape: Any, path: str = "") -> Iterator[str]:
    """Paths of the members that must be there, of the first item of lists too."""
    hints = typing.get_type_hints(shape)
    for field in msgspec.structs.fields(shape):
        if field.required:
            hint = hints[field.name]
            yield f"{path}{field.name}"
            if typing.get_origin(hint) is list:
                yield from required(typing.get_args(hint)[0], f"{path}{field.name}.0.")
            elif issubclass(hint, msgspec.Struct):
                yield from required(hint, f"{path}{field.name}.")


def test_the_table_would_notice_an_unknown_type() -> None:
    class Novel(fields.Wire):
        pass

    with pytest.raises(AssertionError, match="Novel"):
        bad_values(Novel)


# --- What is unusual and yet good ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "x",
        " ",
        " x ",
        "\U0001f4b8" * 128,
        "e\u0301" * 64,
        "\u202ertl",
        "=cmd|'/C calc'!A0",
        "<script>alert(1)</script>",
        "'; DROP TABLE loan; --",
        "\\x00\\u0000",
        "\u2028\u2029",
        "\ufeffbom",
        "\ufffd\uffff\U0010ffff",
        "%00%s%(x)s{0}{{}}",
        "null",
    ],
)
def test_printable_text_is_taken_and_kept_as_it_came(api: Api, acme: Lender, text: str) -> None:
    body = payment_of(acme.loan, external_ref=text, metadata={text: text})
    made = posted(api.post("/v1/payments", body))
    assert api.entry(made["journal_entry_id"])["lines"][0]["external_ref"] == text


def test_metadata_may_be_as_large_as_is_said(api: Api, acme: Lender) -> None:
    posted(api.post("/v1/payments", payment_of(acme.loan, metadata={})))
    posted(api.post("/v1/payments", payment_of(acme.loan, metadata={str(n): "x" * 300 for n in range(50)})))


@pytest.mark.parametrize(
    "name",
    [
        "00000000-0000-0000-0000-000000000000",
        "2C1D43B8-E27A-11EE-AF2D-0242AC120002",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
    ],
)
def test_any_uuid_is_a_uuid(api: Api, acme: Lender, name: str, nothing_moves: Unmoved) -> None:
    """Nil, of version 1, of no version: well formed, and here of nobody."""
    with nothing_moves():
        refused(api.post("/v1/payments", payment_of(acme.loan, borrower_id=name)), 422, "borrower_mismatch")


# --- The shape of the body -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, [], "x", 5, True, [{}], 0.5], ids=json.dumps)
def test_a_body_that_is_no_object_is_refused(write: Write, acme: Lender, nothing_moves: Unmoved, value: Any) -> None:
    route, _ = write.prepare(acme)
    with nothing_moves():
        problem = refused(acme.api.post(route, json.dumps(value)), 400, "validation_failed")
    assert len(problem["errors"]) == 1


@pytest.mark.parametrize(
    "name", ["surplus", "__proto__", "", "loan_id ", "Loan_id", "loan_id\n", "é", "a.b", "x" * 5_000]
)
def test_members_that_nobody_knows_are_refused(api: Api, acme: Lender, nothing_moves: Unmoved, name: str) -> None:
    with nothing_moves():
        problem = refused(api.post("/v1/payments", payment_of(acme.loan) | {name: "x"}), 400, "validation_failed")
    assert [error["code"] for error in problem["errors"]] == ["unknown_field"]


@pytest.mark.parametrize("name", ["\x00", "a\x00b", "\ud800", "\udfff\ud800"], ids=ascii)
def test_members_with_impossible_names_are_refused(api: Api, acme: Lender, nothing_moves: Unmoved, name: str) -> None:
    with nothing_moves():
        refused(api.post("/v1/payments", payment_of(acme.loan) | {name: "x"}), 400, "validation_failed")


def test_many_unknown_members_are_refused_quickly(api: Api, acme: Lender, nothing_moves: Unmoved) -> None:
    body = payment_of(acme.loan) | {f"m{n}": 0 for n in range(15_000)}
    with nothing_moves():
        refused(api.post("/v1/payments", body), 400, "validation_failed", [f"m{n}" for n in range(15_000)])
