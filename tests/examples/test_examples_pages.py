"""The examples with a page: used through their port, and in Chromium on a phone and a desk.

`WSC_SHOTS=FOLDER` keeps screenshots.
"""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.browsers.window import Window, needs_chromium
from tests.examples.support import (
    EXAMPLES,
    PATIENCE,
    ROOT,
    Example,
    awaited,
    closed_with,
    decoded,
    example,
    listens,
    until,
)
from tests.ports import free_port
from tests.redis_server import RedisServer

pytest.importorskip("selenium")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

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
        # The program has ended by now, and pages have asked for it.
        lines = [line for each in opened for line in each.complaints()]
        assert [line for line in lines if "ERR_CONNECTION_REFUSED" not in line] == []
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


def log_in(window: Window, name: str, password: str) -> None:
    until(lambda: window.find("#login").is_displayed(), "the form")
    for field, value in (("#name", name), ("#password", password)):
        window.find(field).clear()
        window.find(field).send_keys(value)
    window.click("#login button")


def test_django_chat(tmp_path: Path, open_page: Open) -> None:
    secret = {"SECRET_KEY": "a secret of the test's"}
    with example("django_chat/server.py", tmp_path, **secret) as server:
        with server.connect() as stranger:
            assert closed_with(stranger) == ([], 4401)
        assert server.ask("/history")[0] == 401
        ann = open_page(server, size=PHONE)
        ann.shot("django-login")
        log_in(ann, "ann", "tea")
        ann.sees("#state", "connected")
        ann.find("#text").send_keys("before bob came", Keys.ENTER)
        ann.sees("#log", "before bob came")
        bob = open_page(server, size=DESK, dark=True)
        log_in(bob, "ann", "wrong")
        bob.sees("#wrong", "wrong password")
        log_in(bob, "bob", "rain")
        bob.sees("#log", "before bob came")
        ann.sees("#users", "ann, bob")
        bob.sees("#users", "ann, bob")
        bob.find("#text").send_keys("<b>hello</b> ann", Keys.ENTER)
        ann.sees("#log", "<b>hello</b> ann")
        ann.shot("django-phone")
        bob.shot("django-desk")
        ann.click("#logout")
        until(lambda: ann.find("#login").is_displayed(), "ann is logged out")
        bob.sees("#users", "bob")
        until(lambda: bob.text("#users") == "bob", "ann has left")
        # It asked for its user before the login, and for a wrong password.
        assert [line for line in ann.complaints() if "401" not in line] == []
        assert [line for line in bob.complaints() if "401" not in line] == []


def test_celery_notifications(tmp_path: Path, open_page: Open) -> None:
    with (
        RedisServer(tmp_path) as redis,
        example("celery_notifications/server.py", tmp_path, BUS=redis.url) as server,
    ):
        phone = open_page(server, size=PHONE)
        phone.find("#name").send_keys("ann", Keys.ENTER)
        phone.sees("#state", "connected")
        phone.find("#title").send_keys("rain", Keys.ENTER)
        phone.sees("#running", "rain")
        phone.sees("#notes", "The report on rain is ready", PATIENCE)
        until(lambda: phone.text("#running") == "", "nothing is on its way")

        # A notification waits for a user who has gone.
        phone.find("#title").send_keys("snow", Keys.ENTER)
        until(lambda: server.log().count("received") == 2, "the task has begun")
        phone.driver.get("about:blank")
        until(lambda: server.log().count("succeeded") == 2, "the task is done", server.log)
        phone.driver.get(f"http://127.0.0.1:{server.port}/")
        phone.sees("#notes", "The report on snow is ready", PATIENCE)
        assert "rain" not in phone.text("#notes")
        phone.shot("celery-phone")
        desk = open_page(server, size=DESK, dark=True)
        desk.find("#name").send_keys("ann", Keys.ENTER)
        desk.sees("#state", "connected")
        desk.shot("celery-desk")


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


def crowd(server: Example, folder: Path, program: str, *options: str) -> str:
    """Runs the simulated people of an example to their end; what they print."""
    command = [sys.executable, str(EXAMPLES / program), "--port", str(server.port), *options]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_market_data(tmp_path: Path, open_page: Open) -> None:
    with example("market_data/server.py", tmp_path) as server:
        phone = open_page(server, size=PHONE)
        until(lambda: number(phone, '[data-symbol="AAL"] td:nth-child(2)') > 0, "a price")
        assert phone.text('[data-symbol="JADE"] td:nth-child(2)') == ""
        phone.click('[data-symbol="JADE"] button')
        until(lambda: number(phone, '[data-symbol="JADE"] td:nth-child(2)') > 0, "a price")
        until(lambda: number(phone, "#rate") >= 12, "six symbols, two a second")
        said = crowd(server, tmp_path, "market_data/crowd.py", "--subscribers=1000", "--seconds=2")
        assert "1000 connected in" in said
        assert sum(int(each) for each in re.findall(r"(\d+) quotes/s", said)) > 1_000
        phone.shot("market-phone")
        open_page(server, size=DESK, dark=True).sees("#state", "live")


def test_market_data_of_subscribers_that_do_not_read(tmp_path: Path) -> None:
    with example("market_data/server.py", tmp_path, "--updates", "200") as server:
        options = ("--subscribers=20", "--symbols=5", "--stalled=10", "--seconds=4")
        with ThreadPoolExecutor() as pool:
            said = pool.submit(crowd, server, tmp_path, "market_data/crowd.py", *options)
            until(lambda: server.ask("/stats")[1]["conflated"] > 1_000, "quotes gave way")
            stats = server.ask("/stats")[1]
            assert (stats["subscribers"], stats["dropped"]) == (20, 0)
            assert stats["waiting"] <= 20 * 5
            assert "20 connected in" in said.result(PATIENCE)


def test_live_poll(tmp_path: Path, open_page: Open) -> None:
    with example("live_poll/server.py", tmp_path) as server, ThreadPoolExecutor() as pool:
        phone = open_page(server, size=PHONE)
        until(lambda: phone.driver.find_elements(By.CSS_SELECTOR, '[data-choice="autumn"]'), "it")
        phone.click('[data-choice="autumn"]')
        phone.sees('[data-choice="autumn"]', "1 (100 %)")
        options = ("--people=1000", "--seconds=4")
        said = pool.submit(crowd, server, tmp_path, "live_poll/people.py", *options)
        until(lambda: number(phone, "#total") == number(phone, "#people") == 1_001, "all of them")
        phone.click('[data-choice="winter"]')
        mine = '[data-choice="winter"][aria-pressed="true"]'
        until(lambda: phone.driver.find_elements(By.CSS_SELECTOR, mine), "it has moved")
        phone.shot("poll-phone")
        desk = open_page(server, size=DESK, dark=True)
        until(lambda: number(desk, "#total") > 0, "the result")
        desk.shot("poll-desk")
        text = said.result(PATIENCE)
        assert "1000 people have voted" in text
        assert int(re.findall(r"(\d+) votes were taken", text)[0]) >= 1_000
        # Their votes go with them.
        phone.sees('[data-choice="winter"]', "1 (100 %)")
        until(lambda: number(phone, "#people") == 2, "they have gone")
        with server.connect() as wrong:
            decoded(wrong)
            wrong.send('{"type": "request", "id": "1", "data": {"vote": "monsoon"}}')
            answer = awaited(wrong, lambda message: message.get("type") == "answer")
            assert answer["error"]["code"] == "not-understood"


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
        for _ in range(21):
            phone.click('[data-rounds="1000000"]')
        phone.sees("#wrong", "20 jobs wait or run")


def test_iot_ingest(tmp_path: Path, open_page: Open) -> None:
    token = {"Authorization": "Bearer token-of-device-7"}
    with example("iot_ingest/server.py", tmp_path) as server:
        wrong = {"Authorization": "Bearer token-of-nobody"}
        with pytest.raises(InvalidStatus, match="401"), server.connect(additional_headers=wrong):
            pass
        phone = open_page(server, size=PHONE)
        phone.sees("#state", "live")
        said = crowd(server, tmp_path, "iot_ingest/devices.py", "--devices=20", "--seconds=2")
        assert said == "20 devices sent 400 readings\n"
        phone.sees("#stored", "400")
        assert phone.text("#count") == "20"
        phone.sees("#devices", "device-7")

        # A reading of a device, to the byte: 20.5 degrees and 40.25 per cent in the year 2025.
        with server.connect(additional_headers=token) as device:
            device.send(bytes.fromhex("0101 019a d5f5 a400 0802 0fb9"))
            phone.sees("#stored", "401")
            phone.sees("#devices", "20.50")
        for message in (b"", b"\2\0", b"\1\2" + 10 * b"\0", "a text"):
            with server.connect(additional_headers=token) as device:
                device.send(message)
                assert closed_with(device)[1] == 1003
        phone.sees("#malformed", "4")
        phone.shot("iot-phone")
        open_page(server, size=DESK, dark=True).shot("iot-desk")
        # A page may send nothing.
        with server.connect() as viewer:
            decoded(viewer)
            viewer.send(b"\1\0")
            assert decoded(viewer)["malformed"] == 4

        # Readings that come right before the end are stored, too.
        with server.connect(additional_headers=token) as device:
            device.send(bytes.fromhex("0101 019a d5f5 a401 0802 0fb9"))
            device.ping().wait(PATIENCE)
            assert server.interrupt() == 0
    with closing(sqlite3.connect(tmp_path / "readings.db")) as db:
        rows = db.execute("SELECT * FROM readings WHERE time < 1764526237").fetchall()
        assert db.execute("SELECT count(*) FROM readings").fetchone() == (402,)
    assert rows == [("device-7", 1764526236 + part, 20.5, 40.25) for part in (0.672, 0.673)]


def test_several_hubs(tmp_path: Path, open_page: Open) -> None:
    # The program takes the ports of its hubs, of which `example` adds the first one.
    ports = [free_port() for _ in range(2)]
    with RedisServer(tmp_path) as redis:
        more = [str(port) for port in ports]
        with example("several_hubs/hub.py", tmp_path, *more, BUS=redis.url) as server:
            phone = open_page(server, size=PHONE)
            phone.sees("#state", "connected")
            for port in ports:
                until(lambda port=port: listens(port), "it listens")
            phone.find("#text").send_keys("hello", Keys.ENTER)
            phone.sees("#lines", f"{server.port}: hello")
            desk = open_page(Example(server.program, ports[1]), size=DESK, dark=True)
            desk.sees("#lines", f"{server.port}: hello")
            desk.find("#text").send_keys('{"json": 1}', Keys.ENTER)
            phone.sees("#lines", f'{ports[1]}: {{"json": 1}}')
            phone.shot("hubs-phone")
            desk.shot("hubs-desk")
