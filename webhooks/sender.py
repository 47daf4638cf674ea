"""One attempt over HTTP: the signed request, and what came of it. No database, no judgement.

A name is resolved once, every answer is checked, and the connection goes to what was checked, under the URL's own name for
TLS and Host. No redirect is followed, no proxy of the environment is used, no cookie kept; an answer is read to 16 KiB, not
decompressed, and thrown away.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from webhooks import signing, targets
from webhooks.delivery import Claimed, Outcome
from webhooks.targets import TargetRefused

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 20.0
MAX_ANSWER_BYTES = 16 * 1024
# Shorter than most servers', so that we and not they close what is idle.
KEEP_ALIVE_SECONDS = 4.0
LOOKUPS = 64
USER_AGENT = "HPTS-Webhooks/1.0"

Lookup = Callable[[str, int], list[str]]


class CheckedResolver(AbstractResolver):
    """Resolves a name and refuses it when any of its addresses may not be called. A slow name holds one thread, not many."""

    def __init__(self, lookup: Lookup = targets.addresses_of) -> None:
        self._lookup = lookup
        self._threads = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="resolve")
        self._running: dict[tuple[str, int], asyncio.Future[list[str]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = await asyncio.shield(self._looked_up(host, port))
        targets.check_all(addresses)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in dict.fromkeys(addresses)
        ]

    def _looked_up(self, host: str, port: int) -> asyncio.Future[list[str]]:
        key = (host, port)
        if key not in self._running:
            looking = asyncio.get_running_loop().run_in_executor(self._threads, self._lookup, host, port)
            self._running[key] = looking

            def done(future: asyncio.Future[list[str]]) -> None:
                self._running.pop(key, None)
                if not future.cancelled():
                    future.exception()  # Looked at, also when every request has given up.

            looking.add_done_callback(done)
        return self._running[key]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _checked_socket(
    info: tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]],
) -> socket.socket:
    """The socket that connects to an address: the last look at it, also for hosts that are written as addresses."""
    family, kind, protocol, _, address = info
    targets.check(ipaddress.ip_address(address[0]))
    return socket.socket(family, kind, protocol)


def new_session(resolver: AbstractResolver | None = None, tls: ssl.SSLContext | None = None) -> aiohttp.ClientSession:
    """The session of a worker, in the running loop. It lives as long as the worker and reuses connections."""
    connector = aiohttp.TCPConnector(
        resolver=resolver or CheckedResolver(),
        use_dns_cache=False,  # A name is checked for each connection.
        socket_factory=_checked_socket,
        ssl=tls or ssl.create_default_context(),
        limit=0,  # How many are in flight is the claim's to say.
        keepalive_timeout=KEEP_ALIVE_SECONDS,
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=TOTAL_SECONDS, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
    )


async def send(session: aiohttp.ClientSession, claimed: Claimed) -> Outcome:
    """Make one attempt. Never raises: whatever goes wrong is the outcome."""
    try:
        url = URL(targets.target(claimed.url).url, encoded=True)
        body = claimed.body()
        headers = signing.headers(claimed.keys(), claimed.delivery_id, int(time.time()), body)
        headers["Content-Type"] = "application/json"
        headers["User-Agent"] = USER_AGENT
    except TargetRefused as refusal:
        return Outcome(error=str(refusal))
    except Exception as error:
        # A row that cannot be sent is its own problem, and never the batch's.
        logger.exception("delivery %s cannot be made a request of", claimed.delivery_id)
        return Outcome(error=f"{type(error).__name__}: no request could be made", fault=True)
    try:
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
            await _read(answer)
            return Outcome(answer.status, retry_after=retry_after(answer.headers.get("Retry-After")))
    except TargetRefused as refusal:
        return Outcome(error=str(refusal))
    except TimeoutError:
        return Outcome(error="no answer in time")
    except Exception as error:  # Its text may hold addresses; the kind of it says enough.
        return Outcome(error=_kind(error))


def _kind(error: Exception) -> str:
    if isinstance(error.__cause__, TargetRefused):
        return str(error.__cause__)
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return "the certificate or TLS is not valid"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "no connection"
    if isinstance(error, aiohttp.ClientError | OSError):
        return "the connection broke, or the answer is no HTTP"
    return type(error).__name__


async def _read(answer: aiohttp.ClientResponse) -> None:
    """Read an ordinary answer to its end, so that the connection can be used again; of a longer one no more than the limit."""
    left = MAX_ANSWER_BYTES
    while left > 0 and not answer.content.at_eof():
        left -= len(await answer.content.read(left))
    if not answer.content.at_eof():
        answer.close()


def retry_after(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, a number or a date; None when it says neither."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
