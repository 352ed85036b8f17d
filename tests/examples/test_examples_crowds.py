"""examples/market_data, live_poll and iot_ingest, with their pages and simulated peers."""

from __future__ import annotations

import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.browsers.window import needs_chromium
from tests.examples.pages import DESK, PHONE, Open, crowd, number
from tests.examples.support import PATIENCE, awaited, closed_with, decoded, example, until

pytest.importorskip("selenium")
from selenium.webdriver.common.by import By

pytestmark = needs_chromium


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
        phone.sees("#devices", "device-007")

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
    assert rows == [("device-007", 1764526236 + part, 20.5, 40.25) for part in (0.672, 0.673)]
