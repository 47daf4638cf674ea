"""Raw SQL in migrations: the `.sql` file that stands beside its migration, sent to PostgreSQL as it was written.

Nothing else lives here; the statements themselves stay in the `.sql` files, where an SQL reader can see them.
"""

from __future__ import annotations

import re
from pathlib import Path

from django.db import migrations

REVERSE_MARK = re.compile(r"^-- reverse[ \t]*$", re.MULTILINE)


def sql_file(migration_file: str) -> migrations.RunSQL:
    """The operation for `0003_walls.py` that runs `0003_walls.sql`; call it with `__file__`.

    What follows a line `-- reverse` undoes the migration; without that line it cannot be undone. The whole text is
    one statement list in one message: no parser splits function bodies at their semicolons, and `%` stands for itself.
    """
    forward, *reverse = REVERSE_MARK.split(Path(migration_file).with_suffix(".sql").read_text(encoding="utf-8"))
    if len(reverse) > 1:
        raise ValueError(f"{migration_file}: only one line may be '-- reverse'")
    return migrations.RunSQL(
        sql=[(forward, None)],
        reverse_sql=[(reverse[0], None)] if reverse else None,
    )
