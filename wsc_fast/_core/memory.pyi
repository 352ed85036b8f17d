def live_objects() -> dict[str, int]:
    """Counts the objects of the engine that live, in the debug build (internal).

    Returns:
        dict[str, int]: by class, without those of which there is none; empty in other builds.

    Thread-safety: any thread.
    """

def fail_allocation(number: int) -> bool:
    """Has one of the engine's next allocations fail, in the debug build (internal).

    Args:
        number: which one, from 1; 0: none.

    Returns:
        bool: whether one that was asked for earlier has not come yet.

    Thread-safety: any thread.
    """
