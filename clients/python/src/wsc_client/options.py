"""The options of a client, and their checks. `clients/spec.md` says what each of them does."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, TypeAlias, TypedDict
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from wsc_client.errors import OptionError
from wsc_client.memory import Storage

# The least values of options; all other numbers are more than 0.
_LEAST: dict[str, float] = {
    **dict.fromkeys(("min_delay", "max_delay", "stable_after", "renew_before"), 0.0),
    **dict.fromkeys(("close_timeout", "queue_bytes"), 0.0),
    **dict.fromkeys(("known_ids", "pending_messages", "pending_bytes", "max_message_size"), 1.0),
}


@dataclass(frozen=True, slots=True)
class Token:
    """A token, and when it ends.

    Attributes:
        token: the token itself. Without `token_query` it has only characters of an HTTP token.
        expires: seconds since 1970, or an aware datetime. None: not known.
    """

    token: str
    expires: float | datetime | None = None

    @property
    def ends_at(self) -> float | None:
        """When it ends, in seconds since 1970."""
        return self.expires.timestamp() if isinstance(self.expires, datetime) else self.expires


TokenAnswer: TypeAlias = str | Token | None
GetToken: TypeAlias = Callable[[], TokenAnswer | Awaitable[TokenAnswer]]
Load: TypeAlias = Callable[[str, Literal["first", "gap"]], object]


class OptionNames(TypedDict, total=False):
    """The keyword arguments of `Client`; `Options` says what they are."""

    recover: bool
    protocols: Sequence[str]
    get_token: GetToken | None
    token_query: str | None
    status_url: str | None
    json: bool
    load: Load | None
    storage: Storage | None
    storage_key: str | None
    queue_bytes: int
    request_timeout: float
    min_delay: float
    max_delay: float
    connect_timeout: float
    close_timeout: float
    stable_after: float
    renew_before: float
    heartbeat: bool | None
    heartbeat_interval: float
    heartbeat_timeout: float
    known_ids: int
    acknowledge: bool
    pending_messages: int
    pending_bytes: int
    max_message_size: int
    headers: Mapping[str, str] | Sequence[tuple[str, str]]
    ssl: ssl.SSLContext | None
    proxy: str | bool
    compression: bool


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a client. Times are in seconds, sizes in bytes.

    Attributes:
        recover: speak wsc.1, so that what was missed in kept rooms comes after a reconnect.
        protocols: the application's own subprotocols.
        get_token: gives the token of each connection: a str, a Token, or None where there is none.
            It may be async. A plain function must not block.
        token_query: the query parameter that carries the token; without it a subprotocol does.
        status_url: a route that says why a connection was refused. It is asked only where the
            answer to the upgrade itself was not seen.
        json: whether texts are read and written as JSON.
        load: called with a room and "first" or "gap" when the state of the room has to be loaded.
            It may be async.
        storage: where positions and known ids outlast the process, such as FileStorage.
        storage_key: the name of this client in the storage; by itself "wsc:" and the url.
        queue_bytes: the most that may wait to be sent.
        request_timeout: for the answer to a request.
        min_delay, max_delay: bounds of the wait before a reconnect.
        connect_timeout: for a connection to open, and for `get_token`.
        close_timeout: for the server's answer to a close frame.
        stable_after: after so long an open connection counts as a success.
        renew_before: how long before its end a token is renewed.
        heartbeat: None: by itself. False: never. True: pings that ask the hub from the start.
        heartbeat_interval, heartbeat_timeout: of the heartbeat.
        known_ids: how many ids of HubMessages are remembered.
        acknowledge: whether HubMessages are acknowledged. Without it their copies are shown, too:
            for a program that only watches.
        pending_messages, pending_bytes: so much may wait for one iterator or async listener. At the
            bound nothing more is read from the connection. While a request waits for its answer,
            ten times as much may wait, so that a listener can ask.
        max_message_size: of a message of the server.
        headers: further header fields of the upgrade request.
        ssl: the TLS context of wss://; by itself the default of Python.
        proxy: True takes the proxy of the environment, False none, a str is the URL of one.
        compression: whether permessage-deflate is offered.
    """

    recover: bool = True
    protocols: Sequence[str] = ()
    get_token: GetToken | None = None
    token_query: str | None = None
    status_url: str | None = None
    json: bool = True
    load: Load | None = None
    storage: Storage | None = None
    storage_key: str | None = None
    queue_bytes: int = 1 << 20
    request_timeout: float = 10.0
    min_delay: float = 1.0
    max_delay: float = 30.0
    connect_timeout: float = 10.0
    close_timeout: float = 5.0
    stable_after: float = 5.0
    renew_before: float = 30.0
    heartbeat: bool | None = None
    heartbeat_interval: float = 25.0
    heartbeat_timeout: float = 10.0
    known_ids: int = 2000
    acknowledge: bool = True
    pending_messages: int = 1000
    pending_bytes: int = 1 << 20
    max_message_size: int = 64 << 20
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = ()
    ssl: ssl.SSLContext | None = None
    proxy: str | bool = True
    compression: bool = True

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if type(each.default) is float:
                self._check_number(each.name, value, (int, float), "seconds")
            elif type(each.default) is int:
                self._check_number(each.name, value, (int,), "an int")
            elif type(each.default) is bool and each.name != "proxy" and value is not bool(value):
                raise OptionError(f"{each.name} is {value!r}, expected True or False")
        if isinstance(self.protocols, str):
            raise OptionError(f"protocols is {self.protocols!r}, expected a list of str")
        for name in ("get_token", "load"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise OptionError(f"{name} is {value!r}, expected a function")
        if self.status_url is not None and not self.status_url.startswith(("http://", "https://")):
            raise OptionError(f"status_url is {self.status_url!r}, expected http:// or https://")

    def _check_number(self, name: str, value: Any, kinds: tuple[type, ...], unit: str) -> None:
        least = _LEAST.get(name)
        bound = "more than 0" if least is None else f"{least:g} or more"
        sound = isinstance(value, kinds) and not isinstance(value, bool)
        if not sound or not (0 < value < 1e10 if least is None else least <= value < 1e10):
            raise OptionError(f"{name} is {value!r}, expected {unit}, {bound}")


def checked(options: Mapping[str, Any]) -> Options:
    """The options that these keyword arguments name.

    Raises:
        OptionError: there is no such option, or it has no such value.
    """
    known = {each.name for each in fields(Options)}
    for name in options:
        if name not in known:
            raise OptionError(f"there is no option {name!r}, expected one of {sorted(known)}")
    return Options(**options)


def checked_url(url: str) -> str:
    """The URL of a hub; http is taken for ws.

    Raises:
        OptionError: it is none.
    """
    if not isinstance(url, str):
        raise OptionError(f"the url is {url!r}, expected a str such as wss://app.example/ws")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise OptionError(f"the url is {url!r}: {error}") from None
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not host:
        raise OptionError(f"the url is {url!r}, expected ws://host/path or wss://host/path")
    return urlunsplit((scheme, parts.netloc, parts.path, parts.query, ""))


def with_query(url: str, name: str, value: str) -> str:
    """The URL with this query parameter in place of others of its name."""
    parts = urlsplit(url)
    pairs = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != name]
    query = urlencode([*pairs, (name, value)])
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))
