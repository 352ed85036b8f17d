"""The package as it is installed: public names, stubs, the picows it needs, and the wheel."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import os
import pickle
import re
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from picows import WSListener

import wsc_fast
from wsc_fast._core import DEBUG_BUILD, PICOWS_BUILT_FOR, check_picows

ROOT = Path(__file__).parent.parent
STUBS = sorted(ROOT.glob("wsc_fast/_core/*.pyi"))

# The names of the contract.
PUBLIC = (
    "Hub",
    "HubConfig",
    "ACKConfig",
    "RetryConfig",
    "Identity",
    "Client",
    "HubMessage",
    "ACKMessage",
    "Priority",
    "SendResult",
    "SendAttempt",
    "SendFailureReason",
    "HubStats",
    "PendingACK",
    "SQLiteOfflineStore",
    "RedisBus",
    "LocalBus",
    "RedisOfflineStore",
    "MemoryOfflineStore",
    "MemoryBus",
    "Published",
    "HistoryEntry",
    "handle_websocket",
    "Request",
    "Response",
    "WSCError",
    "ClientNotFoundError",
    "ClientDisconnectedError",
    "QueueFullError",
    "RoomExistsError",
    "RoomNotFoundError",
    "UserOfflineError",
)


# --- names ---


@pytest.mark.parametrize("name", PUBLIC)
def test_a_name_of_the_contract_can_be_imported(name: str) -> None:
    assert name in wsc_fast.__all__
    assert getattr(wsc_fast, name).__doc__


def test_all_is_sorted_complete_and_true() -> None:
    assert sorted(wsc_fast.__all__, key=str) == list(wsc_fast.__all__)
    assert len(set(wsc_fast.__all__)) == len(wsc_fast.__all__)
    for name in wsc_fast.__all__:
        assert hasattr(wsc_fast, name)
    public = {
        name
        for name, value in vars(wsc_fast).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(wsc_fast.__all__)
    assert set(wsc_fast.__all__) <= set(dir(wsc_fast))


def test_a_name_comes_from_the_module_that_type_checkers_see() -> None:
    tree = ast.parse((ROOT / "wsc_fast/__init__.py").read_text())
    imports = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("wsc_fast.")
        for alias in node.names
    }
    assert imports == wsc_fast._MODULE_OF
    assert set(imports) == set(wsc_fast.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'wsc_fast' has no attribute 'Hup'"):
        wsc_fast.Hup  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Hup'"):
        exec("from wsc_fast import Hup")


# --- what an import brings ---

# Modules beside those of a bare Python: a number that a busy machine does not change.
MOST_MODULES = {"import wsc_fast": 45, "from wsc_fast import Hub": 366}
# For stores, files of settings, JWTs, the command line: of no use to a hub that has none of them.
NOT_FOR_A_HUB = {
    *("sqlite3", "redis", "jwt", "yaml", "tomllib", "typer", "rich", "uvloop"),
    *("importlib.metadata", "importlib.resources", "email", "ctypes", "difflib"),
    *("wsc_fast.auth", "wsc_fast.demo", "wsc_fast.testing", "wsc_fast.config.files"),
    *("wsc_fast.observe.observing", "wsc_fast.observe.json_log", "wsc_fast.adapters.uvicorn"),
    *("wsc_fast.listen.acceptor", "wsc_fast.listen.tls"),
}
# These come with asyncio and picows.
NOT_FOR_A_NAME = {"asyncio", "ssl", "socket", "picows", "python_socks", "multidict", "aiofastnet"}
NOT_FOR_A_NAME |= {"msgspec", "zlib", "wsc_fast.hub", "wsc_fast._core"}


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import wsc_fast", NOT_FOR_A_HUB | NOT_FOR_A_NAME),
        ("from wsc_fast import Hub", NOT_FOR_A_HUB),
    ],
)
def test_an_import_brings_little(statement: str, unwanted: set[str]) -> None:
    # Without site, which imports more for the editable installs of a developer.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *site.getsitepackages()])}
    code = f"""
import sys
before = set(sys.modules)
{statement}
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stderr == ""
    brought = set(done.stdout.split())
    assert brought & unwanted == set()
    assert len(brought) <= MOST_MODULES[statement]


@pytest.mark.parametrize("name", ["MemoryOfflineStore", "MemoryBus", "ConfigError", "Identity"])
def test_a_small_name_brings_no_sqlite_and_no_hub(name: str) -> None:
    code = f"import sys; from wsc_fast import {name}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.stderr == ""
    assert {"sqlite3", "wsc_fast.hub"} & set(done.stdout.split()) == set()


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: stub.stem)
def test_no_compiled_object_can_be_pickled(stub: Path) -> None:
    # Cython would write code for it, 6 % of all, for copies that no other process can use.
    module = importlib.import_module(f"wsc_fast._core.{stub.stem}")
    for made in vars(module).values():
        if inspect.isclass(made) and made.__module__ == module.__name__:
            assert "__reduce_cython__" not in vars(made)


def test_a_client_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match="cannot pickle a Client"):
        pickle.dumps(wsc_fast.Client(wsc_fast.Hub()._engine))


def test_the_version_is_the_one_of_the_distribution() -> None:
    assert wsc_fast.__version__ == version("wsc_fast")


# --- picows ---


def test_the_build_fits_the_picows_that_is_installed() -> None:
    assert PICOWS_BUILT_FOR.split(".")[:2] == version("picows").split(".")[:2]
    check_picows(PICOWS_BUILT_FOR, version("picows"))
    assert isinstance(DEBUG_BUILD, bool)


@pytest.mark.parametrize("installed", ["2.3.1", "2.3.2", "2.3.10", "2.3.2.post1"])
def test_a_picows_of_the_same_series_will_do(installed: str) -> None:
    check_picows("2.3.1", installed)


@pytest.mark.parametrize(
    "installed", ["2.3.0", "2.2.9", "2.4.0", "3.3.1", "1.0", "2", "unknown", "2.3", None]
)
def test_another_picows_is_an_import_error_that_names_the_one_needed(
    installed: str | None,
) -> None:
    with pytest.raises(ImportError, match=re.escape("picows>=2.3.1,<2.4")) as caught:
        check_picows("2.3.1", installed)
    assert "\n" not in str(caught.value)
    assert (installed or "not installed") in str(caught.value)


def test_the_check_runs_before_a_compiled_module_touches_picows() -> None:
    code = """
import picows.version
picows.version.__version__ = "2.9.0"
from wsc_fast import Hub
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "ImportError" in done.stderr
    assert "picows 2.9.0 is installed" in done.stderr
    assert f"picows>={PICOWS_BUILT_FOR}" in done.stderr


# --- stubs ---


def runtime_module(stub: Path) -> Any:
    return importlib.import_module(f"wsc_fast._core.{stub.stem}")


def names_in(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """The definitions of a stub, by name."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


def stub_classes() -> list[tuple[Path, ast.ClassDef]]:
    return [
        (stub, node)
        for stub in STUBS
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ClassDef)
    ]


def compiled_parameters(function: Any) -> list[str] | None:
    """Names of parameters in Cython's signature line, with = where there is a default."""
    first = (getattr(function, "__doc__", None) or "").partition("\n")[0]
    match = re.match(r"(?:\w+\.)?(\w+)\((.*)\)(?: -> [\w ]+)?$", first)
    if match is None:
        return None
    names = []
    for part in re.sub(r"\([^()]*\)", "()", match[2]).split(","):
        name, equals, _ = part.strip().partition("=")
        if name and name != "*":
            names.append(name.split(" ")[-1] + equals)
    return names


def stub_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    with_default = len(plain) - len(arguments.defaults)
    names = [a.arg + ("=" if i >= with_default else "") for i, a in enumerate(plain)]
    if arguments.vararg is not None:
        names.append("*" + arguments.vararg.arg)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        names.append(argument.arg + ("=" if default is not None else ""))
    return names


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: stub.stem)
def test_a_stub_names_what_its_module_has(stub: Path) -> None:
    module = runtime_module(stub)
    named = names_in(ast.parse(stub.read_text()).body)
    for name, node in named.items():
        assert hasattr(module, name), name
        if isinstance(node, ast.FunctionDef):
            assert compiled_parameters(getattr(module, name)) == stub_parameters(node)
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }
    # Helpers of one module are its own business.
    assert own <= set(named)


@pytest.mark.parametrize(
    ("stub", "node"), stub_classes(), ids=[node.name for _, node in stub_classes()]
)
def test_the_stub_of_a_class_agrees_with_it(stub: Path, node: ast.ClassDef) -> None:
    cls = getattr(runtime_module(stub), node.name)
    stubbed = names_in(node.body)
    for name, member in stubbed.items():
        assert hasattr(cls, name), name
        value = inspect.getattr_static(cls, name)
        if not isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef)) or any(
            isinstance(d, ast.Name) and d.id == "property" for d in member.decorator_list
        ):
            assert inspect.isdatadescriptor(value), name
        elif not name.startswith("__"):
            assert callable(value), name
            parameters = compiled_parameters(value)
            # Methods without a docstring of their own still get the signature line.
            assert parameters is not None, name
            if name != "debug":  # whose stars Cython's signature line leaves out
                assert parameters == stub_parameters(member), name
    if node.name == "Guard":
        return  # plays a socket and a logger for picows alone
    # Editors do not complete the methods of a client that a transport and picows call.
    of_protocols = {*dir(asyncio.BufferedProtocol), *dir(WSListener)}
    runtime = {name for name in vars(cls) if not name.startswith("_")} - of_protocols
    assert runtime <= set(stubbed)


def test_the_bases_in_the_stubs_are_the_real_ones() -> None:
    for stub, node in stub_classes():
        cls = getattr(runtime_module(stub), node.name)
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        # The stubs leave these two out, with their methods.
        real = [
            base for base in cls.__bases__ if base not in (asyncio.BufferedProtocol, WSListener)
        ]
        assert bases in ([], [base.__name__ for base in real]), node.name


# --- what is installed, and what is handed out ---


def test_each_declaration_can_be_cimported_where_it_is_installed(tmp_path: Path) -> None:
    # The headers of src_cy are not installed, and not on the compiler's way here.
    modules = sorted(path.stem for path in ROOT.glob("wsc_fast/_core/*.pxd"))
    (tmp_path / "user.pyx").write_text(
        "".join(f"from wsc_fast._core cimport {module}\n" for module in modules)
        + "cdef receiver.Receiver it = None\ncdef deflate.Codec codec = None\n"
    )
    (tmp_path / "setup.py").write_text(
        "from Cython.Build import cythonize\n"
        "from setuptools import setup\n"
        f"setup(ext_modules=cythonize('user.pyx', include_path=[{str(ROOT)!r}], quiet=True))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CFLAGS": "-O0 -g0"}
    for command in (["setup.py", "-q", "build_ext", "--inplace"], ["-c", "import user"]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_sdist_holds_all_sources_in_c(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", "build")
    for name in ("wsc_fast", "src_cy", "benchmarks", "trials"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, tmp_path / name)
    subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "egg_info"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=60,
    )
    listed = (tmp_path / "wsc_fast.egg-info/SOURCES.txt").read_text().split("\n")
    wanted = {
        str(path.relative_to(tmp_path))
        for pattern in ("*.h", "*.pyx", "*.pxd", "benchmarks/**/*.c", "trials/**/*.c")
        for path in tmp_path.rglob(pattern)
    }
    assert {
        "benchmarks/loadgen.c",
        "benchmarks/load/state.h",
        "trials/fuzz/fuzz_wire.c",
        "src_cy/wire.h",
    } <= wanted
    assert wanted <= set(listed)


# --- the wheel, and the sources ---


def run_in(tree: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=tree,
        env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
    )


def build(tree: Path, *command: str) -> None:
    # Compiled as fast as can be, where that has not been done for ROOT.
    compiler = tree / "cc"
    compiler.write_text('#!/bin/sh\nexec cc "$@" -O0 -g0\n')
    compiler.chmod(0o755)
    done = run_in(tree, *command, CC=str(compiler))
    assert done.returncode == 0, done.stdout


def pip_wheel(source: str, out: str) -> list[str]:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, source]
    if int(version("setuptools").partition(".")[0]) >= 77:
        # The build's needs are here; otherwise pip fetches them into an environment of its own.
        command.insert(4, "--no-build-isolation")
    return command


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built from, so that the tree itself stays untouched.

    The times of its files are those of ROOT, and so are Cython's C and the modules, so that nothing
    is compiled that is compiled already.
    """
    tree = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for name in ("wsc_fast", "src_cy"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, tree / name)
    for path in (ROOT / "build").glob("cython*"):
        shutil.copytree(path, tree / "build" / path.name)
    for path in (ROOT / "build").glob("lib.*/**/*.so"):
        copy = tree / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    return tree


@pytest.fixture(scope="module")
def wheel_file(tree: Path) -> Path:
    build(tree, *pip_wheel(".", str(tree / "wheel")))
    (path,) = (tree / "wheel").glob("wsc_fast-*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> list[str]:
    """The names in a wheel."""
    with zipfile.ZipFile(wheel_file) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def sources_file(tree: Path) -> Path:
    """An archive of the sources, which is made without a compiler."""
    code = "from setuptools import build_meta; build_meta.build_sdist('sdist')"
    done = run_in(tree, sys.executable, "-c", code, CC="/nonexistent/cc")
    assert done.returncode == 0, done.stdout
    (path,) = (tree / "sdist").glob("wsc_fast-*.tar.gz")
    return path


@pytest.fixture(scope="module")
def sources(sources_file: Path) -> list[str]:
    """The names in it."""
    with tarfile.open(sources_file) as archive:
        return [name.partition("/")[2] for name in archive.getnames()]


def packaged() -> set[str]:
    """All that a hub needs of the tree when it runs, but for what is compiled."""
    wanted = {"wsc_fast/py.typed"}
    scripts = ("stores/redis/*.lua", "bus/redis/*.lua")
    for pattern in (
        "**/*.py",
        "_core/*.pxd",
        "_core/*.pyi",
        "demo/*.html",
        "demo/*.css",
        "demo/*.js",
        *scripts,
    ):
        found = {str(path.relative_to(ROOT)) for path in ROOT.glob(f"wsc_fast/{pattern}")}
        assert found
        wanted |= found
    return wanted


TRANSLATE = """
from setuptools import distutils
from distutils.core import run_setup
from pathlib import Path

command = run_setup("setup.py", stop_after="init").get_command_obj("build_ext")
command.ensure_finalized()
command.distribution.verbose = 0
command.translate()
print(*(Path(each.sources[0]).stat().st_size for each in command.extensions))
"""


def test_the_longest_modules_are_compiled_first(tree: Path) -> None:
    done = run_in(tree, sys.executable, "-c", TRANSLATE)
    assert done.returncode == 0, done.stdout
    lengths = [int(length) for length in done.stdout.split()]
    assert len(lengths) == len(list(ROOT.glob("src_cy/*.pyx")))
    assert lengths == sorted(lengths, reverse=True)


def test_the_wheel_holds_code_declarations_stubs_scripts_and_the_demo_page(
    wheel: list[str],
) -> None:
    assert packaged() - set(wheel) == set()


def test_the_sources_hold_the_same_and_what_is_compiled(sources: list[str]) -> None:
    compiled = {str(path.relative_to(ROOT)) for path in ROOT.glob("src_cy/*.*")}
    wanted = packaged() | compiled | {"setup.py", "pyproject.toml", "LICENSE"}
    assert wanted - set(sources) == set()


def test_the_wheel_holds_each_extension_once(wheel: list[str]) -> None:
    names = sorted(Path(name).name.partition(".")[0] for name in wheel if name.endswith(".so"))
    assert names == sorted(path.stem for path in ROOT.glob("src_cy/*.pyx"))


def test_the_wheel_holds_no_source_of_an_extension_and_no_tests(wheel: list[str]) -> None:
    assert [n for n in wheel if re.search(r"\.(pyx|c|h|cpp|pyc)$", n)] == []
    tops = {re.sub("-.*[.]", "-VERSION.", name.partition("/")[0]) for name in wheel}
    assert tops == {"wsc_fast", "wsc_fast-VERSION.dist-info"}


@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux")
def test_the_wheel_serves_the_readme_where_there_is_no_compiler(
    wheel_file: Path, tmp_path: Path
) -> None:
    scripts = Path(sys.executable).parent
    path = os.pathsep.join([str(scripts), os.environ["PATH"]])
    repair = ("auditwheel", "repair", "-w", str(tmp_path), str(wheel_file))
    done = run_in(tmp_path, sys.executable, "-m", *repair, PATH=path)
    assert done.returncode == 0, done.stdout
    (repaired,) = tmp_path.glob("wsc_fast-*manylinux*.whl")

    venv.create(tmp_path / "empty", symlinks=True)
    python = str(tmp_path / "empty/bin/python")
    alone = {"PATH": str(tmp_path / "empty/bin"), "CC": "/nonexistent/cc", "PYTHONPATH": ""}
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q")
    done = run_in(tmp_path, *pip, "--only-binary", ":all:", str(repaired), **alone)
    assert done.returncode == 0, done.stdout

    shutil.copy(ROOT / "tests/ten_lines.py", tmp_path)
    done = run_in(tmp_path, python, "ten_lines.py", str(ROOT / "README.md"), **alone)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("\nthe ten lines were served and answered\n")


NO_HEADERS = "#!/bin/sh\necho 'fatal error: Python.h: No such file or directory' >&2\nexit 1\n"


@pytest.mark.parametrize(
    ("compiler", "missing"),
    [
        (None, "there is no C compiler ('/nonexistent/cc' is not found): install one, as by 'apt"),
        (NO_HEADERS, "the headers of Python or C are missing (looked for Python.h in "),
    ],
    ids=["no compiler", "no headers"],
)
def test_the_sources_say_in_one_line_what_is_missing_to_compile_them(
    sources_file: Path, tmp_path: Path, compiler: str | None, missing: str
) -> None:
    command = tmp_path / "cc"
    if compiler is not None:
        command.write_text(compiler)
        command.chmod(0o755)
    cc = "/nonexistent/cc" if compiler is None else str(command)
    done = run_in(tmp_path, *pip_wheel(str(sources_file), "out"), CC=cc)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if "wsc_fast: no wheel fits" in line]
    assert missing in line
    assert "apt install" in line
    assert "Traceback" not in done.stdout
