"""The cores that a process may use, and how many threads `send_threads="auto"` is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsc_fast.runtime.cores import MOST_HELPERS, count_helpers, share_cores, usable_cores

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say it")


@LINUX
@pytest.mark.parametrize("cores", [1, 2])
def test_auto_goes_by_the_affinity(cores: int) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < cores or usable_cores() < cores:
        pytest.skip(f"there are no {cores} cores")
    code = f"""
import asyncio, os
from pathlib import Path
from wsc_fast import Hub, HubConfig
from wsc_fast.testing import running

os.sched_setaffinity(0, {allowed[:cores]})

async def serve():
    hub = Hub(HubConfig(send_threads="auto", watchdog_timeout=0))
    async with running(hub):
        names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
        print(names.count("wsc-send\\n"))

asyncio.run(serve())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{cores - 1}\n", "")


@LINUX
@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {}, 8),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2),
        ("0::/a/b", {"cpu.max": "50000 100000"}, 1),
        ("0::/a", {"a/cpu.max": "900000 100000"}, 8),
        ("1:cpu,cpuacct:/a\n0::/", {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000"}, 3),
        ("1:cpu:/a", {"cpu/cpu.cfs_quota_us": "150000"}, 1),
        ("1:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1"}, 8),
        ("1:cpuset:/a", {"cpuset/a/cpu.max": "100000 100000"}, 8),
        ("0::/../b", {"cpu.max": "\xff"}, 8),
        ("", {}, 8),
        ("\nno line\n0:\n0::\n0::a\n0::/a", {"cpu.max": "200000 100000"}, 2),
        ("0::/\xe9", {"\xe9/cpu.max": "200000 100000"}, 2),
    ],
)
def test_auto_goes_by_the_quotas_of_control_groups(
    groups: str,
    files: dict[str, str],
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(8)))
    (tmp_path / "groups").write_text(groups + "\n" if groups else "")
    for name, text in files.items():
        place = tmp_path / "mounted" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text.encode("latin-1") + b"\n")
        if name.endswith("cfs_quota_us"):
            (place.parent / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path / "groups", tmp_path / "mounted") == expected


@LINUX
def test_auto_goes_by_the_quota_of_a_real_control_group() -> None:
    name = f"wsc-test-{os.getpid()}"
    code = f"""
import os
from pathlib import Path
from wsc_fast.runtime.cores import usable_cores

for root in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")):
    group = root / "{name}"
    try:
        group.mkdir()
    except OSError:
        continue
    try:
        if (group / "cpu.cfs_quota_us").exists():
            (group / "cpu.cfs_quota_us").write_text("150000")
        else:
            (group / "cpu.max").write_text("150000 100000")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        print(usable_cores())
        (root / "cgroup.procs").write_text(str(os.getpid()))
        break
    except OSError:
        pass
    finally:
        group.rmdir()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.stdout == "":
        pytest.skip("no control group with a quota can be made here")
    assert (done.stdout, done.stderr) == ("1\n", "")


@LINUX
def test_auto_has_a_bound() -> None:
    assert count_helpers(16) == 16
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsc_fast.runtime.cores.usable_cores", lambda: 64)
        assert count_helpers("auto") == MOST_HELPERS
        patch.setattr("wsc_fast.runtime.cores.usable_cores", lambda: 1)
        assert count_helpers("auto") == 0


@LINUX
@pytest.mark.parametrize(("cores", "expected"), [(1, 0), (3, 0), (4, 1), (7, 2), (64, 3)])
def test_workers_divide_the_cores(
    cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsc_fast.runtime.cores.usable_cores", lambda: cores)
    monkeypatch.setattr("wsc_fast.runtime.cores._processes", 1)
    share_cores(2)
    assert count_helpers("auto") == expected
    assert count_helpers(2) == 2
