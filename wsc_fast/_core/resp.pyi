import asyncio
from collections.abc import Callable
from typing import Any

from typing_extensions import disjoint_base

class ReplyError(Exception):
    """An error that the server answered; the text is the server's."""

@disjoint_base
class RespReader:
    """Reads the answers of one connection to Redis or Valkey (internal).

    Args:
        on_message: called with the name and the data of each message of a named channel. If it
            returns False, no more come until `may_go_on`.
        on_stray: called with the channel and the data of each other message.
        on_reply: called with each other reply.
        on_broken: called once, with the error, when what came is no RESP or breaks a bound, or when
            a callback raised.
        most: bytes of one reply, at most.
        budget: seconds of a turn of the loop, at most.
        may_go_on: asked in each turn after `on_message` has returned False; None: in the next turn.

    Thread-safety: the loop's thread.
    """

    messages: int
    bytes_read: int
    waiting: bool
    def __init__(
        self,
        on_message: Callable[[str, bytes], object],
        on_stray: Callable[[bytes, bytes], object],
        on_reply: Callable[[Any], object],
        on_broken: Callable[[Exception], object],
        *,
        most: int,
        budget: float = 0.002,
        may_go_on: Callable[[], bool] | None = None,
    ) -> None: ...
    def attach(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """Reads from a transport from now on.

        Args:
            transport: of the connection.
            loop: on which the reader has its turns.
        """
    def stop(self) -> None:
        """No callback is called any more."""
    def set_name(self, channel: bytes, name: str | None) -> None:
        """Names a channel.

        Args:
            channel: as the server knows it.
            name: what `on_message` gets for it; None: none.
        """
    def get_buffer(self, sizehint: int) -> memoryview:
        """Memory for the next read, for the transport.

        Args:
            sizehint: is not used.
        """
    def buffer_updated(self, count: int) -> None:
        """The transport has read so many bytes.

        Args:
            count: of bytes.
        """
    def go(self, quiet: bool = False) -> bool:
        """Takes what is complete.

        Args:
            quiet: errors go to `on_broken`.

        Returns:
            bool: there is more for the next turn.
        """
    def go_on(self) -> None:
        """In its turn: takes what is left, and has the transport read again."""
