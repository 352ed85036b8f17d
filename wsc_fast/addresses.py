"""Hosts, origins and IP addresses: one grammar of them, for settings and for requests.

Rules
1.  A setting and a request are read by the same functions, so that each literal which HubConfig
    takes matches itself.
2.  Schemes and names have no case (RFC 3986 sections 3.1 and 3.2.2). An IP address in brackets is
    compared as an address, not as text.
3.  An IPv4 address is one, also where it comes as IPv6 (::ffff:192.0.2.1, RFC 4291 section
    2.5.5.2). An address with a zone (fe80::1%eth0) tells something to one machine only, and is
    none here.
4.  The functions return None for text that is not of the form. They raise nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from itertools import islice
from typing import NamedTuple, TypeVar

T = TypeVar("T")
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
# A name in lower case, or an IPv6 address in brackets; and the port, None where none is given.
Host = tuple[str, int | None]

# Characters of a name (RFC 3986 section 2.3: unreserved), and of the whole; DNS allows 253.
_HOST = re.compile(r"([a-z0-9._~-]{1,255}|\[[0-9a-f:.]{2,45}\])(?::([0-9]{1,5}))?").fullmatch
# An origin of a page, and one of a program of its own, such as capacitor://localhost or file://
# (RFC 6454 section 6.2; RFC 3986 section 3.1 for the scheme).
_WEB_ORIGIN = re.compile(r"(https?)://(.+)").fullmatch
_OTHER_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[!-~]*").fullmatch
# An origin has no path, query or fragment behind its scheme; and * means something else.
_NO_ORIGIN = re.compile(r"[/?#*]").search
_IP = re.compile(r"[0-9A-Fa-f:.]{2,45}").fullmatch
_NETWORK = re.compile(r"[0-9A-Fa-f:.]{2,45}(?:/[0-9.]{1,15})?").fullmatch
# A port of a forwarded address, which may be hidden (RFC 7239 section 6).
_FORWARDED_PORT = re.compile(r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?").fullmatch
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HIGHEST_PORT = 65_535
# Characters of an Origin header; browsers' have some 300 at most.
_LONGEST_ORIGIN = 1_024
# Proxies in a row that are looked through.
_MOST_HOPS = 16
_MAPPED = IPv6Network("::ffff:0:0/96")


class Origin(NamedTuple):
    """Where a page is from. The port is the scheme's own where the text has none."""

    scheme: str
    name: str
    port: int


def parse_host(text: str) -> Host | None:
    """Name and port of a Host header, or of the authority of a target or an origin.

    Args:
        text: "name", "name:port", "[IPv6]" or "[IPv6]:port".
    """
    match = _HOST(text.lower()) if text.isascii() else None
    if match is None:
        return None
    name, port_text = match.groups()
    port = int(port_text) if port_text else None
    if port is not None and not 0 < port <= _HIGHEST_PORT:
        return None
    if name[0] == "[":
        address = _parsed(name[1:-1], IPv6Address)
        if address is None:
            return None
        name = f"[{address}]"
    return name, port


def parse_origin(text: str) -> Origin | None:
    """The origin of a page that came by HTTP.

    Args:
        text: an Origin header; others than "http://host[:port]" and "https://..." give None.
    """
    fits = len(text) <= _LONGEST_ORIGIN and text.isascii()
    match = _WEB_ORIGIN(text.lower()) if fits else None
    host = None if match is None else parse_host(match[2])
    if match is None or host is None:
        return None
    return Origin(match[1], host[0], host[1] or _DEFAULT_PORTS[match[1]])


class AllowedOrigins:
    """The entries of HubConfig.allowed_origins, read once.

    Args:
        entries: "*", "null", an origin, a host of either scheme, or one of these two with "*." in
            front of the host, for its subdomains.

    Raises:
        ValueError: one of them is of another form.
    """

    def __init__(self, entries: tuple[str, ...]) -> None:
        self.every: bool = "*" in entries
        self.origins: set[Origin] = set()
        self._parents: list[tuple[str, Origin]] = []
        self._texts = {"null"} & set(entries)
        for entry in entries:
            if entry not in ("*", "null"):
                self._add(entry)

    def _add(self, entry: str) -> None:
        text = entry.lower()
        scheme, separator, rest = text.partition("://")
        if not separator:
            scheme, rest = "", text
        elif scheme not in _DEFAULT_PORTS:
            if not entry.isascii() or _OTHER_ORIGIN(text) is None or _NO_ORIGIN(rest):
                raise ValueError(f"{entry!a} is no origin")
            self._texts.add(text)
            return
        subdomains = rest.startswith("*.")
        host = parse_host(rest.removeprefix("*.")) if entry.isascii() else None
        if host is None or (subdomains and host[0][0] == "["):
            raise ValueError(f"{entry!a} is no origin and no host")
        for each in (scheme,) if scheme else _DEFAULT_PORTS:
            origin = Origin(each, host[0], host[1] or _DEFAULT_PORTS[each])
            if subdomains:
                self._parents.append((f".{origin.name}", origin))
            else:
                self.origins.add(origin)

    def has_text(self, origin: str) -> bool:
        """Whether an origin that is no page's is listed."""
        return len(origin) <= _LONGEST_ORIGIN and origin.lower() in self._texts

    def has(self, origin: Origin) -> bool:
        """Whether the origin of a page is listed, or that of one of its parent domains."""
        return origin in self.origins or any(
            origin.name.endswith(suffix)
            and (origin.scheme, origin.port) == (parent.scheme, parent.port)
            for suffix, parent in self._parents
        )


_allowed = lru_cache(maxsize=16)(AllowedOrigins)


def is_origin_entry(text: str) -> bool:
    """Whether HubConfig.allowed_origins takes it."""
    try:
        AllowedOrigins((text,))
    except ValueError:
        return False
    return True


def origin_allowed(origin: str, host: str, tls: bool, allowed: tuple[str, ...]) -> bool:
    """Whether a browser page of this origin may connect (RFC 6455 section 10.2).

    An origin with the host and port of the request is the host's own. With the scheme http it is
    not where the request came by TLS, or where `allowed` lists the same with https: somebody on the
    network can put anything into a page that comes without TLS.

    Args:
        origin: the Origin header.
        host: the Host header.
        tls: whether the request came by TLS, as far as is known. An origin with https is the host's
            own in any case, since a proxy may speak TLS.
        allowed: HubConfig.allowed_origins.
    """
    entries = _allowed(allowed)
    if entries.every:
        return True
    page = parse_origin(origin)
    if page is None:
        return entries.has_text(origin)
    own = parse_host(host)
    if own is not None and page.name == own[0]:
        ports = {scheme: own[1] or port for scheme, port in _DEFAULT_PORTS.items()}
        by_tls = tls or Origin("https", own[0], ports["https"]) in entries.origins
        if page.port == ports[page.scheme] and (page.scheme == "https" or not by_tls):
            return True
    return entries.has(page)


def _parsed(text: str, parse: Callable[[str], T]) -> T | None:
    try:
        return parse(text)
    except ValueError:
        return None


def parse_address(text: str) -> Address | None:
    """An IP address without a zone; IPv4 where it is IPv4 in IPv6."""
    address = _parsed(text, ip_address) if _IP(text) else None
    return getattr(address, "ipv4_mapped", None) or address


def parse_network(text: str) -> Network | None:
    """An IP address, or a network such as 10.0.0.0/8; IPv4 where it is IPv4 in IPv6."""
    network = _parsed(text, ip_network) if _NETWORK(text) else None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        return ip_network((int(mapped or 0), network.prefixlen - 96))
    return network


def parse_hop(text: str) -> Address | None:
    """The address that an item of X-Forwarded-For tells.

    Some proxies add the port; the form is then that of RFC 7239 section 6, whose quotes are taken
    as well.

    Args:
        text: "192.0.2.1", "192.0.2.1:80", "2001:db8::1", "[2001:db8::1]" or "[2001:db8::1]:80".
    """
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if text.startswith("["):
        inner, bracket, port = text[1:].partition("]")
        bracketed = bool(bracket) and ":" in inner and _FORWARDED_PORT(port)
        return parse_address(inner) if bracketed else None
    inner, colon, port = text.partition(":")
    if colon and ":" not in port and _FORWARDED_PORT(colon + port):
        text = inner
    return parse_address(text)


def forwarded_address(peer: str, forwarded_for: list[str], trusted: tuple[Network, ...]) -> str:
    """The address of the client whose request a proxy has passed on.

    Args:
        peer: the address that the connection comes from.
        forwarded_for: the X-Forwarded-For headers. Each proxy appends the address that it was asked
            from, so that only what trusted ones have appended can be believed.
        trusted: the proxies.

    Returns:
        str: the last address, seen from us, that is no trusted proxy. Text that is no address, and
        all before it, is not believed.
    """
    believed = peer
    address = parse_address(peer)
    for hop in islice(_from_the_end(forwarded_for), _MOST_HOPS):
        if address is None or not is_trusted(address, trusted):
            break
        address = parse_hop(hop)
        if address is not None:
            believed = str(address)
    return believed


def _from_the_end(forwarded_for: list[str]) -> Iterator[str]:
    for value in reversed(forwarded_for):
        comma = ","
        while comma:
            value, comma, hop = value.rpartition(",")
            yield hop.strip(" \t")


def is_trusted(address: Address, trusted: tuple[Network, ...]) -> bool:
    """Whether an address is one of the proxies."""
    return any(address in network for network in trusted)


def address_key(address: str) -> str:
    """The key of an address in counts: IPv4 by itself, IPv6 by its /64, since a site has all of it.

    Args:
        address: an IP address; other text stands for itself.
    """
    if ":" not in address:
        return address
    parsed = parse_address(address)
    if parsed is None:
        return address
    return parsed.packed[:8].hex() if parsed.version == 6 else str(parsed)
