"""Presence at one server of a bus: the lease of this hub there, and the users that it has entered.

The hub gives us what it has now, and one task sees to it that the server has the same. It writes
changes alone: those that come while a call is under way go together with the next one. It renews
one lease for all of them.

A hub whose lease has ended was taken for dead, and so all that it had entered is being taken out.
So it begins a new incarnation and enters all anew. It does the same at a server with another run
id, such as a replica that was promoted, or one that was restarted: the newest writes may be
missing there. After that it takes out what its earlier incarnations have left behind.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Protocol

from wsc_fast._core.resp import ReplyError
from wsc_fast.bus.base import Change, NodeState
from wsc_fast.bus.redis.calls import is_elsewhere, is_passing
from wsc_fast.bus.redis.checks import prepare_presence
from wsc_fast.bus.redis.commands import Names, decode, encode, script
from wsc_fast.bus.redis.link import Link, LinkLostError
from wsc_fast.bus.redis.needs import Counters
from wsc_fast.bus.redis.outgoing import PAUSE
from wsc_fast.errors import BusError
from wsc_fast.log import log

# Entries of one call.
PAGE = 200
# Seconds for which keys live that nobody writes any more, and within which each entry is written
# again, so that those of a hub which goes on never end.
LIFE, AGAIN = 86400, 28800.0
# Seconds between two looks for users whose grace has ended.
SWEEP = 0.25
# Seconds until the next attempt after the server has refused.
FAILED_PAUSE = 1.0


class Place(Protocol):
    """One server, as far as the directory needs it.

    Attributes:
        number: of its connection that writes; each has a higher one.
        run_id: of the process at the other end.
    """

    number: int
    run_id: str

    async def writer(self) -> Link:
        """The connection that writes, once there is one."""

    def is_there(self) -> bool:
        """Whether there is one now."""


class LeaseLostError(Exception):
    """The server refuses a write, since the lease has ended or another connection has it."""


class Directory:
    """The users that this hub has entered at one server.

    Args:
        place: the server.
        at: the server, as errors name it.
        names: of keys.
        origin: the name of this hub.
        times: the seconds of a lease, and those between two of its renewals.
        state: what the hub says of itself.
        grace: seconds after which a leave is told.
        counters: of the bus.
        began: is called when a further incarnation begins: the server may have lost what was
            written last.
        elsewhere: hears of users whom other hubs have as well.

    Attributes:
        incarnation: of this hub at the server; "" before the first.

    Thread-safety: none; the loop's thread.
    """

    def __init__(
        self,
        place: Place,
        at: str,
        names: Names,
        origin: str,
        times: tuple[float, float],
        state: Callable[[], NodeState],
        grace: Callable[[], float],
        counters: Counters,
        began: Callable[[], object],
        elsewhere: Callable[[Sequence[str]], object],
    ) -> None:
        self.incarnation: str = ""
        self._place = place
        self._at = at
        self._prefix = names.prefix
        self._origin = origin
        self._lease, self._refresh = times
        self._state = state
        self._grace = grace
        self._counters = counters
        self._tell_began = began
        self._tell_elsewhere = elsewhere
        self._loop = asyncio.get_running_loop()
        self._script = script("directory")
        self._entries: dict[tuple[str, str], int] = {}
        # Entries that differ from what the server has, as far as we know. They are written in
        # this order.
        self._dirty: dict[tuple[str, str], None] = {}
        # How many have been written in all, and how many are in the call under way.
        self._written = 0
        self._under_way = 0
        # Once so many have been written, this incarnation has all that the former one had.
        self._whole_at = 0
        # Entries that are due to be written again.
        self._again: list[tuple[str, str]] = []
        self._owed = 0.0
        # Incarnations that have left something: earlier ones of ours, and others without a lease.
        self._own_dead: list[str] = []
        self._dead: list[str] = []
        self._run_id = ""
        self._began = 0.0
        self._renew_at = 0.0
        # When leaves are to be told, in order.
        self._leaves: deque[float] = deque()
        self._number = 0
        self._wake = asyncio.Event()
        # Futures of questions that wait until so many entries have been written.
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None
        self._failing = ""

    # --- life ---

    async def open(self) -> None:
        """Takes the first lease.

        Raises:
            BusError: the server refuses.
        """
        self._task = self._loop.create_task(self._run())
        await self._ready

    async def close(self, timeout: float) -> None:
        """Takes out all that this hub has entered, and ends its lease; within a time."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        self._tell_written(ended=True)  # whoever asks hears of the end by the question
        if not self._ready.done():
            self._ready.cancel()
        if not self._place.is_there():
            return  # the lease ends by itself, and another hub takes out what is left
        self.put([Change(room, user, 0) for room, user in self._entries])
        try:
            async with asyncio.timeout(timeout):
                link = await self._place.writer()
                self._number = self._place.number
                if self._place.run_id == self._run_id:
                    await self._end(link)
        except (TimeoutError, LinkLostError, LeaseLostError, BusError):
            pass  # as above

    async def _end(self, link: Link) -> None:
        await self._take_lease(link, False)
        while self._dirty:
            await self._write(link)
        while await self._call(link, b"end") == 1:
            pass

    # --- the entries ---

    def put(self, changes: Sequence[Change]) -> None:
        """The hub has this from now on."""
        for room, user, clients in changes:
            if clients:
                self._entries[room, user] = clients
            else:
                self._entries.pop((room, user), None)
            self._dirty[room, user] = None
        self._wake.set()

    async def written(self) -> None:
        """Returns once the server has all that was put, so that a question sees it."""
        if self._dirty or self._under_way:
            future: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append((self._end_of_dirty(), future))
            await future

    def _end_of_dirty(self) -> int:
        """The number of entries written so far, once those that differ now are written."""
        return self._written + self._under_way + len(self._dirty)

    def _is_written(self, number: int) -> bool:
        # An entry that was written in vain may have been counted twice.
        return number <= self._written or not self._dirty

    # --- the task ---

    async def _run(self) -> None:
        while True:
            pause = PAUSE  # the task that keeps the connection has to see its end first
            link = await self._place.writer()
            self._number = self._place.number
            try:
                await self._hold(link, self._place.run_id)
            except LinkLostError:
                pass
            except Exception as error:
                self._fail(error)
                pause = FAILED_PAUSE
            await asyncio.sleep(pause)

    def _fail(self, error: Exception) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)
        if str(error) != self._failing:
            self._failing = str(error)
            log.error(
                "the other hubs do not know who is connected here, and this hub tries again: %s",
                error,
                extra={"event": "presence_failed", "error": str(error)},
            )

    async def _hold(self, link: Link, run_id: str) -> None:
        """Keeps the server up to date over one connection."""
        link.lost.add_done_callback(self._wake_up)
        try:
            if self._run_id != run_id:
                self._run_id = run_id
                await self._begin(link)
            elif not await self._take_lease(link, False):
                await self._begin_after_loss(link)
            if not self._ready.done():
                self._ready.set_result(None)
            self._failing = ""
            while not link.lost.done():
                await self._turn(link)
        finally:
            link.lost.remove_done_callback(self._wake_up)
        raise LinkLostError

    def _wake_up(self, _: object) -> None:
        self._wake.set()

    async def _turn(self, link: Link) -> None:
        self._wake.clear()
        try:
            has_written = bool(self._dirty)
            if has_written:
                await self._write(link)
            # Behind a page each time: there may always be something to write.
            if self._own_dead and self._is_written(self._whole_at):
                await self._reap(link, self._own_dead, own=True)
            elif self._dead and self._loop.time() - self._began >= self._refresh:
                # Hubs that a restart of the server has cut off as well may need a moment.
                await self._reap(link, self._dead, own=False)
            elif not has_written and not self._is_due():
                await self._sleep()
                return
            if self._is_due() and not await self._take_lease(link, False):
                raise LeaseLostError
        except LeaseLostError:
            await self._begin_after_loss(link)

    def _next(self) -> float:
        """When the lease is renewed, which tells leaves, too."""
        return min(self._renew_at, self._leaves[0]) if self._leaves else self._renew_at

    def _is_due(self) -> bool:
        return self._loop.time() >= self._next()

    async def _sleep(self) -> None:
        until = self._next()
        if self._dead:
            until = min(until, self._began + self._refresh)
        try:
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        except TimeoutError:
            pass

    # --- calls of the script ---

    async def _begin_after_loss(self, link: Link) -> None:
        self._counters.lost_leases += 1
        log.warning(
            "the bus at %s: the lease of this hub has ended, so that the others took its users for "
            "gone; it enters all of them anew",
            self._at,
            extra={"event": "lease_lost"},
        )
        await self._begin(link)

    async def _begin(self, link: Link) -> None:
        """Begins a new incarnation."""
        if self.incarnation:
            self._own_dead.append(self.incarnation)
        token = base64.urlsafe_b64encode(os.urandom(6)).decode()
        self.incarnation = f"{self._origin}.{token}"
        self._began = self._loop.time()
        self._dirty.update(dict.fromkeys(self._entries))
        self._whole_at = self._end_of_dirty()
        is_first = not self._ready.done()
        if is_first:
            unused = b"%bp:{%b}" % (self._prefix, encode(self.incarnation))
            await prepare_presence(link, self._at, unused)
        if not await self._take_lease(link, True):
            raise BusError("a new lease was refused")
        if not is_first:
            self._tell_began()

    async def _take_lease(self, link: Link, new: bool) -> bool:
        state = self._state()
        answer = await self._call(
            link,
            b"lease",
            b"%d" % (self._lease * 1000),
            b"1" if new else b"0",
            b"%d %d" % (state.clients, state.draining),
            b"%d" % LIFE,
        )
        if answer[0] == 0:
            return False
        _, more, soonest, dead = answer
        now = self._loop.time()
        self._counters.heartbeats += 1
        self._renew_at = now + self._refresh
        if soonest >= 0:
            # Just behind the end of a lease that was not renewed.
            self._renew_at = min(self._renew_at, now + soonest / 1000 + 0.01)
        while self._leaves and self._leaves[0] <= now:
            self._leaves.popleft()
        if more:
            self._leaves.appendleft(now)
        self._dead = [each.decode() for each in dead if each.decode() not in self._own_dead]
        self._write_some_again()
        return True

    def _write_some_again(self) -> None:
        """Whole pages, so that a heartbeat is one call as a rule."""
        if not self._again:
            self._again = list(self._entries)
        self._owed += len(self._entries) * self._refresh / AGAIN
        page = min(PAGE, len(self._entries))
        if page and self._owed >= page:
            self._owed -= page
            some, self._again = self._again[-page:], self._again[:-page]
            self._dirty.update(dict.fromkeys(each for each in some if each in self._entries))

    async def _write(self, link: Link) -> None:
        page = list(islice(self._dirty, PAGE))
        arguments: list[bytes] = []
        leaves = False
        for entry in page:
            del self._dirty[entry]
            clients = self._entries.get(entry, 0)
            leaves = leaves or not clients
            arguments += (encode(entry[0]), encode(entry[1]), b"%d" % clients)
        grace = self._grace()
        self._under_way = len(page)
        try:
            answer = await self._call(
                link, b"enter", b"%d" % (grace * 1000), b"%d" % LIFE, *arguments
            )
            if answer == b"LEASE":
                raise LeaseLostError
        except BaseException:
            self._dirty = dict.fromkeys(page) | self._dirty
            raise
        finally:
            self._under_way = 0
        self._written += len(page)
        self._tell_written()
        if answer:
            self._tell_elsewhere([decode(each) for each in answer])
        if leaves:
            self._sweep_after(grace)

    def _sweep_after(self, grace: float) -> None:
        due = self._loop.time() + grace + 0.01
        if grace and (not self._leaves or self._leaves[-1] + SWEEP < due):
            self._leaves.append(due + SWEEP)

    def _tell_written(self, ended: bool = False) -> None:
        """Has questions go on whose entries have been written; at the end, all of them."""
        while self._waiting and (ended or self._is_written(self._waiting[0][0])):
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)

    async def _reap(self, link: Link, dead: list[str], own: bool) -> None:
        # Our own users may have left just now. The users of a dead hub had the time of its lease to
        # come back, but for the part in which it still lived.
        grace = self._grace() - (0.0 if own else self._lease - self._refresh)
        grace = max(grace, 0.0)
        reaped = await self._call(
            link, b"reap", encode(dead[-1]), b"1" if own else b"0", b"%d" % (grace * 1000)
        )
        self._sweep_after(grace)
        if reaped == b"LEASE":
            raise LeaseLostError
        self._counters.reaped += reaped
        if not reaped:
            dead.pop()

    async def _call(self, link: Link, what: bytes, *arguments: bytes) -> Any:
        return await call(
            link,
            self._at,
            what,
            self._prefix,
            encode(self.incarnation),
            b"%d" % self._number,
            *arguments,
        )


async def call(link: Link, at: str, *arguments: bytes) -> Any:
    """Runs the script over one connection.

    Raises:
        LinkLostError: nobody knows whether it was run.
        BusError: the server refuses.
    """
    code = script("directory")
    while True:
        value = await link.ask(b"EVALSHA", code.sha, b"0", *arguments)
        if not isinstance(value, ReplyError):
            return value
        text = str(value)
        if text.startswith("NOSCRIPT"):
            loaded = await link.ask(b"SCRIPT", b"LOAD", code.text)
            if isinstance(loaded, ReplyError):
                raise BusError(f"the bus at {at} refused: {loaded}")
        elif is_elsewhere(text):
            link.abort(value)
            raise LinkLostError(text)
        elif is_passing(text):
            await asyncio.sleep(PAUSE)
        else:
            raise BusError(f"the bus at {at} refused: {text}")
