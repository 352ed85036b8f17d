from multidict import CIMultiDict
from typing_extensions import disjoint_base

MOST_PAIRS: int

class TooManyHeaders(ValueError):
    """A request head with more headers than are allowed (internal)."""

@disjoint_base
class RequestLine:
    """A request line that has not come to its end (internal)."""
    def fits(self, head: bytes | bytearray) -> bool:
        """Whether a request line can begin so.

        Args:
            head: what has come of the head; at each call as much as at the last, or more.
        """

@disjoint_base
class RequestHead:
    """One request head (internal; applications get a `Request`).

    Args:
        raw: the head with the CR LF of its last line, without the empty line.
        most: headers that it may have.

    Raises:
        TooManyHeaders: it has more.
        ValueError: it is none that can be answered; the text says why.
    """
    def __init__(self, raw: bytes, most: int = 128) -> None: ...
    @property
    def raw(self) -> bytes: ...
    @property
    def method(self) -> str: ...
    @property
    def target(self) -> bytes: ...
    def has_parameter(self, parameter: bytes) -> bool:
        """Whether the query of the target names this, as NAME=VALUE, as it is.

        Args:
            parameter: NAME=VALUE, not decoded.

        Returns:
            bool.

        Thread-safety: any thread.
        """
    @property
    def authority(self) -> str | None: ...
    @property
    def http10(self) -> bool: ...
    @property
    def length(self) -> int: ...
    @property
    def encoded(self) -> bool: ...
    @property
    def to_websocket(self) -> bool: ...
    @property
    def upgrade(self) -> bool: ...
    @property
    def host(self) -> str | None: ...
    @property
    def origin(self) -> str | None: ...
    @property
    def key(self) -> str | None: ...
    @property
    def version(self) -> str | None: ...
    @property
    def hosts(self) -> int: ...
    @property
    def origins(self) -> int: ...
    @property
    def keys(self) -> int: ...
    @property
    def versions(self) -> int: ...
    @property
    def protocols(self) -> list[str] | None: ...
    @property
    def extensions(self) -> list[str] | None: ...
    @property
    def forwarded_for(self) -> list[str] | None: ...
    @property
    def forwarded_proto(self) -> list[str] | None: ...
    def path(self) -> str:
        """str: the path of the target, decoded."""
    def query_pairs(self) -> list[tuple[str, str]]:
        """list[tuple[str, str]]: name and value, decoded; MOST_PAIRS at most."""
    def cookie_pairs(self) -> list[tuple[str, str]]:
        """list[tuple[str, str]]: name and value, of all lines; MOST_PAIRS at most."""
    @property
    def headers(self) -> CIMultiDict[str]:
        """CIMultiDict: all headers."""
