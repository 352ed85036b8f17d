"""wsc_fast: a WebSocket hub for Python servers that carry heavy traffic. The public names.

Nothing is imported before it is used, so that a program pays for its part of the package alone:
`MemoryOfflineStore` brings no SQLite, an error no event loop. Type checkers and editors read the
imports; the running program finds a name's module in `_NAMES`. A test compares the two.
"""

import typing

if typing.TYPE_CHECKING:
    from wsc_fast._core.connection import Client
    from wsc_fast._core.pending import PendingACK
    from wsc_fast.adapters.picows_server import handle_websocket
    from wsc_fast.auth import BasicAuthenticator, JWTAuthenticator, TokenAuthenticator
    from wsc_fast.bus.base import HistoryEntry, Member, NodeInfo, Published
    from wsc_fast.bus.local import LocalBus
    from wsc_fast.bus.memory import MemoryBus
    from wsc_fast.bus.redis.bus import RedisBus
    from wsc_fast.config import ACKConfig, HubConfig, RetryConfig
    from wsc_fast.delivery.failures import (
        ConnectionErrorHandler,
        QueueFullHandler,
        SendFailureHandler,
        TimeoutHandler,
        UserOfflineHandler,
    )
    from wsc_fast.delivery.retry import SendAttempt, SendResult
    from wsc_fast.errors import (
        AckDroppedError,
        AckError,
        AckFailedError,
        AckTimeoutError,
        BusError,
        BusUnavailableError,
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
        RequestError,
        RoomExistsError,
        RoomNotFoundError,
        SendError,
        SendFailureReason,
        SendTimeoutError,
        UserOfflineError,
        ValidationError,
        WSCError,
    )
    from wsc_fast.hub import Hub
    from wsc_fast.listen.sockets import inherited_socket
    from wsc_fast.messages import ACKMessage, AckStatus, HubMessage, Priority
    from wsc_fast.stats import ClientStats, HubStats
    from wsc_fast.stores.base import OfflineStore, SharedOfflineStore, StoredMessage
    from wsc_fast.stores.memory import MemoryOfflineStore
    from wsc_fast.stores.redis.store import RedisOfflineStore
    from wsc_fast.stores.sqlite.store import SQLiteOfflineStore
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
    "BasicAuthenticator",
    "BusError",
    "BusUnavailableError",
    "Client",
    "ClientDisconnectedError",
    "ClientNotFoundError",
    "ClientStats",
    "ConfigError",
    "ConnectionErrorHandler",
    "ConnectionLostError",
    "HistoryEntry",
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
    "LocalBus",
    "LoopBusyError",
    "Member",
    "MemoryBus",
    "MemoryOfflineStore",
    "MessageExistsError",
    "MessageTypeError",
    "NodeInfo",
    "OfflineStore",
    "OfflineStoreError",
    "OfflineStoreFullError",
    "PendingACK",
    "PendingFullError",
    "PermissionDeniedError",
    "Priority",
    "ProtocolError",
    "Published",
    "QueueFullError",
    "QueueFullHandler",
    "RedisBus",
    "RedisOfflineStore",
    "Request",
    "RequestError",
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

_NAMES = {
    "wsc_fast._core.connection": ("Client",),
    "wsc_fast._core.pending": ("PendingACK",),
    "wsc_fast.adapters.picows_server": ("handle_websocket",),
    "wsc_fast.auth": ("BasicAuthenticator", "JWTAuthenticator", "TokenAuthenticator"),
    "wsc_fast.bus.base": ("HistoryEntry", "Member", "NodeInfo", "Published"),
    "wsc_fast.bus.local": ("LocalBus",),
    "wsc_fast.bus.memory": ("MemoryBus",),
    "wsc_fast.bus.redis.bus": ("RedisBus",),
    "wsc_fast.config": ("ACKConfig", "HubConfig", "RetryConfig"),
    "wsc_fast.delivery.failures": (
        "ConnectionErrorHandler",
        "QueueFullHandler",
        "SendFailureHandler",
        "TimeoutHandler",
        "UserOfflineHandler",
    ),
    "wsc_fast.delivery.retry": ("SendAttempt", "SendResult"),
    "wsc_fast.errors": (
        "AckDroppedError",
        "AckError",
        "AckFailedError",
        "AckTimeoutError",
        "BusError",
        "BusUnavailableError",
        "ClientDisconnectedError",
        "ClientNotFoundError",
        "ConfigError",
        "ConnectionLostError",
        "HubStateError",
        "HubStoppedError",
        "LimitError",
        "ListenError",
        "LoopBusyError",
        "MessageExistsError",
        "MessageTypeError",
        "OfflineStoreError",
        "OfflineStoreFullError",
        "PendingFullError",
        "PermissionDeniedError",
        "ProtocolError",
        "QueueFullError",
        "RequestError",
        "RoomExistsError",
        "RoomNotFoundError",
        "SendError",
        "SendFailureReason",
        "SendTimeoutError",
        "UserOfflineError",
        "ValidationError",
        "WSCError",
    ),
    "wsc_fast.hub": ("Hub",),
    "wsc_fast.listen.sockets": ("inherited_socket",),
    "wsc_fast.messages": ("ACKMessage", "AckStatus", "HubMessage", "Priority"),
    "wsc_fast.stats": ("ClientStats", "HubStats"),
    "wsc_fast.stores.base": ("OfflineStore", "SharedOfflineStore", "StoredMessage"),
    "wsc_fast.stores.memory": ("MemoryOfflineStore",),
    "wsc_fast.stores.redis.store": ("RedisOfflineStore",),
    "wsc_fast.stores.sqlite.store": ("SQLiteOfflineStore",),
    "wsc_fast.upgrade.answers": ("Response",),
    "wsc_fast.upgrade.identity": ("Identity",),
    "wsc_fast.upgrade.request": ("Request",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

# Hidden from type checkers, which would take any name for one of the package.
if not typing.TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        import importlib

        if name == "__version__":
            from importlib.metadata import version

            value: object = version("wsc_fast")
        elif name in _MODULE_OF:
            value = getattr(importlib.import_module(_MODULE_OF[name]), name)
        else:
            raise AttributeError(f"module 'wsc_fast' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
else:
    __version__: str
