"""All exceptions of the package. A caller catches ClientError for any of them.

ClientError
  OptionError          an option or a URL cannot be used; a ValueError, too
  SendError            a message or a request that was not sent or not answered
    ClosedError        the client is closed
    QueueFullError     more than `queue_bytes` wait
    RequestTimeoutError  no answer came in time; a TimeoutError, too
    LostError          the connection ended before the answer
  RefusedError         the server answered a request with an error
  ProtocolError        the server sent what it must not send
"""

from __future__ import annotations


class ClientError(Exception):
    """Base of all exceptions of this package."""


class OptionError(ClientError, ValueError):
    """An option or a URL cannot be used. The text names it, its value and what was expected."""


class SendError(ClientError):
    """A message or a request that was not sent, or not answered.

    Attributes:
        code: the word of clients/spec.md for it.
    """

    code: str = ""


class ClosedError(SendError):
    """The client is closed, or was closed meanwhile.

    Attributes:
        why: "called", "code", "unauthorized" or "forbidden"; "" where it was not connected yet.
        close_code: of the connection, 1006 where there was no close frame, 0 where there was none.
    """

    code = "closed"

    def __init__(self, text: str = "the client is closed", why: str = "", close_code: int = 0):
        super().__init__(text)
        self.why: str = why
        self.close_code: int = close_code

    def again(self) -> ClosedError:
        """The same for another caller: an error that is raised collects tracebacks."""
        return ClosedError(str(self), self.why, self.close_code)


class QueueFullError(SendError):
    """More than `queue_bytes` would wait to be sent."""

    code = "queue-full"


class RequestTimeoutError(SendError, TimeoutError):
    """No answer came in time."""

    code = "timeout"


class LostError(SendError):
    """The connection ended after the request was sent and before its answer.

    The server may have done what it was asked for.
    """

    code = "lost"


class RefusedError(ClientError):
    """The server answered a request, or the join of a room, with an error.

    Attributes:
        code: the server's word for it, such as "forbidden".
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code: str = code


class ProtocolError(ClientError):
    """The server sent something that is against the rules, or does not speak wsc.1."""
