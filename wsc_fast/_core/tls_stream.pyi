from collections.abc import Callable
from ssl import SSLContext
from typing import Any, Self

from typing_extensions import Buffer, disjoint_base

from wsc_fast._core.poller import Poller
from wsc_fast._core.receiver import Receiver
from wsc_fast._core.stream import Stream

def can_serve() -> bool:
    """Whether the OpenSSL of Python's `ssl` can be called (internal).

    It cannot where OpenSSL is linked into Python, or Python keeps it in another way than is known.

    Thread-safety: any thread.
    """

@disjoint_base
class TLSStream(Stream):
    """The transport of a TLS connection that the engine reads and writes itself (internal).

    Args:
        poller: of the hub.
        descriptor: of an accepted socket, which does not block; owned from here on.
        context: ssl.SSLContext.
        arrived: is called when the handshake may go on, until it is done.

    Raises:
        OSError: the kernel cannot watch it, or there is no memory.
        TypeError: Python's `ssl` is not one that is known.

    Thread-safety: the loop's thread.
    """
    def __new__(
        cls,
        poller: Poller,
        descriptor: int,
        context: SSLContext,
        arrived: Callable[[], object],
    ) -> Self: ...
    def wait(self) -> None:
        """Has `arrived` not be called until `shake` was."""
    def shake(self) -> bool:
        """Goes on with the handshake, as far as what has come allows; whether it is done.

        Raises:
            OSError: it has failed (ssl.SSLError), or the peer has left.
        """
    def serve(self, protocol: Receiver) -> None:
        """Has the protocol hear of the connection, and of what has come of it already."""
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As asyncio's: also "ssl_object", "sslcontext", "peercert" and "cipher"."""
    def can_write_eof(self) -> bool:
        """Whether `write_eof` works: no half of TLS can be ended alone."""
    def write_eof(self) -> None:
        """Not over TLS.

        Raises:
            NotImplementedError: always.
        """
    def write(self, data: Buffer) -> None:
        """Sends bytes; what the kernel does not take now waits for it."""
    def close(self) -> None:
        """Closes it once what waits is sent, with a goodbye; nothing more is heard."""
