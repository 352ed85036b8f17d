"""The head of an HTTP request, read in one pass: what the upgrade needs of it, and no more.

A head that is none of HTTP/1.1 or 1.0, or leaves it open how long the body is, is refused here
(RFC 9112), whatever the request is about; what it asks for is decided in upgrade/policy.py.

The mapping of all headers, the query and the cookies are made only if somebody asks for them: each
in one pass over its bytes, the query and the cookies with no more than MOST_PAIRS, since anybody
may send them before it is known who they are.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memchr, memcmp, memset

from wsc_fast._core.memory cimport A_HEAD, born, died

from multidict import CIMultiDict

cdef extern from "http.h" nogil:
    struct wsc_field:
        const uint8_t* name
        size_t name_size
        const uint8_t* value
        size_t value_size

    struct wsc_line:
        size_t at
        size_t start
        size_t method
        size_t target
        uint8_t minor

    int wsc_read_line(wsc_line* line, const uint8_t* data, size_t size)
    bint wsc_same_text(const uint8_t* data, size_t size, const char* lower)
    Py_ssize_t wsc_read_field(const uint8_t* data, size_t size, wsc_field* field)
    bint wsc_list_has(const uint8_t* data, size_t size, const char* lower)

cdef extern from "Python.h":
    str PyUnicode_DecodeASCII(const char* data, Py_ssize_t size, const char* errors)
    str PyUnicode_DecodeLatin1(const char* data, Py_ssize_t size, const char* errors)
    str PyUnicode_DecodeUTF8(const char* data, Py_ssize_t size, const char* errors)

# Pairs of a query, and cookies, that are looked at; browsers keep 180 cookies of a site.
MOST_PAIRS = 256
# The longest body that is told of, in bytes.
cdef Py_ssize_t LONGEST = 1 << 50
# A target in absolute form begins so (RFC 9112 section 3.2.2, RFC 6455 section 4.2.1).
cdef tuple SCHEMES = (b"http://", b"https://", b"ws://", b"wss://")


cdef class RequestLine:
    """A request line that has not come to its end (internal)."""

    cdef:
        wsc_line line
        bint whole

    def fits(self, head not None):
        """Whether a request line can begin so.

        Args:
            head: what has come of the head; at each call as much as at the last, or more.
        """
        # No typed memoryview, whose support is half of what would be compiled for this module.
        cdef Py_buffer view
        cdef int done
        if self.whole:
            return True
        PyObject_GetBuffer(head, &view, PyBUF_SIMPLE)
        done = wsc_read_line(&self.line, <const uint8_t*> view.buf, view.len) if view.len else 0
        PyBuffer_Release(&view)
        self.whole = done > 0
        return done >= 0


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
        # The host of a target in absolute form, which counts instead of the header; else None.
        readonly str authority
        readonly bint http10       # the version is HTTP/1.0
        # Of the body, as Content-Length says; LONGEST for more.
        readonly Py_ssize_t length
        readonly bint encoded      # the body is in chunks, or in what else Transfer-Encoding names
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
        readonly list forwarded_proto
        Py_ssize_t line_size       # of the request line, with its end and what is before it
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
        at = self.line_size = self.read_request_line(data, size)
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
                self.length = length_of(&field)
                if lengths > 1 or self.length < 0:
                    raise ValueError("a malformed Content-Length")
            elif wsc_same_text(field.name, field.name_size, b"transfer-encoding"):
                self.encoded = True
            else:
                self.take(&field)
        if lengths and self.encoded:
            raise ValueError("both Content-Length and Transfer-Encoding")

    cdef Py_ssize_t read_request_line(self, const uint8_t* data, Py_ssize_t size) except -1:
        cdef wsc_line line
        memset(&line, 0, sizeof(line))
        if wsc_read_line(&line, data, size) <= 0:
            raise ValueError("a malformed request line")
        self.method = PyUnicode_DecodeLatin1(
            <const char*>data + line.start, line.method - line.start, NULL
        )
        self.target = PyBytes_FromStringAndSize(
            <const char*>data + line.method + 1, line.target - line.method - 1
        )
        self.http10 = line.minor == c"0"
        if data[line.method + 1] != c"/":
            self.split_target()
        return line.at

    def has_parameter(self, bytes parameter not None):
        """Whether the query of the target names this, as NAME=VALUE, as it is.

        Args:
            parameter: NAME=VALUE, not decoded.

        Returns:
            bool.

        Thread-safety: any thread.
        """
        cdef const char* at = PyBytes_AS_STRING(self.target)
        cdef const char* end = at + PyBytes_GET_SIZE(self.target)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(parameter)
        cdef const char* next_one = <const char*>memchr(at, c"?", end - at)
        while next_one != NULL:
            at = next_one + 1
            next_one = <const char*>memchr(at, c"&", end - at)
            if (
                (end if next_one == NULL else next_one) - at == size
                and memcmp(at, PyBytes_AS_STRING(parameter), size) == 0
            ):
                return True
        return False

    cdef int split_target(self) except -1:
        cdef bytes target = self.target
        cdef bytes scheme
        cdef Py_ssize_t end
        for scheme in SCHEMES:
            if target[:len(scheme)].lower() == scheme:
                target = target[len(scheme):]
                end = min([at for at in (target.find(b"/"), target.find(b"?")) if at >= 0],
                          default=len(target))
                self.authority = target[:end].decode("ascii")
                self.target = target[end:]
                if not self.target.startswith(b"/"):
                    self.target = b"/" + self.target
                return 0
        raise ValueError("a request target that is no path")

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
        elif wsc_same_text(field.name, field.name_size, b"x-forwarded-proto"):
            self.forwarded_proto = appended(self.forwarded_proto, field)
        return 0

    def path(self):
        """str: the path of the target, decoded."""
        cdef bytes path = self.target.partition(b"?")[0]
        return decoded(PyBytes_AS_STRING(path), PyBytes_GET_SIZE(path), False)

    def query_pairs(self):
        """list[tuple[str, str]]: name and value, decoded; MOST_PAIRS at most."""
        cdef bytes query = self.target.partition(b"?")[2]
        cdef const char* data = PyBytes_AS_STRING(query)
        cdef list pairs = []
        split_pairs(pairs, data, PyBytes_GET_SIZE(query), c"&")
        return pairs

    def cookie_pairs(self):
        """list[tuple[str, str]]: name and value, of all lines; MOST_PAIRS at most."""
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(self.raw)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self.raw)
        cdef Py_ssize_t at = self.line_size
        cdef wsc_field field
        cdef Py_ssize_t length
        cdef list pairs = []
        while at < size:
            length = wsc_read_field(data + at, size - at, &field)
            if length <= 0:
                break  # __init__ has read them all
            at += length
            if wsc_same_text(field.name, field.name_size, b"cookie"):
                split_pairs(pairs, <const char*>field.value, field.value_size, c";")
        return pairs

    @property
    def headers(self):
        """CIMultiDict: all headers."""
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(self.raw)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self.raw)
        cdef Py_ssize_t at = self.line_size
        cdef wsc_field field
        cdef Py_ssize_t length
        cdef object headers
        if self.mapping is None:
            headers = CIMultiDict()
            while at < size:
                length = wsc_read_field(data + at, size - at, &field)
                if length <= 0:
                    break  # __init__ has read them all
                at += length
                headers.add(
                    PyUnicode_DecodeASCII(<const char*>field.name, field.name_size, NULL),
                    trimmed(<const char*>field.value, field.value_size),
                )
            self.mapping = headers
        return self.mapping


cdef str text(const wsc_field* field):
    return PyUnicode_DecodeLatin1(<const char*>field.value, field.value_size, NULL)


cdef list appended(list values, const wsc_field* field):
    if values is None:
        values = []
    values.append(text(field))
    return values


cdef Py_ssize_t length_of(const wsc_field* field) noexcept:
    # A number of bytes, in however many digits; -1 for what is none.
    cdef Py_ssize_t length = 0
    cdef size_t i
    for i in range(field.value_size):
        if not c"0" <= field.value[i] <= c"9":
            return -1
        length = min(length * 10 + field.value[i] - c"0", LONGEST)
    return length if field.value_size else -1


cdef int split_pairs(list pairs, const char* data, Py_ssize_t size, char separator) except -1:
    """Appends the pairs of a query, or the cookies of a line, up to MOST_PAIRS in all."""
    cdef const char* found
    cdef Py_ssize_t length
    while size > 0 and len(pairs) < MOST_PAIRS:
        found = <const char*>memchr(data, separator, size)
        length = size if found == NULL else found - data
        if length > 0:
            append_pair(pairs, data, length, separator == c"&")
        data += length + 1
        size -= length + 1
    return 0


cdef int append_pair(list pairs, const char* data, Py_ssize_t size, bint of_query) except -1:
    cdef const char* equals = <const char*>memchr(data, c"=", size)
    cdef Py_ssize_t name = size if equals == NULL else equals - data
    cdef str value
    if of_query:
        value = "" if equals == NULL else decoded(equals + 1, size - name - 1, True)
        pairs.append((decoded(data, name, True), value))
    elif equals != NULL:
        value = trimmed(equals + 1, size - name - 1).strip('"')
        pairs.append((trimmed(data, name), value))
    return 0


cdef str trimmed(const char* data, Py_ssize_t size):
    """Without the blanks around it, decoded as `headers` are."""
    while size > 0 and data[0] in (c" ", c"\t"):
        data += 1
        size -= 1
    while size > 0 and data[size - 1] in (c" ", c"\t"):
        size -= 1
    return PyUnicode_DecodeASCII(data, size, "surrogateescape")


cdef str decoded(const char* data, Py_ssize_t size, bint plus):
    """Does as urllib.parse.unquote, or unquote_plus, in time that grows with the size only."""
    cdef bytes out
    cdef char* to
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t length = 0
    cdef int high
    cdef int low
    if memchr(data, c"%", size) == NULL and not (plus and memchr(data, c"+", size) != NULL):
        return PyUnicode_DecodeASCII(data, size, NULL)
    out = PyBytes_FromStringAndSize(NULL, size)
    to = PyBytes_AS_STRING(out)
    while at < size:
        to[length] = c" " if plus and data[at] == c"+" else data[at]
        if data[at] == c"%" and at + 2 < size:
            high = hex_digit(data[at + 1])
            low = hex_digit(data[at + 2])
            if high >= 0 and low >= 0:
                to[length] = <char>(high << 4 | low)
                at += 2
        at += 1
        length += 1
    return PyUnicode_DecodeUTF8(to, length, "replace")


cdef int hex_digit(char letter) noexcept:
    if c"0" <= letter <= c"9":
        return letter - c"0"
    letter |= 32
    if c"a" <= letter <= c"f":
        return letter - c"a" + 10
    return -1
