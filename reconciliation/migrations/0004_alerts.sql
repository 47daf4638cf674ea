-- Alerts: composite key, rows that move and never go, row security, grants.
-- Rule: triggers and constraints refuse; they never compute.

ALTER TABLE public.reconciliation_alert DROP CONSTRAINT reconciliation_alert_pkey,
    ADD CONSTRAINT reconciliation_alert_pkey PRIMARY KEY (tenant_id, id);
ALTER TABLE public.reconciliation_alert ADD CONSTRAINT reconciliation_alert_account
    FOREIGN KEY (tenant_id, bank_account_ref) REFERENCES public.bank_account (tenant_id, ref);
ALTER TABLE public.reconciliation_break ADD CONSTRAINT reconciliation_break_alert
    FOREIGN KEY (tenant_id, alert_id) REFERENCES public.reconciliation_alert (tenant_id, id);

CALL public.never_goes('reconciliation_alert');
CREATE TRIGGER reconciliation_alert_identity BEFORE UPDATE OF tenant_id, id, bank_account_ref, break_count, created_at
    ON public.reconciliation_alert FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
ALTER TABLE public.reconciliation_alert ENABLE ALWAYS TRIGGER reconciliation_alert_identity;

CALL public.walled_by_tenant('reconciliation_alert');
GRANT SELECT ON public.reconciliation_alert TO hpts_app, hpts_readonly;
GRANT INSERT ON public.reconciliation_alert TO hpts_app;
GRANT UPDATE (due_at, attempt, mailed_at) ON public.reconciliation_alert TO hpts_app;
