"""Who has something to send, and the flush that sends it.

Way of a flush (one turn of the loop; fanout.pyx tells the rules):

    mark      a push made an outbox non-empty: the sink joins the dirty list, a flush is scheduled
    plan      GIL held: per dirty sink a Job; equal pending sequences share one buffer
    send      GIL released once, a plain C loop over the jobs until the time budget is spent
    settle    GIL held: pop what was taken, hand the rest of a half-sent frame to the transport
"""

from cpython.object cimport PyObject

from wsc_fast._core.outbox cimport Counters, Limits, Sink

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef struct Job:
    # One send. Holds no Python object: the sink's outbox keeps the frames alive until settle.
    iovec* iov          # shared by all jobs of an equal sequence
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

cdef class Fanout:
    cdef:
        Counters counters
        Limits limits
        list witness                # what limits.witness points to; empty between calls
        double budget               # seconds per flush
        readonly object loop        # the running asyncio loop, or None
        list dirty                  # of Sink, with None where one has left
        bint scheduled
        object _flush_callback      # bound method, made once
        Job* jobs
        iovec* iovs
        PyObject** pool             # frame pointers of the sequences of one plan
        char* arena                 # copies of short sequences of one plan
        readonly double longest_flush  # seconds

    # The compressed form of a frame, for engine.pyx.
    cdef bytes twin(self, bytes frame, int window)
    # These frames did not reach a client, and the application asked to hear of it; for engine.pyx.
    cdef int lose(self, Sink sink, list frames, str reason, object error) except -1
    cdef list taken(self)
    cdef int mark(self, Sink sink) except -1
    cdef int unmark(self, Sink sink) except -1
    cdef int attach(self, object loop) except -1
    cdef int schedule(self) except -1
    cdef Py_ssize_t plan(self, double deadline) except -1
    cdef int settle(self, Job* job) except -1
    cdef int write_through(self, Sink sink, dict joined) except -1
    cdef int hand_over(
        self, Sink sink, object data, unsigned int frames, Py_ssize_t size
    ) except -1
    cdef int give_up(self, Sink sink, int error) except -1
    cdef int after_write(self, Sink sink) except -1
    cdef int compact(self) except -1
