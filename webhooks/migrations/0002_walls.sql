-- The walls of webhooks: composite keys, the append-only and chained feed, row security, grants; and which tenants have work.
-- Rule: triggers and constraints refuse; they never compute. Undo: drop the tables (0001), then the functions here.

-- 1. Keys start with tenant_id ---------------------------------------------------------------------------------------
ALTER TABLE public.webhook_endpoint DROP CONSTRAINT webhook_endpoint_pkey,
    ADD CONSTRAINT webhook_endpoint_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE public.webhook_delivery DROP CONSTRAINT webhook_delivery_pkey,
    ADD CONSTRAINT webhook_delivery_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE public.webhook_event ADD CONSTRAINT webhook_event_message
    FOREIGN KEY (tenant_id, created_xid, entry_id) REFERENCES public.outbox_message (tenant_id, created_xid, entry_id);
ALTER TABLE public.webhook_endpoint ADD CONSTRAINT webhook_endpoint_tenant
    FOREIGN KEY (tenant_id) REFERENCES public.tenant (id);
ALTER TABLE public.webhook_delivery ADD CONSTRAINT webhook_delivery_endpoint
    FOREIGN KEY (tenant_id, endpoint_id) REFERENCES public.webhook_endpoint (tenant_id, id);
ALTER TABLE public.webhook_delivery ADD CONSTRAINT webhook_delivery_event
    FOREIGN KEY (tenant_id, sequence) REFERENCES public.webhook_event (tenant_id, sequence);

-- A delivery is written three times within a second and then never again: what dies is cleaned up early, by number.
ALTER TABLE public.webhook_delivery SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
                                         autovacuum_analyze_scale_factor = 0.02);

-- Ids of deliveries are UUIDv7 (RFC 9562): they lie together in the index, and a list in their order is a list by age.
CREATE FUNCTION public.webhook_delivery_id() RETURNS uuid LANGUAGE sql VOLATILE
RETURN encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
    PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1),
    'hex')::uuid;
ALTER TABLE public.webhook_delivery ALTER COLUMN id SET DEFAULT public.webhook_delivery_id();

-- 2. The feed is append-only, contiguous and chained -----------------------------------------------------------------
CREATE TRIGGER webhook_event_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON public.webhook_event
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
ALTER TABLE public.webhook_event ENABLE ALWAYS TRIGGER webhook_event_append_only;

CREATE FUNCTION public.webhook_event_wall() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    head record;
BEGIN
    -- The row before it, also when it is of the same statement: a row trigger sees those that came earlier.
    SELECT e.sequence, e.hash, e.created_xid, e.entry_id INTO head
    FROM public.webhook_event e WHERE e.tenant_id = NEW.tenant_id ORDER BY e.sequence DESC LIMIT 1;
    IF NEW.sequence IS DISTINCT FROM coalesce(head.sequence, 0) + 1
       OR NEW.previous_hash IS DISTINCT FROM coalesce(head.hash, decode(repeat('00', 32), 'hex'))
       OR NEW.hash IS DISTINCT FROM sha256(convert_to(encode(NEW.previous_hash, 'hex') || NEW.document, 'UTF8'))
       OR (head.sequence IS NOT NULL AND (NEW.created_xid, NEW.entry_id) <= (head.created_xid, head.entry_id))
    THEN
        RAISE EXCEPTION USING ERRCODE = 'HP010', CONSTRAINT = 'webhook_event_chain',
            MESSAGE = format('event %s does not follow event %s in the feed', NEW.sequence, head.sequence);
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER webhook_event_wall BEFORE INSERT ON public.webhook_event
    FOR EACH ROW EXECUTE FUNCTION public.webhook_event_wall();
ALTER TABLE public.webhook_event ENABLE ALWAYS TRIGGER webhook_event_wall;

-- 3. Endpoints stay, deliveries go when they are old, and what identifies them does not move ------------------------
CREATE TRIGGER webhook_endpoint_never_goes BEFORE DELETE OR TRUNCATE ON public.webhook_endpoint
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER webhook_endpoint_identity BEFORE UPDATE OF tenant_id, id, url, event_types, description, created_at
    ON public.webhook_endpoint FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER webhook_delivery_identity BEFORE UPDATE OF tenant_id, id, endpoint_id, sequence, event_type, created_at
    ON public.webhook_delivery FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER webhook_delivery_not_emptied BEFORE TRUNCATE ON public.webhook_delivery
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
ALTER TABLE public.webhook_endpoint ENABLE ALWAYS TRIGGER webhook_endpoint_never_goes;
ALTER TABLE public.webhook_endpoint ENABLE ALWAYS TRIGGER webhook_endpoint_identity;
ALTER TABLE public.webhook_delivery ENABLE ALWAYS TRIGGER webhook_delivery_identity;
ALTER TABLE public.webhook_delivery ENABLE ALWAYS TRIGGER webhook_delivery_not_emptied;

CREATE FUNCTION public.webhook_delivery_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.finished_at < clock_timestamp() - interval '30 days') IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'HP001', CONSTRAINT = 'webhook_delivery_kept',
            MESSAGE = format('delivery %s is kept until 30 days after its end', OLD.id);
    END IF;
    RETURN OLD;
END $$;

CREATE TRIGGER webhook_delivery_kept BEFORE DELETE ON public.webhook_delivery
    FOR EACH ROW EXECUTE FUNCTION public.webhook_delivery_kept();
ALTER TABLE public.webhook_delivery ENABLE ALWAYS TRIGGER webhook_delivery_kept;

-- 4. A tenant sees and touches only its own --------------------------------------------------------------------------
CALL public.walled_by_tenant('webhook_event', 'webhook_endpoint', 'webhook_delivery');

-- 5. Grants ----------------------------------------------------------------------------------------------------------
GRANT SELECT ON public.webhook_event, public.webhook_endpoint, public.webhook_delivery TO hpts_app, hpts_readonly;
GRANT INSERT ON public.webhook_event, public.webhook_endpoint, public.webhook_delivery TO hpts_app;
GRANT UPDATE (state, disabled_reason, secret, previous_secret, previous_valid_until, failing_since, last_failed_at, paused_until)
    ON public.webhook_endpoint TO hpts_app;
GRANT UPDATE (state, due_at, attempt, lease_token, attempted_at, finished_at, status_code, error)
    ON public.webhook_delivery TO hpts_app;
GRANT DELETE ON public.webhook_delivery TO hpts_app;

-- 6. Which tenants have work -----------------------------------------------------------------------------------------
-- The sweep of the workers, one round trip for all tenants. It looks at each tenant from inside its wall, one after the other,
-- with the rights of whoever asks; the caller's transaction must be its own, because it ends in no tenant.
--   waiting_since  when the oldest entry that is not yet in the feed was posted; NULL when there is none
--   to_relay       such an entry is there and no transaction that is still running could come before it
--   to_deliver     a delivery is due at an enabled endpoint, or the lease of one has ended
CREATE FUNCTION public.webhook_work(p_now timestamptz DEFAULT NULL)
RETURNS TABLE (tenant_id uuid, waiting_since timestamptz, to_relay boolean, to_deliver boolean) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_now timestamptz := coalesce(p_now, clock_timestamp());
    v_horizon xid8 := pg_snapshot_xmin(pg_current_snapshot());
    v_xid xid8;
    v_entry uuid;
BEGIN
    FOR tenant_id IN SELECT public.tenant_ids() LOOP
        PERFORM set_config('hpts.tenant_id', tenant_id::text, true);
        waiting_since := NULL;
        to_relay := false;
        SELECT e.created_xid, e.entry_id INTO v_xid, v_entry
        FROM public.webhook_event e WHERE e.tenant_id = webhook_work.tenant_id ORDER BY e.sequence DESC LIMIT 1;
        IF NOT FOUND THEN
            -- As values and not in the condition: there, coalesce() would keep the index from beginning at the cursor.
            v_xid := '0';
            v_entry := '00000000-0000-0000-0000-000000000000';
        END IF;
        SELECT o.created_xid < v_horizon,
               (SELECT j.posted_at FROM public.journal_entry j WHERE j.tenant_id = o.tenant_id AND j.id = o.entry_id)
        INTO to_relay, waiting_since
        FROM public.outbox_message o
        WHERE o.tenant_id = webhook_work.tenant_id AND (o.created_xid, o.entry_id) > (v_xid, v_entry)
        ORDER BY o.created_xid, o.entry_id LIMIT 1;
        to_relay := coalesce(to_relay, false);
        to_deliver := EXISTS (
            SELECT FROM public.webhook_endpoint e
            WHERE e.tenant_id = webhook_work.tenant_id AND e.state = 'enabled' AND (e.paused_until <= v_now) IS NOT FALSE
              AND EXISTS (SELECT FROM public.webhook_delivery d
                          WHERE d.tenant_id = e.tenant_id AND d.endpoint_id = e.id AND d.state = 'pending' AND d.due_at <= v_now))
            OR EXISTS (SELECT FROM public.webhook_delivery d
                       WHERE d.tenant_id = webhook_work.tenant_id AND d.state = 'leased' AND d.due_at <= v_now);
        IF waiting_since IS NOT NULL OR to_deliver THEN
            RETURN NEXT;
        END IF;
    END LOOP;
    PERFORM set_config('hpts.tenant_id', '', true);
END $$;

REVOKE ALL ON FUNCTION public.webhook_work, public.webhook_delivery_id FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.webhook_work TO hpts_app, hpts_readonly;
GRANT EXECUTE ON FUNCTION public.webhook_delivery_id TO hpts_app;
