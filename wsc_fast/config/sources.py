"""Settings out of several sources, the later ones first in rank: default, file, environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from wsc_fast.config.base import Settings
from wsc_fast.config.kinds import kinds_of

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Origin:
    """The place that the value of one setting comes from.

    Attributes:
        source: "default", "file" or "environment".
        place: file and line, or the variable; empty for a default.
    """

    source: str
    place: str


@dataclass(frozen=True)
class Combined(Generic[S]):
    """Settings out of several sources.

    Attributes:
        config: the settings.
        origins: of each of them.
    """

    config: S
    origins: dict[str, Origin]


def combined(
    cls: type[S],
    file: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Combined[S]:
    """The settings of a file, with those of the environment before them.

    Args:
        cls: HubConfig, RetryConfig or ACKConfig.
        file: as for `from_file`; None for none.
        environ: the variables; None means `os.environ`.

    Raises:
        ConfigError: as from `from_file` and `from_env`.
    """
    names: dict[str, str] = {}
    values: dict[str, Any] = {}
    origins = {name: Origin("default", "") for name in kinds_of(cls)}
    if file is not None:
        names, values = cls._of_file(os.fspath(file))
        text = Path(file).read_text("utf-8-sig")
        origins |= {name: Origin("file", _line(file, text, name)) for name in values}
    variables, of_env = cls._of_env(os.environ if environ is None else environ)
    origins |= {name: Origin("environment", variables[name]) for name in of_env}
    names |= {name: variables[name] for name in of_env}
    sources = [os.fspath(file)] if file is not None else []
    sources += [variables[name] for name in of_env]
    config = cls._made(", ".join(sources), names, values | of_env)
    return Combined(config, origins)


def variables_of(*classes: type[Settings]) -> set[str]:
    """The environment variables of all settings of these classes."""
    return {variable for cls in classes for variable in cls._of_env({})[0].values()}


def _line(file: str | os.PathLike[str], text: str, name: str) -> str:
    """The file, and the line of a key in it, if only one line has it."""
    key = re.compile(rf"(?:^|[{{,])\s*([\"']?){name}\1\s*[:=]", re.M)
    found = [text.count("\n", 0, match.end()) + 1 for match in key.finditer(text)]
    return f"{os.fspath(file)}:{found[0]}" if len(found) == 1 else os.fspath(file)
