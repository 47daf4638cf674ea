"""Quotas of a tenant's own. Only the owner of the schema changes them (`manage.py tenant_quota`)."""

from __future__ import annotations

from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("ledger", "0008_notices")]
    operations = [
        migrations.AddField("tenant", "requests_per_second", models.IntegerField(null=True)),
        migrations.AddField("tenant", "client_requests_per_second", models.IntegerField(null=True)),
        migrations.AddConstraint(
            "tenant",
            models.CheckConstraint(
                condition=Q(requests_per_second__range=(1, 1_000_000))
                & Q(client_requests_per_second__range=(1, 1_000_000)),
                name="tenant_quotas",
            ),
        ),
    ]
