-- The walls of reconciliation: composite keys, append-only triggers, statements and matches that add up, row security, grants.
-- Rule: triggers and constraints refuse; they never compute.

-- 1. Keys start with tenant_id ---------------------------------------------------------------------------------------
ALTER TABLE public.bank_statement DROP CONSTRAINT bank_statement_pkey,
    ADD CONSTRAINT bank_statement_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE public.bank_match DROP CONSTRAINT bank_match_pkey, ADD CONSTRAINT bank_match_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE public.reconciliation_break DROP CONSTRAINT reconciliation_break_pkey,
    ADD CONSTRAINT reconciliation_break_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE public.reconciliation_run DROP CONSTRAINT reconciliation_run_pkey,
    ADD CONSTRAINT reconciliation_run_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE public.bank_account ADD CONSTRAINT bank_account_gl_account
    FOREIGN KEY (tenant_id, account_code) REFERENCES public.gl_account (tenant_id, code);
ALTER TABLE public.bank_statement ADD CONSTRAINT bank_statement_account
    FOREIGN KEY (tenant_id, bank_account_ref) REFERENCES public.bank_account (tenant_id, ref);
ALTER TABLE public.bank_statement_answer ADD CONSTRAINT bank_statement_answer_statement
    FOREIGN KEY (tenant_id, statement_id) REFERENCES public.bank_statement (tenant_id, id);
ALTER TABLE public.bank_match ADD CONSTRAINT bank_match_account
    FOREIGN KEY (tenant_id, bank_account_ref) REFERENCES public.bank_account (tenant_id, ref);
ALTER TABLE public.bank_match_statement_line ADD CONSTRAINT bank_match_statement_line_line
    FOREIGN KEY (tenant_id, statement_id, number) REFERENCES public.bank_statement_line (tenant_id, statement_id, number);
ALTER TABLE public.reconciliation_break ADD CONSTRAINT reconciliation_break_account
    FOREIGN KEY (tenant_id, bank_account_ref) REFERENCES public.bank_account (tenant_id, ref);
ALTER TABLE public.reconciliation_break ADD CONSTRAINT reconciliation_break_statement_line
    FOREIGN KEY (tenant_id, statement_id, number) REFERENCES public.bank_statement_line (tenant_id, statement_id, number);
ALTER TABLE public.reconciliation_break ADD CONSTRAINT reconciliation_break_entry_line
    FOREIGN KEY (tenant_id, entry_id, sequence) REFERENCES public.journal_line (tenant_id, entry_id, sequence);
ALTER TABLE public.reconciliation_resolution ADD CONSTRAINT reconciliation_resolution_break
    FOREIGN KEY (tenant_id, break_id) REFERENCES public.reconciliation_break (tenant_id, id);
ALTER TABLE public.reconciliation_resolution ADD CONSTRAINT reconciliation_resolution_match
    FOREIGN KEY (tenant_id, match_id) REFERENCES public.bank_match (tenant_id, id);
ALTER TABLE public.reconciliation_resolution ADD CONSTRAINT reconciliation_resolution_entry
    FOREIGN KEY (tenant_id, entry_id) REFERENCES public.journal_entry (tenant_id, id);
ALTER TABLE public.reconciliation_run ADD CONSTRAINT reconciliation_run_tenant
    FOREIGN KEY (tenant_id) REFERENCES public.tenant (id);
-- Lines come before the statement or the match that they belong to, which is checked when it comes; without it they do
-- not outlive their transaction.
ALTER TABLE public.bank_statement_line ADD CONSTRAINT bank_statement_line_statement
    FOREIGN KEY (tenant_id, statement_id) REFERENCES public.bank_statement (tenant_id, id) DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE public.bank_match_statement_line ADD CONSTRAINT bank_match_statement_line_match
    FOREIGN KEY (tenant_id, match_id) REFERENCES public.bank_match (tenant_id, id) DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE public.bank_match_journal_line ADD CONSTRAINT bank_match_journal_line_match
    FOREIGN KEY (tenant_id, match_id) REFERENCES public.bank_match (tenant_id, id) DEFERRABLE INITIALLY DEFERRED;

-- 2. Nothing changes -------------------------------------------------------------------------------------------------
CALL public.append_only('bank_account', 'bank_statement', 'bank_statement_answer', 'bank_statement_line', 'bank_match',
                        'bank_match_statement_line', 'bank_match_journal_line', 'reconciliation_break',
                        'reconciliation_resolution');

-- A run is finished once.
CREATE TRIGGER reconciliation_run_never_goes BEFORE DELETE OR TRUNCATE ON public.reconciliation_run
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
ALTER TABLE public.reconciliation_run ENABLE ALWAYS TRIGGER reconciliation_run_never_goes;
CREATE TRIGGER reconciliation_run_identity
    BEFORE UPDATE OF tenant_id, id, as_of_date, is_nightly, actor, requested_at ON public.reconciliation_run
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
ALTER TABLE public.reconciliation_run ENABLE ALWAYS TRIGGER reconciliation_run_identity;
CREATE FUNCTION public.reconciliation_run_wall() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state IS DISTINCT FROM 'queued' THEN
        RAISE EXCEPTION USING ERRCODE = 'HP010', CONSTRAINT = 'reconciliation_run_once',
            MESSAGE = format('run %s has been finished', OLD.id);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER reconciliation_run_wall BEFORE UPDATE ON public.reconciliation_run
    FOR EACH ROW EXECUTE FUNCTION public.reconciliation_run_wall();
ALTER TABLE public.reconciliation_run ENABLE ALWAYS TRIGGER reconciliation_run_wall;

-- 3. A statement adds up and is whole --------------------------------------------------------------------------------
CREATE FUNCTION public.bank_statement_wall() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    found record;
BEGIN
    SELECT count(*) AS lines, coalesce(sum(l.amount_minor), 0) AS net, coalesce(min(l.number), 1) AS first,
           coalesce(max(l.number), 0) AS last
    INTO found
    FROM public.bank_statement_line l WHERE l.tenant_id = NEW.tenant_id AND l.statement_id = NEW.id;
    IF (found.lines, found.first, found.last::bigint) IS DISTINCT FROM (NEW.line_count::bigint, 1, NEW.line_count::bigint)
       OR NEW.opening_balance_minor + found.net IS DISTINCT FROM NEW.closing_balance_minor::numeric THEN
        RAISE EXCEPTION USING ERRCODE = 'HP011', CONSTRAINT = 'bank_statement_adds_up',
            MESSAGE = format('statement %s: opening balance and lines are not the closing balance, or a line is missing', NEW.id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER bank_statement_wall AFTER INSERT ON public.bank_statement
    FOR EACH ROW EXECUTE FUNCTION public.bank_statement_wall();
ALTER TABLE public.bank_statement ENABLE ALWAYS TRIGGER bank_statement_wall;

CREATE FUNCTION public.bank_statement_line_wall() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM (SELECT DISTINCT tenant_id, statement_id FROM new_line) l
               JOIN public.bank_statement s ON s.tenant_id = l.tenant_id AND s.id = l.statement_id) THEN
        RAISE EXCEPTION USING ERRCODE = 'HP011', CONSTRAINT = 'bank_statement_line_sealed',
            MESSAGE = 'a statement takes no more lines';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER bank_statement_line_wall AFTER INSERT ON public.bank_statement_line
    REFERENCING NEW TABLE AS new_line FOR EACH STATEMENT EXECUTE FUNCTION public.bank_statement_line_wall();
ALTER TABLE public.bank_statement_line ENABLE ALWAYS TRIGGER bank_statement_line_wall;

-- 4. A match balances, and claims lines of its own account -----------------------------------------------------------
-- Set-based, because a statement of a hundred thousand lines brings as many matches in a few statements; rows are looked up by
-- full key (OFFSET 0), because joins of sums were planned as nested loops and took minutes. IS DISTINCT FROM: what row security
-- hides is NULL here and must refuse.
CREATE FUNCTION public.bank_match_wall() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    bad record;
BEGIN
    SELECT side.id, sum(side.bank) AS bank, sum(side.ledger) AS ledger INTO bad
    FROM (
        -- A row for the match itself, so that one without any line is seen.
        SELECT n.id, 0::bigint AS bank, 0::bigint AS ledger, 0 AS lines, true AS own FROM new_match n
        UNION ALL
        SELECT n.id, l.amount_minor, 0, 1, l.bank_account_ref IS NOT DISTINCT FROM n.bank_account_ref
        FROM new_match n
        JOIN public.bank_match_statement_line x ON x.tenant_id = n.tenant_id AND x.match_id = n.id
        LEFT JOIN LATERAL (
            SELECT l.amount_minor, s.bank_account_ref
            FROM public.bank_statement_line l
            JOIN public.bank_statement s ON s.tenant_id = l.tenant_id AND s.id = l.statement_id
            WHERE l.tenant_id = x.tenant_id AND l.statement_id = x.statement_id AND l.number = x.number OFFSET 0) l ON true
        UNION ALL
        SELECT n.id, 0, x.amount_minor, 1, l.own IS NOT DISTINCT FROM true
        FROM new_match n
        JOIN public.bank_match_journal_line x ON x.tenant_id = n.tenant_id AND x.match_id = n.id
        LEFT JOIN LATERAL (
            SELECT x.bank_account_ref = n.bank_account_ref AND x.counted_on = n.counted_on
                   AND l.account_code = a.account_code AND l.currency = a.currency AND l.layer = 'SETTLED'
                   AND l.effective_at = x.effective_at
                   AND x.amount_minor = CASE l.direction WHEN 'DR' THEN l.amount_minor ELSE -l.amount_minor END AS own
            FROM public.journal_line l
            JOIN public.bank_account a ON a.tenant_id = l.tenant_id AND a.ref = n.bank_account_ref
            WHERE l.tenant_id = x.tenant_id AND l.entry_id = x.entry_id AND l.sequence = x.sequence OFFSET 0) l ON true) side
    GROUP BY side.id
    HAVING sum(side.bank) IS DISTINCT FROM sum(side.ledger) OR sum(side.lines) < 2 OR NOT bool_and(side.own)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'HP012', CONSTRAINT = 'bank_match_balances',
            MESSAGE = format('match %s: %s of the bank and %s of the books, or a line of another account', bad.id, bad.bank, bad.ledger);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER bank_match_wall AFTER INSERT ON public.bank_match
    REFERENCING NEW TABLE AS new_match FOR EACH STATEMENT EXECUTE FUNCTION public.bank_match_wall();
ALTER TABLE public.bank_match ENABLE ALWAYS TRIGGER bank_match_wall;

CREATE FUNCTION public.bank_match_line_wall() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM (SELECT DISTINCT tenant_id, match_id FROM new_line) l
               CROSS JOIN LATERAL (SELECT FROM public.bank_match m
                                   WHERE m.tenant_id = l.tenant_id AND m.id = l.match_id OFFSET 0) m) THEN
        RAISE EXCEPTION USING ERRCODE = 'HP012', CONSTRAINT = 'bank_match_sealed', MESSAGE = 'a match takes no more lines';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER bank_match_statement_line_wall AFTER INSERT ON public.bank_match_statement_line
    REFERENCING NEW TABLE AS new_line FOR EACH STATEMENT EXECUTE FUNCTION public.bank_match_line_wall();
ALTER TABLE public.bank_match_statement_line ENABLE ALWAYS TRIGGER bank_match_statement_line_wall;
CREATE TRIGGER bank_match_journal_line_wall AFTER INSERT ON public.bank_match_journal_line
    REFERENCING NEW TABLE AS new_line FOR EACH STATEMENT EXECUTE FUNCTION public.bank_match_line_wall();
ALTER TABLE public.bank_match_journal_line ENABLE ALWAYS TRIGGER bank_match_journal_line_wall;

-- 5. A tenant sees and touches only its own --------------------------------------------------------------------------
CALL public.walled_by_tenant('bank_account', 'bank_statement', 'bank_statement_answer', 'bank_statement_line', 'bank_match',
                             'bank_match_statement_line', 'bank_match_journal_line', 'reconciliation_break',
                             'reconciliation_resolution', 'reconciliation_run');

-- 6. Grants ----------------------------------------------------------------------------------------------------------
GRANT SELECT ON public.bank_account, public.bank_statement, public.bank_statement_answer, public.bank_statement_line,
    public.bank_match, public.bank_match_statement_line, public.bank_match_journal_line, public.reconciliation_break,
    public.reconciliation_resolution, public.reconciliation_run TO hpts_app, hpts_readonly;
GRANT INSERT ON public.bank_account, public.bank_statement, public.bank_statement_answer, public.bank_statement_line,
    public.bank_match, public.bank_match_statement_line, public.bank_match_journal_line, public.reconciliation_break,
    public.reconciliation_resolution, public.reconciliation_run TO hpts_app;
GRANT UPDATE (state, started_at, finished_at, matched_count, break_count, mismatched_account_count, detail)
    ON public.reconciliation_run TO hpts_app;
