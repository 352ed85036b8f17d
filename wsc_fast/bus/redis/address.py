"""Where a server is, and how it lets us in: TLS, and Sentinel's word for the master.

redis-py makes the TLS context, and asks the Sentinels. Nothing of it is in the way
of a message.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from wsc_fast.bus.redis.urls import read_url
from wsc_fast.errors import BusError, ConfigError


class Address:
    """One server, or the Sentinels that know it.

    Args:
        url: as RedisBus takes it.
        ssl_context: in place of the one that the URL describes.

    Attributes:
        text: the address without credentials, for errors and logs.
        username: None: the default user.
        password: None: there is none.
        db: the number of the database.
    """

    def __init__(self, url: str, ssl_context: ssl.SSLContext | None = None) -> None:
        self._url = read_url(url)
        self.username: str | None = self._url.options.get("username")
        self.password: str | None = self._url.options.get("password")
        self.db: int = int(self._url.options.get("db") or 0)
        self._sentinel_options = dict(self._url.sentinel_options)
        self._ssl = ssl_context or self._context()
        if ssl_context is not None and self._url.path is not None:
            raise ConfigError("ssl_context is for TCP, not for a Unix socket")
        self.text: str = self._url.text

    def _context(self) -> ssl.SSLContext | None:
        from redis.asyncio.connection import SSLConnection

        if not self._url.tls:
            return None
        options = self._url.options
        wanted = {name: value for name, value in options.items() if name.startswith("ssl_")}
        if self._url.sentinels:
            self._sentinel_options |= {"ssl": True, **wanted}
        try:
            context: ssl.SSLContext = SSLConnection(**wanted).ssl_context.get()
        except Exception as error:
            raise ConfigError(f"the TLS options of the URL cannot be used: {error}") from error
        return context

    async def find(self) -> tuple[str, int] | str:
        """Where the server is now: host and port, or the path of a Unix socket.

        Raises:
            BusError: no Sentinel knows the master.
        """
        if self._url.sentinels:
            return await self._ask_sentinels()
        return self._url.path or (self._url.host, self._url.port)

    async def _ask_sentinels(self) -> tuple[str, int]:
        import redis
        from redis.asyncio.sentinel import Sentinel

        options = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0, **self._sentinel_options}
        make: Any = Sentinel  # redis-py does not type it
        sentinel = make(self._url.sentinels, sentinel_kwargs=options)
        try:
            host, port = await sentinel.discover_master(self._url.master)
        except redis.RedisError as error:
            raise BusError(f"no Sentinel knows a master: {error}") from error
        finally:
            for client in sentinel.sentinels:
                await client.aclose(close_connection_pool=True)
        return str(host), int(port)

    async def connect(
        self, place: tuple[str, int] | str, factory: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        """Connects to where the server is.

        Args:
            place: as `find` has returned it.
            factory: makes the protocol of the connection.

        Raises:
            OSError: there is no connection.
        """
        loop = asyncio.get_running_loop()
        if isinstance(place, str):
            await loop.create_unix_connection(factory, place)
            return
        host, port = place
        name = host if self._ssl is not None else None
        await loop.create_connection(factory, host, port, ssl=self._ssl, server_hostname=name)
