"""The part of a hub between its engine and its bus: what it publishes, and what comes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from wsc_fast._core import kept
from wsc_fast._core.clients import check_id
from wsc_fast._core.connection import Client, send_away
from wsc_fast._core.engine import Engine
from wsc_fast._core.envelopes import open_entry, pack_entry, read_envelope
from wsc_fast.bus.base import (
    EVERYBODY,
    MARK,
    MOST_ENTRY_BYTES,
    MOST_KEY_BYTES,
    PRESENCE,
    Bus,
    Entry,
    HistoryEntry,
    Member,
    NodeState,
    Outgoing,
    Page,
    Published,
    Retention,
)
from wsc_fast.cluster.counters import Counters
from wsc_fast.cluster.naming import new_name
from wsc_fast.config import HubConfig
from wsc_fast.errors import (
    BusUnavailableError,
    HubStateError,
    HubStoppedError,
    ValidationError,
)
from wsc_fast.log import log
from wsc_fast.messages import HubMessage, message_of
from wsc_fast.runtime.callbacks import ClientWatcher, RoomWatcher
from wsc_fast.runtime.signatures import OfNode, OfPresence, OfUsers, checked_callback
from wsc_fast.runtime.state import State
from wsc_fast.runtime.tasks import Tasks
from wsc_fast.runtime.threads import ThreadCalls
from wsc_fast.turns import in_turns

if TYPE_CHECKING:
    from wsc_fast.cluster.audit import Audit
    from wsc_fast.cluster.hub_questions import Answerer
    from wsc_fast.cluster.nodes import Nodes
    from wsc_fast.cluster.online import Online
    from wsc_fast.cluster.presence import Needs as PresenceNeeds
    from wsc_fast.cluster.presence import Presence
    from wsc_fast.cluster.rooms import Rooms
    from wsc_fast.cluster.user_bound import PerUser
    from wsc_fast.cluster.users import Deliveries, Users
    from wsc_fast.stores.base import OfflineStore

_T = TypeVar("_T")

# Seconds between two looks at rooms that are empty.
_LOOK = 1.0


@dataclass(frozen=True, slots=True)
class Needs:
    """The things that a hub gives to its node.

    Attributes:
        calls: calls of other threads.
        tasks: of the hub.
        settings: those that hold now.
        state: whether it drains.
        knows_users: whether its clients have identities; else they are anonymous.
        watch_clients, watch_rooms: have a watcher hear of clients, and of members.
        report: tells the application of an error; no client is named with it.
        not_published: a failure handler hears of a message that the bus did not take.
        deliveries: of the hub; words of other hubs go to it.
        disconnect: closes the clients of a user here; returns their number.
        per_user: the bound on the connections of a user.
        name_clients: has the ids of new clients begin with this.
    """

    calls: ThreadCalls
    tasks: Tasks
    settings: Callable[[], HubConfig]
    state: State
    knows_users: bool
    watch_clients: Callable[[ClientWatcher], None]
    watch_rooms: Callable[[RoomWatcher], None]
    report: Callable[[BaseException], None]
    not_published: Callable[[HubMessage | str | bytes, str, Exception], None]
    deliveries: Deliveries
    disconnect: Callable[[str, int, str], int]
    per_user: PerUser
    name_clients: Callable[[str], None]


class Node:
    """One hub on its bus: `bus.base.Handler`.

    Args:
        engine: of the hub.
        bus: the bus; None makes a MemoryBus once a room is kept.
        needs: what else it needs of the hub.

    Attributes:
        counters: of kept rooms.
        given_bus: the bus of the application's choice; None where it has chosen none.

    Thread-safety: the loop's thread, but for `keep`, `set_bus`, `publish`, `history` and
    `delete_room`.
    """

    def __init__(self, engine: Engine, bus: Bus | None, needs: Needs) -> None:
        self.counters: Counters = Counters()
        self._engine = engine
        self._needs = needs
        self.given_bus = bus
        self._bus = bus
        self._rooms: Rooms | None = None
        self._presence: Presence | None = None
        self._users: Users | None = None
        self._online: Online | None = None
        self._nodes: Nodes | None = None
        self._answerer: Answerer | None = None  # of questions of other hubs
        self._on_presence: list[Callable[..., object]] = []
        self._on_node: list[Callable[..., object]] = []
        self._on_users: list[Callable[..., object]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._audit: Audit | None = None
        self._begun = False  # the bus takes messages, which wait until it is open
        self._opened = False
        self._is_cut_off = False
        # Of plain rooms, and broadcasts: (room_id, frame, exclude, key) of this tick.
        self._outgoing: list[tuple[str, bytes, tuple[str, ...], str | None]] = []
        # By the place in it, the answers that somebody waits for.
        self._answers: dict[int, asyncio.Future[Published]] = {}
        self._take_name()
        if bus is not None:
            self._use(bus)

    def configured(self) -> None:
        """The settings of a hub that does not run have changed."""
        if self._needs.settings().node_name != self._named_after:
            self._take_name()

    def own_name(self) -> str:
        """The name for a run that begins: the child of a fork has another one than its parent."""
        if self._named_in != os.getpid():
            # They would take each other's messages for their own.
            self._take_name()
        return self.name

    def _take_name(self) -> None:
        self._named_after = self._needs.settings().node_name
        self.name: str = new_name(self._named_after)
        self._own = self.name.encode()
        self._named_in = os.getpid()
        if not self._bus_is_here():
            self._needs.name_clients(f"{self.name}.")

    def _use(self, bus: Bus) -> Rooms:
        from wsc_fast.cluster.audit import Audit
        from wsc_fast.cluster.rooms import Rooms  # most hubs have neither a bus nor kept rooms

        self._bus = bus
        if self._rooms is None:
            self._rooms = Rooms(self._engine, self.counters, bus, self._append, self._send_away)
            self._audit = Audit(self._rooms, self._spawn)
        else:
            self._rooms.use(bus)
        if bus.at_once:
            self._engine.set_outgoing(None, None, None)  # there is nobody else
            self._engine.set_relay(None, None, None)
            self._needs.name_clients("")
            return self._rooms
        self._engine.set_outgoing(self._outgoing, self._publish_outgoing, self._rooms.entered_first)
        users = self._know_users()
        known = self._needs.knows_users
        self._engine.set_relay(
            users.elsewhere, users.relay if known else None, users.relay_to_client
        )
        self._needs.name_clients(f"{self.name}.")
        return self._rooms

    def _know_users(self) -> Users:
        """Has the bus know who is connected here."""
        from wsc_fast.cluster.users import Needs as UsersNeeds
        from wsc_fast.cluster.users import Users

        if self._users is None:
            self._users = Users(
                UsersNeeds(
                    engine=self._engine,
                    counters=self.counters,
                    bus=lambda: self._bus if self._opened else None,
                    name=lambda: self.name,
                    deliveries=self._needs.deliveries,
                    disconnect=self._needs.disconnect,
                    per_user=self._needs.per_user,
                    one_machine=lambda: self._bus is None or self._bus.one_machine,
                )
            )
            self._users.hub_questions.answerer = self._answerer
            if self._needs.knows_users:
                from wsc_fast.cluster.nodes import Nodes
                from wsc_fast.cluster.online import Online

                self._needs.watch_clients(self._users)
                self._nodes = Nodes(self._presence_needs(), lambda: self.name, self._on_node)
                self._online = Online(self._presence_needs(), self._on_users)
        return self._users

    def nodes_seen(self) -> int:
        """See `HubStats.nodes`."""
        return 0 if self._nodes is None else self._nodes.seen

    def offline_store(self) -> OfflineStore | None:
        """A store of offline messages at the servers of the bus; None: it has none."""
        return None if self._bus is None else self._bus.offline_store()

    @property
    def users(self) -> Users | None:
        """The users over all hubs; None where this hub is alone."""
        return None if self._bus_is_here() else self._users

    # --- the calls of the application ---

    def set_bus(self, bus: Bus) -> None:
        """See `ClusterFace.set_bus`."""
        if self._engine.loop is not None:
            raise HubStateError("the bus cannot change while the hub runs: set it before the start")
        self.given_bus = bus
        self._use(bus)

    def keep(self, pattern: str, retention: Retention, closes: bool) -> None:
        """See `ClusterFace.keep`; the arguments are checked."""
        if self._engine.loop is not None:
            raise HubStateError("keep is for a hub that does not run: call it before the start")
        self._rooms_of_bus().kept.keep(pattern, retention, closes)

    def _rooms_of_bus(self) -> Rooms:
        """The rooms; where the application has chosen no bus, with one in this process."""
        if self._rooms is None:
            from wsc_fast.bus.memory import MemoryBus

            return self._use(MemoryBus())
        return self._rooms

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._needs.tasks.spawn(work, self._engine.new_context())

    def _send_away(self, clients: list[Client]) -> None:
        self._spawn(in_turns(clients, _missed))

    def presence(self, patterns: Sequence[str]) -> None:
        """See `ClusterFace.presence`; the arguments are checked."""
        if self._engine.loop is not None:
            raise HubStateError("presence is for a hub that does not run: call it before the start")
        if not self._needs.knows_users:
            raise ValidationError(
                "presence is about users, and all clients of this hub are anonymous: give Hub an "
                "authenticate"
            )
        self._rooms_of_bus()
        if self._presence is None:
            from wsc_fast.cluster.presence import Presence

            needs = self._presence_needs()
            self._know_users()
            self._presence = Presence(needs, self._on_presence)
            self._needs.watch_rooms(self._presence)
        self._presence.watch(patterns)

    def _presence_needs(self) -> PresenceNeeds:
        from wsc_fast.cluster.presence import Needs as PresenceNeeds

        return PresenceNeeds(
            engine=self._engine,
            tasks=self._needs.tasks,
            counters=self.counters,
            bus=lambda: self._bus if self._opened else None,
            grace=self._grace,
            report=self._needs.report,
        )

    def _grace(self) -> float:
        return self._needs.settings().presence_grace

    def add_presence(self, fn: OfPresence) -> OfPresence:
        """`fn(room_id, joined, left)` for the users who have come to a room, and left it."""
        self._on_presence.append(checked_callback(fn, "room_id", "joined", "left"))
        return fn

    def add_users(self, fn: OfUsers) -> OfUsers:
        """`fn(online, offline)` for users who have connected to any hub, and left the last one."""
        self._on_users.append(checked_callback(fn, "online", "offline"))
        return fn

    def add_node(self, fn: OfNode) -> OfNode:
        """`fn(node, is_up)` for other hubs that have come, or gone."""
        self._on_node.append(checked_callback(fn, "node", "is_up"))
        return fn

    async def ask(self, question: Callable[[Bus], Coroutine[Any, Any, _T]]) -> _T:
        """Asks the bus who is where."""

        def begin() -> asyncio.Future[_T]:
            if self._engine.loop is None:
                raise HubStoppedError("the hub does not run in this process")
            if self._users is None or not self._needs.knows_users:
                raise ValidationError("presence is off: see Hub.presence")
            self._open_at_once()
            assert self._bus is not None
            return asyncio.ensure_future(question(self._bus))

        return await _elsewhere(self._needs.calls.run(begin))

    def disconnect_elsewhere(self, user_id: str, code: int, reason: str) -> None:
        """Has other hubs close the clients of a user, where there are any."""
        if self.users is not None and self._engine.loop is not None:
            self.users.disconnect(user_id, code, reason)

    async def send_to_user(self, user_id: str, message: HubMessage) -> int:
        """See `Cluster.send_to_user`."""
        clients, hubs = await self._there(
            lambda: self._needs.deliveries.send_anywhere(user_id, message)
        )
        return hubs + (clients > 0)

    async def disconnect_user(self, user_id: str, code: int, reason: str) -> int:
        """See `Cluster.disconnect_user`; the arguments are checked."""

        async def everywhere() -> int:
            clients = self._needs.disconnect(user_id, code, reason)
            if self.users is not None:
                clients += await self.users.disconnect_and_count(user_id, code, reason)
            return clients

        return await self._there(everywhere)

    async def _there(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Awaits something on the hub's loop."""

        def begin() -> asyncio.Future[_T]:
            if self._engine.loop is None:
                raise HubStoppedError("the hub does not run in this process")
            return asyncio.ensure_future(work())

        return await _elsewhere(self._needs.calls.run(begin))

    async def members(self, room_id: str) -> list[Member]:
        """See `Cluster.members`."""
        from wsc_fast.cluster.views import members_of

        self.check_watched(room_id)
        found = await self.ask(lambda bus: members_of(bus, room_id))
        return [Member(user_id, clients) for user_id, clients in found.items()]

    async def members_page(self, room_id: str, cursor: str) -> tuple[str, Sequence[Member]]:
        """A page of `members`; see `Bus.members`."""
        self.check_watched(room_id)
        return await self.ask(lambda bus: bus.members(room_id, cursor))

    async def count(self, room_id: str) -> int:
        """See `Cluster.count`."""
        self.check_watched(room_id)
        return await self.ask(lambda bus: bus.count(room_id))

    async def online(self, user_ids: Sequence[str]) -> set[str]:
        """See `Cluster.online`; the arguments are checked."""
        return await self.ask(lambda bus: bus.online(user_ids))

    def is_watched(self, room_id: str) -> bool:
        """Whether a room has presence."""
        return self._presence is not None and self._presence.is_watched(room_id)

    def check_watched(self, room_id: str) -> None:
        """Raises ValidationError for a room without presence."""
        check_id("room", room_id)
        if not self.is_watched(room_id):
            raise ValidationError(f"room {room_id!a} has no presence: see Hub.presence")

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
        if self._rooms is not None and self._rooms.is_kept(room_id):
            self._engine.append_to_kept(room_id, message, exclude, key, idempotency_key, answer)
        elif idempotency_key is None:
            self._publish_plain(room_id, message, exclude, key, answer)
        else:
            self._publish_once(room_id, message, exclude, key, idempotency_key, answer)
        return answer

    def _publish_plain(
        self,
        room_id: str,
        message: HubMessage | str | bytes,
        exclude: Iterable[str | Client],
        key: str | None,
        answer: asyncio.Future[Published],
    ) -> None:
        """To the members here at once, and to other hubs at the end of the tick."""
        place = len(self._outgoing)
        self._engine.publish_to_plain(room_id, message, exclude, key)
        if len(self._outgoing) > place:
            self._answers[place] = answer
        else:
            answer.set_result(Published(None, False))

    def _publish_once(
        self,
        room_id: str,
        message: HubMessage | str | bytes,
        exclude: Iterable[str | Client],
        key: str | None,
        idempotency_key: str,
        answer: asyncio.Future[Published],
    ) -> None:
        """To the bus, which knows the key; to the members here once it has taken the message."""
        self._rooms_of_bus()
        frame, excluded = self._engine.prepare_for_plain(room_id, message, exclude, key, True)
        self._publish_first(room_id, frame, excluded, key, idempotency_key, answer)

    def _publish_first(
        self,
        room_id: str,
        frame: bytes,
        exclude: tuple[str, ...],
        key: str | None,
        idempotency_key: str | None,
        answer: asyncio.Future[Published],
    ) -> None:
        """Has the bus take a plain message before the clients of this hub get it."""
        entry = _checked_entry(frame, exclude, key)
        self._open_at_once()
        assert self._bus is not None
        taken: asyncio.Future[Published] = answer.get_loop().create_future()

        def give(taken: asyncio.Future[Published]) -> None:
            error = taken.exception()
            if error is not None:
                if not answer.done():
                    answer.set_exception(error)
                return
            published = taken.result()
            if not answer.done():
                answer.set_result(published)
            if not published.duplicate:
                kept.give_plain(self._engine, room_id, frame, exclude, key)

        taken.add_done_callback(give)
        self._publish_outgoing()  # they were published before this one
        self.counters.published += 1
        self._bus.publish([Outgoing(room_id, entry, None, idempotency_key, taken)])

    async def publish_anywhere(
        self,
        room_id: str,
        message: str | bytes,
        exclude: Iterable[str],
        key: str | None,
        idempotency_key: str | None,
    ) -> Published:
        """Publishes to a room, plain or kept, or to EVERYBODY; it is for a caller without a hub.

        The clients of this hub get a plain message once the bus has taken it. A room needs no
        members here.

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
        if room_id != EVERYBODY and self._rooms_of_bus().is_kept(room_id):
            self._engine.append_to_kept(room_id, message, exclude, key, idempotency_key, answer)
        else:
            frame, excluded = self._engine.prepare_for_plain(room_id, message, exclude, key, False)
            self._publish_first(room_id, frame, excluded, key, idempotency_key, answer)
        # A caller who goes away does not take back a message that is on its way.
        return await asyncio.shield(answer)

    async def ask_hub(self, hub: str, content: bytes, *, again: bool = True) -> bytes:
        """Asks another hub about itself, see `HubQuestions.ask`."""
        if self.users is None:
            from wsc_fast.cluster.hub_questions import NoHubError

            raise NoHubError(f"no hub has the name {hub!a}: this one is alone")
        return await self.users.hub_questions.ask(hub, content, again=again)

    def answer_hubs(self, answerer: Answerer) -> None:
        """Has `answerer(content)` answer the questions of other hubs."""
        self._answerer = answerer
        if self._users is not None:
            self._users.hub_questions.answerer = answerer

    def prepare(self) -> None:
        """Has a bus for `publish_anywhere`, where the application has chosen none."""
        self._rooms_of_bus()

    async def delete_room(self, room_id: str) -> None:
        """See `Cluster.delete_room`."""
        await _elsewhere(self._needs.calls.run(lambda: self._delete_room(room_id)))

    def _delete_room(self, room_id: str) -> asyncio.Future[None]:
        self._kept_retention(room_id)
        assert self._bus is not None
        assert self._rooms is not None
        self._rooms.release(room_id)  # what was published before goes, too
        return asyncio.ensure_future(self._bus.delete(room_id))

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
        is_whole = page.contiguous and all(each.entry != MARK for each in page.entries)
        if after is not None and not is_whole:
            raise LookupError(
                f"the history of room {room_id!a} does not reach back to the position {after!a}"
            )
        return page

    def _history(self, room_id: str, after: str | None, limit: int) -> asyncio.Future[Page]:
        retention = self._kept_retention(room_id)
        assert self._bus is not None
        return asyncio.ensure_future(self._bus.read(room_id, after, limit, retention))

    def _kept_retention(self, room_id: str) -> Retention:
        """Of a kept room about which the bus is to be asked."""
        check_id("room", room_id)
        if self._engine.loop is None:
            raise HubStoppedError("the hub does not run in this process")
        retention = None if self._rooms is None else self._rooms.kept.retention_of(room_id)
        if retention is None:
            raise ValidationError(f"room {room_id!a} is not kept: see Hub.keep")
        self._open_at_once()
        return retention

    # --- what the engine publishes ---

    def _append(
        self,
        room_id: str,
        retention: Retention,
        frame: bytes,
        exclude: tuple[str, ...],
        key: str | None,
        idempotency_key: str | None = None,
        answer: asyncio.Future[Published] | None = None,
    ) -> None:
        exclude = tuple(dict.fromkeys(exclude))  # each hears once that it was left out
        entry = _checked_entry(frame, exclude, key)
        outgoing = Outgoing(room_id, entry, retention, idempotency_key, answer)
        try:
            self._open_at_once()
        except BusUnavailableError as error:
            # `broadcast_to_room` raises nothing of the bus, whatever the time of the call.
            self._refuse(outgoing, error)
            return
        self.counters.published += 1
        assert self._rooms is not None
        if answer is not None and not self._rooms.hears_all:
            answer.add_done_callback(partial(self._rooms.published, room_id, retention))
        self._rooms.publish(outgoing)

    def _refuse(self, outgoing: Outgoing, error: Exception) -> None:
        if outgoing.answer is None:
            self.not_published(outgoing, error)
        else:
            outgoing.answer.set_exception(error)

    def _publish_outgoing(self) -> None:
        """Gives the bus the messages of plain rooms and broadcasts of this tick."""
        assert self._bus is not None
        # Emptied first: the engine asks for a call where it puts the first one in.
        taken, answers = self._outgoing[:], self._answers
        self._outgoing.clear()
        self._answers = {}
        outgoing = [
            Outgoing(room_id, pack_entry(frame, exclude, key), answer=answers.get(place))
            for place, (room_id, frame, exclude, key) in enumerate(taken)
        ]
        self.counters.published += len(outgoing)
        if self._begun:
            self._bus.publish(outgoing)
            return
        error = BusUnavailableError("the bus is not open")
        for each in outgoing:
            if each.answer is None:
                self.not_published(each, error)
            elif not each.answer.done():
                each.answer.set_exception(error)

    # --- what the bus says ---

    def envelope(self, channel: str, data: bytes) -> bool:
        """See `Handler.envelope`."""
        rooms = self._rooms
        assert rooms is not None
        try:
            taken = kept.take_plain(self._engine, channel, data, self._own, bool(rooms.turns))
            if taken is not None:
                count, rest = taken
                self.counters.received += count
                if rest:
                    rooms.turns.run(self._give_plain(channel, rest))
                return not rooms.turns
            _, _, prev, messages = read_envelope(data)
        except ValidationError as error:
            if self._is_presence(channel, data):
                return True
            self.counters.poisoned += 1
            log.warning(
                "bytes on the bus that no hub has written are left out: %s",
                error,
                extra={"event": "poisoned_envelope", "room": channel},
            )
            return True
        rooms.heard(channel, prev, messages)
        return not rooms.turns

    def _give_plain(
        self, room_id: str, entries: Sequence[tuple[bytes, tuple[str, ...] | None, str | None]]
    ) -> Iterator[None]:
        for frame, exclude, key in entries:
            kept.give_plain(self._engine, room_id, frame, exclude, key)
            yield

    def takes_more(self) -> bool:
        """See `Handler.takes_more`."""
        return self._rooms is None or not self._rooms.turns

    def _is_presence(self, channel: str, data: bytes) -> bool:
        """Takes joins and leaves, which are no envelope."""
        if not channel.startswith(PRESENCE):
            return False
        try:
            lines = data.decode()
        except UnicodeDecodeError:
            return False
        if channel == PRESENCE:
            if self._online is not None:
                self._online.heard(lines)
        elif self._presence is not None:
            self._presence.heard(channel, lines)
        return True

    def word(self, data: bytes) -> None:
        """See `Handler.word`."""
        if self._users is not None:
            self._users.word(data)

    def elsewhere(self, users: Sequence[str]) -> None:
        """See `Handler.elsewhere`."""
        if self._users is not None:
            self._users.entered_elsewhere(users)

    def words_missed(self) -> None:
        """See `Handler.words_missed`."""
        if self._users is not None:
            self._users.missed()

    def subscribed(self, channels: Sequence[str], again: bool) -> None:
        """See `Handler.subscribed`."""
        assert self._rooms is not None
        if again and self._audit is not None:
            self._audit.soon()  # the bus may have lost something
        if self._users is not None:
            of_presence = [each for each in channels if each.startswith(PRESENCE)]
            if self._presence is not None:
                self._presence.subscribed(of_presence, again)
            if self._online is not None and PRESENCE in of_presence:
                self._online.subscribed(again)
            if of_presence:
                channels = [each for each in channels if not each.startswith(PRESENCE)]
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

    def greet(self, client: Client) -> None:
        """A client that speaks wsc.1 is open, and hears whether this hub is cut off."""
        if self._is_cut_off:
            kept.say_bus_to(self._engine, client, False)

    def down(self, error: Exception) -> None:
        """See `Handler.down`."""
        self._is_cut_off = True
        kept.say_bus(self._engine, False)

    def not_published(self, outgoing: Outgoing, error: Exception) -> None:
        """See `Handler.not_published`."""
        self.counters.not_published += 1
        log.error(
            "a message to room %a was not published: %s",
            outgoing.room,
            error,
            extra={"event": "not_published", "room": outgoing.room, "error": str(error)},
        )
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
        never = [
            name
            for name, callbacks, part in (
                ("on_presence", self._on_presence, self._presence),
                ("on_node", self._on_node, self._nodes),
                ("on_users", self._on_users, self._online),
            )
            if callbacks and part is None
        ]
        if never:
            log.warning(
                "%s is never called, since presence is off: call Hub.presence before the start",
                never[0],
                extra={"event": "presence_off"},
            )
        if self._bus is None:
            return
        self._begin(loop)
        if not self._opened:
            self._begun = True
            try:
                await self._open_here(self._bus)
            except BaseException:
                self._begun = False
                raise
            if self._loop is None:
                await self._bus.close()  # the hub was stopped meanwhile
                return
            self._set_opened()

    def _set_opened(self) -> None:
        self._opened = True
        if self._users is not None:
            assert self._bus is not None
            self._users.opened(self._bus)
        if self._presence is not None:
            self._presence.opened()

    async def _take_lease(self, bus: Bus) -> None:
        """Has the other hubs know of this one and its users."""
        if self._users is None or not self._needs.knows_users:
            return
        try:
            await bus.lease(self._state, self._grace)
        except BaseException:
            await bus.close()
            raise

    def _state(self) -> NodeState:
        clients = self._engine.connections
        return NodeState(clients, self._needs.state.draining)

    def _open_at_once(self) -> None:
        """Opens a bus in this process, where the hub has been attached without waiting."""
        if self._begun or self._bus is None or self._engine.loop is None:
            return
        if self._bus.at_once:
            self._begin(self._engine.loop)
            opening = self._open_here(self._bus)
            try:
                opening.send(None)
            except StopIteration:
                self._begun = True
                self._set_opened()
                return
            opening.close()  # it has to read a file; `open` is about to be called
        raise BusUnavailableError("the bus is not open: the hub is starting or stopping")

    async def _open_here(self, bus: Bus) -> None:
        await bus.open(self, self.own_name())
        await self._take_lease(bus)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        if self._users is not None:
            self._users.attach(loop)
        if self._looking is None:
            self._looking = loop.call_later(_LOOK, self._look)

    def _look(self) -> None:
        assert self._loop is not None
        assert self._rooms is not None
        self._looking = self._loop.call_later(_LOOK, self._look)
        now = self._loop.time()
        if self.users is not None:
            self.users.look(now)
        if self._presence is not None:
            self._presence.look(now)
        # Behind presence, which tells of rooms for as long as they are there.
        self._rooms.look(now, 0.0 if self._presence is None else self._grace())
        if self._online is not None:
            self._online.look()
        if self._nodes is not None:
            self._nodes.look(now)
        if self._audit is not None and not self._bus_is_here():
            self._audit.look(now)

    def _bus_is_here(self) -> bool:
        return self._bus is None or self._bus.at_once

    async def close(self, timeout: float) -> None:
        """The hub stops; its clients have gone."""
        if self._rooms is not None and self._opened:
            self._rooms.release_all()
        if self._users is not None and self._opened:
            await self._users.finish(max(timeout, 0.1))
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
        self._opened = self._is_cut_off = False
        if self._bus is not None:
            self._bus.forget()
        self._end()

    def descriptors(self) -> list[int]:
        """See `Bus.descriptors`."""
        return [] if self._bus is None else self._bus.descriptors()

    def _end(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self._loop = None
        self._begun = False
        if self._users is not None:
            self._users.forget()
        if self._presence is not None:
            self._presence.forget()
        if self._online is not None:
            self._online.forget()
        if self._nodes is not None:
            self._nodes.forget()
        if self._audit is not None:
            self._audit.forget()
        if self._rooms is not None:
            self._rooms.forget()


def _missed(client: Client) -> None:
    send_away(client, 1013, "messages were missed")


async def _elsewhere(answer: asyncio.Future[_T]) -> _T:
    """Awaits a future of the hub's loop on any loop."""
    loop = answer.get_loop()
    if loop is asyncio.get_running_loop():
        return await answer

    async def there() -> _T:
        return await answer

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), loop))


def _checked_entry(frame: bytes, exclude: tuple[str, ...], key: str | None) -> bytes:
    entry = pack_entry(frame, exclude, key)
    if len(entry) > MOST_ENTRY_BYTES:
        raise ValidationError(
            f"a message takes at most {MOST_ENTRY_BYTES} bytes on a bus, not {len(entry)}: the "
            f"message has {len(frame)}, and exclude names {len(exclude)} clients"
        )
    return entry


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
