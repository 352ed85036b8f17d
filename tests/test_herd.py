"""A short run of clients that lose a hub at once, and wrong courses, which it has to notice."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from tests.clients.javascript import built
from tests.support import ROOT
from trials.clients.herd import STEP, Course, course_of, curve


def test_clients_come_back_one_by_one_and_the_hub_keeps_its_rate() -> None:
    built()  # skips where it cannot be
    run = subprocess.run(
        [sys.executable, "-m", "trials.clients.herd", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "500 clients on a virtual clock" in run.stdout


def test_the_curve_is_that_of_sums_of_uniform_times() -> None:
    # The sum of n uniform times, of which each bound is twice the one before, is below the first
    # bound with the chance of 1 / (n! * the product of the bounds).
    by = curve(2.0, 1.0, 30.0)
    assert by[int(1 / STEP)] == pytest.approx(1 + 1 / 4 + 1 / 48 + 1 / 1536, rel=0.01)
    rng = random.Random(1)
    tried = 0
    for _ in range(20_000):
        at, bound = rng.random(), 2.0
        while at <= 2.0:
            tried += 1
            at += rng.random() * bound
            bound *= 2
    assert by[-1] == pytest.approx(tried / 20_000, rel=0.02)


def course(attempts: Sequence[float], **changed: Any) -> Course:
    """A course in which each of 1,000 clients made an attempt, and was let in by its last one."""
    known: dict[str, Any] = {"ready": 0.0, "exact": True, "let_in": attempts, **changed}
    rate = known.pop("rate", 10_000.0)
    opened = known.pop("opened", attempts)
    return course_of([attempts, opened], 1000, rate, (1.0, 30.0), **known)


FULL_JITTER = [number / 1000 for number in range(1, 1001)]


def test_full_jitter_is_right() -> None:
    assert course(FULL_JITTER).wrong() == []
    assert course(FULL_JITTER, exact=False).wrong() == []


def test_attempts_that_come_at_once_are_noticed() -> None:
    one_second_later = [1 + number / 1e6 for number in range(1, 1001)]
    (found,) = course(one_second_later).wrong()
    assert found.startswith("1000 attempts from 1 to 2 s")
    sooner = [number / 2000 for number in range(1, 2001)]
    (found,) = course(sooner, opened=FULL_JITTER, exact=False).wrong()
    assert found.startswith("2000 attempts from 0 to 1 s")


def test_a_hub_beyond_its_rate_is_noticed() -> None:
    # As many as the rate may come at once, and then one in each 10 ms.
    bucket = [0.0] * 100 + [number / 100 for number in range(1, 901)]
    kept = course(FULL_JITTER, rate=100.0, let_in=bucket)
    assert kept.wrong() == []
    faster = [each / 1.2 for each in bucket]
    (found,) = course(FULL_JITTER, rate=100.0, let_in=faster).wrong()
    assert found.startswith("the hub let in ")


def test_a_client_that_does_not_come_back_is_noticed() -> None:
    (found,) = course(FULL_JITTER, opened=FULL_JITTER[1:]).wrong()
    assert found == "999 of 1000 clients came back"
