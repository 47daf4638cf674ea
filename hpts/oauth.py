"""The token issuer: signed access tokens for clients of one tenant, and for people through them (RFC 6749, 7636, 9068).

A client proves itself by its secret, or at the partner host by its certificate (RFC 8705); a person signs in.
django-oauth-toolkit speaks the protocol; what is ours is the token's content, the scopes and what is kept at rest.
Whether a token is accepted is `hpts/auth.py`'s question, never asked here.
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
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from django.conf import settings
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import ImproperlyConfigured, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.utils import timezone
from django.utils.module_loading import import_string
from django.utils.text import slugify
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import sensitive_post_parameters
from oauth2_provider.models import Grant
from oauth2_provider.oauth2_backends import OAuthLibCore, get_oauthlib_core
from oauth2_provider.oauth2_validators import OAuth2Validator
from oauth2_provider.scopes import BaseScopes
from oauth2_provider.views import AuthorizationView
from oauthlib.common import Request as TokenRequest
from oauthlib.common import add_params_to_uri
from oauthlib.oauth2 import (
    AccessDeniedError,
    AuthorizationCodeGrant,
    AuthorizationEndpoint,
    BearerToken,
    ClientCredentialsGrant,
    TokenEndpoint,
)
from oauthlib.oauth2.rfc6749.grant_types.authorization_code import code_challenge_method_s256

from hpts import certificates, problems
from hpts.doors import PARTNER, shown
from hpts.models import ApiClient

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
# What a person may do through a client: look.
READ_SCOPES = ("hpts:ledger:read", "hpts:balances:read")

UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
CLIENT_ID = re.compile(r"[A-Za-z0-9._~-]{1,255}", re.ASCII)
PERSON = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
MAX_TOKEN_REQUEST_BYTES = 16 * 1024
MINIMUM_RSA_BITS = 2048


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
    """An RFC 9068 token for the client that the request was authenticated as; its subject is the person, or the client.

    Bound to the certificate that the client has shown, when it has shown one (RFC 8705 3.1).
    """
    client, keys, now = request.client, signing_keys(), int(time.time())
    # oauthlib lets a form's own members `user` and the like through as text: a person is only whom a code was given for.
    person = request.user if isinstance(request.user, AbstractBaseUser) else None
    certificate = shown(request.headers).certificate
    claims = {
        "iss": settings.ISSUER,
        "aud": settings.AUDIENCE,
        "sub": client.client_id if person is None else str(person.pk),
        "client_id": client.client_id,
        "tenant_id": str(client.tenant_id),
        "scope": " ".join(request.scopes),
        "iat": now,
        "nbf": now,
        "exp": now + request.expires_in,
        "jti": secrets.token_urlsafe(16),
    } | ({"cnf": {"x5t#S256": certificate}} if certificate else {})
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
        sent_secret = "HTTP_AUTHORIZATION" in request.headers or request.client_secret
        if sent_secret or shown(request.headers).certificate is None:
            proven = super().authenticate_client(request)
        else:
            proven = self._load_application(request.client_id, request) is not None
        # A body that names another client than the Authorization header is not that client's request.
        return proven and request.client_id in (None, "", request.client.client_id) and _at_its_door(request)

    def authenticate_client_id(self, client_id: str, request: TokenRequest, *args: Any, **kwargs: Any) -> bool:
        """A public client proves nothing but that it began the sign-in (PKCE): no partner does it like that."""
        return super().authenticate_client_id(client_id, request) and _at_its_door(request)

    def save_authorization_code(
        self, client_id: str, code: Any, request: TokenRequest, *args: Any, **kwargs: Any
    ) -> None:
        if not may_read(request.client, str(request.user.pk)):
            raise AccessDeniedError(request=request, state=request.state)
        Grant.objects.filter(application=request.client, expires__lt=timezone.now()).delete()
        super().save_authorization_code(client_id, code, request)

    def validate_code(self, client_id: str, code: str, client: ApiClient, request: TokenRequest, *args: Any) -> bool:
        """Take the code away from the table: whoever comes first has it, and a wrong verifier is not tried twice."""
        grant = Grant.objects.filter(code=code, application=client).select_related("user").first()
        if grant is None or not Grant.objects.filter(pk=grant.pk).delete()[0] or grant.is_expired():
            return False
        request.taken, request.user, request.scopes = grant, grant.user, grant.scope.split()
        return True

    def get_code_challenge(self, code: str, request: TokenRequest) -> str | None:
        return request.taken.code_challenge or None

    def get_code_challenge_method(self, code: str, request: TokenRequest) -> str | None:
        return request.taken.code_challenge_method or None

    def confirm_redirect_uri(
        self, client_id: str, code: str, redirect_uri: str, client: ApiClient, request: TokenRequest
    ) -> bool:
        return bool(request.taken.redirect_uri_allowed(redirect_uri))

    def invalidate_authorization_code(self, *args: Any, **kwargs: Any) -> None:
        """It was, when it was looked at."""

    def save_bearer_token(self, token: Any, request: TokenRequest, *args: Any, **kwargs: Any) -> None:
        return None


def _at_its_door(request: TokenRequest) -> bool:
    """A client with certificates calls at the partner host with one of them, any other client elsewhere."""
    client, at = request.client, shown(request.headers)
    tenant_id, client_id = str(client.tenant_id), client.client_id
    if at.door == PARTNER:
        return at.certificate is not None and certificates.stands_for(tenant_id, client_id, at.certificate)
    return not certificates.has_any(tenant_id, client_id)


def may_read(client: ApiClient, subject: str) -> bool:
    """Whether a person, named by a token's subject, may read the tenant's books through this client now."""
    number = int(subject) if PERSON.fullmatch(subject) else 0
    return client.people.filter(pk=number, is_active=True).exists()


class CodeGrant(AuthorizationCodeGrant):  # type: ignore[misc]
    """The authorization code with PKCE by S256 alone. No refresh token: after an hour the person is asked again."""

    _code_challenge_methods = {"S256": code_challenge_method_s256}
    refresh_token = False


class Server(AuthorizationEndpoint, TokenEndpoint):  # type: ignore[misc]
    """The grants that there are, for OAUTH2_SERVER_CLASS: no implicit one, no password, no refresh, no device code."""

    def __init__(
        self, validator: ClientValidator, token_expires_in: Any = None, token_generator: Any = None, **_: Any
    ) -> None:
        bearer = BearerToken(validator, token_generator, token_expires_in)
        code = CodeGrant(validator)
        AuthorizationEndpoint.__init__(self, "code", response_types={"code": code}, default_token_type=bearer)
        grants = {"client_credentials": ClientCredentialsGrant(validator), "authorization_code": code}
        # A request that names no grant is refused, as one that names an unknown one.
        TokenEndpoint.__init__(self, "client_credentials", grant_types=grants, default_token_type=bearer)


class GeneratedSecretHasher(PBKDF2PasswordHasher):
    """One round, for generated secrets only: never for a password that a person chose.

    Rounds slow down guessing, and 128 random characters (768 bits) cannot be guessed at any speed; a salted SHA-256
    keeps a stolen table useless. A password's rounds would cost every token request half a second of processor time.
    """

    algorithm = "generated_secret"
    iterations = 1


# --- Clients ---------------------------------------------------------------------------------------------------------
def register_client(
    *, tenant_id: str, scopes: Iterable[str], name: str = "", certificate: bytes | None = None
) -> tuple[ApiClient, str]:
    """Make a client of a tenant and return it with its secret, which is stored hashed and cannot be had again.

    `certificate` is the client's own, PEM or DER. Raises ValueError with a sentence for the operator.
    """
    wanted = set(scopes)
    if unknown := sorted(wanted - SCOPES.keys()):
        raise ValueError(f"Unknown scope {', '.join(unknown)}. Known are: {' '.join(SCOPES)}.")
    if not wanted:
        raise ValueError("A client needs at least one scope.")
    if certificate is not None:
        certificates.read(certificate)
    secret = secrets.token_urlsafe(96)  # 128 characters
    client = _create(
        _known_tenant(tenant_id),
        name,
        client_secret=secret,
        client_type=ApiClient.CLIENT_CONFIDENTIAL,
        authorization_grant_type=ApiClient.GRANT_CLIENT_CREDENTIALS,
        allowed_scopes=" ".join(scope for scope in SCOPES if scope in wanted),
    )
    if certificate is not None:
        try:
            certificates.add(client, certificate)
        except ValueError:
            client.delete()
            raise
    return client, secret


def register_reader(
    *, tenant_id: str, redirect_uris: Iterable[str], people: Iterable[AbstractBaseUser], name: str = ""
) -> ApiClient:
    """Make a client that people read through, after signing in. It has no secret. Raises ValueError with a sentence."""
    wanted = list(redirect_uris)
    for uri in wanted:
        parts = urlsplit(uri)
        loopback = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1")
        if not (parts.hostname and (parts.scheme == "https" or loopback)) or parts.fragment or set(uri) & set(" *\\"):
            raise ValueError(f"{uri!r} cannot be returned to: https, or http to a loopback address, and no fragment.")
    if not wanted:
        raise ValueError("A client of people needs an address to return to.")
    client = _create(
        _known_tenant(tenant_id),
        name,
        client_secret="",
        client_type=ApiClient.CLIENT_PUBLIC,
        authorization_grant_type=ApiClient.GRANT_AUTHORIZATION_CODE,
        allowed_scopes=" ".join(READ_SCOPES),
        redirect_uris=" ".join(wanted),
    )
    client.people.set(people)
    return client


def client_for_certificate(tenant_id: str, client_id: str) -> ApiClient:
    """The tenant's client of this id. With an external issuer its clients are written down here when first named."""
    found: ApiClient | None = ApiClient.objects.filter(client_id=client_id).first()
    if found is None and settings.JWKS_URL and CLIENT_ID.fullmatch(client_id):
        found = _create(
            _known_tenant(tenant_id),
            client_id,
            client_id=client_id,
            client_secret=secrets.token_urlsafe(96),
            client_type=ApiClient.CLIENT_CONFIDENTIAL,
            authorization_grant_type=ApiClient.GRANT_CLIENT_CREDENTIALS,
            allowed_scopes="",
        )
    if found is None or str(found.tenant_id) != tenant_id:
        raise ValueError(f"The tenant has no client {client_id}.")
    return found


def _known_tenant(tenant_id: str) -> str:
    if not UUID.fullmatch(tenant_id):
        raise ValueError(f"{tenant_id!r} is not a tenant id: it must be a UUID, as create_tenant prints it.")
    if not tenant_is_known(tenant_id.lower()):
        raise ValueError(f"There is no active tenant {tenant_id.lower()}.")
    return tenant_id.lower()


def _create(tenant_id: str, name: str, **members: Any) -> ApiClient:
    made = {"client_id": f"{slugify(name)[:40] or 'client'}-{secrets.token_hex(8)}"} | members
    created: ApiClient = ApiClient.objects.create(tenant_id=tenant_id, name=name, **made)
    return created


# --- Endpoints -------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)
def _protocol() -> OAuthLibCore:
    return get_oauthlib_core()


@csrf_exempt
@sensitive_post_parameters("client_secret")
def token(request: HttpRequest) -> HttpResponse:
    """`POST /oauth2/token`: credentials, or a code, against an access token. Errors as RFC 6749 section 5.2 has them."""
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


class Authorize(AuthorizationView):  # type: ignore[misc]
    """`/oauth2/authorize`: a person, signed in as in the admin, lets a client read. Errors go back with `iss`, too."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        _only_as_issuer()
        return super().dispatch(request, *args, **kwargs)

    def redirect(self, redirect_to: str, application: Any) -> HttpResponse:
        # RFC 9207: a client that talks to several issuers can tell whose answer this is, an error too.
        if "iss" not in parse_qs(urlsplit(redirect_to).query):
            redirect_to = add_params_to_uri(redirect_to, [("iss", settings.ISSUER)])
        response: HttpResponse = super().redirect(redirect_to, application)
        response["Cache-Control"] = "no-store"
        return response


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
        "authorization_endpoint": f"{base}/oauth2/authorize",
        "token_endpoint": f"{base}/oauth2/token",
        "jwks_uri": f"{base}/.well-known/jwks.json",
        "grant_types_supported": ["client_credentials", "authorization_code"],
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": True,
        "scopes_supported": list(SCOPES),
        "token_endpoint_auth_methods_supported": [
            *("client_secret_basic", "client_secret_post", "none"),
            *(["tls_client_auth"] if settings.PARTNER_URL else []),
        ],
    }
    if settings.PARTNER_URL:
        document["tls_client_certificate_bound_access_tokens"] = True
        document["mtls_endpoint_aliases"] = {"token_endpoint": f"{settings.PARTNER_URL.rstrip('/')}/oauth2/token"}
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
    path("oauth2/authorize", Authorize.as_view(), name="authorize"),
    path("oauth2/token", token, name="token"),
    path(".well-known/jwks.json", jwks, name="jwks"),
    path(".well-known/oauth-authorization-server", metadata, name="oauth-metadata"),
]
