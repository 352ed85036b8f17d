from typing_extensions import disjoint_base

from wsc_fast._core.outbox import Sink

@disjoint_base
class Receiver(Sink):
    """The receiving half of a connection (internal; `Client` is the public class)."""
