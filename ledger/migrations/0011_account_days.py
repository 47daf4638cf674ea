"""An account's days out of its sums; the function is the .sql beside this file."""

from django.db import migrations

from hpts.sql import sql_file


class Migration(migrations.Migration):
    dependencies = [("ledger", "0010_proposals")]

    operations = [sql_file(__file__)]
