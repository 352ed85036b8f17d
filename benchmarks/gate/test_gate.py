"""That the gate closes: a flush made ten per cent slower does not get through."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gate import run
from benchmarks.gate.run import FIGURES, RATIOS, ROOT, check, compare, count, toolchain

FLUSH = "broadcast: flush"
# The send of one client's frames, in a flush: a place that each delivered message passes once.
SEND = "static inline ssize_t wsc_send(int fd, const struct iovec *iov, int count) {\n"
BUILD = """
from setuptools import distutils
from distutils.core import run_setup

distribution = run_setup("setup.py", stop_after="init")
distribution.ext_modules = [
    module for module in distribution.ext_modules if module.name == "wsc_fast._core.fanout"
]
command = distribution.get_command_obj("build_ext")
command.inplace = True
command.ensure_finalized()
command.run()
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package, built; what is changed in it can be built again."""
    for name in ("src_cy", "wsc_fast", "build/cython"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "fanout*.so")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, tmp_path)
    return tmp_path


def build(tree: Path) -> None:
    subprocess.run([sys.executable, "-c", BUILD], cwd=tree, check=True, stdout=subprocess.DEVNULL)


def recorded() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(FIGURES.read_text())
    return figures


@pytest.mark.timeout(240)
def test_a_flush_that_is_ten_per_cent_slower_closes_the_gate(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = count([FLUSH])
    # The tolerance is the recorded one, the figure that of this machine's compiler and libraries.
    figures = recorded()
    figures["instructions"][FLUSH]["median"] = before[FLUSH]
    figures["toolchain"] = toolchain()

    build(tree)
    unchanged = count([FLUSH], root=tree)
    assert check(figures, unchanged), "built in another place, the same source costs the same"

    net = tree / "src_cy" / "net.h"
    source = net.read_text()
    assert source.count(SEND) == 1
    busy = f'    __asm__ volatile(".rept {before[FLUSH] / 10:.0f}\\n\\tnop\\n\\t.endr");\n'
    net.write_text(source.replace(SEND, SEND + busy))
    build(tree)
    slower = count([FLUSH], root=tree)
    assert slower[FLUSH] / before[FLUSH] == pytest.approx(1.1, abs=0.01)
    assert not check(figures, slower)
    assert f"The gate is closed: {FLUSH}." in capsys.readouterr().out


def test_the_recorded_tolerances_are_tight_and_wider_than_the_noise() -> None:
    figures = recorded()
    assert figures["runs"] >= 10
    now = {name: figure["median"] for name, figure in figures["instructions"].items()}
    for each in compare(figures, now, same_toolchain=True):
        group = figures["ratios" if each.name in RATIOS else "instructions"]
        assert 2 * group[each.name]["spread"] < each.tolerance < 0.05, each.name


def test_a_figure_past_its_tolerance_closes_the_gate(capsys: pytest.CaptureFixture[str]) -> None:
    figures = recorded()
    figures["toolchain"] = toolchain()
    now = {name: figure["median"] for name, figure in figures["instructions"].items()}
    assert check(figures, now)
    assert "Faster" not in capsys.readouterr().out
    for name in figures["instructions"]:
        changed = copy.copy(now)
        changed[name] *= 1.06
        # A peer that gets slower is no fault of ours.
        peer = name in {peer for _, peer in RATIOS.values()}
        assert check(figures, changed) == peer, name
    capsys.readouterr()
    assert check(figures, {**now, FLUSH: now[FLUSH] * 0.9})
    assert "Faster than recorded" in capsys.readouterr().out


def test_what_disturbs_one_run_does_not_close_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = recorded()
    figures["toolchain"] = toolchain()
    now = {name: figure["median"] for name, figure in figures["instructions"].items()}
    runs = [{**now, FLUSH: now[FLUSH] * 1.1}, now]
    monkeypatch.setattr(run, "count", lambda: runs.pop(0))
    assert check(figures, run.counted(figures))
    assert not runs, "it was counted twice"


def test_another_compiler_is_allowed_more_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    figures = recorded()
    figures["toolchain"] = {**toolchain(), "compiler": "another one"}
    now = {name: figure["median"] for name, figure in figures["instructions"].items()}
    assert check(figures, {**now, FLUSH: now[FLUSH] * 1.1})
    assert "but another one when recorded" in capsys.readouterr().out
    assert not check(figures, {**now, FLUSH: now[FLUSH] * 1.5})
