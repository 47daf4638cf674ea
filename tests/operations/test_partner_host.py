"""The partner host for real: nginx in front of the application, certificates made here, curl as the client."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from django.conf import settings
from django.test import override_settings

from deploy import partner_certs, partner_host
from deploy.partner_certs import Pair, issue
from hpts import certificates, embedded, oauth
from hpts.run import server_command
from tests.conftest import Json, Lender, payment_of
from tests.operations.test_run import free_port

DAY = timedelta(days=1)
SCOPES = ("hpts:payments:write", "hpts:loans:read", "hpts:ledger:read")
READ = "/v1/loans"


def test_nginx_is_installed() -> None:
    """Else everything below fails, and this says what to do."""
    assert partner_host.program()


class Heard(NamedTuple):
    """What curl heard. The status is 0 when there was no answer, because TLS or nginx hung up."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"])


@dataclass(frozen=True)
class House:
    """The running application with nginx in front, and the authority of its partners."""

    directory: Path
    ports: dict[str, int]

    def url(self, door: str, path: str) -> str:
        return f"{'http' if door == 'direct' else 'https'}://localhost:{self.ports[door]}{path}"

    @property
    def authority(self) -> Pair:
        return Pair.read(self.directory, "partners-ca")

    def curl(self, door: str, path: str, *arguments: str, pair: Pair | None = None, body: bytes | None = None) -> Heard:
        command = ["curl", "--silent", "--include", "--max-time", "20", "--cacert", str(self.directory / "ca.crt")]
        with contextlib.ExitStack() as stack:
            if pair is not None:
                where = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                pair.write(where, "shown")
                command += ["--cert", str(where / "shown.crt"), "--key", str(where / "shown.key")]
            if body is not None:
                command += ["--data-binary", "@-", "-H", "Expect:"]
            done = subprocess.run([*command, *arguments, self.url(door, path)], input=body, capture_output=True)
        head, _, rest = done.stdout.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        if not lines[0].startswith("HTTP/"):
            return Heard(0, {}, b"")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        return Heard(int(lines[0].split(" ")[1]), headers, rest)

    def token(self, client_id: str, pair: Pair | None, *more: str, door: str = "partner") -> Heard:
        form = ["-d", "grant_type=client_credentials", "-d", f"client_id={client_id}", *more]
        return self.curl(door, "/oauth2/token", *form, pair=pair)


@contextlib.contextmanager
def running(command: list[str], stop: int, ports: list[int], log: Path, **environment: str) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=embedded.ROOT, env=os.environ | environment, stdout=output, stderr=output
        )
        try:
            deadline = time.monotonic() + 30
            for port in ports:
                while True:
                    try:
                        socket.create_connection(("127.0.0.1", port), timeout=5).close()
                        break
                    except OSError:
                        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                        time.sleep(0.02)
            yield
        finally:
            process.send_signal(stop)
            process.wait(timeout=15)


def proxy(directory: Path, upstream: str, public: int, partner: int, **names: str) -> list[str]:
    variables = {
        "HPTS_UPSTREAM": upstream,
        "HPTS_PROXY_SECRET": os.environ["HPTS_PROXY_SECRET"],
        "HPTS_TLS_DIRECTORY": str(directory),
        "HPTS_PUBLIC_TLS_PORT": str(public),
        "HPTS_PARTNER_TLS_PORT": str(partner),
        "HPTS_PUBLIC_NAME": "localhost",
        "HPTS_PARTNER_NAME": "localhost",
    }
    return partner_host.write(directory / f"nginx-{public}", variables | names)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    # Not tmp_path: nginx's own directory must not be too deep for its temporary files, nor forbidden to its worker.
    directory = Path(tempfile.mkdtemp(prefix="hpts-doors-"))
    partner_certs.prepare(directory)
    issue("gone", Pair.read(directory, "partners-ca")).write(directory, "gone")
    partner_certs.revoke(directory, "gone")
    ports = {"direct": free_port(), "public": free_port(), "partner": free_port()}
    # As in production: no development's liberties.
    issuer = f"https://localhost:{ports['public']}"
    environment = {
        "HPTS_DEVELOPMENT": "0",
        "HPTS_ISSUER": issuer,
        "HPTS_SECRET_KEY": secrets.token_urlsafe(64),
        "HPTS_WEBHOOK_KEYS": secrets.token_urlsafe(48),
        "HPTS_METRICS_TOKEN": "",
        "HPTS_WEB_WORKERS": "1",
        "HPTS_WEB_THREADS": "4",
    }
    application = server_command(f"127.0.0.1:{ports['direct']}")
    nginx = proxy(directory, f"127.0.0.1:{ports['direct']}", ports["public"], ports["partner"])
    with (
        override_settings(ISSUER=issuer),
        running(application, signal.SIGQUIT, [ports["direct"]], directory / "application.log", **environment),
        running(nginx, signal.SIGTERM, [ports["public"], ports["partner"]], directory / "nginx.log"),
    ):
        yield House(directory, ports)
    shutil.rmtree(directory)


@dataclass(frozen=True)
class Partner:
    """A client of a lender that has a certificate."""

    lender: Lender
    client_id: str
    secret: str
    pair: Pair

    def token(self, house: House) -> str:
        heard = house.token(self.client_id, self.pair)
        assert heard.status == 200, heard
        return str(json.loads(heard.body)["access_token"])


@pytest.fixture
def make_partner(house: House) -> Callable[[Lender], Partner]:
    def make(lender: Lender) -> Partner:
        pair = issue("partner", house.authority)
        client, secret = oauth.register_client(tenant_id=lender.tenant_id, scopes=SCOPES, certificate=pair.pem)
        return Partner(lender, client.client_id, secret, pair)

    return make


@pytest.fixture
def partner(acme: Lender, make_partner: Callable[[Lender], Partner]) -> Partner:
    return make_partner(acme)


def bearer(token: str) -> list[str]:
    return ["-H", f"Authorization: Bearer {token}"]


def refused(heard: Heard, status: int, code: str) -> None:
    assert (heard.status, heard.headers.get("content-type")) == (status, "application/problem+json"), heard
    problem: Json = json.loads(heard.body)
    assert (problem["code"], problem["status"], problem["type"]) == (code, status, f"/problems/{code}")
    assert problem["instance"] == heard.headers["x-request-id"]
    assert problem.keys() == {"type", "title", "status", "detail", "instance", "code"}
    if status == 401:
        assert heard.headers["www-authenticate"].startswith("Bearer")


def kept_out(heard: Heard) -> None:
    """401 by the application or by nginx, or no TLS at all."""
    if heard.status:
        refused(heard, 401, "invalid_token")


def signed(**claims: Any) -> str:
    """A token of the own issuer with other claims than it would give."""
    keys, now = oauth.signing_keys(), int(time.time())
    times = {"iss": settings.ISSUER, "aud": "hpts", "iat": now, "nbf": now, "exp": now + 600, "jti": "j"}
    return jwt.encode(times | claims, keys.private, "RS256", headers={"typ": "at+jwt", "kid": keys.kid})


# --- What works ------------------------------------------------------------------------------------------------------


def test_a_partner_posts_a_payment_through_mutual_tls(house: House, partner: Partner) -> None:
    token = partner.token(house)
    body = json.dumps(payment_of(partner.lender.loan)).encode()
    headers = [*bearer(token), "-H", "Content-Type: application/json", "-H", "Idempotency-Key: partner-0001"]
    posted = house.curl("partner", "/v1/payments", *headers, pair=partner.pair, body=body)
    assert posted.status == 201, posted
    assert house.curl("partner", "/v1/payments", *headers, pair=partner.pair, body=body).status == 200
    refused(house.curl("partner", "/v1/payments", *headers, body=body), 401, "invalid_token")
    assert len(partner.lender.api.history(partner.lender.loan)) == 1


def test_the_token_is_bound_to_the_sha_256_of_the_certificate(house: House, partner: Partner) -> None:
    claims = jwt.decode(partner.token(house), options={"verify_signature": False})
    der = partner.pair.certificate.public_bytes(serialization.Encoding.DER)
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()
    assert claims["cnf"] == {"x5t#S256": thumbprint}
    assert (claims["client_id"], claims["tenant_id"]) == (partner.client_id, partner.lender.tenant_id)


def test_the_secret_may_come_with_the_certificate_and_must_then_be_right(house: House, partner: Partner) -> None:
    assert house.token(partner.client_id, partner.pair, "-d", f"client_secret={partner.secret}").status == 200
    assert house.token(partner.client_id, partner.pair, "-d", "client_secret=wrong").status == 401


def test_the_public_host_serves_clients_without_certificates(house: House, acme: Lender) -> None:
    heard = house.curl("public", READ, *bearer(acme.api.token()))
    assert heard.status == 200
    assert len(json.loads(heard.body)["items"]) == 3


# --- The list of what must not work ----------------------------------------------------------------------------------

NOW = datetime.now(UTC)
STRANGERS: dict[str, Callable[[House, Pair], Pair | None]] = {
    "no certificate": lambda house, own: None,
    "the same subject with another key": lambda house, own: issue("partner", house.authority),
    "expired": lambda house, own: issue("partner", house.authority, begins=NOW - 9 * DAY, ends=NOW - DAY),
    "not valid yet": lambda house, own: issue("partner", house.authority, begins=NOW + DAY, ends=NOW + 9 * DAY),
    "on the revocation list": lambda house, own: Pair.read(house.directory, "gone"),
    "self-signed": lambda house, own: issue("partner"),
    "for servers": lambda house, own: issue("partner", house.authority, usage=ExtendedKeyUsageOID.SERVER_AUTH),
    "the server's own": lambda house, own: Pair.read(house.directory, "server"),
    "of another authority": lambda house, own: issue("partner", issue("HPTS development partners", is_authority=True)),
    "signed by a partner": lambda house, own: issue("partner", own),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_bound_token_is_nothing_without_its_certificate(house: House, partner: Partner, stranger: str) -> None:
    token = partner.token(house)
    assert house.curl("partner", READ, *bearer(token), pair=partner.pair).status == 200
    pair = STRANGERS[stranger](house, partner.pair)
    kept_out(house.curl("partner", READ, *bearer(token), pair=pair))
    heard = house.token(partner.client_id, pair)
    assert heard.status in (0, 401), heard


def test_certificates_that_are_no_longer_good_are_refused_although_they_are_known(house: House, acme: Lender) -> None:
    """Their tokens were bound to them while they were good; nginx looks at the certificate each time."""
    for pair in (
        issue("partner", house.authority, begins=NOW + DAY, ends=NOW + 9 * DAY),
        Pair.read(house.directory, "gone"),
        issue("partner", house.authority, usage=ExtendedKeyUsageOID.SERVER_AUTH),
        issue("partner"),
    ):
        client, _ = oauth.register_client(tenant_id=acme.tenant_id, scopes=SCOPES, certificate=pair.pem)
        bound = {"cnf": {"x5t#S256": certificates.read(pair.pem).thumbprint}}
        names = {"sub": client.client_id, "client_id": client.client_id, "tenant_id": acme.tenant_id}
        kept_out(house.curl("partner", READ, *bearer(signed(scope="hpts:loans:read", **names, **bound)), pair=pair))


def test_another_partners_certificate_is_refused(
    house: House, partner: Partner, acme: Lender, zenith: Lender, make_partner: Callable[[Lender], Partner]
) -> None:
    token = partner.token(house)
    for other in (make_partner(acme), make_partner(zenith)):
        refused(house.curl("partner", READ, *bearer(token), pair=other.pair), 401, "invalid_token")
        assert house.token(partner.client_id, other.pair).status == 401


def test_an_unbound_token_is_refused_at_the_partner_host(house: House, partner: Partner, acme: Lender) -> None:
    token = acme.api.token()
    assert house.curl("public", READ, *bearer(token)).status == 200
    for pair in (partner.pair, None):
        refused(house.curl("partner", READ, *bearer(token), pair=pair), 401, "invalid_token")


def test_a_bound_token_is_refused_at_the_public_host(house: House, partner: Partner) -> None:
    for pair in (None, partner.pair):
        refused(house.curl("public", READ, *bearer(partner.token(house)), pair=pair), 401, "invalid_token")


@pytest.mark.parametrize(
    "confirmation",
    [
        {"jkt": "A" * 43},
        {"x5t": "A" * 27},
        {"x5t#S256": ["good"]},
        {"x5t#S256": "good", "jkt": "A" * 43},
        {"x5t#s256": "good"},
        {},
        [],
        "good",
        None,
        {"x5t#S256": "good="},
        {"x5t#S256": "good\n"},
        {"x5t#S256": ""},
    ],
    ids=str,
)
def test_a_token_that_is_bound_in_another_way_is_refused(house: House, partner: Partner, confirmation: Any) -> None:
    good = certificates.read(partner.pair.pem).thumbprint
    names = {"sub": partner.client_id, "client_id": partner.client_id, "tenant_id": partner.lender.tenant_id}

    def with_binding(cnf: Any) -> Heard:
        token = signed(scope="hpts:loans:read", cnf=cnf, **names)
        return house.curl("partner", READ, *bearer(token), pair=partner.pair)

    assert with_binding({"x5t#S256": good}).status == 200
    refused(with_binding(json.loads(json.dumps(confirmation).replace("good", good))), 401, "invalid_token")


def test_a_certificate_stands_for_its_client_and_tenant_alone(
    house: House, partner: Partner, acme: Lender, zenith: Lender, make_partner: Callable[[Lender], Partner]
) -> None:
    """The binding agrees, and the signature is ours: the map of certificates says no."""
    bound = {"scope": "hpts:loans:read", "cnf": {"x5t#S256": certificates.read(partner.pair.pem).thumbprint}}
    for other in (make_partner(acme), make_partner(zenith)):
        names = {"sub": other.client_id, "client_id": other.client_id, "tenant_id": other.lender.tenant_id}
        refused(house.curl("partner", READ, *bearer(signed(**bound, **names)), pair=partner.pair), 401, "invalid_token")


# --- Headers that a client writes itself ------------------------------------------------------------------------------

NAMES = ("Client-Cert", "Client_Cert", "X-SSL-Client-Cert", "X_SSL_Client_Cert", "X-Client-Cert", "Ssl-Client-Cert")


@pytest.mark.parametrize("door", ["partner", "public", "direct"])
def test_a_certificate_in_a_clients_own_header_is_not_looked_at(house: House, partner: Partner, door: str) -> None:
    token = partner.token(house)
    der = partner.pair.certificate.public_bytes(serialization.Encoding.DER)
    forms = (quote(partner.pair.pem.decode()), f":{base64.b64encode(der).decode()}:")
    for said in ("partner", "partner ", "partner guess", f"partner {'0' * 64}", ""):
        for name in NAMES:
            for form in forms[: 2 if said == "partner" else 1]:
                lines = ["-H", f"{name}: {form}", "-H", f"X-HPTS-Door: {said}", "-H", f"X_HPTS_Door: {said}"]
                heard = house.curl(door, READ, *bearer(token), *lines)
                if door == "direct":
                    refused(heard, 400, "validation_failed")
                else:
                    refused(heard, 401, "invalid_token")


def test_the_header_that_the_proxy_writes_wins_over_the_clients(house: House, partner: Partner, acme: Lender) -> None:
    """With a good certificate of one's own, and another's in the header."""
    other = issue("partner", house.authority)
    client, _ = oauth.register_client(tenant_id=acme.tenant_id, scopes=SCOPES, certificate=other.pem)
    forged = ["-H", f"Client-Cert: {quote(other.pem.decode())}", "-H", f"Client-Cert: {quote(other.pem.decode())}"]
    assert house.curl("partner", READ, *bearer(partner.token(house)), *forged, pair=partner.pair).status == 200
    heard = house.curl("partner", "/oauth2/token", "-d", f"grant_type=client_credentials&client_id={client.client_id}",
                       *forged, pair=partner.pair)  # fmt: skip
    assert heard.status == 401


def test_nobody_reaches_the_application_past_the_proxy(house: House, partner: Partner, acme: Lender) -> None:
    for path in (READ, "/oauth2/token", "/admin/", "/v1/openapi.json", "/.well-known/jwks.json", "/"):
        refused(house.curl("direct", path, *bearer(acme.api.token())), 400, "validation_failed")
    assert house.curl("direct", "/v1/health/live").status == 200
    secret = os.environ["HPTS_PROXY_SECRET"]
    for said in (
        f"direct {secret}",
        f"Partner {secret}",
        f"partner  {secret}",
        f"partner {secret}x",
        f"public{secret}",
    ):
        heard = house.curl("direct", READ, *bearer(acme.api.token()), "-H", f"X-HPTS-Door: {said}")
        refused(heard, 400, "validation_failed")


def test_two_tokens_in_one_request_are_refused(house: House, partner: Partner, acme: Lender) -> None:
    for door, token, pair in (("partner", partner.token(house), partner.pair), ("public", acme.api.token(), None)):
        assert house.curl(door, READ, *bearer(token), pair=pair).status == 200
        heard = house.curl(door, READ, *bearer(token), *bearer(token), pair=pair)
        assert heard.status in (400, 401), heard


# --- Rotation, retirement ---------------------------------------------------------------------------------------------


def test_two_certificates_work_in_the_overlap_and_a_retired_one_does_not(house: House, partner: Partner) -> None:
    tenant_id = partner.lender.tenant_id
    second = issue("partner", house.authority)
    certificates.add(oauth.client_for_certificate(tenant_id, partner.client_id), second.pem)
    tokens = {pair: json.loads(house.token(partner.client_id, pair).body) for pair in (partner.pair, second)}
    for pair, answer in tokens.items():
        assert house.curl("partner", READ, *bearer(answer["access_token"]), pair=pair).status == 200
    refused(
        house.curl("partner", READ, *bearer(tokens[second]["access_token"]), pair=partner.pair), 401, "invalid_token"
    )

    unused = partner.token(house)
    certificates.retire(tenant_id, certificates.read(partner.pair.pem).thumbprint, "replaced")
    assert house.token(partner.client_id, partner.pair).status == 401
    refused(house.curl("partner", READ, *bearer(unused), pair=partner.pair), 401, "invalid_token")
    assert house.curl("partner", READ, *bearer(tokens[second]["access_token"]), pair=second).status == 200
    assert house.token(partner.client_id, second).status == 200


# --- The token endpoint -----------------------------------------------------------------------------------------------


def test_a_client_with_certificates_gets_no_token_elsewhere(house: House, partner: Partner) -> None:
    """Not even after the last of them was retired: a stolen secret would then be enough."""
    secret = ["-d", f"client_secret={partner.secret}"]
    for retired in (False, True):
        if retired:
            certificates.retire(partner.lender.tenant_id, certificates.read(partner.pair.pem).thumbprint, "lost")
        for door, pair in (("public", None), ("public", partner.pair), ("partner", None)):
            heard = house.token(partner.client_id, pair, *secret, door=door)
            assert (heard.status, json.loads(heard.body)["error"]) == (401, "invalid_client")


def test_a_client_without_certificates_gets_no_token_at_the_partner_host(
    house: House, partner: Partner, acme: Lender
) -> None:
    client, secret = oauth.register_client(tenant_id=acme.tenant_id, scopes=SCOPES)
    form = ["-d", f"client_secret={secret}"]
    assert house.token(client.client_id, None, *form, door="public").status == 200
    for pair in (None, partner.pair):
        assert house.token(client.client_id, pair, *form).status == 401
        assert house.token(client.client_id, pair).status == 401


# --- What the partner host shows, and its limits ----------------------------------------------------------------------


def test_without_certificate_and_token_the_partner_host_shows_nothing(house: House, partner: Partner) -> None:
    for path in (READ, "/v1/openapi.json", "/v1/docs", "/v1/health/live", "/.well-known/jwks.json", "/problems/busy"):
        refused(house.curl("partner", path), 403, "client_certificate_required")
    assert house.curl("partner", "/v1/openapi.json", pair=partner.pair).status == 200
    refused(house.curl("partner", READ, pair=partner.pair), 401, "invalid_token")


def test_neither_host_shows_what_is_not_for_it(house: House, partner: Partner) -> None:
    for path in ("/metrics", "/metrics/", "/metrics?x=1", "//metrics", "/v1/../metrics"):
        for door in ("public", "partner"):
            refused(house.curl(door, path, "--path-as-is", pair=partner.pair), 404, "not_found")
    for path in ("/admin/", "/oauth2/authorize", "/", "/v1/../admin/login/", "/v1/%2e%2e/admin/"):
        refused(house.curl("partner", path, "--path-as-is", pair=partner.pair), 404, "not_found")


def test_bodies_and_headers_have_limits_at_the_proxy(house: House, partner: Partner, acme: Lender) -> None:
    json_body = ["-H", "Content-Type: application/json"]
    for door in ("public", "partner"):
        pair = partner.pair if door == "partner" else None
        token = bearer(partner.token(house) if pair else acme.api.token())
        much, more = b" " * 262_144, b" " * 262_145
        refused(house.curl(door, "/v1/payments", *token, *json_body, pair=pair, body=more), 413, "payload_too_large")
        refused(house.curl(door, "/v1/payments", *token, *json_body, pair=pair, body=much), 400, "malformed_json")
        refused(house.curl(door, "/v1/batches", *token, *json_body, pair=pair, body=more), 400, "malformed_json")
        huge = b" " * (16 * 1024 * 1024 + 1)
        refused(house.curl(door, "/v1/batches", *token, *json_body, pair=pair, body=huge), 413, "payload_too_large")
        refused(house.curl(door, READ, "-H", f"X-Filler: {'x' * 64_000}", pair=pair), 400, "validation_failed")


def test_only_modern_tls_is_spoken(house: House, partner: Partner) -> None:
    for door in ("public", "partner"):
        for version in ("1.2", "1.3"):
            assert house.curl(door, READ, f"--tlsv{version}", "--tls-max", version, pair=partner.pair).status == 401
        for version in ("1.0", "1.1"):
            heard = house.curl(door, READ, f"--tlsv{version}", "--tls-max", version, "--ciphers", "ALL:@SECLEVEL=0")
            assert heard.status == 0


def test_on_one_port_the_host_header_must_be_the_name_of_the_connection(house: House, partner: Partner) -> None:
    port = free_port()
    names = {"HPTS_PUBLIC_NAME": "localhost", "HPTS_PARTNER_NAME": "partner.localhost"}
    command = proxy(house.directory, f"127.0.0.1:{house.ports['direct']}", port, port, **names)
    with running(command, signal.SIGTERM, [port], house.directory / "one-port.log"):
        one = House(house.directory, {"public": port, "direct": house.ports["direct"]})
        wrong = one.curl("public", READ, "-H", "Host: partner.localhost", pair=partner.pair)
        refused(wrong, 400, "validation_failed")


# --- Sent once --------------------------------------------------------------------------------------------------------


def test_a_post_is_sent_to_the_application_once(house: House) -> None:
    """Two applications that read the request and hang up: whatever happened there, nginx does not try the other one."""
    heard_by: list[bytes] = []
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]

    def listen(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    heard_by.append(connection.recv(65536))

    threads = [threading.Thread(target=listen, args=(server,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    public, partner_port = free_port(), free_port()
    upstream = "; server ".join(f"127.0.0.1:{server.getsockname()[1]}" for server in servers)
    command = proxy(house.directory, upstream, public, partner_port)
    with running(command, signal.SIGTERM, [public], house.directory / "once.log"):
        one = House(house.directory, {"public": public, "partner": partner_port})
        # The GET first: nginx leaves a server alone for a while that has hung up.
        for method in ("GET", "POST"):
            heard_by.clear()
            body = b"{}" if method == "POST" else None
            heard = one.curl("public", "/v1/payments", "-H", "Idempotency-Key: only-once", body=body)
            refused(heard, 503, "unavailable")
            assert int(heard.headers["retry-after"]) >= 1
            assert len(heard_by) == 1
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def test_an_application_that_is_away_is_503(house: House) -> None:
    public, partner_port = free_port(), free_port()
    command = proxy(house.directory, f"127.0.0.1:{free_port()}", public, partner_port)
    with running(command, signal.SIGTERM, [public], house.directory / "away.log"):
        one = House(house.directory, {"public": public, "partner": partner_port})
        refused(one.curl("public", READ), 503, "unavailable")
