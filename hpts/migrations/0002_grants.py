"""What the application's role may do with the tables of the clients, the token issuer and the admin's login."""

from __future__ import annotations

from django.db import migrations

from hpts.sql import sql_file


class Migration(migrations.Migration):
    dependencies = [
        ("hpts", "0001_initial"),
        ("admin", "0003_logentry_add_action_flag_choices"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("oauth2_provider", "0022_refreshtoken_token_family_index"),
        ("sessions", "0001_initial"),
    ]
    operations = [sql_file(__file__)]
