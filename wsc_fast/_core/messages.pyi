from collections.abc import Callable
from datetime import datetime, tzinfo
from enum import IntEnum, StrEnum
from typing import TypeVar

from typing_extensions import disjoint_base

_T = TypeVar("_T")
_M = TypeVar("_M")

@disjoint_base
class HubMessageEncoder:
    """See messages.pxd. The arguments are what messages.py has under these names; `mended` and
    `check_data` raise ValidationError.
    """
    def __init__(
        self,
        HubMessage: type[_T],
        Priority: type[IntEnum],
        datetime: type[datetime],
        utc: tzinfo,
        longest_id: int,
        encode_into: Callable[[_T, bytearray], None],
        mended: Callable[[_T], _T],
        check_data: Callable[[object], None],
    ) -> None: ...
    def encode(self, message: object) -> bytes:
        """The message as it goes on the wire.

        Args:
            message: a HubMessage.

        Returns:
            bytes: UTF-8 JSON.

        Raises:
            ValidationError: a field cannot be sent; the text names it and what was expected.

        Thread-safety: any thread.
        """

@disjoint_base
class MessageForms:
    """See messages.pxd. The arguments are what messages.py has under these names."""
    def __init__(
        self,
        encoder: HubMessageEncoder,
        ACKMessage: type[_M],
        AckStatus: type[StrEnum],
        *,
        decode_acknowledgement: Callable[[str], object],
        decode_hub_message: Callable[[bytes], _T],
        is_same_message: Callable[[bytes, bytes], bool],
        to_ack_message: Callable[[_T], _M],
        to_hub_message: Callable[[_M, str], _T],
        no_acknowledgement: tuple[type[Exception], ...],
    ) -> None: ...
