"""Replays what the fuzzers of trials/fuzz/ found worth keeping (docs/testing.md)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from trials.fuzz.fuzz_stream import REQUEST, Benches, Disagreement, benches, check
from trials.fuzz.heads import Unexpected

FUZZ = Path(__file__).parent.parent / "trials/fuzz"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
STREAMS = sorted((FUZZ / "corpus" / "stream").iterdir())


@pytest.fixture(scope="module")
def on() -> Iterator[Benches]:
    with benches() as found:
        yield found


@pytest.fixture(scope="module")
def wire_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fuzz_wire.c, compiled with sanitizers where the compiler has them."""
    compiler = os.environ.get("CC", "").split() or [shutil.which("cc") or shutil.which("gcc") or ""]
    if not compiler[0]:
        pytest.skip("there is no C compiler")
    driver = tmp_path_factory.mktemp("fuzz") / "fuzz_wire"
    command = [*compiler, "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-o", str(driver)]
    command.append(str(FUZZ / "fuzz_wire.c"))
    if subprocess.run([*command, *SANITIZERS], capture_output=True).returncode:
        subprocess.run(command, check=True)
    return driver


def run(driver: Path, *arguments: object) -> str:
    # Its own sanitizer, whatever this process has been started with.
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [str(driver), *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "files"), [("wire", 200), ("stream", 400)])
def test_a_corpus_stays_small(name: str, files: int) -> None:
    sizes = [path.stat().st_size for path in (FUZZ / "corpus" / name).iterdir()]
    assert 50 < len(sizes) <= files
    assert sum(sizes) <= 100_000


def test_the_parsers_in_c_agree_with_the_plain_ones(wire_driver: Path) -> None:
    corpus = FUZZ / "corpus" / "wire"
    count = len(list(corpus.iterdir()))
    assert run(wire_driver, corpus) == f"{count} inputs, no disagreement\n"


def test_the_parsers_in_c_agree_with_the_plain_ones_at_random(wire_driver: Path) -> None:
    assert run(wire_driver, 20_000, 4) == "20000 inputs, no disagreement\n"


@pytest.mark.parametrize("path", STREAMS, ids=[path.name[:12] for path in STREAMS])
def test_a_stream_means_what_the_model_says(path: Path, on: Benches) -> None:
    check(path.read_bytes(), on)


def test_a_disagreement_is_seen(on: Benches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.model.DATA", {0, 1})
    with pytest.raises(Disagreement):
        check(b"\x00\x00\x82\x81abcdx", on)
    monkeypatch.setattr("trials.fuzz.heads.HEAD_MAX", 4)
    with pytest.raises(Unexpected):
        check(bytes([REQUEST, 0]) + b"GET / HTTP/1.1\r\n\r\n", on)


def padded(size: int) -> bytes:
    """An upgrade whose head has this many bytes, as an input of fuzz_stream.py."""
    head = (
        "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nPad: "
    )
    return bytes([REQUEST, 0]) + f"{head}{'p' * (size - len(head) - 4)}\r\n\r\n".encode()


@pytest.mark.parametrize("size", range(16_382, 16_390))
def test_the_longest_head_has_16_kib_however_it_is_split(size: int, on: Benches) -> None:
    check(padded(size), on)
