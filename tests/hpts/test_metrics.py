"""GET /metrics: who may see it, what it counts, and that several processes count together."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from hpts import metrics
from tests.conftest import Lender, new_key, payment_of, posted, refused

ROOT = Path(__file__).parent.parent.parent
TOKEN = {"Authorization": f"Bearer {settings.METRICS_TOKEN}"}


@pytest.fixture
def figures(client: Client) -> Callable[..., float]:
    """`figures(name, **labels)`: a sample's value now, 0 when there is none."""

    def read(name: str, **labels: str) -> float:
        metrics.gauges.forget()
        answer = client.get("/metrics", headers=TOKEN)
        assert answer.status_code == 200, answer.content
        for family in text_string_to_metric_families(answer.content.decode()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return 0.0

    return read


# --- Who may see it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", "Basic x", f"bearer{settings.METRICS_TOKEN}"])
def test_without_its_token_there_is_no_such_page(client: Client, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given}
    refused(client.get("/metrics", headers=headers), 404, "not_found")


def test_without_a_token_in_the_settings_nobody_sees_it(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "METRICS_TOKEN", "")
    for given in ("Bearer ", "Bearer", ""):
        refused(client.get("/metrics", headers={"Authorization": given}), 404, "not_found")


def test_a_clients_token_does_not_open_it(client: Client, acme: Lender) -> None:
    refused(client.get("/metrics", headers={"Authorization": f"Bearer {acme.api.token()}"}), 404, "not_found")


# --- What it counts --------------------------------------------------------------------------------------------------


def test_requests_entries_replays_and_refusals_are_counted(acme: Lender, figures: Callable[..., float]) -> None:
    asked: list[tuple[str, dict[str, str]]] = [
        ("hpts_requests_total", {"operation": "createPayment", "method": "POST", "status": "201"}),
        ("hpts_requests_total", {"operation": "createPayment", "method": "POST", "status": "200"}),
        ("hpts_request_seconds_count", {"operation": "createPayment"}),
        ("hpts_idempotent_replays_total", {"operation": "createPayment"}),
        ("hpts_refusals_total", {"code": "borrower_mismatch"}),
        ("hpts_postings_total", {"kind": "payment_received"}),
    ]
    before = [figures(name, **labels) for name, labels in asked]
    key, body = new_key(), payment_of(acme.loan)
    for _ in range(2):
        acme.api.post("/v1/payments", body, key=key)
    refused(acme.api.post("/v1/payments", body | {"borrower_id": acme.tenant_id}), 422, "borrower_mismatch")
    after = [figures(name, **labels) for name, labels in asked]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 3, 1, 1, 1]


def test_a_preview_and_a_refused_batch_count_no_entry(acme: Lender, figures: Callable[..., float]) -> None:
    before = figures("hpts_postings_total", kind="payment_received")
    path = f"/v1/loans/{acme.loan.loan_id}/allocation-preview"
    assert acme.api.get(path, {"amount_minor": "5", "effective_at": "2026-02-01"}).status_code == 200
    items = [{"path": "/payments", "body": payment_of(acme.loan)}, {"path": "/payments", "body": {}}]
    refused(acme.api.post("/v1/batches", {"mode": "atomic", "items": items}), 400, "validation_failed")
    assert figures("hpts_postings_total", kind="payment_received") == before


def test_the_engines_loans_are_counted(acme: Lender, figures: Callable[..., float]) -> None:
    before = figures("hpts_accrued_loans_total"), figures("hpts_postings_total", kind="accrual")
    program_id = acme.open_program(accrual_mode="engine")
    loan = acme.open_loan(program_id)
    acme.api.disburse(loan, 1_000_000, "2026-01-05")
    acme.accrue_by_engine("2026-01-06", program_id)
    after = figures("hpts_accrued_loans_total"), figures("hpts_postings_total", kind="accrual")
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)
    assert figures("hpts_accrual_seconds_total") > 0


def test_what_waits_is_read_from_the_database(acme: Lender, figures: Callable[..., float]) -> None:
    before = figures("hpts_outbox_messages")
    posted(acme.api.post("/v1/payments", payment_of(acme.loan)))
    assert figures("hpts_outbox_messages") == before + 1
    assert figures("hpts_outbox_oldest_seconds") > 0
    assert figures("hpts_gauges_up") == 1
    assert figures("hpts_database_connections") >= 0


def test_a_database_that_is_away_hides_no_counter(
    figures: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "HPTS_GAUGES", ["tests.hpts.test_metrics.broken"])
    assert figures("hpts_gauges_up") == 0
    monkeypatch.setattr(settings, "HPTS_GAUGES", [])
    assert figures("hpts_gauges_up") == 1


def broken() -> Any:
    raise OSError("away")


def test_gauges_are_asked_for_no_more_often_than_is_cheap(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(metrics, "_readings", lambda: asked.append(1) or iter(()))
    metrics.gauges.forget()
    for _ in range(5):
        assert client.get("/metrics", headers=TOKEN).status_code == 200
    metrics.gauges.forget()
    assert len(asked) == 1


def test_no_label_is_a_tenant_but_those_that_are_named(
    acme: Lender, zenith: Lender, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "METRICS_TENANTS", frozenset({acme.tenant_id}))
    for lender in (acme, zenith):
        lender.api.get("/v1/accounts")
    text = client.get("/metrics", headers=TOKEN).content.decode()
    assert f'hpts_tenant_requests_total{{tenant="{acme.tenant_id}"}} 1.0' in text
    assert zenith.tenant_id not in text


def test_what_a_client_writes_is_no_label(acme: Lender, client: Client) -> None:
    acme.api.call("BREW", "/v1/accounts")
    acme.api.get("/v1/jane-doe")
    acme.api.get("/admin/jane-doe/")
    text = client.get("/metrics", headers=TOKEN).content.decode()
    assert "jane" not in text
    assert "BREW" not in text


def test_several_processes_count_together(tmp_path: Path) -> None:
    count = "from hpts import metrics; metrics.LIMITS_ALONE.inc(); metrics.POSTINGS.labels('reversal').inc(2)"
    show = (
        "from django.test import RequestFactory; from hpts import metrics; from django.conf import settings;"
        "request = RequestFactory().get('/metrics', headers={'Authorization': 'Bearer ' + settings.METRICS_TOKEN});"
        "settings.HPTS_GAUGES = []; print(metrics.page(request).content.decode())"
    )
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "hpts.settings"}
    setup = "import django; django.setup(); "
    for code in (count, count, show):
        done = subprocess.run(
            [sys.executable, "-c", setup + code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
    assert "hpts_limits_alone_total 2.0" in done.stdout
    assert 'hpts_postings_total{kind="reversal"} 4.0' in done.stdout


# --- What is made of it ----------------------------------------------------------------------------------------------


def exported() -> set[str]:
    """The names of all instruments, and of the gauges that the code names."""
    source = "".join(
        (ROOT / path).read_text("utf-8")
        for path in (
            "hpts/metrics.py",
            "hpts/health.py",
            "ledger/queries.py",
            "webhooks/queries.py",
            "reconciliation/queries.py",
        )
    )
    names = set(re.findall(r'"(hpts_[a-z_]+)"', source))
    return names | {f"{name}{ending}" for name in names for ending in ("_total", "_bucket", "_count", "_sum")}


@pytest.mark.parametrize("path", ["deploy/prometheus/alerts.yml", "deploy/grafana/dashboards/hpts.json"])
def test_alerts_and_dashboard_ask_for_what_there_is(path: str) -> None:
    text = (ROOT / path).read_text("utf-8")
    asked = set(re.findall(r"\b(hpts_[a-z_]+)", text))
    assert len(asked) > 10
    assert asked <= exported(), f"{path} asks for {asked - exported()}"


def test_alerts_and_dashboard_are_whole() -> None:
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text("utf-8"))
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    operations = (ROOT / "docs/operations.md").read_text("utf-8")
    for rule in rules:
        assert "expr" in rule
        if "alert" in rule:
            assert rule["annotations"]["summary"]
            assert f"`{rule['alert']}`" in operations, f"say in docs/operations.md what to do about {rule['alert']}"
    panels = json.loads((ROOT / "deploy/grafana/dashboards/hpts.json").read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
