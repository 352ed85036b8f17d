"""The epoll descriptor of a hub, which its loop watches as one descriptor.

    watch     a descriptor is watched for something else from now on
    run       the loop says that some are ready: each is told, for as long as the turn may take
    lose      a descriptor is to end in a turn of its own, outside of what runs now
    close     all of them end, and the epoll descriptor with them

Events that a turn has no time for are kept, and come first in the next one, so that nobody is
overtaken twice. All are level-triggered: an event that was told in vain is told again, and one
that came for a descriptor whose number another one has by now costs a read in vain.

A loop inside a callback may call `run` within `run`: it goes on behind the event under way.

Ownership: `places` holds a reference to each object from `add` to its end. Each Watched owns its
descriptor, but for an Entrance, whose socket is Python's. The loop holds the Poller while it
watches the descriptor.
"""

from libc.stdint cimport uint32_t

from wsc_fast._core.engine cimport Engine

cdef class Watched:
    cdef:
        Poller poller
        int descriptor       # -1 once it is closed
        uint32_t watched     # the events that the kernel tells of; 0: none
        Watched next_lost    # the one behind it in the line of `lose`, or None

    # Has the kernel tell of other events; 0: of none.
    cdef int watch(self, uint32_t events) except -1
    # For the subclass: these events came.
    cdef int ready(self, uint32_t events) except -1
    # For the subclass: `ready` has failed with this error.
    cdef int failed(self, object error) except -1
    # For the subclass: its turn to end has come; what it owns is closed by then.
    cdef int end(self) except -1
    # For the subclass: closes what it owns, and tells nobody: the loop is not there any more.
    cdef int drop(self) except -1


cdef class Poller:
    cdef:
        Engine engine
        object loop
        readonly object answerer  # of stream.pxd: Answerer, or None
        object callback      # `run`, bound: a cycle until it is closed
        int poll             # the descriptor; -1 once it is closed
        list places          # by descriptor: Watched or None
        void* events         # of accepting.h: wsc_event
        int at               # the next one of these
        int count
        bint anew            # the loop may run inside itself
        public double budget  # seconds of a turn
        double deadline      # of the turn under way
        Watched first_lost   # the line of those that are to end; a line takes no memory
        Watched last_lost
        bint losing          # the loop is to call `run_losses`
        bint dear            # the event under way may have taken long: the clock is read next

    cdef int add(self, Watched watched) except -1
    cdef int remove(self, Watched watched) except -1
    cdef int drop_all(self) except -1
    cdef int lose(self, Watched watched) except -1
    cdef int end_next(self) except -1
    cdef int call_losses(self) except -1
    cdef int report(self, object error) except -1
    # Whether the turn of the loop under way has taken its time.
    cdef bint is_late(self) noexcept
