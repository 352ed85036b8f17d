"""The same with a hub: Flask keeps its port and its threads, and the hub has a port of its own."""

import json
import threading

from flask import Flask, request
from werkzeug.serving import make_server

from wsc_fast import Client, Hub, HubConfig

app = Flask(__name__)
# Pages come from Flask's port, which is another origin than the hub's.
hub = Hub(HubConfig(allowed_origins=("http://127.0.0.1:8000",)))
hub.create_room("tea")


@hub.on_join_request
def may_join(client: Client, room: str) -> bool:
    return True


@hub.on_message_received
def say(client: Client, message: str | bytes) -> None:
    data = json.loads(message)
    if data["room"] in client.rooms:
        hub.broadcast_to_room(data["room"], json.dumps({"text": data["text"]}))


@app.post("/news")
def news() -> dict[str, str]:
    hub.broadcast_to_room("tea", json.dumps({"text": request.get_data(as_text=True)}))
    return {}


if __name__ == "__main__":
    pages = make_server("127.0.0.1", 8000, app, threaded=True)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    hub.run("127.0.0.1", 8080)  # signals end it, so that it has the main thread
    pages.shutdown()
