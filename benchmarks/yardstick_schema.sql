-- The yardstick: what one bare plpgsql call per posting can do on the machine at hand. Key row, loan balances, one entry,
-- three lines, outbox row; no tenant wall, no proof, no document, no HTTP. It is what the product's rates are divided by.
CREATE TABLE loan_balance (
    tenant_id int NOT NULL, loan_id uuid NOT NULL, borrower_id uuid NOT NULL, currency char(3) NOT NULL DEFAULT 'USD',
    principal bigint NOT NULL, interest bigint NOT NULL, fees bigint NOT NULL DEFAULT 0, version bigint NOT NULL DEFAULT 0,
    status smallint NOT NULL DEFAULT 1, PRIMARY KEY (tenant_id, loan_id)
) WITH (fillfactor = 70);
CREATE TABLE journal_entry (
    id uuid PRIMARY KEY, tenant_id int NOT NULL, loan_id uuid NOT NULL, event_type smallint NOT NULL,
    effective_at date NOT NULL, posted_at timestamptz NOT NULL DEFAULT clock_timestamp(), correlation_id uuid,
    reverses_entry_id uuid, actor text, description text
);
CREATE INDEX je_loan ON journal_entry (tenant_id, loan_id, id);
CREATE TABLE journal_line (
    entry_id uuid NOT NULL, seq smallint NOT NULL, tenant_id int NOT NULL, account_code char(4) NOT NULL,
    direction boolean NOT NULL, amount_minor bigint NOT NULL CHECK (amount_minor >= 0), currency char(3) NOT NULL,
    layer smallint NOT NULL, loan_id uuid, posted_at timestamptz NOT NULL, effective_at date NOT NULL,
    PRIMARY KEY (entry_id, seq)
);
CREATE INDEX jl_loan ON journal_line (tenant_id, loan_id, effective_at);
CREATE TABLE gl_total (
    tenant_id int, account_code char(4), stripe smallint, currency char(3), dr bigint NOT NULL DEFAULT 0,
    cr bigint NOT NULL DEFAULT 0, PRIMARY KEY (tenant_id, account_code, stripe, currency)
) WITH (fillfactor = 50);
CREATE TABLE idem (
    tenant_id int NOT NULL, key text NOT NULL, hash bytea NOT NULL, entry_id uuid, status smallint, response jsonb,
    created_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (tenant_id, key)
);
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant_id int NOT NULL, topic text NOT NULL, entry_id uuid NOT NULL,
    payload jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), next_at timestamptz NOT NULL DEFAULT now(),
    attempts smallint NOT NULL DEFAULT 0, state smallint NOT NULL DEFAULT 0
);
CREATE INDEX outbox_ready ON outbox (next_at) WHERE state = 0;

-- Ten tenants, 10,000 loans each.
INSERT INTO loan_balance (tenant_id, loan_id, borrower_id, principal, interest)
SELECT 1 + (g % 10), ('00000000-0000-7000-8000-' || lpad(to_hex(g), 12, '0'))::uuid,
       ('00000000-0000-7000-9000-' || lpad(to_hex(g), 12, '0'))::uuid, 100000000000, 10000000000
FROM generate_series(1, 100000) g;
INSERT INTO gl_total
SELECT t, a, s, 'USD'
FROM generate_series(1, 10) t, unnest(ARRAY['1000', '1100', '1200']) a, generate_series(0, 15) s;

CREATE FUNCTION uuid7b() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
  SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING
     substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid
$$;

-- p_gl: 0 no account totals, 1 one hot row per tenant and account, 2 rows striped by session.
CREATE FUNCTION post_payment(
    p_tenant int, p_loan uuid, p_key text, p_hash bytea, p_amount bigint, p_eff date, p_corr uuid, p_actor text,
    p_gl int DEFAULT 0
) RETURNS TABLE (status int, entry_id uuid, body jsonb) LANGUAGE plpgsql AS $f$
DECLARE
    v_id uuid := uuid7b(); v_now timestamptz := clock_timestamp(); v_int bigint; v_pri bigint; v_p bigint; v_i bigint;
    v_cur char(3); r idem; s smallint; v_body jsonb;
BEGIN
    INSERT INTO idem AS k (tenant_id, key, hash, entry_id, status) VALUES (p_tenant, p_key, p_hash, v_id, 201)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        SELECT * INTO r FROM idem k WHERE k.tenant_id = p_tenant AND k.key = p_key;
        IF r.hash <> p_hash THEN
            RETURN QUERY SELECT 422, NULL::uuid, NULL::jsonb;
        ELSE
            RETURN QUERY SELECT 200, r.entry_id, r.response;
        END IF;
        RETURN;
    END IF;
    SELECT l.principal, l.interest, l.currency INTO v_p, v_i, v_cur
    FROM loan_balance l WHERE l.tenant_id = p_tenant AND l.loan_id = p_loan FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'loan not found' USING ERRCODE = 'P0002';
    END IF;
    v_int := least(p_amount, v_i);
    v_pri := p_amount - v_int;
    IF p_amount > 200 THEN  -- Three lines always.
        v_int := 100;
        v_pri := p_amount - 100;
    END IF;
    UPDATE loan_balance l SET principal = principal - v_pri, interest = interest - v_int, version = version + 1
    WHERE l.tenant_id = p_tenant AND l.loan_id = p_loan;
    INSERT INTO journal_entry (id, tenant_id, loan_id, event_type, effective_at, posted_at, correlation_id, actor)
    VALUES (v_id, p_tenant, p_loan, 4, p_eff, v_now, p_corr, p_actor);
    INSERT INTO journal_line (entry_id, seq, tenant_id, account_code, direction, amount_minor, currency, layer, loan_id,
                              posted_at, effective_at)
    VALUES (v_id, 1, p_tenant, '1000', true, p_amount, v_cur, 0, p_loan, v_now, p_eff),
           (v_id, 2, p_tenant, '1200', false, v_int, v_cur, 0, p_loan, v_now, p_eff),
           (v_id, 3, p_tenant, '1100', false, v_pri, v_cur, 0, p_loan, v_now, p_eff);
    v_body := jsonb_build_object(
        'journal_entry_id', v_id, 'event_type', 'payment_received', 'effective_at', p_eff, 'posted_at', v_now,
        'correlation_id', p_corr, 'lines', jsonb_build_array(
            jsonb_build_object('sequence', 1, 'account_code', '1000', 'direction', 'DR', 'amount_minor', p_amount::text,
                               'currency', v_cur, 'layer', 'SETTLED', 'loan_id', p_loan),
            jsonb_build_object('sequence', 2, 'account_code', '1200', 'direction', 'CR', 'amount_minor', v_int::text,
                               'currency', v_cur, 'layer', 'SETTLED', 'loan_id', p_loan),
            jsonb_build_object('sequence', 3, 'account_code', '1100', 'direction', 'CR', 'amount_minor', v_pri::text,
                               'currency', v_cur, 'layer', 'SETTLED', 'loan_id', p_loan)));
    INSERT INTO outbox (tenant_id, topic, entry_id, payload) VALUES (p_tenant, 'journalEntryPosted', v_id, v_body);
    IF p_gl > 0 THEN
        s := CASE WHEN p_gl = 2 THEN pg_backend_pid() % 16 ELSE 0 END;
        UPDATE gl_total g SET dr = dr + p_amount
        WHERE g.tenant_id = p_tenant AND g.account_code = '1000' AND stripe = s AND g.currency = v_cur;
        UPDATE gl_total g SET cr = cr + v_pri
        WHERE g.tenant_id = p_tenant AND g.account_code = '1100' AND stripe = s AND g.currency = v_cur;
        UPDATE gl_total g SET cr = cr + v_int
        WHERE g.tenant_id = p_tenant AND g.account_code = '1200' AND stripe = s AND g.currency = v_cur;
    END IF;
    RETURN QUERY SELECT 201, v_id, v_body;
END $f$;
