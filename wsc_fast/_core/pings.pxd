"""Whether the peer of a connection is still there: pings, pongs, and the heartbeat's look.

    take_control    one control frame of the peer: a ping is answered, a close frame is closing's
    hold_back       nothing more is read of a peer whose identity is not known yet; a look each
                    second whether it has left
    check_alive     the heartbeat's look, now and then: a client that is silent for too long is
                    closed, one that is silent for a while is pinged

Control frames go through the outbox, as all frames do. One ping and few pongs wait there at most,
so that a flood of pings costs no memory.
"""

from wsc_fast._core.closing cimport ClosableConnection
from wsc_fast._core.memory cimport flag


cdef class PingedConnection(ClosableConnection):
    cdef:
        double pinged_at           # on the exact clock
        unsigned long long acked   # bytes, at the last look (see check_alive)
        float round_trip           # seconds to that answer, the last time; below 0: not known
        flag pong_due              # the answer to a ping of ours

    # Looks later whether a peer has left that is not read.
    cdef int look_later(self) except -1
    cdef int end_looks(self) except -1
    # A conflation key of PINGs or PONGs, or None.
    cdef int push_control(self, bytes frame, object key) except -1
