-- The engine: interest as exact integers, and the statement that accrues a chunk of a run.
-- Rule: arithmetic here is that of ledger/interest.py, which knows nothing of rows; the entry of a chunk is made as
-- record_posting makes one, and meets the same walls. Undo: the section after the reverse mark.

-- 1. Arithmetic ------------------------------------------------------------------------------------------------------
-- A year fraction counts 1/1,603,080 of a year (the least common multiple of 360, 365 and 366).

-- Since the year 1. Plain expressions, so that PostgreSQL takes them into the caller's.
CREATE FUNCTION public.days_in_leap_years(day date) RETURNS int LANGUAGE sql IMMUTABLE
RETURN 366 * ((extract(year FROM day)::int - 1) / 4 - (extract(year FROM day)::int - 1) / 100
              + (extract(year FROM day)::int - 1) / 400)
       + CASE WHEN extract(year FROM day)::int % 4 = 0
                   AND (extract(year FROM day)::int % 100 <> 0 OR extract(year FROM day)::int % 400 = 0)
              THEN extract(doy FROM day)::int - 1 ELSE 0 END;

-- ISDA 2006 section 4.16: (d) ACT_365, (e) ACT_360, (b) ACT_ACT, (f) 30_360. NULL for anything else.
CREATE FUNCTION public.year_fraction(convention text, start date, stop date) RETURNS bigint LANGUAGE sql IMMUTABLE
RETURN CASE convention
    WHEN 'ACT_365' THEN (stop - start)::bigint * 4392
    WHEN 'ACT_360' THEN (stop - start)::bigint * 4453
    WHEN 'ACT_ACT' THEN (stop - start)::bigint * 4392
                        - 12 * (public.days_in_leap_years(stop) - public.days_in_leap_years(start))::bigint
    WHEN '30_360' THEN 4453 * (360 * (extract(year FROM stop) - extract(year FROM start))
                               + 30 * (extract(month FROM stop) - extract(month FROM start))
                               + CASE WHEN extract(day FROM stop) = 31 AND extract(day FROM start) >= 30 THEN 30
                                      ELSE extract(day FROM stop) END
                               - least(extract(day FROM start), 30))::bigint
END;

-- Exact interest, in 1/(10,000 x 1,603,080) of a minor unit, in whole minor units; a tie goes to the even one. Figures of less
-- than some hundred million minor units take the short way of 64 bits.
CREATE FUNCTION public.minor_units(exact numeric) RETURNS numeric LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE
    small bigint;
    whole numeric;
BEGIN
    IF exact BETWEEN -9000000000000000000 AND 9000000000000000000 THEN
        small := exact;
        RETURN small / 16030800000 + CASE
            WHEN 2 * abs(small % 16030800000) > 16030800000
              OR (2 * abs(small % 16030800000) = 16030800000 AND small / 16030800000 % 2 <> 0) THEN sign(small) ELSE 0 END;
    END IF;
    whole := div(exact, 16030800000);
    RETURN whole + CASE
        WHEN 2 * abs(exact - whole * 16030800000) > 16030800000
          OR (2 * abs(exact - whole * 16030800000) = 16030800000 AND mod(whole, 2) <> 0) THEN sign(exact) ELSE 0 END;
END $$;

-- 2. Terms -----------------------------------------------------------------------------------------------------------
-- How interest grows over the days after `since`, through `until`. `accrues`: NULL where no terms are in force.
CREATE TYPE public.interest_term AS (since date, until date, accrues boolean, annual_rate_bps int, convention text);

-- The pauses in force of the loans in a range of ids (both included). Of two from one date the later one holds; those that a
-- reversal made, until the date has been accrued again.
CREATE FUNCTION public.accrual_pauses(p_tenant uuid, p_first uuid, p_last uuid, p_redo date)
RETURNS TABLE (id bigint, loan_id uuid, from_date date, to_date date, reversed_revision smallint)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT p.id, p.loan_id, p.from_date, p.to_date, p.reversed_revision
    FROM public.accrual_pause p
    WHERE p.tenant_id = p_tenant AND p.loan_id >= p_first AND p.loan_id <= p_last
      AND CASE WHEN p.reversed_revision IS NULL
               THEN NOT EXISTS (SELECT FROM public.accrual_pause o
                                WHERE o.tenant_id = p.tenant_id AND o.loan_id = p.loan_id AND o.from_date = p.from_date
                                  AND o.reversed_revision IS NULL AND o.id > p.id)
               ELSE p.to_date IS DISTINCT FROM p_redo
                    AND NOT EXISTS (SELECT FROM public.loan_accrual x
                                    WHERE x.tenant_id = p.tenant_id AND x.loan_id = p.loan_id AND x.accrual_date = p.to_date
                                      AND x.revision > p.reversed_revision) END
$$;

-- A program's terms, or a loan's: its own come before its program's, each member by itself, and it may be paused.
--   p_redo  a date that is about to be accrued again: what its reversal paused counts
CREATE FUNCTION public.interest_terms(p_tenant uuid, p_program uuid, p_loan uuid, p_redo date) RETURNS public.interest_term[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH program AS (
        SELECT t.id, t.effective_at, t.annual_rate_bps, t.accrual_mode
        FROM public.program_terms t WHERE t.tenant_id = p_tenant AND t.program_id = p_program
    ), own AS (
        SELECT t.id, t.effective_at, t.annual_rate_bps, t.day_count_convention
        FROM public.loan_terms t
        WHERE t.tenant_id = p_tenant AND t.loan_id = p_loan
          AND NOT EXISTS (SELECT FROM public.journal_entry r WHERE r.tenant_id = t.tenant_id AND r.reverses_entry_id = t.entry_id)
    ), pause AS (
        SELECT p.from_date - 1 AS since, coalesce(p.to_date, 'infinity') AS until
        FROM public.accrual_pauses(p_tenant, p_loan, p_loan, p_redo) p
    ), point AS (
        SELECT '-infinity'::date AS since
        UNION SELECT effective_at FROM program
        UNION SELECT effective_at - 1 FROM program  -- The mode of a date is about the day before it.
        UNION SELECT effective_at FROM own
        UNION SELECT since FROM pause
        UNION SELECT until FROM pause WHERE isfinite(until)
    ), term AS (
        SELECT s.since,
               (SELECT t.accrual_mode = 'engine' FROM program t WHERE t.effective_at <= s.since + 1
                ORDER BY t.effective_at DESC, t.id DESC LIMIT 1)
               AND NOT EXISTS (SELECT FROM pause p WHERE p.since <= s.since AND s.since < p.until) AS accrues,
               coalesce((SELECT t.annual_rate_bps FROM own t
                         WHERE t.effective_at <= s.since AND t.annual_rate_bps IS NOT NULL
                         ORDER BY t.effective_at DESC, t.id DESC LIMIT 1),
                        (SELECT t.annual_rate_bps FROM program t WHERE t.effective_at <= s.since
                         ORDER BY t.effective_at DESC, t.id DESC LIMIT 1)) AS rate,
               coalesce((SELECT t.day_count_convention FROM own t
                         WHERE t.effective_at <= s.since AND t.day_count_convention IS NOT NULL
                         ORDER BY t.effective_at DESC, t.id DESC LIMIT 1),
                        (SELECT p.day_count_convention FROM public.program p
                         WHERE p.tenant_id = p_tenant AND p.id = p_program)) AS convention
        FROM point s
    ), change AS (
        SELECT *, row_number() OVER w > 1
                  AND (accrues, rate, convention) IS NOT DISTINCT FROM (lag(accrues) OVER w, lag(rate) OVER w, lag(convention) OVER w)
                  AS same
        FROM term t WINDOW w AS (ORDER BY since)
    )
    SELECT array_agg(row (since, until, accrues, rate, convention)::public.interest_term ORDER BY since)
    FROM (SELECT since, lead(since, 1, 'infinity') OVER (ORDER BY since) AS until, accrues, rate, convention
          FROM change WHERE NOT same) c
$$;

-- What a minor unit of principal earns from one date to another (below zero when the second is the earlier one), as
-- differences of fractions since the loan's opening, so that a period split anywhere sums to the whole, under 30_360 too.
-- NULL when no terms are in force on some day.
--   p_rate, p_convention  a loan's own, where they hold for the whole time; NULL: those of the terms
CREATE FUNCTION public.interest_between(
    p_terms public.interest_term[], p_opened date, p_start date, p_stop date, p_rate int, p_convention text
) RETURNS numeric LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_first date := greatest(least(p_start, p_stop), p_opened);
    v_last date := greatest(p_start, p_stop, p_opened);
    v_total numeric := 0;
    term public.interest_term;
BEGIN
    FOREACH term IN ARRAY p_terms LOOP
        CONTINUE WHEN term.until <= v_first;
        EXIT WHEN term.since >= v_last;
        IF term.accrues IS NULL OR (p_rate IS NULL AND term.annual_rate_bps IS NULL) THEN
            RETURN NULL;
        END IF;
        CONTINUE WHEN NOT term.accrues;
        v_total := v_total + coalesce(p_rate, term.annual_rate_bps)::numeric * (
            public.year_fraction(coalesce(p_convention, term.convention), p_opened, least(term.until, v_last))
            - public.year_fraction(coalesce(p_convention, term.convention), p_opened, greatest(term.since, v_first)));
    END LOOP;
    RETURN CASE WHEN p_stop < p_start THEN -v_total ELSE v_total END;
END $$;

-- What was known of a program's terms up to a date, so that a change behind it is noticed.
CREATE FUNCTION public.terms_known(p_terms public.interest_term[], p_through date) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(concat_ws(' ', t.since, t.accrues, t.annual_rate_bps, t.convention), ',' ORDER BY t.since)
    FROM unnest(p_terms) t WHERE t.since < p_through
$$;

-- Brings a loan's exact figure from one date to a later one: today's principal for the time between, and what lines posted
-- since the first was counted change by their own dates. NULL when no terms are in force on some day.
--   p_exact, p_version  the figure through p_start, and the loan's version when it was counted; 0 and 0 from the opening
--   p_principal         at the version p_upto, behind which no line counts; NULL when p_version is 0
CREATE FUNCTION public.interest_onward(
    p_tenant uuid, p_loan uuid, p_opened date, p_terms public.interest_term[], p_rate int, p_convention text,
    p_exact numeric, p_start date, p_version bigint, p_stop date, p_upto bigint, p_principal numeric
) RETURNS numeric LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_exact numeric := p_exact;
    v_earned numeric := public.interest_between(p_terms, p_opened, p_start, p_stop, p_rate, p_convention);
    v_principal numeric := 0;
    v_move record;
BEGIN
    IF v_earned IS NULL OR (v_earned = 0 AND p_version = 0) THEN
        RETURN v_exact + v_earned;
    END IF;
    FOR v_move IN
        SELECT least(j.effective_at, p_stop) AS day,
               sum(CASE j.direction WHEN 'DR' THEN j.amount_minor ELSE -j.amount_minor END) AS net
        FROM public.journal_line j
        WHERE j.tenant_id = p_tenant AND j.loan_id = p_loan AND j.loan_version > p_version AND j.loan_version <= p_upto
          AND j.layer = 'SETTLED'
          AND j.account_code = (SELECT a.code FROM public.gl_account a WHERE a.tenant_id = p_tenant AND a.role = 'principal')
        GROUP BY 1
    LOOP
        v_principal := v_principal + v_move.net;
        v_exact := v_exact + v_move.net * public.interest_between(p_terms, p_opened, v_move.day, p_start, p_rate, p_convention);
    END LOOP;
    RETURN v_exact + coalesce(p_principal, v_principal) * v_earned;
END $$;

-- A loan's exact interest from its opening through a date, by the lines up to a version and today's terms. NULL when no terms
-- are in force on some day.
CREATE FUNCTION public.loan_interest(p_tenant uuid, p_loan uuid, p_through date, p_version bigint) RETURNS numeric
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT public.interest_onward(
        p_tenant, l.id, l.opened_on, public.interest_terms(p_tenant, l.program_id, l.id, NULL), NULL, NULL,
        0, l.opened_on, 0, p_through, p_version, NULL)
    FROM public.loan l WHERE l.tenant_id = p_tenant AND l.id = p_loan
$$;

-- The smallest balance of a loan's account at the end of any date from one on.
CREATE FUNCTION public.least_balance(p_tenant uuid, p_loan uuid, p_account text, p_from date) RETURNS numeric
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT min(running) FROM (
        SELECT j.effective_at, sum(sum(CASE j.direction WHEN a.normal_side THEN j.amount_minor ELSE -j.amount_minor END))
                                   OVER (ORDER BY j.effective_at) AS running,
               lead(j.effective_at) OVER (ORDER BY j.effective_at) AS next
        FROM public.journal_line j
        JOIN public.gl_account a ON a.tenant_id = j.tenant_id AND a.code = j.account_code
        WHERE j.tenant_id = p_tenant AND j.loan_id = p_loan AND j.account_code = p_account AND j.layer = 'SETTLED'
        GROUP BY j.effective_at) r
    WHERE next IS NULL OR next > p_from
$$;

-- 3. A chunk ---------------------------------------------------------------------------------------------------------
-- Takes the next chunk of a run that nobody else holds, brings its loans to the run's date, and marks it done: everything in
-- the caller's transaction, so a chunk is done or has not been touched. `number` is NULL when no chunk is left to take.
--   p_number  take that one, when it is free; NULL: the first that is
--
-- A loan's exact figure moves on from what it was (`interest_exact` through `accrued_through`): today's principal for the days
-- since, and what lines posted since then change by their own dates. When something behind that date has changed its terms, it
-- is counted anew from the opening. The entry has two lines per loan; three when a correction takes more than interest holds.
CREATE FUNCTION public.accrue_chunk(
    p_run uuid, p_number int, OUT number int, OUT accrued bigint, OUT visited bigint, OUT excepted bigint
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET enable_memoize = off AS $$
DECLARE
    v_tenant uuid := NULLIF(current_setting('hpts.tenant_id', true), '')::uuid;
    v_run public.accrual_run;
    v_chunk public.accrual_chunk;
    v_first uuid;
    v_last uuid;
    v_terms public.interest_term[];
    v_by_client boolean;
    v_ids uuid[];
    v_id uuid;
    v_posted_at timestamptz;
    v_head text;
    v_tail text;
    v_total numeric;
    c_principal text;
    c_interest text;
    c_income text;
    c_suspense text;
BEGIN
    SELECT * INTO v_run FROM public.accrual_run r WHERE r.tenant_id = v_tenant AND r.id = p_run;
    SELECT * INTO v_chunk FROM public.accrual_chunk c
    WHERE c.tenant_id = v_tenant AND c.run_id = p_run AND c.done_at IS NULL AND (p_number IS NULL OR c.number = p_number)
    ORDER BY c.number LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    number := v_chunk.number;
    v_first := coalesce(v_chunk.after_id, '00000000-0000-0000-0000-000000000000');
    v_last := coalesce(v_chunk.through_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff');

    -- As every posting: nothing is dated into a period while it closes.
    PERFORM pg_advisory_xact_lock_shared(hashtextextended(v_tenant::text || ' periods', 0));
    IF v_run.accrual_date <= (SELECT max(p.through_date) FROM public.period_close p WHERE p.tenant_id = v_tenant) THEN
        RAISE EXCEPTION USING ERRCODE = 'HP009', CONSTRAINT = 'journal_entry_period_open',
            MESSAGE = format('the period of %s is closed', v_run.accrual_date);
    END IF;
    SELECT max(a.code) FILTER (WHERE a.role = 'principal'), max(a.code) FILTER (WHERE a.role = 'interest'),
           max(a.code) FILTER (WHERE a.role = 'interest_income'), max(a.code) FILTER (WHERE a.role = 'suspense')
    INTO c_principal, c_interest, c_income, c_suspense
    FROM public.gl_account a WHERE a.tenant_id = v_tenant;
    v_terms := public.interest_terms(v_tenant, v_run.program_id, NULL, NULL);
    v_by_client := EXISTS (SELECT FROM unnest(v_terms) t WHERE NOT t.accrues);

    -- The loans that may move, locked in the order of their ids and as they are then; those that owe no principal and of which
    -- nothing new is known are left in peace.
    SELECT array_agg(held.id) INTO v_ids
    FROM (SELECT l.id
          FROM public.loan l
          LEFT JOIN public.loan_balance b ON b.tenant_id = v_tenant AND b.loan_id = l.id AND b.loan_id > v_first
              AND b.loan_id <= v_last AND b.account_code = c_principal AND b.layer = 'SETTLED'
          WHERE l.tenant_id = v_tenant AND l.program_id = v_run.program_id AND l.id > v_first AND l.id <= v_last
            AND l.opened_on < v_run.accrual_date AND l.version > 0
            AND (l.accrued_through IS NULL OR l.accrued_through < v_run.accrual_date
                 OR EXISTS (SELECT FROM public.accrual_pause p
                            WHERE p.tenant_id = v_tenant AND p.loan_id = l.id AND p.to_date = v_run.accrual_date
                              AND p.reversed_revision IS NOT NULL))
            AND NOT (l.version = l.accrued_version AND coalesce(b.balance_minor, 0) = 0
                     AND l.accrued_terms IS NOT DISTINCT FROM hashtextextended(public.terms_known(v_terms, l.accrued_through), 0)
                     AND NOT EXISTS (SELECT FROM public.loan_terms t WHERE t.tenant_id = v_tenant AND t.loan_id = l.id)
                     AND NOT EXISTS (SELECT FROM public.accrual_pause p WHERE p.tenant_id = v_tenant AND p.loan_id = l.id))
          ORDER BY l.id FOR NO KEY UPDATE OF l) held;

    -- What could not be accrued before is looked at again.
    DELETE FROM public.accrual_exception x
    WHERE x.tenant_id = v_tenant AND x.run_id = p_run AND x.loan_id > v_first AND x.loan_id <= v_last;

    v_posted_at := clock_timestamp();
    -- A UUIDv7 (RFC 9562), as posting.py makes them: milliseconds, then chance.
    v_id := overlay(lpad(to_hex((extract(epoch FROM v_posted_at) * 1000)::bigint), 12, '0') PLACING '-' FROM 9 FOR 0)
            || '-7' || substr(gen_random_uuid()::text, 16);
    v_head := '{"actor":' || to_json(v_run.actor) || ',"correlation_id":"' || v_run.correlation_id || '","effective_at":"'
              || to_char(v_run.accrual_date, 'YYYY-MM-DD') || '","event_type":"accrual","journal_entry_id":"' || v_id || '","lines":[';
    v_tail := '],"posted_at":"' || to_char(v_posted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || '","tenant_id":"'
              || v_tenant || '","v":1}';

    WITH own AS MATERIALIZED (
        SELECT t.loan_id, string_agg(concat_ws(' ', t.id, t.effective_at), ',' ORDER BY t.id) AS said,
               max(t.effective_at) AS latest,
               (array_agg(t.annual_rate_bps ORDER BY t.effective_at DESC, t.id DESC)
                   FILTER (WHERE t.annual_rate_bps IS NOT NULL))[1] AS rate,
               (array_agg(t.day_count_convention ORDER BY t.effective_at DESC, t.id DESC)
                   FILTER (WHERE t.day_count_convention IS NOT NULL))[1] AS convention
        FROM public.loan_terms t
        WHERE t.tenant_id = v_tenant AND t.loan_id > v_first AND t.loan_id <= v_last
          AND NOT EXISTS (SELECT FROM public.journal_entry r WHERE r.tenant_id = t.tenant_id AND r.reverses_entry_id = t.entry_id)
        GROUP BY t.loan_id
    ), in_force AS MATERIALIZED (
        SELECT * FROM public.accrual_pauses(v_tenant, v_first, v_last, NULL)
    ), redo AS MATERIALIZED (
        -- Reversed and not accrued again: the date's last revision, and the day behind which its days begin.
        SELECT p.loan_id, p.reversed_revision, p.from_date - 1 AS since
        FROM in_force p WHERE p.reversed_revision IS NOT NULL AND p.to_date = v_run.accrual_date
    ), pause AS MATERIALIZED (
        SELECT p.loan_id, string_agg(concat_ws(' ', p.id, p.from_date), ',' ORDER BY p.id) AS said
        FROM in_force p WHERE p.reversed_revision IS NULL OR p.to_date <> v_run.accrual_date
        GROUP BY p.loan_id
    ), held AS MATERIALIZED (
        SELECT b.loan_id, min(b.balance_minor) FILTER (WHERE b.account_code = c_principal) AS principal_minor,
               min(b.balance_minor) FILTER (WHERE b.account_code = c_interest) AS interest_minor
        FROM public.loan_balance b
        WHERE b.tenant_id = v_tenant AND b.loan_id = ANY (v_ids) AND b.account_code IN (c_principal, c_interest) AND b.layer = 'SETTLED'
        GROUP BY b.loan_id
    ), seen AS MATERIALIZED (
        SELECT l.id, l.borrower_id, l.currency, l.opened_on, l.version, l.last_effective_at, l.accrued_through, l.accrued_version,
               l.accrued_terms, l.interest_exact, l.interest_posted_minor, own.rate, own.convention, own.latest,
               nullif(concat_ws(' ', own.said, pause.said), '') AS own_said, own.loan_id IS NOT NULL AS has_terms,
               pause.loan_id IS NOT NULL AS has_pauses, redo.loan_id IS NOT NULL AS redone, redo.reversed_revision,
               redo.since AS redo_since,
               -- What ended a loan has brought it to its own date: one before that would take back what it posted.
               greatest(l.accrued_through, v_run.accrual_date, CASE WHEN l.ended_as IS NOT NULL THEN l.last_effective_at END)
                   AS through,
               coalesce(held.principal_minor, 0) AS principal_minor, coalesce(held.interest_minor, 0) AS interest_minor,
               held.interest_minor IS NOT NULL AS has_interest
        FROM public.loan l
        LEFT JOIN held ON held.loan_id = l.id
        LEFT JOIN own ON own.loan_id = l.id
        LEFT JOIN pause ON pause.loan_id = l.id
        LEFT JOIN redo ON redo.loan_id = l.id
        WHERE l.tenant_id = v_tenant AND l.id = ANY (v_ids)
          AND (redo.loan_id IS NOT NULL OR l.accrued_through IS NULL OR l.accrued_through < v_run.accrual_date)
    ), known AS MATERIALIZED (
        SELECT d.day, t.said, hashtextextended(concat_ws(' ', t.said), 0) AS hash
        FROM (SELECT accrued_through AS day FROM seen UNION SELECT through FROM seen) d
        CROSS JOIN LATERAL public.terms_known(v_terms, d.day) t (said)
    ), step AS MATERIALIZED (
        -- What a minor unit has earned since the last time: the same for most loans. Of the opening it takes nothing but whether
        -- 30_360 counts it as a 30th.
        SELECT s.accrued_through, s.through, extract(day FROM s.opened_on) >= 30 AS late, coalesce(s.rate, -1) AS rate,
               coalesce(s.convention, '') AS convention, public.interest_between(
                   v_terms, min(s.opened_on), s.accrued_through, s.through, s.rate, s.convention) AS earned
        FROM seen s WHERE s.accrued_through IS NOT NULL
        GROUP BY s.accrued_through, s.through, extract(day FROM s.opened_on) >= 30, s.rate, s.convention
    ), counted AS MATERIALIZED (
        SELECT s.*, CASE WHEN s.own_said IS NULL THEN now_known.hash
                         ELSE hashtextextended(concat_ws(' ', now_known.said, s.own_said), 0) END AS terms_now,
               CASE
                WHEN s.redone OR s.accrued_terms IS NULL OR s.accrued_terms <>
                     CASE WHEN s.own_said IS NULL THEN known.hash ELSE hashtextextended(concat_ws(' ', known.said, s.own_said), 0) END
                    THEN public.interest_onward(
                        v_tenant, s.id, s.opened_on,
                        CASE WHEN s.has_terms OR s.has_pauses
                             THEN public.interest_terms(v_tenant, v_run.program_id, s.id, v_run.accrual_date) ELSE v_terms END,
                        NULL, NULL, 0, s.opened_on, 0, s.through, s.version, NULL)
                WHEN s.version = s.accrued_version AND NOT s.has_pauses AND (s.latest <= s.accrued_through) IS NOT FALSE
                    THEN s.interest_exact + s.principal_minor * step.earned
                ELSE public.interest_onward(
                    v_tenant, s.id, s.opened_on,
                    CASE WHEN s.has_terms OR s.has_pauses
                         THEN public.interest_terms(v_tenant, v_run.program_id, s.id, NULL) ELSE v_terms END, NULL, NULL,
                    s.interest_exact, s.accrued_through, s.accrued_version, s.through, s.version, s.principal_minor) END AS exact
        FROM seen s
        JOIN known now_known ON now_known.day = s.through
        LEFT JOIN known ON known.day = s.accrued_through
        LEFT JOIN step ON step.accrued_through = s.accrued_through AND step.through = s.through
            AND step.late = (extract(day FROM s.opened_on) >= 30) AND step.rate = coalesce(s.rate, -1)
            AND step.convention = coalesce(s.convention, '')
    ), due AS MATERIALIZED (
        -- What is to be posted for each loan: NULL where nothing can be, and where nothing need be (the fault is ''), because a
        -- date that was reversed and has nothing to accrue stays as it is.
        SELECT c.id, c.borrower_id, c.currency, c.version, c.opened_on, c.accrued_through, c.through, c.reversed_revision,
               c.redo_since, c.has_interest, c.exact, f.fault,
               CASE WHEN c.last_effective_at <= v_run.accrual_date THEN c.terms_now END AS terms_after,
               CASE WHEN f.fault IS NULL THEN m.minor::bigint END AS minor,
               -- A correction takes back what interest holds on every date from this one on; the rest is the borrower's.
               CASE WHEN f.fault IS NOT NULL OR m.minor >= 0 THEN 0
                    WHEN c.last_effective_at <= v_run.accrual_date THEN least(-m.minor, c.interest_minor)::bigint
                    ELSE least(-m.minor, c.interest_minor, public.least_balance(
                        v_tenant, c.id, c_interest, v_run.accrual_date))::bigint END AS taken
        FROM counted c
        CROSS JOIN LATERAL (SELECT public.minor_units(c.exact) - c.interest_posted_minor AS minor OFFSET 0) m
        CROSS JOIN LATERAL (SELECT CASE
            WHEN m.minor IS NULL THEN 'no_terms'
            WHEN abs(m.minor) > 9223372036854775807 OR abs(m.minor + c.interest_posted_minor) > 9223372036854775807
              OR m.minor + c.interest_minor > 9223372036854775807 THEN 'amount_out_of_range'
            WHEN c.redone AND m.minor = 0 THEN '' END AS fault OFFSET 0) f
    ), line AS MATERIALIZED (
        SELECT row_number() OVER (ORDER BY l.loan_id, l.part)::smallint AS sequence, l.*
        FROM (
            SELECT 1 AS part, d.id AS loan_id, d.borrower_id, d.currency, d.version + 1 AS version, d.has_interest,
                   CASE WHEN d.minor > 0 THEN c_interest ELSE c_income END AS account_code, 'DR' AS direction,
                   abs(d.minor) AS amount_minor
            FROM due d WHERE d.minor <> 0
            UNION ALL
            SELECT 2, d.id, d.borrower_id, d.currency, d.version + 1, d.has_interest,
                   CASE WHEN d.minor > 0 THEN c_income ELSE c_interest END, 'CR', CASE WHEN d.minor > 0 THEN d.minor ELSE d.taken END
            FROM due d WHERE d.minor > 0 OR d.taken > 0
            UNION ALL
            SELECT 3, d.id, d.borrower_id, d.currency, d.version + 1, d.has_interest, c_suspense, 'CR', -d.minor - d.taken
            FROM due d WHERE -d.minor > d.taken) l
    ), header AS (
        INSERT INTO public.journal_entry (
            tenant_id, id, event_type, loan_id, effective_at, posted_at, correlation_id, line_count, facts, document, content_hash)
        SELECT v_tenant, v_id, 'accrual', e.loan_id, v_run.accrual_date, v_posted_at, v_run.correlation_id,
               e.lines, jsonb_build_object('accrual_run_id', v_run.id, 'program_id', v_run.program_id), e.document,
               sha256(convert_to(e.document, 'UTF8'))
        FROM (SELECT count(*) AS lines, CASE WHEN count(*) < 4 THEN (SELECT o.loan_id FROM line o LIMIT 1) END AS loan_id,
                     v_head || string_agg(concat(
                         '{"account_code":"', account_code, '","amount_minor":"', amount_minor, '","borrower_id":"', borrower_id,
                         '","currency":"', currency, '","direction":"', direction, '","layer":"SETTLED","loan_id":"', loan_id,
                         '","sequence":', sequence, '}'), ',' ORDER BY sequence) || v_tail AS document
              FROM line) e
        WHERE e.lines > 0
    ), lines AS (
        INSERT INTO public.journal_line (
            tenant_id, entry_id, sequence, account_code, direction, amount_minor, currency, layer, loan_id, borrower_id,
            loan_version, effective_at)
        SELECT v_tenant, v_id, sequence, account_code, direction, amount_minor, currency, 'SETTLED', loan_id, borrower_id, version,
               v_run.accrual_date
        FROM line
    ), message AS (
        INSERT INTO public.outbox_message (tenant_id, entry_id) SELECT v_tenant, v_id WHERE EXISTS (SELECT FROM line)
    ), guard AS (
        INSERT INTO public.loan_accrual (tenant_id, loan_id, accrual_date, revision, entry_id, interest_minor, since)
        SELECT v_tenant, id, v_run.accrual_date,
               -- In the client's time the date may have been accrued and reversed, too.
               CASE WHEN reversed_revision IS NOT NULL THEN reversed_revision + 1
                    WHEN v_by_client THEN (SELECT coalesce(max(x.revision) + 1, 0) FROM public.loan_accrual x
                                           WHERE x.tenant_id = v_tenant AND x.loan_id = d.id AND x.accrual_date = v_run.accrual_date)
                    ELSE 0 END, v_id, minor,
               coalesce(redo_since, accrued_through, opened_on)
        FROM due d WHERE d.minor <> 0
    ), balance AS (
        UPDATE public.loan_balance b
        SET balance_minor = b.balance_minor
                            + CASE WHEN (l.direction = 'DR') = (l.account_code = c_interest) THEN l.amount_minor ELSE -l.amount_minor END
        FROM line l
        WHERE l.account_code <> c_income AND b.tenant_id = v_tenant AND b.loan_id = l.loan_id AND b.loan_id > v_first
          AND b.loan_id <= v_last AND b.account_code = l.account_code AND b.layer = 'SETTLED'
    ), new_balance AS (
        INSERT INTO public.loan_balance (tenant_id, loan_id, account_code, layer, currency, balance_minor, floored)
        SELECT v_tenant, l.loan_id, l.account_code, 'SETTLED', l.currency, l.amount_minor, true
        FROM line l
        WHERE CASE l.account_code WHEN c_interest THEN NOT l.has_interest WHEN c_suspense THEN true ELSE false END
          AND NOT EXISTS (SELECT FROM public.loan_balance b
                          WHERE b.tenant_id = v_tenant AND b.loan_id = l.loan_id AND b.account_code = l.account_code
                            AND b.layer = 'SETTLED' OFFSET 0)
    ), loan AS (
        UPDATE public.loan l
        SET version = m.version + (m.minor <> 0)::int,
            last_effective_at = CASE WHEN m.minor <> 0 THEN greatest(l.last_effective_at, v_run.accrual_date)
                                     ELSE l.last_effective_at END,
            last_posted_at = CASE WHEN m.minor <> 0 THEN v_posted_at ELSE l.last_posted_at END,
            accrued_through = m.through, accrued_version = m.version + (m.minor <> 0)::int, accrued_terms = m.terms_after,
            interest_exact = m.exact, interest_posted_minor = l.interest_posted_minor + m.minor
        FROM due m
        WHERE l.tenant_id = v_tenant AND l.id = m.id AND l.id > v_first AND l.id <= v_last AND m.minor IS NOT NULL
    ), fault AS (
        INSERT INTO public.accrual_exception (tenant_id, run_id, loan_id, code, detail)
        SELECT v_tenant, p_run, d.id, d.fault,
               CASE d.fault WHEN 'no_terms' THEN 'No rate or day count is in force on some day since ' || d.opened_on || '.'
                            ELSE 'The interest would leave the range of a 64-bit integer.' END
        FROM due d WHERE d.fault <> ''
    )
    SELECT count(*), count(*) FILTER (WHERE d.minor <> 0), count(*) FILTER (WHERE d.fault <> ''), coalesce(sum(d.minor), 0)
    FROM due d
    INTO visited, accrued, excepted, v_total;

    UPDATE public.accrual_chunk c
    SET done_at = clock_timestamp(), accrued_count = c.accrued_count + accrued, total_minor = c.total_minor + v_total,
        loan_count = (SELECT count(*) FROM public.loan l
                      WHERE l.tenant_id = v_tenant AND l.program_id = v_run.program_id AND l.id > v_first AND l.id <= v_last
                        AND l.opened_on < v_run.accrual_date)
    WHERE c.tenant_id = v_tenant AND c.run_id = p_run AND c.number = v_chunk.number;
END $$;

REVOKE ALL ON FUNCTION public.accrue_chunk, public.interest_terms, public.accrual_pauses, public.loan_interest,
    public.interest_onward, public.least_balance FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.accrue_chunk, public.interest_terms, public.accrual_pauses, public.interest_onward,
    public.loan_interest TO hpts_app, hpts_readonly;
REVOKE EXECUTE ON FUNCTION public.accrue_chunk FROM hpts_readonly;

-- reverse
DROP FUNCTION public.accrue_chunk(uuid, int);
DROP FUNCTION public.least_balance(uuid, uuid, text, date);
DROP FUNCTION public.loan_interest(uuid, uuid, date, bigint);
DROP FUNCTION public.interest_onward(
    uuid, uuid, date, public.interest_term[], int, text, numeric, date, bigint, date, bigint, numeric);
DROP FUNCTION public.terms_known(public.interest_term[], date);
DROP FUNCTION public.interest_between(public.interest_term[], date, date, date, int, text);
DROP FUNCTION public.interest_terms(uuid, uuid, uuid, date);
DROP FUNCTION public.accrual_pauses(uuid, uuid, uuid, date);
DROP TYPE public.interest_term;
DROP FUNCTION public.minor_units(numeric);
DROP FUNCTION public.year_fraction(text, date, date);
DROP FUNCTION public.days_in_leap_years(date);
