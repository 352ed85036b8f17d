"""wsc_fast with RedisBus: a plain room, a kept one, or users.

python wsc_node.py PORT REDIS_PORT plain|kept|users
"""

import sys

import uvloop
from _commands import obey

from wsc_fast import Hub, HubConfig, Identity, RedisBus


async def main(port, redis_port, kind):
    # As with the peers: no client is asked whether it is there.
    config = HubConfig(heartbeat_interval=3600, heartbeat_timeout=7200)
    hub = Hub(
        config,
        bus=RedisBus(f"redis://127.0.0.1:{redis_port}"),
        authenticate=(lambda request: Identity(request.query["user"])) if kind == "users" else None,
    )
    refused = []

    @hub.on_client_connected
    def enter(client):
        hub.join_room(client.id, "room")

    class Failures:
        def handle_send_failure(self, message, recipient, reason, error):
            refused.append(int(message.content[:8]))

    hub.add_send_failure_handler(Failures())

    async def publish(text):
        if kind == "kept":
            await hub.publish("room", text)
        else:
            hub.broadcast_to_room("room", text)

    if kind == "kept":
        # So long that messages of a fault of seconds are in it, as the docs say.
        hub.keep("room", size=1000)
    await hub.start("127.0.0.1", int(port))
    await obey(publish, refused)


uvloop.run(main(*sys.argv[1:]))
