"""Refused upgrades: each is counted, and told to the operator with its reason.

A line says who was refused, why, and which setting decides that, with its value. It holds nothing
that the peer has sent but its Host or Origin, which are quoted; never a token. There is one a
second for each reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wsc_fast._core.engine import Engine
from wsc_fast.log import log, quoted


class Refusals:
    """The refused upgrades of one hub.

    Args:
        engine: of the hub; it counts them.
        settings: those that hold now.

    Thread-safety: the loop's thread.
    """

    def __init__(self, engine: Engine, settings: Callable[[], object]) -> None:
        self._engine = engine
        self._settings = settings

    def refuse(
        self,
        counted: str,
        address: str,
        why: str,
        *arguments: Any,
        detail: str = "",
        **fields: Any,
    ) -> None:
        """Counts and tells a refusal.

        Args:
            counted: the reason, as `HubStats.rejected` has it.
            address: of the peer, or "".
            why: the end of the line, whose arguments follow. It is the reason for the line's kind.
            detail: the rest of that reason, where it is among the arguments.
            **fields: of the record, besides its reason and the address.
        """
        self._engine.count_rejected(counted)
        log.warning(
            "an upgrade from %s is refused: " + why,
            address or "an unknown address",
            *arguments,
            extra={"event": "upgrade_refused", "reason": counted, "address": address, **fields},
            reason=detail,
        )

    def over_limit(self, counted: str, address: str, setting: str) -> None:
        """An upgrade met the limit of this setting."""
        self._engine.count_limit(setting)
        self.refuse(
            counted,
            address,
            _BEYOND[setting],
            getattr(self._settings(), setting),
            setting=setting,
        )

    def unauthenticated(self, address: str, reason: object) -> None:
        """`authenticate` has said no; the reason, where it is known: a str, or an exception."""
        if reason is None:
            self.refuse("auth", address, "authenticate returned None")
        else:
            told = quoted(str(reason))
            self.refuse("auth", address, "it is not authenticated: %s", told, detail=told)

    def timed_out(self, address: str) -> None:
        """An async `authenticate` took too long."""
        self.over_limit("auth", address, "authentication_timeout")


# Setting -> what a line says of an upgrade that met it.
_BEYOND = {
    "max_connections": "the hub has as many connections as HubConfig.max_connections (%d) allows",
    "max_connections_per_address": (
        "its address has as many connections as HubConfig.max_connections_per_address (%d) "
        "allows; behind a proxy that is not in trusted_proxies all clients have one address"
    ),
    "max_connections_per_user": (
        "its user has as many connections as HubConfig.max_connections_per_user (%d) allows"
    ),
    "connection_rate": "more upgrades a second than HubConfig.connection_rate (%g) come",
    "connection_rate_per_address": (
        "more upgrades a second than HubConfig.connection_rate_per_address (%g) come from its "
        "address; behind a proxy that is not in trusted_proxies all clients have one address"
    ),
    "authentication_timeout": (
        "authenticate took longer than HubConfig.authentication_timeout (%g s)"
    ),
}


def listed(items: tuple[str, ...]) -> str:
    """The items of a setting, for a line."""
    return quoted(", ".join(items)) if items else "empty"
