"""The registry of a hub's open clients: by their ids, by their users, and one by one.

    admit      a connection is a client from here on; its id must be free
    expel      out of every set, so that nothing more is queued for it
    closing    of those in the closing handshake, until their transports are gone

Ownership: the registry holds a reference to each client in it, and to the set of each user.
"""

cimport cython
from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject

from wsc_fast._core.fanout cimport Fanout
from wsc_fast._core.outbox cimport Sink


@cython.final
cdef class ClientRegistry:
    cdef:
        Fanout fanout
        dict by_id         # id -> Sink, the open ones
        dict users         # user id -> MemberSet, of clients whose user_id is not their id
        list everyone      # of Sink, the open ones, dense; Sink.slot is the place in it
        set closing        # of Sink: those in the closing handshake, or being aborted
        Py_ssize_t sweep_at          # where the heartbeat goes on in `everyone`

    cdef int admit(self, Sink sink) except -1
    cdef int expel(self, Sink sink) except -1
    # ClientNotFoundError where there is none.
    cdef Sink find(self, object client_id)
    # The client of a user whose id is the user's too, and which stands in no set of users; or None.
    cdef inline Sink named_as(self, str user_id):
        cdef PyObject* found = PyDict_GetItemWithError(self.by_id, user_id)
        if found == NULL or (<Sink>found).user_id != user_id:
            return None
        return <Sink>found
    cdef inline bint has_user(self, str user_id) except -1:
        return user_id in self.users or self.named_as(user_id) is not None
    cdef list of_user(self, str user_id)
    cdef list user_ids(self)
    # Adds what the sets of a client were sent while it was in them (fanout.pxd).
    cdef int add_sent(self, Sink sink, long long* frames, long long* nbytes) except -1
    cdef int sweep(self, double share, double now) except -1
