"""What the admin shows of the books: pages, panels and searches, each of them questions of queries.py and a template."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

import msgspec
from django.db.backends.utils import CursorWrapper
from django.http import Http404
from django.urls import reverse

from hpts import charts
from hpts.listing import Column, Filter, choices, listing
from hpts.site import Context, Found, Look, Tenant, site
from ledger import queries
from ledger.events import LAYERS, SETTLED, EventKind
from ledger.money import exponent, in_major_units, minor_units
from ledger.state import LOAN_STATES

LINES_SHOWN = 200
STATEMENT_DAYS = 400
UUID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)
KINDS = choices([kind.value for kind in EventKind])


def _tenant(cursor: CursorWrapper) -> Tenant | None:
    found = queries.tenant_of_transaction(cursor)
    return Tenant(*found) if found else None


site.tenants = queries.tenant_directory
site.tenant = _tenant


def page_of(name: str, **arguments: str) -> str:
    return reverse(f"admin:{name}", kwargs=arguments)


def asked_date(look: Look, name: str, otherwise: date) -> date:
    """A date of the URL. Raises Http404 when it is none."""
    text = look.asked(name)
    try:
        return date.fromisoformat(text) if text else otherwise
    except ValueError:
        raise Http404(f"{text} is no date.") from None


# --- The dashboard ---------------------------------------------------------------------------------------------------


@site.panel(10, title="Posted today", template="books/ledger/posted_today.html", width="third")
def posted_today(look: Look) -> Context:
    kinds = queries.postings_of_day(look.cursor)
    return {
        "kinds": kinds,
        "entries": sum(each["entries"] for each in kinds),
        "counted": queries.COUNTED,
        "last_posted_at": max((each["last_posted_at"] for each in kinds), default=None),
    }


@site.panel(20, title="Entries by effective date, 30 days", template="books/ledger/volume.html", width="two-thirds")
def volume(look: Look) -> Context:
    dates = [look.tenant.today - timedelta(days=back) for back in range(29, -1, -1)]
    by_kind: dict[str, dict[date, int]] = defaultdict(dict)
    for day, kind, count in queries.postings_by_date(look.cursor, since=dates[0], until=dates[-1]):
        by_kind[kind.replace("_", " ")][day] = count
    ordered = dict(sorted(by_kind.items(), key=lambda item: -sum(item[1].values())))
    return {"chart": charts.columns("Journal entries per effective date", dates, ordered) if ordered else None}


@site.panel(30, title="Are the books in balance?", template="books/ledger/balance_state.html", width="half")
def balance_state(look: Look) -> Context:
    sums = queries.account_sums(look.cursor, as_of=look.tenant.today)
    books = _books(sums)
    own = [
        each
        for each in sums
        if each["currency"] == look.tenant.currency and each["layer"] == SETTLED and each["account_type"] != "memo"
    ]
    bars = charts.shares([(each["code"], int(each["minor"])) for each in own if each["minor"]])
    return {
        "books": books,
        "balanced": all(each["dr"] == each["cr"] for each in books),
        "bars": [
            {"code": code, "name": names["name"], "minor": minor, "length": length}
            for (code, minor, length), names in zip(bars, (each for each in own if each["minor"]), strict=True)
        ],
        "currency": look.tenant.currency,
    }


def _books(sums: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Total debits and credits of each currency and layer."""
    totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for each in sums:
        totals[each["currency"], each["layer"]][0] += each["dr"]
        totals[each["currency"], each["layer"]][1] += each["cr"]
    return [
        {"currency": currency, "layer": layer, "dr": dr, "cr": cr} for (currency, layer), (dr, cr) in totals.items()
    ]


@site.panel(40, title="Did the night run finish?", template="books/ledger/night.html", width="half")
def night(look: Look) -> Context:
    yesterday = look.tenant.today - timedelta(days=1)
    programs = queries.programs_behind(look.cursor, yesterday=yesterday)
    for each in programs:
        reached = each["accrued_through"]
        each["state"] = "complete" if reached is not None and reached >= yesterday else "behind"
    return {"programs": programs, "runs": queries.accrual_run_rows(look.cursor, program=None, after=None, limit=5)}


# --- Journal ---------------------------------------------------------------------------------------------------------


@site.page("entries/", "entries", title="Journal", template="books/list.html", section="Books", icon="menu_book")
def entries(look: Look) -> Context:
    return listing(
        look,
        queries.entries,
        Column("Entry", "entry_id", "id", page="entry"),
        Column("Kind", "event_type", "words"),
        Column("Reversed", "reversed", "flag"),
        Column("Effective", "effective_at", "day"),
        Column("Posted", "posted_at", "moment"),
        Column("Loan", "loan_id", "id", page="loan"),
        Column("Reference", "external_ref", "code"),
        Column("Debits", "minor", "money"),
        filters=(
            Filter("kind", "Kind", "choice", KINDS),
            Filter("layer", "Layer", "choice", choices(LAYERS)),
            Filter("since", "Effective from", "date"),
            Filter("until", "Effective to", "date"),
            Filter("reference", "Reference"),
        ),
        place=("entry_id",),
        empty="Nothing has been posted yet. The first entry comes with the first request to the API, or with make run's demo.",
    )


@site.page("entries/<id:entry_id>/", "entry", title="Entry", template="books/ledger/entry.html")
def entry(look: Look, entry_id: str) -> Context:
    found = queries.entry_shown(look.cursor, entry_id=entry_id)
    if found is None:
        raise Http404(f"There is no entry {entry_id} in these books.")
    lines = queries.entry_lines(look.cursor, entry_id=entry_id, limit=LINES_SHOWN)
    books = [
        each
        | {
            "debits": [line for line in lines if _is_of(line, each) and line["direction"] == "DR"],
            "credits": [line for line in lines if _is_of(line, each) and line["direction"] == "CR"],
        }
        for each in queries.entry_sums(look.cursor, entry_id=entry_id)
    ]
    head = _head(found.pop("head"))
    return {
        "title": f"{found['event_type'].replace('_', ' ').capitalize()} of {found['effective_at']}",
        "crumbs": [("Journal", page_of("entries"))],
        "entry": found | {"actor": head.get("actor"), "description": head.get("description")},
        "facts": sorted((found["facts"] or {}).items()),
        "books": books,
        "hidden": max(found["line_count"] - LINES_SHOWN, 0),
        "chain": queries.entry_chain(look.cursor, entry_id=entry_id),
    }


def _is_of(line: Mapping[str, Any], book: Mapping[str, Any]) -> bool:
    return (line["currency"], line["layer"]) == (book["currency"], book["layer"])


def _head(document: str) -> dict[str, Any]:
    """The members before the lines of a document that may be cut behind them."""
    before = document[: document.index(',"lines":[')] if ',"lines":[' in document else document[:-1]
    head: dict[str, Any] = msgspec.json.decode(before + "}")
    return head


# --- Loans -----------------------------------------------------------------------------------------------------------


@site.page("loans/", "loans", title="Loans", template="books/list.html", section="Books", icon="request_quote")
def loans(look: Look) -> Context:
    return listing(
        look,
        queries.loan_rows,
        Column("Loan", "loan_id", "id", page="loan"),
        Column("State", "state", "state"),
        Column("Program", "program_name"),
        Column("Borrower", "borrower_id", "id"),
        Column("Opened", "opened_on", "day"),
        Column("Principal", "principal", "money"),
        Column("Interest", "interest", "money"),
        Column("Fees", "fees", "money"),
        Column("Last posting", "last_posted_at", "moment"),
        filters=(
            Filter("state", "State", "choice", choices(LOAN_STATES)),
            Filter("program", "Program id"),
            Filter("borrower", "Borrower id"),
        ),
        place=("loan_id",),
        empty="There is no loan yet. Make one with POST /v1/loans.",
        on=look.tenant.today,
    )


@site.part("entry", title="Sealed history", template="books/ledger/sealed.html")
def seal_of_entry(look: Look, entry_id: str) -> Context:
    found = queries.sealed_entry(look.cursor, entry_id=entry_id)
    if found is None or found.block is None:
        return {}
    return {
        "entry_id": entry_id,
        "block": found.block,
        "sealed_at": datetime.fromisoformat(found.block["sealed_at"]),
        "leaf": found.leaf_index + 1,
        "leaves": len(found.leaves) // 32,
    }


@site.page("loans/<id:loan_id>/", "loan", title="Loan", template="books/ledger/loan.html")
def loan(look: Look, loan_id: str) -> Context:
    today = look.tenant.today
    found = queries.loan(look.cursor, loan_id=loan_id, on=today)
    if found is None:
        raise Http404(f"There is no loan {loan_id} in these books.")
    shown, _ = found
    since = asked_date(
        look, "since", max(date.fromisoformat(shown["opened_on"]), today - timedelta(days=STATEMENT_DAYS))
    )
    until = asked_date(look, "until", today)
    stated = queries.statement(look.cursor, loan_id=loan_id, since=since, until=until)
    assert stated is not None
    statement = msgspec.json.decode(stated.entries)
    opening = msgspec.json.decode(stated.opening)
    payoff = queries.payoff(look.cursor, loan_id=loan_id, as_of=today)
    return {
        "title": f"Loan {loan_id}",
        "crumbs": [("Loans", page_of("loans"))],
        "loan": shown | (queries.loan_terms_of(look.cursor, loan_id=loan_id) or {}),
        "balances": queries.loan_balance_rows(look.cursor, loan_id=loan_id),
        "since": since,
        "until": until,
        "opening": opening,
        "statement": statement,
        "closing": msgspec.json.decode(stated.closing),
        "payoff": payoff[0] if payoff else None,
        "chart": _owed_over_time(shown["currency"], since, until, opening, statement),
    }


def _owed(balance: Mapping[str, str]) -> int:
    return sum(int(balance[f"{role}_minor"]) for role in ("principal", "interest", "fees"))


def _owed_over_time(
    currency: str, since: date, until: date, opening: Mapping[str, str], statement: list[dict[str, Any]]
) -> charts.Chart | None:
    """What the loan owes at the end of each day of its statement."""
    at_end = {since: _owed(opening)}
    for each in statement:
        at_end[date.fromisoformat(each["effective_at"])] = _owed(each["balance"])
    return charts.steps_over_time(
        f"Principal, interest and fees owed, in {currency}",
        sorted(at_end.items()),
        until=until,
        write=lambda minor: in_major_units(minor, currency),
    )


# --- Accounts --------------------------------------------------------------------------------------------------------


@site.page(
    "trial-balance/",
    "trial_balance",
    title="Trial balance",
    template="books/ledger/trial_balance.html",
    section="Books",
    icon="balance",
)
def trial_balance(look: Look) -> Context:
    as_of = asked_date(look, "as_of", look.tenant.today)
    sums = queries.account_sums(look.cursor, as_of=as_of)
    return {
        "as_of": as_of,
        "books": [book | {"accounts": [each for each in sums if _is_of(each, book)]} for book in _books(sums)],
    }


@site.page("accounts/", "accounts", title="Accounts", template="books/list.html", section="Books", icon="account_tree")
def accounts(look: Look) -> Context:
    def fetch(cursor: CursorWrapper, *, after: object, limit: int) -> list[dict[str, Any]]:
        rows = [queries.account_object(account, closed) for account, closed in queries.accounts(cursor)]
        return [row for row in rows if after is None or row["account_code"] > after[0]][:limit]  # type: ignore[index]

    return listing(
        look,
        fetch,
        Column("Code", "account_code", "code", page="account", argument="code"),
        Column("Name", "account_name", page="account", argument="code", by="account_code"),
        Column("Type", "account_type"),
        Column("Normal side", "normal_side"),
        Column("One per loan", "per_loan", "flag"),
        Column("Closed", "closed", "flag"),
        place=("account_code",),
        empty="The chart of accounts is empty.",
    )


@site.page("accounts/<account_code:code>/", "account", title="Account", template="books/ledger/account.html")
def account(look: Look, code: str) -> Context:
    today = look.tenant.today
    since = asked_date(look, "since", today - timedelta(days=30))
    about = next((each for each, _ in queries.accounts(look.cursor) if each.code == code), None)
    if about is None:
        raise Http404(f"There is no account {code} in this chart.")
    books: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for day in queries.account_days(look.cursor, code=code, since=since, until=today):
        net = day["dr"] - day["cr"] if about.normal_side == "DR" else day["cr"] - day["dr"]
        before = books[day["currency"], day["layer"]]
        balance = (before[-1]["balance"] if before else 0) + net
        before.append(day | {"balance": balance})
    tail = listing(
        look,
        queries.account_tail,
        Column("Entry", "entry_id", "id", page="entry"),
        Column("Kind", "event_type", "words"),
        Column("Effective", "effective_at", "day"),
        Column("Posted", "posted_at", "moment"),
        Column("Loan", "loan_id", "id", page="loan"),
        Column("Layer", "layer"),
        Column("Debit", "dr", "money"),
        Column("Credit", "cr", "money"),
        place=("entry_id", "sequence"),
        empty="No line is on this account yet.",
        code=code,
    )
    return tail | {
        "title": f"{about.code} {about.name}",
        "crumbs": [("Accounts", page_of("accounts"))],
        "account": about,
        "since": since,
        "days": [
            {
                "currency": currency,
                "layer": layer,
                "days": days,
                "balance": days[-1]["balance"],
                "chart": charts.steps_over_time(
                    f"Balance of {about.name}, {layer}, in {currency}",
                    [(day["effective_at"] or since - timedelta(days=1), day["balance"]) for day in days],
                    until=today,
                    height=150,
                    write=lambda minor, currency=currency: in_major_units(minor, currency),  # type: ignore[misc]
                ),
            }
            for (currency, layer), days in books.items()
        ],
    }


# --- Accruals, programs, periods -------------------------------------------------------------------------------------

RUN_COLUMNS = (
    Column("Date", "accrual_date", "day", page="accrual_run", argument="run_id", by="accrual_run_id"),
    Column("Program", "program_name"),
    Column("State", "state", "state"),
    Column("Loans", "loan_count", "number"),
    Column("Accrued", "accrued_count", "number"),
    Column("Exceptions", "exception_count", "number"),
    Column("Total", "total_accrued_minor", "money"),
    Column("Started", "started_at", "moment"),
    Column("Finished", "finished_at", "moment"),
)


@site.page(
    "accrual-runs/", "accrual_runs", title="Accrual runs", template="books/list.html", section="Nights", icon="bedtime"
)
def accrual_runs(look: Look) -> Context:
    return listing(
        look,
        queries.accrual_run_rows,
        *RUN_COLUMNS,
        filters=(Filter("program", "Program id"),),
        place=("accrual_date", "accrual_run_id"),
        empty="No run yet. The engine accrues programs whose accrual_mode is engine, each night at the tenant's midnight; "
        "POST /v1/programs/{program_id}/accrual-runs asks for one.",
    )


@site.page("accrual-runs/<id:run_id>/", "accrual_run", title="Accrual run", template="books/ledger/accrual_run.html")
def accrual_run(look: Look, run_id: str) -> Context:
    found = queries.accrual_run(look.cursor, run_id=run_id)
    if found is None:
        raise Http404(f"There is no accrual run {run_id} in these books.")
    program = queries.program(look.cursor, program_id=found["program_id"], on=look.tenant.today)
    exceptions = queries.accrual_exceptions(look.cursor, run_id=run_id, limit=LINES_SHOWN)
    return {
        "title": f"Accrual of {found['accrual_date']}",
        "crumbs": [("Accrual runs", page_of("accrual_runs"))],
        "run": found,
        "program": program,
        "exceptions": exceptions,
        "hidden": found["exception_count"] - len(exceptions),
        "chunks": queries.run_entries(look.cursor, run_id=run_id, limit=LINES_SHOWN),
    }


@site.page("programs/", "programs", title="Programs", template="books/list.html", section="Books", icon="sell")
def programs(look: Look) -> Context:
    return listing(
        look,
        queries.program_rows,
        Column("Program", "program_id", "id", page="program"),
        Column("Name", "name", page="program", argument="program_id", by="program_id"),
        Column("Currency", "currency"),
        Column("Rate", "annual_rate_bps", "rate"),
        Column("Day count", "day_count_convention"),
        Column("Payments go to", "waterfall"),
        Column("Accrued by", "accrual_mode"),
        place=("program_id",),
        empty="There is no program yet. Make one with POST /v1/programs.",
        on=look.tenant.today,
    )


@site.page("programs/<id:program_id>/", "program", title="Program", template="books/ledger/program.html")
def program(look: Look, program_id: str) -> Context:
    found = queries.program(look.cursor, program_id=program_id, on=look.tenant.today)
    if found is None:
        raise Http404(f"There is no program {program_id} in these books.")
    return {
        "title": found["name"],
        "crumbs": [("Programs", page_of("programs"))],
        "program": found,
        "waterfall": " → ".join(found["waterfall"]),
        "runs": queries.accrual_run_rows(look.cursor, program=program_id, after=None, limit=10),
        "terms": queries.program_terms(look.cursor, program_id=program_id),
    }


@site.page("periods/", "periods", title="Closed periods", template="books/list.html", section="Books", icon="lock")
def periods(look: Look) -> Context:
    return listing(
        look,
        queries.period_rows,
        Column("Closed through", "through_date", "day", page="period", argument="through"),
        Column("Closed", "closed_at", "moment"),
        Column("By", "actor", "code"),
        place=("through_date",),
        empty="No period is closed. POST /v1/periods/close closes the books through a date.",
    )


@site.page("periods/<str:through>/", "period", title="Closed period", template="books/ledger/period.html")
def period(look: Look, through: str) -> Context:
    found = queries.period_shown(look.cursor, through=through)
    if found is None:
        raise Http404(f"No period was closed through {through}.")
    return {
        "title": f"Closed through {found['through_date']}",
        "crumbs": [("Closed periods", page_of("periods"))],
        "period": found,
        "balances": msgspec.json.decode(found["trial_balances"]),
    }


# --- Keys and outbox -------------------------------------------------------------------------------------------------


@site.page("keys/", "keys", title="Idempotency keys", template="books/list.html", section="Traffic", icon="vpn_key")
def keys(look: Look) -> Context:
    return listing(
        look,
        queries.key_rows,
        Column("Key", "key", "code", page="key"),
        Column("Used", "created_at", "moment"),
        Column("Request's fingerprint", "fingerprint", "id"),
        Column("Answer's bytes", "size", "number"),
        filters=(Filter("prefix", "Begins with"),),
        place=("key",),
        empty="No key has been used yet. Every POST of the API brings one.",
    )


@site.page("keys/<path:key>/", "key", title="Idempotency key", template="books/ledger/key.html")
def key(look: Look, key: str) -> Context:
    found = queries.key_shown(look.cursor, key=key)
    if found is None:
        raise Http404("There is no such key in these books.")
    return {
        "title": f"Key {key}",
        "crumbs": [("Idempotency keys", page_of("keys"))],
        "key": found,
        "entries": _entries_of(look, found["response"]),
    }


def _entries_of(look: Look, response: str) -> list[str]:
    """The entries that an answer names."""
    return queries.entries_called(look.cursor, uuids=UUID.findall(response)[:50])


@site.page("outbox/", "outbox", title="Outbox", template="books/list.html", section="Traffic", icon="outbox")
def outbox(look: Look) -> Context:
    return listing(
        look,
        queries.outbox_rows,
        Column("Entry", "entry_id", "id", page="entry"),
        Column("Kind", "event_type", "words"),
        Column("Posted", "posted_at", "moment"),
        Column("Effective", "effective_at", "day"),
        Column("Transaction", "created_xid", "code"),
        place=("entry_id",),
        empty="Nothing has been posted, so there is nothing to tell.",
    )


# --- Find ------------------------------------------------------------------------------------------------------------

LABELS = {"entry": "entry", "loan": "loan", "borrower": "loan", "program": "program", "accrual_run": "accrual_run"}


@site.search
def find_id(look: Look, text: str) -> list[Found]:
    if not UUID.fullmatch(text):
        return []
    found = []
    for kind, uuid in queries.called(look.cursor, uuid=text):
        argument = {"entry": "entry_id", "program": "program_id", "accrual_run": "run_id"}.get(kind, "loan_id")
        words = {"borrower": "Loan of borrower", "accrual_run": "Accrual run"}.get(kind, kind.capitalize())
        found.append(Found(words, uuid, page_of(LABELS[kind], **{argument: uuid})))
    return found


@site.search
def find_key(look: Look, text: str) -> list[Found]:
    found = queries.key_shown(look.cursor, key=text)
    return [Found("Idempotency key", text, page_of("key", key=text))] if found else []


@site.search
def find_reference(look: Look, text: str) -> list[Found]:
    if UUID.fullmatch(text):
        return []
    return [
        Found(
            f"{each['event_type'].replace('_', ' ')}",
            f"{each['effective_at']} {text}",
            page_of("entry", entry_id=each["entry_id"]),
        )
        for each in queries.referred(look.cursor, reference=text)
    ]


@site.search
def find_account(look: Look, text: str) -> list[Found]:
    if not re.fullmatch(r"[0-9]{4}", text):
        return []
    return [
        Found("Account", f"{account.code} {account.name}", page_of("account", code=account.code))
        for account, _ in queries.accounts(look.cursor)
        if account.code == text
    ]


@site.search
def find_amount(look: Look, text: str) -> list[Found]:
    """An amount as people write it, `1,234.50` or `1234.5`, in the decimals of the line's own currency."""
    bare = text.replace(",", "")
    if not re.fullmatch(r"[0-9]{1,16}(\.[0-9]{1,3})?", bare):
        return []
    possible = sorted({minor for places in (0, 2, 3) if (minor := minor_units(bare, places)) is not None})
    return [
        Found(
            each["event_type"].replace("_", " "),
            f"{each['effective_at']} {in_major_units(each['amount_minor'], each['currency'])} {each['currency']}",
            page_of("entry", entry_id=each["entry_id"]),
        )
        for each in queries.of_amount(look.cursor, minor=possible)
        if each["amount_minor"] == minor_units(bare, exponent(each["currency"]))
    ]
