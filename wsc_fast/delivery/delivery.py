"""The part of a hub that does more than put a message into an outbox.

`Delivery` has retries, acknowledgements, and failures that handlers hear of. It implements
`_core.upward.Deliveries`, so the compiled code tells it of sends that fail and of messages that are
lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import msgspec

from wsc_fast._core.clients import check_id
from wsc_fast._core.connection import Client
from wsc_fast._core.histogram import Histogram
from wsc_fast._core.pending import PendingACK
from wsc_fast.config import ACKConfig, RetryConfig
from wsc_fast.delivery.acks import AckCounters, Acks
from wsc_fast.delivery.failures import REFUSED_EXCERPT, Failure, Message, reason_of
from wsc_fast.delivery.needs import Needs
from wsc_fast.delivery.reporter import FailureCounters, FailureReporter
from wsc_fast.delivery.retry import SendResult, Sleepers, send_with_retry
from wsc_fast.errors import (
    BusError,
    ClientDisconnectedError,
    ConfigError,
    HubStateError,
    HubStoppedError,
    LoopBusyError,
    PermissionDeniedError,
    QueueFullError,
    SendFailureReason,
    SendTimeoutError,
    UserOfflineError,
    ValidationError,
    WSCError,
)
from wsc_fast.messages import ACKMessage, HubMessage, decode_hub_message
from wsc_fast.runtime.state import State
from wsc_fast.runtime.threads import ThreadCalls
from wsc_fast.stores.base import OfflineStore, SharedOfflineStore

T = TypeVar("T")

# Where the offline messages are kept unless `enable_ack` is told otherwise.
DEFAULT_STORE = "wsc_fast.db"

# The error that stands for a message lost after it was queued.
_LOST: dict[SendFailureReason, tuple[type[WSCError], str]] = {
    SendFailureReason.QUEUE_FULL: (QueueFullError, "was dropped from a full outbox"),
    SendFailureReason.BROADCAST_FULL: (QueueFullError, "found a full outbox"),
    SendFailureReason.CONN_CLOSED: (ClientDisconnectedError, "was not sent before the close"),
    SendFailureReason.CONN_ERROR: (ClientDisconnectedError, "was not sent: the connection broke"),
    SendFailureReason.SEND_TIMEOUT: (SendTimeoutError, "was not read before the close timeout"),
    SendFailureReason.CHANNEL_CLOSED: (HubStoppedError, "was not sent before the hub stopped"),
}
_LOST_IN_CALLS = (SendFailureReason.QUEUE_FULL, SendFailureReason.BROADCAST_FULL)


class Delivery:
    """The deliveries of one hub.

    Args:
        needs: of the hub.
        state, calls: of the hub.

    Attributes:
        failures: tells the failure handlers.
        sleepers: waits between attempts.
        acks: what is not acknowledged yet; None before `enable_ack`.

    Thread-safety: the loop's thread, but for what says otherwise.
    """

    def __init__(self, needs: Needs, state: State, calls: ThreadCalls) -> None:
        self._needs = needs
        self._engine = needs.engine
        self._state = state
        self._calls = calls
        self._retry = RetryConfig()
        self.failures: FailureReporter = FailureReporter(needs)
        self.sleepers: Sleepers = Sleepers(needs.engine.deadlines)
        self.acks: Acks | None = None

    # --- its life ---

    async def open_store(self, loop: asyncio.AbstractEventLoop) -> None:
        """The hub starts on this loop; returns once the offline store is open, if there is one.

        Raises:
            ConfigError: other hubs cannot use the store.
            OfflineStoreError: it does not open.
        """
        self.attach(loop)
        if self.acks is not None:
            await self.acks.opened()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """The hub runs on this loop, and its offline store opens meanwhile.

        Raises:
            ConfigError: other hubs cannot use the store.
        """
        acks, others = self.acks, self._needs.others()
        if acks is None:
            return
        if others is not None and acks.over_hubs is None:
            _check_shared(acks.store, others.one_machine)
            acks.join(others)
        acks.attach(loop)

    async def close_store(self, timeout: float) -> None:
        """Stores what is pending, or ends it, and closes the offline store.

        Args:
            timeout: seconds.
        """
        if self.acks is not None and self.acks.table.loop is not None:
            await self.acks.stop(timeout)

    def forget(self) -> None:
        """The loop was closed under the hub, or this is the child of a fork."""
        self.failures.forget()
        if self.acks is not None:
            self.acks.forget()

    # --- retries ---

    async def send_with_retry(self, user_id: str, message: HubMessage) -> SendResult:
        """See `Hub.send_to_user_with_retry`. Thread-safety: any thread with a running loop."""
        loop = self._engine.loop
        if loop is not None and loop.is_closed():
            return await send_with_retry(_loop_closed, RetryConfig(max_retries=0), self.sleepers)
        if loop is not None and loop is not asyncio.get_running_loop():
            there = asyncio.run_coroutine_threadsafe(self.send_with_retry(user_id, message), loop)
            return await asyncio.wrap_future(there)
        send: Callable[[], int | Awaitable[int]]
        if self._needs.others() is None:
            send = partial(self._engine.send_message, user_id, message)
        else:
            send = partial(self._send_to_all, user_id, message)
        result = await send_with_retry(send, self._retry, self.sleepers)
        if result.final_error is not None:
            self.send_failed(message, user_id, result.final_error)
        return result

    async def _send_to_all(self, user_id: str, message: HubMessage) -> int:
        clients, hubs = await self.send_anywhere(user_id, message)
        return clients + hubs

    async def send_anywhere(self, user_id: str, message: HubMessage) -> tuple[int, int]:
        """Sends a message to the clients of a user, here and on other hubs.

        Args:
            user_id, message: as for `send_to_user`.

        Returns:
            tuple[int, int]: how many clients here, and how many other hubs, have got it.

        Raises:
            UserOfflineError: the user is on no hub.
            WSCError: nobody has got it, and why.
        """
        check_id("user", user_id)
        data, priority = self._engine.encoded_message(message), int(message.priority)
        clients = hubs = 0
        trouble: WSCError | None = None
        try:
            clients = self._engine.deliver_to_user(user_id, data, priority)
        except WSCError as error:
            trouble = error
        others = self._needs.others()
        if others is not None and others.is_elsewhere(user_id):
            try:
                hubs = await others.send(user_id, data, priority)
            except BusError as error:
                if trouble is None or isinstance(trouble, UserOfflineError):
                    trouble = error
        if not clients and not hubs:
            raise trouble or UserOfflineError(f"user {user_id!a} is on no hub")
        if trouble is not None and not isinstance(trouble, UserOfflineError):
            self.send_failed(message, user_id, trouble)
        return clients, hubs

    def set_retry_config(self, config: RetryConfig) -> None:
        """See `Hub.set_retry_config`. Thread-safety: any thread."""
        if not isinstance(config, RetryConfig):
            raise ConfigError(f"config must be a RetryConfig, not {type(config).__name__}")
        self._retry = config

    # --- acknowledgements ---

    def enable_ack(self, config: ACKConfig | None, store: OfflineStore | None) -> None:
        """See `Hub.enable_ack`."""
        config = config if config is not None else ACKConfig()
        if not isinstance(config, ACKConfig):
            raise ConfigError(f"config must be an ACKConfig, not {type(config).__name__}")
        if store is not None and not isinstance(store, OfflineStore):
            raise ConfigError(f"store must be an OfflineStore, not {type(store).__name__}")
        if store is not None and not config.enable_offline_messages:
            raise ConfigError("a store needs ACKConfig(enable_offline_messages=True)")
        if self.acks is not None:
            raise HubStateError("acknowledgements are enabled already")
        if store is None and config.enable_offline_messages:
            store = self._needs.store_on_bus()
        if store is None and config.enable_offline_messages:
            # Imported here: a hub without offline messages does without SQLite.
            from wsc_fast.stores.sqlite.store import SQLiteOfflineStore

            store = SQLiteOfflineStore(DEFAULT_STORE)
        acks = self.acks = Acks(self._needs, self.failures, config, store)
        self._needs.watch_clients(acks)
        self._engine.set_acks(acks.take, acks.replaying, acks.hold, acks.ran_empty)
        if self._engine.loop is not None:
            acks.attach(self._engine.loop)

    def send_with_ack(self, recipient: str, message: ACKMessage, *, to_client: bool) -> PendingACK:
        """See `Hub.send_ack_message`. Thread-safety: any thread."""
        try:
            if self.acks is None:
                raise HubStateError("acknowledgements are not enabled: call enable_ack first")
            if self._engine.is_away():
                return self._calls.make(partial(self._start_ack, recipient, message, to_client))
            return self._start_ack(recipient, message, to_client)
        except Exception as error:
            self.send_failed(message, recipient, error, to_client=to_client)
            raise

    def _start_ack(self, recipient: str, message: ACKMessage, to_client: bool) -> PendingACK:
        assert self.acks is not None
        if self._engine.loop is None:
            raise self._not_running()
        pending = self.acks.start(recipient, message, to_client)
        if self._needs.paused:
            # A callback may await the acknowledgement of this message, with its client not read.
            for paused in list(self._needs.paused):
                paused.look_again()
        return pending

    def get_pending(self, client_id: str) -> list[ACKMessage]:
        """See `Hub.get_pending_acks`."""
        client = self._engine.get_client_by_id(client_id)
        return [] if client is None or self.acks is None else self.acks.pending_of(client)

    async def count_pending(self, clients: Sequence[Client]) -> list[int]:
        """See `Acks.count_pending`; zeros where acknowledgements are off."""
        return [0] * len(clients) if self.acks is None else await self.acks.count_pending(clients)

    async def count_stored(self, user_id: str) -> int | None:
        """See `Acks.count_stored`; None also where acknowledgements are off."""
        return None if self.acks is None else await self.acks.count_stored(user_id)

    def awaits_acknowledgement(self, client: Client) -> bool:
        """Whether something is pending that this client may acknowledge."""
        return self.acks is not None and self.acks.awaits(client)

    # --- other hubs ---

    def deliver(self, user_id: str, data: bytes, priority: int) -> None:
        """A HubMessage of another hub, for the clients here.

        Args:
            user_id: the id of the user.
            data: the HubMessage as JSON.
            priority: of it, 1 to 4.
        """
        try:
            self._engine.deliver_to_user(user_id, data, priority)
        except Exception as error:
            try:
                message = decode_hub_message(data)
            except ValidationError as wrong:
                self._needs.report(wrong)
                return
            self.send_failed(message, user_id, error)

    def deliver_to_client(self, client_id: str, message: str | bytes, key: str | None) -> None:
        """A message of another hub for one client; arguments as of `send_to_client`."""
        try:
            self._engine.deliver_to_client(client_id, message, key)
        except Exception as error:
            self.send_failed(message, client_id, error, to_client=True)

    def look(self, mailbox: str) -> None:
        """Another hub has stored a message."""
        if self.acks is not None:
            self.acks.stored_elsewhere(mailbox)

    def settled(self, mailbox: str, message_id: str, outcome: str, text: str) -> None:
        """A message has ended on another hub; see `Ended`."""
        if self.acks is not None and self.acks.over_hubs is not None:
            self.acks.over_hubs.settled(mailbox, message_id, outcome, text)

    def spread(self, user_id: str) -> None:
        """A user of this hub is on another one as well, which is to have what is pending."""
        if self.acks is not None:
            self.acks.spread_user(user_id)

    # --- failures ---

    def on_loop(self, call: Callable[[], T]) -> T:
        """See `upward.Deliveries`."""
        return self._calls.make(call)

    def send_on_loop(
        self, call: Callable[[], T], message: Message, recipient: str, to: str | None = None
    ) -> T:
        """See `upward.Deliveries`."""
        try:
            return self._calls.make(call)
        except HubStateError as error:
            self.send_failed(message, recipient, error, to, to_client=to is None)
            raise

    def not_queued(self, user_id: str, queued: int) -> WSCError:
        """See `upward.Deliveries`."""
        if queued < 0:
            return QueueFullError(
                f"the outboxes of all {-queued} clients of user {user_id!a} are full"
            )
        check_id("user", user_id)
        if self._engine.loop is None:
            return self._not_running()
        if self._state.ended:
            return HubStoppedError("the hub is stopping")
        return UserOfflineError(f"user {user_id!a} has no connected client")

    def not_running(self, message: Message, recipient: str) -> HubStateError:
        """See `upward.Deliveries`."""
        error = self._not_running()
        self.send_failed(message, recipient, error)
        return error

    def _not_running(self) -> HubStateError:
        kind = HubStoppedError if self._state.ended else HubStateError
        return kind(
            f"the hub {'has stopped' if self._state.ended else 'does not run'} in this process, so "
            "the message reaches nobody. To reach the clients of a hub in another process, publish "
            "to a room with wsc_fast.publish.Publisher"
        )

    def send_failed(
        self,
        message: Message,
        recipient: str,
        error: Exception,
        to: str | None = None,
        *,
        to_client: bool = False,
    ) -> None:
        """See `upward.Deliveries`; in the thread of the caller.

        Args:
            message, error: what was sent, and why it was not.
            recipient: the id that the call named.
            to: whose message it is; None for the recipient.
            to_client: the recipient is a client, and the message is its user's.
        """
        busy = isinstance(error, LoopBusyError)
        duration = self._needs.settings().thread_call_timeout if busy else 0.0
        failure = Failure(message, recipient, reason_of(error), error, duration=duration, to=to)
        report = self._report_of_client if to_client else self.failures.report
        loop = self._engine.loop
        if loop is None or not self._engine.is_away():
            report(failure)
            return
        if self.failures.active:
            failure = failure.kept()  # the caller may change the message before the loop sees it
        try:
            loop.call_soon_threadsafe(report, failure)
        except RuntimeError:
            self.failures.report(failure)  # the loop has gone: it is only counted

    def _report_of_client(self, failure: Failure) -> None:
        to = self._user_of(failure.recipient, failure.recipient)
        self.failures.report(msgspec.structs.replace(failure, to=to))

    def _user_of(self, client_id: object, otherwise: str) -> str:
        """The user of a connected client."""
        client = self._engine.get_client_by_id(client_id) if isinstance(client_id, str) else None
        return client.user_id if client is not None else otherwise

    def refused(
        self,
        message: Message,
        recipient: str,
        reason: str,
        error: Exception,
        to: str | None = None,
    ) -> None:
        """See `upward.Deliveries`."""
        why = SendFailureReason(reason)
        if to is None:
            # A message that cannot be sent may be for a room or for everybody.
            to = self._user_of(recipient, "" if why is SendFailureReason.VALIDATION else recipient)
        self.failures.report(Failure(message, recipient, why, error, to=to))

    def denied(self, client: Client, message: str | bytes, error: PermissionDeniedError) -> None:
        """A message that its client may not publish was dropped."""
        # An excerpt: it is the client that decides how much there is of it.
        excerpt = message[:REFUSED_EXCERPT]
        reason = SendFailureReason.PERMISSION
        self.failures.report(Failure(excerpt, client.id, reason, error, to=client.user_id))

    def not_published(self, message: Message, room_id: str, error: Exception) -> None:
        """The bus did not take a message for a kept room."""
        self.failures.report(Failure(message, room_id, SendFailureReason.UNKNOWN, error, to=""))

    def lost(
        self, client: Client, frames: list[bytes], reason: str, error: Exception | None
    ) -> None:
        """See `upward.Deliveries`."""
        why = SendFailureReason(reason)
        if why is SendFailureReason.CONN_CLOSED and self._state.ended:
            why = SendFailureReason.CHANNEL_CLOSED
        timed_out = why is SendFailureReason.SEND_TIMEOUT
        self.failures.report_lost(
            frames,
            client,
            why,
            error or partial(_lost_by, client.id, why),
            duration=self._engine.close_timeout if timed_out else 0.0,
            acks=self.acks is not None,
            # A flush, or the end of a connection, may have been set off by anybody.
            of_call=why in _LOST_IN_CALLS,
        )

    # --- counters ---

    def counters(self) -> dict[str, int]:
        """Under their names in HubStats."""
        acks = self.acks
        return {
            **msgspec.structs.asdict(self.failures.counters),
            **msgspec.structs.asdict(acks.counters if acks is not None else AckCounters()),
            "acks_pending": acks.count if acks is not None else 0,
        }

    def store_latencies(self) -> dict[str, Histogram]:
        """Seconds that the offline store took to answer, by operation."""
        return {} if self.acks is None else self.acks.store_latencies()

    def reset_counters(self) -> None:
        self.failures.counters = FailureCounters()
        if self.acks is not None:
            self.acks.counters = AckCounters()


def _check_shared(store: OfflineStore | None, one_machine: bool) -> None:
    """Raises ConfigError for a store that the hubs of a bus cannot share."""
    if store is None:
        return
    if not isinstance(store, SharedOfflineStore):
        raise ConfigError(
            f"a hub on a bus needs an offline store that several hubs share (SharedOfflineStore), "
            f"not {type(store).__name__}"
        )
    if one_machine:
        return
    from wsc_fast.stores.sqlite.store import SQLiteOfflineStore

    if isinstance(store, SQLiteOfflineStore):
        raise ConfigError(
            "a hub on a bus cannot keep offline messages in SQLite, a file of one machine: a user "
            "who connects to a hub on another one would not get them. Give the hub its bus before "
            "enable_ack and leave `store` out, so that they are on the server of the bus; or give "
            "a RedisOfflineStore"
        )


def _lost_by(client_id: str, reason: SendFailureReason) -> WSCError:
    kind, text = _LOST[reason]
    return kind(f"a message for client {client_id!a} {text}")


def _loop_closed() -> int:
    raise HubStoppedError("the loop of the hub is closed")
