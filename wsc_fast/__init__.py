"""wsc_fast: a WebSocket hub for Python servers that carry heavy traffic. The public names."""

from wsc_fast._core.connection import (
    Client,
)
from wsc_fast._core.pending import (
    PendingACK,
)
from wsc_fast.adapters.picows_server import handle_websocket
from wsc_fast.auth import JWTAuthenticator, TokenAuthenticator
from wsc_fast.config import (
    ACKConfig,
    HubConfig,
    RetryConfig,
)
from wsc_fast.delivery.failures import (
    ConnectionErrorHandler,
    QueueFullHandler,
    SendFailureHandler,
    TimeoutHandler,
    UserOfflineHandler,
)
from wsc_fast.delivery.retry import (
    SendAttempt,
    SendResult,
)
from wsc_fast.errors import (
    AckDroppedError,
    AckError,
    AckFailedError,
    AckTimeoutError,
    ClientDisconnectedError,
    ClientNotFoundError,
    ConfigError,
    ConnectionLostError,
    HubStateError,
    HubStoppedError,
    LimitError,
    ListenError,
    LoopBusyError,
    MessageExistsError,
    MessageTypeError,
    OfflineStoreError,
    OfflineStoreFullError,
    PendingFullError,
    PermissionDeniedError,
    ProtocolError,
    QueueFullError,
    RoomExistsError,
    RoomNotFoundError,
    SendError,
    SendFailureReason,
    SendTimeoutError,
    UserOfflineError,
    ValidationError,
    WSCError,
)
from wsc_fast.hub import (
    Hub,
)
from wsc_fast.listen.sockets import inherited_socket
from wsc_fast.messages import (
    ACKMessage,
    AckStatus,
    HubMessage,
    Priority,
)
from wsc_fast.stats import (
    ClientStats,
    HubStats,
)
from wsc_fast.stores.base import OfflineStore, SharedOfflineStore, StoredMessage
from wsc_fast.stores.memory import MemoryOfflineStore
from wsc_fast.stores.redis.store import (
    RedisOfflineStore,
)
from wsc_fast.stores.sqlite.store import (
    SQLiteOfflineStore,
)
from wsc_fast.upgrade.answers import Response
from wsc_fast.upgrade.identity import Identity
from wsc_fast.upgrade.request import Request

__all__ = [
    "ACKConfig",
    "ACKMessage",
    "AckDroppedError",
    "AckError",
    "AckFailedError",
    "AckStatus",
    "AckTimeoutError",
    "Client",
    "ClientDisconnectedError",
    "ClientNotFoundError",
    "ClientStats",
    "ConfigError",
    "ConnectionErrorHandler",
    "ConnectionLostError",
    "Hub",
    "HubConfig",
    "HubMessage",
    "HubStateError",
    "HubStats",
    "HubStoppedError",
    "Identity",
    "JWTAuthenticator",
    "LimitError",
    "ListenError",
    "LoopBusyError",
    "MemoryOfflineStore",
    "MessageExistsError",
    "MessageTypeError",
    "OfflineStore",
    "OfflineStoreError",
    "OfflineStoreFullError",
    "PendingACK",
    "PendingFullError",
    "PermissionDeniedError",
    "Priority",
    "ProtocolError",
    "QueueFullError",
    "QueueFullHandler",
    "RedisOfflineStore",
    "Request",
    "Response",
    "RetryConfig",
    "RoomExistsError",
    "RoomNotFoundError",
    "SQLiteOfflineStore",
    "SendAttempt",
    "SendError",
    "SendFailureHandler",
    "SendFailureReason",
    "SendResult",
    "SendTimeoutError",
    "SharedOfflineStore",
    "StoredMessage",
    "TimeoutHandler",
    "TokenAuthenticator",
    "UserOfflineError",
    "UserOfflineHandler",
    "ValidationError",
    "WSCError",
    "handle_websocket",
    "inherited_socket",
]

__version__ = "0.1.0"
