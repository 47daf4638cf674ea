"""`manage.py export_journal`: a tenant's journal as JSON lines, CSV or Parquet (ledger/export.py), with a progress bar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from hpts import fields
from ledger.export import FORMATS, ExportRefused, Progress, Selection, export
from ledger.management.terminal import known_tenant, progress


class Command(BaseCommand):
    help = "Write a tenant's journal to a file. Repeat the command after it was broken off: it goes on."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="ID")
        parser.add_argument("--output", required=True, metavar="FILE", type=Path, help="must not exist yet")
        parser.add_argument("--format", choices=FORMATS, help="when it is left out, the ending of FILE says it")
        parser.add_argument("--from", metavar="DATE", dest="from_date", help="entries effective on or after it")
        parser.add_argument("--to", metavar="DATE", dest="to_date", help="entries effective on or before it")
        parser.add_argument(
            "--since",
            metavar="CURSOR",
            default="0",
            help="what was recorded after the export that answered this cursor",
        )
        parser.add_argument("--restart", action="store_true", help="begin anew instead of going on")
        parser.add_argument("--json", action="store_true", help="print {output, format, entries, bytes, next_since}")

    def handle(self, *args: Any, **options: Any) -> None:
        output: Path = options["output"]
        asked = _selection(options, output)
        last: list[Progress] = []

        def steps() -> Iterator[tuple[int, int]]:
            for step in export(asked, output, restart=options["restart"]):
                last[:] = [step]
                yield step.entries, step.total

        try:
            progress("Exporting the journal", steps(), shown=not options["json"])
        except ExportRefused as refused:
            raise CommandError(str(refused)) from None
        (done,) = last
        if options["json"]:
            answer = {"output": str(output), "format": asked.format, "entries": done.entries}
            self.stdout.write(json.dumps(answer | {"bytes": output.stat().st_size, "next_since": done.below}))
        else:
            self.stdout.write(f"Exported {done.entries:,} entries to {output}. What comes later: --since {done.below}")


def _selection(options: dict[str, Any], output: Path) -> Selection:
    """What the options ask for. CommandError when they do not make sense."""
    name = options["format"] or output.suffix.removeprefix(".")
    if name not in FORMATS:
        raise CommandError(f"{output} does not end in .jsonl, .csv or .parquet: say --format.")
    if not (options["since"].isascii() and options["since"].isdigit() and len(options["since"]) <= 18):
        raise CommandError("--since takes what an export before has answered.")
    try:
        dates = {
            name: options[name] and fields.IsoDate.parse(options[name]).isoformat() for name in ("from_date", "to_date")
        }
    except fields.FieldError as error:
        raise CommandError(error.message) from None
    if dates["from_date"] and dates["to_date"] and dates["from_date"] > dates["to_date"]:
        raise CommandError("--from is after --to.")
    return Selection(known_tenant(options["tenant"]), name, options["since"], **dates)
