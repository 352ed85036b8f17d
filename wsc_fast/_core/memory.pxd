"""The engine's own memory, and what the debug build knows of it.

The debug build counts the objects that live, so that a test can tell that nothing is left, and
fails an allocation on request, so that a test can tell that nothing breaks. In other builds neither
is compiled, and these are Python's own functions.
"""

from cpython.mem cimport PyMem_Calloc, PyMem_Malloc, PyMem_Realloc

cdef extern from *:
    """
    #ifdef WSC_DEBUG
    #define WSC_IS_DEBUG 1
    #else
    #define WSC_IS_DEBUG 0
    #endif
    """
    bint WSC_IS_DEBUG

cdef extern from * nogil:
    # A bint that takes one byte in an object, where a bint takes four.
    ctypedef bint flag "_Bool"

cdef enum:
    # The classes that are counted; memory.pyx has their names.
    A_SINK = 0
    AN_ENGINE = 1
    A_MEMBER_SET = 2
    A_CODEC = 3
    A_CONTEXT = 4
    A_HEAD = 5
    A_GUARD = 6
    A_FANOUT = 7
    A_POLLER = 8
    A_STREAM = 9
    KINDS = 10

cdef struct Known:
    long live[KINDS]
    unsigned long failing  # which of the allocations to come fails, from 1; 0: none

# Of the whole process. Read and written with the GIL.
cdef Known known


cdef inline void born(int kind) noexcept:
    # In __cinit__; its partner is `died` in __dealloc__.
    if WSC_IS_DEBUG:
        known.live[kind] += 1


cdef inline void died(int kind) noexcept:
    if WSC_IS_DEBUG:
        known.live[kind] -= 1


cdef inline bint denied() noexcept:
    # Whether this is the allocation that is to fail.
    if WSC_IS_DEBUG and known.failing:
        known.failing -= 1
        return known.failing == 0
    return False


cdef inline void* allocate(size_t size) noexcept:
    return NULL if denied() else PyMem_Malloc(size)


cdef inline void* allocate_zeros(size_t count, size_t size) noexcept:
    return NULL if denied() else PyMem_Calloc(count, size)


cdef inline void* reallocate(void* memory, size_t size) noexcept:
    return NULL if denied() else PyMem_Realloc(memory, size)
