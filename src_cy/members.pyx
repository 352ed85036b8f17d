"""Dense sets of clients, and how a broadcast reaches them: by the batch, or by a walk.

The walk calls no Python code and changes no set: the flush is scheduled before it (publish), and
clients whose outbox overflows under the policy "disconnect" are collected and closed after it, so
that nobody is skipped or met twice.
"""

from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_Free
from cpython.object cimport PyObject

from wsc_fast._core.fanout cimport Fanout, join_sent, leave_sent
from wsc_fast._core.memory cimport A_MEMBER_SET, allocate_zeros, born, died
from wsc_fast._core.outbox cimport (
    AWARE,
    DISCONNECT,
    FORMS,
    MADE_ROOM,
    NO_MEMORY,
    PUSHED,
    RUN_NORMAL,
    Counters,
    Limits,
    Outbox,
    Sent,
    Sink,
    outbox_push,
    outbox_push_slow,
    outbox_slot,
)

cdef extern from "net.h" nogil:
    void wsc_prefetch(const void* address)

cdef extern from "Python.h":
    bint PyGC_Disable()
    bint PyGC_Enable()

# How many clients ahead the walk asks for their memory, which lies all over the heap: first for
# the struct, and once that has come for the place in the ring that it points to.
cdef enum:
    AHEAD_STRUCT = 8
    AHEAD_RING = 4


cdef class MemberSet:
    """The members of a room, or the clients of a user (internal)."""

    def __cinit__(self, str id):
        born(A_MEMBER_SET)
        self.id = id
        self.items = []

    def __dealloc__(self):
        PyMem_Free(self.sent)
        died(A_MEMBER_SET)

    # Where memory runs out, both leave the set and its members' slots as they were.

    cdef bint add(self, Sink sink) except -1:
        if sink.memberships is None:
            sink.memberships = {}
        elif self in sink.memberships:
            return False
        self.items.append(sink)
        try:
            sink.memberships[self] = PyList_GET_SIZE(self.items) - 1
        except BaseException:
            self.items.pop()
            raise
        if self.sent != NULL:
            join_sent(self.sent, sink)
        return True

    cdef bint discard(self, Sink sink) except -1:
        cdef object place  # an int, handed on to the one who takes the place
        cdef Py_ssize_t slot
        cdef Sink last
        if sink.memberships is None or self not in sink.memberships:
            return False
        place = sink.memberships[self]
        slot = place
        last = <Sink>self.items.pop()
        del sink.memberships[self]
        if not sink.memberships:
            sink.memberships = None
        if last is not sink:
            self.items[slot] = last
            last.memberships[self] = place
        if self.sent != NULL:
            leave_sent(self.sent, sink)
        return True

    cdef Py_ssize_t size(self) noexcept:
        return PyList_GET_SIZE(self.items)

    cdef Sent* count_batches(self) except NULL:
        if self.sent == NULL:
            self.sent = <Sent*>allocate_zeros(1, sizeof(Sent))
            if self.sent == NULL:
                raise MemoryError(f"no memory for the counters of room {self.id!a}")
        return self.sent


cdef class Room(MemberSet):
    """A named set of clients (internal)."""

    cdef bint discard(self, Sink sink) except -1:
        cdef bint left = MemberSet.discard(self, sink)
        if left and self.emptied is not None and PyList_GET_SIZE(self.items) == 0:
            self.emptied.add(self.id)
        return left


cdef class KeptRoom(Room):
    """A room with a history (internal)."""

    cdef bint add(self, Sink sink) except -1:
        cdef bint added = Room.add(self, sink)
        self.aware += added and sink.form >= AWARE
        return added

    cdef bint discard(self, Sink sink) except -1:
        cdef bint left = Room.discard(self, sink)
        self.aware -= left and sink.form >= AWARE
        return left


cdef list rooms_of(Sink sink):
    """The ids of the rooms that a client is in, in the order of joining."""
    if sink.memberships is None:
        return []
    return [
        (<Room>members).id for members in list(sink.memberships)
        if isinstance(members, Room) and not (<Room>members).deleted
    ]


cdef list deleted_rooms_of(Sink sink):
    """The rooms that were deleted and that a client was not taken out of yet."""
    if sink.memberships is None:
        return []
    return [
        members for members in sink.memberships
        if isinstance(members, Room) and (<Room>members).deleted
    ]


cdef Py_ssize_t push_all(
    Fanout fanout, list items, object members, list skipped, bytes frame, PyObject* key, int run,
    list forms,
) except -1:
    cdef Py_ssize_t queued
    cdef Py_ssize_t last
    cdef Sent* sent = NULL
    if fanout.batch_items is None and PyList_GET_SIZE(items) < fanout.batch_least:
        return push_each(fanout, items, frame, key, run, forms)
    if key == NULL and run == RUN_NORMAL and fanout.batch_items is None:
        # A batch begins, and counts for its set.
        sent = &fanout.sent if members is None else (<MemberSet>members).count_batches()
    if (
        key != NULL or run != RUN_NORMAL
        or not fanout.join_batch(items, members, sent, skipped, frame, forms)
    ):
        fanout.end_batch()
        return push_each(fanout, items, frame, key, run, forms)
    queued = PyList_GET_SIZE(items) - PyList_GET_SIZE(fanout.batch_detached)
    fanout.counters.deliveries += queued
    if PyList_GET_SIZE(fanout.batch_detached):
        last = PyList_GET_SIZE(fanout.batch_frames) - 1
        queued += push_each(
            fanout, fanout.batch_detached, frame, NULL, RUN_NORMAL, fanout.batch_cache(last)
        )
    return queued


cdef list push_to_aware(
    Fanout fanout, Sink member, PyObject* form, PyObject* key, int run, Py_ssize_t* queued,
    list slow,
):
    """Queues a frame for a client that speaks wsc.1; one without room is put into `slow`.

    It is closed, rather than left with a gap.
    """
    if outbox_push_slow(
        &member.box, &fanout.aware_limits, &fanout.counters, form, key, run
    ) == PUSHED:
        queued[0] += 1
        if member.dirty_at < 0:
            fanout.mark(member)
        return slow
    if slow is None:
        slow = []
    slow.append((member, <bytes>form))
    return slow


cdef Py_ssize_t push_each(
    Fanout fanout, list items, bytes frame, PyObject* key, int run, list forms
) except -1:
    cdef Py_ssize_t queued = 0
    cdef Py_ssize_t aware = 0  # apart, so that the other can stay in a register
    cdef Py_ssize_t i = 0
    cdef int result
    cdef Outbox* box
    cdef PyObject* member
    cdef Sink sink
    cdef list slow = None  # (Sink, frame)
    cdef list lost = None  # (Sink, frames, reason), where the application asked to hear of it
    cdef Counters* counters = &fanout.counters
    cdef const Limits* limits = &fanout.limits
    cdef PyObject* form
    cdef unsigned int number
    cdef bint straight = key == NULL and run == RUN_NORMAL  # asked once, not for each member
    # The set may not change meanwhile, so no finalizer of anybody may run (marking allocates).
    cdef bint collecting = PyGC_Disable()
    try:
        while True:
            try:
                while i < PyList_GET_SIZE(items):
                    if i + AHEAD_STRUCT < PyList_GET_SIZE(items):
                        wsc_prefetch(&(<Sink>PyList_GET_ITEM(items, i + AHEAD_STRUCT)).box)
                        box = &(<Sink>PyList_GET_ITEM(items, i + AHEAD_RING)).box
                        wsc_prefetch(outbox_slot(box, box.count))
                    # Borrowed from the set, which does not change: counting references would
                    # write to each.
                    member = PyList_GET_ITEM(items, i)
                    i += 1
                    if (<Sink>member).skip:
                        continue
                    form = <PyObject*>frame
                    number = (<Sink>member).form
                    if number:
                        if forms is None:
                            forms = [None] * FORMS
                        form = fanout.form_or_plain(forms, frame, number)
                        if number >= AWARE:
                            slow = push_to_aware(fanout, <Sink>member, form, key, run, &aware, slow)
                            continue
                    if straight:
                        result = outbox_push(
                            &(<Sink>member).box, limits, counters, form, NULL, RUN_NORMAL
                        )
                    else:
                        result = outbox_push_slow(
                            &(<Sink>member).box, limits, counters, form, key, run
                        )
                    if result == PUSHED or result == MADE_ROOM:
                        queued += 1
                        if (<Sink>member).dirty_at < 0:
                            fanout.mark(<Sink>member)
                        if result == MADE_ROOM and limits.evicted != NULL:
                            if lost is None:
                                lost = []
                            lost.append((<Sink>member, fanout.taken(), "queue_full"))
                    elif result == NO_MEMORY or limits.policy == DISCONNECT:
                        if slow is None:
                            slow = []
                        slow.append((<Sink>member, <bytes>form))
                    else:
                        (<Sink>member).box.dropped += 1
                        counters.dropped_newest += 1
                        if limits.evicted != NULL:
                            if lost is None:
                                lost = []
                            lost.append((<Sink>member, [<bytes>form], "broadcast_full"))
                break
            except MemoryError:
                # For one member: it is closed, and those behind it get theirs.
                if slow is None:
                    slow = []
                slow.append((<Sink>member, frame))
    finally:
        if collecting:
            PyGC_Enable()
    queued += aware
    counters.deliveries += queued
    if slow is not None:
        for sink, refused in slow:
            sink.too_slow(<PyObject*>refused)
    if lost is not None:
        for sink, frames, reason in lost:
            fanout.needs.lose(sink, frames, reason, None)
    return queued
