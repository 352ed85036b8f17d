"""wsc_fast: a WebSocket hub for Python servers that carry heavy traffic. The public names."""

from wsc_fast._core.connection import Client
from wsc_fast.config import HubConfig
from wsc_fast.errors import (
    ClientDisconnectedError,
    ClientNotFoundError,
    ConfigError,
    HubStateError,
    HubStoppedError,
    LimitError,
    ListenError,
    LoopBusyError,
    MessageTypeError,
    ProtocolError,
    QueueFullError,
    RoomExistsError,
    RoomNotFoundError,
    SendError,
    SendFailureReason,
    ValidationError,
    WSCError,
)
from wsc_fast.hub import Hub, handle_websocket
from wsc_fast.server import Identity, Request, Response
from wsc_fast.stats import HubStats

__all__ = [
    "Client",
    "ClientDisconnectedError",
    "ClientNotFoundError",
    "ConfigError",
    "Hub",
    "HubConfig",
    "HubStateError",
    "HubStats",
    "HubStoppedError",
    "Identity",
    "LimitError",
    "ListenError",
    "LoopBusyError",
    "MessageTypeError",
    "ProtocolError",
    "QueueFullError",
    "Request",
    "Response",
    "RoomExistsError",
    "RoomNotFoundError",
    "SendError",
    "SendFailureReason",
    "ValidationError",
    "WSCError",
    "handle_websocket",
]

__version__ = "0.1.0"
