"""One connection over a socket of the engine's own; see stream.pxd."""

import os
import socket
from collections import deque

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_Check, PyMemoryView_GET_BUFFER
from libc.errno cimport EBADF
from libc.limits cimport UINT_MAX
from libc.stdint cimport uint8_t, uint32_t

from wsc_fast._core.memory cimport A_STREAM, born, died
from wsc_fast._core.poller cimport Watched
from wsc_fast._core.receiver cimport Receiver

cdef extern from "accepting.h" nogil:
    struct wsc_address:
        unsigned short port
        unsigned int scope

    enum:
        INET6_ADDRSTRLEN
        WSC_READ
        WSC_WRITE
        WSC_BROKEN

    bint wsc_host_text(const wsc_address* peer, char* out)
    bint wsc_is_ipv6(const wsc_address* peer)
    Py_ssize_t wsc_receive(int fd, void* into, size_t size)
    int wsc_end_output(int fd)
    void wsc_close(int fd)

cdef extern from "net.h" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

    Py_ssize_t wsc_send(int fd, const iovec* iov, int count)
    enum:
        WSC_AGAIN

cdef enum:
    # Bytes that one event hands to the kernel, or one piece more.
    FLUSH_MOST = 1048576

# asyncio's limits of what waits, where its protocol sets none.
cdef unsigned int HIGH = 64 * 1024


# Texts of errors, since a crowd that leaves makes thousands of the same one.
cdef dict ERROR_TEXTS = {}


cdef OSError error_of(Py_ssize_t result):
    cdef object text = ERROR_TEXTS.get(-result)
    if text is None:
        text = ERROR_TEXTS[-result] = os.strerror(-result)
    return OSError(-result, text)


cdef bint is_steady(object data) except -1:
    """Whether it is bytes that nobody can change, one behind the other."""
    return type(data) is bytes or (
        PyMemoryView_Check(data) and type(data.obj) is bytes
        and data.itemsize == 1 and data.contiguous
    )


cdef class StreamSocket:
    """The socket of a Stream, for looking and for its options (internal).

    It owns no descriptor, as asyncio's `TransportSocket` does not.
    """

    cdef Stream stream

    def __cinit__(self, Stream stream not None):
        self.stream = stream

    def fileno(self):
        """The descriptor; -1 once it is closed."""
        return self.stream.descriptor

    @property
    def family(self):
        """socket.AddressFamily: AF_INET or AF_INET6."""
        return self.ask("family")

    @property
    def type(self):
        """socket.SocketKind: SOCK_STREAM."""
        return self.ask("type")

    @property
    def proto(self):
        """int: the protocol."""
        return self.ask("proto")

    def getsockopt(self, level, optname, buflen=0):
        """As `socket.socket.getsockopt`."""
        return self.ask("getsockopt", (level, optname, buflen) if buflen else (level, optname))

    def setsockopt(self, level, optname, value):
        """As `socket.socket.setsockopt`."""
        return self.ask("setsockopt", (level, optname, value))

    def getsockname(self):
        """As `socket.socket.getsockname`."""
        return self.ask("getsockname", ())

    def getpeername(self):
        """As `socket.socket.getpeername`."""
        return self.ask("getpeername", ())

    cdef object ask(self, str name, tuple args=None):
        """Asks a Python socket, which lets go of the descriptor at once."""
        cdef object borrowed
        if self.stream.descriptor < 0:
            raise error_of(-EBADF)
        borrowed = socket.socket(fileno=self.stream.descriptor)
        try:
            found = getattr(borrowed, name)
            return found if args is None else found(*args)
        finally:
            borrowed.detach()


cdef class Waiting:
    """Bytes that the kernel has not taken yet (internal)."""

    def __cinit__(self):
        self.pieces = deque()


cdef class Answerer:
    """Answers the first bytes of a connection, or leaves them to its protocol (internal)."""

    cdef bint accept(
        self, Stream stream, Receiver client, const uint8_t* data, Py_ssize_t size
    ) except -1:
        return False


cdef class Stream(Watched):
    """The transport of a connection that the engine reads and writes itself (internal).

    Methods are those of `asyncio.Transport`. Thread-safety: the loop's thread.
    """

    def __cinit__(self):
        born(A_STREAM)
        self.descriptor = -1
        self.high = HIGH
        self.low = HIGH // 4

    def __dealloc__(self):
        died(A_STREAM)
        if self.descriptor >= 0:
            wsc_close(self.descriptor)

    # --- what it tells ---

    def get_extra_info(self, str name, default=None):
        """As asyncio's: "socket", "peername" and "sockname"."""
        if name == "socket":
            return StreamSocket(self)
        if name == "peername":
            return self.peer_name() or default
        if name == "sockname":
            return default if self.descriptor < 0 else StreamSocket(self).getsockname()
        return default

    cdef tuple peer_name(self):
        cdef const wsc_address* peer = <const wsc_address*>self.peer
        cdef char[INET6_ADDRSTRLEN] text
        if not wsc_host_text(peer, text):
            return None
        host = (<bytes>text).decode("ascii")
        if wsc_is_ipv6(peer):
            return (host, peer.port, 0, peer.scope)
        return (host, peer.port)

    cdef str address(self):
        cdef const wsc_address* peer = <const wsc_address*>self.peer
        cdef char[INET6_ADDRSTRLEN] text
        cdef str host
        if not wsc_host_text(peer, text):
            return ""
        host = (<bytes>text).decode("ascii")
        if wsc_is_ipv6(peer) and host.startswith("::ffff:") and "." in host:
            return host[7:]  # IPv4, as a socket of both families tells it
        return host

    def fileno(self):
        """The descriptor; -1 once it is closed."""
        return self.descriptor

    def is_closing(self):
        """Whether it is closed, or about to be."""
        return self.closing != 0

    def is_reading(self):
        """Whether the protocol hears what comes."""
        return not self.closing and not self.reading_paused

    def get_protocol(self):
        """The protocol; None once that has heard of the end."""
        return self.protocol

    def can_write_eof(self):
        """Whether `write_eof` works: it does."""
        return True

    def get_write_buffer_size(self):
        """The number of bytes that wait for the kernel."""
        return self.waiting_bytes()

    def get_write_buffer_limits(self):
        """The bytes at which the protocol may write again, and beyond which it is to pause."""
        return self.low, self.high

    # --- reading ---

    def pause_reading(self):
        """Has the protocol hear nothing until `resume_reading`."""
        self.reading_paused = True

    def resume_reading(self):
        """Undoes `pause_reading`."""
        self.reading_paused = False
        self.look()

    cdef int begin(self, Receiver protocol) except -1:
        cdef Py_ssize_t size
        cdef bytes data = None
        self.protocol = protocol
        self.poller.add(self)
        size = self.receive()
        if size > 0:
            if self.answered(size):
                return self.look()
            # The buffer may be another's once the protocol has heard of its connection.
            data = protocol.copy_read(size)
        (<object>protocol).connection_made(self)
        if self.reads():
            if data is None:
                self.take(size)
            else:
                protocol.take_copy(data)
        return self.look()

    cdef int ready(self, uint32_t events) except -1:
        if self.waiting_bytes() and events & (WSC_WRITE | WSC_BROKEN):
            self.flush()
        if events & (WSC_READ | WSC_BROKEN) and self.reads():
            return self.read()
        return self.look()

    cdef bint reads(self) noexcept:
        return not (self.reading_paused or self.input_ended or self.closing)

    cdef int look(self) except -1:
        cdef uint32_t events = WSC_READ if self.reads() else 0
        if self.lost:
            return 0
        if self.waiting_bytes():
            events |= WSC_WRITE
        return self.watch(events)

    cdef int read(self) except -1:
        cdef Py_ssize_t size = self.receive()
        if size > 0 and self.protocol.handshake is not None:
            self.poller.dear = True  # `authenticate`, mostly
            if self.answered(size):
                return self.look()
        return self.take(size)

    cdef Py_ssize_t receive(self) except? -1:
        cdef object view = self.protocol.next_view()
        cdef Py_buffer* into = PyMemoryView_GET_BUFFER(view)
        return wsc_receive(self.descriptor, into.buf, into.len)

    cdef bint answered(self, Py_ssize_t size) except -1:
        cdef Receiver protocol = self.protocol
        cdef object answerer = self.poller.answerer
        return (
            answerer is not None and protocol.deferred_input is None
            and (<Answerer>answerer).accept(self, protocol, protocol.engine.read_buffer.area, size)
        )

    cdef int take(self, Py_ssize_t size) except -1:
        if size > 0:
            return self.protocol.was_read(size)
        if size == WSC_AGAIN:
            return 0
        return self.end_input() if size == 0 else self.lose(error_of(size))

    cdef int end_input(self) except -1:
        self.input_ended = True
        if not self.protocol.eof_received():
            self.close()
        return self.look()

    # --- writing ---

    def set_write_buffer_limits(self, high=None, low=None):
        """Sets beyond how many bytes that wait the protocol is to pause, and when it goes on."""
        if high is None:
            high = HIGH if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self.high = min(high, UINT_MAX)
        self.low = min(low, UINT_MAX)
        self.tell_full()

    def write(self, data not None):
        """Sends bytes; what the kernel does not take now waits for it."""
        cdef Py_ssize_t sent = 0
        if self.output_ended:
            raise RuntimeError("cannot write after write_eof")
        if not is_steady(data):
            data = bytes(data)
        if self.closing or not len(data):
            return
        if not self.waiting_bytes():
            sent = self.send_some(data, 0)
            if sent == len(data):
                return
        if not self.lost:
            self.keep(data, sent)

    def writelines(self, list_of_data):
        """Sends the bytes of several objects."""
        self.write(b"".join(list_of_data))

    def write_eof(self):
        """Ends our half of the stream, once what waits is sent.

        Raises:
            OSError: the peer has reset the connection meanwhile.
        """
        cdef int result
        if self.output_ended or self.closing:
            return
        self.output_ended = True
        if not self.waiting_bytes():
            result = wsc_end_output(self.descriptor)
            if result < 0:
                raise error_of(result)

    cdef int send_answer(self, const char* data, Py_ssize_t size) except -1:
        cdef Py_ssize_t sent = self.offer(data, size)
        if sent < 0 and sent != WSC_AGAIN:
            return self.lose(error_of(sent))
        sent = max(sent, 0)
        if sent < size:
            return self.keep(PyBytes_FromStringAndSize(data, size), sent)
        return 0

    cdef Py_ssize_t offer(self, const char* data, Py_ssize_t size) noexcept:
        cdef iovec iov
        iov.iov_base = <void*>data
        iov.iov_len = size
        return wsc_send(self.descriptor, &iov, 1)

    cdef Py_ssize_t send_some(self, object data, Py_ssize_t start) except? -1:
        """Offers the kernel the bytes from `start` on; how many it took. An error ends it."""
        cdef Py_buffer view
        cdef Py_ssize_t result
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        result = self.offer(<char*>view.buf + start, view.len - start)
        PyBuffer_Release(&view)
        if result >= 0:
            return result
        if result != WSC_AGAIN:
            self.lose(error_of(result))
        return 0

    cdef Py_ssize_t waiting_bytes(self) noexcept:
        return 0 if self.waiting is None else self.waiting.size

    cdef int keep(self, object data, Py_ssize_t sent) except -1:
        """Has bytes wait of which the kernel has taken some: they are the first ones then."""
        if self.waiting is None:
            self.waiting = Waiting.__new__(Waiting)
            self.waiting.sent = sent
        self.waiting.pieces.append(data)
        self.waiting.size += len(data) - sent
        self.look()
        return self.tell_full()

    cdef int tell_full(self) except -1:
        if self.waiting_bytes() > self.high and not self.full and self.protocol is not None:
            self.full = True
            (<object>self.protocol).pause_writing()
        return 0

    cdef int flush(self) except -1:
        cdef Py_ssize_t sent = 0
        cdef Py_ssize_t some
        cdef Waiting waiting = self.waiting
        cdef object data
        while waiting is not None and waiting.pieces and sent < FLUSH_MOST:
            data = waiting.pieces[0]
            some = self.send_some(data, waiting.sent)
            if self.lost:
                return 0
            sent += some
            waiting.sent += some
            waiting.size -= some
            if waiting.sent < len(data):
                break
            waiting.pieces.popleft()
            waiting.sent = 0
        if waiting is not None and not waiting.pieces:
            self.waiting = None
        if not self.waiting_bytes():
            self.flushed()
        if self.full and self.waiting_bytes() <= self.low and not self.closing:
            self.full = False
            (<object>self.protocol).resume_writing()
        return 0

    cdef int flushed(self) except -1:
        cdef int result
        if self.closing:
            return self.lose(None)
        if self.output_ended:
            result = wsc_end_output(self.descriptor)
            if result < 0:
                return self.lose(error_of(result))
        return 0

    # --- the end ---

    def close(self):
        """Closes it once what waits is sent; nothing more is read."""
        if self.closing:
            return
        self.closing = True
        if not self.waiting_bytes():
            self.lose(None)
        else:
            self.look()

    def abort(self):
        """Closes it, with nothing more sent or read."""
        self.lose(None)

    cdef int lose(self, object error) except -1:
        if self.lost:
            return 0
        self.lost = self.closing = True
        self.error = error
        self.waiting = None
        self.watch(0)
        return self.poller.lose(self)

    cdef int end(self) except -1:
        cdef Receiver protocol = self.protocol
        self.protocol = None
        try:
            if protocol is not None:
                (<object>protocol).connection_lost(self.error)
        except BaseException as error:
            self.poller.report(error)
        finally:
            self.error = None
            self.poller.remove(self)
            self.drop()
        return 0

    cdef int failed(self, object error) except -1:
        if error is not None:
            self.poller.report(error)
        return self.lose(None)

    cdef int drop(self) except -1:
        self.lost = self.closing = True
        self.waiting = None
        self.protocol = None
        if self.descriptor >= 0:
            wsc_close(self.descriptor)
            self.descriptor = -1
        return 0
