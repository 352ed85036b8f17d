"""A hub of the model of users (users.py): what delivery/ does today, and the protocol over hubs.

Names are those of wsc_fast/delivery where a part does the same: Pending, Mailbox, Replay, parked,
lapsed. Bounds are small, so that pages and windows matter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from trials.models.user_servers import ANSWERS, Full, Message, Stored
from trials.models.virtual import Future, Link, Lost, Path, Process

if TYPE_CHECKING:
    from trials.models.users import Client, World

# Seconds.
REFRESH = 3.0
CALL = 3.0  # a call of the bus
STORE_CALL = 2.5  # an attempt at the store
STORE_TIMEOUT = 5.0
POLL = 1.0
CHECK = 5.0
RETRY = 2.0
DELETE_AGAIN = 5.0
READ_AGAIN = 5.0
# Messages.
PAGE = 3
WINDOW = 4


class Pending:
    """A message that this hub sends until it is acknowledged."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.status = "pending"
        self.is_stored = False
        self.position = 0  # in the store, if it was read from there
        self.storing: Future[Any] | None = None
        self.was_refused = False
        self.may_be_stored = False  # nobody knows what became of an append
        self.is_held = False  # somebody awaits it here
        self.end: Future[str] = Future()
        self.born = self.began = self.deadline = 0.0
        self.timer = 0
        self.is_suspect = False  # the store has it no more: nobody gets it
        # The clients that got it from the store; None: all that were here got it.
        self.given: dict[Client, None] | None = None

    @property
    def id(self) -> str:
        return self.message.id

    def is_open(self) -> bool:
        return self.status == "pending"

    def is_over(self) -> bool:
        return self.end.is_done


class Mailbox:
    """The messages that one user has not acknowledged, as far as this hub has them."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.pending: dict[str, Pending] = {}
        self.parked: dict[str, Pending] = {}
        self.lapsed: dict[str, Pending] = {}
        self.clients: list[Client] = []
        self.replays: dict[Client, Replay] = {}
        # Messages whose end is being told, or that are being deleted.
        self.leaving: dict[str, None] = {}


class Over(Exception):
    """A replay has ended."""


class Replay:
    """Brings one client up to date: the store, then the line."""

    def __init__(
        self,
        hub: Hub,
        mailbox: Mailbox,
        client: Client,
        line: list[Pending],
        sent: list[Pending],
        from_store: bool,
        again: bool,
    ) -> None:
        self.hub = hub
        self.mailbox = mailbox
        self.client = client
        self.line = deque(line)
        self.later: dict[Pending, None] = {}
        self.sent = dict.fromkeys(sent)
        self.from_store = from_store
        self.again = again
        # Messages of the line that the store had before it was read: its pages have to bring them.
        self.of_store: dict[Pending, None] = {}
        self.is_reading = False
        self.is_over = False
        self.acknowledged: dict[str, None] = {}
        self.waiter: Future[None] | None = None

    def put(self, pending: Pending) -> None:
        self.line.append(pending)
        self.later[pending] = None

    def settled(self, pending: Pending, answered: bool) -> None:
        self.later.pop(pending, None)
        if answered:
            self.noted(pending.id)
        self.sent.pop(pending, None)
        self.wake()

    def noted(self, message_id: str) -> None:
        """It is acknowledged: a page that is under way may still hold it."""
        if self.is_reading:
            self.acknowledged[message_id] = None

    def wake(self) -> None:
        if self.waiter is not None:
            self.waiter.set(None)

    def stop(self) -> None:
        self.is_over = True
        self.wake()

    async def run(self) -> None:
        complete = True
        try:
            while self.from_store or self.line:
                if self.from_store:
                    self.from_store = False
                    complete = await self.read_store()
                    if not complete:
                        self.of_store.clear()
                else:
                    item = self.line[0]
                    if (
                        item in self.of_store
                        and item not in self.sent
                        and self.hub.on("store-line")
                    ):
                        self.hub.suspect(self.mailbox, item)
                    else:
                        await self.send(item)
                    self.check_over()
                    if self.line and self.line[0] is item:
                        self.line.popleft()
                        self.later.pop(item, None)
        except Over:
            return
        if not self.is_over:
            self.hub.caught_up(self, complete)

    def check_over(self) -> None:
        if self.is_over:
            raise Over

    async def send(self, pending: Pending) -> None:
        while pending.is_open() and pending not in self.sent and len(self.sent) >= WINDOW:
            self.waiter = Future()
            await self.waiter
            self.check_over()
        if pending.is_open() and pending not in self.sent:
            self.sent[pending] = None
            if pending.given is not None:
                pending.given[self.client] = None
            self.client.send(pending.message)
            self.hub.begin(pending)

    async def read_store(self) -> bool:
        self.is_reading = True
        try:
            return await self.read_pages()
        finally:
            self.is_reading = False

    async def read_pages(self) -> bool:
        hub, after, failures = self.hub, 0, 0

        def begins() -> None:
            if after == 0:
                self.of_store = dict.fromkeys(
                    each for each in self.line if each.is_stored and each not in self.later
                )

        while True:
            self.acknowledged.clear()
            try:
                page = await hub.store.read(self.mailbox.user, after, begins)
            except Lost:
                self.check_over()
                failures += 1
                if failures == 3:
                    return False
                await hub.sleep(0.2 * 2**failures)
                self.check_over()
                continue
            self.check_over()
            for stored in page:
                after = stored.position
                pending = hub.adopt(self, stored)
                if pending is not None and pending not in self.sent and pending not in self.later:
                    await self.send(pending)
                    self.check_over()
            if len(page) < PAGE:
                await hub.all_read(self)
                self.check_over()
                return True


class Connection:
    """The way of a hub to a server: one connection at a time, made anew when it breaks."""

    def __init__(self, hub: Hub, server: Any, paths: tuple[Path, Path], patience: float) -> None:
        self.hub = hub
        self.server = server
        self.paths = paths
        self.patience = patience
        self.link: Link | None = None
        self.greeting: Any = None
        self.number = 0
        self.up: Future[None] = Future()
        hub.spawn(self._run())

    async def _run(self) -> None:
        hub = self.hub
        while True:
            link = Link(hub, self.server, self.paths)
            try:
                self.greeting = await hub.within(self.patience, link.ask(self.server.hello))
            except Lost:
                link.give_up()
                await hub.sleep(0.1 + hub.clock.dice.random() * 0.3)
                continue
            self.number = hub.next_number()
            self.link = link
            self.up.set(None)
            await link.lost
            self.link, self.up = None, Future()

    async def ask(self, call: Callable[..., Any], *args: Any) -> Any:
        """The answer; raises Lost."""
        hub = self.hub
        if self.link is None:
            await hub.within(self.patience, self.up)
        link = self.link
        if link is None:
            raise Lost
        try:
            return await hub.within(self.patience, link.ask(call, *args))
        except Lost:
            link.give_up()
            raise


class StoreAccess:
    """The store as a hub has it: one batch of writes under way, each done once."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        world = hub.world
        self.server = world.store
        self.connection = Connection(hub, self.server, world.paths(hub, "store"), STORE_CALL)
        self.queue: deque[tuple[float, Future[Any], tuple[Any, ...]]] = deque()
        self.batch: list[tuple[float, Future[Any], tuple[Any, ...]]] = []
        self.number = self.heard = 0
        self.lane = hub.life

    def write(self, *operation: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.queue.append((self.hub.clock.now, future, operation))
        if not self.batch and len(self.queue) == 1:
            self.hub.spawn(self._write())
        return future

    async def _write(self) -> None:
        hub = self.hub
        while self.queue:
            self.batch, self.queue = list(self.queue), deque()
            self.number += 1
            operations = [each[2] for each in self.batch]
            until = hub.clock.now + STORE_TIMEOUT
            results: list[Any] | None = None
            while results is None and hub.clock.now < until:
                try:
                    results = await self.connection.ask(
                        self.server.write, self.lane, self.number, self.heard, operations
                    )
                except Lost:
                    await hub.sleep(0.1)
                else:
                    self.heard = self.number
            batch, self.batch = self.batch, []
            for at, (_, future, _) in enumerate(batch):
                if results is None:
                    future.fail(Lost())
                elif isinstance(results[at], Exception):
                    future.fail(results[at])
                else:
                    future.set(results[at])

    async def read(self, user: str, after: int, begins: Callable[[], object]) -> list[Stored]:
        """A page, with all that was appended before; calls when it is asked for."""
        for _, future, _ in [*self.batch, *self.queue][-1:]:
            done: Future[None] = Future()
            future.then(lambda _, done=done: done.set(None))  # type: ignore[misc]
            await done
        begins()
        return await self.connection.ask(self.server.read, user, after, PAGE)  # type: ignore[no-any-return]


class Hub(Process):
    """One life of a hub."""

    def __init__(self, world: World, name: str, life: int) -> None:
        super().__init__(world.clock)
        self.world = world
        self.name = name
        self.life = f"{name}{life}"
        self.on = world.on
        self.numbers = 0
        self.mailboxes: dict[str, Mailbox] = {}
        self.elsewhere: dict[str, int] = {}
        self.entries: dict[str, int] = {}
        self.dirty: dict[str, None] = {}
        self.incarnation = ""
        self.incarnations = 0
        self.own_dead: list[str] = []
        self.dead: list[str] = []
        self.run = 0
        self.wake: Future[None] = Future()
        self.telling: dict[str, bool] = {}
        self.behind: dict[Client, None] = {}
        self.is_stopping = False
        self.subscription: Link | None = None
        self.is_subscribed = False
        self.bus = Connection(self, world.bus, world.paths(self, "bus"), CALL)
        self.store = StoreAccess(self)
        for task in (self.directory(), self.inbox(), self.poll(), self.check(), self.expire()):
            self.spawn(task)

    def next_number(self) -> int:
        self.world.links += 1
        return self.world.links

    def mailbox(self, user: str) -> Mailbox:
        if user not in self.mailboxes:
            self.mailboxes[user] = Mailbox(user)
        return self.mailboxes[user]

    # --- directory and inbox (rule 1) ---

    async def directory(self) -> None:
        while True:
            if self.bus.link is None:
                await self.bus.up
            link, number = self.bus.link, self.bus.number
            if link is None:
                continue
            try:
                await self.hold(link, number, self.bus.greeting)
            except Lost:
                link.give_up()
                await self.sleep(0.1)

    async def hold(self, link: Link, number: int, run: int) -> None:
        bus = self.world.bus

        async def ask(call: Callable[..., Any], *args: Any) -> Any:
            return await self.within(CALL, link.ask(call, self.incarnation, number, *args))

        async def lease(new: bool) -> bool:
            dead = await ask(bus.lease, new)
            if dead is None:
                return False
            self.dead = [each for each in dead if each not in self.own_dead]
            return True

        async def begin() -> None:
            if self.incarnation:
                self.own_dead.append(self.incarnation)
            self.incarnations += 1
            self.incarnation = f"{self.name}.{self.life}.{self.incarnations}"
            if self.on("numbers"):
                self.elsewhere = dict.fromkeys(self.elsewhere, 0)
            self.dirty.update(dict.fromkeys(self.entries))
            await lease(True)

        if self.run != run:
            self.run = run
            await begin()
        elif not await lease(False):
            await begin()
        renewed = self.clock.now
        while not link.lost.is_done:
            self.wake = Future()
            if self.dirty:
                page, self.dirty = list(self.dirty), {}
                entries = [(user, self.entries.get(user, 0)) for user in page]
                try:
                    found = await ask(bus.enter, entries)
                except Lost:
                    self.dirty = dict.fromkeys(page) | self.dirty
                    raise
                if found is None:
                    self.dirty = dict.fromkeys(page) | self.dirty
                    await begin()
                    continue
                self.are_elsewhere(found)
            elif self.own_dead:
                await ask(bus.reap, self.own_dead[-1], True)
                self.own_dead.pop()
            elif self.dead and self.clock.now - renewed < REFRESH:
                await ask(bus.reap, self.dead.pop(), False)
            elif self.clock.now - renewed < REFRESH:
                self.later(REFRESH + 0.001 - (self.clock.now - renewed), self.wake.set, None)
                link.lost.then(self.wake.set)
                await self.wake
            if self.clock.now - renewed >= REFRESH:
                renewed = self.clock.now
                if not await lease(False):
                    await begin()

    def enter(self, user: str) -> None:
        """The number of a user's clients here has changed."""
        count = len(self.mailbox(user).clients)
        if count:
            self.entries[user] = count
        else:
            self.entries.pop(user, None)
            self.elsewhere.pop(user, None)
        self.dirty[user] = None
        self.wake.set(None)

    def are_elsewhere(self, found: list[tuple[str, int]]) -> None:
        for user, number in found:
            if user not in self.entries:
                continue
            is_new = user not in self.elsewhere
            self.elsewhere[user] = max(number, self.elsewhere.get(user, 0))
            if is_new:
                self.append_all(self.mailbox(user))

    async def inbox(self) -> None:
        while True:
            link = Link(self, self.world.bus, self.world.paths(self, "words"), self.hear)
            try:
                await self.within(CALL, link.ask(self.world.bus.subscribe, self.name, link))
                self.subscription, self.is_subscribed = link, True
                self.spawn(self.ask_elsewhere())
                while True:
                    await self.sleep(2.0)
                    await self.within(CALL, link.ask(self.world.bus.hello))
            except Lost:
                self.is_subscribed = False
                link.give_up()
                await self.sleep(0.1)

    async def ask_elsewhere(self) -> None:
        """After each subscription, until it is answered: words may have been lost before."""
        link = self.subscription
        while link is self.subscription and not (link is None or link.lost.is_done):
            users = list(self.entries)
            try:
                found = await self.bus.ask(self.world.bus.ask, self.incarnation, users)
            except Lost:
                await self.sleep(0.2)
            else:
                self.are_elsewhere(found)
                return

    def hear(self, link: Link, word: tuple[Any, ...]) -> None:
        if link is not self.subscription:
            return
        if word[0] == "also":
            self.are_elsewhere([word[1:]])  # type: ignore[list-item]
        elif word[0] == "alone":
            _, user, number = word
            if not self.on("numbers") or number > self.elsewhere.get(user, 0):
                self.elsewhere.pop(user, None)
        elif word[0] == "look" and self.on("look"):
            self.look(word[1])
        elif word[0] == "settled":
            self.hear_settled(word[1], word[2])

    # --- sending (rule 2) ---

    def send(self, message: Message, is_held: bool) -> Pending:
        mailbox = self.mailbox(message.user)
        pending = mailbox.parked.get(message.id) or mailbox.pending.get(message.id)
        if pending is not None:
            pending.is_held |= is_held
            return pending
        pending = Pending(message)
        pending.born = self.clock.now
        pending.is_held = is_held
        if message.id in mailbox.lapsed and self.on("anew"):
            del mailbox.lapsed[message.id]
            pending.is_stored = True
        mailbox.pending[message.id] = pending
        if mailbox.clients:
            self.send_live(mailbox, pending)
            if message.user in self.elsewhere:
                self.append_all(mailbox)
        else:
            self.park(mailbox)
        return pending

    async def store_anew(self, pending: Pending) -> None:
        """It has failed before, and is in the store still: it goes to the end, where all look."""
        self.store.write("delete", pending.message.user, [pending.id])
        if not pending.is_over():
            self.append(pending)

    def send_live(self, mailbox: Mailbox, pending: Pending) -> None:
        for client in mailbox.clients:
            replay = mailbox.replays.get(client)
            if replay is not None:
                replay.put(pending)
            else:
                client.send(pending.message)
        self.begin(pending)

    def begin(self, pending: Pending) -> None:
        """Its time runs from the first attempt to send it."""
        if not pending.deadline:
            pending.began = self.clock.now
            pending.deadline = self.clock.now + pending.message.timeout
            self.schedule(pending)

    def schedule(self, pending: Pending) -> None:
        pending.timer += 1
        delay = min(RETRY, pending.deadline - self.clock.now)
        self.later(delay, self.due, pending, pending.timer)

    def renew(self, pending: Pending) -> None:
        pending.timer += 1
        pending.deadline = 0.0

    def due(self, pending: Pending, timer: int) -> None:
        if timer != pending.timer or not pending.is_open():
            return
        mailbox = self.mailbox(pending.message.user)
        if self.clock.now >= pending.deadline - 1e-9:
            self.time_out(mailbox, pending)
            return
        for client in () if pending.is_suspect else mailbox.clients:
            replay = mailbox.replays.get(client)
            if replay is not None and pending not in replay.sent:
                continue
            if self.on("given") and pending.given is not None and client not in pending.given:
                continue
            client.send(pending.message)
        self.schedule(pending)

    # --- storing ---

    def append(self, pending: Pending) -> None:
        message = pending.message
        world = self.world
        pending.storing = storing = self.store.write(
            "append", message, world.limit, world.drop_oldest
        )
        storing.then(lambda done: self.appended(pending, done))

    def append_all(self, mailbox: Mailbox) -> None:
        """All that is pending and not stored, in order."""
        for pending in list(mailbox.pending.values()):
            if not pending.is_stored and pending.storing is None and not pending.was_refused:
                self.append(pending)

    def appended(self, pending: Pending, done: Future[Any]) -> None:
        pending.storing = None
        message = pending.message
        mailbox = self.mailbox(message.user)
        is_there = done.error is None and isinstance(done.result(), Stored)
        if is_there and self.on("anew") and not pending.is_over():
            self.spawn(self.store_anew(pending))
            pending.storing = Future()
            return
        if done.error is None:
            result = done.result()
            pending.is_stored = True
            for dropped in result if isinstance(result, list) else ():
                self.spawn(self.dropped(dropped, "dropped"))
            self.tell_look(message.user)
            if pending.status in ANSWERS:
                self.spawn(self.settle_out(pending.message, pending.status))
                return
        else:
            self.world.not_stored(message)
            pending.was_refused = isinstance(done.error, Full)
            pending.may_be_stored = not pending.was_refused
        if pending.status != "stored":
            return
        can_try_again = not isinstance(done.error, Full)
        if can_try_again and mailbox.clients and mailbox.parked.get(pending.id) is pending:
            self.unpark(mailbox, pending)
        elif done.error is not None:
            mailbox.parked.pop(pending.id, None)
            if can_try_again and self.on("settle-errors"):
                self.spawn(self.settle_failure(mailbox, pending, "error"))
            else:
                self.finish(pending, "error")
                self.world.told(self, message, "error")
        elif not pending.is_held and mailbox.parked.get(pending.id) is pending:
            del mailbox.parked[pending.id]

    async def accepted(self, pending: Pending) -> None:
        """Returns once it is stored or acknowledged; raises Lost."""
        mailbox = self.mailbox(pending.message.user)
        if not pending.is_stored and pending.storing is None and not pending.is_over():
            for each in list(mailbox.pending.values()):
                if not each.is_stored and each.storing is None and not each.is_over():
                    self.append(each)
                if each is pending:
                    break
        storing = pending.storing
        if storing is not None and not pending.is_over():
            either: Future[None] = Future()
            storing.then(lambda _: either.set(None))
            pending.end.then(lambda _: either.set(None))
            await either
            if storing.is_done:
                storing.result()
                return
        if not pending.is_stored and (await pending.end) != "confirmed":
            raise Lost

    def park(self, mailbox: Mailbox) -> None:
        """The user is away from here: what is pending moves to the store."""
        for pending in list(mailbox.pending.values()):
            if not pending.is_stored and pending.storing is None:
                self.append(pending)
            self.renew(pending)
            del mailbox.pending[pending.id]
            pending.status = "stored"
            if pending.is_held or pending.storing is not None:
                mailbox.parked[pending.id] = pending
            pending.given = {}

    def unpark(self, mailbox: Mailbox, pending: Pending) -> None:
        """Its user is back: it is sent from memory."""
        mailbox.parked.pop(pending.id, None)
        pending.status = "pending"
        pending.given = None
        mailbox.pending[pending.id] = pending
        self.send_live(mailbox, pending)
        for replay in mailbox.replays.values():
            replay.later.pop(pending, None)

    # --- looking (rule 3) ---

    def tell_look(self, user: str) -> None:
        """Tells the user's other hubs; one call at a time."""
        if user in self.telling:
            self.telling[user] = True
            return
        self.telling[user] = False
        self.spawn(self.tell(user))

    async def tell(self, user: str) -> None:
        again = True
        while again:
            self.telling[user] = False
            with suppress(Lost):  # the polls find it
                await self.bus.ask(self.world.bus.tell, self.name, user, ("look", user))
            again = self.telling[user]
        del self.telling[user]

    def look(self, user: str) -> None:
        """Others have stored messages for a user."""
        for client in list(self.mailbox(user).clients):
            self.look_again(client, False)

    def look_again(self, client: Client, again: bool) -> None:
        mailbox = self.mailbox(client.user)
        sent = [
            each
            for each in mailbox.pending.values()
            if not self.on("given") or each.given is None or client in each.given
        ]
        self.catch_up(mailbox, client, [], sent, again)

    def catch_up(
        self,
        mailbox: Mailbox,
        client: Client,
        line: list[Pending],
        sent: list[Pending],
        again: bool,
    ) -> None:
        replay = mailbox.replays.get(client)
        if replay is not None:
            replay.from_store = True
            replay.again |= again
            return
        replay = mailbox.replays[client] = Replay(self, mailbox, client, line, sent, True, again)
        self.spawn(replay.run())

    def caught_up(self, replay: Replay, complete: bool) -> None:
        del replay.mailbox.replays[replay.client]
        if not complete:
            self.behind[replay.client] = None
            self.later(READ_AGAIN, self.read_again, replay.client)

    def read_again(self, client: Client) -> None:
        if self.behind.pop(client, 0) is None and client.is_here:
            self.look_again(client, True)

    async def poll(self) -> None:
        after = -1
        while True:
            try:
                after, users = await self.store.connection.ask(
                    self.world.store.appended, self.store.lane, after
                )
            except Lost:
                users = []
            if self.on("poll"):
                for user in users:
                    self.look(user)
            await self.sleep(POLL)

    def adopt(self, replay: Replay, stored: Stored) -> Pending | None:
        """Makes a message of the store pending, unless it is or has been acknowledged."""
        mailbox, message = replay.mailbox, stored.message
        pending = mailbox.pending.get(message.id)
        if pending is not None:
            pending.is_stored = True
            return pending
        if message.id in replay.acknowledged or message.id in mailbox.leaving:
            return None
        if not replay.again and message.id in mailbox.lapsed:
            position = mailbox.lapsed[message.id].position
            if not (self.on("anew") and 0 < position < stored.position):
                return None
        mailbox.lapsed.pop(message.id, None)
        pending = mailbox.parked.pop(message.id, None)
        if pending is None:
            pending = Pending(message)
            pending.born = self.clock.now
        pending.is_stored = True
        pending.position = stored.position
        pending.status = "pending"
        pending.given = {}
        mailbox.pending[message.id] = pending
        return pending

    def suspect(self, mailbox: Mailbox, pending: Pending) -> None:
        """It is pending here, and the store that had it has it no more."""
        if pending.is_open() and not pending.is_suspect:
            pending.is_suspect = True
            self.spawn(self.check_user(mailbox, [pending.id]))

    async def all_read(self, replay: Replay) -> None:
        """The store holds nothing more: what is parked still has gone from it."""
        mailbox = replay.mailbox
        gone = [
            each
            for each in mailbox.parked.values()
            if each.storing is None and each.status == "stored"
        ]
        if gone and self.on("ask-all-read"):
            await self.check_user(mailbox, [each.id for each in gone])
            return
        for pending in gone:
            pending.is_stored = False
            self.unpark(mailbox, pending)

    # --- clients come and go ---

    def entered(self, client: Client) -> None:
        mailbox = self.mailbox(client.user)
        mailbox.clients.append(client)
        self.enter(client.user)
        self.catch_up(mailbox, client, list(mailbox.pending.values()), [], True)

    def left(self, client: Client) -> None:
        mailbox = self.mailbox(client.user)
        if client not in mailbox.clients:
            return
        mailbox.clients.remove(client)
        client.is_here = False
        self.behind.pop(client, None)
        replay = mailbox.replays.pop(client, None)
        if replay is not None:
            replay.stop()
        self.enter(client.user)
        if not mailbox.clients:
            mailbox.lapsed.clear()
            self.park(mailbox)

    # --- ends (rules 4 to 6) ---

    def take(self, client: Client, message_id: str, outcome: str) -> None:
        """An acknowledgement, or a refusal, has come from a client."""
        mailbox = self.mailbox(client.user)
        pending = mailbox.pending.get(message_id)
        if pending is None:
            lapsed = mailbox.lapsed.pop(message_id, None)
            if lapsed is not None:
                if not lapsed.is_over():
                    self.finish(lapsed, outcome)
                for replay in mailbox.replays.values():
                    replay.noted(message_id)
                message = self.world.messages[message_id]
                self.spawn(self.settle_out(message, outcome))
                self.world.answered(self, message, outcome)
            return
        self.world.answered(self, pending.message, outcome)
        is_stored = pending.is_stored
        self.settle(mailbox, pending, outcome)
        if is_stored:
            self.spawn(self.settle_out(pending.message, outcome))
        elif outcome == "failed" and pending.storing is None:
            self.world.told(self, pending.message, "failed")

    def settle(self, mailbox: Mailbox, pending: Pending, status: str) -> None:
        """The end of a message here: out of its mailbox, and its waiters told."""
        answered = status in ANSWERS
        if mailbox.pending.get(pending.id) is pending:
            del mailbox.pending[pending.id]
            for replay in mailbox.replays.values():
                replay.settled(pending, answered)
        elif mailbox.parked.get(pending.id) is pending:
            del mailbox.parked[pending.id]
        self.finish(pending, status)

    def finish(self, pending: Pending, status: str) -> None:
        pending.status = status
        pending.timer += 1
        pending.end.set(status)

    async def settle_bus(self, message: Message, outcome: str, since: float) -> tuple[str, bool]:
        """Asks the bus to note an outcome; twice, where nobody knows whether it did."""
        world = self.world
        world.tags += 1
        tag = f"{self.life} {world.tags if self.on('tag') else ''}"
        for _ in range(2):
            try:
                return await self.bus.ask(  # type: ignore[no-any-return]
                    world.bus.settle, self.name, message, outcome, tag, self.clock.now - since
                )
            except Lost:
                world.no_bus(message)
        return outcome, True

    async def settle_out(self, message: Message, outcome: str) -> None:
        """A client has answered a message that is stored: the bus first, then the store."""
        mailbox = self.mailbox(message.user)
        mailbox.leaving[message.id] = None
        if self.on("settle-first"):
            _, is_first = await self.settle_bus(message, outcome, 0.0)
            await self.delete(message)
        else:
            await self.delete(message)
            _, is_first = await self.settle_bus(message, outcome, 0.0)
        if outcome == "failed" and is_first:
            self.world.told(self, message, "failed")

    async def delete(self, message: Message) -> None:
        mailbox = self.mailbox(message.user)
        mailbox.leaving[message.id] = None
        while True:
            try:
                await self.store.write("delete", message.user, [message.id])
            except Lost:
                await self.sleep(DELETE_AGAIN)
            else:
                break
        mailbox.leaving.pop(message.id, None)

    def time_out(self, mailbox: Mailbox, pending: Pending) -> None:
        self.world.failed(self, pending.message)
        if not pending.is_stored and pending.storing is None and not pending.may_be_stored:
            self.settle(mailbox, pending, "timeout")
            self.world.told(self, pending.message, "timeout")
            return
        del mailbox.pending[pending.id]
        mailbox.lapsed[pending.id] = pending
        pending.status = "timeout"
        for replay in mailbox.replays.values():
            replay.settled(pending, False)
        self.spawn(self.settle_failure(mailbox, pending, "timeout"))

    async def settle_failure(self, mailbox: Mailbox, pending: Pending, outcome: str) -> None:
        """The failure is told by one hub, unless the message is answered meanwhile."""
        since = pending.began if outcome == "timeout" else 0.0
        held, is_first = await self.settle_bus(pending.message, outcome, since)
        outcome = held if held in ANSWERS else outcome
        if not pending.is_over():
            self.settle(mailbox, pending, outcome)
        if is_first and pending.status not in ANSWERS:
            self.world.told(self, pending.message, outcome)

    async def dropped(self, message: Message, why: str) -> None:
        """The store has let go of a message, by this hub's doing."""
        is_first = True
        if self.on("settle-drops"):
            _, is_first = await self.settle_bus(message, why, 0.0)
        mailbox = self.mailbox(message.user)
        pending = mailbox.parked.get(message.id) or mailbox.pending.get(message.id)
        if pending is not None:
            self.settle(mailbox, pending, why)
        if is_first:
            self.world.told(self, message, why)

    def hear_settled(self, message: Message, outcome: str) -> None:
        mailbox = self.mailbox(message.user)
        if outcome in ANSWERS:
            mailbox.lapsed.pop(message.id, None)
            if self.on("note-reading"):
                for replay in mailbox.replays.values():
                    replay.noted(message.id)
        pending = mailbox.pending.get(message.id)
        if pending is not None and outcome == "timeout":
            return  # it has a timer of its own
        pending = pending or mailbox.parked.get(message.id)
        if pending is None:
            return
        if pending.is_stored or (pending.storing is not None and outcome in ANSWERS):
            self.settle(mailbox, pending, outcome)
            if outcome in ANSWERS and self.on("delete-by-all"):
                self.spawn(self.delete(message))

    async def check(self) -> None:
        while True:
            await self.sleep(CHECK)
            if not self.on("check"):
                continue
            for mailbox in list(self.mailboxes.values()):
                ids = [
                    each.id
                    for each in (*mailbox.parked.values(), *mailbox.pending.values())
                    if each.is_stored
                ]
                if ids:
                    await self.check_user(mailbox, ids)

    async def check_user(self, mailbox: Mailbox, ids: list[str]) -> None:
        """Looks whether the store holds these still, and what the bus knows of them."""
        world, user, asked_at = self.world, mailbox.user, self.clock.now
        asked = [mailbox.parked.get(each) or mailbox.pending.get(each) for each in ids]
        try:
            if self.on("missing-first"):
                missing = await self.store.connection.ask(world.store.missing, user, ids)
                outcomes = await self.bus.ask(world.bus.outcomes_of, user, ids)
            else:
                outcomes = await self.bus.ask(world.bus.outcomes_of, user, ids)
                missing = await self.store.connection.ask(world.store.missing, user, ids)
        except Lost:
            return
        for pending in asked:
            if pending is None or pending.is_over() or not pending.is_stored:
                continue
            outcome, age = outcomes.get(pending.id, ("", 0.0))
            is_old = age > asked_at - pending.born and self.on("age")
            if outcome and (outcome in ANSWERS or not is_old):
                self.hear_settled(pending.message, outcome)
            elif pending.id in missing and pending.id not in mailbox.leaving:
                self.spawn(self.settle_failure(mailbox, pending, "gone"))

    async def expire(self) -> None:
        while True:
            await self.sleep(3.0)
            before = self.clock.now - self.world.max_age
            try:
                found = await self.store.write("expire", before)
            except Lost:
                continue
            for message in found:
                await self.dropped(message, "age")
