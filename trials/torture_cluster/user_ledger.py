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
        behind: by user and device, messages seen while stored ones may come behind newer ones.
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
        self._store_fails = store_fails
        self._cut_off = cut_off

    def fall_behind(self, user: str) -> None:
        """The store did not answer a hub, which goes on with the messages that it has in memory.

        Args:
            user: whose messages could not be read.
        """
        self._behind_until[user] = time.monotonic() + BEHIND

    def see(self, user: str, name: Name, circumstances: str, device: str = "") -> None:
        if time.monotonic() < self._behind_until[user]:
            self.behind[user, device].add(name)
        super().see(user, name, circumstances, device)

    def has_order(self, user: str, device: str, name: Name) -> bool:
        return name not in self.behind[user, device] and super().has_order(user, device, name)

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
        if len(told) > 1:
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
