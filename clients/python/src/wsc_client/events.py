"""The events of a client and its rooms: one class each, for `match` and for `on`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from wsc_client.errors import RefusedError

State: TypeAlias = Literal["connecting", "open", "waiting", "closed"]
Why: TypeAlias = Literal["called", "code", "unauthorized", "forbidden"]


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the server.

    Attributes:
        data: the value of a text in JSON, another text as str, or bytes.
        room: the kept room that it was sent to, where the client recovers; else None.
        pos: its position in that room.
        hub: whether `data` is a HubMessage, a dict with `id`, `type`, `content` and `create_at`.
        raw: the text or the bytes as they came, without the head of wsc.1.
    """

    data: Any
    room: str | None = None
    pos: str | None = None
    hub: bool = False
    raw: str | bytes = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class StateChange:
    """The client has another state.

    Attributes:
        state: "connecting", "open", "waiting" or "closed".
        again: of "open": whether this is not the first connection. Messages that belong to no kept
            room may have been missed.
        code: of "waiting" and "closed": the close code, 1006 where there was no close frame.
        delay: of "waiting": the seconds that the client will wait.
        why: of "closed": "called", "code", "unauthorized" or "forbidden".
        reason: the text of the close frame.
        error: why the attempt failed, where there is an exception for it.
    """

    state: State
    again: bool = False
    code: int = 0
    delay: float = 0.0
    why: Why | None = None
    reason: str = field(default="", compare=False)
    error: BaseException | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class CloseFrame:
    """The server's close frame.

    Attributes:
        code: 1005 where it has none, 1006 where no close frame came.
        reason: its text.
    """

    code: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Joined:
    """The server has let the client into a room, on this connection."""

    room: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The server has not let the client into a room, and is asked no more."""

    room: str
    error: RefusedError


@dataclass(frozen=True, slots=True)
class Recovered:
    """The messages of a room that were missed have come, before this."""

    room: str
    missed: int


@dataclass(frozen=True, slots=True)
class First:
    """The client is a member of a kept room, and had named no position of it."""

    room: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages of a room are missing; `room` is "" for messages to all clients."""

    room: str


@dataclass(frozen=True, slots=True)
class Bus:
    """Whether the hub hears of the other hubs."""

    connected: bool


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """A listener, `load` or `get_token` has raised this. Without a listener it is logged."""

    error: BaseException


Event: TypeAlias = (
    Message | StateChange | Joined | Refused | Recovered | First | Gap | Bus | ErrorEvent
)
