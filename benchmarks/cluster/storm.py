"""Very many aware clients that come back at once, to a hub that has not heard of them.

    python benchmarks/cluster/storm.py PORT CLIENTS POSITIONS

CLIENTS clients connect, POSITIONS is JSON: by room, the position up to which its clients have all.
It prints one line of JSON: the seconds until each had recovered, and what this process took.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import socket
import sys
import time
from typing import Any

from benchmarks.cluster.receivers import PATIENCE, UPGRADE

# Upgrades that are under way at once: below the backlog of a listening socket.
AT_ONCE = 1000
AWARE = "Sec-WebSocket-Protocol: wsc.1\r\n"
RECOVERED = b'"recovered":true'
LOST = b'"recovered":false'
LONGEST_MARK = max(len(RECOVERED), len(LOST))


def masked(payload: bytes) -> bytes:
    """A text frame of a client, with a mask that does nothing, but has to be undone."""
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else bytes((0xFE, size >> 8, size & 255))
    return b"\x81" + length + bytes(4) + payload


def hello(positions: dict[str, str]) -> bytes:
    return masked(json.dumps({"hello": 1, "pos": positions}).encode() + b"\n")


class Storm:
    """The clients.

    Args:
        port: of the hub.
        count: of clients.
        positions: by room.
    """

    def __init__(self, port: int, count: int, positions: dict[str, str]) -> None:
        self._address = ("127.0.0.1", port)
        rooms = list(positions)
        self._left = [rooms[number % len(rooms)] for number in range(count)]
        self._positions = positions
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._rooms: dict[int, str] = {}
        self._tails: dict[int, bytes] = {}
        self._upgrading = 0
        self.times: list[float] = []
        self.lost = 0
        self.nbytes = 0

    def run(self) -> None:
        """Returns once each client has recovered, or cannot."""
        count = len(self._left)
        self._start = time.monotonic()
        while len(self.times) + self.lost < count:
            while self._left and self._upgrading < AT_ONCE:
                self._connect(self._left.pop())
            ready = self._poll.poll(PATIENCE)
            if not ready:
                raise SystemExit(f"{count - len(self.times)} clients heard nothing more")
            for number, event in ready:
                if event & select.EPOLLIN:
                    self._read(number)
                elif event & select.EPOLLOUT:
                    self._request(number)
                else:
                    raise SystemExit("a connection was refused")

    def _connect(self, room: str) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        error = sock.connect_ex(self._address)
        if error not in (0, errno.EINPROGRESS):
            raise SystemExit(f"no connection: {os.strerror(error)}")
        number = sock.fileno()
        self._sockets[number], self._rooms[number] = sock, room
        self._poll.register(number, select.EPOLLOUT)
        self._upgrading += 1

    def _request(self, number: int) -> None:
        request = UPGRADE.format(f"/ws?room={self._rooms[number]}", AWARE)
        self._sockets[number].send(request.encode())
        self._poll.modify(number, select.EPOLLIN)

    def _read(self, number: int) -> None:
        sock = self._sockets[number]
        data = sock.recv(65536)
        if not data:
            raise SystemExit("the hub has closed a connection")
        self.nbytes += len(data)
        if number not in self._tails:
            if b" 101 " not in data[:20]:
                raise SystemExit(f"no upgrade: {data[:200]!r}")
            room = self._rooms[number]
            sock.send(hello({room: self._positions[room]}))
            self._upgrading -= 1
        seen = self._tails.get(number, b"") + data
        if RECOVERED in seen:
            self.times.append(time.monotonic() - self._start)
            self._poll.modify(number, 0)
        elif LOST in seen:
            self.lost += 1
            self._poll.modify(number, 0)
        self._tails[number] = data[-LONGEST_MARK:]


def main(port: str, count: str, positions: str) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    storm = Storm(int(port), int(count), json.loads(positions))
    storm.run()
    used = resource.getrusage(resource.RUSAGE_SELF)
    times = sorted(storm.times)
    result: dict[str, Any] = {
        "recovered": len(times),
        "lost": storm.lost,
        "half": times[len(times) // 2],
        "all": times[-1],
        "bytes": storm.nbytes,
        "cpu": used.ru_utime + used.ru_stime,
    }
    print(json.dumps(result), flush=True)
    sys.stdin.read()  # the connections stay until this process is told to end


if __name__ == "__main__":
    main(*sys.argv[1:])
