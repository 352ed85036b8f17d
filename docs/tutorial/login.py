"""Part 3: a password gets a token, and the token says who a client is."""

import hmac
import json
import os
import time

import jwt

from wsc_fast import Client, Hub, Request, Response
from wsc_fast.auth import JWTAuthenticator

SECRET = os.environ["CHAT_SECRET"]  # at least 32 characters
PASSWORDS = {"ann": "tea", "bob": "coffee"}  # yours are hashes in a database
LIFETIME = 3600  # seconds

hub = Hub(authenticate=JWTAuthenticator(SECRET, algorithms=["HS256"]))


@hub.route("/login", methods=("POST",))
def login(request: Request) -> Response | dict[str, object]:
    """{"user": "ann", "password": "tea"}; the answer has a token, and when it ends."""
    try:
        match json.loads(request.body):
            case {"user": str(user), "password": str(password)}:
                wanted = PASSWORDS.get(user)
            case _:
                return Response(400)
    except ValueError:
        return Response(400)
    if wanted is None or not hmac.compare_digest(wanted.encode(), password.encode()):
        return Response(401)
    end = int(time.time()) + LIFETIME
    token = jwt.encode({"sub": user, "exp": end}, SECRET, algorithm="HS256")
    return {"token": token, "expires": end * 1_000}  # milliseconds, as in JavaScript


@hub.on_client_connected
def connected(client: Client) -> None:
    client.send(f"hello {client.user_id}")


if __name__ == "__main__":
    hub.run(port=8080)
