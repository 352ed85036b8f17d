"""Checks of ids that a publisher is given, without the compiled ones of a hub."""

from __future__ import annotations

import re
from collections.abc import Iterable

from wsc_fast.errors import ValidationError

# The longest id of a room, a user, a client or a message, in characters.
MOST_ID = 256
# As in src_cy/clients.pyx: control characters, line ends, and halves of surrogate pairs.
_forbidden = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]").search


def checked_id(kind: str, value: object) -> str:
    """An id that a hub takes, too.

    Raises:
        ValidationError: it is none.
    """
    if type(value) is not str:
        raise ValidationError(f"a {kind} id must be a str, not {type(value).__name__}")
    if not 0 < len(value) <= MOST_ID:
        raise ValidationError(
            f"a {kind} id must have 1 to {MOST_ID} characters, this one has {len(value)}"
        )
    if _forbidden(value) is not None:
        raise ValidationError(f"a {kind} id may not hold control characters or newlines: {value!a}")
    return value


def checked_users(user_ids: Iterable[str]) -> list[str]:
    """Ids of users.

    Raises:
        ValidationError: one cannot be used, or it is a single str.
    """
    if isinstance(user_ids, str):
        raise ValidationError(f"user_ids must be several ids, not the str {user_ids!a}")
    return [checked_id("user", each) for each in user_ids]
