"""Three failure handlers: one raises an alert, one sends again, one keeps messages for later.

Run it with `python server.py`, then send with
`curl -d 'hello' http://127.0.0.1:8080/users/ann/messages`.
"""

import argparse
import logging
from pathlib import Path

from handlers import Alerts, Backlog, OfflineMessages, PushNotices

from wsc_fast import (
    Client,
    Hub,
    HubConfig,
    HubMessage,
    Identity,
    QueueFullError,
    Request,
    Response,
    UserOfflineError,
)

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--alert-at", type=int, default=10, help="failures in a minute")
    parser.add_argument("--keep", type=int, default=100, help="messages of a user who is away")
    parser.add_argument("--database", type=Path, default=Path("offline.db"))
    parser.add_argument("--push-url", help="gets a POST for each user who has missed a message")
    given = parser.parse_args()

    # A small outbox, so that a client that does not read has a full queue soon.
    hub = Hub(
        HubConfig(outbox_messages=100),
        # For a trial the query is believed. Yours takes a token: wsc_fast.auth has ready-made ones.
        authenticate=lambda request: Identity(request.query.get("user", "somebody")),
    )
    alerts = Alerts(given.alert_at, seconds=60.0)
    backlog = Backlog(hub, per_user=1_000)
    offline = OfflineMessages(given.database, given.keep, PushNotices(given.push_url))
    hub.add_send_failure_handler(alerts)  # hears of every failure
    hub.add_queue_full_handler(backlog)
    hub.add_user_offline_handler(offline)
    hub.on_startup(lambda: hub.create_task(backlog.send_again()))

    @hub.on_client_connected
    async def connected(client: Client) -> None:
        for message in await offline.take(client.user_id):
            hub.send_to_user(client.user_id, message)

    @hub.route("/users/{user}/messages", methods=["POST"])
    def send(request: Request) -> Response:
        try:
            hub.send_to_user(request.path_params["user"], HubMessage(content=request.body.decode()))
        except (UserOfflineError, QueueFullError) as error:
            return Response(202, f"later: {error}")  # the handlers have it
        return Response(200, "sent")

    hub.run("127.0.0.1", given.port)


if __name__ == "__main__":
    main()
