-- Notices: append-only, stamped with their own transaction, each tenant's its own.
-- Rule: triggers and constraints refuse; they never compute. Undo: the section after the reverse mark.

ALTER TABLE public.notice ADD CONSTRAINT notice_tenant FOREIGN KEY (tenant_id) REFERENCES public.tenant (id);
CALL public.append_only('notice');

-- One with another transaction's id could come before what the relay has passed, and would never be told.
CREATE FUNCTION public.notice_wall() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.created_xid IS DISTINCT FROM pg_current_xact_id() OR NEW.body IS NOT JSON OBJECT THEN
        RAISE EXCEPTION USING ERRCODE = 'HP014', CONSTRAINT = 'notice_whole',
            MESSAGE = format('notice %s must come with this transaction''s id and a JSON object', NEW.id);
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER notice_wall BEFORE INSERT ON public.notice FOR EACH ROW EXECUTE FUNCTION public.notice_wall();
ALTER TABLE public.notice ENABLE ALWAYS TRIGGER notice_wall;

CALL public.walled_by_tenant('notice');
GRANT SELECT ON public.notice TO hpts_app, hpts_readonly;
GRANT INSERT ON public.notice TO hpts_app;

-- reverse
DROP TRIGGER notice_wall ON public.notice;
DROP FUNCTION public.notice_wall();
