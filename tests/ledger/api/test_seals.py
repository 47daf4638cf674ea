"""GET /v1/seals, /v1/seal-keys and /v1/journal-entries/{id}/proof, and examples/verify_proof.py, which checks a proof offline."""

from __future__ import annotations

import base64
import copy
import hashlib
import importlib.util
import itertools
import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger import seals
from tests.conftest import Json, Lender, refused, sealed, shown
from tests.ledger.test_seals import new_key

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "examples" / "verify_proof.py"


def proof_of(lender: Lender, entry_id: str) -> Json:
    return shown(lender.api.get(f"/v1/journal-entries/{entry_id}/proof"))


def keys_of(lender: Lender) -> str:
    """The listed keys, one PEM after the other."""
    listed = shown(lender.api.get("/v1/seal-keys"))["items"]
    return "".join(key["public_key"] for key in listed)


@pytest.fixture
def paid(acme: Lender, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Seven entries of a lender in blocks of five at most."""
    monkeypatch.setattr(seals, "BLOCK_ENTRIES", 5)
    sealed(acme.tenant_id)
    entries = [acme.api.pay(acme.loan, amount, "2026-02-01")["journal_entry_id"] for amount in range(1, 8)]
    sealed(acme.tenant_id)
    return entries


# --- The API ---------------------------------------------------------------------------------------------------------


def test_a_proof_leads_from_the_entry_to_the_root(acme: Lender, paid: list[str]) -> None:
    heads = {seal["number"]: seal for seal in shown(acme.api.get("/v1/seals"))["items"]}
    for entry_id in paid:
        proof = proof_of(acme, entry_id)
        assert proof.keys() == {
            "journal_entry_id", "document", "content_hash", "leaf_index", "tree_size", "path", "block",
        }  # fmt: skip
        document = base64.b64decode(proof["document"])
        assert proof["content_hash"] == hashlib.sha256(document).hexdigest()
        said = json.loads(document)
        assert said.pop("v") == 1
        assert said.pop("tenant_id") == acme.tenant_id
        assert said == acme.api.entry(entry_id)
        block = proof["block"]
        assert block.keys() == {"number", "merkle_root", "previous_hash", "hash", "sealed_at", "signature"}
        listed = heads[block["number"]]
        assert {name: listed[name] for name in block} == block
        assert proof["tree_size"] == listed["entry_count"]
        hashed = {name: listed[name] for name in ("number", "merkle_root", "previous_hash", "entry_count")}
        own = hashlib.sha256(rfc8785.dumps(hashed | {"tenant_id": acme.tenant_id})).hexdigest()
        assert block["hash"] == own
        verifier.checked_block(proof)


def test_an_entry_has_no_proof_before_its_block(acme: Lender) -> None:
    entry_id = acme.api.pay(acme.loan, 5, "2026-02-01")["journal_entry_id"]
    path = f"/v1/journal-entries/{entry_id}/proof"
    assert "few seconds" in refused(acme.api.get(path), 404, "not_sealed_yet")["detail"]
    sealed(acme.tenant_id)
    shown(acme.api.get(path))
    refused(acme.api.get(f"/v1/journal-entries/{uuid.uuid4()}/proof"), 404, "not_found")


def test_seals_are_pages_from_the_head_back_to_the_first(acme: Lender, paid: list[str]) -> None:
    whole = shown(acme.api.get("/v1/seals"))
    assert whole.keys() == {"items"}
    numbers = [seal["number"] for seal in whole["items"]]
    assert numbers == list(range(len(numbers), 0, -1))
    paged: list[Json] = []
    query: dict[str, Any] = {"page_size": 1}
    while True:
        page = shown(acme.api.get("/v1/seals", query))
        paged += page["items"]
        if "next_page_token" not in page:
            break
        query["page_token"] = page["next_page_token"]
    assert paged == whole["items"]
    for later, earlier in itertools.pairwise(paged):
        assert later["previous_hash"] == earlier["hash"]
    assert paged[-1]["previous_hash"] == "0" * 64


def test_the_keys_that_verify_are_listed_the_one_in_use_first(acme: Lender, settings: Any) -> None:
    (_old, old_public), (new, new_public) = new_key(), new_key()
    settings.SEAL_KEY, settings.PREVIOUS_SEAL_KEYS = new, old_public
    items = shown(acme.api.get("/v1/seal-keys"))["items"]
    assert [item["public_key"] for item in items] == [new_public, old_public]
    assert {item["algorithm"] for item in items} == {"Ed25519"}
    settings.SEAL_KEY = settings.PREVIOUS_SEAL_KEYS = ""
    assert shown(acme.api.get("/v1/seal-keys")) == {"items": []}


def test_a_block_that_is_not_signed_has_no_signature(acme: Lender, settings: Any) -> None:
    settings.SEAL_KEY = ""
    entry_id = acme.api.pay(acme.loan, 5, "2026-02-01")["journal_entry_id"]
    sealed(acme.tenant_id)
    assert "signature" not in proof_of(acme, entry_id)["block"]
    (seal, *_) = shown(acme.api.get("/v1/seals"))["items"]
    assert not {"signature", "key_id"} & seal.keys()


@pytest.mark.parametrize(
    "path", ["/v1/seals", "/v1/seal-keys", "/v1/journal-entries/00000000-0000-4000-8000-00000000dead/proof"]
)
def test_reading_seals_needs_the_scope_of_the_ledger(acme: Lender, path: str) -> None:
    refused(acme.api.get(path, scopes=["hpts:balances:read"]), 403, "insufficient_scope")
    refused(acme.api.get(path, {"more": "1"}), 400, "validation_failed", ["more"])


# --- examples/verify_proof.py ----------------------------------------------------------------------------------------


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_proof", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


verifier: Any = _loaded()
Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Run the script, isolated from everything that is installed; gives its exit code and what it said."""

    def run(proof: object, keys: str | None = None) -> tuple[int, str]:
        (tmp_path / "proof.json").write_text(proof if isinstance(proof, str) else json.dumps(proof))
        command = [sys.executable, "-I", "-S", str(SCRIPT), "proof.json"]
        if keys is not None:
            (tmp_path / "keys.pem").write_text(keys)
            command += ["--public-key", "keys.pem"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    return run


def test_the_script_proves_every_entry_offline(acme: Lender, paid: list[str], check: Check) -> None:
    keys = keys_of(acme)
    code, said = check(proof_of(acme, paid[0]), keys)
    assert code == 0
    assert said.startswith(f"PROVEN: entry {paid[0]} (payment_received, 2026-02-01)")
    assert "its signature verifies" in said
    code, said = check(proof_of(acme, paid[-1]))
    assert code == 0
    assert "its signature was not looked at" in said
    assert check(proof_of(acme, paid[-1]), new_key()[1] + keys)[0] == 0, "one of several keys"


def _document(proof: Json, old: str, new: str) -> None:
    document = base64.b64decode(proof["document"]).decode()
    assert old in document
    proof["document"] = base64.b64encode(document.replace(old, new, 1).encode()).decode()


def _amount(proof: Json) -> None:
    _document(proof, '"amount_minor":"1"', '"amount_minor":"9"')
    proof["content_hash"] = hashlib.sha256(base64.b64decode(proof["document"])).hexdigest()


LIES: dict[str, tuple[Callable[[Json], object], str]] = {
    "an amount, and the hash with it": (_amount, "does not lead"),
    "an amount": (lambda p: _document(p, '"amount_minor":"1"', '"amount_minor":"9"'), "content_hash"),
    "the entry's id": (lambda p: p.update(journal_entry_id=str(uuid.uuid4())), "another entry"),
    "the leaf's place": (lambda p: p.update(leaf_index=(p["leaf_index"] + 1) % p["tree_size"]), "lead|path"),
    "a place outside": (lambda p: p.update(leaf_index=p["tree_size"]), "not in a tree"),
    "a place before the first": (lambda p: p.update(leaf_index=-1), "not in a tree"),
    "the size": (lambda p: p.update(tree_size=p["tree_size"] + 1), ""),
    "the path": (lambda p: p["path"].reverse() or p["path"].append("00" * 32), ""),
    "a short path": (lambda p: p["path"].clear(), "below the root"),
    "a hash of the path": (lambda p: p["path"].__setitem__(0, "ab" * 32), "does not lead"),
    "a hash that is short": (lambda p: p["path"].__setitem__(0, "ab"), "32 bytes"),
    "the root": (lambda p: p["block"].update(merkle_root="ab" * 32), "does not lead"),
    "the block's number": (lambda p: p["block"].update(number=99), "block's hash"),
    "the block before": (lambda p: p["block"].update(previous_hash="ab" * 32), "block's hash"),
    "the block's hash": (lambda p: p["block"].update(hash="ab" * 32), "block's hash"),
    "the tenant": (lambda p: _document(p, '"tenant_id":"', '"tenant_id":"x'), "content_hash"),
    "the signature": (lambda p: p["block"].update(signature="ab" * 64), "signed"),
    "a short signature": (lambda p: p["block"].update(signature="ab"), "signed"),
    "no signature": (lambda p: p["block"].pop("signature"), "not signed"),
    "a place that is text": (lambda p: p.update(leaf_index="0"), "not a proof"),
    "a number that is true": (lambda p: p["block"].update(number=True), "not a proof"),
    "no block": (lambda p: p.pop("block"), "not a proof"),
}


def test_a_proof_with_one_lie_is_not_proven(acme: Lender, paid: list[str], tmp_path: Path) -> None:
    proof, keys = proof_of(acme, paid[0]), keys_of(acme)
    if proof["tree_size"] == 1:
        proof = proof_of(acme, paid[1])
    assert proof["tree_size"] > 1
    (tmp_path / "keys.pem").write_text(keys)
    for lie, (tell, reason) in LIES.items():
        told = copy.deepcopy(proof)
        tell(told)
        with pytest.raises(verifier.Refused, match=reason):
            _verify(told, verifier.public_keys(keys))
            pytest.fail(lie)
    _verify(proof, verifier.public_keys(keys))


def _verify(proof: Json, keys: list[bytes]) -> None:
    """What the script's command does with a proof and its keys."""
    _, block_hash, signature = verifier.checked_block(proof)
    if signature is None:
        raise verifier.Refused("the block is not signed")
    if not any(verifier.signed_by(key, block_hash, signature) for key in keys):
        raise verifier.Refused("no key has signed the block")


def test_the_script_says_why_not(acme: Lender, paid: list[str], check: Check) -> None:
    proof, keys = proof_of(acme, paid[0]), keys_of(acme)
    _amount(changed := copy.deepcopy(proof))
    unsigned = copy.deepcopy(proof)
    del unsigned["block"]["signature"]
    for told, given, reason in (
        (changed, keys, "does not lead"),
        (unsigned, keys, "not signed"),
        (proof, new_key()[1], "no key of the file"),
        (proof, "nothing", "no public key"),
        ("{", keys, "NOT PROVEN"),
        ("[]", keys, "not a proof"),
        ({"code": "not_found"}, keys, "not a proof"),
    ):
        code, said = check(told, given)
        assert (code, said.startswith("NOT PROVEN: ")) == (1, True), said
        assert reason in said


# RFC 8032, 7.1: secret key, message, signature.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
]


@pytest.mark.parametrize(("secret", "message", "signature"), VECTORS)
def test_the_script_verifies_the_vectors_of_rfc_8032(secret: str, message: str, signature: str) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)).public_key().public_bytes_raw()
    said, signed = bytes.fromhex(message), bytes.fromhex(signature)
    assert verifier.signed_by(key, said, signed)
    for place in (0, 31, 32, 63):
        assert not verifier.signed_by(key, said, signed[:place] + bytes([signed[place] ^ 1]) + signed[place + 1 :])
    assert not verifier.signed_by(key, said + b"!", signed)
    # The same signature written with a larger scalar is not another one.
    larger = int.from_bytes(signed[32:], "little") + verifier.ORDER
    assert not verifier.signed_by(key, said, signed[:32] + larger.to_bytes(32, "little"))


def test_the_script_agrees_with_the_library_that_signs() -> None:
    for number in range(20):
        private = Ed25519PrivateKey.generate()
        message = hashlib.sha256(bytes([number])).digest()
        key, signature = private.public_key().public_bytes_raw(), private.sign(message)
        assert verifier.signed_by(key, message, signature)
        assert not verifier.signed_by(key, message[::-1], signature)
