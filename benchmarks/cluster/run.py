"""The costs of one hub among several, and the costs and losses of its peers.

    python benchmarks/cluster/run.py [--only remote] [--rounds 9] [--quick]

Prints one table for each measure. A redis-server of its own is started for each.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable
from pathlib import Path

from benchmarks.cluster import beside_peers, measures
from benchmarks.cluster.directory import directory
from benchmarks.cluster.from_celery import from_celery
from benchmarks.cluster.publishers import publishers
from benchmarks.cluster.workers import shares, workers

MEASURES: dict[str, Callable[..., str]] = {
    "remote": measures.remote,
    "instructions": measures.instructions,
    "rate": measures.rate,
    "publish": measures.publish,
    "storm": measures.storm,
    "idle": measures.idle,
    "peers": beside_peers.cpu,
    "faults": beside_peers.faults,
    "publishers": publishers,
    "directory": directory,
    "celery": from_celery,
    "workers": workers,
    "shares": shares,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=list(MEASURES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--base", type=Path, help="a built tree, for the memory without a bus")
    parser.add_argument("--quick", action="store_true", help="does everything run?")
    parser.add_argument("--install", action="store_true", help="the peers, into build/; then ends")
    options = parser.parse_args()
    if options.install:
        beside_peers.install()
        return
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name in options.only or MEASURES:
        measure = MEASURES[name]
        print(f"\n## {measure.__doc__}\n", flush=True)
        quick = {"rounds": 1, "turn": 0.05} if options.quick else {"rounds": options.rounds}
        more = {"base": options.base} if name == "idle" else {}
        print(measure(**quick, **more), flush=True)


if __name__ == "__main__":
    main()
