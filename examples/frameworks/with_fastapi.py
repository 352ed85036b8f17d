"""FastAPI with JSON Web Tokens: a login, a request that publishes, and the hub, on one port."""

import hmac
import os
import time
from typing import Annotated

import jwt
import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from wsc_fast import Client, Hub, RoomNotFoundError
from wsc_fast.auth import JWTAuthenticator

SECRET = os.environ["JWT_SECRET"]
PASSWORDS = {"ann": "tea", "bob": "rain"}  # yours are hashed, and in a database

app = FastAPI()
tokens = JWTAuthenticator(SECRET, algorithms=["HS256"], audience="chat")
hub = Hub(authenticate=tokens)
hub.create_room("news")
ws = hub.uvicorn(path="/ws")


class Login(BaseModel):
    user: str
    password: str


class Message(BaseModel):
    text: str


@app.post("/login")
def login(login: Login) -> dict[str, str]:
    known = PASSWORDS.get(login.user, "")
    if not known or not hmac.compare_digest(known.encode(), login.password.encode()):
        raise HTTPException(401, "wrong user or password")
    claims = {"sub": login.user, "aud": "chat", "exp": time.time() + 3600}
    return {"token": jwt.encode(claims, SECRET, algorithm="HS256")}


def user_of(credentials: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    """The user whose token a request carries; the hub asks the same of an upgrade."""
    identity = tokens.identity(credentials.credentials)
    if identity is None:
        raise HTTPException(401, "no valid token")
    return identity.user_id


@app.post("/rooms/{room}/messages")
async def publish(
    room: str, message: Message, user: Annotated[str, Depends(user_of)]
) -> dict[str, int]:
    try:
        return {"receivers": hub.broadcast_to_room(room, f"{user}: {message.text}")}
    except RoomNotFoundError:
        raise HTTPException(404, "no such room") from None


@hub.on_client_connected
def connected(client: Client) -> None:
    hub.join_room(client.id, "news")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=8000, ws=ws)
