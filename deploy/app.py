"""The program that the files of this folder run: users write to each other, also to those away.

A client says `{"to": "bob", "text": "hello"}`. All connections of bob get it, or it waits in the
offline store until he is back. Copy this file, and put callbacks of your own in. Its settings come
from the environment:

    APP_JWT_SECRET             signs the tokens of the clients (HS256): at least 32 bytes
    APP_HOST, APP_PORT         where to listen, 127.0.0.1 and 8080 if unset; a socket that systemd
                               hands over comes first
    APP_STORE                  redis://HOST:6379/0, or the path of an SQLite file; if unset, what
                               waits for users who are away is kept in memory
    APP_METRICS_PORT           a port for Prometheus, on APP_METRICS_HOST (127.0.0.1 if unset); if
                               unset, there are no metrics
    APP_TLS_CERT, APP_TLS_KEY  PEM files, for wss://; SIGHUP loads them again
    WSC_..., WSC_ACK_...       HubConfig and ACKConfig

`python app.py check` asks a program on the same machine for its /health: exit code 0 if it is well.
"""

import http.client
import os
import signal
import ssl
import sys
from collections.abc import Mapping

import msgspec

from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Client,
    ConfigError,
    Hub,
    HubConfig,
    MemoryOfflineStore,
    RedisOfflineStore,
    Request,
    SQLiteOfflineStore,
    WSCError,
    inherited_socket,
)
from wsc_fast.auth import JWTAuthenticator


class Letter(msgspec.Struct):
    """A message of a client."""

    to: str
    text: str


def create_hub(environ: Mapping[str, str]) -> Hub:
    """The hub by the settings of an environment; ConfigError if one of them cannot work."""
    secret = environ.get("APP_JWT_SECRET")
    if not secret:
        raise ConfigError("APP_JWT_SECRET is not set, expected the secret of the clients' tokens")
    try:
        authenticate = JWTAuthenticator(secret, algorithms=["HS256"])
    except ConfigError as wrong:
        raise ConfigError(f"APP_JWT_SECRET: {wrong}") from None
    hub = Hub(HubConfig.from_env(environ), authenticate=authenticate)
    offline = msgspec.structs.replace(ACKConfig.from_env(environ), enable_offline_messages=True)
    hub.enable_ack(offline, store=store_of(environ.get("APP_STORE", "")))
    if environ.get("APP_METRICS_PORT"):
        hub.enable_metrics(
            host=environ.get("APP_METRICS_HOST", "127.0.0.1"),
            port=port_of(environ, "APP_METRICS_PORT"),
        )

    @hub.route("/health")
    def health(request: Request) -> dict[str, object]:
        stats = hub.get_stats()
        return {"status": "healthy", "clients": stats.connected_clients}

    @hub.on_message_received
    async def received(client: Client, message: str | bytes) -> None:
        try:
            letter = msgspec.json.decode(message, type=Letter)
            pending = hub.send_ack_message_to_user(
                letter.to, ACKMessage(content=letter.text, from_=client.user_id)
            )
            await pending.accepted()  # from here on no crash of this process can lose it
            answer = f"{letter.to} will have it"
        except (msgspec.MsgspecError, WSCError) as error:
            answer = f"not sent: {error}"
        if client.is_connected():
            client.send(answer)

    return hub


def store_of(place: str) -> MemoryOfflineStore | RedisOfflineStore | SQLiteOfflineStore:
    """The offline store that APP_STORE names."""
    if not place:
        return MemoryOfflineStore()
    if "://" in place:
        return RedisOfflineStore(place)
    return SQLiteOfflineStore(place)


def port_of(environ: Mapping[str, str], name: str = "APP_PORT") -> int:
    """The port that a variable names."""
    text = environ.get(name) or "8080"
    if not (text.isdecimal() and int(text) < 1 << 16):
        raise ConfigError(f"{name} is {text!r}, expected a port: 0 to 65535")
    return int(text)


def serve(environ: Mapping[str, str]) -> None:
    """Serves until SIGTERM or SIGINT, which drains first (WSC_DRAIN_PERIOD)."""
    # Without TLS nobody listens to SIGHUP, and a `systemctl reload` would end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    create_hub(environ).run(
        environ.get("APP_HOST", "127.0.0.1"),
        port_of(environ),
        sock=inherited_socket() if "LISTEN_PID" in environ else None,
        certfile=environ.get("APP_TLS_CERT") or None,
        keyfile=environ.get("APP_TLS_KEY") or None,
    )


def is_well(environ: Mapping[str, str]) -> bool:
    """Whether the program that listens on APP_PORT of this machine answers on /health."""
    port = port_of(environ)
    if environ.get("APP_TLS_CERT"):
        # Its certificate is for the name that the clients use, which is not this one.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        asked: http.client.HTTPConnection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=3, context=context
        )
    else:
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        asked.request("GET", "/health")
        return asked.getresponse().status == 200
    except OSError:
        return False
    finally:
        asked.close()


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["check"]:
            sys.exit(0 if is_well(os.environ) else 1)
        serve(os.environ)
    except WSCError as wrong:
        sys.exit(f"app: {wrong}")
