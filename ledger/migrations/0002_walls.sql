-- The walls: composite keys, append-only triggers, the sealed and balanced entry, row security, grants.
-- Rule: triggers and constraints refuse; they never compute. There is no way back: without its walls the journal is no journal.
--
-- Objects are named with their schema throughout: a temporary table of the same name would come first on any search path.

-- 1. Keys start with tenant_id ---------------------------------------------------------------------------------------
-- Django's models know `id` as the key; the truth is (tenant_id, id), so that no tenant learns of another's ids and the
-- schema can spread over machines by tenant.
ALTER TABLE public.program DROP CONSTRAINT program_pkey, ADD CONSTRAINT program_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE public.program_terms DROP CONSTRAINT program_terms_pkey,
    ADD CONSTRAINT program_terms_pkey PRIMARY KEY (tenant_id, program_id, id);
ALTER TABLE public.loan DROP CONSTRAINT loan_pkey, ADD CONSTRAINT loan_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE public.loan_terms DROP CONSTRAINT loan_terms_pkey,
    ADD CONSTRAINT loan_terms_pkey PRIMARY KEY (tenant_id, loan_id, id);
ALTER TABLE public.accrual_pause DROP CONSTRAINT accrual_pause_pkey,
    ADD CONSTRAINT accrual_pause_pkey PRIMARY KEY (tenant_id, loan_id, id);
ALTER TABLE public.accrual_run DROP CONSTRAINT accrual_run_pkey, ADD CONSTRAINT accrual_run_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE public.journal_entry DROP CONSTRAINT journal_entry_pkey,
    ADD CONSTRAINT journal_entry_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE public.program ADD CONSTRAINT program_tenant FOREIGN KEY (tenant_id) REFERENCES public.tenant (id);
ALTER TABLE public.gl_account ADD CONSTRAINT gl_account_tenant FOREIGN KEY (tenant_id) REFERENCES public.tenant (id);
ALTER TABLE public.program_terms ADD CONSTRAINT program_terms_program
    FOREIGN KEY (tenant_id, program_id) REFERENCES public.program (tenant_id, id);
ALTER TABLE public.loan ADD CONSTRAINT loan_program
    FOREIGN KEY (tenant_id, program_id) REFERENCES public.program (tenant_id, id);
ALTER TABLE public.loan_terms ADD CONSTRAINT loan_terms_loan
    FOREIGN KEY (tenant_id, loan_id) REFERENCES public.loan (tenant_id, id);
ALTER TABLE public.loan_terms ADD CONSTRAINT loan_terms_entry
    FOREIGN KEY (tenant_id, entry_id) REFERENCES public.journal_entry (tenant_id, id);
ALTER TABLE public.journal_entry ADD CONSTRAINT journal_entry_reverses
    FOREIGN KEY (tenant_id, reverses_entry_id) REFERENCES public.journal_entry (tenant_id, id);
ALTER TABLE public.journal_entry ADD CONSTRAINT journal_entry_settles
    FOREIGN KEY (tenant_id, settles_entry_id) REFERENCES public.journal_entry (tenant_id, id);
ALTER TABLE public.loan_balance ADD CONSTRAINT loan_balance_loan
    FOREIGN KEY (tenant_id, loan_id) REFERENCES public.loan (tenant_id, id);
ALTER TABLE public.accrual_pause ADD CONSTRAINT accrual_pause_loan
    FOREIGN KEY (tenant_id, loan_id) REFERENCES public.loan (tenant_id, id);
ALTER TABLE public.accrual_run ADD CONSTRAINT accrual_run_program
    FOREIGN KEY (tenant_id, program_id) REFERENCES public.program (tenant_id, id);
ALTER TABLE public.accrual_chunk ADD CONSTRAINT accrual_chunk_run
    FOREIGN KEY (tenant_id, run_id) REFERENCES public.accrual_run (tenant_id, id);
ALTER TABLE public.accrual_exception ADD CONSTRAINT accrual_exception_run
    FOREIGN KEY (tenant_id, run_id) REFERENCES public.accrual_run (tenant_id, id);
ALTER TABLE public.accrual_exception ADD CONSTRAINT accrual_exception_loan
    FOREIGN KEY (tenant_id, loan_id) REFERENCES public.loan (tenant_id, id);
ALTER TABLE public.outbox_message ADD CONSTRAINT outbox_message_entry
    FOREIGN KEY (tenant_id, entry_id) REFERENCES public.journal_entry (tenant_id, id);

-- The rows that each posting updates keep room on their page, so that the update touches no index: a second version of all of
-- them, because a night's accrual updates every one.
ALTER TABLE public.loan SET (fillfactor = 48);
ALTER TABLE public.loan_balance SET (fillfactor = 48);

-- 2. Nothing in the books changes ------------------------------------------------------------------------------------
CREATE FUNCTION public.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'HP001',
        MESSAGE = format('%s is append-only: %s is refused', TG_TABLE_NAME, TG_OP);
END $$;

-- What the migrations say of their tables: rows that never change; rows that move and never go; rows of one tenant alone.
CREATE PROCEDURE public.append_only(VARIADIC tables text[]) LANGUAGE plpgsql AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY tables LOOP
        EXECUTE format('CREATE TRIGGER %I BEFORE UPDATE OR DELETE OR TRUNCATE ON public.%I '
                       'FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change()', name || '_append_only', name);
        EXECUTE format('ALTER TABLE public.%I ENABLE ALWAYS TRIGGER %I', name, name || '_append_only');
    END LOOP;
END $$;

CREATE PROCEDURE public.never_goes(VARIADIC tables text[]) LANGUAGE plpgsql AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY tables LOOP
        EXECUTE format('CREATE TRIGGER %I BEFORE DELETE OR TRUNCATE ON public.%I '
                       'FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change()', name || '_never_goes', name);
        EXECUTE format('ALTER TABLE public.%I ENABLE ALWAYS TRIGGER %I', name, name || '_never_goes');
    END LOOP;
END $$;

-- FORCE binds the owner too, so the functions that run as the owner are inside the wall. NULLIF: after a transaction that set
-- it the setting is '' and not NULL.
CREATE PROCEDURE public.walled_by_tenant(VARIADIC tables text[]) LANGUAGE plpgsql AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY tables LOOP
        EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE public.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format(
            'CREATE POLICY %I ON public.%I USING (%I = NULLIF(current_setting(''hpts.tenant_id'', true), '''')::uuid) '
            'WITH CHECK (%3$I = NULLIF(current_setting(''hpts.tenant_id'', true), '''')::uuid)',
            name || '_tenant', name, CASE name WHEN 'tenant' THEN 'id' ELSE 'tenant_id' END);
    END LOOP;
END $$;
REVOKE ALL ON PROCEDURE public.append_only, public.never_goes, public.walled_by_tenant FROM PUBLIC;

CALL public.append_only('program', 'program_terms', 'loan_terms', 'journal_entry', 'journal_line', 'loan_accrual', 'accrual_pause',
                        'idempotency_key', 'outbox_message', 'period_close');
CALL public.never_goes('tenant', 'gl_account', 'loan', 'loan_balance', 'accrual_run', 'accrual_chunk');

-- What identifies them does not move either.
CREATE TRIGGER gl_account_identity
    BEFORE UPDATE OF tenant_id, code, account_type, normal_side, per_loan, role, created_at ON public.gl_account
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER loan_identity_stays
    BEFORE UPDATE OF tenant_id, id, borrower_id, program_id, currency, opened_on, principal_limit_minor, created_at
    ON public.loan FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER loan_balance_identity
    BEFORE UPDATE OF tenant_id, loan_id, account_code, layer, currency, floored ON public.loan_balance
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER accrual_run_identity
    BEFORE UPDATE OF tenant_id, id, program_id, accrual_date, requested_at ON public.accrual_run
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER accrual_chunk_identity
    BEFORE UPDATE OF tenant_id, run_id, number, after_id ON public.accrual_chunk
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
ALTER TABLE public.accrual_run ENABLE ALWAYS TRIGGER accrual_run_identity;
ALTER TABLE public.accrual_chunk ENABLE ALWAYS TRIGGER accrual_chunk_identity;
ALTER TABLE public.gl_account ENABLE ALWAYS TRIGGER gl_account_identity;
ALTER TABLE public.loan ENABLE ALWAYS TRIGGER loan_identity_stays;
ALTER TABLE public.loan_balance ENABLE ALWAYS TRIGGER loan_balance_identity;

-- 3. An entry is whole, sealed and balanced --------------------------------------------------------------------------
-- Header and lines come in one statement. At its end each of the two tables looks at the other: lines are refused unless
-- they are all the lines of a header of this very transaction, a header is refused without lines. So no later statement
-- and no later transaction can add a line, and neither a deferred check nor a foreign key is needed (docs/adr/0004).
-- Comparisons with the header are IS DISTINCT FROM: a header hidden by row security is NULL here and must refuse.
-- OFFSET 0 keeps each look-up a look-up by full key: a join could be planned on the statistics of an empty table.

-- What is wrong with a line by itself: the name of the constraint that it violates, or NULL. No CHECK, because PostgreSQL
-- reads the text of every CHECK anew in every statement; this is planned once, as a part of the wall's own query.
CREATE FUNCTION public.journal_line_fault(
    sequence smallint, amount_minor bigint, direction text, layer text, currency text, loan_id uuid, borrower_id uuid,
    loan_version bigint
) RETURNS text LANGUAGE sql IMMUTABLE
RETURN CASE
    WHEN sequence < 1 THEN 'journal_line_sequence'
    WHEN amount_minor <= 0 THEN 'journal_line_amount'
    WHEN direction NOT IN ('DR', 'CR') THEN 'journal_line_direction'
    WHEN layer NOT IN ('SETTLED', 'PENDING', 'ENCUMBRANCE') THEN 'journal_line_layer'
    WHEN currency !~ '^[A-Z]{3}$' THEN 'journal_line_currency'
    WHEN CASE WHEN loan_id IS NULL THEN loan_version IS NOT NULL ELSE borrower_id IS NULL OR loan_version IS NULL END
        THEN 'journal_line_loan'
END;

CREATE FUNCTION public.journal_line_wall() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    one record;
    sound boolean;
    bad record;
    account record;
BEGIN
    -- Nearly every statement brings one entry in one currency on one layer. When it is sound, one look says so; whatever
    -- is not plainly sound is looked at in full below. What is not true is not counted, so that NULL never passes. It looks
    -- every account and loan up line by line; the many lines of an accrual, each of them once.
    SELECT min(e.line_count) = count(*) AND min(l.sequence) = 1 AND max(l.sequence) = count(*)
           AND sum(CASE l.direction WHEN 'DR' THEN l.amount_minor ELSE -l.amount_minor END) = 0
           AND sum(l.amount_minor) <= 2 * 9223372036854775807::numeric
           AND count(*) FILTER (
               WHERE l.tenant_id = head.tenant_id AND l.entry_id = head.entry_id AND l.effective_at = head.effective_at
                 AND l.currency = head.currency AND l.layer = head.layer
                 AND public.journal_line_fault(l.sequence, l.amount_minor, l.direction, l.layer, l.currency, l.loan_id,
                                               l.borrower_id, l.loan_version) IS NULL
                 AND EXISTS (SELECT FROM public.gl_account a
                             WHERE a.tenant_id = l.tenant_id AND a.code = l.account_code AND a.closed_at IS NULL
                               AND (l.loan_id IS NOT NULL OR NOT a.per_loan) OFFSET 0)
                 AND (l.loan_id IS NULL
                      OR EXISTS (SELECT FROM public.loan o
                                 WHERE o.tenant_id = l.tenant_id AND o.id = l.loan_id
                                   AND o.borrower_id = l.borrower_id AND o.currency = l.currency OFFSET 0))) = count(*)
    INTO sound
    FROM (SELECT n.tenant_id, n.entry_id, n.effective_at, n.currency, n.layer FROM new_line n LIMIT 1) head
    CROSS JOIN LATERAL (SELECT h.line_count FROM public.journal_entry h
                        WHERE h.tenant_id = head.tenant_id AND h.id = head.entry_id AND h.effective_at = head.effective_at
                          AND h.created_xid = pg_current_xact_id() AND h.line_count <= 100 OFFSET 0) e
    CROSS JOIN new_line l;
    IF sound THEN
        RETURN NULL;
    END IF;

    SELECT l.tenant_id, l.entry_id, l.effective_at, l.currency, l.layer, (SELECT count(*) FROM new_line) > 100 AS many
    INTO one FROM new_line l LIMIT 1;
    IF one.many THEN
        SELECT e.created_xid = pg_current_xact_id() AND e.effective_at = one.effective_at AND e.line_count = l.lines
               AND l.sound = l.lines AND l.first = 1 AND l.last = l.lines
               AND l.net = 0 AND l.gross <= 2 * 9223372036854775807::numeric
               AND NOT EXISTS (
                   SELECT FROM (SELECT DISTINCT account_code, loan_id IS NOT NULL AS has_loan FROM new_line) n
                   WHERE NOT EXISTS (SELECT FROM public.gl_account a
                                     WHERE a.tenant_id = one.tenant_id AND a.code = n.account_code AND a.closed_at IS NULL
                                       AND (n.has_loan OR NOT a.per_loan) OFFSET 0))
               AND NOT EXISTS (
                   SELECT FROM (SELECT DISTINCT loan_id, borrower_id FROM new_line WHERE loan_id IS NOT NULL) n
                   WHERE NOT EXISTS (SELECT FROM public.loan o
                                     WHERE o.tenant_id = one.tenant_id AND o.id = n.loan_id
                                       AND o.borrower_id = n.borrower_id AND o.currency = one.currency OFFSET 0))
        INTO sound
        FROM (
            SELECT count(*) AS lines, min(l.sequence) AS first, max(l.sequence) AS last, sum(l.amount_minor) AS gross,
                   sum(CASE l.direction WHEN 'DR' THEN l.amount_minor ELSE -l.amount_minor END) AS net,
                   count(*) FILTER (
                       WHERE l.tenant_id = one.tenant_id AND l.entry_id = one.entry_id AND l.effective_at = one.effective_at
                         AND l.currency = one.currency AND l.layer = one.layer
                         AND public.journal_line_fault(l.sequence, l.amount_minor, l.direction, l.layer, l.currency, l.loan_id,
                                                       l.borrower_id, l.loan_version) IS NULL) AS sound
            FROM new_line l) l,
            public.journal_entry e
        WHERE e.tenant_id = one.tenant_id AND e.id = one.entry_id;
        IF sound THEN
            RETURN NULL;
        END IF;
    END IF;

    SELECT l.entry_id, f.fault INTO bad
    FROM new_line l
    CROSS JOIN LATERAL public.journal_line_fault(l.sequence, l.amount_minor, l.direction, l.layer, l.currency, l.loan_id,
                                                 l.borrower_id, l.loan_version) AS f (fault)
    WHERE f.fault IS NOT NULL
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'check_violation', CONSTRAINT = bad.fault,
            MESSAGE = format('a line of entry %s violates %s', bad.entry_id, bad.fault);
    END IF;

    SELECT l.entry_id, l.unbalanced, e.sealed INTO bad
    FROM (
        SELECT tenant_id, entry_id, sum(lines) AS lines, min(first) AS first, max(last) AS last,
               min(earliest) AS earliest, max(latest) AS latest,
               string_agg(currency || ' on ' || layer, ', ') FILTER (WHERE net <> 0 OR gross > 2 * 9223372036854775807::numeric)
                   AS unbalanced
        FROM (
            SELECT tenant_id, entry_id, currency, layer, count(*) AS lines, min(sequence) AS first, max(sequence) AS last,
                   min(effective_at) AS earliest, max(effective_at) AS latest,
                   sum(CASE direction WHEN 'DR' THEN amount_minor ELSE -amount_minor END) AS net, sum(amount_minor) AS gross
            FROM new_line GROUP BY tenant_id, entry_id, currency, layer) cell
        GROUP BY tenant_id, entry_id) l
    LEFT JOIN LATERAL (
        SELECT e.created_xid = pg_current_xact_id() AND e.line_count = l.lines AND l.first = 1 AND l.last = l.lines
               AND e.effective_at = l.earliest AND e.effective_at = l.latest AS sealed
        FROM public.journal_entry e WHERE e.tenant_id = l.tenant_id AND e.id = l.entry_id OFFSET 0) e ON true
    WHERE e.sealed IS NOT TRUE OR l.unbalanced IS NOT NULL
    LIMIT 1;
    IF FOUND AND bad.sealed IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'HP002', CONSTRAINT = 'journal_line_sealed',
            MESSAGE = format('entry %s takes its lines once, whole, numbered from 1, in the transaction that makes it',
                             bad.entry_id);
    ELSIF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'HP003', CONSTRAINT = 'journal_line_balanced',
            MESSAGE = format('entry %s does not balance, or is beyond 64 bits, in %s', bad.entry_id, bad.unbalanced);
    END IF;

    -- Accounts and loans are never deleted and keep their identity, so looking once is as good as a foreign key, and takes
    -- no lock on the account rows that every posting of a tenant shares.
    SELECT l.tenant_id, l.account_code, l.loan_id, l.borrower_id, l.currency INTO bad
    FROM new_line l
    WHERE NOT EXISTS (SELECT FROM public.gl_account a
                      WHERE a.tenant_id = l.tenant_id AND a.code = l.account_code AND a.closed_at IS NULL
                        AND (l.loan_id IS NOT NULL OR NOT a.per_loan) OFFSET 0)
       OR (l.loan_id IS NOT NULL
           AND NOT EXISTS (SELECT FROM public.loan o
                           WHERE o.tenant_id = l.tenant_id AND o.id = l.loan_id
                             AND o.borrower_id = l.borrower_id AND o.currency = l.currency OFFSET 0))
    LIMIT 1;
    IF FOUND THEN
        SELECT a.closed_at, a.per_loan INTO account
        FROM public.gl_account a WHERE a.tenant_id = bad.tenant_id AND a.code = bad.account_code;
        IF NOT FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'HP004', CONSTRAINT = 'journal_line_account',
                MESSAGE = format('there is no account %s', bad.account_code);
        ELSIF account.closed_at IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'HP004', CONSTRAINT = 'journal_line_account_open',
                MESSAGE = format('account %s is closed', bad.account_code);
        ELSIF account.per_loan AND bad.loan_id IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'HP004', CONSTRAINT = 'journal_line_account_needs_loan',
                MESSAGE = format('account %s is kept per loan: its lines name one', bad.account_code);
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'HP005', CONSTRAINT = 'journal_line_loan_identity',
            MESSAGE = format('loan %s, borrower %s and currency %s do not belong together',
                             bad.loan_id, bad.borrower_id, bad.currency);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER journal_line_wall AFTER INSERT ON public.journal_line
    REFERENCING NEW TABLE AS new_line FOR EACH STATEMENT EXECUTE FUNCTION public.journal_line_wall();
ALTER TABLE public.journal_line ENABLE ALWAYS TRIGGER journal_line_wall;

-- What is wrong with a header by itself; no CHECK, as for lines. It does not count in the future: no zone is a day ahead of
-- UTC. What it says of other entries fits its kind.
CREATE FUNCTION public.journal_entry_form() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    fault text := CASE
        WHEN NEW.event_type NOT IN (
            'disbursement', 'disbursement_settled', 'accrual', 'payment_received', 'payment_allocated', 'payment_returned',
            'fee_assessed', 'fee_waived', 'chargeoff', 'recovery', 'refinance', 'restructure', 'reversal',
            'manual_adjustment') THEN 'journal_entry_kind'
        WHEN NEW.line_count NOT BETWEEN 2 AND 32767 THEN 'journal_entry_line_count'
        WHEN NOT isfinite(NEW.effective_at) OR NEW.effective_at > (NEW.posted_at AT TIME ZONE 'UTC')::date + 1
            THEN 'journal_entry_effective_date'
        WHEN NEW.reverses_entry_id = NEW.id THEN 'journal_entry_not_its_own_reversal'
        WHEN (NEW.reverses_entry_id IS NOT NULL) <> (NEW.event_type IN ('reversal', 'payment_returned'))
            THEN 'journal_entry_reverses_by_kind'
        WHEN CASE NEW.event_type WHEN 'disbursement_settled' THEN NEW.settles_entry_id IS NULL
                                 WHEN 'payment_allocated' THEN false
                                 ELSE NEW.settles_entry_id IS NOT NULL END
            THEN 'journal_entry_settles_by_kind'
    END;
BEGIN
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'check_violation', CONSTRAINT = fault,
            MESSAGE = format('entry %s violates %s', NEW.id, fault);
    END IF;
    -- Here, where the document is still as it came: in the table it is compressed.
    IF NEW.content_hash IS DISTINCT FROM sha256(convert_to(NEW.document, 'UTF8')) THEN
        RAISE EXCEPTION USING ERRCODE = 'HP002', CONSTRAINT = 'journal_entry_whole',
            MESSAGE = format('entry %s must come with the hash of its document', NEW.id);
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER journal_entry_form BEFORE INSERT ON public.journal_entry
    FOR EACH ROW EXECUTE FUNCTION public.journal_entry_form();
ALTER TABLE public.journal_entry ENABLE ALWAYS TRIGGER journal_entry_form;

-- Fires per row and not per statement: an entry is a statement, and a row comes without a table of new rows to scan.
CREATE FUNCTION public.journal_entry_wall() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    has_lines boolean;
    is_closed boolean;
BEGIN
    -- One query for both looks. That the tenant exists follows from its lines: their accounts are the tenant's.
    SELECT EXISTS (SELECT FROM public.journal_line l WHERE l.tenant_id = NEW.tenant_id AND l.entry_id = NEW.id),
           EXISTS (SELECT FROM public.period_close c
                   WHERE c.tenant_id = NEW.tenant_id AND c.through_date >= NEW.effective_at)
    INTO has_lines, is_closed;
    IF NOT has_lines OR NEW.created_xid IS DISTINCT FROM pg_current_xact_id()
       OR (NEW.posted_at BETWEEN transaction_timestamp() - interval '1 second'
                             AND clock_timestamp() + interval '1 second') IS NOT TRUE
    THEN
        RAISE EXCEPTION USING ERRCODE = 'HP002', CONSTRAINT = 'journal_entry_whole',
            MESSAGE = format('entry %s must come with its lines, this transaction''s id and the clock''s time', NEW.id);
    END IF;
    IF is_closed THEN
        RAISE EXCEPTION USING ERRCODE = 'HP009', CONSTRAINT = 'journal_entry_period_open',
            MESSAGE = format('the period of %s is closed', NEW.effective_at);
    END IF;
    IF NEW.event_type = 'reversal' AND NEW.line_count <> (
        SELECT count(*)
        FROM public.journal_line o
        JOIN public.journal_line m ON m.tenant_id = o.tenant_id AND m.entry_id = NEW.id AND m.sequence = o.sequence
        WHERE o.tenant_id = NEW.tenant_id AND o.entry_id = NEW.reverses_entry_id
          AND (m.account_code, m.amount_minor, m.currency, m.layer) = (o.account_code, o.amount_minor, o.currency, o.layer)
          AND m.direction <> o.direction AND m.loan_id IS NOT DISTINCT FROM o.loan_id)
    THEN
        RAISE EXCEPTION USING ERRCODE = 'HP008', CONSTRAINT = 'journal_entry_mirrors',
            MESSAGE = format('entry %s does not mirror entry %s line by line', NEW.id, NEW.reverses_entry_id);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER journal_entry_wall AFTER INSERT ON public.journal_entry
    FOR EACH ROW EXECUTE FUNCTION public.journal_entry_wall();
ALTER TABLE public.journal_entry ENABLE ALWAYS TRIGGER journal_entry_wall;

-- An accrual's dates come with its entry, about loans of the tenant; a date accrues again only after the entry that accrued it
-- was reversed. Looked at in one go, because a run brings thousands of rows: foreign keys would fire twice for each.
CREATE FUNCTION public.loan_accrual_wall() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.loan_id, n.accrual_date, n.revision INTO bad
    FROM new_accrual n
    WHERE NOT EXISTS (SELECT FROM public.loan o WHERE o.tenant_id = n.tenant_id AND o.id = n.loan_id OFFSET 0)
       OR (n.revision <> 0
           AND NOT EXISTS (SELECT FROM public.loan_accrual p
                           JOIN public.journal_entry r ON r.tenant_id = p.tenant_id AND r.reverses_entry_id = p.entry_id
                           WHERE p.tenant_id = n.tenant_id AND p.loan_id = n.loan_id AND p.accrual_date = n.accrual_date
                             AND p.revision = n.revision - 1 OFFSET 0))
    LIMIT 1;
    IF FOUND AND bad.revision <> 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'HP006', CONSTRAINT = 'loan_accrual_once_per_date',
            MESSAGE = format('loan %s has accrued for %s', bad.loan_id, bad.accrual_date);
    ELSIF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'loan_accrual_loan',
            MESSAGE = format('there is no loan %s', bad.loan_id);
    END IF;
    SELECT n.entry_id INTO bad
    FROM (SELECT DISTINCT tenant_id, entry_id, accrual_date FROM new_accrual) n
    WHERE NOT EXISTS (SELECT FROM public.journal_entry e
                      WHERE e.tenant_id = n.tenant_id AND e.id = n.entry_id AND e.event_type = 'accrual'
                        AND e.effective_at = n.accrual_date AND e.created_xid = pg_current_xact_id() OFFSET 0)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'HP006', CONSTRAINT = 'loan_accrual_with_entry',
            MESSAGE = format('entry %s is no accrual of that date that this transaction makes', bad.entry_id);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER loan_accrual_wall AFTER INSERT ON public.loan_accrual
    REFERENCING NEW TABLE AS new_accrual FOR EACH STATEMENT EXECUTE FUNCTION public.loan_accrual_wall();
ALTER TABLE public.loan_accrual ENABLE ALWAYS TRIGGER loan_accrual_wall;

-- Periods close forward, and not in the future (no zone is a day ahead of UTC). The lock is the one that postings share.
CREATE FUNCTION public.period_close_wall() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(NEW.tenant_id::text || ' periods', 0));
    IF NEW.through_date <= (SELECT max(c.through_date) FROM public.period_close c WHERE c.tenant_id = NEW.tenant_id)
       OR NOT isfinite(NEW.through_date) OR NEW.through_date > (clock_timestamp() AT TIME ZONE 'UTC')::date + 1
    THEN
        RAISE EXCEPTION USING ERRCODE = 'HP009', CONSTRAINT = 'period_close_forward',
            MESSAGE = format('a period cannot be closed through %s: periods close forward, up to today', NEW.through_date);
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER period_close_wall BEFORE INSERT ON public.period_close
    FOR EACH ROW EXECUTE FUNCTION public.period_close_wall();
ALTER TABLE public.period_close ENABLE ALWAYS TRIGGER period_close_wall;

-- 4. A tenant sees and touches only its own --------------------------------------------------------------------------
CALL public.walled_by_tenant('tenant', 'program', 'program_terms', 'gl_account', 'loan', 'loan_terms', 'journal_entry', 'journal_line',
                             'loan_balance', 'loan_accrual', 'idempotency_key', 'outbox_message', 'period_close', 'accrual_pause',
                             'accrual_run', 'accrual_chunk', 'accrual_exception');

-- 5. Grants ----------------------------------------------------------------------------------------------------------
-- The application reads everything of its tenant, creates masters, closes accounts, and reaches the journal, balances,
-- keys and outbox through record_posting alone.
GRANT SELECT ON public.tenant, public.program, public.program_terms, public.gl_account, public.loan, public.loan_terms,
    public.journal_entry, public.journal_line, public.loan_balance, public.loan_accrual, public.idempotency_key,
    public.outbox_message, public.period_close, public.accrual_pause, public.accrual_run, public.accrual_chunk,
    public.accrual_exception TO hpts_app, hpts_readonly;
GRANT INSERT ON public.tenant, public.program, public.program_terms, public.gl_account, public.loan_terms,
    public.period_close, public.accrual_pause, public.accrual_run, public.accrual_chunk, public.accrual_exception TO hpts_app;
GRANT INSERT (tenant_id, id, borrower_id, program_id, currency, opened_on, principal_limit_minor) ON public.loan TO hpts_app;
GRANT UPDATE (closed_at, closure_reason) ON public.gl_account TO hpts_app;
-- A run is work, not books: the application starts it, cuts it into chunks and ends it.
GRANT UPDATE (actor, correlation_id, started_at, finished_at) ON public.accrual_run TO hpts_app;
GRANT UPDATE (through_id, done_at) ON public.accrual_chunk TO hpts_app;
GRANT UPDATE (code, detail), DELETE ON public.accrual_exception TO hpts_app;

-- What the admin and the proof ask by time. Rows come in the order of time, or nearly, so a few summaries of blocks find them and a posting
-- pays next to nothing: entries of some dates, and keys (whose answer names an entry, and which the proof of the books reads).
CREATE INDEX journal_entry_by_date ON public.journal_entry
    USING brin (tenant_id, effective_at) WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX idempotency_key_by_time ON public.idempotency_key
    USING brin (tenant_id, created_at) WITH (pages_per_range = 32, autosummarize = on);
