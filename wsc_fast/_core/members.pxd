"""Dense sets of clients: all of a hub, one user's, one room's.

A list without holes, so that a broadcast walks pointers in memory order; each member knows its
slot, so that joining and leaving are O(1). Sets own references to their members, and a client
leaves every set before it is gone.
"""

cimport cython
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
    cdef:
        readonly bint deleted      # members may be left in it, who are taken out a few at a time
        bint passing               # it was made by a `join_room`, and ends with its last member
        set emptied                # takes its id when the last member has left; None: nobody asks


# A room whose messages are appended to a history and have positions in it (bus/base.py).
@cython.final
cdef class KeptRoom(Room):
    cdef readonly Py_ssize_t aware  # how many members speak wsc.1


cdef list rooms_of(Sink sink)
cdef list deleted_rooms_of(Sink sink)

# Queues one frame for every sink of a set but those with `skip` set, which `skipped` lists (None:
# there are none): in the batch of the set (fanout.pxd), or in each outbox. `members` is the set
# that the items are of, None for all clients; `run` is the priority; `forms` has the forms of the
# frame that are known already, or is None. Allocates nothing per recipient. Returns how many took
# it.
cdef Py_ssize_t push_all(
    Fanout fanout, list items, object members, list skipped, bytes frame, PyObject* key, int run,
    list forms,
) except -1

# The same, into each outbox of a list. A sink gets the frame in its `form`, made once, and kept in
# `forms` (None: nowhere).
cdef Py_ssize_t push_each(
    Fanout fanout, list items, bytes frame, PyObject* key, int run, list forms
) except -1
