"""Chromium and Firefox as clients of a hub: what a page sends, sees and does when either side ends.

A browser is started once for all its tests; driver.py tells how it is driven. It skips if it is not
installed, unless WSC_REQUIRE_CLIENTS=1.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.browsers.driver import EXECUTABLES, PAGE, Browser, browsing
from tests.browsers.tap import Tap, tapped
from tests.support import only_client
from wsc_fast import Client, Hub, HubConfig, Identity, Request, Response
from wsc_fast.testing import CLOSE, PONG, TEXT, eventually, running

# How a page gets a connection that ends in this way, where a plain one does not.
CONNECTING = {
    # Chromium keeps the page for going back, and may keep its connections: it has to close them.
    "goes elsewhere": """
        ws = await dial();
        addEventListener("pagehide", () => ws.raw.close(4000, "gone"));
    """,
    "its frame is removed": """
        frame = document.createElement("iframe");
        frame.src = args[0];
        const loaded = new Promise((resolve) => { frame.onload = resolve; });
        document.body.append(frame);
        await loaded;
        await frame.contentWindow.eval("dial()");
    """,
    "its window is closed": """
        child = open(args[0]);
        await new Promise((resolve) => child.addEventListener("load", resolve));
        await child.eval("dial()");
    """,
}
TEXTS = {
    "empty": "",
    "ascii": "plain",
    "NUL": "\0",
    "NUL within": "a\0b\0",
    "two bytes": "éß£ñ",
    "three bytes": "€ह한",
    "astral": "\U0001f600 \U0001d11e \U0010ffff",
    "astral with joiners": "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "combining": "e\u0301",
    "byte order mark": "\ufeff",
    "noncharacters": "\ufffe\uffff",
    "line ends": "\r\n\u2028\u2029",
}
# Runs in a frame without an origin; it tells its page what came of it.
SANDBOXED = """
    const frame = document.createElement("iframe");
    frame.sandbox = "allow-scripts";
    frame.srcdoc = `<script>
        const ws = new WebSocket("${args[1]}");
        const tell = (what) => parent.postMessage(what, "*");
        ws.onopen = () => ws.send("${args[0]}");
        ws.onmessage = ({ data }) => tell(data);
        ws.onclose = ({ code }) => tell("Error: not opened: " + code);
    <\\/script>`;
    const told = new Promise((resolve) => addEventListener("message", resolve));
    document.body.append(frame);
    return (await told).data;
"""
# Connects, and says something that comes back.
TALK = "ws = await dial(args[1]); ws.raw.send(args[0]); return await ws.next()"
NOT_OPENED = "Error: not opened: 1006"
# 123 bytes of UTF-8, which is all that a close frame has room for.
LONGEST_REASON = "\U0001f44b Adieu, ça suffit. " + "ж" * 49 + "!"


@pytest.fixture(scope="module", params=list(EXECUTABLES))
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A running browser; it has visited other tests' hubs."""
    with browsing(request.param) as browser:
        yield browser


class Echo(Hub):
    """Sends back what comes, keeps it, and serves the page."""

    def __init__(self, **config: Any) -> None:
        authenticate = config.pop("authenticate", None)
        super().__init__(HubConfig(**config), authenticate=authenticate)
        self.received: list[str | bytes] = []
        self.gone: list[Client] = []
        self.route("/page")(serve_page)
        self.on_message_received(self.echo)
        self.on_client_disconnected(self.gone.append)

    def echo(self, client: Client, message: str | bytes) -> None:
        self.received.append(message)
        client.send(message)


def serve_page(request: Request) -> Response:
    return Response(body=PAGE, content_type="text/html; charset=utf-8")


def page_of(place: Hub | Tap) -> str:
    """Where the page is served."""
    return f"http://127.0.0.1:{place.port}/page"


async def closed(browser: Browser) -> dict[str, Any]:
    """The close event of `ws`: code, reason and whether it was clean."""
    event: dict[str, Any] = await browser.run("return await ws.closed")
    return event


async def attempt(browser: Browser, code: str, *args: Any) -> Any:
    """The result of a script, or the text of its error."""
    return await browser.run(f"try {{ {code} }} catch (error) {{ return `${{error}}` }}", *args)


# --- messages ---


async def test_text_comes_back_as_it_went(browser: Browser) -> None:
    async with running(Echo()) as hub:
        await browser.visit(page_of(hub))
        await browser.run("ws = await dial()")
        for name, text in TEXTS.items():
            back = await browser.run(
                "ws.raw.send(args[0]); const back = await ws.next();"
                "return {back, same: back === args[0]}",
                text,
            )
            assert back == {"back": text, "same": True}, name
        assert hub.received == list(TEXTS.values())


async def test_a_lone_surrogate_becomes_a_replacement_character(browser: Browser) -> None:
    async with running(Echo()) as hub:
        await browser.visit(page_of(hub))
        await browser.run("ws = await dial(); ws.raw.send('a\\ud800b')")
        assert await browser.run("return await ws.next()") == "a\ufffdb"
        assert hub.received == ["a\ufffdb"]


@pytest.mark.parametrize("kind", ["arraybuffer", "blob"])
async def test_binary_comes_back_as_it_went(browser: Browser, kind: str) -> None:
    """Sent in each way that the API has; `kind` is how the page wants what it receives."""
    ways = {
        "ArrayBuffer": "bytes.buffer",
        "Uint8Array": "bytes",
        "a view into a larger buffer": "new Uint8Array([9, ...bytes, 9]).subarray(1, -1)",
        "Blob": "new Blob([bytes])",
    }
    payloads = [b"", b"\0", bytes(range(256)), b"\xff" * 70_000]
    async with running(Echo()) as hub:
        await browser.visit(page_of(hub))
        await browser.run("ws = await dial(); ws.raw.binaryType = args[0]", kind)
        for way, expression in ways.items():
            for payload in payloads:
                back = await browser.run(
                    f"const bytes = new Uint8Array(args[0]); ws.raw.send({expression});"
                    "const back = await ws.next();"
                    "return [back.constructor.name, [...await bytesOf(back)]]",
                    list(payload),
                )
                expected = {"arraybuffer": "ArrayBuffer", "blob": "Blob"}[kind]
                assert back == [expected, list(payload)], way
        assert hub.received == payloads * len(ways)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("kind", ["text", "ArrayBuffer", "Blob"])
async def test_a_megabyte_both_ways(browser: Browser, kind: str, compressed: bool) -> None:
    """1 MiB, the most that the default takes, and one byte more."""
    async with running(Echo(enable_compression=compressed)) as hub:
        await browser.visit(page_of(hub))
        seed = secrets.token_bytes(1 << 16)
        digest = await browser.run(
            """
            const [kind, seed] = args;
            ws = await dial();
            bytes = new Uint8Array(1 << 20);
            for (let at = 0; at < bytes.length; at += seed.length) bytes.set(seed, at);
            // Text of the same size, in characters of two bytes.
            if (kind === "text") bytes = bytes.map((byte, at) => at & 1 ? 0x80 | byte & 63 : 0xc3);
            const message = kind === "text" ? new TextDecoder("utf-8", {fatal: true}).decode(bytes)
                : kind === "Blob" ? new Blob([bytes]) : bytes.buffer;
            ws.raw.send(message);
            const back = await ws.next();
            if (kind === "text" ? back !== message : (await bytesOf(back)).length !== 1 << 20)
                throw new Error("something else came back");
            const read = kind === "text" ? new TextEncoder().encode(back) : await bytesOf(back);
            const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", read));
            return [...digest];
            """,
            kind,
            list(seed),
        )
        (message,) = hub.received
        whole = message.encode() if isinstance(message, str) else message
        assert isinstance(message, str) == (kind == "text")
        assert len(whole) == 1 << 20
        if kind != "text":
            assert whole == seed * 16
        assert bytes(digest) == hashlib.sha256(whole).digest()
        assert hub.get_stats().compressed_frames == compressed

        await browser.run("ws.raw.send(args[0])", "x" * ((1 << 20) + 1))
        assert (await closed(browser))["code"] == 1009
        assert len(hub.received) == 1


async def test_a_thousand_messages_in_order(browser: Browser) -> None:
    """From the page, back to it from an async callback, and broadcast to it."""
    hub = Hub()
    hub.route("/page")(serve_page)
    received: list[str | bytes] = []

    @hub.on_message_received
    async def message(client: Client, message: str | bytes) -> None:
        received.append(message)
        await asyncio.sleep(0)
        client.send(message)

    async with running(hub):
        await browser.visit(page_of(hub))
        numbers = [str(number) for number in range(1000)]
        await browser.run("ws = await dial(); for (let i = 0; i < 1000; i++) ws.raw.send(`${i}`)")
        assert await browser.run("return await ws.take(1000)") == numbers
        assert received == numbers
        for number in numbers:
            assert hub.broadcast(f"b{number}") == 1
        assert await browser.run("return await ws.take(1000)") == [f"b{n}" for n in numbers]


# --- compression and subprotocols ---


async def dial_compressed(browser: Browser, tap: Tap, parameters: str) -> None:
    """Connects, and checks what was agreed on; Firefox tells its page no more than the name."""
    agreed = f"permessage-deflate{parameters}"
    await browser.visit(page_of(tap))
    extensions = await browser.run("ws = await dial(); return ws.raw.extensions")
    assert f"\r\nSec-WebSocket-Extensions: {agreed}\r\n".encode() in tap.websocket.down
    assert extensions == (agreed if browser.name == "chromium" else "permessage-deflate")


@pytest.mark.parametrize("keeps", [False, True], ids=["no context", "context takeover"])
async def test_compressed_both_ways(browser: Browser, keeps: bool) -> None:
    """The same text five times: with a context kept, all but the first take next to nothing."""
    hub = Echo(
        enable_compression=True,
        server_no_context_takeover=not keeps,
        client_no_context_takeover=not keeps,
    )
    text = secrets.token_hex(1000)
    async with running(hub), tapped(hub) as tap:
        contexts = "; server_no_context_takeover; client_no_context_takeover"
        await dial_compressed(browser, tap, "" if keeps else contexts)
        down = []
        for count in range(1, 6):
            before = len(tap.websocket.down)
            assert await browser.run("ws.raw.send(args[0]); return await ws.next()", text) == text
            assert hub.get_stats().compressed_frames == count
            down.append(len(tap.websocket.down) - before)
        up = tap.websocket.frames_up()
        assert [(frame.opcode, frame.rsv) for frame in up] == [(TEXT, 4)] * 5
        for sizes in (down, [len(frame.payload) for frame in up]):
            assert 900 < sizes[0] < 1500
            assert all(size < 100 if keeps else size == sizes[0] for size in sizes[1:]), sizes
        assert hub.received == [text] * 5


async def test_small_windows(browser: Browser) -> None:
    """Only Chromium lets the server choose its window; both must take that of the server."""
    hub = Echo(enable_compression=True, server_max_window_bits=9, client_max_window_bits=9)
    text = secrets.token_hex(1000) * 20  # what repeats lies outside of the window
    windows = "; server_max_window_bits=9"
    if browser.name == "chromium":
        windows += "; client_max_window_bits=9"
    async with running(hub), tapped(hub) as tap:
        contexts = "; server_no_context_takeover; client_no_context_takeover"
        await dial_compressed(browser, tap, contexts + windows)
        assert await browser.run("ws.raw.send(args[0]); return await ws.next()", text) == text
        assert hub.received == [text]
        assert hub.get_stats().compressed_frames == 1


@pytest.mark.parametrize("keeps", [False, True], ids=["no context", "context takeover"])
async def test_a_broadcast_is_compressed_once_for_all_that_can_share_it(
    browser: Browser, keeps: bool
) -> None:
    async with running(Echo(enable_compression=True, server_no_context_takeover=not keeps)) as hub:
        await browser.visit(page_of(hub))
        await browser.run("all = await Promise.all([1, 2, 3].map(() => dial()))")
        text = json.dumps(list(range(200)))
        assert hub.broadcast(text) == 3
        code = "return await Promise.all(all.map((ws) => ws.next()))"
        assert await browser.run(code) == [text] * 3
        assert hub.get_stats().compressed_frames == (3 if keeps else 1)


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        ([], ""),
        (["chat.v1"], "chat.v1"),
        (["chat.v1", "chat.v2"], "chat.v2"),  # the server's preference, not the page's
        (["other", "chat.v1"], "chat.v1"),
    ],
)
async def test_a_subprotocol_is_agreed_on(
    browser: Browser, offered: list[str], agreed: str
) -> None:
    async with running(Echo(subprotocols=("chat.v2", "chat.v1"))) as hub:
        await browser.visit(page_of(hub))
        code = "ws = await dial(undefined, args[0]); return ws.raw.protocol"
        assert await browser.run(code, offered) == agreed
        assert only_client(hub).subprotocol == (agreed or None)


@pytest.mark.parametrize("supported", [(), ("chat.v1",)], ids=["none", "another"])
async def test_without_an_agreement_on_a_subprotocol(
    browser: Browser, supported: tuple[str, ...]
) -> None:
    """The hub lets it in without one; Chromium insists on what its page has asked for."""
    async with running(Echo(subprotocols=supported)) as hub:
        await browser.visit(page_of(hub))
        code = "ws = await dial(undefined, ['other']); return ws.raw.protocol"
        outcome = await attempt(browser, code)
        assert outcome in (NOT_OPENED, "")
        assert outcome == NOT_OPENED or browser.name == "firefox"
        assert hub.get_stats().connections_total == 1
        if outcome == NOT_OPENED:
            await eventually(lambda: hub.gone)
        else:
            assert only_client(hub).subprotocol is None


# --- closing ---


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (None, ""),
        (1000, ""),
        (1000, "bye"),
        (3000, LONGEST_REASON),
        (3999, "\0"),
        (4000, "\U0001f44b"),
        (4999, ""),
    ],
)
async def test_the_page_closes(browser: Browser, code: int | None, reason: str) -> None:
    """Its code is on the wire, and comes back to it: 1005, no code, for none."""
    async with running(Echo()) as hub, tapped(hub) as tap:
        await browser.visit(page_of(tap))
        await browser.run("ws = await dial()")
        client = only_client(hub)
        await browser.run("ws.raw.close(...args)", *([] if code is None else [code, reason]))
        assert await closed(browser) == {"code": code or 1005, "reason": "", "clean": True}
        await eventually(lambda: hub.gone)
        assert hub.gone == [client]
        (close,) = tap.websocket.frames_up()
        assert close.opcode == CLOSE
        assert close.payload[2:].decode() == reason
        assert close.code == (code or 1005)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        *((code, "") for code in (1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 4401, 4999)),
        (1000, "bye"),
        (4000, "\U0001f44b Grüße, \0 до свидания"),
        (3000, LONGEST_REASON),
    ],
)
async def test_the_hub_closes(browser: Browser, code: int, reason: str) -> None:
    async with running(Echo()) as hub:
        await browser.visit(page_of(hub))
        await browser.run("ws = await dial()")
        client = only_client(hub)
        client.send("last words")
        client.disconnect(code, reason)
        assert await closed(browser) == {"code": code, "reason": reason, "clean": True}
        assert await browser.run("return await ws.next()") == "last words"
        await eventually(lambda: hub.gone)
        assert hub.gone == [client]


async def test_a_reason_that_is_too_long_is_cut_between_characters(browser: Browser) -> None:
    async with running(Echo()) as hub:
        await browser.visit(page_of(hub))
        await browser.run("ws = await dial()")
        only_client(hub).disconnect(4000, "ж" * 100)
        assert await closed(browser) == {"code": 4000, "reason": "ж" * 61, "clean": True}


async def test_the_page_sees_the_hub_stop(browser: Browser) -> None:
    """Behind all that was queued."""
    async with running(Echo()) as hub:
        await browser.visit(page_of(hub))
        await browser.run("ws = await dial()")
        hub.broadcast(bytes(1 << 19))
        hub.broadcast("last words")
        await hub.stop()
        event = await closed(browser)
        assert event == {"code": 1001, "reason": "server shutdown", "clean": True}
        code = "return [(await ws.next()).byteLength, await ws.next()]"
        assert await browser.run(code) == [1 << 19, "last words"]
        assert len(hub.gone) == 1


@pytest.mark.parametrize(
    "how", ["goes elsewhere", "reloads", "its frame is removed", "its window is closed"]
)
async def test_a_page_goes_away(browser: Browser, how: str) -> None:
    """With a close frame, 1001 if the browser itself sends it, and one disconnect of the hub's."""
    async with running(Echo()) as hub, tapped(hub) as tap:
        page = page_of(tap)
        await browser.visit(page)
        await browser.run(CONNECTING.get(how, "await dial()"), page)
        client = only_client(hub)
        client.send("while it leaves")
        match how:
            case "goes elsewhere":
                await browser.visit(browser.idle_address)
            case "reloads":
                await browser.reload()
            case "its frame is removed":
                await browser.run("frame.remove()")
            case "its window is closed":
                await browser.run("child.close()")
        await eventually(lambda: hub.gone)
        assert hub.gone == [client]
        (close,) = tap.websocket.frames_up()
        assert close.code in ((1001, 4000) if how == "goes elsewhere" else (1001,))


async def test_a_page_that_comes_back_agrees_with_the_hub(browser: Browser) -> None:
    """Firefox ends its connection; Chromium 156 keeps page and connection until it comes back.

    The standard is about to have the connection ended (whatwg/html#12085), so that what counts is
    that the two do not differ on whether there is one.
    """
    async with running(Echo()) as hub:
        await browser.visit(page_of(hub))
        await browser.run("ws = await dial()")
        client = only_client(hub)
        await browser.visit(browser.idle_address)
        hub.broadcast("while it was away")
        await browser.back()
        outcome = await browser.run(
            """
            if (!window.ws) return "a new page";
            if (ws.raw.readyState === WebSocket.OPEN) ws.raw.send("back");
            const closed = ws.closed.then(() => "closed");
            while (true) {
                const message = await Promise.race([closed, ws.next()]);
                if (message !== "while it was away") return message;
            }
            """
        )
        assert outcome in ("a new page", "closed", "back")
        if outcome == "back":
            assert client.is_connected()
        else:
            await eventually(lambda: hub.gone)
            assert hub.gone == [client]
        assert await browser.run(TALK, "again") == "again"


@pytest.mark.parametrize("name", EXECUTABLES)
async def test_a_browser_is_killed(name: str) -> None:
    with browsing(name) as browser:
        async with running(Echo()) as hub, tapped(hub) as tap:
            await browser.visit(page_of(tap))
            await browser.run("ws = await dial()")
            client = only_client(hub)
            await asyncio.to_thread(browser.program.kill)
            await eventually(lambda: hub.gone)
            assert hub.gone == [client]
            assert tap.websocket.frames_up() == []  # it did not say goodbye


# --- who may connect, and stays ---


@pytest.mark.parametrize("allowed", [False, True], ids=["refused", "allowed"])
@pytest.mark.parametrize("origin", ["another port", "another name", "null"])
async def test_a_page_of_another_origin(browser: Browser, origin: str, allowed: bool) -> None:
    async with running(Echo()) as hub:
        control = browser.idle_address.rstrip("/")
        pages = {
            "another port": (browser.idle_address, control),
            "another name": (f"http://localhost:{hub.port}/page", f"http://localhost:{hub.port}"),
            "null": (page_of(hub), "*"),
        }
        address, its_origin = pages[origin]
        if allowed:
            hub.set_config(HubConfig(allowed_origins=(its_origin,)))
        await browser.visit(address)
        code = SANDBOXED if origin == "null" else TALK
        outcome = await attempt(browser, code, "let in", f"ws://127.0.0.1:{hub.port}/ws")
        assert outcome == ("let in" if allowed else NOT_OPENED)
        assert hub.get_stats().rejected["origin"] == (not allowed)
        assert hub.get_stats().connections_total == allowed


@pytest.mark.parametrize("token", ["ann", "nobody"])
async def test_a_cookie_of_the_page_says_who_it_is(browser: Browser, token: str) -> None:
    def authenticate(request: Request) -> Identity | None:
        name = request.cookies.get("token")
        return Identity(name) if name == "ann" else None

    async with running(Echo(authenticate=authenticate)) as hub:
        await browser.visit(page_of(hub))
        code = "document.cookie = `token=${args[0]}`; ws = await dial(); return 'open'"
        outcome = await attempt(browser, code, token)
        assert outcome == ("open" if token == "ann" else NOT_OPENED)
        assert hub.get_all_connected_users() == (["ann"] if token == "ann" else [])
        assert hub.get_stats().rejected["auth"] == (token != "ann")


async def test_a_silent_page_answers_pings(browser: Browser) -> None:
    """Past heartbeat_timeout it is still there, since it has answered each."""
    hub = Echo(heartbeat_interval=0.2, heartbeat_timeout=1.0)
    async with running(hub), tapped(hub) as tap:
        await browser.visit(page_of(tap))
        await browser.run("ws = await dial()")
        client = only_client(hub)
        longest = timedelta(seconds=2 * hub.config.heartbeat_timeout)
        await eventually(lambda: client.last_activity - client.connected_at > longest)
        assert client.is_connected()
        assert {frame.opcode for frame in tap.websocket.frames_up()} == {PONG}
        code = "ws.raw.send('still here'); return await ws.next()"
        assert await browser.run(code) == "still here"
