"""Takes binary messages of devices into SQLite, and shows the newest values on a page.

Run it with `python server.py`, and open http://127.0.0.1:8080. devices.py makes devices.
"""

import argparse
import asyncio
import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from readings import MOST_BYTES, Reading, decode

from wsc_fast import Client, Hub, HubConfig, Identity, Request, Response
from wsc_fast.auth import TokenAuthenticator
from wsc_fast.demo import read_page

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
log = logging.getLogger("ingest")
PAGE = read_page(Path(__file__).with_name("page.html"))
# One token for each device; yours are random, and in a database.
DEVICES = TokenAuthenticator({f"token-of-device-{n}": f"device-{n:03}" for n in range(1_000)})
VIEWER = "viewer"


class Ingest:
    """Readings on their way to the disk, and the newest one of each device."""

    def __init__(self, database: Path, most_waiting: int = 100_000) -> None:
        self.database = database
        self.most_waiting = most_waiting
        self.waiting: list[tuple[str, Reading]] = []
        self.newest: dict[str, Reading] = {}
        self.stored = self.lost = self.malformed = 0
        with closing(sqlite3.connect(database)) as db, db:
            db.execute("CREATE TABLE IF NOT EXISTS readings (device, time, temperature, humidity)")

    def take(self, device: str, readings: list[Reading]) -> None:
        room = self.most_waiting - len(self.waiting)
        self.waiting.extend((device, reading) for reading in readings[:room])
        if len(readings) > room:  # the disk is too slow
            self.lost += len(readings) - room
        if readings:
            self.newest[device] = readings[-1]

    async def store(self) -> None:
        """Writes what has come, in one transaction; in a thread, since a disk may be slow."""
        batch, self.waiting = self.waiting, []
        if batch:
            await asyncio.to_thread(self._write, [(device, *reading) for device, reading in batch])
            self.stored += len(batch)

    def _write(self, rows: list[tuple[str, float, float, float]]) -> None:
        with closing(sqlite3.connect(self.database)) as db, db:
            db.executemany("INSERT INTO readings VALUES (?, ?, ?, ?)", rows)

    def summary(self) -> dict[str, Any]:
        return {
            "stored": self.stored,
            "lost": self.lost,
            "malformed": self.malformed,
            "devices": {name: list(reading) for name, reading in sorted(self.newest.items())},
        }


def authenticate(request: Request) -> Identity | None:
    """A device shows its token. A page shows none, and may only look."""
    if "Authorization" in request.headers:
        return DEVICES(request)
    return Identity(VIEWER)


def create_hub(database: Path) -> Hub:
    hub = Hub(
        HubConfig(
            max_message_size=MOST_BYTES,
            message_rate=20.0,  # of one device, a second
            rate_limit_action="pause",  # its own buffer fills, and it sends larger messages
        ),
        authenticate=authenticate,
        authorize_publish=lambda client, message: client.user_id != VIEWER,
    )
    ingest = Ingest(database)
    hub.create_room("viewers")

    @hub.on_client_connected
    def connected(client: Client) -> None:
        if client.user_id == VIEWER:
            hub.join_room(client.id, "viewers")
            client.send(json.dumps(ingest.summary()), key="summary")

    @hub.on_message_received
    def received(client: Client, message: str | bytes) -> None:
        try:
            if isinstance(message, str):
                raise ValueError("a text")
            ingest.take(client.user_id, decode(message))
        except ValueError as error:
            ingest.malformed += 1
            log.warning("%s sent what is no message: %s", client.user_id, error)
            client.disconnect(1003, str(error))  # "unsupported data" of RFC 6455

    async def work() -> None:
        while True:
            await asyncio.sleep(1.0)
            await ingest.store()
            hub.broadcast_to_room("viewers", json.dumps(ingest.summary()), key="summary")

    @hub.on_startup
    async def begin() -> None:
        hub.create_task(work())

    @hub.on_shutdown
    async def end() -> None:
        await ingest.store()

    @hub.route("/summary")
    def summary(request: Request) -> dict[str, Any]:
        return ingest.summary()

    @hub.route("/")
    def page(request: Request) -> Response:
        return PAGE

    return hub


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--database", type=Path, default=Path("readings.db"))
    given = parser.parse_args()
    create_hub(given.database).run("127.0.0.1", given.port)
