"""nginx and HAProxy, unprivileged, with the configurations of docs/operations/proxies.md.

The listening socket is the test's own and inherited by the proxy: its port is free for certain, and
clients that come before the proxy is ready wait in the backlog.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.browsers.programs import Program, needed, started

NAMES = ("nginx", "haproxy")
DOCUMENT = Path(__file__).parents[2] / "docs/operations/proxies.md"

# nginx needs this around a server; @ is our folder.
NGINX = """
daemon off;
worker_processes 1;
pid @/pid;
events {
    worker_connections 1024;
}
http {
    access_log off;
    client_body_temp_path @/body;
    proxy_temp_path @/proxy;
    fastcgi_temp_path @/fastcgi;
    uwsgi_temp_path @/uwsgi;
    scgi_temp_path @/scgi;
"""


@dataclass(frozen=True)
class Proxy:
    """A running proxy; it listens on 127.0.0.1:`port`."""

    port: int
    program: Program


def documented(language: str, changes: Mapping[str, str]) -> str:
    """The code block of this language in docs/operations/proxies.md, changed as a test needs it."""
    (code,) = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    for old, new in changes.items():
        assert old in code, f"{DOCUMENT.name} has no {old!r} any more"
        code = code.replace(old, new)
    return str(code)


def _nginx(
    folder: Path, changes: dict[str, str], listening: socket.socket, pem: Path | None
) -> str:
    if pem is None:
        changes |= {" ssl;": ";", "ssl_certificate ": "# ", "ssl_certificate_key ": "# "}
    else:
        changes |= {"/etc/ssl/app.example.pem": str(pem), "/etc/ssl/app.example.key": str(pem)}
    changes["listen 443"] = "listen {}:{}".format(*listening.getsockname())
    # Root's worker would become another user, who may not enter our folder.
    user = "user root;" if os.geteuid() == 0 else ""
    return user + NGINX.replace("@", str(folder)) + documented("nginx", changes) + "}\n"


def _haproxy(changes: dict[str, str], listening: socket.socket, pem: Path | None) -> str:
    if pem is None:
        changes[" ssl crt /etc/haproxy/app.example.pem alpn http/1.1"] = ""
    else:
        changes["/etc/haproxy/app.example.pem"] = str(pem)
    changes["bind :443"] = f"bind fd@{listening.fileno()}"
    return documented("haproxy", changes)


@contextmanager
def proxying(
    name: str,
    folder: Path,
    port: int,
    *,
    timeout: float = 60,
    certificate: trustme.LeafCert | None = None,
    more: Mapping[str, str] | None = None,
) -> Iterator[Proxy]:
    """Runs a proxy, and kills it in the end; skips if it is not installed.

    Args:
        name: one of NAMES.
        folder: for its files.
        port: of the hub, on 127.0.0.1.
        timeout: seconds without traffic after which it ends a connection.
        certificate: it serves TLS with this one.
        more: further changes of the configuration, made first.
    """
    executable = needed(name)
    folder = folder / name
    folder.mkdir()
    pem = None
    if certificate is not None:
        pem = folder / "certificate.pem"
        certificate.private_key_and_cert_chain_pem.write_to_path(str(pem))
    changes = {
        **(more or {}),
        "127.0.0.1:8080": f"127.0.0.1:{port}",
        "60s": f"{timeout * 1000:.0f}ms",
    }
    configuration = folder / "configuration"
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        descriptor = listening.fileno()
        environment = dict(os.environ)
        if name == "nginx":
            text = _nginx(folder, changes, listening, pem)
            command = [executable, "-e", "stderr", "-p", str(folder), "-c", str(configuration)]
            environment["NGINX"] = f"{descriptor};"  # as it tells its own successor
        else:
            text = _haproxy(changes, listening, pem)
            command = [executable, "-db", "-f", str(configuration)]
        configuration.write_text(text)
        with started(command, folder / "log", environment, pass_fds=[descriptor]) as program:
            yield Proxy(listening.getsockname()[1], program)
