"""Django under uvicorn: plain views that publish, and the session of the login for the hub.

In a project the settings and the views stand in their own files, and the rest in `asgi.py`.
"""

import hmac
import json
import os

import django
import uvicorn
from django.conf import settings
from django.contrib.sessions.backends.signed_cookies import SessionStore
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from wsc_fast import Client, Hub, Identity, Request, RoomNotFoundError

settings.configure(
    SECRET_KEY=os.environ["SECRET_KEY"],
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    # A project has CsrfViewMiddleware, too; here the session's cookie alone (SameSite=Lax) keeps
    # other sites out.
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
)
django.setup()

PASSWORDS = {"ann": "tea", "bob": "rain"}  # yours are django.contrib.auth's


def login(request: HttpRequest) -> JsonResponse:
    given = json.loads(request.body)
    known = PASSWORDS.get(given["user"], "")
    if not known or not hmac.compare_digest(known.encode(), given["password"].encode()):
        return JsonResponse({"error": "wrong user or password"}, status=401)
    request.session["user"] = given["user"]
    return JsonResponse({})


def publish(request: HttpRequest, room: str) -> JsonResponse:
    """A plain view: Django runs it in a thread, and the hub takes the call to its loop."""
    user = request.session.get("user")
    if user is None:
        return JsonResponse({"error": "log in first"}, status=401)
    try:
        count = hub.broadcast_to_room(room, f"{user}: {json.loads(request.body)['text']}")
    except RoomNotFoundError:
        return JsonResponse({"error": "no such room"}, status=404)
    return JsonResponse({"receivers": count})


urlpatterns = [path("login", login), path("rooms/<str:room>/messages", publish)]


def authenticate(request: Request) -> Identity | None:
    # Signed cookies are read without a database. For another engine write `async def`, and read
    # the session by asgiref.sync.sync_to_async.
    session = SessionStore(request.cookies.get(settings.SESSION_COOKIE_NAME))
    user = session.get("user")
    return Identity(user) if user else None


hub = Hub(authenticate=authenticate)
hub.create_room("news")


@hub.on_client_connected
def connected(client: Client) -> None:
    hub.join_room(client.id, "news")


application = get_asgi_application()
ws = hub.uvicorn(path="/ws")

if __name__ == "__main__":
    uvicorn.run(application, host="127.0.0.1", port=8000, ws=ws)
