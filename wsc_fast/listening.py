"""What a hub listens with: TLS contexts from files, and sockets of the service manager."""

from __future__ import annotations

import os
import socket
import ssl

from wsc_fast.errors import ConfigError

# The first descriptor that a service manager hands over (sd_listen_fds(3)).
_FIRST_INHERITED = 3


def tls_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    """A server's TLS context for PEM files: TLS 1.2 and newer.

    Args:
        certfile: the certificate and its chain.
        keyfile: its key; None where the key is in the same file.

    Returns:
        ssl.SSLContext.

    Raises:
        ConfigError: they cannot be loaded.

    Thread-safety: any thread.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without a password an encrypted key would ask for it at the terminal.
        context.load_cert_chain(certfile, keyfile, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the certificate {certfile!r} with the key {keyfile or certfile!r} cannot be loaded: "
            f"{error}"
        ) from error
    return context


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
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        raise ConfigError("no sockets were handed over to this process (LISTEN_PID)")
    given = os.environ.get("LISTEN_FDS") or "0"
    if not given.isdecimal():
        raise ConfigError(f"LISTEN_FDS is {given!r}, expected how many sockets were handed over")
    count = int(given)
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for number in range(count):
        if name is None or (number < len(names) and names[number] == name):
            try:
                sock = socket.socket(fileno=_FIRST_INHERITED + number)
            except OSError as error:
                raise ConfigError(
                    f"descriptor {_FIRST_INHERITED + number}, handed over, is no socket: {error}"
                ) from error
            sock.set_inheritable(False)
            return sock
    raise ConfigError(f"none of the {count} sockets handed over has the name {name!r}")
