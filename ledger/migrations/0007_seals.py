"""Sealed history: the table of blocks; its walls are the .sql beside this file."""

from __future__ import annotations

import django.db.models.functions.datetime
from django.db import migrations, models

import ledger.models
from hpts.sql import sql_file


class Migration(migrations.Migration):
    dependencies = [("ledger", "0006_rollup")]

    operations = [
        migrations.CreateModel(
            name="JournalSeal",
            fields=[
                ("tenant_id", models.UUIDField(editable=False)),
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "tenant_id", "number", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("number", models.BigIntegerField()),
                ("entry_count", models.IntegerField()),
                ("last_xid", ledger.models.TransactionIdField()),
                ("last_entry_id", models.UUIDField()),
                ("leaves", models.BinaryField()),
                ("merkle_root", models.BinaryField()),
                ("previous_hash", models.BinaryField()),
                ("hash", models.BinaryField()),
                ("sealed_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("key_id", models.TextField(null=True)),
                ("signature", models.BinaryField(null=True)),
            ],
            options={
                "db_table": "journal_seal",
                "constraints": [
                    models.UniqueConstraint(
                        fields=["tenant_id", "last_xid", "last_entry_id"], name="journal_seal_by_last_entry"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("key_id__isnull", True), ("signature__isnull", True))
                        | models.Q(("key_id__isnull", False), ("signature__isnull", False)),
                        name="journal_seal_signature",
                    ),
                ],
            },
        ),
        sql_file(__file__),
    ]
