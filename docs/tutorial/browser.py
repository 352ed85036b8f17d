"""Part 4: a chat with a page, for the users of part 3."""

import json
from importlib import resources
from pathlib import Path

from login import SECRET, login

from wsc_fast import Client, Hub, Request, Response
from wsc_fast.auth import JWTAuthenticator

PAGE = Path(__file__).with_name("page.html").read_text()
SCRIPT = resources.files("wsc_fast.demo").joinpath("wsc-client.min.js").read_text()

hub = Hub(authenticate=JWTAuthenticator(SECRET, algorithms=["HS256"]))
hub.keep("chat:*", size=100)  # a client that comes back gets what it missed
hub.route("/login", methods=("POST",))(login)


@hub.on_join_request
def may_join(client: Client, room: str) -> bool:
    return room.startswith("chat:")


@hub.on_message_received
def received(client: Client, message: str | bytes) -> None:
    """{"room": "chat:tea", "text": "hello"}."""
    try:
        match json.loads(message):
            case {"room": str(room), "text": str(text)} if room in client.rooms and text:
                said = {"room": room, "from": client.user_id, "text": text[:1_000]}
                hub.broadcast_to_room(room, json.dumps(said))
    except ValueError:
        pass  # no JSON: the page sends none of that


@hub.route("/")
def page(request: Request) -> Response:
    return Response(body=PAGE, content_type="text/html; charset=utf-8")


@hub.route("/wsc-client.min.js")
def script(request: Request) -> Response:
    return Response(body=SCRIPT, content_type="text/javascript; charset=utf-8")


if __name__ == "__main__":
    hub.run(port=8080)
