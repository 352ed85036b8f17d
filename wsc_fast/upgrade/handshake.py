"""The requests of the hub's own server: each connection until it is upgraded, or has its answer.

There are at most `max_handshakes` of them. One more ends the oldest of the largest group: of those
whose request is not whole yet, of those whose async route is under way, or of those whose peers
still read an answer. The oldest has had the longest time; an honest peer is quicker than that, and
a crowd is in the largest group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from picows import WSUpgradeResponse

from wsc_fast._core.connection import Client, begin_connection, feed, peer_address
from wsc_fast._core.engine import Engine
from wsc_fast._core.handshake import RequestHead, RequestLine, TooManyHeaders
from wsc_fast.addresses import forwarded_address
from wsc_fast.config import HubConfig
from wsc_fast.log import log
from wsc_fast.runtime.process import FileLimit
from wsc_fast.runtime.state import State
from wsc_fast.runtime.tasks import Tasks
from wsc_fast.turns import MOST_ENDS, in_turns
from wsc_fast.upgrade.answers import switching_protocols
from wsc_fast.upgrade.lingering import Lingering
from wsc_fast.upgrade.policy import Policy
from wsc_fast.upgrade.routes import RouteCall
from wsc_fast.upgrade.serving import Serving

# How the first record of a TLS stream begins (RFC 8446 section 5.1): a handshake.
_TLS_RECORD = b"\x16\x03"
# Connections whose peers have their answer, and have not ended their half: of `max_handshakes` one
# of so many, and at least so many.
_LINGERING_SHARE = 8
_LEAST_LINGERING = 64

MakeConnection = Callable[[Client, asyncio.Transport, str, dict[str, str], str], None]


class Requests:
    """The connections of one hub's own server that are not upgraded.

    Args:
        engine, state, tasks: of the hub.
        policy: decides on each request.
        files: says when descriptors run out.
        settings: those that hold now.

    Attributes:
        make_connection: makes the connection of an upgrade that is accepted, instead of the hub
            itself; None where the hub does.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        engine: Engine,
        state: State,
        tasks: Tasks,
        policy: Policy,
        files: FileLimit,
        settings: Callable[[], HubConfig],
    ) -> None:
        self.engine = engine
        self.tasks = tasks
        self.policy = policy
        self.files = files
        self.settings = settings
        self.make_connection: MakeConnection | None = None
        self._state = state
        # Handshakes whose request is not answered yet, oldest first -> their slot of the deadlines.
        self._waiting: dict[Handshake, int] = {}
        # Handshakes whose async route is under way, oldest first.
        self._served: dict[Handshake, None] = {}
        # Handshakes that were answered and not upgraded, while their peers read; oldest first.
        self._answered: dict[Handshake, None] = {}
        # The answered ones whose answer the kernel has; oldest first.
        self._lingering: dict[Handshake, None] = {}

    def begin(self, client: Client, transport: asyncio.Transport) -> Handshake | None:
        """See `upward.Requests`."""
        loop = self.engine.loop
        if loop is None or not self._state.accepting:
            transport.abort()  # accepted in the turn before the hub stopped
            return None
        settings = self.settings()
        count = len(self._waiting) + len(self._served) + len(self._answered)
        if count >= settings.max_handshakes:
            self._end_oldest()
        handshake = Handshake(self, client, transport)
        self._waiting[handshake] = self.engine.deadlines.set(
            handshake.time_out, loop.time() + settings.handshake_timeout
        )
        return handshake

    def _end_oldest(self) -> None:
        self.engine.count_rejected("handshakes")
        self.engine.count_limit("max_handshakes")
        log.warning(
            "as many connections without an upgrade as HubConfig.max_handshakes (%d) allows: the "
            "oldest ones are ended",
            self.settings().max_handshakes,
            extra={"event": "too_many_handshakes", "setting": "max_handshakes"},
        )
        groups: tuple[dict[Handshake, Any], ...] = (self._answered, self._waiting, self._served)
        largest: dict[Handshake, Any] = max(groups, key=len)
        self._abort(next(iter(largest)))

    def _abort(self, handshake: Handshake) -> None:
        self.settle(handshake)
        handshake.abort()

    def settle(self, handshake: Handshake) -> bool:
        """Forgets a handshake; returns whether it was still without an answer."""
        self._answered.pop(handshake, None)
        self._lingering.pop(handshake, None)
        self._served.pop(handshake, None)
        slot = self._waiting.pop(handshake, None)
        if slot is None:
            return False
        self.engine.deadlines.cancel(handshake.time_out, slot)
        return True

    def served(self, handshake: Handshake) -> None:
        """An async route is under way."""
        self.settle(handshake)
        self._served[handshake] = None

    def answered(self, handshake: Handshake) -> None:
        """A request has got an answer that is no 101."""
        self.settle(handshake)
        self._answered[handshake] = None

    def lingers(self, handshake: Handshake) -> None:
        """The kernel has the answer: only the end of the peer's half is waited for.

        One more than there may be ends the oldest. It costs that peer nothing, unless it sends on.
        """
        if handshake in self._lingering:
            return
        most = max(_LEAST_LINGERING, self.settings().max_handshakes // _LINGERING_SHARE)
        if len(self._lingering) >= most:
            self.engine.count_limit("max_handshakes")
            self._abort(next(iter(self._lingering)))
        self._lingering[handshake] = None

    def timed_out(self, handshake: Handshake) -> None:
        """A request was not whole in time; its deadline is over."""
        del self._waiting[handshake]
        self.engine.count_limit("handshake_timeout")

    def lost(self, handshake: Handshake) -> None:
        """The connection of a request is gone."""
        if self.settle(handshake) and self._state.accepting:
            self.engine.count_rejected("gone")

    def waits(self) -> bool:
        """Whether a connection has no answer to its request yet."""
        return bool(self._waiting or self._served)

    def descriptors(self) -> list[int]:
        """Of their sockets; -1 for one that may be closed already."""
        return [handshake.descriptor() for handshake in self._all()]

    def _all(self) -> list[Handshake]:
        return [*self._waiting, *self._served, *self._answered]

    async def abort_all(self) -> None:
        """Ends all of them."""
        await in_turns(self._all(), Handshake.abort, MOST_ENDS)

    def forget(self) -> None:
        """The loop was closed: the connections went with it."""
        self._waiting.clear()
        self._served.clear()
        self._answered.clear()
        self._lingering.clear()


class Handshake:
    """The request of one connection.

    Reads one request head. Anything but an accepted upgrade is answered and closed, and what was
    sent behind it is not looked at.

    Args:
        requests: those of the hub.
        client: what the connection is if its upgrade is accepted; its protocol already.
        transport: the connection.

    Attributes:
        transport: the same.
        untouched: nothing of the request has come yet.
    """

    __slots__ = (
        "_client",
        "_descriptor",
        "_head",
        "_line",
        "_lingering",
        "_requests",
        "_serving",
        "_without_body",
        "transport",
        "untouched",
    )

    def __init__(self, requests: Requests, client: Client, transport: asyncio.Transport) -> None:
        self._requests = requests
        self._client = client
        self.transport: asyncio.Transport = transport
        self.untouched: bool = True
        self._head: bytearray | None = None  # what came of it in earlier reads
        self._line: RequestLine | None = None  # of that
        self._serving: Serving | None = None  # once it is known to be for a route
        self._without_body = False  # the answer is one to HEAD
        self._lingering: Lingering | None = None  # once it is answered
        self._descriptor: int = transport.get_extra_info("socket").fileno()
        if self._descriptor >= requests.files.last:
            requests.files.log()

    def received(self, data: bytes | bytearray) -> None:
        """Takes what the transport has read."""
        self.untouched = False
        if self._lingering is not None:
            return
        if self._serving is not None:
            self._serving.received(data)
            return
        searched = 0
        if self._head is not None:
            searched = max(0, len(self._head) - 3)
            self._head += data
            data = self._head
        end = data.find(b"\r\n\r\n", searched)
        most = self._requests.settings().max_header_bytes
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
            self._requests.engine.count_limit("max_header_bytes")
            self._tell_bad(
                f"its head is longer than HubConfig.max_header_bytes ({most}) allows",
                setting="max_header_bytes",
            )
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._answer(self._requests.policy.reject(status))

    def _refuse_malformed(self, data: bytes | bytearray, reason: str) -> None:
        if data.startswith(_TLS_RECORD):
            reason = "a TLS handshake, on a port without TLS"
        self._tell_bad(reason)
        self._answer(self._requests.policy.reject(HTTPStatus.BAD_REQUEST, reason))

    def _tell_bad(self, reason: str, **fields: str) -> None:
        address = peer_address(self.transport)
        log.warning(
            "a bad request from %s: %s",
            address,
            reason,
            extra={"event": "bad_request", "address": address, "reason": reason, **fields},
            reason=reason,
        )

    def _decide(self, raw: bytes, rest: bytes) -> None:
        requests, client, transport = self._requests, self._client, self.transport
        policy = requests.policy
        try:
            head = RequestHead(raw, requests.settings().max_headers)
        except ValueError as error:
            if isinstance(error, TooManyHeaders):
                requests.engine.count_limit("max_headers")
            self._refuse_malformed(raw, str(error))
            return
        remote_address = peer_address(transport)
        if policy.site.trusted_proxies and head.forwarded_for is not None:
            remote_address = forwarded_address(
                remote_address, head.forwarded_for, policy.site.trusted_proxies
            )
        decided = policy.accept(head, client, remote_address, transport)
        if transport.is_closing():
            # A loop ran inside `authenticate` or a route, and the connection ended in it.
            policy.drop_identity(client)
            return
        self._without_body = head.method == "HEAD"
        if isinstance(decided, RouteCall):
            self._head = self._line = None
            self._serving = Serving(
                decided, policy, requests.tasks, client, self, partial(requests.served, self)
            )
            self._serving.begin(rest)
            return
        if isinstance(decided, WSUpgradeResponse):
            self._answer(decided)
            return
        assert head.key is not None
        requests.settle(self)
        if requests.make_connection is None:
            transport.write(switching_protocols(head.key, decided))
            begin_connection(client, transport, self._descriptor, policy.site.tls, remote_address)
        else:
            try:
                requests.make_connection(client, transport, head.key, decided, remote_address)
            except OSError as error:
                requests.engine.count_rejected("gone")
                log.warning(
                    "a connection from %s cannot be made: %s",
                    remote_address,
                    error,
                    extra={"event": "not_connected", "address": remote_address},
                )
                policy.drop_identity(client)
                transport.abort()
                return
        if rest:
            feed(client, rest)

    def answer(self, response: WSUpgradeResponse) -> None:
        """Sends the answer of a route, unless the connection is gone."""
        if not self.transport.is_closing():
            self._answer(response)

    def _answer(self, response: WSUpgradeResponse) -> None:
        response.headers.setdefault("Connection", "close")
        answer = bytes(response.to_bytes())
        if self._without_body:
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        self._head = self._line = None  # it may be a while until the connection is gone
        requests = self._requests
        requests.answered(self)
        self._lingering = Lingering(
            requests.engine,
            requests.settings,
            self._client,
            self.transport,
            self._descriptor,
            answer,
        )
        if not self.transport.get_write_buffer_size():
            requests.lingers(self)

    def descriptor(self) -> int:
        """Of its socket; -1 where it may be closed already."""
        return -1 if self.transport.is_closing() else self._descriptor

    def drained(self) -> None:
        """The transport has written all that it was given."""
        if self._lingering is not None:
            self._lingering.drained()
            self._requests.lingers(self)

    def lost(self) -> None:
        """The connection is gone."""
        self._requests.lost(self)
        if self._serving is not None:
            self._serving.end()
        if self._lingering is not None:
            self._lingering.lost()

    def time_out(self) -> None:
        """Ends it, since its request was not whole in time."""
        self._requests.timed_out(self)
        self.abort()

    def abort(self) -> None:
        """Ends a connection that is not upgraded."""
        if self._serving is not None:
            self._serving.end()
        self.transport.abort()
