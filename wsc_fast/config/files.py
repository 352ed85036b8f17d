"""Files of settings: YAML, TOML and JSON, and where in them the settings of a class stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsc_fast.config.kinds import wrong
from wsc_fast.errors import ConfigError, shown

_TABLES = ("hub", "retry", "ack")


def table_of(file: str, content: Any, own: str) -> tuple[str, dict[str, Any], bool]:
    """Finds the settings of one class in what a file holds.

    Args:
        file: its name, for the errors.
        content: of the file.
        own: the table of the class.

    Returns:
        tuple: where they stand, for the errors; the settings; and whether in no table.

    Raises:
        ConfigError: something stands where nothing can.
    """
    place = f"{file}: "
    level = _mapping(file, content)
    if "wsc" in level:
        for key in _TABLES:
            if key in level:
                raise ConfigError(f"{place}{key} stands beside wsc, expected in it")
        place += "wsc."
        level = _mapping(f"{file}: wsc", level["wsc"])
    if not any(key in level for key in _TABLES):
        return place, level, True
    for key, value in level.items():
        if key not in _TABLES:
            raise ConfigError(
                f"{place}{key} ({shown(value)}) stands beside tables, "
                f"expected one of {', '.join(_TABLES)}"
            )
    return f"{place}{own}.", _mapping(f"{place}{own}", level.get(own)), False


def _mapping(called: str, value: Any) -> dict[str, Any]:
    if value is None:  # of an empty YAML file, or a table whose lines are all comments
        return {}
    if not isinstance(value, dict):
        raise wrong(called, value, "a table of settings")
    return value


def read(file: str) -> Any:
    """The content of a file, decoded.

    Raises:
        ConfigError: no such format, or it cannot be read.
    """
    reader = _READERS.get(Path(file).suffix.lower())
    if reader is None:
        raise ConfigError(f"{file} is no settings file, expected one of {', '.join(_READERS)}")
    try:
        return reader(Path(file).read_text("utf-8-sig"))
    except ImportError:
        raise ConfigError(f"{file} needs PyYAML: pip install 'wsc_fast[yaml]'") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


# A process that reads no file, or another one, is spared the parsers.


def _toml(text: str) -> Any:
    import tomllib

    return tomllib.loads(text)


def _json(text: str) -> Any:
    import json

    # Not msgspec.json, which takes the last of repeated keys.
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"the key {shown(key)} is there twice, expected once")
        seen[key] = value
    return seen


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # yaml.safe_load, which takes the last of repeated keys
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            _unique([(key.value, None) for key, _ in node.value if isinstance(key.value, str)])
            return node

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


_READERS: dict[str, Callable[[str], Any]] = {
    ".yaml": _yaml,
    ".yml": _yaml,
    ".toml": _toml,
    ".json": _json,
}
