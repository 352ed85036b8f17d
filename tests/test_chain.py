"""Chains and recoveries of two hubs on a model of a bus that loses, repeats, reorders and forgets.

Checked against the record of all that was ever published: between two messages that a client got
without a notice in between there never was another one, none comes twice, and each join ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from wsc_fast._core.envelopes import open_entry
from wsc_fast.bus.base import MARK, Entry, Page, Published, Retention
from wsc_fast.cluster import chain as chain_module
from wsc_fast.cluster import recovery as recovery_module
from wsc_fast.cluster.chain import Chain, Message
from wsc_fast.cluster.counters import Counters
from wsc_fast.cluster.recovery import Join, Recovery

KEEP = Retention(100, 300.0)
ENTRY = b"b 0 0 0\n"


# The room that clients join.
ROOM = SimpleNamespace(deleted=False)


class Answer:
    """The future of a read, whose callbacks run at once."""

    def __init__(self, bus: Bus, since: str | None, limit: int) -> None:
        self.bus, self.since, self.limit = bus, since, limit
        self.page: Page | None = None  # as the bus has read it
        self._callbacks: list[Callable[[Any], None]] = []
        self._done = False
        self._error: Exception | None = None

    def done(self) -> bool:
        return self._done

    def cancelled(self) -> bool:
        return False

    def exception(self) -> Exception | None:
        return self._error

    def result(self) -> Page:
        assert self.page is not None
        return self.page

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def end(self, error: Exception | None = None) -> None:
        self.bus.reads.remove(self)
        if error is None and self.page is None:
            self.page = self.bus.page(self.since, self.limit)
        self._error, self._done = error, True
        for callback in self._callbacks:
            callback(self)


class Marking:
    """The answer to a mark, whose callbacks run at once."""

    def __init__(self, bus: Bus, loss: str) -> None:
        self.bus, self.loss = bus, loss
        self._callbacks: list[Callable[[Any], None]] = []
        self._error: Exception | None = None

    def cancelled(self) -> bool:
        return False

    def exception(self) -> Exception | None:
        return self._error

    def result(self) -> Published:
        return Published(self.bus.marks[self.loss], False)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def end(self, error: Exception | None = None) -> None:
        """It is in the history; with an error, it may be there or not."""
        self.bus.markings.remove(self)
        if error is None or self.bus.count % 2:
            self.bus.mark(self.loss)
        self._error = error
        for callback in self._callbacks:
            callback(self)


class Bus:
    """A history of one room, and all that is under way between it and the hubs."""

    def __init__(self) -> None:
        self.count = 0
        self.life = 0  # the crashes that it has had
        self.marks: dict[str, str] = {}  # by loss, its position
        self.markings: list[Marking] = []
        self.entries: list[str] = []
        self.before = self.top = self.new_position()
        self.follows: dict[str, str] = {}  # of each position ever: the one before it
        self.reads: list[Answer] = []
        self.lines: list[list[tuple[str, str]]] = [[], []]  # per hub: (prev, position) under way
        self.budget = 1000  # steps that a hub does at once

    def new_position(self) -> str:
        self.count += 1
        return f"{self.count}.x"

    def mark(self, loss: str) -> None:
        """As `publish` with an idempotency key."""
        if loss not in self.marks:
            self.marks[loss] = self.publish()

    def publish(self) -> str:
        position = self.new_position()
        self.follows[position] = self.top
        for line in self.lines:
            line.append((self.top, position))
        self.entries.append(position)
        self.top = position
        return position

    def read(self, since: str | None, limit: int) -> Answer:
        answer = Answer(self, since, limit)
        self.reads.append(answer)
        return answer

    def page(self, since: str | None, limit: int) -> Page:
        if since is None:
            assert limit == 0
            return Page(self.top, True, ())
        places = [self.before, *self.entries]
        if since not in places:
            is_lost = number_of(self.before) < number_of(since)
            return Page(self.top, False, (), f"life {self.life}" if is_lost else "")
        found = self.entries[places.index(since) :][:limit]
        return Page(self.top, True, [Entry(position, self.entry(position)) for position in found])

    def entry(self, position: str) -> bytes:
        return MARK if position in self.marks.values() else ENTRY

    def is_before(self, first: str, second: str | None) -> bool:
        """Whether both are in the history, and the first one is older."""
        places = [self.before, *self.entries]
        known = first in places and second in places
        return known and places.index(first) < places.index(second or "")

    def trim(self, count: int) -> None:
        for _ in range(min(count, len(self.entries))):
            self.before = self.entries.pop(0)

    def crash(self, lost: int) -> None:
        """Restarts without its newest messages: connections end, and what was under way."""
        for line in self.lines:
            line.clear()
        self.life += 1
        gone = [self.entries.pop() for _ in range(min(lost, len(self.entries)))]
        self.marks = {loss: mark for loss, mark in self.marks.items() if mark not in gone}
        self.top = self.entries[-1] if self.entries else self.before
        for answer in list(self.reads):
            if answer in self.reads and answer.page is not None:
                answer.end(OSError("lost"))
        for marking in list(self.markings):
            if marking in self.markings:
                marking.end(OSError("lost"))

    def empty(self) -> None:
        self.entries.clear()
        self.before = self.top = self.new_position()
        self.crash(0)


def number_of(position: str) -> int:
    return int(position.partition(".")[0])


class Client:
    """A client that remembers positions over its connections."""

    def __init__(self, name: str) -> None:
        self.id = name
        self.connected = True
        self.position: str | None = None
        self.view: list[tuple[str, str]] = []  # what it heard: a message, a place, or a gap

    def is_connected(self) -> bool:
        return self.connected

    def hears(self, what: str, position: str) -> None:
        assert self.connected
        self.view.append((what, position))
        self.position = position


class Hub:
    """A chain and a recovery, with members: what cluster/rooms.py and the engine are to them."""

    hears_all = False

    def __init__(self, bus: Bus, number: int) -> None:
        self.bus, self.line = bus, bus.lines[number]
        self.members: set[Any] = set()
        self.work: deque[Iterator[None]] = deque()
        self.lost: list[str] = []  # positions of which the history has no mark yet
        self.recovery = Recovery(self, Counters(), self.read, self.in_turns, set())  # type: ignore[arg-type]
        self.chain = Chain("r", KEEP, self)
        self.chain.heal()

    def read(self, room: str, since: str | None, limit: int, retention: Retention) -> Any:
        return self.bus.read(since, limit)

    def in_turns(self, steps: Iterator[None]) -> None:
        self.work.append(steps)
        if len(self.work) == 1:
            self.turn(self.bus.budget)

    def turn(self, budget: int) -> None:
        """Does so many steps of the work that waits."""
        while self.work and budget:
            steps = self.work[0]
            for _ in steps:
                budget -= 1
                if not budget:
                    return
            if self.work and self.work[0] is steps:
                self.work.popleft()

    def hear_empty(self, ran_empty: Callable[[Any], None]) -> None:
        pass

    def must_wait(self, client: Connection, size: int) -> bool:
        """Half of an outbox is three messages."""
        client.awaited = client.queued >= 3
        return client.awaited

    def give(self, room: str, message: Message) -> None:
        for member in self.members:
            member.client.hears("message", message.position)

    def gap(self, room: str, position: str) -> None:
        for member in self.members:
            member.client.hears("gap", position)

    def mark(self, room: str, loss: str, retention: Retention) -> Any:
        self.bus.markings.append(Marking(self.bus, loss))
        return self.bus.markings[-1]

    def not_marked(self, chain: Chain, error: Exception) -> None:
        assert isinstance(error, OSError)
        assert chain.last is not None
        self.lost.append(chain.last)

    def mark_again(self) -> None:
        """As `Accepted.check`, which leaves to the chain what that has."""
        for position in self.lost:
            loss = "" if self.chain.knows(position) else self.bus.page(position, 1).loss
            if loss:
                self.bus.mark(loss)
        self.lost.clear()

    def settled(self, chain: Chain) -> None:
        self.recovery.settled(chain)

    def count_heal(self, room: str, messages: int) -> None:
        pass

    def failed(self, room: str, error: Exception) -> None:
        assert isinstance(error, OSError)

    def deliver(self, at: int, times: int) -> None:
        """One of the messages under way comes, so many times."""
        if self.line:
            prev, position = self.line.pop(at % len(self.line))
            for _ in range(times):
                message = Message(position, *open_entry(self.bus.entry(position)))
                self.in_turns(self.chain.heard(prev, [message]))


class Connection:
    """A connection of a client to a hub, as `_core.kept` takes one."""

    def __init__(self, client: Client, hub: Hub) -> None:
        self.client, self.hub, self.id = client, hub, client.id
        self.queued = 0
        self.awaited = False

    def queues(self) -> None:
        self.queued += 1
        assert self.queued <= 3

    def reads_all(self) -> None:
        """Its outbox runs empty."""
        self.queued = 0
        if self.awaited:
            self.awaited = False
            self.hub.recovery.ran_empty(self)  # type: ignore[arg-type]

    def is_connected(self) -> bool:
        return self.client.connected


def give_one(engine: Any, client: Connection, room: str, position: str, frame: bytes) -> None:
    client.queues()
    client.client.hears("message", position)


def say(engine: Any, client: Connection, room: str, position: str, more: str) -> None:
    client.queues()
    if '"recovered":true' in more:
        assert client.client.position == position, "recovered, but not whole"
    else:
        if '"first"' not in more:
            assert not client.hub.bus.is_before(position, client.client.position), "set back"
        client.client.hears("place", position)


def enter_room(engine: Any, client: Connection, room: Any) -> bool:
    assert client not in client.hub.members
    client.hub.members.add(client)
    return True


class World:
    """Two hubs, three clients and the bus; each method is something that may happen."""

    def __init__(self) -> None:
        self.bus = Bus()
        self.hubs = [Hub(self.bus, number) for number in range(2)]
        self.clients = [Client(f"c{number}") for number in range(3)]
        self.connections: list[Connection | None] = [None, None, None]

    def publish(self, number: int) -> None:
        for _ in range(1 + number % 3):
            self.bus.publish()

    def deliver(self, number: int) -> None:
        self.hubs[number % 2].deliver(0, 1)

    def repeat(self, number: int) -> None:
        self.hubs[number % 2].deliver(0, 2)

    def reorder(self, number: int) -> None:
        self.hubs[number % 2].deliver(number, 1)

    def lose(self, number: int) -> None:
        del self.hubs[number % 2].line[: 1 + number % 3]

    def execute(self, number: int) -> None:
        """The bus reads, and the answer is under way."""
        if self.bus.reads:
            answer = self.bus.reads[number % len(self.bus.reads)]
            answer.page = answer.page or self.bus.page(answer.since, answer.limit)

    def answer(self, number: int) -> None:
        if self.bus.reads:
            self.bus.reads[number % len(self.bus.reads)].end()

    def fail(self, number: int) -> None:
        if self.bus.reads:
            self.bus.reads[number % len(self.bus.reads)].end(OSError("no answer"))

    def mark(self, number: int) -> None:
        if self.bus.markings:
            self.bus.markings[0].end(OSError("no answer") if number == 0 else None)

    def hurry(self, number: int) -> None:
        """From now on a turn of the loop has time for so many steps."""
        self.bus.budget = (1, 2, 3, 1000)[number % 4]

    def turn(self, number: int) -> None:
        self.hubs[number % 2].turn(self.bus.budget)

    def trim(self, number: int) -> None:
        self.bus.trim(1 + number % 4)

    def rewind(self, number: int) -> None:
        before = set(self.bus.entries)
        self.bus.crash(number % 4)
        gone = before.difference(self.bus.entries)
        if any(hub.chain.last in gone for hub in self.hubs):  # else nobody can know
            for client in self.clients:
                client.view.append(("loss", ""))
        self.subscribed_again()

    def empty(self, number: int) -> None:
        self.bus.empty()
        self.forget_losses()  # no position of before is known
        self.subscribed_again()

    def forget_losses(self) -> None:
        for client in self.clients:
            client.view = [each for each in client.view if each[0] != "loss"]

    def subscribed_again(self) -> None:
        for hub in self.hubs:
            hub.chain.heal()

    def audit(self, number: int) -> None:
        self.hubs[number % 2].mark_again()
        chain = self.hubs[number % 2].chain
        if not chain.healing and chain.last != self.bus.top:
            chain.heal()

    def come(self, number: int) -> None:
        """A client connects and joins, with its position; it may have no such thing yet."""
        which = number % 3
        if self.connections[which] is None:
            hub = self.hubs[number // 3 % 2]
            self.connections[which] = Connection(self.clients[which], hub)
            self.clients[which].connected = True
            self.clients[which].view.append(("connected", ""))
            self.join(which, self.clients[which].position)

    def join(self, which: int, position: str | None) -> None:
        connection = self.connections[which]
        if connection is not None and connection not in connection.hub.members:
            hub = connection.hub
            hub.recovery.join(hub.chain, Join(connection, ROOM, position))  # type: ignore[arg-type]

    def join_again(self, number: int) -> None:
        """The application joins a client twice; the second time there is no position."""
        self.join(number % 3, None)

    def leave(self, number: int) -> None:
        """The application takes a client out of the room, and back into it."""
        connection = self.connections[number % 3]
        if connection is not None:
            connection.hub.members.discard(connection)
            connection.hub.recovery.leave("r", connection)  # type: ignore[arg-type]
            self.join(number % 3, None)

    def go(self, number: int) -> None:
        connection = self.connections[number % 3]
        if connection is not None:
            self.connections[number % 3] = None
            connection.hub.members.discard(connection)
            connection.client.connected = False
            # A connection that has ended never opens again.
            connection.is_connected = lambda: False  # type: ignore[method-assign]

    def drain(self, number: int) -> None:
        connection = self.connections[number % 3]
        if connection is not None:
            connection.reads_all()

    def second(self, number: int) -> None:
        self.hubs[number % 2].recovery.look()

    def stop(self, number: int) -> None:
        """A hub stops and starts while reads are under way."""
        old = self.hubs[number % 2]
        for which, connection in enumerate(self.connections):
            if connection is not None and connection.hub is old:
                self.go(which)
        old.recovery.forget()
        old.work.clear()
        old.chain.end()
        old.lost.clear()
        self.forget_losses()  # it may have been the one that knew
        old.chain = Chain("r", KEEP, old)
        old.line.clear()
        old.chain.heal()

    # --- the end ---

    def settle(self) -> None:
        """Nothing fails any more: all that waits for something gets it."""
        self.bus.budget = 1000
        for _ in range(30):
            while self.bus.reads or self.bus.markings:
                for under_way in [*self.bus.reads, *self.bus.markings]:
                    under_way.end()
            for hub in self.hubs:
                hub.turn(1000)
            for number in range(3):
                self.drain(number)
            for hub in self.hubs:
                hub.line.clear()
                hub.mark_again()
                hub.recovery.look()
                if hub.chain.last != self.bus.top:
                    hub.chain.heal()

    def check(self) -> None:
        for hub in self.hubs:
            assert not hub.chain.healing
            assert hub.chain.last == self.bus.top
            assert not hub.recovery.waits("r")
        for connection in self.connections:
            if connection is not None:
                assert connection in connection.hub.members
                assert connection.client.position == self.bus.top
        for client in self.clients:
            self.check_view(client.view)
            self.check_losses(client)

    def check_losses(self, client: Client) -> None:
        """After a loss that a hub noticed, a client that had a place then was told of it."""
        what = [each for each, _ in client.view]
        if "loss" not in what:
            return
        last = len(what) - 1 - what[::-1].index("loss")
        if set(what[:last]) & {"place", "message", "gap"}:
            assert set(what[last:]) & {"place", "gap"}, f"not told: {client.view}"

    def check_view(self, view: list[tuple[str, str]]) -> None:
        seen: set[str] = set()
        of_connection: set[str] = set()
        at = None
        for what, position in view:
            if what == "connected":
                of_connection.clear()
                continue
            if what == "loss":
                continue
            if what == "message":
                assert at is not None, f"a message before the first place: {view}"
                assert self.bus.follows[position] == at, f"not after {at}: {view}"
                assert position not in seen | of_connection, f"doubled: {view}"
                seen.add(position)
                of_connection.add(position)
            elif what == "place":
                # The client loads its state anew.
                seen.clear()
                of_connection.clear()
            else:
                # The bus has lost these messages, and another hub may not know of it yet.
                seen.clear()
            at = position


ACTIONS = [
    *["publish"] * 4,
    *["deliver"] * 4,
    *["answer"] * 5,
    *["come"] * 3,
    *["go"] * 2,
    *["drain"] * 3,
    *["turn"] * 4,
    *["mark"] * 2,
    "hurry",
    "execute",
    "repeat",
    "reorder",
    "lose",
    "fail",
    "trim",
    "rewind",
    "empty",
    "audit",
    "join_again",
    "leave",
    "second",
    "stop",
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a few messages reach, and a model in the engine's place."""
    for module, name, value in (
        (chain_module, "RING_MESSAGES", 3),
        (chain_module, "HEAL_LIMIT", 4),
        (chain_module, "MOST_WAITING", 3),
        (recovery_module, "MOST_MISSED", 6),
    ):
        monkeypatch.setattr(module, name, value)
    kept = SimpleNamespace(give_one=give_one, say=say, enter_room=enter_room)
    monkeypatch.setattr(recovery_module, "kept", kept)


@pytest.mark.usefixtures("small")
@settings(
    max_examples=500,
    deadline=None,
    phases=[Phase.generate],  # the choices of a Random do not get simpler
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.randoms(use_true_random=False), st.integers(10, 150))
def test_nobody_misses_a_message_without_a_word(random: Random, count: int) -> None:
    # Lists of hypothesis are mostly too short to get anywhere.
    play([(random.choice(ACTIONS), random.randrange(12)) for _ in range(count)])


def play(actions: list[tuple[str, int]]) -> World:
    world = World()
    for name, number in actions:
        getattr(world, name)(number)
    world.settle()
    for number in range(3):  # nobody stays away
        world.come(number)
    world.settle()
    world.check()
    return world


# Found by the test above, and shortened.
FOUND = {
    "a chain that is followed no more gives what it read to members of the next one": [
        ("stop", 2),
        ("come", 1),
        ("answer", 6),
        ("publish", 9),
        ("answer", 1),
        ("publish", 8),
    ],
    "a message that waited is of a history that the bus has lost": [
        ("come", 8),
        ("answer", 10),
        ("stop", 2),
        ("publish", 2),
        ("come", 8),
        ("answer", 7),
        ("answer", 5),
        ("repeat", 2),
        ("rewind", 7),
    ],
    "a client waits for a chain whose first read has failed": [
        ("come", 0),
        ("fail", 0),
        ("fail", 0),
    ],
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("actions", FOUND.values(), ids=FOUND)
def test_a_fault_that_was_found_does_not_come_back(actions: list[tuple[str, int]]) -> None:
    play(actions)


# --- one by one ---


@pytest.fixture
def world(small: None) -> World:
    """Two hubs that know the room, which has had six messages since; the ring has three."""
    world = World()
    for number in range(3):
        world.come(number)
    while world.bus.reads:
        world.bus.reads[0].end()
    for _ in range(6):
        world.bus.publish()
    return world


def test_a_read_that_was_asked_for_twice_gives_its_messages_once(world: World) -> None:
    world.go(0)
    for _ in range(6):
        world.deliver(0)
    world.come(0)  # its place is behind the ring: it waits for a read
    (read,) = world.bus.reads
    world.hubs[0].chain.heal()
    world.bus.reads[-1].end()  # settled: the join is looked at once more
    world.hubs[0].chain.heal()  # and while it heals again ...
    read.end()  # ... the read ends
    world.settle()
    world.check()
    assert [what for what, _ in world.clients[0].view].count("message") == 6


def test_a_second_join_leaves_the_first_one_its_position(world: World) -> None:
    world.go(0)
    for _ in range(6):
        world.deliver(0)
    world.come(0)  # its place is behind the ring: it waits for a read
    world.join_again(0)
    world.settle()
    world.check()
    assert [what for what, _ in world.clients[0].view].count("place") == 1


def test_clients_that_ask_for_the_same_share_a_read(world: World) -> None:
    for number in range(3):
        world.go(number)
    for _ in range(6):
        world.deliver(0)
    for number in range(3):
        world.come(number)
    assert len(world.bus.reads) == 1
    world.settle()
    world.check()


def test_a_message_that_comes_while_an_older_read_is_answered_is_looked_for(world: World) -> None:
    hub = world.hubs[0]
    hub.chain.heal()
    read = world.bus.reads[-1]
    read.page = world.bus.page(read.since, read.limit)
    hub.line.clear()
    for _ in range(2):
        world.bus.publish()
    world.reorder(0)  # the next to last is delivered, the last one lost
    hub.line.clear()
    read.end()
    while world.bus.reads:
        world.bus.reads[0].end()
    assert hub.chain.last == world.bus.top


def test_a_new_connection_in_the_middle_of_a_heal_reads_once_more(world: World) -> None:
    hub = world.hubs[0]
    hub.chain.heal()
    read = world.bus.reads[-1]
    read.page = world.bus.page(read.since, read.limit)
    world.bus.publish()
    hub.line.clear()
    hub.chain.heal()  # subscribed again
    while world.bus.reads:
        world.bus.reads[0].end()
    assert hub.chain.last == world.bus.top


@pytest.mark.parametrize("fails", [False, True])
def test_a_client_is_not_set_back_by_a_hub_that_is_behind(world: World, fails: bool) -> None:
    world.go(0)
    for hub in world.hubs:
        hub.line.clear()  # no message comes any more
    for _ in range(9):
        world.bus.publish()
    # From another hub, which is up to date, and with more to come than a recovery gives.
    world.clients[0].position = world.bus.entries[-8]
    world.come(0)
    world.bus.reads[-1].end()
    while fails and world.bus.reads:
        world.bus.reads[0].end(OSError("no answer"))
    world.second(0)
    world.settle()
    world.check()
    assert world.clients[0].view[-1] == ("place", world.bus.top)


def test_a_client_whose_read_fails_waits_for_the_next_one(world: World) -> None:
    world.go(0)
    for _ in range(6):
        world.deliver(0)
    world.come(0)  # its place is behind the ring: it waits for a read
    world.bus.reads[-1].end(OSError("no answer"))
    world.settle()
    world.check()
    assert [what for what, _ in world.clients[0].view].count("message") == 6
    assert [what for what, _ in world.clients[0].view].count("place") == 1


def test_an_audit_before_the_members_hear_of_a_loss_leaves_the_mark_to_the_next_one(
    world: World,
) -> None:
    hub = world.hubs[0]
    world.publish(0)
    for _ in range(7):
        world.deliver(0)
    world.rewind(2)
    while world.bus.reads:
        world.bus.reads[0].end()
    (marking,) = world.bus.markings
    assert world.bus.count % 2 == 0, "the mark is there in spite of the error"
    world.bus.budget = 0  # the hub has other work
    marking.end(OSError("no answer"))
    hub.mark_again()
    hub.turn(1000)
    hub.mark_again()
    assert list(world.bus.marks) == ["life 1"]


def test_a_bus_that_refuses_all_reads_ends_a_join_all_the_same(world: World) -> None:
    world.go(0)
    for _ in range(6):
        world.deliver(0)
    world.come(0)
    for _ in range(100):
        while world.bus.reads:
            world.bus.reads[0].end(OSError("refused"))
        world.second(0)
    assert world.clients[0].view[-1] == ("place", world.hubs[0].chain.last)


def test_a_bus_that_contradicts_itself_ends_a_join_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads for joins say that nothing is missing, and the chain never comes to know the place."""
    world.go(0)
    world.clients[0].position = "elsewhere"
    page = world.bus.page

    def contradicting(since: str | None, limit: int) -> Page:
        return Page(world.bus.top, True, ()) if since == "elsewhere" else page(since, limit)

    monkeypatch.setattr(world.bus, "page", contradicting)
    world.come(0)
    world.settle()
    world.check()
    assert world.clients[0].view[-1] == ("place", world.bus.top)
