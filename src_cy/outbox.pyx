"""The bounded queue of frames of one client: priorities, conflation, overflow.

Rules
1.  The ring holds the frames in the order in which they will be sent: by priority, and within a
    priority in the order of the calls. `runs` counts the entries of each priority, so that where
    a priority begins and ends follows from the counts.
2.  Bounds refuse data only: pings, pongs and the close frame always go in, though the bytes of a
    waiting pong count against the data. A single message larger than the byte bound is taken when
    nothing else waits.
3.  A key names at most one waiting entry. A newer frame under the key removes the older one and
    takes its own place at the end of its priority, so that order stays the order of the calls.
"""

from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.exc cimport PyErr_Clear
from cpython.mem cimport PyMem_Free
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF, Py_XINCREF
from libc.string cimport memset

from wsc_fast._core.memory cimport A_SINK, allocate_zeros, born, died

cdef extern from "Python.h":
    # Of an exact str neither fails.
    bint PyUnicode_CheckExact(object) noexcept
    Py_hash_t PyObject_Hash(object) noexcept
    int PyList_Append(PyObject*, PyObject*) noexcept
    int PyUnicode_Compare(object, object) noexcept

cdef enum:
    FIRST_CAPACITY = 4
    # A drained ring larger than this is given back at once.
    KEPT_CAPACITY = 64


cdef PyObject** copied(const Outbox* box, PyObject** old, unsigned int capacity) noexcept:
    # A larger ring with the entries of an old one at its beginning; NULL without memory.
    cdef PyObject** ring = <PyObject**>allocate_zeros(capacity, sizeof(PyObject*))
    cdef unsigned int i
    if ring != NULL and old != NULL:
        for i in range(box.count):
            ring[i] = old[(box.head + i) & (box.capacity - 1)]
    return ring


cdef bint grow(Outbox* box) noexcept:
    cdef unsigned int capacity = box.capacity * 2 if box.capacity else FIRST_CAPACITY
    cdef PyObject** ring = copied(box, box.ring, capacity)
    cdef PyObject** keys = NULL
    if ring == NULL:
        return False
    if box.keys != NULL:
        keys = copied(box, box.keys, capacity)
        if keys == NULL:
            PyMem_Free(ring)
            return False
    PyMem_Free(box.ring)
    PyMem_Free(box.keys)
    box.ring = ring
    box.keys = keys
    box.capacity = capacity
    box.head = 0
    return True


cdef bint make_keys(Outbox* box) noexcept:
    if box.keys == NULL:
        box.keys = <PyObject**>allocate_zeros(box.capacity, sizeof(PyObject*))
    return box.keys != NULL


cdef inline PyObject** key_slot(const Outbox* box, unsigned int index) noexcept:
    return &box.keys[(box.head + index) & (box.capacity - 1)]


cdef void move(Outbox* box, unsigned int to, unsigned int source) noexcept:
    outbox_slot(box, to)[0] = outbox_at(box, source)
    if box.keys != NULL:
        key_slot(box, to)[0] = key_slot(box, source)[0]


cdef void release(Outbox* box, PyObject* frame, PyObject* key) noexcept:
    # Gives back the references that outbox_append or outbox_push took. To free a bytes or a str
    # runs no Python code.
    Py_XDECREF(key)
    Py_DECREF(<object>frame)


cdef unsigned int end_of_run(const Outbox* box, int run) noexcept:
    # The index behind the last entry of this priority or a higher one.
    cdef unsigned int end = 0
    cdef int i
    for i in range(run, RUNS):
        end += box.runs[i]
    return end


cdef int run_of(const Outbox* box, unsigned int index) noexcept:
    cdef unsigned int end = 0
    cdef int run = RUNS
    while index >= end:
        run -= 1
        end += box.runs[run]
    return run


cdef void remove(Outbox* box, unsigned int index) noexcept:
    # Takes one entry out of the middle and closes the gap from the nearer end.
    cdef PyObject* frame = outbox_at(box, index)
    cdef PyObject* key = NULL
    cdef int run = run_of(box, index)
    cdef unsigned int i
    if box.keys != NULL:
        key = key_slot(box, index)[0]
    if index < box.count - index - 1:
        for i in range(index, 0, -1):
            move(box, i, i - 1)
        box.head = (box.head + 1) & (box.capacity - 1)
    else:
        for i in range(index, box.count - 1):
            move(box, i, i + 1)
    box.count -= 1
    box.runs[run] -= 1
    box.keyed -= key != NULL
    box.nbytes -= PyBytes_GET_SIZE(<object>frame)
    release(box, frame, key)


cdef bint same_key(PyObject* one, PyObject* other) noexcept:
    # Keys are str, which carry their hash, or the control frames' own objects. Not interned: that
    # would keep them for ever in some versions of Python.
    if one == other:
        return True
    if one == NULL or not PyUnicode_CheckExact(<object>one):
        return False
    if not PyUnicode_CheckExact(<object>other):
        return False
    if PyObject_Hash(<object>one) != PyObject_Hash(<object>other):
        return False
    return PyUnicode_Compare(<object>one, <object>other) == 0


cdef unsigned int find_key(const Outbox* box, PyObject* key) noexcept:
    # The index of the entry under this key, or `count`.
    cdef unsigned int index = 0
    while index < box.count and not same_key(key_slot(box, index)[0], key):
        index += 1
    return index


cdef int lowest_run(const Outbox* box) noexcept:
    # The lowest priority of the data that waits, or RUN_CONTROL when there is none.
    cdef int run
    for run in range(RUN_CONTROL):
        if box.runs[run]:
            return run
    return RUN_CONTROL


cdef bint fits(const Outbox* box, const Limits* limits, Py_ssize_t size) noexcept:
    cdef unsigned int waiting = outbox_data_count(box)
    if waiting == 0:
        return True
    return waiting < limits.messages and box.nbytes + size <= limits.nbytes


cdef bint can_fit(
    const Outbox* box, const Limits* limits, Py_ssize_t size, int run, unsigned int replaced,
) noexcept:
    # Whether the message fits once `replaced` and all that the policy lets go have gone. Asked
    # before anything is dropped, so that nothing is dropped in vain.
    cdef unsigned int kept = 0
    cdef Py_ssize_t nbytes = 0
    cdef unsigned int i
    cdef int victims = -1  # the highest priority that may go
    if limits.policy == DROP_OLDEST:
        victims = run
    elif limits.policy == DROP_NEWEST:
        victims = run - 1
    if replaced == box.count and end_of_run(box, victims + 1) == box.count:
        return False  # nothing may go
    for i in range(end_of_run(box, RUN_CONTROL)):
        nbytes += PyBytes_GET_SIZE(<object>outbox_at(box, i))
    for i in range(end_of_run(box, RUN_CONTROL), end_of_run(box, victims + 1)):
        if i != replaced:
            kept += 1
            nbytes += PyBytes_GET_SIZE(<object>outbox_at(box, i))
    return kept == 0 or (kept < limits.messages and nbytes + size <= limits.nbytes)


cdef void make_room(
    Outbox* box, const Limits* limits, Counters* counters, Py_ssize_t size,
) noexcept:
    # Drops the oldest or newest of the lowest priority; `can_fit` has promised that it will do.
    cdef int victim
    cdef unsigned int index
    while not fits(box, limits, size):
        victim = lowest_run(box)
        if limits.policy == DROP_OLDEST:
            index = end_of_run(box, victim + 1)
            counters.dropped_oldest += 1
        else:
            index = end_of_run(box, victim) - 1
            counters.dropped_newest += 1
        if limits.evicted != NULL and PyList_Append(limits.evicted, outbox_at(box, index)) < 0:
            PyErr_Clear()  # no memory to tell of it: the counters do
        remove(box, index)
        box.dropped += 1


cdef int outbox_push_slow(
    Outbox* box, const Limits* limits, Counters* counters,
    PyObject* frame, PyObject* key, int run,
) noexcept:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(<object>frame)
    cdef unsigned int replaced = box.count
    cdef unsigned long long dropped = box.dropped
    cdef int result
    if key != NULL and box.keyed:
        replaced = find_key(box, key)
    if run != RUN_CONTROL and (replaced < box.count or not fits(box, limits, size)):
        if not can_fit(box, limits, size, run, replaced):
            return REFUSED
        # Before anything is dropped: what has dropped something has room in the ring, too.
        if key != NULL and not make_keys(box):
            return NO_MEMORY
    if replaced < box.count:
        remove(box, replaced)
        if run == RUN_CONTROL:
            counters.control_replaced += 1
        else:
            counters.conflated += 1
            if box.conflated != <unsigned int>-1:
                box.conflated += 1
    if run != RUN_CONTROL:
        make_room(box, limits, counters, size)
    result = outbox_append(box, frame, key, run)
    if result == PUSHED and box.dropped != dropped:
        return MADE_ROOM
    return result


cdef int outbox_append(Outbox* box, PyObject* frame, PyObject* key, int run) noexcept:
    cdef unsigned int index = end_of_run(box, run)
    cdef unsigned int i
    if box.count == box.capacity and not grow(box):
        return NO_MEMORY
    if key != NULL and not make_keys(box):
        return NO_MEMORY
    for i in range(box.count, index, -1):
        move(box, i, i - 1)
    outbox_slot(box, index)[0] = frame
    if box.keys != NULL:
        key_slot(box, index)[0] = key
    Py_INCREF(<object>frame)  # given back by `release`
    Py_XINCREF(key)           # likewise
    box.count += 1
    box.runs[run] += 1
    box.keyed += key != NULL
    box.nbytes += PyBytes_GET_SIZE(<object>frame)
    return PUSHED


cdef int outbox_close(Outbox* box, PyObject* frame) noexcept:
    # The lowest priority is the end of the queue, and nothing is pushed after a close frame.
    return outbox_append(box, frame, NULL, RUN_LOW)


cdef void outbox_take(Outbox* box, unsigned int frames) noexcept:
    """Releases the first `frames` entries; a flush mostly takes all of them."""
    cdef unsigned int i
    if frames < box.count:
        while frames:
            remove(box, 0)
            frames -= 1
        return
    for i in range(box.count):
        release(box, outbox_at(box, i), key_slot(box, i)[0] if box.keys != NULL else NULL)
    box.count = 0
    box.head = 0
    box.keyed = 0
    box.nbytes = 0
    memset(box.runs, 0, sizeof(box.runs))
    PyMem_Free(box.keys)
    box.keys = NULL
    if box.capacity > KEPT_CAPACITY:
        outbox_trim(box)


cdef unsigned int outbox_data_count(const Outbox* box) noexcept:
    return box.count - box.runs[RUN_CONTROL]


cdef list outbox_data(const Outbox* box):
    """The frames that wait, but for pings and pongs, in order."""
    cdef unsigned int i
    return [<bytes>outbox_at(box, i) for i in range(box.runs[RUN_CONTROL], box.count)]


cdef unsigned int outbox_clear(Outbox* box) noexcept:
    """Releases every entry; returns how many of them were not pings or pongs."""
    cdef unsigned int data = outbox_data_count(box)
    outbox_take(box, box.count)
    outbox_trim(box)
    return data


cdef void outbox_trim(Outbox* box) noexcept:
    # Gives the ring of an empty outbox back.
    if box.count == 0 and box.ring != NULL:
        PyMem_Free(box.ring)
        box.ring = NULL
        box.capacity = 0
        box.head = 0


cdef class Sink(WSListener):
    """The sending half of a connection (internal; `Client` is the public class)."""

    def __cinit__(self):
        born(A_SINK)
        memset(&self.box, 0, sizeof(Outbox))
        self.dirty_at = -1
        self.slot = -1
        self.fd = -1
        self.state = CONNECTING

    def __dealloc__(self):
        outbox_clear(&self.box)
        died(A_SINK)

    cdef int write(self, object data) except -1:
        return 0

    cdef int drained(self) except -1:
        return 0

    cdef bytes pack(self, bytes frame):
        return frame

    cdef int broken(self, int error) except -1:
        return 0

    cdef int too_slow(self, PyObject* frame) except -1:
        return 0

    cdef int check_alive(self, double now) except -1:
        return 0

    cdef bint wait_for_turn(self) except -1:
        return False

    cdef int take_turn(self) except -1:
        return 0

    cdef int forget(self) except -1:
        return 0
