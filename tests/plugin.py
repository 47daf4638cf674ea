"""Throw-away PostgreSQL and Redis for the suite, started before the settings are read (a conftest would be too late).

The process that the user started makes the servers in a temporary directory and migrates the database `hpts` once, as
hpts_owner. That database is the template: every test process (each xdist worker, or the one process without xdist) gets
a copy of it, and a Redis database of its own. Variables that the user's shell has set for other servers are replaced.
Nothing of this remains afterwards: the servers stop and remove their files as soon as no test process lives.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest

from hpts import embedded

# Set for the children by the process that started the servers.
STATE = "HPTS_TEST_STATE"
# Set by the user: some tests then run as long as their promise says, and not as long as one waits for a suite.
LONG = "HPTS_LONG"
_held: list[embedded.Attachment] = []


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, None, None]:
    # A wrapper, because it then runs before pytest-django, which reads the settings in the same hook.
    options = early_config.known_args_namespace
    if not (options.help or options.version):
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        try:
            if worker == "main":
                _start_servers()
            os.environ |= _own_databases(worker)
        except BaseException:
            _release()
            raise
    return (yield)


def pytest_unconfigure() -> None:
    _release()


def _release() -> None:
    while _held:
        _held.pop().release()


def _start_servers() -> None:
    for name in [name for name in os.environ if name.startswith("HPTS_") and name != LONG]:
        del os.environ[name]
    state = Path(tempfile.mkdtemp(prefix="hpts-test-"))
    os.environ[STATE] = os.environ["HPTS_STATE_DIR"] = str(state)
    os.environ |= embedded.application_secrets(state)
    for kind in embedded.SERVERS:
        attachment = embedded.Attachment(kind, state, throwaway=True)
        _held.append(attachment)
        os.environ |= attachment.variables
    migrate = [sys.executable, "manage.py", "migrate", "--database", "owner", "--verbosity", "0"]
    if subprocess.run(migrate, check=False, cwd=embedded.ROOT).returncode != 0:
        raise pytest.UsageError("the migrations fail")


def _own_databases(worker: str) -> dict[str, str]:
    """Copy the template for this process; gives the variables that name the copy."""
    state = Path(os.environ[STATE])
    template = embedded.environment(state)
    name = f"hpts_{worker}"
    administrator_url = embedded.administrator_url(state, template)
    own_administrator_url = _with_database(administrator_url, name)
    # One at a time: PostgreSQL refuses to copy a database while somebody is connected to it.
    with embedded.locked(state / "copy.lock"):
        with psycopg.connect(_with_database(administrator_url, "postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE hpts OWNER hpts_owner")
        # Rights on the database itself are not copied.
        embedded.make_roles(own_administrator_url, embedded.role_passwords(state))
    urls = {key: _with_database(value, name) for key, value in template.items() if key.endswith("DATABASE_URL")}
    number = 0 if worker == "main" else 1 + int(worker.removeprefix("gw"))
    return (
        template
        | urls
        | {
            "HPTS_SUPERUSER_DATABASE_URL": own_administrator_url,
            "REDIS_URL": re.sub(r"/\d+$", f"/{number}", template["REDIS_URL"]),
        }
    )


def _with_database(url: str, name: str) -> str:
    return f"{url.rpartition('/')[0]}/{name}"
