"""Types as users meet them: callbacks that type checkers refuse, or the hub, and completion."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsc_fast import Client, Hub, ValidationError

ROOT = Path(__file__).parent.parent
USES = ROOT / "tests" / "typing_uses.py"
REFUSED = {
    number
    for number, line in enumerate(USES.read_text().splitlines(), 1)
    if line.endswith("# refused")
}


def output_of(*command: str) -> str:
    """The output of a type checker, which looks for its imports where this Python does."""
    tools = str(Path(sys.executable).parent)
    found = {
        **os.environ,
        "PATH": os.pathsep.join([tools, os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "VIRTUAL_ENV": sys.prefix,
    }
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=found, capture_output=True, text=True
    ).stdout


def lines_with_errors(pattern: str, *command: str) -> set[int]:
    return {int(line) for line in re.findall(pattern, output_of(*command, str(USES)))}


def test_mypy_refuses_each_wrong_use_and_nothing_else() -> None:
    pytest.importorskip("mypy")
    # With the options of `make lint`, and so with its cache: another option has another one.
    found = lines_with_errors(r"typing_uses\.py:(\d+): error", "mypy", "--no-color-output")
    assert found == REFUSED


def test_pyright_refuses_each_wrong_use_and_nothing_else() -> None:
    pytest.importorskip("pyright")
    assert lines_with_errors(r"typing_uses\.py:(\d+):\d+ - error", "pyright") == REFUSED


def test_the_type_of_each_public_name_is_declared() -> None:
    pytest.importorskip("pyright")
    command = ("pyright", "--verifytypes", "wsc_fast", "--ignoreexternal", "--outputjson")
    found = json.loads(output_of(*command))["typeCompleteness"]
    assert [
        each["name"]
        for each in found["symbols"]
        if each["isTypeAmbiguous"] or not each["isTypeKnown"]
    ] == []
    assert found["completenessScore"] == 1


def test_there_are_wrong_uses() -> None:
    assert len(REFUSED) == 33


# --- at run time ---

OF_CLIENT = ["on_client_connected", "on_client_disconnected"]
OF_TWO = [
    "on_message_received",
    "on_messages_received",
    "on_error",
    "on_room_joined",
    "on_room_left",
]
OF_ONE_FUNCTION = ["on_request", "on_join_request"]


def takes(count: int) -> list[Callable[..., Any]]:
    """Functions of all kinds with so many arguments."""
    names = ", ".join(f"a{number}" for number in range(count))
    scope: dict[str, Any] = {}
    exec(
        f"def plain({names}): ...\n"
        f"async def later({names}): ...\n"
        f"class Of:\n"
        f"    def __call__(self, {names}): ...\n"
        f"    def method(self, {names}): ...\n",
        scope,
    )
    of = scope["Of"]()
    partial = functools.partial(scope["plain"], **{f"a{count - 1}": 1}) if count else None
    found = [scope["plain"], scope["later"], of, of.method]
    return found if partial is None else [*found, functools.partial(lambda *args: None)]


@pytest.mark.parametrize("name", [*OF_CLIENT, *OF_TWO, *OF_ONE_FUNCTION])
def test_a_callback_that_cannot_take_its_arguments_is_refused_when_it_is_set(name: str) -> None:
    right = 1 if name in OF_CLIENT else 2
    for count in range(4):
        for fn in takes(count):
            register = getattr(Hub(), name)
            if count == right or isinstance(fn, functools.partial):
                assert register(fn) is fn
            else:
                with pytest.raises(ValidationError, match="cannot be called with \\(client"):
                    register(fn)


@pytest.mark.parametrize("fn", [print, [].append, Client, lambda *args: None, dict])
def test_a_callback_may_be_anything_that_takes_its_arguments(fn: Any) -> None:
    assert Hub().on_client_connected(fn) is fn


def test_hooks_and_authenticators_are_checked_too() -> None:
    for name in ("authenticate", "authorize_join", "authorize_publish"):
        with pytest.raises(ValidationError, match="cannot be called"):
            Hub(**{name: lambda: None})


@pytest.mark.parametrize(
    "kind", ["send_failure", "queue_full", "user_offline", "connection_error", "timeout"]
)
def test_a_failure_handler_that_cannot_take_its_arguments_is_refused(kind: str) -> None:
    handler = type("Handler", (), {f"handle_{kind}": lambda self, msg: None})()
    with pytest.raises(ValidationError, match="cannot be called with \\(msg"):
        getattr(Hub(), f"add_{kind}_handler")(handler)


# --- completion ---


def test_completion_of_a_hub_shows_public_names_alone() -> None:
    shown = dir(Hub())
    assert [name for name in shown if name.startswith("_")] == []
    assert {"broadcast", "config", "loop", "on_room_joined", "run", "send_ack_message"} <= set(
        shown
    )


def test_editors_and_python_complete_the_same_names_of_a_client() -> None:
    shown = {
        member.name
        for stub in (ROOT / "wsc_fast" / "_core").glob("*.pyi")
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name in {each.__name__ for each in Client.mro()}
        for member in node.body
        if isinstance(member, ast.FunctionDef) and not member.name.startswith("_")
    }
    assert shown == set(dir(Client(Hub()._engine)))


def test_completion_of_a_client_shows_nothing_of_its_transport() -> None:
    client = Client(Hub()._engine)
    assert {
        *("close_code", "close_reason", "conn", "connected_at", "device_id", "disconnect"),
        *("dropped_messages", "get_user_data", "hub", "id", "is_connected", "last_activity"),
        *("queued_bytes", "queued_messages", "remote_address", "rooms", "send", "set_user_data"),
        *("subprotocol", "user_data", "user_id"),
    } <= set(dir(client))
    for name in dir(client):
        assert not name.startswith(("_", "on_ws_", "connection_"))
        assert name not in ("get_buffer", "buffer_updated", "eof_received", "pause_writing")
