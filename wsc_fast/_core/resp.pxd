"""The reader of RESP, in which Redis and Valkey answer, for one connection to a server.

A RespReader is the compiled half of an asyncio.BufferedProtocol. The transport reads into its
memory; there each reply stands in one piece, however many reads it came in.

    get_buffer       room for the next read; what is left of a reply moves to the front
    buffer_updated   the transport has read
    take             all replies that are complete, within the budget of a turn
    take_message     one message of a channel that is complete: `on_message` or `on_stray`
    scan             looks for the end of the reply that comes next, from where it stopped
    build            a complete reply as Python objects: `on_reply`
    go_on            in the next turn of the loop: the rest, and reading again

A server that talks more than fits into a turn is not read until the next turn: `budget` seconds, or
as many bytes as the memory holds. It is not read either while the receiver of the messages has
enough of them. TCP then holds the rest back.

RESP2 and RESP3 are read. Strings are bytes, an error is a ReplyError (not raised), a set is a list,
attributes are left out. The bounds: `most` bytes of one reply, MOST_DEPTH lists within each other,
MOST_LINE bytes of a line. A server that breaks one, or speaks something else, ends the reading:
`on_broken` hears of it once.

Ownership: nothing that a callback gets points into the memory. A callback may do anything, `stop`
included; the reader looks at its state anew after each one.
"""

cimport cython

cdef enum:
    MOST_DEPTH = 16
    MOST_LINE = 65536
    # Bytes of the memory at first. It grows for a reply that is larger, and shrinks after it.
    READ_AT_ONCE = 262144


cdef class RespReader:
    cdef:
        bytearray memory
        object view                   # memoryview of it
        char* area                    # its first byte
        Py_ssize_t size               # its bytes
        Py_ssize_t start              # where the next reply begins
        Py_ssize_t end                # where the bytes that were read end
        Py_ssize_t scanned            # how far `scan` has come
        Py_ssize_t most               # bytes of one reply
        int depth                     # lists that `scan` is in
        Py_ssize_t missing[MOST_DEPTH]  # elements that each of them still lacks
        double budget                 # seconds of a turn
        dict names                    # bytes of a channel -> str, the name by which it is known
        bytes last_channel            # of the last message, and its name
        object last_name
        object transport              # None before `attach`
        object loop
        bint stopped
        bint taking
        bint enough                   # the last message was one too many for now
        object may_go_on              # callable() -> bool, or None
        object on_message             # callable(name, data)
        object on_stray               # callable(channel, data): of a channel without a name
        object on_reply               # callable(value)
        object on_broken              # callable(error)
        readonly bint waiting         # for its next turn; the transport is not read meanwhile
        readonly unsigned long long messages
        readonly unsigned long long bytes_read

    cdef int set_memory(self, Py_ssize_t size) except -1
    cdef int take(self) except -1
    cdef int take_message(self) except -1
    cdef Py_ssize_t string_at(
        self, const char* area, Py_ssize_t length, Py_ssize_t place, long long* count
    ) except -2
    cdef int scan(self) except -1
    cdef object build(self, Py_ssize_t* place)
    cdef int wait_for_turn(self) except -1
    cdef int make_room(self) except -1
    cdef int refuse(self, const char* line, Py_ssize_t length) except -1
    cdef int refuse_size(self) except -1
