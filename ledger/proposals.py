"""Maker and checker: a correction that one person of the staff proposes, and that is posted when another one approves it.

What is proposed is an operation of the API with its path and body, so that it meets the same shape, rule and walls. It is tried
when it is proposed, shown as the lines that it would post, and posted in the transaction of its approval; the caller's reason is
kept with each step. That the two are two people, that there is one decision, and that staff corrects nothing without one is
PostgreSQL's (migrations/0010_proposals.sql); here is the message.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from django.db.backends.utils import CursorWrapper

from hpts import audit, fields
from hpts.audit import Caller
from hpts.problems import NotFound
from hpts.tenancy import current_tenant, tenant_transaction
from ledger import operations, queries
from ledger.errors import OwnProposal, PlanOutdated, ProposalDecided
from ledger.idempotency import Call, fingerprint, once
from ledger.operations import Write
from ledger.posting import Origin, Posting, opened, with_retries

# What may be proposed, by operation. Each answers the one entry that it posts as `journal_entry_id`.
PROPOSABLE: dict[str, Write[Any]] = {
    write.operation_id: write for write in (operations.create_reversal, operations.create_journal_entry)
}


@dataclass(frozen=True, slots=True)
class Proposed:
    """An operation as it would be sent."""

    operation_id: str
    path: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def write(self) -> Write[Any]:
        return PROPOSABLE[self.operation_id]

    def parsed(self) -> Any:
        """The body in its operation's shape. Raises ValidationFailed, as the API does."""
        return fields.parse(self.body, self.write.shape)


@dataclass(frozen=True, slots=True)
class Preview:
    """The entry that would be posted, as the API shows entries, and what its content is known by."""

    entry: dict[str, Any]
    digest: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposal as it is kept, and its decision when there is one."""

    proposal_id: str
    proposed: Proposed
    reason: str
    maker: str
    proposed_at: datetime
    decision: str | None
    decided_by: str | None
    decided_at: datetime | None
    decision_reason: str | None
    entry_id: str | None


# --- The maker -------------------------------------------------------------------------------------------------------


def preview(caller: Caller, proposed: Proposed) -> Preview:
    """What would be posted now. It is posted and taken back, so rules and walls have said all that they would say."""
    body = proposed.parsed()

    def attempt() -> Preview:
        with opened(Origin.of(caller), proposed.write.touches(body, proposed.path)) as (posting, _):
            assert posting is not None
            return _tried(posting, proposed, body)

    return with_retries(attempt)


def propose(caller: Caller, key: str, proposed: Proposed) -> str:
    """Keep a proposal that could be posted now; gives its id. Once for a key. Raises what posting it would raise."""
    body = proposed.parsed()
    content = [proposed.operation_id, proposed.path, proposed.body, caller.reason]

    def work(posting: Posting) -> dict[str, Any]:
        _tried(posting, proposed, body)
        proposal_id = str(uuid.uuid4())
        posting.cursor.execute(
            """INSERT INTO proposal (tenant_id, id, operation_id, path, body, reason, maker)
               VALUES (%s, %s, %s, %s::jsonb, %s::jsonb, %s, %s)""",
            (
                current_tenant(),
                proposal_id,
                proposed.operation_id,
                msgspec.json.encode(proposed.path).decode(),
                msgspec.json.encode(proposed.body).decode(),
                caller.reason,
                caller.actor,
            ),
        )
        _audited(posting.cursor, caller, "create", proposal_id, proposed.operation_id)
        return {"proposal_id": proposal_id}

    call = Call(Origin.of(caller), key, fingerprint("propose", {}, content))
    done = once(call, proposed.write.touches(body, proposed.path), work)
    return str(msgspec.json.decode(done.body)["proposal_id"])


def withdraw(caller: Caller, proposal_id: str) -> None:
    """Its maker takes an open proposal back. Raises NotFound, ProposalDecided, OwnProposal for anybody else's."""
    _close(caller, proposal_id, "withdrawn")


# --- The checker -----------------------------------------------------------------------------------------------------


def approve(caller: Caller, proposal_id: str, seen: str) -> str:
    """Post what was proposed, in the caller's name; gives the entry's id. The proposal's own key sees to it that it is posted
    once, however often it is approved, and that an approval which died on its way may be repeated.

    `seen`: the digest of the preview that the caller looked at. Raises NotFound, OwnProposal, ProposalDecided, PlanOutdated,
    and what the ledger refuses: then the proposal is open as before.
    """
    with tenant_transaction(caller.tenant_id) as cursor:
        proposed = find(cursor, proposal_id).proposed
    body = proposed.parsed()

    def work(posting: Posting) -> dict[str, Any]:
        proposal = _open(posting.cursor, caller, proposal_id, is_maker=False)
        entry_id = _posted(posting, proposed, body)
        if _shown(posting.cursor, entry_id).digest != seen:
            raise PlanOutdated("It would post other lines than those that you have seen. Look at it again.")
        _decide(posting.cursor, caller, proposal, "approved", entry_id)
        return {"proposal_id": proposal_id, "journal_entry_id": entry_id}

    call = Call(Origin.of(caller), f"proposal:{proposal_id}", fingerprint("approveProposal", {"id": proposal_id}, {}))
    done = once(call, proposed.write.touches(body, proposed.path), work)
    return str(msgspec.json.decode(done.body)["journal_entry_id"])


def reject(caller: Caller, proposal_id: str) -> None:
    """Nothing is posted. Raises NotFound, OwnProposal, ProposalDecided."""
    _close(caller, proposal_id, "rejected")


# --- Both ------------------------------------------------------------------------------------------------------------


def find(cursor: CursorWrapper, proposal_id: str) -> Proposal:
    """Raises NotFound."""
    found = queries.proposal(cursor, proposal_id=proposal_id)
    if found is None:
        raise NotFound(f"There is no proposal {proposal_id}.")
    operation_id, path, body, *rest = found
    return Proposal(proposal_id, Proposed(operation_id, path, body), *rest)


def _open(cursor: CursorWrapper, caller: Caller, proposal_id: str, *, is_maker: bool) -> Proposal:
    """A proposal that the caller may decide: its maker to withdraw it, anybody else to approve or reject it."""
    proposal = find(cursor, proposal_id)
    if proposal.decision is not None:
        raise ProposalDecided(f"The proposal was {proposal.decision} by {proposal.decided_by}.")
    if (proposal.maker == caller.actor) is not is_maker:
        raise OwnProposal(
            f"Only {proposal.maker} may withdraw it."
            if is_maker
            else "Another person than its maker decides a proposal."
        )
    return proposal


def _close(caller: Caller, proposal_id: str, decision: str) -> None:
    def attempt() -> None:
        with tenant_transaction(caller.tenant_id) as cursor:
            proposal = _open(cursor, caller, proposal_id, is_maker=decision == "withdrawn")
            _decide(cursor, caller, proposal, decision)

    with_retries(attempt)


def _decide(
    cursor: CursorWrapper, caller: Caller, proposal: Proposal, decision: str, entry_id: str | None = None
) -> None:
    cursor.execute(
        """INSERT INTO proposal_decision (tenant_id, proposal_id, maker, decided_by, decision, reason, entry_id)
           VALUES (%s, %s, %s, %s, %s, %s, %s)""",
        (current_tenant(), proposal.proposal_id, proposal.maker, caller.actor, decision, caller.reason, entry_id),
    )
    verb = {"approved": "approve", "rejected": "reject", "withdrawn": "withdraw"}[decision]
    _audited(cursor, caller, verb, proposal.proposal_id, f"entry {entry_id}" if entry_id else None)


def _audited(cursor: CursorWrapper, caller: Caller, verb: str, proposal_id: str, detail: str | None) -> None:
    audit.record(caller, f"{verb}Proposal", about=("proposal", proposal_id), detail=detail, cursor=cursor)


def _tried(posting: Posting, proposed: Proposed, body: Any) -> Preview:
    with posting.taken_back():
        return _shown(posting.cursor, _posted(posting, proposed, body))


def _posted(posting: Posting, proposed: Proposed, body: Any) -> str:
    entry_id = str(proposed.write.run(posting, body, proposed.path)["journal_entry_id"])
    posting.flush()
    return entry_id


def _shown(cursor: CursorWrapper, entry_id: str) -> Preview:
    """An entry of this transaction. What counts of it is what it does to the books, not when and as which id."""
    document = queries.entry(cursor, entry_id=entry_id)
    assert document is not None
    entry = msgspec.json.decode(document)
    counts = [entry.get(name) for name in ("event_type", "effective_at", "reverses_entry_id", "lines")]
    digest = hashlib.sha256(msgspec.json.encode(counts, order="sorted")).hexdigest()
    return Preview(entry, digest)
