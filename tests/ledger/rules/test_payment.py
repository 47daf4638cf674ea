"""Tables for repaying: the waterfall in every order, what is available on a back-dated day, announced payments."""

from __future__ import annotations

from datetime import date
from itertools import permutations
from typing import Any

import pytest

from ledger.events import PENDING, SETTLED, PaymentReceived
from ledger.rules.payment import payment_received
from ledger.rules.waterfall import allocation
from tests.ledger.conftest import loan_state, said, state_of

DAY = "2025-03-01"


def paid(amount: int, day: str = DAY, layer: str = SETTLED, ref: str | None = None) -> PaymentReceived:
    return PaymentReceived(
        loan_id="loan",
        amount_minor=amount,
        currency="USD",
        effective_at=date.fromisoformat(day),
        layer=layer,
        source_method="ach",
        external_ref=ref,
    )


@pytest.mark.parametrize(
    ("owed", "amount", "expected"),
    [
        ({"fees": 30, "interest": 50, "principal": 1_000}, 10, ["CR fees 10"]),
        ({"fees": 30, "interest": 50, "principal": 1_000}, 30, ["CR fees 30"]),
        ({"fees": 30, "interest": 50, "principal": 1_000}, 31, ["CR fees 30", "CR interest 1"]),
        ({"fees": 30, "interest": 50, "principal": 1_000}, 80, ["CR fees 30", "CR interest 50"]),
        ({"fees": 30, "interest": 50, "principal": 1_000}, 500, ["CR fees 30", "CR interest 50", "CR principal 420"]),
        (
            {"fees": 30, "interest": 50, "principal": 1_000},
            1_080,
            ["CR fees 30", "CR interest 50", "CR principal 1000"],
        ),
        (
            {"fees": 30, "interest": 50, "principal": 1_000},
            1_090,
            ["CR fees 30", "CR interest 50", "CR principal 1000", "CR suspense 10"],
        ),
        ({"principal": 1_000}, 400, ["CR principal 400"]),
        ({"interest": 5}, 5, ["CR interest 5"]),
        ({}, 7, ["CR suspense 7"]),
        ({"suspense": 900, "principal": 10}, 4, ["CR principal 4"]),
    ],
)
def test_a_payment_meets_fees_then_interest_then_principal_and_the_rest_is_suspense(
    owed: dict[str, int], amount: int, expected: list[str]
) -> None:
    lines = payment_received(state_of(loan_state(**owed)), paid(amount))
    assert said(lines) == [f"DR cash {amount}", *expected]
    assert {(line.loan_id, line.borrower_id, line.currency) for line in lines} == {("loan", "borrower of loan", "USD")}


@pytest.mark.parametrize("order", list(permutations(["fees", "interest", "principal"])))
def test_the_program_decides_the_order(order: tuple[str, ...]) -> None:
    owed = {"fees": 3, "interest": 5, "principal": 7}
    lines = payment_received(state_of(loan_state(waterfall=" ".join(order), **owed)), paid(100))
    assert said(lines)[1:] == [*(f"CR {role} {owed[role]}" for role in order), "CR suspense 85"]


@pytest.mark.parametrize(
    ("state", "amount", "expected"),
    [
        # Interest that came later is not there yet.
        ({"interest": 50, "later": [("2025-03-02", "interest", 50)]}, 20, ["CR suspense 20"]),
        # What came on the day itself is.
        ({"interest": 50, "later": [("2025-03-01", "interest", 50)]}, 20, ["CR interest 20"]),
        # Principal that a later payment has taken may not be taken twice.
        (
            {"principal": 100, "later": [("2025-03-05", "principal", -900)]},
            400,
            ["CR principal 100", "CR suspense 300"],
        ),
        # The smallest balance of all later days counts, not the last one.
        (
            {"principal": 800, "later": [("2025-03-05", "principal", -900), ("2025-03-09", "principal", 700)]},
            400,
            ["CR principal 100", "CR suspense 300"],
        ),
        # Two movements on one day are one step.
        (
            {"principal": 500, "later": [("2025-03-05", "principal", -900), ("2025-03-05", "principal", 900)]},
            400,
            ["CR principal 400"],
        ),
        # Each receivable by itself.
        (
            {"fees": 10, "interest": 50, "principal": 500, "later": [("2025-03-02", "fees", 10)]},
            60,
            ["CR interest 50", "CR principal 10"],
        ),
    ],
)
def test_a_back_dated_payment_takes_what_no_later_day_misses(
    state: dict[str, Any], amount: int, expected: list[str]
) -> None:
    assert said(payment_received(state_of(loan_state(**state)), paid(amount)))[1:] == expected


def test_an_announced_payment_is_all_suspense_on_the_pending_layer() -> None:
    lines = payment_received(state_of(loan_state(principal=1_000, fees=10)), paid(50, layer=PENDING, ref="ach 7"))
    assert said(lines) == ["DR payment_clearing 50 PENDING", "CR suspense 50 PENDING"]


def test_announced_principal_is_not_paid_off() -> None:
    lines = payment_received(state_of(loan_state(pending={"principal": 900})), paid(50))
    assert said(lines) == ["DR cash 50", "CR suspense 50"]


@pytest.mark.parametrize("layer", [SETTLED, PENDING])
def test_the_reference_stands_on_the_cash_or_clearing_line_alone(layer: str) -> None:
    lines = payment_received(state_of(loan_state(principal=10)), paid(50, layer=layer, ref="ach 7"))
    assert [line.external_ref for line in lines] == ["ach 7", *[None] * (len(lines) - 1)]


def test_the_allocation_names_all_four_and_sums_to_the_amount() -> None:
    state = state_of(loan_state(fees=3, principal=40))
    shares = allocation(state, payment_received(state, paid(50)))
    assert shares == {"fees": 3, "interest": 0, "principal": 40, "suspense": 7}
