"""The servers here share this: arguments, audiences of messages, and the work of the JSON handler.

    NAME_server.py fanout|room|direct|echo|mixed|json PORT [--tls CERT KEY] [--deflate]

wsc_server.py also takes --transport picows, picows-server (a picows server of one's own), or
uvicorn; --lists and --authenticate.

fanout      a message goes to everybody
room        to the room, whose name is its first six characters
direct      to the client, whose name is its first six characters
mixed       the first character tells: a everybody, r a room, d a client
echo, json  back to where it came from, as it is or as `answer` has it

"join NAME" makes a client a member of a room, or known as a receiver; the answer is "joined".
"""

import argparse
import json
import resource
from collections import defaultdict


def arguments() -> argparse.Namespace:
    """The command line; raises RLIMIT_NOFILE to its hard limit on the way."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["fanout", "room", "direct", "echo", "mixed", "json"])
    parser.add_argument("port", type=int)
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    parser.add_argument("--deflate", action="store_true")
    parser.add_argument("--transport", default="hub")
    parser.add_argument("--lists", action="store_true", help="hear the messages of a read at once")
    parser.add_argument("--authenticate", action="store_true", help="name each client")
    return parser.parse_args()


def total(order: dict) -> dict:
    """Work such as a handler does."""
    return {
        "id": order["id"],
        "total": sum(item["price"] * item["count"] for item in order["items"]),
    }


def answer(message: str) -> str:
    return json.dumps(total(json.loads(message)), separators=(",", ":"))


class Audience:
    """The receivers of each message, for libraries whose broadcast loops over connections."""

    def __init__(self, mode):
        self.mode = mode
        self.everybody = set()
        self.named = defaultdict(set)
        self.names = defaultdict(list)  # of each member

    def join(self, name, member):
        self.named[name].add(member)
        self.names[member].append(name)

    def leave(self, member):
        self.everybody.discard(member)
        for name in self.names.pop(member, ()):
            self.named[name].discard(member)

    def of(self, message):
        if self.mode == "fanout" or (self.mode == "mixed" and message[:1] in ("a", b"a")):
            return self.everybody
        return self.named[message[:6]]
