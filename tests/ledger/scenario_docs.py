"""docs/posting-rules.md, made of the scenario files: every example and every refusal in it is one that the tests have played.

    python -m tests.ledger.scenario_docs docs/posting-rules.md

What a kind means is said here in words; a caption (`#:`) in a scenario file makes an event an example of its kind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path

from ledger.chart import CONSUMER_LENDING
from ledger.events import EventKind
from tests.ledger.scenario import WITHOUT_ENTRY, Event, Scenario, files, read

PAGE = Path(__file__).parents[2] / "docs" / "posting-rules.md"
LIVES = "../tests/scenarios"


@dataclass(frozen=True)
class Words:
    """A kind in words: rows of the table (what, debit, credit), and a paragraph."""

    rows: tuple[tuple[str, str, str], ...]
    text: str


CASH = "1000 Operating Cash"
RECEIVABLES = "1300 Fees, 1200 Interest, 1100 Principal Receivable by the waterfall, the rest 2000 Suspense"

KINDS: dict[EventKind, Words] = {
    EventKind.DISBURSEMENT: Words(
        (
            ("", "1100 Principal Receivable", "1050 Disbursement Clearing"),
            (", PENDING", "1100 on PENDING", "1050 on PENDING"),
        ),
        """
        The loan is drawn: the borrower owes the principal, and the money stands in clearing until it has left the bank.
        An announced draw (PENDING) is not owed yet. SETTLED and PENDING principal together are held against the loan's
        limit.
        """,
    ),
    EventKind.DISBURSEMENT_SETTLED: Words(
        (
            ("", "1050 Disbursement Clearing", CASH),
            (", of a PENDING one", "the mirror on PENDING; 1100 Principal Receivable", CASH),
        ),
        """
        The money has left the bank. An announced draw leaves the PENDING layer, and is owed from the settlement's date
        on.
        """,
    ),
    EventKind.ACCRUAL: Words(
        (("", "per loan 1200 Interest Receivable", "per loan 4000 Interest Income"),),
        """
        The interest of a date, of one loan or of many in one entry. The accrual of date D covers the days up to D on
        the principal at the end of the day before: entries effective before D. Each item says the principal that it was
        computed on, and one that is not the ledger's own refuses the batch, with the items named. A loan is accrued
        once per date; a loan with interest 0 has no line and has used up the date. The reversal of the entry gives the
        date back.
        """,
    ),
    EventKind.PAYMENT_RECEIVED: Words(
        (
            ("", CASH, RECEIVABLES),
            (", PENDING", "1010 Payment Clearing on PENDING", "2000 Suspense on PENDING"),
        ),
        """
        The borrower's money. It meets what is owed on its date in the order of the program's waterfall, a permutation
        of fees, interest and principal that is in force on that date; what nothing is owed for waits in suspense. Of
        each receivable it takes at most what is available (see above). An announced payment (PENDING) pays nothing
        until it settles. On a refinanced loan all of it waits in suspense.
        """,
    ),
    EventKind.PAYMENT_ALLOCATED: Words(
        (
            (", settling a PENDING payment", f"the mirror on PENDING; {CASH}", RECEIVABLES),
            (
                ", from suspense",
                "2000 Suspense",
                "1300 Fees, 1200 Interest, 1100 Principal Receivable by the waterfall",
            ),
        ),
        """
        Money that waited meets what is owed. An announced payment settles: it is allocated by what is owed, and by the
        waterfall that is in force, on the settlement's date. Or an amount is taken from suspense, on request: it must
        be there, and the receivables must be able to take all of it.
        """,
    ),
    EventKind.PAYMENT_RETURNED: Words(
        (
            ("", "the mirror of what the payment, or its settlement, posted on SETTLED", CASH),
            (", of a PENDING one", "2000 Suspense on PENDING", "1010 Payment Clearing on PENDING"),
        ),
        """
        The bank has taken a payment back; what it paid is owed again. This is never refused for want of money. When
        what went to suspense is no longer there, the loan's allocations from suspense are undone in the same entry, the
        newest first, the last one in part; what is still missing was refunded to the borrower, and is owed as
        principal. The entry names the payment, or its settlement, as `reverses_entry_id`. A fee for the bounce is an
        entry of its own (`fee_assessed`) with the same correlation id.
        """,
    ),
    EventKind.FEE_ASSESSED: Words(
        (("", "1300 Fees Receivable", "4100 Fee Income"),),
        """
        A fee is owed, and is income from its date on.
        """,
    ),
    EventKind.FEE_WAIVED: Words(
        (("", "5100 Fee Waivers", "1300 Fees Receivable"),),
        """
        Fees are given up, at most what is outstanding. The waiver is an expense of its own: fee income goes on to show
        what was charged.
        """,
    ),
    EventKind.CHARGEOFF: Words(
        (("", "5000 Charge-off Expense", "1100 Principal, 1200 Interest, 1300 Fees Receivable"),),
        """
        The lender gives up on all that the loan owes. Interest and fees go to the same expense as principal. What is in
        suspense stays there. From then on the loan is `charged_off`.
        """,
    ),
    EventKind.RECOVERY: Words(
        (("", CASH, "4200 Recovery Income"),),
        """
        Money on a charged-off loan. It is income; the loan stays charged off.
        """,
    ),
    EventKind.REFINANCE: Words(
        (
            (
                "",
                "1100 Principal Receivable of the new loan",
                "1300 Fees, 1200 Interest, 1100 Principal Receivable of the old loan; cash-out to 1050 Disbursement Clearing",
            ),
        ),
        """
        A new loan takes over all that the old one owes, and may pay out some cash as well. Both are in one currency and
        of one borrower; principal and cash-out are held against the new loan's limit. From then on the old loan is
        `refinanced`. The new loan is made in the same transaction: when the refinance is refused there is none.
        """,
    ),
    EventKind.RESTRUCTURE: Words(
        (("", "1100 Principal Receivable", "1200 Interest, 1300 Fees Receivable"),),
        """
        New terms from a date. On request the interest, the fees, or both become principal, whole. The limit counts that
        and does not refuse it. When nothing is capitalised there is no entry, only the terms. A reversal puts the
        former terms back in force from the restructure's date.
        """,
    ),
    EventKind.REVERSAL: Words(
        (("", "the mirror of every line of the original", "on its layer, its loan, its account"),),
        """
        The exact mirror of an entry, once, dated on the original's date or later. It restores every balance. Not
        reversible are: a reversal; a return; a settlement; a payment or a draw that has since been settled or returned;
        a payment that a replan has allocated anew; an allocation from suspense that a return has undone; a charge-off
        after a recovery, until the recovery is reversed; a refinance whose new loan has other entries.
        """,
    ),
    EventKind.MANUAL_ADJUSTMENT: Words(
        (("", "the given lines", "the given lines"),),
        """
        An accountant's own lines, on any layer, in any state of the loan. A line on an account that is kept per loan
        names its loan. Availability holds here as well: by hand, too, no receivable and no suspense falls below zero on
        any date.
        """,
    ),
}

OPENING = f"""
# Posting rules

What each of the fourteen kinds of event posts. This page is made by `make rules` from the words in
`tests/ledger/scenario_docs.py` and from the [scenarios]({LIVES}): whole loan lives as text, which the
tests play over the API to the cent. Every example below is such a line.

How to read one: the date that counts, the kind, the amount; below it the lines that it must post, `DR` debit and `CR`
credit, the layer when it is not SETTLED, the loan where there are several. `as march` gives the event a name for what
comes later `of march`.
"""

EVERYWHERE = """
## What holds everywhere

**Entries.** One event posts one entry, except where a second one is said. Debits equal credits per currency and per
layer. Lines of zero are left out. Every line of an entry about one loan names the loan and its borrower; the bank's
reference stands on the cash or clearing line.

**Layers.** SETTLED is money that has moved, PENDING is announced, ENCUMBRANCE is reserved. No layer includes another.
What a loan owes is what SETTLED says.

**Dates.** An event counts on its `effective_at`: not after today, not before the loan's opening
(`effective_date_refused`), not in a closed period (`period_closed`). A past date is welcome: balances as of every day
since are right at once.

**Availability.** Nothing takes from a receivable or from suspense more than the smallest balance that it has on any
day from the event's date on. For an event of today that is the balance; for a back-dated one it keeps every as-of
balance at zero or above. What a payment cannot take goes to suspense; every other event is refused with
`amount_exceeds_balance`, but a bank's return never is.

**Loan state** is derived from the entries, never set. `charged_off`: a charge-off stands. `refinanced`: a refinance
into another loan stands. Else `paid_off`: something was lent, and nothing is owed. Else `open`. A fee or a draw opens
a paid-off loan again. What a state does not take is refused with `loan_state_refuses`.

**The program's terms** are dated: a payment goes by the waterfall in force on its own date.

**Common refusals** of every kind: `loan_not_found`, `borrower_mismatch`, `currency_mismatch`,
`effective_date_refused`, `period_closed`, and `amount_out_of_range` beyond 64 bits. A refusal leaves nothing behind.
All codes: [errors](errors.md).
"""

REPLANS = """
## Replans

`POST /v1/loans/{loan_id}/replans` with a date answers the entries that would bring the loan to where it would be, had
every payment since come on its date, and a `plan_hash`; sent again with it they are posted, all or none, unless the
loan has moved (`plan_outdated`). Each payment that would be allocated otherwise goes back to suspense on its own date,
the newest first; then all are allocated from suspense, in the order of their dates. Cash is not touched, and the
payment keeps its id.
"""

COMMON = {"loan_not_found", "borrower_mismatch", "currency_mismatch", "effective_date_refused", "period_closed"}

MASTERS = """
## What posts nothing

`POST /v1/programs/{program_id}/terms` gives a program other terms from a date. `POST /v1/periods/close` closes the
books through a date, for ever, and keeps the trial balance of that day.
"""


def page() -> str:
    lives = [read(path) for path in files()]
    sections = [OPENING, _table(lives), _chart(), EVERYWHERE]
    sections += [_kind(kind.value, f"## {kind.value}\n\n{cleandoc(KINDS[kind].text)}", lives) for kind in EventKind]
    sections += [_kind("replan", REPLANS, lives), _masters(lives), _lives(lives)]
    return "\n".join(section.strip("\n") + "\n" for section in sections)


def _table(lives: list[Scenario]) -> str:
    rows = ["## In one table\n", "| kind | debit | credit | refused with, beside what all are |", "|---|---|---|---|"]
    for kind in EventKind:
        codes = sorted({event.refusal for _, event in _events(lives, kind) if event.refusal} - COMMON)
        refused = ", ".join(f"`{code}`" for code in codes)
        for number, (what, debit, credit) in enumerate(KINDS[kind].rows):
            rows.append(f"| `{kind.value}`{what} | {debit} | {credit} | {'the same' if number else refused} |")
    return "\n".join(rows)


def _chart() -> str:
    rows = ["## Accounts\n", "| code | account | type | normal side | kept per loan |", "|---|---|---|---|---|"]
    for account in CONSUMER_LENDING:
        per_loan = "yes" if account.per_loan else ""
        rows.append(
            f"| {account.code} | {account.name} | {account.account_type} | {account.normal_side} | {per_loan} |"
        )
    return "\n".join(rows)


def _kind(kind: str, text: str, lives: list[Scenario]) -> str:
    """A section: words, the events with a caption, the refusals."""
    parts = [f"{text.strip()}\n"]
    for life, event in _events(lives, kind):
        if event.caption and not event.refusal:
            parts.append(f"{event.caption} ([{life.title}]({LIVES}/{life.name}))\n\n```\n{event.text}\n```\n")
    refusals = _refusals(_events(lives, kind))
    return "\n".join(parts + (["Refused:\n", *refusals] if refusals else []))


def _refusals(events: Iterator[tuple[Scenario, Event]]) -> list[str]:
    """A line per reason, with the life in which it is refused."""
    told: dict[tuple[str, str], str] = {}
    for life, event in events:
        if event.refusal and event.caption:
            line = f"- `{event.refusal}`: {event.caption} ([{life.title}]({LIVES}/{life.name}))"
            told.setdefault((event.refusal, event.caption), line)
    return [told[reason] for reason in sorted(told)]


def _masters(lives: list[Scenario]) -> str:
    """What posts nothing and changes what others may post."""
    refusals = [line for kind in sorted(WITHOUT_ENTRY) for line in _refusals(_events(lives, kind))]
    return "\n".join([MASTERS, "Refused:\n", *refusals])


def _lives(lives: list[Scenario]) -> str:
    parts = ["## Whole lives\n"]
    for life in lives:
        kinds = ", ".join(f"`{kind.value}`" for kind in EventKind if any(_events([life], kind)))
        parts.append(f"**[{life.title}]({LIVES}/{life.name})** ({kinds})\n\n{life.prose}\n")
    return "\n".join(parts)


def _events(lives: list[Scenario], kind: str) -> Iterator[tuple[Scenario, Event]]:
    return ((life, event) for life in lives for event in life.events if event.kind == kind)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), "utf-8")
