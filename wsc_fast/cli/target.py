"""`module:name` -> the hub that it stands for, as `serve` takes it.

An error within the user's module is the user's own, and keeps its traceback. All others are one
line: no such module, no such name, something else than a hub.
"""

from __future__ import annotations

import difflib
import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType, TracebackType
from typing import Any, NoReturn

from wsc_fast import Hub
from wsc_fast.cli.output import Failure, UsageFailure


def load_hub(target: str) -> Hub:
    """Imports the module of a target, from the current folder too, and finds its hub.

    Args:
        target: `module:name`; the name may have dots, and may be a function that returns a hub.

    Raises:
        UsageFailure: the target is none.
        Failure: there is no hub there; an error of the module has been printed.
    """
    module_name, _, name = target.partition(":")
    is_module = all(part.isidentifier() for part in module_name.split("."))
    if not is_module or not name or module_name.endswith(".py"):
        raise UsageFailure(f"{target!r} is no target, expected module:name, such as app:hub")
    module = _imported(module_name)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise Failure(f"the module {module_name!r} has no {name!r}{_nearest(module, name)}")
        found = getattr(found, part)
    if isinstance(found, Hub):
        return found
    return _made(target, found)


def _imported(name: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        with _without_run(name):
            return import_module(name)
    except Failure:
        raise
    except ModuleNotFoundError as error:
        # Else it is a module that the user's own one imports.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise Failure(f"there is no module {error.name!r} in {folder} or installed") from None
        raise _own_fault(f"the module {name!r} cannot be imported", error) from None
    except Exception as error:
        raise _own_fault(f"the module {name!r} cannot be imported", error) from None


@contextmanager
def _without_run(name: str) -> Iterator[None]:
    """Refuses a module that serves while it is imported: no option of the command would hold."""

    def refused(*_: object, **__: object) -> NoReturn:
        raise Failure(
            f"the module {name!r} calls hub.run while it is imported: "
            'put the call under if __name__ == "__main__":'
        )

    run = Hub.run
    Hub.run = refused  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hub.run = run  # type: ignore[method-assign]


def _made(target: str, factory: Any) -> Hub:
    kind = type(factory).__name__
    wrong = f"{target} is of the type {kind}, expected a Hub or a function that returns one"
    if not callable(factory):
        raise Failure(wrong)
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError):
        raise Failure(f"{wrong}, without arguments") from None
    try:
        made = factory()
    except Exception as error:
        raise _own_fault(f"{target} raised", error) from None
    if inspect.iscoroutine(made):
        made.close()
        raise Failure(f"{target} is an async function, expected a plain one that returns a Hub")
    if not isinstance(made, Hub):
        raise Failure(f"{target}() is of the type {type(made).__name__}, expected a Hub")
    return made


def _nearest(module: ModuleType, name: str) -> str:
    hubs = [each for each, value in vars(module).items() if isinstance(value, Hub)]
    near = difflib.get_close_matches(name, hubs, 1) or hubs[:1]
    return f": is it {near[0]!r}?" if near else ""


def _own_fault(text: str, error: Exception) -> Failure:
    """Prints the traceback of the user's code, without what called it."""
    frames: TracebackType | None = error.__traceback__
    while frames is not None and _is_machinery(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    traceback.print_exception(type(error), error, frames)
    return Failure(f"{text}: {type(error).__name__}")


def _is_machinery(file: str) -> bool:
    return file == __file__ or file.startswith("<frozen importlib") or "importlib" in file
