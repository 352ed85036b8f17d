"""The counters of kept rooms and of the bus, in HubStats and the metrics."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Counters:
    """Counts since the hub was made, or since the last reset.

    Attributes:
        published: messages that this hub has given to the bus.
        received: messages that have come from the bus: those of other hubs, and in kept rooms also
            this hub's own.
        healed: messages that were missed on the bus, and read from the history.
        heals: reads that looked for such messages.
        gaps: times that messages of a kept room could not be read, and its members were told.
        plain_gaps: times that messages of a plain room, or to all clients, may have been missed.
        closed_by_gap: clients that were closed for a gap in a kept room, which they cannot be told.
        recovered: joins of clients that got all that they had missed.
        not_recovered: joins of clients that had a position, and could not.
        poisoned: envelopes on the bus that are none.
        not_published: messages that the bus did not take.
        presence_changes: times that the clients of a user became more or fewer, in the hub or in a
            room with presence.
        presence_told: users of whose joins and leaves `on_presence` was told.
        words_sent: words about users that went to other hubs.
        words_received: words about users that came from other hubs.
        words_failed: words that the bus did not take.
    """

    published: int = 0
    received: int = 0
    healed: int = 0
    heals: int = 0
    gaps: int = 0
    plain_gaps: int = 0
    closed_by_gap: int = 0
    recovered: int = 0
    not_recovered: int = 0
    poisoned: int = 0
    not_published: int = 0
    presence_changes: int = 0
    presence_told: int = 0
    words_sent: int = 0
    words_received: int = 0
    words_failed: int = 0

    def reset(self) -> None:
        """Sets all of them to 0."""
        for each in fields(self):
            setattr(self, each.name, 0)
