"""Two browsers for the pages of all examples: one as on a phone, one as on a desk.

Chromium takes more than a second to start. Between two tests a browser forgets its cookies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.examples.pages import Open
from tests.examples.support import Example

if TYPE_CHECKING:
    from tests.browsers.window import Window


@pytest.fixture(scope="session")
def browsers() -> Iterator[dict[tuple[int, int], Window]]:
    """The browsers that were opened so far, by their size."""
    opened: dict[tuple[int, int], Window] = {}
    yield opened
    for each in opened.values():
        each.driver.quit()


@pytest.fixture
def open_page(browsers: dict[tuple[int, int], Window]) -> Iterator[Open]:
    """Opens the page of an example; at the end no window may have complained or be too wide."""
    used: set[tuple[int, int]] = set()

    def opening(server: Example, size: tuple[int, int], dark: bool = False) -> Window:
        url = f"http://127.0.0.1:{server.port}/"
        used.add(size)
        if size in browsers:
            browsers[size].theme(dark)
            browsers[size].driver.get(url)
        else:
            # Without selenium this skips the test.
            from tests.browsers.window import Window

            browsers[size] = Window(url, size=size, dark=dark)
        return browsers[size]

    yield opening
    windows = [browsers[size] for size in used]
    # The program has ended by now, and pages have asked for it.
    lines = [line for each in windows for line in each.complaints()]
    fits = [each.fits() for each in windows]
    for each in windows:
        each.driver.delete_all_cookies()
        each.driver.get("about:blank")
    assert [line for line in lines if "ERR_CONNECTION_REFUSED" not in line] == []
    assert all(fits)
