"""libcurl's WebSocket as a peer, through curl_cffi's bindings: libcurl's own calls and no more."""

from __future__ import annotations

import io
import re
import select
import struct
import time
from asyncio import to_thread
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from tests.clients.support import PATIENCE, Closing, Message, Peer, closing, missing, needed


class CurlPeer(Peer):
    """libcurl; its calls do not wait, so that here a thread waits for the socket."""

    name = "libcurl"
    fragments = True
    # It keeps its pong until its user sends something.
    pongs = False

    def __init__(self, curl: Any, head: bytes) -> None:
        self.curl = curl
        self.const = needed("curl_cffi.const", "curl_cffi")
        self.error = needed("curl_cffi", "curl_cffi").CurlError
        self.socket = curl.getinfo(self.const.CurlInfo.ACTIVESOCKET)
        agreed = re.search(rb"(?i)\r\nsec-websocket-protocol: *([^\r]*)", head)
        self.subprotocol = agreed and agreed[1].decode()

    @classmethod
    def prepare(cls) -> None:
        curl_cffi = needed("curl_cffi", "curl_cffi")
        if not hasattr(curl_cffi.Curl, "ws_send"):
            missing("curl_cffi is without WebSocket")

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, authority: str | None = None, subprotocols: Sequence[str] = ()
    ) -> AsyncIterator[Peer]:
        curl_cffi = needed("curl_cffi", "curl_cffi")
        option = curl_cffi.CurlOpt
        head = io.BytesIO()
        curl = curl_cffi.Curl()
        curl.setopt(option.URL, url.encode())
        curl.setopt(option.CONNECT_ONLY, 2)
        curl.setopt(option.PROXY, b"")
        curl.setopt(option.CONNECTTIMEOUT, int(PATIENCE))
        curl.setopt(option.HEADERFUNCTION, head.write)
        if authority is not None:
            curl.setopt(option.CAINFO, authority.encode())
        if subprotocols:
            offer = f"Sec-WebSocket-Protocol: {', '.join(subprotocols)}"
            curl.setopt(option.HTTPHEADER, [offer.encode()])
        try:
            await to_thread(curl.perform)
            yield cls(curl, head.getvalue())
        finally:
            curl.close()

    def _patiently(self, call: Callable[[], Any], *, write: bool = False) -> Any:
        """Repeats a call until it is not for lack of something to read or write that it fails."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except self.error as error:
                if error.code != self.const.CurlECode.AGAIN:
                    raise
            ends = [self.socket]
            left = max(0.0, deadline - time.monotonic())
            if not any(select.select(ends, ends if write else [], [], left)):
                raise TimeoutError(f"nothing in {PATIENCE} s")

    def _send(self, payload: bytes, flags: int) -> None:
        data = memoryview(payload)
        while True:
            sent = self._patiently(partial(self.curl.ws_send, data, flags), write=True)
            data = data[sent:]
            if not data:
                return

    def _flag(self, message: Message) -> int:
        flags = self.const.CurlWsFlag
        return flags.TEXT if isinstance(message, str) else flags.BINARY

    async def send(self, message: Message) -> None:
        data = message.encode() if isinstance(message, str) else message
        await to_thread(self._send, data, self._flag(message))

    async def send_parts(self, parts: Sequence[Message]) -> None:
        for part in parts[:-1]:
            data = part.encode() if isinstance(part, str) else part
            await to_thread(self._send, data, self._flag(part) | self.const.CurlWsFlag.CONT)
        await self.send(parts[-1])

    def _recv(self) -> tuple[int, bytes]:
        """The flags of the next frame that is no ping or pong, and its payload."""
        flag = self.const.CurlWsFlag
        payload = bytearray()
        while True:
            chunk, frame = self._patiently(self.curl.ws_recv)
            if frame.flags & (flag.PING | flag.PONG):
                continue
            payload += chunk
            assert not frame.flags & flag.CONT, "the hub sends messages whole"
            if frame.bytesleft == 0:
                return frame.flags, bytes(payload)

    async def recv(self) -> Message:
        flags, payload = await to_thread(self._recv)
        assert not flags & self.const.CurlWsFlag.CLOSE, payload
        return payload.decode() if flags & self.const.CurlWsFlag.TEXT else payload

    async def close(self, code: int, reason: str) -> Closing:
        payload = struct.pack("!H", code) + reason.encode()
        await to_thread(self._send, payload, self.const.CurlWsFlag.CLOSE)
        return await self._closed()

    async def closed(self) -> Closing:
        ending = await self._closed()
        # libcurl leaves the answer to its user.
        await to_thread(self._send, struct.pack("!H", ending[0]), self.const.CurlWsFlag.CLOSE)
        return ending

    async def _closed(self) -> Closing:
        flags, payload = await to_thread(self._recv)
        assert flags & self.const.CurlWsFlag.CLOSE, payload[:80]
        return closing(payload)
