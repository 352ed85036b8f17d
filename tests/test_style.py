"""Every source file and public method says what it is for. Rules of words."""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import map as tests_map
from tests.imports import read
from tests.stubs import STUBS, differing, own_doc
from wsc_fast import Client, Hub, handle_websocket

ROOT = Path(__file__).parent.parent
PYTHON = sorted(
    path
    for folder in ("wsc_fast", "clients/python/src", "tests")
    for path in ROOT.glob(f"{folder}/**/*.py")
)
CYTHON = sorted([*ROOT.glob("src_cy/*.pyx"), *ROOT.glob("wsc_fast/_core/*.pxd")])


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def public_methods(cls: type) -> list[tuple[str, Any]]:
    """Methods of a class and of its compiled bases, under their names."""
    found = {}
    for base in cls.__mro__:
        if base.__module__.startswith("wsc_fast"):
            for name, value in vars(base).items():
                if not name.startswith("_") and callable(value):
                    found.setdefault(name, value)
    # The application does not call the methods of picows and the transport.
    overridden = (
        "on_ws_",
        "send_user_specific_ping",
        "get_buffer",
        "buffer_updated",
        "eof_received",
        "connection_made",
        "connection_lost",
        "pause_writing",
        "resume_writing",
    )
    return sorted(item for item in found.items() if not item[0].startswith(overridden))


METHODS = [(f"Hub.{name}", method) for name, method in public_methods(Hub)]
METHODS += [(f"Client.{name}", method) for name, method in public_methods(Client)]
PROPERTIES = [
    (f"{cls.__name__}.{name}", value)
    for cls in (Hub, Client)
    for name, value in vars(cls).items()
    # Cython has no place for a docstring on a field that the .pxd declares readonly.
    if not name.startswith("_")
    and inspect.isdatadescriptor(value)
    and name not in ("remote_address", "subprotocol", "device_id")
]


@pytest.mark.parametrize("path", PYTHON, ids=named)
def test_a_python_module_begins_with_its_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", CYTHON, ids=named)
def test_a_cython_module_begins_with_its_docstring(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines()[:5] if not line.startswith("#")]
    assert re.match(r'"""\S', lines[0])


@pytest.mark.parametrize("path", sorted(ROOT.glob("src_cy/*.h")), ids=named)
def test_a_header_begins_with_a_comment(path: Path) -> None:
    assert path.read_text().startswith("/* ")


@pytest.mark.parametrize("path", sorted(ROOT.glob("wsc_fast/**/*.lua")), ids=named)
def test_a_script_begins_with_a_comment(path: Path) -> None:
    assert path.read_text().startswith("-- ")


def test_each_extension_has_a_declaration_and_a_stub() -> None:
    names = {path.stem for path in ROOT.glob("src_cy/*.pyx")}
    # Nothing compiled imports these two.
    declared = {path.stem for path in ROOT.glob("wsc_fast/_core/*.pxd")}
    assert declared == names - {"connection", "handshake"}
    assert {path.stem for path in ROOT.glob("wsc_fast/_core/*.pyi")} == names


@pytest.mark.parametrize("path", CYTHON, ids=named)
def test_the_value_of_an_enum_is_a_number(path: Path) -> None:
    # Cython compiles no arithmetic there under `overflowcheck`, which the debug build sets.
    for body in re.findall(r"^ *cdef enum.*:\n((?: +.*\n|\n)+)", path.read_text(), re.MULTILINE):
        for value in re.findall(r"^ +[A-Z0-9_]+ = (.*)", body, re.MULTILINE):
            assert re.fullmatch(r"-?(\d+|0x[0-9A-Fa-f]+)( *#.*)?", value), value


@pytest.mark.parametrize("stub", STUBS, ids=named)
def test_a_stub_has_the_docstrings_of_its_module(stub: Path) -> None:
    assert differing(stub) == [], "python -m tests.stubs copies them"


def test_there_are_methods_to_look_at() -> None:
    assert len(METHODS) > 30
    assert len(PROPERTIES) > 6


@pytest.mark.parametrize(("name", "method"), METHODS, ids=[name for name, _ in METHODS])
def test_a_public_method_documents_itself(name: str, method: Any) -> None:
    doc = own_doc(method)
    assert re.match(r"[A-Z]", doc), "no summary"
    if name.startswith("Hub."):
        assert "Thread-safety: " in doc
    # `run` says that its arguments are those of `start`.
    if any(parameters_of(method)) and name != "Hub.run":
        assert "Args:\n" in doc
        for parameter in parameters_of(method):
            assert re.search(rf"\b{parameter}\b", doc.partition("Args:\n")[2]), parameter


@pytest.mark.parametrize(("name", "value"), PROPERTIES, ids=[name for name, _ in PROPERTIES])
def test_a_public_property_documents_itself(name: str, value: Any) -> None:
    assert own_doc(value)


def test_the_listener_factory_documents_itself() -> None:
    assert "Returns:\n" in (inspect.getdoc(handle_websocket) or "")


def parameters_of(method: Any) -> list[str]:
    """Names of a method's parameters but self, from its signature or Cython's first line."""
    if inspect.isfunction(method):
        return list(inspect.signature(method).parameters)[1:]
    first = (method.__doc__ or "").partition("\n")[0]
    match = re.match(r"\w+\.\w+\((.*)\)$", first)
    assert match is not None, first
    # A C type may stand before a name: `int code=1000`.
    parameters = re.sub(r"\b[A-Za-z_]\w* (?=[A-Za-z_]\w*\s*[=,]|[A-Za-z_]\w*$)", "", match[1])
    function = ast.parse(f"def f({parameters}): pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args
    return [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)][1:]


# --- words ---

FOLDERS = (
    *("wsc_fast", "src_cy", "tests", "trials", "benchmarks", "examples", "deploy", "docs"),
    "clients/python/src",
)


def written(*suffixes: str) -> list[Path]:
    """Our files with one of these suffixes."""
    inside = (path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*"))
    return sorted(path for path in (*ROOT.glob("*"), *inside) if path.suffix in suffixes)


# Of clients/ not all below, since node_modules is there.
WITH_PAGES = ("clients", "clients/*")
PAGES = sorted(
    [*written(".md"), *(path for name in WITH_PAGES for path in ROOT.glob(f"{name}/*.md"))]
)
MODULES = written(".py", ".pyi")
OTHERS = sorted([ROOT / "Makefile", *written(".pyx", ".pxd", ".h", ".c", ".lua")])
# A sentence has its subject first. A label, which ends with a colon, and a heading may ask.
ASKING = "who|whoever|whom|whose|what|whatever|which"
RIDDLE = re.compile(
    rf"(?:{ASKING.title()}|(?:And|But|So|Or|By|For|Of|To) (?:{ASKING})|Nor|Those)\b"
)
# Words of ours that have given way to others; `stash` is also one of pytest's.
FORMER = re.compile(r"\b(?:twins?|deaf|(?<!\.)stash(?:ed|es)?|witness(?:es)?)\b", re.I)


def paragraphs(text: str) -> list[str]:
    """Paragraphs and list items."""
    return re.split(r"\n\s*\n|^\s*[-*] |^\s*\d+\. ", text, flags=re.M)


def prose_of_page(text: str) -> list[str]:
    """Paragraphs, list items and cells of tables, without code and headings."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    text = re.sub(r"^ {4}.*$|^#.*$", "", text, flags=re.M)
    return [cell for part in paragraphs(text) for cell in part.split("|")]


def prose_of_module(source: str) -> Iterator[str]:
    """Docstrings, and blocks of comments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from paragraphs(ast.get_docstring(node) or "")
    comments: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.append(token.string.lstrip("# -"))
        elif token.type != tokenize.NL:
            yield " ".join(comments)
            comments.clear()


def prose_of_source(source: str) -> Iterator[str]:
    """Docstrings, and blocks of comments, of Cython, C, Lua and make."""
    quoted = re.compile(r'"""(.*?)"""|/\*(.*?)\*/', re.S)
    for match in quoted.finditer(source):
        text = re.sub(r"^ *\* ?", "", match[1] or match[2] or "", flags=re.M)
        yield from paragraphs(text)
    comments: list[str] = []
    for line in quoted.sub("", source).splitlines():
        code, *comment = re.split(r"(?:^|\s)(?:#:?|--|//) ", line, maxsplit=1)
        if comment and not code.strip():
            comments += comment
            continue
        yield " ".join(comments)
        yield from comment
        comments.clear()
    yield " ".join(comments)


def riddles(prose: Iterable[str]) -> list[str]:
    """The sentences that open with a riddle."""
    found = []
    for part in prose:
        for sentence in re.split(r"(?<=[.?!]) (?=[A-Z])", " ".join(part.split())):
            if RIDDLE.match(sentence) and not sentence.endswith((":", "?")):
                found.append(sentence)
    return found


def test_riddles_are_found() -> None:
    page = (
        "# What it is\n\nIt sends. Who\nleaves, goes.\n\n- Those stay.\n\n| What waits is kept |\n"
    )
    found = ["Who leaves, goes.", "Those stay.", "What waits is kept"]
    assert riddles(prose_of_page(page)) == found
    module = '"""It sends.\n\n- What it is."""\n\n# Those\n# leave.\nx = 1\n\ny = 2  # What?\n'
    assert riddles(prose_of_module(module)) == ["What it is.", "Those leave."]
    openings = "For whom it is. It waits for those. Nor does it stay. Which is it. Of those one is."
    found = ["For whom it is.", "Nor does it stay.", "Which is it."]
    assert riddles([openings]) == found


def test_riddles_in_other_sources_are_found() -> None:
    cython = '"""It.\n\nWhat it is."""\n\n# Those\n# leave.\ncdef int x  # Who is in\n'
    assert riddles(prose_of_source(cython)) == ["What it is.", "Those leave.", "Who is in"]
    c = "/* It sends. Who\n * leaves, goes. */\nint x; /* What waits */\n#include <Who.h>\n"
    assert riddles(prose_of_source(c)) == ["Who leaves, goes.", "What waits"]
    assert riddles(prose_of_source("-- Those\n-- stay.\nlocal x = 1\n")) == ["Those stay."]


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_a_sentence_of_a_page_begins_with_its_subject(path: Path) -> None:
    assert riddles(prose_of_page(path.read_text())) == []


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_sentence_of_a_comment_begins_with_its_subject(path: Path) -> None:
    assert riddles(prose_of_module(path.read_text())) == []


@pytest.mark.parametrize("path", OTHERS, ids=named)
def test_a_sentence_of_other_sources_begins_with_its_subject(path: Path) -> None:
    assert riddles(prose_of_source(path.read_text())) == []


@pytest.mark.parametrize("path", [*PAGES, *MODULES, *OTHERS], ids=named)
def test_a_former_word_is_not_used(path: Path) -> None:
    words = {match[0] for match in FORMER.finditer(path.read_text())}
    assert words == set() or path == Path(__file__)


@pytest.mark.parametrize(
    "folder", ["wsc_fast", "tests", "trials", "benchmarks", "examples", "deploy"]
)
def test_no_file_changes_the_path_of_imports(folder: str) -> None:
    edit = re.compile(r"^\s*sys\.path\b(?!_)", re.M)
    edited = [path for path in ROOT.glob(f"{folder}/**/*.py") if edit.search(path.read_text())]
    # A program that a test runs in a process of its own may, and so may the program that imports
    # the user's module from the folder in which it was started.
    assert edited in ([], [ROOT / "tests/test_process.py"], [ROOT / "wsc_fast/cli/target.py"])


@pytest.mark.parametrize(
    "name",
    [
        "tests/model.py",
        "trials/soak/model.py",
        "trials/fuzz/heads.py",
        "trials/models/users.py",
        "trials/models/user_hub.py",
        "trials/models/user_servers.py",
    ],
)
def test_a_model_uses_neither_the_product_nor_the_kit(name: str) -> None:
    imports = read(ROOT / name, ROOT).imports
    assert [module for module in imports if module.split(".")[0] == "wsc_fast"] == []


def test_the_map_of_the_tests_is_true() -> None:
    assert tests_map.PAGE.read_text() == tests_map.page(), "write it: python -m tests.map"
