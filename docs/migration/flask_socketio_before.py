"""Rooms on Flask-SocketIO, and a view that publishes to one."""

from flask import Flask, request
from flask_socketio import SocketIO, emit, join_room

app = Flask(__name__)
socketio = SocketIO(app, async_mode="threading")


@socketio.on("join")
def join(room: str) -> None:
    join_room(room)


@socketio.on("say")
def say(data: dict[str, str]) -> None:
    emit("said", {"text": data["text"]}, to=data["room"])


@app.post("/news")
def news() -> dict[str, str]:
    socketio.emit("said", {"text": request.get_data(as_text=True)}, to="tea")
    return {}


if __name__ == "__main__":
    socketio.run(app, host="127.0.0.1", port=8000, allow_unsafe_werkzeug=True)
