"""What each attempt that failed heard, kept with the delivery until it goes."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("webhooks", "0003_notices")]

    operations = [
        migrations.AddField("delivery", "failures", models.JSONField(null=True)),
        migrations.RunSQL(
            "GRANT UPDATE (failures) ON public.webhook_delivery TO hpts_app",
            "REVOKE UPDATE (failures) ON public.webhook_delivery FROM hpts_app",
        ),
    ]
