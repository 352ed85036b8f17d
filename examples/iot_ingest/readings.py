"""The binary messages of devices: a head, and readings of 10 bytes each. Device and server use it.

    head       version (1 byte, now 1), number of readings (1 byte)
    reading    milliseconds since the epoch (6 bytes),
               hundredths of a degree Celsius (2 bytes, signed),
               hundredths of a per cent of humidity (2 bytes)

All numbers are big-endian.
"""

import struct
from typing import NamedTuple

VERSION = 1
MOST = 100  # readings of one message
_HEAD = struct.Struct("!BB")
_READING = struct.Struct("!HIhH")  # the milliseconds in two parts, since no format has 6 bytes
MOST_BYTES = _HEAD.size + MOST * _READING.size


class Reading(NamedTuple):
    """The values that a device has measured at once.

    Attributes:
        time: seconds since the epoch.
        temperature: degrees Celsius.
        humidity: per cent.
    """

    time: float
    temperature: float
    humidity: float


def encode(readings: list[Reading]) -> bytes:
    """One message.

    Raises:
        struct.error: a value is out of range.
    """
    parts = [_HEAD.pack(VERSION, len(readings))]
    for time, temperature, humidity in readings:
        high, low = divmod(round(time * 1_000), 1 << 32)
        parts.append(_READING.pack(high, low, round(temperature * 100), round(humidity * 100)))
    return b"".join(parts)


def decode(message: bytes) -> list[Reading]:
    """The readings of a message.

    Raises:
        ValueError: it is not one; the text says why.
    """
    if len(message) < _HEAD.size:
        raise ValueError(f"{len(message)} bytes are no head")
    version, count = _HEAD.unpack_from(message)
    if version != VERSION:
        raise ValueError(f"version {version} is not known")
    if count > MOST or len(message) != _HEAD.size + count * _READING.size:
        raise ValueError(f"{len(message)} bytes are not {count} readings")
    return [
        Reading((high * (1 << 32) + low) / 1_000, temperature / 100, humidity / 100)
        for high, low, temperature, humidity in _READING.iter_unpack(message[_HEAD.size :])
    ]
