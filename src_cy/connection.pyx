"""One connection, from the accepted upgrade to the end of its transport.

Rules
1.  No callback here raises into the transport: a user's exception is reported, a peer's fault
    closes.
2.  A client leaves every set of the hub before its close frame is queued, and the dirty list
    before its transport is aborted, so that nothing finds it in between.
3.  The application hears of a client once when it is open, and once when its transport is gone,
    and of nothing of it before, between or after that the other rules do not allow.
4.  Every close has one timer, started when it begins and not extended by anything.

States: CONNECTING -> OPEN -> CLOSING -> CLOSED, or from any state straight to CLOSED. In CLOSING
data is neither heard nor sent (RFC 6455 sections 5.5.1 and 7.1); what was queued before the close
still goes out ahead of the close frame.

This module has what the application sees of it, how it begins, and what the parts of a hub do with
it. Before it stand, each in a module of its own: receiver.pyx (bytes -> messages),
picows_connection.pyx (what concerns picows), pacing.pyx (when it is read), closing.pyx (how it
ends), pings.pyx (whether its peer is there) and hearing.pyx (messages -> callbacks). fanout.pyx
sends its frames.

Ownership: a client holds its transport, and the transport holds it, as its protocol, until the
connection is lost; `let_go` undoes by hand what makes a cycle. The engine's sets hold it while it
is open or closing, the queues of turns while it waits there.
"""

import asyncio
from datetime import datetime, timezone
from functools import partial

from aiofastnet import Transport as AiofastnetTransport
from cpython.contextvars cimport PyContext_Copy, PyContext_CopyCurrent, PyContext_Exit

from wsc_fast._core.clock cimport passed
from wsc_fast._core.deflate cimport Context
from wsc_fast._core.engine cimport Engine
from wsc_fast._core.fanout cimport wsc_layer
from wsc_fast._core.frames cimport check_close
from wsc_fast._core.hearing cimport HeardConnection
from wsc_fast._core.members cimport rooms_of
from wsc_fast._core.outbox cimport AWARE, CLOSED, CLOSING, CONNECTING, OPEN
from wsc_fast._core.pacing cimport PAUSED_FOR_CALLBACKS, PAUSED_FOR_IDENTITY
from wsc_fast._core.receiver cimport Arrival
from wsc_fast._core.tls_stream cimport layer_of

from picows import WSListener

from wsc_fast._core.clock import time as wall_time
from wsc_fast.errors import ClientDisconnectedError

cdef extern from "wire.h":
    pass  # receiver.pxd declares what is in it

cdef extern from "net.h" nogil:
    double wsc_coarse_now()

# The names that a Client has for its transport, and as a listener of picows.
cdef frozenset OF_PROTOCOLS = frozenset([*dir(asyncio.BufferedProtocol), *dir(WSListener)])


def peer_address(stream):
    """The IP address of a connection's peer (internal).

    Args:
        stream: an asyncio transport.

    Returns:
        str: the address; "" where there is none.

    Thread-safety: the loop's thread.
    """
    name = stream.get_extra_info("peername")
    if not name or not isinstance(name, tuple):
        return ""
    address = name[0]
    if address.startswith("::ffff:") and "." in address:
        return address[7:]  # IPv4, as a socket of both families tells it
    # A link-local address comes with its interface from some loops.
    return address.partition("%")[0]


cdef bint keeps_input(stream):
    # Whether it decrypts, and may be paused with more at hand than it has handed over.
    return (
        isinstance(stream, AiofastnetTransport)
        and stream.get_extra_info("ssl_object") is not None
    )


cdef class Client(HeardConnection, asyncio.BufferedProtocol):
    """One live WebSocket connection, as the hub's callbacks get it (go-wsc `Client`).

    Stays valid after the connection has gone: `is_connected()` is then False and `send` raises.
    Thread-safety: methods from any thread; attributes are best read in the loop's thread.
    """

    cdef:
        dict data                  # user_data; None until first used
        readonly str remote_address
        readonly str subprotocol
        readonly str device_id     # of its Identity, or None
        double connected_wall      # seconds since the epoch

    def __cinit__(self, Engine engine not None):
        self.remote_address = ""

    # --- what the application sees ---

    @property
    def hub(self):
        """Hub: the hub that it is connected to."""
        return self.engine.hub

    @property
    def close_code(self):
        """int | None: the close code that ended the connection; None while it is open.

        The client's where it closed first, 1005 for a close frame without one; else the hub's; 1006
        when the connection ended without a close frame (RFC 6455 section 7.1.5).
        """
        return self.end_code or None

    @property
    def close_reason(self):
        """str: the reason that came or went with `close_code`."""
        return "" if self.ending is None else self.ending.reason

    @property
    def connected_at(self):
        """datetime: when the connection was made, UTC."""
        return datetime.fromtimestamp(self.connected_wall, timezone.utc)

    @property
    def last_activity(self):
        """datetime: when a frame last came from the client, UTC, to a few milliseconds."""
        seen = wall_time() - (wsc_coarse_now() + passed - self.last_seen)
        return datetime.fromtimestamp(seen, timezone.utc)

    @property
    def user_data(self):
        """dict: the application's own data on this client; made on first use."""
        if self.data is None:
            self.data = {}
        return self.data

    @property
    def queued_messages(self):
        """int: frames that wait to be sent to it."""
        if self.engine.fanout.in_batch(self) and not self.detached:
            return len(self.engine.fanout.batch_frames)
        return self.box.count

    @property
    def queued_bytes(self):
        """int: bytes of these frames, headers included."""
        if self.engine.fanout.in_batch(self) and not self.detached:
            return self.engine.fanout.batch_bytes
        return self.box.nbytes

    @property
    def dropped_messages(self):
        """int: messages for this client that were dropped, whatever the reason."""
        return self.box.dropped

    @property
    def rooms(self):
        """tuple[str, ...]: the rooms it is in; once it is closing, those it was in until then."""
        if self.state <= OPEN:
            return tuple(rooms_of(self))
        return () if self.ending is None or self.ending.rooms is None else self.ending.rooms

    def is_connected(self):
        """Whether messages can be sent to it and come from it.

        Returns:
            bool: False from the moment that either side began to close.

        Thread-safety: any thread. Source: go-wsc `IsConnected`.
        """
        return self.state == OPEN

    def stats(self):
        """A snapshot of the counters of this client.

        Returns:
            ClientStats: also of a client that has gone.

        Thread-safety: any thread.
        """
        cdef long long frames = self.frames_sent
        cdef long long sent = self.bytes_out
        self.engine.clients.add_sent(self, &frames, &sent)
        return self.engine.client_stats(
            self, self.messages_in, self.bytes_in, frames, sent, self.box.conflated,
            self.round_trip, self.connected_wall,
        )

    def send(self, message, *, key=None):
        """Queues a message for this client.

        Args:
            message: bytes (a binary message), str (a text message) or a HubMessage; see
                `Hub.broadcast`.
            key: conflation key, a str; see `Hub.broadcast`.

        Raises:
            ClientDisconnectedError: the client is closing or gone.
            QueueFullError: its outbox is full and the overflow policy made no room.
            ValidationError: the message or the key cannot be used.

        Thread-safety: any thread. Source: go-wsc `Client.Send`.
        """
        cdef bytes frame
        cdef int run
        if self.engine.away():
            self.engine.deliveries.send_on_loop(
                partial(self.send, message, key=key), message, self.id, self.user_id
            )
            return
        if self.state != OPEN:
            error = ClientDisconnectedError(f"client {self.id!a} is not connected")
            if self.engine.fanout.tells_losses():
                self.engine.deliveries.refused(message, self.id, "conn_closed", error, self.user_id)
            raise error
        frame = self.engine.framed(message, self.id, &run)
        self.engine.deliver(self, frame, key, run)

    def disconnect(self, code=1000, reason=""):
        """Closes the connection: what is queued goes out first, then the close frame.

        Nothing more is heard of it: messages that wait for an async callback are dropped. The
        transport is aborted when the client has not answered within HubConfig.close_timeout.
        Does nothing when the connection is closing already.

        Args:
            code: close code, 1000-1003, 1007-1014 or 3000-4999 (RFC 6455 section 7.4).
            reason: text for the client, cut to 123 bytes of UTF-8.

        Raises:
            ValidationError: the code may not be sent, or the reason is not a str; the connection
                is untouched.

        Thread-safety: any thread. Source: go-wsc `Disconnect`.
        """
        check_close(code, reason)
        if self.engine.away():
            self.engine.deliveries.on_loop(partial(self.disconnect, code, reason))
            return
        if self.inbox is not None:
            self.inbox.forget_messages()
        self.send_away(code, reason)

    def set_user_data(self, key, value):
        """Keeps a value under a key of `user_data`.

        Args:
            key: hashable.
            value: anything.

        Thread-safety: any thread. Source: go-wsc `SetUserData`.
        """
        self.user_data[key] = value

    def get_user_data(self, key, default=None):
        """The value kept under a key of `user_data`.

        Args:
            key: hashable.
            default: what to return where there is none.

        Returns:
            object: the value or the default.

        Thread-safety: any thread. Source: go-wsc `GetUserData`.
        """
        return default if self.data is None else self.data.get(key, default)

    def __dir__(self):
        """The public names that are the application's, for completion."""
        names = super().__dir__()
        return [name for name in names if not name.startswith("_") and name not in OF_PROTOCOLS]

    def __repr__(self):
        state = ("connecting", "open", "closing", "closed")[self.state]
        return f"<Client {self.id!a} user={self.user_id!a} {state}>"

    def __reduce__(self):
        # picows' base would have it pickled, without the connection that it is.
        raise TypeError("cannot pickle a Client: it is a connection of this process")

    # --- connecting ---

    def connection_made(self, stream):
        """The transport of a connection to the hub's own server (asyncio.BaseProtocol)."""
        if self.input_closed:
            stream.abort()  # `give_up`
            return
        self.input_closed = True  # what comes is no frame before it is known to be one
        try:
            self.drains = keeps_input(stream)
            self.handshake = self.engine.requests.begin(self, stream)
            self.input_closed = self.handshake is None
        except BaseException as error:
            stream.abort()
            self.engine.application.report(None, error)

    cdef int begin(
        self, object stream, int descriptor, bint secure, str remote_address
    ) except -1:
        cdef wsc_layer* layer = layer_of(stream)
        cdef bint through = secure and layer == NULL  # another's TLS
        self.handshake = None
        self.remote_address = remote_address
        self.connected_wall = wall_time()
        self.engine.fanout.set_layer(descriptor, layer)
        # From here to the `try` nothing can fail, so that what `gone` takes back is all there.
        self.stream = stream
        self.descriptor = descriptor
        self.secure = secure
        self.fd = -1 if through or self.packs else descriptor
        self.engine.connections += 1
        self.engine.counters.connections += 1
        try:
            # pause_writing now comes with the first byte that the transport keeps. The loops' TLS
            # transports compare with >=, so that 0 would pause them for ever.
            stream.set_write_buffer_limits(1 if through and not self.drains else 0, 0)
            if stream.get_write_buffer_size() > 0:
                self.engine.fanout.set_blocked(self, True)
            self.engine.admission.connected(self)
        except BaseException as error:
            self.failed(error)
        return 0

    cdef int begin_on(self, object stream, int descriptor, bint secure) except -1:
        if not self.remote_address:
            self.arriving().late_address = True
        self.drains = keeps_input(stream)
        return self.begin(
            stream, descriptor, secure, self.remote_address or peer_address(stream)
        )

    cdef bytes pack(self, bytes frame):
        return self.context.pack(frame)

    # --- when its transport is full, and when it is not any more ---

    cpdef pause_writing(self):
        self.engine.fanout.set_blocked(self, True)

    cpdef resume_writing(self):
        self.engine.fanout.set_blocked(self, False)
        if self.state == CLOSED:
            return
        if self.handshake is not None:
            self.handshake.drained()
            return
        if self.box.count:
            self.engine.fanout.mark(self)
        elif self.state == CLOSING:
            self.drained()

    # --- its end ---

    cdef int close_normally(self) except -1:
        self.disconnect()
        return 0

    cdef int end_timers(self) except -1:
        if self.arrival is not None and self.arrival.authenticating is not None:
            self.arrival.authenticating.cancel()
            self.arrival.authenticating = None
        return HeardConnection.end_timers(self)

    cdef int forget(self) except -1:
        if self.arrival is not None:
            self.arrival.authenticating = None
        self.counted = False
        return HeardConnection.forget(self)


# --- what the parts of a hub do with a client ---

# `Client` is the application's, so these are functions: they are in nobody's way there.

# Connecting, in the order of the calls.

cdef int end_arrival(Client client) except -1:
    """It is known whose it is: what was kept until then goes, once its hello was used."""
    if not client.is_held() and client.arrival is not None and not client.arrival.positions:
        client.end_looks()
        client.arrival = None
    return 0


def protocol_of(client):
    """The connection as its transport calls it; completion of a Client shows none of this.

    Args:
        client: any.

    Returns:
        asyncio.BufferedProtocol: the client itself.

    Thread-safety: any thread.
    """
    return client


def give_up(Client client not None):
    """Has a connection end as it is: it is not connected yet.

    Thread-safety: the loop's thread, like all of these functions.
    """
    client.input_closed = True


def agree_on(Client client not None, str subprotocol, deflate, bint aware=False):
    """Tells a client what its upgrade has negotiated.

    Args:
        client: before `begin_connection`.
        subprotocol: a str or None.
        deflate: settings.Compression or None.
        aware: it speaks wsc.1 (docs/wire.md).
    """
    cdef int server_window
    cdef int client_window
    client.subprotocol = subprotocol
    if aware:
        client.form = AWARE
    if deflate is None:
        return
    client.inflates = True
    server_window = deflate.server_max_window_bits
    client_window = deflate.client_max_window_bits
    if deflate.server_no_context_takeover:
        client.form |= <unsigned char>server_window
        server_window = 0
    if deflate.client_no_context_takeover:
        client_window = 0
    if server_window or client_window:
        client.context = Context(client.engine.codec, server_window, client_window)
        client.packs = server_window != 0


def set_pending_identity(Client client not None, identity):
    """Keeps the identity of a connection until it stands: an Identity, or an awaitable for it.

    Args:
        client: whose it is.
        identity: None drops it.
    """
    if identity is not None or client.arrival is not None:
        client.arriving().pending = identity


def pending_identity(Client client not None):
    """The identity that `set_pending_identity` has kept; None where it has kept none."""
    return None if client.arrival is None else client.arrival.pending


def set_remote_address(Client client not None, str remote_address not None):
    """Tells a client the address of its peer, where another one makes the connection."""
    client.remote_address = remote_address


def begin_connection(
    Client client not None, stream, int descriptor, bint secure, str remote_address not None
):
    """Has a client begin: its 101 is written, and it is the protocol of its transport.

    Args:
        client: new.
        stream: the asyncio transport.
        descriptor: of its socket.
        secure: it speaks TLS.
        remote_address: of its peer.
    """
    client.begin(stream, descriptor, secure, remote_address)


def feed(Client client not None, bytes data not None):
    """Gives a client what came in one segment with its upgrade."""
    client.feed(data, len(data))


def address_came_late(Client client not None):
    """Whether the address was not known yet when the upgrade was accepted."""
    return client.arrival is not None and client.arrival.late_address


def is_aware(Client client not None):
    """Whether a client speaks wsc.1."""
    return client.form >= AWARE


def has_greeted(Client client not None):
    """Whether the hello of a client that speaks wsc.1 has come."""
    return client.greeted


def take_position(Client client not None, str room_id not None):
    """The position in a room that the hello of a client has named; None: none, or it was taken."""
    cdef object position = None
    if client.arrival is not None and client.arrival.positions is not None:
        position = client.arrival.positions.pop(room_id, None)
        end_arrival(client)
    return position


def enter_unnamed(Client client not None, str client_id not None):
    """Counts a connection to its address, and makes it an open client that is its own user.

    Args:
        client: that `is_unnamed`.
        client_id: free.
    """
    client.counted = client.remote_address != ""
    client.id = client.user_id = client_id
    client.state = OPEN
    client.engine.clients.admit(client)
    client.announced = True


def is_unnamed(Client client not None):
    """Whether nobody asks whose connection this is, and its address was counted in time."""
    return client.arrival is None


def set_counted(Client client not None, bint counted):
    """Marks whether a client is counted among the connections of its address.

    Args:
        client: any.
        counted: from now on.

    Returns:
        bool: whether it was until now.
    """
    cdef bint before = client.counted
    client.counted = counted
    return before


def hold_input(Client client not None):
    """Keeps the messages of a client until `release_input`: its identity is not known yet."""
    client.arriving().held = []


def hear_hello(Client client not None):
    """Reads on: who a client is that speaks wsc.1 is known, and its hello is to come."""
    client.arriving().awaits_hello = True
    client.resume_reading(PAUSED_FOR_IDENTITY)


def set_authenticating(Client client not None, task):
    """Has the end of the connection cancel the task that finds out its identity; None: none."""
    if task is not None or client.arrival is not None:
        client.arriving().authenticating = task


def is_connecting(Client client not None):
    """Whether a client is neither open yet nor closing."""
    return client.state == CONNECTING


def enter(Client client not None, str client_id, str user_id, user_data, str device_id):
    """Makes a connection an open client of the hub.

    Args:
        client: whose identity is known now.
        client_id: free.
        user_id: whose client it is.
        user_data: a dict, which is copied, or None.
        device_id: None: not known.
    """
    client.id = client_id
    client.user_id = user_id
    client.device_id = device_id
    if user_data:
        client.data = dict(user_data)
    client.state = OPEN
    client.engine.clients.admit(client)
    client.announced = True
    end_arrival(client)


def release_input(Client client not None):
    """Has a client hear the messages that `hold_input` has kept, and reads on."""
    cdef Arrival arrival = client.arriving()
    cdef list held = arrival.held or []  # none: it was not let in
    arrival.held = None
    arrival.held_bytes = 0
    client.listening = True
    try:
        for content, size in held:
            if client.state != OPEN:
                break
            client.released = True  # its head line was taken
            client.take_message(content, size)
            client.released = False
        client.hear_gathered()
    except BaseException as error:
        client.failed(error)
    finally:
        client.listened()
        if client.reading_paused & PAUSED_FOR_IDENTITY:
            # It is we who did not listen.
            client.last_seen = wsc_coarse_now() + passed
            if client.unfinished is not None:
                client.unfinished.since = client.last_seen
            client.resume_reading(PAUSED_FOR_IDENTITY)
        end_arrival(client)


# Its callbacks: their context, and their inbox.

def call_in_context(Client client not None, function, *args):
    """Calls the application in the context of a client's callbacks; returns what it returns."""
    cdef object context = client.enter_context()
    try:
        return function(*args)
    finally:
        PyContext_Exit(context)


def lend_context(Client client not None):
    """The context of a client's callbacks, for the task of its inbox; before there is one."""
    cdef object context = client.enter_context()
    PyContext_Exit(context)
    return context


def copy_context(Client client not None):
    """A new context that begins with what the callbacks of a client have set."""
    return PyContext_Copy(lend_context(client))


def keep_context(Client client not None):
    """Has the callbacks of a client go on with what the task that calls this has set."""
    client.variables = PyContext_CopyCurrent()


def inbox_of(Client client not None):
    """The Inbox of a client, or None."""
    return client.inbox


def set_inbox(Client client not None, inbox):
    """Gives a client an Inbox; None takes it away."""
    client.inbox = inbox
    client.drop_context()


def pause_reading(Client client not None):
    """Has nothing more read of a client: too much waits for its callbacks."""
    client.pause_reading(PAUSED_FOR_CALLBACKS)


def resume_reading(Client client not None):
    """Undoes `pause_reading`."""
    client.resume_reading(PAUSED_FOR_CALLBACKS)


# Its transport, and its end.

def transport_of(Client client not None):
    """The asyncio transport, of a request too; None where there is none yet, or no more."""
    return client.any_transport()


def descriptor_of(Client client not None):
    """The descriptor of the socket; -1 where there is none, or where it may be closed already."""
    return -1 if client.stream is None or client.stream.is_closing() else client.descriptor


def send_away(Client client not None, int code, str reason not None):
    """Closes the connection; what has come of it is still heard.

    Args:
        client: any; one that is closing already is left alone.
        code, reason: of the close frame; checked.
    """
    client.send_away(code, reason)


def close_transport(Client client not None):
    """Closes the transport once what was written is sent, without a close frame."""
    client.close_transport()


def abort(Client client not None):
    """Ends the connection at once, without a close frame."""
    client.abort()


def forget(Client client not None):
    """Lets go of a connection whose loop was closed."""
    client.forget()
