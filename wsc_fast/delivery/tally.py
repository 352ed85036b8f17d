"""How many messages each of several clients may acknowledge: one pass over each mailbox.

A mailbox may hold very many messages, and a user many clients. So the messages are not gone through
again for each client, and the loop has its turns in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from wsc_fast.turns import in_turns

if TYPE_CHECKING:
    from wsc_fast._core.connection import Client
    from wsc_fast._core.pending import AckTable, Mailbox, PendingACK


async def count_pending(
    table: AckTable, client_of: Callable[[str], Client | None], clients: Sequence[Client]
) -> list[int]:
    """The number of messages that an acknowledgement of each client would settle.

    Args:
        table: of the hub.
        client_of: the connected client that has an id.
        clients: whose counts are asked for.
    """
    # By mailbox: the messages that each client may acknowledge, and those for one alone by its id.
    tallies: dict[str, tuple[int, dict[str, int]]] = {}
    counts = []
    for client in clients:
        key = table.key_of(client)
        if key not in tallies:
            mailbox = table.mailboxes.get(key)
            tallies[key] = (0, {}) if mailbox is None else await _tally(mailbox, client_of)
        shared, directed = tallies[key]
        counts.append(shared + directed.get(client.id, 0))
    return counts


async def _tally(
    mailbox: Mailbox, client_of: Callable[[str], Client | None]
) -> tuple[int, dict[str, int]]:
    if not mailbox.directed:
        return len(mailbox.pending), {}
    by_id: Counter[str | None] = Counter()

    def look(pending: PendingACK) -> None:
        by_id[pending._client_id] += 1

    await in_turns(list(mailbox.pending.values()), look)
    shared = by_id.pop(None, 0)
    directed = {}
    for client_id, count in by_id.items():
        client = None if client_id is None else client_of(client_id)
        if client is None or client.user_id != mailbox.user_id:
            shared += count  # it has gone: each of its user may acknowledge for it
        else:
            directed[client.id] = count
    return shared, directed
