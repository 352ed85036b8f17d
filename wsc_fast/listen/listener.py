"""All listening of a hub: it binds, accepts, hands a port over and stops."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Callable
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, cast

from wsc_fast._core.poller import Poller
from wsc_fast.errors import HubStateError, ListenError, ValidationError
from wsc_fast.listen.needs import Needs
from wsc_fast.listen.sockets import Host, bound_sockets
from wsc_fast.log import log

if TYPE_CHECKING:
    from wsc_fast.listen.acceptor import Acceptor
    from wsc_fast.listen.polled import PolledAcceptor


class Listener:
    """The listening sockets of one hub. It can be opened again after it was closed.

    Args:
        needs: of the hub.

    Attributes:
        addresses: those listened on, as "host:port".
        shares_port: another process may go on accepting on the port.
        poller: has the connections of the engine's own transport; None where there are none.
        by_loop: plain TCP is left to the loop's own transports, as on systems without epoll.
        servers: where the loop accepts by itself.
        acceptors: where we accept.

    Thread-safety: the loop's thread, but for `reload_certificate`.
    """

    def __init__(self, needs: Needs) -> None:
        self._needs = needs
        self._certificate: tuple[str, str | None] | None = None
        self._make_acceptor: type[Acceptor]
        self.poller: Poller | None = None
        self._own_queue = False  # with a shared port: who has connected is in a queue of our own
        self.addresses: tuple[str, ...] = ()
        self.shares_port: bool = False
        self.servers: list[asyncio.Server] = []
        self.acceptors: list[Acceptor | PolledAcceptor] = []
        self.by_loop: bool = False

    @property
    def port(self) -> int:
        """The port listened on, the same at each address; of the first of several sockets.

        Raises:
            HubStateError: there is none.
        """
        for acceptor in self.acceptors:
            if acceptor.port is not None:
                return acceptor.port
        for server in self.servers:
            for sock in server.sockets:
                return int(sock.getsockname()[1])
        raise HubStateError("the hub does not listen")

    def descriptors(self) -> list[int]:
        """The sockets listened on, those in the TLS handshake, and all of the engine's own."""
        found = [each for acceptor in self.acceptors for each in acceptor.descriptors()]
        found += self.poller.descriptors() if self.poller is not None else []
        return found + [sock.fileno() for server in self.servers for sock in server.sockets]

    def is_busy(self) -> bool:
        """Whether it has connections that have not shaken hands yet."""
        return any(acceptor.is_busy() for acceptor in self.acceptors)

    # --- TLS ---

    def choose_tls(
        self, ssl: SSLContext | None, certfile: str | None, keyfile: str | None
    ) -> SSLContext | None:
        """The context to listen with, if any; that of a certfile can be loaded again.

        Raises:
            ValidationError: both kinds of TLS, or a key without its certificate.
            ConfigError: the certificate cannot be loaded.
        """
        self._certificate = None
        if keyfile is not None and certfile is None:
            raise ValidationError("keyfile needs a certfile")
        if certfile is None:
            return ssl
        if ssl is not None:
            raise ValidationError("either ssl or certfile, not both")
        from wsc_fast.listen.tls.context import tls_context

        context = tls_context(certfile, keyfile)
        self._certificate = certfile, keyfile
        return context

    def reload_certificate(self) -> None:
        """Loads the files of the certificate again, for connections from now on.

        Raises:
            HubStateError: there are no files.
            ConfigError: they cannot be loaded; the certificate in use stays.

        Thread-safety: any thread.
        """
        if self._certificate is None:
            raise HubStateError("the hub was not started with certfile")
        from wsc_fast.listen.tls.context import tls_context

        context = tls_context(*self._certificate)
        for acceptor in self.acceptors:
            acceptor.use(context)
        log.info(
            "the certificate %s was loaded again: connections from now on get it",
            self._certificate[0],
            extra={"event": "certificate_reloaded", "certfile": self._certificate[0]},
        )

    # --- the beginning ---

    async def open(
        self,
        host: Host,
        port: int,
        *,
        given: list[socket.socket],
        ssl: SSLContext | None,
        reuse_port: bool,
        check: Callable[[], None],
    ) -> None:
        """Listens at an address, on the running loop; after a failure nothing is left open.

        Args:
            host, port: see `bound_sockets`.
            given: sockets that are bound, instead of both; owned from here on.
            ssl: serve TLS with this context.
            reuse_port: other processes may listen on the port as well.
            check: is called once the addresses are bound; raises if nobody wants them any more.

        Raises:
            ListenError: the address cannot be had.
        """
        # Imported here, and not where one is made: that may be when no descriptor is left.
        from wsc_fast.listen.acceptor import Acceptor

        self._make_acceptor = Acceptor
        self.shares_port = reuse_port or bool(given)
        self._own_queue = reuse_port
        sockets = given
        try:
            if not given:
                sockets = await bound_sockets(host, port, reuse_port)
                check()
            self.addresses = tuple(map(_address_of, sockets))
            if not self.by_loop and sys.platform == "linux":
                self.poller = self._needs.make_poller()
            if ssl is None and self.poller is not None:
                self._poll(sockets, self.poller)
            else:
                for listening in sockets:
                    await self._listen(listening, ssl)
        except BaseException as error:
            self.close()
            self.finish()
            for listening in sockets:
                listening.close()
            if isinstance(error, (OSError, UnicodeError)):
                raise _listen_error(error, bool(given), host, port) from error
            raise

    def _poll(self, sockets: list[socket.socket], poller: Poller) -> None:
        """Listens on bound sockets, which are owned from here on, by the engine's own transport."""
        from wsc_fast.listen.polled import PolledAcceptor

        loop = asyncio.get_running_loop()
        for listening in sockets:
            self._set_buffers(listening)
            self.acceptors.append(PolledAcceptor(loop, self._needs, listening, poller))

    def _set_buffers(self, listening: socket.socket) -> None:
        # Accepted sockets inherit both.
        settings = self._needs.settings()
        for option, size in (
            (socket.SO_RCVBUF, settings.receive_buffer_size),
            (socket.SO_SNDBUF, settings.write_buffer_size),
        ):
            if size:
                listening.setsockopt(socket.SOL_SOCKET, option, size)

    async def _listen(self, listening: socket.socket, ssl: SSLContext | None) -> None:
        """Listens on a bound socket, which is owned from here on. Does not wait for anything."""
        loop = asyncio.get_running_loop()
        settings = self._needs.settings()
        self._set_buffers(listening)
        if ssl is not None or isinstance(loop, asyncio.BaseEventLoop):
            self.acceptors.append(
                self._make_acceptor(loop, self._needs, _copy(listening), ssl, self.poller)
            )
            listening.close()
            return
        # As `protocol_of` says of each, without a call more for each connection.
        make_protocol = cast("Callable[[], asyncio.BaseProtocol]", self._needs.make_connection)
        server = await loop.create_server(make_protocol, sock=listening, backlog=settings.backlog)
        self.servers.append(server)
        if None in server.sockets:
            # uvloop closes a socket that cannot listen, and tells nobody.
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    # --- the end ---

    def leave_to_others(self) -> None:
        """Leaves the port to the processes that share it; accepted connections go on."""
        if self._own_queue:
            self.take_queue()
        self._stop_accepting()

    def take_queue(self) -> None:
        """Accepts all who have connected by now.

        With SO_REUSEPORT the kernel resets who is in the queue of a socket that is closed.
        """
        if not self.acceptors:
            loop = asyncio.get_running_loop()
            for listening in [sock for server in self.servers for sock in server.sockets]:
                try:
                    self.acceptors.append(
                        self._make_acceptor(loop, self._needs, _copy(listening), None)
                    )
                except OSError:
                    self._needs.log_out_of_files()
        for acceptor in self.acceptors:
            acceptor.take_queue()

    def _stop_accepting(self) -> None:
        for acceptor in self.acceptors:
            acceptor.stop_accepting()
        for server in self.servers:
            server.close()
        self.servers.clear()

    def close(self) -> None:
        """Accepts nothing more, and ends the TLS handshakes under way."""
        self._stop_accepting()
        self._close_acceptors()

    def finish(self) -> None:
        """Ends the connections that are left of the engine's own transport."""
        if self.poller is not None:
            self.poller.finish()
            self.poller = None

    def forget(self) -> None:
        """Closes what can be closed once the loop is; its servers went with it."""
        self._close_acceptors()
        self.servers.clear()
        if self.poller is not None:
            self.poller.forget()
            self.poller = None

    def forget_port(self) -> None:
        """Another server listens from now on, which is not the hub's."""
        self.shares_port = self._own_queue = False

    def _close_acceptors(self) -> None:
        for acceptor in self.acceptors:
            acceptor.close()
        self.acceptors.clear()


def _address_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _copy(listening: Any) -> socket.socket:
    """A listening socket of a server's, to be accepted from and closed on its own."""
    return socket.socket(fileno=os.dup(listening.fileno()))


def _listen_error(error: OSError | UnicodeError, given: bool, host: Host, port: int) -> ListenError:
    reasons = {
        errno.EADDRINUSE: "the address is in use",
        errno.EADDRNOTAVAIL: "the address is not one of this machine",
        errno.EACCES: "permission denied",
    }
    if isinstance(error, UnicodeError):
        number, reason = errno.EINVAL, "no host has such a name"
    else:
        number = error.errno or 0
        reason = reasons.get(number, error.strerror or str(error))
    names = host if isinstance(host, str) or host is None else ", ".join(host)
    where = "the socket" if given else f"{names or '*'}:{port}"
    return ListenError(number, f"cannot listen on {where}: {reason}")
