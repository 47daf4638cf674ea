"""What may be done with the books in the admin: tenants, programs and loans are made, accrual runs started; corrections are
proposed by one person and decided by another. Doors to operations.py and proposals.py.
"""

from __future__ import annotations

import uuid
import zoneinfo
from collections.abc import Mapping
from typing import Any

import msgspec
from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone

from hpts import audit, fields
from hpts.access import VIEW_BOOKS, Access
from hpts.acting import ActForm, Doing, Done, act, caller_of, new_key, perform, show_problem
from hpts.audit import Caller
from hpts.listing import Column, Filter, choices, listing
from hpts.problems import FieldProblem, NotFound, Problem, ValidationFailed
from hpts.site import READS, Context, Look, site
from hpts.tenancy import tenant_transaction
from ledger import masters, operations, proposals, queries
from ledger import serializers as shapes
from ledger.chart import RECEIVABLES
from ledger.events import LAYERS
from ledger.idempotency import Call, fingerprint, once
from ledger.models import DAY_COUNTS
from ledger.money import exponent, minor_units
from ledger.operations import Write
from ledger.posting import Origin
from ledger.proposals import Preview, Proposal, Proposed

PROPOSE, DECIDE = "hpts.propose_entries", "hpts.decide_proposals"
CREATE_TENANTS, CREATE_PROGRAMS, CREATE_LOANS = "hpts.create_tenants", "hpts.create_programs", "hpts.create_loans"
ACCRUE = "hpts.start_accrual_runs"


def run(doing: Doing, write: Write[Any], body: Mapping[str, Any], path: Mapping[str, str]) -> dict[str, Any]:
    """An operation of the API, once for the form's key; gives its answer. Raises what the API refuses."""
    said = fields.parse(body, write.shape)
    call = Call(Origin.of(doing.caller), doing.key, fingerprint(write.operation_id, path, body))
    done = once(call, write.touches(said, path), lambda posting: write.run(posting, said, path))
    answer: dict[str, Any] = msgspec.json.decode(done.body)
    return answer


def day_field(**more: Any) -> forms.RegexField:
    return forms.RegexField(fields.IsoDate.pattern, widget=forms.DateInput(attrs={"type": "date"}), **more)


def id_field(**more: Any) -> forms.CharField:
    return forms.CharField(max_length=36, strip=True, **more)


def amount_field(**more: Any) -> forms.RegexField:
    error = {"invalid": "An amount such as 1234.50 is expected."}
    attributes = forms.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"})
    return forms.RegexField(r"\A[0-9]{1,15}(\.[0-9]{1,5})?\Z", widget=attributes, error_messages=error, **more)


def in_minor(field: str, text: str, currency: str) -> str:
    """An amount as people write it, as the API takes it. Raises ValidationFailed."""
    minor = minor_units(text, exponent(currency)) if currency in fields.CURRENCIES else None
    if minor is None:
        wrong = FieldProblem(field, "invalid_format", f"{text} has more decimals than {currency} has.")
        raise ValidationFailed("One or more fields are not valid.", [wrong])
    return str(minor)


def _today(tenant_id: str) -> str:
    with tenant_transaction(tenant_id, using=READS) as cursor:
        return queries.today(cursor).isoformat()


# --- Tenants, programs, loans ----------------------------------------------------------------------------------------


class TenantForm(ActForm):
    name = forms.CharField(max_length=fields.Name.longest)
    currency = forms.ChoiceField(choices=[(code, code) for code in sorted(fields.CURRENCIES)], initial="USD")
    timezone = forms.ChoiceField(
        label="Time zone",
        choices=[(zone, zone) for zone in sorted(zoneinfo.available_timezones())],
        initial="America/New_York",
        help_text="Decides which day is today in its books.",
    )


@act(
    "tenants/new/",
    "create_tenant",
    "createTenant",
    title="New tenant",
    permission=CREATE_TENANTS,
    submit="Make the tenant",
    form=TenantForm,
    back="tenants",
    intro="A lender with books of its own, and the chart of accounts of the template consumer-lending.",
    platform=True,
)
def create_tenant(doing: Doing) -> Done:
    """The form's key is the tenant's id, so that a form that is sent twice makes one tenant."""
    tenant_id = doing.key.removeprefix("admin-")
    filled = doing.filled
    name = fields.parse({"name": filled["name"]}, _Named).name
    with tenant_transaction(tenant_id) as cursor:
        if queries.tenant_of_transaction(cursor) is None:
            masters.create_tenant(cursor, name=name, currency=filled["currency"], timezone=filled["timezone"])
            caller = Caller.of(doing.request, doing.access.actor, tenant_id, doing.reason)
            audit.record(caller, "createTenant", about=("tenant", tenant_id), detail=name, cursor=cursor)
    return Done(f"{name} has been made: turn to its books here.", reverse("admin:tenants"))


class _Named(shapes.Request):
    name: fields.Name


class ProgramForm(ActForm):
    name = forms.CharField(max_length=fields.Name.longest)
    currency = forms.ChoiceField(choices=[(code, code) for code in sorted(fields.CURRENCIES)])
    annual_rate_bps = forms.IntegerField(
        label="Rate per year, in basis points", min_value=0, max_value=100_000, help_text="1199 is 11.99 %."
    )
    day_count_convention = forms.ChoiceField(label="Day count", choices=[(each, each) for each in DAY_COUNTS])
    waterfall = forms.ChoiceField(
        label="A payment meets",
        choices=[
            (",".join(order), ", then ".join(order))
            for order in (
                RECEIVABLES,
                ("fees", "principal", "interest"),
                ("interest", "fees", "principal"),
                ("interest", "principal", "fees"),
                ("principal", "fees", "interest"),
                ("principal", "interest", "fees"),
            )
        ],
    )
    accrual_mode = forms.ChoiceField(
        label="Interest is accrued by",
        choices=[("client", "the client, in batches"), ("engine", "the engine, each night")],
    )


@act(
    "programs/new/",
    "create_program",
    "createProgram",
    title="New program",
    permission=CREATE_PROGRAMS,
    submit="Make the program",
    form=ProgramForm,
    back="programs",
    intro="A loan product. Currency and day count stay; other terms may change from a date on.",
)
def create_program(doing: Doing) -> Done:
    body = doing.body("name", "currency", "annual_rate_bps", "day_count_convention", "accrual_mode")
    body["waterfall"] = doing.filled["waterfall"].split(",")
    made = run(doing, operations.create_program, body, {})
    return Done(f"{made['name']} has been made.", reverse("admin:program", kwargs={"program_id": made["program_id"]}))


class LoanForm(ActForm):
    program_id = forms.ChoiceField(label="Program")
    borrower_id = id_field(help_text="The borrower's UUID. For a new one it is filled in.", label="Borrower")
    opened_on = day_field(label="Opens on")
    principal_limit = amount_field(required=False, help_text="More is never lent; no limit when it is left empty.")
    annual_rate_bps = forms.IntegerField(
        label="Rate of its own, in basis points",
        required=False,
        min_value=0,
        max_value=100_000,
        help_text="The program's when it is left empty.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        program: Any = self.fields["program_id"]
        program.choices = self.initial.get("programs", [])


def _loan_start(request: HttpRequest, access: Access, arguments: Mapping[str, Any]) -> dict[str, Any]:
    with tenant_transaction(str(access.tenant_id), using=READS) as cursor:
        today = queries.today(cursor)
        found = queries.programs(cursor, on=today, after=None, limit=500)
    listed = [(each["program_id"], f"{each['name']} ({each['currency']})") for each in found]
    wanted = request.GET.get("program")
    return {"programs": listed, "program_id": wanted, "opened_on": today.isoformat(), "borrower_id": str(uuid.uuid4())}


@act(
    "loans/new/",
    "create_loan",
    "createLoan",
    title="New loan",
    permission=CREATE_LOANS,
    submit="Make the loan",
    form=LoanForm,
    back="loans",
    intro="A loan of a program, in its currency. Nothing is lent by this: disbursements come through the API.",
    initial=_loan_start,
)
def create_loan(doing: Doing) -> Done:
    body = doing.body("program_id", "borrower_id", "opened_on", "annual_rate_bps")
    if doing.filled["principal_limit"]:
        with tenant_transaction(doing.tenant_id, using=READS) as cursor:
            program = queries.program(cursor, program_id=body["program_id"], on=queries.today(cursor))
        if program is None:
            raise NotFound(f"There is no program {body['program_id']}.")
        body["principal_limit_minor"] = in_minor(
            "principal_limit", doing.filled["principal_limit"], program["currency"]
        )
    made = run(doing, operations.create_loan, body, {})
    return Done("The loan has been made.", reverse("admin:loan", kwargs={"loan_id": made["loan_id"]}))


# --- Nights ----------------------------------------------------------------------------------------------------------


class AccrualForm(ActForm):
    accrual_date = day_field(label="Accrual date")


@act(
    "programs/<id:program_id>/accrue/",
    "start_accrual_run",
    "startAccrualRun",
    title="Start an accrual run",
    permission=ACCRUE,
    submit="Start the run",
    form=AccrualForm,
    about=("program", "program_id"),
    intro="Brings every loan of the program to the date. A run that has ended visits what is left.",
    initial=lambda request, access, arguments: {"accrual_date": _today(str(access.tenant_id))},
)
def start_accrual_run(doing: Doing) -> Done:
    path = {"program_id": str(doing.arguments["program_id"])}
    made = run(doing, operations.start_accrual_run, doing.body("accrual_date"), path)
    url = reverse("admin:accrual_run", kwargs={"run_id": made["accrual_run_id"]})
    return Done("The run is queued; a worker takes it within seconds.", url)


# --- The maker -------------------------------------------------------------------------------------------------------

REASONS = shapes.ReasonCode.choices


class ReversalForm(ActForm):
    reason_code = forms.ChoiceField(label="Kind of reason", choices=choices(REASONS))
    effective_at = day_field(label="Counts on")


class AdjustmentForm(ActForm):
    description = forms.CharField(max_length=fields.Description.longest, help_text="Stands in the journal for ever.")
    effective_at = day_field(label="Counts on")
    currency = forms.ChoiceField(choices=[(code, code) for code in sorted(fields.CURRENCIES)])
    layer = forms.ChoiceField(choices=[(layer, layer) for layer in LAYERS], initial="SETTLED")


class LineForm(forms.Form):
    account_code = forms.ChoiceField(label="Account", required=False)
    debit = amount_field(required=False)
    credit = amount_field(required=False)
    loan_id = id_field(label="Loan", required=False)

    def __init__(self, *args: Any, accounts: list[tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        account: Any = self.fields["account_code"]
        account.choices = [("", "choose"), *accounts]
        for name, each in self.fields.items():
            each.widget.attrs["aria-label"] = f"{each.label or name.capitalize()} of {self.prefix}"

    def clean(self) -> dict[str, Any]:
        filled = super().clean() or {}
        given = [name for name in ("debit", "credit") if filled.get(name)]
        if filled.get("account_code") and len(given) != 1 and not self.errors:
            raise forms.ValidationError("Give a debit or a credit.")
        if given and not filled.get("account_code") and not self.errors:
            raise forms.ValidationError("Choose the account.")
        return filled


FIRST_LINES, MORE_LINES = 4, 4


@site.door("entries/<id:entry_id>/reverse/", "propose_reversal", title="Propose a reversal", permission=PROPOSE)
def propose_reversal(request: HttpRequest, access: Access, entry_id: str) -> HttpResponse:
    """The mirror of an entry, looked at before it is proposed."""
    if access.tenant_id is None:
        return redirect("admin:tenants")

    def proposed(filled: Mapping[str, Any]) -> Proposed:
        body = {"reverses_entry_id": entry_id, "reason_code": filled["reason_code"]}
        body |= {"effective_at": filled["effective_at"], "reason_description": filled["reason"]}
        return Proposed("createReversal", {}, body)

    start = {"effective_at": _today(access.tenant_id), "key": new_key()}
    form = ReversalForm(request.POST or None, initial=start)
    title, back = "Propose a reversal", reverse("admin:entry", kwargs={"entry_id": entry_id})
    return _propose(request, access, form, [], proposed, title=title, back=back, about=("entry", entry_id))


@site.door("proposals/new/", "propose_adjustment", title="Propose an adjustment", permission=PROPOSE)
def propose_adjustment(request: HttpRequest, access: Access) -> HttpResponse:
    """An accountant's own lines, looked at before they are proposed."""
    if access.tenant_id is None:
        return redirect("admin:tenants")
    with tenant_transaction(access.tenant_id, using=READS) as cursor:
        today, currency = queries.today(cursor), queries.tenant_currency(cursor)
        chart = [(each.code, f"{each.code} {each.name}") for each, closed in queries.accounts(cursor) if not closed]
    start = {"effective_at": today.isoformat(), "currency": currency, "key": new_key()}
    form = AdjustmentForm(request.POST or None, initial=start)
    count = FIRST_LINES
    if request.method == "POST":
        sent = request.POST.get("lines", "")
        count = min(int(sent), shapes.MAX_MANUAL_LINES) if sent.isdecimal() and len(sent) < 4 else FIRST_LINES
        count += MORE_LINES if "more" in request.POST else 0
    data = request.POST if request.method == "POST" else None
    lines = [LineForm(data, prefix=f"line-{number}", accounts=chart) for number in range(count)]

    def proposed(filled: Mapping[str, Any]) -> Proposed:
        body = {name: filled[name] for name in ("effective_at", "description")}
        said = [each.cleaned_data for each in lines if each.cleaned_data.get("account_code")]
        return Proposed("createJournalEntry", {}, body | {"lines": [_line(each, filled) for each in said]})

    return _propose(
        request, access, form, lines, proposed, title="Propose an adjustment", back=reverse("admin:proposals")
    )


def _line(said: Mapping[str, Any], filled: Mapping[str, Any]) -> dict[str, str]:
    """A line as the API takes it."""
    direction, amount = ("DR", said["debit"]) if said["debit"] else ("CR", said["credit"])
    line = {
        "account_code": said["account_code"],
        "direction": direction,
        "amount_minor": in_minor("", amount, filled["currency"]),
        "currency": filled["currency"],
        "layer": filled["layer"],
    }
    return line | ({"loan_id": said["loan_id"]} if said["loan_id"] else {})


def _propose(
    request: HttpRequest,
    access: Access,
    form: ActForm,
    lines: list[LineForm],
    proposed: Any,
    *,
    title: str,
    back: str,
    about: tuple[str, str] | None = None,
) -> HttpResponse:
    """The form; with `preview` the lines that it would post; with `propose` it is kept for another person."""
    preview: Preview | None = None
    if (
        request.method == "POST"
        and "more" not in request.POST
        and all([form.is_valid(), *(each.is_valid() for each in lines)])
    ):
        if "propose" in request.POST:

            def do(doing: Doing) -> Done:
                proposal_id = proposals.propose(doing.caller, doing.key, proposed(doing.filled))
                return Done("Proposed: another person approves or rejects it.", proposal_url(proposal_id))

            done = perform(request, access, form, "createProposal", about, {}, do)
            if done is not None:
                messages.success(request, done.message)
                return redirect(done.url)
        else:
            try:
                preview = proposals.preview(caller_of(request, access), proposed(form.cleaned_data))
            except Problem as problem:
                show_problem(form, problem)
    context = {
        "title": title,
        "form": form,
        "lines": lines,
        "back": back,
        "entry": preview and shown_entry(access, preview),
    }
    status = 422 if request.method == "POST" and preview is None and "more" not in request.POST else 200
    whole = site.each_context(request) | context | {"tenant": site.tenant_of(access)}
    return render(request, "books/ledger/propose.html", whole, status=status)


# --- The checker -----------------------------------------------------------------------------------------------------

OPERATIONS = {"createReversal": "reversal", "createJournalEntry": "adjustment", "resolveBreak": "adjustment of a break"}


@site.page("proposals/", "proposals", title="Proposals", template="books/list.html", section="Books", icon="rule")
def listed_proposals(look: Look) -> Context:
    def fetch(*args: Any, **asked: Any) -> list[dict[str, Any]]:
        rows = queries.proposal_rows(*args, **asked)
        return [row | {"what": OPERATIONS.get(row["operation_id"], row["operation_id"])} for row in rows]

    return listing(
        look,
        fetch,
        Column("Proposal", "proposal_id", "id", page="proposal"),
        Column("What", "what"),
        Column("State", "state", "state"),
        Column("Reason", "reason", "wrap"),
        Column("Proposed by", "maker"),
        Column("Proposed", "proposed_at", "moment"),
        Column("Decided by", "decided_by"),
        Column("Entry", "entry_id", "id", page="entry"),
        filters=(Filter("state", "State", "choice", choices(queries.PROPOSAL_STATES)), Filter("maker", "Proposed by")),
        place=("proposed_at", "proposal_id"),
        empty="Nobody has proposed a correction yet. A reversal is proposed on its entry's page, an adjustment by the button.",
    )


class DecisionForm(ActForm):
    seen = forms.CharField(widget=forms.HiddenInput, required=False)


@site.door("proposals/<id:proposal_id>/", "proposal", title="Proposal", permission=VIEW_BOOKS)
def proposal(request: HttpRequest, access: Access, proposal_id: str) -> HttpResponse:
    """A proposal: what it would post now, or what became of it; and what this person may do with it."""
    if access.tenant_id is None:
        return redirect("admin:tenants")
    found = _found(access, proposal_id)
    form = DecisionForm(request.POST or None)
    decision = next((name for name in DECISIONS if name in request.POST), None)
    if request.method == "POST" and decision is not None:
        if not access.may(PROPOSE if decision == "withdraw" else DECIDE):
            raise PermissionDenied("Your groups do not allow this.")
        if form.is_valid():
            operation = f"{decision}Proposal"
            done = perform(
                request,
                access,
                form,
                operation,
                ("proposal", proposal_id),
                {"proposal_id": proposal_id},
                DECISIONS[decision],
            )
            if done is not None:
                messages.success(request, done.message)
                return redirect(done.url)
            found = _found(access, proposal_id)
    preview, refusal = _previewed(request, access, found)
    context = {
        "title": f"Proposed {OPERATIONS.get(found.proposed.operation_id, 'correction')}",
        "crumbs": [("Proposals", reverse("admin:proposals"))],
        "proposal": found,
        "form": form if form.is_bound and found.decision is None else DecisionForm(),
        "entry": preview and shown_entry(access, preview),
        "seen": preview.digest if preview else "",
        "refusal": refusal,
        "reverses": found.proposed.body.get("reverses_entry_id"),
        "is_maker": found.maker == access.actor,
        "may_decide": access.may(DECIDE),
        "may_withdraw": access.may(PROPOSE),
    }
    status = 422 if request.method == "POST" else 200
    tenant = site.tenant_of(access)
    with timezone.override(zoneinfo.ZoneInfo(tenant.timezone if tenant else "UTC")):
        whole = site.each_context(request) | context | {"tenant": tenant}
        return render(request, "books/ledger/proposal.html", whole, status=status)


def _found(access: Access, proposal_id: str) -> Proposal:
    with tenant_transaction(str(access.tenant_id), using=READS) as cursor:
        try:
            return proposals.find(cursor, proposal_id)
        except NotFound as error:
            raise Http404(error.detail) from None


def _previewed(request: HttpRequest, access: Access, found: Proposal) -> tuple[Preview | None, Problem | None]:
    """What an open proposal would post now, or why the books would refuse it."""
    if found.decision is not None:
        return None, None
    try:
        return proposals.preview(caller_of(request, access), found.proposed), None
    except Problem as problem:
        return None, problem


def _approve(doing: Doing) -> Done:
    entry_id = proposals.approve(doing.caller, doing.arguments["proposal_id"], doing.filled["seen"])
    return Done("Approved and posted.", reverse("admin:entry", kwargs={"entry_id": entry_id}))


def _reject(doing: Doing) -> Done:
    proposals.reject(doing.caller, doing.arguments["proposal_id"])
    return Done("Rejected: nothing is posted.", proposal_url(doing.arguments["proposal_id"]))


def _withdraw(doing: Doing) -> Done:
    proposals.withdraw(doing.caller, doing.arguments["proposal_id"])
    return Done("Withdrawn: nothing is posted.", proposal_url(doing.arguments["proposal_id"]))


DECISIONS = {"approve": _approve, "reject": _reject, "withdraw": _withdraw}


def proposal_url(proposal_id: str) -> str:
    return reverse("admin:proposal", kwargs={"proposal_id": proposal_id})


def shown_entry(access: Access, preview: Preview) -> dict[str, Any]:
    """A previewed entry as a T: its lines by currency and layer, with the accounts' names."""
    with tenant_transaction(str(access.tenant_id), using=READS) as cursor:
        names = {account.code: account.name for account, _ in queries.accounts(cursor)}
    books: dict[tuple[str, str], dict[str, Any]] = {}
    for line in preview.entry["lines"]:
        start: dict[str, Any] = {"currency": line["currency"], "layer": line["layer"], "DR": [], "CR": [], "sum": 0}
        book = books.setdefault((line["currency"], line["layer"]), start)
        book[line["direction"]].append(line | {"account_name": names.get(line["account_code"], "")})
        book["sum"] += int(line["amount_minor"]) if line["direction"] == "DR" else 0
    return preview.entry | {"books": list(books.values())}


site.offer("entry", "Propose a reversal", "propose_reversal", permission=PROPOSE, icon="undo")
site.offer("entries", "Propose an adjustment", "propose_adjustment", permission=PROPOSE, icon="edit_note")
site.offer("proposals", "Propose an adjustment", "propose_adjustment", permission=PROPOSE, icon="edit_note")
site.offer("program", "Start an accrual run", "start_accrual_run", permission=ACCRUE, icon="play_arrow")
site.offer("programs", "New program", "create_program", permission=CREATE_PROGRAMS, icon="add")
site.offer("loans", "New loan", "create_loan", permission=CREATE_LOANS, icon="add")
