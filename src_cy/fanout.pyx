"""The dirty list and the flush: at the end of a tick every client with a backlog gets one send.

Who may write when
1.  A descriptor is written to by the flush alone, while its transport holds nothing (`blocked` is
    False). With write-buffer limits of 0 the transport says so: `pause_writing` comes with the
    first byte that it keeps, `resume_writing` when nothing is left.
2.  When the kernel takes only part of a frame, the rest of that frame is given to the transport at
    once. Whole frames stay in the outbox, by reference. When the kernel takes nothing at all, the
    frame at the head is given to the transport, which then waits for room.
3.  Over TLS there is no descriptor to write to: whole frames, joined once per distinct sequence,
    go through the transport's write, a bounded number of bytes at a time, under rule 1. So do the
    frames of a connection with a compression context of its own, compressed on the way.
4.  A sink leaves the dirty list before its descriptor can be closed (`unmark`), so that no flush
    writes to a number that meanwhile belongs to somebody else.

A flush that has spent its time budget leaves the rest of the dirty list for the next turn of the
loop and schedules itself; the list is first in, first out, so that nobody waits for ever.

Ownership: the dirty list holds a reference to each sink. Jobs, iovecs, the frame pool and the
arena are memory of one plan; what they point to is kept alive by the outboxes, which nobody else
can change while the loop's thread is inside the flush.
"""

from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_GET_SIZE,
)
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.errno cimport EPIPE
from libc.string cimport memcpy, memset

from wsc_fast._core.outbox cimport (
    CLOSING,
    Outbox,
    Sink,
    outbox_at,
    outbox_take,
)

cdef extern from "net.h" nogil:
    Py_ssize_t wsc_send(int fd, const iovec* iov, int count)
    double wsc_now()
    enum:
        WSC_AGAIN

cdef enum:
    # Sends planned at once. A plan is made for what the budget can pay for, about 1,250 sends of
    # 4 us, not for all that wait: the rest would be planned again in the next turn.
    PLAN_JOBS = 2048
    PLAN_FRAMES = 16384
    PLAN_IOVS = 4096
    ARENA_SIZE = 1048576
    # Sequences up to this size are copied together once; longer ones go out by iovec.
    COPY_MAX = 65536
    # What one send is offered at most, beyond the first frame, and in how many pieces.
    SEND_MAX = 1048576
    SEND_IOVS = 256
    # What a TLS transport is given at most in one turn, beyond the first frame.
    TLS_SEND_MAX = 262144
    # How many recent sequences a new one is compared with.
    RECENT = 8
    # The clock is read once in this many sends.
    CLOCK_EVERY = 16

cdef extern from "Python.h":
    bint PyGC_Disable()
    bint PyGC_Enable()

# No errno has this number.
cdef Py_ssize_t NOT_TRIED = -(1 << 30)


cdef class Fanout:
    """Base of Hub: the dirty list of one event loop and the flush (internal)."""

    def __cinit__(self):
        memset(&self.counters, 0, sizeof(Counters))
        memset(&self.limits, 0, sizeof(Limits))
        self.witness = []
        self.loop = None
        self.dirty = []
        self.budget = 0.005
        self._flush_callback = None
        self.jobs = <Job*>PyMem_Malloc(PLAN_JOBS * sizeof(Job))
        self.iovs = <iovec*>PyMem_Malloc(PLAN_IOVS * sizeof(iovec))
        self.pool = <PyObject**>PyMem_Malloc(PLAN_FRAMES * sizeof(PyObject*))
        self.arena = <char*>PyMem_Malloc(ARENA_SIZE)
        if not self.jobs or not self.iovs or not self.pool or not self.arena:
            raise MemoryError("no memory for the send plan of a hub")

    def __dealloc__(self):
        PyMem_Free(self.jobs)
        PyMem_Free(self.iovs)
        PyMem_Free(self.pool)
        PyMem_Free(self.arena)

    cdef int attach(self, object loop) except -1:
        # Binds to a running loop, or to none. The bound method is a cycle only while attached.
        self.loop = loop
        self._flush_callback = self._flush if loop is not None else None
        self.scheduled = False
        return 0

    cdef bytes twin(self, bytes frame, int window):
        return frame

    cdef int lose(self, Sink sink, list frames, str reason, object error) except -1:
        return 0

    cdef list taken(self):
        """What was dropped to make room since the last call."""
        cdef list frames = list(self.witness)
        self.witness.clear()
        return frames

    cdef int mark(self, Sink sink) except -1:
        """The sink's outbox is not empty: it takes part in the next flush, unless blocked."""
        if sink.dirty_at >= 0 or sink.blocked:
            return 0
        sink.dirty_at = PyList_GET_SIZE(self.dirty)
        self.dirty.append(sink)
        if not self.scheduled:
            return self.schedule()
        return 0

    cdef int schedule(self) except -1:
        if self.loop is not None:
            self.loop.call_soon(self._flush_callback)
            self.scheduled = True
        return 0

    cdef int unmark(self, Sink sink) except -1:
        """The sink takes no part in any flush until it is marked again (rule 4)."""
        if sink.dirty_at >= 0:
            assert self.dirty[sink.dirty_at] is sink
            self.dirty[sink.dirty_at] = None
            sink.dirty_at = -1
        return 0

    def _flush(self):
        cdef double start = wsc_now()
        cdef double end
        cdef Py_ssize_t planned = 0
        cdef Py_ssize_t i
        cdef Job* jobs = self.jobs
        cdef object failure = None
        cdef bint collecting
        self.scheduled = False
        if PyList_GET_SIZE(self.dirty) == 0:
            return
        self.counters.flushes += 1
        # What was planned may not change before it is settled, so no finalizer may run meanwhile.
        collecting = PyGC_Disable()
        try:
            planned = self.plan(start + self.budget)
            if planned:
                with nogil:
                    send_all(jobs, planned, start + self.budget)
                for i in range(planned):
                    if jobs[i].result != NOT_TRIED:
                        # All that was sent has to be settled, or it would be sent again.
                        try:
                            self.settle(&jobs[i])
                        except BaseException as error:
                            failure = error
            if failure is not None:
                raise failure
        finally:
            if collecting:
                PyGC_Enable()
            self.compact()
            end = wsc_now()
            if end - start > self.longest_flush:
                self.longest_flush = end - start
            if PyList_GET_SIZE(self.dirty) and not self.scheduled:
                self.schedule()

    cdef Py_ssize_t plan(self, double deadline) except -1:
        """Fills `jobs` from the dirty list; writes TLS sinks on the way. Returns the jobs."""
        cdef Sequence recent[RECENT]
        cdef Py_ssize_t recent_count = 0
        cdef Py_ssize_t oldest = 0
        cdef Py_ssize_t planned = 0
        cdef Py_ssize_t position = 0
        cdef Py_ssize_t size = PyList_GET_SIZE(self.dirty)
        cdef Py_ssize_t pool_used = 0
        cdef Py_ssize_t arena_used = 0
        cdef Py_ssize_t iovs_used = 0
        cdef Py_ssize_t i
        cdef Sink sink
        cdef Job* job
        cdef Sequence* match
        cdef dict joined = None
        cdef unsigned int frames
        cdef Py_ssize_t total
        while position < size and planned < PLAN_JOBS:
            if PyList_GET_ITEM(self.dirty, position) == <PyObject*>None:
                position += 1
                continue
            sink = <Sink>PyList_GET_ITEM(self.dirty, position)
            if sink.fd < 0:
                if joined is None:
                    joined = {}
                self.write_through(sink, joined)
                position += 1
                if wsc_now() >= deadline:
                    break
                continue

            job = &self.jobs[planned]
            match = NULL
            for i in range(recent_count):
                if same_sequence(&recent[i], &sink.box):
                    match = &recent[i]
                    break
            if match == NULL:
                frames = takable(&sink.box, SEND_MAX, &total)
                if (
                    pool_used + frames > PLAN_FRAMES or iovs_used + frames > PLAN_IOVS
                    or arena_used + COPY_MAX > ARENA_SIZE
                ):
                    break
                if recent_count < RECENT:
                    match = &recent[recent_count]
                    recent_count += 1
                else:
                    match = &recent[oldest]
                    oldest = (oldest + 1) % RECENT
                match.frames = self.pool + pool_used
                match.job.iov = self.iovs + iovs_used
                match.job.frames = frames
                match.job.total = total
                pool_used += frames
                if 1 < frames and total <= COPY_MAX:
                    match.job.iov_count = 1
                    match.job.iov.iov_base = self.arena + arena_used
                    match.job.iov.iov_len = total
                    join_frames(&sink.box, match, self.arena + arena_used)
                    arena_used += total
                else:
                    match.job.iov_count = <int>frames
                    gather_frames(&sink.box, match)
                iovs_used += match.job.iov_count
            job[0] = match.job
            job.fd = sink.fd
            job.position = position
            job.result = NOT_TRIED
            planned += 1
            position += 1
        return planned

    cdef int settle(self, Job* job) except -1:
        cdef Sink sink
        cdef Outbox* box
        cdef Py_ssize_t taken = job.result
        cdef Py_ssize_t size
        cdef object rest
        if PyList_GET_ITEM(self.dirty, job.position) == <PyObject*>None:
            return 0  # it left while an earlier sink was settled
        sink = <Sink>PyList_GET_ITEM(self.dirty, job.position)
        box = &sink.box
        self.counters.sends += 1
        if taken == job.total:
            self.counters.bytes_out += taken
            self.counters.frames_sent += job.frames
            outbox_take(box, job.frames)
            return self.after_write(sink)
        if taken < 0 and taken != WSC_AGAIN:
            return self.give_up(sink, <int>-taken)
        if taken < 0:
            taken = 0
        self.counters.partial_sends += 1
        self.counters.bytes_out += taken
        size = PyBytes_GET_SIZE(<object>outbox_at(box, 0))
        while taken >= size:
            taken -= size
            self.counters.frames_sent += 1
            outbox_take(box, 1)
            size = PyBytes_GET_SIZE(<object>outbox_at(box, 0))
        rest = <object>outbox_at(box, 0)
        if taken:
            rest = memoryview(rest)[taken:]
        return self.hand_over(sink, rest, 1, size - taken)

    cdef int write_through(self, Sink sink, dict joined) except -1:
        """Rule 3: its frames as one write; equal sequences share the joined bytes."""
        cdef Outbox* box = &sink.box
        cdef Py_ssize_t total
        cdef unsigned int frames = takable(box, TLS_SEND_MAX, &total)
        cdef unsigned int i
        cdef tuple key
        cdef bytes data
        if sink.packs:
            data = b"".join([sink.pack(<bytes>outbox_at(box, i)) for i in range(frames)])
            total = PyBytes_GET_SIZE(data)
        elif frames == 1:
            data = <bytes>outbox_at(box, 0)
        else:
            key = tuple([<object>outbox_at(box, i) for i in range(frames)])
            data = joined.get(key)
            if data is None:
                data = b"".join(key)
                joined[key] = data
        self.counters.sends += 1
        return self.hand_over(sink, data, frames, total)

    cdef int hand_over(
        self, Sink sink, object data, unsigned int frames, Py_ssize_t size
    ) except -1:
        """Gives `data`, which is or ends the first `frames` frames, to the transport."""
        outbox_take(&sink.box, frames)
        self.counters.frames_sent += frames
        self.counters.bytes_out += size
        try:
            # pause_writing comes back from here and sets `blocked`, if the transport keeps any.
            sink.write(data)
        except BaseException as error:
            self.give_up(sink, EPIPE)
            if not isinstance(error, Exception):
                raise
            return 0
        return self.after_write(sink)

    cdef int give_up(self, Sink sink, int error) except -1:
        self.unmark(sink)
        return sink.broken(error)

    cdef int after_write(self, Sink sink) except -1:
        # A further chunk waits behind everybody else's turn.
        self.unmark(sink)
        if sink.box.count and not sink.blocked:
            return self.mark(sink)
        if sink.state == CLOSING and not sink.box.count and not sink.blocked:
            return sink.drained()
        return 0

    cdef int compact(self) except -1:
        """Drops the holes in the dirty list; keeps the order of the rest."""
        cdef list rest = [sink for sink in self.dirty if sink is not None]
        cdef Py_ssize_t i
        if PyList_GET_SIZE(rest) != PyList_GET_SIZE(self.dirty):
            for i in range(PyList_GET_SIZE(rest)):
                (<Sink>PyList_GET_ITEM(rest, i)).dirty_at = i
            self.dirty = rest
        return 0


cdef unsigned int takable(const Outbox* box, Py_ssize_t most, Py_ssize_t* total) noexcept:
    # How many frames from the head go into one send: at least one, then while they fit.
    cdef unsigned int frames = 0
    cdef Py_ssize_t size
    total[0] = 0
    while frames < box.count and frames < SEND_IOVS:
        size = PyBytes_GET_SIZE(<object>outbox_at(box, frames))
        if frames and total[0] + size > most:
            break
        total[0] += size
        frames += 1
    return frames


cdef bint same_sequence(const Sequence* known, const Outbox* box) noexcept:
    # Whether this outbox would be planned to the same frames. Identity is enough: both hold a
    # reference to every frame compared, so that no address can have been used again.
    cdef unsigned int frames = known.job.frames
    cdef unsigned int i
    if box.count < frames or known.frames[0] != outbox_at(box, 0):
        return False
    if box.count > frames and known.job.iov_count == 1 and frames < SEND_IOVS:
        # A longer backlog gets a plan of its own: it may fit into one send too.
        return False
    for i in range(1, frames):
        if known.frames[i] != outbox_at(box, i):
            return False
    return True


cdef void join_frames(const Outbox* box, Sequence* sequence, char* out) noexcept:
    cdef unsigned int i
    cdef PyObject* frame
    cdef Py_ssize_t size
    for i in range(sequence.job.frames):
        frame = outbox_at(box, i)
        size = PyBytes_GET_SIZE(<object>frame)
        sequence.frames[i] = frame
        memcpy(out, PyBytes_AS_STRING(<object>frame), size)
        out += size


cdef void gather_frames(const Outbox* box, Sequence* sequence) noexcept:
    cdef unsigned int i
    cdef PyObject* frame
    for i in range(sequence.job.frames):
        frame = outbox_at(box, i)
        sequence.frames[i] = frame
        sequence.job.iov[i].iov_base = PyBytes_AS_STRING(<object>frame)
        sequence.job.iov[i].iov_len = PyBytes_GET_SIZE(<object>frame)


cdef void send_all(Job* jobs, Py_ssize_t count, double deadline) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        if i % CLOCK_EVERY == 0 and i and wsc_now() >= deadline:
            return
        jobs[i].result = wsc_send(jobs[i].fd, jobs[i].iov, jobs[i].iov_count)
