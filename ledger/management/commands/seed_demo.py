"""`manage.py seed_demo`: the demo tenant with a year of books, a client that may do everything, and the admin's login."""

from __future__ import annotations

import json
import secrets
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError, CommandParser

from hpts import oauth
from hpts.audit import Caller
from hpts.models import ApiClient
from ledger import demo
from ledger.management.terminal import bar

CLIENT_NAME = "Acme demo"
ADMIN_USERNAME = "admin"


class Command(BaseCommand):
    help = (
        "Make the demo tenant and its book; a second run adds nothing to it. Each run makes a new client and a new password "
        "for the admin, because neither can be read back."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--loans", type=int, default=300, help="how many loans the book has when it is made")
        parser.add_argument(
            "--keep-credentials",
            action="store_true",
            help="leave a client and an admin that exist alone, print no secret of them",
        )
        parser.add_argument("--json", action="store_true", help="print ids and secrets as JSON and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        if not 0 <= options["loans"] <= 10_000:
            raise CommandError("--loans: 0 to 10000.")
        book = demo.Book(options["loans"])
        for step in bar(book.steps, "Posting the demo book", total=len(book.steps)):
            book.take(step)
        made = {"tenant_id": demo.TENANT_ID, "program_id": demo.PROGRAM_ID}
        made |= _client(keep=options["keep_credentials"]) | _admin(keep=options["keep_credentials"])
        self.stdout.write(
            json.dumps(made)
            if options["json"]
            else "\n".join(f"{name + ':':<16}{value}" for name, value in made.items())
        )


def _client(*, keep: bool) -> dict[str, str]:
    existing = ApiClient.objects.filter(tenant_id=demo.TENANT_ID, name=CLIENT_NAME, disabled_at=None)
    if keep and (client := existing.order_by("created").last()):
        return {"client_id": client.client_id}
    client, secret = oauth.register_client(
        tenant_id=demo.TENANT_ID, scopes=oauth.SCOPES, name=CLIENT_NAME, by=Caller(demo.ACTOR)
    )
    return {"client_id": client.client_id, "client_secret": secret}


def _admin(*, keep: bool) -> dict[str, str]:
    admin = User.objects.filter(username=ADMIN_USERNAME).first()
    if keep and admin:
        return {"admin_username": ADMIN_USERNAME}
    password = secrets.token_urlsafe(16)
    admin = admin or User(username=ADMIN_USERNAME)
    admin.is_staff = admin.is_superuser = admin.is_active = True
    admin.set_password(password)
    admin.save()
    return {"admin_username": ADMIN_USERNAME, "admin_password": password}
