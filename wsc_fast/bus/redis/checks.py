"""The greeting of a connection: who we are, and whether the server is one that can be a bus."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Sequence
from typing import Any

from wsc_fast._core.resp import ReplyError
from wsc_fast.bus.redis.address import Address
from wsc_fast.bus.redis.commands import Names, encode, script
from wsc_fast.bus.redis.link import Link
from wsc_fast.errors import BusError
from wsc_fast.log import log

# The oldest versions: scripts use SET with GET, GETEX, and XADD with NOMKSTREAM.
OLDEST_REDIS, OLDEST_VALKEY = (6, 2), (7, 2)


class NotYetError(BusError):
    """The server cannot be used now, and may be in a moment (internal)."""


async def greet(link: Link, address: Address, origin: str) -> dict[str, str]:
    """Logs in, and looks whether the server is the master of a plain Redis or Valkey.

    Returns:
        dict[str, str]: what the server says about itself.

    Raises:
        BusError: it cannot be used; the text says what to do.
    """
    answers = []
    if address.password is not None:
        user = [] if address.username is None else [encode(address.username)]
        answers.append(link.ask(b"AUTH", *user, encode(address.password)))
    if address.db:
        answers.append(link.ask(b"SELECT", b"%d" % address.db))
    about = link.ask(b"INFO")
    # Refused without a right to it, the connection has no name in the server's lists.
    name = link.ask(b"CLIENT", b"SETNAME", encode(re.sub(r"[^!-~]", "_", f"wsc_fast:{origin}")))
    for answer in answers:
        if isinstance(error := await answer, ReplyError):
            raise BusError(f"{address.text} does not let us in: {error}")
    text = await about
    await name
    if isinstance(text, ReplyError):
        raise BusError(_of_info(address, text))
    if not isinstance(text, bytes):
        raise BusError(f"{address.text} does not answer INFO as Redis and Valkey do")
    facts = dict(
        line.split(":", 1) for line in text.decode("utf-8", "replace").split("\r\n") if ":" in line
    )
    _check_server(address.text, facts)
    return facts


def _of_info(address: Address, error: ReplyError) -> str:
    text = str(error)
    if text.startswith("NOAUTH"):
        return f"{address.text} asks for a password: put it into the URL, as in redis://:password@…"
    if text.startswith("NOPERM"):
        return (
            f"{address.text}: the user has no right to INFO, by which the server is checked: {text}"
        )
    return f"{address.text} cannot be used now: {text}"


def _check_server(at: str, facts: dict[str, str]) -> None:
    if facts.get("loading", "0") != "0":
        raise NotYetError(f"{at} is loading its data; it can be used once that is done")
    valkey = facts.get("valkey_version")
    version = valkey or facts.get("redis_version", "0")
    product, oldest = ("Valkey", OLDEST_VALKEY) if valkey else ("Redis", OLDEST_REDIS)
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < oldest:
        wanted = ".".join(map(str, oldest))
        raise BusError(f"{at} is {product} {version}; the bus needs {product} {wanted} or newer")
    if facts.get("cluster_enabled", "0") != "0":
        raise BusError(
            f"{at} is a Redis Cluster, in which a script cannot reach all of its keys: use one "
            "server, Sentinel, or a list of independent servers"
        )
    if facts.get("role", "master") != "master":
        raise NotYetError(f"{at} is a replica: the bus needs the master, or the URL of Sentinel")


def warn_of_eviction(at: str, facts: dict[str, str]) -> None:
    """Writes a line where the server may drop history while its memory is used up."""
    policy = facts.get("maxmemory_policy", "noeviction")
    if facts.get("maxmemory", "0") != "0" and policy != "noeviction":
        log.warning(
            "the bus at %s has maxmemory-policy %s: when its memory is full it drops the history "
            "of rooms, and clients do not recover; set maxmemory-policy noeviction",
            at,
            policy,
            extra={"event": "bus_evicts", "reason": policy},
        )


async def prepare(link: Link, address: Address, names: Names, inbox: bytes) -> None:
    """Loads the scripts, and looks whether we may run their commands. Nothing is written.

    Raises:
        BusError: we may not; the text names the command.
    """
    stream, top = names.history("")
    key = names.idempotency("", "")
    tried = [
        link.ask(b"SCRIPT", b"LOAD", script("publish").text),
        link.ask(b"SCRIPT", b"LOAD", script("read").text),
        link.ask(b"EVALSHA", b"0" * 40, b"0"),
        link.ask(b"EVAL", b"return 0", b"0"),
        link.ask(b"XADD", stream, b"NOMKSTREAM", b"*", b"d", b""),
        link.ask(b"XRANGE", stream, b"-", b"+", b"COUNT", b"1"),
        link.ask(b"XREVRANGE", stream, b"+", b"-", b"COUNT", b"1"),
        link.ask(b"SET", top, b"", b"XX", b"EX", b"1", b"GET"),
        link.ask(b"GETEX", top),
        link.ask(b"EXPIRE", top, b"1"),
        link.ask(b"PEXPIRE", stream, b"1"),
        link.ask(b"MGET", top),
        link.ask(b"GET", key),
        link.ask(b"TIME"),
        link.ask(b"PUBLISH", inbox, b""),
    ]
    await _all_allowed(tried, address.text, "the bus")


async def prepare_presence(link: Link, at: str, key: bytes) -> None:
    """Looks whether we may run the commands that presence needs. Nothing is left of it.

    Args:
        link: to the server.
        at: the server, as errors name it.
        key: one that nobody uses.

    Raises:
        BusError: we may not; the text names the command.
    """
    tried = [
        link.ask(b"HSET", key, b"", b""),
        link.ask(b"HGET", key, b""),
        link.ask(b"HLEN", key),
        link.ask(b"HKEYS", key),
        link.ask(b"HGETALL", key),
        link.ask(b"HSCAN", key, b"0"),
        link.ask(b"HDEL", key, b""),
        link.ask(b"SADD", key, b""),
        link.ask(b"SREM", key, b""),
        link.ask(b"SSCAN", key, b"0"),
        link.ask(b"SPOP", key),
        link.ask(b"ZADD", key, b"1", b""),
        link.ask(b"ZREM", key, b""),
        link.ask(b"ZSCORE", key, b""),
        link.ask(b"ZRANGE", key, b"0", b"0"),
        link.ask(b"ZRANGEBYSCORE", key, b"0", b"0"),
        link.ask(b"EXISTS", key),
        link.ask(b"PTTL", key),
        link.ask(b"DEL", key),
    ]
    await _all_allowed(tried, at, "presence")


async def _all_allowed(tried: Sequence[Awaitable[Any]], at: str, what: str) -> None:
    for answer in tried:
        error = await answer
        if isinstance(error, ReplyError) and not str(error).startswith("NOSCRIPT"):
            raise BusError(
                f"{at} does not let us do all that {what} needs (the page on RedisBus lists the "
                f"rights of its user): {error}"
            )
