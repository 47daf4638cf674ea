"""`manage.py import_statement FILE`: import a bank statement and reconcile it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from hpts import fields
from hpts.problems import Problem
from hpts.tenancy import tenant_transaction
from ledger.management.terminal import known_tenant
from ledger.posting import with_retries
from reconciliation.formats import FORMATS
from reconciliation.formats.columns import COLUMNS
from reconciliation.importing import MAX_FILE_BYTES, StatementFile, import_statement, read_file

ACTOR = "command:import_statement"


class Command(BaseCommand):
    help = "Import a bank statement and reconcile it. Exit code 1, with line and reason, when the file is refused."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, metavar="FILE")
        parser.add_argument("--tenant", required=True, metavar="ID")
        parser.add_argument(
            "--bank-account", required=True, metavar="REF", help="the name that this account has with us"
        )
        parser.add_argument("--format", required=True, choices=list(FORMATS))
        parser.add_argument("--account-code", metavar="CODE", help="GL account of a new bank account; by default 1000")
        parser.add_argument(
            "--column",
            action="append",
            type=_column,
            metavar="OURS=THEIRS",
            help=f"CSV: what the file calls one of our columns ({', '.join(COLUMNS)}); may be given several times",
        )
        parser.add_argument("--json", action="store_true", help="print the answer of POST /reconciliation/statements")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant_id = known_tenant(options["tenant"])
        try:
            file = _read(options)
            answer, is_new = with_retries(lambda: _import(tenant_id, file))
        except fields.FieldError as error:
            raise CommandError(error.message) from None
        except OSError as error:
            raise CommandError(f"{options['file']}: {error.strerror}") from None
        except Problem as problem:
            raise CommandError(problem.detail) from None
        self.stdout.write(answer if options["json"] else _story(json.loads(answer), is_new))


def _column(text: str) -> tuple[str, str]:
    ours, mark, theirs = text.partition("=")
    if ours not in COLUMNS or not mark or not theirs:
        raise argparse.ArgumentTypeError(
            f"{text}: one of {', '.join(COLUMNS)}, `=` and the file's own name is expected"
        )
    return ours, theirs


def _read(options: dict[str, Any]) -> StatementFile:
    path: Path = options["file"]
    ref = fields.Reference.parse(options["bank_account"])
    code = options["account_code"] and fields.AccountCode.parse(options["account_code"])
    with path.open("rb") as stream:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CommandError(f"A statement file has at most {MAX_FILE_BYTES // 1024 // 1024} MiB.")
        names = dict(options["column"] or ()) or None
        return read_file(stream, bank_account_ref=ref, format=options["format"], account_code=code, names=names)


def _import(tenant_id: str, file: StatementFile) -> tuple[str, bool]:
    with tenant_transaction(tenant_id) as cursor:
        return import_statement(cursor, file, ACTOR)


def _story(answer: dict[str, Any], is_new: bool) -> str:
    head = "Imported" if is_new else "This file has been imported before, as"
    return (
        f"{head} {answer['statement_id']}: {answer['bank_account_ref']}, {answer['from_date']} to {answer['to_date']}, "
        f"{answer['line_count']} lines in {answer['currency']}, {answer['matched_count']} matched, {answer['break_count']} breaks"
    )
