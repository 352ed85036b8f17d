"""Routes: methods, bodies, parameters of paths, async functions, and their bounds."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import aiohttp
import pytest

from tests.support import exchange, serves_others
from wsc_fast import Hub, HubConfig, Request, Response, ValidationError
from wsc_fast.testing import RawClient, assert_nothing_left, eventually, running

ANY = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Answer:
    """One HTTP answer: status, headers in lower case, body."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {name.lower(): value for name, value in (line.split(": ") for line in lines)}


def request(
    method: str, path: str, body: bytes | None = None, headers: tuple[str, ...] = ()
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


async def ask(hub: Hub, method: str, path: str, body: bytes | None = None) -> Answer:
    return Answer(await exchange(hub, request(method, path, body)))


# --- methods ---


@pytest.mark.parametrize("method", ANY)
async def test_a_route_serves_its_method_alone(any_loop: str, method: str) -> None:
    hub = Hub()
    hub.route("/r", methods=[method])(lambda request: request.method)
    async with running(hub):
        for other in ANY:
            answer = await ask(hub, other, "/r")
            assert answer.status == (200 if other == method else 405)
            if other == method:
                assert answer.body == method.encode()
            else:
                assert answer.headers["allow"] == ("GET, HEAD" if method == "GET" else method)


async def test_a_path_may_have_a_function_for_each_method() -> None:
    hub = Hub()
    hub.route("/r")(lambda request: "got")
    hub.route("/r", methods=("POST", "PUT"))(lambda request: request.body)
    async with running(hub):
        assert (await ask(hub, "GET", "/r")).body == b"got"
        head = await ask(hub, "HEAD", "/r")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "3")
        assert (await ask(hub, "PUT", "/r", b"put")).body == b"put"
        answer = await ask(hub, "DELETE", "/r")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, POST, PUT")
        assert (await ask(hub, "POST", "/none", b"x")).status == 405
        assert (await ask(hub, "BREW", "/r")).status == 400
        assert hub.get_stats().rejected["request"] == 3


@pytest.mark.parametrize("methods", ["POST", (), ("post",), ("HEAD",), ("CONNECT",), (1,)])
def test_methods_that_no_route_can_have(methods: Any) -> None:
    with pytest.raises(ValidationError, match="method"):
        Hub().route("/r", methods=methods)


def test_a_method_of_a_path_is_served_once() -> None:
    hub = Hub()
    hub.route("/r", methods=("GET", "POST"))(lambda request: "ok")
    late = hub.route("/s")
    hub.route("/s")(lambda request: "first")
    with pytest.raises(ValidationError, match="POST '/r' is served already"):
        hub.route("/r", methods=("PUT", "POST"))
    with pytest.raises(ValidationError, match="served already"):
        late(lambda request: "second")


# --- parameters ---


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/rooms/tea", "room tea"),
        ("/rooms/gr%C3%BCn%20tee?x=y", "room grün tee"),
        ("/rooms/a%2Fb", "room a/b"),
        ("/rooms/%ff", "room �"),
        ("/rooms/lobby", "the lobby"),
        ("/rooms/tea/users/ann", "ann in tea"),
        ("/rooms/", None),
        ("/rooms", None),
        ("/rooms/tea/", None),
        ("/rooms/tea/users/", None),
        ("/rooms//users/ann", None),
    ],
)
async def test_a_parameter_is_one_segment(path: str, answer: str | None) -> None:
    hub = Hub()
    hub.route("/rooms/{room}")(lambda request: f"room {request.path_params['room']}")
    hub.route("/rooms/lobby")(lambda request: "the lobby")
    hub.route("/rooms/{room}/users/{user}")(
        lambda request: "{user} in {room}".format(**request.path_params)
    )
    async with running(hub):
        got = await ask(hub, "GET", path)
        assert got.status == (404 if answer is None else 200)
        if answer is not None:
            assert got.body.decode() == answer


async def test_the_endpoint_goes_before_parameters() -> None:
    hub = Hub()
    hub.route("/{page}")(lambda request: request.path_params["page"])
    async with running(hub):
        assert (await ask(hub, "GET", "/about")).body == b"about"
        assert (await ask(hub, "GET", "/ws")).status == 426
        await serves_others(hub)


@pytest.mark.parametrize(
    "path", ["/{", "/{}", "/a{b}", "/{b}a", "/{a}/{a}", "/{a b}", "/{1}", "/{a/b}", "/}a{"]
)
def test_a_parameter_that_cannot_be_one(path: str) -> None:
    with pytest.raises(ValidationError):
        Hub().route(path)


def test_two_names_of_a_parameter_are_one_path() -> None:
    hub = Hub()
    hub.route("/{a}")(lambda request: "a")
    with pytest.raises(ValidationError, match="served already"):
        hub.route("/{b}")
    with pytest.raises(ValidationError, match="with the parameters a"):
        hub.route("/{b}", methods=("POST",))(lambda request: "b")


# --- bodies ---


@pytest.mark.parametrize("step", [1, 7, 1_000])
async def test_a_body_comes_whole_however_it_is_sent(any_loop: str, step: int) -> None:
    hub = Hub()
    hub.route("/r", methods=("POST",))(lambda request: request.body[::-1])
    data = request("POST", "/r", bytes(range(64)))
    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as raw:
            for at in range(0, len(data), step):
                await raw.send_raw(data[at : at + step])
                await asyncio.sleep(0)
            await raw.send_raw(b"and more, that nobody looks at")
            assert Answer(await raw.read_all()).body == bytes(range(64))[::-1]


async def test_a_request_may_have_no_body_where_it_may_have_one() -> None:
    hub = Hub()
    hub.route("/r", methods=ANY)(lambda request: f"{request.method} {len(request.body)}")
    async with running(hub):
        for method in ANY:
            for body in (None, b""):
                assert (await ask(hub, method, "/r", body)).body == f"{method} 0".encode()


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", ("Content-Length: 65",), 413),
        ("POST", ("Content-Length: " + "9" * 400,), 413),
        ("POST", ("Transfer-Encoding: chunked",), 411),
        ("POST", ("Transfer-Encoding: chunked", "Content-Length: 3"), 400),
        ("POST", ("Content-Length: 3", "Content-Length: 3"), 400),
        ("POST", ("Content-Length: +3",), 400),
        ("POST", ("Content-Length: 3, 3",), 400),
        ("POST", ("Content-Length: 0x3",), 400),
        ("POST", ("Content-Length: ",), 400),
        ("GET", ("Content-Length: 3",), 400),
        ("GET", ("Transfer-Encoding: chunked",), 400),
    ],
)
async def test_a_body_that_is_not_read(method: str, headers: tuple[str, ...], status: int) -> None:
    hub = Hub(HubConfig(max_request_body=64))
    hub.route("/r", methods=("GET", "POST"))(lambda request: "called")
    async with running(hub):
        answer = Answer(await exchange(hub, request(method, "/r", headers=headers) + b"abc"))
        assert answer.status == status
        stats = hub.get_stats()
        assert stats.rejected["request"] == 1
        assert stats.limited["max_request_body"] == (status == 413)


async def test_the_longest_body_is_a_live_setting() -> None:
    hub = Hub(HubConfig(max_request_body=4))
    hub.route("/r", methods=("POST",))(lambda request: request.body)
    async with running(hub):
        assert (await ask(hub, "POST", "/r", b"1234")).body == b"1234"
        assert (await ask(hub, "POST", "/r", b"12345")).status == 413
        hub.set_config(HubConfig(max_request_body=5))
        assert (await ask(hub, "POST", "/r", b"12345")).body == b"12345"


async def test_a_peer_that_asks_first_is_told_to_go_on() -> None:
    hub = Hub()
    hub.route("/r", methods=("POST",))(lambda request: request.body)
    head = request("POST", "/r", headers=("Content-Length: 3", "Expect: 100-continue"))
    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as raw:
            await raw.send_raw(head)
            assert (await raw.read_response()) == b"HTTP/1.1 100 Continue"
            await raw.send_raw(b"abc")
            assert Answer(await raw.read_all()).body == b"abc"
        # One that does not wait needs no permission.
        assert Answer(await exchange(hub, head + b"abc")).body == b"abc"


async def test_a_slow_body_ends_with_the_handshakes_timeout(any_loop: str) -> None:
    hub = Hub(HubConfig(handshake_timeout=0.1))
    called: list[bytes] = []
    hub.route("/r", methods=("POST",))(lambda request: called.append(request.body) or "ok")  # type: ignore[func-returns-value]
    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as raw:
            await raw.send_raw(request("POST", "/r", headers=("Content-Length: 3",)) + b"ab")
            assert await raw.read_all() == b""
        assert hub.get_stats().limited["handshake_timeout"] == 1
        assert called == []


# --- async routes ---


async def test_an_async_route_answers_when_it_is_done(any_loop: str) -> None:
    hub = Hub(HubConfig(handshake_timeout=0.1))
    gate = asyncio.Event()

    @hub.route("/r/{name}", methods=("GET", "POST"))
    async def later(request: Request) -> dict[str, str]:
        await gate.wait()
        await asyncio.sleep(0.2)  # longer than the handshake's timeout
        return {"name": request.path_params["name"], "body": request.body.decode()}

    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as raw:
            await raw.send_raw(request("POST", "/r/a", b"x"))
            await eventually(lambda: len(hub._parts.tasks) == 1)
            await serves_others(hub)
            gate.set()
            assert Answer(await raw.read_all()).body == b'{"name":"a","body":"x"}'
        head = await ask(hub, "HEAD", "/r/b")
        assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, KeyboardInterrupt])
async def test_an_async_route_that_raises_is_a_500(error: type[BaseException]) -> None:
    hub = Hub()
    heard: list[BaseException] = []
    hub.on_error(lambda client, error: heard.append(error))

    @hub.route("/r")
    async def later(request: Request) -> str:
        await asyncio.sleep(0)
        raise error("a secret")

    @hub.route("/wrong")
    async def wrong(request: Request) -> object:
        return object()

    async with running(hub):
        answer = await ask(hub, "GET", "/r")
        assert (answer.status, b"secret" in answer.body) == (500, False)
        assert [type(each) for each in heard] == [error]
        assert (await ask(hub, "GET", "/wrong")).status == 500


async def test_an_async_route_that_ends_its_own_task_is_a_500() -> None:
    hub = Hub()

    @hub.route("/r")
    async def later(request: Request) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        return "never"

    async with running(hub):
        assert (await ask(hub, "GET", "/r")).status == 500


class Waiting:
    """An async route that waits for ever, and knows how many wait and were cancelled."""

    def __init__(self, hub: Hub) -> None:
        self.begun = self.cancelled = 0
        hub.route("/wait")(self.wait)

    async def wait(self, request: Request) -> str:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "never"


async def test_an_async_route_ends_when_its_peer_goes(any_loop: str) -> None:
    hub = Hub()
    waiting = Waiting(hub)
    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as raw:
            await raw.send_raw(request("GET", "/wait"))
            await eventually(lambda: waiting.begun == 1)
        await eventually(lambda: waiting.cancelled == 1)
        assert hub.get_stats().rejected["gone"] == 0  # its request was whole


async def test_a_stop_ends_async_routes(any_loop: str) -> None:
    hub = Hub()
    waiting = Waiting(hub)
    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as raw:
            await raw.send_raw(request("GET", "/wait"))
            await eventually(lambda: waiting.begun == 1)
            await hub.stop(30.0)  # which need not be waited for
            assert waiting.cancelled == 1
            assert len(hub._parts.tasks) == 0


async def test_an_async_route_may_stop_its_hub(any_loop: str) -> None:
    hub = Hub()

    @hub.route("/stop", methods=["POST"])
    async def stop(request: Request) -> str:
        await hub.stop(0.1)
        return "its connection is gone"

    await hub.start(port=0)
    with await RawClient.open(hub), await RawClient.open(hub, upgrade=False) as raw:
        await raw.send_raw(request("POST", "/stop", b""))
        assert await raw.read_all() == b""
        await eventually(lambda: hub.loop is None)
    assert_nothing_left(hub)


async def test_async_routes_count_among_the_handshakes() -> None:
    hub = Hub(HubConfig(max_handshakes=4))
    waiting = Waiting(hub)
    async with running(hub):
        raws = []
        for number in range(1, 7):
            raw = await RawClient.open(hub, upgrade=False)
            raws.append(raw)
            await raw.send_raw(request("GET", "/wait"))
            await eventually(lambda number=number: waiting.begun == number)  # type: ignore[misc]
        await eventually(lambda: waiting.cancelled >= 2)
        assert hub.get_stats().limited["max_handshakes"] == waiting.cancelled
        await serves_others(hub)
        for raw in raws:
            raw.close()
        await eventually(lambda: waiting.cancelled == 6)


async def test_async_routes_over_tls(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub()

    @hub.route("/r", methods=("POST",))
    async def later(request: Request) -> Response:
        await asyncio.sleep(0)
        return Response(201, request.body)

    async with running(hub, ssl=server_tls):
        url = f"https://127.0.0.1:{hub.port}/r"
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                url, data=b"x" * 50_000, ssl=client_tls, server_hostname="localhost"
            ) as got,
        ):
            answer = got.status, await got.read()
    assert answer == (201, b"x" * 50_000)
