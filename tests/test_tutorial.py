"""The programs of docs/tutorial/ as a reader starts them: real clients, a real browser, kill -9.

`TUTORIAL_SHOTS` names a folder for screenshots of the page.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.browsers.window import CHROMEDRIVER, CHROMIUM, Window, until
from tests.ports import free_port
from tests.redis_server import RedisServer
from tests.test_pages import ROOT, connected

TUTORIAL = ROOT / "docs/tutorial"
PARTS = ("echo", "rooms", "login", "browser", "arrive", "cluster", "production")
# Seconds that a program may take to begin or to answer, on a machine that is busy.
PATIENCE = 60
OPTIONS: dict[str, Any] = {"proxy": None, "open_timeout": PATIENCE}
SECRET = "a secret of at least 32 characters"


class Running:
    """A program of the tutorial in a process of its own, in a folder where it may write.

    Attributes:
        port: where it serves.
        process: the process.
    """

    def __init__(self, name: str, folder: Path, port: int = 0, **environment: str) -> None:
        self.port = port or free_port()
        source = (TUTORIAL / f"{name}.py").read_text()
        # Only its own port differs: the modules that it imports are those of the tutorial.
        (folder / f"{name}_{self.port}.py").write_text(
            source.replace("8080", str(self.port)).replace("__file__", repr(str(TUTORIAL / "x")))
        )
        path = f"{TUTORIAL}{os.pathsep}{ROOT}"
        self.process = subprocess.Popen(
            [sys.executable, f"{name}_{self.port}.py"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path, "CHAT_SECRET": SECRET} | environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            connected(self.port, PATIENCE).close()
        except BaseException:
            self.process.kill()
            self.process.communicate()
            raise

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Status and body of the answer to a request."""
        asked = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        asked.request(method, path, None if body is None else json.dumps(body))
        answer = asked.getresponse()
        found = answer.status, answer.read()
        asked.close()
        return found

    def client(self, user: str = "", password: str = "") -> ClientConnection:
        """A connection; that of a user after a login."""
        headers = {}
        if user:
            status, body = self.ask("POST", "/login", {"user": user, "password": password})
            assert status == 200
            headers["Authorization"] = f"Bearer {json.loads(body)['token']}"
        return connect(f"ws://127.0.0.1:{self.port}/ws", additional_headers=headers, **OPTIONS)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it by a signal; by any but SIGKILL it ends well and says nothing wrong."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == (-number if number is signal.SIGKILL else 0), log
        assert "Traceback" not in log


@contextmanager
def started(name: str, folder: Path, **options: Any) -> Iterator[Running]:
    program = Running(name, folder, **options)
    try:
        yield program
        if program.process.poll() is None:
            program.end()
    finally:
        program.process.kill()
        program.process.communicate()


def said(client: ClientConnection) -> Any:
    """The next message of the hub, as JSON."""
    return json.loads(client.recv(timeout=PATIENCE))


def tell(client: ClientConnection, message: object) -> None:
    client.send(json.dumps(message))


def asked(client: ClientConnection, kind: str, **fields: object) -> Any:
    """The answer to a request; nothing else comes before it."""
    tell(client, {"type": kind, "id": "1", **fields})
    answer = said(client)
    assert answer["type"] == "answer"
    return answer.get("error") or answer.get("data")


def test_each_part_has_its_page_and_its_program() -> None:
    pages = {path.stem for path in TUTORIAL.glob("*.md")} - {"index"}
    assert pages == {path.stem for path in TUTORIAL.glob("*.py")} == set(PARTS)
    for name in PARTS:
        page = (TUTORIAL / f"{name}.md").read_text()
        assert f"```{{literalinclude}} {name}.py\n" in page
        assert f"]({name}.py)" in page  # for readers on the forge


def test_part_1_gives_back_what_it_gets(tmp_path: Path) -> None:
    with started("echo", tmp_path) as program, program.client() as client:
        for message in ("hello", b"bytes"):
            client.send(message)
            assert client.recv(timeout=PATIENCE) == message


def test_part_2_moves_messages_within_a_room(tmp_path: Path) -> None:
    with (
        started("rooms", tmp_path) as program,
        program.client() as ann,
        program.client() as bob,
        program.client() as eve,
    ):
        for client in (ann, bob):
            tell(client, {"join": "tea"})
            tell(client, {"room": "tea", "text": "I am here"})
            assert said(client) == {"room": "tea", "text": "I am here"}
        assert said(ann) == {"room": "tea", "text": "I am here"}
        tell(eve, {"room": "tea", "text": "I am not"})
        assert said(eve) == {"error": "join a room, or write to one that you are in"}
        eve.send("no JSON")
        assert "error" in said(eve)
        tell(ann, {"room": "tea", "text": "hello"})
        assert said(ann) == said(bob) == {"room": "tea", "text": "hello"}
        tell(eve, "what has she heard?")
        assert "error" in said(eve)  # nothing before that


def test_part_3_lets_in_who_has_a_token(tmp_path: Path) -> None:
    with started("login", tmp_path) as program:
        for wrong in ({"user": "ann", "password": "coffee"}, {"user": "eve", "password": "tea"}):
            assert program.ask("POST", "/login", wrong)[0] == 401
        assert program.ask("POST", "/login", ["no login"])[0] == 400
        with pytest.raises(InvalidStatus) as refused:
            program.client()
        assert refused.value.response.status_code == 401
        with program.client("ann", "tea") as ann:
            assert ann.recv(timeout=PATIENCE) == "hello ann"


@pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs Chromium and its driver")
def test_part_4_is_a_chat_in_a_browser(tmp_path: Path) -> None:
    with started("browser", tmp_path) as program, ExitStack() as windows:
        url = f"http://localhost:{program.port}/"
        ann, bob = Window(url), Window(url, size=(360, 740), dark=True)
        for window in (ann, bob):
            windows.callback(window.driver.quit)
        log_in(ann, "ann", "wrong")
        until(lambda: "wrong user" in ann.text("#state"), "the password is refused", PATIENCE)
        log_in(ann, "ann", "tea")
        log_in(bob, "bob", "coffee")
        for window, user in ((ann, "ann"), (bob, "bob")):
            until(
                lambda w=window, u=user: w.text("#state") == f"{u}: open",
                "it is connected",
                PATIENCE,
            )
        say(ann, "<b>hello</b>")
        for window in (ann, bob):
            until(
                lambda w=window: "ann: <b>hello</b>" in w.text("#said"),
                "the message is there",
                PATIENCE,
            )
        # The server dies and comes back: the pages do, too, and the chat goes on.
        program.end(signal.SIGKILL)
        until(lambda: bob.text("#state") != "bob: open", "the page notices", PATIENCE)
        with started("browser", tmp_path, port=program.port):
            until(lambda: bob.text("#state") == "bob: open", "the page is back", PATIENCE)
            until(lambda: ann.text("#state") == "ann: open", "the page is back", PATIENCE)
            say(bob, "still here")
            until(lambda: "bob: still here" in ann.text("#said"), "the chat goes on", PATIENCE)
            width = "return document.documentElement.scrollWidth"
            assert bob.driver.execute_script(width) <= 360
            if folder := os.environ.get("TUTORIAL_SHOTS"):
                ann.driver.save_screenshot(f"{folder}/wide.png")
                bob.driver.save_screenshot(f"{folder}/phone.png")


def log_in(window: Window, user: str, password: str) -> None:
    for name, text in (("user", user), ("password", password)):
        window.find(f"input[name={name}]").clear()
        window.find(f"input[name={name}]").send_keys(text)
    window.click("#login button")


def say(window: Window, text: str) -> None:
    window.find("#say input").send_keys(text)
    window.click("#say button")


def test_part_5_keeps_letters_over_kill_9(tmp_path: Path) -> None:
    with started("arrive", tmp_path) as program, program.client("ann", "tea") as ann:
        wrong = asked(ann, "request", data={"to": 5})
        assert wrong["code"] == "not-understood"
        for text in ("first", "second"):
            answer = asked(ann, "request", data={"to": "bob", "text": text})
            assert answer == "bob will have it"
        program.end(signal.SIGKILL)
    with started("arrive", tmp_path, port=program.port):
        with program.client("bob", "coffee") as bob:
            for text in ("first", "second"):
                letter = said(bob)
                assert (letter["from"], letter["content"]) == ("ann", text)
                tell(bob, {"type": "ack", "message_id": letter["id"]})
            assert asked(bob, "ping") is None
        with program.client("bob", "coffee") as bob:
            assert asked(bob, "ping") is None  # no letter comes again


def test_part_6_is_one_chat_on_two_servers(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as redis, ExitStack() as programs:
        here, there = (
            programs.enter_context(
                started("cluster", tmp_path, BUS=redis.url, port=port, PORT=str(port))
            )
            for port in (free_port(), free_port())
        )
        with here.client("ann", "tea") as ann, there.client("bob", "coffee") as bob:
            for client in (ann, bob):
                assert asked(client, "join", room="chat:tea") is None
            assert asked(ann, "join", room="secret")["code"] == "forbidden"
            tell(ann, {"room": "chat:tea", "text": "hello"})
            for client in (ann, bob):
                assert said(client) == {"room": "chat:tea", "from": "ann", "text": "hello"}
            assert (
                asked(ann, "request", data={"to": "bob", "text": "for you"}) == "bob will have it"
            )
            assert said(bob)["content"] == "for you"


def test_part_7_is_watched_and_sends_its_clients_away(tmp_path: Path) -> None:
    port, metrics = free_port(), free_port()
    with RedisServer(tmp_path) as redis:
        environment = {
            "BUS": redis.url,
            "PORT": str(port),
            "METRICS_PORT": str(metrics),
            "WSC_DRAIN_PERIOD": "0.1",
        }
        with started("production", tmp_path, port=port, **environment) as program:
            assert json.loads(program.ask("GET", "/health")[1])["status"] == "healthy"
            with program.client("ann", "tea") as client:
                scraped = http.client.HTTPConnection("127.0.0.1", metrics, timeout=PATIENCE)
                scraped.request("GET", "/metrics")
                text = scraped.getresponse().read().decode()
                scraped.close()
                assert re.search(r"^wsc_\w*clients\w*(\{.*\})? 1(\.0)?$", text, re.M)
                program.process.send_signal(signal.SIGTERM)
                with pytest.raises(Exception, match="1012"):
                    client.recv(timeout=PATIENCE)
            assert program.process.wait(PATIENCE) == 0
