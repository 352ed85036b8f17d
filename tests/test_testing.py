"""wsc_fast.testing: its bytes against the model, its clients and hubs against each other."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

import wsc_fast
from tests.model import Model
from tests.support import known, named
from wsc_fast import Client, Hub, HubConfig, testing
from wsc_fast.testing import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Authority,
    Frame,
    RawClient,
    apply_mask,
    client_hello,
    deflated,
    encode,
    eventually,
    eventually_async,
    head,
    open_client,
    running,
    running_in_thread,
    take_frame,
    trusting,
    upgrade_request,
    uri,
    wait_until,
)

ROOT = Path(__file__).parents[1]
SIZES = [0, 1, 125, 126, 127, 65535, 65536, 70000]
MASKS = [bytes(4), b"\x37\xfa\x21\x3d", b"\xff" * 4]


def echoing(**settings: Any) -> Hub:
    hub = Hub(HubConfig(**settings), authenticate=named)

    @hub.on_message_received
    def echo(client: Client, message: str | bytes) -> None:
        client.send(message)

    return hub


# --- bytes ---


@pytest.mark.parametrize("mask", MASKS, ids=["plain", "mixed", "ones"])
@pytest.mark.parametrize("size", SIZES)
def test_the_model_reads_what_is_encoded(size: int, mask: bytes) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    model = Model()
    model.feed(encode(BINARY, payload[:size], mask=mask) + encode(PING, b"alive", mask=mask))
    assert model.events == [("message", payload[:size]), ("pong", b"alive")]


def test_the_model_reads_fragments_and_compressed_messages() -> None:
    packed = deflated(b"one two one two")
    model = Model(deflate=True)
    model.feed(encode(TEXT, packed[:4], fin=False, rsv=4) + encode(0, packed[4:]))
    model.feed(encode(CLOSE, b"\x03\xe8"))
    assert model.events == [("message", "one two one two"), ("close", 1000)]


@pytest.mark.parametrize(
    "data",
    [
        encode(TEXT, b"hello", masked=False),
        encode(TEXT, b"hello", rsv=2),
        encode(3, b"hello"),
        encode(PING, b"", fin=False),
        encode(TEXT, b"hello", length_bytes=2),
        encode(TEXT, b"hello", length_bytes=8),
        encode(TEXT, bytes(300), length_bytes=8),
        head(BINARY, 1 << 63),
    ],
    ids=["no mask", "reserved", "opcode", "part of a ping", "2", "8", "8 for 2", "sign"],
)
def test_what_is_broken_on_purpose_fails_in_the_model(data: bytes) -> None:
    model = Model()
    model.feed(data)
    assert model.events == [("fail", 1002)]


@pytest.mark.parametrize("mask", MASKS, ids=["plain", "mixed", "ones"])
def test_a_mask_undoes_itself(mask: bytes) -> None:
    for payload in (b"", b"a", b"abc", bytes(range(250))):
        assert apply_mask(apply_mask(payload, mask), mask) == payload


@pytest.mark.parametrize("size", SIZES)
def test_a_frame_is_taken_when_it_is_whole_and_not_before(size: int) -> None:
    whole = encode(BINARY, bytes(size), masked=False, rsv=4)
    data = bytearray()
    for at in range(len(whole)):
        if at < 20 or at > len(whole) - 3:
            assert take_frame(data) is None
        data.append(whole[at])
    data += b"\x81"
    assert take_frame(data) == Frame(BINARY, bytes(size), rsv=4)
    assert data == b"\x81"


@pytest.mark.parametrize("mask", MASKS, ids=["plain", "mixed", "ones"])
@pytest.mark.parametrize("size", [0, 5, 200, 70_000])
def test_a_frame_of_a_client_is_taken_and_unmasked(size: int, mask: bytes) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    whole = encode(BINARY, payload[:size], fin=False, mask=mask)
    for cut in {*range(15), len(whole) - 1} & {*range(len(whole))}:
        assert take_frame(bytearray(whole[:cut]), masked=True) is None
    data = bytearray(whole * 2)
    wanted = Frame(BINARY, payload[:size], fin=False)
    assert [take_frame(data, masked=True) for _ in range(3)] == [wanted, wanted, None]


def test_a_masked_frame_of_a_server_is_a_failure() -> None:
    with pytest.raises(AssertionError, match="mask bit"):
        take_frame(bytearray(encode(TEXT, b"hello")))
    with pytest.raises(AssertionError, match="mask bit"):
        take_frame(bytearray(encode(TEXT, b"hello", masked=False)), masked=True)


def test_a_request_says_what_it_is_told_to() -> None:
    request = upgrade_request(
        "app.example", "/live?a=b", [("Origin", "null")], Upgrade="", Sec_WebSocket_Version="12"
    )
    lines = request.decode().split("\r\n")
    assert lines[:2] == ["GET /live?a=b HTTP/1.1", "Host: app.example"]
    assert lines[-3:] == ["Origin: null", "", ""]
    assert "Sec-WebSocket-Version: 12" in lines
    assert "Upgrade: websocket" not in lines
    assert upgrade_request() != upgrade_request(), "a new key each time"
    assert b"Host:" not in upgrade_request("")


# --- hubs and clients ---


async def test_a_client_sends_and_reads_frames(any_loop: str) -> None:
    async with running(echoing()) as hub:
        with await RawClient.open(hub, "/ws?id=a", tail=encode(TEXT, b"early")) as client:
            assert await client.recv() == Frame(TEXT, b"early")
            await client.send(BINARY, b"data", mask=b"abcd")
            assert await client.recv() == Frame(BINARY, b"data")
            await client.send(PING, b"alive")
            assert await client.recv() == Frame(PONG, b"alive")
            await client.send(CLOSE, b"\x03\xe8")
            (last,) = await client.recv_rest()
            assert last.code == 1000


async def test_a_client_over_tls_does_the_same(any_loop: str) -> None:
    authority = Authority()
    async with running(echoing(), ssl=authority.server_context()) as hub:
        for context in (authority.client_context(), trusting()):
            with await open_client(hub, context, "/ws?id=a") as client:
                await client.send(TEXT, b"hello")
                assert await client.recv() == Frame(TEXT, b"hello")
        with pytest.raises(ssl.SSLCertVerificationError):
            await open_client(hub, Authority().client_context(), "/ws?id=a")


async def test_a_client_that_vanishes_answers_no_ping() -> None:
    hub = echoing(heartbeat_interval=0.05, heartbeat_timeout=0.1, close_timeout=0.1)
    async with running(hub):
        with await RawClient.open(hub, "/ws?id=a") as client:
            client.vanish()
            await eventually(lambda: hub.get_stats().heartbeat_timeouts == 1)
            await eventually(lambda: hub.connections == 0)


async def test_a_client_that_resets_leaves_no_close_frame() -> None:
    async with running(echoing()) as hub:
        client = await RawClient.open(hub, "/ws?id=a")
        theirs = known(hub, "a")
        client.reset()
        await eventually(lambda: hub.connections == 0)
        assert theirs.close_code == 1006


async def test_an_upgrade_that_is_refused_is_a_failure_that_shows_the_answer() -> None:
    async with running(echoing()) as hub:
        with pytest.raises(AssertionError, match=r"HTTP/1\.1 404"):
            await RawClient.open(hub, "/elsewhere")


async def test_a_port_of_another_process_will_do() -> None:
    class Elsewhere:
        port = 0

    async with running(echoing()) as hub:
        Elsewhere.port = hub.port
        (await RawClient.open(Elsewhere(), "/ws?id=a")).close()


def test_a_hub_runs_in_a_thread_of_its_own() -> None:
    with running_in_thread(echoing()) as hub:
        with connect(uri(hub, "/ws?id=a")) as client:
            client.send("hello")
            assert client.recv(timeout=10) == "hello"
            assert hub.broadcast("to all") == 1
            assert client.recv(timeout=10) == "to all"
        wait_until(lambda: hub.get_connected_clients() == 0)
    with running_in_thread(hub):
        hub.broadcast("nobody hears it")


def test_a_hub_in_a_thread_that_cannot_start_tells_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="ddress"), running_in_thread(Hub(), port=port):
            pass
    with pytest.raises(ZeroDivisionError), running_in_thread(Hub()) as hub:
        raise ZeroDivisionError
    assert hub.loop is None


# --- waiting ---


async def test_what_never_comes_true_is_a_failure() -> None:
    with pytest.raises(AssertionError, match=r"in 0\.01 s"):
        await eventually(lambda: False, 0.01)
    with pytest.raises(AssertionError, match=r"in 0\.01 s"):
        wait_until(lambda: False, 0.01)

    async def never() -> bool:
        return False

    with pytest.raises(TimeoutError):
        await eventually_async(never, 0.01)


async def test_what_comes_true_is_waited_for() -> None:
    ready = asyncio.Event()
    asyncio.get_running_loop().call_soon(ready.set)
    await eventually(ready.is_set)

    async def is_ready() -> bool:
        return ready.is_set()

    await eventually_async(is_ready)
    wait_until(ready.is_set)


# --- TLS ---


async def test_certificates_are_written_for_programs_that_load_them(tmp_path: Path) -> None:
    authority = Authority()
    for _ in range(2):
        chain, key = authority.write(tmp_path, "127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key)
        async with running(echoing(), ssl=context) as hub:
            (await open_client(hub, authority.client_context(), "/ws?id=a")).close()


def test_the_first_bytes_of_tls_are_a_handshake_record() -> None:
    assert client_hello()[:2] == b"\x16\x03"
    assert client_hello(Authority().client_context())[5] == 1


def test_without_trustme_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['trustme'] = None\n"
        "from wsc_fast.testing import Authority, trusting\n"
        "trusting()\n"
        "try:\n    Authority()\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "pip install 'wsc_fast[testing]'" in done.stdout, done.stderr


# --- the kit as a package ---


def test_it_needs_nothing_that_an_application_does_not_have() -> None:
    code = (
        "import sys, wsc_fast\n"
        "assert 'wsc_fast.testing' not in sys.modules\n"
        "import wsc_fast.testing\n"
        "print([n for n in ('trustme', 'pytest', 'cryptography') if n in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("wsc_fast/testing/*.py")), ids=lambda path: path.stem
)
def test_it_uses_public_names_alone(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("wsc_fast"):
            assert node.module == "wsc_fast" or str(node.module).startswith("wsc_fast.testing.")
            if node.module == "wsc_fast":
                assert {alias.name for alias in node.names} <= set(wsc_fast.__all__)
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names if alias.name.startswith("wsc_fast")}
            assert names <= {"wsc_fast._core.clock"}  # which tests set
        elif isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
            assert isinstance(node.value, ast.Name), node.attr
            assert node.value.id in ("self", "cls", "client"), f"{node.value.id}.{node.attr}"


def test_its_names_are_sorted_complete_and_documented() -> None:
    assert sorted(testing.__all__) == sorted(set(testing.__all__))
    for name in testing.__all__:
        value = getattr(testing, name)
        if not isinstance(value, int):
            assert re.match(r"[A-Z`]", inspect.getdoc(value) or ""), name


def test_type_checkers_see_the_names_that_are_imported_when_used() -> None:
    tree = ast.parse((ROOT / "wsc_fast/testing/__init__.py").read_text())
    for_checkers = {
        (str(node.module).rpartition(".")[2], alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    at_run_time = {(module, name) for name, module in testing._MODULE_OF.items()}
    assert for_checkers == at_run_time
    assert set(testing.__all__) == set(testing._MODULE_OF)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        testing.Nothing  # noqa: B018


def test_the_kit_imports_no_hub_before_it_is_used() -> None:
    program = "import sys, wsc_fast.testing; print([m for m in sys.modules if 'wsc_fast.' in m])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "['wsc_fast.testing']\n", done.stderr


def test_the_recipe_of_the_page_passes() -> None:
    page = (ROOT / "docs/how-to/test.md").read_text().partition("\n## Testing an application\n")[2]
    (code,) = re.findall(r"```python\n(.*?)```", page.partition("\n## ")[0], re.S)
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(code, names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


@pytest.mark.parametrize("name", testing.__all__)
def test_a_name_is_in_the_reference(name: str) -> None:
    text = (ROOT / "docs/reference.md").read_text()
    section = text.partition("\n## wsc_fast.testing\n")[2].partition("\n## ")[0]
    assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", section)
