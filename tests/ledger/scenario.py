"""Scenario files: whole loan lives as text that an accountant can read and sign, parsed. What plays them is test_scenarios.py.

A file begins with comments: the title, then what the life shows. Then the header, then one step after another, in the order
of posting. The dates that count may go back.

    program: USD, 12.00 %, ACT_365, waterfall fees interest principal
    loan: opened 2025-01-02, limit 10,000.00

    #: A comment that begins so is the caption of the step below it: the public document takes both.
    2025-02-03 payment_received 888.49 USD, as february
      DR 1000 Operating Cash            888.49
      CR 1200 Interest Receivable       101.92
      CR 1100 Principal Receivable      786.57
    2025-02-04 disbursement 90,000.00 USD
      ! amount_exceeds_limit
    balance 2025-02-28: principal 9,213.43, interest 0.00, fees 0.00, suspense 0.00
    state open

Amounts are in major units, written in full. A line names its layer when it is not SETTLED, its loan when the event is not
about that one alone. Nothing of the product is asked here but the chart of accounts and how a currency is written.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

from ledger.chart import CONSUMER_LENDING, RECEIVABLES
from ledger.events import LAYERS, SETTLED, EventKind
from ledger.money import in_major_units

FOLDER = Path(__file__).parents[1] / "scenarios"
ACCOUNT_NAMES = {account.code: account.name for account in CONSUMER_LENDING}
BALANCES = ("principal", "interest", "fees", "suspense")

# What stands behind an event's kind and amount, and what else may be asked for. Everything that is not a kind posts nothing.
OPTIONS: dict[str, set[str]] = {
    "disbursement": {"PENDING"},
    "disbursement_settled": {"of"},
    "accrual": {"interest"},
    "payment_received": {"PENDING", "by", "ref"},
    "payment_allocated": {"of"},
    "payment_returned": {"of", "code", "NSF fee"},
    "fee_assessed": {"type"},
    "fee_waived": {"reason"},
    "chargeoff": {"reason"},
    "recovery": {"ref"},
    "refinance": {"into", "cash-out"},
    "restructure": {"rate", "capitalise interest", "capitalise fees"},
    "reversal": {"of", "reason"},
    "manual_adjustment": {"reason"},
    "accrual_run": {"program"},
    "accrual_pause": {"through"},
    "program_terms": {"waterfall", "rate", "program"},
    "period_close": set(),
    "replan": set(),
}
WITH_AMOUNT = {"disbursement", "payment_received", "fee_assessed", "fee_waived", "recovery"}
WITHOUT_ENTRY = {"program_terms", "period_close", "accrual_pause"}
# What a run posts, when it posts anything.
POSTS = {"accrual_run": "accrual"}
NEEDED = {
    "disbursement_settled": {"of"},
    "accrual": {"interest"},
    "payment_returned": {"of", "code"},
    "refinance": {"into"},
    "reversal": {"of"},
    "manual_adjustment": {"reason"},
}
FLAGS = {"PENDING", "capitalise interest", "capitalise fees"}
WORDS = sorted({"as", "loan", *(word for words in OPTIONS.values() for word in words)}, key=len, reverse=True)

NAME = r"[A-Za-z][\w-]*"
DAY = r"\d{4}-\d\d-\d\d"
AMOUNT = r"-?[\d,.]+"
EVENT = re.compile(rf"({DAY}) ([a-z_]+)(?:,? (.+))?")
MONEY = re.compile(rf"({AMOUNT}) ([A-Z]{{3}})")
INTEREST = re.compile(rf"(?:loan ({NAME}) )?({AMOUNT}) [A-Z]{{3}} on ({AMOUNT})")
LINE = re.compile(rf"(DR|CR) (\d{{4}}) (.+?)\s+({AMOUNT})(?: ({'|'.join(LAYERS)}))?(?: loan ({NAME}))?(?: ref (\S+))?")
# What begins a second entry, or each of several with dates of their own.
ENTRY = re.compile(rf"(?:and|on ({DAY})) ([a-z_]+)")
RATE = re.compile(r"(\d+)\.(\d\d) %")
CHECK = {
    "balance": re.compile(rf"balance(?: ({NAME}))? ({DAY}): (.+)"),
    "payoff": re.compile(rf"payoff(?: ({NAME}))? ({DAY}): ({AMOUNT})"),
    "preview": re.compile(rf"preview(?: ({NAME}))? ({DAY}) ({AMOUNT}): (.+)"),
    "account": re.compile(rf"account (\d{{4}}) (.+) ({DAY}): ({AMOUNT}) ([A-Z]{{3}})(?: ({'|'.join(LAYERS)}))?"),
    "state": re.compile(rf"state(?: ({NAME}))? (open|paid_off|charged_off|refinanced)"),
    "rate": re.compile(rf"rate(?: ({NAME}))? (.+)"),
}


class ScenarioError(ValueError):
    """The text cannot be read as a scenario; the message begins with file and line."""


@dataclass(frozen=True, slots=True)
class Program:
    name: str
    currency: str
    rate_bps: int
    day_count: str
    waterfall: tuple[str, ...]
    accrual_mode: str


@dataclass(frozen=True, slots=True)
class Loan:
    """`by_refinance`: the refinance makes it, nothing is opened before. All loans of a file have one borrower, unless told."""

    name: str
    program: Program
    opened_on: date
    limit_minor: int | None
    rate_bps: int | None
    borrower: str
    by_refinance: bool


@dataclass(frozen=True, slots=True)
class Line:
    direction: str
    code: str
    amount_minor: int
    currency: str
    layer: str
    loan: str | None
    ref: str | None

    def __str__(self) -> str:
        words = [
            self.direction,
            self.code,
            ACCOUNT_NAMES.get(self.code, "?"),
            in_major_units(self.amount_minor, self.currency),
        ]
        words += [self.layer] if self.layer != SETTLED else []
        words += [f"loan {self.loan}"] if self.loan else []
        words += [f"ref {self.ref}"] if self.ref else []
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Entry:
    kind: str
    on: date
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that is asked of the books, and what must come of it: entries, none, or a refusal."""

    place: str
    text: str
    caption: str
    on: date
    kind: str
    loan: Loan | None
    amount_minor: int | None
    currency: str | None
    options: dict[str, Any]  # As written; amounts in minor units, rates in basis points, a waterfall as a tuple.
    interest: tuple[tuple[Loan, int, int], ...]  # Of an accrual: loan, interest, principal that it was computed on.
    label: str | None
    entries: tuple[Entry, ...]
    refusal: str | None


@dataclass(frozen=True, slots=True)
class Check:
    """Something that the books must say at this point. `amounts` by name, or one under the kind's own name."""

    place: str
    text: str
    kind: str
    loan: Loan | None = None
    on: date | None = None
    code: str = ""
    currency: str = ""
    layer: str = SETTLED
    word: str = ""
    amounts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    title: str
    prose: str
    programs: dict[str, Program]
    loans: dict[str, Loan]
    steps: tuple[Event | Check, ...]

    @property
    def events(self) -> Iterator[Event]:
        return (step for step in self.steps if isinstance(step, Event))


def files() -> list[Path]:
    return sorted(FOLDER.glob("*.txt"))


def read(path: Path) -> Scenario:
    return parse(path.read_text("utf-8"), path.name)


def parse(text: str, name: str) -> Scenario:
    """Raises ScenarioError, which names file and line."""
    return _Reader(text, name).scenario()


class _Reader:
    """Reads one file from the first line to the last."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.lines = text.splitlines()
        self.number = 0
        self.programs: dict[str, Program] = {}
        self.loans: dict[str, Loan] = {}
        self.labels: dict[str, Event] = {}

    def scenario(self) -> Scenario:
        title, *prose = self.opening_comments()
        steps: list[Event | Check] = []
        caption: list[str] = []
        while (line := self.next_line()) is not None:
            if line.startswith("#:"):
                caption.append(line[2:].strip())
                continue
            if not line or line.startswith("#"):
                continue
            if line.startswith(" "):
                self.fail("lines belong below an event")
            head = line.split()[0]
            if head.rstrip(":") in ("program", "loan"):
                self.header(line)
            elif head in CHECK:
                steps.append(self.check(head, line))
            else:
                steps.append(self.event(line, " ".join(caption)))
            caption = []
        if not steps:
            self.fail("nothing happens in this life")
        return Scenario(self.name, title, "\n".join(prose).strip(), self.programs, self.loans, tuple(steps))

    def fail(self, message: str) -> NoReturn:
        raise ScenarioError(f"{self.place}: {message}")

    @property
    def place(self) -> str:
        return f"tests/scenarios/{self.name}:{self.number}"

    def next_line(self) -> str | None:
        if self.number == len(self.lines):
            return None
        self.number += 1
        return self.lines[self.number - 1].rstrip()

    def indented(self) -> Iterator[str]:
        """The indented lines that follow."""
        while self.number < len(self.lines) and self.lines[self.number].startswith(" "):
            line = self.next_line()
            assert line is not None
            yield line.strip()

    def opening_comments(self) -> list[str]:
        comments = []
        while self.number < len(self.lines) and self.lines[self.number].startswith("#"):
            comments.append(self.lines[self.number].lstrip("#").strip())
            self.number += 1
        if not comments or not comments[0]:
            self.number = max(self.number, 1)
            self.fail("begin with the title: # What this life is about")
        return comments

    # Words

    def day(self, text: str) -> date:
        try:
            return date.fromisoformat(text)
        except ValueError:
            self.fail(f"there is no day {text}")

    def minor(self, text: str, currency: str) -> int:
        """An amount as people write it: all decimals of the currency, thousands with commas."""
        digits = re.sub(r"[,.]", "", text)
        if not re.fullmatch(r"-?\d+", digits) or in_major_units(int(digits), currency) != text:
            self.fail(f"{text!r} is not an amount of {currency}: write one like {in_major_units(123456, currency)}")
        return int(digits)

    def basis_points(self, text: str) -> int:
        found = RATE.fullmatch(text)
        if found is None:
            self.fail(f"{text!r} is not a rate: write one like 12.00 %")
        return int(found[1] + found[2])

    def waterfall(self, text: str) -> tuple[str, ...]:
        order = tuple(text.split())
        if sorted(order) != sorted(RECEIVABLES):
            self.fail(f"{text!r} is not an order of {', '.join(RECEIVABLES)}")
        return order

    def account(self, code: str, name: str) -> str:
        if ACCOUNT_NAMES.get(code) != name:
            self.fail(f"account {code} is {ACCOUNT_NAMES.get(code, 'not in the chart')}, not {name}")
        return code

    def loan(self, name: str | None) -> Loan:
        """A loan by its name, or the only one."""
        if name is None and len(self.loans) == 1:
            return next(iter(self.loans.values()))
        if name is None:
            self.fail("there are several loans here: name one")
        if name not in self.loans:
            self.fail(f"there is no loan {name!r}")
        return self.loans[name]

    def amounts(self, text: str, names: tuple[str, ...], currency: str) -> dict[str, int]:
        amounts = {}
        for part in text.split(", "):
            name, _, amount = part.partition(" ")
            if name in amounts or name not in names:
                self.fail(f"{part!r}: one amount each of {', '.join(names)} is expected")
            amounts[name] = self.minor(amount, currency)
        if missing := [name for name in names if name not in amounts]:
            self.fail(f"say {missing[0]} too")
        return amounts

    # Header

    def header(self, line: str) -> None:
        kind, _, rest = line.partition(":")
        kind, _, name = kind.partition(" ")
        given: dict[str, str] = {}
        for part in rest.strip().split(", "):
            word, _, value = part.partition(" ")
            if re.fullmatch(r"[A-Z]{3}", part):
                word, value = "currency", part
            elif part.endswith("%"):
                word, value = "rate", part.removeprefix("rate ")
            elif re.fullmatch(r"ACT_\w+|30_360", part):
                word, value = "day count", part
            elif part in ("by refinance", "engine"):
                word, value = part, part
            if word in given:
                self.fail(f"{word} stands here twice")
            given[word] = value
        if kind == "program":
            self.add_program(name, given)
        else:
            self.add_loan(name, given)

    def add_program(self, name: str, given: dict[str, str]) -> None:
        if given.keys() - {"engine"} != {"currency", "rate", "day count", "waterfall"}:
            self.fail(
                "a program has a currency, a rate, a day count and a waterfall, and may be accrued by the `engine`"
            )
        if name in self.programs:
            self.fail(f"there is a program {name!r}")
        try:
            in_major_units(0, given["currency"])
        except ValueError:
            self.fail(f"there is no currency {given['currency']}")
        rate, order = self.basis_points(given["rate"]), self.waterfall(given["waterfall"])
        mode = "engine" if "engine" in given else "client"
        self.programs[name] = Program(name, given["currency"], rate, given["day count"], order, mode)

    def add_loan(self, name: str, given: dict[str, str]) -> None:
        if "opened" not in given or given.keys() - {"opened", "limit", "rate", "program", "borrower", "by refinance"}:
            self.fail("a loan has `opened`, and may have limit, program, borrower, a rate, `by refinance`")
        if name in self.loans:
            self.fail(f"there is a loan {name!r}")
        if given.get("program", "") not in self.programs:
            self.fail(f"there is no program {given.get('program', '')!r}")
        program = self.programs[given.get("program", "")]
        self.loans[name] = Loan(
            name,
            program,
            self.day(given["opened"]),
            self.minor(given["limit"], program.currency) if "limit" in given else None,
            self.basis_points(given["rate"]) if "rate" in given else None,
            given.get("borrower", ""),
            "by refinance" in given,
        )

    # Steps

    def event(self, line: str, caption: str) -> Event:
        place, first = self.place, self.number - 1
        found = EVENT.fullmatch(line)
        if found is None or found[2] not in OPTIONS:
            self.fail(f"{line!r} is neither an event nor a check")
        on, kind = self.day(found[1]), found[2]
        parts = found[3].split(", ") if found[3] else []
        interest = tuple(self.interest(parts)) if kind == "accrual" else ()
        money = MONEY.fullmatch(parts[0]) if parts else None
        options = self.options(kind, parts[1:] if money else parts) | ({"interest": ""} if interest else {})
        self.prove_asked(kind, options, money is not None)
        loan = self.loan_of(kind, options, interest)
        amount_minor = self.minor(money[1], money[2]) if money else None
        label = options.pop("as", None)
        if label in self.labels:
            self.fail(f"there is an event {label!r}")
        self.convert(options, loan)
        entries, refusal = self.outcome(kind, on, loan)
        if money is not None and loan is not None and money[2] != loan.program.currency and not refusal:
            self.fail(f"the loan is in {loan.program.currency}")
        event = Event(
            place=place,
            text="\n".join(self.lines[first : self.number]),
            caption=caption,
            on=on,
            kind=kind,
            loan=loan,
            amount_minor=amount_minor,
            currency=money[2] if money else None,
            options=options,
            interest=interest,
            label=label,
            entries=entries,
            refusal=refusal,
        )
        if label is not None:
            self.labels[label] = event
        return event

    def prove_asked(self, kind: str, options: dict[str, Any], has_amount: bool) -> None:
        """What an event cannot do without, and what it has no use for."""
        if missing := NEEDED.get(kind, set()) - options.keys():
            self.fail(f"{kind} needs {min(missing)!r}")
        if kind == "program_terms" and not options.keys() & {"waterfall", "rate"}:
            self.fail("program_terms needs a waterfall or a rate")
        if kind == "payment_allocated":
            if has_amount == ("of" in options):
                self.fail("payment_allocated settles the payment `of` a label, or takes an amount from suspense")
        elif has_amount != (kind in WITH_AMOUNT):
            self.fail(f"{kind} {'takes no amount' if has_amount else 'needs an amount and its currency'}")

    def interest(self, parts: list[str]) -> Iterator[tuple[Loan, int, int]]:
        """Takes out of the parts of an accrual the loans with their interest."""
        while parts and (found := INTEREST.fullmatch(parts[0])):
            loan = self.loan(found[1])
            del parts[0]
            yield loan, self.minor(found[2], loan.program.currency), self.minor(found[3], loan.program.currency)

    def options(self, kind: str, parts: list[str]) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for part in parts:
            word = next((word for word in WORDS if part == word or part.startswith(f"{word} ")), None)
            if word is None or word not in OPTIONS[kind] | {"as", "loan"}:
                self.fail(f"{kind} has no option {part!r}")
            value = part[len(word) :].strip()
            if word in options or bool(value) == (word in FLAGS):
                self.fail(f"{part!r} is not said right")
            options[word] = value
        if "of" in options and options["of"] not in self.labels:
            self.fail(f"no event above is called {options['of']!r}")
        return options

    def convert(self, options: dict[str, Any], loan: Loan | None) -> None:
        for word in ("NSF fee", "cash-out"):
            if word in options and loan is not None:
                options[word] = self.minor(options[word], loan.program.currency)
        if "through" in options:
            options["through"] = self.day(options["through"])
        if "rate" in options:
            options["rate"] = self.basis_points(options["rate"])
        if "waterfall" in options:
            options["waterfall"] = self.waterfall(options["waterfall"])
        if "into" in options and not self.loan(options["into"]).by_refinance:
            self.fail(f"say `by refinance` where loan {options['into']} is described: it is not there before")
        if options.get("program") not in (None, *self.programs):
            self.fail(f"there is no program {options['program']!r}")

    def loan_of(self, kind: str, options: dict[str, Any], interest: tuple[tuple[Loan, int, int], ...]) -> Loan | None:
        """The loan that lines of the event are about when they name none; None when there is no such one."""
        if named := options.pop("loan", None):
            return self.loan(named)
        if kind in WITHOUT_ENTRY - {"accrual_pause"}:
            return None
        if len(interest) > 1:
            return None
        if interest:
            return interest[0][0]
        if "of" in options:
            return self.labels[options["of"]].loan
        if kind in ("manual_adjustment", "accrual_run") and len(self.loans) > 1:
            return None
        return self.loan(None)

    def outcome(self, kind: str, on: date, loan: Loan | None) -> tuple[tuple[Entry, ...], str | None]:
        """The entries that must be posted, or the code of the refusal."""
        drafts: list[tuple[str, date, list[Line]]] = [(POSTS.get(kind, kind), on, [])]
        refusal = None
        nothing = kind in WITHOUT_ENTRY
        for text in self.indented():
            if text.startswith("! "):
                refusal = text[2:].strip()
            elif text == "no entry":
                nothing = True
            elif head := ENTRY.fullmatch(text):
                self.prove(drafts[-1][2])
                if head[2] not in set(EventKind):
                    self.fail(f"there is no kind {head[2]!r}")
                drafts.append((head[2], self.day(head[1]) if head[1] else on, []))
            else:
                drafts[-1][2].append(self.line(text, loan))
        entries = tuple(Entry(kind, day, tuple(lines)) for kind, day, lines in drafts if lines)
        # The lines of a refused adjustment are what was asked for, not what is posted.
        asked = kind == "manual_adjustment" and refusal is not None
        if [bool(entries) and not asked, nothing and refusal is None, refusal is not None].count(True) != 1:
            self.fail("say what comes of it: its lines, `no entry`, or `! code`")
        if not asked:
            self.prove(drafts[-1][2])
        return entries, refusal

    def line(self, text: str, loan: Loan | None) -> Line:
        found = LINE.fullmatch(text)
        if found is None:
            self.fail(f"{text!r} is not a line like DR 1000 Operating Cash 888.49")
        direction, code, name, amount, layer, named, ref = found.groups()
        about = self.loan(named) if named else loan
        if about is None:
            self.fail("name the loan of this line")
        currency = about.program.currency
        amount_minor = self.minor(amount, currency)
        if amount_minor <= 0:
            self.fail("a line has an amount above zero; a line of zero is left out")
        return Line(direction, self.account(code, name), amount_minor, currency, layer or SETTLED, about.name, ref)

    def prove(self, lines: list[Line]) -> None:
        """An accountant's first look: debits equal credits on each layer."""
        sums: dict[tuple[str, str], int] = defaultdict(int)
        for line in lines:
            sums[line.layer, line.currency] += line.amount_minor if line.direction == "DR" else -line.amount_minor
        for (layer, currency), difference in sums.items():
            if difference:
                apart = in_major_units(abs(difference), currency)
                self.fail(f"debits and credits of this entry differ by {apart} on {layer}")

    def check(self, kind: str, line: str) -> Check:
        found = CHECK[kind].fullmatch(line)
        if found is None:
            self.fail(f"{line!r} is not a {kind} check")
        if kind == "account":
            code, name, day, amount, currency, layer = found.groups()
            return Check(
                self.place,
                line,
                kind,
                on=self.day(day),
                code=self.account(code, name),
                currency=currency,
                layer=layer or SETTLED,
                amounts={kind: self.minor(amount, currency)},
            )
        loan, (_, *rest) = self.loan(found[1]), found.groups()
        currency = loan.program.currency
        if kind == "state":
            return Check(self.place, line, kind, loan, word=rest[0])
        if kind == "rate":
            return Check(self.place, line, kind, loan, amounts={kind: self.basis_points(rest[0])})
        on = self.day(rest[0])
        if kind == "balance":
            return Check(self.place, line, kind, loan, on, amounts=self.amounts(rest[1], BALANCES, currency))
        if kind == "payoff":
            return Check(self.place, line, kind, loan, on, amounts={kind: self.minor(rest[1], currency)})
        amounts = self.amounts(rest[2], BALANCES, currency)
        return Check(self.place, line, kind, loan, on, amounts=amounts | {kind: self.minor(rest[1], currency)})
