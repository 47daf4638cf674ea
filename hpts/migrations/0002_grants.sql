-- Rule: hpts_app writes clients, tokens, logins and the admin's own records; none of them holds money, so no row
-- security. hpts_readonly sees none of them. Every key is an identity column, which needs no grant on its sequence.
-- Undo: the part behind the reverse mark.

DO $$
BEGIN
    IF to_regrole('hpts_app') IS NULL THEN
        RAISE EXCEPTION 'role hpts_app does not exist'
            USING HINT = 'Create the roles hpts_owner, hpts_app and hpts_readonly before the first migration.';
    END IF;
END
$$;

GRANT SELECT, INSERT, UPDATE, DELETE ON
    hpts_apiclient,
    oauth2_provider_accesstoken,
    oauth2_provider_devicegrant,
    oauth2_provider_grant,
    oauth2_provider_idtoken,
    oauth2_provider_refreshtoken,
    auth_group,
    auth_group_permissions,
    auth_permission,
    auth_user,
    auth_user_groups,
    auth_user_user_permissions,
    django_admin_log,
    django_content_type,
    django_session
TO hpts_app;

-- The readiness check compares the applied migrations with the code's.
GRANT SELECT ON django_migrations TO hpts_app;

-- reverse
REVOKE ALL ON
    hpts_apiclient,
    oauth2_provider_accesstoken,
    oauth2_provider_devicegrant,
    oauth2_provider_grant,
    oauth2_provider_idtoken,
    oauth2_provider_refreshtoken,
    auth_group,
    auth_group_permissions,
    auth_permission,
    auth_user,
    auth_user_groups,
    auth_user_user_permissions,
    django_admin_log,
    django_content_type,
    django_session,
    django_migrations
FROM hpts_app;
