"""What may be done with the API's clients: made, with a secret that is shown once, and switched off."""

from __future__ import annotations

from typing import NoReturn

from django import forms
from django.shortcuts import render
from django.urls import reverse

from hpts import oauth
from hpts.acting import ActForm, Doing, Done, act
from hpts.fields import Name
from hpts.problems import FieldProblem, NotFound, ValidationFailed
from hpts.site import site

CREATE_CLIENTS = "hpts.create_clients"
MAX_CERTIFICATE_BYTES = 64 * 1024


class ClientForm(ActForm):
    name = forms.CharField(
        max_length=Name.longest, help_text="What the client is called in lists, and how its id begins."
    )
    scopes = forms.MultipleChoiceField(
        choices=[(scope, f"{scope}: {does}") for scope, does in oauth.SCOPES.items()],
        widget=forms.CheckboxSelectMultiple,
        help_text="No more than it needs.",
    )
    certificate = forms.FileField(
        required=False, help_text="The client's own certificate, PEM or DER, when it shall present one."
    )


@act(
    "clients/new/",
    "create_client",
    "createClient",
    title="New API client",
    permission=CREATE_CLIENTS,
    submit="Make the client",
    form=ClientForm,
    back="clients",
    intro="It may call for this tenant alone. Its secret is on the next page, once.",
)
def create_client(doing: Doing) -> Done:
    """The key decides how the client's id ends, so that a form that is sent twice makes one client."""
    upload = doing.filled["certificate"]
    if upload is not None and upload.size > MAX_CERTIFICATE_BYTES:
        _refuse("This is no certificate: the file is too large.", "certificate")
    try:
        client, secret = oauth.register_client(
            tenant_id=doing.tenant_id,
            scopes=doing.filled["scopes"],
            name=doing.filled["name"],
            certificate=upload.read() if upload is not None else None,
            suffix=doing.key.replace("-", "")[-16:],
            by=doing.caller,
        )
    except ValueError as error:
        _refuse(str(error))
    context = {"title": "New API client", "client": client, "secret": secret}
    page = render(doing.request, "books/client_made.html", site.each_context(doing.request) | context)
    return Done("", "", page)


@act(
    "clients/<str:client_id>/disable/",
    "disable_client",
    "disableClient",
    title="Disable an API client",
    permission=CREATE_CLIENTS,
    submit="Disable it",
    back="clients",
    about=("client", "client_id"),
    intro="It gets no token any more, and those that it has end within a minute.",
)
def disable_client(doing: Doing) -> Done:
    client_id = doing.arguments["client_id"]
    if not oauth.disable_client(tenant_id=doing.tenant_id, client_id=client_id, by=doing.caller):
        raise NotFound(f"There is no client {client_id}.")
    return Done(f"{client_id} is disabled.", reverse("admin:clients"))


def _refuse(message: str, field: str = "") -> NoReturn:
    raise ValidationFailed("The client has not been made.", [FieldProblem(field, "invalid_format", message)])
