"""pytest-benchmark's JSON as one Markdown table: what, nanoseconds, a peer's, and the ratio.

python benchmarks/micro/table.py build/bench/micro.json
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

# The figures in go-wsc's documentation, of a machine that it does not describe.
GO_WSC = {
    "registration of a client": ("registration", 2430),
    "client.send, 128 B": ("message", 138),
    "broadcast_to_room, 10 members, queued": ("group broadcast, of how many is not told", 1052),
    "send_to_client, 128 B": ("point to point", 178),
}

Figures = dict[str, dict[str, float]]  # by what is measured and by whom, in nanoseconds


def figures_of(report: dict[str, Any]) -> Figures:
    figures: Figures = {}
    for benchmark in report["benchmarks"]:
        extra = benchmark["extra_info"]
        nanoseconds = benchmark["stats"]["median"] / extra["operations"] * 1e9
        figures.setdefault(extra["what"], {})[extra["who"]] = nanoseconds
    return figures


def shown(nanoseconds: float) -> str:
    return f"{nanoseconds:,.1f}" if nanoseconds < 100 else f"{nanoseconds:,.0f}"


def table(figures: Figures) -> str:
    lines = [
        "| | wsc_fast, ns | peer | peer, ns | peer / wsc_fast |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for what, by in figures.items():
        ours = by.get("wsc_fast")
        peers = {who: spent for who, spent in by.items() if who != "wsc_fast"}
        if what in GO_WSC:
            name, published = GO_WSC[what]
            peers[f"go-wsc, {name} (published, another machine)"] = published
        for who, spent in peers.items() or [("", None)]:
            own, ratio = ("", "") if ours is None else (shown(ours), "")
            if ours is not None and spent is not None:
                ratio = f"{spent / ours:.2f}" if spent < 10 * ours else f"{spent / ours:.0f}"
            lines.append(
                f"| {what} | {own} | {who} | {'' if spent is None else shown(spent)} | {ratio} |"
            )
    return "\n".join(lines)


def main() -> None:
    report = json.loads(Path(sys.argv[1]).read_text())
    machine = report["machine_info"]
    processor = machine["cpu"].get("brand_raw", machine["machine"])
    packages = ", ".join(f"{name} {version(name)}" for name in ("picows", "websockets", "wsproto"))
    print(table(figures_of(report)))
    print(
        f"\nMedians of rounds of many calls; {processor}, Python {machine['python_version']}, "
        f"{packages}; {report['datetime'][:10]}."
    )


if __name__ == "__main__":
    main()
