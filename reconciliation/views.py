"""The API of reconciliation: scopes, shapes, answers. What is done is importing.py, resolution.py and runs.py; no rule here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from io import BytesIO
from typing import ClassVar

from django.http import HttpResponse
from rest_framework.request import Request

from hpts.fields import given
from hpts.openapi import FORM_TYPE, operation
from hpts.problems import NotFound
from hpts.rendering import answer
from hpts.tenancy import SNAPSHOT
from ledger.errors import (
    AccountClosed,
    AccountNotFound,
    AmountOutOfRange,
    CurrencyMismatch,
    EntryNotFound,
    PeriodClosed,
)
from ledger.idempotency import read_key
from ledger.operations import Write
from ledger.posting import Touches
from ledger.queries import today
from ledger.serializers import AsOfQuery, Page
from ledger.views import LedgerViewSet, answered, posts
from reconciliation import queries, runs, tasks
from reconciliation import serializers as shapes
from reconciliation.errors import AlreadyResolved, ResolutionRefused
from reconciliation.importing import import_once, read_file
from reconciliation.resolution import resolve
from reconciliation.status import status

ADMIN, READ = "hpts:admin:reconciliation", "hpts:reconciliation:read"
FILE_TYPES = frozenset(
    {
        FORM_TYPE,
        "application/octet-stream",
        "application/x-www-form-urlencoded",  # What curl says of --data-binary unless told.
        "application/xml",
        "text/csv",
        "text/plain",
        "text/xml",
    }
)


def _any_date(body: shapes.NewResolution, path: Mapping[str, str]) -> Touches:
    """The break says which date an adjustment has, and is read under its lock."""
    return Touches(since=date.min)


resolve_break: Write[shapes.NewResolution] = Write(
    "resolveBreak", ADMIN, shapes.NewResolution, _any_date, resolve, audited=("break", "break_id")
)


class Statements(LedgerViewSet):
    scopes: ClassVar = {"create": ADMIN, "retrieve": READ}
    large_bodies = frozenset({"create"})
    file_bodies: ClassVar = {"create": FILE_TYPES}

    @operation(
        "importStatement",
        "reconciliation",
        query=shapes.ImportQuery,
        answer=shapes.BankStatement,
        returns="Statement imported and reconciled",
        refuses=(AccountNotFound, CurrencyMismatch),
    )
    def create(self, request: Request) -> HttpResponse:
        """Import a bank statement.

        The file is taken whole, and reconciled, or refused whole: `errors` names the line (`file.12`) and the reason. The same
        file again answers 200 and what it answered first. `account_code`, by default 1000, is heeded by the first statement
        of a bank account.
        """
        content = self.file(request)
        key = read_key(request.META.get("HTTP_IDEMPOTENCY_KEY"))
        query = self.query(request, shapes.ImportQuery)
        file = read_file(
            BytesIO(content),
            bank_account_ref=query.bank_account_ref,
            format=query.format,
            account_code=given(query.account_code),
        )
        done, is_new = import_once(self.origin(request), key, file)
        return answered(done, 201 if is_new else 200)

    @operation(
        "getBankStatement",
        "reconciliation",
        query=Page,
        answer=shapes.BankStatementPage,
        returns="Page of the statement",
    )
    def retrieve(self, request: Request, statement_id: str) -> HttpResponse:
        """A bank statement, with its lines in pages and what each is matched with."""
        query = self.query(request, Page)
        paging = self.paging(request, query, statement_id, order=(int,))
        with self.read(request) as cursor:
            found = queries.statement(cursor, statement_id=statement_id)
            if found is None:
                raise NotFound(f"There is no statement {statement_id}.")
            lines = queries.statement_lines(
                cursor, statement_id=statement_id, after=paging.after or 0, limit=paging.limit
            )
        return answer(found | paging.page(lines, "line_number", items="lines"))


class Breaks(LedgerViewSet):
    scopes: ClassVar = {"list": READ, "resolution": ADMIN}

    @operation(
        "listBreaks",
        "reconciliation",
        query=shapes.BreaksQuery,
        answer=shapes.ReconciliationBreakPage,
        returns="Page of breaks",
    )
    def list(self, request: Request) -> HttpResponse:
        """Breaks, the oldest money first."""
        query = self.query(request, shapes.BreaksQuery)
        filters = (given(query.state), given(query.kind), given(query.bank_account_ref))
        paging = self.paging(request, query, *filters, order=(str, str))
        with self.read(request) as cursor:
            found = queries.breaks(
                cursor, state=filters[0], kind=filters[1], ref=filters[2], after=paging.after, limit=paging.limit
            )
        return answer(paging.page(found, "value_date", "break_id"))

    @posts(
        resolve_break,
        "reconciliation",
        answer=shapes.BreakResolved,
        returns="Break resolved",
        refuses=(
            AlreadyResolved,
            ResolutionRefused,
            EntryNotFound,
            AccountNotFound,
            AccountClosed,
            PeriodClosed,
            AmountOutOfRange,
        ),
    )
    def resolution(self, request: Request, break_id: str) -> HttpResponse:
        """Resolve a break.

        `match`: its line belongs to `journal_entry_id`. `adjust`: the difference is posted against `account_code`. `explain`:
        the difference stands, and is no surprise any more. Once and for all, with who and why.
        """
        return self.write(request, resolve_break)


class Runs(LedgerViewSet):
    scopes: ClassVar = {"list": READ, "create": ADMIN}

    @operation(
        "createReconciliationRun",
        "reconciliation",
        request=shapes.NewRun,
        answer=shapes.ReconciliationRun,
        returns="Run queued",
        status=202,
    )
    def create(self, request: Request) -> HttpResponse:
        """Reconcile all bank accounts, as every night.

        Of the statements that end on or before `as_of_date`, by default today in the tenant's time zone. The run is queued; its
        outcome is in the list of runs.
        """
        call, body = self.call(request, shapes.NewRun)

        done = runs.request_once(call, given(body.as_of_date))
        tasks.announce(call.origin.tenant_id)
        return answered(done, 202)

    @operation(
        "listReconciliationRuns",
        "reconciliation",
        query=Page,
        answer=shapes.ReconciliationRunPage,
        returns="Page of runs",
    )
    def list(self, request: Request) -> HttpResponse:
        """Reconciliation runs, the latest first."""
        query = self.query(request, Page)
        paging = self.paging(request, query, order=(str, str))
        with self.read(request) as cursor:
            found = queries.runs(cursor, before=paging.after, limit=paging.limit)
        return answer(paging.page(found, "requested_at", "run_id"))


class Status(LedgerViewSet):
    scopes: ClassVar = {"retrieve": READ}

    @operation(
        "getReconciliationStatus",
        "reconciliation",
        query=AsOfQuery,
        answer=shapes.ReconciliationStatus,
        returns="The status",
    )
    def retrieve(self, request: Request) -> HttpResponse:
        """Reconciliation status.

        The books against themselves, against each bank account's latest statement that ends on or before `as_of_date` (by
        default today in the tenant's time zone), and against the loans.
        """
        query = self.query(request, AsOfQuery)
        with self.read(request, first=SNAPSHOT) as cursor:
            body = status(cursor, given(query.as_of_date) or today(cursor))
        return answer(body)
