"""Signatures, and the secrets behind them: as the specification says, as the library verifies, as they are kept."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from standardwebhooks import Webhook, WebhookVerificationError

from hpts.tenancy import tenant_transaction
from tests.conftest import Lender, new_key, posted
from tests.ledger.conftest import session
from tests.webhooks.conftest import announce, key_of, pay, register, rows
from webhooks import delivery, signing

DOCUMENT = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text("utf-8")
TENANT, ENDPOINT = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"


def test_a_secret_is_whsec_and_32_random_bytes() -> None:
    secrets = {signing.new_secret() for _ in range(100)}
    assert len(secrets) == 100
    for secret in secrets:
        assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", secret)
        assert len(key_of(secret)) == 32


def test_the_vector_of_the_specification() -> None:
    """The example of the Standard Webhooks specification, whose signature its libraries publish."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    made = signing.signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_vectors_of_the_document_are_what_we_sign() -> None:
    rows = re.findall(r"^\| `(whsec_\S+)` \| `(\S+)` \| `(\d+)` \| `(.+?)` \| `(v1,\S+)` \|$", DOCUMENT, re.MULTILINE)
    assert len(rows) >= 2
    for secret, message_id, timestamp, body, expected in rows:
        assert signing.signature(key_of(secret), message_id, int(timestamp), body.encode()) == expected


def verified(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """Whether a receiver with this secret takes the request. Its clock is set to the attempt's time."""
    try:
        Webhook(secret).verify(body, headers)
    except WebhookVerificationError:
        return False
    return True


def test_a_changed_body_id_or_time_is_not_verified() -> None:
    secret, body = signing.new_secret(), b'{"journal_entry_id":"x"}'
    headers = signing.headers([key_of(secret)], "a-b", int(datetime.now(UTC).timestamp()), body)
    assert verified(secret, headers, body)
    assert not verified(secret, headers, body + b" ")
    assert not verified(signing.new_secret(), headers, body)
    for name, value in (("webhook-id", "a-c"), ("webhook-timestamp", str(int(headers["webhook-timestamp"]) + 1))):
        assert not verified(secret, headers | {name: value}, body)


def test_every_receiver_generation_verifies_at_each_hour_of_a_rotation(lent: Lender) -> None:
    endpoint = register(lent.api, "http://127.0.0.1:9/")
    pay(lent, 4)
    announce(lent)
    rotated = posted(lent.api.post(f"{endpoint.path}/rotate-secret", b""))
    until = datetime.fromisoformat(rotated["previous_valid_until"])
    began = datetime.now(UTC)
    assert timedelta(hours=23, minutes=59) < until - began <= timedelta(hours=24)
    hours = [timedelta(minutes=minutes) for minutes in (0, 1, 59, 60, 720, 1438)]
    for passed, old_is_valid in [*((each, True) for each in hours), (timedelta(hours=24, minutes=1), False)]:
        with tenant_transaction(lent.tenant_id) as cursor:
            delivery.release(cursor, began + passed)
            claimed = delivery.claim(cursor, 1, began + passed)[0]
        stamp = int(datetime.now(UTC).timestamp())
        headers = signing.headers(claimed.keys(), claimed.delivery_id, stamp, claimed.body())
        assert verified(rotated["secret"], headers, claimed.body())
        assert verified(endpoint.secret, headers, claimed.body()) == old_is_valid, passed
        rows(
            lent.tenant_id,
            "UPDATE webhook_delivery SET state = 'pending', attempt = 0, due_at = now() WHERE state = 'leased'",
        )


def test_a_rotation_may_revoke_the_old_secret_at_once(lent: Lender) -> None:
    endpoint = register(lent.api, "http://127.0.0.1:9/")
    pay(lent)
    announce(lent)
    rotated = posted(lent.api.post(f"{endpoint.path}/rotate-secret", {"revoke_previous": True}))
    with tenant_transaction(lent.tenant_id) as cursor:
        (claimed,) = delivery.claim(cursor, 1)
    assert claimed.keys() == [key_of(rotated["secret"])]


# --- At rest ---------------------------------------------------------------------------------------------------------


def test_no_secret_stands_in_the_database_in_the_clear(lent: Lender) -> None:
    endpoint = register(lent.api, "http://127.0.0.1:9/")
    rotated = posted(lent.api.post(f"{endpoint.path}/rotate-secret", b"", key=new_key()))
    with session("superuser") as connection:
        for secret in (endpoint.secret, rotated["secret"]):
            raw, text = key_of(secret), secret.removeprefix("whsec_")
            found = connection.execute(
                """SELECT count(*) FROM webhook_endpoint WHERE position(%(raw)s IN secret) > 0
                       OR position(%(raw)s IN coalesce(previous_secret, '')) > 0 OR position(%(text)s::bytea IN secret) > 0
                   UNION ALL
                   SELECT count(*) FROM idempotency_key WHERE position(%(said)s IN response) > 0""",
                {"raw": raw, "text": text.encode(), "said": text},
            ).fetchall()
            assert found == [(0,), (0,)]


def test_a_sealed_secret_is_of_no_use_in_another_row_and_changed_by_no_bit() -> None:
    secret = signing.new_secret()
    sealed = signing.seal(secret, TENANT, ENDPOINT)
    assert signing.opened(sealed, TENANT, ENDPOINT) == key_of(secret)
    assert signing.seal(secret, TENANT, ENDPOINT) != sealed
    for other in ((ENDPOINT, ENDPOINT), (TENANT, TENANT)):
        with pytest.raises(ValueError, match="opens"):
            signing.opened(sealed, *other)
    for position in range(len(sealed)):
        changed = sealed[:position] + bytes([sealed[position] ^ 1]) + sealed[position + 1 :]
        with pytest.raises(ValueError, match="opens"):
            signing.opened(changed, TENANT, ENDPOINT)


def test_keys_are_rotated_by_putting_a_new_one_first(settings: Any) -> None:
    old, new, secret = "o" * 32, "n" * 32, signing.new_secret()
    settings.WEBHOOK_KEYS = [old]
    before = signing.seal(secret, TENANT, ENDPOINT)
    settings.WEBHOOK_KEYS = [new, old]
    after = signing.seal(secret, TENANT, ENDPOINT)
    assert signing.opened(before, TENANT, ENDPOINT) == signing.opened(after, TENANT, ENDPOINT) == key_of(secret)
    settings.WEBHOOK_KEYS = [new]
    signing.opened.cache_clear()
    assert signing.opened(after, TENANT, ENDPOINT) == key_of(secret)
    with pytest.raises(ValueError, match="opens"):
        signing.opened(before, TENANT, ENDPOINT)


@pytest.mark.parametrize("keys", [[], ["short"], ["k" * 32, "short"]])
def test_without_a_good_key_nothing_is_sealed(settings: Any, keys: list[str]) -> None:
    settings.WEBHOOK_KEYS = keys
    with pytest.raises(ImproperlyConfigured):
        signing.seal(signing.new_secret(), TENANT, ENDPOINT)
