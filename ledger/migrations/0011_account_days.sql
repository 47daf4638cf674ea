-- What moved an account, day by day, at any size of the books.
-- Rule: reads as account_balances does (0006_rollup.sql), by the caller's own snapshot. Undo: the part behind the reverse mark.

-- Gross debits and credits of one account by currency, layer and date from a date on; a row without a date is all before it. Days
-- that are rolled up are read from their sums, the entries behind the point from their lines.
CREATE FUNCTION public.account_days(p_tenant uuid, p_code text, p_since date, p_until date)
RETURNS TABLE (currency text, layer text, effective_at date, dr_minor numeric, cr_minor numeric) LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_rolled boolean;
    v_xid xid8;
    v_entry uuid;
BEGIN
    SELECT r.created_xid, r.entry_id INTO v_xid, v_entry
    FROM public.account_rollup r
    WHERE r.tenant_id = p_tenant AND r.created_xid < pg_snapshot_xmax(pg_current_snapshot());
    v_rolled := FOUND;
    IF NOT v_rolled THEN
        v_xid := '0';
        v_entry := '00000000-0000-0000-0000-000000000000';
    END IF;
    RETURN QUERY
    SELECT b.currency, b.layer, NULL::date, s.dr_minor, s.cr_minor
    FROM public.account_books(p_tenant) b
    CROSS JOIN LATERAL public.account_balances(p_tenant, b.currency, b.layer, p_since - 1, p_code) s
    UNION ALL
    SELECT m.currency, m.layer, m.day, sum(m.dr), sum(m.cr)
    FROM (
        SELECT b.currency, b.layer, s.starts_on AS day, s.dr_minor AS dr, s.cr_minor AS cr
        FROM public.account_books(p_tenant) b
        CROSS JOIN LATERAL (
            SELECT x.starts_on, x.dr_minor, x.cr_minor FROM public.account_sum x
            WHERE x.tenant_id = p_tenant AND x.span = 'day' AND x.currency = b.currency AND x.layer = b.layer
              AND x.account_code = p_code AND x.starts_on BETWEEN p_since AND p_until OFFSET 0) s
        WHERE v_rolled
        UNION ALL
        SELECT l.currency, l.layer, l.effective_at, CASE l.direction WHEN 'DR' THEN l.amount_minor ELSE 0 END,
               CASE l.direction WHEN 'CR' THEN l.amount_minor ELSE 0 END
        FROM public.outbox_message o
        CROSS JOIN LATERAL (
            SELECT j.currency, j.layer, j.effective_at, j.direction, j.amount_minor FROM public.journal_line j
            WHERE j.tenant_id = p_tenant AND j.entry_id = o.entry_id AND j.account_code = p_code
              AND j.effective_at BETWEEN p_since AND p_until OFFSET 0) l
        WHERE o.tenant_id = p_tenant
          AND (o.created_xid, o.entry_id) > (v_xid, v_entry)) m
    GROUP BY m.currency, m.layer, m.day;
END $$;

REVOKE ALL ON FUNCTION public.account_days FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.account_days TO hpts_app, hpts_readonly;

-- reverse
DROP FUNCTION public.account_days(uuid, text, date, date);
