"""A short `make torture`: SIGKILL at random moments loses, doubles and reorders nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from redis_server import PROGRAM

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_G8_what_was_accepted_survives_kill_9(store: str) -> None:
    if store == "redis" and PROGRAM is None:
        pytest.skip("redis-server is not installed")
    run = subprocess.run(
        [sys.executable, ROOT / "torture/run.py", "--store", store, "--rounds", "5"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    reported = re.match(rf"{store}: (\d+) messages reported, .* lost 0, doubled 0, ", run.stdout)
    assert reported is not None, run.stdout
    assert int(reported[1]) > 100
