"""The identity of a client: one that has ended, ids that are taken, and a full hub."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import exchange, known, only_client
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Client,
    Hub,
    HubConfig,
    Identity,
    JWTAuthenticator,
    MemoryOfflineStore,
    Request,
    TokenAuthenticator,
)
from wsc_fast.testing import CLOSE, TEXT, RawClient, encode, eventually, running

ASYNC = pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])


def as_asked(request: Request) -> Identity:
    """`/ws?user=USER&id=CLIENT&in=SECONDS`, the last two being optional."""
    ends = request.query.get("in")
    return Identity(
        request.query["user"],
        request.query.get("id"),
        expires_at=None if ends is None else time.time() + float(ends),
    )


def authenticator(is_async: bool) -> Callable[[Request], Any]:
    async def later(request: Request) -> Identity:
        await asyncio.sleep(0)
        return as_asked(request)

    return later if is_async else as_asked


async def refused(hub: Hub, path: str, is_async: bool) -> str:
    """How a client is refused: the status of the answer, or the close code."""
    if not is_async:
        return (await exchange(hub, RawClient.request(hub, path))).split(b" ")[1].decode()
    # A message that comes with the upgrade is not heard either.
    with await RawClient.open(hub, path, tail=encode(TEXT, b"a command")) as raw:
        frame = await raw.recv()
        await raw.send(CLOSE, frame.payload)
        assert await raw.recv_rest() == []
        return f"{frame.code} {frame.payload[2:].decode()}"


# --- identities that have ended ---


@ASYNC
@pytest.mark.parametrize("ended", ["-3600", "-0.001", "-1e9"])
async def test_an_identity_that_has_ended_has_no_effect(
    any_loop: str, is_async: bool, ended: str
) -> None:
    told: list[object] = []
    hub = Hub(authenticate=authenticator(is_async))
    hub.enable_ack(ACKConfig(enable_offline_messages=True), store=MemoryOfflineStore())
    hub.on_message_received(lambda client, message: told.append(message))
    hub.on_client_disconnected(lambda client: told.append(client.id))
    async with running(hub):
        await hub.send_ack_message_to_user("ann", ACKMessage(content="secret")).accepted()
        bob = await RawClient.open(hub, "/ws?user=bob&id=b")
        await eventually(lambda: hub.get_connected_clients() == 1)
        hub.on_client_connected(lambda client: told.append(client.id))
        expected = "4401 authentication expired" if is_async else "401"
        assert await refused(hub, f"/ws?user=ann&in={ended}", is_async) == expected
        # The connection that has its id is not replaced either.
        assert await refused(hub, f"/ws?user=bob&id=b&in={ended}", is_async) == expected
        assert only_client(hub).id == "b"
        assert told == []
        await eventually(lambda: hub.get_stats().connections == 1)
        stats = hub.get_stats()
        assert (stats.rejected["auth"], stats.replaced_clients) == (2, 0)
        assert not hub._parts.admission._expiring
        bob.close()


async def test_an_identity_of_claims_that_has_ended_is_refused() -> None:
    jwt = pytest.importorskip("jwt")
    key = "k" * 32
    hub = Hub(
        authenticate=JWTAuthenticator(
            key,
            algorithms=["HS256"],
            query="token",
            identity=lambda claims: Identity(claims["sub"], expires_at=claims["session_ends"]),
        )
    )
    async with running(hub):
        for session_ends, status in ((-1, b"401"), (3600, b"101")):
            claims = {
                "sub": "ann",
                "exp": time.time() + 3600,
                "session_ends": time.time() + session_ends,
            }
            token = jwt.encode(claims, key, algorithm="HS256")
            with await RawClient.open(hub, upgrade=False) as raw:
                await raw.send_raw(raw.request(hub, f"/ws?token={token}"))
                assert (await raw.read_response()).split(b" ")[1] == status


async def test_a_token_within_the_leeway_is_let_in() -> None:
    jwt = pytest.importorskip("jwt")
    key = "k" * 32
    hub = Hub(authenticate=JWTAuthenticator(key, algorithms=["HS256"], query="token", leeway=60))
    async with running(hub):
        token = jwt.encode({"sub": "ann", "exp": time.time() - 5}, key, algorithm="HS256")
        with await RawClient.open(hub, f"/ws?token={token}"):
            await eventually(lambda: hub.get_connected_clients() == 1)


async def test_a_token_whose_identity_has_ended_is_refused() -> None:
    hub = Hub(
        authenticate=TokenAuthenticator(
            {"t" * 32: Identity("ann", expires_at=time.time() - 1)}, query="token"
        )
    )
    async with running(hub):
        assert await refused(hub, "/ws?token=" + "t" * 32, False) == "401"


async def test_an_identity_that_ends_while_it_is_found_out_is_refused() -> None:
    go = asyncio.Event()

    async def authenticate(request: Request) -> Identity:
        ends = time.time() + 0.05
        await go.wait()
        return Identity("ann", expires_at=ends)

    hub = Hub(authenticate=authenticate)
    async with running(hub):
        refusal = asyncio.create_task(refused(hub, "/ws", True))
        await eventually(lambda: hub.get_stats().connections == 1)
        begin = time.time()
        await eventually(lambda: time.time() > begin + 0.05)
        go.set()
        assert await refusal == "4401 authentication expired"


# --- ids that are taken ---


@ASYNC
async def test_nobody_replaces_the_connection_of_another_user(
    any_loop: str, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(authenticate=authenticator(is_async))
    async with running(hub):
        ann = await RawClient.open(hub, "/ws?user=a%2Fb&id=a%2Fb%2Fc")
        await eventually(lambda: hub.get_connected_clients() == 1)
        expected = "4401 authentication failed" if is_async else "401"
        assert await refused(hub, "/ws?user=a&id=a%2Fb%2Fc", is_async) == expected
        hub.send_to_client("a/b/c", "for a/b")
        assert (await ann.recv()).payload == b"for a/b"
        stats = hub.get_stats()
        assert (stats.rejected["auth"], stats.replaced_clients) == (1, 0)
        assert "'a/b/c' of user 'a/b' is refused to user 'a'" in caplog.text
        # The user's own replaces it.
        again = await RawClient.open(hub, "/ws?user=a%2Fb&id=a%2Fb%2Fc")
        assert (await ann.recv()).code == 4409
        assert hub.get_stats().replaced_clients == 1
        for raw in (ann, again):
            raw.close()


# --- a full hub ---


async def full_of_ghosts(hub: Hub, count: int) -> list[RawClient]:
    """Clients that neither read nor write again."""
    ghosts = [await RawClient.open(hub, f"/ws?user=u{n}&id=d{n}") for n in range(count)]
    await eventually(lambda: hub.get_connected_clients() == count)
    return ghosts


@ASYNC
async def test_a_client_that_comes_back_to_a_full_hub_replaces_its_own_connection(
    any_loop: str, is_async: bool
) -> None:
    hub = Hub(
        HubConfig(max_connections=30, close_timeout=60.0), authenticate=authenticator(is_async)
    )
    gone: list[str] = []
    hub.on_client_disconnected(lambda client: gone.append(client.id))
    async with running(hub):
        ghosts = await full_of_ghosts(hub, 30)
        back = []
        for n in range(30):
            back.append(await RawClient.open(hub, f"/ws?user=u{n}&id=d{n}"))
            # The ghost is not waited for: its close frame is sent, and it ends.
            await eventually(lambda n=n: gone == [f"d{m}" for m in range(n + 1)])  # type: ignore[misc]
        stats = hub.get_stats()
        assert (stats.connections, stats.connected_clients, stats.replaced_clients) == (30, 30, 30)
        assert stats.rejected["full"] == 0
        assert (await ghosts[0].recv()).code == 4409
        assert hub.broadcast("x") == 30
        for raw in back:
            assert (await raw.recv()).payload == b"x"
        for raw in (*ghosts, *back):
            raw.close()


@ASYNC
@pytest.mark.parametrize(
    "who",
    [
        "user=stranger",  # without an id
        "user=stranger&id=new",  # with one that nobody has
        "user=stranger&id=d0",  # with another user's
        "user=u0&id=other",  # the same user's other device
    ],
)
async def test_a_full_hub_lets_nobody_else_in(is_async: bool, who: str) -> None:
    hub = Hub(HubConfig(max_connections=3), authenticate=authenticator(is_async))
    connected: list[str] = []
    async with running(hub):
        ghosts = await full_of_ghosts(hub, 3)
        hub.on_client_connected(lambda client: connected.append(client.id))
        for _ in range(20):
            if who.endswith("d0"):
                expected = "4401 authentication failed" if is_async else "401"
            else:
                expected = "1013 too many connections" if is_async else "503"
            assert await refused(hub, f"/ws?{who}", is_async) == expected
        assert connected == []
        assert hub.get_connected_clients() == 3
        stats = hub.get_stats()
        assert stats.rejected["full"] == stats.limited["max_connections"]
        assert stats.rejected["full"] == (0 if who.endswith("d0") else 20)
        await eventually(lambda: hub.get_stats().connections == 3)
        assert not hub._parts.admission._returning
        for raw in ghosts:
            raw.close()


@pytest.mark.parametrize("names", [False, True])
async def test_a_full_hub_asks_nobody_where_no_client_can_be_replaced(names: bool) -> None:
    asked: list[str] = []

    def authenticate(request: Request) -> Identity:
        asked.append(request.query["user"])
        return Identity(request.query["user"], request.query.get("id") if names else None)

    hub = Hub(HubConfig(max_connections=2), authenticate=authenticate)
    async with running(hub):
        ghosts = await full_of_ghosts(hub, 2)
        for _ in range(5):
            assert await refused(hub, "/ws?user=x", False) == "503"
        assert len(asked) == (2 + 5 if names else 2)
        for raw in ghosts:
            raw.close()


async def test_a_full_hub_finds_out_about_few_at_once() -> None:
    go = asyncio.Event()
    asked: list[str] = []

    async def authenticate(request: Request) -> Identity:
        asked.append(request.query["user"])
        if len(asked) > 2:
            await go.wait()
        return as_asked(request)

    hub = Hub(HubConfig(max_connections=2), authenticate=authenticate)
    async with running(hub):
        ghosts = await full_of_ghosts(hub, 2)
        waiting = [await RawClient.open(hub, "/ws?user=u0&id=d0") for _ in range(10)]
        await eventually(lambda: len(asked) == 12)
        for _ in range(5):
            assert await refused(hub, "/ws?user=u1&id=d1", False) == "503"
        assert len(asked) == 12
        # A connection that leaves makes room for the next.
        waiting.pop().close()
        await eventually(lambda: len(hub._parts.admission._returning) == 9)
        waiting.append(await RawClient.open(hub, "/ws?user=u1&id=d1"))
        await eventually(lambda: len(asked) == 13)
        go.set()
        await eventually(lambda: hub.get_stats().connections == 2)
        assert sorted(hub.get_connected_client_ids()) == ["d0", "d1"]
        assert not hub._parts.admission._returning
        for raw in (*ghosts, *waiting):
            raw.close()


async def test_a_full_hub_still_has_its_limits_on_addresses_and_origins() -> None:
    hub = Hub(HubConfig(max_connections=2, connection_rate_per_address=2.0), authenticate=as_asked)
    async with running(hub):
        ghosts = await full_of_ghosts(hub, 2)
        assert await refused(hub, "/ws?user=u0&id=d0", False) == "429"
        for raw in ghosts:
            raw.close()


async def test_a_smaller_bound_sends_nobody_away_but_is_not_exceeded_again() -> None:
    hub = Hub(HubConfig(max_connections=3), authenticate=as_asked)
    async with running(hub):
        ghosts = await full_of_ghosts(hub, 3)
        hub.set_config(HubConfig(max_connections=1))
        back = await RawClient.open(hub, "/ws?user=u0&id=d0")
        await eventually(lambda: hub.get_stats().connections == 3)
        assert await refused(hub, "/ws?user=new&id=new", False) == "503"
        for raw in (*ghosts, back):
            raw.close()


async def test_in_a_hub_with_room_a_replaced_client_has_its_time_to_answer() -> None:
    hub = Hub(authenticate=as_asked)
    codes: list[int | None] = []

    @hub.on_client_disconnected
    def disconnected(client: Client) -> None:
        codes.append(client.close_code)

    async with running(hub):
        one = await RawClient.open(hub, "/ws?user=ann&id=a")
        await eventually(lambda: known(hub, "a"))
        two = await RawClient.open(hub, "/ws?user=ann&id=a")
        frame = await one.recv()
        assert frame.code == 4409
        assert hub.get_stats().connections == 2
        await one.send(CLOSE, frame.payload)
        await eventually(lambda: codes == [4409])
        for raw in (one, two):
            raw.close()
