"""RedisBus: what a hub sees of the bus over Redis or Valkey."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import ssl
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from wsc_fast.bus.base import (
    EVERYBODY,
    PRESENCE,
    Change,
    Entry,
    Handler,
    Member,
    NodeInfo,
    NodeState,
    Outcome,
    Outgoing,
    Page,
    Retention,
    Way,
    Word,
)
from wsc_fast.bus.redis.address import Address
from wsc_fast.bus.redis.calls import (
    MEMBERS,
    TOP_SECONDS,
    USERS_AT_ONCE,
    ask_clients,
    ask_directory,
    ask_elsewhere,
    new_tag,
    note_outcomes,
    number_of_server,
    read_history,
    tell_hub,
    tell_hubs,
)
from wsc_fast.bus.redis.commands import Names, decode, encode, script
from wsc_fast.bus.redis.directory import Directory
from wsc_fast.bus.redis.needs import Counters
from wsc_fast.bus.redis.server import Server
from wsc_fast.bus.redis.urls import checked_settings, master_of, read_url
from wsc_fast.errors import BusError, BusUnavailableError, ConfigError, shown
from wsc_fast.log import log
from wsc_fast.stores.base import OfflineStore
from wsc_fast.stores.redis.store import RedisOfflineStore

# Rooms of one question for positions.
ROOMS_AT_ONCE = 500
# Bounds of a lease and its renewal, in seconds.
MOST_LEASE, LEAST_REFRESH = 300.0, 0.1
# The positions of rooms that are asked for in the first seconds of each period live on.
RENEW_PERIOD, RENEW_SECONDS = 3 * 3600.0, 30.0


class RedisBus:
    """A bus over Redis 6.2 or Valkey 7.2, or newer.

    One server, the master that Sentinels name, or a list of independent servers, between which the
    rooms are divided. All hubs that are one have the same servers, in the same order, and the same
    prefix. Redis Cluster is refused.

    While a server is away, messages of its rooms wait for `timeout` seconds, within
    `max_waiting_bytes`; then they fail. The bus connects again by itself, tells the hub of which
    rooms it may have missed messages, and publishes nothing twice.

    Attributes:
        at_once: False: the server is outside of this process.
        one_machine: False: the hubs may be on several machines.
        servers: how many it has.

    Thread-safety: none; all calls in the thread of the loop on which `open` was awaited.
    """

    at_once: bool = False
    one_machine: bool = False

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        prefix: str = "wsc:",
        ssl_context: ssl.SSLContext | None = None,
        max_waiting_bytes: int = 16 << 20,
        timeout: float = 5.0,
        lease: float = 10.0,
        refresh: float = 3.0,
    ) -> None:
        """Takes the configuration; connects to nothing yet.

        Args:
            url: `redis://[user:password@]host[:port][/db]`, `rediss://…` for TLS,
                `unix://[user:password@]/path?db=0`, or
                `redis+sentinel://[user:password@]host[:port],host[:port]/name[/db]`, with
                `sentinel_username` and `sentinel_password` in its query. TLS takes the options of
                redis-py in the query, such as `ssl_ca_certs`. A list: up to 64 independent servers.
            prefix: of all keys and channels, up to 64 ASCII characters without spaces and braces.
            ssl_context: for TLS, in place of the one that the URL describes.
            max_waiting_bytes: bytes of messages that wait for a server or its answer, at least 1,
                for each server.
            timeout: seconds for which messages and questions wait, up to 60; and a start, where
                Sentinels name a server that is no master yet.
            lease: seconds after which a hub with presence that does not renew its lease is taken
                for dead, 1 to 300.
            refresh: seconds between two renewals, from 0.1 to half of the lease.

        Raises:
            ImportError: redis-py is not installed.
            ConfigError: an argument cannot be used.
        """
        if importlib.util.find_spec("redis") is None:
            raise ImportError("RedisBus needs redis-py: pip install 'wsc_fast[redis]'")
        urls = checked_settings(url, prefix, timeout)
        _check_times(lease, refresh)
        if max_waiting_bytes < 1:
            raise ConfigError(
                f"max_waiting_bytes must be at least 1, not {shown(max_waiting_bytes)}"
            )
        self._addresses = [Address(each, ssl_context) for each in urls]
        self.servers: int = len(urls)
        self._store_url = None if ssl_context is not None else urls[0]
        self._names = Names(prefix.encode())
        self._prefix = prefix
        self._max_waiting_bytes = max_waiting_bytes
        self._timeout = timeout
        self._times = lease, refresh
        self._origin = ""
        # By server; none before `lease`.
        self._directories: dict[Server, Directory] = {}
        self._servers: list[Server] = []
        self._away: set[Server] = set()
        self._handler: Handler | None = None
        self._counters = Counters()
        self._opened = 0.0
        self._down_since = 0.0

    def __repr__(self) -> str:
        return f"RedisBus({[each.text for each in self._addresses]}, prefix={self._prefix!r})"

    # --- life ---

    async def open(self, handler: Handler, origin: str) -> None:
        """Connects to all servers; EVERYBODY is subscribed from now on.

        Args:
            handler: hears what comes.
            origin: the name of this hub on the bus, without spaces.

        Raises:
            BusError: a server cannot be used as it is, or cannot be reached; the text says what to
                do. Nothing is left open then.
        """
        if self._servers:
            raise BusError(f"{self!r} is open already")
        self._handler, self._origin = handler, origin
        self._counters = Counters()
        self._away.clear()
        servers = [
            Server(
                address,
                self._names,
                origin,
                self._timeout,
                self._max_waiting_bytes,
                handler.envelope,
                handler.takes_more,
                handler.word,
                handler.words_missed,
                handler.kept_rooms(),
                handler.subscribed,
                handler.not_published,
                self._changed,
                self._counters,
            )
            for address in self._addresses
        ]
        self._servers = servers
        self._server(EVERYBODY).subscriptions.subscribe([EVERYBODY])
        opening = [asyncio.ensure_future(server.open()) for server in servers]
        try:
            await asyncio.gather(*opening)
        except BaseException:
            for task in opening:
                task.cancel()
            await asyncio.wait(opening)
            await asyncio.gather(*(server.close() for server in servers))
            self._servers = []
            raise
        self._opened = asyncio.get_running_loop().time()
        for address in self._addresses:
            log.info("connected to the bus at %s", address.text, extra={"event": "bus_up"})
        handler.up()

    async def close(self) -> None:
        """Waits until what was published has been answered, for `timeout` at most, and disconnects.

        Messages of a server that is away have their error at once. `open` may follow.
        """
        directories, self._directories = self._directories, {}
        servers, self._servers = self._servers, []
        try:
            await asyncio.gather(*(each.close(self._timeout) for each in directories.values()))
            await asyncio.gather(*(server.finish() for server in servers))
        finally:
            await asyncio.gather(*(server.close() for server in servers))

    def forget(self) -> None:
        """The loop was closed over the hub, or this is the child of a fork: nothing can be closed.

        Messages that wait are lost. `open` may follow, on another loop.
        """
        servers, self._servers = self._servers, []
        self._directories = {}
        for server in servers:
            server.forget()

    def descriptors(self) -> list[int]:
        """The descriptors of its sockets.

        Returns:
            list[int]: of the connections that there are, also of those that are not in use yet.
        """
        return [each for server in self._servers for each in server.descriptors()]

    def _changed(self, server: Server, error: Exception | None) -> None:
        """A server is there again, or away."""
        assert self._handler is not None
        now = asyncio.get_running_loop().time()
        were = bool(self._away)
        if error is None:
            self._away.discard(server)
        else:
            self._away.add(server)
            self._log_away(server, error)
        if error is None and were and not self._away:
            log.info(
                "the bus is there again, after %.1f s",
                now - self._down_since,
                extra={"event": "bus_up", "seconds": now - self._down_since},
            )
            self._handler.up()
        elif error is not None and not were:
            self._down_since = now
            self._handler.down(error)

    def _log_away(self, server: Server, error: Exception) -> None:
        log.error(
            "the bus at %s cannot be reached: %s. Other hubs hear nothing of this one meanwhile. "
            "Look whether the server runs; the hub connects again by itself",
            server.address.text,
            str(error) or "no answer",
            extra={"event": "bus_down", "error": str(error)},
        )

    # --- rooms ---

    def _server(self, room: str) -> Server:
        servers = self._servers
        if len(servers) == 1:
            return servers[0]
        if not servers:
            raise BusUnavailableError(f"{self!r} is not open")
        return servers[number_of_server(room.removeprefix(PRESENCE), len(servers))]

    def subscribe(self, rooms: Sequence[str]) -> None:
        """Has the messages of these rooms come; `Handler.subscribed` says from when on.

        Args:
            rooms: their ids.
        """
        for server, part in self._divided(rooms):
            server.subscriptions.subscribe(part)

    def unsubscribe(self, rooms: Sequence[str]) -> None:
        """Has them come no more. Some that are under way may still come.

        Args:
            rooms: their ids.
        """
        for server, part in self._divided(rooms):
            server.subscriptions.unsubscribe(part)

    def _divided(self, rooms: Sequence[str]) -> Sequence[tuple[Server, Sequence[str]]]:
        if len(self._servers) == 1:
            return [(self._servers[0], rooms)]
        parts: dict[Server, list[str]] = defaultdict(list)
        # After `close` nothing is subscribed.
        for room in rooms if self._servers else ():
            if room == PRESENCE:
                for server in self._servers:  # each knows some of the users
                    parts[server].append(room)
            else:
                parts[self._server(room)].append(room)
        return list(parts.items())

    # --- messages ---

    def publish(self, batch: Sequence[Outgoing]) -> None:
        """Publishes messages, in this order where they are of one room.

        Args:
            batch: neighbours of one room may share an envelope.
        """
        servers = self._servers
        if len(servers) == 1:
            servers[0].sender.publish(batch)
            return
        if not servers:
            self._refuse(batch)
            return
        parts: dict[Server, list[Outgoing]] = defaultdict(list)
        for outgoing in batch:
            parts[self._server(outgoing.room)].append(outgoing)
        for server, part in parts.items():
            server.sender.publish(part)

    def _refuse(self, batch: Sequence[Outgoing]) -> None:
        error = BusUnavailableError(f"{self!r} is not open")
        for outgoing in batch:
            self._counters.not_published += 1
            if outgoing.answer is None:
                if self._handler is not None:
                    self._handler.not_published(outgoing, error)
            elif not outgoing.answer.done():
                outgoing.answer.set_exception(error)

    async def read(self, room: str, since: str | None, limit: int, retention: Retention) -> Page:
        """Reads the history of a kept room.

        Args:
            room: its id.
            since: the position after which to read; None reads the newest messages, without marks.
            limit: the most entries to return; with 0 only `top` is asked for. A page ends after
                4 MiB, too.
            retention: of the room.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the server refuses.
        """
        server = self._server(room)
        newest, contiguous, entries, name = await server.ask(
            *read_history(self._names, room, since, limit, retention)
        )
        pairs = zip(entries[::2], entries[1::2], strict=True)
        return Page(
            newest.decode(),
            contiguous == 1,
            [Entry(position.decode(), entry) for position, entry in pairs],
            f"{server.run_id} {name.decode()}" if name else "",
        )

    async def delete(self, room: str) -> None:
        """Deletes the history of a kept room. No position of before is known afterwards.

        Args:
            room: its id.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the server refuses.
        """
        server = self._server(room)
        await server.sender.ended(room)  # what was published before goes, too
        await server.ask(
            b"EVAL",  # it is seldom called
            script("delete").text,
            b"2",
            *self._names.history(room),
            self._names.channel(room),
            self._origin.encode(),
            new_tag(),
            b"%d" % TOP_SECONDS,
        )

    def way(self, room: str) -> Way:
        """See `Bus.way`.

        Args:
            room: its id.
        """
        number = number_of_server(room, self.servers) if self.servers > 1 else 0
        return Way(number, self._servers[number].number if self._servers else 0)

    async def tops(self, rooms: Sequence[str]) -> Sequence[str | None]:
        """The positions of the newest messages of kept rooms; None where nothing is known.

        Args:
            rooms: their ids.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the server refuses.
        """
        found: dict[str, str | None] = {}
        if not self._servers:
            raise BusUnavailableError(f"{self!r} is not open")
        parts = [
            (server, part[start : start + ROOMS_AT_ONCE])
            for server, part in self._divided(rooms)
            for start in range(0, len(part), ROOMS_AT_ONCE)
        ]
        await asyncio.gather(*(self._tops(server, part, found) for server, part in parts))
        return [found[room] for room in rooms]

    async def _tops(
        self, server: Server, rooms: Sequence[str], found: dict[str, str | None]
    ) -> None:
        keys = [self._names.top(room) for room in rooms]
        values = await server.ask(b"MGET", *keys)
        for room, value in zip(rooms, values, strict=True):
            found[room] = None if value is None else value.decode()
        # A silent room that somebody is in must not lose its position for its age.
        if (asyncio.get_running_loop().time() - self._opened) % RENEW_PERIOD < RENEW_SECONDS:
            for key in keys:
                server.renew(key, TOP_SECONDS)

    # --- who is where ---

    async def lease(self, state: Callable[[], NodeState], grace: Callable[[], float]) -> None:
        """Takes a lease at each server, and renews it from now on.

        Args:
            state: what the hub tells the others of itself.
            grace: the seconds after which a leave is told.

        Raises:
            BusError: a server refuses, or does not answer in time.
        """
        assert self._handler is not None
        self._directories = {
            server: Directory(
                server,
                server.address.text,
                self._names,
                self._origin,
                self._times,
                state,
                grace,
                self._counters,
                partial(self._began_anew, server),
                self._handler.elsewhere,
            )
            for server in self._servers
        }
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.gather(*(each.open() for each in self._directories.values()))
        except TimeoutError:
            raise BusUnavailableError(
                f"{self!r} gave no lease within {self._timeout:g} s"
            ) from None

    def _began_anew(self, server: Server) -> None:
        assert self._handler is not None
        rooms = server.subscriptions.heard(PRESENCE)
        if rooms:
            self._handler.subscribed(rooms, True)

    def directory(self, changes: Sequence[Change]) -> None:
        """Enters who is connected here, and in which rooms.

        Args:
            changes: room, user, and the number of his clients.
        """
        parts: dict[Directory, list[Change]] = defaultdict(list)
        for change in changes if self._directories else ():
            parts[self._directories[self._server(change.room or change.user)]].append(change)
        for directory, part in parts.items():
            directory.put(part)

    async def members(self, room: str, cursor: str) -> tuple[str, Sequence[Member]]:
        """A page of the users who are present in a room.

        Args:
            room: its id; EVERYBODY: of all users, each with one client.
            cursor: "" for the first page, else what the page before has returned.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the server refuses.
        """
        if room == EVERYBODY:
            return await self._everybody(cursor)
        if not cursor:
            await self._written(self._server(room))
        answer = await self._ask_directory(
            self._server(room), b"members", encode(room), cursor.encode() or b"0", MEMBERS
        )
        following, *found = answer
        members = [
            Member(decode(user), clients)
            for user, clients in zip(found[::2], found[1::2], strict=True)
        ]
        return "" if following == b"0" else following.decode(), members

    async def _everybody(self, cursor: str) -> tuple[str, Sequence[Member]]:
        """A page of all users, of one server after the other."""
        number, _, place = cursor.partition(" ")
        at = int(number or 0)
        server = self._servers[at]
        if not place:
            await self._written(server)
        answer = await self._ask_directory(server, b"everybody", place.encode(), MEMBERS)
        members = [Member(decode(user), 1) for user in answer[1:]]
        if answer[0]:
            return f"{at} {answer[0].decode()}", members
        return ("" if at + 1 == len(self._servers) else f"{at + 1} "), members

    async def count(self, room: str) -> int:
        """How many users are present in a room.

        Args:
            room: its id.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the server refuses.
        """
        await self._written(self._server(room))
        return int(await self._server(room).ask(b"HLEN", self._names.present(room)))

    async def online(self, users: Sequence[str]) -> set[str]:
        """The users among these who are connected to any hub.

        Args:
            users: their ids.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the server refuses.
        """
        found: set[str] = set()
        for server, part in self._divided(users):
            await self._written(server)
            for start in range(0, len(part), USERS_AT_ONCE):
                page = part[start : start + USERS_AT_ONCE]
                answer = await self._ask_directory(server, b"online", *map(encode, page))
                found.update(
                    user for user, online in zip(page, answer, strict=True) if online == ord("1")
                )
        return found

    async def nodes(self) -> Sequence[NodeInfo]:
        """The hubs that hold a lease, at any server.

        Raises:
            BusUnavailableError: a server did not answer in time.
            BusError: a server refuses.
        """
        found: dict[str, NodeInfo] = {}
        for server in self._servers:
            answer = await self._ask_directory(server, b"nodes")
            for incarnation, value in zip(answer[::2], answer[1::2], strict=True):
                name = incarnation.decode().rpartition(".")[0]
                _, clients, draining = value.split()
                info = NodeInfo(name, incarnation.decode(), int(clients), draining == b"1")
                found.setdefault(name, info)
        return list(found.values())

    async def _written(self, server: Server) -> None:
        """A question sees what this hub has entered before."""
        directory = self._directories.get(server)
        if directory is None:
            return
        try:
            async with asyncio.timeout(self._timeout):
                await directory.written()
        except TimeoutError:
            raise BusUnavailableError(
                f"the bus at {server.address.text} did not take the changes of this hub within "
                f"{self._timeout:g} s"
            ) from None

    async def _ask_directory(self, server: Server, what: bytes, *arguments: bytes) -> Any:
        return await server.ask(*ask_directory(self._names, what, *arguments))

    def offline_store(self) -> OfflineStore | None:
        """A new store of messages for users who are away: a RedisOfflineStore.

        Returns:
            OfflineStore: at the first server. Its keys begin with the prefix of the bus and
                `offline:`.

        Raises:
            ConfigError: the bus was given an `ssl_context`, which a store does not take.
        """
        if self._store_url is None:
            raise ConfigError(
                "offline messages on a RedisBus with ssl_context need a store of their own: give "
                "enable_ack a RedisOfflineStore"
            )
        url = read_url(self._store_url)
        place = partial(master_of, url, self._timeout / 2) if url.sentinels else self._store_url
        prefix = self._names.offline().decode()
        return RedisOfflineStore(place, prefix=prefix, timeout=self._timeout)

    # --- words between hubs ---

    async def tell(self, words: Sequence[Word], again: bool) -> Sequence[int]:
        """Sends words to the hubs that have their users, but for this one, or to one hub.

        Args:
            words: those of one user, and those to one hub, come in this order.
            again: whether they may come twice.

        Raises:
            BusUnavailableError: the bus did not answer in time, or nobody knows whether they came.
            BusError: the server refuses.
        """
        counts: dict[int, int] = {}
        parts: dict[tuple[Server, bool], list[int]] = defaultdict(list)
        for place, word in enumerate(words):
            # Each hub hears its inbox on all servers.
            server = self._server(EVERYBODY if word.hub else word.user)
            parts[server, bool(word.hub)].append(place)
        for (server, to_hub), places in parts.items():
            some = [words[place] for place in places]
            if to_hub:
                arguments = tell_hub(self._names, some)
            else:
                arguments = tell_hubs(self._names, self._incarnation(server), some)
            ask = server.ask if again else server.ask_once
            counts.update(zip(places, await ask(*arguments), strict=True))
        return [counts[place] for place in range(len(words))]

    def _incarnation(self, server: Server) -> str:
        directory = self._directories.get(server)
        return "" if directory is None else directory.incarnation

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[bool]:
        """Notes how messages have ended, and tells the hubs that have copies.

        Args:
            outcomes: of messages of one user, or of several.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the server refuses.
        """
        noted: dict[int, bool] = {}
        parts: dict[Server, list[int]] = defaultdict(list)
        for place, outcome in enumerate(outcomes):
            parts[self._server(outcome.word.user)].append(place)
        for server, places in parts.items():
            some = [outcomes[place] for place in places]
            answer = await server.ask(*note_outcomes(self._names, self._incarnation(server), some))
            noted.update(zip(places, map(bool, answer), strict=True))
        return [noted[place] for place in range(len(outcomes))]

    async def outcomes(
        self, user: str, mailbox: str, message_ids: Sequence[str]
    ) -> Sequence[bytes | None]:
        """The outcomes that were noted of a user's messages; None where none is known.

        Args:
            user: the id of the user.
            mailbox: of the messages in the offline store.
            message_ids: up to 1,000.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the server refuses.
        """
        keys = [self._names.outcome(mailbox, each) for each in message_ids]
        found: Sequence[bytes | None] = await self._server(user).ask(b"MGET", *keys)
        return found

    async def elsewhere(self, users: Sequence[str]) -> set[str]:
        """The users among these whom other hubs have.

        Args:
            users: their ids.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the server refuses.
        """
        found: set[str] = set()
        for server, part in self._divided(users):
            for start in range(0, len(part), USERS_AT_ONCE):
                page = part[start : start + USERS_AT_ONCE]
                asked = ask_elsewhere(self._names, self._incarnation(server), page)
                answer = await server.ask(*asked)
                found.update(
                    user for user, is_so in zip(page, answer, strict=True) if is_so == ord("1")
                )
        return found

    async def clients(self, user: str) -> int:
        """The number of a user's clients on all hubs.

        Args:
            user: the id of the user.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the server refuses.
        """
        server = self._server(user)
        await self._written(server)
        return int(await server.ask(*ask_clients(self._names, user)))

    # --- counters ---

    def counters(self) -> dict[str, float]:
        """Counts of the events since `open`, by name.

        Returns:
            dict[str, float]: `published`, `not_published`, `lookups`, `reconnects`, `messages_in`,
                `bytes_in`, `subscriptions`, `waiting_bytes`, `heartbeats`, `lost_leases`,
                `reaped`, and `longest_lag` in seconds.
        """
        live = [server.live_counters() for server in self._servers]
        counted: dict[str, float] = dataclasses.asdict(self._counters)
        for name in ("messages_in", "bytes_in", "subscriptions", "waiting_bytes"):
            counted[name] += sum(each[name] for each in live)
        return counted


def _check_times(lease: float, refresh: float) -> None:
    if not 1 <= lease <= MOST_LEASE:
        raise ConfigError(f"lease must be 1 to {MOST_LEASE:.0f} seconds, not {shown(lease)}")
    if not LEAST_REFRESH <= refresh <= lease / 2:
        raise ConfigError(
            f"refresh must be from {LEAST_REFRESH} seconds to half of the lease ({lease:g}), not "
            f"{shown(refresh)}"
        )
