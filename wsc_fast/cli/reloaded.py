"""The serving process of `serve --reload` and `--workers`, which ends with the watching one.

    python -m wsc_fast.cli.reloaded DESCRIPTOR PATIENCE ARGUMENTS...

DESCRIPTOR is the end for reading of a pipe whose other end the watching process alone has open. So
its end is the end of that process, also where nobody could tell, as after SIGKILL.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from wsc_fast.cli.app import run


def stop_with(tie: int, patience: float) -> None:
    """Stops this process as a signal does, once the watching one has ended.

    Args:
        tie: the end for reading of its pipe.
        patience: seconds that the hub may take to stop; then it is ended.
    """
    os.read(tie, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(patience)
    os._exit(1)


if __name__ == "__main__":
    _tie = int(sys.argv[1])
    os.set_inheritable(_tie, False)
    threading.Thread(target=stop_with, args=(_tie, float(sys.argv[2])), daemon=True).start()
    raise SystemExit(run(sys.argv[3:]))
