"""Log lines about clients: closed by the hub, dropped messages, and what callbacks raise.

Each says what happened to whom and why, and which setting decides it. The logger bounds them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

from wsc_fast._core import clock
from wsc_fast._core.connection import Client
from wsc_fast._core.engine import Engine
from wsc_fast.config import HubConfig
from wsc_fast.errors import ProtocolError
from wsc_fast.log import about, log

# How a line names a client, and the values for it.
_WHO = "client %a of user %a at %s"
# Seconds between two looks at what was dropped.
_LOOK = 1.0


def _names(client: Client) -> tuple[str, str, str]:
    return client.id, client.user_id, client.remote_address or "an unknown address"


def note_room(error: BaseException, room_id: str) -> None:
    """Has the line about an exception name the room that its callback was called for."""
    with suppress(AttributeError, TypeError):  # a class of the application's may forbid it
        error._wsc_room = room_id  # type: ignore[attr-defined]


def tell_callback_error(client: Client | None, error: BaseException) -> None:
    """Something raised that is no fault of a peer, mostly a callback."""
    room_id = getattr(error, "_wsc_room", None)
    room = {} if room_id is None else {"room": room_id}
    log.error(
        "a callback raised %s (%s%s)",
        type(error).__name__,
        "it belongs to no client" if client is None else f"of {client!r}",
        "" if room_id is None else f", about room {room_id!a}",
        exc_info=error,
        extra=about(client, "callback_error", error=type(error).__name__, **room),
        kind=f"a callback raised {type(error).__name__}",
    )


def tell_refused_join(client: Client, room_id: str, by: str) -> None:
    """A hook or a callback of this name has said no."""
    log.warning(
        _WHO + " may not join room %a: %s returned False",
        *_names(client),
        room_id,
        by,
        extra=about(client, "join_refused", room=room_id),
    )


def tell_raised(event: str, what: str, error: BaseException) -> None:
    """Something raised that hears of errors itself, so that it is told of here alone.

    Args:
        event: which line it is.
        what: the thing that raised.
        error: the exception.
    """
    name = type(error).__name__
    log.error(
        "%s raised %s",
        what,
        name,
        exc_info=error,
        extra={"event": event, "error": name},
        kind=f"{what} raised {name}",
    )


def tell_protocol_error(client: Client, error: ProtocolError, settings: HubConfig) -> None:
    """A client is closed, since it broke the protocol, or a bound."""
    if error.limit is None:
        log.warning(
            _WHO + " broke the protocol, and is closed with %d: %s",
            *_names(client),
            error.code,
            error,
            extra=about(client, "protocol_error", code=error.code, reason=str(error)),
            reason=str(error),
        )
        return
    setting, value = error.limit, getattr(settings, error.limit)
    log.warning(
        _WHO + " is closed with %d: %s (HubConfig.%s is %s)",
        *_names(client),
        error.code,
        error,
        setting,
        value,
        extra=about(
            client, "client_over_limit", code=error.code, reason=str(error), setting=setting
        ),
        kind=f"client over {setting}",
    )


def tell_heartbeat(client: Client, text: str) -> None:
    """A client is closed, since it was silent for the heartbeat timeout."""
    log.warning(
        _WHO + " is closed with 1001: %s (HubConfig.heartbeat_timeout); it is gone without a "
        "word, or a proxy does not pass on pings",
        *_names(client),
        text,
        extra=about(client, "heartbeat_timeout", reason=text),
    )


def tell_slow_consumer(client: Client, messages: int, nbytes: int, settings: HubConfig) -> None:
    """A client is closed, since a broadcast found its outbox full."""
    log.warning(
        _WHO + " is closed with 1013 as a slow consumer: %d messages (%d bytes) waited for it "
        'and are dropped (HubConfig.outbox_messages is %d, outbox_bytes %d, overflow "%s")',
        *_names(client),
        messages,
        nbytes,
        settings.outbox_messages,
        settings.outbox_bytes,
        settings.overflow,
        extra=about(client, "slow_consumer", queued_messages=messages, queued_bytes=nbytes),
    )


class OverloadLines:
    """Tells once a second of messages that were dropped since, of a hub that drops some.

    Looking at counters costs the messages nothing.

    Args:
        engine: it counts them.
        settings: those that hold now.

    Thread-safety: the loop's thread.
    """

    def __init__(self, engine: Engine, settings: Callable[[], HubConfig]) -> None:
        self._engine = engine
        self._settings = settings
        self._next_look = -math.inf
        self._dropped = self._beyond_rate = 0

    def look(self) -> None:
        """Tells what was dropped since the last look, if that is a second ago."""
        now = clock.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOK
            dropped, beyond_rate = self._engine.count_overload()
            # Less than before: the counters were reset.
            if dropped > self._dropped:
                self._tell_dropped(dropped - self._dropped)
            if beyond_rate > self._beyond_rate:
                self._tell_beyond_rate(beyond_rate - self._beyond_rate)
            self._dropped, self._beyond_rate = dropped, beyond_rate

    def _tell_dropped(self, count: int) -> None:
        settings, slowest = self._settings(), self._engine.fullest_client()
        log.warning(
            '%d messages were dropped at full outboxes (HubConfig.overflow is "%s", '
            "outbox_messages %d, outbox_bytes %d); most wait for %r: %d",
            count,
            settings.overflow,
            settings.outbox_messages,
            settings.outbox_bytes,
            slowest,
            0 if slowest is None else slowest.queued_messages,
            extra=about(slowest, "messages_dropped", dropped=count, reason=settings.overflow),
        )

    def _tell_beyond_rate(self, count: int) -> None:
        action = self._settings().rate_limit_action
        if action != "close":  # else each has a line
            log.warning(
                "%d messages of clients were beyond HubConfig.message_rate or byte_rate "
                '(rate_limit_action is "%s")',
                count,
                action,
                extra={"event": "rate_limited", "messages": count, "reason": action},
            )
