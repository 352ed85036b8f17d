"""The head of an HTTP request, read in one pass: what the upgrade needs of it, and no more.

What is no HTTP/1.1 head of a request without a body is refused here (RFC 9112), whatever the
request is about; what it asks for is decided in server.py. Mappings are made only for an
application that asks for `headers`, by picows' own parser.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from wsc_fast._core.memory cimport A_HEAD, born, died

from picows.picows import _parse_http_request

cdef extern from "http.h" nogil:
    struct wsc_field:
        const uint8_t* name
        size_t name_size
        const uint8_t* value
        size_t value_size

    bint wsc_is_token(uint8_t byte)
    bint wsc_same_text(const uint8_t* data, size_t size, const char* lower)
    Py_ssize_t wsc_read_field(const uint8_t* data, size_t size, wsc_field* field)
    bint wsc_list_has(const uint8_t* data, size_t size, const char* lower)

cdef extern from "Python.h":
    str PyUnicode_DecodeLatin1(const char* data, Py_ssize_t size, const char* errors)

cdef bytes VERSION = b" HTTP/1.1\r\n"


class TooManyHeaders(ValueError):
    """A request head with more headers than are allowed (internal)."""


cdef class RequestHead:
    """One request head (internal; applications get a `Request`).

    Args:
        raw: the head with the CR LF of its last line, without the empty line.
        most: headers that it may have.

    Raises:
        TooManyHeaders: it has more.
        ValueError: it is none that can be answered; the text says why.
    """

    cdef:
        readonly bytes raw
        readonly str method
        readonly bytes target      # path and query, visible ASCII
        # Whether Upgrade lists websocket, and Connection lists upgrade.
        readonly bint to_websocket
        readonly bint upgrade
        # The last of each name, and how many there were: two leave it open which counts.
        readonly str host
        readonly str origin
        readonly str key
        readonly str version
        readonly int hosts
        readonly int origins
        readonly int keys
        readonly int versions
        # Values of list headers, of every line of the name; None where there is none.
        readonly list protocols
        readonly list extensions
        readonly list forwarded_for
        object mapping

    def __cinit__(self):
        born(A_HEAD)

    def __dealloc__(self):
        died(A_HEAD)

    def __init__(self, bytes raw not None, int most=128):
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(raw)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(raw)
        cdef Py_ssize_t at
        cdef Py_ssize_t length
        cdef wsc_field field
        cdef int fields = 0
        cdef int lengths = 0
        self.raw = raw
        at = self.read_request_line(data, size)
        while at < size:
            length = wsc_read_field(data + at, size - at, &field)
            if length < 0:
                raise ValueError("a malformed header")
            at += length
            fields += 1
            if fields > most:
                raise TooManyHeaders(f"more than {most} headers")
            if wsc_same_text(field.name, field.name_size, b"content-length"):
                lengths += 1
                if lengths > 1 or not is_zero(&field):
                    raise ValueError("a request with a body")
            elif wsc_same_text(field.name, field.name_size, b"transfer-encoding"):
                raise ValueError("a request with a body")
            else:
                self.take(&field)

    cdef Py_ssize_t read_request_line(self, const uint8_t* data, Py_ssize_t size) except -1:
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t start
        while at < size and wsc_is_token(data[at]):
            at += 1
        if at == 0 or at == size or data[at] != c" ":
            raise ValueError("a malformed request line")
        self.method = PyUnicode_DecodeLatin1(<const char*>data, at, NULL)
        start = at + 1
        at = start
        while at < size and 0x21 <= data[at] <= 0x7E:
            at += 1
        if at == start or data[start] != c"/":
            raise ValueError("a request target that is no path")
        self.target = PyBytes_FromStringAndSize(<const char*>data + start, at - start)
        if (
            size - at < PyBytes_GET_SIZE(VERSION)
            or memcmp(data + at, PyBytes_AS_STRING(VERSION), PyBytes_GET_SIZE(VERSION))
        ):
            raise ValueError("a request line that does not end in HTTP/1.1")
        return at + PyBytes_GET_SIZE(VERSION)

    cdef int take(self, const wsc_field* field) except -1:
        if wsc_same_text(field.name, field.name_size, b"upgrade"):
            if wsc_list_has(field.value, field.value_size, b"websocket"):
                self.to_websocket = True
        elif wsc_same_text(field.name, field.name_size, b"connection"):
            if wsc_list_has(field.value, field.value_size, b"upgrade"):
                self.upgrade = True
        elif wsc_same_text(field.name, field.name_size, b"host"):
            self.host = text(field)
            self.hosts += 1
        elif wsc_same_text(field.name, field.name_size, b"origin"):
            self.origin = text(field)
            self.origins += 1
        elif wsc_same_text(field.name, field.name_size, b"sec-websocket-key"):
            self.key = text(field)
            self.keys += 1
        elif wsc_same_text(field.name, field.name_size, b"sec-websocket-version"):
            self.version = text(field)
            self.versions += 1
        elif wsc_same_text(field.name, field.name_size, b"sec-websocket-protocol"):
            self.protocols = appended(self.protocols, field)
        elif wsc_same_text(field.name, field.name_size, b"sec-websocket-extensions"):
            self.extensions = appended(self.extensions, field)
        elif wsc_same_text(field.name, field.name_size, b"x-forwarded-for"):
            self.forwarded_for = appended(self.forwarded_for, field)
        return 0

    @property
    def headers(self):
        """CIMultiDict: all headers, as picows parses them."""
        cdef bytes lines
        if self.mapping is None:
            lines = self.raw[self.raw.index(b"\r\n"):len(self.raw) - 2]
            self.mapping = _parse_http_request(b"GET / HTTP/1.1" + lines).headers
        return self.mapping


cdef str text(const wsc_field* field):
    return PyUnicode_DecodeLatin1(<const char*>field.value, field.value_size, NULL)


cdef list appended(list values, const wsc_field* field):
    if values is None:
        values = []
    values.append(text(field))
    return values


cdef bint is_zero(const wsc_field* field) noexcept:
    # A length of no bytes, in however many digits.
    cdef size_t i
    for i in range(field.value_size):
        if field.value[i] != c"0":
            return False
    return field.value_size > 0
