"""kosoku's command, with one fault of its 0.1.0 mended.

Its cases 12 and 13 hash what they receive, and a message that comes uncompressed reaches them as a
str with a character per byte. A server may send any message uncompressed (RFC 7692 section 6), and
ours does where compressing would make it longer.
"""

from collections.abc import Callable
from typing import Any

from kosoku._cli import main
from kosoku.cases import CASES


def with_bytes(on_message: Callable[..., None]) -> Callable[..., None]:
    def on_bytes(case: Any, message: str | bytes, binary: bool) -> None:
        on_message(case, message.encode("latin-1") if isinstance(message, str) else message, binary)

    return on_bytes


if __name__ == "__main__":
    for number, case in CASES.items():
        if number.startswith(("12.", "13.")):
            case.onMessage = with_bytes(case.onMessage)
    main()
