"""Flask in threads, the hub in the main thread, each on a port: views publish, the session counts.

The server of werkzeug is one for development. `waitress.serve` takes its place in the same way.
"""

import hmac
import os
import threading

from flask import Flask, request, session
from flask.sessions import SecureCookieSessionInterface
from itsdangerous import BadSignature
from werkzeug.serving import make_server

from wsc_fast import Client, Hub, HubConfig, HubStateError, Identity, Request, RoomNotFoundError

PASSWORDS = {"ann": "tea", "bob": "rain"}  # yours are hashed, and in a database

app = Flask(__name__)
app.secret_key = os.environ["SECRET_KEY"]
app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
signer = SecureCookieSessionInterface().get_signing_serializer(app)


@app.post("/login")
def login() -> tuple[dict[str, str], int]:
    given = request.get_json()
    known = PASSWORDS.get(given["user"], "")
    if not known or not hmac.compare_digest(known.encode(), given["password"].encode()):
        return {"error": "wrong user or password"}, 401
    session["user"] = given["user"]
    return {}, 200


@app.post("/rooms/<room>/messages")
def publish(room: str) -> tuple[dict[str, object], int]:
    """A view: it runs in a thread, and the hub takes the call to its loop."""
    if "user" not in session:
        return {"error": "log in first"}, 401
    try:
        text = f"{session['user']}: {request.get_json()['text']}"
        return {"receivers": hub.broadcast_to_room(room, text)}, 200
    except RoomNotFoundError:
        return {"error": "no such room"}, 404
    except HubStateError:  # it stops, or its loop is too busy
        return {"error": "try again later"}, 503


def authenticate(upgrade: Request) -> Identity | None:
    # A cookie is for a host, whatever the port, so that the hub gets the session's, too.
    lifetime = int(app.permanent_session_lifetime.total_seconds())
    try:
        user = signer.loads(upgrade.cookies.get("session", ""), max_age=lifetime).get("user")
    except BadSignature:
        return None
    return Identity(user) if user else None


# The pages come from Flask's port, so that their origin is another one than the hub's.
hub = Hub(HubConfig(allowed_origins=("http://127.0.0.1:8000",)), authenticate=authenticate)
hub.create_room("news")


@hub.on_client_connected
def connected(client: Client) -> None:
    hub.join_room(client.id, "news")


if __name__ == "__main__":
    pages = make_server("127.0.0.1", 8000, app, threaded=True)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    hub.run("127.0.0.1", 8080)  # signals end it, so that it has the main thread
    pages.shutdown()
