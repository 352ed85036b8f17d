"""Builds the compiled modules: src_cy/NAME.pyx becomes wsc_fast._core.NAME.

Everything else about the package stands in pyproject.toml. WSC_DEBUG=1 builds with bounds checks,
C assertions and no optimisation (what `make debug` tests); WSC_SANITIZE=address or undefined adds a
sanitizer.

Only the command that compiles needs a compiler and Cython's output: metadata and sources are made
without either.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MODULES = (
    "memory",
    "histogram",
    "clock",
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
    "poller",
    "receiver",
    "stream",
    "tls_stream",
    "entrance",
    "picows_connection",
    "pacing",
    "closing",
    "pings",
    "hearing",
    "connection",
    "calls",
    "envelopes",
    "kept",
    "handshake",
    "upgrade",
    "messages",
    "timers",
    "pending",
    "resp",
)

# The modules in which -O3 pays: by the gate, sends and timers cost 1 to 5 % less with it. Elsewhere
# it makes no message cheaper, and -O2 compiles a third faster.
HOT = {
    "calls",
    "clients",
    "closing",
    "connection",
    "deflate",
    "engine",
    "fanout",
    "frames",
    "handshake",
    "hearing",
    "loop_context",
    "members",
    "messages",
    "outbox",
    "pacing",
    "pings",
    "poller",
    "read_buffer",
    "read_turns",
    "receiver",
    "stream",
    "timers",
    "tls_stream",
    "upgrade",
}

# The modules that look a library up when they run.
LOADING = {"deflate", "tls_stream"}

debug = os.environ.get("WSC_DEBUG") == "1"
sanitize = os.environ.get("WSC_SANITIZE", "")

compile_args = ["-g", "-UNDEBUG"] if debug else ["-g1", "-DNDEBUG"]
compile_args += ["-fvisibility=hidden", "-Wno-unused-function"]
link_args = []
if sanitize:
    # The first report ends the process, so that no test passes over it.
    compile_args += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"]
    # Python is compiled with -fwrapv, under which no overflow is one.
    compile_args.append("-fno-wrapv")
    link_args.append(f"-fsanitize={sanitize}")

build_dir = Path("build/cython-debug" if debug else "build/cython")


def optimisation(name: str) -> str:
    if debug:
        return "-O1"
    return "-O3" if name in HOT else "-O2"


def extensions() -> list[Extension]:
    return [
        Extension(
            f"wsc_fast._core.{name}",
            [f"src_cy/{name}.pyx"],
            include_dirs=["src_cy"],
            depends=[str(path) for path in Path("wsc_fast/_core").glob("*.pxd")]
            + [str(path) for path in Path("src_cy").glob("*.h")],
            define_macros=[("WSC_PICOWS_VERSION", f'"{version("picows")}"')]
            + ([("WSC_DEBUG", "1")] if debug else []),
            extra_compile_args=[optimisation(name), *compile_args],
            extra_link_args=link_args,
            libraries=["dl"] if name in LOADING and sys.platform == "linux" else [],
        )
        for name in MODULES
    ]


def check_compiler() -> None:
    """Ends the build with one line if nothing here compiles C for this Python."""
    why = "wsc_fast: no wheel fits this Python and platform, so that it is compiled here, and "
    if sys.platform == "win32":
        raise SystemExit(f"{why}Windows is not supported")
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(command[0]) is None:
        raise SystemExit(
            f"{why}there is no C compiler ({command[0]!r} is not found): install one, as by "
            "'apt install gcc libc6-dev', 'dnf install gcc', 'apk add gcc musl-dev' or "
            "'xcode-select --install', or use a Python that a wheel fits"
        )
    include = sysconfig.get_path("include")
    headers = subprocess.run(
        [*command, "-E", f"-I{include}", "-o", os.devnull, "-x", "c", "-"],
        input="#include <Python.h>\n#include <stdlib.h>\n",
        capture_output=True,
        text=True,
    )
    if headers.returncode:
        said = next((line for line in headers.stderr.splitlines() if "error" in line), "")
        raise SystemExit(
            f"{why}the headers of Python or C are missing (looked for Python.h in {include}; "
            f"{said or 'the compiler failed'}): install them, as by 'apt install python3-dev "
            "libc6-dev', 'dnf install python3-devel' or 'apk add python3-dev musl-dev'"
        )


def is_stale(name: str) -> bool:
    """Whether a module's own .pxd is newer than its C: Cython looks for it beside the .pyx."""
    declared, made = Path(f"wsc_fast/_core/{name}.pxd"), build_dir / f"src_cy/{name}.c"
    return declared.exists() and made.exists() and declared.stat().st_mtime > made.stat().st_mtime


def length_of_c(extension: Extension) -> int:
    return Path(extension.sources[0]).stat().st_size


class BuildModules(build_ext):
    """Cython's work, then the compiler's; both on all cores."""

    def run(self) -> None:
        if self.editable_mode:
            # In a folder that stays: the next time only changed modules are compiled.
            place = f"{self.plat_name}-{sys.implementation.cache_tag}"
            self.build_lib, self.build_temp = f"build/lib.{place}", f"build/temp.{place}"
        if self.extensions:
            check_compiler()
            self.translate()
        super().run()

    def translate(self) -> None:
        from Cython.Build import cythonize

        translated = cythonize(
            extensions(),
            force=any(is_stale(name) for name in MODULES),
            # Where processes are forked: a spawned one would read this file again.
            nthreads=os.cpu_count() or 1 if sys.platform == "linux" else 0,
            include_path=["."],
            quiet=not self.distribution.verbose,
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
                # Nothing compiled goes into another process. Code for pickling took 6 % of the C.
                "auto_pickle": False,
            },
        )
        sources = {each.name: each.sources for each in translated}
        for extension in self.extensions:
            extension.sources = sources[extension.name]
        # The longest first: as the last one it would keep one core busy, and the others idle.
        self.extensions.sort(key=length_of_c, reverse=True)


if __name__ == "__main__":
    setup(
        options={"build_ext": {"parallel": os.cpu_count()}},
        cmdclass={"build_ext": BuildModules},
        ext_modules=extensions(),
    )
