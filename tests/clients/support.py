"""The interface of a client library that is tested, the skips, and a tap on the wire."""

from __future__ import annotations

import asyncio
import importlib
import os
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import ModuleType
from typing import ClassVar, NoReturn

import pytest

from wsc_fast import Hub
from wsc_fast.testing import Frame, take_frame

# Of one step of a client: well beyond what it takes, and within pytest's own timeout.
PATIENCE = 20.0

Message = str | bytes
Closing = tuple[int, str]


def missing(reason: str) -> NoReturn:
    """Skips the test, as a client is not there; with WSC_REQUIRE_CLIENTS=1 it fails."""
    if os.environ.get("WSC_REQUIRE_CLIENTS") == "1":
        pytest.fail(f"WSC_REQUIRE_CLIENTS=1, but {reason}", pytrace=False)
    pytest.skip(reason)


def needed(module: str, package: str) -> ModuleType:
    """The module of a client library."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        why = str(error)
    missing(f"{package} is not installed ({why})")


def trusting(authority: str | None) -> ssl.SSLContext | None:
    """The TLS context of a Python client; None where the address is not wss."""
    return None if authority is None else ssl.create_default_context(cafile=authority)


class Peer(ABC):
    """A connected client of some library. All steps end within PATIENCE or raise.

    Attributes:
        name: of the library, in the ids of tests.
        deflates: it offers permessage-deflate, which it then does in all tests.
        deflates_itself: and compresses what it sends.
        fragments: it can send a message in several frames.
        drops_bom: it takes a byte order mark off the texts that it receives.
        pongs: it answers a ping at once, as long as it waits for a message.
        subprotocol: what the connected client takes for agreed on.
    """

    name: ClassVar[str]
    deflates: ClassVar[bool] = False
    deflates_itself: ClassVar[bool] = False
    fragments: ClassVar[bool] = False
    drops_bom: ClassVar[bool] = False
    pongs: ClassVar[bool] = True
    subprotocol: str | None = None

    @classmethod
    @abstractmethod
    def prepare(cls) -> None:
        """Skips the test if the library is not there; called before anything runs."""

    @classmethod
    @abstractmethod
    def open(
        cls, url: str, *, authority: str | None = None, subprotocols: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[Peer]:
        """Connects, and in the end leaves nothing behind.

        Args:
            url: ws:// or wss://.
            authority: the PEM file of the certificate authority, for wss.
            subprotocols: to offer.
        """

    @abstractmethod
    async def send(self, message: Message) -> None:
        """Sends one message, in a frame of its own."""

    async def send_parts(self, parts: Sequence[Message]) -> None:
        """Sends one message, each part in a frame."""
        raise NotImplementedError

    @abstractmethod
    async def recv(self) -> Message:
        """The next message."""

    @abstractmethod
    async def close(self, code: int, reason: str) -> Closing:
        """Closes, and returns what the hub's answer says."""

    @abstractmethod
    async def closed(self) -> Closing:
        """Waits for the hub to close, and returns what it said."""


def closing(payload: bytes) -> Closing:
    """Code and reason in the payload of a close frame."""
    if not payload:
        return 1005, ""
    return int.from_bytes(payload[:2]), payload[2:].decode()


class Tap:
    """A relay in front of a hub, for one connection, which keeps what goes each way."""

    def __init__(self) -> None:
        self.port = 0
        self.up = bytearray()
        self.down = bytearray()

    @property
    def url(self) -> str:
        """The address of the hub through the relay."""
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def extensions(self) -> str:
        """The extensions in the hub's 101."""
        head = self.down.partition(b"\r\n\r\n")[0].decode("latin-1")
        fields = (line.partition(": ") for line in head.split("\r\n")[1:])
        return ", ".join(v for k, _, v in fields if k.lower() == "sec-websocket-extensions")

    @property
    def from_client(self) -> list[Frame]:
        """The whole frames that the client has sent, unmasked."""
        return frames(self.up, masked=True)

    @property
    def from_hub(self) -> list[Frame]:
        """The whole frames that the hub has sent."""
        return frames(self.down, masked=False)


def frames(stream: bytearray, *, masked: bool) -> list[Frame]:
    """The whole frames after the HTTP head."""
    data = stream.partition(b"\r\n\r\n")[2]
    found = []
    while (frame := take_frame(data, masked=masked)) is not None:
        found.append(frame)
    return found


@asynccontextmanager
async def tapped(hub: Hub) -> AsyncIterator[Tap]:
    """A relay to a running hub."""
    tap = Tap()
    relays: list[asyncio.Task[None]] = []

    async def copy(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                kept += data
                writer.write(data)
                await writer.drain()
            if not writer.is_closing():
                writer.write_eof()
        except ConnectionError:
            writer.transport.abort()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        current = asyncio.current_task()
        assert current is not None
        relays.append(current)
        hub_reader, hub_writer = await asyncio.open_connection("127.0.0.1", hub.port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(copy(reader, hub_writer, tap.up))
                group.create_task(copy(hub_reader, writer, tap.down))
        finally:
            for end in (writer, hub_writer):
                end.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    tap.port = server.sockets[0].getsockname()[1]
    try:
        yield tap
    finally:
        server.close()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*relays)
