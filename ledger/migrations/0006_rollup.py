"""Sums of accounts; what they may be and how they are made is the .sql beside this file."""

from __future__ import annotations

from django.db import migrations, models

import ledger.models
from hpts.sql import sql_file


class Migration(migrations.Migration):
    dependencies = [
        ("ledger", "0005_accruals"),
    ]

    operations = [
        migrations.CreateModel(
            name="AccountRollup",
            fields=[
                ("tenant_id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("created_xid", ledger.models.TransactionIdField()),
                ("entry_id", models.UUIDField()),
                ("rolled_up_at", models.DateTimeField()),
            ],
            options={
                "db_table": "account_rollup",
            },
        ),
        migrations.CreateModel(
            name="AccountSum",
            fields=[
                ("tenant_id", models.UUIDField(editable=False)),
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "tenant_id",
                        "span",
                        "currency",
                        "layer",
                        "account_code",
                        "starts_on",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("span", models.TextField()),
                ("currency", models.TextField()),
                ("layer", models.TextField()),
                ("account_code", models.TextField()),
                ("starts_on", models.DateField()),
                ("dr_minor", models.DecimalField(decimal_places=0, max_digits=40)),
                ("cr_minor", models.DecimalField(decimal_places=0, max_digits=40)),
            ],
            options={
                "db_table": "account_sum",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("span__in", ["day", "month", "year"])), name="account_sum_span"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("cr_minor__gte", 0), ("dr_minor__gte", 0)), name="account_sum_is_gross"
                    ),
                ],
            },
        ),
        sql_file(__file__),
    ]
