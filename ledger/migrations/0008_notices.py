"""Notices: what the world is told beside entries; their walls are the .sql beside this file."""

from __future__ import annotations

import django.db.models.functions.datetime
from django.db import migrations, models

import ledger.models
from hpts.sql import sql_file


class Migration(migrations.Migration):
    dependencies = [("ledger", "0007_seals")]

    operations = [
        migrations.CreateModel(
            name="Notice",
            fields=[
                ("tenant_id", models.UUIDField(editable=False)),
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "tenant_id", "created_xid", "id", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "created_xid",
                    ledger.models.TransactionIdField(db_default=ledger.models.CurrentTransactionId()),
                ),
                ("id", models.UUIDField()),
                ("event_type", models.TextField()),
                ("body", models.TextField()),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                "db_table": "notice",
                "constraints": [models.UniqueConstraint(fields=["tenant_id", "id"], name="notice_once")],
            },
        ),
        sql_file(__file__),
    ]
