"""What may be done with bank accounts in the admin: upload a statement, start a run, resolve a break. Doors to importing.py,
runs.py and resolution.py; what would post an entry is proposed (ledger/proposals.py).
"""

from __future__ import annotations

from typing import Any, BinaryIO, cast

from django import forms
from django.urls import reverse

from hpts.acting import ActForm, Doing, Done, act
from hpts.fields import IsoDate, Reference, given, parse
from hpts.problems import FieldProblem, ValidationFailed
from hpts.site import site
from ledger import proposals
from ledger.actions import proposal_url, run
from ledger.idempotency import Call, fingerprint
from ledger.posting import Origin
from ledger.proposals import Proposed
from reconciliation import runs, tasks
from reconciliation import serializers as shapes
from reconciliation.formats import FORMATS
from reconciliation.importing import MAX_FILE_BYTES, import_once, read_file
from reconciliation.views import resolve_break

IMPORT, START, RESOLVE = "hpts.import_statements", "hpts.start_reconciliation_runs", "hpts.resolve_breaks"

# An adjustment of staff is a correction as any other: another person approves it.
proposals.PROPOSABLE[resolve_break.operation_id] = resolve_break


class StatementForm(ActForm):
    bank_account_ref = forms.CharField(
        label="Bank account", max_length=Reference.longest, help_text="The name that this account has with us."
    )
    format = forms.ChoiceField(choices=[(name, name) for name in FORMATS])
    file = forms.FileField()
    account_code = forms.RegexField(
        r"\A[0-9]{4}\Z",
        label="GL account",
        required=False,
        help_text="Of a new bank account; 1000 when it is left empty.",
    )


@act(
    "statements/new/",
    "import_statement",
    "importStatement",
    title="Upload a bank statement",
    permission=IMPORT,
    submit="Import and reconcile",
    form=StatementForm,
    intro="The file is taken whole or refused whole, and reconciled at once. The same file again changes nothing.",
)
def import_statement(doing: Doing) -> Done:
    upload = doing.filled["file"]
    if upload.size > MAX_FILE_BYTES:
        too_long = FieldProblem(
            "file", "too_long", f"A statement file has at most {MAX_FILE_BYTES // 1024 // 1024} MiB."
        )
        raise ValidationFailed("The statement was not imported.", [too_long])
    said = parse(doing.body("bank_account_ref", "format", "account_code"), shapes.ImportQuery)
    file = read_file(
        cast(BinaryIO, upload.file),
        bank_account_ref=said.bank_account_ref,
        format=said.format,
        account_code=given(said.account_code),
    )
    _, is_new = import_once(Origin.of(doing.caller), doing.key, file)
    message = "The statement is imported and reconciled." if is_new else "This file has been imported before."
    return Done(message, reverse("admin:statements"))


class RunForm(ActForm):
    as_of_date = forms.RegexField(
        IsoDate.pattern,
        label="As of",
        required=False,
        widget=forms.DateInput(attrs={"type": "date"}),
        help_text="Statements that end on or before it; today when it is left empty.",
    )


@act(
    "reconciliation/new/",
    "start_reconciliation_run",
    runs.REQUEST,
    title="Start a reconciliation run",
    permission=START,
    submit="Start the run",
    form=RunForm,
    intro="All bank accounts are held against the books, as every night.",
)
def start_run(doing: Doing) -> Done:
    said = doing.body("as_of_date")
    body = parse(said, shapes.NewRun)
    call = Call(Origin.of(doing.caller), doing.key, fingerprint(runs.REQUEST, {}, said))
    runs.request_once(call, given(body.as_of_date))
    tasks.announce(doing.tenant_id)
    return Done("The run is queued; a worker takes it within seconds.", reverse("admin:runs"))


class ResolutionForm(ActForm):
    action = forms.ChoiceField(
        choices=[
            ("match", "Match: the line belongs to a journal entry"),
            ("explain", "Explain: the difference stands, and is no surprise any more"),
            ("adjust", "Adjust: post the difference, when another person approves it"),
        ],
        widget=forms.RadioSelect,
        initial="match",
    )
    journal_entry_id = forms.CharField(
        label="Journal entry", required=False, help_text="To match: the entry's whole id."
    )
    account_code = forms.RegexField(
        r"\A[0-9]{4}\Z", label="Account", required=False, help_text="To adjust: the account on the other side."
    )


@act(
    "breaks/<id:break_id>/resolve/",
    "resolve_break",
    "resolveBreak",
    title="Resolve a break",
    permission=RESOLVE,
    submit="Resolve it",
    form=ResolutionForm,
    about=("break", "break_id"),
    intro="Once and for all, with your name and reason.",
)
def resolve(doing: Doing) -> Done:
    path = {"break_id": str(doing.arguments["break_id"])}
    body: dict[str, Any] = doing.body("action", "journal_entry_id", "account_code") | {"reason": doing.reason}
    if body["action"] == "adjust":
        proposal_id = proposals.propose(doing.caller, doing.key, Proposed(resolve_break.operation_id, path, body))
        return Done("Proposed: another person approves it.", proposal_url(proposal_id))
    run(doing, resolve_break, body, path)
    return Done("The break is resolved.", reverse("admin:break", kwargs=path))


site.offer("statements", "Upload a statement", "import_statement", permission=IMPORT, icon="upload_file")
site.offer("runs", "Start a run", "start_reconciliation_run", permission=START, icon="play_arrow")
site.offer("break", "Resolve", "resolve_break", permission=RESOLVE, icon="task_alt")
