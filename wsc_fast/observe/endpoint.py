"""Where a scraper finds the metrics: a route of the hub, or a small listener of their own.

Both answer in the form that the scraper asks for, OpenMetrics or Prometheus' text. The listener is
for a port that the public does not reach: it serves this one path, and a bounded number of
connections at a time, each for a bounded time.

A registry is read in a thread of the loop's executor. It may hold hubs of other loops, and
collectors of the application that take their time: the loop of this hub waits for none of them.
Two hubs that are scraped at once would else wait for each other.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from wsc_fast._core.handshake import RequestHead
from wsc_fast.errors import ListenError
from wsc_fast.listen.sockets import bound_sockets
from wsc_fast.log import log
from wsc_fast.runtime.inbox import decided
from wsc_fast.upgrade.answers import Response, answer
from wsc_fast.upgrade.request import Request

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

MayScrape = Callable[[Request], bool]

# Of the listener: bytes of a request, seconds for one, connections at a time.
MOST_BYTES = 16_384
TIMEOUT = 5.0
MOST_CONNECTIONS = 32


class Endpoint:
    """Answers scrapes of one hub's registry.

    Args:
        registry: prometheus-client's.
        authenticate: whether a request may scrape; None lets all.
        refused: counts a scrape that was refused.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        authenticate: MayScrape | None,
        refused: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._authenticate = authenticate
        self._refused = refused

    async def answer(self, request: Request) -> Response:
        """The metrics, or 401, or 403 for one that has shown an Authorization."""
        if self._authenticate is not None and not decided(
            self._authenticate(request), "authenticate of enable_metrics"
        ):
            self._refused()
            log.info("a scrape of the metrics from %s was refused", request.remote_address)
            if "Authorization" in request.headers:
                return Response(HTTPStatus.FORBIDDEN, "403 Forbidden\n")
            ask = {"WWW-Authenticate": "Bearer"}
            return Response(HTTPStatus.UNAUTHORIZED, "401 Unauthorized\n", headers=ask)
        return await asyncio.to_thread(_scraped, self._registry, request.headers.get("Accept", ""))


class MetricsPort:
    """A listener for the metrics alone.

    Args:
        endpoint: answers.
        path: of the metrics.
        host, port: where it listens.
        report: hears of what `authenticate` raises.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        host: str,
        port: int,
        report: Callable[[BaseException], None],
    ) -> None:
        self._endpoint = endpoint
        self._path = path.encode()
        self._host = host
        self._port = port
        self._report = report
        self._servers: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int | None:
        """The port that is listened on; None where none is."""
        return self._sockets[0].getsockname()[1] if self._sockets else None

    async def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Listens, on the running loop.

        Args:
            loop: that one.

        Raises:
            ListenError: the address cannot be had.
        """
        try:
            self._sockets = await bound_sockets(self._host, self._port, False)
            for sock in self._sockets:
                self._servers.append(
                    await asyncio.start_server(self._serve, sock=sock, limit=MOST_BYTES)
                )
        except (OSError, UnicodeError) as error:
            self.close()
            raise ListenError(
                f"cannot listen on {self._host}:{self._port} for metrics: {error}"
            ) from error

    def close(self) -> None:
        """Listens no more, and ends the scrapes under way."""
        for writer in list(self._writers):
            writer.transport.abort()
        for server in self._servers:
            server.close()
        for sock in self._sockets:
            sock.close()
        self._servers.clear()
        self._sockets.clear()

    def forget(self) -> None:
        """The loop was closed, or is another process's: no call of it."""
        for sock in self._sockets:
            sock.close()
        self._servers.clear()
        self._sockets.clear()
        self._writers.clear()

    def descriptors(self) -> list[int]:
        """Of its sockets."""
        connections = [writer.get_extra_info("socket").fileno() for writer in self._writers]
        return [*(sock.fileno() for sock in self._sockets), *connections]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._writers) >= MOST_CONNECTIONS:
            log.warning("more than %d scrapes of the metrics at a time", MOST_CONNECTIONS)
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            async with asyncio.timeout(TIMEOUT):
                raw = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(raw, writer))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, asyncio.LimitOverrunError, TimeoutError):
            pass  # it is the scraper that has gone, or is too slow
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _answer(self, raw: bytes, writer: asyncio.StreamWriter) -> bytes:
        try:
            head = RequestHead(raw[:-2])
        except ValueError as error:
            return _bytes_of(Response(HTTPStatus.BAD_REQUEST, f"{error}\n"))
        if head.target.partition(b"?")[0] != self._path:
            return _bytes_of(Response(HTTPStatus.NOT_FOUND, "404 Not Found\n"))
        if head.method not in ("GET", "HEAD"):
            allowed = {"Allow": "GET, HEAD"}
            return _bytes_of(
                Response(HTTPStatus.METHOD_NOT_ALLOWED, "405 Method Not Allowed\n", headers=allowed)
            )
        peer = writer.get_extra_info("peername")
        try:
            response = await self._endpoint.answer(Request(head, peer[0] if peer else ""))
        except Exception as error:
            self._report(error)
            response = Response(HTTPStatus.INTERNAL_SERVER_ERROR, "500 Internal Server Error\n")
        sent = _bytes_of(response)
        return sent if head.method == "GET" else sent[: sent.index(b"\r\n\r\n") + 4]


def _scraped(registry: CollectorRegistry, accepted: str) -> Response:
    from prometheus_client.exposition import choose_encoder

    encode, content_type = choose_encoder(accepted)
    return Response(body=encode(registry), content_type=content_type)


def _bytes_of(response: Response) -> bytes:
    made = answer(response)
    made.headers["Connection"] = "close"
    return bytes(made.to_bytes())
