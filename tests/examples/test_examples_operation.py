"""examples/acknowledgements, stats, health and limits, used as their READMEs say."""

from __future__ import annotations

import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from tests.browsers.programs import Program, started
from tests.examples.support import EXAMPLES, PATIENCE, Example, closed_with, decoded, example, until
from wsc_fast.testing import upgrade_request


def test_acknowledgements(tmp_path: Path) -> None:
    with example("acknowledgements/server.py", tmp_path) as server:
        first = server.ask("/users/ann/messages", "parcel 17 is here")[1]
        assert first["status"] == "stored"
        assert server.ask("/pending")[1] == [
            {"id": first["id"], "user": "ann", "status": "stored", "attempts": 0}
        ]
        server.logs(f"pending: {first['id']} to ann, stored, sent 0 times")
        server.program.kill()  # the message is in the file
    with example("acknowledgements/server.py", tmp_path) as server:
        with client_of(server, tmp_path, "ann") as client:
            until(lambda: "parcel 17 is here" in client.log.read_text(), "the message came")
            second = server.ask("/users/ann/messages", "and parcel 18")[1]
            assert second["status"] in ("pending", "confirmed")
            server.logs(f"{second['id']} to ann: confirmed")
            client.process.send_signal(signal.SIGINT)
            assert client.process.wait(PATIENCE) == 0
            assert client.log.read_text() == "parcel 17 is here\nand parcel 18\nthe end\n"
        with client_of(server, tmp_path, "bob", "--refuse"):
            server.ask("/users/bob/messages", "a refusal")
            server.logs("not wanted")
        with server.connect("?user=eve") as eve:  # acknowledges nothing
            third = server.ask("/users/eve/messages", "again and again")[1]
            assert [decoded(eve)["id"] for _ in range(2)] == 2 * [third["id"]]
        assert [row["id"] for row in server.ask("/pending")[1]] == [third["id"]]


def client_of(
    server: Example, folder: Path, user: str, *options: str
) -> AbstractContextManager[Program]:
    path = EXAMPLES / "acknowledgements/client.py"
    command = [sys.executable, "-u", str(path), user, "--port", str(server.port), *options]
    return started(command, folder / f"{user}.log", {})


def test_stats(tmp_path: Path) -> None:
    with (
        example("stats/server.py", tmp_path, "--every", "0.2") as server,
        server.connect() as one,
    ):
        with server.connect() as two:
            for _ in range(50):
                one.send("hello")
            for _ in range(50):
                assert one.recv(timeout=PATIENCE) == two.recv(timeout=PATIENCE) == "hello"
            # Rates: of 50 messages in and 100 out, in one line or in two.
            until(lambda: sum(reported(server, "delivered/s")) == 500, "all of it", server.log)
            assert sum(reported(server, "in/s")) == 250
            assert 2 in reported(server, "clients")
            assert set(reported(server, "dropped")) == {0.0}
        # A client that does not read is named. The hub closes it in the end: then comes another.
        while "slow: " not in server.log():
            with idle(server):
                for _ in range(80):
                    one.send(100_000 * "x")
                    one.recv(timeout=PATIENCE)
                    if "slow: " in server.log():
                        break


@contextmanager
def idle(server: Example) -> Iterator[None]:
    """A client that reads nothing but the 101."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as sock:
        sock.sendall(upgrade_request())
        while not sock.recv(1).endswith(b"\n"):
            pass
        yield


def reported(server: Example, field: str) -> list[float]:
    """The values of a field of the lines so far."""
    return [float(value) for value in re.findall(rf" {field}=([\d.]+)", server.log())]


def test_health(tmp_path: Path) -> None:
    options = ("--drain", "1", "--max-connections", "10")
    with example("health/server.py", tmp_path, *options) as server:
        with server.connect() as one:
            status, body = server.ask("/health")
            assert body.pop("uptime").startswith("0:00:")
            assert (status, body) == (200, {"status": "healthy", "connections": 1, "rooms": 0})
            assert server.ask("/ready")[0] == 200
            with ExitStack() as others:
                for _ in range(8):
                    others.enter_context(server.connect())
                status, body = server.ask("/ready")
                assert (status, body["reason"]) == (503, "it is nearly full")
            until(lambda: server.ask("/ready")[0] == 200, "there is room again")

            server.program.process.send_signal(signal.SIGTERM)
            until(lambda: server.ask("/ready")[1].get("reason") == "it stops", "it stops")
            assert server.ask("/ready")[0] == 503
            assert server.ask("/health")[0] == 200
            assert closed_with(one)[1] == 1012
        assert server.program.process.wait(PATIENCE) == 0


def test_limits(tmp_path: Path) -> None:
    with example("limits/server.py", tmp_path) as server:
        with server.connect() as big:
            big.send(16_384 * b"x")
            assert big.recv(timeout=PATIENCE) == 16_384 * b"x"
            big.send(16_385 * b"x")
            assert closed_with(big)[1] == 1009
        with server.connect() as fast:
            for _ in range(60):
                fast.send("again")
            assert closed_with(fast)[1] == 1008
        server.logs("met message_rate, closed with 1008")
        with ExitStack() as stack:
            clients = [stack.enter_context(server.connect()) for _ in range(20)]
            with pytest.raises(InvalidStatus, match="429"), server.connect():
                pass
            met_their_limits(server, clients)
        assert server.program.process.wait(PATIENCE) == 0
        assert "stopped, and lost 0 messages" in server.log()


def met_their_limits(server: Example, clients: list[ClientConnection]) -> None:
    _, met = server.ask("/limits")
    assert met["connections"] == 20
    assert met["limited"] == {
        "max_message_size": 1,
        "message_rate": 1,
        "max_connections_per_address": 1,
    }
    assert met["rejected"]["address"] == 1
    clients[0].send("the last word")
    assert clients[0].recv(timeout=PATIENCE) == "the last word"
    server.program.process.send_signal(signal.SIGINT)
    for client in clients:
        assert closed_with(client) == (["the server stops"], 1001)
