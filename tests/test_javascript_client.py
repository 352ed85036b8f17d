"""The client in JavaScript, built from clients/javascript, on real hubs: in node, and in Chromium.

Its own tests, among them all of clients/cases.json, are run here too.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import time
from pathlib import Path

from tests.asking_hub import asking
from tests.browsers.driver import PAGE, browsing
from tests.clients.javascript import CLIENTS, built, npm, script
from tests.redis_server import cutter
from tests.support import ROOT, known, named, only_client
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Hub,
    HubConfig,
    Identity,
    MemoryBus,
    Request,
    Response,
)
from wsc_fast.auth import TokenAuthenticator
from wsc_fast.testing import eventually, running

QUICK = {"minDelay": 50, "maxDelay": 200}


def path_of(hub: Hub, query: str = "", port: int | None = None) -> str:
    return f"ws://127.0.0.1:{port or hub.port}/ws{query}"


# --- what npm runs ---


def test_its_own_tests_pass_and_its_types_and_docs_hold() -> None:
    """All cases of cases.json, the hooks, the size of the package, the examples of its README."""
    for command in ("test", "run typecheck", "run docs"):
        result = npm(built(), *command.split())
        assert result.returncode == 0, result.stdout + result.stderr


def test_the_package_works_in_an_empty_project(tmp_path: Path) -> None:
    packed = npm(built(), "pack", "--ignore-scripts", "--pack-destination", str(tmp_path))
    assert packed.returncode == 0, packed.stderr
    (archive,) = tmp_path.glob("*.tgz")
    (tmp_path / "package.json").write_text('{"name": "empty", "private": true}')
    installed = npm(tmp_path, "install", "--offline", "--no-audit", f"./{archive.name}")
    assert installed.returncode == 0, installed.stderr
    (tmp_path / "a.mjs").write_text(
        'import { connect, Client } from "wsc-client"; console.log(typeof connect, typeof Client);'
    )
    (tmp_path / "b.cjs").write_text(
        'const { connect } = require("wsc-client"); console.log(typeof connect);'
    )
    for name in ("a.mjs", "b.cjs"):
        run = npm(tmp_path, "exec", "--offline", "--", "node", name)
        assert run.returncode == 0, run.stderr
        assert "function" in run.stdout
    names = {path.name for path in (tmp_path / "node_modules" / "wsc-client").iterdir()}
    assert names == {"LICENSE", "README.md", "dist", "package.json"}
    # The file for a <script> is the one that a page loads below.
    script_file = Path("dist") / "wsc-client.min.js"
    installed_file = tmp_path / "node_modules" / "wsc-client" / script_file
    assert installed_file.read_bytes() == (built() / script_file).read_bytes()


def test_an_example_with_a_wrong_type_is_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "javascript"
    shutil.copytree(built(), copy, ignore=shutil.ignore_patterns("node_modules"))
    (copy / "node_modules").symlink_to(built() / "node_modules")
    readme = copy / "README.md"
    readme.write_text(readme.read_text().replace('get: "price" });', 'get: "size" });'))
    result = npm(copy, "run", "typecheck")
    assert result.returncode != 0
    assert "error TS2322" in result.stdout, result.stdout + result.stderr


def test_the_demo_has_the_client_as_it_is_built() -> None:
    demo = ROOT / "wsc_fast" / "demo" / "wsc-client.min.js"
    made = built() / "dist" / "wsc-client.min.js"
    assert demo.read_text() == made.read_text(), "npm run demo, in clients/javascript, copies it"


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((CLIENTS / "javascript" / "package-lock.json").read_text())
    assert len(lock["packages"]) > 10
    assert [name for name, entry in lock["packages"].items() if "resolved" in entry] == []


# --- in node ---


async def test_texts_bytes_json_and_requests_on_one_connection() -> None:
    hub = asking()
    async with running(hub), script() as js:
        await js.tell("connect", path_of(hub, "?id=a"), {})
        await js.tell("send", "1", "plain text")
        await js.tell("send", "2", {"a": [1, None]})
        await js.tell("bytes", "3", b"\x00\n\xff")
        await js.tell("request", "4", {"get": "it"}, {})
        await js.tell("request", "5", "nothing", {})
        await js.until("rejected", "5", "no-such")
        await js.until("resolved", "4", {"you": "a", "asked": {"get": "it"}})
        await js.until("message", {"bytes": "AAr/"}, None, False)
        assert [message for message, *_ in js.all("message")] == [
            "plain text",
            {"a": [1, None]},
            {"bytes": "AAr/"},
        ]
        await js.tell("close")
        await js.until_state("closed")
        assert js.states() == ["open", "closed"]


async def test_a_token_that_ends_is_renewed() -> None:
    tokens: list[str | None] = []

    async def authenticate(request: Request) -> Identity | None:
        tokens.append(request.query.get("token"))
        if request.query.get("token") == "second":
            return Identity("ann", expires_at=time.time() + 3600)
        return Identity("ann", expires_at=time.time() + 0.2)

    hub = asking(Hub(authenticate=authenticate))
    async with running(hub), script() as js:
        await js.tell("connect", path_of(hub), {"tokenQuery": "token"}, "first", "second")
        await js.until_state("open", 2)
        await js.tell("request", "1", 1, {})
        await js.reaches(lambda: js.all("resolved"))
        assert tokens == ["first", "second"]
        assert js.states() == ["open", "connecting", "open"]


async def test_a_token_goes_as_a_subprotocol_and_is_renewed_before_it_ends() -> None:
    good = {"first-token-of-ann": "ann", "second-token-of-ann": "ann"}
    hub = asking(Hub(authenticate=TokenAuthenticator(good)))
    async with running(hub), script() as js:
        first = {"token": "first-token-of-ann", "expires": time.time() * 1000 + 1000}
        await js.tell("connect", path_of(hub), {}, first, "second-token-of-ann")
        await js.until_state("open", 2)
        assert only_client(hub).user_id == "ann"
        assert js.states() == ["open", "connecting", "open"]
        assert js.all("token") == [(first,), ("second-token-of-ann",)]


async def test_a_status_route_tells_why_nobody_is_let_in() -> None:
    hub = Hub(authenticate=lambda request: None)

    @hub.route("/status")
    def status(request: Request) -> Response:
        return Response(status=401)

    async with running(hub), script() as js:
        options = {"statusUrl": f"http://127.0.0.1:{hub.port}/status", **QUICK}
        await js.tell("connect", path_of(hub), options, "a-token", "another-token")
        await js.until_state("closed")
        assert js.all("state")[-1] == ({"state": "closed", "code": 1006, "why": "unauthorized"},)
        assert js.all("token") == [("a-token",), ("another-token",)]


async def test_rooms_are_joined_and_recovered_over_a_restart(tmp_path: Path) -> None:
    bus = str(tmp_path / "kept.db")
    hub = asking(Hub(authenticate=named, bus=MemoryBus(bus)))
    async with script() as js:
        async with running(hub):
            port = hub.port
            await js.tell("connect", path_of(hub, "?id=a"), {**QUICK, "storage": True})
            await js.tell("room", "chat:b")
            await js.tell("room", "chat:a")
            await js.tell("room", "chat:silent")
            await js.tell("room", "staff")
            await js.until("refused", "staff", "forbidden")
            await js.until("joined", {"room": "chat:silent"})
            rooms = ("chat:b", "chat:a", "chat:silent")
            assert js.all("first") == [({"room": room_id},) for room_id in rooms]
            assert js.all("load") == [(room_id, "first") for room_id in rooms]
            for room_id in ("chat:b", "chat:a"):
                await hub.publish(room_id, "before")
                await js.until("message", "before", room_id, False)
        hub = asking(Hub(authenticate=named, bus=MemoryBus(bus)))
        # Said while nobody can be connected: the hub listens afterwards.
        hub.on_startup(lambda: hub.publish("chat:a", "meanwhile"))
        async with running(hub, port=port):
            await js.until("recovered", {"room": "chat:a", "missed": 1})
            await js.until("recovered", {"room": "chat:silent", "missed": 0})
            await hub.publish("chat:a", "after")
            await js.until("message", "after", "chat:a", False)
            assert known(hub, "a").rooms == rooms
            assert js.states()[-2:] == ["connecting", "open"]
    texts = [text for text, *_ in js.all("message")]
    assert texts == ["before", "before", "meanwhile", "after"]
    assert js.all("gap") == []


async def test_messages_that_must_arrive_are_shown_once_and_acknowledged() -> None:
    hub = asking()
    hub.enable_ack(ACKConfig(retry_interval=0.2))
    async with running(hub), cutter(hub) as line, script() as js:  # type: ignore[arg-type]
        await js.tell("connect", path_of(hub, "?id=a", line.port), QUICK)
        await js.until_state("open")
        pending = hub.send_ack_message_to_user("a", ACKMessage(content="one"))
        await pending
        # The acknowledgement of the second one is lost with the connection.
        line.request = lambda number, data: None
        pending = hub.send_ack_message_to_user("a", ACKMessage(content="two"))
        await js.reaches(lambda: len(js.all("message")) == 2)
        line.request = lambda number, data: data
        await pending
        await js.tell("request", "1", 1, {})
        await js.reaches(lambda: js.all("resolved"))
        assert [message["content"] for message, *_ in js.all("message")] == ["one", "two"]


async def test_a_line_that_falls_silent_is_given_up() -> None:
    hub = asking()
    options = {"heartbeatInterval": 200, "heartbeatTimeout": 1000, "connectTimeout": 1000, **QUICK}
    async with running(hub), cutter(hub) as line, script() as js:  # type: ignore[arg-type]
        await js.tell("connect", path_of(hub, "?id=a", line.port), options)
        await js.tell("request", "1", 1, {"retry": True})
        await js.reaches(lambda: js.all("resolved"))
        line.request = lambda number, data: b""
        await js.until_state("waiting")
        line.request = lambda number, data: data
        await js.until_state("open", 2)
        await js.tell("request", "2", 2, {"retry": True})
        await js.until("resolved", "2", {"you": "a", "asked": 2})
        assert {each["code"] for (each,) in js.all("state") if "code" in each} == {1006}


async def test_connections_that_are_cut_lose_nothing_in_silence() -> None:
    """2,000 messages to a kept room, and 300 requests, while the connection is cut all the time."""
    hub = asking()
    messages, requests = 2000, 300
    chance = random.Random(20)
    async with running(hub), cutter(hub) as line, script() as js:  # type: ignore[arg-type]
        often = {"minDelay": 20, "maxDelay": 100, "requestTimeout": 60_000}
        await js.tell("connect", path_of(hub, "?id=a", line.port), often)
        await js.tell("room", "chat:a")
        await js.until("joined", {"room": "chat:a"})

        async def say() -> None:
            for number in range(messages):
                await hub.publish("chat:a", str(number))
                if number % 10 == 0:
                    await asyncio.sleep(0.02)

        async def ask() -> None:
            for number in range(requests):
                await js.tell("request", str(number), number, {"retry": True})
                await asyncio.sleep(0.01)

        async def cut() -> None:
            while True:
                await asyncio.sleep(chance.uniform(0.1, 0.6))
                await line.finish()

        cutting = asyncio.ensure_future(cut())
        await asyncio.gather(say(), ask())
        cutting.cancel()
        await js.reaches(lambda: len(js.all("message")) >= messages)
        await js.reaches(lambda: len(js.all("resolved")) >= requests)
        assert [data for data, *_ in js.all("message")] == list(range(messages))
        assert sorted(int(name) for name, _ in js.all("resolved")) == list(range(requests))
        assert js.all("gap") == []
        assert js.all("rejected") == js.all("error") == []
        assert js.states().count("open") > 5


# --- in a browser ---


# Has a page know the client.
LOAD = """
    await new Promise((resolve, reject) => {
        const script = document.createElement("script");
        Object.assign(script, { src: "/client.js", onload: resolve, onerror: reject });
        document.head.append(script);
    });
"""


def with_page(hub: Hub) -> Hub:
    """The hub, which serves the page and the client too."""
    client = (built() / "dist" / "wsc-client.min.js").read_text()

    @hub.route("/")
    def page(request: Request) -> Response:
        return Response(body=PAGE, content_type="text/html; charset=utf-8")

    @hub.route("/client.js")
    def source(request: Request) -> Response:
        return Response(body=client, content_type="text/javascript; charset=utf-8")

    return hub


async def test_a_page_that_its_browser_keeps_leaves_and_recovers() -> None:
    """In Chromium: Firefox keeps no page that has a connection when it is left."""
    hub = with_page(asking())
    ends: list[int | None] = []
    hub.on_client_disconnected(lambda client: ends.append(client.close_code))
    with browsing("chromium") as browser:
        async with running(hub):
            await browser.visit(f"http://127.0.0.1:{hub.port}/")
            await browser.run(
                LOAD
                + """
                heard = [];
                addEventListener("pageshow", ({ persisted }) => heard.push(`shown, ${persisted}`));
                hub = wsc.connect("/ws?id=a");
                hub.room("chat:a").on("message", ({ data }) => heard.push(data));
                hub.on("state", ({ state, code }) => heard.push([state, code ?? 0].join()));
                hub.on("recovered", ({ missed }) => heard.push("recovered " + missed));
                """
            )
            await eventually(lambda: "chat:a" in [*known_rooms(hub)])
            await hub.publish("chat:a", "one")
            await browser.run(
                "while (!heard.includes('one')) "
                "await new Promise((resolve) => setTimeout(resolve, 10));"
            )
            await browser.visit(browser.idle_address)
            await eventually(lambda: ends == [1000])
            await hub.publish("chat:a", "two")
            await browser.back()
            await browser.run(
                "while (!heard.some((each) => /recovered/.test(each))) "
                "await new Promise((resolve) => setTimeout(resolve, 10));"
            )
            heard = await browser.run("return heard")
            assert heard == [
                *("open,0", "one", "waiting,1000", "shown, true"),
                *("connecting,0", "open,0", "two", "recovered 1"),
            ]


async def test_a_long_upload_over_a_slow_line_is_no_silence() -> None:
    hub = with_page(asking(Hub(HubConfig(max_message_size=1 << 26))))
    sizes: list[int] = []
    hub.on_message_received(lambda client, message: sizes.append(len(message)))
    with browsing("chromium") as browser:
        async with running(hub), cutter(hub) as line:  # type: ignore[arg-type]
            await browser.visit(f"http://127.0.0.1:{line.port}/")
            await browser.run(
                LOAD
                + """
                states = [];
                hub = wsc.connect("/ws", {
                    recover: false, heartbeat: true, queueBytes: 1 << 26,
                    heartbeatInterval: 300, heartbeatTimeout: 1500,
                });
                hub.on("state", ({ state }) => states.push(state));
                await hub.request(1);
                """
            )

            async def slowly(number: int, data: bytes) -> bytes:
                await asyncio.sleep(0.01)
                return data

            line.request = slowly
            began = time.monotonic()
            await browser.run("await hub.send(new Uint8Array(args[0]))", 30_000_000)
            await eventually(lambda: sizes == [30_000_000], timeout=60)
            # Longer than its patience; what waits in the kernels takes less than that.
            assert time.monotonic() - began > 2.5
            assert await browser.run("return states") == ["open"]


async def test_a_page_joins_and_recovers_in_chromium() -> None:
    hub = with_page(asking())
    with browsing("chromium") as browser:
        async with running(hub), cutter(hub) as line:  # type: ignore[arg-type]
            await browser.visit(f"http://127.0.0.1:{line.port}/")
            await browser.run(
                LOAD
                + """
                heard = [];
                const options = { minDelay: 50, maxDelay: 100, storage: sessionStorage };
                hub = wsc.connect("/ws?id=a", options);
                hub.room("chat:a").on("message", ({ data }) => heard.push(data));
                hub.on("state", ({ state }) => heard.push(state));
                hub.on("recovered", ({ missed }) => heard.push("recovered " + missed));
                """
            )
            await eventually(lambda: "chat:a" in [*known_rooms(hub)])
            await hub.publish("chat:a", "one")
            assert await browser.run("return await hub.request({ n: 1 })") == {
                "you": "a",
                "asked": {"n": 1},
            }
            line.request = lambda number, data: None
            await hub.publish("chat:a", "two")
            await browser.run("void hub.send('x')")
            await eventually(lambda: hub.get_connected_clients() == 0)
            await hub.publish("chat:a", "three")
            line.request = lambda number, data: data
            await browser.run(
                "while (!heard.some((each) => /recovered/.test(each))) "
                "await new Promise((resolve) => setTimeout(resolve, 10));"
            )
            heard = await browser.run("return heard")
            assert [each for each in heard if each in ("one", "two", "three")] == [
                "one",
                "two",
                "three",
            ]
            assert heard.count("open") == 2
            kept = await browser.run(
                "hub.close(); return JSON.parse(sessionStorage.getItem('wsc:/ws?id=a:pos'))"
            )
            assert [room for room, _ in kept] == ["chat:a"]


def known_rooms(hub: Hub) -> tuple[str, ...]:
    client = hub.get_client_by_id("a")
    return () if client is None else client.rooms
