"""Signing in, second factor, accounts and groups; and what the database itself refuses about them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import Group, Permission, User
from django.db import IntegrityError
from django.test import Client
from django_otp.oath import TOTP
from django_otp.plugins.otp_totp.models import TOTPDevice

from hpts import embedded
from hpts.access import CHOSEN_TENANT, GROUPS, access_of, choose_tenant
from hpts.models import Staff
from tests.admin.conftest import EVERY_TENANT, PASSWORD, browser_of, make_person
from tests.conftest import Lender


def sign_in(client: Client, name: str, password: str, address: str = "198.51.100.1") -> Any:
    return client.post("/admin/login/", {"username": name, "password": password}, REMOTE_ADDR=address)


def test_five_failures_refuse_a_name_from_an_address_and_nobody_else(acme: Lender) -> None:
    person, other = make_person("viewer", books=acme.tenant_id), make_person("viewer", books=acme.tenant_id)
    client = Client()
    for _ in range(4):
        assert sign_in(client, person.username, "wrong").status_code == 200
    assert sign_in(client, person.username, "wrong").status_code == 429
    refused = sign_in(client, person.username, PASSWORD)
    assert refused.status_code == 429
    assert "15 minutes" in refused.content.decode()
    assert "_auth_user_id" not in client.session
    assert sign_in(client, other.username, PASSWORD).status_code == 302
    assert sign_in(Client(), person.username, PASSWORD, "198.51.100.2").status_code == 302


def test_a_sign_in_forgets_the_failures_before_it(acme: Lender) -> None:
    person = make_person("viewer", books=acme.tenant_id)
    for _ in range(3):
        client = Client()
        for _ in range(4):
            assert sign_in(client, person.username, "wrong").status_code == 200
        assert sign_in(client, person.username, PASSWORD).status_code == 302


def test_who_is_bound_to_a_tenant_turns_to_no_other(acme: Lender, zenith: Lender) -> None:
    """Neither by the function behind the page, which is for platform staff alone, nor by what stands in the session."""
    client = browser_of(make_person("platform admin", books=acme.tenant_id))
    request = client.get("/admin/").wsgi_request
    with pytest.raises(PermissionError, match="Only platform staff"):
        choose_tenant(request, zenith.tenant_id)
    assert CHOSEN_TENANT not in request.session
    request.session[CHOSEN_TENANT] = zenith.tenant_id
    assert access_of(request).tenant_id == acme.tenant_id


def test_cookies_are_for_the_browser_and_this_site_alone(acme: Lender) -> None:
    person = make_person("viewer", books=acme.tenant_id)
    client = Client()
    client.get("/admin/login/")
    answer = sign_in(client, person.username, PASSWORD)
    session = answer.cookies["hpts-session"]
    assert session["httponly"] and session["samesite"] == "Lax" and not session["max-age"]
    assert client.cookies["hpts-csrf"]["httponly"]


def test_in_production_cookies_are_secure_and_bound_to_the_host() -> None:
    script = (
        "from hpts import settings as s;"
        "print(s.SESSION_COOKIE_SECURE, s.CSRF_COOKIE_SECURE, s.SESSION_COOKIE_NAME, s.CSRF_COOKIE_NAME)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HPTS_DEVELOPMENT"}
    said = subprocess.run(
        [sys.executable, "-c", script], cwd=embedded.ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["True", "True", "__Host-hpts-session", "__Host-hpts-csrf"]


def test_a_form_without_the_forgery_token_is_refused(acme: Lender) -> None:
    client = Client(enforce_csrf_checks=True)
    assert sign_in(client, "anybody", PASSWORD).status_code == 403
    client.force_login(make_person("platform admin", books=EVERY_TENANT), "hpts.access.StaffBackend")
    assert client.post("/admin/tenants/", {"tenant_id": acme.tenant_id}).status_code == 403


def test_with_two_factors_a_password_is_half_the_way(acme: Lender, settings: Any) -> None:
    settings.ADMIN_TWO_FACTOR = True
    person = make_person("viewer", books=acme.tenant_id)
    client = Client()
    sign_in(client, person.username, PASSWORD)
    assert client.get("/admin/loans/").headers["Location"] == "/admin/two-factor/?next=%2Fadmin%2Floans%2F"
    first = client.get("/admin/two-factor/").content.decode()
    device = TOTPDevice.objects.get(user=person)
    assert "Add an account" in first and not device.confirmed
    assert client.post("/admin/two-factor/", {"code": "000000"}).status_code == 200
    assert client.get("/admin/loans/").status_code == 302

    TOTPDevice.objects.filter(pk=device.pk).update(throttling_failure_count=0, throttling_failure_timestamp=None)
    code = TOTP(device.bin_key, device.step, device.t0, device.digits, device.drift)
    code.time = time.time()
    given = {"code": f"{code.token():06d}", "next": "/admin/loans/"}
    assert client.post("/admin/two-factor/", given).headers["Location"] == "/admin/loans/"
    assert client.get("/admin/loans/").status_code == 200

    again = Client()
    sign_in(again, person.username, PASSWORD)
    asked = again.get("/admin/two-factor/").content.decode()
    assert "Add an account" not in asked
    assert again.post("/admin/two-factor/", given).status_code == 200, "a code works once"
    assert again.get("/admin/loans/").status_code == 302


def test_without_the_setting_there_is_no_second_factor(acme: Lender) -> None:
    client = browser_of(make_person("viewer", books=acme.tenant_id))
    assert client.get("/admin/two-factor/").status_code == 404
    assert client.get("/admin/loans/").status_code == 200


def test_the_groups_are_there_and_look_at_the_books() -> None:
    for name in GROUPS:
        granted = {permission.codename for permission in Group.objects.get(name=name).permissions.all()}
        assert "view_books" in granted
        assert {"add_user", "change_user"} <= granted or name != "platform admin"
        assert not granted & {"add_user", "change_user"} or name == "platform admin"


def test_a_platform_admin_makes_an_account_that_can_sign_in(acme: Lender) -> None:
    client = browser_of(make_person("platform admin", books=EVERY_TENANT))
    name = f"new-{uuid.uuid4().hex[:8]}"
    viewer = Group.objects.get(name="viewer").pk
    form = {"username": name, "groups": [viewer], "books": acme.tenant_id, "is_active": "on"}
    made = client.post("/admin/people/new/", form)
    person = User.objects.get(username=name)
    assert made.headers["Location"] == f"/admin/people/{person.pk}/password/"
    assert (person.is_staff, person.is_superuser, person.has_usable_password()) == (True, False, False)
    short = {"new_password1": "short", "new_password2": "short"}
    assert client.post(made.headers["Location"], short).status_code == 422
    client.post(made.headers["Location"], {"new_password1": PASSWORD, "new_password2": PASSWORD})
    browser = Client()
    assert sign_in(browser, name, PASSWORD).status_code == 302
    assert acme.loan.loan_id[:8] in browser.get("/admin/loans/").content.decode()

    client.post(f"/admin/people/{person.pk}/", form | {"is_active": ""})
    assert browser.get("/admin/loans/").status_code == 302, "who is switched off is out with the next click"


@pytest.mark.parametrize("field", ["is_superuser", "is_staff", "user_permissions", "password"])
def test_nobody_is_made_more_than_the_form_offers(acme: Lender, field: str) -> None:
    client = browser_of(make_person("platform admin", books=EVERY_TENANT))
    person = make_person("viewer", books=acme.tenant_id)
    form = {"username": person.username, "books": acme.tenant_id, "is_active": "on", field: "1"}
    client.post(f"/admin/people/{person.pk}/", form)
    person.refresh_from_db()
    assert not person.is_superuser and not person.user_permissions.exists() and person.check_password(PASSWORD)


def test_a_permission_outside_of_a_group_allows_nothing(acme: Lender) -> None:
    person = make_person("viewer", books=acme.tenant_id)
    person.user_permissions.set(Permission.objects.filter(codename="create_loans"))
    assert person.user_permissions.count() == 1
    assert browser_of(person).get("/admin/loans/new/").status_code == 403


def test_a_superuser_is_changed_by_nobody_here(acme: Lender) -> None:
    client = browser_of(make_person("platform admin", books=EVERY_TENANT))
    above = make_person(superuser=True)
    for address in (f"/admin/people/{above.pk}/", f"/admin/people/{above.pk}/password/"):
        assert client.get(address).status_code == 403
        assert (
            client.post(address, {"new_password1": PASSWORD + "x", "new_password2": PASSWORD + "x"}).status_code == 403
        )
    above.refresh_from_db()
    assert above.check_password(PASSWORD)


@pytest.mark.parametrize("group", ["viewer", "operator", "approver"])
def test_accounts_are_for_platform_admins_alone(acme: Lender, group: str) -> None:
    for books in (acme.tenant_id, EVERY_TENANT):
        client = browser_of(make_person(group, books=books))
        for address in ("/admin/people/", "/admin/people/new/", f"/admin/people/{make_person('viewer').pk}/"):
            assert client.get(address).status_code == 403


@pytest.mark.parametrize(
    "books", [{"is_platform": True, "tenant_id": uuid.uuid4()}, {"is_platform": False, "tenant_id": None}]
)
def test_the_database_knows_staff_of_one_tenant_or_of_all(books: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="hpts_staff_one_tenant_or_all"):
        Staff.objects.create(user=make_person(), **books)


def test_the_readonly_role_sees_no_person_and_the_application_no_directory() -> None:
    with psycopg.connect(os.environ["HPTS_READONLY_DATABASE_URL"], autocommit=True) as connection:
        for table in ("auth_user", "hpts_staff", "django_session", "hpts_apiclient", "otp_totp_totpdevice"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT * FROM {table}")
    with (
        psycopg.connect(os.environ["DATABASE_URL"]) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SELECT * FROM tenant_directory(NULL, '', 1)")


def test_an_account_without_books_or_group_is_told_so(acme: Lender) -> None:
    told = browser_of(make_person("viewer")).get("/admin/").content.decode()
    assert "belongs to no tenant yet" in told
    assert "in no group yet" in browser_of(make_person(books=acme.tenant_id)).get("/admin/").content.decode()
