"""A page that orders reports, Celery that makes them, and notifications when they are ready.

Run it with `python server.py`, beside a Redis, and open http://127.0.0.1:8080. It starts a worker
of Celery, too.
"""

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

from tasks import BUS, make_report

from wsc_fast import (
    ACKConfig,
    Client,
    Hub,
    Identity,
    RedisBus,
    RedisOfflineStore,
    Request,
    RequestError,
    Response,
)
from wsc_fast.demo import read_page

HERE = Path(__file__).parent
PAGE = read_page(HERE / "page.html")


def authenticate(request: Request) -> Identity | None:
    # For a trial the name is believed. Yours takes a token: wsc_fast.auth has ready-made ones.
    user = request.query.get("user", "").strip()[:40]
    return Identity(user) if user else None


hub = Hub(bus=RedisBus(BUS), authenticate=authenticate)
# The store is where the tasks leave notifications for users who are away.
hub.enable_ack(ACKConfig(enable_offline_messages=True), store=RedisOfflineStore(BUS))


@hub.on_request
async def answer(client: Client, data: Any) -> str:
    match data:
        case {"report": str(title)} if 0 < len(title) <= 100:
            # A call of Celery's waits for the broker: in a thread, the hub goes on meanwhile.
            result = await asyncio.to_thread(make_report.delay, client.user_id, title)
            return str(result.id)
    raise RequestError("not-understood", 'send {"report": TITLE}')


@hub.route("/")
def page(request: Request) -> Response:
    return PAGE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--no-worker", action="store_true", help="Celery runs elsewhere")
    given = parser.parse_args()
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--loglevel=INFO"]
    if given.no_worker:
        hub.run("127.0.0.1", given.port)
        return
    # In a session of its own: Ctrl-C reaches the server alone, which ends the worker.
    with subprocess.Popen(
        [*command, "--concurrency=2"], cwd=HERE, start_new_session=True
    ) as worker:
        try:
            hub.run("127.0.0.1", given.port)
        finally:
            worker.terminate()  # it ends the tasks that it has begun


if __name__ == "__main__":
    main()
