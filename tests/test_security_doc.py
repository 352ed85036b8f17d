"""docs/security.md: defaults and counters are the hub's, the code runs, each attack has a row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from trials.attack.attacks import ATTACKS, Attack
from trials.attack.server import INTERNET, make_hub
from wsc_fast import Hub, HubConfig

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/security.md").read_text()
LIMITS = re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \| ([^|]+) \|$", TEXT, re.M)


@pytest.mark.parametrize(("name", "default", "counters"), LIMITS, ids=[row[0] for row in LIMITS])
def test_a_limit_has_its_default_and_its_counters(name: str, default: str, counters: str) -> None:
    units = {"KiB": 1 << 10, "MiB": 1 << 20}
    number, _, unit = default.partition(" ")
    told = float(number.replace(",", "")) * units.get(unit, 1)
    assert told == getattr(HubConfig(), name)
    stats = Hub().get_stats()
    for field, key in re.findall(r"`(\w+)(?:\[\"(\w+)\"\])?`", counters):
        value = getattr(stats, field)
        assert (value[key] if key else value) is not None


def test_every_counted_limit_has_a_row() -> None:
    assert set(Hub().get_stats().limited) <= {row[0] for row in LIMITS}


def test_the_configuration_is_what_is_attacked() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict[str, HubConfig] = {}
    exec(block, names)
    attacked = HubConfig(**INTERNET | {"enable_compression": False})
    assert names["config"] == attacked


def test_every_attack_has_a_row() -> None:
    for attack in ATTACKS:
        counter = f"`{attack.counter}`" if attack.counter else "none"
        assert f"\n| {attack.title} | {attack.memory:g} | {counter} |\n" in TEXT


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_an_attack_moves_a_counter_and_its_settings_work(attack: Attack) -> None:
    make_hub(attack.settings)
    stats: Any = Hub().get_stats()
    for part in attack.counter.split(".") if attack.counter else ():
        stats = stats[part] if isinstance(stats, dict) else getattr(stats, part)
