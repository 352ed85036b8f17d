"""The bounded queue of frames that a client has not yet got, and the sending half of a client.

Way of a frame through an outbox:

    outbox_push            hub calls: behind everything of its priority or a higher one
    outbox_at, outbox_take flush: the head of the queue, in order, whole frames only
    outbox_close           the close frame: behind everything, past the bounds, once
    outbox_clear           the client has gone, or was too slow

A frame that the kernel took in part leaves the outbox at once: its rest belongs to the transport
(see fanout.pyx). So everything here may be dropped or replaced without tearing a frame.

Ownership: an outbox owns its rings, and a reference to each frame and key in them, from the push
until the frame is taken, dropped or replaced. `outbox_at` returns a borrowed reference.
"""

from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from picows.picows cimport WSListener

from wsc_fast._core.memory cimport flag

cdef enum:
    # Runs of an outbox, lowest priority first; Priority.LOW.value - 1 and so on.
    RUN_LOW = 0
    RUN_NORMAL = 1
    RUN_HIGH = 2
    RUN_CRITICAL = 3
    RUN_CONTROL = 4  # pings and pongs: ahead of all data, never refused, never evicted
    RUNS = 5

cdef enum:
    DISCONNECT = 0
    DROP_OLDEST = 1
    DROP_NEWEST = 2

cdef enum:
    PUSHED = 0
    REFUSED = 1  # the bound is reached and the policy made no room
    NO_MEMORY = 2
    MADE_ROOM = 3  # queued, and others were dropped for it: they are in `evicted`

cdef enum:
    # States of a client, in their only order.
    CONNECTING = 0     # accepted, not yet announced to the application
    OPEN = 1
    CLOSING = 2        # a close frame is queued or sent; no data in either direction any more
    CLOSED = 3         # the connection is gone

cdef enum:
    # The forms of a frame: 0 is the frame as it was encoded, 9 to 15 are compressed with so many
    # window bits. AWARE is the form for clients that speak wsc.1 (docs/wire.md), with a head line
    # before the payload; AWARE + 9 to AWARE + 15 are that one, compressed.
    AWARE = 16
    FORMS = 32

cdef struct Outbox:
    PyObject** ring            # frames (bytes), owned; NULL until the first push
    # The conflation keys of the same places (str), owned, NULL where there is none. Apart,
    # and NULL as a whole until a key is used, so that the walk of a broadcast touches half as much.
    PyObject** keys
    unsigned int capacity      # of both, a power of two
    unsigned int head
    unsigned int count
    unsigned int keyed         # entries with a key
    unsigned int runs[RUNS]    # entries per priority; the ring holds the highest priority first
    unsigned int conflated     # entries replaced since the client connected; stops at its highest
    Py_ssize_t nbytes
    unsigned long long dropped  # messages dropped here since the client connected

cdef struct Sent:
    # Sent to a set of clients from its batches (fanout.pxd).
    long long frames
    long long nbytes[FORMS]  # to members with each form, since forms differ in length

cdef struct Limits:
    unsigned int messages
    Py_ssize_t nbytes
    int policy
    # A list that takes what is dropped to make room, owned by the Fanout; NULL where nobody asks.
    PyObject* evicted

cdef struct Counters:
    # Counts of sends. The loop's thread alone writes them; get_stats reads each.
    unsigned long long deliveries         # frames put into an outbox
    unsigned long long frames_sent        # frames given to the kernel or the transport
    unsigned long long bytes_out
    unsigned long long flushes
    unsigned long long sends
    unsigned long long partial_sends
    unsigned long long shared_flushes     # that were open to threads
    unsigned long long conflated
    unsigned long long control_replaced   # pings and pongs
    unsigned long long dropped_oldest
    unsigned long long dropped_newest

# The sending half of a connection: what fanout.pyx and members.pyx need to know of a client.
cdef class Sink(WSListener):
    cdef:
        # First what a push touches, so that it meets few cache lines.
        flag skip                  # left out of the broadcast under way
        flag detached              # gets nothing from the batch of its set (fanout.pxd)
        unsigned char form         # of the frames that it gets: see FORMS
        flag packs                 # compresses by itself, as it is flushed
        unsigned char state
        flag blocked               # the transport holds bytes: only the transport may write
        flag awaited               # `FanoutNeeds.ran_empty` is called when its outbox has run empty
        int fd                     # to send to; -1 where its transport sends, and once it is gone
        int dirty_at               # where it stands in the dirty list, or -1
        int slot                   # where it stands in the set of all clients, or -1
        Outbox box
        unsigned long long emptied  # number of the flush in which its outbox last ran empty
        # Frames and bytes given to the kernel or the transport, without those that were sent from
        # the batches of its sets: see fanout.pxd. Both may be below 0.
        long long frames_sent
        long long bytes_out
        dict memberships           # MemberSet -> int, the slot there; None until the first
        readonly str id
        readonly str user_id

    # Hands bytes to the transport, which keeps what the kernel does not take.
    cdef int write(self, object data) except -1
    # The outbox is empty and nothing is blocked; called by the flush in state CLOSING.
    cdef int drained(self) except -1
    # The frame as it goes out, for one that `packs`: called once for each, in the order of sending.
    cdef bytes pack(self, bytes frame)
    # The kernel refused to take more (EPIPE and the like).
    cdef int broken(self, int error) except -1
    # The outbox was full in a broadcast and the policy is "disconnect": for this frame.
    cdef int too_slow(self, PyObject* frame) except -1
    # The loop is gone, and the transport with it: no call of either.
    cdef int forget(self) except -1
    # It sends much: stops reading until `take_turn`; returns whether it did.
    cdef bint wait_for_turn(self) except -1
    cdef int take_turn(self) except -1
    # The heartbeat's turn, at `now` on the coarse monotonic clock.
    cdef int check_alive(self, double now) except -1

cdef int outbox_push_slow(
    Outbox* box, const Limits* limits, Counters* counters,
    PyObject* frame, PyObject* key, int run,
) noexcept
cdef int outbox_append(Outbox* box, PyObject* frame, PyObject* key, int run) noexcept
cdef int outbox_close(Outbox* box, PyObject* frame) noexcept
cdef void outbox_take(Outbox* box, unsigned int frames) noexcept
cdef unsigned int outbox_clear(Outbox* box) noexcept
cdef void outbox_trim(Outbox* box) noexcept
cdef unsigned int outbox_data_count(const Outbox* box) noexcept
cdef list outbox_data(const Outbox* box)


cdef inline PyObject** outbox_slot(const Outbox* box, unsigned int index) noexcept nogil:
    return &box.ring[(box.head + index) & (box.capacity - 1)]


cdef inline PyObject* outbox_at(const Outbox* box, unsigned int index) noexcept nogil:
    # The frame at this place of the queue; borrowed.
    return outbox_slot(box, index)[0]


cdef inline int outbox_push(
    Outbox* box, const Limits* limits, Counters* counters,
    PyObject* frame, PyObject* key, int run,
) noexcept:
    """Queues a frame behind all of its priority or a higher one; takes a reference to it.

    The straight case is here, so that the broadcast's loop holds no call: normal priority, no keys,
    nothing of low priority waiting, and room in the bounds and the ring.
    """
    cdef Py_ssize_t size = PyBytes_GET_SIZE(<object>frame)
    if (
        run == RUN_NORMAL and key == NULL and box.keys == NULL
        and box.count < box.capacity and box.runs[RUN_LOW] == 0
        and box.count < limits.messages and box.nbytes + size <= limits.nbytes
    ):
        outbox_slot(box, box.count)[0] = frame
        Py_INCREF(<object>frame)  # given back by outbox_take, outbox_clear or an eviction
        box.count += 1
        box.runs[RUN_NORMAL] += 1
        box.nbytes += size
        return PUSHED
    return outbox_push_slow(box, limits, counters, frame, key, run)
