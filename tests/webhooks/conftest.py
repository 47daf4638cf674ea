"""What the tests of webhooks share: receivers on loopback, endpoints, a worker of the test's own, warped time."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from hpts.tenancy import tenant_transaction
from tests.conftest import Api, Json, Lender, posted, shown
from webhooks import delivery, queries, signing, worker
from webhooks.delivery import Claimed, Outcome, Result
from webhooks.relay import relay


@dataclass
class Received:
    """One request as a receiver saw it."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def event(self) -> Json:
        event: Json = json.loads(self.body)
        return event

    @property
    def entry_id(self) -> str:
        return str(self.event["journal_entry_id"])


class Receiver:
    """An HTTP server on loopback in a thread of its own. `answer` gives for each request the raw answer, or None to hang."""

    def __init__(self, answer: Callable[[Received], bytes | None] | None = None, *, host: str = "127.0.0.1") -> None:
        self.answer = answer or (lambda request: plain(204))
        self.requests: list[Received] = []
        self.connections = 0
        self.busy = 0
        self.most_busy = 0
        self._loop = asyncio.new_event_loop()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family, backlog=512)
        self.port = int(self._socket.getsockname()[1])
        self._server: asyncio.Server | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def entries(self) -> list[str]:
        return [request.entry_id for request in self.requests]

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)

        async def start() -> None:
            self._server = await asyncio.start_server(self._client, sock=self._socket)
            self._ready.set()

        self._loop.run_until_complete(start())
        self._loop.run_forever()
        self._loop.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                request = Received(first.split()[1], headers, body, time.time())
                self.busy += 1
                self.most_busy = max(self.most_busy, self.busy)
                try:
                    self.requests.append(request)
                    made = self.answer(request)
                    if asyncio.iscoroutine(made):
                        made = await made
                    if made is None:
                        await asyncio.sleep(3600)
                    writer.write(made or b"")
                    await writer.drain()
                finally:
                    self.busy -= 1
        writer.close()

    def close(self) -> None:
        async def end() -> None:
            if self._server is not None:
                self._server.close()
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task.cancel()
            await asyncio.sleep(0)
            self._loop.stop()

        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(end(), self._loop)
            self._thread.join(5)


def plain(status: int, *headers: str, body: bytes = b"") -> bytes:
    """A whole HTTP answer."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture
def make_receiver() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(*arguments: Any, **options: Any) -> Receiver:
        made.append(Receiver(*arguments, **options))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


@pytest.fixture
def receiver(make_receiver: Callable[..., Receiver]) -> Receiver:
    """One that acknowledges everything."""
    return make_receiver()


@pytest.fixture(autouse=True)
def loopback(settings: Any) -> None:
    """Receivers on this machine may be called, as in `make run`; what must not be is tested with this switched off."""
    settings.WEBHOOK_ALLOW_PRIVATE_TARGETS = True


# --- Endpoints and rows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Endpoint:
    api: Api
    endpoint_id: str
    secret: str

    @property
    def path(self) -> str:
        return f"/v1/webhook-endpoints/{self.endpoint_id}"

    @property
    def shown(self) -> Json:
        return shown(self.api.get(self.path))

    def deliveries(self, **query: Any) -> list[Json]:
        query = {"webhook_endpoint_id": self.endpoint_id, "page_size": 500} | query
        items: list[Json] = shown(self.api.get("/v1/webhook-deliveries", query))["items"]
        return items

    def states(self) -> dict[str, int]:
        """How many deliveries are in each state."""
        counted: dict[str, int] = {}
        for item in self.deliveries():
            counted[item["state"]] = counted.get(item["state"], 0) + 1
        return counted


def register(api: Api, url: str, **members: Any) -> Endpoint:
    made = posted(api.post("/v1/webhook-endpoints", {"url": url, **members}))
    return Endpoint(api, made["webhook_endpoint_id"], made["secret"])


def key_of(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(signing.PREFIX))


def rows(tenant_id: str, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    with tenant_transaction(tenant_id) as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []


def announce(lender: Lender, *, within: float = 30.0) -> int:
    """Relay until every entry of the tenant is in its feed. Other tests' transactions may hold the horizon back for a moment."""
    deadline = time.monotonic() + within
    waiting = "SELECT (SELECT count(*) FROM outbox_message) - (SELECT count(*) FROM webhook_event)"
    relayed = 0
    while rows(lender.tenant_id, waiting) != [(0,)]:
        assert time.monotonic() < deadline, "the outbox is not relayed"
        relayed += relay(lender.tenant_id)
    return relayed


def pay(lender: Lender, times: int = 1) -> list[str]:
    """Small payments on the first loan, which has been lent enough; gives their entries."""
    return [lender.api.pay(lender.loan, 1, "2026-02-01")["journal_entry_id"] for _ in range(times)]


# --- Without a worker: claims and results by hand --------------------------------------------------------------------


def claim(lender: Lender, limit: int = 100, now: Any = None) -> list[Claimed]:
    with tenant_transaction(lender.tenant_id) as cursor:
        delivery.alone(cursor)
        delivery.release(cursor, now)
        return delivery.claim(cursor, limit, now)


def settle(lender: Lender, claims: list[Claimed], outcome: Outcome, now: Any = None) -> list[tuple[str, str]]:
    """Write that each of the claims had this outcome, without jitter."""
    with tenant_transaction(lender.tenant_id) as cursor:
        delivery.alone(cursor)
        results = [Result(each, outcome, delivery.verdict(each.attempt, outcome, lambda: 0.5)) for each in claims]
        return delivery.settle(cursor, results, now)


# --- A worker in a thread --------------------------------------------------------------------------------------------


@dataclass
class Running:
    """The product's own worker, in a thread and an event loop of its own."""

    options: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Running:
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._started.wait(10)
        return self

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        session = self.options.get("session")
        self.worker = worker.Worker(session=session() if session else None)
        self._started.set()
        await self.worker.run()

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.worker.stop)
        self._thread.join(30)
        assert not self._thread.is_alive(), "the worker does not stop"


def eventually(condition: Callable[[], object], *, within: float = 15.0, what: str = "") -> None:
    """Wait until the condition holds; fail when it does not within the seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s: {what or condition}"
        time.sleep(0.02)


@pytest.fixture
def deliver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Running]:
    """`with deliver(lender):` runs a worker for these tenants; the rest of the suite's books are none of its business."""
    everything = queries.work

    def start(*lenders: Lender, **options: Any) -> Running:
        ids = {lender.tenant_id for lender in lenders}
        monkeypatch.setattr(queries, "work", lambda: [work for work in everything() if work.tenant_id in ids])
        return Running(options)

    return start


@pytest.fixture
def lent(acme: Lender) -> Lender:
    """Acme with a loan that has been lent; its feed is up to date."""
    acme.api.disburse(acme.loan, 100_000, "2026-01-05")
    announce(acme)
    return acme
