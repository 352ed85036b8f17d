"""The metrics of a hub: their names, and where in its counters each of them is read.

This file knows nothing of prometheus-client. metrics.py hands these families over to it, and
docs/metrics.md has them in a table, which a test compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsc_fast._core.histogram import Histogram
from wsc_fast.cluster.counters import Counters
from wsc_fast.stats import HubStats

# By metric, the values of its label with the fields that count them.
PARTS = {
    "acks": {each: f"acks_{each}" for each in ("confirmed", "failed", "timed_out", "dropped")},
    "recoveries": {each: each for each in ("recovered", "not_recovered")},
    "words": {each: f"words_{each}" for each in ("sent", "received", "failed")},
    "bus_errors": {each: each for each in ("poisoned", "not_published")},
}
# The bounds of a histogram's buckets with how many values are at most so large; and their sum.
Distribution = tuple[list[tuple[float, int]], float]


@dataclass(frozen=True, slots=True)
class Reading:
    """The state of one hub at one moment.

    Attributes:
        stats: the counters and gauges.
        histograms: by name.
        stores: how long the offline store took, by operation.
        cluster: the counters of kept rooms and the bus; all are 0 where there are none.
    """

    stats: HubStats
    histograms: dict[str, Distribution]
    stores: dict[str, Distribution]
    cluster: Counters


@dataclass(frozen=True, slots=True)
class Family:
    """One metric.

    Attributes:
        name: without `_total`, which a counter has besides.
        kind: of metric.
        text: one line for its reader.
        field: of HubStats or Counters; of a histogram its name in Reading. A metric whose values
            have a field each is in PARTS.
        label: of each of its values, where it has several.
        source: whose field it is.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    field: str
    label: str | None = None
    source: Literal["stats", "cluster"] = "stats"

    def values(self, reading: Reading) -> dict[str, float]:
        """The values of a gauge or a counter by their label; "" where there is none."""
        source = getattr(reading, self.source)
        if self.field in PARTS:
            return {value: getattr(source, field) for value, field in PARTS[self.field].items()}
        value = getattr(source, self.field)
        return dict(value) if self.label is not None else {"": value}

    def distributions(self, reading: Reading) -> dict[str, Distribution]:
        """The values of a histogram by their label; "" where there is none."""
        if self.label is not None:
            return reading.stores
        return {"": reading.histograms[self.field]}


FAMILIES = (
    Family("wsc_connected_clients", "gauge", "Clients that are connected.", "connected_clients"),
    Family(
        # A family of this name and the counter's would be one in OpenMetrics.
        "wsc_open_connections",
        "gauge",
        "Connections that authenticate, are open or are closing.",
        "connections",
    ),
    Family("wsc_rooms", "gauge", "Rooms.", "active_rooms"),
    Family("wsc_nodes", "gauge", "Hubs that the bus has told of last, this one included.", "nodes"),
    Family("wsc_queued_messages", "gauge", "Messages in all outboxes.", "queued_messages"),
    Family("wsc_queued_bytes", "gauge", "Bytes in all outboxes.", "queued_bytes"),
    Family(
        "wsc_acks_pending",
        "gauge",
        "Messages that wait for an acknowledgement in memory.",
        "acks_pending",
    ),
    Family("wsc_uptime_seconds", "gauge", "Time since the hub started.", "uptime"),
    Family("wsc_connections", "counter", "Connections made.", "connections_total"),
    Family("wsc_messages_received", "counter", "Whole messages received.", "messages_in"),
    Family("wsc_received_bytes", "counter", "Payload of the messages received.", "bytes_in"),
    Family(
        "wsc_messages_sent",
        "counter",
        "Messages given to a send call; a broadcast counts once.",
        "messages_out",
    ),
    Family(
        "wsc_frames_sent",
        "counter",
        "Frames given to the kernel, for each client; pings and closes included.",
        "frames_sent",
    ),
    Family("wsc_sent_bytes", "counter", "Bytes given to the kernel.", "bytes_out"),
    Family(
        "wsc_deliveries",
        "counter",
        "Messages put into an outbox; a broadcast counts once per recipient.",
        "deliveries",
    ),
    Family(
        "wsc_conflated_messages",
        "counter",
        "Messages replaced by a newer one under the same key.",
        "conflated",
    ),
    Family("wsc_dropped_messages", "counter", "Messages dropped.", "dropped", "reason"),
    Family(
        "wsc_refused_sends",
        "counter",
        "Sends to one client or user that found no room in an outbox.",
        "refused",
    ),
    Family(
        "wsc_send_failures",
        "counter",
        "Messages not delivered, as failure handlers hear of them.",
        "send_failures",
    ),
    Family("wsc_closes", "counter", "Connections that ended, by close code.", "closes", "code"),
    Family("wsc_refusals", "counter", "Upgrades refused.", "rejected", "reason"),
    Family("wsc_limit_hits", "counter", "How often a limit was met.", "limited", "setting"),
    Family(
        "wsc_slow_consumer_disconnects",
        "counter",
        "Clients closed since their outbox was full.",
        "slow_consumer_disconnects",
    ),
    Family(
        "wsc_rate_limited_messages",
        "counter",
        "Messages beyond the rate of their client.",
        "rate_limited",
    ),
    Family(
        "wsc_unauthorized_messages",
        "counter",
        "Messages that authorize_publish did not allow.",
        "unauthorized",
    ),
    Family(
        "wsc_refused_joins",
        "counter",
        "Joins that authorize_join or on_join_request did not allow.",
        "refused_joins",
    ),
    Family("wsc_requests", "counter", "Requests of clients, answered.", "requests_answered"),
    Family(
        "wsc_refused_requests",
        "counter",
        "Requests of clients that got an error.",
        "requests_refused",
    ),
    Family(
        "wsc_abandoned_messages",
        "counter",
        "Messages received that no callback was called with.",
        "messages_abandoned",
    ),
    Family("wsc_callback_errors", "counter", "Exceptions of callbacks.", "callback_errors"),
    Family(
        "wsc_protocol_errors",
        "counter",
        "Connections closed for a fault of their peer.",
        "protocol_errors",
    ),
    Family(
        "wsc_heartbeat_timeouts",
        "counter",
        "Clients closed for their silence.",
        "heartbeat_timeouts",
    ),
    Family("wsc_acks_sent", "counter", "Messages sent with acknowledgement.", "acks_sent"),
    Family("wsc_acks", "counter", "Ends of messages with acknowledgement.", "acks", "outcome"),
    Family(
        "wsc_stored_messages",
        "counter",
        "Messages put into the offline store.",
        "offline_stored",
    ),
    Family(
        "wsc_replayed_messages",
        "counter",
        "Messages sent from the offline store.",
        "offline_replayed",
    ),
    Family("wsc_store_errors", "counter", "Failed calls of the offline store.", "offline_errors"),
    Family(
        "wsc_bus_published",
        "counter",
        "Messages that the hub has given to the bus.",
        "published",
        source="cluster",
    ),
    Family(
        "wsc_bus_received",
        "counter",
        "Messages that have come from the bus.",
        "received",
        source="cluster",
    ),
    Family(
        "wsc_bus_errors",
        "counter",
        "Messages that the bus did not take, and envelopes on it that are none.",
        "bus_errors",
        "reason",
        source="cluster",
    ),
    Family(
        "wsc_heals",
        "counter",
        "Reads of a history that looked for missed messages.",
        "heals",
        source="cluster",
    ),
    Family(
        "wsc_healed_messages",
        "counter",
        "Messages that the bus did not bring, and a read of the history did.",
        "healed",
        source="cluster",
    ),
    Family(
        "wsc_gaps",
        "counter",
        "Times that messages of a kept room were lost to its members, who were told.",
        "gaps",
        source="cluster",
    ),
    Family(
        "wsc_plain_gaps",
        "counter",
        "Times that messages of a plain room, or to all clients, may have been missed.",
        "plain_gaps",
        source="cluster",
    ),
    Family(
        "wsc_recoveries",
        "counter",
        "Joins of clients that came back to a kept room with a position.",
        "recoveries",
        "outcome",
        source="cluster",
    ),
    Family(
        "wsc_presence_changes",
        "counter",
        "Times that the clients of a user became more or fewer, where presence is on.",
        "presence_changes",
        source="cluster",
    ),
    Family(
        "wsc_presence_told",
        "counter",
        "Users of whose joins and leaves on_presence was told.",
        "presence_told",
        source="cluster",
    ),
    Family(
        "wsc_words",
        "counter",
        "Words about users between hubs.",
        "words",
        "outcome",
        source="cluster",
    ),
    Family(
        "wsc_outbox_depth_messages",
        "histogram",
        "Messages that wait for a client, as the heartbeat finds them in its rounds.",
        "outbox_depth",
    ),
    Family("wsc_flush_clients", "histogram", "Sends of one flush.", "flush_clients"),
    Family("wsc_flush_seconds", "histogram", "Time of a flush.", "flush_seconds"),
    Family(
        "wsc_flush_send_seconds",
        "histogram",
        "Time of the part of a flush that needs no GIL.",
        "send_seconds",
    ),
    Family("wsc_loop_lag_seconds", "histogram", "How late a timer of the loop comes.", "loop_lag"),
    Family(
        "wsc_ack_latency_seconds",
        "histogram",
        "Time from the first send of a message to its acknowledgement.",
        "ack_latency",
    ),
    Family(
        "wsc_store_latency_seconds",
        "histogram",
        "Time of the calls of the offline store.",
        "stores",
        "operation",
    ),
    Family(
        "wsc_heartbeat_round_trip_seconds",
        "histogram",
        "Time from a ping of the heartbeat to its pong.",
        "round_trips",
    ),
)


def read_all(histograms: dict[str, Histogram]) -> dict[str, Distribution]:
    """The distribution of each histogram at this moment."""
    return {name: histogram.read() for name, histogram in histograms.items()}
