"""Starlette with tickets: a user who is logged in gets one, which opens one WebSocket."""

import hmac
import os
import secrets
import time

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from wsc_fast import Client, Hub, Identity, RoomNotFoundError
from wsc_fast import Request as Upgrade

PASSWORDS = {"ann": "tea", "bob": "rain"}  # yours are hashed, and in a database
TICKET_LIFE = 30.0
tickets: dict[str, tuple[str, float]] = {}  # ticket -> user, and until when


async def login(request: Request) -> JSONResponse:
    given = await request.json()
    known = PASSWORDS.get(given["user"], "")
    if not known or not hmac.compare_digest(known.encode(), given["password"].encode()):
        return JSONResponse({"error": "wrong user or password"}, 401)
    request.session["user"] = given["user"]
    return JSONResponse({})


async def make_ticket(request: Request) -> JSONResponse:
    if "user" not in request.session:
        return JSONResponse({"error": "log in first"}, 401)
    now = time.monotonic()
    for old in [ticket for ticket, (_, end) in tickets.items() if end < now]:
        del tickets[old]
    ticket = secrets.token_urlsafe()
    tickets[ticket] = (request.session["user"], now + TICKET_LIFE)
    return JSONResponse({"ticket": ticket})


def authenticate(upgrade: Upgrade) -> Identity | None:
    # A query lands in logs, and a ticket is of no use there: it counts once.
    user, end = tickets.pop(upgrade.query.get("ticket", ""), ("", 0.0))
    return Identity(user) if time.monotonic() < end else None


async def publish(request: Request) -> JSONResponse:
    if "user" not in request.session:
        return JSONResponse({"error": "log in first"}, 401)
    text = f"{request.session['user']}: {(await request.json())['text']}"
    try:
        return JSONResponse({"receivers": hub.broadcast_to_room(request.path_params["room"], text)})
    except RoomNotFoundError:
        return JSONResponse({"error": "no such room"}, 404)


hub = Hub(authenticate=authenticate)
hub.create_room("news")


@hub.on_client_connected
def connected(client: Client) -> None:
    hub.join_room(client.id, "news")


app = Starlette(
    routes=[
        Route("/login", login, methods=["POST"]),
        Route("/ticket", make_ticket, methods=["POST"]),
        Route("/rooms/{room}/messages", publish, methods=["POST"]),
    ],
    middleware=[Middleware(SessionMiddleware, secret_key=os.environ["SECRET_KEY"])],
)
ws = hub.uvicorn(path="/ws")

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=8000, ws=ws)
