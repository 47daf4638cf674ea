"""What the admin shows of the books: pages, panels and searches, each of them questions of queries.py and a template."""

from __future__ import annotations

from django.db.backends.utils import CursorWrapper

from hpts.site import Tenant, site
from ledger import queries


def _tenant(cursor: CursorWrapper) -> Tenant | None:
    found = queries.tenant_of_transaction(cursor)
    return Tenant(*found) if found else None


site.tenants = queries.tenant_directory
site.tenant = _tenant
