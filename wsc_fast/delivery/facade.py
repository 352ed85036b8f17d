"""The delivery half of the Hub: users, retries, acknowledgements and failure handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec

from wsc_fast._core.clients import check_id
from wsc_fast._core.engine import Engine
from wsc_fast._core.pending import PendingACK
from wsc_fast.config import ACKConfig, HubConfig, RetryConfig
from wsc_fast.delivery.acks import AckCounters, Acks
from wsc_fast.delivery.failures import (
    ConnectionErrorHandler,
    Failure,
    Message,
    QueueFullHandler,
    SendFailureHandler,
    TimeoutHandler,
    UserOfflineHandler,
    reason_of,
)
from wsc_fast.delivery.reporter import FailureCounters, FailureReporter
from wsc_fast.delivery.retry import SendResult, Sleepers, send_with_retry
from wsc_fast.errors import (
    ClientDisconnectedError,
    ConfigError,
    HubStateError,
    HubStoppedError,
    LoopBusyError,
    QueueFullError,
    SendFailureReason,
    SendTimeoutError,
    UserOfflineError,
    WSCError,
)
from wsc_fast.messages import ACKMessage, HubMessage
from wsc_fast.stores.base import OfflineStore
from wsc_fast.stores.sqlite.store import SQLiteOfflineStore

if TYPE_CHECKING:
    from wsc_fast._core.connection import Client
    from wsc_fast.hub import Hub

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


def _lost_by(client_id: str, reason: SendFailureReason) -> WSCError:
    kind, text = _LOST[reason]
    return kind(f"a message for client {client_id!a} {text}")


def _loop_closed() -> int:
    raise HubStoppedError("the loop of the hub is closed")


class Delivery(Engine):
    """Base of Hub: messages to users, retries, acknowledgements, failure handlers."""

    config: HubConfig
    _ended: bool

    if TYPE_CHECKING:

        def _on_loop(self, call: Callable[[], T]) -> T: ...

    def __init__(self) -> None:
        self._failures = FailureReporter(cast("Hub", self))
        self._retry = RetryConfig()
        self._sleepers = Sleepers(self._deadlines)
        self._acks: Acks | None = None

    # --- messages to users ---

    def _not_queued(self, user_id: str, queued: int) -> WSCError:
        if queued < 0:
            return QueueFullError(
                f"the outboxes of all {-queued} clients of user {user_id!a} are full"
            )
        check_id("user", user_id)
        if self._ended:
            return HubStoppedError("the hub has stopped")
        return UserOfflineError(f"user {user_id!a} has no connected client")

    async def send_to_user_with_retry(self, user_id: str, message: HubMessage) -> SendResult:
        """Queues a message for every client of a user, again and again while that may help.

        Which failures are tried again, how often, and after how long, is set by `set_retry_config`.
        Cancelling it, an `asyncio.timeout` around it or the hub's stop end the waiting at once.

        Args:
            user_id, message: as for `send_to_user`.

        Returns:
            SendResult: of a failure too. The failure handlers hear of the final one.

        Raises:
            asyncio.CancelledError: it was cancelled.

        Thread-safety: any thread with a running loop. Source: go-wsc `SendToUserWithRetry`.
        """
        loop = self.loop
        if loop is not None and loop.is_closed():
            return await send_with_retry(_loop_closed, RetryConfig(max_retries=0), self._sleepers)
        if loop is not None and loop is not asyncio.get_running_loop():
            there = asyncio.run_coroutine_threadsafe(
                self.send_to_user_with_retry(user_id, message), loop
            )
            return await asyncio.wrap_future(there)
        send = partial(self._send_message, user_id, message)
        result = await send_with_retry(send, self._retry, self._sleepers)
        if result.final_error is not None:
            self._send_failed(message, user_id, result.final_error)
        return result

    def set_retry_config(self, config: RetryConfig) -> None:
        """Sets what `send_to_user_with_retry` does.

        Args:
            config: RetryConfig.

        Raises:
            ConfigError: it is none.

        Thread-safety: any thread. Source: go-wsc `SetRetryConfig`.
        """
        if not isinstance(config, RetryConfig):
            raise ConfigError(f"config must be a RetryConfig, not {type(config).__name__}")
        self._retry = config

    # --- acknowledgements ---

    def enable_ack(
        self, config: ACKConfig | None = None, *, store: OfflineStore | None = None
    ) -> None:
        """Has clients acknowledge messages, and keeps those for users who are away.

        Args:
            config: ACKConfig.
            store: where messages are kept, with `enable_offline_messages`; by default
                SQLiteOfflineStore("wsc_fast.db") in the working directory. The hub opens and closes
                it.

        Raises:
            HubStateError: enabled already.
            ConfigError: a store without `enable_offline_messages`, one that another hub uses, or
                none of the types.

        Thread-safety: any thread. Source: go-wsc `EnableACK`.
        """
        if self._is_away():
            self._on_loop(partial(self.enable_ack, config, store=store))
            return
        config = config if config is not None else ACKConfig()
        if not isinstance(config, ACKConfig):
            raise ConfigError(f"config must be an ACKConfig, not {type(config).__name__}")
        if store is not None and not isinstance(store, OfflineStore):
            raise ConfigError(f"store must be an OfflineStore, not {type(store).__name__}")
        if store is not None and not config.enable_offline_messages:
            raise ConfigError("a store needs ACKConfig(enable_offline_messages=True)")
        if self._acks is not None:
            raise HubStateError("acknowledgements are enabled already")
        if store is None and config.enable_offline_messages:
            store = SQLiteOfflineStore(DEFAULT_STORE)
        self._acks = Acks(cast("Hub", self), config, store)
        acks = self._acks
        self._set_acks(acks.take, acks.replaying, acks.hold, acks.ran_empty)
        if self.loop is not None:
            self._acks.attach(self.loop)

    def send_ack_message(self, client_id: str, message: ACKMessage) -> PendingACK:
        """Sends a message to a client until the client's user acknowledges it.

        Args:
            client_id: a str.
            message: an ACKMessage; each retransmission carries the same id.

        Returns:
            PendingACK: at once; await it for the outcome, or its `accepted`. The same message
            again, while it is pending, gives the same PendingACK.

        Raises:
            ClientNotFoundError: no connected client has the id.
            PendingFullError: as much is pending as ACKConfig.max_pending, max_pending_bytes or
                max_pending_per_user allows.
            ValidationError: the message cannot be sent, or another one with its id is pending.
            HubStateError: acknowledgements are not enabled, or the hub does not run.

        Thread-safety: any thread. Source: go-wsc `SendACKMessage`.
        """
        return self._send_with_ack(client_id, message, to_client=True)

    def send_ack_message_to_user(self, user_id: str, message: ACKMessage) -> PendingACK:
        """Sends a message to all clients of a user until one of them acknowledges it.

        With `enable_offline_messages`, a message for a user who is away is stored, and delivered
        when the user is back.

        Args:
            user_id: a str.
            message: as for `send_ack_message`.

        Returns:
            PendingACK: as `send_ack_message`.

        Raises:
            UserOfflineError: the user has no connected client, and offline messages are off.
            PendingFullError, ValidationError, HubStateError: as `send_ack_message`.

        Thread-safety: any thread. Source: go-wsc `SendACKMessage`.
        """
        return self._send_with_ack(user_id, message, to_client=False)

    def _send_with_ack(self, recipient: str, message: ACKMessage, *, to_client: bool) -> PendingACK:
        try:
            if self._acks is None:
                raise HubStateError("acknowledgements are not enabled: call enable_ack first")
            if self._is_away():
                return self._on_loop(partial(self._acks.start, recipient, message, to_client))
            return self._acks.start(recipient, message, to_client)
        except Exception as error:
            self._send_failed(message, recipient, error, to_client=to_client)
            raise

    def get_pending_acks(self, client_id: str) -> list[ACKMessage]:
        """The messages that an acknowledgement of this client would settle.

        Args:
            client_id: a str.

        Returns:
            list[ACKMessage]: in the order of sending; empty for a client that is not connected.

        Thread-safety: any thread. Source: go-wsc `GetPendingACKs`.
        """
        if self._is_away():
            return self._on_loop(partial(self.get_pending_acks, client_id))
        client = self.get_client_by_id(client_id)
        if client is None or self._acks is None:
            return []
        return self._acks.pending_of(client)

    def _awaits_acknowledgement(self, client: Client) -> bool:
        """Whether something is pending that this client may acknowledge; called by Inbox."""
        return self._acks is not None and self._acks.awaits(client)

    # --- failure handlers ---

    def add_send_failure_handler(self, handler: SendFailureHandler) -> None:
        """Has `handler.handle_send_failure(msg, recipient, reason, error)` hear of every failure.

        Args:
            handler: an object with the method, plain (it runs in a thread of the object) or async.

        Raises:
            ValidationError: it has no such method.
            LimitError: the hub has 64 failure handlers already.

        Thread-safety: any thread. Source: go-wsc `AddSendFailureHandler`.
        """
        self._failures.add("handle_send_failure", handler)

    def remove_send_failure_handler(self, handler: SendFailureHandler) -> None:
        """Takes back `add_send_failure_handler`; nothing happens if the handler is not there.

        Args:
            handler: the same object.

        Thread-safety: any thread. Source: go-wsc `RemoveSendFailureHandler`.
        """
        self._failures.remove("handle_send_failure", handler)

    def add_queue_full_handler(self, handler: QueueFullHandler) -> None:
        """Has `handler.handle_queue_full(msg, recipient, queue_type, error)` hear of full queues.

        Args:
            handler: as for `add_send_failure_handler`; `queue_type` is "outbox", "broadcast" or
                "pending".

        Raises:
            ValidationError: it has no such method.
            LimitError: the hub has 64 failure handlers already.

        Thread-safety: any thread. Source: go-wsc `AddQueueFullHandler`.
        """
        self._failures.add("handle_queue_full", handler)

    def remove_queue_full_handler(self, handler: QueueFullHandler) -> None:
        """Takes back `add_queue_full_handler`; nothing happens if the handler is not there.

        Args:
            handler: the same object.

        Thread-safety: any thread. Source: go-wsc `RemoveQueueFullHandler`.
        """
        self._failures.remove("handle_queue_full", handler)

    def add_user_offline_handler(self, handler: UserOfflineHandler) -> None:
        """Has `handler.handle_user_offline(msg, user_id, error)` hear of absent users.

        Args:
            handler: as for `add_send_failure_handler`.

        Raises:
            ValidationError: it has no such method.
            LimitError: the hub has 64 failure handlers already.

        Thread-safety: any thread. Source: go-wsc `AddUserOfflineHandler`.
        """
        self._failures.add("handle_user_offline", handler)

    def remove_user_offline_handler(self, handler: UserOfflineHandler) -> None:
        """Takes back `add_user_offline_handler`; nothing happens if the handler is not there.

        Args:
            handler: the same object.

        Thread-safety: any thread. Source: go-wsc `RemoveUserOfflineHandler`.
        """
        self._failures.remove("handle_user_offline", handler)

    def add_connection_error_handler(self, handler: ConnectionErrorHandler) -> None:
        """Has `handler.handle_connection_error(msg, client_id, error)` hear of lost connections.

        Args:
            handler: as for `add_send_failure_handler`.

        Raises:
            ValidationError: it has no such method.
            LimitError: the hub has 64 failure handlers already.

        Thread-safety: any thread. Source: go-wsc `AddConnectionErrorHandler`.
        """
        self._failures.add("handle_connection_error", handler)

    def remove_connection_error_handler(self, handler: ConnectionErrorHandler) -> None:
        """Takes back `add_connection_error_handler`; nothing happens if the handler is not there.

        Args:
            handler: the same object.

        Thread-safety: any thread. Source: go-wsc `RemoveConnectionErrorHandler`.
        """
        self._failures.remove("handle_connection_error", handler)

    def add_timeout_handler(self, handler: TimeoutHandler) -> None:
        """Has `handler.handle_timeout(msg, recipient, timeout_type, duration, error)` hear of them.

        Args:
            handler: as for `add_send_failure_handler`; `timeout_type` is "call", "send", "ack" or
                "offline", `duration` is in seconds.

        Raises:
            ValidationError: it has no such method.
            LimitError: the hub has 64 failure handlers already.

        Thread-safety: any thread. Source: go-wsc `AddTimeoutHandler`.
        """
        self._failures.add("handle_timeout", handler)

    def remove_timeout_handler(self, handler: TimeoutHandler) -> None:
        """Takes back `add_timeout_handler`; nothing happens if the handler is not there.

        Args:
            handler: the same object.

        Thread-safety: any thread. Source: go-wsc `RemoveTimeoutHandler`.
        """
        self._failures.remove("handle_timeout", handler)

    def _delivery_counters(self) -> dict[str, int]:
        acks = self._acks
        return {
            **msgspec.structs.asdict(self._failures.counters),
            **msgspec.structs.asdict(acks.counters if acks is not None else AckCounters()),
            "acks_pending": acks.count if acks is not None else 0,
        }

    def _reset_delivery_counters(self) -> None:
        self._failures.counters = FailureCounters()
        if self._acks is not None:
            self._acks.counters = AckCounters()

    def _send_failed(
        self,
        message: Message,
        recipient: str,
        error: Exception,
        to: str | None = None,
        *,
        to_client: bool = False,
    ) -> None:
        """A send raised; in the caller's thread.

        Args:
            message, error: what was sent, and why it was not.
            recipient: the id that the call named.
            to: whose message it is; None for the recipient.
            to_client: the recipient is a client, and the message is its user's.
        """
        duration = self.config.thread_call_timeout if isinstance(error, LoopBusyError) else 0.0
        failure = Failure(message, recipient, reason_of(error), error, duration=duration, to=to)
        report = self._report_of_client if to_client else self._failures.report
        loop = self.loop
        if loop is None or not self._is_away():
            report(failure)
            return
        if self._failures.active:
            failure = failure.kept()  # the caller may change the message before the loop sees it
        try:
            loop.call_soon_threadsafe(report, failure)
        except RuntimeError:
            self._failures.report(failure)  # the loop has gone: it is only counted

    def _report_of_client(self, failure: Failure) -> None:
        to = self._user_of(failure.recipient, failure.recipient)
        self._failures.report(msgspec.structs.replace(failure, to=to))

    def _user_of(self, client_id: object, otherwise: str) -> str:
        """The user of a connected client."""
        client = self.get_client_by_id(client_id) if isinstance(client_id, str) else None
        return client.user_id if client is not None else otherwise

    def _send_on_loop(
        self, call: Callable[[], T], message: str | bytes, recipient: str, to: str | None = None
    ) -> T:
        """A raw send from another thread; called by the engine.

        Args:
            call: the same send, to be made on the loop.
            message, recipient: its arguments.
            to: the user; "" for nobody in particular; None if it is that of the client that the
                recipient names.
        """
        try:
            return self._on_loop(call)
        except HubStateError as error:
            self._send_failed(message, recipient, error, to, to_client=to is None)
            raise

    def _refused(
        self,
        message: str | bytes,
        recipient: str,
        reason: str,
        error: Exception,
        to: str | None = None,
    ) -> None:
        """Called by the engine when a send raises, if there are handlers; `to` is the user."""
        why = SendFailureReason(reason)
        if to is None:
            # A message that cannot be sent may be for a room or for everybody.
            to = self._user_of(recipient, "" if why is SendFailureReason.VALIDATION else recipient)
        self._failures.report(Failure(message, recipient, why, error, to=to))

    def _lost(
        self, client: Client, frames: list[bytes], reason: str, error: Exception | None
    ) -> None:
        """Called by the engine for frames that a client does not get, if there are handlers."""
        why = SendFailureReason(reason)
        if why is SendFailureReason.CONN_CLOSED and self._ended:
            why = SendFailureReason.CHANNEL_CLOSED
        self._failures.report_lost(
            frames,
            client,
            why,
            error or partial(_lost_by, client.id, why),
            duration=self._close_timeout if why is SendFailureReason.SEND_TIMEOUT else 0.0,
            acks=self._acks is not None,
            # A flush, or the end of a connection, may have been set off by anybody.
            of_call=why in _LOST_IN_CALLS,
        )
