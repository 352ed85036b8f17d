"""100 honest clients and, now and then, a new one.

    python -m trials.attack.honest CPU PORT [tls]

Each client sends 20 messages a second, each of which comes back; its latency is from right before
the send to right after the read, whatever else this process was late with. For each line "SECONDS"
of standard input: measures for so long, and prints a line of JSON.

It runs ahead of every other process of its core, so that what it measures is the server and the
kernel, not the attackers' need for the same core.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import select
import socket
import ssl
import sys
import time

from wsc_fast.testing import BINARY, encode, reset_when_closed, trusting, upgrade_request

CLIENTS = 100
TICK = 0.002
PER_TICK = 4
# Every so many ticks a new client comes.
NEWCOMER_TICKS = 100
PAYLOAD = 64


class Client:
    """One connection; what it has sent and not got back, oldest first."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sent: list[float] = []
        self.buffer = b""


class Newcomer:
    """A connection on its way to its 101."""

    def __init__(self, port: int, number: int) -> None:
        self.began = time.perf_counter()
        self.asked = False
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.bind((f"127.1.{number // 250 % 250}.{number % 250 + 1}", 0))
        code = self.sock.connect_ex(("127.0.0.1", port))
        assert code in (0, errno.EINPROGRESS), os.strerror(code)

    def shake_hands(self, context: ssl.SSLContext) -> bool:
        """A step of the handshake of TLS; whether it was the last one."""
        if not isinstance(self.sock, ssl.SSLSocket):
            self.sock = context.wrap_socket(self.sock, do_handshake_on_connect=False)
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True


class Crowd:
    """The honest clients of one server."""

    def __init__(self, port: int, tls: ssl.SSLContext | None) -> None:
        self.port = port
        self.tls = tls
        self.random = random.Random(1)
        self.clients: dict[int, Client] = {}
        self.newcomers: dict[int, Newcomer] = {}
        self.came = 0
        self.poll = select.epoll()
        self.lost = 0  # clients that the server has closed
        self.frame = encode(BINARY, bytes(PAYLOAD))
        self.answer = PAYLOAD + 2
        for number in range(CLIENTS):
            sock = socket.socket()
            sock.bind((f"127.2.0.{number + 1}", 0))
            sock.connect(("127.0.0.1", port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                sock = tls.wrap_socket(sock)
            sock.sendall(upgrade_request())
            assert sock.recv(4096).startswith(b"HTTP/1.1 101 ")
            sock.setblocking(False)
            self.clients[sock.fileno()] = Client(sock)
            self.poll.register(sock, select.EPOLLIN)

    def measure(self, seconds: float) -> dict[str, object]:
        self.latencies: list[float] = []
        self.entered: list[float] = []
        self.refused = 0
        began = time.perf_counter()
        self.lost = ticks = 0
        while True:
            now = time.perf_counter()
            if now >= began + seconds:
                break
            if now >= began + ticks * TICK:
                # Ticks that this process was late for are left out: no bursts.
                ticks = int((now - began) / TICK) + 1
                self.send()
                if ticks % NEWCOMER_TICKS == 0:
                    self.come()
            self.read(max(0.0, began + ticks * TICK - time.perf_counter()))
        # A server that stalls owes these: they count with the time that they have waited.
        now = time.perf_counter()
        waiting = [now - sent for client in self.clients.values() for sent in client.sent]
        late = sorted([*self.latencies, *(wait for wait in waiting if wait > 0.05)])
        outside = [now - newcomer.began for newcomer in self.newcomers.values()]
        return {
            "p50": late[len(late) // 2],
            "p99": late[int(len(late) * 0.99)],
            "worst": late[-1],
            "count": len(late),
            "lost": self.lost,
            "refused": self.refused,
            "entering": max([0.0, *self.entered, *outside]),
        }

    def send(self) -> None:
        for client in self.random.sample(list(self.clients.values()), PER_TICK):
            client.sent.append(time.perf_counter())
            with contextlib.suppress(OSError):  # which the read will tell of
                client.sock.send(self.frame)

    def come(self) -> None:
        self.came += 1
        newcomer = Newcomer(self.port, self.came)
        self.newcomers[newcomer.sock.fileno()] = newcomer
        self.poll.register(newcomer.sock, select.EPOLLOUT)

    def read(self, timeout: float) -> None:
        # epoll counts in milliseconds: the last one is waited for in the next call.
        for number, _ in self.poll.poll(timeout):
            client = self.clients.get(number)
            if client is None:
                self.go_on(number, self.newcomers[number])
                continue
            try:
                data = receive(client.sock)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            now = time.perf_counter()
            if not data:
                self.lost += 1
                self.poll.unregister(number)
                del self.clients[number]
                client.sock.close()
                continue
            client.buffer += data
            self.take(client, now)

    def take(self, client: Client, now: float) -> None:
        data = client.buffer
        while len(data) >= self.answer:
            size, at = data[1], 2
            if size == 126:
                if len(data) < 4:
                    break
                size, at = int.from_bytes(data[2:4], "big"), 4
            if len(data) < at + size:
                break
            if size == PAYLOAD:  # a broadcast is longer
                self.latencies.append(now - client.sent.pop(0))
            data = data[at + size :]
        client.buffer = data

    def go_on(self, number: int, newcomer: Newcomer) -> None:
        try:
            if not newcomer.asked:
                self.poll.modify(number, select.EPOLLIN)
                if self.tls is None or newcomer.shake_hands(self.tls):
                    newcomer.asked = True
                    newcomer.sock.send(upgrade_request())
                return
            status = receive(newcomer.sock)[9:12]
        except BlockingIOError:
            return
        except OSError:
            status = b""
        if status == b"101":
            self.entered.append(time.perf_counter() - newcomer.began)
        else:
            self.refused += 1
        self.poll.unregister(number)
        reset_when_closed(newcomer.sock)
        newcomer.sock.close()
        del self.newcomers[number]


def receive(sock: socket.socket) -> bytes:
    """All that is there, or b"" at the end of the stream; raises BlockingIOError for nothing."""
    try:
        data = sock.recv(65536)
        while data and isinstance(sock, ssl.SSLSocket) and sock.pending():
            data += sock.recv(65536)
    except ssl.SSLWantReadError:
        raise BlockingIOError from None
    return data


def go_ahead() -> None:
    """Ahead of the others, where this is allowed; attackers are behind in any case."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[1])})
    crowd = Crowd(int(sys.argv[2]), trusting() if sys.argv[3:] == ["tls"] else None)
    go_ahead()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(crowd.measure(float(line))), flush=True)
