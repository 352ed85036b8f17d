"""The one buffer that all connections of a hub read into; see read_buffer.pxd."""

from cpython.bytearray cimport PyByteArray_AS_STRING

cdef class ReadBuffer:
    """The memory that all connections of a hub read into (internal)."""

    def __cinit__(self):
        self.least = READ_SMALL

    cdef int make(self, Py_ssize_t size) except -1:
        cdef bytearray memory = bytearray(READ_HEADROOM + max(size, <Py_ssize_t>READ_WHOLE))
        self.view = memoryview(memory)[READ_HEADROOM:READ_HEADROOM + size]
        self.whole_view = memoryview(memory)[READ_HEADROOM:READ_HEADROOM + READ_WHOLE]
        self.small_view = self.view[:READ_SMALL]
        self.least_view = self.view[:self.least]
        self.area = <unsigned char*>PyByteArray_AS_STRING(memory) + READ_HEADROOM
        self.in_use = False
        return 0

    cdef int set_least(self, Py_ssize_t least) except -1:
        self.least = least
        if self.view is not None:
            self.least_view = self.view[:least]
        return 0

    cdef int change(self) except -1:
        return self.make(len(self.view))
