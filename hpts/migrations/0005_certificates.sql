-- The walls of certificates: keys that start with the tenant, a client of the same tenant, no way back from retirement.
-- Rule: a certificate stands for one client of one tenant; rows are added and retired, never changed or removed.
-- Undo: the part behind the reverse mark.

ALTER TABLE public.client_certificate ADD CONSTRAINT client_certificate_client
    FOREIGN KEY (tenant_id, client_id) REFERENCES public.hpts_apiclient (tenant_id, client_id);

ALTER TABLE public.client_certificate ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.client_certificate FORCE ROW LEVEL SECURITY;
CREATE POLICY client_certificate_tenant ON public.client_certificate
    USING (tenant_id = NULLIF(current_setting('hpts.tenant_id', true), '')::uuid)
    WITH CHECK (tenant_id = NULLIF(current_setting('hpts.tenant_id', true), '')::uuid);

CREATE FUNCTION public.client_certificate_wall() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.retired_at IS NULL THEN
            RETURN NEW;
        END IF;
    ELSIF TG_OP = 'UPDATE' THEN
        IF OLD.retired_at IS NULL AND NEW.retired_at IS NOT NULL
           AND to_jsonb(NEW) - 'retired_at' - 'retired_reason' = to_jsonb(OLD) - 'retired_at' - 'retired_reason' THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION USING ERRCODE = '42501', CONSTRAINT = 'client_certificate_is_kept', TABLE = 'client_certificate',
        MESSAGE = 'a certificate is added and then retired, once; nothing else of it changes';
END $$;
CREATE TRIGGER client_certificate_is_kept BEFORE INSERT OR UPDATE OR DELETE ON public.client_certificate
    FOR EACH ROW EXECUTE FUNCTION public.client_certificate_wall();
CREATE TRIGGER client_certificate_stays BEFORE TRUNCATE ON public.client_certificate
    FOR EACH STATEMENT EXECUTE FUNCTION public.client_certificate_wall();
ALTER TABLE public.client_certificate ENABLE ALWAYS TRIGGER client_certificate_is_kept;
ALTER TABLE public.client_certificate ENABLE ALWAYS TRIGGER client_certificate_stays;

REVOKE ALL ON public.client_certificate FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE (retired_at, retired_reason) ON public.client_certificate TO hpts_app;
GRANT SELECT ON public.client_certificate TO hpts_readonly;
GRANT SELECT, INSERT, DELETE ON public.hpts_apiclient_people TO hpts_app;

-- reverse
REVOKE ALL ON public.hpts_apiclient_people FROM hpts_app;
DROP TRIGGER client_certificate_stays ON public.client_certificate;
DROP TRIGGER client_certificate_is_kept ON public.client_certificate;
DROP FUNCTION public.client_certificate_wall();
DROP POLICY client_certificate_tenant ON public.client_certificate;
ALTER TABLE public.client_certificate DROP CONSTRAINT client_certificate_client;
