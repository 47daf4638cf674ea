-- The list of tenants, for work that visits all of them one after the other: verification, schedules, the relay.
-- Rule: hpts_app and hpts_readonly learn the ids and nothing else; each tenant's rows stay behind its own transaction.
-- Undo: the section after the reverse mark.
--
-- Row security binds the owner too, so that the write path's functions are inside the wall. This policy opens the table of
-- tenants, and no other, to the owner's SELECT: what runs as the owner names its tenant in every statement anyway.
CREATE POLICY tenant_listed_by_owner ON public.tenant FOR SELECT TO hpts_owner USING (true);

CREATE FUNCTION public.tenant_ids() RETURNS SETOF uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT t.id FROM public.tenant t ORDER BY t.created_at, t.id
$$;

REVOKE ALL ON FUNCTION public.tenant_ids FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.tenant_ids TO hpts_app, hpts_readonly;

-- The directory of tenants, for platform staff of the admin who turn from one to another: names and ids, and nothing else.
-- The application has no need of it, so hpts_readonly alone may ask.
CREATE FUNCTION public.tenant_directory(wanted uuid, named text, most int)
RETURNS TABLE (id uuid, name text) LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT t.id, t.name FROM public.tenant t
    WHERE (wanted IS NULL OR t.id = wanted) AND (named = '' OR strpos(lower(t.name), lower(named)) > 0)
    ORDER BY t.name, t.id LIMIT most
$$;

REVOKE ALL ON FUNCTION public.tenant_directory FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.tenant_directory TO hpts_readonly;

-- reverse
DROP FUNCTION public.tenant_directory(uuid, text, int);
DROP FUNCTION public.tenant_ids();
DROP POLICY tenant_listed_by_owner ON public.tenant;
