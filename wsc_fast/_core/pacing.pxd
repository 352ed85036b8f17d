"""When a connection is read, and when not.

It is not read while one of these reasons holds; when the last one ends, what was read already and
put aside comes first, at its turn (receiver.pxd).

    callbacks   too much waits for its async callbacks
    rate        it has sent more than the rates allow, and is to be paused for that
    identity    it has sent as much as is held before it is known who it is
    turn        it sends much, and others have their turn

Its transport may go meanwhile, or its peer's stream end. Then what has come is heard first:
`Ending.lost_early` and `ended_inside` keep the end until that is done.

Ownership: the connection holds its Ending from the beginning of its close.
"""

cimport cython

from wsc_fast._core.memory cimport flag
from wsc_fast._core.picows_connection cimport PicowsConnection
from wsc_fast._core.rates cimport Allowance

cdef enum:
    # Why the socket is not read.
    PAUSED_FOR_CALLBACKS = 1
    PAUSED_FOR_RATE = 2
    PAUSED_FOR_TURN = 4
    PAUSED_FOR_IDENTITY = 8


# The end of a connection, as far as one that is open need not know it (closing.pxd).
@cython.final
cdef class Ending:
    cdef:
        # Its transport has gone, with this error, before all that had come was heard; or None.
        tuple lost_early
        long long close_slot       # of `Engine.deadlines`, while CLOSING; else -1
        str reason                 # that came or went with the close code
        tuple rooms                # ids of those that it was in; None: in none


cdef class PacedConnection(PicowsConnection):
    cdef:
        int descriptor             # of its socket, for looking only; Sink.fd is for writing
        flag secure                # TLS
        flag ended_inside          # its peer's stream has, in a loop inside its callback
        unsigned char reading_paused  # by us, bit by bit for what reason
        Allowance allowance        # None where no rate has counted anything yet
        Ending ending              # None while it is open

    # `ending`, made if there is none.
    cdef Ending begin_ending(self)
    cdef inline bint is_lost_early(self) noexcept:
        return self.ending is not None and self.ending.lost_early is not None
    # The asyncio transport, of a request too; None where there is none yet, or no more.
    cdef object any_transport(self)
    # The same; None if it is closing.
    cdef object transport_now(self)
    cdef int pause_reading(self, int reason) except -1
    cdef int resume_reading(self, int reasons) except -1
    # Counts a message against the rates; whether the message is to be heard.
    cdef bint within_rate(self, Py_ssize_t size) except -1
    cdef int take_last_turn(self) except -1
    # A subclass calls this, and ends its own.
    cdef int end_timers(self) except -1
    # For the subclass: closes the transport once what was written is sent.
    cdef int close_transport(self) except -1
