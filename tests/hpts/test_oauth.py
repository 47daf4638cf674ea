"""The token endpoint, the published documents, and how clients are made."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.core.management import CommandError, call_command
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone
from oauth2_provider.models import AccessToken, RefreshToken

from deploy.partner_certs import issue
from hpts import auth, certificates, oauth
from hpts.models import ApiClient

pytestmark = pytest.mark.urls(__name__)

urlpatterns = oauth.urlpatterns

# Fixed, because test names are made of them and every test process must know the same names.
TENANT = "3b9f1a52-6c0e-4a7d-9d35-2f8c4b7e1a60"
UNKNOWN_TENANT = "c1d2e3f4-a5b6-4789-8a9b-0c1d2e3f4a5b"
SCOPES = ["hpts:payments:write", "hpts:ledger:read"]
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
FORM = "application/x-www-form-urlencoded"


def tenant_is_active(tenant_id: str) -> bool:
    """Stands for the ledger's answer."""
    return tenant_id == TENANT


@pytest.fixture(autouse=True)
def issuer(settings: Any) -> None:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    settings.SIGNING_KEY, settings.PREVIOUS_SIGNING_KEYS, settings.JWKS_URL = KEY.private_bytes(*form).decode(), "", ""
    settings.HPTS_TENANT_EXISTS = f"{__name__}.tenant_is_active"
    auth.verified_tokens.clear()


@pytest.fixture
def registered() -> tuple[str, str]:
    client, secret = oauth.register_client(tenant_id=TENANT, scopes=SCOPES, name="Acme loans")
    return client.client_id, secret


def basic(client_id: str, secret: str) -> dict[str, str]:
    pair = f"{quote(client_id, safe='')}:{quote(secret, safe='')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def ask(client: Client, body: str, **headers: str) -> HttpResponse:
    return client.post("/oauth2/token", body, content_type=FORM, headers=headers)  # type: ignore[return-value]


def error(answer: HttpResponse) -> tuple[int, str]:
    return answer.status_code, json.loads(answer.content)["error"]


# --- The token endpoint -----------------------------------------------------------------------------------------------
def test_the_answer_has_exactly_the_four_members(client: Client, registered: tuple[str, str]) -> None:
    answer = ask(client, "grant_type=client_credentials", **basic(*registered))
    body = json.loads(answer.content)
    assert answer.status_code == 200
    assert body.keys() == {"access_token", "token_type", "expires_in", "scope"}
    assert (body["token_type"], body["expires_in"], body["scope"]) == ("Bearer", 3600, " ".join(SCOPES))
    assert answer.headers["Cache-Control"] == "no-store" and answer.headers["Content-Type"] == "application/json"


def test_the_secret_may_stand_in_the_body(client: Client, registered: tuple[str, str]) -> None:
    client_id, secret = registered
    answer = ask(client, f"grant_type=client_credentials&client_id={client_id}&client_secret={quote(secret)}")
    assert answer.status_code == 200


def test_the_token_is_an_rfc_9068_access_token(client: Client, registered: tuple[str, str], settings: Any) -> None:
    body = json.loads(ask(client, "grant_type=client_credentials", **basic(*registered)).content)
    [published] = json.loads(client.get("/.well-known/jwks.json").content)["keys"]
    assert jwt.get_unverified_header(body["access_token"]) == {"typ": "at+jwt", "alg": "RS256", "kid": published["kid"]}
    claims = jwt.decode(body["access_token"], jwt.PyJWK(published), audience=settings.AUDIENCE, issuer=settings.ISSUER)
    assert claims.pop("jti") and claims["exp"] - claims["iat"] == 3600 and claims["nbf"] == claims["iat"]
    assert abs(claims["iat"] - time.time()) < 60
    for name in ("exp", "iat", "nbf"):
        del claims[name]
    assert claims == {
        "iss": settings.ISSUER,
        "aud": settings.AUDIENCE,
        "sub": registered[0],
        "client_id": registered[0],
        "tenant_id": TENANT,
        "scope": " ".join(SCOPES),
    }


def test_our_own_verifier_accepts_what_we_issue(client: Client, registered: tuple[str, str]) -> None:
    token = json.loads(ask(client, "grant_type=client_credentials", **basic(*registered)).content)["access_token"]
    principal = auth.verified_tokens.principal(token)
    assert principal == auth.Principal(TENANT, registered[0], registered[0], frozenset(SCOPES))


def test_no_two_tokens_have_one_id(client: Client, registered: tuple[str, str]) -> None:
    answers = [ask(client, "grant_type=client_credentials", **basic(*registered)) for _ in range(2)]
    first, second = (json.loads(answer.content)["access_token"] for answer in answers)
    options: Any = {"verify_signature": False}
    assert jwt.decode(first, options=options)["jti"] != jwt.decode(second, options=options)["jti"]


def test_no_token_is_kept(client: Client, registered: tuple[str, str]) -> None:
    before = AccessToken.objects.count(), RefreshToken.objects.count()
    ask(client, "grant_type=client_credentials", **basic(*registered))
    assert (AccessToken.objects.count(), RefreshToken.objects.count()) == before


def test_a_client_gets_the_scope_that_it_asks_for(client: Client, registered: tuple[str, str]) -> None:
    answer = ask(client, "grant_type=client_credentials&scope=hpts:ledger:read", **basic(*registered))
    assert json.loads(answer.content)["scope"] == "hpts:ledger:read"


@pytest.mark.parametrize(
    "scope", ["hpts:disbursements:write", "hpts:ledger:read hpts:admin:*", "hpts:*", "hpts:payments:writeX", "nonsense"]
)
def test_a_foreign_scope_is_invalid(scope: str, client: Client, registered: tuple[str, str]) -> None:
    answer = ask(client, f"grant_type=client_credentials&scope={quote(scope)}", **basic(*registered))
    assert error(answer) == (400, "invalid_scope")


def test_an_administrator_may_ask_for_one_area(client: Client) -> None:
    row, secret = oauth.register_client(tenant_id=TENANT, scopes=["hpts:admin:*"])
    answer = ask(client, "grant_type=client_credentials&scope=hpts:admin:loans", **basic(row.client_id, secret))
    assert json.loads(answer.content)["scope"] == "hpts:admin:loans"
    for scope in ("hpts:admin:nothing", "hpts:payments:write"):
        answer = ask(client, f"grant_type=client_credentials&scope={scope}", **basic(row.client_id, secret))
        assert error(answer) == (400, "invalid_scope")


def test_wrong_credentials_are_401(client: Client, registered: tuple[str, str]) -> None:
    client_id, secret = registered
    grant = "grant_type=client_credentials"
    for answer in (
        ask(client, grant),
        ask(client, grant, **basic(client_id, "wrong")),
        ask(client, grant, **basic(client_id, "")),
        ask(client, grant, **basic("nobody", secret)),
        ask(client, grant, **basic("nul\x00", secret)),
        ask(client, grant, **basic(client_id, "nul\x00")),
        ask(client, grant, Authorization="Basic !!!"),
        ask(client, grant, Authorization=f"Bearer {secret}"),
        ask(client, f"{grant}&client_id={client_id}"),
        ask(client, f"{grant}&client_id={client_id}&client_secret=wrong"),
        ask(client, f"{grant}&client_id=%00&client_secret=%00"),
        ask(client, f"{grant}&client_id=another", **basic(client_id, secret)),
    ):
        assert error(answer) == (401, "invalid_client")
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")


def test_the_stored_hash_is_not_a_secret(client: Client, registered: tuple[str, str]) -> None:
    stored = ApiClient.objects.get(client_id=registered[0]).client_secret
    assert registered[1] not in stored and stored.startswith("generated_secret$1$")
    answer = ask(client, "grant_type=client_credentials", **basic(registered[0], stored))
    assert error(answer) == (401, "invalid_client")


def test_a_disabled_client_gets_no_token(client: Client, registered: tuple[str, str]) -> None:
    ApiClient.objects.filter(client_id=registered[0]).update(disabled_at=timezone.now())
    assert error(ask(client, "grant_type=client_credentials", **basic(*registered))) == (401, "invalid_client")


@pytest.mark.parametrize(
    "grant_type",
    ["password", "refresh_token", "implicit", "openid", "urn:ietf:params:oauth:grant-type:device_code", "nonsense"],
)
def test_other_grants_are_unsupported(grant_type: str, client: Client, registered: tuple[str, str]) -> None:
    answer = ask(client, f"grant_type={quote(grant_type)}&username=a&password=b&code=c", **basic(*registered))
    assert error(answer) == (400, "unsupported_grant_type")


def test_malformed_requests_are_invalid(client: Client, registered: tuple[str, str]) -> None:
    client_id, secret = registered
    grant, header = "grant_type=client_credentials", basic(client_id, secret)
    for answer in (
        ask(client, "", **header),
        ask(client, "scope=hpts:ledger:read", **header),
        ask(client, f"{grant}&{grant}", **header),
        ask(client, f"{grant}&scope=hpts:ledger:read&scope=hpts:ledger:read", **header),
        ask(client, f"{grant}&client_id={client_id}&client_secret={quote(secret)}", **header),
        ask(client, f"{grant}&filler={'x' * 20_000}", **header),
        ask(client, f"{grant}&{'a&' * 2_000}", **header),
        client.post(
            "/oauth2/token", {"grant_type": "client_credentials"}, content_type="application/json", headers=header
        ),
        client.post("/oauth2/token", {"grant_type": "client_credentials"}, headers=header),
        client.post(f"/oauth2/token?{grant}", "", content_type=FORM, headers=header),
        client.post("/oauth2/token?x=1", grant, content_type=FORM, headers=header),
    ):
        assert error(answer) == (400, "invalid_request")  # type: ignore[arg-type]


def test_the_token_endpoint_takes_post_only(client: Client) -> None:
    answer = client.get("/oauth2/token")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


# --- The published documents ------------------------------------------------------------------------------------------
def test_the_metadata_names_what_is_there(client: Client, settings: Any) -> None:
    settings.ISSUER = "https://ledger.test"
    document = client.get("/.well-known/oauth-authorization-server").json()
    assert document["issuer"] == settings.ISSUER
    assert document["token_endpoint"] == "https://ledger.test/oauth2/token"
    assert document["jwks_uri"] == "https://ledger.test/.well-known/jwks.json"
    assert document["authorization_endpoint"] == "https://ledger.test/oauth2/authorize"
    assert document["grant_types_supported"] == ["client_credentials", "authorization_code"]
    assert document["code_challenge_methods_supported"] == ["S256"]
    assert document["authorization_response_iss_parameter_supported"] is True
    methods = ["client_secret_basic", "client_secret_post", "none"]
    assert document["token_endpoint_auth_methods_supported"] == methods
    assert "mtls_endpoint_aliases" not in document
    settings.PARTNER_URL = "https://partner.ledger.test/"
    document = client.get("/.well-known/oauth-authorization-server").json()
    assert document["token_endpoint_auth_methods_supported"] == [*methods, "tls_client_auth"]
    assert document["mtls_endpoint_aliases"] == {"token_endpoint": "https://partner.ledger.test/oauth2/token"}
    assert document["tls_client_certificate_bound_access_tokens"] is True
    assert document["scopes_supported"] == list(oauth.SCOPES)


def test_the_jwks_holds_public_keys_only_and_the_kid_is_the_thumbprint(client: Client, settings: Any) -> None:
    previous = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    settings.PREVIOUS_SIGNING_KEYS = previous.public_bytes(*form).decode()
    keys = client.get("/.well-known/jwks.json").json()["keys"]
    assert len(keys) == 2
    for key in keys:
        assert key.keys() == {"kty", "n", "e", "use", "alg", "kid"}
        canonical = f'{{"e":"{key["e"]}","kty":"RSA","n":"{key["n"]}"}}'
        thumbprint = base64.urlsafe_b64encode(hashlib.sha256(canonical.encode()).digest()).rstrip(b"=")
        assert key["kid"] == thumbprint.decode()


def test_the_documents_take_get_only(client: Client) -> None:
    for url in ("/.well-known/jwks.json", "/.well-known/oauth-authorization-server"):
        answer = client.post(url)
        assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")


def test_with_an_external_issuer_nothing_is_issued_here(client: Client, settings: Any) -> None:
    settings.JWKS_URL = "https://issuer.test/jwks.json"
    assert ask(client, "grant_type=client_credentials").status_code == 404
    for url in ("/oauth2/token", "/.well-known/jwks.json", "/.well-known/oauth-authorization-server"):
        assert client.get(url).status_code == 404


# --- Clients ----------------------------------------------------------------------------------------------------------
def test_a_client_has_a_readable_id_and_a_secret_of_128_characters(registered: tuple[str, str]) -> None:
    row = ApiClient.objects.get(client_id=registered[0])
    assert registered[0].startswith("acme-loans-") and len(registered[1]) == 128
    assert (str(row.tenant_id), row.allowed_scopes.split()) == (TENANT, SCOPES)


def test_the_command_prints_json(client: Client) -> None:
    out = StringIO()
    call_command("create_client", "--tenant", TENANT.upper(), "--scopes", " ".join(SCOPES), "--json", stdout=out)
    made = json.loads(out.getvalue())
    assert made.keys() == {"client_id", "client_secret"}
    answer = ask(client, "grant_type=client_credentials", **basic(made["client_id"], made["client_secret"]))
    assert answer.status_code == 200


def test_the_command_prints_text_for_people() -> None:
    out = StringIO()
    call_command("create_client", "--tenant", TENANT, "--scopes", "hpts:admin:*", "--name", "Back office", stdout=out)
    assert "client_id:     back-office-" in out.getvalue() and "cannot be shown again" in out.getvalue()


@pytest.mark.parametrize(
    ("tenant", "scopes", "sentence"),
    [
        (TENANT, "hpts:payments:write hpts:nonsense", "Unknown scope hpts:nonsense"),
        (TENANT, " ", "at least one scope"),
        ("acme", "hpts:ledger:read", "must be a UUID"),
        (f"{{{TENANT}}}", "hpts:ledger:read", "must be a UUID"),
        (UNKNOWN_TENANT, "hpts:ledger:read", "There is no active tenant"),
    ],
)
def test_the_command_refuses_with_a_sentence(tenant: str, scopes: str, sentence: str) -> None:
    before = ApiClient.objects.count()
    with pytest.raises(CommandError, match=sentence):
        call_command("create_client", "--tenant", tenant, "--scopes", scopes)
    assert ApiClient.objects.count() == before


def test_a_certificate_is_kept_as_its_thumbprint(tmp_path: Path) -> None:
    for encoding in (serialization.Encoding.DER, serialization.Encoding.PEM):
        certificate = issue("partner").certificate
        thumbprint = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()
        expected = base64.urlsafe_b64encode(thumbprint).rstrip(b"=").decode()
        (tmp_path / "partner").write_bytes(certificate.public_bytes(encoding))
        out = StringIO()
        arguments = ["--tenant", TENANT, "--scopes", "hpts:ledger:read", "--certificate", str(tmp_path / "partner")]
        call_command("create_client", *arguments, "--json", stdout=out)
        [kept] = certificates.listed(TENANT, json.loads(out.getvalue())["client_id"])
        assert (kept.thumbprint, kept.subject, kept.retired_at) == (expected, "CN=partner", None)


def test_no_client_is_left_when_its_certificate_is_refused(tmp_path: Path) -> None:
    arguments = ["--tenant", TENANT, "--scopes", "hpts:ledger:read", "--certificate", str(tmp_path / "partner")]
    (tmp_path / "partner").write_bytes(issue("partner").pem)
    call_command("create_client", *arguments, stdout=StringIO())
    before = ApiClient.objects.count()
    ended = issue("partner", begins=datetime(2020, 1, 1, tzinfo=UTC), ends=datetime(2020, 2, 1, tzinfo=UTC))
    with pytest.raises(CommandError, match="has this certificate already"):
        call_command("create_client", *arguments)
    for text in (b"no certificate", ended.pem, ended.key_pem):
        (tmp_path / "partner").write_bytes(text)
        with pytest.raises(CommandError):
            call_command("create_client", *arguments)
    with pytest.raises(CommandError):
        call_command("create_client", *arguments[:-1], str(tmp_path / "missing"))
    assert ApiClient.objects.count() == before


def test_the_documentation_lists_every_scope() -> None:
    text = (Path(__file__).parents[2] / "docs" / "authentication.md").read_text(encoding="utf-8")
    assert [scope for scope in oauth.SCOPES if f"| `{scope}` |" not in text] == []
