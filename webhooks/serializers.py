"""Shapes of requests and answers of webhooks and of the feed. Each is a struct of strict wire types; no rule here."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from hpts.fields import Description, FieldError, Flag, PageSize, PageToken, Timestamp, Uuid, Wire
from ledger.notices import KINDS as NOTICES
from ledger.serializers import Answer, Choice, Hash, Kind, Page, Request
from webhooks import targets
from webhooks.models import DELIVERY_STATES


class EndpointUrl(str, Wire):
    """Where events are sent. Its form is checked here, its addresses when it is registered and at each attempt."""

    schema = {
        "type": "string",
        "format": "uri",
        "maxLength": targets.MAX_URL,
        "description": "An https URL of a public host.",
        "examples": ["https://receiver.example.com/hooks/ledger"],
    }

    @classmethod
    def parse(cls, value: object) -> Any:
        if type(value) is not str:
            raise FieldError("invalid_type", "A string is expected.")
        try:
            return targets.target(value).url
        except targets.TargetRefused as refusal:
            raise FieldError("target_refused", str(refusal)) from None


class WebhookKind(Choice):
    """What an endpoint can be told of: entries by their kind, and notices."""

    choices = (*Kind.choices, *NOTICES)
    component = "WebhookEventType"
    schema = {"type": "string", "enum": list(choices)}


class DeliveryState(Choice):
    choices = DELIVERY_STATES
    schema = {"type": "string", "enum": list(choices)}


class Cursor(int, Wire):
    """A place in the feed: the sequence of the last event that was seen."""

    schema = {
        "type": "string",
        "pattern": "^(0|[1-9][0-9]{0,17})$",
        "description": "The `next_cursor` of the answer before; left out, or 0: from the first event.",
    }

    @classmethod
    def parse(cls, value: object) -> Any:
        if type(value) is not str or re.fullmatch(r"0|[1-9][0-9]{0,17}", value) is None:
            raise FieldError("invalid_format", "The next_cursor of an answer is expected.")
        return int(value)


class Wait(int, Wire):
    """Seconds that a request may wait."""

    schema = {"type": "integer", "minimum": 0, "maximum": 20, "default": 0}

    @classmethod
    def parse(cls, value: object) -> Any:
        if type(value) is not str or re.fullmatch(r"[0-9]|1[0-9]|20", value) is None:
            raise FieldError("out_of_range", "A wait has 0 to 20 seconds.")
        return int(value)


class Secret(str, Wire):
    schema = {
        "type": "string",
        "pattern": "^whsec_[A-Za-z0-9+/]{43}=$",
        "description": "What signs. Shown in this answer alone: a replay leaves it out.",
    }

    @classmethod
    def parse(cls, value: object) -> Any:
        raise FieldError("unknown_field", "A secret is made here, never sent.")


# --- Requests --------------------------------------------------------------------------------------------------------


class NewWebhookEndpoint(Request):
    url: EndpointUrl
    """`event_types`: without any, entries of every kind. Notices (`reconciliationBreakOpened`) go to endpoints that name them."""

    event_types: Annotated[list[WebhookKind], Meta(max_length=len(WebhookKind.choices))] | UnsetType = UNSET
    description: Description | UnsetType = UNSET


class NewSecret(Request):
    revoke_previous: Flag | UnsetType = UNSET


class NewWebhookRecovery(Request):
    since: Timestamp


class Nothing(Request):
    """A body without members; it may be left out."""


class DeliveriesQuery(Page):
    webhook_endpoint_id: Uuid | UnsetType = UNSET
    state: DeliveryState | UnsetType = UNSET
    event_type: WebhookKind | UnsetType = UNSET


class EventsQuery(Request):
    after: Cursor | UnsetType = UNSET
    event_type: Kind | UnsetType = UNSET
    wait: Wait | UnsetType = UNSET
    page_size: PageSize | UnsetType = UNSET


# --- Answers ---------------------------------------------------------------------------------------------------------


class WebhookEndpoint(Answer):
    webhook_endpoint_id: Uuid
    url: EndpointUrl
    event_types: list[WebhookKind]
    state: Literal["enabled", "disabled"]
    created_at: Timestamp
    description: Description | UnsetType = UNSET
    disabled_reason: Literal["deleted", "failing", "gone"] | UnsetType = UNSET
    failing_since: Timestamp | UnsetType = UNSET


class WebhookEndpointCreated(WebhookEndpoint):
    secret: Secret | UnsetType = UNSET


class WebhookEndpointPage(Answer):
    items: list[WebhookEndpoint]
    next_page_token: PageToken | UnsetType = UNSET


class SecretRotated(Answer):
    """`previous_valid_until`: until then each attempt bears two signatures."""

    previous_valid_until: Timestamp
    secret: Secret | UnsetType = UNSET


class WebhookRecovery(Answer):
    webhook_endpoint_id: Uuid
    since: Timestamp
    delivery_count: int


class WebhookDelivery(Answer):
    """Without a `journal_entry_id` or a `break_id` it is a test."""

    delivery_id: Uuid
    webhook_endpoint_id: Uuid
    event_type: WebhookKind
    state: DeliveryState
    attempt: int
    created_at: Timestamp
    journal_entry_id: Uuid | UnsetType = UNSET
    break_id: Uuid | UnsetType = UNSET
    next_attempt_at: Timestamp | UnsetType = UNSET
    last_attempt_at: Timestamp | UnsetType = UNSET
    last_status: int | UnsetType = UNSET
    last_error: str | UnsetType = UNSET
    finished_at: Timestamp | UnsetType = UNSET


class WebhookDeliveryPage(Answer):
    items: list[WebhookDelivery]
    next_page_token: PageToken | UnsetType = UNSET


class FeedEvent(Answer):
    """`hash`: SHA-256 of `previous_hash` (of the first event 64 zeros) and, behind it, the RFC 8785 JSON of the item without
    the two hashes."""

    sequence: int
    journal_entry_id: Uuid
    tenant_id: Uuid
    event_type: Kind
    occurred_at: Timestamp
    previous_hash: Hash
    hash: Hash
    correlation_id: Uuid | UnsetType = UNSET


class FeedPage(Answer):
    items: list[FeedEvent]
    next_cursor: Cursor
