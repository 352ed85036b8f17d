from typing import final

from typing_extensions import disjoint_base

from wsc_fast._core.outbox import Sink

@final
class Unfinished:
    """A message of which some bytes have come (internal)."""

@final
class Arrival:
    """The part of a connection that lasts until it is known whose it is (internal)."""

@disjoint_base
class Receiver(Sink):
    """The receiving half of a connection (internal; `Client` is the public class)."""
