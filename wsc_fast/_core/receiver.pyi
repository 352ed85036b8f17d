from typing_extensions import disjoint_base

from wsc_fast._core.outbox import Sink

@disjoint_base
class Receiver(Sink):
    """The receiving half of a connection (internal; `Client` is the public class)."""
    def get_buffer(self, size_hint: int) -> memoryview:
        """Where the transport is to read to (asyncio.BufferedProtocol)."""
    def buffer_updated(self, size: int) -> None:
        """The transport has read (asyncio.BufferedProtocol)."""
