"""The console as an operator uses it, in Chromium and Firefox: what is seen, typed and clicked.

Chromium is driven by selenium, Firefox by its own WebDriver BiDi. A browser that is not installed
skips its tests. `CONSOLE_SHOTS` names a folder for screenshots.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import pytest
import websockets.sync.client as ws
from websockets.exceptions import ConnectionClosed

from tests.browsers import axe
from tests.browsers.bidi import firefox
from tests.browsers.window import CHROMEDRIVER, CHROMIUM, Window, until
from tests.redis_server import RedisServer
from tests.support import named
from wsc_fast import BasicAuthenticator, Hub, HubConfig, RedisBus
from wsc_fast.testing import running_in_thread

NAME, PASSWORD = "operator", "correct-horse-battery"
TAB, ENTER, ESCAPE, END, LEFT = "\ue004", "\ue007", "\ue00c", "\ue010", "\ue012"
HOSTILE = "<img src=x onerror=hacked=1>"
VIEWS = ("client=ann-1", "user=ann", "room=kept", f"room={quote(HOSTILE)}", "find=a", "user=gone")


class Page(Protocol):
    """A page of a browser."""

    def go(self, url: str) -> None: ...
    def run(self, script: str, *args: Any) -> Any: ...
    def press(self, *keys: str) -> None: ...
    def resize(self, width: int, height: int) -> None: ...
    def shot(self, path: Path) -> None: ...


class Chromium:
    """A page of Chromium."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._driver = window.driver

    def go(self, url: str) -> None:
        self._driver.get("about:blank")
        self._driver.get(url)

    def run(self, script: str, *args: Any) -> Any:
        found = self._driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            f"(async (args) => {{ {script} }})(arguments[0]).then("
            "(found) => done(JSON.stringify(found ?? null)), (error) => done(`!${error}`));",
            list(args),
        )
        assert not found.startswith("!"), found
        return json.loads(found)

    def press(self, *keys: str) -> None:
        for key in keys:
            self._driver.switch_to.active_element.send_keys(key)

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 720}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def shot(self, path: Path) -> None:
        self._driver.save_screenshot(str(path))


@contextmanager
def chromium() -> Iterator[Chromium]:
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip("needs Chromium and its driver")
    window = Window("about:blank")
    try:
        yield Chromium(window)
        # A test tries to make elements, one acts in vain, and one asks a hub that has gone.
        expected = ("TrustedHTML", "409 (Conflict)", "410 (Gone)")
        assert [line for line in window.complaints() if not any(e in line for e in expected)] == []
    finally:
        window.driver.quit()


def make_hub(read_only: bool = False, **options: Any) -> Hub:
    hub = Hub(HubConfig(close_timeout=0.2), authenticate=named, **options)
    hub.keep("kept*")
    hub.presence("kept*")
    for room in ("plain", HOSTILE):
        hub.create_room(room)
    operators = BasicAuthenticator({NAME: PASSWORD})
    hub.enable_console(authenticate=operators, read_only=read_only)
    return hub


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_in_thread(make_hub()) as hub:
        yield hub


@pytest.fixture
def client(hub: Hub) -> Iterator[ws.ClientConnection]:
    """A client of Ann's, who is in two rooms, and one of somebody with a hostile name."""
    with connected(hub, "ann-1", "ann") as client, connected(hub, "other", HOSTILE):
        hub.join_room("ann-1", "kept")
        hub.join_room("ann-1", HOSTILE)
        hub.broadcast_to_room("kept", HOSTILE)
        assert client.recv(10) == HOSTILE
        yield client


@contextmanager
def connected(hub: Hub, name: str, user: str) -> Iterator[ws.ClientConnection]:
    url = f"ws://127.0.0.1:{hub.port}/ws?id={name}&user={quote(user)}"
    with ws.connect(url, compression=None) as client:
        until(lambda: hub.get_client_by_id(name), "the hub knows the client")
        yield client
    until(lambda: hub.get_client_by_id(name) is None, "the client has gone")


@pytest.fixture(scope="module", params=["chromium", "firefox"])
def browser(request: pytest.FixtureRequest) -> Iterator[Page]:
    with {"chromium": chromium, "firefox": firefox}[request.param]() as page:
        page.browser = request.param  # type: ignore[union-attr]
        yield page


@pytest.fixture
def page(browser: Page, hub: Hub) -> Page:
    """The console, which shows the hub."""
    browser.resize(1200, 900)
    browser.go(address(hub))
    live(browser)
    return browser


def address(hub: Hub) -> str:
    """As a person may write it, with name and password."""
    return f"http://{NAME}:{PASSWORD}@127.0.0.1:{hub.port}/console"


def live(page: Page) -> None:
    until(lambda: text(page, "#state").startswith("Live"), "the page shows the hub", 30)


def text(page: Page, css: str) -> str:
    """All that is read of some elements."""
    script = "return [...document.querySelectorAll(args[0])].map((e) => e.innerText).join('\\n')"
    found: str = page.run(script, css)
    return found


def sees(page: Page, css: str, wanted: str) -> None:
    until(lambda: wanted in text(page, css), f"{wanted!r} in {css}: {text(page, css)!r}")


def opened(page: Page, view: str) -> None:
    """Opens the view of a client, a user or a room."""
    page.run("location.assign(`#${args[0]}`)", view)
    until(
        lambda: text(page, "#view-state") not in ("", "Loading"),
        f"the view of {view}: {text(page, '#view')}",
    )


def press_button(page: Page, name: str) -> None:
    """Presses the button that has the focus by a key, where the browser lets a test do so."""
    assert page.run("return document.activeElement.textContent") == name
    if isinstance(page, Chromium):
        page.press(ENTER)
    else:
        page.run("document.activeElement.click()")


def closed(page: Page) -> None:
    page.press(ESCAPE)
    until(lambda: not page.run("return document.getElementById('view').open"), "it is closed")


def shot(page: Page, name: str) -> None:
    if folder := os.environ.get("CONSOLE_SHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.shot(Path(folder) / f"{page.browser}-{name}.png")  # type: ignore[attr-defined]


def complaints(page: Page) -> list[str]:
    """The findings of axe-core on the page as it is now."""
    found: list[str] = page.run(f"if (!window.axe) {{ {axe.source()} }} {axe.FIND}")
    return found


def test_the_page_shows_the_hub(page: Page, client: ws.ClientConnection) -> None:
    sees(page, "#users", "ann")
    sees(page, "#rooms", "kept")
    sees(page, "#hubs", "alone")
    until(
        lambda: page.run("return document.querySelectorAll('.plot polyline').length") > 5,
        "the charts have lines",
    )
    assert "Connections in the last ten minutes. open: " in page.run(
        "return document.querySelector('.plot').getAttribute('aria-label')"
    )
    # It asks nobody but its own server, and each of its files came.
    origins = page.run(
        "return [...new Set(performance.getEntriesByType('resource').map("
        "(each) => new URL(each.name).origin))]"
    )
    assert origins == [page.run("return location.origin")]


def test_hostile_names_are_text(page: Page, client: ws.ClientConnection) -> None:
    sees(page, "#users", HOSTILE)
    sees(page, "#rooms", HOSTILE)
    opened(page, f"room={quote(HOSTILE)}")
    sees(page, "#view-title", HOSTILE)
    opened(page, f"user={quote(HOSTILE)}")
    sees(page, "#view", "other")
    opened(page, "room=kept")
    sees(page, "#view .said", HOSTILE)
    closed(page)
    assert page.run("return [document.images.length, typeof hacked]") == [0, "undefined"]


def test_markup_cannot_become_elements(page: Page) -> None:
    made = """
        const place = document.createElement("div");
        document.body.append(place);
        try { place.innerHTML = args[0]; } catch (error) { return error.name; }
        await new Promise((resolve) => setTimeout(resolve, 200));
        const found = typeof hacked;
        place.remove();
        return found;
    """
    # A browser with Trusted Types refuses; any other does not run what it made.
    assert page.run(made, HOSTILE) in ("TypeError", "undefined")
    assert page.run("return typeof hacked") == "undefined"


def test_a_client_is_looked_at_by_keyboard(page: Page, client: ws.ClientConnection) -> None:
    sees(page, "#users", "ann")
    page.run("document.querySelector('#users a[href$=\"#user=ann\"]').focus()")
    page.press(ENTER)
    sees(page, "#view-body", "ann-1")
    # The focus is in the dialog, goes round in it, and comes back to the link.
    inside = "return document.getElementById('view').contains(document.activeElement)"
    assert page.run(inside)
    page.run("document.querySelector('#view-body a').focus()")
    page.press(ENTER)
    sees(page, "#view-title", "client ann-1")
    sees(page, "#view-body", "kept")
    closed(page)
    assert page.run("return location.hash") == ""
    assert page.run("return document.activeElement.getAttribute('href')") == "/console#user=ann"


def test_the_view_of_a_client_stays_where_the_reader_is(
    page: Page, client: ws.ClientConnection
) -> None:
    opened(page, "client=ann-1")
    page.run("document.querySelector('#view-body .links a').focus()")
    before = text(page, "#view-state")
    until(lambda: text(page, "#view-state") != before, "it was asked for again")
    assert page.run("return document.activeElement.textContent") == "kept"
    closed(page)


def test_an_operator_sends_and_disconnects(
    page: Page, hub: Hub, client: ws.ClientConnection
) -> None:
    opened(page, "client=ann-1")
    page.run("document.querySelector('#view-actions textarea').focus()")
    page.press(*"hello", TAB)
    press_button(page, "Send")
    assert client.recv(10) == "hello"
    sees(page, "#view .outcome", "Done: the message is queued.")
    assert page.run("return document.querySelector('#view-actions textarea').value") == ""

    # The page asks whether it is meant; the driver says yes.
    page.run("window.confirm = (text) => { window.asked = text; return true; }")
    page.run("document.querySelector('#view-actions input[type=number]').focus()")
    page.run("document.activeElement.value = '4005'")
    page.press(TAB, *"go away", TAB)
    press_button(page, "Disconnect")
    with pytest.raises(ConnectionClosed) as caught:
        client.recv(10)
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4005, "go away")
    assert page.run("return asked") == "Disconnect client ann-1?"
    sees(page, "#view-state", "it has gone")
    closed(page)


def test_an_action_that_fails_says_so_and_keeps_the_text(page: Page, hub: Hub) -> None:
    opened(page, "user=gone")
    page.run("document.querySelector('#view-actions textarea').value = 'hello'")
    page.run("document.querySelector('#view-actions form').requestSubmit()")
    sees(page, "#view .outcome", "Not done")
    assert page.run("return document.querySelector('#view-actions textarea').value") == "hello"
    closed(page)


def test_ids_are_searched_for(page: Page, client: ws.ClientConnection) -> None:
    page.run("document.getElementById('text').focus()")
    page.press(*"ann", ENTER)
    sees(page, "#view-title", "ann")
    sees(page, "#view-body", "ann-1")
    closed(page)


def test_a_hub_that_is_away_is_told_and_comes_back(page: Page) -> None:
    page.run("window.kept = fetch; window.fetch = async () => { throw new TypeError('down') }")
    sees(page, "#state", "Not connected, trying again: down")
    page.run("window.fetch = kept")
    live(page)


def test_the_page_stays_with_the_hub_that_it_has_shown(page: Page, hub: Hub) -> None:
    # As behind a load balancer, where another hub may answer each request.
    name = hub._node.name
    page.run(
        "window.kept = fetch; window.asked = []; window.fetch = (url, ...rest) => {"
        " const hub = new URL(url).searchParams.get('hub');"
        " if (hub !== null) asked.push(hub);"
        " return kept(url, ...rest); }"
    )
    until(lambda: len(page.run("return asked")) >= 2, "it has asked twice")
    assert set(page.run("return asked")) == {name}
    # A hub that was started anew may have another name.
    page.run(
        "asked.length = 0; window.fetch = async (url, ...rest) => {"
        " const hub = new URL(url).searchParams.get('hub');"
        " if (hub !== null) asked.push(hub);"
        " if (!hub) return kept(url, ...rest);"
        " const headers = { 'Content-Type': 'application/json' };"
        ' return new Response(\'{"text":"it has gone"}\', { status: 502, headers }); }'
    )
    sees(page, "#state", "Not connected, trying again: it has gone")
    live(page)
    assert page.run("return asked.slice(0, 2)") == [name, ""]
    page.run("window.fetch = kept")
    live(page)


def test_a_hub_that_has_gone_gives_way_to_one_that_answers(browser: Page, tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, ExitStack() as stack:
        one = make_hub(bus=RedisBus(server.url, refresh=0.2))
        two = make_hub(bus=RedisBus(server.url, refresh=0.2))
        stack.enter_context(running_in_thread(one))
        with running_in_thread(two):
            browser.resize(1200, 900)
            browser.go(address(one))
            live(browser)
            name, other = one._node.name, two._node.name
            sees(browser, "#hubs", other)
            options = "return [...document.getElementById('hub').options].map((each) => each.value)"
            until(lambda: other in browser.run(options), "the other hub can be chosen")
            browser.run(
                "const select = document.getElementById('hub'); select.focus();"
                " select.value = args[0]; select.dispatchEvent(new Event('change'))",
                other,
            )
            live(browser)
            assert browser.run("return document.getElementById('hub').value") == other
        sees(browser, "#notice", f"hub '{other}' was seen until ")
        sees(browser, "#notice", " s ago; it no longer answers.")
        live(browser)
        chosen = "return document.getElementById('hub').value"
        until(lambda: browser.run(chosen) == name, "the list shows the hub that answers")
        until(lambda: other not in text(browser, "#hubs"), "the list has lost the hub")
        assert complaints(browser) == []
        shot(browser, "gone")


def test_an_operator_who_may_only_look_has_no_buttons(browser: Page) -> None:
    with running_in_thread(make_hub(read_only=True)) as hub, connected(hub, "ann-1", "ann"):
        browser.resize(1200, 900)
        browser.go(address(hub))
        live(browser)
        assert text(browser, "#state").startswith("Live, read-only")
        for view in ("client=ann-1", "user=ann", "room=plain"):
            opened(browser, view)
            assert text(browser, "#view-actions") == ""
            assert browser.run("return document.querySelectorAll('#view-actions *').length") == 0
            assert complaints(browser) == []
            shot(browser, f"read-only-{view.partition('=')[0]}")
            closed(browser)


def test_a_pause_holds_the_page(page: Page, hub: Hub) -> None:
    page.run("document.getElementById('pause').click()")
    sees(page, "#state", "Paused")
    page.run("performance.clearResourceTimings()")
    # In that time it would ask at least twice.
    page.run("return new Promise((resolve) => setTimeout(resolve, 5000))")
    asked = "return performance.getEntriesByType('resource').map((each) => each.name)"
    overviews = [name for name in page.run(asked) if "/overview" in name]
    assert len(overviews) <= 1  # one may have been under way
    page.run("document.getElementById('pause').click()")
    live(page)


def test_a_moment_of_the_charts_is_chosen_by_keyboard(page: Page) -> None:
    until(lambda: int(page.run("return document.getElementById('moment').max")) > 2, "samples")
    page.run("document.getElementById('moment').focus()")
    page.press(END, LEFT)
    assert ":" in text(page, "#moment-time")
    assert page.run("return document.querySelectorAll('.plot .cursor').length") > 5
    page.press(END)
    assert text(page, "#moment-time") == "now"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360], ids=["desk", "phone"])
def test_nothing_keeps_anybody_from_using_it(
    page: Page, client: ws.ClientConnection, theme: str, width: int
) -> None:
    page.resize(width, 800)
    while page.run("return document.getElementById('theme').textContent").lower() == theme:
        page.run("document.getElementById('theme').click()")
    sees(page, "#users", "ann")
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    assert complaints(page) == []
    shot(page, f"{theme}-{width}")
    for view in VIEWS:
        opened(page, view)
        assert page.run("return document.getElementById('view').scrollWidth <= innerWidth")
        if width > 720:  # on a phone it is the same but for its width
            assert complaints(page) == []
        shot(page, f"{theme}-{width}-{view.partition('=')[0]}")
        closed(page)
