"""Token buckets: of what a client sends, and of who connects; see rates.pxd."""

from libc.math cimport INFINITY

cdef class Allowance:
    """The messages and bytes that one client may still send (internal)."""

    cdef double count(self, const Rates* rates, Py_ssize_t size, double now) noexcept:
        if rates.messages > 0:
            fill(&self.messages, rates.messages, now)
            self.messages.tokens -= 1
        if rates.nbytes > 0:
            fill(&self.nbytes, rates.nbytes, now)
            self.nbytes.tokens -= size
        return self.owed(rates, now)

    cdef int give_back(self, const Rates* rates, Py_ssize_t size) noexcept:
        if rates.messages > 0:
            self.messages.tokens += 1
        if rates.nbytes > 0:
            self.nbytes.tokens += size
        return 0

    cdef double owed(self, const Rates* rates, double now) noexcept:
        cdef double seconds = -INFINITY
        if rates.messages > 0:
            seconds = owed(&self.messages, rates.messages, now)
        if rates.nbytes > 0:
            seconds = max(seconds, owed(&self.nbytes, rates.nbytes, now))
        return seconds

    cdef str limit_met(self, const Rates* rates):
        if rates.messages > 0 and self.messages.tokens < 0:
            return "message_rate"
        return "byte_rate"


cdef Allowance new_allowance(const Rates* rates, double now):
    cdef Allowance allowance = Allowance.__new__(Allowance)
    allowance.messages.tokens = burst(rates.messages)
    allowance.nbytes.tokens = burst(rates.nbytes)
    allowance.messages.counted_at = allowance.nbytes.counted_at = now
    return allowance


cdef class TokenBucket:
    """A count of what may still come in (internal).

    Args:
        rate: tokens that come a second, above 0.
        now: seconds, on the clock of all calls; the bucket is full then.

    Thread-safety: the loop's thread.
    """

    def __cinit__(self, double rate, double now):
        self.bucket.tokens = burst(rate)
        self.bucket.counted_at = now

    @property
    def counted_at(self):
        """float: when a token was last asked for."""
        return self.bucket.counted_at

    def take(self, double rate, double now, double keep=0.0):
        """Takes a token if there is one.

        Args:
            rate: as it was made with.
            now: seconds.
            keep: a share of what the bucket holds at most, which has to be left.

        Returns:
            bool: whether there was one.
        """
        fill(&self.bucket, rate, now)
        if self.bucket.tokens < min(1 + keep * burst(rate), burst(rate)):
            return False
        self.bucket.tokens -= 1
        return True

    def is_full(self, double rate, double now):
        """Whether it would be full if it were asked: it is as good as a new one then.

        Args:
            rate: as it was made with.
            now: seconds.

        Returns:
            bool: whether it would.
        """
        return self.bucket.tokens + (now - self.bucket.counted_at) * rate >= burst(rate)
