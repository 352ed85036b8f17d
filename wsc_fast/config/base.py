"""The base of all settings: the checks, and the ways in by environment and file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import msgspec

from wsc_fast.config.kinds import kinds_of
from wsc_fast.errors import ConfigError, shown


class _SettingsMeta(msgspec.StructMeta):
    """Has a misspelt setting be a ConfigError that names the nearest one."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        for name in values:
            if name not in cls.__struct_fields__:
                raise ConfigError(f"{cls.__name__} has no setting {name!r}{_nearest(cls, name)}")
        return super().__call__(*args, **values)


def _nearest(cls: Any, name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, cls.__struct_fields__, 1)
    return f": is it {near[0]}?" if near else ""


class Settings(msgspec.Struct, frozen=True, kw_only=True, metaclass=_SettingsMeta):
    """The base of HubConfig, RetryConfig and ACKConfig: the checks and the loading."""

    _prefix: ClassVar[str] = "WSC_"
    _table: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, kind in kinds_of(type(self)).items():
            value = kind.checked(f"{type(self).__name__}.{name}", getattr(self, name))
            # A list is as good as a tuple, an int as a float; kept as what the annotation says.
            msgspec.structs.force_setattr(self, name, value)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """The settings of the environment, with the defaults for those it lacks.

        A variable is `WSC_` (for ACKConfig `WSC_ACK_`) and the setting in upper case, such as
        `WSC_MAX_RETRIES`. Seconds are a number, or a duration such as 100ms, 1.5s, 2m or 1h30m. A
        bool is true, false, 1, 0, yes, no, on or off in any case; the items of a tuple stand
        between commas, and a comma alone means none. An empty variable counts as unset. Others that
        begin with `WSC_` are ignored, since they may be somebody else's: a misspelt name has no
        effect.

        Args:
            environ: the variables; None means `os.environ`.

        Raises:
            ConfigError: a value cannot work; the text names the variable, the value and what is
                allowed.
        """
        variables, values = cls._of_env(os.environ if environ is None else environ)
        return cls._made(", ".join(variables[name] for name in values), variables, values)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """The settings of a .yaml, .yml, .toml or .json file, with the defaults for others.

        They stand at the top level, or, so that one file serves all, in the tables `hub`, `retry`
        and `ack`. Either may stand in a table `wsc`; what is beside that is somebody else's. At the
        top level the settings of HubConfig and RetryConfig may stand side by side. Seconds are a
        number, or a duration in quotes, such as "100ms", "1.5s" or "2m".
        YAML needs `pip install 'wsc_fast[yaml]'`.

        Args:
            path: of the file, UTF-8; its suffix tells the format.

        Raises:
            ConfigError: the file cannot be read, or holds an unknown or repeated key or a value
                that cannot work; the text names the file, the key, the value and what is allowed.
        """
        file = os.fspath(path)
        return cls._made(file, *cls._of_file(file))

    @classmethod
    def _of_env(cls, environ: Mapping[str, str]) -> tuple[dict[str, str], dict[str, Any]]:
        """The variable of each setting, and the values of those that are set."""
        variables = {name: cls._prefix + name.upper() for name in kinds_of(cls)}
        values = {}
        for name, kind in kinds_of(cls).items():
            text = environ.get(variables[name], "").strip()
            if text:
                values[name] = kind.parsed(variables[name], text)
        return variables, values

    @classmethod
    def _of_file(cls, file: str) -> tuple[dict[str, str], dict[str, Any]]:
        """The place of each setting in a file, and the values of those that stand there."""
        from wsc_fast.config.files import read, table_of

        place, given, flat = table_of(file, read(file), cls._table)
        names = {name: f"{place}{name}" for name in kinds_of(cls)}
        values = {}
        for key, value in given.items():
            if key in names:
                values[key] = kinds_of(cls)[key].in_seconds(value)
            elif not (flat and cls._stands_beside(key)):
                raise ConfigError(
                    f"{place}{key} ({shown(value)}) is no setting of {cls.__name__}, "
                    f"expected one of {', '.join(names)}"
                )
        return names, values

    @classmethod
    def _stands_beside(cls, key: str) -> bool:
        """Whether a key without a table may be there for another class."""
        return False

    @classmethod
    def _made(cls, source: str, names: Mapping[str, str], values: dict[str, Any]) -> Self:
        # Each by itself first: the error tells where the value stands.
        for name, value in values.items():
            kinds_of(cls)[name].checked(names[name], value)
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
