"""Reads the imports and the private names of each file of the project: for test_imports.py.

Python files and stubs are read as syntax trees, wherever in them an import stands: one under
TYPE_CHECKING or within a function is one like any other. Cython files are read as text without
comments and strings, since only Cython's own parser takes them.

A module may be several files, which count as one: the implementation of `wsc_fast._core.engine` is
`src_cy/engine.pyx`, its declaration and its stub stand in `wsc_fast/_core/`. A room is a folder of
the package, or one of its files that is in none.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "wsc_fast"
# Folders with code that is no part of the package, and is its user.
USERS = ("clients", "examples", "deploy")
# A package of its own, whose modules are named from here.
SOURCES_OF_THE_CLIENT = ("clients", "python", "src")
# `x._name` on these is no use of another's name.
OWN = ("self", "cls")


@dataclass
class Source:
    """The imports and private names of one file.

    Attributes:
        path: from the root of the project, with slashes.
        module: its dotted name.
        room: the folder of the package that it is in, or its own name.
        imports: the module of each import, as it is written, with the names of it; a module that is
            imported as a whole has none.
        uses: the private names of something else than `self` and `cls`.
        defines: the private names of its classes, and of the file itself.
    """

    path: str
    module: str
    room: str
    imports: dict[str, set[str]] = field(default_factory=dict)
    uses: set[str] = field(default_factory=set)
    defines: set[str] = field(default_factory=set)

    def imported(self, modules: Iterable[str]) -> set[str]:
        """The modules of the project that it imports, of these; a name may be a module itself."""
        found = set()
        for module, names in self.imports.items():
            of_names = {f"{module}.{name}" for name in names} & set(modules)
            found |= of_names
            if len(of_names) < len(names) or not names:
                found.add(module)
        return (found & set(modules)) - {self.module}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def read_all(root: Path) -> list[Source]:
    """All sources of the package, and of its users in this project."""
    paths = [
        *root.glob("src_cy/*.pyx"),
        *(path for ext in ("py", "pyi", "pxd") for path in root.glob(f"{PACKAGE}/**/*.{ext}")),
        *(path for folder in USERS for path in root.glob(f"{folder}/**/*.py")),
    ]
    return [read(path, root) for path in sorted(paths)]


def read(path: Path, root: Path) -> Source:
    """One of them."""
    parts = path.relative_to(root).with_suffix("").parts
    if parts[0] == "src_cy":
        parts = (PACKAGE, "_core", *parts[1:])
    room = parts[1] if parts[0] == PACKAGE else parts[0]
    if parts[:3] == SOURCES_OF_THE_CLIENT:
        parts = parts[3:]
    module = ".".join(parts).removesuffix(".__init__")
    source = Source(path.relative_to(root).as_posix(), module, room)
    if path.suffix in (".pyx", ".pxd"):
        _read_cython(path.read_text(), source)
    else:
        _read_python(path.read_text(), source)
    return source


# --- Python ---


def _read_python(text: str, source: Source) -> None:
    tree = ast.parse(text)
    source.defines |= set(_defined(tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                source.imports.setdefault(alias.name, set())
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source.path} imports {'.' * node.level}{node.module or ''}"
            names = {alias.name for alias in node.names}
            source.imports.setdefault(node.module or "", set()).update(names)
        elif isinstance(node, ast.Call) and (module := _imported_by(node)) is not None:
            source.imports.setdefault(module, set())
        elif isinstance(node, ast.ClassDef):
            source.defines |= set(_defined(node.body))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if not _is_own(node.value):
                source.uses.add(node.attr)
            elif isinstance(node.ctx, ast.Store):
                source.defines.add(node.attr)


def _imported_by(call: ast.Call) -> str | None:
    """The module of `import_module("a.b")`; None for other calls."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in ("import_module", "__import__") or not call.args:
        return None
    module = call.args[0]
    return module.value if _is_text(module) else None  # type: ignore[attr-defined]


def _is_own(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        value = value.func
        return isinstance(value, ast.Name) and value.id == "super"
    return isinstance(value, ast.Name) and value.id in OWN


def _defined(body: list[ast.stmt]) -> Iterator[str]:
    """The private names that the body of a class or of a file defines.

    Names that it only declares, under TYPE_CHECKING, are another's.
    """
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = {node.name}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {each.id for target in targets for each in ast.walk(target) if _is_name(each)}
            if "__slots__" in names and node.value is not None:
                names |= {each.value for each in ast.walk(node.value) if _is_text(each)}
        else:
            blocks = (getattr(node, name, []) for name in ("body", "orelse", "finalbody"))
            names = {name for block in blocks for name in _defined(block)}
        yield from filter(is_private, names)


def _is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


# --- Cython ---

_STRING_OR_COMMENT = re.compile(
    r'(?P<prefix>\b[a-zA-Z]{1,2})?(?P<text>"""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\''
    r'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')|#[^\n]*',
    re.S,
)
_FROM = re.compile(r"^[ \t]*from\s+([\w.]+)\s+c?import\s*(\([^)]*\)|[^\n]*)", re.M)
_IMPORT = re.compile(r"^[ \t]*c?import\s+([^\n]*)", re.M)
_PRIVATE = re.compile(r"(?P<of>[\w)\]]+\s*\.\s*)?\b(?P<name>_\w+)")
_OWN = re.compile(rf"(?:{'|'.join(OWN)})\s*\.\s*")


def _read_cython(text: str, source: Source) -> None:
    text = _STRING_OR_COMMENT.sub(_without_text, text)
    for module, names in _FROM.findall(text):
        source.imports.setdefault(module, set()).update(_names(names.strip("()")))
    for modules in _IMPORT.findall(text):
        for module in _names(modules):
            source.imports.setdefault(module, set())
    text = _IMPORT.sub("", _FROM.sub("", text))
    for match in _PRIVATE.finditer(text):
        name, of = match["name"], match["of"]
        if not is_private(name):
            continue
        if of is None:
            source.defines.add(name)
        # In `x.self._name` it is not the method's own self.
        elif not _OWN.fullmatch(of) or text[: match.start()].endswith("."):
            source.uses.add(name)


def _without_text(match: re.Match[str]) -> str:
    """The rest of a string or a comment: of an f-string, the parts in braces."""
    if match["text"] is None:
        return ""
    if "f" in (match["prefix"] or "").lower():
        return "(" + " ".join(re.findall(r"\{([^{}]*)\}", match["text"])) + ")"
    return '""'


def _names(text: str) -> set[str]:
    """The names in `a, b as c`."""
    return {name.split()[0] for name in text.split(",") if name.strip()}


# --- circles ---


def circles(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """The imports that are a part of a circle.

    Args:
        imports: module -> the modules that it imports.

    Returns:
        dict: module -> those of its imports from which a way leads back to it.
    """
    reached = {module: _reached(module, imports) for module in imports}
    return {
        module: {other for other in others if module in reached.get(other, set())}
        for module, others in imports.items()
    }


def _reached(start: str, imports: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        for module in imports.get(ahead.pop(), set()) - found:
            found.add(module)
            ahead.append(module)
    return found
