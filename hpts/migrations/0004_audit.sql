-- The walls of the audit log.
-- Rule: a row is written once, with the clock's time, by its own tenant's transaction, and never changes nor goes, for any role.
-- Undo: the part behind the reverse mark.

ALTER TABLE public.audit_record DROP CONSTRAINT audit_record_pkey,
    ADD CONSTRAINT audit_record_pkey PRIMARY KEY (tenant_id, id);

-- A trigger and not the grants alone: it binds the owner and a superuser too, also in a session that replicates.
CREATE FUNCTION public.audit_record_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'HP001', MESSAGE = format('audit_record is append-only: %s is refused', TG_OP);
END $$;

CREATE TRIGGER audit_record_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON public.audit_record
    FOR EACH STATEMENT EXECUTE FUNCTION public.audit_record_stays();
ALTER TABLE public.audit_record ENABLE ALWAYS TRIGGER audit_record_append_only;

ALTER TABLE public.audit_record ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.audit_record FORCE ROW LEVEL SECURITY;
CREATE POLICY audit_record_tenant ON public.audit_record
    USING (tenant_id = NULLIF(current_setting('hpts.tenant_id', true), '')::uuid)
    WITH CHECK (tenant_id = NULLIF(current_setting('hpts.tenant_id', true), '')::uuid);

-- Neither id nor time: the database says both.
GRANT INSERT (tenant_id, actor, action, object_type, object_id, outcome, reason, detail, address, user_agent, correlation_id)
    ON public.audit_record TO hpts_app;
GRANT SELECT ON public.audit_record TO hpts_app, hpts_readonly;

-- reverse
DROP TRIGGER audit_record_append_only ON public.audit_record;
DROP FUNCTION public.audit_record_stays();
DROP POLICY audit_record_tenant ON public.audit_record;
