"""Fixtures of pytest for applications: a hub that runs, its clients, a cluster, a clock.

To be named in the `conftest.py` beside `pytest.ini` or `pyproject.toml`:

    pytest_plugins = ["wsc_fast.testing.plugin"]

There is no entry point, so that a pytest loads it only where somebody has asked for it. Neither the
hub nor anything compiled is imported before a test asks for a fixture.

A coroutine test has its hub on its own loop, whichever plugin runs it (pytest-asyncio, anyio's or
another one), and gets async clients and an async clock. Any other test has it in a thread, and gets
those that block. The names are the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from wsc_fast import Hub
    from wsc_fast.testing.clock import BlockingClock, Clock
    from wsc_fast.testing.cluster import BlockingCluster, HubCluster
    from wsc_fast.testing.record import Record
    from wsc_fast.testing.stage import Stage

_CLOCK = pytest.StashKey["Clock"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The settings `wsc_hub` and `wsc_redis`."""
    parser.addini("wsc_hub", "module:name of the hub, or of a function that makes one", default="")
    parser.addini("wsc_redis", "URL of the Redis for hub_cluster; else one is started", default="")


@pytest.fixture
def hub_factory(pytestconfig: pytest.Config) -> Callable[..., Hub]:
    """Makes the application's hub: to be overridden, unless the setting `wsc_hub` names it.

    `hub_cluster` calls it with `bus=...`, once for each hub.
    """
    target = pytestconfig.getini("wsc_hub")
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise pytest.UsageError(
            f"wsc_hub is {target!r}: set it to MODULE:NAME of a hub or of a function that makes "
            "one, or override the fixture hub_factory"
        )
    found = getattr(importlib.import_module(module), name)
    from wsc_fast import Hub

    if not isinstance(found, Hub):
        factory: Callable[..., Hub] = found
        return factory

    def the_hub(**options: Any) -> Hub:
        if options:
            raise pytest.UsageError(
                f"{target} is a hub, so that {', '.join(options)} cannot be given to it: "
                "hub_cluster needs a function that makes one"
            )
        return found

    return the_hub


@pytest.fixture
def hub_options() -> dict[str, Any]:
    """Arguments of `Hub.start`, such as `path` and `ssl`; to be overridden."""
    return {}


@pytest.fixture
def hub_login() -> Callable[[str], Mapping[str, Any]]:
    """The way in which a user logs in: `hub_login(user)` gives arguments of `HubClient.connect`.

    To be overridden by the application, which knows its tokens, cookies or parameters.
    """

    def login(user: str) -> Mapping[str, Any]:
        raise pytest.UsageError(
            f"how does {user!r} log in? Override the fixture hub_login: a function of the user "
            'that returns {"token": ...}, {"query": {...}} or {"headers": [...]}'
        )

    return login


@pytest.fixture
def hub_stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """The hubs and clients of this test, for the other fixtures."""
    from wsc_fast.testing.stage import Stage, is_async

    clock = None
    if "hub_clock" in request.fixturenames:
        # Before all hubs, whatever the order of the arguments.
        from wsc_fast.testing.clock import Clock

        clock = request.node.stash[_CLOCK] = Clock()
    test = request.node.obj
    try:
        stage = Stage(is_async(test), clock)
        if stage.thread is None:
            request.node.obj = stage.around(test)
        try:
            yield stage
        finally:
            request.node.obj = test
            stage.close()
    finally:
        if clock is not None:
            clock.close()
            del request.node.stash[_CLOCK]


@pytest.fixture
def hub(hub_factory: Callable[..., Hub], hub_options: dict[str, Any], hub_stage: Stage) -> Hub:
    """The application's hub, which serves on a free port of 127.0.0.1 while the test runs."""
    made = hub_factory()
    hub_stage.plan(made, hub_options)
    if hub_stage.thread is not None:
        hub_stage.thread.call(hub_stage.start())
    return made


@pytest.fixture
def hub_url(hub: Hub, hub_stage: Stage, hub_options: dict[str, Any]) -> str:
    """The WebSocket address of `hub`."""
    tls = hub_options.get("ssl") or hub_options.get("certfile")
    path = hub_options.get("path", "/ws")
    return f"{'wss' if tls else 'ws'}://127.0.0.1:{hub_stage.port_of(hub)}{path}"


@pytest.fixture
def hub_client(
    request: pytest.FixtureRequest,
    hub_login: Callable[[str], Mapping[str, Any]],
    hub_options: dict[str, Any],
    hub_stage: Stage,
) -> Callable[..., Any]:
    """Connects clients: `hub_client(user=None, *, hub=None, **options)`.

    `user` logs in by `hub_login`, `hub` is another one than the fixture's (of `hub_cluster`), and
    `options` are those of `HubClient.connect`. In a coroutine test: `await hub_client("ann")`.
    """

    def connect(user: str | None = None, *, hub: Hub | None = None, **options: Any) -> Any:
        options = {**(hub_login(user) if user is not None else {}), **options}
        options.setdefault("path", hub_options.get("path", "/ws"))
        target = request.getfixturevalue("hub") if hub is None else hub
        if hub_stage.thread is None:
            return hub_stage.connect(target, **options)
        return hub_stage.connect_blocking(target, **options)

    if "hub" in request.fixturenames or "hub_cluster" not in request.fixturenames:
        request.getfixturevalue("hub")
    return connect


@pytest.fixture
def hub_clock(hub_stage: Stage, request: pytest.FixtureRequest) -> Clock | BlockingClock:
    """The clock of the hubs: `hub_clock.advance(30)`, to be awaited in a coroutine test."""
    from wsc_fast.testing.clock import BlockingClock

    clock = request.node.stash[_CLOCK]
    return clock if hub_stage.thread is None else BlockingClock(clock, hub_stage.thread)


@pytest.fixture
def hub_record(hub: Hub) -> Iterator[Record]:
    """A record of what the application sends by `hub`, to whom, and what came of it."""
    from wsc_fast.testing.record import Record

    record = Record(hub)
    yield record
    record.close()


@pytest.fixture(scope="session")
def hub_redis(pytestconfig: pytest.Config) -> Iterator[tuple[str, int, str]]:
    """The Redis of `hub_cluster`: that of the setting `wsc_redis`, or one that is started."""
    from wsc_fast.testing.cluster import RedisServer, target_of

    if url := pytestconfig.getini("wsc_redis"):
        yield target_of(url)
        return
    try:
        server = RedisServer()
    except FileNotFoundError as error:
        pytest.skip(f"hub_cluster needs a Redis: {error}, and the setting wsc_redis names none")
    with server:
        yield server.path, 0, ""


@pytest.fixture
def hub_cluster(
    hub_factory: Callable[..., Hub],
    hub_options: dict[str, Any],
    hub_redis: tuple[str, int, str],
    hub_stage: Stage,
) -> HubCluster | BlockingCluster:
    """Makes hubs on one bus: `one, two = await hub_cluster(2)`; without await in a plain test."""
    pytest.importorskip("redis", reason="hub_cluster needs redis-py: pip install 'wsc_fast[redis]'")
    from wsc_fast.testing.cluster import BlockingCluster, HubCluster

    cluster = HubCluster(hub_stage, hub_factory, hub_options, hub_redis)
    if hub_stage.thread is None:
        return cluster
    return BlockingCluster(cluster, hub_stage.thread)
