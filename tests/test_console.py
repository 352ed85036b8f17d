"""The console: who is let in, what it shows of real hubs, what operators do, and what it bounds."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from tests.redis_server import RedisServer
from tests.support import join, known, named
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    BasicAuthenticator,
    BusUnavailableError,
    ConfigError,
    Hub,
    HubConfig,
    HubStateError,
    Identity,
    MemoryOfflineStore,
    RedisBus,
    Request,
    RoomNotFoundError,
    ValidationError,
)
from wsc_fast.bus.base import Word
from wsc_fast.cluster import hub_questions
from wsc_fast.console import access, actions, log_ring, samples, top_lists
from wsc_fast.console import cluster as cluster_views
from wsc_fast.console.access import RefusalCounts
from wsc_fast.console.log_ring import LogRing
from wsc_fast.console.routes import FILES
from wsc_fast.console.top_lists import Largest, Sized, TopFinder
from wsc_fast.testing import (
    CLOSE,
    TEXT,
    FaultyStore,
    RawClient,
    eventually,
    eventually_async,
    running,
)

NAME, PASSWORD = "operator", "correct horse battery"
PASSWORDS = BasicAuthenticator({NAME: PASSWORD})
PAGE_ITSELF = {"X-Console": "1"}
VIEWS = ("overview", "hubs", "client?id=a", "user?id=a", "room?id=a", "find?text=a")
HOSTILE = "<img src=x onerror=alert(1)>\"'&</script>"


def make_hub(config: HubConfig | None = None, **options: Any) -> Hub:
    """A hub with a console, in whose kept rooms presence is on."""
    authenticate = options.pop("operators", PASSWORDS)
    read_only = options.pop("read_only", False)
    hub = Hub(config or HubConfig(close_timeout=0.2), authenticate=named, **options)
    hub.keep("kept*")
    hub.presence("kept*")
    hub.create_room("plain")
    hub.enable_console(authenticate=authenticate, read_only=read_only)
    return hub


@asynccontextmanager
async def operating(
    hub: Hub, password: str | None = PASSWORD, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """The requests of an operator to a running hub."""
    auth = None if password is None else (NAME, password)
    url = f"http://127.0.0.1:{hub.port}/console/"
    options = {"headers": PAGE_ITSELF, "timeout": 20, **options}
    async with httpx.AsyncClient(base_url=url, auth=auth, **options) as http:
        yield http


async def act(http: httpx.AsyncClient, ask: str, target: str, **more: Any) -> httpx.Response:
    return await http.post("act", json={"ask": ask, "id": target, **more}, headers=PAGE_ITSELF)


def page_of(hub: Hub) -> str:
    return f"http://127.0.0.1:{hub.port}/console"


def audited(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [each for each in caplog.records if getattr(each, "event", "") == "console_action"]


# --- who is let in ---


@pytest.mark.parametrize(
    ("authenticate", "error", "why"),
    [
        (None, ConfigError, "a function that lets operators in, not NoneType"),
        ("secret", ConfigError, "not str"),
        (True, ConfigError, "not bool"),
        ({"ann": PASSWORD}, ConfigError, "not dict"),
        (BasicAuthenticator, ConfigError, "not a class"),
        (named, ConfigError, "must not be that of the hub"),
        (lambda: True, ValidationError, "cannot be called"),
    ],
)
def test_an_authenticate_that_is_a_mistake_is_refused(
    authenticate: Any, error: type[Exception], why: str
) -> None:
    hub = Hub(authenticate=named)
    with pytest.raises(error, match=why):
        hub.enable_console(authenticate=authenticate)
    hub.enable_console(authenticate=PASSWORDS)  # nothing was kept of the call that failed


class Users:
    """An application whose `authenticate` is a method."""

    def authenticate(self, request: Request) -> Identity:
        return named(request)


def test_a_method_that_lets_users_in_is_refused_too() -> None:
    users = Users()
    hub = Hub(authenticate=users.authenticate)
    with pytest.raises(ConfigError, match="must not be that of the hub"):
        hub.enable_console(authenticate=users.authenticate)


def test_a_console_without_authenticate_cannot_be_had() -> None:
    with pytest.raises(TypeError, match="authenticate"):
        Hub().enable_console("/console")  # type: ignore[call-arg]


@pytest.mark.parametrize("path", ["console", "/console/", "/", "/a b", "/{hub}", "", None, 7])
def test_a_path_that_cannot_be_served_is_refused(path: Any) -> None:
    with pytest.raises(ValidationError):
        Hub().enable_console(path, authenticate=PASSWORDS)


def test_a_path_that_is_served_and_a_second_console_are_refused() -> None:
    hub = Hub()
    hub.route("/console/hubs")(lambda request: "")
    with pytest.raises(ValidationError, match="served already"):
        hub.enable_console(authenticate=PASSWORDS)
    hub.enable_console("/other", authenticate=PASSWORDS)
    with pytest.raises(HubStateError, match="enabled already"):
        hub.enable_console("/third", authenticate=PASSWORDS)


@pytest.mark.parametrize("path", ["/console", "/console/act", "/console/hubs"])
async def test_no_route_of_the_application_takes_its_checks_away(path: str) -> None:
    async with running(make_hub()) as hub, operating(hub) as http:
        for method in ("PUT", "OPTIONS"):
            with pytest.raises(ValidationError, match="of the console or of the HTTP API"):
                hub.route(path, methods=(method,))(lambda request: "")
        answer = await http.post("act", json={}, headers={"X-Console": "0"})
        assert answer.status_code == 403
    hub = Hub()
    hub.route(path, methods=("PUT",))(lambda request: "")
    with pytest.raises(ValidationError, match=f"the route PUT '{path}' is served already"):
        hub.enable_console(authenticate=PASSWORDS)


async def test_nothing_is_served_where_the_console_is_off() -> None:
    async with running(Hub()) as hub, httpx.AsyncClient() as http:
        assert (await http.get(page_of(hub))).status_code == 404


async def test_nothing_is_answered_without_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MOST_REFUSALS", 1000)
    async with running(make_hub()) as hub:
        for password in (None, "a wrong password"):
            async with operating(hub, password) as http:
                for path in (page_of(hub), *FILES, *VIEWS):
                    answer = await http.get(path)
                    assert answer.status_code == 401
                    assert answer.headers["WWW-Authenticate"].startswith('Basic realm="wsc_fast"')
                    assert "hub" not in answer.text
                assert (await act(http, "disconnect_client", "a")).status_code == 401
        assert hub.get_stats().rejected["auth"] == 2 * (len(FILES) + len(VIEWS) + 2)


async def test_each_answer_can_be_neither_kept_nor_framed_nor_run() -> None:
    async with running(make_hub()) as hub, operating(hub) as http, operating(hub, None) as other:
        answers = [await http.get(path) for path in (page_of(hub), *FILES, *VIEWS, "find")]
        answers += [await other.get("hubs"), await http.post("act", json={})]
        answers += [await act(http, "send_to_room", "plain", text="hi")]
        for answer in answers:
            headers = answer.headers
            assert headers["Cache-Control"] == "no-store"
            assert headers["X-Frame-Options"] == "DENY"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy


async def test_the_page_has_no_script_or_style_of_its_own_and_asks_nobody_else() -> None:
    async with running(make_hub()) as hub, operating(hub) as http:
        page = (await http.get(page_of(hub))).text
        files = [(await http.get(name)).text for name in FILES]
    assert 'data-base="console"' in page
    assert "{base}" not in page
    assert " style=" not in page
    assert re.findall(r"<[^>]* on\w+=", page) == []
    assert "<style" not in page
    assert page.count("<script") == page.count("<script type=") == 1
    for text in (page, *files):
        assert "innerHTML" not in text
        assert "eval(" not in text
        assert [word for word in text.split() if "//" in word and "http" in word] in (
            [],
            ['xmlns="http://www.w3.org/2000/svg"'],
            ['document.createElementNS("http://www.w3.org/2000/svg",'],
        )


@pytest.mark.parametrize(
    ("found", "operator"),
    [
        (True, "an operator"),
        ("ann", "ann"),
        (Identity("bob"), "bob"),
        (False, None),
        (None, None),
        ("", None),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
async def test_authenticate_says_whether_and_who(
    caplog: pytest.LogCaptureFixture, found: Any, operator: str | None, is_async: bool
) -> None:
    async def later(request: Request) -> Any:
        await asyncio.sleep(0)
        return found

    hub = make_hub(operators=later if is_async else lambda request: found)
    async with running(hub), operating(hub, None) as http:
        answer = await act(http, "send_to_room", "plain", text="hi")
        if operator is None:
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert audited(caplog) == []
        else:
            assert answer.status_code == 200
            assert [vars(each)["operator"] for each in audited(caplog)] == [operator]


async def test_an_answer_of_authenticate_that_is_none_lets_nobody_in() -> None:
    errors: list[BaseException] = []
    hub = make_hub(operators=lambda request: ["ann"])
    hub.on_error(lambda client, error: errors.append(error))
    async with running(hub), operating(hub, None) as http:
        assert (await http.get("hubs")).status_code == 500
    assert [str(error)[:36] for error in errors] == ["authenticate of the console must ret"]


async def test_an_address_that_tries_passwords_is_not_asked_for_a_while() -> None:
    async with running(make_hub()) as hub:
        async with operating(hub, None) as http:
            # A browser asks without a password first, for each tab.
            for _ in range(access.MOST_REFUSALS + 1):
                assert (await http.get("hubs")).status_code == 401
        async with operating(hub, "a wrong password") as http:
            for _ in range(access.MOST_REFUSALS):
                assert (await http.get("hubs")).status_code == 401
            refused = await http.get("hubs")
            assert refused.status_code == 429
            assert 0 < int(refused.headers["Retry-After"]) <= access.PERIOD
        async with operating(hub) as http:
            assert (await http.get("hubs")).status_code == 429
            assert (await act(http, "send_to_room", "plain", text="hi")).status_code == 429
        assert hub.get_stats().rejected["rate"] == 3


async def late_bodies(hub: Hub, passwords: list[str]) -> list[int]:
    """The statuses of actions whose heads were all let in before the first body came."""
    body = b'{"ask":"send_to_room","id":"plain","text":"hi"}'
    async with AsyncExitStack() as stack:
        streams = []
        for password in passwords:
            reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
            stack.callback(writer.close)
            token = base64.b64encode(f"{NAME}:{password}".encode()).decode()
            head = (
                "POST /console/act HTTP/1.1",
                "Host: a",
                f"Authorization: Basic {token}",
                "X-Console: 1",
                "Content-Type: application/json",
                f"Content-Length: {len(body)}",
                "Expect: 100-continue",
                "Connection: close",
            )
            writer.write("\r\n".join((*head, "", "")).encode())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            streams.append((reader, writer))
        statuses = []
        for reader, writer in streams:
            writer.write(body)
            statuses.append(int((await reader.readline()).split()[1]))
        return statuses


async def test_bodies_that_come_late_try_no_more_passwords() -> None:
    most = access.MOST_REFUSALS
    async with running(make_hub()) as hub:
        wrong = [f"wrong password {number}" for number in range(most + 3)]
        assert await late_bodies(hub, [*wrong, PASSWORD]) == [401] * most + [429] * 4
        assert hub.get_stats().rejected["rate"] == 4


async def test_passwords_that_are_looked_up_at_once_are_no_more_than_others() -> None:
    asked: list[Request] = []
    everybody = asyncio.Event()
    count = access.MOST_REFUSALS + 3

    async def later(request: Request) -> str | None:
        asked.append(request)
        if len(asked) == count:
            everybody.set()
        await everybody.wait()
        return None

    async with running(make_hub(operators=later)) as hub, operating(hub, None) as http:
        answers = await asyncio.gather(*(http.get("hubs") for _ in range(count)))
        statuses = sorted(each.status_code for each in answers)
        assert statuses == [401] * access.MOST_REFUSALS + [429] * 3


def test_refusals_are_counted_by_address_and_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MOST_ADDRESSES", 3)
    now = 1000.0
    counts = RefusalCounts(lambda: now)
    for _ in range(access.MOST_REFUSALS):
        assert counts.seconds_left("10.0.0.1") == 0
        counts.add("10.0.0.1")
    assert counts.seconds_left("10.0.0.1") == access.PERIOD
    assert counts.seconds_left("10.0.0.2") == 0
    now += access.PERIOD - 1
    assert counts.seconds_left("10.0.0.1") == 1
    now += 1
    assert counts.seconds_left("10.0.0.1") == 0
    counts.add("10.0.0.1")
    assert counts.seconds_left("10.0.0.1") == 0
    # A site has a whole /64 of IPv6.
    for number in range(access.MOST_REFUSALS):
        counts.add(f"2001:db8::{number:x}")
    assert counts.seconds_left("2001:db8::ffff") > 0
    # Addresses beyond the bound take the place of those that were refused longest ago.
    for number in range(3):
        counts.add(f"10.1.0.{number}")
    assert counts.seconds_left("2001:db8::1") == 0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Console": "0"},
        {**PAGE_ITSELF, "Sec-Fetch-Site": "cross-site"},
        {**PAGE_ITSELF, "Sec-Fetch-Site": "same-site"},
        {**PAGE_ITSELF, "Content-Type": "text/plain"},
        {**PAGE_ITSELF, "Content-Type": "application/x-www-form-urlencoded"},
    ],
)
async def test_an_action_that_another_sites_page_could_send_is_refused(
    headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async with running(make_hub()) as hub, operating(hub, headers={}) as http:
        with (await join(hub, "a"))[0]:
            sent = {"Content-Type": "application/json", **headers}
            body = b'{"ask":"disconnect_client","id":"a"}'
            assert (await http.post("act", content=body, headers=sent)).status_code == 403
            assert hub.get_connected_clients() == 1
            # A browser asks first whether it may send such a header; no route lets it.
            preflight = await http.request("OPTIONS", "act")
            assert preflight.status_code == 405
            assert "Access-Control-Allow-Origin" not in preflight.headers
        assert audited(caplog) == []


@pytest.mark.parametrize(
    "headers", [{"X-Console": "0"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "none"}]
)
async def test_another_sites_page_cannot_keep_hubs_searching(headers: dict[str, str]) -> None:
    async with running(make_hub()) as hub:
        console: Any = hub._console
        asked: list[object] = []
        console._hubs.names = lambda: asked.append(None)
        async with operating(hub) as http:
            for view in VIEWS:
                assert (await http.get(view, headers=headers)).status_code == 403
                assert (await http.head(view, headers=headers)).status_code == 403
            assert hub.get_stats().rejected["origin"] == 2 * len(VIEWS)
            # A browser asks for the page and its files without such a header, by a link too.
            for path in (page_of(hub), *FILES):
                assert (await http.get(path, headers=headers)).status_code == 200
    assert asked == []


async def test_a_body_that_is_too_large_is_not_read() -> None:
    async with running(make_hub()) as hub, operating(hub) as http:
        answer = await act(http, "send_to_room", "plain", text="x" * access.MOST_BODY)
        assert answer.status_code == 413


# --- what it shows ---


async def overview(http: httpx.AsyncClient, **query: Any) -> dict[str, Any]:
    answer = await http.get("overview", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_the_overview_shows_clients_rooms_and_refusals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(samples, "EVERY", 0.05)
    async with running(make_hub()) as hub, operating(hub) as http:
        with (await join(hub, "a1&user=ann"))[0], (await join(hub, "a2&user=ann"))[0]:
            hub.join_room("a1", "plain")
            hub.join_room("a1", "kept")
            hub.join_room("a2", "kept")
            assert (await http.post("act")).status_code == 403
            found = await overview(http)
            assert (found["clients"], found["bus"], found["draining"]) == (2, "none", False)
            assert found["rooms"] == [{"id": "kept", "size": 2}, {"id": "plain", "size": 1}]
            assert (found["room_count"], found["user_count"]) == (2, 1)
            assert found["users"] == [{"id": "ann", "size": 2}]
            assert found["rejected"]["origin"] == 1
            assert found["log"][0]["event"] == "console_refused"

            async def two_samples() -> bool:
                return len((await overview(http))["samples"]) >= 2

            await eventually_async(two_samples)
            some = (await overview(http))["samples"]
            later = await overview(http, since=some[0]["time"], line=found["log"][0]["number"])
            assert later["samples"][0]["time"] > some[0]["time"]
            assert later["log"] == []
            assert some[-1]["connections"] == 2
            assert some[-1]["memory"] > 1 << 20


async def test_the_slowest_client_is_shown_with_its_queue() -> None:
    async with running(make_hub()) as hub, operating(hub) as http:
        with (await join(hub, "slow", rcvbuf=4096))[0]:
            client = known(hub, "slow")

            async def waits() -> bool:
                client.send(b"x" * 100_000)
                return bool((await overview(http))["slowest"])

            await eventually_async(waits)
            (found,) = (await overview(http))["slowest"]
            assert (found["id"], found["user"]) == ("slow", "slow")
            assert found["queued_bytes"] == client.queued_bytes > 0
            view = (await http.get("client", params={"id": "slow"})).json()
            assert view["queued_messages"] == client.queued_messages > 0


async def test_a_client_is_shown_with_its_rates_and_rooms() -> None:
    async with running(make_hub()) as hub, operating(hub) as http:
        heard: list[str | bytes] = []
        hub.on_message_received(lambda client, message: heard.append(message))
        with (await join(hub, "a&user=ann"))[0] as raw:
            hub.join_room("a", "plain")
            await raw.send(TEXT, b"hello")
            await eventually(lambda: heard == ["hello"])
            view = (await http.get("client", params={"id": "a"})).json()
            assert (view["id"], view["user"], view["address"]) == ("a", "ann", "127.0.0.1")
            assert (view["messages_in"], view["bytes_in"]) == (1, 5)
            assert (view["rooms"], view["room_count"]) == (["plain"], 1)
            assert view["round_trip"] is None
            assert view["connected"] <= view["now"] <= time.time()
        assert (await http.get("client", params={"id": "nobody"})).json() is None


async def test_a_user_is_shown_with_devices_and_what_waits() -> None:
    hub = Hub(authenticate=lambda request: Identity("ann", device_id=request.query["device"]))
    config = ACKConfig(enable_offline_messages=True, per="device")
    hub.enable_ack(config, store=MemoryOfflineStore())
    hub.enable_console(authenticate=PASSWORDS)
    async with running(hub), operating(hub) as http:
        with await RawClient.open(hub, "/ws?device=phone"):
            await eventually(lambda: hub.get_connected_clients() == 1)
            hub.send_ack_message_to_user("ann", ACKMessage(content="hi"))

            async def waits() -> Any:
                found = (await http.get("user", params={"id": "ann"})).json()
                (client,) = found["clients"]
                return client["unacknowledged"] == 1 and found["client_count"] == 1 and client

            await eventually_async(waits)
            assert (await waits())["device"] == "phone"
        await eventually(lambda: hub.connections == 0)

        async def stored() -> bool:
            found = (await http.get("user", params={"id": "ann"})).json()
            return bool(found["stored"] == 1 and found["clients"] == [])

        await eventually_async(stored)
        nobody = (await http.get("user", params={"id": "nobody"})).json()
        assert (nobody["clients"], nobody["stored"], nobody["silent"]) == ([], 0, [])


@pytest.mark.parametrize("per", ["user", "device"])
async def test_an_exception_of_the_store_is_told_in_the_view(
    per: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = FaultyStore(MemoryOfflineStore())
    hub = Hub(authenticate=named)
    hub.enable_ack(ACKConfig(enable_offline_messages=True, per=per), store=store)
    hub.enable_console(authenticate=PASSWORDS)
    async with running(hub), operating(hub) as http:
        store.fail(ConnectionError("reset by peer"))
        answer = await http.get("user", params={"id": "ann"})
        assert answer.status_code == 200
        found = answer.json()
        assert found["stored"] is None
        assert found["stored_error"] == ("the offline store raised ConnectionError: reset by peer")
        store.mend()
        assert (await http.get("user", params={"id": "ann"})).json()["stored"] == 0
    assert "the offline store raised" in caplog.text


class Turns:
    """Measures the longest turn of the loop in CPU time of its thread, which others do not take."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._before = time.thread_time()
        self._handle = asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        now = time.thread_time()
        self.longest = max(self.longest, now - self._before)
        self._before = now
        self._handle = asyncio.get_running_loop().call_soon(self._look)

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *error: object) -> None:
        self._look()
        self._handle.cancel()


async def test_a_user_with_many_clients_and_messages_takes_no_long_turn() -> None:
    def one_user(request: Request) -> Identity:
        return Identity("ann", client_id=request.query["id"])

    hub = Hub(authenticate=one_user)
    hub.enable_ack(ACKConfig())
    hub.enable_console(authenticate=PASSWORDS)
    async with running(hub):
        with ExitStack() as raws:
            for number in range(50):
                raws.enter_context(await RawClient.open(hub, f"/ws?id=c{number}"))
            await eventually(lambda: hub.get_connected_clients() == 50)
            for _ in range(1500):
                hub.send_ack_message_to_user("ann", ACKMessage(content="hi"))
            console: Any = hub._console
            for directed in (0, 3):
                for number in range(directed):
                    hub.send_ack_message(f"c{number}", ACKMessage(content="you"))
                    hub.send_ack_message("c2", ACKMessage(content="you"))
                with Turns() as turns:
                    view = await console._hubs._views.user("ann")
                assert turns.longest < 0.05
                counts = {each.id: each.unacknowledged for each in view.clients}
                assert len(counts) == 50
                assert counts == {each: len(hub.get_pending_acks(each)) for each in counts}
            assert (counts["c0"], counts["c2"], counts["c9"]) == (1501, 1504, 1500)
            # Each client of the user may acknowledge for one that has gone.
            known(hub, "c2").disconnect()
            await eventually(lambda: hub.get_connected_clients() == 49)
            view = await console._hubs._views.client("c0")
            assert view.unacknowledged == len(hub.get_pending_acks("c0")) == 1505


async def test_a_room_is_shown_with_members_and_history() -> None:
    async with running(make_hub()) as hub, operating(hub) as http:
        with (await join(hub, "a&user=ann"))[0]:
            hub.join_room("a", "kept")
            hub.broadcast_to_room("kept", "hi")
            hub.broadcast_to_room("kept", b"\xff\x00")
            hub.broadcast_to_room("kept", "ü" * 100_000)
            view = (await http.get("room", params={"id": "kept"})).json()
            assert (view["member_count"], view["kept"], view["present"]) == (1, True, 1)
            assert [(each["id"], each["user"]) for each in view["members"]] == [("a", "ann")]
            assert list(view["by_hub"].values()) == [1]
            texts = [each["text"] for each in view["history"]]
            assert texts == ["hi", "\ufffd\0", "ü" * 500 + "…"]
        plain = (await http.get("room", params={"id": "plain"})).json()
        assert (plain["kept"], plain["present"], plain["members"]) == (False, None, [])
        none = (await http.get("room", params={"id": "no such room"})).json()
        assert (none["member_count"], none["by_hub"]) == (0, {})


async def test_ids_are_found_by_a_part_of_them() -> None:
    async with running(make_hub()) as hub, operating(hub) as http:
        for number in range(70):
            hub.create_room(f"of Ann {number}")
        hub.create_room("anna")
        with (await join(hub, "x-ann&user=ann"))[0]:
            found = (await http.get("find", params={"text": "ANN"})).json()
            assert (found["clients"], found["users"]) == (["x-ann"], ["ann"])
            assert found["rooms"][0] == "anna"  # it begins so
            assert len(found["rooms"]) == 50
            assert (await http.get("find", params={"text": "nothing"})).json()["rooms"] == []


async def test_hostile_names_go_as_they_are_in_json() -> None:
    async with running(make_hub()) as hub, operating(hub) as http:
        hub.create_room(HOSTILE)
        answer = await http.get("overview")
        assert answer.headers["Content-Type"] == "application/json"
        assert {"id": HOSTILE, "size": 0} in answer.json()["rooms"]
        assert (await http.get("room", params={"id": HOSTILE})).json()["id"] == HOSTILE


@pytest.mark.parametrize(
    "path",
    [
        "client",
        "client?id=",
        "user?id=a%00b",
        "room?id=a%0Ab",
        f"room?id={'x' * 257}",
        "find?text=",
        "overview?since=never",
        "overview?since=nan",
        "overview?line=-1",
        "overview?since=1e400",
    ],
)
async def test_a_question_that_cannot_be_answered_is_refused(path: str) -> None:
    async with running(make_hub()) as hub, operating(hub) as http:
        answer = await http.get(path)
        assert answer.status_code == 422
        assert answer.json()["error"] == "refused"


async def test_a_hub_that_is_not_there_is_told() -> None:
    async with running(make_hub()) as hub, operating(hub) as http:
        answer = await http.get("overview", params={"hub": "gone"})
        assert answer.status_code == 410
        text = f"no hub has the name 'gone', and hub {name_of(hub)} has seen none"
        assert answer.json()["text"] == text


async def test_it_is_served_beside_an_asgi_application_too() -> None:
    hub = make_hub()
    async with running(hub):
        transport = httpx.ASGITransport(app=hub.asgi_routes())
        async with httpx.AsyncClient(
            transport=transport, base_url="http://a", auth=(NAME, PASSWORD)
        ) as http:
            assert (await http.get("/console")).status_code == 200
            assert len((await http.get("/console/hubs", headers=PAGE_ITSELF)).json()) == 1
            answer = await http.post(
                "/console/act",
                json={"ask": "send_to_room", "id": "plain", "text": "hi"},
                headers=PAGE_ITSELF,
            )
            assert answer.status_code == 200


async def test_it_can_be_enabled_while_the_hub_runs_and_outlasts_a_stop() -> None:
    hub = Hub(authenticate=named)
    async with running(hub):
        hub.enable_console(authenticate=PASSWORDS)
        async with operating(hub) as http:
            assert (await overview(http))["clients"] == 0
    assert [each for each in log_filters() if isinstance(each, LogRing)] == []
    async with running(hub), operating(hub) as http:
        assert (await overview(http))["clients"] == 0
        assert len([each for each in log_filters() if isinstance(each, LogRing)]) == 1


def log_filters() -> list[Any]:
    return list(logging.getLogger("wsc_fast").filters)


# --- what operators do ---


async def test_a_client_is_sent_a_text_and_disconnected(caplog: pytest.LogCaptureFixture) -> None:
    async with running(make_hub()) as hub, operating(hub) as http:
        with (await join(hub, "a&user=ann"))[0] as raw:
            answer = await act(http, "send_to_client", "a", text=HOSTILE)
            assert (answer.status_code, answer.json()) == (200, {"text": "the message is queued"})
            assert (await raw.recv()).payload.decode() == HOSTILE
            answer = await act(http, "disconnect_client", "a", code=4001, reason="go away")
            assert answer.json() == {"text": "closed with 4001"}
            frame = await raw.recv()
            assert (frame.opcode, frame.code, frame.payload[2:]) == (CLOSE, 4001, b"go away")
    lines = [vars(each) for each in audited(caplog)]
    assert [(each["operator"], each["action"], each["client_id"]) for each in lines] == [
        (NAME, "send_to_client", "a"),
        (NAME, "disconnect_client", "a"),
    ]
    assert {each["address"] for each in lines} == {"127.0.0.1"}
    assert {each["levelname"] for each in lines} == {"WARNING"}
    assert HOSTILE not in caplog.text  # the text is not for the log


async def test_a_user_and_a_room_are_acted_on(caplog: pytest.LogCaptureFixture) -> None:
    async with running(make_hub()) as hub, operating(hub) as http:
        with (await join(hub, "a&user=ann"))[0] as raw:
            hub.join_room("a", "plain")
            assert (await act(http, "send_to_room", "plain", text="all")).status_code == 200
            assert (await raw.recv()).payload == b"all"
            assert (await act(http, "send_to_user", "ann", text="you")).status_code == 200
            sent = (await raw.recv()).payload
            assert b'"type":"operator"' in sent
            assert b'"content":"you"' in sent
            assert (await act(http, "disconnect_user", "ann")).json() == {
                "text": "closed 1 clients with 1000"
            }
            assert (await raw.recv()).code == 1000
    targets = [vars(each) for each in audited(caplog)]
    assert [each.get("room", each.get("user_id")) for each in targets] == ["plain", "ann", "ann"]


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        ({"ask": "disconnect_client", "id": "gone"}, 409, "no client of this hub has the id"),
        ({"ask": "send_to_client", "id": "gone", "text": "x"}, 409, "no client of this hub"),
        ({"ask": "send_to_user", "id": "gone", "text": "x"}, 409, "gone"),
        ({"ask": "send_to_room", "id": "gone", "text": "x"}, 409, "gone"),
        ({"ask": "disconnect_client", "id": "a", "code": 1005}, 409, "1005"),
        ({"ask": "disconnect_client", "id": "a", "code": 7}, 422, "code"),
        ({"ask": "disconnect_client", "id": "a", "reason": "x" * 124}, 422, "reason"),
        ({"ask": "disconnect_client"}, 422, "id"),
        ({"ask": "send_to_client", "id": "a", "text": ""}, 422, "text"),
        ({"ask": "overview"}, 422, "overview"),
        ({"ask": "delete_all"}, 422, "delete_all"),
        ({"ask": "send_to_client", "id": "a", "text": "x", "more": 1}, 422, "more"),
        ([], 422, "array"),
    ],
)
async def test_an_action_that_cannot_be_done_says_why(
    body: Any, status: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(make_hub()) as hub, operating(hub) as http:
        with (await join(hub, "a"))[0]:
            answer = await http.post("act", json=body, headers=PAGE_ITSELF)
            assert answer.status_code == status
            assert why in answer.json()["text"]
            assert hub.get_connected_clients() == 1
    assert len(audited(caplog)) == (status == 409)
    assert all("failed" in vars(each)["outcome"] for each in audited(caplog))


def looks(request: Request) -> Identity:
    return Identity("bob", user_data={"read_only": True})


@pytest.mark.parametrize(
    "options", [{"read_only": True}, {"operators": looks}, {"operators": looks, "read_only": True}]
)
async def test_an_operator_who_may_only_look_acts_on_nothing(
    caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    async with running(make_hub(**options)) as hub, operating(hub) as http:
        raw, _ = await join(hub, "a&user=ann")
        for view in VIEWS:
            assert (await http.get(view)).status_code == 200
        assert 'data-acts="false"' in (await http.get(page_of(hub))).text
        for ask, target, more in (
            ("disconnect_client", "a", {}),
            ("send_to_client", "a", {"text": "x"}),
            ("disconnect_user", "ann", {}),
            ("send_to_user", "ann", {"text": "x"}),
            ("send_to_room", "plain", {"text": "x"}),
            ("no action", "a", {}),
        ):
            answer = await act(http, ask, target, **more)
            assert answer.status_code == 403
            assert answer.json()["text"] == "you may look at the hubs, and not act on them"
        assert hub.get_stats().rejected["auth"] == 6
        lines = [each for each in caplog.records if getattr(each, "reason", "") == "read_only"]
        assert {vars(each)["event"] for each in lines} == {"console_refused"}
        assert "may look, and not act" in lines[0].getMessage()
        assert audited(caplog) == []
        assert hub.get_connected_clients() == 1
        raw.close()


@pytest.mark.parametrize("data", [None, {}, {"read_only": False}])
async def test_an_identity_that_says_nothing_of_it_acts(data: Any) -> None:
    hub = make_hub(operators=lambda request: Identity("ann", user_data=data))
    async with running(hub), operating(hub, None) as http:
        assert 'data-acts="true"' in (await http.get(page_of(hub))).text
        assert (await act(http, "send_to_room", "plain", text="hi")).status_code == 200


async def test_an_identity_that_says_it_in_other_words_is_not_let_in() -> None:
    errors: list[BaseException] = []
    hub = make_hub(operators=lambda request: Identity("ann", user_data={"read_only": "yes"}))
    hub.on_error(lambda client, error: errors.append(error))
    async with running(hub), operating(hub, None) as http:
        assert (await act(http, "send_to_room", "plain", text="hi")).status_code == 500
    assert "read_only in the user_data of an operator must be True" in str(errors[0])


@pytest.mark.parametrize("read_only", [None, 1, "yes"])
def test_whether_a_console_is_only_looked_at_is_a_bool(read_only: Any) -> None:
    hub = Hub()
    with pytest.raises(ValidationError, match="read_only must be True or False"):
        hub.enable_console(authenticate=PASSWORDS, read_only=read_only)
    hub.enable_console(authenticate=PASSWORDS)


async def test_an_operator_cannot_name_another_one(caplog: pytest.LogCaptureFixture) -> None:
    async with running(make_hub()) as hub, operating(hub) as http:
        forged = {"name": "boss", "address": "10.0.0.1", "hub": "other"}
        assert (await act(http, "send_to_room", "plain", text="x", operator=forged)).is_success
    assert [vars(each)["operator"] for each in audited(caplog)] == [NAME]


async def test_an_operator_acts_so_often_and_no_more(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "RATE", 1.0)
    async with running(make_hub()) as hub, operating(hub) as http:
        answers = [await act(http, "send_to_room", "plain", text="x") for _ in range(30)]
        refused = [each for each in answers if each.status_code == 409]
        assert refused
        assert "1 times a second" in refused[0].text
        assert len(audited(caplog)) == 30 - len(refused)


# --- what is known of the hub ---


def test_the_newest_lines_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    ring, logger = LogRing(), logging.getLogger("wsc_fast")
    caplog.set_level(logging.INFO)
    ring.begin()
    try:
        for number in range(log_ring.LINES + 10):
            logger.info("line %d", number, extra={"event": "it", "room": "r" * 1000})
        bad = logging.LogRecord("wsc_fast", logging.INFO, "", 0, "%d", ("no number",), None)
        assert ring.filter(bad)  # the handlers tell what is wrong with it
        logger.error("%s", "x" * 10_000, exc_info=ValueError("why"))
    finally:
        ring.close()
    logger.info("after the end")
    lines = ring.after(0, 1000)
    assert len(lines) == log_ring.LINES
    assert lines[0].text == "x" * log_ring.MOST_TEXT
    assert lines[1].text == f"line {log_ring.LINES + 9}"
    assert (lines[1].event, lines[1].level) == ("it", "info")
    assert lines[1].room == "r" * log_ring.MOST_FIELD
    assert ring.after(lines[0].number, 1000) == []
    assert [line.text for line in ring.after(lines[3].number, 2)] == [
        lines[0].text,
        lines[1].text,
    ]
    # Each line went on to the handlers.
    assert len([each for each in caplog.records if each.name == "wsc_fast"]) == log_ring.LINES + 12


def test_the_ring_is_no_handler_of_the_application() -> None:
    ring = LogRing()
    ring.begin()
    try:
        assert logging.getLogger("wsc_fast").handlers == []
    finally:
        ring.close()


def test_a_distribution_between_two_readings() -> None:
    bounds = (1.0, 2.0, 4.0, float("inf"))
    before = (list(zip(bounds, (5, 5, 5, 5), strict=True)), 3.0)
    now = (list(zip(bounds, (5, 104, 105, 106), strict=True)), 205.0)
    assert samples.mean(before, now) == 2.0
    assert samples.mean(now, now) is None
    assert samples.percentile(before, now, 0.5) == 2.0
    assert samples.percentile(before, now, 0.99) == 4.0
    assert samples.percentile(before, now, 1.0) == 4.0  # beyond it no number is known
    assert samples.percentile(now, now, 0.5) is None


async def test_a_sample_has_rates_and_survives_a_reset() -> None:
    hub = make_hub()
    async with running(hub):
        console: Any = hub._console
        taken = console._hubs._views._samples
        with (await join(hub, "a"))[0] as raw:
            hub.join_room("a", "plain")
            taken.take()
            for _ in range(10):
                hub.broadcast_to_room("plain", "x")
            for _ in range(10):
                await raw.recv()
            taken.take()
            last = taken.last
            assert last.messages_out > 0
            assert last.deliveries == pytest.approx(last.messages_out)
            assert last.bytes_out == pytest.approx(3 * last.messages_out)
            hub.reset_stats()
            taken.take()
            assert taken.last.messages_out == 0


# --- many clients and rooms ---


def test_the_largest_are_those_of_a_sort() -> None:
    sizes = {f"r{number}": number * 7919 % 1000 for number in range(1000)}
    largest = Largest(20)
    for name, size in sizes.items():
        largest.add(name, size)
    wanted = sorted(sizes.items(), key=lambda item: -item[1])[:20]
    assert [(each.id, each.size) for each in largest.found()] == wanted
    equal = Largest(2)
    for name in "abc":
        equal.add(name, 1)
    assert equal.found() == [Sized("a", 1), Sized("b", 1)]


class Rooms:
    """A hub of which only rooms are asked: very many, of which some are deleted meanwhile."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked = 0

    def get_rooms(self) -> list[str]:
        return [f"r{number}" for number in range(self.count)]

    def get_all_connected_users(self) -> list[str]:
        return []

    def get_room_size(self, room_id: str) -> int:
        self.asked += 1
        if room_id.endswith("7"):
            raise RoomNotFoundError("deleted")
        return int(room_id[1:])


async def test_many_rooms_are_looked_at_in_turns_once_for_all() -> None:
    rooms = Rooms(100_000)
    finder = TopFinder(rooms)  # type: ignore[arg-type]
    finding = [asyncio.ensure_future(finder.lists()) for _ in range(5)]
    turns = 0
    while not finding[0].done():
        turns += 1
        await asyncio.sleep(0)
    first, *others = await asyncio.gather(*finding)
    assert turns > 10  # at 2 ms or so each, for 100,000 rooms
    assert rooms.asked == 100_000
    assert all(each is first for each in others)
    assert [each.size for each in first.rooms[:3]] == [99_999, 99_998, 99_996]
    assert first.room_count == 100_000
    assert await finder.lists() is first  # for as long as it is fresh
    assert rooms.asked == 100_000


async def test_the_old_lists_are_given_while_new_ones_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(top_lists, "PATIENCE", 0.01)
    monkeypatch.setattr(top_lists, "KEEP", 0.0)
    monkeypatch.setattr(top_lists, "REST", 0.0)
    rooms = Rooms(10)
    finder = TopFinder(rooms)  # type: ignore[arg-type]
    old = await finder.lists()
    free, in_turns = asyncio.Event(), top_lists.in_turns

    async def slow(*args: Any) -> None:
        await free.wait()
        await in_turns(*args)

    monkeypatch.setattr(top_lists, "in_turns", slow)
    rooms.count = 20
    async with asyncio.timeout(10):
        assert [await finder.lists() for _ in range(3)] == [old, old, old]
        free.set()
        monkeypatch.setattr(top_lists, "PATIENCE", 10.0)
        new = await finder.lists()  # those whose search has begun
    assert (old.room_count, new.room_count) == (10, 20)


async def test_one_who_stops_waiting_stops_it_for_nobody() -> None:
    finder = TopFinder(Rooms(50_000))  # type: ignore[arg-type]
    leaving, staying = (asyncio.ensure_future(finder.lists()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert len((await staying).rooms) == top_lists.MOST


async def test_too_many_requests_at_a_time_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsc_fast.console.routes.MOST_REQUESTS", 2)
    hub = make_hub()
    for number in range(20_000):
        hub.create_room(f"room {number}")
    async with running(hub), operating(hub) as http:
        answers = await asyncio.gather(*(http.get("find?text=oo") for _ in range(8)))
        statuses = sorted(each.status_code for each in answers)
        assert statuses[0] == 200
        assert set(statuses) <= {200, 503}
        assert (await http.get("find?text=oo")).status_code == 200


# --- several hubs ---


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as redis:
        yield redis


@asynccontextmanager
async def cluster(server: RedisServer, *consoles: bool) -> AsyncIterator[list[Hub]]:
    """Hubs on one bus, with or without a console."""
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        hubs = []
        for has_console in consoles:
            bus = RedisBus(server.url, refresh=0.2)
            hub = make_hub(bus=bus) if has_console else Hub(authenticate=named, bus=bus)
            await hub.start("127.0.0.1", 0)
            stack.push_async_callback(hub.stop, 1.0)
            hubs.append(hub)
        yield hubs


def name_of(hub: Hub) -> str:
    return hub._node.name


async def all_known(http: httpx.AsyncClient, hubs: list[Hub]) -> None:
    """Returns once a console knows of all hubs."""

    async def known_to_it() -> bool:
        found = {each["name"] for each in (await http.get("hubs")).json()}
        return found == {name_of(hub) for hub in hubs}

    await eventually_async(known_to_it)


@pytest.fixture
def connect() -> Iterator[Callable[..., Any]]:
    raws: list[RawClient] = []

    async def connect(hub: Hub, name: str) -> RawClient:
        raw, _ = await join(hub, name)
        raws.append(raw)
        return raw

    yield connect
    for raw in raws:
        raw.close()


async def test_all_hubs_are_shown_from_any(server: RedisServer, connect: Any) -> None:
    async with cluster(server, True, True) as hubs, operating(hubs[0]) as http:
        await connect(hubs[1], "b&user=ann")
        await all_known(http, hubs)
        found = {each["name"]: each for each in (await http.get("hubs")).json()}
        assert [found[name_of(hub)]["clients"] for hub in hubs] == [0, 1]
        assert {each["bus"] for each in found.values()} == {"up"}
        other = await overview(http, hub=name_of(hubs[1]))
        assert (other["name"], other["clients"]) == (name_of(hubs[1]), 1)
        assert other["users"] == [{"id": "ann", "size": 1}]


async def test_a_client_of_another_hub_is_shown_and_acted_on(
    server: RedisServer, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(server, True, True, True) as hubs, operating(hubs[0]) as http:
        raw = await connect(hubs[1], "b&user=ann")
        await all_known(http, hubs)
        view = (await http.get("client", params={"id": "b"})).json()
        assert (view["hub"], view["user"]) == (name_of(hubs[1]), "ann")
        assert (await act(http, "send_to_client", "b", text="hi")).status_code == 200
        assert (await raw.recv()).payload == b"hi"
        done = await act(http, "disconnect_client", "b", code=4002)
        assert done.json() == {"text": "closed with 4002"}
        assert (await raw.recv()).code == 4002
        assert (await http.get("client", params={"id": "nobody"})).json() is None
    lines = [(vars(each)["action"], vars(each)["outcome"]) for each in audited(caplog)]
    # The hub that did it has a line, and the one that was asked.
    there = f"done by hub {name_of(hubs[1])}: "
    assert lines == [
        ("send_to_client", "the message is queued"),
        ("send_to_client", f"{there}the message is queued"),
        ("disconnect_client", "closed with 4002"),
        ("disconnect_client", f"{there}closed with 4002"),
    ]
    assert {vars(each)["hub"] for each in audited(caplog)} == {name_of(hubs[0])}
    assert {vars(each)["operator"] for each in audited(caplog)} == {NAME}


async def test_an_action_goes_to_another_hub_once_at_most(
    server: RedisServer, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(server, True, True) as hubs, operating(hubs[0]) as http:
        raw = await connect(hubs[1], "b")
        await all_known(http, hubs)
        bus: Any = hubs[0].bus
        tell, may_come_again = bus.tell, []

        async def noting(words: list[Word], again: bool) -> list[int]:
            may_come_again.extend((again, b"send_to_client" in word.data) for word in words)
            found: list[int] = await tell(words, again)
            return found

        monkeypatch.setattr(bus, "tell", noting)
        assert (await act(http, "send_to_client", "b", text="hi")).status_code == 200
        assert (await raw.recv()).payload == b"hi"
        assert may_come_again == [(True, False), (False, True)]  # the client is looked for first


async def test_a_client_whose_id_a_hub_has_made_is_found_by_that_hub_alone(
    server: RedisServer,
) -> None:
    async with cluster(server, True, True) as hubs, operating(hubs[0]) as http:
        await all_known(http, hubs)
        asked: list[str] = []
        ask_hub = hubs[0]._node.ask_hub

        async def noting(hub: str, content: bytes, *, again: bool = True) -> bytes:
            asked.append(hub)
            return await ask_hub(hub, content, again=again)

        hubs[0]._node.ask_hub = noting  # type: ignore[method-assign]
        other = name_of(hubs[1])
        assert (await http.get("client", params={"id": f"{other}.xyz"})).json() is None
        assert asked == [other]


async def test_users_rooms_and_ids_of_all_hubs_are_put_together(
    server: RedisServer, connect: Any
) -> None:
    async with cluster(server, True, True) as hubs, operating(hubs[0]) as http:
        for number, hub in enumerate(hubs):
            await connect(hub, f"c{number}&user=ann")
            hub.join_room(f"c{number}", "kept")
        await all_known(http, hubs)
        user = (await http.get("user", params={"id": "ann"})).json()
        assert sorted(each["id"] for each in user["clients"]) == ["c0", "c1"]
        assert (user["client_count"], user["silent"]) == (2, [])

        async def present() -> bool:
            room = (await http.get("room", params={"id": "kept"})).json()
            return bool(room["present"] == 1)

        await eventually_async(present)
        room = (await http.get("room", params={"id": "kept"})).json()
        assert room["by_hub"] == {name_of(hub): 1 for hub in hubs}
        assert sorted(each["id"] for each in room["members"]) == ["c0", "c1"]
        found = (await http.get("find", params={"text": "c"})).json()
        assert sorted(found["clients"]) == ["c0", "c1"]
        assert (await act(http, "disconnect_user", "ann")).json() == {
            "text": "closed 2 clients with 1000"
        }


async def test_a_hub_without_a_console_shows_nothing_of_itself(
    server: RedisServer, connect: Any
) -> None:
    async with cluster(server, True, False) as hubs, operating(hubs[0]) as http:
        raw = await connect(hubs[1], "b&user=ann")
        await all_known(http, hubs)
        name = name_of(hubs[1])
        (other,) = [each for each in (await http.get("hubs")).json() if each["name"] == name]
        assert other["error"] == f"hub '{name}' has no answer: its console is off"
        assert (await http.get("overview", params={"hub": name})).status_code == 502
        assert (await http.get("user", params={"id": "ann"})).json()["silent"] == [name]
        assert (await act(http, "disconnect_client", "b")).status_code == 502
        assert hubs[1].get_connected_clients() == 1
        raw.close()


async def test_a_hub_that_has_gone_was_seen_until_it_answered_last(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(server, True, True) as hubs, operating(hubs[0]) as http:
        await all_known(http, hubs)
        name = name_of(hubs[1])
        assert (await overview(http, hub=name))["name"] == name
        await hubs[1].stop(1.0)
        now = time.monotonic()
        later = SimpleNamespace(monotonic=lambda: now + 12)
        monkeypatch.setattr(cluster_views, "time", later)
        answer = await http.get("overview", params={"hub": name})
        assert answer.status_code == 410
        text = f"hub '{name}' was seen until 12 s ago; it no longer answers"
        assert answer.json()["text"] == text
        monkeypatch.setattr(later, "monotonic", lambda: now + cluster_views.SEEN_FOR + 1)
        answer = await http.get("overview", params={"hub": name})
        assert "no hub has the name" in answer.json()["text"]


def test_so_many_hubs_are_remembered() -> None:
    hubs = cluster_views.Hubs(*[SimpleNamespace()] * 3, read_only=False)  # type: ignore[arg-type]
    for number in range(cluster_views.MOST_SEEN + 5):
        hubs._see(f"hub{number}")
    assert len(hubs._seen) == cluster_views.MOST_SEEN
    assert "hub4" not in hubs._seen


async def test_a_hub_that_does_not_answer_holds_up_nothing_for_long(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_questions, "PATIENCE", 0.3)
    async with cluster(server, True, True) as hubs, operating(hubs[0]) as http:
        await all_known(http, hubs)
        users = hubs[1]._node.users
        assert users is not None
        monkeypatch.setattr(users.hub_questions, "asked", lambda word: None)
        own, other = (await http.get("hubs")).json()
        assert (own["error"], "did not answer within 0.3 s" in other["error"]) == ("", True)
        found = (await http.get("room", params={"id": "plain"})).json()
        assert found["silent"] == [name_of(hubs[1])]


async def test_silent_hubs_do_not_add_up(server: RedisServer) -> None:
    names = [f"hub{number:02}" for number in range(cluster_views.MOST_HUBS - 1)]
    waiting: set[str] = set()
    everybody = asyncio.Event()

    async def silent(hub: str, content: bytes, *, again: bool = True) -> bytes:
        waiting.add(hub)
        if len(waiting) == len(names):
            everybody.set()
        await everybody.wait()  # each is asked before the first has used up its patience
        raise BusUnavailableError("it did not answer")

    async with cluster(server, True) as (hub,), operating(hub) as http:
        console: Any = hub._console
        hub._node.ask_hub = silent  # type: ignore[method-assign]
        console._hubs._names, console._hubs._known_until = names, float("inf")
        console._hubs._views._samples.ticks.clear()  # it would find out the names anew
        for path in ("hubs", "user?id=a", "room?id=a", "find?text=a", "client?id=a"):
            waiting.clear()
            everybody.clear()
            answer = await asyncio.wait_for(http.get(path), 10)
            assert waiting == set(names)
            if path == "hubs":
                assert len(answer.json()) == len(names) + 1
            elif path.startswith("client"):
                assert answer.status_code == 502
            else:
                assert answer.json()["silent"] == names


async def test_views_of_another_hub_fit_into_a_reply(
    server: RedisServer, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rooms = ["\U0001f642" * 250 + f"{number}" for number in range(50)]
    async with cluster(server, True, True) as hubs, operating(hubs[0]) as http:
        await all_known(http, hubs)
        for number in range(50):
            await connect(hubs[1], f"c{number}&user=ann")
            for room in rooms:
                hubs[1].join_room(f"c{number}", room)
        user = (await http.get("user", params={"id": "ann"})).json()
        assert (user["client_count"], len(user["clients"]), user["silent"]) == (50, 50, [])
        client = (await http.get("client", params={"id": "c1"})).json()
        assert (client["rooms"], client["room_count"]) == (rooms, 50)
        for number in range(120):
            logging.getLogger("wsc_fast").error("%d %s", number, "\x00\u932f" * 1000)
        found = await overview(http, hub=name_of(hubs[1]))
        assert found["log"][0]["text"].startswith("119 ")
        assert 1 < len(found["log"]) < 100
        numbers = [line["number"] for line in found["log"]]
        assert numbers == sorted(numbers, reverse=True)
    assert "question_failed" not in [getattr(each, "event", "") for each in caplog.records]


async def test_an_action_from_another_hub_needs_its_operator(server: RedisServer) -> None:
    async with cluster(server, True, True) as hubs:
        question = b'{"ask":"disconnect_client","id":"a"}'
        reply = await hubs[0]._node.ask_hub(name_of(hubs[1]), question)
        assert b"an action needs its operator" in reply
        for content in (b"[]", b'{"ask":"disconnect_user","id":"a"}', b'{"ask":"x"}', b"7"):
            assert b'"error":"refused"' in await hubs[0]._node.ask_hub(name_of(hubs[1]), content)


async def test_a_hub_that_is_only_looked_at_does_nothing_for_the_console_of_another_one(
    server: RedisServer, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(server, True) as (one,), operating(one) as http:
        two = make_hub(bus=RedisBus(server.url, refresh=0.2), read_only=True)
        await two.start("127.0.0.1", 0)
        try:
            await all_known(http, [one, two])
            await connect(two, "b&user=ann")
            answer = await act(http, "disconnect_client", "b")
            assert answer.status_code == 409
            assert answer.json()["text"] == "the console of that hub is read-only"
            assert two.get_connected_clients() == 1
            assert [vars(each)["outcome"] for each in audited(caplog)] == [
                "refused: the console of this hub is read-only",
                f"hub {name_of(two)} did not do it: the console of that hub is read-only",
            ]
        finally:
            await two.stop(1.0)


async def test_texts_of_another_hub_are_escaped_in_the_log(
    server: RedisServer, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    forged = "\n2026-11-30 WARNING console: 'boss'\x1b[2J"
    done = msgspec.json.encode({"result": {"text": forged}})
    refused = msgspec.json.encode({"error": "refused", "text": forged * 100})
    async with cluster(server, True, True) as hubs, operating(hubs[0]) as http:
        raw = await connect(hubs[1], "b")
        await all_known(http, hubs)
        answer = hubs[1]._console._hubs.answer  # type: ignore[union-attr]
        for reply, status in ((done, 200), (refused, 409)):

            async def answering(content: bytes, reply: bytes = reply) -> bytes:
                return reply if b"send_to_client" in content else await answer(content)

            hubs[1]._node.answer_hubs(answering)
            assert (await act(http, "send_to_client", "b", text="x")).status_code == status
        hubs[1]._node.answer_hubs(answer)
        operator = {"name": forged, "address": forged, "hub": forged}
        question = {"ask": "send_to_client", "id": "b", "text": "y", "operator": operator}
        await hubs[0]._node.ask_hub(name_of(hubs[1]), msgspec.json.encode(question))
        assert (await raw.recv()).payload == b"y"
    lines = [each.getMessage() for each in audited(caplog)]
    assert len(lines) == 3
    assert all(line.isprintable() and line.isascii() and len(line) < 1000 for line in lines)
    outcomes = [vars(each)["outcome"] for each in audited(caplog)]
    assert all(each.isprintable() for each in outcomes)


async def test_the_bus_is_timed(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "EVERY", 0.05)
    async with cluster(server, True) as (hub,), operating(hub) as http:

        async def timed() -> Any:
            trips = [each["bus_round_trip"] for each in (await overview(http))["samples"]]
            return trips and trips[-1] is not None and 0 < trips[-1] < 20

        await eventually_async(timed)


async def test_hubs_of_anonymous_clients_show_themselves(server: RedisServer) -> None:
    hub = Hub(bus=RedisBus(server.url))
    hub.enable_console(authenticate=PASSWORDS)
    async with running(hub), operating(hub) as http:
        (own,) = (await http.get("hubs")).json()
        assert (own["name"], own["bus"], own["error"]) == (name_of(hub), "up", "")
