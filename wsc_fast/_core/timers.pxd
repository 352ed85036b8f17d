"""Very many timers at the cost of one: what is due in one hundredth of a second fires together.

Rules
1.  Setting and taking back are O(1), and firing is O(n). The loop has one timer of ours, for the
    first slot. A slot without items is not kept; its key in the heap may stay, but no more than
    half of the keys are such ones.
2.  Items of one slot fire in the order of setting, each slot after the ones before it.
3.  In a turn of the loop firing takes `budget` seconds, and fires `most` items. The rest waits for
    the next turn, so that the loop reads its sockets in between.
4.  Where the loop comes late it stood still: what the timers wait for may lie in a socket. uvloop
    runs timers before it looks. So the loop takes TURNS turns first, and only then does fire what
    was due when the lateness showed.
5.  An item set while others fire is never part of the same firing, however early its time is. So
    `fire` may raise, and may set, cancel and clear.

States of `called`: the loop is to call us at `next`, or in one of its next turns. In the latter
case, and while items fire, `next` is `passed`: every slot that is set then is later, and leaves
the call alone.

Ownership: a Timers holds its items until they fire or are taken back, and the loop holds the Timers
while an item is due.
"""

cdef class Timers:
    cdef:
        object fire                # of one item
        readonly object loop       # what `attach` was given
        object attachment          # is new with each `attach`; a call for a former one does nothing
        object timer               # the loop's handle, a TimerHandle or a Handle; None without one
        object context             # that `fire` is called in
        readonly dict slots        # slot -> dict of items, in the order of setting
        list order                 # a heap of the keys of `slots`, and of some that are gone
        bint called
        long long next             # no slot before this one needs another call
        long long passed           # the last slot whose time had come when we last looked
        int turns                  # of the loop that are still to pass before we fire
        double budget              # seconds of a turn
        Py_ssize_t most            # items of a turn
        dict firing                # the items of a slot that is due which have not fired
        object line                # an iterator over what `firing` held at first
        long long slot             # of `firing`

    # A slot is how many hundredths of a second of the loop's clock have passed, rounded up.
    cpdef long long set(self, item, double when) except -1
    cpdef int cancel(self, item, long long slot) except -1
    cdef int schedule(self) except -1
    cdef int forget_gone(self) except -1
    cdef bint take_next(self) except -1
