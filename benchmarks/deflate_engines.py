"""Deflate engines side by side: time and size of one 1 KB message without context takeover.

    pip install zlib-ng isal && python benchmarks/deflate_engines.py

Each call makes a context of its own, which deflate.pyx does not: it resets one and uses it again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from timeit import repeat
from typing import Any

from compression import MESSAGE
from isal import isal_zlib
from zlib_ng import zlib_ng

CALLS, ROUNDS = 2_000, 7


def deflate(engine: Any, level: int, data: bytes) -> Callable[[], bytes]:
    def compress() -> bytes:
        z = engine.compressobj(level, 8, -15)
        return bytes(z.compress(data) + z.flush(2))

    return compress


def inflate(engine: Any, data: bytes) -> Callable[[], bytes]:
    return lambda: bytes(engine.decompressobj(-15).decompress(data))


def microseconds(call: Callable[[], object]) -> float:
    return min(repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS * 1e6


def main() -> None:
    data = MESSAGE.encode()
    print("| engine, level | deflate, us | inflate, us | bytes |")
    print("| --- | --- | --- | --- |")
    for name, engine, levels in (
        ("zlib", zlib, (1, 6)),
        ("zlib-ng", zlib_ng, (1, 6)),
        ("isal", isal_zlib, (0, 1, 3)),
    ):
        for level in levels:
            call = deflate(engine, level, data)
            packed = call()
            print(
                f"| {name} {level} | {microseconds(call):.1f} "
                f"| {microseconds(inflate(engine, packed)):.1f} | {len(packed)} |"
            )


if __name__ == "__main__":
    main()
