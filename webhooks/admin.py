"""What the admin shows of webhooks: endpoints, deliveries, what waits. Questions of queries.py and templates."""

from __future__ import annotations

import re
from datetime import datetime

from django.http import Http404
from django.urls import reverse

from hpts.listing import Column, Filter, choices, listing
from hpts.site import Context, Found, Look, site
from webhooks import queries
from webhooks.models import DELIVERY_STATES

UUID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)
DELIVERY_COLUMNS = (
    Column("Delivery", "delivery_id", "id", page="delivery"),
    Column("State", "state", "state"),
    Column("Event", "event_type", "words"),
    Column("Entry", "entry_id", "id", page="entry"),
    Column("Attempts", "attempt", "number"),
    Column("Last answer", "status_code", "number"),
    Column("Last attempt", "attempted_at", "moment"),
    Column("Next attempt", "next_attempt_at", "moment"),
)


@site.panel(60, title="Which webhook is stuck?", template="books/webhooks/panel.html", width="half")
def state_of_webhooks(look: Look) -> Context:
    return {
        "backlog": queries.backlog(look.cursor, limit=5),
        "stuck_after": queries.STUCK_AFTER_SECONDS,
    }


@site.page("webhooks/", "endpoints", title="Webhooks", template="books/list.html", section="Traffic", icon="webhook")
def endpoints(look: Look) -> Context:
    return listing(
        look,
        queries.endpoint_rows,
        Column("Endpoint", "url", "wrap", page="endpoint", argument="endpoint_id", by="endpoint_id"),
        Column("State", "state", "state"),
        Column("Why", "disabled_reason", "words"),
        Column("Waiting", "waiting", "number"),
        Column("Undelivered", "undelivered", "number"),
        Column("Failing since", "failing_since", "moment"),
        Column("Made", "created_at", "moment"),
        place=("endpoint_id",),
        empty="Nobody is told anything yet. Make an endpoint with POST /v1/webhook-endpoints.",
    )


@site.page("webhooks/<id:endpoint_id>/", "endpoint", title="Endpoint", template="books/webhooks/endpoint.html")
def endpoint(look: Look, endpoint_id: str) -> Context:
    found = queries.endpoint_shown(look.cursor, endpoint_id=endpoint_id)
    if found is None:
        raise Http404(f"There is no endpoint {endpoint_id} in these books.")
    deliveries = listing(
        look,
        queries.delivery_rows,
        *DELIVERY_COLUMNS,
        filters=(Filter("state", "State", "choice", choices(DELIVERY_STATES)),),
        place=("delivery_id",),
        empty="Nothing has been sent to this endpoint yet; the next entry will be.",
        endpoint=endpoint_id,
    )
    about = {"title": found["url"], "crumbs": [("Webhooks", reverse("admin:endpoints"))], "endpoint": found}
    return deliveries | about


@site.page(
    "deliveries/",
    "deliveries",
    title="Deliveries",
    template="books/list.html",
    section="Traffic",
    icon="local_shipping",
)
def deliveries(look: Look) -> Context:
    return listing(
        look,
        queries.delivery_rows,
        *DELIVERY_COLUMNS,
        Column("Endpoint", "url", page="endpoint", argument="endpoint_id", by="endpoint_id"),
        filters=(
            Filter("state", "State", "choice", choices(DELIVERY_STATES)),
            Filter("endpoint", "Endpoint id"),
        ),
        place=("delivery_id",),
        empty="Nothing has been sent yet: there is no endpoint, or no entry since there is one.",
    )


@site.page("deliveries/<id:delivery_id>/", "delivery", title="Delivery", template="books/webhooks/delivery.html")
def delivery(look: Look, delivery_id: str) -> Context:
    found = queries.delivery_shown(look.cursor, delivery_id=delivery_id)
    if found is None:
        raise Http404(f"There is no delivery {delivery_id} in these books.")
    title = f"{found['event_type'].replace('_', ' ').capitalize()}"
    failures = [each | {"at": datetime.fromisoformat(each["at"])} for each in found["failures"]]
    about = {"title": title, "crumbs": [("Deliveries", reverse("admin:deliveries"))], "delivery": found}
    return about | {"failures": failures[::-1]}


@site.part("entry", title="Deliveries", template="books/webhooks/of_entry.html")
def deliveries_of_entry(look: Look, entry_id: str) -> Context:
    rows = queries.deliveries_of_entry(look.cursor, entry_id=entry_id)
    return {"event": rows[0] if rows else None, "deliveries": [row for row in rows if row["delivery_id"]]}


@site.search
def find_webhook(look: Look, text: str) -> list[Found]:
    if not UUID.fullmatch(text):
        return []
    return [
        Found(kind.capitalize(), uuid, reverse(f"admin:{kind}", kwargs={f"{kind}_id": uuid}))
        for kind, uuid in queries.called(look.cursor, uuid=text)
    ]
