"""How long a statement of a hundred thousand lines takes against as many entries: parsing, matching, writing, and its memory.

    python -m hpts.embedded temporary .venv/bin/python -m benchmarks.reconciliation [LINES]

The books are made first, in a process of their own, so that the peak memory is the import's. Most lines agree by reference, some
by amount alone, some are deposits of several; every hundredth is a break.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import date, timedelta
from pathlib import Path

import django

LINES = 100_000
FIRST = date(2026, 1, 1)
DAYS = 30
BATCH = 500
GOAL_SECONDS, GOAL_MEGABYTES = 60, 500


def day(number: int) -> date:
    return FIRST + timedelta(number * DAYS // LINES % DAYS)


def make_books(tenant_id: str, lines: int, file: Path) -> None:
    """Entries and the statement of them. Of each hundred: one the bank has and the books do not, one the other way round."""
    from hpts.tenancy import tenant_transaction
    from ledger import masters
    from ledger.events import Line, ManualAdjustment
    from ledger.posting import Origin, Touches, opened

    with tenant_transaction(tenant_id) as cursor:
        masters.create_tenant(cursor, name="Bench", currency="USD", timezone="UTC")
    origin = Origin(tenant_id, "bench", str(uuid.uuid4()))
    for start in range(0, lines, BATCH):
        with opened(origin, Touches(since=FIRST)) as (posting, _):
            assert posting is not None
            for number in range(start, min(start + BATCH, lines)):
                if number % 100 == 7:
                    continue
                amount = 1_000 + number
                reference = f"REF-{number}" if number % 10 else None
                posting.post(
                    ManualAdjustment(
                        effective_at=day(number),
                        lines=(
                            Line("1000", "DR", amount, "USD", external_ref=reference),
                            Line("3000", "CR", amount, "USD"),
                        ),
                    )
                )
            posting.record()
    total = 0
    rows = ["date,amount,currency,reference,description", f"{FIRST},0.00,USD,opening,"]
    for number in range(lines):
        if number % 100 != 13:
            amount = 1_000 + number
            total += amount
            reference = f"REF-{number}" if number % 10 else f"BANK-{number}"
            rows.append(f"{day(number)},{amount // 100}.{amount % 100:02},USD,{reference},Payment {number}")
    rows.append(f"{FIRST + timedelta(DAYS)},{total // 100}.{total % 100:02},USD,closing,")
    file.write_text("\n".join(rows) + "\n")


def measure(tenant_id: str, file: Path) -> dict[str, float]:
    from hpts.tenancy import SNAPSHOT, tenant_transaction
    from reconciliation import runs
    from reconciliation.importing import import_statement, read_file
    from reconciliation.status import status

    figures: dict[str, float] = {}
    began = time.perf_counter()
    with file.open("rb") as stream:
        read = read_file(stream, bank_account_ref="bench", format="csv")
    figures["parse_seconds"] = time.perf_counter() - began
    with tenant_transaction(tenant_id) as cursor:
        answer, _ = import_statement(cursor, read, "bench")
    figures["import_seconds"] = time.perf_counter() - began
    figures["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    made = json.loads(answer)
    figures |= {name: made[name] for name in ("line_count", "matched_count", "break_count")}
    with tenant_transaction(tenant_id) as cursor:
        runs.request_run(cursor, as_of=FIRST + timedelta(DAYS), actor="bench")
    began = time.perf_counter()
    runs.work_off(tenant_id)
    figures["run_again_seconds"] = time.perf_counter() - began
    began = time.perf_counter()
    with tenant_transaction(tenant_id, first=SNAPSHOT) as cursor:
        status(cursor, FIRST + timedelta(DAYS))
    figures["status_seconds"] = time.perf_counter() - began
    return {name: round(value, 3) for name, value in figures.items()}


def main(arguments: list[str]) -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hpts.settings")
    os.environ.setdefault("HPTS_DEVELOPMENT", "1")
    if arguments[:1] == ["measure"]:
        django.setup()
        print(json.dumps(measure(arguments[1], Path(arguments[2]))))
        return 0
    migrate = [sys.executable, "manage.py", "migrate", "--database", "owner", "--verbosity", "0"]
    subprocess.run(migrate, check=True)
    django.setup()
    tenant_id = str(uuid.uuid4())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "statement.csv"
        make_books(tenant_id, int(arguments[0]) if arguments else LINES, file)
        command = [sys.executable, "-m", "benchmarks.reconciliation", "measure", tenant_id, str(file)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    figures = json.loads(printed)
    print(json.dumps(figures, indent=2))
    return int(figures["import_seconds"] > GOAL_SECONDS or figures["peak_megabytes"] > GOAL_MEGABYTES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
