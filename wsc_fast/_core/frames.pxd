"""Payload -> frame: one RFC 6455 frame as bytes on the wire, header included, made once.

A frame is a plain `bytes` object: immutable, counted by Python, shareable between clients, rooms,
history and threads. Server frames are never masked (RFC 6455 section 5.1).

Ownership: a frame belongs to the caller; nothing here keeps one.
"""

cdef enum:
    # First bytes of a whole, uncompressed frame: FIN and the opcode (RFC 6455 section 5.2).
    FIN_TEXT = 0x81
    FIN_BINARY = 0x82
    FIN_CLOSE = 0x88
    FIN_PING = 0x89
    FIN_PONG = 0x8A
    # Set in the first byte of a compressed message (RFC 7692 section 6).
    RSV1_BIT = 0x40
    # The longest payload of a control frame (section 5.5).
    CONTROL_MAX = 125

# A payload of `size` bytes behind a header; raises MemoryError.
cdef bytes encode(unsigned char first, const char* payload, Py_ssize_t size)

# The first byte of the payload of a frame that this module has made.
cdef inline Py_ssize_t payload_at(const char* frame) noexcept:
    cdef unsigned char size = (<const unsigned char*>frame)[1]
    return 2 if size < 126 else (4 if size == 126 else 10)

# A frame with a head line (docs/wire.md) before its payload; `head` ends with a newline.
cdef bytes with_head(bytes frame, bytes head)

# The application's message, bytes (binary) or str (text); raises ValidationError, MessageTypeError.
cdef bytes encode_message(object message)

# A close frame; the reason is cut to what fits, on a code point (section 5.5.1).
cdef bytes encode_close(int code, str reason)

# ValidationError unless the application may close with this code (section 7.4).
cdef int check_close_code(object code) except -1
# Likewise, with this code and reason.
cpdef int check_close(object code, object reason) except -1
