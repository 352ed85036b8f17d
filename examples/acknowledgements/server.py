"""Messages that have to be acknowledged, and a monitor of those that are pending.

Run it with `python server.py`, then send with
`curl -d 'parcel 17 is here' http://127.0.0.1:8080/users/ann/messages`.
"""

import argparse
import asyncio
import logging
from pathlib import Path
from typing import Any

from wsc_fast import (
    ACKConfig,
    AckError,
    ACKMessage,
    Hub,
    Identity,
    PendingACK,
    PendingFullError,
    Request,
    Response,
    SQLiteOfflineStore,
    WSCError,
)

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
log = logging.getLogger("acknowledgements")


class Monitor:
    """Knows the messages that are pending, logs them each second, and logs how each ends."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.pending: dict[str, PendingACK] = {}  # bounded by ACKConfig.max_pending

    def watch(self, pending: PendingACK) -> None:
        self.pending[pending.id] = pending
        self.hub.create_task(self._outcome(pending))

    async def _outcome(self, pending: PendingACK) -> None:
        try:
            await pending
        except AckError as error:  # refused by the client, too late, or dropped by the store
            log.warning("%s to %s: %s", pending.id, pending.user_id, error)
        except WSCError as error:  # the hub stops, or its store has trouble
            log.error("%s to %s: %s", pending.id, pending.user_id, error)
        else:
            log.info("%s to %s: confirmed", pending.id, pending.user_id)
        finally:
            del self.pending[pending.id]

    async def report(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for each in self.rows():
                log.info("pending: %(id)s to %(user)s, %(status)s, sent %(attempts)d times", each)

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"id": p.id, "user": p.user_id, "status": p.status.value, "attempts": p.attempts}
            for p in self.pending.values()
        ]


def create_hub(database: Path) -> Hub:
    # For a trial the query is believed. Yours takes a token: wsc_fast.auth has ready-made ones.
    hub = Hub(authenticate=lambda request: Identity(request.query.get("user", "somebody")))
    hub.enable_ack(
        ACKConfig(
            timeout=10.0,  # seconds from the first send to AckTimeoutError
            retry_interval=2.0,
            max_retries=3,
            max_pending=10_000,
            enable_offline_messages=True,  # users who are away get them when they are back
            offline_limit=100,
        ),
        store=SQLiteOfflineStore(database),
    )
    monitor = Monitor(hub)

    @hub.on_startup
    async def begin() -> None:
        hub.create_task(monitor.report())

    @hub.route("/users/{user}/messages", methods=["POST"])
    async def send(request: Request) -> Response | dict[str, str]:
        message = ACKMessage(content=request.body.decode())
        try:
            pending = hub.send_ack_message_to_user(request.path_params["user"], message)
        except PendingFullError as error:
            return Response(503, str(error), headers={"Retry-After": "5"})
        monitor.watch(pending)
        await pending.accepted()  # from here on a crash of this process loses nothing
        return {"id": pending.id, "status": pending.status.value}

    @hub.route("/pending")
    def pending(request: Request) -> list[dict[str, Any]]:
        return monitor.rows()

    return hub


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--database", type=Path, default=Path("messages.db"))
    given = parser.parse_args()
    create_hub(given.database).run("127.0.0.1", given.port)
