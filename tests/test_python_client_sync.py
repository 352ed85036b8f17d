"""The client in Python for scripts and threads, and in a process that was forked."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from wsc_client import ClosedError, Message, OptionError, RefusedError, StateChange
from wsc_client.sync import Client

from tests.support import ROOT, named
from wsc_fast import ACKConfig, ACKMessage, Hub, RequestError
from wsc_fast import Client as HubClient
from wsc_fast.testing import wait_until


class Served:
    """A hub that echoes and answers, on a loop in a thread."""

    def __init__(self) -> None:
        self.hub = Hub(authenticate=named)
        self.asked: list[str] = []  # rooms that a client has asked to join
        self.hub.keep("chat:*")
        self.hub.on_join_request(self._let_join)
        self.hub.on_message_received(lambda client, message: client.send(message))
        self.hub.on_request(self._answer)
        self.hub.enable_ack(ACKConfig(retry_interval=0.2))
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)

    def _let_join(self, client: HubClient, room_id: str) -> bool:
        self.asked.append(room_id)
        return room_id.startswith("chat:")

    @staticmethod
    def _answer(client: HubClient, data: Any) -> Any:
        if data == "nothing":
            raise RequestError("no-such", "there is nothing")
        return {"asked": data}

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.hub.port}/ws?id=a"


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    served.thread.start()
    served.run(served.hub.start("127.0.0.1", 0))
    yield served
    served.run(served.hub.stop())
    served.loop.call_soon_threadsafe(served.loop.stop)
    served.thread.join()
    served.loop.close()


def test_a_script_asks_sends_and_receives(served: Served) -> None:
    with Client(served.url) as client:
        assert client.request({"get": 1}) == {"asked": {"get": 1}}
        with pytest.raises(RefusedError, match="no-such"):
            client.request("nothing")
        client.send({"a": 1})
        client.send(b"\x00")
        assert client.receive(10).data == {"a": 1}
        assert client.receive(10).data == b"\x00"
        with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
            client.receive(0.01)
        for text in ("one", "two", "three"):
            client.send(text)
        assert client.receive(10).data == "one"
        for message in client:
            assert message.data == "two"
            break
        assert client.receive(10).data == "three"
        assert client.stats().connections == 1
    assert client.state == "closed"
    with pytest.raises(ClosedError):
        client.send("late")
    client.close()
    assert not [each for each in threading.enumerate() if each.name == "wsc_client"]


def test_rooms_are_received_from_by_themselves(served: Served) -> None:
    with Client(served.url) as client:
        room = client.room("chat:a")
        assert client.room("chat:a") is room
        client.request("the hub has answered the join before this")
        assert room.joined
        served.run(served.hub.publish("chat:a", "in the room"))
        assert room.receive(10).room == "chat:a"
        room.leave()
        with pytest.raises(ClosedError):
            room.receive(10)
        assert client.room("chat:a") is not room


def test_a_room_that_is_left_at_once_is_not_joined(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsc_client.sync.JOIN_DELAY", 60.0)  # however slow this thread is
    with Client(served.url) as client:
        client.room("chat:left").leave()
        room = client.room("chat:a")
        client.request("the join goes out before this")
        assert served.asked == ["chat:a"]
        assert room.joined
        room.leave()
    with Client(served.url) as client:
        client.room("chat:b")
        client.send("the join goes out before this, too")
        wait_until(lambda: served.asked == ["chat:a", "chat:b"])


def test_a_room_is_joined_though_the_thread_sends_nothing(served: Served) -> None:
    with Client(served.url) as client:
        room = client.room("chat:a")
        wait_until(lambda: room.joined)


def test_a_message_that_was_received_is_acknowledged_at_the_close(served: Served) -> None:
    with Client(served.url) as client:
        client.request(1)

        async def send() -> Any:
            return served.hub.send_ack_message_to_user("a", ACKMessage(content="once"))

        pending = served.run(send())
        assert client.receive(10).data["content"] == "once"

    async def acknowledged() -> None:
        await pending

    served.run(acknowledged())


def test_listeners_run_in_worker_threads_and_may_call_the_client(served: Served) -> None:
    heard: list[Any] = []
    done = threading.Event()
    with Client(served.url) as client:

        def listen(message: Message) -> None:
            heard.append((message.data, client.request(message.data)["asked"]))
            if len(heard) == 3:
                done.set()

        end = client.on(Message, listen)
        for number in range(3):
            client.send(number)
        assert done.wait(10)
        assert heard == [(0, 0), (1, 1), (2, 2)]
        end()
        with pytest.raises(TypeError, match="expected a plain one"):
            client.on(Message, asyncio.sleep)


def test_a_listener_may_close_the_client(served: Served) -> None:
    client = Client(served.url)
    closed = threading.Event()

    def close(message: Message) -> None:
        client.close()
        closed.set()

    client.connect()
    client.opened(10)
    client.on(Message, close)
    client.send("now")
    assert closed.wait(10)
    for thread in threading.enumerate():
        if thread.name == "wsc_client":
            thread.join(10)
    assert client.state == "closed"


def test_several_threads_share_a_client(served: Served) -> None:
    answers: list[Any] = []
    with Client(served.url) as client:

        def ask(number: int) -> None:
            for each in range(20):
                answers.append(client.request([number, each])["asked"])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(answers) == [[number, each] for number in range(4) for each in range(20)]


def test_a_wait_is_bounded_beside_another_reader(served: Served) -> None:
    heard: list[Any] = []
    with Client(served.url) as client:
        reading = threading.Event()

        def read() -> None:
            for message in client:
                heard.append(message.data)
                reading.set()

        reader = threading.Thread(target=read)
        reader.start()
        client.send("first")
        assert reading.wait(10)
        before = time.monotonic()
        for timeout in (0.2, 0, -1):
            with pytest.raises(TimeoutError, match=f"no message came within {timeout} s"):
                client.receive(timeout)
        assert time.monotonic() - before < 5
        client.send("second")
    reader.join(10)
    assert not reader.is_alive()
    assert heard[0] == "first"


def test_the_event_loop_of_the_caller_stays(served: Served) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        with Client(served.url):
            assert asyncio.get_event_loop() is loop
        assert asyncio.get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_a_close_does_not_wait_for_a_listener_that_blocks(served: Served) -> None:
    called, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    client = Client(served.url, close_timeout=0.2)

    def block(message: Message) -> None:
        called.set()
        go_on.wait()
        with pytest.raises(ClosedError):
            client.send("late")
        ended.set()

    client.connect()
    client.opened(10)
    client.on(Message, block)
    client.send("x")
    assert called.wait(10)
    try:
        before = time.monotonic()
        client.close()
        assert time.monotonic() - before < 5
        assert client.state == "closed"
    finally:
        go_on.set()
    assert ended.wait(10)


def test_a_close_waits_for_a_listener_that_is_about_to_return(served: Served) -> None:
    called, returned = threading.Event(), threading.Event()
    client = Client(served.url)

    def listen(message: Message) -> None:
        called.set()
        # Returns once the close is under way.
        while client.state == "open":
            time.sleep(0.01)
        returned.set()

    client.connect()
    client.opened(10)
    client.on(Message, listen)
    client.send("x")
    assert called.wait(10)
    client.close()
    assert returned.is_set()


def test_get_token_may_block(served: Served) -> None:
    names: list[str] = []

    def get_token() -> str:
        names.append(threading.current_thread().name)
        return "a-token"

    with Client(served.url, get_token=get_token, token_query="token") as client:
        client.request(1)
    assert names
    assert "wsc_client" not in names


def test_events_come_in_one_order(served: Served) -> None:
    with Client(served.url) as client:
        events = client.events()
        client.send("x")
        first = next(iter(events))
        assert first == Message("x")


def test_wrong_options_are_found_at_once_and_nobody_is_waited_for() -> None:
    with pytest.raises(OptionError):
        Client("ws://hub.test/", queue_bytes=-1)
    client = Client("ws://127.0.0.1:1/ws", min_delay=0.05)
    changes: list[StateChange] = []
    client.on(StateChange, changes.append)
    client.connect()
    with pytest.raises(TimeoutError):
        client.opened(0.1)
    with pytest.raises(TimeoutError):
        client.send("x", timeout=0.1)
    assert client.stats().queued_bytes == 0
    client.close()


FORKED = """
import os, signal, sys, threading, warnings
warnings.simplefilter("ignore")  # of a fork with threads, which is what this is about
from wsc_client import ClientError
from wsc_client.sync import Client
with Client(sys.argv[1]) as client:
    assert client.request(1) == {"asked": 1}
    # A thread that receives holds a lock at the moment of the fork.
    threading.Thread(target=lambda: list(client), daemon=True).start()
    while not client._lock.locked():
        pass
    child = os.fork()
    if not child:
        signal.alarm(20)
        for call in (client.request, client.receive):
            try:
                call(2)
            except ClientError as error:
                print(error)
        client.close()
        with Client(sys.argv[1] + "b") as other:
            print("the child asks", other.request(3))
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print("the parent asks", client.request(4))
"""


def test_the_child_of_a_fork_is_told_and_makes_its_own(served: Served) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "clients/python/src")])
    done = subprocess.run(
        [sys.executable, "-c", FORKED, served.url],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    for line in said[:2]:
        assert line.startswith("this client is of process ")
        assert line.endswith("make one in this process, which was forked")
    assert said[2:] == ["the child asks {'asked': 3}", "the parent asks {'asked': 4}"]


def test_ctrl_c_ends_a_wait(served: Served) -> None:
    code = "import sys\nfrom wsc_client.sync import Client\n"
    code += (
        "with Client(sys.argv[1]) as client:\n    print('open', flush=True)\n    client.receive()"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "clients/python/src")])
    process = subprocess.Popen(
        [sys.executable, "-c", code, served.url],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        process.send_signal(2)
        _, errors = process.communicate(timeout=20)
        assert "KeyboardInterrupt" in errors
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
