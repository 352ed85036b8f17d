"""The distribution of values: counts in buckets, each twice as wide as the one before it.

A bucket is found by one instruction, so that a flush can count its clients and its time.
"""

cimport cython

cdef extern from *:
    """
    /* How many bits a number has; 0 has none. */
    static inline int wsc_bits(unsigned long long number) {
        return number ? 64 - __builtin_clzll(number) : 0;
    }
    """
    int wsc_bits(unsigned long long number) noexcept nogil

cdef enum:
    # Bounded ones, of `first`, twice that, and so on; and one for all above.
    BOUNDS = 20


@cython.final
cdef class Histogram:
    cdef:
        readonly double first      # bound of the first bucket
        double total               # of all values
        unsigned long long counts[BOUNDS + 1]

    # One value; what is no number or below 0 counts as 0.
    cdef inline void add(self, double value) noexcept:
        cdef int bucket = 0
        self.total += value
        if value > self.first:
            bucket = min(BOUNDS, wsc_bits(<unsigned long long>min(value / self.first, 1e15)))
        self.counts[bucket] += 1

    # One whole number, of a histogram whose first bound is 1.
    cdef inline void add_count(self, unsigned long long number) noexcept:
        self.total += number
        self.counts[min(BOUNDS, wsc_bits(number - 1) if number else 0)] += 1
