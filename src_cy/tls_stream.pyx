"""One TLS connection over a socket of the engine's own; see tls_stream.pxd."""

import _ssl
import os
import ssl

from cpython.memoryview cimport PyMemoryView_GET_BUFFER
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t

from wsc_fast._core.memory cimport denied
from wsc_fast._core.fanout cimport wsc_layer
from wsc_fast._core.poller cimport Poller
from wsc_fast._core.read_buffer cimport READ_WHOLE
from wsc_fast._core.receiver cimport Receiver
from wsc_fast._core.stream cimport Stream, error_of

cdef extern from "accepting.h" nogil:
    struct wsc_address:
        pass

    enum:
        WSC_READ
        WSC_WRITE

    void wsc_ask_address(int fd, wsc_address* peer)
    Py_ssize_t wsc_receive(int fd, void* into, size_t size)

cdef extern from "net.h" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

    size_t wsc_kept(const wsc_layer* layer)
    enum:
        WSC_AGAIN

cdef extern from "tls.h":
    ctypedef struct wsc_tls:
        wsc_layer layer
        unsigned long error

    enum:
        WSC_TLS_RECORD
        WSC_TLS_ENDED
        WSC_TLS_BROKEN

    bint wsc_tls_load(const char* module)
    void* wsc_ssl_of(PyObject* object, PyObject* context)
    wsc_tls* wsc_tls_new(void* of_ssl, int fd)
    bint wsc_tls_detach(wsc_tls* tls)
    void wsc_tls_free(wsc_tls* tls)
    int wsc_tls_push(wsc_tls* tls, int fd)
    Py_ssize_t wsc_tls_send(wsc_layer* layer, int fd, const iovec* iov, int count)
    Py_ssize_t wsc_tls_read(
        wsc_tls* tls, int fd, const uint8_t* received, size_t size, void* into, size_t room,
        int* state,
    )
    int wsc_tls_say_goodbye(wsc_tls* tls, int fd)
    const char* wsc_tls_reason(const wsc_tls* tls)

cdef enum:
    # Bytes that one read receives at most: decrypted, with a record that was there in part, they
    # have room in the read buffer.
    RECEIVE_MOST = 65536
    # Behind a read of more bytes the Poller looks at the clock: of the smallest records it may hold
    # 2,800, which take 3 ms.
    HEAVY = 8192

cdef object SERVES = None  # bool, once it was tried


def can_serve():
    """Whether the OpenSSL of Python's `ssl` can be called (internal).

    It cannot where OpenSSL is linked into Python, or Python keeps it in another way than is known.

    Thread-safety: any thread.
    """
    global SERVES
    if SERVES is None:
        path = getattr(_ssl, "__file__", None)
        SERVES = bool(path and wsc_tls_load(os.fsencode(path)) and is_known())
    return SERVES


cdef bint is_known() except -1:
    """Whether Python's object of a TLS connection looks as known."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)._sslobj
    return wsc_ssl_of(<PyObject*>made, <PyObject*>context) != NULL


cdef wsc_layer* layer_of(object stream) noexcept:
    return <wsc_layer*>(<TLSStream>stream).tls if isinstance(stream, TLSStream) else NULL


cdef class TLSStream(Stream):
    """The transport of a TLS connection that the engine reads and writes itself (internal).

    Args:
        poller: of the hub.
        descriptor: of an accepted socket, which does not block; owned from here on.
        context: ssl.SSLContext.
        arrived: is called when the handshake may go on, until it is done.

    Raises:
        OSError: the kernel cannot watch it, or there is no memory.
        TypeError: Python's `ssl` is not one that is known.

    Thread-safety: the loop's thread.
    """

    def __cinit__(self, Poller poller not None, int descriptor, context not None, arrived not None):
        cdef void* found
        self.close_slot = -1
        self.poller = poller
        self.ssl_object = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
        inner = self.ssl_object._sslobj
        found = wsc_ssl_of(<PyObject*>inner, <PyObject*>context)
        if found == NULL:
            raise TypeError("the objects of Python's ssl module are not of the known form")
        if not denied():
            self.tls = wsc_tls_new(found, descriptor)
        if self.tls == NULL:
            raise MemoryError("no memory for a TLS connection")
        wsc_ask_address(descriptor, <wsc_address*>self.peer)
        self.arrived = arrived
        self.descriptor = descriptor
        try:
            poller.add(self)
            self.watch(WSC_READ)
        except BaseException:
            poller.remove(self)
            self.descriptor = -1  # it stays the caller's
            raise

    def __dealloc__(self):
        if self.tls != NULL:
            wsc_tls_free(<wsc_tls*>self.tls)

    # --- the handshake ---

    def wait(self):
        """Has `arrived` not be called until `shake` was."""
        self.watch(0)

    def shake(self):
        """Goes on with the handshake, as far as what has come allows; whether it is done.

        Raises:
            OSError: it has failed (ssl.SSLError), or the peer has left.
        """
        cdef uint32_t wanted = WSC_READ
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            wanted = WSC_WRITE
        else:
            if denied() or not wsc_tls_detach(<wsc_tls*>self.tls):
                raise MemoryError("no memory for a TLS connection")
            self.arrived = None
            return True
        self.watch(wanted)
        return False

    def serve(self, Receiver protocol not None):
        """Has the protocol hear of the connection, and of what has come of it already."""
        try:
            self.begin(protocol)
        except BaseException as error:
            self.failed(error)
            if not isinstance(error, Exception):
                raise

    cdef int begin(self, Receiver protocol) except -1:
        self.protocol = protocol
        (<object>protocol).connection_made(self)
        if self.reads():
            self.read()
        return self.look()

    cdef int ready(self, uint32_t events) except -1:
        if self.arrived is not None:
            self.arrived()
            return 0
        return Stream.ready(self, events)

    # --- what it tells ---

    def get_extra_info(self, str name, default=None):
        """As asyncio's: also "ssl_object", "sslcontext", "peercert" and "cipher"."""
        if self.ssl_object is not None:
            if name == "ssl_object":
                return self.ssl_object
            if name == "sslcontext":
                return self.ssl_object.context
            if name == "peercert":
                return self.ssl_object.getpeercert()
            if name == "cipher":
                return self.ssl_object.cipher()
        return Stream.get_extra_info(self, name, default)

    def can_write_eof(self):
        """Whether `write_eof` works: no half of TLS can be ended alone."""
        return False

    def write_eof(self):
        """Not over TLS.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("no half of a TLS connection can be ended alone")

    # --- reading ---

    cdef bint reads(self) noexcept:
        return not self.lost and (
            self.closing or not (self.reading_paused or self.input_ended)
        )

    cdef int read(self) except -1:
        cdef uint8_t[RECEIVE_MOST] received
        cdef Receiver protocol = self.protocol
        cdef Py_buffer* into
        cdef Py_ssize_t size
        cdef int state
        if self.closing:
            return self.read_to_end()
        view = protocol.next_view()
        into = PyMemoryView_GET_BUFFER(view)
        size = wsc_receive(self.descriptor, received, min(into.len, <Py_ssize_t>RECEIVE_MOST))
        if size == WSC_AGAIN:
            return 0
        if size <= 0:
            return self.lose(None if size == 0 else error_of(size))
        if size > HEAVY:
            self.poller.dear = True
        # Behind each view there is room to READ_WHOLE.
        size = wsc_tls_read(
            <wsc_tls*>self.tls, self.descriptor, received, size, into.buf, READ_WHOLE, &state
        )
        if size > 0:
            protocol.was_read(size)
        if self.lost:
            return 0
        if size < 0:
            return self.lose(error_of(size))
        if state == WSC_TLS_ENDED:
            return self.end_input()
        if state == WSC_TLS_BROKEN:
            return self.lose(self.broken_by())
        return self.look() if self.waiting_bytes() else 0

    cdef int read_to_end(self) except -1:
        """Reads and forgets, until the peer has ended its stream."""
        cdef uint8_t[WSC_TLS_RECORD] received
        cdef uint8_t[2 * WSC_TLS_RECORD] forgotten
        cdef Py_ssize_t size = wsc_receive(self.descriptor, received, sizeof(received))
        cdef int state
        if size == WSC_AGAIN:
            return 0
        if size <= 0:
            return self.lose(None if size == 0 else error_of(size))
        size = wsc_tls_read(
            <wsc_tls*>self.tls, self.descriptor, received, size, forgotten, sizeof(forgotten),
            &state,
        )
        if size < 0:
            return self.lose(error_of(size))
        if state == WSC_TLS_BROKEN:
            return self.lose(self.broken_by())
        if state == WSC_TLS_ENDED:
            self.input_ended = True
            if self.parted and not self.waiting_bytes():
                return self.lose(None)
        return self.look()

    cdef int end_input(self) except -1:
        self.input_ended = True
        if not self.closing:
            (<object>self.protocol).eof_received()
            self.close()
        return self.look()

    # --- writing ---

    def write(self, data not None):
        """Sends bytes; what the kernel does not take now waits for it."""
        if self.lost:
            return
        self.push()
        Stream.write(self, data)
        if self.waiting_bytes():
            self.look()
            self.tell_full()

    cdef Py_ssize_t waiting_bytes(self) noexcept:
        if self.lost:
            return 0
        return Stream.waiting_bytes(self) + <Py_ssize_t>wsc_kept(&(<wsc_tls*>self.tls).layer)

    cdef int push(self) except -1:
        cdef int failed = wsc_tls_push(<wsc_tls*>self.tls, self.descriptor)
        return self.lose(error_of(failed)) if failed else 0

    cdef Py_ssize_t offer(self, const char* data, Py_ssize_t size) noexcept:
        cdef iovec iov
        iov.iov_base = <void*>data
        iov.iov_len = size
        return wsc_tls_send(&(<wsc_tls*>self.tls).layer, self.descriptor, &iov, 1)

    cdef int flush(self) except -1:
        self.push()
        return 0 if self.lost or wsc_kept(&(<wsc_tls*>self.tls).layer) else Stream.flush(self)

    cdef int flushed(self) except -1:
        cdef int failed = 0
        if not self.closing or self.lost:
            return 0
        if not self.parted:
            self.parted = True
            failed = wsc_tls_say_goodbye(<wsc_tls*>self.tls, self.descriptor)
        if failed or (self.input_ended and not self.waiting_bytes()):
            return self.lose(error_of(failed) if failed else None)
        return 0

    # --- the end ---

    def close(self):
        """Closes it once what waits is sent, with a goodbye; nothing more is heard."""
        if self.closing:
            return
        if self.protocol is None:
            self.lose(None)  # in its handshake
            return
        if not self.full:
            self.full = True
            (<object>self.protocol).pause_writing()  # nothing can be sent behind a goodbye
        self.closing = True
        self.close_slot = self.poller.engine.deadlines.set(
            self.abort, self.poller.loop.time() + self.poller.engine.close_timeout
        )
        if not self.waiting_bytes():
            self.flushed()
        self.look()

    cdef object broken_by(self):
        """The error of a stream that is no TLS of this connection."""
        cdef const char* reason = wsc_tls_reason(<wsc_tls*>self.tls)
        text = "TLS failed" if reason == NULL else (<bytes>reason).decode("ascii", "replace")
        return ssl.SSLError(ssl.SSL_ERROR_SSL, text)

    cdef int drop(self) except -1:
        if self.close_slot >= 0:
            self.poller.engine.deadlines.cancel(self.abort, self.close_slot)
            self.close_slot = -1
        Stream.drop(self)
        self.arrived = None
        if self.tls != NULL:
            wsc_tls_free(<wsc_tls*>self.tls)
            self.tls = NULL
        self.ssl_object = None
        return 0
