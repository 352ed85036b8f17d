"""The rooms that users are in, and the times of presence."""

from __future__ import annotations

# Seconds: of the hubs' leases and their renewal, and for which a user may be away unnoticed.
LEASE, REFRESH, GRACE = 3.0, 1.0, 2.0
# Each user's devices, by their names.
DEVICES = "ab"
# The pattern of rooms with presence, and all rooms.
PATTERN = "room:*"
ROOMS = ["room:0", "room:1", *(f"room:{device}" for device in DEVICES)]


def rooms_of(user: str, device: str) -> list[str]:
    """The rooms that a device joins: one with half of all users, one with devices of its name.

    Args:
        user: as `user7`.
        device: as `a`.
    """
    return [f"room:{int(user.removeprefix('user')) % 2}", f"room:{device}"]
