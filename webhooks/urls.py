"""The routes of webhooks and of the feed, below /v1."""

from __future__ import annotations

from django.urls import path

from webhooks import views

ENDPOINT = "webhook-endpoints/<id:webhook_endpoint_id>"

urlpatterns = [
    path("webhook-endpoints", views.WebhookEndpoints.as_view({"get": "list", "post": "create"})),
    path(ENDPOINT, views.WebhookEndpoints.as_view({"get": "retrieve", "delete": "destroy"})),
    path(f"{ENDPOINT}/rotate-secret", views.WebhookEndpoints.as_view({"post": "rotate_secret"})),
    path(f"{ENDPOINT}/test", views.WebhookEndpoints.as_view({"post": "test"})),
    path(f"{ENDPOINT}/enable", views.WebhookEndpoints.as_view({"post": "enable"})),
    path(f"{ENDPOINT}/recover", views.WebhookEndpoints.as_view({"post": "recover"})),
    path("webhook-deliveries", views.WebhookDeliveries.as_view({"get": "list"})),
    path("webhook-deliveries/<id:delivery_id>/redeliver", views.WebhookDeliveries.as_view({"post": "redeliver"})),
    path("events", views.Events.as_view({"get": "list"})),
]
