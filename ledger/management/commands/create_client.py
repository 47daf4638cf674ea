"""`manage.py create_client`: an API client of one tenant, with a secret that is shown once; or one that people read through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError, CommandParser

from hpts import oauth


class Command(BaseCommand):
    help = "Make an API client of a tenant. Its secret is shown once and stored hashed."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="ID", help="the tenant's id, as create_tenant prints it")
        scopes = parser.add_mutually_exclusive_group(required=True)
        scopes.add_argument("--scopes", metavar='"A B"', help=f"space separated, of {' '.join(oauth.SCOPES)}")
        scopes.add_argument(
            "--redirect-uri", metavar="URI", help="a client for people who sign in to read; returns them here"
        )
        parser.add_argument("--people", default="", metavar='"A B"', help="usernames of those who may read through it")
        parser.add_argument("--name", default="", help="what the client is called in lists and at the start of its id")
        parser.add_argument("--certificate", type=Path, metavar="FILE", help="its certificate, PEM or DER")
        parser.add_argument("--json", action="store_true", help="print {client_id, client_secret} and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        certificate: Path | None = options["certificate"]
        try:
            if options["redirect_uri"]:
                self._for_people(options)
                return
            client, secret = oauth.register_client(
                tenant_id=options["tenant"],
                scopes=options["scopes"].split(),
                name=options["name"],
                certificate=certificate.read_bytes() if certificate else None,
            )
        except (ValueError, OSError) as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps({"client_id": client.client_id, "client_secret": secret}))
            return
        self.stdout.write(
            f"client_id:     {client.client_id}\n"
            f"client_secret: {secret}\n"
            f"scopes:        {client.allowed_scopes}\n"
            "Keep the secret now: it is stored hashed and cannot be shown again."
        )

    def _for_people(self, options: dict[str, Any]) -> None:
        wanted = options["people"].split()
        people = User.objects.filter(username__in=wanted)
        if missing := sorted(set(wanted) - {person.username for person in people}):
            raise ValueError(f"There is nobody called {', '.join(missing)}.")
        client = oauth.register_reader(
            tenant_id=options["tenant"], redirect_uris=[options["redirect_uri"]], people=people, name=options["name"]
        )
        if options["json"]:
            self.stdout.write(json.dumps({"client_id": client.client_id}))
        else:
            self.stdout.write(f"client_id: {client.client_id}\nscopes:    {client.allowed_scopes}\nIt has no secret.")
