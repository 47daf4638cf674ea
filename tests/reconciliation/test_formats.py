"""The formats: each sample gives the same statement; what does not hold together is refused whole, with line and reason."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import BinaryIO

import pytest

from hpts.problems import ValidationFailed
from reconciliation.formats import FORMATS
from reconciliation.formats.columns import parse as parse_csv
from reconciliation.statements import MAX_LINES, Statement
from tests.reconciliation.conftest import BROKEN, CLEAN

MUTATIONS = 200


def read(name: str, content: bytes) -> Statement:
    return FORMATS[name](io.BytesIO(content))


def read_or_refusal(name: str, content: bytes) -> Statement | ValidationFailed:
    try:
        return read(name, content)
    except ValidationFailed as refused:
        return refused


def sample(name: str) -> bytes:
    return CLEAN[name].read_bytes()


def refusal(name: str, content: bytes) -> tuple[str, str]:
    """Place and code of a refusal."""
    with pytest.raises(ValidationFailed) as caught:
        read(name, content)
    (problem,) = caught.value.errors
    assert problem.message in caught.value.detail
    return problem.field, problem.code


def changed(name: str, old: str, new: str) -> bytes:
    text = sample(name).decode()
    assert old in text
    return text.replace(old, new, 1).encode()


def adds_up(statement: Statement) -> None:
    total = sum(line.amount_minor for line in statement.lines)
    assert statement.opening_balance_minor + total == statement.closing_balance_minor
    assert statement.from_date <= statement.to_date
    assert [line.number for line in statement.lines] == list(range(1, len(statement.lines) + 1))
    assert all(line.amount_minor and abs(line.amount_minor) < 2**63 for line in statement.lines)


@pytest.mark.parametrize("name", FORMATS)
def test_all_formats_give_the_same_statement(name: str) -> None:
    found = read(name, sample(name))
    assert found == read("csv", sample("csv"))
    assert (str(found.from_date), str(found.to_date), found.currency) == ("2026-02-01", "2026-02-28", "USD")
    assert (found.opening_balance_minor, found.closing_balance_minor) == (0, 4_163_399)
    adds_up(found)


@pytest.mark.parametrize("name", FORMATS)
def test_a_mutated_file_is_refused_with_a_place_or_still_adds_up(name: str) -> None:
    """Seeded: bytes flipped, cut, doubled, lines lost, swapped, repeated. Whatever is taken is a whole statement."""
    chance = random.Random(f"{name} 1")
    original = sample(name)
    taken = 0
    for _ in range(MUTATIONS):
        content = mutated(original, chance)
        found = read_or_refusal(name, content)
        if isinstance(found, Statement):
            taken += 1
            adds_up(found)
        else:
            assert [problem.field.partition(".")[0] for problem in found.errors] == ["file"]
            assert found.errors[0].message
    assert taken < MUTATIONS / 2


def mutated(content: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(6)
    at = chance.randrange(len(content))
    lines = content.splitlines(keepends=True)
    line = chance.randrange(len(lines))
    if kind == 0:
        return content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :]
    if kind == 1:
        return content[:at]
    if kind == 2:
        return content[:at] + content[at + chance.randrange(1, 40) :]
    if kind == 3:
        return b"".join(lines[:line] + lines[line + 1 :])
    if kind == 4:
        return b"".join(lines[:line] + lines[line : line + 1] + lines[line:])
    other = chance.randrange(len(lines))
    lines[line], lines[other] = lines[other], lines[line]
    return b"".join(lines)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\x00" * 100, b"\xff\xfe<\x00", "é".encode("latin-1"), b"{}", b"PK\x03\x04"]
)
def test_what_is_no_statement_is_refused(name: str, content: bytes) -> None:
    with pytest.raises(ValidationFailed):
        read(name, content)


@pytest.mark.parametrize("name", FORMATS)
def test_another_charset_is_refused(name: str) -> None:
    latin = sample(name).replace(b"Capital", "Ca\u00f1ital".encode("latin-1"))
    assert latin != sample(name)
    with pytest.raises(ValidationFailed):
        read(name, latin)
    with pytest.raises(ValidationFailed):
        read(name, sample(name).decode().encode("utf-16"))


@pytest.mark.parametrize("name", ["camt053", "mt940", "csv"])
def test_letters_of_all_scripts_are_kept(name: str) -> None:
    found = read(name, changed(name, "Capital from the owners", "資本 œuvre Ñ"))
    assert found.lines[0].description == "資本 œuvre Ñ"


MIXED = {
    "camt053": '<Amt Ccy="USD">888.49',
    "mt940": ":62F:C260228USD",
    "bai2": "02,HARBOR,021000021,1,260204,2300,USD",
    "csv": "888.49,USD",
}


@pytest.mark.parametrize("name", FORMATS)
def test_mixed_currencies_are_refused(name: str) -> None:
    old = MIXED[name]
    content = changed(name, old, old.replace("USD", "EUR"))
    if name == "bai2":
        content = content.replace(b"03,1234567890,USD,010,5000000", b"03,1234567890,EUR,010,5000000")
    assert refusal(name, content)[1] == "mixed_currencies"


DIFFERENT = {
    "camt053": ("41633.99", "41634.99", "file.15"),
    "mt940": ("41633,99", "41634,99", "file.15"),
    "csv": ("41633.99", "41634.99", "file.8"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_balances_that_do_not_add_up_are_refused_at_their_line(name: str) -> None:
    old, new, place = DIFFERENT[name]
    assert refusal(name, changed(name, old, new)) == (place, "balance_differs")


def test_a_lost_record_of_bai2_is_noticed_by_its_trailers() -> None:
    lines = sample("bai2").splitlines(keepends=True)
    lost = b"".join(line for line in lines if b"ACH-1001" not in line)
    assert refusal("bai2", lost)[1] == "control_differs"


def test_two_accounts_in_one_file_are_refused() -> None:
    content = sample("bai2").replace(b"03,1234567890,USD,010,5000000", b"03,9999999999,USD,010,5000000")
    assert refusal("bai2", content)[1] == "mixed_accounts"


def test_messages_of_mt940_are_one_statement_when_they_chain() -> None:
    text = sample("mt940").decode()
    first, second = text.split(":61:260211")
    middle = ":62M:C260204USD40000,\r\n-\r\n:20:STMT202602\r\n:25:021000021/1234567890\r\n:28C:2/2\r\n:60M:C260204USD40000,\r\n"
    assert read("mt940", f"{first}{middle}:61:260211{second}".encode()) == read("mt940", sample("mt940"))
    broken = middle.replace("60M:C260204USD40000,", "60M:C260204USD40000,01")
    assert refusal("mt940", f"{first}{broken}:61:260211{second}".encode())[1] == "balance_differs"


def test_the_envelope_of_mt940_is_passed_over() -> None:
    body = sample("mt940").decode().removesuffix("-\r\n")
    wrapped = "{1:F01BANKUS33AXXX0000000000}{2:I940CLIENTXXN}{4:\r\n" + body + "-}\r\n"
    assert read("mt940", wrapped.encode()) == read("mt940", sample("mt940"))


@pytest.mark.parametrize(("mark", "sign"), [("C", 1), ("D", -1), ("RC", -1), ("RD", 1)])
def test_the_marks_of_mt940_say_the_side(mark: str, sign: int) -> None:
    closing = "C" if sign > 0 else "D"
    text = f":20:A\n:25:1\n:28C:1\n:60F:C260201USD0,\n:61:2602020202{mark}12,5NTRFREF//BANK\n:62F:{closing}260228USD12,50\n-\n"
    (line,) = read("mt940", text.encode()).lines
    assert (line.amount_minor, line.reference) == (sign * 1_250, "REF")


def test_continuations_and_funds_types_of_bai2_are_read() -> None:
    text = (
        "01,B,C,260228,2300,7,,,2/\n02,C,B,1,260228,2300,,2/\n03,77,,010,0,,\n88,015,30/\n"
        "16,165,30,S,10,10,10,BANKREF,,WIRE\n88,FROM SOMEONE/\n49,60,5/\n98,60,1,7/\n99,60,1,9/\n"
    )
    (line,) = read("bai2", text.encode()).lines
    assert (line.amount_minor, line.reference, line.description) == (30, "BANKREF", "WIRE,FROM SOMEONE")


def test_entries_of_camt_that_are_not_booked_do_not_count() -> None:
    entry = sample("camt053").decode().partition("<Ntry>")[2].partition("</Ntry>")[0]
    pending = f"<Ntry>{entry}</Ntry>".replace("BOOK", "PDNG")
    assert read("camt053", changed("camt053", "</Stmt>", f"{pending}</Stmt>")) == read("camt053", sample("camt053"))


# --- Attacks ---------------------------------------------------------------------------------------------------------

BOMB = (
    '<!DOCTYPE Document [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {x} "{f"&{y};" * 10}">' for x, y in zip("bcdefghi", "abcdefgh", strict=True))
    + "]>"
)
EXTERNAL = '<!DOCTYPE Document [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
REMOTE = '<!DOCTYPE Document SYSTEM "http://127.0.0.1:9/x.dtd">'


@pytest.mark.parametrize(
    "doctype", [BOMB, EXTERNAL, REMOTE, "<!DOCTYPE Document []>"], ids=["bomb", "file", "http", "empty"]
)
def test_document_types_and_entities_are_refused(doctype: str) -> None:
    content = changed("camt053", "<Document", f"{doctype}<Document")
    content = content.replace(
        b"Three checks", b"&x;" if "ENTITY x" in doctype else b"&i;" if "ENTITY i" in doctype else b"Y"
    )
    place, code = refusal("camt053", content)
    assert (place.startswith("file"), code) == (True, "invalid_format")


@pytest.mark.parametrize("encoding", ["ISO-8859-1", "UTF-7", "utf-16", "EBCDIC-CP-US"])
def test_xml_in_another_encoding_is_refused(encoding: str) -> None:
    assert (
        refusal("camt053", changed("camt053", 'encoding="UTF-8"', f'encoding="{encoding}"'))[1] == "invalid_characters"
    )


class Endless(io.RawIOBase):
    """A file of 200 MB that is never in memory; counts what is read of it."""

    def __init__(self, head: bytes, piece: bytes) -> None:
        self.left = 200 * 1024 * 1024
        self.head, self.piece, self.given = head, piece, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), self.left, 65_536)
        source = self.head or self.piece * (size // len(self.piece) + 1)
        chunk = source[:size]
        self.head = self.head[len(chunk) :]
        buffer[: len(chunk)] = chunk
        self.left -= len(chunk)
        self.given += len(chunk)
        return len(chunk)


XML_HEAD = (
    b'<?xml version="1.0"?><Document xmlns="urn:iso:std:iso:20022:tech:xsd:camt.053.001.02"><BkToCstmrStmt><Stmt>'
)
FLOODS: dict[str, tuple[Callable[[BinaryIO], Statement], bytes, bytes]] = {
    "one line": (FORMATS["csv"], b"", b"x"),
    "rows": (
        FORMATS["csv"],
        b"date,amount,currency,reference,description\n2026-02-01,0,USD,opening,\n",
        b"2026-02-01,0.01,USD,r,\n",
    ),
    "field 86": (FORMATS["mt940"], b":20:A\n:25:1\n:60F:C260201USD0,\n:61:2602020202C1,NTRFR\n:86:x\n", b"y\n"),
    "continuations": (FORMATS["bai2"], b"01,B,C,260228,2300,7,,,2/\n", b"88,x/\n"),
    "one tag": (FORMATS["camt053"], XML_HEAD + b"<Id a='", b"x"),
    "one text": (FORMATS["camt053"], XML_HEAD + b"<Id>", b"x"),
    "depth": (FORMATS["camt053"], XML_HEAD, b"<a>"),
    "siblings": (FORMATS["camt053"], XML_HEAD, b"<Id>x</Id><Bal></Bal>"),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_two_hundred_megabytes_are_refused_before_they_are_read(flood: str) -> None:
    parser, head, piece = FLOODS[flood]
    source = Endless(head, piece)
    with pytest.raises(ValidationFailed):
        parser(io.BufferedReader(source, 65_536))
    assert source.given < 16 * 1024 * 1024


def test_a_statement_has_at_most_so_many_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_LINES >= 100_000
    monkeypatch.setattr("reconciliation.statements.MAX_LINES", 4)
    assert refusal("csv", sample("csv")) == ("file.7", "too_long")


# --- CSV -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "place", "code"),
    [
        ("date,amount", "day,amount", "file.1", "invalid_format"),
        ("2026-02-11", "2026-02-30", "file.5", "invalid_format"),
        ("2026-02-11", "11.02.2026", "file.5", "invalid_format"),
        ("888.49", "888,49", "file.5", "invalid_format"),
        ("888.49", "888.491", "file.5", "invalid_format"),
        ("888.49", "1e3", "file.5", "invalid_format"),
        ("888.49", "٨٨٨.٤٩", "file.5", "invalid_format"),
        ("888.49", "99999999999999999.99", "file.5", "out_of_range"),
        ("USD,opening", "QQQ,opening", "file.2", "unknown_currency"),
        ("USD,opening", "usd,opening", "file.2", "unknown_currency"),
        ("opening,", "begin,", "file.2", "out_of_order"),
        ("ACH-1001", "opening", "file.5", "out_of_order"),
        ("ACH-1001", "A" * 129, "file.5", "too_long"),
        ("ACH-1001", "A\x07", "file.5", "invalid_characters"),
        (",ACH-1001,Payment", ",ACH-1001", "file.5", "invalid_format"),
        (",ACH-1001,Payment", ',"ACH-1001,Payment', "file.8", "invalid_format"),
        ("2026-02-11", "2021-02-11", "file.8", "out_of_range"),
    ],
)
def test_a_bad_cell_is_refused_at_its_line(old: str, new: str, place: str, code: str) -> None:
    assert refusal("csv", changed("csv", old, new)) == (place, code)


def test_columns_may_have_other_names() -> None:
    text = (
        sample("csv").decode().replace("date,amount,currency,reference,description", "Datum,Betrag,Waehrung,Ref,Text")
    )
    names = {"date": "Datum", "amount": "Betrag", "currency": "Waehrung", "reference": "Ref", "description": "Text"}
    assert parse_csv(io.BytesIO(text.encode()), names) == read("csv", sample("csv"))
    with pytest.raises(ValidationFailed):
        parse_csv(io.BytesIO(text.encode()), names | {"amount": "Summe"})


def test_a_byte_order_mark_of_csv_is_passed_over() -> None:
    assert read("csv", b"\xef\xbb\xbf" + sample("csv")) == read("csv", sample("csv"))


def test_the_sample_with_breaks_is_a_statement() -> None:
    adds_up(read("csv", BROKEN.read_bytes()))
