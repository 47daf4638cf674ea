-- Notices on their way: which have become deliveries, and that the sweep sees those that have not.
-- Rule: triggers and constraints refuse; they never compute.

ALTER TABLE public.webhook_notice ADD CONSTRAINT webhook_notice_notice
    FOREIGN KEY (tenant_id, created_xid, notice_id) REFERENCES public.notice (tenant_id, created_xid, id);
ALTER TABLE public.webhook_delivery ADD CONSTRAINT webhook_delivery_notice
    FOREIGN KEY (tenant_id, notice_id) REFERENCES public.notice (tenant_id, id);
CALL public.append_only('webhook_notice');
CREATE TRIGGER webhook_delivery_notice_identity BEFORE UPDATE OF notice_id ON public.webhook_delivery
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
ALTER TABLE public.webhook_delivery ENABLE ALWAYS TRIGGER webhook_delivery_notice_identity;
CALL public.walled_by_tenant('webhook_notice');
GRANT SELECT ON public.webhook_notice TO hpts_app, hpts_readonly;
GRANT INSERT ON public.webhook_notice TO hpts_app;

-- As in 0002_walls.sql, and of notices, too.
CREATE OR REPLACE FUNCTION public.webhook_work(p_now timestamptz DEFAULT NULL)
RETURNS TABLE (tenant_id uuid, waiting_since timestamptz, to_relay boolean, to_deliver boolean) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_now timestamptz := coalesce(p_now, clock_timestamp());
    v_horizon xid8 := pg_snapshot_xmin(pg_current_snapshot());
    v_xid xid8;
    v_entry uuid;
    v_notice record;
BEGIN
    FOR tenant_id IN SELECT public.tenant_ids() LOOP
        PERFORM set_config('hpts.tenant_id', tenant_id::text, true);
        waiting_since := NULL;
        to_relay := false;
        SELECT e.created_xid, e.entry_id INTO v_xid, v_entry
        FROM public.webhook_event e WHERE e.tenant_id = webhook_work.tenant_id ORDER BY e.sequence DESC LIMIT 1;
        SELECT o.created_xid < v_horizon,
               (SELECT j.posted_at FROM public.journal_entry j WHERE j.tenant_id = o.tenant_id AND j.id = o.entry_id)
        INTO to_relay, waiting_since
        FROM public.outbox_message o
        WHERE o.tenant_id = webhook_work.tenant_id
          AND (o.created_xid, o.entry_id) > (coalesce(v_xid, '0'), coalesce(v_entry, '00000000-0000-0000-0000-000000000000'))
        ORDER BY o.created_xid, o.entry_id LIMIT 1;
        SELECT n.created_xid, n.notice_id INTO v_xid, v_entry
        FROM public.webhook_notice n WHERE n.tenant_id = webhook_work.tenant_id ORDER BY n.created_xid DESC, n.notice_id DESC LIMIT 1;
        SELECT n.created_xid < v_horizon AS is_final, n.created_at INTO v_notice
        FROM public.notice n
        WHERE n.tenant_id = webhook_work.tenant_id
          AND (n.created_xid, n.id) > (coalesce(v_xid, '0'), coalesce(v_entry, '00000000-0000-0000-0000-000000000000'))
        ORDER BY n.created_xid, n.id LIMIT 1;
        to_relay := coalesce(to_relay, false) OR coalesce(v_notice.is_final, false);
        waiting_since := least(waiting_since, v_notice.created_at);
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
