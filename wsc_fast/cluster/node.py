"""The part of a hub between its engine and its bus: what it publishes, and what comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from wsc_fast._core import kept
from wsc_fast._core.clients import check_id
from wsc_fast._core.connection import Client
from wsc_fast._core.engine import Engine
from wsc_fast._core.envelopes import open_entry, pack_entry, read_envelope
from wsc_fast.bus.base import (
    EVERYBODY,
    MOST_ENTRY_BYTES,
    MOST_KEY_BYTES,
    Bus,
    Entry,
    HistoryEntry,
    Outgoing,
    Page,
    Published,
    Retention,
)
from wsc_fast.cluster.counters import Counters
from wsc_fast.errors import (
    BusUnavailableError,
    HubStateError,
    HubStoppedError,
    ValidationError,
)
from wsc_fast.log import log
from wsc_fast.messages import HubMessage, IdFactory, message_of
from wsc_fast.runtime.tasks import Tasks
from wsc_fast.runtime.threads import ThreadCalls

if TYPE_CHECKING:
    from wsc_fast.cluster.chain import Chain
    from wsc_fast.cluster.rooms import Rooms

_T = TypeVar("_T")

# Seconds between two looks at rooms that are empty, and between two audits of silent rooms.
_LOOK = 1.0
_AUDIT = 10.0
# Rooms that one audit asks for.
_AUDIT_ROOMS = 500


@dataclass(frozen=True, slots=True)
class Needs:
    """The things that a hub gives to its node.

    Attributes:
        calls: calls of other threads.
        tasks: of the hub.
        not_published: a failure handler hears of a message that the bus did not take.
    """

    calls: ThreadCalls
    tasks: Tasks
    not_published: Callable[[HubMessage | str | bytes, str, Exception], None]


class Node:
    """One hub on its bus: `bus.base.Handler`.

    Args:
        engine: of the hub.
        bus: the bus; None makes a MemoryBus once a room is kept.
        needs: what else it needs of the hub.

    Attributes:
        counters: of kept rooms.
        given_bus: the bus of the application's choice; None where it has chosen none.

    Thread-safety: the loop's thread, but for `keep`, `set_bus`, `publish` and `history`.
    """

    def __init__(self, engine: Engine, bus: Bus | None, needs: Needs) -> None:
        self.counters: Counters = Counters()
        self._engine = engine
        self._needs = needs
        self.given_bus = bus
        self._bus = bus
        self._rooms: Rooms | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._audited = 0.0
        self._opened = False
        self._is_cut_off = False
        # Of plain rooms, and broadcasts: (room_id, frame, exclude, key) of this tick.
        self._outgoing: list[tuple[str, bytes, tuple[str, ...], str | None]] = []
        self.name: str = IdFactory(9)()
        if bus is not None:
            self._use(bus)

    def _use(self, bus: Bus) -> Rooms:
        from wsc_fast.cluster.rooms import Rooms  # most hubs have neither a bus nor kept rooms

        self._bus = bus
        if self._rooms is None:
            self._rooms = Rooms(self._engine, self.counters, bus, self._append)
        else:
            self._rooms.use(bus)
        if not bus.at_once:
            self._engine.set_outgoing(
                self._outgoing, self._publish_outgoing, self._rooms.entered_first
            )
        return self._rooms

    # --- the calls of the application ---

    def set_bus(self, bus: Bus) -> None:
        """See `ClusterFace.set_bus`."""
        if self._engine.loop is not None:
            raise HubStateError("the bus cannot change while the hub runs: set it before the start")
        self.given_bus = bus
        self._use(bus)

    def keep(self, pattern: str, retention: Retention) -> None:
        """See `ClusterFace.keep`; the arguments are checked."""
        if self._engine.loop is not None:
            raise HubStateError("keep is for a hub that does not run: call it before the start")
        self.prepare()
        assert self._rooms is not None
        self._rooms.kept.keep(pattern, retention)

    async def publish(
        self,
        room_id: str,
        message: HubMessage | str | bytes,
        exclude: Iterable[str | Client],
        key: str | None,
        idempotency_key: str | None,
    ) -> Published:
        """See `ClusterFace.publish`."""
        answer = self._needs.calls.run(
            lambda: self._publish(room_id, message, exclude, key, idempotency_key)
        )
        return await _elsewhere(answer)

    def _publish(
        self,
        room_id: str,
        message: HubMessage | str | bytes,
        exclude: Iterable[str | Client],
        key: str | None,
        idempotency_key: str | None,
    ) -> asyncio.Future[Published]:
        loop = self._engine.loop
        if loop is None:
            raise HubStoppedError("the hub does not run in this process: nothing was published")
        check_id("room", room_id)
        _check_key(idempotency_key)
        answer: asyncio.Future[Published] = loop.create_future()
        if self._rooms is None or not self._rooms.is_kept(room_id):
            raise ValidationError(
                f"publish is for kept rooms, and {room_id!a} is none: see Hub.keep, or send with "
                "broadcast_to_room"
            )
        self._engine.append_to_kept(room_id, message, exclude, key, idempotency_key, answer)
        return answer

    def prepare(self) -> None:
        """To be called once before `publish_anywhere`: a hub alone needs a MemoryBus for it."""
        if self._rooms is None:
            from wsc_fast.bus.memory import MemoryBus

            self._use(MemoryBus())

    async def publish_anywhere(
        self,
        room_id: str,
        message: str | bytes,
        exclude: Iterable[str],
        key: str | None,
        idempotency_key: str | None,
    ) -> Published:
        """Publishes to a room, plain or kept, or to EVERYBODY; it is for a caller without a hub.

        The clients of this hub get a plain message once the bus has taken it.

        Raises:
            BusError: the bus did not take it.
            ValidationError: an argument cannot be used.
            HubStateError: the hub does not run in this process.

        Thread-safety: the loop's thread.
        """
        loop = self._engine.loop
        if loop is None:
            raise HubStoppedError("the hub does not run in this process: nothing was published")
        if room_id != EVERYBODY:
            check_id("room", room_id)
        _check_key(idempotency_key)
        answer: asyncio.Future[Published] = loop.create_future()
        self._engine.append_to_kept(room_id, message, exclude, key, idempotency_key, answer)
        # A caller who goes away does not take back a message that is on its way.
        return await asyncio.shield(answer)

    async def history(self, room_id: str, after: str | None, limit: int) -> list[HistoryEntry]:
        """See `Cluster.history`; the arguments are checked."""
        page = await self.page(room_id, after, limit)
        return [_history_entry(each) for each in page.entries]

    def keeps(self, room_id: str) -> bool:
        """Whether a room has a history."""
        return self._rooms is not None and self._rooms.is_kept(room_id)

    async def page(self, room_id: str, after: str | None, limit: int) -> Page:
        """Reads a part of a room's history; arguments and errors are those of `Cluster.history`."""
        answer = self._needs.calls.run(lambda: self._history(room_id, after, limit))
        page = await _elsewhere(answer)
        if after is not None and not page.contiguous:
            raise LookupError(
                f"the history of room {room_id!a} does not reach back to the position {after!a}"
            )
        return page

    def _history(self, room_id: str, after: str | None, limit: int) -> asyncio.Future[Page]:
        check_id("room", room_id)
        if self._engine.loop is None:
            raise HubStoppedError("the hub does not run in this process")
        retention = None if self._rooms is None else self._rooms.kept.retention_of(room_id)
        if retention is None:
            raise ValidationError(f"room {room_id!a} is not kept: see Hub.keep")
        self._open_at_once()
        assert self._bus is not None
        return asyncio.ensure_future(self._bus.read(room_id, after, limit, retention))

    # --- what the engine publishes ---

    def _append(
        self,
        room_id: str,
        retention: Retention | None,
        frame: bytes,
        exclude: tuple[str, ...],
        key: str | None,
        idempotency_key: str | None = None,
        answer: asyncio.Future[Published] | None = None,
    ) -> None:
        entry = pack_entry(frame, exclude, key)
        if len(entry) > MOST_ENTRY_BYTES:
            raise ValidationError(
                f"a message of {len(frame)} bytes is too long for a bus: it may have "
                f"{MOST_ENTRY_BYTES - 4096}"
            )
        self._open_at_once()
        self.counters.published += 1
        assert self._rooms is not None
        if retention is None:
            assert answer is not None
            give = partial(kept.give_plain, self._engine, room_id, frame, exclude, key)
            answer.add_done_callback(partial(_give_published, give))
        self._rooms.publish(Outgoing(room_id, entry, retention, idempotency_key, answer))

    def _publish_outgoing(self) -> None:
        """Gives the bus the messages of plain rooms and broadcasts of this tick."""
        assert self._bus is not None
        # Emptied first: the engine asks for a call where it puts the first one in.
        taken = self._outgoing[:]
        self._outgoing.clear()
        outgoing = [
            Outgoing(room_id, pack_entry(frame, exclude, key))
            for room_id, frame, exclude, key in taken
        ]
        self.counters.published += len(outgoing)
        if self._opened:
            self._bus.publish(outgoing)
            return
        for each in outgoing:
            self.not_published(each, BusUnavailableError("the bus is not open"))

    # --- what the bus says ---

    def envelope(self, channel: str, data: bytes) -> bool:
        """See `Handler.envelope`."""
        rooms = self._rooms
        assert rooms is not None
        try:
            kind, origin, prev, messages = read_envelope(data)
        except ValidationError as error:
            self.counters.poisoned += 1
            log.warning(
                "bytes on the bus that no hub has written are left out: %s",
                error,
                extra={"event": "poisoned_envelope", "room": channel},
            )
            return True
        if kind == "k":
            rooms.heard(channel, prev, messages)
        elif origin != self.name:  # its own clients have it
            self.counters.received += len(messages)
            rooms.turns.run(self._give_plain(channel, messages))
        return not rooms.turns

    def _give_plain(
        self,
        room_id: str,
        messages: Sequence[tuple[str, bytes, tuple[str, ...] | None, str | None]],
    ) -> Iterator[None]:
        for _, frame, exclude, key in messages:
            kept.give_plain(self._engine, room_id, frame, exclude, key)
            yield

    def takes_more(self) -> bool:
        """See `Handler.takes_more`."""
        return self._rooms is None or not self._rooms.turns

    def subscribed(self, channels: Sequence[str], again: bool) -> None:
        """See `Handler.subscribed`."""
        assert self._rooms is not None
        self._rooms.subscribed(channels, again)

    def kept_rooms(self) -> bytes:
        """See `Handler.kept_rooms`."""
        assert self._rooms is not None
        return self._rooms.kept.dump()

    def up(self) -> None:
        """See `Handler.up`."""
        if self._is_cut_off:
            self._is_cut_off = False
            kept.say_bus(self._engine, True)

    def down(self, error: Exception) -> None:
        """See `Handler.down`."""
        self._is_cut_off = True
        kept.say_bus(self._engine, False)

    def not_published(self, outgoing: Outgoing, error: Exception) -> None:
        """See `Handler.not_published`."""
        self.counters.not_published += 1
        frame, _, _ = open_entry(outgoing.entry)
        self._needs.not_published(message_of(frame), outgoing.room, error)

    def bus_state(self) -> str:
        """Whether the hub hears of the others: "up" or "down"; "none" where it is alone."""
        if self._bus_is_here():
            return "none"
        return "up" if self._opened and not self._is_cut_off else "down"

    # --- its life ---

    async def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """The hub starts."""
        if self._bus is None:
            return
        self._begin(loop)
        if not self._opened:
            await self._bus.open(self, self.name)
            if self._loop is None:
                await self._bus.close()  # the hub was stopped meanwhile
                return
            self._opened = True

    def _open_at_once(self) -> None:
        """Opens a bus in this process, where the hub has been attached without waiting."""
        if self._opened or self._bus is None or self._engine.loop is None:
            return
        if not self._bus.at_once:
            raise BusUnavailableError("the bus is still opening")
        self._begin(self._engine.loop)
        try:
            self._bus.open(self, self.name).send(None)
        except StopIteration:
            self._opened = True

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        if self._looking is None:
            self._looking = loop.call_later(_LOOK, self._look)

    def _look(self) -> None:
        assert self._loop is not None
        assert self._rooms is not None
        self._looking = self._loop.call_later(_LOOK, self._look)
        now = self._loop.time()
        self._rooms.look(now)
        if not self._bus_is_here() and now - self._audited >= _AUDIT:
            self._audited = now
            self._audit(self._rooms.silent())

    def _bus_is_here(self) -> bool:
        return self._bus is None or self._bus.at_once

    def _audit(self, chains: list[Chain]) -> None:
        """Looks whether the last message of any room was missed, which no later one tells of."""
        for start in range(0, len(chains), _AUDIT_ROOMS):
            self._needs.tasks.spawn(
                self._audit_some(chains[start : start + _AUDIT_ROOMS]), self._engine.new_context()
            )

    async def _audit_some(self, chains: list[Chain]) -> None:
        assert self._bus is not None
        before = [chain.last for chain in chains]
        try:
            tops = await self._bus.tops([chain.room for chain in chains])
        except BusUnavailableError:
            return  # every chain heals when the bus is back
        for chain, last, top in zip(chains, before, tops, strict=True):
            if chain.last == last and top != last:
                chain.heal()

    async def close(self, timeout: float) -> None:
        """The hub stops; its clients have gone."""
        if self._rooms is not None and self._opened:
            self._rooms.release_all()
        self._end()
        if self._bus is not None and self._opened:
            self._opened = False
            try:
                async with asyncio.timeout(max(timeout, 0.1)):
                    await self._bus.close()
            except TimeoutError:
                log.warning(
                    "the bus did not close in time; what was published last may be lost",
                    extra={"event": "bus_close_timeout"},
                )

    def forget(self) -> None:
        """The hub's loop was closed, or this is the child of a fork."""
        self._opened = False
        self._end()

    def _end(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self._loop = None
        if self._rooms is not None:
            self._rooms.forget()


async def _elsewhere(answer: asyncio.Future[_T]) -> _T:
    """Awaits a future of the hub's loop on any loop."""
    loop = answer.get_loop()
    if loop is asyncio.get_running_loop():
        return await answer

    async def there() -> _T:
        return await answer

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), loop))


def _give_published(give: Callable[[], object], answer: asyncio.Future[Published]) -> None:
    """A plain message was published, or not: the clients of this hub get it with the others."""
    if not answer.cancelled() and answer.exception() is None and not answer.result().duplicate:
        give()


def _history_entry(entry: Entry) -> HistoryEntry:
    return HistoryEntry(entry.position, message_of(open_entry(entry.entry)[0]))


def _check_key(key: str | None) -> None:
    if key is None:
        return
    if type(key) is not str or not 0 < len(key.encode("utf-8", "replace")) <= MOST_KEY_BYTES:
        raise ValidationError(
            f"idempotency_key must be a str of 1 to {MOST_KEY_BYTES} bytes in UTF-8, not {key!a}"
        )
    check_id("message", key)
