-- Sums of accounts: what the lines of all entries up to a point have moved, per account, currency, layer and day, month and year.
-- Rule: a reader never meets debits without credits, a writer never waits for the roll-up. The sums are a cache, and can be
-- rebuilt. Undo: the section after the reverse mark.

-- 1. Keys and walls --------------------------------------------------------------------------------------------------
ALTER TABLE public.account_sum ADD CONSTRAINT account_sum_account
    FOREIGN KEY (tenant_id, account_code) REFERENCES public.gl_account (tenant_id, code);
ALTER TABLE public.account_rollup ADD CONSTRAINT account_rollup_entry
    FOREIGN KEY (tenant_id, created_xid, entry_id) REFERENCES public.outbox_message (tenant_id, created_xid, entry_id);
-- Today's rows move every few seconds: room on their page keeps their index still.
ALTER TABLE public.account_sum SET (fillfactor = 70);
ALTER TABLE public.account_rollup SET (fillfactor = 50);

CALL public.never_goes('account_sum', 'account_rollup');
CALL public.walled_by_tenant('account_sum', 'account_rollup');
CREATE TRIGGER account_sum_identity
    BEFORE UPDATE OF tenant_id, span, currency, layer, account_code, starts_on ON public.account_sum
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
ALTER TABLE public.account_sum ENABLE ALWAYS TRIGGER account_sum_identity;
CREATE TRIGGER account_rollup_identity BEFORE UPDATE OF tenant_id ON public.account_rollup
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
ALTER TABLE public.account_rollup ENABLE ALWAYS TRIGGER account_rollup_identity;

-- The point moves forward, and stays behind the oldest transaction that still writes: what would commit behind it afterwards
-- would be in no sum and in no tail, for ever.
CREATE FUNCTION public.account_rollup_wall() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.created_xid >= pg_snapshot_xmin(pg_current_snapshot()) THEN
        RAISE EXCEPTION USING ERRCODE = 'HP013', CONSTRAINT = 'account_rollup_bounded',
            MESSAGE = format('a transaction before %s may still be running', NEW.created_xid);
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF (NEW.created_xid, NEW.entry_id) <= (OLD.created_xid, OLD.entry_id) THEN
            RAISE EXCEPTION USING ERRCODE = 'HP013', CONSTRAINT = 'account_rollup_forward',
                MESSAGE = 'the sums of accounts move forward';
        END IF;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER account_rollup_wall BEFORE INSERT OR UPDATE ON public.account_rollup
    FOR EACH ROW EXECUTE FUNCTION public.account_rollup_wall();

ALTER TABLE public.account_rollup ENABLE ALWAYS TRIGGER account_rollup_wall;
GRANT SELECT ON public.account_sum, public.account_rollup TO hpts_app, hpts_readonly;

-- 2. Rolling up ------------------------------------------------------------------------------------------------------
-- Adds the next entries behind the tenant's point to its sums and moves the point: one transaction, so both or neither. Gives how
-- many entries it was; NULL while another one is at work. The first that would go beyond p_lines is the last one, because an
-- entry of an accrual has thousands of lines.
-- The lock is advisory: a row's lock would give the transaction its id at once, and hold back all that follow the journal for
-- as long as it sums. Each statement has its own snapshot, younger than the lock.
CREATE FUNCTION public.roll_up_accounts(p_entries int, p_lines bigint) RETURNS int LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off AS $$
DECLARE
    v_tenant uuid := NULLIF(current_setting('hpts.tenant_id', true), '')::uuid;
    v_xid xid8;
    v_entry uuid;
    v_entries uuid[];
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended(v_tenant::text || ' roll-up', 0)) THEN
        RETURN NULL;
    END IF;
    SELECT r.created_xid, r.entry_id INTO v_xid, v_entry FROM public.account_rollup r WHERE r.tenant_id = v_tenant;
    IF v_xid >= pg_snapshot_xmax(pg_current_snapshot()) THEN
        -- The rows came out of another cluster, whose transactions were numbered higher than this one's are now.
        RAISE EXCEPTION USING ERRCODE = 'HP013', CONSTRAINT = 'account_rollup_of_this_cluster',
            MESSAGE = 'the sums of accounts end at a transaction id that this database cluster has not reached';
    END IF;
    SELECT array_agg(p.entry_id ORDER BY p.created_xid, p.entry_id),
           (array_agg(p.created_xid ORDER BY p.created_xid DESC, p.entry_id DESC))[1]
    INTO v_entries, v_xid
    FROM (
        SELECT o.created_xid, o.entry_id,
               coalesce(sum(e.line_count) OVER (ORDER BY o.created_xid, o.entry_id ROWS UNBOUNDED PRECEDING EXCLUDE CURRENT ROW), 0)
                   AS lines_before
        FROM (SELECT m.created_xid, m.entry_id FROM public.outbox_message m
              WHERE m.tenant_id = v_tenant
                AND (m.created_xid, m.entry_id)
                    > (coalesce(v_xid, '0'), coalesce(v_entry, '00000000-0000-0000-0000-000000000000'))
                AND m.created_xid < pg_snapshot_xmin(pg_current_snapshot())
              ORDER BY m.created_xid, m.entry_id LIMIT p_entries) o
        LEFT JOIN LATERAL (SELECT j.line_count FROM public.journal_entry j
                           WHERE j.tenant_id = v_tenant AND j.id = o.entry_id OFFSET 0) e ON true) p
    WHERE p.lines_before < p_lines;
    IF v_entries IS NULL THEN
        RETURN 0;
    END IF;
    INSERT INTO public.account_sum AS s (tenant_id, span, currency, layer, account_code, starts_on, dr_minor, cr_minor)
    SELECT v_tenant, p.span, d.currency, d.layer, d.account_code, date_trunc(p.span, d.effective_at::timestamp)::date,
           sum(d.dr_minor), sum(d.cr_minor)
    FROM (SELECT l.account_code, l.currency, l.layer, l.effective_at,
                 coalesce(sum(l.amount_minor) FILTER (WHERE l.direction = 'DR'), 0) AS dr_minor,
                 coalesce(sum(l.amount_minor) FILTER (WHERE l.direction = 'CR'), 0) AS cr_minor
          FROM unnest(v_entries) AS e (id)
          CROSS JOIN LATERAL (SELECT j.account_code, j.currency, j.layer, j.effective_at, j.direction, j.amount_minor
                              FROM public.journal_line j WHERE j.tenant_id = v_tenant AND j.entry_id = e.id OFFSET 0) l
          GROUP BY 1, 2, 3, 4) d
    CROSS JOIN (VALUES ('day'), ('month'), ('year')) AS p (span)
    GROUP BY 2, 3, 4, 5, 6
    ON CONFLICT (tenant_id, span, currency, layer, account_code, starts_on)
    DO UPDATE SET dr_minor = s.dr_minor + excluded.dr_minor, cr_minor = s.cr_minor + excluded.cr_minor;
    INSERT INTO public.account_rollup AS r (tenant_id, created_xid, entry_id, rolled_up_at)
    VALUES (v_tenant, v_xid, v_entries[cardinality(v_entries)], clock_timestamp())
    ON CONFLICT (tenant_id) DO UPDATE SET created_xid = excluded.created_xid, entry_id = excluded.entry_id,
                                          rolled_up_at = excluded.rolled_up_at;
    RETURN cardinality(v_entries);
END $$;

-- The tenants that have something to roll up. One round trip for all; it looks at each from inside its wall, with the rights of
-- whoever asks. The caller's transaction must be its own, because it ends in no tenant.
CREATE FUNCTION public.accounts_to_roll_up() RETURNS SETOF uuid LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off AS $$
DECLARE
    v_horizon xid8 := pg_snapshot_xmin(pg_current_snapshot());
    v_tenant uuid;
    v_xid xid8;
    v_entry uuid;
BEGIN
    FOR v_tenant IN SELECT public.tenant_ids() LOOP
        PERFORM set_config('hpts.tenant_id', v_tenant::text, true);
        SELECT r.created_xid, r.entry_id INTO v_xid, v_entry FROM public.account_rollup r WHERE r.tenant_id = v_tenant;
        IF NOT FOUND THEN
            v_xid := '0';
            v_entry := '00000000-0000-0000-0000-000000000000';
        END IF;
        IF (SELECT o.created_xid < v_horizon FROM public.outbox_message o
            WHERE o.tenant_id = v_tenant
              AND (o.created_xid, o.entry_id) > (v_xid, v_entry)
            ORDER BY o.created_xid, o.entry_id LIMIT 1) THEN
            RETURN NEXT v_tenant;
        END IF;
    END LOOP;
    PERFORM set_config('hpts.tenant_id', '', true);
END $$;

-- 3. Reading ---------------------------------------------------------------------------------------------------------
-- Gross debits and credits of the tenant's accounts (or of one) at the end of a day: the years before its year, the months before
-- its month, the days up to it, and the entries behind the point that the sums have reached. STABLE: all of it is read by the
-- caller's own snapshot, in which sums and point are of one moment; so each entry counts once, and whole. Planned once for a
-- session, and never by a scan of the outbox, whatever the statistics say.
-- Sums out of another cluster (see above) do not count: the tail then is the whole journal.
CREATE FUNCTION public.account_balances(p_tenant uuid, p_currency text, p_layer text, p_as_of date, p_code text)
RETURNS TABLE (account_code text, dr_minor numeric, cr_minor numeric) LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_year date := date_trunc('year', p_as_of::timestamp);
    v_month date := date_trunc('month', p_as_of::timestamp);
    v_rolled boolean;
    v_xid xid8;
    v_entry uuid;
BEGIN
    SELECT r.created_xid, r.entry_id INTO v_xid, v_entry
    FROM public.account_rollup r
    WHERE r.tenant_id = p_tenant AND r.created_xid < pg_snapshot_xmax(pg_current_snapshot());
    v_rolled := FOUND;
    IF NOT v_rolled THEN
        -- As values and not in the condition: there, coalesce() would keep the index from beginning at the point.
        v_xid := '0';
        v_entry := '00000000-0000-0000-0000-000000000000';
    END IF;
    RETURN QUERY
    SELECT m.code, sum(m.dr), sum(m.cr)
    FROM (
        SELECT a.code, s.dr_minor AS dr, s.cr_minor AS cr
        FROM public.gl_account a
        CROSS JOIN (VALUES ('year', '-infinity'::date, v_year), ('month', v_year, v_month), ('day', v_month, p_as_of + 1))
            AS p (span, first, before)
        CROSS JOIN LATERAL (
            SELECT x.dr_minor, x.cr_minor FROM public.account_sum x
            WHERE x.tenant_id = p_tenant AND x.span = p.span AND x.currency = p_currency AND x.layer = p_layer
              AND x.account_code = a.code AND x.starts_on >= p.first AND x.starts_on < p.before OFFSET 0) s
        WHERE a.tenant_id = p_tenant AND (p_code IS NULL OR a.code = p_code) AND v_rolled
        UNION ALL
        SELECT l.account_code, CASE l.direction WHEN 'DR' THEN l.amount_minor ELSE 0 END,
               CASE l.direction WHEN 'CR' THEN l.amount_minor ELSE 0 END
        FROM public.outbox_message o
        CROSS JOIN LATERAL (
            SELECT j.account_code, j.direction, j.amount_minor FROM public.journal_line j
            WHERE j.tenant_id = p_tenant AND j.entry_id = o.entry_id AND j.currency = p_currency AND j.layer = p_layer
              AND j.effective_at <= p_as_of AND (p_code IS NULL OR j.account_code = p_code) OFFSET 0) l
        WHERE o.tenant_id = p_tenant
          AND (o.created_xid, o.entry_id) > (v_xid, v_entry)) m
    GROUP BY m.code;
END $$;

-- Every currency and layer that some line is in; read like the balances.
CREATE FUNCTION public.account_books(p_tenant uuid) RETURNS TABLE (currency text, layer text) LANGUAGE plpgsql STABLE
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
        -- As values and not in the condition: there, coalesce() would keep the index from beginning at the point.
        v_xid := '0';
        v_entry := '00000000-0000-0000-0000-000000000000';
    END IF;
    RETURN QUERY
    SELECT s.currency, s.layer FROM public.account_sum s
    WHERE s.tenant_id = p_tenant AND s.span = 'year' AND v_rolled
    UNION
    SELECT l.currency, l.layer
    FROM public.outbox_message o
    CROSS JOIN LATERAL (SELECT j.currency, j.layer FROM public.journal_line j
                        WHERE j.tenant_id = p_tenant AND j.entry_id = o.entry_id OFFSET 0) l
    WHERE o.tenant_id = p_tenant
      AND (o.created_xid, o.entry_id) > (v_xid, v_entry);
END $$;

REVOKE ALL ON FUNCTION public.roll_up_accounts, public.accounts_to_roll_up, public.account_balances, public.account_books
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.roll_up_accounts TO hpts_app;
GRANT EXECUTE ON FUNCTION public.accounts_to_roll_up, public.account_balances, public.account_books TO hpts_app, hpts_readonly;

-- reverse
DROP FUNCTION public.account_books(uuid);
DROP FUNCTION public.account_balances(uuid, text, text, date, text);
DROP FUNCTION public.accounts_to_roll_up();
DROP FUNCTION public.roll_up_accounts(int, bigint);
DROP TRIGGER account_rollup_wall ON public.account_rollup;
DROP FUNCTION public.account_rollup_wall();
