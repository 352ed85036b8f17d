"""Dense sets of clients: all of a hub, one user's, one room's.

A list without holes, so that a broadcast walks pointers in memory order; each member knows its
slot, so that joining and leaving are O(1). Sets own references to their members, and a client
leaves every set before it is gone.
"""

from cpython.object cimport PyObject

from wsc_fast._core.fanout cimport Fanout
from wsc_fast._core.outbox cimport Sent, Sink

cdef class MemberSet:
    cdef:
        readonly str id
        list items   # of Sink
        Sent* sent   # from its batches; NULL before the first, which small sets never have

    # True if it was not a member before.
    cdef bint add(self, Sink sink) except -1
    # True if it was a member.
    cdef bint discard(self, Sink sink) except -1
    cdef Py_ssize_t size(self) noexcept
    # Where the batches of this set are counted; MemoryError.
    cdef Sent* count_batches(self) except NULL

cdef class Room(MemberSet):
    pass

# Queues one frame for every sink of a set but those with `skip` set, which `skipped` lists (None:
# there are none): in the batch of the set (fanout.pxd), or in each outbox. `members` is the set
# that the items are of, None for all clients. Allocates nothing per recipient. Returns how many
# took it.
cdef Py_ssize_t push_all(
    Fanout fanout, list items, object members, list skipped, bytes frame, PyObject* key
) except -1

# The same, into each outbox of a list. A sink with a `window` gets the compressed form for it,
# made once, and kept in `forms` (by window; None: nowhere).
cdef Py_ssize_t push_each(
    Fanout fanout, list items, bytes frame, PyObject* key, list forms
) except -1
