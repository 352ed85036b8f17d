"""Permessage-deflate (RFC 7692): a frame -> its compressed form, a payload -> its message.

Two ways of a message out:

    without context takeover  Codec.compressed_form: compressed once per window size, when it is
                              queued, and shared by all who agreed on that window; no memory per
                              connection
    with context takeover     Context.pack: compressed for one connection, when the flush hands it
                              over, so that what is dropped, replaced or overtaken in the outbox
                              never was a part of the stream

Incoming messages are inflated whole, into the codec's scratch memory, by an inflater that is reset
for each message, or by the connection's own where its client keeps its context.
"""

from libc.stdint cimport uint8_t

# Of zlib_abi.h, which is not installed: a module that cimports this has pointers to it only.
cdef extern from * nogil:
    """
    struct wsc_zstream;
    """
    struct wsc_zstream:
        const uint8_t* next_in
        unsigned int avail_in
        uint8_t* next_out
        unsigned int avail_out
        void* (*zalloc)(void* opaque, unsigned int items, unsigned int size) noexcept
        void (*zfree)(void* opaque, void* memory) noexcept
        int data_type

cdef enum:
    # Results of Codec.inflate instead of a size.
    INFLATE_INVALID = -2
    INFLATE_TOO_BIG = -3

cdef enum:
    RSV1 = 4  # as wsc_head.rsv has it

cdef class Codec:
    cdef:
        readonly int level
        readonly Py_ssize_t threshold
        unsigned long long compressions
        wsc_zstream* deflaters[16]   # by window bits; made on first use
        wsc_zstream* inflater
        uint8_t* scratch
        Py_ssize_t capacity

    cdef bytes compressed_form(self, bytes frame, int window)
    cdef bytes compress(self, wsc_zstream* z, bytes frame)
    cdef Py_ssize_t inflate(
        self, wsc_zstream* z, bint reset, const uint8_t* data, Py_ssize_t size, Py_ssize_t limit
    ) except -1
    cdef int reserve(self, Py_ssize_t size) except -1
    cdef void shrink(self) noexcept

cdef class Context:
    cdef:
        Codec codec
        int server_window        # 0: what goes out is shared with others
        int client_window        # 0: the client does not keep its context
        wsc_zstream* deflater    # made on first use, like the other
        wsc_zstream* inflater

    cdef bytes pack(self, bytes frame)
    cdef Py_ssize_t inflate(self, const uint8_t* data, Py_ssize_t size, Py_ssize_t limit) except -1
