"""camt.053, the ISO 20022 bank-to-customer statement, any version.

XML is read as a stream by expat behind defusedxml: no document type, no entity, nothing external, UTF-8 alone, bounded depth,
text and token. Only booked entries count. An entry's reference is its end-to-end id when it has one transaction, else the
bank's reference, else the entry's own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from typing import Any, BinaryIO
from xml.sax import SAXException, SAXParseException
from xml.sax.handler import ContentHandler, feature_namespaces

from defusedxml import DefusedXmlException
from defusedxml.expatreader import DefusedExpatParser

from hpts.problems import ValidationFailed
from reconciliation.statements import Draft, Statement, description_of, iso_date, minor_units, reference_of, refused

NAMESPACE = re.compile(r"urn:iso:std:iso:20022:tech:xsd:camt\.053\.001\.[0-9]{2}")
ENCODING = re.compile(rb"\A(?:\xef\xbb\xbf)?<\?xml[^>]*?encoding\s*=\s*[\"']([^\"']*)[\"']")
MOMENT = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})T[0-9]{2}:[0-9]{2}.{0,30}")
CHUNK = 64 * 1024
MAX_TOKEN = 1024 * 1024
MAX_DEPTH = 32
MAX_TEXT = 4_096
STATEMENT = ("Document", "BkToCstmrStmt", "Stmt")
# Opening balances in order of preference: the opening one of these dates, the one that the last statement closed with.
OPENING = ("OPBD", "PRCD")


@dataclass(slots=True)
class _Element:
    """A balance or an entry: the texts of its leaves by path, and the currency of its amount."""

    at: int
    texts: dict[str, list[str]] = field(default_factory=dict)
    currency: str = ""

    def text(self, *paths: str) -> str:
        """The first text that is there, of the first path that has one."""
        return next((self.texts[path][0] for path in paths if path in self.texts), "")

    def signed(self) -> int:
        amount = minor_units(self.at, self.text("Amt"), self.currency)
        side = self.text("CdtDbtInd")
        if side not in ("CRDT", "DBIT"):
            raise refused(self.at, "invalid_format", "CdtDbtInd is neither CRDT nor DBIT.")
        return amount if side == "CRDT" else -amount

    def day(self, *names: str) -> date:
        text = self.text(*(path for name in names for path in (f"{name}/Dt", f"{name}/DtTm")))
        moment = MOMENT.fullmatch(text)
        return iso_date(self.at, moment[1] if moment else text)


class _Handler(ContentHandler):
    """Collects each statement's balances and entries and tells the draft."""

    def __init__(self) -> None:
        super().__init__()
        self.draft = Draft()
        self.path: list[str] = []
        self.text: list[str] = []
        self.text_length = 0
        self.namespace = ""
        self.statement: _Element | None = None
        self.balances: dict[str, _Element] = {}
        self.element: _Element | None = None
        self.entries = 0

    @property
    def at(self) -> int:
        return int(self._locator.getLineNumber() or 0)  # type: ignore[attr-defined]

    def startElementNS(self, name: tuple[str | None, str], qname: str | None, attrs: Any) -> None:  # noqa: N802
        namespace, local = name[0] or "", name[1]
        if not self.path:
            if NAMESPACE.fullmatch(namespace) is None or local != "Document":
                raise refused(self.at, "invalid_format", "The document is not camt.053.")
            self.namespace = namespace
        if namespace != self.namespace or len(self.path) >= MAX_DEPTH:
            raise refused(self.at, "invalid_format", "An element is foreign to camt.053, or nested too deeply.")
        self.path.append(local)
        self.text.clear()
        self.text_length = 0
        if tuple(self.path) == STATEMENT:
            self.statement, self.balances = _Element(self.at), {}
            self.entries = 0
        elif tuple(self.path[:-1]) == STATEMENT and local in ("Bal", "Ntry"):
            self.element = _Element(self.at)
            if local == "Ntry" and self.entries == 0:
                self._open()
                self.entries = 1
        elif local == "Amt" and len(self.path) == 5 and self.element is not None:
            self.element.currency = attrs.get((None, "Ccy"), "")

    def characters(self, content: str) -> None:
        self.text_length += len(content)
        if self.text_length > MAX_TEXT:
            raise refused(self.at, "too_long", f"A text has at most {MAX_TEXT} characters.")
        self.text.append(content)

    def endElementNS(self, name: tuple[str | None, str], qname: str | None) -> None:  # noqa: N802
        text = "".join(self.text).strip()
        self.text.clear()
        self.text_length = 0
        path = tuple(self.path)
        self.path.pop()
        if path[:3] != STATEMENT or self.statement is None:
            return
        inside = path[3:]
        if self.element is not None and len(inside) > 1:
            if text:
                _keep(self.element, "/".join(inside[1:]), text)
        elif inside in (("Bal",), ("Ntry",)) and self.element is not None:
            if inside == ("Bal",):
                self.balances.setdefault(self.element.text("Tp/CdOrPrtry/Cd"), self.element)
            else:
                self._entry(self.element)
            self.element = None
        elif inside and text:
            _keep(self.statement, "/".join(inside), text)
        elif not inside:
            if self.entries == 0:
                self._open()
            self._close()

    def _open(self) -> None:
        statement, found = (
            self.statement,
            next((self.balances[kind] for kind in OPENING if kind in self.balances), None),
        )
        if statement is None or found is None:
            raise refused(self.at, "invalid_format", "The statement has no opening balance (OPBD or PRCD).")
        on = found.day("Dt")
        began = MOMENT.fullmatch(statement.text("FrToDt/FrDtTm"))
        if began is not None:
            on = iso_date(statement.at, began[1])
        account = statement.text("Acct/Id/IBAN", "Acct/Id/Othr/Id")
        self.draft.open(found.at, on, found.currency, found.signed(), account)

    def _entry(self, entry: _Element) -> None:
        status = entry.text("Sts/Cd", "Sts")
        if status not in ("BOOK", "PDNG", "INFO", "FUTR"):
            raise refused(entry.at, "invalid_format", f"{status[:20]!r} is not the status of an entry.")
        if status != "BOOK":
            return
        self.draft.of_one_currency(entry.at, entry.currency)
        ids = entry.texts.get("NtryDtls/TxDtls/Refs/EndToEndId", [])
        texts = [ids[0] if len(ids) == 1 else "", entry.text("AcctSvcrRef"), entry.text("NtryRef")]
        references = (reference_of(entry.at, text) for text in texts)
        notes = [*entry.texts.get("NtryDtls/TxDtls/RmtInf/Ustrd", [])[:10], entry.text("AddtlNtryInf")]
        self.draft.add(
            entry.at,
            entry.day("ValDt", "BookgDt"),
            entry.signed(),
            next((reference for reference in references if reference), None),
            description_of(entry.at, " ".join(notes)),
        )

    def _close(self) -> None:
        found = self.balances.get("CLBD")
        if found is None:
            raise refused(self.at, "invalid_format", "The statement has no closing balance (CLBD).")
        self.draft.close(found.at, found.day("Dt"), found.currency, found.signed())
        self.statement = None


def _keep(element: _Element, path: str, text: str) -> None:
    texts = element.texts.setdefault(path, [])
    # An entry of a batch may have thousands of transactions; how many does not matter beyond "not one".
    if len(texts) < 16:
        texts.append(text)


def parse(stream: BinaryIO) -> Statement:
    handler = _Handler()
    parser = DefusedExpatParser(forbid_dtd=True, forbid_entities=True, forbid_external=True)
    parser.setFeature(feature_namespaces, True)
    parser.setContentHandler(handler)
    handler.setDocumentLocator(parser)
    fed = 0
    try:
        while chunk := stream.read(CHUNK):
            if fed == 0:
                _check_encoding(chunk)
            parser.feed(chunk)
            fed += len(chunk)
            # What expat has not made a token of yet, it keeps: a tag without an end would be kept whole.
            if fed - parser._parser.CurrentByteIndex > MAX_TOKEN:
                raise refused(handler.at, "too_long", "A tag or text does not end.")
        if fed == 0:
            raise refused(0, "invalid_format", "The file is empty.")
        parser.close()
    except ValidationFailed:
        raise
    except DefusedXmlException:
        raise refused(handler.at, "invalid_format", "A document type and entities are refused.") from None
    except SAXParseException as error:
        raise refused(error.getLineNumber() or 0, "invalid_format", f"Not XML: {error.getMessage()}.") from None
    except (SAXException, ValueError, LookupError):
        raise refused(0, "invalid_format", "Not XML in UTF-8.") from None
    return handler.draft.finish(handler.at)


def _check_encoding(chunk: bytes) -> None:
    declared = ENCODING.match(chunk)
    if declared is not None and declared[1].lower() not in (b"utf-8", b"utf8"):
        raise refused(1, "invalid_characters", "The file is declared to be in another encoding than UTF-8.")
    if not chunk.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<":
        raise refused(1, "invalid_format", "The file is not XML in UTF-8.")
