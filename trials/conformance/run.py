"""Runs the Autobahn cases (by kosoku) against a server and judges every one of them.

    python -m trials.conformance.run          all 517 cases, uvloop
    python -m trials.conformance.run --loop asyncio --tls --exclude '9.*'

The reports go to build/conformance/ (index.html, and index.json, which is judged). All cases
together are run by two processes, since kosoku uses one core. The exit status is 1 if any case
failed in behaviour or close behaviour, or did not run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from wsc_fast.testing import Authority

ROOT = Path(__file__).parents[2]
CASES = 517
# Informational cases probe what the RFC leaves open.
GOOD = {"OK", "INFORMATIONAL"}


@contextlib.asynccontextmanager
async def tunnel(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A port whose connections are passed on over TLS, since kosoku speaks none itself."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="localhost"
        )
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    accepted: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(accept(reader, writer))
        accepted.add(task)
        task.add_done_callback(accepted.discard)

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in accepted:
            task.cancel()
        await asyncio.gather(*accepted, return_exceptions=True)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def shares_of(arguments: argparse.Namespace) -> list[list[str]]:
    """The options of each process of kosoku. Section 12 takes as long as all other sections."""
    chosen = [f"-i{pattern}" for pattern in arguments.cases]
    chosen += [f"-x{pattern}" for pattern in arguments.exclude]
    return [chosen] if chosen else [["-i12.*"], ["-x12.*"]]


async def run_cases(options: list[str], port: int, report: Path) -> dict[str, dict[str, Any]]:
    """Runs cases in a process of their own; returns the result of each."""
    index = report / "index.json"
    index.unlink(missing_ok=True)
    cases = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "trials.conformance.cases"),
        *options,
        f"-o{report}",
        f"127.0.0.1:{port}",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    await cases.wait()
    results: dict[str, dict[str, Any]]
    (results,) = json.loads(index.read_text()).values()
    return results


async def run(
    arguments: argparse.Namespace, report: Path
) -> tuple[dict[str, dict[str, Any]], float]:
    """Starts the server, runs the cases; returns their results, and how many seconds they took."""
    port = address = free_port()
    command = [sys.executable, "-m", f"trials.conformance.{arguments.server}_server", str(port)]
    async with contextlib.AsyncExitStack() as stack:
        if arguments.server == "echo":
            command += [arguments.loop, arguments.transport]
        if arguments.tls:
            authority = Authority()
            command += map(str, authority.write(report))
            address = await stack.enter_async_context(tunnel(port, authority.client_context()))
        server = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        stack.push_async_callback(server.wait)
        stack.callback(server.terminate)
        assert server.stdout is not None
        if await server.stdout.readline() != b"ready\n":
            raise SystemExit("the server did not start")
        start = time.monotonic()
        parts = await asyncio.gather(
            *(
                run_cases([f"-p{arguments.parallel}", *share], address, report / f"part-{part}")
                for part, share in enumerate(shares_of(arguments), 1)
            )
        )
        taken = time.monotonic() - start
        if server.returncode is not None:
            raise SystemExit(f"the server ended with {server.returncode}")
    results = {case: result for part in parts for case, result in part.items()}
    return results, taken


def judge(results: dict[str, dict[str, Any]], expected: int | None) -> int:
    """Prints a line per section and per bad case; returns how many are bad or missing."""
    sections: dict[str, Counter[str]] = {}
    bad = []
    for case, result in results.items():
        verdict = result["behavior"]
        if verdict in GOOD and result["behaviorClose"] not in GOOD:
            verdict = f"close {result['behaviorClose']}"
        sections.setdefault(case.partition(".")[0], Counter())[verdict] += 1
        if verdict not in GOOD:
            bad.append(f"  {case}: {verdict}")
    for section in sorted(sections, key=int):
        verdicts = ", ".join(f"{count} {name}" for name, count in sections[section].items())
        print(f"section {section}: {verdicts}")
    print("\n".join(bad))
    missing = 0 if expected is None else expected - len(results)
    if missing:
        print(f"  {missing} cases did not run")
    return len(bad) + abs(missing)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--server", choices=["echo", "websockets"], default="echo")
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    parser.add_argument("--transport", choices=["hub", "picows", "uvicorn"], default="hub")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--cases", action="append", default=[], metavar="GLOB")
    parser.add_argument("--exclude", action="append", default=[], metavar="GLOB")
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "conformance")
    arguments = parser.parse_args()

    name = f"{arguments.server}-{arguments.loop}"
    name += f"-{arguments.transport}" if arguments.transport != "hub" else ""
    name += "-tls" if arguments.tls else ""
    report = arguments.output.resolve() / name
    report.mkdir(parents=True, exist_ok=True)
    results, taken = asyncio.run(run(arguments, report))
    selected = [
        case
        for case in results
        if not arguments.cases or any(fnmatchcase(case, glob) for glob in arguments.cases)
    ]
    whole = not arguments.cases and not arguments.exclude
    bad = judge({case: results[case] for case in selected}, CASES if whole else None)
    print(f"{name}: {len(selected) - bad} of {len(selected)} cases passed in {taken:.0f} s")
    if bad or not selected:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
