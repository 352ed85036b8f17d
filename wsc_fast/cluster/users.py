"""The users of this hub, as the other hubs on the bus know of them, and of what is sent to them.

Each hub enters its users in the directory of the bus. It knows which of them are on other hubs as
well: the bus says so when one is entered, and other hubs say so by words (words.py). A message to a
user goes to the clients here at once, and to the other hubs that have him by a word. A message with
acknowledgement goes by the offline store: a word has the other hubs look there.

A word may be lost with a connection. So nothing that was promised hangs on one: hubs look at the
store each second without a word, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import msgspec

from wsc_fast._core.connection import Client
from wsc_fast._core.engine import Engine
from wsc_fast.bus.base import EVERYBODY, Bus, Change, Outcome
from wsc_fast.bus.base import Word as Envelope
from wsc_fast.cluster import words
from wsc_fast.cluster.counters import Counters
from wsc_fast.cluster.hub_questions import HubQuestions
from wsc_fast.cluster.questions import Questions, Value
from wsc_fast.cluster.telling import Teller
from wsc_fast.cluster.user_bound import PerUser, UserBound
from wsc_fast.delivery.others import Ended
from wsc_fast.errors import (
    BusError,
    BusUnavailableError,
    ClientNotFoundError,
    UserOfflineError,
    ValidationError,
)
from wsc_fast.log import log
from wsc_fast.messages import HubMessage, decode_hub_message, message_of, payload_of
from wsc_fast.turns import BUDGET

# Users of one question whether they are elsewhere.
USERS_AT_ONCE = 500
# Seconds between two questions whether users who were elsewhere still are.
ASK_EVERY = 30.0


class Deliveries(Protocol):
    """The interface that this needs of the hub's deliveries."""

    def deliver(self, user_id: str, data: bytes, priority: int) -> None:
        """A HubMessage of another hub, for the clients here."""

    async def send_anywhere(self, user_id: str, message: HubMessage) -> tuple[int, int]:
        """Sends a message to a user; returns the clients here, and the other hubs that got it."""

    def deliver_to_client(self, client_id: str, message: str | bytes, key: str | None) -> None:
        """A message of another hub, for one client."""

    def send_failed(
        self,
        message: HubMessage | str | bytes,
        recipient: str,
        error: Exception,
        *,
        to_client: bool = False,
    ) -> None:
        """A message did not reach another hub; the recipient is a user, or a client."""

    def look(self, mailbox: str) -> None:
        """Another hub has stored a message."""

    def settled(self, mailbox: str, message_id: str, outcome: str, text: str) -> None:
        """A message has ended on another hub."""

    def spread(self, user_id: str) -> None:
        """A user is on another hub as well: what waits for him goes into the store."""


@dataclass(frozen=True, slots=True)
class Needs:
    """The things that this needs of its hub.

    Attributes:
        engine, counters: of the hub.
        bus: the bus, once it is open; None before and after.
        name: of the hub on the bus.
        deliveries: of the hub.
        disconnect: closes the clients of a user here; returns their number.
        one_machine: whether all hubs of the bus are on one machine.
        per_user: the bound on the connections of a user.
    """

    engine: Engine
    counters: Counters
    bus: Callable[[], Bus | None]
    name: Callable[[], str]
    deliveries: Deliveries
    disconnect: Callable[[str, int, str], int]
    one_machine: Callable[[], bool]
    per_user: PerUser


class Users:
    """The users of one hub: `runtime.callbacks.ClientWatcher`.

    Args:
        needs: of the hub.

    Attributes:
        elsewhere: users who are here and on other hubs.
        hub_questions: questions of hubs about themselves, which come by the same words.

    Thread-safety: the loop's thread.
    """

    def __init__(self, needs: Needs) -> None:
        self._needs = needs
        self._teller = Teller(needs.bus, needs.counters)
        # By user, his clients here.
        self._clients: dict[str, int] = {}
        self.elsewhere: set[str] = set()
        # By user, when he was last said to be elsewhere: the number of times that anybody was.
        self._said: dict[str, int] = {}
        self._times = 0
        # Users who have come elsewhere, and whose messages are not stored yet.
        self._to_spread: dict[str, None] = {}
        self._spreads = False
        self._asked = 0.0
        # Mailboxes of which other hubs are told in this tick.
        self._looks: set[str] = set()
        self._resync: asyncio.Task[None] | None = None
        self._questions = Questions(self._teller)
        self._bound = UserBound(
            needs.per_user, self._questions, needs.bus, needs.name, self._tell_hub
        )
        self.hub_questions: HubQuestions = HubQuestions(needs.name, self._teller)
        self._number = 0  # of outcomes that this hub has told

    # --- who is here ---

    def connected(self, client: Client) -> None:
        """See `ClientWatcher`."""
        self._change(client.user_id, 1)
        if self._bound.concerns():
            self._teller.run(self._bound.look(client))

    def disconnected(self, client: Client) -> None:
        """See `ClientWatcher`."""
        self._change(client.user_id, -1)

    def _change(self, user_id: str, more: int) -> None:
        clients = self._clients.get(user_id, 0) + more
        if clients > 0:
            self._clients[user_id] = clients
        else:
            self._clients.pop(user_id, None)
            self._not_elsewhere(user_id)
        self._needs.counters.presence_changes += 1
        bus = self._needs.bus()
        if bus is not None:
            bus.directory([Change(EVERYBODY, user_id, max(clients, 0))])

    def opened(self, bus: Bus) -> None:
        """The bus is open; clients may have come before."""
        bus.directory([Change(EVERYBODY, user, count) for user, count in self._clients.items()])

    # --- who is elsewhere ---

    def entered_elsewhere(self, users: Iterable[str]) -> None:
        """See `Handler.elsewhere`."""
        for user_id in users:
            if user_id not in self._clients:
                continue
            self._times += 1
            self._said[user_id] = self._times
            if user_id not in self.elsewhere:
                self.elsewhere.add(user_id)
                self._to_spread[user_id] = None
        if self._to_spread and not self._spreads:
            self._spread_some()

    def _spread_some(self) -> None:
        """Stores what waits for users who are elsewhere, of some in one turn of the loop."""
        until = time.perf_counter() + BUDGET
        while self._to_spread and time.perf_counter() < until:
            user_id = next(iter(self._to_spread))
            del self._to_spread[user_id]
            if user_id in self.elsewhere:
                self._needs.deliveries.spread(user_id)
        loop = self._needs.engine.loop
        self._spreads = bool(self._to_spread) and loop is not None
        if self._spreads and loop is not None:
            loop.call_soon(self._spread_some)

    def _not_elsewhere(self, user_id: str) -> None:
        self.elsewhere.discard(user_id)
        self._said.pop(user_id, None)

    def missed(self) -> None:
        """See `Handler.words_missed`."""
        self._ask_about(list(self._clients))

    def look(self, now: float) -> None:
        """Asks of the users who were elsewhere whether they still are; to be called each second.

        Args:
            now: on the loop's clock.
        """
        if now - self._asked >= ASK_EVERY and (self._resync is None or self._resync.done()):
            self._asked = now
            self._ask_about(list(self.elsewhere))

    def _ask_about(self, users: list[str]) -> None:
        loop = self._needs.engine.loop
        if loop is None or not users:
            return
        if self._resync is not None:
            self._resync.cancel()
        self._resync = loop.create_task(self._ask(users))

    async def _ask(self, users: list[str]) -> None:
        for start in range(0, len(users), USERS_AT_ONCE):
            page = users[start : start + USERS_AT_ONCE]
            bus, before = self._needs.bus(), self._times
            if bus is None:
                return
            try:
                found = await bus.elsewhere(page)
            except BusError:
                return  # the next connection asks again
            self.entered_elsewhere(found)
            for user_id in page:
                # One who was said to be elsewhere meanwhile may have come there meanwhile.
                if self._said.get(user_id, 0) <= before:
                    self._not_elsewhere(user_id)

    # --- words that come ---

    def word(self, data: bytes) -> None:
        """See `Handler.word`."""
        counters = self._needs.counters
        try:
            word = words.decode(data)
        except ValidationError as error:
            counters.poisoned += 1
            log.warning(
                "bytes on the bus that no hub has written are left out: %s",
                error,
                extra={"event": "poisoned_word"},
            )
            return
        counters.words_received += 1
        deliveries = self._needs.deliveries
        match word:
            case words.UserMessage():
                deliveries.deliver(word.user, bytes(word.message), word.priority)
            case words.Look():
                deliveries.look(word.mailbox)
            case words.Settled():
                deliveries.settled(word.mailbox, word.message_id, word.outcome, word.text)
            case words.Also():
                self.entered_elsewhere([word.user])
            case words.ClientMessage():
                message = word.text if word.text is not None else word.data or b""
                deliveries.deliver_to_client(word.client, message, word.key)
            case words.Disconnect():
                self._disconnect_here(word)
            case words.Ages():
                self._answer(word.hub, word.number, self._bound.ages(word.user))
            case words.CloseClient():
                self._bound.close(word.user, word.client)
            case words.Answer():
                self._questions.answered(word)
            case words.HubQuestion():
                self.hub_questions.asked(word)
            case words.HubReply():
                self.hub_questions.replied(word)

    def _disconnect_here(self, word: words.Disconnect) -> None:
        try:
            clients = self._needs.disconnect(word.user, word.code, word.reason)
        except ValidationError as error:
            log.warning("a word to disconnect a user is left out: %s", error)
            clients = 0
        if word.hub:
            self._answer(word.hub, word.number, clients)

    def _answer(self, hub: str, number: int, value: Value) -> None:
        self._tell_hub(hub, words.Answer(number, self._needs.name(), value))

    def _tell_hub(self, hub: str, word: words.AnyWord) -> None:
        """Sends a word that may come twice; the hub that asks gives up after a time."""
        self._teller.tell(Envelope("", words.encode(word), hub), again=True)

    # --- messages without acknowledgement ---

    def relay(self, user_id: str, data: bytes, priority: int) -> None:
        """Sends a HubMessage to the other hubs that have a user; the clients here have it.

        Args:
            user_id: the id of the user.
            data: the HubMessage as JSON.
            priority: of it.

        Raises:
            ValidationError: it is too large for a bus.
        """
        told = partial(self._relayed, user_id, data, user_id in self._clients)
        self._tell(user_id, words.UserMessage(user_id, priority, msgspec.Raw(data)), False, told)

    def _relayed(
        self, user_id: str, data: bytes, here: bool, count: int, error: Exception | None
    ) -> None:
        if error is None and count == 0 and not here:
            error = UserOfflineError(f"user {user_id!a} has no connected client on any hub")
        if error is not None:
            self._needs.deliveries.send_failed(decode_hub_message(data), user_id, error)

    async def send(self, user_id: str, data: bytes, priority: int) -> int:
        """See `Others.send`."""
        word = words.UserMessage(user_id, priority, msgspec.Raw(data))
        return await self._teller.told(Envelope(user_id, words.encode(word)), again=False)

    def _tell(
        self,
        user_id: str,
        word: words.AnyWord,
        again: bool,
        told: Callable[[int, Exception | None], object] | None = None,
    ) -> None:
        self._teller.tell(Envelope(user_id, words.encode(word)), again=again, told=told)

    def relay_to_client(self, client_id: str, frame: bytes, key: str | None) -> bool:
        """Sends a message to a client of another hub.

        Args:
            client_id: an id that no client here has.
            frame: the message.
            key: conflation key.

        Returns:
            bool: whether the id is one that another hub has made.

        Raises:
            ValidationError: the message is too large for a bus.
        """
        hub, dot, _ = client_id.partition(".")
        if not dot or not hub or hub == self._needs.name() or self._needs.bus() is None:
            return False
        message, payload = message_of(frame), payload_of(frame)
        text, data = (None, payload) if isinstance(message, bytes) else (payload.decode(), None)
        word = words.encode(words.ClientMessage(client_id, text, data, key))

        def told(count: int, error: Exception | None) -> None:
            if error is None and not count:
                error = ClientNotFoundError(f"no connected client has the id {client_id!a}")
            if error is not None:
                self._needs.deliveries.send_failed(message, client_id, error, to_client=True)

        self._teller.tell(Envelope("", word, hub), again=False, told=told)
        return True

    # --- disconnecting ---

    def disconnect(self, user_id: str, code: int, reason: str) -> None:
        """Has the other hubs close the clients of a user."""

        def told(count: int, error: Exception | None) -> None:
            if error is not None:
                log.error(
                    "user %a was not disconnected from other hubs: %s",
                    user_id,
                    error,
                    extra={"event": "not_disconnected", "user_id": user_id, "error": str(error)},
                )

        self._tell(user_id, words.Disconnect(user_id, code, reason, "", 0), True, told)

    async def disconnect_and_count(self, user_id: str, code: int, reason: str) -> int:
        """Has the other hubs close the clients of a user; returns how many these were.

        Raises:
            BusUnavailableError: the bus, or one of the hubs, did not answer in time.
        """
        name = self._needs.name()
        answers = await self._questions.ask(
            user_id, lambda number: words.Disconnect(user_id, code, reason, name, number)
        )
        return sum(each for each in answers.values() if isinstance(each, int))

    # --- messages with acknowledgement ---

    def is_elsewhere(self, user_id: str) -> bool:
        """See `Others.is_elsewhere`."""
        return user_id in self.elsewhere or user_id not in self._clients

    def stored(self, user_id: str, mailbox: str) -> None:
        """See `Others.stored`; one word for all messages of a tick."""
        loop = self._needs.engine.loop
        if not self._looks and loop is not None:
            loop.call_soon(self._looks.clear)
        if mailbox not in self._looks:
            self._looks.add(mailbox)
            self._tell(user_id, words.Look(user_id, mailbox), True)

    async def settle(self, ended: Sequence[Ended]) -> list[bool]:
        """See `Others.settle`."""
        bus = self._needs.bus()
        outcomes = [
            Outcome(
                Envelope(
                    each.user_id,
                    words.encode(
                        words.Settled(
                            each.user_id, each.mailbox, each.message_id, each.outcome, each.text
                        )
                    ),
                ),
                each.mailbox,
                each.message_id,
                f"{each.outcome} {self._tag()} {each.text}".encode(),
                each.outcome in ("failed", "timeout", "dropped"),
                each.waits,
            )
            for each in ended
        ]
        try:
            if bus is None:
                raise BusUnavailableError("the bus is not open")
            return list(await bus.settle(outcomes))
        except BusError as error:
            self._needs.counters.words_failed += len(outcomes)
            log.warning(
                "other hubs were not told that messages have ended: %s",
                error,
                extra={"event": "words_failed", "error": str(error)},
            )
            return [True] * len(outcomes)

    def _tag(self) -> str:
        """A text that no other hub makes, and this one once."""
        self._number += 1
        return f"{self._needs.name()}.{self._number}"

    async def outcomes(
        self, user_id: str, mailbox: str, message_ids: Sequence[str]
    ) -> list[tuple[str, str] | None]:
        """See `Others.outcomes`."""
        bus = self._needs.bus()
        if bus is None:
            raise BusUnavailableError("the bus is not open")
        found = await bus.outcomes(user_id, mailbox, message_ids)
        return [None if each is None else _outcome(each) for each in found]

    @property
    def one_machine(self) -> bool:
        """See `Others`."""
        return self._needs.one_machine()

    @property
    def name(self) -> str:
        """Of this hub on the bus."""
        return self._needs.name()

    # --- life ---

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """The hub runs on this loop."""
        self._teller.attach(loop)

    async def finish(self, timeout: float) -> None:
        """The hub stops: waits for words on their way."""
        if self._resync is not None:
            self._resync.cancel()
        await self._teller.finish(timeout)

    def forget(self) -> None:
        """The hub has stopped, or its loop was closed: nobody is here."""
        self._clients.clear()
        self.elsewhere.clear()
        self._said.clear()
        self._to_spread.clear()
        self._spreads = False
        self._looks.clear()
        self._teller.forget()
        self.hub_questions.forget()
        resync, self._resync = self._resync, None
        # A closed loop has ended its tasks, and raises where one is cancelled.
        if resync is not None and not resync.get_loop().is_closed():
            resync.cancel()


def _outcome(data: bytes) -> tuple[str, str]:
    outcome, _, text = data.decode("utf-8", "replace").split(" ", 2)
    return outcome, text
