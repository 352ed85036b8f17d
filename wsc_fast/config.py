"""HubConfig, RetryConfig and ACKConfig: every setting, checked when it is made.

What a setting may be follows from its annotation, and from the tables below: an int has bounds, a
float is a positive number of seconds, the items of a tuple pass a check.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import sys
import threading
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

import msgspec

from wsc_fast._core.deflate import zlib_version
from wsc_fast.addresses import is_origin_entry, parse_host, parse_network
from wsc_fast.errors import ConfigError, SendFailureReason, ValidationError, shown
from wsc_fast.log import log

Overflow = Literal["disconnect", "drop_oldest", "drop_newest"]
OfflineOverflow = Literal["drop_oldest", "refuse"]
RateLimitAction = Literal["close", "drop", "pause"]
Per = Literal["user", "device"]

# What picows reads into at least; a smaller setting is raised to this.
MIN_READ_BUFFER = 2048

# name -> (lowest, highest) that makes sense; inclusive.
_INTEGERS: dict[str, tuple[int, int]] = {
    "max_connections": (1, 10_000_000),
    "read_buffer_size": (1, 1 << 26),
    "receive_buffer_size": (0, 1 << 30),
    "write_buffer_size": (0, 1 << 30),
    "max_message_size": (125, 1 << 31),
    "max_fragments": (1, 1 << 31),
    "outbox_messages": (1, 1 << 30),
    "outbox_bytes": (1, 1 << 40),
    "max_pending_callbacks": (1, 1 << 30),
    "authentication_input_bytes": (0, 1 << 30),
    "max_rooms": (0, 1 << 40),
    "max_rooms_per_client": (0, 1 << 40),
    "backlog": (1, 1 << 16),
    "max_handshakes": (1, 10_000_000),
    "max_header_bytes": (512, 1 << 20),
    "max_headers": (8, 128),  # picows reads no more
    "max_connections_per_address": (0, 10_000_000),
    "compression_level": (1, 9),
    "compression_threshold": (0, 1 << 30),
    "server_max_window_bits": (9, 15),
    "client_max_window_bits": (9, 15),
    "max_retries": (0, 1_000_000),
    "max_pending": (1, 1 << 30),
    "max_pending_bytes": (1, 1 << 40),
    "max_pending_per_user": (0, 1 << 30),
    "max_devices": (1, 10_000),
    "max_pending_callback_bytes": (1, 1 << 40),
    "offline_limit": (1, 1 << 30),
}
# name -> lowest; the floats that are no seconds.
_FACTORS = {
    "backoff_factor": 1,
    "connection_rate": 0,
    "connection_rate_per_address": 0,
    "message_rate": 0,
    "byte_rate": 0,
}
# The seconds that may be 0.
_FROM_ZERO = ("drain_period", "watchdog_timeout")
# The longest time that a thread can wait, 292 years on Linux: a longer one is cut to it.
FOREVER = threading.TIMEOUT_MAX
# A token (RFC 9110 section 5.6.2).
_SUBPROTOCOL = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch

_REASONS = tuple(str(reason) for reason in SendFailureReason)

# As Go writes durations: "100ms", "1.5s", "2m", "1h30m".
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(rf"([0-9]+(?:\.[0-9]+)?)({'|'.join(_UNITS)})")
_DURATION = re.compile(rf"(?:{_PART.pattern})+").fullmatch


# name -> (does the item pass, what is allowed)
_ITEMS: dict[str, tuple[Callable[[str], object], str]] = {
    "allowed_origins": (
        is_origin_entry,
        "'https://host[:port]', 'host[:port]', '*.host', 'null', '*', or the origin of an app, "
        "such as 'capacitor://localhost'",
    ),
    "allowed_hosts": (parse_host, "'host[:port]'"),
    "subprotocols": (_SUBPROTOCOL, "a token (RFC 9110 section 5.6.2)"),
    "trusted_proxies": (parse_network, "an IP address or network"),
}
_BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
_TABLES = ("hub", "retry", "ack")

# What a running hub reads at each use, so that `set_config` may change it.
CHANGEABLE = frozenset(
    {
        "max_connections",
        "max_connections_per_address",
        "max_handshakes",
        "max_header_bytes",
        "max_headers",
        "connection_rate",
        "connection_rate_per_address",
        "message_rate",
        "byte_rate",
        "rate_limit_action",
        "check_origin",
        "allowed_origins",
        "allowed_hosts",
        "subprotocols",
        "trusted_proxies",
        "outbox_messages",
        "outbox_bytes",
        "overflow",
        "authentication_timeout",
        "authentication_input_bytes",
        "heartbeat_interval",
        "heartbeat_timeout",
        "close_timeout",
        "message_timeout",
        "max_pending_callbacks",
        "max_pending_callback_bytes",
        "callback_close_timeout",
        "max_rooms",
        "max_rooms_per_client",
        "thread_call_timeout",
        "drain_period",
        "flush_budget",
    }
)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What HubConfig, RetryConfig and ACKConfig have in common: the checks and the loading."""

    _prefix: ClassVar[str] = "WSC_"
    _table: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            value = _checked(f"{type(self).__name__}.{name}", name, kind, getattr(self, name))
            # A list is as good as a tuple, an int as a float; kept as what the annotation says.
            msgspec.structs.force_setattr(self, name, value)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """The settings of the environment, with the defaults for those it lacks.

        A variable is `WSC_` (for ACKConfig `WSC_ACK_`) and the setting in upper case, such as
        `WSC_MAX_RETRIES`. Seconds are a number, or a duration such as 100ms, 1.5s, 2m or 1h30m. A
        bool is true, false, 1, 0, yes, no, on or off in any case; the items of a tuple stand
        between commas, and a comma alone means none. An empty variable counts as unset. Others that
        begin with `WSC_` are ignored, since they may be somebody else's: a misspelt name has no
        effect.

        Args:
            environ: the variables; None means `os.environ`.

        Raises:
            ConfigError: a value cannot work; the text names the variable, the value and what is
                allowed.
        """
        given = os.environ if environ is None else environ
        variables = {name: cls._prefix + name.upper() for name in _kinds(cls)}
        values = {}
        for name, kind in _kinds(cls).items():
            text = given.get(variables[name], "").strip()
            if text:
                values[name] = _parsed(variables[name], name, kind, text)
        return cls._made(", ".join(variables[name] for name in values), variables, values)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """The settings of a .yaml, .yml, .toml or .json file, with the defaults for others.

        They stand at the top level, or, so that one file serves all, in the tables `hub`, `retry`
        and `ack`. Either may stand in a table `wsc`; what is beside that is somebody else's. At the
        top level the settings of HubConfig and RetryConfig may stand side by side. Seconds are a
        number, or a duration in quotes, such as "100ms", "1.5s" or "2m".
        YAML needs `pip install 'wsc_fast[yaml]'`.

        Args:
            path: of the file, UTF-8; its suffix tells the format.

        Raises:
            ConfigError: the file cannot be read, or holds an unknown or repeated key or a value
                that cannot work; the text names the file, the key, the value and what is allowed.
        """
        file = os.fspath(path)
        place, given, flat = _table(file, _read(file), cls._table)
        names = {name: f"{place}{name}" for name in _kinds(cls)}
        values = {}
        for key, value in given.items():
            if key in names:
                values[key] = _seconds_of(key, _kinds(cls)[key], value)
            elif not (flat and cls._stands_beside(key)):
                raise ConfigError(
                    f"{place}{key} ({shown(value)}) is no setting of {cls.__name__}, "
                    f"expected one of {', '.join(names)}"
                )
        return cls._made(file, names, values)

    @classmethod
    def _stands_beside(cls, key: str) -> bool:
        """Whether a key without a table may be there for another class."""
        return False

    @classmethod
    def _made(cls, source: str, names: Mapping[str, str], values: dict[str, Any]) -> Self:
        # Each by itself first: the error tells where the value stands.
        for name, value in values.items():
            _checked(names[name], name, _kinds(cls)[name], value)
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None


class HubConfig(Settings, frozen=True, kw_only=True):
    """Settings of a Hub (go-wsc `HubConfig`). Times are seconds, sizes are bytes.

    Attributes:
        max_connections: connections at once; the next upgrade gets 503 with Retry-After, unless it
            replaces a connection of its own (Identity.client_id).
        max_connections_per_address: of one IPv4 address or IPv6 /64, by `remote_address`; the next
            upgrade gets 429. 0: no bound, since behind a proxy that is not among `trusted_proxies`
            all clients have one address.
        max_handshakes: connections whose request is not there yet, or whose peer still reads an
            answer that is no upgrade; one more ends the oldest of the larger of these groups.
        connection_rate, connection_rate_per_address: upgrades a second, of all and of each address;
            as many as come in a second may come at once, the next gets 429. 0: no bound.
        message_rate, byte_rate: messages, and bytes of messages, that a client may send a second,
            pings and pongs among them (but not under "drop"); as many as come in a second may come
            at once. 0: no bound.
        rate_limit_action: what happens to a client that sends more: "close" (1008), "drop" (the
            message is not heard), or "pause" (it is heard, and nothing is read for so long as makes
            up for it).
        read_buffer_size: of the one buffer that all connections of the hub read into: what one read
            can bring. Less than 2,048 is raised to that, with a line in the log.
        receive_buffer_size: asked of the kernel for each connection (SO_RCVBUF, which Linux
            doubles). It bounds what a client sends in one round trip, and what the kernel holds of
            a client that we do not read; 0 leaves it to the kernel, which begins at 128 KiB and
            grows it for those that we read fast.
        write_buffer_size: asked of the kernel for each connection (SO_SNDBUF); 0 leaves it to the
            kernel.
        max_header_bytes, max_headers: of a request; more gets 431 or 400.
        handshake_timeout: from accepting a connection to its upgrade, and for TLS likewise.
        enable_compression: permessage-deflate (RFC 7692) with clients that offer it. Needs the zlib
            library of the system.
        compression_level: zlib's, from 1 (fastest) to 9 (smallest).
        compression_threshold: messages shorter than this go out uncompressed.
        server_no_context_takeover: each message that goes out is compressed by itself, once for all
            clients, and no connection keeps memory for it. False lets a client that offers no more
            than that have a context of its own: smaller messages, but each is compressed for each
            client, and 260 KB per connection.
        client_no_context_takeover: asks clients to do likewise. False: 40 KB per connection.
        server_max_window_bits, client_max_window_bits: of the windows, at most; a client can ask
            for less, and decides its own unless it lets us.
        subprotocols: in the order of preference; the first that a client offers is agreed on.
        trusted_proxies: IP addresses and networks ("10.0.0.0/8"). From these, X-Forwarded-For tells
            `remote_address`: its last address that is none of them; and X-Forwarded-Proto that a
            request came by TLS.
        check_origin: refuse (403) an upgrade whose Origin is neither the Host's own nor allowed.
            Without an Origin header it comes from no browser, and passes.
        allowed_origins: "https://app.example" (exact scheme, host and port), "*.example.org" (any
            subdomain over http or https, default port), "https://*.example.org", the origin of an
            app, such as "capacitor://localhost" or "file://" (exact), "null", or "*".
        allowed_hosts: Host headers that are served, such as "app.example:8080"; empty serves all.
        max_message_size: of an incoming message, over all its fragments; more closes with 1009.
        max_fragments: of an incoming message; more closes with 1008.
        message_timeout: from a message's first byte to its last; what takes longer closes with
            1008, at the next look at the client (five in each `heartbeat_interval`).
        outbox_messages, outbox_bytes: bounds of what waits for one client. A single message larger
            than `outbox_bytes` is taken when nothing else waits. Outboxes are emptied between turns
            of the loop, so that more messages than this within one callback are an overflow too.
        overflow: what a message does that finds an outbox full. "disconnect": a broadcast closes
            the client (1013). "drop_oldest", "drop_newest": it or an older one is dropped, never
            one of a higher priority. A direct send that finds no room raises QueueFullError.
        heartbeat_interval: a client that has been silent so long is pinged.
        heartbeat_timeout: a client that has been silent so long is closed.
        close_timeout: for the closing handshake; then the connection is aborted. A peer whose
            request was not upgraded has so long, again and again, to take some more of the answer.
        authentication_timeout: for an async `authenticate`; then the connection closes with 4401.
        authentication_input_bytes: what a client may send while that runs; more closes with 1008.
        max_pending_callbacks: messages of one client that wait for an async `on_message_received`;
            beyond it nothing is read from that client until they drain. What a read under way has
            brought is taken all the same. While acknowledgements of the client's user are awaited
            reading goes on, since a callback may wait for them, up to the next bound.
        max_pending_callback_bytes: what these messages may take in memory, with 256 bytes for each
            beside itself; beyond it nothing is read from that client until they drain.
        callback_close_timeout: for each async callback of a client that has gone; then it is
            cancelled, messages that waited behind it are dropped, and `on_client_disconnected` is
            told.
        max_rooms, max_rooms_per_client: bounds; beyond them LimitError.
        flush_budget: how long a flush may hold the loop before it yields.
        drain_period: how long `run` takes to send clients away (1012) after the first SIGTERM or
            SIGINT, so that they do not all come back at once; 0 closes them all at once (1001).
        watchdog_timeout: a callback that blocks the loop for so long is logged, with the stack of
            the loop's thread. 0: nobody watches.
        thread_call_timeout: how long a call from another thread waits for the loop.
        backlog: connections that the kernel keeps for us to accept.

    Raises:
        ConfigError: a value cannot work; the text names the key, the value and what is allowed.
    """

    _table: ClassVar[str] = "hub"

    max_connections: int = 100_000
    max_connections_per_address: int = 0
    max_handshakes: int = 10_000
    connection_rate: float = 0.0
    connection_rate_per_address: float = 0.0
    message_rate: float = 0.0
    byte_rate: float = 0.0
    rate_limit_action: RateLimitAction = "close"
    read_buffer_size: int = 1 << 17
    receive_buffer_size: int = 0
    write_buffer_size: int = 0
    max_header_bytes: int = 16_384
    max_headers: int = 128
    handshake_timeout: float = 10.0
    enable_compression: bool = False
    compression_level: int = 1
    compression_threshold: int = 128
    server_no_context_takeover: bool = True
    client_no_context_takeover: bool = True
    server_max_window_bits: int = 15
    client_max_window_bits: int = 15
    subprotocols: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    check_origin: bool = True
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_message_size: int = 1 << 20
    max_fragments: int = 16_384
    message_timeout: float = 300.0
    outbox_messages: int = 1_024
    outbox_bytes: int = 1 << 20
    overflow: Overflow = "disconnect"
    heartbeat_interval: float = 25.0
    heartbeat_timeout: float = 60.0
    close_timeout: float = 5.0
    authentication_timeout: float = 10.0
    authentication_input_bytes: int = 1 << 16
    max_pending_callbacks: int = 64
    max_pending_callback_bytes: int = 1 << 20
    callback_close_timeout: float = 60.0
    max_rooms: int = 100_000
    max_rooms_per_client: int = 1_000
    flush_budget: float = 0.005
    drain_period: float = 0.0
    watchdog_timeout: float = 5.0
    thread_call_timeout: float = 10.0
    backlog: int = 4_096

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heartbeat_timeout <= self.heartbeat_interval < FOREVER:
            raise _wrong(
                "HubConfig.heartbeat_timeout",
                self.heartbeat_timeout,
                f"more than heartbeat_interval ({self.heartbeat_interval})",
            )
        if self.read_buffer_size < MIN_READ_BUFFER:
            log.warning(
                "HubConfig.read_buffer_size is %d: %d is the least",
                self.read_buffer_size,
                MIN_READ_BUFFER,
            )
            msgspec.structs.force_setattr(self, "read_buffer_size", MIN_READ_BUFFER)
        if self.enable_compression and zlib_version() is None:
            raise _wrong(
                "HubConfig.enable_compression", True, "False, since there is no zlib (libz.so.1)"
            )

    @classmethod
    def _stands_beside(cls, key: str) -> bool:
        return key in _kinds(RetryConfig)


class RetryConfig(Settings, frozen=True, kw_only=True):
    """How often and when a failed send is tried again (go-wsc `RetryConfig`). Times are seconds.

    Attributes:
        max_retries: attempts after the first; 0 means that there is only that one.
        base_delay: before the first retry.
        backoff_factor: each further delay is that many times the one before; at least 1.
        max_delay: of one delay, at most. Not less than `base_delay`.
        jitter: each delay is random, between 0 and what it would be otherwise, so that those who
            failed together do not try again together.
        retryable_errors: the reasons (SendFailureReason) after which a send is tried again.
        non_retryable_errors: the reasons after which it is not. A reason in neither is not retried
            either; one in both raises ConfigError. A name in either list that is no reason is kept,
            with a line in the log: it never matches.

    Raises:
        ConfigError: a value cannot work; the text names the key, the value and what is allowed.
    """

    _table: ClassVar[str] = "retry"

    max_retries: int = 3
    base_delay: float = 0.1
    backoff_factor: float = 2.0
    max_delay: float = 30.0
    jitter: bool = False
    retryable_errors: tuple[str, ...] = ("queue_full", "timeout", "conn_error", "channel_closed")
    non_retryable_errors: tuple[str, ...] = ("user_offline", "permission", "validation")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_delay < self.base_delay:
            raise _wrong(
                "RetryConfig.max_delay", self.max_delay, f"at least base_delay ({self.base_delay})"
            )
        for reason in self.retryable_errors:
            if reason in self.non_retryable_errors:
                raise _wrong("RetryConfig.retryable_errors", reason, "none of non_retryable_errors")
        for name in ("retryable_errors", "non_retryable_errors"):
            for reason in getattr(self, name):
                if reason not in _REASONS:
                    log.warning(
                        "RetryConfig.%s: %s is no reason and never matches, expected one of %s",
                        name,
                        shown(reason),
                        ", ".join(_REASONS),
                    )

    @classmethod
    def _stands_beside(cls, key: str) -> bool:
        return key in _kinds(HubConfig)

    def delay(self, retry: int) -> float:
        """How many seconds to wait before a retry.

        Args:
            retry: which one, from 1.

        Raises:
            ValidationError: `retry` is less than 1.
        """
        if retry < 1:
            raise ValidationError(f"retry is {retry}, expected 1 or more")
        try:
            delay = min(self.base_delay * self.backoff_factor ** (retry - 1), self.max_delay)
        except OverflowError:
            delay = self.max_delay
        return random.uniform(0, delay) if self.jitter else delay


class ACKConfig(Settings, frozen=True, kw_only=True):
    """Settings of acknowledged messages (go-wsc `ACKConfig`). Times are seconds.

    Attributes:
        timeout: from the first send to AckTimeoutError. What is left of the retransmissions by
            then is not made.
        max_retries: retransmissions of a message that is not acknowledged.
        retry_interval: between them.
        enable_offline_messages: what a user does not get is kept until the user connects.
        max_pending: messages that wait for an acknowledgement, in the whole hub; one more raises
            PendingFullError.
        max_pending_bytes: what these messages may take, with 512 bytes for each beside its JSON;
            one more raises PendingFullError. One user may take a quarter of it.
        max_pending_per_user: messages that wait for one user to acknowledge them; one more raises
            PendingFullError. 0: a quarter of `max_pending`, but at least 16.
        per: who acknowledges. "user": the first of a user's clients does so for all. "device": each
            device of the user for itself (Identity.device_id), also one that is away: what is for
            a user is kept for each of them. Needs `enable_offline_messages`.
        max_devices: devices that the hub knows of one user. One more makes it forget the one that
            it noted longest ago. It also forgets one that has not come for `offline_max_age`.
        offline_limit: messages in the offline store, per user; with per="device" for each device.
        offline_overflow: what a message does that finds as many in the store. "drop_oldest": the
            oldest is dropped. "refuse": the message is refused.
        offline_max_age: a message that has been in the store so long is dropped.

    Raises:
        ConfigError: a value cannot work; the text names the key, the value and what is allowed.
    """

    _prefix: ClassVar[str] = "WSC_ACK_"  # `max_retries` is RetryConfig's too
    _table: ClassVar[str] = "ack"

    timeout: float = 30.0
    max_retries: int = 3
    retry_interval: float = 5.0
    enable_offline_messages: bool = False
    max_pending: int = 100_000
    max_pending_bytes: int = 1 << 26
    max_pending_per_user: int = 0
    per: Per = "user"
    max_devices: int = 16
    offline_limit: int = 1_000
    offline_overflow: OfflineOverflow = "drop_oldest"
    offline_max_age: float = 604_800.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per == "device" and not self.enable_offline_messages:
            raise _wrong(
                "ACKConfig.per", self.per, '"user", or enable_offline_messages=True with "device"'
            )


@cache
def _kinds(cls: type[Settings]) -> dict[str, Any]:
    """The settings of the class, and the type of each."""
    return {field.name: field.type for field in msgspec.structs.fields(cls)}


def _checked(called: str, name: str, kind: Any, value: Any) -> Any:
    """The value as the setting keeps it; ConfigError if it cannot work."""
    if kind is int:
        low, high = _INTEGERS[name]
        if type(value) is not int or not low <= value <= high:
            raise _wrong(called, value, f"an int from {low} to {high}")
    elif kind is float:
        number = type(value) in (int, float) and value <= sys.float_info.max
        if name in _FACTORS:
            if not number or value < _FACTORS[name]:
                raise _wrong(called, value, f"a number of at least {_FACTORS[name]}")
            return float(value)
        if not number or value < 0 or (value == 0 and name not in _FROM_ZERO):
            expected = (
                "seconds, 0 or more" if name in _FROM_ZERO else "a positive number of seconds"
            )
            raise _wrong(called, value, expected)
        return float(min(value, FOREVER))
    elif kind is bool:
        if type(value) is not bool:
            raise _wrong(called, value, "True or False")
    elif get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise _wrong(called, value, f"one of {', '.join(get_args(kind))}")
    else:
        if not isinstance(value, (tuple, list)) or not all(
            isinstance(item, str) and item for item in value
        ):
            raise _wrong(called, value, "a tuple or list of non-empty str")
        passes, allowed = _ITEMS.get(name, (bool, ""))
        for item in value:
            if not passes(item):
                raise _wrong(called, item, allowed)
        return tuple(map(str, value))
    return value


def _seconds_of(name: str, kind: Any, value: Any) -> Any:
    """The seconds of a duration in text; any other value as it is."""
    if kind is not float or name in _FACTORS or not isinstance(value, str):
        return value
    if not _DURATION(value):
        return value  # then the check refuses the text
    return math.fsum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))


def _parsed(variable: str, name: str, kind: Any, text: str) -> Any:
    """The value that the text of an environment variable stands for."""
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise _wrong(variable, text, f"one of {', '.join(_BOOLEANS)}")
        return _BOOLEANS[text.lower()]
    if get_origin(kind) is tuple:
        return tuple(item.strip() for item in text.split(",") if item.strip())
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return _seconds_of(name, kind, text)
    return text


def _table(file: str, content: Any, own: str) -> tuple[str, dict[str, Any], bool]:
    """Where in the file the settings stand (for the errors), they, and whether in no table."""
    place = f"{file}: "
    level = _mapping(file, content)
    if "wsc" in level:
        for key in _TABLES:
            if key in level:
                raise ConfigError(f"{place}{key} stands beside wsc, expected in it")
        place += "wsc."
        level = _mapping(f"{file}: wsc", level["wsc"])
    if not any(key in level for key in _TABLES):
        return place, level, True
    for key, value in level.items():
        if key not in _TABLES:
            raise ConfigError(
                f"{place}{key} ({shown(value)}) stands beside tables, "
                f"expected one of {', '.join(_TABLES)}"
            )
    return f"{place}{own}.", _mapping(f"{place}{own}", level.get(own)), False


def _mapping(called: str, value: Any) -> dict[str, Any]:
    if value is None:  # of an empty YAML file, or a table whose lines are all comments
        return {}
    if not isinstance(value, dict):
        raise _wrong(called, value, "a table of settings")
    return value


def _read(file: str) -> Any:
    reader = _READERS.get(Path(file).suffix.lower())
    if reader is None:
        raise ConfigError(f"{file} is no settings file, expected one of {', '.join(_READERS)}")
    try:
        return reader(Path(file).read_text("utf-8-sig"))
    except ImportError:
        raise ConfigError(f"{file} needs PyYAML: pip install 'wsc_fast[yaml]'") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _json(text: str) -> Any:
    # Not msgspec.json, which takes the last of repeated keys.
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"the key {shown(key)} is there twice, expected once")
        seen[key] = value
    return seen


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # yaml.safe_load, which takes the last of repeated keys
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            _unique([(key.value, None) for key, _ in node.value if isinstance(key.value, str)])
            return node

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


_READERS: dict[str, Callable[[str], Any]] = {
    ".yaml": _yaml,
    ".yml": _yaml,
    ".toml": tomllib.loads,
    ".json": _json,
}


def _wrong(called: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{called} is {shown(value)}, expected {expected}")
