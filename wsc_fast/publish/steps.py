"""The work of a publisher as steps: what goes to which server, and what follows from the answers.

Each generator here yields a `Request` or a `Pause`, and is sent the answers to the request. So it
is the same for a publisher that blocks and for one that awaits.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from time import monotonic
from typing import Any

from wsc_fast.bus.base import EVERYBODY, MARK, HistoryEntry, Member
from wsc_fast.bus.kept import KeptRooms, check_page, checked_pattern, checked_retention
from wsc_fast.bus.redis.calls import (
    MEMBERS,
    USERS_AT_ONCE,
    ask_directory,
    is_elsewhere,
    is_passing,
    number_of_server,
    read_history,
)
from wsc_fast.bus.redis.commands import Names, command, decode, encode, script
from wsc_fast.bus.redis.urls import Url, checked_settings, read_url
from wsc_fast.errors import BusError, BusUnavailableError, ConfigError, ValidationError, shown
from wsc_fast.publish.calls import Call, M, Queue, RoomCall, WordCall
from wsc_fast.publish.messages import Message, Sending, history_entry
from wsc_fast.publish.users import Stored, Word

# Seconds between two attempts: from the first pause, doubling, to the last.
FIRST_PAUSE, LAST_PAUSE = 0.02, 0.5
# Seconds for which a publisher remembers which rooms the hubs keep.
KEPT_SECONDS = 10.0
# The largest `offline_limit`, as that of ACKConfig.
MOST_OFFLINE = 1 << 30


@dataclasses.dataclass(slots=True)
class Lost:
    """In place of an answer: the connection ended, or was never there.

    Attributes:
        error: why.
        sent: the command may have arrived.
    """

    error: Exception
    sent: bool


@dataclasses.dataclass(slots=True)
class Request:
    """Commands for one server; the answers are values, errors of redis-py, or `Lost`.

    Attributes:
        server: its number.
        commands: each as it goes over the line.
    """

    server: int
    commands: list[bytes]


@dataclasses.dataclass(slots=True)
class Pause:
    """Seconds to wait; `anew`: connections to this server lead to the wrong one."""

    seconds: float
    anew: int | None = None


Steps = Generator[Request | Pause, Any, Any]


class Work:
    """The facts that a publisher knows, and the steps of its calls.

    Args:
        url, prefix, timeout, keep, offline_limit: see `Publisher`.

    Attributes:
        urls: of the servers.
        names: of keys and channels.
        timeout: seconds.
        offline_limit: see `Publisher`.

    Thread-safety: any thread.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        prefix: str,
        timeout: float,
        keep: Mapping[str, tuple[int, float]] | None,
        offline_limit: int,
    ) -> None:
        try:
            import redis  # noqa: F401
        except ImportError:
            raise ImportError("Publisher needs redis-py: pip install 'wsc_fast[redis]'") from None
        urls = checked_settings(url, prefix, timeout)
        self.urls: list[Url] = [read_url(each) for each in urls]
        self.timeout: float = float(timeout)
        self.offline_limit: int = _checked_limit(offline_limit)
        self.names: Names = Names(prefix.encode())
        self._given = None if keep is None else _kept_rooms(keep)
        self._kept: KeptRooms | None = self._given
        self._kept_until = 0.0

    def __repr__(self) -> str:
        return f"Publisher({[each.text for each in self.urls]})"

    @property
    def servers(self) -> int:
        """How many there are."""
        return len(self.urls)

    # --- publishing ---

    def publish(self, messages: Sequence[Sending]) -> Steps:
        """Publishes messages, tells words and stores; each has its result in the end."""
        rooms = [each for each in messages if isinstance(each, Message)]
        if any(each.room != EVERYBODY for each in rooms):
            kept = yield from self._know_kept()
            for each in rooms:
                if each.room != EVERYBODY:
                    each.retention = kept.retention_of(each.room)
        yield from self._publish(rooms, RoomCall)
        yield from self._publish([each for each in messages if isinstance(each, Word)], WordCall)
        stored = [each for each in messages if isinstance(each, Stored)]
        if stored:
            from wsc_fast.publish.storing import store  # a publisher is to be imported fast

            yield from store(self, stored)

    def _publish(self, messages: Sequence[M], kind: Callable[[list[M]], Call[M]]) -> Steps:
        parts: dict[int, list[M]] = {}
        for each in messages:
            parts.setdefault(number_of_server(each.place, self.servers), []).append(each)
        for server, part in parts.items():
            yield from self._publish_on(server, Queue(part, kind))

    def _publish_on(self, server: int, queue: Queue[M]) -> Steps:
        deadline = monotonic() + self.timeout
        pause = FIRST_PAUSE
        calls: list[Call[M]] = queue.take()
        while calls:
            commands = [command(*call.arguments(self.names)) for call in calls]
            answers = yield Request(server, commands)
            error, calls = yield from self._after(server, calls, answers)
            if calls and error is not None:
                if monotonic() >= deadline:
                    for call in [*calls, *queue.take_all()]:
                        call.given_up(self.urls[server].text, self.timeout, error)
                    return
                anew = server if is_elsewhere(_text(error)) else None
                yield Pause(pause * random.uniform(0.5, 1.0), anew)
                pause = min(2 * pause, LAST_PAUSE)
            elif not calls:
                calls = queue.take()

    def _after(
        self, server: int, calls: list[Call[M]], answers: Sequence[Any]
    ) -> Generator[Request | Pause, Any, tuple[Exception | None, list[Call[M]]]]:
        """The calls to be made again, and the error that is the reason to wait first, if any."""
        again: list[Call[M]] = []
        unloaded: list[Call[M]] = []
        reason: Exception | None = None
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, Lost):
                reason = answer.error
                if not answer.sent or call.lost(answer.error):
                    again.append(call)
            elif not isinstance(answer, Exception):
                call.answered(answer)
            elif _is_unloaded(answer):
                reason = answer
                unloaded.append(call)
            elif is_passing(_text(answer)) or is_elsewhere(_text(answer)):
                reason = answer
                again.append(call)
            else:
                call.fail(BusError(f"{self._at(server)} refused the message: {answer}"))
        if unloaded:
            try:
                yield from self._load(server, script(unloaded[0].script).text)
                again += unloaded
            except BusError as error:
                for call in unloaded:
                    call.fail(error)
        return reason, again

    def _load(self, server: int, text: bytes) -> Steps:
        """Has the server know a script, so that the call can be made again."""
        yield from self._ask(server, [b"SCRIPT", b"LOAD", text])

    # --- questions ---

    def history(self, room_id: str, after: str | None, limit: int) -> Steps:
        """Reads the history of a room; returns a list[HistoryEntry]."""
        check_page(after, limit)
        kept = yield from self._know_kept()
        retention = kept.retention_of(room_id)
        if retention is None:
            raise ValidationError(f"room {room_id!a} is not kept: see Hub.keep")
        server = number_of_server(room_id, self.servers)
        arguments = read_history(self.names, room_id, after, limit, retention)
        _, contiguous, entries, _ = yield from self._ask(server, arguments)
        pairs = list(zip(entries[::2], entries[1::2], strict=True))
        is_whole = contiguous and all(entry != MARK for _, entry in pairs)
        if after is not None and not is_whole:
            raise LookupError(
                f"the history of room {room_id!a} does not reach back to the position {after!a}"
            )
        found: list[HistoryEntry] = [history_entry(*pair) for pair in pairs]
        return found

    def members(self, room_id: str) -> Steps:
        """Reads who is present in a room; returns a list[Member]."""
        server = number_of_server(room_id, self.servers)
        cursor = b"0"
        found: dict[str, bytes] = {}
        while True:
            arguments = ask_directory(self.names, b"members", encode(room_id), cursor, MEMBERS)
            cursor, *page = yield from self._ask(server, arguments, "directory")
            # A page may have a user of an earlier one.
            found.update(zip(map(decode, page[::2]), page[1::2], strict=True))
            if cursor == b"0":
                return [Member(user, int(clients)) for user, clients in found.items()]

    def online(self, users: Sequence[str]) -> Steps:
        """Asks which users are connected; returns a set[str]."""
        parts: dict[int, list[str]] = {}
        for each in users:
            parts.setdefault(number_of_server(each, self.servers), []).append(each)
        found: set[str] = set()
        for server, part in parts.items():
            for start in range(0, len(part), USERS_AT_ONCE):
                page = part[start : start + USERS_AT_ONCE]
                arguments = ask_directory(self.names, b"online", *map(encode, page))
                answer = yield from self._ask(server, arguments, "directory")
                known = zip(page, answer, strict=True)
                found.update(user for user, online in known if online == ord("1"))
        return found

    def _know_kept(self) -> Generator[Request | Pause, Any, KeptRooms]:
        kept = self._kept
        if kept is not None and (self._given is not None or monotonic() < self._kept_until):
            return kept
        data = yield from self._ask(0, [b"GET", self.names.kept()])
        if data is None:
            raise BusError(
                f"{self._at(0)} does not say which rooms are kept: no hub has been on it for a "
                "day. Start a hub first, or name the rooms: Publisher(url, keep={...})"
            )
        try:
            self._kept = KeptRooms.load(data)
        except (TypeError, ValueError):
            raise BusError(
                f"{self._at(0)} does not say which rooms are kept: no hub has written what stands "
                f"at the key {self.names.kept().decode()}: {shown(data)}"
            ) from None
        self._kept_until = monotonic() + KEPT_SECONDS
        return self._kept

    def _ask(self, server: int, arguments: Sequence[bytes], name: str = "read") -> Steps:
        """Has a command answered that may be done twice; `name` is that of the script it calls."""
        (answer,) = yield from self.ask_all(server, [arguments], script(name).text)
        return answer

    def ask_all(
        self, server: int, commands: Sequence[Sequence[bytes]], text: bytes | None = None
    ) -> Steps:
        """Has commands answered that may be done twice.

        Args:
            server: its number.
            commands: by their arguments.
            text: of the script that they call.

        Returns:
            list: the answers.
        """
        deadline = monotonic() + self.timeout
        pause = FIRST_PAUSE
        while True:
            answers = yield Request(server, [command(*each) for each in commands])
            errors = [each.error if isinstance(each, Lost) else each for each in answers]
            places = [place for place, each in enumerate(errors) if isinstance(each, Exception)]
            if not places:
                return answers
            error, is_lost = errors[places[0]], isinstance(answers[places[0]], Lost)
            reason = _text(error)
            if _is_unloaded(error) and text is not None:
                yield from self._load(server, text)
            elif not is_lost and not is_passing(reason) and not is_elsewhere(reason):
                raise BusError(f"{self._at(server)} refused: {error}")
            if monotonic() >= deadline:
                raise BusUnavailableError(
                    f"{self._at(server)} did not answer within {self.timeout:g} s; last: {error}"
                )
            anew = server if is_elsewhere(reason) else None
            yield Pause(pause * random.uniform(0.5, 1.0), anew)
            pause = min(2 * pause, LAST_PAUSE)

    def _at(self, server: int) -> str:
        return f"the bus at {self.urls[server].text}"


def _kept_rooms(keep: Mapping[str, tuple[int, float]]) -> KeptRooms:
    kept = KeptRooms()
    try:
        for pattern, (size, ttl) in keep.items():
            kept.keep(checked_pattern(pattern), checked_retention(size, ttl))
    except ValidationError as error:
        raise ConfigError(f"keep, at {shown(pattern)}: {error}") from None
    except (TypeError, ValueError, AttributeError):
        raise ConfigError(
            "keep must give a size and a ttl for each pattern of rooms, as Hub.keep has them: "
            f"{{'chat:*': (100, 300.0)}}, not {shown(keep)}"
        ) from None
    return kept


def _checked_limit(limit: object) -> int:
    if type(limit) is not int or not 1 <= limit <= MOST_OFFLINE:
        raise ConfigError(
            f"offline_limit must be an int from 1 to {MOST_OFFLINE}, not {shown(limit)}"
        )
    return limit


def _text(error: Exception) -> str:
    """The text of an error with its code, which redis-py takes away from those that it knows."""
    code = {
        "BusyLoadingError": "LOADING ",
        "ReadOnlyError": "READONLY ",
        "MasterDownError": "MASTERDOWN ",
        "TryAgainError": "TRYAGAIN ",
        "ClusterDownError": "CLUSTERDOWN ",
    }.get(type(error).__name__, "")
    return code + str(error)


def _is_unloaded(error: Exception) -> bool:
    return type(error).__name__ == "NoScriptError" or str(error).startswith("NOSCRIPT")
