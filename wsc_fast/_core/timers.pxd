"""Very many timers at the cost of one: what is due in one hundredth of a second fires together.

Setting and taking back are O(1); the loop has one timer, for the first that is due.
"""

cdef class Timers:
    cdef:
        object fire
        object loop                # what `attach` was given
        object timer               # the loop's, or None
        object context
        readonly dict slots        # slot -> dict of items, in the order of setting
        list order                 # a heap of the keys of `slots`
        long long next             # the slot that `timer` is set for

    # A slot is how many hundredths of a second of the loop's clock have passed, rounded up.
    cpdef long long set(self, item, double when) except -1
    cpdef int cancel(self, item, long long slot) except -1
    cdef int schedule(self) except -1
