"""Staff: whose books a person may see, and the groups that people are put into."""

from __future__ import annotations

from typing import Any

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

from hpts.sql import sql_file

# What only platform staff is asked to do: the accounts of people.
PEOPLE = ("add_user", "change_user", "view_user", "view_group")
GROUPS = {"viewer": (), "operator": (), "approver": (), "platform admin": PEOPLE}


def make_groups(apps: Any, schema_editor: Any) -> None:
    """Django makes permissions after all migrations, so those that groups need are made here, as Django would."""
    using = schema_editor.connection.alias
    content_type = apps.get_model("contenttypes", "ContentType").objects.using(using)
    permission = apps.get_model("auth", "Permission").objects.using(using)

    def permission_of(app: str, model: str, codename: str, name: str) -> Any:
        about, _ = content_type.get_or_create(app_label=app, model=model)
        return permission.get_or_create(content_type=about, codename=codename, defaults={"name": name})[0]

    look = permission_of("hpts", "staff", "view_books", "Can look at the books")
    for name, people in GROUPS.items():
        group, _ = apps.get_model("auth", "Group").objects.using(using).get_or_create(name=name)
        group.permissions.add(look)
        for codename in people:
            verb, model = codename.split("_")
            group.permissions.add(permission_of("auth", model, codename, f"Can {verb} {model}"))


def remove_groups(apps: Any, schema_editor: Any) -> None:
    groups = apps.get_model("auth", "Group").objects.using(schema_editor.connection.alias)
    groups.filter(name__in=list(GROUPS)).delete()


class Migration(migrations.Migration):
    dependencies = [
        ("hpts", "0002_grants"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
        ("axes", "0010_accessattemptexpiration"),
        ("otp_totp", "0003_add_timestamps"),
    ]
    operations = [
        migrations.CreateModel(
            name="Staff",
            fields=[
                (
                    "user",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="staff",
                        serialize=False,
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                ("tenant_id", models.UUIDField(blank=True, null=True)),
                ("is_platform", models.BooleanField(default=False)),
            ],
            options={
                "verbose_name_plural": "staff",
                "permissions": [("view_books", "Can look at the books")],
                "default_permissions": (),
            },
        ),
        migrations.AddConstraint(
            model_name="staff",
            constraint=models.CheckConstraint(
                condition=models.Q(("is_platform", True), ("tenant_id__isnull", True))
                | models.Q(("is_platform", False), ("tenant_id__isnull", False)),
                name="hpts_staff_one_tenant_or_all",
            ),
        ),
        sql_file(__file__),
        migrations.RunPython(make_groups, remove_groups),
    ]
