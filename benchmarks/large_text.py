"""Large text messages coming in, beside picows, which does not check that they are UTF-8.

    python benchmarks/large_text.py [--seconds 2] [--rounds 3] [--size 1000000]

One client sends texts, two in flight, and waits for an answer to each. Each server runs on one core
with the client on another, in turn, each in every round. Prints Markdown: megabytes a second, and
the CPU time of the server for a message.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from statistics import median

import psutil
from compression import Serving

from wsc_fast.testing import TEXT, encode

OURS = """
from wsc_fast import Hub, HubConfig
hub = Hub(HubConfig(max_message_size=1 << 26))
hub.on_message_received(lambda client, message: client.send("ok"))
hub.run("127.0.0.1", PORT)
"""
# As its documentation has it, with the limit on a frame raised.
PICOWS = """
import asyncio, uvloop
from picows import WSListener, WSMsgType, ws_create_server
class Peer(WSListener):
    def on_ws_frame(self, transport, frame):
        TAKE
async def main():
    server = await ws_create_server(
        lambda request: Peer(), "127.0.0.1", PORT, max_frame_size=1 << 26
    )
    await server.serve_forever()
uvloop.run(main())
"""
SERVERS = {
    "wsc_fast: a str, checked": OURS,
    "picows: bytes, unchecked": PICOWS.replace(
        "TAKE", 'frame.get_payload_as_bytes(); transport.send(WSMsgType.TEXT, b"ok")'
    ),
    "picows: decoded to a str": PICOWS.replace(
        "TAKE", 'frame.get_payload_as_utf8_text(); transport.send(WSMsgType.TEXT, b"ok")'
    ),
}
# Texts of one, two and three bytes a character, with blanks between.
SAMPLES = {
    "ASCII": "the quick brown fox ",
    "Cyrillic": "быстрая рыжая лиса ",
    "Chinese": "敏捷的棕色狐狸 ",
}
IN_FLIGHT = 2


def framed(sample: str, size: int) -> bytes:
    """A client's frame with a text of about `size` bytes."""
    payload = sample.encode() * (size // len(sample.encode()))
    return encode(TEXT, payload, mask=b"\x9a\x21\xf3\x5c")


def measure(
    program: str, cores: list[int], sample: str, seconds: float, size: int
) -> tuple[float, float]:
    """Megabytes a second, and milliseconds of the server's CPU time for a message."""
    frame = framed(sample, size)
    answer = b"\x81\x02ok"
    with Serving(program, cores[0]) as server:
        os.sched_setaffinity(0, {cores[-1]})
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(
                b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                b"Connection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            stream = sock.makefile("rb")
            while stream.readline() != b"\r\n":
                pass
            for _ in range(IN_FLIGHT - 1):
                sock.sendall(frame)
            done = 0
            process = psutil.Process(server.process.pid)
            before = process.cpu_times()
            start = time.perf_counter()
            while (taken := time.perf_counter() - start) < seconds:
                sock.sendall(frame)
                if (got := stream.read(len(answer))) != answer:
                    raise SystemExit(f"{got!r} in place of {answer!r}")
                done += 1
            after = process.cpu_times()
        os.sched_setaffinity(0, set(cores))
    spent = after.user + after.system - before.user - before.system
    return done * len(frame) / taken / 1e6, spent / done * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=1_000_000)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    rates: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(arguments.rounds):
        for sample, text in SAMPLES.items():
            for name, program in SERVERS.items():
                rate = measure(program, cores, text, arguments.seconds, arguments.size)
                rates.setdefault((name, sample), []).append(rate)
    print("| MB a second; ms of CPU time | " + " | ".join(SAMPLES) + " |")
    print("| --- |" + " --- |" * len(SAMPLES))
    for name in SERVERS:
        cells = []
        for sample in SAMPLES:
            rate, spent = (median(values) for values in zip(*rates[name, sample], strict=True))
            cells.append(f"{rate:,.0f}; {spent:.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
