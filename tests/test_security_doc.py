"""docs/security.md: its tests exist, its defaults and counters are the hub's, its code runs."""

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
# Those known so far, by section; a few numbers were never given.
KNOWN = {
    f"{section}{number}"
    for section, numbers in {
        "A": [*range(1, 4), *range(5, 8), *range(9, 17), *range(18, 24), *range(25, 33)],
        "B": [*range(1, 17)],
        "C": [*range(1, 13)],
        "D": [1, 2, *range(4, 9)],
        "E": [*range(1, 7), 8, 9],
        "F": [*range(1, 21)],
        "G": [1, 3, 4, *range(6, 21)],
        "H": [*range(1, 5)],
    }.items()
    for number in numbers
}
ROWS = dict(re.findall(r"^\| ([A-H][0-9]+) \| (.+) \|$", TEXT, re.M))
LIMITS = re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \| ([^|]+) \|$", TEXT, re.M)
TESTS = {
    name
    for path in (ROOT / "tests").glob("**/test_*.py")
    for name in re.findall(r"def (test_\w+)", path.read_text())
}


def test_each_number_has_one_row() -> None:
    assert len(re.findall(r"^\| [A-H][0-9]+ \|", TEXT, re.M)) == len(ROWS)
    assert set(ROWS) == KNOWN


@pytest.mark.parametrize("number", sorted(KNOWN))
def test_a_row_names_tests_that_exist_or_says_why_there_is_none(number: str) -> None:
    _, told = ROWS[number].rsplit(" | ", 1)
    names = re.findall(r"`(test_\w+)`", told)
    assert names or told.startswith("cannot happen: ")
    for name in names:
        assert name in TESTS
        assert re.match(rf"test_(?:[A-H]\d+_)*{number}_", name)


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
def test_what_an_attack_moves_is_a_counter_and_its_settings_work(attack: Attack) -> None:
    make_hub(attack.settings)
    stats: Any = Hub().get_stats()
    for part in attack.counter.split(".") if attack.counter else ():
        stats = stats[part] if isinstance(stats, dict) else getattr(stats, part)
