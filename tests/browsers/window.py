"""Chromium by selenium: a window of any size, in the light or in the dark, with its console.

`WSC_SHOTS` names a folder for screenshots. A module that imports this one skips without selenium;
`needs_chromium` is the mark of tests that need the browser.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium")
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="needs Chromium and its driver"
)

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def until(condition: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
    """Poll, since a page has no event to wait for; a fixed sleep would be too short or too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError(f"never happened: {what}")


class Window:
    """One browser of its own: nothing is shared with the other window but the server."""

    def __init__(
        self, url: str, *, size: tuple[int, int] = (1200, 800), dark: bool = False
    ) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for option in OPTIONS:
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(str(CHROMEDRIVER)))
        # Emulated: a window has a least width, and headless has no theme.
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 720},
        )
        self.theme(dark)
        self.driver.get(url)

    def theme(self, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def find(self, css: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        # One script: the page may replace the element between finding and reading it.
        found: str = self.driver.execute_script(
            "const found = [...document.querySelectorAll(arguments[0])];"
            "return found.map((element) => element.innerText).join('\\n')",
            css,
        )
        return found

    def click(self, css: str) -> None:
        self.find(css).click()

    def sees(self, css: str, wanted: str, seconds: float = 15.0) -> None:
        until(lambda: wanted in self.text(css), f"{wanted!r} in {css}: {self.text(css)!r}", seconds)

    def shot(self, name: str) -> None:
        if folder := os.environ.get("WSC_SHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(f"{folder}/{name}.png")

    def complaints(self) -> list[str]:
        """The lines of the console, but for the failed connections of a server that is down."""
        log = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [
            entry["message"] for entry in log if "WebSocket connection to" not in entry["message"]
        ]

    def fits(self) -> bool:
        fits: bool = self.driver.execute_script(
            "return document.documentElement.scrollWidth <= innerWidth"
        )
        return fits
