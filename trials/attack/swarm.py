"""Very many connections that send what they are told to: the engine of the attacks.

Plain non-blocking sockets, one thread, precomputed bytes. All sizes are bounded: connections at
once, connections in all, and the time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections import deque
from dataclasses import dataclass

from wsc_fast.testing import reset_when_closed

# The most that are connecting at once: more than the kernel's backlog would be lost there.
CONNECTING = 200
ADDRESSES = 200
NUMBER = b"NUMBER"
EXPECTED_END = select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP


@dataclass(frozen=True)
class Script:
    """The behaviour of each connection of an attack.

    Attributes:
        count: connections at once.
        first: sent once it is connected. NUMBER in it is another six digits for each connection.
        then: sent again and again afterwards, as fast as the kernel takes it.
        every: seconds between two of them, for attackers with time; 0 for those without.
        step: bytes of `then` sent at a time, with `every`; 0 for all of it.
        reads: it reads, and throws away, what comes.
        receive_buffer: SO_RCVBUF; small, so that one that does not read is soon full.
        again: it comes back when the server ends it.
        leave: it leaves by itself once `first` is sent ("reset"), or the answer is there
            ("answered"); "" stays.
        most: connections in all.
    """

    count: int
    first: bytes = b""
    then: bytes = b""
    every: float = 0.0
    step: int = 0
    reads: bool = True
    receive_buffer: int = 0
    again: bool = False
    leave: str = ""
    most: int = 100_000


class Peer:
    """One attacking connection."""

    __slots__ = ("at", "open", "sending", "sock")

    def __init__(self, sock: socket.socket, sending: bytes) -> None:
        self.sock = sock
        self.sending = memoryview(sending)
        self.open = False
        self.at = 0  # in `then`, with `step`


class Swarm:
    """The connections of one attack on one server."""

    def __init__(self, script: Script, port: int) -> None:
        self.script = script
        self.port = port
        self.poll = select.epoll()
        self.peers: dict[int, Peer] = {}
        self.connecting = 0
        self.made = 0  # connections so far
        self.open = 0  # of them, those that were connected
        self.ended = 0  # by the server
        self.patient: deque[tuple[float, Peer]] = deque()  # who sends next, and when

    def run(self, seconds: float) -> None:
        script = self.script
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            while (
                len(self.peers) < script.count
                and self.connecting < CONNECTING
                and (script.again or script.leave or self.made < script.count)
                and self.made < script.most
            ):
                if not self.connect():
                    break
            self.trickle()
            wait = 0.05
            if self.patient:
                wait = min(wait, max(0.0, self.patient[0][0] - time.monotonic()))
            for number, events in self.poll.poll(wait, 256):
                peer = self.peers.get(number)
                if peer is not None:
                    self.handle(peer, events)
        for peer in list(self.peers.values()):
            self.close(peer)

    def connect(self) -> bool:
        """Begins one more connection; False if the machine has no port or file left for it."""
        try:
            sock = socket.socket()
        except OSError:
            return False
        sock.setblocking(False)
        if self.script.receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.script.receive_buffer)
        # To go without a FIN leaves no TIME_WAIT, of which a storm would have too many.
        reset_when_closed(sock)
        try:
            sock.bind((f"127.3.{self.made % ADDRESSES}.1", 0))
            code = sock.connect_ex(("127.0.0.1", self.port))
        except OSError as error:
            code = error.errno or errno.EIO
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            return False
        self.made += 1
        self.connecting += 1
        peer = Peer(sock, self.script.first.replace(NUMBER, b"%06d" % self.made))
        if self.script.step:
            # Each begins elsewhere in what all send.
            peer.at = self.made * self.script.step % len(self.script.then)
        self.peers[sock.fileno()] = peer
        self.poll.register(sock, select.EPOLLOUT | select.EPOLLRDHUP)
        return True

    def handle(self, peer: Peer, events: int) -> None:
        script = self.script
        if not peer.open and events & (select.EPOLLOUT | EXPECTED_END):
            peer.open = True
            self.connecting -= 1
            self.open += 1
        try:
            if events & select.EPOLLIN:
                answered = bool(peer.sock.recv(1 << 16))
                if not answered or script.leave == "answered":
                    self.close(peer, ended=not answered)
                    return
            if events & EXPECTED_END:
                self.close(peer, ended=True)
                return
            if events & select.EPOLLOUT:
                self.send(peer)
        except BlockingIOError:
            return
        except OSError:
            self.close(peer, ended=True)

    def send(self, peer: Peer) -> None:
        script = self.script
        if peer.sending:
            peer.sending = peer.sending[peer.sock.send(peer.sending) :]
            if peer.sending:
                return
            if script.leave == "reset":
                self.close(peer)
                return
        if script.then and not script.every:
            peer.sending = memoryview(script.then)
            return  # other peers that are ready come first
        if script.every:
            self.patient.append((time.monotonic() + script.every, peer))
        events = select.EPOLLRDHUP | (select.EPOLLIN if script.reads else 0)
        self.poll.modify(peer.sock, events)

    def trickle(self) -> None:
        """Peers whose time has come send a little more."""
        script = self.script
        now = time.monotonic()
        while self.patient and self.patient[0][0] <= now:
            _, peer = self.patient.popleft()
            if peer.sock.fileno() not in self.peers:
                continue
            some = script.then
            if script.step:
                some = script.then[peer.at : peer.at + script.step]
                peer.at = (peer.at + script.step) % len(script.then)
            try:
                peer.sock.send(some)
            except BlockingIOError:
                pass
            except OSError:
                self.close(peer, ended=True)
                continue
            self.patient.append((now + script.every, peer))

    def close(self, peer: Peer, ended: bool = False) -> None:
        if not peer.open:
            peer.open = True
            self.connecting -= 1
        self.ended += ended
        del self.peers[peer.sock.fileno()]
        with contextlib.suppress(OSError):
            peer.sock.close()


def be_cheap(cpu: int) -> None:
    """Only what others leave of the core: an attacker is not to cost the honest clients theirs."""
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
