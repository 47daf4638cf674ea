"""Who calls, and whether they may: a bearer token becomes a Principal, and a Principal holds scopes.

Tokens are verified against the issuer's public keys (RFC 9068, RFC 8725), whoever the issuer is; nothing in a token
says where to look for a key. Which tenant's rows a Principal reaches is `hpts/tenancy.py` and row security.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import threading
import time
import urllib.request
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, ClassVar, cast

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from jwt.utils import base64url_decode
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from hpts import certificates, oauth
from hpts.doors import PARTNER, Shown, shown
from hpts.models import ApiClient
from hpts.problems import InsufficientScope, InvalidToken

if TYPE_CHECKING:
    # rest_framework.views imports this module, by its name in the settings.
    from rest_framework.views import APIView

log = logging.getLogger(__name__)

MAX_TOKEN_LENGTH = 8 * 1024
MAX_AUDIENCES = 3
MAX_LIFETIME_SECONDS = 3600
CLOCK_SKEW_SECONDS = 60
CACHE_SECONDS = 60
CACHE_SIZE = 10_000
JWKS_SECONDS = 240  # with CACHE_SECONDS, a key that the issuer withdrew is dead within five minutes
JWKS_RETRY_SECONDS = 30
JWKS_TIMEOUT_SECONDS = 2.0
MAX_JWKS_BYTES = 256 * 1024

BEARER = re.compile(r"(?i:bearer) ([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)", re.ASCII)
TOKEN_TYPES = ("at+jwt", "application/at+jwt")
THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
# A header that brings a key, points to one, or changes how the token is to be read.
REFUSED_HEADERS = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc"})
# The first algorithm of a key type is the one of a key that names none.
ALGORITHMS = {"RSA": ("RS256", "PS256"), "EC": ("ES256",)}


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller behind a verified token. `tenant_id` is a lower-case UUID; `bound_to` a certificate's thumbprint."""

    tenant_id: str
    subject: str
    client_id: str
    scopes: frozenset[str]
    bound_to: str | None = None

    is_authenticated: ClassVar[bool] = True

    @property
    def actor(self) -> str:
        """Who the journal says it was: a client acting for itself, or a person."""
        return f"client:{self.client_id}" if self.subject == self.client_id else f"user:{self.subject}"


# --- Keys ------------------------------------------------------------------------------------------------------------
Keys = Mapping[str, jwt.PyJWK]


def verification_keys(document: object) -> dict[str, jwt.PyJWK]:
    """The keys of a JWKS by key id, each bound to one algorithm. What is unfit to verify tokens is left out."""
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise ValueError("A JWKS is an object with a list of keys.")
    found = [(str(jwk.get("kid", "")), key) for jwk in members if isinstance(jwk, dict) and (key := _usable(jwk))]
    times = Counter(kid for kid, _ in found)
    # Two keys of one name are ambiguous: neither is used.
    return {kid: key for kid, key in found if times[kid] == 1}


def _usable(jwk: dict[str, Any]) -> jwt.PyJWK | None:
    """The key, or None when it is not a public signature key of an accepted type and strength."""
    algorithms = ALGORITHMS.get(str(jwk.get("kty")), ())
    algorithm = jwk.get("alg", next(iter(algorithms), None))
    if algorithm not in algorithms or "d" in jwk or jwk.get("crv", "P-256") != "P-256":
        return None
    try:
        key = jwt.PyJWK(jwk, algorithm=algorithm)
        fit = jwk.get("use", "sig") == "sig" and "verify" in jwk.get("key_ops", ["verify"])
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < oauth.MINIMUM_RSA_BITS:
        return None
    return key if fit else None


class RemoteKeys:
    """The keys of an external issuer: known ones work while it is down, a flood of unknown ones does not reach it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys: Keys = {}
        self.fetched_at = self.tried_at = float("-inf")
        self.lock = threading.Lock()

    def having(self, kid: str | None) -> Keys:
        """The keys, fetched anew when they are old or do not have the one that a token names."""
        known = bool(self.keys) if kid is None else kid in self.keys
        # A fetch that is under way is waited for by those alone who cannot go on without it.
        if (not known or self._old()) and self.lock.acquire(blocking=not known):
            try:
                self._refresh(kid)
            finally:
                self.lock.release()
        return self.keys

    def _old(self) -> bool:
        return time.monotonic() - self.fetched_at >= JWKS_SECONDS

    def _refresh(self, kid: str | None) -> None:
        now = time.monotonic()
        if now - self.tried_at < JWKS_RETRY_SECONDS or (kid in self.keys and not self._old()):
            return
        self.tried_at = now
        try:
            self.keys = verification_keys(_strict_json(_download(self.url)))
            self.fetched_at = now
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            log.warning("The keys at %s could not be read: %s", self.url, error)


def _download(url: str) -> bytes:
    """The document at a configured URL, within one time limit for all of it, however slowly it drips."""
    deadline = time.monotonic() + JWKS_TIMEOUT_SECONDS
    body = b""
    with urllib.request.urlopen(url, timeout=JWKS_TIMEOUT_SECONDS) as response:  # noqa: S310 (configured by the operator)
        while chunk := response.read1(65536):
            body += chunk
            if len(body) > MAX_JWKS_BYTES or time.monotonic() > deadline:
                raise ValueError("too large or too slow")
    return body


@lru_cache(maxsize=1)
def remote_keys(url: str) -> RemoteKeys:
    return RemoteKeys(url)


@lru_cache(maxsize=4)
def _own_keys(private_pem: str, previous_pems: str) -> Keys:
    return verification_keys(oauth.signing_keys().jwks)


def _key(kid: object) -> jwt.PyJWK:
    if kid is not None and not isinstance(kid, str):
        raise InvalidToken("The token's key id is malformed.")
    keys = (
        remote_keys(settings.JWKS_URL).having(kid)
        if settings.JWKS_URL
        else _own_keys(settings.SIGNING_KEY, settings.PREVIOUS_SIGNING_KEYS)
    )
    if kid is None and len(keys) == 1:
        return next(iter(keys.values()))
    if kid is None or kid not in keys:
        raise InvalidToken("The token is signed with an unknown key.")
    return keys[kid]


# --- Verification ----------------------------------------------------------------------------------------------------
def verify(token: str) -> tuple[Principal, int]:
    """The Principal of a token and the second it expires in, by signature and claims alone. Raises InvalidToken."""
    try:
        header = _strict_json(base64url_decode(token.partition(".")[0]))
        if header.get("typ") not in TOKEN_TYPES:
            raise InvalidToken("The token is not an access token (typ at+jwt).")
        if REFUSED_HEADERS & header.keys():
            raise InvalidToken("The token's header has a member that is not accepted.")
        payload = jwt.api_jws.decode(token, _key(header.get("kid")))
        claims = _strict_json(payload)
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise InvalidToken("The token is malformed or its signature is wrong.") from error
    return _principal(claims)


def _strict_json(raw: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8, in which no name stands twice. Raises ValueError."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("A member stands twice.")
        return found

    document = json.loads(raw.decode("utf-8"), object_pairs_hook=members)
    if not isinstance(document, dict):
        raise ValueError("Not an object.")
    return document


def _principal(claims: dict[str, Any]) -> tuple[Principal, int]:
    if claims.get("iss") != settings.ISSUER:
        raise InvalidToken("The token is from another issuer.")
    if not _is_for_us(claims.get("aud")):
        raise InvalidToken("The token is for another audience.")
    expires_at = _check_times(claims)
    tenant_id, scope = claims.get("tenant_id"), claims.get("scope", "")
    if not isinstance(tenant_id, str) or not oauth.UUID.fullmatch(tenant_id):
        raise InvalidToken("The token's tenant_id is missing or not a UUID.")
    if not isinstance(scope, str):
        raise InvalidToken("The token's scope is not a string.")
    subject, client_id, _ = (_name(claims, claim) for claim in ("sub", "client_id", "jti"))
    scopes = frozenset(scope.split(" ")) - {""}
    return Principal(tenant_id.lower(), subject, client_id, scopes, _binding(claims)), expires_at


def _binding(claims: dict[str, Any]) -> str | None:
    """RFC 8705 3.1: the thumbprint of the certificate that has to come with the token. Another way of binding is refused."""
    if "cnf" not in claims:
        return None
    confirmation = claims["cnf"]
    bound_to = confirmation.get("x5t#S256") if isinstance(confirmation, dict) and len(confirmation) == 1 else None
    if not isinstance(bound_to, str) or not THUMBPRINT.fullmatch(bound_to):
        raise InvalidToken("The token is bound in a way that is not known here.")
    return bound_to


def _check_binding(principal: Principal, at: Shown) -> None:
    """Asked at each use of a token, cached or not: a stolen one is nothing without the key of its certificate."""
    if principal.bound_to is None:
        if at.door == PARTNER:
            raise InvalidToken("The partner host takes tokens alone that are bound to a client certificate.")
    elif at.certificate is None or not hmac.compare_digest(principal.bound_to, at.certificate):
        raise InvalidToken("The token is bound to a client certificate that was not presented.")


def _is_for_us(audience: object) -> bool:
    """RFC 8725 3.9: ours must be named; a token that is meant for half the world is not meant for us."""
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(audiences, list) or len(audiences) > MAX_AUDIENCES:
        return False
    return settings.AUDIENCE in audiences and all(isinstance(audience, str) for audience in audiences)


def _check_times(claims: dict[str, Any]) -> int:
    now = time.time()
    expires_at, issued_at = _seconds(claims, "exp"), _seconds(claims, "iat")
    if expires_at <= now:
        raise InvalidToken("The token has expired.")
    if expires_at - issued_at > MAX_LIFETIME_SECONDS:
        raise InvalidToken("The token lives longer than an hour.")
    # That it was not issued long ago follows from the two checks before.
    if issued_at > now + CLOCK_SKEW_SECONDS:
        raise InvalidToken("The token was issued in the future.")
    if "nbf" in claims and _seconds(claims, "nbf") > now + CLOCK_SKEW_SECONDS:
        raise InvalidToken("The token is not valid yet.")
    return expires_at


def _seconds(claims: dict[str, Any], claim: str) -> int:
    value = claims.get(claim)
    if type(value) is not int:  # not isinstance: a bool is an int, too
        raise InvalidToken(f"The token's {claim} is missing or not a number of seconds.")
    return value


def _name(claims: dict[str, Any], claim: str) -> str:
    value = claims.get(claim)
    if not isinstance(value, str) or not 0 < len(value) <= 255 or not value.isprintable():
        raise InvalidToken(f"The token's {claim} is missing or malformed.")
    return value


def _admitted(principal: Principal) -> Principal:
    """The Principal with the scopes that it still has: asked of the tables once per token and minute."""
    if not settings.JWKS_URL:
        client = ApiClient.objects.filter(
            client_id=principal.client_id, tenant_id=principal.tenant_id, disabled_at=None
        ).first()
        if client is None:
            raise InvalidToken("The token's client is unknown or disabled.")
        if principal.subject != principal.client_id and not oauth.may_read(client, principal.subject):
            raise InvalidToken("The token's person may no longer read through this client.")
        allowed = client.allowed_scopes.split()
        scopes = frozenset(scope for scope in principal.scopes if oauth.covers(allowed, scope))
        principal = replace(principal, scopes=scopes)
    if not oauth.tenant_is_known(principal.tenant_id):
        raise InvalidToken("The token's tenant is unknown or suspended.")
    bound_to = principal.bound_to
    if bound_to is not None and not certificates.stands_for(principal.tenant_id, principal.client_id, bound_to):
        raise InvalidToken("The token's certificate does not stand for its client, or does no longer.")
    return principal


class VerifiedTokens:
    """Principals of tokens that were verified within the last minute, by the token's SHA-256; for all threads."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, tuple[float, float, Principal]] = OrderedDict()
        self._lock = threading.Lock()

    def principal(self, token: str, at: Shown = Shown()) -> Principal:  # noqa: B008 (a constant)
        """Raises InvalidToken. A clock that was set back makes entries unused, never longer valid."""
        digest, now = hashlib.sha256(token.encode()).digest(), time.time()
        entry = self._entries.get(digest)
        if entry is not None and entry[0] <= now < entry[1]:
            _check_binding(entry[2], at)
            return entry[2]
        principal, expires_at = verify(token)
        _check_binding(principal, at)
        principal = _admitted(principal)
        with self._lock:
            self._entries.pop(digest, None)
            self._entries[digest] = (now, min(now + CACHE_SECONDS, expires_at), principal)
            if len(self._entries) > CACHE_SIZE:
                self._entries.popitem(last=False)
        return principal

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()


verified_tokens = VerifiedTokens()


# --- Django REST framework -------------------------------------------------------------------------------------------
class BearerToken(BaseAuthentication):
    """`Authorization: Bearer <token>`, once, and no other place for a token."""

    def authenticate(self, request: Request) -> tuple[Principal, None]:
        match = BEARER.fullmatch(request.META.get("HTTP_AUTHORIZATION", ""))
        if match is None or len(match[1]) > MAX_TOKEN_LENGTH:
            raise InvalidToken("Send one Authorization header: Bearer and an access token.")
        return verified_tokens.principal(match[1], shown(request.META)), None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


# The scope of an operation that runs others: each of them asks for its own.
OF_ITS_ITEMS = ""


class HasScope(BasePermission):
    """The scope that a view declares: in `scopes` by action, or `required_scope` for the whole view."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        action = getattr(view, "action", None)
        needed = getattr(view, "scopes", {}).get(action, getattr(view, "required_scope", None))
        if needed == OF_ITS_ITEMS:
            return True
        if needed is None:
            raise ImproperlyConfigured(f"{type(view).__name__} declares no scope for the action {action!r}.")
        if not oauth.covers(caller(request).scopes, needed):
            raise InsufficientScope(f"This operation needs the scope {needed}.")
        return True


def caller(request: Request) -> Principal:
    """The verified caller of an authenticated request."""
    return cast(Principal, request.user)
