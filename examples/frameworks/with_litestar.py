"""Litestar with its own JSON Web Tokens, which the hub takes as they are, on one port."""

import hmac
import os
from dataclasses import dataclass
from typing import Any

import uvicorn
from litestar import Litestar, Request, post
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException, NotFoundException
from litestar.security.jwt import JWTAuth, Token

from wsc_fast import Client, Hub, RoomNotFoundError
from wsc_fast.auth import JWTAuthenticator

SECRET = os.environ["JWT_SECRET"]
PASSWORDS = {"ann": "tea", "bob": "rain"}  # yours are hashed, and in a database

hub = Hub(authenticate=JWTAuthenticator(SECRET, algorithms=["HS256"]))
hub.create_room("news")
ws = hub.uvicorn(path="/ws")


@dataclass
class Login:
    user: str
    password: str


@dataclass
class Message:
    text: str


async def user_of(token: Token, connection: ASGIConnection[Any, Any, Any, Any]) -> str | None:
    return token.sub if token.sub in PASSWORDS else None


tokens = JWTAuth[str](token_secret=SECRET, retrieve_user_handler=user_of, exclude=["/login"])


@post("/login", sync_to_thread=False)
def login(data: Login) -> dict[str, str]:
    known = PASSWORDS.get(data.user, "")
    if not known or not hmac.compare_digest(known.encode(), data.password.encode()):
        raise NotAuthorizedException("wrong user or password")
    return {"token": tokens.create_token(data.user)}


@post("/rooms/{room:str}/messages", status_code=200)
async def publish(room: str, data: Message, request: Request[str, Token, Any]) -> dict[str, int]:
    try:
        return {"receivers": hub.broadcast_to_room(room, f"{request.user}: {data.text}")}
    except RoomNotFoundError:
        raise NotFoundException("no such room") from None


@hub.on_client_connected
def connected(client: Client) -> None:
    hub.join_room(client.id, "news")


app = Litestar([login, publish], on_app_init=[tokens.on_app_init])

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=8000, ws=ws)
