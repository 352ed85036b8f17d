"""What every server here does first: reads its arguments, takes all the descriptors it may."""

import resource
import sys


def arguments() -> tuple[str, int]:
    """The mode and the port; raises RLIMIT_NOFILE to its hard limit on the way."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if len(sys.argv) != 3 or sys.argv[1] not in ("fanout", "room", "echo"):
        raise SystemExit(f"usage: {sys.argv[0]} fanout|room|echo PORT")
    return sys.argv[1], int(sys.argv[2])
