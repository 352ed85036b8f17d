"""Hubs that break a promise on purpose, to see that the checks of users notice it.

repeat      failure handlers hear of each failure twice
silence     failure handlers hear of nothing
deny        an acknowledgement that says "failed" counts as a confirmation
linger      users who have left are still online
hurry       users have left at once, without a grace
litter      a key that lives for ever is on the bus
shout       the log has a traceback

The stores of trials/torture/faults.py break other ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis

from trials.torture_cluster import sabotage
from wsc_fast import hub as hubs
from wsc_fast import messages
from wsc_fast._core.messages import MessageForms
from wsc_fast.bus.redis.bus import RedisBus
from wsc_fast.delivery.reporter import FailureReporter
from wsc_fast.stores.redis.store import RedisOfflineStore


def _repeat() -> None:
    report = FailureReporter.report

    def twice(self: FailureReporter, failure: Any, **options: Any) -> None:
        report(self, failure, **options)
        report(self, failure, **options)

    _set(FailureReporter, "report", twice)


def _silence() -> None:
    _set(FailureReporter, "report", lambda self, failure, **options: None)


def _deny() -> None:
    def confirmed(text: bytes | str) -> messages.Acknowledgement:
        answer = messages.decode_acknowledgement(text)
        return messages.Acknowledgement(answer.type, answer.message_id)

    forms = MessageForms(
        messages.encoder,
        messages.ACKMessage,
        messages.AckStatus,
        decode_acknowledgement=confirmed,
        decode_hub_message=messages.decode_hub_message,
        is_same_message=messages.is_same_message,
        to_ack_message=messages.to_ack_message,
        to_hub_message=messages.to_hub_message,
        no_acknowledgement=messages.NO_ACKNOWLEDGEMENT,
    )
    _set(hubs, "message_forms", forms)


def _linger() -> None:
    directory = RedisBus.directory

    def without(self: RedisBus, changes: list[Any]) -> None:
        directory(self, [each for each in changes if each.clients or each.room])

    _set(RedisBus, "directory", without)


def _hurry() -> None:
    lease = RedisBus.lease
    _set(RedisBus, "lease", lambda self, state, grace: lease(self, state, lambda: 0.0))


def _litter() -> None:
    opening = RedisOfflineStore.open

    async def littering(self: RedisOfflineStore) -> None:
        await opening(self)
        with redis.Redis.from_url(str(self._url)) as client:
            client.set("wsc:litter", "1")

    _set(RedisOfflineStore, "open", littering)


def _set(owner: Any, name: str, function: Any) -> None:
    setattr(owner, name, function)


FAULTS: dict[str, Callable[[], None]] = {
    "repeat": _repeat,
    "silence": _silence,
    "deny": _deny,
    "linger": _linger,
    "hurry": _hurry,
    "litter": _litter,
    "shout": sabotage.FAULTS["shout"],
}
