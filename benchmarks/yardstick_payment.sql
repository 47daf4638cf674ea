\set l random(1, 100000)
\set amt random(1000, 90000)
SELECT * FROM post_payment(1 + (:l::int % 10), ('00000000-0000-7000-8000-' || lpad(to_hex(:l::bigint), 12, '0'))::uuid, gen_random_uuid()::text, '\x00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff'::bytea, :amt::bigint, current_date, gen_random_uuid(), 'svc-payments', 0);
