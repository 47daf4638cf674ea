"""The routes of reconciliation, below /v1/reconciliation."""

from __future__ import annotations

from django.urls import path

from reconciliation import views

urlpatterns = [
    path("status", views.Status.as_view({"get": "retrieve"})),
    path("statements", views.Statements.as_view({"post": "create"})),
    path("statements/<id:statement_id>", views.Statements.as_view({"get": "retrieve"})),
    path("breaks", views.Breaks.as_view({"get": "list"})),
    path("breaks/<id:break_id>/resolution", views.Breaks.as_view({"post": "resolution"})),
    path("runs", views.Runs.as_view({"get": "list", "post": "create"})),
]
