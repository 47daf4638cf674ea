"""Doors without sockets: what the proxy's headers mean, certificates and their walls, time. With nginx: tests/operations."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from django.core.management import CommandError, call_command
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext

from deploy.partner_certs import Pair, issue
from hpts import auth, certificates, doors, oauth
from hpts.models import ApiClient
from tests.conftest import HTTP, Lender, in_books_of, refused

SECRET = "the-secret-of-the-proxy-and-of-us"
READ = "/v1/loans"
PAIR = issue("partner")
DER = PAIR.certificate.public_bytes(serialization.Encoding.DER)


@pytest.fixture(autouse=True)
def proxied(settings: Any) -> None:
    settings.PROXY_SECRET, settings.DEVELOPMENT = SECRET, False
    auth.verified_tokens.clear()


def through(door: str, pair: Pair | None = None, secret: str = SECRET, **more: str) -> dict[str, str]:
    shown = {} if pair is None else {"Client-Cert": quote(pair.pem.decode())}
    return {"X-HPTS-Door": f"{door} {secret}"} | shown | more


def get(path: str = READ, **headers: str) -> Any:
    return HTTP.get(path, headers=headers)


class Partner:
    """A client of a lender with a certificate, and tokens that are bound to it."""

    def __init__(self, lender: Lender) -> None:
        self.lender, self.pair = lender, issue("partner")
        self.client, self.secret = oauth.register_client(
            tenant_id=lender.tenant_id, scopes=["hpts:loans:read"], certificate=self.pair.pem
        )

    @property
    def thumbprint(self) -> str:
        return certificates.read(self.pair.pem).thumbprint

    def token(self, **environ: str) -> str:
        request: Any = SimpleNamespace(
            client=self.client,
            scopes=["hpts:loans:read"],
            expires_in=3600,
            user=None,
            headers={doors.DOOR: doors.PARTNER, doors.CERTIFICATE: self.thumbprint} | environ,
        )
        return oauth.access_token(request)

    def read(self, token: str, pair: Pair | None = None) -> Any:
        return get(**through("partner", pair or self.pair), Authorization=f"Bearer {token}")


@pytest.fixture
def partner(acme: Lender) -> Partner:
    return Partner(acme)


class Clock(SimpleNamespace):
    """Stands for the `time` module of the verifier."""

    def __init__(self) -> None:
        super().__init__(now=time.time())

    def time(self) -> float:
        return float(self.now)

    monotonic = time


# --- What the headers mean -------------------------------------------------------------------------------------------


def test_both_forms_of_the_header_give_the_same_thumbprint() -> None:
    expected = certificates.read(PAIR.pem).thumbprint
    pem = PAIR.pem.decode()
    for text in (
        quote(pem),
        quote(pem, safe=""),
        quote(pem.replace("\n", "\r\n")),
        f":{base64.b64encode(DER).decode()}:",
    ):
        assert doors.thumbprint(text) == expected
    assert len(expected) == 43


def test_what_is_no_certificate_has_no_thumbprint() -> None:
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    pem = PAIR.pem.decode()
    for text in (
        "",
        "::",
        ":!:",
        ":AAA:",
        begin,
        f"{begin}\n{end}",
        f"{begin}\nA\n{end}",
        pem * 2,
        f"{pem}junk",
        "%zz",
        "é",
    ):
        assert doors.thumbprint(quote(text)) is None, text
        assert doors.thumbprint(text) is None or text == pem
    assert doors.thumbprint(quote(PAIR.key_pem.decode())) is None
    assert doors.thumbprint(quote(f"{begin}\n{'A' * 20_000}\n{end}")) is None


def test_the_callers_address_is_the_one_that_the_proxy_saw() -> None:
    """The audit log says it. Who is not the proxy cannot say another."""
    seen: list[str] = []

    def view(request: HttpRequest) -> HttpResponse:
        seen.append(request.META["REMOTE_ADDR"])
        return HttpResponse()

    ask, health = doors.Doors(view), doors.ALWAYS_OPEN[0]
    told = {"X-Forwarded-For": "198.51.100.7"}
    for headers in (through("public", None, **told), told, through("public", None, "guessed", **told)):
        ask(RequestFactory().get(health, headers=headers, REMOTE_ADDR="10.0.0.1"))
    assert seen == ["198.51.100.7", "10.0.0.1", "10.0.0.1"]


def test_health_may_be_asked_past_the_proxy_and_nothing_else() -> None:
    live, ready = (get(path).status_code for path in doors.ALWAYS_OPEN)
    # Ready or not, it answers: entries of other tests may wait to be announced.
    assert live == 200
    assert ready in (200, 503)
    for path in (READ, "/", "/admin/", "/oauth2/token", "/v1/health/live/", "/v1/openapi.json", "/problems/busy"):
        refused(get(path), 400, "validation_failed")
    for said in ("", "public", f"public  {SECRET}", f"other {SECRET}", f"direct {SECRET}", f"PUBLIC {SECRET}", SECRET):
        refused(get(**{"X-HPTS-Door": said}), 400, "validation_failed")
    refused(get(**through("public")), 401, "invalid_token")


def test_without_a_proxy_or_in_development_everybody_is_answered(settings: Any, partner: Partner) -> None:
    """As the public host would: a certificate in a header is one that a client wrote."""
    token = partner.token()
    for secret, development in (("", False), (SECRET, True), ("", True)):
        settings.PROXY_SECRET, settings.DEVELOPMENT = secret, development
        assert get("/v1/openapi.json").status_code == 200
        for said in ("guess", ""):
            forged = through("partner", partner.pair, secret=said)
            refused(get(**forged, Authorization=f"Bearer {token}"), 401, "invalid_token")


def test_behind_the_proxy_links_are_https(settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["testserver"]
    answer = HTTP.get("/admin/", headers=through("public"))
    assert answer.status_code == 302
    assert answer.wsgi_request.is_secure() and not HTTP.get("/v1/health/live").wsgi_request.is_secure()  # type: ignore[attr-defined]


def test_a_certificate_counts_at_the_partner_door_alone(partner: Partner) -> None:
    token = partner.token()
    assert partner.read(token).status_code == 200
    headers = through("public", partner.pair, Authorization=f"Bearer {token}")
    refused(get(**headers), 401, "invalid_token")


def test_the_partner_door_is_open_to_holders_of_a_certificate_alone(partner: Partner) -> None:
    """Whoever has neither certificate nor token hears it at any path; a token is refused as a token."""
    for path in (READ, "/v1/docs", "/v1/nothing/here"):
        refused(get(path, **through("partner")), 403, "client_certificate_required")
    refused(get(**through("partner"), Authorization=f"Bearer {partner.token()}"), 401, "invalid_token")


def test_no_client_can_write_what_the_middleware_notes(partner: Partner) -> None:
    token = partner.token()
    forged = {"hpts.door": "partner", "hpts.certificate": partner.thumbprint, "hpts-door": "partner"}
    refused(get(**through("public"), **forged, Authorization=f"Bearer {token}"), 401, "invalid_token")


# --- Time ------------------------------------------------------------------------------------------------------------


def test_the_certificate_is_compared_at_each_use_also_of_a_cached_token(partner: Partner) -> None:
    token, other = partner.token(), issue("partner")
    assert partner.read(token).status_code == 200
    with CaptureQueriesContext(connection) as queries:
        refused(partner.read(token, other), 401, "invalid_token")
        refused(get(**through("public"), Authorization=f"Bearer {token}"), 401, "invalid_token")
    assert len(queries) == 0


def test_a_retired_certificate_is_refused_within_a_minute(partner: Partner, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(auth, "time", clock)
    token = partner.token()
    assert partner.read(token).status_code == 200
    certificates.retire(partner.lender.tenant_id, partner.thumbprint, "lost")
    clock.now += 59
    assert partner.read(token).status_code == 200
    clock.now += 1
    refused(partner.read(token), 401, "invalid_token")


def test_a_disabled_partner_is_refused_within_a_minute(partner: Partner, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(auth, "time", clock)
    token = partner.token()
    assert partner.read(token).status_code == 200
    ApiClient.objects.filter(pk=partner.client.pk).update(disabled_at=datetime.now(UTC))
    clock.now += 60
    refused(partner.read(token), 401, "invalid_token")


# --- An external issuer ----------------------------------------------------------------------------------------------


@pytest.fixture
def external(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Tokens of an issuer whose keys come from elsewhere; here they are the own one's, which saves a server."""
    keys = auth.verification_keys(oauth.signing_keys().jwks)
    settings.JWKS_URL = "https://issuer.test/jwks.json"
    monkeypatch.setattr(auth, "remote_keys", lambda url: SimpleNamespace(having=lambda kid: keys))

    def make(**claims: Any) -> str:
        own, now = oauth.signing_keys(), int(time.time())
        base = {
            "iss": settings.ISSUER,
            "aud": settings.AUDIENCE,
            "iat": now,
            "exp": now + 600,
            "jti": str(uuid.uuid4()),
        }
        claims = base | {"scope": "hpts:loans:read"} | claims
        return jwt.encode(claims, own.private, "RS256", headers={"typ": "at+jwt", "kid": own.kid})

    return make


def test_certificates_of_an_external_issuers_clients_are_registered_here(
    acme: Lender, zenith: Lender, external: Callable[..., str], tmp_path: Path
) -> None:
    pair, client_id = issue("partner"), f"theirs-{uuid.uuid4()}"
    thumbprint = certificates.read(pair.pem).thumbprint
    names = {"client_id": client_id, "sub": client_id, "tenant_id": acme.tenant_id}
    bound = {"cnf": {"x5t#S256": thumbprint}}

    def read(**claims: Any) -> Any:
        return get(**through("partner", pair), Authorization=f"Bearer {external(**names | bound | claims)}")

    refused(read(), 401, "invalid_token")
    (tmp_path / "theirs.crt").write_bytes(pair.pem)
    arguments = ["--tenant", acme.tenant_id, "--client", client_id, "--json"]
    call_command("partner_certificates", "add", str(tmp_path / "theirs.crt"), *arguments, stdout=StringIO())
    assert read().status_code == 200
    refused(read(client_id="another", sub="another"), 401, "invalid_token")
    refused(read(tenant_id=zenith.tenant_id), 401, "invalid_token")
    unbound = external(**names)
    refused(get(**through("partner", pair), Authorization=f"Bearer {unbound}"), 401, "invalid_token")


# --- The command -----------------------------------------------------------------------------------------------------


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("partner_certificates", *arguments, stdout=out)
    return out.getvalue()


def test_the_command_adds_lists_and_retires(acme: Lender, partner: Partner, tmp_path: Path) -> None:
    tenant = ["--tenant", acme.tenant_id]
    second = issue("second", ends=datetime.now(UTC) + timedelta(days=9))
    (tmp_path / "second.der").write_bytes(second.certificate.public_bytes(serialization.Encoding.DER))
    added = json.loads(
        run("add", str(tmp_path / "second.der"), "--client", partner.client.client_id, *tenant, "--json")
    )
    assert (added["subject"], added["state"], added["retired_at"]) == ("CN=second", "ends soon", None)
    assert added["not_after"] == f"{second.certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    listed = json.loads(run("list", *tenant, "--json"))
    assert [each["thumbprint"] for each in listed] == [added["thumbprint"], partner.thumbprint]
    assert listed[1]["state"] == "in use"

    retired = json.loads(run("retire", partner.thumbprint, "--reason", "replaced by second", *tenant, "--json"))
    assert (retired["state"], retired["retired_reason"]) == ("retired", "replaced by second") and retired["retired_at"]
    table = run("list", "--client", partner.client.client_id, *tenant)
    assert "retired: replaced by second" in table and "ends soon" in table and "CN=second" in table
    assert run("list", "--client", "nobody", *tenant).strip() == "There are no certificates."


def test_the_command_refuses_with_a_sentence(acme: Lender, zenith: Lender, partner: Partner, tmp_path: Path) -> None:
    file, client = str(tmp_path / "partner.crt"), ["--client", partner.client.client_id]
    (tmp_path / "partner.crt").write_bytes(partner.pair.pem)
    (tmp_path / "partner.key").write_bytes(partner.pair.key_pem)
    own, other = ["--tenant", acme.tenant_id], ["--tenant", zenith.tenant_id]
    for arguments, sentence in (
        (["add", file, *client, *own], "has this certificate already"),
        (["add", file, *client, *other], "has no client"),
        (["add", file, "--client", "nobody", *own], "has no client nobody"),
        (["add", str(tmp_path / "partner.key"), *client, *own], "ertificate"),
        (["add", str(tmp_path / "missing"), *client, *own], "No such file"),
        (["retire", partner.thumbprint, *other], "has no certificate"),
        (["retire", "x", *own], "has no certificate"),
        (["list", "--tenant", str(uuid.uuid4())], "There is no tenant"),
    ):
        with pytest.raises(CommandError, match=sentence):
            run(*arguments)
    run("retire", partner.thumbprint, *own)
    for arguments in (["retire", partner.thumbprint, *own], ["add", file, *client, *own]):
        with pytest.raises(CommandError):
            run(*arguments)


def test_an_ended_certificate_is_not_added_and_does_not_work_when_it_ends(acme: Lender, partner: Partner) -> None:
    ended = issue("partner", ends=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(ValueError, match="has ended"):
        certificates.add(partner.client, ended.pem)
    early = issue("partner", begins=datetime.now(UTC) + timedelta(hours=1), ends=datetime.now(UTC) + timedelta(days=1))
    certificates.add(partner.client, early.pem)
    thumbprint = certificates.read(early.pem).thumbprint
    assert not certificates.stands_for(acme.tenant_id, partner.client.client_id, thumbprint)


# --- The walls of the table ------------------------------------------------------------------------------------------


@contextmanager
def the_database_refuses(state: str, constraint: str | None = None) -> Iterator[None]:
    with pytest.raises(psycopg.Error) as caught:
        yield
    assert (caught.value.sqlstate, caught.value.diag.constraint_name) == (state, constraint), caught.value


INSERT = """INSERT INTO client_certificate (tenant_id, thumbprint, client_id, subject, serial_number, not_before, not_after)
            VALUES (%s, %s, %s, 'CN=x', '1', now(), now() + interval '1 day')"""


@pytest.mark.parametrize("url", ["DATABASE_URL", "HPTS_OWNER_DATABASE_URL", "HPTS_SUPERUSER_DATABASE_URL"])
def test_nobody_brings_a_retired_certificate_back(acme: Lender, partner: Partner, url: str) -> None:
    certificates.retire(acme.tenant_id, partner.thumbprint, "lost")
    app, wall = url == "DATABASE_URL", "client_certificate_is_kept"
    changes = {
        "UPDATE client_certificate SET retired_at = NULL, retired_reason = NULL": wall,
        "UPDATE client_certificate SET retired_at = now() + interval '1 year'": wall,
        "UPDATE client_certificate SET client_id = client_id": None if app else wall,
        "UPDATE client_certificate SET thumbprint = thumbprint": None if app else wall,
        "DELETE FROM client_certificate": None if app else wall,
        "TRUNCATE client_certificate": None if app else wall,
    }
    for statement, constraint in changes.items():
        where = "" if statement.startswith("TRUNCATE") else f" WHERE thumbprint = '{partner.thumbprint}'"
        with the_database_refuses("42501", constraint), in_books_of(acme.tenant_id, url=url) as session:
            session.execute(statement + where)  # type: ignore[arg-type]


def test_a_certificate_is_of_a_client_of_its_own_tenant(acme: Lender, zenith: Lender, partner: Partner) -> None:
    own, other = partner.client.client_id, Partner(zenith).client.client_id
    thumbprint = certificates.read(issue("x").pem).thumbprint
    with the_database_refuses("23503", "client_certificate_client"), in_books_of(acme.tenant_id) as session:
        session.execute(INSERT, (acme.tenant_id, thumbprint, other))
    with the_database_refuses("42501"), in_books_of(acme.tenant_id) as session:
        session.execute(INSERT, (zenith.tenant_id, thumbprint, other))
    with the_database_refuses("23514", "client_certificate_thumbprint"), in_books_of(acme.tenant_id) as session:
        session.execute(INSERT, (acme.tenant_id, "short", own))
    with the_database_refuses("23505", "client_certificate_pkey"), in_books_of(acme.tenant_id) as session:
        session.execute(INSERT, (acme.tenant_id, partner.thumbprint, own))
    with in_books_of(zenith.tenant_id) as session:
        seen = session.execute("SELECT 1 FROM client_certificate WHERE thumbprint = %s", (partner.thumbprint,))
        assert seen.fetchone() is None


def test_the_token_endpoint_binds_at_the_partner_door(partner: Partner) -> None:
    form = {"grant_type": "client_credentials", "client_id": partner.client.client_id}
    body = "&".join(f"{name}={value}" for name, value in form.items())
    kind = "application/x-www-form-urlencoded"
    good = Client().post("/oauth2/token", body, content_type=kind, headers=through("partner", partner.pair))
    assert good.status_code == 200
    claims = jwt.decode(json.loads(good.content)["access_token"], options={"verify_signature": False})
    assert claims["cnf"] == {"x5t#S256": partner.thumbprint}
    proven = f"{body}&client_secret={partner.secret}"
    assert (
        Client().post("/oauth2/token", proven, content_type=kind, headers=through("partner", partner.pair)).status_code
        == 200
    )
    for headers in (through("partner"), through("public"), through("public", partner.pair), through("partner", PAIR)):
        answer = Client().post("/oauth2/token", proven, content_type=kind, headers=headers)
        assert (answer.status_code, json.loads(answer.content)["error"]) == (401, "invalid_client")
