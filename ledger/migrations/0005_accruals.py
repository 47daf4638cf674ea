"""The engine's functions: see the .sql beside this file."""

from __future__ import annotations

from django.db import migrations

from hpts.sql import sql_file


class Migration(migrations.Migration):
    dependencies = [("ledger", "0004_tenants")]
    operations = [sql_file(__file__)]
