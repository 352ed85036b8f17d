"""Devices of server.py: each measures ten times a second, and sends once a second.

Run it with `python devices.py --devices 100`, beside server.py.
"""

import argparse
import asyncio
import random
import time

import uvloop
from picows import WSCloseCode, WSListener, WSMsgType, ws_connect
from readings import MOST, Reading, encode


async def run(number: int, port: int, seconds: float) -> int:
    """Measures and sends; how many readings it has sent."""
    headers = [("Authorization", f"Bearer token-of-device-{number}")]
    url = f"ws://127.0.0.1:{port}/ws"
    transport, _ = await ws_connect(WSListener, url, extra_headers=headers)
    await asyncio.sleep(random.uniform(0.0, 1.0))  # not all at once
    temperature, humidity, sent = random.uniform(15.0, 25.0), random.uniform(30.0, 60.0), 0
    waiting: list[Reading] = []
    for tick in range(int(10 * seconds)):
        temperature += random.uniform(-0.1, 0.1)
        humidity = min(100.0, max(0.0, humidity + random.uniform(-0.2, 0.2)))
        waiting.append(Reading(time.time(), temperature, humidity))
        if tick % 10 == 9:
            transport.send(WSMsgType.BINARY, encode(waiting[:MOST]))
            sent += len(waiting[:MOST])
            del waiting[:MOST]
        await asyncio.sleep(0.1)
    transport.send_close(WSCloseCode.OK)
    await transport.wait_disconnected()
    return sent


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--devices", type=int, default=100, help="1,000 at most")
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    try:
        sent = await asyncio.gather(
            *(run(number, given.port, given.seconds) for number in range(given.devices))
        )
    except OSError as error:
        raise SystemExit(f"no server on port {given.port}: {error}") from None
    print(f"{len(sent)} devices sent {sum(sent)} readings", flush=True)


if __name__ == "__main__":
    uvloop.run(main())
