"""The API of the books: scopes, shapes, answers. Writes are ledger/operations.py, reads ledger/queries.py; no rule lives here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any, ClassVar, TypeVar

import msgspec
from django.db.backends.utils import CursorWrapper
from django.http import HttpResponse
from django.urls import Resolver404, resolve
from rest_framework.request import Request

from hpts import fields
from hpts.auth import OF_ITS_ITEMS, caller
from hpts.fields import given
from hpts.oauth import covers
from hpts.openapi import Shape, View, operation
from hpts.pagination import Paging
from hpts.pipeline import Statement
from hpts.problems import FieldProblem, NotFound, Problem, ValidationFailed
from hpts.rendering import answer
from hpts.tenancy import SNAPSHOT, tenant_transaction
from hpts.views import APIViewSet, correlation_of
from ledger import batch, queries, seals
from ledger import operations as ops
from ledger import serializers as shapes
from ledger.chart import RECEIVABLES
from ledger.errors import (
    AccountClosed,
    AccountNotFound,
    AccrualAlreadyPosted,
    AccrualModeRefuses,
    AlreadyReturned,
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
    LoanStateRefuses,
    NotReversible,
    NotSealedYet,
    PeriodClosed,
    PlanOutdated,
    ProgramExists,
    ProgramNotFound,
    UnbalancedEntry,
)
from ledger.events import SETTLED
from ledger.idempotency import Answer, Call, fingerprint, once, read_key
from ledger.operations import Write, in_order
from ledger.posting import Origin, Posting, Touches, opened
from ledger.seal_keys import seal_keys

S = TypeVar("S", bound=msgspec.Struct)

SHOWN_EXCEPTIONS = 1_000

# What every posting may be refused for, and every body that moves money of a loan.
DATED = (EffectiveDateRefused, PeriodClosed, AmountOutOfRange)
OF_A_LOAN = (*DATED, LoanChanged, CurrencyMismatch)
# What some write of a batch may be refused for.
REFUSALS = tuple(
    kind for kind in Problem.__subclasses__() if kind.__module__ == "ledger.errors" and kind is not NotSealedYet
)


class LedgerViewSet(APIViewSet):
    """What the ledger's views share: the call of a write, the transaction of a read, pages."""

    def write(self, request: Request, write: Write[Any]) -> HttpResponse:
        """Read the body, run the operation once for its key, and answer, with 200 and the first answer on a replay."""
        call, body = self.call(request, write.shape)
        expected = request.META.get("HTTP_IF_MATCH")

        def guarded(posting: Posting) -> ops.Members:
            _check_version(posting, expected)
            return write.run(posting, body, self.kwargs)

        touches = write.touches(body, self.kwargs)
        done = once(call, touches, guarded)
        response = answered(done, write.status)
        version = self._version_after(request, done.posting, write.loan(body, self.kwargs), touches)
        if version is not None:
            response["ETag"] = etag(version)
        return response

    def call(self, request: Request, shape: type[S]) -> tuple[Call, S]:
        """A POST as it was sent: JSON, then key, then shape; the order in which they are refused."""
        raw = self.document(request)
        self.query(request, shapes.NoQuery)
        key = read_key(request.META.get("HTTP_IDEMPOTENCY_KEY"))
        body = fields.parse(raw, shape)
        return Call(self.origin(request), key, fingerprint(self.operation_id, self.kwargs, raw)), body

    def _version_after(
        self, request: Request, posting: Posting | None, loan_id: str | None, touches: Touches
    ) -> int | None:
        """The version of the loan that a write was about: named by the request, or the only one that it touched."""
        if posting is None:
            return self._version_now(request, loan_id, touches)
        loans = posting.state.loans
        if loan_id in loans:
            return loans[loan_id].version
        return next(iter(loans.values())).version if len(loans) == 1 else None

    def _version_now(self, request: Request, loan_id: str | None, touches: Touches) -> int | None:
        """For a replay: what the write was about is as it was, the version is today's."""
        if loan_id is not None:
            return self.version(request, loan_id)
        if len(touches.entries) != 1:
            return None
        with self.read(request) as cursor:
            return queries.version_of_entrys_loan(cursor, entry_id=touches.entries[0])

    def version(self, request: Request, loan_id: str) -> int:
        """The version that a loan has now."""
        with self.read(request) as cursor:
            return queries.loan_version(cursor, loan_id=loan_id) or 0

    def origin(self, request: Request) -> Origin:
        principal = caller(request)
        return Origin(principal.tenant_id, principal.actor, correlation_of(request))

    @contextmanager
    def read(self, request: Request, *, first: Statement | None = None) -> Iterator[CursorWrapper]:
        with tenant_transaction(caller(request).tenant_id, first=first) as cursor:
            yield cursor

    def paging(
        self, request: Request, query: shapes.Page, *filters: object, order: tuple[type[str | int], ...] = (str,)
    ) -> Paging:
        """The page of a list that a query asks for. Its token is bound to tenant, list and filters; `order` says of what
        types the list's order is."""
        scope = [caller(request).tenant_id, type(self).__name__, *(None if f is None else str(f) for f in filters)]
        return Paging.asked(given(query.page_token), given(query.page_size), scope, *order)


def posts(
    write: Write[Any],
    tag: str,
    *,
    answer: Shape,
    returns: str,
    refuses: Iterable[type[Problem]] = (),
    etag: bool = False,
) -> Callable[[View], View]:
    """Declare a view of a write for the API document: name and body are the operation's own."""
    return operation(
        write.operation_id,
        tag,
        request=write.shape,
        answer=answer,
        returns=returns,
        refuses=refuses,
        etag=etag,
        status=write.status,
    )


def answered(done: Answer, status: int = 201) -> HttpResponse:
    """The answer, or 200 with the first one on a replay."""
    response = answer(done.body, 200 if done.replayed else status)
    if done.replayed:
        response["Idempotency-Replayed"] = "true"
    return response


def etag(version: int) -> str:
    return f'"{version}"'


def _check_version(posting: Posting, expected: str | None) -> None:
    """If-Match on a write about one loan: refuse when the loan is not at one of the versions that the client names."""
    if expected is None or expected.strip() == "*" or len(posting.state.loans) != 1:
        return
    (loan,) = posting.state.loans.values()
    if etag(loan.version) not in [named.strip() for named in expected.split(",")]:
        raise LoanChanged(f"The loan is at version {loan.version}; If-Match asks for {expected[:100]}.")


class Payments(LedgerViewSet):
    scopes: ClassVar = {
        "create": ops.create_payment.scope,
        "settlement": ops.settle_payment.scope,
        "give_back": ops.return_payment.scope,
    }

    @posts(
        ops.create_payment,
        "payments",
        answer=shapes.PaymentPosted,
        returns="Payment posted",
        etag=True,
        refuses=(*OF_A_LOAN, LoanNotFound, BorrowerMismatch, DuplicateExternalRef, LoanStateRefuses),
    )
    def create(self, request: Request) -> HttpResponse:
        """Receive a payment.

        It is allocated by the program's waterfall; a PENDING one waits in suspense until it settles.
        """
        return self.write(request, ops.create_payment)

    @posts(
        ops.settle_payment,
        "payments",
        answer=shapes.PaymentPosted,
        returns="Settlement posted",
        etag=True,
        refuses=(*DATED, LoanChanged, AlreadySettled, AlreadyReturned, AlreadyReversed, LoanStateRefuses),
    )
    def settlement(self, request: Request, payment_event_id: str) -> HttpResponse:
        """Settle a pending payment.

        The announced money has come: it is allocated by the waterfall of today's books.
        """
        return self.write(request, ops.settle_payment)

    @posts(
        ops.return_payment,
        "payments",
        answer=shapes.PaymentReturned,
        returns="Return posted",
        etag=True,
        refuses=(*DATED, LoanChanged, AlreadyReturned, AlreadyReversed, LoanStateRefuses),
    )
    def give_back(self, request: Request, payment_event_id: str) -> HttpResponse:
        """Return a payment.

        The bank took it back: what it posted is mirrored, and an NSF fee may be assessed with it.
        """
        return self.write(request, ops.return_payment)


class Disbursements(LedgerViewSet):
    scopes: ClassVar = {"create": ops.create_disbursement.scope, "settlement": ops.settle_disbursement.scope}

    @posts(
        ops.create_disbursement,
        "disbursements",
        answer=shapes.DisbursementPosted,
        returns="Disbursement posted",
        etag=True,
        refuses=(*OF_A_LOAN, LoanNotFound, BorrowerMismatch, AmountExceedsLimit, LoanStateRefuses),
    )
    def create(self, request: Request) -> HttpResponse:
        """Disburse a loan.

        Debits principal receivable, credits disbursement clearing.
        """
        return self.write(request, ops.create_disbursement)

    @posts(
        ops.settle_disbursement,
        "disbursements",
        answer=shapes.DisbursementPosted,
        returns="Settlement posted",
        etag=True,
        refuses=(*DATED, LoanChanged, AlreadySettled, AlreadyReversed),
    )
    def settlement(self, request: Request, disbursement_event_id: str) -> HttpResponse:
        """Settle a disbursement.

        The money has left the bank: debits disbursement clearing, credits cash.
        """
        return self.write(request, ops.settle_disbursement)


class Accruals(LedgerViewSet):
    scopes: ClassVar = {"batch": ops.create_accrual_batch.scope}
    large_bodies = frozenset({"batch"})

    @posts(
        ops.create_accrual_batch,
        "accruals",
        answer=shapes.AccrualPosted,
        returns="Accruals posted",
        refuses=(*DATED, ProgramNotFound, AccrualModeRefuses, AccrualAlreadyPosted),
    )
    def batch(self, request: Request) -> HttpResponse:
        """Accrue a day of interest on many loans of a program.

        One entry for all of them, or nothing: every item that disagrees with the books is named in `errors`.
        """
        return self.write(request, ops.create_accrual_batch)


class AccrualRuns(LedgerViewSet):
    """The engine's nightly work. Chunks are done by workers; these views look, and ask for it."""

    scopes: ClassVar = {
        "create": ops.start_accrual_run.scope,
        "list": "hpts:ledger:read",
        "retrieve": "hpts:ledger:read",
    }

    @posts(
        ops.start_accrual_run,
        "accruals",
        answer=shapes.AccrualRun,
        returns="The run, as far as it is",
        refuses=(EffectiveDateRefused, PeriodClosed, AccrualModeRefuses),
    )
    def create(self, request: Request, program_id: str) -> HttpResponse:
        """Accrue a program's loans for a date.

        Brings every loan to the date, also what late payments and new rates have changed. There is one run for each program and
        date: asked for again it visits what is left. The schedule makes one each night.
        """
        return self.write(request, ops.start_accrual_run)

    @operation(
        "listAccrualRuns",
        "accruals",
        query=shapes.RunsQuery,
        answer=shapes.AccrualRunPage,
        returns="Page of runs, the latest date first",
    )
    def list(self, request: Request) -> HttpResponse:
        """The tenant's accrual runs."""
        query = self.query(request, shapes.RunsQuery)
        program_id = given(query.program_id)
        paging = self.paging(request, query, program_id, order=(str, str))
        with self.read(request) as cursor:
            found = queries.accrual_runs(cursor, program_id=program_id, after=paging.after, limit=paging.limit)
        return answer(paging.page(found, "accrual_date", "accrual_run_id"))

    @operation("getAccrualRun", "accruals", answer=shapes.AccrualRunDetail, returns="The run")
    def retrieve(self, request: Request, accrual_run_id: str) -> HttpResponse:
        """One accrual run, with the loans that it could not accrue."""
        self.query(request, shapes.NoQuery)
        with self.read(request, first=SNAPSHOT) as cursor:
            found = queries.accrual_run(cursor, run_id=accrual_run_id)
            if found is None:
                raise NotFound(f"There is no accrual run {accrual_run_id}.")
            found["exceptions"] = queries.accrual_exceptions(cursor, run_id=accrual_run_id, limit=SHOWN_EXCEPTIONS)
        return answer(found)


class Reversals(LedgerViewSet):
    scopes: ClassVar = {"create": ops.create_reversal.scope}

    @posts(
        ops.create_reversal,
        "reversals",
        answer=shapes.ReversalPosted,
        returns="Reversal posted",
        refuses=(*DATED, EntryNotFound, AlreadyReversed, NotReversible, AmountExceedsBalance, AccountClosed),
    )
    def create(self, request: Request) -> HttpResponse:
        """Reverse a journal entry.

        Posts the mirror of every line, once.
        """
        return self.write(request, ops.create_reversal)


class JournalEntries(LedgerViewSet):
    scopes: ClassVar = {
        "create": ops.create_journal_entry.scope,
        "retrieve": "hpts:ledger:read",
        "proof": "hpts:ledger:read",
    }

    @posts(
        ops.create_journal_entry,
        "journal",
        answer=shapes.EntryPosted,
        returns="Entry posted",
        refuses=(
            *OF_A_LOAN,
            LoanNotFound,
            BorrowerMismatch,
            AccountNotFound,
            AccountClosed,
            UnbalancedEntry,
            AmountExceedsBalance,
        ),
    )
    def create(self, request: Request) -> HttpResponse:
        """Post an accountant's own lines."""
        return self.write(request, ops.create_journal_entry)

    @operation("getJournalEntry", "journal", answer="JournalEntry", returns="The entry")
    def retrieve(self, request: Request, journal_entry_id: str) -> HttpResponse:
        """One journal entry."""
        self.query(request, shapes.NoQuery)
        with self.read(request) as cursor:
            body = queries.entry(cursor, entry_id=journal_entry_id)
        if body is None:
            raise NotFound(f"There is no journal entry {journal_entry_id}.")
        return answer(body)

    @operation(
        "getJournalEntryProof", "journal", answer=shapes.EntryProof, returns="The proof", refuses=(NotSealedYet,)
    )
    def proof(self, request: Request, journal_entry_id: str) -> HttpResponse:
        """Prove that an entry is in sealed history.

        Whoever has kept a block's hash can hold the entry against it, without this server: examples/verify_proof.py does.
        """
        self.query(request, shapes.NoQuery)
        with self.read(request) as cursor:
            found = queries.sealed_entry(cursor, entry_id=journal_entry_id)
        if found is None:
            raise NotFound(f"There is no journal entry {journal_entry_id}.")
        if found.block is None:
            raise NotSealedYet(f"Entry {journal_entry_id} is in no block yet; ask again in a few seconds.")
        return answer(seals.proof(journal_entry_id, found))


class Seals(LedgerViewSet):
    """Sealed history: blocks are made by the sealer (ledger/seals.py), never asked for."""

    scopes: ClassVar = {"list": "hpts:ledger:read", "keys": "hpts:ledger:read"}

    @operation(
        "listSeals", "journal", query=shapes.Page, answer=shapes.SealPage, returns="Page of blocks, the last one first"
    )
    def list(self, request: Request) -> HttpResponse:
        """The blocks of sealed history.

        The first item is the head. Keep heads outside of this system: they are what its history can be held against.
        """
        query = self.query(request, shapes.Page)
        paging = self.paging(request, query, order=(int,))
        with self.read(request) as cursor:
            found = queries.seals(cursor, before=paging.after, limit=paging.limit)
        return answer(paging.page(found, "number"))

    @operation("listSealKeys", "journal", answer=shapes.SealKeys, returns="The keys, the one in use first")
    def keys(self, request: Request) -> HttpResponse:
        """The public keys that verify the signatures of blocks."""
        self.query(request, shapes.NoQuery)
        listed = seal_keys().public
        return answer(
            {"items": [{"key_id": key.key_id, "algorithm": "Ed25519", "public_key": key.pem} for key in listed]}
        )


class Programs(LedgerViewSet):
    scopes: ClassVar = {
        "create": ops.create_program.scope,
        "terms": ops.change_program_terms.scope,
        "list": "hpts:loans:read",
        "retrieve": "hpts:loans:read",
    }

    @posts(
        ops.create_program,
        "programs",
        answer=shapes.Program,
        returns="Program created",
        refuses=(ProgramExists,),
    )
    def create(self, request: Request) -> HttpResponse:
        """Create a program."""
        return self.write(request, ops.create_program)

    @posts(
        ops.change_program_terms,
        "programs",
        answer=shapes.ProgramTerms,
        returns="Terms recorded",
        refuses=(EffectiveDateRefused, PeriodClosed),
    )
    def terms(self, request: Request, program_id: str) -> HttpResponse:
        """Change a program's terms from a date on.

        What is left out stays as it is. Terms are never edited: of two for one date the later one holds. Who accrues can change
        from a date on for which nobody has accrued yet; a new rate that dates back is carried by the next accrual run.
        """
        return self.write(request, ops.change_program_terms)

    @operation("listPrograms", "programs", query=shapes.Page, answer=shapes.ProgramPage, returns="Page of programs")
    def list(self, request: Request) -> HttpResponse:
        """The tenant's programs."""
        query = self.query(request, shapes.Page)
        paging = self.paging(request, query)
        with self.read(request) as cursor:
            found = queries.programs(cursor, on=queries.today(cursor), after=paging.after, limit=paging.limit)
        return answer(paging.page(found, "program_id"))

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
        "create": ops.create_loan.scope,
        "list": "hpts:loans:read",
        "retrieve": "hpts:loans:read",
        "journal_entries": "hpts:ledger:read",
        "balance": "hpts:balances:read",
        "payoff": "hpts:balances:read",
        "allocation_preview": "hpts:balances:read",
        "statement": "hpts:ledger:read",
        "balance_changes": "hpts:ledger:read",
    }

    @posts(
        ops.create_loan,
        "loans",
        answer=shapes.Loan,
        returns="Loan created",
        etag=True,
        refuses=(ProgramNotFound, LoanExists),
    )
    def create(self, request: Request) -> HttpResponse:
        """Create a loan."""
        response = self.write(request, ops.create_loan)
        if "Idempotency-Replayed" in response:
            # The loan's id may be the server's, so it is read off the first answer.
            response["ETag"] = etag(self.version(request, msgspec.json.decode(response.content)["loan_id"]))
        return response

    @operation("listLoans", "loans", query=shapes.LoansQuery, answer=shapes.LoanPage, returns="Page of loans")
    def list(self, request: Request) -> HttpResponse:
        """The tenant's loans, by program, borrower and state."""
        query = self.query(request, shapes.LoansQuery)
        filters = (given(query.program_id), given(query.borrower_id), given(query.state))
        paging = self.paging(request, query, *filters)
        with self.read(request) as cursor:
            found = queries.loans(
                cursor,
                on=queries.today(cursor),
                program_id=filters[0],
                borrower_id=filters[1],
                state=filters[2],
                after=paging.after,
                limit=paging.limit,
            )
        return answer(paging.page(found, "loan_id"))

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
        in_order("from_date", from_date, "to_date", to_date)
        paging = self.paging(request, query, loan_id, from_date, to_date, kind, order=(int,))
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
                after=paging.after or 0,
                limit=paging.limit,
            )
        response = answer(paging.text([(item.body, item.version) for item in found]))
        response["ETag"] = etag(version)
        return response

    @operation(
        "getLoanBalance",
        "balances",
        query=shapes.BalanceQuery,
        answer=shapes.LoanBalance,
        returns="The balance",
        etag=True,
    )
    def balance(self, request: Request, loan_id: str) -> HttpResponse:
        """What a loan owes.

        Settled entries effective on or before `as_of_date`, by default today in the tenant's time zone; with `known_at`,
        as the books said at that instant.
        """
        query = self.query(request, shapes.BalanceQuery)
        known_at = given(query.known_at)
        with self.read(request) as cursor:
            as_of = given(query.as_of_date) or queries.today(cursor)
            found = queries.loan_balances(cursor, loan_id=loan_id, as_of=as_of, known_at=known_at)
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
        if known_at is not None:
            body["known_at"] = known_at
        response = answer(body)
        response["ETag"] = etag(found.version)
        return response

    @operation(
        "getLoanPayoff", "balances", query=shapes.AsOfQuery, answer=shapes.Payoff, returns="The payoff", etag=True
    )
    def payoff(self, request: Request, loan_id: str) -> HttpResponse:
        """What pays a loan off.

        At the end of `as_of_date`, by default today in the tenant's time zone. `accrued_interest_minor` is what the engine
        has not yet posted through that date: "0" when a client accrues, below zero when too much has been posted.
        """
        query = self.query(request, shapes.AsOfQuery)
        with self.read(request, first=SNAPSHOT) as cursor:
            as_of = given(query.as_of_date) or queries.today(cursor)
            found = queries.payoff(cursor, loan_id=loan_id, as_of=as_of)
        if found is None:
            raise NotFound(f"There is no loan {loan_id}.")
        response = answer(found[0])
        response["ETag"] = etag(found[1])
        return response

    @operation(
        "previewAllocation",
        "balances",
        query=shapes.PreviewQuery,
        answer=shapes.AllocationPreview,
        returns="The allocation",
        etag=True,
        refuses=(*DATED, LoanStateRefuses),
    )
    def allocation_preview(self, request: Request, loan_id: str) -> HttpResponse:
        """Where a payment would go.

        What `POST /payments` would answer for the amount on `effective_at`, by default today, or the problem that it would
        be refused with. Nothing is posted.
        """
        query = self.query(request, shapes.PreviewQuery)
        on = given(query.effective_at)
        with opened(self.origin(request), Touches([loan_id], since=on, mode="read")) as (posting, _):
            assert posting is not None  # There is no key that another request could hold.
            if loan_id not in posting.state.loans:
                raise NotFound(f"There is no loan {loan_id}.")
            body = ops.preview_allocation(posting, loan_id, query.amount_minor, on)
            version = posting.state.loans[loan_id].version
        response = answer(body)
        response["ETag"] = etag(version)
        return response

    @operation(
        "getLoanStatement",
        "journal",
        query=shapes.StatementQuery,
        answer=shapes.LoanStatement,
        returns="The statement",
        etag=True,
    )
    def statement(self, request: Request, loan_id: str) -> HttpResponse:
        """Statement of a loan.

        Settled entries from `from_date`, by default the loan's opening, to `to_date`, by default today; what each changed,
        and the balances before, between and after them.
        """
        query = self.query(request, shapes.StatementQuery)
        from_date, to_date = given(query.from_date), given(query.to_date)
        in_order("from_date", from_date, "to_date", to_date)
        with self.read(request) as cursor:
            until = to_date or max(queries.today(cursor), from_date or date.min)
            found = queries.statement(cursor, loan_id=loan_id, since=from_date, until=until)
        if found is None:
            raise NotFound(f"There is no loan {loan_id}.")
        since = from_date or min(found.opened_on, until)
        return _stated(found, loan_id, from_date=since.isoformat(), to_date=until.isoformat())

    @operation(
        "getLoanBalanceChanges",
        "journal",
        query=shapes.ChangesQuery,
        answer=shapes.BalanceChanges,
        returns="The changes",
        etag=True,
    )
    def balance_changes(self, request: Request, loan_id: str) -> HttpResponse:
        """Why the books say something else than before.

        A loan's balances as of a date, as they were known at two instants, and the entries posted after the first one and
        not after the second: together they are the difference.
        """
        query = self.query(request, shapes.ChangesQuery)
        earlier, later = query.from_known_at, query.to_known_at
        in_order("from_known_at", datetime.fromisoformat(earlier), "to_known_at", datetime.fromisoformat(later))
        with self.read(request) as cursor:
            as_of = given(query.as_of_date) or queries.today(cursor)
            found = queries.balance_changes(cursor, loan_id=loan_id, as_of=as_of, known_after=earlier, known_at=later)
        if found is None:
            raise NotFound(f"There is no loan {loan_id}.")
        return _stated(found, loan_id, as_of_date=as_of.isoformat(), from_known_at=earlier, to_known_at=later)


class Servicing(LedgerViewSet):
    """What is done to one loan, each by one entry of the kind named."""

    scopes: ClassVar = {
        "fee": ops.assess_fee.scope,
        "fee_waiver": ops.waive_fee.scope,
        "chargeoff": ops.charge_off_loan.scope,
        "recovery": ops.record_recovery.scope,
        "refinance": ops.refinance_loan.scope,
        "restructure": ops.restructure_loan.scope,
        "accrual_pause": ops.pause_accrual.scope,
        "suspense_allocation": ops.allocate_suspense.scope,
        "replan": ops.replan_loan.scope,
    }

    @posts(
        ops.assess_fee,
        "servicing",
        answer=shapes.EntryPosted,
        returns="Fee posted",
        etag=True,
        refuses=(*OF_A_LOAN, LoanStateRefuses),
    )
    def fee(self, request: Request, loan_id: str) -> HttpResponse:
        """Assess a fee."""
        return self.write(request, ops.assess_fee)

    @posts(
        ops.waive_fee,
        "servicing",
        answer=shapes.EntryPosted,
        returns="Waiver posted",
        etag=True,
        refuses=(*OF_A_LOAN, AmountExceedsBalance),
    )
    def fee_waiver(self, request: Request, loan_id: str) -> HttpResponse:
        """Waive fees.

        At most what is outstanding on every date from the waiver's on.
        """
        return self.write(request, ops.waive_fee)

    @posts(
        ops.charge_off_loan,
        "servicing",
        answer=shapes.ChargedOff,
        returns="Charge-off posted",
        etag=True,
        refuses=(*DATED, LoanChanged, LoanStateRefuses, AmountExceedsBalance),
    )
    def chargeoff(self, request: Request, loan_id: str) -> HttpResponse:
        """Charge a loan off.

        All principal, interest and fees go to charge-off expense; suspense stays.
        """
        return self.write(request, ops.charge_off_loan)

    @posts(
        ops.record_recovery,
        "servicing",
        answer=shapes.EntryPosted,
        returns="Recovery posted",
        etag=True,
        refuses=(*OF_A_LOAN, LoanStateRefuses),
    )
    def recovery(self, request: Request, loan_id: str) -> HttpResponse:
        """Record money on a charged-off loan."""
        return self.write(request, ops.record_recovery)

    @posts(
        ops.refinance_loan,
        "servicing",
        answer=shapes.Refinanced,
        returns="Refinance posted",
        etag=True,
        refuses=(
            *OF_A_LOAN,
            ProgramNotFound,
            BorrowerMismatch,
            LoanExists,
            LoanStateRefuses,
            AmountExceedsLimit,
            AmountExceedsBalance,
        ),
    )
    def refinance(self, request: Request, loan_id: str) -> HttpResponse:
        """Pay a loan off from a new one.

        The new loan is created with it, and may pay out cash as well.
        """
        return self.write(request, ops.refinance_loan)

    @posts(
        ops.restructure_loan,
        "servicing",
        answer=shapes.Restructured,
        returns="Restructure recorded",
        etag=True,
        refuses=(*DATED, LoanChanged, LoanStateRefuses, AmountExceedsBalance),
    )
    def restructure(self, request: Request, loan_id: str) -> HttpResponse:
        """Give a loan new terms from a date on.

        Interest and fees may become principal. Without any there is no entry; the terms are recorded.
        """
        return self.write(request, ops.restructure_loan)

    @posts(
        ops.pause_accrual,
        "servicing",
        answer=shapes.AccrualPause,
        returns="Pause recorded",
        etag=True,
        refuses=(EffectiveDateRefused, PeriodClosed, LoanChanged),
    )
    def accrual_pause(self, request: Request, loan_id: str) -> HttpResponse:
        """Pause a loan's interest.

        The engine accrues nothing for these dates; what it has accrued of them is taken back by the next run. A pause without an
        end is ended by another one from the same date.
        """
        return self.write(request, ops.pause_accrual)

    @posts(
        ops.allocate_suspense,
        "payments",
        answer=shapes.SuspenseAllocated,
        returns="Allocation posted",
        etag=True,
        refuses=(*OF_A_LOAN, AmountExceedsBalance),
    )
    def suspense_allocation(self, request: Request, loan_id: str) -> HttpResponse:
        """Allocate money that waits in suspense.

        By the waterfall, and never more than suspense holds or the receivables take.
        """
        return self.write(request, ops.allocate_suspense)

    @posts(
        ops.replan_loan,
        "servicing",
        answer=shapes.Replan,
        returns="The plan, or what was committed",
        etag=True,
        refuses=(*DATED, LoanChanged, PlanOutdated),
    )
    def replan(self, request: Request, loan_id: str) -> HttpResponse:
        """Plan what late payments change, and commit it.

        Without `plan_hash`: the exact entries that would bring the loan to where it would be had every payment from
        `from_date` on arrived on its date. With it they are posted, all in one transaction, unless the loan has moved.
        """
        return self.write(request, ops.replan_loan)


class Batches(LedgerViewSet):
    scopes: ClassVar = {"create": OF_ITS_ITEMS}
    large_bodies = frozenset({"create"})

    @operation(
        "createBatch",
        "batches",
        request=shapes.NewBatch,
        answer=shapes.BatchDone,
        returns="Batch done",
        refuses=REFUSALS,
    )
    def create(self, request: Request) -> HttpResponse:
        """Run many writes.

        `atomic`: all of them in one transaction, or none; the first refusal is the batch's. `each`: every item by itself, with an
        outcome of its own; a repeat goes on where the first one broke off. An item is the path below /v1 and the body of a POST.
        """
        call, body = self.call(request, shapes.NewBatch)
        items = _batch_items(body)
        if len(items) > 1:
            self.admit(request, len(items) - 1)
        scopes = caller(request).scopes
        run = batch.all_or_nothing if body.mode == "atomic" else batch.one_by_one
        return answered(run(call, items, lambda scope: covers(scopes, scope)))


def _batch_items(body: shapes.NewBatch) -> list[batch.Item]:
    """Each item with the operation that its path stands for. Raises ValidationFailed naming every path that is none."""
    items, wrong = [], []
    for position, item in enumerate(body.items):
        found = _write_at(item.path)
        if found is None:
            message = "The path of a POST below /v1 is expected, such as /payments; batches do not nest."
            wrong.append(FieldProblem(f"items.{position}.path", "not_a_choice", message))
        else:
            items.append(batch.Item(*found, item.body))
    if wrong:
        raise ValidationFailed("One or more fields are not valid.", wrong)
    return items


def _write_at(path: str) -> tuple[Write[Any], dict[str, str]] | None:
    try:
        match = resolve(f"/v1{path}")
    except Resolver404:
        return None
    action = getattr(match.func, "actions", {}).get("post")
    declared = getattr(getattr(match.func, "cls", None), action or "", None)
    write = ops.WRITES.get(declared.operation.operation_id) if declared is not None else None
    return (write, match.kwargs) if write is not None else None


class Accounts(LedgerViewSet):
    scopes: ClassVar = {
        "create": ops.create_account.scope,
        "closure": ops.close_account.scope,
        "list": "hpts:balances:read",
        "balance": "hpts:balances:read",
        "trial_balance": "hpts:balances:read",
    }

    @posts(ops.create_account, "accounts", answer=shapes.AccountRow, returns="Account created")
    def create(self, request: Request) -> HttpResponse:
        """Add an account to the chart, for manual adjustments."""
        return self.write(request, ops.create_account)

    @posts(ops.close_account, "accounts", answer=shapes.AccountRow, returns="Account closed", refuses=(AccountClosed,))
    def closure(self, request: Request, account_code: str) -> HttpResponse:
        """Close an account: it takes no more lines."""
        return self.write(request, ops.close_account)

    @operation("listAccounts", "accounts", answer=shapes.Accounts, returns="Every account")
    def list(self, request: Request) -> HttpResponse:
        """The chart of accounts."""
        self.query(request, shapes.NoQuery)
        with self.read(request) as cursor:
            found = queries.accounts(cursor)
        return answer({"items": [queries.account_object(account, closed) for account, closed in found]})

    @operation(
        "getAccountBalance",
        "balances",
        query=shapes.AccountBalanceQuery,
        answer=shapes.AccountBalance,
        returns="The balance",
    )
    def balance(self, request: Request, account_code: str) -> HttpResponse:
        """Balance of an account.

        Gross debits, gross credits, and their difference on the account's normal side, which may be negative; with
        `known_at`, as the books said at that instant.
        """
        query = self.query(request, shapes.AccountBalanceQuery)
        layer, known_at = given(query.layer) or SETTLED, given(query.known_at)
        with self.read(request) as cursor:
            as_of = given(query.as_of_date) or queries.today(cursor)
            found = queries.trial_balance(
                cursor, currency=query.currency, layer=layer, as_of=as_of, code=account_code, known_at=known_at
            )
        if not found:
            raise NotFound(f"There is no account {account_code}.")
        body = {
            "currency": query.currency,
            "layer": layer,
            "as_of_date": as_of.isoformat(),
            **queries.account_balance_object(found[0]),
        }
        if known_at is not None:
            body["known_at"] = known_at
        return answer(body)

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
        return answer({"as_of_date": as_of.isoformat(), **queries.trial_balance_object(found, query.currency, layer)})


class Periods(LedgerViewSet):
    scopes: ClassVar = {"close": ops.close_period.scope, "list": "hpts:admin:periods"}

    @posts(
        ops.close_period,
        "periods",
        answer=shapes.Period,
        returns="Period closed",
        refuses=(EffectiveDateRefused, PeriodClosed),
    )
    def close(self, request: Request) -> HttpResponse:
        """Close the books through a date.

        Nothing is dated on or before it any more; the trial balances of that day are kept.
        """
        return self.write(request, ops.close_period)

    @operation("listPeriods", "periods", query=shapes.Page, answer=shapes.PeriodPage, returns="Page of closed periods")
    def list(self, request: Request) -> HttpResponse:
        """Closed periods, the latest first."""
        query = self.query(request, shapes.Page)
        paging = self.paging(request, query)
        with self.read(request) as cursor:
            found = queries.closed_periods(cursor, before=paging.after, limit=paging.limit)
        return answer(paging.text([(body, through.isoformat()) for through, body in found]))


def _stated(found: queries.Statement, loan_id: str, **span: str) -> HttpResponse:
    """A statement of a loan: which loan and what span, balances before, entries, balances after."""
    response = answer(
        {
            "loan_id": loan_id,
            "currency": found.currency,
            **span,
            "opening": msgspec.Raw(found.opening.encode()),
            "entries": msgspec.Raw(found.entries.encode()),
            "closing": msgspec.Raw(found.closing.encode()),
        }
    )
    response["ETag"] = etag(found.version)
    return response
