"""The scripts that the server runs: the files *.lua in this folder, and how they are sent.

`operations.lua` is what `write.lua` and `read.lua` share; it is put before each of them. All else
that a script has to know comes with each call, as KEYS and ARGV: no text is put into a script.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Script:
    """A script as EVALSHA and EVAL want it."""

    def __init__(self, text: str) -> None:
        self.text = text
        # The name that Redis gives it. The hash protects no secret.
        self.sha: str = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Scripts(NamedTuple):
    """The scripts that the server runs: for a batch of writes, and for one of reads."""

    write: Script
    read: Script


@cache
def load() -> Scripts:
    """The scripts; read from their files when the first store is made."""
    folder = files("wsc_fast.stores.redis")
    shared, write, read = (
        (folder / f"{name}.lua").read_text("utf-8") for name in ("operations", "write", "read")
    )
    return Scripts(Script(shared + write), Script(shared + read))
