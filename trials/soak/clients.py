"""All clients of a soak: what they share, and the time that each lets pass.

Their ways of life are in behaving.py and misbehaving.py; slots.py gives each client one.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from typing import Any

from trials.soak.messages import LATE, STOOD_STILL
from trials.soak.model import Model, Record
from trials.soak.peer import Peer

# How long a client that behaves waits for the end that it asked for, or for its upgrade.
PATIENCE = 30.0


class Clients:
    """The clients' view of the run, and their connections.

    Attributes:
        running: new clients come.
        draining: none comes but for the users who have messages left to acknowledge.
        leaving: set when all have to go.
        lateness: by how many seconds this process was late of late.
    """

    def __init__(self, model: Model, draw: random.Random, tls: ssl.SSLContext | None) -> None:
        self.model = model
        self.draw = draw
        self.tls = tls
        self.port = 0
        self.serial = 0
        self.running = True
        self.draining = False
        self.leaving = asyncio.Event()
        self.lateness = 0.0

    async def connect(
        self,
        kind: str,
        *,
        user: str = "",
        good: bool = False,
        rcvbuf: int | None = None,
        secure: bool = True,
        **options: Any,
    ) -> Peer:
        """A new connection; `options` are those of a Peer.

        With `secure` it speaks TLS where the hub does.
        """
        self.serial += 1
        record = Record(self.serial, kind, user or f"u{self.serial}", good)
        self.model.records[record.serial] = record
        self.model.done[f"connections, {kind}"] += 1
        sock = socket.socket()
        if rcvbuf is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        peer = Peer(self.model, self.draw, record, **options)
        await loop.sock_connect(sock, ("127.0.0.1", self.port))
        if self.tls is None or not secure:
            await loop.create_connection(lambda: peer, sock=sock)
        else:
            await loop.create_connection(lambda: peer, sock=sock, ssl=self.tls, server_hostname="")
        if peer.upgrade:
            await asyncio.wait([peer.open], timeout=PATIENCE)
        return peer

    def late(self, seconds: float) -> None:
        """This process is late by so much."""
        self.lateness = max(seconds, 0.8 * self.lateness)
        if seconds > LATE:
            for record in self.model.records.values():
                record.lagged = True
        if seconds > STOOD_STILL:
            self.model.stood_still()

    async def while_late(self) -> None:
        while self.lateness > LATE and not self.leaving.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.1 + self.draw.random() * 0.4)

    async def pause(self, peer: Peer, longest: float) -> None:
        """Some time of a connection's life, cut short by its end or by the end of all."""
        waiting = asyncio.ensure_future(self.leaving.wait())
        seconds = self.draw.random() * longest
        await asyncio.wait(
            [peer.over, waiting], timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        waiting.cancel()
