"""The URL of a server, or of the Sentinels that know it: what is in it.

redis-py reads all but the form of Sentinel, which it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from wsc_fast.errors import ConfigError, shown

# Bounds of the settings of a bus.
MOST_TIMEOUT, MOST_SERVERS, MOST_PREFIX = 60.0, 64, 64

_FORMS = (
    "redis://[user:password@]host[:port][/db], rediss://… for TLS, unix://[user:password@]/path, "
    "or redis+sentinel://[user:password@]host[:port],host[:port]/name"
)


@dataclass(frozen=True, slots=True)
class Url:
    """A URL that was read.

    Attributes:
        options: of a connection to the server, as redis-py calls them.
        tls: the connection is encrypted; its options begin with `ssl_`.
        sentinels: host and port of each; none where the URL names the server itself.
        sentinel_options: of the connections to them, but for TLS.
        master: the name by which they know the server.
        text: the address without credentials, for errors and logs.
    """

    options: Mapping[str, Any]
    tls: bool
    sentinels: tuple[tuple[str, int], ...] = ()
    sentinel_options: Mapping[str, Any] = field(default_factory=dict)
    master: str = ""

    @property
    def text(self) -> str:
        if self.sentinels:
            of = ", ".join(f"{host}:{port}" for host, port in self.sentinels)
            return f"{self.master} (Sentinel at {of})"
        return self.path or f"{self.host}:{self.port}"

    @property
    def path(self) -> str | None:
        """Of the Unix socket, if it is one."""
        path: str | None = self.options.get("path")
        return path

    @property
    def host(self) -> str:
        """Of the server."""
        return str(self.options.get("host") or "localhost")

    @property
    def port(self) -> int:
        """Of the server."""
        return int(self.options.get("port") or 6379)


def checked_settings(url: str | Sequence[str], prefix: object, timeout: object) -> list[str]:
    """The URLs of a bus, whose settings are those of a hub and of a publisher alike.

    Raises:
        ConfigError: a setting cannot be used.
    """
    if type(timeout) not in (int, float) or not 0 < timeout <= MOST_TIMEOUT:  # type: ignore[operator]
        raise ConfigError(f"timeout must be above 0 and up to 60 seconds, not {shown(timeout)}")
    if (
        type(prefix) is not str
        or len(prefix) > MOST_PREFIX
        or any(not "!" <= each <= "z" for each in prefix)
    ):
        raise ConfigError(
            f"prefix must be up to {MOST_PREFIX} ASCII characters without spaces and braces, "
            f"not {shown(prefix)}"
        )
    urls = [url] if isinstance(url, str) else list(url)
    if not 1 <= len(urls) <= MOST_SERVERS:
        raise ConfigError(f"url must name 1 to {MOST_SERVERS} servers, not {len(urls)}")
    return urls


def read_url(url: str) -> Url:
    """Reads a URL.

    Raises:
        ConfigError: it cannot be used. Neither the URL nor the cause is in the text: a password may
            be in both.
    """
    try:
        return _read(url)
    except ConfigError:
        raise
    except Exception:
        raise ConfigError(f"the URL of a RedisBus must be {_FORMS}") from None


def _read(url: str) -> Url:
    from redis import connection

    parse: Any = connection.parse_url  # redis-py does not type it
    scheme, _, rest = url.partition("://")
    if scheme not in ("redis+sentinel", "rediss+sentinel"):
        options: dict[str, Any] = dict(parse(url))
        tls = options.pop("connection_class", None) is connection.SSLConnection
        return Url(options, tls)
    parts = urlsplit(f"redis://{rest}")
    credentials, _, hosts = parts.netloc.rpartition("@")
    sentinels = tuple(_host_and_port(host) for host in hosts.split(","))
    master, _, db = parts.path.strip("/").partition("/")
    if not master:
        raise ConfigError(f"the name of the master is missing at the end of {shown(hosts)}")
    query: dict[str, Any] = dict(parse_qsl(parts.query, keep_blank_values=True))
    sentinel_options = {
        name: value
        for name in ("username", "password")
        if (value := query.pop(f"sentinel_{name}", None)) is not None
    }
    username, _, password = credentials.partition(":")
    query["username"] = unquote(username) or None
    query["password"] = unquote(password) or None
    query["db"] = int(db or 0)
    return Url(query, scheme == "rediss+sentinel", sentinels, sentinel_options, master)


def _host_and_port(text: str) -> tuple[str, int]:
    parts = urlsplit(f"redis://{text}")
    if not parts.hostname:
        raise ConfigError(f"{shown(text)} must be the host and port of a Sentinel")
    return parts.hostname, parts.port or 26379


def master_of(url: Url, timeout: float) -> Any:
    """A client of redis-py, to the master that Sentinels know.

    Args:
        url: with Sentinels.
        timeout: seconds that each attempt to connect, and each answer, may take.

    Returns:
        redis.asyncio.Redis: closing it closes its connections to the Sentinels as well.
    """
    from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

    class Pool(SentinelConnectionPool):
        async def disconnect(self, inuse_connections: bool = True) -> None:
            await super().disconnect(inuse_connections)
            if inuse_connections:  # else it goes on, with another master
                for each in sentinel.sentinels:
                    await each.aclose()

    times = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    tls = {name: value for name, value in url.options.items() if name.startswith("ssl_")}
    options = {name: value for name, value in url.options.items() if value is not None}
    sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]
        list(url.sentinels),
        sentinel_kwargs={
            **url.sentinel_options,
            **times,
            **({"ssl": True, **tls} if url.tls else {}),
        },
        **times,
        **({"ssl": True} if url.tls else {}),
        **options,
    )
    return sentinel.master_for(url.master, connection_pool_class=Pool)
