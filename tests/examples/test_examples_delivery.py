"""examples/basic, retry, failure_handlers and settings_file, used as their READMEs say."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.examples.support import EXAMPLES, PATIENCE, Example, decoded, example, until


def test_basic(tmp_path: Path) -> None:
    with example("basic/server.py", tmp_path) as server:
        with pytest.raises(InvalidStatus, match="401"), server.connect():
            pass
        with server.connect("?user=ann") as ann, server.connect("?user=bob") as bob:
            assert ann.recv(timeout=PATIENCE) == "hello ann"
            assert bob.recv(timeout=PATIENCE) == "hello bob"
            ann.send("hello")
            assert ann.recv(timeout=PATIENCE) == bob.recv(timeout=PATIENCE) == "ann: hello"
            ann.send(b"\0\1")
            assert ann.recv(timeout=PATIENCE) == b"\0\1"
            bob.send("join news")
            server.logs("bob joined news")
            ann.send("news it rains")
            assert bob.recv(timeout=PATIENCE) == "it rains"
            ann.send("tell bob how are you?")
            told = decoded(bob)
            assert (told["from"], told["content"]) == ("ann", "how are you?")
            ann.send("tell carol how are you?")
            assert "carol" in str(ann.recv(timeout=PATIENCE))
            server.logs("carol is offline and misses 'how are you?'")
            server.logs("not delivered to carol: user_offline")
            ann.send("join tea")
            assert "that did not work" in str(ann.recv(timeout=PATIENCE))
            bob.send("leave news")
            server.logs("bob left news")
            bob.close(4000)
            server.logs("bob is gone, close code 4000")
            # A network that breaks ends in an error and in the failures of what was on its way.
            ann.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            with server.connect("?user=dan") as dan:
                assert dan.recv(timeout=PATIENCE) == "hello dan"
                ann.socket.close()
                server.logs("error of ann: ConnectionLostError")
                server.program.process.send_signal(signal.SIGINT)
                assert dan.recv(timeout=PATIENCE) == "the server stops"
                with pytest.raises(ConnectionClosed) as caught:
                    dan.recv(timeout=PATIENCE)
                assert caught.value.rcvd is not None
                assert caught.value.rcvd.code == 1001
        assert server.program.process.wait(PATIENCE) == 0


def attempts(server: Example) -> list[str]:
    return re.findall(r"attempt (\d+): (\w+)", server.log())


def test_retry(tmp_path: Path) -> None:
    with example("retry/server.py", tmp_path) as server, ThreadPoolExecutor() as pool:
        gone = pool.submit(server.ask, "/users/bob/messages", "hello")
        sent = pool.submit(server.ask, "/users/ann/messages", "how are you?")
        with server.connect("?user=ann") as ann:
            assert decoded(ann)["content"] == "how are you?"
            status, result = sent.result(PATIENCE)
            assert (status, result["success"], result["error"]) == (200, True, None)
        status, result = gone.result(PATIENCE)
        assert (status, result["success"], result["retries"]) == (200, False, 3)
        assert result["seconds"] >= 1.75
        assert "bob" in result["error"]
        server.logs("given up after 3 retries")
        lines = server.log().partition("message to bob:")[2].splitlines()[1:5]
        for number, line in enumerate(lines, 1):
            assert f"attempt {number}: UserOfflineError" in line
        assert "sent" in server.log()


class Pushes(HTTPServer):
    """A push service that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Push)
        self.got: list[dict[str, Any]] = []


class _Push(BaseHTTPRequestHandler):
    server: Pushes

    def do_POST(self) -> None:
        self.server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def pushes() -> Iterator[Pushes]:
    with Pushes() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_failure_handlers(tmp_path: Path, pushes: Pushes) -> None:
    url = f"http://127.0.0.1:{pushes.server_port}/"
    options = ("--alert-at", "3", "--keep", "2", "--push-url", url)
    with example("failure_handlers/server.py", tmp_path, *options) as server:
        for text in ("one", "two", "three", "four"):
            assert server.ask("/users/ann/messages", text)[0] == 202
        server.logs("ALERT: 3 failures within 60 s")
        until(lambda: len(pushes.got) == 4, "four notices")
        assert pushes.got == [{"user": "ann", "waiting": n} for n in (1, 2, 2, 2)]
        assert server.log().count("has 2 messages: the oldest is lost") == 2
        with server.connect("?user=ann") as ann:
            assert [decoded(ann)["content"] for _ in range(2)] == ["three", "four"]
            assert server.ask("/users/ann/messages", "five") == (200, "sent")
            assert decoded(ann)["content"] == "five"
        assert server.log().count("ALERT") == 1

        # A client that does not read has a full queue, and gets the rest once it reads.
        with server.connect("?user=bob", max_queue=1) as bob:
            sent = [f"{n} " + 30_000 * "x" for n in range(250)]
            answers = {server.ask("/users/bob/messages", text)[0] for text in sent}
            assert answers == {200, 202}
            assert sorted(decoded(bob)["content"] for _ in sent) == sorted(sent)
        server.logs("sent again, 0 wait")


def test_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    shutil.copy(EXAMPLES / "settings_file/settings.toml", file)
    arguments = ("--settings", str(file))
    with (
        example("settings_file/server.py", tmp_path, *arguments) as server,
        server.connect("?user=bob") as bob,
    ):
        assert server.ask("/users/bob/messages", "hello") == (
            200,
            {"success": True, "retries": 0},
        )
        assert decoded(bob)["content"] == "hello"
        assert server.ask("/users/ann/messages", "hello")[1] == {"success": False, "retries": 4}

        text = file.read_text()
        file.write_text(text.replace("max_retries = 4", "max_retries = 1"))
        server.program.process.send_signal(signal.SIGHUP)
        server.logs("settings read again: max_retries is 1")
        assert server.ask("/users/ann/messages", "hello")[1]["retries"] == 1

        file.write_text(text.replace("max_retries = 4", 'max_retries = "many"'))
        server.program.process.send_signal(signal.SIGHUP)
        server.logs("wsc.retry.max_retries is 'many', expected an int from 0 to 1000000")
        assert server.ask("/users/ann/messages", "hello")[1]["retries"] == 1
        file.write_text(text.replace("max_message_size = 65536", "max_message_size = 70000"))
        server.program.process.send_signal(signal.SIGHUP)
        server.logs("max_message_size")
        bob.ping().wait(PATIENCE)
