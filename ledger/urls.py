"""The routes of the books, below /v1."""

from __future__ import annotations

from django.urls import path

from ledger import views

urlpatterns = [
    path("payments", views.Payments.as_view({"post": "create"})),
    path("payments/<id:payment_event_id>/settlement", views.Payments.as_view({"post": "settlement"})),
    path("payments/<id:payment_event_id>/return", views.Payments.as_view({"post": "give_back"})),
    path("disbursements", views.Disbursements.as_view({"post": "create"})),
    path("disbursements/<id:disbursement_event_id>/settlement", views.Disbursements.as_view({"post": "settlement"})),
    path("accruals/batch", views.Accruals.as_view({"post": "batch"})),
    path("reversals", views.Reversals.as_view({"post": "create"})),
    path("journal-entries", views.JournalEntries.as_view({"post": "create"})),
    path("journal-entries/<id:journal_entry_id>", views.JournalEntries.as_view({"get": "retrieve"})),
    path("journal-entries/<id:journal_entry_id>/proof", views.JournalEntries.as_view({"get": "proof"})),
    path("seals", views.Seals.as_view({"get": "list"})),
    path("seal-keys", views.Seals.as_view({"get": "keys"})),
    path("programs", views.Programs.as_view({"get": "list", "post": "create"})),
    path("programs/<id:program_id>", views.Programs.as_view({"get": "retrieve"})),
    path("programs/<id:program_id>/terms", views.Programs.as_view({"post": "terms"})),
    path("programs/<id:program_id>/accrual-runs", views.AccrualRuns.as_view({"post": "create"})),
    path("accrual-runs", views.AccrualRuns.as_view({"get": "list"})),
    path("accrual-runs/<id:accrual_run_id>", views.AccrualRuns.as_view({"get": "retrieve"})),
    path("loans", views.Loans.as_view({"get": "list", "post": "create"})),
    path("loans/<id:loan_id>", views.Loans.as_view({"get": "retrieve"})),
    path("loans/<id:loan_id>/journal-entries", views.Loans.as_view({"get": "journal_entries"})),
    path("loans/<id:loan_id>/balance", views.Loans.as_view({"get": "balance"})),
    path("loans/<id:loan_id>/payoff", views.Loans.as_view({"get": "payoff"})),
    path("loans/<id:loan_id>/allocation-preview", views.Loans.as_view({"get": "allocation_preview"})),
    path("loans/<id:loan_id>/statement", views.Loans.as_view({"get": "statement"})),
    path("loans/<id:loan_id>/balance-changes", views.Loans.as_view({"get": "balance_changes"})),
    path("loans/<id:loan_id>/fees", views.Servicing.as_view({"post": "fee"})),
    path("loans/<id:loan_id>/fee-waivers", views.Servicing.as_view({"post": "fee_waiver"})),
    path("loans/<id:loan_id>/chargeoff", views.Servicing.as_view({"post": "chargeoff"})),
    path("loans/<id:loan_id>/recoveries", views.Servicing.as_view({"post": "recovery"})),
    path("loans/<id:loan_id>/refinance", views.Servicing.as_view({"post": "refinance"})),
    path("loans/<id:loan_id>/restructure", views.Servicing.as_view({"post": "restructure"})),
    path("loans/<id:loan_id>/accrual-pauses", views.Servicing.as_view({"post": "accrual_pause"})),
    path("loans/<id:loan_id>/suspense-allocations", views.Servicing.as_view({"post": "suspense_allocation"})),
    path("loans/<id:loan_id>/replans", views.Servicing.as_view({"post": "replan"})),
    path("batches", views.Batches.as_view({"post": "create"})),
    path("accounts", views.Accounts.as_view({"get": "list", "post": "create"})),
    path("accounts/<account_code:account_code>/closure", views.Accounts.as_view({"post": "closure"})),
    path("accounts/<account_code:account_code>/balance", views.Accounts.as_view({"get": "balance"})),
    path("periods", views.Periods.as_view({"get": "list"})),
    path("periods/close", views.Periods.as_view({"post": "close"})),
    path("trial-balance", views.Accounts.as_view({"get": "trial_balance"})),
]
