"""The listening sockets of `serve --workers` and `--reload`, which the watching process holds.

The serving processes get them as descriptors. So no socket ends with a process, and the kernel
resets nobody: a connection that no process has accepted waits for the next one.

Each worker has sockets of its own with SO_REUSEPORT, among which the kernel spreads connections
evenly; its successor gets the same ones. While a worker is missing, `steer` tells the kernel to
choose among the others. Sockets of the service manager are one for all workers, since the kernel
cannot copy them: who is awake first accepts.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import sys
from collections.abc import Sequence

from wsc_fast.cli.output import Failure, reason_of
from wsc_fast.errors import WSCError
from wsc_fast.listen.sockets import are_handed_over, bound_sockets, handed_over

# From <asm-generic/socket.h> and <linux/filter.h>; Python has no names for them.
_SO_ATTACH_REUSEPORT_CBPF = 51
_LOAD, _RANDOM = 0x20, 0xFFFFF000 + 56
_MODULO, _IF_EQUAL, _RETURN = 0x94, 0x15, 0x06


class HeldPort:
    """The sockets of one port, one set for each of several processes.

    Args:
        host, port: to listen on; port 0 chooses one that is free. Sockets that the service manager
            has handed over go before both.
        processes: that listen at a time.

    Attributes:
        place: what is listened on, for people.

    Raises:
        Failure: the address cannot be listened on.
    """

    def __init__(self, host: str, port: int, processes: int) -> None:
        self._steered = False
        self._own = not are_handed_over()
        self.place: str = f"{host}:{port}"
        try:
            if self._own:
                self._sets = asyncio.run(_bound(host, port, processes))
                self.place = f"{host}:{self._sets[0][0].getsockname()[1]}"
            else:
                self._sets = [handed_over()] * processes
                self.place = "the sockets of the service manager"
        except (OSError, UnicodeError) as error:
            raise Failure(f"cannot listen on {self.place}: {reason_of(error)}") from None
        except WSCError as error:
            raise Failure(f"cannot listen on {self.place}: {error}") from None

    def descriptors(self, number: int) -> list[int]:
        """The sockets of one process, counted from 0."""
        return [sock.fileno() for sock in self._sets[number]]

    def listen(self) -> None:
        """Has the sockets of all processes listen, once the first process does.

        The kernel numbers them in this order, which `steer` relies on.
        """
        if self._own:
            for sockets in self._sets[1:]:
                for sock in sockets:
                    sock.listen()

    def steer(self, numbers: Sequence[int]) -> None:
        """Has new connections go to these processes alone, where the kernel can do that.

        Args:
            numbers: of the processes that accept. All or none of them: the kernel chooses.
        """
        if not self._own or len(self._sets) < 2 or sys.platform != "linux":
            return
        some = 0 < len(numbers) < len(self._sets)
        if some or self._steered:
            program = _choosing(numbers if some else ())
            for sock in self._sets[0]:
                _attach(sock, program)
        self._steered = some

    def close(self) -> None:
        """Leaves the port to the processes, and so ends it with the last of them."""
        for sockets in self._sets:
            for sock in sockets:
                sock.close()


async def _bound(host: str, port: int, processes: int) -> list[list[socket.socket]]:
    # With SO_REUSEPORT nobody would notice a server of the same user that has the port already, so
    # it is bound without that first.
    first = await bound_sockets(host, port, False)
    if processes == 1:
        return [first]
    port = port or first[0].getsockname()[1]
    for sock in first:
        sock.close()
    return [await bound_sockets(host, port, True) for _ in range(processes)]


def _choosing(numbers: Sequence[int]) -> bytes:
    """A program for the kernel (classic BPF) that chooses one of these sockets at random.

    For none of them it names no socket, so that the kernel chooses. Linux before 5.3 cannot be told
    to forget a program.
    """
    steps = [(_LOAD, 0, 0, _RANDOM), (_MODULO, 0, 0, len(numbers))] if numbers else []
    for place, number in enumerate(numbers):
        steps += [(_IF_EQUAL, 0, 1, place), (_RETURN, 0, 0, number)]
    steps.append((_RETURN, 0, 0, 0xFFFFFFFF))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _attach(sock: socket.socket, program: bytes) -> None:
    try:
        text = ctypes.create_string_buffer(program, len(program))  # the kernel copies it
        what = struct.pack("@HP", len(program) // 8, ctypes.addressof(text))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, what)
    except OSError:
        pass  # a kernel without it: connections wait for the missing process
