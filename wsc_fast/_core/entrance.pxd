"""One listening socket on the Poller of a hub: it accepts, a bounded number at a time.

A connection is read as soon as it is accepted, since its request has mostly come by then; what is
beyond the turn of requests waits (read_turns.pxd). The kernel watches it from then on.

Ownership: the socket is the caller's. An accepted descriptor is its Stream's.
"""

from wsc_fast._core.poller cimport Watched


cdef class Entrance(Watched):
    cdef:
        object make_connection   # makes the Client of a connection
        object out_of_files      # says whether there is room again: `Entrance`

    # Accepts up to so many, and until then; whether there may be more.
    cdef bint accept_some(self, int most, double deadline) except -1
    cdef int admit(self, int descriptor, const void* peer) except -1
