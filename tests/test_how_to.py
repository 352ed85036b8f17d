"""Every program of docs/how-to.md that serves: it ends cleanly by SIGINT and by SIGTERM."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from wsc_fast.testing import CLOSE, RawClient, encode, eventually, running

PAGE = (Path(__file__).parents[1] / "docs/how-to.md").read_text()
# Those that end by themselves, and the one that needs a socket of systemd's (test_restart.py).
OTHERS = ("Compression", "Memory", "Restarting", "Slow consumers")
# What any of them may ask of a client.
QUERY = "user=ann&device=phone&token=t0ken&name=ann"
REQUEST = (
    f"GET /ws?{QUERY} HTTP/1.1\r\nHost: app.example\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chat.v1\r\n"
    "Authorization: Bearer s3cr3t-key\r\n\r\n"
).encode()


def programs() -> Iterator[tuple[str, str]]:
    for section in PAGE.split("\n## ")[1:]:
        title = section.partition("\n")[0]
        for code in re.findall(r"```python\n(.*?)```", section, re.S):
            if 'if __name__ == "__main__":' in code and title not in OTHERS:
                yield title, code


PROGRAMS = dict(programs())


def free_ports(count: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in taken]
    for sock in taken:
        sock.close()
    return ports


def on_other_ports(code: str, ports: list[int]) -> str:
    """The program on free ports in place of its own, and on IPv4 alone."""
    code = re.sub(r"hub\.(run|start)\(\)", r"hub.\1(port=8080)", code)
    code = code.replace("async with hub:", "await hub.start(port=8080)\n    async with hub:")
    code = code.replace('["127.0.0.1", "::1"]', '"127.0.0.1"')
    for old, new in zip(("8080", "8443", "8000", "8081"), (ports[0], *ports), strict=False):
        code = re.sub(rf"(?<![\d:]){old}\b", str(new), code)
    return code


def connected(port: int) -> socket.socket:
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        except OSError:
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.02)


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, "no close frame"
        data += more
    return data


def close_code(sock: socket.socket) -> int:
    """The code of the close frame behind whatever else comes; it is answered."""
    while True:
        first, size = exactly(sock, 2)
        if size == 126:
            size = int.from_bytes(exactly(sock, 2), "big")
        payload = exactly(sock, size)
        if first & 15 == CLOSE:
            sock.sendall(encode(CLOSE, payload))
            return int.from_bytes(payload[:2], "big")


def test_there_are_programs() -> None:
    assert len(PROGRAMS) > 15


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("title", PROGRAMS)
def test_a_program_tells_its_clients_that_it_ends(
    title: str,
    number: signal.Signals,
    tmp_path: Path,
    authority: trustme.CA,
    client_tls: ssl.SSLContext,
) -> None:
    ports = free_ports(4)
    tls = None
    if title == "TLS":
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
        certificate.private_key_pem.write_to_path(tmp_path / "server.key")
        tls = client_tls
    process = subprocess.Popen(
        [sys.executable, "-c", on_other_ports(PROGRAMS[title], ports)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with connected(ports[0]) as plain:
            sock = plain if tls is None else tls.wrap_socket(plain, server_hostname="localhost")
            sock.sendall(REQUEST)
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += exactly(sock, 1)
            assert head.startswith(b"HTTP/1.1 101 "), head
            process.send_signal(number)
            assert close_code(sock) == 1001
            sock.close()
        _, err = process.communicate(timeout=15)
        assert process.returncode == 0
        assert "Traceback" not in err
    finally:
        process.kill()
        process.communicate()


async def test_the_recipe_of_devices_says_online_and_offline_once(
    any_loop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(PROGRAMS["One connection per device"], names)
    async with running(names["hub"]) as hub:
        for number in range(20):
            phone = await RawClient.open(hub, "/ws?user=ann&device=phone")
            tablet = await RawClient.open(hub, "/ws?user=ann&device=tablet")
            newer = await RawClient.open(hub, "/ws?user=ann&device=phone")
            assert (await phone.recv()).code == 4409
            if number % 2:
                hub.disconnect_user("ann")  # both in one moment
            for raw in (phone, tablet, newer):
                raw.close()
            await eventually(lambda: hub.connections == 0)
            said = capsys.readouterr().out.splitlines()
            assert said[0] == "ann is online"
            assert said[-1] == "ann is offline"
            assert said[1:-1] in ([], ["ann/phone was replaced by a newer connection"])
        assert names["devices"] == {}
