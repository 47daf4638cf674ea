"""Which door a request came in by, and the client certificate that was shown there.

The proxy that ends TLS says both in two headers. They are believed from it alone: it knows HPTS_PROXY_SECRET, replaces
whatever a client sent under these names, and the application takes them away before anything else reads the request.
Whether a token may be used with a certificate is `hpts/auth.py`; whose certificate it is, `hpts/certificates.py`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from hpts import problems

DIRECT, PUBLIC, PARTNER = "direct", "public", "partner"
# `X-HPTS-Door: partner SECRET`. The certificate in the header of RFC 9440, or as nginx writes it: PEM, percent-encoded.
DOOR_HEADER, CERTIFICATE_HEADER = "HTTP_X_HPTS_DOOR", "HTTP_CLIENT_CERT"
# Where they are noted. No header has a dot in its name, so no client can write these.
DOOR, CERTIFICATE = "hpts.door", "hpts.certificate"
BYTE_SEQUENCE = re.compile(r":([A-Za-z0-9+/]+={0,2}):", re.ASCII)
PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----\s*")
MAX_CERTIFICATE_CHARACTERS = 16 * 1024
# What watches the process asks it directly, not through the proxy.
ALWAYS_OPEN = ("/v1/health/live", "/v1/health/ready")
TOKEN_PATH = "/oauth2/token"  # noqa: S105 (a path)


class Shown(NamedTuple):
    """The door, and the thumbprint (`x5t#S256`) of the certificate that TLS has verified there."""

    door: str = DIRECT
    certificate: str | None = None


class Doors:
    """Notes the door of each request, and refuses what did not come through the proxy when there is one."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        said, certificate = (request.META.pop(name, "") for name in (DOOR_HEADER, CERTIFICATE_HEADER))
        through = _opened(said)
        if through != DIRECT:
            # TLS ended at the proxy; links, cookies and origins are those of https.
            request.META["wsgi.url_scheme"] = "https"
            request.META[DOOR] = through
            # Who called, as the audit log says it: the proxy has put the one address there that it saw.
            request.META["REMOTE_ADDR"] = request.META.get("HTTP_X_FORWARDED_FOR", "")
        if through == PARTNER and (found := thumbprint(certificate)) is not None:
            request.META[CERTIFICATE] = found
        if (problem := _refusal(request)) is not None:
            return problems.response(problem, request.request_id)  # type: ignore[attr-defined]
        return self.get_response(request)


def shown(environ: Mapping[str, Any]) -> Shown:
    """What the middleware has noted in a request's environment; nothing, where it did not run."""
    return Shown(environ.get(DOOR, DIRECT), environ.get(CERTIFICATE))


def _opened(said: str) -> str:
    """The door that the proxy names, or DIRECT when it is not the proxy that speaks."""
    door, _, secret = said.partition(" ")
    expected = settings.PROXY_SECRET
    if expected and door in (PUBLIC, PARTNER) and hmac.compare_digest(secret.encode(), expected.encode()):
        return door
    return DIRECT


def _refusal(request: HttpRequest) -> problems.Problem | None:
    through, certificate = shown(request.META)
    guarded = settings.PROXY_SECRET and not settings.DEVELOPMENT
    if through == DIRECT and guarded and request.path_info not in ALWAYS_OPEN:
        return problems.ValidationFailed("The request did not come through the proxy in front of this server.")
    # A token has an answer of its own (401), and so has the token endpoint.
    empty_handed = certificate is None and "HTTP_AUTHORIZATION" not in request.META
    if through == PARTNER and empty_handed and request.path_info != TOKEN_PATH:
        return problems.ClientCertificateRequired("The partner host is open to holders of a certificate alone.")
    return None


@lru_cache(maxsize=1024)
def thumbprint(text: str) -> str | None:
    """base64url(SHA-256(DER)) of the certificate in a header's text; None when there is none in it."""
    if not text or len(text) > MAX_CERTIFICATE_CHARACTERS:
        return None
    sequence = BYTE_SEQUENCE.fullmatch(text)
    pem = None if sequence else PEM.fullmatch(unquote_to_bytes(text))
    encoded = sequence[1].encode() if sequence else b"".join(pem[1].split()) if pem else b""
    try:
        der = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return None
    return of_der(der) if der else None


def of_der(der: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()
