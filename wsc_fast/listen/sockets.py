"""The sockets that a hub listens on: its own, and those of the service manager.

This module binds them, and not the loop: asyncio and uvloop, and the versions of Python, each do
something else where one of several addresses cannot be had.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from wsc_fast.errors import ConfigError
from wsc_fast.log import log

# Where to listen: an address, a name, a list of these, or None or "" for all interfaces.
Host = str | Sequence[str] | None
# Sockets to listen on instead: one that is bound, or a list of these.
Given = socket.socket | Sequence[socket.socket] | None

# The first descriptor that a service manager hands over (sd_listen_fds(3)).
_FIRST_INHERITED = 3
# Errors for an address that is not one of this machine, or of a family that it does not have.
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
# How many ports are tried, where one has to be free at each of several addresses.
_MOST_CHOICES = 20


class _Place(NamedTuple):
    """One address to listen on."""

    host: str | None  # as the caller has written it
    literal: bool  # it is an address, and not a name that may stand for several
    family: int
    address: tuple[Any, ...]  # as getaddrinfo tells it, without the port


async def bound_sockets(host: Host, port: int, reuse_port: bool) -> list[socket.socket]:
    """Sockets that are bound, for all addresses of the hosts and with one port.

    A host that is written as an address has to be one of this machine. Of the addresses that a
    name stands for, one has to be: where `localhost` is ::1 too, a container may have no IPv6.
    "::" takes IPv4 as well, if no host is an IPv4 address.

    Args:
        host: an address, a name, a list of these, or None or "" for all interfaces.
        port: 0 chooses one that is free for all.
        reuse_port: other processes may listen on it as well.

    Raises:
        OSError: an address cannot be had.
        UnicodeError: a host has a name that none can have.
    """
    found: list[_Place] = []
    for each in [host or None] if isinstance(host, str) or host is None else host:
        found += await _places(each)
    # Each address once, and as an address if it is written as one somewhere.
    found.sort(key=lambda place: place.literal)
    places = list({(place.family, place.address): place for place in found}.values())
    for choice in range(_MOST_CHOICES):
        try:
            return _bind(places, port, reuse_port)
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            if port or len(places) < 2 or not in_use or choice == _MOST_CHOICES - 1:
                raise
    raise AssertionError


async def _places(host: str | None) -> list[_Place]:
    flags = socket.AI_PASSIVE
    try:
        found = socket.getaddrinfo(
            host, 0, type=socket.SOCK_STREAM, flags=flags | socket.AI_NUMERICHOST
        )
        literal = host is not None
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=flags)
        literal = False
    return [
        _Place(host, literal, family, (address[0], *address[2:]))
        for family, _, _, _, address in found
        if family in (socket.AF_INET, socket.AF_INET6)
    ]


def _bind(places: list[_Place], port: int, reuse_port: bool) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    has_ipv4 = any(place.family == socket.AF_INET for place in places)
    served: set[str | None] = set()
    missing: list[tuple[_Place, OSError]] = []
    try:
        for place in places:
            try:
                sock = _bound(place, port, reuse_port, has_ipv4)
            except OSError as error:
                if place.literal or error.errno not in _NOT_HERE:
                    raise
                missing.append((place, error))
            else:
                sockets.append(sock)
                served.add(place.host)
                port = port or sock.getsockname()[1]
        for place, reason in missing:
            if place.host not in served:
                raise reason
            log.info(
                "%s, an address of %s, is not listened on: %s",
                place.address[0],
                place.host or "this machine",
                reason.strerror,
            )
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bound(place: _Place, port: int, reuse_port: bool, has_ipv4: bool) -> socket.socket:
    sock = socket.socket(place.family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if place.family == socket.AF_INET6:
            both = place.address[0] == "::" and not has_ipv4
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        sock.bind((place.address[0], port, *place.address[1:]))
    except BaseException:
        sock.close()
        raise
    return sock


def inherited_socket(name: str | None = None) -> socket.socket:
    """A listening socket that the service manager handed over (systemd's socket activation).

    Args:
        name: of the socket unit (`FileDescriptorName=`); None for the first one.

    Returns:
        socket.socket: for `Hub.run(sock=...)` or `Hub.start(sock=...)`.

    Raises:
        ConfigError: there is none, or none of this name, or it is no socket.

    Thread-safety: any thread. Source: sd_listen_fds(3).
    """
    if not are_handed_over():
        raise ConfigError("no sockets were handed over to this process (LISTEN_PID)")
    count = _count_handed_over()
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for number in range(count):
        if name is None or (number < len(names) and names[number] == name):
            return socket_of(_FIRST_INHERITED + number)
    raise ConfigError(f"none of the {count} sockets handed over has the name {name!r}")


def are_handed_over() -> bool:
    """Whether the service manager has started this process with sockets (LISTEN_PID)."""
    return os.environ.get("LISTEN_PID") == str(os.getpid())


def handed_over() -> list[socket.socket]:
    """All sockets that the service manager handed over.

    Raises:
        ConfigError: one of them is no socket.
    """
    return [socket_of(_FIRST_INHERITED + number) for number in range(_count_handed_over())]


def _count_handed_over() -> int:
    given = os.environ.get("LISTEN_FDS") or "0"
    if not given.isdecimal():
        raise ConfigError(f"LISTEN_FDS is {given!r}, expected how many sockets were handed over")
    return int(given)


def socket_of(descriptor: int) -> socket.socket:
    """The socket of a descriptor that another process handed over; children do not get it.

    Raises:
        ConfigError: it is no socket.
    """
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(f"descriptor {descriptor}, handed over, is no socket: {error}") from error
    sock.set_inheritable(False)
    return sock
