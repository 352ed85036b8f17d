"""Messages of the server: heads, values, acknowledgements, positions (M, A, P, K of spec.md).

There are two positions of a room. The one in the hello is that of the newest message that has
come, so that none comes twice. The one in the storage is that of the newest message that all
listeners are done with, so that a process which ends has the others again.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from wsc_client.dispatch import Dispatch
from wsc_client.errors import ProtocolError
from wsc_client.events import Bus, First, Gap, Message, Recovered
from wsc_client.listeners import LOGGER
from wsc_client.memory import Memory
from wsc_client.options import Options
from wsc_client.platform import Platform
from wsc_client.sender import Sender
from wsc_client.session import Session
from wsc_client.tasks import Tasks
from wsc_client.wire import NO_JSON, Payload, dumped, is_answer, is_hub_message, parsed, parted

SAVE_AFTER = 0.1
MOST_POSITIONS = 1000
MOST_IN_HELLO = 100
HELLO_BYTES = 16_000
MOST_ERROR = 500


class Receiver:
    """Takes messages apart, and gives them to the listeners.

    Attributes:
        received: messages that have come.
        copies: messages that were known and dropped.
    """

    def __init__(
        self,
        session: Session,
        sender: Sender,
        dispatch: Dispatch,
        tasks: Tasks,
        options: Options,
        platform: Platform,
        key: str,
    ) -> None:
        self.received: int = 0
        self.copies: int = 0
        self._session, self._sender, self._dispatch, self._tasks = session, sender, dispatch, tasks
        self._options, self._platform = options, platform
        self._positions = Memory(options.storage, f"{key}:pos", MOST_POSITIONS)
        self._known = Memory(options.storage, f"{key}:ids", options.known_ids)
        self._newest = Memory(None, "", MOST_POSITIONS)
        self._unfinished: set[str] = set()  # ids of HubMessages with listeners
        self._saving = False
        self.begin_anew()

    def begin_anew(self) -> None:
        """Messages that listeners were not done with come again."""
        self._newest.clear()
        self._newest.update(self._positions)
        self._unfinished.clear()

    def hello(self) -> str:
        """The first message of a connection (P1)."""
        newest: list[tuple[str, str]] = []
        size = 32
        for room, pos in reversed(self._newest.items()):
            size += len(dumped([room, pos]).encode())
            if len(newest) == MOST_IN_HELLO or size > HELLO_BYTES:
                break
            newest.append((room, pos))
        return dumped({"hello": 1, "pos": dict(reversed(newest))}) + "\n"

    def receive(self, data: Payload) -> asyncio.Future[None] | None:
        """Takes a message.

        Returns:
            asyncio.Future[None] | None: nothing more is to be read until it is done.
        """
        self.received += 1
        head: dict[str, Any] = {}
        size = len(data)
        if self._options.recover:
            parts = parted(data)
            if parts is None:
                self._session.fail(ProtocolError("a message of the server has no head line"))  # P9
                return None
            head, data = parts
        pos = head.get("pos")
        room = head.get("room", head.get("gap", ""))
        if pos is not None:
            self._newest.put(room, pos)
        if "gap" in head or "recovered" in head:
            self._moved(room, head)
        elif "bus" in head:
            self._dispatch.emit(Bus(bool(head["bus"])))  # P6
        elif not head.get("skipped") and (data or "room" in head or not head):  # P7
            self._message(head, data, size)
            return self._dispatch.backlogs.room()
        self._dealt_with(room, pos)
        return self._dispatch.backlogs.room()

    def forget(self, room: str) -> None:
        """J5."""
        self._newest.forget(room)
        if self._positions.forget(room):
            self._save_soon()

    def save(self) -> None:
        """Writes positions and ids to the storage (K1)."""
        self._saving = False
        for memory in (self._positions, self._known):
            try:
                memory.save()
            except Exception:
                LOGGER.warning("the storage cannot be written", exc_info=True)  # K3

    # --- heads ---

    def _moved(self, room: str, head: dict[str, Any]) -> None:
        if head.get("recovered"):
            missed = head.get("missed", 0)
            self._dispatch.emit(Recovered(room, missed if isinstance(missed, int) else 0))  # P3
            return
        first = bool(head.get("first"))
        self._dispatch.emit(First(room) if first else Gap(room))  # P4, P5
        if self._options.load is not None:  # P8
            try:
                result = self._options.load(room, "first" if first else "gap")
            except Exception as error:
                self._dispatch.report(error)
            else:
                if inspect.isawaitable(result):
                    self._tasks.await_(result, lambda done: None, self._dispatch.report)

    def _dealt_with(self, room: str, pos: str | None) -> None:
        """P2. A room that was left meanwhile is forgotten."""
        if pos is not None and room in self._newest:
            self._positions.put(room, pos)
            self._save_soon()

    # --- messages ---

    def _message(self, head: dict[str, Any], payload: Payload, size: int) -> None:
        room, pos = head.get("room"), head.get("pos")
        value: Any = payload
        hub = False
        if isinstance(payload, str):
            read = parsed(payload)
            if room is None and is_answer(read) and self._sender.settle(read):
                return
            hub = is_hub_message(read)
            if hub or (self._options.json and read is not NO_JSON):
                value = read  # M2, M4
        message = Message(value, room, pos, hub, payload)
        if hub and value.get("require_ack") is True and self._options.acknowledge:
            self._acknowledge(message, size)
        else:
            self._dispatch.emit(message, size, lambda error: self._dealt_with(room or "", pos))

    def _acknowledge(self, message: Message, size: int) -> None:
        """Gives a message to the listeners once, and acknowledges it each time (A)."""
        id, room, pos = message.data["id"], message.room or "", message.pos
        answer = self._known.get(id)
        if answer is not None or id in self._unfinished:
            self.copies += 1
            self._dealt_with(room, pos)
            # One whose listeners are not done yet is acknowledged when they are.
            if answer is not None:
                self._sender.transmit(answer)
            return
        self._unfinished.add(id)

        def finished(error: BaseException | None) -> None:
            self._unfinished.discard(id)
            fields = {"type": "ack", "message_id": id}
            if error is not None:  # A2
                text = (str(error) or repr(error))[:MOST_ERROR]
                fields |= {"status": "failed", "error": text}
            answer = dumped(fields)
            self._known.put(id, answer)
            self._save_soon()
            if self._session.state == "open":
                self._sender.transmit(answer)
            self._dealt_with(room, pos)

        # One that nobody has heard is not acknowledged: the server sends it again.
        self._dispatch.emit(message, size, finished, lambda: self._unfinished.discard(id))

    def _save_soon(self) -> None:
        if not self._saving and self._options.storage is not None:
            self._saving = True
            self._platform.call_later(SAVE_AFTER, self.save)
