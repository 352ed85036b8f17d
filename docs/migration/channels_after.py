"""The same with a hub: Django keeps its views, and the hub takes the WebSockets of the port."""

import json

import django
import uvicorn
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from wsc_fast import Client, Hub

settings.configure(
    SECRET_KEY="of a demonstration", ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=__name__
)
django.setup()

hub = Hub()
hub.create_room("tea")


@hub.on_client_connected
def connected(client: Client) -> None:
    hub.join_room(client.id, "tea")


@hub.on_message_received
def received(client: Client, message: str | bytes) -> None:
    hub.broadcast_to_room("tea", json.dumps({"text": json.loads(message)["text"]}))


def news(request: HttpRequest) -> JsonResponse:
    hub.broadcast_to_room("tea", json.dumps({"text": request.body.decode()}))
    return JsonResponse({})


urlpatterns = [path("news", news)]
application = get_asgi_application()

if __name__ == "__main__":
    uvicorn.run(application, host="127.0.0.1", port=8080, ws=hub.uvicorn(path="/ws"))
