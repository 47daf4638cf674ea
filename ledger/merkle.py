"""Merkle trees as RFC 6962 draws them: leaves and nodes hashed apart, and the path that proves a leaf. Pure: no rows, no keys.

A row of nodes is bytes, 32 for each: the leaves of a block are stored and handed on like that.
"""

from __future__ import annotations

import hashlib

SIZE = 32


def sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def leaf(document: str) -> bytes:
    """The leaf of a document. Its first byte differs from a node's, so that no node can pass for a leaf."""
    return sha256(b"\x00" + document.encode())


def root(leaves: bytes) -> bytes:
    """The root over one leaf or more."""
    row = leaves
    while len(row) > SIZE:
        row = _above(row)
    return row


def inclusion_path(leaves: bytes, index: int) -> list[bytes]:
    """What leads from the leaf with this index to the root: the neighbour on each level that has one, from the bottom."""
    path = []
    row = leaves
    while len(row) > SIZE:
        neighbour = (index ^ 1) * SIZE
        if neighbour < len(row):
            path.append(row[neighbour : neighbour + SIZE])
        row = _above(row)
        index //= 2
    return path


def _above(row: bytes) -> bytes:
    """The level above: a hash for each pair; the last node of an odd row goes up as it is. (RFC 6962 splits from the top at the
    largest power of two, which gives the same tree.)"""
    pairs = (row[at : at + 2 * SIZE] for at in range(0, len(row), 2 * SIZE))
    return b"".join(sha256(b"\x01" + pair) if len(pair) == 2 * SIZE else pair for pair in pairs)
