"""A failure: the message that was not delivered, why, and the handlers that hear of it.

A table in docs/delivery.md says which failure calls which handler. reporter.py tells them.
"""

from __future__ import annotations

from contextvars import ContextVar
from copy import copy
from typing import Any, Protocol

import msgspec

from wsc_fast.errors import (
    AckTimeoutError,
    ClientDisconnectedError,
    ClientNotFoundError,
    HubStateError,
    LoopBusyError,
    OfflineStoreFullError,
    PendingFullError,
    QueueFullError,
    SendFailureReason,
    UserOfflineError,
    ValidationError,
    WSCError,
)
from wsc_fast.messages import ACKMessage, HubMessage, encode_hub_message, to_hub_message

# A message that its client may not publish is kept up to here, in characters or bytes.
REFUSED_EXCERPT = 1_024

# Set while a handler runs, in whatever it awaits, starts or calls in its thread.
handling: ContextVar[bool] = ContextVar("wsc_fast_handling_failure", default=False)


class SendFailureHandler(Protocol):
    """Hears of every failure (go-wsc `SendFailureHandler`). The method may be async."""

    def handle_send_failure(
        self, msg: HubMessage, recipient: str, reason: SendFailureReason, error: Exception
    ) -> Any: ...


class QueueFullHandler(Protocol):
    """Hears of full queues; `queue_type` is "outbox", "broadcast" or "pending"."""

    def handle_queue_full(
        self, msg: HubMessage, recipient: str, queue_type: str, error: Exception
    ) -> Any: ...


class UserOfflineHandler(Protocol):
    """Hears of messages for users who have no connected client."""

    def handle_user_offline(self, msg: HubMessage, user_id: str, error: Exception) -> Any: ...


class ConnectionErrorHandler(Protocol):
    """Hears of messages whose client had gone, or went before it got them."""

    def handle_connection_error(self, msg: HubMessage, client_id: str, error: Exception) -> Any: ...


class TimeoutHandler(Protocol):
    """Hears of messages that took too long; `timeout_type` is "call", "send", "ack" or "offline".

    `duration` is in seconds.
    """

    def handle_timeout(
        self, msg: HubMessage, recipient: str, timeout_type: str, duration: float, error: Exception
    ) -> Any: ...


class Encoded(msgspec.Struct, frozen=True):
    """A HubMessage as it goes on the wire: JSON."""

    data: bytes


Message = HubMessage | ACKMessage | str | bytes | Encoded


class Failure(msgspec.Struct, frozen=True):
    """One message that was not delivered, and why.

    Attributes:
        message: what was sent.
        recipient: the id that the call named, of a user or a client.
        reason, error: why.
        duration: seconds, of a timeout.
        kind: the queue or timeout type, where the reason does not say it.
        to: the user's id; the recipient where it is None, and "" for nobody in particular.
    """

    message: Message
    recipient: str
    reason: SendFailureReason
    error: Exception
    duration: float = 0.0
    kind: str | None = None
    to: str | None = None

    @classmethod
    def of_data(
        cls,
        data: bytes,
        user_id: str,
        reason: SendFailureReason,
        error: Exception,
        *,
        client_id: str | None = None,
        duration: float = 0.0,
        kind: str | None = None,
    ) -> Failure:
        """The failure of a HubMessage that is encoded already; it costs no decoding here.

        Args:
            data: the message as JSON.
            user_id: whose message it is.
            reason, error, duration, kind: as of a Failure.
            client_id: of the client that the call named; None where it named the user.

        Returns:
            Failure.
        """
        recipient = user_id if client_id is None else client_id
        return cls(Encoded(data), recipient, reason, error, duration, kind, user_id)

    def kept(self) -> Failure:
        """The same, of which nothing changes any more and which keeps no call's frames alive."""
        recipient = as_id(self.recipient)
        to = recipient if self.to is None else as_id(self.to)
        message = _kept(self.message, to)
        return Failure(
            message, recipient, self.reason, _bare(self.error), self.duration, self.kind, to
        )


def as_id(value: object) -> str:
    # A call with something else fails, and its failure is reported.
    return value if isinstance(value, str) else f"<{type(value).__name__}>"


def _kept(message: object, to: str) -> Message:
    if isinstance(message, (str, bytes, Encoded)):
        return message
    if isinstance(message, (HubMessage, ACKMessage)):
        try:
            return _kept_struct(message, to)
        except AttributeError:
            pass  # a field was deleted
    if isinstance(message, (bytearray, memoryview)):
        try:
            return bytes(message)
        except ValueError:
            pass  # a view that was released
    return f"<{type(message).__name__}>"


def _kept_struct(message: HubMessage | ACKMessage, to: str) -> Message:
    if isinstance(message, ACKMessage):
        message = to_hub_message(message, to)
    try:
        return Encoded(encode_hub_message(message))
    except ValidationError:
        # It cannot be encoded, which is why it was not sent.
        return copied(message)


def copied(message: HubMessage) -> HubMessage:
    message = copy(message)
    if isinstance(message.data, dict):
        message.data = dict(message.data)
    return message


def _bare(error: Exception) -> Exception:
    """The same without a traceback, which would keep the variables of the caller."""
    if error.__traceback__ is None or not isinstance(error, WSCError):
        return error
    try:
        return copy(error)
    except TypeError:
        return error  # a subclass whose __init__ wants something else


# Reason -> the special handlers' method, and their queue or timeout type.
SPECIAL: dict[SendFailureReason, tuple[str, str | None]] = {
    SendFailureReason.QUEUE_FULL: ("handle_queue_full", "outbox"),
    SendFailureReason.BROADCAST_FULL: ("handle_queue_full", "broadcast"),
    SendFailureReason.PENDING_FULL: ("handle_queue_full", "pending"),
    SendFailureReason.USER_OFFLINE: ("handle_user_offline", None),
    SendFailureReason.CONN_CLOSED: ("handle_connection_error", None),
    SendFailureReason.CONN_ERROR: ("handle_connection_error", None),
    SendFailureReason.CHANNEL_CLOSED: ("handle_connection_error", None),
    SendFailureReason.TIMEOUT: ("handle_timeout", "call"),
    SendFailureReason.SEND_TIMEOUT: ("handle_timeout", "send"),
    SendFailureReason.ACK_TIMEOUT: ("handle_timeout", "ack"),
}
# The most special class first.
_REASONS: tuple[tuple[type[BaseException], SendFailureReason], ...] = (
    (PendingFullError, SendFailureReason.PENDING_FULL),
    (OfflineStoreFullError, SendFailureReason.PENDING_FULL),
    (QueueFullError, SendFailureReason.QUEUE_FULL),
    (UserOfflineError, SendFailureReason.USER_OFFLINE),
    (ClientDisconnectedError, SendFailureReason.CONN_CLOSED),
    (ClientNotFoundError, SendFailureReason.CONN_CLOSED),
    (AckTimeoutError, SendFailureReason.ACK_TIMEOUT),
    (LoopBusyError, SendFailureReason.TIMEOUT),
    (HubStateError, SendFailureReason.CHANNEL_CLOSED),
    (ValidationError, SendFailureReason.VALIDATION),
    (ConnectionError, SendFailureReason.CONN_ERROR),
)
GENERAL = "handle_send_failure"
# The methods of handlers, and their arguments by position.
METHODS: dict[str, tuple[str, ...]] = {
    "handle_send_failure": ("msg", "recipient", "reason", "error"),
    "handle_queue_full": ("msg", "recipient", "queue_type", "error"),
    "handle_user_offline": ("msg", "user_id", "error"),
    "handle_connection_error": ("msg", "client_id", "error"),
    "handle_timeout": ("msg", "recipient", "timeout_type", "duration", "error"),
}


def reason_of(error: BaseException) -> SendFailureReason:
    """The reason that an exception of a send stands for; "unknown" for those of others."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return SendFailureReason.UNKNOWN


def outside_handlers() -> None:
    """The task that calls this was begun by a handler perhaps, but is not the handler's own."""
    handling.set(False)


def calls_of(failure: Failure, client_id: str | None = None) -> list[tuple[str, tuple[Any, ...]]]:
    message, recipient, error = failure.message, failure.recipient, failure.error
    calls: list[tuple[str, tuple[Any, ...]]] = [
        (GENERAL, (message, recipient, failure.reason, error))
    ]
    method, kind = SPECIAL.get(failure.reason, (None, None))
    kind = failure.kind or kind
    if method == "handle_timeout":
        calls.append((method, (message, recipient, kind, failure.duration, error)))
    elif method == "handle_connection_error":
        calls.append((method, (message, recipient if client_id is None else client_id, error)))
    elif method is not None:
        middle = () if kind is None else (kind,)
        calls.append((method, (message, recipient, *middle, error)))
    return calls
