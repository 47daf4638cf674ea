"""Maker and checker: two people, one decision, one entry; by the function, by raw SQL, and when two come at once."""

from __future__ import annotations

import json
import uuid
from datetime import date
from typing import Any

import pytest
from django.db import connections

from hpts.audit import Caller
from hpts.problems import InternalError, NotFound, ValidationFailed
from hpts.tenancy import tenant_transaction
from ledger import masters, proposals
from ledger.errors import AlreadyReversed, OwnProposal, PeriodClosed, PlanOutdated, ProposalDecided, UnbalancedEntry
from ledger.events import SETTLED, Line
from ledger.posting import Origin, post
from ledger.proposals import Proposed
from tests.conftest import line
from tests.ledger.conftest import Books, nothing_changes, race, refused, session

ON = "2025-03-01"


def anna(books: Books, reason: str = "Agreed") -> Caller:
    return Caller("staff:anna", books.tenant_id, reason=reason)


def bert(books: Books, reason: str = "Agreed") -> Caller:
    return Caller("staff:bert", books.tenant_id, reason=reason)


def carla(books: Books, reason: str = "Agreed") -> Caller:
    return Caller("staff:carla", books.tenant_id, reason=reason)


def adjustment(*lines: dict[str, Any], on: str = ON) -> Proposed:
    body = {
        "effective_at": on,
        "description": "Bank fee",
        "lines": list(lines) or [line("1000", "DR", 7), line("4000", "CR", 7)],
    }
    return Proposed("createJournalEntry", {}, body)


def reversal(entry_id: str) -> Proposed:
    return Proposed("createReversal", {}, {"reverses_entry_id": entry_id, "reason_code": "other", "effective_at": ON})


def key() -> str:
    return f"test-{uuid.uuid4()}"


def proposed(books: Books, what: Proposed | None = None) -> str:
    return proposals.propose(anna(books, "The bank took a fee"), key(), what or adjustment())


def seen(books: Books, what: Proposed | None = None) -> str:
    return proposals.preview(bert(books), what or adjustment()).digest


def approved(books: Books, proposal_id: str, caller: Caller | None = None) -> str:
    return proposals.approve(caller or bert(books), proposal_id, seen(books))


def log(books: Books) -> list[tuple[Any, ...]]:
    return books.rows("SELECT actor, action, object_id, reason FROM audit_record ORDER BY id")


# --- The way it goes -------------------------------------------------------------------------------------------------


def test_what_one_proposes_another_has_posted(books: Books) -> None:
    before = books.entries()
    proposal_id = proposed(books)
    assert books.entries() == before
    entry_id = approved(books, proposal_id)
    ((actor, kind),) = books.rows(
        "SELECT document::jsonb->>'actor', event_type FROM journal_entry WHERE id = %s", entry_id
    )
    assert (actor, kind) == ("staff:bert", "manual_adjustment")
    assert books.entries() == before + 1
    assert books.rows("SELECT maker, decided_by, decision, reason, entry_id::text FROM proposal_decision") == [
        ("staff:anna", "staff:bert", "approved", "Agreed", entry_id)
    ]


def test_a_reversal_is_proposed_alike(books: Books) -> None:
    entry_id = str(books.rows("SELECT id::text FROM journal_entry WHERE event_type = 'manual_adjustment'")[0][0])
    what = reversal(entry_id)
    proposal_id = proposed(books, what)
    mirror = proposals.approve(bert(books), proposal_id, seen(books, what))
    assert books.rows("SELECT reverses_entry_id::text FROM journal_entry WHERE id = %s", mirror) == [(entry_id,)]


def test_the_preview_is_what_is_posted_then(books: Books) -> None:
    lines = [line("1300", "DR", 9, loan_id=books.loan.loan_id), line("4100", "CR", 9, loan_id=books.loan.loan_id)]
    what = adjustment(*lines)
    with nothing_changes(books):
        shown = proposals.preview(bert(books), what)
    proposal_id = proposed(books, what)
    entry_id = proposals.approve(bert(books), proposal_id, shown.digest)
    ((document,),) = books.rows("SELECT document FROM journal_entry WHERE id = %s", entry_id)
    posted = json.loads(document)["lines"]
    assert shown.entry["lines"] == posted
    assert [each["direction"] for each in posted] == ["DR", "CR"]


def test_each_step_is_in_the_audit_log_with_its_reason(books: Books) -> None:
    one, other, third = proposed(books), proposed(books), proposed(books)
    approved(books, one)
    proposals.reject(bert(books, "Not ours"), other)
    proposals.withdraw(anna(books, "A typing error"), third)
    assert log(books)[3:] == [
        ("staff:bert", "approveProposal", one, "Agreed"),
        ("staff:bert", "rejectProposal", other, "Not ours"),
        ("staff:anna", "withdrawProposal", third, "A typing error"),
    ]
    assert [row[:2] for row in log(books)[:3]] == [("staff:anna", "createProposal")] * 3


# --- Two people ------------------------------------------------------------------------------------------------------


def test_a_maker_does_not_approve_or_reject(books: Books) -> None:
    proposal_id = proposed(books)
    with nothing_changes(books):
        with pytest.raises(OwnProposal, match="Another person than its maker"):
            approved(books, proposal_id, anna(books))
        with pytest.raises(OwnProposal, match="Another person than its maker"):
            proposals.reject(anna(books, "Mine"), proposal_id)


def test_only_the_maker_withdraws(books: Books) -> None:
    proposal_id = proposed(books)
    with nothing_changes(books), pytest.raises(OwnProposal, match="Only staff:anna may withdraw it"):
        proposals.withdraw(bert(books, "Not mine"), proposal_id)


DECIDE = """INSERT INTO proposal_decision (tenant_id, proposal_id, maker, decided_by, decision, reason, entry_id)
            VALUES (%s, %s, %s, %s, %s, 'why', %s)"""


@pytest.mark.parametrize("decision", ["approved", "rejected"])
def test_the_database_refuses_a_maker_who_decides(books: Books, decision: str) -> None:
    proposal_id = proposed(books)
    entry_id = _entry(books) if decision == "approved" else None
    wall = ("HP021", "proposal_decision_posts") if entry_id else ("23514", "proposal_decision_two_people")
    with nothing_changes(books), refused(*wall), session("app", books.tenant_id) as connection:
        connection.execute(DECIDE, (books.tenant_id, proposal_id, "staff:anna", "staff:anna", decision, entry_id))


def test_the_database_refuses_a_maker_under_another_name(books: Books) -> None:
    """The maker that the two names are compared by is the one who proposed."""
    proposal_id = proposed(books)
    with (
        nothing_changes(books),
        refused("23503", "proposal_decision_proposal"),
        session("app", books.tenant_id) as connection,
    ):
        connection.execute(DECIDE, (books.tenant_id, proposal_id, "staff:eve", "staff:anna", "rejected", None))


def test_the_database_refuses_somebody_else_who_withdraws(books: Books) -> None:
    proposal_id = proposed(books)
    with (
        nothing_changes(books),
        refused("23514", "proposal_decision_two_people"),
        session("app", books.tenant_id) as connection,
    ):
        connection.execute(DECIDE, (books.tenant_id, proposal_id, "staff:anna", "staff:bert", "withdrawn", None))


def test_the_database_refuses_an_approval_that_posts_nothing(books: Books) -> None:
    proposal_id = proposed(books)
    for entry_id, wall in ((None, ("23514", "proposal_decision_entry")), (_entry(books), ("HP021", None))):
        with nothing_changes(books), refused(*wall), session("app", books.tenant_id) as connection:
            connection.execute(DECIDE, (books.tenant_id, proposal_id, "staff:anna", "staff:bert", "approved", entry_id))


def test_the_database_refuses_a_maker_who_approves_although_the_function_does_not(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposal_id = proposed(books)
    monkeypatch.setattr(
        proposals, "_open", lambda cursor, caller, proposal_id, is_maker: proposals.find(cursor, proposal_id)
    )
    with nothing_changes(books), pytest.raises(OwnProposal):
        approved(books, proposal_id, anna(books))


def test_the_database_refuses_a_correction_of_staff_that_nobody_approved(books: Books) -> None:
    """As a fault of the admin would make it: through the write path, in the name of one person."""
    event = books.adjustment(ON, Line("1000", "DR", 7, "USD", SETTLED), Line("4000", "CR", 7, "USD", SETTLED))
    origin = Origin(books.tenant_id, "staff:anna", str(uuid.uuid4()))
    with nothing_changes(books), pytest.raises(InternalError):
        post(origin, event)
    entry_id = books.post(event).journal_entry_id
    with nothing_changes(books), pytest.raises(InternalError):
        post(origin, books.reversal(entry_id))


# --- One decision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["app", "readonly", "owner", "superuser"])
@pytest.mark.parametrize("table", ["proposal", "proposal_decision"])
@pytest.mark.parametrize("attack", ["UPDATE {} SET reason = 'other'", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
def test_neither_proposal_nor_decision_changes(books: Books, role: str, table: str, attack: str) -> None:
    approved(books, proposed(books))
    sqlstate = "HP001" if role in ("owner", "superuser") else "42501"
    with nothing_changes(books), refused(sqlstate), session(role, books.tenant_id) as connection:
        connection.execute(attack.format(table))


def test_what_is_decided_is_not_decided_again(books: Books) -> None:
    proposal_id = proposed(books)
    proposals.reject(bert(books, "Not ours"), proposal_id)
    with nothing_changes(books):
        with pytest.raises(ProposalDecided, match="rejected by staff:bert"):
            approved(books, proposal_id, carla(books))
        with pytest.raises(ProposalDecided):
            proposals.withdraw(anna(books, "Too late"), proposal_id)


def test_a_second_click_posts_nothing_more(books: Books) -> None:
    proposal_id = proposed(books)
    first = approved(books, proposal_id)
    with nothing_changes(books):
        assert approved(books, proposal_id) == first


def test_a_form_that_is_sent_twice_proposes_once(books: Books) -> None:
    once = key()
    first = proposals.propose(anna(books), once, adjustment())
    assert proposals.propose(anna(books), once, adjustment()) == first
    assert books.rows("SELECT count(*) FROM proposal") == [(1,)]


def test_two_who_approve_at_once_post_one_entry(books: Books) -> None:
    before, proposal_id, digest = books.entries(), proposed(books), seen(books)
    outcomes = race(
        lambda: proposals.approve(bert(books), proposal_id, digest),
        lambda: proposals.approve(carla(books), proposal_id, digest),
    )
    assert books.entries() == before + 1
    assert books.rows("SELECT count(*) FROM proposal_decision") == [(1,)]
    entries = {each for each in outcomes if isinstance(each, str)}
    assert len(entries) == 1
    codes = {getattr(each, "code", None) for each in outcomes if isinstance(each, Exception)}
    assert codes <= {"idempotency_in_progress", "proposal_decided"}


def test_one_who_approves_and_one_who_rejects_at_once_make_one_decision(books: Books) -> None:
    before, proposal_id, digest = books.entries(), proposed(books), seen(books)
    race(
        lambda: proposals.approve(bert(books), proposal_id, digest),
        lambda: proposals.reject(carla(books, "Not ours"), proposal_id),
    )
    ((decision,),) = books.rows("SELECT decision FROM proposal_decision")
    assert books.entries() == before + (decision == "approved")


def test_an_approval_that_died_on_its_way_is_repeated(books: Books) -> None:
    """Its connection is killed when all has been written but COMMIT."""
    before, proposal_id, digest = books.entries(), proposed(books), seen(books)
    decide = proposals._decide

    def die(*args: Any) -> None:
        decide(*args)
        with session("superuser") as killer:
            killer.execute("SELECT pg_terminate_backend(%s)", (connections["default"].connection.info.backend_pid,))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proposals, "_decide", die)
        with nothing_changes(books), pytest.raises(Exception, match=r"terminat|closed|lost"):
            proposals.approve(bert(books), proposal_id, digest)
    proposals.approve(bert(books), proposal_id, digest)
    assert books.entries() == before + 1


# --- What is refused -------------------------------------------------------------------------------------------------


def test_what_could_not_be_posted_is_not_proposed(books: Books) -> None:
    unbalanced = adjustment(line("1000", "DR", 7), line("4000", "CR", 8))
    malformed = Proposed("createJournalEntry", {}, {"lines": []})
    with nothing_changes(books):
        with pytest.raises(UnbalancedEntry):
            proposed(books, unbalanced)
        with pytest.raises(ValidationFailed):
            proposed(books, malformed)


def test_what_the_books_refuse_at_approval_stays_open(books: Books) -> None:
    proposal_id, digest = proposed(books), seen(books)
    with tenant_transaction(books.tenant_id) as cursor:
        masters.close_period(cursor, through_date=date.fromisoformat(ON), actor="client:test")
    with nothing_changes(books), pytest.raises(PeriodClosed):
        proposals.approve(bert(books), proposal_id, digest)
    proposals.reject(bert(books, "The period is closed"), proposal_id)


def test_of_two_proposals_to_reverse_one_entry_one_is_posted(books: Books) -> None:
    entry_id = str(books.rows("SELECT id::text FROM journal_entry WHERE event_type = 'manual_adjustment'")[0][0])
    what = reversal(entry_id)
    one, other, digest = proposed(books, what), proposed(books, what), seen(books, what)
    proposals.approve(bert(books), one, digest)
    with nothing_changes(books), pytest.raises(AlreadyReversed):
        proposals.approve(bert(books), other, digest)


def test_nobody_approves_other_lines_than_those_that_they_saw(books: Books) -> None:
    proposal_id = proposed(books)
    other = seen(books, adjustment(line("1000", "DR", 8), line("4000", "CR", 8)))
    with nothing_changes(books), pytest.raises(PlanOutdated):
        proposals.approve(bert(books), proposal_id, other)


def test_another_tenants_proposal_does_not_exist(books: Books, other_books: Books) -> None:
    proposal_id = proposed(books)
    elsewhere = Caller("staff:bert", other_books.tenant_id)
    with nothing_changes(books, other_books):
        for decide in (proposals.reject, proposals.withdraw):
            with pytest.raises(NotFound):
                decide(elsewhere, proposal_id)
        with pytest.raises(NotFound):
            proposals.approve(elsewhere, proposal_id, "digest")


def _entry(books: Books) -> str:
    return str(books.rows("SELECT id::text FROM journal_entry LIMIT 1")[0][0])
