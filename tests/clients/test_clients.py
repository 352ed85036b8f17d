"""Every client library against a running hub, each on both of the hub's loops.

The clients are in python_peers.py, node_peers.py and curl_peer.py. They say what a library
cannot do (offer compression, send fragments), and these tests leave it out.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress

import pytest
import trustme

from tests.clients.curl_peer import CurlPeer
from tests.clients.node_peers import NodePeer, WsPeer
from tests.clients.python_peers import python_peers
from tests.clients.support import Message, Peer, closing, tapped
from tests.support import only_client, tls_options
from wsc_fast import Client, Hub, HubConfig
from wsc_fast.testing import BINARY, CLOSE, CONTINUATION, PONG, TEXT, eventually, running, uri

PEERS: list[type[Peer]] = [*python_peers(), NodePeer, WsPeer, CurlPeer]
MEGABYTE = 1 << 20
RSV1 = 4

TEXTS = [
    "",
    "plain",
    "\0",
    "between\0two",
    "\r\n\t\x7f",
    "ünïcödé",
    "e\u0301 \u0915\u094d\u0937 \U0001f469\u200d\U0001f680",  # combining, and joined
    "\u202eright to left\u2028\u2029",
    "\ufeffafter a byte order mark",
    "\uffff\ufffe\ufdd0",  # no characters, but scalar values
    "\U00010000 𝄞 🎈 \U0010ffff",
    "🎈" * 1000,
]
# Around the borders of the three lengths that a frame can have.
SIZES = [0, 1, 125, 126, 127, 65_535, 65_536]


def each(which: Callable[[type[Peer]], bool] = lambda peer: True) -> pytest.MarkDecorator:
    """Runs a test with every client that can do what it takes."""
    chosen = [peer for peer in PEERS if which(peer)]
    assert chosen
    return pytest.mark.parametrize("peer", chosen, ids=lambda peer: peer.name, indirect=True)


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> type[Peer]:
    """A client that is installed; else the test is skipped."""
    request.param.prepare()
    return request.param


@pytest.fixture(scope="session")
def authority_file(authority: trustme.CA) -> Iterator[str]:
    """The certificate authority of `server_tls` in a PEM file."""
    with authority.cert_pem.tempfile() as path:
        yield path


@pytest.fixture(params=["plain", "tls", "deflate"])
def way(request: pytest.FixtureRequest) -> str:
    """How messages go over the wire; a client that does not offer deflate goes without."""
    return str(request.param)


def echo(**settings: object) -> Hub:
    """A hub that sends back what it gets."""
    hub = Hub(HubConfig(**settings))  # type: ignore[arg-type]
    hub.on_message_received(lambda client, message: client.send(message))
    return hub


async def assert_echoed(connected: Peer, message: Message) -> None:
    await connected.send(message)
    assert await connected.recv() == message


# --- messages ---


def messages(peer: type[Peer], kind: str) -> list[Message]:
    noise = random.Random(6455)
    if kind == "texts":
        return [text for text in TEXTS if not (peer.drops_bom and text.startswith("\ufeff"))]
    if kind == "binaries":
        return [bytes(range(256)), *(noise.randbytes(size) for size in SIZES)]
    # The limit of both ends, exactly; the zeros make up for what deflate adds to noise.
    return [
        noise.randbytes(MEGABYTE - 1000) + bytes(1000),
        "a🎈é" * (MEGABYTE // 7) + "." * (MEGABYTE % 7),
    ]


@each()
@pytest.mark.parametrize("kind", ["texts", "binaries", "megabytes"])
async def test_a_message_comes_back_as_it_went(
    peer: type[Peer],
    any_loop: str,
    way: str,
    kind: str,
    server_tls: ssl.SSLContext,
    authority_file: str,
) -> None:
    tls = way == "tls"
    # Everything is compressed, and with a context that is kept.
    hub = echo(
        enable_compression=way == "deflate",
        compression_threshold=0,
        server_no_context_takeover=False,
        client_no_context_takeover=False,
    )
    expected = messages(peer, kind)
    async with running(hub, **tls_options(server_tls if tls else None)):
        async with peer.open(
            uri(hub, tls=tls), authority=authority_file if tls else None
        ) as connected:
            for message in expected:
                await assert_echoed(connected, message)
        stats = hub.get_stats()
        assert stats.messages_in == stats.messages_out == len(expected)
        # The empty message is never compressed.
        compressed = sum(map(bool, expected)) if way == "deflate" and peer.deflates else 0
        assert stats.compressed_frames == compressed


@each()
async def test_the_hub_speaks_first(peer: type[Peer], any_loop: str) -> None:
    hub = Hub()
    hub.on_client_connected(lambda client: client.send("welcome 🎈"))
    async with running(hub), peer.open(uri(hub)) as connected:
        assert await connected.recv() == "welcome 🎈"
        assert hub.broadcast(b"\0to all\xff") == 1
        assert await connected.recv() == b"\0to all\xff"
        hub.send_to_client(only_client(hub).id, "")
        assert await connected.recv() == ""
        hub.send_to_client(only_client(hub).id, bytes(MEGABYTE))
        assert await connected.recv() == bytes(MEGABYTE)


@each()
async def test_many_messages_stay_in_order_both_ways(peer: type[Peer], any_loop: str) -> None:
    hub = Hub()
    heard: list[Message] = []
    hub.on_message_received(lambda client, message: heard.append(message))
    numbers = [f"number {number}" for number in range(1000)]
    async with running(hub), peer.open(uri(hub)) as connected:
        for text in numbers:
            await connected.send(text)
        await eventually(lambda: len(heard) == len(numbers))
        assert heard == numbers
        # In one turn of the loop, so that the hub writes them together.
        for text in numbers:
            assert hub.broadcast(text) == 1
        assert [await connected.recv() for _ in numbers] == numbers


@each(lambda peer: peer.fragments)
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize(
    "parts",
    [["one ", "🎈 ", "", "three"], [b"\0" * 70_000, b"", bytes(range(256)), b"end"]],
    ids=["text", "binary"],
)
async def test_fragments_are_one_message(
    peer: type[Peer], any_loop: str, deflate: bool, parts: list[Message]
) -> None:
    hub = echo(enable_compression=deflate)
    whole = ("" if isinstance(parts[0], str) else b"").join(parts)  # type: ignore[arg-type]
    async with running(hub), tapped(hub) as tap:
        async with peer.open(tap.url) as connected:
            await connected.send_parts(parts)
            assert await connected.recv() == whole
            await assert_echoed(connected, "and one in a frame of its own")
        # The library may end a message with an empty frame.
        sent = [frame for frame in tap.from_client if frame.opcode < CLOSE]
        message = sent[:-1]
        assert len(message) >= len(parts)
        assert [frame.fin for frame in message] == [False] * (len(message) - 1) + [True]
        opcodes = [frame.opcode for frame in message]
        first = TEXT if isinstance(whole, str) else BINARY
        assert opcodes == [first] + [CONTINUATION] * (len(message) - 1)
        assert message[0].rsv == (RSV1 if deflate and peer.deflates_itself else 0)
        assert hub.get_stats().messages_in == 2


# --- what is agreed on ---


@each(lambda peer: peer.deflates)
@pytest.mark.parametrize("keeps", [False, True], ids=["no-takeover", "takeover"])
async def test_compression_is_agreed_on_and_used(
    peer: type[Peer], any_loop: str, keeps: bool
) -> None:
    hub = echo(
        enable_compression=True,
        server_no_context_takeover=not keeps,
        client_no_context_takeover=not keeps,
    )
    # It becomes half as long by itself, and next to nothing where it is known. Some libraries ask
    # for windows of 4 KB, into which it fits.
    text = random.Random(7692).randbytes(1500).hex()
    async with running(hub), tapped(hub) as tap:
        async with peer.open(tap.url) as connected:
            for _ in range(3):
                await assert_echoed(connected, text)
            await assert_echoed(connected, "short")
        agreed = [parameter.strip() for parameter in tap.extensions.split(";")]
        assert agreed[0] == "permessage-deflate"
        assert ("server_no_context_takeover" not in agreed) == keeps
        assert ("client_no_context_takeover" not in agreed) == keeps
        assert hub.get_stats().compressed_frames == 3

        frames = [frame for frame in tap.from_hub if frame.opcode == TEXT]
        assert [frame.rsv for frame in frames] == [RSV1, RSV1, RSV1, 0]
        assert_sizes([len(frame.payload) for frame in frames[:3]], keeps)
        frames = [frame for frame in tap.from_client if frame.opcode == TEXT]
        if peer.deflates_itself:
            assert [frame.rsv for frame in frames[:3]] == [RSV1] * 3
            assert_sizes([len(frame.payload) for frame in frames[:3]], keeps)
        else:
            assert [frame.rsv for frame in frames] == [0] * 4


async def test_a_broadcast_is_compressed_once_for_each_window(any_loop: str) -> None:
    here = [peer for peer in PEERS if installed(peer)]
    assert any(peer.deflates for peer in here)
    hub = Hub(HubConfig(enable_compression=True))
    text = "to all of you 🎈 " * 500
    async with running(hub), AsyncExitStack() as stack:
        taps = [await stack.enter_async_context(tapped(hub)) for _ in here]
        opened = [
            await stack.enter_async_context(peer.open(tap.url))
            for peer, tap in zip(here, taps, strict=True)
        ]
        assert hub.broadcast(text) == len(here)
        for connected in opened:
            assert await connected.recv() == text
        windows = {window(tap.extensions) for tap in taps} - {0}
        assert hub.get_stats().compressed_frames == len(windows)


def window(extensions: str) -> int:
    """The bits of the hub's window that were agreed on; 0 where it does not compress."""
    named = re.search(r"server_max_window_bits=(\d+)", extensions)
    return int(named[1]) if named else 15 if extensions else 0


def installed(peer: type[Peer]) -> bool:
    """Whether a client can take part where not all have to."""
    try:
        peer.prepare()
    except pytest.skip.Exception:
        return False
    return True


def assert_sizes(sizes: list[int], keeps: bool) -> None:
    """Of three equal messages of 3,000 bytes of hexadecimal noise."""
    assert 1500 < sizes[0] < 2500
    if keeps:
        assert max(sizes[1:]) < 200
    else:
        assert sizes == [sizes[0]] * 3


@each()
async def test_a_subprotocol_is_agreed_on(peer: type[Peer], any_loop: str) -> None:
    hub = echo(subprotocols=("chat.v2", "chat.v1"))
    async with running(hub):
        async with peer.open(uri(hub), subprotocols=["other", "chat.v1", "chat.v2"]) as connected:
            assert connected.subprotocol == "chat.v2"
            assert only_client(hub).subprotocol == "chat.v2"
            await assert_echoed(connected, "agreed")
        await eventually(lambda: hub.connections == 0)
        async with peer.open(uri(hub)) as connected:
            assert connected.subprotocol is None
            assert only_client(hub).subprotocol is None
            await assert_echoed(connected, "without")


# --- the end ---


def partings(hub: Hub) -> list[tuple[Client, int | None, str]]:
    """Clients that have left, and how, as `on_client_disconnected` hears of it; filled later."""
    gone: list[tuple[Client, int | None, str]] = []
    hub.on_client_disconnected(
        lambda client: gone.append((client, client.close_code, client.close_reason))
    )
    return gone


@each()
@pytest.mark.parametrize(
    ("code", "reason"),
    [(3001, "genug 🎈"), (1000, ""), (4999, "x" * 123)],
    ids=["3001", "1000", "4999"],
)
async def test_the_client_closes(peer: type[Peer], any_loop: str, code: int, reason: str) -> None:
    hub = echo()
    gone = partings(hub)
    async with running(hub), tapped(hub) as tap:
        async with peer.open(tap.url) as connected:
            await assert_echoed(connected, "before")
            client = only_client(hub)
            # The hub's answer has the code alone.
            assert await connected.close(code, reason) == (code, "")
            await eventually(lambda: gone)
        assert gone == [(client, code, reason)]
        assert not client.is_connected()
        ends = [frame for frame in tap.from_client if frame.opcode == CLOSE]
        assert [closing(frame.payload) for frame in ends] == [(code, reason)]
        ends = [frame for frame in tap.from_hub if frame.opcode == CLOSE]
        assert [closing(frame.payload) for frame in ends] == [(code, "")]
        assert hub.get_stats().error_count == 0


@each()
@pytest.mark.parametrize(
    ("code", "reason"),
    [(4002, "bis später 🎈"), (1000, ""), (1013, "later"), (4999, "x" * 123)],
    ids=["4002", "1000", "1013", "4999"],
)
async def test_the_hub_closes(peer: type[Peer], any_loop: str, code: int, reason: str) -> None:
    hub = Hub()
    gone = partings(hub)
    async with running(hub), peer.open(uri(hub)) as connected:
        client = only_client(hub)
        client.send("the last word")
        client.disconnect(code, reason)
        assert not client.is_connected()
        assert await connected.recv() == "the last word"
        assert await connected.closed() == (code, reason)
        await eventually(lambda: gone)
        assert gone == [(client, code, reason)]
        assert hub.get_stats().error_count == 0


@each()
async def test_the_hub_stops(peer: type[Peer], any_loop: str) -> None:
    hub = Hub()
    gone = partings(hub)
    async with running(hub), peer.open(uri(hub)) as connected:
        client = only_client(hub)
        stopping = asyncio.create_task(hub.stop())
        assert await connected.closed() == (1001, "server shutdown")
        await stopping
        assert gone == [(client, 1001, "server shutdown")]


@each()
@pytest.mark.parametrize("size", [1001, 4 * MEGABYTE])
async def test_a_message_that_is_too_large_closes_with_1009(
    peer: type[Peer], any_loop: str, size: int
) -> None:
    hub = echo(max_message_size=1000)
    gone = partings(hub)
    async with running(hub):
        async with peer.open(uri(hub)) as connected:
            await assert_echoed(connected, b"x" * 1000)
            # The hub closes at the head of the frame; a library may see that while it still sends.
            with suppress(Exception):
                await connected.send(b"x" * size)
            code, reason = await connected.closed()
            assert code == 1009
            assert reason
        # The hub waits for the client to end the connection, which some leave to their user.
        await eventually(lambda: gone)
        assert [ending[1:] for ending in gone] == [(code, reason)]
        assert hub.get_stats().protocol_errors == 1


@each(lambda peer: peer.pongs)
async def test_a_ping_of_the_hub_is_answered(peer: type[Peer], any_loop: str) -> None:
    hub = Hub(HubConfig(heartbeat_interval=0.05))
    async with running(hub), tapped(hub) as tap, peer.open(tap.url) as connected:
        # Some libraries answer while they wait for a message, and only then.
        receiving = asyncio.create_task(connected.recv())
        await eventually(lambda: any(frame.opcode == PONG for frame in tap.from_client))
        hub.broadcast("still here")
        assert await receiving == "still here"
