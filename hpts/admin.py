"""The people of the admin: their accounts, the tenant whose books they look at, their second factor; and the machines that
call, to be looked at. Pages of books are registered by the apps (hpts/site.py).
"""

from __future__ import annotations

from base64 import b32encode
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.forms import SetPasswordForm
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import DataError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django_otp import login as show_second_factor
from django_otp.plugins.otp_totp.models import TOTPDevice

from hpts import admin_audit, audit  # noqa: F401 (the pages of the audit log, and what is written into it)
from hpts.access import VIEW_BOOKS, Access, choose_tenant
from hpts.acting import caller_of
from hpts.audit import Caller
from hpts.models import ApiClient, Staff
from hpts.oauth import UUID
from hpts.site import site

# What a list of tenants shows at most; a platform with more finds them by name.
TENANTS_SHOWN = PEOPLE_SHOWN = 100


# --- Tenants ---------------------------------------------------------------------------------------------------------


def onward(request: HttpRequest) -> str:
    """Where `next` points to, when that is a page of this site; else the dashboard."""
    wanted = request.POST.get("next") or request.GET.get("next") or ""
    if url_has_allowed_host_and_scheme(wanted, allowed_hosts=None) and wanted.startswith("/admin/"):
        return wanted
    return reverse("admin:index")


@site.door(
    "tenants/", "tenants", title="Tenants", permission=VIEW_BOOKS, section="Access", icon="domain", platform=True
)
def tenants(request: HttpRequest, access: Access) -> HttpResponse:
    """Platform staff turns to a tenant's books."""
    if request.method == "POST":
        wanted = request.POST.get("tenant_id", "")
        try:
            known = site.tenants(tenant_id=wanted)
        except DataError:
            known = []
        if not known:
            raise Http404("There is no such tenant.")
        audit.record(Caller.of(request, access.actor, known[0][0]), "chooseTenant", about=("tenant", known[0][0]))
        choose_tenant(request, known[0][0])
        return redirect(onward(request))
    name = request.GET.get("q", "").strip()
    context = {
        "title": "Tenants",
        "listed": site.tenants(name=name, limit=TENANTS_SHOWN),
        "text": name,
        "next": onward(request),
    }
    return render(request, "books/tenants.html", site.each_context(request) | context)


# --- The API's clients -----------------------------------------------------------------------------------------------


@site.door("clients/", "clients", title="API clients", permission=VIEW_BOOKS, section="Access", icon="key")
def clients(request: HttpRequest, access: Access) -> HttpResponse:
    """The machines that may call for the tenant. Nothing secret is shown; a secret is shown once, when it is made."""
    found = ApiClient.objects.filter(tenant_id=access.tenant_id).order_by("-created")[:200] if access.tenant_id else []
    context = {"title": "API clients", "clients": found}
    return render(request, "books/clients.html", site.each_context(request) | context)


# --- People ----------------------------------------------------------------------------------------------------------

EVERY_TENANT = "platform"
VIEW_PEOPLE, ADD_PEOPLE, CHANGE_PEOPLE = "auth.view_user", "auth.add_user", "auth.change_user"


class PersonForm(forms.ModelForm):  # type: ignore[type-arg]
    """An account and its binding. Nobody becomes a superuser here: `manage.py createsuperuser` makes those."""

    books = forms.ChoiceField(help_text="Whose books the person sees. Platform staff turns from tenant to tenant.")

    class Meta:
        model = User
        fields = ("username", "first_name", "last_name", "email", "is_active", "groups")
        widgets = {"groups": forms.CheckboxSelectMultiple}
        help_texts = {
            "is_active": "Switch it off when the person leaves; the name stays with what was done.",
            "groups": "What the person may do.",
        }

    def __init__(self, *args: Any, turned_to: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        listed = site.tenants(name="", limit=TENANTS_SHOWN)
        staff: Staff | None = getattr(self.instance, "staff", None) if self.instance.pk else None
        bound = str(staff.tenant_id) if staff is not None and staff.tenant_id else None
        # A platform may have more tenants than a list can show: also the one that is kept, the one whose books are open, and the
        # one that is asked for.
        for tenant_id in (bound, turned_to, self.data.get("books")):
            if tenant_id and UUID.fullmatch(tenant_id) and tenant_id not in dict(listed):
                listed += site.tenants(tenant_id=tenant_id)
        books: Any = self.fields["books"]
        books.choices = [("", "Choose ..."), *listed, (EVERY_TENANT, "Every tenant (platform staff)")]
        if staff is not None:
            books.initial = EVERY_TENANT if staff.is_platform else bound

    def save(self, commit: bool = True) -> User:
        person: User = self.instance
        person.is_staff = True
        if self.instance._state.adding:
            person.set_unusable_password()
        super().save(commit)
        platform = self.cleaned_data["books"] == EVERY_TENANT
        binding = {"is_platform": platform, "tenant_id": None if platform else self.cleaned_data["books"]}
        Staff.objects.update_or_create(user=person, defaults=binding)
        return person


@site.door("people/", "people", title="People", permission=VIEW_PEOPLE, section="Access", icon="group", platform=True)
def people(request: HttpRequest, access: Access) -> HttpResponse:
    """The accounts, by name."""
    after = request.GET.get("after", "")
    found = list(
        User.objects.filter(username__gt=after)
        .select_related("staff")
        .prefetch_related("groups")
        .order_by("username")[: PEOPLE_SHOWN + 1]
    )
    context = {
        "title": "People",
        "people": found[:PEOPLE_SHOWN],
        "after": found[PEOPLE_SHOWN - 1].username if len(found) > PEOPLE_SHOWN else None,
        "tenants": dict(site.tenants(name="", limit=TENANTS_SHOWN)),
        "may_add": access.may(ADD_PEOPLE),
    }
    return render(request, "books/people.html", site.each_context(request) | context)


@site.door("people/new/", "new_person", title="New account", permission=ADD_PEOPLE, platform=True)
def new_person(request: HttpRequest, access: Access) -> HttpResponse:
    """Make an account; it has no password until the next page sets one."""
    form = PersonForm(request.POST or None, turned_to=access.tenant_id)
    if request.method == "POST" and form.is_valid():
        made = form.save()
        _record_person(request, access, "createPerson", made)
        return redirect("admin:password_of_person", made.pk)
    return site.form(request, form, title="New account", submit="Make the account", back=reverse("admin:people"))


def _record_person(request: HttpRequest, access: Access, action: str, about: User) -> None:
    """What became of an account, with its groups and books, in the log of the tenant that it is bound to."""
    staff: Staff | None = getattr(about, "staff", None)
    tenant_id = str(staff.tenant_id) if staff is not None and staff.tenant_id else audit.NO_TENANT
    groups = ", ".join(about.groups.values_list("name", flat=True).order_by("name")) or "no group"
    state = "active" if about.is_active else "disabled"
    caller = Caller.of(request, access.actor, tenant_id)
    audit.record(caller, action, about=("person", about.username), detail=f"{state}; {groups}")


def _person(person_id: int) -> User:
    """An account that may be changed here: no superuser's."""
    person = get_object_or_404(User.objects.select_related("staff"), pk=person_id)
    if person.is_superuser:
        raise PermissionDenied("Superusers are changed by manage.py alone.")
    return person


@site.door("people/<int:person_id>/", "person", title="Account", permission=CHANGE_PEOPLE, platform=True)
def person(request: HttpRequest, access: Access, person_id: int) -> HttpResponse:
    """Change an account, its groups and its tenant."""
    about = _person(person_id)
    form = PersonForm(request.POST or None, instance=about, turned_to=access.tenant_id)
    if request.method == "POST" and form.is_valid():
        _record_person(request, access, "changePerson", form.save())
        messages.success(request, f"{about.username} has been saved.")
        return redirect("admin:people")
    links = [{"label": "Set a password", "url": reverse("admin:password_of_person", args=[person_id])}]
    return site.form(request, form, title=about.username, submit="Save", back=reverse("admin:people"), links=links)


@site.door(
    "people/<int:person_id>/password/", "password_of_person", title="Password", permission=CHANGE_PEOPLE, platform=True
)
def password_of_person(request: HttpRequest, access: Access, person_id: int) -> HttpResponse:
    """Set an account's first password, or a new one."""
    about = _person(person_id)
    form = SetPasswordForm(about, request.POST or None)
    if request.method == "POST" and form.is_valid():
        form.save()
        _record_person(request, access, "setPassword", about)
        messages.success(request, f"{about.username} has a new password.")
        return redirect("admin:people")
    title = f"Password of {about.username}"
    return site.form(request, form, title=title, submit="Set the password", back=reverse("admin:people"))


# --- The second factor -----------------------------------------------------------------------------------------------


@site.door("two-factor/", "second_factor", title="Second factor", permission=None, half_way=True)
def second_factor(request: HttpRequest, access: Access) -> HttpResponse:
    """Shows a new person the secret for the authenticator application, and asks everybody for its code."""
    if not settings.ADMIN_TWO_FACTOR:
        raise Http404("No second factor is asked for here.")
    device = TOTPDevice.objects.filter(user=access.user).order_by("-confirmed", "id").first()
    if device is None:
        device = TOTPDevice.objects.create(user=access.user, name="authenticator", confirmed=False)
    wrong = False
    if request.method == "POST":
        if device.verify_token(request.POST.get("code", "").replace(" ", "")):
            if not device.confirmed:
                device.confirmed = True
                device.save(update_fields=["confirmed"])
            show_second_factor(request, device)
            audit.record(caller_of(request, access), "showSecondFactor")
            return redirect(onward(request))
        wrong = True
        caller = caller_of(request, access)
        audit.record(caller, "showSecondFactor", outcome=audit.REFUSED, detail="wrong_code")
    context = {
        "title": "Second factor",
        "device": device,
        "secret": " ".join(_in_fours(_secret(device))) if not device.confirmed else "",
        "wrong": wrong,
        "locked": not device.verify_is_allowed()[0],
        "next": onward(request),
        "site_title": settings.OTP_TOTP_ISSUER,
    }
    return render(request, "books/second_factor.html", site.each_context(request) | context)


def _secret(device: TOTPDevice) -> str:
    return b32encode(device.bin_key).decode().rstrip("=")


def _in_fours(text: str) -> list[str]:
    return [text[start : start + 4] for start in range(0, len(text), 4)]
