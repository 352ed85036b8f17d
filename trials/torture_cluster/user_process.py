"""A hub of the scenarios with users (user_node.py), as the scenario sees it."""

from __future__ import annotations

import asyncio
import json
from typing import Any, ClassVar

from trials.torture.process import Server
from trials.torture_cluster.user_ledger import UserLedger


class UserNode(Server):
    """A running hub; `start` makes one."""

    module: ClassVar[str] = "trials.torture_cluster.user_node"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._asked: list[asyncio.Future[dict[str, Any]]] = []

    def _heard(self, line: str) -> None:
        ledger = self.ledger
        assert isinstance(ledger, UserLedger)
        word, _, rest = line.partition(" ")
        if word == "ended":
            user, number, how = rest.split()
            ledger.end(self.name, how, user, (self.name, int(number)))
        elif word == "told":
            user, sender, number, reason = rest.split()
            ledger.tell(self.name, user, (sender, int(number)), reason)
        elif word == "examined":
            user, sender, number, how = rest.split()
            ledger.examined[user, (sender, int(number))] = how
        elif word == "behind":
            ledger.fall_behind(rest)
        elif word == "alone":
            ledger.be_alone(self.name)
        elif word == "gone":
            ledger.leave(self.name, *rest.split())
        elif word == "presence":
            self._asked.pop(0).set_result(json.loads(rest))
        else:
            super()._heard(line)

    def examine(self, how: str) -> None:
        """Has it send a message to each user, and tell how each has ended: see user_node.py."""
        self._tell(f"examine {how}")

    async def presence(self, patience: float) -> dict[str, Any]:
        """Has it tell who is there: users by room, "online", "hubs"; or "trouble"."""
        asked: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self._tell("presence")
        await asyncio.wait([asked], timeout=patience)
        return asked.result() if asked.done() else {"trouble": "no answer"}
