"""Claims of hubs on offline stores: a store that one hub closes is closed for all."""

from __future__ import annotations

import weakref
from typing import Protocol

from wsc_fast.errors import ConfigError
from wsc_fast.stores.base import OfflineStore


class Claimant(Protocol):
    """A user of a store. At most one of them may be in use."""

    def is_in_use(self) -> bool:
        """Whether its hub runs, or has not run yet."""


_claimants: weakref.WeakKeyDictionary[OfflineStore, weakref.ref[Claimant]] = (
    weakref.WeakKeyDictionary()
)


def claim(store: OfflineStore, claimant: Claimant) -> None:
    """Notes the user of a store.

    Args:
        store: an offline store.
        claimant: its user from now on.

    Raises:
        ConfigError: another hub uses it.

    Thread-safety: the loop's thread.
    """
    try:
        reference = _claimants.get(store)
        if (other := None if reference is None else reference()) is None or not other.is_in_use():
            _claimants[store] = weakref.ref(claimant)
            return
    except TypeError:
        return  # it cannot be a key
    raise ConfigError(
        f"store {store!r} belongs to another hub, expected one of its own: two store objects "
        "may share a file or a server"
    )
