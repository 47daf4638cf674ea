"""The role at start-up: a process whose database role could walk around the walls does not serve.

Grants, row security and append-only triggers bind a role that owns nothing, can become nobody else and has no door to the
journal but the write path's functions. Whether that is so is asked of PostgreSQL here. The walls themselves are SQL, in
the migrations.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from hpts import deployment

logger = logging.getLogger(__name__)

# Rows of these come and go through the owner's functions alone.
RECORDED = [
    "journal_entry",
    "journal_line",
    "loan_balance",
    "loan_accrual",
    "idempotency_key",
    "account_sum",
    "account_rollup",
]

# Each row is one thing that is wrong, as the end of a sentence about the role. A role is everything that it can become:
# SET ROLE reaches each role that the session's user is a member of, and a superuser is a member of all.
FAULTS = """
WITH reachable AS (
    SELECT r.*, CASE WHEN r.rolname IN (session_user, current_user) THEN 'it' ELSE 'through ' || r.rolname || ' it' END AS it
    FROM pg_catalog.pg_roles r
    WHERE pg_has_role(session_user, r.oid, 'MEMBER') OR pg_has_role(current_user, r.oid, 'MEMBER')
), owned AS (
    SELECT relowner AS owner, 'table ' || oid::regclass AS name FROM pg_catalog.pg_class
    UNION ALL
    SELECT proowner, 'function ' || oid::regprocedure FROM pg_catalog.pg_proc
    UNION ALL
    SELECT nspowner, 'schema ' || nspname FROM pg_catalog.pg_namespace
    UNION ALL
    SELECT datdba, 'database ' || datname FROM pg_catalog.pg_database WHERE datname = current_database()
)
SELECT it || ' has ' || a.attribute
FROM reachable, LATERAL (VALUES
    (rolsuper, 'SUPERUSER'), (rolbypassrls, 'BYPASSRLS'), (rolcreaterole, 'CREATEROLE'), (rolcreatedb, 'CREATEDB'),
    (rolreplication, 'REPLICATION')) AS a (present, attribute)
WHERE a.present
UNION ALL
SELECT it || ' owns the ' || min(o.name) || CASE count(*) WHEN 1 THEN '' ELSE ' and ' || count(*) - 1 || ' more' END
FROM reachable JOIN owned o ON o.owner = oid GROUP BY it
UNION ALL
SELECT it || ' may ' || privilege || ' on ' || t.name
FROM reachable, unnest(%s::text[]) AS t (name),
     unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) AS privilege
WHERE CASE WHEN privilege IN ('INSERT', 'UPDATE') THEN has_any_column_privilege(oid, to_regclass('public.' || t.name), privilege)
           ELSE has_table_privilege(oid, to_regclass('public.' || t.name), privilege) END
UNION ALL
SELECT it || ' may CREATE in the schema public' FROM reachable WHERE has_schema_privilege(oid, 'public', 'CREATE')
UNION ALL
SELECT it || ' may CREATE schemas' FROM reachable WHERE has_database_privilege(oid, current_database(), 'CREATE')
UNION ALL
SELECT it || ' may SET session_replication_role' FROM reachable
WHERE has_parameter_privilege(oid, 'session_replication_role', 'SET')
UNION ALL
SELECT 'it is a member of ' || rolname FROM reachable
WHERE rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files')
"""


class RoleRefused(ImproperlyConfigured):
    """The connection's role could bypass a wall; the message says how."""


def check_role(connection: BaseDatabaseWrapper) -> None:
    """Raise RoleRefused, naming all that is wrong, when the connection's role could bypass a wall."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT session_user, rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user")
        role, superuser = cursor.fetchone()
        if superuser:
            faults = ["it has SUPERUSER"]
        else:
            cursor.execute(FAULTS, (RECORDED,))
            faults = sorted(fault for (fault,) in cursor.fetchall())
    if faults:
        raise RoleRefused(
            f"The database role {role} could bypass the ledger's walls: {'; '.join(faults)}. "
            "DATABASE_URL must name a role like hpts_app (deploy/roles.sql)."
        )


def watch_role(**_: Any) -> None:
    """Called when the API, a worker or beat starts: end the process when its settings or its role are refused, and check each
    connection that it makes from now on. When the database does not answer yet, the first connection that succeeds is the
    check."""
    deployment.refuse_unfit()
    connection_created.connect(_check_connection)
    try:
        connections["default"].ensure_connection()
    except RoleRefused as refused:
        sys.stderr.write(f"{refused}\n")
        # Not an Exception, which Celery's signals swallow; 3 is what makes gunicorn stop instead of starting another worker.
        raise SystemExit(3) from None
    except OperationalError as error:
        logger.warning("The database does not answer, so its role is checked later: %s", error)
    finally:
        # A server may fork after this, and a connection must not be shared.
        connections["default"].close()


def _check_connection(connection: BaseDatabaseWrapper, **_: Any) -> None:
    if connection.alias == "default":
        try:
            check_role(connection)
        except RoleRefused:
            connection.close()
            raise


@register(Tags.database)
def database_role(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **_: Any
) -> list[CheckMessage]:
    """`manage.py check --database default` says the same."""
    if "default" not in (databases or ()):
        return []
    try:
        check_role(connections["default"])
    except RoleRefused as refused:
        return [Error(str(refused), id="hpts.E001")]
    return []
