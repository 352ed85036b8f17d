"""Messages that are sent until they are acknowledged: the part of it that every message takes.

    start      checks and encodes a message, enlists it with its user and sends it
    take       an acknowledgement has come
    settle     the end of a message, whatever it was: its waiters are told

What else becomes of one, while its user is away or has a backlog, is in delivery/acks.py, whose
class `Acks` is the Python half of AckTable.
"""

from wsc_fast._core.engine cimport Engine
from wsc_fast._core.outbox cimport Sink
from wsc_fast._core.timers cimport Timers

cdef class AckTable

cdef class PendingACK:
    cdef:
        object __weakref__
        readonly object id
        readonly object user_id
        public object status       # AckStatus
        readonly int attempts
        AckTable _acks
        object _message            # ACKMessage; None for one that was read from the store
        object waiter              # a Future, of who waits; None where nobody does
        list more_waiters          # of those who came later, or None
        double deadline            # of the loop's clock; set by the first send
        double due                 # when its timer is to do something
        readonly long long _slot   # of the timer, or -1
        int retries
        # Of delivery/acks.py too:
        readonly object _client_id  # None: for all clients of the user
        readonly bytes _data       # as it goes on the wire
        readonly object _timeout   # seconds, as it was given
        public int _priority
        public long long _order    # among what was sent to its user
        public long long _walk     # the replay that sent it last
        public bint _stored        # it is in the store
        public object _storing     # a Future: it will be
        object error               # what awaiting it raises

    cdef int tell(self, waiter) except -1
    cpdef bint done(self) noexcept
    cpdef bint _is_open(self) noexcept

cdef class UserQueue:
    # What one user has not acknowledged.
    cdef:
        readonly dict pending      # id -> PendingACK, in the order of sending
        public object unstored     # a deque of those of them that are not in the store, or None
        public object replay       # a Task, or None
        public object target       # the client that the replay is for; None: all of them
        public bint from_store
        public Py_ssize_t held     # how many of `line` are without acknowledgement
        public long long walk      # number of the replay
        public Py_ssize_t out      # sent by it, and not settled
        public object progress     # an Event, set when something was settled, or None
        # Made when they are first asked for.
        object _line
        dict _lapsed
        set _acknowledged

cdef class AckTable:
    cdef:
        readonly Engine _hub
        readonly object config     # ACKConfig
        public object store        # OfflineStore, or None
        public object counters     # AckCounters
        public object loop
        readonly dict _users       # user id -> UserQueue
        readonly set replaying     # the users whose messages are held back
        readonly object _parked    # (user id, id) -> PendingACK of who is away; weak
        readonly Timers _timers
        public Py_ssize_t count    # of what is pending
        public bint _stopped
        public long long _order
        double retry_interval
        int max_retries

    cdef PendingACK new(
        self, user_id, client_id, message, message_id, bytes data, int priority, timeout
    )
    cpdef PendingACK start(self, recipient, message, bint to_client)
    cdef PendingACK send(self, str user_id, Sink client, message)
    cpdef bint _transmit(self, PendingACK pending) except -1
    cpdef bint _sent(self, PendingACK pending, bint taken) except -1
    cpdef int _begin(self, PendingACK pending) except -1
    cdef int schedule(self, PendingACK pending, double now) except -1
    cpdef int _unschedule(self, PendingACK pending) except -1
    cpdef int _settle(self, PendingACK pending, status, error) except -1
    cpdef int _give_up(self, PendingACK pending, error) except -1
    cpdef int _release(self, str user_id, UserQueue queue) except -1
