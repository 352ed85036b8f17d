"""Identity: who a connection is, as `authenticate` says."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from wsc_fast._core.clients import check_id
from wsc_fast.errors import ValidationError


class Identity(msgspec.Struct, frozen=True):
    """The identity of a client, as `authenticate` returns it.

    Attributes:
        user_id: the user; may have several clients.
        client_id: id of this client; None lets the hub make one. A connection whose client_id is
            taken by another one of the same user replaces it (close code 4409), also in a hub that
            is full. Where it is another user's, it is refused as if `authenticate` returned None.
        user_data: the first content of `client.user_data`. The dict is copied, its values are not.
        expires_at: when the identity ends, in seconds since the epoch: the client is then closed
            with 4401. One that has ended already is refused as if `authenticate` returned None.
            None: never.
        device_id: the device that the client runs on, the same at each of its connections; see
            ACKConfig(per="device"). None: it is not known.
    """

    user_id: str
    client_id: str | None = None
    user_data: dict[Any, Any] | None = None
    expires_at: float | None = None
    device_id: str | None = None


def check_identity(identity: object) -> None:
    """Raises ValidationError for what is no identity, or one that no client can have."""
    if not isinstance(identity, Identity):
        raise ValidationError(
            f"authenticate must return Identity or None, not {type(identity).__name__}"
        )
    if identity.user_data is not None and not isinstance(identity.user_data, dict):
        raise ValidationError(
            f"user_data must be a dict or None, not {type(identity.user_data).__name__}"
        )
    expires_at = identity.expires_at
    if expires_at is not None and not (
        type(expires_at) in (int, float) and 0 <= expires_at < math.inf
    ):
        raise ValidationError(
            f"expires_at must be seconds since the epoch or None, not {expires_at!r}"
        )
    check_id("user", identity.user_id)
    if identity.client_id is not None:
        check_id("client", identity.client_id)
    if identity.device_id is not None:
        check_id("device", identity.device_id)
