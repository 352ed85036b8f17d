"""Pools of redis-py's connections: to a server, or to the master that Sentinels name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wsc_fast.bus.redis.urls import Url


def pool_of(url: Url, package: str, timeout: float) -> Any:
    """A pool for one server.

    Args:
        url: of the server.
        package: "redis", or "redis.asyncio".
        timeout: seconds for connecting, and for each answer.
    """
    redis = import_module(package)
    connection = import_module(f"{package}.connection")
    retry = import_module(f"{package}.retry").Retry
    backoff = import_module("redis.backoff")
    options: dict[str, Any] = {
        **url.options,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "protocol": 2,
        # A command may be sent twice only where we know that it does no harm.
        "retry": retry(backoff.NoBackoff(), 0),
    }
    if url.sentinels:
        sentinel = import_module(f"{package}.sentinel")
        tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
        of_sentinel = {
            "socket_timeout": 1.0,
            "socket_connect_timeout": 1.0,
            **url.sentinel_options,
            **({"ssl": True, **tls} if url.tls else {}),
        }
        sentinels = sentinel.Sentinel(list(url.sentinels), sentinel_kwargs=of_sentinel)
        return sentinel.SentinelConnectionPool(url.master, sentinels, ssl=url.tls, **options)
    kind = connection.Connection
    if url.path is not None:
        kind = connection.UnixDomainSocketConnection
    elif url.tls:
        kind = connection.SSLConnection
    return redis.ConnectionPool(connection_class=kind, **options)
