"""The calls that users make of a Hub, compiled: the first base class of Hub.

Each method checks its thread, and then calls the engine, or a part of it, in C. The engine has the
work and no public name; this class has the public names and no work.

Ownership: the face owns its engine. The engine refers back to the face, since `Client.hub` gives
it; the garbage collector ends that cycle.
"""

from wsc_fast._core.engine cimport Engine


cdef class Calls:
    cdef readonly Engine _engine
