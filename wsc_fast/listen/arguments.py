"""Checks of what `Hub.start` is told to listen on, before anything is opened."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from ssl import PROTOCOL_TLS_CLIENT, SSLContext, TLSVersion

from wsc_fast.errors import ValidationError
from wsc_fast.listen.sockets import Given

# A path, as it stands before the ? of a request target.
_PATH = re.compile(r"/[!-\"$->@-~]*\Z").match


def check_path(what: str, path: object) -> None:
    """Raises ValidationError for a path that no request target can be (RFC 9112 section 3.2.1)."""
    if not isinstance(path, str) or not _PATH(path):
        raise ValidationError(
            f"{what} must begin with / and have only visible ASCII characters but ? and #, "
            f"not {path!r}"
        )


def check_listen_arguments(
    host: str | Sequence[str] | None,
    port: int,
    sock: Given,
    ssl: SSLContext | None,
) -> list[socket.socket]:
    """Raises ValidationError for what cannot be listened on.

    A Unix socket is among it: the hub sets TCP options and looks at TCP's state.

    Returns:
        list[socket.socket]: those to listen on; none where host and port say it.
    """
    if ssl is not None and not isinstance(ssl, SSLContext):
        raise ValidationError(f"ssl must be an SSLContext or None, not {ssl!r}")
    if ssl is not None and ssl.protocol == PROTOCOL_TLS_CLIENT:
        raise ValidationError("ssl must be a context for a server, this one is for a client")
    if ssl is not None and ssl.minimum_version < TLSVersion.TLSv1_2:
        raise ValidationError(
            f"ssl allows {ssl.minimum_version.name}: its minimum_version must be TLSv1_2 or TLSv1_3"
        )
    if sock is not None:
        given = sock if isinstance(sock, (tuple, list)) else (sock,)
        if not given:
            raise ValidationError("sock is an empty list, expected one socket at least")
        sockets = [_checked(each) for each in given]
        if len({each.fileno() for each in sockets}) < len(sockets):
            raise ValidationError("sock has a socket twice, expected each once")
        return sockets
    if type(port) is not int or not 0 <= port <= 65535:
        raise ValidationError(f"port must be an int from 0 to 65535, not {port!r}")
    if host is None or host == "":
        return []  # all interfaces
    hosts = (host,) if isinstance(host, str) else host
    if not isinstance(hosts, (tuple, list)) or not hosts:
        raise ValidationError(f"host must be a str, a list of str or None, not {host!r}")
    for name in hosts:
        if not isinstance(name, str) or not name:
            raise ValidationError(f"host must be a str, a list of str or None, not {host!r}")
        if name.startswith(("/", "unix:", "\0")):
            raise ValidationError("Unix sockets cannot be served: the hub needs TCP")
        if not name.isprintable():
            raise ValidationError(f"host {name!r} holds characters that no address has")
    return []


def _checked(sock: object) -> socket.socket:
    if not isinstance(sock, socket.socket):
        raise ValidationError(f"sock must be a socket or a list of sockets, not {sock!r}")
    if sock.family == getattr(socket, "AF_UNIX", None):
        raise ValidationError("Unix sockets cannot be served: the hub needs TCP")
    if sock.fileno() < 0:
        raise ValidationError("sock is closed")
    if sock.type != socket.SOCK_STREAM:
        raise ValidationError("sock is no TCP socket")
    try:
        sock.getpeername()
    except OSError:
        pass
    else:
        raise ValidationError("sock is connected: it cannot listen")
    if not sock.getsockname()[1]:
        raise ValidationError("sock is not bound to an address")
    return sock
