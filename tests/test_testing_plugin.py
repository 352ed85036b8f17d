"""The fixtures of wsc_fast.testing.plugin, in pytest's own processes, as users have them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

APP = """
from wsc_fast import Hub, HubConfig, Identity

def make_hub(bus=None):
    hub = Hub(
        HubConfig(heartbeat_interval=20, heartbeat_timeout=60),
        authenticate=lambda request: Identity(request.query["user"]),
        bus=bus,
    )

    @hub.on_client_connected
    def connected(client):
        hub.join_room(client.id, "all")

    @hub.on_message_received
    def received(client, message):
        hub.broadcast_to_room("all", message)

    hub.create_room("all")
    return hub
"""

CONFTEST = """
import pytest
pytest_plugins = ["wsc_fast.testing.plugin"]

@pytest.fixture
def hub_login():
    return lambda user: {"query": {"user": user}}
"""

INI = "[pytest]\nwsc_hub = app:make_hub\nfilterwarnings = error\n"

ASYNC = """
import asyncio

MARK
async def test_on_the_loop_of_the_test(hub, hub_client, hub_url):
    assert hub.loop is asyncio.get_running_loop()
    assert hub_url == f"ws://127.0.0.1:{hub.port}/ws"
    ann, bob = await hub_client("ann"), await hub_client("bob")
    await ann.send("hello")
    await bob.expect("hello")

MARK
async def test_another_one(hub_client, hub):
    ann = await hub_client("ann")
    hub.broadcast("x")
    await ann.expect("x")

MARK
async def test_time_passes(hub, hub_client, hub_clock):
    silent = await hub_client("ann", answers_pings=False)
    await hub_clock.advance(90)
    await silent.expect_close(1001)

class TestInAClass:
    MARK
    async def test_it(self, hub, hub_record):
        hub.broadcast_to_room("all", "x")
        assert hub_record.expect("x", room="all").result == 0

def test_without_a_loop_beside_them(hub_client):
    ann = hub_client("ann")
    ann.send("hello")
    ann.expect("hello")
"""

ASYNC_FIXTURE = """
import pytest
FIXTURE
async def ann(hub_client):
    return await hub_client("ann")

MARK
async def test_a_client_by_a_fixture(ann, hub):
    hub.broadcast("x")
    await ann.expect("x")
"""

BLOCKING = """
import time
import pytest

def test_in_a_thread(hub, hub_client, hub_url):
    assert hub_url.endswith("/ws")
    ann, bob = hub_client("ann"), hub_client("bob")
    ann.send(b"hello")
    bob.expect(b"hello")
    ann.cut()

def test_time_passes(hub, hub_client, hub_clock):
    begin = time.monotonic()
    silent, alive = hub_client("ann", answers_pings=False), hub_client("bob")
    hub_clock.advance(90)
    silent.expect_close(1001)
    assert hub.get_all_connected_users() == ["bob"]
    assert time.monotonic() - begin < 20 and hub_clock.passed > 80

def test_a_record(hub, hub_record, hub_client):
    hub_client("ann")
    hub.broadcast("x")
    hub.send_text_to_client(hub.get_connected_client_ids()[0], "y")
    assert [str(each) for each in hub_record][0] == "broadcast to all: 'x'"
    with pytest.raises(AssertionError, match="expected 'z' to user 'ann'; the application sent"):
        hub_record.expect("z", user="ann")
    hub_record.clear()
    assert len(hub_record) == 0
"""

CLUSTER = """
import pytest
from wsc_fast.testing import wait_until

def test_hubs_are_one(hub_cluster, hub_client):
    one, two = hub_cluster(2)
    ann, bob = hub_client("ann", hub=one), hub_client("bob", hub=two)
    ann.send("hello")
    bob.expect("hello")
    hub_cluster.bus.freeze()
    ann.send("late")
    ann.expect("hello")
    ann.expect("late")
    bob.expect_nothing(within=0.2)
    hub_cluster.bus.mend()
    bob.expect("late")
"""


def run(
    folder: Path, *arguments: str, ini: str = INI, path: str | None = None, **files: str
) -> subprocess.CompletedProcess[str]:
    """Runs pytest in a folder with an application, its conftest and these test files."""
    written = {"app.py": APP, "conftest.py": CONFTEST, "pytest.ini": ini}
    written |= {f"{name}.py": text for name, text in files.items()}
    for name, text in written.items():
        (folder / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    # Of all that is installed here only what a test names: it starts several times as fast.
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def passed(done: subprocess.CompletedProcess[str], count: int) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"\n{count} passed" in done.stdout, done.stdout


def has_asyncio_plugin() -> bool:
    return importlib.util.find_spec("pytest_asyncio") is not None


def test_plain_tests_have_the_hub_in_a_thread(tmp_path: Path) -> None:
    passed(run(tmp_path, test_it=BLOCKING), 3)


RERUNS = """
import pytest
from _pytest.runner import runtestprotocol


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    for _ in range(2):
        item._initrequest()
        for report in runtestprotocol(item, nextitem=nextitem, log=False):
            item.ihook.pytest_runtest_logreport(report=report)
    return True
"""
WITH_CLOCK = """
def test_first(hub, hub_clock):
    hub_clock.advance(1)


def test_second(hub, hub_clock):
    hub_clock.advance(1)
"""


def test_a_test_that_is_run_again_has_another_clock(tmp_path: Path) -> None:
    passed(run(tmp_path, "-p", "reruns", reruns=RERUNS, test_it=WITH_CLOCK), 4)


BACKEND = """
@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


def marked(mark: str, fixture: str, head: str = "import pytest\n") -> dict[str, str]:
    """The coroutine tests, for a plugin that runs those with this mark."""
    return {
        "test_a": head + ASYNC.replace("MARK", mark),
        "test_b": head + ASYNC_FIXTURE.replace("MARK", mark).replace("FIXTURE", fixture),
    }


def test_with_anyio(tmp_path: Path) -> None:
    files = marked("@pytest.mark.anyio", "@pytest.fixture", f"import pytest\n{BACKEND}")
    passed(run(tmp_path, "-p", "anyio", **files), 6)


@pytest.mark.skipif(not has_asyncio_plugin(), reason="pytest-asyncio is not installed")
@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_with_pytest_asyncio(tmp_path: Path, mode: str) -> None:
    ini = f"{INI}asyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\n"
    if mode == "strict":
        head = "import pytest\nimport pytest_asyncio\n"
        files = marked("@pytest.mark.asyncio", "@pytest_asyncio.fixture", head)
    else:
        files = marked("", "@pytest.fixture")
    passed(run(tmp_path, "-p", "pytest_asyncio.plugin", ini=ini, **files), 6)


@pytest.mark.skipif(
    not any(map(shutil.which, ("redis-server", "valkey-server"))), reason="no Redis is installed"
)
def test_a_cluster_and_its_bus(tmp_path: Path) -> None:
    passed(run(tmp_path, test_it=CLUSTER), 1)


def test_a_cluster_without_a_redis_is_skipped_and_says_why(tmp_path: Path) -> None:
    done = run(tmp_path, "-rs", path="/nowhere", test_it=CLUSTER)
    assert done.returncode == 0, done.stdout
    assert "hub_cluster needs a Redis: none of valkey-server, redis-server" in done.stdout


@pytest.mark.parametrize(
    ("ini", "conftest", "text"),
    [
        (INI.replace("app:make_hub", ""), CONFTEST, "wsc_hub is '': set it to MODULE:NAME"),
        (INI, CONFTEST.partition("@pytest")[0], "how does 'ann' log in? Override"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, ini: str, conftest: str, text: str) -> None:
    test = 'def test_it(hub_client):\n    hub_client("ann")\n'
    (tmp_path / "sub").mkdir()
    done = run(tmp_path, ini=ini, test_it=test, conftest=conftest)
    assert done.returncode == 1
    assert text in done.stdout, done.stdout


def test_the_plugin_imports_no_hub_before_a_test_wants_one(tmp_path: Path) -> None:
    test = """
import sys

def test_it():
    ours = {name for name in sys.modules if name.startswith("wsc_fast")}
    assert ours == {"wsc_fast", "wsc_fast.testing", "wsc_fast.testing.plugin"}
    assert "uvloop" not in sys.modules
"""
    passed(run(tmp_path, test_it=test), 1)


def test_the_example_passes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "anyio"],
        cwd=ROOT / "examples/testing",
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
