"""The audit log in the admin: its pages, its export, and what the site's own pages and sign-ins write into it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from axes.signals import user_locked_out
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.dispatch import receiver
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.urls import reverse

from hpts import audit
from hpts.access import Access, access_of
from hpts.acting import caller_of
from hpts.audit import DONE, FAILED, NO_TENANT, OUTCOMES, REFUSED, Caller
from hpts.listing import Column, Filter, choices, listing
from hpts.site import READS, Context, Look, Tenant, site
from hpts.tenancy import SNAPSHOT, tenant_transaction

VIEW_AUDIT = "hpts.view_audit"
EXPORTED_AT_ONCE = 1_000
# A spreadsheet takes a cell that begins with one of these for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")

FILTERS = (
    Filter("actor", "Person or client"),
    Filter("action", "Action"),
    Filter("object_id", "Object's id"),
    Filter("outcome", "Outcome", "choice", choices(OUTCOMES)),
    Filter("since", "From", "date"),
    Filter("until", "To", "date"),
)


# --- Reading ---------------------------------------------------------------------------------------------------------


def _listed(look: Look, page: str, title: str, note: str) -> Context:
    shown = listing(
        look,
        audit.records,
        Column("When", "occurred_at", "moment", page=page, argument="record_id", by="id"),
        Column("Who", "actor"),
        Column("Action", "action"),
        Column("Outcome", "outcome", "state"),
        Column("Reason", "reason", "wrap"),
        Column("Said", "detail", "wrap"),
        Column("Object", "object_type"),
        Column("Id", "object_id", "code"),
        Column("From", "address", "code"),
        filters=FILTERS,
        place=("id",),
        empty="Nothing has been recorded yet.",
        zone=look.tenant.timezone,
    )
    export = reverse("admin:audit_export")
    asked = look.request.GET.copy()
    asked.pop("after", None)
    if page == "platform_record":
        asked["of"] = "platform"
    offer = {"label": "Export as CSV", "icon": "download", "url": f"{export}?{asked.urlencode()}"}
    return {**shown, "title": title, "note": note, "offers": [offer]}


@site.door("audit/", "audit", title="Audit", permission=VIEW_AUDIT, section="Access", icon="policy")
def audit_log(request: HttpRequest, access: Access) -> HttpResponse:
    """Doors and not pages of the books, because the log is none of them: only who may read it sees that there is one."""
    note = (
        "Who signed in, looked at a loan, did something or was refused, in this tenant. Nothing here is ever changed."
    )

    def show(look: Look) -> Context:
        return _listed(look, "audit_record", "Audit", note)

    return site.looking(request, access, "books/list.html", show)


@site.door("audit/<int:record_id>/", "audit_record", title="Record", permission=VIEW_AUDIT)
def audit_record(request: HttpRequest, access: Access, record_id: int) -> HttpResponse:
    def show(look: Look) -> Context:
        return {"title": "Record", "record": _one(look, record_id), "crumbs": [("Audit", reverse("admin:audit"))]}

    return site.looking(request, access, "books/record.html", show)


def _one(look: Look, record_id: int) -> dict[str, Any]:
    found = audit.records(look.cursor, record_id=record_id, limit=1) if record_id < 2**63 else []
    if not found:
        raise Http404("There is no such record.")
    return found[0]


@site.door(
    "platform-audit/",
    "platform_audit",
    title="Audit, platform",
    permission=VIEW_AUDIT,
    section="Access",
    icon="admin_panel_settings",
    platform=True,
)
def platform_audit(request: HttpRequest, access: Access) -> HttpResponse:
    """What belongs to no tenant: sign-ins of platform staff and of nobody known."""
    note = "What belongs to no tenant: sign-ins of platform staff, and those that nobody known has tried."

    def show(look: Look) -> Context:
        return _listed(look, "platform_record", "Audit, platform", note)

    return _of_no_tenant(request, access, "books/list.html", show)


@site.door("platform-audit/<int:record_id>/", "platform_record", title="Record", permission=VIEW_AUDIT, platform=True)
def platform_record(request: HttpRequest, access: Access, record_id: int) -> HttpResponse:
    crumbs = [("Audit, platform", reverse("admin:platform_audit"))]

    def show(look: Look) -> Context:
        return {"title": "Record", "record": _one(look, record_id), "crumbs": crumbs}

    return _of_no_tenant(request, access, "books/record.html", show)


def _of_no_tenant(request: HttpRequest, access: Access, template: str, show: Callable[[Look], Context]) -> HttpResponse:
    with tenant_transaction(NO_TENANT, first=SNAPSHOT, using=READS) as cursor:
        cursor.execute("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date")
        ((today,),) = cursor.fetchall()
        nobody = Tenant(NO_TENANT, "Platform", "USD", "UTC", today)
        shown = show(Look(request, access, nobody, cursor))
    return render(request, template, site.each_context(request) | dict(shown))


# --- Taking it away --------------------------------------------------------------------------------------------------


class _Line:
    """A file for csv.writer that gives each line back."""

    def write(self, text: str) -> str:
        return text


def cell(value: object) -> str:
    """A value as a spreadsheet takes it for text, whatever somebody has written into it."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


@site.door("audit/export/", "audit_export", title="Export", permission=VIEW_AUDIT)
def audit_export(request: HttpRequest, access: Access) -> HttpResponse:
    """The filtered records as CSV, the latest first. Streamed, a page at a time, so that its size does not matter."""
    of_platform = request.GET.get("of") == "platform" and access.is_platform
    tenant_id = NO_TENANT if of_platform else access.tenant_id
    if tenant_id is None:
        raise Http404("Choose a tenant first.")
    zone = "UTC"
    with tenant_transaction(tenant_id, first=SNAPSHOT, using=READS) as cursor:
        tenant = site.tenant(cursor)
        zone = tenant.timezone if tenant is not None else zone
        look = Look(request, access, tenant or Tenant(tenant_id, "", "", zone, None), cursor)  # type: ignore[arg-type]
        answers = {each.name: each.asked(look) for each in FILTERS}
    asked = ", ".join(f"{name} {answer}" for name, answer in answers.items() if answer) or "everything"
    about = ("audit", tenant_id)
    audit.record(Caller.of(request, access.actor, tenant_id), "exportAudit", about=about, detail=asked)
    response = StreamingHttpResponse(_lines(tenant_id, zone, answers), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = 'attachment; filename="audit.csv"'
    return cast(HttpResponse, response)


def _lines(tenant_id: str, zone: str, answers: Mapping[str, str | None]) -> Iterator[str]:
    writer = csv.writer(_Line())
    yield writer.writerow(audit.MEMBERS)
    after = None
    while True:
        with tenant_transaction(tenant_id, first=SNAPSHOT, using=READS) as cursor:
            found = audit.records(cursor, zone=zone, after=after, limit=EXPORTED_AT_ONCE, **answers)  # type: ignore[arg-type]
        for each in found:
            each["occurred_at"] = each["occurred_at"].isoformat()
            yield writer.writerow(cell(each[name]) for name in audit.MEMBERS)
        if len(found) < EXPORTED_AT_ONCE:
            return
        after = [str(found[-1]["id"])]


# --- Looking and knocking --------------------------------------------------------------------------------------------

# Pages about one of these show what a borrower owes, and whose it is.
BORROWERS = {"loan": "viewLoan", "entry": "viewEntry"}


def witness(request: HttpRequest, name: str, arguments: Mapping[str, Any], status: int) -> None:
    """Called by the site after each page, also when it could not be rendered, and after each refusal: nobody sees a borrower's
    loan without a record, and nobody knocks at a door unheard."""
    about = next(((kind.removesuffix("_id").replace("_", " "), str(value)) for kind, value in arguments.items()), None)
    caller = caller_of(request, access_of(request))
    if status == 403:
        audit.record(caller, name, about=about, outcome=REFUSED, detail="not_allowed")
    elif name in BORROWERS or (about is not None and about[0] == "loan" and name in site.registered.pages):
        outcome, detail = {200: (DONE, None), 404: (REFUSED, "not_found")}.get(status, (FAILED, f"status {status}"))
        audit.record(caller, BORROWERS.get(name, "viewLoan"), about=about, outcome=outcome, detail=detail)


site.registered.witnesses.append(witness)


# --- Signing in and out ----------------------------------------------------------------------------------------------


@receiver(user_logged_in)
def signed_in(request: HttpRequest | None, user: Any, **_: Any) -> None:
    if request is not None and request.META:
        audit.record(_person(request, user), "signIn")


@receiver(user_logged_out)
def signed_out(request: HttpRequest | None, user: Any, **_: Any) -> None:
    if request is not None and request.META and user is not None:
        audit.record(_person(request, user), "signOut")


@receiver(user_login_failed)
def not_signed_in(credentials: Mapping[str, Any], request: HttpRequest | None = None, **_: Any) -> None:
    if request is not None and request.META:
        audit.record(
            _named(request, credentials.get("username")), "signIn", outcome=REFUSED, detail="wrong_credentials"
        )


@receiver(user_locked_out)
def locked_out(request: HttpRequest, username: str | None, **_: Any) -> None:
    audit.record(_named(request, username), "signIn", outcome=REFUSED, detail="locked_out")


def _person(request: HttpRequest, user: Any) -> Caller:
    """Somebody who is known, in the tenant that they are bound to."""
    staff = getattr(user, "staff", None)
    tenant_id = str(staff.tenant_id) if staff is not None and staff.tenant_id else NO_TENANT
    return Caller.of(request, f"staff:{user.get_username()}", tenant_id)


def _named(request: HttpRequest, username: str | None) -> Caller:
    """Whose name was given, when there is such a person. Any other text is not written down: people type a password there."""
    user = User.objects.select_related("staff").filter(username=username or "").first()
    return _person(request, user) if user is not None else Caller.of(request, "staff:?")
