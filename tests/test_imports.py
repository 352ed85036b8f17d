"""The rules of who may know whom in the package, checked by imports and private names.

1.  The compiled modules import nothing of the package but `errors`. Their stubs, of which nothing
    runs, may also name the types of `messages` and `stats`, which users give to compiled calls and
    get of them.
2.  Nobody but its own users imports the hub. A part is given what it needs.
3.  No files import each other in a circle, and no room uses a private name of another one.
4.  Each kind of back end has one protocol (test_offline_stores.py). A store knows the protocol, the
    errors, the log and the clock, and no other store.
5.  Programs that use the package, and the kit for their tests, use public names only. The kit also
    moves the clock.

imports.py reads a file; the last tests here are of that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import pytest

from tests.imports import Source, circles, is_private, read, read_all

ROOT = Path(__file__).parent.parent
SOURCES = read_all(ROOT)
MODULES = {source.module for source in SOURCES}

# Private fields of picows' and asyncio's objects whose names some class of ours has, too.
OF_OTHERS: dict[str, set[str]] = {"src_cy/picows_connection.pyx": {"_logger", "_loop", "_socket"}}

# The compiled half of a room counts with it: PendingACK has names that are for neither the
# application nor the rest of the package.
COMPILED_HALVES = {"wsc_fast._core.pending": "delivery"}

# Importing `wsc_fast` itself is importing the hub.
FACE = {"wsc_fast", "wsc_fast.hub"}
USERS_OF_THE_FACE = ("__init__", "adapters", "cli", "console", "demo", "hub", "testing")

# Rooms that are no more than users of the package, and what they may import of it.
USERS_OF_THE_PACKAGE = ("clients", "deploy", "examples", "testing")
PUBLIC = {
    module: set(import_module(module).__all__)
    for module in (
        "wsc_fast",
        "wsc_fast.auth",
        "wsc_fast.demo",
        "wsc_fast.publish",
        "wsc_fast.testing",
    )
}
# The kit moves the clock of the hubs. No program that serves does.
MOVED_BY_THE_KIT = "wsc_fast._core.clock"


def room_of(source: Source) -> str:
    return COMPILED_HALVES.get(source.module, source.room)


def defined_by_room() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for source in SOURCES:
        found[room_of(source)] |= source.defines
    return found


DEFINED = defined_by_room()
DEFINED_ANYWHERE = set().union(*DEFINED.values())


# --- the findings of each rule ---


def found_below(source: Source) -> set[str]:
    """Rule 1: the modules above it that a compiled module imports."""
    if source.room != "_core":
        return set()
    allowed = {"wsc_fast.errors"} | (
        {"wsc_fast.messages", "wsc_fast.stats"} if source.path.endswith(".pyi") else set()
    )
    return {
        module
        for module in source.imported(MODULES) - allowed
        if not module.startswith("wsc_fast._core")
    }


def found_of_the_face(source: Source) -> set[str]:
    """Rule 2: the hub, where a file imports it that is none of its users."""
    if source.room in (*USERS_OF_THE_FACE, *USERS_OF_THE_PACKAGE):
        return set()
    return source.imported(MODULES) & FACE


def found_private(source: Source) -> set[str]:
    """Rule 3: the private names of other rooms that a file uses or imports."""
    used = (source.uses & DEFINED_ANYWHERE) - DEFINED[room_of(source)]
    imported = {
        name
        for module, names in source.imports.items()
        if module.split(".")[0] == "wsc_fast" and module.split(".")[1:2] != [source.room]
        for name in names
        if is_private(name) and f"{module}.{name}" not in MODULES
    }
    return (used | imported) - OF_OTHERS.get(source.path, set())


def found_beyond_the_store(source: Source) -> set[str]:
    """Rule 4: the modules that a store imports besides its own and those that each store may."""
    if source.room != "stores":
        return set()
    own = ".".join(source.module.split(".")[:3])
    allowed = {
        "wsc_fast._core.clock",
        "wsc_fast.errors",
        "wsc_fast.log",
        "wsc_fast.stores.base",
    }
    return {
        module
        for module in source.imported(MODULES) - allowed
        if not f"{module}.".startswith(f"{own}.")
    }


def found_not_public(source: Source) -> set[str]:
    """Rule 5: the modules that a program uses other than by their public names."""
    if source.room not in USERS_OF_THE_PACKAGE:
        return set()
    own = f"wsc_fast.{source.room}"
    found = set()
    for module, names in source.imports.items():
        of_package = module.split(".")[0] == "wsc_fast"
        if of_package and not f"{module}.".startswith(f"{own}."):
            if source.room == "testing" and module == MOVED_BY_THE_KIT:
                continue
            known = PUBLIC.get(module)
            if known is None or not names <= known:
                found.add(module)
    return found


def imports_of(sources: Iterable[Source]) -> dict[str, set[str]]:
    """The imports of each module; all of its files together."""
    found: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        found[source.module] |= source.imported(MODULES)
    return found


def path_of(source: Source) -> str:
    return source.path


# --- the rules ---


@pytest.mark.parametrize("source", [each for each in SOURCES if each.room == "_core"], ids=path_of)
def test_a_compiled_module_imports_nothing_from_above_but_errors(source: Source) -> None:
    assert found_below(source) == set()


@pytest.mark.parametrize("source", SOURCES, ids=path_of)
def test_a_part_does_not_import_the_hub(source: Source) -> None:
    assert found_of_the_face(source) == set()


@pytest.mark.parametrize("source", SOURCES, ids=path_of)
def test_a_file_uses_no_private_name_of_another_room(source: Source) -> None:
    assert found_private(source) == set()


@pytest.mark.parametrize("source", [each for each in SOURCES if each.room == "stores"], ids=path_of)
def test_a_store_knows_the_protocol_and_no_other_store(source: Source) -> None:
    assert found_beyond_the_store(source) == set()


def test_no_files_import_each_other_in_a_circle() -> None:
    found = circles(imports_of(SOURCES))
    assert {module: others for module, others in found.items() if others} == {}


@pytest.mark.parametrize(
    "source", [each for each in SOURCES if each.room in USERS_OF_THE_PACKAGE], ids=path_of
)
def test_a_program_uses_public_names_alone(source: Source) -> None:
    assert found_not_public(source) == set()


def test_each_name_of_others_is_used() -> None:
    used = {source.path: source.uses for source in SOURCES}
    assert [path for path, names in OF_OTHERS.items() if not names <= used[path]] == []


def test_each_room_that_is_named_is_there() -> None:
    rooms = {source.room for source in SOURCES}
    assert set(COMPILED_HALVES) <= MODULES
    assert set(COMPILED_HALVES.values()) <= rooms
    assert set(PUBLIC) <= MODULES
    assert set(OF_OTHERS) <= {source.path for source in SOURCES}


# --- how files are read ---


def source_of(tmp_path: Path, path: str, text: str) -> Source:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return read(file, tmp_path)


@pytest.mark.parametrize(
    ("path", "module", "room"),
    [
        ("wsc_fast/hub.py", "wsc_fast.hub", "hub"),
        ("wsc_fast/__init__.py", "wsc_fast", "__init__"),
        ("wsc_fast/config/__init__.py", "wsc_fast.config", "config"),
        ("wsc_fast/listen/tls/hello.py", "wsc_fast.listen.tls.hello", "listen"),
        ("src_cy/engine.pyx", "wsc_fast._core.engine", "_core"),
        ("wsc_fast/_core/engine.pyi", "wsc_fast._core.engine", "_core"),
        ("examples/chat/server.py", "examples.chat.server", "examples"),
    ],
)
def test_a_file_is_a_module_in_a_room(tmp_path: Path, path: str, module: str, room: str) -> None:
    source = source_of(tmp_path, path, "")
    assert (source.path, source.module, source.room) == (path, module, room)


PYTHON = """
import wsc_fast.log
from wsc_fast.listen import limits, tls
from wsc_fast.errors import WSCError as Error
if TYPE_CHECKING:
    from wsc_fast.hub import Hub
def later():
    from wsc_fast.stores.base import _hidden
    importlib.import_module("wsc_fast.stats")
    import_module(name)
"""


def test_an_import_counts_wherever_it_stands(tmp_path: Path) -> None:
    source = source_of(tmp_path, "wsc_fast/delivery/a.py", PYTHON)
    modules = {"hub", "log", "errors", "listen", "listen.limits", "stores.base", "stats"}
    assert source.imported({f"wsc_fast.{name}" for name in {*modules, "delivery.a", "auth"}}) == {
        "wsc_fast.hub",
        "wsc_fast.log",
        "wsc_fast.errors",
        "wsc_fast.listen",  # `tls` is no module of these
        "wsc_fast.listen.limits",
        "wsc_fast.stats",
        "wsc_fast.stores.base",
    }
    assert source.imports["wsc_fast.stores.base"] == {"_hidden"}


def test_a_relative_import_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"a\.py imports \.b"):
        source_of(tmp_path, "wsc_fast/delivery/a.py", "from .b import c")


PRIVATE = """
_OF_FILE = 1
class A(B):
    __slots__ = ("_in_slots",)
    _of_class: int
    def __init__(self, other):
        self._of_object = other._of_other
        other._set_from_outside = super()._of_base
        self._own.public._of_part()
    if TYPE_CHECKING:
        def _declared(self): ...
    if sys.platform == "linux":
        def _in_block(self): ...
def _function(self): return __name__, self.__class__
"""


def test_private_names_are_told_apart_by_whose_they_are(tmp_path: Path) -> None:
    source = source_of(tmp_path, "wsc_fast/delivery/a.py", PRIVATE)
    assert source.uses == {"_of_other", "_set_from_outside", "_of_part"}
    assert source.defines == {
        "_OF_FILE",
        "_in_slots",
        "_of_class",
        "_of_object",
        "_in_block",
        "_function",
    }


CYTHON = '''"""x._of_a_string, import wsc_fast.of_a_string"""
from wsc_fast._core.outbox cimport (
    OPEN,  # self.x._of_a_comment
    Sink,
)
from wsc_fast._core cimport frames
cimport wsc_fast._core.timers
from wsc_fast.errors import LimitError as Limit
cdef extern from "net.h":
    pass
cdef class A:
    cdef readonly object _field
    cdef int go(self, Sink sink) except? -1:
        self._own()
        self.engine._of_engine(f"{sink._of_sink!a} {{}} import no")
        (<A>sink)._of_cast = 1 if x <b"'" else self.parts.self._of_self
        return __debug__
'''


def test_cython_is_read_like_python(tmp_path: Path) -> None:
    source = source_of(tmp_path, "src_cy/a.pyx", CYTHON)
    assert source.imports == {
        "wsc_fast._core.outbox": {"OPEN", "Sink"},
        "wsc_fast._core": {"frames"},
        "wsc_fast._core.timers": set(),
        "wsc_fast.errors": {"LimitError"},
    }
    assert source.uses == {"_of_engine", "_of_sink", "_of_cast", "_of_self"}
    assert source.defines == {"_field"}


def test_circles_are_found_however_long() -> None:
    imports = {"a": {"b", "e"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set(), "f": {"f"}}
    assert circles(imports) == {
        "a": {"b"},
        "b": {"c"},
        "c": {"a"},
        "d": set(),
        "e": set(),
        "f": {"f"},
    }
