from collections.abc import Iterable
from socket import AddressFamily, SocketKind
from typing import Any, Self, final

from typing_extensions import Buffer, disjoint_base

from wsc_fast._core.poller import Watched
from wsc_fast._core.receiver import Receiver

@disjoint_base
class StreamSocket:
    """The socket of a Stream, for looking and for its options (internal).

    It owns no descriptor, as asyncio's `TransportSocket` does not.
    """
    def __new__(cls, stream: Stream) -> Self: ...
    def fileno(self) -> int:
        """The descriptor; -1 once it is closed."""
    @property
    def family(self) -> AddressFamily:
        """socket.AddressFamily: AF_INET or AF_INET6."""
    @property
    def type(self) -> SocketKind:
        """socket.SocketKind: SOCK_STREAM."""
    @property
    def proto(self) -> int:
        """int: the protocol."""
    def getsockopt(self, level: int, optname: int, buflen: int = 0) -> int | bytes:
        """As `socket.socket.getsockopt`."""
    def setsockopt(self, level: int, optname: int, value: int | Buffer) -> None:
        """As `socket.socket.setsockopt`."""
    def getsockname(self) -> tuple[Any, ...]:
        """As `socket.socket.getsockname`."""
    def getpeername(self) -> tuple[Any, ...]:
        """As `socket.socket.getpeername`."""

@final
class Waiting:
    """Bytes that the kernel has not taken yet (internal)."""

@disjoint_base
class Answerer:
    """Answers the first bytes of a connection, or leaves them to its protocol (internal)."""

@disjoint_base
class Stream(Watched):
    """The transport of a connection that the engine reads and writes itself (internal).

    Methods are those of `asyncio.Transport`. Thread-safety: the loop's thread.
    """
    def __new__(cls) -> Self: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As asyncio's: "socket", "peername" and "sockname"."""
    def fileno(self) -> int:
        """The descriptor; -1 once it is closed."""
    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
    def is_reading(self) -> bool:
        """Whether the protocol hears what comes."""
    def get_protocol(self) -> Receiver | None:
        """The protocol; None once that has heard of the end."""
    def can_write_eof(self) -> bool:
        """Whether `write_eof` works: it does."""
    def get_write_buffer_size(self) -> int:
        """The number of bytes that wait for the kernel."""
    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The bytes at which the protocol may write again, and beyond which it is to pause."""
    def pause_reading(self) -> None:
        """Has the protocol hear nothing until `resume_reading`."""
    def resume_reading(self) -> None:
        """Undoes `pause_reading`."""
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Sets beyond how many bytes that wait the protocol is to pause, and when it goes on."""
    def write(self, data: Buffer) -> None:
        """Sends bytes; what the kernel does not take now waits for it."""
    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        """Sends the bytes of several objects."""
    def write_eof(self) -> None:
        """Ends our half of the stream, once what waits is sent.

        Raises:
            OSError: the peer has reset the connection meanwhile.
        """
    def close(self) -> None:
        """Closes it once what waits is sent; nothing more is read."""
    def abort(self) -> None:
        """Closes it, with nothing more sent or read."""
