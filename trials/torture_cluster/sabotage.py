"""Nodes that break a promise on purpose, to see that the checks notice it.

lose        some messages of kept rooms are given to nobody
double      some are given twice
swap        some are given after the next one
mute        nobody hears of a gap
hush        nobody notices that the bus has lost messages which other clients lack
invent      `publish` returns, and nothing was published
forget-key  idempotency keys are not passed on, and each keyed message is published again
forget      nobody recovers
keep        nothing is unsubscribed, and a task goes on for ever
shout       the log has a traceback
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from wsc_fast._core import kept
from wsc_fast.bus.base import Outgoing, Page, Published
from wsc_fast.bus.redis.bus import RedisBus
from wsc_fast.cluster.recovery import Join, Recovery
from wsc_fast.cluster.rooms import Rooms

# One message in so many.
HOW_MANY = 5


_asked: Counter[str] = Counter()


def _is_chosen(fault: str) -> bool:
    _asked[fault] += 1
    return _asked[fault] % HOW_MANY == 0


def _lose() -> None:
    give = Rooms.give
    _set(Rooms, "give", lambda self, room, m: _is_chosen("lose") or give(self, room, m))


def _double() -> None:
    give = Rooms.give

    def twice(self: Rooms, room: str, message: Any) -> None:
        give(self, room, message)
        if _is_chosen("double"):
            give(self, room, message)

    _set(Rooms, "give", twice)


def _swap() -> None:
    give = Rooms.give
    late: dict[str, Any] = {}

    def swapped(self: Rooms, room: str, message: Any) -> None:
        if room not in late and _is_chosen("swap"):
            late[room] = message
            return
        give(self, room, message)
        if room in late:
            give(self, room, late.pop(room))

    _set(Rooms, "give", swapped)


def _mute() -> None:
    _set(kept, "say_gap", lambda engine, room, position: 0)


def _hush() -> None:
    read = RedisBus.read

    async def hushed(self: RedisBus, *arguments: Any) -> Page:
        return dataclasses.replace(await read(self, *arguments), loss="")

    _set(RedisBus, "read", hushed)


def _invent() -> None:
    publish = RedisBus.publish

    def invented(self: RedisBus, batch: list[Outgoing]) -> None:
        for each in batch:
            if each.answer is None or not _is_chosen("invent"):
                publish(self, [each])
            else:
                each.answer.set_result(Published("1-1.invented", False))

    _set(RedisBus, "publish", invented)


def _forget_key() -> None:
    publish = RedisBus.publish

    def forgetful(self: RedisBus, batch: list[Outgoing]) -> None:
        again = [each for each in batch if each.idempotency_key is not None]
        for each in again:
            each.idempotency_key = None
        copies = [Outgoing(each.room, each.entry, each.retention) for each in again]
        publish(self, [*batch, *copies])

    _set(RedisBus, "publish", forgetful)


def _forget() -> None:
    join = Recovery.join

    def forgetful(self: Recovery, chain: Any, its: Join) -> None:
        its.lost = its.position is not None
        join(self, chain, its)

    _set(Recovery, "join", forgetful)


_tasks: list[asyncio.Task[None]] = []


def _keep() -> None:
    def keep(self: RedisBus, rooms: Any) -> None:
        _tasks.append(asyncio.ensure_future(asyncio.sleep(3600)))

    _set(RedisBus, "unsubscribe", keep)


def _shout() -> None:
    logging.error("Traceback of nothing")


def _set(owner: Any, name: str, function: Callable[..., Any]) -> None:
    setattr(owner, name, function)


FAULTS = {
    "lose": _lose,
    "double": _double,
    "swap": _swap,
    "mute": _mute,
    "hush": _hush,
    "invent": _invent,
    "forget-key": _forget_key,
    "forget": _forget,
    "keep": _keep,
    "shout": _shout,
}
