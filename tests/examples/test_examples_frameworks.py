"""examples/fastapi_dashboard, django_chat and celery_notifications, with their pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browsers.window import Window, needs_chromium
from tests.examples.pages import DESK, PHONE, Open, number
from tests.examples.support import PATIENCE, closed_with, example, until
from tests.redis_server import RedisServer

pytest.importorskip("selenium")
from selenium.webdriver.common.keys import Keys

pytestmark = needs_chromium


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
    with example("django_chat/server.py", tmp_path, SECRET_KEY="a secret of the test's") as server:
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
