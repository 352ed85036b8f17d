"""The hubs of a process in the child of a fork: they are stopped ones there.

The connections and the loop are the parent's. In place of each socket of a hub there is /dev/null,
so that nothing that still happens to the parent's transports in this process (they are ended when
the interpreter ends, for one) reaches the socket, or the epoll that both processes share, and so
that a connection that the parent closes is closed.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from typing import Protocol


class Forked(Protocol):
    """Something that runs, and does not in the child of a fork."""

    def descriptors(self) -> Iterable[int]:
        """Of its sockets; below 0 for those that may be closed already."""

    def forked(self) -> None:
        """This is the child: it lets go of all that it had."""


# The hubs that start or run, to be told of a fork.
_running: weakref.WeakSet[Forked] = weakref.WeakSet()


def watch(running: Forked) -> None:
    """Has it hear of forks from now on."""
    _running.add(running)


def unwatch(stopped: Forked) -> None:
    """Undoes `watch`."""
    _running.discard(stopped)


def _after_fork() -> None:
    for each in list(_running):
        _replace(each.descriptors())
        each.forked()


def _replace(descriptors: Iterable[int]) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        if descriptor >= 0:
            os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


os.register_at_fork(after_in_child=_after_fork)
