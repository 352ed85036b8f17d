"""Where a server is, and how it lets us in: URLs, TLS, and Sentinel's word for the master.

redis-py reads the URLs and makes the TLS context. The Sentinels are asked over connections of our
own, so that a fork knows their sockets as it knows all others.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from wsc_fast._core.resp import ReplyError
from wsc_fast.bus.redis.commands import encode
from wsc_fast.bus.redis.link import Link
from wsc_fast.errors import BusError, ConfigError, shown

# Seconds that each Sentinel has for its answer.
SENTINEL_TIMEOUT = 1.0

_FORMS = (
    "redis://[user:password@]host[:port][/db], rediss://… for TLS, unix://[user:password@]/path, "
    "or redis+sentinel://[user:password@]host[:port],host[:port]/name"
)


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
        self._sentinels: list[tuple[str, int]] = []
        self._sentinel_login: dict[str, str] = {}
        self._sentinels_speak_tls = False
        self._master = ""
        try:
            options = self._read(url)
        except ConfigError:
            raise
        except Exception:
            # Neither the URL nor the cause is in the text: a password may be in both.
            raise ConfigError(f"the URL of a RedisBus must be {_FORMS}") from None
        self.username: str | None = options.get("username")
        self.password: str | None = options.get("password")
        self.db: int = int(options.get("db") or 0)
        self._path: str | None = options.get("path")
        self._host = str(options.get("host") or "localhost")
        self._port = int(options.get("port") or 6379)
        self._ssl = ssl_context or self._context(options)
        if ssl_context is not None and self._path is not None:
            raise ConfigError("ssl_context is for TCP, not for a Unix socket")
        self.text: str = self._path or f"{self._host}:{self._port}"
        if self._sentinels:
            of = ", ".join(f"{host}:{port}" for host, port in self._sentinels)
            self.text = f"{self._master} (Sentinel at {of})"

    def _read(self, url: str) -> Mapping[str, Any]:
        from redis.asyncio.connection import parse_url

        scheme, _, rest = url.partition("://")
        if scheme not in ("redis+sentinel", "rediss+sentinel"):
            options: Mapping[str, Any] = parse_url(url)
            return options
        parts = urlsplit(f"redis://{rest}")
        credentials, _, hosts = parts.netloc.rpartition("@")
        self._sentinels = [_host_and_port(host) for host in hosts.split(",")]
        self._master, _, db = parts.path.strip("/").partition("/")
        if not self._master:
            raise ConfigError(f"the name of the master is missing at the end of {shown(hosts)}")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        for name in ("username", "password"):
            if (value := query.pop(f"sentinel_{name}", None)) is not None:
                self._sentinel_login[name] = value
        options = dict(query)
        username, _, password = credentials.partition(":")
        options["username"] = unquote(username) or None
        options["password"] = unquote(password) or None
        options["db"] = int(db or 0)
        if scheme == "rediss+sentinel":
            from redis.asyncio.connection import SSLConnection

            options["connection_class"] = SSLConnection
            self._sentinels_speak_tls = True
        return options

    def _context(self, options: Mapping[str, Any]) -> ssl.SSLContext | None:
        from redis.asyncio.connection import SSLConnection

        if options.get("connection_class") is not SSLConnection:
            return None
        wanted = {name: value for name, value in options.items() if name.startswith("ssl_")}
        try:
            context: ssl.SSLContext = SSLConnection(**wanted).ssl_context.get()
        except Exception as error:
            raise ConfigError(f"the TLS options of the URL cannot be used: {error}") from error
        return context

    async def find(self, new_link: Callable[[], Link]) -> tuple[str, int] | str:
        """Where the server is now: host and port, or the path of a Unix socket.

        Args:
            new_link: makes the connection to a Sentinel.

        Raises:
            BusError: no Sentinel knows the master.
        """
        if self._sentinels:
            return await self._ask_sentinels(new_link)
        return self._path or (self._host, self._port)

    async def _ask_sentinels(self, new_link: Callable[[], Link]) -> tuple[str, int]:
        reasons = []
        for place in self._sentinels:
            made: list[Link] = []

            def make(made: list[Link] = made) -> Link:
                made.append(new_link())
                return made[0]

            try:
                async with asyncio.timeout(SENTINEL_TIMEOUT):
                    await _open(place, make, self._ssl if self._sentinels_speak_tls else None)
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
        login = self._sentinel_login
        if "password" in login:
            words = [login[name] for name in ("username", "password") if name in login]
            if isinstance(error := await link.ask(b"AUTH", *map(encode, words)), ReplyError):
                raise BusError(str(error))
        found = await link.ask(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", encode(self._master))
        if isinstance(found, ReplyError):
            raise BusError(str(found))
        if not isinstance(found, list) or len(found) != 2:
            raise BusError(f"it knows no {self._master}")
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


def _host_and_port(text: str) -> tuple[str, int]:
    parts = urlsplit(f"redis://{text}")
    if not parts.hostname:
        raise ConfigError(f"{shown(text)} must be the host and port of a Sentinel")
    return parts.hostname, parts.port or 26379
