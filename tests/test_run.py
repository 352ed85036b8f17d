"""`run` changes signals and open files of its process, and gives all of it back."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator

import psutil
import pytest
import websockets
from websockets.sync.client import connect

from tests.script import ANNOUNCE, Script
from wsc_fast.runtime.process import OpenFiles, SignalHandlers
from wsc_fast.testing import wait_until

PREAMBLE = (
    ANNOUNCE
    + """
    import asyncio, os, resource, signal, subprocess, sys
    import uvloop
    from wsc_fast import ACKConfig, Hub, HubConfig, MemoryOfflineStore
    # As from a terminal, though the tests may run in the background, where SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
"""
)

WAIT_FOR_A_SIGNAL = """
    try:
        print("cleaning up", flush=True)
        threading.Event().wait(60)
    except KeyboardInterrupt:
        print("KeyboardInterrupt", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("again", [False, True])
def test_a_signal_after_the_run_does_what_it_did_before(
    number: signal.Signals, again: bool
) -> None:
    program = PREAMBLE + "\n    hub = Hub()\n" + "\n    announced(hub).run(port=0)\n" * (1 + again)
    with Script(program + WAIT_FOR_A_SIGNAL) as script:
        for _ in range(1 + again):
            script.port()
            script.process.send_signal(number)
        assert script.line() == "cleaning up"
        script.process.send_signal(number)
        code, out, err = script.finish()
    if number is signal.SIGINT:
        assert (code, out, err) == (0, "KeyboardInterrupt\n", "")
    else:
        assert (code, out, err) == (-signal.SIGTERM, "", "")


HANDLERS = (
    PREAMBLE
    + """
    def mine(number, frame):
        print("mine", signal.Signals(number).name, flush=True)

    def other(number, frame):
        pass

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1)
    for number in numbers:
        signal.signal(number, mine)
    before = [signal.getsignal(number) for number in numbers]
    how = sys.argv[1]
    hub = Hub()

    @hub.on_message_received
    def received(client, message):
        os.kill(os.getpid(), signal.SIGUSR1)
        if how == "set":
            signal.signal(signal.SIGTERM, other)
        elif how == "loop":
            hub.loop.add_signal_handler(signal.SIGTERM, other)
        elif how == "exception":
            hub._life._stopped.set_exception(ValueError("mine"))
            return
        asyncio.ensure_future(hub.stop())

    options = {}
    if len(sys.argv) > 2:
        options = {"certfile": sys.argv[2]}
    try:
        announced(hub).run(port=0, **options)
    except (ValueError, SystemExit) as error:
        print(repr(error))
    after = [signal.getsignal(number) for number in numbers]
    if how == "set":
        assert after[1] is other
        after[1] = mine
    assert after == before, after
    for number in numbers[: 1 if how == "set" else 5]:
        os.kill(os.getpid(), number)
    print(signal.set_wakeup_fd(-1))
"""
)


@pytest.mark.parametrize("how", ["stop", "set", "loop", "exception"])
def test_handlers_of_the_application_are_back_after_the_run(how: str) -> None:
    # But for one that it has set meanwhile. A loop's handlers have ended with it.
    with Script(HANDLERS, how) as script:
        port = script.port()
        with connect(f"ws://127.0.0.1:{port}/ws") as ws:
            ws.send("end")
            with contextlib.suppress(websockets.ConnectionClosed):
                ws.recv(timeout=10)
        code, out, err = script.finish()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines.pop() == "-1"  # nor is the loop told of signals any more
    assert lines.pop(0) == "mine SIGUSR1"  # which are not the hub's, during the run too
    if how == "exception":
        assert lines.pop(0) == "ValueError('mine')"
    names = ["SIGINT"] if how == "set" else ["SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE", "SIGUSR1"]
    assert lines == [f"mine {name}" for name in names]


def test_handlers_are_back_after_a_start_that_failed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        program = (
            PREAMBLE
            + f"""
    try:
        Hub().run(port={port})
    except SystemExit:
        pass
"""
        )
        with Script(program + WAIT_FOR_A_SIGNAL) as script:
            assert script.line() == "cleaning up"
            script.process.send_signal(signal.SIGTERM)
            assert script.finish() == (-signal.SIGTERM, "", "")


def test_a_run_that_is_refused_leaves_the_hub_that_runs_alone() -> None:
    program = (
        PREAMBLE
        + """
    hub = Hub()
    thread = threading.Thread(target=hub.run, kwargs={"port": 0})
    thread.start()
    announce(hub)
    try:
        hub.run(port=0)
    except HubStateError as error:
        print(error, flush=True)
    sys.stdin.read()
    asyncio.run(hub.stop())
    thread.join()
"""
    )
    with Script(program, stdin=True) as script:
        port = script.port()
        assert script.line() == "the hub runs already"
        with connect(f"ws://127.0.0.1:{port}/ws"):
            assert script.process.stdin is not None
            script.process.stdin.close()
            script.process.stdin = None
            assert script.finish() == (0, "", "")


# A store that takes its time, as one behind a slow line does.
SLOW_STORE = (
    PREAMBLE
    + """
    class SlowStore(MemoryOfflineStore):
        async def open(self):
            print("opening", flush=True)
            await asyncio.sleep(float(sys.argv[1]))
            await super().open()

    hub = Hub(authenticate=lambda request: "user")
    hub.enable_ack(ACKConfig(enable_offline_messages=True), store=SlowStore())
    hub.run(port=0)
    print("returned", hub, flush=True)

    async def again():
        await hub.start(port=0)
        await hub.stop()

    sys.argv[1] = "0"
    uvloop.run(again())
"""
)


@pytest.mark.parametrize(
    "numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]]
)
def test_a_signal_while_the_store_opens_ends_the_start(numbers: list[signal.Signals]) -> None:
    with Script(SLOW_STORE, "60") as script:
        assert script.line() == "opening"
        begin = time.monotonic()
        # Stopped meanwhile, it gets both of two in one turn of its loop.
        for number in (signal.SIGSTOP, *numbers, signal.SIGCONT):
            script.process.send_signal(number)
        assert script.line() == "returned <Hub stopped, 0 clients>"
        assert time.monotonic() - begin < 5.0
        assert script.finish() == (0, "opening\n", "")


def test_a_signal_while_an_executor_thread_holds_up_the_end() -> None:
    program = (
        PREAMBLE
        + """
    hub = Hub()

    @hub.on_message_received
    def received(client, message):
        hub.loop.run_in_executor(None, time.sleep, 30)
        os.kill(os.getpid(), signal.SIGTERM)

    announced(hub).run(port=0)
"""
    )
    with Script(program) as script:
        with connect(f"ws://127.0.0.1:{script.port()}/ws") as ws:
            ws.send("end")
            with pytest.raises(websockets.ConnectionClosed):
                ws.recv(timeout=10)
        # The hub has ended; what is left is the application's, and the signal ends it as ever.
        deadline = time.monotonic() + 10
        while script.process.poll() is None:
            assert time.monotonic() < deadline
            script.process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        assert script.process.returncode == -signal.SIGTERM


FORKED = (
    PREAMBLE
    + """
    hub = Hub()

    @hub.on_message_received
    def received(client, message):
        if message == "fork":
            ready, begun = os.pipe()
            child = os.fork()
            if not child:
                os.write(begun, b"x")
                threading.Event().wait(30)
                os._exit(0)
            os.read(ready, 1)  # Python forgets a signal that comes in the moment of the fork
            client.send(str(child))
        else:
            client.send("echo")

    announced(hub).run(port=0)
"""
)


def test_a_signal_to_a_forked_child_ends_the_child_and_not_the_hub() -> None:
    with Script(FORKED) as script, connect(f"ws://127.0.0.1:{script.port()}/ws") as ws:
        ws.send("fork")
        child = int(ws.recv())
        os.kill(child, signal.SIGTERM)
        wait_until(lambda: psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
        ws.send("x")
        assert ws.recv() == "echo"
        script.process.send_signal(signal.SIGTERM)
        with pytest.raises(websockets.ConnectionClosed):
            ws.recv(timeout=10)
        assert script.finish()[0] == 0


FILES = (
    PREAMBLE
    + """
    import msgspec

    low, hard = 512, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    most = int(sys.argv[1])
    hub = Hub(HubConfig(max_connections=most, max_handshakes=10))

    @hub.on_message_received
    def received(client, message):
        if message == "more":
            hub.set_config(msgspec.structs.replace(hub.config, max_connections=2 * most))
        elif message == "less":
            hub.set_config(msgspec.structs.replace(hub.config, max_connections=1))
        elif message == "set":
            resource.setrlimit(resource.RLIMIT_NOFILE, (700, hard))
        client.send(str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))

    announced(hub).run(port=0)
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    announced(hub).run(port=0)
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
)


def ask(ws: object, message: str) -> int:
    ws.send(message)  # type: ignore[attr-defined]
    return int(ws.recv())  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["run", "set"])
def test_the_limit_of_open_files_is_what_the_run_needs_and_then_as_it_was(how: str) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with Script(FILES, "1000") as script:
        with connect(f"ws://127.0.0.1:{script.port()}/ws") as ws:
            assert ask(ws, "") == min(hard, 1_000 + 10 + 1_024)
            assert ask(ws, "more") == min(hard, 2_000 + 10 + 1_024)
            assert ask(ws, "less") == min(hard, 2_000 + 10 + 1_024)
            if how == "set":
                assert ask(ws, "set") == 700
            script.process.send_signal(signal.SIGTERM)
            with pytest.raises(websockets.ConnectionClosed):
                ws.recv(timeout=10)
        # A limit that the application has set meanwhile stays.
        assert script.line() == ("700" if how == "set" else "512")
        script.port()
        script.process.send_signal(signal.SIGTERM)
        assert script.finish() == (0, "512\n", "")


def test_the_limit_of_open_files_is_never_more_than_the_hard_one() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with Script(FILES, "10000000") as script:
        with connect(f"ws://127.0.0.1:{script.port()}/ws") as ws:
            assert ask(ws, "") <= hard
        script.process.send_signal(signal.SIGTERM)
        assert script.line() == "512"


@pytest.fixture
def low_limit() -> Iterator[int]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
    yield 600
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_of_open_files_goes_down_with_the_last_of_two_runs(low_limit: int) -> None:
    def now() -> int:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    with OpenFiles() as one:
        one.raise_to(700)
        with OpenFiles() as two:
            two.raise_to(650)
            assert now() == 700
            two.raise_to(800)
        assert now() == 800
    assert now() == low_limit
    with OpenFiles() as three:
        three.raise_to(low_limit - 1)
        assert now() == low_limit
    assert now() == low_limit


COLLECTOR = (
    PREAMBLE
    + """
    import gc
    {before}
    count, collects = gc.get_freeze_count(), gc.isenabled()
    hub = Hub()
    hub.on_startup(lambda: print(gc.get_freeze_count() - count))
    announced(hub).run(port=0)
    print((gc.get_freeze_count() > 0) == (count > 0), gc.isenabled() == collects)
"""
)


@pytest.mark.parametrize("before", ["", "gc.freeze()", "gc.disable()"])
def test_objects_that_are_there_before_the_run_are_out_of_the_collectors_way(before: str) -> None:
    with Script(COLLECTOR.format(before=before)) as script:
        frozen = int(script.line())
        assert frozen <= 0 if before else frozen > 10_000  # frozen objects may end
        script.port()
        script.process.send_signal(signal.SIGTERM)
        assert script.finish() == (0, "True True\n", "")


def test_a_handler_in_c_that_python_cannot_put_back_is_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    handlers = SignalHandlers({signal.SIGUSR2: signal.SIG_IGN})
    with handlers:
        monkeypatch.setitem(handlers._former, signal.SIGUSR2, None)
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    signal.signal(signal.SIGUSR2, before)
