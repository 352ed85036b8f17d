"""tests.spread, by which `make test` runs the tests: nothing is lost, and no failure is hidden."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import spread

ROOT = Path(__file__).parents[1]
TESTS = """
import os
import pytest

@pytest.mark.alone
@pytest.mark.fast
def test_alone():
    assert "PYTEST_XDIST_WORKER" not in os.environ

@pytest.mark.alone
def test_alone_and_slow(): pass

@pytest.mark.fast
def test_beside_others():
    assert "PYTEST_XDIST_WORKER" in os.environ

def test_slow(): pass
"""


def test_each_chosen_test_runs_once_and_the_last_line_is_of_those_that_share(
    tmp_path: Path,
) -> None:
    (tmp_path / "test_both.py").write_text(TESTS)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.spread", "-p", "xdist", "-n", "1", "-m", "fast or quick"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.findall(r"(\d+) passed", done.stdout) == ["1", "1"]
    assert "1 passed" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("alone", "together", "code"),
    [(0, 0, 0), (1, 0, 1), (0, 1, 1), (5, 0, 0), (0, 5, 0), (5, 1, 1), (5, 5, 5), (-11, 0, -11)],
)
def test_a_failure_of_either_part_is_one_of_the_whole(
    alone: int, together: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = [alone, together]
    monkeypatch.setattr(spread, "pytest", lambda *arguments: codes.pop(0))
    assert spread.main([]) == code
    assert codes == []


def test_an_interrupt_of_the_first_part_ends_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [spread.INTERRUPTED]
    monkeypatch.setattr(spread, "pytest", lambda *arguments: codes.pop())
    assert spread.main([]) == spread.INTERRUPTED
