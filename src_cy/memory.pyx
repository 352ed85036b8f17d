"""Counts of the engine's live objects, for tests of the debug build (memory.pxd)."""

cdef tuple NAMES = (
    "Sink", "Engine", "MemberSet", "Codec", "Context", "RequestHead", "Guard", "Fanout",
    "Poller", "Stream",
)


def live_objects():
    """Counts the objects of the engine that live, in the debug build (internal).

    Returns:
        dict[str, int]: by class, without those of which there is none; empty in other builds.

    Thread-safety: any thread.
    """
    cdef int kind
    return {NAMES[kind]: known.live[kind] for kind in range(KINDS) if known.live[kind]}


def fail_allocation(unsigned long number):
    """Has one of the engine's next allocations fail, in the debug build (internal).

    Args:
        number: which one, from 1; 0: none.

    Returns:
        bool: whether one that was asked for earlier has not come yet.

    Thread-safety: any thread.
    """
    cdef bint waiting = known.failing != 0
    known.failing = number
    return waiting
