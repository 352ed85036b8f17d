"""The dirty list and the flush: at the end of a tick every client with a backlog gets one send.

Rules of writing
1.  A descriptor is written to by the flush alone, while its transport holds nothing (`blocked` is
    False). With write-buffer limits of 0 the transport says so: `pause_writing` comes with the
    first byte that it keeps, `resume_writing` when nothing is left.
2.  When the kernel takes only part of a frame, the rest of that frame is given to the transport at
    once. Whole frames stay in the outbox, by reference. When the kernel takes nothing at all, the
    frame at the head is given to the transport, which then waits for room. TLS of the engine's own
    takes whole records, and keeps what the kernel does not take of them; its transport is then told
    to look, by a rest of no bytes.
3.  Where there is no descriptor to write to (TLS of another's): whole frames, joined once per
    distinct sequence, go through the transport's write, a bounded number of bytes at a time, under
    rule 1. So do the frames of a connection with a compression context of its own, compressed on
    the way.
4.  A sink leaves the dirty list before its descriptor can be closed (`unmark`), so that no flush
    writes to a number that meanwhile belongs to somebody else.
5.  From the plan of a flush to its settlement, and while a set is walked, no code of Python's runs:
    a finalizer or a signal handler in it could change what was planned, sent or walked. asyncio's
    loop and transports are such code. So a flush is scheduled before a walk and counts as scheduled
    until it ends, and transports are called once everything sent is settled.

A flush that has spent its time budget leaves the rest of the dirty list for the next turn of the
loop and schedules itself; the list is first in, first out, so that nobody waits for ever. Sinks
without a descriptor have a budget of their own.

Ownership: the one who holds a Fanout is its `needs`, in a cycle that ends with both. The dirty list
holds a reference to each sink. Jobs, iovecs, the frame pool and the
arena are memory of one plan; what they point to is kept alive by the outboxes, which nobody else
can change while the loop's thread is inside the flush.
"""

from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_GET_SIZE,
)
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_Free
from cpython.object cimport PyObject
from libc.errno cimport ENOMEM, EPIPE
from libc.string cimport memcpy, memset

from wsc_fast._core.histogram cimport Histogram
from wsc_fast._core.loop_context cimport LoopContext
from wsc_fast._core.memory cimport A_FANOUT, allocate, born, died, reallocate
from wsc_fast._core.outbox cimport (
    AWARE,
    CLOSING,
    FORMS,
    PUSHED,
    RUN_NORMAL,
    Limits,
    Outbox,
    Sent,
    Sink,
    outbox_at,
    outbox_push,
    outbox_take,
)

from wsc_fast.errors import HubStoppedError

cdef extern from "send_pool.h" nogil:
    ctypedef struct wsc_sharing:
        pass

    ctypedef void (*wsc_part)(void*, Py_ssize_t, Py_ssize_t) noexcept nogil
    int wsc_pool_open(int threads)
    void wsc_pool_close()
    bint wsc_do_jobs(
        wsc_sharing* sharing, wsc_part part, void* jobs, Py_ssize_t count, double nbytes,
        double deadline
    )

cdef extern from "net.h" nogil:
    Py_ssize_t wsc_send(int fd, const iovec* iov, int count)
    Py_ssize_t wsc_send_through(wsc_layer* layer, int fd, const iovec* iov, int count)
    size_t wsc_kept(const wsc_layer* layer)
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
    # One send is offered at most so many bytes beyond the first frame, in so many pieces.
    SEND_MAX = 1048576
    SEND_IOVS = 256
    # A TLS transport is given at most so many bytes in one turn, beyond the first frame.
    TLS_SEND_MAX = 262144
    # How many recent sequences a new one is compared with.
    RECENT = 8
    # How many members ahead a walk asks for their memory, which lies all over the heap.
    AHEAD = 8

cdef extern from "Python.h":
    bint PyGC_Disable()
    bint PyGC_Enable()

cdef extern from "net.h" nogil:
    void wsc_prefetch(const void* address)

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

cdef Limits BOUNDLESS
BOUNDLESS.messages = <unsigned int>-1
BOUNDLESS.nbytes = PY_SSIZE_T_MAX
BOUNDLESS.policy = 0
BOUNDLESS.evicted = NULL

# No errno has this number.
cdef Py_ssize_t NOT_TRIED = -(1 << 30)


cdef class FanoutNeeds:
    """The calls that a Fanout makes to its holder (internal)."""

    cdef bytes form_of(self, bytes frame, int form):
        return frame

    cdef int lose(self, Sink sink, list frames, str reason, object error) except -1:
        return 0

    cdef int ran_empty(self, Sink sink) except -1:
        return 0


cdef class Fanout:
    """The dirty list of one event loop and the flush (internal)."""

    def __cinit__(self, FanoutNeeds needs not None, LoopContext loop_context not None):
        born(A_FANOUT)
        self.needs = needs
        self.loop_context = loop_context
        memset(&self.counters, 0, sizeof(Counters))
        memset(&self.limits, 0, sizeof(Limits))
        memset(&self.aware_limits, 0, sizeof(Limits))
        self.evicted = []
        self.dirty = []
        self.stalled = set()
        self.batch_items = None
        # Below these a batch costs more than it saves.
        self.batch_least = 32
        self.batch_share = 8
        self.budget = 0.005
        self.flush_callback = None
        memset(&self.sent, 0, sizeof(Sent))
        memset(self.sharing, 0, sizeof(self.sharing))
        self.flush_seconds = Histogram(16e-6)
        self.send_seconds = Histogram(16e-6)
        self.flush_clients = Histogram(1)
        self.jobs = <Job*>allocate(PLAN_JOBS * sizeof(Job))
        self.iovs = <iovec*>allocate(PLAN_IOVS * sizeof(iovec))
        self.pool = <PyObject**>allocate(PLAN_FRAMES * sizeof(PyObject*))
        self.arena = <char*>allocate(ARENA_SIZE)
        if not self.jobs or not self.iovs or not self.pool or not self.arena:
            raise MemoryError("no memory for the send plan of a hub")

    def __dealloc__(self):
        died(A_FANOUT)
        self.end_threads()
        PyMem_Free(self.jobs)
        PyMem_Free(self.iovs)
        PyMem_Free(self.pool)
        PyMem_Free(self.arena)
        PyMem_Free(self.layers)

    cdef int set_layer(self, int fd, wsc_layer* layer) except -1:
        cdef wsc_layer** grown
        cdef int size
        if fd < 0 or (layer == NULL and fd >= self.layers_size):
            return 0  # there is no descriptor, or nothing to forget
        if fd >= self.layers_size:
            size = max(fd + 1, 2 * self.layers_size)
            grown = <wsc_layer**>reallocate(self.layers, size * sizeof(wsc_layer*))
            if grown == NULL:
                raise MemoryError("no memory for the layer of a connection")
            memset(grown + self.layers_size, 0, (size - self.layers_size) * sizeof(wsc_layer*))
            self.layers = grown
            self.layers_size = size
        self.layers[fd] = layer
        return 0

    cdef int attach(self, int threads) except -1:
        # The bound method is a cycle only while attached.
        self.flush_callback = self.flush if self.loop_context.loop is not None else None
        self.scheduled = False
        if self.loop_context.loop is None:
            self.end_threads()
        elif not self.has_threads and threads:
            self.has_threads = True
            self.threads = wsc_pool_open(threads)
        return 0

    cdef int end_threads(self) noexcept:
        if self.has_threads:
            self.has_threads = False
            self.threads = 0
            wsc_pool_close()
        return 0

    cdef int forget(self) except -1:
        self.end_threads()
        self.end_batch()
        self.dirty.clear()
        return 0

    cdef int make_up(self) except -1:
        return self.schedule() if PyList_GET_SIZE(self.dirty) and not self.scheduled else 0

    cdef int tell_losses(self, bint told) except -1:
        self.limits.evicted = <PyObject*>self.evicted if told else NULL
        return 0

    cdef list taken(self):
        """The frames that were dropped to make room since the last call."""
        # A finalizer that sends would take frames of another call.
        cdef bint collecting = PyGC_Disable()
        try:
            return list(self.evicted)
        finally:
            self.evicted.clear()
            if collecting:
                PyGC_Enable()

    cdef int mark(self, Sink sink) except -1:
        """The sink's outbox is not empty: it takes part in the next flush, unless blocked."""
        if sink.dirty_at >= 0 or sink.blocked:
            return 0
        self.dirty.append(sink)  # first, since it may find no memory
        sink.dirty_at = PyList_GET_SIZE(self.dirty) - 1
        if not self.scheduled:
            return self.schedule()
        return 0

    cdef int schedule(self) except -1:
        cdef object loop = self.loop_context.loop
        cdef object sink
        if loop is not None:
            self.scheduled = True  # first: Python runs in the loop, and may come back here
            try:
                self.loop_context.call_soon(self.flush_callback)
            except BaseException:
                self.scheduled = False
                if not loop.is_closed():
                    raise
                while PyList_GET_SIZE(self.dirty):  # so that the next send comes here too
                    sink = self.dirty.pop()
                    if sink is not None:
                        (<Sink>sink).dirty_at = -1
                raise HubStoppedError("the loop of the hub is closed") from None
        return 0

    cdef int unmark(self, Sink sink) except -1:
        """The sink takes no part in any flush until it is marked again (rule 4)."""
        if sink.dirty_at >= 0:
            assert self.dirty[sink.dirty_at] is sink
            self.dirty[sink.dirty_at] = None
            sink.dirty_at = -1
        return 0

    cdef int set_blocked(self, Sink sink, bint blocked) except -1:
        """Whether the transport holds bytes of this sink."""
        sink.blocked = blocked
        if not blocked:
            self.stalled.discard(sink)
            return 0
        self.stalled.add(sink)
        self.unmark(sink)
        return self.detach_if_batched(sink)

    # --- the batch ---

    cdef bint in_batch(self, Sink sink) except -1:
        """Whether it is a member of the set that the batch is for."""
        if self.batch_items is None:
            return False
        if self.batch_set is None:
            return sink.slot >= 0
        return sink.memberships is not None and self.batch_set in sink.memberships

    cdef bint begin_batch(self, list items, object members, Sent* sent) except -1:
        cdef Py_ssize_t busy = PyList_GET_SIZE(self.dirty) + len(self.stalled)
        cdef Py_ssize_t size = PyList_GET_SIZE(items)
        cdef Sink sink
        if busy * self.batch_share > size:
            return False
        if (<Sink>PyList_GET_ITEM(items, 0)).fd < 0:
            return False  # mostly that means another's TLS for all
        self.batch_set = members
        self.batch_frames = []
        self.batch_forms = []
        self.batch_detached = []
        self.batch_bytes = 0
        self.batch_sent = sent
        self.batch_items = items
        try:
            for sink in [*self.dirty, *self.stalled]:
                if sink is not None and not sink.detached and self.in_batch(sink):
                    self.set_detached(sink)
        except BaseException:
            self.forget_batch()
            raise
        return True

    cdef bint join_batch(
        self, list items, object members, Sent* sent, list skipped, bytes frame, list forms
    ) except -1:
        """A broadcast to a set: whether the frame is in its batch now.

        Members that are `detached` get it from the caller. None of `skipped` is in the batch.
        """
        cdef Py_ssize_t size = PyBytes_GET_SIZE(frame)
        cdef Py_ssize_t count
        cdef Sink sink
        if self.batch_items is None:
            if not self.begin_batch(items, members, sent):
                return False
        else:
            count = PyList_GET_SIZE(self.batch_frames)
            if (
                self.batch_items is not items
                or PyList_GET_SIZE(self.batch_detached) * self.batch_share > PyList_GET_SIZE(items)
                # An outbox would refuse the frame, or one send would not take it.
                or count and (
                    count >= min(self.limits.messages, <Py_ssize_t>SEND_IOVS)
                    or self.batch_bytes + size > min(self.limits.nbytes, <Py_ssize_t>SEND_MAX)
                )
            ):
                return False
        if skipped is not None:
            for sink in skipped:
                self.detach_if_batched(sink)
        self.batch_forms.append(forms)  # one too many, where there is no memory for the frame
        self.batch_frames.append(frame)
        self.batch_bytes += size
        return True

    cdef list batch_cache(self, Py_ssize_t index):
        """Where the forms of a frame are kept."""
        if self.batch_forms[index] is None:
            self.batch_forms[index] = [None] * FORMS
        return self.batch_forms[index]

    cdef PyObject* form_in(self, list forms, bytes frame, int form) except NULL:
        if forms[form] is None:
            if form > AWARE:
                frame = <bytes>self.form_in(forms, frame, AWARE)
            forms[form] = self.needs.form_of(frame, form)
        return PyList_GET_ITEM(forms, form)

    cdef PyObject* form_or_plain(self, list forms, bytes frame, int form) except NULL:
        try:
            return self.form_in(forms, frame, form)
        except MemoryError:
            if form >= AWARE:
                raise
            return <PyObject*>frame  # it will do too

    cdef PyObject* batch_form(self, Py_ssize_t index, int form) noexcept:
        # The frame as a member of this form gets it; borrowed from the batch. NULL: there is no
        # memory for it.
        if form:
            try:
                return self.form_in(self.batch_cache(index), self.batch_frames[index], form)
            except MemoryError:
                if form >= AWARE:
                    return NULL
                # as it is, it will do too
        return PyList_GET_ITEM(self.batch_frames, index)

    cdef bint copy_to_outbox(self, Sink sink) except -1:
        """Puts the batch into a member's own outbox; False: there is no memory."""
        cdef Py_ssize_t i
        cdef bint marked = True
        cdef PyObject* frame
        for i in range(PyList_GET_SIZE(self.batch_frames)):
            frame = PyList_GET_ITEM(self.batch_frames, i)
            if sink.form:
                frame = self.batch_form(i, sink.form)
            # The batch is within the bounds of an outbox, but for the head lines of aware clients.
            if frame == NULL or outbox_push(
                &sink.box, &BOUNDLESS, &self.counters, frame, NULL, RUN_NORMAL
            ) != PUSHED:
                return False
        if sink.box.count:
            try:
                self.mark(sink)
            except MemoryError:
                marked = False
        return marked

    cdef int take_apart(self, Sink sink) except -1:
        if sink.detached or not self.in_batch(sink):
            return 0
        if not self.set_detached(sink):
            raise MemoryError(f"no memory for the outbox of client {sink.id!a}")
        return 0

    cdef bint set_detached(self, Sink sink) except -1:
        # No finalizer may broadcast meanwhile.
        cdef bint collecting = PyGC_Disable()
        cdef bint done = False
        try:
            self.enter_batch(sink)
            done = self.copy_to_outbox(sink)
        finally:
            if collecting:
                PyGC_Enable()
        if not done:
            # Some of it may be there, and nothing may be left out in silence.
            self.give_up(sink, ENOMEM)
        return done

    cdef int enter_batch(self, Sink sink) except -1:
        """A member that the batch owes nothing so far."""
        sink.detached = True
        self.batch_detached.append(sink)
        return 0

    cdef int leave_batch(self, Sink sink) except -1:
        """To be called before a sink leaves the set that the batch is for."""
        if not sink.detached:
            self.set_detached(sink)
        sink.detached = False
        self.batch_detached.remove(sink)
        return 0

    cdef int end_batch(self) except -1:
        """To be called before what the batch cannot carry."""
        cdef list items = self.batch_items
        cdef Py_ssize_t failed = 0
        cdef Sink sink
        cdef bint collecting
        if items is None:
            return 0
        collecting = PyGC_Disable()
        try:
            for sink in items:
                if not sink.detached and not self.copy_to_outbox(sink):
                    sink.detached = True
                    failed += 1
        finally:
            self.forget_batch()
            if collecting:
                PyGC_Enable()
        return self.give_up_failed(items, failed)

    cdef int give_up_failed(self, list items, Py_ssize_t failed) except -1:
        """Gives up so many members that are still `detached`; there may be no memory for a list."""
        cdef Py_ssize_t i = PyList_GET_SIZE(items)
        cdef Sink sink
        # Backwards: who leaves is replaced by the last one.
        while failed and i > 0:
            i -= 1
            if i < PyList_GET_SIZE(items) and (<Sink>PyList_GET_ITEM(items, i)).detached:
                sink = <Sink>PyList_GET_ITEM(items, i)
                sink.detached = False
                failed -= 1
                self.give_up(sink, ENOMEM)
        return 0

    cdef int forget_batch(self) except -1:
        cdef Sink sink
        for sink in self.batch_detached:
            sink.detached = False
        self.batch_items = None
        self.batch_set = None
        self.batch_frames = None
        self.batch_forms = None
        self.batch_detached = None
        return 0

    cdef bint prepare_form(self, int form, Outbox* box, Sequence* sequence) noexcept:
        """Prepares the send of the batch in one form, through an outbox that holds it."""
        cdef Py_ssize_t i
        for i in range(box.count):
            box.ring[i] = self.batch_form(i, form)
            if box.ring[i] == NULL:
                return False
        return self.prepare(box, sequence)

    cdef Py_ssize_t plan_batch(self, Py_ssize_t planned) except -1:
        """Adds a job to `planned` for each member that is in the batch; returns the jobs."""
        cdef Sequence sequences[FORMS]
        cdef bint prepared[FORMS]
        cdef PyObject* ring[SEND_IOVS]
        cdef Outbox box
        cdef Py_ssize_t size = PyList_GET_SIZE(self.batch_items)
        cdef int form
        cdef Job* job
        cdef PyObject* sink  # borrowed from the set, which does not change meanwhile
        memset(prepared, 0, sizeof(prepared))
        memset(&box, 0, sizeof(Outbox))
        box.ring = ring
        box.capacity = SEND_IOVS
        box.count = <unsigned int>PyList_GET_SIZE(self.batch_frames)
        self.batch_leaves = False
        self.batch_forms_end = 0
        memset(self.batch_totals, 0, sizeof(self.batch_totals))
        self.batch_at = 0 if box.count else size  # no frame: there was no memory for the first
        while self.batch_at < size and planned < PLAN_JOBS:
            if self.batch_at + AHEAD < size:
                wsc_prefetch(&(<Sink>PyList_GET_ITEM(self.batch_items, self.batch_at + AHEAD)).fd)
            sink = PyList_GET_ITEM(self.batch_items, self.batch_at)
            if (<Sink>sink).fd < 0 or (<Sink>sink).box.count:
                # It writes through its transport, from its own outbox; or something waits there and
                # there was no memory to say so.
                self.batch_leaves = True
            elif not (<Sink>sink).detached:
                form = (<Sink>sink).form
                if not prepared[form]:
                    prepared[form] = self.prepare_form(form, &box, &sequences[form])
                    if not prepared[form]:
                        break
                    self.batch_totals[form] = sequences[form].job.total
                    self.batch_forms_end = max(self.batch_forms_end, form + 1)
                job = &self.jobs[planned]
                job[0] = sequences[form].job
                job.fd = (<Sink>sink).fd
                job.layer = self.layer_at((<Sink>sink).fd)
                job.position = self.batch_at
                job.result = NOT_TRIED
                planned += 1
            self.batch_at += 1
        return planned

    cdef Py_ssize_t settle_batch(
        self, Py_ssize_t first, Py_ssize_t planned, Py_ssize_t* gave_up
    ) except -1:
        """Ends the batch: who did not get all of it has an outbox of its own from here on.

        Args:
            first, planned: the jobs of the batch.
            gave_up: is set to how many members are to be given up (`give_up_failed`).

        Returns:
            the jobs that are left to be settled like others, those before `first` included.
        """
        cdef list items = self.batch_items
        cdef Py_ssize_t kept = first
        cdef Py_ssize_t failed = 0
        cdef Py_ssize_t i
        cdef Job* job
        cdef Sink sink
        self.add_to_sent()
        # First those without a job: the outboxes of the others are empty still.
        for i in range(0 if self.batch_leaves else self.batch_at, PyList_GET_SIZE(items)):
            sink = <Sink>PyList_GET_ITEM(items, i)
            if not sink.detached and (i >= self.batch_at or sink.fd < 0 or sink.box.count):
                self.owe(sink)
                if not self.copy_to_outbox(sink):
                    sink.detached = True
                    failed += 1
        for i in range(first, planned):
            job = &self.jobs[i]
            if job.result == job.total and not wsc_kept(job.layer):
                self.counters.sends += 1
                self.counters.bytes_out += job.total
                self.counters.frames_sent += job.frames
                continue
            sink = <Sink>PyList_GET_ITEM(items, job.position)
            self.owe(sink)
            if not self.copy_to_outbox(sink):
                sink.detached = True
                failed += 1
            elif job.result != NOT_TRIED:
                self.jobs[kept] = job[0]
                self.jobs[kept].position = sink.dirty_at
                kept += 1
        self.forget_batch()
        gave_up[0] = failed
        return kept

    cdef int add_to_sent(self) except -1:
        """The batch is sent: to all members of its set, but for those that are `detached`."""
        cdef Sink sink
        cdef int form
        self.batch_sent.frames += PyList_GET_SIZE(self.batch_frames)
        for form in range(self.batch_forms_end):
            self.batch_sent.nbytes[form] += self.batch_totals[form]
        for sink in self.batch_detached:
            self.owe(sink)
        return 0

    # --- the flush ---

    def flush(self):
        """Sends to each client what it waits for; the loop calls it at the end of its turn.

        Thread-safety: the loop's thread.
        """
        cdef double start = wsc_now()
        cdef double end
        cdef unsigned long long sends = self.counters.sends
        cdef list unfinished
        if PyList_GET_SIZE(self.dirty) == 0 and self.batch_items is None:
            self.scheduled = False
            self.whole_flushes += 1
            return
        self.scheduled = True  # to the end: who is marked meanwhile does not call the loop
        self.counters.flushes += 1
        self.flush_number += 1
        try:
            unfinished = []
            try:
                self.send(start + self.budget, unfinished)
            finally:
                self.finish_all(unfinished)
            if self.through_due:
                self.write_through_all(wsc_now() + self.budget)
        finally:
            self.scheduled = False
            self.compact()
            end = wsc_now()
            if end - start > self.longest_flush:
                self.longest_flush = end - start
            self.flush_seconds.add(end - start)
            # More than there are, where the counters were set to zero in this flush.
            self.flush_clients.add_count(
                self.counters.sends - min(sends, self.counters.sends)
            )
            if PyList_GET_SIZE(self.dirty) or self.batch_items is not None:
                self.schedule()
            else:
                self.whole_flushes += 1

    cdef int send(self, double deadline, list unfinished) except -1:
        """Plans, sends and settles the frames of sinks with a descriptor.

        A plan may not change before it is settled, and Python code may do anything: a finalizer, a
        signal handler. So none runs here; work that needs it goes into `unfinished`.
        """
        cdef Py_ssize_t planned
        cdef Py_ssize_t own
        cdef Py_ssize_t i
        cdef Py_ssize_t failed = 0
        cdef Job* jobs = self.jobs
        cdef list items = self.batch_items
        cdef object failure = None
        cdef double began
        cdef double nbytes = 0
        cdef bint shared
        cdef bint collecting = PyGC_Disable()
        try:
            self.iovs_used = self.pool_used = self.arena_used = 0
            planned = own = self.plan()
            if items is not None:
                planned = self.plan_batch(planned)
            if planned:
                with nogil:
                    began = wsc_now()
                    if self.threads:
                        for i in range(planned):
                            nbytes += jobs[i].total
                    shared = wsc_do_jobs(
                        <wsc_sharing*>self.sharing if self.threads else NULL,
                        send_some, jobs, planned, nbytes, deadline,
                    )
                    began = wsc_now() - began
                self.counters.shared_flushes += shared
                self.send_seconds.add(began)
            if items is not None:
                planned = self.settle_batch(own, planned, &failed)
            for i in range(planned):
                if jobs[i].result != NOT_TRIED:
                    # All that was sent has to be settled, or it would be sent again.
                    try:
                        self.settle(&jobs[i], unfinished)
                    except BaseException as error:
                        failure = error
        finally:
            if collecting:
                PyGC_Enable()
        if failed:
            self.give_up_failed(items, failed)
        if failure is not None:
            raise failure
        return 0

    cdef int finish_all(self, list unfinished) except -1:
        cdef object failure = None
        for sink, rest, error in unfinished:
            try:
                self.finish(sink, rest, error)
            except BaseException as raised:
                failure = raised
        if failure is not None:
            raise failure
        return 0

    cdef Py_ssize_t plan(self) except -1:
        """Fills `jobs` from the dirty list, but for those who write through. Returns the jobs."""
        cdef Sequence recent[RECENT]
        cdef Py_ssize_t recent_count = 0
        cdef Py_ssize_t oldest = 0
        cdef Py_ssize_t planned = 0
        cdef Py_ssize_t position = 0
        cdef Py_ssize_t size = PyList_GET_SIZE(self.dirty)
        cdef Py_ssize_t i
        cdef Sink sink
        cdef Job* job
        cdef Sequence* match
        self.through_due = False
        while position < size and planned < PLAN_JOBS:
            if PyList_GET_ITEM(self.dirty, position) == <PyObject*>None:
                position += 1
                continue
            sink = <Sink>PyList_GET_ITEM(self.dirty, position)
            if sink.fd < 0:
                self.through_due = True
                position += 1
                continue

            job = &self.jobs[planned]
            match = NULL
            for i in range(recent_count):
                if same_sequence(&recent[i], &sink.box):
                    match = &recent[i]
                    break
            if match == NULL:
                if recent_count < RECENT:
                    match = &recent[recent_count]
                    recent_count += 1
                else:
                    match = &recent[oldest]
                    oldest = (oldest + 1) % RECENT
                if not self.prepare(&sink.box, match):
                    break
            job[0] = match.job
            job.fd = sink.fd
            job.layer = self.layer_at(sink.fd)
            job.position = position
            job.result = NOT_TRIED
            planned += 1
            position += 1
        return planned

    cdef bint prepare(self, const Outbox* box, Sequence* sequence) noexcept:
        """Plans what one send takes from the head of an outbox; False: the plan is full."""
        cdef Py_ssize_t total
        cdef unsigned int frames = takable(box, SEND_MAX, &total)
        if (
            self.pool_used + frames > PLAN_FRAMES or self.iovs_used + frames > PLAN_IOVS
            or self.arena_used + COPY_MAX > ARENA_SIZE
        ):
            return False
        sequence.frames = self.pool + self.pool_used
        sequence.job.iov = self.iovs + self.iovs_used
        sequence.job.frames = frames
        sequence.job.total = total
        self.pool_used += frames
        if 1 < frames and total <= COPY_MAX:
            sequence.job.iov_count = 1
            sequence.job.iov.iov_base = self.arena + self.arena_used
            sequence.job.iov.iov_len = total
            join_frames(box, sequence, self.arena + self.arena_used)
            self.arena_used += total
        else:
            sequence.job.iov_count = <int>frames
            gather_frames(box, sequence)
        self.iovs_used += sequence.job.iov_count
        return True

    cdef int settle(self, Job* job, list unfinished) except -1:
        """Takes from the outbox what the kernel has taken."""
        cdef Sink sink = <Sink>PyList_GET_ITEM(self.dirty, job.position)
        cdef Outbox* box = &sink.box
        cdef Py_ssize_t taken = job.result
        cdef Py_ssize_t size
        cdef object rest
        self.counters.sends += 1
        if taken == job.total:
            self.counters.bytes_out += taken
            self.counters.frames_sent += job.frames
            sink.frames_sent += job.frames
            sink.bytes_out += taken
            outbox_take(box, job.frames)
            if wsc_kept(job.layer):
                self.counters.partial_sends += 1
                return self.finish_later(sink, b"", 0, unfinished)
            return self.after_write(sink, unfinished)
        if taken < 0 and taken != WSC_AGAIN:
            return self.finish_later(sink, None, <int>-taken, unfinished)
        if taken < 0:
            taken = 0
        self.counters.partial_sends += 1
        self.counters.bytes_out += taken
        sink.bytes_out += taken
        size = PyBytes_GET_SIZE(<object>outbox_at(box, 0))
        while taken >= size:
            taken -= size
            self.counters.frames_sent += 1
            sink.frames_sent += 1
            outbox_take(box, 1)
            size = PyBytes_GET_SIZE(<object>outbox_at(box, 0))
        rest = <object>outbox_at(box, 0)
        if taken:
            try:
                rest = memoryview(rest)[taken:]
            except MemoryError:
                rest = None
        # It leaves the outbox now, so that nothing can drop, replace or overtake a part of a frame.
        # Until it is with the transport its sink stays in the dirty list, where it counts as dirty.
        outbox_take(box, 1)
        # Without memory nothing may follow what was sent of it.
        return self.finish_later(sink, rest, ENOMEM if rest is None else 0, unfinished)

    cdef int finish_later(self, Sink sink, object rest, int error, list unfinished) except -1:
        try:
            unfinished.append((sink, rest, error))
            return 0
        except MemoryError:
            pass
        return self.finish(sink, rest, error)

    cdef int finish(self, Sink sink, object rest, int error) except -1:
        """The work on a settled sink that may call Python; the sink may have left by now."""
        if error:
            return self.give_up(sink, error)
        if rest is None:
            return self.ran_dry(sink)
        if sink.dirty_at < 0:
            return 0
        return self.hand_over(sink, rest, 1 if len(rest) else 0, len(rest))

    cdef int write_through_all(self, double deadline) except -1:
        """Rule 3, for all who are dirty, in their order."""
        cdef dict joined = {}
        cdef Py_ssize_t i
        cdef Sink sink
        for i in range(PyList_GET_SIZE(self.dirty)):  # who is marked meanwhile has the next turn
            sink = self.dirty[i]
            if sink is not None and sink.fd < 0:
                self.write_through(sink, joined)
                if wsc_now() >= deadline:
                    break
        return 0

    cdef int write_through(self, Sink sink, dict joined) except -1:
        """Rule 3: its frames as one write; equal sequences share the joined bytes."""
        cdef Outbox* box = &sink.box
        cdef Py_ssize_t total
        cdef unsigned int frames = takable(box, TLS_SEND_MAX, &total)
        cdef unsigned int i
        cdef tuple key
        cdef list packed
        cdef bytes data
        try:
            if sink.packs:
                # No comprehension: without memory Cython 3.3 gives a temporary in one back twice.
                packed = []
                for i in range(frames):
                    data = sink.pack(<bytes>outbox_at(box, i))
                    packed.append(data)
                data = b"".join(packed)
                total = PyBytes_GET_SIZE(data)
            elif frames == 1:
                data = <bytes>outbox_at(box, 0)
            else:
                key = tuple([<object>outbox_at(box, i) for i in range(frames)])
                data = joined.get(key)
                if data is None:
                    data = b"".join(key)
                    joined[key] = data
        except MemoryError:
            data = None
        if data is None:
            # Bytes in the context cannot be taken back, and other messages wait behind this one.
            return self.give_up(sink, ENOMEM)
        self.counters.sends += 1
        outbox_take(box, frames)
        return self.hand_over(sink, data, frames, total)

    cdef int hand_over(
        self, Sink sink, object data, unsigned int frames, Py_ssize_t size
    ) except -1:
        """Gives `data`, which is or ends `frames` frames, to the transport."""
        cdef bint broken = False
        self.counters.frames_sent += frames
        self.counters.bytes_out += size
        sink.frames_sent += frames
        sink.bytes_out += size
        try:
            # pause_writing comes back from here and sets `blocked`, if the transport keeps any.
            sink.write(data)
        except BaseException as error:
            broken = True
            self.give_up(sink, EPIPE)
            if not isinstance(error, Exception):
                raise
        return 0 if broken else self.after_write(sink, None)

    cdef int give_up(self, Sink sink, int error) except -1:
        self.unmark(sink)
        return sink.broken(error)

    cdef int after_write(self, Sink sink, list unfinished) except -1:
        # A further chunk waits behind everybody else's turn.
        self.unmark(sink)
        if sink.box.count:
            return 0 if sink.blocked else self.mark(sink)
        sink.emptied = self.flush_number
        if not sink.awaited and sink.state != CLOSING:
            return 0
        if unfinished is None:
            return self.ran_dry(sink)
        return self.finish_later(sink, None, 0, unfinished)

    cdef int ran_dry(self, Sink sink) except -1:
        if sink.box.count:
            return 0
        if sink.awaited:
            self.needs.ran_empty(sink)
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


cdef void send_some(void* all_jobs, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    # Of any thread: a job has a client of its own, and is done by one thread.
    cdef Job* jobs = <Job*>all_jobs
    cdef Py_ssize_t i
    for i in range(first, last):
        jobs[i].result = wsc_send_through(
            jobs[i].layer, jobs[i].fd, jobs[i].iov, jobs[i].iov_count
        )
