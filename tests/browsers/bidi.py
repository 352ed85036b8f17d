"""Firefox driven by WebDriver BiDi, which it speaks by itself: geckodriver is not in Debian.

Only what the tests of pages need: https://w3c.github.io/webdriver-bidi/. Calls block, since the
pages are looked at by tests that are not async.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.browsers.driver import EXECUTABLES, FIREFOX_PREFERENCES, START_TIMEOUT, own_environment
from tests.browsers.programs import Program, needed, started

_LISTENING = re.compile(r"WebDriver BiDi listening on (ws://\S+)")
# Of a page that shows the theme that a test asks for; 0 is dark, 1 is light.
_THEME = "layout.css.prefers-color-scheme.content-override"
PATIENCE = 30.0


class BiDi:
    """A connection to a browser, with one page."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.call("session.new", capabilities={})
        tree = self.call("browsingContext.getTree")
        self.page: str = tree["contexts"][0]["context"]

    def call(self, method: str, **params: Any) -> Any:
        """Sends a command, and returns its result; AssertionError for an error."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._connection.recv(PATIENCE))
            if answer.get("id") == number:  # else it is an event
                assert answer["type"] == "success", answer
                return answer["result"]

    def go(self, url: str) -> None:
        """Loads a page."""
        self.call("browsingContext.navigate", context=self.page, url=url, wait="complete")

    def run(self, script: str, *args: Any) -> Any:
        """The result of the body of an async function, whose `args` are JSON."""
        expression = (
            f"(async (args) => {{ {script} }})({json.dumps(args)})"
            ".then((found) => JSON.stringify(found ?? null))"
        )
        answer = self.call(
            "script.evaluate",
            expression=expression,
            target={"context": self.page},
            awaitPromise=True,
        )
        assert answer["type"] == "success", answer
        return json.loads(answer["result"]["value"])

    def press(self, *keys: str) -> None:
        """Presses keys, one after the other.

        A headless Firefox has no window in front, so that keys press none of its buttons.
        """
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        self.call("input.performActions", context=self.page, actions=[source])

    def answer_prompt(self) -> None:
        """Says yes to a question of the page."""
        self.call("browsingContext.handleUserPrompt", context=self.page, accept=True)

    def resize(self, width: int, height: int) -> None:
        """Sets the size of the page."""
        size = {"width": width, "height": height}
        self.call("browsingContext.setViewport", context=self.page, viewport=size)

    def shot(self, path: Path) -> None:
        """Writes a picture of the page, as PNG."""
        answer = self.call("browsingContext.captureScreenshot", context=self.page)
        path.write_bytes(b64decode(answer["data"]))


def _address(program: Program) -> str:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if found := _LISTENING.search(program.said()):
            return found[1]
        assert program.running(), program.said()
        time.sleep(0.05)
    raise AssertionError(f"Firefox does not listen: {program.said()}")


@contextmanager
def firefox(*, dark: bool = False) -> Iterator[BiDi]:
    """Runs Firefox, and kills it in the end; skips where it is not installed.

    Args:
        dark: the theme that pages are shown in.
    """
    executable = needed(*EXECUTABLES["firefox"])
    with TemporaryDirectory(prefix="wsc-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        profile = folder / "profile"
        profile.mkdir()
        preferences = {
            **FIREFOX_PREFERENCES,
            _THEME: 0 if dark else 1,
            # A page whose address has a password is asked about otherwise.
            "network.auth.confirmAuth.enabled": False,
        }
        (profile / "user.js").write_text(
            "".join(
                f"user_pref({json.dumps(name)}, {json.dumps(value)});\n"
                for name, value in preferences.items()
            )
        )
        command = [executable, "--headless", "--no-remote", "--profile", str(profile)]
        command += ["--remote-debugging-port", "0"]
        with (
            started(command, folder / "log", own_environment(folder)) as program,
            connect(f"{_address(program)}/session", max_size=None) as connection,
        ):
            yield BiDi(connection)
