"""What the admin shows of reconciliation: runs, statements, breaks and how they were resolved. Questions of queries.py and
templates.
"""

from __future__ import annotations

import re

from django.http import Http404
from django.urls import reverse

from hpts.listing import Column, Filter, choices, listing
from hpts.site import Context, Found, Look, site
from reconciliation import queries
from reconciliation.matching import KINDS

UUID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)
BREAK_COLUMNS = (
    Column("Money of", "value_date", "day", page="break", argument="break_id", by="break_id"),
    Column("Kind", "kind", "words", page="break", argument="break_id", by="break_id"),
    Column("State", "state", "state"),
    Column("Days", "age_days", "number"),
    Column("Bank account", "bank_account_ref", "code"),
    Column("Bank over books", "difference_minor", "money"),
    Column("Reference", "reference", "code"),
    Column("Entry", "entry_id", "id", page="entry"),
    Column("Resolved by", "action", "words"),
    Column("Why", "reason", "wrap"),
)


@site.panel(50, title="Why does the bank differ?", template="books/reconciliation/bank.html", width="half")
def state_of_banks(look: Look) -> Context:
    return {"accounts": queries.bank_account_rows(look.cursor)}


@site.panel(70, title="Is the ledger proven?", template="books/reconciliation/proof.html", width="whole")
def proof(look: Look) -> Context:
    return {"proof": queries.last_proof(look.cursor)}


@site.page(
    "reconciliation/", "runs", title="Reconciliation", template="books/list.html", section="Nights", icon="fact_check"
)
def runs(look: Look) -> Context:
    return listing(
        look,
        queries.run_rows,
        Column("As of", "as_of_date", "day", page="run", argument="run_id", by="run_id"),
        Column("Trigger", "trigger"),
        Column("State", "state", "state"),
        Column("Matched", "matched_count", "number"),
        Column("New breaks", "break_count", "number"),
        Column("Accounts that disagree", "mismatched_account_count", "number"),
        Column("Asked for", "requested_at", "moment"),
        Column("Finished", "finished_at", "moment"),
        filters=(Filter("state", "State", "choice", choices(("queued", "complete", "failed"))),),
        place=("requested_at", "run_id"),
        empty="No run yet. Each night has one; POST /v1/reconciliation/runs or manage.py reconcile asks for one now.",
    )


@site.page("reconciliation/<id:run_id>/", "run", title="Reconciliation run", template="books/reconciliation/run.html")
def run(look: Look, run_id: str) -> Context:
    found = queries.run_shown(look.cursor, run_id=run_id)
    if found is None:
        raise Http404(f"There is no run {run_id} in these books.")
    breaks = listing(
        look,
        queries.break_rows,
        *BREAK_COLUMNS,
        place=("value_date", "break_id"),
        empty="No break is open: bank and books agree.",
        state="open",
        kind=None,
        account=None,
    )
    about = {"title": f"Reconciliation as of {found['as_of_date']}", "run": found}
    return breaks | about | {"crumbs": [("Reconciliation", reverse("admin:runs"))]}


@site.page(
    "statements/",
    "statements",
    title="Bank statements",
    template="books/list.html",
    section="Nights",
    icon="account_balance",
)
def statements(look: Look) -> Context:
    return listing(
        look,
        queries.statement_rows,
        Column("Through", "to_date", "day", page="statement", argument="statement_id", by="statement_id"),
        Column("From", "from_date", "day"),
        Column("Bank account", "bank_account_ref", "code"),
        Column("Format", "format"),
        Column("Opening", "opening_balance_minor", "money"),
        Column("Closing", "closing_balance_minor", "money"),
        Column("Lines", "line_count", "number"),
        Column("Matched", "matched_count", "number"),
        Column("Imported", "imported_at", "moment"),
        filters=(Filter("account", "Bank account"),),
        place=("to_date", "statement_id"),
        empty="No statement has been imported. POST /v1/reconciliation/statements or manage.py import_statement takes one.",
    )


@site.page(
    "statements/<id:statement_id>/", "statement", title="Statement", template="books/reconciliation/statement.html"
)
def statement(look: Look, statement_id: str) -> Context:
    found = queries.statement(look.cursor, statement_id=statement_id)
    if found is None:
        raise Http404(f"There is no statement {statement_id} in these books.")
    lines = listing(
        look,
        queries.line_rows,
        Column("Line", "number", "number"),
        Column("Value date", "value_date", "day"),
        Column("Amount", "amount_minor", "money"),
        Column("Reference", "reference", "code"),
        Column("Description", "description", "wrap"),
        Column("State", "state", "state", page="break", argument="break_id", by="break_id"),
        Column("Matched by", "rule", "words"),
        Column("Entry", "entry_id", "id", page="entry"),
        place=("number",),
        empty="The statement has no lines.",
        statement=statement_id,
        currency=found["currency"],
    )
    title = f"Statement of {found['bank_account_ref']}, {found['from_date']} to {found['to_date']}"
    return lines | {"title": title, "crumbs": [("Bank statements", reverse("admin:statements"))], "statement": found}


@site.page("breaks/", "breaks", title="Breaks", template="books/list.html", section="Nights", icon="heart_broken")
def breaks(look: Look) -> Context:
    return listing(
        look,
        queries.break_rows,
        *BREAK_COLUMNS,
        filters=(
            Filter("state", "State", "choice", choices(("open", "resolved"))),
            Filter("kind", "Kind", "choice", choices(KINDS)),
            Filter("account", "Bank account"),
        ),
        place=("value_date", "break_id"),
        empty="There has never been a break: no statement has been imported, or each of its lines was matched.",
    )


@site.page("breaks/<id:break_id>/", "break", title="Break", template="books/reconciliation/break.html")
def break_(look: Look, break_id: str) -> Context:
    found = queries.break_shown(look.cursor, break_id=break_id)
    if found is None:
        raise Http404(f"There is no break {break_id} in these books.")
    title = f"{found['kind'].replace('_', ' ').capitalize()} of {found['value_date']}"
    return {"title": title, "crumbs": [("Breaks", reverse("admin:breaks"))], "break": found}


@site.part("entry", title="At the bank", template="books/reconciliation/of_entry.html")
def matches_of_entry(look: Look, entry_id: str) -> Context | None:
    matches = queries.matches_of_entry(look.cursor, entry_id=entry_id)
    return {"matches": matches} if matches else None


@site.search
def find_in_reconciliation(look: Look, text: str) -> list[Found]:
    if not UUID.fullmatch(text):
        return []
    return [
        Found(kind.capitalize(), uuid, reverse(f"admin:{kind}", kwargs={f"{kind}_id": uuid}))
        for kind, uuid in queries.called(look.cursor, uuid=text)
    ]
