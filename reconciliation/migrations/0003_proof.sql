-- The proofs of the books: append-only, each tenant's own.
ALTER TABLE public.reconciliation_proof DROP CONSTRAINT reconciliation_proof_pkey,
    ADD CONSTRAINT reconciliation_proof_pkey PRIMARY KEY (tenant_id, id);
CALL public.append_only('reconciliation_proof');
CALL public.walled_by_tenant('reconciliation_proof');
GRANT SELECT ON public.reconciliation_proof TO hpts_app, hpts_readonly;
GRANT INSERT ON public.reconciliation_proof TO hpts_app;
