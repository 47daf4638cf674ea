"""A picture in at most 256 colours: a third of what Chromium writes. By the standard library, because it is all that is needed.

Reads the 8-bit RGB and RGBA pictures that Chromium makes, and no others.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
Colour = tuple[int, int, int]


def in_a_palette(png: bytes) -> bytes:
    width, height, depth, rows = _pixels(png)
    counts: Counter[Colour] = Counter()
    for row in rows:
        counts.update(zip(row[0::depth], row[1::depth], row[2::depth], strict=True))
    palette = [colour for colour, _ in counts.most_common(256)]
    places = {colour: place for place, colour in enumerate(palette)}
    for colour in counts:
        if colour not in places:
            places[colour] = min(range(len(palette)), key=lambda place: _distance(palette[place], colour))
    packed = b"".join(
        b"\0" + bytes(map(places.__getitem__, zip(row[0::depth], row[1::depth], row[2::depth], strict=True)))
        for row in rows
    )
    return _SIGNATURE + b"".join(
        (
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", bytes(value for colour in palette for value in colour)),
            _chunk(b"IDAT", zlib.compress(packed, 9)),
            _chunk(b"IEND", b""),
        )
    )


def _distance(one: Colour, other: Colour) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _pixels(png: bytes) -> tuple[int, int, int, list[bytearray]]:
    """Width, height, bytes per pixel and rows, as section 9 of the specification undoes their filters."""
    place, packed = len(_SIGNATURE), b""
    width = height = depth = 0
    while place < len(png):
        length, kind = struct.unpack(">I4s", png[place : place + 8])
        body = png[place + 8 : place + 8 + length]
        if kind == b"IHDR":
            width, height, bits, colours = struct.unpack(">IIBB", body[:10])
            assert bits == 8 and colours in (2, 6), "Chromium writes 8-bit RGB or RGBA"
            depth = {2: 3, 6: 4}[colours]
        elif kind == b"IDAT":
            packed += body
        place += 12 + length
    raw, stride = zlib.decompress(packed), width * depth
    rows: list[bytearray] = []
    before = bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        before = _unfiltered(raw[start], bytearray(raw[start + 1 : start + 1 + stride]), before, depth)
        rows.append(before)
    return width, height, depth, rows


def _unfiltered(kind: int, row: bytearray, above: bytearray, depth: int) -> bytearray:
    if kind == 2:
        return bytearray((a + b) & 255 for a, b in zip(row, above, strict=True))
    for x in range(len(row) if kind else 0):
        left = row[x - depth] if x >= depth else 0
        if kind == 1:
            guess = left
        elif kind == 3:
            guess = (left + above[x]) >> 1
        else:
            corner = above[x - depth] if x >= depth else 0
            guess = _paeth(left, above[x], corner)
        row[x] = (row[x] + guess) & 255
    return row


def _paeth(left: int, up: int, corner: int) -> int:
    estimate = left + up - corner
    return min((left, up, corner), key=lambda value: abs(estimate - value))
