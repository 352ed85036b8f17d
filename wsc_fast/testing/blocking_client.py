"""A HubClient for tests without a loop: the same names, each call waits for its end."""

from __future__ import annotations

from typing import Any, Self

from wsc_fast import HubMessage
from wsc_fast.testing.expected import Expected, Message
from wsc_fast.testing.hub_client import SILENCE, WITHIN, HubClient
from wsc_fast.testing.threads import LoopThread


class BlockingClient:
    """A HubClient on the loop of a thread. It reads, and answers pings, while the test computes.

    Args:
        client: that belongs to the thread's loop.
        thread: whose loop that is.

    Thread-safety: any thread but that one.
    """

    def __init__(self, client: HubClient, thread: LoopThread) -> None:
        self._client = client
        self._thread = thread

    @property
    def received(self) -> list[Message]:
        """As of a HubClient: all messages that came."""
        return list(self._client.received)

    @property
    def notices(self) -> list[dict[str, Any]]:
        """As of a HubClient: the heads without a message."""
        return list(self._client.notices)

    @property
    def positions(self) -> dict[str, str]:
        """As of a HubClient: the positions in kept rooms."""
        return dict(self._client.positions)

    @property
    def subprotocol(self) -> str | None:
        """As of a HubClient: the one that was agreed on."""
        return self._client.subprotocol

    @property
    def close_code(self) -> int | None:
        """As of a HubClient: None while it is open."""
        return self._client.close_code

    @property
    def close_reason(self) -> str:
        """As of a HubClient: the text beside the code."""
        return self._client.close_reason

    def send(self, message: Message | dict[str, Any] | list[Any] | HubMessage) -> None:
        """See `HubClient.send`."""
        self._thread.call(self._client.send(message))

    def ack(
        self,
        message: Message | dict[str, Any] | HubMessage,
        status: str = "confirmed",
        error: str = "",
    ) -> None:
        """See `HubClient.ack`."""
        self._thread.call(self._client.ack(message, status, error))

    def expect(
        self, expected: Expected = None, *, within: float = WITHIN, skip: bool = False
    ) -> Any:
        """See `HubClient.expect`."""
        return self._thread.call(self._client.expect(expected, within=within, skip=skip))

    def expect_nothing(self, within: float = SILENCE) -> None:
        """See `HubClient.expect_nothing`."""
        self._thread.call(self._client.expect_nothing(within))

    def expect_close(
        self, code: int | None = None, reason: str | None = None, *, within: float = WITHIN
    ) -> int:
        """See `HubClient.expect_close`."""
        return self._thread.call(self._client.expect_close(code, reason, within=within))

    def expect_notice(self, *, within: float = WITHIN, **fields: Any) -> dict[str, Any]:
        """See `HubClient.expect_notice`."""
        return self._thread.call(self._client.expect_notice(within=within, **fields))

    def reconnect(self) -> BlockingClient:
        """See `HubClient.reconnect`."""
        return BlockingClient(self._thread.call(self._client.reconnect()), self._thread)

    def stop_reading(self) -> None:
        """See `HubClient.stop_reading`."""
        self._thread.run(self._client.stop_reading)

    def start_reading(self) -> None:
        """See `HubClient.start_reading`."""
        self._thread.run(self._client.start_reading)

    def cut(self) -> None:
        """See `HubClient.cut`."""
        self._thread.run(self._client.cut)

    def vanish(self) -> None:
        """See `HubClient.vanish`."""
        self._thread.run(self._client.vanish)

    def drop(self) -> None:
        """See `HubClient.drop`."""
        self._thread.run(self._client.drop)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """See `HubClient.close`."""
        self._thread.call(self._client.close(code, reason))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
