"""Dense sets of clients: all of a hub, one user's, one room's.

A list without holes, so that a broadcast walks pointers in memory order; each member knows its
slot, so that joining and leaving are O(1). Sets own references to their members, and a client
leaves every set before it is gone.
"""

from cpython.object cimport PyObject

from wsc_fast._core.fanout cimport Fanout
from wsc_fast._core.outbox cimport Sink

cdef class MemberSet:
    cdef:
        readonly str id
        list items   # of Sink

    # True if it was not a member before.
    cdef bint add(self, Sink sink) except -1
    # True if it was a member.
    cdef bint discard(self, Sink sink) except -1
    cdef Py_ssize_t size(self) noexcept

cdef class Room(MemberSet):
    pass

# Pushes one frame to every sink of the list but those with `skip` set; allocates nothing per
# recipient. A sink with a `window` gets the twin for it. Returns how many took it.
cdef Py_ssize_t push_all(
    Fanout fanout, list items, bytes frame, PyObject* key, int run
) except -1
