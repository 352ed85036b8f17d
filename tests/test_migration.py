"""The programs of docs/migration/: each one before and after the change has the same talk.

The packages of the peers are in the extra `peers`. Without one of them its tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.ports import free_port
from tests.test_pages import ROOT, connected

MIGRATION = ROOT / "docs/migration"
# Seconds that a program may take to begin or to answer, on a machine that is busy.
PATIENCE = 60
# The module that a program needs, by the name of the program.
PEERS = {
    "websockets": "websockets",
    "picows": "picows",
    "socketio": "socketio",
    "channels": "channels",
    "flask_socketio": "flask_socketio",
}
PAGES = {
    "websockets": "websockets.md",
    "picows": "picows.md",
    "socketio": "python-socketio.md",
    "channels": "django-channels.md",
    "flask_socketio": "flask-socketio.md",
}


class Ports(NamedTuple):
    """Where a program listens: in place of its 8080, and of its 8000."""

    hub: int
    pages: int


@contextmanager
def running(name: str, *, waits_for: str = "hub") -> Iterator[Ports]:
    ports = Ports(free_port(), free_port())
    source = (MIGRATION / f"{name}.py").read_text()
    source = source.replace("8080", str(ports.hub)).replace("8000", str(ports.pages))
    with subprocess.Popen(
        [sys.executable, "-c", source],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            connected(getattr(ports, waits_for), PATIENCE).close()
            yield ports
        finally:
            process.kill()


def needed(peer: str) -> None:
    if importlib.util.find_spec(PEERS[peer]) is None:
        pytest.skip(f"{PEERS[peer]} is not installed: pip install 'wsc_fast[peers]'")


def client(port: int, path: str = "/ws") -> ClientConnection:
    return connect(f"ws://127.0.0.1:{port}{path}", proxy=None, open_timeout=PATIENCE)


def heard(connection: ClientConnection) -> Any:
    """The next message, as JSON."""
    return json.loads(connection.recv(timeout=PATIENCE))


def post(port: int, text: str) -> None:
    with urllib.request.urlopen(
        f"http://127.0.0.1:{port}/news", text.encode(), timeout=PATIENCE
    ) as answer:
        assert answer.status == 200


def joined(connection: ClientConnection, room: str) -> None:
    """Joins a room of a hub by a request."""
    connection.send(json.dumps({"type": "join", "id": "1", "room": room}))
    assert heard(connection) == {"type": "answer", "id": "1"}


def test_each_pair_of_programs_is_on_its_page() -> None:
    names = {path.stem.rsplit("_", 1)[0] for path in MIGRATION.glob("*.py")}
    assert names == set(PEERS)
    for name, page in PAGES.items():
        text = (MIGRATION / page).read_text()
        for which in ("before", "after"):
            assert f"{{literalinclude}} {name}_{which}.py" in text
            assert f"]({name}_{which}.py)" in text


def test_each_name_of_the_hub_in_the_tables_is_one() -> None:
    reference = (ROOT / "docs/reference.md").read_text()
    for page in MIGRATION.glob("*.md"):
        for name in re.findall(r"\b(?:hub|client)\.(\w+)", page.read_text()):
            assert re.search(rf"\b{name}\b", reference), f"{page.name}: {name}"


@pytest.mark.parametrize("peer", ["websockets", "picows"])
@pytest.mark.parametrize("which", ["before", "after"])
def test_everybody_hears_each_message(peer: str, which: str) -> None:
    needed(peer)
    with running(f"{peer}_{which}") as ports, client(ports.hub, "/") as ann:
        with client(ports.hub, "/") as bob:
            bob.send("I am here")
            for each in (ann, bob):
                assert each.recv(timeout=PATIENCE) == "I am here"
        ann.send("alone")
        assert ann.recv(timeout=PATIENCE) == "alone"


@pytest.mark.parametrize("which", ["before", "after"])
def test_a_view_and_a_client_reach_the_group(which: str) -> None:
    needed("channels")
    with (
        running(f"channels_{which}") as ports,
        client(ports.hub) as ann,
        client(ports.hub) as bob,
    ):
        for sender in (ann, bob):
            sender.send(json.dumps({"text": "I am here"}))
            for each in (ann, bob):
                assert heard(each) == {"text": "I am here"}
        post(ports.hub, "news")
        for each in (ann, bob):
            assert heard(each) == {"text": "news"}


def of_socketio(port: int, talk: Callable[[Any, Any], None]) -> None:
    """Has two clients of Socket.IO talk."""
    import socketio

    clients = [socketio.SimpleClient() for _ in range(2)]
    try:
        for each, user in zip(clients, ("ann", "bob"), strict=True):
            each.connect(
                f"http://127.0.0.1:{port}",
                transports=["websocket"],
                auth={"user": user},
                wait_timeout=PATIENCE,
            )
        talk(*clients)
    finally:
        for each in clients:
            each.disconnect()


def test_rooms_of_socketio_before() -> None:
    needed("socketio")

    def talk(ann: Any, bob: Any) -> None:
        for each in (ann, bob):
            each.call("join", "chat:tea", timeout=PATIENCE)
        ann.emit("say", {"room": "chat:tea", "text": "hello"})
        for each in (ann, bob):
            said = {"room": "chat:tea", "from": "ann", "text": "hello"}
            assert each.receive(timeout=PATIENCE) == ["said", said]

    with running("socketio_before") as ports:
        of_socketio(ports.hub, talk)


def test_rooms_of_socketio_after() -> None:
    with (
        running("socketio_after") as ports,
        client(ports.hub, "/ws?user=ann") as ann,
        client(ports.hub, "/ws?user=bob") as bob,
    ):
        for each in (ann, bob):
            joined(each, "chat:tea")
        ann.send(json.dumps({"room": "chat:tea", "text": "hello"}))
        for each in (ann, bob):
            assert heard(each) == {"room": "chat:tea", "from": "ann", "text": "hello"}


def test_rooms_and_a_view_of_flask_socketio_before() -> None:
    needed("flask_socketio")

    def talk(ann: Any, bob: Any) -> None:
        for each in (ann, bob):
            each.call("join", "tea", timeout=PATIENCE)
        ann.emit("say", {"room": "tea", "text": "hello"})
        for each in (ann, bob):
            assert each.receive(timeout=PATIENCE) == ["said", {"text": "hello"}]
        post(ports.pages, "news")
        for each in (ann, bob):
            assert each.receive(timeout=PATIENCE) == ["said", {"text": "news"}]

    with running("flask_socketio_before", waits_for="pages") as ports:
        of_socketio(ports.pages, talk)


def test_rooms_and_a_view_of_flask_socketio_after() -> None:
    with (
        running("flask_socketio_after") as ports,
        client(ports.hub) as ann,
        client(ports.hub) as bob,
    ):
        for each in (ann, bob):
            joined(each, "tea")
        ann.send(json.dumps({"room": "tea", "text": "hello"}))
        for each in (ann, bob):
            assert heard(each) == {"text": "hello"}
        post(ports.pages, "news")
        for each in (ann, bob):
            assert heard(each) == {"text": "news"}
