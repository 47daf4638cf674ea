"""The walls of reconciliation: see the .sql beside this file."""

from __future__ import annotations

from django.db import migrations

from hpts.sql import sql_file


class Migration(migrations.Migration):
    dependencies = [("reconciliation", "0001_initial"), ("ledger", "0004_tenants")]
    operations = [sql_file(__file__)]
