def monotonic() -> float:
    """The monotonic clock: `time.monotonic()`, and the seconds that a test has let pass.

    Returns:
        float: seconds since some moment.

    Thread-safety: any thread.
    """

def time() -> float:
    """The wall clock: `time.time()`, and the seconds that a test has let pass.

    Returns:
        float: seconds since 1970, UTC.

    Thread-safety: any thread.
    """

def moved_by() -> float:
    """The seconds by which the clocks are ahead of the machine's.

    Returns:
        float: 0 but in tests.

    Thread-safety: any thread.
    """

def move(seconds: float) -> None:
    """Moves both clocks. For tests, which move the clock of the loop with them.

    Args:
        seconds: how far they are ahead of the machine's from now on; 0 gives them back.

    Thread-safety: any thread.
    """
