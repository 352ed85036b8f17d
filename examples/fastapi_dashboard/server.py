"""A FastAPI application with a live dashboard of its own requests, on one port.

Run it with `python server.py`, open http://127.0.0.1:8000, and order something:
`curl -X POST http://127.0.0.1:8000/orders`.
"""

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, Response

from wsc_fast import Client, Hub
from wsc_fast.demo import read_page

PAGE = read_page(Path(__file__).with_name("page.html"))
ROOM = "dashboard"

app = FastAPI()
hub = Hub()
# The newest two minutes: a new page reads them, and one that comes back gets what it missed.
hub.keep(ROOM, size=120, ttl=600)
ws = hub.uvicorn(path="/ws")


class Measures:
    """The requests since the last report."""

    def __init__(self) -> None:
        self.requests = self.errors = 0
        self.seconds = 0.0

    def report(self) -> dict[str, Any]:
        report = {
            "time": round(time.time(), 1),
            "requests": self.requests,
            "errors": self.errors,
            "milliseconds": round(1_000 * self.seconds / max(self.requests, 1), 1),
            "clients": hub.get_connected_clients(),
            "load": round(os.getloadavg()[0], 2),
        }
        self.requests = self.errors = 0
        self.seconds = 0.0
        return report


measures = Measures()


@app.middleware("http")
async def measure(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    began = time.perf_counter()
    measures.requests += 1
    try:
        response = await call_next(request)
    except Exception:
        measures.errors += 1
        raise
    if response.status_code >= 500:
        measures.errors += 1
    measures.seconds += time.perf_counter() - began
    return response


async def publish_each_second() -> None:
    while True:
        await asyncio.sleep(1.0)
        hub.broadcast_to_room(ROOM, json.dumps(measures.report()))


@hub.on_startup
async def begin() -> None:
    hub.create_task(publish_each_second())


@hub.on_client_connected
def connected(client: Client) -> None:
    hub.join_room(client.id, ROOM)


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE.body, headers=PAGE.headers)


@app.get("/history")
async def history() -> list[dict[str, Any]]:
    """A new page loads it; the hub tells the rest."""
    entries = await hub.cluster.history(ROOM, limit=120)
    return [json.loads(entry.message) for entry in entries if isinstance(entry.message, str)]


@app.post("/orders")
async def order() -> dict[str, str]:
    """Something to measure: it takes up to 50 ms, and one in ten fails."""
    await asyncio.sleep(random.uniform(0.0, 0.05))
    if random.random() < 0.1:
        raise HTTPException(503, "sold out")
    return {"status": "ordered"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port, ws=ws)
