"""HubConfig: every setting of a hub, checked when it is made."""

from __future__ import annotations

import math
import re
from ipaddress import ip_network
from typing import Any, Literal

import msgspec

from wsc_fast._core.deflate import zlib_version
from wsc_fast.errors import ConfigError

Overflow = Literal["disconnect", "drop_oldest", "drop_newest"]

# What picows reads into at least; a smaller setting would not be honoured.
MIN_READ_BUFFER = 2048

_OVERFLOWS = ("disconnect", "drop_oldest", "drop_newest")

# name -> (lowest, highest) that makes sense; inclusive.
_INTEGERS: dict[str, tuple[int, int]] = {
    "max_connections": (1, 10_000_000),
    "read_buffer_size": (MIN_READ_BUFFER, 1 << 26),
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
    "compression_level": (1, 9),
    "compression_threshold": (0, 1 << 30),
    "server_max_window_bits": (9, 15),
    "client_max_window_bits": (9, 15),
}
_SECONDS = (
    "handshake_timeout",
    "authentication_timeout",
    "heartbeat_interval",
    "heartbeat_timeout",
    "close_timeout",
    "thread_call_timeout",
    "flush_budget",
)
_FLAGS = (
    "enable_compression",
    "server_no_context_takeover",
    "client_no_context_takeover",
    "check_origin",
)
_NAMES = ("allowed_origins", "allowed_hosts", "subprotocols", "trusted_proxies")
# A token (RFC 9110 section 5.6.2).
_SUBPROTOCOL = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch

# An origin, or a host of any scheme; a first label * stands for any subdomain.
_ALLOWED_ORIGIN = re.compile(
    r"\*|(https?://)?((\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.IGNORECASE
).fullmatch

# What a running hub reads at each use, so that `set_config` may change it.
CHANGEABLE = frozenset(
    {
        "max_connections",
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
        "max_pending_callbacks",
        "max_rooms",
        "max_rooms_per_client",
        "thread_call_timeout",
        "flush_budget",
    }
)


class HubConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a Hub (go-wsc `HubConfig`). Times are seconds, sizes are bytes.

    Attributes:
        max_connections: connections at once; the next upgrade gets 503 with Retry-After.
        read_buffer_size: of the one buffer that all connections of the hub read into, at least
            2,048: what one read can bring.
        receive_buffer_size: asked of the kernel for each connection (SO_RCVBUF, which Linux
            doubles). It bounds what a client can have us work on in one turn of the loop, and what
            it sends in one round trip; 0 leaves it to the kernel, which goes to megabytes.
        write_buffer_size: asked of the kernel for each connection (SO_SNDBUF); 0 leaves it to the
            kernel.
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
            `remote_address`: its last address that is none of them.
        check_origin: refuse (403) an upgrade whose Origin is neither the Host's own nor allowed.
            Without an Origin header it comes from no browser, and passes.
        allowed_origins: "https://app.example" (exact scheme, host and port), "*.example.org" (any
            subdomain over http or https, default port), "https://*.example.org", or "*".
        allowed_hosts: Host headers that are served, such as "app.example:8080"; empty serves all.
        max_message_size: of an incoming message, over all its fragments; more closes with 1009.
        max_fragments: of an incoming message; more closes with 1008.
        outbox_messages, outbox_bytes: bounds of what waits for one client. A single message larger
            than `outbox_bytes` is taken when nothing else waits. Outboxes are emptied between turns
            of the loop, so that more messages than this within one callback are an overflow too.
        overflow: what a message does that finds an outbox full. "disconnect": a broadcast closes
            the client (1013). "drop_oldest", "drop_newest": it or an older one is dropped, never
            one of a higher priority. A direct send that finds no room raises QueueFullError.
        heartbeat_interval: a client that has been silent so long is pinged.
        heartbeat_timeout: a client that has been silent so long is closed.
        close_timeout: for the closing handshake; then the connection is aborted.
        authentication_timeout: for an async `authenticate`; then the connection closes with 4401.
        authentication_input_bytes: what a client may send while that runs; more closes with 1008.
        max_pending_callbacks: messages of one client that wait for an async `on_message_received`;
            beyond it nothing is read from that client until they drain. What a read under way has
            brought is taken all the same.
        max_rooms, max_rooms_per_client: bounds; beyond them LimitError.
        flush_budget: how long a flush may hold the loop before it yields.
        thread_call_timeout: how long a call from another thread waits for the loop.
        backlog: connections that the kernel keeps for us to accept.

    Raises:
        ConfigError: a value cannot work; the text names the key, the value and what is allowed.
    """

    max_connections: int = 100_000
    read_buffer_size: int = 1 << 17
    receive_buffer_size: int = 1 << 17
    write_buffer_size: int = 0
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
    outbox_messages: int = 1_024
    outbox_bytes: int = 1 << 20
    overflow: Overflow = "disconnect"
    heartbeat_interval: float = 25.0
    heartbeat_timeout: float = 60.0
    close_timeout: float = 5.0
    authentication_timeout: float = 10.0
    authentication_input_bytes: int = 1 << 16
    max_pending_callbacks: int = 64
    max_rooms: int = 100_000
    max_rooms_per_client: int = 1_000
    flush_budget: float = 0.005
    thread_call_timeout: float = 10.0
    backlog: int = 4_096

    def __post_init__(self) -> None:
        for name, (low, high) in _INTEGERS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise _wrong(name, value, f"an int from {low} to {high}")
        for name in _SECONDS:
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise _wrong(name, value, "a positive number of seconds")
        for name in _FLAGS:
            if type(getattr(self, name)) is not bool:
                raise _wrong(name, getattr(self, name), "True or False")
        for name in _NAMES:
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)) or not all(
                isinstance(item, str) and item for item in value
            ):
                raise _wrong(name, value, "a tuple of non-empty str")
            # A list is as good; kept as a tuple so that the configuration stays immutable.
            msgspec.structs.force_setattr(self, name, tuple(value))
        for origin in self.allowed_origins:
            if not _ALLOWED_ORIGIN(origin):
                raise _wrong("allowed_origins", origin, "'https://host[:port]', '*.host' or '*'")
        if self.overflow not in _OVERFLOWS:
            raise _wrong("overflow", self.overflow, f"one of {', '.join(_OVERFLOWS)}")
        if self.heartbeat_timeout <= self.heartbeat_interval:
            raise _wrong(
                "heartbeat_timeout",
                self.heartbeat_timeout,
                f"more than heartbeat_interval ({self.heartbeat_interval})",
            )
        for subprotocol in self.subprotocols:
            if not _SUBPROTOCOL(subprotocol):
                raise _wrong("subprotocols", subprotocol, "a token (RFC 9110 section 5.6.2)")
        for network in self.trusted_proxies:
            try:
                ip_network(network)
            except ValueError:
                raise _wrong("trusted_proxies", network, "an IP address or network") from None
        if self.enable_compression and zlib_version() is None:
            raise _wrong("enable_compression", True, "False, since there is no zlib (libz.so.1)")


def _wrong(name: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"HubConfig.{name} is {value!r}, expected {expected}")
