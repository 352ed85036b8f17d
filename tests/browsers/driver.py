"""Chromium and Firefox, headless and without a driver.

A browser is started with the address of page.html, and the page takes its orders over a WebSocket
of its own: to run a script and answer what it returns, or to go to another address. The hub under
test serves the same page, so that scripts run in its origin. Both browsers need nothing but
themselves for that (geckodriver is not in Debian), and they are used as people's browsers are: no
automation is switched on.

The control connection is served by `websockets` in a thread, since a browser outlives the loops of
the tests that use it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from tests.browsers.programs import Program, needed, started

PAGE = Path(__file__).with_name("page.html").read_text()
START_TIMEOUT = 60.0
ORDER_TIMEOUT = 30.0

EXECUTABLES = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "firefox": ("firefox-esr", "firefox"),
}
CHROMIUM_OPTIONS = (
    "--headless",
    "--no-sandbox",  # it does not start as root otherwise, nor in most containers
    "--no-proxy-server",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-popup-blocking",
    "--password-store=basic",
)
FIREFOX_PREFERENCES: dict[str, bool | int | str] = {
    "network.proxy.type": 0,
    # After a refused connection it would make the next one to that address wait.
    "network.websocket.delay-failed-reconnects": False,
    "dom.disable_open_during_load": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.aboutwelcome.enabled": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "datareporting.policy.dataSubmissionEnabled": False,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
    "app.update.disabledForTesting": True,
    "app.normandy.enabled": False,
    "extensions.update.enabled": False,
    "browser.safebrowsing.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
}


class Browser:
    """A running browser with one page.

    Args:
        name: "chromium" or "firefox".
    """

    program: Program

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0  # of the control connection
        self._numbers = itertools.count()
        # Numbers and addresses of the pages that it came through; the last one is its page.
        self._visits: list[tuple[int, str]] = []
        self._lost = False
        self._page: ServerConnection | None = None  # the one that came last
        # A question to it -> its answer.
        self._asked: dict[int, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()

    @property
    def idle_address(self) -> str:
        """The page, in an origin that is no hub's."""
        return f"http://127.0.0.1:{self.port}/"

    async def visit(self, address: str) -> None:
        """Leaves its page for another one, which must be page.html too."""
        self._plan(address)
        await self._go("location.assign(args[0])")

    async def reload(self) -> None:
        """Loads its page anew."""
        await self._go("location.reload()")

    async def back(self) -> None:
        """Goes back to the page before; the browser may have kept it as it was."""
        self._visits.pop()
        await self._go("history.back()")

    def _plan(self, address: str) -> str:
        number = next(self._numbers)
        target = f"{address}?control={self.port}&visit={number}"
        self._visits.append((number, target))
        return target

    async def _go(self, code: str) -> None:
        assert not self._lost, f"{self.name} did not arrive at an earlier page"
        number, target = self._visits[-1]
        arrived = self._ask(number)
        self._order({"number": -1, "code": code, "args": [target]})
        self._lost = True
        assert await self._answer(number, arrived) == target
        self._lost = False

    async def run(self, code: str, *args: Any) -> Any:
        """Runs the body of an async function in the page; what it does not declare is kept.

        Args:
            code: JavaScript, see page.html for what is at hand.
            args: what can be JSON; `args` in the script.

        Returns:
            Any: what it returns. AssertionError with its text for what it throws.
        """
        number = next(self._numbers)
        answered = self._ask(number)
        self._order({"number": number, "code": code, "args": args})
        return await self._answer(number, answered)

    def _first_address(self) -> str:
        target = self._plan(self.idle_address)
        self._first = self._ask(self._visits[-1][0])
        return target

    def _wait_for_first_page(self) -> None:
        try:
            self._first.result(START_TIMEOUT)
        except TimeoutError:
            raise AssertionError(f"{self.name} did not open its page in time") from None

    def _ask(self, number: int) -> Future[dict[str, Any]]:
        answered: Future[dict[str, Any]] = Future()
        with self._lock:
            self._asked[number] = answered
        return answered

    def _order(self, order: dict[str, Any]) -> None:
        assert self._page is not None
        self._page.send(json.dumps(order))

    async def _answer(self, number: int, answered: Future[dict[str, Any]]) -> Any:
        try:
            async with asyncio.timeout(ORDER_TIMEOUT):
                answer = await asyncio.wrap_future(answered)
        except TimeoutError:
            state = "runs" if self.program.running() else "has ended"
            raise AssertionError(
                f"{self.name} did not answer in {ORDER_TIMEOUT} s; it {state}: "
                f"{self.program.said()}"
            ) from None
        finally:
            with self._lock:
                self._asked.pop(number, None)
        if "error" in answer:
            raise AssertionError(f"{self.name}: {answer['error']}")
        return answer.get("value")

    # --- in the threads of the control server ---

    def _serve_page(self, connection: ServerConnection, request: Request) -> Response | None:
        if "Upgrade" in request.headers:
            return None
        response = connection.respond(HTTPStatus.OK, PAGE)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "text/html; charset=utf-8"
        return response

    def _listen(self, connection: ServerConnection) -> None:
        try:
            for message in connection:
                answer = json.loads(message)
                if answer.get("arrived"):
                    self._page = connection
                with self._lock:
                    answered = self._asked.pop(answer.pop("number"), None)
                if answered is not None and answered.set_running_or_notify_cancel():
                    answered.set_result(answer)
        except ConnectionClosed:
            return  # the page went away


def _command(
    name: str, executable: str, profile: Path, others: Mapping[str, bool | int | str]
) -> list[str]:
    if name == "chromium":
        return [executable, *CHROMIUM_OPTIONS, f"--user-data-dir={profile}"]
    preferences = "".join(
        f"user_pref({json.dumps(key)}, {json.dumps(value)});\n"
        for key, value in {**FIREFOX_PREFERENCES, **others}.items()
    )
    (profile / "user.js").write_text(preferences)
    return [executable, "--headless", "--no-remote", "--profile", str(profile)]


def own_environment(folder: Path) -> dict[str, str]:
    """Nothing of the user's own: no settings, no desktop, no session."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    own = {"HOME": str(folder), "TMPDIR": str(folder), "MOZ_CRASHREPORTER_DISABLE": "1"}
    return {**kept, **own}


@contextmanager
def browsing(
    name: str, preferences: Mapping[str, bool | int | str] | None = None
) -> Iterator[Browser]:
    """Runs a browser whose page is ready, and kills it in the end; skips if it is not installed.

    Args:
        name: "chromium" or "firefox".
        preferences: of Firefox, beside those above.
    """
    executable = needed(*EXECUTABLES[name])
    browser = Browser(name)
    with (
        # Not pytest's: Chromium makes a socket in it, whose path must be short.
        TemporaryDirectory(prefix="wsc-", ignore_cleanup_errors=True) as temporary,
        serve(
            browser._listen,
            "127.0.0.1",
            0,
            process_request=browser._serve_page,
            compression=None,
            ping_interval=None,  # a browser that stands still for a while answers later
        ) as control,
    ):
        folder = Path(temporary)
        profile = folder / "profile"
        profile.mkdir()
        thread = threading.Thread(target=control.serve_forever)
        thread.start()
        try:
            browser.port = control.socket.getsockname()[1]
            command = [
                *_command(name, executable, profile, preferences or {}),
                browser._first_address(),
            ]
            with started(command, folder / "log", own_environment(folder)) as browser.program:
                browser._wait_for_first_page()
                yield browser
        finally:
            control.shutdown()
            thread.join()
