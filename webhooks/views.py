"""The API of webhooks and of the event feed: scopes, shapes, answers. Writes are operations.py, reads queries.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import msgspec
from django.conf import settings
from django.db.backends.utils import CursorWrapper
from django.http import HttpRequest, HttpResponse
from rest_framework.request import Request

from hpts import audit
from hpts.audit import Caller
from hpts.auth import called_by, caller
from hpts.fields import given
from hpts.openapi import operation
from hpts.pagination import DEFAULT_PAGE_SIZE
from hpts.problems import FieldProblem, NotFound, ValidationFailed
from hpts.rendering import answer
from hpts.tenancy import tenant_transaction
from ledger.idempotency import Call, once
from ledger.posting import Posting, Touches
from ledger.serializers import NoQuery, Page
from ledger.views import LedgerViewSet, answered
from webhooks import operations, queries, signing, targets
from webhooks import serializers as shapes

SCOPE = "hpts:admin:webhooks"
# No loan and no period is touched.
NO_POSTING = Touches(mode="read")
POLL_SECONDS = 0.25

Members = Mapping[str, Any]


class WebhookViewSet(LedgerViewSet):
    """What the views of webhooks share: a write without a posting, bodies that may be left out, DELETE."""

    http_method_names = ["get", "post", "delete", "head"]
    bodiless: ClassVar[frozenset[str]] = frozenset()

    def document(self, request: Request) -> object:
        return {} if self._is_bodiless(request._request) else super().document(request)

    def _check_body(self, request: HttpRequest) -> None:
        if not self._is_bodiless(request):
            super()._check_body(request)

    def _is_bodiless(self, request: HttpRequest) -> bool:
        chunked = "HTTP_TRANSFER_ENCODING" in request.META
        return self.action in self.bodiless and not chunked and (request.META.get("CONTENT_LENGTH") or "0") == "0"

    def once(self, call: Call, work: Callable[[CursorWrapper], Members]) -> HttpResponse:
        """Run the operation once for its key, as every POST."""
        return answered(once(call, NO_POSTING, lambda posting: self._audited(posting, work(posting.cursor))))

    def once_with_secret(self, call: Call, work: Callable[[CursorWrapper, str], Members]) -> HttpResponse:
        """As `once()`; the first answer, and no other, says the secret too: what is kept with the key does not hold it."""
        secret = signing.new_secret()

        def run(posting: Posting) -> Members:
            return self._audited(posting, work(posting.cursor, secret))

        done = once(call, NO_POSTING, run)
        if done.replayed:
            return answered(done)
        return answer({**msgspec.json.decode(done.body), "secret": secret}, 201)

    def _audited(self, posting: Posting, members: Members) -> Members:
        """Endpoints and deliveries have no actor of their own, so each of their writes is in the audit log."""
        self.record(posting.origin.as_caller(), posting.cursor, members)
        return members

    def record(self, by: Caller, cursor: CursorWrapper, members: Members) -> None:
        known = {**members, **self.kwargs}
        member = "delivery_id" if "delivery_id" in self.kwargs else "webhook_endpoint_id"
        about = (member.removesuffix("_id").replace("_", " "), str(known[member]))
        audit.record(by, self.operation_id, about=about, cursor=cursor)


class WebhookEndpoints(WebhookViewSet):
    scopes: ClassVar = dict.fromkeys(
        ("create", "list", "retrieve", "destroy", "rotate_secret", "test", "enable", "recover"), SCOPE
    )
    bodiless = frozenset({"rotate_secret", "test", "enable"})

    @operation(
        "createWebhookEndpoint",
        "webhooks",
        request=shapes.NewWebhookEndpoint,
        answer=shapes.WebhookEndpointCreated,
        returns="Endpoint registered",
    )
    def create(self, request: Request) -> HttpResponse:
        """Register a webhook endpoint.

        It gets every entry that is announced from now on, or those of the kinds in `event_types`. The secret that signs is in
        this answer alone.
        """
        call, body = self.call(request, shapes.NewWebhookEndpoint)
        # Asks the resolver, so before any transaction.
        refusal = targets.examine(body.url)
        return self.once_with_secret(
            call, lambda cursor, secret: operations.create_endpoint(cursor, body, secret, refusal)
        )

    @operation(
        "listWebhookEndpoints",
        "webhooks",
        query=Page,
        answer=shapes.WebhookEndpointPage,
        returns="Page of endpoints",
    )
    def list(self, request: Request) -> HttpResponse:
        """The tenant's webhook endpoints."""
        query = self.query(request, Page)
        paging = self.paging(request, query)
        with self.read(request) as cursor:
            found = queries.endpoints(cursor, after=paging.after, limit=paging.limit)
        return answer(paging.page(found, "webhook_endpoint_id"))

    @operation("getWebhookEndpoint", "webhooks", answer=shapes.WebhookEndpoint, returns="The endpoint")
    def retrieve(self, request: Request, webhook_endpoint_id: str) -> HttpResponse:
        """One webhook endpoint.

        `disabled_reason` says what ended it: it was `deleted`, it answered 410 (`gone`), or nothing succeeded for five days
        (`failing`).
        """
        self.query(request, NoQuery)
        with self.read(request) as cursor:
            found = queries.endpoint(cursor, endpoint_id=webhook_endpoint_id)
        if found is None:
            raise NotFound(f"There is no webhook endpoint {webhook_endpoint_id}.")
        return answer(found)

    @operation("deleteWebhookEndpoint", "webhooks", answer=None, returns="Nothing is sent to it any more")
    def destroy(self, request: Request, webhook_endpoint_id: str) -> HttpResponse:
        """Deactivate a webhook endpoint.

        What waits for it is cancelled. It stays listed as disabled, and may be enabled again.
        """
        self.query(request, NoQuery)
        with self.read(request) as cursor:
            operations.disable(cursor, webhook_endpoint_id)
            self.record(called_by(request), cursor, {})
        operations.cancel_waiting(caller(request).tenant_id, webhook_endpoint_id)
        gone = HttpResponse(status=204)
        del gone["Content-Type"]
        return gone

    @operation(
        "rotateWebhookSecret",
        "webhooks",
        request=shapes.NewSecret,
        answer=shapes.SecretRotated,
        returns="The new secret",
    )
    def rotate_secret(self, request: Request, webhook_endpoint_id: str) -> HttpResponse:
        """Replace the secret that signs.

        For 24 hours each attempt is signed with the one before, too, unless `revoke_previous` ends it at once.
        """
        call, body = self.call(request, shapes.NewSecret)
        return self.once_with_secret(
            call, lambda cursor, secret: operations.rotate_secret(cursor, webhook_endpoint_id, body, secret)
        )

    @operation(
        "testWebhookEndpoint",
        "webhooks",
        request=shapes.Nothing,
        answer=shapes.WebhookDelivery,
        returns="The delivery that is on its way",
    )
    def test(self, request: Request, webhook_endpoint_id: str) -> HttpResponse:
        """Send a test.

        A signed event whose `journal_entry_id` is all zeros.
        """
        call, _ = self.call(request, shapes.Nothing)
        return self.once(call, lambda cursor: operations.send_test(cursor, webhook_endpoint_id))

    @operation(
        "enableWebhookEndpoint",
        "webhooks",
        request=shapes.Nothing,
        answer=shapes.WebhookEndpoint,
        returns="The endpoint",
    )
    def enable(self, request: Request, webhook_endpoint_id: str) -> HttpResponse:
        """Enable a disabled endpoint.

        What waited goes on; what was posted meanwhile is sent by `recover`.
        """
        call, _ = self.call(request, shapes.Nothing)
        return self.once(call, lambda cursor: operations.enable(cursor, webhook_endpoint_id))

    @operation(
        "recoverWebhookEndpoint",
        "webhooks",
        request=shapes.NewWebhookRecovery,
        answer=shapes.WebhookRecovery,
        returns="What is due now",
    )
    def recover(self, request: Request, webhook_endpoint_id: str) -> HttpResponse:
        """Send again what an endpoint has missed.

        Every event since `since`, of the last 30 days, that the endpoint subscribed to and has not acknowledged.
        """
        call, body = self.call(request, shapes.NewWebhookRecovery)
        return self.once(call, lambda cursor: operations.recover(cursor, webhook_endpoint_id, body.since))


class WebhookDeliveries(WebhookViewSet):
    scopes: ClassVar = {"list": SCOPE, "redeliver": SCOPE}
    bodiless = frozenset({"redeliver"})

    @operation(
        "listWebhookDeliveries",
        "webhooks",
        query=shapes.DeliveriesQuery,
        answer=shapes.WebhookDeliveryPage,
        returns="Page of deliveries",
    )
    def list(self, request: Request) -> HttpResponse:
        """Deliveries, the newest first.

        `exhausted` had all its attempts, `dead` cannot be sent by a fault of ours; both wait to be delivered again. What has
        ended is kept for 30 days.
        """
        query = self.query(request, shapes.DeliveriesQuery)
        endpoint_id, state, kind = given(query.webhook_endpoint_id), given(query.state), given(query.event_type)
        paging = self.paging(request, query, endpoint_id, state, kind)
        with self.read(request) as cursor:
            found = queries.deliveries(
                cursor, endpoint_id=endpoint_id, state=state, event_type=kind, before=paging.after, limit=paging.limit
            )
        return answer(paging.page(found, "delivery_id"))

    @operation(
        "redeliverWebhook",
        "webhooks",
        request=shapes.Nothing,
        answer=shapes.WebhookDelivery,
        returns="The delivery, due now",
    )
    def redeliver(self, request: Request, delivery_id: str) -> HttpResponse:
        """Deliver again.

        Also what has succeeded; with the same `webhook-id`.
        """
        call, _ = self.call(request, shapes.Nothing)
        return self.once(call, lambda cursor: operations.redeliver(cursor, delivery_id))


# A request that waits holds a thread of the server. No more than these do; the next one is answered at once, with nothing.
_places = threading.BoundedSemaphore(settings.WAITING_READERS)


class Events(LedgerViewSet):
    scopes: ClassVar = {"list": "hpts:ledger:read"}

    @operation("listEvents", "events", query=shapes.EventsQuery, answer=shapes.FeedPage, returns="Events in order")
    def list(self, request: Request) -> HttpResponse:
        """The feed of posted entries.

        Every entry once, in an order that never skips one that commits late: `sequence` counts from 1 without a gap, and each
        event holds the hash of the one before it. With `wait`, an answer without items comes when an event has, or after so
        many seconds; a busy server may answer earlier.
        """
        query = self.query(request, shapes.EventsQuery)
        after, wait = given(query.after) or 0, given(query.wait) or 0
        ask = {"event_type": given(query.event_type), "limit": given(query.page_size) or DEFAULT_PAGE_SIZE}
        tenant_id = caller(request).tenant_id
        found = _read_feed(tenant_id, after=after, **ask)
        if after > found.head:
            raise ValidationFailed(
                "One or more fields are not valid.",
                [FieldProblem("after", "out_of_range", "The feed has not given out this cursor.")],
            )
        if wait and not found.items and found.next_cursor == found.head and _places.acquire(blocking=False):
            try:
                found = _awaited(tenant_id, found, time.monotonic() + wait, **ask)
            finally:
                _places.release()
        return answer(f'{{"items":[{",".join(found.items)}],"next_cursor":"{found.next_cursor}"}}')


def _awaited(tenant_id: str, found: queries.Feed, until: float, **ask: Any) -> queries.Feed:
    """Look again and again, each time in a transaction of its own: while it waits, it holds nothing of the database's."""
    while not found.items and (left := until - time.monotonic()) > 0:
        time.sleep(min(POLL_SECONDS, left))
        found = _read_feed(tenant_id, after=found.next_cursor, **ask)
    return found


def _read_feed(tenant_id: str, **ask: Any) -> queries.Feed:
    with tenant_transaction(tenant_id) as cursor:
        return queries.feed(cursor, **ask)
