#!/usr/bin/env python3
"""Check a proof of `GET /v1/journal-entries/{id}/proof`, offline and with the standard library alone.

    verify_proof.py PROOF.json [--public-key FILE]

Exit code 0: the entry is in its block, and with --public-key, one of the keys in FILE (PEM) has signed that block.
Exit code 1: it is not; a line says why. The rules are in docs/seals.md, and nothing of HPTS is imported here.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import sys
from typing import Any


class Refused(Exception):
    """The proof does not come out."""


# --- The tree and the block ------------------------------------------------------------------------------------------


def root_of(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """The root that the path leads to from a leaf, one of `size` (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        raise Refused(f"leaf {index} is not in a tree of {size}")
    node, last = leaf, size - 1
    for neighbour in path:
        if last == 0:
            raise Refused("the path is longer than the tree is high")
        if index % 2 == 1 or index == last:
            node = sha256(b"\x01" + neighbour + node)
            # A last node without a right neighbour has gone up as it is.
            while index % 2 == 0 and index != 0:
                index, last = index // 2, last // 2
        else:
            node = sha256(b"\x01" + node + neighbour)
        index, last = index // 2, last // 2
    if last != 0:
        raise Refused("the path ends below the root")
    return node


def checked_block(proof: Any) -> tuple[dict[str, Any], bytes, bytes | None]:
    """The entry, the hash of its block, and the block's signature if it has one. Raises Refused."""
    try:
        document = base64.b64decode(proof["document"], validate=True)
        entry = json.loads(document)
        block = proof["block"]
        path = [bytes.fromhex(node) for node in proof["path"]]
        index, size, number = (whole(value) for value in (proof["leaf_index"], proof["tree_size"], block["number"]))
        merkle_root, previous, claimed = (
            bytes.fromhex(block[name]) for name in ("merkle_root", "previous_hash", "hash")
        )
        signature = bytes.fromhex(block["signature"]) if "signature" in block else None
        named, tenant_id = entry["journal_entry_id"], entry["tenant_id"]
        same_hash = bytes.fromhex(proof["content_hash"]) == sha256(document)
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(f"this is not a proof: {type(error).__name__} {error}") from None
    if any(len(each) != 32 for each in (*path, merkle_root, previous, claimed)):
        raise Refused("a hash does not have 32 bytes")
    if named != proof.get("journal_entry_id"):
        raise Refused("the document is another entry's")
    if not same_hash:
        raise Refused("content_hash is not the document's")
    if root_of(sha256(b"\x00" + document), index, size, path) != merkle_root:
        raise Refused("the path does not lead from the document to the block's root")
    members = {
        "entry_count": size,
        "merkle_root": merkle_root.hex(),
        "number": number,
        "previous_hash": previous.hex(),
        "tenant_id": tenant_id,
    }
    if sha256(json.dumps(members, separators=(",", ":"), sort_keys=True).encode()) != claimed:
        raise Refused("the block's hash is not that of what it says")
    return entry, claimed, signature


def whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value


def sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


# --- Ed25519 (RFC 8032, 5.1), verification alone ---------------------------------------------------------------------

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
# A point is (X, Y, Z, T) with x = X/Z, y = Y/Z and xy = T/Z.
Point = tuple[int, int, int, int]


def add(a: Point, b: Point) -> Point:
    left, right = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    both, scale = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = right - left, scale - both, scale + both, right + left
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(factor: int, point: Point) -> Point:
    product = (0, 1, 1, 0)
    while factor:
        if factor & 1:
            product = add(product, point)
        point = add(point, point)
        factor >>= 1
    return product


def decoded(encoded: bytes) -> Point:
    """The point of 32 bytes: y, and in the highest bit the sign of x. Raises Refused."""
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    if y >= P:
        raise Refused("a point of the signature is not in its one form")
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != square or (x == 0 and sign):
        raise Refused("a point of the signature is not on the curve")
    if x % 2 != sign:
        x = P - x
    return x, y, 1, x * y % P


def signed_by(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the signature over the message is this key's."""
    if len(signature) != 64 or len(public_key) != 32:
        return False
    scalar = int.from_bytes(signature[32:], "little")
    if scalar >= ORDER:
        return False
    try:
        point, key = decoded(signature[:32]), decoded(public_key)
    except Refused:
        return False
    challenge = hashlib.sha512(signature[:32] + public_key + message).digest()
    base = decoded((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
    left, right = times(scalar, base), add(point, times(int.from_bytes(challenge, "little") % ORDER, key))
    return (left[0] * right[2] - right[0] * left[2]) % P == 0 and (left[1] * right[2] - right[1] * left[2]) % P == 0


# The ASN.1 that stands before the 32 bytes of a public Ed25519 key (RFC 8410).
KEY_HEADER = bytes.fromhex("302a300506032b6570032100")


def public_keys(pem: str) -> list[bytes]:
    """The keys of a PEM file, one or several. Raises Refused."""
    keys = []
    for body in re.findall(r"-----BEGIN PUBLIC KEY-----(.+?)-----END PUBLIC KEY-----", pem, re.DOTALL):
        try:
            encoded = base64.b64decode("".join(body.split()), validate=True)
        except ValueError:
            encoded = b""
        if encoded[: len(KEY_HEADER)] != KEY_HEADER or len(encoded) != len(KEY_HEADER) + 32:
            raise Refused("the key file has a key that is not Ed25519")
        keys.append(encoded[len(KEY_HEADER) :])
    if not keys:
        raise Refused("the key file has no public key in PEM")
    return keys


# --- The command -----------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that a journal entry is in sealed history.")
    parser.add_argument("proof", metavar="PROOF.json", help="what GET /v1/journal-entries/{id}/proof answered")
    parser.add_argument("--public-key", metavar="FILE", help="one or several Ed25519 public keys, PEM")
    options = parser.parse_args()
    try:
        with open(options.proof, encoding="utf-8") as file:
            proof = json.load(file)
        entry, block_hash, signature = checked_block(proof)
        signer = "its signature was not looked at"
        if options.public_key:
            with open(options.public_key, encoding="ascii") as file:
                keys = public_keys(file.read())
            if signature is None:
                raise Refused("the block is not signed")
            if not any(signed_by(key, block_hash, signature) for key in keys):
                raise Refused("no key of the file has signed the block")
            signer = "its signature verifies"
    except (OSError, ValueError, Refused) as error:
        print(f"NOT PROVEN: {error}", file=sys.stderr)
        return 1
    print(f"PROVEN: entry {entry['journal_entry_id']} ({entry.get('event_type')}, {entry.get('effective_at')})")
    print(f"is leaf {proof['leaf_index']} of {proof['tree_size']} in block {proof['block']['number']}; {signer}.")
    print(f"Block hash: {block_hash.hex()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
