"""Ways to say something: errors in one line, text of others that cannot do harm, consoles, JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console


class Failure(Exception):
    """The command cannot go on; the text is for the user.

    Attributes:
        code: the exit code of the process.
    """

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


class UsageFailure(Failure):
    """An argument or an option cannot be used as it was given."""

    def __init__(self, text: str) -> None:
        super().__init__(text, 2)


def console(*, stderr: bool = False) -> Console:
    """A console of rich's, with colours on a terminal alone, and none where NO_COLOR is set."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def say(text: str, style: str = "dim") -> None:
    """Writes a line about the work to standard error."""
    from rich.text import Text

    console(stderr=True).print(Text(harmless(text, newlines=False), style=style))


def complain(text: str) -> None:
    """Writes one red line to standard error."""
    say(f"wsc-fast: {text}", "red")


def harmless(text: str, *, newlines: bool = True) -> str:
    """Text of a peer's, with its control characters escaped, so that it cannot steer a terminal."""
    kept = "\n\t" if newlines else "\t"
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in kept else ascii(each)[1:-1] for each in text
    )


def write_json(value: Any) -> None:
    """Writes one line of JSON to standard output, at once."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def reason_of(error: BaseException) -> str:
    """An exception in a few words, without the names of classes and the numbers of errors."""
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        return str(error.strerror)
    return str(error).partition("\n")[0] or type(error).__name__


def unwrapped(text: str) -> str:
    """Paragraphs as help takes them: each on one line, to be wrapped as wide as the terminal is."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))
