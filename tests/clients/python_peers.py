"""Python's client libraries as peers; those that block run in a thread."""

from __future__ import annotations

import asyncio
import ssl
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.clients.support import (
    PATIENCE,
    Closing,
    Message,
    Peer,
    closing,
    needed,
    trusting,
)


class WebsocketsPeer(Peer):
    """The asyncio client of `websockets`."""

    name = "websockets"
    deflates = deflates_itself = fragments = True
    module, package = "websockets.asyncio.client", "websockets"

    def __init__(self, ws: Any) -> None:
        self.ws = ws
        self.subprotocol = ws.subprotocol

    @classmethod
    def prepare(cls) -> None:
        needed(cls.module, cls.package)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, authority: str | None = None, subprotocols: Sequence[str] = ()
    ) -> AsyncIterator[Peer]:
        connect = needed(cls.module, cls.package).connect
        manager = connect(
            url, ssl=trusting(authority), subprotocols=list(subprotocols) or None, proxy=None
        )
        ws = await manager.__aenter__()
        try:
            yield cls(ws)
        finally:
            # Closing again fails where a close met data that was not sent yet (asyncio's own loop,
            # Python 3.11; with the server of websockets too).
            if ws.close_code is None:
                await manager.__aexit__(None, None, None)

    async def send(self, message: Message) -> None:
        await self.ws.send(message)

    async def send_parts(self, parts: Sequence[Message]) -> None:
        await self.ws.send(parts)

    async def recv(self) -> Message:
        async with asyncio.timeout(PATIENCE):
            return await self.ws.recv()

    async def close(self, code: int, reason: str) -> Closing:
        await self.ws.close(code, reason)
        return self.ws.close_code, self.ws.close_reason or ""

    async def closed(self) -> Closing:
        async with asyncio.timeout(PATIENCE):
            await self.ws.wait_closed()
        return self.ws.close_code, self.ws.close_reason or ""


class PicowsWebsocketsPeer(WebsocketsPeer):
    """The client of picows that has the interface of `websockets`."""

    name = "picows.websockets"
    module, package = "picows.websockets.asyncio.client", "picows"


class WebsocketsSyncPeer(Peer):
    """The blocking client of `websockets`."""

    name = "websockets-sync"
    deflates = deflates_itself = fragments = True

    def __init__(self, ws: Any) -> None:
        self.ws = ws
        self.subprotocol = ws.subprotocol

    @classmethod
    def prepare(cls) -> None:
        needed("websockets.sync.client", "websockets")

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, authority: str | None = None, subprotocols: Sequence[str] = ()
    ) -> AsyncIterator[Peer]:
        client = needed("websockets.sync.client", "websockets")
        context = trusting(authority)
        if context is not None:
            # A thread of its own reads, and an SSLSocket cannot take a read and a write at once: in
            # one of 1,000 connections the tickets that TLS 1.3 sends after its handshake met the
            # request, and both were lost (with the server of websockets too, Python 3.11).
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        # A context manager of which each end blocks; before websockets 17 the call does.
        manager = await to_thread(
            client.connect,
            url,
            ssl=context,
            subprotocols=list(subprotocols) or None,
            proxy=None,
        )
        ws = await to_thread(manager.__enter__)
        try:
            yield cls(ws)
        finally:
            await to_thread(manager.__exit__, None, None, None)

    async def send(self, message: Message) -> None:
        await to_thread(self.ws.send, message)

    async def send_parts(self, parts: Sequence[Message]) -> None:
        await to_thread(self.ws.send, parts)

    async def recv(self) -> Message:
        return await to_thread(self.ws.recv, PATIENCE)

    async def close(self, code: int, reason: str) -> Closing:
        await to_thread(self.ws.close, code, reason)
        return self.ws.close_code, self.ws.close_reason or ""

    async def closed(self) -> Closing:
        exceptions = needed("websockets.exceptions", "websockets")
        try:
            message = await self.recv()
        except exceptions.ConnectionClosed:
            return self.ws.close_code, self.ws.close_reason or ""
        raise AssertionError(f"a message instead: {message[:80]!r}")


class AiohttpPeer(Peer):
    """The client of aiohttp."""

    name = "aiohttp"
    deflates = deflates_itself = True

    def __init__(self, aiohttp: Any, ws: Any) -> None:
        self.types = aiohttp.WSMsgType
        self.ws = ws
        self.subprotocol = ws.protocol

    @classmethod
    def prepare(cls) -> None:
        needed("aiohttp", "aiohttp")

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, authority: str | None = None, subprotocols: Sequence[str] = ()
    ) -> AsyncIterator[Peer]:
        aiohttp = needed("aiohttp", "aiohttp")
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(
                url, ssl=trusting(authority) or True, protocols=subprotocols, compress=15
            ) as ws,
        ):
            yield cls(aiohttp, ws)

    async def send(self, message: Message) -> None:
        await (self.ws.send_str if isinstance(message, str) else self.ws.send_bytes)(message)

    async def recv(self) -> Message:
        message = await self.ws.receive(PATIENCE)
        assert message.type in (self.types.TEXT, self.types.BINARY), message
        return message.data

    async def close(self, code: int, reason: str) -> Closing:
        await self.ws.close(code=code, message=reason.encode())
        # It keeps the code alone.
        return self.ws.close_code, ""

    async def closed(self) -> Closing:
        message = await self.ws.receive(PATIENCE)
        assert message.type is self.types.CLOSE, message
        return message.data, message.extra


class WebsocketClientPeer(Peer):
    """`websocket-client`, which blocks."""

    name = "websocket-client"
    fragments = True

    def __init__(self, module: Any, ws: Any) -> None:
        self.abnf = module.ABNF
        self.ws = ws
        self.subprotocol = ws.subprotocol

    @classmethod
    def prepare(cls) -> None:
        needed("websocket", "websocket-client")

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, authority: str | None = None, subprotocols: Sequence[str] = ()
    ) -> AsyncIterator[Peer]:
        module = needed("websocket", "websocket-client")
        ws = await to_thread(
            module.create_connection,
            url,
            timeout=PATIENCE,
            sslopt={"context": trusting(authority)},
            subprotocols=list(subprotocols),
        )
        try:
            yield cls(module, ws)
        finally:
            await to_thread(ws.close)
            ws.shutdown()

    async def send(self, message: Message) -> None:
        send = self.ws.send_text if isinstance(message, str) else self.ws.send_bytes
        await to_thread(send, message)

    def _send_parts(self, parts: Sequence[Message]) -> None:
        for number, part in enumerate(parts):
            opcode = self.abnf.OPCODE_TEXT if isinstance(part, str) else self.abnf.OPCODE_BINARY
            data = part.encode() if isinstance(part, str) else part
            self.ws.send_frame(
                self.abnf.create_frame(
                    data, self.abnf.OPCODE_CONT if number else opcode, int(number == len(parts) - 1)
                )
            )

    async def send_parts(self, parts: Sequence[Message]) -> None:
        await to_thread(self._send_parts, parts)

    async def recv(self) -> Message:
        return await to_thread(self.ws.recv)

    async def close(self, code: int, reason: str) -> Closing:
        await to_thread(self.ws.close, code, reason, PATIENCE)
        return closing(self.ws.close_frame.data)

    async def closed(self) -> Closing:
        opcode, payload = await to_thread(self.ws.recv_data)
        assert opcode == self.abnf.OPCODE_CLOSE, payload[:80]
        return closing(payload)


class PicowsPeer(Peer):
    """The client of picows: frames, which its user puts together."""

    name = "picows"
    fragments = True

    def __init__(self, picows: Any, transport: Any, inbox: asyncio.Queue[Any]) -> None:
        self.types = picows.WSMsgType
        self.transport = transport
        self.inbox = inbox
        self.subprotocol = transport.response.headers.get("Sec-WebSocket-Protocol")

    @classmethod
    def prepare(cls) -> None:
        needed("picows", "picows")

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, authority: str | None = None, subprotocols: Sequence[str] = ()
    ) -> AsyncIterator[Peer]:
        picows = needed("picows", "picows")
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        types = picows.WSMsgType

        class Listener(picows.WSListener):  # type: ignore[misc, name-defined]
            def on_ws_frame(self, transport: Any, frame: Any) -> None:
                if frame.msg_type == types.TEXT:
                    inbox.put_nowait(frame.get_payload_as_utf8_text())
                elif frame.msg_type == types.BINARY:
                    inbox.put_nowait(frame.get_payload_as_bytes())
                elif frame.msg_type == types.CLOSE:
                    reason = frame.get_close_reason() or ""
                    inbox.put_nowait((int(frame.get_close_code()), reason))
                    if not transport.is_close_frame_sent:
                        transport.send_close(frame.get_close_code())
                    transport.disconnect()

        offer = [("Sec-WebSocket-Protocol", ", ".join(subprotocols))] if subprotocols else None
        transport, _ = await picows.ws_connect(
            Listener, url, ssl_context=trusting(authority), extra_headers=offer
        )
        try:
            yield cls(picows, transport, inbox)
        finally:
            transport.disconnect()
            await transport.wait_disconnected()

    def _encoded(self, message: Message) -> tuple[Any, bytes]:
        if isinstance(message, str):
            return self.types.TEXT, message.encode()
        return self.types.BINARY, message

    async def send(self, message: Message) -> None:
        self.transport.send(*self._encoded(message))

    async def send_parts(self, parts: Sequence[Message]) -> None:
        for number, part in enumerate(parts):
            kind, data = self._encoded(part)
            last = number == len(parts) - 1
            self.transport.send(self.types.CONTINUATION if number else kind, data, fin=last)

    async def _next(self, kind: Any) -> Any:
        async with asyncio.timeout(PATIENCE):
            item = await self.inbox.get()
        assert isinstance(item, kind), item
        return item

    async def recv(self) -> Message:
        return await self._next((str, bytes))

    async def close(self, code: int, reason: str) -> Closing:
        self.transport.send_close(code, reason.encode())
        return await self.closed()

    async def closed(self) -> Closing:
        return await self._next(tuple)


def python_peers() -> Iterator[type[Peer]]:
    """All of them."""
    yield WebsocketsPeer
    yield WebsocketsSyncPeer
    yield AiohttpPeer
    yield WebsocketClientPeer
    yield PicowsPeer
    yield PicowsWebsocketsPeer
