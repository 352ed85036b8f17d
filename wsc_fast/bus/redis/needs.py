"""The counters, which all parts of the bus share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Counts of the events since the bus was opened.

    Attributes:
        published: messages that the server has taken, duplicates included.
        not_published: messages of which the publisher had an error.
        lookups: publishes of unknown outcome that were looked up at the server.
        reconnects: connections that were made again.
        messages_in: envelopes that came.
        bytes_in: bytes that the servers sent.
        subscriptions: channels that are subscribed.
        waiting_bytes: of messages that wait for a server or its answer.
        heartbeats: renewals of leases, where presence is on.
        lost_leases: times that the others took this hub for dead, or a server had forgotten it.
        reaped: entries that hubs without a lease had left, and this one took out.
        longest_lag: seconds, the most that a message to this hub itself took.
    """

    published: int = 0
    not_published: int = 0
    lookups: int = 0
    reconnects: int = 0
    messages_in: int = 0
    bytes_in: int = 0
    subscriptions: int = 0
    waiting_bytes: int = 0
    heartbeats: int = 0
    lost_leases: int = 0
    reaped: int = 0
    longest_lag: float = 0.0
