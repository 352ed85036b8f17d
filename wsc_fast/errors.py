"""Every exception that wsc_fast raises on purpose, and the reasons of a failed send.

    WSCError
    ├── ValidationError (ValueError)            the caller gave a value that cannot be used
    │   └── MessageTypeError (TypeError)        ... a message that is neither bytes nor str
    ├── ConfigError (ValueError)                a configuration that cannot work
    ├── ListenError (OSError)                   the address cannot be listened on
    ├── HubStateError (RuntimeError)            the call does not fit the hub's state
    │   ├── HubStoppedError                     ... the hub stopped while the call was under way
    │   └── LoopBusyError (TimeoutError)        ... its loop did not take the call in time
    ├── ClientNotFoundError (LookupError)       no connected client has this id
    ├── RoomNotFoundError (LookupError)         no room has this id
    ├── RoomExistsError (ValueError)            a room has this id already
    ├── LimitError (RuntimeError)               a bound on rooms or handlers is reached
    ├── PermissionDeniedError (PermissionError) the application's own rules do not allow it
    ├── RequestError                            for a callback to raise: the answer to a request
    ├── SendError                               a message was not taken, and nothing was sent
    │   ├── QueueFullError                      ... the client's outbox is full (a slow consumer)
    │   ├── PendingFullError                    ... too many wait for an acknowledgement already
    │   ├── UserOfflineError                    ... the user has no connected client
    │   ├── SendTimeoutError (TimeoutError)     ... the client did not read it in time
    │   └── ClientDisconnectedError             ... the client is closing or gone
    ├── AckError                                a message was not acknowledged
    │   ├── AckTimeoutError (TimeoutError)      ... in time
    │   ├── AckFailedError                      ... the client reports that it failed
    │   └── AckDroppedError                     ... given up: a bound, or its age
    ├── OfflineStoreError                       the offline store has trouble
    │   ├── OfflineStoreFullError               ... it holds as many for this user as it may
    │   └── MessageExistsError                  ... it holds another message under this id
    ├── BusError                                the bus between hubs has trouble
    │   └── BusUnavailableError (ConnectionError) ... it did not answer in time
    ├── ConnectionLostError (ConnectionError)   a client went without a close frame, or fell silent
    └── ProtocolError                           the peer broke RFC 6455 or one of our bounds

The first group is the caller's mistake, `SendError` the state of the peer. The last two are the
network's and the peer's fault: they never reach a sender, only `on_error` handlers.
"""

from __future__ import annotations

import reprlib
from enum import StrEnum


class WSCError(Exception):
    """Base of every exception that wsc_fast raises on purpose."""


class ValidationError(WSCError, ValueError):
    """A value that cannot be used; the text names it and what was expected."""


class MessageTypeError(ValidationError, TypeError):
    """A message that is neither bytes nor str."""


class ConfigError(WSCError, ValueError):
    """A configuration that cannot work; the text names the key, the value and what is allowed."""


class ListenError(WSCError, OSError):
    """The address cannot be listened on (in use, not ours, not permitted)."""


class HubStateError(WSCError, RuntimeError):
    """The call does not fit the hub's state, such as starting it twice."""


class HubStoppedError(HubStateError):
    """The hub stopped while a call from another thread was waiting for its loop."""


class LoopBusyError(HubStateError, TimeoutError):
    """The hub's loop did not take a call from another thread in time.

    Mostly a deadlock: a callback on the loop waits for the very thread that makes the call.
    """


class ClientNotFoundError(WSCError, LookupError):
    """No connected client has this id."""


class RoomNotFoundError(WSCError, LookupError):
    """No room has this id."""


class RoomExistsError(WSCError, ValueError):
    """A room has this id already."""


class LimitError(WSCError, RuntimeError):
    """A bound is reached: on rooms, rooms per client, or failure handlers."""


class PermissionDeniedError(WSCError, PermissionError):
    """`authorize_join` or `authorize_publish` does not allow it."""


class RequestError(WSCError):
    """Raised by `on_request` or `on_join_request`: the client gets this as its answer.

    Attributes:
        code: for the client's program.

    Args:
        code: 1 to 64 characters, such as "not-found".
        text: for people; the client gets it as `message`.

    Raises:
        ValidationError: the code or the text is not such a str.
    """

    def __init__(self, code: str, text: str = "") -> None:
        if not isinstance(code, str) or not 1 <= len(code) <= 64:
            raise ValidationError(f"code must be a str of 1 to 64 characters, not {code!r}")
        if not isinstance(text, str):
            raise ValidationError(f"text must be a str, not {type(text).__name__}")
        super().__init__(text)
        self.code: str = code


class SendError(WSCError):
    """A message was not taken; nothing of it was sent."""


class QueueFullError(SendError):
    """The client's outbox has reached its bound, and its policy made no room."""


class PendingFullError(SendError):
    """As many messages wait for an acknowledgement as may."""


class UserOfflineError(SendError):
    """The user has no connected client."""


class SendTimeoutError(SendError, TimeoutError):
    """The client did not read the message before the close timeout; for failure handlers."""


class ClientDisconnectedError(SendError):
    """The client is closing or gone."""


class AckError(WSCError):
    """A message was not acknowledged.

    Attributes:
        message_id: of the HubMessage.
    """

    def __init__(self, message_id: str, text: str) -> None:
        super().__init__(text)
        self.message_id = message_id


class AckTimeoutError(AckError, TimeoutError):
    """No acknowledgement came in time, after the last retransmission."""


class AckFailedError(AckError):
    """The client acknowledged the message as failed.

    The text is the client's. It may end in a log: where a character in it cannot be printed, all
    but ASCII is escaped.
    """

    def __init__(self, message_id: str, text: str) -> None:
        super().__init__(message_id, text if text.isprintable() else ascii(text)[1:-1])


class AckDroppedError(AckError):
    """The hub gave the message up, for a bound of the offline store or for its age."""


class OfflineStoreError(WSCError):
    """The offline store has trouble; the text names the store and the cause."""


class OfflineStoreFullError(OfflineStoreError):
    """The offline store holds as many messages for this user as it may."""


class MessageExistsError(OfflineStoreError):
    """The offline store holds another message of this user under the same id.

    Attributes:
        data: the message that it holds, as JSON.
    """

    def __init__(self, text: str, data: bytes) -> None:
        super().__init__(text)
        self.data = data


class BusError(WSCError):
    """The bus between hubs has trouble; the text names the bus and the cause."""


class BusUnavailableError(BusError, ConnectionError):
    """The bus did not answer in time; a message may or may not have been published."""


class ConnectionLostError(WSCError, ConnectionError):
    """A client's connection broke, or the client was silent for the heartbeat timeout.

    Attributes:
        code: `client.close_code`: 1006 for a connection that ended without a close frame, 1001 for
            one that the hub closes after the heartbeat timeout.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ProtocolError(WSCError):
    """The peer broke RFC 6455 or one of the hub's bounds.

    Attributes:
        code: the close code sent for it (RFC 6455 section 7.4.1).
        limit: the setting of HubConfig whose bound was broken; None for a fault in the protocol.
    """

    def __init__(self, code: int, message: str, limit: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.limit = limit


class SendFailureReason(StrEnum):
    """Why a message was not delivered (go-wsc `SendFailureReason…`)."""

    QUEUE_FULL = "queue_full"
    BROADCAST_FULL = "broadcast_full"
    PENDING_FULL = "pending_full"
    USER_OFFLINE = "user_offline"
    TIMEOUT = "timeout"
    SEND_TIMEOUT = "send_timeout"
    ACK_TIMEOUT = "ack_timeout"
    CONN_CLOSED = "conn_closed"
    CONN_ERROR = "conn_error"
    CHANNEL_CLOSED = "channel_closed"
    UNKNOWN = "unknown"
    VALIDATION = "validation"
    PERMISSION = "permission"


def shown(value: object) -> str:
    """A value that somebody else gave, for an error's text: short, whatever its own repr does."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an int of more than 4,300 digits
        return f"a huge {type(value).__name__}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxtuple = _SHORT.maxlist = _SHORT.maxdict = 20
