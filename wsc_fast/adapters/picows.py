"""Connections that picows makes: what is picows' own about them.

On the hub's own port (`transport="picows"`) the hub accepts connections and answers requests as
ever. picows makes the connection of an upgrade that is accepted (`make_connection`): it writes the
101 and gives `client.conn`. Then the hub reads and writes.

On a picows server of one's own (picows_server.py), settings about what comes before the upgrade are
that server's, and `check_attachable` refuses them.
"""

from __future__ import annotations

import asyncio
from functools import partial
from logging import WARNING, LoggerAdapter, getLogger

from picows import WSAutoPingStrategy, WSUpgradeResponse, WSUpgradeResponseWithListener
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # no stub has it

from wsc_fast._core.connection import Client, set_remote_address
from wsc_fast._core.picows_connection import take_over
from wsc_fast.adapters.door import check_kept
from wsc_fast.config import HubConfig

# picows writes two INFO lines for each connection: from WARNING on is enough.
_logger = getLogger("wsc_fast.picows")
_logger.setLevel(WARNING)
# The protocol of one connection of a server, which pings, times out and answers nothing by itself.
_protocol = partial(
    WSProtocol,
    host_port=None,
    ws_path=None,
    is_client_side=False,
    # An adapter, since picows makes a logger for each connection out of a Logger.
    logger=LoggerAdapter(_logger, {}),
    disconnect_on_exception=True,
    websocket_handshake_timeout=None,
    enable_auto_ping=False,
    auto_ping_idle_timeout=20,
    auto_ping_reply_timeout=20,
    auto_ping_strategy=WSAutoPingStrategy.PING_WHEN_IDLE,
    enable_auto_pong=False,
    max_frame_size=1 << 20,
    extra_headers=None,
    read_buffer_init_size=2_048,  # enough for the request below
)


# A server of one's own, as lines and errors name it.
SERVER = "a picows server of your own"
# Settings about what happens before the upgrade, and who bounds that on a server of one's own.
_OF_THE_SERVER = {
    "backlog": "it is an argument of ws_create_server",
    "handshake_timeout": "ws_create_server has websocket_handshake_timeout",
    "max_handshakes": "picows has no such bound",
    "max_header_bytes": "picows takes up to 16 KiB of headers",
    "max_request_body": "picows takes requests without a body only",
    "receive_buffer_size": "set SO_RCVBUF on the socket that the server listens on",
    "trusted_proxies": "picows does not say which peer a request comes from",
    "write_buffer_size": "set SO_SNDBUF on the socket that the server listens on",
}


def check_attachable(config: HubConfig) -> None:
    """Raises ConfigError for a setting that cannot hold on a picows server of one's own."""
    check_kept(
        config,
        _OF_THE_SERVER,
        SERVER,
        ". With hub.start(transport='picows') it holds",
    )


def make_connection(
    client: Client,
    transport: asyncio.Transport,
    key: str,
    headers: dict[str, str],
    remote_address: str,
) -> None:
    """Has picows make the connection of an upgrade that the hub has accepted.

    Args:
        client: whose connection it is.
        transport: the connection, before its 101 is written.
        key: the Sec-WebSocket-Key of the request.
        headers: what was negotiated.
        remote_address: of the peer.

    Raises:
        OSError: picows cannot set the options of TCP on its socket; nothing was written.
    """
    set_remote_address(client, remote_address)
    response = WSUpgradeResponse.create_101_response(headers)
    accepted = WSUpgradeResponseWithListener(response, client)
    protocol = _protocol(ws_listener_factory=lambda request: accepted)
    protocol.connection_made(transport)
    transport.set_protocol(protocol)
    # The request in the one form that picows accepts (RFC 6455 section 4.2.1 has lists).
    request = (
        "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    ).encode()
    protocol.get_buffer(-1)[: len(request)] = request
    protocol.buffer_updated(len(request))
    take_over(client)
