"""Whatever the books and the bank say, and whatever a person decides: closing minus ledger is what the breaks say it is."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from reconciliation import runs
from tests.conftest import Lender, posted
from tests.reconciliation.conftest import Bank, Row

STORIES = 40
AMOUNTS = (-300, -100, 100, 100, 200, 300, 450)
REFERENCES = (None, None, "A", "B", "C")


@pytest.mark.parametrize("story", range(STORIES))
def test_the_difference_is_the_sum_of_the_breaks(make_lender: Callable[..., Lender], story: int) -> None:
    """Seeded: two months of lines, some of them in the books, in gaps and beyond the ends; runs, decisions, late postings."""
    chance = random.Random(story)
    bank = Bank(make_lender())
    opening = 0
    for month, last in ((2, 28), (3, 31)):
        rows = movements(chance, bank, month)
        first = chance.choice([1, 1, 3])
        opening += chance.choice([0, 0, 0, 500])
        made = bank.imports(
            f"2026-{month:02}-{first:02}", f"2026-{month:02}-{last}", *rows, opening=f"{opening / 100:.2f}"
        )
        opening = int(made["closing_balance_minor"])
        conserved(bank)
        for _ in range(chance.randrange(4)):
            decide(chance, bank)
            conserved(bank)
    bank.has(chance.choice(AMOUNTS), "2026-02-15", chance.choice(REFERENCES))
    bank.api.post("/v1/reconciliation/runs", {})
    runs.work_off(bank.lender.tenant_id)
    conserved(bank)
    every_line_is_matched_or_a_break(bank)


def movements(chance: random.Random, bank: Bank, month: int) -> list[Row]:
    rows: list[Row] = []
    for _ in range(chance.randrange(3, 9)):
        day, amount, reference = chance.randrange(3, 28), chance.choice(AMOUNTS), chance.choice(REFERENCES)
        if chance.random() < 0.8:
            rows.append((f"2026-{month:02}-{day:02}", f"{amount / 100:.2f}", reference or ""))
        if chance.random() < 0.8:
            late = min(28, day + chance.choice([0, 1, 2, 3, 6]))
            other = amount + chance.choice([0, 0, 0, 10])
            bank.has(other, f"2026-{month:02}-{late:02}", reference)
    # Dated behind the statement's end, and matched across it when the amounts agree.
    if chance.random() < 0.5:
        amount, last = chance.choice(AMOUNTS), 28 if month == 2 else 31
        rows.append((f"2026-{month:02}-{last}", f"{amount / 100:.2f}", "LATE"))
        bank.has(amount, f"2026-{month + 1:02}-{chance.choice([1, 2, 3]):02}", chance.choice(["LATE", None]))
    # On the days around the statements' ends, and in the gap between them.
    bank.has(chance.choice(AMOUNTS), f"2026-{month:02}-{chance.choice([1, 2, 28]):02}", chance.choice(REFERENCES))
    return rows


def decide(chance: random.Random, bank: Bank) -> None:
    """A person resolves one open break, in a way that fits it."""
    found = bank.breaks(state="open")
    if not found:
        return
    one = chance.choice(found)
    if one["kind"] == "date_differs":
        posted(bank.resolve(one, "match"))
    elif chance.random() < 0.6:
        posted(bank.resolve(one, "adjust", account_code="5000"))
    else:
        posted(bank.resolve(one, "explain"))


STANDING = """
    SELECT b.statement_id IS NULL AND b.entry_id IS NULL AS of_opening, r.action, b.difference_minor
    FROM reconciliation_break b
    LEFT JOIN reconciliation_resolution r ON r.break_id = b.id
    LEFT JOIN bank_match_statement_line x ON x.statement_id = b.statement_id AND x.number = b.number
    LEFT JOIN bank_match_journal_line j ON j.entry_id = b.entry_id AND j.sequence = b.sequence
    WHERE (r.action IS NULL OR r.action = 'explain') AND x.match_id IS NULL AND j.match_id IS NULL
    ORDER BY b.opened_at, b.id"""


def conserved(bank: Bank) -> None:
    """Of opening balances that were explained the last one counts, as long as it stands."""
    rows = bank.rows(STANDING)
    lines = sum(difference for of_opening, _, difference in rows if not of_opening)
    opened = sum(difference for of_opening, action, difference in rows if of_opening and action is None)
    explained = [difference for of_opening, action, difference in rows if of_opening and action]
    state, difference = bank.status()
    rest = difference - lines - opened
    assert rest == 0 or (explained and rest == explained[-1] and opened == 0)
    assert state == ("unreconciled" if bank.breaks(state="open") else "reconciled")


def every_line_is_matched_or_a_break(bank: Bank) -> None:
    loose: list[tuple[Any, ...]] = bank.rows(
        """SELECT l.statement_id, l.number FROM bank_statement_line l
           WHERE (EXISTS (SELECT FROM bank_match_statement_line x
                          WHERE x.statement_id = l.statement_id AND x.number = l.number))::int
               + (EXISTS (SELECT FROM reconciliation_break b
                          LEFT JOIN reconciliation_resolution r ON r.break_id = b.id
                          WHERE b.statement_id = l.statement_id AND b.number = l.number
                            AND (r.action IS NULL OR r.action = 'explain')))::int < 1"""
    )
    assert loose == []
    twice = bank.rows(
        """SELECT b.statement_id, b.number FROM reconciliation_break b
           WHERE b.statement_id IS NOT NULL
             AND NOT EXISTS (SELECT FROM reconciliation_resolution r WHERE r.break_id = b.id)
           GROUP BY 1, 2 HAVING count(*) > 1"""
    )
    assert twice == []
