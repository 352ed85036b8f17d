"""The bound on the connections of one user: the new one is refused, or the oldest is closed."""

from __future__ import annotations

from collections.abc import Callable

from wsc_fast._core.connection import Client, send_away
from wsc_fast._core.engine import Engine
from wsc_fast.config import HubConfig
from wsc_fast.log import about, log
from wsc_fast.upgrade.refusals import Refusals

_LIMIT = "max_connections_per_user"
_REASON = "too many connections of this user"
# Close codes of a connection that is refused, and of one that a newer one replaces.
_REFUSED, _REPLACED = 1008, 4409


class PerUser:
    """The bound on the connections of each user of one hub.

    Args:
        engine, settings, refusals: of the hub.

    Attributes:
        most: connections of one user; 0: any number.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self, engine: Engine, settings: Callable[[], HubConfig], refusals: Refusals
    ) -> None:
        self.most: int = 0  # it is asked for each connection
        self._engine = engine
        self._settings = settings
        self._refusals = refusals

    @property
    def closes_oldest(self) -> bool:
        """Whether a new connection closes the oldest one, and is not refused."""
        return self._settings().user_overflow == "close_oldest"

    def admits(self, client: Client, user_id: str, replaced: Client | None) -> bool:
        """Whether a client may become one of a user; else it is closed.

        Args:
            client: not open yet.
            user_id: the user.
            replaced: a client of this user that it replaces.
        """
        most = self.most
        if not most:
            return True
        others = [each for each in self.clients(user_id) if each is not replaced]
        if len(others) < most:
            return True
        if not self.closes_oldest:
            self.refuse(client)
            return False
        others.sort(key=lambda each: each.connected_at)
        for each in others[: len(others) - most + 1]:
            self.close(each)
        return True

    def refuse(self, client: Client) -> None:
        """Closes a client that is one too many."""
        self._refusals.over_limit("full", client.remote_address, _LIMIT)
        client.disconnect(_REFUSED, _REASON)

    def close(self, client: Client) -> None:
        """Closes a client in whose place there is a newer one."""
        self._engine.count_limit(_LIMIT)
        log.warning(
            "client %a of user %a is closed for a newer one: HubConfig.max_connections_per_user is "
            "%d",
            client.id,
            client.user_id,
            self.most,
            extra=about(client, "closed_for_newer", setting=_LIMIT),
            reason=_LIMIT,
        )
        send_away(client, _REPLACED, _REASON)

    def clients(self, user_id: str) -> list[Client]:
        """The clients of a user here that are not being closed."""
        return [each for each in self._engine.get_clients_by_user(user_id) if each.is_connected()]
