-- The proofs of the books: append-only, each tenant's own.
ALTER TABLE public.reconciliation_proof DROP CONSTRAINT reconciliation_proof_pkey,
    ADD CONSTRAINT reconciliation_proof_pkey PRIMARY KEY (tenant_id, id);
CREATE TRIGGER reconciliation_proof_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON public.reconciliation_proof
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
ALTER TABLE public.reconciliation_proof ENABLE ALWAYS TRIGGER reconciliation_proof_append_only;
ALTER TABLE public.reconciliation_proof ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.reconciliation_proof FORCE ROW LEVEL SECURITY;
CREATE POLICY reconciliation_proof_tenant ON public.reconciliation_proof
    USING (tenant_id = NULLIF(current_setting('hpts.tenant_id', true), '')::uuid)
    WITH CHECK (tenant_id = NULLIF(current_setting('hpts.tenant_id', true), '')::uuid);
GRANT SELECT ON public.reconciliation_proof TO hpts_app, hpts_readonly;
GRANT INSERT ON public.reconciliation_proof TO hpts_app;
