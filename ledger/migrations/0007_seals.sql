-- Sealed history: what a block must be, append-only, row security, grants; and which tenants have something to seal.
-- Rule: triggers and constraints refuse; they never compute. Undo: the section after the reverse mark.

-- 1. Keys and storage ------------------------------------------------------------------------------------------------
ALTER TABLE public.journal_seal ADD CONSTRAINT journal_seal_tenant FOREIGN KEY (tenant_id) REFERENCES public.tenant (id);
ALTER TABLE public.journal_seal ADD CONSTRAINT journal_seal_last_entry
    FOREIGN KEY (tenant_id, last_xid, last_entry_id) REFERENCES public.outbox_message (tenant_id, created_xid, entry_id);
-- Hashes do not compress.
ALTER TABLE public.journal_seal ALTER COLUMN leaves SET STORAGE EXTERNAL;

-- 2. Trees -----------------------------------------------------------------------------------------------------------
-- The leaves of the entries after one place of the bounded cursor through another, 32 bytes each, in its order (RFC 6962).
CREATE FUNCTION public.seal_leaves(p_tenant uuid, p_after_xid xid8, p_after uuid, p_xid xid8, p_through uuid)
RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT coalesce(string_agg(sha256('\x00'::bytea || convert_to(e.document, 'UTF8')), ''::bytea
                               ORDER BY o.created_xid, o.entry_id), ''::bytea)
    FROM public.outbox_message o
    CROSS JOIN LATERAL (SELECT j.document FROM public.journal_entry j
                        WHERE j.tenant_id = p_tenant AND j.id = o.entry_id OFFSET 0) e
    WHERE o.tenant_id = p_tenant
      AND (o.created_xid, o.entry_id) > (p_after_xid, p_after) AND (o.created_xid, o.entry_id) <= (p_xid, p_through)
$$;

-- The root over leaves: pairs are hashed level by level, the last node of an odd level goes up as it is.
CREATE FUNCTION public.merkle_root(p_leaves bytea) RETURNS bytea LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE
    level bytea := p_leaves;
BEGIN
    WHILE length(level) > 32 LOOP
        SELECT string_agg(CASE length(pair) WHEN 64 THEN sha256('\x01'::bytea || pair) ELSE pair END, ''::bytea ORDER BY i)
        INTO level
        FROM (SELECT i, substring(level FROM i * 64 + 1 FOR 64) AS pair
              FROM generate_series(0, (length(level) - 1) / 64) i) pairs;
    END LOOP;
    RETURN level;
END $$;

-- SHA-256 of the block's RFC 8785 JSON.
CREATE FUNCTION public.seal_hash(p_tenant uuid, p_number bigint, p_count int, p_root bytea, p_previous bytea)
RETURNS bytea LANGUAGE sql IMMUTABLE
RETURN sha256(convert_to('{"entry_count":' || p_count || ',"merkle_root":"' || encode(p_root, 'hex') || '","number":' || p_number
                         || ',"previous_hash":"' || encode(p_previous, 'hex') || '","tenant_id":"' || p_tenant || '"}', 'UTF8'));

-- 3. A block follows the one before it and seals all that lies between ----------------------------------------------
CALL public.append_only('journal_seal');

CREATE FUNCTION public.journal_seal_wall() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    head record;
BEGIN
    SELECT s.number, s.hash, s.last_xid, s.last_entry_id, s.signature INTO head
    FROM public.journal_seal s WHERE s.tenant_id = NEW.tenant_id ORDER BY s.number DESC LIMIT 1;
    IF NEW.number IS DISTINCT FROM coalesce(head.number, 0) + 1
       OR NEW.previous_hash IS DISTINCT FROM coalesce(head.hash, decode(repeat('00', 32), 'hex'))
       OR NEW.hash IS DISTINCT FROM
          public.seal_hash(NEW.tenant_id, NEW.number, NEW.entry_count, NEW.merkle_root, NEW.previous_hash)
       OR (head.signature IS NOT NULL AND NEW.signature IS NULL)
    THEN
        RAISE EXCEPTION USING ERRCODE = 'HP013', CONSTRAINT = 'journal_seal_chain',
            MESSAGE = format('block %s does not follow block %s', NEW.number, head.number);
    END IF;
    -- Final is what no running transaction could come before. Nothing between two blocks is left out.
    IF (NEW.last_xid < pg_snapshot_xmin(pg_current_snapshot())) IS NOT TRUE
       OR (head.number IS NOT NULL AND (NEW.last_xid, NEW.last_entry_id) <= (head.last_xid, head.last_entry_id))
       OR length(NEW.leaves) IS DISTINCT FROM NEW.entry_count * 32 OR (NEW.entry_count > 0) IS NOT TRUE
       OR NEW.leaves IS DISTINCT FROM
          public.seal_leaves(NEW.tenant_id, coalesce(head.last_xid, '0'),
                             coalesce(head.last_entry_id, '00000000-0000-0000-0000-000000000000'), NEW.last_xid, NEW.last_entry_id)
       OR NEW.merkle_root IS DISTINCT FROM public.merkle_root(NEW.leaves)
       OR (NEW.sealed_at BETWEEN transaction_timestamp() - interval '1 second' AND clock_timestamp() + interval '1 second')
          IS NOT TRUE
    THEN
        RAISE EXCEPTION USING ERRCODE = 'HP013', CONSTRAINT = 'journal_seal_whole',
            MESSAGE = format('block %s does not seal all entries since the one before it, or some that are not final', NEW.number);
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER journal_seal_wall BEFORE INSERT ON public.journal_seal
    FOR EACH ROW EXECUTE FUNCTION public.journal_seal_wall();
ALTER TABLE public.journal_seal ENABLE ALWAYS TRIGGER journal_seal_wall;

-- 4. A tenant sees and touches only its own --------------------------------------------------------------------------
CALL public.walled_by_tenant('journal_seal');

GRANT SELECT ON public.journal_seal TO hpts_app, hpts_readonly;
GRANT INSERT ON public.journal_seal TO hpts_app;

-- 5. Which tenants have something to seal ----------------------------------------------------------------------------
-- One round trip for all tenants, each looked at from inside its wall with the rights of whoever asks; the caller's transaction
-- must be its own, because it ends in no tenant.
--   waiting_since  when the oldest entry that is in no block was posted
--   is_final       no transaction that still runs could come before it
CREATE FUNCTION public.seal_work()
RETURNS TABLE (tenant_id uuid, waiting_since timestamptz, is_final boolean) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_horizon xid8 := pg_snapshot_xmin(pg_current_snapshot());
    v_xid xid8;
    v_entry uuid;
BEGIN
    FOR tenant_id IN SELECT public.tenant_ids() LOOP
        PERFORM set_config('hpts.tenant_id', tenant_id::text, true);
        SELECT s.last_xid, s.last_entry_id INTO v_xid, v_entry
        FROM public.journal_seal s WHERE s.tenant_id = seal_work.tenant_id ORDER BY s.number DESC LIMIT 1;
        SELECT o.created_xid < v_horizon,
               (SELECT j.posted_at FROM public.journal_entry j WHERE j.tenant_id = o.tenant_id AND j.id = o.entry_id)
        INTO is_final, waiting_since
        FROM public.outbox_message o
        WHERE o.tenant_id = seal_work.tenant_id
          AND (o.created_xid, o.entry_id) > (coalesce(v_xid, '0'), coalesce(v_entry, '00000000-0000-0000-0000-000000000000'))
        ORDER BY o.created_xid, o.entry_id LIMIT 1;
        IF FOUND THEN
            RETURN NEXT;
        END IF;
    END LOOP;
    PERFORM set_config('hpts.tenant_id', '', true);
END $$;

REVOKE ALL ON FUNCTION public.seal_leaves, public.merkle_root, public.seal_hash, public.seal_work FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.seal_leaves, public.merkle_root, public.seal_hash, public.seal_work TO hpts_app, hpts_readonly;

-- reverse
DROP FUNCTION public.seal_work();
DROP TRIGGER journal_seal_wall ON public.journal_seal;
DROP FUNCTION public.journal_seal_wall();
DROP FUNCTION public.seal_hash(uuid, bigint, int, bytea, bytea);
DROP FUNCTION public.merkle_root(bytea);
DROP FUNCTION public.seal_leaves(uuid, xid8, uuid, xid8, uuid);
