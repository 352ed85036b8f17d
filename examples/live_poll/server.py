"""A live poll: all vote, and all see the result within a quarter of a second.

Run it with `python server.py`, and open http://127.0.0.1:8080. people.py votes for a thousand.
"""

import argparse
import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

from wsc_fast import Client, Hub, HubConfig, Request, RequestError, Response
from wsc_fast.demo import read_page

PAGE = read_page(Path(__file__).with_name("page.html"))
QUESTION = "Which season do you like best?"
CHOICES = ("spring", "summer", "autumn", "winter")


class Poll:
    """The votes: one for each person who is connected, which may change."""

    def __init__(self) -> None:
        self.votes: dict[str, str] = {}  # client id -> choice
        self.counts: Counter[str] = Counter()
        self.changed = asyncio.Event()

    def vote(self, client: Client, choice: str) -> None:
        self.withdraw(client)
        self.votes[client.id] = choice
        self.counts[choice] += 1
        self.changed.set()

    def withdraw(self, client: Client) -> None:
        before = self.votes.pop(client.id, None)
        if before is not None:
            self.counts[before] -= 1
            self.changed.set()

    def result(self) -> dict[str, Any]:
        return {
            "question": QUESTION,
            "votes": [[choice, self.counts[choice]] for choice in CHOICES],
            "people": hub.get_connected_clients(),
        }


hub = Hub(HubConfig(message_rate=5.0, rate_limit_action="pause", max_message_size=1_024))
poll = Poll()


@hub.on_client_connected
def connected(client: Client) -> None:
    client.send(json.dumps(poll.result()), key="result")
    poll.changed.set()  # there is one more


@hub.on_client_disconnected
def disconnected(client: Client) -> None:
    poll.withdraw(client)
    poll.changed.set()


@hub.on_request
def answer(client: Client, data: Any) -> str:
    match data:
        case {"vote": str(choice)} if choice in CHOICES:
            poll.vote(client, choice)
            return choice
    raise RequestError("not-understood", f"vote for one of {', '.join(CHOICES)}")


async def publish() -> None:
    """A thousand votes are a thousand changes, and at most four messages a second."""
    while True:
        await poll.changed.wait()
        poll.changed.clear()
        hub.broadcast(json.dumps(poll.result()), key="result")
        await asyncio.sleep(0.25)


@hub.on_startup
async def begin() -> None:
    hub.create_task(publish())


@hub.route("/")
def page(request: Request) -> Response:
    return PAGE


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    hub.run("127.0.0.1", parser.parse_args().port)
