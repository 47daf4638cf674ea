-- The three database roles and what each may do with the database itself. Run it in the product's database, as a superuser
-- or as a role that may create roles; running it again changes nothing but the passwords. It reads the passwords from the
-- session settings hpts.owner_password, hpts.app_password and hpts.readonly_password. Rights on tables come from the migrations.
--
--   hpts_owner     owns the database and everything in it; migrations run as this role
--   hpts_app       the API and the workers; owns nothing and can create nothing
--   hpts_readonly  reports; as hpts_app, and every transaction begins read only
DO $$
DECLARE
    kind text;
    role_name text;
BEGIN
    FOREACH kind IN ARRAY ARRAY['owner', 'app', 'readonly'] LOOP
        role_name := 'hpts_' || kind;
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            EXECUTE format('CREATE ROLE %I', role_name);
        END IF;
        -- Only a superuser may name these attributes, so they are named only when one of them is wrong.
        IF EXISTS (
            SELECT FROM pg_roles
            WHERE rolname = role_name AND (rolsuper OR rolbypassrls OR rolcreatedb OR rolcreaterole OR rolreplication)
        ) THEN
            EXECUTE format('ALTER ROLE %I NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION', role_name);
        END IF;
        EXECUTE format('ALTER ROLE %I LOGIN PASSWORD %L', role_name, current_setting('hpts.' || kind || '_password'));
    END LOOP;

    -- A role that is no superuser must be a member of the owner before it can give anything to it.
    IF NOT pg_has_role(current_user, 'hpts_owner', 'MEMBER') THEN
        EXECUTE format('GRANT hpts_owner TO %I', current_user);
    END IF;
    EXECUTE format('ALTER DATABASE %I OWNER TO hpts_owner', current_database());
    -- PUBLIC may by default connect to every database and make temporary tables in it.
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO hpts_app, hpts_readonly', current_database());
END
$$;

ALTER SCHEMA public OWNER TO hpts_owner;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO hpts_app, hpts_readonly;
ALTER ROLE hpts_readonly SET default_transaction_read_only = on;
