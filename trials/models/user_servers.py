"""The bus and the offline store of the model of users (users.py), as their scripts leave them.

Each call of a script is one method, which takes no time. Times and losses are those of the
connections (virtual.py). Either server can take up an earlier state, as a replica does that had not
heard of the newest writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

from trials.models.virtual import Clock, Link, Server

LEASE = 10.0
# Seconds for which an outcome is kept on the bus.
OUTCOME = 60.0


class Message(NamedTuple):
    """A message, as the store keeps it: with the hub that sent it, and the time for an answer."""

    id: str
    user: str
    origin: str
    timeout: float


class Stored(NamedTuple):
    """An entry of the store."""

    position: int
    message: Message
    at: float


class Bus(Server):
    """Leases, the directory, outcomes, and the inboxes of hubs."""

    def __init__(self, clock: Clock, rules: Callable[[str], bool]) -> None:
        super().__init__(clock)
        self.rules = rules
        self.run = 1  # a new one after each failover
        self.leases: dict[str, tuple[float, int]] = {}
        self.nodes: dict[str, None] = {}
        self.users: dict[str, dict[str, int]] = {}
        self.outcomes: dict[str, tuple[str, str, float]] = {}  # outcome, tag, since when
        self.count = 0
        # For the checks alone: the first outcome of each message, and whose it is.
        self.first: dict[str, tuple[str, str]] = {}
        self.failed_at: dict[str, float] = {}
        self.inboxes: dict[str, list[Link]] = {}

    def state(self) -> Any:
        return deepcopy((self.leases, self.nodes, self.users, self.outcomes, self.count))

    def become(self, state: Any) -> None:
        """A replica takes over, with this state."""
        self.run += 1
        self.leases, self.nodes, self.users, self.outcomes, self.count = deepcopy(state)

    def ended(self, link: Link) -> None:
        for links in self.inboxes.values():
            if link in links:
                links.remove(link)

    def crash(self, seconds: float) -> None:
        self.inboxes.clear()
        super().crash(seconds)

    # --- scripts ---

    def hello(self) -> int:
        return self.run

    def subscribe(self, hub: str, link: Link) -> None:
        self.inboxes.setdefault(hub, []).append(link)

    def lives(self, incarnation: str) -> bool:
        return self.leases.get(incarnation, (0.0, 0))[0] > self.clock.now

    def _holds(self, incarnation: str, number: int) -> bool:
        return self.lives(incarnation) and self.leases[incarnation][1] == number

    def _next(self) -> int:
        self.count += 1
        return self.count

    def lease(self, incarnation: str, number: int, new: bool) -> list[str] | None:
        """Takes or renews a lease; the incarnations without one, or None where it has gone."""
        if not new and (not self.lives(incarnation) or self.leases[incarnation][1] > number):
            return None
        self.leases[incarnation] = self.clock.now + LEASE, number
        self.nodes[incarnation] = None
        return [each for each in self.nodes if not self.lives(each)]

    def _publish(self, hubs: Iterable[str], word: Any) -> int:
        heard = 0
        for hub in hubs:
            for link in self.inboxes.get(hub, ()):
                heard += link.say(word)
        return heard

    def _others(self, user: str, incarnation: str) -> list[str]:
        """The living incarnations that have a user, but one."""
        return [
            each for each in self.users.get(user, ()) if each != incarnation and self.lives(each)
        ]

    def enter(
        self, incarnation: str, number: int, entries: Sequence[tuple[str, int]]
    ) -> list[tuple[str, int]] | None:
        """Writes what a hub has; those of the users that others have too, each with a number."""
        if not self._holds(incarnation, number):
            return None
        found = []
        for user, clients in entries:
            if not clients:
                self._take_out(user, incarnation)
                continue
            has = self.users.setdefault(user, {})
            has[incarnation] = clients
            others = self._others(user, incarnation)
            if others:
                found.append((user, self._next()))
                word = ("also", user, found[-1][1])
                self._publish([hub_of(each) for each in others], word)
        return found

    def _take_out(self, user: str, incarnation: str) -> None:
        has = self.users.get(user, {})
        if has.pop(incarnation, None) is None:
            return
        others = self._others(user, incarnation)
        if len(others) == 1:
            self._publish([hub_of(others[0])], ("alone", user, self._next()))
        if not has:
            del self.users[user]

    def ask(self, incarnation: str, users: Sequence[str]) -> list[tuple[str, int]]:
        """The users of these whom other living hubs have, each with a number."""
        return [(user, self._next()) for user in users if self._others(user, incarnation)]

    def reap(self, incarnation: str, number: int, dead: str, own: bool) -> bool:
        """Takes out what a dead incarnation has left."""
        if not self._holds(incarnation, number):
            return False
        if own:
            self.leases.pop(dead, None)
        if not self.lives(dead):
            for user in [user for user, has in self.users.items() if dead in has]:
                self._take_out(user, dead)
            self.nodes.pop(dead, None)
        return True

    def tell(self, hub: str, user: str, word: Any) -> int:
        """Publishes a word to the hubs of a user, but one."""
        others = [hub_of(each) for each in self._others(user, "")]
        return self._publish(dict.fromkeys(each for each in others if each != hub), word)

    def settle(
        self, hub: str, message: Message, outcome: str, tag: str, age: float
    ) -> tuple[str, bool]:
        """Notes an outcome, unless there is one. An answer takes the place of a failure.

        A held failure that is older than the attempt which has failed now counts for none. `age`
        is that of the attempt. Returns the outcome that holds, and whether this call, repeated or
        not, has set the first.
        """
        key = f"{message.user} {message.id}"
        held = self.outcome(key)
        if held is not None and held not in ANSWERS and self.rules("age"):
            held = held if self.clock.now - self.outcomes[key][2] < age else None
        if held is not None and self.outcomes[key][1] == tag and self.rules("tag"):
            return held, True
        if held in ANSWERS or (held is not None and outcome not in ANSWERS):
            return held, False
        self.outcomes[key] = outcome, tag, self.clock.now
        if outcome not in ANSWERS:
            self.failed_at[message.id] = self.clock.now
        self.first.setdefault(message.id, (outcome, tag.partition(" ")[0]))
        hubs = [hub_of(each) for each in self._others(message.user, "")]
        word = ("settled", message, outcome)
        self._publish(dict.fromkeys(each for each in (message.origin, *hubs) if each != hub), word)
        return outcome, held is None

    def outcome(self, key: str) -> str | None:
        found = self.outcomes.get(key)
        return found[0] if found is not None and found[2] + OUTCOME > self.clock.now else None

    def outcomes_of(self, user: str, ids: Sequence[str]) -> dict[str, tuple[str, float]]:
        """The outcomes that there are, each with its age: clocks need not agree."""
        found = {}
        for each in ids:
            outcome = self.outcome(f"{user} {each}")
            if outcome is not None:
                found[each] = outcome, self.clock.now - self.outcomes[f"{user} {each}"][2]
        return found


ANSWERS = ("confirmed", "failed")


def hub_of(incarnation: str) -> str:
    """The name of the hub whose incarnation it is."""
    return incarnation.partition(".")[0]


class Full(Exception):
    """The store has its limit for this user."""


class Store(Server):
    """The offline store: a list for each user in the order of the appends."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.messages: dict[str, dict[str, Stored]] = {}
        self.position = 0
        self.recent: dict[tuple[str, str], int] = {}
        self.replies: dict[str, tuple[int, list[Any]]] = {}
        self.owed: list[Message] = []  # dropped by a batch whose reply nobody has heard
        self.drops: dict[str, str] = {}  # message -> lane

    def state(self) -> Any:
        return deepcopy((self.messages, self.recent, self.replies, self.owed))

    def become(self, state: Any) -> None:
        self.messages, self.recent, self.replies, self.owed = deepcopy(state)
        # Positions go by the time, so that they grow also where writes were lost.

    def ids(self) -> set[str]:
        return {each for messages in self.messages.values() for each in messages}

    # --- scripts ---

    def hello(self) -> int:
        return self.life

    def write(
        self, lane: str, number: int, heard: int, operations: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        """A batch of appends and deletions, which is done once."""
        kept = self.replies.get(lane)
        if kept is not None and kept[0] >= number:
            return kept[1]
        if kept is not None and kept[0] > heard:
            for result in kept[1]:
                self.owed += result if isinstance(result, list) else ()
        reply = [getattr(self, "_" + name)(lane, *args) for name, *args in operations]
        self.replies[lane] = number, reply
        return reply

    def _append(self, lane: str, message: Message, limit: int, drop_oldest: bool) -> Any:
        messages = self.messages.setdefault(message.user, {})
        held = messages.get(message.id)
        if held is not None:
            return held
        dropped = []
        if len(messages) >= limit:
            if not drop_oldest:
                return Full()
            while len(messages) >= limit:
                dropped.append(messages.pop(next(iter(messages))).message)
                self.drops[dropped[-1].id] = lane
        self.position += 1
        messages[message.id] = Stored(self.position, message, self.clock.now)
        self.recent[lane, message.user] = self.position
        return dropped

    def _delete(self, _: str, user: str, ids: Sequence[str]) -> None:
        messages = self.messages.get(user, {})
        for each in ids:
            messages.pop(each, None)

    def read(self, user: str, after: int, limit: int) -> list[Stored]:
        found = [each for each in self.messages.get(user, {}).values() if each.position > after]
        return sorted(found)[:limit]

    def missing(self, user: str, ids: Sequence[str]) -> list[str]:
        messages = self.messages.get(user, {})
        return [each for each in ids if each not in messages]

    def appended(self, lane: str, after: int) -> tuple[int, list[str]]:
        if after < 0:
            return self.position, []
        found = [
            (position, user)
            for (other, user), position in self.recent.items()
            if other != lane and position > after
        ]
        last = max([after, *self.recent.values()])
        return last, list(dict.fromkeys(user for _, user in sorted(found)))

    def _expire(self, lane: str, before: float) -> list[Message]:
        dropped, self.owed = self.owed, []
        for messages in self.messages.values():
            for each in [each for each in messages.values() if each.at < before]:
                dropped.append(messages.pop(each.message.id).message)
        for message in dropped:
            self.drops[message.id] = lane
        return dropped
