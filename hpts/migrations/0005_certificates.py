"""Certificates of clients, and the people of a client; the walls are in the .sql beside this file."""

from __future__ import annotations

import django.db.models.functions.datetime
from django.conf import settings
from django.db import migrations, models
from django.db.models import F, Q

from hpts.sql import sql_file


class Migration(migrations.Migration):
    dependencies = [
        ("hpts", "0002_grants"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]
    operations = [
        migrations.RemoveField(model_name="apiclient", name="certificate_thumbprints"),
        migrations.AddField(
            model_name="apiclient",
            name="people",
            field=models.ManyToManyField(
                blank=True,
                help_text="Who may read the tenant's books through this client.",
                related_name="read_clients",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AddConstraint(
            model_name="apiclient",
            constraint=models.UniqueConstraint(fields=["tenant_id", "client_id"], name="hpts_apiclient_of_tenant"),
        ),
        migrations.CreateModel(
            name="ClientCertificate",
            fields=[
                ("tenant_id", models.UUIDField(editable=False)),
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "tenant_id", "thumbprint", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("thumbprint", models.CharField(max_length=43)),
                ("client_id", models.CharField(max_length=255)),
                ("subject", models.TextField()),
                ("serial_number", models.TextField()),
                ("not_before", models.DateTimeField()),
                ("not_after", models.DateTimeField()),
                ("added_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("retired_at", models.DateTimeField(null=True)),
                ("retired_reason", models.TextField(null=True)),
            ],
            options={
                "db_table": "client_certificate",
                "indexes": [models.Index(fields=["tenant_id", "client_id"], name="client_certificate_by_client")],
                "constraints": [
                    models.CheckConstraint(
                        condition=Q(thumbprint__regex=r"^[A-Za-z0-9_-]{43}$"), name="client_certificate_thumbprint"
                    ),
                    models.CheckConstraint(
                        condition=Q(not_before__lt=F("not_after")), name="client_certificate_period"
                    ),
                    models.CheckConstraint(
                        condition=Q(retired_at__isnull=True, retired_reason__isnull=True)
                        | Q(retired_at__isnull=False, retired_reason__isnull=False),
                        name="client_certificate_retirement",
                    ),
                ],
            },
        ),
        sql_file(__file__),
    ]
