"""Runs async tests on uvloop, or on each loop where a test asks for `any_loop`; TLS contexts; hubs
that use batches for sets of any size, or for none.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Generator, Iterator
from typing import Any

import aiofastnet
import pytest
import trustme
import uvloop

from trials.soak.log import FAULTS_OF_CLIENTS
from wsc_fast import Hub
from wsc_fast._core.memory import live_objects
from wsc_fast.log import log
from wsc_fast.testing import Authority, RawClient

# Live objects of the engine before a test that passed (only the debug build counts them).
LIVE = pytest.StashKey[dict[str, int]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--transport",
        default="hub",
        choices=["hub", "loop", "picows"],
        help="of hubs that do not say it",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Programs of the tests would inherit that a shell in the background has SIGINT ignored.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    defaults = Hub.start.__kwdefaults__
    assert defaults is not None
    defaults["transport"] = config.getoption("--transport")


@pytest.fixture
def only_hub_transport(pytestconfig: pytest.Config) -> None:
    """For a test of what picows, as transport, does in another way."""
    if pytestconfig.getoption("--transport") != "hub":
        pytest.skip("picows does this in another way (test_picows.py)")


# The events of lines that tell what a peer did wrong.
FAULTS_OF_PEERS = {*FAULTS_OF_CLIENTS, "too_many_handshakes"}

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(params=list(LOOPS))
def any_loop(request: pytest.FixtureRequest) -> str:
    """Has the test run once on uvloop and once on asyncio's own loop."""
    return str(request.param)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a coroutine test to its end on a fresh loop."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    kind = pyfuncitem.funcargs.get("any_loop", "uvloop")
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        runner.run(pyfuncitem.obj(**arguments))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    before = live_objects()
    result = yield
    item.stash[LIVE] = before
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Asserts that a test that passed leaves no object of the engine behind."""
    result = yield  # tryfirst: by now the log's records, which hold clients, are gone too
    before = item.stash.get(LIVE, None)
    if before is not None and grown(before):
        gc.collect()
        assert not grown(before), "left behind"
    return result


def grown(before: dict[str, int]) -> dict[str, int]:
    """The kinds of which more objects live than before."""
    return {kind: n for kind, n in live_objects().items() if n > before.get(kind, 0)}


@pytest.fixture(autouse=True)
def _fresh_log() -> None:
    """No test goes without a line because those before it had as many as a second may have."""
    log._kinds.clear()


@pytest.fixture(scope="session")
def certificates() -> Authority:
    """The tests' own certificate authority."""
    return Authority()


@pytest.fixture(scope="session")
def authority(certificates: Authority) -> trustme.CA:
    """The same, for certificates that `Authority` does not make."""
    return certificates.ca


@pytest.fixture(scope="session")
def server_tls(certificates: Authority) -> ssl.SSLContext:
    """A server's context for localhost and 127.0.0.1."""
    return certificates.server_context()


@pytest.fixture(scope="session")
def client_tls(certificates: Authority) -> ssl.SSLContext:
    """A client's context that trusts `server_tls`."""
    return certificates.client_context()


@pytest.fixture(params=["OpenSSL", "OpenSSL in Python"])
def openssl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Has the test run with TLS by aiofastnet, and with the loop's own, as where aiofastnet finds
    no OpenSSL to call."""
    if request.param == "OpenSSL in Python":
        monkeypatch.setattr(aiofastnet, "OPENSSL_DYN_LIBS", None)
    return str(request.param)


@pytest.fixture(params=["batches", "outboxes"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Has the test run with batches (fanout.pxd), however few the clients, and without any.

    Returns:
        whether there are batches.
    """
    batches = request.param == "batches"
    make = Hub.__init__

    @functools.wraps(make)
    def make_and_set(self: Hub, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        fanout = self._engine.fanout
        fanout.batch_least, fanout.batch_share = (1, 1) if batches else (sys.maxsize, 1)

    monkeypatch.setattr(Hub, "__init__", make_and_set)
    return batches


@pytest.fixture
def quiet_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Asserts that a peer causes no line at WARNING or above but those that say it did wrong."""
    yield
    lines = [record for record in caplog.get_records("call") if record.levelno >= logging.WARNING]
    assert [
        record.getMessage()
        for record in lines
        if getattr(record, "event", None) not in FAULTS_OF_PEERS
    ] == []


@pytest.fixture(autouse=True)
def new_log() -> None:
    """Has each test begin with a logger that has left out nothing yet."""
    log.tell_counts(at_once=True)


@pytest.fixture
def closing_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes the sockets of a test that ends half way."""
    made: list[RawClient] = []
    begin = RawClient.__init__

    def noting(self: RawClient, sock: socket.socket) -> None:
        begin(self, sock)
        made.append(self)

    monkeypatch.setattr(RawClient, "__init__", noting)
    yield
    for raw in made:
        raw.close()
