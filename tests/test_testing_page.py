"""docs/testing-applications.md: its programs and tests, run as a reader would."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.test_testing_plugin import INI, passed, run
from wsc_fast import Hub, Response
from wsc_fast.testing import running

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/testing-applications.md").read_text()
BLOCKS = re.findall(r'```python\n("""(\w+)\.py"""\n.*?)```', PAGE, re.S)
FILES = {name: code for code, name in BLOCKS}
# pytest-asyncio where it is installed, else anyio's plugin, which every test environment has.
ASYNCIO = importlib.util.find_spec("pytest_asyncio") is not None
RUNNER = "pytest_asyncio.plugin" if ASYNCIO else "anyio"
SETTINGS = "asyncio_default_fixture_loop_scope = function\n" if ASYNCIO else ""


def of_page(*names: str) -> dict[str, str]:
    files = {name: FILES[name] for name in names}
    if not ASYNCIO:
        files = {
            name: code.replace("@pytest.mark.asyncio", "@pytest.mark.anyio")
            for name, code in files.items()
        }
    return files


def test_each_block_is_known() -> None:
    assert sorted(FILES) == [
        "chat",
        "conftest",
        "test_chat",
        "test_cluster",
        "test_django",
        "test_fastapi",
    ]
    assert len(re.findall("^```python$", PAGE, re.M)) == len(FILES)


async def test_routes_in_an_application_are_answered_on_the_loop_of_the_test() -> None:
    hub = Hub()
    hub.route("/status")(lambda request: Response(200, b"fine"))

    async def rest(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError(scope)

    transport = httpx.ASGITransport(hub.asgi_routes(rest))
    async with running(hub), httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        answer = await http.get("/status")
        assert (answer.status_code, answer.text) == (200, "fine")


BACKEND = """

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


def test_the_first_tests_pass(tmp_path: Path) -> None:
    files = of_page("chat", "conftest", "test_chat")
    files["conftest"] += BACKEND
    passed(run(tmp_path, "-p", RUNNER, ini=INI + SETTINGS, **files), 4)


@pytest.mark.skipif(
    not any(map(shutil.which, ("redis-server", "valkey-server"))), reason="no Redis is installed"
)
def test_the_cluster_passes(tmp_path: Path) -> None:
    passed(run(tmp_path, ini=INI, **of_page("chat", "conftest", "test_cluster")), 1)


@pytest.mark.parametrize("name", ["fastapi", "django"])
def test_the_tests_beside_a_framework_pass(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"with_{name}"
    shutil.copy(ROOT / f"examples/frameworks/{program}.py", tmp_path)
    monkeypatch.setenv("JWT_SECRET", "s" * 32)
    monkeypatch.setenv("SECRET_KEY", "s" * 32)
    conftest = f'import pytest\npytest_plugins = ["wsc_fast.testing.plugin"]\n{BACKEND}'
    ini = INI.replace("app:make_hub", f"{program}:hub").replace("filterwarnings = error\n", "")
    files = of_page(f"test_{name}")
    passed(run(tmp_path, "-p", RUNNER, ini=ini + SETTINGS, conftest=conftest, **files), 2)
