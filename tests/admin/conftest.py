"""What the tests of the admin share: a lender with something on every page, people of every kind, and their browsers."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse

from hpts.access import GROUPS
from hpts.models import Staff
from hpts.site import site
from hpts.tenancy import tenant_transaction
from ledger import seals
from reconciliation import runs as reconciliation_runs
from tests.conftest import Lender
from tests.reconciliation.conftest import Bank
from tests.webhooks.conftest import eventually
from webhooks import operations, signing
from webhooks import serializers as shapes
from webhooks.relay import relay

PASSWORD = "correct horse battery staple"
EVERY_TENANT = object()


@cache
def _hashed() -> str:
    """Once, because a hash is slow on purpose."""
    return make_password(PASSWORD)


def make_person(*groups: str, books: object = None, superuser: bool = False) -> User:
    """An account in these groups, bound to a tenant's id, to every tenant, or to none."""
    person = User(username=f"p-{uuid.uuid4().hex[:12]}", is_staff=True, is_superuser=superuser)
    person.password = _hashed()
    person.save()
    person.groups.set(Group.objects.filter(name__in=groups))
    if books is not None:
        every = books is EVERY_TENANT
        Staff.objects.create(user=person, is_platform=every, tenant_id=None if every else books)
    return person


def browser_of(person: User | None) -> Client:
    """A client that has signed in as the person."""
    client = Client(raise_request_exception=True)
    if person is not None:
        client.force_login(person, "hpts.access.StaffBackend")
    return client


@dataclass(frozen=True)
class Rich:
    """A lender with something on every page, and the arguments that each page needs."""

    lender: Lender
    arguments: dict[str, dict[str, str]]
    reference: str
    key: str
    reversal: str

    def urls(self) -> dict[str, str]:
        """The address of every page, by name."""
        return {name: reverse(f"admin:{name}", kwargs=self.arguments.get(name, {})) for name in site.registered.pages}

    def arguments_of(self, door: str, **more: str) -> dict[str, str]:
        """What the address of a form takes. KeyError when nothing here is that."""
        known = {name: value for each in self.arguments.values() for name, value in each.items()} | more
        return {name: known[name] for name in re.findall(r"<\w+:(\w+)>", site.registered.doors[door].path)}

    def forms(self) -> dict[str, str]:
        """The address of every form and list beside the pages, as far as there is something for it to be about. No files."""
        found = {}
        for name in site.registered.doors.keys() - {"audit_export"}:
            with suppress(KeyError):
                found[name] = reverse(f"admin:{name}", kwargs=self.arguments_of(name))
        return found


@pytest.fixture
def make_rich(make_lender: Callable[..., Lender]) -> Callable[[], Rich]:
    def make() -> Rich:
        lender = make_lender("Rich")
        api, loan = lender.api, lender.loan
        with tenant_transaction(lender.tenant_id) as cursor:
            body = shapes.NewWebhookEndpoint(url="https://receiver.example/hook")  # type: ignore[arg-type]
            endpoint = operations.create_endpoint(cursor, body, signing.new_secret(), None)
        api.disburse(loan, 100_000, "2026-01-05")
        key, reference = f"key-{uuid.uuid4()}", f"ACH-{uuid.uuid4().hex[:10]}"
        payment = api.post(
            "/v1/payments",
            {
                "loan_id": loan.loan_id,
                "borrower_id": loan.borrower_id,
                "amount_minor": "12345",
                "currency": "USD",
                "effective_at": "2026-02-01",
                "source_method": "ach",
                "external_ref": reference,
            },
            key=key,
        ).json()
        entry_id = payment["journal_entry_id"]
        reversal = api.reverse(entry_id)["journal_entry_id"]
        engine = lender.open_program(accrual_mode="engine")
        accrued = lender.open_loan(engine)
        api.disburse(accrued, 50_000, "2026-01-06")
        run = lender.accrue_by_engine(lender.today.isoformat(), engine)
        api.close_period("2026-01-31")
        bank = Bank(lender, ref=f"bank-{uuid.uuid4().hex[:8]}")
        bank.imports("2026-02-01", "2026-02-28", ("2026-02-03", "-25.00", "FEE-1", "Account fee"))
        statement = bank.rows("SELECT id::text FROM bank_statement WHERE tenant_id = %s", lender.tenant_id)[0][0]
        today = lender.today
        with tenant_transaction(lender.tenant_id) as cursor:
            run_id = reconciliation_runs.request_run(cursor, as_of=today, actor="test")
        reconciliation_runs.work_off(lender.tenant_id)
        eventually(lambda: seals.seal(lender.tenant_id) > 0, within=30, what="the entries are sealed")
        relay(lender.tenant_id)
        with tenant_transaction(lender.tenant_id) as cursor:
            delivery = operations.send_test(cursor, endpoint["webhook_endpoint_id"])
        arguments: dict[str, dict[str, Any]] = {
            "entry": {"entry_id": entry_id},
            "loan": {"loan_id": loan.loan_id},
            "account": {"code": "1100"},
            "program": {"program_id": engine},
            "accrual_run": {"run_id": run["accrual_run_id"]},
            "period": {"through": "2026-01-31"},
            "key": {"key": key},
            "endpoint": {"endpoint_id": endpoint["webhook_endpoint_id"]},
            "delivery": {"delivery_id": delivery["delivery_id"]},
            "run": {"run_id": run_id},
            "statement": {"statement_id": statement},
            "break": {"break_id": bank.breaks()[0]["break_id"]},
        }
        return Rich(lender, arguments, reference, key, reversal)

    return make


_shared: list[Rich] = []


@pytest.fixture
def rich(make_rich: Callable[[], Rich]) -> Rich:
    """One for all tests that only look, because it takes a while to make; who posts makes a lender of its own."""
    if not _shared:
        _shared.append(make_rich())
    return _shared[0]


def people(tenant_id: str) -> dict[str, User | None]:
    """One of every kind."""
    bound = {group: make_person(group, books=tenant_id) for group in GROUPS}
    return {
        "nobody": None,
        "without a group": make_person(books=tenant_id),
        "without a tenant": make_person("viewer"),
        **bound,
        "platform staff": make_person("platform admin", books=EVERY_TENANT),
        "superuser": make_person(superuser=True),
    }
