"""One server of a bus: its two connections, and the task that keeps each of them.

Messages come over one connection, all else goes over the other. Each is kept by a task of its own:
when a connection ends, the task makes the next one, at once and then with growing pauses. Only
where the first attempt fails is the server away.

A connection is dead when nothing has come for DEAD seconds, a PING included, which goes out after a
second of silence. So that a subscription is not taken for alive which the server has forgotten, or
which leads to another server, a probe goes to the hub's own inbox now and then: the server's answer
says how many have got it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from wsc_fast._core.resp import ReplyError
from wsc_fast.bus.base import Outgoing
from wsc_fast.bus.redis.address import Address
from wsc_fast.bus.redis.calls import is_elsewhere, is_passing
from wsc_fast.bus.redis.checks import NotYetError, greet, prepare, warn_of_eviction
from wsc_fast.bus.redis.commands import Names, command, script_of
from wsc_fast.bus.redis.link import Link, LinkLostError
from wsc_fast.bus.redis.needs import Counters
from wsc_fast.bus.redis.outgoing import PAUSE, Sender
from wsc_fast.bus.redis.subscriptions import Subscriptions
from wsc_fast.errors import BusError, BusUnavailableError, shown
from wsc_fast.log import log

# Seconds: between two looks, of silence before a PING, of silence before a connection is dead,
# between two probes.
TICK, QUIET, DEAD, PROBE = 0.25, 1.0, 3.0, 5.0
# Seconds between two attempts to connect: from the first pause, doubling, to the last. Each is
# shortened by up to half of it, at random, so that not all hubs come at once.
FIRST_PAUSE, LAST_PAUSE = 0.02, 2.0
# A server knows for so many seconds which rooms a hub has kept.
KEPT_SECONDS = 86400.0
# The first attempt is made at once where the connection had lasted for so long. Else a server that
# accepts connections and ends them would be asked all the time.
LASTED = 0.05
# A probe that took longer than this is worth a line.
LAG = 1.0

Hears = Callable[[str, bytes], object]


class Server:
    """One server.

    Args:
        address: where it is.
        names: of keys and channels.
        origin: the name of this hub.
        timeout: seconds for which messages and questions wait.
        most: bytes of messages that wait.
        envelope: gets the messages of rooms; False: no more of them until `takes_more`.
        takes_more: asked in each turn of the loop from then on.
        word: gets what comes to the inbox.
        words_missed: is called when the inbox is subscribed again.
        kept_rooms: the rooms that the hub keeps, as publishers without a hub read them.
        subscribed: is told from when on the messages of rooms come.
        not_published: hears of errors that no answer waits for.
        changed: is called with None when the server is there, else with the error.
        counters: of the bus.
    """

    def __init__(
        self,
        address: Address,
        names: Names,
        origin: str,
        timeout: float,
        most: int,
        envelope: Hears,
        takes_more: Callable[[], bool],
        word: Callable[[bytes], object],
        words_missed: Callable[[], object],
        kept_rooms: bytes,
        subscribed: Callable[[Sequence[str], bool], object],
        not_published: Callable[[Outgoing, Exception], object],
        changed: Callable[[Server, Exception | None], object],
        counters: Counters,
    ) -> None:
        self.address: Address = address
        self._names = names
        self._origin = origin
        self._inbox = names.inbox(origin)
        self._timeout = timeout
        self._envelope = envelope
        self._takes_more = takes_more
        self._word = word
        self._words_missed = words_missed
        self._changed = changed
        self._kept_rooms = kept_rooms
        self._next_kept = 0.0
        self._has_said = False  # which rooms it keeps, since the start
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self.sender: Sender = Sender(
            f"the bus at {address.text}",
            names,
            origin,
            timeout,
            most,
            not_published,
            counters,
        )
        self.subscriptions: Subscriptions = Subscriptions(names, self._inbox, subscribed)
        # Of the connection that writes, and of the process at its other end.
        self.number: int = 0
        self.run_id: str = ""
        self._writer: Link | None = None
        self._reader: Link | None = None
        # All connections that have not ended, also those that are not in use yet.
        self._links: set[Link] = set()
        # An event that is set while there is a connection to write.
        self._writable = asyncio.Event()
        self._failing: dict[str, Exception] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._looked = self._loop.time()
        self._next_probe = self._looked + PROBE
        self._probed: Link | None = None
        self._probe_sent: bytes | None = None
        self._overdue = 0.0
        self._first: object = None

    # --- life ---

    async def open(self) -> None:
        """Connects. Where Sentinels name the server, it has `timeout` seconds to be a master.

        Raises:
            BusError: the server cannot be used; the text says why. Nothing is left open then.
        """
        try:
            await self._connect_first(self._timeout if self.address.moves else 0.0)
        except (OSError, TimeoutError, BusError) as error:
            await self.close()
            if isinstance(error, BusError) and not isinstance(error, BusUnavailableError):
                raise
            why = str(error) or "no answer"
            raise BusError(
                f"the bus at {self.address.text} cannot be reached: {why}. Look whether the server "
                "runs, and whether the URL is right"
            ) from error
        except BaseException:
            await self.close()
            raise
        self._tasks = [
            self._loop.create_task(self._keep("writer", self._connect_writer)),
            self._loop.create_task(self._keep("reader", self._connect_reader)),
        ]
        self._looked = self._loop.time()
        self._timer = self._loop.call_later(TICK, self._look)

    async def _connect_first(self, patience: float) -> None:
        """Connects, and tries again for so many seconds what may pass, such as a failover."""
        until = self._loop.time() + patience
        pause = FIRST_PAUSE
        while True:
            try:
                if self._writer is None:
                    await self._connect_writer()
                await self._connect_reader()
                return
            except (OSError, TimeoutError, NotYetError) as error:
                if self._loop.time() + pause >= until:
                    raise
                if pause == FIRST_PAUSE:
                    log.warning(
                        "the bus at %s cannot be used yet (%s); trying again for %.3g s",
                        self.address.text,
                        error,
                        patience,
                        extra={"event": "bus_not_there_yet", "error": str(error)},
                    )
            await asyncio.sleep(pause)
            pause = min(2 * pause, TICK)

    async def finish(self) -> None:
        """Waits until all that was published has been answered, as long as the server is there."""
        if self._writer is not None:
            answered = self.sender.answered()
            ends: list[asyncio.Future[Any]] = [answered, self._writer.lost]
            await asyncio.wait(ends, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)

    async def close(self) -> None:
        """Disconnects; messages that wait have their error."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        links = [link for link in (self._writer, self._reader) if link is not None]
        self._writer = self._reader = None
        closed = BusUnavailableError(f"the bus at {self.address.text} was closed")
        for link in links:
            link.abort(closed)
        for link in links:
            await asyncio.wait([link.lost])
        self._count(*links)
        self.sender.disconnected()
        self.subscriptions.disconnected()
        self.sender.fail_all(closed)
        self._writable.set()

    def forget(self) -> None:
        """The loop was closed, or is another process's: ends without using the connections."""
        self._timer = self._writer = self._reader = None
        for link in self._links:
            link.stop()
        self._links.clear()

    def descriptors(self) -> list[int]:
        """Of the sockets."""
        return [descriptor for link in self._links if (descriptor := link.descriptor) >= 0]

    # --- connections ---

    async def _connect(self, factory: Callable[[], Link]) -> tuple[Link, dict[str, str]]:
        made: list[Link] = []

        def make() -> Link:
            made.append(self._noted(factory()))
            return made[-1]

        try:
            async with asyncio.timeout(DEAD):
                place = await self.address.find(
                    lambda: self._noted(Link(_ignore, _ignore, _ignore, _nothing))
                )
                await self.address.connect(place, make)
                return made[-1], await greet(made[-1], self.address, self._origin)
        except TimeoutError:
            error: Exception = BusUnavailableError(f"no answer within {DEAD:g} s")
        except (OSError, BusError) as caught:
            error = caught
            if isinstance(caught, LinkLostError):
                # The link knows why, as where the server speaks something else.
                error = made[-1].lost.result()
        except BaseException as caught:
            _abort(made, ConnectionError("given up"))
            raise caught
        _abort(made, error)
        raise error

    def _noted(self, link: Link) -> Link:
        """Has a fork know of a connection until it ends."""
        self._links.add(link)
        link.lost.add_done_callback(lambda _: self._links.discard(link))
        return link

    async def _connect_writer(self) -> None:
        link, facts = await self._connect(
            lambda: Link(_ignore, _ignore, _ignore, self.sender.send_soon)
        )
        await self._or_abort(link, prepare(link, self.address, self._names, self._inbox))
        warn_of_eviction(self.address.text, facts)
        self.number += 1
        self.run_id = facts.get("run_id", "")
        self._writer = link
        self._say_kept_rooms(link)
        self._writable.set()
        self.sender.connected(link)

    async def _connect_reader(self) -> None:
        link, _ = await self._connect(
            lambda: Link(
                self._envelope,
                self._stray,
                self.subscriptions.confirmed,
                _nothing,
                self._takes_more,
            )
        )
        self._reader = link
        self.subscriptions.connected(link)
        await self._or_abort(link, self._first_confirmed(link))
        if self._tasks:
            self._words_missed()

    async def _first_confirmed(self, link: Link) -> None:
        # The inbox is confirmed before the answer to a PING that follows it.
        pong = self.subscriptions.ping(link)
        ends: list[asyncio.Future[Any]] = [pong, link.lost]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not pong.done():
            error = link.lost.result()
            if isinstance(error, ReplyError):
                raise BusError(
                    f"{self.address.text} does not let us subscribe (the page on RedisBus lists "
                    f"the rights of its user): {error}"
                )
            raise error

    async def _or_abort(self, link: Link, work: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(DEAD):
                await work
        except BaseException as error:
            link.abort(error if isinstance(error, Exception) else ConnectionError("given up"))
            await asyncio.wait([link.lost])
            self._forget(link)
            raise

    def _forget(self, link: Link) -> None:
        """A connection has ended."""
        self._count(link)
        if link is self._writer:
            self._writer = None
            self._writable.clear()
            self.sender.disconnected()
        elif link is self._reader:
            self._reader = None
            self.subscriptions.disconnected()

    def _count(self, *links: Link) -> None:
        self._counters.messages_in += sum(link.messages for link in links)
        self._counters.bytes_in += sum(link.bytes_read for link in links)

    async def _keep(self, role: str, connect: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            link = self._writer if role == "writer" else self._reader
            assert link is not None
            since = time.monotonic()
            error = await asyncio.shield(link.lost)
            self._forget(link)
            log.warning(
                "the bus at %s: the connection that %s has ended (%s); connecting again",
                self.address.text,
                "publishes" if role == "writer" else "subscribes",
                error,
                extra={"event": "bus_connection_lost", "error": str(error)},
            )
            pause = 0.0 if time.monotonic() - since > LASTED else FIRST_PAUSE
            await self._connect_again(role, connect, pause)

    async def _connect_again(
        self, role: str, connect: Callable[[], Coroutine[Any, Any, None]], pause: float
    ) -> None:
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LAST_PAUSE) or FIRST_PAUSE
            self._counters.reconnects += 1
            try:
                await connect()
            except Exception as error:
                # The task goes on after any error.
                self._set_failing(role, error)
            else:
                self._set_failing(role, None)
                return

    def _set_failing(self, role: str, error: Exception | None) -> None:
        were = bool(self._failing)
        if error is None:
            self._failing.pop(role, None)
        else:
            self._failing[role] = error
        if bool(self._failing) != were:
            self._changed(self, error)

    # --- messages ---

    def _stray(self, channel: bytes, data: bytes) -> None:
        """A message of the inbox, or of a channel that was unsubscribed just now."""
        if channel != self._inbox or not data:
            return  # a hub that starts sends nothing, to see whether it may
        if data == self._probe_sent:
            self._probe_came(float(data[6:]))
        elif not data.startswith(b"probe "):
            self._word(data)

    # --- looking after it ---

    def _look(self) -> None:
        """Each TICK: has the connections live or end, and fails what has waited too long."""
        now = self._loop.time()
        # While the loop stood still, nothing could come.
        elapsed = min(now - self._looked, 2 * TICK)
        self._looked = now
        self._timer = self._loop.call_later(TICK, self._look)
        for link in (self._writer, self._reader):
            if link is not None:
                self._watch(link, elapsed)
        self._watch_subscribing(elapsed)
        if now >= self._next_probe:
            self._next_probe = now + PROBE
            self._probe()
        if now >= self._next_kept and self._writer is not None:
            self._say_kept_rooms(self._writer)
        self.sender.expire(now)

    def _say_kept_rooms(self, link: Link) -> None:
        """Writes down which rooms the hub keeps; publishers without a hub read it.

        The hub that has started last says it, and the others have it live on. Else an old hub could
        write over it in a deploy, and publishers would take a kept room for a plain one.
        """
        self._next_kept = self._loop.time() + KEPT_SECONDS / 24
        key, seconds = self._names.kept(), b"%d" % KEPT_SECONDS
        write = (b"SET", key, self._kept_rooms, b"EX", seconds)
        if not self._has_said:
            link.send(command(*write, b"GET"), self._kept_rooms_said)
            return
        link.send(command(*write, b"NX"), _ignore_one)
        link.send(command(b"EXPIRE", key, seconds), _ignore_one)
        link.send(command(b"GET", key), self._kept_rooms_said)

    def _kept_rooms_said(self, before: Any) -> None:
        self._has_said = self._has_said or not isinstance(before, Exception)
        if isinstance(before, bytes) and before != self._kept_rooms:
            log.warning(
                "another hub on the bus at %s keeps other rooms: %s there, %s here. All hubs need "
                "the same calls of Hub.keep",
                self.address.text,
                shown(before.decode("utf-8", "replace")),
                self._kept_rooms.decode(),
                extra={"event": "bus_kept_rooms_differ"},
            )

    def _watch(self, link: Link, elapsed: float) -> None:
        before = link.silent
        link.watch(elapsed)
        if link.silent >= DEAD:
            link.abort(ConnectionError(f"nothing came for {DEAD:g} s"))
        elif before < QUIET <= link.silent:
            if link is self._reader:
                self.subscriptions.ping(link)
            else:
                link.send(command(b"PING"), _ignore_one)

    def _watch_subscribing(self, elapsed: float) -> None:
        """Messages may come while commands do not arrive: then the first stays the first."""
        first = self.subscriptions.first
        self._overdue = self._overdue + elapsed if first is self._first and first else 0.0
        self._first = first
        link = self._reader
        if link is not None and self._overdue >= DEAD and not link.waiting:
            self._overdue = 0.0
            link.abort(ConnectionError(f"no answer to a subscription within {DEAD:g} s"))

    def _probe(self) -> None:
        self._probed = self._reader
        if self._writer is not None and self._reader is not None:
            self._probe_sent = b"probe %f" % time.monotonic()
            data = command(b"PUBLISH", self._inbox, self._probe_sent)
            self._writer.send(data, self._probe_answered)

    def _probe_answered(self, value: Any) -> None:
        reader = self._reader
        if value == 0 and reader is not None and reader is self._probed:
            reader.abort(ConnectionError("the server does not know our subscriptions"))

    def _probe_came(self, sent: float) -> None:
        lag = time.monotonic() - sent
        self._counters.longest_lag = max(self._counters.longest_lag, lag)
        if lag > LAG:
            log.warning(
                "the bus at %s is late: a message took %.1f s. Look at the load of this process "
                "and of the server",
                self.address.text,
                lag,
                extra={"event": "bus_lag", "seconds": lag},
            )

    def live_counters(self) -> dict[str, int]:
        """The counts of the connections that there are, and of what waits."""
        links = [link for link in (self._writer, self._reader) if link is not None]
        return {
            "messages_in": sum(link.messages for link in links),
            "bytes_in": sum(link.bytes_read for link in links),
            "subscriptions": len(self.subscriptions),
            "waiting_bytes": self.sender.waiting_bytes,
        }

    # --- questions ---

    def is_there(self) -> bool:
        """Whether there is a connection that writes."""
        return self._writer is not None

    async def writer(self) -> Link:
        """The connection that writes, once there is one."""
        while True:
            await self._writable.wait()
            if self._writer is not None:
                return self._writer
            await asyncio.sleep(PAUSE)  # closed: whoever asks is about to be cancelled

    def renew(self, key: bytes, seconds: int) -> None:
        """Has a key live on for so long, if the server is there."""
        if self._writer is not None:
            self._writer.send(command(b"EXPIRE", key, b"%d" % seconds), _ignore_one)

    async def ask(self, *arguments: bytes) -> Any:
        """Has a command answered that may be done twice.

        Raises:
            BusUnavailableError: there was no answer in time.
            BusError: the server refuses.
        """
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    await self._writable.wait()
                    link = self._writer
                    if link is None:
                        raise BusUnavailableError(f"the bus at {self.address.text} was closed")
                    try:
                        value = await link.ask(*arguments)
                    except LinkLostError:
                        # The task that keeps the connection has to see it first.
                        await asyncio.sleep(0.001)
                        continue
                    if not isinstance(value, ReplyError):
                        return value
                    await self._after(link, value, arguments)
        except TimeoutError:
            raise BusUnavailableError(
                f"the bus at {self.address.text} did not answer within {self._timeout:g} s"
            ) from None

    async def ask_once(self, *arguments: bytes) -> Any:
        """Has a command answered that must not be done twice.

        Raises:
            BusUnavailableError: there was no answer in time, or nobody knows whether it was done.
            BusError: the server refuses.
        """
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    link = await self.writer()
                    try:
                        value = await link.ask(*arguments)
                    except LinkLostError as error:
                        raise BusUnavailableError(
                            f"the bus at {self.address.text}: nobody knows whether it was sent: "
                            f"{error}"
                        ) from None
                    if not isinstance(value, ReplyError):
                        return value
                    await self._after(link, value, arguments)
        except TimeoutError:
            raise BusUnavailableError(
                f"the bus at {self.address.text} did not answer within {self._timeout:g} s"
            ) from None

    async def _after(self, link: Link, error: ReplyError, arguments: Sequence[bytes]) -> None:
        """Prepares for the next attempt after an error, or raises."""
        text = str(error)
        if text.startswith("NOSCRIPT"):
            await link.ask(b"SCRIPT", b"LOAD", script_of(arguments[1]).text)
        elif is_elsewhere(text):
            link.abort(error)
        elif is_passing(text):
            await asyncio.sleep(PAUSE)
        else:
            raise BusError(f"the bus at {self.address.text} refused: {error}")


def _abort(links: Sequence[Link], error: Exception) -> None:
    for link in links:
        link.abort(error)


def _nothing() -> None:
    pass


def _ignore(*arguments: object) -> None:
    pass


def _ignore_one(value: object) -> None:
    pass
