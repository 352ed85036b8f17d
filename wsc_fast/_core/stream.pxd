"""One connection over a socket of the engine's own: what an asyncio transport is elsewhere.

    ready     the kernel has something to read, or room for what waits
    read      one read, into the buffer that all connections share, and to the protocol
    write     to the kernel at once; what it does not take waits
    close     what waits goes out first; then `connection_lost`, in a turn of its own
    abort     likewise, but nothing goes out

It keeps the promises of `asyncio.Transport` that its protocol builds on: no call of it calls the
protocol back before it returns, but for `pause_writing`; `connection_lost` comes once, last, and
the descriptor is open until then.

A pause of reading costs nothing until something comes: only then is the kernel told. While neither
reading nor writing waits, the kernel does not tell of a reset either, as with asyncio's transports.

Ownership: it owns its descriptor. It holds its protocol until `connection_lost`; the Poller holds
it until then. Bytes that wait are held by reference, or copied where they could change.
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t

from wsc_fast._core.memory cimport flag
from wsc_fast._core.poller cimport Watched
from wsc_fast._core.receiver cimport Receiver

cdef OSError error_of(Py_ssize_t result)


# Bytes that the kernel has not taken yet.
@cython.final
cdef class Waiting:
    cdef:
        object pieces              # deque of bytes and memoryviews of bytes; not empty
        Py_ssize_t size            # bytes of all, without `sent`
        Py_ssize_t sent            # bytes of the first one that the kernel has taken


cdef class Answerer:
    # Takes the first bytes of a connection: whether it has answered them. Else nothing happened.
    cdef bint accept(
        self, Stream stream, Receiver client, const uint8_t* data, Py_ssize_t size
    ) except -1


cdef class Stream(Watched):
    cdef:
        Receiver protocol          # None after `connection_lost`
        object error               # OSError that ended it, or None
        Waiting waiting            # None: nothing waits for the kernel
        unsigned int high          # beyond so many bytes the protocol is to pause writing
        unsigned int low
        uint32_t[6] peer           # a wsc_address
        flag reading_paused
        flag input_ended           # the peer has ended its stream
        flag output_ended          # `write_eof` was called
        flag closing
        flag lost                  # it is to end, or has ended
        flag full                  # the protocol pauses writing

    # The protocol of an accepted connection hears of it, and of what has come of it already.
    cdef int begin(self, Receiver protocol) except -1
    cdef tuple peer_name(self)
    # The IP address of the peer as a Client tells it; "" where it is not known.
    cdef str address(self)
    # Whether what comes is to be read.
    cdef bint reads(self) noexcept
    # Reads once, and takes what came.
    cdef int read(self) except -1
    # Reads once into the shared buffer: a size, 0 for the end of the stream, or minus an errno.
    cdef Py_ssize_t receive(self) except? -1
    # Takes the result of `receive`; the Answerer has not seen it.
    cdef int take(self, Py_ssize_t size) except -1
    cdef bint answered(self, Py_ssize_t size) except -1
    # Sends the answer to a request; nothing waits yet.
    cdef int send_answer(self, const char* data, Py_ssize_t size) except -1
    # Has the kernel tell of what is waited for.
    cdef int look(self) except -1
    cdef int end_input(self) except -1
    # Offers the kernel bytes: how many it took, WSC_AGAIN, or minus an errno.
    cdef Py_ssize_t offer(self, const char* data, Py_ssize_t size) noexcept
    cdef Py_ssize_t send_some(self, object data, Py_ssize_t start) except? -1
    cdef int keep(self, object data, Py_ssize_t sent) except -1
    cdef Py_ssize_t waiting_bytes(self) noexcept
    cdef int tell_full(self) except -1
    cdef int flush(self) except -1
    cdef int flushed(self) except -1
    cdef int lose(self, object error) except -1
