"""A bus whose loop was closed or whose process was forked: the same hub goes on with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.redis_server import RedisServer
from tests.test_process import run
from wsc_fast.bus.local import find_program

# In processes of their own: the closed loop leaves transports that only the collector finds.
CLOSED_LOOP = """
import asyncio, sys, uvloop
from tests.support import join, named
from wsc_fast import Hub
from wsc_fast.bus.local import LocalBus
from wsc_fast.bus.memory import MemoryBus
from wsc_fast.bus.redis.bus import RedisBus
from wsc_fast.testing import running

loop, url, path = sys.argv[1:]
buses = [MemoryBus(), MemoryBus(path + "/kept.db"), RedisBus(url), LocalBus(path)]

async def abandoned():
    await hub.start("127.0.0.1", 0)
    raw, _ = await join(hub, "a")
    hub.join_room("a", "r")
    await hub.publish("r", "before")
    raw.close()

async def again():
    await hub.stop()  # of a hub whose loop was closed
    assert hub.get_rooms() == []
    async with running(hub):
        raw, _ = await join(hub, "a")
        hub.join_room("a", "r")
        hub.broadcast("to all")
        assert (await raw.recv()).payload == b"to all"
        await hub.publish("r", "after")
        assert (await raw.recv()).payload == b"after"
        raw.close()

factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
for bus in buses:
    hub = Hub(authenticate=named, bus=bus)
    hub.keep("r*")
    for main in (abandoned, abandoned, again):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(main(), 20))
print("ran again")
"""


def test_a_hub_whose_loop_was_closed_runs_again_with_the_same_bus(
    any_loop: str, tmp_path: Path
) -> None:
    with RedisServer(tmp_path) as server:
        assert run(CLOSED_LOOP, any_loop, server.url, str(tmp_path)) == (0, "ran again\n", "")


CLOSED_OVER_WORDS = """
import asyncio, sys
from tests.support import join, named
from wsc_fast import Hub, HubMessage, RedisBus

async def abandoned():
    await hub.start("127.0.0.1", 0)
    raw, _ = await join(hub, "a&user=ann")
    hub.send_to_user("bob", HubMessage(content="x"))
    hub._node.words_missed()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    raw.close()

async def again():
    await hub.start("127.0.0.1", 0)
    raw, _ = await join(hub, "a&user=ann")
    assert await hub.cluster.online(["ann"]) == {"ann"}
    raw.close()
    await hub.stop()

hub = Hub(authenticate=named, bus=RedisBus(sys.argv[1]))
loop = asyncio.new_event_loop()
loop.run_until_complete(abandoned())
loop.close()  # no task of it has ended
asyncio.run(again())
print("ran again")
"""


def test_a_hub_whose_loop_was_closed_over_words_runs_again(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        assert run(CLOSED_OVER_WORDS, server.url)[:2] == (0, "ran again\n")


FORK = """
import asyncio, gc, multiprocessing, os, sys, uvloop, warnings
from tests.support import join, named
from wsc_fast import Hub
from wsc_fast.bus.local import LocalBus
from wsc_fast.bus.redis.bus import RedisBus
from wsc_fast.bus.redis.link import Link
from wsc_fast.testing import TEXT

loop, url, *hows = sys.argv[1:]
hub = Hub(authenticate=named, bus=LocalBus(url) if url.startswith("/") else RedisBus(url))
hub.keep("r*")
hub.on_client_connected(lambda client: hub.join_room(client.id, "r"))

def in_child(how):
    links = [each for each in gc.get_objects() if type(each) is Link]
    assert len(links) == 2, links
    for link in links:
        if how == "write":
            link._transport.write(b"SET written-by-the-child 1\\r\\n")
        elif how == "abort":
            link._transport.abort()
    del links
    gc.collect()
    if how == "stop":
        asyncio.run(hub.stop())
    elif how == "again":
        async def again():
            await hub.start("127.0.0.1", 0)
            await hub.publish("r", "of the child")
            await hub.stop()
        asyncio.run(again())

def fork(how):
    if how == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=in_child, args=(how,))
        process.start()
        children.append(process.pid)
        return
    with warnings.catch_warnings(record=True):
        child = os.fork()
    if child:
        children.append(child)
        return
    try:
        in_child(how)
    except Exception as error:
        print(repr(error), file=sys.stderr, flush=True)
    os._exit(0)

children = []
hub.on_message_received(lambda client, how: fork(how))
parent = os.getpid()
hub.on_startup(lambda: os.getpid() == parent and fork(hows[0]))

async def main():
    await hub.start("127.0.0.1", 0)
    await asyncio.to_thread(os.waitpid, children.pop(), 0)
    raw, _ = await join(hub, "a")
    for how in hows:
        await raw.send(TEXT, how.encode())
        while not children:
            await asyncio.sleep(0.005)
        await asyncio.to_thread(os.waitpid, children.pop(), 0)
        if how == "again":
            assert (await raw.recv()).payload == b"of the child"
        async with asyncio.timeout(1):
            await hub.publish("r", how)
            assert (await raw.recv()).payload == how.encode()
    assert hub.bus.counters()["reconnects"] == 0
    raw.close()
    await hub.stop()

factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(asyncio.wait_for(main(), 40))
print("survived")
"""


def test_a_fork_leaves_the_bus_to_the_parent(any_loop: str, tmp_path: Path) -> None:
    hows = ("write", "abort", "stop", "again", "multiprocessing")
    with RedisServer(tmp_path) as server:
        assert run(FORK, any_loop, server.url, *hows) == (0, "survived\n", "")
        assert server.command("GET", "written-by-the-child") is None


@pytest.mark.skipif(find_program() is None, reason="no server program is installed")
def test_a_fork_leaves_the_server_of_a_local_bus_to_the_parent(
    any_loop: str, tmp_path: Path
) -> None:
    assert run(FORK, any_loop, str(tmp_path), "stop", "again") == (0, "survived\n", "")


FORKED_BEFORE_START = """
import asyncio, os, sys
from tests.support import join, named
from wsc_fast import Hub, RedisBus
from wsc_fast.messages import new_message_id
from wsc_fast.testing import eventually_async

hub = Hub(authenticate=named, bus=RedisBus(sys.argv[1]))
hub.presence()
new_message_id()  # makes many, for later

async def child(number):
    await hub.start("127.0.0.1", 0)
    raw, _ = await join(hub, f"u{number}")

    async def both_are_there():  # or were, within the grace
        return len(await hub.cluster.online(["u0", "u1"])) == 2

    await eventually_async(both_are_there)
    if number == 0:
        hub.broadcast("to all")
    assert (await asyncio.wait_for(raw.recv(), 10)).payload == b"to all"
    os.write(answers[1], new_message_id().encode() + b"\\n")
    raw.close()
    await hub.stop(1.0)

answers = os.pipe()
children = []
for number in range(2):
    pid = os.fork()
    if not pid:
        try:
            asyncio.run(asyncio.wait_for(child(number), 20))
        except BaseException as error:
            os.write(answers[1], repr(error).encode())
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
ids = os.read(answers[0], 1000).split()
print(len(set(ids)), [len(each) for each in ids])
"""


def test_processes_forked_from_one_before_the_start_are_hubs_of_their_own(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        assert run(FORKED_BEFORE_START, server.url) == (0, "2 [24, 24]\n", "")
