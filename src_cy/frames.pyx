"""Payload -> frame, once per message, however many clients receive it.

This module does not compress (deflate.pyx), mask (servers never do), or queue.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy

from wsc_fast._core.memory cimport WSC_IS_DEBUG

from wsc_fast.errors import MessageTypeError, ValidationError

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object)
    const char* PyUnicode_AsUTF8AndSize(object, Py_ssize_t*) except NULL
    bytes PyUnicode_AsUTF8String(object)

cdef extern from *:
    """
    #ifndef WSC_PICOWS_VERSION
    #error "WSC_PICOWS_VERSION is set by setup.py: the picows that this module is built for"
    #endif
    """
    const char* WSC_PICOWS_VERSION

# The picows release whose struct layouts every module here was compiled against.
PICOWS_BUILT_FOR = WSC_PICOWS_VERSION.decode("ascii")
DEBUG_BUILD = bool(WSC_IS_DEBUG)


cdef bytes new_frame(unsigned char first, Py_ssize_t size):
    """A frame whose payload is still to be written."""
    cdef Py_ssize_t head = 2 if size < 126 else (4 if size < 65536 else 10)
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, head + size)
    cdef unsigned char* out = <unsigned char*>PyBytes_AS_STRING(frame)
    cdef int i
    out[0] = first
    if head == 2:
        out[1] = <unsigned char>size
    elif head == 4:
        out[1] = 126
        out[2] = <unsigned char>(size >> 8)
        out[3] = <unsigned char>(size & 0xFF)
    else:
        out[1] = 127
        for i in range(8):
            out[2 + i] = <unsigned char>((<unsigned long long>size >> (56 - 8 * i)) & 0xFF)
    return frame


cdef bytes encode(unsigned char first, const char* payload, Py_ssize_t size):
    cdef bytes frame = new_frame(first, size)
    cdef char* out = PyBytes_AS_STRING(frame)
    if size:
        memcpy(out + payload_at(out), payload, size)
    return frame


cdef bytes with_head(bytes frame, bytes head):
    cdef const char* data = PyBytes_AS_STRING(frame)
    cdef Py_ssize_t at = payload_at(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(frame) - at
    cdef Py_ssize_t lead = PyBytes_GET_SIZE(head)
    cdef bytes result = new_frame(<unsigned char>data[0], lead + size)
    cdef char* out = PyBytes_AS_STRING(result)
    out += payload_at(out)
    memcpy(out, PyBytes_AS_STRING(head), lead)
    memcpy(out + lead, data + at, size)
    return result


cdef bytes encode_message(object message):
    cdef const char* data
    cdef Py_ssize_t size
    if type(message) is str:
        if PyUnicode_IS_COMPACT_ASCII(message):
            data = PyUnicode_AsUTF8AndSize(message, &size)
            return encode(FIN_TEXT, data, size)
        return encode_text(message)
    if type(message) is bytes:
        return encode(FIN_BINARY, PyBytes_AS_STRING(message), PyBytes_GET_SIZE(message))
    if isinstance(message, str):
        return encode_text(message)
    return encode_buffer(message)


cdef bytes encode_text(object message):
    # Not PyUnicode_AsUTF8AndSize: that would keep the UTF-8 copy alive as long as the str.
    cdef bytes utf8
    try:
        utf8 = PyUnicode_AsUTF8String(message)
    except UnicodeEncodeError as error:
        raise ValidationError(
            f"a text message must be valid Unicode, but position {error.start} holds the lone "
            f"surrogate {message[error.start]!a}"
        ) from None
    return encode(FIN_TEXT, PyBytes_AS_STRING(utf8), PyBytes_GET_SIZE(utf8))


cdef bytes encode_buffer(object message):
    # bytearray, memoryview and the like are copied now: what the caller changes later is not sent.
    cdef Py_buffer view
    if not isinstance(message, (bytes, bytearray, memoryview)):
        raise MessageTypeError(
            f"a message must be bytes, str or a HubMessage, not {type(message).__name__}"
        )
    try:
        PyObject_GetBuffer(message, &view, PyBUF_SIMPLE)
    except BufferError:
        raise ValidationError("a memoryview to be sent must be contiguous") from None
    try:
        return encode(FIN_BINARY, <const char*>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef int check_close_code(object code) except -1:
    # RFC 6455 section 7.4.2; 1005, 1006 and 1015 never go on the wire.
    if not isinstance(code, int):
        raise ValidationError(f"a close code must be an int, not {type(code).__name__}")
    if 3000 <= code <= 4999 or 1000 <= code <= 1003 or 1007 <= code <= 1014:
        return 0
    raise ValidationError(
        f"close code {code} may not be sent: expected 1000-1003, 1007-1014 or 3000-4999"
    )


cpdef int check_close(object code, object reason) except -1:
    """Raises ValidationError for a close frame that may not be sent (RFC 6455 section 7.4.2).

    Args:
        code: any object; 1000-1003, 1007-1014 and 3000-4999 pass.
        reason: any object; a str passes.

    Raises:
        ValidationError: one of them does not pass.

    Thread-safety: any thread.
    """
    check_close_code(code)
    if not isinstance(reason, str):
        raise ValidationError(f"a close reason must be a str, not {type(reason).__name__}")
    return 0


cdef bytes encode_close(int code, str reason):
    cdef bytes payload = code.to_bytes(2, "big")
    cdef bytes text = reason.encode("utf-8", "replace")
    if len(text) > CONTROL_MAX - 2:
        text = text[:CONTROL_MAX - 2].decode("utf-8", "ignore").encode()
    payload += text
    return encode(FIN_CLOSE, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))


def encode_frame(message):
    """The frame of a message as it would go on the wire.

    Args:
        message: bytes (sent as binary) or str (sent as text).

    Returns:
        bytes: header and payload (RFC 6455 section 5.2), unmasked, FIN set.

    Raises:
        ValidationError: a str with a lone surrogate, or a non-contiguous memoryview.
        MessageTypeError: anything that is neither bytes nor str.

    Thread-safety: any thread.
    """
    return encode_message(message)
