"""The clocks of a hub, and how far a test has set them ahead; see clock.pxd."""

from libc.math cimport INFINITY

from time import time as _wall

cdef extern from "net.h" nogil:
    double wsc_now()

passed = 0.0
# When that changed last, by the machine's clock.
cdef double set_at = 0.0


cdef double aged(double seconds) noexcept nogil:
    return INFINITY if wsc_now() - seconds < set_at else seconds


def monotonic():
    """The monotonic clock: `time.monotonic()`, and the seconds that a test has let pass.

    Returns:
        float: seconds since some moment.

    Thread-safety: any thread.
    """
    return wsc_now() + passed


def time():
    """The wall clock: `time.time()`, and the seconds that a test has let pass.

    Returns:
        float: seconds since 1970, UTC.

    Thread-safety: any thread.
    """
    return <double>_wall() + passed


def moved_by():
    """The seconds by which the clocks are ahead of the machine's.

    Returns:
        float: 0 but in tests.

    Thread-safety: any thread.
    """
    return passed


def move(double seconds):
    """Moves both clocks. For tests, which move the clock of the loop with them.

    Args:
        seconds: how far they are ahead of the machine's from now on; 0 gives them back.

    Thread-safety: any thread.
    """
    global passed, set_at
    if seconds != passed:
        passed = seconds
        set_at = wsc_now()
