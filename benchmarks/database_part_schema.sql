-- What Python does between the two round trips of a payment, done by the database instead: the documents of the second trip
-- are filled in from templates that the product made. Costs the database some microseconds that the product spends itself.
DROP SCHEMA IF EXISTS bench CASCADE;
CREATE SCHEMA bench;
CREATE FUNCTION bench.fill(
    p_state text, p_tenant int, p_loan int, OUT entries text, OUT response text
) LANGUAGE plpgsql AS $f$
DECLARE
    v_state json := p_state::json;
    v_entry text := uuidv7()::text;
    v_posted_at text := v_state->>'posted_at';
BEGIN
    entries := replace(replace(replace(replace(replace(replace(replace({entries},
        '{{entry}}', v_entry), '{{posted_at}}', v_posted_at), '{{tenant}}', md5('tenant ' || p_tenant)::uuid::text),
        '{{correlation}}', gen_random_uuid()::text), '{{loan}}', md5('loan ' || p_tenant || ' ' || p_loan)::uuid::text),
        '{{borrower}}', md5('borrower ' || p_tenant || ' ' || p_loan)::uuid::text),
        '{{version}}', ((v_state->'loans'->0->>'version')::bigint + 1)::text);
    -- The entries are [["<document>",{{...}}]]; in the document nothing is escaped but quotation marks.
    entries := replace(entries, '{{hash}}', encode(sha256(convert_to(
        replace(substr(entries, 4, strpos(entries, '",{{"') - 4), '\"', '"'), 'UTF8')), 'hex'));
    response := replace(replace({response}, '{{entry}}', v_entry), '{{posted_at}}', v_posted_at);
END $f$;
GRANT USAGE ON SCHEMA bench TO hpts_app;
GRANT EXECUTE ON FUNCTION bench.fill TO hpts_app;
