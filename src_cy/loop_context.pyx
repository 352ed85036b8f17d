"""The loop of a hub, and the context of what the hub does by itself; see loop_context.pxd."""

from cpython.contextvars cimport PyContext_Copy, PyContext_CopyCurrent, PyContext_New

cdef class LoopContext:
    """The loop that a hub runs on, and the context of what the hub does by itself (internal)."""

    def __cinit__(self):
        self.variables = PyContext_New()

    cdef int attach(self, object loop) except -1:
        self.loop = loop
        self.variables = PyContext_CopyCurrent() if loop is not None else PyContext_New()
        return 0

    # A copy for each call: a loop that runs inside a callback could not enter a context twice.

    cdef object call_soon(self, object callback):
        return self.loop.call_soon(callback, context=PyContext_Copy(self.variables))

    cdef object call_later(self, double seconds, object callback):
        return self.loop.call_later(seconds, callback, context=PyContext_Copy(self.variables))
