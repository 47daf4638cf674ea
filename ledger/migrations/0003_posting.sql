-- The write path's two functions: open_posting takes the locks and reads the state, record_posting writes what the rules
-- decided. Both run as the owner with a fixed search path; the application may execute them and has no INSERT on the
-- journal. Neither decides anything about money.

-- 1. Open -------------------------------------------------------------------------------------------------------------
-- In order, each its own statement and so with its own snapshot under READ COMMITTED: set the tenant; try the key's lock
-- and never wait for it; look the key up; lock the loans in id order; read them.
--   p_key      the idempotency key, or NULL (command line, schedules)
--   p_loans    loans that the event names
--   p_entry    an entry that the event is about (reversal, settlement): its loans are locked too
--   p_since    movements effective after this date come along as `later`, for availability and as-of figures
--   p_accrual  a date: each loan comes with what has been accrued for it
-- `state` is NULL when the key's lock is held elsewhere or the key has been used.
CREATE FUNCTION public.open_posting(
    p_tenant uuid, p_key text, p_loans uuid[], p_entry uuid, p_since date, p_accrual date,
    OUT locked boolean, OUT fingerprint bytea, OUT response text, OUT state text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_loans uuid[] := p_loans;
    v_today date;
    v_entry json;
    v_programs json;
    v_state json;
BEGIN
    PERFORM set_config('hpts.tenant_id', p_tenant::text, true);
    locked := true;
    IF p_key IS NOT NULL THEN
        locked := pg_try_advisory_xact_lock(hashtextextended(p_tenant::text || ' ' || p_key, 0));
        IF NOT locked THEN
            RETURN;
        END IF;
        SELECT k.fingerprint, k.response INTO fingerprint, response
        FROM public.idempotency_key k WHERE k.tenant_id = p_tenant AND k.key = p_key;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;

    IF p_entry IS NOT NULL THEN
        SELECT array_agg(DISTINCT x) INTO v_loans
        FROM (SELECT unnest(p_loans) AS x
              UNION ALL
              SELECT l.loan_id FROM public.journal_line l
              WHERE l.tenant_id = p_tenant AND l.entry_id = p_entry AND l.loan_id IS NOT NULL) u;
    END IF;

    -- NO KEY: rows that point at the loan (terms, lines) stay insertable by others.
    PERFORM FROM public.loan l WHERE l.tenant_id = p_tenant AND l.id = ANY (v_loans) ORDER BY l.id FOR NO KEY UPDATE;

    IF p_entry IS NOT NULL THEN
        SELECT json_build_object(
            'entry_id', e.id, 'event_type', e.event_type, 'effective_at', e.effective_at, 'document', e.document,
            'settles_entry_id', e.settles_entry_id,
            'reversed_by', (SELECT r.event_type FROM public.journal_entry r
                            WHERE r.tenant_id = p_tenant AND r.reverses_entry_id = p_entry),
            'settled_by', (SELECT s.id FROM public.journal_entry s
                           WHERE s.tenant_id = p_tenant AND s.settles_entry_id = p_entry))
        INTO v_entry
        FROM public.journal_entry e WHERE e.tenant_id = p_tenant AND e.id = p_entry;
    END IF;

    SELECT (clock_timestamp() AT TIME ZONE t.timezone)::date INTO v_today FROM public.tenant t WHERE t.id = p_tenant;

    SELECT json_agg(json_build_object(
        'loan_id', l.id, 'borrower_id', l.borrower_id, 'program_id', l.program_id, 'currency', l.currency,
        'opened_on', l.opened_on, 'principal_limit_minor', l.principal_limit_minor, 'version', l.version,
        'day_count_convention', p.day_count_convention, 'waterfall', t.waterfall, 'accrual_mode', t.accrual_mode,
        'balances', (SELECT json_agg(json_build_array(b.account_code, b.layer, b.balance_minor))
                     FROM public.loan_balance b WHERE b.tenant_id = p_tenant AND b.loan_id = l.id),
        'later', CASE WHEN l.last_effective_at > p_since THEN (
            SELECT json_agg(json_build_array(m.effective_at, m.account_code, m.layer, m.net_minor))
            FROM (SELECT j.effective_at, j.account_code, j.layer,
                         sum(CASE j.direction WHEN 'DR' THEN j.amount_minor ELSE -j.amount_minor END)::bigint AS net_minor
                  FROM public.journal_line j
                  WHERE j.tenant_id = p_tenant AND j.loan_id = l.id AND j.effective_at > p_since
                  GROUP BY 1, 2, 3) m) END,
        'accrual', CASE WHEN p_accrual IS NOT NULL THEN (
            SELECT json_build_array(a.revision, EXISTS (
                SELECT FROM public.journal_entry r WHERE r.tenant_id = p_tenant AND r.reverses_entry_id = a.entry_id))
            FROM public.loan_accrual a
            WHERE a.tenant_id = p_tenant AND a.loan_id = l.id AND a.accrual_date = p_accrual
            ORDER BY a.revision DESC LIMIT 1) END))
    INTO v_state
    FROM public.loan l
    JOIN public.program p ON p.tenant_id = p_tenant AND p.id = l.program_id
    CROSS JOIN LATERAL (
        SELECT pt.waterfall, pt.accrual_mode FROM public.program_terms pt
        WHERE pt.tenant_id = p_tenant AND pt.program_id = l.program_id AND pt.effective_at <= coalesce(p_accrual, p_since, v_today)
        ORDER BY pt.effective_at DESC, pt.id DESC LIMIT 1) t
    WHERE l.tenant_id = p_tenant AND l.id = ANY (v_loans);

    state := json_build_object(
        'posted_at', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'today', v_today, 'loans', coalesce(v_state, '[]'::json), 'entry', v_entry);
END $$;

-- 2. Record -----------------------------------------------------------------------------------------------------------
-- Writes entries, lines, balances, loan versions, accrual guards and outbox messages of one transaction in one statement,
-- then the key. Header and lines are taken out of the canonical document itself, so they cannot disagree with it.
--   p_documents  the entries' canonical JSON, in the order of posting
--   p_extras     per entry what the document does not hold, JSON: {loan_id, settles_entry_id, source_method, external_ref,
--                facts, versions: {loan: version after the entry}, accruals: [{loan_id, revision, interest_minor}]}
--   p_key, p_fingerprint, p_response  the key row, when there is a key
CREATE FUNCTION public.record_posting(
    p_documents text[], p_extras text[], p_key text, p_fingerprint bytea, p_response text
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_tenant uuid := NULLIF(current_setting('hpts.tenant_id', true), '')::uuid;
    v_expected bigint;
    v_moved bigint;
BEGIN
    IF cardinality(p_documents) > 0 THEN
        WITH input AS MATERIALIZED (
            SELECT i.document, i.document::jsonb AS entry, i.extra::jsonb AS extra
            FROM unnest(p_documents, p_extras) AS i (document, extra)
        ), line AS MATERIALIZED (
            SELECT (i.entry->>'tenant_id')::uuid AS tenant_id, (i.entry->>'journal_entry_id')::uuid AS entry_id,
                   (i.entry->>'effective_at')::date AS effective_at, (i.entry->>'posted_at')::timestamptz AS posted_at,
                   l.*, (i.extra->'versions'->>l.loan_id::text)::bigint AS loan_version
            FROM input i
            CROSS JOIN LATERAL jsonb_to_recordset(i.entry->'lines') AS l (
                sequence smallint, account_code text, direction text, amount_minor bigint, currency text, layer text,
                loan_id uuid, borrower_id uuid, external_ref text)
        ), new_entry AS (
            INSERT INTO public.journal_entry (
                tenant_id, id, event_type, loan_id, effective_at, posted_at, correlation_id, reverses_entry_id,
                settles_entry_id, source_method, external_ref, line_count, facts, document, content_hash)
            SELECT (entry->>'tenant_id')::uuid, (entry->>'journal_entry_id')::uuid, entry->>'event_type',
                   (extra->>'loan_id')::uuid, (entry->>'effective_at')::date, (entry->>'posted_at')::timestamptz,
                   (entry->>'correlation_id')::uuid, (entry->>'reverses_entry_id')::uuid, (extra->>'settles_entry_id')::uuid,
                   extra->>'source_method', extra->>'external_ref', jsonb_array_length(entry->'lines'), extra->'facts',
                   document, sha256(convert_to(document, 'UTF8'))
            FROM input
        ), new_line AS (
            INSERT INTO public.journal_line (
                tenant_id, entry_id, sequence, account_code, direction, amount_minor, currency, layer, loan_id, borrower_id,
                loan_version, effective_at, external_ref)
            SELECT tenant_id, entry_id, sequence, account_code, direction, amount_minor, currency, layer, loan_id,
                   borrower_id, loan_version, effective_at, external_ref
            FROM line
        ), movement AS (
            SELECT l.tenant_id, l.loan_id, l.account_code, l.layer, l.currency,
                   sum(CASE l.direction WHEN a.normal_side THEN l.amount_minor ELSE -l.amount_minor END)::bigint AS minor,
                   coalesce(a.role IN ('principal', 'interest', 'fees', 'suspense'), false) AS floored
            FROM line l
            JOIN public.gl_account a ON a.tenant_id = l.tenant_id AND a.code = l.account_code AND a.per_loan
            GROUP BY l.tenant_id, l.loan_id, l.account_code, l.layer, l.currency, a.role
        ), moved_balance AS (
            -- Not ON CONFLICT: it would hold the movement itself against the wall that keeps balances above zero.
            UPDATE public.loan_balance b
            SET balance_minor = b.balance_minor + m.minor
            FROM movement m
            WHERE b.tenant_id = m.tenant_id AND b.loan_id = m.loan_id
              AND b.account_code = m.account_code AND b.layer = m.layer
        ), new_balance AS (
            INSERT INTO public.loan_balance (tenant_id, loan_id, account_code, layer, currency, balance_minor, floored)
            SELECT m.tenant_id, m.loan_id, m.account_code, m.layer, m.currency, m.minor, m.floored
            FROM movement m
            WHERE NOT EXISTS (SELECT FROM public.loan_balance b
                              WHERE b.tenant_id = m.tenant_id AND b.loan_id = m.loan_id
                                AND b.account_code = m.account_code AND b.layer = m.layer)
        ), touched AS (
            SELECT tenant_id, loan_id, min(loan_version) AS first, max(loan_version) AS last,
                   max(effective_at) AS effective_at, max(posted_at) AS posted_at
            FROM line WHERE loan_id IS NOT NULL GROUP BY tenant_id, loan_id
        ), moved AS (
            -- The version that the state was read at is the one that moves: a writer that did not hold the lock fails here.
            UPDATE public.loan o
            SET version = t.last, last_effective_at = greatest(o.last_effective_at, t.effective_at),
                last_posted_at = t.posted_at
            FROM touched t
            WHERE o.tenant_id = t.tenant_id AND o.id = t.loan_id AND o.version = t.first - 1
            RETURNING 1
        ), new_accrual AS (
            INSERT INTO public.loan_accrual (tenant_id, loan_id, accrual_date, revision, entry_id, interest_minor)
            SELECT (i.entry->>'tenant_id')::uuid, a.loan_id, (i.entry->>'effective_at')::date, a.revision,
                   (i.entry->>'journal_entry_id')::uuid, a.interest_minor
            FROM input i
            CROSS JOIN LATERAL jsonb_to_recordset(i.extra->'accruals') AS a (
                loan_id uuid, revision smallint, interest_minor bigint)
        ), new_message AS (
            INSERT INTO public.outbox_message (tenant_id, entry_id)
            SELECT (entry->>'tenant_id')::uuid, (entry->>'journal_entry_id')::uuid FROM input
        )
        SELECT (SELECT count(*) FROM touched), (SELECT count(*) FROM moved) INTO v_expected, v_moved;
        IF v_moved IS DISTINCT FROM v_expected THEN
            RAISE EXCEPTION USING ERRCODE = 'HP007', CONSTRAINT = 'loan_version_moved',
                MESSAGE = 'a loan moved after its state was read: the posting did not hold its lock';
        END IF;
    END IF;
    IF p_key IS NOT NULL THEN
        INSERT INTO public.idempotency_key (tenant_id, key, fingerprint, response)
        VALUES (v_tenant, p_key, p_fingerprint, p_response);
    END IF;
END $$;

REVOKE ALL ON FUNCTION public.open_posting, public.record_posting FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.open_posting, public.record_posting TO hpts_app;
