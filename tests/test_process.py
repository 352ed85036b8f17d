"""The process around a hub: what the kernel refuses, clocks, forks, interpreters, the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(code: str, *args: str, preload: Path | None = None) -> tuple[int, str, str]:
    """Runs a Python program in a process of its own: exit code, stdout, stderr."""
    environment = dict(os.environ)
    if preload is not None:
        # Behind what is there already: a sanitizer has to be the first.
        before = environment.get("LD_PRELOAD")
        environment["LD_PRELOAD"] = f"{before}:{preload}" if before else str(preload)
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


BEGIN = """
import asyncio, ctypes, gc, multiprocessing, os, signal, socket, sys, threading, time, warnings
import uvloop
from tests.support import join, named
from wsc_fast._core.connection import abort
from wsc_fast.testing import BINARY, RawClient, TEXT, eventually, running
from wsc_fast import (ClientDisconnectedError, Hub, HubConfig, HubStateError,
                      HubStoppedError, Identity)

def run(main):
    factory = uvloop.new_event_loop if sys.argv[1] == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(asyncio.wait_for(main, 40))
"""


# --- the kernel ---

# In place of the kernel's own: sends that find no buffer space, and a clock that is set.
KERNEL = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>
#include <time.h>

int refusals, refused, refuse_with;
long seconds_set;

static int refuse(void) {
    if (refusals == 0) return 0;
    refusals--;
    refused++;
    errno = refuse_with;
    return 1;
}

ssize_t send(int fd, const void *data, size_t size, int flags) {
    static ssize_t (*real)(int, const void *, size_t, int);
    if (!real) real = dlsym(RTLD_NEXT, "send");
    return flags & MSG_DONTWAIT && refuse() ? -1 : real(fd, data, size, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    static ssize_t (*real)(int, const struct msghdr *, int);
    if (!real) real = dlsym(RTLD_NEXT, "sendmsg");
    return flags & MSG_DONTWAIT && refuse() ? -1 : real(fd, message, flags);
}

int clock_gettime(clockid_t id, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, time);
    if (id == CLOCK_REALTIME) time->tv_sec += seconds_set;
    return result;
}
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library for LD_PRELOAD, in which a program sets `refusals` and `seconds_set`."""
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "kernel.c").write_text(KERNEL)
    library = folder / "kernel.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", library, folder / "kernel.c", "-ldl"], check=True
    )
    return library


NO_BUFFERS = (
    BEGIN
    + """
kernel = ctypes.CDLL(None)

def of(name):
    return ctypes.c_int.in_dll(kernel, name)

async def main():
    hub = Hub(authenticate=named)
    async with running(hub):
        pairs = [await join(hub, f"c{i}") for i in range(3)]
        for length in (10, 70_000):  # one send, and one of several pieces
            for times in (1, 2, 7):
                of("refuse_with").value, of("refusals").value = int(sys.argv[2]), times
                sent = [b"%d" % i + bytes(length) for i in range(4)]
                for message in sent:
                    assert hub.broadcast(message) == 3
                for raw, client in pairs:
                    assert [(await raw.recv()).payload for _ in sent] == sent
                    assert client.is_connected()
                # What the transports write does not come by here, so that some may be left.
                of("refusals").value = 0
        assert of("refused").value >= 6
        for raw, _ in pairs:
            raw.close()

run(main())
print("survived")
"""
)


@pytest.mark.parametrize("error", ["ENOBUFS", "ENOMEM", "EAGAIN"])
def test_a_kernel_without_buffers_is_one_that_takes_it_later(
    kernel: Path, any_loop: str, error: str
) -> None:
    import errno

    code = str(getattr(errno, error))
    assert run(NO_BUFFERS, any_loop, code, preload=kernel) == (0, "survived\n", "")


CLOCK_SET = (
    BEGIN
    + """
from wsc_fast.upgrade import admission

admission._LONGEST_WAIT = 0.1
seconds_set = ctypes.c_long.in_dll(ctypes.CDLL(None), "seconds_set")
began = time.time()

def who(request):
    name = request.query["id"]
    ends = {"hour": began + 3600, "soon": time.time() + 0.9, "never": None}[name]
    return Identity(name, name, expires_at=ends)

def near(moment, expected):
    return abs(moment.timestamp() - expected) < 30

async def main():
    config = HubConfig(heartbeat_interval=0.4, heartbeat_timeout=4.0, watchdog_timeout=2.0)
    hub = Hub(config, authenticate=who)
    async with running(hub):
        pairs = {name: await join(hub, name) for name in ("hour", "never", "soon")}
        seconds_set.value = -86_400
        assert time.time() < began - 80_000
        # Nobody is told to go, or taken for dead, and heartbeats go on.
        first = time.monotonic()
        while time.monotonic() < first + 1.0:
            frame = await pairs["never"][0].recv()
            assert frame.opcode == 9, frame
            await pairs["never"][0].send(10)
        for raw, client in pairs.values():
            assert client.is_connected(), client
            assert near(client.connected_at, began)
            await raw.send(TEXT, b"x")
        await eventually(lambda: hub.get_stats().messages_in == 3)
        assert near(pairs["never"][1].last_activity, began - 86_400)
        # Both ends have passed, and that is noticed soon.
        seconds_set.value = 86_400
        for name in ("hour", "soon"):
            while (frame := await pairs[name][0].recv()).opcode != 8:
                pass
            assert frame.code == 4401
        raw, client = pairs["never"]
        assert client.is_connected()
        hub.broadcast("still here")
        while (await raw.recv()).payload != b"still here":
            pass
        assert hub.get_stats().heartbeat_timeouts == 0
        assert 0 <= hub.get_stats().uptime < 60
        for raw, _ in pairs.values():
            raw.close()

run(main())
print("survived")
"""
)


def test_a_clock_that_is_set_ends_identities_and_nothing_else(kernel: Path, any_loop: str) -> None:
    assert run(CLOCK_SET, any_loop, preload=kernel) == (0, "survived\n", "")


# --- forks ---

FORK = (
    BEGIN
    + """
how = sys.argv[2]
hub = Hub(HubConfig(close_timeout=1.0), authenticate=named)
children = []

def fork():
    # Since Python 3.12 whoever has threads is warned; the hub's watchdog is one.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        child = os.fork()
    if child:
        expected = 1 if sys.version_info >= (3, 12) else 0
        assert len(told) == expected, told
        assert all("use of fork() may lead to deadlocks" in str(one.message) for one in told), told
    return child

def in_child(client):
    # What an application might do, and what happens by itself.
    assert hub.loop is None and hub.get_connected_clients() == 0 and hub.connections == 0
    assert not client.is_connected()
    try:
        hub.broadcast("of the child")
    except HubStateError:
        pass  # it would reach nobody
    else:
        raise AssertionError("sent")
    try:
        client.send("of the child")
    except ClientDisconnectedError:
        pass
    else:
        raise AssertionError("sent")
    client.disconnect()
    abort(client)
    if how == "stop":
        asyncio.run(hub.stop())
    elif how == "collect":
        gc.collect()
    elif how == "transports":
        for transport in transports:
            transport.abort()
    elif how == "hub":
        async def serve():
            own = Hub()
            async with running(own):
                raw = await RawClient.open(own)
                own.broadcast(b"own")
                assert (await raw.recv()).payload == b"own"
                raw.close()
            async with running(hub):  # the one that was the parent's
                raw, _ = await join(hub, "c0")
                hub.broadcast(b"again")
                assert (await raw.recv()).payload == b"again"
                raw.close()
        asyncio.run(serve())

@hub.on_message_received
def received(client, message):
    if message == "fork" and how == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=in_child, args=(client,))
        process.start()
        children.append(process.pid)
    elif message == "fork":
        child = fork()
        if not child:
            try:
                in_child(client)
                if how == "stay":
                    signal.pause()
            except Exception as error:
                print(repr(error), file=sys.stderr, flush=True)
            finally:
                os._exit(0)
        children.append(child)
    client.send("echo")

async def main():
    global transports
    await hub.start(port=0)
    pairs = [await join(hub, f"c{i}") for i in range(3)]
    # Not the one that stands before it and ends the client in its place.
    transports = [client.conn.underlying_transport.get_protocol.__self__ for _, client in pairs]
    for _ in range(2):
        await pairs[0][0].send(TEXT, b"fork")
        assert (await pairs[0][0].recv()).payload == b"echo"
        if how != "stay":
            await asyncio.to_thread(os.waitpid, children[-1], 0)
        for raw, _ in pairs:
            await raw.send(TEXT, b"x")
            assert (await raw.recv()).payload == b"echo"
    # It still accepts, sends and closes; and that reaches the peer, whoever else had the socket.
    pairs.append(await join(hub, "new"))
    assert hub.broadcast(b"after") == 4
    for raw, client in pairs:
        assert (await raw.recv()).payload == b"after"
    await pairs[1][0].send(8, b"\\x03\\xe8")
    assert [f.opcode for f in await pairs[1][0].recv_rest()] == [8]
    abort(pairs[2][1])
    assert await pairs[2][0].recv_rest() == []
    for raw in (pairs[0][0], pairs[3][0]):
        raw.sock.shutdown(socket.SHUT_RDWR)  # the child may have this end, too
    await hub.stop()
    for raw, _ in pairs:
        raw.close()
    for child in children if how == "stay" else ():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

run(main())
print("survived")
"""
)


@pytest.mark.parametrize(
    "how", ["nothing", "stop", "collect", "transports", "hub", "stay", "multiprocessing"]
)
def test_a_fork_in_a_callback_leaves_the_connections_to_the_parent(any_loop: str, how: str) -> None:
    # asyncio's epoll is the child's too: what it took out of it, the parent did not hear any more.
    assert run(FORK, any_loop, how) == (0, "survived\n", "")


# --- interpreters ---

SUBINTERPRETER = """
import sys
try:
    import _interpreters as interpreters
    run = interpreters.exec
except ImportError:
    import _xxsubinterpreters as interpreters
    run = interpreters.run_string
if sys.argv[1] == "after":
    from wsc_fast import Hub
inner = interpreters.create()
run(inner, '''
import sys
sys.path.insert(0, "")
try:
    from wsc_fast import Hub
except ImportError as error:
    print(error, flush=True)
''')
import wsc_fast
print("imported", wsc_fast.Hub(), flush=True)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_sub_interpreter_is_told_that_it_cannot_import_it(when: str) -> None:
    code, out, err = run(SUBINTERPRETER, when)
    assert (code, err) == (0, "")
    told, imported = out.splitlines()
    assert told.startswith("wsc_fast cannot be imported in a sub-interpreter: ")
    assert imported == "imported <Hub stopped, 0 clients>"


# --- the end of the process ---

END = (
    BEGIN
    + """
how = sys.argv[2]
hub = Hub(HubConfig(watchdog_timeout=0.05))
ready = threading.Event()

@hub.on_message_received
def echo(client, message):
    client.send(message)
    hub.broadcast(message)
    ready.set()

async def serve():
    await hub.start(port=0)
    await asyncio.Event().wait()

def serve_for_ever():
    factory = uvloop.new_event_loop if sys.argv[1] == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve())

def call_for_ever():
    while True:
        hub.broadcast(b"from a thread")
        hub.get_stats()

threading.Thread(target=serve_for_ever, daemon=True).start()
while hub.loop is None or not hub._parts.state.accepting:
    time.sleep(0.001)
socks = []
for _ in range(5):
    sock = socket.create_connection(("127.0.0.1", hub.port))
    socks.append(sock)
    sock.sendall(RawClient.request(hub))
    sock.recv(4096)
    sock.sendall(b"\\x81\\x81\\0\\0\\0\\0x" * 20)
assert ready.wait(20)
if how == "calls":
    for _ in range(2):
        threading.Thread(target=call_for_ever, daemon=True).start()
    time.sleep(0.02)
elif how == "raise":
    raise SystemExit(3)
print("end", flush=True)
"""
)


@pytest.mark.parametrize("how", ["end", "raise", "calls"])
def test_a_process_that_ends_while_a_daemon_thread_serves_says_nothing(
    any_loop: str, how: str
) -> None:
    expected = (3, "", "") if how == "raise" else (0, "end\n", "")
    for _ in range(3):
        assert run(END, any_loop, how) == expected
