from collections.abc import Callable
from datetime import datetime, tzinfo
from enum import IntEnum
from typing import TypeVar

T = TypeVar("T")

class HubMessageEncoder:
    def __init__(
        self,
        HubMessage: type[T],
        Priority: type[IntEnum],
        datetime: type[datetime],
        utc: tzinfo,
        longest_id: int,
        encode_into: Callable[[T, bytearray], None],
        mended: Callable[[T], T],
        check_data: Callable[[object], None],
    ) -> None: ...
    def encode(self, message: object) -> bytes: ...
