"""Page tokens by themselves: a token opens for its own list and filters alone, and cannot be made by anyone else."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given as supposing
from hypothesis import strategies as st

from hpts import pagination
from hpts.pagination import Paging, page_token, position_of
from hpts.problems import InvalidPageToken

SCOPE = ["tenant", "Loans", None, "2026-01-01"]
scopes = st.lists(st.none() | st.text(), max_size=5)
positions = st.lists(st.integers(-(2**63), 2**63 - 1) | st.text(max_size=36), min_size=1, max_size=2)


@supposing(scopes, positions)
def test_a_token_gives_its_position_back(scope: list[str | None], position: list[str | int]) -> None:
    token = page_token(scope, position)
    assert position_of(token, scope) == position
    assert token.isascii()


@supposing(scopes, scopes, positions)
def test_a_token_opens_for_its_own_scope_alone(
    scope: list[str | None], other: list[str | None], position: list[str | int]
) -> None:
    token = page_token(scope, position)
    if scope == other:
        return
    with pytest.raises(InvalidPageToken):
        position_of(token, other)


@pytest.mark.parametrize(
    "other",
    [
        ["tenant", "Loans", "2026-01-01", None],
        ["tenant", "Loans", "None", "2026-01-01"],
        ["tenant", "Loans", "", "2026-01-01"],
        ["tenantLoans", "", None, "2026-01-01"],
        ["tenant", "Loans", None],
        ["tenant", "Loans", None, "2026-01-01", None],
        ["Tenant", "Loans", None, "2026-01-01"],
    ],
)
def test_scopes_that_look_alike_are_not_alike(other: list[str | None]) -> None:
    with pytest.raises(InvalidPageToken):
        position_of(page_token(SCOPE, [7]), other)


@supposing(st.text(max_size=600) | st.binary(max_size=400).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_what_was_not_given_out_is_refused(text: str) -> None:
    with pytest.raises(InvalidPageToken):
        position_of(text, SCOPE)


def test_a_token_of_another_secret_is_refused(settings: Any) -> None:
    token = page_token(SCOPE, [7])
    pagination._key.cache_clear()
    settings.SECRET_KEY = "another"
    try:
        with pytest.raises(InvalidPageToken):
            position_of(token, SCOPE)
    finally:
        pagination._key.cache_clear()


def test_a_position_has_one_token() -> None:
    """Padding, other alphabets and loose bits of base64 are other texts, and are refused."""
    token = page_token(SCOPE, ["11111111-1111-1111-1111-111111111111"])
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    others = {
        base64.b64encode(raw).decode(),
        f"{token}=",
        f"{token}==",
        f"{token}\n",
        f"{token[:10]}\n{token[10:]}",
    } - {token}
    for other in others:
        with pytest.raises(InvalidPageToken):
            position_of(other, SCOPE)


def test_a_place_of_another_kind_is_refused() -> None:
    """A token outlives a release that orders its list otherwise."""
    asked = Paging.asked(page_token(SCOPE, [7]), 10, SCOPE, int)
    assert (asked.after, asked.limit) == (7, 11)
    for kinds in [(str,), (int, str), ()]:
        with pytest.raises(InvalidPageToken):
            Paging.asked(page_token(SCOPE, [7]), 10, SCOPE, *kinds)
