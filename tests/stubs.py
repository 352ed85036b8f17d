"""Docstrings of compiled classes in their stubs, for editors: compares them, and copies them.

python -m tests.stubs    copies what is missing or another one from the modules to the stubs
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STUBS = sorted((Path(__file__).parent.parent / "wsc_fast/_core").glob("*.pyi"))


def own_doc(method: Any) -> str:
    """The docstring without the signature that Cython puts in its first line."""
    doc = inspect.getdoc(method) or ""
    first, _, rest = doc.partition("\n")
    return inspect.cleandoc(rest) if re.match(r"\w+(\.\w+)?\(", first) else doc


def documented(stub: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef, str]]:
    """Public classes, methods and functions of a stub: name, node, and the docstring to have."""
    module = importlib.import_module(f"wsc_fast._core.{stub.stem}")
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ClassDef):
            cls = getattr(module, node.name)
            yield node.name, node, own_doc(cls)
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                    yield f"{node.name}.{member.name}", member, own_doc(getattr(cls, member.name))
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node, own_doc(getattr(module, node.name))


def differing(stub: Path) -> list[str]:
    """Names that have another docstring in the stub than in their module."""
    return [name for name, node, doc in documented(stub) if (ast.get_docstring(node) or "") != doc]


def copy(stub: Path) -> None:
    """Gives each the docstring of its module."""
    lines = stub.read_text().splitlines()
    for _, node, doc in reversed(list(documented(stub))):
        if not doc:
            continue
        indent = " " * (node.col_offset + 4)
        text = textwrap.indent(f'"""{doc}' + ("\n" if "\n" in doc else "") + '"""', indent)
        first = node.body[0]
        if ast.get_docstring(node) is not None:
            lines[first.lineno - 1 : first.end_lineno] = text.splitlines()
        elif isinstance(first, ast.Expr) and ast.unparse(first) == "...":
            line = lines[first.lineno - 1]
            lines[first.lineno - 1 : first.end_lineno] = [
                *([line.removesuffix(" ...")] if line.strip() != "..." else []),
                *text.splitlines(),
            ]
        else:
            decorators = getattr(first, "decorator_list", [])
            at = min(each.lineno for each in (first, *decorators)) - 1
            lines[at:at] = text.splitlines()
    stub.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    for path in STUBS:
        copy(path)
