"""The hub: the session says who a client is, the database keeps what is said."""

import json
from contextlib import suppress
from importlib import import_module

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import get_user
from django.http import HttpRequest

from chat.models import Message
from wsc_fast import Client, Hub, HubConfig, Identity, Request, WSCError

ROOM = "chat:lobby"
SessionStore = import_module(settings.SESSION_ENGINE).SessionStore


async def authenticate(request: Request) -> Identity | None:
    key = request.cookies.get(settings.SESSION_COOKIE_NAME)
    user = await sync_to_async(user_of)(key)
    if not user.is_authenticated:
        return None
    return Identity(user.get_username(), user_data={"user": user})


def user_of(session_key):
    """Django's own check of a session, its expiry and changed passwords included."""
    request = HttpRequest()
    request.session = SessionStore(session_key)
    return get_user(request)


hub = Hub(
    HubConfig(
        max_message_size=8_192,
        message_rate=10.0,
        rate_limit_action="pause",
        presence_grace=2.0,  # seconds for a reload
    ),
    authenticate=authenticate,
)
hub.keep("chat:*", size=100, ttl=600)  # a page that comes back gets what it missed
hub.presence("chat:*")  # who is there: users, however many windows they have


@hub.on_client_connected
async def connected(client: Client) -> None:
    hub.join_room(client.id, ROOM)
    # A second window of a user changes no presence, so that it is told here.
    await tell_users([client.id])


@hub.on_presence
async def presence_changed(room_id: str, joined: set[str], left: set[str]) -> None:
    await tell_users(hub.get_room_clients(room_id))


async def tell_users(client_ids: list[str]) -> None:
    members = await hub.cluster.members(ROOM)
    users = sorted(member.user_id for member in members)
    text = json.dumps({"type": "presence", "room": ROOM, "users": users})
    for client_id in client_ids:
        with suppress(WSCError):  # it went meanwhile
            hub.send_to_client(client_id, text, key="presence")


@hub.on_message_received
async def received(client: Client, message: str | bytes) -> None:
    text = message.strip()[:1_000] if isinstance(message, str) else ""
    if text:
        saved = await Message.objects.acreate(user=client.get_user_data("user"), text=text)
        hub.broadcast_to_room(ROOM, json.dumps({"type": "message", **saved.as_dict()}))
