"""zlib for permessage-deflate, without the objects and locks of the zlib module.

Contexts are kept and reset: making one costs more than compressing a message of usual size. The
GIL stays held, since giving it up and getting it back can take longer than the work.

Ownership: streams and scratch memory are malloc'ed here and freed with their Codec or Context.
Nothing of one connection is ever seen by another: an inflater that is shared is reset before each
message, and so forgets its window.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free
from libc.stdint cimport uint8_t
from libc.string cimport memset

from wsc_fast._core.frames cimport RSV1_BIT, encode, payload_at
from wsc_fast._core.memory cimport (
    A_CODEC,
    A_CONTEXT,
    allocate,
    born,
    died,
    reallocate,
)

cdef extern from "zlib_abi.h" nogil:
    enum:
        WSC_Z_OK
        WSC_Z_STREAM_END
        WSC_Z_MEM_ERROR
        WSC_Z_BUF_ERROR
        WSC_Z_BETWEEN_BLOCKS

    bint wsc_z_load()
    const char* wsc_z_version()
    int wsc_deflate_init(wsc_zstream* z, int level, int window, int memory)
    int wsc_deflate(wsc_zstream* z)
    int wsc_deflate_reset(wsc_zstream* z)
    int wsc_deflate_end(wsc_zstream* z)
    int wsc_inflate_init(wsc_zstream* z, int window)
    int wsc_inflate(wsc_zstream* z)
    int wsc_inflate_reset(wsc_zstream* z)
    int wsc_inflate_reset_keep(wsc_zstream* z)
    int wsc_inflate_end(wsc_zstream* z)

cdef enum:
    MEMORY_LEVEL = 8
    LARGEST_WINDOW = 15
    LARGEST_PAYLOAD = 1073741824
    # Bytes of scratch memory that are kept between messages.
    KEPT_SCRATCH = 65536
    # A flush of a deflater adds an empty block, and stored blocks add five bytes each 16 KiB or so.
    SLACK = 64

# The end of the empty block that a flush leaves, which does not go on the wire (section 7.2.1).
cdef bytes TAIL = b"\x00\x00\xff\xff"

cdef bint found = wsc_z_load()


def zlib_version():
    """The version of the zlib that the process found (internal).

    Returns:
        str | None: None where there is none, and so no compression.

    Thread-safety: any thread.
    """
    return wsc_z_version().decode("ascii") if found else None


cdef void* take_memory(void* opaque, unsigned int items, unsigned int size) noexcept:
    # Of Python, so that tracemalloc and the debug build know of it.
    return allocate(<size_t>items * size)


cdef void give_memory(void* opaque, void* memory) noexcept:
    PyMem_Free(memory)


cdef wsc_zstream* new_stream() except NULL:
    cdef wsc_zstream* z
    if not found:
        raise RuntimeError("compression needs the zlib library (libz.so.1), and there is none")
    z = <wsc_zstream*>allocate(sizeof(wsc_zstream))
    if z == NULL:
        raise MemoryError("no memory for compression")
    memset(z, 0, sizeof(wsc_zstream))
    z.zalloc = take_memory
    z.zfree = give_memory
    return z


cdef wsc_zstream* new_deflater(int level, int window) except NULL:
    cdef wsc_zstream* z = new_stream()
    if wsc_deflate_init(z, level, window, MEMORY_LEVEL) != WSC_Z_OK:
        PyMem_Free(z)
        raise MemoryError("no memory for a deflater")
    return z


cdef wsc_zstream* new_inflater(int window) except NULL:
    cdef wsc_zstream* z = new_stream()
    if wsc_inflate_init(z, window) != WSC_Z_OK:
        PyMem_Free(z)
        raise MemoryError("no memory for an inflater")
    return z


cdef void free_deflater(wsc_zstream* z) noexcept:
    if z != NULL:
        wsc_deflate_end(z)
        PyMem_Free(z)


cdef void free_inflater(wsc_zstream* z) noexcept:
    if z != NULL:
        wsc_inflate_end(z)
        PyMem_Free(z)


cdef class Codec:
    """The contexts and the scratch memory that all connections of a hub share (internal).

    Args:
        level: zlib's, 1 (fastest) to 9.
        threshold: payloads shorter than this many bytes go out as they are.

    Raises:
        RuntimeError: there is no zlib.
    """

    def __cinit__(self, int level, Py_ssize_t threshold):
        born(A_CODEC)
        self.level = level
        self.threshold = threshold
        self.inflater = new_inflater(LARGEST_WINDOW)
        self.reserve(KEPT_SCRATCH)

    def __dealloc__(self):
        cdef int window
        for window in range(16):
            free_deflater(self.deflaters[window])
        free_inflater(self.inflater)
        PyMem_Free(self.scratch)
        died(A_CODEC)

    cdef int reserve(self, Py_ssize_t size) except -1:
        cdef void* memory
        if size > self.capacity:
            memory = reallocate(self.scratch, size)
            if memory == NULL:
                raise MemoryError("no memory for compression")
            self.scratch = <uint8_t*>memory
            self.capacity = size
        return 0

    cdef void shrink(self) noexcept:
        # After a large message, once its result has been copied out of the scratch memory.
        cdef void* memory
        if self.capacity > KEPT_SCRATCH:
            memory = reallocate(self.scratch, KEPT_SCRATCH)
            if memory != NULL:
                self.scratch = <uint8_t*>memory
                self.capacity = KEPT_SCRATCH

    cdef bytes compressed_form(self, bytes frame, int window):
        """The compressed form of a plain frame, or the frame itself where that is no shorter."""
        if self.deflaters[window] == NULL:
            self.deflaters[window] = new_deflater(self.level, window)
        wsc_deflate_reset(self.deflaters[window])
        return self.compress(self.deflaters[window], frame)

    cdef bytes compress(self, wsc_zstream* z, bytes frame):
        cdef uint8_t* data = <uint8_t*>PyBytes_AS_STRING(frame)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(frame)
        cdef Py_ssize_t head = payload_at(<const char*>data)
        cdef Py_ssize_t used = 0
        cdef bytes result
        size -= head
        # A control frame (section 6.1), not worth it, or more than zlib takes at once.
        if data[0] & 8 or size < self.threshold or size == 0 or size > LARGEST_PAYLOAD:
            return frame
        self.compressions += 1
        self.reserve(size + (size >> 8) + SLACK)
        z.next_in = data + head
        z.avail_in = <unsigned int>size
        while True:
            z.next_out = self.scratch + used
            z.avail_out = <unsigned int>(self.capacity - used)
            wsc_deflate(z)
            used = self.capacity - z.avail_out
            if z.avail_out:
                break
            self.reserve(self.capacity * 2)
        used -= PyBytes_GET_SIZE(TAIL)
        if used >= size:
            # The peer never sees what went into the context just now, so that it begins anew.
            wsc_deflate_reset(z)
            result = frame
        else:
            result = encode(<unsigned char>(data[0] | RSV1_BIT), <char*>self.scratch, used)
        self.shrink()
        return result

    cdef Py_ssize_t inflate(
        self, wsc_zstream* z, bint reset, const uint8_t* data, Py_ssize_t size, Py_ssize_t limit
    ) except -1:
        """Inflates a message into `scratch`; its size, INFLATE_INVALID or INFLATE_TOO_BIG."""
        cdef Py_ssize_t used = 0
        cdef Py_ssize_t room
        cdef bint tail = False
        cdef int result
        if reset:
            wsc_inflate_reset(z)
        z.next_in = data
        z.avail_in = <unsigned int>size
        while True:
            if used == self.capacity:
                # Not by the message's claims, but with what it really turns out to be.
                self.reserve(min(self.capacity * 2, limit + 1))
            z.next_out = self.scratch + used
            room = min(self.capacity, limit + 1) - used
            z.avail_out = <unsigned int>room
            result = wsc_inflate(z)
            used += room - z.avail_out
            if used > limit:
                return INFLATE_TOO_BIG
            if result == WSC_Z_STREAM_END:
                # Section 7.2.3.4: the last block may be marked so; an empty byte follows it.
                if tail or z.avail_in > 1 or (z.avail_in == 1 and z.next_in[0] != 0):
                    return INFLATE_INVALID
                wsc_inflate_reset_keep(z)
                return used
            if result == WSC_Z_MEM_ERROR:
                raise MemoryError("no memory for an inflater's window")
            if result != WSC_Z_OK and result != WSC_Z_BUF_ERROR:
                return INFLATE_INVALID
            if z.avail_out == 0:
                continue
            if z.avail_in:
                return INFLATE_INVALID
            if tail:
                break
            tail = True
            z.next_in = <uint8_t*>PyBytes_AS_STRING(TAIL)
            z.avail_in = <unsigned int>PyBytes_GET_SIZE(TAIL)
        return used if z.data_type & WSC_Z_BETWEEN_BLOCKS else INFLATE_INVALID


cdef class Context:
    """The state that one connection keeps from message to message with context takeover (internal).

    Args:
        codec: of the hub.
        server_window: window bits of outgoing messages, 9 to 15; 0: no context is kept for them.
        client_window: likewise of incoming messages.
    """

    def __cinit__(self, Codec codec not None, int server_window, int client_window):
        born(A_CONTEXT)
        self.codec = codec
        self.server_window = server_window
        self.client_window = client_window

    def __dealloc__(self):
        free_deflater(self.deflater)
        free_inflater(self.inflater)
        died(A_CONTEXT)

    cdef bytes pack(self, bytes frame):
        if self.deflater == NULL:
            self.deflater = new_deflater(self.codec.level, self.server_window)
        return self.codec.compress(self.deflater, frame)

    cdef Py_ssize_t inflate(self, const uint8_t* data, Py_ssize_t size, Py_ssize_t limit) except -1:
        if self.inflater == NULL:
            self.inflater = new_inflater(self.client_window)
        return self.codec.inflate(self.inflater, False, data, size, limit)
