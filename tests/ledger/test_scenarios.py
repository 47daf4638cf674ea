"""Every scenario file is played over the API, in books of its own: what it says is posted, refused and owed, to the cent."""

from __future__ import annotations

import difflib
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NoReturn

import pytest

from hpts import problems
from ledger import runs
from ledger.chart import RECEIVABLES
from ledger.events import LAYERS, EventKind
from ledger.money import in_major_units
from tests.conftest import Json, Lender, new_key, posted, refused, shown
from tests.ledger import scenario_docs
from tests.ledger.scenario import (
    BALANCES,
    FOLDER,
    Check,
    Entry,
    Event,
    Line,
    Loan,
    Program,
    Scenario,
    ScenarioError,
    files,
    parse,
    read,
)

LOAN_LIFE = scenario_docs.PAGE.parent / "loan-life.md"
STATUS = {kind.code: kind.status for kind in problems.catalogue()}
SCENARIOS = [read(path) for path in files()]
OWED = ("principal_outstanding_minor", "interest_receivable_minor", "fees_receivable_minor")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name.removesuffix(".txt"))
def test_a_life_is_posted_as_it_is_written(scenario: Scenario, acme: Lender) -> None:
    player = Player(acme, scenario)
    player.open()
    for step in scenario.steps:
        player.step(step)
    player.close()


@dataclass
class Player:
    """Plays one scenario with a client of one tenant. Nothing is read or written but through the API."""

    lender: Lender
    scenario: Scenario
    programs: dict[str, str] = field(default_factory=dict)
    loans: dict[str, str] = field(default_factory=dict)
    borrowers: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Json] = field(default_factory=dict)
    # Of payments that were settled: the entry that a return mirrors.
    settlements: dict[str, str] = field(default_factory=dict)
    # Per loan, the ids of the entries that its history must show.
    entries: dict[str, list[str]] = field(default_factory=dict)

    # The story

    def open(self) -> None:
        for program in self.scenario.programs.values():
            self.programs[program.name] = posted(self.lender.api.post("/v1/programs", program_of(program)))[
                "program_id"
            ]
        for loan in self.scenario.loans.values():
            self.loans[loan.name] = str(uuid.uuid4())
            self.borrowers.setdefault(loan.borrower, str(uuid.uuid4()))
            if not loan.by_refinance:
                posted(self.lender.api.post("/v1/loans", self.loan_body(loan)))

    def step(self, step: Event | Check) -> None:
        if isinstance(step, Event):
            self.event(step)
        else:
            self.check(step)

    def event(self, event: Event) -> None:
        path, body = self.request(event)
        before = self.lender.books() if event.refusal else None
        key = new_key()
        answer: Any = self.lender.api.post(path, body, key=key)
        if event.refusal is not None:
            self.must_refuse(event, answer)
            assert self.lender.books() == before, f"{event.place}: the refused request has moved the books"
            return
        if answer.status_code not in (201, 202):
            self.fail(event, f"refused: {answer.content.decode()}")
        made = posted(answer)
        again: Any = self.lender.api.post(path, body, key=key)
        assert (again.status_code, again.content) == (200, answer.content), f"{event.place}: not replayed"
        if event.kind == "accrual_run":
            made = self.work(made)
        self.must_post(event, made)
        if event.label is not None:
            self.answers[event.label] = made
        if event.kind == "payment_allocated" and "of" in event.options:
            self.settlements[event.options["of"]] = made["journal_entry_id"]

    def work(self, run: Json) -> Json:
        """What workers do when a run has been asked for; gives the entries that it has posted."""
        runs.work(self.lender.tenant_id, run["accrual_run_id"])
        known = {entry_id for entries in self.entries.values() for entry_id in entries}
        found = shown(self.lender.api.get(f"/v1/accrual-runs/{run['accrual_run_id']}"))
        assert found["exceptions"] == [], found
        histories = [
            shown(self.lender.api.get(f"/v1/loans/{loan_id}/journal-entries", {"page_size": 100}))["items"]
            for loan_id in self.loans.values()
        ]
        posted_now = [entry["journal_entry_id"] for history in histories for entry in history]
        ids = [entry_id for entry_id in dict.fromkeys(posted_now) if entry_id not in known]
        return {"journal_entry_ids": ids} | ({"journal_entry_id": ids[0]} if ids else {})

    def close(self) -> None:
        """What holds at the end of every life: the books balance, and each loan's history shows what was posted, in order."""
        for currency in {program.currency for program in self.scenario.programs.values()}:
            for layer in LAYERS:
                query = {"currency": currency, "layer": layer}
                totals = shown(self.lender.api.get("/v1/trial-balance", query))
                assert totals["total_dr_minor"] == totals["total_cr_minor"], totals
        for name, loan_id in self.loans.items():
            answer: Any = self.lender.api.get(f"/v1/loans/{loan_id}/journal-entries", {"page_size": 100})
            if name in self.entries or answer.status_code == 200:
                history = [entry["journal_entry_id"] for entry in shown(answer)["items"]]
                assert history == self.entries.get(name, []), f"{self.scenario.name}: the history of loan {name!r}"

    # Requests

    def loan_body(self, loan: Loan) -> Json:
        body = {
            "loan_id": self.loans[loan.name],
            "borrower_id": self.borrowers[loan.borrower],
            "program_id": self.programs[loan.program.name],
            "opened_on": loan.opened_on.isoformat(),
        }
        if loan.limit_minor is not None:
            body["principal_limit_minor"] = str(loan.limit_minor)
        return body if loan.rate_bps is None else body | {"annual_rate_bps": loan.rate_bps}

    def request(self, event: Event) -> tuple[str, Json]:
        """Path and body of an event."""
        options, loan = event.options, event.loan
        body: Json = {"effective_at": event.on.isoformat()}
        if event.amount_minor is not None:
            body |= {"amount_minor": str(event.amount_minor), "currency": event.currency}
        about = {}
        if loan is not None:
            about = {"loan_id": self.loans[loan.name], "borrower_id": self.borrowers[loan.borrower]}
        of_loan = f"/v1/loans/{about.get('loan_id')}"
        of = self.answers.get(options.get("of", ""), {})
        match event.kind:
            case "disbursement":
                return "/v1/disbursements", body | about | {"method": "ach"} | layer_of(options)
            case "disbursement_settled":
                return f"/v1/disbursements/{of['disbursement_event_id']}/settlement", body
            case "accrual":
                return "/v1/accruals/batch", self.accrual(event)
            case "payment_received":
                more = {"source_method": options.get("by", "ach")} | layer_of(options)
                return "/v1/payments", body | about | more | renamed(options, ref="external_ref")
            case "payment_allocated" if of:
                return f"/v1/payments/{of['payment_event_id']}/settlement", body
            case "payment_allocated":
                return f"{of_loan}/suspense-allocations", body
            case "payment_returned":
                fee = {"nsf_fee_minor": str(options["NSF fee"])} if "NSF fee" in options else {}
                return f"/v1/payments/{of['payment_event_id']}/return", body | fee | {"return_code": options["code"]}
            case "fee_assessed":
                return f"{of_loan}/fees", body | renamed(options, type="fee_type")
            case "fee_waived":
                return f"{of_loan}/fee-waivers", body | {"reason": options.get("reason", "Agreed")}
            case "chargeoff":
                return f"{of_loan}/chargeoff", body | {"reason": options.get("reason", "Not collectible")}
            case "recovery":
                return f"{of_loan}/recoveries", body | renamed(options, ref="external_ref")
            case "refinance":
                cash_out = {"cash_out_minor": str(options["cash-out"])} if "cash-out" in options else {}
                new_loan = self.loan_body(self.scenario.loans[options["into"]])
                return f"{of_loan}/refinance", body | {"new_loan": new_loan} | cash_out
            case "restructure":
                flags = {word.replace(" ", "_"): True for word in options if word.startswith("capitalise")}
                return f"{of_loan}/restructure", body | flags | renamed(options, rate="annual_rate_bps")
            case "reversal":
                reason = {"reason_code": options.get("reason", "error_correction")}
                return "/v1/reversals", body | reason | {"reverses_entry_id": of["journal_entry_id"]}
            case "manual_adjustment":
                lines = [self.line_body(line) for line in event.entries[0].lines]
                return "/v1/journal-entries", body | {"description": options["reason"], "lines": lines}
            case "program_terms":
                path = f"/v1/programs/{self.programs[options.get('program', '')]}/terms"
                return path, body | renamed(options, waterfall="waterfall", rate="annual_rate_bps")
            case "accrual_run":
                path = f"/v1/programs/{self.programs[options.get('program', '')]}/accrual-runs"
                return path, {"accrual_date": event.on.isoformat()}
            case "accrual_pause":
                through = {"to_date": options["through"].isoformat()} if "through" in options else {}
                return f"{of_loan}/accrual-pauses", {"from_date": event.on.isoformat()} | through
            case "replan":
                return f"{of_loan}/replans", self.plan(event, f"{of_loan}/replans")
            case "period_close":
                return "/v1/periods/close", {"through_date": event.on.isoformat()}
        raise AssertionError(f"{event.place}: no request is known for {event.kind}")

    def accrual(self, event: Event) -> Json:
        program = event.interest[0][0].program
        return {
            "program_id": self.programs[program.name],
            "accrual_date": event.on.isoformat(),
            "day_count_convention": program.day_count,
            "loans": [
                {
                    "loan_id": self.loans[loan.name],
                    "outstanding_principal_minor": str(principal),
                    "interest_minor": str(interest),
                }
                for loan, interest, principal in event.interest
            ],
        }

    def plan(self, event: Event, path: str) -> Json:
        """Ask for the plan, hold it against what is expected, and commit it."""
        body = {"from_date": event.on.isoformat()}
        before = self.lender.books()
        plan = posted(self.lender.api.post(path, body))
        # The key of the request is kept, and nothing else.
        moved = [then != now for then, now in zip(before, self.lender.books(), strict=True)]
        assert moved.index(True) == 2 and moved.count(True) == 1, f"{event.place}: a plan has moved the books"
        self.must_be_as_expected(event, plan["entries"])
        return body | {"plan_hash": plan["plan_hash"]}

    def line_body(self, line: Line) -> Json:
        body = {
            "account_code": line.code,
            "direction": line.direction,
            "amount_minor": str(line.amount_minor),
            "currency": line.currency,
            "layer": line.layer,
            "loan_id": self.loans[line.loan or ""],
        }
        return body | ({"external_ref": line.ref} if line.ref else {})

    # Outcomes

    def fail(self, step: Event | Check, message: str) -> NoReturn:
        pytest.fail(f"{step.place}\n{step.text}\n{message}", pytrace=False)

    def must_refuse(self, event: Event, answer: Any) -> None:
        assert event.refusal is not None
        if answer.status_code == 201:
            entry_id = json.loads(answer.content).get("journal_entry_id")
            said = "\n".join(map(str, self.lines(entry_id))) if entry_id else answer.content.decode()
            self.fail(event, f"accepted, and posted:\n{said}")
        if json.loads(answer.content).get("code") != event.refusal:
            self.fail(event, f"refused otherwise: {answer.content.decode()}")
        refused(answer, STATUS[event.refusal], event.refusal)

    def must_post(self, event: Event, made: Json) -> None:
        """The entries of the answer are those that were expected, line by line."""
        ids = made.get("journal_entry_ids")
        if ids is None:
            ids = [made[name] for name in ("journal_entry_id", "nsf_fee_entry_id") if name in made]
        entries = [self.lender.api.entry(entry_id) for entry_id in ids]
        self.must_be_as_expected(event, entries)
        for entry in entries:
            assert entry["correlation_id"] == entries[0]["correlation_id"], event.place
            for line in entry["lines"]:
                loan = next(loan for loan in self.scenario.loans.values() if self.loans[loan.name] == line["loan_id"])
                assert line["borrower_id"] == self.borrowers[loan.borrower], f"{event.place}: {line}"
            for name in {line.loan for line in map(self.line, entry["lines"]) if line.loan is not None}:
                self.entries.setdefault(name, []).append(entry["journal_entry_id"])
        if event.kind in ("reversal", "payment_returned"):
            of = event.options["of"]
            undone = self.settlements.get(of) or self.answers[of]["journal_entry_id"]
            assert made["reverses_entry_id"] == entries[0]["reverses_entry_id"] == undone, event.place
        if "allocation" in made:
            self.must_tell_the_allocation(event, made["allocation"])

    def must_be_as_expected(self, event: Event, entries: list[Json]) -> None:
        """Kinds, dates and lines, one by one."""
        got = [
            Entry(entry["event_type"], date.fromisoformat(entry["effective_at"]), tuple(map(self.line, entry["lines"])))
            for entry in entries
        ]
        if got != list(event.entries):
            self.fail(event, difference(told(event.entries), told(got)))

    def must_tell_the_allocation(self, event: Event, allocation: Json) -> None:
        """The answer's allocation is what the lines credit to receivables and suspense."""
        credited: Counter[str] = Counter()
        for line in event.entries[0].lines:
            if line.direction == "CR" and line.code in CODES.values():
                credited[line.code] += line.amount_minor
        assert allocation == {f"{name}_minor": str(credited[CODES[name]]) for name in BALANCES}, event.place

    def lines(self, entry_id: str) -> list[Line]:
        return [self.line(line) for line in self.lender.api.entry(entry_id)["lines"]]

    def line(self, shown_line: Json) -> Line:
        names = {loan_id: name for name, loan_id in self.loans.items()}
        return Line(
            shown_line["direction"],
            shown_line["account_code"],
            int(shown_line["amount_minor"]),
            shown_line["currency"],
            shown_line["layer"],
            names.get(shown_line.get("loan_id", "")),
            shown_line.get("external_ref"),
        )

    # Checks

    def check(self, check: Check) -> None:
        got = self.reading(check)
        expected: Json = {"state": check.word} if check.kind == "state" else check.amounts
        if got != expected:
            currency = check.currency or (check.loan.program.currency if check.loan else "")
            differing = [name for name in expected if got.get(name) != expected[name]]
            self.fail(check, "\n".join(f"the books say {name} {spoken(got[name], currency)}" for name in differing))

    def reading(self, check: Check) -> Json:
        """What the books say, in the words of the check."""
        on = {"as_of_date": check.on.isoformat()} if check.on else {}
        if check.kind == "account":
            balance = self.lender.api.account(check.code, currency=check.currency, layer=check.layer, **on)
            return {"account": int(balance["normal_balance_minor"])}
        assert check.loan is not None
        path = f"/v1/loans/{self.loans[check.loan.name]}"
        if check.kind == "state":
            return {"state": shown(self.lender.api.get(path))["state"]}
        if check.kind == "rate":
            return {"rate": shown(self.lender.api.get(path))["annual_rate_bps"]}
        if check.kind == "preview":
            amount, day = check.amounts["preview"], on["as_of_date"]
            query = {"amount_minor": str(amount), "effective_at": day}
            allocation = shown(self.lender.api.get(f"{path}/allocation-preview", query))["allocation"]
            return {name: int(allocation[f"{name}_minor"]) for name in BALANCES} | {"preview": amount}
        payoff = shown(self.lender.api.get(f"{path}/payoff", on))
        if check.kind == "payoff":
            return {"payoff": int(payoff["payoff_minor"])}
        balance = shown(self.lender.api.get(f"{path}/balance", on))
        owed = dict(zip(("principal", "interest", "fees"), (int(balance[name]) for name in OWED), strict=True))
        # Two readings of the same: they must not differ.
        assert owed == {name: int(payoff[f"{name}_minor"]) for name in RECEIVABLES}, check.place
        return owed | {"suspense": int(payoff["suspense_minor"])}


CODES = {"principal": "1100", "interest": "1200", "fees": "1300", "suspense": "2000"}


def program_of(program: Program) -> Json:
    return {
        "name": program.name or "Instalments",
        "currency": program.currency,
        "annual_rate_bps": program.rate_bps,
        "day_count_convention": program.day_count,
        "waterfall": list(program.waterfall),
        "accrual_mode": program.accrual_mode,
    }


def layer_of(options: dict[str, Any]) -> Json:
    return {"layer": "PENDING"} if "PENDING" in options else {}


def renamed(options: dict[str, Any], **names: str) -> Json:
    """The options that are given, as the API calls them."""
    return {name: options[word] for word, name in names.items() if word in options}


def spoken(value: object, currency: str) -> str:
    return in_major_units(value, currency) if isinstance(value, int) and currency else str(value)


def told(entries: Iterable[Entry]) -> list[str]:
    """Entries as lines of text, each headed by its kind and date."""
    return [text for entry in entries for text in (f"{entry.on} {entry.kind}", *(f"  {line}" for line in entry.lines))]


def difference(expected: list[str], got: list[str]) -> str:
    """Both side by side: `-` was expected, `+` was posted, the rest is as it should be."""
    return "\n".join(line for line in difflib.ndiff(expected, got) if not line.startswith("?"))


# --- The files and the document --------------------------------------------------------------------------------------


def test_there_are_lives_enough_and_every_kind_lives_in_one() -> None:
    assert len(SCENARIOS) >= 25
    posted_kinds = {entry.kind for scenario in SCENARIOS for event in scenario.events for entry in event.entries}
    assert posted_kinds == set(EventKind), "write a scenario of each kind"


def test_the_document_of_posting_rules_is_that_of_the_scenarios() -> None:
    assert scenario_docs.PAGE.read_text("utf-8") == scenario_docs.page(), "docs/posting-rules.md is old: make rules"


def test_every_kind_has_an_example_in_the_document() -> None:
    for kind in EventKind:
        section = scenario_docs.page().split(f"\n## {kind.value}\n")[1].split("\n## ")[0]
        assert "\n```\n" in section, f"give an event {kind.value} a caption (#:) in tests/scenarios"


def test_the_page_to_play_by_hand_shows_two_scenarios() -> None:
    """What docs/loan-life.md prints is what the scenarios say; that `make run` prints it is another test's."""
    page = LOAN_LIFE.read_text("utf-8")
    named = list(dict.fromkeys(re.findall(r"\(\.\./tests/scenarios/(.+\.txt)\)", page)))
    expected = [line for name in named for line in printed(read(FOLDER / name))]
    blocks = re.findall(r"^```\n(.*?)^```$", re.sub(r"^```sh\n.*?^```$", "", page, flags=re.M | re.S), re.M | re.S)
    assert "".join(blocks).splitlines() == expected


def printed(scenario: Scenario) -> Iterator[str]:
    """What playing by hand prints: lines, refusals, balances and states. The demo's accounts hold other loans too."""
    for step in scenario.steps:
        if isinstance(step, Event):
            yield from (str(line) for entry in step.entries for line in entry.lines)
            yield from [f"! {step.refusal}"] if step.refusal else []
        elif step.kind in ("balance", "state"):
            yield step.text


# --- The parser ------------------------------------------------------------------------------------------------------

HEADER = """# A life

program: USD, 10.00 %, ACT_365, waterfall fees interest principal
loan A: opened 2025-01-01, limit 1,000.00
loan B: opened 2025-01-01
"""
DRAW = """2025-01-01 disbursement 900.00 USD, loan A, as draw
  DR 1100 Principal Receivable 900.00
  CR 1050 Disbursement Clearing 900.00
"""


def test_a_file_is_read_as_it_is_written() -> None:
    life = parse(HEADER + DRAW + "2025-01-02 disbursement_settled of draw\n  ! already_settled\n", "life.txt")
    draw, settlement = life.events
    loan = life.loans["A"]
    assert (life.title, loan.limit_minor, loan.program.rate_bps, life.loans["B"].limit_minor) == (
        "A life",
        100_000,
        1_000,
        None,
    )
    assert (draw.kind, draw.loan, draw.amount_minor, draw.label) == ("disbursement", loan, 90_000, "draw")
    assert [str(line) for line in draw.entries[0].lines] == [
        "DR 1100 Principal Receivable 900.00 loan A",
        "CR 1050 Disbursement Clearing 900.00 loan A",
    ]
    assert (settlement.loan, settlement.refusal, settlement.entries) == (loan, "already_settled", ())


LINES = "  DR 1100 Principal Receivable 5.00\n  CR 1050 Disbursement Clearing 5.00\n"
# Text below the header, the line that is wrong, and a word of what is said about it.
UNREADABLE = {
    "a day that is none": ("2025-02-30 chargeoff, loan A\n  no entry\n", 6, "2025-02-30"),
    "an unknown kind": ("2025-01-01 gift 5.00 USD, loan A\n  no entry\n", 6, "gift"),
    "an unknown option": ("2025-01-01 disbursement 5.00 USD, loan A, soon\n" + LINES, 6, "soon"),
    "an option of another kind": ("2025-01-01 disbursement 5.00 USD, loan A, code R01\n" + LINES, 6, "code R01"),
    "an option without its value": ("2025-01-01 disbursement 5.00 USD, loan A, as\n" + LINES, 6, "as"),
    "no amount": ("2025-01-01 disbursement loan A\n" + LINES, 6, "amount"),
    "an amount too many": ("2025-01-01 chargeoff 5.00 USD, loan A\n" + LINES, 6, "no amount"),
    "a missing option": ("2025-01-01 refinance loan A\n" + LINES, 6, "into"),
    "a loan that is there before": ("2025-01-01 refinance into B, loan A\n" + LINES, 6, "by refinance"),
    "decimals that the currency has not": ("2025-01-01 disbursement 5.0 USD, loan A\n" + LINES, 6, "1,234.56"),
    "thousands without a comma": ("2025-01-01 disbursement 5000.00 USD, loan A\n" + LINES, 6, "1,234.56"),
    "an unknown loan": ("2025-01-01 disbursement 5.00 USD, loan C\n" + LINES, 6, "'C'"),
    "no loan where there are several": ("2025-01-01 disbursement 5.00 USD\n" + LINES, 6, "name one"),
    "a name that nobody has": ("2025-01-01 reversal of draw\n  no entry\n", 6, "draw"),
    "a name given twice": (DRAW + DRAW, 9, "draw"),
    "another currency": ("2025-01-01 disbursement 5.00 EUR, loan A\n" + LINES, 8, "USD"),
    "an account by a wrong name": (
        "2025-01-01 chargeoff, loan A\n  DR 1100 Principal 5.00\n",
        7,
        "Principal Receivable",
    ),
    "an account that is not in the chart": (
        "2025-01-01 chargeoff, loan A\n  DR 1999 Gold 5.00\n",
        7,
        "not in the chart",
    ),
    "a line that is none": ("2025-01-01 chargeoff, loan A\n  1100 Principal Receivable 5.00\n", 7, "not a line"),
    "a line of zero": ("2025-01-01 chargeoff, loan A\n  DR 1100 Principal Receivable 0.00\n", 7, "above zero"),
    "debits that are not credits": (
        DRAW.replace("CR 1050 Disbursement Clearing 900", "CR 1050 Disbursement Clearing 9"),
        8,
        "891.00",
    ),
    "layers that balance together only": (DRAW.replace("900.00\n  CR", "900.00 PENDING\n  CR"), 8, "PENDING"),
    "nothing that comes of it": ("2025-01-01 chargeoff, loan A\n", 6, "what comes of it"),
    "lines and a refusal": (DRAW + "  ! period_closed\n", 9, "what comes of it"),
    "lines below nothing": (DRAW + "\n" + LINES, 10, "below an event"),
    "a balance that is not whole": (DRAW + "balance A 2025-01-01: principal 5.00\n", 9, "interest"),
    "a balance of something else": (DRAW + "balance A 2025-01-01: gold 5.00\n", 9, "gold"),
    "a state that is none": (DRAW + "state A closed\n", 9, "state A closed"),
    "a life without events": ("", 5, "nothing happens"),
    "a program that is not there": ("loan C: program other, opened 2025-01-01\n", 6, "other"),
    "a currency that is none": ("program other: QQQ, 1.00 %, ACT_365, waterfall fees interest principal\n", 6, "QQQ"),
    "half a program": ("program other: EUR\n", 6, "waterfall"),
    "a loan described twice": ("loan A: opened 2025-01-01\n", 6, "'A'"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_read_is_said_with_file_and_line(what: str) -> None:
    text, number, word = UNREADABLE[what]
    with pytest.raises(ScenarioError) as caught:
        parse(HEADER + text, "life.txt")
    place, _, message = str(caught.value).partition(": ")
    assert (place, word in message) == (f"tests/scenarios/life.txt:{number}", True), str(caught.value)


# --- The player ------------------------------------------------------------------------------------------------------

WRONG = {
    "another amount": (
        DRAW.replace("900.00\n", "800.00\n"),
        "-   DR 1100 Principal Receivable 800.00 loan A\n+   DR 1100",
    ),
    "another account": (
        DRAW.replace("1050 Disbursement Clearing", "1000 Operating Cash"),
        "-   CR 1000 Operating Cash",
    ),
    "another order": (DRAW.splitlines()[0] + "\n" + "\n".join(DRAW.splitlines()[:0:-1]) + "\n", "DR 1100"),
    "another layer": (
        DRAW.replace("900.00\n", "900.00 PENDING\n"),
        "-   DR 1100 Principal Receivable 900.00 PENDING loan A",
    ),
    "no refusal": ("2025-01-01 disbursement 5.00 USD, loan A\n  ! period_closed\n", "accepted, and posted"),
    "another refusal": ("2025-01-01 disbursement 5,000.00 USD, loan A\n  ! period_closed\n", "amount_exceeds_limit"),
    "a refusal": (DRAW.replace("900.00", "9,000.00"), "refused: "),
    "another balance": (
        DRAW + "balance A 2025-01-01: principal 1.00, interest 0.00, fees 0.00, suspense 0.00\n",
        "principal 900.00",
    ),
    "another state": (DRAW + "state A paid_off\n", "state open"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_as_written_is_shown_with_its_place(acme: Lender, what: str) -> None:
    text, said = WRONG[what]
    scenario = parse(HEADER + text, "life.txt")
    player = Player(acme, scenario)
    player.open()
    with pytest.raises(pytest.fail.Exception) as caught:
        for step in scenario.steps:
            player.step(step)
    assert str(caught.value).startswith("tests/scenarios/life.txt:")
    assert said in str(caught.value)
