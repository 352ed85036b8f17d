"""The registry of open clients; see clients.pxd."""

import re

from cpython.dict cimport PyDict_GetItemWithError
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject

from wsc_fast._core.fanout cimport Fanout, join_sent, leave_sent
from wsc_fast._core.members cimport MemberSet
from wsc_fast._core.outbox cimport Sink

from wsc_fast.errors import ClientNotFoundError, ValidationError

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object)
    void* PyUnicode_1BYTE_DATA(object)

# The longest id of a client, a user or a room, in characters.
cdef Py_ssize_t ID_MAX = 256
cdef object find_forbidden = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
).search


cdef bint is_plain(str text) noexcept:
    """Whether it is visible ASCII and blanks, as nearly all ids are."""
    cdef const unsigned char* data
    cdef Py_ssize_t i
    if not PyUnicode_IS_COMPACT_ASCII(text):
        return False
    data = <const unsigned char*>PyUnicode_1BYTE_DATA(text)
    for i in range(len(text)):
        if not 0x20 <= data[i] < 0x7F:
            return False
    return True


def check_id(str kind, value):
    """Checks the id of a client, a user or a room.

    Args:
        kind: what it is the id of, for the error's text.
        value: a non-empty str of at most 256 characters without control characters and line ends.

    Returns:
        str: the value.

    Raises:
        ValidationError: it is not that.

    Thread-safety: any thread.
    """
    if type(value) is not str:
        raise ValidationError(f"a {kind} id must be a str, not {type(value).__name__}")
    if not 0 < len(value) <= ID_MAX:
        raise ValidationError(
            f"a {kind} id must have 1 to {ID_MAX} characters, this one has {len(value)}"
        )
    if not is_plain(value) and find_forbidden(value) is not None:
        raise ValidationError(f"a {kind} id may not hold control characters or newlines: {value!a}")
    return value


cdef class ClientRegistry:
    """The open clients of one hub, and those that close (internal)."""

    def __cinit__(self, Fanout fanout not None):
        self.fanout = fanout
        self.by_id = {}
        self.users = {}
        self.everyone = []
        self.closing = set()

    cdef int admit(self, Sink sink) except -1:
        """Makes a connection one of the hub's clients; its id must be free.

        Where memory runs out it is in some of the sets, and `expel` takes it out of them.
        """
        cdef MemberSet user
        self.everyone.append(sink)
        sink.slot = PyList_GET_SIZE(self.everyone) - 1
        join_sent(&self.fanout.sent, sink)
        if self.fanout.batch_items is self.everyone:
            self.fanout.enter_batch(sink)
        if sink.user_id != sink.id:
            user = self.users.get(sink.user_id)
            if user is None:
                user = MemberSet.__new__(MemberSet, sink.user_id)
                self.users[sink.user_id] = user
            user.add(sink)
        self.by_id[sink.id] = sink
        return 0

    cdef int expel(self, Sink sink) except -1:
        """Takes a client out of every set, so that nothing more is queued for it; idempotent."""
        cdef Sink last
        cdef MemberSet user
        if sink.slot < 0:
            return 0
        if self.fanout.in_batch(sink):
            self.fanout.leave_batch(sink)
        if sink.memberships is not None:
            for members in list(sink.memberships):
                (<MemberSet>members).discard(sink)
        user = self.users.get(sink.user_id)
        if user is not None and user.size() == 0:
            del self.users[sink.user_id]
        # Compared by identity: the id may belong to the connection that replaced this one.
        if self.by_id.get(sink.id) is sink:
            del self.by_id[sink.id]
        # Last, so that what did not come to its end, for want of memory, is done the next time.
        last = <Sink>self.everyone.pop()
        if last is not sink:
            self.everyone[sink.slot] = last
            last.slot = sink.slot
        sink.slot = -1
        leave_sent(&self.fanout.sent, sink)
        return 0

    cdef Sink find(self, object client_id):
        cdef PyObject* found = NULL
        if type(client_id) is str:
            found = PyDict_GetItemWithError(self.by_id, client_id)
        if found == NULL:
            check_id("client", client_id)
            raise ClientNotFoundError(f"no connected client has the id {client_id!a}")
        return <Sink>found

    cdef list of_user(self, str user_id):
        """The open clients of a user; empty where there is none."""
        cdef MemberSet user = self.users.get(user_id)
        cdef list found = [] if user is None else list(user.items)
        cdef Sink sink = self.named_as(user_id)
        if sink is not None:
            found.append(sink)
        return found

    cdef list user_ids(self):
        cdef set users = set(self.users)
        cdef Sink sink
        for sink in self.everyone:
            users.add(sink.user_id)
        return list(users)

    cdef int add_sent(self, Sink sink, long long* frames, long long* nbytes) except -1:
        cdef MemberSet members
        if sink.slot >= 0:
            frames[0] += self.fanout.sent.frames
            nbytes[0] += self.fanout.sent.nbytes[sink.form]
        if sink.memberships is not None:
            for members in sink.memberships:
                if members.sent != NULL:
                    frames[0] += members.sent.frames
                    nbytes[0] += members.sent.nbytes[sink.form]
        return 0

    cdef int sweep(self, double share, double now) except -1:
        """Gives the next `share` (0 to 1) of the clients their heartbeat check."""
        cdef Py_ssize_t turns = <Py_ssize_t>(PyList_GET_SIZE(self.everyone) * share) + 1
        cdef Sink sink
        for _ in range(min(turns, PyList_GET_SIZE(self.everyone))):
            # A check may take its client out of the list, so the place is bounded each time.
            if self.sweep_at >= PyList_GET_SIZE(self.everyone):
                self.sweep_at = 0
                if PyList_GET_SIZE(self.everyone) == 0:
                    return 0
            # Held: the check may call the application, which may do away with the client.
            sink = <Sink>PyList_GET_ITEM(self.everyone, self.sweep_at)
            self.sweep_at += 1
            sink.check_alive(now)
        return 0
