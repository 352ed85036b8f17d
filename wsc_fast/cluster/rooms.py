"""The kept rooms of one hub: which they are, their chains, and the joins into them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from wsc_fast._core import kept
from wsc_fast._core.connection import Client, is_aware, take_position
from wsc_fast._core.engine import Engine
from wsc_fast._core.members import KeptRoom
from wsc_fast.bus.base import EVERYBODY, MARK, Bus, Outgoing, Page, Published, Retention, Way
from wsc_fast.bus.kept import KeptRooms
from wsc_fast.cluster.accepted import Accepted
from wsc_fast.cluster.chain import Chain, Message
from wsc_fast.cluster.counters import Counters
from wsc_fast.cluster.reads import Answer, Reads
from wsc_fast.cluster.recovery import Join, Recovery
from wsc_fast.cluster.turns import Turns
from wsc_fast.errors import BusError
from wsc_fast.log import log

# Seconds that a room without members is followed on, for clients that come back soon.
LINGER = 10.0
# So many messages of a room wait until this hub hears it.
MOST_HELD = 100
# So many chains are looked at in one turn of `look`.
MOST_LOOKED_AT = 1000


class Rooms:
    """The kept rooms of one hub, as `chain.Needs` and as the engine sees them.

    Args:
        engine, counters, bus: of the hub.
        append: gives the bus a message; see `Node`.
        send_away: closes clients that have missed messages.

    Attributes:
        kept: which rooms are kept.
        turns: the work on what the bus has brought.
        accepted: messages of this hub that no chain may know of.

    Thread-safety: the loop's thread, but for `kept`, which is for any.
    """

    def __init__(
        self,
        engine: Engine,
        counters: Counters,
        bus: Bus,
        append: Callable[..., None],
        send_away: Callable[[list[Client]], None],
    ) -> None:
        self._engine = engine
        self._counters = counters
        self._bus = bus
        self._append = append
        self._send_away = send_away
        self.kept: KeptRooms = KeptRooms()
        self._chains: dict[str, Chain] = {}
        # Rooms that are empty, and since when.
        self._emptied: set[str] = set()
        self.turns: Turns = Turns(self._may_give, self._read_on)
        self._reads = Reads(self._ask_bus, self._server_of, self.servers, self.turns)
        self._recovery = Recovery(engine, counters, self._reads.read, self.turns.run, self._emptied)
        self.accepted: Accepted = Accepted(
            self._has_come, self.tops, self._reads.read, self.mark, self.not_audited, self._way
        )
        self._lingering: dict[str, float] = {}
        # By room, messages that wait until this hub hears the room.
        self._held: dict[str, list[Outgoing]] = {}
        engine.set_kept(
            self.is_kept,
            self._publish,
            self._join,
            self._recovery.count_others,
            self._left,
            self._emptied,
        )

    def use(self, bus: Bus) -> None:
        """Has another bus carry and keep the messages from now on; no hub runs on either."""
        self._bus = bus

    def is_kept(self, room_id: str) -> bool:
        """Whether a room is a kept one."""
        return self.kept.retention_of(room_id) is not None

    def _publish(
        self, room_id: str, frame: bytes, exclude: tuple[str, ...], key: str | None, *more: Any
    ) -> None:
        retention = self.kept.retention_of(room_id)
        assert retention is not None
        self._append(room_id, retention, frame, exclude, key, *more)

    def publish(self, outgoing: Outgoing) -> None:
        """Gives the bus a message of a kept room, once this hub hears what is said there.

        Else the members who are here could miss it: it could come before their subscription.
        """
        chain = self._chains.get(outgoing.room)
        held = self._held.get(outgoing.room, [])
        if chain is not None and chain.last is None and len(held) < MOST_HELD:
            self._held.setdefault(outgoing.room, []).append(outgoing)
            return
        self.release(outgoing.room)
        self._bus.publish([outgoing])

    def published(
        self, room_id: str, retention: Retention, answer: asyncio.Future[Published]
    ) -> None:
        """The bus has answered to a message of a kept room."""
        if not answer.cancelled() and answer.exception() is None:
            published = answer.result()
            if published.position is not None and not published.duplicate:
                now = answer.get_loop().time()
                self.accepted.note(room_id, published.position, now, retention)

    def _has_come(self, room_id: str, position: str) -> bool:
        chain = self._chains.get(room_id)
        return chain is not None and chain.knows(position)

    def release(self, room_id: str) -> None:
        """Gives the bus what waits for the subscription of a room."""
        held = self._held.pop(room_id, None)
        if held:
            self._bus.publish(held)

    def release_all(self) -> None:
        """Gives the bus all that waits for a subscription."""
        for room_id in list(self._held):
            self.release(room_id)

    # --- what the bus says ---

    def heard(self, room_id: str, prev: str, messages: Sequence[tuple[object, ...]]) -> None:
        """Messages of a kept room have come."""
        self._counters.received += len(messages)
        chain = self._chains.get(room_id)
        if chain is not None:
            steps = chain.heard(prev, [Message(*each) for each in messages])  # type: ignore[arg-type]
            if self._bus.at_once:  # it is in the call that publishes the message
                for _ in steps:
                    pass
            else:
                self.turns.run(steps)

    def subscribed(self, room_ids: Sequence[str], again: bool) -> None:
        """From now on the messages of these rooms come; what was said before is read.

        Args:
            room_ids: of the rooms.
            again: they had come before. Messages of a plain room that were missed since are lost.
        """
        self.turns.run(self._make_up(room_ids, again))

    def _make_up(self, room_ids: Sequence[str], again: bool) -> Iterator[None]:
        missed = []
        for room_id in room_ids:
            chain = self._chains.get(room_id)
            if chain is not None:
                chain.heal()
            elif again and (room_id == EVERYBODY or not self.is_kept(room_id)):
                missed.append(room_id)
            yield
        if missed:
            self._plain_gaps(missed)

    def _plain_gaps(self, room_ids: list[str]) -> None:
        self._counters.plain_gaps += len(room_ids)
        told = sum(kept.say_gap(self._engine, room_id, None) for room_id in room_ids)
        log.warning(
            "messages of %d plain rooms may be missing, those to all clients included, and %d "
            "clients know: the connection to the bus has ended meanwhile",
            len(room_ids),
            told,
            extra={"event": "plain_gap", "rooms": len(room_ids), "told": told},
        )

    # --- what chains need ---

    @property
    def hears_all(self) -> bool:
        """See `Needs`."""
        return self._bus.at_once

    def read(self, room: str, since: str | None, limit: int, retention: Retention) -> Answer:
        """See `Needs`."""
        return self._reads.read(room, since, limit, retention)

    def in_turns(self, steps: Iterator[None]) -> None:
        """See `Needs`."""
        self.turns.run(steps)

    def _may_give(self) -> bool:
        return kept.may_give(self._engine)

    def _read_on(self) -> None:
        self._reads.go_on()

    def _ask_bus(
        self, room: str, since: str | None, limit: int, retention: Retention
    ) -> Awaitable[Page]:
        return self._bus.read(room, since, limit, retention)

    def _way(self, room: str) -> Way:
        return self._bus.way(room)

    def _server_of(self, room: str) -> int:
        return self._bus.way(room).server

    def give(self, room: str, message: Message) -> None:
        """See `Needs`."""
        found = kept.room_of(self._engine, room)
        if found is not None:
            kept.give(
                self._engine, found, message.position, message.frame, message.exclude, message.key
            )

    def gap(self, room: str, position: str) -> None:
        """See `Needs`."""
        self._counters.gaps += 1
        told = kept.say_gap(self._engine, room, position)
        log.warning(
            "messages of the kept room %a are missing and cannot be read, and %d clients know: "
            "the history is too short for the time without the bus, or the bus has lost data, or "
            "the history was deleted",
            room,
            told,
            extra={"event": "gap", "room": room, "clients": told},
        )
        found = self.kept.pattern_of(room)
        if found is not None and found.closes:
            clients = self._engine.unaware_members(room)
            self._counters.closed_by_gap += len(clients)
            self._send_away(clients)

    def mark(self, room: str, loss: str, retention: Retention) -> asyncio.Future[Published]:
        """See `Needs`."""
        answer: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
        self._bus.publish([Outgoing(room, MARK, retention, f"wsc_fast: lost by {loss}", answer)])
        return answer

    def settled(self, chain: Chain) -> None:
        """See `Needs`."""
        self.release(chain.room)
        self._recovery.settled(chain)

    def not_marked(self, chain: Chain, error: Exception) -> None:
        """See `Needs`; the audits try again, for the clients that are away."""
        log.warning(
            "the bus has lost messages of the kept room %a, and its history does not say so yet: "
            "%s. The members know; clients that are away will, once the bus takes the mark",
            chain.room,
            error,
            extra={"event": "mark_failed", "room": chain.room, "error": str(error)},
        )
        assert chain.last is not None
        now = asyncio.get_running_loop().time()
        self.accepted.note_lost(chain.room, chain.last, now, chain.retention)

    def count_heal(self, room: str, messages: int) -> None:
        """See `Needs`."""
        self._counters.heals += 1
        self._counters.healed += messages

    def failed(self, room: str, error: Exception) -> None:
        """See `Needs`."""
        log.warning(
            "the history of the kept room %a could not be read: %s",
            room,
            error,
            extra={"event": "history_failed", "room": room, "error": type(error).__name__},
        )

    # --- members ---

    def entered_first(self, room_id: str) -> None:
        """A room has its first member: what other hubs send to it has to come."""
        if self._lingering.pop(room_id, None) is None and room_id not in self._chains:
            self._bus.subscribe([room_id])

    def _follow(self, room_id: str, retention: Retention) -> Chain:
        chain = self._chains.get(room_id)
        if chain is None:
            chain = Chain(room_id, retention, self, self._server_of(room_id))
            self._chains[room_id] = chain
            self._bus.subscribe([room_id])
        return chain

    def _join(self, client: Client, room: KeptRoom) -> None:
        self._lingering.pop(room.id, None)
        retention = self.kept.retention_of(room.id)
        assert retention is not None
        chain = self._follow(room.id, retention)
        if not is_aware(client):
            kept.enter_room(self._engine, client, room)
        elif not kept.is_member(client, room):
            self._recovery.join(chain, Join(client, room, take_position(client, room.id)))

    def _left(self, client: Client, room: KeptRoom) -> None:
        self._recovery.leave(room.id, client)

    def look(self, now: float, grace: float) -> None:
        """Lets go of rooms that have been empty for a while; to be called each second or so.

        Args:
            now: on the loop's clock.
            grace: seconds for which a room is kept longer, since its members are told to have left
                then.
        """
        self._recovery.look()
        self.release_all()  # the bus has bounds of its own for what it cannot send
        for room_id in self._emptied:
            # From now on, also where it was empty when made. They stand in the order of time.
            self._lingering.pop(room_id, None)
            self._lingering[room_id] = now
        self._emptied.clear()
        gone = []
        for room_id, since in list(self._lingering.items())[:MOST_LOOKED_AT]:
            if now - since < LINGER + grace:
                break
            del self._lingering[room_id]
            if not self._recovery.waits(room_id) and self._engine.end_passing(room_id):
                self._hand_over(room_id, now)
                self._end_chain(room_id)
                gone.append(room_id)
        if gone:
            self._bus.unsubscribe(gone)

    def _hand_over(self, room_id: str, now: float) -> None:
        """From now on no chain notices a loss in this room."""
        chain = self._chains.get(room_id)
        if chain is None or chain.last is None or self.hears_all:
            return
        accepted = self.accepted.position_of(room_id)
        if accepted is None or chain.knows(accepted):
            self.accepted.note(room_id, chain.last, now, chain.retention)

    def _end_chain(self, room_id: str) -> None:
        chain = self._chains.pop(room_id, None)
        if chain is not None:
            chain.end()
            self.release(room_id)

    # --- what audits need ---

    def servers(self) -> int:
        """See `Bus.servers`."""
        return self._bus.servers

    def chains(self) -> list[Chain]:
        """The chains of all rooms that are followed."""
        return list(self._chains.values())

    async def tops(self, rooms: Sequence[str]) -> Sequence[str | None]:
        """See `Bus.tops`."""
        return await self._bus.tops(rooms)

    def not_audited(self, error: BusError) -> None:
        """A server refuses to say what it has, or to take a mark."""
        log.warning(
            "it is not known whether messages of kept rooms were missed or lost: %s. The hub asks "
            "again in some seconds",
            error,
            extra={"event": "audit_failed", "error": str(error)},
        )

    def forget(self) -> None:
        """The hub has stopped: nobody is in any room."""
        self._held.clear()
        for room_id in list(self._chains):
            self._end_chain(room_id)
        self.accepted.forget()
        self._recovery.forget()
        self._engine.end_all_passing()
        self.turns.forget()
        self._reads.forget()
        self._emptied.clear()
        self._lingering.clear()
