"""A client for the tests of applications: it reads by itself, and says what came instead.

Seconds in its calls are those of the machine's clock: a Clock that is set ahead ends no `expect`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self
from urllib.parse import urlencode

from wsc_fast import HubMessage
from wsc_fast.testing.clients import RawClient, open_client
from wsc_fast.testing.expected import (
    Expected,
    Message,
    is_json,
    json_of,
    listed,
    matches,
    payload_of,
    shown,
)
from wsc_fast.testing.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame
from wsc_fast.testing.hubs import Listening

WITHIN = 5.0
# An expectation of nothing waits for two answers to pings, and for so many seconds.
SILENCE = 0.05
_RECOVERING = "wsc.1"


class RefusedError(AssertionError):
    """The hub has refused the upgrade.

    Attributes:
        status: of its HTTP answer; 0 where it closed the connection without one.
        answer: the head of that answer.
    """

    def __init__(self, answer: bytes) -> None:
        self.answer: str = answer.decode("latin-1")
        parts = answer.split(b" ", 2)
        self.status: int = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0
        first = self.answer.partition("\r\n")[0]
        super().__init__(f"the upgrade was refused: {first or 'closed without an answer'}")


class HubClient:
    """A client of a hub, to be made by `connect` or by the fixture `hub_client`.

    It reads what comes, and answers pings, as long as the loop runs. A context manager, which
    closes it.

    Attributes:
        received: all messages that came, in order, whether they were expected or not.
        notices: of a client that speaks wsc.1: the heads without a message, such as
            `{"gap": "room"}`, in order.
        positions: of such a client: the position of each kept room.
        subprotocol: that was agreed on; None for none.
        close_code: with which the connection has ended; 1006 without a close frame; None while it
            is open.
        close_reason: the text beside it.
        on_reconnect: is called with each client that `reconnect` makes; None for nothing.

    Thread-safety: the loop's thread.
    """

    def __init__(self, raw: RawClient, answers_pings: bool) -> None:
        self.raw = raw
        self.received: list[Message] = []
        self.notices: list[dict[str, Any]] = []
        self.positions: dict[str, str] = {}
        self.subprotocol: str | None = _header(raw.response, "sec-websocket-protocol")
        self.close_code: int | None = None
        self.close_reason: str = ""
        self.on_reconnect: Callable[[HubClient], object] | None = None
        self._answers_pings = answers_pings
        self._recovering = False
        self._again: Callable[[dict[str, str]], Any] | None = None
        self._taken = 0  # of `received`, by expectations
        self._noticed = 0  # of `notices`
        self._parts = bytearray()
        self._opcode = TEXT
        self._pongs = 0
        self._changed = asyncio.Event()
        self._closing = False
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        hub: Listening,
        path: str = "/ws",
        *,
        token: str | None = None,
        query: Mapping[str, str] | None = None,
        headers: Iterable[tuple[str, str]] = (),
        subprotocols: Sequence[str] = (),
        positions: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        rcvbuf: int | None = None,
        answers_pings: bool = True,
    ) -> Self:
        """Connects to a running hub.

        Args:
            hub: a running hub, or what else has the `port` that it listens on.
            path: of the endpoint.
            token: sent as `Authorization: Bearer TOKEN`.
            query: parameters of the path.
            headers: further headers, as pairs of name and value.
            subprotocols: that it offers. With "wsc.1" it speaks wsc.1, if the hub agrees.
            positions: of a client that speaks wsc.1 and comes back.
            tls: a client's context, for a hub that serves TLS.
            rcvbuf: SO_RCVBUF in bytes; a small one is soon full when the client stops reading.
            answers_pings: False for a client that falls silent.

        Raises:
            RefusedError: the answer is not 101.
        """
        fields = list(headers)
        if token is not None:
            fields.append(("Authorization", f"Bearer {token}"))
        if subprotocols:
            fields.append(("Sec-WebSocket-Protocol", ", ".join(subprotocols)))
        asked = f"{path}?{urlencode(query)}" if query else path
        raw = await open_client(hub, tls, rcvbuf=rcvbuf, upgrade=False)
        try:
            await raw.send_raw(raw.request(hub, asked, fields))
            answer = await raw.read_response()
            if not answer.startswith(b"HTTP/1.1 101 "):
                raise RefusedError(answer)
            client = cls(raw, answers_pings)
            client._again = lambda known: cls.connect(
                hub,
                path,
                token=token,
                query=query,
                headers=headers,
                subprotocols=subprotocols,
                positions=known,
                tls=tls,
                rcvbuf=rcvbuf,
                answers_pings=answers_pings,
            )
            if client.subprotocol == _RECOVERING:
                client._recovering = True
                client.positions.update(positions or {})
                hello = json.dumps({"hello": 1, "pos": client.positions})
                await raw.send(TEXT, hello.encode() + b"\n")
        except BaseException:
            raw.close()
            raise
        client.start_reading()
        return client

    async def reconnect(self) -> Self:
        """Another client with the same arguments, after this one has ended.

        One that speaks wsc.1 brings its positions, and recovers.
        """
        assert self._again is not None
        again: Self = await self._again(self.positions)
        if self.on_reconnect is not None:
            again.on_reconnect = self.on_reconnect
            self.on_reconnect(again)
        return again

    # --- sending ---

    async def send(self, message: Message | dict[str, Any] | list[Any] | HubMessage) -> None:
        """Sends a message: str as text, bytes as binary, all else as JSON.

        Args:
            message: str, bytes, a dict, a list or a HubMessage.

        Raises:
            TypeError: it is none of these.
            ConnectionError: the connection has ended.
        """
        payload = payload_of(message)
        opcode, data = (TEXT, payload.encode()) if isinstance(payload, str) else (BINARY, payload)
        if self._recovering:
            data = b"\n" + data
        await self.raw.send(opcode, data)

    async def ack(
        self,
        message: Message | dict[str, Any] | HubMessage,
        status: str = "confirmed",
        error: str = "",
    ) -> None:
        """Acknowledges a message with `require_ack`.

        Args:
            message: as it came (`expect` returns it), a HubMessage, or its id.
            status: "confirmed" or "failed".
            error: why it failed, for the sender.
        """
        answer = {"type": "ack", "message_id": _id_of(message), "status": status}
        await self.send({**answer, "error": error} if error else answer)

    # --- expecting ---

    async def expect(
        self, expected: Expected = None, *, within: float = WITHIN, skip: bool = False
    ) -> Any:
        """Waits for the next message, and asserts that it is the expected one.

        Args:
            expected: see `matches`: a text, bytes, JSON, a HubMessage, a pattern, a type, a
                predicate; None for any message.
            within: seconds.
            skip: pass over messages that do not match.

        Returns:
            the JSON where that, `dict`, `list` or a HubMessage was expected; else str or bytes.

        Raises:
            AssertionError: another message came, or none in time; the text shows what came.
        """
        while True:
            if not await self._until(lambda: len(self.received) > self._taken, within):
                raise AssertionError(self._missing(expected, within))
            message = self.received[self._taken]
            self._taken += 1
            if matches(message, expected):
                return json_of(message) if is_json(expected) else message
            if not skip:
                raise AssertionError(
                    f"expected {shown(expected)}\n  but came {shown(message)}\n"
                    f"all that came:\n{listed(self.received)}"
                )

    def _missing(self, expected: Expected, within: float) -> str:
        ended = (
            ""
            if self.close_code is None
            else f"\nthe connection has ended: {self.close_code} {self.close_reason}".rstrip()
        )
        return (
            f"expected {shown(expected)} within {within:g} s, and it did not come{ended}\n"
            f"all that came:\n{listed(self.received)}"
        )

    async def expect_nothing(self, within: float = SILENCE) -> None:
        """Asserts that no further message comes.

        It waits for the answers to two pings, behind which there is nothing that the hub has sent
        before, and then for `within` seconds.

        Raises:
            AssertionError: one came, or had come already.
        """
        if self.close_code is None:
            for _ in range(2):
                before = self._pongs
                await self.raw.send(PING, b"")
                await self._until(lambda: self._pongs > before, WITHIN)  # noqa: B023
        await self._until(lambda: len(self.received) > self._taken, within)
        more = self.received[self._taken :]
        assert not more, f"expected nothing, but came\n{listed(more)}"

    async def expect_close(
        self, code: int | None = None, reason: str | None = None, *, within: float = WITHIN
    ) -> int:
        """Waits for the end of the connection; messages before it are passed over.

        Args:
            code: the close code that it must have; 1006 for an end without a close frame.
            reason: the text that it must have.
            within: seconds.

        Returns:
            the close code.

        Raises:
            AssertionError: it has another code or reason, or did not come in time.
        """
        if not await self._until(lambda: self.close_code is not None, within):
            raise AssertionError(
                f"expected a close with {code or 'any code'} within {within:g} s, and it did not "
                f"come\nall that came:\n{listed(self.received)}"
            )
        assert self.close_code is not None
        found = f"{self.close_code} {self.close_reason!r}"
        assert code in (None, self.close_code), f"expected a close with {code}, but came {found}"
        assert reason in (None, self.close_reason), f"expected {reason!r}, but came {found}"
        return self.close_code

    async def expect_notice(self, *, within: float = WITHIN, **fields: Any) -> dict[str, Any]:
        """Waits for a head without a message that has these fields, of a client that speaks wsc.1.

        Args:
            within: seconds.
            **fields: of the head: `room="r", recovered=True`, or `gap="r"`.

        Returns:
            the head.

        Raises:
            AssertionError: none came in time.
        """
        while True:
            if not await self._until(lambda: len(self.notices) > self._noticed, within):
                raise AssertionError(
                    f"expected a notice with {fields!r} within {within:g} s; there were "
                    f"{self.notices!r}"
                )
            notice = self.notices[self._noticed]
            self._noticed += 1
            if fields.items() <= notice.items():
                return notice

    async def _until(self, condition: Callable[[], bool], within: float) -> bool:
        # Where a test sets the loop's clock ahead the timeout comes too early, and is set again.
        deadline = time.monotonic() + within
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0 or self.close_code is not None:
                return condition()
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                pass
        return True

    # --- faults ---

    def stop_reading(self) -> None:
        """It becomes a slow client: what comes stays in the kernel, then at the hub."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def start_reading(self) -> None:
        """It reads again."""
        if self._reading is None and self.close_code is None:
            self._reading = asyncio.ensure_future(self._read())

    def cut(self) -> None:
        """Its connection breaks: the hub gets RST."""
        self.stop_reading()
        self._end(1006, "")
        self.raw.reset()

    def vanish(self) -> None:
        """Its network goes: no packet reaches it, and nobody tells the hub."""
        self.stop_reading()
        self.raw.vanish()

    # --- the end ---

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes the connection by a close frame, and waits for the hub's.

        Args:
            code: of the close frame.
            reason: its text.
        """
        if self.close_code is None:
            self._closing = True
            self.start_reading()
            try:
                await self.raw.send(CLOSE, code.to_bytes(2) + reason.encode())
                await self._until(lambda: self.close_code is not None, WITHIN)
            except ConnectionError:
                pass  # the hub has closed it meanwhile
        self.drop()

    def drop(self) -> None:
        """Closes its socket without a close frame; of one that has ended, gives it back."""
        self.stop_reading()
        self.raw.close()
        self._end(1006, "")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    # --- reading ---

    async def _read(self) -> None:
        try:
            while self.close_code is None:
                await self._take(await self.raw.recv(None))
        except ConnectionError:
            self._end(1006, "")
        self._reading = None

    async def _take(self, frame: Frame) -> None:
        if frame.opcode == PING:
            if self._answers_pings:
                await self.raw.send(PONG, frame.payload)
        elif frame.opcode == PONG:
            self._pongs += 1
        elif frame.opcode == CLOSE:
            if not self._closing:
                # The hub ends the stream once it has the answer.
                await self.raw.send(CLOSE, frame.payload[:2])
            self._end(frame.code, frame.payload[2:].decode())
        else:
            if frame.opcode != CONTINUATION:
                self._opcode = frame.opcode
            self._parts += frame.payload
            if frame.fin:
                data, self._parts = bytes(self._parts), bytearray()
                self._hear(data)
        self._changed.set()

    def _hear(self, data: bytes) -> None:
        if self._recovering:
            head, _, data = data.partition(b"\n")
            if head:
                fields = json.loads(head)
                room = fields.get("room", fields.get("gap"))
                if room is not None and "pos" in fields:
                    self.positions[room] = fields["pos"]
                if not data and (fields.keys() - {"room", "pos"} or "room" not in fields):
                    self.notices.append(fields)
                    return
        self.received.append(data.decode() if self._opcode == TEXT else data)

    def _end(self, code: int, reason: str) -> None:
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
            self._changed.set()


def _header(response: bytes, name: str) -> str | None:
    for line in response.decode("latin-1").split("\r\n")[1:]:
        field, _, value = line.partition(":")
        if field.lower() == name:
            return value.strip()
    return None


def _id_of(message: Message | dict[str, Any] | HubMessage) -> str:
    if isinstance(message, HubMessage):
        return message.id
    if isinstance(message, dict):
        return str(message["id"])
    try:
        return str(json_of(message)["id"])
    except (ValueError, TypeError, KeyError):
        return message if isinstance(message, str) else message.decode()
