"""The receiving half of a client: bytes of its peer -> frames -> messages.

Way of what a peer sends (RFC 6455 section 5):

    get_buffer        the transport reads into the one buffer that all connections of a hub share
    buffer_updated    -> consume: head by head, in the order of the stream
    take_frame        a frame that is there as a whole: straight from the buffer to a str or bytes
    begin_part        a frame that is not, or a fragment: its payload goes to `unfinished` as it
    take_part         comes, unmasked and, where it is text, checked at once
    take_deflated     a whole message that is compressed
    take_message      one whole message, for the subclass; take_control likewise

Turns. A connection that sends much may not hold up the others, upgraded or not: once heavy reads
have taken their budget of one turn of the loop, their bytes are put aside (`deferred_input`) and
not looked at, and no more is read, until their turn comes, first come, first served. A client that
sends little never waits. A small read is heavy all the same where it inflates to as much as a heavy
one brings, and where its client was lately refused a publication: each such message costs as much
as several others.

A loop inside a callback (a plain one that calls `run_until_complete` of a patched asyncio, or opens
a modal dialog) may read while the buffer is in use: for another connection the hub then makes a
buffer anew, and bytes of the same connection are put aside, behind the rest of the callback's read.

So a connection holds no more than the bytes that have come of an unfinished message, and nothing
at all between messages.

Two parts of a connection are made when they are needed, since most connections are idle:
`Unfinished` while a message is, and `Arrival` while it is asked whose the connection is.

Ownership: `unfinished`, `arrival`, `tail` and `deferred_input` are the connection's. The buffer is
the engine's; a read under way keeps the one that it has begun with.
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from wsc_fast._core.deflate cimport Context
from wsc_fast._core.engine cimport Engine
from wsc_fast._core.memory cimport flag
from wsc_fast._core.outbox cimport Sink

# Of wire.h, which is not installed: a module that cimports this has pointers to them only.
cdef extern from * nogil:
    """
    struct wsc_head;
    struct wsc_utf8;
    """
    enum:
        WSC_BAD_OPCODE
        WSC_BAD_CONTROL
        WSC_BAD_LENGTH
        WSC_NOT_MASKED

    struct wsc_head:
        uint64_t size
        uint32_t key
        uint8_t opcode
        uint8_t fin
        uint8_t rsv

    struct wsc_utf8:
        uint8_t need
        uint8_t low
        uint8_t high

    int wsc_read_head(const uint8_t* data, size_t size, wsc_head* head)
    uint32_t wsc_turn_key(uint32_t key, uint64_t count)
    void wsc_unmask(uint8_t* out, const uint8_t* data, size_t size, uint32_t key)
    bint wsc_unmask_ascii(uint8_t* out, const uint8_t* data, size_t size, uint32_t key)
    bint wsc_check_utf8(wsc_utf8* state, const uint8_t* data, size_t size)

cdef enum:
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


# A message of which some bytes have come.
@cython.final
cdef class Unfinished:
    cdef:
        bytearray payload          # what has come of it
        double since               # when it began, on the coarse clock
        uint32_t key               # of the frame under way, turned to its next byte
        unsigned int fragments
        uint8_t[3] text            # a wsc_utf8
        uint8_t opcode
        flag fin                   # of the frame under way
        flag deflated
        flag ascii                 # all of it is, as far as it is a text


# The rest of a connection until it is known whose it is, and its hello was used.
@cython.final
cdef class Arrival:
    cdef:
        object pending             # Identity, or an awaitable for it; None once it was asked for
        object authenticating      # asyncio.Task while an async authenticate runs
        list held                  # (message, size) before the identity is known; else None
        Py_ssize_t held_bytes      # what these take
        dict positions             # room -> position: those of its hello that were not taken yet
        long long look_slot        # of `Engine.deadlines`, while it is held back; else -1
        flag late_address          # of its peer, known only once its upgrade was accepted
        flag awaits_hello          # its identity is known, and its hello is to come


cdef class Receiver(Sink):
    cdef:
        Engine engine
        object handshake           # upgrade.handshake.Handshake until the upgrade is done, or None
        Unfinished unfinished      # the message that has come in part, or None
        Arrival arrival            # None where it is known whose it is, and nothing waits for that
        bytes tail                 # the beginning of a head or of a control frame, or None
        bytes deferred_input                # what was read and has to wait for its turn, or None
        unsigned long long turn    # the last one that it had (ReadTurns.number)
        uint64_t remaining         # payload of the frame under way that is still to come
        list gathered              # the messages of this read that are heard at its end, or None
        Py_ssize_t gathered_bytes  # what these take
        double last_seen           # coarse monotonic seconds
        Context context            # compression of this connection alone, or None
        int inflatable             # bytes that a small read may still inflate; INT_MAX: no bound
        uint8_t doubts             # so many messages have to be allowed before its reads are light
        flag halted                # what is left of this read has to wait
        flag listening             # what it has sent is being taken: a callback may be under way
        flag interrupted           # and a loop inside that callback has read more, or has its turn
        flag released              # `release_input` has it hear a message, without its head line
        flag greeted               # the hello of a client that speaks wsc.1 has come
        flag inflates              # permessage-deflate is agreed on
        flag deferred              # what is left of this read inflates to more than `inflatable`
        flag inflated              # something was, since the last look at the clock
        flag input_closed          # nothing of the peer is heard any more
        flag drains                # each read has to take all that the transport has (`get_buffer`)

    # The memory for the next read, as a memoryview, and that so much was read into it.
    cdef object next_view(self)
    cdef int was_read(self, Py_ssize_t size) except -1
    # A copy of what was read just now, and that it is to be taken as if it was read now.
    cdef bytes copy_read(self, Py_ssize_t size)
    cdef int take_copy(self, bytes data) except -1
    cdef int take_read(self, Py_ssize_t size) except -1
    cdef int take_heavy_read(self, Py_ssize_t size) except -1
    cdef int put_aside(self, const uint8_t* data, Py_ssize_t size) except -1
    cdef int put_back(self, const uint8_t* data, Py_ssize_t size) except -1
    cdef int listened(self) except -1
    cdef int take_deferred_input(self) except -1
    cdef int take_rest(self) except -1
    cdef int consume(self, uint8_t* data, Py_ssize_t size) except -1
    cdef int take_parsed(self, const wsc_head* head, uint8_t* payload) except -1
    cdef int take_frame(self, const wsc_head* head, uint8_t* payload) except -1
    cdef bint may_begin(self, const wsc_head* head) except -1
    cdef bint holds(self) noexcept
    cdef int begin_part(self, const wsc_head* head) except -1
    cdef int take_part(self, const uint8_t* data, Py_ssize_t size) except -1
    cdef int end_part(self) except -1
    cdef int defer(self, int opcode, const uint8_t* data, Py_ssize_t size) except -1
    cdef int take_deferred(self) except -1
    # Nothing more is to be read of it until its identity is known: `halted`, unless it has gone.
    cdef int hold_back(self) except -1
    # `arrival`, made if there is none.
    cdef Arrival arriving(self)
    # Whether its messages are held, since it is not known whose they are.
    cdef inline bint is_held(self) noexcept:
        return self.arrival is not None and self.arrival.held is not None
    # Whether it is not to be read now, for another reason than its turn.
    cdef bint is_paused(self) noexcept
    cdef int take_deflated(self, int opcode, const uint8_t* data, Py_ssize_t size) except -1
    cdef int feed(self, const char* data, Py_ssize_t size) except -1
    cdef int refuse(self, int code, str reason) except -1
    # The same for one who met the limit of this name, which is counted.
    cdef int refuse_over(self, str limit, int code, str reason) except -1

    # One whole message, a str or bytes; `size` is that of its payload.
    cdef int take_message(self, object content, Py_ssize_t size) except -1
    # `gathered` is heard: at the end of the read, or before what ends the connection.
    cdef int hear_gathered(self) except -1
    # One control frame, of at most 125 bytes.
    cdef int take_control(self, int opcode, const char* payload, Py_ssize_t size) except -1
    # The peer broke the protocol, or a bound whose setting has the name `limit`.
    cdef int fail(self, int code, str reason, str limit) except -1
    # Something in here went wrong that is no fault of the peer.
    cdef int failed(self, object error) except -1
