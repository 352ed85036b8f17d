"""The one buffer into which the transports of all connections of a hub read.

A transport asks for memory right before it reads, and tells right after that it has read; both are
one step of the loop. So one buffer serves all, and an idle connection holds none. Nothing may point
into it once that step is over.

Ownership: each view keeps the memory. `area` points into the memory of `view`. Code that takes
bytes out of `area` while Python code runs holds a reference to `view`, since `change` replaces
both.
"""

cimport cython

cdef enum:
    # Room before the read buffer for what the last read of a connection left behind: a head or
    # a control frame.
    READ_HEADROOM = 256
    # Bytes that a connection may read at once before its upgrade, and where its rate can pause it.
    READ_SMALL = 8192
    # More than an aiofastnet transport can have received and not handed over: its buffer of
    # 16 records and their heads, and one record that is decrypted.
    READ_WHOLE = 294912


@cython.final
cdef class ReadBuffer:
    cdef:
        object view                # memoryview of what follows the headroom
        object small_view          # memoryview: the first READ_SMALL bytes of `view`
        object least_view          # memoryview: the first `least` bytes of it
        object whole_view          # memoryview of READ_WHOLE bytes from where `view` begins
        unsigned char* area        # where `view` begins
        Py_ssize_t least
        bint in_use                # what is in it is being taken

    # Makes it anew, with a `view` of this many bytes.
    cdef int make(self, Py_ssize_t size) except -1
    cdef int set_least(self, Py_ssize_t least) except -1
    # To be called before anything is put into it while it is in use.
    cdef int change(self) except -1
