"""What may be done with webhooks in the admin: deliver again, recover, disable and enable. Doors to operations.py."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from typing import Any

from django import forms
from django.db.backends.utils import CursorWrapper
from django.urls import reverse

from hpts import audit
from hpts.acting import ActForm, Doing, Done, act
from hpts.fields import parse
from hpts.site import site
from ledger.idempotency import Call, fingerprint, once
from ledger.posting import Origin, Posting, Touches
from webhooks import operations
from webhooks import serializers as shapes

REDELIVER, RECOVER, DISABLE = "hpts.redeliver_webhooks", "hpts.recover_webhooks", "hpts.disable_webhooks"
# No loan and no period is touched.
NO_POSTING = Touches(mode="read")


def _once(doing: Doing, said: object, work: Callable[[CursorWrapper], object]) -> None:
    """As the API: once for a key, and recorded in the same transaction."""

    def recorded(posting: Posting) -> dict[str, Any]:
        work(posting.cursor)
        audit.record(doing.caller, doing.operation, about=doing.about, cursor=posting.cursor)
        return {}

    once(
        Call(Origin.of(doing.caller), doing.key, fingerprint(doing.operation, doing.arguments, said)),
        NO_POSTING,
        recorded,
    )


@act(
    "deliveries/<id:delivery_id>/redeliver/",
    "redeliver",
    "redeliverWebhook",
    title="Deliver again",
    permission=REDELIVER,
    submit="Deliver it again",
    about=("webhook delivery", "delivery_id"),
    intro="It is due at once, with all its attempts and the same webhook-id. One that is on its way stays so.",
)
def redeliver(doing: Doing) -> Done:
    delivery_id = doing.arguments["delivery_id"]
    _once(doing, {}, lambda cursor: operations.redeliver(cursor, delivery_id))
    return Done("The delivery is due now.", reverse("admin:delivery", kwargs={"delivery_id": delivery_id}))


class RecoverForm(ActForm):
    since = forms.DateTimeField(
        label="Since (UTC)",
        widget=forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
        help_text="Events of the last 30 days that the endpoint has not acknowledged are sent again.",
    )

    def clean_since(self) -> str:
        """As the API takes an instant. The field has read it in the zone that is current, which is UTC."""
        return str(self.cleaned_data["since"].astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


@act(
    "webhooks/<id:endpoint_id>/recover/",
    "recover",
    "recoverWebhookEndpoint",
    title="Recover an endpoint",
    permission=RECOVER,
    submit="Send what it has missed",
    form=RecoverForm,
    about=("webhook endpoint", "endpoint_id"),
)
def recover(doing: Doing) -> Done:
    endpoint_id = doing.arguments["endpoint_id"]
    said = doing.body("since")
    body = parse(said, shapes.NewWebhookRecovery)
    counted: list[int] = []

    def work(cursor: CursorWrapper) -> None:
        counted.append(operations.recover(cursor, endpoint_id, body.since)["delivery_count"])

    _once(doing, said, work)
    message = f"{counted[-1]} deliveries are due now." if counted else "This has been done already."
    return Done(message, reverse("admin:endpoint", kwargs={"endpoint_id": endpoint_id}))


@act(
    "webhooks/<id:endpoint_id>/disable/",
    "disable_endpoint",
    "deleteWebhookEndpoint",
    title="Disable an endpoint",
    permission=DISABLE,
    submit="Disable it",
    about=("webhook endpoint", "endpoint_id"),
    intro="Nothing is sent to it any more, and what waits for it is cancelled. It may be enabled again.",
)
def disable(doing: Doing) -> Done:
    endpoint_id = doing.arguments["endpoint_id"]
    _once(doing, {}, lambda cursor: operations.disable(cursor, endpoint_id))
    operations.cancel_waiting(doing.tenant_id, endpoint_id)
    return Done("The endpoint is disabled.", reverse("admin:endpoint", kwargs={"endpoint_id": endpoint_id}))


@act(
    "webhooks/<id:endpoint_id>/enable/",
    "enable_endpoint",
    "enableWebhookEndpoint",
    title="Enable an endpoint",
    permission=DISABLE,
    submit="Enable it",
    about=("webhook endpoint", "endpoint_id"),
    intro="It gets what is posted from now on; what it has missed meanwhile is sent by recovering it.",
)
def enable(doing: Doing) -> Done:
    endpoint_id = doing.arguments["endpoint_id"]
    _once(doing, {}, lambda cursor: operations.enable(cursor, endpoint_id))
    return Done("The endpoint is enabled.", reverse("admin:endpoint", kwargs={"endpoint_id": endpoint_id}))


site.offer("delivery", "Deliver again", "redeliver", permission=REDELIVER, icon="replay")
site.offer("endpoint", "Recover", "recover", permission=RECOVER, icon="history")
site.offer("endpoint", "Disable", "disable_endpoint", permission=DISABLE, icon="block")
site.offer("endpoint", "Enable", "enable_endpoint", permission=DISABLE, icon="check_circle")
