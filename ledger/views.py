"""The API of the books: scope, shape, event or query, answer. No rule lives here."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import msgspec
from django.db.backends.utils import CursorWrapper
from django.http import HttpResponse
from rest_framework.request import Request

from hpts import fields
from hpts.auth import caller
from hpts.fields import given
from hpts.openapi import operation
from hpts.pagination import DEFAULT_PAGE_SIZE, page_token, position_of
from hpts.problems import FieldProblem, InvalidPageToken, NotFound, ValidationFailed
from hpts.rendering import answer
from hpts.tenancy import tenant_transaction
from hpts.views import APIViewSet, correlation_of
from ledger import masters, queries
from ledger import serializers as shapes
from ledger.chart import RECEIVABLES
from ledger.errors import (
    AccountClosed,
    AccountNotFound,
    AccrualAlreadyPosted,
    AccrualModeRefuses,
    AlreadyReversed,
    AlreadySettled,
    AmountExceedsBalance,
    AmountExceedsLimit,
    AmountOutOfRange,
    BorrowerMismatch,
    CurrencyMismatch,
    DuplicateExternalRef,
    EffectiveDateRefused,
    EntryNotFound,
    LoanChanged,
    LoanExists,
    LoanNotFound,
    NotReversible,
    ProgramExists,
    ProgramNotFound,
    UnbalancedEntry,
)
from ledger.events import (
    SETTLED,
    Accrual,
    AccruedLoan,
    Disbursement,
    DisbursementSettled,
    EventKind,
    Line,
    ManualAdjustment,
    PaymentReceived,
    Reversal,
)
from ledger.idempotency import Call, fingerprint, once, read_key
from ledger.posting import Origin, Posting, Touches, day_before
from ledger.rules.waterfall import allocation

S = TypeVar("S", bound=msgspec.Struct)

# What every body that moves money of a loan may be refused for.
LOAN_REFUSALS = (LoanNotFound, BorrowerMismatch, CurrencyMismatch, EffectiveDateRefused, AmountOutOfRange)


class LedgerViewSet(APIViewSet):
    """What the ledger's views share: the call of a write, the transaction of a read, pages."""

    def write(
        self,
        request: Request,
        shape: type[S],
        touches: Callable[[S], Touches],
        work: Callable[[Posting, S], Mapping[str, Any]],
        about_loan: Callable[[S], str] | None = None,
    ) -> HttpResponse:
        """Read the body, run `work` once for its key, and answer 201, or 200 with the first answer on a replay."""
        raw = self.document(request)
        self.query(request, shapes.NoQuery)
        key = read_key(request.META.get("HTTP_IDEMPOTENCY_KEY"))
        body = fields.parse(raw, shape)
        call = Call(self.origin(request), key, fingerprint(self.operation_id, self.kwargs, raw))
        expected = request.META.get("HTTP_IF_MATCH")

        def guarded(posting: Posting) -> Mapping[str, Any]:
            _check_version(posting, expected)
            return work(posting, body)

        done = once(call, touches(body), guarded)
        response = answer(done.body, 200 if done.replayed else 201)
        if done.replayed:
            response["Idempotency-Replayed"] = "true"
        if done.posting is not None and len(done.posting.state.loans) == 1:
            (loan,) = done.posting.state.loans.values()
            response["ETag"] = etag(loan.version)
        elif done.replayed and about_loan is not None:
            response["ETag"] = etag(self.version(request, about_loan(body)))
        return response

    def version(self, request: Request, loan_id: str) -> int:
        """The version that a loan has now."""
        with self.read(request) as cursor:
            return queries.loan_version(cursor, loan_id=loan_id) or 0

    def origin(self, request: Request) -> Origin:
        principal = caller(request)
        return Origin(principal.tenant_id, principal.actor, correlation_of(request))

    @contextmanager
    def read(self, request: Request) -> Iterator[CursorWrapper]:
        with tenant_transaction(caller(request).tenant_id) as cursor:
            yield cursor

    def page_scope(self, request: Request, *filters: object) -> list[str | None]:
        """What a page token is bound to: tenant, list, filters."""
        return [caller(request).tenant_id, type(self).__name__, *(None if f is None else str(f) for f in filters)]


def etag(version: int) -> str:
    return f'"{version}"'


def _check_version(posting: Posting, expected: str | None) -> None:
    """If-Match on a write about one loan: refuse when the loan is not at one of the versions that the client names."""
    if expected is None or expected.strip() == "*" or len(posting.state.loans) != 1:
        return
    (loan,) = posting.state.loans.values()
    if etag(loan.version) not in [named.strip() for named in expected.split(",")]:
        raise LoanChanged(f"The loan is at version {loan.version}; If-Match asks for {expected[:100]}.")


def _facts(**facts: object) -> dict[str, object] | None:
    kept = {name: value for name, value in facts.items() if value is not None}
    return kept or None


def _of_body(body: Any) -> str:
    return body.loan_id  # type: ignore[no-any-return]


class Payments(LedgerViewSet):
    scopes: ClassVar = {"create": "hpts:payments:write"}

    @operation(
        "createPayment",
        "payments",
        request=shapes.NewPayment,
        answer=shapes.PaymentPosted,
        returns="Payment posted",
        etag=True,
        refuses=(*LOAN_REFUSALS, LoanChanged, DuplicateExternalRef),
    )
    def create(self, request: Request) -> HttpResponse:
        """Receive a payment.

        It is allocated by the program's waterfall; a PENDING one waits in suspense until it settles.
        """

        def work(posting: Posting, body: shapes.NewPayment) -> dict[str, Any]:
            entry = posting.post(
                PaymentReceived(
                    loan_id=body.loan_id,
                    borrower_id=body.borrower_id,
                    amount_minor=body.amount_minor,
                    currency=body.currency,
                    effective_at=body.effective_at,
                    source_method=body.source_method,
                    external_ref=given(body.external_ref),
                    layer=given(body.layer) or SETTLED,
                    facts=_facts(source_method=body.source_method, metadata=given(body.metadata)),
                )
            )
            shares = allocation(posting.state, entry.lines)
            return {
                "payment_event_id": entry.journal_entry_id,
                "journal_entry_id": entry.journal_entry_id,
                "allocation": {f"{role}_minor": str(minor) for role, minor in shares.items()},
                "posted_at": entry.posted_at,
            }

        return self.write(
            request,
            shapes.NewPayment,
            lambda body: Touches(loans=[body.loan_id], since=body.effective_at),
            work,
            _of_body,
        )


class Disbursements(LedgerViewSet):
    scopes: ClassVar = {"create": "hpts:disbursements:write", "settlement": "hpts:disbursements:write"}

    @operation(
        "createDisbursement",
        "disbursements",
        request=shapes.NewDisbursement,
        answer=shapes.DisbursementPosted,
        returns="Disbursement posted",
        etag=True,
        refuses=(*LOAN_REFUSALS, LoanChanged, AmountExceedsLimit),
    )
    def create(self, request: Request) -> HttpResponse:
        """Disburse a loan.

        Debits principal receivable, credits disbursement clearing.
        """

        def work(posting: Posting, body: shapes.NewDisbursement) -> dict[str, Any]:
            entry = posting.post(
                Disbursement(
                    loan_id=body.loan_id,
                    borrower_id=body.borrower_id,
                    amount_minor=body.amount_minor,
                    currency=body.currency,
                    effective_at=body.effective_at,
                    layer=given(body.layer) or SETTLED,
                    facts=_facts(
                        method=body.method,
                        destination_ref=given(body.destination_ref),
                        metadata=given(body.metadata),
                    ),
                )
            )
            return {
                "disbursement_event_id": entry.journal_entry_id,
                "journal_entry_id": entry.journal_entry_id,
                "posted_at": entry.posted_at,
            }

        return self.write(
            request,
            shapes.NewDisbursement,
            lambda body: Touches(loans=[body.loan_id], since=body.effective_at),
            work,
            _of_body,
        )

    @operation(
        "settleDisbursement",
        "disbursements",
        request=shapes.Settlement,
        answer=shapes.DisbursementPosted,
        returns="Settlement posted",
        refuses=(AlreadySettled, AlreadyReversed, EffectiveDateRefused, LoanChanged),
    )
    def settlement(self, request: Request, disbursement_event_id: str) -> HttpResponse:
        """Settle a disbursement.

        The money has left the bank: debits disbursement clearing, credits cash.
        """

        def work(posting: Posting, body: shapes.Settlement) -> dict[str, Any]:
            original = posting.state.entry
            if original is None or original.event_type != EventKind.DISBURSEMENT:
                raise NotFound(f"There is no disbursement {disbursement_event_id}.")
            entry = posting.post(
                DisbursementSettled(effective_at=body.effective_at, disbursement_event_id=disbursement_event_id)
            )
            return {
                "disbursement_event_id": disbursement_event_id,
                "journal_entry_id": entry.journal_entry_id,
                "posted_at": entry.posted_at,
            }

        return self.write(
            request,
            shapes.Settlement,
            lambda body: Touches(entry=disbursement_event_id, since=body.effective_at),
            work,
        )


class Accruals(LedgerViewSet):
    scopes: ClassVar = {"batch": "hpts:accruals:write"}
    large_bodies = frozenset({"batch"})

    @operation(
        "createAccrualBatch",
        "accruals",
        request=shapes.AccrualBatch,
        answer=shapes.AccrualPosted,
        returns="Accruals posted",
        refuses=(ProgramNotFound, AccrualModeRefuses, AccrualAlreadyPosted, EffectiveDateRefused, AmountOutOfRange),
    )
    def batch(self, request: Request) -> HttpResponse:
        """Accrue a day of interest on many loans of a program.

        One entry for all of them, or nothing: every item that disagrees with the books is named in `errors`.
        """

        def work(posting: Posting, body: shapes.AccrualBatch) -> dict[str, Any]:
            if queries.program(posting.cursor, program_id=body.program_id, on=body.accrual_date) is None:
                raise ProgramNotFound(f"There is no program {body.program_id}.")
            items = tuple(
                AccruedLoan(
                    loan_id=item.loan_id,
                    outstanding_principal_minor=item.outstanding_principal_minor,
                    interest_minor=item.interest_minor,
                )
                for item in body.loans
            )
            entry = posting.post(
                Accrual(
                    effective_at=body.accrual_date,
                    program_id=body.program_id,
                    day_count_convention=body.day_count_convention,
                    loans=items,
                )
            )
            return {
                "accrual_event_id": entry.journal_entry_id,
                "journal_entry_id": entry.journal_entry_id,
                "loan_count": len(items),
                "total_accrued_minor": str(sum(item.interest_minor for item in items)),
                "posted_at": entry.posted_at,
            }

        return self.write(
            request,
            shapes.AccrualBatch,
            lambda body: Touches(
                loans=[item.loan_id for item in body.loans],
                since=day_before(body.accrual_date),
                accrual=body.accrual_date,
            ),
            work,
        )


class Reversals(LedgerViewSet):
    scopes: ClassVar = {"create": "hpts:reversals:write"}

    @operation(
        "createReversal",
        "reversals",
        request=shapes.NewReversal,
        answer=shapes.ReversalPosted,
        returns="Reversal posted",
        refuses=(
            EntryNotFound,
            AlreadyReversed,
            NotReversible,
            EffectiveDateRefused,
            AmountExceedsBalance,
            AmountOutOfRange,
            AccountClosed,
        ),
    )
    def create(self, request: Request) -> HttpResponse:
        """Reverse a journal entry.

        Posts the mirror of every line, once.
        """

        def work(posting: Posting, body: shapes.NewReversal) -> dict[str, Any]:
            if posting.state.entry is None:
                raise EntryNotFound(f"There is no journal entry {body.reverses_entry_id}.")
            entry = posting.post(
                Reversal(
                    effective_at=given(body.effective_at) or posting.today,
                    reverses_entry_id=body.reverses_entry_id,
                    reason_code=body.reason_code,
                    description=given(body.reason_description),
                    facts=_facts(reason_code=body.reason_code, metadata=given(body.metadata)),
                )
            )
            return {
                "journal_entry_id": entry.journal_entry_id,
                "reverses_entry_id": body.reverses_entry_id,
                "posted_at": entry.posted_at,
                "correlation_id": entry.correlation_id,
            }

        return self.write(
            request,
            shapes.NewReversal,
            lambda body: Touches(entry=body.reverses_entry_id, since=given(body.effective_at)),
            work,
        )


class JournalEntries(LedgerViewSet):
    scopes: ClassVar = {"create": "hpts:admin:adjustments", "retrieve": "hpts:ledger:read"}

    @operation(
        "createJournalEntry",
        "journal",
        request=shapes.NewJournalEntry,
        answer=shapes.EntryPosted,
        returns="Entry posted",
        refuses=(*LOAN_REFUSALS, AccountNotFound, AccountClosed, UnbalancedEntry, AmountExceedsBalance),
    )
    def create(self, request: Request) -> HttpResponse:
        """Post an accountant's own lines."""

        def work(posting: Posting, body: shapes.NewJournalEntry) -> dict[str, Any]:
            entry = posting.post(
                ManualAdjustment(
                    effective_at=body.effective_at,
                    description=body.description,
                    lines=tuple(_manual_line(line) for line in body.lines),
                    facts=_facts(metadata=given(body.metadata)),
                )
            )
            return {
                "journal_entry_id": entry.journal_entry_id,
                "posted_at": entry.posted_at,
                "correlation_id": entry.correlation_id,
            }

        return self.write(
            request,
            shapes.NewJournalEntry,
            lambda body: Touches(
                loans=sorted({line.loan_id for line in body.lines if line.loan_id}), since=body.effective_at
            ),
            work,
        )

    @operation("getJournalEntry", "journal", answer="JournalEntry", returns="The entry")
    def retrieve(self, request: Request, journal_entry_id: str) -> HttpResponse:
        """One journal entry."""
        self.query(request, shapes.NoQuery)
        with self.read(request) as cursor:
            body = queries.entry(cursor, entry_id=journal_entry_id)
        if body is None:
            raise NotFound(f"There is no journal entry {journal_entry_id}.")
        return answer(body)


def _manual_line(line: shapes.ManualLine) -> Line:
    return Line(
        line.account_code,
        line.direction,
        line.amount_minor,
        line.currency,
        given(line.layer) or SETTLED,
        given(line.loan_id),
        given(line.borrower_id),
        given(line.external_ref),
    )


class Programs(LedgerViewSet):
    scopes: ClassVar = {"create": "hpts:admin:loans", "list": "hpts:loans:read", "retrieve": "hpts:loans:read"}

    @operation(
        "createProgram",
        "programs",
        request=shapes.NewProgram,
        answer=shapes.Program,
        returns="Program created",
        refuses=(ProgramExists,),
    )
    def create(self, request: Request) -> HttpResponse:
        """Create a program."""

        def work(posting: Posting, body: shapes.NewProgram) -> dict[str, Any]:
            return masters.create_program(
                posting.cursor,
                on=posting.today,
                program_id=given(body.program_id) or str(uuid.uuid4()),
                name=body.name,
                currency=body.currency,
                annual_rate_bps=body.annual_rate_bps,
                day_count_convention=body.day_count_convention,
                waterfall=tuple(given(body.waterfall) or RECEIVABLES),
                accrual_mode=given(body.accrual_mode) or "client",
            )

        return self.write(request, shapes.NewProgram, lambda body: Touches(), work)

    @operation("listPrograms", "programs", query=shapes.Page, answer=shapes.ProgramPage, returns="Page of programs")
    def list(self, request: Request) -> HttpResponse:
        """The tenant's programs."""
        query = self.query(request, shapes.Page)
        size = given(query.page_size) or DEFAULT_PAGE_SIZE
        scope = self.page_scope(request)
        after = _after(given(query.page_token), scope)
        with self.read(request) as cursor:
            found = queries.programs(cursor, on=queries.today(cursor), after=after, limit=size + 1)
        return answer(_page(found, size, scope, "program_id"))

    @operation("getProgram", "programs", answer=shapes.Program, returns="The program")
    def retrieve(self, request: Request, program_id: str) -> HttpResponse:
        """One program, with the terms in force today."""
        self.query(request, shapes.NoQuery)
        with self.read(request) as cursor:
            found = queries.program(cursor, program_id=program_id, on=queries.today(cursor))
        if found is None:
            raise NotFound(f"There is no program {program_id}.")
        return answer(found)


class Loans(LedgerViewSet):
    scopes: ClassVar = {
        "create": "hpts:admin:loans",
        "list": "hpts:loans:read",
        "retrieve": "hpts:loans:read",
        "journal_entries": "hpts:ledger:read",
        "balance": "hpts:balances:read",
    }

    @operation(
        "createLoan",
        "loans",
        request=shapes.NewLoan,
        answer=shapes.Loan,
        returns="Loan created",
        etag=True,
        refuses=(ProgramNotFound, LoanExists),
    )
    def create(self, request: Request) -> HttpResponse:
        """Create a loan."""

        def work(posting: Posting, body: shapes.NewLoan) -> dict[str, Any]:
            return masters.create_loan(
                posting.cursor,
                on=posting.today,
                loan_id=given(body.loan_id) or str(uuid.uuid4()),
                borrower_id=body.borrower_id,
                program_id=body.program_id,
                opened_on=body.opened_on,
                principal_limit_minor=given(body.principal_limit_minor),
                annual_rate_bps=given(body.annual_rate_bps),
            )

        response = self.write(request, shapes.NewLoan, lambda body: Touches(), work)
        replayed = "Idempotency-Replayed" in response
        # A new loan's id may be the server's, so it is read off the answer.
        loan_id = msgspec.json.decode(response.content)["loan_id"]
        response["ETag"] = etag(self.version(request, loan_id) if replayed else 0)
        return response

    @operation("listLoans", "loans", query=shapes.LoansQuery, answer=shapes.LoanPage, returns="Page of loans")
    def list(self, request: Request) -> HttpResponse:
        """The tenant's loans, by program, borrower and state."""
        query = self.query(request, shapes.LoansQuery)
        filters = (given(query.program_id), given(query.borrower_id), given(query.state))
        size = given(query.page_size) or DEFAULT_PAGE_SIZE
        scope = self.page_scope(request, *filters)
        after = _after(given(query.page_token), scope)
        with self.read(request) as cursor:
            found = queries.loans(
                cursor,
                on=queries.today(cursor),
                program_id=filters[0],
                borrower_id=filters[1],
                state=filters[2],
                after=after,
                limit=size + 1,
            )
        return answer(_page(found, size, scope, "loan_id"))

    @operation("getLoan", "loans", answer=shapes.Loan, returns="The loan", etag=True)
    def retrieve(self, request: Request, loan_id: str) -> HttpResponse:
        """One loan."""
        self.query(request, shapes.NoQuery)
        with self.read(request) as cursor:
            found = queries.loan(cursor, loan_id=loan_id, on=queries.today(cursor))
        if found is None:
            raise NotFound(f"There is no loan {loan_id}.")
        response = answer(found[0])
        response["ETag"] = etag(found[1])
        return response

    @operation(
        "listLoanJournalEntries",
        "journal",
        query=shapes.HistoryQuery,
        answer="JournalEntryPage",
        returns="Page of journal entries",
        etag=True,
    )
    def journal_entries(self, request: Request, loan_id: str) -> HttpResponse:
        """Paginated journal history for a loan."""
        query = self.query(request, shapes.HistoryQuery)
        from_date, to_date, kind = given(query.from_date), given(query.to_date), given(query.event_type)
        if from_date is not None and to_date is not None and from_date > to_date:
            raise ValidationFailed(
                "One or more fields are not valid.",
                [FieldProblem("from_date", "out_of_range", "from_date is after to_date.")],
            )
        size = given(query.page_size) or DEFAULT_PAGE_SIZE
        scope = self.page_scope(request, loan_id, from_date, to_date, kind)
        after = _after(given(query.page_token), scope, int)
        with self.read(request) as cursor:
            version = queries.loan_version(cursor, loan_id=loan_id)
            if version is None:
                raise NotFound(f"There is no loan {loan_id}.")
            found = queries.history(
                cursor,
                loan_id=loan_id,
                from_date=from_date,
                to_date=to_date,
                kind=kind,
                after=after or 0,
                limit=size + 1,
            )
        more = len(found) > size
        page = found[:size]
        tail = f',"next_page_token":"{page_token(scope, [page[-1].version])}"' if more else ""
        response = answer(f'{{"items":[{",".join(item.body for item in page)}]{tail}}}')
        response["ETag"] = etag(version)
        return response

    @operation(
        "getLoanBalance",
        "balances",
        query=shapes.AsOfQuery,
        answer=shapes.LoanBalance,
        returns="The balance",
        etag=True,
    )
    def balance(self, request: Request, loan_id: str) -> HttpResponse:
        """What a loan owes.

        Settled entries effective on or before `as_of_date`, by default today in the tenant's time zone.
        """
        query = self.query(request, shapes.AsOfQuery)
        with self.read(request) as cursor:
            as_of = given(query.as_of_date) or queries.today(cursor)
            found = queries.loan_balances(cursor, loan_id=loan_id, as_of=as_of)
        if found is None:
            raise NotFound(f"There is no loan {loan_id}.")
        owed = {role: found.by_role.get(role, 0) for role in RECEIVABLES}
        body = {
            "loan_id": loan_id,
            "currency": found.currency,
            "as_of_date": as_of.isoformat(),
            "principal_outstanding_minor": str(owed["principal"]),
            "interest_receivable_minor": str(owed["interest"]),
            "fees_receivable_minor": str(owed["fees"]),
            "total_exposure_minor": str(sum(owed.values())),
        }
        if found.last_activity_at is not None:
            body["last_activity_at"] = queries.timestamp(found.last_activity_at)
        response = answer(body)
        response["ETag"] = etag(found.version)
        return response


class Accounts(LedgerViewSet):
    scopes: ClassVar = {
        "list": "hpts:balances:read",
        "balance": "hpts:balances:read",
        "trial_balance": "hpts:balances:read",
    }

    @operation("listAccounts", "accounts", answer=shapes.Accounts, returns="Every account")
    def list(self, request: Request) -> HttpResponse:
        """The chart of accounts."""
        self.query(request, shapes.NoQuery)
        with self.read(request) as cursor:
            found = queries.accounts(cursor)
        items = [
            {
                "account_code": account.code,
                "account_name": account.name,
                "account_type": account.account_type,
                "normal_side": account.normal_side,
                "per_loan": account.per_loan,
                "closed": closed,
            }
            for account, closed in found
        ]
        return answer({"items": items})

    @operation(
        "getAccountBalance", "balances", query=shapes.AccountQuery, answer=shapes.AccountBalance, returns="The balance"
    )
    def balance(self, request: Request, account_code: str) -> HttpResponse:
        """Balance of an account.

        Gross debits, gross credits, and their difference on the account's normal side, which may be negative.
        """
        query = self.query(request, shapes.AccountQuery)
        layer = given(query.layer) or SETTLED
        with self.read(request) as cursor:
            as_of = given(query.as_of_date) or queries.today(cursor)
            found = queries.trial_balance(cursor, currency=query.currency, layer=layer, as_of=as_of, code=account_code)
        if not found:
            raise NotFound(f"There is no account {account_code}.")
        return answer(
            {"currency": query.currency, "layer": layer, "as_of_date": as_of.isoformat(), **_balance_row(found[0])}
        )

    @operation(
        "getTrialBalance",
        "balances",
        query=shapes.AccountQuery,
        answer=shapes.TrialBalance,
        returns="The trial balance",
    )
    def trial_balance(self, request: Request) -> HttpResponse:
        """Trial balance.

        Every account of the chart; total debits equal total credits.
        """
        query = self.query(request, shapes.AccountQuery)
        layer = given(query.layer) or SETTLED
        with self.read(request) as cursor:
            as_of = given(query.as_of_date) or queries.today(cursor)
            found = queries.trial_balance(cursor, currency=query.currency, layer=layer, as_of=as_of)
        return answer(
            {
                "as_of_date": as_of.isoformat(),
                "currency": query.currency,
                "layer": layer,
                "accounts": [_balance_row(row) for row in found],
                "total_dr_minor": str(sum(row.dr_minor for row in found)),
                "total_cr_minor": str(sum(row.cr_minor for row in found)),
            }
        )


def _balance_row(row: queries.AccountBalance) -> dict[str, str]:
    return {
        "account_code": row.account.code,
        "account_name": row.account.name,
        "dr_balance_minor": str(row.dr_minor),
        "cr_balance_minor": str(row.cr_minor),
        "normal_balance_minor": str(row.normal_minor),
    }


def _after(token: str | None, scope: list[str | None], kind: type[Any] = str) -> Any:
    """The position after which a page begins, None for the first."""
    if token is None:
        return None
    (position,) = position_of(token, scope)
    if not isinstance(position, kind):
        raise InvalidPageToken("This list has not given out this page token.")
    return position


def _page(found: list[dict[str, Any]], size: int, scope: list[str | None], name: str) -> dict[str, Any]:
    """Items and, when the query found one more than a page holds, the next page's token."""
    page: dict[str, Any] = {"items": found[:size]}
    if len(found) > size:
        page["next_page_token"] = page_token(scope, [found[size - 1][name]])
    return page
