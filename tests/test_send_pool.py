"""HubConfig.send_threads: threads that help with the send phase of a flush."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import join, named
from wsc_fast import ConfigError, Hub, HubConfig
from wsc_fast.testing import RawClient, eventually, running

ROOT = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the threads sleep on a futex")


# --- the pool alone ---


@LINUX
@pytest.mark.parametrize(
    ("sanitizer", "words"),
    [("thread", ("1500", "1")), ("thread", ("1500", "2")), ("address,undefined", ("6000", "3"))],
)
def test_each_job_is_done_once_and_the_rest_are_the_last(
    sanitizer: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    done = subprocess.run([built(tmp_path, sanitizer), *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("shares\n")


@LINUX
def test_the_child_of_a_fork_has_a_pool_of_its_own(tmp_path: Path) -> None:
    program = built(tmp_path, "undefined")
    done = subprocess.run([program, "6000", "4", "fork"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@LINUX
@pytest.mark.parametrize(
    ("kept", "broken"),
    [
        # The caller does not see the work of the threads.
        ("&wsc_pool.gate, 1, memory_order_release", "&wsc_pool.gate, 1, memory_order_relaxed"),
        # Two threads claim the same chunk.
        (
            "atomic_fetch_add_explicit(&wsc_pool.next, WSC_CHUNK, memory_order_relaxed)",
            "atomic_load(&wsc_pool.next), atomic_store(&wsc_pool.next, first + WSC_CHUNK)",
        ),
    ],
)
def test_a_pool_without_one_of_its_rules_is_found_out(
    kept: str, broken: str, tmp_path: Path
) -> None:
    text = (ROOT / "src_cy/send_pool.h").read_text()
    assert text.count(kept) == 1
    (tmp_path / "send_pool.h").write_text(text.replace(kept, broken))
    shutil.copy(ROOT / "src_cy/net.h", tmp_path)
    program = built(tmp_path, "thread", headers=tmp_path)
    # Two threads have to meet, which takes more rounds on a busy machine.
    assert any(
        subprocess.run([program, "1500", f"{seed}"], capture_output=True).returncode
        for seed in range(50)
    )


@LINUX
@pytest.mark.parametrize("seed", ["1", "2"])
@pytest.mark.parametrize(
    "cost", [0.5, 0.7, 0.9, 0.95, 1.0, 1.05, 1.1, 1.5, 3.0, 10.0, 50.0], ids=str
)
def test_whatever_the_threads_are_worth_it_is_no_slower(
    cost: float, seed: str, tmp_path: Path
) -> None:
    program = built(tmp_path, "undefined", source="send_account.c")
    done = subprocess.run([program, str(cost), seed], capture_output=True, text=True, check=True)
    halves = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    for worth, (ratio, shared) in zip((1 / cost, cost), halves, strict=True):
        assert ratio > 0.96
        if worth > 1.4:
            assert ratio > 0.85 * min(worth, 4)
            assert shared > 80
        if worth < 0.7:
            assert shared < 5


def built(
    place: Path, sanitizer: str, headers: Path = ROOT / "src_cy", source: str = "send_pool.c"
) -> str:
    """The program of a file beside this one, with this sanitizer."""
    program = str(place / "send_pool")
    options = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
    sanitizers = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    subprocess.run(
        ["cc", *options, *sanitizers, f"-I{headers}", "-o", program, str(ROOT / "tests" / source)],
        check=True,
    )
    return program


# --- in a hub ---


def helpers() -> int:
    """The number of threads that this process has in the pool."""
    count = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # another thread that has just ended
            count += (task / "comm").read_text() == "wsc-send\n"
    return count


async def everybody(hub: Hub, count: int) -> list[RawClient]:
    return [(await join(hub, f"c{number}"))[0] for number in range(count)]


async def payloads(raw: RawClient, count: int) -> list[bytes]:
    return [(await raw.recv()).payload for _ in range(count)]


@pytest.mark.parametrize("value", [-1, 17, "2", True, 1.5, "Auto", "", None, ["auto"]])
def test_a_number_of_threads_is_checked(value: object) -> None:
    with pytest.raises(
        ConfigError, match=r"send_threads is .*, expected 'auto' or an int from 0 to 16$"
    ):
        HubConfig(send_threads=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("0", 0), ("3", 3)])
def test_the_number_comes_from_the_environment_and_from_files(
    text: str, value: object, tmp_path: Path
) -> None:
    assert HubConfig.from_env({"WSC_SEND_THREADS": text}).send_threads == value
    written = json.dumps(value)
    for name, content in {
        "a.toml": f"[hub]\nsend_threads = {written}\n",
        "a.json": f'{{"hub": {{"send_threads": {written}}}}}',
        "a.yaml": f"hub:\n  send_threads: {text}\n",
    }.items():
        (tmp_path / name).write_text(content)
        assert HubConfig.from_file(tmp_path / name).send_threads == value


@pytest.mark.parametrize("text", ["automatic", "17", "-1", "2.5"])
def test_a_text_that_is_no_number_of_threads_is_named(text: str, tmp_path: Path) -> None:
    expected = r"expected 'auto' or an int from 0 to 16$"
    with pytest.raises(ConfigError, match=rf"^WSC_SEND_THREADS is .*{text}.*, {expected}"):
        HubConfig.from_env({"WSC_SEND_THREADS": text})
    path = tmp_path / "a.yaml"
    path.write_text(f"send_threads: {text}\n")
    with pytest.raises(ConfigError, match=rf"a.yaml: send_threads is .*{text}.*, {expected}"):
        HubConfig.from_file(path)


def test_check_config_shows_the_number(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[hub]\nsend_threads = "auto"\n')
    command = [sys.executable, "-m", "wsc_fast", "check-config", str(path), "--changed", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["hub"]["send_threads"]["value"] == "auto"


@LINUX
async def test_threads_help_and_end_with_the_hub(any_loop: str) -> None:
    hub = Hub(HubConfig(send_threads=2), authenticate=named)
    async with running(hub):
        await eventually(lambda: helpers() == 2)
        clients = await everybody(hub, 100)
        for number in range(40):
            hub.broadcast(str(number))
            await asyncio.sleep(0)
        await eventually(lambda: hub.get_stats().send_calls >= 40)
        for raw in clients:
            expected = [str(number).encode() for number in range(40)]
            assert await payloads(raw, 40) == expected
            raw.close()
        # Whether it pays is measured by at least one, on a busy machine too.
        assert hub.get_stats().shared_flushes >= 1
    assert helpers() == 0


@LINUX
async def test_two_hubs_share_the_threads() -> None:
    first, second = (Hub(HubConfig(send_threads=3), authenticate=named) for _ in range(2))
    async with running(first):
        async with running(second):
            await eventually(lambda: helpers() == 3)
        await eventually(lambda: helpers() == 3)
        clients = await everybody(first, 50)
        first.broadcast("still here")
        for raw in clients:
            assert await payloads(raw, 1) == [b"still here"]
            raw.close()
    assert helpers() == 0


@LINUX
@pytest.mark.parametrize(("budget", "sizes"), [(1e-9, [1, 100]), (5.0, [1, 100, 2000, 60_000])])
async def test_each_client_gets_its_messages_in_order_whoever_sends_them(
    budget: float, sizes: list[int]
) -> None:
    """Broadcasts, rooms and direct messages of random sizes, to clients that read slowly."""
    source = random.Random(7)
    config = HubConfig(
        send_threads=3, flush_budget=budget, outbox_messages=1 << 16, outbox_bytes=1 << 28
    )
    hub = Hub(config, authenticate=named)
    expected: list[list[bytes]] = [[] for _ in range(120)]
    async with running(hub):
        clients = []
        for number in range(120):
            raw, client = await join(hub, f"c{number}", rcvbuf=4096 if number % 10 == 0 else None)
            clients.append(raw)
            if number % 3 == 0:
                if number == 0:
                    hub.create_room("thirds")
                hub.join_room(client.id, "thirds")
        reading = [asyncio.create_task(reading_of(raw)) for raw in clients]
        for number in range(300):
            payload = b"%d " % number + b"x" * source.choice(sizes)
            kind = source.random()
            if kind < 0.5:
                hub.broadcast(payload.decode())
                to: object = range(120)
            elif kind < 0.8:
                hub.broadcast_to_room("thirds", payload.decode())
                to = range(0, 120, 3)
            else:
                one = source.randrange(120)
                hub.send_to_client(f"c{one}", payload.decode())
                to = [one]
            for each in to:  # type: ignore[attr-defined]
                expected[each].append(payload)
            if source.random() < 0.5:
                await asyncio.sleep(0)
        hub.broadcast("end")
        seen = await asyncio.wait_for(asyncio.gather(*reading), 60)
        assert seen == expected
        assert hub.get_stats().shared_flushes > 0
        for raw in clients:
            raw.close()


async def reading_of(raw: RawClient) -> list[bytes]:
    """The payloads of a client up to the end of the test."""
    seen: list[bytes] = []
    while (payload := (await raw.recv(60)).payload) != b"end":
        seen.append(payload)
    return seen


@LINUX
def test_threads_that_are_missing_leave_a_line() -> None:
    code = """
import asyncio, logging
from wsc_fast import Hub, HubConfig
from wsc_fast.testing import RawClient, running

class Nobody(logging.Handler):
    def emit(self, record):
        print(getattr(record, "event", ""), record.getMessage())

async def serve():
    hub = Hub(HubConfig(send_threads=4, watchdog_timeout=0))
    async with running(hub):
        raw = await RawClient.open(hub)
        hub.broadcast("still works")
        assert (await raw.recv()).payload == b"still works"
        raw.close()

log = logging.getLogger("wsc_fast")
log.setLevel("WARNING")
log.addHandler(Nobody())
asyncio.run(serve())
"""

    def limit() -> None:
        # No thread can have a stack of that size, also where root may have any number of threads.
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 46, resource.RLIM_INFINITY))

    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "send_threads_missing send_threads: 4 threads were asked for, and 0"
    )


@LINUX
def test_a_hub_in_the_child_of_a_fork_has_threads_of_its_own() -> None:
    code = """
import asyncio, os, sys
from pathlib import Path
from wsc_fast import Hub, HubConfig
from wsc_fast.testing import RawClient, eventually, running

def helpers():
    names = (task / "comm" for task in Path("/proc/self/task").iterdir())
    return sum(name.read_text() == "wsc-send\\n" for name in names)

async def serve():
    hub = Hub(HubConfig(send_threads=2))
    async with running(hub):
        await eventually(lambda: helpers() == 2)
        clients = [await RawClient.open(hub) for _ in range(60)]
        for number in range(30):
            hub.broadcast(str(number))
            await asyncio.sleep(0)
        for raw in clients:
            assert [(await raw.recv()).payload for _ in range(30)] == [
                b"%d" % number for number in range(30)
            ]
            raw.close()
        return os.fork() if len(sys.argv) > 1 and not forked else 0

forked = False
child = asyncio.run(serve())
if child == 0 and len(sys.argv) > 1:
    forked = True
    asyncio.run(serve())
    os._exit(7)
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code, "fork"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")
