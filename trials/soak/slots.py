"""Slots: each has one client after the other, of a kind that its number tells."""

from __future__ import annotations

import asyncio

from trials.soak.behaving import behave
from trials.soak.clients import Clients
from trials.soak.misbehaving import misbehave, reset, stall
from trials.soak.peer import Headers

EXTENSIONS = "Sec-WebSocket-Extensions"
# Compression with a context costs the server memory, without one it does not.
COMPRESSED: Headers = [(EXTENSIONS, "permessage-deflate")]
WITHOUT_CONTEXT: Headers = [
    (EXTENSIONS, "permessage-deflate; server_no_context_takeover; client_no_context_takeover")
]


def user_of(index: int, singles: int, shared: int) -> str:
    """The user of a slot that has messages to acknowledge, alone or with another slot; or ""."""
    if index < singles:
        return f"a{index}"
    return f"s{(index - singles) // 2}" if index < singles + 2 * shared else ""


def headers_of(index: int) -> Headers:
    if index % 8 == 0:
        return WITHOUT_CONTEXT
    return COMPRESSED if index % 50 == 1 else ()


async def slot(clients: Clients, index: int, user: str, seconds: float) -> None:
    """One client after the other, until all have to leave.

    Clients that cost the server much memory have slots of their own, so that their number stays.

    Args:
        clients: what they share.
        index: of the slot.
        user: whom its clients belong to; "" for users of their own.
        seconds: that the run takes.
    """
    draw, headers = clients.draw, headers_of(index)
    await asyncio.sleep(draw.random() * min(5.0, seconds / 4))
    while clients.running or (clients.draining and user):
        await clients.while_late()
        try:
            if user and draw.random() < 0.3 and clients.running:
                await reset(clients, user)
            elif user or index % 10 < 7:
                await behave(clients, user, headers, min(40.0, seconds / 2))
            elif index % 10 == 7:
                await stall(clients)
            else:
                await misbehave(clients)
        except OSError as error:
            clients.model.done[f"connect: {type(error).__name__}"] += 1
        if clients.running:
            await asyncio.sleep(draw.random())
