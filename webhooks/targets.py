"""Where we may call: which URLs are endpoints at all, and which addresses are never connected to.

A deny list of our own on resolved addresses, because the standard library's `is_global` lets multicast, NAT64, 6to4 and more
pass. It is asked when an endpoint is registered and again for the very address that a connection is made to. No request here.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as ResolvingTimeout
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from django.conf import settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL = 2_000
RESOLVE_SECONDS = 3.0
# Printable ASCII without space, quotes, angle brackets, backslash, braces, caret and backtick: what RFC 3986 lets a URL hold.
URL = re.compile(r"[!#-&(-;=?-\[\]_a-z~]+")
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")

DENIED = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # Azure's platform address, which looks public.
        # Below 2000::/3, which is all that is public: protocols, Teredo, ORCHID, documentation, 6to4.
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)
PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
# Names that resolve inside, whatever they resolve to today.
INSIDE = (
    "localhost",
    "local",
    "internal",
    "intranet",
    "lan",
    "home",
    "corp",
    "private",
    "arpa",
    "onion",
    "test",
    "invalid",
)


class TargetRefused(ValueError):
    """The URL or the address is none that we call; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint's URL, taken apart and fit to be called if its addresses are."""

    url: str
    host: str
    port: int


def target(url: str) -> Target:
    """The URL as a target. Raises TargetRefused for what is no https URL of a public host; looks nothing up."""
    parts = _parts(url)
    host = parts.hostname or ""
    try:
        port = parts.port if parts.port is not None else {"https": 443, "http": 80}[parts.scheme]
    except ValueError:
        raise TargetRefused("The port is no number from 1 to 65535.") from None
    address = _literal(host)
    local = _allows_loopback() and (host == "localhost" or (address is not None and address.is_loopback))
    if local:
        return Target(url, host, port)
    if parts.scheme != "https":
        raise TargetRefused("An endpoint is an https URL.")
    if port not in settings.WEBHOOK_PORTS:
        raise TargetRefused(f"Port {port} is not one that is called.")
    if address is not None:
        check(address)
    else:
        _check_name(host)
    return Target(url, host, port)


def _parts(url: str) -> SplitResult:
    if len(url) > MAX_URL or URL.fullmatch(url.lower()) is None:
        raise TargetRefused(f"A URL is at most {MAX_URL} printable ASCII characters.")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise TargetRefused("This is no URL.") from None
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise TargetRefused("An endpoint is an https URL.")
    if "@" in parts.netloc:
        raise TargetRefused("A URL with a user or a password is not called.")
    if parts.fragment or url.endswith("#"):
        raise TargetRefused("A URL with a fragment is not called.")
    return parts


def _literal(host: str) -> Address | None:
    """The host as an address when it is written as one."""
    if ":" in host:
        if "%" in host:
            raise TargetRefused("An address with a zone is not called.")
        try:
            return ipaddress.IPv6Address(host)
        except ValueError:
            raise TargetRefused("The host is no address.") from None
    # What ends in a number is an address to a resolver (127.1, 2130706433, 0x7f.1), so it must be one in full.
    last = host.rpartition(".")[2]
    if last.isdigit() or re.fullmatch(r"0x[0-9a-f]*", last):
        try:
            return ipaddress.IPv4Address(host)
        except ValueError:
            raise TargetRefused("The host is neither a name nor an address in full.") from None
    return None


def _check_name(host: str) -> None:
    labels = host.split(".")
    if len(host) > 253 or len(labels) < 2 or not all(LABEL.fullmatch(label) for label in labels):
        raise TargetRefused("The host is no name in full.")
    if labels[-1] in INSIDE or host in settings.WEBHOOK_DENIED_HOSTS:
        raise TargetRefused("The host is an internal name.")


def _allows_loopback() -> bool:
    return bool(settings.WEBHOOK_ALLOW_PRIVATE_TARGETS)


def check(address: Address) -> None:
    """Raise TargetRefused for an address that is never connected to."""
    if address.is_loopback and _allows_loopback():
        return
    inside = isinstance(address, ipaddress.IPv6Address) and address not in PUBLIC_V6
    if inside or any(address in network for network in (*DENIED, *settings.WEBHOOK_DENIED_NETWORKS)):
        raise TargetRefused(f"The address {address} is not public.")


def check_all(addresses: list[str]) -> None:
    """Raise TargetRefused unless every one of a name's addresses may be called: one that may not is no accident."""
    if not addresses:
        raise TargetRefused("The host has no address.")
    for text in addresses:
        try:
            check(ipaddress.ip_address(text))
        except ValueError as error:
            # A zone (fe80::1%eth0), or nonsense.
            raise (
                error if isinstance(error, TargetRefused) else TargetRefused("The host has no plain address.")
            ) from None


# Looking a name up cannot be given up, only left behind: a pool of its own, so that slow names meet each other alone.
_lookups = ThreadPoolExecutor(8, thread_name_prefix="resolve")


def addresses_of(host: str, port: int) -> list[str]:
    """Every address of a host, as the system resolves it. Raises OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def examine(url: str) -> str | None:
    """Why an endpoint cannot be registered with this URL, None when it can. Asks the resolver, for seconds at most."""
    try:
        found = target(url)
        check_all(_lookups.submit(addresses_of, found.host, found.port).result(RESOLVE_SECONDS))
    except TargetRefused as refusal:
        return str(refusal)
    except (OSError, UnicodeError, ResolvingTimeout):
        return "The host cannot be resolved."
    return None
