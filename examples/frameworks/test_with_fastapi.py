"""A test of with_fastapi.py: its routes by FastAPI's own client, its WebSocket by a real one."""

from fastapi.testclient import TestClient
from websockets.sync.client import connect
from with_fastapi import app, hub

from wsc_fast.testing import running_in_thread, uri


def test_a_request_publishes() -> None:
    with running_in_thread(hub), TestClient(app) as http:
        token = http.post("/login", json={"user": "ann", "password": "tea"}).json()["token"]
        bearer = {"Authorization": f"Bearer {token}"}
        with connect(uri(hub), additional_headers=bearer) as ann:
            sent = http.post("/rooms/news/messages", json={"text": "hello"}, headers=bearer)
            assert sent.json() == {"receivers": 1}
            assert ann.recv(timeout=10) == "ann: hello"
