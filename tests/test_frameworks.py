"""The recipes of docs/frameworks.md: a login, a request that publishes, and a client that hears it.

Each program runs in a process, and is ended by SIGTERM.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import websockets
from websockets import Origin
from websockets.sync.client import ClientConnection, connect

from tests.ports import free_port

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples/frameworks"
SECRET = "a secret of 32 bytes, or of more"
# Seconds that a process may take to begin or to answer, on a machine that is busy.
PATIENCE = 60

NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


class Recipe(NamedTuple):
    """One program.

    Attributes:
        name: of its file.
        proof: of the login, for an upgrade: a token in a header, a ticket in the query, a cookie.
        ports: that the program names: of its pages, and of the hub if that is another one.
        code: its exit code after SIGTERM. uvicorn ends by the signal once it has ended well.
    """

    name: str
    proof: str
    ports: tuple[str, ...] = ("8000",)
    code: int = -signal.SIGTERM


RECIPES = [
    Recipe("with_fastapi", "token"),
    Recipe("with_starlette", "ticket"),
    Recipe("with_django", "cookie"),
    Recipe("with_flask", "cookie", ("8000", "8080"), 0),
    Recipe("with_litestar", "token"),
]


class Site(NamedTuple):
    """A running program."""

    recipe: Recipe
    process: subprocess.Popen[str]
    ports: list[int]

    def post(self, path: str, body: object, **headers: str) -> tuple[int, Any, str]:
        """Status, JSON and cookie of the answer to a request."""
        asked = http.client.HTTPConnection("127.0.0.1", self.ports[0], timeout=PATIENCE)
        fields = {"Content-Type": "application/json", **headers}
        asked.request("POST", path, json.dumps(body), fields)
        with asked.getresponse() as answer:
            text = answer.read()
        asked.close()
        cookie = (answer.headers["Set-Cookie"] or "").partition(";")[0]
        return answer.status, json.loads(text), cookie

    def connect(self, query: str = "", **headers: str) -> ClientConnection:
        return connect(
            f"ws://127.0.0.1:{self.ports[-1]}/ws{query}",
            additional_headers=headers,
            origin=Origin(f"http://127.0.0.1:{self.ports[0]}"),
            open_timeout=PATIENCE,
        )

    def refuses(self, query: str = "", **headers: str) -> bool:
        with pytest.raises(websockets.InvalidStatus) as caught:
            self.connect(query, **headers)
        return caught.value.response.status_code == 401

    def log_in(self, user: str, password: str) -> tuple[str, dict[str, str], dict[str, str]]:
        """Query and headers of an upgrade, and the headers of a request."""
        status, answer, cookie = self.post("/login", {"user": user, "password": password})
        assert status in (200, 201)
        if self.recipe.proof == "ticket":
            _, answer, _ = self.post("/ticket", {}, Cookie=cookie)
            return f"?ticket={answer['ticket']}", {}, {"Cookie": cookie}
        if self.recipe.proof == "cookie":
            return "", {"Cookie": cookie}, {"Cookie": cookie}
        bearer = {"Authorization": f"Bearer {answer['token']}"}
        return "", bearer, bearer


@contextmanager
def served(recipe: Recipe, folder: Path) -> Iterator[Site]:
    ports = [free_port() for _ in recipe.ports]
    code = (FOLDER / f"{recipe.name}.py").read_text()
    for old, new in zip(recipe.ports, ports, strict=True):
        code = re.sub(rf"\b{old}\b", str(new), code)
    (folder / "program.py").write_text(code)
    with subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JWT_SECRET": SECRET, "SECRET_KEY": SECRET},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            for port in ports:
                wait_until_listening(process, port)
            yield Site(recipe, process, ports)
        finally:
            process.kill()


def wait_until_listening(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
            return
        except OSError:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.02)


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.name for recipe in RECIPES])
def test_a_request_publishes_to_the_clients_that_have_logged_in(
    recipe: Recipe, tmp_path: Path
) -> None:
    with served(recipe, tmp_path) as site:
        assert site.post("/login", {"user": "ann", "password": "wrong"})[0] == 401
        assert site.post("/login", {"user": "nobody", "password": ""})[0] == 401
        assert site.refuses()
        assert site.refuses("?ticket=wrong", Authorization="Bearer x.y.z", Cookie="session=x.y.z")
        message = {"text": "hello"}
        assert site.post("/rooms/news/messages", message)[0] == 401

        query, upgrade, _ = site.log_in("ann", "tea")
        *_, headers = site.log_in("bob", "rain")
        with site.connect(query, **upgrade) as ann:
            assert recipe.proof != "ticket" or site.refuses(query)  # it counts once
            status, answer, _ = site.post("/rooms/news/messages", message, **headers)
            assert (status, answer) == (200, {"receivers": 1})
            assert ann.recv(timeout=PATIENCE) == "bob: hello"
            assert site.post("/rooms/tea/messages", message, **headers)[0] == 404

            site.process.send_signal(signal.SIGTERM)
            with pytest.raises(websockets.ConnectionClosed) as caught:
                ann.recv(timeout=PATIENCE)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1001
        out, _ = site.process.communicate(timeout=PATIENCE)
        assert (site.process.returncode, "Traceback" in out) == (recipe.code, False), out


def test_the_test_of_an_application_passes(tmp_path: Path) -> None:
    for name in ("with_fastapi.py", "test_with_fastapi.py"):
        shutil.copy(FOLDER / name, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_with_fastapi.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JWT_SECRET": SECRET},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_the_program_as_it_is(name: str) -> None:
    code = (FOLDER / f"{name}.py").read_text()
    assert f"```python\n{code}```" in (ROOT / "docs/frameworks.md").read_text()


def test_each_program_has_a_recipe() -> None:
    recipes = {name for name in NAMES if name.startswith("with_")}
    assert recipes == {recipe.name for recipe in RECIPES}
