"""The messages that wait for a server, or for its answer.

A message of a plain room goes out as a PUBLISH; neighbours of one room share an envelope. All of
them stand in one queue, in the order of publishing. One that was under way when the connection
ended is not sent again: nobody knows whether it was published. With an idempotency key it is.

The messages of a kept room stand in a lane of that room. A lane has one call of the script under
way at a time, and the messages that come meanwhile share the next one. So the order holds whatever
becomes of a call: a call of unknown outcome is made again before any other one of its room, with
the same tag, and the script looks the tag up first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from wsc_fast._core.resp import ReplyError
from wsc_fast.bus.base import MOST_ENTRY_BYTES, MOST_KEY_BYTES, Outgoing, Published
from wsc_fast.bus.redis.calls import (
    MOST_ENVELOPE,
    MOST_MESSAGES,
    is_elsewhere,
    is_passing,
    new_tag,
    publish_kept,
    publish_once,
    publish_plain,
)
from wsc_fast.bus.redis.commands import Names, command, encode, script
from wsc_fast.bus.redis.link import FULL, Link, LinkLostError
from wsc_fast.bus.redis.needs import Counters
from wsc_fast.errors import BusError, BusUnavailableError

# Bytes that a message takes beside its entry, about.
OVERHEAD = 400
# Commands that wait for their answers. Further messages wait here, and share envelopes.
MOST_UNANSWERED = 512
# Seconds until a command is tried again that the server cannot do now.
PAUSE = 0.05


class Waiting:
    """One message.

    Attributes:
        outgoing: what to publish.
        born: when it was given to the bus.
        size: its bytes of memory, about.
        tag: of the attempts to publish it under its key in a plain room.
        ended: is done once it has its answer or its error; None: nobody waits for that.
    """

    __slots__ = ("born", "ended", "outgoing", "size", "tag")

    def __init__(self, outgoing: Outgoing, born: float) -> None:
        self.outgoing: Outgoing = outgoing
        self.born: float = born
        self.size: int = len(outgoing.entry) + OVERHEAD
        self.tag: bytes = b""
        self.ended: asyncio.Future[None] | None = None


class Lane:
    """The messages of one kept room. It is there for as long as it has any.

    Attributes:
        room: its id.
        waiting: messages that are in no call yet.
        tag: of the call; its messages are `called`.
        called: the messages of the call that is under way, or is to be made again.
        flying: the call is under way.
        sent: when the call was made.
        unknown_since: when the call was made first whose outcome is unknown; None: there is none.
        given_up: the messages of the call under way have had their error.
    """

    __slots__ = ("called", "flying", "given_up", "room", "sent", "tag", "unknown_since", "waiting")

    def __init__(self, room: str) -> None:
        self.room: str = room
        self.waiting: deque[Waiting] = deque()
        self.called: list[Waiting] = []
        self.tag: bytes = b""
        self.flying: bool = False
        self.sent: float = 0.0
        self.unknown_since: float | None = None
        self.given_up: bool = False

    def next_call(self) -> None:
        """Has a call to make, if anything waits."""
        if self.called or not self.waiting:
            return
        self.tag = new_tag()
        self.unknown_since = None
        self.given_up = False
        retention = self.waiting[0].outgoing.retention
        size = 0
        while self.waiting and len(self.called) < MOST_MESSAGES and size < MOST_ENVELOPE:
            if self.waiting[0].outgoing.retention != retention:
                break
            message = self.waiting.popleft()
            self.called.append(message)
            size += len(message.outgoing.entry)


class Sender:
    """Publishes over one connection after the other.

    Args:
        at: the server, as errors name it.
        names: of keys and channels.
        origin: the name of this hub.
        timeout: seconds for which a message may wait.
        most: bytes of all messages that wait.
        not_published: hears of errors that no answer waits for.
        counters: of the bus.
    """

    def __init__(
        self,
        at: str,
        names: Names,
        origin: str,
        timeout: float,
        most: int,
        not_published: Callable[[Outgoing, Exception], object],
        counters: Counters,
    ) -> None:
        self._at = at
        self._names = names
        self._origin = origin.encode()
        self._timeout = timeout
        self._most = most
        self._not_published = not_published
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._plain: deque[Waiting] = deque()
        self._returned: list[Waiting] = []
        self._lanes: dict[str, Lane] = {}
        self._ready: deque[Lane] = deque()
        self._publish = script("publish")
        self._paused = False
        self._loading = False
        self._called = False
        self._answered: asyncio.Future[None] | None = None
        self.waiting_bytes: int = 0

    # --- the connection ---

    def connected(self, link: Link) -> None:
        """Sends what waits."""
        self._link = link
        self._paused = False
        self.send()

    def disconnected(self) -> None:
        """The connection has ended, and all of its commands have had their answer."""
        self._link = None
        self._put_back()

    def _put_back(self) -> None:
        self._plain.extendleft(reversed(self._returned))
        self._returned.clear()

    # --- publishing ---

    def publish(self, batch: Sequence[Outgoing]) -> None:
        """Publishes messages, or has them wait.

        Messages of kept rooms go out in the next turn of the loop: all that this turn publishes to
        a room share one call.
        """
        now = self._loop.time()
        plain = False
        for outgoing in batch:
            message = Waiting(outgoing, now)
            self.waiting_bytes += message.size
            error = self._unfit(outgoing)
            if error is not None:
                self._fail(message, error)
                continue
            if outgoing.retention is None:
                self._plain.append(message)
                plain = True
                continue
            lane = self._lanes.get(outgoing.room)
            if lane is None:
                lane = self._lanes[outgoing.room] = Lane(outgoing.room)
                self._ready.append(lane)
            lane.waiting.append(message)
        if plain:
            self.send()
        else:
            self.send_soon()

    def _unfit(self, outgoing: Outgoing) -> BusError | None:
        """Why a message is not even tried."""
        if self.waiting_bytes > self._most:
            return self._unavailable(f"more than {self._most} bytes wait for it")
        size = len(outgoing.entry)
        if size > MOST_ENTRY_BYTES:
            return BusError(f"a message has at most {MOST_ENTRY_BYTES} bytes on a bus, not {size}")
        key = outgoing.idempotency_key
        if key is not None and len(encode(key)) > MOST_KEY_BYTES:
            return BusError(
                f"an idempotency key has at most {MOST_KEY_BYTES} bytes, not {len(encode(key))}"
            )
        return None

    def send_soon(self) -> None:
        """Sends what waits, once for all answers and kept messages of this turn of the loop."""
        if not self._called and (self._plain or self._ready):
            self._called = True
            self._loop.call_soon(self._send_now)

    def _send_now(self) -> None:
        self._called = False
        self.send()

    def send(self) -> None:
        """Sends as much of what waits as the connection takes."""
        link = self._link
        if link is None or link.full or link.lost.done() or self._paused:
            return
        commands: list[bytes] = []
        answers: list[Callable[[Any], object]] = []
        size = 0
        room = MOST_UNANSWERED - link.unanswered
        while len(commands) < room and size < FULL and (self._plain or self._ready):
            # In turns, so that neither holds up the other.
            plain = self._plain and (not self._ready or len(commands) % 2 == 0)
            made = self._plain_command() if plain else self._kept_command()
            if made is not None:
                commands.append(made[0])
                answers.append(made[1])
                size += len(made[0])
        if commands:
            link.send(b"".join(commands), *answers)

    # --- plain rooms ---

    def _plain_command(self) -> tuple[bytes, Callable[[Any], object]]:
        first = self._plain.popleft()
        room = first.outgoing.room
        messages = [first]
        size = len(first.outgoing.entry)
        if first.outgoing.idempotency_key is not None:
            return self._once_command(first)
        while self._plain and len(messages) < MOST_MESSAGES and size < MOST_ENVELOPE:
            after = self._plain[0].outgoing
            if after.room != room or after.idempotency_key is not None:
                break
            messages.append(self._plain.popleft())
            size += len(after.entry)
        entries = [message.outgoing.entry for message in messages]
        arguments = publish_plain(self._names, room, self._origin, entries)
        return command(*arguments), lambda value: self._plain_answered(messages, value)

    def _plain_answered(self, messages: Sequence[Waiting], value: Any) -> None:
        if isinstance(value, LinkLostError):
            error: Exception = self._unavailable(f"nobody knows whether it was published: {value}")
        elif isinstance(value, ReplyError):
            error = self._refused(value)
        else:
            for message in messages:
                self._done(message, None, False)
            self.send_soon()
            return
        for message in messages:
            self._fail(message, error)
        self.send_soon()

    def _once_command(self, message: Waiting) -> tuple[bytes, Callable[[Any], object]]:
        outgoing = message.outgoing
        assert outgoing.idempotency_key is not None
        message.tag = message.tag or new_tag()
        key = outgoing.idempotency_key
        arguments = publish_once(
            self._names, outgoing.room, self._origin, outgoing.entry, key, message.tag
        )
        return command(*arguments), lambda value: self._once_answered(message, value)

    def _once_answered(self, message: Waiting, value: Any) -> None:
        if isinstance(value, LinkLostError):
            self._counters.lookups += 1
            self._returned.append(message)
        elif isinstance(value, ReplyError):
            if self._try_later(value):
                self._returned.append(message)
            else:
                self._fail(message, self._refused(value))
        else:
            self._done(message, None, bool(value))
        self.send_soon()

    # --- kept rooms ---

    def _kept_command(self) -> tuple[bytes, Callable[[Any], object]] | None:
        lane = self._ready.popleft()
        lane.next_call()
        if not lane.called:
            self._lanes.pop(lane.room, None)
            return None
        now = self._loop.time()
        lane.sent = now
        lane.flying = True
        return self._call_of(lane, now), lambda value: self._kept_answered(lane, value)

    def _call_of(self, lane: Lane, now: float) -> bytes:
        retention = lane.called[0].outgoing.retention
        assert retention is not None
        age = None
        if lane.unknown_since is not None:
            self._counters.lookups += 1
            age = now - lane.unknown_since
        messages = [(each.outgoing.entry, each.outgoing.idempotency_key) for each in lane.called]
        return command(
            *publish_kept(self._names, lane.room, self._origin, messages, retention, lane.tag, age)
        )

    def _kept_answered(self, lane: Lane, value: Any) -> None:
        lane.flying = False
        if lane.given_up:
            lane.called = []
        elif isinstance(value, LinkLostError):
            if lane.unknown_since is None:
                lane.unknown_since = lane.sent
        elif isinstance(value, ReplyError):
            if not self._try_later(value):
                self._fail_call(lane, self._refused(value))
        else:
            for message, answer in zip(lane.called, value, strict=True):
                self._kept_done(message, answer)
            lane.called = []
        if lane.called or lane.waiting:
            self._ready.append(lane)
        else:
            self._lanes.pop(lane.room, None)
        self.send_soon()

    def _kept_done(self, message: Waiting, answer: bytes) -> None:
        if answer == b"?":
            why = "nobody knows whether it was published: the history is too short to tell"
            self._fail(message, self._unavailable(why))
        elif answer.startswith(b"="):
            self._done(message, answer[1:].decode(), True)
        else:
            self._done(message, answer.decode(), False)

    def _fail_call(self, lane: Lane, error: Exception) -> None:
        for message in lane.called:
            self._fail(message, error)
        lane.called = []

    # --- errors ---

    def _try_later(self, error: ReplyError) -> bool:
        """Whether a command that was not done may be done later; prepares for it."""
        text = str(error)
        link = self._link
        if link is None:
            return False
        if text.startswith("NOSCRIPT"):
            if not self._loading:
                self._loading = True
                link.send(command(b"SCRIPT", b"LOAD", self._publish.text), self._loaded)
            return True
        if is_elsewhere(text):
            link.abort(error)
            return True
        if is_passing(text):
            self._paused = True
            self._loop.call_later(PAUSE, self._go_on)
            return True
        return False

    def _loaded(self, value: Any) -> None:
        self._loading = False

    def _go_on(self) -> None:
        self._paused = False
        self._put_back()
        self.send()

    def _refused(self, error: ReplyError) -> BusError:
        return BusError(f"{self._at} refused the message: {error}")

    def _unavailable(self, why: str) -> BusUnavailableError:
        return BusUnavailableError(f"{self._at}: {why}")

    # --- the end of a message ---

    def answered(self) -> asyncio.Future[None]:
        """A future that is done once nothing waits any more."""
        self._answered = self._loop.create_future()
        self._release(0)
        return self._answered

    async def ended(self, room: str) -> None:
        """Returns once the messages of a kept room that wait now have their answers or errors."""
        lane = self._lanes.get(room)
        if lane is None or not (messages := lane.waiting or ([] if lane.given_up else lane.called)):
            return
        last = messages[-1]
        last.ended = last.ended or self._loop.create_future()
        await asyncio.wait([last.ended])

    def _end(self, message: Waiting) -> None:
        self._release(message.size)
        if message.ended is not None:
            message.ended.set_result(None)

    def _release(self, size: int) -> None:
        self.waiting_bytes -= size
        if self._answered is not None and not self.waiting_bytes and not self._answered.done():
            self._answered.set_result(None)

    def _done(self, message: Waiting, position: str | None, duplicate: bool) -> None:
        self._end(message)
        self._counters.published += 1
        answer = message.outgoing.answer
        if answer is not None and not answer.done():
            answer.set_result(Published(position, duplicate))

    def _fail(self, message: Waiting, error: Exception) -> None:
        self._end(message)
        self._counters.not_published += 1
        answer = message.outgoing.answer
        if answer is None:
            self._not_published(message.outgoing, error)
        elif not answer.done():
            # A new one for each: who awaits it adds a traceback.
            answer.set_exception(type(error)(str(error)))

    def expire(self, now: float) -> None:
        """Fails the messages that have waited for too long."""
        before = now - self._timeout
        error = self._unavailable(f"not published within {self._timeout:g} s")
        while self._plain and self._plain[0].born <= before:
            self._fail(self._plain.popleft(), error)
        unknown = self._unavailable(
            f"no answer within {self._timeout:g} s; nobody knows whether it was published"
        )
        for lane in list(self._lanes.values()):
            if lane.called and lane.called[0].born <= before and not lane.given_up:
                lane.given_up = lane.flying
                known = lane.unknown_since is None and not lane.flying
                called, lane.called = lane.called, lane.called if lane.flying else []
                for message in called:
                    self._fail(message, error if known else unknown)
            while lane.waiting and lane.waiting[0].born <= before:
                self._fail(lane.waiting.popleft(), error)
            if not (lane.called or lane.waiting):
                self._lanes.pop(lane.room, None)
        self._ready = deque(lane for lane in self._ready if lane.called or lane.waiting)

    def fail_all(self, error: Exception) -> None:
        """Fails all messages."""
        plain, self._plain = [*self._returned, *self._plain], deque()
        self._returned.clear()
        for message in plain:
            self._fail(message, error)
        for lane in list(self._lanes.values()):
            called, lane.called = ([] if lane.given_up else lane.called), []
            messages = [*called, *lane.waiting]
            lane.waiting.clear()
            for message in messages:
                self._fail(message, error)
        self._lanes.clear()
        self._ready.clear()
