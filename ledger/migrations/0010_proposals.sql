-- Maker and checker: what one person of the staff proposes, another one decides, once; and no correction of theirs is posted
-- without.
-- Rule: triggers and constraints refuse; they never compute. Undo: the part behind the reverse mark, before the tables go.

-- 1. Keys start with tenant_id ---------------------------------------------------------------------------------------
ALTER TABLE public.proposal DROP CONSTRAINT proposal_pkey, ADD CONSTRAINT proposal_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE public.proposal ADD CONSTRAINT proposal_tenant FOREIGN KEY (tenant_id) REFERENCES public.tenant (id);
-- The maker that proposal_decision_two_people compares with is the one who proposed.
ALTER TABLE public.proposal_decision ADD CONSTRAINT proposal_decision_proposal
    FOREIGN KEY (tenant_id, proposal_id, maker) REFERENCES public.proposal (tenant_id, id, maker);
ALTER TABLE public.proposal_decision ADD CONSTRAINT proposal_decision_posted
    FOREIGN KEY (tenant_id, entry_id) REFERENCES public.journal_entry (tenant_id, id);

-- 2. Neither changes nor goes ----------------------------------------------------------------------------------------
CALL public.append_only('proposal', 'proposal_decision');

-- 3. An approval is the posting ---------------------------------------------------------------------------------------
-- Its entry is made by the very transaction that approves, in the name of the one who does.
CREATE FUNCTION public.proposal_decision_wall() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.entry_id IS NOT NULL AND NOT EXISTS (
        SELECT FROM public.journal_entry e
        WHERE e.tenant_id = NEW.tenant_id AND e.id = NEW.entry_id AND e.created_xid = pg_current_xact_id()
          AND e.document::jsonb->>'actor' = NEW.decided_by)
    THEN
        RAISE EXCEPTION USING ERRCODE = 'HP021', CONSTRAINT = 'proposal_decision_posts',
            MESSAGE = format('the approval of proposal %s does not post entry %s', NEW.proposal_id, NEW.entry_id);
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER proposal_decision_wall BEFORE INSERT ON public.proposal_decision
    FOR EACH ROW EXECUTE FUNCTION public.proposal_decision_wall();
ALTER TABLE public.proposal_decision ENABLE ALWAYS TRIGGER proposal_decision_wall;

-- And the other way round: a reversal or a manual adjustment of staff is there with its approval or not at all. It is looked at
-- when the transaction ends, since the entry comes first. The canonical document begins with the actor (docs/adr/0009), and
-- it is looked into for these two kinds alone.
CREATE FUNCTION public.journal_entry_approved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM public.proposal_decision d WHERE d.tenant_id = NEW.tenant_id AND d.entry_id = NEW.id) THEN
        RAISE EXCEPTION USING ERRCODE = 'HP022', CONSTRAINT = 'journal_entry_approved',
            MESSAGE = format('entry %s of staff corrects the books without an approved proposal', NEW.id);
    END IF;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER journal_entry_approved AFTER INSERT ON public.journal_entry
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.event_type IN ('reversal', 'manual_adjustment') AND NEW.document LIKE '{"actor":"staff:%')
    EXECUTE FUNCTION public.journal_entry_approved();
ALTER TABLE public.journal_entry ENABLE ALWAYS TRIGGER journal_entry_approved;

-- 4. A tenant sees and touches only its own --------------------------------------------------------------------------
CALL public.walled_by_tenant('proposal', 'proposal_decision');

-- 5. Grants ----------------------------------------------------------------------------------------------------------
-- When is the database's to say.
GRANT SELECT ON public.proposal, public.proposal_decision TO hpts_app, hpts_readonly;
GRANT INSERT (tenant_id, id, operation_id, path, body, reason, maker) ON public.proposal TO hpts_app;
GRANT INSERT (tenant_id, proposal_id, maker, decided_by, decision, reason, entry_id) ON public.proposal_decision TO hpts_app;

-- reverse
DROP TRIGGER journal_entry_approved ON public.journal_entry;
DROP FUNCTION public.journal_entry_approved();
DROP TRIGGER proposal_decision_wall ON public.proposal_decision;
DROP FUNCTION public.proposal_decision_wall();
