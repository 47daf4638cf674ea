"""People: they sign in as in the admin, allow a client to read, and the client gets a token by its code (RFC 7636, 9207)."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode

import jwt
import pytest
from django.conf import settings as configured
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from oauth2_provider.models import Grant

from hpts import auth, oauth
from hpts.models import ApiClient
from tests.conftest import Lender

BACK = "https://reports.example.com/back"
VERIFIER = secrets.token_urlsafe(48)
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture
def jane() -> User:
    return User.objects.create_user(username=f"jane-{uuid.uuid4()}", is_staff=True)


@pytest.fixture
def reports(acme: Lender, jane: User) -> ApiClient:
    """Acme's client that Jane may read through."""
    return oauth.register_reader(tenant_id=acme.tenant_id, redirect_uris=[BACK], people=[jane], name="Reports")


def asked(client: ApiClient, **changes: Any) -> str:
    """The address that a client sends a person's browser to; `...` takes a parameter away."""
    good = {
        "response_type": "code",
        "client_id": client.client_id,
        "redirect_uri": BACK,
        "scope": "hpts:ledger:read hpts:balances:read",
        "state": "opaque",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
    } | changes
    return "/oauth2/authorize?" + urlencode({name: value for name, value in good.items() if value is not ...})


@dataclass
class Browser:
    """A person's browser: it keeps cookies, and posts forms as they are."""

    http: Client

    def sign_in(self, person: User) -> None:
        self.http.force_login(person)

    def answer(self, url: str, **pressed: str) -> dict[str, list[str]]:
        """Open the page, press a button; gives what the client is told at its redirect address."""
        page = self.http.get(url)
        if page.status_code == 200:
            page = self.http.post(url, hidden(page.content.decode()) | pressed)
        assert page.status_code == 302, page.content
        address, _, query = page.headers["Location"].partition("?")
        assert address == BACK and page.headers["Cache-Control"] == "no-store"
        return parse_qs(query)

    def code(self, url: str) -> str:
        told = self.answer(url, allow="Authorize")
        assert told.keys() == {"code", "state", "iss"}, told
        assert (told["state"], told["iss"]) == (["opaque"], [configured.ISSUER])
        return told["code"][0]


def hidden(page: str) -> dict[str, str]:
    found = {}
    for tag in re.findall(r"<input[^>]*>", page):
        members: Mapping[str, str] = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        if members.get("type") == "hidden":
            found[members["name"]] = members.get("value", "").replace("&amp;", "&")
    return found


@pytest.fixture
def browser() -> Browser:
    return Browser(Client(enforce_csrf_checks=True))


def exchange(client: ApiClient, with_code: str, /, **changes: Any) -> tuple[int, dict[str, Any]]:
    form = {
        "grant_type": "authorization_code",
        "client_id": client.client_id,
        "code": with_code,
        "redirect_uri": BACK,
        "code_verifier": VERIFIER,
    } | changes
    body = urlencode({name: value for name, value in form.items() if value is not ...})
    answer = Client().post("/oauth2/token", body, content_type="application/x-www-form-urlencoded")
    return answer.status_code, json.loads(answer.content)


def get(path: str, token: str) -> int:
    return Client().get(path, headers={"Authorization": f"Bearer {token}"}).status_code


# --- What works ------------------------------------------------------------------------------------------------------


def test_a_person_signs_in_allows_and_reads(browser: Browser, reports: ApiClient, jane: User, acme: Lender) -> None:
    away = browser.http.get(asked(reports))
    assert away.status_code == 302 and away.headers["Location"].startswith("/admin/login/?next=/oauth2/authorize")
    jane.set_password("a long enough password")
    jane.save()
    form = {"username": jane.username, "password": "a long enough password"}
    page = browser.http.get(away.headers["Location"]).content.decode()
    back = browser.http.post(away.headers["Location"], form | hidden(page))
    assert back.headers["Location"] == asked(reports).replace("%3A", ":") or back.headers["Location"] == asked(reports)
    page = browser.http.get(back.headers["Location"]).content.decode()
    assert "Let Reports read?" in page and jane.username in page and "Read balances" in page and BACK in page

    status, body = exchange(reports, browser.code(asked(reports)))
    assert status == 200
    assert body.keys() == {"access_token", "token_type", "expires_in", "scope"}, "no refresh token"
    claims = jwt.decode(body["access_token"], options={"verify_signature": False})
    assert (claims["sub"], claims["client_id"], claims["tenant_id"]) == (
        str(jane.pk),
        reports.client_id,
        acme.tenant_id,
    )
    assert set(claims["scope"].split()) == set(oauth.READ_SCOPES) and "cnf" not in claims
    token = body["access_token"]
    assert get(f"/v1/loans/{acme.loan.loan_id}/journal-entries", token) == 200
    assert get("/v1/trial-balance?currency=USD", token) == 200
    assert get("/v1/loans", token) == 403
    assert acme.api.call("POST", "/v1/payments", b"{}", headers={"Authorization": f"Bearer {token}"}).status_code == 403
    assert auth.verified_tokens.principal(token).actor == f"user:{jane.pk}"


def test_one_scope_may_be_asked_for(browser: Browser, reports: ApiClient, jane: User) -> None:
    browser.sign_in(jane)
    _, body = exchange(reports, browser.code(asked(reports, scope="hpts:balances:read")))
    assert body["scope"] == "hpts:balances:read"


def test_a_loopback_address_of_a_program_may_be_http(acme: Lender, jane: User) -> None:
    for uri in ("http://127.0.0.1:9999/back", "http://[::1]/back"):
        assert oauth.register_reader(tenant_id=acme.tenant_id, redirect_uris=[uri], people=[jane])


# --- What does not ---------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no challenge": ({"code_challenge": ..., "code_challenge_method": ...}, "invalid_request"),
    "no method, which would mean plain": ({"code_challenge_method": ...}, "invalid_request"),
    "plain": ({"code_challenge_method": "plain"}, "invalid_request"),
    "S256 in lower case": ({"code_challenge_method": "s256"}, "invalid_request"),
    "a scope that writes": ({"scope": "hpts:payments:write"}, "invalid_scope"),
    "one scope too many": ({"scope": "hpts:ledger:read hpts:loans:read"}, "invalid_scope"),
    "the admin's scope": ({"scope": "hpts:admin:*"}, "invalid_scope"),
    "implicit": ({"response_type": "token"}, "unsupported_response_type"),
    "hybrid": ({"response_type": "code token"}, "unauthorized_client"),
    "an id token": ({"response_type": "id_token"}, "unsupported_response_type"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_asked_for_wrongly_goes_back_as_an_error(
    browser: Browser, reports: ApiClient, jane: User, name: str
) -> None:
    changes, error = REFUSED[name]
    browser.sign_in(jane)
    told = browser.answer(asked(reports, **changes), allow="Authorize")
    assert told["error"] == [error] and "code" not in told and "access_token" not in told
    assert (told["state"], told["iss"]) == (["opaque"], [configured.ISSUER])


@pytest.mark.parametrize(
    "changes",
    [
        {"redirect_uri": "https://evil.example.com/back"},
        {"redirect_uri": f"{BACK}/more"},
        {"redirect_uri": f"{BACK}?x=1"},
        {"redirect_uri": f"{BACK}/../evil"},
        {"redirect_uri": BACK.replace("https", "http")},
        {"redirect_uri": BACK.upper()},
        {"redirect_uri": "javascript:alert(1)"},
        {"client_id": "nobody"},
        {"client_id": "nul\x00"},
        {"client_id": ...},
    ],
    ids=str,
)
def test_nobody_is_sent_to_an_address_that_is_not_the_clients(
    browser: Browser, reports: ApiClient, jane: User, changes: dict[str, Any]
) -> None:
    browser.sign_in(jane)
    page = browser.http.get(asked(reports, **changes))
    assert page.status_code in (400, 401) and "Location" not in page.headers, page.content


def test_a_person_who_refuses_is_believed(browser: Browser, reports: ApiClient, jane: User) -> None:
    browser.sign_in(jane)
    told = browser.answer(asked(reports))
    assert told["error"] == ["access_denied"] and told["iss"] == [configured.ISSUER]


def test_a_form_that_another_site_posts_is_refused(browser: Browser, reports: ApiClient, jane: User) -> None:
    browser.sign_in(jane)
    form = hidden(browser.http.get(asked(reports)).content.decode()) | {"allow": "Authorize"}
    form.pop("csrfmiddlewaretoken")
    assert browser.http.post(asked(reports), form).status_code == 403
    page = browser.http.get(asked(reports))
    assert page.headers["X-Frame-Options"] == "DENY"


def test_a_person_of_another_client_gets_nothing(browser: Browser, jane: User, acme: Lender, zenith: Lender) -> None:
    """Nor does a superuser: who may read stands with the client."""
    other = oauth.register_reader(tenant_id=zenith.tenant_id, redirect_uris=[BACK], people=[])
    browser.sign_in(jane)
    assert browser.answer(asked(other), allow="Authorize")["error"] == ["access_denied"]
    User.objects.filter(pk=jane.pk).update(is_superuser=True)
    assert browser.answer(asked(other), allow="Authorize")["error"] == ["access_denied"]


def test_a_scope_that_is_changed_in_the_form_is_checked_again(browser: Browser, reports: ApiClient, jane: User) -> None:
    browser.sign_in(jane)
    told = browser.answer(asked(reports), allow="Authorize", scope="hpts:admin:*")
    assert told.get("error") == ["invalid_scope"], told
    form = hidden(browser.http.get(asked(reports)).content.decode()) | {"allow": "Authorize"}
    for changes in ({"code_challenge": "", "code_challenge_method": ""}, {"code_challenge_method": "plain"}):
        for url in ("/oauth2/authorize", asked(reports, code_challenge=..., code_challenge_method=...)):
            answer = browser.http.post(url, form | changes)
            assert "error=invalid_request" in answer.headers["Location"] and "code=" not in answer.headers["Location"]


@pytest.mark.parametrize(
    "changes",
    [
        {"code_verifier": "x" * 64},
        {"code_verifier": CHALLENGE},
        {"code_verifier": ...},
        {"redirect_uri": f"{BACK}?x=1"},
        {"redirect_uri": "https://evil.example.com/back"},
        {"code": "wrong"},
        {"code": ...},
        {"client_id": "nobody"},
        {"client_id": ...},
        {"grant_type": "refresh_token"},
        {"grant_type": "client_credentials"},
        {"client_secret": "guess"},
    ],
    ids=lambda changes: str(changes).replace(VERIFIER, "verifier").replace(CHALLENGE, "challenge"),
)
def test_a_code_is_good_for_its_client_with_its_verifier_alone(
    browser: Browser, reports: ApiClient, jane: User, changes: dict[str, Any]
) -> None:
    browser.sign_in(jane)
    status, body = exchange(reports, browser.code(asked(reports)), **changes)
    assert status in (400, 401) and "access_token" not in body, body


def test_another_client_cannot_use_the_code(
    browser: Browser, reports: ApiClient, jane: User, acme: Lender, zenith: Lender
) -> None:
    browser.sign_in(jane)
    code = browser.code(asked(reports))
    for lender in (acme, zenith):
        other = oauth.register_reader(tenant_id=lender.tenant_id, redirect_uris=[BACK], people=[jane])
        assert exchange(other, code)[1]["error"] == "invalid_grant"


def test_a_code_works_once_also_for_eight_at_once(browser: Browser, reports: ApiClient, jane: User) -> None:
    browser.sign_in(jane)
    code = browser.code(asked(reports))
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(exchange(reports, code)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, *[400] * 7]


def test_a_code_is_good_for_a_minute(browser: Browser, reports: ApiClient, jane: User) -> None:
    browser.sign_in(jane)
    code = browser.code(asked(reports))
    grant = Grant.objects.get(code=code)
    assert (grant.expires - timezone.now()).total_seconds() <= 60
    Grant.objects.filter(code=code).update(expires=timezone.now())
    assert exchange(reports, code)[1]["error"] == "invalid_grant"
    browser.code(asked(reports))
    assert not Grant.objects.filter(code=code).exists(), "codes that nobody came for are swept up"


def test_a_person_who_left_is_out_within_a_minute(
    browser: Browser, reports: ApiClient, jane: User, acme: Lender, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser.sign_in(jane)
    leave: list[Callable[[], Any]] = [
        lambda: reports.people.remove(jane),
        lambda: User.objects.filter(pk=jane.pk).update(is_active=False),
    ]
    for left in leave:
        token = exchange(reports, browser.code(asked(reports)))[1]["access_token"]
        assert get("/v1/trial-balance?currency=USD", token) == 200
        left()
        auth.verified_tokens.clear()  # What a minute does.
        assert get("/v1/trial-balance?currency=USD", token) == 401
        reports.people.add(jane)


def test_a_machine_cannot_name_a_person(acme: Lender, jane: User) -> None:
    """The form of a client's own request may not make it somebody: what oauthlib reads as `user` is text."""
    client, secret = oauth.register_client(tenant_id=acme.tenant_id, scopes=["hpts:ledger:read"])
    form = {"grant_type": "client_credentials", "client_id": client.client_id, "client_secret": secret}
    for name in ("user", "scopes", "client", "sub", "headers", "extra_credentials", "expires_in", "request_token"):
        body = urlencode(form | {name: str(jane.pk)})
        answer = Client().post("/oauth2/token", body, content_type="application/x-www-form-urlencoded")
        if answer.status_code == 200:
            claims = jwt.decode(json.loads(answer.content)["access_token"], options={"verify_signature": False})
            assert (claims["sub"], claims["client_id"]) == (client.client_id, client.client_id), name
            assert claims["exp"] - claims["iat"] == 3600 and "cnf" not in claims
        else:
            assert answer.status_code == 400, answer.content


@pytest.mark.parametrize(
    "uri",
    [
        "http://reports.example.com/back",
        "http://localhost/back",
        "https:///back",
        "reports.example.com",
        f"{BACK}#here",
        "https://*.example.com/back",
        "javascript:alert(1)",
        f"{BACK} {BACK}2",
        "",
    ],
)
def test_an_address_that_is_not_safe_to_return_to_is_refused(acme: Lender, uri: str) -> None:
    before = ApiClient.objects.count()
    with pytest.raises(ValueError, match="cannot be returned to"):
        oauth.register_reader(tenant_id=acme.tenant_id, redirect_uris=[uri], people=[])
    assert ApiClient.objects.count() == before


def test_with_an_external_issuer_nobody_signs_in_here(browser: Browser, reports: ApiClient, settings: Any) -> None:
    settings.JWKS_URL = "https://issuer.test/jwks.json"
    assert browser.http.get(asked(reports)).status_code == 404


def test_the_page_of_an_error_names_no_secret(browser: Browser, reports: ApiClient, jane: User) -> None:
    browser.sign_in(jane)
    page = browser.http.get(asked(reports, client_id="<script>alert(1)</script>"))
    assert page.status_code in (400, 401) and b"<script>" not in page.content
