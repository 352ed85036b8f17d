"""Users over hubs: a model of the protocol, in which a seed repeats a run exactly.

    python -m trials.models.users [--seeds N] [--first S] [--without RULE,...] [--trace]

Hubs share an offline store, where they meet, and a bus, over which they tell each other to look.
Users have two devices each, which hop between the hubs. Every call and every word takes its time.
A run has a time of chaos, in which senders send, and quiet times, in which all has to come right:

    kill       a hub dies, and another life of it begins
    stop       a hub sends its clients away, stores what is pending, and ends
    freeze     a hub stands still, also for longer than its lease
    cut        the connections of a hub to the bus or to the store break
    block      nothing passes between a hub and a server, in one direction or in both
    crash      the bus or the store is away for a while
    failover   a replica takes the place of the bus or the store, which lacks the newest writes

Each seed has some of these, and delays, bounds and devices of its own. RULES names the parts of the
protocol that can be left out, to see what each is there for.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from trials.models.user_hub import Hub, Pending
from trials.models.user_servers import ANSWERS, Bus, Message, Store
from trials.models.virtual import Clock, Lost, Path

RULES = {
    "look": "a hub tells the user's others of what it has stored",
    "poll": "each hub looks each second for what others have stored",
    "check": "each hub looks each 5 s for what has gone from the store",
    "missing-first": "the check asks the store before it asks the bus",
    "settle-first": "the bus hears of an outcome before the store deletes",
    "tag": "a settlement that is repeated knows itself again",
    "numbers": "answers, `also` and `alone` are numbered",
    "settle-drops": "drops are told by the one hub that has settled them",
    "settle-errors": "a failed append is told only if nothing else has settled its message",
    "ask-all-read": "the bus is asked before a parked message that has gone is sent from memory",
    "store-line": "a client that catches up gets stored messages from the store alone",
    "delete-by-all": "each hub that hears of an answer deletes the message",
    "note-reading": "a page under way does not bring back a message that is settled",
    "given": "a message of the store is pending for the clients that got it, and not for others",
    "anew": "a message that is sent anew after a failure is stored anew",
    "age": "a failure that is older than an attempt does not end that attempt",
}
FAULTS = (
    "kill",
    "stop",
    "freeze",
    "cut-bus",
    "cut-store",
    "block-bus",
    "block-store",
    "crash-bus",
    "crash-store",
    "failover-bus",
    "failover-store",
)
HUBS = ("a", "b", "c")
CHAOS = 25.0


class Record:
    """All that happened to a message."""

    def __init__(self, message: Message, life: str, seq: int) -> None:
        self.message = message
        self.life = life
        self.seq = seq
        self.is_accepted = False
        self.told: list[tuple[float, str, str]] = []
        self.answered_by: Hub
        self.seen: list[Device] = []
        self.answered_at = 0.0
        self.was_lost = False  # the store lost or revived it
        self.was_not_stored = False
        self.had_no_bus = False
        self.is_late = False  # a hub has given it up
        self.is_probe = False
        self.is_doubled = False  # also sent by another hub, or sent again
        self.awaits: list[tuple[Hub, Pending]] = []

    def may_come_late(self) -> bool:
        """Whether its place among the others is not promised."""
        return self.is_doubled or self.was_lost or self.was_not_stored or self.is_late


class Client:
    """A connection of a device to a hub."""

    def __init__(self, device: Device, hub: Hub) -> None:
        self.device = device
        self.hub = hub
        self.user = device.user
        self.is_here = False  # as the hub knows
        self.is_open = True  # as the device knows
        self._there = self._back = 0.0
        self._clock = hub.clock
        self.call(hub.entered, self)
        self.is_here = True

    def _delay(self, before: float) -> float:
        world = self.hub.world
        return max(before, self._clock.now + world.dice.choice(world.delays) * world.dice.random())

    def send(self, message: Message) -> None:
        """The hub sends; it comes in order."""
        self._there = self._delay(self._there)
        self._clock.at(self._there - self._clock.now, self._got, message)

    def _got(self, message: Message) -> None:
        if self.is_open:
            self.device.got(self, message)

    def call(self, function: object, *args: object) -> None:
        """Something reaches the hub, in order."""
        self._back = self._delay(self._back)
        self._clock.at(self._back - self._clock.now, self.hub.call, function, *args)

    def close(self) -> None:
        """The hub hears of it at once, or by its pings."""
        self.is_open = False
        if self.hub.world.dice.random() < 0.3:
            self._clock.at(3.0, self.hub.call, self.hub.left, self)
        else:
            self.call(self.hub.left, self)


class Device:
    """A device of a user: it drops ids that it knows, and acknowledges them again."""

    def __init__(self, world: World, user: str, number: int) -> None:
        self.world = world
        self.user = user
        self.name = f"{user}{number}"
        self.view: list[str] = []
        self.known: dict[str, None] = {}
        self.acknowledged: dict[str, None] = {}
        self.client: Client | None = None
        self.stays = False
        self.is_silent = False
        dice = world.dice
        self.stay = dice.choice([0.5, 2.0, 8.0])
        self.answers = dice.choice([0.0, 0.5, 0.9, 1.0])
        self.refuses = dice.choice([0.0, 0.0, 0.1])
        self.waits = dice.choice([0.0, 0.05, 2.0])
        world.clock.at(dice.random() * 2, self.connect)

    def connect(self) -> None:
        """Connects to any hub that is up."""
        world = self.world
        if self.client is not None:
            return
        up = [
            hub
            for hub in world.hubs.values()
            if not (hub.is_dead or hub.is_frozen or hub.is_stopping)
        ]
        if not up:
            world.clock.at(0.2, self.connect)
            return
        self.client = Client(self, world.dice.choice(up))
        world.trace("connects", self.name, self.client.hub.name)
        world.clock.at(world.dice.expovariate(1 / self.stay), self.leave, self.client)
        world.clock.at(1.0, self.look, self.client)

    def look(self, client: Client) -> None:
        """Pings find a hub that is dead or frozen."""
        if client is not self.client:
            return
        if client.hub.is_dead or (client.hub.is_frozen and self.world.dice.random() < 0.3):
            self.leave(client, True)
        else:
            self.world.clock.at(1.0, self.look, client)

    def leave(self, client: Client, must: bool = False) -> None:
        if client is not self.client or (self.stays and not must):
            return
        self.world.trace("leaves", self.name, client.hub.name)
        client.close()
        self.client = None
        pause = 0.1 if self.stays else self.world.dice.choice([0.0, 0.05, 0.5, 3.0])
        self.world.clock.at(pause, self.connect)

    def got(self, client: Client, message: Message) -> None:
        world = self.world
        world.count["deliveries"] += 1
        world.trace("gets", self.name, client.hub.name, message.id)
        record = world.records[message.id]
        if message.id in self.acknowledged:
            world.count["copies of acknowledged"] += 1
        if message.id not in self.known:
            self.known[message.id] = None
            self.view.append(message.id)
            record.seen.append(self)
            world.check_order(self, record)
        if record.is_probe and self.is_silent:
            return
        if self.stays or world.dice.random() < self.answers:
            delay = 0.0 if self.stays else world.dice.random() * self.waits
            world.clock.at(delay, self.answer, client, message.id)

    def answer(self, client: Client, message_id: str) -> None:
        if client.is_open:
            self.acknowledged[message_id] = None
            refuses = not self.stays and self.world.dice.random() < self.refuses
            client.call(client.hub.take, client, message_id, "failed" if refuses else "confirmed")


class World:
    """One run."""

    def __init__(self, seed: int, without: frozenset[str], traces: bool = False) -> None:
        self.seed = seed
        self.without = without
        self.traces = traces
        self.clock = Clock(seed)
        self.dice = dice = self.clock.dice
        self.delays = dice.choice([[0.01], [0.001, 0.01, 0.1], [0.01, 0.1, 0.1, 1.5]])
        self.limit, self.drop_oldest = dice.choice([(1000, True)] * 3 + [(4, True), (4, False)])
        self.max_age = dice.choice([1000.0, 1000.0, 8.0])
        self.timeout = dice.choice([2.0, 5.0, 15.0])
        self.faults = [each for each in FAULTS if dice.random() < 0.3]
        self.resends = dice.random() < 0.3
        self.bus = Bus(self.clock, self.on)
        self.store = Store(self.clock)
        self.lives = self.links = self.tags = 0
        self._paths: dict[tuple[str, str], tuple[Path, Path]] = {}
        self.messages: dict[str, Message] = {}
        self.records: dict[str, Record] = {}
        self.count: Counter[str] = Counter()
        self.late: list[tuple[Record, Record, Device, bool]] = []
        self.wrong: list[tuple[str, str]] = []
        self.hubs: dict[str, Hub] = {}
        self.dead: list[Hub] = []
        self.is_quiet = False
        for name in HUBS:
            self.start(name)
        users = [f"u{number}" for number in range(dice.choice([1, 2]))]
        self.devices = [Device(self, user, number) for user in users for number in (0, 1)]
        self.users = users

    def on(self, rule: str) -> bool:
        return rule not in self.without

    def trace(self, *words: object) -> None:
        if self.traces:
            print(f"{self.clock.now:8.3f}", *words)

    def fault(self, kind: str, text: str) -> None:
        self.wrong.append((kind, text))
        self.trace("WRONG", kind, text)

    def paths(self, hub: Hub, server: str) -> tuple[Path, Path]:
        key = hub.name, server
        if key not in self._paths:
            self._paths[key] = Path(self.clock, self.delays), Path(self.clock, self.delays)
        return self._paths[key]

    def start(self, name: str) -> None:
        self.lives += 1
        self.hubs[name] = hub = Hub(self, name, self.lives)
        hub.spawn(self.sender(hub))

    # --- senders ---

    async def sender(self, hub: Hub) -> None:
        dice = self.dice
        await hub.sleep(dice.random() * 2)
        while not self.is_quiet:
            user = dice.choice(self.users)
            for _ in range(dice.choice([1, 1, 1, 4])):
                self.send(hub, user)
            await hub.sleep(dice.expovariate(1.2))

    def send(self, hub: Hub, user: str, is_probe: bool = False) -> Record:
        dice = self.dice
        number = len(self.records)
        timeout = 30.0 if is_probe else self.timeout
        message = Message(f"m{number}", user, hub.name, timeout)
        self.messages[message.id] = message
        record = self.records[message.id] = Record(message, hub.life, number)
        record.is_probe = is_probe
        self.trace(hub.name, "sends", message.id, user)
        self.give(hub, record)
        if not is_probe and dice.random() < 0.03:
            record.is_doubled = True
            self.give(dice.choice(list(self.hubs.values())), record)
        return record

    def give(self, hub: Hub, record: Record) -> None:
        if hub.is_dead or hub.is_frozen or hub.is_stopping:
            return
        dice = self.dice
        is_held = dice.random() < 0.7
        message = record.message._replace(origin=hub.name)
        pending = hub.send(message, is_held)
        if is_held:
            record.awaits.append((hub, pending))
            at = pending.born
            pending.end.then(lambda done: self.ended(hub, record, done.result(), at))
        if dice.random() < 0.5:
            hub.spawn(self.accept(hub, pending, record))

    async def accept(self, hub: Hub, pending: Pending, record: Record) -> None:
        if self.dice.random() < 0.5:
            await hub.sleep(self.dice.random())
        try:
            await hub.accepted(pending)
        except (Lost, Exception):
            return
        record.is_accepted = True

    def ended(self, hub: Hub, record: Record, outcome: str, sent_at: float) -> None:
        self.trace("await of", record.message.id, "at", hub.name, "ends:", outcome)
        if outcome not in ANSWERS and record.answered_at and not self.excused_end(record):
            self.fault("await failed, though answered", record.message.id)
        name = record.message.id
        # One that another hub had under way may end it, one of before may not.
        is_early = self.clock.now < sent_at + record.message.timeout
        if outcome == "timeout" and is_early and self.bus.failed_at.get(name, 0.0) < sent_at:
            self.fault("await ended by an earlier timeout", name)
        if outcome == "timeout" and self.resends and self.dice.random() < 0.5:
            record.is_doubled = True
            self.clock.at(self.dice.random() * 3, self.give, hub, record)

    # --- what hubs say ---

    def answered(self, hub: Hub, message: Message, outcome: str) -> None:
        record = self.records[message.id]
        self.trace(hub.name, "takes", outcome, "of", message.id)
        if not record.answered_at:
            record.answered_at = self.clock.now
            record.answered_by = hub

    def told(self, hub: Hub, message: Message, why: str) -> None:
        record = self.records[message.id]
        self.trace(hub.name, "tells", why, "of", message.id)
        is_attempt = (
            why == "timeout"
            and record.told
            and (self.clock.now - record.told[-1][0] >= message.timeout - 2 * max(self.delays))
        )
        if record.told and not (is_attempt or self.excused(record) or record.is_doubled):
            self.fault("told twice", f"{message.id} {record.told} {why} {hub.name}")
        if why != "failed" and record.answered_at and not self.excused_end(record):
            self.fault("told of an answered message", f"{message.id} {why}")
        record.told.append((self.clock.now, hub.name, why))

    def no_bus(self, message: Message) -> None:
        self.records[message.id].had_no_bus = True

    def not_stored(self, message: Message) -> None:
        self.records[message.id].was_not_stored = True

    def excused(self, record: Record) -> bool:
        """Whether a server had lost what is known of a message, or had not answered."""
        return record.was_lost or record.had_no_bus or "failover-bus" in self.faults

    def excused_end(self, record: Record) -> bool:
        """Whether a message may be told to have failed though a client has answered it."""
        if (
            self.excused(record)
            or record.is_doubled
            or record.answered_by.is_dead
            or record.message.id in self.store.drops
        ):
            return True
        # The answer is on its way to the bus, and the failure was there before it.
        message = record.message
        if any(each.endswith("-bus") or each == "freeze" for each in self.faults):
            return self.bus.first.get(message.id, ("", ""))[0] not in ANSWERS
        return self.clock.now - record.answered_at < 0.1 + 4 * max(self.delays)

    def failed(self, hub: Hub, message: Message) -> None:
        """A hub has given it up; it may come late."""
        self.records[message.id].is_late = True

    def check_order(self, device: Device, record: Record) -> None:
        """Each client gets the messages of one life of a hub in their order."""
        for each in reversed(device.view[:-1]):
            other = self.records[each]
            if other.life == record.life and not other.may_come_late():
                if other.seq > record.seq:
                    was_answered = record.answered_at > 0
                    self.late.append((record, other, device, was_answered))
                    self.trace("LATE", record.message.id, "after", each, "at", device.name)
                return

    def check_orders(self) -> None:
        for record, other, device, was_answered in self.late:
            if record.may_come_late() or other.may_come_late() or self.was_dropped(record):
                continue
            if was_answered:
                self.count["out of order, as answered already"] += 1
            else:
                text = f"{record.message.id} after {other.message.id} at {device.name}"
                self.fault("order", text)

    def was_dropped(self, record: Record) -> bool:
        return record.message.id in self.store.drops

    # --- faults ---

    def strike(self) -> None:
        if self.is_quiet:
            return
        self.clock.at(self.dice.expovariate(0.5), self.strike)
        if not self.faults:
            return
        name = self.dice.choice(self.faults)
        hub = self.dice.choice(list(self.hubs.values()))
        kind, _, server = name.partition("-")
        self.trace("FAULT", name, hub.name)
        self.count[name] += 1
        dice = self.dice
        if kind == "kill":
            self.kill(hub)
        elif kind == "stop":
            hub.is_stopping = True
            for device in self.devices:
                if device.client is not None and device.client.hub is hub:
                    device.leave(device.client, True)
            self.clock.at(2.0, self.kill, hub)
        elif kind == "freeze" and not hub.is_frozen:
            hub.freeze()
            self.clock.at(dice.choice([0.5, 4.0, 13.0]), self.thaw, hub)
        elif kind == "cut":
            for link in self.links_of(hub, server):
                link.cut()
        elif kind == "block":
            servers = (
                [server]
                if server == "store"
                else dice.choice([["bus"], ["words"], ["bus", "words"]])
            )
            ways, seconds = dice.choice([(0,), (1,), (0, 1)]), dice.choice([0.3, 3.0, 14.0])
            for each in servers:
                for way in ways:
                    self.paths(hub, each)[way].block(seconds)
        elif kind == "crash":
            (self.bus if server == "bus" else self.store).crash(dice.choice([0.0, 1.0, 6.0]))
        elif kind == "failover":
            of = self.bus if server == "bus" else self.store
            state = of.state()
            self.clock.at(dice.choice([0.01, 0.2, 1.0]), self.fail_over, of, state)

    def fail_over(self, server: Bus | Store, state: object) -> None:
        if isinstance(server, Store):
            before = server.ids()
            server.become(state)
            for each in sorted(before ^ server.ids()):
                self.records[each].was_lost = True
        else:
            server.become(state)
        server.crash(self.dice.choice([0.0, 1.0]))
        self.trace("failed over")

    def links_of(self, hub: Hub, server: str) -> list[object]:
        if server == "store":
            found = [hub.store.connection.link]
        else:
            found = [self.dice.choice([hub.bus.link, hub.subscription])]
        return [link for link in found if link is not None]

    def kill(self, hub: Hub) -> None:
        if hub.is_dead:
            return
        hub.is_dead = True
        self.dead.append(hub)
        for link in (hub.bus.link, hub.subscription, hub.store.connection.link):
            if link is not None:
                link.cut()
        self.clock.at(self.dice.choice([0.1, 1.0, 12.0]), self.revive, hub)

    def revive(self, hub: Hub) -> None:
        if self.hubs[hub.name] is hub:
            self.start(hub.name)

    def thaw(self, hub: Hub) -> None:
        if hub.is_frozen:
            hub.thaw()

    # --- the run ---

    def run(self) -> None:
        self.clock.at(2.0, self.strike)
        self.clock.run(CHAOS)
        self.is_quiet = True
        self.trace("QUIET")
        for paths in self._paths.values():
            for path in paths:
                path.blocked_until = 0.0
        for hub in list(self.hubs.values()):
            if hub.is_dead:
                self.revive(hub)
            hub.thaw()
        for device in self.devices:
            device.stays = True
        for record in list(self.records.values()) if self.resends else ():
            if not record.answered_at and any(why == "timeout" for _, _, why in record.told):
                record.is_doubled = True
                self.clock.at(5.0, self.give, self.hubs[record.message.origin], record)
        self.clock.run(40.0 + 80 * max(self.delays))
        self.check_elsewhere()
        self.check_awaits("await waits for a reconnection", True)
        for each in sorted(self.store.ids()):
            if self.bus.first.get(each, ("", ""))[0] in ANSWERS and not self.records[each].was_lost:
                self.count["settled, and stored until the next connection"] += 1
        self.probe()
        for device in self.devices:
            if device.client is not None:
                device.leave(device.client, True)
        self.clock.run(40.0 + 40 * max(self.delays))
        self.check_end()

    def check_elsewhere(self) -> None:
        here = {user: [] for user in self.users}
        for device in self.devices:
            assert device.client is not None
            hubs = here[device.user]
            if device.client.hub not in hubs:
                hubs.append(device.client.hub)
        for user, hubs in here.items():
            for hub in hubs:
                if len(hubs) > 1 and user not in hub.elsewhere:
                    self.fault("elsewhere", f"{user} at {hub.name}")
                if len(hubs) == 1 and user in hub.elsewhere:
                    self.count["elsewhere, though alone"] += 1

    def probe(self) -> None:
        """A message of each hub to each user, which nobody acknowledges for a while."""
        for device in self.devices:
            device.is_silent = True
        self.limit = 1000
        if self.dice.random() < 0.5:
            # No word gets through: the polls have to find them.
            for (_, server), paths in self._paths.items():
                for path in paths if server != "store" else ():
                    path.block(2.5)
        records = [self.send(hub, user, True) for hub in self.hubs.values() for user in self.users]
        self.clock.run(1.6 + 8 * max(self.delays))
        for record in records:
            for device in self.devices:
                if device.user == record.message.user and device not in record.seen:
                    self.fault("stuck", f"{record.message.id} to {device.name}")
        for device in self.devices:
            device.is_silent = False

    def check_awaits(self, kind: str, is_first: bool = False) -> None:
        for record in self.records.values():
            for hub, pending in record.awaits:
                # A hub that has given up its own copy does not see that another one sends it anew.
                is_its_own = not is_first or len({each.life for each, _ in record.awaits}) == 1
                if is_its_own and not hub.is_dead and not pending.is_over():
                    self.fault(kind, f"{record.message.id} at {hub.name} {pending.status}")

    def check_end(self) -> None:
        self.check_orders()
        self.check_awaits("await not ended")
        dead = {hub.life for hub in self.dead}
        for record in self.records.values():
            name = record.message.id
            is_dropped = self.store.drops.get(name)
            if record.is_accepted and not record.seen and not record.told:
                if record.was_lost or record.had_no_bus:
                    self.count["accepted, and lost by the store"] += 1
                elif {is_dropped, self.bus.first.get(name, ("", ""))[1]} & dead:
                    self.count["its failure known to a hub that died"] += 1
                else:
                    self.fault("accepted and not delivered", name)
        for name, (outcome, life) in self.bus.first.items():
            record = self.records[name]
            if not (outcome in ANSWERS or life in dead or record.told or record.answered_at):
                self.fault("nobody told", f"{name} {outcome} by {life}")
        for user, messages in self.store.messages.items():
            for each in messages:
                record = self.records[each]
                if record.was_lost:
                    self.count["left, as the store revived it"] += 1
                elif record.answered_at:
                    self.fault("answered and stored still", f"{each} of {user}")
                else:
                    self.fault("stored still", f"{each} of {user}")


def play(seed: int, without: frozenset[str] = frozenset(), traces: bool = False) -> World:
    """One run."""
    world = World(seed, without, traces)
    world.run()
    return world


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=200, help="how many runs")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--without", default="", help=f"rules to leave out: {', '.join(RULES)}")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    options = parser.parse_args(arguments)
    without = frozenset(filter(None, options.without.split(",")))
    if unknown := sorted(without - set(RULES)):
        parser.error(f"no rules: {', '.join(unknown)}; expected some of {', '.join(RULES)}")
    count: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    failed = 0
    for seed in range(options.first, options.first + options.seeds):
        world = play(seed, without, options.trace)
        count += world.count
        count["messages"] += len(world.records)
        count["accepted"] += sum(each.is_accepted for each in world.records.values())
        wrong.update(kind for kind, _ in world.wrong)
        if world.wrong:
            failed += 1
            kinds = dict(world.wrong)
            print(f"seed {seed} {','.join(world.faults)}: {kinds}")
    print(f"{options.seeds} runs, {failed} with faults: {dict(wrong)}")
    print({name: count[name] for name in sorted(count)})
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
