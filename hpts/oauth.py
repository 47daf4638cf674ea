"""The token issuer: clients of one tenant exchange their secret for signed access tokens (RFC 6749, 9068, 8414).

django-oauth-toolkit authenticates the client and speaks the protocol; what is ours is the token's content, the scopes
and what is kept at rest. Whether a token is accepted is `hpts/auth.py`'s question, never asked here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import time
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from django.conf import settings
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.core.exceptions import ImproperlyConfigured, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.utils import timezone
from django.utils.module_loading import import_string
from django.utils.text import slugify
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import sensitive_post_parameters
from oauth2_provider.oauth2_backends import OAuthLibCore, get_oauthlib_core
from oauth2_provider.oauth2_validators import OAuth2Validator
from oauth2_provider.scopes import BaseScopes
from oauthlib.common import Request as TokenRequest

from hpts import audit, problems
from hpts.audit import Caller
from hpts.models import ApiClient
from hpts.tenancy import tenant_transaction

# The scope catalogue: the only list of scopes and of what each of them allows.
ADMIN = "hpts:admin:"
ADMIN_AREAS = {
    "loans": "Open loans and programs, change their terms",
    "servicing": "Fees, waivers, charge-offs, recoveries, refinancing and restructuring",
    "adjustments": "Manual journal entries and the chart of accounts",
    "webhooks": "Webhook endpoints and deliveries",
    "reconciliation": "Bank statements, breaks and reconciliation runs",
    "periods": "Close accounting periods",
}
SCOPES: dict[str, str] = {
    "hpts:payments:write": "Post payment events",
    "hpts:disbursements:write": "Post disbursement events",
    "hpts:accruals:write": "Post batch accruals",
    "hpts:reversals:write": "Post reversals (privileged; audited)",
    "hpts:ledger:read": "Read journal entries",
    "hpts:balances:read": "Read balances",
    "hpts:loans:read": "Read loan metadata",
    "hpts:reconciliation:read": "Read reconciliation reports",
    ADMIN + "*": "Administrative operations",
} | {ADMIN + area: description for area, description in ADMIN_AREAS.items()}

UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
CLIENT_ID = re.compile(r"[A-Za-z0-9._~-]{1,255}", re.ASCII)
MAX_TOKEN_REQUEST_BYTES = 16 * 1024
MINIMUM_RSA_BITS = 2048
BY_COMMAND = Caller("command:create_client")


def covers(granted: Collection[str], needed: str) -> bool:
    """Whether the granted scopes allow what `needed` names: itself, or every admin area by the admin wildcard."""
    return needed in granted or (needed.startswith(ADMIN) and ADMIN + "*" in granted)


def tenant_is_known(tenant_id: str) -> bool:
    """Ask the app that keeps the tenants; this package knows it by the dotted path in the settings alone."""
    return bool(import_string(settings.HPTS_TENANT_EXISTS)(tenant_id))


# --- Keys ------------------------------------------------------------------------------------------------------------
class SigningKeys(NamedTuple):
    private: RSAPrivateKey
    kid: str
    jwks: dict[str, list[dict[str, str]]]


def signing_keys() -> SigningKeys:
    """The issuer's key, and the public keys to publish: its own first, then those whose tokens still live."""
    return _signing_keys(settings.SIGNING_KEY, settings.PREVIOUS_SIGNING_KEYS)


@lru_cache(maxsize=4)
def _signing_keys(private_pem: str, previous_pems: str) -> SigningKeys:
    try:
        private = serialization.load_pem_private_key(private_pem.encode(), password=None)
        blocks = re.findall(r"-----BEGIN [^-]+-----.+?-----END [^-]+-----", previous_pems, re.DOTALL)
        previous = [serialization.load_pem_public_key(block.encode()) for block in blocks]
    except ValueError as error:
        raise ImproperlyConfigured(
            "HPTS_SIGNING_KEY must be a private key in PEM, HPTS_PREVIOUS_SIGNING_KEYS public ones"
        ) from error
    if not isinstance(private, RSAPrivateKey) or private.key_size < MINIMUM_RSA_BITS:
        raise ImproperlyConfigured(f"HPTS_SIGNING_KEY must be an RSA key of at least {MINIMUM_RSA_BITS} bits")
    jwks = [_jwk(key) for key in (private.public_key(), *previous)]
    return SigningKeys(private, jwks[0]["kid"], {"keys": jwks})


def _jwk(key: object) -> dict[str, str]:
    """The JWK of a public RSA key; its id is the RFC 7638 thumbprint, so that nobody has to choose one."""
    if not isinstance(key, RSAPublicKey):
        raise ImproperlyConfigured("HPTS_PREVIOUS_SIGNING_KEYS must be RSA public keys")
    numbers = key.public_numbers()
    members = {"e": _base64url_int(numbers.e), "kty": "RSA", "n": _base64url_int(numbers.n)}
    canonical = json.dumps(members, separators=(",", ":"), sort_keys=True)
    kid = _base64url(hashlib.sha256(canonical.encode()).digest())
    return {**members, "use": "sig", "alg": "RS256", "kid": kid}


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _base64url_int(number: int) -> str:
    return _base64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))


# --- What django-oauth-toolkit is told (OAUTH2_PROVIDER in the settings) ---------------------------------------------
def access_token(request: TokenRequest) -> str:
    """An RFC 9068 token for the client that the request was authenticated as; its subject is the client itself."""
    client, keys, now = request.client, signing_keys(), int(time.time())
    claims = {
        "iss": settings.ISSUER,
        "aud": settings.AUDIENCE,
        "sub": client.client_id,
        "client_id": client.client_id,
        "tenant_id": str(client.tenant_id),
        "scope": " ".join(request.scopes),
        "iat": now,
        "nbf": now,
        "exp": now + request.expires_in,
        "jti": secrets.token_urlsafe(16),
    }
    return jwt.encode(claims, keys.private, "RS256", headers={"typ": "at+jwt", "kid": keys.kid})


class ClientScopes(BaseScopes):  # type: ignore[misc]
    """A client may ask for the scopes that it was registered with, and gets all of them when it names none."""

    def get_all_scopes(self) -> dict[str, str]:
        return SCOPES

    def get_default_scopes(self, application: Any = None, request: Any = None, *args: Any, **kwargs: Any) -> list[str]:
        return application.allowed_scopes.split() if application else []

    def get_available_scopes(
        self, application: Any = None, request: Any = None, *args: Any, **kwargs: Any
    ) -> list[str]:
        granted = self.get_default_scopes(application)
        return [scope for scope in SCOPES if covers(granted, scope)]


class ClientValidator(OAuth2Validator):  # type: ignore[misc]
    """Keeps no token: a signed one needs no row, and a stored one would be a usable secret at rest."""

    def _load_application(self, client_id: str | None, request: TokenRequest) -> ApiClient | None:
        # What cannot be a client's id does not reach PostgreSQL, which refuses NUL with an error of its own.
        return super()._load_application(client_id, request) if CLIENT_ID.fullmatch(client_id or "") else None

    def authenticate_client(self, request: TokenRequest, *args: Any, **kwargs: Any) -> bool:
        # A body that names another client than the Authorization header is not that client's request.
        return super().authenticate_client(request) and request.client_id in (None, "", request.client.client_id)

    def save_bearer_token(self, token: Any, request: TokenRequest, *args: Any, **kwargs: Any) -> None:
        return None


class GeneratedSecretHasher(PBKDF2PasswordHasher):
    """One round, for generated secrets only: never for a password that a person chose.

    Rounds slow down guessing, and 128 random characters (768 bits) cannot be guessed at any speed; a salted SHA-256
    keeps a stolen table useless. A password's rounds would cost every token request half a second of processor time.
    """

    algorithm = "generated_secret"
    iterations = 1


# --- Clients ---------------------------------------------------------------------------------------------------------
def register_client(
    *,
    tenant_id: str,
    scopes: Iterable[str],
    name: str = "",
    certificate: bytes | None = None,
    suffix: str = "",
    by: Caller = BY_COMMAND,
) -> tuple[ApiClient, str]:
    """Make a client of a tenant and return it with its secret, which is stored hashed and cannot be had again.

    `certificate` is the client's own, PEM or DER; `suffix` is what its id ends in, else chance decides. Raises ValueError with a
    sentence for the operator.
    """
    wanted = set(scopes)
    if unknown := sorted(wanted - SCOPES.keys()):
        raise ValueError(f"Unknown scope {', '.join(unknown)}. Known are: {' '.join(SCOPES)}.")
    if not wanted:
        raise ValueError("A client needs at least one scope.")
    if not UUID.fullmatch(tenant_id):
        raise ValueError(f"{tenant_id!r} is not a tenant id: it must be a UUID, as create_tenant prints it.")
    if not tenant_is_known(tenant_id.lower()):
        raise ValueError(f"There is no active tenant {tenant_id.lower()}.")
    secret = secrets.token_urlsafe(96)  # 128 characters
    client_id = f"{slugify(name)[:40] or 'client'}-{suffix or secrets.token_hex(8)}"
    if ApiClient.objects.filter(client_id=client_id).exists():
        raise ValueError(f"There is a client {client_id} already; its secret was shown when it was made.")
    client = ApiClient(
        client_id=client_id,
        client_secret=secret,
        client_type=ApiClient.CLIENT_CONFIDENTIAL,
        authorization_grant_type=ApiClient.GRANT_CLIENT_CREDENTIALS,
        name=name,
        tenant_id=tenant_id.lower(),
        allowed_scopes=" ".join(scope for scope in SCOPES if scope in wanted),
        certificate_thumbprints=[_thumbprint(certificate)] if certificate else [],
    )
    with tenant_transaction(tenant_id.lower()) as cursor:
        client.save(force_insert=True)
        detail = f"scopes: {client.allowed_scopes}"
        audit.record(by, "createClient", about=("client", client.client_id), detail=detail, cursor=cursor)
    return client, secret


def disable_client(*, tenant_id: str, client_id: str, by: Caller) -> bool:
    """The client gets no token any more; gives whether there is one. Tokens that it has end within a minute (hpts/auth.py)."""
    with tenant_transaction(tenant_id) as cursor:
        client = ApiClient.objects.filter(client_id=client_id, tenant_id=tenant_id).first()
        if client is not None and client.disabled_at is None:
            client.disabled_at = timezone.now()
            client.save(update_fields=["disabled_at", "updated"])
            audit.record(by, "disableClient", about=("client", client_id), cursor=cursor)
    return client is not None


def _thumbprint(certificate: bytes) -> str:
    """The `x5t#S256` of RFC 8705. Raises ValueError for what is no certificate."""
    load = x509.load_pem_x509_certificate if b"-----BEGIN" in certificate else x509.load_der_x509_certificate
    return _base64url(load(certificate).fingerprint(hashes.SHA256()))


# --- Endpoints -------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)
def _protocol() -> OAuthLibCore:
    return get_oauthlib_core()


@csrf_exempt
@sensitive_post_parameters("client_secret")
def token(request: HttpRequest) -> HttpResponse:
    """`POST /oauth2/token`: client credentials against an access token. Errors as RFC 6749 section 5.2 has them."""
    _only_as_issuer()
    if request.method != "POST":
        return _refused("The token endpoint takes POST only.", status=405, headers={"Allow": "POST"})
    if request.content_type != "application/x-www-form-urlencoded":
        return _refused("The body must be application/x-www-form-urlencoded.")
    length = request.META.get("CONTENT_LENGTH") or "0"
    if not length.isdecimal() or int(length) > MAX_TOKEN_REQUEST_BYTES:
        return _refused(f"The body must not be larger than {MAX_TOKEN_REQUEST_BYTES} bytes.")
    try:
        form = request.POST
    except SuspiciousOperation:
        return _refused("The body has too many parameters.")
    if any(len(values) > 1 for _, values in form.lists()):
        return _refused("A parameter may stand only once.")
    if "client_secret" in form and "HTTP_AUTHORIZATION" in request.META:
        return _refused("Use one way to authenticate the client: the Authorization header or the body.")
    _, headers, body, status = _protocol().create_token_response(request)
    if status == 401:
        headers = {**headers, "WWW-Authenticate": 'Basic realm="hpts", charset="UTF-8"'}
    return HttpResponse(body, status=status, headers=headers)


def _refused(description: str, *, status: int = 400, headers: dict[str, str] | None = None) -> HttpResponse:
    body = {"error": "invalid_request", "error_description": description}
    return JsonResponse(body, status=status, headers={"Cache-Control": "no-store", **(headers or {})})


def jwks(request: HttpRequest) -> HttpResponse:
    """`GET /.well-known/jwks.json`. Verifiers may keep it for as long as our own verifier keeps a foreign one."""
    _only_as_issuer()
    return _published(request, signing_keys().jwks)


def metadata(request: HttpRequest) -> HttpResponse:
    """`GET /.well-known/oauth-authorization-server` (RFC 8414)."""
    _only_as_issuer()
    base = settings.ISSUER.rstrip("/")
    document = {
        "issuer": settings.ISSUER,
        "token_endpoint": f"{base}/oauth2/token",
        "jwks_uri": f"{base}/.well-known/jwks.json",
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": [],
        "scopes_supported": list(SCOPES),
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    }
    return _published(request, document)


def _published(request: HttpRequest, document: dict[str, Any]) -> HttpResponse:
    if request.method not in ("GET", "HEAD"):
        return problems.response(problems.MethodNotAllowed(["GET", "HEAD"]), getattr(request, "request_id", "unknown"))
    return JsonResponse(document, headers={"Cache-Control": "public, max-age=240"})


def _only_as_issuer() -> None:
    """With an external issuer configured, nothing here pretends to be one."""
    if settings.JWKS_URL:
        raise Http404


urlpatterns = [
    path("oauth2/token", token, name="token"),
    path(".well-known/jwks.json", jwks, name="jwks"),
    path(".well-known/oauth-authorization-server", metadata, name="oauth-metadata"),
]
