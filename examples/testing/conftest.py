"""The fixtures of the tests: how the hub is made, and how a user logs in."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from orders import make_hub

from wsc_fast import Hub, MemoryOfflineStore
from wsc_fast.testing import FaultyStore

pytest_plugins = ["wsc_fast.testing.plugin"]

SECRET = secrets.token_hex(32)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryOfflineStore())


@pytest.fixture
def hub_factory(store: FaultyStore) -> Callable[..., Hub]:
    def factory(bus: Any = None) -> Hub:
        return make_hub(secret=SECRET, store=None if bus else store, bus=bus)

    return factory


@pytest.fixture
def hub_login() -> Callable[[str], dict[str, Any]]:
    def login(user: str) -> dict[str, Any]:
        claims = {"sub": user, "exp": time.time() + 3600}
        return {"token": jwt.encode(claims, SECRET, algorithm="HS256")}

    return login
