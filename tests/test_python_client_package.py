"""wsc-client as it is installed: into an empty environment, where the lines of its README run."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
import typing
import venv
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import wsc_client
from wsc_client.options import OptionNames, Options

from tests.support import ROOT
from wsc_fast import Client, Hub
from wsc_fast.testing import running_in_thread

HERE = ROOT / "clients" / "python"
README = (HERE / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with wsc-client, and with websockets as another one has it."""
    directory = tmp_path_factory.mktemp("empty")
    shutil.copytree(
        HERE, directory / "source", ignore=shutil.ignore_patterns("build", "*.egg-info")
    )
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    done(*wheel, "-w", str(directory), str(directory / "source"))
    venv.create(directory / "venv", symlinks=True)
    (site,) = (directory / "venv").glob("lib/python*/site-packages")
    websockets = distribution("websockets")
    for name in {Path(str(each)).parts[0] for each in websockets.files or ()} - {".."}:
        shutil.copytree(str(websockets.locate_file(name)), site / name)
    (made,) = directory.glob("*.whl")
    target = ["--target", str(site), "--no-index", "--no-deps"]
    done(sys.executable, "-m", "pip", "install", "-q", *target, str(made))
    return directory / "venv" / "bin" / "python"


def done(*command: str) -> str:
    """Runs a command without the sources of this tree; returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def chat() -> Hub:
    """A hub for the lines of the README."""
    hub = Hub()
    hub.keep("chat:*")
    hub.on_join_request(lambda client, room_id: room_id.startswith("chat:"))

    @hub.on_room_joined
    async def joined(client: Client, room_id: str) -> None:
        await hub.publish(room_id, '"hello to all"')
        client.disconnect(1000)

    @hub.on_request
    def answer(client: Client, data: Any) -> Any:
        client.send('"news"')
        return {"price": 17}

    return hub


def test_the_five_lines_of_the_readme_run_in_an_empty_environment(python: Path) -> None:
    first = BLOCKS[0].replace("\n\n", "\n")
    assert len(first.splitlines()) == 5
    with running_in_thread(chat()) as hub:
        url = f"ws://127.0.0.1:{hub.port}/ws"
        body = textwrap.indent(first.replace("wss://app.example/ws", url), "    ")
        code = f"import asyncio\nasync def main():\n{body}\nasyncio.run(main())\n"
        assert done(str(python), "-W", "error", "-c", code) == "hello to all\n"


def test_the_lines_for_scripts_run_there_too(python: Path) -> None:
    (script,) = (block for block in BLOCKS if "wsc_client.sync" in block)
    with running_in_thread(chat()) as hub:
        code = script.replace("wss://app.example/ws", f"ws://127.0.0.1:{hub.port}/ws")
        assert done(str(python), "-W", "error", "-c", code) == "{'price': 17}\nnews\n"


def test_it_is_pure_python_with_types_and_brings_its_license(python: Path) -> None:
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    installed = {path.name for path in (site / "wsc_client").iterdir()}
    sources = {path.name for path in (HERE / "src" / "wsc_client").iterdir()}
    assert installed - {"__pycache__"} == sources - {"__pycache__"}
    assert "py.typed" in installed
    (info,) = site.glob("wsc_client-*.dist-info")
    assert "Root-Is-Purelib: true" in (info / "WHEEL").read_text()
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0][:40])
def test_each_block_of_the_readme_is_python(block: str) -> None:
    ast.parse(block)  # a top-level `await` is no error of the parser


def test_the_names_of_the_readme_are_public() -> None:
    for imports in re.findall(r"^from wsc_client import (.*)$", README, re.M):
        assert set(imports.split(", ")) <= set(wsc_client.__all__)
    assert sorted(wsc_client.__all__) == wsc_client.__all__
    for name in wsc_client.__all__:
        assert getattr(wsc_client, name).__doc__ or name in ("Event", "State")


def test_each_option_has_its_type_and_a_line_in_its_docstring() -> None:
    options = {name for name in Options.__dataclass_fields__ if not name.startswith("_")}
    assert set(typing.get_type_hints(OptionNames)) == options
    for name in options:
        assert re.search(rf"^ *(\w+, )*{name}(, \w+)*: ", Options.__doc__ or "", re.M), name


def test_the_extra_of_the_command_line_takes_this_version() -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (named,) = (
        each for each in ours["optional-dependencies"]["cli"] if each.startswith("wsc-client")
    )
    version = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["version"]
    assert version.split(".") >= named.partition(">=")[2].split(".")


def test_without_the_package_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['wsc_client'] = None\nfrom wsc_fast.cli import main\n"
    code += "sys.argv = ['wsc-fast', 'tail', 'localhost:1']\nmain()\n"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 1
    assert run.stderr.startswith("wsc-fast: this command needs wsc-client")
    assert "pip install 'wsc_fast[cli]'" in run.stderr
    assert len(run.stderr.splitlines()) == 1
