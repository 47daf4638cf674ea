"""What must hold of the structure itself. Each failure says what to do."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

import reconciliation.errors  # noqa: F401 (the catalogue of problems has what has been imported)
from hpts import problems
from ledger.events import EventKind
from ledger.rules import RULES

ROOT = Path(__file__).parents[1]
APPS = ("hpts", "ledger", "webhooks", "reconciliation")
# Written by record_posting alone, which ledger/posting.py alone calls.
JOURNAL = ("journal_entry", "journal_line", "loan_balance", "loan_accrual", "outbox_message", "idempotency_key")
# Facts, rules and arithmetic: no database, no settings, no clock, no chance.
PURE = ["events.py", "chart.py", "state.py", "money.py", "interest.py", "document.py", "merkle.py", "rules"]
PURE_PACKAGES = {
    "ledger.events",
    "ledger.chart",
    "ledger.state",
    "ledger.money",
    "ledger.interest",
    "ledger.errors",
    "ledger.rules",
}
IMPURE_MODULES = {"time", "os", "random", "secrets", "uuid", "socket", "threading", "subprocess", "locale", "logging"}


def sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """Path (from the root) and tree of every Python file of the product below these folders; migrations left out."""
    for folder in folders:
        place = ROOT / folder
        files = [place] if place.is_file() else sorted(place.rglob("*.py"))
        for file in files:
            if "migrations" not in file.parts:
                yield str(file.relative_to(ROOT)), _tree(file)


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in it; imports for the type checker alone do not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "import by full names"
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)
        else:
            yield from imports(node)


def strings(tree: ast.Module) -> Iterator[str]:
    """The string constants of a file but its docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


# --- Who may import whom ---------------------------------------------------------------------------------------------

FORBIDDEN = {
    "hpts": {"ledger", "webhooks", "reconciliation"},
    "ledger": {"webhooks", "reconciliation"},
    "webhooks": {"reconciliation"},
    "reconciliation": {"webhooks"},
}
# Where the parts are put together.
ASSEMBLY = {"hpts/urls.py", "hpts/settings.py", "hpts/celery.py"}


@pytest.mark.parametrize("app", APPS)
def test_imports_go_one_way(app: str) -> None:
    for path, tree in sources(app):
        wrong = {name.partition(".")[0] for name in imports(tree)} & FORBIDDEN[app]
        assert not wrong or path in ASSEMBLY, (
            f"{path} imports {wrong}: move what it needs, or turn the dependency round"
        )


def test_rules_import_the_pure_modules_alone() -> None:
    for path, tree in sources("ledger/rules"):
        for name in imports(tree):
            known = any(name == package or name.startswith(f"{package}.") for package in PURE_PACKAGES)
            assert known or name.partition(".")[0] in sys.stdlib_module_names, (
                f"{path} imports {name}: pass it in with the state"
            )


@pytest.mark.parametrize("part", PURE)
def test_pure_modules_have_no_clock_no_chance_and_no_django(part: str) -> None:
    for path, tree in sources(f"ledger/{part}"):
        named = {name.partition(".")[0] for name in imports(tree)}
        assert not named & (IMPURE_MODULES | {"django", "rest_framework", "psycopg"}), (
            f"{path}: pass it in with the state"
        )
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in ("now", "today", "utcnow"), (
                    f"{path}:{node.lineno} reads a clock: pass the date in"
                )


@pytest.mark.parametrize("part", PURE)
def test_money_never_is_a_float(part: str) -> None:
    for path, tree in sources(f"ledger/{part}"):
        for node in ast.walk(tree):
            place = f"{path}:{getattr(node, 'lineno', 0)}"
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), f"{place}: count minor units"
            assert not (isinstance(node, ast.Name) and node.id in ("float", "Decimal")), f"{place}: count minor units"
            assert not isinstance(getattr(node, "op", None), ast.Div), (
                f"{place}: divide with round_half_even, or with //"
            )


def test_only_the_doors_know_http() -> None:
    for path, tree in sources("ledger"):
        if Path(path).name in ("views.py", "urls.py", "admin.py"):
            continue
        named = {name for name in imports(tree) if name.startswith(("rest_framework", "django.http", "hpts.views"))}
        assert not named, f"{path} imports {named}: requests and answers stay in views.py"


# --- One place for each thing ----------------------------------------------------------------------------------------


# Balances are a cache: this command rebuilds them from the lines, as the owner.
REBUILDS = "ledger/management/commands/rebuild_balances.py"


def test_only_posting_writes_the_journal() -> None:
    write = re.compile(
        rf"\b(INSERT\s+INTO|UPDATE|DELETE\s+FROM|TRUNCATE|COPY)\s+(public\.)?({'|'.join(JOURNAL)})\b", re.IGNORECASE
    )
    for path, tree in sources(*APPS):
        for text in strings(tree):
            written = {found[3].lower() for found in write.finditer(text)} - (
                {"loan_balance"} if path == REBUILDS else set()
            )
            assert not written, f"{path} writes {written}: post an event instead (ledger/posting.py)"
            if path != "ledger/posting.py":
                assert "record_posting" not in text, (
                    f"{path} calls record_posting: post an event instead (ledger/posting.py)"
                )


def test_no_model_of_the_journal_is_written_by_the_orm() -> None:
    models = {"JournalEntry", "JournalLine", "Balance", "Accrual", "OutboxMessage", "IdempotencyKey"}
    write = re.compile(
        rf"\b({'|'.join(models)})\.objects\b.*\.(create|bulk_create|get_or_create|update|update_or_create|bulk_update|delete)\("
    )
    for path, tree in sources(*APPS):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                assert not write.search(ast.unparse(node)), (
                    f"{path}:{node.lineno}: post an event instead (ledger/posting.py)"
                )


def test_only_tenancy_opens_transactions_and_names_the_tenant() -> None:
    for path, tree in sources(*APPS):
        if path == "hpts/tenancy.py":
            continue
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not used & {"atomic", "set_autocommit"}, f"{path}: use tenant_transaction() (hpts/tenancy.py)"
        assert not any("set_config('hpts.tenant_id'" in text for text in strings(tree)), (
            f"{path}: use tenant_transaction()"
        )


def test_only_tenancy_filters_by_tenant() -> None:
    for path, tree in sources("ledger", "webhooks", "reconciliation"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("filter", "exclude", "get"):
                if "ApiClient.objects" in ast.unparse(node.func):  # No tenant's data: see TENANT_TABLES.
                    continue
                named = {keyword.arg or "" for keyword in node.keywords}
                assert not {name for name in named if name.startswith("tenant")}, (
                    f"{path}:{node.lineno}: the manager filters"
                )


# --- Kinds, rules, problems, documents -------------------------------------------------------------------------------


def test_a_rule_is_named_like_its_kind() -> None:
    for kind, rule in RULES.items():
        assert rule.__name__ == kind.value, (
            f"rename {rule.__name__} to {kind.value}: one grep finds enum, rule, test, document"
        )


def test_each_rule_says_in_words_what_it_posts() -> None:
    for kind, rule in RULES.items():
        assert (rule.__doc__ or "").strip(), f"begin {rule.__name__} with the entry that it makes, in words"
        assert isinstance(kind, EventKind)


def test_each_kind_that_is_posted_has_its_row_in_the_document() -> None:
    rows = (ROOT / "docs" / "posting-rules.md").read_text("utf-8")
    for kind in RULES:
        assert re.search(rf"^\| `{kind.value}`", rows, re.MULTILINE), (
            f"add a row for {kind.value} to docs/posting-rules.md"
        )


def documented_errors() -> str:
    return (ROOT / "docs" / "errors.md").read_text("utf-8")


def test_each_problem_has_its_row_in_the_document() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| ([0-9]{3}) \|", documented_errors(), re.MULTILINE)
    documented = {code: int(status) for code, status in rows}
    assert len(rows) == len(documented), "a code stands twice in docs/errors.md"
    existing = {kind.code: kind.status for kind in problems.catalogue()}
    assert documented.items() >= existing.items(), (
        f"add to docs/errors.md: {dict(existing.items() - documented.items())}"
    )
    assert existing.items() >= documented.items(), (
        f"take out of docs/errors.md: {dict(documented.items() - existing.items())}"
    )


def test_each_code_of_a_field_is_in_the_document() -> None:
    for path, tree in sources(*APPS):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") not in ("FieldProblem", "FieldError"):
                continue
            code = node.args[1] if getattr(node.func, "id", "") == "FieldProblem" else node.args[0]
            if isinstance(code, ast.Constant):
                told = f"`{code.value!s}`" in documented_errors()
                assert told, f"{path}:{node.lineno}: tell docs/errors.md what {code.value!s} means"


def test_each_problem_is_raised_somewhere() -> None:
    """A refusal that nobody raises is a promise that nobody keeps."""
    spoken = {name.id for _, tree in sources(*APPS) for name in ast.walk(tree) if isinstance(name, ast.Name)}
    # Of operations that are still to come.
    awaited = {"ClientCertificateRequired"}
    for kind in problems.catalogue():
        assert kind.__name__ in spoken | awaited, f"{kind.__name__} is raised nowhere: take it out of {kind.__module__}"


def environment_names() -> Iterator[tuple[str, str]]:
    """Every variable that the product reads, with the file that reads it."""
    for path, tree in sources("hpts", "ledger", "webhooks", "reconciliation", "deploy"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                reader = ast.unparse(node.func)
                name: Any = node.args[0]
                read = reader.startswith("env.") or reader in ("os.environ.get", "os.getenv", "environ.get")
            elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
                read, name = ast.unparse(node.value) in ("os.environ", "environ"), node.slice
            else:
                continue
            if read and isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value, path


def test_each_variable_of_the_environment_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    ours = {
        (name, path) for name, path in environment_names() if name.startswith("HPTS_") or path == "hpts/settings.py"
    }
    missing = {(name, path) for name, path in ours if f"`{name}`" not in readme}
    assert not missing, f"give each of these a line in README.md: {sorted(missing)}"


def test_each_module_says_what_lives_in_it() -> None:
    for path, tree in sources(*APPS):
        if tree.body:
            assert ast.get_docstring(tree), f"begin {path} with what lives here, and what must not"


# --- The database ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def catalog() -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(os.environ["HPTS_SUPERUSER_DATABASE_URL"]) as connection:
        yield connection


@pytest.mark.parametrize("table", JOURNAL)
@pytest.mark.parametrize("role", ["hpts_app", "hpts_readonly"])
def test_the_application_cannot_change_the_journal(catalog: psycopg.Connection[Any], role: str, table: str) -> None:
    for privilege in ("INSERT", "UPDATE", "DELETE", "TRUNCATE", "TRIGGER", "REFERENCES"):
        whole = "SELECT has_table_privilege(%s, %s, %s)"
        assert catalog.execute(whole, (role, table, privilege)).fetchone() == (False,), (
            f"revoke {privilege} on {table} from {role}"
        )
    for privilege in ("INSERT", "UPDATE"):
        column = "SELECT has_any_column_privilege(%s, %s, %s)"
        assert catalog.execute(column, (role, table, privilege)).fetchone() == (False,), (
            f"revoke {privilege} on {table} from {role}"
        )


def test_the_application_could_not_pass_a_wall(catalog: psycopg.Connection[Any]) -> None:
    roles = catalog.execute(
        """SELECT rolname FROM pg_roles
           WHERE rolname IN ('hpts_app', 'hpts_readonly')
             AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication
                  OR EXISTS (SELECT FROM pg_auth_members WHERE member = pg_roles.oid)
                  OR EXISTS (SELECT FROM pg_class WHERE relowner = pg_roles.oid))"""
    ).fetchall()
    assert roles == [], "these roles must own nothing, belong to nothing and bypass nothing"


# The API's clients belong to a tenant and are looked up before a tenant is known; they are no tenant's data.
TENANT_TABLES = """
    SELECT c.oid, c.relname, a.attnum FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = CASE c.relname WHEN 'tenant' THEN 'id' ELSE 'tenant_id' END
    WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND c.relname <> 'hpts_apiclient'
      AND (c.relname = 'tenant' OR a.attname = 'tenant_id')
"""


def test_every_table_of_a_tenant_has_forced_row_security(catalog: psycopg.Connection[Any]) -> None:
    open_tables = catalog.execute(
        f"""SELECT t.relname FROM ({TENANT_TABLES}) t JOIN pg_class c ON c.oid = t.oid
            WHERE NOT c.relrowsecurity OR NOT c.relforcerowsecurity
               OR NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polqual IS NOT NULL
                              AND p.polwithcheck IS NOT NULL)"""
    ).fetchall()
    assert open_tables == [], "give these FORCE ROW LEVEL SECURITY and a policy with USING and WITH CHECK"


def test_every_key_of_a_tenants_table_starts_with_the_tenant(catalog: psycopg.Connection[Any]) -> None:
    wrong = catalog.execute(
        f"""SELECT t.relname, i.indexrelid::regclass::text FROM ({TENANT_TABLES}) t
            JOIN pg_index i ON i.indrelid = t.oid WHERE i.indkey[0] <> t.attnum
            UNION ALL
            SELECT t.relname, c.conname FROM ({TENANT_TABLES}) t
            JOIN pg_constraint c ON c.conrelid = t.oid AND c.contype IN ('f', 'p', 'u')
            WHERE c.conkey[1] <> t.attnum OR c.confdeltype NOT IN (' ', 'a') OR c.confupdtype NOT IN (' ', 'a')"""
    ).fetchall()
    assert wrong == [], "start these with tenant_id, and let them never cascade"


def test_constraints_triggers_and_indexes_are_named(catalog: psycopg.Connection[Any]) -> None:
    """An error log should name the rule: <table>_<rule>, not what Django or PostgreSQL makes up."""
    invented = catalog.execute(
        f"""SELECT c.conname FROM pg_constraint c JOIN ({TENANT_TABLES}) t ON t.oid = c.conrelid
            WHERE c.contype <> 'n' AND (c.conname !~ ('^' || t.relname || '_[a-z0-9_]+$') OR c.conname ~ '_[0-9a-f]{{8}}(_|$)')"""
    ).fetchall()
    assert invented == [], "name these <table>_<rule>"
