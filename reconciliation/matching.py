"""Which lines of the bank and of the books belong together, and what the rest is: pure functions over movements.

The rules run in order, each on what the one before has left. Every decision depends on what the movements are and never on the
order in which they come; where two choices are equally good, none is made and a person decides. Each rule sorts or hashes, so
that a hundred thousand lines on each side take seconds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

TOLERANCE = timedelta(days=3)
# Without a reference, the same amount is taken for the same movement on another date up to this far away.
DATE_DIFFERS_WITHIN = timedelta(days=30)
# The bounds of the search for sums: parts in the window of dates, sums kept, and steps in one call of a rule.
MAX_PARTS = 24
MAX_SUMS = 20_000
MAX_STEPS = 2_000_000


@dataclass(frozen=True, slots=True)
class Movement:
    """A line of a statement, or a line of the books on the bank's account. `amount_minor` is what the account gained.

    `mark` tells lines without a reference apart beside date and amount: the bank's description, the books' loan. `entry_id` and
    `reverses` are the books' alone; `in_period` says whether a statement covers the date, so that the bank should have it.
    """

    key: tuple[str, int]
    on: date
    amount_minor: int
    reference: str | None = None
    mark: str | None = None
    reverses: str | None = None
    in_period: bool = True

    @property
    def entry_id(self) -> str:
        return self.key[0]


@dataclass(frozen=True, slots=True)
class Match:
    """Movements that are one: both sides sum to the same."""

    rule: str
    bank: tuple[Movement, ...]
    ledger: tuple[Movement, ...]


@dataclass(frozen=True, slots=True)
class Break:
    """A difference: what is wrong, with which movement of each side, and by how much the bank has more than the books."""

    kind: str
    bank: Movement | None
    ledger: Movement | None

    @property
    def difference_minor(self) -> int:
        return (self.bank.amount_minor if self.bank else 0) - (self.ledger.amount_minor if self.ledger else 0)


KINDS = ("missing_in_ledger", "missing_at_bank", "amount_differs", "date_differs", "duplicate")
Movements = Sequence[Movement]
Rule = Callable[[Movements, Movements], list[Match]]


def match(
    bank: Iterable[Movement], ledger: Iterable[Movement], known: Iterable[Movement] = ()
) -> tuple[list[Match], list[Movement], list[Movement]]:
    """The matches, and what is left on each side. `known` are movements of the bank that have been matched before: a copy
    of one with its reference is a duplicate, which no rule but the reference itself may match."""
    bank_left, ledger_left = _sorted(bank), _sorted(ledger)
    found = by_reference(bank_left, ledger_left)
    bank_left, ledger_left = _without(bank_left, ledger_left, found)
    settled = _Copies([movement for each in found for movement in each.bank if movement.reference])
    settled.add(movement for movement in known if movement.reference)
    copies, bank_left = _split(bank_left, settled)
    for rule in LATER_RULES:
        matches = rule(bank_left, ledger_left)
        bank_left, ledger_left = _without(bank_left, ledger_left, matches)
        found += matches
    return found, _sorted([*bank_left, *copies]), ledger_left


def breaks(
    bank: Movements, ledger: Movements, bank_known: Iterable[Movement] = (), ledger_known: Iterable[Movement] = ()
) -> list[Break]:
    """One break for each movement that is left; for two together when they are plainly the same one. `known` are matched
    movements, which a movement that is left may be a copy of. Of the books, only what a statement covers."""
    bank_left, ledger_left = _sorted(bank), [movement for movement in _sorted(ledger) if movement.in_period]
    bank_copies, bank_left = _split(bank_left, _Copies(bank_known))
    ledger_copies, ledger_left = _split(ledger_left, _Copies(ledger_known))
    found = [Break("duplicate", movement, None) for movement in bank_copies]
    found += [Break("duplicate", None, movement) for movement in ledger_copies]
    for kind, same in (("date_differs", _reference_and_amount), ("amount_differs", _reference_and_side)):
        pairs = _pairs(bank_left, ledger_left, same)
        found += [Break(kind, *pair) for pair in pairs]
        bank_left, ledger_left = _without_pairs(bank_left, ledger_left, pairs)
    pairs = _lonely_amounts(bank_left, ledger_left)
    found += [Break("date_differs", *pair) for pair in pairs]
    bank_left, ledger_left = _without_pairs(bank_left, ledger_left, pairs)
    found += [Break("missing_in_ledger", movement, None) for movement in bank_left]
    found += [Break("missing_at_bank", None, movement) for movement in ledger_left]
    return found


# --- The rules -------------------------------------------------------------------------------------------------------


def by_reference(bank: Movements, ledger: Movements) -> list[Match]:
    """The same reference and amount, within the tolerance; several of them in order of date."""
    by_key: dict[tuple[str, int], tuple[list[Movement], list[Movement]]] = defaultdict(lambda: ([], []))
    for side, movements in enumerate((bank, ledger)):
        for movement in movements:
            if movement.reference:
                by_key[movement.reference, movement.amount_minor][side].append(movement)
    return [Match("reference", (theirs,), (ours,)) for sides in by_key.values() for theirs, ours in _in_step(*sides)]


def by_amount(bank: Movements, ledger: Movements) -> list[Match]:
    """The same amount within the tolerance, and on both sides no other that it could be. Copies of one movement, which
    nothing tells apart, count as one; each copy takes one of the other side's."""
    of_bank, of_ledger = _by_amount(bank), _by_amount(ledger)
    found: list[Match] = []
    for amount, copies in of_bank.items():
        others = of_ledger.get(amount, [])
        for movements in copies:
            candidate = _only_near(others, movements[0].on)
            if candidate is not None and _only_near(copies, candidate[0].on) is not None:
                found += [Match("amount", (theirs,), (ours,)) for theirs, ours in _in_step(movements, candidate)]
    return found


def one_to_many(bank: Movements, ledger: Movements) -> list[Match]:
    """One line of the bank is the sum of several of the books, such as a deposit of many payments."""
    return [Match("sum", (whole,), tuple(parts)) for whole, parts in _sums(bank, ledger)]


def many_to_one(bank: Movements, ledger: Movements) -> list[Match]:
    """Several lines of the bank are one of the books."""
    return [Match("sum", tuple(parts), (whole,)) for whole, parts in _sums(ledger, bank)]


def reversed_in_ledger(bank: Movements, ledger: Movements) -> list[Match]:
    """An entry and its reversal that the bank has never seen: together they are nothing."""
    originals: dict[tuple[str, int], deque[Movement]] = defaultdict(deque)
    for movement in ledger:
        originals[movement.entry_id, movement.amount_minor].append(movement)
    found = []
    for mirror in ledger:
        if mirror.reverses and (those := originals.get((mirror.reverses, -mirror.amount_minor))):
            found.append(Match("reversal", (), (those.popleft(), mirror)))
    return found


LATER_RULES: tuple[Rule, ...] = (by_amount, one_to_many, many_to_one, reversed_in_ledger)


# --- Sums ------------------------------------------------------------------------------------------------------------


def _sums(wholes: Movements, parts: Movements) -> list[tuple[Movement, list[Movement]]]:
    """Each whole with two or more parts within the tolerance that sum to it: all that share its reference, or all of one
    day, or the one and only choice among few."""
    pool = _Pool(parts)
    found = []
    for whole in wholes:
        taken = pool.of_reference(whole) or pool.of_a_day(whole) or pool.of_the_window(whole)
        if taken:
            pool.remove(taken)
            found.append((whole, taken))
    return found


class _Pool:
    """Parts that are not yet taken, by sign: sums of each day are kept, the search for a choice is bounded."""

    def __init__(self, parts: Movements) -> None:
        self.steps = 0
        self.taken: set[tuple[str, int]] = set()
        self.by_reference: dict[tuple[str, bool], list[Movement]] = defaultdict(list)
        self.by_day: dict[tuple[date, bool], list[Movement]] = defaultdict(list)
        self.day_sums: dict[tuple[date, bool], int] = defaultdict(int)
        for part in parts:
            is_gain = part.amount_minor > 0
            self.by_day[part.on, is_gain].append(part)
            self.day_sums[part.on, is_gain] += part.amount_minor
            if part.reference:
                self.by_reference[part.reference, is_gain].append(part)

    def remove(self, parts: Movements) -> None:
        for part in parts:
            self.taken.add(part.key)
            self.day_sums[part.on, part.amount_minor > 0] -= part.amount_minor

    def of_reference(self, whole: Movement) -> list[Movement]:
        named = self.by_reference.get((whole.reference, whole.amount_minor > 0), []) if whole.reference else []
        self.steps += len(named)
        if len(named) < 2 or self.steps > MAX_STEPS:
            return []
        parts = [part for part in self._free(named) if abs(part.on - whole.on) <= TOLERANCE]
        return parts if len(parts) > 1 and sum(part.amount_minor for part in parts) == whole.amount_minor else []

    def of_a_day(self, whole: Movement) -> list[Movement]:
        days = [day for day in self._days(whole) if self.day_sums.get(day, 0) == whole.amount_minor]
        parts = self._free(self.by_day[days[0]]) if len(days) == 1 else []
        return parts if len(parts) > 1 else []

    def of_the_window(self, whole: Movement) -> list[Movement]:
        window: list[Movement] = []
        for day in self._days(whole):
            parts = self.by_day.get(day, [])
            if len(parts) + len(window) > 4 * MAX_PARTS:
                return []
            window += [part for part in self._free(parts) if abs(part.amount_minor) < abs(whole.amount_minor)]
        if not 2 <= len(window) <= MAX_PARTS or self.steps > MAX_STEPS:
            return []
        return self._only_choice(window, abs(whole.amount_minor))

    def _only_choice(self, window: list[Movement], target: int) -> list[Movement]:
        """The only subset that sums to the target; nothing when there are several, or too many sums to know."""
        # For each sum: the chain of parts that makes it, or None when several do.
        chains: dict[int, Any] = {0: ()}
        for part in window:
            amount = abs(part.amount_minor)
            for total, chain in list(chains.items()):
                self.steps += 1
                if (larger := total + amount) <= target:
                    chains[larger] = None if larger in chains or chain is None else (part, chain)
            if len(chains) > MAX_SUMS:
                return []
        chain, chosen = chains.get(target), []
        while chain:
            part, chain = chain
            chosen.append(part)
        return chosen[::-1]

    def _days(self, whole: Movement) -> list[tuple[date, bool]]:
        return [(day, whole.amount_minor > 0) for day in _around(whole.on)]

    def _free(self, parts: Iterable[Movement]) -> list[Movement]:
        return [part for part in parts if part.key not in self.taken]


# --- What the rules share --------------------------------------------------------------------------------------------


def _sorted(movements: Iterable[Movement]) -> list[Movement]:
    """By what they are; the key only parts those that are equal in all else."""
    return sorted(movements, key=lambda m: (m.on, m.amount_minor, m.reference or "", m.mark or "", m.key))


def _around(day: date) -> list[date]:
    reach = range(-TOLERANCE.days, TOLERANCE.days + 1)
    first, last = date.min.toordinal(), date.max.toordinal()
    return [date.fromordinal(day.toordinal() + step) for step in reach if first <= day.toordinal() + step <= last]


def _copy_key(movement: Movement) -> tuple[Any, ...]:
    """Equal for movements that nothing tells apart: of one reference the dates may differ a little."""
    if movement.reference:
        return (movement.amount_minor, movement.reference)
    return (movement.amount_minor, movement.on, movement.mark)


class _Copies:
    """Movements by what makes another one their copy."""

    def __init__(self, movements: Iterable[Movement]) -> None:
        self.dates: dict[tuple[Any, ...], set[date]] = defaultdict(set)
        self.add(movements)

    def add(self, movements: Iterable[Movement]) -> None:
        for movement in movements:
            self.dates[_copy_key(movement)].add(movement.on)

    def has(self, movement: Movement) -> bool:
        days = self.dates.get(_copy_key(movement))
        return days is not None and any(day in days for day in _around(movement.on))


def _split(movements: Movements, settled: _Copies) -> tuple[list[Movement], list[Movement]]:
    """Those that are copies of settled ones, and the others."""
    copies: list[Movement] = []
    others: list[Movement] = []
    for movement in movements:
        (copies if settled.has(movement) else others).append(movement)
    return copies, others


def _reference_and_amount(movement: Movement) -> object:
    return movement.reference and (movement.reference, movement.amount_minor)


def _reference_and_side(movement: Movement) -> object:
    return movement.reference and (movement.reference, movement.amount_minor > 0)


def _by_amount(movements: Movements) -> dict[int, list[list[Movement]]]:
    """Groups of copies, by amount and in order of their first date. `movements` come sorted."""
    groups: dict[tuple[Any, ...], list[list[Movement]]] = defaultdict(list)
    found: dict[int, list[list[Movement]]] = defaultdict(list)
    for movement in movements:
        of_key = groups[_copy_key(movement)]
        if of_key and movement.on - of_key[-1][0].on <= TOLERANCE:
            of_key[-1].append(movement)
        else:
            of_key.append([movement])
            found[movement.amount_minor].append(of_key[-1])
    return found


def _only_near(groups: list[list[Movement]], day: date) -> list[Movement] | None:
    """The only group whose first date is within the tolerance; None when there are several or none."""
    start = bisect_left(groups, day.toordinal() - TOLERANCE.days, key=lambda group: group[0].on.toordinal())
    end = bisect_right(groups, day.toordinal() + TOLERANCE.days, key=lambda group: group[0].on.toordinal())
    return groups[start] if end - start == 1 else None


def _in_step(bank: Movements, ledger: Movements) -> list[tuple[Movement, Movement]]:
    """Pairs within the tolerance, as many as there can be: both sides in order of date."""
    pairs = []
    theirs = ours = 0
    while theirs < len(bank) and ours < len(ledger):
        if abs(bank[theirs].on - ledger[ours].on) <= TOLERANCE:
            pairs.append((bank[theirs], ledger[ours]))
            theirs, ours = theirs + 1, ours + 1
        elif bank[theirs].on < ledger[ours].on:
            theirs += 1
        else:
            ours += 1
    return pairs


def _pairs(bank: Movements, ledger: Movements, same: Callable[[Movement], Any]) -> list[tuple[Movement, Movement]]:
    """Pairs of both sides for which `same` is the same, in order of date."""
    waiting: dict[Any, deque[Movement]] = defaultdict(deque)
    for movement in ledger:
        if name := same(movement):
            waiting[name].append(movement)
    return [(movement, waiting[name].popleft()) for movement in bank if (name := same(movement)) and waiting.get(name)]


def _lonely_amounts(bank: Movements, ledger: Movements) -> list[tuple[Movement, Movement]]:
    """One movement on each side with this amount, whose references do not say that they are two."""
    by_amount: dict[int, tuple[list[Movement], list[Movement]]] = defaultdict(lambda: ([], []))
    for side, movements in enumerate((bank, ledger)):
        for movement in movements:
            by_amount[movement.amount_minor][side].append(movement)
    return [
        (theirs[0], ours[0])
        for theirs, ours in by_amount.values()
        if len(theirs) == len(ours) == 1
        and not (theirs[0].reference and ours[0].reference)
        and abs(theirs[0].on - ours[0].on) <= DATE_DIFFERS_WITHIN
    ]


def _without(bank: Movements, ledger: Movements, matches: Iterable[Match]) -> tuple[list[Movement], list[Movement]]:
    bank_keys: set[tuple[str, int]] = set()
    ledger_keys: set[tuple[str, int]] = set()
    for each in matches:
        bank_keys.update(movement.key for movement in each.bank)
        ledger_keys.update(movement.key for movement in each.ledger)
    return (
        [movement for movement in bank if movement.key not in bank_keys],
        [movement for movement in ledger if movement.key not in ledger_keys],
    )


def _without_pairs(
    bank: Movements, ledger: Movements, pairs: Iterable[tuple[Movement, Movement]]
) -> tuple[list[Movement], list[Movement]]:
    return _without(bank, ledger, [Match("", (theirs,), (ours,)) for theirs, ours in pairs])
