"""HubConfig, RetryConfig and ACKConfig: each setting with its kind, bounds and default.

A setting stands here and nowhere else. Checks, environment and files go by the annotation; the
tests hold docs/reference.md against it.
"""

from __future__ import annotations

import random
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from wsc_fast._core.deflate import zlib_version
from wsc_fast.config.base import Settings
from wsc_fast.config.kinds import (
    FOREVER,
    LIVE,
    Factor,
    Hosts,
    Label,
    Names,
    Networks,
    Origins,
    Rate,
    Seconds,
    SecondsFromZero,
    Tokens,
    kinds_of,
    wrong,
)
from wsc_fast.errors import SendFailureReason, ValidationError, shown
from wsc_fast.log import log

Overflow = Literal["disconnect", "drop_oldest", "drop_newest"]
UserOverflow = Literal["refuse", "close_oldest"]
OfflineOverflow = Literal["drop_oldest", "refuse"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
RateLimitAction = Literal["close", "drop", "pause"]
Per = Literal["user", "device"]

# A smaller read buffer is raised to this.
MIN_READ_BUFFER = 2048

_REASONS = tuple(str(reason) for reason in SendFailureReason)


class HubConfig(Settings, frozen=True, kw_only=True):
    """Settings of a Hub (go-wsc `HubConfig`). Times are seconds, sizes are bytes.

    Attributes:
        max_connections: connections at once; the next upgrade gets 503 with Retry-After, unless it
            replaces a connection of its own (Identity.client_id).
        max_connections_per_address: of one IPv4 address or IPv6 /64, by `remote_address`; the next
            upgrade gets 429. 0: no bound, since behind a proxy that is not among `trusted_proxies`
            all clients have one address.
        max_connections_per_user: of one user, on all hubs of a bus together; 0: no bound.
        user_overflow: the answer to one more. "refuse": it is closed with 1008. "close_oldest": the
            user's oldest connection, on whichever hub, is closed with 4409.
        max_handshakes: connections whose request is not there yet, or whose peer still reads an
            answer that is no upgrade; one more ends the oldest of the larger of these groups. Peers
            that have their answer and may still send are an eighth of it at most.
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
        max_request_body: bytes of the body of a request to a route; more gets 413.
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
        authentication_input_bytes: what a client may send while that runs; its socket is not
            read beyond that, until it ends.
        max_pending_callbacks: messages of one client that wait for an async `on_message_received`;
            beyond it nothing is read from that client until they drain. Messages of a read under
            way are taken all the same. While acknowledgements of the client's user are awaited
            reading goes on, since a callback may wait for them, up to the next bound.
        max_pending_callback_bytes: what these messages may take in memory, with 256 bytes for each
            beside itself; beyond it nothing is read from that client until they drain.
        callback_close_timeout: for each async callback of a client that has gone; then it is
            cancelled, messages that waited behind it are dropped, and `on_client_disconnected` is
            told.
        max_rooms, max_rooms_per_client: bounds; beyond them LimitError.
        presence_grace: a user who is back in a room within so many seconds has not left it
            (`Hub.presence`), and nobody is told that he did.
        flush_budget: how long a flush may hold the loop before it yields.
        send_threads: so many threads help the loop's thread with the kernel calls of large flushes,
            on Linux. "auto": one for each core that the process may use (by its affinity, and the
            CPU quota of its control group) but the loop's own, at most 3; the workers of
            `serve --workers` divide the cores first. The threads serve all hubs of the process, run
            no Python, and help only as long as the hub measures that it gains: on cores that are
            busy it sends alone, but for 2 % of the time, in which it tries.
        drain_period: how long `run` takes to send clients away (1012) after the first SIGTERM or
            SIGINT, so that they do not all come back at once; 0 closes them all at once (1001).
        watchdog_timeout: a callback that blocks the loop for so long is logged, with the stack of
            the loop's thread. 0: nobody watches.
        thread_call_timeout: how long a call from another thread waits for the loop.
        backlog: connections that the kernel keeps for us to accept.
        log_format: "text", or "json": one JSON object a line. It is the form of the handler on
            standard error that `run` and `uvicorn` set up where the application has configured no
            logging; see also `wsc_fast.observe.JsonFormatter`.
        log_level: of that handler; lines below it are not written.
        node_name: of this hub among others, for operators: the console, `NodeInfo` and log lines
            show it with a dash and a random part behind, which differs with each hub and each run
            of the program. "" is the name of the host, up to its first dot. Ids of clients begin
            with both where the bus has other hubs.

    Raises:
        ConfigError: a value cannot work; the text names the key, the value and what is allowed.
    """

    _table: ClassVar[str] = "hub"

    max_connections: Annotated[int, Meta(ge=1, le=10_000_000), LIVE] = 100_000
    max_connections_per_address: Annotated[int, Meta(ge=0, le=10_000_000), LIVE] = 0
    max_connections_per_user: Annotated[int, Meta(ge=0, le=10_000_000), LIVE] = 0
    user_overflow: Annotated[UserOverflow, LIVE] = "refuse"
    max_handshakes: Annotated[int, Meta(ge=1, le=10_000_000), LIVE] = 10_000
    connection_rate: Annotated[Rate, LIVE] = 0.0
    connection_rate_per_address: Annotated[Rate, LIVE] = 0.0
    message_rate: Annotated[Rate, LIVE] = 0.0
    byte_rate: Annotated[Rate, LIVE] = 0.0
    rate_limit_action: Annotated[RateLimitAction, LIVE] = "close"
    read_buffer_size: Annotated[int, Meta(ge=1, le=1 << 26)] = 1 << 17
    receive_buffer_size: Annotated[int, Meta(ge=0, le=1 << 30)] = 0
    write_buffer_size: Annotated[int, Meta(ge=0, le=1 << 30)] = 0
    max_header_bytes: Annotated[int, Meta(ge=512, le=1 << 20), LIVE] = 16_384
    max_headers: Annotated[int, Meta(ge=8, le=128), LIVE] = 128
    max_request_body: Annotated[int, Meta(ge=0, le=1 << 30), LIVE] = 65_536
    handshake_timeout: Seconds = 10.0
    enable_compression: bool = False
    compression_level: Annotated[int, Meta(ge=1, le=9)] = 1
    compression_threshold: Annotated[int, Meta(ge=0, le=1 << 30)] = 128
    server_no_context_takeover: bool = True
    client_no_context_takeover: bool = True
    server_max_window_bits: Annotated[int, Meta(ge=9, le=15)] = 15
    client_max_window_bits: Annotated[int, Meta(ge=9, le=15)] = 15
    subprotocols: Annotated[Tokens, LIVE] = ()
    trusted_proxies: Annotated[Networks, LIVE] = ()
    check_origin: Annotated[bool, LIVE] = True
    allowed_origins: Annotated[Origins, LIVE] = ()
    allowed_hosts: Annotated[Hosts, LIVE] = ()
    max_message_size: Annotated[int, Meta(ge=125, le=1 << 31)] = 1 << 20
    max_fragments: Annotated[int, Meta(ge=1, le=1 << 31)] = 16_384
    message_timeout: Annotated[Seconds, LIVE] = 300.0
    outbox_messages: Annotated[int, Meta(ge=1, le=1 << 30), LIVE] = 1_024
    outbox_bytes: Annotated[int, Meta(ge=1, le=1 << 40), LIVE] = 1 << 20
    overflow: Annotated[Overflow, LIVE] = "disconnect"
    heartbeat_interval: Annotated[Seconds, LIVE] = 25.0
    heartbeat_timeout: Annotated[Seconds, LIVE] = 60.0
    close_timeout: Annotated[Seconds, LIVE] = 5.0
    authentication_timeout: Annotated[Seconds, LIVE] = 10.0
    authentication_input_bytes: Annotated[int, Meta(ge=0, le=1 << 30), LIVE] = 1 << 16
    max_pending_callbacks: Annotated[int, Meta(ge=1, le=1 << 30), LIVE] = 64
    max_pending_callback_bytes: Annotated[int, Meta(ge=1, le=1 << 40), LIVE] = 1 << 20
    callback_close_timeout: Annotated[Seconds, LIVE] = 60.0
    max_rooms: Annotated[int, Meta(ge=0, le=1 << 40), LIVE] = 100_000
    max_rooms_per_client: Annotated[int, Meta(ge=0, le=1 << 40), LIVE] = 1_000
    presence_grace: Annotated[SecondsFromZero, LIVE] = 5.0
    flush_budget: Annotated[Seconds, LIVE] = 0.005
    send_threads: Annotated[int, Meta(ge=0, le=16)] | Literal["auto"] = 0
    drain_period: Annotated[SecondsFromZero, LIVE] = 0.0
    watchdog_timeout: SecondsFromZero = 5.0
    thread_call_timeout: Annotated[Seconds, LIVE] = 10.0
    backlog: Annotated[int, Meta(ge=1, le=1 << 16)] = 4_096
    log_format: LogFormat = "text"
    log_level: LogLevel = "info"
    node_name: Label = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heartbeat_timeout <= self.heartbeat_interval < FOREVER:
            raise wrong(
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
            raise wrong(
                "HubConfig.enable_compression", True, "False, since there is no zlib (libz.so.1)"
            )

    @classmethod
    def _stands_beside(cls, key: str) -> bool:
        return key in kinds_of(RetryConfig)


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

    max_retries: Annotated[int, Meta(ge=0, le=1_000_000)] = 3
    base_delay: Seconds = 0.1
    backoff_factor: Factor = 2.0
    max_delay: Seconds = 30.0
    jitter: bool = False
    retryable_errors: Names = ("queue_full", "timeout", "conn_error", "channel_closed")
    non_retryable_errors: Names = ("user_offline", "permission", "validation")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_delay < self.base_delay:
            raise wrong(
                "RetryConfig.max_delay", self.max_delay, f"at least base_delay ({self.base_delay})"
            )
        for reason in self.retryable_errors:
            if reason in self.non_retryable_errors:
                raise wrong("RetryConfig.retryable_errors", reason, "none of non_retryable_errors")
        for name in ("retryable_errors", "non_retryable_errors"):
            for reason in getattr(self, name):
                if reason not in _REASONS:
                    log.warning(
                        "RetryConfig.%s: %s is no reason and never matches, expected one of %s",
                        name,
                        shown(reason),
                        ", ".join(_REASONS),
                        kind=f"RetryConfig.{name}: {reason}",
                    )

    @classmethod
    def _stands_beside(cls, key: str) -> bool:
        return key in kinds_of(HubConfig)

    def delay(self, retry: int) -> float:
        """The seconds to wait before a retry.

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
        timeout: from the first send to AckTimeoutError. Retransmissions that are due later are not
            made.
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

    timeout: Seconds = 30.0
    max_retries: Annotated[int, Meta(ge=0, le=1_000_000)] = 3
    retry_interval: Seconds = 5.0
    enable_offline_messages: bool = False
    max_pending: Annotated[int, Meta(ge=1, le=1 << 30)] = 100_000
    max_pending_bytes: Annotated[int, Meta(ge=1, le=1 << 40)] = 1 << 26
    max_pending_per_user: Annotated[int, Meta(ge=0, le=1 << 30)] = 0
    per: Per = "user"
    max_devices: Annotated[int, Meta(ge=1, le=10_000)] = 16
    offline_limit: Annotated[int, Meta(ge=1, le=1 << 30)] = 1_000
    offline_overflow: OfflineOverflow = "drop_oldest"
    offline_max_age: Seconds = 604_800.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per == "device" and not self.enable_offline_messages:
            raise wrong(
                "ACKConfig.per", self.per, '"user", or enable_offline_messages=True with "device"'
            )
