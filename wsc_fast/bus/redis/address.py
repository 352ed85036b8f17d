"""Where a server is, and how it lets us in: TLS, and Sentinel's word for the master.

redis-py makes the TLS context. The Sentinels are asked over connections of our own, so that a fork
knows their sockets as it knows all others.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from wsc_fast._core.resp import ReplyError
from wsc_fast.bus.redis.commands import encode
from wsc_fast.bus.redis.link import Link
from wsc_fast.bus.redis.urls import read_url
from wsc_fast.errors import BusError, ConfigError

# Seconds that each Sentinel has for its answer.
SENTINEL_TIMEOUT = 1.0


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
        try:
            context: ssl.SSLContext = SSLConnection(**wanted).ssl_context.get()
        except Exception as error:
            raise ConfigError(f"the TLS options of the URL cannot be used: {error}") from error
        return context

    @property
    def moves(self) -> bool:
        """Whether Sentinels say where the server is, which may be another one in a moment."""
        return bool(self._url.sentinels)

    async def find(self, new_link: Callable[[], Link]) -> tuple[str, int] | str:
        """Where the server is now: host and port, or the path of a Unix socket.

        Args:
            new_link: makes the connection to a Sentinel.

        Raises:
            BusError: no Sentinel knows the master.
        """
        if self._url.sentinels:
            return await self._ask_sentinels(new_link)
        return self._url.path or (self._url.host, self._url.port)

    async def _ask_sentinels(self, new_link: Callable[[], Link]) -> tuple[str, int]:
        reasons = []
        for place in self._url.sentinels:
            made: list[Link] = []

            def make(made: list[Link] = made) -> Link:
                made.append(new_link())
                return made[0]

            try:
                async with asyncio.timeout(SENTINEL_TIMEOUT):
                    await _open(place, make, self._ssl if self._url.tls else None)
                    return await self._ask(made[0])
            except TimeoutError:
                error: Exception = BusError(f"no answer within {SENTINEL_TIMEOUT:g} s")
            except (OSError, BusError) as caught:
                error = caught
            finally:
                for link in made:
                    link.abort(ConnectionError("it was asked"))
            reasons.append(f"{place[0]}:{place[1]}: {error}")
        raise BusError(f"no Sentinel knows a master ({'; '.join(reasons)})")

    async def _ask(self, link: Link) -> tuple[str, int]:
        """The place of the master, by one Sentinel."""
        login = self._url.sentinel_options
        if "password" in login:
            words = [login[name] for name in ("username", "password") if name in login]
            if isinstance(error := await link.ask(b"AUTH", *map(encode, words)), ReplyError):
                raise BusError(str(error))
        found = await link.ask(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", encode(self._url.master))
        if isinstance(found, ReplyError):
            raise BusError(str(found))
        if not isinstance(found, list) or len(found) != 2:
            raise BusError(f"it knows no {self._url.master}")
        host, port = found
        return host.decode(), int(port)

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
        if isinstance(place, str):
            await asyncio.get_running_loop().create_unix_connection(factory, place)
        else:
            await _open(place, factory, self._ssl)


async def _open(
    place: tuple[str, int],
    factory: Callable[[], asyncio.BaseProtocol],
    context: ssl.SSLContext | None,
) -> None:
    host, port = place
    name = host if context is not None else None
    loop = asyncio.get_running_loop()
    await loop.create_connection(factory, host, port, ssl=context, server_hostname=name)
