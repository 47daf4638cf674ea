"""What production is held to: its keys, its checks, the headers of its answers, and what the repository may hold."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client

from deploy import licences
from tests.conftest import Lender

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def production() -> dict[str, str]:
    """An environment that production would have. Nothing answers at its servers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HPTS_", "DATABASE", "REDIS"))}
    return kept | {
        "HPTS_SECRET_KEY": secrets.token_urlsafe(64),
        "HPTS_SIGNING_KEY": os.environ["HPTS_SIGNING_KEY"],
        "HPTS_WEBHOOK_KEYS": secrets.token_urlsafe(48),
        "HPTS_METRICS_TOKEN": secrets.token_urlsafe(32),
        "HPTS_ISSUER": "https://hpts.example",
        "HPTS_ALLOWED_HOSTS": "hpts.example",
        "DATABASE_URL": "postgresql://hpts_app:open@127.0.0.1:1/hpts",
        "REDIS_URL": "redis://127.0.0.1:1/0",
    }


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


CHECK = ("manage.py", "check", "--deploy", "--fail-level", "WARNING")
# A variable, what makes it unfit, and a word of the complaint.
UNFIT = [
    ("HPTS_SECRET_KEY", "development-only-secret-key", "50 characters"),
    ("HPTS_WEBHOOK_KEYS", None, "HPTS_WEBHOOK_KEYS"),
    ("HPTS_WEBHOOK_KEYS", "development-only-key-of-webhook-secrets", "HPTS_WEBHOOK_KEYS"),
    ("HPTS_WEBHOOK_KEYS", "short", "32 characters"),
    ("HPTS_METRICS_TOKEN", "development-metrics", "HPTS_METRICS_TOKEN"),
    ("HPTS_SIGNING_KEY", None, "HPTS_SIGNING_KEY"),
    ("HPTS_SIGNING_KEY", "-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----", "HPTS_SIGNING_KEY"),
    ("HPTS_ISSUER", "http://hpts.example", "HPTS_ISSUER"),
    ("HPTS_JWKS_URL", "http://issuer.example/jwks.json", "HPTS_JWKS_URL"),
    ("HPTS_ALLOWED_HOSTS", "*", "HPTS_ALLOWED_HOSTS"),
    ("REDIS_URL", None, "REDIS_URL"),
]


def test_the_deployment_check_is_clean(production: dict[str, str]) -> None:
    done = run(production, *CHECK)
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout + done.stderr


def test_each_unfit_setting_is_named_without_its_value(production: dict[str, str], tmp_path: Path) -> None:
    """In one process, because each would cost a second."""
    code = (
        "import json, sys; from django.conf import settings\n"
        "import django; django.setup()\n"
        "from hpts import deployment\n"
        "names = {'HPTS_SECRET_KEY': 'SECRET_KEY', 'HPTS_WEBHOOK_KEYS': 'WEBHOOK_KEYS', 'HPTS_SIGNING_KEY': 'SIGNING_KEY',\n"
        "         'HPTS_METRICS_TOKEN': 'METRICS_TOKEN', 'HPTS_ISSUER': 'ISSUER', 'HPTS_JWKS_URL': 'JWKS_URL',\n"
        "         'HPTS_ALLOWED_HOSTS': 'ALLOWED_HOSTS'}\n"
        "import os\n"
        "for name, value in json.loads(sys.argv[1]):\n"
        "    if name in names:\n"
        "        attribute = names[name]; before = getattr(settings, attribute)\n"
        "        lists = isinstance(before, list)\n"
        "        setattr(settings, attribute, ([value] if value else []) if lists else value or '')\n"
        "        print(json.dumps(list(deployment.faults()))); setattr(settings, attribute, before)\n"
        "    else:\n"
        "        before = os.environ.pop(name); print(json.dumps(list(deployment.faults()))); os.environ[name] = before\n"
        "print(json.dumps(list(deployment.faults())))\n"
    )
    import json

    done = run(production, "-c", code, json.dumps([[name, value] for name, value, _ in UNFIT]))
    assert done.returncode == 0, done.stderr
    *found, clean = [json.loads(line) for line in done.stdout.splitlines()]
    assert clean == []
    assert len(found) == len(UNFIT)
    for (name, value, words), faults in zip(UNFIT, found, strict=True):
        assert len(faults) == 1, (name, faults)
        assert words in faults[0], (name, faults)
        assert value is None or len(value) < 6 or value not in faults[0]


@pytest.mark.parametrize(
    "process", ["import hpts.wsgi", "from django.core.management import execute_from_command_line"]
)
def test_production_does_not_start_without_its_keys(production: dict[str, str], process: str) -> None:
    unfit = {name: value for name, value in production.items() if name != "HPTS_WEBHOOK_KEYS"}
    command = ("-c", process) if "wsgi" in process else ("manage.py", "deliver_webhooks")
    done = run(unfit, *command)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("HPTS does not start:\n  HPTS_WEBHOOK_KEYS")
    assert "Traceback" not in done.stderr


def test_production_tells_browsers_to_stay_with_tls(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    monkeypatch.setattr(settings, "SECURE_HSTS_SECONDS", 31_536_000)
    for path in ("/v1/health/live", "/v1/nothing", "/v1/docs"):
        assert client.get(path).headers["Strict-Transport-Security"] == "max-age=31536000; includeSubDomains"


# --- Headers ---------------------------------------------------------------------------------------------------------

PATHS = ["/v1/health/live", "/v1/accounts", "/v1/nothing", "/v1/docs", "/v1/openapi.json", "/problems/busy", "/admin/"]
PATHS += ["/admin/login/", "/oauth2/token", "/.well-known/jwks.json", "/metrics", "/", "/v1/loans?x=%00"]


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_bears_the_headers_of_a_careful_server(client: Client, path: str) -> None:
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "same-origin"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy or path.startswith("/admin/")
    assert "http:" not in policy
    assert "unsafe-eval" not in policy
    assert "*" not in policy
    if path.startswith(("/v1/", "/admin/", "/metrics")):
        assert "no-store" in headers["Cache-Control"]
    assert not {"Server", "X-Powered-By"} & headers.keys()


def test_what_a_tenant_is_told_is_kept_by_nobody(acme: Lender) -> None:
    assert acme.api.get("/v1/accounts").headers["Cache-Control"] == "no-store"


# --- The repository --------------------------------------------------------------------------------------------------

SECRET = re.compile(
    r"-----BEGIN (?:RSA |EC |OPENSSH |ENCRYPTED )?PRIVATE KEY-----\s*[A-Za-z0-9+/=]{40}"
    r"|eyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{20,}"
    r"|AKIA[0-9A-Z]{16}|ghp_[A-Za-z0-9]{30}|xox[bp]-[A-Za-z0-9-]{20}|sk_live_[A-Za-z0-9]{20}"
)


def test_the_repository_holds_no_secret() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file():
            assert not SECRET.search(path.read_bytes().decode("utf-8", "replace")), (
                f"{name} holds a secret: take it out"
            )
            assert path.suffix not in (".pem", ".key", ".p12", ".env"), f"{name}: keys do not belong here"


def test_the_search_for_secrets_finds_one() -> None:
    assert SECRET.search("-----BEGIN PRIVATE " + "KEY-----\n" + "M" * 64)
    assert SECRET.search("eyJ" + "a" * 20 + ".eyJ" + "b" * 20 + "." + "c" * 30)


@pytest.mark.parametrize(
    ("licence", "fine"),
    [
        ("MIT", True),
        ("LGPL-3.0-only", True),
        ("BSD License; BSD-3-Clause", True),
        ("Apache-2.0 OR GPL-2.0-only", True),
        ("GPL-3.0-or-later", False),
        ("GNU General Public License v3 (GPLv3)", False),
        ("AGPL-3.0", False),
        ("MIT AND GPL-2.0", False),
        ("Business Source License 1.1", False),
        ("", False),
    ],
)
def test_a_licence_is_allowed_or_refused(licence: str, fine: bool) -> None:
    assert (licences.fault(licence) is None) == fine


def test_every_package_is_pinned_with_hashes() -> None:
    for name in licences.PINNED:
        text = (ROOT / name).read_text("utf-8")
        for entry in re.split(r"\n(?=[A-Za-z0-9])", text):
            if "==" in entry.partition("\n")[0]:
                assert "--hash=sha256:" in entry, f"{name}: {entry.partition(' ')[0]} has no hash"
