"""Upgrade requests as bytes, sound or broken on purpose."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable


def upgrade_request(
    host: str = "127.0.0.1",
    path: str = "/ws",
    headers: Iterable[tuple[str, str]] = (),
    **replaced: str,
) -> bytes:
    """An upgrade request as RFC 6455 wants it, with a key of its own.

    Args:
        host: the Host header.
        path: the path with its query.
        headers: further headers, as pairs of name and value.
        **replaced: other values for the headers that every upgrade has, by name with _ in the
            place of -, such as `Sec_WebSocket_Version="12"`. "" leaves the header out.

    Returns:
        the request with its empty line.
    """
    fields = {
        "Host": host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
    }
    for name, value in replaced.items():
        fields[name.replace("_", "-")] = value
    lines = [f"GET {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items() if value]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
