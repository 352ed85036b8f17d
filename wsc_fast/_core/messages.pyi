from datetime import datetime, tzinfo
from enum import IntEnum
from typing import Any

def is_plain(
    fields: tuple[Any, ...],
    longest_id: int,
    Priority: type[IntEnum],
    datetime: type[datetime],
    utc: tzinfo,
) -> bool: ...
