"""Clients that only receive: bare sockets, read by one epoll, so that they cost little.

They count bytes. All messages of one measurement have the same size on the wire, so that the number
of bytes says how many messages have come.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence

UPGRADE = (
    "GET {} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{}\r\n"
)
# Seconds in which something has to come.
PATIENCE = 30.0


def upgraded(port: int, path: str, headers: str = "") -> tuple[socket.socket, bytes]:
    """A connection behind its upgrade, and the bytes that came with the answer."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.settimeout(PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(UPGRADE.format(path, headers).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = sock.recv(4096)
        if not data:
            break
        answer += data
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101 "):
        raise SystemExit(f"no upgrade: {head!r}")
    return sock, rest


class Receivers:
    """Some clients.

    Args:
        sockets: connections behind their upgrade.
    """

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = {sock.fileno(): sock for sock in sockets}
        self._memory = memoryview(bytearray(1 << 20))
        self._poll = select.epoll()
        for number in self._sockets:
            self._poll.register(number, select.EPOLLIN)

    def __len__(self) -> int:
        return len(self._sockets)

    def receive(self, count: int) -> None:
        """Returns once all of them together have got so many bytes, and fails if it is more."""
        while count > 0:
            ready = self._poll.poll(PATIENCE)
            if not ready:
                raise SystemExit(f"{count} bytes did not come")
            for number, _ in ready:
                got = self._sockets[number].recv_into(self._memory)
                if not got:
                    raise SystemExit("the server has closed a connection")
                count -= got
        if count:
            raise SystemExit(f"{-count} bytes came that nobody expected")

    def close(self) -> None:
        self._poll.close()
        for sock in self._sockets.values():
            sock.close()
