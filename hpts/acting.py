"""What may be done in the admin: a form that asks the reason, a permission, a record in the audit log. One piece for all.

An app declares an act with `act()` in its actions.py: which form, and a function that does it through the very function that the
API calls. A refusal of the product is shown in the form, at its field, and recorded. No rule lives here.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.http import urlencode

from hpts import audit
from hpts.access import Access
from hpts.audit import NO_TENANT, Caller
from hpts.fields import Description
from hpts.problems import Problem
from hpts.site import site


def caller_of(request: HttpRequest, access: Access, reason: str | None = None) -> Caller:
    """A person of the staff, in the tenant whose books they look at."""
    return Caller.of(request, access.actor, access.tenant_id or NO_TENANT, reason)


def new_key() -> str:
    return f"admin-{uuid.uuid4()}"


class ActForm(forms.Form):
    """What every act asks: why. `key` makes a second click on the same page the same request, as an API client's key does."""

    key = forms.RegexField(r"\Aadmin-[0-9a-f-]{36}\Z", widget=forms.HiddenInput, initial=new_key)
    reason = forms.CharField(
        max_length=Description.longest,
        strip=True,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="Kept with your name in the audit log.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.order_fields([name for name in self.fields if name != "reason"] + ["reason"])

    def clean_reason(self) -> str:
        # One line, as the journal keeps descriptions.
        return " ".join(self.cleaned_data["reason"].split())


@dataclass(frozen=True, slots=True)
class Doing:
    """One act on its way: who, with what they filled in; and what the audit log calls it and its object."""

    request: HttpRequest
    access: Access
    caller: Caller
    key: str
    filled: Mapping[str, Any]
    arguments: Mapping[str, Any]
    operation: str
    about: tuple[str, str] | None

    @property
    def tenant_id(self) -> str:
        return self.caller.tenant_id

    @property
    def reason(self) -> str:
        return self.caller.reason or ""

    def body(self, *names: str) -> dict[str, Any]:
        """What was filled in of these fields, as the API takes it: what is empty is left out."""
        return {name: self.filled[name] for name in names if self.filled[name] not in (None, "", [])}


@dataclass(frozen=True, slots=True)
class Done:
    """What is said afterwards, and where the browser goes; or a page of its own."""

    message: str
    url: str
    page: HttpResponse | None = None


Do = Callable[[Doing], Done]
About = Callable[[Mapping[str, Any]], tuple[str, str] | None]


def act(
    route: str,
    name: str,
    operation: str,
    *,
    title: str,
    permission: str,
    submit: str,
    form: type[ActForm] = ActForm,
    intro: str = "",
    back: str = "index",
    about: tuple[str, str] | None = None,
    initial: Callable[[HttpRequest, Access, Mapping[str, Any]], Mapping[str, Any]] | None = None,
    section: str = "",
    icon: str = "",
    platform: bool = False,
) -> Callable[[Do], Do]:
    """Declare an act. `operation`: what the audit log calls it; `about`: the type of its object and the route's argument that is
    its id; `platform`: for platform staff alone, and about no tenant's books."""

    def register(do: Do) -> Do:
        @site.door(route, name, title=title, permission=permission, section=section, icon=icon, platform=platform)
        def view(request: HttpRequest, access: Access, **arguments: Any) -> HttpResponse:
            if access.tenant_id is None and not platform:
                return redirect(f"{reverse('admin:tenants')}?{urlencode({'next': request.get_full_path()})}")
            start = {**(initial(request, access, arguments) if initial else {}), "key": new_key()}
            files = request.FILES if request.method == "POST" else None
            filled = form(request.POST if request.method == "POST" else None, files, initial=start)
            of = (about[0], str(arguments[about[1]])) if about else None
            if request.method == "POST" and filled.is_valid():
                done = perform(request, access, filled, operation, of, arguments, do)
                if done is not None:
                    if done.page is not None:
                        return done.page
                    messages.success(request, done.message)
                    return redirect(done.url)
            where = f"{of[0].capitalize()} {of[1]}. {intro}" if of else intro
            return site.form(request, filled, title=title, submit=submit, back=reverse(f"admin:{back}"), intro=where)

        return do

    return register


def perform(
    request: HttpRequest,
    access: Access,
    form: ActForm,
    operation: str,
    about: tuple[str, str] | None,
    arguments: Mapping[str, Any],
    do: Do,
) -> Done | None:
    """Do it. A refusal is recorded and put into the form: then there is nothing done."""
    filled = form.cleaned_data
    caller = caller_of(request, access, filled["reason"])
    doing = Doing(request, access, caller, filled["key"], filled, arguments, operation, about)
    try:
        return do(doing)
    except Problem as problem:
        audit.record(caller, operation, about=about, outcome=audit.REFUSED, detail=f"{problem.code}: {problem.detail}")
        show_problem(form, problem)
        return None
    except Exception as error:
        audit.record(caller, operation, about=about, outcome=audit.FAILED, detail=type(error).__name__)
        raise


def show_problem(form: forms.Form, problem: Problem) -> None:
    """The problem's sentence above the form, and what is wrong with a field at that field."""
    form.add_error(None, problem.detail if not problem.errors else problem.title + ".")
    for error in problem.errors:
        if error.field in form.fields:
            form.add_error(error.field, error.message)
        else:
            form.add_error(None, f"{error.field}: {error.message}" if error.field else error.message)
