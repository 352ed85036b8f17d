"""The names of hubs: the part for operators, what it may be, and where it is seen."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.redis_server import RedisServer
from tests.support import join, named
from wsc_fast import ConfigError, Hub, HubConfig, RedisBus
from wsc_fast.cluster.naming import host_label
from wsc_fast.testing import RawClient, eventually_async

LONGEST = "a-Z_9" + "x" * 58


def name_of(hub: Hub) -> str:
    return hub._node.name


def test_a_name_has_a_readable_part_and_a_random_one() -> None:
    names = [name_of(Hub(HubConfig(node_name="web-1"))) for _ in range(2)]
    assert all(re.fullmatch(r"web-1-[0-9A-Za-z_-]{12}", each) for each in names)
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("host", "label"),
    [
        ("web-1", "web-1"),
        ("web-1.example.org", "web-1"),
        ("büro 7", "b-ro-7"),
        ("x" * 64, "x" * 63),
        ("", "hub"),
    ],
)
def test_without_a_name_it_is_the_host(
    monkeypatch: pytest.MonkeyPatch, host: str, label: str
) -> None:
    uname = os.uname_result(("Linux", host, "6", "1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: uname)
    assert host_label() == label
    assert name_of(Hub()).startswith(f"{label}-")


@pytest.mark.parametrize("name", ["a.b", "a b", "ü", "x" * 64, "a\n", "a/b", 1, None, b"a", ["a"]])
def test_a_name_that_cannot_stand_on_the_bus_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        HubConfig(node_name=name)
    assert str(caught.value) == (
        f"HubConfig.node_name is {name!r}, expected at most 63 of the characters "
        "A-Z, a-z, 0-9, - and _"
    )


def test_a_name_comes_from_the_environment() -> None:
    assert HubConfig.from_env({"WSC_NODE_NAME": " web-1 "}).node_name == "web-1"
    with pytest.raises(ConfigError, match=r"^WSC_NODE_NAME is 'web\.1', expected at most 63"):
        HubConfig.from_env({"WSC_NODE_NAME": "web.1"})


def test_a_hub_has_its_name_until_another_is_set() -> None:
    hub = Hub(HubConfig(node_name="one"))
    first = name_of(hub)
    hub.set_config(HubConfig(node_name="one", max_rooms=5))
    assert name_of(hub) == first
    hub.set_config(HubConfig(node_name="two"))
    assert name_of(hub).startswith("two-")


async def test_a_running_hub_keeps_its_name() -> None:
    hub = Hub(HubConfig(node_name="one"))
    await hub.start("127.0.0.1", 0)
    try:
        with pytest.raises(ConfigError, match="node_name cannot change while the hub runs"):
            hub.set_config(HubConfig(node_name="two"))
        assert name_of(hub).startswith("one-")
    finally:
        await hub.stop(0.1)


async def test_hubs_with_the_longest_name_find_each_other(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with asyncio.timeout(60), AsyncExitStack() as stack:
            hubs = []
            for _ in range(2):
                config = HubConfig(node_name=LONGEST, close_timeout=0.1)
                hub = Hub(config, authenticate=named, bus=RedisBus(server.url, refresh=0.2))
                await hub.start("127.0.0.1", 0)
                stack.push_async_callback(hub.stop, 1.0)
                hubs.append(hub)
            one, two = hubs

            async def are_there() -> bool:
                nodes = await one.cluster.nodes()
                return {each.name for each in nodes} == {name_of(one), name_of(two)}

            await eventually_async(are_there)
            raw, _ = await join(two, "c&user=ann")
            stack.callback(raw.close)

            async def has_reached_her() -> bool:
                return await one.cluster.disconnect_user("ann", 4403, "blocked") == 1

            await eventually_async(has_reached_her)


async def test_ids_of_clients_begin_with_the_name(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with asyncio.timeout(60), AsyncExitStack() as stack:
            hubs = []
            for _ in range(2):
                hub = Hub(HubConfig(node_name=LONGEST, close_timeout=0.1), bus=RedisBus(server.url))
                await hub.start("127.0.0.1", 0)
                stack.push_async_callback(hub.stop, 1.0)
                hubs.append(hub)
            one, two = hubs
            raw = await RawClient.open(two)
            stack.callback(raw.close)
            (client_id,) = two.get_connected_client_ids()
            assert client_id.startswith(f"{name_of(two)}.")
            one.send_to_client(client_id, "text")
            assert (await raw.recv()).payload == b"text"
