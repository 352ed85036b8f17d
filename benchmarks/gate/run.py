"""The gate: instructions per message, compared with the recorded ones.

    python benchmarks/gate/run.py                 compares; exit code 1 where something costs more
    python benchmarks/gate/run.py --record        records anew, in gate.json

Times are of little use on a machine that others share; what a program executes is not. valgrind
counts it, so that any x86-64 or ARM machine will do, busy or not. The count contains neither the
work of the kernel nor the cost of cache misses: the other benchmarks are for that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FIGURES = HERE.parent / "gate.json"

# A figure may rise by so many times the spread that it had in the recorded runs, and by LEAST in
# any case, since a build elsewhere is no run of the same build (paths have other lengths).
SPREADS = 5
LEAST = 0.01
# The bound where the compiler, Python or a library is another one than recorded. It is above the
# rise with each of the toolchains that were tried (README.md).
OTHER_TOOLCHAIN = 0.35

# Ours over a peer's; ours may be the sum of several figures.
RATIOS: dict[str, tuple[tuple[str, ...], str]] = {
    "broadcast / picows' loop of sends": (
        ("broadcast: walk", "broadcast: flush"),
        "picows: loop of sends",
    ),
    "broadcast / websockets.broadcast": (
        ("broadcast: walk", "broadcast: flush"),
        "websockets: broadcast",
    ),
    "echo / picows' echo": (("echo",), "picows: echo"),
}
PEERS = {peer for _, peer in RATIOS.values()}

Figures = dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """One figure, recorded and now."""

    name: str
    recorded: float
    now: float
    tolerance: float

    @property
    def change(self) -> float:
        return self.now / self.recorded - 1

    @property
    def worse(self) -> bool:
        return self.change > self.tolerance

    @property
    def better(self) -> bool:
        return self.change < -self.tolerance


def count(
    names: Iterable[str] = (),
    *,
    root: Path = ROOT,
    padding: int = 0,
    program: Path = HERE / "scenarios.py",
) -> Figures:
    """Instructions per message of each scenario, in one run of the package under `root`.

    `padding` bytes more in the environment move the stack, as another machine's would. The program
    is another one than the gate's where an experiment has scenarios of its own.
    """
    library = build_library()
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        process = subprocess.run(
            [
                "valgrind",
                "--tool=callgrind",
                "--instr-atstart=no",
                "--collect-atstart=no",
                f"--callgrind-out-file={out}",
                sys.executable,
                "-P",
                program,
                library,
                *names,
            ],
            env=environment(root, padding),
            capture_output=True,
            text=True,
        )
        if process.returncode:
            raise SystemExit(f"the scenarios failed under valgrind:\n{process.stderr}")
        messages: dict[str, int] = json.loads(process.stdout)
        spent: dict[str, list[int]] = {name: [] for name in messages}
        for part in Path(directory).glob("out.*"):
            text = part.read_text()
            named = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
            total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
            assert named is not None, part
            assert total is not None, part
            spent[named[1]].append(int(total[1]))
    # The least of equal rounds: whatever else there is, such as a timer in one of them, is on top.
    return {name: min(spent[name]) / messages[name] for name in messages}


def environment(root: Path, padding: int) -> dict[str, str]:
    # Nothing of the caller's, which would move memory; one hash seed; nothing bound in a counted
    # round; of each function of the C library the variant that every x86-64 has.
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(root),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-AVX,-ERMS,-FSRM,-SSSE3,-SSE4_1,-SSE4_2",
        "LD_BIND_NOW": "1",
        "PADDING": "x" * padding,
    }


def build_library() -> Path:
    library = ROOT / "build" / "bench" / "callgrind.so"
    source = HERE / "callgrind.c"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        library.parent.mkdir(parents=True, exist_ok=True)
        made = library.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [os.environ.get("CC", "cc"), "-O1", "-shared", "-fPIC", "-o", made, source], check=True
        )
        made.replace(library)
    return library


def toolchain() -> dict[str, str]:
    """The programs and libraries that counts depend on, besides our own source."""
    modules = [path.read_bytes() for path in ROOT.glob("wsc_fast/_core/fanout*.so")]
    assert len(modules) == 1, "build first: one compiled wsc_fast/_core/fanout"
    compiler = re.search(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+", modules[0])
    cython = re.search(rb"__Pyx_ImportType_(\d+_\d+_\w+)", modules[0])
    assert compiler is not None
    assert cython is not None
    valgrind = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True)
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "compiler": compiler[0].decode(),
        "cython": cython[1].decode().replace("_", "."),
        "libc": " ".join(platform.libc_ver()),
        "valgrind": valgrind.stdout.strip(),
        **{name: version(name) for name in ("msgspec", "picows", "uvloop", "websockets")},
    }


def ratios(figures: Figures) -> Figures:
    """The ratios of which all parts were counted."""
    return {
        name: sum(figures[part] for part in ours) / figures[peer]
        for name, (ours, peer) in RATIOS.items()
        if figures.keys() >= {peer, *ours}
    }


def summary(runs: Collection[Figures]) -> dict[str, dict[str, float]]:
    """Median of each figure and how far its runs lie apart."""
    result = {}
    for name in next(iter(runs)):
        values = [run[name] for run in runs]
        middle = median(values)
        spread = (max(values) - min(values)) / middle
        result[name] = {"median": round(middle, 4), "spread": round(spread, 6)}
    return result


def recorded_of(runs: Collection[Figures]) -> dict[str, Any]:
    """The contents of gate.json."""
    return {
        "about": "instructions per message, counted by valgrind; see benchmarks/README.md",
        "recorded": date.today().isoformat(),
        "runs": len(runs),
        "tolerance": {
            "spreads": SPREADS,
            "least": LEAST,
            "other_toolchain": OTHER_TOOLCHAIN,
        },
        "toolchain": toolchain(),
        "instructions": summary(runs),
        "ratios": summary([ratios(run) for run in runs]),
    }


def compare(recorded: dict[str, Any], now: Figures, same_toolchain: bool) -> list[Comparison]:
    """Ours, and the ratios; a peer's own figure is no business of the gate.

    Another toolchain moves peers too, so that ratios then say nothing of us.
    """
    tolerance = recorded["tolerance"]
    groups = {"instructions": now}
    if same_toolchain:
        groups["ratios"] = ratios(now)
    found = []
    for group, figures in groups.items():
        for name, value in figures.items():
            if name in PEERS:
                continue
            old = recorded[group].get(name)
            if old is None:
                raise SystemExit(f"{name!r} is not in the recorded figures: record them anew")
            allowed = max(tolerance["least"], tolerance["spreads"] * old["spread"])
            if not same_toolchain:
                allowed = max(allowed, tolerance["other_toolchain"])
            found.append(Comparison(name, old["median"], value, allowed))
    return found


def table(comparisons: Iterable[Comparison]) -> str:
    lines = ["| | recorded | now | change | allowed | |", "| --- | --- | --- | --- | --- | --- |"]
    for each in comparisons:
        digits = 0 if each.recorded >= 100 else 4 if each.recorded < 1 else 1
        lines.append(
            f"| {each.name} | {each.recorded:,.{digits}f} | {each.now:,.{digits}f} "
            f"| {each.change:+.2%} | {each.tolerance:+.2%} "
            f"| {'WORSE' if each.worse else 'better' if each.better else ''} |"
        )
    return "\n".join(lines)


def differing(recorded: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    """The parts of the toolchain that differ from the recorded ones: now, and then."""
    before = recorded["toolchain"]
    return {
        name: (tool, before.get(name))
        for name, tool in toolchain().items()
        if tool != before.get(name)
    }


def check(recorded: dict[str, Any], now: Figures) -> bool:
    """Prints the comparison; whether the gate is open."""
    others = differing(recorded)
    comparisons = compare(recorded, now, not others)
    print(table(comparisons))
    for name, (tool, before) in others.items():
        print(f"{name}: {tool}, but {before} when recorded")
    if others:
        print("So more is allowed than usual: record anew with `make bench-gate RECORD=1`.")
    worse = [each.name for each in comparisons if each.worse]
    if worse:
        print(f"The gate is closed: {'; '.join(worse)}.")
    elif any(each.better for each in comparisons):
        print("Faster than recorded: `make bench-gate RECORD=1` keeps it so.")
    return not worse


def counted(recorded: dict[str, Any]) -> Figures:
    """One run; another one where something is worse, and the lower figures: code costs the same
    each time, what disturbs a run does not."""
    now = count()
    if any(each.worse for each in compare(recorded, now, not differing(recorded))):
        again = count()
        now = {name: min(figure, again[name]) for name, figure in now.items()}
    return now


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--runs", type=int, default=10, help="to record; the spread is theirs")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        raise SystemExit("the gate needs valgrind (Debian's package has its headers too)")
    if not arguments.record:
        figures = json.loads(arguments.figures.read_text())
        return 0 if check(figures, counted(figures)) else 1
    paddings = random.Random(1)
    build_library()  # before the threads, which would each do so
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = [
            pool.submit(count, padding=paddings.randrange(4096)) for _ in range(arguments.runs)
        ]
        recorded = recorded_of([each.result() for each in waiting])
    arguments.figures.write_text(json.dumps(recorded, indent=2, ensure_ascii=False) + "\n")
    for group in ("instructions", "ratios"):
        for name, figure in recorded[group].items():
            print(f"{figure['median']:12,.4f}  spread {figure['spread']:.3%}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
