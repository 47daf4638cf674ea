-- The write path's two functions: open_posting takes the locks and reads the state, record_posting writes what the rules
-- decided. Both run as the owner with a fixed search path; the application may execute them and has no INSERT on the
-- journal. Neither decides anything about money.

-- 1. Open -------------------------------------------------------------------------------------------------------------
-- In order, each its own statement and so with its own snapshot under READ COMMITTED: set the tenant; try the key's lock
-- and never wait for it; look the key up; hold the periods; lock the loans in id order; read them.
--   p_key      the idempotency key, or NULL (command line, schedules)
--   p_loans    loans that the events name
--   p_entries  entries that the events are about (reversal, settlement, return): their loans are locked too
--   p_since    movements effective after this date come along as `later`, for availability and as-of figures
--   p_accrual  a date: each loan comes with what has been accrued for it
--   p_mode     'post'; 'close' to close a period, which no posting may run beside; 'read' to look without any lock
-- `state` is NULL when the key's lock is held elsewhere or the key has been used.
CREATE FUNCTION public.open_posting(
    p_tenant uuid, p_key text, p_loans uuid[], p_entries uuid[], p_since date, p_accrual date, p_mode text,
    OUT locked boolean, OUT fingerprint bytea, OUT response text, OUT state text
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    v_loans uuid[] := p_loans;
    v_entries uuid[];
    v_settling uuid[] := p_entries;
    v_seen bigint;
    v_latest date;
    v_entry_states json;
    v_later json;
    v_accruals json;
BEGIN
    -- An assignment: PERFORM would run a query.
    locked := set_config('hpts.tenant_id', p_tenant::text, true) IS NOT NULL;
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

    -- Postings share the periods, a close has them alone: so nothing is dated into a period while it closes.
    IF p_mode = 'post' THEN
        locked := pg_advisory_xact_lock_shared(hashtextextended(p_tenant::text || ' periods', 0)) IS NOT NULL;
    ELSIF p_mode = 'close' THEN
        locked := pg_advisory_xact_lock(hashtextextended(p_tenant::text || ' periods', 0)) IS NOT NULL;
    END IF;

    IF p_entries IS NOT NULL THEN
        -- NULL is filtered outside: as a condition on the lines it would invite the index of loans' histories.
        SELECT array_agg(DISTINCT x) FILTER (WHERE x IS NOT NULL), count(DISTINCT of_entry) INTO v_loans, v_seen
        FROM (SELECT unnest(p_loans) AS x, NULL::uuid AS of_entry
              UNION ALL
              SELECT l.loan_id, l.entry_id FROM public.journal_line l
              WHERE l.tenant_id = p_tenant AND l.entry_id = ANY (p_entries)) u;
    END IF;

    IF p_mode = 'read' THEN
        SELECT max(l.last_effective_at) INTO v_latest
        FROM public.loan l WHERE l.tenant_id = p_tenant AND l.id = ANY (v_loans);
    ELSE
        -- NO KEY: rows that point at the loan (terms, lines) stay insertable by others.
        SELECT max(held.last_effective_at) INTO v_latest
        FROM (SELECT l.last_effective_at FROM public.loan l
              WHERE l.tenant_id = p_tenant AND l.id = ANY (v_loans) ORDER BY l.id FOR NO KEY UPDATE) held;
    END IF;

    IF p_entries IS NOT NULL THEN
        IF v_seen <> (SELECT count(*) FROM public.journal_entry e WHERE e.tenant_id = p_tenant AND e.id = ANY (p_entries)) THEN
            -- One was committed between the two look-ups, so its loans are not locked: begin again.
            RAISE EXCEPTION USING ERRCODE = 'serialization_failure', MESSAGE = 'the entry has just been recorded';
        END IF;
        -- What settled them comes along, and what settled that.
        WHILE v_settling IS NOT NULL LOOP
            v_entries := v_entries || v_settling;
            SELECT array_agg(s.id) INTO v_settling
            FROM public.journal_entry s WHERE s.tenant_id = p_tenant AND s.settles_entry_id = ANY (v_settling);
        END LOOP;
        SELECT json_agg(json_build_object(
            'entry_id', e.id, 'event_type', e.event_type, 'effective_at', e.effective_at, 'document', e.document,
            'settles_entry_id', e.settles_entry_id,
            'reversed_by', (SELECT r.event_type FROM public.journal_entry r
                            WHERE r.tenant_id = p_tenant AND r.reverses_entry_id = e.id)))
        INTO v_entry_states
        FROM public.journal_entry e WHERE e.tenant_id = p_tenant AND e.id = ANY (v_entries);
    END IF;
    IF v_latest > p_since THEN
        SELECT json_agg(json_build_array(m.loan_id, m.effective_at, m.account_code, m.layer, m.net_minor)) INTO v_later
        FROM (SELECT j.loan_id, j.effective_at, j.account_code, j.layer,
                     sum(CASE j.direction WHEN 'DR' THEN j.amount_minor ELSE -j.amount_minor END) AS net_minor
              FROM public.journal_line j
              WHERE j.tenant_id = p_tenant AND j.loan_id = ANY (v_loans) AND j.effective_at > p_since
              GROUP BY 1, 2, 3, 4) m;
    END IF;
    IF p_accrual IS NOT NULL THEN
        SELECT json_agg(json_build_array(a.loan_id, a.revision, EXISTS (
            SELECT FROM public.journal_entry r WHERE r.tenant_id = p_tenant AND r.reverses_entry_id = a.entry_id)))
        INTO v_accruals
        FROM (SELECT DISTINCT ON (x.loan_id) x.loan_id, x.revision, x.entry_id
              FROM public.loan_accrual x
              WHERE x.tenant_id = p_tenant AND x.loan_id = ANY (v_loans) AND x.accrual_date = p_accrual
              ORDER BY x.loan_id, x.revision DESC) a;
    END IF;

    SELECT json_build_object(
        'posted_at', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'today', n.today, 'closed_through', (SELECT max(c.through_date) FROM public.period_close c WHERE c.tenant_id = p_tenant),
        'entries', v_entry_states, 'later', v_later, 'accruals', v_accruals,
        'loans', (
            SELECT json_agg(json_build_object(
                'loan_id', l.id, 'borrower_id', l.borrower_id, 'program_id', l.program_id, 'currency', l.currency,
                'opened_on', l.opened_on, 'principal_limit_minor', l.principal_limit_minor, 'version', l.version,
                'draws', l.draws, 'ended_as', l.ended_as,
                'day_count_convention', p.day_count_convention, 'waterfall', t.waterfall, 'accrual_mode', t.accrual_mode,
                'balances', (SELECT json_agg(json_build_array(b.account_code, b.layer, b.balance_minor))
                             FROM public.loan_balance b WHERE b.tenant_id = p_tenant AND b.loan_id = l.id)))
            FROM public.loan l
            JOIN public.program p ON p.tenant_id = p_tenant AND p.id = l.program_id
            CROSS JOIN LATERAL (
                SELECT pt.waterfall, pt.accrual_mode FROM public.program_terms pt
                WHERE pt.tenant_id = p_tenant AND pt.program_id = l.program_id
                  AND pt.effective_at <= coalesce(p_accrual, p_since, n.today)
                ORDER BY pt.effective_at DESC, pt.id DESC LIMIT 1) t
            WHERE l.tenant_id = p_tenant AND l.id = ANY (v_loans)))
    INTO state
    FROM (SELECT (clock_timestamp() AT TIME ZONE t.timezone)::date AS today
          FROM public.tenant t WHERE t.id = p_tenant OFFSET 0) n;
END $$;

-- 2. Record -----------------------------------------------------------------------------------------------------------
-- Writes entries, lines, balances, loan versions, accrual guards and outbox messages of one transaction, then the key.
-- Header and lines are taken out of the canonical document itself, so they cannot disagree with it; they go in by one
-- statement, as the walls demand.
--   p_entries  a JSON list, in the order of posting, of pairs: the entry's canonical document (a string), and what the document
--              does not hold: {content_hash (the document's SHA-256, which the wall counts again), settles_entry_id,
--              source_method, external_ref, facts,
--              versions: [per line, its loan's version after the entry or null], loans: [{loan_id, draws, ended_as, accrued_minor}], accruals: [{loan_id, revision, interest_minor}]}
--   p_key, p_fingerprint, p_response  the key row, when there is a key
-- Rows are looked up one by one, by full key (OFFSET 0): a join with the books could be planned on the statistics of an empty
-- table and stay so until the table is analysed. Plans are made once per session, not once per posting. Everything goes by
-- key, small tables too: reading them whole asks row security about each of their rows. It holds for the walls' plans as well.
CREATE FUNCTION public.record_posting(
    p_entries text, p_key text, p_fingerprint bytea, p_response text
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    v_tenant uuid := NULLIF(current_setting('hpts.tenant_id', true), '')::uuid;
    v_entries jsonb := p_entries::jsonb;
    v_document text;
    v_entry jsonb;
    v_lines jsonb;
    v_extra jsonb;
    v_versions jsonb;
    v_id uuid;
    v_effective_at date;
    v_posted_at timestamptz;
    v_loan uuid;
    v_row record;
BEGIN
    -- Assignments and not queries wherever possible: a simple expression costs a fraction of a query's start.
    FOR v_position IN 0 .. jsonb_array_length(v_entries) - 1 LOOP
        v_document := v_entries->v_position->>0;
        v_extra := v_entries->v_position->1;
        v_entry := v_document::jsonb;
        v_lines := v_entry->'lines';
        v_versions := v_extra->'versions';
        v_id := v_entry->>'journal_entry_id';
        v_effective_at := v_entry->>'effective_at';
        v_posted_at := v_entry->>'posted_at';
        v_loan := NULL;
        FOR v_row IN
            WITH header AS (
                INSERT INTO public.journal_entry (
                    tenant_id, id, event_type, loan_id, effective_at, posted_at, correlation_id, reverses_entry_id,
                    settles_entry_id, source_method, external_ref, line_count, facts, document, content_hash)
                VALUES ((v_entry->>'tenant_id')::uuid, v_id, v_entry->>'event_type',
                        (SELECT CASE WHEN min(l.loan) = max(l.loan) THEN min(l.loan) END
                         FROM (SELECT (e->>'loan_id') COLLATE "C" AS loan FROM jsonb_array_elements(v_lines) AS e) l)::uuid,
                        v_effective_at, v_posted_at, (v_entry->>'correlation_id')::uuid,
                        (v_entry->>'reverses_entry_id')::uuid, (v_extra->>'settles_entry_id')::uuid,
                        v_extra->>'source_method', v_extra->>'external_ref', jsonb_array_length(v_lines),
                        v_extra->'facts', v_document, decode(v_extra->>'content_hash', 'hex'))
            ), line AS (
                INSERT INTO public.journal_line (
                    tenant_id, entry_id, sequence, account_code, direction, amount_minor, currency, layer, loan_id,
                    borrower_id, loan_version, effective_at, external_ref)
                SELECT v_tenant, v_id, (l->>'sequence')::smallint, l->>'account_code', l->>'direction',
                       (l->>'amount_minor')::bigint, l->>'currency', l->>'layer', (l->>'loan_id')::uuid,
                       (l->>'borrower_id')::uuid, (v_versions->>(position::int - 1))::bigint, v_effective_at,
                       l->>'external_ref'
                FROM jsonb_array_elements(v_lines) WITH ORDINALITY AS e (l, position)
                RETURNING loan_id, loan_version, account_code, layer, currency, direction, amount_minor
            ), message AS (
                INSERT INTO public.outbox_message (tenant_id, entry_id) VALUES (v_tenant, v_id)
            )
            SELECT l.loan_id, l.loan_version, l.account_code, l.layer, l.currency, a.per_loan,
                   CASE l.direction WHEN a.normal_side THEN l.amount_minor ELSE -l.amount_minor END AS minor,
                   coalesce(a.role IN ('principal', 'interest', 'fees', 'suspense'), false) AS floored
            FROM line l
            CROSS JOIN LATERAL (SELECT a.per_loan, a.normal_side, a.role FROM public.gl_account a
                                WHERE a.tenant_id = v_tenant AND a.code = l.account_code OFFSET 0) a
            WHERE l.loan_id IS NOT NULL
            -- What adds comes first, so that two lines on one balance meet its floor no sooner than their sum does.
            ORDER BY l.loan_id, minor DESC
        LOOP
            IF v_row.per_loan THEN
                -- Not ON CONFLICT: it would hold the movement itself against the wall that keeps balances above zero.
                UPDATE public.loan_balance SET balance_minor = balance_minor + v_row.minor
                WHERE tenant_id = v_tenant AND loan_id = v_row.loan_id
                  AND account_code = v_row.account_code AND layer = v_row.layer;
                IF NOT FOUND THEN
                    INSERT INTO public.loan_balance (tenant_id, loan_id, account_code, layer, currency, balance_minor, floored)
                    VALUES (v_tenant, v_row.loan_id, v_row.account_code, v_row.layer, v_row.currency, v_row.minor,
                            v_row.floored);
                END IF;
            END IF;
            CONTINUE WHEN v_row.loan_id = v_loan;
            v_loan := v_row.loan_id;
            -- The version that the state was read at is the one that moves: a writer that did not hold the lock fails here.
            UPDATE public.loan
            SET version = v_row.loan_version, last_effective_at = greatest(last_effective_at, v_effective_at),
                last_posted_at = v_posted_at
            WHERE tenant_id = v_tenant AND id = v_loan AND version = v_row.loan_version - 1;
            IF NOT FOUND THEN
                RAISE EXCEPTION USING ERRCODE = 'HP007', CONSTRAINT = 'loan_version_moved',
                    MESSAGE = 'a loan moved after its state was read: the posting did not hold its lock';
            END IF;
        END LOOP;

        -- Most entries are no more than what has been written by now: one look says so.
        CONTINUE WHEN NOT v_extra ?| '{loans,accruals}' AND v_entry->>'event_type' <> ALL ('{accrual,reversal}');

        -- What the entry makes of its loans, when it is more than their balances: lent, ended, open again.
        IF v_extra ? 'loans' THEN
            -- One by one, too: at most two loans, and never a join.
            FOR v_row IN
                SELECT m.* FROM jsonb_to_recordset(v_extra->'loans') AS m (loan_id uuid, draws int, ended_as text, accrued_minor bigint)
            LOOP
                UPDATE public.loan
                SET draws = v_row.draws, ended_as = v_row.ended_as,
                    interest_posted_minor = interest_posted_minor + coalesce(v_row.accrued_minor, 0)
                WHERE tenant_id = v_tenant AND id = v_row.loan_id;
            END LOOP;
        END IF;
        IF (v_entry->>'event_type' = 'accrual') IS DISTINCT FROM (v_extra ? 'accruals') THEN
            RAISE EXCEPTION USING ERRCODE = 'HP006', CONSTRAINT = 'loan_accrual_with_entry',
                MESSAGE = 'an accrual, and nothing else, brings the dates that it uses up';
        END IF;
        IF v_entry->>'event_type' = 'reversal' THEN
            -- An accrual of the engine gives its days back: they earn nothing until that date is accrued again.
            WITH given_back AS (
                SELECT x.loan_id, x.since, x.accrual_date, x.revision, x.interest_minor
                FROM (SELECT DISTINCT (l->>'loan_id')::uuid AS loan_id FROM jsonb_array_elements(v_lines) AS l) named
                CROSS JOIN (SELECT o.id, o.effective_at FROM public.journal_entry o
                            WHERE o.tenant_id = v_tenant AND o.id = (v_entry->>'reverses_entry_id')::uuid OFFSET 0) o
                JOIN public.loan_accrual x
                    ON x.tenant_id = v_tenant AND x.loan_id = named.loan_id AND x.accrual_date = o.effective_at
                       AND x.entry_id = o.id AND x.since IS NOT NULL
            ), paused AS (
                INSERT INTO public.accrual_pause (tenant_id, loan_id, from_date, to_date, reversed_revision, actor)
                SELECT v_tenant, g.loan_id, g.since + 1, g.accrual_date, g.revision, v_entry->>'actor' FROM given_back g
            )
            UPDATE public.loan l SET interest_posted_minor = l.interest_posted_minor - g.interest_minor
            FROM given_back g
            WHERE l.tenant_id = v_tenant AND l.id = g.loan_id;
        END IF;
        IF v_extra ? 'accruals' THEN
            INSERT INTO public.loan_accrual (tenant_id, loan_id, accrual_date, revision, entry_id, interest_minor)
            SELECT v_tenant, a.loan_id, v_effective_at, a.revision, v_id, a.interest_minor
            FROM jsonb_to_recordset(v_extra->'accruals') AS a (loan_id uuid, revision smallint, interest_minor bigint);
        END IF;
    END LOOP;
    IF p_key IS NOT NULL THEN
        INSERT INTO public.idempotency_key (tenant_id, key, fingerprint, response)
        VALUES (v_tenant, p_key, p_fingerprint, p_response);
    END IF;
END $$;

REVOKE ALL ON FUNCTION public.open_posting, public.record_posting FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.open_posting, public.record_posting TO hpts_app;
