"""The list of sinks with something to send, and the flush that sends it.

Way of a flush (one turn of the loop; fanout.pyx tells the rules):

    mark      a push made an outbox non-empty: the sink joins the dirty list, a flush is scheduled
    plan      GIL held: per dirty sink a Job; equal pending sequences share one buffer
    send      GIL released once, a plain C loop over the jobs until the time budget is spent; with
              `threads` they share the jobs (send_pool.h)
    settle    GIL held: pop the frames that the kernel took
    finish    hand the rests of half-sent frames to their transports, give up broken sinks, close
              drained ones; then write for sinks without a descriptor

From plan to settle no Python code runs, in which a finalizer or a signal handler might change the
plan. None runs while a set is walked either: the flush is scheduled before it.

The batch: frames that were broadcast to one large set in this tick and are in no outbox yet. Most
members of a set have nothing else waiting, so that all of them wait for the very same frames; these
stand here once, and the flush sends them to each member straight from here.

    join_batch   a broadcast: the frame joins the batch of its set, or begins one
    set_detached a member gets something else, or is left out: it leaves the batch for its own
                 outbox, with the frames that are in the batch by then, and gets later ones there
    leave_batch  a member leaves the set: the same
    plan_batch, settle_batch
                 the flush: a job for each member; one reached in part or not at all is detached
    end_batch    something comes that the batch cannot carry: everybody is detached

So each member has the frames of the batch, or it is `detached`: never both. No batch outlives a
flush, nor a change of its limits.

The hub counts what each client was sent without a look at each client. A flush adds the batch once
to the `Sent` of its set, and takes it from the members that got nothing from it (`owe`). A client
that joins a set takes what the set was sent before from its own count, and adds the set's count
as it leaves (`join_sent`, `leave_sent`). So a client was sent what it has itself and what its sets
have (`ClientRegistry.add_sent`).
"""

cimport cython
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject

from wsc_fast._core.histogram cimport Histogram
from wsc_fast._core.loop_context cimport LoopContext
from wsc_fast._core.outbox cimport FORMS, Counters, Limits, Outbox, Sent, Sink

# Of net.h, which is not installed: a module that cimports this has pointers to it only.
cdef extern from *:
    """
    typedef struct wsc_layer wsc_layer;
    """
    # A layer between the bytes of a connection and the kernel: TLS.
    ctypedef struct wsc_layer:
        pass

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef struct Job:
    # One send. Holds no Python object: the sink's outbox keeps the frames alive until settle.
    iovec* iov          # shared by all jobs of an equal sequence
    wsc_layer* layer    # what it is sent through; NULL: nothing
    int iov_count
    int fd
    unsigned int frames  # whole frames in it
    Py_ssize_t total     # bytes
    Py_ssize_t result    # what the kernel took, or -errno; NOT_TRIED before
    Py_ssize_t position  # of the sink in the dirty list

cdef struct Sequence:
    # A run of frames planned a moment ago, for the next sink that waits for the same ones.
    PyObject** frames   # into the plan's frame pool
    Job job

cdef class FanoutNeeds:
    # The calls that a fan-out makes to its holder, the engine. Without one frames go out as they
    # are, and nothing is told.

    # The frame in another form; from AWARE + 1 on, of the frame in the form AWARE.
    cdef bytes form_of(self, bytes frame, int form)
    # These frames did not reach a client, and the application asked to hear of it.
    cdef int lose(self, Sink sink, list frames, str reason, object error) except -1
    # An outbox has run empty for whose end somebody waits.
    cdef int ran_empty(self, Sink sink) except -1


@cython.final
cdef class Fanout:
    cdef:
        FanoutNeeds needs
        LoopContext loop_context
        Counters counters
        Limits limits
        # Of clients that speak wsc.1: to drop a message of theirs would be a gap that nobody tells
        # of, so that they are closed instead, and recover.
        Limits aware_limits
        list evicted                # what limits.evicted points to; empty between calls
        double budget               # seconds per flush
        list dirty                  # of Sink, with None where one has left
        set stalled                 # of Sink: those that are blocked
        list batch_items            # of Sink: the set that the batch is for; None: there is none
        object batch_set            # the MemberSet of these items; None: all clients of the hub
        readonly list batch_frames  # bytes, in the order of the calls; None: there is no batch
        list batch_forms            # for each frame a list of its forms, or None
        list batch_detached         # of Sink: members with `detached`
        Py_ssize_t batch_bytes      # of the frames
        Py_ssize_t batch_at         # how far in the items the plan came
        bint batch_leaves           # it left out some before that
        # Smaller sets have no batch, and no set has one of which more than one in `batch_share` is
        # detached.
        public Py_ssize_t batch_least
        public Py_ssize_t batch_share
        bint scheduled              # a flush will come, or is under way
        bint through_due            # some who are dirty have no descriptor to write to
        unsigned long long flush_number  # of the flush under way, or of the last one
        unsigned long long whole_flushes  # those that have left nothing for the next turn
        object flush_callback      # bound method, made once
        Job* jobs
        iovec* iovs
        PyObject** pool             # frame pointers of the sequences of one plan
        char* arena                 # copies of short sequences of one plan
        wsc_layer** layers          # by descriptor, borrowed from transports; NULL: plain
        int layers_size
        Py_ssize_t iovs_used
        Py_ssize_t pool_used
        Py_ssize_t arena_used
        readonly double longest_flush  # seconds
        Sent sent                   # from batches for all clients of the hub
        Sent* batch_sent            # `Sent` of the set that the batch is for
        Py_ssize_t batch_totals[FORMS]  # bytes that the flush under way sends in each form
        int batch_forms_end         # behind the highest of these forms
        int threads                 # beside the loop's, for the send phase
        bint has_threads            # the pool was opened, and is to be closed
        double[24] sharing          # a wsc_sharing of send_pool.h
        Histogram flush_seconds
        Histogram send_seconds  # of the part of a flush without the GIL
        Histogram flush_clients

    # Binds to the loop of `loop_context`, or to none, and asks for so many threads.
    cdef int attach(self, int threads) except -1
    cdef int end_threads(self) noexcept
    # The loop is gone, and with it what was to be sent: no call of either.
    cdef int forget(self) except -1
    # Schedules the flush for which there was no memory when it was due.
    cdef int make_up(self) except -1
    # How many members wait for the frames of the batch.
    cdef inline Py_ssize_t count_batched(self) noexcept:
        if self.batch_items is None:
            return 0
        return len(self.batch_items) - len(self.batch_detached)
    # Whether somebody wants to hear of what is dropped or not sent.
    cdef inline bint tells_losses(self) noexcept:
        return self.limits.evicted != NULL
    cdef int tell_losses(self, bint told) except -1
    # Whether what was queued for a sink before this flush had begun may still wait here.
    cdef inline bint may_wait(self, Sink sink, unsigned long long flush_number) noexcept:
        return sink.blocked or (sink.box.count != 0 and sink.emptied <= flush_number)
    cdef list taken(self)
    cdef int mark(self, Sink sink) except -1
    cdef int unmark(self, Sink sink) except -1
    cdef int schedule(self) except -1
    # To be called before a set is walked: asyncio's loop is Python, where a finalizer or a signal
    # handler may change the set. Once a flush is due, marking calls the loop no more.
    cdef inline int schedule_before_walk(self, list items) except -1:
        return 0 if self.scheduled or not items else self.schedule()
    cdef int set_blocked(self, Sink sink, bint blocked) except -1
    cdef bint in_batch(self, Sink sink) except -1
    cdef bint join_batch(
        self, list items, object members, Sent* sent, list skipped, bytes frame, list forms
    ) except -1
    cdef bint begin_batch(self, list items, object members, Sent* sent) except -1
    cdef list batch_cache(self, Py_ssize_t index)
    cdef PyObject* batch_form(self, Py_ssize_t index, int form) noexcept
    # The frame in a form other than 0; kept in `forms`, from which it is borrowed.
    cdef PyObject* form_in(self, list forms, bytes frame, int form) except NULL
    # The same; the frame itself where there is no memory and the form only saves bytes.
    cdef PyObject* form_or_plain(self, list forms, bytes frame, int form) except NULL
    cdef bint copy_to_outbox(self, Sink sink) except -1
    cdef int take_apart(self, Sink sink) except -1
    cdef inline int detach_if_batched(self, Sink sink) except -1:
        # To be called before anything is queued for one sink alone. Mostly there is no batch.
        return 0 if self.batch_items is None else self.take_apart(sink)
    cdef bint set_detached(self, Sink sink) except -1
    cdef int enter_batch(self, Sink sink) except -1
    cdef int leave_batch(self, Sink sink) except -1
    cdef int end_batch(self) except -1
    cdef int forget_batch(self) except -1
    cdef int give_up_failed(self, list items, Py_ssize_t failed) except -1
    cdef bint prepare_form(self, int form, Outbox* box, Sequence* sequence) noexcept
    cdef Py_ssize_t plan_batch(self, Py_ssize_t planned) except -1
    cdef Py_ssize_t settle_batch(
        self, Py_ssize_t first, Py_ssize_t planned, Py_ssize_t* gave_up
    ) except -1
    cdef int send(self, double deadline, list unfinished) except -1
    cdef Py_ssize_t plan(self) except -1
    cdef bint prepare(self, const Outbox* box, Sequence* sequence) noexcept
    cdef int settle(self, Job* job, list unfinished) except -1
    cdef int finish_later(self, Sink sink, object rest, int error, list unfinished) except -1
    cdef int finish_all(self, list unfinished) except -1
    cdef int finish(self, Sink sink, object rest, int error) except -1
    cdef int write_through_all(self, double deadline) except -1
    cdef int write_through(self, Sink sink, dict joined) except -1
    cdef int hand_over(
        self, Sink sink, object data, unsigned int frames, Py_ssize_t size
    ) except -1
    cdef int give_up(self, Sink sink, int error) except -1
    # The layer that a descriptor is sent through, of its transport; NULL: it is plain. To be told
    # of each descriptor before anything is sent to it: who had the number before may have had one.
    cdef int set_layer(self, int fd, wsc_layer* layer) except -1
    cdef inline wsc_layer* layer_at(self, int fd) noexcept:
        return self.layers[fd] if fd < self.layers_size else NULL
    # Nothing may be queued for it any more, or what waits for that is told; `unfinished` (None: it
    # may be told at once) takes it, where that would call Python.
    cdef int after_write(self, Sink sink, list unfinished) except -1
    cdef int ran_dry(self, Sink sink) except -1
    cdef int compact(self) except -1
    # The batch under way is not sent to this member from the batch.
    cdef inline void owe(self, Sink sink) noexcept:
        sink.frames_sent -= PyList_GET_SIZE(self.batch_frames)
        sink.bytes_out -= self.batch_totals[sink.form]
    cdef int add_to_sent(self) except -1


# The sink joins, or leaves, a set that was sent so much.
cdef inline void join_sent(const Sent* sent, Sink sink) noexcept:
    sink.frames_sent -= sent.frames
    sink.bytes_out -= sent.nbytes[sink.form]


cdef inline void leave_sent(const Sent* sent, Sink sink) noexcept:
    sink.frames_sent += sent.frames
    sink.bytes_out += sent.nbytes[sink.form]
