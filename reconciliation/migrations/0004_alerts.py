"""Alerts of newly opened breaks: the table; its walls are the .sql beside this file."""

from __future__ import annotations

import django.db.models.functions.datetime
from django.db import migrations, models

from hpts.sql import sql_file


class Migration(migrations.Migration):
    dependencies = [("reconciliation", "0003_proof"), ("ledger", "0008_notices")]

    operations = [
        migrations.CreateModel(
            name="Alert",
            fields=[
                ("tenant_id", models.UUIDField(editable=False)),
                ("id", models.UUIDField(primary_key=True, serialize=False)),
                ("bank_account_ref", models.TextField()),
                ("break_count", models.IntegerField()),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("due_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("attempt", models.SmallIntegerField(db_default=0)),
                ("mailed_at", models.DateTimeField(null=True)),
            ],
            options={
                "db_table": "reconciliation_alert",
                "indexes": [
                    models.Index(
                        condition=models.Q(("mailed_at__isnull", True)),
                        fields=["tenant_id", "due_at"],
                        name="reconciliation_alert_unsent",
                    )
                ],
            },
        ),
        migrations.AddField(model_name="break", name="alert_id", field=models.UUIDField(null=True)),
        migrations.AddIndex(
            model_name="break",
            index=models.Index(fields=["tenant_id", "alert_id", "value_date"], name="reconciliation_break_alerted"),
        ),
        sql_file(__file__),
    ]
