#!/bin/sh
# Runs once, when the database container makes its data: the roles of deploy/roles.sql with the passwords of the environment.
set -eu
psql --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set owner="$HPTS_OWNER_PASSWORD" --set app="$HPTS_APP_PASSWORD" --set readonly="$HPTS_READONLY_PASSWORD" <<'SQL'
SELECT set_config('hpts.owner_password', :'owner', false),
       set_config('hpts.app_password', :'app', false),
       set_config('hpts.readonly_password', :'readonly', false) \g /dev/null
\i /deploy/roles.sql
SQL
