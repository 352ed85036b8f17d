"""Rooms on Django Channels, and a view that publishes to one."""

import django
import uvicorn
from asgiref.sync import async_to_sync
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.layers import get_channel_layer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

settings.configure(
    SECRET_KEY="of a demonstration",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
)
django.setup()


class Chat(AsyncJsonWebsocketConsumer):
    async def connect(self) -> None:
        await self.channel_layer.group_add("tea", self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard("tea", self.channel_name)

    async def receive_json(self, content: dict[str, str]) -> None:
        event = {"type": "said", "message": {"text": content["text"]}}
        await self.channel_layer.group_send("tea", event)

    async def said(self, event: dict[str, dict[str, str]]) -> None:
        await self.send_json(event["message"])


def news(request: HttpRequest) -> JsonResponse:
    event = {"type": "said", "message": {"text": request.body.decode()}}
    async_to_sync(get_channel_layer().group_send)("tea", event)
    return JsonResponse({})


urlpatterns = [path("news", news)]
application = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": URLRouter([path("ws", Chat.as_asgi())]),
    }
)

if __name__ == "__main__":
    uvicorn.run(application, host="127.0.0.1", port=8080)
