"""Where we may call: the whole list of addresses and spellings, at registration and at each attempt; a canary counts.

The canary listens on loopback. Whatever is tried here, nobody may connect to it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Api, Lender, posted, refused
from tests.webhooks.conftest import Receiver, announce, claim, pay, plain, register, rows
from webhooks import sender, signing, targets
from webhooks.delivery import Claimed, Outcome
from webhooks.targets import TargetRefused

PRIVATE = [
    *(
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
    ),
    *("169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1"),
    *("192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1"),
    *("239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1"),
    *(
        "64:ff9b::808:808",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:10::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::",
    ),
    *("2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1"),
]
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "93.184.216.34",
    "172.15.0.1",
    "172.32.0.1",
    "100.128.0.1",
    "2606:4700::1111",
    "2a00:1450::1",
]

SPELLINGS = [
    # Other protocols, and what is no URL of a host.
    *("http://receiver.example.com/", "ftp://receiver.example.com/", "file:///etc/passwd", "gopher://receiver.example.com/"),
    *("//receiver.example.com/", "receiver.example.com", "https://", "https:///path", "https:receiver.example.com", ""),
    *("javascript:alert(1)", "data:text/plain,x", "unix:///var/run/docker.sock"),
    # Users, fragments, characters that parsers read in two ways.
    *("https://user@receiver.example.com/", "https://user:word@receiver.example.com/", "https://@receiver.example.com/"),
    *("https://receiver.example.com#@127.0.0.1/", "https://receiver.example.com/#x", "https://receiver.example.com\\@127.0.0.1/"),
    *("https://receiver.example.com\t/", "https://receiver.example.com\n/", " https://receiver.example.com/", "https://a b.com/"),
    *("https://receiver.example.com/\r\nX-Injected: 1", "https://receiver.example.com/\x00", "https://receiver.example.com/ü"),
    *("https://receiver\u3002example\u3002com/", "https://\uff52eceiver.example.com/", "https://\u2460\u2461.0.0.1/"),
    *("https://receiver%2eexample.com/", "https://127.0.0.1%00.example.com/", "https://[::1%25lo]/", "https://[fe80::1%25eth0]/"),
    "https://p\u0430ypal.com/",
    # Ports.
    *("https://receiver.example.com:22/", "https://receiver.example.com:8443/", "https://receiver.example.com:0/"),
    *("https://receiver.example.com:65536/", "https://receiver.example.com:-1/", "https://receiver.example.com:x/"),
    # Addresses in disguise.
    *("https://127.1/", "https://2130706433/", "https://0x7f.1/", "https://0x7f000001/", "https://0177.0.0.1/", "https://0/"),
    *("https://127.0.1/", "https://1.2.3.4.5/", "https://256.1.1.1/", "https://127.0.0.1./", "https://[::ffff:7f00:1]/"),
    *("https://[::]/", "https://[0:0:0:0:0:0:0:1]/", "https://[::127.0.0.1]/", "https://[64:ff9b::7f00:1]/", "https://[]/"),
    # Names of inside.
    *("https://localhost/", "https://localhost./", "https://LOCALHOST/", "https://a.localhost/", "https://printer.local/"),
    *("https://metadata.google.internal/", "https://intranet/", "https://receiver/", "https://receiver.example.com./"),
    *("https://-a.example.com/", "https://a..example.com/", f"https://{'a' * 64}.example.com/", f"https://a.com/{'x' * 2000}"),
    *(f"https://{address}/" for address in PRIVATE if ":" not in address),
    *(f"https://[{address}]/" for address in PRIVATE if ":" in address),
]  # fmt: skip


@pytest.fixture(autouse=True)
def loopback(settings: Any) -> None:
    """As in production: no private target, whatever the other tests allow."""
    settings.WEBHOOK_ALLOW_PRIVATE_TARGETS = False


@pytest.fixture
def canary(make_receiver: Callable[..., Receiver]) -> Iterator[Receiver]:
    """A receiver on loopback that nobody may connect to."""
    receiver = make_receiver()
    yield receiver
    assert (receiver.connections, receiver.requests) == (0, []), "the canary was called"


def claimed(url: str, *, tenant_id: str = "11111111-1111-1111-1111-111111111111") -> Claimed:
    endpoint_id = "22222222-2222-2222-2222-222222222222"
    secret = signing.seal(signing.new_secret(), tenant_id, endpoint_id)
    now = datetime.now(UTC)
    return Claimed(tenant_id, endpoint_id, 1, 1, endpoint_id, url, None, "payment_received", now, False, (secret,))


def attempt(url: str, *, lookup: sender.Lookup = targets.addresses_of, tls: ssl.SSLContext | None = None) -> Outcome:
    """One attempt as a worker makes it, with the resolver's answers of the test's choice."""

    async def run() -> Outcome:
        async with sender.new_session(sender.CheckedResolver(lookup), tls) as session:
            return await sender.send(session, claimed(url))

    return asyncio.run(run())


def answers(*addresses: str) -> sender.Lookup:
    return lambda host, port: list(addresses)


# --- The list --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    with pytest.raises(TargetRefused):
        targets.check(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_not(address: str) -> None:
    targets.check(ipaddress.ip_address(address))


@pytest.mark.parametrize("url", SPELLINGS)
def test_a_url_that_is_no_https_url_of_a_public_host_is_refused_everywhere(url: str) -> None:
    with pytest.raises(TargetRefused):
        targets.target(url)
    assert targets.examine(url) is not None
    assert attempt(url, lookup=answers("127.0.0.1")).status is None


@pytest.mark.parametrize("url", [url for url in SPELLINGS if url][::7])
def test_it_is_refused_when_it_is_registered(api: Api, url: str) -> None:
    body = refused(api.post("/v1/webhook-endpoints", {"url": url}), 400, "validation_failed", ["url"])
    assert {error["code"] for error in body["errors"]} == {"target_refused"}


@pytest.mark.parametrize(
    "url",
    [
        "https://receiver.example.com",
        "https://receiver.example.com/",
        "https://receiver.example.com:443/a/b?c=d&e=%20",
        "https://a-b.c_d.example.co.uk/x",
        "https://xn--bcher-kva.example.com/",
        "https://8.8.8.8/",
        "https://[2606:4700::1111]/",
        "HTTPS://Receiver.Example.com/Path",
    ],
)
def test_an_ordinary_url_is_accepted_as_it_is(url: str) -> None:
    assert targets.target(url).url == url


def test_other_ports_and_own_names_and_addresses_are_the_operators_to_say(settings: Any) -> None:
    settings.WEBHOOK_PORTS = frozenset({443, 8443})
    targets.target("https://receiver.example.com:8443/")
    settings.WEBHOOK_DENIED_HOSTS = frozenset({"ledger.example.com"})
    settings.WEBHOOK_DENIED_NETWORKS = (ipaddress.ip_network("93.184.216.0/24"),)
    with pytest.raises(TargetRefused):
        targets.target("https://ledger.example.com/")
    with pytest.raises(TargetRefused):
        targets.check(ipaddress.ip_address("93.184.216.34"))


def test_development_opens_loopback_and_nothing_else(settings: Any) -> None:
    settings.WEBHOOK_ALLOW_PRIVATE_TARGETS = True
    for url in ("http://localhost:8080/", "http://127.0.0.1:9/x", "http://[::1]:9/", "https://127.0.0.2:1/"):
        targets.target(url)
    for url in ("http://receiver.example.com/", "http://10.0.0.1/", "https://10.0.0.1/", "https://169.254.169.254/"):
        with pytest.raises(TargetRefused):
            targets.target(url)


# --- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [*PRIVATE, "fe80::1%eth0", "nonsense"])
def test_a_name_with_an_address_inside_is_not_called(address: str) -> None:
    outcome = attempt("https://receiver.example.com/", lookup=answers(address))
    assert outcome.status is None
    assert "address" in (outcome.error or "")


def test_one_address_inside_among_public_ones_is_enough(canary: Receiver) -> None:
    for addresses in (("8.8.8.8", "127.0.0.1"), ("2606:4700::1111", "::1"), ("8.8.8.8", "fd00::1")):
        with pytest.raises(TargetRefused):
            targets.check_all([*addresses])
        assert "not public" in (attempt("https://receiver.example.com/", lookup=answers(*addresses)).error or "")


def test_a_name_is_refused_when_it_is_registered(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"url": "https://receiver.example.com/"}
    for found in (["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], []):
        monkeypatch.setattr(targets, "addresses_of", lambda host, port, found=found: found)
        refused(api.post("/v1/webhook-endpoints", body), 400, "validation_failed", ["url"])

    def fail(host: str, port: int) -> list[str]:
        raise socket.gaierror("no such name")

    monkeypatch.setattr(targets, "addresses_of", fail)
    refused(api.post("/v1/webhook-endpoints", body), 400, "validation_failed", ["url"])
    monkeypatch.setattr(targets, "addresses_of", lambda host, port: ["93.184.216.34"])
    posted(api.post("/v1/webhook-endpoints", body))


def test_a_name_that_changes_after_it_was_registered_is_not_called(
    lent: Lender, canary: Receiver, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """DNS rebinding: public when it is looked at, loopback when it is called."""
    settings.WEBHOOK_PORTS = frozenset({443, canary.port})
    monkeypatch.setattr(targets, "addresses_of", lambda host, port: ["93.184.216.34"])
    endpoint = register(lent.api, f"https://receiver.example.com:{canary.port}/")
    pay(lent)
    announce(lent)
    (row,) = claim(lent)
    asked = []

    def rebound(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    async def run() -> Outcome:
        async with sender.new_session(sender.CheckedResolver(rebound)) as session:
            return await sender.send(session, row)

    outcome = asyncio.run(run())
    assert (outcome.status, outcome.error) == (None, "The address 127.0.0.1 is not public.")
    assert asked == ["receiver.example.com"]
    assert endpoint.shown["state"] == "enabled"


def test_a_name_is_asked_once_and_the_connection_goes_to_the_answer(
    make_receiver: Callable[..., Receiver], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second answer has no chance: the address that was checked is the one that is connected to, under the name's Host."""
    receiver = make_receiver()
    settings.WEBHOOK_PORTS = frozenset({443, receiver.port})
    looked, seen = [], []
    monkeypatch.setattr(targets, "check", lambda address: seen.append(str(address)))
    monkeypatch.setattr(targets, "target", lambda url: targets.Target(url, "receiver.example.com", receiver.port))

    def lookup(host: str, port: int) -> list[str]:
        looked.append(host)
        return ["127.0.0.1"] if len(looked) == 1 else ["127.0.0.9"]

    outcome = attempt(f"http://receiver.example.com:{receiver.port}/x", lookup=lookup)
    assert outcome.status == 204
    assert looked == ["receiver.example.com"]
    assert seen == ["127.0.0.1", "127.0.0.1"], "once as an answer, once as what is connected to"
    assert receiver.requests[0].headers["host"] == f"receiver.example.com:{receiver.port}"


def test_an_address_is_looked_at_again_when_it_is_connected_to(
    canary: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two walls: with the first one away the second still stands."""
    monkeypatch.setattr(targets, "target", lambda url: targets.Target(url, "127.0.0.1", canary.port))
    monkeypatch.setattr(targets, "check_all", lambda addresses: None)
    for url in (f"http://127.0.0.1:{canary.port}/", f"http://receiver.example.com:{canary.port}/"):
        outcome = attempt(url, lookup=answers("127.0.0.1"))
        assert outcome.status is None
        assert "not public" in (outcome.error or ""), outcome


def test_a_slow_name_holds_one_thread_and_no_other_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "LOOKUPS", 2)
    monkeypatch.setattr(sender, "CONNECT_SECONDS", 0.3)
    go_on = threading.Event()
    asked: list[str] = []

    def lookup(host: str, port: int) -> list[str]:
        asked.append(host)
        if host == "slow.example.com":
            go_on.wait(10)
        return ["127.0.0.1"]

    async def run() -> list[Outcome]:
        async with sender.new_session(sender.CheckedResolver(lookup)) as session:
            slow = [sender.send(session, claimed("https://slow.example.com/")) for _ in range(8)]
            return await asyncio.gather(*slow, sender.send(session, claimed("https://quick.example.com/")))

    try:
        *slow, quick = asyncio.run(run())
    finally:
        go_on.set()
    assert quick.error == "The address 127.0.0.1 is not public."
    assert {outcome.error for outcome in slow} == {"no answer in time"}
    assert asked.count("slow.example.com") == 1


# --- Answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_and_is_not_followed(
    status: int, make_receiver: Callable[..., Receiver], canary: Receiver, settings: Any
) -> None:
    settings.WEBHOOK_ALLOW_PRIVATE_TARGETS = True
    receiver = make_receiver(lambda request: plain(status, f"Location: {canary.url}"))
    assert attempt(receiver.url) == Outcome(status)
    assert len(receiver.requests) == 1


def test_no_proxy_of_the_environment_is_used(
    receiver: Receiver, canary: Receiver, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.WEBHOOK_ALLOW_PRIVATE_TARGETS = True
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
    assert attempt(receiver.url).status == 204


def test_an_endless_answer_is_read_to_16_kib_and_a_bomb_is_not_unpacked(
    make_receiver: Callable[..., Receiver], settings: Any
) -> None:
    settings.WEBHOOK_ALLOW_PRIVATE_TARGETS = True
    sent = []

    async def endless(request: Any) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1000000000\r\n\r\n" + b"\0" * (1 << 20)

    receiver = make_receiver(lambda request: sent.append(1) or endless(request))
    started = time.monotonic()
    assert attempt(receiver.url).status == 200
    assert time.monotonic() - started < 5


def test_an_answer_that_drips_is_given_up_in_time(
    make_receiver: Callable[..., Receiver], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.WEBHOOK_ALLOW_PRIVATE_TARGETS = True
    monkeypatch.setattr(sender, "TOTAL_SECONDS", 0.5)
    receiver = make_receiver(lambda request: b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12")
    hanging = make_receiver(lambda request: None)
    for url in (receiver.url, hanging.url):
        started = time.monotonic()
        assert attempt(url).error == "no answer in time"
        assert time.monotonic() - started < 2


def test_the_limits_of_a_request_are_the_published_ones() -> None:
    assert (sender.CONNECT_SECONDS, sender.TOTAL_SECONDS, sender.MAX_ANSWER_BYTES) == (5.0, 20.0, 16 * 1024)


@pytest.mark.parametrize("answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 999999 X\r\n\r\n", b"\0" * 100, b""])
def test_an_answer_that_is_no_http_is_a_failure(
    answer: bytes, make_receiver: Callable[..., Receiver], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.WEBHOOK_ALLOW_PRIVATE_TARGETS = True
    monkeypatch.setattr(sender, "TOTAL_SECONDS", 0.5)
    outcome = attempt(make_receiver(lambda request: answer).url)
    assert outcome.status is None
    assert outcome.error
    assert not outcome.fault


# --- TLS -------------------------------------------------------------------------------------------------------------


def certificate(folder: Path, name: str, *, days: int = 1) -> ssl.SSLContext:
    """A server's context with a new self-signed certificate of a name."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    from datetime import timedelta

    end = datetime.now(UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=3))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}-{days}.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@pytest.mark.parametrize(
    ("name", "days", "status"),
    [("receiver.example.com", 1, 204), ("other.example.com", 1, None), ("receiver.example.com", -1, None)],
)
def test_the_certificate_must_be_the_names_and_valid(
    name: str, days: int, status: int | None, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes to an address, TLS to the name of the URL."""
    server = certificate(tmp_path, name, days=days)
    names: list[str | None] = []
    server.sni_callback = lambda connection, sent, context: names.append(sent)
    trusted = ssl.create_default_context(cafile=str(tmp_path / f"{name}-{days}.pem"))
    monkeypatch.setattr(targets, "check", lambda address: None)

    async def run() -> Outcome:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(plain(204))
            await writer.drain()

        listening = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server)
        port = listening.sockets[0].getsockname()[1]
        settings.WEBHOOK_PORTS = frozenset({port})
        async with sender.new_session(sender.CheckedResolver(answers("127.0.0.1")), trusted) as session:
            outcome = await sender.send(session, claimed(f"https://receiver.example.com:{port}/"))
        listening.close()
        return outcome

    outcome = asyncio.run(run())
    assert outcome.status == status
    assert names == ["receiver.example.com"]
    if status is None:
        assert outcome.error == "the certificate or TLS is not valid"


def test_production_allows_no_private_target_whatever_its_environment_says() -> None:
    code = "from django.conf import settings; print(settings.WEBHOOK_ALLOW_PRIVATE_TARGETS)"
    import os
    import sys

    for development, expected in (("0", "False"), ("1", "True")):
        variables = os.environ | {"HPTS_DEVELOPMENT": development, "WEBHOOK_ALLOW_PRIVATE_TARGETS": "1"}
        variables["DJANGO_SETTINGS_MODULE"] = "hpts.settings"
        said = subprocess.run(
            [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
        ).stdout
        assert said.strip() == expected


def test_nothing_of_an_answer_is_kept_but_its_status(
    lent: Lender, settings: Any, make_receiver: Callable[..., Receiver]
) -> None:
    settings.WEBHOOK_ALLOW_PRIVATE_TARGETS = True
    receiver = make_receiver(lambda request: plain(500, body=b"a secret of the inside"))
    outcome = attempt(receiver.url)
    assert outcome == Outcome(500)
    assert rows(lent.tenant_id, "SELECT count(*) FROM webhook_delivery WHERE error IS NOT NULL") == [(0,)]
