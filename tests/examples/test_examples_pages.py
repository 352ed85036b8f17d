"""The examples with a page: used through their port, and in Chromium on a phone and a desk.

`WSC_SHOTS=FOLDER` keeps screenshots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browsers.window import Window, needs_chromium
from tests.examples.support import Example, example, until

PHONE = (390, 780)
DESK = (1200, 800)
pytestmark = needs_chromium

Open = Callable[..., Window]


@pytest.fixture
def open_page() -> Iterator[Open]:
    """Opens the page of an example; at the end no window may have complained or be too wide."""
    opened: list[Window] = []

    def opening(server: Example, path: str = "/", **how: Any) -> Window:
        opened.append(Window(f"http://127.0.0.1:{server.port}{path}", **how))
        return opened[-1]

    try:
        yield opening
        assert [each.complaints() for each in opened] == [[] for _ in opened]
        assert all(each.fits() for each in opened)
    finally:
        for each in opened:
            each.driver.quit()


def number(window: Window, css: str) -> float:
    """The number that an element shows; -1 before it shows one."""
    text = window.text(css)
    return float(text) if text.replace(".", "").isdigit() else -1.0


def test_fastapi_dashboard(tmp_path: Path, open_page: Open) -> None:
    with example("fastapi_dashboard/server.py", tmp_path) as server:
        for _ in range(20):
            assert server.ask("/orders", "")[0] in (200, 503)
        until(lambda: sum(point["requests"] for point in server.ask("/history")[1]) >= 20, "all")
        phone = open_page(server, size=PHONE, dark=True)
        phone.sees("#state", "live")
        # It has loaded what was before it.
        phone.sees("#since", "seconds, until")
        desk = open_page(server, size=DESK)
        until(lambda: number(desk, "#clients") == number(phone, "#clients") == 2, "two clients")
        for _ in range(5):
            server.ask("/orders", "")
        until(lambda: len(server.ask("/history")[1]) > 4, "points")
        phone.shot("fastapi-phone")
        desk.shot("fastapi-desk")
