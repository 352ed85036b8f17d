"""Builds the compiled modules: src_cy/NAME.pyx becomes wsc_fast._core.NAME.

Everything else about the package stands in pyproject.toml. WSC_DEBUG=1 builds with bounds checks,
C assertions and no optimisation (what `make debug` tests); WSC_SANITIZE=address or undefined adds a
sanitizer.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

MODULES = (
    "memory",
    "histogram",
    "frames",
    "outbox",
    "loop_context",
    "read_buffer",
    "read_turns",
    "rates",
    "fanout",
    "members",
    "clients",
    "deflate",
    "engine",
    "receiver",
    "picows_connection",
    "connection",
    "calls",
    "handshake",
    "messages",
    "timers",
    "pending",
)

debug = os.environ.get("WSC_DEBUG") == "1"
sanitize = os.environ.get("WSC_SANITIZE", "")

compile_args = ["-O1", "-g", "-UNDEBUG"] if debug else ["-O3", "-g1", "-DNDEBUG"]
compile_args += ["-fvisibility=hidden", "-Wno-unused-function"]
link_args = []
if sanitize:
    # The first report ends the process, so that no test passes over it.
    compile_args += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"]
    # Python is compiled with -fwrapv, under which no overflow is one.
    compile_args.append("-fno-wrapv")
    link_args.append(f"-fsanitize={sanitize}")

extensions = [
    Extension(
        f"wsc_fast._core.{name}",
        [f"src_cy/{name}.pyx"],
        include_dirs=["src_cy"],
        depends=[str(path) for path in Path("wsc_fast/_core").glob("*.pxd")]
        + [str(path) for path in Path("src_cy").glob("*.h")],
        define_macros=[("WSC_PICOWS_VERSION", f'"{version("picows")}"')]
        + ([("WSC_DEBUG", "1")] if debug else []),
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        libraries=["dl"] if name == "deflate" and sys.platform == "linux" else [],
    )
    for name in MODULES
]

build_dir = Path("build/cython-debug" if debug else "build/cython")


def is_stale(name: str) -> bool:
    """Whether a module's own .pxd is newer than its C: Cython looks for it beside the .pyx."""
    declared, made = Path(f"wsc_fast/_core/{name}.pxd"), build_dir / f"src_cy/{name}.c"
    return declared.exists() and made.exists() and declared.stat().st_mtime > made.stat().st_mtime


setup(
    options={"build_ext": {"parallel": os.cpu_count()}},
    ext_modules=cythonize(
        extensions,
        force=any(is_stale(name) for name in MODULES),
        include_path=["."],
        build_dir=str(build_dir),
        compiler_directives={
            "language_level": 3,
            "binding": False,
            "boundscheck": debug,
            "wraparound": debug,
            "initializedcheck": debug,
            "nonecheck": debug,
            "cdivision": True,
            "overflowcheck": debug,
            "embedsignature": True,
        },
    ),
)
