"""The names of hubs on a bus: a part for operators, and a random part.

The random part tells apart the hubs of one host, and the runs of one program, so that no lease and
no word is taken for that of another hub. A name has no dot and no space: it stands in keys of the
bus before the one, and in stored messages before the other.
"""

from __future__ import annotations

import os
import re

from wsc_fast.messages import IdFactory

# As `HubConfig.node_name` takes them.
_OTHERS = re.compile(r"[^0-9A-Za-z_-]")
_MOST = 63

_new_id = IdFactory(9)


def new_name(node_name: str) -> str:
    """A name that no other hub has.

    Args:
        node_name: the part for operators; "" stands for the name of the host.
    """
    return f"{node_name or host_label()}-{_new_id()}"


def host_label() -> str:
    """The name of the host up to its first dot, in the characters that a name may have."""
    label = os.uname().nodename.partition(".")[0]
    return _OTHERS.sub("-", label)[:_MOST] or "hub"
