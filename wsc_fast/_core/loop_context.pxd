"""The loop that a hub runs on, and the context in which the hub itself is called.

The engine's own work (flushes, turns of readers, timers of rates) may not run in the context of the
client that happened to cause it. So the loop calls it in a copy of the context in which the hub
was started.

Ownership: the parts of an engine share one LoopContext. It holds the loop while the hub runs, and
no callable: the loop holds each until it has called it.
"""

cimport cython


@cython.final
cdef class LoopContext:
    cdef:
        readonly object loop       # the running asyncio loop, or None
        # contextvars.Context, as it was where the hub was started; each client's callbacks begin
        # with a copy of it.
        object variables

    # Binds to a running loop, or to none.
    cdef int attach(self, object loop) except -1
    # As the loop's own, but in a context that is no client's.
    cdef object call_soon(self, object callback)
    cdef object call_later(self, double seconds, object callback)
