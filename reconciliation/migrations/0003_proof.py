"""Proofs; what they may be is the .sql beside this file."""

from __future__ import annotations

import django.db.models.functions.datetime
from django.db import migrations, models

import ledger.models
from hpts.sql import sql_file


class Migration(migrations.Migration):
    dependencies = [
        ("reconciliation", "0002_walls"),
        ("ledger", "0006_rollup"),
    ]

    operations = [
        migrations.CreateModel(
            name="Proof",
            fields=[
                ("tenant_id", models.UUIDField(editable=False)),
                ("id", models.UUIDField(primary_key=True, serialize=False)),
                ("is_full", models.BooleanField()),
                ("through_xid", ledger.models.TransactionIdField(null=True)),
                ("through_entry_id", models.UUIDField(null=True)),
                ("entry_count", models.BigIntegerField()),
                ("line_count", models.BigIntegerField()),
                ("breach_count", models.IntegerField()),
                ("breaches", models.JSONField()),
                ("mismatched_account_count", models.IntegerField()),
                ("actor", models.TextField()),
                ("started_at", models.DateTimeField()),
                ("finished_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                "db_table": "reconciliation_proof",
                "indexes": [models.Index(fields=["tenant_id", "-finished_at"], name="reconciliation_proof_latest")],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("through_entry_id__isnull", True), ("through_xid__isnull", True)),
                            models.Q(("through_entry_id__isnull", False), ("through_xid__isnull", False)),
                            _connector="OR",
                        ),
                        name="reconciliation_proof_point",
                    )
                ],
            },
        ),
        sql_file(__file__),
    ]
