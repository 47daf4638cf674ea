"""The rules of matching, as an accountant reads them, and what holds of them whatever the lines are. No database."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciliation.matching import Match, Movement, breaks, match

FIRST = date(2026, 2, 1)


def movements(side: str, *rows: str) -> list[Movement]:
    """Each row: day of February, amount, reference or -, mark or -, and of the books the entry that it reverses."""
    found = []
    for number, row in enumerate(rows, 1):
        day, amount, *names = row.split()
        named = [name if name != "-" else None for name in (*names, "-", "-", "-")[:3]]
        on = FIRST + timedelta(int(day) - 1)
        found.append(Movement((f"{side}{number}", 1), on, int(amount), *named))
    return found


def told(matches: Iterable[Match]) -> list[str]:
    return sorted(
        f"{each.rule}: {'+'.join(m.entry_id for m in each.bank)} = {'+'.join(m.entry_id for m in each.ledger)}"
        for each in matches
    )


def matched(bank: list[str], ledger: list[str]) -> list[str]:
    return told(match(movements("b", *bank), movements("l", *ledger))[0])


def broken(bank: list[str], ledger: list[str]) -> list[str]:
    """Breaks of what no rule has matched: kind, line of each side, difference."""
    theirs, ours = movements("b", *bank), movements("l", *ledger)
    matches, bank_left, ledger_left = match(theirs, ours)
    known = [m for each in matches for m in each.bank], [m for each in matches for m in each.ledger]
    return sorted(
        f"{b.kind} {b.bank.entry_id if b.bank else '-'} {b.ledger.entry_id if b.ledger else '-'} {b.difference_minor}"
        for b in breaks(bank_left, ledger_left, *known)
    )


TABLE: dict[str, tuple[list[str], list[str], list[str]]] = {
    "reference and amount": (["3 500 A"], ["1 500 A"], ["reference: b1 = l1"]),
    "reference comes before amount": (["3 500 A"], ["3 500 B", "1 500 A"], ["reference: b1 = l2"]),
    "a reference four days away is none": (["5 500 A"], ["1 500 A"], []),
    "the same reference twice": (
        ["3 500 A", "4 500 A"], ["3 500 A", "4 500 A"], ["reference: b1 = l1", "reference: b2 = l2"]),
    "amount and date": (["3 500 X"], ["1 500 -"], ["amount: b1 = l1"]),
    "amount three days later": (["1 500"], ["4 500"], ["amount: b1 = l1"]),
    "amount four days later": (["1 500"], ["5 500"], []),
    "two candidates in the books": (["3 500"], ["2 500 - m", "4 500 - n"], []),
    "two candidates at the bank": (["2 500 - x", "4 500 - y"], ["3 500"], []),
    "the sign is part of the amount": (["3 500"], ["3 -500"], []),
    "copies pair with copies": (
        ["3 500 - fee", "3 500 - fee"], ["3 500 - loan", "3 500 - loan"], ["amount: b1 = l1", "amount: b2 = l2"]),
    "one of two copies is matched": (["3 500 A", "3 500 A"], ["3 500"], ["amount: b1 = l1"]),
    "a copy of a matched reference takes nobody else's": (["3 500 A", "3 500 A"], ["3 500 A", "3 500 B"], ["reference: b1 = l1"]),
    "one deposit of a day": (["4 600"], ["3 100", "3 200", "3 300", "2 50"], ["sum: b1 = l1+l2+l3"]),
    "one deposit by reference": (["4 300 D"], ["3 100 D", "2 200 D", "3 50"], ["sum: b1 = l2+l1"]),
    "the only choice of several days": (["4 350"], ["2 100", "3 250", "4 75"], ["sum: b1 = l1+l2"]),
    "no choice where there are two": (["4 300"], ["2 100", "3 200", "4 120", "5 180"], []),
    "parts of another sign are no parts": (["4 100"], ["3 200", "3 -100"], []),
    "parts four days away are no parts": (["9 300"], ["3 100", "9 200"], []),
    "many of the bank are one of the books": (["3 100", "4 250"], ["3 350"], ["sum: b1+b2 = l1"]),
    "money out sums as well": (["4 -300"], ["3 -100", "3 -200"], ["sum: b1 = l2+l1"]),
    "an entry and its reversal": (["1 7"], ["3 500 - -", "20 -500 - - l1"], ["reversal:  = l1+l2"]),
    "a reversal that the bank shows": (["3 500", "20 -500"], ["3 500", "20 -500 - - l1"], ["amount: b1 = l1", "amount: b2 = l2"]),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_what_belongs_together_is_matched(case: str) -> None:
    bank, ledger, expected = TABLE[case]
    assert matched(bank, ledger) == expected


BROKEN: dict[str, tuple[list[str], list[str], list[str]]] = {
    "missing in the books": (["3 500 A"], [], ["missing_in_ledger b1 - 500"]),
    "missing at the bank": ([], ["3 500 A"], ["missing_at_bank - l1 -500"]),
    "another amount": (["3 500 A"], ["4 510 A"], ["amount_differs b1 l1 -10"]),
    "another amount, money out": (["3 -500 A"], ["4 -510 A"], ["amount_differs b1 l1 10"]),
    "the other side is another thing": (["3 -500 A"], ["4 510 A"], ["missing_at_bank - l1 -510", "missing_in_ledger b1 - -500"]),
    "another date": (["20 500 A"], ["3 500 A"], ["date_differs b1 l1 0"]),
    "another date without a reference": (["20 500"], ["3 500 A"], ["date_differs b1 l1 0"]),
    "two references are two things": (["20 500 A"], ["3 500 B"], ["missing_at_bank - l1 -500", "missing_in_ledger b1 - 500"]),
    "two at the bank": (["3 500 A", "4 500 A"], ["3 500 A"], ["duplicate b2 - 500"]),
    "two in the books": (["3 500 A"], ["3 500 A", "4 500 A"], ["duplicate - l2 -500"]),
    "two in the books of one loan": (["3 500"], ["3 500 - loan", "3 500 - loan"], ["duplicate - l2 -500"]),
    "nobody knows which": (
        ["3 500"], ["2 500 - m", "4 500 - n"],
        ["missing_at_bank - l1 -500", "missing_at_bank - l2 -500", "missing_in_ledger b1 - 500"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_left_is_a_break(case: str) -> None:
    bank, ledger, expected = BROKEN[case]
    assert broken(bank, ledger) == expected


def test_what_no_statement_covers_is_no_break() -> None:
    outside = [replace(each, in_period=False) for each in movements("l", "3 500 A")]
    assert breaks([], outside) == []


def test_the_search_for_sums_ends_when_its_steps_are_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, ledger, expected = TABLE["the only choice of several days"]
    assert matched(bank, ledger) == expected
    monkeypatch.setattr("reconciliation.matching.MAX_STEPS", -1)
    assert matched(bank, ledger) == []


# --- Whatever the lines are ------------------------------------------------------------------------------------------

SIDE = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.sampled_from([-300, -100, 100, 100, 200, 250, 300, 400]),
        st.sampled_from([None, None, "A", "B", "C"]),
        st.sampled_from([None, "x", "y"]),
    ),
    max_size=12,
)


def side(name: str, rows: list[tuple[int, int, str | None, str | None]]) -> list[Movement]:
    return [
        Movement((f"{name}{number:02}", 1), FIRST + timedelta(day), amount, reference, mark)
        for number, (day, amount, reference, mark) in enumerate(rows)
    ]


def content(movement: Movement | None) -> tuple[object, ...]:
    return () if movement is None else (movement.on, movement.amount_minor, movement.reference, movement.mark)


def outcome(bank: list[Movement], ledger: list[Movement]) -> tuple[Counter[object], Counter[object]]:
    """Matches and breaks by what the movements are, not by which of several equal ones it is."""
    matches, bank_left, ledger_left = match(bank, ledger)
    known = [m for each in matches for m in each.bank], [m for each in matches for m in each.ledger]
    found = breaks(bank_left, ledger_left, *known)

    def named(each: Match) -> object:
        sides = (tuple(sorted(map(repr, map(content, movements)))) for movements in (each.bank, each.ledger))
        return (each.rule, *sides)

    return (
        Counter(named(each) for each in matches),
        Counter((each.kind, content(each.bank), content(each.ledger)) for each in found),
    )


@settings(max_examples=150)
@given(SIDE, SIDE, st.randoms(use_true_random=False))
def test_the_order_of_lines_does_not_matter(bank: list, ledger: list, chance: random.Random) -> None:  # type: ignore[type-arg]
    theirs, ours = side("b", bank), side("l", ledger)
    shuffled = side("b", chance.sample(bank, len(bank))), side("l", chance.sample(ledger, len(ledger)))
    assert outcome(theirs, ours) == outcome(*shuffled)


@settings(max_examples=150)
@given(SIDE, SIDE)
def test_every_line_is_matched_once_or_in_one_break_and_amounts_are_conserved(bank: list, ledger: list) -> None:  # type: ignore[type-arg]
    theirs, ours = side("b", bank), side("l", ledger)
    matches, bank_left, ledger_left = match(theirs, ours)
    known = [m for each in matches for m in each.bank], [m for each in matches for m in each.ledger]
    found = breaks(bank_left, ledger_left, *known)
    seen = Counter(m.key for each in matches for m in (*each.bank, *each.ledger))
    seen.update(m.key for each in found for m in (each.bank, each.ledger) if m is not None)
    assert seen == Counter(m.key for m in (*theirs, *ours))
    for each in matches:
        assert sum(m.amount_minor for m in each.bank) == sum(m.amount_minor for m in each.ledger)
    difference = sum(m.amount_minor for m in theirs) - sum(m.amount_minor for m in ours)
    assert difference == sum(each.difference_minor for each in found)


@settings(max_examples=50)
@given(SIDE, SIDE)
def test_matching_again_finds_nothing_more(bank: list, ledger: list) -> None:  # type: ignore[type-arg]
    """But by what is no longer ambiguous: never by the reference."""
    theirs, ours = side("b", bank), side("l", ledger)
    matches, bank_left, ledger_left = match(theirs, ours)
    again, _, _ = match(bank_left, ledger_left, [m for each in matches for m in each.bank])
    assert not [each for each in again if each.rule == "reference"]


# --- Size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [None, "SAME"])
@pytest.mark.parametrize("amount", [100, 0])
def test_lines_that_nothing_tells_apart_stay_quick(reference: str | None, amount: int) -> None:
    """Equal amounts, or one reference for all: windows, copies, sums and pairs never look at every line for every line."""
    count = 10_000
    theirs = [
        Movement((f"b{n}", 1), FIRST + timedelta(n % 28), amount or 7 + n, reference, f"x{n}") for n in range(count)
    ]
    ours = [
        Movement(
            (f"l{n}", 1), FIRST + timedelta(n % 28), amount + n % 3 if amount else 6_000_000 - n, reference, f"y{n}"
        )
        for n in range(count)
    ]
    began = time.process_time()
    matches, bank_left, ledger_left = match(theirs, ours)
    known = [m for each in matches for m in each.bank], [m for each in matches for m in each.ledger]
    found = breaks(bank_left, ledger_left, *known)
    assert time.process_time() - began < 10
    seen = sum(len(each.bank) + len(each.ledger) for each in matches)
    seen += sum((each.bank is not None) + (each.ledger is not None) for each in found)
    assert seen == 2 * count


def test_ten_thousand_lines_on_each_side_take_seconds() -> None:
    """The figure for a hundred thousand is benchmarks/reconciliation.py's; this one notices what grows with the square."""
    count = 10_000
    theirs = [
        Movement((f"b{n}", 1), FIRST + timedelta(n % 28), 1_000 + n, f"R{n}" if n % 2 else None) for n in range(count)
    ]
    ours = [
        Movement((f"l{n}", 1), FIRST + timedelta((n % 28) + n % 3), 1_000 + n, f"R{n}" if n % 3 else None)
        for n in range(count)
    ]
    tracemalloc.start()
    began = time.process_time()
    matches, bank_left, ledger_left = match(theirs, ours)
    took = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(matches), bank_left, ledger_left) == (count, [], [])
    assert took < 10
    assert peak < 50 * 1024 * 1024
