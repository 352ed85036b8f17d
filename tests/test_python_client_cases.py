"""All cases of clients/cases.json on the client in Python, with a virtual clock."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.clients.python_world import World, matches
from tests.support import ROOT

ALL: list[dict[str, Any]] = json.loads((ROOT / "clients/cases.json").read_text())["cases"]
CASES = [case for case in ALL if not case.get("page")]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
async def test_case(case: dict[str, Any], any_loop: str) -> None:
    world = World(case)
    if case.get("begin") == "open":
        await world.act({"do": "connect"})
        await world.act({"do": "open"})
        world.did = []
    for number, step in enumerate(case["steps"], 1):
        await world.act(step)
        where = f"step {number}, {step['do']}"
        if not matches(world.did, step.get("expect", [])):
            assert world.did == step.get("expect", []), where
        assert world.settled == step.get("settled", []), where
        world.did, world.settled = [], []
    await world.end()


def test_each_rule_of_a_case_stands_in_the_specification() -> None:
    named = set(re.findall(r"\*\*([A-Z]\d)\.?\*\*", (ROOT / "clients/spec.md").read_text()))
    assert {rule for case in ALL for rule in case["rules"]} <= named
    assert len(CASES) > 70


@pytest.mark.parametrize(
    ("seen", "expected", "same"),
    [
        ({"a": [1, "x"]}, {"a": [1, "*"]}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": True}, {"a": 1}, False),
        ([1, 2], [1], False),
        ([], {}, False),
    ],
)
def test_what_was_seen_is_compared_as_a_whole(seen: Any, expected: Any, same: bool) -> None:
    assert matches(seen, expected) == same
