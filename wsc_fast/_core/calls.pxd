"""The calls that users make of a Hub, compiled: the first base class of Hub.

Each method checks its thread, and then calls the engine, or a part of it, in C. The public names
are in this class and the work is in the engine, so that nothing of the engine is a name of a Hub.

Ownership: the face owns its engine. The engine refers back to the face, since `Client.hub` gives
it; the garbage collector ends that cycle.
"""

from wsc_fast._core.engine cimport Engine


cdef class Calls:
    cdef readonly Engine _engine
