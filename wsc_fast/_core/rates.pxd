"""Token buckets, which bound how much of something there may be a second.

A bucket fills at its rate, up to as much as comes in one second (at least one). Each message takes
tokens out of it. Two classes use it:

    Allowance     the messages and bytes that a client may still send. A message is counted when it
                  is there, so that a bucket may fall below zero, and is then owed (pacing.pyx)
    TokenBucket   the connections that may come in: one is let in only if the bucket has a token
                  (upgrade/limits.py)

Rates are handed in, since a running hub may take new ones. Ownership: an Allowance holds
the timer of its client's pause, which holds the client until `end_timers`.
"""

cimport cython

cdef enum:
    # The action on a client that sends faster than its rate.
    RATE_CLOSE = 0
    RATE_DROP = 1
    RATE_PAUSE = 2

cdef struct Rates:
    # Messages and bytes that each client may send a second; 0 is no bound.
    double messages
    double nbytes
    int action
    bint bounded               # one of them is
    bint pausing               # its being met pauses, and the rest of the read waits

cdef struct Bucket:
    double tokens              # below 0: they are owed
    double counted_at          # seconds, on the clock of the bucket's user


cdef inline double burst(double rate) noexcept:
    # The most that a bucket holds.
    return max(rate, 1)


cdef inline void fill(Bucket* bucket, double rate, double now) noexcept:
    bucket.tokens = min(bucket.tokens + (now - bucket.counted_at) * rate, burst(rate))
    bucket.counted_at = now


cdef inline double owed(const Bucket* bucket, double rate, double now) noexcept:
    # Seconds from `now` until nothing is owed; below 0 where nothing is.
    return -bucket.tokens / rate - (now - bucket.counted_at)


@cython.final
cdef class Allowance:
    cdef:
        Bucket messages
        Bucket nbytes
        object timer           # while its client is not read, since it owes; else None

    # Counts a message of this many bytes; the seconds that are owed for it, as `owed`.
    cdef double count(self, const Rates* rates, Py_ssize_t size, double now) noexcept
    # The message was not heard, and so is not owed.
    cdef int give_back(self, const Rates* rates, Py_ssize_t size) noexcept
    cdef double owed(self, const Rates* rates, double now) noexcept
    # The name of the setting that was met.
    cdef str limit_met(self, const Rates* rates)


# With full buckets.
cdef Allowance new_allowance(const Rates* rates, double now)


@cython.final
cdef class TokenBucket:
    cdef Bucket bucket
