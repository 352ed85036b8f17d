"""A redis-server of the benchmark's own, and a raw connection to it."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence

from wsc_fast.bus.redis.commands import command


class RedisServer:
    """A redis-server on a free port. Its data outlasts `stop` and `start`.

    Args:
        options: of the program.
    """

    def __init__(self, *options: str) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise SystemExit("redis-server is not installed (Debian: apt-get install redis-server)")
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.directory = tempfile.mkdtemp()
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.directory]
        # A reader that falls behind for a moment is not what is measured.
        limits = ["--save", "", "--client-output-buffer-limit", "pubsub 0 0 0"]
        self._command = [program, *where, *limits, *options]
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        self._socket = self._connect()
        while self.ask(b"PING") != "+PONG\r\n":
            time.sleep(0.01)

    def _connect(self) -> socket.socket:
        for _ in range(500):
            try:
                return socket.create_connection(("127.0.0.1", self.port))
            except OSError:
                time.sleep(0.01)
        raise SystemExit("redis-server does not start")

    def send(self, commands: bytes) -> None:
        """Sends commands; the answers are left for `discard`."""
        self._socket.sendall(commands)

    def discard(self, lines: int) -> None:
        """Reads answers of so many lines in all."""
        while lines > 0:
            lines -= self._socket.recv(1 << 20).count(b"\n")

    def ask(self, *arguments: bytes) -> str:
        """One command; its answer of one line, or of one bulk string."""
        self._socket.sendall(command(*arguments))
        text = b""
        while not text.endswith(b"\r\n") or (text[:1] == b"$" and text.count(b"\r\n") < 2):
            text += self._socket.recv(1 << 16)
        if text[:1] == b"$":
            size = int(text[1 : text.index(b"\r\n")])
            while len(text) < text.index(b"\r\n") + 4 + size:
                text += self._socket.recv(1 << 16)
        return text.decode()

    def calls(self, name: str) -> int:
        """Returns how often the server has run a command since it started."""
        for line in self.ask(b"INFO", b"commandstats").splitlines():
            if line.startswith(f"cmdstat_{name}:"):
                return int(line.split("calls=")[1].split(",")[0])
        return 0

    def cpu(self) -> float:
        """CPU seconds of the server, user and system."""
        lines = self.ask(b"INFO", b"cpu").splitlines()
        values = dict(line.split(":") for line in lines if ":" in line)
        return float(values["used_cpu_user"]) + float(values["used_cpu_sys"])

    def memory(self) -> int:
        """Bytes that its data take, and all else that it has allocated."""
        lines = self.ask(b"INFO", b"memory").splitlines()
        return int(dict(line.split(":", 1) for line in lines if ":" in line)["used_memory"])

    def keys(self) -> int:
        """Returns how many keys there are."""
        return int(self.ask(b"DBSIZE")[1:])

    def kill_connections(self, *kinds: str) -> None:
        """Ends all connections of these kinds but ours: `pubsub`, `normal`."""
        for kind in kinds:
            self.ask(b"CLIENT", b"KILL", b"TYPE", kind.encode(), b"SKIPME", b"yes")

    def pause(self, seconds: float) -> None:
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Ends the server in an orderly way, and starts it with the data that it had."""
        self._socket.close()
        self.process.terminate()
        self.process.wait()
        self.start()

    def close(self) -> None:
        self._socket.close()
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def pipeline(commands: Sequence[Sequence[bytes]]) -> bytes:
    return b"".join(command(*each) for each in commands)
