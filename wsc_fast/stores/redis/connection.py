"""Brings commands to the server, again and again for a while, and says so where it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from wsc_fast.errors import OfflineStoreError
from wsc_fast.log import log
from wsc_fast.stores.redis.pace import Pace
from wsc_fast.stores.redis.scripts import Script

if TYPE_CHECKING:
    import redis.asyncio

# Seconds between attempts: from the first pause, doubling, to the last.
FIRST_PAUSE, LAST_PAUSE = 0.02, 0.5


class Connection:
    """The client of redis-py, the patience with which commands are tried, and what errors may say.

    Attributes:
        client: of redis-py.
        at: the server, as errors name it.
        stopped: set for the end: no command is tried again.
    """

    def __init__(
        self, client: redis.asyncio.Redis, name: str, secrets: Sequence[str], timeout: float
    ) -> None:
        self.client: Any = client  # redis-py types half of it
        self.at: str = f"Redis at {name}"
        self.stopped = False
        self._loop = asyncio.get_running_loop()
        self._secrets = secrets
        self._timeout = timeout

    async def run(self, script: Script, command: Callable[[], tuple[Any, ...]], pace: Pace) -> Any:
        """Runs a script; `command` makes its keys and arguments anew for each attempt."""
        from redis.exceptions import NoScriptError

        deadline = self._loop.time() + self._timeout
        try:
            return await self.attempt(lambda: ("EVALSHA", script.sha, *command()), pace, deadline)
        except NoScriptError:
            # A server that was just started: this makes it known there.
            return await self.attempt(lambda: ("EVAL", script.text, *command()), pace, deadline)

    async def attempt(
        self,
        command: Callable[[], tuple[Any, ...]],
        pace: Pace,
        deadline: float | None = None,
    ) -> Any:
        """Runs a command, again if need be, for `timeout` seconds; raises what redis-py raises."""
        from redis.exceptions import ReadOnlyError

        if deadline is None:
            deadline = self._loop.time() + self._timeout
        pause = FIRST_PAUSE
        known: Exception | None = None
        while True:
            if self.stopped:
                raise OfflineStoreError(f"{self.at} was closed")
            began = self._loop.time()
            until = min(began + self._timeout / 2, deadline)
            try:
                async with asyncio.timeout_at(until):
                    return await self.client.execute_command(*command())
            except Exception as error:
                if known is not None and until == deadline and isinstance(error, TimeoutError):
                    # The attempt was cut short: what the one before failed with says more.
                    raise known from None
                if not _passes(error) or self._loop.time() + pause >= deadline:
                    raise
                known = error
                if isinstance(error, ReadOnlyError):
                    # After a failover the name may stand for another server.
                    await self.client.connection_pool.disconnect(inuse_connections=False)
            finally:
                pace.took(self._loop.time() - began)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    async def close(self) -> None:
        """Disconnects; what fails about that is only logged."""
        try:
            await self.client.aclose(close_connection_pool=True)
        except Exception as error:
            log.debug("%s: %s", self.at, self._text(error))

    def trouble(self, error: Exception) -> OfflineStoreError:
        """The error to report for one: a new one each time, unless it is an OfflineStoreError."""
        if isinstance(error, OfflineStoreError):
            return error
        trouble = OfflineStoreError(f"{self.at}: {self._text(error)}")
        # The text of a cause shows in a traceback. Without a cause, the context does not show.
        hidden = any(secret in str(error) for secret in self._secrets)
        trouble.__cause__ = None if hidden else error
        return trouble

    def _text(self, error: Exception) -> str:
        text = str(error) or f"no answer within {self._timeout / 2:g} s"
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _passes(error: Exception) -> bool:
    """Whether the same command may succeed a little later."""
    from redis import exceptions

    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return False
    lost = exceptions.ConnectionError, exceptions.TimeoutError, OSError
    changing = exceptions.ReadOnlyError, exceptions.ClusterDownError, exceptions.TryAgainError
    if isinstance(error, (*lost, *changing)):
        return True
    # Some have no class in redis-py, or not in its older versions. Before version 7 a server begins
    # the text of an error with the place in the script where it came up.
    passing = ("BUSY ", "CLUSTERDOWN ", "MASTERDOWN ", "TRYAGAIN ")
    text = str(error)
    return isinstance(error, exceptions.ResponseError) and (
        text.startswith(passing) or "-READONLY " in text
    )
