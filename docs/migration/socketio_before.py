"""Rooms and users on python-socketio, under uvicorn."""

from typing import Any

import socketio
import uvicorn

sio = socketio.AsyncServer(async_mode="asgi")


@sio.event
async def connect(sid: str, environ: dict[str, Any], auth: dict[str, str]) -> None:
    await sio.save_session(sid, {"user": auth["user"]})  # a demonstration: it is believed


@sio.on("join")
async def join(sid: str, room: str) -> None:
    await sio.enter_room(sid, room)


@sio.on("say")
async def say(sid: str, data: dict[str, str]) -> None:
    session = await sio.get_session(sid)
    said = {"room": data["room"], "from": session["user"], "text": data["text"]}
    await sio.emit("said", said, to=data["room"])


if __name__ == "__main__":
    uvicorn.run(socketio.ASGIApp(sio), host="127.0.0.1", port=8080)
