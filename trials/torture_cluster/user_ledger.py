"""The record of a scenario with users: also what hubs say of users and of ended messages.

Beside the rules of trials/torture/ledger.py, these are judged:

    told        failure handlers heard twice of a message, or not of one that failed
    misled      awaiting an acknowledgement ended otherwise than it should
    presence    `members`, `online` or `nodes` are not right in time
    offline     `on_presence` told that a user has left who was there within the grace
    keys        a key on the bus lives for ever, or for too long
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence

from trials.torture.ledger import KINDS as ALL_KINDS
from trials.torture.ledger import Ledger, Name
from trials.torture.users import Crowd, Device
from trials.torture_cluster.user_rooms import GRACE, rooms_of

# The kinds of faults, as the columns of the table.
KINDS = {kind: text for kind, text in ALL_KINDS.items() if kind != "closed"} | {
    "told": "told twice to failure handlers, or never",
    "misled": "a sender who heard of another end",
    "presence": "not what is true, after 12 s",
    "offline": "told to have left within the grace",
    "keys": "left on the bus for ever",
}
# Seconds by which a busy machine may hear later of a client's end than the hub.
SLACK = 1.0
# Seconds by which `on_presence` may tell later that somebody has left, who may be back by then.
LATE = 8.0
# Seconds in which stored messages may come behind newer ones, once a store has not answered a hub
# in time: it counts as away for 5 s, and what could not be read is read again within 5 s.
BEHIND = 15.0
# Seconds in which a hub may not have stored yet that a message was answered: another device may get
# it behind newer ones, as docs/several-servers.md says. If the hub is killed then, at any time.
ANSWERING = 1.0
# Seconds in which a hub that could not ask the bus may tell of what another one has told.
ALONE = 15.0
# So many of the last messages of a device are looked at.
LAST = 500

Message = tuple[str, Name]  # user, and the name of the message


class UserLedger(Ledger):
    """The fates of all messages of one scenario, and the words of its hubs.

    Attributes:
        crowd: the users.
        ended: how often awaiting an acknowledgement ended how.
        told: by user and message, the hubs whose failure handlers heard of it, and why.
        examined: by user and message, how awaiting one of an examination ended.
        gone: how often `on_presence` told of a user who has left.
        behind: by user and device, messages seen while stored ones may come behind newer ones, or
            while another device was answering them.
    """

    def __init__(self, users: Sequence[str], *, store_fails: bool, cut_off: bool) -> None:
        """Begins with nothing.

        Args:
            users: the names of all users.
            store_fails: the store is away at times, so that messages may be refused.
            cut_off: a hub may be cut off for longer than its lease, so that its users count as
                having left.
        """
        super().__init__(users, order_of_accepted=store_fails, kinds=KINDS)
        self.crowd = Crowd(users, self, devices=2)
        self.ended: Counter[str] = Counter()
        self.told: defaultdict[Message, list[str]] = defaultdict(list)
        self.examined: dict[Message, str] = {}
        self.gone = 0
        self.behind: defaultdict[tuple[str, str], set[Name]] = defaultdict(set)
        self._behind_until: defaultdict[str, float] = defaultdict(lambda: -math.inf)
        self._answered_at: dict[Message, float] = {}  # the newest last
        self._unsure: set[Message] = set()  # answered to a hub that could not store that
        self._cut = False
        self._alone_at: dict[str, float] = {}
        self._store_fails = store_fails
        self._cut_off = cut_off

    def fall_behind(self, user: str) -> None:
        """The store did not answer a hub, which goes on with the messages that it has in memory.

        Args:
            user: whose messages could not be read.
        """
        self._behind_until[user] = time.monotonic() + BEHIND

    def see(self, user: str, name: Name, circumstances: str, device: str = "") -> None:
        now = time.monotonic()
        is_answered = now - self._answered_at.get((user, name), -math.inf) < ANSWERING
        if now < self._behind_until[user] or is_answered:
            self.behind[user, device].add(name)
        super().see(user, name, circumstances, device)

    def has_order(self, user: str, device: str, name: Name) -> bool:
        if name in self.behind[user, device] or (user, name) in self._unsure:
            return False
        return super().has_order(user, device, name)

    def answer(self, user: str, name: Name) -> None:
        super().answer(user, name)
        self._answered_at.pop((user, name), None)
        self._answered_at[user, name] = time.monotonic()
        if self._cut:
            self._unsure.add((user, name))

    def cut(self, is_cut: bool) -> None:
        """A hub cannot reach the store from now on, or can again."""
        self._cut = is_cut
        if is_cut:
            self.kill()

    def kill(self) -> None:
        """A hub was killed, or cut off: what was answered just now may come again."""
        now = time.monotonic()
        for message, answered_at in reversed(self._answered_at.items()):
            if now - answered_at > ANSWERING:
                break
            self._unsure.add(message)

    def be_alone(self, hub: str) -> None:
        """This hub could not tell the others of an end, nor ask whether they had told."""
        self._alone_at[hub] = time.monotonic()

    def end(self, hub: str, how: str, user: str, name: Name) -> None:
        """Awaiting a message has ended in this hub.

        Args:
            hub: its name.
            how: "confirmed", or the name of an error.
            user: the recipient.
            name: of the message.
        """
        self.ended[how] += 1
        if how in ("AckDroppedError", "AckTimeoutError") and not self._store_fails:
            text = f"awaiting {name[0]} {name[1]} to {user} ended in {how} in {hub}"
            self.violate("misled", text)

    def tell(self, hub: str, user: str, name: Name, reason: str) -> None:
        """A failure handler of this hub heard of a message."""
        told = self.told[user, name]
        told.append(f"{hub}: {reason}")
        since = time.monotonic() - ALONE
        if len(told) > 1 and not any(at > since for at in self._alone_at.values()):
            text = f"failure handlers heard {len(told)} times of {name[0]} {name[1]} to {user}"
            self.violate("told", f"{text}: {', '.join(told)}")

    def leave(self, hub: str, room: str, user: str) -> None:
        """This hub told that a user has left a room."""
        self.gone += 1
        away = self._longest_away(room, user)
        if away < GRACE - SLACK and not self._cut_off:
            history = self.crowd.users[user].history()
            text = f"{hub} told that {user} has left {room}, who was away for {away:.2f} s of late"
            self.violate("offline", f"{text}: {history}")

    def _longest_away(self, room: str, user: str) -> float:
        """The longest time of late in which a user had no device in a room, in seconds."""
        now = time.monotonic()
        visits = [
            visit
            for device in self.crowd.users[user].devices
            if room in rooms_of(user, device.name[1:])
            for visit in device.visits
        ]
        longest, there = 0.0, -math.inf
        for came, left in sorted([*visits, (now, now)]):
            if came > now - LATE:
                longest = max(longest, came - there)
            there = max(there, left)
        return longest

    def has_seen(self, device: Device, name: Name) -> bool:
        """Whether a device has seen a message of late."""
        return any(name == each for each, _ in self.seen[device.user, device.name][-LAST:])

    def present(self) -> dict[str, set[str]]:
        """The truth: the users in each room, and under "online" all that are connected."""
        found: dict[str, set[str]] = defaultdict(set)
        for device in self.crowd.members:
            if device.door is not None:
                for room in (*rooms_of(device.user, device.name[1:]), "online"):
                    found[room].add(device.user)
        return found
