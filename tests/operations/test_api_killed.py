"""The API is killed while clients post: what was acknowledged is in the books, and a retry by key doubles nothing."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from typing import Any

from hpts import embedded
from tests.operations.conftest import eventually
from tests.operations.test_run import Runs, free_port, runs, token

__all__ = ["runs"]

CLIENTS = 8
PAYMENTS_PER_CLIENT = 60
KILLS = 3


class Api:
    """A client that repeats a request with its key until it is answered: what every client of the ledger should do."""

    def __init__(self, port: int, bearer: str) -> None:
        self.port = port
        self.headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
        self.connection = http.client.HTTPConnection("localhost", port, timeout=10)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = self.headers | {"Idempotency-Key": str(uuid.uuid4())}
        status = 0
        answer: dict[str, Any] = {}

        def answered() -> bool:
            nonlocal status, answer
            try:
                self.connection.request("POST", path, json.dumps(body), headers)
                response = self.connection.getresponse()
                status, answer = response.status, json.loads(response.read())
            except (OSError, http.client.HTTPException):
                self.connection.close()
                return False
            # 409: the killed process's transaction is still being noticed; 503: the database is catching its breath.
            return status not in (409, 503)

        eventually(answered, within=60, what=f"POST {path} is answered")
        assert status in (200, 201), answer
        return answer

    def get(self, path: str) -> dict[str, Any]:
        self.connection.request("GET", path, headers=self.headers)
        response = self.connection.getresponse()
        body: dict[str, Any] = json.loads(response.read())
        assert response.status == 200, body
        return body


def history(api: Api, loan_id: str) -> list[str]:
    """The ids of a loan's payments, over all pages."""
    found: list[str] = []
    more = ""
    while True:
        page = api.get(f"/v1/loans/{loan_id}/journal-entries?event_type=payment_received&page_size=100{more}")
        found += [entry["journal_entry_id"] for entry in page["items"]]
        if "next_page_token" not in page:
            return found
        more = f"&page_token={page['next_page_token']}"


def test_no_acknowledged_payment_is_lost_and_none_is_doubled_when_the_api_is_killed(runs: Runs) -> None:
    port = free_port()
    _, demo = runs.start(port)
    bearer = token(demo)
    setup = Api(port, bearer)
    program_id, loan_id, borrower_id = (str(uuid.uuid4()) for _ in range(3))
    setup.post(
        "/v1/programs",
        {
            "program_id": program_id,
            "name": "Killed",
            "currency": "USD",
            "annual_rate_bps": 1000,
            "day_count_convention": "ACT_365",
        },
    )
    loan = {"loan_id": loan_id, "borrower_id": borrower_id, "program_id": program_id, "opened_on": "2026-01-01"}
    setup.post("/v1/loans", loan)
    money = {"loan_id": loan_id, "borrower_id": borrower_id, "currency": "USD", "effective_at": "2026-01-02"}
    setup.post("/v1/disbursements", {**money, "amount_minor": "1000000", "method": "ach"})

    acknowledged: list[str] = []
    failures: list[BaseException] = []

    def pay() -> None:
        api = Api(port, bearer)
        try:
            for _ in range(PAYMENTS_PER_CLIENT):
                answer = api.post("/v1/payments", {**money, "amount_minor": "7", "source_method": "ach"})
                acknowledged.append(answer["journal_entry_id"])
        except BaseException as error:
            failures.append(error)

    clients = [threading.Thread(target=pay) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    total = CLIENTS * PAYMENTS_PER_CLIENT
    for kill in range(1, KILLS + 1):
        eventually(lambda: failures or len(acknowledged) >= total * kill // (KILLS + 1), within=60)  # noqa: B023
        for victim in runs.place.processes("hpts.wsgi"):
            os.kill(victim, signal.SIGKILL)
    for client in clients:
        client.join()

    assert not failures, failures[0]
    reader = Api(port, bearer)
    posted = history(reader, loan_id)
    assert sorted(posted) == sorted(acknowledged)
    assert len(set(posted)) == total
    balance = reader.get(f"/v1/loans/{loan_id}/balance")
    assert balance["principal_outstanding_minor"] == str(1_000_000 - 7 * total)
    proof = subprocess.run(
        [sys.executable, "manage.py", "verify_ledger", "--json"],
        cwd=embedded.ROOT,
        env=runs.place.variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert proof.returncode == 0, proof.stdout + proof.stderr
