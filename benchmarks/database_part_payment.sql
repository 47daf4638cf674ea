\set tenant random(0, 9)
\set loan random(10, 499)
\set key random(1, 9223372036854775807)
BEGIN;
SELECT state FROM open_posting(md5('tenant ' || :tenant::int)::uuid, :key::text, ARRAY[md5('loan ' || :tenant::int || ' ' || :loan::int)::uuid], NULL::uuid[], current_date, NULL::date, 'post') \gset
SELECT record_posting(f.entries, :key::text, '\x00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff'::bytea, f.response) FROM bench.fill(:state::text, :tenant::int, :loan::int) f;
COMMIT;
