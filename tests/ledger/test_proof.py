"""The checks of reconciliation/checks.py, tried against damage: a superuser, the walls switched off, spoils one thing at a time.

Each damage is done and looked at inside one transaction that is rolled back, with the checks run as hpts_readonly.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any, NamedTuple

import environ
import pytest
from django.apps import apps
from django.db import connections, transaction
from django.db.backends.utils import CursorWrapper

from hpts.audit import Caller
from hpts.tenancy import tenant_transaction
from ledger import operations, proposals, queries
from ledger.events import (
    PENDING,
    ChargeOff,
    FeeAssessed,
    Line,
    PaymentReturned,
    PaymentSettled,
    Refinance,
    SuspenseAllocated,
)
from ledger.money import MAX_MINOR
from ledger.proposals import Proposed
from ledger.serializers import NewAccrualPause, NewReplan, NewRestructure
from reconciliation import checks
from tests.conftest import line, sealed
from tests.ledger.conftest import URLS, Books, caught_up, new_key, open_books, tenant_tables

UNKNOWN = "00000000-0000-4000-8000-00000000dead"
# The superuser's alias among Django's connections, for this module alone.
SUPERUSER = "superuser"
ALL = {check.__name__ for check in checks.CHECKS}


class Story(NamedTuple):
    """A tenant's books with something of everything, and the names under which the damages know its rows."""

    books: Books
    names: dict[str, Any]


@pytest.fixture(scope="module")
def story(open_database: None) -> Story:
    books = open_books(loans=2)
    lent, other = books.loans
    own_rate = books.open_loan(annual_rate_bps=700)
    drawn = books.post(books.disbursement(lent, 100_000, "2025-01-10"))
    settled = books.post(books.settlement(drawn.journal_entry_id, "2025-01-12"))
    accrued = books.post(books.accrual("2025-02-10", (lent, 100_000, 500)))
    again = books.post(books.accrual("2025-02-11", (lent, 100_000, 28)))
    books.post(books.reversal(again.journal_entry_id, "2025-02-12"))
    books.post(books.accrual("2025-02-11", (lent, 100_000, 27)))
    key = new_key()
    books.once(key, books.payment(lent, 20_000, "2025-02-15", ref="R-1"))
    ((paid,),) = books.rows("SELECT id::text FROM journal_entry WHERE external_ref = 'R-1'")
    twice = books.post(books.payment(lent, 1_000, "2025-02-16"))
    reversed_ = books.post(books.reversal(twice.journal_entry_id, "2025-02-20"))
    fee = books.post(books.fee(lent, 70, "2025-02-21"))
    books.post(books.disbursement(other, 5_000, "2025-03-01", PENDING))
    books.post(books.adjustment("2025-03-02", Line("1000", "DR", 900, "USD"), Line("3000", "CR", 900, "USD")))
    serviced = _serviced(books) | _accrued_by_engine(books) | _corrected_by_staff(books)
    sealed(books.tenant_id)
    # Two blocks more, the first of them of two entries.
    for _ in range(2):
        books.post(books.fee(other, 1, "2025-03-05"))
    sealed(books.tenant_id)
    latest = books.post(books.fee(other, 2, "2025-03-06"))
    sealed(books.tenant_id)
    books.close("2025-01-31")
    books.close("2025-03-31")
    caught_up(books.tenant_id)
    names = serviced | {
        "tenant": books.tenant_id,
        "cash": "1000",
        "stranger": open_books().tenant_id,
        "january": "2025-01-31",
        "program": books.program_id,
        "loan": lent.loan_id,
        "other": other.loan_id,
        "own_rate": own_rate.loan_id,
        "disbursement": drawn.journal_entry_id,
        "settlement": settled.journal_entry_id,
        "accrual": accrued.journal_entry_id,
        "payment": paid,
        "twice": twice.journal_entry_id,
        "reversal": reversed_.journal_entry_id,
        "fee": fee.journal_entry_id,
        "key": key,
        "unknown": UNKNOWN,
        "latest": latest.journal_entry_id,
        # Blocks by their numbers.
        "one": 1,
        "two": 2,
        "three": 3,
    }
    return Story(books, names)


def _corrected_by_staff(books: Books) -> dict[str, str]:
    """An adjustment that one person proposed and another one approved."""
    anna, bert = (Caller(f"staff:{name}", books.tenant_id, reason="The bank says so") for name in ("anna", "bert"))
    body = {
        "effective_at": "2025-03-03",
        "description": "Interest of the bank",
        "lines": [line("1000", "DR", 3), line("4000", "CR", 3)],
    }
    proposed = Proposed("createJournalEntry", {}, body)
    proposal_id = proposals.propose(anna, new_key(), proposed)
    entry_id = proposals.approve(bert, proposal_id, proposals.preview(bert, proposed).digest)
    return {"proposal": proposal_id, "approved": entry_id}


def _accrued_by_engine(books: Books) -> dict[str, str]:
    """A loan that a run has accrued for two dates, one of them reversed; one that is charged off with its interest; one that
    no run can accrue; a pause."""
    program_id = books.open_program(annual_rate_bps=100_000)
    nightly, ended, huge, counted = (books.open_loan(program_id=program_id) for _ in range(4))
    books.post(books.disbursement(counted, 7_000, "2025-02-15"))
    for loan, amount in ((nightly, 365_000), (ended, 5_000), (huge, MAX_MINOR)):
        books.post(books.disbursement(loan, amount, "2025-02-10"))
    books.run(operations.pause_accrual, NewAccrualPause(from_date=date(2025, 3, 10)), loan_id=nightly.loan_id)
    first = books.accrue_by_engine("2025-02-11", program_id)
    last = books.accrue_by_engine("2025-03-20", program_id)
    assert last["exception_count"] == 1
    ((entry_id,),) = books.rows(
        "SELECT entry_id::text FROM loan_accrual WHERE accrual_date = '2025-02-11' AND loan_id = %s", nightly.loan_id
    )
    books.post(books.reversal(entry_id, "2025-03-21"))
    books.post(ChargeOff(loan_id=ended.loan_id, effective_at=date(2025, 3, 30)))
    return {
        "nightly": nightly.loan_id,
        "ended": ended.loan_id,
        "counted": counted.loan_id,
        "huge": huge.loan_id,
        "first_run": first["accrual_run_id"],
        "run": last["accrual_run_id"],
    }


def _serviced(books: Books) -> dict[str, str]:
    """Five more loans: charged off; refinanced, into another; with announced money, a return and a replan; restructured."""
    lost, old, moneyed, changed = (books.open_loan() for _ in range(4))
    new = books.open_loan(borrower_id=old.borrower_id)
    day = {"effective_at": date(2025, 2, 20)}
    books.post(books.disbursement(lost, 1_000, "2025-02-01"))
    gone = books.post(ChargeOff(loan_id=lost.loan_id, **day))
    books.post(books.disbursement(old, 2_000, "2025-02-01"))
    paid_off = books.post(Refinance(loan_id=old.loan_id, new_loan_id=new.loan_id, cash_out_minor=5, **day))
    announced = books.post(books.payment(moneyed, 500, "2025-02-01", PENDING))
    came = books.post(PaymentSettled(payment_event_id=announced.journal_entry_id, **day))
    waiting = books.post(books.payment(moneyed, 300, "2025-02-02"))
    books.post(books.disbursement(moneyed, 10_000, "2025-02-03"))
    met = books.post(SuspenseAllocated(loan_id=moneyed.loan_id, amount_minor=600, currency="USD", **day))
    late = books.post(books.payment(moneyed, 100, "2025-02-05"))
    back = books.post(PaymentReturned(payment_event_id=waiting.journal_entry_id, return_code="R01", **day))
    lost_again = books.post(books.payment(moneyed, 7, "2025-02-06", PENDING))
    books.post(PaymentReturned(payment_event_id=lost_again.journal_entry_id, return_code="R02", **day))
    # Put back and allocated anew: a fee has come before it.
    books.post(FeeAssessed(loan_id=moneyed.loan_id, amount_minor=40, currency="USD", effective_at=date(2025, 2, 4)))
    replan = NewReplan(from_date=date(2025, 2, 5))
    planned = books.run(operations.replan_loan, replan, loan_id=moneyed.loan_id)
    replan.plan_hash = planned["plan_hash"]
    put_back, _ = books.run(operations.replan_loan, replan, loan_id=moneyed.loan_id)["journal_entry_ids"]
    books.post(FeeAssessed(loan_id=changed.loan_id, amount_minor=30, currency="USD", effective_at=date(2025, 2, 4)))
    terms = NewRestructure(effective_at=date(2025, 3, 1), annual_rate_bps=300, capitalise_fees=True)
    restructured = books.run(operations.restructure_loan, terms, loan_id=changed.loan_id)
    return {
        "lost": lost.loan_id,
        "chargeoff": gone.journal_entry_id,
        "old": old.loan_id,
        "new": new.loan_id,
        "refinance": paid_off.journal_entry_id,
        "announced": announced.journal_entry_id,
        "came": came.journal_entry_id,
        "waiting": waiting.journal_entry_id,
        "met": met.journal_entry_id,
        "late": late.journal_entry_id,
        "return": back.journal_entry_id,
        "put_back": put_back,
        "changed": changed.loan_id,
        "restructure": restructured["journal_entry_id"],
    }


@pytest.fixture(scope="module", autouse=True)
def superuser(open_database: None) -> Iterator[None]:
    url = environ.Env.db_url_config(os.environ[URLS["superuser"]])
    connections.settings[SUPERUSER] = connections.settings["owner"] | url
    yield
    connections[SUPERUSER].close()
    del connections[SUPERUSER]
    del connections.settings[SUPERUSER]


def found(tenant_id: str, using: str = "readonly") -> dict[str, list[checks.Breach]]:
    """What every check says, as the command asks it."""
    with tenant_transaction(tenant_id, using=using) as cursor:
        return _said(cursor)


def _said(cursor: CursorWrapper) -> dict[str, list[checks.Breach]]:
    return {check.__name__: breaches for check in checks.CHECKS if (breaches := check(cursor))}


@contextmanager
def damaged(story: Story, damage: str) -> Iterator[CursorWrapper]:
    """A transaction in which the damage has been done and the session is hpts_readonly; nothing of it stays."""
    with tenant_transaction(story.names["tenant"], using=SUPERUSER) as cursor:
        for table in tenant_tables():
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
        for statement in damage.split(";"):
            cursor.execute(statement, {name: value for name, value in story.names.items() if f"%({name})" in statement})
            assert cursor.rowcount != 0, "the damage touched no row"
        cursor.execute("SET LOCAL ROLE hpts_readonly")
        yield cursor
        transaction.set_rollback(True, using=SUPERUSER)


# What is done to the books, which checks must see it, and a row that one of them must name.
E = "UPDATE journal_entry SET"
L = "UPDATE journal_line SET"
S = "UPDATE account_sum SET"
OF = "WHERE tenant_id = %(tenant)s AND"
REHASH = f"{E} content_hash = sha256(convert_to(document, 'UTF8')) {OF} id = %(payment)s"
ROOT = "UPDATE journal_seal SET merkle_root = merkle_root(leaves)"
HASH = "UPDATE journal_seal SET hash = seal_hash(tenant_id, number, entry_count, merkle_root, previous_hash)"
DAMAGES: dict[str, tuple[str, set[str], str]] = {
    # Corrections of staff
    "the proposal of a correction is gone": (
        f"DELETE FROM proposal {OF} id = %(proposal)s",
        {"corrections_of_staff_are_approved"},
        "approved",
    ),
    "a correction was proposed by the one who approved it": (
        f"UPDATE proposal SET maker = 'staff:bert' {OF} id = %(proposal)s",
        {"corrections_of_staff_are_approved"},
        "approved",
    ),
    "a correction has been approved by nobody": (
        f"UPDATE proposal_decision SET decision = 'rejected', entry_id = NULL {OF} proposal_id = %(proposal)s",
        {"corrections_of_staff_are_approved"},
        "approved",
    ),
    "an approval names an entry that is not there": (
        f"UPDATE proposal_decision SET entry_id = %(unknown)s {OF} proposal_id = %(proposal)s",
        {"corrections_of_staff_are_approved"},
        "proposal",
    ),
    # Sums of accounts
    "a day's sum is wrong": (
        f"{S} dr_minor = dr_minor + 1 {OF} span = 'day' AND account_code = '1000' AND starts_on = '2025-02-15'",
        {"account_sums_match_lines"},
        "cash",
    ),
    "a month's sum is wrong": (
        f"{S} cr_minor = cr_minor + 1 {OF} span = 'month' AND account_code = '1000' AND starts_on = '2025-02-01'",
        {"account_sums_match_lines"},
        "cash",
    ),
    "sums are wrong by the same amount": (
        f"{S} dr_minor = dr_minor + 7, cr_minor = cr_minor + 7 {OF} account_code = '1000' AND currency = 'USD'",
        {"account_sums_match_lines"},
        "cash",
    ),
    "a year's sum is deleted": (
        f"DELETE FROM account_sum {OF} span = 'year' AND account_code = '1000'",
        {"account_sums_match_lines"},
        "cash",
    ),
    "a sum goes to another account": (
        f"{S} account_code = '1010' {OF} span = 'day' AND account_code = '1000' AND starts_on = '2025-02-15'",
        {"account_sums_match_lines"},
        "cash",
    ),
    "all sums of a day are deleted": (
        f"DELETE FROM account_sum {OF} starts_on = '2025-02-15'",
        {"account_sums_match_lines"},
        "cash",
    ),
    "the point of the sums goes back": (
        f"""UPDATE account_rollup SET (created_xid, entry_id) = (
                SELECT o.created_xid, o.entry_id FROM outbox_message o {OF} o.entry_id = %(payment)s) {OF} true""",
        {"account_sums_match_lines"},
        "cash",
    ),
    "the point of the sums names no entry": (
        f"UPDATE account_rollup SET entry_id = %(unknown)s {OF} true",
        {"account_sums_match_lines"},
        "unknown",
    ),
    # The journal
    "an entry says more lines than it has": (
        f"{E} line_count = 4 {OF} id = %(payment)s",
        {"entries_are_whole"},
        "payment",
    ),
    "a line is deleted": (
        f"DELETE FROM journal_line {OF} entry_id = %(payment)s AND sequence = 3",
        {
            "entries_are_whole",
            "entries_balance",
            "balances_match_lines",
            "documents_match_rows",
            "trial_balance_is_zero",
        },
        "payment",
    ),
    "all lines of an entry are deleted": (
        f"DELETE FROM journal_line {OF} entry_id = %(payment)s",
        {"entries_are_whole", "documents_match_rows", "versions_have_no_gap", "balances_match_lines"},
        "payment",
    ),
    "a line is numbered past the end": (
        f"{L} sequence = 9 {OF} entry_id = %(payment)s AND sequence = 3",
        {"entries_are_whole", "documents_match_rows"},
        "payment",
    ),
    "a line goes to another tenant": (
        f"{L} tenant_id = %(stranger)s {OF} entry_id = %(payment)s AND sequence = 1",
        {"entries_are_whole", "entries_balance", "trial_balance_is_zero"},
        "payment",
    ),
    "an amount grows": (
        f"{L} amount_minor = amount_minor + 1 {OF} entry_id = %(payment)s AND sequence = 2",
        {"entries_balance", "trial_balance_is_zero", "balances_match_lines", "documents_match_rows"},
        "payment",
    ),
    "an entry grows on both sides": (
        f"{L} amount_minor = amount_minor + 1 {OF} entry_id = %(fee)s",
        {"balances_match_lines", "control_accounts_match_loans", "documents_match_rows"},
        "fee",
    ),
    "two entries are wrong by the same amount": (
        (
            f"{L} amount_minor = amount_minor + 5 {OF} entry_id = %(fee)s AND sequence = 1;"
            f"{L} amount_minor = amount_minor - 5 {OF} entry_id = %(accrual)s AND sequence = 1"
        ),
        {"entries_balance", "balances_match_lines", "documents_match_rows"},
        "fee",
    ),
    "debits and credits change sides": (
        f"{L} direction = CASE direction WHEN 'DR' THEN 'CR' ELSE 'DR' END {OF} entry_id = %(payment)s",
        {"balances_match_lines", "documents_match_rows"},
        "payment",
    ),
    "an entry moves to another layer": (
        f"{L} layer = 'PENDING' {OF} entry_id = %(payment)s",
        {"balances_match_lines", "documents_match_rows"},
        "payment",
    ),
    "an entry changes its currency": (
        f"{L} currency = 'EUR' {OF} entry_id = %(payment)s",
        {"lines_belong_together", "documents_match_rows", "control_accounts_match_loans"},
        "payment",
    ),
    "a line changes its account": (
        f"{L} account_code = '4100' {OF} entry_id = %(accrual)s AND sequence = 2",
        {"documents_match_rows"},
        "accrual",
    ),
    "a line names an account that is not in the chart": (
        f"{L} account_code = '8888' {OF} entry_id = %(fee)s AND sequence = 2",
        {"lines_belong_together", "trial_balance_is_zero"},
        "fee",
    ),
    "a line forgets its loan": (
        f"{L} loan_id = NULL, borrower_id = NULL, loan_version = NULL {OF} entry_id = %(fee)s",
        {"lines_belong_together", "balances_match_lines", "entries_belong_together", "versions_have_no_gap"},
        "fee",
    ),
    "a line names another borrower's loan": (
        f"{L} loan_id = %(other)s {OF} entry_id = %(fee)s AND sequence = 1",
        {"lines_belong_together", "balances_match_lines", "entries_belong_together"},
        "fee",
    ),
    "a line names a loan that does not exist": (
        f"{L} loan_id = %(unknown)s {OF} entry_id = %(fee)s",
        {"lines_belong_together", "balances_match_lines"},
        "fee",
    ),
    "a line is dated differently from its entry": (
        f"{L} effective_at = '2025-02-14' {OF} entry_id = %(payment)s",
        {"lines_belong_together"},
        "payment",
    ),
    "the money is lent after it was repaid": (
        f"{L} effective_at = '2025-06-01' {OF} entry_id = %(disbursement)s",
        {"no_balance_was_ever_below_zero", "lines_belong_together"},
        "loan",
    ),
    "a line changes its reference": (
        f"{L} external_ref = 'R-2' {OF} entry_id = %(payment)s AND sequence = 1",
        {"documents_match_rows"},
        "payment",
    ),
    "an entry is deleted and its lines stay": (
        f"DELETE FROM journal_entry {OF} id = %(payment)s",
        {"lines_belong_together", "outbox_has_each_entry_once", "keys_point_to_entries"},
        "payment",
    ),
    "an entry is dated back": (
        f"{E} effective_at = '2025-02-14' {OF} id = %(payment)s",
        {"documents_match_rows", "lines_belong_together"},
        "payment",
    ),
    "an entry's id is not of its time": (
        f"{E} id = %(unknown)s {OF} id = %(payment)s",
        {"entries_belong_together", "lines_belong_together"},
        "unknown",
    ),
    "an entry was posted at another time": (
        f"{E} posted_at = posted_at - interval '1 day' {OF} id = %(payment)s",
        {"documents_match_rows"},
        "payment",
    ),
    "an entry becomes one of another kind": (
        f"{E} event_type = 'recovery' {OF} id = %(payment)s",
        {"documents_match_rows"},
        "payment",
    ),
    "an entry changes its correlation": (
        f"{E} correlation_id = gen_random_uuid() {OF} id = %(payment)s",
        {"documents_match_rows"},
        "payment",
    ),
    "an entry names a loan that its lines do not": (
        f"{E} loan_id = %(other)s {OF} id = %(payment)s",
        {"entries_belong_together"},
        "payment",
    ),
    "a document says another amount": (
        f"{E} document = replace(document, '20000', '20001') {OF} id = %(payment)s",
        {"documents_match_rows"},
        "payment",
    ),
    "a document says another amount and the hash agrees": (
        f"{E} document = replace(document, '20000', '20001') {OF} id = %(payment)s;{REHASH}",
        {"documents_match_rows"},
        "payment",
    ),
    "a document is written with a space": (
        f"{E} document = replace(document, ',\"v\"', ', \"v\"') {OF} id = %(payment)s;{REHASH}",
        {"documents_match_rows"},
        "payment",
    ),
    "a document is no JSON": (
        f"{E} document = 'lost' {OF} id = %(payment)s;{REHASH}",
        {"documents_match_rows"},
        "payment",
    ),
    "a description is changed": (
        f"{E} document = replace(document, 'By hand', 'By foot') {OF} id = %(fee)s",
        {"documents_match_rows"},
        "fee",
    ),
    "a hash is another": (
        f"{E} content_hash = sha256('lost') {OF} id = %(payment)s",
        {"documents_match_rows"},
        "payment",
    ),
    # Balances and loans
    "a balance is wrong": (
        f"UPDATE loan_balance SET balance_minor = balance_minor + 1 {OF} loan_id = %(loan)s AND account_code = '1100'",
        {"balances_match_lines", "control_accounts_match_loans"},
        "loan",
    ),
    "a balance is deleted": (
        f"DELETE FROM loan_balance {OF} loan_id = %(loan)s AND account_code = '1100'",
        {"balances_match_lines", "control_accounts_match_loans"},
        "loan",
    ),
    "two loans are wrong by the same amount": (
        (
            f"UPDATE loan_balance SET balance_minor = balance_minor - 5 {OF} loan_id = %(loan)s AND account_code = '1100';"
            "INSERT INTO loan_balance VALUES (%(tenant)s, %(other)s, '1100', 'SETTLED', 'USD', 5, true)"
        ),
        {"balances_match_lines"},
        "other",
    ),
    "a balance is of a loan that does not exist": (
        "INSERT INTO loan_balance VALUES (%(tenant)s, %(unknown)s, '1100', 'SETTLED', 'USD', 0, true)",
        {"balances_belong_together"},
        "unknown",
    ),
    "a balance is on an account that is not kept per loan": (
        "INSERT INTO loan_balance VALUES (%(tenant)s, %(loan)s, '1000', 'SETTLED', 'USD', 0, false)",
        {"balances_belong_together"},
        "loan",
    ),
    "a balance may fall below zero": (
        f"UPDATE loan_balance SET floored = false {OF} loan_id = %(loan)s AND account_code = '1100'",
        {"balances_belong_together"},
        "loan",
    ),
    "a balance changes its currency": (
        f"UPDATE loan_balance SET currency = 'EUR' {OF} loan_id = %(loan)s AND account_code = '1100'",
        {"balances_belong_together", "control_accounts_match_loans"},
        "loan",
    ),
    "a loan is one version ahead": (
        f"UPDATE loan SET version = version + 1 {OF} id = %(loan)s",
        {"versions_have_no_gap"},
        "loan",
    ),
    "a loan without entries has a version": (
        f"UPDATE loan SET version = 1 {OF} id = %(own_rate)s",
        {"versions_have_no_gap"},
        "own_rate",
    ),
    "an entry of a loan is numbered past the end": (
        f"{L} loan_version = 99 {OF} entry_id = %(payment)s",
        {"versions_have_no_gap"},
        "loan",
    ),
    "two entries of a loan have one number": (
        f"DROP INDEX journal_line_loan_history;{L} loan_version = loan_version - 1 {OF} entry_id = %(payment)s",
        {"versions_have_no_gap"},
        "loan",
    ),
    "an entry of a loan has two numbers": (
        f"{L} loan_version = loan_version + 100 {OF} entry_id = %(payment)s AND sequence = 2",
        {"versions_have_no_gap"},
        "loan",
    ),
    "a loan does not remember when it moved": (
        f"UPDATE loan SET last_effective_at = '2025-01-01' {OF} id = %(loan)s",
        {"versions_have_no_gap"},
        "loan",
    ),
    "a loan is deleted": (
        f"DELETE FROM loan {OF} id = %(loan)s",
        {"lines_belong_together", "balances_belong_together"},
        "loan",
    ),
    "a loan changes its currency": (
        f"UPDATE loan SET currency = 'EUR' {OF} id = %(loan)s",
        {"lines_belong_together", "balances_belong_together", "entries_belong_together"},
        "loan",
    ),
    "a loan changes its borrower": (
        f"UPDATE loan SET borrower_id = %(unknown)s {OF} id = %(loan)s",
        {"lines_belong_together"},
        "disbursement",
    ),
    "a loan names a program that does not exist": (
        f"UPDATE loan SET program_id = %(unknown)s {OF} id = %(loan)s",
        {"entries_belong_together"},
        "loan",
    ),
    # What a loan is
    "a loan says that it was lent once more": (
        f"UPDATE loan SET draws = draws + 1 {OF} id = %(loan)s",
        {"loans_stand_as_the_journal_says"},
        "loan",
    ),
    "a loan forgets that it was lent": (
        f"UPDATE loan SET draws = 0 {OF} id = %(new)s",
        {"loans_stand_as_the_journal_says"},
        "new",
    ),
    "a loan says that it was charged off": (
        f"UPDATE loan SET ended_as = 'charged_off' {OF} id = %(loan)s",
        {"loans_stand_as_the_journal_says"},
        "loan",
    ),
    "a charged-off loan is open again": (
        f"UPDATE loan SET ended_as = NULL {OF} id = %(lost)s",
        {"loans_stand_as_the_journal_says"},
        "lost",
    ),
    "a refinanced loan says that it was charged off": (
        f"UPDATE loan SET ended_as = 'charged_off' {OF} id = %(old)s",
        {"loans_stand_as_the_journal_says"},
        "old",
    ),
    "the new loan is the one that is refinanced": (
        (
            f"UPDATE loan SET ended_as = NULL {OF} id = %(old)s;"
            f"UPDATE loan SET ended_as = 'refinanced' {OF} id = %(new)s"
        ),
        {"loans_stand_as_the_journal_says"},
        "new",
    ),
    "a charge-off becomes a reversal of itself": (
        f"{E} event_type = 'reversal' {OF} id = %(chargeoff)s",
        {"loans_stand_as_the_journal_says", "reversals_mirror_once"},
        "lost",
    ),
    # Masters
    "a program is deleted": (
        f"DELETE FROM program {OF} id = %(program)s",
        {"entries_belong_together", "terms_belong_together"},
        "loan",
    ),
    "a program loses its terms": (
        f"DELETE FROM program_terms {OF} program_id = %(program)s",
        {"terms_belong_together"},
        "program",
    ),
    "terms name a loan that does not exist": (
        f"UPDATE loan_terms SET loan_id = %(unknown)s {OF} loan_id = %(own_rate)s",
        {"terms_belong_together"},
        "unknown",
    ),
    "terms came with another entry than a restructure": (
        f"UPDATE loan_terms SET entry_id = %(fee)s {OF} loan_id = %(changed)s",
        {"terms_belong_together"},
        "changed",
    ),
    "terms hold from another date than their restructure": (
        f"UPDATE loan_terms SET effective_at = '2025-02-01' {OF} loan_id = %(changed)s",
        {"terms_belong_together"},
        "changed",
    ),
    "terms came with another loan's restructure": (
        f"UPDATE loan_terms SET entry_id = %(restructure)s {OF} loan_id = %(own_rate)s",
        {"terms_belong_together"},
        "own_rate",
    ),
    "an account is deleted": (
        f"DELETE FROM gl_account {OF} code = '1100'",
        {"lines_belong_together", "balances_belong_together", "balances_match_lines", "trial_balance_is_zero"},
        "payment",
    ),
    "an account changes its normal side": (
        f"UPDATE gl_account SET normal_side = 'CR' {OF} code = '1100'",
        {"balances_match_lines", "no_balance_was_ever_below_zero"},
        "loan",
    ),
    "the tenant is deleted": (
        "DELETE FROM tenant WHERE id = %(tenant)s",
        {"terms_belong_together"},
        "tenant",
    ),
    # What happens once
    "a reversal forgets what it reverses": (
        f"{E} reverses_entry_id = NULL {OF} id = %(reversal)s",
        {"reversals_mirror_once", "documents_match_rows"},
        "reversal",
    ),
    "a reversal reverses another entry": (
        f"{E} reverses_entry_id = %(payment)s {OF} id = %(reversal)s",
        {"reversals_mirror_once", "documents_match_rows"},
        "reversal",
    ),
    "a reversal reverses an entry that does not exist": (
        f"{E} reverses_entry_id = %(unknown)s {OF} id = %(reversal)s",
        {"reversals_mirror_once", "entries_belong_together"},
        "reversal",
    ),
    "an entry is reversed twice": (
        f"DROP INDEX journal_entry_one_reversal;{E} reverses_entry_id = %(twice)s {OF} id = %(fee)s",
        {"reversals_mirror_once"},
        "twice",
    ),
    "a reversal is reversed": (
        f"{E} event_type = 'reversal' {OF} id = %(twice)s",
        {"reversals_mirror_once"},
        "reversal",
    ),
    "a reversal is dated before what it reverses": (
        (
            f"{E} effective_at = '2025-02-01' {OF} id = %(reversal)s;"
            f"{L} effective_at = '2025-02-01' {OF} entry_id = %(reversal)s"
        ),
        {"reversals_mirror_once"},
        "reversal",
    ),
    "a reversal is smaller than what it reverses": (
        f"{L} amount_minor = 999 {OF} entry_id = %(reversal)s",
        {"reversals_mirror_once", "balances_match_lines"},
        "reversal",
    ),
    "a settlement forgets what it settles": (
        f"{E} settles_entry_id = NULL {OF} id = %(settlement)s",
        {"settlements_settle_once"},
        "settlement",
    ),
    "a settlement settles a payment": (
        f"{E} settles_entry_id = %(twice)s {OF} id = %(settlement)s",
        {"settlements_settle_once"},
        "settlement",
    ),
    "a disbursement is settled twice": (
        f"DROP INDEX journal_entry_one_settlement;{E} settles_entry_id = %(disbursement)s {OF} id = %(fee)s",
        {"settlements_settle_once"},
        "disbursement",
    ),
    "a settled disbursement is reversed": (
        f"{E} reverses_entry_id = %(disbursement)s {OF} id = %(reversal)s",
        {"settlements_settle_once", "reversals_mirror_once"},
        "disbursement",
    ),
    "a settled payment is reversed as well": (
        f"{E} reverses_entry_id = %(announced)s {OF} id = %(reversal)s",
        {"settlements_settle_once", "reversals_mirror_once"},
        "announced",
    ),
    "a settled payment is returned in the place of its settlement": (
        f"{E} reverses_entry_id = %(announced)s {OF} id = %(return)s",
        {"settlements_settle_once", "returns_give_back_what_came"},
        "announced",
    ),
    "a settlement of a payment is reversed": (
        f"{E} reverses_entry_id = %(came)s {OF} id = %(reversal)s",
        {"reversals_mirror_once"},
        "reversal",
    ),
    "a settlement settles an allocation": (
        f"{E} settles_entry_id = %(met)s {OF} id = %(came)s",
        {"settlements_settle_once"},
        "came",
    ),
    "a settlement leaves the announcement where it is": (
        f"{L} amount_minor = amount_minor - 1 {OF} entry_id = %(came)s AND layer = 'PENDING'",
        {"settlements_move_what_they_settle", "balances_match_lines"},
        "came",
    ),
    "a settlement settles for less": (
        f"{L} amount_minor = amount_minor - 1 {OF} entry_id = %(came)s AND layer = 'SETTLED'",
        {"settlements_move_what_they_settle"},
        "came",
    ),
    "a disbursement settles for more": (
        f"{L} amount_minor = amount_minor + 1 {OF} entry_id = %(settlement)s",
        {"settlements_move_what_they_settle"},
        "settlement",
    ),
    "a replan puts back less than was given": (
        f"{L} amount_minor = amount_minor - 1 {OF} entry_id = %(put_back)s",
        {"settlements_move_what_they_settle"},
        "put_back",
    ),
    "a return forgets what it returns": (
        f"{E} reverses_entry_id = NULL {OF} id = %(return)s",
        {"returns_give_back_what_came", "reversals_mirror_once"},
        "return",
    ),
    "a return returns a disbursement": (
        f"{E} reverses_entry_id = %(disbursement)s {OF} id = %(return)s",
        {"returns_give_back_what_came"},
        "return",
    ),
    "a return returns another loan's payment": (
        f"{E} reverses_entry_id = %(payment)s {OF} id = %(return)s",
        {"returns_give_back_what_came"},
        "return",
    ),
    "a return keeps some of the money": (
        f"{L} amount_minor = amount_minor - 1 {OF} entry_id = %(return)s AND account_code = '1000'",
        {"returns_give_back_what_came", "entries_balance"},
        "return",
    ),
    "a return does not say what it took back": (
        f"{E} facts = facts - 'undone' {OF} id = %(return)s",
        {"returns_give_back_what_came"},
        "return",
    ),
    "a return says that it took back what another return gave": (
        f"{E} facts = jsonb_set(facts, '{{undone}}', jsonb_build_object(%(late)s::text, '100')) {OF} id = %(return)s",
        {"returns_give_back_what_came"},
        "late",
    ),
    "an allocation that was taken back in part is reversed as well": (
        f"{E} reverses_entry_id = %(met)s {OF} id = %(reversal)s",
        {"returns_give_back_what_came", "reversals_mirror_once"},
        "met",
    ),
    "an allocation is smaller than what was taken back of it": (
        f"{L} amount_minor = 99 {OF} entry_id = %(met)s",
        {"returns_give_back_what_came", "balances_match_lines"},
        "met",
    ),
    "an entry moves into a closed period": (
        (
            f"{E} effective_at = '2025-01-20' {OF} id = %(payment)s;"
            f"{L} effective_at = '2025-01-20' {OF} entry_id = %(payment)s"
        ),
        {"closed_periods_stay_as_they_were"},
        "january",
    ),
    "an entry moves out of a closed period": (
        (
            f"{E} effective_at = '2025-02-09' {OF} id = %(disbursement)s;"
            f"{L} effective_at = '2025-02-09' {OF} entry_id = %(disbursement)s"
        ),
        {"closed_periods_stay_as_they_were"},
        "january",
    ),
    "a kept trial balance says another amount": (
        f"UPDATE period_close SET trial_balances = replace(trial_balances, '100000', '100001') {OF} through_date = '2025-01-31'",
        {"closed_periods_stay_as_they_were"},
        "january",
    ),
    "a kept trial balance has another total": (
        (
            "UPDATE period_close SET trial_balances = "
            'regexp_replace(trial_balances, \'"total_dr_minor":"[0-9]+"\', \'"total_dr_minor":"7"\') '
            f"{OF} through_date = '2025-01-31'"
        ),
        {"closed_periods_stay_as_they_were"},
        "january",
    ),
    "a kept trial balance is no JSON": (
        f"UPDATE period_close SET trial_balances = 'lost' {OF} through_date = '2025-01-31'",
        {"closed_periods_stay_as_they_were"},
        "january",
    ),
    "an accrual is forgotten": (
        f"DELETE FROM loan_accrual {OF} entry_id = %(accrual)s",
        {"accruals_are_live_once"},
        "accrual",
    ),
    "an accrual says other interest than its entry": (
        f"UPDATE loan_accrual SET interest_minor = 501 {OF} entry_id = %(accrual)s",
        {"accruals_are_live_once"},
        "accrual",
    ),
    "an accrual is of another date than its entry": (
        f"UPDATE loan_accrual SET accrual_date = '2025-02-09' {OF} entry_id = %(accrual)s",
        {"accruals_are_live_once"},
        "loan",
    ),
    "a date is accrued twice": (
        (
            "INSERT INTO loan_accrual SELECT tenant_id, loan_id, accrual_date, 1, entry_id, 0 "
            f"FROM loan_accrual {OF} entry_id = %(accrual)s"
        ),
        {"accruals_are_live_once"},
        "loan",
    ),
    "an accrual's first revision is gone": (
        f"DELETE FROM loan_accrual {OF} revision = 0 AND accrual_date = '2025-02-11'",
        {"accruals_are_live_once"},
        "loan",
    ),
    "a loan forgets interest that is posted": (
        f"UPDATE loan SET interest_posted_minor = interest_posted_minor - 1 {OF} id = %(nightly)s",
        {"interest_is_posted_once"},
        "nightly",
    ),
    "a loan's interest is counted wrongly": (
        f"UPDATE loan SET interest_exact = interest_exact + 1 {OF} id = %(counted)s",
        {"interest_is_exact"},
        "counted",
    ),
    "a charged-off loan forgets the interest that came with it": (
        f"UPDATE loan SET interest_posted_minor = 0 {OF} id = %(ended)s",
        {"interest_is_posted_once"},
        "ended",
    ),
    "a reversed accrual's days earn": (
        f"DELETE FROM accrual_pause {OF} reversed_revision IS NOT NULL AND loan_id = %(nightly)s",
        {"interest_is_posted_once"},
        "nightly",
    ),
    "days are paused by no reversal": (
        f"UPDATE accrual_pause SET to_date = to_date + 1 {OF} reversed_revision IS NOT NULL AND loan_id = %(nightly)s",
        {"interest_is_posted_once"},
        "nightly",
    ),
    "an accrual of a run says that a client made it": (
        f"UPDATE loan_accrual SET since = NULL {OF} loan_id = %(nightly)s AND accrual_date = '2025-03-20'",
        {"interest_is_posted_once"},
        "nightly",
    ),
    "a run's total is not its entries'": (
        f"UPDATE accrual_chunk SET total_minor = total_minor + 1 {OF} run_id = %(run)s",
        {"accrual_runs_add_up"},
        "run",
    ),
    "a run has counted a loan too many": (
        f"UPDATE accrual_chunk SET accrued_count = accrued_count + 1 {OF} run_id = %(run)s",
        {"accrual_runs_add_up"},
        "run",
    ),
    "a run leaves loans out": (
        f"UPDATE accrual_chunk SET through_id = %(unknown)s {OF} run_id = %(run)s",
        {"accrual_runs_add_up"},
        "run",
    ),
    "a run has ended too early": (
        f"UPDATE accrual_chunk SET done_at = NULL {OF} run_id = %(run)s",
        {"accrual_runs_add_up"},
        "run",
    ),
    "a run is gone": (
        f"DELETE FROM accrual_run {OF} id = %(run)s",
        {"accrual_runs_add_up"},
        "run",
    ),
    "an exception is of another program's loan": (
        f"UPDATE accrual_exception SET loan_id = %(other)s {OF} run_id = %(run)s",
        {"accrual_runs_add_up"},
        "other",
    ),
    "an outbox message is lost": (
        f"DELETE FROM outbox_message {OF} entry_id = %(payment)s",
        {"outbox_has_each_entry_once"},
        "payment",
    ),
    "an outbox message is there twice": (
        "INSERT INTO outbox_message (tenant_id, created_xid, entry_id) VALUES (%(tenant)s, '7', %(payment)s)",
        {"outbox_has_each_entry_once"},
        "payment",
    ),
    "an outbox message is of another transaction": (
        f"UPDATE outbox_message SET created_xid = '7' {OF} entry_id = %(payment)s",
        {"outbox_has_each_entry_once"},
        "payment",
    ),
    "an outbox message is of no entry": (
        "INSERT INTO outbox_message (tenant_id, entry_id) VALUES (%(tenant)s, %(unknown)s)",
        {"outbox_has_each_entry_once"},
        "unknown",
    ),
    "a key's answer names an entry that does not exist": (
        f"UPDATE idempotency_key SET response = replace(response, %(payment)s, %(unknown)s) {OF} key = %(key)s",
        {"keys_point_to_entries"},
        "key",
    ),
    "a stored answer says another allocation": (
        f"""UPDATE idempotency_key SET response = json_build_object(
                'journal_entry_id', %(payment)s, 'allocation', json_build_object('fees_minor', '7')) {OF} key = %(key)s""",
        {"keys_point_to_entries"},
        "key",
    ),
    "a stored answer says another time": (
        f'UPDATE idempotency_key SET response = replace(response, \'"posted_at":"20\', \'"posted_at":"19\') {OF} key = %(key)s',
        {"keys_point_to_entries"},
        "key",
    ),
    "a key's answer is cut off": (
        f"UPDATE idempotency_key SET response = left(response, 20) {OF} key = %(key)s",
        {"keys_point_to_entries"},
        "key",
    ),
    # Sealed history
    "a sealed document changes, and its hash with it": (
        f"{E} document = replace(document, '20000', '20001') {OF} id = %(payment)s; {REHASH}",
        {"sealed_history_holds", "documents_match_rows"},
        "payment",
    ),
    "a sealed entry is deleted with all that belongs to it": (
        (
            f"DELETE FROM outbox_message {OF} entry_id = %(fee)s; DELETE FROM journal_line {OF} entry_id = %(fee)s;"
            f"DELETE FROM journal_entry {OF} id = %(fee)s"
        ),
        {"sealed_history_holds"},
        "one",
    ),
    "an entry is put in among sealed ones": (
        (
            "INSERT INTO journal_entry SELECT (jsonb_populate_record(e, jsonb_build_object('id', %(unknown)s, 'created_xid', '7',"
            f" 'document', e.document || ' '))).* FROM journal_entry e {OF} e.id = %(fee)s;"
            f"INSERT INTO outbox_message (tenant_id, entry_id, created_xid) VALUES (%(tenant)s, %(unknown)s, '7')"
        ),
        {"sealed_history_holds"},
        "unknown",
    ),
    "two sealed entries change places": (
        (
            f"UPDATE outbox_message SET created_xid = '5' {OF} entry_id = %(payment)s;"
            f"{E} created_xid = '5' {OF} id = %(payment)s"
        ),
        {"sealed_history_holds"},
        "payment",
    ),
    "a block is deleted": (
        "DELETE FROM journal_seal WHERE tenant_id = %(tenant)s AND number = %(two)s",
        {"sealed_history_holds"},
        "three",
    ),
    "the first block is deleted": (
        "DELETE FROM journal_seal WHERE tenant_id = %(tenant)s AND number = %(one)s",
        {"sealed_history_holds"},
        "two",
    ),
    "a block's root changes": (
        f"UPDATE journal_seal SET merkle_root = sha256('lost') {OF} number = %(two)s",
        {"sealed_history_holds"},
        "two",
    ),
    "a block's leaves change": (
        f"UPDATE journal_seal SET leaves = sha256('lost') || substring(leaves FROM 33) {OF} number = %(two)s",
        {"sealed_history_holds"},
        "two",
    ),
    "a block's leaves change with its root and its hash": (
        (
            f"UPDATE journal_seal SET leaves = sha256('lost') || substring(leaves FROM 33) {OF} number = %(two)s;"
            f"{ROOT} {OF} number = %(two)s; {HASH} {OF} number = %(two)s"
        ),
        {"sealed_history_holds"},
        "two",
    ),
    "the last block is made anew for a changed entry": (
        (
            f"{E} document = document || ' ' {OF} id = %(latest)s;"
            f"{E} content_hash = sha256(convert_to(document, 'UTF8')) {OF} id = %(latest)s;"
            f"UPDATE journal_seal s SET leaves = sha256('\\x00'::bytea || convert_to(e.document, 'UTF8')) FROM journal_entry e"
            f" WHERE s.tenant_id = %(tenant)s AND s.number = %(three)s AND e.tenant_id = s.tenant_id AND e.id = %(latest)s;"
            f"{ROOT} {OF} number = %(three)s; {HASH} {OF} number = %(three)s"
        ),
        {"sealed_history_holds", "documents_match_rows"},
        "three",
    ),
    "a block counts more entries than it has": (
        f"UPDATE journal_seal SET entry_count = entry_count + 1 {OF} number = %(two)s",
        {"sealed_history_holds"},
        "two",
    ),
    "a block follows another one": (
        f"UPDATE journal_seal SET previous_hash = sha256('lost') {OF} number = %(two)s",
        {"sealed_history_holds"},
        "two",
    ),
    "a block's hash changes": (
        f"UPDATE journal_seal SET hash = sha256('lost') {OF} number = %(three)s",
        {"sealed_history_holds"},
        "three",
    ),
    "a block ends elsewhere": (
        f"UPDATE journal_seal SET last_xid = '9' {OF} number = %(two)s",
        {"sealed_history_holds"},
        "two",
    ),
    "a signature changes": (
        f"UPDATE journal_seal SET signature = sha256(signature) || sha256(signature) {OF} number = %(three)s",
        {"sealed_history_holds"},
        "three",
    ),
    "a signature goes": (
        f"UPDATE journal_seal SET signature = NULL, key_id = NULL {OF} number = %(three)s",
        {"sealed_history_holds"},
        "three",
    ),
    "a block names a key that nobody has": (
        f"UPDATE journal_seal SET key_id = repeat('0', 64) {OF} number = %(two)s",
        {"sealed_history_holds"},
        "two",
    ),
}


def test_sound_books_keep_every_promise(story: Story) -> None:
    assert found(story.books.tenant_id) == {}


def test_switching_the_walls_off_breaks_nothing_by_itself(story: Story) -> None:
    with damaged(story, "SELECT 1") as cursor:
        assert _said(cursor) == {}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_seen_and_the_row_is_named(story: Story, name: str) -> None:
    damage, expected, bad = DAMAGES[name]
    with damaged(story, damage) as cursor:
        said = _said(cursor)
    assert expected <= said.keys(), said
    named = [value for breaches in said.values() for breach in breaches for value in breach.row.values()]
    assert story.names[bad] in named, said
    assert all(breach.problem for breaches in said.values() for breach in breaches)


def test_every_check_has_a_damage_that_it_sees() -> None:
    assert set().union(*(expected for _, expected, _ in DAMAGES.values())) == ALL


def test_every_table_of_a_tenant_is_damaged_once() -> None:
    # The feed proves itself (tests/webhooks/test_relay.py); endpoints, deliveries and statements are no books.
    ours = {model._meta.db_table for model in apps.get_app_config("ledger").get_models()} & {*tenant_tables()}
    # What is told of other apps' rows: theirs to prove.
    ours.remove("notice")
    missing = [table for table in sorted(ours) if not any(table in damage for damage, _, _ in DAMAGES.values())]
    assert missing == [], f"Add damages of {missing} to DAMAGES, and checks that see them."


def test_a_check_names_no_more_rows_than_one_can_read(story: Story) -> None:
    with damaged(story, f"{E} content_hash = sha256('lost') WHERE tenant_id = %(tenant)s") as cursor:
        assert len(checks.documents_match_rows(cursor)) == checks.NAMED


def test_the_checks_look_at_one_tenant(story: Story) -> None:
    with damaged(story, f"{E} content_hash = sha256('lost') {OF} id = %(payment)s") as cursor:
        assert "documents_match_rows" in _said(cursor)
        cursor.execute("SELECT set_config('hpts.tenant_id', %s, true)", (story.names["stranger"],))
        assert checks.documents_match_rows(cursor) == [], "row security hides the damage from another tenant"


def test_every_tenant_is_listed_and_one_without_its_row_too(story: Story) -> None:
    from hpts.models import ApiClient

    lost = str(uuid.uuid4())
    client = ApiClient.objects.create(
        tenant_id=lost,
        allowed_scopes="hpts:ledger:read",
        client_type=ApiClient.CLIENT_CONFIDENTIAL,
        authorization_grant_type=ApiClient.GRANT_CLIENT_CREDENTIALS,
    )
    try:
        listed = queries.tenants()
        assert {story.books.tenant_id, story.names["stranger"], lost} <= set(listed)
        assert len(listed) == len(set(listed))
        assert found(lost).keys() == {"terms_belong_together"}
    finally:
        client.delete()


@pytest.mark.parametrize("role", ["default", "readonly"])
def test_a_role_lists_the_tenants_and_still_sees_none_of_their_rows(story: Story, role: str) -> None:
    with connections[role].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM tenant_ids()")
        assert cursor.fetchone()[0] >= 2
        cursor.execute("SELECT count(*) FROM tenant")
        assert cursor.fetchone()[0] == 0


def test_nobody_else_lists_the_tenants() -> None:
    with connections[SUPERUSER].cursor() as cursor:
        cursor.execute(
            """SELECT coalesce(array_agg(grantee::regrole::text ORDER BY 1), '{}')
               FROM pg_proc, aclexplode(proacl) WHERE proname = 'tenant_ids'"""
        )
        granted: list[Any] = cursor.fetchone()[0]
    assert sorted(granted) == ["hpts_app", "hpts_owner", "hpts_readonly"]
