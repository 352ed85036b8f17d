"""The request of one connection of the hub's own server, until it is answered."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from picows import WSUpgradeResponse

from wsc_fast._core.connection import Client, peer_address
from wsc_fast._core.handshake import RequestHead, RequestLine, TooManyHeaders
from wsc_fast.addresses import forwarded_address
from wsc_fast.log import log
from wsc_fast.upgrade.answers import switching_protocols
from wsc_fast.upgrade.lingering import Lingering
from wsc_fast.upgrade.policy import reject

if TYPE_CHECKING:
    from wsc_fast.hub import Hub

# How the first record of a TLS stream begins (RFC 8446 section 5.1): a handshake.
_TLS_RECORD = b"\x16\x03"
# How many have their answer and have not ended their half: one of so many `max_handshakes`, and at
# least so many. The hub holds a connection of whoever sends on no longer than others leave it room.
_LINGERING_SHARE = 8
_LEAST_LINGERING = 64


class Handshake:
    """The request of one connection of the hub's own server, until it is answered.

    Reads one request head. Anything but an accepted upgrade is answered and closed, and what was
    sent behind it is not looked at.

    Args:
        hub: whose connection it is.
        client: what the connection is if its upgrade is accepted; its protocol already.
        transport: the connection.
    """

    __slots__ = (
        "_client",
        "_descriptor",
        "_head",
        "_hub",
        "_line",
        "_lingering",
        "_transport",
    )

    def __init__(self, hub: Hub, client: Client, transport: asyncio.Transport) -> None:
        self._hub = hub
        self._client = client
        self._transport = transport
        self._head: bytearray | None = None  # what came of it in earlier reads
        self._line: RequestLine | None = None  # of that
        self._lingering: Lingering | None = None  # once it is answered
        self._descriptor: int = transport.get_extra_info("socket").fileno()
        if self._descriptor >= hub._last_file:
            hub._log_out_of_files()

    def received(self, data: bytes | bytearray) -> None:
        """Takes what the transport has read."""
        if self._lingering is not None:
            return
        searched = 0
        if self._head is not None:
            searched = max(0, len(self._head) - 3)
            self._head += data
            data = self._head
        end = data.find(b"\r\n\r\n", searched)
        most = self._hub.config.max_header_bytes
        if 0 <= end <= most - 4:
            self._decide(bytes(data[: end + 2]), bytes(data[end + 4 :]))
        else:
            self._wait_for_more(data, most)

    def _wait_for_more(self, data: bytes | bytearray, most: int) -> None:
        if self._line is None:
            self._head = bytearray(data)
            self._line = RequestLine()
        if not self._line.fits(data):
            # Refused at once, since another protocol may never send what ends a head of HTTP.
            self._refuse_malformed(data, "a malformed request line")
        elif len(data) >= most:
            self._hub._count_limit("max_header_bytes")
            self._answer(reject(self._hub, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))

    def _refuse_malformed(self, data: bytes | bytearray, reason: str) -> None:
        if data.startswith(_TLS_RECORD):
            reason = "a TLS handshake, on a port without TLS"
        log.info("a bad request from %s: %s", peer_address(self._transport), reason)
        self._answer(reject(self._hub, HTTPStatus.BAD_REQUEST, reason))

    def _decide(self, raw: bytes, rest: bytes) -> None:
        hub, client, transport = self._hub, self._client, self._transport
        try:
            head = RequestHead(raw, hub.config.max_headers)
        except ValueError as error:
            if isinstance(error, TooManyHeaders):
                hub._count_limit("max_headers")
            self._refuse_malformed(raw, str(error))
            return
        remote_address = peer_address(transport)
        if hub._trusted_proxies and head.forwarded_for is not None:
            remote_address = forwarded_address(
                remote_address, head.forwarded_for, hub._trusted_proxies
            )
        decided = hub._accept(head, client, remote_address, transport)
        if transport.is_closing():
            # A loop ran inside `authenticate` or a route, and the connection ended in it.
            hub._drop_identity(client)
            return
        if isinstance(decided, WSUpgradeResponse):
            self._answer(decided, head.method == "HEAD")
            return
        assert head.key is not None
        self.settle()
        if hub._make_connection is None:
            transport.write(switching_protocols(head.key, decided))
            client._begin(transport, self._descriptor, hub._tls, remote_address)
        else:
            try:
                hub._make_connection(client, transport, head.key, decided, remote_address)
            except OSError as error:
                hub._count_rejected("gone")
                log.info("a connection from %s cannot be made: %s", remote_address, error)
                hub._drop_identity(client)
                transport.abort()
                return
        if rest:
            client._feed(rest)

    def _answer(self, response: WSUpgradeResponse, head_only: bool = False) -> None:
        response.headers.setdefault("Connection", "close")
        answer = bytes(response.to_bytes())
        if head_only:
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        self._head = self._line = None  # it may be a while until the connection is gone
        self.settle()
        self._hub._answered[self] = None
        self._lingering = Lingering(
            self._hub, self._client, self._transport, self._descriptor, answer
        )
        if not self._transport.get_write_buffer_size():
            self._linger()

    def _linger(self) -> None:
        """The kernel has the answer: only the end of the peer's half is waited for.

        One more than there may be ends the oldest. It costs that peer nothing, unless it sends on.
        """
        lingering = self._hub._lingering
        if self in lingering:
            return
        most = max(_LEAST_LINGERING, self._hub.config.max_handshakes // _LINGERING_SHARE)
        if len(lingering) >= most:
            self._hub._count_limit("max_handshakes")
            oldest = next(iter(lingering))
            oldest.settle()
            oldest.abort()
        lingering[self] = None

    def descriptor(self) -> int:
        """Of its socket; -1 where it may be closed already."""
        return -1 if self._transport.is_closing() else self._descriptor

    def drained(self) -> None:
        """The transport has written all that it was given."""
        if self._lingering is not None:
            self._lingering.drained()
            self._linger()

    def lost(self) -> None:
        """The connection is gone."""
        waited = self.settle()
        if self._lingering is not None:
            self._lingering.lost()
        elif waited and self._hub._accepting:
            self._hub._count_rejected("gone")

    def settle(self) -> bool:
        """Has the hub forget this handshake; returns whether it was still without an answer."""
        self._hub._answered.pop(self, None)
        self._hub._lingering.pop(self, None)
        slot = self._hub._handshaking.pop(self, None)
        if slot is None:
            return False
        self._hub._deadlines.cancel(self.time_out, slot)
        return True

    def time_out(self) -> None:
        """Ends it, since its request was not whole in time."""
        del self._hub._handshaking[self]
        self._hub._count_limit("handshake_timeout")
        self.abort()

    def abort(self) -> None:
        """Ends a connection that is not upgraded."""
        self._transport.abort()
