"""Messages that are sent until they are acknowledged: the part of it that every message takes.

    start      checks and encodes a message, enlists it in its mailbox and sends it
    take       an acknowledgement has come
    settle     the end of a message, whatever it was: its waiters are told

A mailbox is what is not acknowledged yet of one user; with ACKConfig(per="device") of one device.
A client is live in its mailbox, and then gets what is sent at once, or it is catching up: then it
has a `Replay` (delivery/replay.py), whose line holds what it gets next, in order. So the state of
one client changes nothing for the others.

A message whose user is away is the business of delivery/acks.py: its class `Acks` holds the table,
and is the `TableOwner` that the table asks.

Ownership: a mailbox holds its pending messages, and the timers hold those that were sent. Each
PendingACK holds its AckTable, and knows its followers weakly.
"""

cimport cython

from wsc_fast._core.engine cimport Engine
from wsc_fast._core.messages cimport MessageForms
from wsc_fast._core.outbox cimport Sink
from wsc_fast._core.timers cimport Timers

cdef class AckTable

cdef class PendingACK:
    cdef:
        object __weakref__
        readonly str id
        readonly str user_id
        public object status       # AckStatus
        int sent_count             # how often it was sent
        AckTable _table
        object waiter              # a Future of the first waiter, or None
        list more_waiters          # of further waiters, or None
        double deadline            # of the loop's clock; set by the first send
        double due                 # when its timer is to do something
        readonly long long _slot   # of the timer, or -1
        int retries
        unsigned long long sent_at  # Fanout.flush_number when it was last queued
        list followers             # weak, of PendingACK that end as this one does; or None
        PendingACK leader          # the one that it follows, or None
        public object _group       # delivery/devices.py: Group; None: it is alone
        public object _children    # of the message to a user: a list, one for each device; or None
        # Of delivery/acks.py too:
        public str _mailbox        # key of its mailbox
        public str _origin         # the hub that has sent it, where that is another one; or None
        readonly str _client_id    # None: for all clients of the mailbox
        readonly bytes _data       # as it goes on the wire
        object key                 # what it stands under in `Mailbox.pending`, or None
        object _given_timeout      # seconds, as it was given; None: ACKConfig.timeout
        public int _priority
        public bint _stored        # it is in the store
        public object _storing     # a Future: it will be
        readonly object _error     # what awaiting it raises

    cdef int tell(self, waiter) except -1
    cpdef bint done(self) noexcept
    cpdef bint _is_open(self) noexcept
    cdef double timeout(self) noexcept

cdef class Mailbox:
    # The messages that one user, or one device, has not acknowledged.
    cdef:
        readonly str key
        readonly str user_id
        readonly dict pending      # PendingACK.key -> PendingACK, in the order of sending
        dict namesakes             # message id -> list of further messages of this id; mostly None
        readonly Py_ssize_t directed  # how many of `pending` are for one client
        readonly Py_ssize_t nbytes  # of `pending`, as `weight` counts
        readonly dict replays      # Client -> CatchUp, of those that are catching up
        public object unstored     # a deque of those of `pending` that the store lacks, or None
        public bint unstored_stale  # an append has failed: `unstored` is to be listed anew
        # Made when it is first asked for.
        dict _lapsed

cdef class TableOwner:
    pass

cdef class CatchUp:
    pass


@cython.final
cdef class AckTable:
    cdef:
        Engine engine
        MessageForms forms           # of the engine
        readonly TableOwner owner  # Acks
        readonly bint has_store    # the messages of users who are away are kept
        public set elsewhere       # users who are here and on other hubs; None: there are none
        public object counters     # AckCounters
        public object loop
        readonly dict mailboxes    # key, mostly a user id -> Mailbox
        readonly set replaying     # the users of whose clients one is catching up
        readonly set starved       # CatchUps that read on once fewer bytes are pending
        readonly bint per_device   # each device has a mailbox of its own
        readonly Timers timers
        readonly Py_ssize_t count  # of what is pending
        readonly Py_ssize_t nbytes
        public bint stopped
        double retry_interval
        double default_timeout
        int max_retries
        # Bounds, in messages and in bytes: of the hub, and of one mailbox.
        Py_ssize_t most
        Py_ssize_t most_bytes
        Py_ssize_t mailbox_most
        Py_ssize_t mailbox_most_bytes

    cpdef Mailbox mailbox_of(self, str key, str user_id)
    cpdef bint is_here(self, str user_id) except -1
    cdef PendingACK new(
        self, str mailbox, str user_id, str client_id, str message_id, bytes data, int priority,
        timeout,
    )
    cpdef PendingACK start(self, recipient, message, bint to_client)
    cdef PendingACK send(self, str user_id, Sink client, message)
    cpdef bytes encoded(self, str user_id, message)
    cpdef PendingACK send_to_mailbox(
        self, str key, str user_id, Sink client, message, bytes data
    )
    cpdef str key_of(self, Sink client)
    cpdef list clients_of(self, str mailbox, str user_id)
    cdef int check_bounds(self, Mailbox mailbox, str user_id) except -1
    cdef PendingACK known(self, Mailbox mailbox, str message_id, Sink client, bytes data)
    cdef bint leave_to_namesake(self, Mailbox mailbox, PendingACK pending) except -1
    cpdef list of_id(self, Mailbox mailbox, object message_id)
    cdef list waiting_for(self, Mailbox mailbox, Sink client, object message_id)
    cpdef int check_same(self, PendingACK pending, bytes data) except -1
    cpdef bint has_clients(self, str mailbox, str user_id) except -1
    cpdef int enlist(self, Mailbox mailbox, PendingACK pending) except -1
    cpdef int delist(self, Mailbox mailbox, PendingACK pending) except -1
    cdef list audience(self, PendingACK pending)
    cpdef bint counts_from(self, PendingACK pending, Sink client) except -1
    cpdef int send_live(self, Mailbox mailbox, PendingACK pending) except -1
    cpdef bint send_now(self, PendingACK pending, Sink client) except -1
    cpdef object send_plain(self, Sink client, bytes data, int priority)
    cdef bint retransmit(self, Mailbox mailbox, PendingACK pending, double now) except -1
    cdef int begin(self, PendingACK pending) except -1
    cdef int schedule(self, PendingACK pending, double now) except -1
    cdef int unschedule(self, PendingACK pending) except -1
    cpdef bint has_memory(self) noexcept
    cdef int wake_starved(self) except -1
    cpdef int settle(self, PendingACK pending, status, error) except -1
    cpdef int give_up(self, PendingACK pending, error) except -1
    cpdef int release(self, Mailbox mailbox) except -1


cdef inline Py_ssize_t weight(PendingACK pending) noexcept:
    # Bytes that a pending message takes, about: its data, and what there is beside it.
    return len(pending._data) + PENDING_OVERHEAD

cdef enum:
    PENDING_OVERHEAD = 512
