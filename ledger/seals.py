"""The sealer: the tenant's entries, in the order of the bounded cursor, become blocks that chain to each other and are signed.

It runs behind the postings and takes no lock that one of them could want. A block is one transaction, and its last entry is
the cursor of the next, so that a killed sealer leaves nothing behind and a second one finds nothing to do. What a block must be
is proven again by the wall (migrations/0007_seals.sql); what it proves to others is docs/seals.md.
"""

from __future__ import annotations

import base64
import time
from typing import Any, NamedTuple

import msgspec
from django.db.backends.utils import CursorWrapper

from hpts.tenancy import current_tenant, take_turn, tenant_transaction
from ledger import merkle, queries
from ledger.seal_keys import seal_keys

# A block's entries, and its lines if those are more: the documents of so many lines are hashed within a second.
BLOCK_ENTRIES = 4_096
BLOCK_LINES = 100_000
GENESIS = bytes(32)
# A statement that hashes a block of the largest entries may take longer than a request's.
_PATIENCE = "SET LOCAL statement_timeout = '60s'"


class SealerStuck(RuntimeError):
    """The sealer cannot go on by itself: somebody must act."""


class Head(NamedTuple):
    """The last block: where the next one begins. `is_signed` says whether its key's signature is there."""

    number: int
    hash: bytes
    last_xid: str
    last_entry_id: str
    is_signed: bool


NO_BLOCK = Head(0, GENESIS, "0", "00000000-0000-0000-0000-000000000000", False)


def block_hash(*, number: int, merkle_root: bytes, previous_hash: bytes, tenant_id: str, entry_count: int) -> bytes:
    """SHA-256 of the block's RFC 8785 JSON: ASCII names, hexadecimal digits, two small integers."""
    members = {
        "entry_count": entry_count,
        "merkle_root": merkle_root.hex(),
        "number": number,
        "previous_hash": previous_hash.hex(),
        "tenant_id": tenant_id,
    }
    return merkle.sha256(msgspec.json.encode(members, order="sorted"))


def seal_all(*, seconds: float) -> int:
    """Seal what waits, one block of each tenant after the other, for so long at most; gives the number of blocks."""
    deadline = time.monotonic() + seconds
    blocks = 0
    waiting = [each.tenant_id for each in queries.unsealed() if each.is_final]
    while waiting and time.monotonic() < deadline:
        waiting = [tenant_id for tenant_id in waiting if time.monotonic() < deadline and seal(tenant_id)]
        blocks += len(waiting)
    return blocks


def seal(tenant_id: str) -> int:
    """Append the tenant's next block; gives how many entries it has. 0: nothing is final yet, or another sealer is at work."""
    with tenant_transaction(tenant_id) as cursor:
        if not take_turn(cursor, "seal"):
            return 0
        cursor.execute(_PATIENCE)
        head = _head(cursor)
        return _append(cursor, head)


def _head(cursor: CursorWrapper) -> Head:
    cursor.execute(
        """SELECT number, hash, last_xid::text, last_entry_id::text, signature IS NOT NULL,
                  last_xid < pg_snapshot_xmax(pg_current_snapshot())
           FROM journal_seal WHERE tenant_id = %s ORDER BY number DESC LIMIT 1""",
        (current_tenant(),),
    )
    row = cursor.fetchone()
    if row is None:
        return NO_BLOCK
    if not row[5]:
        # The rows came out of another cluster, whose transactions were numbered higher than this one's are now.
        raise SealerStuck("The seals end at a transaction id that this database cluster has not reached.")
    return Head(row[0], bytes(row[1]), *row[2:5])


def _append(cursor: CursorWrapper, head: Head) -> int:
    """Write the block behind the head; gives how many entries it has."""
    tenant_id = current_tenant()
    cursor.execute(
        """SELECT xid::text, entry_id::text, public.seal_leaves(%(tenant)s, %(after_xid)s::xid8, %(after)s::uuid, xid, entry_id)
           FROM (SELECT o.created_xid AS xid, o.entry_id, row_number() OVER w AS place, sum(e.line_count) OVER w AS lines
                 FROM (SELECT * FROM outbox_message
                       WHERE tenant_id = %(tenant)s AND (created_xid, entry_id) > (%(after_xid)s::xid8, %(after)s::uuid)
                         AND created_xid < pg_snapshot_xmin(pg_current_snapshot())
                       ORDER BY created_xid, entry_id LIMIT %(entries)s) o
                 CROSS JOIN LATERAL (SELECT line_count FROM journal_entry
                                     WHERE tenant_id = %(tenant)s AND id = o.entry_id OFFSET 0) e
                 WINDOW w AS (ORDER BY o.created_xid, o.entry_id)) counted
           WHERE place = 1 OR lines <= %(lines)s
           ORDER BY place DESC LIMIT 1""",
        {
            "tenant": tenant_id,
            "after_xid": head.last_xid,
            "after": head.last_entry_id,
            "entries": BLOCK_ENTRIES,
            "lines": BLOCK_LINES,
        },
    )
    row = cursor.fetchone()
    if row is None:
        return 0
    last_xid, last_entry_id, leaves = row[0], row[1], bytes(row[2])
    count = len(leaves) // merkle.SIZE
    number, merkle_root = head.number + 1, merkle.root(leaves)
    own_hash = block_hash(
        number=number, merkle_root=merkle_root, previous_hash=head.hash, tenant_id=tenant_id, entry_count=count
    )
    key_id, signature = seal_keys().sign(own_hash)
    if head.is_signed and signature is None:
        raise SealerStuck("The block before this one is signed: give the sealer its key, HPTS_SEAL_KEY.")
    cursor.execute(
        """INSERT INTO journal_seal (tenant_id, number, entry_count, last_xid, last_entry_id, leaves, merkle_root, previous_hash,
                                     hash, key_id, signature)
           VALUES (%s, %s, %s, %s::xid8, %s, %s, %s, %s, %s, %s, %s)""",
        [
            tenant_id,
            number,
            count,
            last_xid,
            last_entry_id,
            leaves,
            merkle_root,
            head.hash,
            own_hash,
            key_id,
            signature,
        ],
    )
    return count


def proof(entry_id: str, sealed: queries.Sealed) -> dict[str, Any]:
    """The inclusion proof as the API shows it, of an entry that is in a block.

    It repeats what the rows say and judges nothing: where they have been changed, it is the proof that does not come out."""
    size = len(sealed.leaves) // merkle.SIZE
    path = merkle.inclusion_path(sealed.leaves, sealed.leaf_index) if sealed.leaf_index < size else []
    return {
        "journal_entry_id": entry_id,
        "document": base64.b64encode(sealed.document.encode()).decode(),
        "content_hash": sealed.content_hash.hex(),
        "leaf_index": sealed.leaf_index,
        "tree_size": size,
        "path": [node.hex() for node in path],
        "block": sealed.block,
    }
