"""examples/drawing_board, job_progress and several_hubs, with their pages."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.browsers.window import Window, needs_chromium
from tests.examples.pages import DESK, PHONE, Open
from tests.examples.support import PATIENCE, Example, closed_with, example, listens, until
from tests.ports import free_port
from tests.redis_server import RedisServer

pytest.importorskip("selenium")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = needs_chromium


def drag(window: Window, *points: tuple[int, int]) -> None:
    """Draws a line from point to point, in pixels from the middle of the board."""
    board = window.find("#board")
    chain = ActionChains(window.driver, duration=50).move_to_element_with_offset(board, *points[0])
    chain.click_and_hold()
    for point in points[1:]:
        chain.move_to_element_with_offset(board, *point)
    chain.release().perform()


INK = """
const board = document.getElementById("board");
const copy = new OffscreenCanvas(board.width, board.height).getContext("2d");
copy.drawImage(board, 0, 0);
const { data } = copy.getImageData(0, 0, board.width, board.height);
let ink = 0;
for (let i = 3; i < data.length; i += 4) ink += data[i] > 0;
return ink;
"""


def test_drawing_board(tmp_path: Path, open_page: Open) -> None:
    file = ("--file", str(tmp_path / "board.db"))
    with example("drawing_board/server.py", tmp_path, *file) as server:
        phone, desk = open_page(server, size=PHONE), open_page(server, size=DESK, dark=True)
        for each in (phone, desk):
            each.sees("#state", "connected")
        desk.click('[aria-label="violet"]')
        drag(desk, (-100, -100), (0, 50), (100, -100))
        until(lambda: phone.driver.execute_script(INK) > 200, "the line is on the phone")
        until(lambda: phone.driver.find_elements(By.CSS_SELECTOR, ".cursor"), "and the cursor")
        phone.click('[aria-label="red"]')
        drag(phone, (-120, 100), (120, 100))
        pieces = until(lambda: colours(server) >= 2 and server.ask("/drawing")[1], "both lines")
        phone.shot("drawing-phone")
        desk.shot("drawing-desk")
        desk.driver.get("about:blank")
        until(lambda: not phone.driver.find_elements(By.CSS_SELECTOR, ".cursor"), "it is gone")
        with server.connect() as wrong:
            wrong.send('{"type": "stroke", "points": [[0, 0], [2000, 0]], "colour": 1}')
            assert closed_with(wrong)[1] == 1008
    with example("drawing_board/server.py", tmp_path, *file) as server:
        assert server.ask("/drawing")[1] == pieces
        new = open_page(server, size=PHONE)
        until(lambda: new.driver.execute_script(INK) > 400, "the drawing")
        new.click("#clear")
        until(lambda: new.driver.execute_script(INK) == 0, "the board is empty")
        assert server.ask("/drawing")[1] == []


def colours(server: Example) -> int:
    return len({stroke["colour"] for _, stroke in server.ask("/drawing")[1]})


def test_job_progress(tmp_path: Path, open_page: Open) -> None:
    with example("job_progress/server.py", tmp_path) as server:
        phone, desk = open_page(server, size=PHONE), open_page(server, size=DESK, dark=True)
        for each in (phone, desk):
            each.sees("#state", "live")
        phone.click('[data-rounds="1000000"]')
        desk.click('[data-rounds="20000"]')
        desk.sees('[data-job="2"]', "Job 2: done", PATIENCE)
        phone.sees('[data-job="2"]', "Job 2: done", PATIENCE)
        (short,) = [job for job in server.ask("/jobs")[1] if job["id"] == 2]
        assert (short["percent"], len(short["result"])) == (100, 16)
        assert short["result"] in desk.text('[data-job="2"]')
        desk.sees('[data-job="1"]', "Job 1: running")
        phone.shot("jobs-phone")
        desk.shot("jobs-desk")
        desk.driver.refresh()
        desk.sees('[data-job="1"]', "Job 1: running")
        desk.click('[data-job="1"] button')
        phone.sees('[data-job="1"]', "Job 1: cancelled", PATIENCE)
        start = "document.querySelector('[data-rounds=\"1000000\"]').click()"
        phone.driver.execute_script(f"for (let i = 0; i < 21; i++) {start}")
        phone.sees("#wrong", "20 jobs wait or run")


def test_several_hubs(tmp_path: Path, open_page: Open) -> None:
    # The program takes the ports of its hubs, of which `example` adds the first one.
    ports = [free_port() for _ in range(2)]
    with RedisServer(tmp_path) as redis:
        more = [str(port) for port in ports]
        with example("several_hubs/hub.py", tmp_path, *more, BUS=redis.url) as server:
            phone = open_page(server, size=PHONE)
            phone.sees("#state", "connected")
            for port in ports:
                until(partial(listens, port), "it listens")
            phone.find("#text").send_keys("hello", Keys.ENTER)
            phone.sees("#lines", f"{server.port}: hello")
            desk = open_page(Example(server.program, ports[1]), size=DESK, dark=True)
            desk.sees("#lines", f"{server.port}: hello")
            desk.find("#text").send_keys('{"json": 1}', Keys.ENTER)
            phone.sees("#lines", f'{ports[1]}: {{"json": 1}}')
            phone.shot("hubs-phone")
            desk.shot("hubs-desk")
