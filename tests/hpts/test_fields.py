"""The types of the wire and the JSON reader by themselves: what they take, what they give, and that nothing is coerced.

What they refuse is attacked over HTTP, in every member of every body (tests/ledger/api/test_bad_input.py).
"""

from __future__ import annotations

import contextlib
import json
import unicodedata
from datetime import date, datetime
from typing import Annotated, Any

import pytest
from hypothesis import given as supposing
from hypothesis import settings as how
from hypothesis import strategies as st
from iso4217 import Currency
from msgspec import UNSET, Meta, Struct, UnsetType

from hpts import fields
from hpts.problems import MalformedJSON, ValidationFailed

MAX_MINOR = 9_223_372_036_854_775_807
TEXT_TYPES = [fields.Name, fields.Description, fields.Reference]
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def refusal(kind: type[fields.Wire], value: object) -> str:
    with pytest.raises(fields.FieldError) as raised:
        kind.parse(value)
    assert raised.value.message
    return raised.value.code


# --- Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0", "1", "9", "10", "999999999999999999", str(MAX_MINOR)])
def test_an_amount_is_an_integer_of_minor_units(text: str) -> None:
    assert fields.AmountMinor.parse(text) == int(text)


@supposing(st.integers(0, MAX_MINOR))
def test_every_amount_of_the_range_comes_back(amount: int) -> None:
    assert fields.AmountMinor.parse(str(amount)) == amount


@supposing(st.text() | st.from_regex(r"[-+ ]?[0-9_.,eE\u0660-\u0669]{0,25}\s?", fullmatch=True))
def test_an_amount_has_one_spelling(text: str) -> None:
    try:
        amount = fields.AmountMinor.parse(text)
    except fields.FieldError:
        assert not (text.isascii() and text.isdigit() and str(int(text)) == text and int(text) <= MAX_MINOR)
    else:
        assert str(amount) == text


def test_zero_is_an_amount_and_not_a_positive_one() -> None:
    assert fields.AmountMinor.parse("0") == 0
    assert refusal(fields.PositiveAmount, "0") == "out_of_range"
    assert fields.PositiveAmount.parse("1") == 1


def test_an_amount_above_the_range_is_out_of_range() -> None:
    for text in (str(MAX_MINOR + 1), "9" * 19):
        assert refusal(fields.AmountMinor, text) == "out_of_range"


@supposing(st.dates())
def test_every_date_comes_back(day: date) -> None:
    assert fields.IsoDate.parse(day.isoformat()) == day


@supposing(st.text() | st.from_regex(r"[0-9\u0660-\u0669]{4}-?[0-9W]{1,3}-?[0-9]{0,2}.?", fullmatch=True))
def test_a_date_has_one_spelling(text: str) -> None:
    try:
        day = fields.IsoDate.parse(text)
    except fields.FieldError:
        return
    assert day.isoformat() == text


@supposing(st.datetimes())
def test_every_instant_of_utc_is_taken_and_kept_as_it_came(moment: datetime) -> None:
    text = f"{moment.isoformat()}Z"
    assert fields.Timestamp.parse(text) == text


@supposing(
    st.text()
    | st.from_regex(
        r"[0-9\u0660]{4}-[0-9]{2}-?[0-9]{2}[T ]?[0-9]{2}:[0-9]{2}:?[0-9]{0,2}[.,]?[0-9]{0,8}[Zz+].?", fullmatch=True
    )
)
def test_an_instant_has_seconds_at_most_six_digits_of_fraction_and_a_z(text: str) -> None:
    try:
        fields.Timestamp.parse(text)
    except fields.FieldError:
        return
    assert text.isascii()
    assert text[10] == "T"
    assert text[-1] == "Z"
    assert len(text) in (20, *range(22, 28))
    assert datetime.fromisoformat(text).isoformat()[:19] == text[:19]


@supposing(st.uuids())
def test_a_uuid_is_taken_in_any_case_and_given_in_lower(name: Any) -> None:
    assert fields.Uuid.parse(str(name)) == fields.Uuid.parse(str(name).upper()) == str(name)


def test_every_iso_currency_is_taken_and_no_other() -> None:
    codes = {currency.code for currency in Currency}
    assert {"USD", "EUR", "MXN", "JPY"} <= codes
    for first in "AEUXZ":
        for second in "ABDEUZ":
            for third in "ADEPRZ":
                code = first + second + third
                if code in codes:
                    assert fields.CurrencyCode.parse(code) == code
                else:
                    assert refusal(fields.CurrencyCode, code) == "unknown_currency"


@pytest.mark.parametrize("kind", TEXT_TYPES)
def test_text_is_as_long_as_is_said(kind: type[fields.Text]) -> None:
    assert (fields.Name.longest, fields.Description.longest, fields.Reference.longest) == (200, 500, 128)
    for character in ("x", "\U0001f600", "é"):
        assert kind.parse(character * kind.longest) == character * kind.longest
        assert refusal(kind, character * (kind.longest + 1)) == "too_long"
    assert refusal(kind, "") == "too_short"


@supposing(st.text(min_size=1, max_size=128))
def test_text_is_kept_as_it_came_or_refused(text: str) -> None:
    unprintable = any(unicodedata.category(character) in ("Cc", "Cs") for character in text)
    if unprintable:
        assert refusal(fields.Reference, text) == "invalid_characters"
    else:
        assert fields.Reference.parse(text) == text


def test_metadata_is_measured_as_json_in_utf8() -> None:
    frame = len('{"a":""}')
    assert fields.Metadata.parse({"a": "x" * (16 * 1024 - frame)})
    assert refusal(fields.Metadata, {"a": "x" * (16 * 1024 - frame + 1)}) == "too_long"
    assert fields.Metadata.parse({"a": "é" * (8 * 1024 - frame // 2)})
    assert refusal(fields.Metadata, {"a": "é" * (8 * 1024)}) == "too_long"
    assert fields.Metadata.parse({str(n): "" for n in range(50)})
    assert refusal(fields.Metadata, {str(n): "" for n in range(51)}) == "too_long"


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("50", 50), ("500", 500), ("0", None), ("501", None), ("007", None), ("1000", None), ("\u0665", None)],
)
def test_a_page_has_1_to_500_items(text: str, size: int | None) -> None:
    if size is None:
        assert refusal(fields.PageSize, text) == "out_of_range"
    else:
        assert fields.PageSize.parse(text) == size


WIRE_TYPES = [
    fields.Uuid,
    fields.AccountCode,
    fields.CurrencyCode,
    fields.AmountMinor,
    fields.PositiveAmount,
    fields.IsoDate,
    fields.Name,
    fields.Description,
    fields.Reference,
    fields.Metadata,
    fields.PageSize,
    fields.PageToken,
]


@how(max_examples=50)
@pytest.mark.parametrize("kind", WIRE_TYPES)
@supposing(value=JSON_VALUES)
def test_no_json_value_breaks_a_type(kind: type[fields.Wire], value: object) -> None:
    """Whatever comes: a value, or a FieldError."""
    try:
        kind.parse(value)
    except fields.FieldError:
        return
    assert isinstance(value, str | dict)


# --- Structs ---------------------------------------------------------------------------------------------------------


class Item(Struct, forbid_unknown_fields=True, kw_only=True):
    amount_minor: fields.AmountMinor
    note: fields.Reference | UnsetType = UNSET


class Body(Struct, forbid_unknown_fields=True, kw_only=True):
    name: fields.Name
    items: Annotated[list[Item], Meta(min_length=1, max_length=3)]
    on: fields.IsoDate | UnsetType = UNSET


def wrong(value: object) -> dict[str, str]:
    with pytest.raises(ValidationFailed) as raised:
        fields.parse(value, Body)
    assert len({error.field for error in raised.value.errors}) == len(raised.value.errors)
    return {error.field: error.code for error in raised.value.errors}


def test_a_struct_holds_plain_values() -> None:
    body = fields.parse({"name": "x", "items": [{"amount_minor": "5"}], "on": "2026-01-02"}, Body)
    assert body == Body(name="x", items=[Item(amount_minor=5)], on=date(2026, 1, 2))  # type: ignore[arg-type]
    assert fields.parse({"name": "x", "items": [{"amount_minor": "5"}]}, Body).on is UNSET


def test_every_wrong_member_is_named_with_its_path() -> None:
    items: list[Any] = [{"amount_minor": 5, "note": ""}, {"extra": 1}, None]
    assert wrong({"items": items, "on": None, "other": 1}) == {
        "name": "required",
        "items.0.amount_minor": "invalid_type",
        "items.0.note": "too_short",
        "items.1.amount_minor": "required",
        "items.1.extra": "unknown_field",
        "items.2": "invalid_type",
        "on": "invalid_type",
        "other": "unknown_field",
    }


def test_lists_have_bounds() -> None:
    good = {"amount_minor": "5"}
    assert wrong({"name": "x", "items": []}) == {"items": "too_short"}
    assert wrong({"name": "x", "items": [good] * 4}) == {"items": "too_long"}
    assert wrong({"name": "x", "items": {"0": good}}) == {"items": "invalid_type"}


def test_null_is_never_a_value() -> None:
    with pytest.raises(ValidationFailed) as raised:
        fields.parse({"name": None, "items": None, "on": None}, Body)
    assert {error.field for error in raised.value.errors} == {"name", "items", "on"}


@how(max_examples=200)
@supposing(JSON_VALUES)
def test_no_json_value_breaks_a_struct(value: object) -> None:
    with contextlib.suppress(ValidationFailed):
        fields.parse(value, Body)


# --- JSON ------------------------------------------------------------------------------------------------------------


@how(max_examples=200)
@supposing(JSON_VALUES)
def test_what_json_writes_is_read(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, indent=2)):
        assert fields.read_json(text.encode()) == value


@how(max_examples=300)
@supposing(
    st.binary() | st.text().map(str.encode) | st.text(alphabet='{}[]",:0123456789.eE+-\\/ untrfalsNI\n').map(str.encode)
)
def test_bytes_are_json_or_malformed(raw: bytes) -> None:
    with contextlib.suppress(MalformedJSON):
        assert fields.read_json(raw) == json.loads(raw)


@pytest.mark.parametrize(
    "raw", [b'{"a": 1, "b": {"c": [{"d": 1, "d": 1}]}}', b'{"\\u0061": 1, "a": 2}', b'[{"": 1, "": 2}]']
)
def test_a_member_stands_once_at_any_depth(raw: bytes) -> None:
    with pytest.raises(MalformedJSON):
        fields.read_json(raw)
