"""A Listener without a hub: it opens, hands over and closes, and nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import socket
from functools import partial
from typing import Any

import pytest

from wsc_fast import HubConfig, HubStateError, HubStoppedError, ListenError
from wsc_fast._core.connection import Client
from wsc_fast._core.engine import Engine
from wsc_fast._core.poller import Poller
from wsc_fast._core.timers import Timers
from wsc_fast.listen.listener import Listener
from wsc_fast.listen.needs import Needs
from wsc_fast.testing import eventually

BY_LOOP = pytest.mark.parametrize("by_loop", [False, True], ids=["own", "loop"])


class Greeter(asyncio.Protocol):
    """A connection that says what it has to say and leaves."""

    def connection_made(self, transport: Any) -> None:
        transport.write(b"welcome")
        transport.close()


class Greeters:
    """The requests of a hub (`upward.Requests`) whose connections do the same."""

    def begin(self, client: Client, transport: asyncio.Transport) -> None:
        Greeter().connection_made(transport)


class Owner:
    """Takes the place of the hub that the Listener listens for.

    Args:
        by_loop: connections are the loop's, and not the engine's own.
    """

    def __init__(self, by_loop: bool) -> None:
        self.settings = HubConfig()
        self.counted: list[str] = []
        self.reported: list[BaseException] = []
        deadlines: Timers[Any] = Timers()
        deadlines.attach(asyncio.get_running_loop())
        engine = Engine(None)
        engine.configure(self.settings)
        engine.configure_live(self.settings)
        engine.attach(asyncio.get_running_loop())
        of_others: Any = None
        engine.join(Greeters(), of_others, of_others, of_others)
        make_connection: Any = Greeter if by_loop else partial(Client, engine)
        self.listener = Listener(
            Needs(
                settings=lambda: self.settings,
                deadlines=deadlines,
                make_connection=make_connection,
                make_poller=partial(Poller, engine),
                count_limit=self.counted.append,
                count_rejected=self.counted.append,
                report=self.reported.append,
                log_out_of_files=lambda: None,
            )
        )
        self.listener.by_loop = by_loop

    async def open(self, **options: Any) -> None:
        defaults: dict[str, Any] = {
            "given": [],
            "ssl": None,
            "reuse_port": False,
            "check": lambda: None,
        }
        await self.listener.open("127.0.0.1", options.pop("port", 0), **(defaults | options))

    def close(self) -> None:
        self.listener.close()
        self.listener.finish()


async def greeting(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    text = await reader.read()
    writer.close()
    return text


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


@BY_LOOP
async def test_it_listens_and_can_be_opened_again(any_loop: str, by_loop: bool) -> None:
    owner = Owner(by_loop)
    for _ in range(2):
        with pytest.raises(HubStateError, match="does not listen"):
            _ = owner.listener.port
        await owner.open()
        port = owner.listener.port
        assert await greeting(port) == b"welcome"
        assert all(os.fstat(each) for each in owner.listener.descriptors())
        assert owner.listener.descriptors()
        owner.close()
        assert owner.listener.descriptors() == []
        await eventually(lambda port=port: is_free(port))  # type: ignore[misc]
    assert owner.counted == []
    assert owner.reported == []


@BY_LOOP
async def test_it_leaves_a_shared_port_to_the_other(any_loop: str, by_loop: bool) -> None:
    old, new = Owner(by_loop), Owner(by_loop)
    await old.open(reuse_port=True)
    port = old.listener.port
    assert old.listener.shares_port
    await new.open(reuse_port=True, port=port)
    old.listener.leave_to_others()
    await eventually(lambda: not old.listener.is_busy())
    assert [await greeting(port) for _ in range(20)] == [b"welcome"] * 20
    old.close()
    new.close()


@BY_LOOP
async def test_a_failure_leaves_nothing_open(any_loop: str, by_loop: bool) -> None:
    owner, late = Owner(by_loop), Owner(by_loop)
    await owner.open()
    with pytest.raises(ListenError, match=r"127\.0\.0\.1:.*in use"):
        await late.open(port=owner.listener.port)
    assert late.listener.descriptors() == []

    def check() -> None:
        raise HubStoppedError("nobody wants it")

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HubStoppedError):
        await late.open(check=check)
    assert late.listener.descriptors() == []
    assert len(os.listdir("/proc/self/fd")) == before
    owner.close()
