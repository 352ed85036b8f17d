"""Snapshots of counters: HubStats of a hub (`Hub.get_stats`), ClientStats of a client."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Protocol

import msgspec

from wsc_fast._core import clock


class HubStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of a hub since it was made or the last `reset_stats`, and gauges of this moment.

    Attributes:
        connected_clients, active_rooms: gauges (go-wsc `HubStats`).
        total_messages: messages received and messages given to a send call (go-wsc).
        error_count: callback errors, protocol errors and heartbeat timeouts (go-wsc).
        start_time: when the hub started, UTC; None before (go-wsc).
        uptime: seconds since then.
        messages_in, bytes_in: whole messages received, and their payload.
        messages_out: messages given to a send call, a broadcast counting once.
        bytes_out: bytes given to the kernel or a transport, frame headers included.
        deliveries: messages put into an outbox, a broadcast counting once per recipient.
        frames_sent: frames, pings and closes included, given to the kernel or a transport.
        send_calls, flushes, messages_per_send: how well sends are coalesced.
        partial_sends: sends that the kernel took only in part or not at all.
        shared_flushes: flushes whose sends were open to the threads of `HubConfig.send_threads`;
            beside `flushes` it says whether they pay.
        compressed_frames: how often a message was compressed: once for all clients that share the
            result.
        conflated: messages replaced by a newer one under the same key.
        control_replaced: pongs, and pings of the heartbeat, that waited and were replaced by a
            newer one: of clients that ping and do not read.
        dropped: messages dropped, by reason: "drop_oldest", "drop_newest", "slow_consumer" (the
            backlog of a client that was disconnected for it) and "conn_closed" (the backlog of a
            connection that went away).
        refused: direct sends that found no room in an outbox, or no memory for it.
        slow_consumer_disconnects: clients closed with 1013.
        closes: how connections ended: how often with each close code, as `Client.close_code` tells
            it. Codes from 3000 to 4999 that the client chose count together, as "3000-4999".
        queued_messages, queued_bytes: gauges over all outboxes.
        connections: gauge, closing and authenticating ones too; connections_total: ever made.
        outlasting_callbacks: gauge, clients that have gone and of which an async callback goes on;
            they count towards `max_connections`.
        nodes: gauge, the hubs that the bus has told of last, this one included. 0: there is no bus,
            it does not answer, or the hub has no `authenticate`, so that it takes no lease.
        replaced_clients: connections closed with 4409 for a newer one with the same id.
        rejected: upgrades refused, by reason: "full", "origin", "auth", "request", "address",
            "rate", "handshakes" (too many unanswered at once), and "gone" (left before its request
            was whole). "auth" and "rate" also count requests to the HTTP API.
        limited: how often each limit was met, by the name of its setting.
        rate_limited: messages beyond a client's rate.
        messages_abandoned: messages received that no callback was called with, since their client
            was disconnected, or the callback before them was cancelled.
        unauthorized: messages that `authorize_publish` did not allow.
        refused_joins: joins that `authorize_join` or `on_join_request` did not allow.
        requests_answered, requests_refused: requests of clients that got an answer, and that got an
            error.
        protocol_errors, heartbeat_timeouts, callback_errors: what they say.
        unreported_errors: errors that concern no client and that an async `on_error` did not hear
            of, since too many of its calls were under way.
        longest_flush: seconds.
        acks_pending: gauge, messages that wait for an acknowledgement in memory.
        acks_sent, acks_retransmitted: messages with acknowledgement, and further sends of them.
        acks_confirmed, acks_failed, acks_timed_out, acks_dropped: how they ended.
        acks_ignored: acknowledgements of what was not pending for that user.
        offline_stored, offline_replayed: messages put into the offline store, and sent from it.
        offline_errors: calls of the offline store that failed.
        send_failures: messages not delivered: calls that failed, and, while there are failure
            handlers, what was lost from outboxes.
        unreported_failures: failures that a handler did not hear of, counted for each handler; for
            example because too many waited for it.
        handler_errors: exceptions of failure handlers.
    """

    connected_clients: int
    active_rooms: int
    total_messages: int
    error_count: int
    start_time: datetime | None
    uptime: float
    messages_in: int
    bytes_in: int
    messages_out: int
    bytes_out: int
    deliveries: int
    frames_sent: int
    send_calls: int
    flushes: int
    messages_per_send: float
    partial_sends: int
    shared_flushes: int
    compressed_frames: int
    conflated: int
    control_replaced: int
    dropped: dict[str, int]
    refused: int
    slow_consumer_disconnects: int
    closes: dict[str, int]
    queued_messages: int
    queued_bytes: int
    connections: int
    connections_total: int
    outlasting_callbacks: int
    nodes: int
    replaced_clients: int
    rejected: dict[str, int]
    limited: dict[str, int]
    rate_limited: int
    messages_abandoned: int
    unauthorized: int
    refused_joins: int
    requests_answered: int
    requests_refused: int
    protocol_errors: int
    heartbeat_timeouts: int
    callback_errors: int
    unreported_errors: int
    longest_flush: float
    acks_pending: int
    acks_sent: int
    acks_retransmitted: int
    acks_confirmed: int
    acks_failed: int
    acks_timed_out: int
    acks_dropped: int
    acks_ignored: int
    offline_stored: int
    offline_replayed: int
    offline_errors: int
    send_failures: int
    unreported_failures: int
    handler_errors: int


class Client(Protocol):
    """The attributes of a client that its stats repeat."""

    @property
    def dropped_messages(self) -> int: ...
    @property
    def queued_messages(self) -> int: ...
    @property
    def queued_bytes(self) -> int: ...
    @property
    def connected_at(self) -> datetime: ...


class ClientStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one client since it connected, and gauges of this moment.

    Attributes:
        messages_in, bytes_in: whole messages received of it, and their payload.
        frames_sent: frames, pings and closes included, given to the kernel or the transport for it.
        bytes_out: bytes of these, headers included.
        dropped: messages for it that were dropped, for any reason.
        conflated: messages replaced by a newer one under the same key.
        queued_messages, queued_bytes: gauges of its outbox.
        round_trip: seconds from the heartbeat's last ping to its answer; None before the first
            answer, and so as long as the client sends something itself in each
            `heartbeat_interval`.
        connected_at: when the connection was made, UTC.
        age: seconds since then.
    """

    messages_in: int
    bytes_in: int
    frames_sent: int
    bytes_out: int
    dropped: int
    conflated: int
    queued_messages: int
    queued_bytes: int
    round_trip: float | None
    connected_at: datetime
    age: float


def client_stats(
    client: Client,
    messages_in: int,
    bytes_in: int,
    frames_sent: int,
    bytes_out: int,
    conflated: int,
    round_trip: float,
    connected: float,
) -> ClientStats:
    """Builds the ClientStats of a client from its numbers.

    Args:
        client: whose they are.
        messages_in, bytes_in, frames_sent, bytes_out, conflated: as in ClientStats.
        round_trip: below 0 where it is not known.
        connected: when the connection was made, in seconds since the epoch.
    """
    return ClientStats(
        messages_in=messages_in,
        bytes_in=bytes_in,
        frames_sent=frames_sent,
        bytes_out=bytes_out,
        dropped=client.dropped_messages,
        conflated=conflated,
        queued_messages=client.queued_messages,
        queued_bytes=client.queued_bytes,
        round_trip=None if round_trip < 0 else round_trip,
        connected_at=client.connected_at,
        age=max(0.0, clock.time() - connected),
    )


def snapshot(
    counters: dict[str, Any],
    *,
    connections: int,
    start_time: datetime | None,
    uptime: float,
    own: dict[str, int],
    delivery: dict[str, int],
) -> HubStats:
    """Builds the HubStats from the engine's raw counters, the hub's own, and the delivery's."""
    sends = counters.pop("sends")
    total = counters.pop("connections")
    limited = counters.pop("limited")
    closes = counters.pop("closes")
    same = {name: counters[name] for name in HubStats.__struct_fields__ if name in counters}
    return HubStats(
        total_messages=counters["messages_in"] + counters["messages_out"],
        error_count=(
            counters["callback_errors"]
            + counters["protocol_errors"]
            + counters["heartbeat_timeouts"]
        ),
        start_time=start_time,
        uptime=uptime,
        send_calls=sends,
        messages_per_send=counters["frames_sent"] / sends if sends else 0.0,
        compressed_frames=counters["compressed"],
        dropped={
            "drop_oldest": counters["dropped_oldest"],
            "drop_newest": counters["dropped_newest"],
            "slow_consumer": counters["dropped_slow"],
            "conn_closed": counters["dropped_closed"],
        },
        slow_consumer_disconnects=counters["slow_disconnects"],
        closes=closes,
        connections=connections,
        connections_total=total,
        rejected={
            name.removeprefix("rejected_"): count
            for name, count in counters.items()
            if name.startswith("rejected_")
        },
        limited=limited,
        **same,
        **own,
        **delivery,
    )
