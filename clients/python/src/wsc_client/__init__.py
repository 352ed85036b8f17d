"""The client of wsc_fast hubs for asyncio; `wsc_client.sync` has one for scripts and threads.

Its behaviour is that of `clients/spec.md`, whose rules the comments name.
"""

from wsc_client.client import Client, Stats
from wsc_client.errors import (
    ClientError,
    ClosedError,
    LostError,
    OptionError,
    ProtocolError,
    QueueFullError,
    RefusedError,
    RequestTimeoutError,
    SendError,
)
from wsc_client.events import (
    Bus,
    CloseFrame,
    ErrorEvent,
    Event,
    First,
    Gap,
    Joined,
    Message,
    Recovered,
    Refused,
    State,
    StateChange,
)
from wsc_client.memory import FileStorage, Storage
from wsc_client.options import Options, Token
from wsc_client.rooms import Room

__all__ = [
    "Bus",
    "Client",
    "ClientError",
    "CloseFrame",
    "ClosedError",
    "ErrorEvent",
    "Event",
    "FileStorage",
    "First",
    "Gap",
    "Joined",
    "LostError",
    "Message",
    "OptionError",
    "Options",
    "ProtocolError",
    "QueueFullError",
    "Recovered",
    "Refused",
    "RefusedError",
    "RequestTimeoutError",
    "Room",
    "SendError",
    "State",
    "StateChange",
    "Stats",
    "Storage",
    "Token",
]
