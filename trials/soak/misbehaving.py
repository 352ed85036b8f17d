"""Clients that stall, vanish, tear their frames, flood, or send what no client may."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from trials.soak.clients import PATIENCE, Clients
from trials.soak.messages import (
    CLOSE_TIMEOUT,
    HANDSHAKE_TIMEOUT,
    HEARTBEAT_INTERVAL,
    HEARTBEAT_TIMEOUT,
)
from trials.soak.model import SLOW
from wsc_fast.testing import PING, TEXT, encode

# Bytes that no peer may send (RFC 6455), and the codes that it may be closed with.
MALFORMED: list[tuple[bytes, tuple[int, ...]]] = [
    (b"\x81\x05hello", (1002,)),  # not masked
    (b"\xf1\x80\0\0\0\0", (1002,)),  # reserved bits
    (b"\x83\x80\0\0\0\0", (1002,)),  # unknown opcode
    (b"\x80\x80\0\0\0\0", (1002,)),  # continues nothing
    (b"\x09\x80\0\0\0\0", (1002,)),  # a ping in fragments
    (b"\x89\xfe\0\x80\0\0\0\0" + bytes(128), (1002,)),  # a long ping
    (b"\x81\x82\0\0\0\0\xff\xfe", (1007,)),  # no UTF-8
    (b"\x82\xff\0\0\0\1\0\0\0\0\0\0\0\0", (1009,)),  # 4 GiB
    (b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", (1002, 1009)),
    (b"\x88\x81\0\0\0\0\x03", (1002,)),  # a close code of one byte
    (b"\x88\x82\0\0\0\0\x03\xed", (1002,)),  # 1005 on the wire
    (b"\x01\x81\0\0\0\0a\x81\x81\0\0\0\0b", (1002,)),  # a message within a message
]
GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /ws HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123456789",
    b"\0" * 500,
    b"GET /" + b"a" * 40_000,
]


async def reset(clients: Clients, user: str = "") -> None:
    peer = await clients.connect("reset", user=user)
    peer.acks = 0.3
    await clients.pause(peer, 15.0)
    peer.reset()


async def stall(clients: Clients) -> None:
    peer = await clients.connect("stall", rcvbuf=4096)
    peer.transport.pause_reading()
    await clients.pause(peer, 25.0)
    if clients.draw.random() < 0.5:
        peer.transport.resume_reading()
        await clients.pause(peer, 2.0)
    peer.transport.abort()


async def half_open(clients: Clients) -> None:
    """Its network has gone: it never answers again, and says no goodbye. The hub finds out."""
    peer = await clients.connect("half-open")
    if peer.open.done() and peer.open.result():
        peer.vanish()
        record = peer.record
        longest = HEARTBEAT_TIMEOUT + HEARTBEAT_INTERVAL + CLOSE_TIMEOUT + 10
        waiting = asyncio.get_running_loop().time() + longest
        while not record.gone and not clients.leaving.is_set():
            await asyncio.sleep(0.2)
            if asyncio.get_running_loop().time() > waiting:
                clients.model.late(record, f"had vanished, and is there after {longest} s")
                break
        clients.model.done["vanished clients found out"] += record.gone
    peer.reset()


async def malformed(clients: Clients) -> None:
    peer = await clients.connect("malformed")
    await clients.pause(peer, 3.0)
    wrong, codes = clients.draw.choice(MALFORMED)
    if peer.record.code is None and not peer.over.done():
        peer.ending = True
        peer.write(wrong)
        await asyncio.wait([peer.over], timeout=PATIENCE)
        code = peer.record.code
        if code not in (*codes, SLOW, None) and not peer.record.kicked:
            clients.model.violation(f"{peer.record}: {wrong[:14]!r} closed with {code}")
        if not peer.over.done():
            clients.model.late(peer.record, f"is open after {wrong[:14]!r}")
    peer.transport.abort()


async def torn(clients: Clients) -> None:
    peer = await clients.connect("torn")
    await clients.pause(peer, 5.0)
    whole = encode(TEXT, b"z" * clients.draw.randrange(1, 3_000))
    peer.write(whole[: clients.draw.randrange(1, len(whole))])
    await clients.pause(peer, 2.0)
    peer.transport.abort() if clients.draw.random() < 0.5 else peer.transport.close()


async def flood(clients: Clients) -> None:
    """Pings without reading what is answered."""
    peer = await clients.connect("flood", rcvbuf=4096)
    peer.transport.pause_reading()
    for _ in range(20):
        peer.write(encode(PING, b"p" * 100) * 200)
        await clients.pause(peer, 0.2)
        if peer.over.done() or clients.leaving.is_set():
            break
    peer.transport.abort()


async def slowloris(clients: Clients) -> None:
    peer = await clients.connect("slowloris", upgrade=False)
    begin = time.monotonic()
    for byte in peer.request():
        if peer.over.done():
            break
        peer.write(bytes([byte]))
        await asyncio.wait([peer.over], timeout=0.2)
        if time.monotonic() > begin + 4 * HANDSHAKE_TIMEOUT:
            clients.model.late(peer.record, f"was suffered for {4 * HANDSHAKE_TIMEOUT} s")
            break
    peer.transport.abort()


async def garbage(clients: Clients) -> None:
    # Of a hub that speaks TLS, half of it comes without.
    peer = await clients.connect("garbage", upgrade=False, secure=clients.draw.random() < 0.5)
    peer.write(clients.draw.choice(GARBAGE))
    await asyncio.wait([peer.over], timeout=4)
    peer.transport.abort()


async def refused(clients: Clients) -> None:
    kind = clients.draw.choice(("autherror", "refused", "unwanted", "slowauth"))
    peer = await clients.connect(kind)
    await clients.pause(peer, 5.0)
    peer.transport.abort()


async def misbehave(clients: Clients) -> None:
    """One of the ways of this file, but for `stall`, which costs the server memory."""
    ways: list[Callable[[Clients], Awaitable[None]]] = [
        *(half_open, malformed, torn, flood, slowloris, garbage, refused, reset),
    ]
    await clients.draw.choice(ways)(clients)
