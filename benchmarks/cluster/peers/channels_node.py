"""Django Channels on uvicorn with the pub/sub layer of channels_redis, as its documentation has it.

python channels_node.py PORT REDIS_PORT
"""

import asyncio
import sys

import uvicorn
from _commands import obey, started
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from django.conf import settings

port, redis_port = int(sys.argv[1]), int(sys.argv[2])
settings.configure(
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [f"redis://127.0.0.1:{redis_port}/1"]},
        }
    }
)


class Chat(AsyncWebsocketConsumer):
    async def connect(self):
        await self.channel_layer.group_add("room", self.channel_name)
        await self.accept()

    async def disconnect(self, code):
        await self.channel_layer.group_discard("room", self.channel_name)

    async def chat_message(self, event):
        await self.send(text_data=event["text"])


async def publish(text):
    await get_channel_layer().group_send("room", {"type": "chat.message", "text": text})


async def main():
    config = uvicorn.Config(
        Chat.as_asgi(),
        host="127.0.0.1",
        port=port,
        ws="websockets-sansio",
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        log_level="error",
        lifespan="off",
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await started(server)
    await obey(publish)
    server.should_exit = True
    await serving


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
