"""The list of tenants: see the .sql beside this file."""

from __future__ import annotations

from django.db import migrations

from hpts.sql import sql_file


class Migration(migrations.Migration):
    dependencies = [("ledger", "0003_posting")]
    operations = [sql_file(__file__)]
