"""The part of the hub's face that is about deliveries: a base of Hub.

delivery.py does the work of these calls.
"""

from __future__ import annotations

from functools import partial

from wsc_fast._core.calls import Calls
from wsc_fast._core.pending import PendingACK
from wsc_fast.config import ACKConfig, RetryConfig
from wsc_fast.delivery.delivery import Delivery
from wsc_fast.delivery.failures import (
    ConnectionErrorHandler,
    QueueFullHandler,
    SendFailureHandler,
    TimeoutHandler,
    UserOfflineHandler,
)
from wsc_fast.delivery.retry import SendResult
from wsc_fast.messages import ACKMessage, HubMessage
from wsc_fast.runtime.threads import ThreadCalls
from wsc_fast.stores.base import OfflineStore


class DeliveryFace(Calls):
    """Base of Hub: messages to users, retries, acknowledgements, failure handlers."""

    _calls: ThreadCalls
    _delivery: Delivery

    # --- messages to users ---

    async def send_to_user_with_retry(self, user_id: str, message: HubMessage) -> SendResult:
        """Queues a message for every client of a user, again and again while that may help.

        `set_retry_config` sets which failures are tried again, how often, and after how long.
        Cancelling it, an `asyncio.timeout` around it or the hub's stop end the waiting at once.

        Args:
            user_id, message: as for `send_to_user`.

        Returns:
            SendResult: of a failure too. The failure handlers hear of the final one.

        Raises:
            asyncio.CancelledError: it was cancelled.

        Thread-safety: any thread with a running loop. Source: go-wsc `SendToUserWithRetry`.
        """
        return await self._delivery.send_with_retry(user_id, message)

    def set_retry_config(self, config: RetryConfig) -> None:
        """Sets what `send_to_user_with_retry` does.

        Args:
            config: RetryConfig.

        Raises:
            ConfigError: it is none.

        Thread-safety: any thread. Source: go-wsc `SetRetryConfig`.
        """
        self._delivery.set_retry_config(config)

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
            ConfigError: the config or the store is none, a store comes without
                `enable_offline_messages`, another hub uses it, or the hubs of the bus cannot share
                it.

        Thread-safety: any thread. Source: go-wsc `EnableACK`.
        """
        self._calls.run(partial(self._delivery.enable_ack, config, store))

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
        return self._delivery.send_with_ack(client_id, message, to_client=True)

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
        return self._delivery.send_with_ack(user_id, message, to_client=False)

    def get_pending_acks(self, client_id: str) -> list[ACKMessage]:
        """The messages that an acknowledgement of this client would settle.

        Args:
            client_id: a str.

        Returns:
            list[ACKMessage]: in the order of sending; empty for a client that is not connected.

        Raises:
            ValidationError: the id is no str.
            HubStateError: the loop of the hub is gone, or does not take the call in time.

        Thread-safety: any thread. Source: go-wsc `GetPendingACKs`.
        """
        return self._calls.run(partial(self._delivery.get_pending, client_id))

    # --- failure handlers ---

    def add_send_failure_handler(self, handler: SendFailureHandler) -> None:
        """Has `handler.handle_send_failure(msg, recipient, reason, error)` hear of every failure.

        Args:
            handler: an object with the method, plain (it runs in a thread of the object) or async.

        Raises:
            ValidationError: it has no such method, or one of other arguments.
            LimitError: the hub has 64 failure handlers already.

        Thread-safety: any thread. Source: go-wsc `AddSendFailureHandler`.
        """
        self._delivery.failures.add("handle_send_failure", handler)

    def remove_send_failure_handler(self, handler: SendFailureHandler) -> None:
        """Takes back `add_send_failure_handler`; nothing happens if the handler is not there.

        Args:
            handler: the same object.

        Thread-safety: any thread. Source: go-wsc `RemoveSendFailureHandler`.
        """
        self._delivery.failures.remove("handle_send_failure", handler)

    def add_queue_full_handler(self, handler: QueueFullHandler) -> None:
        """Has `handler.handle_queue_full(msg, recipient, queue_type, error)` hear of full queues.

        Args:
            handler: as for `add_send_failure_handler`; `queue_type` is "outbox", "broadcast" or
                "pending".

        Raises:
            ValidationError: it has no such method, or one of other arguments.
            LimitError: the hub has 64 failure handlers already.

        Thread-safety: any thread. Source: go-wsc `AddQueueFullHandler`.
        """
        self._delivery.failures.add("handle_queue_full", handler)

    def remove_queue_full_handler(self, handler: QueueFullHandler) -> None:
        """Takes back `add_queue_full_handler`; nothing happens if the handler is not there.

        Args:
            handler: the same object.

        Thread-safety: any thread. Source: go-wsc `RemoveQueueFullHandler`.
        """
        self._delivery.failures.remove("handle_queue_full", handler)

    def add_user_offline_handler(self, handler: UserOfflineHandler) -> None:
        """Has `handler.handle_user_offline(msg, user_id, error)` hear of absent users.

        Args:
            handler: as for `add_send_failure_handler`.

        Raises:
            ValidationError: it has no such method, or one of other arguments.
            LimitError: the hub has 64 failure handlers already.

        Thread-safety: any thread. Source: go-wsc `AddUserOfflineHandler`.
        """
        self._delivery.failures.add("handle_user_offline", handler)

    def remove_user_offline_handler(self, handler: UserOfflineHandler) -> None:
        """Takes back `add_user_offline_handler`; nothing happens if the handler is not there.

        Args:
            handler: the same object.

        Thread-safety: any thread. Source: go-wsc `RemoveUserOfflineHandler`.
        """
        self._delivery.failures.remove("handle_user_offline", handler)

    def add_connection_error_handler(self, handler: ConnectionErrorHandler) -> None:
        """Has `handler.handle_connection_error(msg, client_id, error)` hear of lost connections.

        Args:
            handler: as for `add_send_failure_handler`.

        Raises:
            ValidationError: it has no such method, or one of other arguments.
            LimitError: the hub has 64 failure handlers already.

        Thread-safety: any thread. Source: go-wsc `AddConnectionErrorHandler`.
        """
        self._delivery.failures.add("handle_connection_error", handler)

    def remove_connection_error_handler(self, handler: ConnectionErrorHandler) -> None:
        """Takes back `add_connection_error_handler`; nothing happens if the handler is not there.

        Args:
            handler: the same object.

        Thread-safety: any thread. Source: go-wsc `RemoveConnectionErrorHandler`.
        """
        self._delivery.failures.remove("handle_connection_error", handler)

    def add_timeout_handler(self, handler: TimeoutHandler) -> None:
        """Has `handler.handle_timeout(msg, recipient, timeout_type, duration, error)` hear of them.

        Args:
            handler: as for `add_send_failure_handler`; `timeout_type` is "call", "send", "ack" or
                "offline", `duration` is in seconds.

        Raises:
            ValidationError: it has no such method, or one of other arguments.
            LimitError: the hub has 64 failure handlers already.

        Thread-safety: any thread. Source: go-wsc `AddTimeoutHandler`.
        """
        self._delivery.failures.add("handle_timeout", handler)

    def remove_timeout_handler(self, handler: TimeoutHandler) -> None:
        """Takes back `add_timeout_handler`; nothing happens if the handler is not there.

        Args:
            handler: the same object.

        Thread-safety: any thread. Source: go-wsc `RemoveTimeoutHandler`.
        """
        self._delivery.failures.remove("handle_timeout", handler)
