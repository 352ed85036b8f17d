"""Very many connections that end together: no turn of the loop ends more than a few of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.support import busy, crowd, silent_sockets
from wsc_fast import Hub, HubConfig, Identity
from wsc_fast.testing import eventually, running
from wsc_fast.turns import BUDGET, MOST_ENDS, in_turns

MANY = 12 * MOST_ENDS
SHORT = 0.2
# The rest of one slot and the beginning of the next may fall into one turn.
MOST_IN_A_TURN = 2 * MOST_ENDS


class Turns:
    """Notes in each turn of the loop how many are left."""

    def __init__(self, left: Callable[[], int]) -> None:
        self.left = left
        self.ended: list[int] = []  # in the turns in which any did
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        before = self.left()
        while before:
            await asyncio.sleep(0)
            now = self.left()
            if now < before:
                self.ended.append(before - now)
            before = now

    async def over(self) -> list[int]:
        async with asyncio.timeout(20):
            await self._watching
        return self.ended


async def test_close_timeouts_that_end_together_take_turns(any_loop: str) -> None:
    hub = Hub(HubConfig(close_timeout=SHORT), authenticate=lambda request: Identity("ann"))
    async with crowd(hub, MANY):
        assert hub.disconnect_user("ann") == MANY
        assert hub.get_clients_by_user("ann") == [], "at once"
        turns = Turns(lambda: hub.connections)
        ended = await turns.over()
        assert sum(ended) == MANY
        assert max(ended) <= MOST_IN_A_TURN
        assert hub.get_stats().limited["close_timeout"] == MANY


@pytest.mark.parametrize("tls", [False, True], ids=["requests", "hellos"])
async def test_handshakes_that_end_together_take_turns(
    any_loop: str, tls: bool, server_tls: object
) -> None:
    hub = Hub(HubConfig(handshake_timeout=3.0))  # all of them come before
    async with running(hub, ssl=server_tls if tls else None):

        def left() -> int:
            return (
                len(hub._parts.listener.acceptors[0]._waiting_room)
                if tls
                else len(hub._parts.requests._waiting)
            )

        silent = await silent_sockets(hub, MANY)
        await eventually(lambda: left() == MANY)
        ended = await Turns(left).over()
        for sock in silent:
            sock.close()
        assert max(ended) <= MOST_IN_A_TURN
        assert hub.get_stats().limited["handshake_timeout"] == MANY


async def test_a_stop_aborts_in_turns_those_that_do_not_answer(any_loop: str) -> None:
    hub = Hub(authenticate=lambda request: Identity("ann"))
    async with crowd(hub, MANY):
        turns = Turns(lambda: hub.connections)
        await hub.stop(0.1)
        assert max(await turns.over()) <= MOST_IN_A_TURN


async def test_a_call_for_each_of_many_takes_turns() -> None:
    turn = 0
    seen: list[tuple[int, int]] = []

    async def count() -> None:
        nonlocal turn
        while len(seen) < 40:
            await asyncio.sleep(0)
            turn += 1

    def call(item: int) -> None:
        busy(BUDGET / 4)
        seen.append((item, turn))

    counting = asyncio.create_task(count())
    await in_turns(range(40), call)
    await counting
    assert [item for item, _ in seen] == list(range(40))
    assert seen[-1][1] >= 8


async def test_a_call_for_each_of_many_takes_no_more_than_so_many_in_a_turn() -> None:
    done: list[int] = []
    task = asyncio.create_task(in_turns(range(10), done.append, 3))
    counts = []
    while not task.done():
        await asyncio.sleep(0)
        counts.append(len(done))
    assert counts[:4] == [3, 6, 9, 10]
