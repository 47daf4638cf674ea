"""Keys over HTTP: needed, well formed, replayed byte for byte, bound to one request, never waited for, free after a refusal."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from django.db import connections
from django.http import HttpResponse

from hpts.pipeline import Statement
from ledger.idempotency import fingerprint
from tests.conftest import (
    Api,
    Json,
    Lender,
    Loan,
    disbursement_of,
    in_books_of,
    new_key,
    payment_of,
    posted,
    refused,
    shown,
)
from tests.ledger.api.conftest import Write, with_value
from tests.ledger.conftest import race

Unmoved = Callable[[], AbstractContextManager[None]]
Prepared = tuple[str, Json]


def replayed(answer: HttpResponse, first: HttpResponse) -> None:
    assert (answer.status_code, answer.content) == (200, first.content)
    assert answer.headers["Idempotency-Replayed"] == "true"
    assert answer.headers["Content-Type"] == "application/json"


# --- The key itself --------------------------------------------------------------------------------------------------


def test_a_key_is_needed(write: Write, prepared: Prepared, api: Api, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        refused(api.post(*prepared, key=None), 400, "idempotency_key_required")


MALFORMED = {
    "empty": "",
    "7 characters": "abcdefg",
    "256 characters": "a" * 256,
    "quoted": '"abcdefgh"',
    "two headers": "abcdefgh,abcdefgi",
    "two equal headers": "abcdefgh, abcdefgh",
    "comma": "abcdefgh,",
    "space inside": "abcd efgh",
    "space around": " abcdefgh ",
    "newline at the end": "abcdefgh\n",
    "NUL": "abcdefgh\x00",
    "not ASCII": "abcdefghé",
    "Arabic digits": "abcdefgh\u0661",
    "slash": "abcd/efgh",
    "begins with a dot": ".abcdefgh",
    "begins with a dash": "-abcdefgh",
    "10 kB": "a" * 10_000,
}


@pytest.mark.parametrize("key", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_key_is_refused(api: Api, loan: Loan, nothing_moves: Unmoved, key: str) -> None:
    # Into the environment as it is: the test client would trim what a server hands on.
    with nothing_moves():
        answer = api.post("/v1/payments", payment_of(loan), key=None, HTTP_IDEMPOTENCY_KEY=key)
        refused(answer, 400, "idempotency_key_invalid")


def test_every_write_looks_at_the_key(write: Write, prepared: Prepared, api: Api, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        refused(api.post(*prepared, key="short"), 400, "idempotency_key_invalid")


@pytest.mark.parametrize("key", ["abcdefgh", "0" * 8, "a" * 255, "A.b_c:d-e", "0-------", "ZZZZZZZZ."])
def test_a_well_formed_key_is_taken(api: Api, loan: Loan, key: str) -> None:
    first = api.post("/v1/payments", payment_of(loan), key=key)
    posted(first)
    replayed(api.post("/v1/payments", payment_of(loan), key=key), first)


def test_keys_differ_by_case(api: Api, loan: Loan) -> None:
    assert (
        len(
            {
                posted(api.post("/v1/payments", payment_of(loan), key=key))["journal_entry_id"]
                for key in ("ABCDEFGH", "abcdefgh")
            }
        )
        == 2
    )


# --- Replay ----------------------------------------------------------------------------------------------------------


def test_the_same_request_is_answered_byte_for_byte(
    write: Write, prepared: Prepared, api: Api, nothing_moves: Unmoved
) -> None:
    path, body = prepared
    key = new_key()
    first = api.post(path, body, key=key)
    posted(first)
    with nothing_moves():
        replayed(api.post(path, body, key=key), first)
        replayed(api.post(path, body, key=key), first)


def test_member_order_and_white_space_do_not_count(write: Write, prepared: Prepared, api: Api) -> None:
    path, body = prepared
    key = new_key()
    first = api.post(path, body, key=key)
    backwards = json.dumps(dict(reversed(body.items())), indent=3).replace("\n", "\r\n \t")
    replayed(api.post(path, f" {backwards}\n", key=key), first)


def test_escapes_do_not_count(api: Api, loan: Loan) -> None:
    key, body = new_key(), payment_of(loan, external_ref="né/1")
    first = api.post("/v1/payments", json.dumps(body, ensure_ascii=True), key=key)
    replayed(api.post("/v1/payments", json.dumps(body, ensure_ascii=False).replace("/", "\\/"), key=key), first)


def test_headers_do_not_count(api: Api, loan: Loan) -> None:
    key, body = new_key(), payment_of(loan)
    first = api.post("/v1/payments", body, key=key)
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "Accept": "application/json", "User-Agent": "another"}
    answer = api.post("/v1/payments", body, key=key, headers=headers, scopes=["hpts:payments:write"])
    replayed(answer, first)


def test_the_path_counts_in_any_case(acme: Lender) -> None:
    made = acme.api.disburse(acme.loan, 100, "2026-01-05")["disbursement_event_id"]
    key, body = new_key(), {"effective_at": "2026-01-06"}
    first = acme.api.post(f"/v1/disbursements/{made}/settlement", body, key=key)
    replayed(acme.api.post(f"/v1/disbursements/{made.upper()}/settlement", body, key=key), first)


def test_a_replay_needs_the_scope_now(write: Write, prepared: Prepared, api: Api) -> None:
    key = new_key()
    posted(api.post(*prepared, key=key))
    refused(api.post(*prepared, key=key, scopes=["hpts:ledger:read"]), 403, "insufficient_scope")


def test_a_replay_is_answered_whatever_the_books_have_become(api: Api, loan: Loan) -> None:
    key, body = new_key(), payment_of(loan, 700)
    first = api.post("/v1/payments", body, key=key)
    api.reverse(posted(first)["journal_entry_id"])
    api.disburse(loan, 100_000, "2026-01-05")
    replayed(api.post("/v1/payments", body, key=key), first)


def test_a_replayed_write_that_names_a_loan_answers_the_loans_etag(api: Api, loan: Loan) -> None:
    key, body = new_key(), payment_of(loan, 700)
    posted(api.post("/v1/payments", body, key=key))
    api.pay(loan, 1, "2026-02-01")
    current = api.get(f"/v1/loans/{loan.loan_id}").headers["ETag"]
    assert api.post("/v1/payments", body, key=key).headers.get("ETag") == current


def test_the_replay_of_a_loans_opening_answers_the_etag_of_now(acme: Lender) -> None:
    key, body = new_key(), {"borrower_id": acme.tenant_id, "program_id": acme.program_id, "opened_on": "2026-01-01"}
    made = posted(acme.api.post("/v1/loans", body, key=key))
    acme.api.disburse(Loan(made["loan_id"], made["borrower_id"], acme.program_id, "USD"), 100, "2026-01-05")
    current = acme.api.get(f"/v1/loans/{made['loan_id']}").headers["ETag"]
    assert acme.api.post("/v1/loans", body, key=key).headers.get("ETag") == current


# --- Mismatch --------------------------------------------------------------------------------------------------------


def test_another_body_with_the_same_key_is_a_mismatch(
    write: Write, prepared: Prepared, api: Api, nothing_moves: Unmoved
) -> None:
    path, body = prepared
    key = new_key()
    first = api.post(path, body, key=key)
    with nothing_moves():
        refused(api.post(path, body | write.change, key=key), 422, "idempotency_mismatch")
        replayed(api.post(path, body, key=key), first)


def test_another_route_with_the_same_key_is_a_mismatch(
    write: Write, prepared: Prepared, acme: Lender, nothing_moves: Unmoved
) -> None:
    other = ("/v1/payments", payment_of(acme.loans[2]))
    if write.name == "payment":
        other = ("/v1/disbursements", disbursement_of(acme.loans[2]))
    key = new_key()
    posted(acme.api.post(*other, key=key))
    with nothing_moves():
        refused(acme.api.post(*prepared, key=key), 422, "idempotency_mismatch")


def test_another_path_with_the_same_key_and_body_is_a_mismatch(acme: Lender, nothing_moves: Unmoved) -> None:
    made = [acme.api.disburse(acme.loan, 100, "2026-01-05")["disbursement_event_id"] for _ in range(2)]
    key, body = new_key(), {"effective_at": "2026-01-06"}
    posted(acme.api.post(f"/v1/disbursements/{made[0]}/settlement", body, key=key))
    with nothing_moves():
        answer = acme.api.post(f"/v1/disbursements/{made[1]}/settlement", body, key=key)
        refused(answer, 422, "idempotency_mismatch")


def test_two_routes_never_have_one_fingerprint() -> None:
    """No two routes take the same body today; when they do, they will still be two requests."""
    assert fingerprint("v1/payments", {}, {}) != fingerprint("v1/disbursements", {}, {})
    assert fingerprint("v1/payments", {"id": "a"}, {}) != fingerprint("v1/payments", {"id": "b"}, {})


def test_the_shortest_differences_are_differences(api: Api, loan: Loan, nothing_moves: Unmoved) -> None:
    key, body = new_key(), payment_of(loan, external_ref="caf\u00e9", metadata={"a": "5"})
    posted(api.post("/v1/payments", body, key=key))
    others: list[Json] = [
        body | {"layer": "SETTLED"},  # The default, said aloud.
        body | {"external_ref": "cafe\u0301"},  # The same letters in another normal form.
        body | {"external_ref": "caf\u00e9 "},
        body | {"metadata": {"a": "05"}},
        body | {"metadata": {"a": "5", "b": ""}},
        {name: value for name, value in body.items() if name != "metadata"},
        body | {"loan_id": loan.loan_id.upper()},
    ]
    with nothing_moves():
        for other in others:
            refused(api.post("/v1/payments", other, key=key), 422, "idempotency_mismatch")


def test_keys_belong_to_a_tenant(write: Write, acme: Lender, zenith: Lender) -> None:
    key = new_key()
    answers = [posted(lender.api.post(*write.prepare(lender), key=key)) for lender in (acme, zenith)]
    assert answers[0] != answers[1]


# --- While the first one runs ----------------------------------------------------------------------------------------


@contextmanager
def key_held(lender: Lender, key: str) -> Iterator[None]:
    """As a running request holds it."""
    with in_books_of(lender.tenant_id) as connection:
        lock = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
        connection.execute(lock, (f"{lender.tenant_id} {key}",))
        yield


def test_a_key_in_use_is_refused_at_once(
    write: Write, prepared: Prepared, acme: Lender, nothing_moves: Unmoved
) -> None:
    key = new_key()
    with nothing_moves(), key_held(acme, key):
        began = time.monotonic()
        answer = acme.api.post(*prepared, key=key)
        waited = time.monotonic() - began
        refused(answer, 409, "idempotency_in_progress")
        assert answer.headers["Retry-After"] == "1"
        assert waited < 1
    posted(acme.api.post(*prepared, key=key))


def test_of_many_at_once_one_is_done(write: Write, acme: Lender) -> None:
    """Eight with one key: one is the first, the others are told that it runs, or hear its answer."""
    path, body = write.prepare(acme)
    acme.api.token()
    key = new_key()
    before = acme.books()
    answers = race(*[lambda: acme.api.in_a_thread().post(path, body, key=key)] * 8)
    told = Counter(answer.status_code for answer in answers if isinstance(answer, HttpResponse))
    made = 202 if write.name == "accrual run" else 201
    assert told[made] == 1
    assert told.keys() <= {200, made, 409}, answers
    (first,) = (answer for answer in answers if isinstance(answer, HttpResponse) and answer.status_code == made)
    for answer in answers:
        assert isinstance(answer, HttpResponse)
        if answer.status_code == 409:
            refused(answer, 409, "idempotency_in_progress")
        elif answer.status_code == 200:
            replayed(answer, first)
    after = acme.books()
    assert after[2] == before[2] + 1, "one key more"
    replayed(acme.api.post(path, body, key=key), first)
    assert acme.books() == after


def test_a_repeat_never_waits_for_the_first_one(acme: Lender) -> None:
    """The first one holds its key and waits for its loan, which somebody else has locked."""
    key, body, answers = new_key(), payment_of(acme.loan), list[HttpResponse]()

    def first() -> None:
        answers.append(acme.api.in_a_thread().post("/v1/payments", body, key=key))
        connections.close_all()

    with in_books_of(acme.tenant_id, url="HPTS_OWNER_DATABASE_URL") as holder:
        holder.execute("SELECT FROM loan WHERE id = %s FOR UPDATE", (acme.loan.loan_id,))
        thread = threading.Thread(target=first)
        thread.start()
        _wait_until_blocked(holder)
        refused(acme.api.post("/v1/payments", body, key=key), 409, "idempotency_in_progress")
        assert not answers
    thread.join()
    posted(answers[0])
    replayed(acme.api.post("/v1/payments", body, key=key), answers[0])
    assert len(acme.api.history(acme.loan)) == 1


def _wait_until_blocked(holder: Any) -> None:
    """Until some session waits for what `holder` has locked."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    deadline = time.monotonic() + 5
    while holder.execute(waiting).fetchone() == (0,):
        assert time.monotonic() < deadline, "nobody came to wait"


# --- After a refusal -------------------------------------------------------------------------------------------------


def test_a_refused_attempt_leaves_its_key_free(write: Write, prepared: Prepared, api: Api, tomorrow: str) -> None:
    path, body = prepared
    key = new_key()
    refused(api.post(path, body | {"unknown": 1}, key=key), 400, "validation_failed")
    for place, (status, code) in write.ids.items():
        unknown = with_value(body, place, "00000000-0000-0000-0000-000000000000")
        refused(api.post(path, unknown, key=key), status, code)
    dates = {"effective_at", "accrual_date", "from_date", "through_date"}
    if "to_date" in body:
        dates -= {"from_date"}  # A span may lie ahead.
    for name in body.keys() & dates:
        refused(api.post(path, body | {name: tomorrow}, key=key), 422, "effective_date_refused")
    posted(api.post(path, body, key=key))


def test_a_failure_inside_leaves_the_key_free(acme: Lender, nothing_moves: Unmoved, monkeypatch: Any) -> None:
    key = new_key()
    with nothing_moves(), monkeypatch.context() as patch:
        patch.setattr("ledger.posting.RECORD", Statement("SELECT record_posting($1, $2, $3, $4), 1/0"))
        refused(acme.api.post("/v1/payments", payment_of(acme.loan), key=key), 500, "internal_error")
    posted(acme.api.post("/v1/payments", payment_of(acme.loan), key=key))


def test_a_key_of_long_ago_still_answers(acme: Lender) -> None:
    """Keys are kept for ever: nothing in the answer depends on when it was asked first."""
    keys = [new_key() for _ in range(3)]
    firsts = [acme.api.post("/v1/payments", payment_of(acme.loan, 10 + n), key=key) for n, key in enumerate(keys)]
    for n, key in enumerate(keys):
        replayed(acme.api.post("/v1/payments", payment_of(acme.loan, 10 + n), key=key), firsts[n])
    assert shown(acme.api.get(f"/v1/loans/{acme.loan.loan_id}/balance"))["total_exposure_minor"] == "0"
