"""Faults of compression (README.md, section D): what test_deflate.py leaves out of its rows."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zlib

import pytest

from tests.support import MEASURES, agreed, join, named, stall, unless_lost
from wsc_fast import Client, Hub, HubConfig, ProtocolError
from wsc_fast.testing import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    encode,
    eventually,
    running,
)

KIB, MIB = 1 << 10, 1 << 20
RSV1 = 4
TAIL = b"\x00\x00\xff\xff"

pytestmark = pytest.mark.usefixtures("quiet_log")


def offer(text: str = "permessage-deflate") -> list[tuple[str, str]]:
    return [("Sec-WebSocket-Extensions", text)]


class Deflater:
    """A client's end of permessage-deflate, which keeps its contexts or not."""

    def __init__(self, window: int = 15, *, keeps: bool = False) -> None:
        self.window, self.keeps = window, keeps
        self._out, self._in = zlib.compressobj(wbits=-window), zlib.decompressobj(-window)

    def pack(self, message: bytes) -> bytes:
        if not self.keeps:
            self._out = zlib.compressobj(wbits=-self.window)
        return (self._out.compress(message) + self._out.flush(zlib.Z_SYNC_FLUSH))[:-4]

    def unpack(self, frame: Frame) -> bytes:
        """The message in a frame; zlib.error where it goes back further than the window."""
        if not frame.rsv:
            return frame.payload
        assert frame.rsv == RSV1
        if not self.keeps:
            self._in = zlib.decompressobj(-self.window)
        return self._in.decompress(frame.payload + TAIL)


def fragments(opcode: int, data: bytes, count: int) -> bytes:
    """A compressed message in so many frames."""
    step = max(1, -(-len(data) // count))
    return b"".join(
        encode(
            CONTINUATION if number else opcode,
            data[number * step : (number + 1) * step],
            fin=number == count - 1,
            rsv=0 if number else RSV1,
        )
        for number in range(count)
    )


def echoing(**settings: object) -> tuple[Hub, list[str | bytes], list[str], list[int]]:
    """A hub with compression that echoes; its messages, the clients that have gone, faults."""
    config = HubConfig(enable_compression=True, **{"close_timeout": 0.5, **settings})  # type: ignore[arg-type]
    hub = Hub(config, authenticate=named)
    heard: list[str | bytes] = []
    gone: list[str] = []
    faults: list[int] = []

    @hub.on_message_received
    def echo(client: Client, message: str | bytes) -> None:
        heard.append(message)
        client.send(message)

    @hub.on_error
    @unless_lost
    def fault(client: Client, error: BaseException) -> None:
        assert isinstance(error, ProtocolError), error
        faults.append(error.code)

    hub.on_client_disconnected(lambda client: gone.append(client.id))
    return hub, heard, gone, faults


# --- D1: bombs

# The peak of the process's own memory, from just before the bomb until its connection is gone. In a
# process of its own: a heap that earlier tests left behind would hide growth.
BOMB = """
import asyncio, sys, zlib
from tests.conftest import LOOPS
from wsc_fast.testing import RawClient, eventually, running
from tests.faults.test_faults_deflate import BINARY, MIB, echoing, fragments, join, offer

def memory(which: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(which))

async def main(count: int, keeps: bool, limit: int, clients: int) -> None:
    z = zlib.compressobj(wbits=-15)
    block = bytes(MIB)
    bomb = b"".join([z.compress(block) for _ in range(200)] + [z.flush(zlib.Z_SYNC_FLUSH)])
    assert 200_000 < len(bomb) < 205_000
    stream = fragments(BINARY, bomb[:-4], count)
    hub, heard, gone, faults = echoing(
        client_no_context_takeover=not keeps, max_message_size=limit
    )
    async with running(hub):
        raws = [(await join(hub, str(number), headers=offer()))[0] for number in range(clients)]
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")  # the peak begins here (proc(5))
        before = memory("VmRSS:")
        for raw in raws:
            await raw.send_raw(stream)
        for raw in raws:
            assert [frame.code for frame in await raw.recv_rest()] == [1009]
            raw.close()
        await eventually(lambda: hub.connections == 0)
        grown = memory("VmHWM:") - before
        left = memory("VmRSS:") - before
    assert heard == []
    assert faults == [1009] * clients
    assert sorted(gone) == sorted(str(number) for number in range(clients))
    print(grown, left)

with asyncio.Runner(loop_factory=LOOPS[sys.argv[1]]) as runner:
    runner.run(main(int(sys.argv[2]), sys.argv[3] == "True", int(sys.argv[4]), int(sys.argv[5])))
"""


def explode(loop: str, count: int, keeps: bool, limit: int, clients: int) -> tuple[int, int]:
    """By how much the process of BOMB grew at most, and by how much it had grown in the end."""
    arguments = map(str, (loop, count, keeps, limit, clients))
    done = subprocess.run(
        [sys.executable, "-c", BOMB, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown, left = map(int, done.stdout.split())
    return grown, left


@pytest.mark.fault(number="D1")
@MEASURES
@pytest.mark.parametrize("count", [1, 7], ids=["whole", "fragmented"])
@pytest.mark.parametrize("keeps", [False, True], ids=["shared context", "kept context"])
def test_the_peak_of_a_bomb_is_the_limit_and_a_little(
    any_loop: str, keeps: bool, count: int
) -> None:
    grown, _ = explode(any_loop, count, keeps, MIB, 1)
    # Of 200 MiB, and of the 200 KB that came.
    assert grown < 4 * MIB, f"{grown:,} bytes"


@pytest.mark.fault(number="D1")
@MEASURES
@pytest.mark.parametrize("keeps", [False, True], ids=["shared context", "kept context"])
def test_many_bombs_at_once_take_no_more_than_what_came_and_one_limit(keeps: bool) -> None:
    clients = 20
    grown, _ = explode("uvloop", 7, keeps, MIB, clients)
    # The read buffers of both ends are in it, and 40 KB of zlib for each kept context.
    assert grown < 8 * MIB, f"{grown:,} bytes"


@pytest.mark.fault(number="D1")
@MEASURES
def test_nothing_of_a_bomb_is_left_behind() -> None:
    grown, left = explode("uvloop", 1, False, 64 * MIB, 1)
    assert grown < 70 * MIB
    assert left < 8 * MIB, f"{left:,} bytes"


# --- D2: just over the limit


@pytest.mark.fault(number="D2")
@pytest.mark.parametrize("keeps", [False, True], ids=["shared context", "kept context"])
@pytest.mark.parametrize("limit", [125, 65_535, 65_536, MIB])
async def test_a_message_of_the_limit_is_whole_and_one_over_it_is_never_cut(
    limit: int, keeps: bool
) -> None:
    hub, heard, gone, faults = echoing(
        max_message_size=limit, client_no_context_takeover=not keeps, outbox_bytes=4 * MIB
    )
    async with running(hub):
        for number, extra in enumerate((0, 1, 2)):
            raw, _ = await join(hub, f"{number}", headers=offer())
            deflater = Deflater(keeps=keeps)
            sent = 0
            with raw:
                # Twice the limit, so that a kept context has something to go back to.
                for text in (b"x" * limit, b"x" * (limit + extra)):
                    await raw.send_raw(fragments(TEXT, deflater.pack(text), 1 + number))
                    frame = await raw.recv()
                    if frame.opcode == CLOSE:
                        assert frame.code == 1009
                        break
                    assert Deflater().unpack(frame) == text
                    sent += 1
            assert sent == (1 if extra else 2)
            await eventually(lambda number=number: len(gone) == number + 1)
    assert heard == ["x" * limit] * 4
    assert faults == [1009, 1009]


# --- D4: shared frames


@pytest.mark.fault(number="D4")
async def test_two_sets_of_parameters_a_late_joiner_and_dropped_frames_break_no_stream(
    any_loop: str,
) -> None:
    hub, _, _, _ = echoing(overflow="drop_oldest", outbox_messages=4, write_buffer_size=4096)
    windows = {"small": 9, "large": 15}
    async with running(hub):
        raws = {}
        for name, window in windows.items():
            text = f"permessage-deflate; server_max_window_bits={window}"
            raws[name], client = await join(hub, name, headers=offer(text), rcvbuf=4096)
            await stall(client)
        rng = random.Random(4)
        sent = []
        for number in range(30):
            # It repeats what is 2 KB back, which only the larger window reaches.
            part = b"%d " % number + rng.randbytes(1000).hex().encode()
            sent.append(part * 3)
            hub.broadcast(sent[-1])
        late, _ = await join(hub, "late", headers=offer())
        hub.broadcast(b"for all " * 50)
        assert agreed(late) is not None
        assert Deflater().unpack(await late.recv()) == b"for all " * 50
        for name, raw in raws.items():
            deflater = Deflater(windows[name])
            received = []
            while not received or received[-1] != b"for all " * 50:
                frame = await raw.recv()
                assert frame.opcode == BINARY
                received.append(deflater.unpack(frame))
            assert received[-4:] == [*sent[-3:], b"for all " * 50]
        for raw in (*raws.values(), late):
            raw.close()
        stats = hub.get_stats()
        assert stats.dropped["drop_oldest"] == 2 * (len(sent) - 3)


# --- D5: kept contexts


@pytest.mark.fault(number="D5")
@pytest.mark.parametrize("count", [1, 5], ids=["whole", "fragmented"])
@pytest.mark.parametrize("window", [9, 12, 15])
async def test_large_messages_of_a_kept_context_both_inflate(
    any_loop: str, window: int, count: int
) -> None:
    hub, heard, _, faults = echoing(
        server_no_context_takeover=False, client_no_context_takeover=False, outbox_bytes=4 * MIB
    )
    text = f"permessage-deflate; client_max_window_bits={window}; server_max_window_bits={window}"
    # Larger than any window, and with what repeats within each of them.
    large = random.Random(5).randbytes(100).hex().encode() * 1_500
    noise = random.Random(6).randbytes(300_000)
    async with running(hub):
        raw, _ = await join(hub, "a", headers=offer(text))
        with raw:
            answer = agreed(raw)
            assert answer is not None
            assert "no_context_takeover" not in answer
            deflater = Deflater(window, keeps=True)
            for message in (large, large, noise, large, noise, large[:300], large[:300]):
                await raw.send_raw(fragments(BINARY, deflater.pack(message), count))
                # A control frame of either side is no part of the stream.
                await raw.send(PING, b"p")
                frames = [await raw.recv(), await raw.recv()]
                assert Frame(PONG, b"p") in frames
                (echo,) = [frame for frame in frames if frame.opcode == BINARY]
                assert deflater.unpack(echo) == message
        await eventually(lambda: hub.connections == 0)
    assert heard == [large, large, noise, large, noise, large[:300], large[:300]]
    assert faults == []


# --- D6: offers, on the wire


@pytest.mark.fault(number="D6")
@pytest.mark.parametrize(
    "headers",
    [
        ["permessage-deflate; client_max_window_bits=16, permessage-deflate"],
        ["permessage-deflate; client_max_window_bits=16", "permessage-deflate"],
        ["permessage-deflate; client_max_window_bits=abc, permessage-deflate"],
        ["permessage-deflate; server_max_window_bits=8, permessage-deflate"],
        ["permessage-deflate; unknown", "foo", "permessage-deflate"],
        [
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover,"
            " permessage-deflate"
        ],
        [
            "permessage-deflate; client_max_window_bits=10; client_max_window_bits=11",
            "permessage-deflate",
        ],
    ],
)
async def test_a_good_offer_after_a_bad_one_is_taken(headers: list[str]) -> None:
    hub, _, _, _ = echoing()
    async with running(hub):
        lines = [line for text in headers for line in offer(text)]
        raw, _ = await join(hub, "a", headers=lines)
        with raw:
            answer = agreed(raw)
            assert answer is not None
            # It is the last one, which names no window at all.
            assert answer.startswith("permessage-deflate")
            assert "window_bits" not in answer
            await raw.send(TEXT, Deflater().pack(b"x" * 1_000), rsv=RSV1)
            assert Deflater().unpack(await raw.recv()) == b"x" * 1_000


@pytest.mark.fault(number="D6")
@pytest.mark.parametrize("settings", [{}, {"server_max_window_bits": 11}], ids=str)
@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("window", range(9, 16))
async def test_the_agreed_parameters_are_within_the_offer_and_kept_to(
    window: int, quoted: bool, settings: dict[str, int]
) -> None:
    hub, _, _, _ = echoing(**settings)
    bits = f'"{window}"' if quoted else f"{window}"
    names = {
        "client": f"permessage-deflate; client_max_window_bits={bits}",
        "server": f"permessage-deflate; server_max_window_bits={bits}",
        "both": f"permessage-deflate; client_max_window_bits; server_max_window_bits={bits}",
    }
    # Its parts repeat what is 700, 3,000 and 20,000 bytes back.
    rng = random.Random(window)
    message = b"".join(rng.randbytes(size) * 2 for size in (350, 1_500, 10_000)).hex().encode()
    async with running(hub):
        for name, text in names.items():
            raw, _ = await join(hub, name, headers=offer(text))
            with raw:
                answer = agreed(raw)
                assert answer is not None
                parameters = dict(part.partition("=")[::2] for part in answer.split("; ")[1:])
                if name == "server":
                    assert "client_max_window_bits" not in parameters  # nobody has offered it
                ours = int(parameters.get("server_max_window_bits", 15))
                assert ours == min(15 if name == "client" else window, *settings.values(), 15)
                theirs = int(parameters.get("client_max_window_bits", 15))
                assert theirs == (window if name == "client" else 15)
                await raw.send(TEXT, Deflater(theirs).pack(message), rsv=RSV1)
                echo = await raw.recv()
                assert echo.rsv == RSV1
                assert Deflater(ours).unpack(echo) == message


# --- D7: what is no deflate data


@pytest.mark.fault(number="D7")
@pytest.mark.parametrize("keeps", [False, True], ids=["shared context", "kept context"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xff\xff\xff",
        b"",
        Deflater().pack(b"abcdefgh" * 100)[:-3],
        Deflater().pack(b"x" * 70_000)[:-3],  # after more than the scratch memory holds
        zlib.compress(b"with a header"),
        b"\x01\x05\x00\xfa\xff12345rest",  # a last block, and more than a byte behind it
    ],
    ids=lambda payload: payload[:8].hex(),
)
async def test_invalid_data_ends_its_connection_alone_whatever_context_it_has(
    any_loop: str, payload: bytes, count: int, keeps: bool
) -> None:
    hub, heard, gone, faults = echoing(client_no_context_takeover=not keeps)
    async with running(hub):
        other, _ = await join(hub, "other", headers=offer())
        raw, _ = await join(hub, "a", headers=offer())
        with other:
            sound = Deflater(keeps=keeps)
            bad = Deflater(keeps=keeps)
            with raw:
                for deflater, client in ((sound, other), (bad, raw)):
                    await client.send(TEXT, deflater.pack(b"before " * 30), rsv=RSV1)
                    assert Deflater().unpack(await client.recv()) == b"before " * 30
                await raw.send_raw(fragments(TEXT, payload, count) + encode(TEXT, b"late"))
                frames = await raw.recv_rest()
                assert [frame.opcode for frame in frames] == [CLOSE]
                assert frames[0].code == 1007
            await eventually(lambda: gone == ["a"])
            await other.send(TEXT, sound.pack(b"before " * 30), rsv=RSV1)
            assert Deflater().unpack(await other.recv()) == b"before " * 30
    assert heard == ["before " * 30] * 3
    assert faults == [1007]


# --- D8: memory


# Of waves of clients that all leave in the middle of a compressed message: by how much the process
# had grown with each, per client, and in the end.
WAVES = """
import asyncio, random, sys
import psutil
from tests.conftest import LOOPS
from wsc_fast.testing import RawClient, eventually, running
from tests.faults.test_faults_deflate import RSV1, TEXT, Deflater, echoing, encode, join, offer

async def main(count: int) -> None:
    hub, heard, gone, faults = echoing(
        server_no_context_takeover=False, client_no_context_takeover=False
    )
    memory = psutil.Process().memory_info
    # Enough to fill every window, and one that each client has made by itself.
    text = random.Random(8).randbytes(50_000).hex().encode()
    packed, begun = Deflater().pack(text), Deflater().pack(b"b" * 500)

    async def wave(wanted: str) -> int:
        before = memory().rss
        raws = []
        for number in range(count):
            raw, _ = await join(hub, f"{number}", headers=offer(wanted) if wanted else ())
            raws.append(raw)
            await raw.send(TEXT, packed if wanted else text, rsv=RSV1 if wanted else 0)
            assert (await raw.recv()).opcode == TEXT
            heard.clear()
        grown = memory().rss - before
        for raw in raws:
            await raw.send(TEXT, begun if wanted else b"b", fin=False, rsv=RSV1 if wanted else 0)
            raw.reset()
        await eventually(lambda: hub.connections == 0)
        assert len(gone) == len(set(gone)) == count
        gone.clear()
        assert faults == []
        return grown // count

    async with running(hub):
        await wave("")  # to warm up
        none = await wave("")
        without = memory().rss
        print(*[
            await wave(wanted) - none
            for wanted in (
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
                "permessage-deflate; server_no_context_takeover",
                "permessage-deflate; client_no_context_takeover",
                "permessage-deflate",
            )
        ])
        left = memory().rss
        for _ in range(3):
            await wave("permessage-deflate")
        print(left - without, memory().rss - left)

with asyncio.Runner(loop_factory=LOOPS[sys.argv[1]]) as runner:
    runner.run(main(int(sys.argv[2])))
"""


def waves(loop: str, **environment: str) -> list[int]:
    """The figures that WAVES prints."""
    done = subprocess.run(
        [sys.executable, "-c", WAVES, loop, "60"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


@pytest.mark.fault(number="D8")
@MEASURES
def test_a_context_takes_what_is_documented_and_gives_it_back(any_loop: str) -> None:
    # A fixed threshold: what is freed goes back to the system at once.
    shared, client, server, both, left, _ = waves(
        any_loop, MALLOC_MMAP_THRESHOLD_=str(16 * KIB), MALLOC_TRIM_THRESHOLD_="0"
    )
    # HubConfig: 260 KB for what the server keeps and 40 KB for the client's part of it; and no
    # memory for a client that shares the contexts of all.
    assert shared < 8 * KIB
    assert client < 44 * KIB
    assert server < 285 * KIB
    assert 200 * KIB < both < 325 * KIB
    # Of 18 MB; the rest is gaps in the heap.
    assert left < 9 * MIB


@pytest.mark.fault(number="D8")
@MEASURES
def test_clients_that_come_and_go_leave_nothing_behind(any_loop: str) -> None:
    *_, more = waves(any_loop)
    # Three more waves, of 18 MB each.
    assert more < 2 * MIB


@pytest.mark.fault(number="A32")
async def test_an_inflated_message_is_the_applications_own_copy(
    any_loop: str,
) -> None:
    hub, heard, _, _ = echoing()
    async with running(hub):
        raw, _ = await join(hub, "a", headers=offer())
        with raw:
            sent = [bytes([65 + number]) * (500 + 4_000 * number) for number in range(26)]
            for data in sent:
                packed = Deflater().pack(data)
                await raw.send_raw(fragments(BINARY, packed, 1) + fragments(TEXT, packed, 2))
            await eventually(lambda: len(heard) == 52)
    assert heard == [form for data in sent for form in (data, data.decode())]
