"""Notices beside events: which are relayed, deliveries of them; the walls are the .sql beside this file."""

from __future__ import annotations

import django.db.models.functions.datetime
from django.db import migrations, models

import ledger.models
from hpts.sql import sql_file


class Migration(migrations.Migration):
    dependencies = [("webhooks", "0002_walls"), ("ledger", "0008_notices")]

    operations = [
        migrations.CreateModel(
            name="RelayedNotice",
            fields=[
                ("tenant_id", models.UUIDField(editable=False)),
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "tenant_id",
                        "created_xid",
                        "notice_id",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("created_xid", ledger.models.TransactionIdField()),
                ("notice_id", models.UUIDField()),
                ("relayed_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={"db_table": "webhook_notice"},
        ),
        migrations.AddField(model_name="delivery", name="notice_id", field=models.UUIDField(null=True)),
        migrations.AddConstraint(
            model_name="delivery",
            constraint=models.UniqueConstraint(
                condition=models.Q(("notice_id__isnull", False)),
                fields=("tenant_id", "endpoint_id", "notice_id"),
                name="webhook_delivery_one_per_notice",
            ),
        ),
        migrations.AddConstraint(
            model_name="delivery",
            constraint=models.CheckConstraint(
                condition=models.Q(("sequence__isnull", True), ("notice_id__isnull", True), _connector="OR"),
                name="webhook_delivery_of_one_thing",
            ),
        ),
        sql_file(__file__),
    ]
