"""The verifier: every way to forge, bend or misuse a bearer token is refused, and the good ones are not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView

from hpts import auth, oauth
from hpts.models import ApiClient
from hpts.problems import InsufficientScope, InvalidToken

pytestmark = pytest.mark.urls(__name__)

ISSUER, AUDIENCE = "https://issuer.test", "hpts-test"
# Fixed, because test names are made of them and every test process must know the same names.
TENANT = "0a4d55a8-d778-4022-abf0-4e1c7e2b6e4c"
SUSPENDED = "5c2f6d0e-0f3f-4f0b-9d1c-9d1b1f4f7a10"
UNKNOWN_TENANT = "e7b1a9c4-3c55-4d0a-8f2e-6a1d2b3c4d5e"

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
WEAK_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC = ec.generate_private_key(ec.SECP256R1())
Document = dict[str, Any]


def private_pem(key: rsa.RSAPrivateKey) -> str:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(*form).decode()


def public_pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(*form).decode()


def jwk(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, **members: Any) -> Document:
    if isinstance(key, rsa.RSAPrivateKey):
        document = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        document = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    document.pop("key_ops", None)
    return document | members


KID: str = oauth._jwk(RSA.public_key())["kid"]


def tenant_is_active(tenant_id: str) -> bool:
    """Stands for the ledger's answer."""
    return tenant_id == TENANT


def claims(**changes: Any) -> Document:
    """Acceptable claims with changes; `...` takes a claim away."""
    now = int(time.time())
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "acme",
        "client_id": "acme",
        "tenant_id": TENANT,
        "scope": "hpts:payments:write hpts:ledger:read",
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "jti": "one",
    } | changes
    return {name: value for name, value in good.items() if value is not ...}


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def token(payload: Document | bytes | None = None, *, key: Any = RSA, alg: str = "RS256", **header: Any) -> str:
    """A compact JWS. `payload` may be raw bytes, to write what no encoder writes; `raw_header` likewise."""
    raw = header.pop("raw_header", None)
    members = {"typ": "at+jwt", "kid": KID, "alg": alg} | header
    first = raw or json.dumps({name: value for name, value in members.items() if value is not ...}).encode()
    second = payload if isinstance(payload, bytes) else json.dumps(payload or claims()).encode()
    signed = f"{b64(first)}.{b64(second)}"
    if isinstance(key, bytes):
        signature = hmac.new(key, signed.encode(), hashlib.sha256).digest()
    else:
        signature = jwt.get_algorithm_by_name("ES256" if key is EC else alg).sign(signed.encode(), key)
    return f"{signed}.{b64(signature)}"


def with_claims(**changes: Any) -> Callable[[], str]:
    return lambda: token(claims(**changes))


def with_header(**changes: Any) -> Callable[[], str]:
    return lambda: token(**changes)


def in_seconds(claim: str, seconds: float, **changes: Any) -> Callable[[], str]:
    return lambda: token(claims(**{claim: int(time.time() + seconds), **changes}))


def any_of(*values: Any) -> tuple[Any, ...]:
    return values


def unsigned(alg: str) -> Callable[[], str]:
    return lambda: token(alg=alg, key=b"").rpartition(".")[0] + ".AA"


def cut(change: Callable[[str, str, str], str]) -> Callable[[], str]:
    return lambda: change(*token().split("."))


def twice(name: str, value: str) -> Callable[[], str]:
    def make() -> str:
        text = json.dumps(claims())
        return token(f'{text[:-1]}, "{name}": "{value}"}}'.encode())

    return make


def authenticate(header: str) -> auth.Principal:
    request = Request(APIRequestFactory().get("/probe", HTTP_AUTHORIZATION=header))
    principal, _ = auth.BearerToken().authenticate(request)
    return principal


@pytest.fixture(autouse=True)
def issuer(settings: Any) -> Iterator[None]:
    settings.ISSUER, settings.AUDIENCE, settings.JWKS_URL = ISSUER, AUDIENCE, ""
    settings.SIGNING_KEY, settings.PREVIOUS_SIGNING_KEYS = private_pem(RSA), ""
    settings.HPTS_TENANT_EXISTS = f"{__name__}.tenant_is_active"
    auth.verified_tokens.clear()
    yield
    auth.verified_tokens.clear()
    auth.remote_keys.cache_clear()


class Clock(SimpleNamespace):
    """Stands for the `time` module of the verifier, so that a test moves time and never waits."""

    def __init__(self) -> None:
        super().__init__(now=time.time())

    def time(self) -> float:
        return float(self.now)

    monotonic = time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(auth, "time", clock)
    return clock


@pytest.fixture
def client_row(db: None) -> Callable[..., ApiClient]:
    def make(client_id: str = "acme", tenant_id: str = TENANT, scopes: str = " ".join(oauth.SCOPES)) -> ApiClient:
        row: ApiClient = ApiClient.objects.create(client_id=client_id, tenant_id=tenant_id, allowed_scopes=scopes)
        return row

    return make


# --- A token that is accepted -----------------------------------------------------------------------------------------
ACCEPTED: dict[str, Callable[[], str]] = {
    "plain": lambda: token(),
    "typ application/at+jwt": with_header(typ="application/at+jwt"),
    "no kid with a single key": with_header(kid=...),
    "aud list of three with ours": with_claims(aud=["a", AUDIENCE, "b"]),
    "tenant in capitals": with_claims(tenant_id=TENANT.upper()),
    "no nbf": with_claims(nbf=...),
    "nbf within the leeway": in_seconds("nbf", 30),
    "iat within the leeway": in_seconds("iat", 30),
    "no scope": with_claims(scope=...),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_good_token_is_accepted(name: str) -> None:
    principal, expires_at = auth.verify(ACCEPTED[name]())
    assert (principal.tenant_id, principal.client_id, principal.subject) == (TENANT, "acme", "acme")
    assert principal.actor == "client:acme"
    assert expires_at > time.time()


def test_a_person_is_named_by_the_subject() -> None:
    assert auth.verify(token(claims(sub="jane")))[0].actor == "user:jane"


# --- A token that is refused ------------------------------------------------------------------------------------------
REFUSED: dict[str, Callable[[], str]] = {
    # algorithm and signature
    **{f"alg {alg or 'empty'}": unsigned(alg) for alg in ("none", "None", "nOnE", "")},
    "alg missing": with_header(raw_header=json.dumps({"typ": "at+jwt", "kid": KID}).encode()),
    "alg a list": with_header(raw_header=json.dumps({"typ": "at+jwt", "kid": KID, "alg": ["RS256"]}).encode()),
    "HS256 with the public PEM": lambda: token(alg="HS256", key=public_pem(RSA).encode()),
    "HS256 with the JWKS": lambda: token(alg="HS256", key=json.dumps(oauth.signing_keys().jwks).encode()),
    "HS256 with the modulus": lambda: token(alg="HS256", key=oauth.signing_keys().jwks["keys"][0]["n"].encode()),
    "RS256 by an EC key": lambda: token(key=EC),
    "ES256 by an EC key": lambda: token(key=EC, alg="ES256"),
    "PS256 by the RS256 key": with_header(alg="PS256"),
    "RS384 by the RS256 key": with_header(alg="RS384"),
    "signed by another key": lambda: token(key=OTHER_RSA),
    "signed by a weak key": lambda: token(key=WEAK_RSA),
    "signature stripped": cut(lambda header, payload, signature: f"{header}.{payload}."),
    "signature gone with its dot": cut(lambda header, payload, signature: f"{header}.{payload}"),
    "signature truncated": cut(lambda header, payload, signature: f"{header}.{payload}.{signature[:-4]}"),
    "one bit of the signature": cut(
        lambda header, payload, signature: f"{header}.{payload}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
    ),
    "payload of another token": cut(
        lambda header, payload, signature: f"{header}.{b64(json.dumps(claims(sub='eve')).encode())}.{signature}"
    ),
    # header
    "kid unknown": with_header(kid="unknown"),
    "kid a path": with_header(kid="../../dev/null"),
    "kid an SQL": with_header(kid="' OR 1=1 --"),
    "kid a number": with_header(kid=1),
    "kid an object": with_header(kid={}),
    "kid a list": with_header(kid=[KID]),
    "kid of 10 kB": with_header(kid="k" * 10_000),
    "jwk brings its own key": lambda: token(key=OTHER_RSA, jwk=jwk(OTHER_RSA)),
    "jwk beside a good signature": with_header(jwk=jwk(OTHER_RSA)),
    "x5c": with_header(x5c=["MIIB"]),
    "crit": with_header(crit=["exp"]),
    "crit unknown": with_header(crit=["hpts"], hpts=1),
    "crit empty": with_header(crit=[]),
    "b64 false": with_header(b64=False),
    "b64 false and crit": with_header(b64=False, crit=["b64"]),
    "zip": lambda: token(zlib.compress(b" " * 1_000_000), zip="DEF"),
    "JWE": lambda: ".".join([b64(json.dumps({"alg": "RSA-OAEP", "enc": "A256GCM"}).encode()), "AA", "AA", "AA", "AA"]),
    "typ JWT": with_header(typ="JWT"),
    "typ missing": with_header(typ=...),
    "typ null": with_header(typ=None),
    "typ a list": with_header(typ=["at+jwt"]),
    "typ id token": with_header(typ="id+jwt"),
    "typ logout token": with_header(typ="logout+jwt"),
    "typ with a suffix": with_header(typ="at+jwt2"),
    "alg twice in the header": with_header(
        raw_header=f'{{"typ":"at+jwt","kid":"{KID}","alg":"none","alg":"RS256"}}'.encode()
    ),
    "header a list": with_header(raw_header=b"[]"),
    "header not JSON": with_header(raw_header=b"{"),
    "header in UTF-16": with_header(raw_header=json.dumps({"typ": "at+jwt", "alg": "RS256"}).encode("utf-16")),
    "header nested deep": with_header(raw_header=b"[" * 5_000),
    # payload
    "payload not JSON": lambda: token(b"{"),
    "payload a list": lambda: token(b"[]"),
    "payload not UTF-8": lambda: token(b'{"iss": "\xff"}'),
    "payload with a byte-order mark": lambda: token(b"\xef\xbb\xbf" + json.dumps(claims()).encode()),
    "payload with a number of 5,000 digits": lambda: token(b'{"exp": ' + b"9" * 5_000 + b"}"),
    "tenant_id twice": twice("tenant_id", TENANT),
    "iss twice": twice("iss", ISSUER),
    # issuer and audience
    **{f"iss {iss!r}": with_claims(iss=iss) for iss in (..., None, "", "https://evil.test", f"{ISSUER}/", [ISSUER])},
    "iss in capitals": with_claims(iss=ISSUER.upper()),
    **{f"aud {aud!r}": with_claims(aud=aud) for aud in any_of(..., None, "", "other", AUDIENCE[:-1], [], {})},
    "aud with a suffix": with_claims(aud=f"{AUDIENCE}x"),
    "aud in capitals": with_claims(aud=AUDIENCE.upper()),
    "aud list without ours": with_claims(aud=["a", "b"]),
    "aud list of four": with_claims(aud=[AUDIENCE, "a", "b", "c"]),
    "aud list with a number": with_claims(aud=[AUDIENCE, 1]),
    "aud an object": with_claims(aud={AUDIENCE: 1}),
    # times
    **{f"exp {exp!r}": with_claims(exp=exp) for exp in (..., None, "", True, 10**30, -1, 0, [1], float("inf"))},
    "exp and iat of 10^30": with_claims(exp=10**30 + 1, iat=10**30),
    "exp a string": lambda: token(claims(exp=str(int(time.time()) + 60))),
    "exp a float": lambda: token(claims(exp=time.time() + 60)),
    "exp past": in_seconds("exp", -61),
    "exp just past": in_seconds("exp", -1),
    "exp in more than an hour": in_seconds("exp", 3700),
    "lifetime over an hour": lambda: token(claims(iat=int(time.time()) - 1800, exp=int(time.time()) + 1801)),
    "nbf ahead": in_seconds("nbf", 90),
    "nbf a string": with_claims(nbf="0"),
    "nbf true": with_claims(nbf=True),
    "nbf null": with_claims(nbf=None),
    "nbf a float": with_claims(nbf=1.5),
    "iat missing": with_claims(iat=...),
    "iat a string": with_claims(iat="1"),
    "iat true": with_claims(iat=True),
    "iat ahead": lambda: token(claims(iat=int(time.time()) + 90, nbf=...)),
    "iat older than a day": in_seconds("iat", -86_500, exp=int(time.time()) + 60),
    # names
    **{
        f"{claim} {value!r}": with_claims(**{claim: value})
        for claim in ("sub", "client_id", "jti")
        for value in any_of(..., None, "", 7, ["acme"], "a\x00b", "a\nb", "\ud800", "x" * 256)
    },
    # tenant
    **{
        f"tenant_id {value!r}": with_claims(tenant_id=value)
        for value in (
            *any_of(..., None, "", 7, [TENANT], {"id": TENANT}, "tenant", f"{{{TENANT}}}", f"urn:uuid:{TENANT}"),
            *any_of(TENANT.replace("-", ""), f"{TENANT}\n", f" {TENANT}", TENANT[:-1] + "g", TENANT[:-1] + "٣"),
        )
    },
    # scope and binding
    **{f"scope {value!r}": with_claims(scope=value) for value in any_of(["hpts:payments:write"], None, 1, {})},
    **{
        f"cnf {value!r}": with_claims(cnf=value)
        for value in any_of({"x5t#S256": "A" * 43}, {"jkt": "A" * 43}, {}, None, "thumb", [])
    },
}


@contextmanager
def no_query() -> Iterator[None]:
    """Fails when the block asks the database anything: a forged token must not cost a query."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError("a refused token asked the database")

    with connection.execute_wrapper(refuse):
        yield


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_token_is_refused_without_a_query(name: str) -> None:
    with no_query(), pytest.raises(InvalidToken):
        authenticate(f"Bearer {REFUSED[name]()}")


HEADERS: dict[str, Callable[[str], str]] = {
    "empty": lambda good: "",
    "scheme alone": lambda good: "Bearer",
    "scheme and a blank": lambda good: "Bearer ",
    "token alone": lambda good: good,
    "Basic": lambda good: f"Basic {good}",
    "other scheme with the prefix": lambda good: f"BearerX {good}",
    "two blanks": lambda good: f"Bearer  {good}",
    "tab": lambda good: f"Bearer\t{good}",
    "leading blank": lambda good: f" Bearer {good}",
    "trailing blank": lambda good: f"Bearer {good} ",
    "line break": lambda good: f"Bearer {good}\r\nX-Evil: 1",
    "two headers joined by the server": lambda good: f"Bearer {good},Bearer {good}",
    "two headers joined with a blank": lambda good: f"Bearer {good}, Bearer {good}",
    "padding": lambda good: f"Bearer {good}=",
    "over 8 KiB": lambda good: f"Bearer {token(claims(sub='acme', filler='x' * 8192))}",
    "parameter": lambda good: f'Bearer token="{good}"',
}


@pytest.mark.parametrize("name", HEADERS)
def test_only_bearer_and_one_token_is_an_authorization_header(name: str) -> None:
    with pytest.raises(InvalidToken):
        authenticate(HEADERS[name](token()))


def test_a_token_in_query_form_or_cookie_is_not_looked_at() -> None:
    good = token()
    for url in (f"/probe?access_token={good}", f"/probe?token={good}"):
        with pytest.raises(InvalidToken):
            auth.BearerToken().authenticate(Request(APIRequestFactory().get(url, HTTP_COOKIE=f"access_token={good}")))
    with pytest.raises(InvalidToken):
        auth.BearerToken().authenticate(Request(APIRequestFactory().post("/probe", {"access_token": good})))


@pytest.mark.django_db
def test_the_scheme_may_be_in_any_case(client_row: Callable[..., ApiClient]) -> None:
    client_row()
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert authenticate(f"{scheme} {token()}").client_id == "acme"


# --- Clients and tenants ----------------------------------------------------------------------------------------------
@pytest.mark.django_db
def test_a_token_of_an_unknown_client_is_refused() -> None:
    with pytest.raises(InvalidToken):
        authenticate(f"Bearer {token()}")


@pytest.mark.django_db
@pytest.mark.parametrize("tenant_id", [UNKNOWN_TENANT, SUSPENDED])
def test_a_token_of_an_unknown_or_suspended_tenant_is_refused(
    tenant_id: str, client_row: Callable[..., ApiClient]
) -> None:
    client_row(tenant_id=tenant_id)
    with pytest.raises(InvalidToken):
        authenticate(f"Bearer {token(claims(tenant_id=tenant_id))}")


@pytest.mark.django_db
def test_a_client_cannot_act_for_another_tenant(client_row: Callable[..., ApiClient]) -> None:
    client_row(tenant_id=UNKNOWN_TENANT)
    with pytest.raises(InvalidToken):
        authenticate(f"Bearer {token()}")


@pytest.mark.django_db
def test_a_disabled_client_is_refused_within_a_minute(client_row: Callable[..., ApiClient], clock: Clock) -> None:
    row, header = client_row(), f"Bearer {token()}"
    authenticate(header)
    ApiClient.objects.filter(pk=row.pk).update(disabled_at=timezone.now())
    clock.now += 60
    with pytest.raises(InvalidToken):
        authenticate(header)


@pytest.mark.django_db
def test_a_scope_taken_from_the_client_is_gone_within_a_minute(
    client_row: Callable[..., ApiClient], clock: Clock
) -> None:
    row, header = client_row(), f"Bearer {token()}"
    assert authenticate(header).scopes == {"hpts:payments:write", "hpts:ledger:read"}
    ApiClient.objects.filter(pk=row.pk).update(allowed_scopes="hpts:ledger:read")
    clock.now += 60
    assert authenticate(header).scopes == {"hpts:ledger:read"}


# --- The cache of verified tokens -------------------------------------------------------------------------------------
@pytest.mark.django_db
def test_a_verified_token_is_not_verified_again_for_a_minute(
    client_row: Callable[..., ApiClient], clock: Clock
) -> None:
    client_row()
    header = f"Bearer {token()}"
    authenticate(header)
    clock.now += 59
    with CaptureQueriesContext(connection) as queries:
        authenticate(header)
    assert len(queries) == 0
    clock.now += 1
    with CaptureQueriesContext(connection) as queries:
        authenticate(header)
    assert len(queries) == 1


@pytest.mark.django_db
def test_a_cached_token_does_not_outlive_its_expiry(client_row: Callable[..., ApiClient], clock: Clock) -> None:
    client_row()
    header = f"Bearer {token(claims(exp=int(clock.now) + 20))}"
    authenticate(header)
    clock.now = int(clock.now) + 20
    with pytest.raises(InvalidToken):
        authenticate(header)


@pytest.mark.django_db
def test_a_clock_that_is_set_back_does_not_lengthen_an_entry(
    client_row: Callable[..., ApiClient], clock: Clock
) -> None:
    row, header = client_row(), f"Bearer {token(claims(iat=int(clock.now) - 300, exp=int(clock.now) + 3000, nbf=...))}"
    authenticate(header)
    row.delete()
    clock.now -= 200
    with pytest.raises(InvalidToken):
        authenticate(header)


@pytest.mark.django_db
def test_the_cache_keeps_its_size(client_row: Callable[..., ApiClient], monkeypatch: pytest.MonkeyPatch) -> None:
    client_row()
    monkeypatch.setattr(auth, "CACHE_SIZE", 3)
    for number in range(10):
        authenticate(f"Bearer {token(claims(jti=str(number)))}")
    assert len(auth.verified_tokens._entries) == 3


# --- Rotation of the own key ------------------------------------------------------------------------------------------
def test_an_old_key_works_in_the_overlap_and_not_after(settings: Any) -> None:
    old = token()
    settings.SIGNING_KEY, settings.PREVIOUS_SIGNING_KEYS = private_pem(OTHER_RSA), public_pem(RSA)
    assert auth.verify(old)[0].client_id == "acme"
    new_kid = oauth.signing_keys().kid
    assert new_kid != KID and auth.verify(token(key=OTHER_RSA, kid=new_kid))
    with pytest.raises(InvalidToken, match="unknown key"):
        auth.verify(token(kid=...))  # no kid, and two keys to choose from
    settings.PREVIOUS_SIGNING_KEYS = ""
    with pytest.raises(InvalidToken):
        auth.verify(old)


@pytest.mark.parametrize("pem", ["", "no key", private_pem(WEAK_RSA)])
def test_a_missing_or_weak_signing_key_is_a_configuration_error(settings: Any, pem: str) -> None:
    settings.SIGNING_KEY = pem
    with pytest.raises(ImproperlyConfigured):
        oauth.signing_keys()


# --- An external issuer -----------------------------------------------------------------------------------------------
class JwksServer:
    """A real HTTP server on loopback that answers a JWKS and counts who asks."""

    def __init__(self) -> None:
        self.body, self.status, self.hits = b"{}", 200, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.hits += 1
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def publish(self, *keys: Document) -> None:
        self.body = json.dumps({"keys": keys}).encode()


@pytest.fixture
def jwks_server() -> Iterator[JwksServer]:
    server = JwksServer()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def external(settings: Any, jwks_server: JwksServer, clock: Clock) -> JwksServer:
    settings.JWKS_URL, settings.SIGNING_KEY = jwks_server.url, ""
    jwks_server.publish(jwk(RSA, kid=KID, use="sig", alg="RS256"))
    auth.remote_keys.cache_clear()
    return jwks_server


def test_tokens_of_an_external_issuer_need_no_client_row(external: JwksServer) -> None:
    for number in range(5):
        assert authenticate(f"Bearer {token(claims(jti=str(number)))}").tenant_id == TENANT
    assert external.hits == 1


def test_the_algorithm_is_the_keys_and_not_the_tokens(external: JwksServer) -> None:
    external.publish(jwk(RSA, kid="ps", alg="PS256"), jwk(EC, kid="ec"), jwk(OTHER_RSA, kid="rs"))
    assert auth.verify(token(alg="PS256", kid="ps"))
    assert auth.verify(token(alg="ES256", kid="ec", key=EC))
    assert auth.verify(token(alg="RS256", kid="rs", key=OTHER_RSA))
    for alg, kid, key in (
        ("RS256", "ps", RSA),
        ("PS256", "rs", OTHER_RSA),
        ("RS256", "ec", EC),
        ("ES256", "ps", EC),
        ("HS256", "rs", public_pem(OTHER_RSA).encode()),
        ("HS256", "ec", public_pem(EC).encode()),
        ("HS256", "rs", external.body),
    ):
        with pytest.raises(InvalidToken):
            auth.verify(token(alg=alg, kid=kid, key=key))


UNFIT_KEYS = {
    "for encryption": jwk(RSA, kid=KID, use="enc"),
    "to encrypt": jwk(RSA, kid=KID, key_ops=["encrypt"]),
    "key_ops malformed": jwk(RSA, kid=KID, key_ops=1),
    "alg of another type": jwk(RSA, kid=KID, alg="ES256"),
    "alg HS256": jwk(RSA, kid=KID, alg="HS256"),
    "alg none": jwk(RSA, kid=KID, alg="none"),
    "alg malformed": jwk(RSA, kid=KID, alg=["RS256"]),
    "symmetric": {"kty": "oct", "k": b64(b"secret" * 8), "kid": KID},
    "broken": {"kty": "RSA", "n": "!", "e": "AQAB", "kid": KID},
    "modulus missing": {"kty": "RSA", "e": "AQAB", "kid": KID},
}


@pytest.mark.parametrize("name", UNFIT_KEYS)
def test_a_key_that_is_unfit_for_signatures_verifies_nothing(name: str, external: JwksServer) -> None:
    external.publish(UNFIT_KEYS[name], jwk(OTHER_RSA, kid="other"))
    with pytest.raises(InvalidToken, match="unknown key"):
        auth.verify(token())


def test_a_key_of_1024_bits_verifies_nothing(external: JwksServer) -> None:
    external.publish(jwk(WEAK_RSA, kid="weak"))
    with pytest.raises(InvalidToken, match="unknown key"):
        auth.verify(token(key=WEAK_RSA, kid="weak"))


def test_two_keys_of_one_id_are_both_left_out(external: JwksServer) -> None:
    external.publish(jwk(RSA, kid=KID), jwk(OTHER_RSA, kid=KID))
    for key in (RSA, OTHER_RSA):
        with pytest.raises(InvalidToken, match="unknown key"):
            auth.verify(token(key=key))


def test_a_new_key_is_fetched_and_a_withdrawn_one_dies_within_five_minutes(external: JwksServer, clock: Clock) -> None:
    old, new = token(), token(key=OTHER_RSA, kid="new")
    assert auth.verify(old)
    external.publish(jwk(OTHER_RSA, kid="new"))
    clock.now += 31
    assert auth.verify(new)
    external.publish(jwk(RSA, kid=KID))
    clock.now += 300 - auth.CACHE_SECONDS
    with pytest.raises(InvalidToken):
        auth.verify(new)


def test_known_keys_work_while_the_issuer_is_down(external: JwksServer, clock: Clock) -> None:
    assert auth.verify(token())
    for status, body in ((500, b"down"), (200, b"not json"), (200, b"[]"), (200, b'{"keys": 1}'), (200, b"[" * 90_000)):
        external.status, external.body = status, body
        clock.now += 300
        assert auth.verify(token(claims(iat=int(clock.now), nbf=..., exp=int(clock.now) + 60)))
        with pytest.raises(InvalidToken):
            auth.verify(token(kid="unknown"))
    external.server.shutdown()
    external.server.server_close()
    clock.now += 300
    assert auth.verify(token(claims(iat=int(clock.now), nbf=..., exp=int(clock.now) + 60)))


def test_with_the_issuer_down_from_the_start_the_answer_is_401(external: JwksServer) -> None:
    external.status = 503
    with pytest.raises(InvalidToken):
        auth.verify(token())


def test_a_thousand_unknown_keys_cost_one_fetch_in_thirty_seconds(external: JwksServer, clock: Clock) -> None:
    auth.verify(token())
    clock.now += 31
    for number in range(1_000):
        with pytest.raises(InvalidToken):
            auth.verify(f"{b64(json.dumps({'typ': 'at+jwt', 'alg': 'RS256', 'kid': str(number)}).encode())}.AAAA.AAAA")
    assert external.hits == 2


def test_callers_at_once_share_one_fetch(external: JwksServer) -> None:
    good, results = token(), []
    threads = [threading.Thread(target=lambda: results.append(auth.verify(good))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 16 and external.hits == 1


@pytest.mark.parametrize("member", ["jku", "x5u"])
def test_a_url_in_the_token_is_never_fetched(member: str, jwks_server: JwksServer, settings: Any) -> None:
    jwks_server.publish(jwk(OTHER_RSA, kid="evil"))
    for key, kid in ((OTHER_RSA, "evil"), (RSA, KID)):
        with pytest.raises(InvalidToken):
            url: Document = {member: jwks_server.url}
            auth.verify(token(key=key, kid=kid, **url))
    with pytest.raises(InvalidToken):
        auth.verify(token(claims(iss=jwks_server.url.removesuffix("/jwks.json")), key=OTHER_RSA, kid="evil"))
    assert jwks_server.hits == 0


# --- Scopes and views -------------------------------------------------------------------------------------------------
class Probe(APIView):
    required_scope = "hpts:payments:write"

    def get(self, request: Request) -> Response:
        principal = auth.caller(request)
        return Response({"tenant_id": principal.tenant_id, "actor": principal.actor})


class Undeclared(APIView):
    def get(self, request: Request) -> Response:
        return Response({})


urlpatterns = [path("probe", Probe.as_view())]


def permitted(view: APIView, method: str, *scopes: str) -> bool:
    request = Request(APIRequestFactory().generic(method, "/"))
    request.user = auth.Principal(TENANT, "acme", "acme", frozenset(scopes))  # type: ignore[assignment]
    permission: BasePermission = auth.HasScope()
    return permission.has_permission(request, view)


def test_a_view_lets_in_its_scope_alone() -> None:
    assert permitted(Probe(), "GET", "hpts:payments:write", "hpts:ledger:read")
    for scopes in ((), ("hpts:payments:writeX",), ("hpts:payments",), ("hpts:*",), ("hpts:admin:*",), ("*",)):
        with pytest.raises(InsufficientScope, match="hpts:payments:write"):
            permitted(Probe(), "GET", *scopes)


def acting(action: str) -> APIView:
    scopes = {"list": "hpts:ledger:read", "create": "hpts:admin:loans"}
    return SimpleNamespace(action=action, scopes=scopes)  # type: ignore[return-value]


def test_scopes_are_declared_by_action() -> None:
    assert permitted(acting("list"), "GET", "hpts:ledger:read")
    with pytest.raises(InsufficientScope):
        permitted(acting("create"), "POST", "hpts:ledger:read")


def test_the_admin_wildcard_grants_every_admin_area_and_nothing_else() -> None:
    assert permitted(acting("create"), "POST", "hpts:admin:*")
    assert permitted(acting("create"), "POST", "hpts:admin:loans")
    with pytest.raises(InsufficientScope):
        permitted(acting("create"), "POST", "hpts:admin:periods")
    for scope in oauth.SCOPES:
        assert oauth.covers({"hpts:admin:*"}, scope) is scope.startswith("hpts:admin:")


def test_a_view_without_a_scope_is_a_programming_error() -> None:
    with pytest.raises(ImproperlyConfigured):
        permitted(Undeclared(), "GET", *oauth.SCOPES)
    with pytest.raises(ImproperlyConfigured):
        permitted(acting("destroy"), "DELETE", *oauth.SCOPES)


@pytest.mark.django_db
def test_over_http_a_token_opens_the_view_for_its_own_tenant(
    client: Client, client_row: Callable[..., ApiClient]
) -> None:
    client_row()
    other = {"X-Tenant-Id": UNKNOWN_TENANT, "Authorization": f"bearer {token()}"}
    answer = client.get(f"/probe?tenant_id={UNKNOWN_TENANT}", headers=other)
    assert answer.status_code == 200
    assert answer.json() == {"tenant_id": TENANT, "actor": "client:acme"}


@pytest.mark.parametrize("name", ["alg none", "HS256 with the public PEM", "kid unknown", "typ JWT", "exp past"])
def test_over_http_a_bad_token_is_a_401_problem(name: str, client: Client) -> None:
    answer = client.get("/probe", headers={"Authorization": f"Bearer {REFUSED[name]()}"})
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_over_http_no_token_is_a_401_problem(client: Client) -> None:
    answer = client.get("/probe")
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.django_db
def test_over_http_a_missing_scope_is_a_403_problem(client: Client, client_row: Callable[..., ApiClient]) -> None:
    client_row()
    for scope in ("hpts:ledger:read", "hpts:payments:writeX", "hpts:*", "hpts:admin:*", ...):
        answer = client.get("/probe", headers={"Authorization": f"Bearer {token(claims(scope=scope))}"})
        assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
