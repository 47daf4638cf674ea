"""A statement file becomes rows, once, and is reconciled at once. For the API, the command and the admin alike."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec
from django.db.backends.utils import CursorWrapper

from hpts import audit
from hpts.tenancy import current_tenant
from ledger.idempotency import Answer, Call, fingerprint, once
from ledger.posting import Origin, Posting, Touches
from reconciliation import queries
from reconciliation.accounts import BankAccount, lock, meet_account, take_time
from reconciliation.formats import FORMATS, columns
from reconciliation.reconciling import CHUNK, reconcile
from reconciliation.statements import Statement, refused

# The operation, as the API names it.
IMPORT = "importStatement"
# What the command takes; the API takes less. A parser never holds the file, only the statement that it makes.
MAX_FILE_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StatementFile:
    """A file that has been read and found sound: nothing of it is in the database yet."""

    bank_account_ref: str
    account_code: str | None
    format: str
    digest: bytes
    statement: Statement


def read_file(
    stream: BinaryIO,
    *,
    bank_account_ref: str,
    format: str,  # noqa: A002 (the contract's name)
    account_code: str | None = None,
    names: Mapping[str, str] | None = None,
) -> StatementFile:
    """Parse a file. `names`: the CSV file's own column names. Raises ValidationFailed with line and reason."""
    hashed = hashlib.sha256()
    size = 0
    while chunk := stream.read(1024 * 1024):
        size += len(chunk)
        if size > MAX_FILE_BYTES:
            raise refused(0, "too_long", f"A statement file has at most {MAX_FILE_BYTES // 1024 // 1024} MiB.")
        hashed.update(chunk)
    stream.seek(0)
    statement = columns.parse(stream, names) if format == "csv" else FORMATS[format](stream)
    return StatementFile(bank_account_ref, account_code, format, hashed.digest(), statement)


def import_once(origin: Origin, key: str, file: StatementFile) -> tuple[Answer, bool]:
    """Import a file once for a key, with a record in the audit log; also whether the file is new. Raises what
    `import_statement` does."""
    said = [file.bank_account_ref, file.format, file.account_code, file.digest.hex()]
    is_new = True

    def work(posting: Posting) -> msgspec.Raw:
        nonlocal is_new
        body, is_new = import_statement(posting.cursor, file, origin.actor)
        about = ("bank statement", msgspec.json.decode(body)["statement_id"])
        audit.record(origin.as_caller(), IMPORT, about=about, cursor=posting.cursor)
        return msgspec.Raw(body.encode())

    done = once(Call(origin, key, fingerprint(IMPORT, {}, said)), Touches(mode="read"), work)
    return done, is_new


def import_statement(cursor: CursorWrapper, file: StatementFile, actor: str) -> tuple[str, bool]:
    """The answer as JSON, and whether the file is new. Raises AccountNotFound, CurrencyMismatch, ValidationFailed."""
    take_time(cursor)
    statement = file.statement
    account = meet_account(cursor, file.bank_account_ref, file.account_code, statement.currency)
    lock(cursor, account)
    known = queries.answer_of(cursor, ref=account.ref, digest=file.digest)
    if known is not None:
        return known, False
    statement_id = _record(cursor, account, file, actor)
    reconcile(cursor, account, actor)
    shown = queries.statement(cursor, statement_id=statement_id)
    assert shown is not None
    answer = msgspec.json.encode(shown).decode()
    cursor.execute(
        "INSERT INTO bank_statement_answer (tenant_id, statement_id, answer) VALUES (%s, %s, %s)",
        (current_tenant(), statement_id, answer),
    )
    return answer, True


def _record(cursor: CursorWrapper, account: BankAccount, file: StatementFile, actor: str) -> str:
    """Lines first, then the statement, whose wall adds them up."""
    statement, statement_id, tenant = file.statement, str(uuid.uuid4()), current_tenant()
    for start in range(0, len(statement.lines), CHUNK):
        lines = statement.lines[start : start + CHUNK]
        cells: list[list[Any]] = [
            [getattr(line, name) for line in lines]
            for name in ("number", "value_date", "amount_minor", "reference", "description")
        ]
        cursor.execute(
            """INSERT INTO bank_statement_line
                   (tenant_id, statement_id, number, value_date, amount_minor, reference, description)
               SELECT %s, %s::uuid, * FROM unnest(%s::int[], %s::date[], %s::bigint[], %s::text[], %s::text[])""",
            (tenant, statement_id, *cells),
        )
    cursor.execute(
        """INSERT INTO bank_statement
               (tenant_id, id, bank_account_ref, format, file_hash, from_date, to_date, opening_balance_minor,
                closing_balance_minor, line_count, actor)
           VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)""",
        (
            tenant,
            statement_id,
            account.ref,
            file.format,
            file.digest,
            statement.from_date,
            statement.to_date,
            statement.opening_balance_minor,
            statement.closing_balance_minor,
            len(statement.lines),
            actor,
        ),
    )
    return statement_id
