"""The compiled modules, built for one picows series, whose private struct layouts they use.

So the picows that is installed is checked here, before any of them touches it: with another one
they would read the wrong memory. And so is the interpreter, before any of them is loaded.
"""

from importlib import import_module

__all__ = ["DEBUG_BUILD", "PICOWS_BUILT_FOR", "check_picows"]


def _is_main_interpreter() -> bool:
    for name in ("_interpreters", "_xxsubinterpreters"):  # from Python 3.13 on; before it
        try:
            interpreters = import_module(name)
        except ImportError:
            continue
        return bool(interpreters.get_current() == interpreters.get_main())
    return True  # a Python without sub-interpreters


if not _is_main_interpreter():
    raise ImportError(
        "wsc_fast cannot be imported in a sub-interpreter: its compiled modules, like those of "
        "picows and uvloop, are there once for the whole process"
    )

from wsc_fast._core.frames import DEBUG_BUILD, PICOWS_BUILT_FOR  # noqa: E402


def check_picows(built_for: str, installed: str | None) -> None:
    """Raises ImportError unless `installed` has the struct layouts of `built_for`.

    Args:
        built_for: version of picows at build time, such as "2.3.1".
        installed: version of picows now; None when there is none.
    """
    major, minor, micro = (int(part) for part in built_for.split(".")[:3])
    need = f"picows>={major}.{minor}.{micro},<{major}.{minor + 1}"
    if installed is None:
        raise ImportError(f"wsc_fast needs {need}, and picows is not installed")
    try:
        found = tuple(int(part) for part in installed.split(".")[:3])
    except ValueError:
        found = ()
    if found[:2] != (major, minor) or found < (major, minor, micro):
        raise ImportError(
            f"this build of wsc_fast needs {need}, but picows {installed} is installed: "
            f"pip install '{need}'"
        )


def _installed_picows() -> str | None:
    # picows tells it itself: the compiled modules import it next anyway, while importlib.metadata
    # would take a quarter of the whole import.
    try:
        from picows.version import __version__
    except ModuleNotFoundError as error:
        if error.name != "picows":
            raise
        return None
    return str(__version__)


check_picows(PICOWS_BUILT_FOR, _installed_picows())
