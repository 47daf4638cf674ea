"""`make screenshots`: the demo book on every page of the admin, as pictures for docs/. Runs on throw-away servers."""

from __future__ import annotations

import io
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hpts.settings")
django.setup()
# A command, so the database is asked from the thread in which Playwright's loop runs too.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"

from django.conf import settings  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connections  # noqa: E402
from django.urls import reverse  # noqa: E402

from hpts.models import ApiClient  # noqa: E402
from hpts.site import site  # noqa: E402
from hpts.tenancy import tenant_transaction  # noqa: E402
from ledger import queries, runs  # noqa: E402
from ledger.demo import TENANT_ID  # noqa: E402
from reconciliation.proving import prove  # noqa: E402
from tests.admin.png import in_a_palette  # noqa: E402
from tests.browser import browser, server  # noqa: E402
from tests.conftest import Api, Lender, sealed  # noqa: E402
from tests.webhooks.conftest import claim, settle  # noqa: E402
from webhooks.delivery import Outcome  # noqa: E402
from webhooks.relay import relay  # noqa: E402

LOANS = 120
FEW_BYTES, MOST_BYTES = 60_000, 150_000
HEIGHTS = (1_400, 1_000, 700)
# What each page's picture is about, as a statement that gives one value.
SUBJECTS = {
    "entry": (
        "entry_id",
        "SELECT o.id::text FROM journal_entry r JOIN journal_entry o ON o.id = r.reverses_entry_id ORDER BY r.id DESC LIMIT 1",
    ),
    "loan": (
        "loan_id",
        """SELECT l.id::text FROM loan l JOIN journal_entry r ON r.loan_id = l.id AND r.event_type = 'reversal'
           ORDER BY l.version DESC, l.id LIMIT 1""",
    ),
    "account": ("code", "SELECT '1100'"),
    "program": ("program_id", "SELECT program_id::text FROM accrual_run LIMIT 1"),
    "accrual_run": ("run_id", "SELECT id::text FROM accrual_run LIMIT 1"),
    "period": ("through", "SELECT max(through_date)::text FROM period_close"),
    "key": ("key", "SELECT max(key) FROM idempotency_key WHERE key LIKE 'demo:20%'"),
    "endpoint": ("endpoint_id", "SELECT id::text FROM webhook_endpoint LIMIT 1"),
    "delivery": ("delivery_id", "SELECT max(id::text) FROM webhook_delivery WHERE sequence IS NOT NULL"),
    "run": ("run_id", "SELECT id::text FROM reconciliation_run ORDER BY requested_at DESC LIMIT 1"),
    "statement": ("statement_id", "SELECT id::text FROM bank_statement LIMIT 1"),
    "break": ("break_id", "SELECT id::text FROM reconciliation_break ORDER BY value_date LIMIT 1"),
}


def demo() -> dict[str, str]:
    """The demo book, with its night run done, its webhooks tried, sealed and proven; gives the admin's login."""
    call_command("migrate", database="owner", verbosity=0)
    out = io.StringIO()
    call_command("seed_demo", "--json", "--loans", str(LOANS), stdout=out)
    call_command("seed_demo_bank", tenant=TENANT_ID)
    call_command("seed_demo_webhooks", tenant=TENANT_ID)
    for run_id in runs.due(TENANT_ID, "beat"):
        runs.work(TENANT_ID, run_id)
    # The name that Django's test client calls the server by.
    settings.ALLOWED_HOSTS.append("testserver")
    api = Api(ApiClient.objects.get(tenant_id=TENANT_ID))
    with tenant_transaction(TENANT_ID) as cursor:
        today = queries.today(cursor)
    api.close_period((today.replace(day=1) - timedelta(days=32)).replace(day=28).isoformat())
    relay(TENANT_ID, limit=10_000)
    lender = Lender(TENANT_ID, "", [], api)
    settle(lender, claim(lender), Outcome(error="no connection"))
    sealed(TENANT_ID)
    prove(TENANT_ID, full=True, actor="schedule:proof")
    seeded: dict[str, str] = json.loads(out.getvalue())
    return seeded


def addresses() -> dict[str, str]:
    """Every page by name."""
    found = {"dashboard": "/admin/", "find": "/admin/find/?q=100.00"}
    with tenant_transaction(TENANT_ID) as cursor:
        for name in site.registered.pages:
            arguments = {}
            if name in SUBJECTS:
                argument, sql = SUBJECTS[name]
                cursor.execute(sql)
                row = cursor.fetchone()
                if row is None or row[0] is None:
                    continue
                arguments = {argument: row[0]}
            found[name.replace("_", "-")] = reverse(f"admin:{name}", kwargs=arguments)
    doors = ("people", "new_person", "clients", "tenants")
    return found | {name.replace("_", "-"): reverse(f"admin:{name}") for name in doors}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    login = demo()
    pages = addresses()
    connections.close_all()
    with server() as origin, browser() as chromium:
        for scheme, width, names in (
            ("light", 1280, list(pages)),
            ("dark", 1280, ["dashboard", "loan", "entry"]),
            ("light", 390, ["dashboard", "loan", "entry", "breaks"]),
        ):
            context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(f"{origin}/admin/login/")
            if (scheme, width) == ("light", 1280):
                _take(page, folder / "sign-in.png")
            page.fill("#id_username", login["admin_username"])
            page.fill("#id_password", login["admin_password"])
            page.click("button[type=submit]")
            for name in names:
                suffix = "" if (scheme, width) == ("light", 1280) else f"-{scheme if width == 1280 else 'small'}"
                page.goto(origin + pages[name])
                _take(page, folder / f"{name}{suffix}.png")
            context.close()


def _take(page: Any, path: Path) -> None:
    """A picture of as much of the page's beginning as the limit allows."""
    whole = page.evaluate("document.documentElement.scrollHeight")
    width = page.viewport_size["width"]
    for most in HEIGHTS:
        page.set_viewport_size({"width": width, "height": max(min(whole, most), 500)})
        png = page.screenshot()
        png = png if len(png) < FEW_BYTES else in_a_palette(png)
        if len(png) < MOST_BYTES:
            break
    else:
        raise SystemExit(f"{path} has {len(png)} bytes: show less on the page.")
    path.write_bytes(png)
    page.set_viewport_size({"width": width, "height": 800})
    print(f"{path}  {len(png) // 1000} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
