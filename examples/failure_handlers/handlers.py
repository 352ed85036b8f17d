"""The failure handlers. Each is an object with a method that the hub calls after the fact.

Plain methods run in a thread of the object's own, so that they may wait for a disk or a network.
Async methods run on the hub's loop.
"""

import asyncio
import json
import logging
import sqlite3
import time
import urllib.request
from collections import deque
from contextlib import closing
from pathlib import Path

import msgspec

from wsc_fast import Hub, HubMessage, QueueFullError, SendFailureReason, UserOfflineError

log = logging.getLogger("failures")


class Alerts:
    """Raises one alert when there are too many failures in a window of time.

    Args:
        threshold: how many failures are too many.
        seconds: the window; there is at most one alert in each.
    """

    def __init__(self, threshold: int, seconds: float) -> None:
        self.threshold = threshold
        self.seconds = seconds
        self.failures: deque[float] = deque(maxlen=threshold)  # when the newest ones were
        self.alerted = float("-inf")

    def handle_send_failure(
        self, msg: HubMessage, recipient: str, reason: SendFailureReason, error: Exception
    ) -> None:
        now = time.monotonic()
        self.failures.append(now)
        many = len(self.failures) == self.threshold and now - self.failures[0] <= self.seconds
        if many and now - self.alerted > self.seconds:
            self.alerted = now
            # Yours pages somebody.
            log.error("ALERT: %d failures within %g s", self.threshold, self.seconds)


class Backlog:
    """Keeps messages that found no room, and sends them again once there is some.

    Args:
        hub: sends them.
        per_user: how many wait for one user; the oldest give way.
    """

    def __init__(self, hub: Hub, per_user: int) -> None:
        self.hub = hub
        self.per_user = per_user
        self.waiting: dict[str, deque[HubMessage]] = {}

    async def handle_queue_full(
        self, msg: HubMessage, recipient: str, queue_type: str, error: Exception
    ) -> None:
        waiting = self.waiting.setdefault(msg.to, deque(maxlen=self.per_user))
        if len(waiting) == self.per_user:
            log.warning("the backlog of %s is full: the oldest message is lost", msg.to)
        waiting.append(msg)

    async def send_again(self) -> None:
        """Tries five times a second. Messages that are sent meanwhile may come before these."""
        while True:
            await asyncio.sleep(0.2)
            for user, messages in list(self.waiting.items()):
                sent = self._send(user, messages)
                if sent:
                    log.info("backlog of %s: %d sent again, %d wait", user, sent, len(messages))
                if not messages:
                    del self.waiting[user]

    def _send(self, user: str, messages: deque[HubMessage]) -> int:
        sent = 0
        clients = self.hub.get_clients_by_user(user)
        while messages and not any(client.queued_messages > 50 for client in clients):
            try:
                self.hub.send_to_user(user, messages.popleft())
            except (QueueFullError, UserOfflineError):
                break  # the hub tells the handlers of it, so that it comes back here or is stored
            sent += 1
        return sent


class PushNotices:
    """Tells a push service that a user has messages.

    Args:
        url: gets a POST with JSON; None: the log has a line instead.
    """

    def __init__(self, url: str | None) -> None:
        self.url = url

    def send(self, user: str, waiting: int) -> None:
        log.info("push to %s: %d messages wait", user, waiting)
        if self.url is not None:
            body = json.dumps({"user": user, "waiting": waiting}).encode()
            headers = {"Content-Type": "application/json"}
            urllib.request.urlopen(
                urllib.request.Request(self.url, body, headers), timeout=10
            ).close()


class OfflineMessages:
    """Keeps messages of users who are away in SQLite, and has them pushed a notice.

    Args:
        path: of the database.
        limit: how many messages are kept of one user; the oldest give way.
        push: tells the user.
    """

    def __init__(self, path: Path, limit: int, push: PushNotices) -> None:
        self.path = path
        self.limit = limit
        self.push = push
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("CREATE TABLE IF NOT EXISTS missed (user TEXT, message TEXT)")

    def handle_user_offline(self, msg: HubMessage, user_id: str, error: Exception) -> None:
        with closing(sqlite3.connect(self.path)) as db, db:
            db.execute("INSERT INTO missed VALUES (?, ?)", (user_id, msgspec.json.encode(msg)))
            kept = "SELECT rowid FROM missed WHERE user = ? ORDER BY rowid DESC LIMIT ?"
            gone = db.execute(
                f"DELETE FROM missed WHERE user = ? AND rowid NOT IN ({kept})",
                (user_id, user_id, self.limit),
            ).rowcount
            (waiting,) = db.execute(
                "SELECT COUNT(*) FROM missed WHERE user = ?", (user_id,)
            ).fetchone()
        if gone:
            log.warning("%s has %d messages: the oldest is lost", user_id, self.limit)
        self.push.send(user_id, waiting)

    async def take(self, user_id: str) -> list[HubMessage]:
        """The messages of a user who is back, in order; they are kept no longer."""
        return await asyncio.to_thread(self._take, user_id)

    def _take(self, user_id: str) -> list[HubMessage]:
        with closing(sqlite3.connect(self.path)) as db, db:
            rows = db.execute(
                "DELETE FROM missed WHERE user = ? RETURNING rowid, message", (user_id,)
            ).fetchall()
        return [msgspec.json.decode(text, type=HubMessage) for _, text in sorted(rows)]
