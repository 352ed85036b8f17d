from collections.abc import Callable
from datetime import datetime, tzinfo
from enum import IntEnum
from typing import TypeVar

from typing_extensions import disjoint_base

_T = TypeVar("_T")

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
