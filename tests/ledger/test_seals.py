"""The sealer (ledger/seals.py) and its walls: order, races, kills, signatures. What the proof sees is in test_proof.py."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import date
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connections

from hpts import embedded
from hpts.tenancy import tenant_transaction
from ledger import merkle, queries, seals
from ledger.events import PaymentReceived
from ledger.posting import Touches, opened
from ledger.seal_keys import seal_keys
from reconciliation import checks
from reconciliation.management.commands import seals as commands
from tests.conftest import sealed
from tests.ledger.conftest import Books, open_books, race, refused, scratch_database, session

# --- Trees -----------------------------------------------------------------------------------------------------------


def root_by_the_book(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word by word: split at the largest power of two below the size."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    left, right = root_by_the_book(leaves[:split]), root_by_the_book(leaves[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


def leaves_of(size: int) -> list[bytes]:
    return [merkle.leaf(f"document {number}") for number in range(size)]


def test_a_leaf_is_hashed_apart_from_a_node() -> None:
    assert merkle.leaf("a") == hashlib.sha256(b"\x00a").digest()


@pytest.mark.parametrize("size", [*range(1, 34), 100, 127, 128, 129])
def test_the_root_is_that_of_rfc_6962(size: int) -> None:
    leaves = leaves_of(size)
    assert merkle.root(b"".join(leaves)) == root_by_the_book(leaves)


def test_postgresql_draws_the_same_tree(books: Books) -> None:
    for size in (1, 2, 3, 4, 5, 7, 8, 9, 31, 100):
        row = b"".join(leaves_of(size))
        ((root,),) = books.rows("SELECT merkle_root(%s)", row)
        assert bytes(root) == merkle.root(row), size


# --- Blocks ----------------------------------------------------------------------------------------------------------

BLOCKS = """SELECT number, entry_count, leaves, merkle_root, previous_hash, hash, key_id, signature, last_entry_id::text
            FROM journal_seal ORDER BY number"""
IN_ORDER = """SELECT e.document FROM outbox_message o JOIN journal_entry e ON e.id = o.entry_id
              ORDER BY o.created_xid, o.entry_id"""


def assert_sealed(books: Books) -> list[tuple[Any, ...]]:
    """Every entry is in exactly one block, in order; blocks are contiguous, chained and signed. Gives the blocks."""
    documents = [document for (document,) in books.rows(IN_ORDER)]
    blocks = books.rows(BLOCKS)
    before, before_hash = 0, bytes(32)
    key = seal_keys().public[0]
    for number, count, leaves, root, previous, own, key_id, signature, _ in blocks:
        mine, documents = documents[:count], documents[count:]
        assert bytes(leaves) == b"".join(merkle.leaf(document) for document in mine)
        assert bytes(root) == root_by_the_book([merkle.leaf(document) for document in mine])
        assert (number, bytes(previous)) == (before + 1, before_hash)
        said = {
            "number": number,
            "merkle_root": bytes(root).hex(),
            "previous_hash": bytes(previous).hex(),
            "tenant_id": books.tenant_id,
            "entry_count": count,
        }
        assert bytes(own) == hashlib.sha256(rfc8785.dumps(said)).digest()
        assert key_id == key.key_id
        key.key.verify(bytes(signature), bytes(own))
        before, before_hash = number, bytes(own)
    assert documents == [], "some entries are in no block"
    return blocks


def test_every_entry_is_in_one_block_in_the_order_of_posting(books: Books) -> None:
    sealed(books.tenant_id)
    for amount in range(1, 8):
        books.post(books.payment(books.loan, amount, "2025-03-01"))
    sealed(books.tenant_id)
    blocks = assert_sealed(books)
    assert sum(count for _, count, *_ in blocks) == books.entries() == 10
    assert len(blocks) >= 2


def test_with_nothing_new_there_is_no_block(books: Books) -> None:
    sealed(books.tenant_id)
    before = books.rows(BLOCKS)
    assert seals.seal(books.tenant_id) == 0
    assert books.rows(BLOCKS) == before


def test_a_block_has_so_many_entries_and_lines_at_most(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seals, "BLOCK_ENTRIES", 2)
    sealed(books.tenant_id)
    assert [count for _, count, *_ in assert_sealed(books)] == [2, 1]
    monkeypatch.setattr(seals, "BLOCK_ENTRIES", 100)
    monkeypatch.setattr(seals, "BLOCK_LINES", 5)
    for _ in range(3):
        books.post(books.fee(books.loan, 1, "2025-03-01"))
    big = books.post(books.accrual("2025-03-02", *((loan, 0, 3) for loan in books.loans[1:]), (books.loan, 100_000, 9)))
    assert len(big.lines) == 6
    sealed(books.tenant_id)
    # An entry with more lines than a block takes has one to itself.
    assert [count for _, count, *_ in assert_sealed(books)] == [2, 1, 2, 1, 1]


def test_an_entry_that_commits_late_is_not_passed_by(books: Books) -> None:
    """Its transaction began first: what was posted meanwhile waits for it, and both are sealed."""
    sealed(books.tenant_id)
    written, go_on = threading.Event(), threading.Event()
    other = books.loans[1]

    def post_slowly() -> None:
        payment = PaymentReceived(
            loan_id=other.loan_id, amount_minor=1, currency="USD", effective_at=date(2025, 3, 1), source_method="ach"
        )
        with opened(books.origin, Touches([other.loan_id], since=date(2025, 3, 1))) as (posting, _):
            assert posting is not None
            posting.post(payment)
            posting.flush()
            written.set()
            assert go_on.wait(20)
            posting.record()
        connections.close_all()

    thread = threading.Thread(target=post_slowly)
    thread.start()
    assert written.wait(20)
    for amount in (2, 3):
        books.post(books.payment(books.loan, amount, "2025-03-01"))
    assert seals.seal(books.tenant_id) == 0, "nothing may pass a transaction that still runs"
    go_on.set()
    thread.join(20)
    sealed(books.tenant_id)
    assert_sealed(books)


def test_a_writer_does_not_wait_for_a_sealer(books: Books) -> None:
    """The sealer has written its block and is about to commit; a loan of that block moves on, and so does one of none."""
    with tenant_transaction(books.tenant_id) as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"{books.tenant_id} seal",))
        while seals._append(cursor, seals._head(cursor)) == 0:
            pass  # Other tests' transactions may hold the horizon back for a moment.
        outcomes = race(
            lambda: books.post(books.payment(books.loan, 5, "2025-03-01")),
            lambda: books.post(books.disbursement(books.loans[1], 5, "2025-03-01")),
        )
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)], outcomes
    sealed(books.tenant_id)
    assert_sealed(books)


def test_many_sealers_at_once_make_one_chain(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seals, "BLOCK_ENTRIES", 2)
    for amount in range(1, 12):
        books.post(books.payment(books.loan, amount, "2025-03-01"))

    def run() -> int:
        return sum(seals.seal(books.tenant_id) for _ in range(8))

    outcomes = race(*[run] * 5, lambda: books.post(books.payment(books.loan, 99, "2025-03-02")))
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)], outcomes
    sealed(books.tenant_id)
    assert_sealed(books)


def test_without_the_lock_the_database_refuses_the_second_sealer(books: Books) -> None:
    """Both build on the same head: one block is written, the other does not follow it."""

    def run(barrier: threading.Barrier) -> int:
        with tenant_transaction(books.tenant_id) as cursor:
            head = seals._head(cursor)
            barrier.wait(20)
            return seals._append(cursor, head)

    barrier = threading.Barrier(2)
    outcomes: list[Any] = race(lambda: run(barrier), lambda: run(barrier))
    while outcomes == [0, 0]:
        outcomes = race(lambda: run(barrier), lambda: run(barrier))
    assert sum(isinstance(outcome, DatabaseError) for outcome in outcomes) == 1, outcomes
    sealed(books.tenant_id)
    assert_sealed(books)


KILLED = """
import os, sys, django
django.setup()
from ledger import seals
from reconciliation import checks
append = seals._append
def wait(cursor, head):
    count = append(cursor, head)
    if count:
        print(count, flush=True)
        sys.stdin.read()
    return count
seals._append = wait
while True:
    seals.seal(sys.argv[1])
"""


def test_a_killed_sealer_loses_nothing(books: Books) -> None:
    """Killed after it wrote its block and before it committed: nothing of it is there, and the next one seals all."""
    command = [sys.executable, "-c", KILLED, books.tenant_id]
    variables = os.environ | {"DJANGO_SETTINGS_MODULE": "hpts.settings"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=variables, cwd=embedded.ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"3\n"
        assert seals.seal(books.tenant_id) == 0, "the lock is the other sealer's"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert books.rows(BLOCKS) == []
    sealed(books.tenant_id)
    assert len(assert_sealed(books)) == 1


def test_the_sweep_seals_every_tenant(books: Books, other_books: Books) -> None:
    waiting = {each.tenant_id for each in queries.unsealed()}
    assert {books.tenant_id, other_books.tenant_id} <= waiting
    left = waiting
    for _ in range(100):
        seals.seal_all(seconds=20)
        left = {each.tenant_id for each in queries.unsealed()}
        if not {books.tenant_id, other_books.tenant_id} & left:
            break
    assert not {books.tenant_id, other_books.tenant_id} & left
    assert_sealed(books)
    assert_sealed(other_books)


def test_a_sweep_without_time_leaves_the_rest_to_the_next(books: Books) -> None:
    assert seals.seal_all(seconds=0) == 0
    assert books.rows(BLOCKS) == []


def test_tenants_have_chains_of_their_own(books: Books, other_books: Books) -> None:
    for each in (books, other_books):
        sealed(each.tenant_id)
        assert assert_sealed(each)[0][0] == 1


# --- Keys ------------------------------------------------------------------------------------------------------------


def new_key() -> tuple[str, str]:
    """A private key and its public one, PEM."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


@pytest.fixture
def books_with_two_keys(books: Books, settings: Any) -> Callable[[], list[checks.Breach]]:
    """A chain whose key was changed; call it for what the proof says."""
    (old, old_public), (new, _) = new_key(), new_key()
    settings.SEAL_KEY, settings.PREVIOUS_SEAL_KEYS = old, ""
    sealed(books.tenant_id)
    settings.SEAL_KEY, settings.PREVIOUS_SEAL_KEYS = new, old_public
    books.post(books.payment(books.loan, 1, "2025-03-01"))
    sealed(books.tenant_id)

    def said() -> list[checks.Breach]:
        with tenant_transaction(books.tenant_id) as cursor:
            return checks.sealed_history_holds(cursor)

    return said


def test_old_blocks_verify_after_the_key_was_changed(
    books: Books, books_with_two_keys: Callable[[], list[checks.Breach]], settings: Any
) -> None:
    first, second = books.rows(BLOCKS)
    assert first[6] != second[6]
    assert [key.key_id for key in seal_keys().public] == [second[6], first[6]]
    assert books_with_two_keys() == []
    settings.PREVIOUS_SEAL_KEYS = ""
    (said,) = books_with_two_keys()
    assert (said.row, said.problem) == ({"number": 1}, "is signed with a key that is not listed")


def test_without_a_key_blocks_are_chained_and_not_signed(books: Books, settings: Any) -> None:
    settings.SEAL_KEY = ""
    sealed(books.tenant_id)
    ((*_, key_id, signature, _),) = books.rows(BLOCKS)
    assert (key_id, signature) == (None, None)
    with tenant_transaction(books.tenant_id) as cursor:
        assert checks.sealed_history_holds(cursor) == []


def test_a_chain_that_was_signed_is_not_continued_without_its_key(books: Books, settings: Any) -> None:
    sealed(books.tenant_id)
    books.post(books.payment(books.loan, 1, "2025-03-01"))
    settings.SEAL_KEY = ""
    with pytest.raises(seals.SealerStuck, match="HPTS_SEAL_KEY"):
        while True:
            seals.seal(books.tenant_id)


def test_a_chain_that_is_ahead_of_its_cluster_stops_loudly() -> None:
    """As after a logical restore into a new cluster: new entries would sort before sealed ones and never be sealed."""
    with scratch_database():
        books = open_books()
        books.post(books.disbursement(books.loan, 40_000, "2025-01-10"))
        assert sealed(books.tenant_id) == 1
        with session("superuser", replica=True) as connection:
            connection.execute("ALTER TABLE journal_seal DISABLE TRIGGER ALL")
            connection.execute("UPDATE journal_seal SET last_xid = '99999999999'")
        with pytest.raises(seals.SealerStuck, match="has not reached"):
            seals.seal(books.tenant_id)


def test_a_key_that_is_none_is_refused(settings: Any) -> None:
    rsa = settings.SIGNING_KEY
    for private, previous in (("nonsense", ""), (rsa, ""), ("", rsa), (new_key()[0], new_key()[0])):
        settings.SEAL_KEY, settings.PREVIOUS_SEAL_KEYS = private, previous
        with pytest.raises(ImproperlyConfigured, match="SEAL_KEY"):
            seal_keys()


def test_the_id_of_a_key_is_its_hash() -> None:
    for key in seal_keys().public:
        loaded = serialization.load_pem_public_key(key.pem.encode())
        assert isinstance(loaded, Ed25519PublicKey)
        raw = loaded.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        assert key.key_id == hashlib.sha256(raw).hexdigest()


# --- Walls -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def chained() -> Books:
    """Books with one block, and two entries behind it that could be sealed."""
    books = open_books()
    books.post(books.disbursement(books.loan, 100_000, "2025-01-10"))
    sealed(books.tenant_id)
    for amount in (1, 2):
        books.post(books.payment(books.loan, amount, "2025-03-01"))
    while not any(each.tenant_id == books.tenant_id and each.is_final for each in queries.unsealed()):
        pass
    return books


# The block that would follow, and what is changed in it.
NEXT = """
    WITH head AS (SELECT * FROM journal_seal ORDER BY number DESC LIMIT 1),
    message AS (SELECT o.* FROM outbox_message o, head
                WHERE (o.created_xid, o.entry_id) > (head.last_xid, head.last_entry_id) ORDER BY o.created_xid, o.entry_id),
    latest AS (SELECT * FROM message ORDER BY created_xid DESC, entry_id DESC LIMIT 1),
    block AS (SELECT head.tenant_id, head.number + 1 AS number, 2 AS entry_count, latest.created_xid AS last_xid,
                     latest.entry_id AS last_entry_id,
                     seal_leaves(head.tenant_id, head.last_xid, head.last_entry_id, latest.created_xid, latest.entry_id)
                         AS leaves,
                     head.hash AS previous_hash, statement_timestamp() AS sealed_at
              FROM head, latest),
    changed AS (SELECT b.tenant_id, {number} AS number, {entry_count} AS entry_count, {last_xid} AS last_xid,
                       {last_entry_id} AS last_entry_id, {leaves} AS leaves, {previous_hash} AS previous_hash,
                       {sealed_at} AS sealed_at FROM block b),
    rooted AS (SELECT *, {merkle_root} AS merkle_root FROM changed)
    INSERT INTO journal_seal (tenant_id, number, entry_count, last_xid, last_entry_id, leaves, merkle_root, previous_hash, hash,
                              sealed_at, key_id, signature)
    SELECT tenant_id, number, entry_count, last_xid, last_entry_id, leaves, merkle_root, previous_hash, {hash}, sealed_at,
           {key_id}, {signature} FROM rooted
"""
SOUND = {
    name: name
    for name in ("number", "entry_count", "last_xid", "last_entry_id", "leaves", "previous_hash", "sealed_at")
} | {
    "merkle_root": "merkle_root(leaves)",
    "hash": "seal_hash(tenant_id, number, entry_count, merkle_root, previous_hash)",
    "key_id": "'key'",
    "signature": "sha256('signature')",
}
FIRST_OF_TWO = {
    "last_xid": "(SELECT created_xid FROM message LIMIT 1)",
    "last_entry_id": "(SELECT entry_id FROM message LIMIT 1)",
}
FORGERIES: dict[str, tuple[dict[str, str], str]] = {
    "a number is left out": ({"number": "number + 1"}, "journal_seal_chain"),
    "a number comes twice": ({"number": "number - 1"}, "journal_seal_chain"),
    "it follows another block": ({"previous_hash": "sha256('other')"}, "journal_seal_chain"),
    "its hash is another": ({"hash": "sha256('other')"}, "journal_seal_chain"),
    "its hash is missing": ({"hash": "NULL"}, "journal_seal_chain"),
    "it is not signed": ({"key_id": "NULL", "signature": "NULL"}, "journal_seal_chain"),
    "its root is another": ({"merkle_root": "sha256('other')"}, "journal_seal_whole"),
    "an entry is left out": ({"leaves": "substring(leaves FROM 33)", "entry_count": "1"}, "journal_seal_whole"),
    "an entry is another": ({"leaves": "sha256('other') || substring(leaves FROM 33)"}, "journal_seal_whole"),
    "entries change places": (
        {"leaves": "substring(leaves FROM 33) || substring(leaves FOR 32)"},
        "journal_seal_whole",
    ),
    "it counts an entry more": ({"entry_count": "3"}, "journal_seal_whole"),
    "it counts none": ({"entry_count": "0", "leaves": "''::bytea"}, "journal_seal_whole"),
    "it ends before its entries do": (FIRST_OF_TWO, "journal_seal_whole"),
    "it ends where the one before it ends": (
        {"last_xid": "(SELECT last_xid FROM head)", "last_entry_id": "(SELECT last_entry_id FROM head)"},
        "journal_seal_whole",
    ),
    "it ends beyond what is final": ({"last_xid": "pg_current_xact_id()"}, "journal_seal_whole"),
    "it is of another time": ({"sealed_at": "sealed_at - interval '1 hour'"}, "journal_seal_whole"),
    "it has a signature without a key": ({"key_id": "NULL"}, "journal_seal_signature"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_block_that_is_not_the_next_one_is_refused(chained: Books, forgery: str) -> None:
    changes, constraint = FORGERIES[forgery]
    code = "23514" if constraint == "journal_seal_signature" else "HP013"
    with refused(code, constraint), session("app", chained.tenant_id) as connection:
        connection.execute(NEXT.format(**SOUND | changes))


def test_the_block_that_is_the_next_one_is_accepted(chained: Books) -> None:
    """What the forgeries change one thing of; also the shorter one, that ends at the first entry."""
    shorter = FIRST_OF_TWO | {"leaves": "substring(leaves FOR 32)", "entry_count": "1"}
    for changes in ({}, shorter):
        with session("app", chained.tenant_id) as connection:
            assert connection.execute(NEXT.format(**SOUND | changes)).rowcount == 1
            connection.rollback()


def test_a_tenant_writes_no_block_of_another(chained: Books, other_books: Books) -> None:
    # Its chain is not seen, so that nothing follows it; row security would refuse what did.
    with refused("HP013"), session("app", other_books.tenant_id) as connection:
        connection.execute(
            """INSERT INTO journal_seal (tenant_id, number, entry_count, last_xid, last_entry_id, leaves, merkle_root,
                                         previous_hash, hash)
               VALUES (%s, 1, 1, '1', gen_random_uuid(), '', '', '', '')""",
            (chained.tenant_id,),
        )


def test_the_reader_writes_no_block(chained: Books) -> None:
    with refused("42501"), session("readonly", chained.tenant_id) as connection:
        connection.execute(NEXT.format(**SOUND))


# --- Paths -----------------------------------------------------------------------------------------------------------


def test_each_path_has_the_height_of_its_leaf() -> None:
    for size in (1, 2, 3, 5, 8, 13):
        row = b"".join(leaves_of(size))
        lengths = [len(merkle.inclusion_path(row, index)) for index in range(size)]
        assert max(lengths) == (size - 1).bit_length()
        assert all(a >= b for a, b in itertools.pairwise(lengths)), "the last leaves stand higher"


# --- manage.py seals -------------------------------------------------------------------------------------------------


def told(*arguments: str) -> str:
    """What the command prints."""
    out = StringIO()
    call_command("seals", *arguments, stdout=out)
    return out.getvalue()


def kept_heads(books: Books, path: Path) -> list[dict[str, Any]]:
    """The blocks, saved as GET /v1/seals answers them."""
    with tenant_transaction(books.tenant_id) as cursor:
        blocks = queries.seals(cursor, before=None, limit=100)
    path.write_text(json.dumps({"items": blocks}))
    return blocks


def test_status_tells_the_head_and_what_waits(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    (waiting,) = json.loads(told("status", "--tenant", books.tenant_id, "--json"))
    assert waiting["head"] is None
    assert 0 <= waiting["waiting_seconds"] < 60
    sealed(books.tenant_id)
    (done,) = json.loads(told("status", "--tenant", books.tenant_id, "--json"))
    assert (done["head"]["number"], done["head"]["entry_count"], done["waiting_seconds"]) == (1, 3, None)
    assert "signed" in told("status", "--tenant", books.tenant_id)
    books.post(books.payment(books.loan, 1, "2025-03-01"))
    monkeypatch.setattr(commands, "LATE_SECONDS", -1.0)
    with pytest.raises(CommandError, match="wait to be sealed"):
        told("status", "--tenant", books.tenant_id)


def test_seal_seals_now(books: Books) -> None:
    sealed_entries = 0
    while sealed_entries == 0:
        (answer,) = json.loads(told("seal", "--tenant", books.tenant_id, "--json"))
        sealed_entries = answer["entries"]
    assert sealed_entries == 3
    assert_sealed(books)
    assert "Sealed 0 entries of 1 tenants." in told("seal", "--tenant", books.tenant_id)


def test_verify_holds_the_chain_against_heads_that_were_kept(books: Books, tmp_path: Path) -> None:
    heads = tmp_path / "heads.json"
    sealed(books.tenant_id)
    (head,) = kept_heads(books, heads)
    asked = ("--tenant", books.tenant_id, "--heads", str(heads))
    assert "sealed history holds" in told("verify", *asked)
    # A chain that was made anew from the first block: by itself it holds.
    heads.write_text(json.dumps([head | {"hash": "ab" * 32}]))
    assert "sealed history holds" in told("verify", "--tenant", books.tenant_id)
    with pytest.raises(CommandError, match="does not hold"):
        told("verify", *asked)
    # Its last blocks are gone, with their entries.
    heads.write_text(json.dumps([head, head | {"number": 2}]))
    out = StringIO()
    with pytest.raises(CommandError, match="does not hold"):
        call_command("seals", "verify", *asked, "--json", stdout=out)
    (said,) = json.loads(out.getvalue())["breaches"][books.tenant_id]
    assert said == {"row": {"number": 2}, "problem": "is gone, and was kept elsewhere"}


@pytest.mark.parametrize("text", ["", "{}", '{"items": [{}]}', "[1]"])
def test_a_file_without_heads_is_refused(books: Books, tmp_path: Path, text: str) -> None:
    (tmp_path / "heads.json").write_text(text)
    with pytest.raises(CommandError, match="no heads"):
        told("verify", "--tenant", books.tenant_id, "--heads", str(tmp_path / "heads.json"))


def test_heads_are_of_one_tenant(books: Books, other_books: Books, tmp_path: Path) -> None:
    sealed(books.tenant_id)
    kept_heads(books, tmp_path / "heads.json")
    with pytest.raises(CommandError, match="--tenant"):
        told("verify", "--heads", str(tmp_path / "heads.json"))
