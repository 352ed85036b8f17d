"""Entries and envelopes out of bytes, and into bytes; see envelopes.pxd."""

from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.string cimport memchr, memcmp

from wsc_fast._core.frames cimport FIN_BINARY, FIN_TEXT, encode, payload_at

from wsc_fast.errors import ValidationError

# The entry of a mark; see wsc_fast/bus/base.py.
cdef bytes MARK = b"g 0 0 0\n"

cdef enum:
    # Of a number in a head line: more digits than any size that we take has.
    MOST_DIGITS = 9
    # Of a position, of an origin, and of a number of entries.
    MOST_WORD = 64
    MOST_ENTRIES = 1024


cdef Py_ssize_t word(const char* data, Py_ssize_t size, char end) except -1:
    # The length of the word before `end`, which has to come soon.
    cdef const char* found = <const char*>memchr(data, end, min(size, <Py_ssize_t>MOST_WORD + 1))
    if found == NULL:
        raise ValidationError("a word in an envelope is too long, or the envelope ends in it")
    if found == data:
        raise ValidationError("a word in an envelope is empty")
    return found - data


cdef Py_ssize_t number(const char* data, Py_ssize_t size) except -1:
    cdef Py_ssize_t value = 0
    cdef Py_ssize_t i
    if size > MOST_DIGITS:
        raise ValidationError("a number in an envelope is too long")
    for i in range(size):
        if data[i] < c"0" or data[i] > c"9":
            raise ValidationError("a number in an envelope is none")
        value = value * 10 + (data[i] - c"0")
    return value


cdef str decoded(const char* data, Py_ssize_t size):
    try:
        return PyUnicode_DecodeUTF8(data, size, NULL)
    except UnicodeDecodeError:
        pass
    raise ValidationError("a text in an envelope is no UTF-8")


cdef str decoded_word(const char* data, Py_ssize_t size):
    if size == 1 and data[0] == c"-":
        return "-"
    try:
        return PyUnicode_DecodeASCII(data, size, NULL)
    except UnicodeDecodeError:
        pass
    raise ValidationError("a word in an envelope is not ASCII")


cdef tuple read_entry(const char* data, Py_ssize_t size, Py_ssize_t* used, bint is_kept):
    """(frame, exclude, key) of the entry at `data`; `used` is set to its length.

    A mark, which only a kept room has, has no frame: b"".
    """
    cdef Py_ssize_t[3] sizes
    cdef Py_ssize_t at = word(data, size, c" ")
    cdef Py_ssize_t length
    cdef int i
    cdef bint is_text = at == 1 and data[0] == c"t"
    cdef bint is_mark = at == 1 and data[0] == c"g" and is_kept
    cdef object exclude = None
    cdef object key = None
    cdef bytes frame
    if not is_text and not is_mark and not (at == 1 and data[0] == c"b"):
        raise ValidationError("an entry in an envelope is neither text nor binary")
    at += 1
    for i in range(3):
        length = word(data + at, size - at, c"\n" if i == 2 else c" ")
        sizes[i] = number(data + at, length)
        at += length + 1
    if sizes[0] > size - at or sizes[1] > size - at or sizes[2] > size - at:
        raise ValidationError("an entry in an envelope is cut off")
    if sizes[0] + sizes[1] + sizes[2] > size - at:
        raise ValidationError("an entry in an envelope is cut off")
    if sizes[0]:
        exclude = tuple(decoded(data + at, sizes[0]).split("\n"))
        at += sizes[0]
    if sizes[1]:
        key = decoded(data + at, sizes[1])
        at += sizes[1]
    if is_mark:
        if sizes[0] or sizes[1] or sizes[2]:
            raise ValidationError("a mark in an envelope is longer than its head")
        used[0] = at
        return b"", None, None
    if is_text:
        decoded(data + at, sizes[2])  # no client gets a text that is none
    frame = encode(FIN_TEXT if is_text else FIN_BINARY, data + at, sizes[2])
    used[0] = at + sizes[2]
    return frame, exclude, key


def pack_entry(bytes frame not None, exclude, key):
    """The entry of a message that this hub publishes.

    Args:
        frame: of the message, plain; b"" makes a mark.
        exclude: ids of clients that do not get it, or nothing.
        key: the conflation key, or None.

    Returns:
        bytes: FLAGS to payload.

    Thread-safety: any thread.
    """
    if not frame:
        return MARK
    cdef const char* data = PyBytes_AS_STRING(frame)
    cdef Py_ssize_t at = payload_at(data)
    cdef bytes left_out = b"" if not exclude else "\n".join(exclude).encode()
    cdef bytes named = b"" if key is None else (<str>key).encode()
    cdef bytes flag = b"t" if <unsigned char>data[0] == FIN_TEXT else b"b"
    return b"%b %d %d %d\n%b%b%b" % (
        flag, len(left_out), len(named), PyBytes_GET_SIZE(frame) - at, left_out, named,
        PyBytes_FromStringAndSize(data + at, PyBytes_GET_SIZE(frame) - at),
    )


def pack_envelope(str kind not None, str origin not None, str prev not None, entries not None):
    """An envelope.

    Args:
        kind: "k" or "p".
        origin: the name of the hub.
        prev: the position before the first entry, or "-".
        entries: (position, entry) of each message.

    Returns:
        bytes.

    Thread-safety: any thread.
    """
    cdef list parts = [f"wsc1 {kind} {origin} {prev} {len(entries)}\n".encode()]
    for position, entry in entries:
        parts.append(f"{position} ".encode())
        parts.append(entry)
    return b"".join(parts)


cdef list plain_entries(bytes data, bytes own):
    """The entries of an envelope of a plain room; none where this hub has published it.

    None: it is not of a plain room. So the messages that come most cost no objects but their own.
    """
    cdef const char* start = PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t at = 7
    cdef Py_ssize_t used = 0
    cdef Py_ssize_t length
    cdef Py_ssize_t count
    cdef list entries = []
    if size < at or memcmp(start, b"wsc1 p ", at) != 0:
        return None
    length = word(start + at, size - at, c" ")
    if length == PyBytes_GET_SIZE(own) and memcmp(start + at, PyBytes_AS_STRING(own), length) == 0:
        return entries
    at += length + 1
    at += word(start + at, size - at, c" ") + 1
    length = word(start + at, size - at, c"\n")
    count = number(start + at, length)
    at += length + 1
    if not 0 < count <= MOST_ENTRIES:
        raise ValidationError("an envelope has no entries, or too many")
    for _ in range(count):
        at += word(start + at, size - at, c" ") + 1
        entries.append(read_entry(start + at, size - at, &used, False))
        at += used
    if at != size:
        raise ValidationError("an envelope is longer than its entries")
    return entries


def read_envelope(bytes data not None):
    """An envelope that has come over a bus.

    Args:
        data: its bytes.

    Returns:
        tuple[str, str, str, list[tuple[str, bytes, tuple[str, ...] | None, str | None]]]: kind,
        origin, prev, and for each message its position, its frame, the ids of clients that do not
        get it, and its conflation key. A mark has b"" for a frame. No messages: the history of a
        kept room was deleted.

    Raises:
        ValidationError: these bytes are no envelope.

    Thread-safety: any thread.
    """
    cdef const char* start = PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t at = 5
    cdef Py_ssize_t used = 0
    cdef Py_ssize_t length
    cdef Py_ssize_t count
    cdef list messages = []
    cdef tuple entry
    cdef str kind
    cdef str origin
    cdef str prev
    cdef str position
    cdef bint is_kept
    if size < 5 or memcmp(start, b"wsc1 ", 5) != 0:
        raise ValidationError("bytes on the bus are no envelope of this version")
    length = word(start + at, size - at, c" ")
    kind = decoded_word(start + at, length)
    at += length + 1
    length = word(start + at, size - at, c" ")
    origin = decoded_word(start + at, length)
    at += length + 1
    length = word(start + at, size - at, c" ")
    prev = decoded_word(start + at, length)
    at += length + 1
    length = word(start + at, size - at, c"\n")
    count = number(start + at, length)
    at += length + 1
    is_kept = kind == "k"
    if not is_kept and kind != "p":
        raise ValidationError("an envelope is of a kind that is not known")
    if not (0 if is_kept else 1) <= count <= MOST_ENTRIES:
        raise ValidationError("an envelope has no entries, or too many")
    for _ in range(count):
        length = word(start + at, size - at, c" ")
        position = decoded_word(start + at, length)
        at += length + 1
        entry = read_entry(start + at, size - at, &used, is_kept)
        # A starred tuple would be a list first.
        messages.append((position, entry[0], entry[1], entry[2]))
        at += used
    if at != size:
        raise ValidationError("an envelope is longer than its entries")
    return kind, origin, prev, messages


def open_entry(bytes entry not None):
    """The message of an entry out of a history.

    Args:
        entry: FLAGS to payload.

    Returns:
        tuple[bytes, tuple[str, ...] | None, str | None]: its frame, the ids of clients that did not
        get it, and its conflation key. A mark has b"" for a frame.

    Raises:
        ValidationError: these bytes are no entry.

    Thread-safety: any thread.
    """
    cdef Py_ssize_t used = 0
    cdef tuple found = read_entry(PyBytes_AS_STRING(entry), PyBytes_GET_SIZE(entry), &used, True)
    if used != PyBytes_GET_SIZE(entry):
        raise ValidationError("an entry is longer than its message")
    return found
