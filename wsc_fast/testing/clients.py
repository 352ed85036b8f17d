"""Clients on bare sockets. They read only when told to, and send whatever they are told to.

`RawClient` and `TLSClient` belong to one event loop. Bytes that were read stay in `buffer`
until a frame is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from typing import Any, Self

from wsc_fast.testing.frames import Frame, encode, take_frame
from wsc_fast.testing.hubs import Listening
from wsc_fast.testing.requests import upgrade_request
from wsc_fast.testing.sockets import drop_packets, reset_when_closed


class RawClient:
    """A client on a bare socket: reads only when told to, and sends whatever it is told to.

    Attributes:
        sock: its socket, non-blocking.
        buffer: what was read, and is no whole frame yet.
        response: the head of the HTTP response that came last.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer: bytearray = bytearray()
        self.response: bytes = b""

    @classmethod
    async def open(
        cls,
        hub: Listening,
        path: str = "/ws",
        *,
        headers: Sequence[tuple[str, str]] = (),
        rcvbuf: int | None = None,
        tail: bytes = b"",
        upgrade: bool = True,
    ) -> Self:
        """Connects, and shakes hands.

        Args:
            hub: a running hub, or what else has the `port` that it listens on.
            path: the path with its query.
            headers: further headers, as pairs of name and value.
            rcvbuf: SO_RCVBUF; a small one is soon full, if the client does not read.
            tail: sent in one segment with the request.
            upgrade: False to connect and do nothing more.

        Returns:
            the client, which is a context manager that closes the socket.

        Raises:
            AssertionError: if the answer is not 101.
        """
        sock = socket.socket()
        if rcvbuf is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(sock, ("127.0.0.1", hub.port))
            client = cls(sock)
            if upgrade:
                await client.shake_hands(client.request(hub, path, headers) + tail)
        except BaseException:
            sock.close()
            raise
        return client

    @staticmethod
    def request(
        hub: Listening, path: str = "/ws", headers: Sequence[tuple[str, str]] = (), **replaced: str
    ) -> bytes:
        """`upgrade_request` with the Host header of this hub."""
        host = replaced.pop("Host", f"127.0.0.1:{hub.port}")
        return upgrade_request(host, path, headers, **replaced)

    async def shake_hands(self, request: bytes) -> None:
        """Sends a request, and reads the response.

        Raises:
            AssertionError: if it is not 101.
        """
        await self.send_raw(request)
        await self.read_response()
        assert self.response.startswith(b"HTTP/1.1 101 "), self.response

    async def send_raw(self, data: bytes) -> None:
        """Sends bytes as they are."""
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def send(self, opcode: int, payload: bytes = b"", **options: Any) -> None:
        """Sends one frame; the arguments are those of `encode`."""
        await self.send_raw(encode(opcode, payload, **options))

    async def read_response(self, timeout: float = 10.0) -> bytes:
        """Reads the head of an HTTP response; what follows stays in the buffer."""
        while b"\r\n\r\n" not in self.buffer:
            if not await self._more(timeout):
                break
        head, _, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        self.response = head
        self.buffer = bytearray(rest)
        return head

    async def read_all(self, timeout: float = 10.0) -> bytes:
        """Reads to the end of the stream, or a reset."""
        try:
            while await self._more(timeout):
                pass
        except ConnectionError:
            pass
        return bytes(self.buffer)

    async def _more(self, timeout: float | None) -> bool:
        async with asyncio.timeout(timeout):
            data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 18)
        self.buffer.extend(data)
        return bool(data)

    async def recv(self, timeout: float | None = 10.0) -> Frame:
        """The next frame.

        Args:
            timeout: in seconds; None waits for ever.

        Raises:
            ConnectionError: at the end of the stream.
            TimeoutError: if nothing comes for so many seconds.
        """
        while True:
            frame = take_frame(self.buffer)
            if frame is not None:
                return frame
            if not await self._more(timeout):
                raise ConnectionResetError("end of stream")

    async def recv_rest(self, timeout: float = 10.0) -> list[Frame]:
        """All frames to the end of the stream; asserts that they are whole."""
        frames = []
        try:
            while True:
                frames.append(await self.recv(timeout))
        except ConnectionError:
            pass
        assert not self.buffer, f"the stream ends in a torn frame: {bytes(self.buffer[:40])!r}"
        return frames

    def vanish(self) -> None:
        """Its network goes: from here on no packet reaches it, and its kernel answers nothing."""
        drop_packets(self.sock)

    def close(self) -> None:
        """Closes the socket, without a close frame."""
        self.sock.close()

    def reset(self) -> None:
        """Closes with RST."""
        reset_when_closed(self.sock)
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


class TLSClient(RawClient):
    """A RawClient behind TLS: as slow, and as free to misbehave."""

    _tls: ssl.SSLObject
    _incoming: ssl.MemoryBIO
    _outgoing: ssl.MemoryBIO

    @classmethod
    async def open_tls(
        cls,
        hub: Listening,
        context: ssl.SSLContext,
        path: str = "/ws",
        *,
        rcvbuf: int | None = None,
        upgrade: bool = True,
        flush: bool = True,
    ) -> Self:
        """Connects and shakes hands, TLS first; with `upgrade` also those of WebSocket.

        Args:
            hub: as for `open`.
            context: a client's context.
            path: as for `open`.
            rcvbuf: as for `open`.
            upgrade: False to do nothing more than the handshake of TLS.
            flush: False to have the end of the TLS handshake wait for what is sent next.

        Returns:
            the client, which is a context manager that closes the socket.

        Raises:
            AssertionError: if the answer is not 101.
        """
        client = await cls.open(hub, upgrade=False, rcvbuf=rcvbuf)
        try:
            await client._start_tls(context)
            if upgrade:
                await client.shake_hands(client.request(hub, path))
            elif flush:
                await client._write_out()
        except BaseException:
            client.close()
            raise
        return client

    async def _start_tls(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._write_out()
                assert await self._read_in(10.0), "the stream ends within the handshake of TLS"
            else:
                break

    def say_goodbye(self, last: bytes = b"", *, behind: bytes = b"") -> None:
        """Sends its close_notify, with which its half of TLS ends, in one segment with `last`.

        Args:
            last: sent before it, over TLS.
            behind: sent after it, and no TLS any more.
        """
        if last:
            self._tls.write(last)
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLSyscallError):
            self._tls.unwrap()
        with contextlib.suppress(OSError):
            self.sock.sendall(self._outgoing.read() + behind)

    async def _write_out(self) -> None:
        await super().send_raw(self._outgoing.read())

    async def _read_in(self, timeout: float | None) -> bool:
        async with asyncio.timeout(timeout):
            data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16)
        if data:
            self._incoming.write(data)
        return bool(data)

    async def send_raw(self, data: bytes) -> None:
        """Sends bytes as they are, over TLS."""
        self._tls.write(data)
        await self._write_out()

    async def _more(self, timeout: float | None) -> bool:
        while True:
            try:
                data = self._tls.read(1 << 18)
            except ssl.SSLWantReadError:
                await self._write_out()
                if not await self._read_in(timeout):
                    return False
            except ssl.SSLZeroReturnError:
                return False
            else:
                self.buffer.extend(data)
                return bool(data)


async def open_client(
    hub: Listening, tls: ssl.SSLContext | None, path: str = "/ws", **options: Any
) -> RawClient:
    """A RawClient, over TLS where `tls` is a client's context.

    Args:
        hub: a running hub, or what else has the `port` that it listens on.
        tls: a client's context, or None for plain TCP.
        path: the path with its query.
        **options: of `RawClient.open` or `TLSClient.open_tls`.
    """
    if tls is None:
        return await RawClient.open(hub, path, **options)
    return await TLSClient.open_tls(hub, tls, path, **options)
