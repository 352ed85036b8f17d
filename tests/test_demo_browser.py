"""The demo as a person uses it: two windows of a real browser on a real server, which is restarted.

Skips without Chromium, chromedriver or selenium. `DEMO_SERVER` may hold another command to serve
with; the port is its last argument. `WSC_SHOTS` names a folder for screenshots.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browsers.window import Window as AnyWindow
from tests.browsers.window import needs_chromium, until
from tests.ports import free_port

pytest.importorskip("selenium")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = needs_chromium

SERVE = "import sys; from wsc_fast.demo import main; main('127.0.0.1', int(sys.argv[1]))"
KEEP = SERVE.replace("))", "), sys.argv[2])")


class Server:
    """The demo in a process of its own, to be killed and started again on the same port."""

    def __init__(self, keep: Path | None = None) -> None:
        self.keep = keep
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        given = os.environ.get("DEMO_SERVER")
        command = [
            *(shlex.split(given) if given else [sys.executable, "-c", SERVE]),
            str(self.port),
        ]
        if self.keep is not None:
            command = [sys.executable, "-c", KEEP, str(self.port), str(self.keep)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.url in self.process.stdout.readline()
        until(self.health, "the server answers")

    def health(self) -> dict[str, Any] | None:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                state: dict[str, Any] = json.load(answer)
                return state
        except OSError:
            return None

    def end(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        code = self.process.wait(15)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return code


class Window(AnyWindow):
    """A window of the chat."""

    def enter(self, name: str) -> None:
        self.find("#name").clear()
        self.find("#name").send_keys(name, Keys.ENTER)
        self.connected()

    def connected(self, seconds: float = 30.0) -> None:
        until(
            lambda: self.find("#state").get_attribute("data-state") == "connected",
            "connected",
            seconds,
        )

    def say(self, text: str) -> None:
        self.find("#text").send_keys(text)
        until(self.find("#send").is_enabled, "the message can be sent")
        self.find("#text").send_keys(Keys.ENTER)

    def room(self, name: str) -> None:
        """Create, join or show a room."""
        self.find("#new-room").send_keys(name, Keys.ENTER)
        until(
            lambda: self.text("#title") == f"# {name}" and not self.find("#hint").is_displayed(),
            f"in {name}",
        )


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    if server.process is not None:
        server.end(signal.SIGKILL)


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "chat.db")
    server.start()
    yield server
    if server.process is not None:
        server.end(signal.SIGKILL)


@pytest.fixture
def window(request: pytest.FixtureRequest) -> Iterator[Callable[..., Window]]:
    opened: list[Window] = []
    name = "keeping" if "keeping" in request.fixturenames else "server"
    server: Server = request.getfixturevalue(name)

    def open_window(**how: Any) -> Window:
        opened.append(Window(server.url, **how))
        return opened[-1]

    yield open_window
    for each in opened:
        each.driver.quit()


def test_two_people_chat(server: Server, window: Callable[..., Window]) -> None:
    ann, bo = window(), window(dark=True)
    ann.shot("welcome")
    ann.enter("Ann")
    bo.enter("Bo")
    for each in (ann, bo):
        each.sees("#members", "Ann")
        each.sees("#members", "Bo")
    ann.sees("#log", "Bo joined")

    ann.say("Hello Bo, can you read this?")
    bo.sees("#log .words", "Hello Bo, can you read this?")
    bo.say("Yes. And what of <img src=x onerror=alert(1)><b>markup</b>?")
    ann.sees("#log .words", "<img src=x onerror=alert(1)><b>markup</b>?")  # as text
    assert not ann.driver.find_elements(By.CSS_SELECTOR, "#log img, #log .words b")
    until(
        lambda: not ann.driver.find_elements(By.CSS_SELECTOR, ".waiting"), "every message came back"
    )

    # A second room: its members and unread messages are shown while another one is open.
    ann.room("garden")
    bo.sees("#others", "garden")
    bo.find('#others [data-room="garden"]').click()
    bo.sees("#members", "Ann")
    ann.find('#mine [data-room="lobby"]').click()
    bo.say("The roses are out")
    bo.say("and so am I")
    until(lambda: ann.text('[data-room="garden"] .badge').startswith("2"), "two unread")
    assert ann.driver.title == "(2) lobby"
    assert "roses" not in ann.text("#log")
    ann.shot("desktop-light")
    bo.shot("desktop-dark")
    ann.find('#mine [data-room="garden"]').click()
    ann.sees("#log .words", "and so am I")
    assert not ann.driver.find_elements(By.CSS_SELECTOR, ".badge:not([hidden])")

    # A name that is taken, and a change of name.
    ann.click("#rename")
    ann.enter("bo")
    ann.sees("#members", "bo 2")
    bo.sees("#members", "bo 2")

    bo.click("#leave")
    ann.sees("#log", "Bo left")
    bo.sees("#title", "# lobby")
    bo.driver.get("about:blank")
    ann.find('#mine [data-room="lobby"]').click()
    ann.sees("#log", "Bo left")
    until(lambda: server.health()["connections"] == 1, "the hub saw Bo go")  # type: ignore[index]
    bo.driver.back()  # the browser may have kept the page: it connects and joins again by itself
    bo.connected()
    ann.sees("#members", "Bo")
    assert ann.complaints() == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_reconnects_and_rejoins(
    server: Server, window: Callable[..., Window], how: signal.Signals
) -> None:
    ann, bo = window(), window()
    ann.enter("Ann")
    bo.enter("Bo")
    ann.room("garden")
    bo.room("garden")
    ann.say("before")
    bo.sees("#log .words", "before")

    server.end(how)
    until(lambda: ann.find("#state").get_attribute("data-state") == "offline", "offline")
    ann.sees("#offline", "Reconnecting")
    ann.find("#text").send_keys("typed while offline", Keys.ENTER)
    assert not ann.find("#send").is_enabled()
    ann.sees("#hint", "stays here")
    assert ann.find("#text").get_property("value").strip() == "typed while offline"
    assert "typed while offline" not in ann.text("#log")
    ann.shot("offline")

    server.start()
    ann.connected()
    bo.connected()
    for each in (ann, bo):
        each.sees("#people-number", "2")
        each.sees("#members", "Ann")
        each.sees("#members", "Bo")
        each.sees("#mine", "lobby")
        assert each.text("#log .words").count("before") == 1
    assert server.health()["rooms"] == 2  # type: ignore[index]
    until(ann.find("#send").is_enabled, "can send again")
    ann.click("#send")
    bo.sees("#log .words", "typed while offline")
    assert ann.complaints() == []


def test_nothing_is_missing_after_a_kill_of_a_server_that_keeps(
    keeping: Server, window: Callable[..., Window], tmp_path: Path
) -> None:
    ann, bo = window(), window()
    ann.enter("Ann")
    bo.enter("Bo")
    ann.room("garden")
    ann.say("of the garden")
    bo.say("one")
    bo.say("two")
    ann.room("lobby")
    ann.sees("#log .words", "two")
    # The file is written behind what is said.
    until(lambda: holds(tmp_path, b'"two"') and holds(tmp_path, b"of the garden"), "it is kept")
    bo.driver.execute_script("client.close()")
    ann.say("three")
    ann.sees("#log .words", "three")
    until(lambda: holds(tmp_path, b'"three"'), "it is kept")

    keeping.end(signal.SIGKILL)
    keeping.start()
    ann.connected()
    bo.driver.execute_script("client.connect()")
    bo.connected()
    late = window()
    late.enter("Late")
    for each in (ann, bo, late):
        each.sees("#log .words", "three")
        assert each.text("#log .words").split() == ["one", "two", "three"]
    late.room("garden")
    late.sees("#log .words", "of the garden")
    late.say("four")
    ann.room("garden")
    ann.sees("#log .words", "four")
    assert ann.complaints() == []


def holds(folder: Path, text: bytes) -> bool:
    """Whether the file of what is said, or its log, has this text."""
    return any(text in path.read_bytes() for path in folder.glob("chat.db*"))


def test_missed_messages_come_with_the_history(
    server: Server, window: Callable[..., Window]
) -> None:
    ann, bo = window(), window()
    ann.enter("Ann")
    bo.enter("Bo")
    ann.say("one")
    bo.sees("#log .words", "one")
    bo.driver.execute_script("client.close()")
    ann.sees("#log", "Bo left")
    ann.say("two")
    bo.driver.execute_script("client.connect()")
    bo.connected()
    bo.sees("#log .words", "two")
    assert bo.text("#log .words").split() == ["one", "two"]


def test_a_message_that_may_not_have_arrived_is_kept(
    server: Server, window: Callable[..., Window]
) -> None:
    ann = window()
    ann.enter("Ann")
    ann.driver.execute_script("client.send = () => {}")  # the network swallows it
    ann.say("did this arrive?")
    ann.sees("#log .words", "did this arrive?")
    ann.driver.execute_script("client.close()")
    ann.sees("#log .failed .fate", "Send again")
    ann.shot("not-sent")
    ann.driver.execute_script("delete client.send; client.connect()")
    ann.connected()
    until(lambda: not ann.find("#hint").is_displayed(), "in the lobby again")
    ann.click("#log .failed .fate button")
    until(lambda: not ann.driver.find_elements(By.CSS_SELECTOR, ".failed, .waiting"), "it arrived")
    assert ann.text("#log .words").split("\n") == ["did this arrive?"]


def test_a_phone_and_the_keyboard(server: Server, window: Callable[..., Window]) -> None:
    ann, bo = window(size=(360, 740)), window(size=(360, 740), dark=True)
    assert ann.fits()
    ann.shot("phone-welcome")
    ann.enter("Ann")
    bo.enter("Bartholomew Featherstonehaugh-Cholmonde")
    long_word = "w" * 300
    ann.say(f"A long word: {long_word}")
    bo.sees("#log .words", long_word)
    assert ann.fits()
    assert bo.fits()
    bo.say("I see it, and it breaks.")
    ann.sees("#log .words", "it breaks")
    ann.shot("phone-light")
    bo.shot("phone-dark")

    # Drawers: opened, used and closed by keys alone; what lies behind cannot be reached meanwhile.
    ann.find('[data-open="rooms"]').send_keys(Keys.ENTER)
    until(lambda: ann.find("#rooms").is_displayed(), "drawer")
    until(lambda: ann.find("#rooms").rect["x"] == 0, "slid in")
    assert ann.driver.switch_to.active_element.get_attribute("aria-label") == "Close rooms"
    assert ann.find("#chat").get_property("inert")
    ann.shot("phone-rooms")
    ann.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    until(lambda: not ann.find("#rooms").is_displayed(), "closed")
    assert ann.driver.switch_to.active_element.get_attribute("data-open") == "rooms"
    bo.click('[data-open="people"]')
    until(lambda: bo.find("#people").rect["x"] == 360 - bo.find("#people").rect["width"], "slid in")
    bo.sees("#members", "Ann")
    bo.shot("phone-people")
    bo.click("#people [data-close]")
    until(lambda: not bo.find("#people").is_displayed(), "closed")
    ann.click('[data-open="rooms"]')
    until(lambda: ann.find("#rooms").rect["x"] == 0, "slid in")
    ann.room("kitchen")
    until(lambda: not ann.find("#rooms").is_displayed(), "closed by choosing a room")
    assert ann.complaints() == []


def test_a_refused_message_says_why(server: Server, window: Callable[..., Window]) -> None:
    ann = window()
    ann.enter("Ann")
    ann.driver.execute_script("join('a\\u202eb')")
    ann.sees("#notice", "invisible")
    ann.sees("#title", "# lobby")
    assert ann.text("#mine").split("\n")[0] == "# lobby"
    ann.driver.execute_script("post(rooms.get('lobby'), 'bell \\u0007')")
    ann.sees("#log .failed .fate", "control characters")
    ann.click("#dismiss")
    assert not ann.find("#notice").is_displayed()
