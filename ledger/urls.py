"""The routes of the books, below /v1."""

from __future__ import annotations

from django.urls import path

from ledger import views

urlpatterns = [
    path("payments", views.Payments.as_view({"post": "create"})),
    path("disbursements", views.Disbursements.as_view({"post": "create"})),
    path("disbursements/<id:disbursement_event_id>/settlement", views.Disbursements.as_view({"post": "settlement"})),
    path("accruals/batch", views.Accruals.as_view({"post": "batch"})),
    path("reversals", views.Reversals.as_view({"post": "create"})),
    path("journal-entries", views.JournalEntries.as_view({"post": "create"})),
    path("journal-entries/<id:journal_entry_id>", views.JournalEntries.as_view({"get": "retrieve"})),
    path("programs", views.Programs.as_view({"get": "list", "post": "create"})),
    path("programs/<id:program_id>", views.Programs.as_view({"get": "retrieve"})),
    path("loans", views.Loans.as_view({"get": "list", "post": "create"})),
    path("loans/<id:loan_id>", views.Loans.as_view({"get": "retrieve"})),
    path("loans/<id:loan_id>/journal-entries", views.Loans.as_view({"get": "journal_entries"})),
    path("loans/<id:loan_id>/balance", views.Loans.as_view({"get": "balance"})),
    path("accounts", views.Accounts.as_view({"get": "list"})),
    path("accounts/<account_code:account_code>/balance", views.Accounts.as_view({"get": "balance"})),
    path("trial-balance", views.Accounts.as_view({"get": "trial_balance"})),
]
