"""Callbacks around a hub's life, tasks that end with it, sends without it, signals beside it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
import time
import warnings
from types import SimpleNamespace
from typing import Any

import picows
import pytest
from websockets.sync.client import connect

from tests.script import ANNOUNCE, Script
from tests.support import join, named
from wsc_fast import (
    ACKMessage,
    Client,
    Hub,
    HubMessage,
    HubStateError,
    HubStoppedError,
    ListenError,
    RoomNotFoundError,
    SendFailureReason,
    UserOfflineError,
    ValidationError,
    handle_websocket,
)
from wsc_fast.testing import CLOSE, TEXT, Frame, RawClient, eventually, running


async def until_close(raw: RawClient) -> list[Frame]:
    """The frames up to the close, which is answered by the end of the connection."""
    frames = [await raw.recv()]
    while frames[-1].opcode != CLOSE:
        frames.append(await raw.recv())
    raw.close()
    return frames


# --- startup ---


async def test_a_start_does_not_wait_for_a_task_that_a_startup_callback_returns() -> None:
    hub = Hub()
    hub.on_startup(lambda: hub.create_task(asyncio.sleep(60), name="ticker"))
    async with asyncio.timeout(10), running(hub):
        assert "ticker" in {task.get_name() for task in asyncio.all_tasks()}
    assert "ticker" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_startup_callbacks_run_in_order_before_anybody_can_connect(any_loop: str) -> None:
    hub = Hub()
    told: list[object] = []

    @hub.on_startup
    async def first() -> None:
        await asyncio.sleep(0)
        assert hub.loop is asyncio.get_running_loop()
        with pytest.raises(HubStateError):
            hub.port  # noqa: B018
        told.append("first")

    @hub.on_startup
    def second() -> None:
        told.append(hub.broadcast("to nobody yet"))

    async with running(hub):
        assert told == ["first", 0]
    async with running(hub):
        assert told == ["first", 0] * 2


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_startup_callback_that_raises_ends_the_start(is_async: bool) -> None:
    hub = Hub()
    told: list[str] = []
    problems = [LookupError("no database")]

    def fail() -> None:
        if problems:
            raise problems[0]
        told.append("up")

    async def fail_later() -> None:
        await asyncio.sleep(0)
        fail()

    ticking: list[asyncio.Task[None]] = []
    hub.on_startup(lambda: ticking.append(hub.create_task(asyncio.sleep(60))))
    hub.on_startup(fail_later if is_async else fail)
    hub.on_startup(lambda: told.append("after it"))
    hub.on_shutdown(lambda: told.append("down"))
    with pytest.raises(LookupError, match="no database"):
        await hub.start(port=0)
    assert told == []
    assert ticking[0].cancelled()
    assert hub.loop is None
    problems.clear()
    async with running(hub):  # nothing of the first attempt is in the way
        assert told == ["up", "after it"]
    assert told == ["up", "after it", "down"]


async def test_an_address_that_cannot_be_had_calls_the_shutdown_callbacks() -> None:
    hub = Hub()
    told: list[str] = []
    hub.on_startup(lambda: told.append("up"))
    hub.on_shutdown(lambda: told.append("down"))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ListenError):
        await hub.start(port=taken.getsockname()[1])
    assert told == ["up", "down"]
    assert hub.loop is None


async def test_a_stop_while_a_startup_callback_runs_ends_the_start() -> None:
    hub = Hub()
    begun, go_on = asyncio.Event(), asyncio.Event()

    @hub.on_startup
    async def wait() -> None:
        begun.set()
        await go_on.wait()

    starting = asyncio.ensure_future(hub.start(port=0))
    await begun.wait()
    await hub.stop()
    go_on.set()
    with pytest.raises(HubStoppedError):
        await starting
    assert hub.loop is None


async def test_no_startup_callback_is_called_behind_a_stop() -> None:
    hub = Hub()
    told: list[str] = []

    @hub.on_startup
    async def stop() -> None:
        told.append("stop")
        await hub.stop()

    hub.on_startup(lambda: told.append("not called"))
    hub.on_shutdown(lambda: told.append("not called either"))
    for _ in range(2):
        with pytest.raises(HubStoppedError):
            await hub.start(port=0)
        assert hub.loop is None
    assert told == ["stop", "stop"]


async def test_a_start_that_was_stopped_does_not_join_the_next_one() -> None:
    hub = Hub()
    begun, go_on = asyncio.Event(), asyncio.Event()
    starts = []

    @hub.on_startup
    async def wait_the_first_time() -> None:
        starts.append(1)
        if len(starts) == 1:
            begun.set()
            await go_on.wait()

    first = asyncio.ensure_future(hub.start(port=0))
    await begun.wait()
    await hub.stop()
    async with running(hub):
        port = hub.port
        go_on.set()
        with pytest.raises(HubStoppedError, match="while it started"):
            await first
        assert hub.port == port
        with await RawClient.open(hub) as raw:
            assert hub.broadcast("x") == 1
            assert (await raw.recv()).payload == b"x"
    assert len(starts) == 2


async def test_a_hub_that_starts_has_not_run_yet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="wsc_fast")
    hub = Hub()
    uptimes = []

    @hub.on_startup
    async def stop() -> None:
        uptimes.append(hub.get_stats().uptime)
        await hub.stop()

    with pytest.raises(HubStoppedError):
        await hub.start(port=0)
    assert uptimes == [0.0]
    assert "it ran for 0.0 s" in caplog.text


async def test_a_start_that_fails_leaves_a_stopped_hub_stopped() -> None:
    hub = Hub()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        await hub.start(port=0)
        await hub.stop()
        hub.enable_metrics("/metrics", port=taken.getsockname()[1])
        with pytest.raises(ListenError):
            await hub.start(port=0)
    assert hub.loop is None
    with pytest.raises(HubStoppedError):
        hub.broadcast("x")


async def test_a_start_that_is_cancelled_in_a_startup_callback_gives_all_back() -> None:
    hub = Hub()
    begun = asyncio.Event()

    @hub.on_startup
    async def wait() -> None:
        begun.set()
        await asyncio.sleep(60)

    starting = asyncio.ensure_future(hub.start(port=0))
    await begun.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert hub.loop is None


async def test_the_callbacks_run_on_an_attached_hub_too() -> None:
    hub = Hub()
    told: list[str] = []
    hub.on_startup(lambda: told.append("up"))
    hub.on_shutdown(lambda: told.append("down"))
    await hub.attach()
    assert told == ["up"]
    await hub.stop()
    assert told == ["up", "down"]


async def test_the_first_client_of_a_picows_server_starts_a_hub_up() -> None:
    hub = Hub()
    told: list[str] = []

    @hub.on_startup
    async def up() -> None:
        await asyncio.sleep(0)
        told.append("up")

    hub.on_shutdown(lambda: told.append("down"))
    server = await picows.ws_create_server(
        lambda request: handle_websocket(hub, request),
        "127.0.0.1",
        0,
        enable_auto_pong=False,
    )
    try:
        port = server.sockets[0].getsockname()[1]
        with await RawClient.open(SimpleNamespace(port=port)):
            await eventually(lambda: told)
            await hub.stop(timeout=0.1)
    finally:
        server.close()
    assert told == ["up", "down"]


@pytest.mark.parametrize("name", ["on_startup", "on_shutdown"])
def test_a_callback_has_to_be_callable(name: str) -> None:
    with pytest.raises(ValidationError, match="callable, not int"):
        getattr(Hub(), name)(3)


# --- shutdown ---


async def test_last_words_reach_the_clients(any_loop: str) -> None:
    hub = Hub(authenticate=named)

    @hub.on_shutdown
    def plain() -> None:
        hub.broadcast("goodbye")

    @hub.on_shutdown
    async def later() -> None:
        await asyncio.sleep(0.01)
        assert hub.get_connected_clients() == 1
        hub.broadcast("really")

    async with running(hub):
        raw, _ = await join(hub, "a")
        with raw:
            stopping = asyncio.ensure_future(hub.stop())
            frames = await until_close(raw)
            await stopping
    assert frames[:2] == [Frame(TEXT, b"goodbye"), Frame(TEXT, b"really")]
    assert [frame.code for frame in frames[2:]] == [1001]


async def test_a_shutdown_callback_that_raises_does_not_hold_up_the_stop() -> None:
    hub = Hub()
    errors: list[BaseException] = []
    told: list[str] = []
    hub.on_error(lambda client, error: errors.append(error))

    @hub.on_shutdown
    def fail() -> None:
        raise LookupError

    hub.on_shutdown(lambda: told.append("down"))
    async with running(hub):
        pass
    assert [type(error) for error in errors] == [LookupError]
    assert told == ["down"]


async def test_a_shutdown_callback_has_the_timeout_of_the_stop_at_most() -> None:
    hub = Hub(authenticate=named)
    told: list[str] = []

    @hub.on_shutdown
    async def hang() -> None:
        hub.broadcast("goodbye")
        try:
            await asyncio.sleep(60)
        finally:
            told.append("cancelled")

    hub.on_shutdown(lambda: told.append("never"))
    await hub.start(port=0)
    raw, _ = await join(hub, "a")
    with raw:
        began = time.monotonic()
        stopping = asyncio.ensure_future(hub.stop(timeout=0.1))
        # Its message goes out all the same, and so does the close.
        frames = await until_close(raw)
        await stopping
        assert time.monotonic() - began < 3.0
    assert frames[0] == Frame(TEXT, b"goodbye")
    assert frames[-1].code == 1001
    assert told == ["cancelled"]


async def test_a_stop_in_a_shutdown_callback_waits_for_nothing() -> None:
    hub = Hub()
    told: list[str] = []

    @hub.on_shutdown
    async def again() -> None:
        await hub.stop()
        told.append("down")

    await hub.start(port=0)
    began = time.monotonic()
    await asyncio.gather(hub.stop(), hub.stop())
    assert time.monotonic() - began < 2.0
    assert told == ["down"]


# --- tasks ---


async def test_a_task_ends_with_the_hub_while_its_clients_are_there() -> None:
    hub = Hub(authenticate=named)
    ticks: list[int] = []

    async def tick() -> None:
        try:
            while True:
                ticks.append(hub.broadcast("tick"))
                await asyncio.sleep(0.005)
        finally:
            hub.broadcast("the last")

    async with running(hub):
        task = hub.create_task(tick(), name="ticker")
        assert task.get_name() == "ticker"
        raw, _ = await join(hub, "a")
        with raw:
            assert await raw.recv() == Frame(TEXT, b"tick")
            stopping = asyncio.ensure_future(hub.stop())
            frames = await until_close(raw)
            await stopping
    assert task.cancelled()
    assert Frame(TEXT, b"the last") in frames
    assert ticks


async def test_a_task_that_raises_goes_to_on_error() -> None:
    hub = Hub()
    errors: list[tuple[Client | None, BaseException]] = []
    hub.on_error(lambda client, error: errors.append((client, error)))

    async def fail() -> None:
        raise LookupError("mine")

    async with running(hub):
        hub.create_task(fail())
        await eventually(lambda: errors)
        assert hub.get_stats().callback_errors == 1
    ((client, error),) = errors
    assert client is None
    assert isinstance(error, LookupError)


async def test_a_task_is_begun_from_another_thread() -> None:
    hub = Hub()
    done: list[object] = []

    async def work() -> None:
        done.append(asyncio.get_running_loop())

    async with running(hub):
        thread = threading.Thread(target=lambda: hub.create_task(work()))
        thread.start()
        await eventually(lambda: done)
        assert done == [hub.loop]
        thread.join()


async def test_a_task_may_stop_its_hub() -> None:
    hub = Hub()
    await hub.start(port=0)
    ended = asyncio.Event()

    async def stop() -> None:
        await hub.stop()
        ended.set()

    task = hub.create_task(stop())
    await asyncio.wait_for(ended.wait(), 3.0)
    await task
    assert hub.loop is None


async def test_a_task_that_will_not_end_is_left(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub()
    await hub.start(port=0)
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    task = hub.create_task(stubborn(), name="stubborn")
    await asyncio.sleep(0)
    await hub.stop(timeout=0.05)
    assert "the task 'stubborn' goes on" in caplog.text
    release.set()
    await task


def test_a_cancellation_that_a_startup_callback_raises_is_not_taken_for_a_signal() -> None:
    hub = Hub()

    @hub.on_startup
    async def wait_for_cancelled() -> None:
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        hub.run(port=0)


def test_a_task_is_refused_where_the_loop_was_closed_under_the_hub() -> None:
    hub = Hub()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of the sockets that are left
        asyncio.run(hub.start(port=0))
        coroutine = asyncio.sleep(0)
        with pytest.raises(HubStateError, match="does not run"):
            hub.create_task(coroutine)
        coroutine.close()
        asyncio.run(hub.stop())
        gc.collect()


async def test_a_task_is_refused_where_the_hub_does_not_run() -> None:
    hub = Hub()

    async def work() -> None:
        raise AssertionError

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(HubStateError, match="does not run"):
            hub.create_task(work())

        @hub.on_shutdown
        def last() -> None:
            hub.create_task(asyncio.sleep(0))

        async with running(hub):
            with pytest.raises(ValidationError, match="coroutine, not int"):
                hub.create_task(3)  # type: ignore[arg-type]
        with pytest.raises(HubStateError):
            hub.create_task(work())


# --- sends where the hub does not run ---


def sends(hub: Hub) -> list[Any]:
    return [
        lambda: hub.broadcast("x"),
        lambda: hub.broadcast("x", key="k"),
        lambda: hub.broadcast("x", exclude=["a"]),
        lambda: hub.broadcast_text("x"),
        lambda: hub.broadcast_to_room("there", "x"),
        lambda: hub.broadcast_to_room("elsewhere", "x"),
        lambda: hub.send_to_client("a", "x"),
        lambda: hub.send_text_to_client("a", "x"),
        lambda: hub.send_to_user("ann", HubMessage(content="x")),
        lambda: hub.send_ack_message("a", ACKMessage(content="x")),
        lambda: hub.send_ack_message_to_user("ann", ACKMessage(content="x")),
    ]


async def test_a_send_to_a_hub_that_does_not_run_is_an_error() -> None:
    hub = Hub()
    hub.enable_ack()
    hub.create_room("there")
    for send in sends(hub):
        with pytest.raises(
            HubStateError, match=r"does not run in this process.*publish .*Publisher"
        ):
            send()
    # A mistake in the call is told first, as ever.
    with pytest.raises(ValidationError):
        hub.broadcast(3)  # type: ignore[arg-type]
    async with running(hub):
        assert hub.broadcast("x") == 0
        assert hub.broadcast_to_room("there", "x") == 0
        with pytest.raises(RoomNotFoundError):
            hub.broadcast_to_room("elsewhere", "x")
        with pytest.raises(UserOfflineError):
            hub.send_to_user("ann", HubMessage(content="x"))
    for send in sends(hub):
        with pytest.raises(HubStoppedError, match="has stopped in this process"):
            send()


async def test_failure_handlers_hear_of_a_send_after_the_stop() -> None:
    hub = Hub()
    async with running(hub):
        pass
    before = hub.get_stats().send_failures
    with pytest.raises(HubStoppedError):
        hub.broadcast("x")
    assert hub.get_stats().send_failures == before + 1
    result = await hub.send_to_user_with_retry("ann", HubMessage(content="x"))
    assert isinstance(result.final_error, HubStoppedError)
    assert SendFailureReason.CHANNEL_CLOSED == "channel_closed"


async def test_a_send_in_the_child_of_a_fork_is_an_error() -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub):
            reading, writing = os.pipe()
            child = os.fork()
            if not child:
                try:
                    hub.broadcast("x")
                    os.write(writing, b"sent")
                except HubStateError as error:
                    os.write(writing, str(error).encode())
                finally:
                    os._exit(0)
            os.close(writing)
            text = os.read(reading, 1_000)
            os.close(reading)
            os.waitpid(child, 0)  # noqa: ASYNC222
            assert text.startswith(b"the hub does not run in this process")
            assert hub.broadcast("x") == 1


# --- signals ---

SLOW_WORDS = (
    ANNOUNCE
    + """
    import asyncio
    from wsc_fast import Hub

    hub = Hub()

    @hub.on_shutdown
    async def wait():
        print("begun", flush=True)
        try:
            await asyncio.sleep(60)
        finally:
            print("cut short", flush=True)

    announced(hub).run(port=0)
"""
)


def test_a_second_signal_cuts_the_last_words_short() -> None:
    with Script(SLOW_WORDS) as script:
        script.port()
        script.process.send_signal(signal.SIGTERM)
        assert script.line() == "begun"
        began = time.monotonic()
        script.process.send_signal(signal.SIGTERM)
        assert script.line() == "cut short"
        assert script.finish() == (0, "", "")
        assert time.monotonic() - began < 4.0  # the timeout of the stop is 5 s


BESIDE = (
    ANNOUNCE
    + """
    import os, signal, sys
    from wsc_fast import Hub

    def mine(number, frame):
        print("mine", signal.Signals(number).name, hub.loop is not None, flush=True)
        if sys.argv[1] == "exit":
            sys.exit(3)
        if sys.argv[1] == "raise":
            raise LookupError("mine")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, mine)
    hub = Hub()
    hub.on_shutdown(lambda: hub.broadcast("goodbye"))
    announced(hub).run(port=0)
    print("behind it", signal.getsignal(signal.SIGTERM) is mine, flush=True)
"""
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("how", ["return", "raise", "exit"])
def test_a_handler_of_the_application_hears_of_a_signal_too(
    how: str, number: signal.Signals
) -> None:
    with Script(BESIDE, how) as script:
        with connect(f"ws://127.0.0.1:{script.port()}/ws") as ws:
            script.process.send_signal(number)
            assert ws.recv(timeout=10) == "goodbye"  # it stops gracefully all the same
        assert script.line() == f"mine {number.name} True"
        code, out, err = script.finish()
    assert code == (3 if how == "exit" else 0), err
    assert out == ("" if how == "exit" else "behind it True\n")
    assert ("LookupError: mine" in err) == (how == "raise")
