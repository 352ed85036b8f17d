"""Clients that behave: their streams have to be right to the end."""

from __future__ import annotations

import asyncio
import struct

from trials.soak.clients import PATIENCE, Clients
from trials.soak.peer import Headers, Peer
from wsc_fast.testing import CLOSE, encode


async def behave(clients: Clients, user: str, headers: Headers, longest: float) -> None:
    """A client that behaves, whose stream has to be right."""
    draw = clients.draw
    kind = "async" if draw.random() < 0.1 else "good"
    name = None
    if not user and draw.random() < 0.03:
        name = clients.serial  # another one will ask for the same
    peer = await clients.connect(kind, user=user, good=True, headers=headers, name=name)
    record = peer.record
    if not peer.open.done() or not peer.open.result():
        clients.model.late(record, f"was not let in, within {PATIENCE} s")
        peer.transport.abort()
        return
    if user:
        peer.acks = draw.choice((1.0, 0.5, 0.1))
    life = asyncio.get_running_loop().time() + draw.random() * longest
    while not peer.over.done() and not clients.leaving.is_set():
        if asyncio.get_running_loop().time() > life and not (clients.draining and user):
            break
        await clients.pause(peer, 4.0)
        await clients.while_late()
        if record.code is None and not peer.over.done():
            what = draw.choices("mexoq", (10, 5, 1, 3, 0.1))[0]
            if clients.draining and what == "q":
                what = "m"
            peer.write(b"".join(peer.say(what) for _ in range(draw.choice((1, 1, 5)))))
            if clients.draining:
                peer.acks = 1.0
                peer.acknowledge()
            if draw.random() < 0.1:
                # A slow reader, within what is right.
                peer.transport.pause_reading()
                await asyncio.sleep(draw.random() * 0.2)
                peer.transport.resume_reading()
    if name is not None and not peer.over.done() and record.code is None:
        newer = await clients.connect("good", user=record.user, good=True, name=name)
        clients.model.done["connections replaced"] += 1
        await leave(clients, newer)
    await leave(clients, peer)


async def leave(clients: Clients, peer: Peer) -> None:
    """Says goodbye in one of the ways that are right, and waits for the end."""
    draw, record = clients.draw, peer.record
    if record.code is None and not peer.over.done():
        record.said_bye = True
        how = draw.random()
        if record.kind == "async" or how < 0.4:
            peer.write(peer.say("B"))
            await asyncio.wait(
                [peer.answered, peer.over], timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED
            )
            farewell = b""
        else:
            farewell = peer.say("b")
        if how < 0.8 or clients.tls is not None:  # TLS has no half-closing
            if not peer.ending:
                peer.ending = True
                farewell += encode(CLOSE, struct.pack("!H", 1000))
            peer.write(farewell)
            clients.model.done["leaves, by a close frame"] += 1
        else:
            peer.write(farewell)
            if not peer.over.done() and not peer.transport.is_closing():
                peer.transport.write_eof()
                peer.silent = True
            clients.model.done["leaves, by half-closing"] += 1
    await asyncio.wait([peer.over], timeout=PATIENCE)
    if not peer.over.done():
        clients.model.late(record, f"asked for its end, which did not come in {PATIENCE} s")
        peer.transport.abort()
